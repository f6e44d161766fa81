//! `cargo xtask bench`: our programs and their peers side by side, into `docs/benchmarks.md`.
//!
//! What is compared runs in turns in one go, so that whatever else the machine does meanwhile hits
//! all of them, and the medians are kept. Only what was measured is written down.

mod gc;
mod image;
mod import;
mod input;
mod measure;
mod report;
mod run;

use crate::scratch::Scratch;
use crate::setup;
use anyhow::Result;
use clap::Subcommand;
use std::ffi::OsString;
use std::process::ExitCode;

pub(crate) use gc::{STAGE as GC_STAGE, stage as gc_stage};
pub(crate) use import::{STAGE as IMPORT_STAGE, stage as import_stage};
pub(crate) use measure::STAGE;
pub(crate) use run::{STAGE as RUN_STAGE, stage as run_stage};

/// What to measure.
#[derive(Subcommand)]
pub(crate) enum Subject {
    /// Images of dumpfiles, against the C tools and composefs-rs.
    Image,
    /// Imports from podman's storage, against cfsctl.
    Import {
        /// How often each program runs, if not 7 times.
        #[arg(long)]
        rounds: Option<usize>,
    },
    /// Collections and checks of repositories, against cfsctl.
    Gc,
    /// Containers from our store, against podman's own.
    Run {
        /// How often each case runs, if not 15 times.
        #[arg(long)]
        rounds: Option<usize>,
    },
}

/// Measures, prints the result and puts it into `docs/benchmarks.md`.
pub(crate) fn run(subject: &Subject) -> Result<ExitCode> {
    match subject {
        Subject::Image => {
            setup::for_tests()?;
            let scratch = Scratch::new()?;
            let section = image::measure(scratch.path())?;
            println!("{section}");
            section.save()?;
            Ok(ExitCode::SUCCESS)
        }
        Subject::Import { rounds } => import::run(*rounds),
        Subject::Gc => gc::run(),
        Subject::Run { rounds } => run::run(*rounds),
    }
}

/// Runs one program and prints what it took; see [`measure`].
pub(crate) fn stage(command: &[OsString]) -> Result<ExitCode> {
    measure::stage(command).map(|()| ExitCode::SUCCESS)
}
