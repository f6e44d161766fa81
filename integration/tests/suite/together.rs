//! Imports, publishing, tags, gc, fsck and podman on one repository at once: nobody fails, nothing is lost,
//! and no lock stays behind, whatever way a gc ends.
//!
//! `COMPOSEFS_STORE_STRESS` says for how many seconds it goes on; by default 30.

use crate::peers::cfsctl_ok;
use crate::scene::unique;
use crate::stress::{bounded, seconds};
use anyhow::{Context, Result, ensure};
use integration::fixture::noise;
use integration::store::Layout;
use integration::tar::Member;
use integration::{
    Engine, Filesystem, Finished, Fixture, Kind, Machine, Peers, Podman, Release, Store,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

const IMAGES: u64 = 4;
const FILES: u64 = 20;

/// What may be said of an image that somebody else has just untagged or unpublished.
const GONE: [&str; 9] = [
    "is in use",
    "no image",
    "no published image",
    "image not known",
    "no such image",
    "does not exist",
    "image is not known",
    "unable to find",
    "layer not known",
];

/// Where a gc may die.
const KILLS: [&str; 5] = [
    "remove-name",
    "removed-names-synced",
    "remove-object",
    "unpublish-layers-removed",
    "unpublish-ref",
];

fn image(number: u64) -> String {
    format!("localhost/together{number}:latest")
}

/// Images that share a layer, and have one of their own.
fn fixtures(dir: &Path) -> Result<Vec<PathBuf>> {
    let seed = unique();
    let layer = |from: u64| -> Vec<Member> {
        (0..FILES)
            .map(|n| {
                Member::file(
                    format!("files/{from}-{n}"),
                    noise(seed + from * 100 + n, 20_000),
                )
            })
            .collect()
    };
    (0..IMAGES)
        .map(|number| {
            let layers = vec![layer(9), layer(number)];
            let fixture =
                Fixture::of_own_layers(&dir.join(format!("layout{number}")), seed, layers)?;
            Ok(fixture.layout().to_owned())
        })
        .collect()
}

/// Everything that takes part.
struct Arena {
    /// Has every image in its own storage.
    own: Podman,
    /// Has images from our store alone.
    consumer: Podman,
    store: Store,
    layout: Layout,
    end: Instant,
    /// How often something was done, and how often something else was faster.
    done: Mutex<BTreeMap<&'static str, (u32, u32)>>,
}

impl Arena {
    /// Calls `act` with 0, 1, 2 … until the time is over or something is wrong.
    fn repeat(&self, what: &'static str, act: impl Fn(u64) -> Result<()>) -> Result<()> {
        let mut number = 0;
        while Instant::now() < self.end {
            act(number).with_context(|| what.to_owned())?;
            number += 1;
        }
        Ok(())
    }

    fn note(&self, what: &'static str, is_done: bool) {
        let mut done = self.done.lock().expect("nobody panics");
        let (times, excused) = done.entry(what).or_default();
        *(if is_done { times } else { excused }) += 1;
    }

    /// It succeeds, or the image was taken away and it says so.
    fn or_gone(&self, what: &'static str, finished: &Finished) -> Result<()> {
        let is_done = finished.status.success();
        ensure!(
            is_done || GONE.iter().any(|gone| finished.stderr.contains(gone)),
            "no excuse: {finished}"
        );
        self.note(what, is_done);
        Ok(())
    }

    fn store(&self, arguments: &[&str]) -> Result<Finished> {
        bounded(&mut self.store.command(arguments)?)
    }

    fn podman(&self, arguments: &[&str]) -> Result<Finished> {
        bounded(self.consumer.command("podman").args(arguments))
    }

    fn conf(&self) -> String {
        self.consumer.storage_conf().display().to_string()
    }

    fn import(&self, number: u64) -> Result<()> {
        let root = self.own.graphroot().display().to_string();
        let import = ["import", "--storage-root", &root, &image(number)];
        self.store(&import)?.success()?;
        self.note("import", true);
        Ok(())
    }

    fn publish(&self, number: u64) -> Result<Finished> {
        self.store(&[
            "publish",
            "--layout",
            self.layout.word(),
            "--storage-conf",
            &self.conf(),
            &image(number),
        ])
    }

    fn unpublish(&self, number: u64) -> Result<Finished> {
        self.store(&["unpublish", "--storage-conf", &self.conf(), &image(number)])
    }

    fn tags(&self, number: u64) -> Result<()> {
        let tag = self.store(&["tag", &image(pick(number, 3)), "second"])?;
        self.or_gone("tag", &tag)?;
        let untag = ["untag", &image(pick(number, 4)), "second"];
        let done = self.store(&untag)?;
        ensure!(
            done.status.success() || done.stderr.contains("no tag"),
            "{done}"
        );
        self.note("untag", done.status.success());
        Ok(())
    }

    /// Collections that end well, that cannot tell what a host needs, and that are killed.
    fn gc(&self, number: u64) -> Result<()> {
        let conf = self.conf();
        let gc = ["gc", "--storage-conf", &conf];
        match number % 4 {
            1 => {
                let failing = [&gc[..], &["--sysroot", "/nowhere"]].concat();
                let done = self.store(&failing)?.refused_with(&["/nowhere"])?;
                ensure!(done.status.code() == Some(1), "{done}");
            }
            3 => {
                let point = KILLS[(number / 4) as usize % KILLS.len()];
                // It need not get there.
                integration::finish(&mut self.store.command_killed_at(point, &gc)?)?;
            }
            _ => {
                self.store(&gc)?.success()?;
            }
        }
        self.note("gc", true);
        Ok(())
    }

    fn fsck(&self, number: u64) -> Result<()> {
        let conf = self.conf();
        let depth = ["structure", "content", "meaning"][(number % 3) as usize];
        self.store(&["fsck", "--depth", depth, "--storage-conf", &conf])?
            .success()?;
        self.note("fsck", true);
        Ok(())
    }

    /// A container reads every file. Its status tells: podman 4 may lose what a container prints on a busy
    /// machine.
    fn read(&self, name: &str) -> Result<Finished> {
        let bytes = 2 * FILES * 20_000;
        let read = format!("test $(cat /files/* | wc -c) = {bytes}");
        self.podman(&["run", "--rm", "--pull", "never", name, "sh", "-c", &read])
    }

    /// A container reads every file, or there is none.
    fn run(&self, number: u64) -> Result<()> {
        let name = image(pick(number, 5));
        self.or_gone("run", &self.read(&name)?)?;
        self.podman(&["images"]).map(drop)
    }

    /// An image of podman's own on one of ours, which goes again.
    fn build(&self, number: u64) -> Result<()> {
        let name = image(pick(number, 6));
        let container = format!("built{number}");
        let create = [
            "create", "--pull", "never", "--name", &container, &name, "true",
        ];
        let created = self.podman(&create)?;
        self.or_gone("create", &created)?;
        if !created.status.success() {
            return Ok(());
        }
        let built = format!("localhost/built{number}");
        let committed = self.podman(&["commit", "--quiet", &container, &built])?;
        self.or_gone("build", &committed)?;
        self.podman(&["rm", &container])?.success()?;
        if committed.status.success() {
            self.read(&built)?.success()?;
            // podman wants to take a parent without a name along, which is ours.
            let removed = self.podman(&["rmi", "--force", &built])?;
            ensure!(
                removed.status.success() || removed.stderr.contains("read-only image"),
                "{removed}"
            );
        }
        Ok(())
    }
}

/// Different numbers for each `salt`, without order.
fn pick(number: u64, salt: u64) -> u64 {
    let mixed =
        (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15 ^ salt.wrapping_mul(0xff51_afd7_ed55_8ccd));
    (mixed >> 33) % IMAGES
}

fn everything_at_once(release: Release, layout: Layout) -> Result<()> {
    let disk = Filesystem::new(&Peers::from_env()?, Kind::Xfs, 4096)?;
    let machine = Machine::start(&Peers::from_env()?, release)?;
    let own = Podman::new(&machine, &disk.path().join("own"), &Engine::default())?;
    for (number, layout) in (0..).zip(fixtures(disk.path())?) {
        own.load(&layout, &image(number))?;
    }
    let store = Store::init(&machine, &disk.path().join("repository"))?;
    let engine = Engine::with_store(&store.podman_store()?);
    let engine = match layout {
        Layout::Blob => engine.metacopy(),
        Layout::Mounted => engine,
    };
    store.ok(&["serve-mounts"])?;
    let arena = Arena {
        consumer: Podman::new(&machine, &disk.path().join("consumer"), &engine)?,
        own,
        store,
        layout,
        end: Instant::now() + Duration::from_secs(seconds()?),
        done: Mutex::default(),
    };
    std::thread::scope(|scope| -> Result<()> {
        let arena = &arena;
        let threads = [
            scope.spawn(|| {
                arena.repeat("import", |n| {
                    arena.import(pick(n, 1))?;
                    arena.or_gone("publish", &arena.publish(pick(n, 1))?)
                })
            }),
            scope.spawn(|| {
                arena.repeat("unpublish", |n| {
                    arena.or_gone("publish", &arena.publish(pick(n, 2))?)?;
                    arena.or_gone("unpublish", &arena.unpublish(pick(n, 7))?)
                })
            }),
            scope.spawn(|| arena.repeat("tags", |n| arena.tags(n))),
            scope.spawn(|| arena.repeat("gc", |n| arena.gc(n))),
            scope.spawn(|| arena.repeat("fsck", |n| arena.fsck(n))),
            scope.spawn(|| arena.repeat("run", |n| arena.run(n))),
            scope.spawn(|| arena.repeat("build", |n| arena.build(n))),
        ];
        for thread in threads {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(())
    })?;
    let done = arena.done.lock().expect("nobody panics").clone();
    eprintln!("{release:?}, times done and excused: {done:?}");
    for what in ["import", "publish", "gc", "fsck"] {
        ensure!(
            done.get(what).is_some_and(|(times, _)| *times > 0),
            "no {what}"
        );
    }
    // Whether an image is there when its turn comes is chance.
    for what in ["unpublish", "tag", "untag", "run", "create"] {
        ensure!(done.contains_key(what), "no {what}");
    }
    let conf = arena.conf();
    let gc = ["gc", "--storage-conf", &conf];
    arena.store(&["fsck", "--storage-conf", &conf])?.success()?;
    cfsctl_ok(arena.store.repo(), &["fsck"])?;
    // Whatever is left works, and all can be had again.
    for number in 0..IMAGES {
        arena.import(number)?;
        arena.publish(number)?.success()?;
    }
    arena.store(&gc)?.success()?;
    for number in 0..IMAGES {
        arena.read(&image(number))?.success()?;
    }
    arena.podman(&["rm", "--all", "--force"])?.success()?;
    for number in 0..IMAGES {
        arena.unpublish(number)?.success()?;
        arena.store(&["untag", &image(number)])?.success()?;
    }
    arena.store(&["untag", "second"])?;
    arena.store(&gc)?.success()?;
    assert_eq!(arena.store.objects()?, [] as [PathBuf; 0]);
    arena.store(&["fsck", "--storage-conf", &conf])?.success()?;
    Ok(())
}

#[test]
fn podman_4_imports_publishing_tags_gc_and_fsck_at_once_do_not_harm_each_other() -> Result<()> {
    everything_at_once(Release::Host, Layout::Mounted)
}

#[test]
fn podman_5_8_imports_publishing_tags_gc_and_fsck_at_once_do_not_harm_each_other() -> Result<()> {
    everything_at_once(Release::Sid, Layout::Blob)
}
