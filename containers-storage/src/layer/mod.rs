//! A layer: its record, where it lies, and how its files are kept. [`OpenLayer`] reads them.

mod image;
mod open;
mod synthetic;
mod toc;

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use crate::digest::DiffId;
use crate::error::Error;
use crate::ids::LayerId;
use crate::lock::{LastWrite, ReadLock};
use crate::own_store::big_data_file_name;
use crate::read::{io_error, read_limited};
use crate::records::LayerRecord;
use crate::storage::{Driver, FoundLayer, Storage, StoreRoot};
pub use open::{LayerTarSplit, OpenLayer};

/// How a layer's files are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerKind {
    /// As a directory tree.
    Tree,
    /// By the SHA-256 of their content, as a partial pull with `use_composefs` leaves them.
    Flat,
    /// In an additional layer store.
    AdditionalLayerStore,
    /// As objects that a composefs image names, or as a mounted composefs: a published store, say.
    Composefs,
}

impl fmt::Display for LayerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tree => "a directory tree",
            Self::Flat => "a flat object directory of a partial pull",
            Self::AdditionalLayerStore => "part of an additional layer store",
            Self::Composefs => "backed by composefs",
        })
    }
}

/// A layer of an image. Cheap to clone. To read it, open it.
#[derive(Clone)]
pub struct Layer {
    storage: Storage,
    root: usize,
    record: LayerRecord,
    mark: LastWrite,
    diff_id: DiffId,
    /// A tar-split of our own making.
    synthetic: Option<Arc<File>>,
}

impl fmt::Debug for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Layer({})", self.record.id)
    }
}

#[derive(Deserialize)]
struct ChunkedData {
    #[serde(default)]
    format: u32,
}

impl Layer {
    pub(crate) fn new(storage: Storage, found: FoundLayer, diff_id: DiffId) -> Self {
        Self {
            storage,
            root: found.root,
            record: found.record,
            mark: found.mark,
            diff_id,
            synthetic: None,
        }
    }

    /// The layer's ID.
    pub fn id(&self) -> &LayerId {
        &self.record.id
    }

    /// The diff ID that the image's config has for this layer: what the SHA-256 of the tar must be.
    pub fn diff_id(&self) -> DiffId {
        self.diff_id
    }

    /// The length in bytes of the uncompressed tar, if the record claims one.
    pub fn diff_size(&self) -> Option<u64> {
        self.record
            .diff_size
            .and_then(|size| u64::try_from(size).ok())
    }

    /// The record as it was when the image's layers were listed.
    pub fn record(&self) -> &LayerRecord {
        &self.record
    }

    /// The root in which the record is.
    pub fn store_root(&self) -> &StoreRoot {
        self.storage.root(self.root)
    }

    /// The layer's directory: in the first root that has one.
    fn directory(&self) -> Result<PathBuf, Error> {
        for root in self.storage.roots() {
            let dir = root.layer_dir(&self.record.id);
            if exists(&dir)? {
                return Ok(dir);
            }
        }
        Err(Error::LayerDirectoryMissing {
            layer: self.record.id.clone(),
        })
    }

    /// The layer's file `name` among records and tar-splits: beside the record, or in another root of
    /// a split store.
    fn beside_record(&self, name: &Path) -> Result<Option<PathBuf>, Error> {
        let own = self.store_root();
        let others =
            self.storage.roots().iter().filter(|root| {
                root.kind() != crate::RootKind::Additional && root.path() != own.path()
            });
        for root in std::iter::once(own).chain(others) {
            let path = root.layers_dir().join(name);
            if exists(&path)? {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }

    fn tar_split_path(&self) -> Result<Option<PathBuf>, Error> {
        self.beside_record(Path::new(&format!("{}.tar-split.gz", self.record.id)))
    }

    /// The table of contents of a partial pull.
    fn toc_path(&self) -> Result<Option<PathBuf>, Error> {
        self.big_data("zstd-chunked-manifest")
    }

    /// An item of the layer's big data, if there is one.
    fn big_data(&self, key: &str) -> Result<Option<PathBuf>, Error> {
        self.beside_record(&Path::new(self.record.id.as_str()).join(big_data_file_name(key)))
    }

    /// How the layer's files are kept.
    pub fn kind(&self) -> Result<LayerKind, Error> {
        self.kind_of(&self.directory()?)
    }

    fn kind_of(&self, dir: &Path) -> Result<LayerKind, Error> {
        const LAYER_DATA: &str = "zstd-chunked-layer-data";
        if self.store_root().driver() == Driver::Vfs {
            return Ok(LayerKind::Tree);
        }
        if exists(&dir.join("additionallayer"))? {
            return Ok(LayerKind::AdditionalLayerStore);
        }
        let diff = dir.join("diff");
        if diff
            .symlink_metadata()
            .map_err(io_error(&diff))?
            .is_symlink()
        {
            return Ok(LayerKind::Composefs);
        }
        if let Some(path) = self.big_data(LAYER_DATA)?
            && let Some(bytes) = read_limited(&path, 1 << 20)?
        {
            let data: ChunkedData =
                serde_json::from_slice(&bytes).map_err(|source| Error::Json { path, source })?;
            return Ok(if data.format == 0 {
                LayerKind::Tree
            } else {
                LayerKind::Flat
            });
        }
        if exists(&dir.join("composefs-data"))? {
            return Ok(LayerKind::Composefs);
        }
        Ok(LayerKind::Tree)
    }

    /// Checks the layer's record under the read lock of its store, and opens the layer.
    ///
    /// Fails if the layer is incomplete, was removed or replaced since the image's layers were listed,
    /// or is kept in a way that cannot be read. No lock is held when this returns.
    pub fn open(&self) -> Result<OpenLayer, Error> {
        let layer = || self.record.id.clone();
        let lock = self.store_root().lock_layers(self.storage.interrupt())?;
        self.check_unchanged(lock.as_ref())?;
        if self.record.flags.incomplete {
            return Err(Error::LayerIncomplete { layer: layer() });
        }
        let dir = self.directory()?;
        OpenLayer::new(self, &dir, self.kind_of(&dir)?)
    }

    /// If something was written since the record was read: whether the record is still the same.
    fn check_unchanged(&self, lock: Option<&ReadLock>) -> Result<(), Error> {
        let Some(held) = lock else { return Ok(()) };
        if !held.changed_since(&self.mark)? {
            return Ok(());
        }
        let (records, _) = self.store_root().layer_records_under(lock)?;
        let now = records.iter().find(|record| record.id == self.record.id);
        match now {
            Some(now)
                if now.flags.incomplete == self.record.flags.incomplete
                    && now.parent == self.record.parent
                    && now.diff_digest == self.record.diff_digest
                    && now.created == self.record.created =>
            {
                Ok(())
            }
            _ => Err(Error::LayerChanged {
                layer: self.record.id.clone(),
            }),
        }
    }
}

/// Whether something is there; what cannot be said is an error, not "no".
fn exists(path: &Path) -> Result<bool, Error> {
    path.try_exists().map_err(io_error(path))
}
