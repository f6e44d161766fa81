//! fsck: looks at everything in a repository, and says what is wrong. Writes nothing.
//!
//! Three passes, each deeper than the one before ([`Depth`]):
//!
//! * **structure**: names are well formed and in their place, links and refs lead somewhere, streams decode
//!   to their end, images are sound, and everything that streams and images name exists;
//! * **content**: every object has the digest that is its name;
//! * **meaning**: manifests and configs have their digests, layers their diff IDs, and images are those that
//!   their layers make. What depends on the repository, published layers and boot entries, is the caller's
//!   to check ([`Report::add_dependent`]).
//!
//! [`add_owners`] tells who is concerned, [`crate::repair()`] mends.

mod contents;
mod meaning;
mod needed_by;
mod objects;
mod report;

use composefs_image::VerityDigest;
use repository::list::{Foreign, Oddity, StreamLink};
use repository::oci::{self, DiffId, ManifestDigest, NamesStream as _, OciError};
use repository::{Category, Repository, Result, StreamName};

use crate::progress::{Phase, Progress};
use meaning::Compared;
pub use needed_by::{add_owners, keepers};
pub use report::{Comparison, Counts, Defect, Finding, Report, Unverified};

/// How to look.
#[derive(Debug, Clone, Copy)]
pub struct FsckOptions {
    /// How many threads hash and decode; at least one does.
    pub jobs: usize,
    /// How deep.
    pub depth: Depth,
    /// Whether to read objects that the kernel measures.
    pub data: Data,
}

/// How deep fsck looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// Names and references; no object is read but streams and images.
    Structure,
    /// And every object's digest.
    Content,
    /// And what layers and images mean.
    Meaning,
}

/// Whether objects with fs-verity are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    /// No: the kernel's digest is compared, and it checks what is read later.
    Measured,
    /// Yes, so that blocks that have rotted on the disk are found.
    Read,
}

impl Default for FsckOptions {
    /// As many threads as the machine runs at once, and everything but the data that the kernel verifies.
    fn default() -> Self {
        Self {
            jobs: std::thread::available_parallelism().map_or(1, usize::from),
            depth: Depth::Meaning,
            data: Data::Measured,
        }
    }
}

/// Checks a whole repository. An error means that it couldn't be looked at; what is wrong with it is in
/// the report.
pub fn fsck(
    repository: &Repository,
    options: FsckOptions,
    progress: &dyn Progress,
) -> Result<Report> {
    let mut report = Report::default();
    for foreign in repository.foreign_in_objects()? {
        // Other names there are leftovers that every reader tolerates.
        if foreign.oddity == Oddity::NotADirectory {
            report.add_foreign(foreign);
        }
    }

    progress.begin(Phase::CheckingObjects, Some(256));
    let present = objects::check(repository, options, progress, &mut report)?;

    let streams = repository.streams()?;
    let images = repository.images()?;
    add_all(&mut report, streams.foreign);
    add_all(&mut report, images.foreign);
    report.counts.streams = streams.entries.len() as u64;
    report.counts.images = images.entries.len() as u64;
    let names = streams.entries.len() + images.entries.len();
    progress.begin(Phase::CheckingNames, Some(names as u64));
    let checker = contents::Checker::new(repository, &present);
    checker.check(
        &streams.entries,
        &images.entries,
        options.jobs,
        progress,
        &mut report,
    );

    for category in [Category::Streams, Category::Images] {
        let refs = repository.refs(category)?;
        add_all(&mut report, refs.foreign);
        report.counts.refs += refs.entries.len() as u64;
        for reference in refs.entries {
            let exists = match category {
                Category::Streams => {
                    streams
                    .entries
                    .iter()
                    .any(|link| link.name.as_str() == reference.target)
                    // Others may have made both since.
                    || matches!(
                        StreamName::new(&*reference.target).map(|name| repository.stream(&name)),
                        Ok(Ok(Some(_)))
                    )
                }
                Category::Images => {
                    images
                        .entries
                        .iter()
                        .any(|link| link.name.to_hex() == reference.target)
                        || VerityDigest::from_hex(&reference.target)
                            .is_ok_and(|image| matches!(repository.has_image(&image), Ok(true)))
                }
            };
            if !exists {
                let path = std::path::Path::new(category.directory())
                    .join("refs")
                    .join(reference.path.as_path());
                let target = reference.target;
                report.add(path, Defect::DanglingRef { target });
            }
        }
    }
    let compared = if options.depth == Depth::Meaning {
        meaning::check(repository, options.jobs, progress, &mut report)?
    } else {
        Compared::new()
    };
    let layers = streams.entries.iter();
    let layers = layers.filter_map(|link| DiffId::from_stream_name(&link.name));
    report.unverified = unverified(repository, layers, &compared)?;
    report.finish();
    Ok(report)
}

/// Checks one image and all that it consists of, and nothing else. What is published of it is the caller's
/// to check.
pub fn fsck_image(
    repository: &Repository,
    image: ManifestDigest,
    options: FsckOptions,
    progress: &dyn Progress,
) -> Result<Report> {
    let mut report = Report::default();
    let name = image.stream_name();
    let Some(object) = repository.stream(&name)? else {
        let error = OciError::NoStream(name.clone()).to_string();
        let path = std::path::Path::new("streams").join(name.as_str());
        report.add(path, Defect::InvalidOciImage { error });
        return Ok(report);
    };
    progress.begin(Phase::CheckingNames, Some(1));
    let link = StreamLink { name, object };
    let objects = contents::Checker::check_one(repository, &link, &mut report);
    let of_image = |object: &VerityDigest| objects.contains(object);
    let streams = repository.streams()?.entries.into_iter();
    let streams: Vec<_> = streams.filter(|link| of_image(&link.object)).collect();
    let images = repository.images()?.entries.into_iter();
    let images: Vec<_> = images.filter(|link| of_image(&link.object)).collect();
    report.counts.streams = streams.len() as u64;
    report.counts.images = images.len() as u64;
    progress.advance(1);
    objects::check_these(repository, &objects, options, progress, &mut report)?;

    let tags = oci::tags(repository);
    report.counts.refs = tags.map_or(0, |tags| {
        tags.values().filter(|manifest| **manifest == image).count() as u64
    });
    let mut compared = Compared::new();
    if options.depth == Depth::Meaning {
        match oci::image(repository, image) {
            Ok(image) => {
                compared =
                    meaning::compare(repository, &[image], options.jobs, progress, &mut report)?;
            }
            Err(error) => {
                let path = std::path::Path::new("streams").join(link.name.as_str());
                let error = error.to_string();
                report.add(path, Defect::InvalidOciImage { error });
            }
        }
    }
    let layers = streams.iter();
    let layers = layers.filter_map(|link| DiffId::from_stream_name(&link.name));
    report.unverified = unverified(repository, layers, &compared)?;
    report.finish();
    Ok(report)
}

/// Those of the layers that were stored without comparing their diff IDs.
fn unverified(
    repository: &Repository,
    layers: impl Iterator<Item = DiffId>,
    compared: &Compared,
) -> Result<Vec<Unverified>> {
    let mut unverified = Vec::new();
    for layer in layers {
        if repository.is_unverified(&layer)? {
            let known = compared.get(&layer).copied();
            unverified.push(Unverified {
                layer,
                diff_id: known.unwrap_or(Comparison::NotCompared),
            });
        }
    }
    Ok(unverified)
}

fn add_all(report: &mut Report, foreign: Vec<Foreign>) {
    for foreign in foreign {
        report.add_foreign(foreign);
    }
}
