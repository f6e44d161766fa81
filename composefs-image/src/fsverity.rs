//! fs-verity digests in user space, as Linux computes them: version 1, 4096-byte blocks, no salt,
//! SHA-256 or SHA-512.
//!
//! The digest is the name of an object and the identity of an image. Nothing here touches a file:
//! bytes go in, a digest comes out. Memory is bounded by one block per level of the Merkle tree.

use std::fmt;
use std::io;
use std::str::FromStr;

use sha2::{Digest as _, Sha256, Sha512};
use thiserror::Error;

/// The block size of fs-verity and of the Merkle tree: the only one composefs uses.
pub const BLOCK_SIZE: usize = 4096;

/// The hash function of an fs-verity digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// SHA-256: 32-byte digests. The only one that the C tools know.
    Sha256,
    /// SHA-512: 64-byte digests.
    Sha512,
}

impl Algorithm {
    /// Length of a digest in bytes: 32 or 64.
    pub const fn digest_len(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    /// The name as in `meta.json` and kernel arguments: `sha256` or `sha512`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// The number of the kernel (`FS_VERITY_HASH_ALG_*`), also used in metacopy xattrs.
    pub const fn kernel_id(self) -> u8 {
        match self {
            Self::Sha256 => 1,
            Self::Sha512 => 2,
        }
    }

    /// The algorithm with this kernel number.
    pub const fn from_kernel_id(id: u8) -> Option<Self> {
        match id {
            1 => Some(Self::Sha256),
            2 => Some(Self::Sha512),
            _ => None,
        }
    }

    /// The algorithm whose digests have this many bytes.
    pub const fn from_digest_len(len: usize) -> Option<Self> {
        match len {
            32 => Some(Self::Sha256),
            64 => Some(Self::Sha512),
            _ => None,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Algorithm {
    type Err = UnknownAlgorithm;

    fn from_str(name: &str) -> Result<Self, UnknownAlgorithm> {
        [Self::Sha256, Self::Sha512]
            .into_iter()
            .find(|algorithm| algorithm.name() == name)
            .ok_or_else(|| UnknownAlgorithm(name.to_owned()))
    }
}

/// A name that is neither `sha256` nor `sha512`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("unknown fs-verity algorithm {0:?}: sha256 and sha512 exist")]
pub struct UnknownAlgorithm(pub String);

/// Why some text or bytes are no digest.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DigestError {
    /// Neither 64 nor 128 hexadecimal digits.
    #[error("a digest has 64 or 128 hexadecimal digits, this has {0}")]
    HexLength(usize),
    /// Something that is not `0-9a-f`.
    #[error("a digest has lower-case hexadecimal digits only")]
    NotHex,
    /// The bytes do not fit the algorithm.
    #[error("a {algorithm} digest has {} bytes, this has {found}", algorithm.digest_len())]
    Length {
        /// The algorithm asked for.
        algorithm: Algorithm,
        /// How many bytes there were.
        found: usize,
    },
}

/// An fs-verity digest: the name of an object or image.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VerityDigest {
    algorithm: Algorithm,
    // Zero behind a SHA-256 digest, so that the derived comparisons are right.
    bytes: [u8; 64],
}

impl VerityDigest {
    /// The hash function.
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The 32 or 64 bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.algorithm.digest_len()]
    }

    /// A digest from its raw bytes.
    pub fn from_bytes(algorithm: Algorithm, digest: &[u8]) -> Result<Self, DigestError> {
        if digest.len() != algorithm.digest_len() {
            return Err(DigestError::Length {
                algorithm,
                found: digest.len(),
            });
        }
        let mut bytes = [0; 64];
        bytes[..digest.len()].copy_from_slice(digest);
        Ok(Self { algorithm, bytes })
    }

    pub(crate) const fn sha512(bytes: [u8; 64]) -> Self {
        Self {
            algorithm: Algorithm::Sha512,
            bytes,
        }
    }

    pub(crate) fn sha256(digest: [u8; 32]) -> Self {
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&digest);
        Self {
            algorithm: Algorithm::Sha256,
            bytes,
        }
    }

    /// A digest from 64 or 128 lower-case hexadecimal digits; the length decides the algorithm.
    pub fn from_hex(text: &str) -> Result<Self, DigestError> {
        Self::from_hex_bytes(text.as_bytes())
    }

    /// As [`Self::from_hex`], from text that may not be UTF-8.
    pub fn from_hex_bytes(text: &[u8]) -> Result<Self, DigestError> {
        let algorithm = Algorithm::from_digest_len(text.len() / 2)
            .filter(|_| text.len().is_multiple_of(2))
            .ok_or(DigestError::HexLength(text.len()))?;
        let mut bytes = [0; 64];
        for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
            let (high, low) = (hex_value(pair[0])?, hex_value(pair[1])?);
            *byte = high << 4 | low;
        }
        Ok(Self { algorithm, bytes })
    }

    /// The hexadecimal digits, written into `buffer`: 64 or 128 of them.
    pub fn encode_hex<'a>(&self, buffer: &'a mut [u8; 128]) -> &'a str {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        for (pair, byte) in buffer.chunks_exact_mut(2).zip(self.as_bytes()) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        let len = self.algorithm.digest_len() * 2;
        str::from_utf8(&buffer[..len]).expect("hexadecimal digits are ASCII")
    }

    /// The digest as 64 or 128 lower-case hexadecimal digits.
    pub fn to_hex(&self) -> String {
        self.encode_hex(&mut [0; 128]).to_owned()
    }

    /// Where an object directory keeps this object: `xx/<rest of the digits>`.
    pub fn object_path(&self) -> String {
        let mut buffer = [0; 128];
        let (first, rest) = self.encode_hex(&mut buffer).split_at(2);
        format!("{first}/{rest}")
    }

    /// The digest whose [`Self::object_path`] this is.
    pub fn from_object_path(path: &[u8]) -> Option<Self> {
        let (first, rest) = path.split_at_checked(2)?;
        let rest = rest.strip_prefix(b"/")?;
        let mut digits = [0; 128];
        let target = digits.get_mut(..2 + rest.len())?;
        target[..2].copy_from_slice(first);
        target[2..].copy_from_slice(rest);
        Self::from_hex_bytes(target).ok()
    }
}

/// The value of each byte as a hexadecimal digit, 0xff for none.
const HEX_VALUES: [u8; 256] = {
    let mut table = [0xff; 256];
    let mut i = 0;
    while i < 16 {
        table[b"0123456789abcdef"[i] as usize] = i as u8;
        i += 1;
    }
    table
};

fn hex_value(digit: u8) -> Result<u8, DigestError> {
    match HEX_VALUES[usize::from(digit)] {
        0xff => Err(DigestError::NotHex),
        value => Ok(value),
    }
}

impl fmt::Display for VerityDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.encode_hex(&mut [0; 128]))
    }
}

impl fmt::Debug for VerityDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{self}", self.algorithm)
    }
}

impl FromStr for VerityDigest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        Self::from_hex(text)
    }
}

/// Appends the hash of every 4096-byte block of `chunk` to `leaves`; a last, shorter block counts
/// as padded with zeros. Leaves of different chunks may be computed on different threads.
///
/// The one place where blocks are hashed in bulk.
pub fn leaf_hashes(algorithm: Algorithm, chunk: &[u8], leaves: &mut Vec<u8>) {
    leaves.reserve(chunk.len().div_ceil(BLOCK_SIZE) * algorithm.digest_len());
    match algorithm {
        Algorithm::Sha256 => hash_blocks::<Sha256>(chunk, leaves),
        Algorithm::Sha512 => hash_blocks::<Sha512>(chunk, leaves),
    }
}

fn hash_blocks<H: sha2::Digest>(chunk: &[u8], leaves: &mut Vec<u8>) {
    let (blocks, rest) = chunk.as_chunks::<BLOCK_SIZE>();
    for block in blocks {
        leaves.extend_from_slice(&H::digest(block));
    }
    if !rest.is_empty() {
        leaves.extend_from_slice(
            &H::new()
                .chain_update(rest)
                .chain_update(&[0; BLOCK_SIZE][rest.len()..])
                .finalize(),
        );
    }
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
            let parent = hash_padded(self.algorithm, &self.levels[level]);
            self.levels[level].clear();
            self.levels[level].extend_from_slice(&carried[..len]);
            carried = parent;
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
                let parent = hash_padded(self.algorithm, &self.levels[level]);
                self.push_hash(level + 1, &parent[..len]);
                level += 1;
            }
        }

        let mut descriptor = [0; 256];
        descriptor[0] = 1;
        descriptor[1] = self.algorithm.kernel_id();
        descriptor[2] = 12;
        descriptor[8..16].copy_from_slice(&self.size.to_le_bytes());
        descriptor[16..80].copy_from_slice(&root);
        VerityDigest {
            algorithm: self.algorithm,
            bytes: hash(self.algorithm, &descriptor),
        }
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

fn hash(algorithm: Algorithm, data: &[u8]) -> [u8; 64] {
    let mut result = [0; 64];
    match algorithm {
        Algorithm::Sha256 => result[..32].copy_from_slice(&Sha256::digest(data)),
        Algorithm::Sha512 => result.copy_from_slice(&Sha512::digest(data)),
    }
    result
}

fn hash_padded(algorithm: Algorithm, block: &[u8]) -> [u8; 64] {
    let mut padded = [0; BLOCK_SIZE];
    padded[..block.len()].copy_from_slice(block);
    hash(algorithm, &padded)
}

/// The fs-verity digest of `data`.
pub fn verity_digest(algorithm: Algorithm, data: &[u8]) -> VerityDigest {
    let mut hasher = VerityHasher::new(algorithm);
    hasher.update(data);
    hasher.finish()
}

#[cfg(test)]
mod tests {
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
            let leaf = hash_padded(Algorithm::Sha256, &[0; BLOCK_SIZE]);
            let mut hasher = VerityHasher::new(Algorithm::Sha256);
            for _ in 0..blocks {
                hasher.push_leaves(&leaf[..32], BLOCK_SIZE as u64);
            }
            // The definition, level by level.
            let mut level = leaf[..32].repeat(blocks);
            while level.len() > 32 {
                let mut next = Vec::new();
                leaf_hashes(Algorithm::Sha256, &level, &mut next);
                level = next;
            }
            let mut descriptor = [0; 256];
            descriptor[..3].copy_from_slice(&[1, 1, 12]);
            descriptor[8..16].copy_from_slice(&((blocks * BLOCK_SIZE) as u64).to_le_bytes());
            descriptor[16..48].copy_from_slice(&level);
            assert_eq!(
                hasher.finish().as_bytes(),
                &hash(Algorithm::Sha256, &descriptor)[..32],
                "{blocks} blocks"
            );
        }
    }

    #[test]
    fn hexadecimal_and_object_paths_round_trip() {
        for (_, _, text) in VECTORS {
            let digest: VerityDigest = text.parse().unwrap();
            assert_eq!(digest.to_string(), text);
            assert_eq!(
                digest.object_path(),
                format!("{}/{}", &text[..2], &text[2..])
            );
            assert_eq!(
                VerityDigest::from_object_path(digest.object_path().as_bytes()),
                Some(digest)
            );
        }
    }

    #[test]
    fn what_is_no_digest_is_refused() {
        let upper = VECTORS[0].2.to_uppercase();
        assert_eq!(VerityDigest::from_hex(&upper), Err(DigestError::NotHex));
        assert_eq!(VerityDigest::from_hex("ab"), Err(DigestError::HexLength(2)));
        assert_eq!(
            VerityDigest::from_hex(&VECTORS[0].2[1..]),
            Err(DigestError::HexLength(63))
        );
        for path in ["", "a", "ab", "ab/", "abc/d", &"a".repeat(500)] {
            assert_eq!(VerityDigest::from_object_path(path.as_bytes()), None);
        }
    }
}
