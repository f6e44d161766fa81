//! Writing: objects are staged, and names appear only when the whole batch is committed.
//!
//! The staging directory is `composefs-store/staging/<random>/` in the repository, on its filesystem, so
//! that a staged object gets its name by a rename. Its writer holds an exclusive `flock` on it for as
//! long as the batch lives, which tells a live one from one that a crash left behind. The order of
//! the durable steps is in the `commit` module; how one file is staged is in `staged`.

mod checksums;
mod commit;
mod staged;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use composefs_image::{Algorithm, VerityDigest, verity_digest};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::PRIVATE_DIRECTORY;
use crate::digest_table::DigestTable;
use crate::durable;
use crate::error::{Error, Result};
use crate::names::{Category, RefPath, StreamName};
use crate::object::ReadObjects;
use crate::oci::DiffId;
use crate::repo::Repository;
use crate::verification::Verification;
pub use checksums::{ChecksumWriter, StagedChecksums};
pub use staged::ObjectWriter;
use staged::StagedFile;

/// The directory of staging directories, in [`PRIVATE_DIRECTORY`].
pub(crate) const STAGING: &str = "staging";

/// Where an object that was asked for came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// It was there already.
    Present,
    /// It is a clone that shares its blocks with the source.
    Reflinked,
    /// It was copied from another file, because that couldn't be cloned.
    Copied,
    /// It was written from memory.
    Written,
}

/// Whether a file may be copied where it can't be cloned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyPolicy {
    /// Copy it.
    Allow,
    /// Fail with [`Error::CopyRefused`].
    Refuse,
}

/// A number of objects and the bytes in them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Tally {
    /// How many objects.
    pub objects: u64,
    /// The sum of their sizes in bytes.
    pub bytes: u64,
}

/// What became of the objects that were handed to a batch, by [`Stored`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct CommitStats {
    /// There already; counted each time it is asked for.
    pub present: Tally,
    /// Cloned.
    pub reflinked: Tally,
    /// Copied.
    pub copied: Tally,
    /// Written from memory.
    pub written: Tally,
}

/// Objects, links and refs that are being written. Usable from many threads.
///
/// Nothing of it is visible in the repository before [`Batch::commit`]; dropping it instead forgets it.
/// An object that two threads store at once is staged once. Objects that exist are used only if their
/// size fits, and in a secure repository their fs-verity digest too; otherwise
/// [`Error::DamagedObject`].
#[derive(Debug)]
pub struct Batch<'r> {
    repository: &'r Repository,
    /// `composefs-store/staging/`.
    parent: OwnedFd,
    parent_path: PathBuf,
    dir: OwnedFd,
    name: String,
    next_file: AtomicU64,
    /// Cleared when the filesystem turns out to have no fs-verity.
    try_verity: AtomicBool,
    /// Objects that count as missing although a file has their name; they are replaced.
    distrusted: HashSet<VerityDigest>,
    /// Set from outside when the batch is no longer wanted.
    stop: Option<Arc<AtomicBool>>,
    /// Whether this batch keeps others from entering images.
    enters_images: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    objects: Objects,
    streams: BTreeMap<StreamName, VerityDigest>,
    images: BTreeSet<VerityDigest>,
    refs: BTreeMap<(Category, RefPath), String>,
    verifications: BTreeMap<DiffId, Verification>,
    checksums: BTreeMap<DiffId, StagedChecksums>,
    stats: CommitStats,
}

impl State {
    fn new(algorithm: Algorithm) -> Self {
        Self {
            objects: Objects {
                digests: DigestTable::new(algorithm),
                staged: Vec::new(),
                count: 0,
            },
            streams: BTreeMap::new(),
            images: BTreeSet::new(),
            refs: BTreeMap::new(),
            verifications: BTreeMap::new(),
            checksums: BTreeMap::new(),
            stats: CommitStats::default(),
        }
    }
}

/// The digests that the batch was asked about, by number, and which of them are staged.
#[derive(Debug)]
struct Objects {
    digests: DigestTable,
    /// Shorter than `digests` where the last ones are not staged.
    staged: Vec<Option<Staged>>,
    count: usize,
}

/// A staged object: the number that is its file name in the staging directory.
#[derive(Debug, Clone, Copy)]
struct Staged {
    file: NonZeroU64,
    size: u64,
}

impl Objects {
    fn get(&self, digest: &VerityDigest) -> Option<Staged> {
        let number = self.digests.find(digest)?;
        self.staged.get(number as usize).copied().flatten()
    }

    /// Enters a staged object, unless it is there already.
    fn enter(&mut self, digest: &VerityDigest, staged: Staged) -> bool {
        let number = self.digests.insert(digest) as usize;
        if number >= self.staged.len() {
            self.staged.resize(number + 1, None);
        }
        match &mut self.staged[number] {
            Some(_) => false,
            place => {
                *place = Some(staged);
                self.count += 1;
                true
            }
        }
    }

    fn iter(&self) -> impl Iterator<Item = (VerityDigest, Staged)> {
        let staged = (0_u32..).zip(&self.staged);
        staged.filter_map(|(number, staged)| Some((self.digests.get(number), (*staged)?)))
    }
}

impl<'r> Batch<'r> {
    pub(crate) fn new(repository: &'r Repository) -> Result<Self> {
        let root = repository.path();
        let (private, _) = durable::make_dir(repository.dir(), PRIVATE_DIRECTORY, root)?;
        let private_path = root.join(PRIVATE_DIRECTORY);
        let (parent, _) = durable::make_dir(&private, STAGING, &private_path)?;
        let parent_path = private_path.join(STAGING);
        let (dir, name) = durable::make_random_dir(parent.as_fd(), &parent_path)?;
        durable::flock(&dir, FlockOperation::NonBlockingLockExclusive)
            .map_err(Error::io("lock", parent_path.join(&name)))?;
        Ok(Self {
            repository,
            parent,
            parent_path,
            dir,
            name,
            next_file: AtomicU64::new(1),
            try_verity: AtomicBool::new(true),
            distrusted: HashSet::new(),
            stop: None,
            enters_images: AtomicBool::new(false),
            state: Mutex::new(State::new(repository.algorithm())),
        })
    }

    pub(crate) fn stop_at(&mut self, stop: Arc<AtomicBool>) {
        self.stop = Some(stop);
    }

    /// Fails if somebody wants the batch to stop.
    fn check_stop(&self) -> Result<()> {
        match &self.stop {
            Some(stop) if stop.load(Ordering::Relaxed) => Err(Error::Interrupted),
            _ => Ok(()),
        }
    }

    /// Waits until no other batch is about to enter an image, and keeps others from it as long as this one
    /// lives: what it then reads of the repository's images is still so when it is committed.
    ///
    /// An exclusive `flock` on the directory of the staging directories. A thread that has two batches
    /// must not call it on the second before the first is committed or dropped.
    pub(crate) fn enter_images(&self) -> Result<()> {
        if self.enters_images.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut pause = Duration::from_millis(1);
        loop {
            self.check_stop()?;
            match durable::flock(&self.parent, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(50));
                }
                Err(error) => return Err(Error::io("lock", &self.parent_path)(error)),
            }
        }
        self.enters_images.store(true, Ordering::Release);
        Ok(())
    }

    /// Distrusts objects that turned out to be damaged: they count as missing until they are stored, and the
    /// commit replaces them, in one step for whoever opens them. Who has one open keeps what it is.
    #[must_use]
    pub fn distrust(mut self, objects: impl IntoIterator<Item = VerityDigest>) -> Self {
        self.distrusted.extend(objects);
        self
    }

    /// The repository it writes to.
    pub fn repository(&self) -> &'r Repository {
        self.repository
    }

    /// Whether the object is staged or in the repository.
    pub fn has(&self, digest: &VerityDigest) -> Result<bool> {
        Ok(self.object_size(digest)?.is_some())
    }

    /// The size in bytes of a staged object or one in the repository; `None` if it is neither.
    pub fn object_size(&self, digest: &VerityDigest) -> Result<Option<u64>> {
        let staged = self.state().objects.get(digest).map(|staged| staged.size);
        match staged {
            Some(size) => Ok(Some(size)),
            None if self.distrusted.contains(digest) => Ok(None),
            None => self.repository.object_size(digest),
        }
    }

    /// Stores `content`; returns its digest.
    pub fn store_bytes(&self, content: &[u8]) -> Result<(VerityDigest, Stored)> {
        let digest = verity_digest(self.repository.algorithm(), content);
        let size = content.len() as u64;
        if self.is_present(&digest, size)? {
            return Ok((digest, self.count(Stored::Present, size)));
        }
        let staged = StagedFile::create(self)?;
        staged.write(content)?;
        let stored = staged.finish(&digest, size, Stored::Written)?;
        Ok((digest, stored))
    }

    /// Stores the content of an open file, whose digest and size in bytes the caller has computed.
    ///
    /// It is cloned where the filesystem can, else copied if `policy` allows; its position doesn't
    /// matter and isn't changed. A copy is hashed once more, and a clone is compared with the kernel's
    /// digest where the filesystem has fs-verity: [`Error::ContentChanged`] if the file changed since
    /// the caller read it. Its size is compared in any case.
    pub fn store_file(
        &self,
        source: BorrowedFd<'_>,
        digest: &VerityDigest,
        size: u64,
        policy: CopyPolicy,
    ) -> Result<Stored> {
        self.repository.check_algorithm(digest)?;
        if self.is_present(digest, size)? {
            return Ok(self.count(Stored::Present, size));
        }
        let staged = StagedFile::create(self)?;
        let how = staged.clone_or_copy(source, digest, size, policy)?;
        staged.finish(digest, size, how)
    }

    /// Whether the kernel clones this file into the repository. Stores nothing.
    pub fn can_clone(&self, source: BorrowedFd<'_>) -> Result<bool> {
        staged::can_clone(&self.scratch_file()?, source)
            .map_err(Error::io("clone a file to", self.path()))
    }

    /// Begins to store an object whose digest is known only at its end.
    pub fn object_writer(&self) -> Result<ObjectWriter<'_, 'r>> {
        ObjectWriter::new(self)
    }

    /// Links `streams/<name>` to an object at commit, replacing what it pointed at.
    pub fn link_stream(&self, name: &StreamName, digest: &VerityDigest) {
        self.state().streams.insert(name.clone(), *digest);
    }

    /// Links `images/<digest>` at commit: says that the object is an image made here, fit to be mounted.
    pub fn link_image(&self, digest: &VerityDigest) {
        self.state().images.insert(*digest);
    }

    /// Points a ref at the stream or image of this name at commit, replacing what it pointed at. The
    /// target must be linked by this batch or exist.
    pub fn set_ref(&self, category: Category, path: &RefPath, target: &str) {
        self.state()
            .refs
            .insert((category, path.clone()), target.to_owned());
    }

    /// Says of a layer that this batch links whether its diff ID was compared.
    pub fn set_verification(&self, layer: &DiffId, verification: Verification) {
        self.state().verifications.insert(*layer, verification);
    }

    /// The stream that this batch will link under `name`, else the one that the repository has.
    pub fn stream(&self, name: &StreamName) -> Result<Option<VerityDigest>> {
        let linked = self.state().streams.get(name).copied();
        match linked {
            Some(digest) => Ok(Some(digest)),
            None => self.repository.stream(name),
        }
    }

    /// How many objects are staged or named by splitstreams of this batch. Each takes about 100 bytes of memory
    /// until the commit.
    pub fn known_objects(&self) -> usize {
        self.state().objects.digests.len()
    }

    /// What has been stored so far.
    pub fn stats(&self) -> CommitStats {
        self.state().stats
    }

    /// An unnamed file in the staging directory, for data that doesn't fit in memory.
    pub(crate) fn scratch_file(&self) -> Result<File> {
        let (file, number) = self.create_file()?;
        durable::unlink(&self.dir, number.to_string(), &self.path())?;
        Ok(file)
    }

    /// A number for the digest, the same each time; it need not be that of a staged object.
    pub(crate) fn number_of(&self, digest: &VerityDigest) -> u32 {
        self.state().objects.digests.insert(digest)
    }

    /// Whether the object needn't be stored: it is staged, or sound in the repository.
    fn is_present(&self, digest: &VerityDigest, size: u64) -> Result<bool> {
        if self.state().objects.get(digest).is_some() {
            return Ok(true);
        }
        if self.distrusted.contains(digest) {
            return Ok(false);
        }
        self.repository.has_sound_object(digest, size)
    }

    fn count(&self, stored: Stored, size: u64) -> Stored {
        self.state().stats.count(stored, size);
        stored
    }

    /// The path of the staging directory, for messages.
    fn path(&self) -> PathBuf {
        self.parent_path.join(&self.name)
    }

    fn create_file(&self) -> Result<(File, NonZeroU64)> {
        self.check_stop()?;
        let number = self.next_file.fetch_add(1, Ordering::Relaxed);
        let number = NonZeroU64::new(number).expect("fewer than 2^64 files");
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let name = number.to_string();
        let file = rustix::fs::openat(&self.dir, &name, flags, Mode::from_raw_mode(0o644))
            .map_err(Error::io("create", self.path().join(name)))?;
        Ok((File::from(file), number))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change of the state is one insertion: a thread that panicked left nothing half done.
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl ReadObjects for Batch<'_> {
    fn algorithm(&self) -> Algorithm {
        self.repository.algorithm()
    }

    fn open_object(&self, digest: &VerityDigest) -> Result<File> {
        self.check_stop()?;
        let staged = self.state().objects.get(digest);
        let Some(staged) = staged else {
            if self.distrusted.contains(digest) {
                return Err(Error::NoObject(*digest));
            }
            return self.repository.open_object(digest);
        };
        let name = staged.file.to_string();
        rustix::fs::openat(
            &self.dir,
            &name,
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map(File::from)
        .map_err(Error::io("open", self.path().join(name)))
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        // What can't be removed now is reclaimed by the next collection.
        let _ = remove_staging(self.parent.as_fd(), &self.name, &self.dir);
    }
}

/// Removes a staging directory, which is flat, and everything in it.
pub(crate) fn remove_staging(
    parent: BorrowedFd<'_>,
    name: &str,
    dir: &OwnedFd,
) -> Result<(), Errno> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    for name in names {
        rustix::fs::unlinkat(dir, name, AtFlags::empty())?;
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

impl CommitStats {
    fn count(&mut self, stored: Stored, size: u64) {
        let tally = match stored {
            Stored::Present => &mut self.present,
            Stored::Reflinked => &mut self.reflinked,
            Stored::Copied => &mut self.copied,
            Stored::Written => &mut self.written,
        };
        tally.objects += 1;
        tally.bytes += size;
    }

    /// Adds what another batch did.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in [
            (&mut self.present, other.present),
            (&mut self.reflinked, other.reflinked),
            (&mut self.copied, other.copied),
            (&mut self.written, other.written),
        ] {
            mine.objects += theirs.objects;
            mine.bytes += theirs.bytes;
        }
    }
}
