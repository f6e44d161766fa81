//! podman's store locks, taken as open-file-description locks.
//!
//! A lock file of c/storage is locked with POSIX record locks over the whole file (`fcntl`, not
//! `flock`), and holds a 64-byte *last write* mark that a writer renews before it replaces a JSON file.
//! Open-file-description locks conflict with record locks both ways, but belong to the descriptor: they
//! vanish neither with another descriptor of the file nor between threads. A read lock needs a
//! descriptor opened for reading only, so this never creates or changes a lock file of somebody else.
//!
//! Nothing detects a deadlock between such locks: hold at most one lock of a store at a time.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// A lock file could not be opened, locked, read or marked.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} the lock {}", path.display())]
pub struct LockError {
    /// What was tried: "open", "lock", "read", …
    pub action: &'static str,
    /// The lock file.
    pub path: PathBuf,
    /// Why it failed.
    pub source: io::Error,
}

/// The 64 bytes with which the last writer marked a lock file. Two equal marks mean that nothing was
/// written in between. An empty mark means "never written".
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LastWrite(Vec<u8>);

impl LastWrite {
    const LEN: usize = 64;

    fn read(file: &File) -> io::Result<Self> {
        let mut bytes = [0; Self::LEN];
        let mut filled = 0;
        while filled < bytes.len() {
            match file.read_at(&mut bytes[filled..], filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(Self(bytes[..filled].to_vec()))
    }

    /// A mark that no other writer makes: time, counter, process, random bytes.
    fn new(previous: &Self) -> io::Result<Self> {
        let nanos = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_nanos() as u64);
        let counter = previous
            .0
            .get(8..16)
            .and_then(|b| b.try_into().ok())
            .map_or(0, u64::from_le_bytes);
        let mut bytes = vec![0; Self::LEN];
        bytes[..8].copy_from_slice(&nanos.to_le_bytes());
        bytes[8..16].copy_from_slice(&counter.wrapping_add(1).to_le_bytes());
        bytes[16..20].copy_from_slice(&std::process::id().to_le_bytes());
        fill_random(&mut bytes[20..])?;
        Ok(Self(bytes))
    }
}

/// Fills `bytes` from the kernel's random number generator.
pub(crate) fn fill_random(bytes: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(n) => filled += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// How often an [`Interrupt`] is asked while a lock is waited for.
const ASK: Duration = Duration::from_millis(50);

/// Whether to give up waiting for a lock: asked some times a second while the lock is not free. Clones
/// ask the same.
#[derive(Clone, Default)]
pub struct Interrupt(Option<Arc<dyn Fn() -> bool + Send + Sync>>);

impl Interrupt {
    /// Never gives up.
    pub fn never() -> Self {
        Self::default()
    }

    /// Gives up as soon as `is_set` says so.
    pub fn when(is_set: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(is_set)))
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.as_ref().is_some_and(|is_set| is_set())
    }
}

impl std::fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() {
            "Interrupt(when)"
        } else {
            "Interrupt(never)"
        })
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Read,
    Write,
}

/// What to do while somebody else holds the lock.
#[derive(Clone, Copy)]
enum Patience {
    Wait,
    Return,
}

/// Locks the whole of `file`; `false` if it would have had to wait and must not.
fn lock(file: &File, kind: Kind, patience: Patience) -> io::Result<bool> {
    let flock = libc::flock {
        l_type: match kind {
            Kind::Read => libc::F_RDLCK as _,
            Kind::Write => libc::F_WRLCK as _,
        },
        l_whence: libc::SEEK_SET as _,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    loop {
        let result = match patience {
            Patience::Wait => fcntl(file, FcntlArg::F_OFD_SETLKW(&flock)),
            Patience::Return => fcntl(file, FcntlArg::F_OFD_SETLK(&flock)),
        };
        match result {
            Ok(_) => return Ok(true),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN | Errno::EACCES) => return Ok(false),
            Err(e) => return Err(e.into()),
        }
    }
}

/// What `acquire` gives for the lock file `path`; `None` if `interrupt` was set before.
fn wait_unless<L: Send + 'static>(
    path: &Path,
    interrupt: &Interrupt,
    acquire: fn(&Path) -> Result<L, LockError>,
) -> Result<Option<L>, LockError> {
    let Some(is_set) = &interrupt.0 else {
        return acquire(path).map(Some);
    };
    // The kernel's queue is waited in by a thread of its own: asking again and again whether the
    // lock is free would lose every race against a writer that waits there. If nobody wants the lock
    // any more when it comes, it is released at once.
    let (sender, receiver) = sync_channel(1);
    let waiting = path.to_owned();
    std::thread::Builder::new()
        .name("lock".to_owned())
        .spawn(move || sender.send(acquire(&waiting)))
        .map_err(|source| LockError {
            action: "wait for",
            path: path.to_owned(),
            source,
        })?;
    loop {
        match receiver.recv_timeout(ASK) {
            Ok(result) => return result.map(Some),
            Err(RecvTimeoutError::Timeout) if is_set() => return Ok(None),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return acquire(path).map(Some),
        }
    }
}

/// A read lock, held until it is dropped. Writers, podman among them, wait for it.
#[derive(Debug)]
pub struct ReadLock {
    file: File,
    path: PathBuf,
}

impl ReadLock {
    /// Waits for the read lock on the existing lock file `path`.
    pub fn acquire(path: &Path) -> Result<Self, LockError> {
        Self::open(path, Patience::Wait)
            .map(|held| held.expect("waiting ends with the lock or an error"))
    }

    /// As [`ReadLock::acquire`]; `None` if `interrupt` was set before the lock was free.
    pub fn acquire_unless(path: &Path, interrupt: &Interrupt) -> Result<Option<Self>, LockError> {
        if let Some(lock) = Self::try_acquire(path)? {
            return Ok(Some(lock));
        }
        wait_unless(path, interrupt, Self::acquire)
    }

    /// Takes the read lock if nobody holds the write lock.
    pub fn try_acquire(path: &Path) -> Result<Option<Self>, LockError> {
        Self::open(path, Patience::Return)
    }

    fn open(path: &Path, patience: Patience) -> Result<Option<Self>, LockError> {
        let context = |action| {
            move |source| LockError {
                action,
                path: path.to_owned(),
                source,
            }
        };
        let file = File::options()
            .read(true)
            // A fifo in place of the lock file must not make us wait.
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(context("open"))?;
        let held = lock(&file, Kind::Read, patience).map_err(context("lock"))?;
        Ok(held.then(|| Self {
            file,
            path: path.to_owned(),
        }))
    }

    /// The mark of the last writer.
    pub fn last_write(&self) -> Result<LastWrite, LockError> {
        LastWrite::read(&self.file).map_err(|source| LockError {
            action: "read",
            path: self.path.clone(),
            source,
        })
    }

    /// Whether something was written since `mark` was read.
    pub fn changed_since(&self, mark: &LastWrite) -> Result<bool, LockError> {
        Ok(self.last_write()? != *mark)
    }
}

/// A write lock on a lock file of our own store, held until it is dropped.
#[derive(Debug)]
pub struct WriteLock {
    file: File,
    path: PathBuf,
}

impl WriteLock {
    /// Waits for the write lock on the existing lock file `path`.
    pub fn acquire(path: &Path) -> Result<Self, LockError> {
        Self::open(path, Patience::Wait)
            .map(|held| held.expect("waiting ends with the lock or an error"))
    }

    /// As [`WriteLock::acquire`]; `None` if `interrupt` was set before the lock was free.
    pub fn acquire_unless(path: &Path, interrupt: &Interrupt) -> Result<Option<Self>, LockError> {
        if let Some(lock) = Self::try_acquire(path)? {
            return Ok(Some(lock));
        }
        wait_unless(path, interrupt, Self::acquire)
    }

    /// Takes the write lock if nobody holds any lock.
    pub fn try_acquire(path: &Path) -> Result<Option<Self>, LockError> {
        Self::open(path, Patience::Return)
    }

    fn open(path: &Path, patience: Patience) -> Result<Option<Self>, LockError> {
        let context = |action| {
            move |source| LockError {
                action,
                path: path.to_owned(),
                source,
            }
        };
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(context("open"))?;
        let held = lock(&file, Kind::Write, patience).map_err(context("lock"))?;
        Ok(held.then(|| Self {
            file,
            path: path.to_owned(),
        }))
    }

    /// Renews the last-write mark, on disk when this returns. To be called before the JSON file is
    /// replaced: a reader that sees the old mark then has the old file.
    pub fn mark_written(&self) -> Result<LastWrite, LockError> {
        let write = || {
            let mark = LastWrite::new(&LastWrite::read(&self.file)?)?;
            self.file.write_all_at(&mark.0, 0)?;
            self.file.sync_data()?;
            Ok(mark)
        };
        write().map_err(|source| LockError {
            action: "mark",
            path: self.path.clone(),
            source,
        })
    }
}
