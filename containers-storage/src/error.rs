//! What can be wrong with a store, an image or a layer.

use std::io;
use std::path::PathBuf;

use crate::digest::{Digest, DigestError};
use crate::ids::{ImageId, LayerId};
use crate::layer::LayerKind;
use crate::lock::LockError;
use crate::tar_split::{EntryName, TarSplitError};

/// Reading a store failed. Every variant names the store, image, layer or file it is about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot be used.
    #[error(transparent)]
    Conf(#[from] crate::conf::ConfError),
    /// A lock could not be taken.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The [`Interrupt`](crate::Interrupt) was set while a lock was waited for.
    #[error("interrupted while waiting for the lock {}", lock.display())]
    Interrupted {
        /// The lock file.
        lock: PathBuf,
    },
    /// A file or directory of the store could not be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file or directory of our own store could not be written.
    #[error("cannot {action} {}", path.display())]
    Write {
        /// What was tried, to be read after "cannot".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Records of our own store were not written, because podman would refuse the store with them.
    #[error("{} was not changed: {problem}", path.display())]
    InvalidRecords {
        /// The file of records.
        path: PathBuf,
        /// What would be wrong.
        problem: String,
    },
    /// There is no store at the configured root.
    #[error("there is no containers storage at {}", root.display())]
    NoStore {
        /// The root.
        root: PathBuf,
    },
    /// The store uses a driver that is not supported.
    #[error("the storage driver of {} is {driver:?}; only overlay and vfs are supported", root.display())]
    UnsupportedDriver {
        /// The store's root.
        root: PathBuf,
        /// The driver's name.
        driver: String,
    },
    /// A file of records is not what it should be.
    #[error("{} is damaged", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        source: serde_json::Error,
    },
    /// A file is larger than anything the engine would write.
    #[error("{} has more than {limit} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// The store has records but no lock file, and it could be written to.
    #[error("{} has no lock file {}", root.display(), lock.display())]
    NoLockFile {
        /// The store's root.
        root: PathBuf,
        /// The lock file.
        lock: PathBuf,
    },

    /// No image has this name, ID or digest.
    #[error("no image {name:?} in {}{}", root.display(), similar_hint(similar))]
    ImageNotFound {
        /// What was asked for.
        name: String,
        /// Root of the main store.
        root: PathBuf,
        /// Full names that end like the one that was asked for.
        similar: Vec<String>,
    },
    /// Several images fit.
    #[error("{name:?} fits several images: {}", join(candidates))]
    AmbiguousImage {
        /// What was asked for.
        name: String,
        /// The images that fit.
        candidates: Vec<ImageId>,
    },
    /// The image was removed, or anything else was written to its store's records of images, since it was
    /// looked up, and now it cannot be read.
    #[error("image {image} was removed or changed by another process; look the image up again")]
    ImageChanged {
        /// The image.
        image: ImageId,
        /// What came of it.
        source: Box<Error>,
    },
    /// An image has no manifest or config, or one of a kind that is not supported.
    #[error("image {image}: {what}")]
    UnsupportedImage {
        /// The image.
        image: ImageId,
        /// What is missing or not supported.
        what: &'static str,
    },
    /// A manifest or config is not the JSON it should be.
    #[error("image {image}: the {what} is damaged")]
    ImageJson {
        /// The image.
        image: ImageId,
        /// "manifest" or "config".
        what: &'static str,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A manifest or config names something that is not a digest.
    #[error("image {image}: the {what} has an invalid digest")]
    ImageDigest {
        /// The image.
        image: ImageId,
        /// "manifest" or "config".
        what: &'static str,
        /// The text.
        source: DigestError,
    },
    /// The bytes of a manifest or config do not have the digest they should have.
    #[error("image {image}: the {what} has the digest {found}, not {expected}")]
    DigestMismatch {
        /// The image.
        image: ImageId,
        /// "manifest" or "config".
        what: &'static str,
        /// The digest it should have.
        expected: Digest,
        /// The digest it has.
        found: Digest,
    },
    /// The chain of layers is not as long as the config's list of diff IDs.
    #[error("image {image} has {found} layers in the store, but its config names {expected}")]
    LayerCount {
        /// The image.
        image: ImageId,
        /// Number of diff IDs in the config.
        expected: usize,
        /// Number of layers in the store.
        found: usize,
    },

    /// A layer that an image or another layer refers to has no record.
    #[error("layer {layer} has no record in the store")]
    LayerNotFound {
        /// The layer.
        layer: LayerId,
    },
    /// The chain of parents does not end.
    #[error("the parents of layer {layer} form a circle")]
    LayerCycle {
        /// The top layer.
        layer: LayerId,
    },
    /// The layer is being created or deleted, or was when the engine stopped.
    #[error("layer {layer} is incomplete")]
    LayerIncomplete {
        /// The layer.
        layer: LayerId,
    },
    /// The layer's record was changed or removed since the image was looked up.
    #[error("layer {layer} was removed or changed by another process; look the image up again")]
    LayerChanged {
        /// The layer.
        layer: LayerId,
    },
    /// There is a record, but no directory with the layer's files.
    #[error("layer {layer} has no directory in the store")]
    LayerDirectoryMissing {
        /// The layer.
        layer: LayerId,
    },
    /// The layer's files are kept in a way that cannot be read here.
    #[error("layer {layer} is {kind}, which cannot be read")]
    UnsupportedLayer {
        /// The layer.
        layer: LayerId,
        /// How its files are kept.
        kind: LayerKind,
    },
    /// The layer was stored without its tar-split, so its tar cannot be reproduced.
    #[error(
        "layer {layer} has no tar-split, so its tar cannot be reproduced: remove the image from this \
         storage and pull it again, or import it with --allow-synthetic, which makes another tar and \
         thereby another image of it"
    )]
    NoTarSplit {
        /// The layer.
        layer: LayerId,
    },
    /// The layer is a flat object directory, and what would name its files is missing.
    #[error("layer {layer} has no table of contents that names its files")]
    NoTableOfContents {
        /// The layer.
        layer: LayerId,
    },
    /// The composefs image of a layer is damaged.
    #[error("layer {layer}: {}", path.display())]
    LayerImage {
        /// The layer.
        layer: LayerId,
        /// The image.
        path: PathBuf,
        /// What is wrong.
        source: composefs_image::ReadError,
    },
    /// The tar that is made for a layer could not be written to a temporary file.
    #[error("layer {layer}: cannot write a tar-split to a temporary file")]
    Synthetic {
        /// The layer.
        layer: LayerId,
        /// Why.
        source: io::Error,
    },
    /// The layer's tar-split is damaged.
    #[error("layer {layer}: {}", path.display())]
    TarSplit {
        /// The layer.
        layer: LayerId,
        /// The tar-split file.
        path: PathBuf,
        /// What is wrong.
        source: TarSplitError,
    },
    /// A file that the tar-split names is not in the layer's directory.
    #[error("layer {layer}: the file {name} is missing")]
    FileMissing {
        /// The layer.
        layer: LayerId,
        /// The file.
        name: EntryName,
    },
    /// A file of the layer could not be opened.
    #[error("layer {layer}: cannot open the file {name}")]
    FileUnreadable {
        /// The layer.
        layer: LayerId,
        /// The file.
        name: EntryName,
        /// Why.
        source: io::Error,
    },
    /// A name does not lead to a regular file beneath the layer's directory without symlinks.
    #[error("layer {layer}: {name} {problem}")]
    UnsafeFile {
        /// The layer.
        layer: LayerId,
        /// The file.
        name: EntryName,
        /// "leaves the layer's directory", "leads through a symlink", "is not a regular file".
        problem: &'static str,
    },
}

fn similar_hint(similar: &[String]) -> String {
    if similar.is_empty() {
        String::new()
    } else {
        format!("; did you mean {}?", similar.join(" or "))
    }
}

fn join(ids: &[ImageId]) -> String {
    ids.iter()
        .map(ImageId::as_str)
        .collect::<Vec<_>>()
        .join(", ")
}
