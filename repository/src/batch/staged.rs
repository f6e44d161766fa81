//! One file on its way into a batch: written, cloned or copied, verified, and then entered.

use std::fs::File;
use std::io::{self, Write};
use std::num::NonZeroU64;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use composefs_image::{VerityDigest, VerityHasher};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{Batch, CopyPolicy, Staged, Stored};
use crate::durable;
use crate::error::{Actual, Error, Result};
use crate::repo::enable_patiently;
use crate::sys::{self, Enabled, Measured};

/// How much is copied or collected at a time, in bytes.
const CHUNK: usize = 128 * 1024;

/// A file in the staging directory that isn't part of the batch yet; dropping it removes it.
#[derive(Debug)]
pub(super) struct StagedFile<'b, 'r> {
    batch: &'b Batch<'r>,
    number: NonZeroU64,
    /// `None` once the file is complete.
    file: Option<File>,
    keep: bool,
}

impl<'b, 'r> StagedFile<'b, 'r> {
    pub(super) fn create(batch: &'b Batch<'r>) -> Result<Self> {
        let (file, number) = batch.create_file()?;
        Ok(Self {
            batch,
            number,
            file: Some(file),
            keep: false,
        })
    }

    pub(super) fn write(&self, content: &[u8]) -> Result<()> {
        self.file()
            .write_all(content)
            .map_err(Error::io("write", self.path()))
    }

    pub(super) fn clone_or_copy(
        &self,
        source: BorrowedFd<'_>,
        digest: &VerityDigest,
        size: u64,
        policy: CopyPolicy,
    ) -> Result<Stored> {
        let error = match rustix::fs::ioctl_ficlone(self.file(), source) {
            Ok(()) => {
                let actual = self
                    .file()
                    .metadata()
                    .map_err(Error::io("examine", self.path()))?
                    .len();
                if actual != size {
                    return Err(changed(digest, Actual::Size(actual)));
                }
                return Ok(Stored::Reflinked);
            }
            Err(error) if is_refusal(error) => error,
            Err(error) => return Err(Error::io("clone a file to", self.path())(error)),
        };
        match policy {
            CopyPolicy::Allow => self.copy(source, digest, size),
            CopyPolicy::Refuse => Err(Error::CopyRefused {
                digest: *digest,
                source: error.into(),
            }),
        }
    }

    /// Copies and hashes; chunks of zeros become holes.
    fn copy(&self, source: BorrowedFd<'_>, digest: &VerityDigest, size: u64) -> Result<Stored> {
        let mut hasher = VerityHasher::new(digest.algorithm());
        let mut buffer = vec![0; CHUNK.min(usize::try_from(size).unwrap_or(CHUNK).max(1))];
        let mut offset = 0_u64;
        loop {
            let count = match rustix::io::pread(source, &mut buffer, offset) {
                Ok(0) => break,
                Ok(count) => count,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(Error::io("read the source of", self.path())(error)),
            };
            let chunk = buffer.get(..count).unwrap_or_default();
            if offset + count as u64 > size {
                return Err(changed(digest, Actual::Size(offset + count as u64)));
            }
            hasher.update(chunk);
            if chunk.iter().any(|byte| *byte != 0) {
                self.file()
                    .write_all_at(chunk, offset)
                    .map_err(Error::io("write", self.path()))?;
            }
            offset += count as u64;
        }
        if offset != size {
            return Err(changed(digest, Actual::Size(offset)));
        }
        let actual = hasher.finish();
        if actual != *digest {
            return Err(changed(digest, Actual::Digest(actual)));
        }
        self.file()
            .set_len(size)
            .map_err(Error::io("write", self.path()))?;
        Ok(Stored::Copied)
    }

    /// Verifies the complete file as far as the kernel can, and enters it into the batch. If another
    /// thread entered the same object meanwhile, this file is dropped.
    pub(super) fn finish(
        mut self,
        digest: &VerityDigest,
        size: u64,
        how: Stored,
    ) -> Result<Stored> {
        self.file = None;
        self.verify(digest)?;
        let mut state = self.batch.state();
        let staged = Staged {
            file: self.number,
            size,
        };
        self.keep = state.objects.enter(digest, staged);
        let stored = if self.keep { how } else { Stored::Present };
        state.stats.count(stored, size);
        Ok(stored)
    }

    /// Enables fs-verity where there is any, and compares the digest that the kernel computes.
    fn verify(&self, digest: &VerityDigest) -> Result<()> {
        let repository = self.batch.repository;
        if !self.batch.try_verity.load(Ordering::Relaxed) {
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let name = self.number.to_string();
        let file = rustix::fs::openat(&self.batch.dir, name, flags, Mode::empty())
            .map_err(Error::io("open", self.path()))?;
        let enabled = enable_patiently(&file, digest.algorithm())
            .map_err(Error::io("enable fs-verity on", self.path()))?;
        match enabled {
            Enabled::Yes => {}
            Enabled::Unsupported if repository.is_secure() => {
                return Err(Error::NoVerity(repository.path().to_owned()));
            }
            Enabled::Unsupported => {
                self.batch.try_verity.store(false, Ordering::Relaxed);
                return Ok(());
            }
            Enabled::Busy => {
                return Err(Error::io("enable fs-verity on", self.path())(Errno::TXTBSY));
            }
        }
        match sys::measure_verity(&file).map_err(Error::io("measure", self.path()))? {
            Measured::Digest(measured) if measured == *digest => Ok(()),
            Measured::Digest(measured) => Err(changed(digest, Actual::Digest(measured))),
            Measured::Disabled | Measured::Unsupported => {
                Err(Error::NoVerity(repository.path().to_owned()))
            }
        }
    }

    /// Keeps a complete file that is no object; its number is its name.
    pub(super) fn keep(mut self) -> NonZeroU64 {
        self.keep = true;
        self.number
    }

    fn file(&self) -> &File {
        self.file
            .as_ref()
            .expect("only finish() takes the file, and it consumes the value")
    }

    fn path(&self) -> PathBuf {
        self.batch.path().join(self.number.to_string())
    }
}

impl Drop for StagedFile<'_, '_> {
    fn drop(&mut self) {
        if !self.keep {
            // What stays goes with the whole directory.
            let _ = durable::unlink(
                &self.batch.dir,
                self.number.to_string(),
                &self.batch.parent_path,
            );
        }
    }
}

/// Clones a file if the kernel can.
pub(super) fn can_clone(to: &File, source: BorrowedFd<'_>) -> Result<bool, Errno> {
    match rustix::fs::ioctl_ficlone(to, source) {
        Ok(()) => Ok(true),
        Err(error) if is_refusal(error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether an error of FICLONE means "not here" or "not this file", so that copying may succeed.
///
/// Another filesystem (EXDEV), a filesystem or kernel without clones (EOPNOTSUPP, ENOTTY), files whose
/// settings do not fit together, such as btrfs's checksums (EINVAL), a swap file (ETXTBSY), and a file or
/// policy that forbids it (EPERM). Anything else, such as ENOSPC or EIO, is trouble that a copy would run
/// into again or, worse, hide.
fn is_refusal(error: Errno) -> bool {
    matches!(
        error,
        Errno::XDEV | Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL | Errno::TXTBSY | Errno::PERM
    )
}

fn changed(expected: &VerityDigest, actual: Actual) -> Error {
    Error::ContentChanged {
        expected: *expected,
        actual,
    }
}

/// An object that is being written; its digest is known at the end. Dropping it forgets it.
pub struct ObjectWriter<'b, 'r> {
    staged: StagedFile<'b, 'r>,
    hasher: VerityHasher,
    buffer: Vec<u8>,
    size: u64,
}

impl<'b, 'r> ObjectWriter<'b, 'r> {
    pub(super) fn new(batch: &'b Batch<'r>) -> Result<Self> {
        Ok(Self {
            staged: StagedFile::create(batch)?,
            hasher: VerityHasher::new(batch.repository.algorithm()),
            buffer: Vec::new(),
            size: 0,
        })
    }

    /// Writes bytes whose blocks somebody else hashed with [`composefs_image::leaf_hashes`]. All writes
    /// of the object are of this kind then, and all but the last of whole blocks of 4096 bytes.
    pub fn write_hashed(&mut self, data: &[u8], leaves: &[u8]) -> Result<()> {
        self.hasher.push_leaves(leaves, data.len() as u64);
        self.size += data.len() as u64;
        self.staged
            .file()
            .write_all(data)
            .map_err(Error::io("write", self.staged.path()))
    }

    /// Enters the object into the batch; returns its digest and size in bytes.
    pub fn finish(mut self) -> Result<(VerityDigest, u64, Stored)> {
        self.flush()
            .map_err(Error::io("write", self.staged.path()))?;
        let digest = self.hasher.finish();
        if self.staged.batch.is_present(&digest, self.size)? {
            let stored = self.staged.batch.count(Stored::Present, self.size);
            return Ok((digest, self.size, stored));
        }
        let stored = self.staged.finish(&digest, self.size, Stored::Written)?;
        Ok((digest, self.size, stored))
    }
}

impl Write for ObjectWriter<'_, '_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.hasher.update(data);
        self.size += data.len() as u64;
        if self.buffer.len() + data.len() > CHUNK {
            self.flush()?;
        }
        if data.len() >= CHUNK {
            self.staged.file().write_all(data)?;
        } else {
            self.buffer.extend_from_slice(data);
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.staged.file().write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_copied_only_where_the_kernel_refuses_to_clone_them() {
        let refusals: Vec<i32> = (1..=133)
            .filter(|code| is_refusal(Errno::from_raw_os_error(*code)))
            .collect();
        let expected = [
            libc::EPERM,
            libc::EXDEV,
            libc::EINVAL,
            libc::ENOTTY,
            libc::ETXTBSY,
            libc::EOPNOTSUPP,
        ];
        assert_eq!(refusals, expected);
        for trouble in [
            libc::ENOSPC,
            libc::EIO,
            libc::EDQUOT,
            libc::EROFS,
            libc::EBADF,
        ] {
            assert!(!is_refusal(Errno::from_raw_os_error(trouble)));
        }
    }
}
