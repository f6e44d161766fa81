//! `cargo xtask`: the demo, the tests, and what they need on a fresh Debian 12.
//!
//! Everything that mounts, loops or runs containers happens in namespaces that end with the command
//! (see [`isolate`]); what is installed comes from the distribution's packages (see [`setup`]).
#![forbid(unsafe_code)]

mod bench;
mod demo;
mod isolate;
mod scratch;
mod setup;
mod steps;
mod test;
mod vm;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::process::ExitCode;

/// Development commands of composefs-store; all need root.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Play the main job on a real image, with the installed podman.
    Demo {
        /// An image to pull; without it, a Debian is made.
        image: Option<String>,
    },
    /// Measure against the peers and write the result to docs/benchmarks.md.
    Bench {
        #[command(subcommand)]
        subject: bench::Subject,
    },
    /// Install the packages, root directories and peers that the tests need.
    Setup,
    /// Run formatting, lints, unit tests and the end-to-end tests.
    Test {
        /// Only the end-to-end tests whose names contain this.
        #[arg(long)]
        filter: Option<String>,
    },
    /// Run the tests that need fs-verity or systemd, in a virtual machine.
    Vm {
        /// Only the tests whose names contain this.
        #[arg(long)]
        filter: Option<String>,
    },
    /// Runs a program and tells what it took.
    #[command(name = bench::STAGE, hide = true)]
    BenchStage {
        #[arg(trailing_var_arg = true, required = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// The imports that are measured, in their namespaces.
    #[command(name = bench::IMPORT_STAGE, hide = true)]
    BenchImportStage { rounds: usize },
    /// The collections and checks that are measured, in their namespaces.
    #[command(name = bench::GC_STAGE, hide = true)]
    BenchGcStage,
    /// The containers that are measured, in their namespaces.
    #[command(name = bench::RUN_STAGE, hide = true)]
    BenchRunStage { rounds: usize },
    /// The demo, in its namespaces.
    #[command(name = demo::STAGE, hide = true)]
    DemoStage { image: Option<String> },
    /// The virtual machine, in its namespaces.
    #[command(name = vm::STAGE, hide = true)]
    VmStage { filter: Option<String> },
    /// First process of the namespaces: prepare them, run the command, reap.
    #[command(name = isolate::FIRST_PROCESS, hide = true)]
    FirstProcess {
        #[arg(trailing_var_arg = true, required = true)]
        command: Vec<OsString>,
    },
}

fn main() -> Result<ExitCode> {
    match Arguments::parse().command {
        Command::Demo { image } => demo::run(image.as_deref()),
        Command::DemoStage { image } => demo::stage(image.as_deref()),
        Command::Bench { subject } => bench::run(&subject),
        Command::BenchStage { command } => bench::stage(&command),
        Command::BenchImportStage { rounds } => bench::import_stage(rounds),
        Command::BenchGcStage => bench::gc_stage(),
        Command::BenchRunStage { rounds } => bench::run_stage(rounds),
        Command::Setup => setup::for_tests().map(|()| ExitCode::SUCCESS),
        Command::Test { filter } => test::run(filter.as_deref()),
        Command::Vm { filter } => vm::run(filter.as_deref()),
        Command::VmStage { filter } => vm::stage(filter.as_deref()),
        Command::FirstProcess { command } => isolate::first_process(&command),
    }
}
