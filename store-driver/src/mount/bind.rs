//! Read-only bind mounts.

use std::path::Path;

use rustix::{
    fd::AsFd,
    fs::CWD,
    mount::{OpenTreeFlags, open_tree},
};

use super::{DetachedMount, MountError};

/// A detached read-only view of the directory `source`, without the mounts below it. Files are the same
/// inodes, so locks taken through either path see each other.
pub fn bind_read_only(source: &Path) -> Result<DetachedMount, MountError> {
    let fail = |step, error: std::io::Error| MountError::Kernel {
        subject: source.display().to_string(),
        step,
        error,
        log: Vec::new(),
    };
    let fd = open_tree(
        CWD,
        source,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )
    .map_err(|error| fail("making a bind mount", error.into()))?;
    // Read-only before anyone can reach it.
    repository::sys::set_mount_attribute(fd.as_fd(), repository::sys::MountAttribute::ReadOnly)
        .map_err(|error| fail("making the bind mount read-only", error))?;
    Ok(DetachedMount {
        fd,
        subject: source.display().to_string(),
    })
}
