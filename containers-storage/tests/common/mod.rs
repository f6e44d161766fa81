//! A small store made in a temporary directory, with the files an engine would write.
#![allow(dead_code, unreachable_pub, missing_docs)] // each test binary uses its own part

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use containers_storage::own_store::big_data_file_name;
use containers_storage::{
    ConfigDigest, ContentCrc, DiffId, LayerId, ManifestDigest, OpenOptions, Storage, chain_id,
};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The mark that the fixture's lock files start with.
pub const MARK: [u8; 64] = [7; 64];

pub struct Fixture {
    pub dir: TempDir,
}

/// A root in the temporary directory.
pub struct Root {
    pub path: PathBuf,
}

/// A layer as the fixture wrote it.
#[derive(Clone)]
pub struct MadeLayer {
    pub id: LayerId,
    pub diff_id: DiffId,
    pub tar: Vec<u8>,
}

impl Fixture {
    pub fn new() -> Self {
        Self {
            dir: TempDir::new().expect("a temporary directory"),
        }
    }

    pub fn root(&self, name: &str) -> Root {
        let path = self.dir.path().join(name);
        for (dir, kind) in [
            ("overlay-layers", "layers"),
            ("overlay-images", "images"),
            ("overlay-containers", "containers"),
        ] {
            fs::create_dir_all(path.join(dir)).unwrap();
            fs::write(path.join(dir).join(format!("{kind}.lock")), MARK).unwrap();
            fs::write(path.join(dir).join(format!("{kind}.json")), "[]").unwrap();
        }
        fs::create_dir_all(path.join("overlay/l")).unwrap();
        Root { path }
    }
}

impl Root {
    pub fn open(&self) -> Storage {
        Storage::open(&OpenOptions {
            root: Some(self.path.clone()),
            conf: None,
        })
        .expect("the fixture is a store")
    }

    pub fn layers_json(&self) -> PathBuf {
        self.path.join("overlay-layers/layers.json")
    }

    pub fn images_json(&self) -> PathBuf {
        self.path.join("overlay-images/images.json")
    }

    pub fn diff(&self, layer: &MadeLayer) -> PathBuf {
        self.path
            .join("overlay")
            .join(layer.id.as_str())
            .join("diff")
    }

    pub fn tar_split(&self, layer: &MadeLayer) -> PathBuf {
        self.path
            .join(format!("overlay-layers/{}.tar-split.gz", layer.id))
    }

    /// A layer with these files, on `parent`, complete with directory, tar-split and record.
    pub fn layer(&self, parent: Option<&MadeLayer>, files: &[(&str, &[u8])]) -> MadeLayer {
        let (tar, split) = tar(files);
        let diff_id = DiffId::of(&tar);
        let id = chain_id(parent.map(|parent| &parent.id), &diff_id);
        let layer = MadeLayer { id, diff_id, tar };
        for (name, content) in files {
            let path = self.diff(&layer).join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        fs::create_dir_all(self.diff(&layer)).unwrap();
        fs::write(self.tar_split(&layer), gzip(split.as_bytes())).unwrap();
        let mut record = json!({
            "id": layer.id,
            "created": "2025-01-02T03:04:05.678Z",
            "diff-digest": diff_id.to_string(),
            "diff-size": layer.tar.len(),
        });
        if let Some(parent) = parent {
            record["parent"] = json!(parent.id);
        }
        self.add_record("overlay-layers/layers.json", record);
        layer
    }

    /// An image with these layers, bottom first; returns its ID and manifest digest.
    pub fn image(&self, names: &[&str], layers: &[&MadeLayer]) -> (String, ManifestDigest) {
        let config = json!({
            "architecture": "amd64", "os": "linux", "comment": names.first(),
            "rootfs": {"type": "layers",
                "diff_ids": layers.iter().map(|l| l.diff_id.to_string()).collect::<Vec<_>>()},
        })
        .to_string();
        let config_digest = ConfigDigest::of(config.as_bytes());
        let manifest = json!({
            "schemaVersion": 2,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config_digest.to_string(), "size": config.len()},
            "layers": [],
        })
        .to_string();
        let digest = ManifestDigest::of(manifest.as_bytes());
        let id = config_digest.to_hex();
        let dir = self.path.join("overlay-images").join(&id);
        fs::create_dir_all(&dir).unwrap();
        for (key, bytes) in [
            (config_digest.to_string(), &config),
            (format!("manifest-{digest}"), &manifest),
            ("manifest".to_owned(), &manifest),
        ] {
            fs::write(dir.join(big_data_file_name(&key)), bytes).unwrap();
        }
        self.add_record(
            "overlay-images/images.json",
            json!({
                "id": id, "digest": digest.to_string(), "names": names,
                "layer": layers.last().map(|l| l.id.as_str()),
                "metadata": "{}",
                "big-data-names": [config_digest.to_string(), "manifest"],
                "big-data-sizes": {"manifest": manifest.len()},
                "big-data-digests": {"manifest": digest.to_string()},
                "created": "2025-01-02T03:04:05.678Z",
            }),
        );
        (id, digest)
    }

    pub fn add_record(&self, file: &str, record: Value) {
        let path = self.path.join(file);
        let mut records = fs::read(&path)
            .map(|bytes| serde_json::from_slice::<Vec<Value>>(&bytes).unwrap())
            .unwrap_or_default();
        records.push(record);
        fs::write(&path, serde_json::to_vec(&records).unwrap()).unwrap();
    }

    /// Changes the first record of `layers.json` for which `pick` holds.
    pub fn change_layer(&self, layer: &MadeLayer, change: impl FnOnce(&mut Value)) {
        let path = self.layers_json();
        let mut records: Vec<Value> = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let record = records
            .iter_mut()
            .find(|record| record["id"] == json!(layer.id))
            .expect("the layer has a record");
        change(record);
        fs::write(&path, serde_json::to_vec(&records).unwrap()).unwrap();
    }

    /// As a writer does: another mark in the lock file.
    pub fn mark_layers_written(&self) {
        fs::write(self.path.join("overlay-layers/layers.lock"), [8; 64]).unwrap();
    }
}

/// A tar of regular files and the lines of its tar-split.
pub fn tar(files: &[(&str, &[u8])]) -> (Vec<u8>, String) {
    let (mut tar, mut split, mut segment) = (Vec::new(), String::new(), Vec::new());
    let flush = |segment: &mut Vec<u8>, split: &mut String| {
        if !segment.is_empty() {
            let payload = STANDARD.encode(&segment);
            *split += &json!({"type": 2, "payload": payload, "position": 0}).to_string();
            split.push('\n');
            segment.clear();
        }
    };
    for (name, content) in files {
        let header = header(name, content.len());
        tar.extend(&header);
        segment.extend(&header);
        flush(&mut segment, &mut split);
        let mut crc = ContentCrc::new();
        crc.update(content);
        let line = if content.is_empty() {
            json!({"type": 1, "name": name, "payload": null, "position": 0})
        } else {
            json!({"type": 1, "name": name, "size": content.len(),
                "payload": STANDARD.encode(crc.finish()), "position": 0})
        };
        split += &line.to_string();
        split.push('\n');
        tar.extend(*content);
        let padding = vec![0; content.len().next_multiple_of(512) - content.len()];
        tar.extend(&padding);
        segment.extend(&padding);
    }
    tar.extend([0; 1024]);
    segment.extend([0; 1024]);
    flush(&mut segment, &mut split);
    (tar, split)
}

fn header(name: &str, size: usize) -> [u8; 512] {
    let mut header = [0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..107].copy_from_slice(b"0000644");
    header[108..115].copy_from_slice(b"0000000");
    header[116..123].copy_from_slice(b"0000000");
    header[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    header[136..147].copy_from_slice(b"00000000000");
    header[148..156].copy_from_slice(b"        ");
    header[156] = b'0';
    header[257..263].copy_from_slice(b"ustar\0");
    header[263..265].copy_from_slice(b"00");
    let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The tar of a layer, put together from tar-split and files.
pub fn reassemble(layer: &containers_storage::Layer) -> Result<Vec<u8>, containers_storage::Error> {
    use containers_storage::TarSplitEntry::{File, Segment};
    let open = layer.open()?;
    let mut tar = Vec::new();
    for entry in open.tar_split()? {
        match entry? {
            Segment(bytes) => tar.extend(bytes),
            File { size: 0, .. } => {}
            File { name, .. } => {
                std::io::Read::read_to_end(&mut open.open_file(&name)?, &mut tar).unwrap();
            }
        }
    }
    Ok(tar)
}

pub fn conf_for(main: &Path, toml: &str) -> containers_storage::StorageConf {
    let environment = containers_storage::Environment::default();
    let text = format!(
        "[storage]\ndriver=\"overlay\"\ngraphroot=\"{}\"\n{toml}",
        main.display()
    );
    containers_storage::StorageConf::parse(&text, Path::new("storage.conf"), &environment).unwrap()
}

pub fn open_conf(conf: containers_storage::StorageConf) -> Storage {
    Storage::open(&OpenOptions {
        root: None,
        conf: Some(conf),
    })
    .unwrap()
}
