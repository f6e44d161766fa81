//! Adding and removing layers of a store of our own.
//!
//! A removed layer goes to `removed/<layer ID>/`, beside the directories podman looks at: `layer` is its
//! directory, `tar-split.gz` and `record.json` what belongs to it. From there it can come back, or be
//! purged when nobody uses it any more. If that name is taken, a random suffix follows.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::{NewRecords, check_layers, files};
use crate::error::Error;
use crate::ids::{LayerId, LinkId};
use crate::lock::{Interrupt, WriteLock};
use crate::read::{io_error, read_limited, read_records};
use crate::records::LayerRecord;
use crate::storage::StoreRoot;

/// The directory of removed layers.
pub(super) const REMOVED: &str = "removed";

/// A layer that is ready to appear: complete, and on disk ([`super::OwnStore::sync`]).
#[derive(Debug, Clone)]
pub struct StagedLayer {
    /// The record to add.
    pub record: LayerRecord,
    /// The layer's short name. Children keep it, so it must never have meant another layer.
    pub link: LinkId,
    /// The layer's directory, on the store's file system. What it has to contain beside `link`, which is
    /// written here, depends on the layout.
    pub directory: PathBuf,
    /// The tar-split file, on the store's file system.
    pub tar_split: Option<PathBuf>,
}

/// A layer that was removed and can be restored or purged.
#[derive(Debug, Clone)]
pub struct RemovedLayer {
    /// The layer.
    pub id: LayerId,
    /// The record it had; `None` if podman's view never had one.
    pub record: Option<LayerRecord>,
    /// The short name it had.
    pub link: Option<LinkId>,
    /// Where its parts are.
    place: PathBuf,
}

/// What [`LayersTxn::repair`] found and will set right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Repair {
    /// A directory without a record, which podman may delete at any time: it is removed.
    DirectoryWithoutRecord(LayerId),
    /// A record without a directory: it is dropped.
    RecordWithoutDirectory(LayerId),
}

/// A change of the layers, under the write lock.
#[derive(Debug)]
pub struct LayersTxn<'a> {
    root: &'a StoreRoot,
    lock: WriteLock,
    records: Vec<LayerRecord>,
    added: Vec<StagedLayer>,
    removed: Vec<(LayerId, Option<LayerRecord>)>,
    restored: Vec<RemovedLayer>,
}

impl<'a> LayersTxn<'a> {
    pub(super) fn begin(root: &'a StoreRoot, interrupt: &Interrupt) -> Result<Self, Error> {
        let dir = root.layers_dir();
        let lock = dir.join("layers.lock");
        let lock =
            WriteLock::acquire_unless(&lock, interrupt)?.ok_or(Error::Interrupted { lock })?;
        let records = read_records(&dir.join("layers.json"))?;
        Ok(Self {
            root,
            lock,
            records,
            added: Vec::new(),
            removed: Vec::new(),
            restored: Vec::new(),
        })
    }

    /// The records as they will be after `commit`.
    pub fn records(&self) -> &[LayerRecord] {
        &self.records
    }

    /// The record of a layer, as it will be after `commit`.
    pub fn get(&self, id: &LayerId) -> Option<&LayerRecord> {
        self.records.iter().find(|record| record.id == *id)
    }

    /// Adds a layer. Its parent must have a record by the time of `commit`. A layer that was removed and
    /// not purged is to be restored instead: what was built on it knows its short name.
    pub fn add(&mut self, layer: StagedLayer) {
        self.records.push(layer.record.clone());
        self.added.push(layer);
    }

    /// Removes a layer; `false` if it has no record.
    pub fn remove(&mut self, id: &LayerId) -> bool {
        let Some(index) = self.records.iter().position(|record| record.id == *id) else {
            return false;
        };
        let record = self.records.remove(index);
        self.removed.push((id.clone(), Some(record)));
        true
    }

    /// Brings a removed layer back; `false` if there is no record to bring back, or one is there already.
    pub fn restore(&mut self, layer: &RemovedLayer) -> bool {
        match &layer.record {
            Some(record) if self.get(&layer.id).is_none() => {
                self.records.push(record.clone());
                self.restored.push(layer.clone());
                true
            }
            _ => false,
        }
    }

    /// Finds directories without record and records without directory, left behind by a crash or by
    /// podman, and makes `commit` set them right. To be called before any other change.
    pub fn repair(&mut self) -> Result<Vec<Repair>, Error> {
        let overlay = self.root.overlay_dir();
        let mut repairs = Vec::new();
        for entry in overlay.read_dir().map_err(io_error(&overlay))? {
            let name = entry.map_err(io_error(&overlay))?.file_name();
            let id = name.to_str().and_then(|name| name.parse::<LayerId>().ok());
            if let Some(id) = id
                && id.is_canonical()
                && self.get(&id).is_none()
            {
                self.removed.push((id.clone(), None));
                repairs.push(Repair::DirectoryWithoutRecord(id));
            }
        }
        self.records.retain(|record| {
            let exists = overlay.join(record.id.as_str()).is_dir();
            if !exists {
                repairs.push(Repair::RecordWithoutDirectory(record.id.clone()));
            }
            exists
        });
        Ok(repairs)
    }

    /// Makes the change. Nothing is changed if the records would not be valid. Durable when this returns.
    pub fn commit(self) -> Result<(), Error> {
        let path = self.root.layers_dir().join("layers.json");
        check_layers(&self.records).map_err(|problem| Error::InvalidRecords {
            path: path.clone(),
            problem,
        })?;
        let new = NewRecords::write(&path, &self.records)?;

        // A layer before what it stands on: a crash in between leaves records that are valid without those
        // whose directories are gone.
        for (id, record) in children_first(&self.removed) {
            move_away(self.root, id, record.as_ref())?;
        }
        for layer in &self.restored {
            move_back(self.root, layer)?;
        }
        for layer in &self.added {
            move_in(self.root, layer)?;
        }
        for dir in [
            self.root.overlay_dir().join("l"),
            self.root.overlay_dir(),
            self.root.layers_dir(),
            self.root.path().join(REMOVED),
        ] {
            files::sync_dir(&dir)?;
        }
        new.publish(&self.lock)?;
        for layer in &self.restored {
            files::remove_dir_all(&layer.place)?;
        }
        Ok(())
    }
}

/// The removed layers in an order in which each comes before its parent.
fn children_first(
    removed: &[(LayerId, Option<LayerRecord>)],
) -> Vec<&(LayerId, Option<LayerRecord>)> {
    let parents: HashMap<&LayerId, &LayerId> = removed
        .iter()
        .filter_map(|(id, record)| Some((id, record.as_ref()?.parent.as_ref()?)))
        .collect();
    let depth = |id: &LayerId| {
        let next = |id: &&LayerId| parents.get(id).copied();
        std::iter::successors(parents.get(id).copied(), |id| next(id))
            .take(removed.len())
            .count()
    };
    let mut ordered: Vec<_> = removed.iter().collect();
    ordered.sort_by_cached_key(|(id, _)| std::cmp::Reverse(depth(id)));
    ordered
}

fn tar_split_path(root: &StoreRoot, id: &LayerId) -> PathBuf {
    root.layers_dir().join(format!("{id}.tar-split.gz"))
}

/// The short name in a layer's directory.
fn read_link_id(directory: &Path) -> Result<Option<LinkId>, Error> {
    let bytes = read_limited(&directory.join("link"), 64)?;
    Ok(bytes
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .and_then(|text| text.parse().ok()))
}

fn make_link(root: &StoreRoot, link: LinkId, id: &LayerId) -> Result<(), Error> {
    let path = root.overlay_dir().join("l").join(link.as_str());
    let target = PathBuf::from(format!("../{id}/diff"));
    match symlink(&target, &path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => match fs::read_link(&path) {
            Ok(found) if found == target => Ok(()),
            _ => Err(files::write_error("create", &path)(e)),
        },
        result => result.map_err(files::write_error("create", &path)),
    }
}

fn move_in(root: &StoreRoot, layer: &StagedLayer) -> Result<(), Error> {
    let id = &layer.record.id;
    let directory = root.overlay_dir().join(id.as_str());
    if directory.symlink_metadata().is_ok() {
        // No record, or validation would have failed: left over from a crash.
        move_away(root, id, None)?;
    }
    files::replace_file(
        &layer.directory.join("link"),
        layer.link.as_str().as_bytes(),
    )?;
    files::sync_dir(&layer.directory)?;
    make_link(root, layer.link, id)?;
    if let Some(tar_split) = &layer.tar_split {
        files::rename(tar_split, &tar_split_path(root, id))?;
    }
    files::rename(&layer.directory, &directory)
}

/// Moves directory, tar-split and record to the removed layers.
fn move_away(root: &StoreRoot, id: &LayerId, record: Option<&LayerRecord>) -> Result<(), Error> {
    let directory = root.overlay_dir().join(id.as_str());
    let place = removed_place(root, id)?;
    files::make_dir(&place)?;
    if let Some(record) = record {
        let records = std::slice::from_ref(record);
        NewRecords::write(&place.join("record.json"), records)?.publish_unmarked()?;
    }
    let link = read_link_id(&directory)?;
    rename_if_there(&directory, &place.join("layer"))?;
    rename_if_there(&tar_split_path(root, id), &place.join("tar-split.gz"))?;
    if let Some(link) = link {
        files::remove_file(&root.overlay_dir().join("l").join(link.as_str()))?;
    }
    files::sync_dir(&place)
}

/// The directory for a layer's parts: one without a layer in it, which is new unless a restoration
/// was interrupted.
fn removed_place(root: &StoreRoot, id: &LayerId) -> Result<PathBuf, Error> {
    let dir = root.path().join(REMOVED);
    let place = dir.join(id.as_str());
    if place.join("layer").symlink_metadata().is_err() {
        return Ok(place);
    }
    let suffix = LinkId::random().map_err(files::write_error("create", &place))?;
    Ok(dir.join(format!("{id}-{suffix}")))
}

/// Moves a removed layer's parts back; the saved record stays until `layers.json` has it.
fn move_back(root: &StoreRoot, layer: &RemovedLayer) -> Result<(), Error> {
    let id = &layer.id;
    if let Some(link) = layer.link {
        make_link(root, link, id)?;
    }
    rename_if_there(&layer.place.join("tar-split.gz"), &tar_split_path(root, id))?;
    files::rename(
        &layer.place.join("layer"),
        &root.overlay_dir().join(id.as_str()),
    )
}

fn rename_if_there(from: &Path, to: &Path) -> Result<(), Error> {
    if from.symlink_metadata().is_ok() {
        files::rename(from, to)
    } else {
        Ok(())
    }
}

pub(super) fn removed(root: &StoreRoot) -> Result<Vec<RemovedLayer>, Error> {
    let dir = root.path().join(REMOVED);
    let entries = match dir.read_dir() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(io_error(&dir))?,
    };
    let mut layers = Vec::new();
    for entry in entries {
        let entry = entry.map_err(io_error(&dir))?;
        let name = entry.file_name();
        let id = name.to_str().and_then(|name| name.split('-').next());
        let Some(id) = id.and_then(|id| id.parse().ok()) else {
            continue;
        };
        let place = entry.path();
        layers.push(RemovedLayer {
            id,
            record: read_records(&place.join("record.json"))?.pop(),
            link: read_link_id(&place.join("layer"))?,
            place,
        });
    }
    Ok(layers)
}

pub(super) fn purge(layer: &RemovedLayer) -> Result<(), Error> {
    files::remove_dir_all(&layer.place)?;
    files::sync_parent(&layer.place)
}
