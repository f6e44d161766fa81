//! What one run of a program takes, and the medians of many.
//!
//! A process of its own starts each program: what the system tells it of its children is then told
//! of that program alone.

use anyhow::{Context, Result, bail, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The hidden subcommand that starts a program and prints what it took.
pub(crate) const STAGE: &str = "__measure";

/// How often each program runs, after once for the caches.
pub(super) const ROUNDS: usize = 7;

/// What a run of a program took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    /// Time on the clock.
    pub(super) wall: Duration,
    /// Time on all cores in the program.
    pub(super) user: Duration,
    /// Time on all cores in the kernel.
    pub(super) system: Duration,
    /// Most memory it had at once, in bytes.
    pub(super) peak: u64,
}

impl Cost {
    /// Time on all cores, user and system.
    pub(super) fn cpu(&self) -> Duration {
        self.user + self.system
    }
}

/// A program that reads its standard input and writes its standard output.
#[derive(Clone, Debug)]
pub(super) struct Contender {
    pub(super) name: &'static str,
    pub(super) command: Vec<OsString>,
    pub(super) input: PathBuf,
    pub(super) output: PathBuf,
}

impl Contender {
    fn run(&self) -> Result<Cost> {
        run(self.name, &self.input, &self.output, &self.command)
    }
}

/// Runs a program once, without input, and forgets what it prints.
pub(super) fn run_once(name: &str, command: &[OsString]) -> Result<Cost> {
    let null = Path::new("/dev/null");
    let cost = run(name, null, null, command)?;
    tell(name, &cost);
    Ok(cost)
}

fn run(name: &str, input: &Path, output: &Path, command: &[OsString]) -> Result<Cost> {
    let output = Command::new(std::env::current_exe()?)
        .arg(STAGE)
        .args([input, output])
        .args(command)
        .output()
        .context("start the process that measures")?;
    ensure!(
        output.status.success(),
        "{name}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let cost: Value = serde_json::from_slice(&output.stdout)?;
    let number = |key: &str| cost[key].as_u64().with_context(|| format!("no {key}"));
    Ok(Cost {
        wall: Duration::from_micros(number("wall_us")?),
        user: Duration::from_micros(number("user_us")?),
        system: Duration::from_micros(number("system_us")?),
        peak: number("peak")?,
    })
}

fn tell(name: &str, cost: &Cost) {
    eprintln!(
        "{name:40} {:8.3} s {:8.3} s cpu {:6} MB",
        cost.wall.as_secs_f64(),
        cost.cpu().as_secs_f64(),
        cost.peak / 1_000_000
    );
}

/// Runs all in turns and gives the median of each of their costs.
pub(super) fn medians(contenders: &[Contender]) -> Result<Vec<Cost>> {
    let mut costs = vec![Vec::new(); contenders.len()];
    for round in 0..=ROUNDS {
        for (contender, costs) in contenders.iter().zip(&mut costs) {
            let cost = contender.run()?;
            tell(contender.name, &cost);
            if round > 0 {
                costs.push(cost);
            }
        }
    }
    Ok(costs.iter().map(|costs| median(costs)).collect())
}

pub(super) fn median(costs: &[Cost]) -> Cost {
    fn middle<T: Ord + Copy>(values: impl Iterator<Item = T>) -> T {
        let mut values: Vec<T> = values.collect();
        values.sort();
        values[values.len() / 2]
    }
    Cost {
        wall: middle(costs.iter().map(|cost| cost.wall)),
        user: middle(costs.iter().map(|cost| cost.user)),
        system: middle(costs.iter().map(|cost| cost.system)),
        peak: middle(costs.iter().map(|cost| cost.peak)),
    }
}

/// The process that measures: input file, output file, program, arguments.
pub(super) fn stage(command: &[OsString]) -> Result<()> {
    let [input, output, program, arguments @ ..] = command else {
        bail!("{STAGE} is not for use by hand");
    };
    let input = File::open(input)?;
    let output = File::create(Path::new(output))?;
    let begin = Instant::now();
    let status = Command::new(program)
        .args(arguments)
        .stdin(Stdio::from(input))
        .stdout(Stdio::from(output))
        .status()
        .with_context(|| format!("start {}", program.display()))?;
    let wall = begin.elapsed();
    ensure!(status.success(), "{}: {status}", program.display());
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    println!(
        "{}",
        json!({
            "wall_us": u64::try_from(wall.as_micros())?,
            "user_us": u64::try_from(usage.user_time().num_microseconds())?,
            "system_us": u64::try_from(usage.system_time().num_microseconds())?,
            "peak": u64::try_from(usage.max_rss())? * 1024,
        })
    );
    Ok(())
}
