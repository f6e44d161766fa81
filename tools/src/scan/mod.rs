//! A file tree from a directory.
//!
//! Every name is opened once, as a descriptor that names the inode and nothing else (`O_PATH`, symlinks
//! not followed), below the descriptor of its directory; attributes, xattrs and content are all read
//! through that descriptor. So a directory that changes meanwhile can make the scan fail
//! ([`ScanError::Changed`]) but never lead it out of the source, and what is recorded of one inode
//! belongs together. Content is read by several threads; the tree does not depend on their number.
//!
//! Needs `/proc`. Never writes, except into the [`Staging`] it is given.

mod content;
mod inode;

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender};

use composefs_image::{Content, InodeId, Kind, Metadata, Timestamp, Tree, TreeError};
use rustix::fd::OwnedFd;
use rustix::fs::{Dir, FileType};
use thiserror::Error;

use crate::store::{Staging, StoreError};
use content::{Finding, ReadFile, Work};
use inode::Inode;

/// Modification times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Times {
    /// As in the directory, to the nanosecond.
    #[default]
    Kept,
    /// 0 for everything.
    Epoch,
}

/// Character and block devices. Sockets and named pipes are always kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Devices {
    /// In the tree.
    #[default]
    Kept,
    /// Left out.
    Skipped,
}

/// Which extended attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Xattrs {
    /// Every one that the kernel lists.
    #[default]
    All,
    /// Only those of the `user.` namespace.
    User,
    /// None.
    None,
}

/// Several names of one inode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HardLinks {
    /// Each name is an inode of its own with link count 1, as in the C tools.
    #[default]
    Separate,
    /// They stay one inode.
    Tracked,
}

/// How a directory becomes a tree. [`ScanOptions::new`] is what the C tool does without options.
#[derive(Clone, Copy, Debug)]
pub struct ScanOptions {
    /// Modification times.
    pub times: Times,
    /// Devices.
    pub devices: Devices,
    /// Extended attributes.
    pub xattrs: Xattrs,
    /// Hard links.
    pub hard_links: HardLinks,
    /// How many threads read content, at most 256; one more walks.
    pub threads: NonZeroUsize,
}

impl ScanOptions {
    /// Everything kept, hard links separate.
    pub fn new(threads: NonZeroUsize) -> Self {
        Self {
            times: Times::default(),
            devices: Devices::default(),
            xattrs: Xattrs::default(),
            hard_links: HardLinks::default(),
            threads,
        }
    }
}

/// Why a directory could not be read.
#[derive(Debug, Error)]
pub enum ScanError {
    /// The source is something else: a file, or a symlink, which is not followed.
    #[error("{}: not a directory", .0.display())]
    NotADirectory(PathBuf),
    /// `/proc` is not there.
    #[error("/proc is not mounted: files are read through /proc/self/fd")]
    NoProc,
    /// A system call failed.
    #[error("{}: {action}: {error}", .path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        error: io::Error,
    },
    /// A file or directory changed while it was read. Scan something that stands still.
    #[error("{}: changed while it was being read", .0.display())]
    Changed(PathBuf),
    /// A name that a tree cannot hold.
    #[error("{}: {error}", .path.display())]
    Name {
        /// The directory that has it.
        path: PathBuf,
        /// What is wrong with it.
        error: TreeError,
    },
    /// A file could not be put into the digest store.
    #[error("{}: {error}", .path.display())]
    Store {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: StoreError,
    },
}

impl ScanError {
    fn io(path: &Path, action: &'static str) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |error| Self::Io {
            path: path.to_owned(),
            action,
            error: error.into(),
        }
    }
}

/// Files of up to this many bytes have their content in the image, larger ones in an object.
pub const INLINE_MAX: u64 = 64;

/// Reads the tree below `source`, a directory. Files of more than [`INLINE_MAX`] bytes become external
/// with their SHA-256 fs-verity digest; with `staging` their content goes there too.
///
/// Mount points are crossed. Memory: the tree, and names of one directory per level.
pub fn scan(
    source: &Path,
    options: &ScanOptions,
    staging: Option<&Staging>,
) -> Result<Tree, ScanError> {
    let root = Inode::open_source(source)?;
    if root.file_type() != FileType::Directory {
        return Err(ScanError::NotADirectory(source.to_owned()));
    }
    content::with_readers(options.threads, staging, |work, findings| {
        Walker {
            options,
            tree: Tree::new(metadata(&root, options)),
            linked: HashMap::new(),
            work,
            findings,
        }
        .walk(&root, source)
    })
}

fn metadata(inode: &Inode, options: &ScanOptions) -> Metadata {
    let stat = inode.stat();
    Metadata {
        mode: (stat.st_mode & 0o7777) as u16,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: match options.times {
            Times::Kept => Timestamp {
                sec: stat.st_mtime,
                nsec: stat.st_mtime_nsec as u32,
            },
            Times::Epoch => Timestamp::default(),
        },
    }
}

/// One directory on the way down.
struct Level {
    id: InodeId,
    fd: OwnedFd,
    path: PathBuf,
    /// Names not visited yet.
    names: Vec<CString>,
}

struct Walker<'a> {
    options: &'a ScanOptions,
    tree: Tree,
    /// Inodes with several links that were met, when they are tracked.
    linked: HashMap<(u64, u64), InodeId>,
    work: SyncSender<Work>,
    findings: Receiver<Finding>,
}

impl Walker<'_> {
    fn walk(mut self, root: &Inode, source: &Path) -> Result<Tree, ScanError> {
        let id = self.tree.root();
        self.read_xattrs(root, id, source)?;
        let mut levels = vec![Level::open(id, root, source.to_owned())?];
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.names.pop() else {
                levels.pop();
                continue;
            };
            if let Some(below) = self.visit(level, &name)? {
                levels.push(below);
            }
            while let Ok(finding) = self.findings.try_recv() {
                record(&mut self.tree, finding)?;
            }
        }
        // Ends the readers when their queue is empty, and with them the findings.
        drop(self.work);
        for finding in self.findings {
            record(&mut self.tree, finding)?;
        }
        Ok(self.tree)
    }

    /// Puts one name into the tree; a directory comes back to be read.
    fn visit(&mut self, level: &Level, name: &CString) -> Result<Option<Level>, ScanError> {
        let path = level.path.join(OsStr::from_bytes(name.as_bytes()));
        let inode = Inode::open_at(&level.fd, name, &path)?;
        let stat = inode.stat();
        let file_type = inode.file_type();
        if self.options.devices == Devices::Skipped
            && matches!(file_type, FileType::CharacterDevice | FileType::BlockDevice)
        {
            return Ok(None);
        }
        let tracked = (self.options.hard_links == HardLinks::Tracked
            && file_type != FileType::Directory
            && stat.st_nlink > 1)
            .then_some((stat.st_dev, stat.st_ino));
        if let Some(&id) = tracked.and_then(|key| self.linked.get(&key)) {
            self.link(level, name, id, &path)?;
            return Ok(None);
        }

        let target;
        let kind = match file_type {
            FileType::Directory => Kind::Directory,
            // The content follows in `record`.
            FileType::RegularFile => Kind::Regular(Content::EMPTY),
            FileType::Symlink => {
                target = inode.read_link(&path)?;
                Kind::Symlink(&target)
            }
            // The low half has 12 bits of major and 20 bits of minor number: all that Linux uses.
            FileType::CharacterDevice => Kind::CharDevice(stat.st_rdev as u32),
            FileType::BlockDevice => Kind::BlockDevice(stat.st_rdev as u32),
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            FileType::Unknown => return Err(ScanError::Changed(path)),
        };
        let id = self.tree.add(metadata(&inode, self.options), kind);
        self.link(level, name, id, &path)?;
        self.read_xattrs(&inode, id, &path)?;
        if let Some(key) = tracked {
            self.linked.insert(key, id);
        }
        match file_type {
            FileType::Directory => Level::open(id, &inode, path).map(Some),
            FileType::RegularFile if stat.st_size > 0 => {
                // It only fails when the readers are gone, which they are not before this is dropped.
                let _ = self.work.send(Work { id, inode, path });
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    fn link(
        &mut self,
        level: &Level,
        name: &CString,
        id: InodeId,
        path: &Path,
    ) -> Result<(), ScanError> {
        match self.tree.link(level.id, name.as_bytes(), id) {
            Ok(None) => Ok(()),
            // The directory listed the name twice.
            Ok(Some(_)) => Err(ScanError::Changed(path.to_owned())),
            Err(error) => Err(ScanError::Name {
                path: level.path.clone(),
                error,
            }),
        }
    }

    fn read_xattrs(&mut self, inode: &Inode, id: InodeId, path: &Path) -> Result<(), ScanError> {
        let wanted: fn(&[u8]) -> bool = match self.options.xattrs {
            Xattrs::All => |_| true,
            Xattrs::User => |name| name.starts_with(b"user."),
            Xattrs::None => return Ok(()),
        };
        let xattrs = inode.xattrs(wanted, path)?;
        if !xattrs.is_empty() {
            self.tree.set_xattrs(
                id,
                xattrs
                    .iter()
                    .map(|(name, value)| (name.as_bytes(), value.as_slice())),
            );
        }
        Ok(())
    }
}

fn record(tree: &mut Tree, finding: Finding) -> Result<(), ScanError> {
    let (id, content) = finding?;
    match content {
        ReadFile::Inline(content) => tree.set_content(id, Content::Inline(&content)),
        ReadFile::External { size, digest } => tree.set_content(
            id,
            Content::External {
                size,
                digest: Some(digest),
                path: None,
            },
        ),
    }
    Ok(())
}

impl Level {
    fn open(id: InodeId, inode: &Inode, path: PathBuf) -> Result<Self, ScanError> {
        let fd = inode.open_directory(&path)?;
        let read = |error| ScanError::io(&path, "reading the directory")(error);
        let mut names = Vec::new();
        for entry in Dir::read_from(&fd).map_err(read)? {
            let entry = entry.map_err(read)?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(entry.file_name().to_owned());
            }
        }
        // Visited from the end. The order decides nothing but which of several tracked hard links
        // comes first; sorted, that does not depend on the filesystem.
        names.sort_unstable_by(|a, b| b.cmp(a));
        Ok(Self {
            id,
            fd,
            path,
            names,
        })
    }
}

#[cfg(test)]
mod tests;
