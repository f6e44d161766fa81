//! What the worker threads do: read a file's content once, hash it, and have it in the repository.
//!
//! A file of up to [`BUFFER`] bytes is one job, from opening it to cloning it. A larger one is cut into
//! pieces whose fs-verity leaves are hashed independently; whoever reads the layer in order puts them
//! together and stores the file ([`Source::store`]). Buffers come with the jobs and go back with the
//! answers, so their number bounds what is in flight.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use composefs_image::{Algorithm, VerityDigest, leaf_hashes, verity_digest};
use containers_storage::{ContentCrc, EntryName, OpenLayer};
use repository::{Batch, CopyPolicy, Stored};

use crate::cancel::Cancel;
use crate::error::FileError;
use crate::pool::Promise;

/// Size of a buffer in bytes: a multiple of fs-verity's block size, and small enough that a piece is
/// still in the processor's cache when the tar's digest comes to it.
pub(crate) const BUFFER: usize = 128 * 1024;

/// What all jobs of an import share.
pub(crate) struct Context<'a> {
    pub(crate) batch: &'a Batch<'a>,
    pub(crate) algorithm: Algorithm,
    pub(crate) copy: CopyPolicy,
    /// How many buffers each layer in work has.
    pub(crate) buffers: usize,
    pub(crate) budget: &'a Budget,
    pub(crate) stop: Stop<'a>,
}

/// How much may come out of blobs, in bytes. A few compressed bytes can make any number of others.
pub(crate) struct Budget {
    limit: u64,
    used: AtomicU64,
}

impl Budget {
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            limit,
            used: AtomicU64::new(0),
        }
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// Takes some of it; whether there was as much.
    pub(crate) fn take(&self, bytes: u64) -> bool {
        let used = self.used.fetch_add(bytes, Ordering::Relaxed);
        used.saturating_add(bytes) <= self.limit
    }
}

/// Whether to go on: until the import is cancelled or one of its layers fails.
pub(crate) struct Stop<'a> {
    cancel: &'a Cancel,
    failed: AtomicBool,
}

impl<'a> Stop<'a> {
    pub(crate) fn new(cancel: &'a Cancel) -> Self {
        Self {
            cancel,
            failed: AtomicBool::new(false),
        }
    }

    pub(crate) fn fail(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.failed.load(Ordering::Relaxed) || self.cancel.is_cancelled()
    }
}

/// Why a job has no result.
#[derive(Debug)]
pub(crate) enum JobError {
    /// The import stops for a reason that is not this job's.
    Stopped,
    File(FileError),
}

impl<E: Into<FileError>> From<E> for JobError {
    fn from(error: E) -> Self {
        Self::File(error.into())
    }
}

/// A buffer and how many of its bytes are in use.
pub(crate) struct Buffer {
    data: Box<[u8]>,
    len: usize,
}

impl Buffer {
    pub(crate) fn new() -> Self {
        Self {
            data: vec![0; BUFFER].into(),
            len: 0,
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.data[..self.len]
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len == self.data.len()
    }

    /// Adds as many of the bytes as there is room for; how many.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> usize {
        let room = &mut self.data[self.len..];
        let taken = bytes.len().min(room.len());
        room[..taken].copy_from_slice(&bytes[..taken]);
        self.len += taken;
        taken
    }

    pub(crate) fn clear(mut self) -> Self {
        self.len = 0;
        self
    }

    fn fill(&mut self, file: &File, at: u64, len: usize) -> Result<(), FileError> {
        let target = self.data.get_mut(..len).ok_or_else(|| {
            FileError::Read(io::Error::other("a piece is larger than its buffer"))
        })?;
        file.read_exact_at(target, at).map_err(FileError::Read)?;
        self.len = len;
        Ok(())
    }
}

/// Something for a worker to do.
pub(crate) enum Job {
    File(FileJob),
    Piece(PieceJob),
    Bytes(BytesJob),
    Leaves(LeavesJob),
}

/// Content in memory that becomes an object.
pub(crate) struct BytesJob {
    pub(crate) buffer: Buffer,
    pub(crate) promise: Promise<Result<FileDone, JobError>>,
}

/// A piece of a larger object, in memory.
pub(crate) struct LeavesJob {
    pub(crate) buffer: Buffer,
    pub(crate) promise: Promise<Result<PieceDone, JobError>>,
}

/// A file of at most [`BUFFER`] bytes.
pub(crate) struct FileJob {
    pub(crate) layer: Arc<OpenLayer>,
    pub(crate) name: EntryName,
    pub(crate) size: u64,
    pub(crate) crc64: [u8; 8],
    pub(crate) content: Content,
    pub(crate) buffer: Buffer,
    pub(crate) promise: Promise<Result<FileDone, JobError>>,
}

/// What is to become of a file's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// It stays in the splitstream.
    Inline,
    /// It becomes an object.
    Object,
}

/// A file that was read and verified against its CRC.
pub(crate) struct FileDone {
    pub(crate) buffer: Buffer,
    pub(crate) object: Option<(VerityDigest, Stored)>,
}

/// A piece of a larger file.
pub(crate) struct PieceJob {
    pub(crate) source: Arc<Source>,
    pub(crate) at: u64,
    pub(crate) len: usize,
    pub(crate) buffer: Buffer,
    pub(crate) promise: Promise<Result<PieceDone, JobError>>,
}

/// A piece that was read and the hashes of its blocks.
pub(crate) struct PieceDone {
    pub(crate) buffer: Buffer,
    pub(crate) leaves: Vec<u8>,
}

impl Job {
    pub(crate) fn run(self, context: &Context<'_>) {
        match self {
            Self::File(mut job) => {
                let result = job.layer_file(context);
                let buffer = job.buffer;
                job.promise
                    .keep(result.map(|object| FileDone { buffer, object }));
            }
            Self::Piece(mut job) => {
                let result = job.read(context);
                let buffer = job.buffer;
                job.promise
                    .keep(result.map(|leaves| PieceDone { buffer, leaves }));
            }
            Self::Bytes(BytesJob { buffer, promise }) => {
                let result = store(&buffer, context);
                promise.keep(result.map(|object| FileDone { buffer, object }));
            }
            Self::Leaves(LeavesJob { buffer, promise }) => {
                let result = leaves(&buffer, context);
                promise.keep(result.map(|leaves| PieceDone { buffer, leaves }));
            }
        }
    }
}

fn store(
    buffer: &Buffer,
    context: &Context<'_>,
) -> Result<Option<(VerityDigest, Stored)>, JobError> {
    if context.stop.is_set() {
        return Err(JobError::Stopped);
    }
    Ok(Some(context.batch.store_bytes(buffer.bytes())?))
}

fn leaves(buffer: &Buffer, context: &Context<'_>) -> Result<Vec<u8>, JobError> {
    if context.stop.is_set() {
        return Err(JobError::Stopped);
    }
    let mut leaves = Vec::new();
    leaf_hashes(context.algorithm, buffer.bytes(), &mut leaves);
    Ok(leaves)
}

impl FileJob {
    fn layer_file(
        &mut self,
        context: &Context<'_>,
    ) -> Result<Option<(VerityDigest, Stored)>, JobError> {
        if context.stop.is_set() {
            return Err(JobError::Stopped);
        }
        let source = Source::open(&self.layer, &self.name, self.size)?;
        let len = usize::try_from(self.size).unwrap_or(usize::MAX);
        self.buffer.fill(&source.file, 0, len)?;
        let mut crc = ContentCrc::new();
        crc.update(self.buffer.bytes());
        if crc.finish() != self.crc64 {
            return Err(FileError::Content.into());
        }
        match self.content {
            Content::Inline => Ok(None),
            Content::Object => {
                let digest = verity_digest(context.algorithm, self.buffer.bytes());
                let stored = source.store(context, &digest)?;
                Ok(Some((digest, stored)))
            }
        }
    }
}

impl PieceJob {
    fn read(&mut self, context: &Context<'_>) -> Result<Vec<u8>, JobError> {
        if context.stop.is_set() {
            return Err(JobError::Stopped);
        }
        self.buffer.fill(&self.source.file, self.at, self.len)?;
        leaves(&self.buffer, context)
    }
}

/// An open file of the layer, and what it was when it was opened.
pub(crate) struct Source {
    file: File,
    size: u64,
    stamp: Stamp,
}

impl Source {
    /// Opens the file and makes sure that it has the size that tar-split says.
    pub(crate) fn open(layer: &OpenLayer, name: &EntryName, size: u64) -> Result<Self, FileError> {
        Self::of(layer.open_file(name).map_err(FileError::Open)?, size)
    }

    fn of(file: File, size: u64) -> Result<Self, FileError> {
        let stamp = Stamp::of(&file)?;
        if stamp.size != size {
            return Err(FileError::Size {
                expected: size,
                actual: stamp.size,
            });
        }
        Ok(Self { file, size, stamp })
    }

    /// Has the file's content in the repository as the object `digest`, cloned if it is missing.
    ///
    /// What is cloned is what was hashed: had the file been changed in between, its times would show
    /// it afterwards. Somebody who writes through a mapping and sets the clock back could hide that; in
    /// a repository with fs-verity the kernel's own measurement would then disagree.
    pub(crate) fn store(
        &self,
        context: &Context<'_>,
        digest: &VerityDigest,
    ) -> Result<Stored, FileError> {
        let stored =
            context
                .batch
                .store_file(self.file.as_fd(), digest, self.size, context.copy)?;
        if Stamp::of(&self.file)? != self.stamp {
            return Err(FileError::ChangedMeanwhile);
        }
        Ok(stored)
    }
}

/// What changes when a file is written to or replaced.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    size: u64,
    modified: (i64, u64),
    changed: (i64, u64),
}

impl Stamp {
    fn of(file: &File) -> Result<Self, FileError> {
        let stat = rustix::fs::fstat(file).map_err(|e| FileError::Read(e.into()))?;
        Ok(Self {
            inode: (stat.st_dev, stat.st_ino),
            size: stat.st_size as u64,
            modified: (stat.st_mtime, stat.st_mtime_nsec),
            changed: (stat.st_ctime, stat.st_ctime_nsec),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use repository::{InitOptions, Repository, Security};

    use super::*;

    #[test]
    fn a_file_that_is_touched_between_hashing_and_cloning_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let options = InitOptions {
            security: Security::Insecure,
            ..InitOptions::default()
        };
        Repository::init(dir.path().join("repo"), &options).unwrap();
        let repository = Repository::open(dir.path().join("repo")).unwrap();
        let cancel = Cancel::new();
        let context = Context {
            batch: &repository.batch().unwrap(),
            algorithm: repository.algorithm(),
            copy: CopyPolicy::Allow,
            buffers: 1,
            budget: &Budget::new(0),
            stop: Stop::new(&cancel),
        };
        let path = dir.path().join("file");
        std::fs::write(&path, [1; 100]).unwrap();
        let digest = verity_digest(context.algorithm, &[1; 100]);

        let source = Source::of(File::open(&path).unwrap(), 100).unwrap();
        source.store(&context, &digest).unwrap();
        let hour_ago = SystemTime::now() - Duration::from_secs(3600);
        File::options()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_modified(hour_ago))
            .unwrap();

        let error = source.store(&context, &digest).unwrap_err();
        assert!(matches!(error, FileError::ChangedMeanwhile), "{error:?}");
    }
}
