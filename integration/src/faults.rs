//! System calls that fail, or that the process does not live to make.
//!
//! strace does both. It counts the calls of each name in each thread apart, so a [`Point`] is the n-th
//! call of a name in any thread: where threads share the work a run may not reach it, or reach it in
//! two of them.

use crate::command::ok;
use crate::store::Store;
use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// What happens to a call instead of what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails with this error, by its name in `errno.h`.
    Error(&'static str),
    /// The process is killed before it is made.
    Kill,
}

/// The n-th call of a name, from 1, in any thread.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Point {
    /// Name of the system call.
    pub call: String,
    /// Which of them.
    pub nth: u32,
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} number {}", self.call, self.nth)
    }
}

/// Every point of a run of the program with `args`, of the system calls in `calls`, from where it
/// first names the repository: what comes before is the work of the dynamic linker.
pub fn points(store: &Store, args: &[&str], calls: &[&str]) -> Result<Vec<Point>> {
    let log = store.machine().peers().scratch_dir("strace")?.join("log");
    // Not every machine has every call; opening the repository by its path is the first of them.
    let known: Vec<String> = std::iter::once(&"open")
        .chain(calls)
        .map(|call| format!("?{call}"))
        .collect();
    let trace = format!("trace={}", known.join(","));
    let log_name = log.display().to_string();
    ok(&mut under_strace(store, &log_name, &[&trace], args)?)?;
    let log = std::fs::read(&log).with_context(|| log_name.clone())?;
    let log = String::from_utf8_lossy(&log);
    let repo = store.repo().display().to_string();
    let mut counts: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    let mut early: BTreeMap<&str, u32> = BTreeMap::new();
    let mut found = BTreeSet::new();
    let mut begun = false;
    for line in log.lines() {
        // `1234  openat(AT_FDCWD, "…") = 3`; `1234  <... openat resumed>) = 3` is no new call.
        let Some((thread, rest)) = line.split_once(' ') else {
            continue;
        };
        let Some((call, _)) = rest.trim_start().split_once('(') else {
            continue;
        };
        begun |= line.contains(&repo);
        if !calls.contains(&call) {
            continue;
        }
        let nth = counts.entry((thread, call)).or_default();
        *nth += 1;
        if begun {
            found.insert((call, *nth));
        } else {
            early.insert(call, *nth);
        }
    }
    ensure!(begun, "strace saw nothing of {repo}");
    // A point that another thread shares with the beginning would strike there.
    Ok(found
        .into_iter()
        .filter(|(call, nth)| early.get(call).is_none_or(|early| nth > early))
        .map(|(call, nth)| Point {
            call: call.to_owned(),
            nth,
        })
        .collect())
}

/// The program with `args`, hit by `fault` at `point`.
pub fn command_hit_by(
    store: &Store,
    fault: Fault,
    point: &Point,
    args: &[&str],
) -> Result<Command> {
    let Point { call, nth } = point;
    let inject = match fault {
        Fault::Error(error) => format!("inject={call}:error={error}:when={nth}"),
        Fault::Kill => format!("inject={call}:signal=KILL:when={nth}"),
    };
    let trace = format!("trace={call}");
    under_strace(store, "/dev/null", &[&trace, &inject], args)
}

/// The program with `args` under strace, which follows all threads and writes to `log`.
fn under_strace(store: &Store, log: &str, expressions: &[&str], args: &[&str]) -> Result<Command> {
    let mut strace = vec!["strace", "-f", "-qq", "-s", "4096", "-o", log];
    for expression in ["signal=none"].iter().chain(expressions) {
        strace.extend(["-e", *expression]);
    }
    store.command_under(&strace, args)
}

/// The first call of `ioctl`, counted in each thread, from which on all are FICLONE in a run of the program
/// with `args`: failing these fails nothing but clones.
pub fn first_clone(store: &Store, args: &[&str]) -> Result<u32> {
    let log = store.machine().peers().scratch_dir("strace")?.join("log");
    let log_name = log.display().to_string();
    ok(&mut under_strace(store, &log_name, &["trace=ioctl"], args)?)?;
    let log = std::fs::read_to_string(&log).context(log_name.clone())?;
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    let (mut first, mut clones) = (1, 0);
    for line in log.lines().filter(|line| line.contains("ioctl(")) {
        let thread = line.split(' ').next().unwrap_or_default();
        let nth = counts.entry(thread).or_default();
        *nth += 1;
        if line.contains("FICLONE") {
            clones += 1;
        } else {
            first = first.max(*nth + 1);
        }
    }
    let last = counts.values().copied().max().unwrap_or_default();
    ensure!(clones > 0 && last > first, "no clones to fail: {counts:?}");
    Ok(first)
}

/// The program with `args`, in which every `ioctl` of a thread from the `first` on fails with `error`.
pub fn command_without_clones(
    store: &Store,
    error: &str,
    first: u32,
    args: &[&str],
) -> Result<Command> {
    let inject = format!("inject=ioctl:error={error}:when={first}+");
    under_strace(store, "/dev/null", &["trace=ioctl", &inject], args)
}

/// At most `limit` of `all`, evenly spread.
pub fn spread<T: Clone>(all: &[T], limit: usize) -> Vec<T> {
    let take = limit.min(all.len());
    (0..take)
        .map(|n| all[n * all.len() / take].clone())
        .collect()
}
