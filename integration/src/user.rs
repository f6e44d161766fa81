//! An ordinary user of a machine, for everything that works without root.

use crate::machine::Machine;
use anyhow::Result;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Whether a [`User`] has IDs besides their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubordinateIds {
    /// 65,536 users and groups.
    Some,
    /// None.
    None,
}

/// A user with a home directory and a run-time directory.
#[derive(Debug)]
pub struct User {
    machine: Arc<Machine>,
    id: u32,
    home: PathBuf,
}

/// `$1` is the user's ID, `$2` the home directory, `$3` the first subordinate ID or empty.
const ADD: &str = r#"
echo "user$1:x:$1:$1::$2:/bin/sh" >>/etc/passwd
echo "user$1:x:$1:" >>/etc/group
if [ -n "$3" ]; then
    echo "user$1:$3:65536" >>/etc/subuid
    echo "user$1:$3:65536" >>/etc/subgid
fi
install -d -m 700 -o "$1" -g "$1" "$2" "/run/user/$1"
"#;

impl User {
    /// Adds a user to the machine whose home is the new directory `home`.
    pub fn add(machine: &Arc<Machine>, home: &Path, ids: SubordinateIds) -> Result<Self> {
        // Machines of this release share `/etc`.
        static NEXT: AtomicU32 = AtomicU32::new(4000);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let first = match ids {
            SubordinateIds::Some => (id << 16).to_string(),
            SubordinateIds::None => String::new(),
        };
        let mut add = machine.command("sh");
        add.args(["-euc", ADD, "sh", &id.to_string()])
            .arg(home)
            .arg(first);
        crate::ok(&mut add)?;
        Ok(Self {
            machine: Arc::clone(machine),
            id,
            home: home.to_owned(),
        })
    }

    /// The user's ID, and that of their group.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The home directory.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// A command that this user runs on their machine.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let id = self.id.to_string();
        let mut command = self.machine.command("setpriv");
        command
            .args(["--reuid", &id, "--regid", &id, "--clear-groups"])
            .args(["--inh-caps=-all", "--"])
            .arg(program)
            .env("HOME", &self.home)
            .env("USER", format!("user{id}"))
            .env("XDG_RUNTIME_DIR", format!("/run/user/{id}"))
            .current_dir("/");
        command
    }

    /// Runs `composefs-store` as this user, with the repository it finds.
    pub fn store(&self, args: &[&str]) -> Result<Command> {
        let mut command = self.command(self.machine.peers().composefs_store()?);
        command.args(args);
        Ok(command)
    }
}
