//! Collections of garbage and checks of repositories, against `cfsctl gc` and `cfsctl fsck`.
//!
//! Everything is on one XFS with reflinks. Collections are of generated repositories (example `generate` of
//! `gc`), of which half is garbage; what a collection is going to change is a copy, made before it,
//! unmeasured. Checks are of an imported image, and change nothing.

use super::import::{large, remove};
use super::measure::{Cost, median, run_once};
use super::report::Section;
use crate::isolate;
use crate::scratch::Scratch;
use crate::setup;
use crate::steps::{build, ok};
use anyhow::{Result, ensure};
use integration::{Filesystem, Kind, Peers, oci};
use serde_json::json;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// The hidden subcommand that runs in the namespaces.
pub(crate) const STAGE: &str = "__bench-gc";

/// A generated repository and how often it is collected.
struct Size {
    objects: u64,
    images: u64,
    /// Of runs that change nothing, after one for the caches.
    dry_rounds: usize,
    /// Of runs that remove.
    rounds: usize,
}

/// A million files take a minute to copy.
const SIZES: [Size; 3] = [
    Size {
        objects: 10_000,
        images: 10,
        dry_rounds: 7,
        rounds: 5,
    },
    Size {
        objects: 100_000,
        images: 100,
        dry_rounds: 5,
        rounds: 3,
    },
    Size {
        objects: 1_000_000,
        images: 1_000,
        dry_rounds: 3,
        rounds: 1,
    },
];

/// How often each check runs, after once for the caches.
const CHECKS: usize = 5;

/// Builds, and measures in new namespaces.
pub(super) fn run() -> Result<ExitCode> {
    setup::for_tests()?;
    let release = ["build", "--quiet", "--release", "--package"];
    let programs = [
        ("composefs-store", vec!["composefs-store"]),
        ("generate", vec!["gc", "--example", "generate"]),
        ("floor", vec!["importer", "--example", "floor"]),
    ];
    let mut built = Vec::new();
    for (name, what) in programs {
        built.push((name, build(&[&release[..], &what].concat(), name)?));
    }
    let scratch = Scratch::new()?;
    let bin = scratch.path().join("bin");
    std::fs::create_dir(&bin)?;
    for (name, program) in built {
        std::fs::copy(program, bin.join(name))?;
    }
    let stage: [OsString; 2] = [std::env::current_exe()?.into(), STAGE.into()];
    isolate::run(scratch, &stage)
}

/// Measures, in the namespaces that [`run`] made.
pub(crate) fn stage() -> Result<ExitCode> {
    let peers = Peers::from_env()?;
    let disk = Filesystem::new(&peers, Kind::Xfs, 32 << 10)?;
    let bench = Bench {
        ours: peers.composefs_store()?,
        theirs: peers.cfsctl()?,
        bin: peers.scratch().join("bin"),
        disk: disk.path().to_owned(),
    };
    // The checks take a minute, the collections eight.
    let mut section = Section::without_rounds("Checks", "cargo xtask bench gc")?;
    bench.checks(&mut section)?;
    println!("{section}");
    section.save()?;
    let mut section = Section::without_rounds("Collections", "cargo xtask bench gc")?;
    bench.collections(&mut section)?;
    println!("{section}");
    section.save()?;
    Ok(ExitCode::SUCCESS)
}

struct Bench {
    ours: PathBuf,
    theirs: PathBuf,
    bin: PathBuf,
    disk: PathBuf,
}

impl Bench {
    fn collections(&self, section: &mut Section) -> Result<()> {
        section.paragraph(
            "Collections of insecure repositories on XFS, caches hot, against `cfsctl gc` 0.9.4. Each \
             image has a manifest, a config, one layer, one EROFS image and nearly 1,000 files of 81 \
             bytes; neighbours share a tenth of them, and half of the images have no tag. A dry run \
             changes nothing; each run that removes has a copy of its own (`cp -a --reflink`). Both left \
             the same number of objects each time. Aims: a third of cfsctl's time, time for each object \
             that does not grow with their number, 256 MiB for 1,000,000 objects and 1,000 images.",
        );
        for size in &SIZES {
            let base = self.disk.join("base");
            remove(&base)?;
            let [objects, images] = [size.objects, size.images].map(|n| n.to_string());
            ok(Command::new(self.bin.join("generate"))
                .arg(&base)
                .args([&objects, &images]))?;
            self.sync()?;
            let count = count_objects(&base)?;
            let dry = self.dry_runs(&base, size.dry_rounds)?;
            let real = self.runs(&base, size.rounds)?;
            section.head(&[
                &format!("{count} objects, {images} images"),
                "runs",
                "time",
                "user + system",
                "for each object",
                "peak memory",
                "of cfsctl's time",
                "aim",
            ]);
            let rows = [
                ("`cfsctl gc --dry-run`", size.dry_rounds, dry[0], dry[0], ""),
                ("`gc --dry-run`", size.dry_rounds, dry[1], dry[0], "1/3"),
                ("`cfsctl gc`", size.rounds, real[0], real[0], ""),
                ("`gc`", size.rounds, real[1], real[0], "1/3"),
            ];
            for (name, rounds, cost, base, aim) in rows {
                section.row(&[
                    name.to_owned(),
                    rounds.to_string(),
                    format!("{:.3} s", cost.wall.as_secs_f64()),
                    format!("{:.3} s", cost.cpu().as_secs_f64()),
                    format!("{:.1} µs", cost.wall.as_secs_f64() * 1e6 / count as f64),
                    format!("{:.1} MB", cost.peak as f64 / 1e6),
                    format!("{:.2}", cost.wall.as_secs_f64() / base.wall.as_secs_f64()),
                    aim.to_owned(),
                ]);
            }
            remove(&base)?;
        }
        Ok(())
    }

    /// Medians of cfsctl's and our dry runs.
    fn dry_runs(&self, base: &Path, rounds: usize) -> Result<[Cost; 2]> {
        let mut costs = [Vec::new(), Vec::new()];
        for round in 0..=rounds {
            for (costs, program) in costs.iter_mut().zip([&self.theirs, &self.ours]) {
                let cost = run_once("dry run", &command(program, base, &["gc", "--dry-run"]))?;
                if round > 0 {
                    costs.push(cost);
                }
            }
        }
        Ok(costs.map(|costs| median(&costs)))
    }

    /// Medians of cfsctl's and our runs.
    fn runs(&self, base: &Path, rounds: usize) -> Result<[Cost; 2]> {
        let copy = self.disk.join("copy");
        let mut costs = [Vec::new(), Vec::new()];
        for _ in 0..rounds {
            let mut left = Vec::new();
            for (costs, program) in costs.iter_mut().zip([&self.theirs, &self.ours]) {
                remove(&copy)?;
                ok(Command::new("cp")
                    .args(["-a", "--reflink=always"])
                    .args([base, &copy]))?;
                self.sync()?;
                costs.push(run_once("run", &command(program, &copy, &["gc"]))?);
                left.push(count_objects(&copy)?);
            }
            ensure!(
                left[0] == left[1] && left[0] < count_objects(base)?,
                "{left:?} objects are left"
            );
        }
        remove(&copy)?;
        Ok(costs.map(|costs| median(&costs)))
    }

    fn checks(&self, section: &mut Section) -> Result<()> {
        let layout = self.disk.join("layout");
        oci::write_layout(&layout, &large(), &json!({}))?;
        let repository = self.disk.join("image");
        let source = format!("oci:{}:latest", layout.display());
        for arguments in [
            &["init", "--insecure"][..],
            &["import", "--tag", "localhost/bench:1", &source],
        ] {
            let mut run = Command::new(&self.ours);
            run.arg("--repo").arg(&repository).args(arguments);
            ok(run.stdout(Stdio::null()))?;
        }
        remove(&layout)?;
        self.sync()?;

        let objects = repository.join("objects");
        let floor = |what: &str| -> Vec<OsString> {
            let floor = self.bin.join("floor").into();
            let scratch = self.disk.join("floor").into();
            vec![floor, what.into(), scratch, objects.clone().into()]
        };
        let commands = [
            command(&self.theirs, &repository, &["fsck"]),
            command(&self.ours, &repository, &["fsck", "--depth", "content"]),
            floor("verity"),
            command(&self.ours, &repository, &["fsck"]),
            floor("hash"),
        ];
        let mut costs = commands.each_ref().map(|_| Vec::new());
        for round in 0..=CHECKS {
            for (command, costs) in commands.iter().zip(&mut costs) {
                remove(&self.disk.join("floor"))?;
                let cost = run_once("check", command)?;
                if round > 0 {
                    costs.push(cost);
                }
            }
        }
        let [theirs, content, verity, full, both] = costs.map(|costs| median(&costs));
        section.paragraph(&format!(
            "Checks of an insecure repository with an image of 1 GB in 8,400 files and 6 layers, caches \
             hot, {CHECKS} times in turns after once for the caches, against `cfsctl fsck` 0.9.4, which \
             hashes every object and looks at names and references. So does `--depth content`, beside \
             decoding all streams; a whole `fsck` computes each layer's diff ID (SHA-256) and makes each \
             image again as well. The floors read every object once on all processors and hash it as \
             fs-verity (SHA-512), and with SHA-256 too. Aims: 2/3 of cfsctl's time, 1.25 times the floor.",
        ));
        section.head(&[
            "1 GB",
            "time",
            "user + system",
            "peak memory",
            "of cfsctl's time",
            "of the floor",
            "aim",
        ]);
        let aims = "0.67, 1.25";
        for (name, cost, floor, aim) in [
            ("`cfsctl fsck`", theirs, verity, ""),
            ("`fsck --depth content`", content, verity, aims),
            ("floor: read, fs-verity", verity, verity, ""),
            ("`fsck`", full, both, aims),
            ("floor: read, fs-verity, SHA-256", both, both, ""),
        ] {
            let wall = |cost: &Cost| cost.wall.as_secs_f64();
            section.row(&[
                name.to_owned(),
                format!("{:.3} s", wall(&cost)),
                format!("{:.3} s", cost.cpu().as_secs_f64()),
                format!("{:.1} MB", cost.peak as f64 / 1e6),
                format!("{:.2}", wall(&cost) / wall(&theirs)),
                format!("{:.2}", wall(&cost) / wall(&floor)),
                aim.to_owned(),
            ]);
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        ok(Command::new("sync").arg("-f").arg(&self.disk))
    }
}

/// Either program on a repository.
fn command(program: &Path, repository: &Path, arguments: &[&str]) -> Vec<OsString> {
    let mut command: Vec<OsString> = vec![program.into(), "--repo".into(), repository.into()];
    command.extend(arguments.iter().map(OsString::from));
    command
}

fn count_objects(repository: &Path) -> Result<u64> {
    let mut count = 0;
    for shard in std::fs::read_dir(repository.join("objects"))? {
        count += std::fs::read_dir(shard?.path())?.count() as u64;
    }
    Ok(count)
}
