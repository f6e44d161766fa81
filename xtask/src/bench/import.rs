//! Imports from podman's storage, against `cfsctl oci pull --local-fetch auto`.
//!
//! Everything is on one XFS with reflinks, in namespaces of its own, because `cfsctl` knows podman's
//! storage at its usual path only. A round is every case once for every program; what a case needs is
//! made before it, unmeasured.

use super::measure::{ROUNDS, median, run_once};
use super::report::Section;
use crate::isolate;
use crate::scratch::Scratch;
use crate::setup;
use crate::steps::{build, ok};
use anyhow::{Context, Result};
use integration::fixture::noise;
use integration::oci::{self, Encoding, Layer};
use integration::tar::{Dialect, Member, archive};
use integration::{Filesystem, Kind, Peers};
use serde_json::json;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// The hidden subcommand that runs in the namespaces.
pub(crate) const STAGE: &str = "__bench-import";

/// Builds, and measures in new namespaces.
pub(super) fn run(rounds: Option<usize>) -> Result<ExitCode> {
    setup::for_bench()?;
    let release = ["build", "--quiet", "--release", "--package"];
    let ours = build(
        &[&release[..], &["composefs-store"]].concat(),
        "composefs-store",
    )?;
    let floor = build(
        &[&release[..], &["importer", "--example", "floor"]].concat(),
        "floor",
    )?;
    let scratch = Scratch::new()?;
    let bin = scratch.path().join("bin");
    std::fs::create_dir(&bin)?;
    std::fs::copy(ours, bin.join("composefs-store"))?;
    std::fs::copy(floor, bin.join("floor"))?;
    let rounds = rounds.unwrap_or(ROUNDS).to_string();
    let stage: [OsString; 3] = [std::env::current_exe()?.into(), STAGE.into(), rounds.into()];
    isolate::run(scratch, &stage)
}

/// What is measured, in the order of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    /// Into an empty repository.
    New,
    /// Likewise, the source being trusted.
    Trusted,
    /// With every object there and no name.
    ObjectsPresent,
    /// Once more.
    Again,
    /// Read once, hash once, clone once.
    Floor,
    /// Read once, hash once.
    FloorOfHashing,
}

/// One measured program in one case.
struct Contender {
    name: &'static str,
    case: Case,
    theirs: bool,
    /// Of cfsctl's time, at most.
    aim: Option<&'static str>,
}

const CONTENDERS: [Contender; 9] = [
    contender("`cfsctl`, new", Case::New, true, None),
    contender("new", Case::New, false, Some("1/3")),
    contender("floor: read, hash, clone", Case::Floor, false, None),
    contender("new, `--trust-source`", Case::Trusted, false, Some("1/5")),
    contender(
        "`cfsctl`, all objects present",
        Case::ObjectsPresent,
        true,
        None,
    ),
    contender(
        "all objects present",
        Case::ObjectsPresent,
        false,
        Some("1/8"),
    ),
    contender("floor: read, hash", Case::FloorOfHashing, false, None),
    contender("`cfsctl`, again", Case::Again, true, None),
    contender("again", Case::Again, false, Some("50 ms")),
];

const fn contender(
    name: &'static str,
    case: Case,
    theirs: bool,
    aim: Option<&'static str>,
) -> Contender {
    Contender {
        name,
        case,
        theirs,
        aim,
    }
}

/// The order in which a round runs them: each repository goes from empty to complete.
const ORDER: [usize; 9] = [0, 4, 7, 3, 1, 5, 8, 2, 6];

/// Measures, in the namespaces that [`run`] made.
pub(crate) fn stage(rounds: usize) -> Result<ExitCode> {
    let peers = Peers::from_env()?;
    let disk = Filesystem::new(&peers, Kind::Xfs, 12 << 10)?;
    let containers = disk.path().join("containers");
    std::fs::create_dir(&containers)?;
    ok(Command::new("mount")
        .arg("--bind")
        .args([containers.as_path(), Path::new("/var/lib/containers")]))?;
    let bench = Bench {
        ours: peers.composefs_store()?,
        theirs: peers.cfsctl()?,
        floor: peers.scratch().join("bin/floor"),
        disk: disk.path().to_owned(),
    };
    let mut section = Section::with_rounds("Imports", "cargo xtask bench import", rounds)?;
    section.paragraph(
        "From podman's storage into an insecure repository on the same XFS with reflinks, cache hot; \
         `cfsctl` is 0.9.4, `oci pull --local-fetch auto`, which does not compare diff IDs. Aims, of \
         cfsctl's time: new 1/3, new with `--trust-source` 1/5, all objects present 1/8; the same \
         image again 50 ms. \"All objects present\" is a repository whose `streams/` and `images/` \
         were emptied. The floor reads every file of the layers once on all processors, hashes it \
         once as fs-verity (SHA-512) and once with SHA-256, and clones it once, without names, tar \
         headers or images. With all objects present there still are the digest of each file and the \
         diff ID of each layer to be computed: where files are large, hashing alone takes more than 1/8 \
         of cfsctl's time, which computes no diff ID. System calls are of a run of their own, divided \
         by the files.",
    );
    for (name, files, layers) in [
        ("1 GB in 8,400 files, 6 layers", 8_400, large()),
        ("20,000 files of 0.1 to 4 kB, 1 layer", 20_000, small()),
    ] {
        bench.compare(&mut section, name, files, &layers, rounds)?;
    }
    println!("{section}");
    section.save()?;
    Ok(ExitCode::SUCCESS)
}

struct Bench {
    ours: PathBuf,
    theirs: PathBuf,
    floor: PathBuf,
    disk: PathBuf,
}

const IMAGE: &str = "localhost/bench:1";

impl Bench {
    fn compare(
        &self,
        section: &mut Section,
        name: &str,
        files: u64,
        layers: &[Layer],
        rounds: usize,
    ) -> Result<()> {
        self.load(layers)?;
        let mut costs = vec![Vec::new(); CONTENDERS.len()];
        for round in 0..=rounds {
            for number in ORDER {
                let contender = &CONTENDERS[number];
                self.prepare(contender)?;
                let cost = run_once(contender.name, &self.command(contender)?)?;
                if round > 0 {
                    costs[number].push(cost);
                }
            }
        }
        let mut calls = vec![0; CONTENDERS.len()];
        for number in ORDER {
            self.prepare(&CONTENDERS[number])?;
            calls[number] = self.calls(&self.command(&CONTENDERS[number])?)?;
        }
        let medians: Vec<_> = costs.iter().map(|costs| median(costs)).collect();
        section.head(&[
            name,
            "time",
            "user",
            "system",
            "peak memory",
            "system calls per file",
            "of cfsctl's time",
            "aim",
        ]);
        for (number, contender) in CONTENDERS.iter().enumerate() {
            let cost = &medians[number];
            let base = match contender.case {
                Case::New | Case::Trusted | Case::Floor => &medians[0],
                Case::ObjectsPresent | Case::FloorOfHashing => &medians[4],
                Case::Again => &medians[7],
            };
            section.row(&[
                contender.name.to_owned(),
                format!("{:.3} s", cost.wall.as_secs_f64()),
                format!("{:.3} s", cost.user.as_secs_f64()),
                format!("{:.3} s", cost.system.as_secs_f64()),
                format!("{:.1} MB", cost.peak as f64 / 1e6),
                format!("{:.1}", calls[number] as f64 / files as f64),
                format!("{:.3}", cost.wall.as_secs_f64() / base.wall.as_secs_f64()),
                contender.aim.unwrap_or_default().to_owned(),
            ]);
        }
        Ok(())
    }

    /// Puts an image of these layers into podman's storage, in place of the one before.
    fn load(&self, layers: &[Layer]) -> Result<()> {
        let layout = self.disk.join("layout");
        oci::write_layout(&layout, layers, &json!({}))?;
        ok(Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--quiet"])
            .arg(format!("oci:{}:latest", layout.display()))
            .arg(format!("containers-storage:{IMAGE}")))?;
        Ok(std::fs::remove_dir_all(layout)?)
    }

    fn repository(&self, contender: &Contender) -> PathBuf {
        self.disk
            .join(if contender.theirs { "theirs" } else { "ours" })
    }

    /// Makes what the case begins with.
    fn prepare(&self, contender: &Contender) -> Result<()> {
        let repository = self.repository(contender);
        match contender.case {
            Case::New | Case::Trusted => {
                remove(&repository)?;
                let mut init = if contender.theirs {
                    Command::new(&self.theirs)
                } else {
                    let mut command = Command::new(&self.ours);
                    command.arg("--repo").arg(&repository);
                    command
                };
                init.args(["init", "--insecure"]);
                if contender.theirs {
                    init.arg(&repository);
                }
                ok(init.stdout(Stdio::null()))?;
            }
            Case::ObjectsPresent => {
                for names in ["streams", "images"] {
                    remove(&repository.join(names))?;
                }
            }
            Case::Again => {}
            Case::Floor | Case::FloorOfHashing => remove(&self.disk.join("floor"))?,
        }
        ok(Command::new("sync").arg("-f").arg(&self.disk))
    }

    fn command(&self, contender: &Contender) -> Result<Vec<OsString>> {
        let repository = self.repository(contender);
        let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        Ok(match contender.case {
            Case::Floor | Case::FloorOfHashing => {
                let what = match contender.case {
                    Case::Floor => "clone",
                    _ => "hash",
                };
                let mut command = vec![self.floor.clone().into(), what.into()];
                command.push(self.disk.join("floor").into());
                for layer in std::fs::read_dir("/var/lib/containers/storage/overlay")? {
                    let files = layer?.path().join("diff");
                    if files.is_dir() {
                        command.push(files.into());
                    }
                }
                command
            }
            _ if contender.theirs => [
                vec![self.theirs.clone().into()],
                words(&["--insecure", "--repo"]),
                vec![repository.into()],
                words(&["oci", "pull", "--local-fetch", "auto"]),
                words(&[&format!("containers-storage:{IMAGE}")]),
            ]
            .concat(),
            case => {
                let mut command = [
                    vec![self.ours.clone().into(), "--repo".into(), repository.into()],
                    words(&["import", IMAGE]),
                ]
                .concat();
                if case == Case::Trusted {
                    command.push("--trust-source".into());
                }
                command
            }
        })
    }

    /// How many system calls a command makes, in all its threads.
    fn calls(&self, command: &[OsString]) -> Result<u64> {
        let summary = self.disk.join("calls");
        ok(Command::new("strace")
            .args(["--follow-forks", "--summary-only", "--output"])
            .arg(&summary)
            .arg("--")
            .args(command)
            .stdout(Stdio::null()))?;
        let text = std::fs::read_to_string(summary)?;
        text.lines()
            .rfind(|line| line.ends_with(" total"))
            .and_then(|line| line.split_whitespace().nth(3))
            .and_then(|calls| calls.parse().ok())
            .context("no total in strace's summary")
    }
}

pub(super) fn remove(directory: &Path) -> Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Layers whose files have these sizes.
fn layers(sizes: &[usize], cuts: &[usize]) -> Vec<Layer> {
    let mut layers = Vec::new();
    let mut number = 0;
    for cut in cuts {
        let mut members: Vec<_> = ["usr", "usr/lib"].map(Member::dir).into();
        members.extend((0..300).map(|dir| Member::dir(format!("usr/lib/{dir}"))));
        while number < *cut {
            let name = format!("usr/lib/{}/file-{number}", number % 300);
            members.push(Member::file(name, noise(number as u64, sizes[number])));
            number += 1;
        }
        layers.push(Layer {
            tar: archive(&members, Dialect::Pax),
            encoding: Encoding::Plain,
        });
    }
    layers
}

/// 8,400 files of 1 GB in all: half of them below 10 kB, and some of tens of megabytes, as in a system.
pub(super) fn large() -> Vec<Layer> {
    let sizes: Vec<_> = (0..8_400_u64)
        .map(|number| {
            let random = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            // 2^x for x from 6 to 21 evenly, and a hundred larger files.
            let exponent = 6.0 + 15.0 * (random as f64 / f64::from(1 << 24));
            let size = exponent.exp2() as usize;
            if number % 84 == 0 {
                size + 1_200_000
            } else {
                size / 2
            }
        })
        .collect();
    layers(&sizes, &[3_500, 5_500, 7_000, 7_900, 8_300, 8_400])
}

fn small() -> Vec<Layer> {
    let sizes: Vec<_> = (0..20_000)
        .map(|number| 100 + number * 31 % 3_900)
        .collect();
    layers(&sizes, &[20_000])
}
