//! The tools by their C names, beside the C tools themselves: the same bytes, outputs and exit codes.

mod composefs_layers;
mod directory;
mod info;
mod make;
mod mounts;

use anyhow::{Result, ensure};
use integration::{Filesystem, Finished, Kind, Machine, Peers, Release, finish};
use std::ffi::OsStr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// A Debian with the C tools, a filesystem, and ours under the same names.
struct Tools {
    machine: Arc<Machine>,
    ours: PathBuf,
    disk: Filesystem,
}

const NAMES: [&str; 3] = ["mkcomposefs", "composefs-info", "mount.composefs"];

impl Tools {
    fn new() -> Result<Self> {
        let peers = Peers::from_env()?;
        // Symlink targets of 4,095 bytes and xattr values of 15,000 need btrfs.
        let disk = Filesystem::new(&peers, Kind::Btrfs, 1024)?;
        let machine = Machine::start(&peers, Release::Sid)?;
        let ours = peers.scratch_dir("tools")?;
        for name in NAMES {
            symlink(peers.composefs_store()?, ours.join(name))?;
        }
        Ok(Self {
            machine,
            ours,
            disk,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.disk.path().join(name)
    }

    fn ours(&self, tool: &str) -> Command {
        self.machine.command(self.ours.join(tool))
    }

    fn c(&self, tool: &str) -> Command {
        self.machine.command(tool)
    }

    /// Runs both with the same arguments; standard output and exit code must be equal.
    fn both(&self, tool: &str, args: &[impl AsRef<OsStr>]) -> Result<Finished> {
        let ours = finish(self.ours(tool).args(args))?;
        let c = finish(self.c(tool).args(args))?;
        agree(&ours, &c)?;
        Ok(ours)
    }

    /// Makes an image with both `mkcomposefs`, which must agree in everything, and returns its path;
    /// `None` when both refused.
    fn image(&self, args: &[impl AsRef<OsStr>]) -> Result<Option<PathBuf>> {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let [our_image, c_image] =
            ["ours", "c"].map(|whose| self.path(&format!("image.{number}.{whose}")));
        let make = |mut command: Command, image: &Path| {
            finish(command.arg("--print-digest").args(args).arg(image))
        };
        let ours = make(self.ours("mkcomposefs"), &our_image)?;
        let c = make(self.c("mkcomposefs"), &c_image)?;
        agree(&ours, &c)?;
        if !ours.status.success() {
            ensure!(!our_image.exists(), "a refused image was left: {ours}");
            return Ok(None);
        }
        ensure!(
            std::fs::read(&our_image)? == std::fs::read(&c_image)?,
            "the images differ: {ours}"
        );
        Ok(Some(our_image))
    }
}

fn agree(ours: &Finished, c: &Finished) -> Result<()> {
    ensure!(
        ours.stdout == c.stdout && ours.status == c.status,
        "ours and C differ: {ours}\n{c}"
    );
    Ok(())
}
