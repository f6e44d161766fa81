//! Which external files name the same object: their metacopy and redirect xattrs are shared.

use crate::fsverity::VerityDigest;
use crate::tree::{Content, InodeId, Kind, Tree};

/// No other file has the same value.
const ALONE: u32 = u32::MAX;

/// The object that an external file names, as its xattrs do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Object<'a> {
    pub(super) digest: Option<VerityDigest>,
    pub(super) redirect: Option<Redirect<'a>>,
}

/// The value of a redirect xattr is a slash and this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Redirect<'a> {
    /// The path of a digest; equal ones are always in this form.
    Digest(VerityDigest),
    Path(&'a [u8]),
}

impl Redirect<'_> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Digest(digest) => 2 + digest.algorithm().digest_len() * 2,
            Self::Path(path) => 1 + path.len(),
        }
    }

    /// Hands the value of the xattr to `use_it`.
    pub(super) fn with_value<T>(&self, use_it: impl FnOnce(&[u8]) -> T) -> T {
        match self {
            Self::Digest(digest) => {
                let mut hex = [0; 128];
                let (first, rest) = digest.encode_hex(&mut hex).split_at(2);
                let mut value = [b'/'; 130];
                value[1..3].copy_from_slice(first.as_bytes());
                value[4..4 + rest.len()].copy_from_slice(rest.as_bytes());
                use_it(&value[..4 + rest.len()])
            }
            Self::Path(path) => use_it(&[b"/", *path].concat()),
        }
    }
}

/// What an external file names; `None` for everything else.
pub(super) fn object(tree: &Tree, id: InodeId, keep_paths: bool) -> Option<Object<'_>> {
    let Kind::Regular(Content::External { digest, path, .. }) = tree.kind(id) else {
        return None;
    };
    let path = path.filter(|_| keep_paths || digest.is_none());
    let redirect = match path {
        Some(b"") => None,
        Some(path) => Some(match VerityDigest::from_object_path(path) {
            Some(digest) => Redirect::Digest(digest),
            None => Redirect::Path(path),
        }),
        None => digest.map(Redirect::Digest),
    };
    Some(Object { digest, redirect })
}

/// Files in groups of equal values.
pub(super) struct Groups {
    /// Per inode of the tree the number of its group.
    group: Vec<u32>,
    /// Per group one of its files.
    pub(super) samples: Vec<InodeId>,
}

impl Groups {
    pub(super) fn of(&self, id: InodeId) -> Option<usize> {
        match self.group.get(id.index()) {
            None | Some(&ALONE) => None,
            Some(&group) => Some(group as usize),
        }
    }

    /// Groups of two or more among `files`, by what `key` gives of each; files without are alone.
    /// `prefix` is a cheap first part of the key's order: a few of its bytes tell most files apart.
    fn by<K: Ord>(
        inodes: usize,
        files: impl Iterator<Item = InodeId>,
        prefix: impl Fn(&K) -> u32,
        key: impl Fn(InodeId) -> Option<K>,
    ) -> Self {
        let mut sorted: Vec<(u32, InodeId)> = files
            .filter_map(|id| Some((prefix(&key(id)?), id)))
            .collect();
        sorted.sort_unstable();
        let mut groups = Self {
            group: Vec::new(),
            samples: Vec::new(),
        };
        for run in sorted.chunk_by_mut(|a, b| a.0 == b.0) {
            if run.len() < 2 {
                continue;
            }
            run.sort_by_cached_key(|entry| key(entry.1));
            for equal in run.chunk_by(|a, b| key(a.1) == key(b.1)) {
                if equal.len() < 2 {
                    continue;
                }
                if groups.group.is_empty() {
                    groups.group = vec![ALONE; inodes];
                }
                for (_, id) in equal {
                    groups.group[id.index()] = groups.samples.len() as u32;
                }
                groups.samples.push(equal[0].1);
            }
        }
        groups
    }
}

/// The groups of equal metacopy and of equal redirect values among `files`.
pub(super) fn share(
    tree: &Tree,
    files: impl Iterator<Item = InodeId> + Clone,
    keep_paths: bool,
) -> (Groups, Groups) {
    let prefix_of = |digest: &VerityDigest| {
        let (prefix, _) = digest.as_bytes().split_at(4);
        u32::from_be_bytes(prefix.try_into().expect("4 bytes"))
    };
    let object = |id| object(tree, id, keep_paths);
    let metacopy = Groups::by(
        tree.inode_count(),
        files.clone(),
        |digest: &Option<VerityDigest>| digest.as_ref().map_or(0, prefix_of),
        |id| Some(object(id)?.digest),
    );
    let redirect = Groups::by(
        tree.inode_count(),
        files,
        |redirect| match redirect {
            Redirect::Digest(digest) => prefix_of(digest),
            Redirect::Path(_) => 0,
        },
        |id| object(id)?.redirect,
    );
    (metacopy, redirect)
}
