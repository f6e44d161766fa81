//! One image among several: what `inspect` says of it, what `fsck IMAGE` looks at, what `df` shares out, and
//! layers whose source was trusted.

use crate::peers::cfsctl_ok;
use crate::scene::{IMAGE, Scene, unique};
use anyhow::{Context, Result, ensure};
use integration::fixture::noise;
use integration::store::Layout;
use integration::tar::Member;
use integration::{Fixture, Kind, Release};
use serde_json::Value;
use std::path::Path;

const OTHER: &str = "localhost/other:1";

/// A file of its own in each of two layers. The base layer is the same in all images.
fn fixture(dir: &Path) -> Result<Fixture> {
    let seed = unique();
    let layer = |n: u64| vec![Member::file(format!("layer{n}"), noise(seed + n, 10_000))];
    Fixture::of_own_layers(dir, seed, (1..3).map(layer).collect())
}

/// A scene with two images imported from podman's storage.
fn scene() -> Result<Scene> {
    let scene = Scene::new(Release::Host, Kind::Xfs, fixture)?;
    let other = fixture(&scene.disk.path().join("other"))?;
    scene.own.load(other.layout(), OTHER)?;
    scene.import()?;
    import(&scene, &[OTHER])?;
    Ok(scene)
}

fn import(scene: &Scene, arguments: &[&str]) -> Result<()> {
    let root = scene.own.graphroot().display().to_string();
    let import = ["import", "--storage-root", &root];
    scene.store.ok(&[&import, arguments].concat())?;
    Ok(())
}

fn json(scene: &Scene, arguments: &[&str]) -> Result<Value> {
    let said = scene.store.ok(&[&["--json"], arguments].concat())?;
    Ok(serde_json::from_slice(&said.stdout)?)
}

fn array<'a>(value: &'a Value, key: &str) -> Result<&'a Vec<Value>> {
    let array = value[key].as_array();
    array.with_context(|| format!("no {key} in {value}"))
}

#[test]
fn inspect_tells_documents_layers_images_names_and_who_keeps_them() -> Result<()> {
    let scene = scene()?;
    let conf = scene.own.storage_conf().display().to_string();
    scene.store.ok(&["tag", IMAGE, "second"])?;
    scene.store.ok(&["pin", IMAGE, "--reason", "for a test"])?;
    let found = json(&scene, &["inspect", "--storage-conf", &conf, IMAGE])?;

    let inspected = scene.own.ok(&["inspect", IMAGE])?.stdout;
    let podman: Value = serde_json::from_slice(&inspected)?;
    assert_eq!(found["id"], podman[0]["Id"]);
    assert_eq!(found["manifest"]["digest"], podman[0]["Digest"]);
    let config = &found["config"]["document"];
    let diff_ids = array(&podman[0]["RootFS"], "Layers")?;
    assert_eq!(
        &config["rootfs"]["diff_ids"],
        &podman[0]["RootFS"]["Layers"]
    );
    let layers = array(&found, "layers")?;
    let mine: Vec<_> = layers.iter().map(|layer| &layer["diff_id"]).collect();
    assert_eq!(mine, diff_ids.iter().collect::<Vec<_>>());
    for layer in &layers[1..] {
        assert_eq!(
            layer["files"],
            serde_json::json!({"bytes": 10_000, "objects": 1})
        );
        ensure!(
            layer["tar_bytes"].as_u64().is_some_and(|n| n > 10_000),
            "{layer}"
        );
        assert_eq!(layer["verified"], true);
    }
    let kinds = |found: &Value| -> Result<Vec<String>> {
        let keepers = array(found, "kept_by")?.iter();
        let mut kinds: Vec<_> = keepers
            .map(|keeper| format!("{} {}", keeper["kind"], keeper["name"]).replace('"', ""))
            .collect();
        kinds.sort();
        Ok(kinds)
    };
    let manifest = found["manifest"]["digest"].as_str().context("no digest")?;
    let pin = format!("pin {manifest}");
    let second = "tag second".to_owned();
    assert_eq!(
        kinds(&found)?,
        [pin.clone(), format!("tag {IMAGE}"), second.clone()]
    );
    assert_eq!(found["published"], Value::Null);
    assert_eq!(array(&found, "erofs")?[0]["kind"], "rootfs");
    // The other image is kept by its own tag alone.
    let other = json(&scene, &["inspect", "--storage-conf", &conf, OTHER])?;
    assert_eq!(kinds(&other)?, [format!("tag {OTHER}")]);

    let podman = scene.consumer(Layout::Mounted)?;
    scene.publish(Layout::Mounted, &podman)?;
    let conf = podman.storage_conf().display().to_string();
    let found = json(&scene, &["inspect", "--storage-conf", &conf, IMAGE])?;
    assert_eq!(found["published"]["layout"], "mounted");
    ensure!(found["published"]["image"].is_string(), "{found}");
    let keepers = kinds(&found)?;
    ensure!(
        keepers.iter().any(|keeper| keeper.starts_with("published")),
        "{keepers:?}"
    );
    let text = scene
        .store
        .ok(&["inspect", "--storage-conf", &conf, IMAGE])?
        .text();
    for part in [manifest, "kept by pin", "for a test", "mounted layout"] {
        ensure!(text.contains(part), "no {part:?} in {text}");
    }
    scene
        .store
        .finish(&["inspect", "nowhere"])?
        .refused_with(&["nowhere"])?;
    Ok(())
}

#[test]
fn fsck_of_one_image_looks_at_that_image_alone() -> Result<()> {
    let scene = scene()?;
    let conf = scene.own.storage_conf().display().to_string();
    let fsck = |image: &str, more: &[&str]| {
        scene
            .store
            .finish(&[&["fsck", image, "--storage-conf", &conf], more].concat())
    };
    let whole = fsck(IMAGE, &[])?.success()?;
    ensure!(whole.text().contains("no findings"), "{whole}");

    // What only the other image has is none of this image's business.
    let own_file = |name: &str| -> Result<std::path::PathBuf> {
        let found = json(&scene, &["inspect", "--storage-conf", &conf, name])?;
        let digest = array(&found, "layers")?[1]["stream"].as_str();
        let digest = digest.context("no stream")?;
        Ok(scene
            .store
            .repo()
            .join("objects")
            .join(&digest[..2])
            .join(&digest[2..]))
    };
    let stream = own_file(OTHER)?;
    std::fs::remove_file(&stream)?;
    fsck(IMAGE, &[])?.success()?;
    let found = fsck(OTHER, &[])?;
    assert_eq!(found.status.code(), Some(1), "{found}");
    ensure!(
        found.text().contains(&format!("needed by tag {OTHER}")),
        "{found}"
    );

    // Both images have the base layer.
    let objects = scene.store.objects()?;
    let shared = objects
        .iter()
        .max_by_key(|object| object.metadata().map_or(0, |data| data.len()))
        .context("no objects")?;
    std::fs::remove_file(shared)?;
    for image in [IMAGE, OTHER] {
        let found = fsck(image, &[])?;
        assert_eq!(found.status.code(), Some(1), "{found}");
    }
    // Mending one image leaves the other's own damage alone.
    let mended = fsck(IMAGE, &["--repair"])?.success()?;
    ensure!(mended.text().contains("mended object"), "{mended}");
    ensure!(!stream.exists(), "the other image was mended, too");
    fsck(OTHER, &["--repair"])?.success()?;
    scene.store.ok(&["fsck", "--storage-conf", &conf])?;
    Ok(())
}

#[test]
fn df_divides_the_space_between_what_images_own_and_share() -> Result<()> {
    let scene = scene()?;
    let used = json(&scene, &["df"])?;
    let images = array(&used, "images")?;
    assert_eq!(images.len(), 2);
    let total: u64 = scene
        .store
        .objects()?
        .iter()
        .map(|object| object.metadata().map_or(0, |data| data.len()))
        .sum();
    assert_eq!(used["total"]["bytes"], total);
    let bytes = |value: &Value| value["bytes"].as_u64().context("no bytes");
    for image in images {
        // Two files of its own, and documents, streams and EROFS images.
        ensure!(bytes(&image["own"])? > 20_000, "{image}");
        ensure!(
            bytes(&image["all"])? > bytes(&image["own"])? + 100_000,
            "{image}"
        );
    }
    let parts = array(&used, "parts")?;
    let sum = parts.iter().map(bytes).sum::<Result<u64>>()?;
    assert_eq!(sum, total);
    let text = scene.store.ok(&["df"])?.text();
    let shared = text.lines().find(|line| line.contains(" shared by "));
    let shared = shared.with_context(|| text.clone())?;
    ensure!(shared.contains(IMAGE) && shared.contains(OTHER), "{shared}");

    // Removing the other image frees what was its own.
    let own = images
        .iter()
        .find(|image| image["tags"][0] == OTHER)
        .context("the other image is not listed")?;
    let own = bytes(&own["own"])?;
    scene.store.ok(&["untag", OTHER])?;
    let swept = json(&scene, &["gc"])?;
    assert_eq!(swept["swept"]["object_bytes"], own);
    let used = json(&scene, &["df"])?;
    assert_eq!(used["total"]["bytes"], total - own);
    Ok(())
}

#[test]
fn a_layer_from_a_trusted_source_is_noted_until_it_was_verified() -> Result<()> {
    let scene = Scene::new(Release::Host, Kind::Xfs, fixture)?;
    let conf = scene.own.storage_conf().display().to_string();
    import(&scene, &["--trust-source", IMAGE])?;
    let fsck = |more: &[&str]| json(&scene, &[&["fsck", "--storage-conf", &conf], more].concat());
    let states = |found: &Value| -> Result<Vec<String>> {
        assert_eq!(found["findings"], serde_json::json!([]));
        let layers = array(found, "unverified")?.iter();
        Ok(layers.map(|layer| layer["diff_id"].to_string()).collect())
    };
    let three = |state: &str| vec![format!("{state:?}"); 3];
    assert_eq!(
        states(&fsck(&["--depth", "content"])?)?,
        three("not-compared")
    );
    assert_eq!(states(&fsck(&[])?)?, three("right"));
    assert_eq!(states(&fsck(&[IMAGE])?)?, three("right"));

    // Others know nothing of the marks, and neither mind nor remove them.
    let objects = scene.store.objects()?;
    for command in ["fsck", "gc"] {
        cfsctl_ok(scene.store.repo(), &[command])?;
    }
    assert_eq!(scene.store.objects()?, objects);
    assert_eq!(states(&fsck(&[])?)?, three("right"));

    assert_eq!(states(&fsck(&["--repair"])?)?, [] as [String; 0]);
    let images = json(&scene, &["images"])?;
    assert_eq!(
        images["images"][0]["unverified_layers"],
        serde_json::json!([])
    );
    Ok(())
}
