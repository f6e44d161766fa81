//! The one writer of all image formats.
//!
//! Two passes over the inodes in image order: the first places every inode, the second writes.
//! Both ask the same functions for sizes, so that they cannot disagree. Nothing seeks: the output
//! may be a pipe or a hasher. Memory beside the tree: about 30 bytes per inode.

mod order;
mod place;
mod shares;
mod sink;
mod xattrs;

use std::io;

use thiserror::Error;

use super::{Format, format};
use crate::tree::{Content, InodeId, Kind, Timestamp, Tree};
use order::{Node, Order};
use place::{Block, Blocks, Inodes, Placement, Shape};
use sink::Sink;
use xattrs::Xattrs;

/// Whose bytes to reproduce where the C tools and composefs-rs write the same format differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// `mkcomposefs` and libcomposefs: for tools.
    C,
    /// composefs-rs 0.9: for images in a repository.
    ComposefsRs,
}

/// What [`write_image`] writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WriteOptions {
    /// The format.
    pub format: Format,
    /// Whose way of writing it. V2 exists in that of composefs-rs only.
    pub dialect: Dialect,
}

/// Why a tree cannot be written.
#[derive(Debug, Error)]
pub enum WriteError {
    /// The output failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Something in the tree does not fit the format.
    #[error("{}: {problem}", .path.escape_ascii())]
    Inode {
        /// Where it is in the tree, from the root.
        path: Box<[u8]>,
        /// What does not fit.
        problem: Misfit,
    },
    /// The image would be larger than its 32-bit block numbers reach.
    #[error("the image would be larger than 16 TiB or hold more than 2^32 inodes")]
    TooLarge,
}

/// What about an inode does not fit a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Misfit {
    /// A symlink target that is empty, too long, or has a NUL byte.
    #[error("a symlink target has 1 to {SYMLINK_MAX} bytes and no NUL byte")]
    Symlink,
    /// A file that is too large to be kept in the image.
    #[error("a file of {size} bytes is too large to be inline: {limit} bytes are possible")]
    InlineContent {
        /// Its size.
        size: u64,
        /// What this format takes.
        limit: u64,
    },
    /// A file that no list of chunks can describe.
    #[error("a file of {0} bytes is too large for the format")]
    FileSize(u64),
    /// An xattr name without bytes, or one too long for its entry.
    #[error("an xattr name is empty or longer than 255 bytes")]
    XattrName,
    /// An xattr value above 65,535 bytes.
    #[error("an xattr value is longer than 65,535 bytes")]
    XattrValue,
    /// More xattrs than an inode can count.
    #[error("the xattrs take more space than an inode can have")]
    Xattrs,
    /// A whiteout with several names, which composefs-rs refuses.
    #[error("a whiteout (character device 0:0) has more than one name")]
    LinkedWhiteout,
}

/// Longest symlink target.
const SYMLINK_MAX: usize = 4095;
/// Largest inline file of the C formats, and of V2.
const INLINE_MAX: u64 = 5000;
const INLINE_MAX_V2: u64 = 512;

/// Writes the image of a tree. The bytes depend on tree and options only.
pub fn write_image(
    tree: &Tree,
    options: &WriteOptions,
    out: &mut impl io::Write,
) -> Result<(), WriteError> {
    let plan = Plan::new(tree, *options).map_err(|error| match error {
        PlanError::TooLarge => WriteError::TooLarge,
        PlanError::Misfit(node, problem) => WriteError::Inode {
            path: path_of(tree, node),
            problem,
        },
    })?;
    let mut sink = Sink::new(out);
    plan.write(&mut sink)?;
    sink.finish()?;
    Ok(())
}

/// For an error message: a path of an inode.
fn path_of(tree: &Tree, node: Node) -> Box<[u8]> {
    let mut path: Vec<&[u8]> = Vec::new();
    for visit in tree.walk() {
        path.truncate(visit.depth);
        path.push(visit.name);
        if node.inode(tree) == Some(visit.id) {
            break;
        }
    }
    if path.len() < 2 {
        return b"/".as_slice().into();
    }
    path.join(b"/".as_slice()).into()
}

enum PlanError {
    TooLarge,
    Misfit(Node, Misfit),
}

/// A tree with everything decided that the second pass needs.
struct Plan<'a> {
    inodes: Inodes<'a>,
    placement: Placement,
}

impl<'a> Plan<'a> {
    fn new(tree: &'a Tree, options: WriteOptions) -> Result<Self, PlanError> {
        let options = WriteOptions {
            dialect: match options.format {
                Format::V2 => Dialect::ComposefsRs,
                Format::V0 | Format::V1 => options.dialect,
            },
            ..options
        };
        let order = Order::new(tree, options)?;
        for &node in order.list() {
            if let Some(id) = node.inode(tree) {
                check(tree, id, options.format)
                    .map_err(|misfit| PlanError::Misfit(node, misfit))?;
            }
        }
        let xattrs = Xattrs::new(tree, &order, options)?;
        let inodes = Inodes::new(tree, options, order, xattrs);
        let placement = Placement::new(&inodes)?;
        Ok(Self { inodes, placement })
    }

    fn write(&self, out: &mut Sink<impl io::Write>) -> io::Result<()> {
        self.write_superblock(out)?;
        let mut next_block = self.placement.first_data_block;
        let mut entries = Vec::new();
        for (index, &node) in self.inodes.order.list().iter().enumerate() {
            let shape = self.inodes.shape(&self.placement, node, &mut entries);
            out.pad_to(u64::from(self.placement.nid(node)) * format::SLOT)?;
            self.write_inode(out, index, node, &shape, next_block)?;
            next_block += shape.blocks as u32;
            self.write_tail(out, node, &shape, &entries)?;
        }
        out.pad_to(self.placement.inodes_end)?;
        self.inodes.xattrs.write_table(out)?;
        out.pad_to(u64::from(self.placement.first_data_block) * format::BLOCK)?;
        if self.placement.first_data_block < self.placement.blocks {
            for &node in self.inodes.order.list() {
                self.write_blocks(out, node, &mut entries)?;
            }
        }
        Ok(())
    }

    const fn is_c(&self) -> bool {
        self.inodes.options.format.is_c()
    }

    fn write_superblock(&self, out: &mut Sink<impl io::Write>) -> io::Result<()> {
        let acl = self.is_c() && self.inodes.xattrs.has_acl();
        let (build_time, xattr_block) = if self.is_c() {
            let table = self.placement.inodes_end / format::BLOCK;
            (self.inodes.min_mtime, table as u32)
        } else {
            (Timestamp::default(), 0)
        };
        out.u32(format::HEADER_MAGIC)?;
        out.u32(format::HEADER_VERSION)?;
        out.u32(if acl { format::FLAG_HAS_ACL } else { 0 })?;
        out.u32(self.inodes.options.format.number().into())?;
        out.pad_to(format::SUPERBLOCK)?;

        out.u32(format::SUPERBLOCK_MAGIC)?;
        out.u32(0)?; // checksum
        out.u32(format::FEATURE_MTIME | format::FEATURE_XATTR_FILTER)?;
        out.put(&[format::BLOCK_BITS, 0])?; // no extension slots
        out.u16(self.placement.nid(Node::ROOT) as u16)?;
        out.u64(self.inodes.order.list().len() as u64)?;
        out.u64(build_time.sec as u64)?;
        out.u32(build_time.nsec)?;
        out.u32(self.placement.blocks)?;
        out.u32(0)?; // metadata starts at block 0
        out.u32(xattr_block)?;
        out.pad_to(format::FIRST_INODE)
    }

    /// Header and xattrs of one inode.
    fn write_inode(
        &self,
        out: &mut Sink<impl io::Write>,
        index: usize,
        node: Node,
        shape: &Shape,
        block: u32,
    ) -> io::Result<()> {
        let metadata = self.inodes.metadata(node);
        let table = self.placement.inodes_end;
        // References count from the block in which the table starts, in V2 from the first one.
        let (ino, nsec, table) = if self.is_c() {
            (index as u32, metadata.mtime.nsec, table % format::BLOCK)
        } else {
            (self.placement.nid(node), 0, table)
        };
        let xattr_words = match shape.xattrs {
            0 => 0,
            size => 1 + (size - format::XATTR_HEADER) / 4,
        };
        let block = if shape.blocks > 0 { block } else { 0 };
        let union = match shape.chunk_bits {
            // The chunk size takes the place of the lower half of the block number.
            Some(bits) => block & 0xffff_0000 | bits,
            None => block | shape.rdev,
        };
        out.u16(u16::from(!shape.compact) | shape.layout() << 1)?;
        out.u16(xattr_words as u16)?;
        out.u16(shape.mode)?;
        if shape.compact {
            out.u16(shape.nlink as u16)?;
            out.u32(shape.size as u32)?;
            out.u32(0)?;
            out.u32(union)?;
            out.u32(ino)?;
            out.u16(metadata.uid as u16)?;
            out.u16(metadata.gid as u16)?;
            out.u32(0)?;
        } else {
            out.u16(0)?;
            out.u64(shape.size)?;
            out.u32(union)?;
            out.u32(ino)?;
            out.u32(metadata.uid)?;
            out.u32(metadata.gid)?;
            out.u64(metadata.mtime.sec as u64)?;
            out.u32(nsec)?;
            out.u32(shape.nlink)?;
            out.zeros(16)?;
        }
        self.inodes.xattrs.write_body(node, table, out)
    }

    /// What stands right behind an inode. `entries` are those of a directory.
    fn write_tail(
        &self,
        out: &mut Sink<impl io::Write>,
        node: Node,
        shape: &Shape,
        entries: &[(&[u8], Node)],
    ) -> io::Result<()> {
        if shape.tail == 0 {
            return Ok(());
        }
        let tree = self.inodes.tree;
        match node.inode(tree).map(|id| tree.kind(id)) {
            Some(Kind::Directory) => {
                for block in Blocks::of(entries) {
                    if let Block::Tail(entries) = block {
                        self.write_entries(out, entries)?;
                    }
                }
            }
            Some(Kind::Regular(Content::Inline(bytes)) | Kind::Symlink(bytes)) => {
                out.put(&bytes[bytes.len() - shape.tail as usize..])?;
            }
            Some(Kind::Regular(Content::External { .. })) => {
                for _ in 0..shape.tail / 4 {
                    out.put(&format::NULL_CHUNK)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The data blocks of one inode.
    fn write_blocks(
        &self,
        out: &mut Sink<impl io::Write>,
        node: Node,
        entries: &mut Vec<(&'a [u8], Node)>,
    ) -> io::Result<()> {
        let tree = self.inodes.tree;
        let Some(id) = node.inode(tree) else {
            return Ok(());
        };
        match tree.kind(id) {
            Kind::Directory => {
                self.inodes.entries(id, entries);
                for block in Blocks::of(entries) {
                    if let Block::Whole(entries) = block {
                        self.write_entries(out, entries)?;
                        out.align(format::BLOCK)?;
                    }
                }
            }
            Kind::Regular(Content::Inline(bytes)) | Kind::Symlink(bytes) => {
                let shape = self.inodes.shape(&self.placement, node, entries);
                if shape.blocks > 0 {
                    out.put(&bytes[..bytes.len() - shape.tail as usize])?;
                    out.align(format::BLOCK)?;
                }
            }
            Kind::Regular(Content::External { .. }) if self.placement.has_chunk_block(node) => {
                for _ in 0..format::MAX_CHUNKS {
                    out.put(&format::NULL_CHUNK)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// One block of a directory: the entries, then their names.
    fn write_entries(
        &self,
        out: &mut Sink<impl io::Write>,
        entries: &[(&[u8], Node)],
    ) -> io::Result<()> {
        let mut name_offset = entries.len() * format::DIRENT;
        for &(name, node) in entries {
            let mode = self.inodes.order.mode(self.inodes.tree, node);
            out.u64(u64::from(self.placement.nid(node)))?;
            out.u16(name_offset as u16)?;
            out.put(&[format::dirent_type(mode), 0])?;
            name_offset += name.len();
        }
        for (name, _) in entries {
            out.put(name)?;
        }
        Ok(())
    }
}

/// Limits of the format that the tree does not know.
fn check(tree: &Tree, id: InodeId, format: Format) -> Result<(), Misfit> {
    match tree.kind(id) {
        Kind::Symlink(target)
            if target.is_empty() || target.len() > SYMLINK_MAX || target.contains(&0) =>
        {
            Err(Misfit::Symlink)
        }
        Kind::Regular(Content::Inline(content)) => {
            let size = content.len() as u64;
            let limit = if format.is_c() {
                INLINE_MAX
            } else {
                INLINE_MAX_V2
            };
            if size > limit {
                return Err(Misfit::InlineContent { size, limit });
            }
            Ok(())
        }
        Kind::Regular(Content::External { size, .. })
            if format.is_c() && format::chunking(size).1 > format::MAX_CHUNKS =>
        {
            Err(Misfit::FileSize(size))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
