//! What is in a repository: streams, images, refs, objects and staging directories.
//!
//! Follows the composefs repository format, sections "link targets" and "garbage collection": only what
//! is well formed is an entry. Everything else is reported beside the entries as [`Foreign`], and is
//! never followed, interpreted or an error, so that one odd file doesn't hide the rest.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use composefs_image::VerityDigest;
use rustix::fs::{AtFlags, Dir, FileType, FlockOperation};
use rustix::io::Errno;
use serde::Serialize;

use crate::PRIVATE_DIRECTORY;
use crate::batch::{STAGING, remove_staging};
use crate::durable;
use crate::error::{Error, Result};
use crate::exclusive::Exclusive;
use crate::names::{
    Category, REFS, RefPath, StreamName, Tag, parse_digest, parse_object_target, parse_ref_target,
};
use crate::repo::{OBJECTS, Repository};
use failpoint::failpoint;

/// The entries of a directory, and what else is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing<T> {
    /// The well-formed entries, sorted by name.
    pub entries: Vec<T>,
    /// The rest.
    pub foreign: Vec<Foreign>,
}

/// Something that doesn't belong where it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Foreign {
    /// Its path, relative to the repository.
    pub path: PathBuf,
    /// What is odd about it.
    pub oddity: Oddity,
}

/// What is odd about a [`Foreign`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Oddity {
    /// Its name isn't one that belongs here.
    #[error("its name does not belong here")]
    Name,
    /// It is a link to this object, and its name isn't one that belongs here.
    #[error("its name does not belong here; it points at object {0}")]
    LinkName(VerityDigest),
    /// It should be a symlink.
    #[error("it is not a symlink")]
    NotALink,
    /// It should be a regular file.
    #[error("it is not a regular file")]
    NotAFile,
    /// It should be a directory.
    #[error("it is not a directory")]
    NotADirectory,
    /// It is a symlink with this target, which isn't what belongs here.
    #[error("it points at {}", .0.display())]
    Target(PathBuf),
}

/// A link in `streams/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamLink {
    /// The stream's name.
    pub name: StreamName,
    /// The object it points at, which may be missing.
    pub object: VerityDigest,
}

/// A link in `images/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageLink {
    /// The digest that is the link's name.
    pub name: VerityDigest,
    /// The object it points at, which may be missing; the same digest in a sound repository.
    pub object: VerityDigest,
}

/// A ref.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ref {
    /// Its path below `refs/`.
    pub path: RefPath,
    /// The name of the stream or image it points at, which may be missing.
    pub target: String,
}

/// A directory in which a batch stages its objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StagingDir {
    /// Its name.
    pub name: String,
    /// Whether its batch is alive.
    pub owner: StagingOwner,
    /// The bytes in its files.
    pub bytes: u64,
}

/// Whether the batch of a staging directory is alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StagingOwner {
    /// It is being written.
    Alive,
    /// Its process is gone.
    Gone,
}

/// A directory entry, read with its type.
struct Entry {
    name: std::ffi::OsString,
    kind: FileType,
}

impl Repository {
    /// The object that the stream points at; `None` if there is no such stream. That the object exists
    /// isn't checked.
    pub fn stream(&self, name: &StreamName) -> Result<Option<VerityDigest>> {
        self.entry_object(Category::Streams, name.as_str())
    }

    /// Whether `images/` has this image.
    pub fn has_image(&self, digest: &VerityDigest) -> Result<bool> {
        self.check_algorithm(digest)?;
        let object = self.entry_object(Category::Images, &digest.to_string())?;
        Ok(object == Some(*digest))
    }

    /// The name of the stream or image that a ref points at; `None` if there is no such ref.
    pub fn reference(&self, category: Category, path: &RefPath) -> Result<Option<String>> {
        let relative = refs_directory(category).join(path.as_path());
        match self.read_link(&relative)? {
            None => Ok(None),
            Some(target) => match parse_ref_target(&target) {
                Some(name) => Ok(Some(name)),
                None => Err(self.malformed(&relative, &target)),
            },
        }
    }

    /// When a ref was made to point at what it points at; `None` if there is no such ref.
    pub fn ref_time(&self, category: Category, path: &RefPath) -> Result<Option<SystemTime>> {
        let relative = refs_directory(category).join(path.as_path());
        match rustix::fs::statat(self.dir(), &relative, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => {
                // A time before 1970 is as good as 1970.
                let since = u64::try_from(stat.st_mtime).unwrap_or_default();
                Ok(SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(since)))
            }
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(Error::io("examine", self.path().join(relative))(error)),
        }
    }

    /// The name of the stream that a tag points at; `None` if there is no such tag.
    pub fn tag(&self, tag: &Tag) -> Result<Option<String>> {
        self.reference(Category::Streams, &RefPath::of_tag(tag))
    }

    /// Removes a ref, durably; returns whether there was one. What it kept alive stays until the next
    /// collection.
    pub fn remove_ref(&self, category: Category, path: &RefPath) -> Result<bool> {
        self.check_writable()?;
        let relative = refs_directory(category).join(path.as_path());
        let (Some(parent), Some(name)) = (relative.parent(), relative.file_name()) else {
            return Ok(false);
        };
        let Some(dir) = durable::open_dir(self.dir(), parent, self.path())? else {
            return Ok(false);
        };
        let parent_path = self.path().join(parent);
        failpoint("remove-ref");
        let removed = durable::unlink(&dir, name, &parent_path)?;
        durable::sync_dir(dir, &parent_path)?;
        Ok(removed)
    }

    /// All links in `streams/`.
    pub fn streams(&self) -> Result<Listing<StreamLink>> {
        let mut listing = self.top_level(Category::Streams, |name, object| {
            let name = StreamName::new(name.to_str()?).ok()?;
            Some(StreamLink { name, object })
        })?;
        listing.entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(listing)
    }

    /// All links in `images/`.
    pub fn images(&self) -> Result<Listing<ImageLink>> {
        let mut listing = self.top_level(Category::Images, |name, object| {
            let name = parse_digest(name.as_bytes(), self.algorithm())?;
            Some(ImageLink { name, object })
        })?;
        listing.entries.sort_unstable_by_key(|link| link.name);
        Ok(listing)
    }

    /// All refs of a category, at any depth.
    pub fn refs(&self, category: Category) -> Result<Listing<Ref>> {
        let mut listing = Listing::new();
        let refs = refs_directory(category);
        let mut pending = vec![refs.clone()];
        while let Some(directory) = pending.pop() {
            for entry in self.read_dir(&directory)? {
                let path = directory.join(&entry.name);
                match entry.kind {
                    FileType::Directory => pending.push(path),
                    FileType::Symlink => {
                        let Some(target) = self.read_link(&path)? else {
                            continue;
                        };
                        let relative = path.strip_prefix(&refs).unwrap_or(&path);
                        match (RefPath::new(relative), parse_ref_target(&target)) {
                            (Ok(path), Some(target)) => listing.entries.push(Ref { path, target }),
                            (Err(_), _) => listing.foreign(path, Oddity::Name),
                            (_, None) => listing.foreign(path, Oddity::Target(to_path(&target))),
                        }
                    }
                    _ => listing.foreign(path, Oddity::NotALink),
                }
            }
        }
        listing.entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        listing.foreign.sort_unstable();
        Ok(listing)
    }

    /// The objects in `objects/<shard>/`, where the shard is the first byte of their digests. Their
    /// content isn't looked at.
    pub fn objects_in(&self, shard: u8) -> Result<Listing<VerityDigest>> {
        let mut listing = Listing::new();
        let prefix = format!("{shard:02x}");
        let directory = Path::new(OBJECTS).join(&prefix);
        let mut digits = prefix.into_bytes();
        self.for_each_entry(&directory, |name, kind| {
            digits.truncate(2);
            digits.extend_from_slice(name);
            match (parse_digest(&digits, self.algorithm()), kind) {
                (Some(digest), FileType::RegularFile) => listing.entries.push(digest),
                (parsed, _) => {
                    let oddity = match parsed {
                        Some(_) => Oddity::NotAFile,
                        None => Oddity::Name,
                    };
                    listing.foreign(directory.join(std::ffi::OsStr::from_bytes(name)), oddity);
                }
            }
        })?;
        listing.entries.sort_unstable();
        listing.foreign.sort_unstable();
        Ok(listing)
    }

    /// What is in `objects/` beside the 256 directories of objects.
    pub fn foreign_in_objects(&self) -> Result<Vec<Foreign>> {
        let mut listing = Listing::<()>::new();
        for entry in self.read_dir(Path::new(OBJECTS))? {
            let is_shard = entry.name.len() == 2
                && entry
                    .name
                    .as_bytes()
                    .iter()
                    .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            let path = Path::new(OBJECTS).join(&entry.name);
            match (is_shard, entry.kind) {
                (true, FileType::Directory) => {}
                (true, _) => listing.foreign(path, Oddity::NotADirectory),
                (false, _) => listing.foreign(path, Oddity::Name),
            }
        }
        listing.foreign.sort_unstable();
        Ok(listing.foreign)
    }

    /// The staging directories of all batches, those of other processes included.
    pub fn staging(&self) -> Result<Vec<StagingDir>> {
        let parent = Path::new(PRIVATE_DIRECTORY).join(STAGING);
        let mut all = Vec::new();
        for entry in self.read_dir(&parent)? {
            let (FileType::Directory, Ok(name)) = (entry.kind, entry.name.into_string()) else {
                continue;
            };
            let path = parent.join(&name);
            let Some(dir) = durable::open_dir(self.dir(), &path, self.path())? else {
                continue;
            };
            let mut bytes = 0_u64;
            for file in self.read_dir(&path)? {
                match rustix::fs::statat(&dir, &file.name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => bytes = bytes.saturating_add(stat.st_size as u64),
                    Err(Errno::NOENT) => {}
                    Err(error) => {
                        let path = self.path().join(path).join(file.name);
                        return Err(Error::io("examine", path)(error));
                    }
                }
            }
            let owner = if self.is_abandoned(&dir, &path)? {
                StagingOwner::Gone
            } else {
                StagingOwner::Alive
            };
            all.push(StagingDir { name, owner, bytes });
        }
        all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// Whether there is a top-level entry of this name.
    pub(crate) fn has_entry(&self, category: Category, name: &str) -> Result<bool> {
        Ok(self.entry_object(category, name)?.is_some())
    }

    fn entry_object(&self, category: Category, name: &str) -> Result<Option<VerityDigest>> {
        let relative = Path::new(category.directory()).join(name);
        let Some(target) = self.read_link(&relative)? else {
            return Ok(None);
        };
        match parse_object_target(&target, self.algorithm()) {
            Some(digest) => Ok(Some(digest)),
            None => Err(self.malformed(&relative, &target)),
        }
    }

    fn top_level<T>(
        &self,
        category: Category,
        entry_of: impl Fn(&std::ffi::OsStr, VerityDigest) -> Option<T>,
    ) -> Result<Listing<T>> {
        let mut listing = Listing::new();
        let directory = Path::new(category.directory());
        for entry in self.read_dir(directory)? {
            let path = directory.join(&entry.name);
            match entry.kind {
                FileType::Directory if entry.name == REFS => {}
                FileType::Symlink => {
                    let Some(target) = self.read_link(&path)? else {
                        continue;
                    };
                    let Some(object) = parse_object_target(&target, self.algorithm()) else {
                        listing.foreign(path, Oddity::Target(to_path(&target)));
                        continue;
                    };
                    match entry_of(&entry.name, object) {
                        Some(entry) => listing.entries.push(entry),
                        None => listing.foreign(path, Oddity::LinkName(object)),
                    }
                }
                _ => listing.foreign(path, Oddity::NotALink),
            }
        }
        listing.foreign.sort_unstable();
        Ok(listing)
    }

    /// The target of a symlink, relative to the repository; `None` if there is nothing of this name.
    fn read_link(&self, relative: &Path) -> Result<Option<Vec<u8>>> {
        match rustix::fs::readlinkat(self.dir(), relative, Vec::new()) {
            Ok(target) => Ok(Some(target.into_bytes())),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(Error::io("read link", self.path().join(relative))(error)),
        }
    }

    /// The entries of a directory, relative to the repository; none if it doesn't exist.
    fn read_dir(&self, relative: &Path) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        self.for_each_entry(relative, |name, kind| {
            let name = std::ffi::OsStr::from_bytes(name).to_owned();
            entries.push(Entry { name, kind });
        })?;
        Ok(entries)
    }

    fn for_each_entry(&self, relative: &Path, mut act: impl FnMut(&[u8], FileType)) -> Result<()> {
        let Some(dir) = durable::open_dir(self.dir(), relative, self.path())? else {
            return Ok(());
        };
        let failed = |error: Errno| Error::io("list", self.path().join(relative))(error);
        for entry in Dir::read_from(&dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => {
                    match rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                        Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                        Err(Errno::NOENT) => continue,
                        Err(error) => return Err(failed(error)),
                    }
                }
                kind => kind,
            };
            act(name.to_bytes(), kind);
        }
        Ok(())
    }

    fn malformed(&self, relative: &Path, target: &[u8]) -> Error {
        Error::MalformedLink {
            path: self.path().join(relative),
            target: to_path(target),
        }
    }

    /// Whether nobody holds the lock of a staging directory. If so, `dir` holds it now.
    fn is_abandoned(&self, dir: &OwnedFd, path: &Path) -> Result<bool> {
        match durable::flock(dir, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(Error::io("lock", self.path().join(path))(error)),
        }
    }
}

impl Exclusive<'_> {
    /// Removes the staging directory of a batch whose process is gone; returns false if it is alive, or
    /// was removed already.
    pub fn remove_staging(&self, name: &str) -> Result<bool> {
        let parent = Path::new(PRIVATE_DIRECTORY).join(STAGING);
        let name = StreamName::new(name)?;
        let path = parent.join(name.as_str());
        let Some(parent_dir) = durable::open_dir(self.dir(), &parent, self.path())? else {
            return Ok(false);
        };
        let Some(dir) = durable::open_dir(&parent_dir, name.as_str(), &self.path().join(parent))?
        else {
            return Ok(false);
        };
        if !self.is_abandoned(&dir, &path)? {
            return Ok(false);
        }
        failpoint("remove-staging");
        remove_staging(parent_dir.as_fd(), name.as_str(), &dir)
            .map_err(Error::io("remove", self.path().join(path)))?;
        Ok(true)
    }
}

impl<T> Listing<T> {
    fn new() -> Self {
        Self {
            entries: Vec::new(),
            foreign: Vec::new(),
        }
    }

    fn foreign(&mut self, path: PathBuf, oddity: Oddity) {
        self.foreign.push(Foreign { path, oddity });
    }
}

fn refs_directory(category: Category) -> PathBuf {
    Path::new(category.directory()).join(REFS)
}

fn to_path(target: &[u8]) -> PathBuf {
    PathBuf::from(std::ffi::OsStr::from_bytes(target))
}
