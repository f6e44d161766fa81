//! The flat digest store: a directory with each object at `XX/REST` of its SHA-256 fs-verity digest, as
//! `mkcomposefs --digest-store` fills it and `basedir=` mounts it.
//!
//! Not a repository: no lock, no roots, nothing is ever deleted. New objects are staged in a temporary
//! directory of the store and get their names together, after one sync has made all of their content
//! durable. Objects that exist are kept as they are and not looked into, as in the C tool.

use std::collections::HashSet;
use std::fs::{DirBuilder, File};
use std::io::{self, Seek as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use composefs_image::{Algorithm, VerityDigest};
use repository::sys::{self, Enabled, Measured};
use rustix::fd::OwnedFd;
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, fchmod, fstat, ioctl_ficlone, mkdirat, openat, renameat, statat,
    syncfs,
};
use rustix::io::Errno;
use tempfile::TempDir;
use thiserror::Error;

/// Why an object could not be stored.
#[derive(Debug, Error)]
pub enum StoreError {
    /// A system call failed.
    #[error("digest store {}: {action}: {error}", .path.display())]
    Io {
        /// The store, or a file or directory in it.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        error: io::Error,
    },
    /// The copy is not what was hashed: the file changed in between.
    #[error("changed while it was being copied: {expected} was read before")]
    Changed {
        /// Digest of the content as it was read before.
        expected: VerityDigest,
    },
}

fn failed<E: Into<io::Error>>(path: &Path, action: &'static str) -> impl FnOnce(E) -> StoreError {
    move |error| StoreError::Io {
        path: path.to_owned(),
        action,
        error: error.into(),
    }
}

/// A digest store that exists.
#[derive(Debug)]
pub struct DigestStore {
    path: PathBuf,
    directory: OwnedFd,
}

impl DigestStore {
    /// Opens the store at `path`; missing directories are made with mode 0755.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(path)
            .map_err(failed(path, "creating"))?;
        let directory = open_directory(CWD, path).map_err(failed(path, "opening"))?;
        Ok(Self {
            path: path.to_owned(),
            directory,
        })
    }

    /// Begins to add objects.
    pub fn stage(&self) -> Result<Staging<'_>, StoreError> {
        let temporary = tempfile::Builder::new()
            .prefix(".tmp")
            .tempdir_in(&self.path)
            .map_err(failed(&self.path, "creating a staging directory"))?;
        let directory =
            open_directory(CWD, temporary.path()).map_err(failed(temporary.path(), "opening"))?;
        Ok(Staging {
            store: self,
            temporary,
            directory,
            claimed: Mutex::default(),
        })
    }
}

fn open_directory(at: impl rustix::fd::AsFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(at, path, flags, Mode::empty())
}

/// Objects on their way into a store. Dropped without [`Staging::commit`] it leaves nothing; killed, it
/// leaves one directory `.tmp*`.
///
/// Many threads may add at once.
#[derive(Debug)]
pub struct Staging<'a> {
    store: &'a DigestStore,
    temporary: TempDir,
    directory: OwnedFd,
    /// What somebody stages or has staged.
    claimed: Mutex<HashSet<VerityDigest>>,
}

impl Staging<'_> {
    /// Adds the content of `file`, which has `size` bytes and this digest, unless the store has the
    /// object or this staging does: a reflink, else a copy; mode 0644; with fs-verity where the
    /// filesystem has it.
    ///
    /// That the content still has the digest is checked where the kernel can tell (fs-verity); elsewhere
    /// the caller has to make sure that the file did not change.
    pub fn add(&self, file: &File, digest: &VerityDigest, size: u64) -> Result<(), StoreError> {
        let path = digest.object_path();
        match statat(&self.store.directory, &path, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => return Ok(()),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(failed(&self.store.path.join(path), "looking")(error)),
        }
        let claim = |claimed: &mut HashSet<VerityDigest>| claimed.insert(*digest);
        if !claim(&mut self.claimed.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(());
        }

        let name = digest.to_hex();
        let staged = self.temporary.path().join(&name);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let copy = openat(&self.directory, &name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(failed(&staged, "creating"))?;
        let mut copy = File::from(copy);
        fill(file, &mut copy).map_err(failed(&staged, "copying"))?;
        let written = fstat(&copy).map_err(failed(&staged, "reading attributes"))?;
        if u64::try_from(written.st_size) != Ok(size) {
            return Err(StoreError::Changed { expected: *digest });
        }
        fchmod(&copy, Mode::from_raw_mode(0o644)).map_err(failed(&staged, "changing the mode"))?;
        // fs-verity wants nobody to have the file open for writing.
        drop(copy);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let copy = openat(&self.directory, &name, flags, Mode::empty())
            .map_err(failed(&staged, "opening"))?;
        seal(&copy, digest, &staged)
    }

    /// Gives all objects their names. When it returns they and their content are durable.
    pub fn commit(self) -> Result<(), StoreError> {
        let Self {
            store,
            temporary,
            directory,
            claimed,
        } = self;
        let claimed = claimed.into_inner().unwrap_or_else(PoisonError::into_inner);
        if claimed.is_empty() {
            return Ok(());
        }
        let sync = || syncfs(&directory).map_err(failed(&store.path, "syncing the filesystem"));
        sync()?;
        for digest in claimed {
            let path = digest.object_path();
            let full_path = || store.path.join(&path);
            let (parent, _) = path.split_at(2);
            match mkdirat(&store.directory, parent, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(failed(&store.path.join(parent), "creating")(error)),
            }
            renameat(&directory, digest.to_hex(), &store.directory, &path)
                .map_err(|error| failed(&full_path(), "giving an object its name")(error))?;
        }
        sync()?;
        temporary
            .close()
            .map_err(failed(&store.path, "removing the staging directory"))
    }
}

/// Makes `copy` have the content of `file`: a reflink where the filesystem can.
fn fill(mut file: &File, copy: &mut File) -> io::Result<()> {
    match ioctl_ficlone(&*copy, file) {
        Ok(()) => return Ok(()),
        Err(
            Errno::XDEV
            | Errno::OPNOTSUPP
            | Errno::INVAL
            | Errno::TXTBSY
            | Errno::PERM
            | Errno::NOTTY
            | Errno::NOSYS,
        ) => {}
        Err(error) => return Err(error.into()),
    }
    file.rewind()?;
    io::copy(&mut file, copy)?;
    Ok(())
}

/// Tries to enable fs-verity. Kernels refuse it for many reasons (no support, signatures required, …),
/// of which only those that say that the disk is in trouble count.
fn seal(copy: &OwnedFd, digest: &VerityDigest, path: &Path) -> Result<(), StoreError> {
    match sys::enable_verity(copy, Algorithm::Sha256) {
        Ok(Enabled::Yes) => {}
        Ok(Enabled::Unsupported | Enabled::Busy) => return Ok(()),
        Err(error) => {
            let fatal = [Errno::NOSPC, Errno::DQUOT, Errno::IO];
            let code = Errno::from_io_error(&error);
            return if code.is_some_and(|code| fatal.contains(&code)) {
                Err(failed(path, "enabling fs-verity")(error))
            } else {
                Ok(())
            };
        }
    }
    match sys::measure_verity(copy).map_err(failed(path, "measuring fs-verity"))? {
        Measured::Digest(measured) if measured == *digest => Ok(()),
        Measured::Digest(_) => Err(StoreError::Changed { expected: *digest }),
        Measured::Disabled | Measured::Unsupported => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;

    use composefs_image::verity_digest;

    use super::*;

    fn file(content: &[u8]) -> (File, VerityDigest, u64) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        (
            file,
            verity_digest(Algorithm::Sha256, content),
            content.len() as u64,
        )
    }

    fn names(directory: &Path) -> Vec<PathBuf> {
        let mut names: Vec<PathBuf> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn objects_get_names_only_with_the_commit() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("new/store");
        let store = DigestStore::open(&path).unwrap();
        let (content, digest, size) = file(&vec![7; 100_000]);
        let object = path.join(digest.object_path());

        let staging = store.stage().unwrap();
        staging.add(&content, &digest, size).unwrap();
        staging.add(&content, &digest, size).unwrap();
        assert!(!object.exists());
        drop(staging);
        assert!(names(&path).is_empty());

        let staging = store.stage().unwrap();
        staging.add(&content, &digest, size).unwrap();
        staging.commit().unwrap();
        assert_eq!(fs::read(&object).unwrap(), vec![7; 100_000]);
        assert_eq!(
            fs::metadata(&object).unwrap().permissions().mode() & 0o7777,
            0o644
        );
        assert_eq!(names(&path), [object.parent().unwrap()]);
    }

    #[test]
    fn an_object_that_exists_is_kept_unchecked() {
        let temporary = tempfile::tempdir().unwrap();
        let store = DigestStore::open(temporary.path()).unwrap();
        let (content, digest, size) = file(&[1; 100]);
        let object = temporary.path().join(digest.object_path());
        fs::create_dir(object.parent().unwrap()).unwrap();
        fs::write(&object, b"as it was").unwrap();

        let staging = store.stage().unwrap();
        staging.add(&content, &digest, size).unwrap();
        staging.commit().unwrap();
        assert_eq!(fs::read(&object).unwrap(), b"as it was");
    }

    #[test]
    fn a_file_that_is_not_as_long_as_what_was_hashed_is_refused() {
        let temporary = tempfile::tempdir().unwrap();
        let store = DigestStore::open(temporary.path()).unwrap();
        let (content, digest, size) = file(&[1; 100]);
        let staging = store.stage().unwrap();
        assert!(matches!(
            staging.add(&content, &digest, size + 1),
            Err(StoreError::Changed { expected }) if expected == digest
        ));
    }
}
