//! Digests as records, manifests and configs write them, and the chain IDs made from them.
//!
//! [`Digest`] is any digest whose form is valid; the types of `oci-digest` are SHA-256 digests with one
//! meaning each, so that the digest of a compressed blob cannot be taken for a diff ID.

use std::fmt;
use std::str::FromStr;

pub use oci_digest::{ConfigDigest, DiffId, DigestError, ManifestDigest};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::ids::LayerId;

/// Text that is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a valid digest")]
pub struct InvalidDigest {
    /// The text, cut to 160 characters.
    pub text: String,
}

/// A digest `algorithm:hex` of valid form: `sha256`, `sha384` or `sha512` with as many lower-case hex
/// digits as the algorithm has.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(Box<str>);

impl Digest {
    /// The whole text, `algorithm:hex`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part after the colon.
    pub fn hex(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, hex)| hex)
    }

    /// The bytes, if the algorithm is SHA-256.
    pub fn sha256(&self) -> Option<[u8; 32]> {
        let mut bytes = [0; 32];
        let hex = self.0.strip_prefix("sha256:")?;
        hex::decode_to_slice(hex, &mut bytes).ok()?;
        Some(bytes)
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let valid = text.split_once(':').is_some_and(|(algorithm, hex)| {
            let digits = match algorithm {
                "sha256" => 64,
                "sha384" => 96,
                "sha512" => 128,
                _ => return false,
            };
            hex.len() == digits && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        });
        if valid {
            Ok(Self(text.into()))
        } else {
            Err(InvalidDigest {
                text: text.chars().take(160).collect(),
            })
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidDigest;

    fn try_from(text: String) -> Result<Self, InvalidDigest> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0.into()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({})", self.0)
    }
}

macro_rules! sha256_of_content {
    ($($name:ident),*) => {$(
        impl TryFrom<&Digest> for $name {
            type Error = DigestError;

            fn try_from(digest: &Digest) -> Result<Self, DigestError> {
                digest.as_str().parse()
            }
        }

        impl From<$name> for Digest {
            fn from(digest: $name) -> Self {
                Self(digest.to_string().into())
            }
        }
    )*};
}

sha256_of_content!(ConfigDigest, DiffId, ManifestDigest);

/// The ID that an image copy gives to a layer with the diff ID `diff_id` on the layer `parent`: for the
/// first layer the hex digits of the diff ID, for every other one the SHA-256 of `<parent>+<diff ID>`.
pub fn chain_id(parent: Option<&LayerId>, diff_id: &DiffId) -> LayerId {
    let hex = match parent {
        None => diff_id.to_hex(),
        Some(parent) => {
            let mut hash = Sha256::new();
            hash.update(parent.as_str());
            hash.update("+");
            hash.update(diff_id.to_hex());
            hex::encode(hash.finalize())
        }
    };
    hex.parse().expect("hex digits are a valid ID")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_of_wrong_length_case_or_algorithm_are_refused() {
        let hex = "a".repeat(64);
        assert!(format!("sha256:{hex}").parse::<Digest>().is_ok());
        assert!(format!("sha512:{hex}{hex}").parse::<Digest>().is_ok());
        for bad in [
            String::new(),
            hex.clone(),
            format!("md5:{hex}"),
            format!("sha256:{hex}a"),
            format!("sha256:{}", hex.to_uppercase()),
            format!("sha256:../{}", &hex[3..]),
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
        assert!(format!("sha512:{hex}{hex}").parse::<DiffId>().is_err());
    }

    #[test]
    fn chain_ids_follow_parent_plus_diff_id() {
        let diff = DiffId::of(b"layer");
        let first = chain_id(None, &diff);
        assert_eq!(first.as_str(), diff.to_hex());
        let expected = hex::encode(Sha256::digest(format!("{first}+{}", diff.to_hex())));
        assert_eq!(chain_id(Some(&first), &diff).as_str(), expected);
    }
}
