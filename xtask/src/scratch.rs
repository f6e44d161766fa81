//! The directory for everything that a run writes.
//!
//! It is removed when the run ends, whatever way; what a killed run left behind is removed by the
//! next one, which can tell by the lock that nobody holds any more.

use crate::setup;
use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

const PARENT: &str = "/var/tmp";
const PREFIX: &str = "composefs-store-xtask.";
const LOCK: &str = "lock";

/// A new directory, removed when dropped.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    _lock: File,
}

impl Scratch {
    /// Removes what dead runs left, and makes a directory for this one.
    pub(crate) fn new() -> Result<Self> {
        let _one_at_a_time = setup::cache_lock("scratch")?;
        sweep()?;
        let age = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let path = Path::new(PARENT).join(format!("{PREFIX}{:x}", age.as_micros()));
        std::fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
        let lock = File::create(path.join(LOCK))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self { path, _lock: lock })
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

fn sweep() -> Result<()> {
    for entry in std::fs::read_dir(PARENT)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let dead = match File::open(entry.path().join(LOCK)) {
            Ok(lock) => flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok(),
            // The lock goes first when a run removes its directory.
            Err(_) => true,
        };
        if dead {
            remove(&entry.path());
        }
    }
    Ok(())
}

/// Processes of the namespace may still be dying and writing while it is removed.
fn remove(path: &Path) {
    const ATTEMPTS: u32 = 100;
    for _ in 0..ATTEMPTS {
        match std::fs::remove_dir_all(path) {
            Ok(()) => return,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(20)),
        }
    }
    eprintln!("could not remove {}", path.display());
}
