//! What the repository has already, and whether it can be trusted to be whole.
//!
//! A stream's name says that it was complete once. A collection by another program that was interrupted
//! may have taken objects from under a name that nothing referred to, so such a name is believed only
//! after a look at everything behind it. What a tag refers to is different: collections keep it.
//!
//! A layer that composefs-rs stored counts like one of ours, although composefs-rs takes the diff ID from
//! the config without comparing it: its name does not say who wrote it.

use composefs_image::VerityDigest;
use repository::layers::{Chunk, Chunks as _, LayerStream};
use repository::oci::{self, DiffId, ErofsKey, ErofsRefs, ManifestDigest, NamesStream};
use repository::{Error, Repository, Result};

use crate::image::DiffIdCheck;

/// The splitstream of a layer that is there with all its objects. A damaged one is an error: writing it
/// again would not mend it. One that was stored unverified does not count where all are to be verified.
pub(crate) fn layer(
    repository: &Repository,
    diff_id: &DiffId,
    check: DiffIdCheck,
) -> Result<Option<VerityDigest>> {
    if check == DiffIdCheck::Verify && repository.is_unverified(diff_id)? {
        return Ok(None);
    }
    let Some(stream) = repository.stream(&diff_id.stream_name())? else {
        return Ok(None);
    };
    let mut chunks = match LayerStream::open(repository, &stream) {
        Ok(chunks) => chunks,
        Err(Error::NoObject(_)) => return Ok(None),
        Err(error) => return Err(error),
    };
    while let Some(chunk) = chunks.next_chunk()? {
        if let Chunk::External(object) = chunk
            && repository.object_size(&object)?.is_none()
        {
            return Ok(None);
        }
    }
    Ok(Some(stream))
}

/// The root filesystem images of an image that is tagged, with all its streams in place and an image
/// in each of the repository's formats. One that is damaged is as good as none: it is written anew.
pub(crate) fn image(
    repository: &Repository,
    manifest: ManifestDigest,
    check: DiffIdCheck,
) -> Result<Option<ErofsRefs>> {
    if repository.stream(&manifest.stream_name())?.is_none() {
        return Ok(None);
    }
    let Ok(image) = oci::image(repository, manifest) else {
        return Ok(None);
    };
    if image.tags().is_empty() {
        return Ok(None);
    }
    for layer in image.layers() {
        if check == DiffIdCheck::Verify && repository.is_unverified(&layer.diff_id)? {
            return Ok(None);
        }
        if repository.object_size(&layer.stream)?.is_none() {
            return Ok(None);
        }
    }
    let mut rootfs = ErofsRefs::new();
    for key in repository.formats().all().filter_map(ErofsKey::rootfs) {
        match image.erofs().get(&key) {
            Some(digest) if is_mountable(repository, digest)? => {
                rootfs.insert(key, *digest);
            }
            _ => return Ok(None),
        }
    }
    Ok(Some(rootfs))
}

fn is_mountable(repository: &Repository, image: &VerityDigest) -> Result<bool> {
    Ok(repository.has_image(image)? && repository.object_size(image)?.is_some())
}
