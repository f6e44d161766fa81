//! podman loading, removing, pruning and creating containers while images are imported from its storage
//! and garbage is collected in the repository: neither side is ever harmed, and nobody waits for ever.
//!
//! `COMPOSEFS_STORE_STRESS` says for how many seconds each test goes on; by default 15.

use crate::peers::cfsctl_ok;
use anyhow::{Context, Result, ensure};
use integration::fixture::noise;
use integration::tar::Member;
use integration::{
    Engine, Filesystem, Finished, Fixture, Kind, Machine, Peers, Podman, Release, Store,
    finish_podman,
};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const IMAGES: u64 = 4;

/// Longer than any single command takes on a busy machine: whoever takes longer waits for ever.
const PATIENCE: &str = "240";

/// How an import may fail when podman takes the image away.
const EXCUSES: [&str; 2] = [
    "no image \"localhost/stress",
    "was removed or changed by another process",
];

/// How long each test goes on.
pub(crate) fn seconds() -> Result<u64> {
    match std::env::var("COMPOSEFS_STORE_STRESS") {
        Ok(seconds) => seconds.parse().context("COMPOSEFS_STORE_STRESS"),
        Err(_) => Ok(15),
    }
}

fn image(number: u64) -> String {
    format!("localhost/stress{number}:latest")
}

/// Images that share their lower layers, so that removing one leaves parts of another.
fn fixtures(dir: &Path) -> Result<Vec<PathBuf>> {
    let layer = |seed: u64| -> Vec<Member> {
        (0..40)
            .map(|n| Member::file(format!("files/{seed}-{n}"), noise(seed * 100 + n, 30_000)))
            .collect()
    };
    (0..IMAGES)
        .map(|number| {
            let layers = vec![layer(50), layer(60 + number / 2), layer(70 + number)];
            let fixture = Fixture::with_layers(&dir.join(format!("layout{number}")), layers)?;
            Ok(fixture.layout().to_owned())
        })
        .collect()
}

/// Runs a command that must end.
pub(crate) fn bounded(command: &mut Command) -> Result<Finished> {
    let mut timed = Command::new("timeout");
    timed.args(["--signal", "KILL", PATIENCE]);
    timed.arg(command.get_program()).args(command.get_args());
    timed.env_clear();
    for (key, value) in command.get_envs() {
        if let Some(value) = value {
            timed.env(key, value);
        }
    }
    let done = finish_podman(&mut timed)?;
    ensure!(
        done.status.code().is_some_and(|code| code != 137),
        "killed, or still not done after {PATIENCE} s: {done}"
    );
    Ok(done)
}

/// Everything that takes part.
struct Arena {
    podman: Podman,
    store: Store,
    layouts: Vec<PathBuf>,
    end: Instant,
    loaded: AtomicUsize,
    imported: AtomicUsize,
    excused: AtomicUsize,
}

impl Arena {
    /// Calls `act` with 0, 1, 2 … until the time is over or something is wrong.
    fn repeat(&self, what: &str, mut act: impl FnMut(u64) -> Result<()>) -> Result<()> {
        let mut number = 0;
        while Instant::now() < self.end {
            act(number).with_context(|| what.to_owned())?;
            number += 1;
        }
        Ok(())
    }

    fn load(&self, number: u64) -> Result<Finished> {
        let layout = self.layouts[number as usize].display().to_string();
        bounded(
            self.podman
                .command("skopeo")
                .args(["copy", "--quiet"])
                .arg(format!("oci:{layout}:latest"))
                .arg(format!("containers-storage:{}", image(number))),
        )
    }

    /// Lets podman look at its images until two more were loaded, for imports to find some.
    fn await_loads(&self) -> Result<()> {
        let before = self.loaded.load(Ordering::Relaxed);
        while self.loaded.load(Ordering::Relaxed) < before + 2 && Instant::now() < self.end {
            self.podman(&["images"])?;
        }
        Ok(())
    }

    fn podman(&self, arguments: &[&str]) -> Result<Finished> {
        bounded(self.podman.command("podman").args(arguments))
    }

    fn import(&self, number: u64) -> Result<Finished> {
        let root = self.podman.graphroot().display().to_string();
        let arguments = ["import", "--storage-root", &root, &image(number)];
        bounded(&mut self.store.command(&arguments)?)
    }

    /// An import that succeeds, or fails because podman was faster and says so.
    fn import_or_excuse(&self, number: u64) -> Result<()> {
        let done = self.import(number)?;
        if done.status.success() {
            self.imported.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        let done = done.refused()?;
        ensure!(
            EXCUSES.iter().any(|excuse| done.stderr.contains(excuse)),
            "no excuse: {done}"
        );
        self.excused.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Different numbers for each `salt`, without order.
fn pick(number: u64, salt: u64) -> u64 {
    let mixed =
        (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15 ^ salt.wrapping_mul(0xff51_afd7_ed55_8ccd));
    (mixed >> 33) % IMAGES
}

fn import_and_podman_do_not_harm_each_other(release: Release) -> Result<()> {
    let disk = Filesystem::new(&Peers::from_env()?, Kind::Xfs, 4096)?;
    let machine = Machine::start(&Peers::from_env()?, release)?;
    let podman = Podman::new(&machine, &disk.path().join("own"), &Engine::default())?;
    let store = Store::init(&machine, &disk.path().join("repository"))?;
    let arena = Arena {
        podman,
        store,
        layouts: fixtures(disk.path())?,
        end: Instant::now() + Duration::from_secs(seconds()?),
        loaded: AtomicUsize::new(0),
        imported: AtomicUsize::new(0),
        excused: AtomicUsize::new(0),
    };
    arena.load(0)?.success()?;

    let conf = arena.podman.storage_conf().display().to_string();
    std::thread::scope(|scope| -> Result<()> {
        let arena = &arena;
        let conf = &conf;
        let threads = [
            // Whether podman can do what it is asked to depends on what the others did just before.
            scope.spawn(move || {
                arena.repeat("load", |n| {
                    arena.load(pick(n, 1))?;
                    arena.loaded.fetch_add(1, Ordering::Relaxed);
                    Ok(())
                })
            }),
            scope.spawn(move || {
                arena.repeat("remove", |n| {
                    arena.await_loads()?;
                    let name = image(pick(n, 2));
                    let arguments: &[&str] = match n % 5 {
                        4 => &["image", "prune", "--all", "--force"],
                        _ => &["rmi", "--force", &name],
                    };
                    arena.podman(arguments).map(drop)
                })
            }),
            scope.spawn(move || {
                arena.repeat("create", |n| {
                    arena.podman(&["create", "--pull", "never", &image(pick(n, 3)), "true"])?;
                    arena.podman(&["rm", "--all", "--force"]).map(drop)
                })
            }),
            scope.spawn(move || arena.repeat("import", |n| arena.import_or_excuse(pick(n, 4)))),
            scope.spawn(move || {
                arena.repeat("import", |n| {
                    arena.import_or_excuse(pick(n, 5))?;
                    let untag = ["untag", &image(pick(n, 6))];
                    bounded(&mut arena.store.command(&untag)?)?;
                    let gc = ["gc", "--storage-conf", conf];
                    bounded(&mut arena.store.command(&gc)?)?.success().map(drop)
                })
            }),
        ];
        for thread in threads {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(())
    })?;
    let imported = arena.imported.load(Ordering::Relaxed);
    let excused = arena.excused.load(Ordering::Relaxed);
    eprintln!("{release:?}: {imported} imports, {excused} excused");
    ensure!(imported > 0, "no import succeeded, {excused} had an excuse");

    // Our side.
    arena.store.ok(&["fsck"])?;
    cfsctl_ok(arena.store.repo(), &["fsck"])?;
    // podman's side.
    arena.podman(&["rm", "--all", "--force"])?.success()?;
    if release != Release::Host {
        arena.podman(&["system", "check", "--quick"])?.success()?;
    }
    for number in 0..IMAGES {
        arena.load(number)?.success()?;
        arena.import(number)?.success()?;
        // The status tells: podman 4 may lose what a container prints on a busy machine.
        let count = "test $(find /files | wc -l) = 121";
        let image = image(number);
        let run = ["run", "--rm", "--pull", "never", &image, "sh", "-c", count];
        arena.podman(&run)?.success()?;
    }
    if release != Release::Host {
        arena.podman(&["system", "check"])?.success()?;
    }
    arena.store.ok(&["fsck"])?;
    arena.store.ok(&["gc", "--storage-conf", &conf])?;
    arena.store.ok(&["fsck"])?;
    cfsctl_ok(arena.store.repo(), &["fsck"])?;
    Ok(())
}

#[test]
fn import_and_podman_4_working_on_one_storage_do_not_harm_each_other() -> Result<()> {
    import_and_podman_do_not_harm_each_other(Release::Host)
}

#[test]
fn import_and_podman_5_8_working_on_one_storage_do_not_harm_each_other() -> Result<()> {
    import_and_podman_do_not_harm_each_other(Release::Sid)
}
