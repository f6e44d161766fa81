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

mod archive;
mod artifact;
mod directory;
mod docker_archive;
mod files;
mod layout;
mod names;
mod platform;
mod reference;
mod section;
mod skopeo;
mod storage;
mod synthetic;

use std::fmt;
use std::io::{self, Read};
use std::path::PathBuf;

use containers_storage::{ImageId, Layer};
use repository::layers::TarError;
use repository::oci::{Config, DiffId, DocumentError, LayerDescriptor, Manifest, check_pair};
use thiserror::Error;

use crate::cancel::Cancel;
use crate::progress::LayerPlan;
use crate::registry::{Problem, RegistryOptions, and_remedy};
pub use artifact::SourceArtifact;
pub use directory::from_directory;
pub use docker_archive::{ArchiveImage, from_docker_archive};
pub use layout::{LayoutImage, from_oci_archive, from_oci_layout};
pub use platform::{InvalidPlatform, Platform};
pub use reference::{InvalidReference, Reference};
pub use skopeo::{artifact_from_skopeo, from_skopeo, referrers_from_skopeo};
pub use storage::{from_storage, synthetic_from_storage};
pub(crate) use synthetic::made_from;

/// What is asked of a source beside the image's name. Made as
/// `SourceOptions { platform, ..SourceOptions::default() }`: options are added.
#[derive(Debug, Clone, Default)]
pub struct SourceOptions {
    /// The platform to choose where there are images for several; `None`: this host's. One that is
    /// given must be that of the image found.
    pub platform: Option<Platform>,
    /// Most bytes that uncompressing an archive, or a layer of one, may make.
    pub max_size: Option<u64>,
    /// How to talk to a registry.
    pub registry: RegistryOptions,
    /// Stops what takes long when set.
    pub cancel: Cancel,
    /// What to do with layers of podman's storage that have lost their tar.
    pub synthetic: SyntheticLayers,
}

/// What to do with layers of podman's storage of which the exact tar is lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SyntheticLayers {
    /// The image cannot be imported.
    #[default]
    Refuse,
    /// A tar is made for them, and thereby another image: `docs/synthetic-layers.md`.
    Allow,
}

/// An image as a source has it, with nothing verified yet.
#[derive(Debug)]
pub struct SourceImage<'s> {
    /// What it is called, with its transport: `containers-storage:localhost/app:1`, `oci:DIR:1`.
    pub name: String,
    /// The ID under which the source keeps it, where that may be another than the config's digest.
    pub id: Option<ImageId>,
    /// The full names that it has there.
    pub names: Vec<String>,
    /// The indexes by which the manifest was chosen; each names it, or another one of them.
    pub indexes: Vec<Vec<u8>>,
    /// The manifest's bytes.
    pub manifest: Vec<u8>,
    /// The config's bytes.
    pub config: Vec<u8>,
    /// The layers, bottom first: one for each diff ID of the config.
    pub layers: Vec<SourceLayer<'s>>,
}

impl<'s> SourceImage<'s> {
    /// An image whose layers are the blobs that its manifest describes; `blob` finds each of them.
    pub fn of_blobs(
        name: String,
        manifest: &Manifest,
        config: &Config,
        mut blob: impl FnMut(&LayerDescriptor) -> Result<Box<dyn Blob + 's>, SourceError>,
    ) -> Result<Self, SourceError> {
        check_pair(manifest, config).map_err(|source| SourceError::Image {
            image: name.clone(),
            source,
        })?;
        let layers = config.diff_ids().iter().zip(manifest.layers());
        let layers = layers.map(|(diff_id, descriptor)| {
            // A blob with the layer's own digest is not compressed.
            let is_tar = descriptor.digest.as_bytes() == diff_id.as_bytes();
            Ok(SourceLayer {
                diff_id: *diff_id,
                size: is_tar.then_some(descriptor.size),
                content: LayerContent::Blob {
                    blob: blob(descriptor)?,
                    descriptor: Some(descriptor.clone()),
                },
            })
        });
        Ok(Self {
            layers: layers.collect::<Result<_, SourceError>>()?,
            name,
            id: None,
            names: Vec::new(),
            indexes: Vec::new(),
            manifest: manifest.bytes().to_vec(),
            config: config.bytes().to_vec(),
        })
    }
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

    /// Where its bytes come from.
    fn origin(&self) -> Origin {
        Origin::Local
    }
}

/// How dear it is to read a blob again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// From this machine.
    Local,
    /// From somewhere else: what is complete is kept at once.
    Network,
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
    /// Manifest or config are not such that other layers can be put into them.
    #[error("{image}: synthetic layers do not fit into its documents: {problem}")]
    Synthetic {
        /// The image.
        image: String,
        /// What is wrong.
        problem: String,
    },
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// An archive is no tar.
    #[error("{} is no tar archive of images", path.display())]
    Tar {
        /// The archive.
        path: PathBuf,
        /// What is wrong with it.
        source: TarError,
    },
    /// More members than an archive of images has.
    #[error("{} has more than {limit} members", path.display())]
    TooManyMembers {
        /// The archive.
        path: PathBuf,
        /// How many there may be.
        limit: usize,
    },
    /// It is larger than allowed when it is uncompressed.
    #[error("{} has more than {limit} bytes when it is uncompressed; --max-size allows more", path.display())]
    TooLarge {
        /// The archive, or the layer in it.
        path: PathBuf,
        /// How many bytes are allowed.
        limit: u64,
    },
    /// It is compressed in a way that is not known here.
    #[error("{} is compressed with {compression}, which is not supported; gzip and zstd are", path.display())]
    Compression {
        /// The archive, or the layer in it.
        path: PathBuf,
        /// What it is compressed with.
        compression: &'static str,
    },
    /// A file of the image is missing.
    #[error("{} has no {name}", path.display())]
    Missing {
        /// The directory or archive.
        path: PathBuf,
        /// The file in it.
        name: String,
    },
    /// Something else is in the place of a file.
    #[error("{name} in {} is not a regular file", path.display())]
    NotAFile {
        /// The directory or archive.
        path: PathBuf,
        /// What is no file in it.
        name: String,
    },
    /// A document does not have the digest and size that its index gives.
    #[error("{name} in {} was altered: its digest or size is not the one that the index gives", path.display())]
    Altered {
        /// The directory or archive.
        path: PathBuf,
        /// The document in it.
        name: String,
    },
    /// A document that is not what it should be.
    #[error("{name} in {} cannot be used", path.display())]
    Document {
        /// The directory or archive.
        path: PathBuf,
        /// The document in it.
        name: String,
        /// What is wrong with it.
        source: DocumentError,
    },
    /// A manifest and a config that do not belong together.
    #[error("{image}: the manifest or config cannot be used")]
    Image {
        /// The image, with its transport.
        image: String,
        /// What is wrong.
        source: DocumentError,
    },
    /// A file is not the JSON it should be.
    #[error("{} cannot be parsed", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A version of a format that is not known here.
    #[error("{} is of the version {version:?}, which is not known", path.display())]
    Version {
        /// The directory.
        path: PathBuf,
        /// What it says of its version.
        version: String,
    },
    /// An archive of Docker before 1.10.
    #[error(
        "{} has no manifest.json: it is of a Docker before 1.10; load it there and save it again",
        path.display()
    )]
    OldDockerArchive {
        /// The archive.
        path: PathBuf,
    },
    /// There is no such image.
    #[error("{image}: there is no such image; there are: {}", list(available))]
    NotFound {
        /// What was asked for.
        image: String,
        /// How those that are there can be asked for.
        available: Vec<String>,
    },
    /// There is more than one image.
    #[error(
        "{image}: there are several images, append one of: {}",
        list(available)
    )]
    SeveralImages {
        /// What was asked for.
        image: String,
        /// How each of them can be asked for.
        available: Vec<String>,
    },
    /// skopeo, or the registry that it talks to, said no.
    #[error("{message}{}", and_remedy(*problem, image))]
    Skopeo {
        /// The image, with its transport.
        image: String,
        /// What was said.
        message: String,
        /// What that means.
        problem: Problem,
    },
    /// There is no skopeo.
    #[error("skopeo is not installed; `composefs-store pull` needs podman only")]
    NoSkopeo,
    /// This skopeo would take an image that the signature policy rejects.
    #[error(
        "this skopeo does not apply the signature policy (its protocol is {protocol}; 0.2.6, of \
         skopeo 1.14, does), and the policy does not accept everything; `composefs-store pull` applies it"
    )]
    NoPolicyApplied {
        /// The image, with its transport.
        image: String,
        /// The version of the proxy's protocol.
        protocol: String,
    },
    /// There are no artifacts at such a place.
    #[error("{image}: OCI artifacts are in registries and OCI layouts only")]
    NoArtifacts {
        /// What was asked for.
        image: String,
    },
    /// Threads cannot be started.
    #[error("cannot start a thread for skopeo")]
    Runtime(#[source] io::Error),
    /// [`Cancel`] was set.
    #[error("cancelled")]
    Cancelled,
    /// There is no image for the platform.
    #[error(
        "{image}: there is no image for {wanted}; there are: {}",
        list(available)
    )]
    NoPlatform {
        /// What was asked for.
        image: String,
        /// The platform.
        wanted: Platform,
        /// Those that there are images for.
        available: Vec<Platform>,
    },
}

impl SourceError {
    /// Whether what was found is no image but another OCI artifact.
    pub fn is_artifact(&self) -> bool {
        matches!(
            self,
            Self::Image {
                source: DocumentError::ConfigType(_),
                ..
            } | Self::Document {
                source: DocumentError::ConfigType(_),
                ..
            }
        )
    }
}

/// Enough of the values for a message.
fn list<T: fmt::Display>(values: &[T]) -> String {
    const SOME: usize = 12;
    let mut texts: Vec<_> = values.iter().take(SOME).map(ToString::to_string).collect();
    match values.len() {
        0 => texts.push("none".into()),
        count if count > SOME => texts.push(format!("and {} more", count - SOME)),
        _ => {}
    }
    texts.join(", ")
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
