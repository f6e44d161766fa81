//! What is said of verified containers where there is no fs-verity, and `verify` of an image there; where there
//! is, `cargo xtask vm` shows it.

use crate::scene::{IMAGE, Scene};
use anyhow::{Context, Result, ensure};
use integration::fixture::noise;
use integration::store::Layout;
use integration::tar::Member;
use integration::{Fixture, Kind, Release};
use serde_json::Value;
use std::path::Path;

fn small(dir: &Path) -> Result<Fixture> {
    Fixture::with_one_layer(dir, vec![Member::file("file", noise(1, 1000))])
}

#[test]
fn publish_verified_is_refused_without_fs_verity() -> Result<()> {
    let scene = Scene::new(Release::Sid, Kind::Xfs, small)?;
    scene.import()?;
    let remedy = ["without fs-verity", "init", "-O verity"];
    for layout in ["mounted", "blob"] {
        let args = ["publish", "--verified", "--layout", layout, IMAGE];
        scene.store.finish(&args)?.refused_with(&remedy)?;
    }
    scene
        .store
        .finish(&["verify", "--published"])?
        .refused_with(&remedy)?;
    let images = scene.store.ok(&["--json", "images"])?.text();
    ensure!(images.contains("\"published\": null"), "{images}");
    Ok(())
}

#[test]
fn verify_makes_every_step_of_an_image_again() -> Result<()> {
    let scene = Scene::new(Release::Sid, Kind::Xfs, small)?;
    scene.published(Layout::Mounted)?;
    let text = scene.store.ok(&["--json", "verify", IMAGE])?.text();
    let report: Value = serde_json::from_str(&text)?;
    let chain = &report["chains"][0];
    for (key, prefix) in [("manifest", "sha256:"), ("config", "sha256:")] {
        let digest = chain[key].as_str().context("no digest")?;
        ensure!(digest.starts_with(prefix), "{text}");
    }
    for (key, count) in [("layers", 1), ("erofs", 1), ("findings", 0)] {
        let list = chain[key].as_array().context("no list")?;
        ensure!(list.len() == count, "{key} in {text}");
    }
    ensure!(chain["published"]["image"].is_string(), "{text}");

    let objects = scene.store.objects()?;
    let mut objects = objects.iter();
    let object = objects.find(|object| object.metadata().is_ok_and(|found| found.len() == 1000));
    let object = object.context("no object of the file")?;
    std::fs::remove_file(object)?;
    std::fs::write(object, noise(2, 1000))?;
    let found = scene.store.finish(&["verify", IMAGE])?.refused()?;
    let name = object
        .strip_prefix(scene.store.repo())?
        .display()
        .to_string();
    for words in [name.as_str(), "its content has the digest"] {
        ensure!(found.text().contains(words), "{words} in {found}");
    }
    Ok(())
}
