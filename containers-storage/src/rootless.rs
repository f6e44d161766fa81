//! The user namespace in which an ordinary user's podman keeps its storage.
//!
//! The files of a user's layers belong to the user and to the user's subordinate IDs, and some of them
//! (mode 0, say) can be read only with a capability over those IDs. So whoever reads such a store does
//! what podman does: makes a user namespace in which the user is root and the subordinate IDs of
//! `/etc/subuid` and `/etc/subgid` are the others, and executes itself in it. `newuidmap` and
//! `newgidmap`, which are set-user-ID programs, write the mapping; podman is not needed.
//!
//! As `podman unshare` does, the new process is told who its user is by `_CONTAINERS_ROOTLESS_UID` and
//! `_CONTAINERS_ROOTLESS_GID`, and that nothing is left to set up by `_CONTAINERS_USERNS_CONFIGURED`.
//! [`crate::Environment::current`] reads them, and so does every podman that it starts.

use std::convert::Infallible;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sched::{CloneFlags, unshare};
use nix::unistd::User;

pub(crate) const CONFIGURED: &str = "_CONTAINERS_USERNS_CONFIGURED";
pub(crate) const ROOTLESS_UID: &str = "_CONTAINERS_ROOTLESS_UID";
const ROOTLESS_GID: &str = "_CONTAINERS_ROOTLESS_GID";

/// Waits until the process that started it is in its namespace, then becomes the program it is given.
const WHEN_TOLD: &str = r#"read -r go && exec "$@""#;

/// Why there is no user namespace with the user's IDs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RootlessError {
    /// A file of subordinate IDs could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The user has no subordinate IDs.
    #[error(
        "{} gives {user} no subordinate IDs; an administrator can, for example with: usermod \
         --add-subuids 100000-165535 --add-subgids 100000-165535 {user}",
        path.display()
    )]
    NoIds {
        /// The file.
        path: PathBuf,
        /// The user, by name if it has one.
        user: String,
    },
    /// A program that writes the mapping is not installed.
    #[error(
        "{program} is not installed; it is in the package uidmap (Debian, Ubuntu) or shadow-utils \
         (Fedora)"
    )]
    NoHelper {
        /// `newuidmap` or `newgidmap`.
        program: &'static str,
    },
    /// A program could not be started.
    #[error("cannot start {program}")]
    Start {
        /// The program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// The kernel makes no user namespace for this user.
    #[error(
        "cannot make a user namespace; see the sysctls user.max_user_namespaces and \
         kernel.unprivileged_userns_clone, and the host's security module"
    )]
    Unshare(#[source] io::Error),
    /// A program that writes the mapping refused to.
    #[error("{program} failed: {message}")]
    Helper {
        /// `newuidmap` or `newgidmap`.
        program: &'static str,
        /// What it said.
        message: String,
    },
}

/// Subordinate IDs that follow one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct IdRange {
    start: u32,
    count: u32,
}

/// Whether this process has to go through [`reexecute`] to read its user's layers.
pub fn is_needed() -> bool {
    !rustix::process::geteuid().is_root()
}

/// Executes this program anew, with the same arguments and process ID, in a user and mount namespace
/// with the user's mapping. Returns only if that is not possible.
///
/// To be called while the process has a single thread and nothing under way.
pub fn reexecute() -> Result<Infallible, RootlessError> {
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    let name = User::from_uid(uid.into())
        .ok()
        .flatten()
        .map(|user| user.name);
    let uids = subordinate_ids(Path::new("/etc/subuid"), name.as_deref(), uid)?;
    let gids = subordinate_ids(Path::new("/etc/subgid"), name.as_deref(), uid)?;
    // These must stay outside, so they are started before there is an inside.
    let map_users = Helper::start("newuidmap", uid, &uids)?;
    let map_groups = Helper::start("newgidmap", gid, &gids)?;
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)
        .map_err(|error| RootlessError::Unshare(error.into()))?;
    map_users.run()?;
    map_groups.run()?;

    let mut arguments = std::env::args_os();
    let mut command = Command::new("/proc/self/exe");
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    let source = command
        .args(arguments)
        .env(CONFIGURED, "done")
        .env(ROOTLESS_UID, uid.to_string())
        .env(ROOTLESS_GID, gid.to_string())
        .exec();
    Err(RootlessError::Start {
        program: "this program again".to_owned(),
        source,
    })
}

/// What `path`, `/etc/subuid` or `/etc/subgid`, has for a user.
fn subordinate_ids(
    path: &Path,
    name: Option<&str>,
    uid: u32,
) -> Result<Vec<IdRange>, RootlessError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(source) => {
            return Err(RootlessError::Read {
                path: path.to_owned(),
                source,
            });
        }
    };
    let ranges = parse(&text, name, uid);
    if ranges.is_empty() {
        return Err(RootlessError::NoIds {
            path: path.to_owned(),
            user: name.map_or_else(|| uid.to_string(), str::to_owned),
        });
    }
    Ok(ranges)
}

/// The ranges of a user in the text of `/etc/subuid` or `/etc/subgid`: lines `user:start:count`, the
/// user by name or by ID. Lines of another form are left out, as shadow does.
fn parse(text: &str, name: Option<&str>, uid: u32) -> Vec<IdRange> {
    let uid = uid.to_string();
    text.lines()
        .filter_map(|line| {
            let mut fields = line.trim().split(':');
            let owner = fields.next()?;
            let start: u32 = fields.next()?.parse().ok()?;
            let count: u32 = fields.next()?.parse().ok()?;
            let fits = count > 0 && start.checked_add(count).is_some();
            let mine = Some(owner) == name || owner == uid;
            (fits && mine && fields.next().is_none()).then_some(IdRange { start, count })
        })
        .collect()
}

/// The arguments of `newuidmap` and `newgidmap` after the process: the user is 0, the subordinate IDs
/// are those from 1 on.
fn mapping(id: u32, ranges: &[IdRange]) -> Vec<String> {
    let mut extents = vec![[0, id, 1]];
    let mut next = 1_u32;
    for range in ranges {
        extents.push([next, range.start, range.count]);
        next = next.saturating_add(range.count);
    }
    extents.iter().flatten().map(u32::to_string).collect()
}

/// A program that will write a part of this process's mapping.
struct Helper {
    program: &'static str,
    child: Child,
}

impl Helper {
    fn start(program: &'static str, id: u32, ranges: &[IdRange]) -> Result<Self, RootlessError> {
        let path = find(program).ok_or(RootlessError::NoHelper { program })?;
        let child = Command::new("sh")
            .args(["-c", WHEN_TOLD, "sh"])
            .arg(path)
            .arg(std::process::id().to_string())
            .args(mapping(id, ranges))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| RootlessError::Start {
                program: program.to_owned(),
                source,
            })?;
        Ok(Self { program, child })
    }

    fn run(mut self) -> Result<(), RootlessError> {
        let program = self.program;
        let start = |source| RootlessError::Start {
            program: program.to_owned(),
            source,
        };
        if let Some(mut stdin) = self.child.stdin.take() {
            stdin.write_all(b"go\n").map_err(start)?;
        }
        let output = self.child.wait_with_output().map_err(start)?;
        if output.status.success() {
            return Ok(());
        }
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(RootlessError::Helper { program, message })
    }
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subordinate_ids_are_found_by_name_and_by_id() {
        let text = "ben:1:1\nann:100000:65536\n# ann:1:1\nann:7\n1000:300000:10\nann:5:0\nann:x:3\n\
                    ann:4294967295:2\nann:1:2:3\n";
        let ranges = |name| parse(text, name, 1000);
        let by_id = IdRange {
            start: 300_000,
            count: 10,
        };
        let by_name = IdRange {
            start: 100_000,
            count: 65_536,
        };
        assert_eq!(ranges(Some("ann")), [by_name, by_id]);
        assert_eq!(ranges(None), [by_id]);
        assert_eq!(parse(text, Some("eve"), 1001), []);
    }

    #[test]
    fn the_user_is_root_and_the_subordinate_ids_follow() {
        let ranges = [(100_000, 10), (500, 20)].map(|(start, count)| IdRange { start, count });
        assert_eq!(
            mapping(1000, &ranges),
            ["0", "1000", "1", "1", "100000", "10", "11", "500", "20"]
        );
    }

    #[test]
    fn a_user_without_subordinate_ids_is_told_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("subuid");
        for text in [None, Some("ben:100000:65536\n")] {
            if let Some(text) = text {
                std::fs::write(&path, text).unwrap();
            }
            let error = subordinate_ids(&path, Some("ann"), 1000).unwrap_err();
            let message = error.to_string();
            assert!(message.contains("usermod --add-subuids"), "{message}");
            assert!(message.ends_with(" ann"), "{message}");
        }
    }
}
