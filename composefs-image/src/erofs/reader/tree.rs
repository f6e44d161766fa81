//! From an image to the tree that it was written from.

use std::borrow::Cow;
use std::collections::HashMap;

use super::image::{Entries, Image, Inode, metacopy_digest};
use super::{Format, InodeError, ReadError};
use crate::erofs::format::{self, overlay};
use crate::tree::{Content, InodeId, Kind, Metadata, Tree, mode};

/// Reads an image. What its format adds is taken away again: reading what was written gives the
/// same tree. But V2 has no nanoseconds, and in V0 and V1 what a directory with whiteouts had of
/// its own under the names that mark it as such is gone.
pub fn read_image(image: &[u8]) -> Result<Tree, ReadError> {
    let mut image = Image::open(image)?;
    let nid = image.root;
    let inode = image.inode(nid)?;
    if inode.file_type() != mode::DIRECTORY {
        return Err(inode.error(InodeError::NotADirectory));
    }
    let data = image.data(&inode)?;
    let tree = Tree::new(metadata(&inode));
    let root = tree.root();
    let mut reader = Reader {
        image,
        tree,
        inodes: HashMap::from([(nid, root)]),
        open: vec![Directory::new(&inode, data, root, nid)],
    };
    let xattrs = reader.xattrs(&inode)?;
    reader.set_xattrs(root, &xattrs);
    reader.read()?;
    Ok(reader.tree)
}

fn metadata(inode: &Inode<'_>) -> Metadata {
    Metadata {
        mode: inode.mode & mode::PERMISSIONS,
        uid: inode.uid,
        gid: inode.gid,
        mtime: inode.mtime,
    }
}

/// A directory that is being read.
struct Directory<'a> {
    inode: Inode<'a>,
    entries: Entries<'a>,
    id: InodeId,
    parent: u64,
    /// `.` and `..`
    own_entries: u8,
    has_whiteouts: bool,
}

impl<'a> Directory<'a> {
    const fn new(inode: &Inode<'a>, data: (&'a [u8], &'a [u8]), id: InodeId, parent: u64) -> Self {
        Self {
            inode: *inode,
            entries: inode.entries(data),
            id,
            parent,
            own_entries: 0,
            has_whiteouts: false,
        }
    }
}

/// The xattrs of an inode, those of the format apart.
#[derive(Default)]
struct Xattrs<'a> {
    own: Vec<(Cow<'a, [u8]>, &'a [u8])>,
    metacopy: Option<&'a [u8]>,
    redirect: Option<&'a [u8]>,
}

impl Xattrs<'_> {
    fn has(&self, name: &[u8], value: &[u8]) -> bool {
        self.own.iter().any(|own| *own.0 == *name && own.1 == value)
    }
}

struct Reader<'a> {
    image: Image<'a>,
    tree: Tree,
    inodes: HashMap<u64, InodeId>,
    /// From the root to where reading is.
    open: Vec<Directory<'a>>,
}

impl<'a> Reader<'a> {
    /// Depth first, so that of several names the first one comes first.
    fn read(&mut self) -> Result<(), ReadError> {
        while let Some(directory) = self.open.last_mut() {
            let Some(entry) = directory.entries.next() else {
                self.close()?;
                continue;
            };
            let entry = entry?;
            let own = match entry.name {
                b"." => Some(directory.inode.nid),
                b".." => Some(directory.parent),
                _ => None,
            };
            match own {
                Some(nid) if nid == entry.nid => directory.own_entries += 1,
                Some(_) => {
                    let problem = InodeError::Entries(". or .. is another directory");
                    return Err(directory.inode.error(problem));
                }
                None => {
                    let (id, parent) = (directory.id, directory.inode.nid);
                    self.child(id, parent, entry.name, entry.nid, entry.file_type)?;
                }
            }
        }
        Ok(())
    }

    fn child(
        &mut self,
        directory: InodeId,
        parent: u64,
        name: &[u8],
        nid: u64,
        file_type: u8,
    ) -> Result<(), ReadError> {
        let error = |problem| ReadError::Inode { nid, problem };
        let id = if let Some(&id) = self.inodes.get(&nid) {
            if self.tree.is_directory(id) {
                return Err(error(InodeError::DirectoryTwice));
            }
            id
        } else {
            let inode = self.image.inode(nid)?;
            if format::dirent_type(inode.mode) != file_type || file_type == 0 {
                return Err(error(InodeError::Mode(inode.mode)));
            }
            if self.is_stub(directory, name, &inode) {
                return Ok(());
            }
            let id = self.add(&inode)?;
            self.inodes.insert(nid, id);
            if inode.file_type() == mode::DIRECTORY {
                let data = self.image.data(&inode)?;
                self.open.push(Directory::new(&inode, data, id, parent));
            } else {
                // Taken back when the names are as many.
                self.tree.set_nlink(id, Some(inode.nlink));
            }
            id
        };
        if self.tree.kind(id) == Kind::CharDevice(0)
            && let Some(open) = self.open.last_mut()
        {
            open.has_whiteouts = true;
        }
        self.tree
            .link(directory, name, id)
            .map_err(|problem| error(problem.into()))?;
        let names = self.tree.name_count(id);
        if self.tree.explicit_nlink(id) == Some(names) {
            self.tree.set_nlink(id, None);
        }
        Ok(())
    }

    /// A whiteout that hides an object directory: all others are escaped in the C formats.
    fn is_stub(&self, directory: InodeId, name: &[u8], inode: &Inode<'_>) -> bool {
        self.image.format.is_c()
            && directory == self.tree.root()
            && inode.file_type() == mode::CHAR_DEVICE
            && inode.rdev() == 0
            && name.len() == 2
            && name
                .iter()
                .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
    }

    fn add(&mut self, inode: &Inode<'a>) -> Result<InodeId, ReadError> {
        let error = |problem| Err(inode.error(problem));
        let mut xattrs = self.xattrs(inode)?;
        let named = xattrs.metacopy.is_some() || xattrs.redirect.is_some();
        let external = inode.file_type() == mode::REGULAR && Image::is_chunked(inode);
        if named && !external {
            return error(InodeError::Xattrs("only external files name an object"));
        }
        let sized = matches!(
            inode.file_type(),
            mode::REGULAR | mode::DIRECTORY | mode::SYMLINK
        );
        if !sized && inode.size != 0 {
            return error(InodeError::Size(inode.size));
        }

        let bytes;
        let redirect;
        let kind = match inode.file_type() {
            mode::DIRECTORY => Kind::Directory,
            mode::REGULAR if external => {
                let metacopy = xattrs
                    .metacopy
                    .ok_or(InodeError::Xattrs("an external file without metacopy"))
                    .and_then(metacopy_digest);
                let digest = metacopy.map_err(|problem| inode.error(problem))?;
                redirect = match xattrs.redirect {
                    Some(redirect) => Some(redirect.strip_prefix(b"/").ok_or_else(|| {
                        inode.error(InodeError::Xattrs("a redirect that is not absolute"))
                    })?),
                    // Verified, but nowhere.
                    None => digest.map(|_| b"".as_slice()),
                };
                if inode.size == 0 {
                    return error(InodeError::Size(0));
                }
                Kind::Regular(Content::External {
                    size: inode.size,
                    digest,
                    path: redirect,
                })
            }
            mode::REGULAR => {
                if self.unmark_whiteout(inode, &mut xattrs) {
                    Kind::CharDevice(0)
                } else {
                    bytes = self.bytes(inode)?;
                    Kind::Regular(Content::Inline(&bytes))
                }
            }
            mode::SYMLINK => {
                bytes = self.bytes(inode)?;
                if bytes.is_empty() || bytes.len() > 4095 || bytes.contains(&0) {
                    return error(InodeError::Size(inode.size));
                }
                Kind::Symlink(&bytes)
            }
            mode::CHAR_DEVICE => Kind::CharDevice(inode.rdev()),
            mode::BLOCK_DEVICE => Kind::BlockDevice(inode.rdev()),
            mode::FIFO => Kind::Fifo,
            mode::SOCKET => Kind::Socket,
            _ => return error(InodeError::Mode(inode.mode)),
        };
        let id = self.tree.add(metadata(inode), kind);
        self.set_xattrs(id, &xattrs);
        Ok(id)
    }

    fn bytes(&mut self, inode: &Inode<'a>) -> Result<Cow<'a, [u8]>, ReadError> {
        Ok(match self.image.data(inode)? {
            (blocks, []) => Cow::Borrowed(blocks),
            ([], tail) => Cow::Borrowed(tail),
            (blocks, tail) => Cow::Owned([blocks, tail].concat()),
        })
    }

    /// Whether an empty file is an escaped whiteout, which then loses its marks.
    fn unmark_whiteout(&self, inode: &Inode<'_>, xattrs: &mut Xattrs<'_>) -> bool {
        let names = overlay::WHITEOUT.map(unescaped);
        let is_whiteout = self.image.format.is_c()
            && inode.size == 0
            && names.iter().all(|name| xattrs.has(name, b""));
        if is_whiteout {
            xattrs
                .own
                .retain(|own| !names.iter().any(|name| **name == *own.0));
        }
        is_whiteout
    }

    /// All of a directory was read: takes away what marks it as one with whiteouts.
    fn close(&mut self) -> Result<(), ReadError> {
        let Some(directory) = self.open.pop() else {
            return Ok(());
        };
        if directory.own_entries != 2 {
            let problem = InodeError::Entries(". or .. is missing");
            return Err(directory.inode.error(problem));
        }
        if !directory.has_whiteouts || !self.image.format.is_c() {
            return Ok(());
        }
        let marked = |tree: &Tree, names: &[Cow<'_, [u8]>; 2], value: &[u8]| {
            names
                .iter()
                .all(|name| tree.xattr(directory.id, name) == Some(value))
        };
        let whiteouts = overlay::WHITEOUTS.map(unescaped);
        if marked(&self.tree, &whiteouts, b"") {
            for name in &whiteouts {
                self.tree.remove_xattr(directory.id, name);
            }
            let opaque = overlay::OPAQUE_X.map(unescaped);
            if self.image.format == Format::V1 && marked(&self.tree, &opaque, b"x") {
                for name in &opaque {
                    self.tree.remove_xattr(directory.id, name);
                }
            }
        }
        Ok(())
    }

    fn xattrs(&mut self, inode: &Inode<'a>) -> Result<Xattrs<'a>, ReadError> {
        let is_root = inode.nid == self.image.root;
        let mut xattrs = Xattrs::default();
        for xattr in inode.xattrs()? {
            let xattr = self.image.xattr(inode.nid, xattr?)?;
            let name = [xattr.prefix, xattr.suffix].concat();
            let Some(rest) = name.strip_prefix(overlay::PREFIX) else {
                xattrs.own.push((name.into(), xattr.value));
                continue;
            };
            if name == overlay::METACOPY {
                xattrs.metacopy = Some(xattr.value);
            } else if name == overlay::REDIRECT {
                xattrs.redirect = Some(xattr.value);
            } else if let Some(rest) = rest.strip_prefix(b"overlay.") {
                let name = [overlay::PREFIX, rest].concat();
                xattrs.own.push((name.into(), xattr.value));
            } else if !(name == overlay::OPAQUE && is_root && self.image.format.is_c()) {
                return Err(inode.error(InodeError::Xattrs("an overlay xattr that is not escaped")));
            }
        }
        Ok(xattrs)
    }

    fn set_xattrs(&mut self, id: InodeId, xattrs: &Xattrs<'_>) {
        let own = xattrs.own.iter().map(|(name, value)| (&**name, *value));
        self.tree.set_xattrs(id, own);
    }
}

/// The name in the tree for one in the image.
fn unescaped(name: &'static [u8]) -> Cow<'static, [u8]> {
    match name.strip_prefix(overlay::ESCAPED_PREFIX) {
        Some(rest) => [overlay::PREFIX, rest].concat().into(),
        None => name.into(),
    }
}
