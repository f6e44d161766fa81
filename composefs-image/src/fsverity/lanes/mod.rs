//! SHA-256 and SHA-512 of many messages at once, one in each lane of the processor's vectors.
//!
//! fs-verity hashes blocks that do not depend on each other, so a vector can hold the same word of the
//! state of several hashes. Which vectors there are is found at run time: AVX-512 (8 or 16 lanes),
//! AVX2 (4 or 8), or none, where messages are hashed one after the other with `sha2`, which has the
//! processor's own SHA instructions. The algorithm is FIPS 180-4's; the calls to code for particular
//! processors, which the compiler cannot check, are those of the crate `pulp`.

#![allow(
    clippy::many_single_char_names,
    reason = "FIPS 180-4 names the words of a state so"
)]
#![allow(
    clippy::inline_always,
    clippy::large_types_passed_by_value,
    reason = "only what is inlined where the processor's features are known uses its vectors"
)]

#[cfg(target_arch = "x86_64")]
mod kernel;
#[cfg(target_arch = "x86_64")]
mod x86;

use sha2::{Sha256, Sha512};

use super::Algorithm;

/// So few lanes in use are faster than one message after the other, as measured.
#[cfg(target_arch = "x86_64")]
const FEW_64: usize = 2;
/// Likewise for SHA-256 without instructions of its own.
#[cfg(target_arch = "x86_64")]
const FEW_32: usize = 3;

/// A way to hash many messages.
#[derive(Clone, Copy, Debug)]
pub(super) enum Lanes {
    /// One after the other.
    None,
    #[cfg(target_arch = "x86_64")]
    Avx2(pulp::x86::V3),
    #[cfg(target_arch = "x86_64")]
    Avx512(pulp::x86::V4),
}

impl Lanes {
    /// The fastest way that this processor has. The answer is remembered by `pulp`.
    pub(super) fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(simd) = pulp::x86::V4::try_new() {
                return Self::Avx512(simd);
            }
            if let Some(simd) = pulp::x86::V3::try_new() {
                return Self::Avx2(simd);
            }
        }
        Self::None
    }

    /// Every way that this processor has.
    #[cfg(test)]
    pub(super) fn all() -> Vec<Self> {
        let mut all = vec![Self::None];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(pulp::x86::V3::try_new().map(Self::Avx2));
            all.extend(pulp::x86::V4::try_new().map(Self::Avx512));
        }
        all
    }

    /// Appends the hash of each message to `hashes`. All have the same length, a multiple of 128.
    pub(super) fn hash(self, algorithm: Algorithm, messages: &[&[u8]], hashes: &mut Vec<u8>) {
        match (algorithm, self) {
            (Algorithm::Sha256, Self::None) => one_by_one::<Sha256>(messages, hashes),
            (Algorithm::Sha512, Self::None) => one_by_one::<Sha512>(messages, hashes),
            #[cfg(target_arch = "x86_64")]
            // AVX2 is as fast as the processor's own instructions, where it has these.
            (Algorithm::Sha256, Self::Avx2(_)) if has_sha256() => {
                one_by_one::<Sha256>(messages, hashes);
            }
            #[cfg(target_arch = "x86_64")]
            (Algorithm::Sha256, Self::Avx2(simd)) => {
                in_lanes::<_, Sha256, 8>(x86::Avx2x32(simd), FEW_32, messages, hashes);
            }
            #[cfg(target_arch = "x86_64")]
            (Algorithm::Sha512, Self::Avx2(simd)) => {
                in_lanes::<_, Sha512, 4>(x86::Avx2x64(simd), FEW_64, messages, hashes);
            }
            #[cfg(target_arch = "x86_64")]
            (Algorithm::Sha256, Self::Avx512(simd)) => {
                let enough = if has_sha256() { 10 } else { FEW_32 };
                in_lanes::<_, Sha256, 16>(x86::Avx512x32(simd), enough, messages, hashes);
            }
            #[cfg(target_arch = "x86_64")]
            (Algorithm::Sha512, Self::Avx512(simd)) => {
                in_lanes::<_, Sha512, 8>(x86::Avx512x64(simd), FEW_64, messages, hashes);
            }
        }
    }
}

/// Whether the processor has instructions for SHA-256, of which `sha2` knows too.
#[cfg(target_arch = "x86_64")]
fn has_sha256() -> bool {
    std::arch::is_x86_feature_detected!("sha")
}

fn one_by_one<H: sha2::Digest>(messages: &[&[u8]], hashes: &mut Vec<u8>) {
    for message in messages {
        hashes.extend_from_slice(&H::digest(message));
    }
}

/// Fills vectors of `N` lanes as long as there are `enough` messages for a vector to be faster than `H`.
#[cfg(target_arch = "x86_64")]
fn in_lanes<V: kernel::Vectors<N>, H: sha2::Digest, const N: usize>(
    vectors: V,
    enough: usize,
    messages: &[&[u8]],
    hashes: &mut Vec<u8>,
) {
    for group in messages.chunks(N) {
        if group.len() < enough {
            one_by_one::<H>(group, hashes);
            continue;
        }
        // Lanes that are left over repeat the first message.
        let mut lanes = [group[0]; N];
        lanes[..group.len()].copy_from_slice(group);
        let states = vectors.hash(&lanes);
        for state in states.iter().take(group.len()) {
            V::append(state, hashes);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_lane_has_the_hash_that_its_message_has_alone(
            blocks in 0..5_usize,
            messages in vec(vec(any::<u8>(), 4 * 128), 0..40),
        ) {
            let messages: Vec<_> = messages.iter().map(|message| &message[..blocks * 128]).collect();
            for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
                let mut expected = Vec::new();
                Lanes::None.hash(algorithm, &messages, &mut expected);
                for lanes in Lanes::all() {
                    let mut hashes = Vec::new();
                    lanes.hash(algorithm, &messages, &mut hashes);
                    prop_assert_eq!(&hashes, &expected, "{:?}", lanes);
                }
            }
        }
    }

    #[test]
    fn processors_without_instructions_for_sha256_use_all_lanes_of_avx2() {
        let data: Vec<u8> = (0..4096_u32).map(|i| ((i * i) >> 5) as u8).collect();
        let messages: Vec<_> = data.chunks(256).collect();
        let (mut expected, mut hashes) = (Vec::new(), Vec::new());
        one_by_one::<Sha256>(&messages, &mut expected);
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = pulp::x86::V3::try_new() {
            in_lanes::<_, Sha256, 8>(x86::Avx2x32(simd), 1, &messages, &mut hashes);
            assert_eq!(hashes, expected);
        }
    }
}
