//! The words of `mount.composefs`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser;
use clap::builder::PossibleValuesParser;
use composefs_tools::mount::MountOptions;

/// Mount a composefs image, also as a helper: mount -t composefs -o basedir=OBJECTS IMAGE DIR
#[derive(Debug, Parser)]
#[command(
    name = "mount.composefs",
    version,
    args_override_self = true,
    after_help = "\
Mount options:
  basedir=DIR[:DIR...]   Directories with the content of files (required)
  digest=DIGEST          fs-verity digest that IMAGE must have; implies verity
  verity                 Every file must have a digest, and the content that has it
  tryverity              The same where the kernel can
  ro, rw                 Read-only or writable (which needs upperdir)
  upperdir=DIR           Takes the changes
  workdir=DIR            Empty directory on the same filesystem, needed with upperdir
  idmap=FILE             User namespace whose maps shift owners, as /proc/PID/ns/user"
)]
pub(super) struct Mount {
    /// Type of the filesystem
    #[arg(short = 't', value_name = "TYPE", value_parser = PossibleValuesParser::new(["composefs"]))]
    _filesystem: Option<String>,
    /// Mount options, separated by commas; a backslash before a comma makes it part of a value
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Option<OsString>,
    /// The image
    image: PathBuf,
    /// The directory to mount it on
    target: PathBuf,
}

pub(super) fn run(args: &Mount) -> anyhow::Result<()> {
    let options = MountOptions::parse(args.options.as_deref())?;
    Ok(options.mount(&args.image, &args.target)?)
}
