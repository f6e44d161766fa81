//! Where everything is: the store we write, the view podman reads, and the mounts below `/run`.

use std::{
    fmt::Write as _,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use containers_storage::LayerId;
use repository::{PRIVATE_DIRECTORY, Repository};
use sha2::{Digest as _, Sha256};

/// The directory of all stores' mounts.
const RUN: &str = "/run/composefs-store";

/// The paths of a repository's image store. All are absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorePaths {
    repository: PathBuf,
}

impl StorePaths {
    /// Of an open repository.
    pub fn of(repository: &Repository) -> Self {
        Self {
            repository: repository.path().to_owned(),
        }
    }

    /// The repository, without symlinks.
    pub fn repository(&self) -> &Path {
        &self.repository
    }

    /// The directory of objects.
    pub fn objects(&self) -> PathBuf {
        self.repository.join("objects")
    }

    /// The store that we write. podman is never pointed here.
    pub fn store(&self) -> PathBuf {
        self.private().join("podman-store")
    }

    /// The directory of a layer in the store, whether it exists or not.
    pub(crate) fn layer_directory(&self, layer: &LayerId) -> PathBuf {
        self.store().join("overlay").join(layer.as_str())
    }

    /// What a layer's `diff` leads to in the layout [`crate::Layout::Blob`]: podman takes the layer's ID from
    /// the last but one component.
    pub(crate) fn shown_objects(&self, layer: &LayerId) -> PathBuf {
        let overlay = self.view().join("overlay");
        overlay.join(layer.as_str()).join("objs")
    }

    /// Where layers are made ready, out of podman's sight.
    pub(crate) fn incoming(&self) -> PathBuf {
        self.store().join("incoming")
    }

    /// The path for podman's `additionalimagestores`: a read-only bind mount of [`Self::store`], over a
    /// store without images that serves as long as the mount is missing.
    pub fn view(&self) -> PathBuf {
        self.private().join("podman")
    }

    /// The lock that keeps two of us from changing the store at once.
    pub(crate) fn publish_lock(&self) -> PathBuf {
        self.private().join("publish.lock")
    }

    /// What belongs to this crate alone, beside the store.
    pub(crate) fn private(&self) -> PathBuf {
        self.repository.join(PRIVATE_DIRECTORY)
    }

    /// The directory of this store's mounts, `/run/composefs-store/<store ID>`.
    ///
    /// The store ID is made of the repository's path, because the links in the store name that path
    /// anyway: two repositories never share mounts, and after a boot the same links lead to the same
    /// places.
    pub fn run(&self) -> PathBuf {
        let hash = Sha256::digest(self.repository.as_os_str().as_bytes());
        let mut id = String::new();
        for byte in hash.iter().take(8) {
            let _ = write!(id, "{byte:02x}");
        }
        Path::new(RUN).join(id)
    }

    /// The directory of all stores' mounts.
    pub(crate) fn all_runs() -> &'static Path {
        Path::new(RUN)
    }

    /// Where a layer in the layout [`crate::Layout::Mounted`] is mounted.
    pub fn layer_mount(&self, layer: &LayerId) -> PathBuf {
        self.run().join("layers").join(layer.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_depend_on_the_repositorys_path_and_nothing_else() {
        let of = |path: &str| StorePaths {
            repository: path.into(),
        };
        let layer = "a".repeat(64).parse().unwrap();
        let mount = of("/var/lib/composefs-store").layer_mount(&layer);
        assert_eq!(mount, of("/var/lib/composefs-store").layer_mount(&layer));
        assert_ne!(mount, of("/sysroot/composefs").layer_mount(&layer));
        assert!(mount.starts_with(RUN));
        assert_eq!(mount.file_name().unwrap(), layer.as_str());
    }
}
