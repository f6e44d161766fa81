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

use crate::conf::{Environment, StorageConf, is_overlay};
use crate::digest::Digest;
use crate::error::Error;
use crate::ids::{ImageId, LayerId};
use crate::image::Image;
use crate::lock::{LastWrite, LockError, ReadLock};
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

/// One directory with `overlay`, `overlay-images` and `overlay-layers` below it.
#[derive(Debug, Clone)]
pub struct StoreRoot {
    path: PathBuf,
    kind: RootKind,
    /// Where volatile records are, if not beside the others.
    volatile: Option<PathBuf>,
}

impl StoreRoot {
    /// The root directory `path`, whether it is a store or not.
    pub fn new(path: PathBuf, kind: RootKind) -> Self {
        Self {
            path,
            kind,
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

    /// The directory of the layers' directories and links.
    pub fn overlay_dir(&self) -> PathBuf {
        self.path.join("overlay")
    }

    /// The directory of the layers' records, lock, tar-splits and big data.
    pub fn layers_dir(&self) -> PathBuf {
        self.path.join("overlay-layers")
    }

    /// The directory of the images' records, lock and big data.
    pub fn images_dir(&self) -> PathBuf {
        self.path.join("overlay-images")
    }

    fn containers_dir(&self) -> PathBuf {
        self.path.join("overlay-containers")
    }

    fn volatile_file(&self, dir: &str, file: &str) -> PathBuf {
        self.volatile
            .as_ref()
            .unwrap_or(&self.path)
            .join(dir)
            .join(file)
    }

    /// Waits for the read lock `lock`. `None` where there is nothing to lock: no records yet, or a
    /// read-only file system without the lock file.
    fn read_lock(&self, lock: &Path, records: &Path) -> Result<Option<ReadLock>, Error> {
        match ReadLock::acquire(lock) {
            Ok(held) => Ok(Some(held)),
            Err(LockError { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                if !records.try_exists().map_err(io_error(records))? {
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
    pub(crate) fn lock_layers(&self) -> Result<Option<ReadLock>, Error> {
        let dir = self.layers_dir();
        self.read_lock(&dir.join("layers.lock"), &dir.join("layers.json"))
    }

    /// The image records, read under the read lock.
    pub fn image_records(&self) -> Result<Vec<ImageRecord>, Error> {
        let dir = self.images_dir();
        let records = dir.join("images.json");
        let _lock = self.read_lock(&dir.join("images.lock"), &records)?;
        read_records(&records)
    }

    /// The layer records, volatile ones last, read under the read lock.
    pub fn layer_records(&self) -> Result<Vec<LayerRecord>, Error> {
        let lock = self.lock_layers()?;
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
            &self.volatile_file("overlay-layers", "volatile-layers.json"),
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
            records.extend(read(
                &self.volatile_file("overlay-containers", "containers.json"),
            )?);
        }
        records.extend(read(
            &self.volatile_file("overlay-containers", "volatile-containers.json"),
        )?);
        Ok(records)
    }
}

/// An open store. Cheap to clone; a clone is the same store.
#[derive(Debug, Clone)]
pub struct Storage {
    inner: Arc<Inner>,
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
    /// Opens the store that `options` name. The main root must exist and must be an overlay store (or
    /// empty); additional stores that do not exist are left out.
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
        if let Some(driver) = &conf.driver
            && !is_overlay(driver)
        {
            return Err(Error::UnsupportedDriver {
                root: main,
                driver: driver.clone(),
            });
        }
        if !main.join("overlay-images").exists()
            && let Some(driver) = other_driver(&main)?
        {
            return Err(Error::UnsupportedDriver { root: main, driver });
        }

        let mut roots = vec![StoreRoot {
            volatile: conf.transient_store.then(|| conf.runroot.clone()),
            ..StoreRoot::new(main, RootKind::Main)
        }];
        if let Some(path) = &conf.imagestore {
            roots.push(StoreRoot::new(path.clone(), RootKind::ImageStore));
        }
        for path in &conf.additional_image_stores {
            if path.is_dir() {
                roots.push(StoreRoot::new(path.clone(), RootKind::Additional));
            } else {
                // podman itself stops here; a reader can do without.
                tracing::warn!(store = %path.display(), "additional image store does not exist");
            }
        }
        Ok(Self {
            inner: Arc::new(Inner { conf, roots }),
        })
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
            for record in self.root(root).image_records()? {
                if seen.insert(record.id.clone()) {
                    images.push(Image::new(self.clone(), root, record));
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
            let lock = store.lock_layers()?;
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

/// The name of another driver that this root was used with.
fn other_driver(root: &Path) -> Result<Option<String>, Error> {
    for entry in root.read_dir().map_err(io_error(root))? {
        let name = entry.map_err(io_error(root))?.file_name();
        if let Some(driver) = name.to_str().and_then(|name| name.strip_suffix("-images"))
            && driver != "overlay"
        {
            return Ok(Some(driver.to_owned()));
        }
    }
    Ok(None)
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
