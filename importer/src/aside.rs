//! An image imported beside a repository instead of into it, to take single objects from.
//!
//! `fsck --repair` cannot import a damaged image again: for an import it is there already. So the image goes
//! into a repository of its own in the private directory of the damaged one, on the same filesystem, so
//! that nothing is copied that can be cloned, and disappears with the value.

use std::fs::File;
use std::path::Path;

use repository::{InitOptions, PRIVATE_DIRECTORY, Repository, Security};
use rustix::fs::FlockOperation;

use crate::error::ImportError;
use crate::image::{ImportOptions, import_image};
use crate::progress::Progress;
use crate::source::SourceImage;

const PREFIX: &str = "aside.";

/// A temporary repository. Dropping it removes it.
#[derive(Debug)]
pub struct Aside {
    // Fields are dropped in this order: the directory goes when nobody has it open any more.
    repository: Repository,
    name: String,
    _directory: tempfile::TempDir,
    _lock: File,
}

impl Aside {
    /// Imports `image`, verified, with the algorithm and formats of `beside`.
    pub fn import(
        beside: &Repository,
        image: &SourceImage<'_>,
        options: &ImportOptions,
        progress: &dyn Progress,
    ) -> Result<Self, ImportError> {
        let private = beside.path().join(PRIVATE_DIRECTORY);
        let failed = |source| repository::Error::Io {
            action: "make a temporary repository in",
            path: private.clone(),
            source,
        };
        std::fs::create_dir_all(&private).map_err(failed)?;
        sweep(&private).map_err(failed)?;
        let directory = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir_in(&private)
            .map_err(failed)?;
        let lock = File::open(directory.path()).map_err(failed)?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| failed(error.into()))?;
        let path = directory.path().join("repository");
        let init = InitOptions {
            algorithm: beside.algorithm(),
            formats: beside.formats().clone(),
            security: Security::Insecure,
        };
        Repository::init(&path, &init)?;
        let repository = Repository::open(&path)?;
        import_image(&repository, image, options, progress)?;
        Ok(Self {
            repository,
            name: image.name.clone(),
            _directory: directory,
            _lock: lock,
        })
    }

    /// What was imported, as the source calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Opens an object that the image has.
    pub fn open(&self, object: &repository::VerityDigest) -> Option<File> {
        self.repository.open_object(object).ok()
    }
}

/// Removes what killed processes left.
fn sweep(private: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(private)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let lock = File::open(entry.path())?;
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}
