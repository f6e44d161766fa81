//! The composefs format: file trees, fs-verity digests, EROFS images, dumpfiles.
#![forbid(unsafe_code)]

pub mod dumpfile;
pub mod erofs;
pub mod format;
pub mod fsverity;
#[cfg(any(test, feature = "generator"))]
pub mod generator;
pub mod karg;
pub mod tree;

pub use erofs::{
    Dialect, ReadError, WriteError, WriteOptions, image_objects, read_image, write_image,
};
pub use format::Format;
pub use fsverity::{
    Algorithm, DigestError, UnknownAlgorithm, VerityDigest, VerityHasher, leaf_hashes,
    verity_digest,
};
pub use tree::{Content, InodeId, Kind, Metadata, Timestamp, Tree, TreeError};
