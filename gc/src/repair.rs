//! Mending: has what is damaged or missing in a repository stored again, from whoever still has it.
//!
//! An object is what its digest says, so it does not matter where its content comes from. Each
//! [`Supplier`] is asked in turn for each broken object; what it hands over is hashed and counts only if it
//! is right. EROFS images are made again from their layers when these are whole. A commit puts each
//! object in place of the broken one in one step; nothing else in the repository changes.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;

use composefs_image::{VerityDigest, VerityHasher};
use repository::oci::{self, OciError};
use repository::{Batch, CopyPolicy, Repository, Verification, erofs};
use serde::Serialize;

use crate::fsck::{Comparison, Report};
use crate::json;
use crate::progress::{Phase, Progress};

/// Somebody who may have the content of objects.
pub trait Supplier {
    /// What the supplier is called in reports: a path, the name of an image.
    fn name(&self) -> String;

    /// A file with the content of the object, if there is one. It need not be right.
    fn open(&mut self, object: &VerityDigest) -> Option<File>;
}

/// A repository is one, whatever damage it has itself.
impl Supplier for Repository {
    fn name(&self) -> String {
        self.path().display().to_string()
    }

    fn open(&mut self, object: &VerityDigest) -> Option<File> {
        self.open_unchecked(object).ok()
    }
}

/// What [`repair`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Repaired {
    /// What is whole again.
    pub mended: Vec<Mended>,
    /// What nobody had.
    #[serde(serialize_with = "texts")]
    pub remaining: Vec<VerityDigest>,
}

/// An object that is whole again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mended {
    /// The object.
    #[serde(serialize_with = "json::text")]
    pub object: VerityDigest,
    /// Where its content came from, in words.
    pub from: String,
}

/// Why nothing more could be mended. What was mended before is durable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepairError {
    /// The repository cannot be read or written.
    #[error(transparent)]
    Repository(#[from] repository::Error),
    /// The repository's images cannot be read.
    #[error(transparent)]
    Oci(#[from] OciError),
}

/// Mends the objects that `report` names. When it returns, what is mended is durable.
pub fn repair(
    repository: &Repository,
    report: &Report,
    suppliers: &mut [Box<dyn Supplier>],
    progress: &dyn Progress,
) -> Result<Repaired, RepairError> {
    let mut broken = report.broken();
    let mut repaired = Repaired::default();
    progress.begin(Phase::Mending, Some(broken.len() as u64));
    from_suppliers(repository, suppliers, progress, &mut broken, &mut repaired)?;
    made_again(repository, progress, &mut broken, &mut repaired)?;
    repaired.mended.sort_by_key(|mended| mended.object);
    repaired.remaining = broken.into_iter().collect();
    Ok(repaired)
}

/// Takes the marks away of layers that were imported without comparing their diff IDs, and of which `report`
/// says that they are right; returns how many there were.
pub fn confirm(repository: &Repository, report: &Report) -> Result<usize, RepairError> {
    let right = report.unverified.iter();
    let right: Vec<_> = right
        .filter(|layer| layer.diff_id == Comparison::Right)
        .collect();
    if right.is_empty() {
        return Ok(0);
    }
    let batch = repository.batch()?;
    for layer in &right {
        batch.set_verification(&layer.layer, Verification::Verified);
    }
    batch.commit()?;
    Ok(right.len())
}

fn from_suppliers(
    repository: &Repository,
    suppliers: &mut [Box<dyn Supplier>],
    progress: &dyn Progress,
    broken: &mut BTreeSet<VerityDigest>,
    repaired: &mut Repaired,
) -> Result<(), RepairError> {
    let batch = repository.batch()?.distrust(broken.iter().copied());
    let mut stored = Vec::new();
    for object in broken.iter() {
        for supplier in suppliers.iter_mut() {
            let Some(file) = supplier.open(object) else {
                continue;
            };
            if store(&batch, object, &file)? {
                stored.push(*object);
                repaired.mended.push(Mended {
                    object: *object,
                    from: supplier.name(),
                });
                progress.advance(1);
                break;
            }
        }
    }
    batch.commit()?;
    for object in stored {
        broken.remove(&object);
    }
    Ok(())
}

/// Stages the file if it has the object's content; one that cannot be read has not.
fn store(batch: &Batch<'_>, object: &VerityDigest, mut file: &File) -> Result<bool, RepairError> {
    let mut hasher = VerityHasher::new(object.algorithm());
    let Ok(size) = io::copy(&mut file, &mut hasher) else {
        return Ok(false);
    };
    if hasher.finish() != *object {
        return Ok(false);
    }
    batch.store_file(file.as_fd(), object, size, CopyPolicy::Allow)?;
    Ok(true)
}

/// Makes the images again of which the layers are whole.
fn made_again(
    repository: &Repository,
    progress: &dyn Progress,
    broken: &mut BTreeSet<VerityDigest>,
    repaired: &mut Repaired,
) -> Result<(), RepairError> {
    if broken.is_empty() {
        return Ok(());
    }
    for image in oci::images(repository)?.images {
        for (key, digest) in image.erofs() {
            if !broken.contains(digest) {
                continue;
            }
            let batch = repository.batch()?.distrust(broken.iter().copied());
            // Whatever is in the way was found by fsck, too.
            if !matches!(erofs::store_again(&batch, &image, key, digest), Ok(true)) {
                continue;
            }
            batch.commit()?;
            broken.remove(digest);
            repaired.mended.push(Mended {
                object: *digest,
                from: format!("the layers of image {}", image.config().digest()),
            });
            progress.advance(1);
        }
    }
    Ok(())
}

fn texts<S: serde::Serializer>(digests: &[VerityDigest], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(digests.iter().map(VerityDigest::to_hex))
}
