//! The vectors of x86-64: AVX2 and AVX-512, each with 32-bit words for SHA-256 and 64-bit words for
//! SHA-512.

use std::arch::x86_64::{__m256i, __m512i};

use pulp::x86::{V3, V4};
use pulp::{NullaryFnOnce, cast};

use super::kernel::{self, Vectors};

#[derive(Clone, Copy)]
pub(super) struct Avx2x32(pub(super) V3);
#[derive(Clone, Copy)]
pub(super) struct Avx2x64(pub(super) V3);
#[derive(Clone, Copy)]
pub(super) struct Avx512x32(pub(super) V4);
#[derive(Clone, Copy)]
pub(super) struct Avx512x64(pub(super) V4);

/// What differs between the hash functions, apart from the constants.
macro_rules! sha256 {
    ($lanes:literal) => {
        type Word = u32;
        const INITIAL: [u32; 8] = SHA256_INITIAL;
        const ROUNDS: &'static [u32] = &SHA256_ROUNDS;
        const TOP_BIT: u32 = 1 << 31;
        common!($lanes);

        #[inline(always)]
        fn big_sigma0(self, a: Self::Vector) -> Self::Vector {
            self.xor(
                self.rotate::<2>(a),
                self.rotate::<13>(a),
                self.rotate::<22>(a),
            )
        }
        #[inline(always)]
        fn big_sigma1(self, e: Self::Vector) -> Self::Vector {
            self.xor(
                self.rotate::<6>(e),
                self.rotate::<11>(e),
                self.rotate::<25>(e),
            )
        }
        #[inline(always)]
        fn small_sigma0(self, w: Self::Vector) -> Self::Vector {
            self.xor(
                self.rotate::<7>(w),
                self.rotate::<18>(w),
                self.shift::<3>(w),
            )
        }
        #[inline(always)]
        fn small_sigma1(self, w: Self::Vector) -> Self::Vector {
            self.xor(
                self.rotate::<17>(w),
                self.rotate::<19>(w),
                self.shift::<10>(w),
            )
        }
    };
}
macro_rules! sha512 {
    ($lanes:literal) => {
        type Word = u64;
        const INITIAL: [u64; 8] = SHA512_INITIAL;
        const ROUNDS: &'static [u64] = &SHA512_ROUNDS;
        const TOP_BIT: u64 = 1 << 63;
        common!($lanes);

        #[inline(always)]
        fn big_sigma0(self, a: Self::Vector) -> Self::Vector {
            self.xor(
                self.rotate::<28>(a),
                self.rotate::<34>(a),
                self.rotate::<39>(a),
            )
        }
        #[inline(always)]
        fn big_sigma1(self, e: Self::Vector) -> Self::Vector {
            self.xor(
                self.rotate::<14>(e),
                self.rotate::<18>(e),
                self.rotate::<41>(e),
            )
        }
        #[inline(always)]
        fn small_sigma0(self, w: Self::Vector) -> Self::Vector {
            self.xor(self.rotate::<1>(w), self.rotate::<8>(w), self.shift::<7>(w))
        }
        #[inline(always)]
        fn small_sigma1(self, w: Self::Vector) -> Self::Vector {
            self.xor(
                self.rotate::<19>(w),
                self.rotate::<61>(w),
                self.shift::<6>(w),
            )
        }
    };
}
macro_rules! common {
    ($lanes:literal) => {
        #[inline(always)]
        fn words(self, vector: Self::Vector) -> [Self::Word; $lanes] {
            cast(vector)
        }
        #[inline(always)]
        fn word(number: usize) -> Self::Word {
            number as Self::Word
        }
        fn append(state: &[Self::Word; 8], hashes: &mut Vec<u8>) {
            for word in state {
                hashes.extend_from_slice(&word.to_be_bytes());
            }
        }
        fn hash(self, messages: &[&[u8]; $lanes]) -> [[Self::Word; 8]; $lanes] {
            struct Call<'a, 'm, V>(V, &'a [&'m [u8]; $lanes]);
            impl<V: Vectors<$lanes>> NullaryFnOnce for Call<'_, '_, V> {
                type Output = [[V::Word; 8]; $lanes];
                #[inline(always)]
                fn call(self) -> Self::Output {
                    kernel::hash(self.0, self.1)
                }
            }
            self.0.vectorize(Call(self, messages))
        }
    };
}
/// Choose and majority of AVX2, which has no instruction for any function of three.
macro_rules! avx2_logic {
    () => {
        #[inline(always)]
        fn choose(self, e: __m256i, f: __m256i, g: __m256i) -> __m256i {
            let simd = self.0.avx2;
            simd._mm256_xor_si256(g, simd._mm256_and_si256(e, simd._mm256_xor_si256(f, g)))
        }
        #[inline(always)]
        fn majority(self, a: __m256i, b: __m256i, c: __m256i) -> __m256i {
            let simd = self.0.avx2;
            let either = simd._mm256_or_si256(a, b);
            simd._mm256_or_si256(
                simd._mm256_and_si256(a, b),
                simd._mm256_and_si256(either, c),
            )
        }
    };
}
macro_rules! avx512_logic {
    () => {
        #[inline(always)]
        fn choose(self, e: __m512i, f: __m512i, g: __m512i) -> __m512i {
            self.0.avx512f._mm512_ternarylogic_epi64::<0xca>(e, f, g)
        }
        #[inline(always)]
        fn majority(self, a: __m512i, b: __m512i, c: __m512i) -> __m512i {
            self.0.avx512f._mm512_ternarylogic_epi64::<0xe8>(a, b, c)
        }
    };
}

impl Vectors<8> for Avx2x32 {
    type Vector = __m256i;
    sha256!(8);
    avx2_logic!();

    #[inline(always)]
    fn splat(self, word: u32) -> __m256i {
        self.0.avx._mm256_set1_epi32(word as i32)
    }
    #[inline(always)]
    fn add(self, a: __m256i, b: __m256i) -> __m256i {
        self.0.avx2._mm256_add_epi32(a, b)
    }
    #[inline(always)]
    fn load(self, messages: &[&[u8]; 8], at: usize) -> [__m256i; 16] {
        let mut words = [self.splat(0); 16];
        for (half, target) in words.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let mut rows = [self.splat(0); 8];
            for (row, message) in rows.iter_mut().zip(messages) {
                let bytes: [u8; 32] = part(message, at + half * 32);
                *row = self.0.avx2._mm256_shuffle_epi8(cast(bytes), cast(SWAP_32));
            }
            *target = self.transpose(rows);
        }
        words
    }
}

impl Avx2x32 {
    #[inline(always)]
    fn xor(self, a: __m256i, b: __m256i, c: __m256i) -> __m256i {
        let simd = self.0.avx2;
        simd._mm256_xor_si256(simd._mm256_xor_si256(a, b), c)
    }
    #[inline(always)]
    fn rotate<const R: u32>(self, a: __m256i) -> __m256i {
        let simd = self.0.avx2;
        let right = simd._mm256_srlv_epi32(a, self.splat(R));
        simd._mm256_or_si256(right, simd._mm256_sllv_epi32(a, self.splat(32 - R)))
    }
    #[inline(always)]
    fn shift<const R: i32>(self, a: __m256i) -> __m256i {
        self.0.avx2._mm256_srli_epi32::<R>(a)
    }
    /// Words of a message each to messages of a word each.
    #[inline(always)]
    fn transpose(self, r: [__m256i; 8]) -> [__m256i; 8] {
        let simd = self.0.avx2;
        let mut words = r;
        // In each half of the vectors: pairs of words of two messages, then quadruples of four.
        for i in [0, 4] {
            let low = simd._mm256_unpacklo_epi32(r[i], r[i + 1]);
            let high = simd._mm256_unpackhi_epi32(r[i], r[i + 1]);
            let next_low = simd._mm256_unpacklo_epi32(r[i + 2], r[i + 3]);
            let next_high = simd._mm256_unpackhi_epi32(r[i + 2], r[i + 3]);
            words[i] = simd._mm256_unpacklo_epi64(low, next_low);
            words[i + 1] = simd._mm256_unpackhi_epi64(low, next_low);
            words[i + 2] = simd._mm256_unpacklo_epi64(high, next_high);
            words[i + 3] = simd._mm256_unpackhi_epi64(high, next_high);
        }
        for i in 0..4 {
            let (first, last) = (words[i], words[i + 4]);
            words[i] = simd._mm256_permute2x128_si256::<0x20>(first, last);
            words[i + 4] = simd._mm256_permute2x128_si256::<0x31>(first, last);
        }
        words
    }
}

impl Vectors<4> for Avx2x64 {
    type Vector = __m256i;
    sha512!(4);
    avx2_logic!();

    #[inline(always)]
    fn splat(self, word: u64) -> __m256i {
        self.0.avx._mm256_set1_epi64x(word as i64)
    }
    #[inline(always)]
    fn add(self, a: __m256i, b: __m256i) -> __m256i {
        self.0.avx2._mm256_add_epi64(a, b)
    }
    #[inline(always)]
    fn load(self, messages: &[&[u8]; 4], at: usize) -> [__m256i; 16] {
        let mut words = [self.splat(0); 16];
        for (quarter, target) in words.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let mut rows = [self.splat(0); 4];
            for (row, message) in rows.iter_mut().zip(messages) {
                let bytes: [u8; 32] = part(message, at + quarter * 32);
                *row = self.0.avx2._mm256_shuffle_epi8(cast(bytes), cast(SWAP_64));
            }
            *target = self.transpose(rows);
        }
        words
    }
}

impl Avx2x64 {
    #[inline(always)]
    fn xor(self, a: __m256i, b: __m256i, c: __m256i) -> __m256i {
        let simd = self.0.avx2;
        simd._mm256_xor_si256(simd._mm256_xor_si256(a, b), c)
    }
    #[inline(always)]
    fn rotate<const R: u64>(self, a: __m256i) -> __m256i {
        let simd = self.0.avx2;
        let right = simd._mm256_srlv_epi64(a, self.splat(R));
        simd._mm256_or_si256(right, simd._mm256_sllv_epi64(a, self.splat(64 - R)))
    }
    #[inline(always)]
    fn shift<const R: i32>(self, a: __m256i) -> __m256i {
        self.0.avx2._mm256_srli_epi64::<R>(a)
    }
    #[inline(always)]
    fn transpose(self, [a, b, c, d]: [__m256i; 4]) -> [__m256i; 4] {
        let simd = self.0.avx2;
        let (ab_even, ab_odd) = (
            simd._mm256_unpacklo_epi64(a, b),
            simd._mm256_unpackhi_epi64(a, b),
        );
        let (cd_even, cd_odd) = (
            simd._mm256_unpacklo_epi64(c, d),
            simd._mm256_unpackhi_epi64(c, d),
        );
        [
            simd._mm256_permute2x128_si256::<0x20>(ab_even, cd_even),
            simd._mm256_permute2x128_si256::<0x20>(ab_odd, cd_odd),
            simd._mm256_permute2x128_si256::<0x31>(ab_even, cd_even),
            simd._mm256_permute2x128_si256::<0x31>(ab_odd, cd_odd),
        ]
    }
}

impl Vectors<16> for Avx512x32 {
    type Vector = __m512i;
    sha256!(16);
    avx512_logic!();

    #[inline(always)]
    fn splat(self, word: u32) -> __m512i {
        self.0.avx512f._mm512_set1_epi32(word as i32)
    }
    #[inline(always)]
    fn add(self, a: __m512i, b: __m512i) -> __m512i {
        self.0.avx512f._mm512_add_epi32(a, b)
    }
    #[inline(always)]
    fn load(self, messages: &[&[u8]; 16], at: usize) -> [__m512i; 16] {
        let swap = [SWAP_32; 2];
        let mut rows = [self.splat(0); 16];
        for (row, message) in rows.iter_mut().zip(messages) {
            let bytes: [u8; 64] = part(message, at);
            *row = self.0.avx512bw._mm512_shuffle_epi8(cast(bytes), cast(swap));
        }
        self.transpose(rows)
    }
}

impl Avx512x32 {
    #[inline(always)]
    fn xor(self, a: __m512i, b: __m512i, c: __m512i) -> __m512i {
        self.0.avx512f._mm512_ternarylogic_epi64::<0x96>(a, b, c)
    }
    #[inline(always)]
    fn rotate<const R: i32>(self, a: __m512i) -> __m512i {
        self.0.avx512f._mm512_ror_epi32::<R>(a)
    }
    #[inline(always)]
    fn shift<const R: u32>(self, a: __m512i) -> __m512i {
        self.0.avx512f._mm512_srli_epi32::<R>(a)
    }
    #[inline(always)]
    fn transpose(self, r: [__m512i; 16]) -> [__m512i; 16] {
        let simd = self.0.avx512f;
        let mut quads = r;
        // In each quarter of the vectors: pairs of words of two messages, then quadruples of four.
        for i in [0, 4, 8, 12] {
            let low = simd._mm512_unpacklo_epi32(r[i], r[i + 1]);
            let high = simd._mm512_unpackhi_epi32(r[i], r[i + 1]);
            let next_low = simd._mm512_unpacklo_epi32(r[i + 2], r[i + 3]);
            let next_high = simd._mm512_unpackhi_epi32(r[i + 2], r[i + 3]);
            quads[i] = simd._mm512_unpacklo_epi64(low, next_low);
            quads[i + 1] = simd._mm512_unpackhi_epi64(low, next_low);
            quads[i + 2] = simd._mm512_unpacklo_epi64(high, next_high);
            quads[i + 3] = simd._mm512_unpackhi_epi64(high, next_high);
        }
        // Then whole quarters.
        let mut words = quads;
        for i in 0..4 {
            let (a, b, c, d) = (quads[i], quads[i + 4], quads[i + 8], quads[i + 12]);
            let even = simd._mm512_shuffle_i32x4::<0x88>(a, b);
            let next_even = simd._mm512_shuffle_i32x4::<0x88>(c, d);
            let odd = simd._mm512_shuffle_i32x4::<0xdd>(a, b);
            let next_odd = simd._mm512_shuffle_i32x4::<0xdd>(c, d);
            words[i] = simd._mm512_shuffle_i32x4::<0x88>(even, next_even);
            words[i + 4] = simd._mm512_shuffle_i32x4::<0x88>(odd, next_odd);
            words[i + 8] = simd._mm512_shuffle_i32x4::<0xdd>(even, next_even);
            words[i + 12] = simd._mm512_shuffle_i32x4::<0xdd>(odd, next_odd);
        }
        words
    }
}

impl Vectors<8> for Avx512x64 {
    type Vector = __m512i;
    sha512!(8);
    avx512_logic!();

    #[inline(always)]
    fn splat(self, word: u64) -> __m512i {
        self.0.avx512f._mm512_set1_epi64(word as i64)
    }
    #[inline(always)]
    fn add(self, a: __m512i, b: __m512i) -> __m512i {
        self.0.avx512f._mm512_add_epi64(a, b)
    }
    #[inline(always)]
    fn load(self, messages: &[&[u8]; 8], at: usize) -> [__m512i; 16] {
        let swap = [SWAP_64; 2];
        let mut words = [self.splat(0); 16];
        for (half, target) in words.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let mut rows = [self.splat(0); 8];
            for (row, message) in rows.iter_mut().zip(messages) {
                let bytes: [u8; 64] = part(message, at + half * 64);
                *row = self.0.avx512bw._mm512_shuffle_epi8(cast(bytes), cast(swap));
            }
            *target = self.transpose(rows);
        }
        words
    }
}

impl Avx512x64 {
    #[inline(always)]
    fn xor(self, a: __m512i, b: __m512i, c: __m512i) -> __m512i {
        self.0.avx512f._mm512_ternarylogic_epi64::<0x96>(a, b, c)
    }
    #[inline(always)]
    fn rotate<const R: i32>(self, a: __m512i) -> __m512i {
        self.0.avx512f._mm512_ror_epi64::<R>(a)
    }
    #[inline(always)]
    fn shift<const R: u32>(self, a: __m512i) -> __m512i {
        self.0.avx512f._mm512_srli_epi64::<R>(a)
    }
    #[inline(always)]
    fn transpose(self, r: [__m512i; 8]) -> [__m512i; 8] {
        let simd = self.0.avx512f;
        // In each quarter of the vectors: even and odd words of two messages.
        let mut pairs = r;
        for i in [0, 2, 4, 6] {
            pairs[i] = simd._mm512_unpacklo_epi64(r[i], r[i + 1]);
            pairs[i + 1] = simd._mm512_unpackhi_epi64(r[i], r[i + 1]);
        }
        // Then whole quarters.
        let mut words = pairs;
        for i in 0..2 {
            let (a, b, c, d) = (pairs[i], pairs[i + 2], pairs[i + 4], pairs[i + 6]);
            let even = simd._mm512_shuffle_i64x2::<0x88>(a, b);
            let next_even = simd._mm512_shuffle_i64x2::<0x88>(c, d);
            let odd = simd._mm512_shuffle_i64x2::<0xdd>(a, b);
            let next_odd = simd._mm512_shuffle_i64x2::<0xdd>(c, d);
            words[i] = simd._mm512_shuffle_i64x2::<0x88>(even, next_even);
            words[i + 2] = simd._mm512_shuffle_i64x2::<0x88>(odd, next_odd);
            words[i + 4] = simd._mm512_shuffle_i64x2::<0xdd>(even, next_even);
            words[i + 6] = simd._mm512_shuffle_i64x2::<0xdd>(odd, next_odd);
        }
        words
    }
}

/// Part of a message. Whoever calls has made sure that it is as long as that.
#[inline(always)]
fn part<const N: usize>(message: &[u8], at: usize) -> [u8; N] {
    message[at..at + N].try_into().expect("a slice of N bytes")
}

/// Within 16 bytes, where each byte comes from when big-endian words are turned.
const SWAP_32: [u8; 32] = swap(4);
const SWAP_64: [u8; 32] = swap(8);

const fn swap(word: usize) -> [u8; 32] {
    let mut from = [0; 32];
    let mut i = 0;
    while i < 32 {
        from[i] = (i % 16 / word * word + word - 1 - i % word) as u8;
        i += 1;
    }
    from
}

const SHA256_INITIAL: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

const SHA256_ROUNDS: [u32; 64] = [
    0x428a_2f98,
    0x7137_4491,
    0xb5c0_fbcf,
    0xe9b5_dba5,
    0x3956_c25b,
    0x59f1_11f1,
    0x923f_82a4,
    0xab1c_5ed5,
    0xd807_aa98,
    0x1283_5b01,
    0x2431_85be,
    0x550c_7dc3,
    0x72be_5d74,
    0x80de_b1fe,
    0x9bdc_06a7,
    0xc19b_f174,
    0xe49b_69c1,
    0xefbe_4786,
    0x0fc1_9dc6,
    0x240c_a1cc,
    0x2de9_2c6f,
    0x4a74_84aa,
    0x5cb0_a9dc,
    0x76f9_88da,
    0x983e_5152,
    0xa831_c66d,
    0xb003_27c8,
    0xbf59_7fc7,
    0xc6e0_0bf3,
    0xd5a7_9147,
    0x06ca_6351,
    0x1429_2967,
    0x27b7_0a85,
    0x2e1b_2138,
    0x4d2c_6dfc,
    0x5338_0d13,
    0x650a_7354,
    0x766a_0abb,
    0x81c2_c92e,
    0x9272_2c85,
    0xa2bf_e8a1,
    0xa81a_664b,
    0xc24b_8b70,
    0xc76c_51a3,
    0xd192_e819,
    0xd699_0624,
    0xf40e_3585,
    0x106a_a070,
    0x19a4_c116,
    0x1e37_6c08,
    0x2748_774c,
    0x34b0_bcb5,
    0x391c_0cb3,
    0x4ed8_aa4a,
    0x5b9c_ca4f,
    0x682e_6ff3,
    0x748f_82ee,
    0x78a5_636f,
    0x84c8_7814,
    0x8cc7_0208,
    0x90be_fffa,
    0xa450_6ceb,
    0xbef9_a3f7,
    0xc671_78f2,
];

const SHA512_INITIAL: [u64; 8] = [
    0x6a09_e667_f3bc_c908,
    0xbb67_ae85_84ca_a73b,
    0x3c6e_f372_fe94_f82b,
    0xa54f_f53a_5f1d_36f1,
    0x510e_527f_ade6_82d1,
    0x9b05_688c_2b3e_6c1f,
    0x1f83_d9ab_fb41_bd6b,
    0x5be0_cd19_137e_2179,
];

const SHA512_ROUNDS: [u64; 80] = [
    0x428a_2f98_d728_ae22,
    0x7137_4491_23ef_65cd,
    0xb5c0_fbcf_ec4d_3b2f,
    0xe9b5_dba5_8189_dbbc,
    0x3956_c25b_f348_b538,
    0x59f1_11f1_b605_d019,
    0x923f_82a4_af19_4f9b,
    0xab1c_5ed5_da6d_8118,
    0xd807_aa98_a303_0242,
    0x1283_5b01_4570_6fbe,
    0x2431_85be_4ee4_b28c,
    0x550c_7dc3_d5ff_b4e2,
    0x72be_5d74_f27b_896f,
    0x80de_b1fe_3b16_96b1,
    0x9bdc_06a7_25c7_1235,
    0xc19b_f174_cf69_2694,
    0xe49b_69c1_9ef1_4ad2,
    0xefbe_4786_384f_25e3,
    0x0fc1_9dc6_8b8c_d5b5,
    0x240c_a1cc_77ac_9c65,
    0x2de9_2c6f_592b_0275,
    0x4a74_84aa_6ea6_e483,
    0x5cb0_a9dc_bd41_fbd4,
    0x76f9_88da_8311_53b5,
    0x983e_5152_ee66_dfab,
    0xa831_c66d_2db4_3210,
    0xb003_27c8_98fb_213f,
    0xbf59_7fc7_beef_0ee4,
    0xc6e0_0bf3_3da8_8fc2,
    0xd5a7_9147_930a_a725,
    0x06ca_6351_e003_826f,
    0x1429_2967_0a0e_6e70,
    0x27b7_0a85_46d2_2ffc,
    0x2e1b_2138_5c26_c926,
    0x4d2c_6dfc_5ac4_2aed,
    0x5338_0d13_9d95_b3df,
    0x650a_7354_8baf_63de,
    0x766a_0abb_3c77_b2a8,
    0x81c2_c92e_47ed_aee6,
    0x9272_2c85_1482_353b,
    0xa2bf_e8a1_4cf1_0364,
    0xa81a_664b_bc42_3001,
    0xc24b_8b70_d0f8_9791,
    0xc76c_51a3_0654_be30,
    0xd192_e819_d6ef_5218,
    0xd699_0624_5565_a910,
    0xf40e_3585_5771_202a,
    0x106a_a070_32bb_d1b8,
    0x19a4_c116_b8d2_d0c8,
    0x1e37_6c08_5141_ab53,
    0x2748_774c_df8e_eb99,
    0x34b0_bcb5_e19b_48a8,
    0x391c_0cb3_c5c9_5a63,
    0x4ed8_aa4a_e341_8acb,
    0x5b9c_ca4f_7763_e373,
    0x682e_6ff3_d6b2_b8a3,
    0x748f_82ee_5def_b2fc,
    0x78a5_636f_4317_2f60,
    0x84c8_7814_a1f0_ab72,
    0x8cc7_0208_1a64_39ec,
    0x90be_fffa_2363_1e28,
    0xa450_6ceb_de82_bde9,
    0xbef9_a3f7_b2c6_7915,
    0xc671_78f2_e372_532b,
    0xca27_3ece_ea26_619c,
    0xd186_b8c7_21c0_c207,
    0xeada_7dd6_cde0_eb1e,
    0xf57d_4f7f_ee6e_d178,
    0x06f0_67aa_7217_6fba,
    0x0a63_7dc5_a2c8_98a6,
    0x113f_9804_bef9_0dae,
    0x1b71_0b35_131c_471b,
    0x28db_77f5_2304_7d84,
    0x32ca_ab7b_40c7_2493,
    0x3c9e_be0a_15c9_bebc,
    0x431d_67c4_9c10_0d4c,
    0x4cc5_d4be_cb3e_42b6,
    0x597f_299c_fc65_7e2a,
    0x5fcb_6fab_3ad6_faec,
    0x6c44_198c_4a47_5817,
];
