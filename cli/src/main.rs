//! The `composefs-store` command: words, tables and progress around the libraries. No logic.
#![forbid(unsafe_code)]

mod args;
mod commands;
mod host;
mod interrupt;
mod output;
mod progress;
mod repair;
mod repo;
mod tools;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};
use tracing_subscriber::EnvFilter;

use crate::args::{Cli, Command};
use crate::commands::Context;
use crate::output::Style;
use crate::progress::{Channel, Ending};

/// What a command found, which decides the exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// All is well: 0.
    Done,
    /// The command did its work and found something wrong: 1.
    Findings,
}

fn main() -> ExitCode {
    if let Some(status) = tools::by_name(std::env::args_os()) {
        return status;
    }
    repository::sys::return_freed_memory();
    let matches = Cli::command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let channel = Channel::new(cli.global.progress);
    log_to_stderr(cli.global.verbose, &channel);
    let style = if cli.global.json {
        Style::Json
    } else {
        Style::Text
    };
    let sysroot = match &cli.command {
        Command::Pull(pull) if pull.bootc => Some(pull.sysroot.as_path()),
        _ => None,
    };
    let context = Context {
        repo: repo::choose(cli.global.repo, sysroot),
        style,
        channel,
    };
    // Before anything is told: this program may begin anew.
    let prepared = prepare(&cli.command);
    context
        .channel
        .begin(matches.subcommand_name().unwrap_or_default());
    let result = prepared.and_then(|()| run(&context, cli.command));
    let (ending, error) = match result {
        Ok(Outcome::Done) => (Ending::Done, None),
        Ok(Outcome::Findings) => (Ending::Findings, None),
        Err(error) if is_broken_pipe(&error) => (Ending::Done, None),
        Err(error) if interrupt::is_cause(&error) => (Ending::Interrupted, Some(error)),
        Err(error) => (Ending::Failed, Some(error)),
    };
    context
        .channel
        .end(ending, error.as_ref().map(sentence).as_deref());
    ExitCode::from(ending.status())
}

/// What a command needs before it begins.
fn prepare(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Import(args) => commands::import::prepare(args),
        Command::Pull(args) => commands::pull::prepare(args),
        _ => Ok(()),
    }
}

fn run(context: &Context, command: Command) -> anyhow::Result<Outcome> {
    match command {
        Command::Init(args) => commands::init::init(context, &args),
        Command::Import(args) => commands::import::import(context, &args),
        Command::Pull(args) => commands::pull::pull(context, &args),
        Command::Images => commands::images::images(context),
        Command::Inspect(args) => commands::inspect::inspect(context, &args),
        Command::Tag(args) => commands::images::tag(context, &args),
        Command::Untag(args) => commands::images::untag(context, &args),
        Command::Publish(args) => commands::publish::publish(context, &args),
        Command::Unpublish(args) => commands::publish::unpublish(context, &args),
        Command::PodmanStorePath => commands::publish::podman_store_path(context),
        Command::PodmanConf(args) => commands::doctor::podman_conf(context, &args),
        Command::Doctor(args) => commands::doctor::doctor(context, &args),
        Command::ServeMounts(args) => commands::mount::serve_mounts(context, &args),
        Command::Mount(args) => commands::mount::mount(context, &args),
        Command::Umount(args) => commands::mount::umount(context, &args),
        Command::Boot(args) => commands::boot::boot(context, &args),
        Command::UpgradeFormat(args) => commands::upgrade_format::upgrade_format(context, &args),
        Command::Df => commands::df::df(context),
        Command::Gc(args) => commands::gc::gc(context, &args),
        Command::Roots(args) => commands::gc::roots(context, &args),
        Command::Pin(args) => commands::keep::pin(context, &args),
        Command::Unpin(args) => commands::keep::unpin(context, &args),
        Command::Lease(command) => commands::keep::lease(context, &command),
        Command::Verify(args) => commands::verify::verify(context, &args),
        Command::Fsck(args) => commands::fsck::fsck(context, &args),
        Command::Completions(args) => commands::manual::completions(&args),
        Command::Man(args) => commands::manual::man(&args),
    }
}

/// Warnings by default, more with `-v`; `RUST_LOG` overrides both.
fn log_to_stderr(verbose: u8, channel: &Channel) {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .without_time()
        .with_target(false);
    if channel.is_json() {
        log.with_ansi(false).with_writer(|| progress::Log).init();
    } else {
        log.with_ansi(std::io::stderr().is_terminal())
            .with_writer(std::io::stderr)
            .init();
    }
}

/// An error with its causes, as far as they say more than the message above them: some errors of the
/// libraries quote their cause.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// The reader of our output went away, as `head` does.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_cause_that_the_message_quotes_is_said_once() {
        let quoted = anyhow::anyhow!("no such file").context("a: no such file");
        assert_eq!(sentence(&quoted), "a: no such file");
        let unquoted = anyhow::anyhow!("no such file").context("cannot open a");
        assert_eq!(sentence(&unquoted), "cannot open a: no such file");
    }
}
