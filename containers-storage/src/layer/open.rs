//! A layer being read: its tar-split and its files, without any lock.
//!
//! Files are opened beneath the layer's directory without following symlinks. A layer whose owners
//! were shifted for a user namespace has older generations `diff1`, `diff2`, … behind `diff`; a file is
//! looked for in each, newest first, and metacopy stubs, which have the right size and no data, count
//! as not there. A copy for other owners (podman 5) may have nothing but stubs; their content is in the
//! layer that was copied, the first that `lower` names. Owner, mode, times and xattrs on disk mean
//! nothing: the tar headers have them.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::image::ImageNames;
use super::toc::FlatNames;
use super::{Layer, LayerKind};
use crate::error::Error;
use crate::ids::{LayerId, LinkId};
use crate::read::{io_error, read_limited};
use crate::storage::Driver;
use crate::tar_split::{EntryName, TarSplit, TarSplitEntry};

/// More generations than id-mapped copies of a layer were ever seen to have.
const MAX_GENERATIONS: usize = 64;

/// Most bytes of a `lower` file: 500 short names, with room to spare.
const MAX_LOWER: u64 = 64 << 10;

/// `diff`, `diff1`, `diff2`, … as far as they go.
fn open_generations(dir: &Path) -> Result<Vec<OwnedFd>, Error> {
    let mut generations = Vec::new();
    for number in 0..MAX_GENERATIONS {
        let path = match number {
            0 => dir.join("diff"),
            n => dir.join(format!("diff{n}")),
        };
        match open_directory(&path, OFlags::NOFOLLOW) {
            Ok(fd) => generations.push(fd),
            Err(Errno::NOENT) if number > 0 => break,
            Err(e) => return Err(io_error(&path)(e.into())),
        }
    }
    Ok(generations)
}

/// The trees below a layer, topmost first: where overlayfs finds the content of its stubs. Links that lead
/// nowhere, or to something else than a layer's tree, are left out.
fn trees_below(layer: &Layer, dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let lower = read_limited(&dir.join("lower"), MAX_LOWER)?.unwrap_or_default();
    let lower = String::from_utf8_lossy(&lower);
    let tree = |name: &str| {
        let link: LinkId = name.trim().strip_prefix("l/")?.parse().ok()?;
        let mut roots = layer.storage.roots().iter();
        roots.find_map(|root| {
            let target = fs::read_link(root.overlay_dir().join("l").join(link.as_str())).ok()?;
            let id = target.strip_prefix("..").ok()?.parent()?.to_str()?;
            Some(root.layer_dir(&id.parse().ok()?))
        })
    };
    Ok(lower.split(':').filter_map(tree).collect())
}

/// Where the objects or the mounted tree of a composefs-backed layer are: `diff` leads there, and podman
/// follows it. What we publish has `objs` as well, which is there without any mount.
fn open_objects(dir: &Path) -> Result<OwnedFd, Error> {
    let diff = dir.join("diff");
    match open_directory(&diff, OFlags::empty()) {
        Err(Errno::NOENT) => open_directory(&dir.join("objs"), OFlags::empty())
            .map_err(|_| io_error(&diff)(Errno::NOENT.into())),
        result => result.map_err(|e| io_error(&diff)(e.into())),
    }
}

fn open_directory(path: &Path, follow: OFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | follow;
    rustix::fs::open(path, flags, Mode::empty())
}

/// What leads from the name of a tar member to a file below the layer's directory.
#[derive(Debug)]
enum Names {
    /// The name itself.
    Plain,
    /// The TOC of a partial pull.
    Flat(FlatNames),
    /// A composefs image.
    Image(Box<ImageNames>),
}

/// A layer that is being read. Threads may share it. It holds descriptors, but no lock: the engine may
/// remove the layer meanwhile, and then what is left of it cannot be read.
#[derive(Debug)]
pub struct OpenLayer {
    layer: Layer,
    kind: LayerKind,
    /// `diff`, `diff1`, …: where files are looked for, in this order.
    pub(super) generations: Vec<OwnedFd>,
    /// The directories of the layers in which the content of stubs may be.
    below: Vec<PathBuf>,
    names: Names,
    tar_split: Option<(Arc<File>, PathBuf)>,
}

impl OpenLayer {
    /// The layer whose directory is `dir`, for a caller that holds its store's lock.
    pub(super) fn new(layer: &Layer, dir: &Path, kind: LayerKind) -> Result<Self, Error> {
        let generations = match (kind, layer.store_root().driver()) {
            (LayerKind::Tree, Driver::Vfs) => {
                vec![open_directory(dir, OFlags::NOFOLLOW).map_err(|e| io_error(dir)(e.into()))?]
            }
            (LayerKind::Tree | LayerKind::Flat, _) => open_generations(dir)?,
            (LayerKind::Composefs, _) => vec![open_objects(dir)?],
            (LayerKind::AdditionalLayerStore, _) => {
                return Err(Error::UnsupportedLayer {
                    layer: layer.id().clone(),
                    kind,
                });
            }
        };
        // Stubs come into being only together with an older generation.
        let below = match generations.len() {
            0 | 1 => Vec::new(),
            _ => trees_below(layer, dir)?,
        };
        let names = match kind {
            LayerKind::Flat => {
                let toc = layer.toc_path()?.ok_or_else(|| Error::NoTableOfContents {
                    layer: layer.id().clone(),
                })?;
                Names::Flat(FlatNames::read(&toc)?)
            }
            LayerKind::Composefs => {
                let image = dir.join("composefs-data/composefs.blob");
                // Without an image `diff` leads to a tree that is mounted.
                ImageNames::read(layer.id(), &image)?
                    .map_or(Names::Plain, |names| Names::Image(Box::new(names)))
            }
            LayerKind::Tree | LayerKind::AdditionalLayerStore => Names::Plain,
        };
        let tar_split = match (&layer.synthetic, layer.tar_split_path()?) {
            (Some(file), _) => Some((Arc::clone(file), "a synthetic tar-split".into())),
            (None, Some(path)) => {
                let file = File::open(&path).map_err(io_error(&path))?;
                Some((Arc::new(file), path))
            }
            (None, None) => None,
        };
        Ok(Self {
            layer: layer.clone(),
            kind,
            generations,
            below,
            names,
            tar_split,
        })
    }

    /// The layer.
    pub fn layer(&self) -> &Layer {
        &self.layer
    }

    /// How its files are kept.
    pub fn kind(&self) -> LayerKind {
        self.kind
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
        let leaves = || unsafe_file("leaves the layer's directory");
        let name_beneath = name.beneath().ok_or_else(leaves)?;
        let path = match &self.names {
            Names::Plain => Some(name_beneath),
            Names::Flat(names) => names.path(&name_beneath).map(String::into_bytes),
            Names::Image(names) => match names.path(&name_beneath) {
                Some(path) => Some(EntryName::from(path).beneath().ok_or_else(leaves)?),
                None => None,
            },
        };
        let Some(path) = path else {
            return Err(Error::FileMissing {
                layer: self.layer.id().clone(),
                name: name.clone(),
            });
        };
        let open_in = |tree: &OwnedFd| -> Result<Entry, Error> {
            // Opening a fifo or device in place of the file must have no effect.
            let flags = OFlags::RDONLY
                | OFlags::NONBLOCK
                | OFlags::NOCTTY
                | OFlags::NOFOLLOW
                | OFlags::CLOEXEC;
            let resolve =
                ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            let path = path.as_slice();
            let fd = match rustix::fs::openat2(tree, path, flags, Mode::empty(), resolve) {
                Ok(fd) => fd,
                Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Entry::None),
                Err(Errno::LOOP) => return Err(unsafe_file("leads through a symlink")),
                Err(Errno::XDEV) => return Err(unsafe_file("leaves the layer's directory")),
                Err(Errno::NXIO) => return Err(unsafe_file("is not a regular file")),
                Err(e) => return Err(unreadable(e.into())),
            };
            let stat = rustix::fs::fstat(&fd).map_err(|e| unreadable(e.into()))?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                return Err(unsafe_file("is not a regular file"));
            }
            if self.generations.len() > 1
                && is_metacopy_stub(&fd).map_err(|e| unreadable(e.into()))?
            {
                return Ok(Entry::Stub);
            }
            Ok(Entry::File(File::from(fd)))
        };
        let mut is_stub = false;
        for generation in &self.generations {
            match open_in(generation)? {
                Entry::File(file) => return Ok(file),
                Entry::Stub => is_stub = true,
                Entry::None => {}
            }
        }
        if is_stub {
            for layer in &self.below {
                // One that is going, or that no tree is kept of, has nothing for us.
                for generation in open_generations(layer).unwrap_or_default() {
                    if let Entry::File(file) = open_in(&generation)? {
                        return Ok(file);
                    }
                }
            }
        }
        // Perhaps because the layer is being removed, which then is what there is to say.
        self.check_unchanged()?;
        Err(Error::FileMissing {
            layer: self.layer.id().clone(),
            name: name.clone(),
        })
    }
}

/// What a tree has at a path.
enum Entry {
    File(File),
    Stub,
    None,
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
