//! The guest: its programs and places.

use anyhow::{Context, Result, ensure};
use integration::{Finished, finish, ok};
use serde_json::Value;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The image that every test uses.
pub(crate) const IMAGE: &str = "localhost/fixture:latest";
/// A file of it that is an object, and its content's length.
pub(crate) const LARGE: &str = integration::fixture::LARGE;

/// A filesystem with fs-verity, with podman's storage and a repository on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disk {
    /// podman's and our own default places.
    Ext4,
    /// Everything below `/btrfs`.
    Btrfs,
}

impl Disk {
    pub(crate) const ALL: [Self; 2] = [Self::Ext4, Self::Btrfs];

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

    fn conf(self) -> PathBuf {
        Path::new("/etc/containers").join(format!("{self:?}.conf"))
    }

    /// Tells podman where its storage is, and which mount options and further stores it uses.
    pub(crate) fn configure(self, mountopt: &str, store: bool) -> Result<()> {
        let view = self.repository().join("composefs-store/podman");
        let stores = if store {
            format!("\"{}\"", view.display())
        } else {
            String::new()
        };
        std::fs::create_dir_all("/etc/containers")?;
        std::fs::write(
            self.conf(),
            format!(
                "[storage]\ndriver = \"overlay\"\ngraphroot = \"{}\"\nrunroot = \"/run/{self:?}\"\n\n\
                 [storage.options]\nadditionalimagestores = [{stores}]\n\n\
                 [storage.options.overlay]\nmountopt = \"{mountopt}\"\n",
                self.graphroot().display(),
            ),
        )?;
        Ok(())
    }

    /// A program that uses podman's storage on this disk.
    pub(crate) fn command(self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("CONTAINERS_STORAGE_CONF", self.conf());
        command
    }

    /// `composefs-store` with this disk's repository.
    pub(crate) fn store(self, args: &[&str]) -> Command {
        let mut command = self.command("composefs-store");
        command.arg("--repo").arg(self.repository()).args(args);
        command
    }

    /// `podman run` with a shell script in a new container of `image`.
    pub(crate) fn run(self, image: &str, script: &str) -> Result<Finished> {
        finish(
            self.command("podman")
                .args(["run", "--rm", "--network", "none", "--pull", "never", image])
                .args(["/bin/sh", "-c", script]),
        )
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

    /// The object that has the content of the image's [`LARGE`] file.
    pub(crate) fn large_object(self) -> Result<PathBuf> {
        let content = self.run(IMAGE, &format!("cat /{LARGE}"))?.success()?.stdout;
        for object in self.objects()? {
            if std::fs::metadata(&object)?.len() == content.len() as u64
                && std::fs::read(&object)? == content
            {
                return Ok(object);
            }
        }
        anyhow::bail!("no object of {self:?} has the content of /{LARGE}")
    }
}

/// The fs-verity digest that the kernel has for a file, as `sha512:<hex>`.
pub(crate) fn measured(file: &Path) -> Result<String> {
    let text = ok(Command::new("fsverity").arg("measure").arg(file))?.text();
    let (digest, _) = text
        .split_once(' ')
        .context("fsverity measure says nothing")?;
    Ok(digest.to_owned())
}

/// The digest that the name of an object stands for.
pub(crate) fn named(object: &Path) -> Result<String> {
    let part = |path: Option<&Path>| -> Result<String> {
        let name = path.and_then(Path::file_name).context("no object")?;
        Ok(name.to_string_lossy().into_owned())
    };
    Ok(format!("{}{}", part(object.parent())?, part(Some(object))?))
}

/// What a program prints as JSON.
pub(crate) fn json(command: &mut Command) -> Result<Value> {
    let done = ok(command)?;
    serde_json::from_slice(&done.stdout).with_context(|| done.to_string())
}

/// Makes everybody read from the disk again.
pub(crate) fn drop_caches() -> Result<()> {
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3")?;
    Ok(())
}

/// Puts `content` in a new file in place of `path`, as somebody would who changes an object.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let aside = path.with_extension("new");
    std::fs::write(&aside, content)?;
    File::open(&aside)?.sync_all()?;
    std::fs::rename(aside, path)?;
    Ok(())
}
