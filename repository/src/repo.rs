//! Making and opening a repository.
//!
//! Follows the composefs repository format, sections "directory tree", "meta.json", "secure and
//! insecure repositories" and "locking".

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use composefs_image::{Algorithm, Format, VerityDigest};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::PRIVATE_DIRECTORY;
use crate::batch::Batch;
use crate::durable;
use crate::error::{Error, Result, Settings};
use crate::meta::{self, Formats, Meta, MetaError, Security};
use crate::sys::{self, Enabled, Measured};
use failpoint::failpoint;

const META: &str = "meta.json";
pub(crate) const OBJECTS: &str = "objects";

/// An open repository. It holds a shared `flock` on the repository's directory until it is dropped, so
/// no collector deletes anything meanwhile. Usable from many threads.
#[derive(Debug)]
pub struct Repository {
    path: PathBuf,
    dir: OwnedFd,
    objects: OnceLock<OwnedFd>,
    meta: Meta,
    security: Security,
    /// Cleared for a repository of the old format until something is written to it.
    has_meta: AtomicBool,
}

/// What a new repository is to be.
#[derive(Debug, Clone)]
pub struct InitOptions {
    /// The algorithm of every digest.
    pub algorithm: Algorithm,
    /// The image formats.
    pub formats: Formats,
    /// Whether fs-verity is required.
    pub security: Security,
}

impl Default for InitOptions {
    /// SHA-512, V1 images, secure.
    fn default() -> Self {
        Self {
            algorithm: Algorithm::Sha512,
            formats: Formats::single(Format::V1),
            security: Security::Secure,
        }
    }
}

/// What [`Repository::init`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitOutcome {
    /// The repository is new.
    Created,
    /// It existed with the same settings.
    AlreadyThere,
}

impl Repository {
    /// Makes a repository at `path`, whose missing parent directories are made too.
    ///
    /// Does nothing if it exists with the same settings; other settings are [`Error::SettingsDiffer`].
    /// Without [`Security::Insecure`] the filesystem must have fs-verity ([`Error::NoVerity`]). An error
    /// leaves nothing behind. Durable when it returns.
    pub fn init(path: impl AsRef<Path>, options: &InitOptions) -> Result<InitOutcome> {
        let path = path.as_ref();
        let made = make_directories(path)?;
        let result = init_at(path, options);
        if result.is_err() {
            for directory in made.iter().rev() {
                // Not empty means that somebody else uses it by now, which is fine.
                let _ = std::fs::remove_dir(directory);
            }
        } else if let Some(parent) = made.first().and_then(|first| first.parent()) {
            let parent = if parent == Path::new("") {
                Path::new(".")
            } else {
                parent
            };
            let parent_dir = open_directory(parent)?;
            durable::sync_dir(parent_dir, parent)?;
        }
        result
    }

    /// Opens the repository at `path`, waiting for a collector to finish. Writes nothing.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let dir = open_directory(path)?;
        let path = path.canonicalize().map_err(Error::io("resolve", path))?;
        durable::flock(&dir, FlockOperation::LockShared).map_err(Error::io("lock", &path))?;
        let (meta, security, has_meta) = if let Some((meta, security)) = read_meta(&dir, &path)? {
            (meta, security, true)
        } else {
            let (meta, security) = old_format(&dir, &path)?;
            (meta, security, false)
        };
        Ok(Self {
            path,
            dir,
            objects: OnceLock::new(),
            meta,
            security,
            has_meta: AtomicBool::new(has_meta),
        })
    }

    /// The absolute path of the repository, without symlinks.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The algorithm of every digest.
    pub fn algorithm(&self) -> Algorithm {
        self.meta.algorithm
    }

    /// The image formats.
    pub fn formats(&self) -> &Formats {
        &self.meta.formats
    }

    /// Whether the kernel verifies every object.
    pub fn security(&self) -> Security {
        self.security
    }

    /// Whether the kernel verifies every object.
    pub fn is_secure(&self) -> bool {
        self.security == Security::Secure
    }

    /// Begins to write. The batch must be committed; dropping it forgets everything.
    ///
    /// A repository of the old format gets its `meta.json` now; one with a feature that forbids unknowing
    /// writers is refused.
    pub fn batch(&self) -> Result<Batch<'_>> {
        self.check_writable()?;
        if !self.has_meta.load(Ordering::Acquire) {
            self.upgrade()?;
        }
        Batch::new(self)
    }

    /// As [`Repository::batch`], for a batch that somebody may want to stop.
    ///
    /// Once `stop` is set, whatever is asked of the batch fails with [`Error::Interrupted`], also while it
    /// waits for another; a commit does so until it gives the first name to anything but an object.
    /// From then on it goes on to its end.
    pub fn batch_until(&self, stop: Arc<AtomicBool>) -> Result<Batch<'_>> {
        let mut batch = self.batch()?;
        batch.stop_at(stop);
        Ok(batch)
    }

    /// The path of an object, for mounts and messages.
    pub fn object_file(&self, digest: &VerityDigest) -> PathBuf {
        self.path.join(OBJECTS).join(digest.object_path())
    }

    /// The repository's directory. Its `flock` is the repository's lock: leave it alone.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// The directory of the objects; `None` as long as there is none.
    pub(crate) fn objects(&self) -> Result<Option<BorrowedFd<'_>>> {
        if let Some(objects) = self.objects.get() {
            return Ok(Some(objects.as_fd()));
        }
        let Some(objects) = durable::open_dir(&self.dir, OBJECTS, &self.path)? else {
            return Ok(None);
        };
        Ok(Some(self.objects.get_or_init(|| objects).as_fd()))
    }

    pub(crate) fn check_writable(&self) -> Result<()> {
        match self.meta.unknown_read_only.first() {
            None => Ok(()),
            Some(feature) => Err(Error::ReadOnlyFeature {
                path: self.path.clone(),
                feature: feature.clone(),
            }),
        }
    }

    /// Writes a `meta.json` with other formats. The caller has the exclusive lock.
    pub(crate) fn replace_formats(&mut self, formats: &Formats) -> Result<()> {
        let meta = Meta {
            formats: formats.clone(),
            ..self.meta.clone()
        };
        replace_meta(&self.dir, &self.path, &meta, self.security)?;
        self.meta = meta;
        *self.has_meta.get_mut() = true;
        Ok(())
    }

    /// Writes the `meta.json` that a repository of the old format lacks. Such a repository holds V2
    /// images, so that is what it is said to hold.
    fn upgrade(&self) -> Result<()> {
        write_meta(&self.dir, &self.path, &self.meta, self.security)?;
        // Another writer may have been first, with another opinion.
        if let Some((meta, security)) = read_meta(&self.dir, &self.path)?
            && (meta != self.meta || security != self.security)
        {
            return Err(Error::SettingsDiffer {
                path: self.path.clone(),
                existing: settings(&meta, security),
                wanted: settings(&self.meta, self.security),
            });
        }
        self.has_meta.store(true, Ordering::Release);
        Ok(())
    }
}

fn settings(meta: &Meta, security: Security) -> Settings {
    Settings {
        algorithm: meta.algorithm,
        formats: meta.formats.clone(),
        security,
    }
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(dir) => Ok(dir),
        Err(Errno::NOENT) => Err(Error::NotARepository(path.to_owned())),
        Err(error) => Err(Error::io("open", path)(error)),
    }
}

/// Makes `path` and its missing parents; returns those it made, outermost first.
fn make_directories(path: &Path) -> Result<Vec<PathBuf>> {
    let mut missing: Vec<&Path> = path
        .ancestors()
        .filter(|ancestor| *ancestor != Path::new(""))
        .take_while(|ancestor| !ancestor.exists())
        .collect();
    missing.reverse();
    let mut made = Vec::new();
    for directory in missing {
        let mode = if directory == path { 0o700 } else { 0o755 };
        match std::fs::DirBuilder::new().mode(mode).create(directory) {
            Ok(()) => made.push(directory.to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                for directory in made.iter().rev() {
                    let _ = std::fs::remove_dir(directory);
                }
                return Err(Error::io("create directory", directory)(error));
            }
        }
    }
    Ok(made)
}

fn init_at(path: &Path, options: &InitOptions) -> Result<InitOutcome> {
    let dir = open_directory(path)?;
    durable::flock(&dir, FlockOperation::LockShared).map_err(Error::io("lock", path))?;
    let wanted = Meta {
        algorithm: options.algorithm,
        formats: options.formats.clone(),
        unknown_read_only: Vec::new(),
    };
    // Twice, because another process may make the repository between the question and the attempt.
    for _ in 0..2 {
        if let Some((meta, security)) = read_meta(&dir, path)? {
            let existing = settings(&meta, security);
            let wanted = settings(&wanted, options.security);
            return if existing == wanted {
                Ok(InitOutcome::AlreadyThere)
            } else {
                Err(Error::SettingsDiffer {
                    path: path.to_owned(),
                    existing,
                    wanted,
                })
            };
        }
        if durable::open_dir(&dir, OBJECTS, path)?.is_some() {
            return Err(Error::OldFormat(path.to_owned()));
        }
        if write_meta(&dir, path, &wanted, options.security)? {
            return Ok(InitOutcome::Created);
        }
    }
    Err(Error::io("create", path.join(META))(Errno::EXIST))
}

/// Reads `meta.json` and measures it; `None` if there is none.
fn read_meta(dir: &OwnedFd, path: &Path) -> Result<Option<(Meta, Security)>> {
    let file_path = path.join(META);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = match rustix::fs::openat(dir, META, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(Error::io("open", &file_path)(error)),
    };
    let mut json = Vec::new();
    (&file)
        .take(meta::MAX_SIZE + 1)
        .read_to_end(&mut json)
        .map_err(Error::io("read", &file_path))?;
    let meta = Meta::parse(&json).map_err(|source: MetaError| Error::Meta {
        path: file_path.clone(),
        source,
    })?;
    let measured = sys::measure_verity(&file)
        .map_err(Error::io("measure the fs-verity digest of", &file_path))?;
    let security = match measured {
        Measured::Disabled | Measured::Unsupported => Security::Insecure,
        Measured::Digest(digest) if digest.algorithm() == meta.algorithm => Security::Secure,
        Measured::Digest(_) => {
            return Err(Error::MetaVerity {
                path: file_path,
                algorithm: meta.algorithm,
            });
        }
    };
    Ok(Some((meta, security)))
}

/// Puts a `meta.json` in place, durably; returns false if there was one.
fn write_meta(dir: &OwnedFd, path: &Path, meta: &Meta, security: Security) -> Result<bool> {
    let file = stage_meta(dir, path, meta, security)?;
    match link_file(&file, dir, META) {
        Ok(()) => {}
        Err(Errno::EXIST) => return Ok(false),
        Err(error) => return Err(Error::io("create", path.join(META))(error)),
    }
    durable::sync_dir(dir, path)?;
    Ok(true)
}

/// Puts another `meta.json` in place of the one that is there, durably and in one step for whoever looks.
/// The caller has the exclusive lock.
fn replace_meta(dir: &OwnedFd, path: &Path, meta: &Meta, security: Security) -> Result<()> {
    let file = stage_meta(dir, path, meta, security)?;
    let (private, _) = durable::make_dir(dir, PRIVATE_DIRECTORY, path)?;
    let private_path = path.join(PRIVATE_DIRECTORY);
    // One that was interrupted here has left it.
    durable::unlink(&private, META, &private_path)?;
    failpoint("meta-staged");
    link_file(&file, &private, META).map_err(Error::io("create", private_path.join(META)))?;
    failpoint("meta-linked");
    rustix::fs::renameat(&private, META, dir, META)
        .map_err(Error::io("replace", path.join(META)))?;
    failpoint("meta-replaced");
    durable::sync_dir(dir, path)?;
    failpoint("meta-synced");
    Ok(())
}

/// Writes a `meta.json` without a name, on the disk and with fs-verity if the repository is secure.
fn stage_meta(dir: &OwnedFd, path: &Path, meta: &Meta, security: Security) -> Result<OwnedFd> {
    let file_path = path.join(META);
    let flags = OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC;
    let io = |action| Error::io::<Errno>(action, &file_path);
    let file =
        rustix::fs::openat(dir, ".", flags, Mode::from_raw_mode(0o644)).map_err(io("create"))?;
    let mut file = File::from(file);
    file.write_all(&meta.to_json())
        .and_then(|()| file.sync_all())
        .map_err(Error::io("write", &file_path))?;
    let reopened = rustix::fs::open(
        proc_path(&file),
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(io("reopen"))?;
    drop(file);
    if security == Security::Secure {
        match enable_patiently(&reopened, meta.algorithm) {
            Ok(Enabled::Yes) => {}
            Ok(Enabled::Unsupported) => return Err(Error::NoVerity(path.to_owned())),
            Ok(Enabled::Busy) => return Err(io("enable fs-verity on")(Errno::TXTBSY)),
            Err(error) => return Err(Error::io("enable fs-verity on", &file_path)(error)),
        }
        // A file that lost its fs-verity in a crash would make the repository an insecure one.
        rustix::fs::fsync(&reopened).map_err(io("sync"))?;
    }
    Ok(reopened)
}

/// Gives a file without a name one that must not exist yet.
fn link_file(file: &OwnedFd, dir: &OwnedFd, name: &str) -> Result<(), Errno> {
    rustix::fs::linkat(
        rustix::fs::CWD,
        proc_path(file),
        dir,
        name,
        AtFlags::SYMLINK_FOLLOW,
    )
}

fn proc_path(file: &impl AsFd) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", file.as_fd().as_raw_fd())
}

/// Enables fs-verity, waiting a little for writers: a process that was just forked may hold a copy of
/// our writable descriptor until it executes its program.
pub(crate) fn enable_patiently(file: impl AsFd, algorithm: Algorithm) -> std::io::Result<Enabled> {
    let mut pause = std::time::Duration::from_millis(1);
    loop {
        match sys::enable_verity(&file, algorithm)? {
            Enabled::Busy if pause.as_millis() < 600 => {
                std::thread::sleep(pause);
                pause *= 2;
            }
            outcome => return Ok(outcome),
        }
    }
}

/// What a repository without `meta.json` is, told from its first object: such repositories hold V2
/// images.
fn old_format(dir: &OwnedFd, path: &Path) -> Result<(Meta, Security)> {
    let none = || Error::NotARepository(path.to_owned());
    let objects = durable::open_dir(dir, OBJECTS, path)?.ok_or_else(none)?;
    let objects_path = path.join(OBJECTS);
    for shard in 0..=255_u8 {
        let shard = format!("{shard:02x}");
        let Some(shard_dir) = durable::open_dir(&objects, &shard, &objects_path)? else {
            continue;
        };
        let shard_path = objects_path.join(&shard);
        let read = |error: Errno| Error::io("list", &shard_path)(error);
        for entry in rustix::fs::Dir::read_from(&shard_dir).map_err(read)? {
            let entry = entry.map_err(read)?;
            let Some(digest) = entry
                .file_name()
                .to_str()
                .ok()
                .and_then(|name| VerityDigest::from_hex(&format!("{shard}{name}")).ok())
            else {
                continue;
            };
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
            let object = rustix::fs::openat(&shard_dir, entry.file_name(), flags, Mode::empty())
                .map_err(read)?;
            let measured = sys::measure_verity(&object).map_err(Error::io(
                "measure the fs-verity digest of",
                path.join(OBJECTS).join(digest.object_path()),
            ))?;
            let meta = Meta {
                algorithm: digest.algorithm(),
                formats: Formats::single(Format::V2),
                unknown_read_only: Vec::new(),
            };
            let security = match measured {
                Measured::Digest(_) => Security::Secure,
                Measured::Disabled | Measured::Unsupported => Security::Insecure,
            };
            return Ok((meta, security));
        }
    }
    Err(none())
}
