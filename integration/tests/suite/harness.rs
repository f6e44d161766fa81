//! The harness itself: podmans must agree with each other before anything is compared with ours.

use crate::builds::built_tree;
use crate::scene::IMAGE;
use anyhow::Result;
use integration::fixture::Limits;
use integration::{
    Engine, Filesystem, Fixture, Kind, Machine, Peers, Podman, Release, Tree, filesystem,
};

/// The trees that `look` sees on machines of `releases`, which must be equal.
fn agree(
    kind: Kind,
    limits: Limits,
    releases: &[Release],
    look: impl Fn(&Podman) -> Result<Tree>,
) -> Result<Tree> {
    let peers = Peers::from_env()?;
    let disk = Filesystem::new(&peers, kind, 2048)?;
    let fixture = Fixture::hard(&disk.path().join("layout"), limits)?;
    let mut first: Option<Tree> = None;
    for release in releases {
        let machine = Machine::start(&peers, *release)?;
        let dir = disk.path().join(format!("{release:?}"));
        let podman = Podman::new(&machine, &dir, &Engine::default())?;
        podman.load(fixture.layout(), IMAGE)?;
        let tree = look(&podman)?;
        match &first {
            None => first = Some(tree),
            Some(first) => {
                tree.must_equal(
                    &format!("{release:?}"),
                    first,
                    &format!("{:?}", releases[0]),
                )?;
            }
        }
    }
    Ok(first.unwrap_or_default())
}

const ALL: [Release; 3] = [Release::Host, Release::Trixie, Release::Sid];

#[test]
fn podmans_of_all_releases_agree_about_the_hard_image() -> Result<()> {
    let tree = agree(Kind::Btrfs, Limits::NONE, &ALL, |podman| {
        podman.tree(IMAGE, &[])
    })?;
    assert!(tree.entries.len() > 2000);
    assert_eq!(tree.get("data/links/broken1")?.size, 1000);
    assert!(tree.get("data/change/opaque/y").is_err());
    Ok(())
}

#[test]
fn podmans_of_all_releases_agree_about_a_build() -> Result<()> {
    let tree = agree(Kind::Xfs, Limits::PORTABLE, &ALL, built_tree)?;
    assert_eq!(tree.get("work/new-name/deep/three")?.size, 70_000);
    Ok(())
}

#[test]
fn podmans_agree_about_a_user_namespace() -> Result<()> {
    let map = ["--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536"];
    agree(Kind::Xfs, Limits::PORTABLE, &ALL[1..], |podman| {
        podman.tree(IMAGE, &map)
    })?;
    Ok(())
}

#[test]
fn fiemap_tells_a_reflink_from_a_copy() -> Result<()> {
    let peers = Peers::from_env()?;
    for kind in [Kind::Xfs, Kind::Btrfs] {
        let disk = Filesystem::new(&peers, kind, 512)?;
        let [file, clone, copy] = ["file", "clone", "copy"].map(|name| disk.path().join(name));
        std::fs::write(&file, vec![1; 1 << 20])?;
        for (how, to) in [("always", &clone), ("never", &copy)] {
            let mut cp = std::process::Command::new("cp");
            integration::ok(cp.arg(format!("--reflink={how}")).arg(&file).arg(to))?;
        }
        assert!(filesystem::share_extents(&file, &clone)?);
        assert!(!filesystem::share_extents(&file, &copy)?);
    }
    Ok(())
}
