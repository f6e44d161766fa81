//! Members from the layer's directory tree: sorted by name, a directory before what it holds.
//!
//! The metadata is what is on disk, translated back where podman is known to have changed it: overlay's
//! whiteouts, owners of id-mapped layers, and what `force_mask` hides in an xattr. Like podman's own
//! export it keeps the xattrs `user.*`, `security.capability` and `security.ima`, and no sockets.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::header::{
    BLOCK_DEVICE, CHAR_DEVICE, DIRECTORY, FIFO, HARD_LINK, Member, REGULAR, SYMLINK,
};
use super::unfit;
use crate::error::Error;
use crate::layer::OpenLayer;
use crate::records::IdMapping;
use crate::tar_split::EntryName;

/// Where `force_mask` keeps owner, mode and type.
const OVERRIDE: &[u8] = b"user.containers.override_stat";
/// Largest list of the names of xattrs, and largest value, that the kernel has.
const XATTR_MAX: usize = 64 << 10;
/// Deepest directory: the longest path that the kernel takes has no more.
const DEPTH_MAX: usize = 2048;

/// Calls `take` with every member.
pub(super) fn members(
    open: &OpenLayer,
    take: &mut dyn FnMut(Member) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut tree = Tree {
        open,
        links: HashMap::new(),
    };
    // For each open directory the names that are left, last first.
    let mut pending = vec![vec![Vec::new()]];
    while let Some(names) = pending.last_mut() {
        let Some(name) = names.pop() else {
            pending.pop();
            continue;
        };
        let Some(found) = tree.look(&name)? else {
            continue;
        };
        let opaque = found.opaque;
        let is_directory = found.member.kind == DIRECTORY;
        take(found.member)?;
        if is_directory {
            if opaque {
                take(whiteout(&name, b".wh..opq"))?;
            }
            if pending.len() == DEPTH_MAX {
                return Err(unfit(open, &name, "is too deep"));
            }
            let names = tree.names(&name)?;
            pending.push(names);
        }
    }
    Ok(())
}

struct Tree<'a> {
    open: &'a OpenLayer,
    /// The first name of each file that has several.
    links: HashMap<(u64, u64), Vec<u8>>,
}

struct Found {
    member: Member,
    opaque: bool,
}

impl Tree<'_> {
    fn unreadable(&self, name: &[u8], error: Errno) -> Error {
        Error::FileUnreadable {
            layer: self.open.layer().id().clone(),
            name: EntryName::from(name.to_vec()),
            source: error.into(),
        }
    }

    /// Opens a name in every generation that has it, newest first.
    fn open(&self, name: &[u8], flags: OFlags) -> impl Iterator<Item = Result<OwnedFd, Error>> {
        let path = if name.is_empty() {
            b".".to_vec()
        } else {
            name.to_vec()
        };
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.open.generations.iter().filter_map(move |generation| {
            match rustix::fs::openat2(generation, &path[..], flags, Mode::empty(), resolve) {
                Ok(fd) => Some(Ok(fd)),
                Err(Errno::NOENT | Errno::NOTDIR) => None,
                Err(error) => Some(Err(self.unreadable(&path, error))),
            }
        })
    }

    /// The paths of what a directory holds, in all generations, last first.
    fn names(&self, directory: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        let mut names = Vec::new();
        for fd in self.open(directory, OFlags::RDONLY | OFlags::DIRECTORY) {
            let failed = |error| self.unreadable(directory, error);
            for entry in Dir::new(fd?).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let name = entry.file_name().to_bytes();
                if !matches!(name, b"." | b"..") {
                    names.push(join(directory, name));
                }
            }
        }
        names.sort_unstable_by(|a, b| b.cmp(a));
        names.dedup();
        Ok(names)
    }

    /// What has the path `name`; nothing for a socket.
    fn look(&mut self, name: &[u8]) -> Result<Option<Found>, Error> {
        let fd = self.open(name, OFlags::PATH).next();
        let Some(fd) = fd.transpose()? else {
            // It was there when its directory was read.
            return Err(self.unreadable(name, Errno::NOENT));
        };
        let failed = |error| self.unreadable(name, error);
        let stat = rustix::fs::fstat(&fd).map_err(failed)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
            let at = name
                .iter()
                .rposition(|byte| *byte == b'/')
                .map_or(0, |at| at + 1);
            let directory = &name[..at.saturating_sub(1)];
            let member = whiteout(directory, &name[at..]);
            return Ok(Some(Found {
                member,
                opaque: false,
            }));
        }
        let mut xattrs = self.xattrs(name, &fd)?;
        let opaque = [&b"trusted.overlay.opaque"[..], b"user.overlay.opaque"]
            .iter()
            .any(|key| xattrs.get(*key).is_some_and(|value| value == b"y"));
        let mut member = Member {
            name: name.to_vec(),
            kind: REGULAR,
            mode: stat.st_mode & 0o7777,
            mtime: (stat.st_mtime, stat.st_mtime_nsec as u32),
            device: (
                rustix::fs::major(stat.st_rdev),
                rustix::fs::minor(stat.st_rdev),
            ),
            ..Member::default()
        };
        self.own(&mut member, &stat);
        match kind {
            FileType::Directory => {
                member.kind = DIRECTORY;
                member.name = if name.is_empty() {
                    b"./".to_vec()
                } else {
                    join(name, b"")
                };
            }
            FileType::RegularFile => member.size = stat.st_size as u64,
            FileType::Symlink => {
                member.kind = SYMLINK;
                let target = rustix::fs::readlinkat(&fd, "", Vec::new()).map_err(failed)?;
                member.link = target.into_bytes();
            }
            FileType::CharacterDevice => member.kind = CHAR_DEVICE,
            FileType::BlockDevice => member.kind = BLOCK_DEVICE,
            FileType::Fifo => member.kind = FIFO,
            _ => return Ok(None),
        }
        if let Some(text) = xattrs.remove(OVERRIDE) {
            let problem = "has an override_stat that is not understood";
            overridden(&mut member, &text).ok_or_else(|| unfit(self.open, name, problem))?;
        }
        xattrs.retain(|key, _| is_kept(key));
        if let Some(value) = xattrs.get_mut(&b"security.capability"[..]) {
            without_namespace(value);
        }
        member.xattrs = xattrs;
        if kind != FileType::Directory && stat.st_nlink > 1 {
            let inode = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&inode) {
                member.kind = HARD_LINK;
                member.size = 0;
                member.link.clone_from(first);
                member.xattrs.clear();
            } else {
                self.links.insert(inode, name.to_vec());
            }
        }
        Ok(Some(Found { member, opaque }))
    }

    /// Sets the owner, shifted back if the layer is an id-mapped one.
    fn own(&self, member: &mut Member, stat: &Stat) {
        let record = self.open.layer().record();
        member.uid = unmapped(&record.uid_map, stat.st_uid);
        member.gid = unmapped(&record.gid_map, stat.st_gid);
    }

    fn xattrs(&self, name: &[u8], fd: &OwnedFd) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Error> {
        // A descriptor that only names a file has no xattrs; its path in /proc does.
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let failed = |error| self.unreadable(name, error);
        let mut list = vec![0; XATTR_MAX];
        let length = match rustix::fs::listxattr(&*path, &mut list[..]) {
            Ok(length) => length,
            Err(Errno::NOTSUP | Errno::PERM) => 0,
            Err(error) => return Err(failed(error)),
        };
        let mut xattrs = BTreeMap::new();
        let mut buffer = vec![0; if length == 0 { 0 } else { XATTR_MAX }];
        for key in list[..length].split(|byte| *byte == 0) {
            let is_mark = matches!(key, b"trusted.overlay.opaque" | b"user.overlay.opaque");
            if !(is_mark || key == OVERRIDE || is_kept(key)) {
                continue;
            }
            match rustix::fs::getxattr(&*path, OsStr::from_bytes(key), &mut buffer[..]) {
                Ok(length) => {
                    xattrs.insert(key.to_vec(), buffer[..length].to_vec());
                }
                Err(Errno::NODATA | Errno::NOTSUP | Errno::PERM) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(xattrs)
    }
}

/// Whether podman's own export keeps an xattr.
fn is_kept(key: &[u8]) -> bool {
    matches!(key, b"security.capability" | b"security.ima")
        || (key.starts_with(b"user.") && !key.starts_with(b"user.overlay.") && key != OVERRIDE)
}

/// The member that hides `name` below `directory`.
fn whiteout(directory: &[u8], name: &[u8]) -> Member {
    Member {
        name: join(directory, &[b".wh.", name].concat()),
        kind: REGULAR,
        ..Member::default()
    }
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() {
        name.to_vec()
    } else {
        [directory, b"/", name].concat()
    }
}

/// The ID inside of the namespace for one outside; itself where there is no mapping for it.
fn unmapped(map: &[IdMapping], id: u32) -> u32 {
    map.iter()
        .find_map(|range| {
            let offset = id.checked_sub(range.host_id)?;
            (offset < range.size).then(|| range.container_id.wrapping_add(offset))
        })
        .unwrap_or(id)
}

/// Applies `uid:gid:octal mode[:type[-major-minor]]`.
fn overridden(member: &mut Member, text: &[u8]) -> Option<()> {
    let text = std::str::from_utf8(text).ok()?;
    let mut fields = text.trim_end_matches('\0').split(':');
    member.uid = fields.next()?.parse().ok()?;
    member.gid = fields.next()?.parse().ok()?;
    member.mode = u32::from_str_radix(fields.next()?, 8).ok()? & 0o7777;
    let Some(kind) = fields.next() else {
        return Some(());
    };
    let mut parts = kind.split('-');
    let kind = match parts.next()? {
        "file" => REGULAR,
        "dir" => DIRECTORY,
        "symlink" => SYMLINK,
        "pipe" => FIFO,
        "char" => CHAR_DEVICE,
        "block" => BLOCK_DEVICE,
        _ => return None,
    };
    if matches!(kind, CHAR_DEVICE | BLOCK_DEVICE) {
        member.device = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    } else if (kind == DIRECTORY) != (member.kind == DIRECTORY)
        || (kind == SYMLINK) != (member.kind == SYMLINK)
    {
        return None;
    }
    if kind != REGULAR {
        member.size = 0;
    }
    member.kind = kind;
    Some(())
}

/// Makes a capability that counts in one user namespace (version 3) one that counts everywhere (version
/// 2), which is what the tar had.
fn without_namespace(capability: &mut Vec<u8>) {
    if capability.len() == 24 && capability[3] == 3 {
        capability[3] = 2;
        capability.truncate(20);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_shifted_back() {
        let map = [
            IdMapping {
                container_id: 0,
                host_id: 1000,
                size: 1,
            },
            IdMapping {
                container_id: 1,
                host_id: 100_000,
                size: 65_536,
            },
        ];
        for (host, inside) in [(1000, 0), (100_000, 1), (100_041, 42), (7, 7)] {
            assert_eq!(unmapped(&map, host), inside);
        }
    }

    #[test]
    fn an_override_of_owner_mode_and_type_is_applied() {
        let mut member = Member {
            kind: REGULAR,
            mode: 0o700,
            size: 5,
            ..Member::default()
        };
        overridden(&mut member, b"3:4:4755").unwrap();
        assert_eq!(
            (member.uid, member.gid, member.mode, member.size),
            (3, 4, 0o4755, 5)
        );
        overridden(&mut member, b"0:0:0600:char-1-3").unwrap();
        assert_eq!(
            (member.kind, member.device, member.size),
            (CHAR_DEVICE, (1, 3), 0)
        );
        for bad in [
            &b""[..],
            b"1:2",
            b"1:2:9",
            b"1:2:644:char",
            b"1:2:644:dir",
            b"1:2:644:x",
        ] {
            assert!(overridden(&mut member.clone(), bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn a_capability_of_a_namespace_becomes_one_of_all() {
        let mut value = vec![1, 0, 0, 3];
        value.extend([7; 20]);
        without_namespace(&mut value);
        assert_eq!(value, [&[1, 0, 0, 2][..], &[7; 16]].concat());
    }
}
