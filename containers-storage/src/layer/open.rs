//! A layer being read: its tar-split and its files, without any lock.
//!
//! Files are opened beneath the layer's directory without following symlinks. A layer whose owners
//! were shifted for a user namespace has older generations `diff1`, `diff2`, … behind `diff`; a file is
//! looked for in each, newest first, and metacopy stubs, which have the right size and no data, count
//! as not there. Owner, mode, times and xattrs on disk mean nothing: the tar headers have them.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::Layer;
use crate::error::Error;
use crate::ids::LayerId;
use crate::read::io_error;
use crate::storage::Driver;
use crate::tar_split::{EntryName, TarSplit, TarSplitEntry};

/// More generations than id-mapped copies of a layer were ever seen to have.
const MAX_GENERATIONS: usize = 64;

/// `diff`, `diff1`, `diff2`, … as far as they go.
fn open_generations(dir: &Path) -> Result<Vec<OwnedFd>, Error> {
    let mut generations = Vec::new();
    for number in 0..MAX_GENERATIONS {
        let path = match number {
            0 => dir.join("diff"),
            n => dir.join(format!("diff{n}")),
        };
        match open_directory(&path) {
            Ok(fd) => generations.push(fd),
            Err(Errno::NOENT) if number > 0 => break,
            Err(e) => return Err(io_error(&path)(e.into())),
        }
    }
    Ok(generations)
}

fn open_directory(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

/// A layer that is being read. Threads may share it. It holds descriptors, but no lock: the engine may
/// remove the layer meanwhile, and then what is left of it cannot be read.
#[derive(Debug)]
pub struct OpenLayer {
    layer: Layer,
    generations: Vec<OwnedFd>,
    tar_split: Option<(Arc<File>, PathBuf)>,
}

impl OpenLayer {
    /// The layer whose directory is `dir`, for a caller that holds its store's lock.
    pub(super) fn tree(layer: &Layer, dir: &Path) -> Result<Self, Error> {
        let generations = match layer.store_root().driver() {
            Driver::Overlay => open_generations(dir)?,
            Driver::Vfs => vec![open_directory(dir).map_err(|e| io_error(dir)(e.into()))?],
        };
        let name = format!("{}.tar-split.gz", layer.id());
        let tar_split = match layer.beside_record(Path::new(&name)) {
            Some(path) => {
                let file = File::open(&path).map_err(io_error(&path))?;
                Some((Arc::new(file), path))
            }
            None => None,
        };
        Ok(Self {
            layer: layer.clone(),
            generations,
            tar_split,
        })
    }

    /// The layer.
    pub fn layer(&self) -> &Layer {
        &self.layer
    }

    /// Fails if the layer's record was removed, replaced or marked incomplete since the layer was
    /// opened. If this succeeds after the last file was opened, none of them was missing or torn because
    /// of the engine. Waits for the read lock, and has released it when it returns.
    pub fn check_unchanged(&self) -> Result<(), Error> {
        let root = self.layer.store_root();
        let lock = root.lock_layers(self.layer.storage.interrupt())?;
        self.layer.check_unchanged(lock.as_ref())
    }

    /// The layer's tar-split, from the beginning.
    pub fn tar_split(&self) -> Result<LayerTarSplit, Error> {
        let (file, path) = self.tar_split.as_ref().ok_or_else(|| Error::NoTarSplit {
            layer: self.layer.id().clone(),
        })?;
        Ok(LayerTarSplit {
            entries: TarSplit::new(FromStart {
                file: Arc::clone(file),
                at: 0,
            }),
            layer: self.layer.id().clone(),
            path: path.clone(),
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
        // Perhaps because the layer is being removed, which then is what there is to say.
        self.check_unchanged()?;
        Err(Error::FileMissing {
            layer: self.layer.id().clone(),
            name: name.clone(),
        })
    }
}

/// A file read from its beginning, whoever else reads the same descriptor.
#[derive(Debug)]
struct FromStart {
    file: Arc<File>,
    at: u64,
}

impl Read for FromStart {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// The entries of a layer's tar-split, with errors that name the layer. Ends after the first error.
#[derive(Debug)]
pub struct LayerTarSplit {
    entries: TarSplit<FromStart>,
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
