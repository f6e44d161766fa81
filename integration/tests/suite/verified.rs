//! What is said of verified containers where there is no fs-verity; where there is, `cargo xtask vm` shows it.

use crate::scene::{IMAGE, Scene};
use anyhow::{Result, ensure};
use integration::fixture::noise;
use integration::tar::Member;
use integration::{Fixture, Kind, Release};

#[test]
fn publish_verified_is_refused_without_fs_verity() -> Result<()> {
    let scene = Scene::new(Release::Sid, Kind::Xfs, |dir| {
        Fixture::with_one_layer(dir, vec![Member::file("file", noise(1, 1000))])
    })?;
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
