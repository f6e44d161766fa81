//! Engines that are running, and may go by records that they read before we changed them.
//!
//! podman leaves no mark in an additional store while it makes a container of an image there: until the
//! container's layer is recorded in a store of its own, nothing says that it is going to use ours. So what
//! it may have found is kept until the processes that were there have ended.

use std::{
    fs, io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};

use crate::error::{Error, Result};

/// The programs with containers-storage in them.
const PROGRAMS: [&str; 4] = ["podman", "buildah", "skopeo", "crio"];

/// Processes of engines.
pub(crate) struct Engines(Vec<OwnedFd>);

impl Engines {
    /// Those that run now, as far as this process can see them.
    pub(crate) fn running() -> Result<Self> {
        Self::of(&PROGRAMS)
    }

    fn of(programs: &[&str]) -> Result<Self> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").map_err(Error::io("list", "/proc"))? {
            let entry = entry.map_err(Error::io("list", "/proc"))?;
            let name = entry.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // It may have ended meanwhile.
            let Ok(program) = fs::read_link(entry.path().join("exe")) else {
                continue;
            };
            let is_engine = program
                .file_name()
                .is_some_and(|name| programs.iter().any(|program| name == *program));
            if let (true, Some(pid)) = (is_engine, Pid::from_raw(pid)) {
                match pidfd_open(pid, PidfdFlags::empty()) {
                    Ok(process) => found.push(process),
                    Err(Errno::SRCH) => {}
                    Err(error) => return Err(Error::io("watch the process", entry.path())(error)),
                }
            }
        }
        Ok(Self(found))
    }

    /// Waits until all have ended, but no longer than this; returns how many have not.
    pub(crate) fn wait(mut self, patience: Duration) -> Result<usize> {
        let end = Instant::now() + patience;
        while !self.0.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let timeout = Timespec::try_from(left)
                .map_err(|error| Error::io("wait for", "/proc")(io::Error::other(error)))?;
            let mut polled: Vec<PollFd<'_>> = self
                .0
                .iter()
                .map(|process| PollFd::new(process, PollFlags::IN))
                .collect();
            match poll(&mut polled, Some(&timeout)) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(Error::io("wait for", "/proc")(error)),
            }
            let mut ended = polled
                .iter()
                .map(|process| !process.revents().is_empty())
                .collect::<Vec<_>>()
                .into_iter();
            self.0.retain(|_| !ended.next().unwrap_or(false));
        }
        Ok(self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A process of a program that nobody else runs, until its standard input is closed.
    fn process(directory: &std::path::Path) -> Child {
        let program = directory.join("an-engine-of-a-test");
        if !program.exists() {
            fs::copy("/bin/cat", &program).unwrap();
        }
        Command::new(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    #[test]
    fn waits_for_the_engines_that_run_and_no_longer_than_asked() {
        let directory = tempfile::tempdir().unwrap();
        let programs = ["an-engine-of-a-test"];
        let running = || Engines::of(&programs).unwrap();
        assert_eq!(running().wait(Duration::MAX / 4).unwrap(), 0);

        let (mut one, mut two) = (process(directory.path()), process(directory.path()));
        assert_eq!(running().wait(Duration::from_millis(1)).unwrap(), 2);
        let waiting = running();
        drop(one.stdin.take());
        one.wait().unwrap();
        assert_eq!(running().wait(Duration::from_millis(1)).unwrap(), 1);
        drop(two.stdin.take());
        assert_eq!(waiting.wait(Duration::from_secs(60)).unwrap(), 0);
        two.wait().unwrap();
    }
}
