//! From the tree of an image to the tree that a host boots: the `boot` rules, on top of the `rootfs`
//! rules.
//!
//! `/boot` and `/sysroot` are emptied: a kernel that names its image by digest cannot be in that
//! image. Every inode gets the SELinux label that the image's own policy gives it. What is there to
//! boot from is checked before, and not changed. Nothing here writes objects or follows a symlink in
//! the tree. Follows the composefs repository format, "bootable image".

mod error;
mod resources;

use composefs_image::{Content, InodeId, Kind, Tree};

pub use error::{BootError, BootProblem, ContextProblem};

use super::selinux;
use crate::ReadObjects;

/// Directories that the host mounts something else over.
const EMPTIED: [&[u8]; 2] = [b"/boot", b"/sysroot"];

/// Makes the tree of an image, as [`super::Rules::Rootfs`] gives it, one to boot from. Policy and loader
/// entries are read from `objects`. After an error the tree is of no use.
pub fn make_bootable(
    tree: &mut Tree,
    objects: &(impl ReadObjects + ?Sized),
) -> Result<(), BootError> {
    resources::check(tree, objects)?;
    empty_mount_points(tree)?;
    selinux::label(tree, objects)
}

fn empty_mount_points(tree: &mut Tree) -> Result<(), BootError> {
    let usr = existing_directory(tree, b"/usr")?;
    let mtime = tree.metadata(usr).mtime;
    for path in EMPTIED {
        let directory = existing_directory(tree, path)?;
        tree.clear_children(directory);
        tree.change_metadata(directory, |metadata| metadata.mtime = mtime);
    }
    Ok(())
}

/// The directory at a path from the root; `None` if there is nothing. Symlinks are not followed.
pub(super) fn directory(tree: &Tree, path: &[u8]) -> Result<Option<InodeId>, BootError> {
    let mut directory = tree.root();
    for name in super::path::components(path) {
        if name == b".." {
            return Err(BootProblem::DotDot.at(path));
        }
        directory = match tree.lookup(directory, name) {
            None => return Ok(None),
            Some(id) if tree.is_directory(id) => id,
            Some(_) => return Err(BootProblem::NotADirectory.at(path)),
        };
    }
    Ok(Some(directory))
}

pub(super) fn existing_directory(tree: &Tree, path: &[u8]) -> Result<InodeId, BootError> {
    directory(tree, path)?.ok_or_else(|| BootProblem::Missing.at(path))
}

/// Reads a regular file of at most `limit` bytes; `path` is for messages.
pub(super) fn read_file(
    tree: &Tree,
    objects: &(impl ReadObjects + ?Sized),
    id: InodeId,
    path: &[u8],
    limit: u64,
) -> Result<Vec<u8>, BootError> {
    match tree.kind(id) {
        Kind::Regular(content) if content.size() > limit => {
            Err(BootProblem::TooLarge { limit }.at(path))
        }
        Kind::Regular(Content::Inline(content)) => Ok(content.to_vec()),
        Kind::Regular(Content::External {
            digest: Some(digest),
            ..
        }) => objects
            .read_object(&digest, limit)
            .map_err(|error| BootProblem::Read(Box::new(error)).at(path)),
        _ => Err(BootProblem::NotAFile.at(path)),
    }
}

/// A directory's path and a name in it.
pub(super) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    [directory, b"/", name].concat()
}

#[cfg(test)]
mod tests;
