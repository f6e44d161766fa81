//! composefs images: EROFS filesystems with metadata, small files and symlinks only.
//!
//! Larger files are chunk-based files without data whose overlayfs xattrs name an object:
//! `trusted.overlay.redirect` its path, `trusted.overlay.metacopy` its fs-verity digest. An image
//! is identified by the fs-verity digest of its bytes, so the writer is a pure function of tree and
//! options: no time, host or thread count enters.
//!
//! V0 and V1 are the format of the C tools, V2 is the first format of composefs-rs.

mod format;
mod reader;
mod writer;

pub use crate::format::Format;
pub use reader::{
    ImageObjects, ImageWalk, InodeError, NamedInode, ReadError, StoredData, StoredInode,
    StoredName, StoredXattr, hard_linked, image_objects, read_image, walk_image,
};
pub use writer::{Dialect, Misfit, WriteError, WriteOptions, write_image};
