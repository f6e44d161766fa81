//! A layer: its record, its tar-split and its files.
//!
//! Files are opened beneath the layer's directory without following symlinks. A layer whose owners
//! were shifted for a user namespace has older generations `diff1`, `diff2`, … behind `diff`; a file is
//! looked for in each, newest first, and metacopy stubs, which have the right size and no data, count
//! as not there. Owner, mode, times and xattrs on disk mean nothing: the tar headers have them.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use serde::Deserialize;

use crate::digest::DiffId;
use crate::error::Error;
use crate::ids::LayerId;
use crate::lock::{LastWrite, ReadLock};
use crate::own_store::big_data_file_name;
use crate::read::{io_error, read_limited};
use crate::records::LayerRecord;
use crate::storage::{FoundLayer, Storage, StoreRoot};
use crate::tar_split::{EntryName, TarSplit, TarSplitEntry};

/// More generations than id-mapped copies of a layer were ever seen to have.
const MAX_GENERATIONS: usize = 64;

/// How a layer's files are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerKind {
    /// As a directory tree.
    Tree,
    /// By the SHA-256 of their content, as a partial pull with `use_composefs` leaves them.
    Flat,
    /// In an additional layer store.
    AdditionalLayerStore,
    /// In a composefs image or an object store that another program made.
    Foreign,
}

impl fmt::Display for LayerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tree => "a directory tree",
            Self::Flat => "a flat object directory of a partial pull",
            Self::AdditionalLayerStore => "part of an additional layer store",
            Self::Foreign => "backed by a composefs image or object store",
        })
    }
}

/// A layer of an image. Cheap to clone. To read it, take its lock.
#[derive(Clone)]
pub struct Layer {
    storage: Storage,
    root: usize,
    record: LayerRecord,
    mark: LastWrite,
    diff_id: DiffId,
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
        self.storage
            .roots()
            .iter()
            .map(|root| root.overlay_dir().join(self.record.id.as_str()))
            .find(|dir| dir.is_dir())
            .ok_or_else(|| Error::LayerDirectoryMissing {
                layer: self.record.id.clone(),
            })
    }

    /// The layer's file `name` among records and tar-splits: beside the record, or in another root of
    /// a split store.
    fn beside_record(&self, name: &Path) -> Option<PathBuf> {
        let own = self.store_root();
        std::iter::once(own)
            .chain(self.storage.roots().iter().filter(|root| {
                root.kind() != crate::RootKind::Additional && root.path() != own.path()
            }))
            .map(|root| root.layers_dir().join(name))
            .find(|path| path.exists())
    }

    /// How the layer's files are kept.
    pub fn kind(&self) -> Result<LayerKind, Error> {
        self.kind_of(&self.directory()?)
    }

    fn kind_of(&self, dir: &Path) -> Result<LayerKind, Error> {
        const LAYER_DATA: &str = "zstd-chunked-layer-data";
        if dir.join("additionallayer").exists() {
            return Ok(LayerKind::AdditionalLayerStore);
        }
        let diff = dir.join("diff");
        if diff
            .symlink_metadata()
            .map_err(io_error(&diff))?
            .is_symlink()
        {
            return Ok(LayerKind::Foreign);
        }
        let name = Path::new(self.record.id.as_str()).join(big_data_file_name(LAYER_DATA));
        if let Some(path) = self.beside_record(&name)
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
        if dir.join("composefs-data").exists() {
            return Ok(LayerKind::Foreign);
        }
        Ok(LayerKind::Tree)
    }

    /// Waits for the read lock of the layer's store and opens the layer under it.
    ///
    /// Fails if the layer is incomplete, was removed or replaced since the image's layers were listed,
    /// or is kept in a way that cannot be read. While the guard lives, the engine can neither delete
    /// the layer nor create a container, so drop it as soon as the layer is read.
    pub fn lock(&self) -> Result<LayerGuard<'_>, Error> {
        let layer = || self.record.id.clone();
        let lock = self.store_root().lock_layers()?;
        self.check_unchanged(lock.as_ref())?;
        if self.record.flags.incomplete {
            return Err(Error::LayerIncomplete { layer: layer() });
        }
        let dir = self.directory()?;
        match self.kind_of(&dir)? {
            LayerKind::Tree => {}
            kind => {
                return Err(Error::UnsupportedLayer {
                    layer: layer(),
                    kind,
                });
            }
        }
        Ok(LayerGuard {
            layer: self,
            generations: open_generations(&dir)?,
            lock,
        })
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
            Some(now) if now.flags.incomplete => Err(Error::LayerIncomplete {
                layer: now.id.clone(),
            }),
            Some(now)
                if now.parent == self.record.parent
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

/// `diff`, `diff1`, `diff2`, … as far as they go.
fn open_generations(dir: &Path) -> Result<Vec<OwnedFd>, Error> {
    let mut generations = Vec::new();
    for number in 0..MAX_GENERATIONS {
        let path = match number {
            0 => dir.join("diff"),
            n => dir.join(format!("diff{n}")),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(fd) => generations.push(fd),
            Err(Errno::NOENT) if number > 0 => break,
            Err(e) => return Err(io_error(&path)(e.into())),
        }
    }
    Ok(generations)
}

/// A layer under the read lock of its store. Threads may share it.
#[derive(Debug)]
pub struct LayerGuard<'a> {
    layer: &'a Layer,
    generations: Vec<OwnedFd>,
    /// `None` on a read-only file system without the lock file.
    #[expect(dead_code, reason = "held, not used")]
    lock: Option<ReadLock>,
}

impl LayerGuard<'_> {
    /// The layer.
    pub fn layer(&self) -> &Layer {
        self.layer
    }

    /// The layer's tar-split, from the beginning.
    pub fn tar_split(&self) -> Result<LayerTarSplit, Error> {
        let layer = || self.layer.id().clone();
        let name = format!("{}.tar-split.gz", self.layer.id());
        let path = self
            .layer
            .beside_record(Path::new(&name))
            .ok_or_else(|| Error::NoTarSplit { layer: layer() })?;
        let file = File::open(&path).map_err(io_error(&path))?;
        Ok(LayerTarSplit {
            entries: TarSplit::new(file),
            layer: layer(),
            path,
        })
    }

    /// Opens the file that the tar-split calls `name`, for reading. It is a regular file.
    pub fn open_file(&self, name: &EntryName) -> Result<File, Error> {
        let unsafe_file = |problem| Error::UnsafeFile {
            layer: self.layer.id().clone(),
            name: name.clone(),
            problem,
        };
        let unreadable = |source: io::Error| Error::FileUnreadable {
            layer: self.layer.id().clone(),
            name: name.clone(),
            source,
        };
        let path = name
            .beneath()
            .ok_or_else(|| unsafe_file("leaves the layer's directory"))?;
        // Opening a fifo or device in place of the file must have no effect.
        let flags =
            OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        for generation in &self.generations {
            let fd = match rustix::fs::openat2(
                generation,
                path.as_slice(),
                flags,
                Mode::empty(),
                resolve,
            ) {
                Ok(fd) => fd,
                Err(Errno::NOENT | Errno::NOTDIR) => continue,
                Err(Errno::LOOP) => return Err(unsafe_file("leads through a symlink")),
                Err(Errno::XDEV) => return Err(unsafe_file("leaves the layer's directory")),
                Err(Errno::NXIO) => return Err(unsafe_file("is not a regular file")),
                Err(e) => return Err(unreadable(e.into())),
            };
            let stat = rustix::fs::fstat(&fd).map_err(|e| unreadable(e.into()))?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                return Err(unsafe_file("is not a regular file"));
            }
            // Stubs come into being only together with an older generation.
            if self.generations.len() > 1
                && is_metacopy_stub(&fd).map_err(|e| unreadable(e.into()))?
            {
                continue;
            }
            return Ok(File::from(fd));
        }
        Err(Error::FileMissing {
            layer: self.layer.id().clone(),
            name: name.clone(),
        })
    }
}

/// The entries of a layer's tar-split, with errors that name the layer. Ends after the first error.
#[derive(Debug)]
pub struct LayerTarSplit {
    entries: TarSplit<File>,
    layer: LayerId,
    path: PathBuf,
}

impl Iterator for LayerTarSplit {
    type Item = Result<TarSplitEntry, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let entry = self.entries.next()?;
        Some(entry.map_err(|source| Error::TarSplit {
            layer: self.layer.clone(),
            path: self.path.clone(),
            source,
        }))
    }
}

fn is_metacopy_stub(fd: &OwnedFd) -> Result<bool, Errno> {
    for name in ["trusted.overlay.metacopy", "user.overlay.metacopy"] {
        match rustix::fs::fgetxattr_query(fd, name) {
            Ok(_) => return Ok(true),
            Err(Errno::NODATA | Errno::NOTSUP) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(false)
}
