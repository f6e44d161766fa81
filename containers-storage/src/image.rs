//! An image: its record, manifest, config and layers.
//!
//! Manifest and config are handed out byte for byte and only if their digests are right.

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;

use crate::digest::{ConfigDigest, DiffId, Digest, ManifestDigest};
use crate::error::Error;
use crate::ids::ImageId;
use crate::layer::Layer;
use crate::lock::{Interrupt, LastWrite};
use crate::own_store::big_data_file_name;
use crate::read::read_limited;
use crate::records::ImageRecord;
use crate::storage::{Storage, StoreRoot};

/// Largest manifest or config that is read; registries refuse manifests of more than 4 MiB.
const MAX_DOCUMENT: u64 = 16 << 20;

/// An image of a store. Cheap to clone.
#[derive(Clone)]
pub struct Image {
    storage: Storage,
    root: usize,
    record: ImageRecord,
    mark: LastWrite,
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Image({})", self.record.id)
    }
}

#[derive(Deserialize)]
struct Manifest {
    config: Option<Descriptor>,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
}

#[derive(Deserialize)]
struct Config {
    rootfs: Option<RootFs>,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Option<Vec<String>>,
}

impl Image {
    pub(crate) fn new(storage: Storage, root: usize, record: ImageRecord, mark: LastWrite) -> Self {
        Self {
            storage,
            root,
            record,
            mark,
        }
    }

    /// What `error`, met while the image was read, is owed to: [`Error::ImageChanged`] if the store's
    /// records of images were written to since this one was looked up.
    pub fn explain(&self, error: Error) -> Error {
        match self
            .store_root()
            .marked_image_records(self.storage.interrupt())
        {
            Ok((_, mark)) if mark != self.mark => Error::ImageChanged {
                image: self.record.id.clone(),
                source: Box::new(error),
            },
            _ => error,
        }
    }

    /// The image's ID.
    pub fn id(&self) -> &ImageId {
        &self.record.id
    }

    /// The image's names, fully qualified.
    pub fn names(&self) -> &[String] {
        &self.record.names
    }

    /// The record as it is in the store.
    pub fn record(&self) -> &ImageRecord {
        &self.record
    }

    /// The root in which the record is.
    pub fn store_root(&self) -> &StoreRoot {
        self.storage.root(self.root)
    }

    /// The same image, waiting for locks only until `interrupt` is set.
    #[must_use]
    pub fn interrupted_by(mut self, interrupt: Interrupt) -> Self {
        self.storage = self.storage.interrupted_by(interrupt);
        self
    }

    /// Whether `digest` is the digest of the image's manifest or of an index it was chosen from.
    pub fn has_digest(&self, digest: &Digest) -> bool {
        self.record.manifest_digests().any(|d| d == digest)
    }

    /// The digest of the manifest, as the record has it. [`Image::manifest`] checks it.
    ///
    /// Of an image that was chosen from an index, the record's own digest is that of the index.
    pub fn digest(&self) -> Result<ManifestDigest, Error> {
        let digest = self
            .record
            .big_data_digests
            .get("manifest")
            .or(self.record.digest.as_ref())
            .ok_or_else(|| self.unsupported("there is no manifest"))?;
        ManifestDigest::try_from(digest).map_err(|source| Error::ImageDigest {
            image: self.record.id.clone(),
            what: "manifest",
            source,
        })
    }

    /// The indexes in the record that name the manifest, with their digests checked.
    ///
    /// An image can be pulled by several, and the record can have other manifests with the same config.
    pub fn indexes(&self) -> Result<Vec<Vec<u8>>, Error> {
        let manifest = self.digest()?;
        let named = |index: &Index| {
            let mut digests = index.manifests.iter().map(|entry| &entry.digest);
            digests.any(|digest| *digest == manifest.to_string())
        };
        let mut indexes = Vec::new();
        for digest in self.record.manifest_digests() {
            let Some(bytes) = self.big_data(&format!("manifest-{digest}"))? else {
                continue;
            };
            if serde_json::from_slice(&bytes).is_ok_and(|index| named(&index)) {
                let actual = ManifestDigest::of(&bytes).into();
                self.check("index", digest.clone(), actual)?;
                if !indexes.contains(&bytes) {
                    indexes.push(bytes);
                }
            }
        }
        Ok(indexes)
    }

    /// The manifest's bytes, with the digest checked.
    pub fn manifest(&self) -> Result<Vec<u8>, Error> {
        let expected = self.digest()?;
        let bytes = match self.big_data(&format!("manifest-{expected}"))? {
            Some(bytes) => bytes,
            None => self
                .big_data("manifest")?
                .ok_or_else(|| self.unsupported("there is no manifest"))?,
        };
        self.check(
            "manifest",
            expected.into(),
            ManifestDigest::of(&bytes).into(),
        )?;
        Ok(bytes)
    }

    /// The digest of the config, as the manifest has it.
    pub fn config_digest(&self) -> Result<ConfigDigest, Error> {
        let manifest: Manifest = self.json("manifest", &self.manifest()?)?;
        let config = manifest
            .config
            .ok_or_else(|| self.unsupported("its manifest names no config (schema 1?)"))?;
        config.digest.parse().map_err(|source| Error::ImageDigest {
            image: self.record.id.clone(),
            what: "manifest",
            source,
        })
    }

    /// The config's bytes, with the digest checked.
    pub fn config(&self) -> Result<Vec<u8>, Error> {
        let expected = self.config_digest()?;
        let bytes = self
            .big_data(&expected.to_string())?
            .ok_or_else(|| self.unsupported("its config is missing"))?;
        self.check("config", expected.into(), ConfigDigest::of(&bytes).into())?;
        Ok(bytes)
    }

    /// The diff IDs that the config names, bottom layer first.
    pub fn diff_ids(&self) -> Result<Vec<DiffId>, Error> {
        let config: Config = self.json("config", &self.config()?)?;
        let diff_ids = config.rootfs.and_then(|rootfs| rootfs.diff_ids);
        diff_ids
            .unwrap_or_default()
            .iter()
            .map(|text| text.parse())
            .collect::<Result<_, _>>()
            .map_err(|source| Error::ImageDigest {
                image: self.record.id.clone(),
                what: "config",
                source,
            })
    }

    /// The layers, bottom first, each with its diff ID from the config. The chain of parents is
    /// followed through all stores; it must be as long as the config's list.
    pub fn layers(&self) -> Result<Vec<Layer>, Error> {
        let diff_ids = self.diff_ids()?;
        let mut found = self.storage.layers()?;
        let mut chain = Vec::new();
        let mut seen = HashSet::new();
        let mut next = self.record.layer.clone();
        while let Some(id) = next.take() {
            if !seen.insert(id.clone()) {
                return Err(Error::LayerCycle { layer: id });
            }
            let Some(layer) = found.remove(&id) else {
                return Err(Error::LayerNotFound { layer: id });
            };
            next.clone_from(&layer.record.parent);
            chain.push(layer);
        }
        if chain.len() != diff_ids.len() {
            return Err(Error::LayerCount {
                image: self.record.id.clone(),
                expected: diff_ids.len(),
                found: chain.len(),
            });
        }
        chain.reverse();
        Ok(chain
            .into_iter()
            .zip(diff_ids)
            .map(|(found, diff_id)| Layer::new(self.storage.clone(), found, diff_id))
            .collect())
    }

    /// An item of the image's big data, unchecked, at most 16 MiB.
    pub fn big_data(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        read_limited(&self.big_data_path(key), MAX_DOCUMENT)
    }

    fn big_data_path(&self, key: &str) -> PathBuf {
        self.store_root()
            .images_dir()
            .join(self.record.id.as_str())
            .join(big_data_file_name(key))
    }

    fn unsupported(&self, what: &'static str) -> Error {
        Error::UnsupportedImage {
            image: self.record.id.clone(),
            what,
        }
    }

    fn json<'a, T: Deserialize<'a>>(
        &self,
        what: &'static str,
        bytes: &'a [u8],
    ) -> Result<T, Error> {
        serde_json::from_slice(bytes).map_err(|source| Error::ImageJson {
            image: self.record.id.clone(),
            what,
            source,
        })
    }

    fn check(&self, what: &'static str, expected: Digest, found: Digest) -> Result<(), Error> {
        if expected == found {
            Ok(())
        } else {
            Err(Error::DigestMismatch {
                image: self.record.id.clone(),
                what,
                expected,
                found,
            })
        }
    }
}
