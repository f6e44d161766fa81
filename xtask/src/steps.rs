//! Named steps with their times, and programs that must succeed.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The steps of a run so far, with the time that each took.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    done: Vec<(&'static str, Duration)>,
}

impl Steps {
    /// Announces a step, runs it, and remembers its time.
    pub(crate) fn run<T>(
        &mut self,
        name: &'static str,
        body: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        eprintln!("== {name}");
        let begin = Instant::now();
        let value = body().with_context(|| format!("step `{name}` failed"))?;
        self.done.push((name, begin.elapsed()));
        Ok(value)
    }

    /// Prints the time of every step.
    pub(crate) fn report(&self) {
        let mut total = Duration::ZERO;
        for (name, time) in &self.done {
            eprintln!("{:8.1} s  {name}", time.as_secs_f64());
            total += *time;
        }
        eprintln!("{:8.1} s  in all", total.as_secs_f64());
    }
}

/// Runs a program with this process's output and fails unless it succeeds.
pub(crate) fn ok(command: &mut Command) -> Result<()> {
    let line = integration::command::line(command);
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("start `{line}`"))?;
    if !status.success() {
        bail!("`{line}`: {status}");
    }
    Ok(())
}

/// The cargo that runs this program.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace());
    cargo
}

/// The top directory of the workspace.
pub(crate) fn workspace() -> PathBuf {
    let mut dir = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    dir.pop();
    dir
}

/// Builds with cargo and gives the executable of the target called `target`.
pub(crate) fn build(arguments: &[&str], target: &str) -> Result<PathBuf> {
    let mut command = cargo();
    command
        .args(arguments)
        .args(["--message-format", "json-render-diagnostics"])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let output = command.output().context("start cargo")?;
    if !output.status.success() {
        bail!("`cargo {}`: {}", arguments.join(" "), output.status);
    }
    for message in output
        .stdout
        .split(|&b| b == b'\n')
        .filter(|l| !l.is_empty())
    {
        let message: Value = serde_json::from_slice(message)?;
        if message["target"]["name"] == target
            && let Some(executable) = message["executable"].as_str()
        {
            return Ok(PathBuf::from(executable));
        }
    }
    bail!("`cargo {}` built no {target}", arguments.join(" "))
}
