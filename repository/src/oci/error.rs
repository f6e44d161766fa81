//! What can be wrong with an image in a repository, or with the search for one.

use super::{BlobDigest, ConfigDigest, DiffId, DocumentError, ManifestDigest};
use crate::{StreamName, VerityDigest};

/// A result with this module's [`OciError`].
pub type Result<T, E = OciError> = std::result::Result<T, E>;

/// What can go wrong with an image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OciError {
    /// The repository is at fault.
    #[error(transparent)]
    Repository(Box<crate::Error>),
    /// A manifest cannot be used.
    #[error("manifest {digest}: {source}")]
    Manifest {
        /// The manifest.
        digest: ManifestDigest,
        /// What is wrong with it.
        source: DocumentError,
    },
    /// A config cannot be used.
    #[error("config {digest}: {source}")]
    Config {
        /// The config.
        digest: ConfigDigest,
        /// What is wrong with it.
        source: DocumentError,
    },
    /// The content of a manifest or config stream has another digest than its name says.
    #[error("{stream} holds a document with another digest")]
    WrongDocument {
        /// The stream's name.
        stream: StreamName,
    },
    /// A manifest or config stream that does not consist of one object.
    #[error("{stream} is not a stream of one object")]
    NotOneObject {
        /// The stream's name.
        stream: StreamName,
    },
    /// A stream is missing.
    #[error("{0} is missing from the repository")]
    NoStream(StreamName),
    /// No stream is recorded for a layer of the image.
    #[error("the layer {diff_id} of {image} is not in the repository")]
    NoLayer {
        /// The image's config.
        image: ConfigDigest,
        /// The layer.
        diff_id: DiffId,
    },
    /// The layers handed over are not those of the config.
    #[error("layer {position} of {image} should be {}, not {given}", or_none(*expected))]
    OtherLayer {
        /// The image's config.
        image: ConfigDigest,
        /// Its number, from 0.
        position: usize,
        /// What the config says; `None` where it has no more layers.
        expected: Option<DiffId>,
        /// What was given.
        given: DiffId,
    },
    /// An index that an image was said to be chosen from does not name it.
    #[error("the index {index} does not lead to {image}")]
    NotInIndex {
        /// The index.
        index: BlobDigest,
        /// The image's manifest.
        image: String,
    },
    /// A stream or image that is to be referred to is in neither batch nor repository.
    #[error("object {0} cannot be referred to: it is not stored")]
    NotStored(VerityDigest),
    /// No image has this name, digest or ID.
    #[error("no image {0:?} in the repository")]
    NotFound(String),
    /// Several images have a name or ID like this.
    #[error("{name:?} can mean several images: {}", candidates.join(", "))]
    Ambiguous {
        /// What was searched.
        name: String,
        /// Tags or IDs that fit.
        candidates: Vec<String>,
    },
}

impl From<crate::Error> for OciError {
    fn from(error: crate::Error) -> Self {
        Self::Repository(Box::new(error))
    }
}

fn or_none(diff_id: Option<DiffId>) -> String {
    diff_id.map_or_else(|| "none".into(), |diff_id| diff_id.to_string())
}
