//! Read-only bind mounts.

use std::path::Path;

use repository::sys::{MountAttribute, set_mount_attribute};
use rustix::{
    fd::AsFd,
    fs::CWD,
    mount::{OpenTreeFlags, open_tree},
};

use super::{DetachedMount, MountError};

/// A detached read-only view of the directory `source`, without the mounts below it. Files are the same
/// inodes, so locks taken through either path see each other. What is mounted in one of them later is not
/// mounted in the other.
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
    // Before anyone can reach it. The clone of a shared mount is its peer otherwise.
    for (attribute, step) in [
        (MountAttribute::ReadOnly, "making the bind mount read-only"),
        (MountAttribute::Private, "making the bind mount private"),
    ] {
        set_mount_attribute(fd.as_fd(), attribute).map_err(|error| fail(step, error))?;
    }
    Ok(DetachedMount {
        fd,
        subject: source.display().to_string(),
    })
}
