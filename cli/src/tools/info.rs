//! The words of `composefs-info`.

use std::ffi::OsString;
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use composefs_tools::info::{self, BaseDirectory, Filter, ImageBytes, InfoError, Objects};

/// Show what is in composefs images.
#[derive(Debug, Parser)]
#[command(name = "composefs-info", version, infer_long_args = true)]
pub(super) struct Info {
    /// Where missing-objects looks for objects
    #[arg(long, value_name = "PATH", overrides_with = "basedir")]
    basedir: Option<PathBuf>,
    /// Only this name in the root of the image; may be given several times
    #[arg(long, value_name = "NAME")]
    filter: Vec<OsString>,
    /// The question
    #[arg(value_enum)]
    command: Question,
    /// Images, or any files for measure-file
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Question {
    /// The names, with the objects of files and the targets of symlinks
    Ls,
    /// A dumpfile, as mkcomposefs --from-file reads it
    Dump,
    /// The objects that the images need
    Objects,
    /// Those of them that --basedir has not
    MissingObjects,
    /// The fs-verity digest of each file
    MeasureFile,
}

pub(super) fn run(args: Info) -> anyhow::Result<()> {
    let filter = Filter::new(args.filter.into_iter().map(OsString::into_vec))?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    if args.command == Question::MeasureFile {
        for file in &args.files {
            writeln!(out, "{}", info::measure(file)?)?;
            out.flush()?;
        }
        return Ok(());
    }
    let base = args
        .basedir
        .as_deref()
        .map(BaseDirectory::open)
        .transpose()?;
    let mut objects = Objects::default();
    for file in &args.files {
        let image = ImageBytes::read(file)?;
        match args.command {
            Question::Ls => info::list(&image, &filter, &mut out).map_err(plain)?,
            Question::Dump => info::dump(&image, &filter, &mut out).map_err(plain)?,
            _ => objects.add(&image, &filter)?,
        }
    }
    let objects = match (args.command, base) {
        (Question::MissingObjects, Some(base)) => objects.without_those_in(&base)?,
        _ => objects,
    };
    objects.print(&mut out).map_err(plain)?;
    out.flush()?;
    Ok(())
}

/// A broken pipe as such, so that it ends the tool quietly.
fn plain(error: InfoError) -> anyhow::Error {
    match error {
        InfoError::Output(error) => error.into(),
        other => other.into(),
    }
}
