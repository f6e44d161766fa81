//! What containers of different images share in memory, and images on disk.

use super::{Bench, files::drop_caches};
use crate::bench::report::Section;
use crate::steps::ok;
use anyhow::{Context, Result, ensure};
use integration::fixture::noise;
use integration::tar::Member;
use integration::{Engine, Filesystem, Fixture, Kind, Machine, Peers, Podman, Release, Store};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Two containers of two images that have a file in common, in layers that they have not.
pub(super) fn page_cache(bench: &Bench, section: &mut Section) -> Result<()> {
    const SHARED: usize = 32 << 20;
    let layer = |own: u64| {
        let names = [("own", own, 1000), ("shared", 1, SHARED)];
        vec![
            names
                .map(|(name, seed, size)| Member::file(name, noise(seed, size)))
                .into(),
        ]
    };
    let images = [
        bench.add("first", layer(2))?,
        bench.add("second", layer(3))?,
    ];
    section.head(&[
        "a file of 32 MiB in two images, read by a container of the first",
        "in memory, seen from the first",
        "seen from a container of the second",
    ]);
    for engine in &bench.engines {
        let first = engine.start(&images[0], "first")?;
        let second = engine.start(&images[1], "second")?;
        drop_caches()?;
        let before = resident(&second.path("shared"))?;
        ensure!(
            before == 0,
            "{before} bytes are in memory before anybody reads"
        );
        ok(&mut first.command("cat /shared >/dev/null"))?;
        let seen = [&first, &second].map(|container| resident(&container.path("shared")));
        let mut cells = vec![engine.name.to_owned()];
        for seen in seen {
            cells.push(format!("{:.1} MiB", seen? as f64 / f64::from(1 << 20)));
        }
        section.row(&cells);
        first.remove()?;
        second.remove()?;
    }
    section.paragraph(
        "As `mincore` tells, through `fincore`; measured once, after the caches were emptied.",
    );
    Ok(())
}

/// Bytes of a file that are in the page cache.
fn resident(file: &Path) -> Result<u64> {
    let mut fincore = Command::new("fincore");
    fincore.args(["--bytes", "--noheadings", "--output", "RES"]);
    let found = integration::ok(fincore.arg(file))?;
    found.text().trim().parse().context("fincore's number")
}

/// An image of an operating system, and ten of applications on a base that has many of its files.
fn images(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let file = |n: u64| {
        let size = 500 + (n * 7919 % 40_000) as usize;
        Member::file(format!("usr/lib/{}/file-{n}", n % 100), noise(n, size))
    };
    let mut images = Vec::new();
    let mut write = |name: String, layers: Vec<Vec<Member>>| -> Result<()> {
        let layout = dir.join(&name);
        Fixture::with_layers(&layout, layers)?;
        images.push((format!("localhost/{name}:latest"), layout));
        Ok(())
    };
    write("os".to_owned(), vec![(0..8_000).map(file).collect()])?;
    for app in 0..10 {
        let own = 20_000 + 1_000 * app;
        // The base: 3,000 files of the system's, and 500 of its own. Each application: 300 of its own,
        // and 100 of the system's that the base lacks.
        let base = (0..3_000).chain(10_000..10_500).map(file).collect();
        let top = (own..own + 300).chain(4_000..4_100).map(file).collect();
        write(format!("app{app}"), vec![base, top])?;
    }
    Ok(images)
}

/// What the images take on a filesystem of their own, in podman's storage and in a repository.
pub(super) fn disk(peers: &Peers, section: &mut Section) -> Result<()> {
    let images = images(&peers.scratch_dir("images")?)?;
    let machine = Machine::start(peers, Release::Sid)?;
    section.head(&[
        "an operating system, and ten applications on one base",
        "on disk",
        "inodes",
    ]);
    let mut row = |name: &str, add: &dyn Fn(&Filesystem) -> Result<()>| -> Result<()> {
        let disk = Filesystem::new(peers, Kind::Xfs, 4 << 10)?;
        let before = (disk.used()?, inodes(&disk)?);
        add(&disk)?;
        section.row(&[
            name.to_owned(),
            format!("{:.1} MB", (disk.used()? - before.0) as f64 / 1e6),
            (inodes(&disk)? - before.1).to_string(),
        ]);
        Ok(())
    };
    row("podman's own store", &|disk| {
        let podman = Podman::new(&machine, &disk.path().join("disk-own"), &Engine::default())?;
        images
            .iter()
            .try_for_each(|(name, layout)| podman.load(layout, name))
    })?;
    row("ours, all published (`blob`)", &|disk| {
        let store = Store::init(&machine, &disk.path().join("repository"))?;
        let engine = Engine::with_store(&store.podman_store()?).metacopy();
        let podman = Podman::new(&machine, &disk.path().join("disk-blob"), &engine)?;
        let conf = podman.storage_conf().display().to_string();
        for (name, layout) in &images {
            let from = format!("oci:{}", layout.display());
            store.ok(&["import", "--tag", name, &from])?;
            store.ok(&["publish", "--storage-conf", &conf, "--layout", "blob", name])?;
        }
        podman.ok(&["run", "--rm", "--pull", "never", &images[0].0, "true"])?;
        Ok(())
    })?;
    section.paragraph(
        "8,000 files of the system; a base of 3,000 of these and 500 others; each application has 300 files \
         of its own and 100 of the system's. What a new XFS has in use anyway is taken off.",
    );
    Ok(())
}

fn inodes(disk: &Filesystem) -> Result<u64> {
    let stat = rustix::fs::statvfs(disk.path())?;
    Ok(stat.f_files - stat.f_ffree)
}
