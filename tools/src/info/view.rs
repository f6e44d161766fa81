//! The inodes of an image as the C tools show them.

use composefs_image::erofs::{
    ImageWalk, NamedInode, ReadError, StoredData, StoredInode, walk_image,
};
use composefs_image::{Algorithm, VerityDigest};
use rustix::fs::FileType;

use super::Filter;

/// Walks what an image shows, beginning with the root.
pub(super) struct View<'a> {
    walk: ImageWalk<'a>,
    /// Path of the last entry, and per depth how much of it belongs to the directories above.
    path: Vec<u8>,
    lengths: Vec<usize>,
    is_c: bool,
}

/// A name.
pub(super) struct Entry<'a> {
    /// From the root, `/` first; empty for the root itself.
    pub(super) path: Vec<u8>,
    pub(super) inode: Shown<'a>,
}

#[expect(
    clippy::large_enum_variant,
    reason = "one lives at a time, and nearly all are the large one"
)]
pub(super) enum Shown<'a> {
    First(Inode<'a>),
    /// Another name of the inode with this number.
    HardLink(u64),
}

/// An inode without what the format added.
pub(super) struct Inode<'a> {
    pub(super) stored: StoredInode<'a>,
    /// With file type; whiteouts are character devices.
    pub(super) mode: u16,
    pub(super) size: u64,
    /// Path of the object with the content.
    pub(super) object: Option<&'a [u8]>,
    pub(super) digest: Option<VerityDigest>,
    pub(super) xattrs: Vec<(Vec<u8>, &'a [u8])>,
}

impl Inode<'_> {
    pub(super) fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.mode.into())
    }

    /// Content of a file in the image, or target of a symlink.
    pub(super) fn data(&self) -> Option<&[u8]> {
        match &self.stored.data {
            StoredData::Inline(data) => Some(data),
            StoredData::None | StoredData::External => None,
        }
    }
}

impl Entry<'_> {
    pub(super) fn object(&self) -> Option<&[u8]> {
        match &self.inode {
            Shown::First(inode) if inode.file_type() == FileType::RegularFile => inode.object,
            _ => None,
        }
    }
}

impl<'a> View<'a> {
    pub(super) fn new(image: &'a [u8], filter: &Filter) -> Result<Self, ReadError> {
        let walk = walk_image(image)?;
        let is_c = walk.format() != composefs_image::Format::V2;
        let walk = if filter.0.is_empty() {
            walk
        } else {
            walk.only(filter.0.clone())
        };
        Ok(Self {
            walk,
            path: Vec::new(),
            lengths: Vec::new(),
            is_c,
        })
    }
}

impl<'a> Iterator for View<'a> {
    type Item = Result<Entry<'a>, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let name = match self.walk.next()? {
                Ok(name) => name,
                Err(error) => return Some(Err(error)),
            };
            let inode = match name.inode {
                NamedInode::Again(nid) => Shown::HardLink(nid),
                // Whiteouts of the tree are escaped in the C formats: this is a stub.
                NamedInode::First(inode) if self.is_c && is_whiteout(&inode) => continue,
                NamedInode::First(inode) => Shown::First(show(inode)),
            };
            self.lengths.truncate(name.depth);
            self.path
                .truncate(self.lengths.last().copied().unwrap_or(0));
            if name.depth > 0 {
                self.path.push(b'/');
                self.path.extend_from_slice(name.name);
            }
            self.lengths.push(self.path.len());
            return Some(Ok(Entry {
                path: self.path.clone(),
                inode,
            }));
        }
    }
}

fn is_whiteout(inode: &StoredInode<'_>) -> bool {
    FileType::from_raw_mode(inode.mode.into()) == FileType::CharacterDevice && inode.rdev == 0
}

const FILE_TYPE: u16 = 0o170_000;
const REGULAR: u16 = 0o100_000;
const CHARACTER_DEVICE: u16 = 0o020_000;

/// Interprets xattrs in the order in which they are stored: what stands behind the mark of a whiteout is
/// no longer about a file.
fn show(mut stored: StoredInode<'_>) -> Inode<'_> {
    let mut mode = stored.mode;
    let mut object = None;
    let mut digest = None;
    let mut xattrs = Vec::new();
    for (name, value) in std::mem::take(&mut stored.xattrs) {
        let is_file = mode & FILE_TYPE == REGULAR;
        match name.as_slice() {
            b"trusted.overlay.redirect" if is_file => {
                object = Some(value.strip_prefix(b"/").unwrap_or(value));
            }
            b"trusted.overlay.metacopy" if is_file => digest = metacopy_digest(value),
            b"trusted.overlay.overlay.whiteout" if is_file => {
                mode = mode & !FILE_TYPE | CHARACTER_DEVICE;
            }
            b"trusted.overlay.overlay.whiteouts"
            | b"user.overlay.whiteout"
            | b"user.overlay.whiteouts" => {}
            other => match other.strip_prefix(b"trusted.overlay.") {
                None => xattrs.push((name, value)),
                Some(rest) => {
                    if let Some(rest) = rest.strip_prefix(b"overlay.") {
                        xattrs.push(([b"trusted.overlay.", rest].concat(), value));
                    }
                }
            },
        }
    }
    Inode {
        size: if mode == stored.mode { stored.size } else { 0 },
        mode,
        object,
        digest,
        xattrs,
        stored,
    }
}

/// The digest in a metacopy value: four bytes, the last of which names the algorithm, and the digest.
fn metacopy_digest(value: &[u8]) -> Option<VerityDigest> {
    let (header, digest) = value.split_at_checked(4)?;
    let algorithm = Algorithm::from_kernel_id(*header.last()?)?;
    VerityDigest::from_bytes(algorithm, digest).ok()
}
