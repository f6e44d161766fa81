//! The table of contents (TOC) of a layer that was pulled in part: `zstd-chunked-manifest`.
//!
//! It lists the members of the layer's tar with their metadata and the SHA-256 of each file's content.
//! In the *flat* form the layer's directory holds nothing but files named by that SHA-256, so the TOC is
//! what leads from a name to a file. Read as a stream: a TOC may have hundreds of thousands of entries.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use serde::Deserialize;
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

use crate::error::Error;
use crate::ids::is_hex64;
use crate::read::io_error;
use crate::tar_split::{EntryName, MAX_FILES, short_hash};

/// Largest TOC that is read, in bytes; c/storage itself takes no more than 150 MiB.
const MAX_TOC: u64 = 256 << 20;

/// An entry of a TOC.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct TocEntry {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) link_name: String,
    pub(crate) mode: u32,
    pub(crate) size: u64,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// RFC 3339.
    pub(crate) modtime: Option<String>,
    pub(crate) dev_major: u32,
    pub(crate) dev_minor: u32,
    /// Values in base64.
    pub(crate) xattrs: Option<BTreeMap<String, String>>,
    /// `sha256:…` of the content; nothing for an empty file.
    pub(crate) digest: String,
}

/// Reads the TOC at `path` and hands its entries to `take`, in their order, until it returns an error
/// text.
pub(crate) fn read_toc(
    path: &Path,
    take: impl FnMut(TocEntry) -> Result<(), &'static str>,
) -> Result<(), Error> {
    let file = File::open(path).map_err(io_error(path))?;
    let length = file.metadata().map_err(io_error(path))?.len();
    if length > MAX_TOC {
        return Err(Error::TooLarge {
            path: path.to_owned(),
            limit: MAX_TOC,
        });
    }
    let reader = BufReader::with_capacity(64 << 10, file.take(MAX_TOC));
    let mut json = serde_json::Deserializer::from_reader(reader);
    json.deserialize_map(Toc(take))
        .and_then(|()| json.end())
        .map_err(|source| Error::Json {
            path: path.to_owned(),
            source,
        })
}

/// The object of the JSON, of which only `entries` counts.
struct Toc<F>(F);

impl<'de, F: FnMut(TocEntry) -> Result<(), &'static str>> Visitor<'de> for Toc<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table of contents")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            if key == "entries" {
                map.next_value_seed(Entries(&mut self.0))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

struct Entries<'f, F>(&'f mut F);

impl<'de, F: FnMut(TocEntry) -> Result<(), &'static str>> DeserializeSeed<'de> for Entries<'_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, F: FnMut(TocEntry) -> Result<(), &'static str>> Visitor<'de> for Entries<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of entries")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while let Some(entry) = entries.next_element()? {
            (self.0)(entry).map_err(A::Error::custom)?;
        }
        Ok(())
    }
}

/// Where the files of a flat layer are: the SHA-256 of the content by the name, of which 16 bytes of
/// hash are kept.
pub(crate) struct FlatNames(HashMap<[u8; 16], [u8; 32]>);

impl fmt::Debug for FlatNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FlatNames({})", self.0.len())
    }
}

impl FlatNames {
    /// Reads the TOC at `path`.
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        let mut names = HashMap::new();
        read_toc(path, |entry| {
            if entry.kind != "reg" || entry.digest.is_empty() {
                return Ok(());
            }
            if names.len() == MAX_FILES {
                return Err("there are more than 4,194,304 files");
            }
            let name = EntryName::from(entry.name.as_str())
                .beneath()
                .ok_or("the name of a file leads out of the layer")?;
            let digest = digest_bytes(&entry.digest).ok_or("a file has no valid digest")?;
            // The last entry with a name is the one that an extracted tar would show.
            names.insert(short_hash(&name), digest);
            Ok(())
        })?;
        Ok(Self(names))
    }

    /// The file below the layer's directory that has the content of `name`, a name without empty, `.`
    /// and `..` components.
    pub(crate) fn path(&self, name: &[u8]) -> Option<String> {
        let digest = hex::encode(self.0.get(&short_hash(name))?);
        Some(flat_path(&digest))
    }
}

/// The path below a flat layer's directory of the content whose SHA-256 has these 64 hex digits.
pub(crate) fn flat_path(hex: &str) -> String {
    format!("{}/{}", &hex[..2], &hex[2..])
}

fn digest_bytes(text: &str) -> Option<[u8; 32]> {
    let hex = text.strip_prefix("sha256:")?;
    let mut bytes = [0; 32];
    (is_hex64(hex) && hex::decode_to_slice(hex, &mut bytes).is_ok()).then_some(bytes)
}
