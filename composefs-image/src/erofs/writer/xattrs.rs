//! The xattrs of an image: overlay's own and the escaped ones of the tree, and which are shared.
//!
//! A (name, value) pair that two or more inodes have stands once in a table behind the inodes.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::io;

use super::order::{Marks, Node, Order, SELINUX};
use super::shares::{Groups, Object, Redirect, object, share};
use super::sink::Sink;
use super::{Dialect, Misfit, PlanError, WriteOptions, format};
use crate::fsverity::VerityDigest;
use crate::tree::{InodeId, PairId, SetId, Tree};
use format::overlay;

/// The C tools give an inode no more references than this.
const MAX_SHARED_C: usize = 128;
/// What the 8-bit count of references holds.
const MAX_SHARED: usize = 255;

/// A pair as the image has it: escaped, with its prefix as a number.
struct Pair<'a> {
    name: Cow<'a, [u8]>,
    value: &'a [u8],
    index: u8,
    prefix_len: u8,
    /// Bit in the name filter.
    filter: u32,
    uses: u32,
    /// Offset in the table.
    shared: Option<u32>,
}

impl<'a> Pair<'a> {
    fn new(name: Cow<'a, [u8]>, value: &'a [u8], c: bool) -> Self {
        let (index, prefix_len) = format::XATTR_PREFIXES
            .into_iter()
            .find(|&(index, prefix)| {
                name.starts_with(prefix) && !(c && index == format::XATTR_LUSTRE)
            })
            .map_or((0, 0), |(index, prefix)| (index, prefix.len()));
        Self {
            filter: format::filter_bit(index, &name[prefix_len..]),
            name,
            value,
            index,
            prefix_len: prefix_len as u8,
            uses: 0,
            shared: None,
        }
    }

    fn suffix(&self) -> &[u8] {
        &self.name[usize::from(self.prefix_len)..]
    }

    fn size(&self) -> u64 {
        entry_size(self.suffix().len(), self.value.len())
    }
}

fn entry_size(suffix: usize, value: usize) -> u64 {
    (format::XATTR_ENTRY + suffix + value).next_multiple_of(4) as u64
}

fn write_entry(
    out: &mut Sink<impl io::Write>,
    index: u8,
    suffix: &[u8],
    value: &[&[u8]],
) -> io::Result<()> {
    let len: usize = value.iter().map(|part| part.len()).sum();
    out.put(&[suffix.len() as u8, index])?;
    out.u16(len as u16)?;
    out.put(suffix)?;
    for part in value {
        out.put(part)?;
    }
    out.put(&[0; 3][..len.wrapping_add(suffix.len()).wrapping_neg() % 4])
}

/// The xattrs of one or more inodes without those that name an object.
struct Set<'a> {
    pairs: Cow<'a, [PairId]>,
    uses: u32,
}

/// One xattr of an inode.
#[derive(Clone, Copy)]
enum Item<'o> {
    Pair(PairId),
    Metacopy(Option<&'o VerityDigest>),
    Redirect(&'o Redirect<'o>),
}

/// The xattrs of one inode.
struct NodeXattrs<'x, 'a> {
    all: &'x Xattrs<'a>,
    inode: Option<InodeId>,
    pairs: &'x [PairId],
    object: Option<Object<'a>>,
}

impl NodeXattrs<'_, '_> {
    /// In the order of the image.
    fn items(&self) -> impl Iterator<Item = Item<'_>> {
        let object = self.object.as_ref();
        let metacopy = object.map(|object| Item::Metacopy(object.digest.as_ref()));
        let redirect = object.and_then(|object| Some(Item::Redirect(object.redirect.as_ref()?)));
        // Where the two go among the sorted names: everything between them is escaped.
        let (before, between) = if object.is_some() && self.all.options.format.is_c() {
            let place = |name: &[u8]| {
                self.pairs
                    .partition_point(|pair| *self.all.pairs[pair.index()].name < *name)
            };
            let before = place(overlay::METACOPY);
            (before, place(overlay::REDIRECT) - before)
        } else {
            (0, 0)
        };
        let (before, rest) = self.pairs.split_at(before);
        let (between, after) = rest.split_at(between);
        let before = before.iter().copied().map(Item::Pair);
        let between = between.iter().copied().map(Item::Pair);
        let after = after.iter().copied().map(Item::Pair);
        before
            .chain(metacopy)
            .chain(between)
            .chain(redirect)
            .chain(after)
    }

    /// The offset in the table, when the xattr stands there.
    fn shared(&self, item: Item<'_>) -> Option<u32> {
        let group = |groups: &Groups, offsets: &[u32]| Some(offsets[groups.of(self.inode?)?]);
        match item {
            Item::Pair(pair) => self.all.pairs[pair.index()].shared,
            Item::Metacopy(_) => group(&self.all.metacopies, &self.all.metacopy_offsets),
            Item::Redirect(_) => group(&self.all.redirects, &self.all.redirect_offsets),
        }
    }

    /// As [`Self::items`], each with its offset in the table if it is a reference to that.
    fn references(&self) -> impl Iterator<Item = (Item<'_>, Option<u32>)> {
        let limit = match self.all.options.dialect {
            Dialect::C => MAX_SHARED_C,
            Dialect::ComposefsRs => MAX_SHARED,
        };
        let mut count = 0;
        self.items().map(move |item| {
            let shared = self.shared(item).filter(|_| count < limit);
            count += usize::from(shared.is_some());
            (item, shared)
        })
    }
}

/// One entry of the shared table.
#[derive(Clone, Copy)]
enum Shared {
    Pair(PairId),
    Metacopy(usize),
    Redirect(usize),
}

pub(super) struct Xattrs<'a> {
    tree: &'a Tree,
    options: WriteOptions,
    /// Those of the tree, then those that the format adds.
    pairs: Vec<Pair<'a>>,
    /// Those of the tree, then those of inodes that the format marks.
    sets: Vec<Set<'a>>,
    marked: HashMap<(SetId, Marks), usize>,
    /// Per node the place in `sets`.
    set_of: Vec<u32>,
    metacopies: Groups,
    redirects: Groups,
    /// Per group the offset in the table.
    metacopy_offsets: Vec<u32>,
    redirect_offsets: Vec<u32>,
    table: Vec<Shared>,
    table_size: u64,
}

impl<'a> Xattrs<'a> {
    pub(super) fn new(
        tree: &'a Tree,
        order: &Order<'_>,
        options: WriteOptions,
    ) -> Result<Self, PlanError> {
        let table = tree.xattr_table();
        let c = options.format.is_c();
        let mut pairs = Vec::with_capacity(table.pair_count());
        for pair in 0..table.pair_count() as u32 {
            let (name, value) = table.pair(PairId::from_index(pair));
            let name = match name.strip_prefix(overlay::PREFIX) {
                Some(rest) => Cow::Owned([overlay::ESCAPED_PREFIX, rest].concat()),
                None => Cow::Borrowed(name),
            };
            pairs.push(Pair::new(name, value, c));
        }
        let sets = table
            .set_ids()
            .map(|set| Set {
                pairs: Cow::Borrowed(table.pairs(set)),
                uses: 0,
            })
            .collect();

        let externals = order
            .list()
            .iter()
            .filter_map(|node| node.inode(tree))
            .filter(|&id| tree.is_external(id));
        let (metacopies, redirects) = share(tree, externals, options.dialect == Dialect::C);
        let mut xattrs = Self {
            tree,
            options,
            pairs,
            sets,
            marked: HashMap::new(),
            set_of: vec![0; order.node_count()],
            metacopies,
            redirects,
            metacopy_offsets: Vec::new(),
            redirect_offsets: Vec::new(),
            table: Vec::new(),
            table_size: 0,
        };
        for &node in order.list() {
            let marks = order.marks(node);
            let set = xattrs.add_set(node, marks);
            xattrs.set_of[node.index()] = set as u32;
            if xattrs.sets[set].uses == 0 {
                xattrs
                    .check(set)
                    .map_err(|misfit| PlanError::Misfit(node, misfit))?;
            }
            xattrs.sets[set].uses += 1;
        }
        xattrs.build_table()?;
        for &node in order.list() {
            xattrs.check_references(node)?;
        }
        Ok(xattrs)
    }

    /// Whether the xattrs of a set fit their entries.
    fn check(&self, set: usize) -> Result<(), Misfit> {
        for &pair in &*self.sets[set].pairs {
            let pair = &self.pairs[pair.index()];
            if pair.name.is_empty() || pair.suffix().len() > 255 {
                return Err(Misfit::XattrName);
            }
            if u16::try_from(pair.value.len()).is_err() {
                return Err(Misfit::XattrValue);
            }
        }
        Ok(())
    }

    /// composefs-rs makes every reference it can, and counts them in 8 bits.
    fn check_references(&self, node: Node) -> Result<(), PlanError> {
        if self.options.dialect == Dialect::C || self.set(node).pairs.len() + 2 <= MAX_SHARED {
            return Ok(());
        }
        let xattrs = self.node(node);
        let shared = xattrs.items().filter(|&item| xattrs.shared(item).is_some());
        if shared.count() > MAX_SHARED {
            return Err(PlanError::Misfit(node, Misfit::Xattrs));
        }
        Ok(())
    }

    fn set(&self, node: Node) -> &Set<'a> {
        &self.sets[self.set_of[node.index()] as usize]
    }

    /// The set of a node, made when the format adds something to what the tree has.
    fn add_set(&mut self, node: Node, marks: Marks) -> usize {
        let set = match node.inode(self.tree) {
            Some(id) => self.tree.xattr_set(id),
            None => self.tree.xattr_set(self.tree.root()),
        };
        if marks == Marks::NONE {
            return set.index();
        }
        if let Some(&marked) = self.marked.get(&(set, marks)) {
            return marked;
        }
        let pairs = if marks.has(Marks::STUB) {
            let selinux = |pair: &&PairId| *self.pairs[pair.index()].name == *SELINUX;
            let pairs = self.sets[set.index()].pairs.iter();
            pairs.filter(selinux).copied().collect()
        } else {
            self.with_marks(set, marks)
        };
        self.sets.push(Set {
            pairs: Cow::Owned(pairs),
            uses: 0,
        });
        let marked = self.sets.len() - 1;
        self.marked.insert((set, marks), marked);
        marked
    }

    fn with_marks(&mut self, set: SetId, marks: Marks) -> Vec<PairId> {
        let mut added: Vec<(&'static [u8], &'static [u8])> = Vec::new();
        if marks.has(Marks::WHITEOUT) {
            added.extend(overlay::WHITEOUT.map(|name| (name, b"".as_slice())));
        }
        if marks.has(Marks::HAS_WHITEOUTS) {
            added.extend(overlay::WHITEOUTS.map(|name| (name, b"".as_slice())));
            if self.options.format == crate::Format::V1 {
                added.extend(overlay::OPAQUE_X.map(|name| (name, b"x".as_slice())));
            }
        }
        if marks.has(Marks::ROOT) {
            added.push((overlay::OPAQUE, b"y"));
        }
        let mut pairs = self.sets[set.index()].pairs.to_vec();
        for (name, value) in added {
            // The C tools replace what has that name; composefs-rs has both then.
            if self.options.dialect == Dialect::C {
                pairs.retain(|pair| *self.pairs[pair.index()].name != *name);
            }
            pairs.push(self.pair(name, value));
        }
        pairs.sort_by(|&a, &b| compare_for_c(&self.pairs[a.index()], &self.pairs[b.index()]));
        pairs
    }

    /// The pair of this name, as the image has it, and value.
    fn pair(&mut self, name: &'static [u8], value: &'static [u8]) -> PairId {
        let table = self.tree.xattr_table();
        let in_tree = match name.strip_prefix(overlay::ESCAPED_PREFIX) {
            Some(rest) => table.find_pair(&[overlay::PREFIX, rest].concat(), value),
            None => table
                .find_pair(name, value)
                .filter(|_| !name.starts_with(overlay::PREFIX)),
        };
        if let Some(pair) = in_tree {
            return pair;
        }
        let added = table.pair_count()..self.pairs.len();
        let same = |&index: &usize| {
            let pair = &self.pairs[index];
            *pair.name == *name && pair.value == value
        };
        let index = added.clone().find(same).unwrap_or_else(|| {
            self.pairs.push(Pair::new(Cow::Borrowed(name), value, true));
            added.end
        });
        PairId::from_index(index as u32)
    }

    fn build_table(&mut self) -> Result<(), PlanError> {
        for set in &self.sets {
            for pair in set.pairs.iter() {
                let uses = &mut self.pairs[pair.index()].uses;
                *uses = uses.saturating_add(set.uses);
            }
        }
        let pairs = (0..self.pairs.len())
            .filter(|&index| self.pairs[index].uses > 1)
            .map(|index| Shared::Pair(PairId::from_index(index as u32)));
        let metacopies = (0..self.metacopies.samples.len()).map(Shared::Metacopy);
        let redirects = (0..self.redirects.samples.len()).map(Shared::Redirect);
        let mut table: Vec<Shared> = pairs.chain(metacopies).chain(redirects).collect();
        if self.options.format.is_c() {
            table.sort_by(|&a, &b| self.compare_shared(b, a));
        } else {
            table.sort_by(|&a, &b| self.compare_shared(a, b));
        }

        self.metacopy_offsets = vec![0; self.metacopies.samples.len()];
        self.redirect_offsets = vec![0; self.redirects.samples.len()];
        for &shared in &table {
            let offset = u32::try_from(self.table_size).map_err(|_| PlanError::TooLarge)?;
            self.table_size += match shared {
                Shared::Pair(pair) => {
                    let pair = &mut self.pairs[pair.index()];
                    pair.shared = Some(offset);
                    pair.size()
                }
                Shared::Metacopy(group) => {
                    self.metacopy_offsets[group] = offset;
                    metacopy_size(self.object(self.metacopies.samples[group]).digest.as_ref())
                }
                Shared::Redirect(group) => {
                    self.redirect_offsets[group] = offset;
                    self.sample_redirect(group)
                        .map_or(0, |redirect| redirect_size(&redirect))
                }
            };
        }
        self.table = table;
        Ok(())
    }

    /// The order of the table: ascending, which the C formats turn around.
    fn compare_shared(&self, a: Shared, b: Shared) -> Ordering {
        match (a, b) {
            (Shared::Pair(a), Shared::Pair(b)) => {
                let (a, b) = (&self.pairs[a.index()], &self.pairs[b.index()]);
                if self.options.format.is_c() {
                    compare_for_c(a, b)
                } else {
                    (a.index, a.suffix(), a.value).cmp(&(b.index, b.suffix(), b.value))
                }
            }
            // Longer digests have larger values.
            (Shared::Metacopy(a), Shared::Metacopy(b)) => {
                let digest = |group: usize| self.object(self.metacopies.samples[group]).digest;
                digest(a).cmp(&digest(b))
            }
            (Shared::Redirect(a), Shared::Redirect(b)) => {
                match (self.sample_redirect(a), self.sample_redirect(b)) {
                    (Some(a), Some(b)) => a.with_value(|a| {
                        b.with_value(|b| {
                            if self.options.format.is_c() {
                                (a.len(), a).cmp(&(b.len(), b))
                            } else {
                                a.cmp(b)
                            }
                        })
                    }),
                    (a, b) => a.cmp(&b),
                }
            }
            // Of different names: the names decide.
            _ => self.shared_name(a).cmp(&self.shared_name(b)),
        }
    }

    /// What the table is sorted by first.
    fn shared_name(&self, shared: Shared) -> (u8, &[u8]) {
        let c = self.options.format.is_c();
        let name: &[u8] = match shared {
            Shared::Pair(pair) => {
                let pair = &self.pairs[pair.index()];
                if !c {
                    return (pair.index, pair.suffix());
                }
                &pair.name
            }
            Shared::Metacopy(_) => overlay::METACOPY,
            Shared::Redirect(_) => overlay::REDIRECT,
        };
        if c {
            (0, name)
        } else {
            (TRUSTED, trusted_suffix(name))
        }
    }

    fn object(&self, id: InodeId) -> Object<'a> {
        object(self.tree, id, self.options.dialect == Dialect::C).expect("an external file")
    }

    fn sample_redirect(&self, group: usize) -> Option<Redirect<'a>> {
        self.object(self.redirects.samples[group]).redirect
    }

    fn node(&self, node: Node) -> NodeXattrs<'_, 'a> {
        let inode = node.inode(self.tree);
        NodeXattrs {
            all: self,
            inode,
            pairs: &self.set(node).pairs,
            object: inode
                .filter(|&id| self.tree.is_external(id))
                .and_then(|id| object(self.tree, id, self.options.dialect == Dialect::C)),
        }
    }

    /// Size of the xattr body of an inode.
    pub(super) fn body_size(&self, node: Node) -> u64 {
        let node = self.node(node);
        let mut size = 0;
        for (item, shared) in node.references() {
            size += match (item, shared) {
                (_, Some(_)) => 4,
                (Item::Pair(pair), None) => self.pairs[pair.index()].size(),
                (Item::Metacopy(digest), None) => metacopy_size(digest),
                (Item::Redirect(redirect), None) => redirect_size(redirect),
            };
        }
        if size == 0 {
            0
        } else {
            format::XATTR_HEADER + size
        }
    }

    /// Writes the xattr body of an inode. References count from `base`.
    pub(super) fn write_body(
        &self,
        node: Node,
        base: u64,
        out: &mut Sink<impl io::Write>,
    ) -> io::Result<()> {
        let node = self.node(node);
        let (mut filter, mut shared_count, mut empty) = (0, 0, true);
        for (item, shared) in node.references() {
            empty = false;
            shared_count += u8::from(shared.is_some());
            filter |= match item {
                Item::Pair(pair) => self.pairs[pair.index()].filter,
                Item::Metacopy(_) => METACOPY_FILTER,
                Item::Redirect(_) => REDIRECT_FILTER,
            };
        }
        if empty {
            return Ok(());
        }
        out.u32(!filter)?;
        out.put(&[shared_count, 0, 0, 0, 0, 0, 0, 0])?;
        for offset in node.references().filter_map(|(_, shared)| shared) {
            out.u32(((base + u64::from(offset)) / 4) as u32)?;
        }
        for (item, shared) in node.references() {
            match (item, shared) {
                (_, Some(_)) => {}
                (Item::Pair(pair), None) => {
                    let pair = &self.pairs[pair.index()];
                    write_entry(out, pair.index, pair.suffix(), &[pair.value])?;
                }
                (Item::Metacopy(digest), None) => write_metacopy(out, digest)?,
                (Item::Redirect(redirect), None) => write_redirect(out, redirect)?,
            }
        }
        Ok(())
    }

    pub(super) const fn table_size(&self) -> u64 {
        self.table_size
    }

    pub(super) fn write_table(&self, out: &mut Sink<impl io::Write>) -> io::Result<()> {
        for &shared in &self.table {
            match shared {
                Shared::Pair(pair) => {
                    let pair = &self.pairs[pair.index()];
                    write_entry(out, pair.index, pair.suffix(), &[pair.value])?;
                }
                Shared::Metacopy(group) => {
                    write_metacopy(
                        out,
                        self.object(self.metacopies.samples[group]).digest.as_ref(),
                    )?;
                }
                Shared::Redirect(group) => {
                    if let Some(redirect) = self.sample_redirect(group) {
                        write_redirect(out, &redirect)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether some inode has a POSIX ACL.
    pub(super) fn has_acl(&self) -> bool {
        self.pairs.iter().any(|pair| {
            pair.uses > 0
                && matches!(pair.index, format::XATTR_ACL_ACCESS | format::XATTR_ACL_DEFAULT)
                // composefs-rs also takes names that only start like one.
                && (self.options.dialect == Dialect::ComposefsRs || pair.suffix().is_empty())
        })
    }
}

const TRUSTED: u8 = 4;
const METACOPY_SUFFIX: &[u8] = trusted_suffix(overlay::METACOPY);
const REDIRECT_SUFFIX: &[u8] = trusted_suffix(overlay::REDIRECT);
/// The bits of the two names in the filter; a test compares them with [`format::filter_bit`].
const METACOPY_FILTER: u32 = 1 << 31;
const REDIRECT_FILTER: u32 = 1 << 17;

const fn trusted_suffix(name: &[u8]) -> &[u8] {
    name.split_at(b"trusted.".len()).1
}

/// By full name, then length of the value, then value.
fn compare_for_c(a: &Pair<'_>, b: &Pair<'_>) -> Ordering {
    let key = |pair: &Pair<'_>| pair.value.len();
    a.name
        .cmp(&b.name)
        .then_with(|| (key(a), a.value).cmp(&(key(b), b.value)))
}

fn metacopy_size(digest: Option<&VerityDigest>) -> u64 {
    let value = digest.map_or(0, |digest| 4 + digest.algorithm().digest_len());
    entry_size(METACOPY_SUFFIX.len(), value)
}

fn redirect_size(redirect: &Redirect<'_>) -> u64 {
    entry_size(REDIRECT_SUFFIX.len(), redirect.len())
}

/// Version 0, length, no flags, algorithm, digest; or nothing.
fn write_metacopy(out: &mut Sink<impl io::Write>, digest: Option<&VerityDigest>) -> io::Result<()> {
    let Some(digest) = digest else {
        return write_entry(out, TRUSTED, METACOPY_SUFFIX, &[]);
    };
    let algorithm = digest.algorithm();
    let len = 4 + algorithm.digest_len() as u8;
    let header = [0, len, 0, algorithm.kernel_id()];
    write_entry(out, TRUSTED, METACOPY_SUFFIX, &[&header, digest.as_bytes()])
}

fn write_redirect(out: &mut Sink<impl io::Write>, redirect: &Redirect<'_>) -> io::Result<()> {
    redirect.with_value(|value| write_entry(out, TRUSTED, REDIRECT_SUFFIX, &[value]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_equal_what_they_abbreviate() {
        let bit = |suffix| format::filter_bit(TRUSTED, suffix);
        assert_eq!(METACOPY_FILTER, bit(METACOPY_SUFFIX));
        assert_eq!(REDIRECT_FILTER, bit(REDIRECT_SUFFIX));
    }
}
