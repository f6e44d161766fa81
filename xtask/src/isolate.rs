//! Namespaces for everything that needs root.
//!
//! A command runs in mount and PID namespaces of its own. When it ends, or this process does, in
//! whatever way, the kernel kills every process in there, and with the last one go all mounts and
//! all loop devices. The machine's own `/run`, `/etc/containers` and `/var/lib/containers` are hidden
//! from the start, and what is written elsewhere in `/etc` and `/var/lib` goes with the namespaces.

use crate::scratch::Scratch;
use anyhow::{Context, Result, bail};
use integration::peers;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::ffi::{CStr, CString, OsString};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};

/// The hidden subcommand that becomes process 1 of the namespaces.
pub(crate) const FIRST_PROCESS: &str = "__first-process";

/// Runs `command` in new namespaces, with `scratch` as a shared mount, and removes the scratch
/// directory before it returns. A signal ends all of it and gives exit code 130.
pub(crate) fn run(scratch: Scratch, command: &[OsString]) -> Result<ExitCode> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let mut child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL"])
        .args(["unshare", "--mount", "--pid", "--fork", "--kill-child"])
        .args(["--propagation", "private", "--"])
        .arg(std::env::current_exe()?)
        .arg(FIRST_PROCESS)
        .args(command)
        .env(peers::SCRATCH, scratch.path())
        // What podman and buildah leave there when they are killed goes with the rest.
        .env("TMPDIR", peers::temporary(scratch.path()))
        .env(peers::CACHE, peers::cache_dir())
        // Errors say what failed; where in the harness does not matter.
        .env("RUST_LIB_BACKTRACE", "0")
        .spawn()
        .context("start unshare")?;
    let unshare = Pid::from_child(&child);
    let handle = signals.handle();
    let watcher = std::thread::spawn(move || {
        let interrupted = signals.forever().next().is_some();
        if interrupted {
            let _ = kill_process(unshare, Signal::KILL);
        }
        interrupted
    });
    let status = child.wait();
    handle.close();
    let interrupted = watcher.join().unwrap_or(true);
    drop(scratch);
    Ok(match status?.code() {
        Some(0) if !interrupted => ExitCode::SUCCESS,
        _ if interrupted => ExitCode::from(130),
        code => ExitCode::from(code.and_then(|c| u8::try_from(c).ok()).unwrap_or(1)),
    })
}

/// Process 1 of the namespaces: hides the machine's own state, runs `command`, reaps orphans.
pub(crate) fn first_process(command: &[OsString]) -> Result<ExitCode> {
    if rustix::process::getpid() != Pid::INIT {
        bail!("{FIRST_PROCESS} is not for use by hand");
    }
    let scratch = std::env::var_os(peers::SCRATCH).context("no scratch directory")?;
    prepare(Path::new(&scratch))?;
    let [program, arguments @ ..] = command else {
        bail!("no command");
    };
    let body = Command::new(program)
        .args(arguments)
        .spawn()
        .with_context(|| format!("start {}", program.display()))?;
    let body = Pid::from_child(&body);
    loop {
        // Containers' monitors become children of this process; podman wants them gone once dead.
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == body => {
                let code = status.exit_status().and_then(|c| u8::try_from(c).ok());
                return Ok(ExitCode::from(code.unwrap_or(1)));
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for the command"),
        }
    }
}

fn prepare(scratch: &Path) -> Result<()> {
    // Fresh views of this namespace, and one version of cgroups: crun refuses the mixture.
    filesystem(c"proc", "/proc")?;
    filesystem(c"cgroup2", "/sys/fs/cgroup")?;
    let resolver = std::fs::read("/etc/resolv.conf").unwrap_or_default();
    filesystem(c"tmpfs", "/run")?;
    for (kept, number) in [("/etc", 1), ("/var/lib", 2)] {
        overlay(kept, &format!("/run/kept/{number}"))?;
    }
    for hidden in ["/etc/containers", "/var/lib/containers"] {
        std::fs::create_dir_all(hidden)?;
        filesystem(c"tmpfs", hidden)?;
    }
    std::fs::create_dir_all("/run/lock")?;
    restore_resolver(&resolver)?;
    let temporary = peers::temporary(scratch);
    std::fs::create_dir(&temporary)?;
    std::fs::set_permissions(&temporary, Permissions::from_mode(0o1777))?;
    mount_bind(scratch, scratch)?;
    mount_change(scratch, MountPropagationFlags::SHARED)
        .context("share the scratch directory between namespaces")?;
    Ok(())
}

fn filesystem(kind: &CStr, at: &str) -> Result<()> {
    let name = kind.to_str()?;
    mount(name, at, name, MountFlags::empty(), None::<&CStr>)
        .with_context(|| format!("mount {name} on {at}"))
}

/// Lets `dir` look as it is, and sends what is written there to `aside`.
fn overlay(dir: &str, aside: &str) -> Result<()> {
    let (upper, work) = (format!("{aside}/upper"), format!("{aside}/work"));
    for part in [&upper, &work] {
        std::fs::create_dir_all(part)?;
    }
    let options = CString::new(format!("lowerdir={dir},upperdir={upper},workdir={work}"))?;
    mount(
        "overlay",
        dir,
        "overlay",
        MountFlags::empty(),
        options.as_c_str(),
    )
    .with_context(|| format!("mount an overlay on {dir}"))
}

/// `/etc/resolv.conf` is often a link to a file below `/run`.
fn restore_resolver(content: &[u8]) -> Result<()> {
    let Ok(target) = std::fs::read_link("/etc/resolv.conf") else {
        return Ok(());
    };
    let target = Path::new("/etc").join(target);
    if !target.exists()
        && let Some(parent) = target.parent()
    {
        std::fs::create_dir_all(parent)?;
        std::fs::write(target, content)?;
    }
    Ok(())
}
