//! fsck finds what is broken, says who is concerned, and mends it from whoever still has it.

use crate::scene::{IMAGE, Scene, unique};
use anyhow::{Context, Result, ensure};
use integration::fixture::noise;
use integration::store::Layout;
use integration::tar::Member;
use integration::{Fixture, Kind, Release, finish};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};

fn scene() -> Result<Scene> {
    Scene::new(Release::Trixie, Kind::Xfs, |dir| {
        let seed = unique();
        let layer = |n: u64| vec![Member::file(format!("layer{n}"), noise(seed + n, 10_000))];
        Fixture::of_own_layers(dir, seed, (1..4).map(layer).collect())
    })
}

/// Changes the last byte of a file in place.
fn damage(file: &Path) -> Result<()> {
    let mut content = std::fs::read(file)?;
    *content.last_mut().context("empty")? ^= 1;
    // Not through the links that others have to the same file.
    std::fs::remove_file(file)?;
    std::fs::write(file, content)?;
    Ok(())
}

/// The object that a link in the repository leads to.
fn target(scene: &Scene, directory: &str, prefix: &str) -> Result<PathBuf> {
    for entry in std::fs::read_dir(scene.store.repo().join(directory))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) && entry.path().is_symlink() {
            return Ok(entry.path().canonicalize()?);
        }
    }
    anyhow::bail!("no {directory}/{prefix}*")
}

#[test]
fn fsck_mends_every_object_from_podmans_storage() -> Result<()> {
    let scene = scene()?;
    let conf = scene.own.storage_conf().display().to_string();
    scene.import()?;
    for (number, object) in scene.store.objects()?.iter().enumerate() {
        // Documents and streams stay: without them nobody knows whose objects they are.
        let is_payload = std::fs::metadata(object)?.len() == 10_000;
        if is_payload && number % 2 == 0 {
            damage(object)?;
        } else if is_payload {
            std::fs::remove_file(object)?;
        }
    }
    let found = scene.store.finish(&["fsck", "--storage-conf", &conf])?;
    ensure!(found.status.code() == Some(1), "{found}");
    ensure!(
        found.text().contains(&format!("needed by tag {IMAGE}")),
        "{found}"
    );
    let done = scene
        .store
        .ok(&["fsck", "--repair", "--storage-conf", &conf])?;
    ensure!(done.text().contains("mended object"), "{done}");
    scene.store.ok(&["fsck"])?;
    Ok(())
}

#[test]
fn fsck_makes_images_again_and_replaces_those_that_podman_is_shown() -> Result<()> {
    let scene = scene()?;
    let podman = scene.published(Layout::Blob)?;
    let expected = podman.tree(IMAGE, &[])?;
    let conf = podman.storage_conf().display().to_string();
    let images = scene.store.repo().join("images");
    let mut count = 0;
    for entry in std::fs::read_dir(images)? {
        let path = entry?.path();
        if path.is_symlink() {
            // The store's blob is the same file: it is damaged with the object.
            let object = path.canonicalize()?;
            let mut content = std::fs::read(&object)?;
            *content.last_mut().context("empty")? ^= 1;
            std::fs::write(&object, content)?;
            count += 1;
        }
    }
    ensure!(count > 4, "only {count} images");
    let found = scene.store.finish(&["fsck", "--storage-conf", &conf])?;
    ensure!(found.status.code() == Some(1), "{found}");
    ensure!(found.text().contains("published"), "{found}");
    scene
        .store
        .ok(&["fsck", "--repair", "--storage-conf", &conf])?;
    podman
        .tree(IMAGE, &[])?
        .must_equal("mended", &expected, "as it was")
}

#[test]
fn fsck_takes_streams_from_another_repository_and_says_what_nobody_has() -> Result<()> {
    let scene = scene()?;
    let conf = scene.own.storage_conf().display().to_string();
    scene.import()?;
    let other = scene.disk.path().join("other");
    scene.machine.sh(&format!(
        "cp -a {} {}",
        scene.store.repo().display(),
        other.display()
    ))?;
    let stream = target(&scene, "streams", "oci-layer-")?;
    damage(&stream)?;
    scene.own.ok(&["rmi", "--all", "--force"])?;
    let left = scene
        .store
        .finish(&["fsck", "--repair", "--storage-conf", &conf])?;
    ensure!(left.status.code() == Some(1), "{left}");
    ensure!(left.text().contains("cannot mend object"), "{left}");
    let from = other.display().to_string();
    let args = ["fsck", "--repair", "--storage-conf", &conf, "--from", &from];
    let done = scene.store.ok(&args)?;
    ensure!(done.text().contains(&format!("from {from}")), "{done}");
    scene.store.ok(&["fsck"])?;
    Ok(())
}

#[test]
fn repair_killed_at_any_durable_step_makes_nothing_worse_and_can_be_repeated() -> Result<()> {
    const STEPS: [&str; 8] = [
        "commit-staged",
        "commit-content-synced",
        "commit-object",
        "commit-object:4",
        "commit-objects-named",
        "commit-objects-synced",
        "mend-linked",
        "mend-replaced",
    ];
    let scene = scene()?;
    let podman = scene.published(Layout::Blob)?;
    let expected = podman.tree(IMAGE, &[])?;
    let conf = podman.storage_conf().display().to_string();
    let other = scene.disk.path().join("other");
    scene.machine.sh(&format!(
        "cp -a {} {}",
        scene.store.repo().display(),
        other.display()
    ))?;
    // What podman's own storage could give is imported aside first, with the same steps.
    scene.own.ok(&["rmi", "--all", "--force"])?;
    let from = other.display().to_string();
    let repair = ["fsck", "--repair", "--storage-conf", &conf, "--from", &from];
    let whole = scene.store.objects()?;
    for step in STEPS {
        for object in &whole {
            let length = std::fs::metadata(object)?.len();
            if length == 10_000 {
                damage(object)?;
            }
        }
        damage(&target(&scene, "streams", "oci-layer-")?)?;
        // The store's blobs are the same files.
        for entry in std::fs::read_dir(scene.store.repo().join("images"))? {
            let path = entry?.path();
            if path.is_symlink() {
                let object = path.canonicalize()?;
                let mut content = std::fs::read(&object)?;
                *content.last_mut().context("empty")? ^= 1;
                std::fs::write(&object, content)?;
            }
        }
        let killed = finish(&mut scene.store.command_killed_at(step, &repair)?)?;
        ensure!(
            killed.status.signal() == Some(9),
            "{step} is no step of a repair: {killed}"
        );
        assert_eq!(scene.store.objects()?, whole, "after a crash at {step}");
        scene
            .store
            .ok(&repair)
            .with_context(|| format!("after a crash at {step}"))?;
        scene.store.ok(&["fsck", "--storage-conf", &conf])?;
    }
    podman
        .tree(IMAGE, &[])?
        .must_equal("mended", &expected, "as it was")
}
