//! `cargo xtask test`: everything that must hold before a change is done.

use crate::isolate;
use crate::scratch::Scratch;
use crate::setup;
use crate::steps::{Steps, build, cargo, ok};
use crate::vm;
use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Runs all tests, or only the end-to-end tests whose names contain `filter`.
pub(crate) fn run(filter: Option<&str>) -> Result<ExitCode> {
    let begin = Instant::now();
    let mut steps = Steps::default();
    if filter.is_none() {
        steps.run("format", || ok(cargo().args(["fmt", "--all", "--check"])))?;
    }
    steps.run("packages, root directories and peers", || {
        setup::for_tests()?;
        if filter.is_none() {
            setup::for_vm()?;
        }
        Ok(())
    })?;
    if filter.is_none() {
        steps.run("lints", || {
            lint(&["--all-targets"])?;
            lint(&END_TO_END)
        })?;
        steps.run("build for the unit tests", || {
            ok(cargo().args(["test", "--quiet", "--workspace", "--no-run"]))
        })?;
        steps.run("unit tests", || {
            ok(cargo().args(["test", "--quiet", "--workspace"]))
        })?;
    }
    let built = steps.run("build for the end-to-end tests", || programs(filter))?;
    let scratch = Scratch::new()?;
    let bin = scratch.path().join("bin");
    std::fs::create_dir(&bin)?;
    // Every machine sees the scratch directory, and no build changes the programs under the tests.
    for (name, program) in &built.programs {
        std::fs::copy(program, bin.join(name))
            .with_context(|| format!("copy {}", program.display()))?;
    }
    let mut command: Vec<OsString> = vec![built.suite.into()];
    command.extend(filter.map(OsString::from));
    // Side by side: the end-to-end tests wait for disks and containers now and then.
    let machine = built
        .machine
        .map(|programs| std::thread::spawn(move || vm::run_in(Scratch::new()?, &programs, None)));
    let status = steps.run("end-to-end tests", || isolate::run(scratch, &command));
    let machine = machine.map(|machine| {
        steps.run("virtual machine, beyond that", || {
            machine
                .join()
                .unwrap_or_else(|_| bail!("its thread panicked"))
        })
    });
    let status = worse(status?, machine.transpose()?);
    steps.report();
    eprintln!("{:8.1} s  on the clock", begin.elapsed().as_secs_f64());
    Ok(status)
}

/// The status of two stages together.
fn worse(first: ExitCode, second: Option<ExitCode>) -> ExitCode {
    match second {
        Some(second) if first == ExitCode::SUCCESS => second,
        _ => first,
    }
}

/// The targets that `--all-targets` leaves out, because nobody can run them by themselves.
const END_TO_END: [&str; 4] = ["--test", "suite", "--test", "guest"];

fn lint(targets: &[&str]) -> Result<()> {
    ok(cargo()
        .args(["clippy", "--quiet", "--workspace"])
        .args(targets)
        .args(["--", "--deny", "warnings"]))
}

/// What the end-to-end tests need from cargo.
struct Built {
    /// Names in the scratch directory, and where the programs are now.
    programs: Vec<(&'static str, PathBuf)>,
    suite: PathBuf,
    /// Those of the virtual machine, if it is to run.
    machine: Option<vm::Programs>,
}

/// Builds the program, the end-to-end tests, and, unless these are filtered, those of the virtual machine.
fn programs(filter: Option<&str>) -> Result<Built> {
    Ok(Built {
        programs: vec![("composefs-store", program()?)],
        suite: test_program("suite")?,
        machine: filter.is_none().then(vm::programs).transpose()?,
    })
}

/// Builds the program under test, with failpoints.
pub(crate) fn program() -> Result<PathBuf> {
    // It comes with the tests of its package, which have been built if the unit tests have.
    build_of_tests("words", "composefs-store")
}

/// Builds tests that nobody can run by themselves.
pub(crate) fn test_program(name: &str) -> Result<PathBuf> {
    build_of_tests(name, name)
}

/// Always of the whole workspace: with another choice of packages cargo chooses other features, and builds
/// everything anew.
fn build_of_tests(test: &str, target: &str) -> Result<PathBuf> {
    const TESTS: [&str; 5] = ["test", "--quiet", "--workspace", "--no-run", "--test"];
    build(&[TESTS.as_slice(), &[test]].concat(), target)
}
