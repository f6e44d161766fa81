//! What keeps a tree from being booted.

/// Why a tree cannot be made one to boot from, and where.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.escape_ascii())]
pub struct BootError {
    /// The file or directory concerned, from the root of the tree.
    pub path: Vec<u8>,
    /// What is wrong with it.
    #[source]
    pub problem: BootProblem,
}

/// What is wrong with something that booting needs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootProblem {
    /// It must exist.
    #[error("an image to boot must have it, and this one does not")]
    Missing,
    /// Something else is at the path of a directory, or on the way to it.
    #[error("it is not a directory, or reached through something that is none")]
    NotADirectory,
    /// A directory, symlink or device where a regular file belongs.
    #[error("it is not a regular file")]
    NotAFile,
    /// A path with `..`.
    #[error("the path contains \"..\"")]
    DotDot,
    /// Text or a name is not UTF-8.
    #[error("it is not UTF-8")]
    NotUtf8,
    /// A file is larger than any of its kind.
    #[error("it has more than {limit} bytes")]
    TooLarge {
        /// Most bytes that are read.
        limit: u64,
    },
    /// A loader entry names a file that is not there.
    #[error("it names {} {:?}, which is not a file in the image", key, value)]
    LoaderEntry {
        /// `linux`, `initrd` or `efi`.
        key: &'static str,
        /// The file's path in the entry.
        value: String,
    },
    /// A vbmeta image without its payload.
    #[error("it belongs to an aboot payload, which is not there")]
    LoneVbmeta,
    /// An aboot payload beside another one, or beside something else to boot from.
    #[error("an aboot payload must be all that the image has to boot from")]
    NotOnlyAboot,
    /// A line of an SELinux policy file.
    #[error("line {line}: {problem}")]
    Line {
        /// The line's number, from 1.
        line: usize,
        /// What is wrong with it.
        problem: ContextProblem,
    },
    /// A regular expression of the SELinux policy cannot be used.
    #[error("the regular expression {pattern:?} cannot be used: {reason}")]
    Pattern {
        /// The expression.
        pattern: String,
        /// What the expression engine says.
        reason: String,
    },
    /// The SELinux policy would need more memory or time than any real one.
    #[error("the policy is too complex: {0}")]
    Complex(String),
    /// An object cannot be read.
    #[error(transparent)]
    Read(Box<crate::Error>),
}

impl BootError {
    /// Whether the image is sound, but none to boot from.
    pub fn is_unfit(&self) -> bool {
        !matches!(self.problem, BootProblem::Read(_))
    }
}

impl BootProblem {
    pub(in crate::layers) fn at(self, path: &[u8]) -> BootError {
        BootError {
            path: path.to_vec(),
            problem: self,
        }
    }
}

/// What is wrong with a line of an SELinux policy file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContextProblem {
    /// A regular expression alone.
    #[error("it has no context")]
    NoContext,
    /// A file type other than `-b`, `-c`, `-d`, `-p`, `-l`, `-s` and `--`.
    #[error("{0:?} is not a file type")]
    FileType(String),
    /// An alias alone.
    #[error("the alias has no target")]
    NoTarget,
    /// More than belongs there.
    #[error("{0:?} is one word too many")]
    Excess(String),
    /// Longer than any line that makes sense.
    #[error("it is too long")]
    Long,
}
