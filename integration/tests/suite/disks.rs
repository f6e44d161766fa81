//! Disks that fill up or fail for good: an import stops with a reason, and goes through once there is a
//! sound disk with space again.

use crate::peers::cfsctl_ok;
use crate::scene::{IMAGE, Scene};
use anyhow::{Context, Result, bail, ensure};
use integration::filesystem::extents;
use integration::fixture::noise;
use integration::tar::Member;
use integration::{Filesystem, Fixture, Kind, Peers, Release, Store, ok};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

fn scene() -> Result<Scene> {
    Scene::new(Release::Host, Kind::Xfs, |dir| {
        let layer = |from: u64| {
            (from..from + 30)
                .map(|n| Member::file(format!("files/{n}"), noise(3000 + n, 20_000)))
                .collect()
        };
        Fixture::with_layers(dir, vec![layer(0), layer(100)])
    })
}

/// Bytes that anybody may still use.
fn free(dir: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bfree * stat.f_frsize)
}

/// Takes space from a filesystem until at most `left` bytes are free.
fn fill(dir: &Path, left: u64) -> Result<PathBuf> {
    let filler = dir.join("filler");
    File::create(&filler)?;
    let mut length = 0;
    // What the filler's own metadata takes comes off as well, and the last blocks may not be had.
    for step in [16 << 20, 1 << 20, 64 << 10, 4096] {
        while free(dir)? > left + step {
            let wanted = free(dir)?.saturating_sub(left + step).max(step);
            let (offset, wanted_text) = (length.to_string(), wanted.to_string());
            let mut fallocate = Command::new("fallocate");
            fallocate.args(["--offset", &offset, "--length", &wanted_text]);
            if ok(fallocate.arg(&filler)).is_err() {
                break;
            }
            length += wanted;
        }
    }
    ok(Command::new("sync").arg("-f").arg(dir))?;
    Ok(filler)
}

/// Imports with less and less of the space missing until it goes through; returns how often it did not.
fn until_it_fits(scene: &Scene, store: &Store, leave: impl Fn(u32) -> Result<()>) -> Result<u32> {
    let arguments = scene.import_arguments();
    let arguments = arguments.each_ref().map(String::as_str);
    for round in 0..40 {
        leave(round)?;
        let done = store.finish(&arguments)?;
        if done.status.success() {
            store.ok(&["fsck"])?;
            cfsctl_ok(store.repo(), &["fsck"])?;
            return Ok(round);
        }
        done.refused_with(&["space"])?;
        store.ok(&["fsck"])?;
        let images = store.ok(&["images", "--json"])?.text();
        ensure!(
            !images.contains(IMAGE),
            "half an image has a name: {images}"
        );
    }
    bail!("it never fits")
}

#[test]
fn import_into_a_full_ext4_stops_and_succeeds_as_soon_as_it_fits() -> Result<()> {
    let scene = scene()?;
    let full = Filesystem::new(&Peers::from_env()?, Kind::Ext4, 32)?;
    let store = Store::init(&scene.machine, &full.path().join("repository"))?;
    let refused = until_it_fits(&scene, &store, |round| {
        let filler = full.path().join("filler");
        if filler.exists() {
            std::fs::remove_file(filler)?;
        }
        // Reclaimed by nobody: what failed imports left behind must not add up.
        fill(full.path(), u64::from(round) * (400 << 10))?;
        Ok(())
    })?;
    ensure!(refused > 0, "the filesystem was never full");
    Ok(())
}

/// Leaves `left` inodes of a filesystem: takes the others with empty files, or gives some back.
fn leave_inodes(dir: &Path, left: u64) -> Result<()> {
    let fillers = dir.join("fillers");
    std::fs::create_dir_all(&fillers)?;
    let mut taken = std::fs::read_dir(&fillers)?.count();
    let mut free = rustix::fs::statvfs(dir)?.f_ffree;
    while free > left {
        File::create(fillers.join(taken.to_string()))?;
        (taken, free) = (taken + 1, free - 1);
    }
    while free < left {
        taken = taken.checked_sub(1).context("too few inodes")?;
        std::fs::remove_file(fillers.join(taken.to_string()))?;
        free += 1;
    }
    Ok(())
}

#[test]
fn import_that_runs_out_of_inodes_names_nothing_and_succeeds_when_there_are_more() -> Result<()> {
    let scene = scene()?;
    let arguments = scene.import_arguments();
    let arguments = arguments.each_ref().map(String::as_str);
    let disk = Filesystem::new(&Peers::from_env()?, Kind::Ext4, 32)?;
    let (mut before, mut during) = (0, 0);
    // From too few for anything to one too few for the last name: an import needs about 300, most of
    // them for the directories of objects.
    for left in (0..40).step_by(3).chain((40..360).step_by(32)) {
        let context = || format!("with {left} inodes");
        leave_inodes(disk.path(), 1000)?;
        let store = Store::init(
            &scene.machine,
            &disk.path().join(format!("repository{left}")),
        )?;
        leave_inodes(disk.path(), left)?;
        let done = store.finish(&arguments)?;
        let complete = done.status.success();
        if !complete {
            let done = done.refused().with_context(context)?;
            if done.stderr.contains("inodes are needed") {
                before += 1;
            } else {
                let words = ["No space left on device", "inode", "repository"];
                done.refused_with(&words).with_context(context)?;
                during += 1;
            }
        }
        store.ok(&["fsck"]).with_context(context)?;
        let images = store.ok(&["images", "--json"])?.text();
        assert_eq!(images.contains(IMAGE), complete, "{}: {images}", context());
        leave_inodes(disk.path(), 1000)?;
        store.ok(&arguments).with_context(context)?;
        store.ok(&["fsck"]).with_context(context)?;
        cfsctl_ok(store.repo(), &["fsck"]).with_context(context)?;
        std::fs::remove_dir_all(store.repo())?;
    }
    ensure!(before > 0 && during > 3, "{before} before, {during} during");
    Ok(())
}

/// A filesystem on a disk that is larger than what is behind it, as thin provisioning makes them: what
/// is written beyond is lost, with an I/O error for whoever syncs.
struct ThinDisk {
    dir: PathBuf,
    device: String,
}

impl ThinDisk {
    /// A disk of 256 MiB with `kilobytes` behind it.
    fn new(peers: &Peers, kilobytes: u32) -> Result<Self> {
        let dir = peers.scratch_dir("thin")?;
        for name in ["backing", "mnt"] {
            std::fs::create_dir(dir.join(name))?;
        }
        let size = format!("size={kilobytes}k");
        ok(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(dir.join("backing")))?;
        let disk = dir.join("backing/disk");
        File::create(&disk)?.set_len(256 << 20)?;
        ok(Command::new("mkfs.ext4")
            .args([
                "-q",
                "-E",
                "lazy_itable_init=1,lazy_journal_init=1,nodiscard",
            ])
            .args(["-J", "size=4", "-N", "2000"])
            .arg(&disk))?;
        let device = ok(Command::new("losetup")
            .args(["--find", "--show"])
            .arg(&disk))?
        .text();
        let disk = Self { dir, device };
        disk.mount()?;
        Ok(disk)
    }

    fn path(&self) -> PathBuf {
        self.dir.join("mnt")
    }

    fn mount(&self) -> Result<()> {
        ok(Command::new("mount").arg(&self.device).arg(self.path()))?;
        Ok(())
    }

    /// Puts enough behind the disk, and brings the filesystem in order as after a crash.
    fn mend(&self) -> Result<()> {
        ok(Command::new("umount").arg(self.path()))?;
        ok(Command::new("mount")
            .args(["-o", "remount,size=300m"])
            .arg(self.dir.join("backing")))?;
        let status = Command::new("e2fsck")
            .arg("-fy")
            .arg(&self.device)
            .output()?
            .status;
        ensure!(
            status.code().is_some_and(|code| code < 4),
            "e2fsck: {status}"
        );
        self.mount()
    }
}

impl Drop for ThinDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
        let _ = Command::new("losetup").args(["-d", &self.device]).status();
        let _ = Command::new("umount")
            .arg("-l")
            .arg(self.dir.join("backing"))
            .status();
    }
}

#[test]
fn import_onto_a_disk_that_loses_writes_names_nothing_that_is_lost() -> Result<()> {
    let scene = scene()?;
    let arguments = scene.import_arguments();
    let arguments = arguments.each_ref().map(String::as_str);
    let mut failed = 0;
    for kilobytes in [1_500, 3_000, 5_000] {
        let context = || format!("with {kilobytes} KiB behind the disk");
        let thin = ThinDisk::new(&Peers::from_env()?, kilobytes)?;
        let Ok(store) = Store::init(&scene.machine, &thin.path().join("repository")) else {
            // Too little for the empty repository.
            failed += 1;
            continue;
        };
        let done = store.finish(&arguments)?;
        if done.status.success() {
            bail!("{}: the import claims success: {done}", context());
        }
        done.refused().with_context(context)?;
        failed += 1;
        thin.mend().with_context(context)?;
        store.ok(&["fsck"]).with_context(context)?;
        store.ok(&arguments).with_context(context)?;
        store.ok(&["fsck"]).with_context(context)?;
        cfsctl_ok(store.repo(), &["fsck"]).with_context(context)?;
    }
    assert_eq!(failed, 3);
    Ok(())
}

#[test]
fn import_from_a_disk_with_unreadable_blocks_stops_with_the_name_of_the_file() -> Result<()> {
    let scene = scene()?;
    // podman's storage on a disk of its own, whose end is then cut off under it.
    let disk = Filesystem::new(&Peers::from_env()?, Kind::Ext4, 256)?;
    let graph = disk.path().join("graph");
    ok(Command::new("cp")
        .arg("-a")
        .arg(scene.own.graphroot())
        .arg(&graph))?;
    let layer = scene.own.layers(IMAGE)?.pop().context("no layer")?;
    let files = graph.join("overlay").join(&layer).join("diff/files");
    let mut last = None;
    for file in std::fs::read_dir(files)? {
        let file = file?.path();
        let begin = extents(&file)?.first().context("no extent")?.physical;
        last = last.max(Some((begin, file)));
    }
    let (begin, victim) = last.context("no file")?;
    disk.cut_off(begin)?;
    rustix::fs::fadvise(File::open(&victim)?, 0, None, rustix::fs::Advice::DontNeed)?;
    let name = victim.file_name().context("no name")?.display().to_string();

    let root = graph.display().to_string();
    let import = ["import", "--storage-root", &root, IMAGE];
    scene
        .store
        .finish(&import)?
        .refused_with(&[&format!("files/{name}"), "Input/output error"])?;
    scene.store.ok(&["fsck"])?;
    let images = scene.store.ok(&["images", "--json"])?.text();
    ensure!(!images.contains(IMAGE), "it has a name: {images}");
    scene.import()?;
    scene.store.ok(&["fsck"])?;
    Ok(())
}
