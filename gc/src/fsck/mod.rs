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
use repository::list::{Foreign, Oddity};
use repository::{Category, Repository, Result, StreamName};

use crate::progress::{Phase, Progress};
pub use needed_by::add_owners;
pub use report::{Counts, Defect, Finding, Report};

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
    if options.depth == Depth::Meaning {
        meaning::check(repository, options.jobs, progress, &mut report)?;
    }
    report.finish();
    Ok(report)
}

fn add_all(report: &mut Report, foreign: Vec<Foreign>) {
    for foreign in foreign {
        report.add_foreign(foreign);
    }
}
