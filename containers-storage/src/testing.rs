//! Stores in the shapes that other versions and settings of podman give them, for tests.
//!
//! A [`Reshape`] takes a store of the overlay driver that somebody made, podman or a test, and rewrites it
//! on disk into another shape with the same images. It panics on whatever goes wrong.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use rustix::fs::{FileType, Mode, XattrFlags};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::ids::LayerId;
use crate::own_store::big_data_file_name;

/// Where the records of image layers are in a split store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SplitRecords {
    /// In the graph root, as podman 4.6 to 5.4 has it.
    Graphroot,
    /// In the image store, as podman 5.5 and later has it.
    Imagestore,
}

/// A store to be rewritten. No engine may use it meanwhile.
#[derive(Debug)]
pub struct Reshape {
    root: PathBuf,
}

impl Reshape {
    /// The store of the overlay driver at `root`.
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    fn records_file(&self) -> PathBuf {
        self.root.join("overlay-layers/layers.json")
    }

    fn records(&self) -> Vec<Value> {
        read_json(&self.records_file())
    }

    /// All layers, a layer behind its parent.
    pub fn layers(&self) -> Vec<LayerId> {
        let mut records = self.records();
        let mut done: Vec<LayerId> = Vec::new();
        while !records.is_empty() {
            let before = records.len();
            records.retain(|record| {
                let parent = record["parent"].as_str().unwrap_or_default();
                let ready = parent.is_empty() || done.iter().any(|id| id.as_str() == parent);
                if ready {
                    done.push(id_of(record).parse().expect("an ID"));
                }
                !ready
            });
            assert!(records.len() < before, "a parent is missing");
        }
        done
    }

    fn change(&self, layer: &LayerId, change: impl FnOnce(&mut Value)) {
        let mut records = self.records();
        let record = records
            .iter_mut()
            .find(|record| id_of(record) == layer.as_str());
        change(record.expect("the layer has a record"));
        write_json(&self.records_file(), &records);
    }

    /// The layer's directory.
    pub fn directory(&self, layer: &LayerId) -> PathBuf {
        self.root.join("overlay").join(layer.as_str())
    }

    /// The layer's tar-split.
    pub fn tar_split(&self, layer: &LayerId) -> PathBuf {
        self.root
            .join(format!("overlay-layers/{layer}.tar-split.gz"))
    }

    fn set_big_data(&self, layer: &LayerId, key: &str, content: &Value) {
        let dir = self.root.join("overlay-layers").join(layer.as_str());
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(big_data_file_name(key)), content.to_string()).unwrap();
        self.change(layer, |record| {
            let names = &mut record["big-data-names"];
            if !names.is_array() {
                *names = json!([]);
            }
            names.as_array_mut().expect("a list").push(json!(key));
        });
    }

    /// Compresses the tar-split with zstd.
    pub fn zstd_tar_split(&self, layer: &LayerId) {
        let path = self.tar_split(layer);
        let mut lines = Vec::new();
        MultiGzDecoder::new(fs::File::open(&path).unwrap())
            .read_to_end(&mut lines)
            .unwrap();
        fs::write(path, zstd::encode_all(lines.as_slice(), 3).unwrap()).unwrap();
    }

    /// Removes the tar-split, as a partial pull of a blob without one leaves the layer.
    pub fn without_tar_split(&self, layer: &LayerId) {
        fs::remove_file(self.tar_split(layer)).unwrap();
    }

    /// Marks the layer as being created or removed.
    pub fn incomplete(&self, layer: &LayerId) {
        self.change(layer, |record| {
            record["flags"] = json!({"incomplete": true});
        });
    }

    /// Moves the layer's record to the volatile ones.
    pub fn volatile(&self, layer: &LayerId) {
        let (volatile, stable): (Vec<_>, Vec<_>) = self
            .records()
            .into_iter()
            .partition(|record| id_of(record) == layer.as_str());
        write_json(&self.records_file(), &stable);
        let path = self.root.join("overlay-layers/volatile-layers.json");
        write_json(&path, &volatile);
    }

    /// Gives the layer the flat form of a partial pull: its files by the SHA-256 of their content, and a
    /// table of contents with what the directory tree has of names and metadata.
    pub fn flat(&self, layer: &LayerId) {
        let dir = self.directory(layer);
        let (diff, objects) = (dir.join("diff"), dir.join("objects"));
        fs::create_dir(&objects).unwrap();
        let mut entries = Vec::new();
        let mut links = BTreeMap::new();
        walk(&diff, &mut |path, name| {
            entries.push(toc_entry(path, name, &objects, &mut links));
        });
        fs::remove_dir_all(&diff).unwrap();
        fs::rename(objects, diff).unwrap();
        fs::create_dir(dir.join("composefs-data")).unwrap();
        let toc = json!({"version": 1, "entries": entries, "tarSplitDigest": ""});
        self.set_big_data(layer, "zstd-chunked-manifest", &toc);
        self.set_big_data(layer, "zstd-chunked-layer-data", &json!({"format": 1}));
    }

    /// Makes the layer one that only its table of contents identifies, as
    /// `insecure_allow_unpredictable_image_contents` does: no diff ID in the record, another layer ID,
    /// another image ID. It must be the top layer of one image. Returns the new ID.
    pub fn toc_only(&self, layer: &LayerId) -> LayerId {
        let toc = hex::encode(Sha256::digest(layer.as_str()));
        let id = hex::encode(Sha256::digest(format!("@TOC={toc}")));
        self.change(layer, |record| {
            let diff_id = record["diff-digest"].take();
            let record = record.as_object_mut().expect("an object");
            record.remove("diff-digest");
            record.insert("id".into(), json!(id));
            record.insert("diff-size".into(), json!(-1));
            record.insert("toc-digest".into(), json!(format!("sha256:{toc}")));
            record.insert("flags".into(), json!({"expected-layer-diffid": diff_id}));
        });
        let new: LayerId = id.parse().expect("an ID");
        fs::rename(self.directory(layer), self.directory(&new)).unwrap();
        if self.tar_split(layer).exists() {
            fs::rename(self.tar_split(layer), self.tar_split(&new)).unwrap();
        }
        let data = self.root.join("overlay-layers");
        if data.join(layer.as_str()).exists() {
            fs::rename(data.join(layer.as_str()), data.join(&id)).unwrap();
        }
        let images_file = self.root.join("overlay-images/images.json");
        let mut images: Vec<Value> = read_json(&images_file);
        for image in &mut images {
            if image["layer"] == json!(layer) {
                let config = id_of(image).to_owned();
                let image_id = hex::encode(Sha256::digest(format!("@With TOC:{config}|{toc}|")));
                let dir = self.root.join("overlay-images");
                fs::rename(dir.join(&config), dir.join(&image_id)).unwrap();
                image["id"] = json!(image_id);
                image["layer"] = json!(new);
            }
        }
        write_json(&images_file, &images);
        new
    }

    /// Shifts the layer's files to older generations, with metacopy stubs in front, as id-mapped copies
    /// do: every other file to `diff1`, the rest to `diff2`.
    pub fn generations(&self, layer: &LayerId) {
        let dir = self.directory(layer);
        fs::rename(dir.join("diff"), dir.join("diff2")).unwrap();
        let mut number = 0;
        walk(&dir.join("diff2"), &mut |path, name| {
            let metadata = path.symlink_metadata().unwrap();
            let (front, first) = (dir.join("diff").join(name), dir.join("diff1").join(name));
            if metadata.is_dir() {
                for copy in [front, first] {
                    fs::create_dir_all(&copy).unwrap();
                    fs::set_permissions(&copy, metadata.permissions()).unwrap();
                }
            } else if metadata.is_file() && metadata.len() > 0 {
                fs::write(&front, vec![0; metadata.len() as usize]).unwrap();
                let stub = "user.overlay.metacopy";
                rustix::fs::setxattr(&front, stub, b"", XattrFlags::empty()).unwrap();
                if number % 2 == 0 {
                    fs::rename(path, first).unwrap();
                }
                number += 1;
            }
        });
    }

    /// Splits the store: images and their layers in the new root `imagestore`.
    pub fn split(&self, imagestore: &Path, records: SplitRecords) {
        for dir in ["overlay", "overlay-layers", "overlay-images"] {
            fs::create_dir_all(imagestore.join(dir)).unwrap();
        }
        let locks = ["overlay-layers/layers.lock", "overlay-images/images.lock"];
        for lock in locks {
            fs::write(imagestore.join(lock), b"").unwrap();
        }
        let move_all = |dir: &str| {
            for entry in fs::read_dir(self.root.join(dir)).unwrap() {
                let name = entry.unwrap().file_name();
                if !name.as_bytes().ends_with(b".lock") {
                    let to = imagestore.join(dir).join(&name);
                    fs::rename(self.root.join(dir).join(&name), to).unwrap();
                }
            }
        };
        move_all("overlay");
        move_all("overlay-images");
        if records == SplitRecords::Imagestore {
            let to = imagestore.join("overlay-layers/layers.json");
            fs::rename(self.records_file(), to).unwrap();
        }
    }

    /// Makes it a store of the vfs driver: each layer's directory has the whole tree up to it.
    pub fn vfs(&self) {
        let parents: BTreeMap<String, String> = self
            .records()
            .iter()
            .map(|record| {
                let parent = record["parent"].as_str().unwrap_or_default();
                (id_of(record).to_owned(), parent.to_owned())
            })
            .collect();
        let dirs = self.root.join("vfs/dir");
        fs::create_dir_all(&dirs).unwrap();
        for layer in self.layers() {
            let to = dirs.join(layer.as_str());
            fs::create_dir(&to).unwrap();
            let parent = &parents[layer.as_str()];
            if !parent.is_empty() {
                apply(&dirs.join(parent), &to);
            }
            apply(&self.directory(&layer).join("diff"), &to);
        }
        fs::remove_dir_all(self.root.join("overlay")).unwrap();
        for what in ["layers", "images", "containers"] {
            let from = self.root.join(format!("overlay-{what}"));
            if from.exists() {
                fs::rename(from, self.root.join(format!("vfs-{what}"))).unwrap();
            }
        }
    }
}

/// Copies the tree `from` over the tree `to`; overlay's whiteouts remove.
fn apply(from: &Path, to: &Path) {
    let mut links: BTreeMap<u64, PathBuf> = BTreeMap::new();
    walk(from, &mut |path, name| {
        let target = to.join(name);
        let metadata = path.symlink_metadata().unwrap();
        let is_dir = metadata.is_dir();
        let exists = target.symlink_metadata();
        if exists
            .as_ref()
            .is_ok_and(|there| !(is_dir && there.is_dir()))
        {
            if exists.is_ok_and(|there| there.is_dir()) {
                fs::remove_dir_all(&target).unwrap();
            } else {
                fs::remove_file(&target).unwrap();
            }
        }
        if metadata.file_type().is_char_device() && metadata.rdev() == 0 {
            return;
        }
        if is_dir {
            if is_opaque(path) && target.exists() {
                fs::remove_dir_all(&target).unwrap();
            }
            fs::create_dir_all(&target).unwrap();
            fs::set_permissions(&target, metadata.permissions()).unwrap();
        } else if let Some(first) = links.get(&metadata.ino()) {
            fs::hard_link(first, &target).unwrap();
        } else if metadata.is_symlink() {
            symlink(path.read_link().unwrap(), &target).unwrap();
        } else if metadata.is_file() {
            fs::copy(path, &target).unwrap();
            links.insert(metadata.ino(), target);
        } else {
            let kind = FileType::from_raw_mode(metadata.mode());
            let mode = Mode::from_raw_mode(metadata.permissions().mode());
            rustix::fs::mknodat(rustix::fs::CWD, &target, kind, mode, metadata.rdev()).unwrap();
        }
    });
}

fn is_opaque(path: &Path) -> bool {
    let mut value = [0; 4];
    ["trusted.overlay.opaque", "user.overlay.opaque"]
        .iter()
        .any(|name| matches!(rustix::fs::lgetxattr(path, *name, &mut value), Ok(1) if value[0] == b'y'))
}

/// Calls `visit` with every path below `root`, sorted, directories before what they hold.
fn walk(root: &Path, visit: &mut dyn FnMut(&Path, &Path)) {
    fn descend(root: &Path, name: &Path, visit: &mut dyn FnMut(&Path, &Path)) {
        let mut names: Vec<_> = fs::read_dir(root.join(name))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        for child in names {
            let name = name.join(child);
            let path = root.join(&name);
            let is_dir = path.symlink_metadata().unwrap().is_dir();
            visit(&path, &name);
            if is_dir {
                descend(root, &name, visit);
            }
        }
    }
    descend(root, Path::new(""), visit);
}

/// The entry of a TOC for a file of a tree, whose content goes to `objects`.
fn toc_entry(path: &Path, name: &Path, objects: &Path, links: &mut BTreeMap<u64, String>) -> Value {
    let metadata = path.symlink_metadata().unwrap();
    let text = String::from_utf8(name.as_os_str().to_owned().into_vec());
    let name = text.expect("a TOC has only UTF-8 names");
    let mut entry = json!({
        "name": name, "mode": metadata.permissions().mode() & 0o7777,
        "uid": metadata.uid(), "gid": metadata.gid(), "modtime": "2024-05-01T12:00:00Z",
    });
    let kind = metadata.file_type();
    if kind.is_dir() {
        entry["type"] = json!("dir");
        entry["name"] = json!(format!("{name}/"));
    } else if kind.is_symlink() {
        entry["type"] = json!("symlink");
        entry["linkName"] = json!(path.read_link().unwrap());
    } else if kind.is_char_device() && metadata.rdev() == 0 {
        let (dir, base) = name
            .rsplit_once('/')
            .map_or(("", &*name), |(dir, base)| (dir, base));
        let separator = if dir.is_empty() { "" } else { "/" };
        entry["type"] = json!("reg");
        entry["name"] = json!(format!("{dir}{separator}.wh.{base}"));
    } else if kind.is_char_device() || kind.is_block_device() {
        entry["type"] = json!(if kind.is_char_device() {
            "char"
        } else {
            "block"
        });
        entry["devMajor"] = json!(rustix::fs::major(metadata.rdev()));
        entry["devMinor"] = json!(rustix::fs::minor(metadata.rdev()));
    } else if kind.is_fifo() {
        entry["type"] = json!("fifo");
    } else if let Some(first) = links.get(&metadata.ino()) {
        entry["type"] = json!("hardlink");
        entry["linkName"] = json!(first);
    } else {
        links.insert(metadata.ino(), name);
        let content = fs::read(path).unwrap();
        let hex = hex::encode(Sha256::digest(&content));
        let object = objects.join(&hex[..2]).join(&hex[2..]);
        fs::create_dir_all(object.parent().expect("a directory")).unwrap();
        fs::write(object, &content).unwrap();
        entry["type"] = json!("reg");
        if !content.is_empty() {
            entry["size"] = json!(content.len());
            entry["digest"] = json!(format!("sha256:{hex}"));
        }
    }
    entry
}

fn id_of(record: &Value) -> &str {
    record["id"].as_str().expect("a record has an ID")
}

fn read_json(path: &Path) -> Vec<Value> {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn write_json(path: &Path, records: &[Value]) {
    let mut file = fs::File::create(path).unwrap();
    serde_json::to_writer(&mut file, records).unwrap();
    file.flush().unwrap();
}
