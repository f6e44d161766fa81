//! The file tree that images, dumpfiles and layers are turned into and made from.
//!
//! A [`Tree`] is an arena: inodes are numbered, names are bytes, and a hard link is a second name
//! of the same [`InodeId`]. It is compact (about 100 bytes per file, equal xattr sets are stored
//! once) and made for merging layers: names may be added, replaced and removed in any order, in
//! directories of any size. It knows no paths of the host and never reads a file.
//!
//! What a tree can hold is checked when it is put in (names, no directory under two names); what a
//! format can hold (lengths, sizes) is checked by its writer.

mod arena;
mod directory;
mod owners;
mod walk;
mod xattrs;

use std::collections::HashMap;

use thiserror::Error;

use crate::fsverity::VerityDigest;
use arena::Arena;
use directory::{Entries, Names};
use owners::Owners;
pub use walk::{Visit, Walk};
pub(crate) use xattrs::{PairId, SetId, XattrTable};

/// The longest name that a directory can hold, in bytes.
pub const NAME_MAX: usize = 255;

/// The file types of `st_mode`.
pub mod mode {
    /// The bits of a mode that are the file type.
    pub const TYPE: u16 = 0o170_000;
    /// The other bits.
    pub const PERMISSIONS: u16 = 0o7777;
    /// A named pipe.
    pub const FIFO: u16 = 0o010_000;
    /// A character device.
    pub const CHAR_DEVICE: u16 = 0o020_000;
    /// A directory.
    pub const DIRECTORY: u16 = 0o040_000;
    /// A block device.
    pub const BLOCK_DEVICE: u16 = 0o060_000;
    /// A regular file.
    pub const REGULAR: u16 = 0o100_000;
    /// A symbolic link.
    pub const SYMLINK: u16 = 0o120_000;
    /// A socket.
    pub const SOCKET: u16 = 0o140_000;
}

/// An inode of one [`Tree`]. Of no use with another tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeId(u32);

impl InodeId {
    /// A dense number below [`Tree::inode_count`], for tables beside the tree.
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    pub(crate) const fn from_index(index: u32) -> Self {
        Self(index)
    }
}

/// A point in time: seconds since 1970 and the nanoseconds on top of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Seconds since 1970, negative before.
    pub sec: i64,
    /// Nanoseconds, normally below 1,000,000,000; dumpfiles can hold larger ones.
    pub nsec: u32,
}

/// What every inode has but its type and xattrs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Metadata {
    /// Permission bits including setuid, setgid and sticky (07777), without the file type.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last modification.
    pub mtime: Timestamp,
}

/// The type of an inode with its payload. Borrowed: a tree copies it in [`Tree::add`] and lends it
/// in [`Tree::kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind<'a> {
    /// A directory; its names are in the tree.
    Directory,
    /// A regular file.
    Regular(Content<'a>),
    /// A symbolic link with its target.
    Symlink(&'a [u8]),
    /// A character device with its number, as Linux encodes it in 32 bits (259 for 1:3). Number 0
    /// is an overlayfs whiteout.
    CharDevice(u32),
    /// A block device with its number.
    BlockDevice(u32),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// Where the content of a regular file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// In the image itself. An empty file has an empty slice.
    Inline(&'a [u8]),
    /// In an object beside the image.
    External {
        /// Size of the file in bytes. 0 makes it an empty file without an object.
        size: u64,
        /// fs-verity digest of the object; without one it is not verified.
        digest: Option<VerityDigest>,
        /// Path of the object below the object directory, when it is not the digest's own
        /// ([`VerityDigest::object_path`]); empty to name no object beside a digest. A file with
        /// neither path nor digest is all zeros.
        path: Option<&'a [u8]>,
    },
}

impl Content<'_> {
    /// An empty file.
    pub const EMPTY: Self = Content::Inline(&[]);

    /// Size of the file in bytes.
    pub const fn size(&self) -> u64 {
        match self {
            Content::Inline(bytes) => bytes.len() as u64,
            Content::External { size, .. } => *size,
        }
    }
}

/// Something that a tree cannot hold.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TreeError {
    /// An empty name, `.`, `..`, or one with a slash or NUL byte.
    #[error("\"{}\" is no name for a directory entry", .0.escape_ascii())]
    BadName(Box<[u8]>),
    /// More than [`NAME_MAX`] bytes.
    #[error("a name has {} bytes, at most {NAME_MAX} are possible: \"{}\"", .0.len(), .0.escape_ascii())]
    LongName(Box<[u8]>),
    /// A name was to be put under something that is no directory.
    #[error("\"{}\" cannot be put under something that is not a directory", .0.escape_ascii())]
    NotADirectory(Box<[u8]>),
    /// A directory (or the root) was to get a second name.
    #[error("\"{}\" would be a second name of a directory", .0.escape_ascii())]
    DirectoryLinked(Box<[u8]>),
}

/// [`Kind`] as it is stored; 16 bytes.
#[derive(Clone, Copy)]
enum Node {
    Directory { entries: u32 },
    // Starts and sizes are 64 bits in two halves: 12 bytes that align to 4.
    Inline { start: [u32; 2], len: u32 },
    Symlink { start: [u32; 2], len: u32 },
    Sha256 { digest: u32, size: [u32; 2] },
    Sha512 { digest: u32, size: [u32; 2] },
    NoDigest { size: [u32; 2] },
    CharDevice(u32),
    BlockDevice(u32),
    Fifo,
    Socket,
}

#[derive(Clone)]
struct Inode {
    /// Seconds, in two halves, and nanoseconds.
    mtime: ([u32; 2], u32),
    owner: u32,
    xattrs: SetId,
    names: u32,
    node: Node,
}

// There are hundreds of thousands of them.
const _: () = assert!(size_of::<Inode>() == 40);

/// A file tree. See the [module](self).
#[derive(Clone)]
pub struct Tree {
    inodes: Arena<Inode>,
    owners: Owners,
    directories: Vec<Entries>,
    names: Names,
    /// Inline contents and symlink targets.
    bytes: Vec<u8>,
    sha256: Arena<[u8; 32]>,
    sha512: Arena<[u8; 64]>,
    /// Object paths that are not the digest's own: rare.
    paths: HashMap<InodeId, Box<[u8]>>,
    /// Link counts that a dumpfile gives and that are not the number of names: rare.
    nlinks: HashMap<InodeId, u32>,
    xattrs: XattrTable,
}

const ROOT: InodeId = InodeId(0);

const fn mtime_of(metadata: &Metadata) -> ([u32; 2], u32) {
    (split(metadata.mtime.sec as u64), metadata.mtime.nsec)
}

const fn split(number: u64) -> [u32; 2] {
    [number as u32, (number >> 32) as u32]
}

const fn join(halves: [u32; 2]) -> u64 {
    (halves[1] as u64) << 32 | halves[0] as u64
}

impl Tree {
    /// A tree of a root directory alone.
    pub fn new(root: Metadata) -> Self {
        let mut tree = Self {
            inodes: Arena::default(),
            owners: Owners::default(),
            directories: Vec::new(),
            names: Names::default(),
            bytes: Vec::new(),
            sha256: Arena::default(),
            sha512: Arena::default(),
            paths: HashMap::new(),
            nlinks: HashMap::new(),
            xattrs: XattrTable::default(),
        };
        let id = tree.add(root, Kind::Directory);
        tree.inode_mut(id).names = 1;
        tree
    }

    /// The root directory.
    pub const fn root(&self) -> InodeId {
        ROOT
    }

    /// One more than the largest [`InodeId::index`]; inodes that lost their last name count too.
    pub const fn inode_count(&self) -> usize {
        self.inodes.len()
    }

    fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id.index()]
    }

    fn inode_mut(&mut self, id: InodeId) -> &mut Inode {
        &mut self.inodes[id.index()]
    }

    /// Adds an inode that has no name yet; [`Self::link`] gives it one.
    pub fn add(&mut self, metadata: Metadata, kind: Kind<'_>) -> InodeId {
        // Unreachable before 200 GB of inodes.
        let id = InodeId(u32::try_from(self.inodes.len()).expect("fewer than 2^32 inodes"));
        let node = self.store(id, kind);
        let owner = self.owners.number(&metadata);
        self.inodes.push(Inode {
            mtime: mtime_of(&metadata),
            owner,
            xattrs: SetId::EMPTY,
            names: 0,
            node,
        });
        id
    }

    /// Adds an inode with the type, content, metadata and xattrs of another one, which is no
    /// directory. It has no name yet: this is how a hard link is made a file of its own.
    ///
    /// # Panics
    /// If it is a directory.
    pub fn duplicate(&mut self, id: InodeId) -> InodeId {
        assert!(!self.is_directory(id), "a directory has one name only");
        let copy = InodeId(u32::try_from(self.inodes.len()).expect("fewer than 2^32 inodes"));
        if let Some(path) = self.paths.get(&id) {
            self.paths.insert(copy, path.clone());
        }
        self.inodes.push(Inode {
            names: 0,
            ..self.inode(id).clone()
        });
        copy
    }

    fn store(&mut self, id: InodeId, kind: Kind<'_>) -> Node {
        match kind {
            Kind::Directory => {
                self.directories.push(Entries::default());
                Node::Directory {
                    entries: self.directories.len() as u32 - 1,
                }
            }
            Kind::Regular(Content::Inline(content)) => {
                let (start, len) = self.store_bytes(content);
                Node::Inline { start, len }
            }
            Kind::Regular(Content::External { size: 0, .. }) => Node::Inline {
                start: [0, 0],
                len: 0,
            },
            Kind::Regular(Content::External { size, digest, path }) => {
                let own = digest.map(|digest| digest.object_path());
                if let Some(path) =
                    path.filter(|path| own.as_deref().map(str::as_bytes) != Some(path))
                {
                    self.paths.insert(id, path.into());
                }
                let size = split(size);
                match digest.as_ref().map(VerityDigest::as_bytes) {
                    None => Node::NoDigest { size },
                    Some(bytes) => {
                        if let Ok(bytes) = bytes.try_into() {
                            self.sha256.push(bytes);
                            let digest = self.sha256.len() as u32 - 1;
                            Node::Sha256 { digest, size }
                        } else {
                            self.sha512
                                .push(bytes.try_into().expect("digests have 32 or 64 bytes"));
                            let digest = self.sha512.len() as u32 - 1;
                            Node::Sha512 { digest, size }
                        }
                    }
                }
            }
            Kind::Symlink(target) => {
                let (start, len) = self.store_bytes(target);
                Node::Symlink { start, len }
            }
            Kind::CharDevice(rdev) => Node::CharDevice(rdev),
            Kind::BlockDevice(rdev) => Node::BlockDevice(rdev),
            Kind::Fifo => Node::Fifo,
            Kind::Socket => Node::Socket,
        }
    }

    fn store_bytes(&mut self, bytes: &[u8]) -> ([u32; 2], u32) {
        // Inline contents and targets are far below 4 GiB: what is larger belongs in an object.
        let len = u32::try_from(bytes.len()).expect("inline content below 4 GiB");
        let start = split(self.bytes.len() as u64);
        self.bytes.extend_from_slice(bytes);
        (start, len)
    }

    /// The type of an inode with its payload.
    pub fn kind(&self, id: InodeId) -> Kind<'_> {
        let external = |size, digest: Option<VerityDigest>| {
            let path = if self.paths.is_empty() {
                None
            } else {
                self.paths.get(&id).map(AsRef::as_ref)
            };
            let size = join(size);
            Kind::Regular(Content::External { size, digest, path })
        };
        match self.inode(id).node {
            Node::Directory { .. } => Kind::Directory,
            Node::Inline { start, len } => Kind::Regular(Content::Inline(
                &self.bytes[join(start) as usize..][..len as usize],
            )),
            Node::Symlink { start, len } => {
                Kind::Symlink(&self.bytes[join(start) as usize..][..len as usize])
            }
            Node::Sha256 { digest, size } => external(
                size,
                Some(VerityDigest::sha256(self.sha256[digest as usize])),
            ),
            Node::Sha512 { digest, size } => external(
                size,
                Some(VerityDigest::sha512(self.sha512[digest as usize])),
            ),
            Node::NoDigest { size } => external(size, None),
            Node::CharDevice(rdev) => Kind::CharDevice(rdev),
            Node::BlockDevice(rdev) => Kind::BlockDevice(rdev),
            Node::Fifo => Kind::Fifo,
            Node::Socket => Kind::Socket,
        }
    }

    /// Replaces the content of a regular file. Does nothing to other types.
    pub fn set_content(&mut self, id: InodeId, content: Content<'_>) {
        if matches!(self.kind(id), Kind::Regular(_)) {
            self.paths.remove(&id);
            self.inode_mut(id).node = self.store(id, Kind::Regular(content));
        }
    }

    /// File type and permissions, as in `st_mode`.
    pub fn st_mode(&self, id: InodeId) -> u16 {
        let inode = self.inode(id);
        let file_type = match inode.node {
            Node::Directory { .. } => mode::DIRECTORY,
            Node::Inline { .. }
            | Node::Sha256 { .. }
            | Node::Sha512 { .. }
            | Node::NoDigest { .. } => mode::REGULAR,
            Node::Symlink { .. } => mode::SYMLINK,
            Node::CharDevice(_) => mode::CHAR_DEVICE,
            Node::BlockDevice(_) => mode::BLOCK_DEVICE,
            Node::Fifo => mode::FIFO,
            Node::Socket => mode::SOCKET,
        };
        file_type | self.owners.get(inode.owner).0 & mode::PERMISSIONS
    }

    /// Whether the inode is a directory.
    pub fn is_directory(&self, id: InodeId) -> bool {
        matches!(self.inode(id).node, Node::Directory { .. })
    }

    pub(crate) fn is_external(&self, id: InodeId) -> bool {
        matches!(
            self.inode(id).node,
            Node::Sha256 { .. } | Node::Sha512 { .. } | Node::NoDigest { .. }
        )
    }

    /// Mode, owner and time.
    pub fn metadata(&self, id: InodeId) -> Metadata {
        let inode = self.inode(id);
        let (mode, uid, gid) = self.owners.get(inode.owner);
        let (sec, nsec) = inode.mtime;
        Metadata {
            mode,
            uid,
            gid,
            mtime: Timestamp {
                sec: join(sec) as i64,
                nsec,
            },
        }
    }

    /// Replaces mode, owner and time.
    pub fn set_metadata(&mut self, id: InodeId, metadata: Metadata) {
        let owner = self.owners.number(&metadata);
        let inode = self.inode_mut(id);
        inode.owner = owner;
        inode.mtime = mtime_of(&metadata);
    }

    /// Changes mode, owner or time.
    pub fn change_metadata(&mut self, id: InodeId, change: impl FnOnce(&mut Metadata)) {
        let mut metadata = self.metadata(id);
        change(&mut metadata);
        self.set_metadata(id, metadata);
    }

    fn entries(&self, directory: InodeId) -> Option<&Entries> {
        match self.inode(directory).node {
            Node::Directory { entries } => Some(&self.directories[entries as usize]),
            _ => None,
        }
    }

    fn entries_mut(&mut self, directory: InodeId) -> Option<(&mut Entries, &mut Names)> {
        match self.inode(directory).node {
            Node::Directory { entries } => {
                Some((&mut self.directories[entries as usize], &mut self.names))
            }
            _ => None,
        }
    }

    /// Gives `id` a name in `directory`, replacing what had that name, which is returned. Something
    /// other than a directory may have many names: they are hard links.
    ///
    /// A replaced directory loses what is below it.
    pub fn link(
        &mut self,
        directory: InodeId,
        name: &[u8],
        id: InodeId,
    ) -> Result<Option<InodeId>, TreeError> {
        check_name(name)?;
        let again = self.inode(id).names > 0;
        if again && self.is_directory(id) {
            return Err(TreeError::DirectoryLinked(name.into()));
        }
        let Some((entries, names)) = self.entries_mut(directory) else {
            return Err(TreeError::NotADirectory(name.into()));
        };
        let replaced = entries.insert(names, name, id, again);
        self.inode_mut(id).names += 1;
        if let Some(replaced) = replaced {
            self.release(replaced);
        }
        Ok(replaced)
    }

    /// Removes a name and returns the inode that had it. A directory loses what is below it.
    pub fn unlink(&mut self, directory: InodeId, name: &[u8]) -> Option<InodeId> {
        let (entries, names) = self.entries_mut(directory)?;
        let removed = entries.remove(names, name)?;
        self.release(removed);
        Some(removed)
    }

    /// Removes all names below a directory.
    pub fn clear_children(&mut self, directory: InodeId) {
        let mut cleared = vec![directory];
        while let Some(directory) = cleared.pop() {
            let Some((entries, _)) = self.entries_mut(directory) else {
                continue;
            };
            for entry in std::mem::take(entries).iter() {
                let inode = self.inode_mut(entry.inode());
                inode.names -= 1;
                if matches!(inode.node, Node::Directory { .. }) {
                    cleared.push(entry.inode());
                }
            }
        }
    }

    fn release(&mut self, id: InodeId) {
        self.inode_mut(id).names -= 1;
        self.clear_children(id);
    }

    /// What has this name in `directory`.
    pub fn lookup(&self, directory: InodeId, name: &[u8]) -> Option<InodeId> {
        self.entries(directory)?.get(&self.names, name)
    }

    /// What is at this path from the root. Symlinks are not followed; empty components and a
    /// leading slash are skipped.
    pub fn lookup_path(&self, path: &[u8]) -> Option<InodeId> {
        self.lookup_below(self.root(), path)
    }

    pub(crate) fn lookup_below(&self, directory: InodeId, path: &[u8]) -> Option<InodeId> {
        path.split(|&byte| byte == b'/')
            .filter(|name| !name.is_empty())
            .try_fold(directory, |directory, name| self.lookup(directory, name))
    }

    /// The names in a directory, sorted bytewise, without `.` and `..`. Empty for other types.
    pub fn children(
        &self,
        directory: InodeId,
    ) -> impl Iterator<Item = (&[u8], InodeId)> + Clone + use<'_> {
        self.entries(directory)
            .into_iter()
            .flat_map(Entries::iter)
            .map(|entry| (self.names.get(entry), entry.inode()))
    }

    /// As [`Self::children`], with whether the inode had another name when it got this one.
    pub(crate) fn names_in(
        &self,
        directory: InodeId,
    ) -> impl Iterator<Item = (&[u8], InodeId, bool)> + Clone + use<'_> {
        self.entries(directory)
            .into_iter()
            .flat_map(Entries::iter)
            .map(|entry| (self.names.get(entry), entry.inode(), entry.is_later()))
    }

    /// How many names are in a directory.
    pub fn child_count(&self, directory: InodeId) -> usize {
        self.entries(directory).map_or(0, Entries::len)
    }

    /// How many names the inode has in the tree: the link count of everything but directories.
    pub fn name_count(&self, id: InodeId) -> u32 {
        self.inode(id).names
    }

    /// The link count: 2 and the subdirectories for a directory, else what
    /// [`Self::set_nlink`] says, else the number of names.
    pub fn nlink(&self, id: InodeId) -> u32 {
        match self.entries(id) {
            Some(entries) => {
                let is_directory = |id: &InodeId| self.is_directory(*id);
                2 + entries
                    .iter()
                    .map(directory::Entry::inode)
                    .filter(is_directory)
                    .count() as u32
            }
            None => self
                .explicit_nlink(id)
                .unwrap_or_else(|| self.name_count(id)),
        }
    }

    pub(crate) fn explicit_nlink(&self, id: InodeId) -> Option<u32> {
        if self.nlinks.is_empty() {
            return None;
        }
        self.nlinks.get(&id).copied()
    }

    /// States a link count that is not the number of names, as dumpfiles can; `None` takes it back.
    /// Only [`Dialect::C`](crate::Dialect::C) writes it.
    pub fn set_nlink(&mut self, id: InodeId, nlink: Option<u32>) {
        match nlink {
            Some(nlink) => self.nlinks.insert(id, nlink),
            None => self.nlinks.remove(&id),
        };
    }

    /// The xattrs of an inode, sorted bytewise by full name.
    pub fn xattrs(&self, id: InodeId) -> impl Iterator<Item = (&[u8], &[u8])> + Clone + use<'_> {
        self.xattrs.iter(self.inode(id).xattrs)
    }

    /// The value of one xattr.
    pub fn xattr(&self, id: InodeId, name: &[u8]) -> Option<&[u8]> {
        self.xattrs.get(self.inode(id).xattrs, name)
    }

    /// Sets or replaces one xattr. Several at once are cheaper with [`Self::set_xattrs`].
    pub fn set_xattr(&mut self, id: InodeId, name: &[u8], value: &[u8]) {
        let old = self.inode(id).xattrs;
        self.inode_mut(id).xattrs = self.xattrs.with(old, name, value);
    }

    /// Replaces all xattrs; of a name given twice the last value stays.
    pub fn set_xattrs<'a>(
        &mut self,
        id: InodeId,
        xattrs: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) {
        self.inode_mut(id).xattrs = self.xattrs.set_of(xattrs);
    }

    /// Removes one xattr; whether it was there.
    pub fn remove_xattr(&mut self, id: InodeId, name: &[u8]) -> bool {
        let old = self.inode(id).xattrs;
        let new = self.xattrs.retain(old, |other, _| other != name);
        self.inode_mut(id).xattrs = new;
        new != old
    }

    /// Keeps the xattrs of one inode for which `keep(name, value)` is true.
    pub fn retain_xattrs(&mut self, id: InodeId, keep: impl FnMut(&[u8], &[u8]) -> bool) {
        let old = self.inode(id).xattrs;
        self.inode_mut(id).xattrs = self.xattrs.retain(old, keep);
    }

    /// As [`Self::retain_xattrs`] for every inode, asking once for each different set of xattrs.
    pub fn retain_all_xattrs(&mut self, mut keep: impl FnMut(&[u8], &[u8]) -> bool) {
        let mut done = vec![None; self.xattrs.set_count()];
        for inode in self.inodes.iter_mut() {
            let new = match done[inode.xattrs.index()] {
                Some(new) => new,
                None => self.xattrs.retain(inode.xattrs, &mut keep),
            };
            done[inode.xattrs.index()] = Some(new);
            inode.xattrs = new;
        }
    }

    /// Gives `to` the xattrs that `from` has.
    pub fn copy_xattrs(&mut self, from: InodeId, to: InodeId) {
        self.inode_mut(to).xattrs = self.inode(from).xattrs;
    }

    /// Whether some inode has more than one name.
    pub(crate) fn has_hard_links(&self) -> bool {
        self.inodes.iter().any(|inode| inode.names > 1)
    }

    pub(crate) fn xattr_set(&self, id: InodeId) -> SetId {
        self.inode(id).xattrs
    }

    pub(crate) fn set_xattr_set(&mut self, id: InodeId, set: SetId) {
        self.inode_mut(id).xattrs = set;
    }

    pub(crate) fn xattr_table(&self) -> &XattrTable {
        &self.xattrs
    }
}

fn check_name(name: &[u8]) -> Result<(), TreeError> {
    if name.len() > NAME_MAX {
        return Err(TreeError::LongName(name.into()));
    }
    if matches!(name, b"" | b"." | b"..") || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
        return Err(TreeError::BadName(name.into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
