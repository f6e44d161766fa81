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
use super::report::{Defect, Finding, Report};
use crate::progress::{Phase, Progress};

/// Something to be made again and compared.
enum Task<'a> {
    Layer(DiffId, VerityDigest),
    Image(&'a Image, &'a ErofsKey, VerityDigest),
}

pub(super) fn check(
    repository: &Repository,
    jobs: usize,
    progress: &dyn Progress,
    report: &mut Report,
) -> repository::Result<()> {
    let found = match oci::images(repository) {
        Ok(found) => found,
        Err(error) => {
            let error = error.to_string();
            report.add("streams", Defect::InvalidOciImage { error });
            return Ok(());
        }
    };
    for (manifest, error) in found.damaged {
        let path = Path::new("streams").join(manifest.stream_name().as_str());
        let error = error.to_string();
        report.add(path, Defect::InvalidOciImage { error });
    }
    let layers: BTreeSet<_> = found
        .images
        .iter()
        .flat_map(Image::layers)
        .map(|layer| (layer.diff_id, layer.stream))
        .collect();
    // Two manifests may have the same config, and so the same images.
    let mut images = BTreeMap::new();
    for image in &found.images {
        for (key, digest) in image.erofs() {
            images.insert((image.config().digest(), key), (image, *digest));
        }
    }
    let tasks: Vec<_> = layers
        .into_iter()
        .map(|(diff_id, stream)| Task::Layer(diff_id, stream))
        .chain(
            images
                .into_iter()
                .map(|((_, key), (image, digest))| Task::Image(image, key, digest)),
        )
        .collect();
    progress.begin(Phase::CheckingMeaning, Some(tasks.len() as u64));
    let next = AtomicUsize::new(0);
    let findings = Mutex::new(Vec::new());
    in_parallel(jobs, || {
        while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Some(finding) = run(repository, task) {
                findings
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner)
                    .push(finding);
            }
            progress.advance(1);
        }
        Ok(())
    })?;
    let findings = findings
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    for finding in findings {
        report.add(finding.path, finding.defect);
    }
    Ok(())
}

fn run(repository: &Repository, task: &Task<'_>) -> Option<Finding> {
    let (path, defect) = match task {
        Task::Layer(diff_id, stream) => check_layer(repository, diff_id, stream),
        Task::Image(image, key, recorded) => check_image(repository, image, key, recorded),
    }?;
    Some(Finding::new(path, defect))
}

fn check_layer(
    repository: &Repository,
    diff_id: &DiffId,
    stream: &VerityDigest,
) -> Option<(PathBuf, Defect)> {
    let path = Path::new("streams").join(diff_id.stream_name().as_str());
    let mut tar = Hashed(Sha256::new());
    // What cannot be read is found where objects and streams are checked.
    splitstream::copy_stream(repository, stream, &mut tar).ok()?;
    let actual = DiffId::from_bytes(tar.0.finalize().into());
    (actual != *diff_id).then(|| {
        let actual = actual.to_string();
        (path, Defect::WrongDiffId { actual })
    })
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
