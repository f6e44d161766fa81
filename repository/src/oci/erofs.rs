//! The names under which a config stream keeps the EROFS images of its image.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use composefs_image::{Format, VerityDigest};

const PREFIX: &str = "composefs.image";

/// Which EROFS image of an image. The order is that in which references are written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ErofsKey {
    /// `composefs.image`: the rootfs in format V2.
    RootfsV2,
    /// `composefs.image.v1`: the rootfs in format V1.
    RootfsV1,
    /// `composefs.image.boot…`: an image to boot from, with the rest of the name, for example
    /// nothing (V2), `.v1`, or `.v1.xattrs=keep-user`.
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
}
