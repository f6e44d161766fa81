//! Layer directories, and handing them to podman together with their records.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io,
    os::{
        fd::AsFd,
        unix::fs::{DirBuilderExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    time::SystemTime,
};

use containers_storage::{LayerId, LayerRecord, LinkId, own_store::StagedLayer};
use repository::{Repository, VerityDigest, failpoint, sys};
use rustix::fs::ioctl_ficlone;

use super::{
    images::{Images, incoming_tar_split},
    plan::Plan,
};
use crate::{
    Layout,
    error::{Error, Result},
    layout::COMPOSEFS_DATA,
    paths::StorePaths,
    serve::LayerMounts,
    store::Store,
    time::rfc3339,
};

/// Makes directories and records of the layers without record, and gives them to podman all at once.
pub(super) fn add_layers(
    repository: &Repository,
    plan: &Plan,
    images: &Images,
    store: &mut Store,
) -> Result<()> {
    let now = rfc3339(SystemTime::now());
    let mut staged = Vec::new();
    for layer in plan.layers.iter().filter(|layer| !layer.has_record) {
        let (Some(image), Some(facts)) = (images.erofs.get(&layer.id), images.facts.get(&layer.id))
        else {
            continue;
        };
        let mut record = LayerRecord::new(layer.id.clone());
        record.parent.clone_from(&layer.parent);
        record.created.clone_from(&now);
        record.diff_digest = Some(layer.diff_id.into());
        record.diff_size = Some(i64::try_from(facts.size).unwrap_or(i64::MAX));
        record.uid_set = facts.uids.iter().copied().collect();
        record.gid_set = facts.gids.iter().copied().collect();
        staged.push(StagedLayer {
            record,
            link: LinkId::random().map_err(Error::io("get random bytes for", "a layer's link"))?,
            directory: stage_directory(repository, plan.layout, &layer.id, image, &store.paths)?,
            tar_split: Some(incoming_tar_split(&store.paths, &layer.id)),
        });
    }
    if staged.is_empty() {
        return Ok(());
    }
    if plan.layout == Layout::Mounted {
        let mounts = LayerMounts::new(repository, &store.paths)?;
        for layer in &staged {
            if let Some(image) = images.erofs.get(&layer.record.id) {
                mounts.ensure(&layer.record.id, image, plan.enforcement)?;
            }
        }
    }
    store.own.sync()?;
    failpoint("publish-layers-staged");
    let mut transaction = store.own.layers()?;
    for layer in staged {
        transaction.add(layer);
    }
    transaction.commit()?;
    Ok(())
}

/// Makes a layer's directory in the incoming directory. podman wants `empty` where there is no `lower`,
/// and before 5.2 `merged` and `work`, which it cannot make itself behind the read-only view.
fn stage_directory(
    repository: &Repository,
    layout: Layout,
    layer: &LayerId,
    image: &VerityDigest,
    paths: &StorePaths,
) -> Result<PathBuf> {
    let directory = paths.incoming().join(layer.as_str());
    make_directory(&directory, 0o755)?;
    for (name, mode) in [("empty", 0o755), ("merged", 0o700), ("work", 0o700)] {
        make_directory(&directory.join(name), mode)?;
    }
    let link = |target: &Path, name: &str| {
        let path = directory.join(name);
        symlink(target, &path).map_err(Error::io("create", path))
    };
    match layout {
        Layout::Mounted => link(&paths.layer_mount(layer), "diff")?,
        Layout::Blob => {
            link(&paths.shown_objects(layer), "diff")?;
            link(&paths.objects(), "objs")?;
            let data = directory.join(COMPOSEFS_DATA);
            make_directory(&data, 0o755)?;
            link_or_copy(repository, image, &data.join("composefs.blob"))?;
        }
    }
    Ok(directory)
}

/// Makes a directory with this very mode, whatever the umask.
pub(super) fn make_directory(path: &Path, mode: u32) -> Result<()> {
    DirBuilder::new()
        .mode(mode)
        .create(path)
        .map_err(Error::io("create directory", path))?;
    fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(Error::io("set the mode of", path))
}

/// Gives an object another name: the blob is immutable and ours, so one inode serves both. A file system
/// that cannot link further gets a clone or a copy, with fs-verity of its own.
pub(crate) fn link_or_copy(
    repository: &Repository,
    image: &VerityDigest,
    path: &Path,
) -> Result<()> {
    match fs::hard_link(repository.object_file(image), path) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::io("link", path)(error));
        }
        Err(_) => {}
    }
    let copy = || -> Result<()> {
        let mut from = repository.open_object(image)?;
        let mut to = File::create_new(path).map_err(Error::io("create", path))?;
        to.set_permissions(Permissions::from_mode(0o644))
            .map_err(Error::io("set the mode of", path))?;
        if ioctl_ficlone(to.as_fd(), from.as_fd()).is_err() {
            io::copy(&mut from, &mut to).map_err(Error::io("write", path))?;
        }
        drop(to);
        if repository.is_secure() {
            let file = File::open(path).map_err(Error::io("open", path))?;
            sys::enable_verity(&file, repository.algorithm())
                .map_err(Error::io("enable fs-verity on", path))?;
        }
        Ok(())
    };
    copy()
}
