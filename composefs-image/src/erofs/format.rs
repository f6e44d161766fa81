//! Numbers of the on-disk format, shared by writer and reader. All integers are little-endian.

use xxhash_rust::xxh32::xxh32;

use crate::tree::mode;

/// Block size of image and page cache.
pub(super) const BLOCK_BITS: u8 = 12;
pub(super) const BLOCK: u64 = 1 << BLOCK_BITS;
/// Inodes start at multiples of this; a nid is an offset divided by it.
pub(super) const SLOT: u64 = 32;

/// First bytes of a composefs image, and the version of that header.
pub(super) const HEADER_MAGIC: u32 = 0xd078_629a;
pub(super) const HEADER_VERSION: u32 = 1;
/// Header flag: some inode has a POSIX ACL. Never set in V2.
pub(super) const FLAG_HAS_ACL: u32 = 1;

/// The superblock: offset, size, magic.
pub(super) const SUPERBLOCK: u64 = 1024;
pub(super) const SUPERBLOCK_SIZE: u64 = 128;
pub(super) const SUPERBLOCK_MAGIC: u32 = 0xe0f5_e1e2;
/// Compatible features: build time per inode, xattr name filter.
pub(super) const FEATURE_MTIME: u32 = 2;
pub(super) const FEATURE_XATTR_FILTER: u32 = 4;
/// What a reader knows: the two and a checksum; files in chunks.
pub(super) const KNOWN_COMPAT: u32 = 7;
pub(super) const KNOWN_INCOMPAT: u32 = 4;

/// Inodes begin right behind the superblock.
pub(super) const FIRST_INODE: u64 = SUPERBLOCK + SUPERBLOCK_SIZE;
pub(super) const COMPACT_INODE: u64 = 32;
pub(super) const EXTENDED_INODE: u64 = 64;

/// `i_format`: bit 0 is set for an extended inode, the layout is shifted by 1.
pub(super) const LAYOUT_PLAIN: u16 = 0;
pub(super) const LAYOUT_INLINE: u16 = 2;
pub(super) const LAYOUT_CHUNKS: u16 = 4;

/// A chunk without data.
pub(super) const NULL_CHUNK: [u8; 4] = [0xff; 4];
/// Largest `log2(chunk size / 4096)`.
pub(super) const MAX_CHUNK_BITS: u32 = 31;
/// Chunk lists longer than this do not fit one block.
pub(super) const MAX_CHUNKS: u64 = 1024;

/// A directory entry without its name.
pub(super) const DIRENT: usize = 12;
/// A directory's last block is kept in the inode up to this size.
pub(super) const MAX_DIRECTORY_TAIL: usize = 2048;

/// The xattr body of an inode before its first reference; `i_xattr_icount` counts from here.
pub(super) const XATTR_HEADER: u64 = 12;
/// Size of an xattr entry without name and value.
pub(super) const XATTR_ENTRY: usize = 4;
const XATTR_FILTER_SEED: u32 = 0x25bb_e08f;

/// The file type in a directory entry for the one in `i_mode`.
pub(super) const fn dirent_type(mode: u16) -> u8 {
    match mode & mode::TYPE {
        mode::REGULAR => 1,
        mode::DIRECTORY => 2,
        mode::CHAR_DEVICE => 3,
        mode::BLOCK_DEVICE => 4,
        mode::FIFO => 5,
        mode::SOCKET => 6,
        mode::SYMLINK => 7,
        _ => 0,
    }
}

/// Names that xattr entries abbreviate by a number; the rest of the name follows.
pub(super) const XATTR_PREFIXES: [(u8, &[u8]); 6] = [
    (1, b"user."),
    (XATTR_ACL_ACCESS, b"system.posix_acl_access"),
    (XATTR_ACL_DEFAULT, b"system.posix_acl_default"),
    (4, b"trusted."),
    (XATTR_LUSTRE, b"lustre."),
    (6, b"security."),
];
pub(super) const XATTR_ACL_ACCESS: u8 = 2;
pub(super) const XATTR_ACL_DEFAULT: u8 = 3;
/// The C formats do not use this one.
pub(super) const XATTR_LUSTRE: u8 = 5;

/// Xattrs of the format, and what an overlay calls them when it is nested.
pub(super) mod overlay {
    pub(in crate::erofs) const PREFIX: &[u8] = b"trusted.overlay.";
    pub(in crate::erofs) const ESCAPED_PREFIX: &[u8] = b"trusted.overlay.overlay.";
    pub(in crate::erofs) const METACOPY: &[u8] = b"trusted.overlay.metacopy";
    pub(in crate::erofs) const REDIRECT: &[u8] = b"trusted.overlay.redirect";
    pub(in crate::erofs) const OPAQUE: &[u8] = b"trusted.overlay.opaque";

    /// On an empty file: it is a whiteout in a nested overlay.
    pub(in crate::erofs) const WHITEOUT: [&[u8]; 2] = [
        b"trusted.overlay.overlay.whiteout",
        b"user.overlay.whiteout",
    ];
    /// On a directory: there are such files in it.
    pub(in crate::erofs) const WHITEOUTS: [&[u8]; 2] = [
        b"trusted.overlay.overlay.whiteouts",
        b"user.overlay.whiteouts",
    ];
    /// On a directory, with value `x`: the same for newer kernels.
    pub(in crate::erofs) const OPAQUE_X: [&[u8]; 2] =
        [b"trusted.overlay.overlay.opaque", b"user.overlay.opaque"];
}

/// The bit that stands for this name in the name filter of an inode.
pub(super) fn filter_bit(index: u8, suffix: &[u8]) -> u32 {
    1 << (xxh32(suffix, XATTR_FILTER_SEED.wrapping_add(u32::from(index))) % 32)
}

/// `log2(chunk size / 4096)` and the number of chunks of an external file in the C formats.
pub(super) fn chunking(size: u64) -> (u32, u64) {
    let bits = size
        .saturating_sub(1)
        .checked_ilog2()
        .map_or(0, |log| log + 1);
    let bits = bits.clamp(12, MAX_CHUNK_BITS + 12);
    (bits - 12, size.div_ceil(1 << bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filter_bits_equal_the_published_ones() {
        for (index, suffix, bit) in [
            (4, b"overlay.metacopy".as_slice(), 31),
            (4, b"overlay.redirect", 17),
            (4, b"overlay.opaque", 20),
            (6, b"selinux", 11),
            (6, b"capability", 29),
            (1, b"test", 14),
            (2, b"", 30),
        ] {
            assert_eq!(filter_bit(index, suffix), 1 << bit);
        }
    }

    #[test]
    fn chunks_are_as_few_as_the_largest_chunk_allows() {
        assert_eq!(chunking(1), (0, 1));
        assert_eq!(chunking(4096), (0, 1));
        assert_eq!(chunking(4097), (1, 1));
        assert_eq!(chunking(8193), (2, 1));
        assert_eq!(chunking(1 << 43), (31, 1));
        assert_eq!(chunking((1 << 43) + 1), (31, 2));
        assert_eq!(chunking(1 << 53), (31, 1024));
    }
}
