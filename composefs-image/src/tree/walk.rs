//! Walking a tree depth first, and comparing two trees by walking both.

use std::fmt;

use super::{Content, InodeId, Kind, Tree};

/// One name met by [`Tree::walk`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visit<'a> {
    /// The directory that the name is in; for the root the root itself.
    pub parent: InodeId,
    /// The name; empty for the root.
    pub name: &'a [u8],
    /// What has the name.
    pub id: InodeId,
    /// How many directories are above: 0 for the root, 1 for what is in it.
    pub depth: usize,
}

type Children<'a> = Box<dyn Iterator<Item = (&'a [u8], InodeId)> + 'a>;

/// The walk of [`Tree::walk`].
pub struct Walk<'a> {
    tree: &'a Tree,
    start: bool,
    /// The directories on the way, each with its names that are left.
    stack: Vec<(InodeId, Children<'a>)>,
}

impl Tree {
    /// Every name in the tree, depth first, a directory before what is in it, names sorted
    /// bytewise. Hard links come once per name.
    pub fn walk(&self) -> Walk<'_> {
        Walk {
            tree: self,
            start: true,
            stack: Vec::new(),
        }
    }
}

impl Walk<'_> {
    fn enter(&mut self, id: InodeId) {
        if self.tree.child_count(id) > 0 {
            self.stack.push((id, Box::new(self.tree.children(id))));
        }
    }
}

impl<'a> Iterator for Walk<'a> {
    type Item = Visit<'a>;

    fn next(&mut self) -> Option<Visit<'a>> {
        if std::mem::take(&mut self.start) {
            let root = self.tree.root();
            self.enter(root);
            return Some(Visit {
                parent: root,
                name: b"",
                id: root,
                depth: 0,
            });
        }
        loop {
            let depth = self.stack.len();
            let (parent, children) = self.stack.last_mut()?;
            let parent = *parent;
            if let Some((name, id)) = children.next() {
                self.enter(id);
                return Some(Visit {
                    parent,
                    name,
                    id,
                    depth,
                });
            }
            self.stack.pop();
        }
    }
}

/// Same names, types, contents, metadata, xattrs, link counts, and the same names linked together.
/// In which order a tree was built does not matter.
impl PartialEq for Tree {
    fn eq(&self, other: &Self) -> bool {
        let mut pairs = vec![None; self.inode_count()];
        let (mut ours, mut theirs) = (self.walk(), other.walk());
        loop {
            let (a, b) = match (ours.next(), theirs.next()) {
                (None, None) => return true,
                (Some(a), Some(b)) => (a, b),
                _ => return false,
            };
            if (a.depth, a.name) != (b.depth, b.name) {
                return false;
            }
            match &mut pairs[a.id.index()] {
                Some(before) if *before == b.id => {}
                Some(_) => return false,
                first => {
                    *first = Some(b.id);
                    let same = self.metadata(a.id) == other.metadata(b.id)
                        && self.kind(a.id) == other.kind(b.id)
                        && self.nlink(a.id) == other.nlink(b.id)
                        && self.name_count(a.id) == other.name_count(b.id)
                        && self.xattrs(a.id).eq(other.xattrs(b.id));
                    if !same {
                        return false;
                    }
                }
            }
        }
    }
}

impl Eq for Tree {}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = f.debug_list();
        for visit in self.walk() {
            let kind: &dyn fmt::Debug = match self.kind(visit.id) {
                Kind::Regular(Content::Inline(content)) => {
                    &format!("Inline({} bytes)", content.len())
                }
                kind => &format!("{kind:?}"),
            };
            let line = format!(
                "{}{} {kind:?} {:?}",
                "  ".repeat(visit.depth),
                visit.name.escape_ascii(),
                self.metadata(visit.id)
            );
            list.entry(&format_args!("{line}"));
        }
        list.finish()
    }
}
