//! Records, manifests, configs and indexes that are damaged or lie: an import of them is refused with the
//! file or image in the message, and leaves nothing behind.

use crate::peers::cfsctl_ok;
use crate::scene::{IMAGE, Scene};
use anyhow::{Context, Result, ensure};
use integration::fixture::noise;
use integration::oci::digest;
use integration::tar::Member;
use integration::{Fixture, Kind, Release};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

fn scene() -> Result<Scene> {
    Scene::new(Release::Host, Kind::Xfs, |dir| {
        Fixture::with_layers(dir, vec![vec![Member::file("f", noise(1, 1000))]])
    })
}

/// What can become of a JSON file.
fn damages(text: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut flipped = text.to_vec();
    flipped[text.len() / 2] ^= 0x80;
    vec![
        ("emptied", Vec::new()),
        ("of zeros", vec![0; text.len()]),
        ("cut in half", text[..text.len() / 2].to_vec()),
        ("with a flipped bit", flipped),
        ("with something behind it", [text, b"x"].concat()),
        ("of another type", b"17".to_vec()),
        ("of null", b"null".to_vec()),
        ("of wrong members", br#"[{"id": 17}]"#.to_vec()),
        ("nested 100,000 deep", [b'['; 1].repeat(100_000)),
        (
            "of a number beyond all reason",
            br#"{"schemaVersion": 1e999}"#.to_vec(),
        ),
    ]
}

/// Tries to import `source` and tells what is wrong with how that ends, if it does not end in a refusal
/// with one of `words` in the message.
fn refused(scene: &Scene, arguments: &[&str], words: &[&str]) -> Result<()> {
    let done = scene.store.finish(arguments)?.refused()?;
    ensure!(
        words.is_empty() || words.iter().any(|word| done.stderr.contains(word)),
        "expected one of {words:?} in the message of {done}"
    );
    let images = scene.store.ok(&["images", "--json"])?.text();
    ensure!(!images.contains(IMAGE), "it has a name: {images}");
    scene.store.ok(&["fsck"])?;
    Ok(())
}

fn must_be_empty(wrong: &str) -> Result<()> {
    ensure!(wrong.is_empty(), "{wrong}");
    Ok(())
}

#[test]
fn damaged_records_and_documents_of_podmans_storage_are_refused_by_name() -> Result<()> {
    let scene = scene()?;
    let graphroot = scene.own.graphroot();
    let arguments = scene.import_arguments();
    let arguments = arguments.each_ref().map(String::as_str);
    let id = scene.own.ok(&["inspect", "--format", "{{.Id}}", IMAGE])?;
    let id = id.text();
    let mut files: Vec<PathBuf> = ["overlay-images/images.json", "overlay-layers/layers.json"]
        .map(|name| graphroot.join(name))
        .to_vec();
    for entry in std::fs::read_dir(graphroot.join("overlay-images").join(&id))? {
        let path = entry?.path();
        // The manifest lies there twice, and the second one is for old images.
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !["manifest", "signatures"].contains(&&*name) && !name.starts_with("=c2lnbmF0dXJl") {
            files.push(path);
        }
    }
    let mut wrong = String::new();
    for file in files {
        let good = std::fs::read(&file)?;
        let name = file.file_name().context("a name")?.display().to_string();
        let mut expected = vec![name.as_str(), &id];
        if name == "images.json" {
            // Without a record there is no such image.
            expected.push(IMAGE);
        }
        if name == "layers.json" {
            expected.push("has no record in the store");
        }
        for (what, bad) in damages(&good) {
            std::fs::write(&file, bad)?;
            if let Err(error) = refused(&scene, &arguments, &expected) {
                let _ = writeln!(wrong, "== {name} {what}: {error:#}");
            }
        }
        std::fs::write(&file, good)?;
    }
    scene.import()?;
    must_be_empty(&wrong)
}

/// An OCI layout being forged.
struct Forgery<'a> {
    dir: &'a Path,
    index: Value,
    manifest: Value,
    config: Value,
}

impl<'a> Forgery<'a> {
    fn of(layout: &Path, dir: &'a Path) -> Result<Self> {
        integration::ok(
            std::process::Command::new("cp")
                .arg("-aT")
                .arg(layout)
                .arg(dir),
        )?;
        let read =
            |path: PathBuf| -> Result<Value> { Ok(serde_json::from_slice(&std::fs::read(path)?)?) };
        let blob = |value: &Value| -> Result<PathBuf> {
            let digest = value["digest"].as_str().context("a digest")?;
            Ok(dir.join("blobs").join(digest.replace(':', "/")))
        };
        let index = read(dir.join("index.json"))?;
        let manifest = read(blob(&index["manifests"][0])?)?;
        let config = read(blob(&manifest["config"])?)?;
        Ok(Self {
            dir,
            index,
            manifest,
            config,
        })
    }

    fn blob(&self, value: &Value) -> Result<(String, usize)> {
        let bytes = serde_json::to_vec(value)?;
        let digest = digest(&bytes);
        std::fs::write(
            self.dir.join("blobs").join(digest.replace(':', "/")),
            &bytes,
        )?;
        Ok((digest, bytes.len()))
    }

    /// Writes all of it, with digests and sizes that are right; `last` may then change the index.
    fn write(mut self, last: impl FnOnce(&mut Value)) -> Result<()> {
        if self.manifest["config"].is_object() {
            let (digest, size) = self.blob(&self.config)?;
            self.manifest["config"]["digest"] = digest.into();
            self.manifest["config"]["size"] = size.into();
        }
        let (digest, size) = self.blob(&self.manifest)?;
        self.index["manifests"][0]["digest"] = digest.into();
        self.index["manifests"][0]["size"] = size.into();
        last(&mut self.index);
        std::fs::write(
            self.dir.join("index.json"),
            serde_json::to_vec(&self.index)?,
        )?;
        Ok(())
    }
}

/// A lie, and words one of which the refusal must have.
type Lie = (
    &'static str,
    fn(&mut Forgery<'_>),
    fn(&mut Value),
    &'static [&'static str],
);

const LIES: &[Lie] = &[
    (
        "no layers",
        |f| f.manifest["layers"] = json!([]),
        |_| {},
        &["layer"],
    ),
    (
        "a layer more than diff IDs",
        |f| {
            let layer = f.manifest["layers"][0].clone();
            f.manifest["layers"].as_array_mut().unwrap().push(layer);
        },
        |_| {},
        &["layer"],
    ),
    (
        "the layers in another order",
        |f| f.manifest["layers"].as_array_mut().unwrap().reverse(),
        |_| {},
        &["diff ID", "digest"],
    ),
    (
        "a diff ID of another layer",
        |f| {
            f.config["rootfs"]["diff_ids"][1] = json!(format!("sha256:{}", "0".repeat(64)));
        },
        |_| {},
        &["diff ID"],
    ),
    (
        "a diff ID that is none",
        |f| f.config["rootfs"]["diff_ids"][1] = json!("sha256:../../../../etc/passwd"),
        |_| {},
        &["digest", "diff"],
    ),
    (
        "a layer's digest that leads elsewhere",
        |f| f.manifest["layers"][1]["digest"] = json!("sha256:../../../../../../etc/passwd"),
        |_| {},
        &["cannot be parsed"],
    ),
    (
        "a layer's digest of an unknown algorithm",
        |f| f.manifest["layers"][1]["digest"] = json!("md5:d41d8cd98f00b204e9800998ecf8427e"),
        |_| {},
        &["digest"],
    ),
    (
        "a layer of negative size",
        |f| f.manifest["layers"][1]["size"] = json!(-1),
        |_| {},
        &["cannot be parsed"],
    ),
    (
        "a layer of another size",
        |f| f.manifest["layers"][1]["size"] = json!(7),
        |_| {},
        &["7", "size"],
    ),
    (
        "a layer that is not there",
        |f| {
            f.manifest["layers"][1]["digest"] = json!(format!("sha256:{}", "1".repeat(64)));
        },
        |_| {},
        &["1111"],
    ),
    ("a config that is not there", |_| {}, |_| {}, &[]),
    (
        "no config",
        |f| f.manifest["config"] = json!(null),
        |_| {},
        &["cannot be parsed"],
    ),
    (
        "no rootfs",
        |f| f.config["rootfs"] = json!(null),
        |_| {},
        &["cannot be parsed"],
    ),
    (
        "a config that is a list",
        |f| f.config = json!([1, 2, 3]),
        |_| {},
        &["cannot be parsed"],
    ),
    (
        "a manifest whose digest is another",
        |_| {},
        |index| index["manifests"][0]["digest"] = json!(format!("sha256:{}", "2".repeat(64))),
        &["2222"],
    ),
    (
        "a manifest whose digest leads elsewhere",
        |_| {},
        |index| index["manifests"][0]["digest"] = json!("sha256:../../../../etc/passwd"),
        &["digest", "index"],
    ),
    (
        "a manifest of another size",
        |_| {},
        |index| index["manifests"][0]["size"] = json!(3),
        &["size", "3"],
    ),
    (
        "an index without images",
        |_| {},
        |index| index["manifests"] = json!([]),
        &["latest"],
    ),
    (
        "an index that names itself",
        |_| {},
        |index| {
            index["manifests"][0]["mediaType"] = json!("application/vnd.oci.image.index.v1+json");
        },
        &[],
    ),
    (
        "an index with the name twice",
        |_| {},
        |index| {
            let mut second = index["manifests"][0].clone();
            second["digest"] = json!(format!("sha256:{}", "3".repeat(64)));
            index["manifests"].as_array_mut().unwrap().push(second);
        },
        &["latest"],
    ),
];

#[test]
fn oci_layouts_that_lie_are_refused() -> Result<()> {
    let scene = scene()?;
    let mut wrong = String::new();
    for (number, (what, lie, last, words)) in LIES.iter().enumerate() {
        let dir = scene.disk.path().join(format!("lie{number}"));
        let mut forgery = Forgery::of(scene.fixture.layout(), &dir)?;
        lie(&mut forgery);
        forgery.write(last)?;
        if *what == "a config that is not there" {
            let manifest = Forgery::of(&dir, &scene.disk.path().join("copy"))?.manifest;
            let config = manifest["config"]["digest"].as_str().context("a digest")?;
            std::fs::remove_file(dir.join("blobs").join(config.replace(':', "/")))?;
        }
        let source = format!("oci:{}:latest", dir.display());
        let arguments = ["import", "--tag", IMAGE, &source];
        if let Err(error) = refused(&scene, &arguments, words) {
            let _ = writeln!(wrong, "== {what}: {error:#}");
        }
    }
    cfsctl_ok(scene.store.repo(), &["fsck"])?;
    must_be_empty(&wrong)
}

#[test]
fn damaged_oci_layouts_are_refused() -> Result<()> {
    let scene = scene()?;
    let dir = scene.fixture.layout();
    let source = format!("oci:{}:latest", dir.display());
    let arguments = ["import", "--tag", IMAGE, &source];
    let copy = scene.disk.path().join("copy");
    let forgery = Forgery::of(dir, &copy)?;
    let blob = |value: &Value| -> Result<PathBuf> {
        let digest = value["digest"].as_str().context("a digest")?;
        Ok(dir.join("blobs").join(digest.replace(':', "/")))
    };
    let mut wrong = String::new();
    for (name, file) in [
        ("index.json", dir.join("index.json")),
        ("manifest", blob(&forgery.index["manifests"][0])?),
        ("config", blob(&forgery.manifest["config"])?),
        ("first layer", blob(&forgery.manifest["layers"][0])?),
        ("last layer", blob(&forgery.manifest["layers"][1])?),
    ] {
        let good = std::fs::read(&file)?;
        let file_name = file.file_name().context("a name")?.display().to_string();
        for (what, bad) in damages(&good) {
            std::fs::write(&file, bad)?;
            if let Err(error) = refused(&scene, &arguments, &[&file_name, "cannot be parsed"]) {
                let _ = writeln!(wrong, "== {name} {what}: {error:#}");
            }
        }
        std::fs::remove_file(&file)?;
        if let Err(error) = refused(&scene, &arguments, &[&file_name, "cannot be parsed"]) {
            let _ = writeln!(wrong, "== {name} removed: {error:#}");
        }
        std::fs::write(&file, good)?;
    }
    scene.store.ok(&arguments)?;
    scene.store.ok(&["fsck"])?;
    must_be_empty(&wrong)
}
