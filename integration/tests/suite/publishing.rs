//! Publishing under a running podman, and what podman may not do to our store.

use crate::scene::{IMAGE, Scene, unique};
use anyhow::{Context, Result, ensure};
use integration::fixture::noise;
use integration::store::Layout;
use integration::tar::Member;
use integration::{Engine, Fixture, Kind, Podman, Release};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

fn small(dir: &Path) -> Result<Fixture> {
    let layer = |n: u64| vec![Member::file(format!("layer{n}"), noise(n, 1000))];
    Fixture::of_own_layers(dir, unique(), (1..5).map(layer).collect())
}

#[test]
fn publish_in_layout_blob_is_refused_without_metacopy() -> Result<()> {
    let scene = Scene::new(Release::Sid, Kind::Xfs, small)?;
    scene.import()?;
    let store = scene.store.podman_store()?;
    let podman = Podman::new(
        &scene.machine,
        &scene.disk.path().join("default"),
        &Engine::with_store(&store),
    )?;
    let conf = podman.storage_conf().display().to_string();
    scene
        .store
        .finish(&[
            "publish",
            "--layout",
            "blob",
            "--storage-conf",
            &conf,
            IMAGE,
        ])?
        .refused_with(&["metacopy=on"])?;
    // Nothing was published, and podman still works with the store in its configuration.
    let published = scene.consumer(Layout::Mounted)?;
    scene.publish(Layout::Mounted, &published)?;
    scene.store.ok(&["unpublish", IMAGE])?;
    assert_eq!(podman.ok(&["images", "--quiet"])?.text(), "");
    Ok(())
}

/// podman in a loop while the image is published and taken away again: it always sees one or the
/// other, also where it reads the list first and the images after that.
fn podman_never_sees_a_half_published_image(release: Release, layout: Layout) -> Result<()> {
    const ROUNDS: u32 = 8;
    let scene = Scene::new(release, Kind::Xfs, small)?;
    let podman = scene.published(layout)?;
    let expected = podman.ok(&["images", "--no-trunc", "--quiet"])?.text();
    ensure!(!expected.is_empty(), "the image is not listed");
    let done = AtomicBool::new(false);
    let (with, without) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| -> Result<()> {
            while !done.load(Ordering::Relaxed) {
                let listed = podman.ok(&["images", "--no-trunc", "--quiet"])?;
                match listed.text().as_str() {
                    "" => without.fetch_add(1, Ordering::Relaxed),
                    found if found == expected => with.fetch_add(1, Ordering::Relaxed),
                    other => anyhow::bail!("podman listed {other:?}"),
                };
            }
            Ok(())
        });
        let publisher = || -> Result<()> {
            for _ in 0..ROUNDS {
                scene.store.ok(&["unpublish", IMAGE])?;
                scene.publish(layout, &podman)?;
            }
            Ok(())
        };
        let published = publisher();
        done.store(true, Ordering::Relaxed);
        watcher
            .join()
            .map_err(|_| anyhow::anyhow!("the watcher panicked"))??;
        published
    })?;
    ensure!(
        with.load(Ordering::Relaxed) + without.load(Ordering::Relaxed) > 0,
        "podman never ran"
    );
    podman.ok(&["run", "--rm", IMAGE, "true"])?;
    Ok(())
}

#[test]
fn podman_4_never_sees_a_half_published_image() -> Result<()> {
    podman_never_sees_a_half_published_image(Release::Host, Layout::Mounted)
}

#[test]
fn podman_5_8_never_sees_a_half_published_image() -> Result<()> {
    podman_never_sees_a_half_published_image(Release::Sid, Layout::Blob)
}

#[test]
fn containers_run_while_the_image_is_published_again_and_again() -> Result<()> {
    let scene = Scene::new(Release::Sid, Kind::Xfs, small)?;
    let podman = scene.published(Layout::Blob)?;
    podman.ok(&[
        "run", "--detach", "--name", "running", IMAGE, "sleep", "600",
    ])?;
    for _ in 0..3 {
        scene.publish(Layout::Blob, &podman)?;
        let said = podman
            .ok(&["exec", "running", "sha256sum", "/layer1"])?
            .text();
        let fresh = podman
            .ok(&["run", "--rm", IMAGE, "sha256sum", "/layer1"])?
            .text();
        assert_eq!(said, fresh);
    }
    podman.ok(&["rm", "--force", "--time", "0", "running"])?;
    Ok(())
}

/// The layer directories in the store as podman sees it.
fn layer_directories(store: &Path) -> Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(store.join("overlay"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    found.retain(|path| path.file_name().is_some_and(|name| name.len() == 64));
    found.sort();
    Ok(found)
}

/// podman removes a layer directory for which it finds no record, when it pulls that layer.
fn podman_cannot_delete_our_layers(release: Release, layout: Layout) -> Result<()> {
    let scene = Scene::new(release, Kind::Xfs, small)?;
    let podman = scene.published(layout)?;
    let view = scene.store.podman_store()?;
    // The view is a mount of the machine: look at it from there.
    let root = scene.machine.root();
    let seen = root.join(
        view.strip_prefix("/")
            .context("the store's path is not absolute")?,
    );
    let before = layer_directories(&seen)?;
    ensure!(
        !before.is_empty(),
        "no layer directory in {}",
        seen.display()
    );

    podman
        .finish(&[
            "run",
            "--rm",
            "--volume",
            "/:/machine",
            IMAGE,
            "rm",
            "-rf",
            &format!("/machine{}/overlay", view.display()),
        ])?
        .refused()?;
    let records = writable_records(&scene)?;
    let kept = std::fs::read(&records)?;
    std::fs::write(&records, "[]")?;
    // Whether the load succeeds or fails is podman's business; our directories are ours.
    let _ = podman
        .command("skopeo")
        .args(["copy", "--quiet"])
        .arg(format!("oci:{}:latest", scene.fixture.layout().display()))
        .arg("containers-storage:localhost/second")
        .output()?;
    std::fs::write(&records, kept)?;
    assert_eq!(layer_directories(&seen)?, before);

    give_half_made_layers_a_directory(&podman)?;
    podman.ok(&[
        "run",
        "--rm",
        IMAGE,
        "sh",
        "-c",
        "cat /layer1 /layer4 >/dev/null",
    ])?;
    assert_eq!(layer_directories(&seen)?, before);
    scene.store.ok(&["fsck"])?;
    Ok(())
}

/// podman wants to remove a half-made layer of its own before it does anything else, and finds only our
/// directory for it; given one of its own it is content.
pub(crate) fn give_half_made_layers_a_directory(podman: &Podman) -> Result<usize> {
    let mut given = 0;
    for layer in incomplete_layers(podman)? {
        let directory = podman.graphroot().join("overlay").join(layer);
        if !directory.exists() {
            std::fs::create_dir(directory)?;
            given += 1;
        }
    }
    Ok(given)
}

/// The layers that podman began and could not finish.
fn incomplete_layers(podman: &Podman) -> Result<Vec<String>> {
    let file = podman.graphroot().join("overlay-layers/layers.json");
    if !file.exists() {
        return Ok(Vec::new());
    }
    let records: Vec<serde_json::Value> = serde_json::from_slice(&std::fs::read(file)?)?;
    Ok(records
        .iter()
        .filter(|record| record["flags"]["incomplete"] == true)
        .filter_map(|record| record["id"].as_str().map(str::to_owned))
        .collect())
}

/// `layers.json` in the directory behind the read-only view.
fn writable_records(scene: &Scene) -> Result<PathBuf> {
    let file = scene
        .store
        .repo()
        .join("composefs-store/podman-store/overlay-layers/layers.json");
    ensure!(file.exists(), "{} is not there", file.display());
    Ok(file)
}

#[test]
fn podman_4_cannot_delete_our_layers() -> Result<()> {
    podman_cannot_delete_our_layers(Release::Host, Layout::Mounted)
}

#[test]
fn podman_5_8_cannot_delete_our_layers() -> Result<()> {
    podman_cannot_delete_our_layers(Release::Sid, Layout::Blob)
}

#[test]
fn pull_and_build_reuse_our_layers() -> Result<()> {
    let scene = Scene::new(Release::Sid, Kind::Xfs, small)?;
    let podman = scene.published(Layout::Blob)?;
    podman.load(scene.fixture.layout(), "localhost/second")?;
    let layers = podman.graphroot().join("overlay-layers/layers.json");
    let own = std::fs::read_to_string(&layers).unwrap_or_else(|_| "[]".to_owned());
    assert_eq!(own.trim(), "[]", "layers were stored a second time");
    podman.ok(&["run", "--rm", "localhost/second", "true"])?;
    Ok(())
}

#[test]
fn serve_mounts_brings_the_mounted_layout_back_and_can_be_repeated() -> Result<()> {
    let scene = Scene::hard(Release::Host, Kind::Xfs)?;
    let expected = scene.own.tree(IMAGE, &[])?;
    let podman = scene.published(Layout::Mounted)?;
    // As after a boot.
    scene.machine.sh(&format!(
        "umount --recursive --lazy {} && umount --all-targets --lazy $(awk '$2 ~ \"^/run/composefs-store/\" {{ print $2 }}' /proc/self/mounts)",
        scene.store.podman_store()?.display()
    ))?;
    podman.finish(&["run", "--rm", IMAGE, "true"])?.refused()?;
    scene.store.ok(&["serve-mounts"])?;
    let mounts = || {
        scene
            .machine
            .sh("grep -c composefs-store /proc/self/mounts")
    };
    let served = mounts()?.text();
    scene.store.ok(&["serve-mounts"])?;
    assert_eq!(mounts()?.text(), served);
    podman
        .tree(IMAGE, &[])?
        .must_equal("from our store", &expected, "from podman's own")
}

#[test]
fn what_is_mounted_on_the_view_does_not_hide_the_store() -> Result<()> {
    let scene = Scene::new(Release::Host, Kind::Xfs, small)?;
    scene.published(Layout::Mounted)?;
    let view = scene.store.podman_store()?.display().to_string();
    let store = scene.store.repo().join("composefs-store/podman-store");
    scene.machine.sh(&format!(
        "mount -t tmpfs other {view} && test ! -e {view}/overlay && test -e {}/overlay",
        store.display()
    ))?;
    Ok(())
}

#[test]
fn mount_shows_the_image_and_umount_takes_it_away() -> Result<()> {
    let scene = Scene::new(Release::Host, Kind::Xfs, small)?;
    scene.import()?;
    let dir = scene.disk.path().join("mounted");
    std::fs::create_dir(&dir)?;
    let at = dir.display().to_string();
    scene.store.ok(&["mount", IMAGE, &at])?;
    assert_eq!(
        scene.machine.sh(&format!("cat {at}/layer2"))?.stdout,
        noise(2, 1000)
    );
    scene
        .machine
        .sh(&format!("! touch {at}/layer2 2>/dev/null"))?;
    scene.store.ok(&["umount", &at])?;
    scene.machine.sh(&format!("test ! -e {at}/layer2"))?;
    Ok(())
}

/// The tar-splits of published layers, by file name.
fn tar_splits(scene: &Scene) -> Result<BTreeMap<String, Vec<u8>>> {
    let view = scene.store.podman_store()?;
    let seen = scene.machine.root().join(view.strip_prefix("/")?);
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(seen.join("overlay-layers"))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".tar-split.gz") {
            found.insert(name, std::fs::read(entry.path())?);
        }
    }
    ensure!(!found.is_empty(), "no tar-split in {}", seen.display());
    Ok(found)
}

/// Content that is not what it was shows who reads it.
#[test]
fn publish_makes_tar_splits_without_reading_what_the_import_has_read() -> Result<()> {
    let scene = Scene::new(Release::Host, Kind::Xfs, small)?;
    let podman = scene.published(Layout::Mounted)?;
    let made = tar_splits(&scene)?;
    scene.store.ok(&["unpublish", IMAGE])?;

    let is_file = |object: &&PathBuf| object.metadata().is_ok_and(|found| found.len() == 1000);
    let objects = scene.store.objects()?;
    let objects: Vec<_> = objects.iter().filter(is_file).collect();
    assert_eq!(objects.len(), 4);
    let contents: Vec<_> = objects.iter().map(std::fs::read).collect();
    for object in &objects {
        std::fs::write(object, [0; 1000])?;
    }
    scene.publish(Layout::Mounted, &podman)?;
    assert_eq!(tar_splits(&scene)?, made);
    scene.store.ok(&["unpublish", IMAGE])?;

    // What the import has kept is of use, not needed.
    for (object, content) in objects.iter().zip(contents) {
        std::fs::write(object, content?)?;
    }
    std::fs::remove_dir_all(scene.store.repo().join("composefs-store/checksums"))?;
    scene.publish(Layout::Mounted, &podman)?;
    assert_eq!(tar_splits(&scene)?, made);
    Ok(())
}

/// podman 5 finds an image of its own under no name that only we have for it; `publish` says how it does.
fn names_hidden_by_podmans_own_copy_are_told(release: Release) -> Result<()> {
    const OWN: &str = "localhost/own:1";
    let scene = Scene::new(release, Kind::Xfs, small)?;
    let podman = scene.published(Layout::Mounted)?;
    scene.store.ok(&["unpublish", IMAGE])?;
    podman.load(scene.fixture.layout(), OWN)?;

    let publish = || scene.publish_image(IMAGE, Layout::Mounted, &podman);
    let said = publish()?.stderr;
    let remedy = said
        .lines()
        .map(str::trim)
        .find(|line| line.starts_with("podman tag "));
    let remedy = remedy.with_context(|| format!("no remedy in {said}"))?;
    let run = ["run", "--rm", "--pull", "never", IMAGE, "true"];
    if release == Release::Host {
        podman.ok(&run)?;
    } else {
        podman.finish(&run)?.refused_with(&["image not known"])?;
    }
    let arguments: Vec<&str> = remedy.split(' ').skip(1).collect();
    podman.ok(&arguments)?;
    podman.ok(&run)?;
    // With podman's own copy gone, ours has its name again.
    podman.ok(&["rmi", IMAGE, OWN])?;
    podman.ok(&run)?;
    let said = publish()?.stderr;
    ensure!(!said.contains("podman tag"), "{said}");
    Ok(())
}

#[test]
fn names_hidden_by_podman_4s_own_copy_are_told() -> Result<()> {
    names_hidden_by_podmans_own_copy_are_told(Release::Host)
}

#[test]
fn names_hidden_by_podman_5_4s_own_copy_are_told() -> Result<()> {
    names_hidden_by_podmans_own_copy_are_told(Release::Trixie)
}

#[test]
fn names_hidden_by_podman_5_8s_own_copy_are_told() -> Result<()> {
    names_hidden_by_podmans_own_copy_are_told(Release::Sid)
}
