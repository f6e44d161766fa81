//! A host as podman sees it, in a mount namespace of its own.

use crate::command::{Finished, ok};
use crate::peers::Peers;
use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

/// Which podman a [`Machine`] has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// The machine's own Debian 12: podman 4.3.
    Host,
    /// Debian trixie in a root directory of its own: podman 5.4.
    Trixie,
    /// Debian sid in a root directory of its own: podman 5.8 and the C composefs tools.
    Sid,
}

/// A mount namespace that lives as long as this value, with its own `/run`, `/tmp`,
/// `/etc/containers` and `/var/lib/containers`, and the scratch directory at its usual path.
#[derive(Debug)]
pub struct Machine {
    keeper: Child,
    peers: Peers,
    release: Release,
}

/// Where a machine has its programs.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Limits that podman asks for by default need `CAP_SYS_RESOURCE`; its networks need a network.
const CONTAINERS_CONF: &str = r#"[containers]
cgroups = "disabled"
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
netns = "none"
pids_limit = 0

[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "crun"
"#;

const POLICY: &str = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;

/// Run by the keeper of a namespace: `$1` is the root directory to pivot into, or empty, `$2` the
/// scratch directory, `$3` a directory for the writable part of the root.
const ENTER: &str = r#"
if [ -n "$1" ]; then
    # Not below the scratch directory: a root cannot be pivoted to from a shared mount.
    mkdir -p "$3/upper" "$3/work" /run/root
    mount -t overlay overlay -o "lowerdir=$1,upperdir=$3/upper,workdir=$3/work" /run/root
    cd /run/root
    mkdir -p ".$2" dev proc sys old
    mount --rbind "$2" ".$2"
    mount --rbind /dev dev
    mount --make-rprivate dev
    mount -t proc proc proc
    mount -t sysfs sysfs sys
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    pivot_root . old
    cd /
    # Unmounting the old root must not reach the shared mounts of the scratch directory.
    mount --make-rprivate /old
    umount -l /old
fi
for dir in /run /tmp /dev/shm /etc/containers /var/lib/containers; do
    mkdir -p "$dir"
    mount -t tmpfs -o mode=755 tmpfs "$dir"
done
chmod 1777 /tmp /dev/shm
mkdir /run/lock
mount --make-rshared /
echo ready
exec sleep infinity
"#;

impl Machine {
    /// Starts a machine.
    pub fn start(peers: &Peers, release: Release) -> Result<Arc<Self>> {
        let root = match release {
            Release::Host => None,
            Release::Trixie => Some(peers.root("trixie")?),
            Release::Sid => Some(peers.root("sid")?),
        };
        let own = peers.scratch_dir("machine")?;
        let mut keeper = Command::new("unshare")
            .args(["--mount", "--propagation", "unchanged", "sh", "-euc", ENTER])
            .arg("machine")
            .arg(root.unwrap_or_default())
            .args([peers.scratch(), &own])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("start unshare")?;
        let mut ready = [0; 6];
        let said = keeper.stdout.as_mut().map(|out| out.read_exact(&mut ready));
        if !matches!(said, Some(Ok(()))) {
            let _ = keeper.kill();
            bail!(
                "the namespace of {release:?} could not be set up: {:?}",
                keeper.wait()
            );
        }
        let machine = Self {
            keeper,
            peers: peers.clone(),
            release,
        };
        machine.write("/etc/containers/containers.conf", CONTAINERS_CONF)?;
        machine.write("/etc/containers/policy.json", POLICY)?;
        machine.write("/etc/containers/registries.conf", "")?;
        Ok(Arc::new(machine))
    }

    /// Which podman it has.
    pub fn release(&self) -> Release {
        self.release
    }

    /// The peers and directories of this run.
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// Its root directory, as this process can reach it.
    pub fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.keeper.id()))
    }

    /// A command that runs on this machine, with an environment of its own.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        let target = self.keeper.id().to_string();
        command
            .args(["--target", &target, "--mount", "--root", "--"])
            .arg(program)
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", "/root")
            .env("TMPDIR", self.peers.temporary())
            .env("LC_ALL", "C.UTF-8")
            .env("BUILDAH_ISOLATION", "chroot");
        command
    }

    /// Runs a shell script on this machine and fails unless it succeeds.
    pub fn sh(&self, script: &str) -> Result<Finished> {
        ok(self.command("sh").args(["-euc", script]))
    }

    /// Writes a file on this machine.
    pub fn write(&self, path: &str, content: &str) -> Result<()> {
        ok(self
            .command("sh")
            .args(["-euc", r#"printf %s "$2" >"$1""#, "sh", path, content]))?;
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}
