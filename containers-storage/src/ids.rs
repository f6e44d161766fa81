//! One type for each kind of ID in a store.
//!
//! c/storage makes IDs of 64 hex digits, but its libraries let callers choose other text. An ID here is
//! therefore any text that is safe as one component of a path: printable ASCII without `/`, at most 128
//! bytes, and not `.` or `..`. Nothing that was not checked this way is ever joined to a path.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::ConfigDigest;

/// Text that is not an ID: empty, too long, or with characters that have no place in a path component.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a valid {kind}")]
pub struct InvalidId {
    /// What it should have been: "layer ID", "image ID", …
    pub kind: &'static str,
    /// The text, cut to 128 characters.
    pub text: String,
}

impl InvalidId {
    fn new(kind: &'static str, text: &str) -> Self {
        Self {
            kind,
            text: text.chars().take(MAX_ID).collect(),
        }
    }
}

const MAX_ID: usize = 128;

fn is_safe_component(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= MAX_ID
        && text.bytes().all(|b| b.is_ascii_graphic() && b != b'/')
        && text != "."
        && text != ".."
}

/// 64 lower-case hex digits, the form of every ID that c/storage makes itself.
pub(crate) fn is_hex64(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Box<str>);

        impl $name {
            /// The ID as text, safe to use as one component of a path.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Whether the ID has the form that c/storage makes itself: 64 lower-case hex digits.
            pub fn is_canonical(&self) -> bool {
                is_hex64(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                if is_safe_component(text) {
                    Ok(Self(text.into()))
                } else {
                    Err(InvalidId::new($kind, text))
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0.into()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

id_type!(
    /// A layer. Layers of an image copy are named by their chain ID, see [`crate::chain_id`].
    LayerId,
    "layer ID"
);
id_type!(
    /// An image: the hex digits of its config's digest.
    ImageId,
    "image ID"
);
impl ImageId {
    /// The ID of an image that has this config, none of whose layers was identified by a table of
    /// contents.
    pub fn of_config(config: &ConfigDigest) -> Self {
        Self(config.to_hex().into())
    }
}

id_type!(
    /// A container.
    ContainerId,
    "container ID"
);

/// The short name of a layer directory, `l/<LID>`: 26 characters of base32 (`A`–`Z`, `2`–`7`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId([u8; Self::LEN]);

impl LinkId {
    const LEN: usize = 26;
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

    /// The name as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("the alphabet is ASCII")
    }

    /// A new random name, from the kernel's random number generator.
    pub fn random() -> std::io::Result<Self> {
        let mut bytes = [0; Self::LEN];
        crate::lock::fill_random(&mut bytes)?;
        // 256 is a multiple of 32: every character is equally likely.
        Ok(Self(bytes.map(|b| Self::ALPHABET[usize::from(b % 32)])))
    }
}

impl FromStr for LinkId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        match text.as_bytes().try_into() {
            Ok(bytes) if text.bytes().all(|b| Self::ALPHABET.contains(&b)) => Ok(Self(bytes)),
            _ => Err(InvalidId::new("link ID", text)),
        }
    }
}

impl fmt::Display for LinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for LinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LinkId({})", self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_one_safe_path_component() {
        for bad in ["", ".", "..", "a/b", "a\0", "a b", "ä", &"a".repeat(129)] {
            assert!(bad.parse::<LayerId>().is_err(), "{bad:?}");
        }
        assert!("c0ffee".parse::<LayerId>().is_ok());
    }

    #[test]
    fn a_random_link_id_parses_and_differs_from_the_next() {
        let one = LinkId::random().unwrap();
        assert_eq!(one.as_str().parse::<LinkId>().unwrap(), one);
        assert_ne!(one, LinkId::random().unwrap());
    }

    #[test]
    fn a_link_id_of_other_characters_is_refused() {
        for bad in [
            "",
            "ABCDEFGHIJKLMNOPQRSTUVWXY",
            "abcdefghijklmnopqrstuvwxyz",
            "ABCDEFGHIJKLMNOPQRSTUVWXY1",
        ] {
            assert!(bad.parse::<LinkId>().is_err(), "{bad:?}");
        }
    }
}
