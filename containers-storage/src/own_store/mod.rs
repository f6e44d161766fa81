//! Writing a store of our own: the additional image store that podman reads.
//!
//! podman shows a store's directory to itself and deletes what has no record, so directory and record of
//! a layer appear and vanish together, under the write lock of `layers.lock`. A change is a transaction:
//! [`OwnStore::layers`] or [`OwnStore::images`] waits for the write lock, the transaction collects
//! additions and removals, `commit` validates, changes directories, renews the last-write mark and
//! replaces the JSON file, in this order. A transaction that is dropped changes nothing. Both borrow the
//! store mutably, so that nobody holds two of its locks.
//!
//! ```text
//! store.layers()  →  LayersTxn: add · remove · restore · repair  →  commit
//! store.images()  →  ImagesTxn: put · remove · get_mut           →  commit · commit_unmarked
//! ```
//!
//! Never used on a store that belongs to an engine.

mod files;
mod images;
mod layers;

use std::fs::File;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::error::Error;
use crate::ids::ImageId;
use crate::lock::Interrupt;
use crate::records::{ImageRecord, LayerRecord};
use crate::storage::{RootKind, StoreRoot};
pub use images::{BigData, ImagesTxn};
pub use layers::{LayersTxn, RemovedLayer, Repair, StagedLayer};

/// The name of the file that holds the big data item `key`: the key itself if it has only the
/// characters `0-9a-z.`, else `=` and the base64 of the key.
pub fn big_data_file_name(key: &str) -> String {
    let plain = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'z' | b'.');
    if !key.is_empty() && key.bytes().all(plain) && key != "." && key != ".." {
        key.to_owned()
    } else {
        format!("={}", STANDARD.encode(key))
    }
}

/// A store of our own, for changing it.
#[derive(Debug)]
pub struct OwnStore {
    root: StoreRoot,
    interrupt: Interrupt,
}

impl OwnStore {
    /// Opens the store at `path`, after creating what of it does not exist: directories with mode 0755,
    /// lock files and empty JSON files with mode 0644. The parent of `path` must exist. Durable when
    /// this returns.
    pub fn create(path: &Path) -> Result<Self, Error> {
        let root = StoreRoot::new(path.to_owned(), RootKind::Additional);
        files::make_dir(path)?;
        for dir in [
            root.overlay_dir(),
            root.overlay_dir().join("l"),
            root.layers_dir(),
            root.images_dir(),
            root.path().join(layers::REMOVED),
        ] {
            files::make_dir(&dir)?;
        }
        for (dir, lock, records) in [
            (root.layers_dir(), "layers.lock", "layers.json"),
            (root.images_dir(), "images.lock", "images.json"),
        ] {
            files::make_file(&dir.join(lock), b"")?;
            files::make_file(&dir.join(records), b"[]")?;
            files::sync_dir(&dir)?;
        }
        files::sync_dir(&root.overlay_dir())?;
        files::sync_dir(path)?;
        if let Some(parent) = path.parent() {
            files::sync_dir(parent)?;
        }
        Ok(Self::at(root))
    }

    /// Opens the existing store at `path`.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let root = StoreRoot::new(path.to_owned(), RootKind::Additional);
        let locks = [
            root.layers_dir().join("layers.lock"),
            root.images_dir().join("images.lock"),
        ];
        if locks.iter().all(|lock| lock.is_file()) {
            Ok(Self::at(root))
        } else {
            Err(Error::NoStore {
                root: path.to_owned(),
            })
        }
    }

    fn at(root: StoreRoot) -> Self {
        Self {
            root,
            interrupt: Interrupt::never(),
        }
    }

    /// Gives up waiting for its locks when `interrupt` is set ([`Error::Interrupted`]): podman holds them as
    /// long as it reads from the store, which may be minutes when it pushes an image.
    #[must_use]
    pub fn unless(mut self, interrupt: Interrupt) -> Self {
        self.interrupt = interrupt;
        self
    }

    /// The store for reading: its paths and records.
    pub fn root(&self) -> &StoreRoot {
        &self.root
    }

    /// Writes everything on the store's file system to disk, for what was staged there. To be called
    /// before the lock is taken: it may take seconds.
    pub fn sync(&self) -> Result<(), Error> {
        let path = self.root.path();
        let context = files::write_error("sync", path);
        let dir = File::open(path).map_err(context)?;
        rustix::fs::syncfs(&dir).map_err(|e| files::write_error("sync", path)(e.into()))
    }

    /// Waits for the write lock of the layers and begins a change.
    pub fn layers(&mut self) -> Result<LayersTxn<'_>, Error> {
        LayersTxn::begin(&self.root, &self.interrupt)
    }

    /// Waits for the write lock of the images and begins a change.
    pub fn images(&mut self) -> Result<ImagesTxn<'_>, Error> {
        ImagesTxn::begin(&self.root, &self.interrupt)
    }

    /// The images that engines which are running may still have in their lists: those that
    /// [`ImagesTxn::commit_unmarked`] removed since the last [`ImagesTxn::commit`].
    pub fn withdrawn(&self) -> Result<Vec<ImageId>, Error> {
        images::withdrawn(&self.root)
    }

    /// The layers that were removed and not yet purged.
    pub fn removed(&self) -> Result<Vec<RemovedLayer>, Error> {
        layers::removed(&self.root)
    }

    /// Deletes a removed layer for good: directory, tar-split and saved record.
    pub fn purge(&mut self, layer: &RemovedLayer) -> Result<(), Error> {
        layers::purge(layer)
    }
}

/// New content of a file of records, on disk under another name.
struct NewRecords {
    path: PathBuf,
    temporary: PathBuf,
}

impl NewRecords {
    /// Writes the records beside `path`. What can fail for want of space fails here, before a change of
    /// directories begins.
    fn write<T: serde::Serialize>(path: &Path, records: &[T]) -> Result<Self, Error> {
        let json = serde_json::to_vec(records).map_err(|source| Error::Json {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            temporary: files::write_temporary(path, &json)?,
            path: path.to_owned(),
        })
    }

    /// Gives the file its name under its write lock, after renewing the mark.
    fn publish(&self, lock: &crate::lock::WriteLock) -> Result<(), Error> {
        lock.mark_written()?;
        self.publish_unmarked()
    }

    fn publish_unmarked(&self) -> Result<(), Error> {
        files::rename(&self.temporary, &self.path)?;
        files::sync_parent(&self.path)
    }
}

/// What would make podman refuse the whole store.
fn check_unique<'a, T: Ord + std::fmt::Display + 'a>(
    what: &str,
    items: impl Iterator<Item = T>,
) -> Result<(), String> {
    let mut seen = std::collections::BTreeSet::new();
    for item in items {
        if let Some(item) = seen.replace(item) {
            return Err(format!("the {what} {item} occurs twice"));
        }
    }
    Ok(())
}

fn check_layers(records: &[LayerRecord]) -> Result<(), String> {
    check_unique("layer", records.iter().map(|r| &r.id))?;
    check_unique("layer name", records.iter().flat_map(|r| &r.names))?;
    for record in records {
        let id = &record.id;
        if !id.is_canonical() {
            return Err(format!("the layer ID {id} is not 64 hex digits"));
        }
        if let Some(parent) = &record.parent
            && !records.iter().any(|r| r.id == *parent)
        {
            return Err(format!(
                "layer {id} has the parent {parent}, which has no record"
            ));
        }
        if record.diff_digest.is_none() || record.diff_size.is_none_or(|size| size < 0) {
            return Err(format!("layer {id} has no diff digest or size"));
        }
    }
    Ok(())
}

fn check_images(records: &[ImageRecord]) -> Result<(), String> {
    check_unique("image", records.iter().map(|r| &r.id))?;
    check_unique("name", records.iter().flat_map(|r| &r.names))?;
    for record in records {
        let id = &record.id;
        if !id.is_canonical() {
            return Err(format!("the image ID {id} is not 64 hex digits"));
        }
        if record.digest.is_none() {
            return Err(format!("image {id} has no manifest digest"));
        }
        for key in &record.big_data_names {
            if !record.big_data_sizes.contains_key(key)
                || !record.big_data_digests.contains_key(key)
            {
                return Err(format!("image {id} has no size or digest of {key}"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
