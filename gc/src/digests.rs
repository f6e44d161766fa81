//! Many digests in little memory: sorted, back to back, found by where they must be.

use composefs_image::{Algorithm, VerityDigest};

/// Digests of one algorithm, sorted, each with its index. Takes as many bytes as the digests have.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Digests {
    algorithm: Algorithm,
    bytes: Vec<u8>,
    /// Where the digests with each first byte begin; one more for the end.
    shards: Vec<usize>,
}

impl std::fmt::Debug for Digests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} digests", self.len())
    }
}

impl Digests {
    /// Puts together what was found for each first byte, each sorted.
    pub(crate) fn new(algorithm: Algorithm, shards: Vec<Vec<u8>>) -> Self {
        let mut digests = Self {
            algorithm,
            bytes: Vec::with_capacity(shards.iter().map(Vec::len).sum()),
            shards: vec![0],
        };
        for shard in shards {
            digests.bytes.extend_from_slice(&shard);
            digests.shards.push(digests.len());
        }
        digests
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len() / self.algorithm.digest_len()
    }

    pub(crate) fn get(&self, index: usize) -> Option<VerityDigest> {
        VerityDigest::from_bytes(self.algorithm, self.slice(index)?).ok()
    }

    /// The indexes of the digests with this first byte.
    pub(crate) fn shard(&self, first: u8) -> std::ops::Range<usize> {
        let at = |n: usize| self.shards.get(n).copied().unwrap_or(self.len());
        at(first.into())..at(usize::from(first) + 1)
    }

    /// The index of a digest. Digests are evenly spread, so the search begins where it would be then, and
    /// goes on from there in growing steps.
    pub(crate) fn find(&self, digest: &VerityDigest) -> Option<usize> {
        let key = digest.as_bytes();
        if key.len() != self.algorithm.digest_len() {
            return None;
        }
        let (first, rest) = key.split_first()?;
        let shard = self.shard(*first);
        let position = rest
            .first_chunk::<4>()
            .map_or(0, |b| u32::from_be_bytes(*b));
        let length = shard.len() as u64;
        let guess = shard.start + usize::try_from((length * u64::from(position)) >> 32).ok()?;
        let less = |index: usize| self.slice(index).is_some_and(|slice| slice < key);
        // Between `low` and `high`, `low` included, is the first that is not less.
        let (mut low, mut high) = (shard.start, shard.end);
        let mut step = 8;
        if less(guess) {
            low = guess + 1;
            while low + step < high {
                if less(low + step) {
                    low += step + 1;
                    step *= 2;
                } else {
                    high = low + step;
                }
            }
        } else {
            high = guess;
            while low + step < high {
                if less(high - step) {
                    low = high - step + 1;
                } else {
                    high -= step;
                    step *= 2;
                }
            }
        }
        while low < high {
            let middle = low.midpoint(high);
            if less(middle) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        (self.slice(low)? == key).then_some(low)
    }

    fn slice(&self, index: usize) -> Option<&[u8]> {
        let length = self.algorithm.digest_len();
        self.bytes.get(index * length..)?.get(..length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use composefs_image::verity_digest;

    fn sorted(digests: &mut [VerityDigest]) -> Digests {
        digests.sort_unstable();
        let shards = (0..=255).map(|first| {
            let of_shard = digests
                .iter()
                .filter(|digest| digest.as_bytes().first() == Some(&first));
            of_shard
                .flat_map(|digest| digest.as_bytes().to_vec())
                .collect()
        });
        Digests::new(Algorithm::Sha256, shards.collect())
    }

    #[test]
    fn every_digest_is_found_and_no_other() {
        for count in [0_u32, 1, 2, 300, 5000] {
            let digest = |n: u32| verity_digest(Algorithm::Sha256, &n.to_le_bytes());
            let mut all: Vec<_> = (0..count).map(digest).collect();
            let set = sorted(&mut all);
            assert_eq!(set.len(), all.len());
            for (index, digest) in all.iter().enumerate() {
                assert_eq!(set.find(digest), Some(index));
                assert_eq!(set.get(index).as_ref(), Some(digest));
            }
            for n in count..count + 500 {
                assert_eq!(set.find(&digest(n)), None);
            }
        }
    }

    #[test]
    fn digests_that_are_not_spread_evenly_are_found_too() {
        let mut all: Vec<_> = (0..2000_u32)
            .map(|n| {
                let mut bytes = [0_u8; 32];
                bytes[0] = 7;
                bytes[28..].copy_from_slice(&n.to_be_bytes());
                if n % 5 == 0 {
                    bytes[1] = 0xff;
                }
                VerityDigest::from_bytes(Algorithm::Sha256, &bytes).unwrap()
            })
            .collect();
        let set = sorted(&mut all);
        for (index, digest) in all.iter().enumerate() {
            assert_eq!(set.find(digest), Some(index));
        }
        assert_eq!(set.find(&verity_digest(Algorithm::Sha512, b"")), None);
    }
}
