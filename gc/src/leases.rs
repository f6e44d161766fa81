//! Leases: as long as one is held, whatever is in the repository under a name stays.
//!
//! For work that takes several steps, such as importing an image and then deploying it: between the
//! steps nothing may need what is there already. A lease is a file, `composefs-store/leases/<random>`, on
//! which its holder has an exclusive `flock`. It ends with the last copy of that descriptor, so it never
//! outlives its holders, however they die, nor a boot. Collectors of others don't know of leases.

use std::fs::{self, File};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, RawFd};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use repository::{PRIVATE_DIRECTORY, Repository};
use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The directory of leases in [`PRIVATE_DIRECTORY`].
const LEASES: &str = "leases";

/// Most bytes of a lease's file.
const MAX_LEASE: u64 = 64 << 10;

/// A lease that this process holds. Dropping it ends it, unless others hold it too.
#[derive(Debug)]
pub struct Lease {
    file: File,
    path: PathBuf,
    shared: bool,
}

/// What a lease's file says of its holder.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// What it is for, in words.
    pub purpose: String,
    /// The process that took it.
    pub pid: u32,
    /// When, in seconds since 1970.
    pub since: u64,
}

/// A lease in a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) name: String,
    /// Who has it, as far as that can be read; `None` if nobody has it any more.
    pub(crate) holder: Option<Holder>,
}

impl Lease {
    /// Takes a new lease.
    pub fn take(repository: &Repository, purpose: &str) -> Result<Self> {
        let directory = directory(repository);
        fs::create_dir_all(&directory).map_err(Error::io("create", &directory))?;
        let random = RandomState::new().build_hasher().finish();
        let path = directory.join(format!("{random:016x}"));
        let file = File::options()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(Error::io("create", &path))?;
        // While the repository is open, nobody removes it for not being locked yet.
        lock(&file, FlockOperation::LockExclusive).map_err(Error::io("lock", &path))?;
        let lease = Self {
            file,
            path,
            shared: false,
        };
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let holder = Holder {
            purpose: purpose.to_owned(),
            pid: std::process::id(),
            since: since.map_or(0, |time| time.as_secs()),
        };
        let mut text = serde_json::to_vec(&holder).unwrap_or_default();
        text.push(b'\n');
        (&lease.file)
            .write_all(&text)
            .map_err(Error::io("write", &lease.path))?;
        Ok(lease)
    }

    /// Lets programs that this process starts from now on hold it too, by a descriptor of this number.
    pub fn share(&mut self) -> Result<RawFd> {
        fcntl_setfd(&self.file, FdFlags::empty()).map_err(Error::io("share", &self.path))?;
        self.shared = true;
        Ok(self.file.as_raw_fd())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.shared {
            // A file that stays is removed by the next collection.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The leases of a repository, held or not, sorted by name.
pub(crate) fn leases(repository: &Repository) -> Result<Vec<Found>> {
    let directory = directory(repository);
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list", directory)(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("list", &directory))?;
        // Other names are not ours.
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if let Some((_, holder)) = examine(&directory.join(&name))? {
            found.push(Found { name, holder });
        }
    }
    found.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Removes a lease that nobody holds. The caller has the exclusive lock of the repository.
pub(crate) fn remove(repository: &Repository, name: &str) -> Result<bool> {
    let path = directory(repository).join(name);
    match examine(&path)? {
        Some((_file, None)) => {
            fs::remove_file(&path).map_err(Error::io("remove", path))?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// Who holds a lease. If nobody does, the file that is returned does now; `None` if there is no such file.
fn examine(path: &Path) -> Result<Option<(File, Option<Holder>)>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("open", path)(error)),
    };
    match lock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => return Ok(Some((file, None))),
        Err(Errno::WOULDBLOCK) => {}
        Err(error) => return Err(Error::io("lock", path)(error)),
    }
    let mut text = Vec::new();
    let holder = (&file)
        .take(MAX_LEASE)
        .read_to_end(&mut text)
        .ok()
        .and_then(|_| serde_json::from_slice(&text).ok());
    Ok(Some((file, Some(holder.unwrap_or_default()))))
}

fn lock(file: impl AsFd, operation: FlockOperation) -> Result<(), Errno> {
    loop {
        match flock(&file, operation) {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

fn directory(repository: &Repository) -> PathBuf {
    repository.path().join(PRIVATE_DIRECTORY).join(LEASES)
}
