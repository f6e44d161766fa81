//! Publishing, publishing again under a tag that moved, and unpublishing while podman lists, runs and
//! builds: no command fails, no container sees a torn image, and what is in use stays until its last user
//! is gone.
//!
//! `COMPOSEFS_STORE_STRESS` says for how many seconds each test goes on; by default 15.

use crate::on_top::link_ids;
use crate::publishing::give_half_made_layers_a_directory;
use crate::scene::unique;
use crate::stress::{bounded, seconds};
use anyhow::{Context, Result, bail, ensure};
use integration::fixture::noise;
use integration::store::Layout;
use integration::tar::Member;
use integration::{
    Access, DockerRegistry, Engine, Filesystem, Finished, Fixture, Kind, Machine, Peers, Podman,
    Release, Store,
};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The name whose image changes all the time, and that is always there.
const APP: &str = "localhost/app:latest";
/// The name that comes and goes.
const OTHER: &str = "localhost/other:latest";
/// What [`APP`] means, in turn.
const VERSIONS: [&str; 2] = ["localhost/version:1", "localhost/version:2"];

/// How long an image that goes stays for those who may have found it (docs/publishing.md).
const PATIENCE: Duration = Duration::from_secs(10);

/// What is built on [`APP`].
const BUILT: &str = "localhost/built:latest";

/// An image whose files, in several layers, all say which one it is.
fn image(dir: &Path, seed: u64, version: u64) -> Result<Fixture> {
    let layer = |n: u64| {
        let file = |f| Member::file(format!("noise/{n}-{f}"), noise(seed + 10 * n + f, 20_000));
        let mut members: Vec<Member> = (0..10).map(file).collect();
        members.push(Member::file(format!("version/{n}"), format!("{version}\n")));
        members
    };
    let shared = (0..10).map(|f| Member::file(format!("shared/{f}"), noise(seed + f, 20_000)));
    Fixture::of_own_layers(
        dir,
        seed,
        vec![shared.collect(), layer(1 + 10 * version), layer(2)],
    )
}

/// Reads all files. The status is [`VERSION`] and the version that the image's files say it is: podman 4 may
/// lose what a container prints on a busy machine.
const ASK: &str = "cat /noise/* /shared/* >/tmp/read; set -- $(cat /version/*); test $# = 2; test $1 = $2; \
                   exit $((100 + $1))";
/// The status of [`ASK`] for version 0.
const VERSION: i32 = 100;

/// The version that [`ASK`] found.
fn version(done: &Finished) -> Result<u64> {
    let code = done
        .status
        .code()
        .and_then(|code| code.checked_sub(VERSION));
    let version = code.filter(|version| (0..20).contains(version));
    Ok(version.with_context(|| done.to_string())?.try_into()?)
}

struct Arena {
    podman: Podman,
    store: Store,
    layout: Layout,
    end: Instant,
    done: [AtomicUsize; 6],
    machine: std::sync::Arc<Machine>,
    disk: Filesystem,
    /// The IDs of the images that we show.
    ours: Vec<String>,
}

/// What the threads do, as indices of their counters.
const TASKS: [&str; 6] = ["list", "run", "build", "other", "move", "come and go"];

impl Arena {
    fn podman(&self, arguments: &[&str]) -> Result<Finished> {
        bounded(self.podman.command("podman").args(arguments))
    }

    fn store(&self, arguments: &[&str]) -> Result<Finished> {
        bounded(&mut self.store.command(arguments)?)?.success()
    }

    /// With the storage.conf of the podman that uses the store.
    fn configured(&self, command: &str, arguments: &[&str]) -> Result<Finished> {
        let conf = self.podman.storage_conf().display().to_string();
        self.store(&[&[command, "--storage-conf", &conf], arguments].concat())
    }

    fn publish(&self, name: &str) -> Result<Finished> {
        self.configured("publish", &["--layout", self.layout.word(), name])
    }

    fn unpublish(&self, name: &str) -> Result<Finished> {
        self.configured("unpublish", &["--when-unused", name])
    }

    /// Calls `act` with 0, 1, 2 … until the time is over or something is wrong.
    fn repeat(&self, task: usize, mut act: impl FnMut(usize) -> Result<()>) -> Result<()> {
        while Instant::now() < self.end {
            let number = self.done[task].fetch_add(1, Ordering::Relaxed);
            act(number).with_context(|| format!("{}, {number}", TASKS[task]))?;
        }
        Ok(())
    }

    /// Whether podman 4 has met an image of its own that a build is making: it is on record before it has a
    /// manifest. One of ours always has it.
    fn is_half_made(&self, listed: &Finished) -> bool {
        self.machine.release() == Release::Host
            && listed.stderr.contains("locating item named \"manifest\"")
            && !self.ours.iter().any(|id| listed.stderr.contains(id))
    }

    /// podman's list: it always succeeds, unless it takes longer than unpublish waits for it, and has [`APP`] and
    /// nothing that was never published.
    fn list(&self) -> Result<()> {
        let format = "{{.Repository}}:{{.Tag}}";
        let begun = Instant::now();
        let listed = self.podman(&["images", "--noheading", "--format", format])?;
        let took = begun.elapsed();
        if !listed.status.success() && (took > PATIENCE || self.is_half_made(&listed)) {
            return Ok(());
        }
        let listed = listed
            .success()
            .with_context(|| format!("after {took:?}"))?;
        let listed = listed.text();
        ensure!(listed.lines().any(|line| line == APP), "no {APP}: {listed}");
        let known = |line: &&str| {
            [APP, OTHER, "<none>:<none>", BUILT].contains(line) || VERSIONS.contains(line)
        };
        match listed.lines().find(|line| !known(line)) {
            Some(line) => bail!("{line} in {listed}"),
            None => Ok(()),
        }
    }

    fn run(&self, name: &str) -> Result<Finished> {
        self.read(name, ASK)
    }

    fn read(&self, name: &str, script: &str) -> Result<Finished> {
        let command = ["run", "--rm", "--pull", "never", name, "sh", "-euc", script];
        self.podman(&command)
    }

    /// A container of [`APP`] is one of the versions, wholly.
    fn run_app(&self) -> Result<()> {
        let version = version(&self.run(APP)?)?;
        ensure!([1, 2].contains(&version), "it says {version}");
        Ok(())
    }

    /// A build on [`APP`] has one of the versions in it, wholly. What was built before stays: podman 4
    /// cannot list images while it removes some of its own.
    fn build(&self, number: usize) -> Result<()> {
        let run = format!("RUN chmod 0700 /version && cat /version/* >/built && echo {number}\n");
        self.podman.build(BUILT, &format!("FROM {APP}\n{run}"))?;
        let same = format!("test \"$(cat /built)\" = \"$(cat /version/*)\"; {ASK}");
        let version = version(&self.read(BUILT, &same)?)?;
        ensure!([1, 2].contains(&version), "it says {version}");
        Ok(())
    }

    /// Removes what podman has built.
    fn forget_builds(&self) -> Result<()> {
        let list = ["images", "--all", "--quiet", "--no-trunc"];
        let own = [&list[..], &["--filter", "readonly=false"]].concat();
        let own = self.podman(&own)?.success()?.text();
        let mut remove = vec!["rmi", "--force"];
        remove.extend(own.lines());
        self.podman(&remove)?.success()?;
        Ok(())
    }

    /// A container of [`OTHER`] is whole, or there is no such image.
    fn run_other(&self) -> Result<()> {
        let done = self.run(OTHER)?;
        if let Ok(version) = version(&done) {
            ensure!(version == 3, "it says {version}");
            return Ok(());
        }
        let is_unknown = |line: &str| line.contains("image not known");
        let done = done.refused()?;
        ensure!(done.stderr.lines().any(is_unknown), "{done}");
        Ok(())
    }

    /// Moves [`APP`] to the other version, and takes the one that it had away.
    fn move_app(&self, number: usize) -> Result<()> {
        let (new, old) = (VERSIONS[(number + 1) % 2], VERSIONS[number % 2]);
        // Both orders: the tag moves before the image is published, or after that.
        if number % 4 < 2 {
            self.publish(new)?;
            self.store(&["tag", new, APP])?;
        } else {
            self.store(&["tag", new, APP])?;
            self.publish(new)?;
        }
        self.unpublish(old)?;
        if number % 3 == 2 {
            self.configured("gc", &[])?;
        }
        Ok(())
    }

    fn come_and_go(&self) -> Result<()> {
        self.publish(OTHER)?;
        self.unpublish(OTHER)?;
        Ok(())
    }

    fn layers(&self) -> Result<Vec<PathBuf>> {
        let overlay = self
            .store
            .repo()
            .join("composefs-store/podman-store/overlay");
        if !overlay.exists() {
            return Ok(Vec::new());
        }
        let mut found: Vec<PathBuf> = std::fs::read_dir(overlay)?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?;
        found.retain(|path| path.file_name().is_some_and(|name| name.len() == 64));
        found.sort();
        Ok(found)
    }
}

fn arena(release: Release, layout: Layout) -> Result<Arena> {
    let peers = Peers::from_env()?;
    let disk = Filesystem::new(&peers, Kind::Xfs, 2048)?;
    let machine = Machine::start(&peers, release)?;
    let store = Store::init(&machine, &disk.path().join("repository"))?;
    let engine = Engine::with_store(&store.podman_store()?);
    let engine = match layout {
        Layout::Blob => engine.metacopy(),
        Layout::Mounted => engine,
    };
    let podman = Podman::new(&machine, &disk.path().join("engine"), &engine)?;
    let seed = unique();
    let names = [VERSIONS[0], VERSIONS[1], OTHER];
    for (version, name) in (1..).zip(names) {
        let fixture = image(&disk.path().join(format!("layout{version}")), seed, version)?;
        let from = format!("oci:{}", fixture.layout().display());
        store.ok(&["import", "--tag", name, &from])?;
    }
    store.ok(&["tag", VERSIONS[0], APP])?;
    let images = store.ok(&["--json", "images"])?.stdout;
    let images: serde_json::Value = serde_json::from_slice(&images)?;
    let ids = images["images"].as_array().context("no images")?;
    let ours: Vec<String> = ids
        .iter()
        .filter_map(|image| image["id"].as_str())
        .map(str::to_owned)
        .collect();
    ensure!(ours.len() == names.len(), "{images}");
    Ok(Arena {
        podman,
        store,
        layout,
        end: Instant::now() + Duration::from_secs(seconds()?),
        done: Default::default(),
        machine,
        disk,
        ours,
    })
}

fn podman_never_fails_while_images_change(release: Release, layout: Layout) -> Result<()> {
    let arena = arena(release, layout)?;
    arena.publish(VERSIONS[0])?;
    let begun = arena.podman(&["run", "--detach", "--name", "old", APP, "sleep", "6000"]);
    begun?.success()?;
    let layers = arena.layers()?;
    let links = link_ids(&layers)?;

    std::thread::scope(|scope| -> Result<()> {
        let arena = &arena;
        let threads = [
            scope.spawn(|| arena.repeat(0, |_| arena.list())),
            scope.spawn(|| arena.repeat(1, |_| arena.run_app())),
            scope.spawn(|| arena.repeat(2, |number| arena.build(number))),
            scope.spawn(|| arena.repeat(3, |_| arena.run_other())),
            scope.spawn(|| arena.repeat(4, |number| arena.move_app(number))),
            scope.spawn(|| arena.repeat(5, |_| arena.come_and_go())),
        ];
        for thread in threads {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(())
    })?;
    let done: Vec<String> = TASKS
        .iter()
        .zip(&arena.done)
        .map(|(task, done)| format!("{task} {}", done.load(Ordering::Relaxed)))
        .collect();
    eprintln!("{release:?}, {}: {}", layout.word(), done.join(", "));

    // The container from the beginning reads everything, on the layers that it began with.
    let said = arena.podman(&["exec", "old", "sh", "-euc", ASK])?;
    assert_eq!(version(&said)?, 1);
    let now = arena.layers()?;
    ensure!(layers.iter().all(|layer| now.contains(layer)), "{now:?}");
    assert_eq!(link_ids(&layers)?, links);
    arena.store(&["fsck"])?;

    // Its last user gone, everything goes.
    arena
        .podman(&["rm", "--force", "--time", "0", "old"])?
        .success()?;
    for name in VERSIONS.iter().chain([&OTHER]) {
        // Whether it is published depends on where the time was over.
        arena.publish(name)?;
        arena.unpublish(name)?;
        arena.store(&["untag", name])?;
    }
    arena.store(&["untag", APP])?;
    arena.forget_builds()?;
    let end = Instant::now() + Duration::from_secs(30);
    // The kernel may still be taking the container's mounts down.
    while !arena.layers()?.is_empty() && Instant::now() < end {
        arena.configured("gc", &[])?;
    }
    arena.configured("gc", &[])?;
    let roots = || arena.configured("roots", &[]).map(|roots| roots.text());
    assert_eq!(arena.layers()?, [] as [PathBuf; 0], "{}", roots()?);
    assert_eq!(arena.store.objects()?, [] as [PathBuf; 0], "{}", roots()?);
    arena.store(&["fsck"])?;
    Ok(())
}

#[test]
fn podman_4_never_fails_while_images_change_in_layout_mounted() -> Result<()> {
    podman_never_fails_while_images_change(Release::Host, Layout::Mounted)
}

#[test]
fn podman_5_4_never_fails_while_images_change_in_layout_blob() -> Result<()> {
    podman_never_fails_while_images_change(Release::Trixie, Layout::Blob)
}

#[test]
fn podman_5_8_never_fails_while_images_change_in_layout_mounted() -> Result<()> {
    podman_never_fails_while_images_change(Release::Sid, Layout::Mounted)
}

#[test]
fn podman_5_8_never_fails_while_images_change_in_layout_blob() -> Result<()> {
    podman_never_fails_while_images_change(Release::Sid, Layout::Blob)
}

/// podman pulls an image while it is published: it looks for a layer, finds none, extracts it, and would
/// then remove the directory of that layer that it finds in our store. What the pull itself comes to is
/// podman's business; our directories are ours.
fn a_pull_cannot_delete_what_is_being_published(release: Release, layout: Layout) -> Result<()> {
    const ROUNDS: u64 = 5;
    let arena = arena(release, layout)?;
    let registry = DockerRegistry::start(arena.machine.peers(), Access::Open)?;
    for round in 0..ROUNDS {
        let dir = arena.disk.path().join(format!("pulled{round}"));
        let version = 4 + round;
        image(&dir, unique(), version)?;
        let (from, tag) = (format!("oci:{}", dir.display()), format!("pulled:{round}"));
        registry.push(&arena.machine, &format!("{from}:latest"), &tag)?;
        arena.store(&["import", "--tag", &tag, &from])?;

        let name = registry.image(&tag);
        let pull = ["pull", "--quiet", "--tls-verify=false", &name];
        let before = arena.layers()?.len();
        let pulled = std::thread::scope(|scope| -> Result<Finished> {
            let pulling = scope.spawn(|| arena.podman(&pull));
            // Earlier or later in the pull: podman's list takes a part of the time that a pull takes.
            for _ in 0..round % 3 {
                arena.podman(&["images", "--quiet"])?;
            }
            arena.publish(&tag)?;
            let pulled = pulling.join();
            pulled.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        give_half_made_layers_a_directory(&arena.podman)?;
        arena.store(&["fsck"])?;
        assert_eq!(
            arena.layers()?.len(),
            before + 4,
            "in round {round}: {pulled}"
        );
        let ours = format!("localhost/{tag}");
        if arena.podman(&["image", "exists", &ours])?.status.success() {
            assert_eq!(
                self::version(&arena.run(&ours)?)?,
                version,
                "in round {round}"
            );
        } else {
            // The pull came first, and podman's copy hides the name that only we have.
            let own = ["images", "--filter", "readonly=false", "--noheading"];
            let own =
                arena.podman(&[&own[..], &["--format", "{{.Repository}}:{{.Tag}}"]].concat())?;
            let own = own.success()?.text();
            ensure!(
                own.lines().any(|line| line == name),
                "in round {round}: {own}"
            );
        }
        // Now podman has nothing to extract.
        arena.podman(&pull)?.success()?;
        assert_eq!(
            self::version(&arena.run(&name)?)?,
            version,
            "in round {round}"
        );
    }
    Ok(())
}

#[test]
fn a_pull_by_podman_4_cannot_delete_what_is_being_published() -> Result<()> {
    a_pull_cannot_delete_what_is_being_published(Release::Host, Layout::Mounted)
}

#[test]
fn a_pull_by_podman_5_8_cannot_delete_what_is_being_published() -> Result<()> {
    a_pull_cannot_delete_what_is_being_published(Release::Sid, Layout::Blob)
}
