//! Indexes (Docker's manifest lists) that images were chosen from.
//!
//! An index is kept as the stream `oci-blob-<digest>` and named by the manifest stream of each image
//! that was chosen from it, as `index:<digest>`. So it lives as long as one of them, and an image is
//! found by the digest of its index. composefs-rs knows nothing of it: it keeps the reference, or drops
//! it where it writes a manifest stream anew.

use composefs_image::VerityDigest;
use oci_spec::image::ImageIndex;

use super::{
    BlobDigest, DOCUMENT_LIMIT, DocumentError, ManifestDigest, NamesStream, OciError,
    error::Result,
    stream::{self, DocumentStream},
};
use crate::Batch;
use crate::splitstream::{ContentType, NamedRefs};

/// What a manifest stream calls an index, before the digest.
const INDEX_KEY: &str = "index:";

/// An index, byte for byte.
#[derive(Clone, Debug)]
pub struct Index {
    bytes: Vec<u8>,
    digest: BlobDigest,
    names: Vec<String>,
}

impl Index {
    /// Parses an index and keeps its bytes.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, DocumentError> {
        if bytes.len() as u64 > DOCUMENT_LIMIT {
            return Err(DocumentError::TooLarge);
        }
        let index = ImageIndex::from_reader(&bytes[..])?;
        let names = index
            .manifests()
            .iter()
            .map(|entry| entry.digest().to_string())
            .collect();
        Ok(Self {
            digest: BlobDigest::of(&bytes),
            names,
            bytes,
        })
    }

    /// Digest of the bytes.
    pub fn digest(&self) -> BlobDigest {
        self.digest
    }

    /// The index as it came.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether it names a manifest or another index.
    fn names(&self, digest: &str) -> bool {
        self.names.iter().any(|name| name == digest)
    }
}

/// Records that an image, which is in the repository or in the batch, was chosen from `indexes`. Each
/// must name the image or another one of them. What is recorded already stays.
pub fn add_indexes(batch: &Batch<'_>, image: ManifestDigest, indexes: &[Index]) -> Result<()> {
    // The manifest's stream is read, changed and written.
    batch.enter_images()?;
    let name = image.stream_name();
    let missing = || OciError::NoStream(name.clone());
    let manifest = batch.stream(&name)?.ok_or_else(missing)?;
    let DocumentStream { document, refs } =
        stream::open(batch, &name, &manifest, ContentType::OCI_MANIFEST)?;
    let new: Vec<_> = store(batch, image, indexes)?
        .into_iter()
        .filter(|(key, _)| !refs.contains_key(key))
        .collect();
    if new.is_empty() {
        return Ok(());
    }
    let old = refs.iter().map(|(key, stream)| (key.clone(), stream));
    let refs = old.chain(new.iter().map(|(key, stream)| (key.clone(), stream)));
    let manifest = stream::write(batch, ContentType::OCI_MANIFEST, &document, refs)?;
    batch.link_stream(&name, &manifest);
    Ok(())
}

/// Enters indexes into the batch, and gives the references to them.
pub(super) fn store(
    batch: &Batch<'_>,
    image: ManifestDigest,
    indexes: &[Index],
) -> Result<Vec<(String, VerityDigest)>> {
    let image = image.to_string();
    for index in indexes {
        let leads_on = |other: &Index| index.names(&other.digest.to_string());
        if !index.names(&image) && !indexes.iter().any(leads_on) {
            return Err(OciError::NotInIndex {
                index: index.digest,
                image,
            });
        }
    }
    let mut refs = Vec::new();
    for index in indexes {
        let name = index.digest.stream_name();
        let known = batch.stream(&name)?;
        let stream = match known {
            Some(known) if batch.has(&known)? => known,
            _ => {
                let (document, _) = batch.store_bytes(&index.bytes)?;
                let stream = stream::write(batch, ContentType::OCI_BLOB, &document, [])?;
                batch.link_stream(&name, &stream);
                stream
            }
        };
        refs.push((format!("{INDEX_KEY}{}", index.digest), stream));
    }
    Ok(refs)
}

/// The references of a manifest stream to indexes.
pub(super) fn refs(
    refs: &NamedRefs,
) -> impl Iterator<Item = (BlobDigest, (&String, &VerityDigest))> {
    refs.iter().filter_map(|(key, stream)| {
        let digest = key.strip_prefix(INDEX_KEY)?.parse().ok()?;
        Some((digest, (key, stream)))
    })
}
