//! Generated containers-storage roots: what podman would have written for given tar entries, without
//! podman, so that every part of it can be damaged.

#![allow(dead_code, reason = "not every test file uses all of it")]

pub(crate) mod repo;

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use containers_storage::{
    ConfigDigest, ContentCrc, DiffId, Image, LayerId, ManifestDigest, OpenOptions, Storage,
    chain_id,
};
use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};

/// A member of a layer's tar.
#[derive(Clone)]
pub(crate) struct Entry {
    name: &'static str,
    kind: u8,
    link: &'static str,
    content: Vec<u8>,
    /// Content that the tar-split has in a segment instead of leaving it to the file.
    embedded: bool,
}

pub(crate) fn dir(name: &'static str) -> Entry {
    entry(name, b'5', "", Vec::new())
}

pub(crate) fn file(name: &'static str, content: impl Into<Vec<u8>>) -> Entry {
    entry(name, b'0', "", content.into())
}

/// A file whose content the tar-split holds in a segment.
pub(crate) fn embedded(name: &'static str, content: impl Into<Vec<u8>>) -> Entry {
    Entry {
        embedded: true,
        ..file(name, content)
    }
}

pub(crate) fn link(name: &'static str, target: &'static str) -> Entry {
    entry(name, b'2', target, Vec::new())
}

pub(crate) fn hard_link(name: &'static str, target: &'static str) -> Entry {
    entry(name, b'1', target, Vec::new())
}

/// A member of any type.
pub(crate) fn member(name: &'static str, kind: u8, content: impl Into<Vec<u8>>) -> Entry {
    entry(name, kind, "", content.into())
}

pub(crate) fn entry(name: &'static str, kind: u8, link: &'static str, content: Vec<u8>) -> Entry {
    Entry {
        name,
        kind,
        link,
        content,
        embedded: false,
    }
}

/// `len` bytes without any pattern that repeats at block boundaries.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        })
        .collect()
}

impl Entry {
    fn header(&self) -> [u8; 512] {
        let mut header = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, self.name.as_bytes());
        put(
            100,
            if self.kind == b'5' {
                b"0000755\0"
            } else {
                b"0000644\0"
            },
        );
        put(108, b"0000000\0");
        put(116, b"0000000\0");
        put(124, format!("{:011o}\0", self.content.len()).as_bytes());
        put(136, b"14371573200\0");
        put(148, b"        ");
        put(156, &[self.kind]);
        put(157, self.link.as_bytes());
        put(257, b"ustar\x0000");
        put(329, b"0000000\0");
        put(337, b"0000000\0");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        header
    }
}

/// A layer's tar with its tar-split.
pub(crate) struct LayerData {
    pub(crate) tar: Vec<u8>,
    pub(crate) tar_split: Vec<Value>,
    entries: Vec<Entry>,
}

impl LayerData {
    pub(crate) fn new(entries: &[Entry]) -> Self {
        let mut data = Self {
            tar: Vec::new(),
            tar_split: Vec::new(),
            entries: entries.to_vec(),
        };
        let mut segment = Vec::new();
        for entry in entries {
            segment.extend(entry.header());
            data.tar.extend(entry.header());
            data.tar.extend(&entry.content);
            let padding = entry.content.len().wrapping_neg() % 512;
            data.tar.extend(&vec![0; padding]);
            if entry.embedded {
                segment.extend(&entry.content);
            } else {
                data.segment(std::mem::take(&mut segment));
                data.file(entry.name, &entry.content);
            }
            segment.extend(vec![0; padding]);
        }
        segment.extend([0; 1024]);
        data.tar.extend([0; 1024]);
        data.segment(segment);
        data
    }

    fn segment(&mut self, bytes: Vec<u8>) {
        if !bytes.is_empty() {
            self.push(json!({"type": 2, "payload": STANDARD.encode(bytes)}));
        }
    }

    fn file(&mut self, name: &str, content: &[u8]) {
        if content.is_empty() {
            return self.push(json!({"type": 1, "name": name, "payload": null}));
        }
        let mut crc = ContentCrc::new();
        crc.update(content);
        self.push(json!({
            "type": 1, "name": name, "size": content.len(), "payload": STANDARD.encode(crc.finish()),
        }));
    }

    fn push(&mut self, mut line: Value) {
        line["position"] = self.tar_split.len().into();
        self.tar_split.push(line);
    }

    pub(crate) fn diff_id(&self) -> DiffId {
        DiffId::of(&self.tar)
    }

    fn write_tree(&self, diff: &Path) {
        fs::create_dir_all(diff).unwrap();
        for entry in &self.entries {
            let path = diff.join(entry.name);
            match entry.kind {
                b'5' => fs::create_dir_all(path).unwrap(),
                b'2' => symlink(entry.link, path).unwrap(),
                b'1' => fs::hard_link(diff.join(entry.link), path).unwrap(),
                _ => {
                    fs::create_dir_all(path.parent().unwrap()).unwrap();
                    fs::write(path, &entry.content).unwrap();
                }
            }
        }
    }

    fn write_tar_split(&self, path: &Path) {
        let mut gzip = GzEncoder::new(fs::File::create(path).unwrap(), Compression::fast());
        for line in &self.tar_split {
            writeln!(gzip, "{line}").unwrap();
        }
        gzip.finish().unwrap();
    }
}

/// A storage root with one image, and what was put into it.
pub(crate) struct Store {
    dir: tempfile::TempDir,
    pub(crate) layers: Vec<LayerData>,
    pub(crate) ids: Vec<LayerId>,
    pub(crate) image: String,
}

impl Store {
    /// An image of these layers, bottom layer first.
    pub(crate) fn new(layers: &[&[Entry]]) -> Self {
        Self::of(
            layers
                .iter()
                .map(|entries| LayerData::new(entries))
                .collect(),
        )
    }

    pub(crate) fn of(layers: Vec<LayerData>) -> Self {
        let diff_ids: Vec<_> = layers.iter().map(LayerData::diff_id).collect();
        Self::claiming(layers, &diff_ids)
    }

    /// An image of these layers in a storage root below `parent`.
    pub(crate) fn new_in(parent: &Path, layers: &[&[Entry]]) -> Self {
        let layers: Vec<_> = layers
            .iter()
            .map(|entries| LayerData::new(entries))
            .collect();
        let diff_ids: Vec<_> = layers.iter().map(LayerData::diff_id).collect();
        Self::create(tempfile::tempdir_in(parent).unwrap(), layers, &diff_ids)
    }

    /// An image whose config claims the diff IDs for the layers.
    pub(crate) fn claiming(layers: Vec<LayerData>, diff_ids: &[DiffId]) -> Self {
        Self::create(tempfile::tempdir().unwrap(), layers, diff_ids)
    }

    fn create(dir: tempfile::TempDir, layers: Vec<LayerData>, diff_ids: &[DiffId]) -> Self {
        let root = dir.path();
        for name in ["overlay/l", "overlay-layers", "overlay-images"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        for name in ["overlay-layers/layers.lock", "overlay-images/images.lock"] {
            fs::write(root.join(name), b"").unwrap();
        }

        let (mut ids, mut records) = (Vec::<LayerId>::new(), Vec::new());
        for (layer, diff_id) in layers.iter().zip(diff_ids) {
            let id = chain_id(ids.last(), diff_id);
            layer.write_tree(&root.join("overlay").join(id.as_str()).join("diff"));
            layer.write_tar_split(&root.join(format!("overlay-layers/{id}.tar-split.gz")));
            let mut record = json!({
                "id": id.as_str(),
                "created": "2024-05-01T12:00:00Z",
                "diff-digest": diff_id.to_string(),
                "diff-size": layer.tar.len(),
            });
            if let Some(parent) = ids.last() {
                record["parent"] = parent.as_str().into();
            }
            records.push(record);
            ids.push(id);
        }
        fs::write(
            root.join("overlay-layers/layers.json"),
            json!(records).to_string(),
        )
        .unwrap();

        let config = json!({
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": {
                "type": "layers",
                "diff_ids": diff_ids.iter().map(ToString::to_string).collect::<Vec<_>>(),
            },
        })
        .to_string()
        .into_bytes();
        let config_digest = ConfigDigest::of(&config);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config_digest.to_string(),
                "size": config.len(),
            },
            "layers": layers.iter().zip(diff_ids).map(|(layer, diff_id)| json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": diff_id.to_string(),
                "size": layer.tar.len(),
            })).collect::<Vec<_>>(),
        })
        .to_string()
        .into_bytes();
        let manifest_digest = ManifestDigest::of(&manifest);
        let image = config_digest.to_hex();
        let mut record = json!({
            "id": image,
            "digest": manifest_digest.to_string(),
            "names": ["localhost/test:1"],
            "created": "2024-05-01T12:00:00Z",
            "big-data-names": [config_digest.to_string(), format!("manifest-{manifest_digest}"), "manifest"],
            "big-data-digests": {
                config_digest.to_string(): config_digest.to_string(),
                format!("manifest-{manifest_digest}"): manifest_digest.to_string(),
                "manifest": manifest_digest.to_string(),
            },
        });
        if let Some(top) = ids.last() {
            record["layer"] = top.as_str().into();
        }
        fs::write(
            root.join("overlay-images/images.json"),
            json!([record]).to_string(),
        )
        .unwrap();
        let data = root.join("overlay-images").join(&image);
        fs::create_dir(&data).unwrap();
        let big = |key: String| data.join(format!("={}", STANDARD.encode(key)));
        fs::write(big(config_digest.to_string()), &config).unwrap();
        fs::write(big(format!("manifest-{manifest_digest}")), &manifest).unwrap();
        fs::write(data.join("manifest"), &manifest).unwrap();

        Self {
            dir,
            layers,
            ids,
            image,
        }
    }

    pub(crate) fn image(&self) -> Image {
        let storage = Storage::open(&OpenOptions {
            root: Some(self.dir.path().to_owned()),
            conf: None,
        })
        .unwrap();
        storage.find_image("localhost/test:1").unwrap()
    }

    /// The storage root.
    pub(crate) fn root(&self) -> &Path {
        self.dir.path()
    }

    /// The directory of a layer's files.
    pub(crate) fn diff(&self, layer: usize) -> PathBuf {
        self.dir
            .path()
            .join("overlay")
            .join(self.ids[layer].as_str())
            .join("diff")
    }

    pub(crate) fn tar_split(&self, layer: usize) -> PathBuf {
        self.dir
            .path()
            .join(format!("overlay-layers/{}.tar-split.gz", self.ids[layer]))
    }

    /// Writes a layer's tar-split again, after `change` had its way with the lines.
    pub(crate) fn change_tar_split(&mut self, layer: usize, change: impl FnOnce(&mut Vec<Value>)) {
        change(&mut self.layers[layer].tar_split);
        self.layers[layer].write_tar_split(&self.tar_split(layer));
    }

    /// Has the record of a layer claim a size for its tar.
    pub(crate) fn claim_size(&self, layer: usize, size: u64) {
        let path = self.dir.path().join("overlay-layers/layers.json");
        let mut records: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        records[layer]["diff-size"] = size.into();
        fs::write(path, records.to_string()).unwrap();
    }
}
