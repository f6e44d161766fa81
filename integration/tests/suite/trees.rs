//! The heart of the matter: a container run from our store sees exactly what a container run from
//! podman's own storage sees.

use crate::scene::{IMAGE, Scene};
use anyhow::Result;
use integration::store::Layout;
use integration::{Kind, Release};

fn container_sees_the_same_tree(release: Release, kind: Kind, layout: Layout) -> Result<()> {
    let scene = Scene::hard(release, kind)?;
    let expected = scene.own.tree(IMAGE, &[])?;
    let consumer = scene.published(layout)?;
    let found = consumer.tree(IMAGE, &[])?;
    found.must_equal("from our store", &expected, "from podman's own")
}

#[test]
fn podman_4_sees_the_same_tree_in_layout_mounted() -> Result<()> {
    container_sees_the_same_tree(Release::Host, Kind::Btrfs, Layout::Mounted)
}

#[test]
fn podman_5_4_sees_the_same_tree_in_layout_mounted() -> Result<()> {
    container_sees_the_same_tree(Release::Trixie, Kind::Btrfs, Layout::Mounted)
}

#[test]
fn podman_5_4_sees_the_same_tree_in_layout_blob() -> Result<()> {
    container_sees_the_same_tree(Release::Trixie, Kind::Btrfs, Layout::Blob)
}

#[test]
fn podman_5_8_sees_the_same_tree_in_layout_mounted() -> Result<()> {
    container_sees_the_same_tree(Release::Sid, Kind::Xfs, Layout::Mounted)
}

#[test]
fn podman_5_8_sees_the_same_tree_in_layout_blob() -> Result<()> {
    container_sees_the_same_tree(Release::Sid, Kind::Btrfs, Layout::Blob)
}

#[test]
fn tree_is_the_same_on_a_filesystem_without_reflinks() -> Result<()> {
    container_sees_the_same_tree(Release::Sid, Kind::Ext4, Layout::Blob)
}
