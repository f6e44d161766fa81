//! Our image store, opened for changing: one at a time, put in order first.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::unix::fs::symlink,
    path::Path,
};

use containers_storage::{
    Interrupt, LayerId, LayerRecord, LinkId,
    own_store::{OwnStore, Repair},
};
use repository::{Category, RefPath, Repository, VerityDigest};
use rustix::fs::{FlockOperation, flock};

use crate::{
    error::{Error, Result},
    in_use::Consumers,
    paths::StorePaths,
    view::make_private,
};

/// The store under the lock that keeps others of us out. podman's locks are another matter: they are
/// taken one at a time, for milliseconds.
pub(crate) struct Store {
    pub(crate) paths: StorePaths,
    pub(crate) own: OwnStore,
    pub(crate) consumers: Consumers,
    _lock: fs::File,
}

impl Store {
    /// Waits for the lock, makes what is missing, and repairs what a crash has left behind.
    pub(crate) fn open(repository: &Repository) -> Result<Self> {
        Self::open_unless(repository, Interrupt::never())
    }

    /// The same; podman's locks are waited for, now and later, until `interrupt` is set.
    pub(crate) fn open_unless(repository: &Repository, interrupt: Interrupt) -> Result<Self> {
        let paths = StorePaths::of(repository);
        make_private(&paths)?;
        let lock_path = paths.publish_lock();
        let lock = fs::File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(Error::io("open", &lock_path))?;
        loop {
            match flock(&lock, FlockOperation::LockExclusive) {
                Err(rustix::io::Errno::INTR) => {}
                result => break result.map_err(Error::io("lock", &lock_path))?,
            }
        }
        let mut store = Self {
            own: OwnStore::create(&paths.store())?.unless(interrupt),
            consumers: Consumers::read(&paths)?,
            paths,
            _lock: lock,
        };
        store.repair(repository)?;
        Ok(store)
    }

    /// The links in the store name the repository's path, so a store that was moved is of no use to
    /// podman. One without layers starts again at the new place.
    pub(crate) fn check_place(&self) -> Result<()> {
        let path = self.paths.store().join("repository");
        let is = self.paths.repository();
        let was = match fs::read_link(&path) {
            Ok(was) if was == is => return Ok(()),
            Ok(was) => Some(was),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(Error::io("read the link", path)(error)),
        };
        if let Some(was) = was {
            if !self.own.root().layer_records()?.is_empty() {
                return Err(Error::Moved {
                    was,
                    is: is.to_owned(),
                });
            }
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
        symlink(is, &path).map_err(Error::io("create", path))
    }

    fn repair(&mut self, repository: &Repository) -> Result<()> {
        let incoming = self.paths.incoming();
        remove_directory(&incoming)?;

        let mut layers = self.own.layers()?;
        let repairs = layers.repair()?;
        if repairs.is_empty() {
            drop(layers);
        } else {
            for repair in &repairs {
                match repair {
                    Repair::DirectoryWithoutRecord(layer) => {
                        tracing::warn!(%layer, "removing a layer directory without a record");
                    }
                    Repair::RecordWithoutDirectory(layer) => {
                        tracing::warn!(%layer, "removing a layer record without a directory");
                    }
                }
            }
            layers.commit()?;
        }
        if !self.own.withdrawn()?.is_empty() {
            self.own.images()?.commit()?;
        }
        self.settle_removed(repository)
    }

    /// Brings removed layers back that are in use after all, with what they stand on, and deletes the
    /// others.
    pub(crate) fn settle_removed(&mut self, repository: &Repository) -> Result<()> {
        let removed = self.own.removed()?;
        if removed.is_empty() {
            return Ok(());
        }
        let asked: Vec<_> = removed
            .iter()
            .map(|layer| (layer.id.clone(), layer.link))
            .collect();
        let users = self.consumers.users_of(repository, &asked);
        let records: Vec<LayerRecord> = removed
            .iter()
            .filter_map(|layer| layer.record.clone())
            .collect();
        let needed = with_ancestors(&records, |id| !users.of(id).is_empty());
        let mut transaction = self.own.layers()?;
        let mut restored = Vec::new();
        for layer in &removed {
            if needed.contains(&layer.id) && transaction.restore(layer) {
                restored.push(layer.id.clone());
            }
        }
        if restored.is_empty() {
            drop(transaction);
        } else {
            transaction.commit()?;
        }
        for layer in &removed {
            // Without a record there is nothing to restore, but the files may be in use all the same.
            if !restored.contains(&layer.id) && users.of(&layer.id).is_empty() {
                self.own.purge(layer)?;
            }
        }
        Ok(())
    }
}

/// The store for looking at it, if there is one. Writes nothing.
pub(crate) fn open_existing(paths: &StorePaths) -> Result<Option<OwnStore>> {
    match OwnStore::open(&paths.store()) {
        Ok(own) => Ok(Some(own)),
        Err(containers_storage::Error::NoStore { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The short name of a layer that has a directory.
pub(crate) fn link_of(paths: &StorePaths, layer: &LayerId) -> Result<Option<LinkId>> {
    let path = paths.layer_directory(layer).join("link");
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.parse().ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}

/// The layers of `records` that are needed, and all they stand on.
pub(crate) fn with_ancestors(
    records: &[LayerRecord],
    mut is_needed: impl FnMut(&LayerId) -> bool,
) -> HashSet<LayerId> {
    let parents: HashMap<&LayerId, Option<&LayerId>> = records
        .iter()
        .map(|record| (&record.id, record.parent.as_ref()))
        .collect();
    let mut needed = HashSet::new();
    for record in records {
        if !is_needed(&record.id) {
            continue;
        }
        let mut next = Some(&record.id);
        while let Some(layer) = next
            && needed.insert(layer.clone())
        {
            next = parents.get(layer).copied().flatten();
        }
    }
    needed
}

/// The ref that keeps the EROFS image of a published layer, and with it the layer's objects.
pub(crate) fn layer_ref(layer: &LayerId) -> Result<RefPath> {
    Ok(RefPath::new(format!("{PUBLISHED}/{layer}")).map_err(repository::Error::from)?)
}

/// The directory of these refs below `images/refs/`.
pub(crate) const PUBLISHED: &str = "composefs-store/published";

/// All of these refs.
pub(crate) fn published_refs(repository: &Repository) -> Result<Vec<RefPath>> {
    let refs = repository.refs(Category::Images)?.entries.into_iter();
    Ok(refs
        .map(|entry| entry.path)
        .filter(|path| path.as_path().starts_with(PUBLISHED))
        .collect())
}

/// The EROFS image of a published layer.
pub(crate) fn image_of(repository: &Repository, layer: &LayerId) -> Result<Option<VerityDigest>> {
    let target = repository.reference(Category::Images, &layer_ref(layer)?)?;
    Ok(target.and_then(|target| VerityDigest::from_hex(&target).ok()))
}

/// Removes a directory and all in it, if it is there.
pub(crate) fn remove_directory(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io("remove", path)(error)),
    }
}
