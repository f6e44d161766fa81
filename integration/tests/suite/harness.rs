//! The harness itself: two podmans must agree about the hard image before anything is compared.

use anyhow::Result;
use integration::fixture::Limits;
use integration::{Engine, Filesystem, Fixture, Kind, Machine, Peers, Podman, Release};

#[test]
fn podmans_of_all_releases_agree_about_the_hard_image() -> Result<()> {
    let peers = Peers::from_env()?;
    let disk = Filesystem::new(&peers, Kind::Btrfs, 1024)?;
    let fixture = Fixture::hard(&disk.path().join("layout"), Limits::NONE)?;
    let mut trees = Vec::new();
    for release in [Release::Host, Release::Trixie, Release::Sid] {
        let machine = Machine::start(&peers, release)?;
        let dir = disk.path().join(format!("{release:?}"));
        let podman = Podman::new(&machine, &dir, &Engine::default())?;
        podman.load(fixture.layout(), "localhost/hard")?;
        trees.push((release, podman.tree("localhost/hard", &[])?));
    }
    let (first, expected) = &trees[0];
    for (release, tree) in &trees[1..] {
        tree.must_equal(&format!("{release:?}"), expected, &format!("{first:?}"))?;
    }
    assert!(expected.entries.len() > 2000);
    Ok(())
}
