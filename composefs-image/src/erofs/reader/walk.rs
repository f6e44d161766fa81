//! The names of an image with their inodes as they are stored, for tools that show an image.
//!
//! Where [`read_image`](super::read_image) gives the tree that was written, nothing is interpreted
//! here: escaped whiteouts are empty files, the root has the stubs of the C formats, xattrs have
//! their escaped names and their order in the image.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashSet};

use super::image::{Entries, Image, Inode, Xattr, XattrRef};
use super::{Format, InodeError, ReadError};
use crate::erofs::format::dirent_type;
use crate::tree::{Timestamp, mode};

/// An inode as it is stored.
#[derive(Clone, Debug)]
pub struct StoredInode<'a> {
    /// Its number.
    pub nid: u64,
    /// File type and permissions, as in `st_mode`.
    pub mode: u16,
    /// Link count.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last modification.
    pub mtime: Timestamp,
    /// Size in bytes: of the content, the symlink target or the directory's blocks.
    pub size: u64,
    /// Number of a device, 0 for other types.
    pub rdev: u32,
    /// What the image has of the content.
    pub data: StoredData<'a>,
    /// Full names and values: first those of the inode itself, then those it shares.
    pub xattrs: Vec<StoredXattr<'a>>,
}

/// Full name, as the image has it, and value of an xattr.
pub type StoredXattr<'a> = (Vec<u8>, &'a [u8]);

/// What an image has of an inode's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredData<'a> {
    /// Nothing: directories (their names are walked), devices, empty files.
    None,
    /// All of it: the content of a file, the target of a symlink.
    Inline(Cow<'a, [u8]>),
    /// The content of a file is outside of the image.
    External,
}

/// A name that an [`ImageWalk`] came to.
#[derive(Clone, Debug)]
pub struct StoredName<'a> {
    /// 0 for the root, whose name is empty, 1 for the names in it.
    pub depth: usize,
    /// The name.
    pub name: &'a [u8],
    /// What has the name.
    pub inode: NamedInode<'a>,
}

/// The inode that has a name.
#[derive(Clone, Debug)]
pub enum NamedInode<'a> {
    /// It is met for the first time.
    First(StoredInode<'a>),
    /// The walk has given another name of this number: a hard link.
    Again(u64),
}

/// Walks an image depth first, names sorted, beginning with the root.
pub fn walk_image(image: &[u8]) -> Result<ImageWalk<'_>, ReadError> {
    let image = Image::open(image)?;
    Ok(ImageWalk {
        seen: Seen::new(&image),
        image,
        open: Vec::new(),
        started: false,
        only: None,
    })
}

/// The iterator of [`walk_image`]. After an error it is not to be used further.
pub struct ImageWalk<'a> {
    image: Image<'a>,
    seen: Seen,
    /// From the root to where the walk is.
    open: Vec<Entries<'a>>,
    started: bool,
    only: Option<BTreeSet<Vec<u8>>>,
}

impl<'a> ImageWalk<'a> {
    /// The format of the image.
    pub const fn format(&self) -> Format {
        self.image.format
    }

    /// Leaves out what is in the root under other names than these.
    #[must_use]
    pub fn only(mut self, names: BTreeSet<Vec<u8>>) -> Self {
        self.only = Some(names);
        self
    }

    fn root(&mut self) -> Result<StoredName<'a>, ReadError> {
        let nid = self.image.root;
        let inode = self.image.inode(nid)?;
        if inode.file_type() != mode::DIRECTORY {
            return Err(inode.error(InodeError::NotADirectory));
        }
        self.seen.mark(nid);
        self.enter(&inode)?;
        Ok(StoredName {
            depth: 0,
            name: b"",
            inode: NamedInode::First(self.stored(&inode)?),
        })
    }

    fn enter(&mut self, directory: &Inode<'a>) -> Result<(), ReadError> {
        let data = self.image.data(directory)?;
        self.open.push(directory.entries(data));
        Ok(())
    }

    fn step(&mut self) -> Result<Option<StoredName<'a>>, ReadError> {
        loop {
            let depth = self.open.len();
            let Some(entries) = self.open.last_mut() else {
                return Ok(None);
            };
            let Some(entry) = entries.next() else {
                self.open.pop();
                continue;
            };
            let entry = entry?;
            let left_out = |only: &BTreeSet<Vec<u8>>| depth == 1 && !only.contains(entry.name);
            if matches!(entry.name, b"." | b"..") || self.only.as_ref().is_some_and(left_out) {
                continue;
            }
            let error = |problem| ReadError::Inode {
                nid: entry.nid,
                problem,
            };
            let inode = if self.seen.mark(entry.nid) {
                let inode = self.image.inode(entry.nid)?;
                if dirent_type(inode.mode) != entry.file_type || entry.file_type == 0 {
                    return Err(error(InodeError::Mode(inode.mode)));
                }
                if inode.file_type() == mode::DIRECTORY {
                    self.enter(&inode)?;
                }
                NamedInode::First(self.stored(&inode)?)
            } else if entry.file_type == DIRECTORY {
                return Err(error(InodeError::DirectoryTwice));
            } else {
                NamedInode::Again(entry.nid)
            };
            return Ok(Some(StoredName {
                depth,
                name: entry.name,
                inode,
            }));
        }
    }

    fn stored(&mut self, inode: &Inode<'a>) -> Result<StoredInode<'a>, ReadError> {
        let data = match inode.file_type() {
            mode::REGULAR if Image::is_chunked(inode) => StoredData::External,
            mode::REGULAR if inode.size == 0 => StoredData::None,
            mode::REGULAR | mode::SYMLINK => StoredData::Inline(match self.image.data(inode)? {
                (blocks, []) => Cow::Borrowed(blocks),
                ([], tail) => Cow::Borrowed(tail),
                (blocks, tail) => Cow::Owned([blocks, tail].concat()),
            }),
            mode::DIRECTORY
            | mode::CHAR_DEVICE
            | mode::BLOCK_DEVICE
            | mode::FIFO
            | mode::SOCKET => StoredData::None,
            _ => return Err(inode.error(InodeError::Mode(inode.mode))),
        };
        Ok(StoredInode {
            nid: inode.nid,
            mode: inode.mode,
            nlink: inode.nlink,
            uid: inode.uid,
            gid: inode.gid,
            mtime: inode.mtime,
            size: inode.size,
            rdev: match inode.file_type() {
                mode::CHAR_DEVICE | mode::BLOCK_DEVICE => inode.rdev(),
                _ => 0,
            },
            data,
            xattrs: self.xattrs(inode)?,
        })
    }

    fn xattrs(&mut self, inode: &Inode<'a>) -> Result<Vec<StoredXattr<'a>>, ReadError> {
        let mut local = Vec::new();
        let mut shared = Vec::new();
        for reference in inode.xattrs()? {
            let reference = reference?;
            let list = match reference {
                XattrRef::Local(_) => &mut local,
                XattrRef::Shared(_) => &mut shared,
            };
            let Xattr {
                prefix,
                suffix,
                value,
            } = self.image.xattr(inode.nid, reference)?;
            list.push(([prefix, suffix].concat(), value));
        }
        local.append(&mut shared);
        Ok(local)
    }
}

impl<'a> Iterator for ImageWalk<'a> {
    type Item = Result<StoredName<'a>, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.started {
            return self.step().transpose();
        }
        self.started = true;
        Some(self.root())
    }
}

/// The numbers of the inodes that have more than one name: those of which a walk says
/// [`NamedInode::Again`]. Reads directories only.
pub fn hard_linked(image: &[u8]) -> Result<HashSet<u64>, ReadError> {
    let mut image = Image::open(image)?;
    let mut seen = Seen::new(&image);
    let mut repeated = HashSet::new();
    let mut directories = vec![image.root];
    seen.mark(image.root);
    while let Some(nid) = directories.pop() {
        let directory = image.inode(nid)?;
        if directory.file_type() != mode::DIRECTORY {
            return Err(directory.error(InodeError::NotADirectory));
        }
        let data = image.data(&directory)?;
        for entry in directory.entries(data) {
            let entry = entry?;
            if matches!(entry.name, b"." | b"..") {
                continue;
            }
            if !seen.mark(entry.nid) {
                repeated.insert(entry.nid);
            } else if entry.file_type == DIRECTORY {
                directories.push(entry.nid);
            }
        }
    }
    Ok(repeated)
}

/// What directory entries say of directories.
const DIRECTORY: u8 = dirent_type(mode::DIRECTORY);

/// Which inodes were met: a bit per place where one can be.
pub(super) struct Seen(Vec<u64>);

impl Seen {
    pub(super) fn new(image: &Image<'_>) -> Self {
        Self(vec![0; image.nid_limit().div_ceil(64)])
    }

    /// Whether the inode is met for the first time. What is out of the image always is; it fails when
    /// it is read.
    pub(super) fn mark(&mut self, nid: u64) -> bool {
        let word = usize::try_from(nid / 64).unwrap_or(usize::MAX);
        let bit = 1 << (nid % 64);
        self.0.get_mut(word).is_none_or(|word| {
            let new = *word & bit == 0;
            *word |= bit;
            new
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::erofs::{Dialect, WriteOptions, write_image};
    use crate::fsverity::Algorithm;
    use crate::generator::{Limits, Recipe};
    use crate::tree::{Content, Kind, Metadata, Tree};

    fn image_of(tree: &Tree, format: Format) -> Vec<u8> {
        let options = WriteOptions {
            format,
            dialect: Dialect::ComposefsRs,
        };
        let mut image = Vec::new();
        write_image(tree, &options, &mut image).unwrap();
        image
    }

    #[test]
    fn a_walk_comes_to_every_name_of_the_tree_and_says_which_are_hard_links() {
        for seed in 0..100 {
            let limits = Limits {
                dialect: Dialect::ComposefsRs,
                algorithm: Algorithm::Sha512,
            };
            let tree = Recipe::random(seed, limits).build();
            let image = image_of(&tree, Format::V2);
            let mut again = HashSet::new();
            let walked: Vec<_> = walk_image(&image)
                .unwrap()
                .map(|name| {
                    let name = name.unwrap();
                    let mode = match name.inode {
                        NamedInode::First(inode) => Some(inode.mode),
                        NamedInode::Again(nid) => {
                            again.insert(nid);
                            None
                        }
                    };
                    (name.depth, name.name.to_vec(), mode)
                })
                .collect();
            let mut met = HashSet::new();
            let expected: Vec<_> = tree
                .walk()
                .map(|visit| {
                    let mode = met.insert(visit.id).then(|| tree.st_mode(visit.id));
                    (visit.depth, visit.name.to_vec(), mode)
                })
                .collect();
            assert_eq!(walked, expected, "seed {seed}");
            assert_eq!(hard_linked(&image).unwrap(), again, "seed {seed}");
        }
    }

    #[test]
    fn stored_inodes_have_what_the_format_added() {
        let mut tree = Tree::new(Metadata::default());
        let whiteout = tree.add(Metadata::default(), Kind::CharDevice(0));
        tree.link(tree.root(), b"gone", whiteout).unwrap();
        let content = Kind::Regular(Content::Inline(b"x"));
        let file = tree.add(Metadata::default(), content);
        tree.set_xattr(file, b"user.own", b"1");
        tree.set_xattr(file, b"user.z", b"1");
        tree.set_xattr(tree.root(), b"user.z", b"1");
        tree.link(tree.root(), b"file", file).unwrap();

        let image = image_of(&tree, Format::V1);
        let names: Vec<_> = walk_image(&image).unwrap().map(Result::unwrap).collect();
        assert_eq!(names.len(), 1 + 256 + 2);
        let only = BTreeSet::from([b"gone".to_vec(), b"file".to_vec(), b"none".to_vec()]);
        let names: Vec<_> = walk_image(&image)
            .unwrap()
            .only(only)
            .map(Result::unwrap)
            .collect();
        let [_root, file, whiteout] = &names[..] else {
            panic!("{names:?}");
        };
        let NamedInode::First(file) = &file.inode else {
            panic!("{file:?}");
        };
        assert_eq!(file.data, StoredData::Inline(b"x".into()));
        // What is shared comes last.
        let value = b"1".as_slice();
        let own = (b"user.own".to_vec(), value);
        assert_eq!(file.xattrs, [own, (b"user.z".to_vec(), value)]);
        let NamedInode::First(whiteout) = &whiteout.inode else {
            panic!("{whiteout:?}");
        };
        assert_eq!(whiteout.mode & mode::TYPE, mode::REGULAR);
        let marked = b"trusted.overlay.overlay.whiteout".to_vec();
        assert!(whiteout.xattrs.iter().any(|(name, _)| *name == marked));
    }
}
