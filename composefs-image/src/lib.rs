//! The composefs format: file trees, fs-verity digests, EROFS images, dumpfiles.
//!
//! Everything here is a value or a stream: no paths of the host, no global state. A [`Tree`] comes
//! from [`read_image`], [`dumpfile::read_dump`] or the caller, and goes to [`write_image`] or
//! [`dumpfile::write_dump`].
//!
//! ```
//! use composefs_image::{
//!     Algorithm, Content, Dialect, Format, Kind, Metadata, Tree, VerityHasher, WriteOptions,
//!     read_image, write_image,
//! };
//!
//! let mut tree = Tree::new(Metadata { mode: 0o755, ..Metadata::default() });
//! let hello = tree.add(
//!     Metadata { mode: 0o644, ..Metadata::default() },
//!     Kind::Regular(Content::Inline(b"hello\n")),
//! );
//! tree.link(tree.root(), b"hello", hello)?;
//!
//! let options = WriteOptions { format: Format::V1, dialect: Dialect::ComposefsRs };
//! let mut image = Vec::new();
//! write_image(&tree, &options, &mut image)?;
//! assert_eq!(read_image(&image)?, tree);
//!
//! // The identity of an image needs no image.
//! let mut digest = VerityHasher::new(Algorithm::Sha512);
//! write_image(&tree, &options, &mut digest)?;
//! println!("{}", digest.finish());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
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
    verity_digest, verity_digest_of_root, verity_digests,
};
pub use tree::{Content, InodeId, Kind, Metadata, Timestamp, Tree, TreeError};
