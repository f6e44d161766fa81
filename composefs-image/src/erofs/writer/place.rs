//! How large each inode is and where it goes.

use std::collections::HashSet;

use super::order::{Node, Order};
use super::xattrs::Xattrs;
use super::{Dialect, Misfit, PlanError, WriteOptions, format};
use crate::tree::{Content, InodeId, Kind, Metadata, Timestamp, Tree, mode};
use format::{BLOCK, SLOT};

/// What an inode looks like on disk, but for its position.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) mode: u16,
    pub(super) nlink: u32,
    pub(super) size: u64,
    /// Whole blocks among the data blocks.
    pub(super) blocks: u64,
    /// Bytes behind the inode.
    pub(super) tail: u64,
    /// Set for external files: `log2(chunk size / 4096)`.
    pub(super) chunk_bits: Option<u32>,
    pub(super) rdev: u32,
    pub(super) compact: bool,
    /// Size of the xattr body.
    pub(super) xattrs: u64,
}

impl Shape {
    /// Size of header and xattrs.
    const fn fixed(&self) -> u64 {
        self.xattrs
            + if self.compact {
                format::COMPACT_INODE
            } else {
                format::EXTENDED_INODE
            }
    }

    pub(super) const fn layout(&self) -> u16 {
        if self.chunk_bits.is_some() {
            format::LAYOUT_CHUNKS
        } else if self.tail > 0 {
            format::LAYOUT_INLINE
        } else {
            format::LAYOUT_PLAIN
        }
    }

    const fn is_symlink(&self) -> bool {
        self.mode & mode::TYPE == mode::SYMLINK
    }

    /// The tail goes to a block of its own.
    const fn promote(&mut self) {
        self.blocks += 1;
        self.tail = 0;
    }
}

/// The inodes of an image: what they are, but not where.
pub(super) struct Inodes<'a> {
    pub(super) tree: &'a Tree,
    pub(super) options: WriteOptions,
    pub(super) order: Order<'a>,
    pub(super) xattrs: Xattrs<'a>,
    /// The time that compact inodes have.
    pub(super) min_mtime: Timestamp,
}

impl<'a> Inodes<'a> {
    pub(super) fn new(
        tree: &'a Tree,
        options: WriteOptions,
        order: Order<'a>,
        xattrs: Xattrs<'a>,
    ) -> Self {
        let times = order
            .list()
            .iter()
            .filter_map(|node| Some(tree.metadata(node.inode(tree)?).mtime));
        let min_mtime = match options.dialect {
            Dialect::C => times.min(),
            // A time before 1970 is the largest.
            Dialect::ComposefsRs => times.min_by_key(|time| (time.sec as u64, time.nsec)),
        };
        Self {
            tree,
            options,
            order,
            xattrs,
            min_mtime: min_mtime.unwrap_or_default(),
        }
    }

    pub(super) fn entries(&self, directory: InodeId, entries: &mut Vec<(&'a [u8], Node)>) {
        self.order.entries(self.tree, directory, entries);
    }

    pub(super) fn metadata(&self, node: Node) -> Metadata {
        self.order.metadata(self.tree, node)
    }

    /// The shape that an inode would have anywhere. `entries` is filled for a directory.
    fn shape_unplaced(&self, node: Node, entries: &mut Vec<(&'a [u8], Node)>) -> Shape {
        let c = self.options.format.is_c();
        let mut shape = Shape {
            mode: self.order.mode(self.tree, node),
            nlink: 1,
            size: 0,
            blocks: 0,
            tail: 0,
            chunk_bits: None,
            rdev: 0,
            compact: false,
            xattrs: self.xattrs.body_size(node),
        };
        if let Some(id) = node.inode(self.tree) {
            shape.nlink = match self.options.dialect {
                Dialect::C => self.tree.explicit_nlink(id),
                Dialect::ComposefsRs => None,
            }
            .unwrap_or_else(|| self.tree.name_count(id));
            match self.tree.kind(id) {
                Kind::Directory => {
                    self.entries(id, entries);
                    for block in Blocks::of(entries) {
                        match block {
                            Block::Whole(_) => shape.blocks += 1,
                            Block::Tail(entries) => shape.tail = entries_size(entries) as u64,
                        }
                    }
                    shape.size = shape.blocks * BLOCK + shape.tail;
                    let directories = entries
                        .iter()
                        .filter_map(|(_, node)| node.inode(self.tree))
                        .filter(|&id| self.tree.is_directory(id));
                    shape.nlink = directories.count() as u32;
                }
                Kind::Symlink(target) => {
                    shape.size = target.len() as u64;
                    shape.tail = shape.size;
                }
                Kind::Regular(Content::Inline(content)) => {
                    shape.size = content.len() as u64;
                    if c {
                        shape.blocks = shape.size / BLOCK;
                        shape.tail = shape.size % BLOCK;
                        if shape.tail > BLOCK / 2 {
                            shape.promote();
                        }
                    } else {
                        shape.tail = shape.size;
                    }
                }
                Kind::Regular(Content::External { size, digest, .. }) => {
                    shape.size = size;
                    let (bits, chunks) = if c {
                        format::chunking(size)
                    } else {
                        (format::MAX_CHUNK_BITS, u64::from(digest.is_some()))
                    };
                    shape.chunk_bits = Some(bits);
                    shape.tail = 4 * chunks;
                }
                Kind::CharDevice(rdev) | Kind::BlockDevice(rdev) => shape.rdev = rdev,
                Kind::Fifo | Kind::Socket => {}
            }
        }
        let metadata = self.metadata(node);
        shape.compact = c
            && metadata.mtime == self.min_mtime
            && u16::try_from(shape.nlink).is_ok()
            && u16::try_from(metadata.uid).is_ok()
            && u16::try_from(metadata.gid).is_ok()
            && u32::try_from(shape.size).is_ok();
        shape
    }

    /// Whether a target is too long to share a block with its inode.
    fn target_needs_block(&self, shape: &Shape) -> bool {
        self.options.format.is_c() && shape.is_symlink() && shape.fixed() + shape.tail >= BLOCK
    }

    /// The shape of an inode in its place. `entries` is filled for a directory.
    pub(super) fn shape(
        &self,
        placement: &Placement,
        node: Node,
        entries: &mut Vec<(&'a [u8], Node)>,
    ) -> Shape {
        let mut shape = self.shape_unplaced(node, entries);
        if self.target_needs_block(&shape) || placement.has_chunk_block(node) {
            shape.promote();
        }
        shape
    }
}

/// Where everything is.
pub(super) struct Placement {
    /// Per node.
    nids: Vec<u32>,
    /// Files whose list of chunks does not fit behind the inode.
    chunks_in_block: HashSet<Node>,
    pub(super) inodes_end: u64,
    pub(super) first_data_block: u32,
    /// Size of the image.
    pub(super) blocks: u32,
}

impl Placement {
    pub(super) fn nid(&self, node: Node) -> u32 {
        self.nids[node.index()]
    }

    pub(super) fn has_chunk_block(&self, node: Node) -> bool {
        self.chunks_in_block.contains(&node)
    }

    /// The first pass.
    pub(super) fn new(inodes: &Inodes<'_>) -> Result<Self, PlanError> {
        let mut placement = Self {
            nids: vec![0; inodes.order.node_count()],
            chunks_in_block: HashSet::new(),
            inodes_end: 0,
            first_data_block: 0,
            blocks: 0,
        };
        let mut position = format::FIRST_INODE;
        let mut data_blocks = 0;
        let mut entries = Vec::new();
        for &node in inodes.order.list() {
            let mut shape = inodes.shape_unplaced(node, &mut entries);
            if shape.xattrs > XATTR_MAX {
                return Err(PlanError::Misfit(node, Misfit::Xattrs));
            }
            position = position.next_multiple_of(SLOT);
            if !inodes.options.format.is_c() {
                position = place_v2(position, &shape);
            } else if shape.is_symlink() {
                // Header, xattrs and target in one block, as old kernels demand.
                let last = position + shape.fixed() + shape.tail - 1;
                if position / BLOCK != last / BLOCK {
                    position = position.next_multiple_of(BLOCK);
                }
                if inodes.target_needs_block(&shape) {
                    shape.promote();
                }
            } else {
                position = place_tail(position, &mut shape);
                if shape.chunk_bits.is_some() && shape.blocks > 0 {
                    placement.chunks_in_block.insert(node);
                }
            }
            placement.nids[node.index()] =
                u32::try_from(position / SLOT).map_err(|_| PlanError::TooLarge)?;
            position += shape.fixed() + shape.tail;
            data_blocks += shape.blocks;
        }
        placement.inodes_end = position.next_multiple_of(SLOT);
        let data = (placement.inodes_end + inodes.xattrs.table_size()).div_ceil(BLOCK);
        let too_large = |_| PlanError::TooLarge;
        placement.first_data_block = u32::try_from(data).map_err(too_large)?;
        placement.blocks = u32::try_from(data + data_blocks).map_err(too_large)?;
        Ok(placement)
    }
}

/// The largest xattr body whose words `i_xattr_icount` can count.
const XATTR_MAX: u64 = format::XATTR_HEADER + 4 * (u16::MAX as u64 - 1);

/// The C formats keep a tail within one block; the inode before it may cross into it.
fn place_tail(position: u64, shape: &mut Shape) -> u64 {
    let room = BLOCK - (position + shape.fixed()) % BLOCK;
    if room >= shape.tail {
        return position;
    }
    let padded = position + room.next_multiple_of(SLOT);
    if shape.tail <= BLOCK - (padded + shape.fixed()) % BLOCK {
        return padded;
    }
    shape.promote();
    position.next_multiple_of(BLOCK)
}

/// V2 means the same but is off by one in places; its images depend on that.
fn place_v2(position: u64, shape: &Shape) -> u64 {
    if shape.tail == 0 || shape.chunk_bits.is_some() {
        return position;
    }
    let start = position + shape.fixed();
    if (start - 1) / BLOCK == (start + shape.size % BLOCK) / BLOCK {
        return position;
    }
    (position + BLOCK - (start - 1) % BLOCK).next_multiple_of(SLOT)
}

/// A part of a directory.
pub(super) enum Block<'e, 'a> {
    /// A whole block, among the data blocks.
    Whole(&'e [(&'a [u8], Node)]),
    /// The last, smaller part, behind the inode.
    Tail(&'e [(&'a [u8], Node)]),
}

/// Cuts the sorted entries of a directory into as many as fit a block each.
pub(super) struct Blocks<'e, 'a>(&'e [(&'a [u8], Node)]);

impl<'e, 'a> Blocks<'e, 'a> {
    pub(super) const fn of(entries: &'e [(&'a [u8], Node)]) -> Self {
        Self(entries)
    }
}

impl<'e, 'a> Iterator for Blocks<'e, 'a> {
    type Item = Block<'e, 'a>;

    fn next(&mut self) -> Option<Block<'e, 'a>> {
        if self.0.is_empty() {
            return None;
        }
        let mut size = 0;
        let fitting = self.0.iter().take_while(|(name, _)| {
            size += format::DIRENT + name.len();
            size <= BLOCK as usize
        });
        let (block, rest) = self.0.split_at(fitting.count());
        self.0 = rest;
        if rest.is_empty() && entries_size(block) <= format::MAX_DIRECTORY_TAIL {
            return Some(Block::Tail(block));
        }
        Some(Block::Whole(block))
    }
}

fn entries_size(entries: &[(&[u8], Node)]) -> usize {
    entries
        .iter()
        .map(|(name, _)| format::DIRENT + name.len())
        .sum()
}
