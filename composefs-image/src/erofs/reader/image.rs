//! The structures of an image, checked one by one.

use std::collections::HashMap;

use super::{Format, InodeError, ReadError};
use crate::erofs::format::{self, BLOCK, SLOT};
use crate::fsverity::{Algorithm, VerityDigest};
use crate::tree::{Timestamp, mode};

/// An image and how much of it was not read yet.
pub(super) struct Image<'a> {
    bytes: &'a [u8],
    /// Bytes that may still be read: each part once.
    budget: u64,
    pub(super) format: Format,
    pub(super) root: u64,
    build_time: Timestamp,
    /// What references to shared xattrs count from.
    xattr_base: u64,
    /// Per reference the entry of the shared table.
    shared: HashMap<u64, Xattr<'a>>,
}

/// The header of an inode, and where its parts are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inode<'a> {
    pub(super) nid: u64,
    pub(super) mode: u16,
    pub(super) nlink: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timestamp,
    pub(super) size: u64,
    layout: u16,
    union: u32,
    xattrs: &'a [u8],
    tail: u64,
}

/// An xattr entry: prefix, rest of the name, value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Xattr<'a> {
    pub(super) prefix: &'static [u8],
    pub(super) suffix: &'a [u8],
    pub(super) value: &'a [u8],
}

impl Xattr<'_> {
    pub(super) fn is(&self, name: &[u8]) -> bool {
        name.strip_prefix(self.prefix) == Some(self.suffix)
    }
}

/// An xattr of an inode: here, or in the shared table at this offset.
#[derive(Clone, Copy, Debug)]
pub(super) enum XattrRef<'a> {
    Local(Xattr<'a>),
    Shared(u64),
}

/// A directory entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'a> {
    pub(super) name: &'a [u8],
    pub(super) nid: u64,
    pub(super) file_type: u8,
}

fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    let bytes = bytes.get(offset..offset + 2).unwrap_or(&[0; 2]);
    u16::from_le_bytes([bytes[0], bytes[1]])
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from(u16_at(bytes, offset)) | u32::from(u16_at(bytes, offset + 2)) << 16
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from(u32_at(bytes, offset)) | u64::from(u32_at(bytes, offset + 4)) << 32
}

impl<'a> Image<'a> {
    /// Checks header and superblock.
    pub(super) fn open(bytes: &'a [u8]) -> Result<Self, ReadError> {
        let mut image = Self {
            bytes,
            budget: bytes.len() as u64,
            format: Format::V0,
            root: 0,
            build_time: Timestamp::default(),
            xattr_base: 0,
            shared: HashMap::new(),
        };
        let header = image
            .slice("header", 0, 32)
            .map_err(|_| ReadError::NotComposefs("it is too small"))?;
        if u32_at(header, 0) != format::HEADER_MAGIC {
            return Err(ReadError::NotComposefs("it does not begin like one"));
        }
        if u32_at(header, 4) != format::HEADER_VERSION {
            return Err(ReadError::NotComposefs("its header is of a later version"));
        }
        let version = u32_at(header, 12);
        image.format = u8::try_from(version)
            .ok()
            .and_then(Format::from_number)
            .ok_or(ReadError::Version(version))?;

        let superblock = image
            .slice("superblock", format::SUPERBLOCK, format::SUPERBLOCK_SIZE)
            .map_err(|_| ReadError::NotComposefs("it is too small"))?;
        if u32_at(superblock, 0) != format::SUPERBLOCK_MAGIC {
            return Err(ReadError::NotComposefs("it has no EROFS superblock"));
        }
        let unsupported = [
            (superblock[12] != format::BLOCK_BITS, "another block size"),
            (superblock[13] != 0, "superblock extensions"),
            (
                u32_at(superblock, 8) & !format::KNOWN_COMPAT != 0,
                "an unknown compatible feature",
            ),
            (
                u32_at(superblock, 80) & !format::KNOWN_INCOMPAT != 0,
                "an unknown incompatible feature",
            ),
            (
                u32_at(superblock, 40) != 0,
                "metadata that does not start at block 0",
            ),
            (
                superblock[84..].iter().any(|&byte| byte != 0),
                "compression, devices or other later fields",
            ),
        ];
        for (unsupported, what) in unsupported {
            if unsupported {
                return Err(ReadError::Unsupported(what));
            }
        }
        image.root = u16_at(superblock, 14).into();
        image.build_time = Timestamp {
            sec: u64_at(superblock, 24) as i64,
            nsec: u32_at(superblock, 32),
        };
        image.xattr_base = u64::from(u32_at(superblock, 44)) * BLOCK;
        Ok(image)
    }

    /// How many different inodes there can be: nids are below this.
    pub(super) const fn nid_limit(&self) -> usize {
        self.bytes.len() / SLOT as usize
    }

    /// A part of the image that is read for the first time.
    fn slice(&mut self, what: &'static str, offset: u64, len: u64) -> Result<&'a [u8], ReadError> {
        let slice = self.peek(what, offset, len)?;
        self.budget = self.budget.checked_sub(len).ok_or(ReadError::Overlap)?;
        Ok(slice)
    }

    fn peek(&self, what: &'static str, offset: u64, len: u64) -> Result<&'a [u8], ReadError> {
        let range = || {
            let start = usize::try_from(offset).ok()?;
            let end = start.checked_add(usize::try_from(len).ok()?)?;
            self.bytes.get(start..end)
        };
        range().ok_or(ReadError::Truncated { what, offset })
    }

    /// An inode that was not read before.
    pub(super) fn inode(&mut self, nid: u64) -> Result<Inode<'a>, ReadError> {
        let truncated = ReadError::Truncated {
            what: "an inode",
            offset: nid.saturating_mul(SLOT),
        };
        let start = nid.checked_mul(SLOT).ok_or(truncated)?;
        let compact = self.slice("an inode", start, format::COMPACT_INODE)?;
        let format = u16_at(compact, 0);
        let layout = format >> 1;
        if format & !0b1111 != 0 {
            let problem = InodeError::Layout(layout);
            return Err(ReadError::Inode { nid, problem });
        }
        let xattr_size = match u64::from(u16_at(compact, 2)) {
            0 => 0,
            words => format::XATTR_HEADER + 4 * (words - 1),
        };
        let mode = u16_at(compact, 4);
        let mut inode = if format & 1 == 0 {
            Inode {
                nid,
                mode,
                nlink: u16_at(compact, 6).into(),
                uid: u16_at(compact, 24).into(),
                gid: u16_at(compact, 26).into(),
                mtime: self.build_time,
                size: u32_at(compact, 8).into(),
                layout,
                union: u32_at(compact, 16),
                xattrs: &[],
                tail: start + format::COMPACT_INODE,
            }
        } else {
            let rest = format::EXTENDED_INODE - format::COMPACT_INODE;
            self.slice("an inode", start + format::COMPACT_INODE, rest)?;
            let extended = self.peek("an inode", start, format::EXTENDED_INODE)?;
            Inode {
                nid,
                mode,
                nlink: u32_at(extended, 44),
                uid: u32_at(extended, 24),
                gid: u32_at(extended, 28),
                mtime: Timestamp {
                    sec: u64_at(extended, 32) as i64,
                    nsec: u32_at(extended, 40),
                },
                size: u64_at(extended, 8),
                layout,
                union: u32_at(extended, 16),
                xattrs: &[],
                tail: start + format::EXTENDED_INODE,
            }
        };
        inode.xattrs = self.slice("xattrs", inode.tail, xattr_size)?;
        inode.tail += xattr_size;
        Ok(inode)
    }

    /// The xattr itself. Entries of the shared table are read once.
    pub(super) fn xattr(&mut self, nid: u64, xattr: XattrRef<'a>) -> Result<Xattr<'a>, ReadError> {
        let reference = match xattr {
            XattrRef::Local(xattr) => return Ok(xattr),
            XattrRef::Shared(reference) => reference,
        };
        if let Some(xattr) = self.shared.get(&reference) {
            return Ok(*xattr);
        }
        let offset = self.xattr_base + reference * 4;
        let header = self.peek("a shared xattr", offset, format::XATTR_ENTRY as u64)?;
        let entry = self.slice("a shared xattr", offset, entry_size(header))?;
        let xattr = parse_xattr(entry).map_err(|problem| ReadError::Inode { nid, problem })?;
        self.shared.insert(reference, xattr);
        Ok(xattr)
    }

    /// Whether the data of a file is outside of the image.
    pub(super) const fn is_chunked(inode: &Inode<'_>) -> bool {
        inode.layout == format::LAYOUT_CHUNKS
    }

    /// The blocks and the tail of a directory, inline file or symlink, which was not read before.
    pub(super) fn data(&mut self, inode: &Inode<'a>) -> Result<(&'a [u8], &'a [u8]), ReadError> {
        let (blocks, tail) = match inode.layout {
            format::LAYOUT_PLAIN => (inode.size, 0),
            format::LAYOUT_INLINE => (inode.size / BLOCK * BLOCK, inode.size % BLOCK),
            layout => {
                let problem = InodeError::Layout(layout);
                return Err(ReadError::Inode {
                    nid: inode.nid,
                    problem,
                });
            }
        };
        let blocks = match blocks {
            0 => &[],
            len => self.slice("data blocks", u64::from(inode.union) * BLOCK, len)?,
        };
        Ok((blocks, self.slice("inline data", inode.tail, tail)?))
    }
}

impl<'a> Inode<'a> {
    pub(super) const fn file_type(&self) -> u16 {
        self.mode & mode::TYPE
    }

    pub(super) const fn rdev(&self) -> u32 {
        self.union
    }

    pub(super) const fn error(&self, problem: InodeError) -> ReadError {
        ReadError::Inode {
            nid: self.nid,
            problem,
        }
    }

    /// The xattrs, references first.
    pub(super) fn xattrs(
        &self,
    ) -> Result<impl Iterator<Item = Result<XattrRef<'a>, ReadError>> + use<'a>, ReadError> {
        let inode = *self;
        let (references, mut local) = if inode.xattrs.is_empty() {
            (inode.xattrs, inode.xattrs)
        } else {
            let count = usize::from(inode.xattrs[4]) * 4;
            inode.xattrs[format::XATTR_HEADER as usize..]
                .split_at_checked(count)
                .ok_or_else(|| inode.error(InodeError::Xattrs("the references are cut off")))?
        };
        let references = references
            .chunks_exact(4)
            .map(|reference| Ok(XattrRef::Shared(u32_at(reference, 0).into())));
        let local = std::iter::from_fn(move || {
            if local.is_empty() {
                return None;
            }
            let size = local.len().min(entry_size(local) as usize);
            let (entry, rest) = local.split_at(size);
            local = rest;
            Some(
                parse_xattr(entry)
                    .map(XattrRef::Local)
                    .map_err(|problem| inode.error(problem)),
            )
        });
        Ok(references.chain(local))
    }

    /// The entries of a directory with this data; `.` and `..` are among them.
    pub(super) const fn entries(&self, (blocks, tail): (&'a [u8], &'a [u8])) -> Entries<'a> {
        Entries {
            inode: *self,
            block: &[],
            blocks,
            tail,
            index: 0,
            previous: &[],
        }
    }
}

/// The entries of a directory, in an order that is checked to be sorted.
pub(super) struct Entries<'a> {
    inode: Inode<'a>,
    /// The rest of the block being read is from `index` on.
    block: &'a [u8],
    blocks: &'a [u8],
    tail: &'a [u8],
    index: usize,
    previous: &'a [u8],
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut count = usize::from(u16_at(self.block, 8)) / format::DIRENT;
        if self.index >= count {
            let size = self.blocks.len().min(BLOCK as usize);
            (self.block, self.blocks) = self.blocks.split_at(size);
            if self.block.is_empty() {
                self.block = std::mem::take(&mut self.tail);
            }
            if self.block.is_empty() {
                return None;
            }
            self.index = 0;
            count = usize::from(u16_at(self.block, 8)) / format::DIRENT;
        }
        let damaged = |what| Some(Err(self.inode.error(InodeError::Entries(what))));
        let Some(entry) = parse_entry(self.block, count, self.index) else {
            return damaged("they are cut off");
        };
        if entry.name <= self.previous {
            return damaged("they are not sorted");
        }
        self.previous = entry.name;
        self.index += 1;
        Some(Ok(entry))
    }
}

/// The size of the xattr entry that starts here, with padding.
fn entry_size(entry: &[u8]) -> u64 {
    let suffix = entry.first().copied().unwrap_or_default();
    let size = format::XATTR_ENTRY + usize::from(suffix) + usize::from(u16_at(entry, 2));
    size.next_multiple_of(4) as u64
}

fn parse_xattr(entry: &[u8]) -> Result<Xattr<'_>, InodeError> {
    let parse = || {
        let (header, rest) = entry.split_at_checked(format::XATTR_ENTRY)?;
        let (suffix, rest) = rest.split_at_checked(header[0].into())?;
        Some((header[1], suffix, rest.get(..u16_at(header, 2).into())?))
    };
    let (index, suffix, value) = parse().ok_or(InodeError::Xattrs("an entry is cut off"))?;
    let prefix = match index {
        0 => b"".as_slice(),
        index => {
            format::XATTR_PREFIXES
                .into_iter()
                .find(|prefix| prefix.0 == index)
                .ok_or(InodeError::Xattrs("an unknown prefix"))?
                .1
        }
    };
    Ok(Xattr {
        prefix,
        suffix,
        value,
    })
}

fn parse_entry(block: &[u8], count: usize, index: usize) -> Option<Entry<'_>> {
    let header = block.get(index * format::DIRENT..)?.get(..format::DIRENT)?;
    let start = usize::from(u16_at(header, 8));
    let name = if index + 1 < count {
        let end = u16_at(block, (index + 1) * format::DIRENT + 8);
        block.get(start..end.into())?
    } else {
        // Up to the end of the block, or the padding of a full one.
        let name = block.get(start..)?;
        let end = name.iter().position(|&byte| byte == 0);
        &name[..end.unwrap_or(name.len())]
    };
    Some(Entry {
        name,
        nid: u64_at(header, 0),
        file_type: header[10],
    })
}

/// What a metacopy xattr says: nothing, or version 0, length, flags, algorithm and digest.
pub(super) fn metacopy_digest(value: &[u8]) -> Result<Option<VerityDigest>, InodeError> {
    let damaged = InodeError::Xattrs("a metacopy value that is not understood");
    match value {
        [] => Ok(None),
        [0, len, 0, algorithm, digest @ ..] if usize::from(*len) == value.len() => {
            Algorithm::from_kernel_id(*algorithm)
                .and_then(|algorithm| VerityDigest::from_bytes(algorithm, digest).ok())
                .map(Some)
                .ok_or(damaged)
        }
        _ => Err(damaged),
    }
}
