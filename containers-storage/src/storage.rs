//! A store as one or several roots, and how an image is found in it.
//!
//! A user's store is a main root, perhaps a second root for images (a *split* store), and any number of
//! read-only additional image stores. Records are searched in that order and the first hit wins.
//! Nothing here holds a lock when it returns.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;

use crate::conf::{Environment, StorageConf};
use crate::digest::Digest;
use crate::error::Error;
use crate::ids::{ImageId, LayerId};
use crate::image::Image;
use crate::lock::{Interrupt, LastWrite, LockError, ReadLock};
use crate::read::{io_error, read_records};
use crate::records::{ContainerRecord, ImageRecord, LayerRecord};

/// Which store to open.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// A root to use alone, as podman's `--root`: without additional stores and driver options. It takes
    /// precedence over `conf`.
    pub root: Option<PathBuf>,
    /// A configuration that was read already; without it and without `root` it is discovered.
    pub conf: Option<StorageConf>,
}

/// What a root is in its store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootKind {
    /// The graph root.
    Main,
    /// The root for images of a split store.
    ImageStore,
    /// A read-only additional image store.
    Additional,
}

/// How a store keeps the files of its layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// `overlay/ID/diff`: each layer's own files.
    Overlay,
    /// `vfs/dir/ID`: the whole tree up to a layer.
    Vfs,
}

impl Driver {
    /// The name by which configuration and directories call the driver.
    pub fn name(self) -> &'static str {
        match self {
            Self::Overlay => "overlay",
            Self::Vfs => "vfs",
        }
    }

    /// The driver that a configuration names.
    fn named(name: &str) -> Option<Self> {
        match name {
            "overlay" | "overlay2" => Some(Self::Overlay),
            "vfs" => Some(Self::Vfs),
            _ => None,
        }
    }

    /// The directory `DRIVER-WHAT` of a root.
    fn dir(self, root: &Path, what: &str) -> PathBuf {
        root.join(format!("{}-{what}", self.name()))
    }
}

/// One directory with `DRIVER`, `DRIVER-images` and `DRIVER-layers` below it.
#[derive(Debug, Clone)]
pub struct StoreRoot {
    path: PathBuf,
    kind: RootKind,
    driver: Driver,
    /// Where volatile records are, if not beside the others.
    volatile: Option<PathBuf>,
}

impl StoreRoot {
    /// The root directory `path` of the overlay driver, whether it is a store or not.
    pub fn new(path: PathBuf, kind: RootKind) -> Self {
        Self {
            path,
            kind,
            driver: Driver::Overlay,
            volatile: None,
        }
    }

    /// The root directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the root is in its store.
    pub fn kind(&self) -> RootKind {
        self.kind
    }

    /// How the root keeps the files of its layers.
    pub fn driver(&self) -> Driver {
        self.driver
    }

    /// The overlay driver's directory: layers' directories and links.
    pub fn overlay_dir(&self) -> PathBuf {
        self.path.join("overlay")
    }

    /// The directory that a layer has here, if it has one.
    pub(crate) fn layer_dir(&self, layer: &LayerId) -> PathBuf {
        match self.driver {
            Driver::Overlay => self.overlay_dir().join(layer.as_str()),
            Driver::Vfs => self.path.join("vfs/dir").join(layer.as_str()),
        }
    }

    /// The directory of the layers' records, lock, tar-splits and big data.
    pub fn layers_dir(&self) -> PathBuf {
        self.driver.dir(&self.path, "layers")
    }

    /// The directory of the images' records, lock and big data.
    pub fn images_dir(&self) -> PathBuf {
        self.driver.dir(&self.path, "images")
    }

    fn containers_dir(&self) -> PathBuf {
        self.driver.dir(&self.path, "containers")
    }

    fn volatile_file(&self, what: &str, file: &str) -> PathBuf {
        let root = self.volatile.as_ref().unwrap_or(&self.path);
        self.driver.dir(root, what).join(file)
    }

    /// Waits for the read lock `lock`. `None` where there is nothing to lock: no records yet, or a lock
    /// file is missing where no engine could make one: in an additional store, or on a read-only file
    /// system. Nobody who locks writes there.
    fn read_lock(
        &self,
        lock: &Path,
        records: &Path,
        interrupt: &Interrupt,
    ) -> Result<Option<ReadLock>, Error> {
        match ReadLock::acquire_unless(lock, interrupt) {
            Ok(Some(held)) => Ok(Some(held)),
            Ok(None) => Err(Error::Interrupted {
                lock: lock.to_owned(),
            }),
            Err(LockError { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                if self.kind == RootKind::Additional
                    || !records.try_exists().map_err(io_error(records))?
                {
                    return Ok(None);
                }
                let fs =
                    rustix::fs::statvfs(&self.path).map_err(|e| io_error(&self.path)(e.into()))?;
                if fs.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
                    Ok(None)
                } else {
                    Err(Error::NoLockFile {
                        root: self.path.clone(),
                        lock: lock.to_owned(),
                    })
                }
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Waits for the read lock that protects the layers' records, tar-splits and directories.
    pub(crate) fn lock_layers(&self, interrupt: &Interrupt) -> Result<Option<ReadLock>, Error> {
        let dir = self.layers_dir();
        self.read_lock(
            &dir.join("layers.lock"),
            &dir.join("layers.json"),
            interrupt,
        )
    }

    /// The image records, read under the read lock.
    pub fn image_records(&self) -> Result<Vec<ImageRecord>, Error> {
        let (records, _) = self.marked_image_records(&Interrupt::never())?;
        Ok(records)
    }

    /// The same with the mark of the last writer.
    pub(crate) fn marked_image_records(
        &self,
        interrupt: &Interrupt,
    ) -> Result<(Vec<ImageRecord>, LastWrite), Error> {
        let dir = self.images_dir();
        let records = dir.join("images.json");
        let lock = self.read_lock(&dir.join("images.lock"), &records, interrupt)?;
        let mark = lock
            .as_ref()
            .map_or_else(|| Ok(LastWrite::default()), ReadLock::last_write)?;
        Ok((read_records(&records)?, mark))
    }

    /// The layer records, volatile ones last, read under the read lock.
    pub fn layer_records(&self) -> Result<Vec<LayerRecord>, Error> {
        let lock = self.lock_layers(&Interrupt::never())?;
        self.layer_records_under(lock.as_ref())
            .map(|(records, _)| records)
    }

    /// The layer records and the mark of the last writer, for a caller that holds the lock.
    pub(crate) fn layer_records_under(
        &self,
        lock: Option<&ReadLock>,
    ) -> Result<(Vec<LayerRecord>, LastWrite), Error> {
        let mark = lock.map_or_else(|| Ok(LastWrite::default()), ReadLock::last_write)?;
        let mut records: Vec<LayerRecord> = read_records(&self.layers_dir().join("layers.json"))?;
        records.extend(read_records::<LayerRecord>(
            &self.volatile_file("layers", "volatile-layers.json"),
        )?);
        Ok((records, mark))
    }

    /// The container records, volatile ones last. Read without a lock: each file is replaced as a
    /// whole, and a container that is just being created is not yet anybody's to rely on.
    pub fn container_records(&self) -> Result<Vec<ContainerRecord>, Error> {
        fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, Error> {
            read_records(path)
        }
        let mut records = read(&self.containers_dir().join("containers.json"))?;
        if self.volatile.is_some() {
            records.extend(read(&self.volatile_file("containers", "containers.json"))?);
        }
        records.extend(read(
            &self.volatile_file("containers", "volatile-containers.json"),
        )?);
        Ok(records)
    }
}

/// An open store. Cheap to clone; a clone is the same store.
#[derive(Debug, Clone)]
pub struct Storage {
    inner: Arc<Inner>,
    interrupt: Interrupt,
}

#[derive(Debug)]
struct Inner {
    conf: StorageConf,
    roots: Vec<StoreRoot>,
}

/// A layer record with the root it was found in and the mark of the last writer at that time.
#[derive(Debug, Clone)]
pub(crate) struct FoundLayer {
    pub(crate) root: usize,
    pub(crate) record: LayerRecord,
    pub(crate) mark: LastWrite,
}

impl Storage {
    /// Opens the store that `options` name. The main root must exist and must be a store of the overlay
    /// or vfs driver (or empty); additional stores that do not exist are left out.
    pub fn open(options: &OpenOptions) -> Result<Self, Error> {
        let environment = Environment::current();
        let conf = match (&options.root, &options.conf) {
            (Some(root), _) => StorageConf::for_root(root, &environment),
            (None, Some(conf)) => conf.clone(),
            (None, None) => StorageConf::discover(&environment)?,
        };
        Self::with_conf(conf)
    }

    fn with_conf(conf: StorageConf) -> Result<Self, Error> {
        let main = conf.graphroot.clone();
        if !main.is_dir() {
            return Err(Error::NoStore { root: main });
        }
        let driver = match &conf.driver {
            Some(name) => Driver::named(name).ok_or_else(|| Error::UnsupportedDriver {
                root: main.clone(),
                driver: name.clone(),
            })?,
            None => prior_driver(&main, &conf.driver_priority)?,
        };

        let root = |path, kind| StoreRoot {
            driver,
            ..StoreRoot::new(path, kind)
        };
        let mut roots = vec![StoreRoot {
            volatile: conf.transient_store.then(|| conf.runroot.clone()),
            ..root(main, RootKind::Main)
        }];
        if let Some(path) = &conf.imagestore {
            roots.push(root(path.clone(), RootKind::ImageStore));
        }
        for path in &conf.additional_image_stores {
            if path.is_dir() {
                roots.push(root(path.clone(), RootKind::Additional));
            } else {
                // podman itself stops here; a reader can do without.
                tracing::warn!(store = %path.display(), "additional image store does not exist");
            }
        }
        Ok(Self {
            inner: Arc::new(Inner { conf, roots }),
            interrupt: Interrupt::never(),
        })
    }

    /// The same store, waiting for locks only until `interrupt` is set.
    #[must_use]
    pub fn interrupted_by(mut self, interrupt: Interrupt) -> Self {
        self.interrupt = interrupt;
        self
    }

    pub(crate) fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// The configuration the store was opened with.
    pub fn conf(&self) -> &StorageConf {
        &self.inner.conf
    }

    /// The roots, in the order in which layers are searched.
    pub fn roots(&self) -> &[StoreRoot] {
        &self.inner.roots
    }

    pub(crate) fn root(&self, index: usize) -> &StoreRoot {
        &self.inner.roots[index]
    }

    /// All images, each ID once, in the order of the roots.
    pub fn images(&self) -> Result<Vec<Image>, Error> {
        let mut images: Vec<Image> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        // Images of a split store are in the root for images; what is left in the main root comes next.
        let mut order: Vec<usize> = (0..self.roots().len()).collect();
        order.sort_by_key(|&root| match self.root(root).kind {
            RootKind::ImageStore => 0,
            RootKind::Main => 1,
            RootKind::Additional => 2,
        });
        for root in order {
            let (records, mark) = self.root(root).marked_image_records(&self.interrupt)?;
            for record in records {
                if seen.insert(record.id.clone()) {
                    images.push(Image::new(self.clone(), root, record, mark.clone()));
                }
            }
        }
        Ok(images)
    }

    /// The image that `name` means: an ID; a name as `podman images` shows it, or without `localhost/`
    /// or `:latest`; a unique prefix of an ID; or a manifest digest, `sha256:…` or `name@sha256:…`.
    /// Tried in this order. A name is never completed by a registry.
    pub fn find_image(&self, name: &str) -> Result<Image, Error> {
        find(&self.images()?, name, &self.root(0).path).cloned()
    }

    /// The records of all layers, by ID.
    pub(crate) fn layers(&self) -> Result<HashMap<LayerId, FoundLayer>, Error> {
        let mut layers = HashMap::new();
        for (root, store) in self.roots().iter().enumerate() {
            let lock = store.lock_layers(&self.interrupt)?;
            let (records, mark) = store.layer_records_under(lock.as_ref())?;
            drop(lock);
            for record in records {
                layers
                    .entry(record.id.clone())
                    .or_insert_with(|| FoundLayer {
                        root,
                        record,
                        mark: mark.clone(),
                    });
            }
        }
        Ok(layers)
    }
}

/// The driver whose directory is in `root`, as the engine finds out which one a store was used with.
/// Overlay for an empty store. vfs counts only if `priority` names it or nothing else is there.
fn prior_driver(root: &Path, priority: &[String]) -> Result<Driver, Error> {
    const KNOWN: [&str; 5] = ["overlay", "overlay2", "vfs", "btrfs", "zfs"];
    let exists =
        |name: &&str| root.join(name).is_dir() || root.join(format!("{name}-images")).is_dir();
    let prior = priority
        .iter()
        .map(String::as_str)
        .chain(KNOWN)
        .find(|name| exists(name));
    match prior {
        None => Ok(Driver::Overlay),
        Some(name) => Driver::named(name).ok_or_else(|| Error::UnsupportedDriver {
            root: root.to_owned(),
            driver: name.to_owned(),
        }),
    }
}

/// `images` in the order of the stores; the first one that has a name wins.
fn find<'a>(images: &'a [Image], name: &str, root: &Path) -> Result<&'a Image, Error> {
    if let Some(image) = images.iter().find(|i| i.id().as_str() == name) {
        return Ok(image);
    }
    for candidate in name_candidates(name) {
        if let Some(image) = images.iter().find(|i| i.names().contains(&candidate)) {
            return Ok(image);
        }
    }

    let fitting: Vec<&Image> = if let Ok(digest) = name.parse::<Digest>() {
        if let Some(image) = images.iter().find(|i| i.id().as_str() == digest.hex()) {
            return Ok(image);
        }
        images.iter().filter(|i| i.has_digest(&digest)).collect()
    } else if let Some((repository, digest)) = name
        .rsplit_once('@')
        .and_then(|(name, digest)| Some((repository_of(name), digest.parse::<Digest>().ok()?)))
    {
        let local = format!("localhost/{repository}");
        images
            .iter()
            .filter(|i| i.has_digest(&digest))
            .filter(|i| {
                let mut names = i.names().iter().map(|name| repository_of(name));
                names.any(|name| name == repository || name == local)
            })
            .collect()
    } else if !name.is_empty() && name.bytes().all(|b| b.is_ascii_hexdigit()) {
        images
            .iter()
            .filter(|i| i.id().as_str().starts_with(name))
            .collect()
    } else {
        Vec::new()
    };

    match fitting.as_slice() {
        [image] => Ok(image),
        [] => Err(Error::ImageNotFound {
            name: name.to_owned(),
            root: root.to_owned(),
            similar: similar(images, name),
        }),
        several => Err(Error::AmbiguousImage {
            name: name.to_owned(),
            candidates: several.iter().map(|i| ImageId::clone(i.id())).collect(),
        }),
    }
}

/// The full names that `name` may stand for, best first.
fn name_candidates(name: &str) -> Vec<String> {
    let mut candidates = vec![name.to_owned(), format!("localhost/{name}")];
    if !has_tag_or_digest(name) {
        candidates.insert(1, format!("{name}:latest"));
        candidates.push(format!("localhost/{name}:latest"));
    }
    candidates
}

fn has_tag_or_digest(name: &str) -> bool {
    let last = name.rsplit('/').next().unwrap_or(name);
    name.contains('@') || last.contains(':')
}

/// A reference without its digest and tag.
fn repository_of(name: &str) -> &str {
    let name = name.split('@').next().unwrap_or(name);
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

/// Full names that end in `/name` or `/name:latest`, for the message that nothing was found.
fn similar(images: &[Image], name: &str) -> Vec<String> {
    let mut ends = vec![format!("/{name}")];
    if !has_tag_or_digest(name) {
        ends.push(format!("/{name}:latest"));
    }
    images
        .iter()
        .flat_map(Image::names)
        .filter(|full| ends.iter().any(|end| full.ends_with(end.as_str())))
        .take(3)
        .cloned()
        .collect()
}
