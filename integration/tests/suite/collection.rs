//! gc takes what no tag and no published image needs, and nothing else.

use crate::scene::{IMAGE, Scene, unique};
use anyhow::{Result, ensure};
use integration::fixture::noise;
use integration::store::Layout;
use integration::tar::Member;
use integration::{Fixture, Kind, Release};
use std::path::PathBuf;

fn scene() -> Result<Scene> {
    Scene::new(Release::Host, Kind::Xfs, |dir| {
        let seed = unique();
        let layer = |n: u64| vec![Member::file(format!("layer{n}"), noise(seed + n, 10_000))];
        Fixture::of_own_layers(dir, seed, (1..4).map(layer).collect())
    })
}

#[test]
fn gc_keeps_a_tagged_image_and_removes_an_untagged_one() -> Result<()> {
    let scene = scene()?;
    scene.import()?;
    let imported = scene.store.objects()?;
    scene.store.ok(&["gc"])?;
    assert_eq!(scene.store.objects()?, imported);

    scene.store.ok(&["tag", IMAGE, "other"])?;
    scene.store.ok(&["untag", IMAGE])?;
    scene.store.ok(&["gc"])?;
    assert_eq!(scene.store.objects()?, imported);

    scene.store.ok(&["untag", "other"])?;
    let plan = scene.store.ok(&["gc", "--dry-run"])?;
    ensure!(!plan.text().is_empty(), "an empty plan");
    assert_eq!(scene.store.objects()?, imported);
    scene.store.ok(&["gc"])?;
    assert_eq!(scene.store.objects()?, [] as [PathBuf; 0]);
    scene.store.ok(&["fsck"])?;
    Ok(())
}

#[test]
fn gc_keeps_a_published_image_without_a_tag() -> Result<()> {
    let scene = scene()?;
    let podman = scene.published(Layout::Mounted)?;
    let expected = scene.own.tree(IMAGE, &[])?;
    let listed = podman.ok(&["images", "--quiet", "--no-trunc"])?.text();
    let id = listed.trim_start_matches("sha256:");
    // podman lists it without a name then.
    scene.store.ok(&["untag", IMAGE])?;
    scene.store.ok(&["gc"])?;
    podman
        .tree(id, &[])?
        .must_equal("after gc", &expected, "from podman's own")?;
    scene.store.ok(&["fsck"])?;

    scene.store.ok(&["unpublish", id])?;
    assert_eq!(podman.ok(&["images", "--quiet"])?.text(), "");
    scene.store.ok(&["gc"])?;
    assert_eq!(scene.store.objects()?, [] as [PathBuf; 0]);
    Ok(())
}

#[test]
fn fsck_finds_a_damaged_object() -> Result<()> {
    let scene = scene()?;
    scene.import()?;
    scene.store.ok(&["fsck"])?;
    let objects = scene.store.objects()?;
    let victim = objects
        .iter()
        .find(|o| o.metadata().is_ok_and(|m| m.len() == 10_000))
        .expect("the image has files of 10,000 bytes");
    let mut content = std::fs::read(victim)?;
    content[5000] ^= 1;
    // The object is read-only; its digest is not enforced without fs-verity.
    std::fs::remove_file(victim)?;
    std::fs::write(victim, content)?;
    let found = scene.store.finish(&["fsck"])?;
    assert_eq!(found.status.code(), Some(1), "{found}");
    let name = victim
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let said = format!("{}{}", found.text(), found.stderr);
    ensure!(said.contains(&name), "{name} is not named by {found}");

    std::fs::remove_file(victim)?;
    let found = scene.store.finish(&["fsck"])?;
    assert_eq!(found.status.code(), Some(1), "{found}");
    Ok(())
}

#[test]
fn init_again_does_nothing_and_other_settings_are_refused() -> Result<()> {
    let scene = scene()?;
    scene.import()?;
    let meta = std::fs::read(scene.store.repo().join("meta.json"))?;
    scene.store.ok(&["init", "--insecure"])?;
    assert_eq!(std::fs::read(scene.store.repo().join("meta.json"))?, meta);
    scene
        .store
        .finish(&["init", "--insecure", "--algorithm", "sha256"])?
        .refused_with(&["sha256", "sha512"])?;
    assert_eq!(std::fs::read(scene.store.repo().join("meta.json"))?, meta);
    Ok(())
}

#[test]
fn init_without_insecure_says_that_the_filesystem_has_no_verity() -> Result<()> {
    let scene = scene()?;
    let repo = scene.disk.path().join("secure").display().to_string();
    let program = scene.machine.peers().composefs_store()?;
    integration::finish(
        scene
            .machine
            .command(program)
            .args(["--repo", &repo, "init"]),
    )?
    .refused_with(&["fs-verity", "--insecure"])?;
    Ok(())
}
