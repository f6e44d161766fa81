//! The exclusive lock, and the only functions of this crate that delete content.
//!
//! Follows the composefs repository format, section "locking": the `flock` of the handle is converted,
//! which isn't atomic, so whatever was read before has to be read again.

use std::ops::Deref;

use composefs_image::VerityDigest;
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::checksums::CHECKSUMS;
use crate::durable;
use crate::error::{Error, Result};
use crate::meta::Formats;
use crate::names::{Category, StreamName};
use crate::repo::{OBJECTS, Repository};
use crate::verification::UNVERIFIED;
use failpoint::failpoint;

/// What to do while others use the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Wait for them, without a limit.
    Block,
    /// Give up with [`Error::Busy`].
    Fail,
}

/// The repository, used by nobody else: no process has it open, and no [`crate::Batch`] of this one is
/// alive. Dropping it goes back to the shared lock.
#[derive(Debug)]
pub struct Exclusive<'r> {
    repository: &'r mut Repository,
}

impl Repository {
    /// Trades the shared lock for the exclusive one.
    ///
    /// Others may change the repository between the two: read it again. The handle is borrowed
    /// mutably, so no batch can be alive meanwhile.
    pub fn exclusive(&mut self, wait: Wait) -> Result<Exclusive<'_>> {
        self.check_writable()?;
        let operation = match wait {
            Wait::Block => FlockOperation::LockExclusive,
            Wait::Fail => FlockOperation::NonBlockingLockExclusive,
        };
        match durable::flock(self.dir(), operation) {
            Ok(()) => Ok(Exclusive { repository: self }),
            Err(Errno::WOULDBLOCK) => {
                // The failed conversion has lost the shared lock.
                durable::flock(self.dir(), FlockOperation::LockShared)
                    .map_err(Error::io("lock", self.path()))?;
                Err(Error::Busy(self.path().to_owned()))
            }
            Err(error) => Err(Error::io("lock", self.path())(error)),
        }
    }
}

impl Drop for Exclusive<'_> {
    fn drop(&mut self) {
        // From exclusive to shared: it can't have to wait, and a failure leaves us with the stronger one.
        let _ = durable::flock(self.repository.dir(), FlockOperation::LockShared);
    }
}

impl Deref for Exclusive<'_> {
    type Target = Repository;

    fn deref(&self) -> &Repository {
        self.repository
    }
}

impl Exclusive<'_> {
    /// Says in `meta.json` that the repository has these formats, durably. Every image that is to be kept
    /// must exist in all of them: see [`crate::upgrade`].
    pub(crate) fn set_formats(&mut self, formats: &Formats) -> Result<()> {
        self.repository.replace_formats(formats)
    }

    /// Removes a link from `streams/`; returns whether there was one. Not durable before
    /// [`Exclusive::sync_names`].
    pub fn remove_stream(&self, name: &StreamName) -> Result<bool> {
        self.remove_name(Category::Streams, name.as_str())
    }

    /// Removes a link from `images/`; returns whether there was one. Not durable before
    /// [`Exclusive::sync_names`].
    pub fn remove_image(&self, digest: &VerityDigest) -> Result<bool> {
        self.remove_name(Category::Images, &digest.to_string())
    }

    fn remove_name(&self, category: Category, name: &str) -> Result<bool> {
        let Some(dir) = durable::open_dir(self.dir(), category.directory(), self.path())? else {
            return Ok(false);
        };
        failpoint("remove-name");
        durable::unlink(dir, name, &self.path().join(category.directory()))
    }

    /// Makes the removals of names durable: to be called before any object is removed.
    pub fn sync_names(&self) -> Result<()> {
        failpoint("sync-removed-names");
        for category in [Category::Streams, Category::Images] {
            if let Some(dir) = durable::open_dir(self.dir(), category.directory(), self.path())? {
                durable::sync_dir(dir, &self.path().join(category.directory()))?;
            }
        }
        failpoint("removed-names-synced");
        UNVERIFIED.remove_of_removed_layers(self)?;
        CHECKSUMS.remove_of_removed_layers(self)
    }

    /// Removes objects whose digests begin with the byte `shard`; nothing may name them any more. Calls
    /// `removed` with each that was there. Several threads may do this for different shards at once.
    pub fn remove_objects(
        &self,
        shard: u8,
        digests: impl IntoIterator<Item = VerityDigest>,
        mut removed: impl FnMut(&VerityDigest),
    ) -> Result<()> {
        let Some(objects) = self.objects()? else {
            return Ok(());
        };
        let objects_path = self.path().join(OBJECTS);
        let shard = format!("{shard:02x}");
        let Some(dir) = durable::open_dir(objects, &shard, &objects_path)? else {
            return Ok(());
        };
        let path = objects_path.join(&shard);
        let mut digits = [0; 128];
        for digest in digests {
            self.check_algorithm(&digest)?;
            let Some(name) = digest.encode_hex(&mut digits).strip_prefix(&*shard) else {
                continue;
            };
            failpoint("remove-object");
            if durable::unlink(&dir, name, &path)? {
                removed(&digest);
            }
        }
        Ok(())
    }
}
