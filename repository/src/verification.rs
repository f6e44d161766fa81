//! Which layers were stored without comparing their diff ID.
//!
//! A layer's name says which SHA-256 its tar has. An import that trusts its source does not compute
//! that, and leaves a mark: an empty file `composefs-store/unverified/<diff ID in hexadecimal digits>`,
//! which is there before the layer's name is. It goes when the layer is stored again with its diff ID
//! compared, or removed. Other implementations know nothing of it, and never compare diff IDs.

use std::path::PathBuf;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::PRIVATE_DIRECTORY;
use crate::error::{Error, Result};
use crate::layer_files::LayerFiles;
use crate::oci::DiffId;
use crate::repo::Repository;

/// The marks.
pub(crate) const UNVERIFIED: LayerFiles = LayerFiles("unverified");

/// Whether the tar of a layer was found to have the diff ID that it is stored under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verification {
    /// It was computed and compared.
    Verified,
    /// The source was believed.
    Trusted,
}

impl Repository {
    /// Whether a layer was stored with [`Verification::Trusted`], and not verified since.
    pub fn is_unverified(&self, layer: &DiffId) -> Result<bool> {
        let path = PathBuf::from(PRIVATE_DIRECTORY)
            .join(UNVERIFIED.0)
            .join(layer.to_hex());
        match rustix::fs::statat(self.dir(), &path, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(Error::io("examine", self.path().join(path))(error)),
        }
    }

    /// Marks a layer; not durable before a sync of the filesystem.
    pub(crate) fn mark_unverified(&self, layer: &DiffId) -> Result<()> {
        let dir = UNVERIFIED.make(self)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let name = layer.to_hex();
        match rustix::fs::openat(&dir, &name, flags, Mode::from_raw_mode(0o644)) {
            Ok(_) => Ok(()),
            Err(error) => Err(Error::io("create", UNVERIFIED.path(self).join(name))(error)),
        }
    }

    /// Takes the mark of a layer away, which at worst comes back after a crash.
    pub(crate) fn unmark(&self, layer: &DiffId) -> Result<()> {
        UNVERIFIED.remove(self, layer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::NamesStream;
    use crate::{InitOptions, Security, Wait};

    #[test]
    fn a_mark_goes_when_its_layer_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let options = InitOptions {
            security: Security::Insecure,
            ..InitOptions::default()
        };
        Repository::init(dir.path(), &options).unwrap();
        let mut repository = Repository::open(dir.path()).unwrap();
        let layers = [b"kept", b"gone"].map(|content| DiffId::of(content));
        let batch = repository.batch().unwrap();
        let (object, _) = batch.store_bytes(b"a stream, in short").unwrap();
        for layer in &layers {
            batch.link_stream(&layer.stream_name(), &object);
            batch.set_verification(layer, Verification::Trusted);
        }
        batch.commit().unwrap();

        let exclusive = repository.exclusive(Wait::Fail).unwrap();
        exclusive.remove_stream(&layers[1].stream_name()).unwrap();
        assert!(exclusive.is_unverified(&layers[1]).unwrap());
        exclusive.sync_names().unwrap();

        assert!(exclusive.is_unverified(&layers[0]).unwrap());
        assert!(!exclusive.is_unverified(&layers[1]).unwrap());
    }
}
