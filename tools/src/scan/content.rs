//! Reading the content of files on several threads.
//!
//! The walker sends files, the readers answer with a digest or the content of a small file. Both queues
//! are bounded by what the walker lets in, so that few descriptors are open at a time.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use composefs_image::{Algorithm, InodeId, VerityDigest, VerityHasher};

use super::inode::Inode;
use super::{INLINE_MAX, ScanError};
use crate::store::Staging;

/// A regular file with content.
pub(super) struct Work {
    pub(super) id: InodeId,
    pub(super) inode: Inode,
    pub(super) path: PathBuf,
}

/// What became of one [`Work`].
pub(super) type Finding = Result<(InodeId, ReadFile), ScanError>;

pub(super) enum ReadFile {
    Inline(Vec<u8>),
    External { size: u64, digest: VerityDigest },
}

/// Files that wait for a reader: each has a descriptor.
const QUEUE: usize = 64;
const BUFFER: usize = 256 * 1024;
/// More threads do not read faster, but need memory.
const MAX_THREADS: usize = 256;

/// Calls `walk` with the two ends of the readers' queues. What it returns is returned when all readers
/// have ended, which they do soon after it dropped the sender, at once when it failed.
pub(super) fn with_readers<T>(
    threads: NonZeroUsize,
    staging: Option<&Staging>,
    walk: impl FnOnce(SyncSender<Work>, Receiver<Finding>) -> Result<T, ScanError>,
) -> Result<T, ScanError> {
    let (send_work, work) = sync_channel(QUEUE);
    let (send_finding, findings) = channel();
    let work = Mutex::new(work);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..threads.get().min(MAX_THREADS) {
            let reader = Reader {
                work: &work,
                findings: send_finding.clone(),
                staging,
                stop: &stop,
            };
            scope.spawn(move || reader.run());
        }
        drop(send_finding);
        let result = walk(send_work, findings);
        stop.store(true, Ordering::Relaxed);
        result
    })
}

struct Reader<'a> {
    work: &'a Mutex<Receiver<Work>>,
    findings: Sender<Finding>,
    staging: Option<&'a Staging<'a>>,
    stop: &'a AtomicBool,
}

impl Reader<'_> {
    fn run(self) {
        let mut buffer = vec![0; BUFFER];
        while let Some(work) = self.next() {
            let Some(finding) = self.read(&work, &mut buffer).transpose() else {
                return;
            };
            if self
                .findings
                .send(finding.map(|file| (work.id, file)))
                .is_err()
            {
                return;
            }
        }
    }

    fn next(&self) -> Option<Work> {
        if self.stop.load(Ordering::Relaxed) {
            return None;
        }
        let work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        work.recv().ok()
    }

    /// `None` when nobody wants to know any more.
    fn read(&self, work: &Work, buffer: &mut [u8]) -> Result<Option<ReadFile>, ScanError> {
        let Work { inode, path, .. } = work;
        let size = inode.size();
        let mut file = inode.open_file(path)?;
        let read = if size <= INLINE_MAX {
            let mut content = Vec::with_capacity(INLINE_MAX as usize + 1);
            (&file)
                .take(INLINE_MAX + 1)
                .read_to_end(&mut content)
                .map_err(|error| reading(path, error))?;
            if content.len() as u64 != size {
                return Err(ScanError::Changed(path.clone()));
            }
            ReadFile::Inline(content)
        } else {
            let Some(digest) = self.digest(&mut file, size, path, buffer)? else {
                return Ok(None);
            };
            if let Some(staging) = self.staging {
                staging
                    .add(&file, &digest, size)
                    .map_err(|error| ScanError::Store {
                        path: path.clone(),
                        error,
                    })?;
            }
            ReadFile::External { size, digest }
        };
        // Behind everything that read the file, the staged copy included.
        if !inode.is_unchanged(path)? {
            return Err(ScanError::Changed(path.clone()));
        }
        Ok(Some(read))
    }

    fn digest(
        &self,
        file: &mut File,
        size: u64,
        path: &Path,
        buffer: &mut [u8],
    ) -> Result<Option<VerityDigest>, ScanError> {
        let mut hasher = VerityHasher::new(Algorithm::Sha256);
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            match file.read(buffer) {
                Ok(0) => break,
                // More than there was: do not follow a file that grows for ever.
                Ok(_) if hasher.size() > size => break,
                Ok(length) => hasher.update(buffer.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(reading(path, error)),
            }
        }
        if hasher.size() != size {
            return Err(ScanError::Changed(path.to_owned()));
        }
        Ok(Some(hasher.finish()))
    }
}

fn reading(path: &Path, error: std::io::Error) -> ScanError {
    ScanError::Io {
        path: path.to_owned(),
        action: "reading",
        error,
    }
}
