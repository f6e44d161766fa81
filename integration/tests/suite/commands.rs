//! podman's own commands on images of our store.

use crate::scene::{IMAGE, Scene};
use anyhow::{Context, Result, ensure};
use integration::fixture::{Fixture, Limits};
use integration::store::Layout;
use integration::{Kind, Podman, Release};
use serde_json::{Map, Value};

fn inspected(podman: &Podman) -> Result<Map<String, Value>> {
    let text = podman.ok(&["inspect", "--type", "image", IMAGE])?.stdout;
    let mut images: Vec<Value> = serde_json::from_slice(&text)?;
    let mut image = images.pop().context("inspect gave no image")?;
    let fields = image.as_object_mut().context("an image is an object")?;
    // How it is stored and how it came there, not what it is.
    fields.remove("GraphDriver");
    fields.remove("NamesHistory");
    Ok(std::mem::take(fields))
}

fn history(podman: &Podman) -> Result<String> {
    let format = "{{.ID}} {{.CreatedBy}} {{.Size}} {{.Comment}}";
    Ok(podman
        .ok(&["history", "--no-trunc", "--format", format, IMAGE])?
        .text())
}

fn commands_work(release: Release, layout: Layout) -> Result<()> {
    let scene = Scene::hard(release, Kind::Xfs)?;
    let podman = scene.published(layout)?;

    let listed = podman.ok(&[
        "images",
        "--format",
        "{{.Repository}}:{{.Tag}} {{.ReadOnly}}",
    ])?;
    ensure!(listed.text() == format!("{IMAGE} true"), "{listed}");
    let (ours, own) = (inspected(&podman)?, inspected(&scene.own)?);
    for (field, value) in &own {
        assert_eq!(ours.get(field), Some(value), "{field}");
    }
    assert_eq!(ours.len(), own.len());
    assert_eq!(history(&podman)?, history(&scene.own)?);
    podman.ok(&["image", "exists", IMAGE])?;

    let said = podman.ok(&[
        "run",
        "--rm",
        IMAGE,
        "sh",
        "-c",
        "echo in a container; id -u",
    ])?;
    assert_eq!(said.text(), "in a container\n0");
    podman.ok(&[
        "create",
        "--name",
        "kept",
        IMAGE,
        "sh",
        "-c",
        "echo changed >/data/sizes/10; cat /data/sizes/10",
    ])?;
    assert_eq!(podman.ok(&["start", "--attach", "kept"])?.text(), "changed");
    podman.ok(&["rm", "kept"])?;
    let untouched = podman.ok(&["run", "--rm", IMAGE, "sha256sum", "/data/sizes/10"])?;
    let own = scene
        .own
        .ok(&["run", "--rm", IMAGE, "sha256sum", "/data/sizes/10"])?;
    assert_eq!(untouched.text(), own.text());

    podman
        .finish(&["rmi", IMAGE])?
        .refused_with(&["read-only"])?;
    podman.finish(&["rmi", "--force", IMAGE])?.refused()?;
    podman.ok(&["run", "--rm", IMAGE, "true"])?;
    scene.store.ok(&["fsck"])?;
    Ok(())
}

#[test]
fn commands_of_podman_4_work_in_layout_mounted() -> Result<()> {
    commands_work(Release::Host, Layout::Mounted)
}

#[test]
fn commands_of_podman_5_4_work_in_layout_blob() -> Result<()> {
    commands_work(Release::Trixie, Layout::Blob)
}

#[test]
fn commands_of_podman_5_8_work_in_layout_blob() -> Result<()> {
    commands_work(Release::Sid, Layout::Blob)
}

#[test]
fn commands_of_podman_5_8_work_in_layout_mounted() -> Result<()> {
    commands_work(Release::Sid, Layout::Mounted)
}

#[test]
fn user_namespace_shifts_the_same_owners_in_layout_blob() -> Result<()> {
    let map = ["--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536"];
    let scene = Scene::new(Release::Sid, Kind::Xfs, |dir| {
        Fixture::hard(dir, Limits::PORTABLE)
    })?;
    let expected = scene.own.tree(IMAGE, &map)?;
    assert_eq!(expected.get("data/owners/1000")?.owner, (101_000, 200_999));
    let podman = scene.published(Layout::Blob)?;
    podman
        .tree(IMAGE, &map)?
        .must_equal("from our store", &expected, "from podman's own")
}
