//! One podman engine on a machine: its own storage, its own configuration.

use crate::command::{Finished, finish, finish_podman, ok};
use crate::machine::Machine;
use crate::tree::{Scope, Tree};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// What goes into an engine's storage.conf.
#[derive(Clone, Debug, Default)]
pub struct Engine {
    /// `additionalimagestores`.
    pub additional_stores: Vec<PathBuf>,
    /// `mountopt`; Debian's default where `None`.
    pub mountopt: Option<String>,
    /// `driver`.
    pub driver: Driver,
    /// `imagestore`: a root of its own for images.
    pub imagestore: Option<PathBuf>,
    /// `transient_store`.
    pub containers: Containers,
}

/// How an engine keeps the files of layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Driver {
    /// Each layer's own files.
    #[default]
    Overlay,
    /// The whole tree up to each layer.
    Vfs,
}

/// Where an engine keeps its containers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Containers {
    /// With its images.
    #[default]
    Kept,
    /// Below the run root, until the next boot.
    Transient,
}

impl Engine {
    /// An engine that also sees the images in `store`, with Debian's default mount options.
    pub fn with_store(store: &Path) -> Self {
        Self {
            additional_stores: vec![store.to_owned()],
            ..Self::default()
        }
    }

    /// The same engine with `metacopy=on`, as the layout `blob` needs it.
    #[must_use]
    pub fn metacopy(mut self) -> Self {
        self.mountopt = Some("nodev,metacopy=on".to_owned());
        self
    }
}

/// An engine: `podman` with one storage.conf.
#[derive(Debug)]
pub struct Podman {
    machine: Arc<Machine>,
    dir: PathBuf,
    conf: PathBuf,
}

impl Podman {
    /// An engine whose storage lies in the new directory `dir`.
    pub fn new(machine: &Arc<Machine>, dir: &Path, engine: &Engine) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let conf = dir.join("storage.conf");
        // Short: a longer path does not fit into the addresses of podman's sockets, and podman 4 then
        // waits 20 seconds for every container to end.
        let run = Path::new("/run/engines").join(dir.file_name().unwrap_or_default());
        let stores: Vec<String> = engine
            .additional_stores
            .iter()
            .map(|s| format!("{:?}", s.display().to_string()))
            .collect();
        let driver = match engine.driver {
            Driver::Overlay => "overlay",
            Driver::Vfs => "vfs",
        };
        let images = engine.imagestore.as_ref();
        let images = images.map(|dir| format!("imagestore = \"{}\"\n", dir.display()));
        let transient = match engine.containers {
            Containers::Kept => "",
            Containers::Transient => "transient_store = true\n",
        };
        let more = images.unwrap_or_default() + transient;
        std::fs::write(
            &conf,
            format!(
                "[storage]\ndriver = \"{driver}\"\ngraphroot = \"{0}/graph\"\nrunroot = \"{1}/storage\"\n{more}\n\
                 [storage.options]\nadditionalimagestores = [{2}]\n\n\
                 [storage.options.overlay]\nmountopt = \"{3}\"\n",
                dir.display(),
                run.display(),
                stores.join(", "),
                engine.mountopt.as_deref().unwrap_or("nodev"),
            ),
        )?;
        // Two engines on one machine must not share podman's state in /run/libpod.
        let base = machine.sh("cat /etc/containers/containers.conf")?.text();
        std::fs::write(
            dir.join("containers.conf"),
            format!("{base}\ntmp_dir = \"{}/libpod\"\n", run.display()),
        )?;
        Ok(Self {
            machine: Arc::clone(machine),
            dir: dir.to_owned(),
            conf,
        })
    }

    /// The machine it runs on.
    pub fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    /// Its graphroot.
    pub fn graphroot(&self) -> PathBuf {
        self.dir.join("graph")
    }

    /// Its storage.conf.
    pub fn storage_conf(&self) -> &Path {
        &self.conf
    }

    /// The layer IDs of an image, base first.
    pub fn layers(&self, image: &str) -> Result<Vec<String>> {
        let id = self.ok(&["inspect", "--format", "{{.Id}}", image])?.text();
        let read = |name: &str| -> Result<Vec<Value>> {
            let file = self.graphroot().join(name);
            let text = std::fs::read(&file).with_context(|| file.display().to_string())?;
            Ok(serde_json::from_slice(&text)?)
        };
        let records = read("overlay-layers/layers.json")?;
        let images = read("overlay-images/images.json")?;
        let mut layer = images
            .iter()
            .find(|i| i["id"] == *id)
            .and_then(|i| i["layer"].as_str());
        let mut chain = Vec::new();
        while let Some(id) = layer {
            chain.insert(0, id.to_owned());
            layer = records
                .iter()
                .find(|l| l["id"] == *id)
                .and_then(|l| l["parent"].as_str());
        }
        Ok(chain)
    }

    /// A command with this engine's configuration in its environment.
    pub fn command(&self, program: &str) -> Command {
        let mut command = self.machine.command(program);
        command
            .env("CONTAINERS_STORAGE_CONF", &self.conf)
            .env("CONTAINERS_CONF", self.dir.join("containers.conf"));
        command
    }

    /// Runs podman to its end, however it ends.
    pub fn finish(&self, args: &[&str]) -> Result<Finished> {
        finish(self.command("podman").args(args))
    }

    /// Runs podman and fails unless it succeeds.
    pub fn ok(&self, args: &[&str]) -> Result<Finished> {
        ok(self.command("podman").args(args))
    }

    /// Loads the image of an OCI layout directory as `name`, with skopeo.
    pub fn load(&self, layout: &Path, name: &str) -> Result<()> {
        ok(self
            .command("skopeo")
            .args(["copy", "--quiet"])
            .arg(format!("oci:{}:latest", layout.display()))
            .arg(format!("containers-storage:{name}")))?;
        Ok(())
    }

    /// The tree that a process in a new container of `image` sees; `options` go to `podman run`.
    pub fn tree(&self, image: &str, options: &[&str]) -> Result<Tree> {
        let id = self
            .command("podman")
            .args([
                "run",
                "--pull",
                "never",
                "--detach",
                "--hostname",
                "container",
            ])
            .args(options)
            .args([image, "/bin/sleep", "600"])
            .output()
            .context("start podman")?;
        ensure!(
            id.status.success(),
            "podman run {options:?} {image}: {}",
            String::from_utf8_lossy(&id.stderr)
        );
        let id = String::from_utf8(id.stdout)?.trim().to_owned();
        let pid = self
            .ok(&["inspect", "--format", "{{.State.Pid}}", &id])?
            .text();
        let tree = Tree::read(&PathBuf::from(format!("/proc/{pid}/root")), Scope::Mount);
        self.ok(&["rm", "--force", "--time", "0", &id])?;
        tree
    }

    /// Builds `containerfile` (its context is an empty directory) as `name`.
    pub fn build(&self, name: &str, containerfile: &str) -> Result<()> {
        self.build_with(name, containerfile, &[])
    }

    /// The same with further options of `podman build`.
    pub fn build_with(&self, name: &str, containerfile: &str, options: &[&str]) -> Result<()> {
        let context = self.machine.peers().scratch_dir("context")?;
        std::fs::write(context.join("Containerfile"), containerfile)?;
        let mut build = self.command("podman");
        build
            .args(["build", "--quiet", "--isolation", "chroot"])
            .args([
                "--ulimit",
                "nofile=1024:1024",
                "--ulimit",
                "nproc=1024:1024",
            ])
            .args(["--timestamp", "1700000000", "--tag", name])
            .args(options)
            .arg(context);
        finish_podman(&mut build)?.success()?;
        Ok(())
    }
}
