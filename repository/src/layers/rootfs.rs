//! The `rootfs` rule set: the tree from which composefs-rs 0.9 makes the image of a container.
//!
//! Every rule here decides image digests, so the odd ones are kept on purpose: parents are never
//! made, symlinks never followed, an opaque marker also removes what its own layer put there
//! before. Follows the composefs repository format, "applying entries" and "plain image".

use composefs_image::{InodeId, Tree};

use super::{
    entry::{Entry, Item},
    error::{EntryError, EntryProblem, MergeError},
    kind_of,
    merge::XattrFilter,
    path,
    whiteout::{self, Whiteout},
};

/// Applies one entry to the tree of all layers so far.
pub(super) fn apply(tree: &mut Tree, entry: &Entry) -> Result<(), EntryError> {
    place(tree, entry).map_err(|problem| entry.error(problem))
}

fn place(tree: &mut Tree, entry: &Entry) -> Result<(), EntryProblem> {
    let Some((directory, name)) = split(tree, &entry.path) else {
        // No last name: the root, or whatever `..` stands for.
        if entry.item != Item::Directory {
            return Err(EntryProblem::RootNotADirectory);
        }
        set_metadata(tree, tree.root(), entry);
        return Ok(());
    };
    let target = match &entry.item {
        Item::HardLink(target) => Some(hard_link_target(tree, target)?),
        _ => None,
    };
    let directory = directory?;

    match whiteout::parse(name) {
        Some(Whiteout::Opaque) => {
            tree.clear_children(directory);
            return Ok(());
        }
        Some(Whiteout::Name(name)) => {
            tree.unlink(directory, name);
            return Ok(());
        }
        None => {}
    }
    let existing = tree
        .lookup(directory, name)
        .filter(|&id| entry.item == Item::Directory && tree.is_directory(id));
    if let Some(existing) = existing {
        set_metadata(tree, existing, entry);
        return Ok(());
    }
    let id = if let Some(target) = target {
        target
    } else {
        let id = tree.add(entry.metadata, kind_of(&entry.item)?);
        set_metadata(tree, id, entry);
        id
    };
    tree.link(directory, name, id).map_err(EntryProblem::Tree)?;
    Ok(())
}

/// The directory and the name in it of a path; `None` without a last name.
fn split<'a>(tree: &Tree, path: &'a [u8]) -> Option<(Result<InodeId, EntryProblem>, &'a [u8])> {
    let mut parents = path::components(path);
    let name = parents.next_back().filter(|name| *name != b"..")?;
    Some((walk(tree, parents), name))
}

fn walk<'a>(
    tree: &Tree,
    mut parents: impl Iterator<Item = &'a [u8]>,
) -> Result<InodeId, EntryProblem> {
    parents.try_fold(tree.root(), |directory, name| {
        if name == b".." {
            return Err(EntryProblem::DotDot);
        }
        let id = tree.lookup(directory, name).ok_or(EntryProblem::NoParent)?;
        if tree.is_directory(id) {
            Ok(id)
        } else {
            Err(EntryProblem::ParentNotADirectory)
        }
    })
}

fn hard_link_target(tree: &Tree, target: &[u8]) -> Result<InodeId, EntryProblem> {
    let missing = || EntryProblem::NoHardLinkTarget(target.to_vec());
    let (directory, name) = split(tree, target).ok_or_else(missing)?;
    let directory = directory.map_err(|_| missing())?;
    let id = tree.lookup(directory, name).ok_or_else(missing)?;
    if tree.is_directory(id) {
        return Err(EntryProblem::HardLinkToDirectory(target.to_vec()));
    }
    Ok(id)
}

fn set_metadata(tree: &mut Tree, id: InodeId, entry: &Entry) {
    tree.set_metadata(id, entry.metadata);
    let xattrs = entry.xattrs.iter();
    tree.set_xattrs(id, xattrs.map(|(name, value)| (&name[..], &value[..])));
}

/// What happens to the tree after the last layer.
pub(super) fn finish(tree: &mut Tree, xattrs: XattrFilter) -> Result<(), MergeError> {
    let root = tree.root();
    let usr = tree
        .lookup(root, b"usr")
        .filter(|&usr| tree.is_directory(usr))
        .ok_or(MergeError::NoUsr)?;
    let metadata = tree.metadata(usr);
    tree.set_metadata(root, metadata);
    tree.copy_xattrs(usr, root);

    if let Some(run) = tree.lookup(root, b"run") {
        if !tree.is_directory(run) {
            return Err(MergeError::RunNotADirectory);
        }
        tree.clear_children(run);
        tree.change_metadata(run, |run| run.mtime = metadata.mtime);
    }
    tree.retain_all_xattrs(|name, _| xattrs.keeps(name));
    Ok(())
}
