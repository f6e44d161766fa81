//! Failing system calls, full and failing disks, and SIGKILL anywhere: whatever happens to an import,
//! the repository stays sound, nothing incomplete has a name, and the next import succeeds.
//!
//! `COMPOSEFS_STORE_FAULTS` says how many points each of the tests with injected faults visits; by
//! default as many as take about a minute.

use crate::peers::cfsctl_ok;
use crate::scene::Scene;
use anyhow::{Context, Result, bail, ensure};
use integration::faults::{
    Fault, Point, command_hit_by, command_without_clones, first_clone, points, spread,
};
use integration::fixture::noise;
use integration::tar::Member;
use integration::{Finished, Fixture, Kind, Release, Store, finish};
use serde_json::Value;
use std::fmt::Write as _;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};

const SIGKILL: i32 = 9;

/// What changes a repository.
const CHANGING: &[&str] = &[
    "openat",
    "write",
    "pwrite64",
    "ftruncate",
    "ioctl",
    "mkdirat",
    "symlinkat",
    "renameat",
    "renameat2",
    "unlinkat",
    "fsync",
    "fdatasync",
    "syncfs",
    "close",
];

/// What can fail because of a disk.
const FAILING: &[&str] = &[
    "open",
    "openat",
    "openat2",
    "read",
    "pread64",
    "write",
    "pwrite64",
    "ftruncate",
    "ioctl",
    "fstat",
    "newfstatat",
    "statx",
    "getdents64",
    "readlink",
    "readlinkat",
    "stat",
    "lstat",
    "mkdirat",
    "symlinkat",
    "renameat",
    "renameat2",
    "unlinkat",
    "fsync",
    "fdatasync",
    "syncfs",
];

/// What can fail because there is no space.
const GROWING: &[&str] = &[
    "openat",
    "write",
    "pwrite64",
    "ftruncate",
    "ioctl",
    "mkdirat",
    "symlinkat",
    "renameat",
    "renameat2",
    "fsync",
    "syncfs",
];

/// A small image: every point costs several runs of the program.
fn scene() -> Result<Scene> {
    Scene::new(Release::Host, Kind::Xfs, |dir| {
        let layer = |from: u64| {
            (from..from + 6)
                .map(|n| Member::file(format!("files/{n}"), noise(900 + n, 9_000)))
                .collect()
        };
        Fixture::with_layers(dir, vec![layer(0), layer(100)])
    })
}

/// How many points to visit.
fn limit(default: usize) -> Result<usize> {
    match std::env::var("COMPOSEFS_STORE_FAULTS") {
        Ok(number) => number.parse().context("COMPOSEFS_STORE_FAULTS"),
        Err(_) => Ok(default),
    }
}

/// The objects of a store, relative to its repository.
fn objects(store: &Store) -> Result<Vec<PathBuf>> {
    let objects = store.objects()?;
    Ok(objects
        .iter()
        .filter_map(|object| object.strip_prefix(store.repo()).ok().map(Path::to_owned))
        .collect())
}

/// Every name of the repository below `streams` and `images`.
fn names(store: &Store) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![store.repo().join("streams"), store.repo().join("images")];
    while let Some(dir) = open.pop() {
        if !dir.exists() {
            continue;
        }
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            } else {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}

/// What every import of a test is compared with, and how it is done.
struct Trial {
    scene: Scene,
    arguments: Vec<String>,
    /// The objects of an import that nothing disturbed.
    expected: Vec<PathBuf>,
    undisturbed: Store,
}

impl Trial {
    fn new() -> Result<Self> {
        let scene = scene()?;
        // One worker: the calls come in nearly the same order each time.
        let mut arguments = scene.import_arguments().to_vec();
        arguments.extend(["--jobs".to_owned(), "1".to_owned()]);
        let undisturbed = Store::init(&scene.machine, &scene.disk.path().join("undisturbed"))?;
        undisturbed.ok(&arguments.iter().map(String::as_str).collect::<Vec<_>>())?;
        let expected = objects(&undisturbed)?;
        Ok(Self {
            scene,
            arguments,
            expected,
            undisturbed,
        })
    }

    fn import(&self) -> Vec<&str> {
        self.arguments.iter().map(String::as_str).collect()
    }

    fn points(&self, calls: &[&str]) -> Result<Vec<Point>> {
        let store = Store::init(&self.scene.machine, &self.scene.disk.path().join("points"))?;
        points(&store, &self.import(), calls)
    }

    /// An empty repository.
    fn store(&self, number: usize) -> Result<Store> {
        let repo = self.scene.disk.path().join(format!("trial{number}"));
        Store::init(&self.scene.machine, &repo)
    }

    /// What must hold after an import that was disturbed: the repository is sound, and the next import
    /// brings what the undisturbed one brought.
    fn recovers(&self, store: &Store) -> Result<()> {
        store.ok(&["fsck"])?;
        store.ok(&self.import())?;
        store.ok(&["gc"])?;
        store.ok(&["fsck"])?;
        self.must_be_complete(store)?;
        let staging = store.repo().join("composefs-store/staging");
        if staging.exists() {
            let left: Vec<_> = std::fs::read_dir(staging)?.collect();
            ensure!(left.is_empty(), "staged files are left: {left:?}");
        }
        Ok(())
    }

    fn must_be_complete(&self, store: &Store) -> Result<()> {
        ensure!(
            objects(store)? == self.expected,
            "other objects than those of an undisturbed import"
        );
        let relative = |store: &Store| -> Result<Vec<PathBuf>> {
            let mut names: Vec<_> = names(store)?
                .into_iter()
                .filter_map(|name| name.strip_prefix(store.repo()).ok().map(Path::to_owned))
                .collect();
            names.sort();
            Ok(names)
        };
        assert_eq!(relative(store)?, relative(&self.undisturbed)?);
        Ok(())
    }

    /// Lets `fault` strike at some of the points where `calls` are made; `judge` says what is wrong with
    /// how the program ended. Returns how many runs were hit.
    fn strike(
        &self,
        fault: Fault,
        calls: &[&str],
        most: usize,
        judge: impl Fn(&Store, &Finished) -> Result<Struck>,
    ) -> Result<usize> {
        let all = self.points(calls)?;
        let mut hit = 0;
        let mut wrong = String::new();
        for (number, point) in spread(&all, most).iter().enumerate() {
            let store = self.store(number)?;
            let mut visit = || -> Result<()> {
                let done = finish(&mut command_hit_by(&store, fault, point, &self.import())?)?;
                if judge(&store, &done)? == Struck::Yes {
                    hit += 1;
                }
                if number % 10 == 0 {
                    cfsctl_ok(store.repo(), &["fsck"])?;
                }
                self.recovers(&store).context("afterwards")
            };
            if let Err(error) = visit() {
                let _ = writeln!(wrong, "== {fault:?} at {point}: {error:#}");
            }
            std::fs::remove_dir_all(store.repo())?;
        }
        ensure!(wrong.is_empty(), "{wrong}");
        eprintln!("{fault:?}: {hit} of {most} points of {} hit", all.len());
        Ok(hit)
    }
}

/// Whether a fault had an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Struck {
    Yes,
    /// The run did not come by, or could do without.
    No,
}

/// A clean failure that says why, or complete success.
fn fails_cleanly(trial: &Trial, store: &Store, done: &Finished, words: &str) -> Result<Struck> {
    match done.status.code() {
        Some(0) => {
            trial.must_be_complete(store)?;
            Ok(Struck::No)
        }
        Some(1) => {
            ensure!(
                done.stderr.contains(words),
                "expected {words:?} in the message of {done}"
            );
            Ok(Struck::Yes)
        }
        _ => bail!("no clean failure: {done}"),
    }
}

#[test]
fn import_killed_200_times_at_any_system_call_can_be_repeated() -> Result<()> {
    let trial = Trial::new()?;
    let limit = limit(200)?;
    let hit = trial.strike(Fault::Kill, CHANGING, limit, |store, done| {
        match (done.status.signal(), done.status.code()) {
            (Some(SIGKILL), _) => Ok(Struck::Yes),
            (None, Some(0)) => trial.must_be_complete(store).map(|()| Struck::No),
            _ => bail!("neither killed nor done: {done}"),
        }
    })?;
    ensure!(hit * 10 >= limit * 9, "only {hit} imports were killed");
    Ok(())
}

#[test]
fn import_whose_system_calls_fail_stops_with_nothing_named_that_is_incomplete() -> Result<()> {
    let trial = Trial::new()?;
    trial.strike(Fault::Error("EIO"), FAILING, limit(120)?, |store, done| {
        fails_cleanly(&trial, store, done, "Input/output error")
    })?;
    Ok(())
}

#[test]
fn files_are_copied_where_cloning_is_refused_and_only_there() -> Result<()> {
    let trial = Trial::new()?;
    let arguments = [&["--json"], trial.import().as_slice()].concat();
    let counted = Store::init(
        &trial.scene.machine,
        &trial.scene.disk.path().join("counted"),
    )?;
    let first = first_clone(&counted, &arguments)?;
    let refusals = ["ETXTBSY", "EPERM", "EXDEV", "EOPNOTSUPP", "EINVAL"];
    for (number, error) in refusals.iter().enumerate() {
        let store = trial.store(number)?;
        let done = finish(&mut command_without_clones(
            &store, error, first, &arguments,
        )?)?;
        let done = done.success().context(*error)?;
        let report: Value = serde_json::from_slice(&done.stdout)?;
        let copied = &report["imported"][0]["total"]["copied"]["files"];
        ensure!(copied.as_u64() > Some(3), "{error}: {report}");
        store.ok(&["fsck"])?;
        trial.must_be_complete(&store).context(*error)?;
        // Nothing is copied where that is not wanted.
        let store = trial.store(100 + number)?;
        let refuse = [&arguments[..], &["--no-copy"]].concat();
        finish(&mut command_without_clones(&store, error, first, &refuse)?)?
            .refused_with(&["file \"", "copying is refused"])
            .context(*error)?;
        trial.recovers(&store).context(*error)?;
    }
    let troubles = [
        ("ENOSPC", "No space left on device"),
        ("EIO", "Input/output error"),
        ("EDQUOT", "quota exceeded"),
    ];
    for (number, (error, words)) in troubles.iter().enumerate() {
        let store = trial.store(200 + number)?;
        finish(&mut command_without_clones(
            &store, error, first, &arguments,
        )?)?
        .refused_with(&["file \"", words])
        .context(*error)?;
        trial.recovers(&store).context(*error)?;
    }
    Ok(())
}

#[test]
fn import_that_finds_no_space_stops_with_nothing_named_that_is_incomplete() -> Result<()> {
    let trial = Trial::new()?;
    trial.strike(
        Fault::Error("ENOSPC"),
        GROWING,
        limit(80)?,
        |store, done| fails_cleanly(&trial, store, done, "No space left on device"),
    )?;
    Ok(())
}
