//! The words of `mkcomposefs`.

use std::io::Write as _;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context as _, bail};
use clap::Parser;
use composefs_tools::mkcomposefs::{Destination, Digest, Source, Versions};
use composefs_tools::scan::{Devices, HardLinks, ScanOptions, Times, Xattrs};

/// Make a composefs image from a directory or a dumpfile.
///
/// IMAGE appears whole or not at all, unless it is something else than a regular file.
#[derive(Debug, Parser)]
#[command(
    name = "mkcomposefs",
    version,
    infer_long_args = true,
    args_override_self = true
)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag on the command line"
)]
pub(super) struct Mkcomposefs {
    /// Directory, or dumpfile with --from-file (`-`: standard input)
    source: PathBuf,
    /// File for the image (`-`: standard output)
    image: Option<PathBuf>,
    /// Store content files in this directory
    #[arg(long, value_name = "PATH")]
    digest_store: Option<PathBuf>,
    /// Make all mtimes zero
    #[arg(long)]
    use_epoch: bool,
    /// Don't store device nodes
    #[arg(long)]
    skip_devices: bool,
    /// Don't store file xattrs
    #[arg(long)]
    skip_xattrs: bool,
    /// Only store user.* xattrs
    #[arg(long)]
    user_xattrs: bool,
    /// Keep hard links as such; the C tool makes a file of each name
    #[arg(long)]
    hardlinks: bool,
    /// Print the fs-verity digest of the image
    #[arg(long)]
    print_digest: bool,
    /// Print the digest and write no image
    #[arg(long)]
    print_digest_only: bool,
    /// The source is a dumpfile, not a directory
    #[arg(long)]
    from_file: bool,
    /// The lowest format version to use: 0 or 1 [default: 0]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    min_version: Option<i64>,
    /// The highest format version to use: 0 or 1 [default: 1, or 0 with --min-version]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    max_version: Option<i64>,
    /// How many threads read files [default: one per processor]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

pub(super) fn run(args: &Mkcomposefs) -> anyhow::Result<()> {
    let destination = args.destination()?;
    destination.check()?;
    let versions = Versions::new(args.min_version, args.max_version)?;
    let digest = if args.print_digest || args.print_digest_only {
        Digest::Compute
    } else {
        Digest::Skip
    };
    let tree = args.source()?.read()?;
    let digest = destination.write(&tree, versions.format_for(&tree), digest)?;
    if let Some(digest) = digest {
        writeln!(std::io::stdout(), "{digest}")?;
    }
    // The process ends here: nobody needs the memory back piece by piece.
    std::mem::forget(tree);
    Ok(())
}

impl Mkcomposefs {
    fn destination(&self) -> anyhow::Result<Destination<'_>> {
        match (&self.image, self.print_digest_only) {
            (Some(_), true) => bail!("--print-digest-only writes no image: leave IMAGE out"),
            (None, true) => Ok(Destination::Nowhere),
            (None, false) => bail!("no IMAGE given"),
            (Some(image), false) if image == Path::new("-") => Ok(Destination::Stdout),
            (Some(image), false) => Ok(Destination::File(image)),
        }
    }

    fn source(&self) -> anyhow::Result<Source> {
        if self.from_file {
            self.warn_about_options_for_directories();
            return Ok(if self.source == Path::new("-") {
                Source::DumpOnStdin
            } else {
                Source::Dump(self.source.clone())
            });
        }
        let threads = match self.threads {
            Some(threads) => threads,
            None => thread::available_parallelism().context("counting processors")?,
        };
        Ok(Source::Directory {
            path: self.source.clone(),
            options: ScanOptions {
                times: if self.use_epoch {
                    Times::Epoch
                } else {
                    Times::Kept
                },
                devices: if self.skip_devices {
                    Devices::Skipped
                } else {
                    Devices::Kept
                },
                xattrs: match (self.skip_xattrs, self.user_xattrs) {
                    (true, true) => bail!("--skip-xattrs and --user-xattrs exclude each other"),
                    (true, false) => Xattrs::None,
                    (false, true) => Xattrs::User,
                    (false, false) => Xattrs::All,
                },
                hard_links: if self.hardlinks {
                    HardLinks::Tracked
                } else {
                    HardLinks::Separate
                },
                ..ScanOptions::new(threads)
            },
            digest_store: self.digest_store.clone(),
        })
    }

    /// The C tool takes them with a dumpfile too, and does nothing.
    fn warn_about_options_for_directories(&self) {
        let given = [
            ("--digest-store", self.digest_store.is_some()),
            ("--use-epoch", self.use_epoch),
            ("--skip-devices", self.skip_devices),
            ("--skip-xattrs", self.skip_xattrs),
            ("--user-xattrs", self.user_xattrs),
            ("--hardlinks", self.hardlinks),
        ];
        for (option, _) in given.into_iter().filter(|(_, given)| *given) {
            eprintln!("mkcomposefs: warning: {option} has no effect with --from-file");
        }
    }
}
