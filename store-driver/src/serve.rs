//! The mounts: the view for podman, and the layers in the layout [`Layout::Mounted`].
//!
//! A layer's mount has the source `composefs:<digest of its EROFS image>`, by which it is recognised when
//! it is there already. Every layer is mounted, not only those that images end with: an image can be
//! built on any of them, and containers of that image mount it.

use std::{
    collections::HashSet,
    fs::{self, DirBuilder},
    io,
    os::{fd::AsFd, unix::fs::DirBuilderExt},
    path::Path,
};

use containers_storage::LayerId;
use repository::{Repository, VerityDigest};
use rustix::fs::{Mode, OFlags, open};
use serde::Serialize;

use crate::{
    Enforcement, Layout, NotMounted,
    error::{Error, Result},
    mount::{Busy, Composefs, DetachedMount, MountTable, Stacking, Verity, unmount},
    paths::StorePaths,
    store::{Store, image_of},
    verify::{Owners, check_secure, measure},
    view::{ViewState, ensure_view, unmount_view},
};

/// What [`serve_mounts`] did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServeReport {
    /// The path for podman's `additionalimagestores`.
    pub view: std::path::PathBuf,
    /// Whether the view had to be mounted.
    pub view_state: ViewState,
    /// Layers that were mounted now.
    pub mounted: Vec<LayerId>,
    /// Layers that were mounted before.
    pub already_mounted: Vec<LayerId>,
}

/// Mounts the view and every published layer whose layout wants it, as far as they are not mounted yet.
/// Needs `CAP_SYS_ADMIN`; what it mounts is seen in the mount namespace of the caller. A layer that
/// cannot be mounted does not keep the others from it ([`Error::NotAllMounted`]).
pub fn serve_mounts(repository: &Repository) -> Result<ServeReport> {
    let store = Store::open(repository)?;
    store.check_place()?;
    let mut report = ServeReport {
        view: store.paths.view(),
        view_state: ensure_view(&store.paths)?,
        mounted: Vec::new(),
        already_mounted: Vec::new(),
    };
    let mounts = LayerMounts::new(repository, &store.paths)?;
    let records = store.own.root().layer_records()?;
    let owners = Owners::new(&store.own.root().image_records()?, &records);
    let layers = || records.iter().map(|record| &record.id);
    mounts.remove_others(&layers().cloned().collect())?;
    let mut failed = Vec::new();
    for layer in layers() {
        match serve_layer(
            repository,
            &store,
            &mounts,
            layer,
            owners.enforcement(layer),
        ) {
            Ok(Some(Mounted::Now)) => report.mounted.push(layer.clone()),
            Ok(Some(Mounted::Before)) => report.already_mounted.push(layer.clone()),
            Ok(None) => {}
            Err(error) => failed.push(NotMounted {
                layer: layer.clone(),
                images: owners.of(layer),
                error,
            }),
        }
    }
    if failed.is_empty() {
        Ok(report)
    } else {
        Err(Error::NotAllMounted { failed })
    }
}

/// Mounts a layer if its layout wants it.
fn serve_layer(
    repository: &Repository,
    store: &Store,
    mounts: &LayerMounts<'_>,
    layer: &LayerId,
    enforcement: Enforcement,
) -> Result<Option<Mounted>> {
    if Layout::of(&store.paths, layer)? != Layout::Mounted {
        return Ok(None);
    }
    let image = image_of(repository, layer)?.ok_or_else(|| Error::Damaged {
        store: store.paths.store(),
        problem: format!(
            "the repository has no image for the published layer {layer}; publish its image again"
        ),
    })?;
    mounts.ensure(layer, &image, enforcement).map(Some)
}

/// Takes all mounts of the repository's store away, in any order of start and stop. Running containers
/// keep what they use; new ones fail until [`serve_mounts`] has run again.
pub fn unmount_all(repository: &Repository) -> Result<()> {
    let store = Store::open(repository)?;
    let run = store.paths.run();
    let table = MountTable::read()?;
    for mount in table.below(&run) {
        unmount(&mount.target, Busy::Detach)?;
    }
    match fs::remove_dir_all(&run) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(Error::io("remove", run)(error));
        }
        _ => {}
    }
    unmount_view(&store.paths)
}

/// Mounts an image of the repository read-only on an existing directory, over its objects. Where the
/// repository is secure the image itself is measured before, and the kernel compares each object that is
/// opened (`verity=require`); elsewhere that can be required, which is an error ([`Error::NoVerity`]). Needs
/// `CAP_SYS_ADMIN`.
pub fn mount_image(
    repository: &Repository,
    image: &VerityDigest,
    enforcement: Enforcement,
    stacking: Stacking,
    target: &Path,
) -> Result<()> {
    detached_image(repository, image, enforcement, stacking)?.attach(target)?;
    Ok(())
}

/// As [`mount_image`], attached nowhere yet.
pub(crate) fn detached_image(
    repository: &Repository,
    image: &VerityDigest,
    enforcement: Enforcement,
    stacking: Stacking,
) -> Result<DetachedMount> {
    if enforcement == Enforcement::Required {
        check_secure(repository)?;
    }
    if repository.is_secure() {
        // Opening it would refuse it too, but not tell the file.
        let path = repository.object_file(image);
        measure(&path, image).map_err(|problem| Error::Unsound { path, problem })?;
    }
    let file = repository.open_object(image)?;
    let objects_path = repository.path().join("objects");
    let objects = open(
        &objects_path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(Error::io("open", &objects_path))?;
    let verity = if repository.is_secure() {
        Verity::Require
    } else {
        Verity::Off
    };
    Ok(Composefs::new(file.as_fd(), format!("composefs:{image}"))
        .data(objects.as_fd())
        .verity(verity)
        .stacking(stacking)
        .mount()?)
}

/// Whether a layer had to be mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mounted {
    Now,
    Before,
}

/// The mounts of layers, with the mount table read once.
pub(crate) struct LayerMounts<'a> {
    repository: &'a Repository,
    paths: &'a StorePaths,
    table: MountTable,
}

impl<'a> LayerMounts<'a> {
    pub(crate) fn new(repository: &'a Repository, paths: &'a StorePaths) -> Result<Self> {
        Ok(Self {
            repository,
            paths,
            table: MountTable::read()?,
        })
    }

    /// Mounts a layer's EROFS image where its `diff` leads, unless it is there.
    pub(crate) fn ensure(
        &self,
        layer: &LayerId,
        image: &VerityDigest,
        enforcement: Enforcement,
    ) -> Result<Mounted> {
        if enforcement == Enforcement::Required {
            check_secure(self.repository)?;
        }
        let target = self.paths.layer_mount(layer);
        let source = format!("composefs:{image}");
        if let Some(mount) = self.table.top_at(&target) {
            return if mount.filesystem == "overlay" && mount.source == source.as_bytes() {
                Ok(Mounted::Before)
            } else {
                Err(Error::ForeignMount {
                    path: target,
                    found: format!(
                        "{} {}",
                        mount.filesystem,
                        String::from_utf8_lossy(&mount.source)
                    ),
                })
            };
        }
        self.make_target(&target)?;
        let stacking = Stacking::BelowOverlay;
        mount_image(self.repository, image, enforcement, stacking, &target)?;
        Ok(Mounted::Now)
    }

    /// Nobody but root may reach the trees: they hold set-user-ID programs of every age.
    fn make_target(&self, target: &Path) -> Result<()> {
        let run = self.paths.run();
        if let Some(parent) = run.parent() {
            make_run_directory(parent, 0o755)?;
        }
        make_run_directory(&run, 0o700)?;
        if let Some(layers) = target.parent() {
            make_run_directory(layers, 0o700)?;
        }
        make_run_directory(target, 0o700)
    }

    /// Takes the mounts of layers away that are not in the store (any more).
    pub(crate) fn remove_others(&self, present: &HashSet<LayerId>) -> Result<()> {
        let layers = self.paths.run().join("layers");
        for mount in self.table.below(&layers) {
            let name = mount.target.strip_prefix(&layers).ok();
            let layer = name.and_then(|name| name.to_str()?.parse::<LayerId>().ok());
            if layer.is_none_or(|layer| !present.contains(&layer)) {
                unmount(&mount.target, Busy::Detach)?;
                // Another mount may be below this one, or the directory in use otherwise.
                let _ = fs::remove_dir(&mount.target);
            }
        }
        Ok(())
    }
}

fn make_run_directory(path: &Path, mode: u32) -> Result<()> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(Error::io("create directory", path)(error))
        }
        _ => Ok(()),
    }
}
