//! The dumpfiles that are measured, kept in the cache of peers.
//!
//! The large one is the same each time; its directories, names, sizes, owners and labels are spread
//! about as in an operating system. The other one is of a real root directory.

use crate::setup::cache_lock;
use crate::steps::ok;
use anyhow::{Context, Result, ensure};
use integration::peers::cache_dir;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Lines of the dumpfile.
const ENTRIES: u64 = 1_000_000;

/// Some 30,000 files, most of them of the kernel's headers and modules.
const PACKAGES: &str = "linux-headers-amd64";

/// The large dumpfile.
pub(super) fn large() -> Result<PathBuf> {
    // A change in what is written needs another name.
    cached("large-1.dump", write)
}

/// The dumpfile of a Debian with kernel headers; `tool` is `composefs-store`.
pub(super) fn root(tool: &Path) -> Result<PathBuf> {
    cached("root-1.dump", |dump| {
        let root = dump.with_extension("root");
        let image = dump.with_extension("image");
        ok(Command::new("mmdebstrap")
            .args(["--quiet", "--variant=apt"])
            .arg(format!("--include={PACKAGES}"))
            .arg("trixie")
            .arg(&root)
            .current_dir("/"))?;
        ok(Command::new(tool).arg("mkcomposefs").args([&root, &image]))?;
        let mut child = Command::new(tool);
        child.args(["composefs-info", "dump"]).arg(&image);
        let dumped = child.stdout(File::create(dump)?).status()?;
        ensure!(dumped.success(), "composefs-info: {dumped}");
        std::fs::remove_file(&image)?;
        std::fs::remove_dir_all(&root).with_context(|| format!("remove {}", root.display()))
    })
}

/// A file of the cache, made where it is missing.
fn cached(name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let _lock = cache_lock("bench")?;
    let done = cache_dir().join("bench").join(name);
    if done.exists() {
        return Ok(done);
    }
    // With what a run left here that did not get to its end.
    let new = cache_dir().join("bench.new");
    if new.exists() {
        std::fs::remove_dir_all(&new)?;
    }
    std::fs::create_dir(&new)?;
    let file = new.join(name);
    make(&file).with_context(|| format!("make {}", done.display()))?;
    std::fs::create_dir_all(cache_dir().join("bench"))?;
    std::fs::rename(&file, &done)?;
    std::fs::remove_dir(&new)?;
    Ok(done)
}

/// Random numbers (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

const WORDS: [&str; 24] = [
    "lib", "share", "doc", "python3", "kernel", "man", "locale", "test", "core", "util", "net",
    "fs", "driver", "module", "include", "image", "config", "data", "cache", "plugin", "theme",
    "font", "init", "base",
];
const ENDINGS: [&str; 8] = ["", ".so", ".py", ".pyc", ".h", ".mo", ".gz", ".conf"];
const LABELS: u64 = 40;

fn write(path: &Path) -> Result<()> {
    let mut random = Random(1);
    let mut out = BufWriter::new(File::create(path)?);
    let common = |random: &mut Random| {
        let owner = if random.below(20) == 0 {
            100 + random.below(100)
        } else {
            0
        };
        let time = 1_600_000_000 + random.below(100_000) * 1000;
        let nsec = if random.below(4) == 0 {
            0
        } else {
            random.below(1_000_000_000)
        };
        format!("1 {owner} {owner} 0 {time}.{nsec}")
    };
    let label = |random: &mut Random| {
        let number = random.below(LABELS).min(random.below(LABELS));
        format!(r"security.selinux=system_u:object_r:type{number}_t:s0\x00")
    };
    let root = label(&mut random);
    writeln!(out, "/ 4096 40755 {} - - - {root}", common(&mut random))?;
    let mut lines = 1;
    // Directories whose content is not written yet.
    let mut open = VecDeque::from([String::new()]);
    while lines < ENTRIES {
        let directory = open.pop_front().context("no directory to go on with")?;
        let mut last_file: Option<String> = None;
        // Mostly a dozen names, sometimes thousands.
        let mut names = match random.below(100) {
            0 => 500 + random.below(3000),
            1..=20 => 20 + random.below(80),
            _ => 1 + random.below(16),
        };
        // There is always a directory to go on with.
        if open.len() < 8 {
            names += 8;
        }
        for number in 0..names.min(ENTRIES - lines) {
            let word = WORDS[random.below(WORDS.len() as u64) as usize];
            let common = common(&mut random);
            let label = label(&mut random);
            let name = format!("{directory}/{word}-{number}");
            match random.below(100) {
                kind if kind < 10 || open.len() < 8 => {
                    writeln!(out, "{name} 4096 40755 {common} - - - {label}")?;
                    open.push_back(name);
                }
                10..=18 => {
                    let target = format!("../{word}/{word}.so.{number}");
                    let size = target.len();
                    writeln!(out, "{name} {size} 120777 {common} {target} - - {label}")?;
                }
                19..=23 => {
                    let size = random.below(64);
                    let content = "x".repeat(size as usize);
                    let content = if size == 0 { "-" } else { &content };
                    writeln!(out, "{name} {size} 100644 {common} - {content} - {label}")?;
                }
                24 if last_file.is_some() => {
                    let target = last_file.take().unwrap_or_default();
                    writeln!(out, "{name} 0 @100644 1 0 0 0 0.0 {target} - -")?;
                }
                _ => {
                    let ending = ENDINGS[random.below(ENDINGS.len() as u64) as usize];
                    let name = format!("{name}{ending}");
                    let bits = 6 + random.below(16);
                    let size = 64 + random.below(1 << bits);
                    let (high, low) = (random.next(), random.next());
                    let digest = format!("{high:016x}{low:016x}{low:016x}{high:016x}");
                    let (first, rest) = digest.split_at(2);
                    writeln!(
                        out,
                        "{name} {size} 100644 {common} {first}/{rest} - {digest} {label}"
                    )?;
                    last_file = Some(name);
                }
            }
            lines += 1;
        }
    }
    Ok(out.flush()?)
}
