//! Random trees for tests that compare what is written with something else.
//!
//! A [`Recipe`] is a list of names, made from a seed alone, that reaches every rule of the formats:
//! odd times, owners and sizes, symlinks and directories around block borders, shared and unshared
//! xattrs, names that are not UTF-8, hard links, whiteouts. [`Recipe::shrink`] finds the few names
//! that make a test fail.

use crate::erofs::Dialect;
use crate::fsverity::{Algorithm, VerityDigest, verity_digest};
use crate::tree::{Content, InodeId, Kind, Metadata, Timestamp, Tree};

/// A small, fast generator of random numbers (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Numbers that follow from this seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `limit`, which is not 0.
    pub const fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// True once in `n` times.
    pub const fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of `choices`.
    pub fn pick<'c, T>(&mut self, choices: &'c [T]) -> &'c T {
        &choices[self.below(choices.len() as u64) as usize]
    }

    fn bytes(&mut self, len: u64, alphabet: &[u8]) -> Vec<u8> {
        (0..len).map(|_| *self.pick(alphabet)).collect()
    }
}

/// What trees may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Whose input limits to keep.
    pub dialect: Dialect,
    /// The digests of external files.
    pub algorithm: Algorithm,
}

#[derive(Clone, Debug)]
enum Payload {
    Directory,
    Inline(Vec<u8>),
    External {
        size: u64,
        digest: Option<VerityDigest>,
        path: Option<Vec<u8>>,
    },
    Symlink(Vec<u8>),
    CharDevice(u32),
    BlockDevice(u32),
    Fifo,
    Socket,
    /// Another name for an earlier step.
    HardLink(usize),
}

#[derive(Clone, Debug)]
struct Step {
    /// The step that made the directory; `None` is the root.
    parent: Option<usize>,
    name: Vec<u8>,
    metadata: Metadata,
    payload: Payload,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

fn set_xattrs(tree: &mut Tree, id: InodeId, xattrs: &[(Vec<u8>, Vec<u8>)]) {
    let xattrs = xattrs.iter();
    tree.set_xattrs(id, xattrs.map(|(name, value)| (&**name, &**value)));
}

impl Step {
    fn add(&self, tree: &mut Tree, parent: InodeId, made: &[Option<InodeId>]) -> Option<InodeId> {
        // Nothing is replaced: later steps may be below it.
        if tree.lookup(parent, &self.name).is_some() {
            return None;
        }
        let kind = match &self.payload {
            Payload::HardLink(target) => {
                let id = made[*target]?;
                tree.link(parent, &self.name, id).ok()?;
                return Some(id);
            }
            Payload::Directory => Kind::Directory,
            Payload::Inline(bytes) => Kind::Regular(Content::Inline(bytes)),
            Payload::External { size, digest, path } => Kind::Regular(Content::External {
                size: *size,
                digest: *digest,
                path: path.as_deref(),
            }),
            Payload::Symlink(target) => Kind::Symlink(target),
            Payload::CharDevice(rdev) => Kind::CharDevice(*rdev),
            Payload::BlockDevice(rdev) => Kind::BlockDevice(*rdev),
            Payload::Fifo => Kind::Fifo,
            Payload::Socket => Kind::Socket,
        };
        let id = tree.add(self.metadata, kind);
        set_xattrs(tree, id, &self.xattrs);
        tree.link(parent, &self.name, id).ok()?;
        Some(id)
    }
}

/// How to make a tree, name by name.
#[derive(Clone, Debug)]
pub struct Recipe {
    root: Metadata,
    root_xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    steps: Vec<Step>,
}

const ALL_BYTES: [u8; 256] = {
    let mut bytes = [0; 256];
    let mut i = 0;
    while i < 256 {
        bytes[i] = i as u8;
        i += 1;
    }
    bytes
};
const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789._-";
const TEXT: &[u8] = b"abc =-\\\"'\t\n/.";

impl Recipe {
    /// The recipe with this number.
    pub fn random(seed: u64, limits: Limits) -> Self {
        let mut random = Random::new(seed);
        // Most trees are small; some have directories of many blocks.
        let count = match random.below(40) {
            0 => 200 + random.below(1500),
            1..=5 => 40 + random.below(160),
            _ => random.below(30),
        };
        let mut cook = Cook::new(random, limits);
        let mut recipe = Self {
            root: cook.metadata(),
            root_xattrs: cook.xattrs(),
            steps: Vec::new(),
        };
        let mut directories = vec![None];
        for _ in 0..count {
            let parent = if cook.flat {
                directories[0]
            } else {
                *cook.random.pick(&directories)
            };
            let step = cook.step(parent, &recipe.steps);
            if matches!(step.payload, Payload::Directory) {
                directories.push(Some(recipe.steps.len()));
            }
            recipe.steps.push(step);
        }
        recipe
    }

    /// How many names there are beside the root.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether there is a root alone.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Makes the tree. A name that comes twice is the first one's.
    pub fn build(&self) -> Tree {
        let mut tree = Tree::new(self.root);
        let root = tree.root();
        set_xattrs(&mut tree, root, &self.root_xattrs);
        // What got no name is not there for what comes after it.
        let mut made: Vec<Option<InodeId>> = Vec::new();
        for step in &self.steps {
            let parent = step.parent.map_or(Some(root), |parent| made[parent]);
            made.push(parent.and_then(|parent| step.add(&mut tree, parent, &made)));
        }
        tree
    }

    fn without(&self, dropped: &std::ops::Range<usize>) -> Self {
        let mut kept = vec![None; self.steps.len()];
        let mut steps = Vec::new();
        for (index, step) in self.steps.iter().enumerate() {
            let mut step = step.clone();
            let parent = step.parent.map(|parent| kept[parent]);
            let target = match &mut step.payload {
                Payload::HardLink(target) => {
                    let new = kept[*target];
                    *target = new.unwrap_or_default();
                    new.is_some()
                }
                _ => true,
            };
            if dropped.contains(&index) || parent == Some(None) || !target {
                continue;
            }
            step.parent = parent.flatten();
            kept[index] = Some(steps.len());
            steps.push(step);
        }
        Self {
            steps,
            ..self.clone()
        }
    }

    /// A recipe with fewer names and xattrs for which `fails` is still true.
    #[must_use]
    pub fn shrink(&self, mut fails: impl FnMut(&Tree) -> bool) -> Self {
        let mut smallest = self.clone();
        let mut part = smallest.len().max(1);
        while part > 0 {
            let mut start = 0;
            while start < smallest.len() {
                let fewer = smallest.without(&(start..start + part));
                if fails(&fewer.build()) {
                    smallest = fewer;
                } else {
                    start += part;
                }
            }
            part /= 2;
        }
        // Then what is left of each name.
        for index in 0..=smallest.steps.len() {
            let mut place = 0;
            loop {
                let mut fewer = smallest.clone();
                let xattrs = match fewer.steps.get_mut(index) {
                    Some(step) => &mut step.xattrs,
                    None => &mut fewer.root_xattrs,
                };
                if place >= xattrs.len() {
                    break;
                }
                xattrs.remove(place);
                if fails(&fewer.build()) {
                    smallest = fewer;
                } else {
                    place += 1;
                }
            }
            let mut plain = smallest.clone();
            match plain.steps.get_mut(index) {
                Some(step) => step.metadata = Metadata::default(),
                None => plain.root = Metadata::default(),
            }
            if fails(&plain.build()) {
                smallest = plain;
            }
        }
        smallest
    }
}

/// Makes steps; what it made before is made again now and then, so that xattrs get shared.
struct Cook {
    random: Random,
    limits: Limits,
    /// Everything in the root.
    flat: bool,
    times: Vec<Timestamp>,
    pool: Vec<(Vec<u8>, Vec<u8>)>,
    digests: Vec<VerityDigest>,
}

const XATTR_NAMES: [&str; 26] = [
    "user.test",
    "user.",
    "user.a",
    "user.overlay.opaque",
    "user.overlay.whiteout",
    "user.overlay.whiteouts",
    "user.overlay.redirect",
    "trusted.test",
    "trusted.overlay.opaque",
    "trusted.overlay.whiteout",
    "trusted.overlay.whiteouts",
    "trusted.overlay.metacopy",
    "trusted.overlay.redirect",
    "trusted.overlay.",
    "trusted.overlay.overlay.opaque",
    "trusted.overlay.zzz",
    "trusted.overlaz",
    "security.selinux",
    "security.capability",
    "security.ima",
    "system.posix_acl_access",
    "system.posix_acl_default",
    "system.posix_acl_accessory",
    "system.nfs4_acl",
    "lustre.lov",
    "unknown",
];

impl Cook {
    fn new(mut random: Random, limits: Limits) -> Self {
        let c = limits.dialect == Dialect::C;
        let nsec_limit = if c && random.once_in(8) {
            1 << 32
        } else {
            1_000_000_000
        };
        let times = (0..=random.below(4))
            .map(|_| Timestamp {
                sec: match random.below(12) {
                    0 => -(random.below(1 << 40) as i64),
                    1 => *random.pick(&[i64::MIN, i64::MAX, 1 << 32, u32::MAX.into(), -1, 0, 1]),
                    2 => random.next() as i64,
                    3 => 0,
                    _ => 1_700_000_000 + random.below(1000) as i64,
                },
                nsec: match random.below(3) {
                    0 => random.below(nsec_limit) as u32,
                    1 => 0,
                    _ => *random.pick(&[1, 999_999_999, 500_000_000]),
                },
            })
            .collect();
        Self {
            flat: random.once_in(3),
            random,
            limits,
            times,
            pool: Vec::new(),
            digests: Vec::new(),
        }
    }

    fn is_c(&self) -> bool {
        self.limits.dialect == Dialect::C
    }

    fn owner(&mut self) -> u32 {
        match self.random.below(10) {
            0 => *self.random.pick(&[65_535, 65_536, u32::MAX, 1 << 31]),
            1 => self.random.next() as u32,
            2 | 3 => 1000,
            _ => 0,
        }
    }

    fn metadata(&mut self) -> Metadata {
        Metadata {
            mode: match self.random.below(3) {
                0 => self.random.below(0o10_000) as u16,
                1 => 0o644,
                _ => 0o755,
            },
            uid: self.owner(),
            gid: self.owner(),
            mtime: *self.random.pick(&self.times),
        }
    }

    fn xattr(&mut self) -> (Vec<u8>, Vec<u8>) {
        let reuse = self.random.below(4);
        if reuse < 2 && !self.pool.is_empty() {
            let (name, value) = self.random.pick(&self.pool).clone();
            if reuse == 0 {
                return (name, value);
            }
            // The same name with another value, sometimes of the same length.
            let len = if self.random.once_in(2) {
                value.len() as u64
            } else {
                self.random.below(20)
            };
            return (name, self.random.bytes(len, &ALL_BYTES));
        }
        let name = match self.random.below(6) {
            0 => {
                let len = 1 + self.random.below(250);
                let mut name = b"user.".to_vec();
                name.extend(self.random.bytes(len, LETTERS));
                name
            }
            1 => {
                let len = 1 + self.random.below(20);
                let mut name = self.random.pick(&XATTR_NAMES).as_bytes().to_vec();
                let alphabet: &[u8] = if self.is_c() { &ALL_BYTES[1..] } else { TEXT };
                name.extend(self.random.bytes(len, alphabet));
                name
            }
            _ => self.random.pick(&XATTR_NAMES).as_bytes().to_vec(),
        };
        let len = match self.random.below(20) {
            0 => self.random.below(3000),
            1..=4 => 0,
            5 => 1,
            _ => self.random.below(60),
        };
        let value = match self.random.below(4) {
            0 => self
                .random
                .pick(&[b"x".as_slice(), b"y", b"-", b"", b"\0"])
                .to_vec(),
            1 => self.random.bytes(len, &ALL_BYTES),
            _ => self.random.bytes(len, TEXT),
        };
        self.pool.push((name.clone(), value.clone()));
        (name, value)
    }

    fn xattrs(&mut self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let count = match self.random.below(60) {
            0 => 100 + self.random.below(120),
            1..=3 => self.random.below(20),
            4..=25 => 1 + self.random.below(3),
            _ => 0,
        };
        let mut xattrs = Vec::new();
        if count >= 100 {
            // Enough of the same for two inodes to share more references than C makes.
            for number in 0..count {
                xattrs.push((format!("user.{number}").into_bytes(), Vec::new()));
            }
            // With more, composefs-rs would overflow its count of references.
            return xattrs;
        }
        // An inode of the C tools takes some 32 KiB; composefs-rs has values of 64 KiB.
        let mut room = if self.is_c() { 12_000 } else { 50_000 };
        for _ in 0..count {
            let (name, value) = self.xattr();
            let size = name.len() + value.len() + 8;
            if size < room && name.len() <= 255 {
                room -= size;
                xattrs.push((name, value));
            }
        }
        if !self.is_c() && self.random.once_in(100) {
            let len = 65_535 - self.random.below(2);
            xattrs.push((b"user.large".to_vec(), self.random.bytes(len, b"ab")));
        }
        xattrs
    }

    fn name(&mut self) -> Vec<u8> {
        let name = match self.random.below(12) {
            0 => format!("{:02x}", self.random.below(256)).into_bytes(),
            1 => {
                let len = 1 + self.random.below(255);
                self.random.bytes(len, LETTERS)
            }
            2 => {
                let len = 1 + self.random.below(30);
                self.random.bytes(len, &ALL_BYTES)
            }
            3 => {
                let prefix = *self
                    .random
                    .pick(&["!", "-", "..", ".", "...", "0", "=", " "]);
                let mut name = prefix.as_bytes().to_vec();
                let len = self.random.below(3);
                name.extend(self.random.bytes(len, LETTERS));
                name
            }
            4 => vec![b'x'; *self.random.pick(&[1, 254, 255])],
            _ => {
                let len = 1 + self.random.below(16);
                self.random.bytes(len, LETTERS)
            }
        };
        let usable =
            !name.iter().any(|byte| matches!(byte, 0 | b'/')) && !matches!(&*name, b"." | b"..");
        if usable { name } else { b"other".to_vec() }
    }

    fn digest(&mut self) -> VerityDigest {
        if !self.digests.is_empty() && self.random.once_in(4) {
            return *self.random.pick(&self.digests);
        }
        let digest = verity_digest(self.limits.algorithm, &self.random.next().to_le_bytes());
        self.digests.push(digest);
        digest
    }

    fn size(&mut self) -> u64 {
        match self.random.below(6) {
            0 => 1 + self.random.below(70),
            1 => *self
                .random
                .pick(&[1, 63, 64, 65, 4095, 4096, 4097, 8191, 8192, 8193]),
            2 => {
                let bits = self.random.below(53);
                (1_u64 << bits)
                    .saturating_add_signed(self.random.below(5) as i64 - 2)
                    .max(1)
            }
            // Lists of several chunks, up to the longest one.
            3 => (1 << 43) * (1 + self.random.below(1023)) + self.random.below(3),
            4 => (1 << 53) - self.random.below(2) * (self.random.below(1 << 45)),
            _ => 1 + self.random.below(1 << 32),
        }
    }

    fn payload(&mut self, earlier: &[Step]) -> Payload {
        let (inline, symlink) = match self.limits.dialect {
            Dialect::C => (5000, 4095),
            Dialect::ComposefsRs => (512, 1024),
        };
        match self.random.below(24) {
            0..=3 => Payload::Directory,
            4 => Payload::Inline(Vec::new()),
            5 | 6 => {
                let len = match self.random.below(4) {
                    0 => self.random.below(inline + 1),
                    1 => *self.random.pick(&[1, 63, 64, 65, 511, 512, inline]),
                    2 => (*self.random.pick(&[2047, 2048, 2049, 4095, 4096, 4097])).min(inline),
                    _ => 1 + self.random.below(100),
                };
                Payload::Inline(self.random.bytes(len, &ALL_BYTES))
            }
            7..=11 => Payload::External {
                size: self.size(),
                digest: Some(self.digest()),
                path: match self.random.below(30) {
                    0 if self.is_c() => Some(b"some/where".to_vec()),
                    1 if self.is_c() => Some(Vec::new()),
                    2 if self.is_c() => Some(self.digest().object_path().into_bytes()),
                    _ => None,
                },
            },
            12 => Payload::External {
                size: self.size(),
                digest: None,
                path: match self.random.below(4) {
                    0 => Some(self.digest().object_path().into_bytes()),
                    1 if self.is_c() => Some(b"some/where".to_vec()),
                    2 if self.is_c() => Some(b"/other".to_vec()),
                    _ => None,
                },
            },
            13..=15 => {
                let len = match self.random.below(4) {
                    0 => 1 + self.random.below(symlink),
                    1 => symlink - self.random.below(200),
                    _ => 1 + self.random.below(100),
                };
                Payload::Symlink(self.random.bytes(len, &ALL_BYTES[1..]))
            }
            16 => Payload::CharDevice(self.random.next() as u32),
            17 | 18 => Payload::CharDevice(0),
            19 => Payload::BlockDevice(*self.random.pick(&[0, 1, 259, u32::MAX])),
            20 => Payload::Fifo,
            21 => Payload::Socket,
            _ => self.hard_link(earlier),
        }
    }

    fn hard_link(&mut self, earlier: &[Step]) -> Payload {
        if earlier.is_empty() {
            return Payload::Fifo;
        }
        let target = self.random.below(earlier.len() as u64) as usize;
        match &earlier[target].payload {
            // composefs-rs refuses whiteouts with two names.
            Payload::CharDevice(0) if !self.is_c() => Payload::Fifo,
            Payload::Directory => Payload::Fifo,
            Payload::HardLink(target) => Payload::HardLink(*target),
            _ => Payload::HardLink(target),
        }
    }

    fn step(&mut self, parent: Option<usize>, earlier: &[Step]) -> Step {
        let payload = self.payload(earlier);
        let mut metadata = self.metadata();
        if matches!(payload, Payload::CharDevice(0)) && self.random.once_in(3) {
            metadata.mode = 0o644;
        }
        Step {
            parent,
            name: self.name(),
            metadata,
            payload,
            xattrs: self.xattrs(),
        }
    }
}
