//! The kernel arguments that name the image to boot: `composefs=` and `composefs.digest=`.
//!
//! [`ImageArgument`] is one such argument, printed and parsed. Who boots chooses among several in
//! one of two ways, and both are here: [`for_loader`] is how boot loader code and tools that look into
//! a unified kernel image choose, [`candidates`] is what `composefs-setup-root` tries in an initramfs.
//! Nothing here looks at an image: the version in an argument is a label, the digest decides.
//! Follows the composefs image format, section "kernel command line".

use std::fmt;

use crate::{Algorithm, DigestError, Format, VerityDigest};

const PLAIN: &[u8] = b"composefs=";
const LABELLED: &[u8] = b"composefs.digest=";
/// The only fs-verity block size there is: 2 to the power of this.
const BLOCK_SIZE_LOG2: &str = "12";

/// Which argument, and what it calls the image's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ArgumentForm {
    /// `composefs=<hex>`: by convention a V2 image; bootc writes it for all.
    Plain,
    /// `composefs.digest=v1-<hash>-12:<hex>`: a V1 image.
    V1,
    /// `composefs.digest=v2-<hash>-12:<hex>`: a V2 image. Understood, but not in use.
    V2,
}

/// Whether the image may be booted without fs-verity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VerityRequirement {
    /// It may not.
    Required,
    /// It may: a `?` right after the `=`.
    Optional,
}

/// A kernel argument that names the image to boot. Displayed as it stands on the command line.
///
/// ```
/// use composefs_image::{Algorithm, verity_digest};
/// use composefs_image::karg::{ArgumentForm, ImageArgument, VerityRequirement, candidates};
///
/// let argument = ImageArgument {
///     form: ArgumentForm::V1,
///     verity: VerityRequirement::Optional,
///     digest: verity_digest(Algorithm::Sha256, b"image"),
/// };
/// let line = format!("rw {argument} quiet");
/// assert!(line.starts_with("rw composefs.digest=?v1-sha256-12:"));
/// let found: Result<Vec<_>, _> = candidates(line.as_bytes()).collect();
/// assert_eq!(found?, [argument]);
/// # Ok::<(), composefs_image::karg::ArgumentError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ImageArgument {
    /// Which argument.
    pub form: ArgumentForm,
    /// Whether fs-verity may be missing.
    pub verity: VerityRequirement,
    /// The digest of the image.
    pub digest: VerityDigest,
}

/// An argument that means to name an image and does not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("kernel argument {}: {problem}", argument.escape_ascii())]
pub struct ArgumentError {
    /// The argument as it stands on the command line.
    pub argument: Box<[u8]>,
    /// What is wrong with it.
    pub problem: ArgumentProblem,
}

/// What is wrong with an argument.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentProblem {
    /// A `composefs.digest=` that does not begin with version, hash and block size.
    #[error("it should begin with v1 or v2, the hash and the block size, as in v1-sha512-12:")]
    NoDescription,
    /// A version other than v1 and v2.
    #[error("the image format {0:?} is unknown; v1 and v2 are known")]
    Version(Box<str>),
    /// Neither sha256 nor sha512.
    #[error("the hash {0:?} is unknown; sha256 and sha512 are known")]
    Hash(Box<str>),
    /// A block size other than 4096, which is 12.
    #[error("the block size {0:?} is unknown; {BLOCK_SIZE_LOG2} is known")]
    BlockSize(Box<str>),
    /// The digest cannot be read.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// The digest is one of another hash.
    #[error("the digest is {}, where {} is expected", found.name(), expected.name())]
    OtherHash {
        /// The hash that its description or the repository asks for.
        expected: Algorithm,
        /// The hash that its length belongs to.
        found: Algorithm,
    },
}

impl ImageArgument {
    /// The argument in use for an image of a format: `composefs.digest=` for V1, and for V0, which it
    /// does not tell apart, `composefs=` for V2.
    pub const fn new(format: Format, digest: VerityDigest, verity: VerityRequirement) -> Self {
        Self {
            form: match format {
                Format::V0 | Format::V1 => ArgumentForm::V1,
                Format::V2 => ArgumentForm::Plain,
            },
            verity,
            digest,
        }
    }
}

impl fmt::Display for ImageArgument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let optional = match self.verity {
            VerityRequirement::Required => "",
            VerityRequirement::Optional => "?",
        };
        let version = match self.form {
            ArgumentForm::Plain => return write!(f, "composefs={optional}{}", self.digest),
            ArgumentForm::V1 => "v1",
            ArgumentForm::V2 => "v2",
        };
        let hash = self.digest.algorithm().name();
        write!(
            f,
            "composefs.digest={optional}{version}-{hash}-{BLOCK_SIZE_LOG2}:{}",
            self.digest
        )
    }
}

/// The arguments of a kernel command line, as the kernel splits it: at white space that is not between
/// double quotes. Quotes are kept.
pub fn arguments(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut quoted = false;
    line.split(move |byte| {
        quoted ^= *byte == b'"';
        !quoted && byte.is_ascii_whitespace()
    })
    .filter(|argument| !argument.is_empty())
}

/// Every argument that names an image, in the order of the command line: `composefs-setup-root` boots
/// the first of which the repository has the image.
///
/// All digests should have the repository's algorithm: that tool gives up at another one.
pub fn candidates(line: &[u8]) -> impl Iterator<Item = Result<ImageArgument, ArgumentError>> {
    arguments(line).filter_map(|argument| {
        let value = Value::of(argument)?;
        let parsed = value.describe().and_then(Described::finish);
        Some(parsed.map_err(|problem| error(argument, problem)))
    })
}

/// The argument that counts for boot loader code: the first `composefs.digest=` whose hash is
/// `algorithm`, wherever it stands, else the first `composefs=`.
///
/// A `composefs.digest=` of the other hash is skipped. One that cannot be read is an error, if it comes
/// before the one that counts.
pub fn for_loader(
    line: &[u8],
    algorithm: Algorithm,
) -> Result<Option<ImageArgument>, ArgumentError> {
    let mut plain = None;
    for argument in arguments(line) {
        let Some(value) = Value::of(argument) else {
            continue;
        };
        if value.key == Key::Plain {
            plain.get_or_insert((argument, value));
            continue;
        }
        let described = value
            .describe()
            .map_err(|problem| error(argument, problem))?;
        if described.algorithm == Some(algorithm) {
            let found = described.finish();
            return found.map(Some).map_err(|problem| error(argument, problem));
        }
    }
    let Some((argument, value)) = plain else {
        return Ok(None);
    };
    let found = value.describe().and_then(|described| {
        let described = Described {
            algorithm: Some(algorithm),
            ..described
        };
        described.finish()
    });
    found.map(Some).map_err(|problem| error(argument, problem))
}

fn error(argument: &[u8], problem: ArgumentProblem) -> ArgumentError {
    ArgumentError {
        argument: argument.into(),
        problem,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Key {
    Plain,
    Labelled,
}

/// What follows the `=` and the `?`.
#[derive(Clone, Copy)]
struct Value<'a> {
    key: Key,
    verity: VerityRequirement,
    rest: &'a [u8],
}

/// A value up to its digest.
struct Described<'a> {
    form: ArgumentForm,
    verity: VerityRequirement,
    /// What the description says.
    algorithm: Option<Algorithm>,
    digest: &'a [u8],
}

impl<'a> Value<'a> {
    fn of(argument: &'a [u8]) -> Option<Self> {
        let (key, rest) = if let Some(rest) = argument.strip_prefix(LABELLED) {
            (Key::Labelled, rest)
        } else {
            (Key::Plain, argument.strip_prefix(PLAIN)?)
        };
        Some(match rest.strip_prefix(b"?") {
            Some(rest) => Self {
                key,
                verity: VerityRequirement::Optional,
                rest,
            },
            None => Self {
                key,
                verity: VerityRequirement::Required,
                rest,
            },
        })
    }

    fn describe(self) -> Result<Described<'a>, ArgumentProblem> {
        if self.key == Key::Plain {
            return Ok(Described {
                form: ArgumentForm::Plain,
                verity: self.verity,
                algorithm: None,
                digest: self.rest,
            });
        }
        let none = || ArgumentProblem::NoDescription;
        let colon = self
            .rest
            .iter()
            .position(|byte| *byte == b':')
            .ok_or_else(none)?;
        let (description, digest) = (&self.rest[..colon], &self.rest[colon + 1..]);
        let description = str::from_utf8(description).map_err(|_| none())?;
        let mut parts = description.split('-');
        let (Some(version), Some(hash), Some(block_size), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(none());
        };
        let form = match version {
            "v1" => ArgumentForm::V1,
            "v2" => ArgumentForm::V2,
            _ => return Err(ArgumentProblem::Version(version.into())),
        };
        let algorithm = [Algorithm::Sha256, Algorithm::Sha512]
            .into_iter()
            .find(|algorithm| algorithm.name() == hash)
            .ok_or_else(|| ArgumentProblem::Hash(hash.into()))?;
        if block_size != BLOCK_SIZE_LOG2 {
            return Err(ArgumentProblem::BlockSize(block_size.into()));
        }
        Ok(Described {
            form,
            verity: self.verity,
            algorithm: Some(algorithm),
            digest,
        })
    }
}

impl Described<'_> {
    fn finish(self) -> Result<ImageArgument, ArgumentProblem> {
        // composefs-rs takes capitals, too.
        let digest = VerityDigest::from_hex_bytes(&self.digest.to_ascii_lowercase())?;
        let found = digest.algorithm();
        match self.algorithm {
            Some(expected) if expected != found => {
                Err(ArgumentProblem::OtherHash { expected, found })
            }
            _ => Ok(ImageArgument {
                form: self.form,
                verity: self.verity,
                digest,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sha256(byte: u8) -> VerityDigest {
        VerityDigest::sha256([byte; 32])
    }

    fn sha512(byte: u8) -> VerityDigest {
        VerityDigest::sha512([byte; 64])
    }

    fn argument(form: ArgumentForm, verity: VerityRequirement, digest: VerityDigest) -> String {
        let argument = ImageArgument {
            form,
            verity,
            digest,
        };
        argument.to_string()
    }

    #[test]
    fn every_argument_is_printed_as_the_peers_print_it_and_comes_back() {
        use ArgumentForm::{Plain, V1, V2};
        use VerityRequirement::{Optional, Required};
        let (short, long) = ("0a".repeat(32), "0a".repeat(64));
        for (form, verity, digest, expected) in [
            (Plain, Required, sha256(10), format!("composefs={short}")),
            (Plain, Optional, sha512(10), format!("composefs=?{long}")),
            (
                V1,
                Required,
                sha256(10),
                format!("composefs.digest=v1-sha256-12:{short}"),
            ),
            (
                V1,
                Optional,
                sha512(10),
                format!("composefs.digest=?v1-sha512-12:{long}"),
            ),
            (
                V2,
                Required,
                sha512(10),
                format!("composefs.digest=v2-sha512-12:{long}"),
            ),
            (
                V2,
                Optional,
                sha256(10),
                format!("composefs.digest=?v2-sha256-12:{short}"),
            ),
        ] {
            assert_eq!(argument(form, verity, digest), expected);
            let capitals = expected.replace("0a", "0A");
            for text in [&expected, &capitals] {
                let found: Vec<_> = candidates(text.as_bytes()).collect();
                let [Ok(found)] = &found[..] else {
                    panic!("{found:?}");
                };
                assert_eq!(
                    (found.form, found.verity, found.digest),
                    (form, verity, digest)
                );
            }
        }
    }

    #[test]
    fn arguments_end_at_white_space_outside_double_quotes() {
        let line = b" a  b=\"c d\"e\tf\n\"composefs=x y\" \"open end";
        let found: Vec<_> = arguments(line).collect();
        assert_eq!(
            found,
            [
                &b"a"[..],
                b"b=\"c d\"e",
                b"f",
                b"\"composefs=x y\"",
                b"\"open end"
            ]
        );
    }

    #[test]
    fn setup_root_tries_both_kinds_in_the_order_of_the_line() {
        let lines = [
            argument(ArgumentForm::Plain, VerityRequirement::Required, sha256(1)),
            argument(ArgumentForm::V1, VerityRequirement::Optional, sha256(2)),
            argument(ArgumentForm::V2, VerityRequirement::Required, sha256(3)),
        ];
        let line = format!("rw {} quiet", lines.join(" x=y "));
        let found: Vec<_> = candidates(line.as_bytes())
            .map(|candidate| candidate.unwrap().digest)
            .collect();
        assert_eq!(found, [sha256(1), sha256(2), sha256(3)]);
        assert_eq!(
            candidates(b"rw composefs composefsx=1 composefs.digests=1").count(),
            0
        );
    }

    #[test]
    fn a_loader_prefers_the_labelled_argument_of_its_hash_wherever_it_stands() {
        let plain = argument(ArgumentForm::Plain, VerityRequirement::Required, sha256(1));
        let other = argument(ArgumentForm::V1, VerityRequirement::Required, sha512(2));
        let first = argument(ArgumentForm::V2, VerityRequirement::Optional, sha256(3));
        let second = argument(ArgumentForm::V1, VerityRequirement::Required, sha256(4));
        let found = |line: &str| {
            for_loader(line.as_bytes(), Algorithm::Sha256)
                .unwrap()
                .map(|argument| argument.digest)
        };
        assert_eq!(found("rw quiet"), None);
        assert_eq!(found(&plain), Some(sha256(1)));
        assert_eq!(found(&format!("{plain} {other}")), Some(sha256(1)));
        assert_eq!(
            found(&format!("{plain} {other} {first} {second}")),
            Some(sha256(3))
        );
        // What comes after the one that counts is not looked at.
        assert_eq!(
            found(&format!("{first} composefs.digest=nonsense")),
            Some(sha256(3))
        );
    }

    #[test]
    fn what_cannot_be_read_is_an_error_that_names_the_argument() {
        use ArgumentProblem as P;
        let hex = "11".repeat(32);
        for (value, problem) in [
            (hex.clone(), P::NoDescription),
            (format!("v1-sha256:{hex}"), P::NoDescription),
            (format!("v1-sha256-12-4:{hex}"), P::NoDescription),
            (format!("v0-sha256-12:{hex}"), P::Version("v0".into())),
            (format!("V1-sha256-12:{hex}"), P::Version("V1".into())),
            (format!("v1-sha1-12:{hex}"), P::Hash("sha1".into())),
            (format!("v1-sha256-16:{hex}"), P::BlockSize("16".into())),
            (
                "v1-sha256-12:11".into(),
                P::Digest(DigestError::HexLength(2)),
            ),
            (
                format!("v1-sha512-12:{hex}"),
                P::OtherHash {
                    expected: Algorithm::Sha512,
                    found: Algorithm::Sha256,
                },
            ),
        ] {
            let line = format!("rw composefs.digest={value}");
            let error = candidates(line.as_bytes()).next().unwrap().unwrap_err();
            assert_eq!(error.problem, problem, "{line}");
            assert_eq!(error.argument[..], line.as_bytes()[3..]);
            if !matches!(problem, P::OtherHash { .. }) {
                let line = format!("{line} composefs={hex}");
                assert_eq!(for_loader(line.as_bytes(), Algorithm::Sha256), Err(error));
            }
        }
        let other = format!("composefs={hex}");
        assert!(matches!(
            for_loader(other.as_bytes(), Algorithm::Sha512)
                .unwrap_err()
                .problem,
            P::OtherHash { .. }
        ));
        assert!(candidates(b"composefs=").next().unwrap().is_err());
    }
}
