//! How the merged tree of a layer gets under a container.

use std::{fmt, fs, io, path::Path, str::FromStr};

use containers_storage::LayerId;
use serde::Serialize;

use crate::{
    error::{Error, Result},
    paths::StorePaths,
};

/// How podman gets at a layer's tree. It belongs to the layer for as long as that is published: what was
/// built on a layer has its layout built in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// The layer directory has the EROFS image (`composefs-data/composefs.blob`) and podman mounts it.
    /// Rootful podman 5.0 or newer; user namespaces work; `build` needs `metacopy=on` in storage.conf.
    Blob,
    /// The layer's `diff` leads to a composefs mount of ours below `/run`. podman 4.3 or newer with any
    /// mount options; `verity=require` where the repository is secure; no shifted owners.
    Mounted,
}

impl Layout {
    const ALL: [Self; 2] = [Self::Blob, Self::Mounted];

    /// `blob` or `mounted`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Blob => "blob",
            Self::Mounted => "mounted",
        }
    }

    /// The layout of a layer that is in our store.
    pub(crate) fn of(paths: &StorePaths, layer: &LayerId) -> Result<Self> {
        let directory = paths.layer_directory(layer);
        if exists(&directory.join(COMPOSEFS_DATA))? {
            return Ok(Self::Blob);
        }
        let diff = directory.join("diff");
        let target = fs::read_link(&diff).map_err(Error::io("read the link", &diff))?;
        if target == paths.layer_mount(layer) {
            Ok(Self::Mounted)
        } else {
            Err(Error::Damaged {
                store: paths.store(),
                problem: format!(
                    "{} leads to {}, which is not where this layer is mounted",
                    diff.display(),
                    target.display()
                ),
            })
        }
    }
}

/// The directory of a layer's EROFS image, below the layer's directory.
pub(crate) const COMPOSEFS_DATA: &str = "composefs-data";

fn exists(path: &Path) -> Result<bool> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("look at", path)(error)),
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Text that is no layout.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no layout: use `blob` or `mounted`")]
pub struct ParseLayoutError(String);

impl FromStr for Layout {
    type Err = ParseLayoutError;

    fn from_str(text: &str) -> Result<Self, ParseLayoutError> {
        Self::ALL
            .into_iter()
            .find(|layout| layout.name() == text)
            .ok_or_else(|| ParseLayoutError(text.to_owned()))
    }
}
