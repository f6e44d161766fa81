//! What the worker threads do: read a file's content once, hash it, and have it in the repository.
//!
//! Files that fit into one buffer together are one job, from opening them to cloning them: their blocks
//! are hashed side by side. A file that needs more than a buffer is cut into pieces whose fs-verity leaves are hashed independently; whoever reads the layer in order puts them
//! together and stores the file ([`Source::store`]). Buffers come with the jobs and go back with the
//! answers, so their number bounds what is in flight.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use composefs_image::{Algorithm, VerityDigest, leaf_hashes, verity_digests};
use containers_storage::{ContentCrc, EntryName, LayerKind, OpenLayer};
use repository::{Batch, CopyPolicy, Stored, sys};

use crate::cancel::Cancel;
use crate::error::FileError;
use crate::image::DiffIdCheck;
use crate::pool::Promise;

/// Size of a buffer in bytes: a multiple of fs-verity's block size, and small enough that a piece is
/// still in the processor's cache when the tar's digest comes to it.
pub(crate) const BUFFER: usize = 128 * 1024;

/// What all jobs of an import share.
pub(crate) struct Context<'a> {
    pub(crate) batch: &'a Batch<'a>,
    pub(crate) algorithm: Algorithm,
    pub(crate) copy: CopyPolicy,
    pub(crate) diff_ids: DiffIdCheck,
    /// How many buffers each layer in work has.
    pub(crate) buffers: usize,
    pub(crate) budget: &'a Budget,
    pub(crate) stop: Stop<'a>,
}

impl Context<'_> {
    /// Whether somebody wants to see the content of files of containers-storage whose objects are known: it makes
    /// up the diff ID.
    pub(crate) fn needs_content(&self) -> bool {
        self.diff_ids == DiffIdCheck::Verify
    }
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
        self.len = 0;
        self.read_at(file, at, len)?;
        Ok(())
    }

    /// Adds the first bytes of a file, and gives them.
    fn read(&mut self, file: &File, len: usize) -> Result<&[u8], FileError> {
        self.read_at(file, 0, len)
    }

    fn read_at(&mut self, file: &File, at: u64, len: usize) -> Result<&[u8], FileError> {
        let target = self.data.get_mut(self.len..self.len + len).ok_or_else(|| {
            FileError::Read(io::Error::other("a piece is larger than its buffer"))
        })?;
        file.read_exact_at(target, at).map_err(FileError::Read)?;
        self.len += len;
        Ok(target)
    }
}

/// Something for a worker to do.
pub(crate) enum Job {
    Files(FilesJob),
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

/// A layer of containers-storage, whose files are read.
pub(crate) struct Files {
    pub(crate) open: OpenLayer,
    /// How the kernel is asked for digests, where it may know some.
    pub(crate) measure: Option<Measure>,
}

/// What [`sys::object_digest`] is.
pub(crate) type Measure = fn(BorrowedFd<'_>, Algorithm) -> io::Result<Option<VerityDigest>>;

impl Files {
    /// Files that are composefs objects have fs-verity where their filesystem has it.
    pub(crate) fn new(open: OpenLayer) -> Self {
        let measure = match open.kind() {
            LayerKind::Composefs => Some(sys::object_digest as Measure),
            _ => None,
        };
        Self { open, measure }
    }

    /// The digest of the object that a file is to become, if the kernel knows it.
    pub(crate) fn measured(
        &self,
        source: &Source,
        context: &Context<'_>,
    ) -> Result<Option<VerityDigest>, FileError> {
        match self.measure {
            Some(measure) => {
                measure(source.file.as_fd(), context.algorithm).map_err(FileError::Read)
            }
            None => Ok(None),
        }
    }
}

/// The most files of one job: as many as the vectors of any processor have lanes, and their open files.
pub(crate) const FILES: usize = 32;

/// Files that fit into a buffer together.
pub(crate) struct FilesJob {
    pub(crate) layer: Arc<Files>,
    pub(crate) files: Vec<SmallFile>,
    pub(crate) buffer: Buffer,
    pub(crate) promise: Promise<Result<FilesDone, FilesError>>,
}

/// One of them.
pub(crate) struct SmallFile {
    pub(crate) name: EntryName,
    pub(crate) size: usize,
    pub(crate) crc64: [u8; 8],
    pub(crate) content: Content,
}

/// What is to become of a file's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// It stays in the splitstream.
    Inline,
    /// It becomes an object.
    Object,
}

/// An object that content has become.
pub(crate) struct Object {
    pub(crate) digest: VerityDigest,
    pub(crate) stored: Stored,
    /// Of the content, as tar-split has it.
    pub(crate) crc64: [u8; 8],
}

/// Files whose content is in the buffer, one behind the other, verified against their CRCs.
pub(crate) struct FilesDone {
    pub(crate) buffer: Buffer,
    pub(crate) files: Vec<SmallDone>,
}

/// One of them.
pub(crate) struct SmallDone {
    pub(crate) size: usize,
    /// How many bytes of it are in the buffer: all, or none where nobody has to see them.
    pub(crate) read: usize,
    pub(crate) object: Option<Object>,
}

/// The file that was at fault.
pub(crate) struct FilesError {
    pub(crate) name: EntryName,
    pub(crate) error: JobError,
}

/// Content that has become an object.
pub(crate) struct FileDone {
    pub(crate) buffer: Buffer,
    pub(crate) object: Object,
}

/// A piece of a larger file.
pub(crate) struct PieceJob {
    pub(crate) source: Arc<Source>,
    pub(crate) at: u64,
    pub(crate) len: usize,
    pub(crate) hashing: Hashing,
    pub(crate) buffer: Buffer,
    pub(crate) promise: Promise<Result<PieceDone, JobError>>,
}

/// Whether the blocks of a piece are hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hashing {
    Leaves,
    /// The digest is known, or nobody wants it.
    Nothing,
}

/// A piece that was read and the hashes of its blocks, if they were wanted.
pub(crate) struct PieceDone {
    pub(crate) buffer: Buffer,
    pub(crate) leaves: Vec<u8>,
}

impl Job {
    pub(crate) fn run(self, context: &Context<'_>) {
        match self {
            Self::Files(job) => {
                let FilesJob {
                    layer,
                    files,
                    mut buffer,
                    promise,
                } = job;
                let result = read_files(&layer, files, &mut buffer, context);
                promise.keep(result.map(|files| FilesDone { buffer, files }));
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

fn store(buffer: &Buffer, context: &Context<'_>) -> Result<Object, JobError> {
    if context.stop.is_set() {
        return Err(JobError::Stopped);
    }
    let (digest, stored) = context.batch.store_bytes(buffer.bytes())?;
    Ok(Object {
        digest,
        stored,
        crc64: crc64(buffer.bytes()),
    })
}

fn leaves(buffer: &Buffer, context: &Context<'_>) -> Result<Vec<u8>, JobError> {
    if context.stop.is_set() {
        return Err(JobError::Stopped);
    }
    let mut leaves = Vec::new();
    leaf_hashes(context.algorithm, buffer.bytes(), &mut leaves);
    Ok(leaves)
}

fn crc64(content: &[u8]) -> [u8; 8] {
    let mut crc = ContentCrc::new();
    crc.update(content);
    crc.finish()
}

/// Reads files into the buffer, then hashes all that become objects, then stores these.
fn read_files(
    layer: &Files,
    files: Vec<SmallFile>,
    buffer: &mut Buffer,
    context: &Context<'_>,
) -> Result<Vec<SmallDone>, FilesError> {
    let mut opened = Vec::with_capacity(files.len());
    for file in &files {
        match file.read(layer, buffer, context) {
            Ok(file) => opened.push(file),
            Err(error) => {
                let name = file.name.clone();
                return Err(FilesError { name, error });
            }
        }
    }
    let mut rest = buffer.bytes();
    let mut contents = Vec::with_capacity(files.len());
    for (file, opened) in files.iter().zip(&opened) {
        let (content, next) = rest.split_at(opened.read);
        if file.content == Content::Object && opened.measured.is_none() {
            contents.push(content);
        }
        rest = next;
    }
    let mut digests = verity_digests(context.algorithm, &contents).into_iter();
    let mut done = Vec::with_capacity(files.len());
    for (file, opened) in files.into_iter().zip(opened) {
        let object = match file.content {
            Content::Inline => None,
            Content::Object => opened.measured.or_else(|| digests.next()),
        };
        let object = match object.map(|digest| (digest, opened.source.store(context, &digest))) {
            None => None,
            Some((digest, Ok(stored))) => Some(Object {
                digest,
                stored,
                crc64: file.crc64,
            }),
            Some((_, Err(error))) => {
                let error = JobError::File(error);
                let name = file.name;
                return Err(FilesError { name, error });
            }
        };
        done.push(SmallDone {
            size: file.size,
            read: opened.read,
            object,
        });
    }
    Ok(done)
}

/// A small file that is open, and read if it had to be.
struct Opened {
    source: Source,
    measured: Option<VerityDigest>,
    read: usize,
}

impl SmallFile {
    fn read(
        &self,
        layer: &Files,
        buffer: &mut Buffer,
        context: &Context<'_>,
    ) -> Result<Opened, JobError> {
        if context.stop.is_set() {
            return Err(JobError::Stopped);
        }
        let source = Source::open(&layer.open, &self.name, self.size as u64)?;
        let measured = match self.content {
            Content::Object => layer.measured(&source, context)?,
            Content::Inline => None,
        };
        if measured.is_some() && !context.needs_content() {
            return Ok(Opened {
                source,
                measured,
                read: 0,
            });
        }
        let content = buffer.read(&source.file, self.size)?;
        if crc64(content) != self.crc64 {
            return Err(FileError::Content.into());
        }
        Ok(Opened {
            source,
            measured,
            read: self.size,
        })
    }
}

impl PieceJob {
    fn read(&mut self, context: &Context<'_>) -> Result<Vec<u8>, JobError> {
        if context.stop.is_set() {
            return Err(JobError::Stopped);
        }
        self.buffer.fill(&self.source.file, self.at, self.len)?;
        match self.hashing {
            Hashing::Leaves => leaves(&self.buffer, context),
            Hashing::Nothing => Ok(Vec::new()),
        }
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

    use composefs_image::verity_digest;
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
            diff_ids: DiffIdCheck::Verify,
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
