//! The `podman` rule set: the tree that podman's overlay driver shows for the same layers.
//!
//! podman extracts each layer into a directory of its own and lets overlayfs unite them; so does
//! this, with a tree for the directory ([`LayerTree`]) and [`super::union`] for overlayfs. Facts
//! from containers/storage (`pkg/archive`, the overlay driver) and from podman 4.3 at work:
//!
//! * Extraction happens in a chroot: `..` ends at its root, and symlinks of the same layer are
//!   followed on the way to an entry's directory. Links of lower layers are not seen.
//! * Missing parents are made with mode 0755 (and the set-group-ID bit of the directory that they
//!   are in), owned by root, and hide the metadata that a lower layer has for them. podman gives
//!   them the time of the extraction, which is no property of the image: here the lower
//!   directory's time stays, and without one it is 0.
//! * An entry `./` is ignored, an entry `/` is not. A first layer's root is 0555 root:root; others
//!   begin with the mode and owner of the one below, without its xattrs.
//! * Symlinks have mode 0777. Times before 1970 become 0, but not those of symlinks.
//! * A hard link's header changes the owner, mode and time of the file that it links to, and a
//!   change of owner costs the file its capabilities. Targets in lower layers do not exist.
//! * Whiteouts leave what the same layer put there alone. One that follows the file of its name is
//!   an error; one that precedes it has no effect. The root is never opaque.
//! * A regular file of type flag NUL whose path ends in a slash is a directory.
//! * `security.selinux` is never applied, nor is a name in a namespace that Linux does not have,
//!   nor `user.*` on what cannot have it, nor one without a value; `trusted.overlay.*` is overlayfs'
//!   own and invisible. A redirect among these would show other directories or not, as the mount
//!   options have it, and is refused.
//!
//! * A path comes once: podman's tar-split has no place for a second entry of it.
//!
//! Where podman refuses a layer, this does too, but where it stumbles over something that does no harm:
//! type flag 7, payloads of entries that have none, numbers that Go does not read, a zero block between
//! entries, capabilities that are none, `user.*` on a symlink (which rootless podman leaves out).

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};

use composefs_image::{InodeId, Kind, Metadata, Timestamp, Tree};

use super::{
    acl::{self, Acl},
    entry::{Entry, Item},
    error::{EntryError, EntryProblem},
    kind_of,
    path::{self, Cleaned},
    whiteout::{self, Whiteout},
};

/// Links that Linux follows in one path.
const SYMLINK_LIMIT: usize = 40;

/// Longest name of an xattr that Linux takes, in bytes.
const XATTR_NAME_LIMIT: usize = 255;

/// Longest path that Linux takes, in bytes.
const PATH_LIMIT: usize = 4095;

/// Mode and owner of the root of a layer without parent.
pub(super) const BASE_ROOT: Metadata = Metadata {
    mode: 0o555,
    uid: 0,
    gid: 0,
    mtime: Timestamp { sec: 0, nsec: 0 },
};

/// One layer, extracted. A character device 0:0 is a whiteout.
pub(super) struct LayerTree {
    pub(super) tree: Tree,
    /// Directories that hide what is below them.
    pub(super) opaque: HashSet<InodeId>,
    /// Directories that were made on the way to something.
    pub(super) implicit: HashSet<InodeId>,
    paths: Paths,
    /// The last directory that something went into, by the path in the layer. Such paths go on leading there
    /// until something is unlinked.
    recent: Option<(Vec<u8>, InodeId)>,
}

/// The paths of entries so far, as hashes: a layer can have very many.
struct Paths {
    keys: [RandomState; 2],
    seen: HashSet<[u64; 2]>,
}

impl Paths {
    fn new() -> Self {
        Self {
            keys: [RandomState::new(), RandomState::new()],
            seen: HashSet::new(),
        }
    }

    /// Whether the path is a new one. Paths are compared as tar-split does: cleaned, but `a`, `/a` and
    /// `../a` are three.
    fn insert(&mut self, path: &[u8]) -> bool {
        let absolute = path.starts_with(b"/");
        let (mut above, mut names) = (0_usize, Vec::new());
        for name in path::components(path) {
            if name != b".." {
                names.push(name);
            } else if names.pop().is_none() && !absolute {
                above += 1;
            }
        }
        let path = (absolute, above, names);
        let hashes = self.keys.each_ref().map(|key| key.hash_one(&path));
        self.seen.insert(hashes)
    }
}

/// Why a path leads nowhere.
#[derive(Debug, PartialEq, Eq)]
enum Astray {
    Missing,
    NotADirectory,
    Loop,
}

impl From<Astray> for EntryProblem {
    fn from(astray: Astray) -> Self {
        match astray {
            Astray::Missing => Self::NoParent,
            Astray::NotADirectory => Self::ParentNotADirectory,
            Astray::Loop => Self::SymlinkLoop,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum LastLink {
    Follow,
    Keep,
}

impl LayerTree {
    /// Nothing but the root, which has the mode and owner of the root below.
    pub(super) fn new(root: Metadata) -> Self {
        Self {
            tree: Tree::new(root),
            opaque: HashSet::new(),
            implicit: HashSet::new(),
            paths: Paths::new(),
            recent: None,
        }
    }

    pub(super) fn extract(&mut self, entry: &Entry) -> Result<(), EntryError> {
        self.place(entry).map_err(|problem| entry.error(problem))
    }

    fn place(&mut self, entry: &Entry) -> Result<(), EntryProblem> {
        if entry.path.len() > PATH_LIMIT {
            return Err(EntryProblem::LongPath(entry.path.len()));
        }
        // Old tars have no other way to write a directory.
        let is_old_directory = entry.type_flag == 0 && entry.path.ends_with(b"/");
        let item = if is_old_directory {
            &Item::Directory
        } else {
            &entry.item
        };
        let Cleaned { names, is_dot } = path::clean(&entry.path);
        if !self.paths.insert(&entry.path) {
            return Err(EntryProblem::Duplicate);
        }
        let Some((&name, parents)) = names.split_last() else {
            return match item {
                _ if is_dot => Ok(()),
                Item::Directory => self.set_metadata(self.tree.root(), entry),
                _ => Err(EntryProblem::RootNotADirectory),
            };
        };
        let directory = self.parent(&entry.path, name, parents)?;

        let is_directory = *item == Item::Directory;
        let existing = directory
            .as_ref()
            .ok()
            .and_then(|&directory| Some((directory, self.tree.lookup(directory, name)?)));
        if let Some((directory, existing)) = existing
            && !(is_directory && self.tree.is_directory(existing))
        {
            self.tree.unlink(directory, name);
            self.recent = None;
        }
        if let Some(whiteout) = whiteout::parse(name) {
            return self.white_out(directory, parents, whiteout);
        }

        let directory = directory?;
        let id = match item {
            Item::Directory => match self.tree.lookup(directory, name) {
                Some(existing) => {
                    self.implicit.remove(&existing);
                    existing
                }
                None => self.add(directory, name, item)?,
            },
            Item::HardLink(target) => return self.link(directory, name, target, entry),
            _ => self.add(directory, name, item)?,
        };
        self.set_metadata(id, entry)
    }

    /// The directory of the entry `name`, made if it is missing. `name`, the last of `path`, is a part of it,
    /// and `parents` are the names before it.
    fn parent(
        &mut self,
        path: &[u8],
        name: &[u8],
        parents: &[&[u8]],
    ) -> Result<Result<InodeId, Astray>, EntryProblem> {
        let start = (name.as_ptr() as usize).wrapping_sub(path.as_ptr() as usize);
        let before = path.get(..start).unwrap_or(path);
        if let Some((path, directory)) = &self.recent
            && path == before
        {
            return Ok(Ok(*directory));
        }
        if self.walk(parents, LastLink::Keep) == Err(Astray::Missing) {
            self.make_directories(parents)?;
        }
        let directory = self.directory(parents);
        self.recent = directory.as_ref().ok().map(|&id| (before.to_vec(), id));
        Ok(directory)
    }

    fn add(
        &mut self,
        directory: InodeId,
        name: &[u8],
        item: &Item,
    ) -> Result<InodeId, EntryProblem> {
        let id = self.tree.add(Metadata::default(), kind_of(item)?);
        self.tree
            .link(directory, name, id)
            .map_err(EntryProblem::Tree)?;
        Ok(id)
    }

    fn link(
        &mut self,
        directory: InodeId,
        name: &[u8],
        target: &[u8],
        entry: &Entry,
    ) -> Result<(), EntryProblem> {
        let missing = || EntryProblem::NoHardLinkTarget(target.to_vec());
        let id = self
            .walk(&path::clean(target).names, LastLink::Keep)
            .map_err(|_| missing())?;
        if self.tree.is_directory(id) {
            return Err(EntryProblem::HardLinkToDirectory(target.to_vec()));
        }
        self.tree
            .link(directory, name, id)
            .map_err(EntryProblem::Tree)?;
        let old = self.tree.metadata(id);
        if (old.uid, old.gid) != (entry.metadata.uid, entry.metadata.gid) {
            self.tree.remove_xattr(id, b"security.capability");
        }
        self.set_metadata(id, entry)?;
        if matches!(self.tree.kind(id), Kind::Symlink(_)) {
            self.tree.change_metadata(id, |new| new.mtime = old.mtime);
        }
        Ok(())
    }

    fn white_out(
        &mut self,
        directory: Result<InodeId, Astray>,
        parents: &[&[u8]],
        whiteout: Whiteout<'_>,
    ) -> Result<(), EntryProblem> {
        match whiteout {
            Whiteout::Opaque => match directory {
                Ok(directory) => {
                    self.opaque.insert(directory);
                    Ok(())
                }
                // The mark is then set on a file, where it means nothing.
                Err(_) if self.walk(parents, LastLink::Follow).is_ok() => Ok(()),
                Err(astray) => Err(astray.into()),
            },
            Whiteout::Name(name) => {
                let directory = match directory {
                    // Below a file or another whiteout there is nothing to hide.
                    Err(Astray::NotADirectory) => return Ok(()),
                    other => other?,
                };
                if matches!(name, b"" | b"." | b"..") || self.tree.lookup(directory, name).is_some()
                {
                    return Err(EntryProblem::WhiteoutOfOwn);
                }
                let id = self.tree.add(Metadata::default(), Kind::CharDevice(0));
                self.tree
                    .link(directory, name, id)
                    .map_err(EntryProblem::Tree)?;
                Ok(())
            }
        }
    }

    /// Mode, owner, time and xattrs as podman applies them; xattrs that are there stay.
    fn set_metadata(&mut self, id: InodeId, entry: &Entry) -> Result<(), EntryProblem> {
        let mut metadata = entry.metadata;
        let (is_directory, is_file, is_symlink) = match self.tree.kind(id) {
            Kind::Directory => (true, false, false),
            Kind::Regular(_) => (false, true, false),
            Kind::Symlink(_) => (false, false, true),
            _ => (false, false, false),
        };
        if is_symlink {
            metadata.mode = 0o777;
        } else {
            metadata.mtime = clamp(metadata.mtime);
        }
        for (name, value) in effective_xattrs(&entry.xattrs) {
            match name {
                b"" | b"security." | b"trusted." | b"user." => {
                    return Err(EntryProblem::XattrName(name.to_vec()));
                }
                _ if name.len() > XATTR_NAME_LIMIT => {
                    return Err(EntryProblem::XattrName(name.to_vec()));
                }
                b"security.selinux" => {}
                b"trusted.overlay.opaque" if is_directory && value == b"y" => {
                    self.opaque.insert(id);
                }
                b"trusted.overlay.redirect" if is_directory => {
                    return Err(EntryProblem::Redirect);
                }
                b"system.posix_acl_access" if !is_symlink => match acl::parse(value) {
                    None => {}
                    Some(Acl::Mode(mode)) => metadata.mode = metadata.mode & 0o7000 | mode,
                    Some(Acl::Extended(mode)) => {
                        metadata.mode = metadata.mode & 0o7000 | mode;
                        self.tree.set_xattr(id, name, value);
                    }
                },
                b"system.posix_acl_default" if is_directory => {
                    if acl::parse(value).is_some() {
                        self.tree.set_xattr(id, name, value);
                    }
                }
                other => {
                    let has = |prefix: &[u8]| other.starts_with(prefix);
                    let kept = has(b"security.")
                        || (has(b"trusted.") && !has(b"trusted.overlay."))
                        || (has(b"user.") && (is_directory || is_file));
                    if kept {
                        self.tree.set_xattr(id, name, value);
                    }
                }
            }
        }
        self.tree.set_metadata(id, metadata);
        Ok(())
    }

    fn directory(&self, parents: &[&[u8]]) -> Result<InodeId, Astray> {
        let id = self.walk(parents, LastLink::Follow)?;
        if self.tree.is_directory(id) {
            Ok(id)
        } else {
            Err(Astray::NotADirectory)
        }
    }

    /// What is at the path, as the kernel finds it in a chroot.
    fn walk(&self, names: &[&[u8]], last: LastLink) -> Result<InodeId, Astray> {
        let mut trail = vec![self.tree.root()];
        let mut ahead: Vec<&[u8]> = names.iter().rev().copied().collect();
        let mut links = 0;
        while let Some(name) = ahead.pop() {
            let here = *trail.last().unwrap_or(&self.tree.root());
            if !self.tree.is_directory(here) {
                return Err(Astray::NotADirectory);
            }
            if name == b".." {
                if trail.len() > 1 {
                    trail.pop();
                }
                continue;
            }
            let id = self.tree.lookup(here, name).ok_or(Astray::Missing)?;
            match self.tree.kind(id) {
                Kind::Symlink(target) if last == LastLink::Follow || !ahead.is_empty() => {
                    links += 1;
                    if links > SYMLINK_LIMIT {
                        return Err(Astray::Loop);
                    }
                    if target.starts_with(b"/") {
                        trail.truncate(1);
                    }
                    ahead.extend(path::components(target).rev());
                }
                _ => trail.push(id),
            }
        }
        Ok(*trail.last().unwrap_or(&self.tree.root()))
    }

    /// Makes what is missing of a path. A symlink to nothing on the way is in the way.
    fn make_directories(&mut self, names: &[&[u8]]) -> Result<(), EntryProblem> {
        for length in 1..=names.len() {
            let path = &names[..length];
            if self.walk(path, LastLink::Keep) != Err(Astray::Missing) {
                continue;
            }
            let parent = self.directory(&path[..length - 1])?;
            let set_gid = self.tree.metadata(parent).mode & 0o2000;
            let metadata = Metadata {
                mode: 0o755 | set_gid,
                ..Metadata::default()
            };
            let id = self.tree.add(metadata, Kind::Directory);
            self.tree
                .link(parent, path[length - 1], id)
                .map_err(EntryProblem::Tree)?;
            self.implicit.insert(id);
        }
        Ok(())
    }
}

/// The xattrs that podman sets: of a name that comes twice the last one, and none without a value, as
/// Go's `archive/tar` takes such a record for the absence of one.
fn effective_xattrs(xattrs: &[(Vec<u8>, Vec<u8>)]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut seen = HashSet::new();
    let mut last: Vec<_> = xattrs
        .iter()
        .rev()
        .filter(|(name, _)| seen.insert(name))
        .collect();
    last.reverse();
    last.into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| (&name[..], &value[..]))
}

/// Times that podman cannot set become 1970.
fn clamp(time: Timestamp) -> Timestamp {
    // What 64 bits of nanoseconds hold.
    let limit = Timestamp {
        sec: 9_223_372_036,
        nsec: 854_775_807,
    };
    if time.sec < 0 || time > limit {
        Timestamp::default()
    } else {
        time
    }
}
