//! Sharing and copying, proven by what the kernel says about the blocks.

use crate::scene::{IMAGE, Scene};
use anyhow::{Context, Result, ensure};
use integration::fixture::{LARGE, noise};
use integration::tar::Member;
use integration::{Filesystem, Fixture, Kind, Peers, Release, Store, filesystem};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

const MEGABYTE: u64 = 1 << 20;
/// How much content the image of [`large`] has, besides busybox.
const PAYLOAD: u64 = 64 * MEGABYTE;

fn large(dir: &std::path::Path) -> Result<Fixture> {
    let file = |n: u64| Member::file(format!("payload/{n}"), noise(1000 + n, 8 << 20));
    Fixture::with_layers(
        dir,
        vec![(0..4).map(file).collect(), (4..8).map(file).collect()],
    )
}

/// podman's copy of [`LARGE`], and ours.
fn both_copies(scene: &Scene, store: &Store) -> Result<(PathBuf, PathBuf)> {
    let base = scene
        .own
        .layers(IMAGE)?
        .into_iter()
        .next()
        .context("no layer")?;
    let theirs = scene
        .own
        .graphroot()
        .join("overlay")
        .join(base)
        .join("diff")
        .join(LARGE);
    let content = std::fs::read(&theirs)?;
    for object in store.objects()? {
        if object.metadata()?.len() == content.len() as u64 && std::fs::read(&object)? == content {
            return Ok((theirs, object));
        }
    }
    anyhow::bail!("no object has the content of {LARGE}")
}

fn import_shares_blocks(kind: Kind) -> Result<()> {
    let scene = Scene::new(Release::Host, kind, large)?;
    let before = scene.disk.used()?;
    let arguments = scene.import_arguments();
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    arguments.push("--no-copy");
    scene.store.ok(&arguments)?;
    let grown = scene.disk.used()?.saturating_sub(before);
    ensure!(grown < PAYLOAD / 8, "the filesystem grew by {grown} bytes");

    let (theirs, ours) = both_copies(&scene, &scene.store)?;
    ensure!(
        filesystem::share_extents(&theirs, &ours)?,
        "FIEMAP shows no sharing"
    );
    // A reflink, not a hard link: verity and labels on our file must not reach podman's.
    assert_eq!(theirs.metadata()?.nlink(), 1);
    assert_ne!(theirs.metadata()?.ino(), ours.metadata()?.ino());
    Ok(())
}

#[test]
fn import_on_xfs_shares_blocks() -> Result<()> {
    import_shares_blocks(Kind::Xfs)
}

#[test]
fn import_on_btrfs_shares_blocks() -> Result<()> {
    import_shares_blocks(Kind::Btrfs)
}

#[test]
fn import_on_ext4_copies_and_no_copy_refuses() -> Result<()> {
    let scene = Scene::new(Release::Host, Kind::Ext4, large)?;
    let arguments = scene.import_arguments();
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    arguments.push("--no-copy");
    scene.store.finish(&arguments)?.refused()?;
    assert_eq!(
        scene.store.ok(&["images", "--json"])?.text(),
        empty_list(&scene)?
    );
    scene.store.ok(&["fsck"])?;

    let before = scene.disk.used()?;
    scene.import()?;
    let grown = scene.disk.used()?.saturating_sub(before);
    ensure!(grown > PAYLOAD, "the filesystem grew by {grown} bytes only");
    let (theirs, ours) = both_copies(&scene, &scene.store)?;
    assert_eq!(theirs.metadata()?.nlink(), 1);
    assert_ne!(theirs.metadata()?.ino(), ours.metadata()?.ino());
    Ok(())
}

/// What `images --json` prints for a repository without images.
fn empty_list(scene: &Scene) -> Result<String> {
    let empty = Store::init(&scene.machine, &scene.disk.path().join("empty"))?;
    Ok(empty.ok(&["images", "--json"])?.text())
}

#[test]
fn import_from_another_filesystem_copies_and_no_copy_refuses() -> Result<()> {
    let scene = Scene::new(Release::Host, Kind::Xfs, large)?;
    let other = Filesystem::new(&Peers::from_env()?, Kind::Xfs, 512)?;
    let store = Store::init(&scene.machine, &other.path().join("repository"))?;
    let arguments = scene.import_arguments();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut no_copy = arguments.clone();
    no_copy.push("--no-copy");
    store.finish(&no_copy)?.refused()?;
    store.ok(&arguments)?;
    store.ok(&["fsck"])?;
    both_copies(&scene, &store)?;
    Ok(())
}
