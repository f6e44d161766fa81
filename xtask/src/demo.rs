//! `cargo xtask demo`: the main job on a real image, with the installed, unmodified podman.
//!
//! It plays on a machine of its own: private namespaces in which `/var/lib` is a new XFS and
//! `/etc/containers` is empty, so that every command it prints is what one would type on a real one.

use crate::isolate;
use crate::scratch::Scratch;
use crate::setup;
use crate::steps::{build, ok};
use anyhow::{Context, Result, bail};
use integration::peers::cache_dir;
use integration::{Filesystem, Kind, Machine, Peers, Release};
use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;

/// The hidden subcommand that runs in the namespaces.
pub(crate) const STAGE: &str = "__demo";

const DEMO_IMAGE: &str = "localhost/demo:1";

/// What the demo's own image is built from, besides the root file system of Debian.
const CONTAINERFILE: &str = "\
FROM scratch
ADD debian.tar /
RUN python3 -m compileall -q /usr/lib/python3
RUN rm -rf /usr/share/doc && mv /usr/share/perl /usr/share/perl-moved
RUN useradd --create-home app && chmod 0700 /usr/bin/git
CMD [\"python3\", \"-c\", \"import platform; print('Hello from', platform.freedesktop_os_release()['PRETTY_NAME'])\"]
";

/// Packages in the demo's own image.
const PACKAGES: &str = "git,perl,python3";

/// Installs, builds, and plays the demo with `image`, or with an image of its own.
pub(crate) fn run(image: Option<&str>) -> Result<ExitCode> {
    setup::for_demo()?;
    if image.is_none() {
        debian().context("make the root file system of the demo's image")?;
    }
    eprintln!("== building composefs-store");
    let program = build(
        &[
            "build",
            "--quiet",
            "--release",
            "--package",
            "composefs-store",
        ],
        "composefs-store",
    )?;
    let scratch = Scratch::new()?;
    let bin = scratch.path().join("bin");
    std::fs::create_dir(&bin)?;
    std::fs::copy(program, bin.join("composefs-store"))?;
    let mut stage: Vec<OsString> = vec![std::env::current_exe()?.into(), STAGE.into()];
    stage.extend(image.map(OsString::from));
    isolate::run(scratch, &stage)
}

fn debian_tar() -> PathBuf {
    cache_dir().join("demo/debian.tar")
}

fn debian() -> Result<()> {
    let _lock = setup::cache_lock("setup")?;
    let tar = debian_tar();
    if tar.exists() {
        return Ok(());
    }
    std::fs::create_dir_all(cache_dir().join("demo"))?;
    let new = tar.with_file_name("new.tar");
    ok(Command::new("mmdebstrap")
        .args(["--quiet", "--variant=minbase"])
        .arg(format!("--include={PACKAGES}"))
        .arg("bookworm")
        .arg(&new)
        .current_dir("/"))?;
    std::fs::rename(&new, &tar)?;
    Ok(())
}

/// The demo itself, in the namespaces that [`run`] made.
pub(crate) fn stage(image: Option<&str>) -> Result<ExitCode> {
    let peers = Peers::from_env()?;
    let disk = Filesystem::new(&peers, Kind::Xfs, 8 << 10)?;
    let machine = Machine::start(&peers, Release::Host)?;
    machine.sh(&format!("mount --bind {} /var/lib", disk.path().display()))?;
    let shell = Shell {
        machine: Arc::clone(&machine),
        path: format!(
            "{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            peers.scratch().join("bin").display()
        ),
        dir: peers.scratch_dir("demo")?,
    };
    play(&shell, image)?;
    Ok(ExitCode::SUCCESS)
}

fn play(shell: &Shell, given: Option<&str>) -> Result<()> {
    const USED: &str = "sync -f /var/lib && df -BM --output=used,avail,target /var/lib";
    let image = given.unwrap_or(DEMO_IMAGE);
    say("An image in podman's own storage, on an XFS that can reflink")?;
    shell.type_in("podman --version; stat --file-system --format='/var/lib is on %T' /var/lib")?;
    if given.is_some() {
        shell.type_in(&format!("podman pull --quiet {image}"))?;
    } else {
        let context = shell.dir.join("image");
        std::fs::create_dir(&context)?;
        std::fs::copy(debian_tar(), context.join("debian.tar"))?;
        std::fs::write(context.join("Containerfile"), CONTAINERFILE)?;
        shell.type_in("cat image/Containerfile")?;
        shell.type_in(&format!(
            "podman build --quiet --isolation chroot --tag {image} image"
        ))?;
    }
    shell.type_in("podman images")?;
    shell.type_in(USED)?;

    say("Into a composefs repository, without copying file contents")?;
    shell.type_in("composefs-store init --insecure")?;
    shell.type_in(&format!("composefs-store import {image}"))?;
    shell.type_in(USED)?;
    shell.type_in("composefs-store images")?;
    say("podman's own copy goes; its blocks stay, because the repository shares them")?;
    shell.type_in(&format!("podman rmi {image}"))?;
    shell.type_in(USED)?;

    say("And back out: podman sees it as a read-only image")?;
    // The checkout itself may be where the namespaces have something else, below /tmp for example.
    let contrib = shell.dir.join("contrib");
    std::fs::create_dir(&contrib)?;
    std::fs::write(
        contrib.join("containers-storage.conf"),
        include_str!("../../contrib/containers-storage.conf"),
    )?;
    shell.type_in("composefs-store serve-mounts")?;
    shell.type_in("cp contrib/containers-storage.conf /etc/containers/storage.conf")?;
    shell.type_in("grep -v -e '^#' -e '^$' /etc/containers/storage.conf")?;
    let layout = layout(&shell.machine)?;
    shell.type_in(&format!(
        "composefs-store publish --layout {layout} {image}"
    ))?;
    shell.type_in("podman images")?;
    let command = if given.is_some() {
        " cat /etc/os-release"
    } else {
        ""
    };
    shell.type_in(&format!("podman run --rm {image}{command}"))?;
    shell.type_in("composefs-store fsck")?;

    say("Taking it away again gives the space back")?;
    shell.type_in(&format!("composefs-store unpublish {image}"))?;
    shell.type_in(&format!("composefs-store untag {image}"))?;
    shell.type_in("composefs-store gc")?;
    shell.type_in(USED)
}

/// podman 5 mounts images itself; for older versions we do.
fn layout(machine: &Machine) -> Result<&'static str> {
    let version = machine.sh("podman --version")?.text();
    let major: u32 = version
        .rsplit(' ')
        .next()
        .and_then(|number| number.split('.').next())
        .and_then(|major| major.parse().ok())
        .with_context(|| format!("podman's version in {version:?}"))?;
    Ok(if major >= 5 { "blob" } else { "mounted" })
}

fn say(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "\n# {text}")?;
    Ok(())
}

/// A user at the demo's machine.
struct Shell {
    machine: Arc<Machine>,
    path: String,
    dir: PathBuf,
}

impl Shell {
    /// Prints a command as one would type it, and runs exactly that.
    fn type_in(&self, command: &str) -> Result<()> {
        writeln!(std::io::stdout(), "$ {command}")?;
        std::io::stdout().flush()?;
        let status = self
            .machine
            .command("sh")
            .args(["-euc", "cd \"$1\" && eval \"$2\"", "sh"])
            .args([self.dir.as_path(), Path::new(command)])
            .env("PATH", &self.path)
            .stdin(Stdio::null())
            .status()?;
        if !status.success() {
            bail!("`{command}`: {status}");
        }
        Ok(())
    }
}
