//! Which inodes an image has, in which order, and what changes on the way from the tree.
//!
//! In the C formats: whiteouts become marked empty files, and the root gets a whiteout for each
//! object directory `00` to `ff`, so that an old overlayfs hides them.

use std::collections::HashMap;

use super::{Dialect, Misfit, PlanError, WriteOptions};
use crate::erofs::Format;
use crate::tree::{InodeId, Kind, Metadata, Tree, mode};

/// An inode of the image: one of the tree, or behind those a whiteout that hides `00` to `ff`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Node(u32);

impl Node {
    pub(super) const ROOT: Self = Self(0);

    fn of(id: InodeId) -> Self {
        Self(id.index() as u32)
    }

    pub(super) fn inode(self, tree: &Tree) -> Option<InodeId> {
        (self.index() < tree.inode_count()).then(|| InodeId::from_index(self.0))
    }

    pub(super) const fn index(self) -> usize {
        self.0 as usize
    }
}

/// The permissions of the whiteouts that hide object directories.
const STUB_MODE: u16 = 0o644;
pub(super) const SELINUX: &[u8] = b"security.selinux";

/// Hidden object directories: two hexadecimal digits each.
const STUB_NAMES: [[u8; 2]; 256] = {
    let digits = b"0123456789abcdef";
    let mut names = [[0; 2]; 256];
    let mut i = 0;
    while i < 256 {
        names[i] = [digits[i >> 4], digits[i & 15]];
        i += 1;
    }
    names
};

/// What the C formats do to an inode. Bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Marks(u8);

impl Marks {
    pub(super) const NONE: Self = Self(0);
    /// A whiteout that becomes an empty file.
    pub(super) const WHITEOUT: Self = Self(1);
    /// A directory with such a whiteout in it.
    pub(super) const HAS_WHITEOUTS: Self = Self(2);
    /// The root.
    pub(super) const ROOT: Self = Self(4);
    /// A whiteout that hides an object directory.
    pub(super) const STUB: Self = Self(8);

    pub(super) const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

pub(super) struct Order<'a> {
    list: Vec<Node>,
    /// Per node the directory it was found in; only that of directories counts.
    parents: Vec<Node>,
    /// Per node of the tree; empty where the format marks nothing.
    marks: Vec<Marks>,
    /// The root's names with the whiteouts that hide object directories.
    root: Vec<(&'a [u8], Node)>,
    inodes: usize,
}

/// For inodes with several names: the directory and the place in it of the name that counts.
type Primaries = HashMap<InodeId, (InodeId, usize)>;

impl<'a> Order<'a> {
    pub(super) fn new(tree: &'a Tree, options: WriteOptions) -> Result<Self, PlanError> {
        let inodes = tree.inode_count();
        if u32::try_from(inodes + STUB_NAMES.len()).is_err() {
            return Err(PlanError::TooLarge);
        }
        let mut order = Self {
            list: Vec::with_capacity(inodes + STUB_NAMES.len()),
            parents: vec![Node::ROOT; inodes],
            marks: Vec::new(),
            root: tree
                .children(tree.root())
                .map(|(name, id)| (name, Node::of(id)))
                .collect(),
            inodes,
        };
        if options.format == Format::V2 {
            order.depth_first(tree)?;
        } else {
            order.marks = vec![Marks::NONE; inodes];
            order.add_stubs();
            order.breadth_first(tree, options.dialect)?;
            order.marks[Node::ROOT.index()].add(Marks::ROOT);
        }
        Ok(order)
    }

    fn add_stubs(&mut self) {
        let inodes = self.inodes;
        for (number, name) in STUB_NAMES.iter().enumerate() {
            if let Err(place) = self.root.binary_search_by(|entry| entry.0.cmp(name)) {
                let stub = Node((inodes + number) as u32);
                self.root.insert(place, (name, stub));
            }
        }
    }

    fn depth_first(&mut self, tree: &Tree) -> Result<(), PlanError> {
        let mut seen = vec![false; self.inodes];
        for visit in tree.walk() {
            let node = Node::of(visit.id);
            if std::mem::replace(&mut seen[node.index()], true) {
                continue;
            }
            if tree.kind(visit.id) == Kind::CharDevice(0) && tree.name_count(visit.id) > 1 {
                return Err(PlanError::Misfit(node, Misfit::LinkedWhiteout));
            }
            self.parents[node.index()] = Node::of(visit.parent);
            self.list.push(node);
        }
        Ok(())
    }

    fn breadth_first(&mut self, tree: &Tree, dialect: Dialect) -> Result<(), PlanError> {
        let primaries = primaries(tree, dialect);
        self.list.push(Node::ROOT);
        let mut next = 0;
        while let Some(&directory) = self.list.get(next) {
            next += 1;
            if directory == Node::ROOT {
                // The places of `primaries` count the names of the tree only.
                let mut place = 0;
                for i in 0..self.root.len() {
                    let (name, node) = self.root[i];
                    match node.inode(tree) {
                        None => self.list.push(node),
                        Some(id) => {
                            self.append(tree, dialect, &primaries, directory, (name, id, place))?;
                            place += 1;
                        }
                    }
                }
            } else if let Some(id) = directory.inode(tree) {
                for (place, (name, child)) in tree.children(id).enumerate() {
                    self.append(tree, dialect, &primaries, directory, (name, child, place))?;
                }
            }
        }
        Ok(())
    }

    fn append(
        &mut self,
        tree: &Tree,
        dialect: Dialect,
        primaries: &Primaries,
        directory: Node,
        (name, id, place): (&[u8], InodeId, usize),
    ) -> Result<(), PlanError> {
        let linked = tree.name_count(id) > 1;
        if linked {
            let here = directory.inode(tree).map(|directory| (directory, place));
            if primaries.get(&id).copied() != here {
                return Ok(());
            }
        }
        let node = Node::of(id);
        if tree.kind(id) == Kind::CharDevice(0) {
            if dialect == Dialect::ComposefsRs && linked {
                return Err(PlanError::Misfit(node, Misfit::LinkedWhiteout));
            }
            let passes_as_stub = dialect == Dialect::ComposefsRs
                && directory == Node::ROOT
                && looks_like_stub(tree, name, id);
            if !passes_as_stub {
                self.marks[node.index()].add(Marks::WHITEOUT);
                self.marks[directory.index()].add(Marks::HAS_WHITEOUTS);
            }
        }
        self.parents[node.index()] = directory;
        self.list.push(node);
        Ok(())
    }

    pub(super) fn list(&self) -> &[Node] {
        &self.list
    }

    /// One more than the largest [`Node::index`].
    pub(super) const fn node_count(&self) -> usize {
        self.inodes + STUB_NAMES.len()
    }

    pub(super) fn marks(&self, node: Node) -> Marks {
        if node.index() >= self.inodes {
            return Marks::STUB;
        }
        self.marks.get(node.index()).copied().unwrap_or_default()
    }

    /// The names in a directory with `.` and `..`, sorted bytewise.
    pub(super) fn entries(
        &self,
        tree: &'a Tree,
        directory: InodeId,
        entries: &mut Vec<(&'a [u8], Node)>,
    ) {
        entries.clear();
        let node = Node::of(directory);
        if node == Node::ROOT {
            entries.extend_from_slice(&self.root);
        } else {
            entries.extend(
                tree.children(directory)
                    .map(|(name, id)| (name, Node::of(id))),
            );
        }
        for (name, target) in [(b".".as_slice(), node), (b"..", self.parents[node.index()])] {
            let place = entries.partition_point(|entry| entry.0 < name);
            entries.insert(place, (name, target));
        }
    }

    /// `i_mode` as the image has it.
    pub(super) fn mode(&self, tree: &Tree, node: Node) -> u16 {
        let Some(id) = node.inode(tree) else {
            return mode::CHAR_DEVICE | STUB_MODE;
        };
        let st_mode = tree.st_mode(id);
        if self.marks(node).has(Marks::WHITEOUT) {
            return mode::REGULAR | st_mode & mode::PERMISSIONS;
        }
        st_mode
    }

    /// Mode, owner and time; a whiteout that hides an object directory takes after the root.
    #[expect(clippy::unused_self, reason = "belongs to mode()")]
    pub(super) fn metadata(&self, tree: &Tree, node: Node) -> Metadata {
        match node.inode(tree) {
            Some(id) => tree.metadata(id),
            None => Metadata {
                mode: STUB_MODE,
                ..tree.metadata(tree.root())
            },
        }
    }
}

/// composefs-rs tells its own whiteouts from the user's by what they look like.
fn looks_like_stub(tree: &Tree, name: &[u8], id: InodeId) -> bool {
    let root = tree.root();
    let metadata = Metadata {
        mode: STUB_MODE,
        ..tree.metadata(root)
    };
    STUB_NAMES.iter().any(|stub| stub == name)
        && tree.metadata(id) == metadata
        && tree
            .xattrs(id)
            .eq(tree.xattr(root, SELINUX).map(|value| (SELINUX, value)))
}

/// The name that places an inode: for C the one given first, else the first one depth first.
fn primaries(tree: &Tree, dialect: Dialect) -> Primaries {
    let mut primaries = Primaries::new();
    if !tree.has_hard_links() {
        return primaries;
    }
    let mut given_first = HashMap::new();
    for visit in tree.walk() {
        if !tree.is_directory(visit.id) {
            continue;
        }
        for (place, (_, id, later)) in tree.names_in(visit.id).enumerate() {
            if dialect == Dialect::C && !later && tree.name_count(id) > 1 {
                given_first.insert(id, (visit.id, place));
            }
        }
    }
    // A walk numbers the names of each directory in the order in which it meets them.
    let mut places = vec![0; tree.inode_count()];
    for visit in tree.walk().skip(1) {
        let place = &mut places[visit.parent.index()];
        if tree.name_count(visit.id) > 1 {
            primaries.entry(visit.id).or_insert((visit.parent, *place));
        }
        *place += 1;
    }
    primaries.extend(given_first);
    primaries
}
