//! Dumpfiles: a tree as text, one name per line, as `mkcomposefs --from-file` reads it and
//! `composefs-info dump` prints it.
//!
//! Eleven fields and the xattrs, separated by single spaces:
//! `PATH SIZE MODE NLINK UID GID RDEV MTIME PAYLOAD CONTENT DIGEST [KEY=VALUE...]`. What is no
//! printable ASCII is escaped as `\xHH`; `-` stands for an absent field.
//!
//! Writing is canonical: depth first, names sorted, correct link counts; both the C tools and
//! composefs-rs read it. Reading follows a [`Dialect`], because the two accept different input:
//!
//! | input | `C` | `ComposefsRs` |
//! |---|---|---|
//! | bytes that are not UTF-8, unescaped | taken | refused |
//! | empty line | refused | skipped |
//! | fewer than 11 fields | the optional ones count as `-` | refused |
//! | path or hard link target without leading `/`, or with `//` | taken | refused |
//! | hard link before its target | taken | refused |
//! | link count other than the number of names | kept | ignored |
//! | content of another length than the size says | refused | taken, the content wins |
//! | content and payload | content wins | payload wins |
//! | content and digest | digest ignored | refused |
//! | payload that is not the digest's path | kept | ignored |
//! | payload without digest that is no object path | kept | refused |
//! | digest without payload | kept: verified, but no object named | refused |
//! | size 0 with payload | empty file | refused |
//! | device number of something else | ignored | refused |
//! | time before 1970 | taken | refused (but for seconds above 2^63) |
//! | nanoseconds above 999,999,999 | taken | refused |
//! | xattr key twice | last value | largest value |
//! | empty xattr key | refused | taken (no image can hold it) |
//! | inline content | up to 5000 bytes | up to 512 bytes |
//! | symlink target | up to 4095 bytes | up to 1024 bytes |
//! | whiteout with a link count above 1 | taken | refused |
//!
//! Both refuse: a digest that has not 64 or 128 hexadecimal digits, a name twice, a missing parent,
//! names of more than 255 bytes, numbers that do not fit, and lines of more than [`LINE_MAX`] bytes.
//! Of these the C tools and composefs-rs let some pass and then write broken images.

mod escape;
mod read;
mod write;

use std::io;

use thiserror::Error;

use crate::erofs::Dialect;
use crate::fsverity::DigestError;
use crate::tree::TreeError;
pub use escape::{Style, escape};
pub use read::read_dump;
pub use write::write_dump;

/// Longest line that is read, in bytes.
pub const LINE_MAX: u64 = 4 << 20;

/// Why a dumpfile cannot be read.
#[derive(Debug, Error)]
pub enum DumpError {
    /// The input failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A line is wrong.
    #[error("line {line} of the dumpfile: {problem}")]
    Line {
        /// Its number, from 1.
        line: u64,
        /// What is wrong.
        problem: LineError,
    },
    /// There is no line at all.
    #[error("the dumpfile is empty: it must begin with the root directory")]
    Empty,
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LineError {
    /// More than [`LINE_MAX`] bytes.
    #[error("it is longer than {LINE_MAX} bytes")]
    TooLong,
    /// A NUL byte.
    #[error("it has a NUL byte")]
    Nul,
    /// Not UTF-8, which composefs-rs demands.
    #[error("it is not UTF-8")]
    NotUtf8,
    /// A field is missing.
    #[error("{0} is missing")]
    Missing(Field),
    /// A number is none, or does not fit.
    #[error("{field} is \"{}\", which is no number that fits", .text.escape_ascii())]
    Number {
        /// Which field.
        field: Field,
        /// What it says.
        text: Box<[u8]>,
    },
    /// A backslash with something behind it that is no escape.
    #[error("{0} has an escape other than \\\\, \\n, \\r, \\t and \\xHH")]
    Escape(Field),
    /// The mode names no file type.
    #[error("mode {0:o} has no file type")]
    FileType(u16),
    /// The path is not absolute, or has empty, `.` or `..` components.
    #[error("\"{}\" is not a canonical absolute path", .0.escape_ascii())]
    Path(Box<[u8]>),
    /// The first line is not the root directory, or another one is.
    #[error("the first line, and no other, must be the root directory")]
    Root,
    /// The directory for a name was not given before.
    #[error("there is no directory for \"{}\"", .0.escape_ascii())]
    NoParent(Box<[u8]>),
    /// A name was given before.
    #[error("\"{}\" was given before", .0.escape_ascii())]
    Duplicate(Box<[u8]>),
    /// A hard link to nothing, to a directory, or to itself.
    #[error("\"{}\" cannot be the target of a hard link", .0.escape_ascii())]
    HardLink(Box<[u8]>),
    /// A symlink without a target, or with one that is too long.
    #[error("a symlink target has 1 to {0} bytes")]
    Symlink(usize),
    /// Content that is not as long as the size says.
    #[error("the size is {size}, but the content has {content} bytes")]
    ContentSize {
        /// What the size field says.
        size: u64,
        /// How much content there is.
        content: u64,
    },
    /// Content that is too long to be inline.
    #[error("the content has {size} bytes, at most {limit} are possible")]
    ContentLimit {
        /// How much content there is.
        size: u64,
        /// How much is possible.
        limit: u64,
    },
    /// A field that must be `-` or 0 for this type of file.
    #[error("{0} is given, but has no meaning for this file")]
    Unexpected(Field),
    /// No digest.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// An xattr without `=`, without a name, or with one that is too long.
    #[error("an xattr is not NAME=VALUE with a name of 1 to 255 bytes")]
    Xattr,
    /// More xattrs than an inode can have.
    #[error("the xattrs are too many or too long")]
    Xattrs,
    /// Something that no tree can hold.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// A field of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as in the format")]
pub enum Field {
    Path,
    Size,
    Mode,
    Nlink,
    Uid,
    Gid,
    Rdev,
    Mtime,
    Payload,
    Content,
    Digest,
    Xattr,
}

impl std::fmt::Display for Field {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Path => "PATH",
            Self::Size => "SIZE",
            Self::Mode => "MODE",
            Self::Nlink => "NLINK",
            Self::Uid => "UID",
            Self::Gid => "GID",
            Self::Rdev => "RDEV",
            Self::Mtime => "MTIME",
            Self::Payload => "PAYLOAD",
            Self::Content => "CONTENT",
            Self::Digest => "DIGEST",
            Self::Xattr => "XATTR",
        })
    }
}

/// Largest inline content and longest symlink target that a dialect reads.
const fn limits(dialect: Dialect) -> (u64, usize) {
    match dialect {
        Dialect::C => (5000, 4095),
        Dialect::ComposefsRs => (512, 1024),
    }
}

#[cfg(test)]
mod tests;
