//! The program under test on a machine, with one repository.

use crate::command::{Finished, finish, ok};
use crate::machine::Machine;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// `composefs-store` with one repository.
#[derive(Debug)]
pub struct Store {
    machine: Arc<Machine>,
    repo: PathBuf,
}

/// How podman gets at an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// podman mounts it.
    Blob,
    /// We mount it beforehand.
    Mounted,
}

impl Layout {
    /// The word on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Blob => "blob",
            Self::Mounted => "mounted",
        }
    }
}

impl Store {
    /// The repository at `repo`, made with `init --insecure`: no filesystem of these tests has
    /// fs-verity.
    pub fn init(machine: &Arc<Machine>, repo: &Path) -> Result<Self> {
        Self::init_with(machine, repo, &[])
    }

    /// The same with further arguments for `init`.
    pub fn init_with(machine: &Arc<Machine>, repo: &Path, arguments: &[&str]) -> Result<Self> {
        let store = Self::open(machine, repo);
        store.ok(&[&["init", "--insecure"], arguments].concat())?;
        Ok(store)
    }

    /// The repository at `repo`, which somebody else has made or will make.
    pub fn open(machine: &Arc<Machine>, repo: &Path) -> Self {
        Self {
            machine: Arc::clone(machine),
            repo: repo.to_owned(),
        }
    }

    /// The machine it runs on.
    pub fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    /// The repository directory.
    pub fn repo(&self) -> &Path {
        &self.repo
    }

    /// A command of the program on its machine.
    pub fn command(&self, args: &[&str]) -> Result<Command> {
        let program = self.machine.peers().composefs_store()?;
        let mut command = self.machine.command(program);
        command.arg("--repo").arg(&self.repo).args(args);
        Ok(command)
    }

    /// The same command, which kills itself at the `failpoint`.
    pub fn command_killed_at(&self, failpoint: &str, args: &[&str]) -> Result<Command> {
        let mut command = self.command(args)?;
        command.env("COMPOSEFS_STORE_FAILPOINT", failpoint);
        Ok(command)
    }

    /// The same command with `wrapper`, a program and its arguments, in front of it.
    pub fn command_under(&self, wrapper: &[&str], args: &[&str]) -> Result<Command> {
        let program = self.machine.peers().composefs_store()?;
        let (first, rest) = wrapper.split_first().context("an empty command")?;
        let mut command = self.machine.command(first);
        command.args(rest).arg(program);
        command.arg("--repo").arg(&self.repo).args(args);
        Ok(command)
    }

    /// Runs the program and fails unless it succeeds.
    pub fn ok(&self, args: &[&str]) -> Result<Finished> {
        ok(&mut self.command(args)?)
    }

    /// Runs the program to its end, however it ends.
    pub fn finish(&self, args: &[&str]) -> Result<Finished> {
        finish(&mut self.command(args)?)
    }

    /// The directory for `additionalimagestores`.
    pub fn podman_store(&self) -> Result<PathBuf> {
        Ok(PathBuf::from(self.ok(&["podman-store-path"])?.text()))
    }

    /// The paths of all objects, sorted.
    pub fn objects(&self) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        let objects = self.repo.join("objects");
        if !objects.exists() {
            return Ok(found);
        }
        for shard in std::fs::read_dir(objects)? {
            for object in std::fs::read_dir(shard?.path())? {
                found.push(object?.path());
            }
        }
        found.sort();
        Ok(found)
    }
}
