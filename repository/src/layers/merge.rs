//! Layers on top of each other, by a rule set.

use std::fmt;

use composefs_image::{Metadata, Tree};

use super::{
    entry::{Chunks, EntryReader},
    error::{LayerError, MergeError},
    podman::{self, LayerTree},
    rootfs, union,
};

/// Which xattrs an image keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum XattrFilter {
    /// `allowlist-only`: `security.capability` alone.
    #[default]
    AllowlistOnly,
    /// `keep-user-xattrs`: those beginning with `user.` too.
    KeepUser,
}

impl XattrFilter {
    /// All filters, the default one first.
    pub const ALL: [Self; 2] = [Self::AllowlistOnly, Self::KeepUser];

    /// The name that composefs-rs has for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AllowlistOnly => "allowlist-only",
            Self::KeepUser => "keep-user-xattrs",
        }
    }

    pub(super) fn keeps(self, name: &[u8]) -> bool {
        name == b"security.capability" || self == Self::KeepUser && name.starts_with(b"user.")
    }
}

impl fmt::Display for XattrFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How layers become a tree. The same layers give other trees, and other image digests, under
/// other rules: a digest always belongs to one of these. What a host boots has further ones on top of
/// [`Rules::Rootfs`]: [`super::make_bootable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rules {
    /// What composefs-rs records as the image of a container: its digests equal those of `cfsctl`
    /// wherever `cfsctl` succeeds. `/run` is emptied, the root looks like `/usr`, and few xattrs stay.
    Rootfs(XattrFilter),
    /// The tree that podman shows for the same layers, to the last xattr.
    Podman,
}

/// The tree of the layers so far.
///
/// ```
/// use composefs_image::Kind;
/// use repository::layers::{Chunk, Chunks, Merge, Rules};
///
/// /// A layer without any entry.
/// struct Empty;
/// impl Chunks for Empty {
///     fn next_chunk(&mut self) -> repository::Result<Option<Chunk<'_>>> {
///         Ok(None)
///     }
/// }
///
/// let mut merge = Merge::new(Rules::Podman);
/// merge.add_layer(Empty)?;
/// let tree = merge.finish()?;
/// assert_eq!(tree.metadata(tree.root()).mode, 0o555);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Merge {
    rules: Rules,
    tree: Tree,
}

impl Merge {
    /// Without any layer.
    pub fn new(rules: Rules) -> Self {
        let root = match rules {
            Rules::Rootfs(_) => Metadata::default(),
            Rules::Podman => podman::BASE_ROOT,
        };
        Self {
            rules,
            tree: Tree::new(root),
        }
    }

    /// Puts the next layer on top. After an error the tree is of no use.
    pub fn add_layer(&mut self, layer: impl Chunks) -> Result<(), LayerError> {
        let mut entries = EntryReader::new(layer);
        match self.rules {
            Rules::Rootfs(_) => {
                while let Some(entry) = entries.next_entry()? {
                    rootfs::apply(&mut self.tree, &entry)?;
                }
            }
            Rules::Podman => {
                let mut layer = LayerTree::new(self.tree.metadata(self.tree.root()));
                while let Some(entry) = entries.next_entry()? {
                    layer.extract(&entry)?;
                }
                union::put_on_top(&mut self.tree, &layer);
            }
        }
        Ok(())
    }

    /// The tree as it is now. Under [`Rules::Podman`] it is what podman shows for the layers so
    /// far; under [`Rules::Rootfs`] it becomes an image's tree only with [`Self::finish`].
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// The tree of the image.
    pub fn finish(mut self) -> Result<Tree, MergeError> {
        match self.rules {
            Rules::Rootfs(xattrs) => rootfs::finish(&mut self.tree, xattrs)?,
            Rules::Podman => {}
        }
        Ok(self.tree)
    }
}
