//! What gc keeps because somebody uses it, and what it leaves in whatever way it ends.

use crate::scene::{IMAGE, Scene, unique};
use anyhow::{Context, Result, ensure};
use integration::command::ok;
use integration::fixture::noise;
use integration::locks::ReadLock;
use integration::store::Layout;
use integration::tar::Member;
use integration::user::{SubordinateIds, User};
use integration::{Fixture, Kind, Podman, Release, Store};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

fn small(dir: &Path) -> Result<Fixture> {
    let seed = unique();
    let layer = |n: u64| {
        let files = (0..20).map(|file| {
            Member::file(
                format!("layer{n}-{file}"),
                noise(seed + 100 * n + file, 5000),
            )
        });
        files.collect()
    };
    Fixture::of_own_layers(dir, seed, (1..4).map(layer).collect())
}

fn gc_for(scene: &Scene, podman: &Podman) -> Result<()> {
    let conf = podman.storage_conf().display().to_string();
    scene.store.ok(&["gc", "--storage-conf", &conf])?;
    Ok(())
}

/// The kinds of roots, as `roots` names them.
fn kinds(scene: &Scene) -> Result<Vec<String>> {
    let said = scene.store.ok(&["--json", "roots"])?;
    let roots: Value = serde_json::from_slice(&said.stdout)?;
    let roots = roots["roots"].as_array().context("no roots")?;
    let mut kinds: Vec<String> = roots
        .iter()
        .filter_map(|root| Some(root["kind"].as_str()?.to_owned()))
        .collect();
    kinds.sort();
    kinds.dedup();
    Ok(kinds)
}

fn a_container_keeps_what_it_reads(release: Release, layout: Layout) -> Result<()> {
    let scene = Scene::new(release, Kind::Xfs, small)?;
    let podman = scene.published(layout)?;
    podman.ok(&[
        "run",
        "--detach",
        "--name",
        "running",
        IMAGE,
        "/bin/sleep",
        "600",
    ])?;
    ensure!(kinds(&scene)?.contains(&"podman".into()));
    scene.store.ok(&["unpublish", "--when-unused", IMAGE])?;
    scene.store.ok(&["untag", IMAGE])?;
    gc_for(&scene, &podman)?;
    scene.store.ok(&["fsck"])?;
    // It stays for its container, without a name.
    let names = podman.ok(&["images", "--noheading", "--format", "{{.Repository}}"])?;
    assert_eq!(names.text(), "<none>");
    podman
        .finish(&["run", "--rm", "--pull", "never", IMAGE, "true"])?
        .refused()?;
    podman.ok(&["commit", "--quiet", "running", "localhost/committed"])?;
    // podman wants to take a parent without a name along, which is ours.
    podman
        .finish(&["rmi", "localhost/committed"])?
        .refused_with(&["cannot remove read-only image"])?;
    // Objects are opened when a file is, so every file must still be there.
    let read = "for file in /layer*; do cat \"$file\" >/tmp/read || exit 1; done";
    podman.ok(&["exec", "running", "/bin/sh", "-euc", read])?;

    podman.ok(&["rm", "--force", "--time", "0", "running"])?;
    // The kernel may still be taking the container's mounts down.
    let end = Instant::now() + Duration::from_secs(30);
    while !scene.store.objects()?.is_empty() && Instant::now() < end {
        gc_for(&scene, &podman)?;
    }
    assert_eq!(scene.store.objects()?, [] as [PathBuf; 0]);
    assert_eq!(kinds(&scene)?, [] as [String; 0]);
    assert_eq!(podman.ok(&["images", "--quiet"])?.text(), "");
    scene.store.ok(&["fsck"])?;
    Ok(())
}

#[test]
fn a_container_on_a_mounted_layer_keeps_what_it_reads_until_it_is_gone() -> Result<()> {
    a_container_keeps_what_it_reads(Release::Host, Layout::Mounted)
}

#[test]
fn a_container_on_a_blob_keeps_what_it_reads_until_it_is_gone() -> Result<()> {
    a_container_keeps_what_it_reads(Release::Sid, Layout::Blob)
}

#[test]
fn a_mounted_image_stays_until_it_is_unmounted() -> Result<()> {
    let scene = Scene::new(Release::Host, Kind::Xfs, small)?;
    scene.import()?;
    let target = scene.disk.path().join("target");
    std::fs::create_dir(&target)?;
    let target = target.display().to_string();
    scene.store.ok(&["mount", IMAGE, &target])?;
    scene.store.ok(&["untag", IMAGE])?;
    scene.store.ok(&["gc"])?;
    ensure!(kinds(&scene)?.contains(&"mount".into()));
    let read =
        ok(scene
            .machine
            .command("sh")
            .args(["-euc", "cat \"$1\"/layer* | wc -c", "sh", &target]))?;
    assert_eq!(read.text().trim(), "300000");
    scene.store.ok(&["umount", &target])?;
    scene.store.ok(&["gc"])?;
    assert_eq!(scene.store.objects()?, [] as [PathBuf; 0]);
    Ok(())
}

#[test]
fn a_lease_keeps_an_image_between_two_steps() -> Result<()> {
    let scene = Scene::new(Release::Host, Kind::Xfs, small)?;
    scene.import()?;
    let imported = scene.store.objects()?;
    let mut command = scene.store.command(&[
        "lease",
        "run",
        "--reason",
        "two steps",
        "--",
        "sh",
        "-c",
        "echo held; exec sleep 600",
    ])?;
    let mut holder = command.stdout(std::process::Stdio::piped()).spawn()?;
    let mut held = [0; 5];
    let output = holder.stdout.as_mut().context("no output")?;
    std::io::Read::read_exact(output, &mut held)?;
    scene.store.ok(&["untag", IMAGE])?;
    scene.store.ok(&["gc"])?;
    assert_eq!(scene.store.objects()?, imported);
    let roots = scene.store.ok(&["roots"])?.text();
    ensure!(roots.contains("two steps"), "{roots}");
    // nsenter has become the program: the process is the holder itself.
    holder.kill()?;
    holder.wait()?;
    scene.store.ok(&["gc"])?;
    assert_eq!(scene.store.objects()?, [] as [PathBuf; 0]);
    Ok(())
}

/// podman keeps its lock as long as it reads from the store, to push an image for example. Everybody waits
/// for a gc, so that a gc must not wait for that.
#[test]
fn gc_leaves_published_layers_while_podman_reads_for_long() -> Result<()> {
    let scene = Scene::new(Release::Host, Kind::Xfs, small)?;
    let podman = scene.published(Layout::Mounted)?;
    podman.ok(&["create", "--name", "user", IMAGE, "true"])?;
    scene.store.ok(&["unpublish", "--when-unused", IMAGE])?;
    scene.store.ok(&["untag", IMAGE])?;
    podman.ok(&["rm", "user"])?;
    let store = scene.store.repo().join("composefs-store/podman-store");
    let reading = ReadLock::take(&store.join("overlay-layers/layers.lock"))?;
    gc_for(&scene, &podman)?;
    let conf = podman.storage_conf().display().to_string();
    scene.store.ok(&["fsck", "--storage-conf", &conf])?;
    ensure!(
        scene.store.objects()?.len() > 60,
        "the layers' objects are gone"
    );
    drop(reading);
    gc_for(&scene, &podman)?;
    assert_eq!(scene.store.objects()?, [] as [PathBuf; 0]);
    Ok(())
}

/// The collector of composefs-rs.
fn cfsctl(scene: &Scene, args: &[&str]) -> Result<()> {
    let program = scene.machine.peers().cfsctl()?;
    ok(Command::new(program)
        .arg("--repo")
        .arg(scene.store.repo())
        .args(args))?;
    Ok(())
}

#[test]
fn cfsctl_keeps_what_our_gc_kept() -> Result<()> {
    let scene = Scene::new(Release::Host, Kind::Xfs, small)?;
    let podman = scene.published(Layout::Mounted)?;
    scene.store.ok(&["tag", IMAGE, "pinned"])?;
    scene
        .store
        .ok(&["pin", "pinned", "--reason", "for a test"])?;
    scene.store.ok(&["untag", "pinned"])?;
    scene.store.ok(&["untag", IMAGE])?;
    gc_for(&scene, &podman)?;
    ensure!(
        kinds(&scene)? == ["pin", "published"],
        "{}",
        scene.store.ok(&["roots"])?.text()
    );
    let kept = scene.store.objects()?;
    ensure!(!kept.is_empty());
    cfsctl(&scene, &["gc"])?;
    assert_eq!(scene.store.objects()?, kept);
    gc_for(&scene, &podman)?;
    assert_eq!(scene.store.objects()?, kept);
    scene.store.ok(&["fsck"])?;
    podman.ok(&["run", "--rm", &image_id(&podman)?, "true"])?;
    Ok(())
}

fn image_id(podman: &Podman) -> Result<String> {
    let listed = podman.ok(&["images", "--quiet", "--no-trunc"])?.text();
    Ok(listed.trim_start_matches("sha256:").to_owned())
}

#[test]
fn a_dry_run_needs_no_writable_repository() -> Result<()> {
    let scene = Scene::new(Release::Host, Kind::Xfs, small)?;
    scene.published(Layout::Mounted)?;
    scene.store.ok(&["unpublish", IMAGE])?;
    scene.store.ok(&["untag", IMAGE])?;
    let view = scene.disk.path().join("read-only");
    std::fs::create_dir(&view)?;
    let script = "mount --bind \"$1\" \"$2\" && mount -o remount,bind,ro \"$2\"";
    ok(scene
        .machine
        .command("sh")
        .args(["-euc", script, "sh"])
        .args([scene.store.repo(), &view]))?;
    let read_only = Store::open(&scene.machine, &view);
    let planned = read_only.ok(&["gc", "--dry-run", "--json"])?.stdout;
    read_only.ok(&["roots"])?;
    let planned: Value = serde_json::from_slice(&planned)?;
    let done: Value = serde_json::from_slice(&scene.store.ok(&["gc", "--json"])?.stdout)?;
    for list in ["refs", "streams", "images", "objects"] {
        assert_eq!(planned["plan"][list], done["plan"][list], "{list}");
    }
    assert_eq!(scene.store.objects()?, [] as [PathBuf; 0]);
    ok(scene.machine.command("umount").arg(&view))?;
    Ok(())
}

/// podman with its storage in `root`, and a container there that was made from the published image and
/// does not run.
fn container_elsewhere(scene: &Scene, podman: &Podman, root: &Path) -> Result<Command> {
    let conf = std::fs::read_to_string(podman.storage_conf())?;
    let mine = format!("graphroot = \"{}\"", podman.graphroot().display());
    let theirs = format!("graphroot = \"{}\"", root.display());
    ensure!(conf.contains(&mine), "{conf}");
    // A run root of its own, too.
    let conf = conf
        .replace(&mine, &theirs)
        .replace("/run/engines/", "/run/other-engines/");
    let path = scene.disk.path().join("elsewhere.conf");
    std::fs::write(&path, conf)?;
    let engine = |arguments: &[&str]| {
        let mut command = podman.command("podman");
        command
            .env("CONTAINERS_STORAGE_CONF", &path)
            .args(arguments);
        command
    };
    ok(&mut engine(&[
        "create", "--pull", "never", "--name", "kept", IMAGE, "true",
    ]))?;
    Ok(engine(&["rm", "kept"]))
}

/// The image is unpublished and untagged, and all there is of it goes only when the container does.
fn is_kept_until(scene: &Scene, podman: &Podman, named: &[&str], rm: &mut Command) -> Result<()> {
    let conf = podman.storage_conf().display().to_string();
    let store = |arguments: &[&str], more: &[&str]| {
        scene
            .store
            .ok(&[arguments, &["--storage-conf", &conf], more].concat())
    };
    store(&["unpublish", "--when-unused", IMAGE], named)?;
    scene.store.ok(&["untag", IMAGE])?;
    let before = scene.store.objects()?;
    let said: Value = serde_json::from_slice(&store(&["--json", "roots"], &[])?.stdout)?;
    let kinds: Vec<_> = said["roots"]
        .as_array()
        .context("no roots")?
        .iter()
        .map(|root| &root["kind"])
        .collect();
    ensure!(kinds.contains(&&Value::from("podman")), "{said}");
    store(&["gc"], &[])?;
    let kept = scene.store.objects()?;
    ensure!(
        kept.iter().all(|object| before.contains(object)) && kept.len() > 60,
        "only {} objects are left",
        kept.len()
    );
    store(&["fsck"], &[])?;
    ok(rm)?;
    store(&["gc"], &[])?;
    assert_eq!(scene.store.objects()?, [] as [PathBuf; 0]);
    Ok(())
}

#[test]
fn a_container_in_the_storage_of_a_user_keeps_a_published_image() -> Result<()> {
    let scene = Scene::new(Release::Host, Kind::Xfs, small)?;
    let podman = scene.published(Layout::Mounted)?;
    let home = scene.disk.path().join("home");
    let user = User::add(&scene.machine, &home, SubordinateIds::Some)?;
    // Where the user's podman has it: nobody names it, but the user is in /etc/passwd.
    let root = user.home().join(".local/share/containers/storage");
    std::fs::create_dir_all(&root)?;
    let mut rm = container_elsewhere(&scene, &podman, &root)?;
    is_kept_until(&scene, &podman, &[], &mut rm)
}

#[test]
fn a_container_in_a_podman_root_that_was_named_once_keeps_a_published_image() -> Result<()> {
    let scene = Scene::new(Release::Host, Kind::Xfs, small)?;
    let podman = scene.published(Layout::Mounted)?;
    let root = scene.disk.path().join("elsewhere");
    let mut rm = container_elsewhere(&scene, &podman, &root)?;
    let root = root.display().to_string();
    is_kept_until(&scene, &podman, &["--podman-root", &root], &mut rm)
}
