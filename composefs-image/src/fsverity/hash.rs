//! From data to fs-verity digests: the Merkle tree and the descriptor above it.
//!
//! Memory is bounded by one block per level of the tree. Whatever does not depend on each other goes to
//! [`Lanes`] together: the blocks of a file, and the blocks of many small files.

use std::io;

use sha2::{Digest as _, Sha256, Sha512};

use super::lanes::Lanes;
use super::{Algorithm, BLOCK_SIZE, VerityDigest};

/// A padded block.
type Block = [u8; BLOCK_SIZE];

/// Appends the hash of every 4096-byte block of `chunk` to `leaves`; a last, shorter block counts
/// as padded with zeros. Leaves of different chunks may be computed on different threads.
pub fn leaf_hashes(algorithm: Algorithm, chunk: &[u8], leaves: &mut Vec<u8>) {
    hash_blocks(Lanes::best(), algorithm, &[chunk], leaves);
}

/// Appends the hash of every block of every piece, the last one of each padded with zeros.
///
/// The one place where blocks are hashed in bulk.
fn hash_blocks(lanes: Lanes, algorithm: Algorithm, pieces: &[&[u8]], hashes: &mut Vec<u8>) {
    let padded: Vec<Block> = pieces
        .iter()
        .map(|piece| piece.as_chunks::<BLOCK_SIZE>().1)
        .filter(|rest| !rest.is_empty())
        .map(padded)
        .collect();
    let mut last = padded.iter();
    let mut blocks: Vec<&[u8]> = Vec::new();
    for piece in pieces {
        let (whole, rest) = piece.as_chunks::<BLOCK_SIZE>();
        blocks.extend(whole.iter().map(<[u8; BLOCK_SIZE]>::as_slice));
        if !rest.is_empty() {
            blocks.extend(last.next().map(<[u8; BLOCK_SIZE]>::as_slice));
        }
    }
    hashes.reserve(blocks.len() * algorithm.digest_len());
    lanes.hash(algorithm, &blocks, hashes);
}

/// Computes the fs-verity digest of a stream of bytes.
#[derive(Clone, Debug)]
pub struct VerityHasher {
    algorithm: Algorithm,
    /// The last, incomplete block of data.
    block: Vec<u8>,
    /// Per level of the Merkle tree, leaves first: the hashes of its last, incomplete block.
    levels: Vec<Vec<u8>>,
    /// Reused for the leaves of one `update`.
    scratch: Vec<u8>,
    size: u64,
}

impl VerityHasher {
    /// A hasher that has seen nothing.
    pub fn new(algorithm: Algorithm) -> Self {
        Self {
            algorithm,
            block: Vec::new(),
            levels: Vec::new(),
            scratch: Vec::new(),
            size: 0,
        }
    }

    /// How many bytes of data were taken so far.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Takes the next bytes of the data.
    ///
    /// # Panics
    /// After [`Self::push_leaves`] of a chunk that did not end on a block.
    pub fn update(&mut self, mut data: &[u8]) {
        if data.is_empty() {
            return;
        }
        assert_eq!(
            self.block.len() as u64,
            self.size % BLOCK_SIZE as u64,
            "data behind the last leaf"
        );
        self.size += data.len() as u64;
        if !self.block.is_empty() {
            let (head, tail) = data.split_at(data.len().min(BLOCK_SIZE - self.block.len()));
            self.block.extend_from_slice(head);
            data = tail;
            if self.block.len() < BLOCK_SIZE {
                return;
            }
            let block = std::mem::take(&mut self.block);
            self.hash_leaves(&block);
            self.block = block;
            self.block.clear();
        }
        let whole = data.len() / BLOCK_SIZE * BLOCK_SIZE;
        // In pieces, so that a large slice needs no leaves as large as itself / 128.
        for piece in data[..whole].chunks(64 * BLOCK_SIZE) {
            self.hash_leaves(piece);
        }
        self.block.extend_from_slice(&data[whole..]);
    }

    /// Takes the leaf hashes of the next `data_len` bytes of the data, computed elsewhere with
    /// [`leaf_hashes`]. Every chunk but the last has a multiple of 4096 bytes.
    ///
    /// # Panics
    /// When the leaves do not fit `data_len`, or the data so far does not end on a block.
    pub fn push_leaves(&mut self, leaves: &[u8], data_len: u64) {
        assert!(
            self.block.is_empty() && self.size.is_multiple_of(BLOCK_SIZE as u64),
            "leaves in the middle of a block"
        );
        assert_eq!(
            leaves.len() as u64,
            data_len.div_ceil(BLOCK_SIZE as u64) * self.algorithm.digest_len() as u64,
            "one leaf per block"
        );
        self.size += data_len;
        self.push_hashes(leaves);
    }

    fn hash_leaves(&mut self, blocks: &[u8]) {
        let mut leaves = std::mem::take(&mut self.scratch);
        leaves.clear();
        leaf_hashes(self.algorithm, blocks, &mut leaves);
        self.push_hashes(&leaves);
        self.scratch = leaves;
    }

    /// Appends hashes to the lowest level, and the hashes of the blocks they fill to those above.
    fn push_hashes(&mut self, hashes: &[u8]) {
        for hash in hashes.chunks_exact(self.algorithm.digest_len()) {
            self.push_hash(0, hash);
        }
    }

    fn push_hash(&mut self, mut level: usize, hash: &[u8]) {
        let mut carried = [0; 64];
        let len = self.algorithm.digest_len();
        carried[..len].copy_from_slice(hash);
        loop {
            if level == self.levels.len() {
                self.levels.push(Vec::with_capacity(BLOCK_SIZE));
            }
            // A full block is hashed only when more follows: one full block may be the top.
            if self.levels[level].len() < BLOCK_SIZE {
                self.levels[level].extend_from_slice(&carried[..len]);
                return;
            }
            let parent = digest_of(self.algorithm, &padded(&self.levels[level]));
            self.levels[level].clear();
            self.levels[level].extend_from_slice(&carried[..len]);
            carried = parent.bytes;
            level += 1;
        }
    }

    /// The digest of everything taken.
    pub fn finish(mut self) -> VerityDigest {
        let len = self.algorithm.digest_len();
        let mut root = [0; 64];
        if self.size > 0 {
            if !self.block.is_empty() {
                let block = std::mem::take(&mut self.block);
                self.hash_leaves(&block);
            }
            let mut level = 0;
            // Close the levels from below; the first level that is topmost with one hash is it.
            loop {
                if level + 1 == self.levels.len() && self.levels[level].len() == len {
                    root[..len].copy_from_slice(&self.levels[level]);
                    break;
                }
                let parent = digest_of(self.algorithm, &padded(&self.levels[level]));
                self.push_hash(level + 1, parent.as_bytes());
                level += 1;
            }
        }

        let top = descriptor(self.algorithm, self.size, &root[..len]);
        digest_of(self.algorithm, &top)
    }
}

impl io::Write for VerityHasher {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.update(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The fs-verity digest of a file of this size in bytes whose Merkle tree has this root.
pub fn verity_digest_of_root(algorithm: Algorithm, size: u64, root: &[u8]) -> VerityDigest {
    let mut padded = [0; 64];
    let len = root.len().min(algorithm.digest_len());
    padded[..len].copy_from_slice(&root[..len]);
    let top = descriptor(algorithm, size, &padded[..algorithm.digest_len()]);
    digest_of(algorithm, &top)
}

/// What the digest of a file is the hash of: its size and the root of its Merkle tree.
fn descriptor(algorithm: Algorithm, size: u64, root: &[u8]) -> [u8; 256] {
    let mut descriptor = [0; 256];
    descriptor[0] = 1;
    descriptor[1] = algorithm.kernel_id();
    descriptor[2] = 12;
    descriptor[8..16].copy_from_slice(&size.to_le_bytes());
    descriptor[16..16 + root.len()].copy_from_slice(root);
    descriptor
}

fn digest_of(algorithm: Algorithm, data: &[u8]) -> VerityDigest {
    match algorithm {
        Algorithm::Sha256 => VerityDigest::sha256(Sha256::digest(data).into()),
        Algorithm::Sha512 => VerityDigest::sha512(Sha512::digest(data).into()),
    }
}

fn padded(data: &[u8]) -> Block {
    let mut block = [0; BLOCK_SIZE];
    block[..data.len()].copy_from_slice(data);
    block
}

/// The fs-verity digest of `data`.
pub fn verity_digest(algorithm: Algorithm, data: &[u8]) -> VerityDigest {
    let mut hasher = VerityHasher::new(algorithm);
    hasher.update(data);
    hasher.finish()
}

/// The fs-verity digest of each of several contents: faster than [`verity_digest`] of one after the
/// other when most of them are small.
pub fn verity_digests(algorithm: Algorithm, contents: &[&[u8]]) -> Vec<VerityDigest> {
    digests_with(Lanes::best(), algorithm, contents)
}

fn digests_with(lanes: Lanes, algorithm: Algorithm, contents: &[&[u8]]) -> Vec<VerityDigest> {
    let len = algorithm.digest_len();
    let mut roots = vec![0; contents.len() * len];
    // The contents whose tree is not at its root yet, and its highest level so far.
    let mut open: Vec<(usize, &[u8])> = contents
        .iter()
        .copied()
        .enumerate()
        .filter(|(_, content)| !content.is_empty())
        .collect();
    let mut level;
    while !open.is_empty() {
        let mut next = Vec::new();
        let pieces: Vec<_> = open.iter().map(|(_, piece)| *piece).collect();
        hash_blocks(lanes, algorithm, &pieces, &mut next);
        let mut at = 0;
        let mut ends = Vec::new();
        for (number, piece) in open {
            let end = at + piece.len().div_ceil(BLOCK_SIZE) * len;
            if end - at == len {
                roots[number * len..][..len].copy_from_slice(&next[at..end]);
            } else {
                ends.push((number, at..end));
            }
            at = end;
        }
        level = next;
        open = ends
            .into_iter()
            .map(|(number, range)| (number, &level[range]))
            .collect();
    }

    let descriptors: Vec<_> = contents
        .iter()
        .zip(roots.chunks_exact(len))
        .map(|(content, root)| descriptor(algorithm, content.len() as u64, root))
        .collect();
    let descriptors: Vec<_> = descriptors.iter().map(<[u8; 256]>::as_slice).collect();
    let mut digests = Vec::with_capacity(contents.len() * len);
    lanes.hash(algorithm, &descriptors, &mut digests);
    digests
        .chunks_exact(len)
        .map(|digest| {
            let mut bytes = [0; 64];
            bytes[..len].copy_from_slice(digest);
            VerityDigest { algorithm, bytes }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn content(size: usize) -> Vec<u8> {
        (0..size).map(|i| (7 * i + 3) as u8).collect()
    }

    /// Vectors checked with cfsctl, the SHA-256 ones also with the C tools.
    const VECTORS: [(Algorithm, usize, &str); 7] = [
        (
            Algorithm::Sha256,
            1,
            "83334d2a5a79c35ecec7b206551570ffb7c723db2fb0ea790e9f63bfb4992858",
        ),
        (
            Algorithm::Sha256,
            4096,
            "326c3051712e1f652ccdfaa71ae780da3cccf62304fa7fb03bc7191bc833ff04",
        ),
        (
            Algorithm::Sha256,
            4097,
            "fb00345b7ad04abc59ba8e4318de64408d8ee394ee753512546e2f2b454d71ab",
        ),
        (
            Algorithm::Sha256,
            524_289,
            "7afe8ca9f259571b5eb25934658bea446d0b6c8f4283aa37d6d42cc5c1e0e2f7",
        ),
        (
            Algorithm::Sha512,
            4096,
            "38ac32ea930d7b6a547d35f1a383ffb18d7408832eeb2096ab702237ac02fe36\
             2c821793d26e23b62bd96a9c7d3118958d15b0cce3f97eaeac28438547980127",
        ),
        (
            Algorithm::Sha512,
            4097,
            "2e71a2f31a6d186877df2a152b7f2b4a9cf267b3de7ca1b870d7c6c455610c1c\
             30462b285d3e399b35d75080a2b9b9a7aa3d29d939fbc277abc99c8b98162d3c",
        ),
        (
            Algorithm::Sha512,
            262_145,
            "dad324f4f03128873d5bdbe83c4f9302cd3454fc835c2552ad87f957fbef1ba1\
             fab944c71068b90432e50dfe448ebc0bce007054a85acf4601496a275c574829",
        ),
    ];

    #[test]
    fn digests_equal_the_published_vectors() {
        for (algorithm, size, expected) in VECTORS {
            assert_eq!(
                verity_digest(algorithm, &content(size)).to_hex(),
                expected,
                "{algorithm} of {size} bytes"
            );
        }
    }

    #[test]
    fn an_empty_file_has_a_zero_root() {
        // `fsverity digest` of an empty file.
        assert_eq!(
            verity_digest(Algorithm::Sha256, b"").to_hex(),
            "3d248ca542a24fc62d1c43b916eae5016878e2533c88238480b26128a1f1af95"
        );
    }

    #[test]
    fn the_way_data_is_cut_does_not_matter() {
        let data = content(300 * BLOCK_SIZE + 17);
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let whole = verity_digest(algorithm, &data);
            for step in [1000, 4095, 4096, 4097, 70_000, 300_000] {
                let mut hasher = VerityHasher::new(algorithm);
                data.chunks(step).for_each(|chunk| hasher.update(chunk));
                assert_eq!(hasher.finish(), whole, "in steps of {step}");
            }
        }
    }

    #[test]
    fn leaves_computed_elsewhere_give_the_same_digest() {
        for size in [1, 4095, 4096, 4097, 3 * 65_536, 3 * 65_536 + 1] {
            let data = content(size);
            for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
                let mut hasher = VerityHasher::new(algorithm);
                for chunk in data.chunks(65_536) {
                    let mut leaves = Vec::new();
                    leaf_hashes(algorithm, chunk, &mut leaves);
                    hasher.push_leaves(&leaves, chunk.len() as u64);
                }
                assert_eq!(
                    hasher.finish(),
                    verity_digest(algorithm, &data),
                    "{size} bytes"
                );
            }
        }
    }

    #[test]
    fn whole_trees_of_every_height_are_closed_correctly() {
        // Exactly one full block of hashes on each level, and one leaf more and less.
        for blocks in [1_usize, 2, 127, 128, 129, 128 * 128, 128 * 128 + 1] {
            let leaf = digest_of(Algorithm::Sha256, &[0; BLOCK_SIZE]);
            let mut hasher = VerityHasher::new(Algorithm::Sha256);
            for _ in 0..blocks {
                hasher.push_leaves(leaf.as_bytes(), BLOCK_SIZE as u64);
            }
            // The definition, level by level.
            let mut level = leaf.as_bytes().repeat(blocks);
            while level.len() > 32 {
                let mut next = Vec::new();
                leaf_hashes(Algorithm::Sha256, &level, &mut next);
                level = next;
            }
            assert_eq!(
                hasher.finish(),
                digest_of(
                    Algorithm::Sha256,
                    &descriptor(Algorithm::Sha256, (blocks * BLOCK_SIZE) as u64, &level)
                ),
                "{blocks} blocks"
            );
        }
    }

    fn digests_one_by_one(algorithm: Algorithm, contents: &[&[u8]]) -> Vec<VerityDigest> {
        contents
            .iter()
            .map(|content| verity_digest(algorithm, content))
            .collect()
    }

    #[test]
    fn many_contents_have_the_digests_that_each_has_alone() {
        let data = content(200 * BLOCK_SIZE);
        let sizes = [
            0,
            1,
            4095,
            4096,
            4097,
            9000,
            64 * 4096,
            64 * 4096 + 1,
            128 * 4096,
            129 * 4096,
            0,
            5,
        ];
        let contents: Vec<_> = sizes.iter().map(|size| &data[..*size]).collect();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            for lanes in Lanes::all() {
                assert_eq!(
                    digests_with(lanes, algorithm, &contents),
                    digests_one_by_one(algorithm, &contents),
                    "{lanes:?}"
                );
            }
        }
        assert_eq!(verity_digests(Algorithm::Sha512, &[]), []);
    }

    proptest! {
        #[test]
        fn random_contents_have_the_digests_that_each_has_alone(
            seed in any::<u64>(),
            sizes in vec(0..40_000_usize, 0..40),
        ) {
            let mut state = seed | 1;
            let data: Vec<u8> = (0..40_000)
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state as u8
                })
                .collect();
            let contents: Vec<_> = sizes.iter().map(|size| &data[40_000 - size..]).collect();
            for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
                for lanes in Lanes::all() {
                    prop_assert_eq!(
                        digests_with(lanes, algorithm, &contents),
                        digests_one_by_one(algorithm, &contents),
                        "{:?}", lanes
                    );
                }
            }
        }
    }
}
