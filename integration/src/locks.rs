//! Locks as podman takes them, and the kernel's own word on who holds and who waits.

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// A write lock on a file of a containers-storage store, released when dropped.
///
/// An open-file-description lock: podman's POSIX record locks conflict with it as with their own.
#[derive(Debug)]
pub struct WriteLock {
    _file: File,
}

impl WriteLock {
    /// Takes the lock, waiting for it.
    pub fn take(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        lock(&file, libc::F_WRLCK).with_context(|| format!("lock {}", path.display()))?;
        Ok(Self { _file: file })
    }
}

/// The same for reading, as podman has it while it reads from a store.
#[derive(Debug)]
pub struct ReadLock {
    _file: File,
}

impl ReadLock {
    /// Takes the lock, waiting for it.
    pub fn take(path: &Path) -> Result<Self> {
        let file = File::open(path)?;
        lock(&file, libc::F_RDLCK).with_context(|| format!("lock {}", path.display()))?;
        Ok(Self { _file: file })
    }
}

fn lock(file: &File, kind: libc::c_int) -> Result<()> {
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLKW(&lock))?;
    Ok(())
}

/// The state of a lock in `/proc/locks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Somebody has it.
    Held,
    /// Somebody waits for it.
    Waiting,
}

/// What somebody wants to do under the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A shared lock.
    Read,
    /// An exclusive lock.
    Write,
}

/// Whether the kernel knows a record lock on `path` in this state with this access.
pub fn exists(path: &Path, state: State, access: Access) -> Result<bool> {
    let inode = path.metadata()?.ino().to_string();
    let locks = std::fs::read_to_string("/proc/locks")?;
    Ok(locks.lines().any(|line| {
        // `1: OFDLCK ADVISORY  READ -1 00:2f:1234 0 EOF`, a waiter: `1: -> POSIX …`
        let mut words: Vec<&str> = line.split_whitespace().skip(1).collect();
        let waiting = words.first() == Some(&"->");
        if waiting {
            words.remove(0);
        }
        let [kind, _, kind_of_access, _, place, ..] = words.as_slice() else {
            return false;
        };
        matches!(*kind, "POSIX" | "OFDLCK")
            && place.rsplit(':').next() == Some(inode.as_str())
            && waiting == (state == State::Waiting)
            && *kind_of_access
                == match access {
                    Access::Read => "READ",
                    Access::Write => "WRITE",
                }
    }))
}

/// Waits until `condition` holds; an error that says `what` after `limit`.
pub fn wait_until(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let begin = Instant::now();
    while !condition()? {
        if begin.elapsed() > limit {
            bail!("after {limit:?} still not: {what}");
        }
        std::thread::yield_now();
    }
    Ok(())
}
