//! podman's own use of `mkcomposefs`: the storage option `use_composefs`.

use anyhow::{Context, Result, ensure};
use integration::fixture::noise;
use integration::registry::Registry;
use integration::tar::Member;
use integration::{Engine, Filesystem, Fixture, Kind, Machine, Peers, Podman, Release, Tree, ok};
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

const IMAGE: &str = "localhost/image";

/// An engine that keeps layers as composefs images, made by the `mkcomposefs` that is first in PATH.
fn engine(machine: &Arc<Machine>, dir: &Path, registry: &Registry) -> Result<Podman> {
    let podman = Podman::new(machine, dir, &Engine::default())?;
    OpenOptions::new()
        .append(true)
        .open(podman.storage_conf())?
        .write_all(
            b"use_composefs = \"true\"\n\n\
              [storage.options.pull_options]\n\
              enable_partial_images = \"true\"\n\
              convert_images = \"true\"\n",
        )?;
    let mut pull = podman.command("podman");
    ok(pull
        .args(["pull", "--quiet", "--tls-verify=false"])
        .arg(registry.image()))?;
    let name = registry.image();
    let name = name.strip_prefix("docker://").unwrap_or(&name);
    ok(podman.command("podman").args(["tag", name, IMAGE]))?;
    Ok(podman)
}

/// The images of the layers, base first.
fn blobs(podman: &Podman) -> Result<Vec<Vec<u8>>> {
    podman
        .layers(IMAGE)?
        .into_iter()
        .map(|layer| {
            let blob = podman
                .graphroot()
                .join("overlay")
                .join(layer)
                .join("composefs-data/composefs.blob");
            fs::read(&blob).with_context(|| blob.display().to_string())
        })
        .collect()
}

/// What podman's conversion can hold; it loses whiteouts and refuses names that are not UTF-8.
fn layers() -> Vec<Vec<Member>> {
    let mut first = vec![Member::dir("data"), Member::dir("data/empty")];
    for size in [0, 1, 64, 65, 4096, 100_000] {
        let content = noise(size, size as usize);
        first.push(Member::file(format!("data/{size}"), content));
    }
    first.extend([
        Member::file("data/odd name=\\\n\u{fc}", "odd").xattr("user.key=", "a=\0 \\"),
        Member::file("data/owned", "owned")
            .owner(70_000, 12)
            .mode(0o6711),
        Member::file("data/old", "old").mtime(1, 0),
        Member::hardlink("data/hard", "data/4096"),
        Member::symlink("data/symlink", "t".repeat(3000)),
        Member::symlink("data/-", "-"),
        Member::fifo("data/pipe"),
        Member::char_device("data/null", 1, 3),
        Member::block_device("data/loop", 7, 300),
    ]);
    let second = vec![
        Member::dir("data").mode(0o700),
        Member::file("data/4096", "replaced"),
        Member::file("data/more/below/directories that are not in the layer", "x"),
    ];
    vec![first, second]
}

#[test]
fn podman_gets_the_same_layers_and_containers_with_our_mkcomposefs() -> Result<()> {
    let peers = Peers::from_env()?;
    let disk = Filesystem::new(&peers, Kind::Btrfs, 2048)?;
    let fixture = Fixture::with_layers(&disk.path().join("layout"), layers())?;
    let registry = Registry::serve(fixture.layout())?;
    let machine = Machine::start(&peers, Release::Sid)?;

    let with_c = engine(&machine, &disk.path().join("c"), &registry)?;
    let expected: Tree = with_c.tree(IMAGE, &[])?;

    let used = disk.path().join("used");
    let program = peers.composefs_store()?;
    machine.write(
        "/usr/local/bin/mkcomposefs",
        &format!(
            "#!/bin/sh\necho \"$@\" >>{}\nexec {} mkcomposefs \"$@\"\n",
            used.display(),
            program.display()
        ),
    )?;
    machine.sh("chmod 755 /usr/local/bin/mkcomposefs")?;
    let with_ours = engine(&machine, &disk.path().join("ours"), &registry)?;
    let calls = fs::read_to_string(&used)?;
    ensure!(
        calls.lines().all(|call| call == "--from-file - -"),
        "{calls}"
    );

    let layers = blobs(&with_ours)?;
    ensure!(calls.lines().count() == layers.len(), "{calls}");
    ensure!(layers == blobs(&with_c)?, "layers differ");
    with_ours
        .tree(IMAGE, &[])?
        .must_equal("ours", &expected, "C")
}
