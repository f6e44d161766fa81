//! SIGKILL at any point of an import leaves nothing that a later import, fsck or gc stumbles over.

use crate::scene::{IMAGE, Scene};
use anyhow::{Result, ensure};
use integration::fixture::noise;
use integration::tar::Member;
use integration::{Fixture, Kind, Release, Store, finish};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

const SIGKILL: i32 = 9;

/// The durable steps of an import, in order.
const STEPS: [&str; 13] = [
    "commit-staged",
    "commit-content-synced",
    "commit-object",
    "commit-object:20",
    "commit-objects-named",
    "commit-objects-synced",
    "commit-stream",
    "commit-stream:3",
    "commit-image",
    "commit-linked",
    "commit-ref",
    "commit-refs-set",
    "commit-done",
];

fn scene() -> Result<Scene> {
    Scene::new(Release::Host, Kind::Xfs, |dir| {
        let layer = |from: u64| {
            (from..from + 40)
                .map(|n| Member::file(format!("files/{n}"), noise(500 + n, 40_000)))
                .collect()
        };
        Fixture::with_layers(dir, vec![layer(0), layer(100), layer(200)])
    })
}

/// The objects of an import that nothing interrupted, relative to the repository.
fn undisturbed(scene: &Scene) -> Result<Vec<PathBuf>> {
    let store = Store::init(&scene.machine, &scene.disk.path().join("undisturbed"))?;
    let arguments = scene.import_arguments();
    store.ok(&arguments.each_ref().map(String::as_str))?;
    relative(&store)
}

pub(crate) fn relative(store: &Store) -> Result<Vec<PathBuf>> {
    let objects = store.objects()?;
    Ok(objects
        .iter()
        .filter_map(|o| o.strip_prefix(store.repo()).ok().map(Path::to_owned))
        .collect())
}

/// The files in staging directories of writers.
pub(crate) fn staged(store: &Store) -> usize {
    let staging = store.repo().join("composefs-store/staging");
    let Ok(writers) = std::fs::read_dir(staging) else {
        return 0;
    };
    writers
        .flatten()
        .filter_map(|writer| std::fs::read_dir(writer.path()).ok())
        .map(Iterator::count)
        .sum()
}

/// What must hold after a crash.
fn recovers(store: &Store, import: &[&str], expected: &[PathBuf], at: &str) -> Result<()> {
    let context = |error: anyhow::Error| error.context(format!("after a crash at {at}"));
    store.ok(&["fsck"]).map_err(context)?;
    store.ok(import).map_err(context)?;
    store.ok(&["fsck"]).map_err(context)?;
    store.ok(&["gc"]).map_err(context)?;
    ensure!(
        staged(store) == 0,
        "staged files are left after a crash at {at}"
    );
    ensure!(
        relative(store)? == expected,
        "other objects after a crash at {at}"
    );
    store.ok(&["fsck"]).map_err(context)?;
    Ok(())
}

#[test]
fn import_killed_at_any_durable_step_can_be_repeated() -> Result<()> {
    let scene = scene()?;
    let expected = undisturbed(&scene)?;
    let arguments = scene.import_arguments();
    let import = arguments.each_ref().map(String::as_str);
    for (number, step) in STEPS.iter().enumerate() {
        let store = Store::init(
            &scene.machine,
            &scene.disk.path().join(format!("r{number}")),
        )?;
        let killed = finish(&mut store.command_killed_at(step, &import)?)?;
        ensure!(
            killed.status.signal() == Some(SIGKILL),
            "{step} is no step of an import: {killed}"
        );
        recovers(&store, &import, &expected, step)?;
    }
    Ok(())
}

#[test]
fn gc_alone_reclaims_what_a_killed_import_left() -> Result<()> {
    let scene = scene()?;
    let arguments = scene.import_arguments();
    let import = arguments.each_ref().map(String::as_str);
    for step in ["commit-staged", "commit-object:20", "commit-linked"] {
        let killed = finish(&mut scene.store.command_killed_at(step, &import)?)?;
        ensure!(killed.status.signal() == Some(SIGKILL), "{killed}");
        ensure!(
            staged(&scene.store) + scene.store.objects()?.len() > 0,
            "{step} left nothing"
        );
        scene.store.ok(&["gc"])?;
        assert_eq!(staged(&scene.store), 0);
        assert_eq!(scene.store.objects()?, [] as [PathBuf; 0]);
        scene.store.ok(&["fsck"])?;
    }
    Ok(())
}

#[test]
fn import_killed_while_it_stages_can_be_repeated() -> Result<()> {
    let scene = scene()?;
    let expected = undisturbed(&scene)?;
    let arguments = scene.import_arguments();
    let import = arguments.each_ref().map(String::as_str);
    for (number, files) in [1, 7, 30, 60].into_iter().enumerate() {
        let store = Store::init(
            &scene.machine,
            &scene.disk.path().join(format!("s{number}")),
        )?;
        let mut running = store
            .command(&import)?
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        // nsenter has become the program: the process is the import itself.
        while staged(&store) < files && running.try_wait()?.is_none() {
            std::thread::yield_now();
        }
        running.kill()?;
        running.wait()?;
        recovers(&store, &import, &expected, &format!("{files} staged files"))?;
    }
    Ok(())
}

#[test]
fn image_runs_after_a_killed_import_was_repeated() -> Result<()> {
    let scene = scene()?;
    let arguments = scene.import_arguments();
    let import = arguments.each_ref().map(String::as_str);
    let killed = finish(
        &mut scene
            .store
            .command_killed_at("commit-objects-synced", &import)?,
    )?;
    ensure!(killed.status.signal() == Some(SIGKILL), "{killed}");
    let expected = scene.own.tree(IMAGE, &[])?;
    let podman = scene.published(integration::Layout::Mounted)?;
    podman
        .tree(IMAGE, &[])?
        .must_equal("from our store", &expected, "from podman's own")
}
