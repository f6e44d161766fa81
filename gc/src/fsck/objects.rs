//! Every object: is its content what its name says?

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use composefs_image::{VerityDigest, VerityHasher};
use repository::sys::Measured;
use repository::{Repository, Result};

use super::report::{Defect, Report};
use super::{Data, Depth, FsckOptions};
use crate::progress::{Phase, Progress};

/// How much is read at a time, in bytes; a multiple of the block size.
const CHUNK: usize = 256 * 1024;

/// Checks all objects; returns the digests of those that exist, sorted.
pub(super) fn check(
    repository: &Repository,
    options: FsckOptions,
    progress: &dyn Progress,
    report: &mut Report,
) -> Result<Vec<VerityDigest>> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    let work = || -> Result<()> {
        let mut buffer = vec![0; CHUNK];
        while let Ok(shard) = u8::try_from(next.fetch_add(1, Ordering::Relaxed)) {
            let mut found = Report::default();
            let listing = repository.objects_in(shard)?;
            for foreign in listing.foreign {
                found.add_foreign(foreign);
            }
            for digest in &listing.entries {
                examine(repository, digest, options, &mut buffer, &mut found);
            }
            let result = (shard, listing.entries, found);
            done.lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .push(result);
            progress.advance(1);
        }
        Ok(())
    };
    super::contents::in_parallel(options.jobs, work)?;

    let mut done = done
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_unstable_by_key(|(shard, ..)| *shard);
    let mut present = Vec::new();
    for (_, digests, found) in done {
        present.extend(digests);
        report.merge(found);
    }
    Ok(present)
}

/// Checks these objects, which exist.
pub(super) fn check_these(
    repository: &Repository,
    objects: &BTreeSet<VerityDigest>,
    options: FsckOptions,
    progress: &dyn Progress,
    report: &mut Report,
) -> Result<()> {
    let objects: Vec<_> = objects.iter().collect();
    progress.begin(Phase::CheckingObjects, Some(objects.len() as u64));
    let next = AtomicUsize::new(0);
    let all = Mutex::new(Report::default());
    super::contents::in_parallel(options.jobs, || {
        let mut buffer = vec![0; CHUNK];
        let mut found = Report::default();
        while let Some(digest) = objects.get(next.fetch_add(1, Ordering::Relaxed)) {
            examine(repository, digest, options, &mut buffer, &mut found);
            progress.advance(1);
        }
        all.lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .merge(found);
        Ok(())
    })?;
    let all = all.into_inner();
    report.merge(all.unwrap_or_else(std::sync::PoisonError::into_inner));
    Ok(())
}

fn examine(
    repository: &Repository,
    digest: &VerityDigest,
    options: FsckOptions,
    buffer: &mut [u8],
    found: &mut Report,
) {
    found.counts.objects += 1;
    match check_object(repository, digest, options, buffer) {
        Ok(size) => found.counts.bytes += size,
        Err(error) => {
            let path = Path::new("objects").join(digest.object_path());
            let error = error.to_string();
            let object = *digest;
            found.add(path, Defect::DamagedObject { object, error });
        }
    }
}

/// What is wrong with an object.
#[derive(Debug, thiserror::Error)]
enum Wrong {
    #[error(transparent)]
    Repository(#[from] repository::Error),
    #[error("it cannot be read: {0}")]
    Io(#[from] std::io::Error),
    #[error("its fs-verity digest is {0}")]
    Measured(VerityDigest),
    #[error("fs-verity is not enabled on it")]
    NoVerity,
    #[error("its content has the digest {0}")]
    Content(VerityDigest),
}

/// Compares the kernel's digest, if it has one, and that of the content as far as the options want it;
/// returns the size.
fn check_object(
    repository: &Repository,
    digest: &VerityDigest,
    options: FsckOptions,
    buffer: &mut [u8],
) -> Result<u64, Wrong> {
    let mut file = repository.open_unchecked(digest)?;
    if options.depth == Depth::Structure {
        return Ok(file.metadata()?.len());
    }
    match repository.measure(&file, digest)? {
        Measured::Digest(measured) if measured != *digest => {
            return Err(Wrong::Measured(measured));
        }
        Measured::Digest(_) if options.data == Data::Measured => {
            return Ok(file.metadata()?.len());
        }
        Measured::Disabled | Measured::Unsupported if repository.is_secure() => {
            return Err(Wrong::NoVerity);
        }
        _ => {}
    }
    let (actual, size) = hash(&mut file, digest, buffer)?;
    if actual == *digest {
        Ok(size)
    } else {
        Err(Wrong::Content(actual))
    }
}

fn hash(
    file: &mut File,
    digest: &VerityDigest,
    buffer: &mut [u8],
) -> std::io::Result<(VerityDigest, u64)> {
    let mut hasher = VerityHasher::new(digest.algorithm());
    let mut size = 0;
    loop {
        let count = match file.read(buffer) {
            Ok(0) => return Ok((hasher.finish(), size)),
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.write_all(buffer.get(..count).unwrap_or_default())?;
        size += count as u64;
    }
}
