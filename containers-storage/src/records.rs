//! The records of `layers.json`, `images.json` and `containers.json`.
//!
//! The same types serve reading podman's stores and writing a store of our own. Keys that are not known
//! here are kept in `other` and written back, so a record of a newer c/storage survives a rewrite. What
//! Go writes as `null` or leaves out reads as empty.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::digest::Digest;
use crate::ids::{ContainerId, ImageId, LayerId};

/// One entry of a user namespace mapping: `size` ids from `container_id` on are `host_id` on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct IdMapping {
    pub container_id: u32,
    pub host_id: u32,
    pub size: u32,
}

/// The `flags` object of a layer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LayerFlags {
    /// The layer is being created or deleted; it must not be read.
    #[serde(
        default,
        skip_serializing_if = "is_false",
        deserialize_with = "or_default"
    )]
    pub incomplete: bool,
    /// What a partial pull claims the diff ID to be, without having checked it.
    #[serde(
        rename = "expected-layer-diffid",
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "optional_digest"
    )]
    pub expected_diff_id: Option<Digest>,
    /// Flags that are not known here.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl LayerFlags {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A record of `layers.json` or `volatile-layers.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LayerRecord {
    /// The layer's ID.
    pub id: LayerId,
    /// Names given to the layer; image layers have none.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "or_default"
    )]
    pub names: Vec<String>,
    /// The layer below, which may live in another store.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "empty_is_none"
    )]
    pub parent: Option<LayerId>,
    /// Free text.
    #[serde(
        default,
        skip_serializing_if = "String::is_empty",
        deserialize_with = "or_default"
    )]
    pub metadata: String,
    /// SELinux label reserved for the layer.
    #[serde(
        rename = "mountlabel",
        default,
        skip_serializing_if = "String::is_empty",
        deserialize_with = "or_default"
    )]
    pub mount_label: String,
    /// Time of creation, RFC 3339.
    #[serde(
        default,
        skip_serializing_if = "String::is_empty",
        deserialize_with = "or_default"
    )]
    pub created: String,
    /// Digest of the blob as it was received.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "optional_digest"
    )]
    pub compressed_diff_digest: Option<Digest>,
    /// Size in bytes of the blob as it was received.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compressed_size: Option<i64>,
    /// The diff ID, a claim until it was compared with the config: c/storage 1.43 writes the compressed
    /// digest here for partial pulls.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "optional_digest"
    )]
    pub diff_digest: Option<Digest>,
    /// Length in bytes of the uncompressed tar, -1 for unknown; counts only beside `diff-digest` or
    /// `toc-digest`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diff_size: Option<i64>,
    /// Digest of the table of contents of a partial pull.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "optional_digest"
    )]
    pub toc_digest: Option<Digest>,
    /// Compression of the blob: 0 none, 1 bzip2, 2 gzip, 3 xz, 4 zstd.
    #[serde(
        default,
        skip_serializing_if = "is_zero",
        deserialize_with = "or_default"
    )]
    pub compression: i64,
    /// Sorted user ids that occur in the tar.
    #[serde(
        rename = "uidset",
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "or_default"
    )]
    pub uid_set: Vec<u32>,
    /// Sorted group ids that occur in the tar.
    #[serde(
        rename = "gidset",
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "or_default"
    )]
    pub gid_set: Vec<u32>,
    /// State of the layer.
    #[serde(
        default,
        skip_serializing_if = "LayerFlags::is_empty",
        deserialize_with = "or_default"
    )]
    pub flags: LayerFlags,
    /// Mapping by which owners on disk are shifted.
    #[serde(
        rename = "uidmap",
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "or_default"
    )]
    pub uid_map: Vec<IdMapping>,
    /// Mapping by which groups on disk are shifted.
    #[serde(
        rename = "gidmap",
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "or_default"
    )]
    pub gid_map: Vec<IdMapping>,
    /// Keys of the layer's big data.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "or_default"
    )]
    pub big_data_names: Vec<String>,
    /// Keys that are not known here.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl LayerRecord {
    /// A record with an ID and nothing else.
    pub fn new(id: LayerId) -> Self {
        Self {
            id,
            names: Vec::new(),
            parent: None,
            metadata: String::new(),
            mount_label: String::new(),
            created: String::new(),
            compressed_diff_digest: None,
            compressed_size: None,
            diff_digest: None,
            diff_size: None,
            toc_digest: None,
            compression: 0,
            uid_set: Vec::new(),
            gid_set: Vec::new(),
            flags: LayerFlags::default(),
            uid_map: Vec::new(),
            gid_map: Vec::new(),
            big_data_names: Vec::new(),
            other: Map::new(),
        }
    }
}

/// A record of `images.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageRecord {
    /// The image's ID.
    pub id: ImageId,
    /// Digest of the manifest.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "optional_digest"
    )]
    pub digest: Option<Digest>,
    /// Fully qualified references with tag or digest.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "or_default"
    )]
    pub names: Vec<String>,
    /// Names the image had before.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "or_default"
    )]
    pub names_history: Vec<String>,
    /// The top layer; none for images without layers.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "empty_is_none"
    )]
    pub layer: Option<LayerId>,
    /// Copies of the top layer with shifted owners.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "or_default"
    )]
    pub mapped_layers: Vec<LayerId>,
    /// JSON text about signatures.
    #[serde(
        default,
        skip_serializing_if = "String::is_empty",
        deserialize_with = "or_default"
    )]
    pub metadata: String,
    /// Keys of the image's big data.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "or_default"
    )]
    pub big_data_names: Vec<String>,
    /// Sizes in bytes of the big data.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "or_default"
    )]
    pub big_data_sizes: BTreeMap<String, i64>,
    /// Digests of the big data.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "or_default"
    )]
    pub big_data_digests: BTreeMap<String, Digest>,
    /// Time of creation, RFC 3339.
    #[serde(
        default,
        skip_serializing_if = "String::is_empty",
        deserialize_with = "or_default"
    )]
    pub created: String,
    /// State of the image.
    #[serde(
        default,
        skip_serializing_if = "Map::is_empty",
        deserialize_with = "or_default"
    )]
    pub flags: Map<String, Value>,
    /// Keys that are not known here.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl ImageRecord {
    /// A record with an ID and nothing else.
    pub fn new(id: ImageId) -> Self {
        Self {
            id,
            digest: None,
            names: Vec::new(),
            names_history: Vec::new(),
            layer: None,
            mapped_layers: Vec::new(),
            metadata: String::new(),
            big_data_names: Vec::new(),
            big_data_sizes: BTreeMap::new(),
            big_data_digests: BTreeMap::new(),
            created: String::new(),
            flags: Map::new(),
            other: Map::new(),
        }
    }

    /// Every manifest digest the image answers to: its own, and that of an index it was chosen from.
    pub fn manifest_digests(&self) -> impl Iterator<Item = &Digest> {
        self.digest.iter().chain(
            self.big_data_digests
                .iter()
                .filter(|(key, _)| key.starts_with("manifest"))
                .map(|(_, digest)| digest),
        )
    }
}

/// A record of `containers.json` or `volatile-containers.json`; read only to learn what is in use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ContainerRecord {
    /// The container's ID.
    pub id: ContainerId,
    /// The container's names.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "or_default"
    )]
    pub names: Vec<String>,
    /// The image it was created from; its record may be gone.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "empty_is_none"
    )]
    pub image: Option<ImageId>,
    /// Its read-write layer.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "empty_is_none"
    )]
    pub layer: Option<LayerId>,
    /// Keys that are not known here.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde passes references
fn is_false(value: &bool) -> bool {
    !value
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(value: &i64) -> bool {
    *value == 0
}

fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn empty_is_none<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<String, Error: std::fmt::Display>,
{
    match Option::<String>::deserialize(deserializer)? {
        Some(text) if !text.is_empty() => T::try_from(text)
            .map(Some)
            .map_err(serde::de::Error::custom),
        _ => Ok(None),
    }
}

fn optional_digest<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Digest>, D::Error> {
    empty_is_none(deserializer)
}
