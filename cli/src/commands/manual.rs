//! `completions` and `man`: the words of the command line for shells and for `man`.

use std::io::{self, Write as _};

use anyhow::Context as _;
use clap::CommandFactory as _;

use crate::Outcome;
use crate::args::{Cli, Completions, Man};

pub(crate) fn completions(args: &Completions) -> anyhow::Result<Outcome> {
    // The generator does not pass on that its output went away, so it writes to memory.
    let mut text = Vec::new();
    let mut command = Cli::command();
    let name = command.get_name().to_owned();
    clap_complete::generate(args.shell, &mut command, name, &mut text);
    io::stdout().write_all(&text)?;
    Ok(Outcome::Done)
}

pub(crate) fn man(args: &Man) -> anyhow::Result<Outcome> {
    clap_mangen::generate_to(Cli::command(), &args.dir)
        .with_context(|| format!("write manual pages to {}", args.dir.display()))?;
    Ok(Outcome::Done)
}
