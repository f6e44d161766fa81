//! What podman is shown: a read-only bind mount of our store.
//!
//! podman maps a layer ID to the first directory that exists in any of its stores. When it finds no
//! record for that directory it takes it for debris and removes it, in our store too, and publishing an
//! image while podman pulls the same one is enough to get there. Behind a read-only mount the removal
//! fails instead. Locks are unaffected: the lock files are the same inodes, and a read lock needs no
//! write access.
//!
//! Below the mount is a *skeleton*, a store without images, because podman refuses every command of
//! everybody when a configured store is missing. A host that has not mounted the view yet has a working
//! podman that does not see our images.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::Path,
};

use containers_storage::own_store::OwnStore;

use crate::{
    error::{Error, Result},
    mount::{Busy, MountTable, bind_read_only, unmount},
    paths::StorePaths,
};

/// Where the view is after [`ensure_view`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ViewState {
    /// This call mounted it.
    Mounted,
    /// It was mounted before.
    AlreadyMounted,
}

/// Makes the store, the skeleton and the mount, as far as they are missing. To be called under the
/// publish lock. Needs `CAP_SYS_ADMIN` where the mount is missing.
pub(crate) fn ensure_view(paths: &StorePaths) -> Result<ViewState> {
    let store = paths.store();
    let view = paths.view();
    make_private(paths)?;
    OwnStore::create(&store)?;
    match view_mount(paths)? {
        ViewMount::Ours => return Ok(ViewState::AlreadyMounted),
        ViewMount::Other(found) => return Err(Error::ForeignMount { path: view, found }),
        ViewMount::None => {}
    }
    OwnStore::create(&view)?;
    bind_read_only(&store)?.attach(&view)?;
    Ok(ViewState::Mounted)
}

/// Takes the view's mount away, if it is there; running containers keep what they use.
pub(crate) fn unmount_view(paths: &StorePaths) -> Result<()> {
    match view_mount(paths)? {
        ViewMount::Ours => Ok(unmount(&paths.view(), Busy::Detach)?),
        ViewMount::Other(_) | ViewMount::None => Ok(()),
    }
}

/// What is mounted where the view belongs.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ViewMount {
    /// Nothing: the skeleton shows, if it was made.
    None,
    /// The view.
    Ours,
    /// This.
    Other(String),
}

pub(crate) fn view_mount(paths: &StorePaths) -> Result<ViewMount> {
    let view = paths.view();
    let table = MountTable::read()?;
    let Some(mount) = table.top_at(&view) else {
        return Ok(ViewMount::None);
    };
    let identity = |path: &Path| -> Result<(u64, u64)> {
        let metadata = fs::metadata(path).map_err(Error::io("look at", path))?;
        Ok((metadata.dev(), metadata.ino()))
    };
    if mount.is_read_only() && identity(&view)? == identity(&paths.store())? {
        Ok(ViewMount::Ours)
    } else {
        Ok(ViewMount::Other(format!(
            "{} {}, {}",
            mount.filesystem,
            String::from_utf8_lossy(&mount.source),
            mount.options
        )))
    }
}

/// Makes the directory that holds all this, with the mode podman can see through.
pub(crate) fn make_private(paths: &StorePaths) -> Result<()> {
    let path = paths.private();
    match DirBuilder::new().mode(0o755).create(&path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(Error::io("create directory", path)(error)),
    }
}
