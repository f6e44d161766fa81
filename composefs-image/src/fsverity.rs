//! fs-verity digests in user space, as Linux computes them: version 1, 4096-byte blocks, no salt,
//! SHA-256 or SHA-512.
//!
//! The digest is the name of an object and the identity of an image. Nothing here touches a file:
//! bytes go in, a digest comes out.

mod hash;
mod lanes;

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

pub use hash::{VerityHasher, leaf_hashes, verity_digest, verity_digest_of_root, verity_digests};

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

#[cfg(test)]
mod tests {
    use super::*;

    const DIGITS: [&str; 2] = [
        "83334d2a5a79c35ecec7b206551570ffb7c723db2fb0ea790e9f63bfb4992858",
        "38ac32ea930d7b6a547d35f1a383ffb18d7408832eeb2096ab702237ac02fe36\
         2c821793d26e23b62bd96a9c7d3118958d15b0cce3f97eaeac28438547980127",
    ];

    #[test]
    fn hexadecimal_and_object_paths_round_trip() {
        for text in DIGITS {
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
        let upper = DIGITS[0].to_uppercase();
        assert_eq!(VerityDigest::from_hex(&upper), Err(DigestError::NotHex));
        assert_eq!(VerityDigest::from_hex("ab"), Err(DigestError::HexLength(2)));
        assert_eq!(
            VerityDigest::from_hex(&DIGITS[0][1..]),
            Err(DigestError::HexLength(63))
        );
        for path in ["", "a", "ab", "ab/", "abc/d", &"a".repeat(500)] {
            assert_eq!(VerityDigest::from_object_path(path.as_bytes()), None);
        }
    }
}
