//! Containers from our store, in both layouts, against podman's own overlay store.
//!
//! One podman, three engines on one XFS with reflinks: its own storage, and our store in each layout. A
//! round is every case once for every engine.

mod files;
mod sharing;

use super::measure::{Cost, median, run_once};
use super::report::Section;
use crate::isolate;
use crate::scratch::Scratch;
use crate::setup;
use crate::steps::build;
use anyhow::{Context, Result};
use integration::fixture::noise;
use integration::store::Layout;
use integration::tar::Member;
use integration::{Engine, Filesystem, Fixture, Kind, Machine, Peers, Podman, Release, Store};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

/// The hidden subcommand that runs in the namespaces.
pub(crate) const STAGE: &str = "__bench-run";

/// How often each case runs, after once for the caches.
const ROUNDS: usize = 15;

/// Builds, and measures in new namespaces.
pub(super) fn run(rounds: Option<usize>) -> Result<ExitCode> {
    setup::for_bench()?;
    let ours = build(
        &[
            "build",
            "--quiet",
            "--release",
            "--package",
            "composefs-store",
        ],
        "composefs-store",
    )?;
    let scratch = Scratch::new()?;
    let bin = scratch.path().join("bin");
    std::fs::create_dir(&bin)?;
    std::fs::copy(ours, bin.join("composefs-store"))?;
    let rounds = rounds.unwrap_or(ROUNDS).to_string();
    let stage: [OsString; 3] = [std::env::current_exe()?.into(), STAGE.into(), rounds.into()];
    isolate::run(scratch, &stage)
}

/// Measures, in the namespaces that [`run`] made.
pub(crate) fn stage(rounds: usize) -> Result<ExitCode> {
    let peers = Peers::from_env()?;
    let bench = Bench::new(&peers, "main", 8 << 10)?;
    let version = bench.engines[0].podman.ok(&["--version"])?.text();
    let mut section = Section::with_rounds("Containers", "cargo xtask bench run", rounds)?;
    section.paragraph(&format!(
        "{version}, crun, without network; three engines side by side on one XFS: podman's own overlay store, \
         and our store as the only one, in each layout (`blob` with `mountopt=\"nodev,metacopy=on\"`, the \
         others with `nodev`). Ratios are of podman's own store."
    ));
    start_up(&bench, &mut section, rounds)?;
    files::measure(&bench, &mut section, rounds)?;
    publishing(&bench, &mut section, rounds)?;
    sharing::page_cache(&bench, &mut section)?;
    drop(bench);
    sharing::disk(&peers, &mut section)?;
    println!("{section}");
    section.save()?;
    Ok(ExitCode::SUCCESS)
}

/// An engine and where its images are.
struct Contender {
    name: &'static str,
    /// `None`: podman's own storage.
    layout: Option<Layout>,
    podman: Podman,
    store: Option<Store>,
}

/// Fields in the order in which they must be dropped.
struct Bench {
    /// podman's own storage first.
    engines: Vec<Contender>,
    disk: Filesystem,
}

impl Bench {
    fn new(peers: &Peers, name: &str, megabytes: u64) -> Result<Self> {
        let disk = Filesystem::new(peers, Kind::Xfs, megabytes)?;
        let machine = Machine::start(peers, Release::Sid)?;
        let contender = |title, layout: Option<Layout>| -> Result<Contender> {
            let word = layout.map_or("own", Layout::word);
            let dir = disk.path().join(format!("{name}-{word}"));
            let store = layout
                .map(|_| Store::init(&machine, &disk.path().join(format!("repository-{word}"))))
                .transpose()?;
            let engine = match &store {
                Some(store) => Engine::with_store(&store.podman_store()?),
                None => Engine::default(),
            };
            let engine = match layout {
                Some(Layout::Blob) => engine.metacopy(),
                _ => engine,
            };
            Ok(Contender {
                name: title,
                layout,
                podman: Podman::new(&machine, &dir, &engine)?,
                store,
            })
        };
        Ok(Self {
            engines: vec![
                contender("podman's own store", None)?,
                contender("ours, `blob`", Some(Layout::Blob))?,
                contender("ours, `mounted`", Some(Layout::Mounted))?,
            ],
            disk,
        })
    }

    /// Gives every engine an image.
    fn add(&self, name: &str, layers: Vec<Vec<Member>>) -> Result<String> {
        let layout = self.disk.path().join(format!("layout-{name}"));
        Fixture::with_layers(&layout, layers)?;
        let image = format!("localhost/{name}:latest");
        for engine in &self.engines {
            engine.add(&layout, &image)?;
        }
        std::fs::remove_dir_all(layout)?;
        Ok(image)
    }
}

impl Contender {
    fn add(&self, layout: &Path, image: &str) -> Result<()> {
        let Some(store) = &self.store else {
            return self.podman.load(layout, image);
        };
        let from = format!("oci:{}", layout.display());
        store.ok(&["import", "--tag", image, &from])?;
        self.publish(store, image)
    }

    fn publish(&self, store: &Store, image: &str) -> Result<()> {
        integration::ok(&mut self.publishing(store, image)?)?;
        Ok(())
    }

    fn publishing(&self, store: &Store, image: &str) -> Result<Command> {
        let conf = self.podman.storage_conf().display().to_string();
        let layout = self.layout.map_or("", Layout::word);
        store.command(&[
            "publish",
            "--storage-conf",
            &conf,
            "--layout",
            layout,
            image,
        ])
    }

    fn podman(&self, arguments: &[&str]) -> Command {
        let mut command = self.podman.command("podman");
        command.args(arguments);
        command
    }

    /// Starts a container that does nothing and gives its first process.
    fn start(&self, image: &str, name: &str) -> Result<Container<'_>> {
        let run = ["run", "--detach", "--pull", "never", "--name", name, image];
        self.podman.ok(&[&run[..], &["sleep", "6000"]].concat())?;
        let pid = ["inspect", "--format", "{{.State.Pid}}", name];
        let pid = self.podman.ok(&pid)?.text();
        Ok(Container {
            podman: &self.podman,
            name: name.to_owned(),
            pid: pid.parse().context("the process of a container")?,
        })
    }
}

/// A running container.
struct Container<'a> {
    podman: &'a Podman,
    name: String,
    pid: u32,
}

impl Container<'_> {
    /// A command with the container's files.
    fn command(&self, script: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args([
                "--target",
                &self.pid.to_string(),
                "--mount",
                "--root",
                "--wd=/",
            ])
            .args(["--", "/usr/bin/sh", "-euc", script])
            .env("PATH", "/usr/bin");
        command
    }

    /// A path in the container, from outside.
    fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root/{path}", self.pid))
    }

    fn remove(self) -> Result<()> {
        self.podman
            .ok(&["rm", "--force", "--time", "0", &self.name])?;
        Ok(())
    }
}

/// What a command takes, with its environment and nothing else.
fn measured(name: &str, command: &Command) -> Result<Cost> {
    let mut words: Vec<OsString> = ["/usr/bin/env", "--ignore-environment"]
        .map(Into::into)
        .into();
    for (key, value) in command.get_envs() {
        let mut word = key.to_owned();
        word.push("=");
        word.push(value.unwrap_or_default());
        words.push(word);
    }
    words.push(command.get_program().into());
    words.extend(command.get_args().map(Into::into));
    run_once(name, &words)
}

/// Costs of every engine, of every round but the first.
struct Rounds(Vec<Vec<Cost>>);

impl Rounds {
    /// Calls `one` for every engine in every round.
    fn of(
        bench: &Bench,
        rounds: usize,
        mut one: impl FnMut(&Contender) -> Result<Cost>,
    ) -> Result<Self> {
        let mut costs = vec![Vec::new(); bench.engines.len()];
        for round in 0..=rounds {
            for (engine, costs) in bench.engines.iter().zip(&mut costs) {
                let cost = one(engine)?;
                if round > 0 {
                    costs.push(cost);
                }
            }
        }
        Ok(Self(costs))
    }

    fn medians(&self) -> Vec<Duration> {
        self.0.iter().map(|costs| median(costs).wall).collect()
    }
}

/// The cells of a row: every engine's time, and its ratio to the first one's.
fn cells(what: &str, times: &[Duration], aim: &str) -> Vec<String> {
    let base = times.first().map_or(0.0, Duration::as_secs_f64);
    let mut cells = vec![what.to_owned()];
    for (number, time) in times.iter().map(Duration::as_secs_f64).enumerate() {
        cells.push(match number {
            0 => format!("{:.1} ms", time * 1e3),
            _ => format!("{:.1} ms ({:.2})", time * 1e3, time / base),
        });
    }
    cells.push(aim.to_owned());
    cells
}

fn head(section: &mut Section, bench: &Bench, title: &str) {
    let mut columns = vec![title];
    columns.extend(bench.engines.iter().map(|engine| engine.name));
    columns.push("aim");
    section.head(&columns);
}

/// `podman run --rm IMAGE true` for images of 1, 20 and 100 layers.
fn start_up(bench: &Bench, section: &mut Section, rounds: usize) -> Result<()> {
    head(section, bench, "`podman run --rm IMAGE true`");
    for (layers, aim) in [(1, "at most 1.05"), (20, ""), (100, "below 1")] {
        // The first layer is the fixture's own.
        let layer = |n: u64| {
            let file = |f| Member::file(format!("files/{n}-{f}"), noise(100 * n + f, 4000));
            (0..30).map(file).collect()
        };
        let image = bench.add(&format!("layers{layers}"), (1..layers).map(layer).collect())?;
        let run = ["run", "--rm", "--pull", "never", &image, "true"];
        let times = Rounds::of(bench, rounds, |engine| {
            measured(engine.name, &engine.podman(&run))
        })?;
        section.row(&cells(&format!("{layers} layers"), &times.medians(), aim));
    }
    section.paragraph(
        "In the layout `blob` podman attaches a loop device and mounts the image for each container; the images \
         of `mounted` are mounted already.",
    );
    Ok(())
}

/// Publishing an image whose layers are in the repository.
fn publishing(bench: &Bench, section: &mut Section, rounds: usize) -> Result<()> {
    const FILES: u64 = 30_000;
    section.head(&[
        "`publish`, 30,000 files, layers in the repository",
        "time",
        "user",
        "aim",
    ]);
    for layers in [1, 3] {
        let layer = |n: u64| -> Vec<Member> {
            (n * FILES / layers..(n + 1) * FILES / layers)
                .map(|f| {
                    let name = format!("usr/lib/{}/file-{f}", f / 100);
                    Member::file(name, noise(f, 100 + (f * 31 % 3_900) as usize))
                })
                .collect()
        };
        let image = bench.add(
            &format!("published{layers}"),
            (0..layers).map(layer).collect(),
        )?;
        for engine in &bench.engines {
            let Some(store) = &engine.store else { continue };
            let conf = engine.podman.storage_conf().display().to_string();
            let mut costs = Vec::new();
            for round in 0..=rounds {
                store.ok(&["unpublish", "--storage-conf", &conf, &image])?;
                let cost = measured(engine.name, &engine.publishing(store, &image)?)?;
                if round > 0 {
                    costs.push(cost);
                }
            }
            let cost = median(&costs);
            // The fixture's own layer is small, and published with other images.
            section.row(&[
                format!("{}, {layers} large layers", engine.name),
                format!("{:.1} ms", cost.wall.as_secs_f64() * 1e3),
                format!("{:.1} ms", cost.user.as_secs_f64() * 1e3),
                "below 150 ms".to_owned(),
            ]);
        }
    }
    Ok(())
}
