//! A file tree as a process sees it, entry by entry, and the differences between two of them.
//!
//! Not compared, because overlayfs or podman makes them up: size and link count of directories, and
//! the time of the root directory, which is that of the container's own layer.

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, CWD, FileType, StatxFlags};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// How far [`Tree::read`] goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Not into other mounts: they appear as one entry.
    Mount,
}

/// Everything about one entry that must be equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Type and permissions, as in `st_mode`.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Bytes; 0 for directories.
    pub size: u64,
    /// Modification time: seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Link count; 0 for directories.
    pub links: u32,
    /// The first path in the tree that is the same inode, where there are several.
    pub same_as: Option<Vec<u8>>,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// SHA-256 of a file's content in hex, or the target of a symlink.
    pub content: Vec<u8>,
    /// Another filesystem is mounted here; nothing else about the entry is filled in.
    pub mounted: bool,
}

/// The entries by path; the root is the empty path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// Path without leading slash to entry.
    pub entries: BTreeMap<Vec<u8>, Entry>,
}

impl Tree {
    /// Reads the tree at `root`, which may be a `/proc/PID/root`.
    pub fn read(root: &Path, scope: Scope) -> Result<Self> {
        let Scope::Mount = scope;
        // The final slash makes the kernel follow the magic link.
        let root = root.join("");
        let mount = statx(&root)?.stx_mnt_id;
        let mut tree = Self::default();
        let mut inodes = HashMap::new();
        let mut todo = vec![Vec::new()];
        while let Some(path) = todo.pop() {
            let full = root.join(OsStr::from_bytes(&path));
            let mut entry =
                read_entry(&full, mount).with_context(|| format!("read {}", full.display()))?;
            if !entry.0.mounted && FileType::from_raw_mode(entry.0.mode) == FileType::Directory {
                for child in
                    std::fs::read_dir(&full).with_context(|| format!("list {}", full.display()))?
                {
                    let mut name = path.clone();
                    if !name.is_empty() {
                        name.push(b'/');
                    }
                    name.extend(child?.file_name().into_vec());
                    todo.push(name);
                }
            }
            if path.is_empty() {
                entry.0.mtime = (0, 0);
            }
            if entry.0.links > 1 {
                inodes
                    .entry(entry.1)
                    .or_insert_with(Vec::new)
                    .push(path.clone());
            }
            tree.entries.insert(path, entry.0);
        }
        for mut names in inodes.into_values().filter(|names| names.len() > 1) {
            names.sort();
            for name in &names {
                if let Some(entry) = tree.entries.get_mut(name) {
                    entry.same_as = Some(names[0].clone());
                }
            }
        }
        Ok(tree)
    }

    /// The entry at `path`.
    pub fn get(&self, path: &str) -> Result<&Entry> {
        self.entries
            .get(path.as_bytes())
            .with_context(|| format!("{path} is not in the tree"))
    }

    /// An error that shows what differs between `self`, called `name`, and `other`.
    pub fn must_equal(&self, name: &str, other: &Self, other_name: &str) -> Result<()> {
        const SHOWN: usize = 20;
        let mut paths: Vec<_> = self.entries.keys().chain(other.entries.keys()).collect();
        paths.sort();
        paths.dedup();
        let differing: Vec<_> = paths
            .into_iter()
            .filter(|path| self.entries.get(*path) != other.entries.get(*path))
            .collect();
        if differing.is_empty() {
            return Ok(());
        }
        let mut text = String::new();
        for path in differing.iter().take(SHOWN) {
            let _ = writeln!(
                text,
                "/{}\n  {name}: {}\n  {other_name}: {}",
                path.escape_ascii(),
                Shown(self.entries.get(*path)),
                Shown(other.entries.get(*path)),
            );
        }
        bail!(
            "{} of {} entries differ:\n{text}",
            differing.len(),
            self.entries.len()
        )
    }
}

struct Shown<'a>(Option<&'a Entry>);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Some(e) = self.0 else {
            return f.write_str("missing");
        };
        if e.mounted {
            return f.write_str("a mount");
        }
        write!(
            f,
            "mode {:o} owner {}:{} size {} mtime {}.{:09} links {} device {}:{}",
            e.mode,
            e.owner.0,
            e.owner.1,
            e.size,
            e.mtime.0,
            e.mtime.1,
            e.links,
            e.device.0,
            e.device.1,
        )?;
        if let Some(same) = &e.same_as {
            write!(f, " same as {}", same.escape_ascii())?;
        }
        for (key, value) in &e.xattrs {
            write!(f, " {}={}", key.escape_ascii(), value.escape_ascii())?;
        }
        let content = &e.content[..e.content.len().min(100)];
        write!(f, " content {}", content.escape_ascii())
    }
}

fn statx(path: &Path) -> Result<rustix::fs::Statx> {
    Ok(rustix::fs::statx(
        CWD,
        path,
        AtFlags::SYMLINK_NOFOLLOW,
        StatxFlags::BASIC_STATS | StatxFlags::MNT_ID,
    )?)
}

/// The entry, and a key that tells inodes apart.
fn read_entry(path: &Path, mount: u64) -> Result<(Entry, (u32, u32, u64))> {
    let stat = statx(path)?;
    let inode = (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino);
    let mode = u32::from(stat.stx_mode);
    let mut entry = Entry {
        mode,
        owner: (stat.stx_uid, stat.stx_gid),
        size: stat.stx_size,
        mtime: (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
        links: stat.stx_nlink,
        same_as: None,
        device: (stat.stx_rdev_major, stat.stx_rdev_minor),
        xattrs: BTreeMap::new(),
        content: Vec::new(),
        mounted: stat.stx_mnt_id != mount,
    };
    if entry.mounted {
        return Ok((
            Entry {
                mode: 0,
                owner: (0, 0),
                size: 0,
                mtime: (0, 0),
                links: 0,
                device: (0, 0),
                ..entry
            },
            inode,
        ));
    }
    match FileType::from_raw_mode(mode) {
        FileType::Directory => {
            entry.size = 0;
            entry.links = 0;
        }
        FileType::RegularFile => entry.content = content_digest(path)?,
        FileType::Symlink => entry.content = std::fs::read_link(path)?.into_os_string().into_vec(),
        _ => {}
    }
    entry.xattrs = xattrs(path)?;
    Ok((entry, inode))
}

fn content_digest(path: &Path) -> Result<Vec<u8>> {
    let mut file = std::fs::File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 17];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(hex::encode(hash.finalize()).into_bytes());
        }
        hash.update(&buffer[..n]);
    }
}

fn xattrs(path: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut names = vec![0; 1 << 16];
    let length = match rustix::fs::llistxattr(path, &mut names) {
        Ok(length) => length,
        Err(rustix::io::Errno::NOTSUP) => 0,
        Err(error) => return Err(error).context("list xattrs"),
    };
    let mut found = BTreeMap::new();
    for name in names[..length].split(|&b| b == 0).filter(|n| !n.is_empty()) {
        let mut value = vec![0; 1 << 16];
        let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value)
            .with_context(|| format!("read xattr {}", name.escape_ascii()))?;
        value.truncate(length);
        found.insert(name.to_vec(), value);
    }
    Ok(found)
}
