//! podman's locks and ours exclude each other, by the kernel's own account.

use crate::scene::{IMAGE, Scene};
use anyhow::{Result, ensure};
use integration::fixture::noise;
use integration::locks::{Access, State, WriteLock, exists, wait_until};
use integration::tar::Member;
use integration::{Fixture, Kind, Release};
use rustix::process::{Pid, Signal, kill_process};
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
fn podman_waits_for_a_running_import() -> Result<()> {
    let scene = scene()?;
    let lock_file = scene.own.graphroot().join("overlay-layers/layers.lock");
    let arguments = scene.import_arguments();
    let mut import = scene
        .store
        .command(&arguments.each_ref().map(String::as_str))?
        .stdout(Stdio::null())
        .spawn()?;
    let pid = Pid::from_child(&import);
    wait_until("import holds the read lock", LIMIT, || {
        ensure!(import.try_wait()?.is_none(), "import took no lock");
        exists(&lock_file, State::Held, Access::Read)
    })?;
    kill_process(pid, Signal::STOP)?;
    ensure!(
        exists(&lock_file, State::Held, Access::Read)?,
        "import was stopped too late: the image is too small for this test"
    );

    // Creating a container writes a layer record.
    let mut create = scene
        .own
        .command("podman")
        .args(["create", "--name", "waiting", IMAGE, "true"])
        .stdout(Stdio::null())
        .spawn()?;
    wait_until("podman waits for the write lock", LIMIT, || {
        ensure!(
            create.try_wait()?.is_none(),
            "podman did not wait for the lock"
        );
        exists(&lock_file, State::Waiting, Access::Write)
    })?;
    kill_process(pid, Signal::CONT)?;
    ensure!(import.wait()?.success(), "import failed");
    ensure!(create.wait()?.success(), "podman failed");
    Ok(())
}
