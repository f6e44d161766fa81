//! Running a program and keeping everything that a failed test needs to show.

use anyhow::{Context, Result, bail};
use std::process::{Command, ExitStatus, Stdio};

/// A program that has ended.
#[derive(Debug)]
pub struct Finished {
    /// The command line, for messages.
    pub line: String,
    /// How it ended.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// All of its standard error, lossily decoded.
    pub stderr: String,
}

impl Finished {
    /// Standard output as text without the last newline.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }

    /// Whether it is a podman whose temporary directory another one took for that of a dead podman, and
    /// removed: between making its lock file and locking it there is a moment in 5.8 (podman issue 29641).
    fn lost_temporary_directory(&self) -> bool {
        !self.status.success()
            && self.stderr.contains("/temp-dir-")
            && self.stderr.contains("no such file or directory")
    }

    /// An error with the command and its output unless it succeeded.
    pub fn success(self) -> Result<Self> {
        if self.status.success() {
            return Ok(self);
        }
        bail!("{self}")
    }

    /// An error with the command and its output unless it ended with a failure of its own, that is
    /// with an exit code that is neither 0 nor the 101 of a panic, and not by a signal.
    pub fn refused(self) -> Result<Self> {
        match self.status.code() {
            Some(code) if code != 0 && code != 101 => Ok(self),
            _ => bail!("expected a clean refusal from {self}"),
        }
    }

    /// An error unless the command failed cleanly and its message contains every one of `words`.
    pub fn refused_with(self, words: &[&str]) -> Result<Self> {
        let done = self.refused()?;
        for word in words {
            if !done.stderr.contains(word) {
                bail!("expected {word:?} in the message of {done}");
            }
        }
        Ok(done)
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "`{}`: {}\n--- stdout\n{}\n--- stderr\n{}",
            self.line,
            self.status,
            String::from_utf8_lossy(&self.stdout),
            self.stderr
        )
    }
}

/// Runs a podman, beside which others use the same storage, to its end; again if these took its temporary
/// directory away.
pub fn finish_podman(command: &mut Command) -> Result<Finished> {
    const ATTEMPTS: usize = 5;
    for _ in 1..ATTEMPTS {
        let done = finish(command)?;
        if !done.lost_temporary_directory() {
            return Ok(done);
        }
        eprintln!("once more: {done}");
    }
    finish(command)
}

/// The command line of `command` as one would type it, without a leading `nsenter …`.
pub fn line(command: &Command) -> String {
    let mut words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| quote(&word.to_string_lossy()))
        .collect();
    if words.first().is_some_and(|w| w == "nsenter")
        && let Some(at) = words.iter().position(|w| w == "--")
    {
        words.drain(..=at);
    }
    words.join(" ")
}

fn quote(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./=:,@%+{}".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Runs `command` to its end. An error means that it could not be started.
pub fn finish(command: &mut Command) -> Result<Finished> {
    let line = line(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start `{line}`"))?;
    Ok(Finished {
        line,
        status: output.status,
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Runs `command` to its end and fails unless it succeeds.
pub fn ok(command: &mut Command) -> Result<Finished> {
    finish(command)?.success()
}
