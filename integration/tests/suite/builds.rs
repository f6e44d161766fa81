//! `podman build FROM` an image of our store gives what the same build gives on podman's own storage.

use crate::scene::Scene;
use anyhow::Result;
use integration::store::Layout;
use integration::{Kind, Podman, Release, Tree};

/// Every operation after which a naive commit of the upper directory would lose data.
const CONTAINERFILE: &str = "\
FROM localhost/fixture:latest
RUN chmod 0751 /usr/lib/large.bin && chown 3:4 /work/linked && touch -d @1600000001 /data/sizes/4096
RUN mv /work/renamed /work/new-name && mv /work/linked /work/moved && ln /work/moved /work/again
RUN rm -rf /work/replaced && mkdir /work/replaced && echo new >/work/replaced/new
RUN rm /data/sizes/64 && echo more >>/data/sizes/65 && ln -s over /data/sizes/63x
";

const BUILT: &str = "localhost/built:latest";

/// Builds on `podman`, and looks at the result.
pub(crate) fn built_tree(podman: &Podman) -> Result<Tree> {
    podman.build(BUILT, CONTAINERFILE)?;
    let mut tree = podman.tree(BUILT, &[])?;
    // Every build writes to /run while it runs.
    if let Some(run) = tree.entries.get_mut(b"run".as_slice()) {
        run.mtime = (0, 0);
    }
    Ok(tree)
}

fn build_gives_the_same_result(release: Release, kind: Kind, layout: Layout) -> Result<()> {
    let scene = Scene::hard(release, kind)?;
    let expected = built_tree(&scene.own)?;
    assert_eq!(expected.get("usr/lib/large.bin")?.mode, 0o100_751);
    assert_eq!(expected.get("work/new-name/deep/three")?.size, 70_000);
    assert!(expected.get("work/replaced/old").is_err());

    let podman = scene.published(layout)?;
    built_tree(&podman)?.must_equal("built on our store", &expected, "built on podman's own")
}

#[test]
fn podman_4_builds_the_same_in_layout_mounted() -> Result<()> {
    build_gives_the_same_result(Release::Host, Kind::Xfs, Layout::Mounted)
}

#[test]
fn podman_5_4_builds_the_same_in_layout_blob() -> Result<()> {
    build_gives_the_same_result(Release::Trixie, Kind::Btrfs, Layout::Blob)
}

#[test]
fn podman_5_8_builds_the_same_in_layout_blob() -> Result<()> {
    build_gives_the_same_result(Release::Sid, Kind::Xfs, Layout::Blob)
}

#[test]
fn podman_5_8_builds_the_same_in_layout_mounted() -> Result<()> {
    build_gives_the_same_result(Release::Sid, Kind::Xfs, Layout::Mounted)
}
