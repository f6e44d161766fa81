//! Files of our own about layers: directories in [`PRIVATE_DIRECTORY`] with at most one file for each
//! layer, called by the diff ID in hexadecimal digits. None of them keeps a layer alive; they go when it is
//! gone.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::PRIVATE_DIRECTORY;
use crate::durable;
use crate::error::{Error, Result};
use crate::oci::{DiffId, NamesStream};
use crate::repo::Repository;
use failpoint::failpoint;

/// One of these directories, by its name.
pub(crate) struct LayerFiles(pub(crate) &'static str);

impl LayerFiles {
    /// The directory in the repository, for messages.
    pub(crate) fn path(&self, repository: &Repository) -> PathBuf {
        repository.path().join(PRIVATE_DIRECTORY).join(self.0)
    }

    pub(crate) fn open(&self, repository: &Repository) -> Result<Option<OwnedFd>> {
        let root = repository.path();
        match durable::open_dir(repository.dir(), PRIVATE_DIRECTORY, root)? {
            Some(private) => durable::open_dir(private, self.0, &root.join(PRIVATE_DIRECTORY)),
            None => Ok(None),
        }
    }

    pub(crate) fn make(&self, repository: &Repository) -> Result<OwnedFd> {
        let root = repository.path();
        let (private, _) = durable::make_dir(repository.dir(), PRIVATE_DIRECTORY, root)?;
        let (dir, _) = durable::make_dir(&private, self.0, &root.join(PRIVATE_DIRECTORY))?;
        Ok(dir)
    }

    /// Removes the file of a layer. After a crash it may be there again.
    pub(crate) fn remove(&self, repository: &Repository, layer: &DiffId) -> Result<()> {
        if let Some(dir) = self.open(repository)? {
            durable::unlink(dir, layer.to_hex(), &self.path(repository))?;
        }
        Ok(())
    }

    /// Removes the files of layers whose names are gone, which are of no use now.
    pub(crate) fn remove_of_removed_layers(&self, repository: &Repository) -> Result<()> {
        let Some(dir) = self.open(repository)? else {
            return Ok(());
        };
        let path = self.path(repository);
        let failed = |error: Errno| Error::io("list", &path)(error);
        let mut removed = Vec::new();
        for entry in rustix::fs::Dir::read_from(&dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let layer = entry.file_name().to_str().ok().and_then(|name| {
                let digest = format!("sha256:{name}");
                digest.parse::<DiffId>().ok()
            });
            if let Some(layer) = layer
                && repository.stream(&layer.stream_name())?.is_none()
            {
                removed.push(layer);
            }
        }
        for layer in removed {
            failpoint("remove-layer-file");
            durable::unlink(&dir, layer.to_hex(), &path)?;
        }
        Ok(())
    }
}
