//! Reading images of all formats, written by anyone.
//!
//! An image is untrusted input here. Every access is checked, nothing recurses, and time and memory
//! are bounded by the size of the image: whatever is read is charged to that, so an image whose
//! parts overlap is refused instead of being read again and again.

mod image;
mod objects;
mod tree;
mod walk;

use thiserror::Error;

use super::Format;
use crate::tree::TreeError;
pub use objects::{ImageObjects, image_objects};
pub use tree::read_image;
pub use walk::{
    ImageWalk, NamedInode, StoredData, StoredInode, StoredName, StoredXattr, hard_linked,
    walk_image,
};

/// Why an image cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ReadError {
    /// The first bytes are not those of a composefs image.
    #[error("this is no composefs image: {0}")]
    NotComposefs(&'static str),
    /// A composefs image of a later version.
    #[error("composefs image version {0} is not known: 0, 1 and 2 are")]
    Version(u32),
    /// An EROFS feature that composefs does not use.
    #[error("the image uses something that composefs images do not have: {0}")]
    Unsupported(&'static str),
    /// Something lies outside of the image.
    #[error("the image ends before {what} at byte {offset}")]
    Truncated {
        /// What was to be read.
        what: &'static str,
        /// Where it was to be.
        offset: u64,
    },
    /// More data is referred to than the image holds.
    #[error("parts of the image overlap")]
    Overlap,
    /// An inode is wrong.
    #[error("inode {nid} of the image: {problem}")]
    Inode {
        /// Number of the inode: its offset divided by 32.
        nid: u64,
        /// What is wrong.
        problem: InodeError,
    },
}

/// What is wrong with an inode.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InodeError {
    /// No file type, or another one than the directory says.
    #[error("mode {0:o} is not what its directory entry says")]
    Mode(u16),
    /// A layout of data that does not go with the type.
    #[error("its data layout {0} does not fit its type")]
    Layout(u16),
    /// A size that does not go with the type.
    #[error("a size of {0} bytes does not fit its type")]
    Size(u64),
    /// The root is not a directory, or another inode is where one is needed.
    #[error("it is not a directory")]
    NotADirectory,
    /// A directory with two names.
    #[error("it is a directory with more than one name")]
    DirectoryTwice,
    /// Entries that are cut off, not sorted, or without `.` and `..`.
    #[error("its directory entries are damaged: {0}")]
    Entries(&'static str),
    /// Xattrs that are cut off or use an unknown prefix.
    #[error("its xattrs are damaged: {0}")]
    Xattrs(&'static str),
    /// A name that no tree can hold.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

#[cfg(test)]
mod tests;
