//! The errors of an import. Each names the image, layer, diff ID or file it is about; what lies behind
//! it is its `source`, not part of its text.
//!
//! Whatever the error, nothing that was in work got a name: the batch that held it is dropped, and its
//! staging directory with it.

use std::io;
use std::path::PathBuf;

use containers_storage::{EntryName, ImageId};
use repository::layers::MergeError;
use repository::oci::{BlobDigest, DiffId, DocumentError, OciError};
use thiserror::Error;

use crate::progress::LayerPlan;
use crate::source::SourceError;

/// Why an import stopped.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The source has no such image, or cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Reading or writing the repository failed.
    #[error(transparent)]
    Repository(#[from] repository::Error),
    /// A layer could not be imported.
    #[error("layer {layer}")]
    Layer {
        /// The layer.
        layer: Box<LayerPlan>,
        /// What went wrong.
        source: LayerError,
    },
    /// The image's file tree could not be made from its layers.
    #[error("image {image}: the layers make no file tree")]
    Tree {
        /// The image.
        image: ImageId,
        /// What went wrong.
        source: MergeError,
    },
    /// The manifest or config is not one of an image.
    #[error("{image}: the manifest or config cannot be used")]
    Document {
        /// The image, as its source calls it.
        image: String,
        /// What is wrong.
        source: DocumentError,
    },
    /// The image, or one of its tags, could not be recorded.
    #[error("image {image} cannot be recorded")]
    Record {
        /// The image.
        image: ImageId,
        /// What went wrong.
        source: OciError,
    },
    /// The filesystem of the repository has no room for what is missing. Nothing was read.
    #[error(
        "there is no room in {}: at least {}; a collection removes what no tag needs, and in a repository \
         on the filesystem of podman's storage files are cloned, which takes no space",
        repository.display(),
        shortage.sentence(*needed)
    )]
    NoRoom {
        /// The repository.
        repository: PathBuf,
        /// What is lacking.
        shortage: Shortage,
        /// How much of it the import needs at least.
        needed: u64,
    },
    /// An artifact could not be recorded.
    #[error("artifact {artifact} cannot be recorded")]
    Artifact {
        /// What it is called.
        artifact: String,
        /// What went wrong.
        source: OciError,
    },
    /// [`crate::Cancel`] was set.
    #[error("the import was stopped; nothing of the image is in the repository")]
    Cancelled,
}

/// What a filesystem has not enough of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortage {
    /// Space.
    Bytes {
        /// How much is free, in bytes.
        free: u64,
    },
    /// Files.
    Inodes {
        /// How many can still be made.
        free: u64,
    },
}

impl Shortage {
    fn sentence(self, needed: u64) -> String {
        match self {
            Self::Bytes { free } => format!(
                "{:.1} MiB are needed and {:.1} MiB are free",
                mebibytes(needed),
                mebibytes(free)
            ),
            Self::Inodes { free } => {
                format!("{needed} inodes are needed and {free} are free")
            }
        }
    }
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

impl ImportError {
    /// Whether nothing is wrong but that the source was not read to its end.
    pub(crate) fn is_of_source(&self) -> bool {
        match self {
            Self::Layer { source, .. } => {
                matches!(source, LayerError::Read(_) | LayerError::Source(_))
            }
            _ => false,
        }
    }
}

/// Why a layer could not be imported.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LayerError {
    /// The layer's record, lock, tar-split or files cannot be had from containers-storage. The text
    /// names the file, where there is one.
    #[error(transparent)]
    Storage(#[from] containers_storage::Error),
    /// The blob cannot be opened.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The blob cannot be read or uncompressed.
    #[error("the blob cannot be read")]
    Read(#[source] io::Error),
    /// The blob is not the one that the manifest names.
    #[error("the blob has the digest {actual}: it is damaged, or another one")]
    BlobDigest {
        /// The digest of what was read.
        actual: BlobDigest,
    },
    /// The blob does not have the size that the manifest gives.
    #[error("the blob has {} bytes instead of {expected}", or_more(*actual))]
    BlobSize {
        /// The size by the manifest, in bytes.
        expected: u64,
        /// The size of what was read, in bytes; `None` if it is larger than it should be.
        actual: Option<u64>,
    },
    /// The blob is compressed in a way that is not known here.
    #[error("the blob is compressed with {0}, which is not supported; gzip and zstd are")]
    Compression(&'static str),
    /// More comes out of the image's blobs than is allowed.
    #[error(
        "{}the layers have more than {limit} bytes when they are uncompressed; --max-size allows more",
        entry.as_ref().map(|name| format!("file {name}: ")).unwrap_or_default()
    )]
    TooLarge {
        /// The member at which they had; `None` before the first one.
        entry: Option<EntryName>,
        /// How many bytes are allowed for all layers together.
        limit: u64,
    },
    /// More members than a layer may have: each needs memory.
    #[error("file {entry}: the layer has more than {limit} members")]
    TooManyMembers {
        /// The first one that is too much.
        entry: EntryName,
        /// How many there may be.
        limit: u32,
    },
    /// What the tar-split or the blob holds is no tar that can be imported.
    #[error("it holds no valid tar")]
    Tar(#[from] repository::layers::TarError),
    /// The tar-split contradicts itself, or a member is of a kind that cannot be imported.
    #[error("file {name}: {problem}")]
    Member {
        /// The member, as tar-split or the tar's header names it.
        name: EntryName,
        /// What is wrong.
        problem: MemberProblem,
    },
    /// The content of a file of the layer is not what it should be, or cannot be read or stored.
    #[error("file {name}")]
    File {
        /// The file, as tar-split names it.
        name: EntryName,
        /// What went wrong.
        source: FileError,
    },
    /// The layer put together again is not the one that the config names.
    #[error("the layer's content has the diff ID {actual}: it was altered")]
    DiffId {
        /// The SHA-256 of the uncompressed tar.
        actual: DiffId,
    },
    /// Writing to the repository failed.
    #[error(transparent)]
    Repository(#[from] repository::Error),
    /// [`crate::Cancel`] was set, or another layer failed.
    #[error("the import was stopped")]
    Stopped,
    /// A worker thread panicked: a bug of ours.
    #[error("a worker thread of the import panicked")]
    WorkerLost,
}

/// What can be wrong with a member of the layer's tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MemberProblem {
    /// The tar-split has a file with content where the tar has no place for one.
    #[error("the tar-split has {size} bytes of content where its tar headers announce none")]
    NotDue {
        /// The size that tar-split has, in bytes.
        size: u64,
    },
    /// Tar-split and tar header have different sizes.
    #[error("it has {size} bytes by the tar-split, but {header} by its tar header")]
    Size {
        /// The size that tar-split has, in bytes.
        size: u64,
        /// The size that the header has, in bytes.
        header: u64,
    },
    /// A link, device, directory or fifo whose header has a size. Some readers of tar take that many
    /// bytes for its content, others for the next header.
    #[error("its tar header has a size, but its type has no content")]
    SizeWithoutContent,
    /// A member of unknown type with more content than can be kept inline.
    #[error("it is of an unknown type and has {size} bytes of content")]
    UnknownType {
        /// Its size in bytes.
        size: u64,
    },
}

/// What can be wrong with a file of the layer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FileError {
    /// It cannot be opened: missing, a metacopy stub, or not a file beneath the layer's directory.
    #[error(transparent)]
    Open(containers_storage::Error),
    /// It cannot be read.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    /// It does not have the size that tar-split has.
    #[error("it has {actual} bytes instead of {expected}: it was changed")]
    Size {
        /// The size by tar-split, in bytes.
        expected: u64,
        /// The size on disk, in bytes.
        actual: u64,
    },
    /// Its CRC-64 is not the one that tar-split has.
    #[error("its content is not what the tar-split recorded: it was changed")]
    Content,
    /// It changed while it was imported.
    #[error("it was changed while it was imported")]
    ChangedMeanwhile,
    /// It could not be stored.
    #[error(transparent)]
    Repository(#[from] repository::Error),
}

fn or_more(size: Option<u64>) -> String {
    size.map_or_else(|| "more".into(), |size| size.to_string())
}
