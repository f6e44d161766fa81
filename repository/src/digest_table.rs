//! Digests numbered in the order in which they came, each once.
//!
//! A layer has hundreds of thousands of objects, and all of their digests are in memory while it is
//! written. Here one takes its own 32 or 64 bytes and about 8 more; what is said of it goes into tables
//! beside this one, by its number.

use std::hash::{BuildHasher, RandomState};

use composefs_image::{Algorithm, VerityDigest};
use hashbrown::HashTable;

/// How many digests a piece of memory holds. Pieces are never moved: a table that doubles would need
/// its old and its new memory at once. They are large enough to go back to the system when they are freed.
const CHUNK: usize = 1 << 15;

#[derive(Debug)]
pub(crate) struct DigestTable {
    algorithm: Algorithm,
    chunks: Vec<Vec<u8>>,
    len: u32,
    numbers: HashTable<u32>,
    hasher: RandomState,
}

impl DigestTable {
    /// Without any digest. All that come have this algorithm.
    pub(crate) fn new(algorithm: Algorithm) -> Self {
        Self {
            algorithm,
            chunks: Vec::new(),
            len: 0,
            numbers: HashTable::new(),
            hasher: RandomState::new(),
        }
    }

    /// How many digests there are.
    pub(crate) fn len(&self) -> usize {
        self.len as usize
    }

    /// The number of a digest that is in the table.
    pub(crate) fn find(&self, digest: &VerityDigest) -> Option<u32> {
        let bytes = digest.as_bytes();
        self.numbers
            .find(self.hasher.hash_one(bytes), |number| {
                self.bytes(*number) == bytes
            })
            .copied()
    }

    /// The number of a digest: that which it has, or the next one.
    ///
    /// # Panics
    /// If the digest has another algorithm, or with 2^32 digests.
    pub(crate) fn insert(&mut self, digest: &VerityDigest) -> u32 {
        assert_eq!(digest.algorithm(), self.algorithm, "one algorithm a table");
        if let Some(number) = self.find(digest) {
            return number;
        }
        let (number, bytes) = (self.len, digest.as_bytes());
        self.len = number.checked_add(1).expect("fewer than 2^32 digests");
        if (number as usize).is_multiple_of(CHUNK) {
            self.chunks.push(Vec::with_capacity(CHUNK * bytes.len()));
        }
        if let Some(chunk) = self.chunks.last_mut() {
            chunk.extend_from_slice(bytes);
        }
        let hash = self.hasher.hash_one(bytes);
        let Self {
            algorithm,
            chunks,
            numbers,
            hasher,
            ..
        } = self;
        numbers.insert_unique(hash, number, |number| {
            hasher.hash_one(bytes_in(chunks, *algorithm, *number))
        });
        number
    }

    /// The digest of a number.
    ///
    /// # Panics
    /// If no digest has this number.
    pub(crate) fn get(&self, number: u32) -> VerityDigest {
        VerityDigest::from_bytes(self.algorithm, self.bytes(number))
            .expect("all have the table's algorithm")
    }

    fn bytes(&self, number: u32) -> &[u8] {
        bytes_in(&self.chunks, self.algorithm, number)
    }
}

fn bytes_in(chunks: &[Vec<u8>], algorithm: Algorithm, number: u32) -> &[u8] {
    let (chunk, at) = (number as usize / CHUNK, number as usize % CHUNK);
    let len = algorithm.digest_len();
    &chunks[chunk][at * len..][..len]
}

#[cfg(test)]
mod tests {
    use composefs_image::verity_digest;

    use super::*;

    #[test]
    fn digests_keep_the_number_that_they_got_first() {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let digest = |i: u32| verity_digest(algorithm, &(i % 70_000).to_le_bytes());
            let mut table = DigestTable::new(algorithm);
            for i in 0..100_000 {
                assert_eq!(table.insert(&digest(i)), i % 70_000);
            }
            for i in 0..70_000 {
                assert_eq!(table.find(&digest(i)), Some(i));
                assert_eq!(table.get(i), digest(i));
            }
            assert_eq!(table.find(&verity_digest(algorithm, b"another")), None);
        }
    }
}
