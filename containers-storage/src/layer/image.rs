//! The names of a composefs-backed layer: its EROFS image leads from a name to an object.
//!
//! Only that is taken from the image. What a layer's tar has, whiteouts above all, podman's own images do
//! not tell; tar-split does.

use std::path::Path;

use composefs_image::{Content, Kind, Tree, read_image};

use crate::error::Error;
use crate::ids::LayerId;
use crate::read::read_limited;

/// Largest image that is read, in bytes; it is kept in memory.
const MAX_IMAGE: u64 = 1 << 30;

/// The file tree of an image.
#[derive(Debug)]
pub(crate) struct ImageNames(Tree);

impl ImageNames {
    /// Reads the image at `path`; `None` if there is none.
    pub(crate) fn read(layer: &LayerId, path: &Path) -> Result<Option<Self>, Error> {
        let Some(bytes) = read_limited(path, MAX_IMAGE)? else {
            return Ok(None);
        };
        let tree = read_image(&bytes).map_err(|source| Error::LayerImage {
            layer: layer.clone(),
            path: path.to_owned(),
            source,
        })?;
        Ok(Some(Self(tree)))
    }

    /// The object, as a path below the layer's object directory, that has the content of `name`.
    pub(crate) fn path(&self, name: &[u8]) -> Option<Vec<u8>> {
        match self.0.kind(self.0.lookup_path(name)?) {
            Kind::Regular(Content::External { digest, path, .. }) => match (path, digest) {
                (Some(path), _) => Some(path.to_vec()),
                (None, Some(digest)) => Some(digest.object_path().into_bytes()),
                (None, None) => None,
            },
            _ => None,
        }
    }
}
