//! OCI artifacts that are not images, and which of them refer to an image: its signatures, for example.
//!
//! As composefs-rs stores them: manifest and config are documents like those of an image, each layer is
//! one blob, a stream of one object under `oci-layer-<blob digest>`, and a ref
//! `oci-referrers/<subject>/<artifact>` keeps what refers to an image. As in composefs-rs, such a ref is to go
//! when its subject has gone ([`is_orphaned_referrer`], `cleanup_dangling_referrers` there).
//! Two things differ. A blob of a tar's media type is kept as it came, and as `oci-blob-<digest>`, so
//! that no image takes it for the layer of the same name; composefs-rs takes it apart, and fails where
//! it is none. And a config that several artifacts share (the empty one) does not stand in their way.

use composefs_image::VerityDigest;
use oci_spec::image::{ImageManifest, MediaType};

use super::{
    BlobDigest, ConfigDigest, DiffId, DigestError, DocumentError, LayerDescriptor, ManifestDigest,
    NamesStream, OciError, document::check_size, error::Result, stream,
};
use crate::splitstream::{ContentType, Writer};
use crate::{Batch, Category, RefPath, Repository, StreamName};

/// The manifest of an artifact. That of an image is one, too.
#[derive(Clone, Debug)]
pub struct Artifact {
    bytes: Vec<u8>,
    digest: ManifestDigest,
    config: LayerDescriptor,
    layers: Vec<LayerDescriptor>,
    subject: Option<ManifestDigest>,
}

impl Artifact {
    /// Parses a manifest and keeps its bytes.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, DocumentError> {
        check_size(&bytes)?;
        let spec = ImageManifest::from_reader(&bytes[..])?;
        match spec.media_type() {
            None | Some(MediaType::ImageManifest) => {}
            Some(other) => return Err(DocumentError::ManifestType(other.to_string())),
        }
        let describe = |descriptor: &oci_spec::image::Descriptor| {
            Ok::<_, DigestError>(LayerDescriptor {
                digest: descriptor.digest().as_ref().parse()?,
                size: descriptor.size(),
                media_type: descriptor.media_type().to_string(),
            })
        };
        let subject = spec.subject().as_ref();
        Ok(Self {
            digest: ManifestDigest::of(&bytes),
            config: describe(spec.config())?,
            layers: spec
                .layers()
                .iter()
                .map(describe)
                .collect::<Result<_, _>>()?,
            subject: subject
                .map(|subject| subject.digest().as_ref().parse())
                .transpose()?,
            bytes,
        })
    }

    /// The manifest as it came.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Digest of the bytes.
    pub fn digest(&self) -> ManifestDigest {
        self.digest
    }

    /// The config it names.
    pub fn config(&self) -> &LayerDescriptor {
        &self.config
    }

    /// The blobs it names.
    pub fn layers(&self) -> &[LayerDescriptor] {
        &self.layers
    }

    /// The manifest that it says it refers to.
    pub fn subject(&self) -> Option<ManifestDigest> {
        self.subject
    }
}

/// The name of the stream of an artifact's blob.
pub fn artifact_stream(layer: &LayerDescriptor) -> StreamName {
    match MediaType::from(layer.media_type.as_str()) {
        MediaType::ImageLayer
        | MediaType::ImageLayerGzip
        | MediaType::ImageLayerZstd
        | MediaType::ImageLayerNonDistributable
        | MediaType::ImageLayerNonDistributableGzip
        | MediaType::ImageLayerNonDistributableZstd => layer.digest.stream_name(),
        _ => DiffId::from_bytes(*layer.digest.as_bytes()).stream_name(),
    }
}

/// Enters the stream of a blob, whose content is the object `content`, into the batch and names it.
pub fn store_blob(
    batch: &Batch<'_>,
    name: &StreamName,
    content: &VerityDigest,
    size: u64,
) -> Result<VerityDigest> {
    let mut writer = Writer::new(batch, ContentType::OCI_BLOB)?;
    writer.external(content, size)?;
    let (stream, _) = writer.finish()?;
    batch.link_stream(name, &stream);
    Ok(stream)
}

/// Enters an artifact into the batch, whose blobs' streams are in it or in the repository, in the order
/// of the manifest. It stays in the repository only with a tag, or with [`add_referrer`].
pub fn store_artifact(
    batch: &Batch<'_>,
    artifact: &Artifact,
    config: &[u8],
    layers: &[VerityDigest],
) -> Result<()> {
    let unusable = |text: &str| OciError::Manifest {
        digest: artifact.digest,
        source: DocumentError::Mismatch(text.to_owned()),
    };
    if BlobDigest::of(config) != artifact.config.digest {
        return Err(unusable("the config is not the one that it names"));
    }
    if layers.len() != artifact.layers.len() {
        return Err(unusable("its blobs are not all there"));
    }
    let named: Vec<_> = artifact
        .layers
        .iter()
        .map(|layer| layer.digest.to_string())
        .zip(layers)
        .collect();
    let config_digest = ConfigDigest::from_bytes(*artifact.config.digest.as_bytes());
    let config_name = config_digest.stream_name();
    let known = match batch.stream(&config_name)? {
        Some(known) if batch.has(&known)? => Some(known),
        _ => None,
    };
    let config_stream = if let Some(known) = known {
        known
    } else {
        let (document, _) = batch.store_bytes(config)?;
        let refs = named.iter().map(|(name, layer)| (name.clone(), *layer));
        let stream = stream::write(batch, ContentType::OCI_CONFIG, &document, refs)?;
        batch.link_stream(&config_name, &stream);
        stream
    };
    let (document, _) = batch.store_bytes(&artifact.bytes)?;
    let config_ref = (stream::config_key(&config_digest), &config_stream);
    let refs = std::iter::once(config_ref).chain(named);
    let manifest = stream::write(batch, ContentType::OCI_MANIFEST, &document, refs)?;
    batch.link_stream(&artifact.digest.stream_name(), &manifest);
    Ok(())
}

/// Keeps an artifact, which is in the batch or in the repository, as one that refers to an image.
pub fn add_referrer(
    batch: &Batch<'_>,
    subject: &ManifestDigest,
    artifact: &ManifestDigest,
) -> Result<()> {
    let name = artifact.stream_name();
    if batch.stream(&name)?.is_none() {
        return Err(OciError::NoStream(name));
    }
    batch.set_ref(
        Category::Streams,
        &RefPath::of_referrer(subject, artifact),
        name.as_str(),
    );
    Ok(())
}

/// Whether a ref below `streams/refs/` keeps an artifact that refers to an image or index which is not in
/// the repository: what [`add_referrer`] kept has lost its purpose then. A ref of any other kind, or one
/// that cannot be understood, does not.
pub fn is_orphaned_referrer(repository: &Repository, path: &RefPath) -> crate::Result<bool> {
    let Some(subject) = path
        .referrers_subject()
        .and_then(|subject| subject.parse::<ManifestDigest>().ok())
    else {
        return Ok(false);
    };
    // An index is kept as a blob.
    let index = BlobDigest::from_bytes(*subject.as_bytes());
    Ok(repository.stream(&subject.stream_name())?.is_none()
        && repository.stream(&index.stream_name())?.is_none())
}

/// The artifacts that refer to an image, sorted.
pub fn referrers(repository: &Repository, subject: &ManifestDigest) -> Result<Vec<ManifestDigest>> {
    let refs = repository.refs(Category::Streams)?.entries.into_iter();
    Ok(refs
        .filter_map(|entry| {
            let target = ManifestDigest::from_stream_name(&StreamName::new(entry.target).ok()?)?;
            (entry.path == RefPath::of_referrer(subject, target)).then_some(target)
        })
        .collect())
}
