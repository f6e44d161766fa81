//! Small steps on directories that the rest of the crate builds durable operations from.
//!
//! All are relative to an open directory, so a path that is moved meanwhile doesn't matter; the paths
//! passed along serve error messages only.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// Opens the directory `name` below `parent`; `None` if there is none.
pub(crate) fn open_dir(
    parent: impl AsFd,
    name: impl AsRef<Path>,
    parent_path: &Path,
) -> Result<Option<OwnedFd>> {
    let name = name.as_ref();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(Error::io("open directory", parent_path.join(name))(error)),
    }
}

/// Whether [`make_dir`] found the directory or made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Made {
    New,
    Existing,
}

/// Makes the directory `name` below `parent` unless it exists, and opens it.
pub(crate) fn make_dir(
    parent: impl AsFd,
    name: impl AsRef<Path>,
    parent_path: &Path,
) -> Result<(OwnedFd, Made)> {
    let name = name.as_ref();
    let path = parent_path.join(name);
    let made = match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) => Made::New,
        Err(Errno::EXIST) => Made::Existing,
        Err(error) => return Err(Error::io("create directory", path)(error)),
    };
    let dir = open_dir(parent, name, parent_path)?
        .ok_or_else(|| Error::io("open directory", &path)(Errno::NOENT))?;
    Ok((dir, made))
}

/// Writes everything on the filesystem of `dir` to the disk.
pub(crate) fn sync_filesystem(dir: impl AsFd, path: &Path) -> Result<()> {
    rustix::fs::syncfs(dir).map_err(Error::io("sync the filesystem of", path))
}

/// Writes the names in `dir` to the disk.
pub(crate) fn sync_dir(dir: impl AsFd, path: &Path) -> Result<()> {
    rustix::fs::fsync(dir).map_err(Error::io("sync", path))
}

/// Takes or changes a `flock`; waiting is repeated when a signal interrupts it.
pub(crate) fn flock(file: impl AsFd, operation: FlockOperation) -> Result<(), Errno> {
    loop {
        match rustix::fs::flock(&file, operation) {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// Removes a name that isn't a directory; returns whether there was one.
pub(crate) fn unlink(dir: impl AsFd, name: impl AsRef<Path>, dir_path: &Path) -> Result<bool> {
    match rustix::fs::unlinkat(dir, name.as_ref(), AtFlags::empty()) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(Error::io("remove", dir_path.join(name.as_ref()))(error)),
    }
}

/// A name that no other process is likely to choose.
pub(crate) fn random_name() -> String {
    let random = RandomState::new().build_hasher().finish();
    format!("{random:016x}")
}

/// Makes a new directory with a random name and opens it.
pub(crate) fn make_random_dir(
    parent: BorrowedFd<'_>,
    parent_path: &Path,
) -> Result<(OwnedFd, String)> {
    loop {
        let name = random_name();
        if let (dir, Made::New) = make_dir(parent, &name, parent_path)? {
            return Ok((dir, name));
        }
    }
}
