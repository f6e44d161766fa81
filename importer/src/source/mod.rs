//! Where images come from: what every source hands over, whatever it is.
//!
//! A source is a function that finds one image and returns a [`SourceImage`]: manifest and config, byte
//! for byte, and where the content of each layer is. It checks nothing of that and decides nothing;
//! [`crate::import_image`] does, in the same way for all of them: digests of documents, blobs and
//! layers, what is there already, what is read, and what gets a name.
//!
//! # Adding a source
//!
//! Write a module here with a function that returns a `SourceImage`. A layer is either
//! [`LayerContent::Stored`], which is podman's storage alone, or [`LayerContent::Blob`]: bytes that can
//! be read once from the beginning ([`Blob::open`]), a tar as it is or compressed. Compression is
//! recognised by the content, as podman does it, not by the media type. Fill in the blob's descriptor
//! wherever the manifest describes the very bytes that `open` yields; they are then verified against it.
//! `open` is called from the thread that reads the layer, at most once an import, and not at all for a
//! layer that the repository has. What goes wrong before a byte is read is a [`SourceError`]; what goes
//! wrong later is an [`io::Error`](std::io::Error) of the reader.

mod storage;

use std::fmt;
use std::io::Read;

use containers_storage::{ImageId, Layer};
use repository::oci::{DiffId, LayerDescriptor};
use thiserror::Error;

use crate::progress::LayerPlan;
pub use storage::from_storage;

/// An image as a source has it, with nothing verified yet.
#[derive(Debug)]
pub struct SourceImage<'s> {
    /// What it is called, with its transport: `containers-storage:localhost/app:1`, `oci:DIR:1`.
    pub name: String,
    /// The ID under which the source keeps it, where that may be another than the config's digest.
    pub id: Option<ImageId>,
    /// The manifest's bytes.
    pub manifest: Vec<u8>,
    /// The config's bytes.
    pub config: Vec<u8>,
    /// The layers, bottom first: one for each diff ID of the config.
    pub layers: Vec<SourceLayer<'s>>,
}

/// A layer of an image.
#[derive(Debug)]
pub struct SourceLayer<'s> {
    /// The digest that the uncompressed tar must have, by the config.
    pub diff_id: DiffId,
    /// The size of the uncompressed tar in bytes, where the source knows it.
    pub size: Option<u64>,
    /// Where the tar is.
    pub content: LayerContent<'s>,
}

/// Where the tar of a layer is.
#[derive(Debug)]
pub enum LayerContent<'s> {
    /// In containers-storage, as a tar-split and the files of a directory, which can be cloned.
    Stored(Box<Layer>),
    /// In a blob, which is read from its beginning to its end.
    Blob {
        /// Digest, size and media type of the blob; `None` where the manifest describes another blob
        /// than this one, so that there is only the diff ID to go by.
        descriptor: Option<LayerDescriptor>,
        /// The blob.
        blob: Box<dyn Blob + 's>,
    },
}

/// The content of a layer as one piece: a tar, as it is or compressed with gzip or zstd.
pub trait Blob: Send + Sync {
    /// Begins to read the blob at its start.
    fn open(&self) -> Result<Box<dyn Read + '_>, SourceError>;
}

impl fmt::Debug for dyn Blob + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Blob")
    }
}

/// Why a source has no such image, or cannot be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SourceError {
    /// podman's storage.
    #[error(transparent)]
    Storage(#[from] containers_storage::Error),
}

impl SourceLayer<'_> {
    /// How the layer is called in events and errors.
    pub(crate) fn plan(&self) -> LayerPlan {
        let (id, blob) = match &self.content {
            LayerContent::Stored(layer) => (Some(layer.id().clone()), None),
            LayerContent::Blob { descriptor, .. } => {
                (None, descriptor.as_ref().map(|it| it.digest))
            }
        };
        LayerPlan {
            id,
            blob,
            diff_id: self.diff_id,
            size: self.size,
        }
    }

    /// The size of the uncompressed tar in bytes, guessed where it is not known.
    pub(crate) fn estimate(&self) -> Option<u64> {
        /// How much a layer shrinks, more often than not.
        const RATIO: u64 = 3;
        let compressed = match &self.content {
            LayerContent::Stored(_) => None,
            LayerContent::Blob { descriptor, .. } => descriptor.as_ref().map(|it| it.size),
        };
        self.size
            .or_else(|| compressed.map(|size| size.saturating_mul(RATIO)))
    }
}
