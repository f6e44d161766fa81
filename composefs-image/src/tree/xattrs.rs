//! Extended attributes, each name, each (name, value) pair and each set of pairs stored once.
//!
//! Real trees have few different sets, so an inode carries a number only, and a writer does its
//! work per set instead of per inode.

use std::hash::{Hash, Hasher};

use indexmap::{Equivalent, IndexSet};

/// A set of xattrs of one tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SetId(u32);

impl SetId {
    pub(crate) const EMPTY: Self = Self(0);

    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A (name, value) pair of one tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PairId(u32);

impl PairId {
    pub(crate) const fn from_index(index: u32) -> Self {
        Self(index)
    }

    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }
}

#[derive(Clone, PartialEq, Eq)]
struct Pair {
    name: u32,
    value: Box<[u8]>,
}

struct BorrowedPair<'a> {
    name: u32,
    value: &'a [u8],
}

impl Hash for Pair {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self { name, value } = self;
        BorrowedPair { name: *name, value }.hash(state);
    }
}

impl Hash for BorrowedPair<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u32(self.name);
        state.write(self.value);
    }
}

impl Equivalent<Pair> for BorrowedPair<'_> {
    fn equivalent(&self, pair: &Pair) -> bool {
        self.name == pair.name && *self.value == *pair.value
    }
}

#[derive(Clone)]
pub(crate) struct XattrTable {
    names: IndexSet<Box<[u8]>>,
    pairs: IndexSet<Pair>,
    /// Each sorted by name; number 0 is the empty set.
    sets: IndexSet<Box<[PairId]>>,
}

impl Default for XattrTable {
    fn default() -> Self {
        Self {
            names: IndexSet::new(),
            pairs: IndexSet::new(),
            sets: IndexSet::from([Box::default()]),
        }
    }
}

impl XattrTable {
    pub(crate) fn set_count(&self) -> usize {
        self.sets.len()
    }

    pub(crate) fn pair_count(&self) -> usize {
        self.pairs.len()
    }

    /// A pair that some inode has, had, or may get.
    pub(crate) fn find_pair(&self, name: &[u8], value: &[u8]) -> Option<PairId> {
        let name = self.names.get_index_of(name)? as u32;
        let pair = self.pairs.get_index_of(&BorrowedPair { name, value })?;
        Some(PairId(pair as u32))
    }

    pub(crate) fn set_ids(&self) -> impl Iterator<Item = SetId> + use<> {
        (0..self.sets.len() as u32).map(SetId)
    }

    pub(crate) fn pairs(&self, set: SetId) -> &[PairId] {
        &self.sets[set.index()]
    }

    pub(crate) fn pair(&self, pair: PairId) -> (&[u8], &[u8]) {
        let pair = &self.pairs[pair.0 as usize];
        (&self.names[pair.name as usize], &pair.value)
    }

    pub(crate) fn iter(&self, set: SetId) -> impl Iterator<Item = (&[u8], &[u8])> + Clone {
        self.pairs(set).iter().map(|&pair| self.pair(pair))
    }

    pub(crate) fn get(&self, set: SetId, name: &[u8]) -> Option<&[u8]> {
        let pairs = self.pairs(set);
        let place = pairs.binary_search_by(|&pair| self.pair(pair).0.cmp(name));
        Some(self.pair(pairs[place.ok()?]).1)
    }

    fn intern_pair(&mut self, name: &[u8], value: &[u8]) -> PairId {
        let name = match self.names.get_index_of(name) {
            Some(name) => name,
            None => self.names.insert_full(name.into()).0,
        } as u32;
        let found = self.pairs.get_index_of(&BorrowedPair { name, value });
        let pair = found.unwrap_or_else(|| {
            let value = value.into();
            self.pairs.insert_full(Pair { name, value }).0
        });
        PairId(pair as u32)
    }

    fn intern_set(&mut self, pairs: &[PairId]) -> SetId {
        let set = match self.sets.get_index_of(pairs) {
            Some(set) => set,
            None => self.sets.insert_full(pairs.into()).0,
        };
        SetId(set as u32)
    }

    /// The set of these xattrs; of a name given twice the last value stays.
    pub(crate) fn set_of<'a>(
        &mut self,
        xattrs: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> SetId {
        let mut pairs: Vec<PairId> = xattrs
            .into_iter()
            .map(|(name, value)| self.intern_pair(name, value))
            .collect();
        // Stable, so that of equal names the last one given comes last, and is kept.
        pairs.sort_by(|&a, &b| self.pair(a).0.cmp(self.pair(b).0));
        let mut kept: Vec<PairId> = Vec::with_capacity(pairs.len());
        for pair in pairs {
            match kept.last_mut() {
                Some(last) if self.pair(*last).0 == self.pair(pair).0 => *last = pair,
                _ => kept.push(pair),
            }
        }
        self.intern_set(&kept)
    }

    /// `set` with one xattr added or replaced.
    pub(crate) fn with(&mut self, set: SetId, name: &[u8], value: &[u8]) -> SetId {
        let new = self.intern_pair(name, value);
        let mut pairs = self.pairs(set).to_vec();
        match pairs.binary_search_by(|&pair| self.pair(pair).0.cmp(name)) {
            Ok(place) => pairs[place] = new,
            Err(place) => pairs.insert(place, new),
        }
        self.intern_set(&pairs)
    }

    /// The xattrs of `set` for which `keep(name, value)` is true.
    pub(crate) fn retain(
        &mut self,
        set: SetId,
        mut keep: impl FnMut(&[u8], &[u8]) -> bool,
    ) -> SetId {
        let all = self.pairs(set);
        let kept: Vec<PairId> = all
            .iter()
            .copied()
            .filter(|&pair| {
                let (name, value) = self.pair(pair);
                keep(name, value)
            })
            .collect();
        if kept.len() == all.len() {
            return set;
        }
        self.intern_set(&kept)
    }
}
