//! The guest: its programs and places.

use anyhow::{Context, Result, ensure};
use integration::{Finished, finish, ok};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// The image that most tests use: of the OCI layout on the disk of programs.
pub(crate) const IMAGE: &str = "localhost/fixture:latest";
/// A smaller one.
pub(crate) const SMALL: &str = "localhost/small:latest";
/// A file of both images that is an object.
pub(crate) const LARGE: &str = "/usr/lib/large.bin";

/// Mount options without verification.
pub(crate) const PLAIN: &str = "nodev,metacopy=on";
/// Those of `contrib/containers-storage.verified.conf`.
pub(crate) const VERIFIED: &str = "nodev,metacopy=on,verity=require";

/// The filesystem with fs-verity that this guest is about, with podman's storage and a repository on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disk {
    /// podman's and our own default places.
    Ext4,
    /// Everything below `/btrfs`.
    Btrfs,
}

impl Disk {
    /// The one of this guest.
    pub(crate) fn this() -> Result<Self> {
        match std::env::var("DISK").as_deref() {
            Ok("ext4") => Ok(Self::Ext4),
            Ok("btrfs") => Ok(Self::Btrfs),
            other => anyhow::bail!("DISK is {other:?}"),
        }
    }

    /// The repository.
    pub(crate) fn repository(self) -> PathBuf {
        match self {
            Self::Ext4 => "/var/lib/composefs-store".into(),
            Self::Btrfs => "/btrfs/repository".into(),
        }
    }

    /// podman's own storage.
    pub(crate) fn graphroot(self) -> PathBuf {
        match self {
            Self::Ext4 => "/var/lib/containers/storage".into(),
            Self::Btrfs => "/btrfs/storage".into(),
        }
    }

    /// Tells podman where its storage is, and which mount options it uses; with our store if it is there.
    pub(crate) fn configure(self, mountopt: &str) -> Result<()> {
        let view = self.repository().join("composefs-store/podman");
        let stores = if view.exists() {
            format!("\"{}\"", view.display())
        } else {
            String::new()
        };
        std::fs::create_dir_all("/etc/containers")?;
        std::fs::write(
            "/etc/containers/storage.conf",
            format!(
                "[storage]\ndriver = \"overlay\"\ngraphroot = \"{}\"\nrunroot = \"/run/podman\"\n\n\
                 [storage.options]\nadditionalimagestores = [{stores}]\n\n\
                 [storage.options.overlay]\nmountopt = \"{mountopt}\"\n",
                self.graphroot().display(),
            ),
        )?;
        Ok(())
    }

    /// `composefs-store` with the repository.
    pub(crate) fn store(self, args: &[&str]) -> Command {
        let mut command = Command::new("composefs-store");
        command.arg("--repo").arg(self.repository()).args(args);
        command
    }

    /// Every object of the repository.
    pub(crate) fn objects(self) -> Result<Vec<PathBuf>> {
        let mut objects = Vec::new();
        for shard in std::fs::read_dir(self.repository().join("objects"))? {
            for object in std::fs::read_dir(shard?.path())? {
                objects.push(object?.path());
            }
        }
        ensure!(!objects.is_empty(), "no objects in {self:?}");
        Ok(objects)
    }

    /// Publishes an image as verified; returns the ID of its top layer.
    pub(crate) fn publish(self, layout: &str, image: &str) -> Result<String> {
        let args = ["--json", "publish", "--verified", "--layout", layout, image];
        let report = json(&mut self.store(&args))?;
        ensure!(report[0]["verified"] == true, "{report:#}");
        let layers = report[0]["layers"].as_array().context("no layers")?;
        let top = layers.last().and_then(|layer| layer["id"].as_str());
        Ok(top.context("no top layer")?.to_owned())
    }

    /// The object that is the EROFS image of a published layer.
    pub(crate) fn erofs(self, layer: &str) -> Result<PathBuf> {
        let name = format!("images/refs/composefs-store/published/{layer}");
        let link = self.repository().join(name);
        std::fs::canonicalize(&link).with_context(|| link.display().to_string())
    }
}

/// `podman` with arguments.
pub(crate) fn podman(args: &[&str]) -> Command {
    let mut command = Command::new("podman");
    command.args(args);
    command
}

/// `podman run` with a shell script in a new container of `image`.
pub(crate) fn run(image: &str, script: &str) -> Result<Finished> {
    finish(
        podman(&["run", "--rm", "--network", "none", "--pull", "never", image])
            .args(["/bin/sh", "-c", script]),
    )
}

/// What a program prints as JSON.
pub(crate) fn json(command: &mut Command) -> Result<Value> {
    let done = ok(command)?;
    serde_json::from_slice(&done.stdout).with_context(|| done.to_string())
}

/// Makes everybody read from the disk again.
pub(crate) fn drop_caches() -> Result<()> {
    rustix::fs::sync();
    // An inode goes once nothing in another filesystem holds it.
    for _ in 0..2 {
        std::fs::write("/proc/sys/vm/drop_caches", "3")?;
    }
    Ok(())
}

/// A running container that reads a file as often as it is asked to.
pub(crate) struct Reader {
    podman: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Reader {
    /// Starts a container of `image`.
    pub(crate) fn start(image: &str) -> Result<Self> {
        const SCRIPT: &str = "echo ready; while read -r file; do \
                              if cat \"$file\" >/dev/null 2>&1; then echo whole; else echo refused; fi; done";
        let mut podman = podman(&["run", "--rm", "--interactive", "--network", "none"])
            .args(["--pull", "never", image, "/bin/sh", "-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let ask = podman.stdin.take().context("no stdin")?;
        let answers = BufReader::new(podman.stdout.take().context("no stdout")?);
        let mut reader = Self {
            podman,
            ask,
            answers,
        };
        ensure!(reader.answer()? == "ready", "the container did not start");
        Ok(reader)
    }

    /// Whether the whole file could be read, from the disk.
    pub(crate) fn reads(&mut self, file: &Path) -> Result<bool> {
        drop_caches()?;
        writeln!(self.ask, "{}", file.display())?;
        match self.answer()?.as_str() {
            "whole" => Ok(true),
            "refused" => Ok(false),
            other => anyhow::bail!("the container said {other:?}"),
        }
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// Ends the container.
    pub(crate) fn end(mut self) -> Result<()> {
        drop(self.ask);
        let status = self.podman.wait()?;
        ensure!(status.success(), "podman run: {status}");
        Ok(())
    }
}
