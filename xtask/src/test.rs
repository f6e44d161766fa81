//! `cargo xtask test`: everything that must hold before a change is done.

use crate::isolate;
use crate::scratch::Scratch;
use crate::setup;
use crate::steps::{Steps, build, cargo, ok};
use anyhow::{Context, Result};
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

/// Runs all tests, or only the end-to-end tests whose names contain `filter`.
pub(crate) fn run(filter: Option<&str>) -> Result<ExitCode> {
    let begin = Instant::now();
    let mut steps = Steps::default();
    if filter.is_none() {
        steps.run("format", || ok(cargo().args(["fmt", "--all", "--check"])))?;
    }
    steps.run("packages, root directories and peers", setup::for_tests)?;
    if filter.is_none() {
        steps.run("lints", || {
            ok(cargo()
                .args(["clippy", "--quiet", "--workspace", "--all-targets"])
                .args(["--", "--deny", "warnings"]))
        })?;
        steps.run("unit tests", || {
            ok(cargo().args(["test", "--quiet", "--workspace", "--exclude", "integration"]))?;
            ok(cargo().args(["test", "--quiet", "--package", "integration", "--lib"]))
        })?;
    }
    let scratch = Scratch::new()?;
    let suite = steps.run("build for the end-to-end tests", || {
        programs(scratch.path())
    })?;
    let mut command: Vec<OsString> = vec![suite.into()];
    command.extend(filter.map(OsString::from));
    let status = steps.run("end-to-end tests", || isolate::run(scratch, &command))?;
    steps.report();
    eprintln!("{:8.1} s  on the clock", begin.elapsed().as_secs_f64());
    Ok(status)
}

/// Builds the program with and without failpoints and the end-to-end tests; the programs are copied
/// into the scratch directory, which every machine sees.
fn programs(scratch: &Path) -> Result<std::path::PathBuf> {
    let bin = scratch.join("bin");
    std::fs::create_dir(&bin)?;
    for (name, features) in [
        ("composefs-store-failpoints", "failpoints"),
        ("composefs-store", ""),
    ] {
        let program = build(
            &[
                "build",
                "--quiet",
                "--package",
                "composefs-store",
                "--features",
                features,
            ],
            "composefs-store",
        )?;
        std::fs::copy(&program, bin.join(name))
            .with_context(|| format!("copy {}", program.display()))?;
    }
    build(
        &[
            "test",
            "--quiet",
            "--no-run",
            "--package",
            "integration",
            "--test",
            "suite",
        ],
        "suite",
    )
}
