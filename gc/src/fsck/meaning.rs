//! The meaning of what is in a repository: does each layer have its diff ID, and is each image the one
//! that its layers make?
//!
//! Documents are compared with their digests when an image is opened; layers are put together again and
//! hashed, and EROFS images made again, without storing anything.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use composefs_image::VerityDigest;
use repository::oci::{self, DiffId, ErofsKey, Image, NamesStream};
use repository::{Repository, erofs, splitstream};
use sha2::{Digest as _, Sha256};

use super::contents::in_parallel;
use super::report::{Comparison, Defect, Report};
use crate::progress::{Phase, Progress};

/// Something to be made again and compared.
enum Task<'a> {
    Layer(DiffId, VerityDigest),
    Image(&'a Image, &'a ErofsKey, VerityDigest),
}

/// Layers whose diff IDs were compared.
pub(super) type Compared = BTreeMap<DiffId, Comparison>;

/// All images.
pub(super) fn check(
    repository: &Repository,
    jobs: usize,
    progress: &dyn Progress,
    report: &mut Report,
) -> repository::Result<Compared> {
    let found = match oci::images(repository) {
        Ok(found) => found,
        Err(error) => {
            let error = error.to_string();
            report.add("streams", Defect::InvalidOciImage { error });
            return Ok(Compared::new());
        }
    };
    for (manifest, error) in found.damaged {
        let path = Path::new("streams").join(manifest.stream_name().as_str());
        let error = error.to_string();
        report.add(path, Defect::InvalidOciImage { error });
    }
    compare(repository, &found.images, jobs, progress, report)
}

/// Makes the layers and EROFS images of these images again, each once, and compares them.
pub(super) fn compare(
    repository: &Repository,
    images: &[Image],
    jobs: usize,
    progress: &dyn Progress,
    report: &mut Report,
) -> repository::Result<Compared> {
    let layers: BTreeSet<_> = images
        .iter()
        .flat_map(Image::layers)
        .map(|layer| (layer.diff_id, layer.stream))
        .collect();
    // The largest first, so that no thread is left with it at the end.
    let size = |stream: &VerityDigest| {
        splitstream::open(repository, stream, None).map_or(0, |it| it.total_size())
    };
    let mut layers: Vec<_> = layers.into_iter().collect();
    layers.sort_by_cached_key(|(_, stream)| std::cmp::Reverse(size(stream)));
    // Two manifests may have the same config, and so the same images.
    let mut erofs = BTreeMap::new();
    for image in images {
        for (key, digest) in image.erofs() {
            erofs.insert((image.config().digest(), key), (image, *digest));
        }
    }
    let tasks: Vec<_> = layers
        .into_iter()
        .map(|(diff_id, stream)| Task::Layer(diff_id, stream))
        .chain(
            erofs
                .into_iter()
                .map(|((_, key), (image, digest))| Task::Image(image, key, digest)),
        )
        .collect();
    progress.begin(Phase::CheckingMeaning, Some(tasks.len() as u64));
    let next = AtomicUsize::new(0);
    let done = Mutex::new((Compared::new(), Vec::new()));
    in_parallel(jobs, || {
        while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (layer, finding) = match task {
                Task::Layer(diff_id, stream) => {
                    let (comparison, finding) = check_layer(repository, diff_id, stream);
                    (Some((*diff_id, comparison)), finding)
                }
                Task::Image(image, key, recorded) => {
                    (None, check_image(repository, image, key, recorded))
                }
            };
            let mut done = done
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            done.0.extend(layer);
            done.1.extend(finding);
            progress.advance(1);
        }
        Ok(())
    })?;
    let (compared, findings) = done
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    for (path, defect) in findings {
        report.add(path, defect);
    }
    Ok(compared)
}

fn check_layer(
    repository: &Repository,
    diff_id: &DiffId,
    stream: &VerityDigest,
) -> (Comparison, Option<(PathBuf, Defect)>) {
    let path = Path::new("streams").join(diff_id.stream_name().as_str());
    let mut tar = Hashed(Sha256::new());
    // What cannot be read is found where objects and streams are checked.
    if splitstream::copy_stream(repository, stream, &mut tar).is_err() {
        return (Comparison::NotCompared, None);
    }
    let actual = DiffId::from_bytes(tar.0.finalize().into());
    if actual == *diff_id {
        return (Comparison::Right, None);
    }
    let actual = actual.to_string();
    (
        Comparison::Wrong,
        Some((path, Defect::WrongDiffId { actual })),
    )
}

fn check_image(
    repository: &Repository,
    image: &Image,
    key: &ErofsKey,
    recorded: &VerityDigest,
) -> Option<(PathBuf, Defect)> {
    let path = Path::new("images").join(recorded.to_hex());
    let defect = match erofs::digest(repository, image, key) {
        Ok(actual) if actual == *recorded => return None,
        Ok(actual) => Defect::OtherImage {
            image: image.config().digest().to_string(),
            actual,
        },
        // Another release may know more kinds; and what cannot be read is found elsewhere.
        Err(erofs::MakeError::UnknownKey(_) | erofs::MakeError::Repository(_)) => return None,
        Err(error) => Defect::InvalidImage {
            error: error.to_string(),
        },
    };
    Some((path, defect))
}

/// Everything written is hashed.
struct Hashed(Sha256);

impl std::io::Write for Hashed {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.0.update(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
