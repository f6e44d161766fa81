//! The names under which a config stream keeps the EROFS images of its image.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use composefs_image::{Format, VerityDigest};

use crate::layers::XattrFilter;

const PREFIX: &str = "composefs.image";
const V1_SUFFIX: &str = ".v1";
const XATTRS_SUFFIX: &str = ".xattrs=";

/// Which EROFS image of an image. The order is that in which references are written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ErofsKey {
    /// `composefs.image`: the rootfs in format V2.
    RootfsV2,
    /// `composefs.image.v1`: the rootfs in format V1.
    RootfsV1,
    /// `composefs.image.boot…`: an image to boot from, with the rest of the name, for example
    /// nothing (V2), `.v1`, or `.v1.xattrs=keep-user-xattrs`. See [`Self::boot`].
    Boot(String),
}

impl ErofsKey {
    /// The rootfs image in a format; `None` for V0, which has no name.
    pub fn rootfs(format: Format) -> Option<Self> {
        match format {
            Format::V0 => None,
            Format::V1 => Some(Self::RootfsV1),
            Format::V2 => Some(Self::RootfsV2),
        }
    }

    /// An image to boot from in a format, with these xattrs; `None` for V0, which has no name.
    pub fn boot(format: Format, xattrs: XattrFilter) -> Option<Self> {
        let version = match format {
            Format::V0 => return None,
            Format::V1 => V1_SUFFIX,
            Format::V2 => "",
        };
        Some(Self::Boot(match xattrs {
            XattrFilter::AllowlistOnly => version.into(),
            XattrFilter::KeepUser => format!("{version}{XATTRS_SUFFIX}{xattrs}"),
        }))
    }

    /// The format, if it is the rootfs.
    pub fn rootfs_format(&self) -> Option<Format> {
        match self {
            Self::RootfsV2 => Some(Format::V2),
            Self::RootfsV1 => Some(Format::V1),
            Self::Boot(_) => None,
        }
    }

    /// Format and xattrs, if it is an image to boot from with a name that is understood.
    pub fn boot_variant(&self) -> Option<(Format, XattrFilter)> {
        let Self::Boot(rest) = self else {
            return None;
        };
        let (format, rest) = match rest.strip_prefix(V1_SUFFIX) {
            Some(rest) => (Format::V1, rest),
            None => (Format::V2, rest.as_str()),
        };
        let xattrs = match rest.strip_prefix(XATTRS_SUFFIX) {
            None if rest.is_empty() => XattrFilter::AllowlistOnly,
            Some(name) => XattrFilter::ALL
                .into_iter()
                .find(|xattrs| xattrs.name() == name)?,
            None => return None,
        };
        Some((format, xattrs))
    }
}

impl fmt::Display for ErofsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RootfsV2 => write!(f, "{PREFIX}"),
            Self::RootfsV1 => write!(f, "{PREFIX}.v1"),
            Self::Boot(rest) => write!(f, "{PREFIX}.boot{rest}"),
        }
    }
}

impl FromStr for ErofsKey {
    type Err = ();

    /// Anything that is not the name of an EROFS image is an error.
    fn from_str(name: &str) -> Result<Self, ()> {
        match name.strip_prefix(PREFIX).ok_or(())? {
            "" => Ok(Self::RootfsV2),
            ".v1" => Ok(Self::RootfsV1),
            rest => Ok(Self::Boot(rest.strip_prefix(".boot").ok_or(())?.to_owned())),
        }
    }
}

/// The EROFS images of an image.
pub type ErofsRefs = BTreeMap<ErofsKey, VerityDigest>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_erofs_images_come_back_and_sort_as_they_are_written() {
        let names = [
            "composefs.image",
            "composefs.image.v1",
            "composefs.image.boot",
            "composefs.image.boot.v1",
            "composefs.image.boot.v1.xattrs=keep-user-xattrs",
        ];
        let keys: Vec<ErofsKey> = names.iter().map(|name| name.parse().unwrap()).collect();
        assert!(keys.is_sorted());
        let back: Vec<String> = keys.iter().map(ErofsKey::to_string).collect();
        assert_eq!(back, names);
        for other in ["composefs.imagex", "composefs.image.v3", "sha256:00", ""] {
            assert_eq!(other.parse::<ErofsKey>(), Err(()));
        }
    }

    #[test]
    fn boot_images_have_a_name_for_each_format_and_filter() {
        let mut names = Vec::new();
        for format in [Format::V2, Format::V1] {
            for xattrs in XattrFilter::ALL {
                let key = ErofsKey::boot(format, xattrs).unwrap();
                assert_eq!(key.boot_variant(), Some((format, xattrs)));
                assert_eq!(key.rootfs_format(), None);
                names.push(key.to_string());
            }
        }
        assert_eq!(
            names,
            [
                "composefs.image.boot",
                "composefs.image.boot.xattrs=keep-user-xattrs",
                "composefs.image.boot.v1",
                "composefs.image.boot.v1.xattrs=keep-user-xattrs",
            ]
        );
        assert_eq!(ErofsKey::boot(Format::V0, XattrFilter::default()), None);
        for unknown in [".v3", ".v1x", ".xattrs=all", ".v1.xattrs="] {
            assert_eq!(ErofsKey::Boot(unknown.into()).boot_variant(), None);
        }
    }
}
