//! The compression functions of FIPS 180-4 on vectors, whatever their width.

/// Vectors that hold one word of each of `N` messages, and the hash function for words of their size.
///
/// The operations are only fast where the processor's features are known to the compiler, which is
/// inside [`Self::hash`]: all that it calls is inlined there.
pub(super) trait Vectors<const N: usize>: Copy {
    /// `u32` for SHA-256, `u64` for SHA-512.
    type Word: Copy + Default + 'static;
    /// A word of each message.
    type Vector: Copy;
    /// Bytes of a block of the hash function: 16 words.
    const BLOCK: usize = 16 * size_of::<Self::Word>();
    /// The first state.
    const INITIAL: [Self::Word; 8];
    /// A constant for each round.
    const ROUNDS: &'static [Self::Word];

    fn splat(self, word: Self::Word) -> Self::Vector;
    fn add(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// Σ0 and Σ1, of the state.
    fn big_sigma0(self, a: Self::Vector) -> Self::Vector;
    fn big_sigma1(self, e: Self::Vector) -> Self::Vector;
    /// σ0 and σ1, of the message.
    fn small_sigma0(self, w: Self::Vector) -> Self::Vector;
    fn small_sigma1(self, w: Self::Vector) -> Self::Vector;
    /// Bits of `f` where `e` is set, of `g` elsewhere.
    fn choose(self, e: Self::Vector, f: Self::Vector, g: Self::Vector) -> Self::Vector;
    fn majority(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// The 16 big-endian words at `at` of every message.
    fn load(self, messages: &[&[u8]; N], at: usize) -> [Self::Vector; 16];
    /// The words of each message.
    fn words(self, vector: Self::Vector) -> [Self::Word; N];
    /// A number of bits, as the last word of the padding.
    fn word(number: usize) -> Self::Word;
    /// The word with only its highest bit set.
    const TOP_BIT: Self::Word;
    /// Appends a state as bytes.
    fn append(state: &[Self::Word; 8], hashes: &mut Vec<u8>);
    /// [`hash`] where the compiler knows of the processor's features.
    fn hash(self, messages: &[&[u8]; N]) -> [[Self::Word; 8]; N];
}

/// The hashes of messages of one length, which is a multiple of the block's.
#[inline(always)]
pub(super) fn hash<V: Vectors<N>, const N: usize>(
    v: V,
    messages: &[&[u8]; N],
) -> [[V::Word; 8]; N] {
    let len = messages[0].len();
    // No closures here: one that is not inlined would not know of the processor's features.
    let mut state = [v.splat(V::Word::default()); 8];
    for (vector, word) in state.iter_mut().zip(V::INITIAL) {
        *vector = v.splat(word);
    }
    let mut at = 0;
    while at + V::BLOCK <= len {
        let block = v.load(messages, at);
        compress(v, &mut state, block);
        at += V::BLOCK;
    }
    let mut padding = [v.splat(V::Word::default()); 16];
    padding[0] = v.splat(V::TOP_BIT);
    padding[15] = v.splat(V::word(len * 8));
    compress(v, &mut state, padding);

    let mut hashes = [[V::Word::default(); 8]; N];
    for (number, vector) in state.into_iter().enumerate() {
        for (hash, word) in hashes.iter_mut().zip(v.words(vector)) {
            hash[number] = word;
        }
    }
    hashes
}

#[inline(always)]
fn compress<V: Vectors<N>, const N: usize>(
    v: V,
    state: &mut [V::Vector; 8],
    mut w: [V::Vector; 16],
) {
    let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = *state;
    // Sixteen rounds after which every variable is back in its place.
    macro_rules! round {
        ($a:ident $b:ident $c:ident $d:ident $e:ident $f:ident $g:ident $h:ident, $t:expr, $k:expr) => {
            let kw = v.add(w[$t], v.splat($k[$t]));
            let t1 = v.add(v.add($h, kw), v.add(v.choose($e, $f, $g), v.big_sigma1($e)));
            $d = v.add($d, t1);
            $h = v.add(t1, v.add(v.big_sigma0($a), v.majority($a, $b, $c)));
        };
    }
    macro_rules! rounds {
        ($k:expr) => {
            round!(a b c d e f g h, 0, $k);
            round!(h a b c d e f g, 1, $k);
            round!(g h a b c d e f, 2, $k);
            round!(f g h a b c d e, 3, $k);
            round!(e f g h a b c d, 4, $k);
            round!(d e f g h a b c, 5, $k);
            round!(c d e f g h a b, 6, $k);
            round!(b c d e f g h a, 7, $k);
            round!(a b c d e f g h, 8, $k);
            round!(h a b c d e f g, 9, $k);
            round!(g h a b c d e f, 10, $k);
            round!(f g h a b c d e, 11, $k);
            round!(e f g h a b c d, 12, $k);
            round!(d e f g h a b c, 13, $k);
            round!(c d e f g h a b, 14, $k);
            round!(b c d e f g h a, 15, $k);
        };
    }
    let (constants, _) = V::ROUNDS.as_chunks::<16>();
    for (number, k) in constants.iter().enumerate() {
        if number > 0 {
            macro_rules! extend {
                ($($t:literal)*) => { $(
                    w[$t] = v.add(
                        v.add(w[$t], v.small_sigma0(w[($t + 1) % 16])),
                        v.add(w[($t + 9) % 16], v.small_sigma1(w[($t + 14) % 16])),
                    );
                )* };
            }
            extend!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        }
        rounds!(k);
    }
    for (old, new) in state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
        *old = v.add(*old, new);
    }
}
