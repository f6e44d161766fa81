//! Which of the images of an index is meant: by platform, as podman chooses.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// What an image runs on, as `os/arch[/variant]`, in the words of the OCI image specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// Operating system: `linux`.
    pub os: String,
    /// Architecture: `amd64`, `arm64`, …
    pub architecture: String,
    /// Variant of the architecture: `v7`, `v8`; empty for any.
    pub variant: String,
}

/// Text that is no platform.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is not a platform of the form os/arch or os/arch/variant")]
pub struct InvalidPlatform(String);

impl Platform {
    /// The platform of this host.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", ""),
            "x86" => ("386", ""),
            "aarch64" => ("arm64", "v8"),
            "arm" => ("arm", "v7"),
            "powerpc64" => ("ppc64le", ""),
            "loongarch64" => ("loong64", ""),
            other => (other, ""),
        };
        Self {
            os: "linux".into(),
            architecture: architecture.into(),
            variant: variant.into(),
        }
    }

    /// How well an image for `other` fits: the lower the better; `None` if it does not. A variant that
    /// is older than this one fits, one that is newer does not; an unknown one must be the same.
    pub(super) fn rank(&self, other: &Self) -> Option<usize> {
        if self.os != other.os || self.architecture != other.architecture {
            return None;
        }
        let known: &[&str] = match self.architecture.as_str() {
            "arm" => &["v8", "v7", "v6", "v5"],
            "arm64" => &["v8"],
            _ => &[],
        };
        let mut wanted = Vec::new();
        if self.variant.is_empty() {
            wanted.push("");
            wanted.extend(known);
        } else {
            match known.iter().position(|variant| *variant == self.variant) {
                Some(from) => wanted.extend(&known[from..]),
                None => wanted.push(&self.variant),
            }
            wanted.push("");
        }
        wanted.iter().position(|variant| *variant == other.variant)
    }
}

impl FromStr for Platform {
    type Err = InvalidPlatform;

    fn from_str(text: &str) -> Result<Self, InvalidPlatform> {
        let parts: Vec<_> = text.split('/').collect();
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] => (os, architecture, ""),
            [os, architecture, variant] if !variant.is_empty() => (os, architecture, variant),
            _ => return Err(InvalidPlatform(text.into())),
        };
        if os.is_empty() || architecture.is_empty() {
            return Err(InvalidPlatform(text.into()));
        }
        Ok(Self {
            os: os.into(),
            architecture: architecture.into(),
            variant: variant.into(),
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn a_platform_is_os_and_architecture_and_perhaps_a_variant() {
        for text in ["linux/amd64", "linux/arm/v7"] {
            assert_eq!(platform(text).to_string(), text);
        }
        for text in ["", "linux", "linux/", "/amd64", "linux/arm/", "a/b/c/d"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_older_variant_fits_and_a_newer_one_does_not() {
        let rank = |wanted: &str, offered: &str| platform(wanted).rank(&platform(offered));
        assert_eq!(rank("linux/amd64", "linux/amd64"), Some(0));
        assert_eq!(rank("linux/amd64", "linux/arm64"), None);
        assert_eq!(rank("linux/amd64", "windows/amd64"), None);
        assert_eq!(rank("linux/arm/v7", "linux/arm/v7"), Some(0));
        assert_eq!(rank("linux/arm/v7", "linux/arm/v6"), Some(1));
        assert_eq!(rank("linux/arm/v7", "linux/arm/v8"), None);
        assert_eq!(rank("linux/arm64/v8", "linux/arm64"), Some(1));
        assert_eq!(rank("linux/arm64", "linux/arm64/v8"), Some(1));
        assert_eq!(rank("linux/amd64/v3", "linux/amd64"), Some(1));
        assert_eq!(rank("linux/amd64", "linux/amd64/v3"), None);
    }
}
