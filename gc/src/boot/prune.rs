//! Removing what no boot entry names, in the order that is safe: what was staged first, then what it would
//! have started, then state; each made durable before the next. Of a state directory the origin file goes
//! last, so that an interrupted removal can still be told for what it is.
//!
//! Nothing outside the directory that was named is touched, and nothing that is mounted there.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use repository::failpoint;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::tree::{ReadFault, UntrustedDir};
use super::{Orphan, OrphanKind};

/// How deep directories may be nested.
const MAX_DEPTH: usize = 200;

/// The directory whose change tells others that deployments have changed.
const CHANGED: &str = "ostree/bootc";

/// Something can't be removed. What was to be removed after it is still there.
#[derive(Debug, thiserror::Error)]
#[error("cannot remove {}", path.display())]
pub struct PruneError {
    /// The orphan.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: std::io::Error,
}

/// Removes orphans, durably; returns how many there still were.
pub(crate) fn prune(orphans: &[Orphan]) -> Result<u64, PruneError> {
    let mut sorted: Vec<_> = orphans.iter().collect();
    sorted.sort_by_key(|orphan| orphan.kind);
    let mut removed = 0;
    for orphan in &sorted {
        let result = remove(orphan).map_err(|source| PruneError {
            path: orphan.path.clone(),
            source: source.into(),
        });
        removed += u64::from(result?);
    }
    if removed > 0
        && let Some(orphan) = sorted.first()
    {
        tell(&orphan.sysroot);
    }
    Ok(removed)
}

fn remove(orphan: &Orphan) -> Result<bool, Errno> {
    let (Some(parent), Some(name)) = (orphan.relative.parent(), orphan.relative.file_name()) else {
        return Ok(false);
    };
    let place = orphan.place.open().map_err(errno)?;
    let Some(place) = place else { return Ok(false) };
    let Some(directory) = place.sub(parent).map_err(errno)? else {
        return Ok(false);
    };
    failpoint("prune-orphan");
    let name = Path::new(name);
    let removed = match orphan.kind {
        OrphanKind::StagedEntry | OrphanKind::Uki => unlink(&directory, name, AtFlags::empty())?,
        OrphanKind::Kernel | OrphanKind::Addons => remove_tree(&directory, name, None)?,
        OrphanKind::State => {
            let mut origin = name.as_os_str().to_owned();
            origin.push(".origin");
            remove_tree(&directory, name, Some(&origin))?
        }
    };
    rustix::fs::fsync(directory.fd())?;
    failpoint("prune-synced");
    if orphan.kind == OrphanKind::StagedEntry {
        remove_if_empty(&place, parent)?;
    }
    Ok(removed)
}

/// Removes a directory of staged entries when the last of them is gone. Others may be in it, and GRUB's is
/// never empty.
fn remove_if_empty(place: &UntrustedDir, directory: &Path) -> Result<(), Errno> {
    let (Some(parent), Some(name)) = (directory.parent(), directory.file_name()) else {
        return Ok(());
    };
    let Some(parent) = place.sub(parent).map_err(errno)? else {
        return Ok(());
    };
    match unlink(&parent, Path::new(name), AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
        Ok(_) => rustix::fs::fsync(parent.fd()),
        Err(error) => Err(error),
    }
}

fn unlink(directory: &UntrustedDir, name: &Path, flags: AtFlags) -> Result<bool, Errno> {
    match rustix::fs::unlinkat(directory.fd(), name, flags) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes a directory with everything in it, `last` after the rest.
fn remove_tree(
    directory: &UntrustedDir,
    name: &Path,
    last: Option<&OsString>,
) -> Result<bool, Errno> {
    let tree = match open_below(directory.fd(), name) {
        Ok(tree) => tree,
        Err(Errno::NOENT) => return Ok(false),
        Err(error) => return Err(error),
    };
    empty(&tree, last, MAX_DEPTH)?;
    if let Some(last) = last {
        rustix::fs::fsync(&tree)?;
        failpoint("prune-origin");
        match rustix::fs::unlinkat(&tree, last, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
    }
    failpoint("prune-directory");
    unlink(directory, name, AtFlags::REMOVEDIR)
}

/// Removes everything in a directory but `spared`.
fn empty(directory: &OwnedFd, spared: Option<&OsString>, depth: usize) -> Result<(), Errno> {
    if depth == 0 {
        return Err(Errno::NAMETOOLONG);
    }
    // Listed first: removing while reading may pass some over.
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = OsString::from_vec(entry?.file_name().to_bytes().to_vec());
        if name != "." && name != ".." && Some(&name) != spared {
            names.push(name);
        }
    }
    for name in names {
        let stat = match rustix::fs::statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(error),
        };
        let flags = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            empty(&open_below(directory, Path::new(&name))?, None, depth - 1)?;
            AtFlags::REMOVEDIR
        } else {
            AtFlags::empty()
        };
        failpoint("prune-file");
        match rustix::fs::unlinkat(directory, &name, flags) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Opens a directory that is on the same mount: what is mounted below is somebody else's.
fn open_below(directory: impl AsFd, name: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(directory, name, flags, Mode::empty(), resolve)
}

/// Lets those who watch for changes of deployments know.
fn tell(sysroot: &Path) {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: rustix::fs::UTIME_NOW,
    };
    let times = Timestamps {
        last_access: now,
        last_modification: now,
    };
    let changed = UntrustedDir::open(sysroot)
        .ok()
        .flatten()
        .and_then(|sysroot| sysroot.sub(CHANGED).ok().flatten());
    if let Some(changed) = changed {
        // There are hosts without it; nobody watches there.
        let _ = rustix::fs::futimens(changed.fd(), &times);
    }
}

fn errno(fault: ReadFault) -> Errno {
    match fault {
        ReadFault::Io(errno) => errno,
        _ => Errno::IO,
    }
}
