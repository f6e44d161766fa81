//! What `mkcomposefs` does: a tree from a directory or a dumpfile, written as an image.
//!
//! The bytes are those of the C tool 1.0.8. Formats are V0 and V1, digests SHA-256; V2 and SHA-512
//! belong to repositories.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, IsTerminal as _, Write};
use std::path::{Path, PathBuf};

use composefs_image::dumpfile::{self, DumpError};
use composefs_image::{
    Algorithm, Dialect, Format, InodeId, Kind, Tree, VerityDigest, VerityHasher, WriteError,
    WriteOptions, write_image,
};
use thiserror::Error;

use crate::output::{ImageFile, OutputError};
use crate::scan::{ScanError, ScanOptions, scan};
use crate::store::{DigestStore, StoreError};

/// Why no image was made.
#[derive(Debug, Error)]
pub enum MakeError {
    /// A format version that does not exist, or that only repositories use.
    #[error("format version {0}: mkcomposefs writes versions 0 and 1")]
    Version(i64),
    /// The source directory could not be read.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// The digest store could not be filled.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The dumpfile could not be opened.
    #[error("{}: {error}", .path.display())]
    OpenDump {
        /// The dumpfile.
        path: PathBuf,
        /// The system's answer.
        error: io::Error,
    },
    /// The dumpfile could not be understood.
    #[error("{source_name}: {error}")]
    Dump {
        /// The dumpfile, or what stands for standard input.
        source_name: String,
        /// What is wrong.
        error: DumpError,
    },
    /// The image would be shown on a terminal.
    #[error("standard output is a terminal: an image there helps nobody")]
    Terminal,
    /// The image file could not be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The tree does not fit the format, or the output failed.
    #[error("writing the image: {0}")]
    Write(#[from] WriteError),
}

/// Where the tree comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A directory.
    Directory {
        /// The directory.
        path: PathBuf,
        /// What to take.
        options: ScanOptions,
        /// A [`DigestStore`] that gets the content of external files.
        digest_store: Option<PathBuf>,
    },
    /// A dumpfile.
    Dump(PathBuf),
    /// A dumpfile on standard input.
    DumpOnStdin,
}

impl Source {
    /// Reads the tree. With a digest store: when this returns, all objects of the tree are in it and
    /// durable, so that an image written afterwards never names what is not there.
    pub fn read(&self) -> Result<Tree, MakeError> {
        match self {
            Self::Directory {
                path,
                options,
                digest_store: None,
            } => Ok(scan(path, options, None)?),
            Self::Directory {
                path,
                options,
                digest_store: Some(store),
            } => {
                let store = DigestStore::open(store)?;
                let staging = store.stage()?;
                let tree = scan(path, options, Some(&staging))?;
                staging.commit()?;
                Ok(tree)
            }
            Self::Dump(path) => {
                let file = File::open(path).map_err(|error| MakeError::OpenDump {
                    path: path.clone(),
                    error,
                })?;
                read_dump(file, || path.display().to_string())
            }
            Self::DumpOnStdin => read_dump(io::stdin().lock(), || "standard input".to_owned()),
        }
    }
}

fn read_dump(input: impl io::Read, name: impl FnOnce() -> String) -> Result<Tree, MakeError> {
    let input = BufReader::with_capacity(BUFFER, input);
    dumpfile::read_dump(input, Dialect::C).map_err(|error| MakeError::Dump {
        source_name: name(),
        error,
    })
}

/// Which format versions an image may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    min: Format,
    max: Format,
}

impl Default for Versions {
    /// V0, or V1 where the tree needs it.
    fn default() -> Self {
        Self {
            min: Format::V0,
            max: Format::V1,
        }
    }
}

impl Versions {
    /// From the numbers that were asked for. Naming either makes the other 0, and a maximum below the
    /// minimum is raised to it: so "minimum 0" alone means exactly 0, and "minimum 1" exactly 1.
    pub fn new(min: Option<i64>, max: Option<i64>) -> Result<Self, MakeError> {
        if (min, max) == (None, None) {
            return Ok(Self::default());
        }
        let format = |number: Option<i64>| match number {
            None | Some(0) => Ok(Format::V0),
            Some(1) => Ok(Format::V1),
            Some(other) => Err(MakeError::Version(other)),
        };
        let min = format(min)?;
        Ok(Self {
            min,
            max: format(max)?.max(min),
        })
    }

    /// The format for a tree: the lowest that can hold it. Whiteouts (character devices 0:0) need V1.
    pub fn format_for(self, tree: &Tree) -> Format {
        let whiteout = |id: InodeId| tree.kind(id) == Kind::CharDevice(0);
        if self.min < self.max && tree.walk().any(|visit| whiteout(visit.id)) {
            self.max
        } else {
            self.min
        }
    }
}

/// Where the image goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination<'a> {
    /// A file, see [`ImageFile`].
    File(&'a Path),
    /// Standard output.
    Stdout,
    /// Nowhere: only the digest is wanted.
    Nowhere,
}

/// Whether the digest of the image is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Digest {
    /// Yes.
    Compute,
    /// No.
    Skip,
}

const BUFFER: usize = 128 * 1024;

impl Destination<'_> {
    /// Refuses what would fail after the source was read: an image on a terminal.
    pub fn check(self) -> Result<(), MakeError> {
        match self {
            Self::Stdout if io::stdout().is_terminal() => Err(MakeError::Terminal),
            _ => Ok(()),
        }
    }

    /// Writes the image of a tree; the digest comes back if it was wanted.
    pub fn write(
        self,
        tree: &Tree,
        format: Format,
        digest: Digest,
    ) -> Result<Option<VerityDigest>, MakeError> {
        self.check()?;
        match self {
            Self::Nowhere => write_to(io::sink(), tree, format, digest).map(|(digest, _)| digest),
            Self::Stdout => {
                write_to(io::stdout().lock(), tree, format, digest).map(|(digest, _)| digest)
            }
            Self::File(path) => {
                let (digest, file) = write_to(ImageFile::create(path)?, tree, format, digest)?;
                file.finish()?;
                Ok(digest)
            }
        }
    }
}

fn write_to<W: Write>(
    out: W,
    tree: &Tree,
    format: Format,
    digest: Digest,
) -> Result<(Option<VerityDigest>, W), MakeError> {
    let options = WriteOptions {
        format,
        dialect: Dialect::C,
    };
    let mut out = BufWriter::with_capacity(BUFFER, out);
    let digest = match digest {
        Digest::Skip => {
            write_image(tree, &options, &mut out)?;
            None
        }
        Digest::Compute => {
            let mut tee = Tee {
                out: &mut out,
                hasher: VerityHasher::new(Algorithm::Sha256),
            };
            write_image(tree, &options, &mut tee)?;
            Some(tee.hasher.finish())
        }
    };
    let mut out = out
        .into_inner()
        .map_err(|error| WriteError::Io(error.into_error()))?;
    // Standard output has a buffer of its own, and nobody hears of an error at the end of the process.
    out.flush().map_err(WriteError::Io)?;
    Ok((digest, out))
}

/// Writes and hashes.
struct Tee<W> {
    out: W,
    hasher: VerityHasher,
}

impl<W: Write> Write for Tee<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.out.write(bytes)?;
        self.hasher.update(bytes.get(..length).unwrap_or_default());
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use composefs_image::Metadata;

    use super::*;

    fn formats(min: Option<i64>, max: Option<i64>) -> (Format, Format) {
        let versions = Versions::new(min, max).unwrap();
        let plain = Tree::new(Metadata::default());
        let mut whiteout = Tree::new(Metadata::default());
        let id = whiteout.add(Metadata::default(), Kind::CharDevice(0));
        whiteout.link(whiteout.root(), b"gone", id).unwrap();
        (versions.format_for(&plain), versions.format_for(&whiteout))
    }

    #[test]
    fn the_version_is_raised_for_whiteouts_only_and_never_above_the_maximum() {
        use Format::{V0, V1};
        assert_eq!(formats(None, None), (V0, V1));
        assert_eq!(formats(Some(0), None), (V0, V0));
        assert_eq!(formats(None, Some(0)), (V0, V0));
        assert_eq!(formats(None, Some(1)), (V0, V1));
        assert_eq!(formats(Some(0), Some(1)), (V0, V1));
        assert_eq!(formats(Some(1), None), (V1, V1));
        assert_eq!(formats(Some(1), Some(0)), (V1, V1));
    }

    #[test]
    fn versions_that_only_repositories_use_are_refused() {
        for (min, max) in [
            (Some(2), None),
            (None, Some(2)),
            (Some(-1), None),
            (Some(0), Some(i64::MAX)),
        ] {
            assert!(matches!(
                Versions::new(min, max),
                Err(MakeError::Version(_))
            ));
        }
    }
}
