//! The files of an image in a directory or an archive, and the documents among them.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::image::{Descriptor, ImageIndex, MediaType};
use repository::oci::{
    Config, DOCUMENT_LIMIT, DocumentError, LayerDescriptor, Manifest, ManifestDigest,
};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::archive::Archive;
use super::section::Section;
use super::{Blob, Platform, SourceError, SourceImage, SourceOptions};

/// Indexes within indexes, at most.
const NESTING_MAX: usize = 4;

/// What Docker calls an index.
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// On images whose layers are compressed with zstd, among others of the same platform in an index.
const ZSTD_ANNOTATION: &str = "io.github.containers.compression.zstd";

/// Where the files are.
pub(super) enum Files {
    /// In a directory; nothing outside it is opened.
    Directory {
        /// The directory.
        dir: OwnedFd,
        /// Its path, for messages.
        path: PathBuf,
    },
    /// In a tar.
    Archive(Archive),
}

impl Files {
    pub(super) fn directory(path: &Path) -> Result<Self, SourceError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|error| SourceError::io(path)(error.into()))?;
        Ok(Self::Directory {
            dir,
            path: path.to_owned(),
        })
    }

    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Directory { path, .. } => path,
            Self::Archive(archive) => archive.path(),
        }
    }

    /// A file; `None` if there is none of that name.
    pub(super) fn find(&self, name: &str) -> Result<Option<Section>, SourceError> {
        let (dir, path) = match self {
            Self::Archive(archive) => return archive.find(name),
            Self::Directory { dir, path } => (dir, path),
        };
        // Whoever opens a fifo would wait for its other end.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let unreadable = SourceError::io(&path.join(name));
        let file = match rustix::fs::openat2(dir, name, flags, Mode::empty(), ResolveFlags::BENEATH)
        {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(unreadable(error.into())),
        };
        let metadata = file.metadata().map_err(&unreadable)?;
        if !metadata.is_file() {
            return Err(SourceError::NotAFile {
                path: path.clone(),
                name: name.into(),
            });
        }
        Ok(Some(Section::new(Arc::new(file), 0, metadata.len())))
    }

    pub(super) fn get(&self, name: &str) -> Result<Section, SourceError> {
        self.find(name)?.ok_or_else(|| SourceError::Missing {
            path: self.path().to_owned(),
            name: name.into(),
        })
    }

    /// A document as a whole.
    pub(super) fn document(&self, name: &str) -> Result<Vec<u8>, SourceError> {
        let section = self.get(name)?;
        let bytes = section
            .read_all(DOCUMENT_LIMIT)
            .map_err(SourceError::io(&self.path().join(name)))?;
        bytes.ok_or_else(|| self.unusable(name)(DocumentError::TooLarge))
    }

    pub(super) fn unusable<'f>(
        &'f self,
        name: &'f str,
    ) -> impl FnOnce(DocumentError) -> SourceError + 'f {
        move |source| SourceError::Document {
            path: self.path().to_owned(),
            name: name.into(),
            source,
        }
    }
}

/// How files are called by their digests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Naming {
    /// An OCI image layout: `blobs/sha256/<hex>`.
    Oci,
    /// `dir:`, the format of containers-image: `<hex>`, and `<hex>.manifest.json` for what an index names.
    Dir,
}

impl Naming {
    pub(super) fn blob(self, hex: &str) -> String {
        match self {
            Self::Oci => format!("blobs/sha256/{hex}"),
            Self::Dir => hex.into(),
        }
    }

    fn manifest(self, hex: &str) -> String {
        match self {
            Self::Oci => self.blob(hex),
            Self::Dir => format!("{hex}.manifest.json"),
        }
    }
}

/// An image's files by their digests.
pub(super) struct Content<'o> {
    pub(super) files: Files,
    pub(super) naming: Naming,
    pub(super) options: &'o SourceOptions,
}

impl Content<'_> {
    /// The document that a descriptor in an index names, with digest and size compared.
    pub(super) fn described(&self, descriptor: &Descriptor) -> Result<Vec<u8>, SourceError> {
        let digest = self.digest(descriptor)?;
        let name = self.naming.manifest(&digest.to_hex());
        let bytes = self.files.document(&name)?;
        let actual = ManifestDigest::of(&bytes);
        if actual != digest || bytes.len() as u64 != descriptor.size() {
            return Err(SourceError::Altered {
                path: self.files.path().to_owned(),
                name,
            });
        }
        Ok(bytes)
    }

    /// An index that [`Self::described`] has read.
    pub(super) fn index(&self, bytes: &[u8]) -> Result<ImageIndex, SourceError> {
        let document = format!("index {}", ManifestDigest::of(bytes));
        ImageIndex::from_reader(bytes).map_err(|error| self.files.unusable(&document)(error.into()))
    }

    fn digest(&self, descriptor: &Descriptor) -> Result<ManifestDigest, SourceError> {
        let text = descriptor.digest().as_ref();
        text.parse()
            .map_err(|error| self.files.unusable(text)(DocumentError::Digest(error)))
    }

    /// Finds the image that a document of some type is or leads to, by way of its indexes.
    pub(super) fn image(
        &self,
        name: &str,
        bytes: Vec<u8>,
        media_type: &MediaType,
    ) -> Result<SourceImage<'static>, SourceError> {
        let mut indexes = Vec::new();
        let (mut bytes, mut media_type) = (bytes, media_type.clone());
        while is_index(&media_type) {
            if indexes.len() == NESTING_MAX {
                let text = format!("more than {NESTING_MAX} indexes within each other");
                return Err(self.files.unusable(name)(DocumentError::Mismatch(text)));
            }
            let index = self.index(&bytes)?;
            let chosen = self.choose(name, index.manifests())?;
            indexes.push(bytes);
            bytes = self.described(chosen)?;
            media_type = chosen.media_type().clone();
        }
        let document = format!("manifest {}", ManifestDigest::of(&bytes));
        let manifest = Manifest::parse(bytes).map_err(self.files.unusable(&document))?;
        let config = self
            .files
            .document(&self.naming.blob(&manifest.config().to_hex()))?;
        let document = format!("config {}", manifest.config());
        let config = Config::parse(config).map_err(self.files.unusable(&document))?;
        check_platform(self.options, name, &config)?;
        let image = SourceImage::of_blobs(name.to_owned(), &manifest, &config, |layer| {
            self.layer(layer)
        })?;
        Ok(SourceImage { indexes, ..image })
    }

    fn layer(&self, layer: &LayerDescriptor) -> Result<Box<dyn Blob>, SourceError> {
        let name = self.naming.blob(&layer.digest.to_hex());
        Ok(Box::new(self.files.get(&name)?))
    }

    /// Chooses from an index by platform, as podman does: the nearest variant, of these one in zstd, of
    /// these the first. One without a platform is the last choice.
    pub(super) fn choose<'d>(
        &self,
        name: &str,
        descriptors: &'d [Descriptor],
    ) -> Result<&'d Descriptor, SourceError> {
        let host = Platform::host();
        let wanted = self.options.platform.as_ref().unwrap_or(&host);
        let preference = |descriptor: &Descriptor| {
            let rank = match descriptor.platform() {
                Some(platform) => wanted.rank(&offered(platform))?,
                None => usize::MAX,
            };
            let zstd = descriptor
                .annotations()
                .as_ref()
                .and_then(|annotations| annotations.get(ZSTD_ANNOTATION))
                .is_some_and(|value| value == "true");
            Some((rank, !zstd))
        };
        let fitting = descriptors
            .iter()
            .filter_map(|descriptor| Some((preference(descriptor)?, descriptor)));
        let best = fitting.min_by_key(|(preference, _)| *preference);
        best.map(|(_, descriptor)| descriptor)
            .ok_or_else(|| SourceError::NoPlatform {
                image: name.into(),
                wanted: wanted.clone(),
                available: descriptors
                    .iter()
                    .filter_map(|descriptor| descriptor.platform().as_ref().map(offered))
                    .collect(),
            })
    }
}

/// A platform that was asked for must be that of the image, whether an index led there or not.
pub(super) fn check_platform(
    options: &SourceOptions,
    name: &str,
    config: &Config,
) -> Result<(), SourceError> {
    let Some(wanted) = &options.platform else {
        return Ok(());
    };
    let spec = config.spec();
    let found = Platform {
        os: spec.os().to_string(),
        architecture: spec.architecture().to_string(),
        variant: spec.variant().clone().unwrap_or_default(),
    };
    if wanted.rank(&found).is_some() {
        return Ok(());
    }
    Err(SourceError::NoPlatform {
        image: name.into(),
        wanted: wanted.clone(),
        available: vec![found],
    })
}

/// Whether a document of this type is an index.
pub(super) fn is_index(media_type: &MediaType) -> bool {
    *media_type == MediaType::ImageIndex || media_type.as_ref() == DOCKER_LIST
}

/// The type of a document that nothing describes.
pub(super) fn guess_type(bytes: &[u8]) -> Result<MediaType, serde_json::Error> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Document {
        media_type: Option<String>,
        manifests: Option<serde::de::IgnoredAny>,
    }
    let document: Document = serde_json::from_slice(bytes)?;
    Ok(match (document.media_type, document.manifests) {
        (Some(media_type), _) => MediaType::from(media_type.as_str()),
        (None, Some(_)) => MediaType::ImageIndex,
        (None, None) => MediaType::ImageManifest,
    })
}

fn offered(platform: &oci_spec::image::Platform) -> Platform {
    Platform {
        os: platform.os().to_string(),
        architecture: platform.architecture().to_string(),
        variant: platform.variant().clone().unwrap_or_default(),
    }
}

impl SourceError {
    /// An I/O error with the path it is about.
    pub(super) fn io(path: &Path) -> impl Fn(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io {
            path: path.clone(),
            source,
        }
    }
}
