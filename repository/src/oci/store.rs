//! Entering images into a batch.

use composefs_image::VerityDigest;
use oci_spec::image::MediaType;

use super::{
    Config, ConfigDigest, DiffId, ErofsKey, ErofsRefs, Index, Manifest, ManifestDigest,
    NamesStream, OciError, document,
    error::Result,
    index,
    stream::{self, DocumentStream},
};
use crate::splitstream::{ContentType, NamedRefs};
use crate::{Batch, Category, RefPath, StreamName, Tag};

/// An image whose layers and EROFS images are stored already, in the repository or the same batch.
#[derive(Clone, Copy, Debug)]
pub struct NewImage<'a> {
    /// The manifest.
    pub manifest: &'a Manifest,
    /// The config that the manifest names.
    pub config: &'a Config,
    /// Every layer of the config, in its order, with its splitstream.
    pub layers: &'a [(DiffId, VerityDigest)],
    /// The EROFS images made of it. Others that the repository has for this config stay.
    pub erofs: &'a ErofsRefs,
    /// The indexes that it was chosen from, directly or by way of another one. Others that the repository has for this
    /// manifest stay.
    pub indexes: &'a [Index],
}

/// Where an image's documents are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredImage {
    /// The manifest's splitstream.
    pub manifest_stream: VerityDigest,
    /// The config's splitstream.
    pub config_stream: VerityDigest,
}

/// Enters an image into the batch: both documents, their streams and the streams' names. It is in
/// the repository when the batch is committed, and stays there only with a [`tag`].
///
/// Where the repository knows the config already, for example from an image with the same layers in
/// another compression, its stream is replaced, and so are the streams of all manifests in the
/// repository that name it: a manifest with an outdated config would lose its layers in a collection
/// by composefs-rs. So that no two batches do this to the same config at once, whoever comes second waits
/// until the other is committed or dropped. composefs-rs takes no part in this.
pub fn store_image(batch: &Batch<'_>, image: &NewImage<'_>) -> Result<StoredImage> {
    batch.enter_images()?;
    check(batch, image)?;
    let config = image.config;
    let config_name = config.digest().stream_name();
    let old_stream = batch.stream(&config_name)?;

    let mut erofs = match old_stream {
        Some(old) => erofs_of(batch, config.digest(), &old),
        None => ErofsRefs::new(),
    };
    erofs.extend(image.erofs.iter().map(|(key, image)| (key.clone(), *image)));

    let (document, _) = batch.store_bytes(config.bytes())?;
    let layers = image.layers.iter();
    let refs = layers
        .map(|(diff_id, stream)| (diff_id.to_string(), stream))
        .chain(erofs.iter().map(|(key, image)| (key.to_string(), image)));
    let config_stream = stream::write(batch, ContentType::OCI_CONFIG, &document, refs)?;
    batch.link_stream(&config_name, &config_stream);

    if old_stream.is_some() {
        replace_config(batch, image, &config_stream)?;
    }
    let manifest_digest = image.manifest.digest();
    let manifest_name = manifest_digest.stream_name();
    let mut indexes = index::store(batch, manifest_digest, image.indexes)?;
    if let Some(old) = batch.stream(&manifest_name)? {
        indexes.extend(indexes_of(batch, &manifest_name, &old));
    }
    let (document, _) = batch.store_bytes(image.manifest.bytes())?;
    let config_ref = (stream::config_key(&config.digest()), &config_stream);
    let layers = image.layers.iter();
    let refs = std::iter::once(config_ref)
        .chain(layers.map(|(diff_id, stream)| (diff_id.to_string(), stream)))
        .chain(by_blob(image))
        .chain(indexes.iter().map(|(key, stream)| (key.clone(), stream)));
    let manifest_stream = stream::write(batch, ContentType::OCI_MANIFEST, &document, refs)?;
    batch.link_stream(&manifest_name, &manifest_stream);
    Ok(StoredImage {
        manifest_stream,
        config_stream,
    })
}

/// The layers by the digests of their blobs, if the config is of Docker's type: composefs-rs takes such an
/// image for an artifact, and looks for its layers so.
fn by_blob<'a>(image: &NewImage<'a>) -> impl Iterator<Item = (String, &'a VerityDigest)> {
    let is_oci = *image.manifest.spec().config().media_type() == MediaType::ImageConfig;
    let blobs = if is_oci { &[] } else { image.manifest.layers() };
    blobs
        .iter()
        .zip(image.layers)
        .map(|(blob, (_, stream))| (blob.digest.to_string(), stream))
}

/// Gives an image a tag, which it takes from any other image. The image must be in the repository or
/// in the batch.
pub fn tag(batch: &Batch<'_>, tag: &Tag, image: &ManifestDigest) -> Result<()> {
    let name = image.stream_name();
    if batch.stream(&name)?.is_none() {
        return Err(OciError::NoStream(name));
    }
    batch.set_ref(Category::Streams, &RefPath::of_tag(tag), name.as_str());
    Ok(())
}

fn check(batch: &Batch<'_>, image: &NewImage<'_>) -> Result<()> {
    let config = image.config;
    document::check_pair(image.manifest, config).map_err(|source| OciError::Manifest {
        digest: image.manifest.digest(),
        source,
    })?;
    if let Some(&diff_id) = config.diff_ids().get(image.layers.len()) {
        return Err(OciError::NoLayer {
            image: config.digest(),
            diff_id,
        });
    }
    let mut expected = config.diff_ids().iter();
    for (position, (given, _)) in image.layers.iter().enumerate() {
        match expected.next() {
            Some(expected) if expected == given => {}
            expected => {
                return Err(OciError::OtherLayer {
                    image: config.digest(),
                    position,
                    expected: expected.copied(),
                    given: *given,
                });
            }
        }
    }
    let layers = image.layers.iter().map(|(_, stream)| stream);
    for object in layers.chain(image.erofs.values()) {
        if !batch.has(object)? {
            return Err(OciError::NotStored(*object));
        }
    }
    Ok(())
}

/// The EROFS images that a config stream has. One that cannot be read has none to keep.
fn erofs_of(batch: &Batch<'_>, config: ConfigDigest, stream: &VerityDigest) -> ErofsRefs {
    let name = config.stream_name();
    match stream::open(batch, &name, stream, ContentType::OCI_CONFIG) {
        Ok(DocumentStream { refs, .. }) => erofs_refs(&refs),
        Err(error) => {
            tracing::warn!(%error, "{name} is damaged; it is written anew");
            ErofsRefs::new()
        }
    }
}

/// The references to indexes that a manifest stream has. One that cannot be read has none to keep.
fn indexes_of(
    batch: &Batch<'_>,
    name: &StreamName,
    stream: &VerityDigest,
) -> Vec<(String, VerityDigest)> {
    match stream::open(batch, name, stream, ContentType::OCI_MANIFEST) {
        Ok(DocumentStream { refs, .. }) => index::refs(&refs)
            .map(|(_, (key, stream))| (key.clone(), *stream))
            .collect(),
        Err(error) => {
            tracing::warn!(%error, "{name} is damaged; it is written anew");
            Vec::new()
        }
    }
}

/// The references of a config stream to EROFS images.
pub(super) fn erofs_refs(refs: &NamedRefs) -> ErofsRefs {
    refs.iter()
        .filter_map(|(name, image)| Some((name.parse::<ErofsKey>().ok()?, *image)))
        .collect()
}

/// Writes the streams of all other manifests that name the config anew, with its new stream.
fn replace_config(
    batch: &Batch<'_>,
    image: &NewImage<'_>,
    config_stream: &VerityDigest,
) -> Result<()> {
    let key = stream::config_key(&image.config.digest());
    for link in batch.repository().streams()?.entries {
        let Some(digest) = ManifestDigest::from_stream_name(&link.name) else {
            continue;
        };
        if digest == image.manifest.digest() {
            continue;
        }
        // What this batch has made of it counts.
        let current = batch.stream(&link.name)?.unwrap_or(link.object);
        let manifest = match stream::open(batch, &link.name, &current, ContentType::OCI_MANIFEST) {
            Ok(manifest) => manifest,
            Err(error) => {
                tracing::warn!(%error, "{} is damaged; it is left as it is", link.name);
                continue;
            }
        };
        if manifest
            .refs
            .get(&key)
            .is_none_or(|old| old == config_stream)
        {
            continue;
        }
        let of_layer = |(diff_id, _): &(DiffId, VerityDigest)| {
            let name = diff_id.to_string();
            let stream = manifest.refs.get(&name)?;
            Some((name, stream))
        };
        let refs = std::iter::once((key.clone(), config_stream))
            .chain(image.layers.iter().filter_map(of_layer))
            .chain(
                manifest
                    .refs
                    .iter()
                    .map(|(name, stream)| (name.clone(), stream)),
            );
        let stream = stream::write(batch, ContentType::OCI_MANIFEST, &manifest.document, refs)?;
        batch.link_stream(&link.name, &stream);
    }
    Ok(())
}
