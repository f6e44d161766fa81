//! The first `find` and the first reading of all files in a container.

use super::{Bench, Contender, cells, head, measured};
use crate::bench::measure::{Cost, median};
use crate::bench::report::Section;
use crate::steps::ok;
use anyhow::{Context, Result};
use integration::fixture::noise;
use integration::tar::Member;
use std::process::Command;
use std::time::Duration;

/// What is measured in a new container.
#[derive(Clone, Copy)]
enum Work {
    Find,
    Read,
}

/// What the kernel has in memory when it begins.
#[derive(Clone, Copy)]
enum Caches {
    /// Nothing of any filesystem.
    Cold,
    /// Everything of the image, from another container.
    Hot,
}

const CASES: [(&str, Work, Caches); 4] = [
    ("`find /`, cold", Work::Find, Caches::Cold),
    ("`find /`, hot", Work::Find, Caches::Hot),
    ("`cat` of all files, cold", Work::Read, Caches::Cold),
    ("`cat` of all files, hot", Work::Read, Caches::Hot),
];

/// 3,000 files of 34 MB in 5 layers.
fn layers() -> Vec<Vec<Member>> {
    const FILES: u64 = 3_000;
    let layer = |n: u64| {
        let files = (n * FILES / 5)..((n + 1) * FILES / 5);
        files
            .map(|f| {
                // 2^x for x from 6 to 17 evenly, as in a system.
                let random = f.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
                let exponent = 6.0 + 11.0 * (random as f64 / f64::from(1 << 24));
                let name = format!("usr/lib/{}/file-{f}", f / 15);
                Member::file(name, noise(f, exponent.exp2() as usize))
            })
            .collect()
    };
    (0..5).map(layer).collect()
}

pub(super) fn measure(bench: &Bench, section: &mut Section, rounds: usize) -> Result<()> {
    let image = bench.add("files", layers())?;
    head(section, bench, "first in a new container");
    let mut costs = vec![vec![Vec::new(); bench.engines.len()]; CASES.len()];
    for round in 0..=rounds {
        for ((_, work, caches), costs) in CASES.into_iter().zip(&mut costs) {
            for (engine, costs) in bench.engines.iter().zip(costs) {
                let cost = one(engine, &image, work, caches)?;
                if round > 0 {
                    costs.push(cost);
                }
            }
        }
    }
    for ((name, ..), costs) in CASES.into_iter().zip(&costs) {
        let times: Vec<Duration> = costs.iter().map(|costs| median(costs).wall).collect();
        section.row(&cells(name, &times, "at most 1.1"));
    }
    section.paragraph(
        "3,000 files of 34 MB in 5 layers; the time is that of the shell in the container alone, not of \
         podman. Cold: after the container has started, everything is written and \
         `/proc/sys/vm/drop_caches` is 3, which empties the page cache of the machine, also that of the \
         file behind the loop device. Hot: another container of the same engine has read everything; this \
         one's mounts are new.",
    );
    Ok(())
}

fn one(engine: &Contender, image: &str, work: Work, caches: Caches) -> Result<Cost> {
    const READ: &str = "find / -xdev -type f -exec cat {} + >/dev/null";
    let script = match work {
        Work::Find => "find / -xdev >/dev/null",
        Work::Read => READ,
    };
    if let Caches::Hot = caches {
        let before = engine.start(image, "before")?;
        ok(&mut before.command(READ))?;
        before.remove()?;
    }
    let container = engine.start(image, "measured")?;
    if let Caches::Cold = caches {
        drop_caches()?;
    }
    let cost = measured(engine.name, &container.command(script))?;
    container.remove()?;
    Ok(cost)
}

/// Takes everything that is clean out of memory.
pub(super) fn drop_caches() -> Result<()> {
    ok(&mut Command::new("sync"))?;
    std::fs::write("/proc/sys/vm/drop_caches", "3").context("empty the page cache")
}
