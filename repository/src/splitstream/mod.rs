//! Splitstreams: byte streams, such as layer tars, whose large parts are objects of their own.
//!
//! Follows the composefs repository format, section "splitstream". A splitstream is itself an object:
//!
//! | part | content |
//! |---|---|
//! | header, 32 bytes | magic, version, algorithm, where the info block is |
//! | info, 80 bytes | where the other parts are, content type, logical size |
//! | stream refs | digests of whole streams and images that this one needs |
//! | object refs | digests of the stream's external parts, in order of first use |
//! | named refs | zstd: names for some of the stream refs |
//! | stream | zstd: chunks that are either inline bytes or the index of an object ref |
//!
//! [`Writer`] and [`Reader`] stream: neither holds more than some megabytes, however large the
//! stream, beside the writer's index of distinct objects. The reader takes nothing on trust.

mod layout;
mod reader;
mod spool;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};

use composefs_image::{Algorithm, VerityDigest};

use crate::error::{Error, Result};
use crate::object::ReadObjects;

pub use layout::{SNIFF_LENGTH, is_splitstream};
pub use reader::{Piece, ReadAt, Reader, Refs};
pub use writer::{Mention, Writer};

/// The named references of a splitstream: name to stream or image object.
pub type NamedRefs = BTreeMap<String, VerityDigest>;

/// The largest table of named references that is read, in bytes.
const MAX_NAMED_REFS: u64 = 16 << 20;

/// What a splitstream holds: eight bytes that read as ASCII.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentType([u8; 8]);

impl ContentType {
    /// The tar of a layer.
    pub const OCI_LAYER: Self = Self(*b"ocilayer");
    /// An image's config.
    pub const OCI_CONFIG: Self = Self(*b"ociconfg");
    /// An image's manifest.
    pub const OCI_MANIFEST: Self = Self(*b"ocimanif");
    /// An artifact's layer, or another blob.
    pub const OCI_BLOB: Self = Self(*b"oci_blob");

    /// A content type from its eight bytes.
    pub const fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(bytes)
    }

    /// The eight bytes, as they stand in the file.
    pub const fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }
}

impl fmt::Display for ContentType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.escape_ascii().fmt(f)
    }
}

impl fmt::Debug for ContentType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentType({self})")
    }
}

/// What is wrong with a splitstream.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SplitstreamError {
    /// Reading failed, or the compressed data is damaged or cut off.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// The magic is missing.
    #[error("not a splitstream")]
    Magic,
    /// A version of the format that isn't known here.
    #[error("version {0} of the format is unknown")]
    Version(u8),
    /// Another block size than 4096 bytes.
    #[error("its digests are over blocks of 2^{0} bytes, not 4096")]
    BlockSize(u8),
    /// Digests of another algorithm than the repository's.
    #[error("its digest algorithm, number {found}, is not {}", expected.name())]
    Algorithm {
        /// The number of its algorithm.
        found: u8,
        /// The repository's.
        expected: Algorithm,
    },
    /// Content of another type than was asked for.
    #[error("it holds {found}, not {expected}")]
    ContentType {
        /// What it holds.
        found: ContentType,
        /// What was asked for.
        expected: ContentType,
    },
    /// A part lies outside the file or has an impossible size.
    #[error("its {0} section is out of bounds")]
    Section(&'static str),
    /// The named references are not as they should be.
    #[error("its named references are malformed")]
    NamedRefs,
    /// The table of named references is larger than 16 MiB.
    #[error("its named references are larger than {MAX_NAMED_REFS} bytes")]
    NamedRefsTooLarge,
    /// A chunk names an object ref that isn't there.
    #[error("it refers to object number {index} of {count}")]
    ObjectIndex {
        /// The index.
        index: u64,
        /// How many object refs there are.
        count: u64,
    },
    /// The chunks end within a chunk.
    #[error("it ends within a chunk")]
    Truncated,
}

/// Opens the splitstream that the object `digest` is. With `expected`, content of another type is an
/// error.
pub fn open(
    objects: &(impl ReadObjects + ?Sized),
    digest: &VerityDigest,
    expected: Option<ContentType>,
) -> Result<Reader<File>> {
    let file = objects.open_object(digest)?;
    Reader::new(file, objects.algorithm(), expected).map_err(|source| Error::Splitstream {
        digest: *digest,
        source,
    })
}

/// Writes the whole logical stream of the splitstream `digest` to `out`; returns its length in bytes.
pub fn copy_stream(
    objects: &(impl ReadObjects + ?Sized),
    digest: &VerityDigest,
    out: &mut impl Write,
) -> Result<u64> {
    let mut reader = open(objects, digest, None)?;
    let broken = |source| Error::Splitstream {
        digest: *digest,
        source,
    };
    let unwritten = |error| Error::io("write the content of splitstream", digest.to_hex())(error);
    let mut buffer = vec![0; 64 * 1024];
    let mut total = 0_u64;
    while let Some(piece) = reader.next_piece().map_err(broken)? {
        match piece {
            Piece::Inline(_) => loop {
                let count = reader.read_inline(&mut buffer).map_err(broken)?;
                if count == 0 {
                    break;
                }
                out.write_all(buffer.get(..count).unwrap_or_default())
                    .map_err(unwritten)?;
                total += count as u64;
            },
            Piece::External(object) => {
                let mut file = objects.open_object(&object)?;
                total += io::copy(&mut file, out).map_err(unwritten)?;
            }
        }
    }
    Ok(total)
}
