//! podman's locks and ours exclude each other, by the kernel's own account.

use crate::scene::{IMAGE, Scene};
use anyhow::{Result, ensure};
use integration::fixture::noise;
use integration::locks::{Access, State, WriteLock, exists, wait_until};
use integration::tar::Member;
use integration::{Fixture, Kind, Release};
use rustix::process::{Pid, Signal, kill_process};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

fn scene() -> Result<Scene> {
    Scene::new(Release::Host, Kind::Xfs, |dir| {
        let files = (0..24).map(|n| Member::file(format!("big/{n}"), noise(700 + n, 4 << 20)));
        Fixture::with_layers(dir, vec![files.collect()])
    })
}

#[test]
fn import_waits_for_a_writer_of_podmans_storage() -> Result<()> {
    let scene = scene()?;
    let lock_file = scene.own.graphroot().join("overlay-layers/layers.lock");
    let arguments = scene.import_arguments();
    let lock = WriteLock::take(&lock_file)?;
    let mut import = scene
        .store
        .command(&arguments.each_ref().map(String::as_str))?
        .stdout(Stdio::null())
        .spawn()?;
    wait_until("import waits for the read lock", LIMIT, || {
        ensure!(
            import.try_wait()?.is_none(),
            "import did not wait for the lock"
        );
        exists(&lock_file, State::Waiting, Access::Read)
    })?;
    drop(lock);
    ensure!(
        import.wait()?.success(),
        "import failed once it had the lock"
    );
    Ok(())
}

#[test]
fn an_import_that_waits_for_a_writer_ends_on_interrupt() -> Result<()> {
    let scene = scene()?;
    let lock_file = scene.own.graphroot().join("overlay-layers/layers.lock");
    let arguments = scene.import_arguments();
    let _lock = WriteLock::take(&lock_file)?;
    let mut import = scene
        .store
        .command(&arguments.each_ref().map(String::as_str))?
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    wait_until("import waits for the read lock", LIMIT, || {
        exists(&lock_file, State::Waiting, Access::Read)
    })?;
    kill_process(Pid::from_child(&import), Signal::INT)?;
    wait_until("import ends", LIMIT, || Ok(import.try_wait()?.is_some()))?;
    ensure!(!import.wait()?.success(), "import succeeded under a lock");
    Ok(())
}

#[test]
fn podman_creates_containers_and_removes_the_image_while_an_import_reads_it() -> Result<()> {
    let scene = scene()?;
    let arguments = scene.import_arguments();
    let import = scene
        .store
        .command(&arguments.each_ref().map(String::as_str))?
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let pid = Pid::from_child(&import);
    let files = Path::new("/proc").join(pid.to_string()).join("fd");
    wait_until("import reads files", LIMIT, || {
        // One that was closed meanwhile has no target any more.
        let mut open = files
            .read_dir()?
            .filter_map(|fd| fd.ok()?.path().read_link().ok());
        Ok(open.any(|path| path.parent().is_some_and(|dir| dir.ends_with("diff/big"))))
    })?;
    kill_process(pid, Signal::STOP)?;

    // Each of these needs the write lock of the layers.
    for command in [
        &["create", "--name", "meanwhile", IMAGE, "true"][..],
        &["rm", "meanwhile"],
        &["rmi", IMAGE],
    ] {
        scene.own.ok(command)?;
    }
    kill_process(pid, Signal::CONT)?;
    let ended = import.wait_with_output()?;
    let errors = String::from_utf8_lossy(&ended.stderr);
    ensure!(
        !ended.status.success() && errors.contains("removed or changed"),
        "import of an image that was removed meanwhile: {}: {errors}",
        ended.status
    );
    scene.store.ok(&["fsck"])?;
    scene.store.finish(&["inspect", IMAGE])?.refused()?;
    Ok(())
}
