//! What can be wrong with a layer, and with the image that layers make.

use composefs_image::{TreeError, VerityDigest};

use super::splitter::TarSplitter;

/// A tar that cannot be read, with the member and the place concerned.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}byte {offset} of the layer tar: {kind}", member(path.as_deref()))]
pub struct TarError {
    /// Path of the member, where it is known already.
    pub path: Option<Vec<u8>>,
    /// Offset in the tar of the header concerned, or of the end of a truncated tar.
    pub offset: u64,
    /// What is wrong.
    pub kind: TarErrorKind,
}

impl TarError {
    pub(super) fn truncated(path: Option<Vec<u8>>, splitter: &TarSplitter) -> Self {
        Self {
            path,
            offset: splitter.offset(),
            kind: TarErrorKind::Truncated,
        }
    }
}

/// What is wrong with a tar.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TarErrorKind {
    /// The header is damaged, or is not a header.
    #[error("header checksum is {stored:#o}, should be {actual:#o}")]
    Checksum {
        /// As the header has it.
        stored: u64,
        /// Of the header's bytes.
        actual: u64,
    },
    /// A numeric header field holds something else.
    #[error("header field {field} is not a usable number")]
    Number {
        /// The field's name.
        field: &'static str,
    },
    /// A record of an extended header is cut short or has no key.
    #[error("malformed PAX record")]
    PaxRecord,
    /// The value of a PAX record is not what its key calls for.
    #[error("PAX record {key} does not hold a usable number")]
    PaxValue {
        /// The record's key.
        key: &'static str,
    },
    /// Two long names, two long link targets or two PAX headers for one member.
    #[error("more than one extension header of a kind for one member")]
    DuplicateExtension,
    /// A GNU and a PAX extension header that do not agree.
    #[error("two extension headers give it different values of its {what}")]
    Contradiction {
        /// "path" or "link target".
        what: &'static str,
    },
    /// Too much metadata for one member.
    #[error("more than 1 MiB of metadata for one member")]
    MetadataLimit,
    /// The archive ends after an extension header, before its member.
    #[error("extension header without a member")]
    DanglingExtension,
    /// A member without a name.
    #[error("member without a path")]
    EmptyPath,
    /// A sparse file in one of the GNU forms, which image stores do not agree on.
    #[error("GNU sparse files are not supported")]
    Sparse,
    /// The tar ends inside a member.
    #[error("tar ends inside a member")]
    Truncated,
    /// An object in a splitstream where no payload of a regular file is due.
    #[error("object in the place of a header or of padding")]
    MisplacedObject,
}

fn member(path: Option<&[u8]>) -> String {
    path.map(|path| format!("{}: ", path.escape_ascii()))
        .unwrap_or_default()
}

/// An entry that a tree cannot have, or that podman or composefs-rs refuse.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {problem}", path.escape_ascii())]
pub struct EntryError {
    /// The entry's path, as recorded.
    pub path: Vec<u8>,
    /// What is wrong with it.
    pub problem: EntryProblem,
}

/// What is wrong with an entry.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryProblem {
    /// A type flag of no known type.
    #[error("unknown type flag {:?}", char::from(*.0))]
    UnknownType(u8),
    /// A device in a v7 header.
    #[error("device without device number")]
    NoDeviceNumber,
    /// A device number that does not fit into 32 bits.
    #[error("device number {major}:{minor} is out of range")]
    LargeDeviceNumber {
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
    },
    /// A regular file of that many bytes inline in the splitstream.
    #[error("{0} bytes are stored inline, more than the format allows")]
    LargeInline(u64),
    /// A regular file of that many bytes as an object.
    #[error("{0} bytes are stored as an object, less than the format allows")]
    SmallExternal(u64),
    /// The entry for the root is something else.
    #[error("the root must be a directory")]
    RootNotADirectory,
    /// A path that podman cannot extract.
    #[error("path of {0} bytes; Linux takes at most 4095")]
    LongPath(usize),
    /// A `..` component.
    #[error("path contains \"..\"")]
    DotDot,
    /// Nothing is at the path of the directory that it belongs in.
    #[error("its directory does not exist")]
    NoParent,
    /// Something else is at the path of the directory that it belongs in, or on the way to it.
    #[error("its directory is not a directory")]
    ParentNotADirectory,
    /// Following symlinks to its directory does not end.
    #[error("too many symlinks on the way to its directory")]
    SymlinkLoop,
    /// A hard link to nothing.
    #[error("target {} of the hard link does not exist", .0.escape_ascii())]
    NoHardLinkTarget(Vec<u8>),
    /// A hard link to a directory.
    #[error("target {} of the hard link is a directory", .0.escape_ascii())]
    HardLinkToDirectory(Vec<u8>),
    /// A symlink without target.
    #[error("symlink without target")]
    EmptySymlink,
    /// A symlink that Linux cannot make.
    #[error("symlink target of {0} bytes; Linux has at most 4095")]
    LongSymlink(usize),
    /// A whiteout for a name that the same layer has put there, or for no name.
    #[error("whiteout of something in the same layer")]
    WhiteoutOfOwn,
    /// Two entries of one path, of which podman refuses to store the second.
    #[error("the layer has had an entry of this path before")]
    Duplicate,
    /// An xattr that Linux does not set.
    #[error("Linux has no xattr of the name {}", .0.escape_ascii())]
    XattrName(Vec<u8>),
    /// A directory that overlayfs would take for another one, or not, by its mount options.
    #[error("xattr trusted.overlay.redirect would have another directory shown in its place")]
    Redirect,
    /// The tree cannot hold it.
    #[error(transparent)]
    Tree(TreeError),
}

/// A layer that no tree can be made of.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// The tar is damaged.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// An entry cannot be applied.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// The splitstream cannot be read.
    #[error(transparent)]
    Read(Box<crate::Error>),
}

impl From<crate::Error> for LayerError {
    fn from(error: crate::Error) -> Self {
        Self::Read(Box::new(error))
    }
}

/// Layers that make no image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// One layer is at fault.
    #[error("layer stream {layer}: {source}")]
    Layer {
        /// The layer's splitstream.
        layer: VerityDigest,
        /// What is wrong with it.
        source: Box<LayerError>,
    },
    /// `/usr`, which gives the root its metadata, is missing or no directory.
    #[error("no image can be made of a tree without a directory /usr")]
    NoUsr,
    /// `/run` is not a directory.
    #[error("no image can be made of a tree whose /run is not a directory")]
    RunNotADirectory,
}

impl MergeError {
    /// Whether the layers are sound, but make no tree by the rules of composefs-rs.
    pub fn is_unfit(&self) -> bool {
        match self {
            Self::NoUsr | Self::RunNotADirectory => true,
            Self::Layer { source, .. } => matches!(**source, LayerError::Entry(_)),
        }
    }
}
