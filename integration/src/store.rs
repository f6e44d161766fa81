//! The program under test on a machine, with one repository.

use crate::command::{Finished, finish, ok};
use crate::machine::Machine;
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::process::Command;

/// `composefs-store` with one repository.
#[derive(Debug)]
pub struct Store<'m> {
    machine: &'m Machine,
    repo: PathBuf,
}

/// The path under which podman sees what is published.
pub const VIEW: &str = "/run/composefs-store/storage";

impl<'m> Store<'m> {
    /// The repository at `repo`, made with `init --insecure`: no filesystem of these tests has
    /// fs-verity.
    pub fn init(machine: &'m Machine, repo: &Path) -> Result<Self> {
        let store = Self {
            machine,
            repo: repo.to_owned(),
        };
        store.ok(&["init", "--insecure"])?;
        Ok(store)
    }

    /// The repository directory.
    pub fn repo(&self) -> &Path {
        &self.repo
    }

    /// A command of the program on its machine.
    pub fn command(&self, args: &[&str]) -> Result<Command> {
        let program = self.machine.peers().composefs_store()?;
        Ok(self.prepare(&program, args))
    }

    /// The same command of a build that kills itself at the `failpoint`.
    pub fn command_killed_at(&self, failpoint: &str, args: &[&str]) -> Result<Command> {
        let program = self.machine.peers().composefs_store_with_failpoints()?;
        let mut command = self.prepare(&program, args);
        command.env("COMPOSEFS_STORE_FAILPOINT", failpoint);
        Ok(command)
    }

    fn prepare(&self, program: &Path, args: &[&str]) -> Command {
        let mut command = self.machine.command(program);
        command.arg("--repo").arg(&self.repo).args(args);
        command
    }

    /// Runs the program and fails unless it succeeds.
    pub fn ok(&self, args: &[&str]) -> Result<Finished> {
        ok(&mut self.command(args)?)
    }

    /// Runs the program to its end, however it ends.
    pub fn finish(&self, args: &[&str]) -> Result<Finished> {
        finish(&mut self.command(args)?)
    }

    /// Everything below the repository that is a regular file, with its path.
    pub fn objects(&self) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for shard in std::fs::read_dir(self.repo.join("objects"))? {
            for object in std::fs::read_dir(shard?.path())? {
                found.push(object?.path());
            }
        }
        Ok(found)
    }
}
