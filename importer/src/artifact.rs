//! OCI artifacts into a repository: what is no image, and what refers to one (signatures).

use std::io::Read as _;

use repository::oci::{self, Artifact, ManifestDigest};
use repository::{Batch, Repository, Tag};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::cancel::Cancel;
use crate::error::{ImportError, LayerError};
use crate::progress::LayerPlan;
use crate::source::SourceArtifact;
use composefs_image::VerityDigest;
use repository::oci::{BlobDigest, DiffId, LayerDescriptor};

/// How much of a blob is read in one go, in bytes.
const CHUNK: usize = 64 << 10;

/// What keeps an artifact in the repository.
#[derive(Debug, Clone)]
pub enum Keep {
    /// These tags.
    Tagged(Vec<Tag>),
    /// The image that it refers to.
    Referring(ManifestDigest),
}

/// An artifact that was imported, or was there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ArtifactReport {
    /// What it was called.
    pub source: String,
    /// Its manifest's digest.
    pub manifest: ManifestDigest,
    /// The image that it says it refers to.
    pub subject: Option<ManifestDigest>,
    /// The tags it has been given.
    pub tags: Vec<String>,
    /// Its blobs.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// Brings an artifact into the repository, with the digests of config and blobs verified. When it
/// returns, everything is durable; when it fails, there is nothing of it.
pub fn import_artifact(
    repository: &Repository,
    artifact: &SourceArtifact<'_>,
    keep: &Keep,
    cancel: &Cancel,
) -> Result<ArtifactReport, ImportError> {
    let imported = import(repository, artifact, keep, cancel);
    cancel.explain(imported, || ImportError::Cancelled)
}

fn import(
    repository: &Repository,
    artifact: &SourceArtifact<'_>,
    keep: &Keep,
    cancel: &Cancel,
) -> Result<ArtifactReport, ImportError> {
    let unusable = |source| ImportError::Document {
        image: artifact.name.clone(),
        source,
    };
    let manifest = Artifact::parse(artifact.manifest.clone()).map_err(unusable)?;
    let record = |source| ImportError::Artifact {
        artifact: artifact.name.clone(),
        source,
    };
    let batch = repository.batch()?;
    let mut streams = Vec::new();
    for (descriptor, blob) in manifest.layers().iter().zip(&artifact.blobs) {
        let name = oci::artifact_stream(descriptor);
        let known = batch.stream(&name)?;
        let stream = match known {
            Some(known) if batch.has(&known)? => known,
            _ => {
                let in_blob = |source| ImportError::Layer {
                    layer: Box::new(plan(descriptor)),
                    source,
                };
                let content = store(&batch, descriptor, blob.as_ref(), cancel).map_err(in_blob)?;
                oci::store_blob(&batch, &name, &content, descriptor.size).map_err(record)?
            }
        };
        streams.push(stream);
    }
    oci::store_artifact(&batch, &manifest, &artifact.config, &streams).map_err(record)?;
    let digest = manifest.digest();
    let mut tags = Vec::new();
    match keep {
        Keep::Tagged(wanted) => {
            for tag in wanted {
                oci::tag(&batch, tag, &digest).map_err(record)?;
                tags.push(tag.to_string());
            }
        }
        Keep::Referring(subject) => {
            oci::add_referrer(&batch, subject, &digest).map_err(record)?;
        }
    }
    batch.commit()?;
    Ok(ArtifactReport {
        source: artifact.name.clone(),
        manifest: digest,
        subject: manifest.subject(),
        tags,
        blobs: streams.len(),
        bytes: manifest.layers().iter().map(|layer| layer.size).sum(),
    })
}

/// How a blob is called in errors.
fn plan(descriptor: &LayerDescriptor) -> LayerPlan {
    LayerPlan {
        id: None,
        blob: Some(descriptor.digest),
        diff_id: DiffId::from_bytes(*descriptor.digest.as_bytes()),
        size: Some(descriptor.size),
    }
}

/// Stores a blob as an object, if it is the one that the manifest names.
fn store(
    batch: &Batch<'_>,
    descriptor: &LayerDescriptor,
    blob: &dyn crate::source::Blob,
    cancel: &Cancel,
) -> Result<VerityDigest, LayerError> {
    let mut object = batch.object_writer()?;
    let mut sha256 = Sha256::new();
    let mut size = 0u64;
    let wrong_size = |actual| LayerError::BlobSize {
        expected: descriptor.size,
        actual,
    };
    let mut reader = blob.open()?;
    let mut chunk = vec![0; CHUNK];
    loop {
        if cancel.is_cancelled() {
            return Err(LayerError::Stopped);
        }
        let count = match reader.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(LayerError::Read(error)),
        };
        size += count as u64;
        if size > descriptor.size {
            return Err(wrong_size(None));
        }
        sha256.update(&chunk[..count]);
        std::io::Write::write_all(&mut object, &chunk[..count]).map_err(|source| {
            repository::Error::Io {
                action: "write an object in",
                path: repository::PRIVATE_DIRECTORY.into(),
                source,
            }
        })?;
    }
    if size != descriptor.size {
        return Err(wrong_size(Some(size)));
    }
    let actual = BlobDigest::from_bytes(sha256.finalize().into());
    if actual != descriptor.digest {
        return Err(LayerError::BlobDigest { actual });
    }
    let (content, _, _) = object.finish()?;
    Ok(content)
}
