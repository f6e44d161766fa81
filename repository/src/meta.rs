//! `meta.json`: what a repository is, fixed when it is made.
//!
//! Follows the composefs repository format, section "meta.json": bytes to a value and back. It reads
//! and writes no files. Whether a repository is secure isn't in the file; the fs-verity state of the
//! file says it.

use std::collections::BTreeSet;
use std::fmt;

use composefs_image::{Algorithm, Format};
use serde::{Deserialize, Serialize};

/// The highest `version` that this code understands.
const VERSION: u32 = 1;

/// The feature that says "V1 images" to readers that know no `erofs_formats`.
const V1_FEATURE: &str = "v1_erofs";

/// Whether the kernel has to verify the repository's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Security {
    /// fs-verity is enabled on every object, and an object without it is an error.
    Secure,
    /// fs-verity is enabled where the filesystem has it; an object without it is accepted.
    Insecure,
}

impl fmt::Display for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Secure => "secure",
            Self::Insecure => "insecure",
        })
    }
}

/// The image formats that a repository holds: every image exists once in each of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Formats {
    default: Format,
    extra: BTreeSet<Format>,
}

impl Formats {
    /// One format.
    pub fn single(format: Format) -> Self {
        Self {
            default: format,
            extra: BTreeSet::new(),
        }
    }

    /// V1 by default and V2 beside it.
    pub fn dual() -> Self {
        Self {
            default: Format::V1,
            extra: BTreeSet::from([Format::V2]),
        }
    }

    /// The same and one more, which does not become the default.
    #[must_use]
    pub fn with(mut self, format: Format) -> Self {
        if format != self.default {
            self.extra.insert(format);
        }
        self
    }

    /// The format that a plain question for "the image" is answered with.
    pub fn default_format(&self) -> Format {
        self.default
    }

    /// All formats in the order in which images are committed: the default one, then the others
    /// ascending.
    pub fn all(&self) -> impl Iterator<Item = Format> + '_ {
        let extra = self.extra.iter().copied();
        std::iter::once(self.default).chain(extra.filter(|format| *format != self.default))
    }

    /// Whether images of `format` are made.
    pub fn contains(&self, format: Format) -> bool {
        self.all().any(|other| other == format)
    }
}

impl fmt::Display for Formats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, format) in self.all().enumerate() {
            let separator = if index == 0 { "" } else { "+" };
            write!(f, "{separator}{format}")?;
        }
        Ok(())
    }
}

/// What `meta.json` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// The algorithm of every digest in the repository.
    pub algorithm: Algorithm,
    /// The image formats.
    pub formats: Formats,
    /// `features.read-only-compatible` names that this code doesn't know: such a repository must not be
    /// written to.
    pub unknown_read_only: Vec<String>,
}

/// Why a `meta.json` can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MetaError {
    /// Not JSON, or a field is missing or of another type.
    #[error("not valid: {0}")]
    Syntax(#[from] serde_json::Error),
    /// The file is too large to be one.
    #[error("larger than {MAX_SIZE} bytes")]
    TooLarge,
    /// Made by a later version of the format.
    #[error("version {0} is newer than {VERSION}, the latest that is known here")]
    Version(u32),
    /// Neither `fsverity-sha256-12` nor `fsverity-sha512-12`.
    #[error("algorithm {0:?} is unknown; fsverity-sha256-12 and fsverity-sha512-12 are known")]
    Algorithm(String),
    /// A format number other than 0, 1 and 2.
    #[error("image format {0} is unknown; 0, 1 and 2 are known")]
    Format(u64),
    /// An incompatible feature.
    #[error(
        "feature {0:?} is unknown, and says that the repository can't be used without knowing it"
    )]
    Incompatible(String),
}

/// More than any `meta.json` needs, in bytes.
pub const MAX_SIZE: u64 = 1 << 20;

#[derive(Serialize, Deserialize)]
struct Document {
    version: u32,
    algorithm: String,
    #[serde(default)]
    features: Features,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    erofs_formats: Option<ErofsFormats>,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct Features {
    compatible: Vec<String>,
    read_only_compatible: Vec<String>,
    incompatible: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct ErofsFormats {
    default: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    extra: Vec<u64>,
}

impl Meta {
    /// Reads the content of a `meta.json`.
    pub fn parse(json: &[u8]) -> Result<Self, MetaError> {
        if json.len() as u64 > MAX_SIZE {
            return Err(MetaError::TooLarge);
        }
        let document: Document = serde_json::from_slice(json)?;
        if document.version > VERSION {
            return Err(MetaError::Version(document.version));
        }
        let algorithm = match document.algorithm.as_str() {
            "fsverity-sha256-12" => Algorithm::Sha256,
            "fsverity-sha512-12" => Algorithm::Sha512,
            _ => return Err(MetaError::Algorithm(document.algorithm)),
        };
        if let Some(name) = document.features.incompatible.into_iter().next() {
            return Err(MetaError::Incompatible(name));
        }
        let (v1, unknown_read_only): (Vec<_>, Vec<_>) = document
            .features
            .read_only_compatible
            .into_iter()
            .partition(|name| name == V1_FEATURE);
        let formats = match document.erofs_formats {
            Some(formats) => formats.into_formats()?,
            None => Formats::single(Format::V2),
        };
        // An explicit plain V2 counts as no statement at all beside the feature.
        let formats = if formats == Formats::single(Format::V2) && !v1.is_empty() {
            Formats::single(Format::V1)
        } else {
            formats
        };
        Ok(Self {
            algorithm,
            formats,
            unknown_read_only,
        })
    }

    /// The bytes of a `meta.json`, as composefs-rs writes them.
    pub fn to_json(&self) -> Vec<u8> {
        let mut read_only_compatible = self.unknown_read_only.clone();
        if self.formats.default == Format::V1 {
            read_only_compatible.insert(0, V1_FEATURE.to_owned());
        }
        let document = Document {
            version: VERSION,
            algorithm: match self.algorithm {
                Algorithm::Sha256 => "fsverity-sha256-12",
                Algorithm::Sha512 => "fsverity-sha512-12",
            }
            .to_owned(),
            features: Features {
                read_only_compatible,
                ..Features::default()
            },
            erofs_formats: Some(ErofsFormats {
                default: u64::from(self.formats.default.number()),
                extra: self
                    .formats
                    .extra
                    .iter()
                    .map(|format| u64::from(format.number()))
                    .collect(),
            }),
        };
        let mut json =
            serde_json::to_vec_pretty(&document).expect("a document of strings and numbers");
        json.push(b'\n');
        json
    }
}

impl ErofsFormats {
    fn into_formats(self) -> Result<Formats, MetaError> {
        let known = |value: u64| {
            u8::try_from(value)
                .ok()
                .and_then(Format::from_number)
                .ok_or(MetaError::Format(value))
        };
        Ok(Formats {
            default: known(self.default)?,
            extra: self
                .extra
                .into_iter()
                .map(known)
                .collect::<Result<_, _>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(algorithm: &str, rest: &str) -> Result<Meta, MetaError> {
        Meta::parse(format!(r#"{{"version":1,"algorithm":"{algorithm}"{rest}}}"#).as_bytes())
    }

    #[test]
    fn a_new_repository_is_written_byte_for_byte_as_composefs_rs_writes_it() {
        let meta = Meta {
            algorithm: Algorithm::Sha512,
            formats: Formats::single(Format::V1),
            unknown_read_only: Vec::new(),
        };
        let expected = r#"{
  "version": 1,
  "algorithm": "fsverity-sha512-12",
  "features": {
    "compatible": [],
    "read-only-compatible": [
      "v1_erofs"
    ],
    "incompatible": []
  },
  "erofs_formats": {
    "default": 1
  }
}
"#;
        assert_eq!(String::from_utf8(meta.to_json()).unwrap(), expected);
        assert_eq!(Meta::parse(expected.as_bytes()).unwrap(), meta);
    }

    #[test]
    fn a_dual_repository_survives_writing_and_reading() {
        let meta = Meta {
            algorithm: Algorithm::Sha256,
            formats: Formats::dual(),
            unknown_read_only: Vec::new(),
        };
        let read = Meta::parse(&meta.to_json()).unwrap();
        assert_eq!(read, meta);
        assert_eq!(
            read.formats.all().collect::<Vec<_>>(),
            [Format::V1, Format::V2]
        );
    }

    #[test]
    fn formats_follow_the_precedence_of_list_and_feature() {
        let formats = |rest| parse("fsverity-sha256-12", rest).unwrap().formats;
        let v1 = r#","features":{"read-only-compatible":["v1_erofs"]}"#;
        assert_eq!(formats(""), Formats::single(Format::V2));
        assert_eq!(formats(v1), Formats::single(Format::V1));
        let explicit_v2 = format!(r#"{v1},"erofs_formats":{{"default":2}}"#);
        assert_eq!(formats(&explicit_v2), Formats::single(Format::V1));
        let both = format!(r#"{v1},"erofs_formats":{{"default":2,"extra":[1]}}"#);
        assert_eq!(
            formats(&both).all().collect::<Vec<_>>(),
            [Format::V2, Format::V1]
        );
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        assert!(matches!(
            Meta::parse(br#"{"version":2,"algorithm":"fsverity-sha256-12"}"#),
            Err(MetaError::Version(2))
        ));
        assert!(Meta::parse(br#"{"version":0,"algorithm":"fsverity-sha256-12"}"#).is_ok());
        assert!(matches!(
            parse("fsverity-sha256-16", ""),
            Err(MetaError::Algorithm(_))
        ));
        assert!(matches!(
            parse("fsverity-sha256-12", r#","erofs_formats":{"default":3}"#),
            Err(MetaError::Format(3))
        ));
        assert!(matches!(
            parse(
                "fsverity-sha256-12",
                r#","features":{"incompatible":["x"]}"#
            ),
            Err(MetaError::Incompatible(_))
        ));
        assert!(matches!(
            Meta::parse(b"{\"version\":1}"),
            Err(MetaError::Syntax(_))
        ));
    }

    #[test]
    fn an_unknown_read_only_feature_is_remembered_and_unknown_keys_are_ignored() {
        let rest = r#","features":{"read-only-compatible":["future"],"else":1},"other":[]"#;
        let meta = parse("fsverity-sha512-12", rest).unwrap();
        assert_eq!(meta.unknown_read_only, ["future"]);
    }
}
