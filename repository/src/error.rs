//! The errors of a repository. Each carries the path, digest or name it is about.

use std::io;
use std::path::{Path, PathBuf};

use composefs_image::{Algorithm, Format, VerityDigest, WriteError};
use rustix::io::Errno;

use crate::meta::{Formats, MetaError, Security};
use crate::names::NameError;
use crate::splitstream::SplitstreamError;

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with a repository.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, to be read after "cannot".
        action: &'static str,
        /// The file or directory concerned.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The flag of [`crate::Repository::batch_until`] was set.
    #[error("interrupted")]
    Interrupted,
    /// The directory holds neither `meta.json` nor objects.
    #[error("{} is not a composefs repository; create one with `init`", .0.display())]
    NotARepository(PathBuf),
    /// `meta.json` can't be used.
    #[error("{}: {source}", path.display())]
    Meta {
        /// The path of `meta.json`.
        path: PathBuf,
        /// What is wrong with it.
        source: MetaError,
    },
    /// `meta.json` has fs-verity, but not with the repository's algorithm or content.
    #[error("{}: its fs-verity digest is not {} over its content", path.display(), algorithm.name())]
    MetaVerity {
        /// The path of `meta.json`.
        path: PathBuf,
        /// The repository's algorithm.
        algorithm: Algorithm,
    },
    /// `meta.json` names a feature that forbids unknowing writers to write.
    #[error("{} may only be read: it has the feature {feature:?}, which this version doesn't know", path.display())]
    ReadOnlyFeature {
        /// The repository.
        path: PathBuf,
        /// The feature's name.
        feature: String,
    },
    /// `init` without [`Security::Insecure`] where fs-verity isn't to be had.
    #[error(
        "the filesystem of {} has no fs-verity; use one that has it (ext4 made or tuned with `-O verity`, btrfs, f2fs), \
         or `--insecure` for a repository whose files the kernel doesn't verify", .0.display()
    )]
    NoVerity(PathBuf),
    /// `init` of a repository that exists with other settings.
    #[error("{} is a repository already, with other settings: it has {existing}, and {wanted} was asked for", path.display())]
    SettingsDiffer {
        /// The repository.
        path: PathBuf,
        /// What it has.
        existing: Settings,
        /// What `init` was asked for.
        wanted: Settings,
    },
    /// `init` where there is a repository without `meta.json`.
    #[error("{} holds a repository of an old format (objects but no meta.json); it can be used as it is", .0.display())]
    OldFormat(PathBuf),
    /// Somebody else uses the repository ([`crate::Wait::Fail`]).
    #[error("{} is in use by another process", .0.display())]
    Busy(PathBuf),
    /// The repository has no such object.
    #[error("object {0} is missing")]
    NoObject(VerityDigest),
    /// A digest of another algorithm than the repository's.
    #[error("{digest} is a {} digest, and the repository's are {}", digest.algorithm().name(), algorithm.name())]
    WrongAlgorithm {
        /// The digest.
        digest: VerityDigest,
        /// The repository's algorithm.
        algorithm: Algorithm,
    },
    /// An object that exists isn't what its name says.
    #[error(
        "object {digest} is damaged: {damage}; remove its file from objects/ and import the image again"
    )]
    DamagedObject {
        /// The object's name.
        digest: VerityDigest,
        /// What is wrong with it.
        damage: Damage,
    },
    /// An object is larger than the caller can use.
    #[error("object {digest} has {size} bytes, more than the {limit} that are sensible here")]
    ObjectTooLarge {
        /// The object.
        digest: VerityDigest,
        /// Its size in bytes.
        size: u64,
        /// The caller's limit in bytes.
        limit: u64,
    },
    /// What was stored under a digest has another one: the source changed while it was read.
    #[error(
        "the content to store as object {expected} turned out to be {actual}: it changed while it was read"
    )]
    ContentChanged {
        /// The digest it had before.
        expected: VerityDigest,
        /// What it is now.
        actual: Actual,
    },
    /// [`crate::CopyPolicy::Refuse`] and the filesystem can't clone.
    #[error("object {digest} can't be cloned ({source}), and copying is refused")]
    CopyRefused {
        /// The object.
        digest: VerityDigest,
        /// Why cloning isn't possible.
        source: io::Error,
    },
    /// A name that isn't allowed.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A link was to be made to something that doesn't exist.
    #[error("{name} can't point at {target}: it doesn't exist")]
    Dangling {
        /// The path of the link, relative to the repository.
        name: PathBuf,
        /// What it should point at.
        target: String,
    },
    /// A link in `streams/` or `images/` whose target isn't an object.
    #[error("{}: its target {} is not an object", path.display(), target.display())]
    MalformedLink {
        /// The link.
        path: PathBuf,
        /// Its target.
        target: PathBuf,
    },
    /// No image can be written of a tree.
    #[error("cannot write an image in format {format}: {source}")]
    WriteImage {
        /// The format.
        format: Format,
        /// What is wrong with the tree, or with the disk.
        source: WriteError,
    },
    /// An object that should be a splitstream can't be read as one.
    #[error("splitstream {digest}: {source}")]
    Splitstream {
        /// The object.
        digest: VerityDigest,
        /// What is wrong with it.
        source: SplitstreamError,
    },
}

impl Error {
    /// An [`Error::Io`], as a closure for `map_err`.
    pub(crate) fn io<E: Into<io::Error>>(
        action: &'static str,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(E) -> Self {
        move |source| {
            let path = path.as_ref().to_owned();
            Self::Io {
                action,
                source: with_remedy(&path, source.into()),
                path,
            }
        }
    }
}

/// If a filesystem is full: which one, and of what. The system says the same for space and for inodes.
fn with_remedy(path: &Path, error: io::Error) -> io::Error {
    let full = error.raw_os_error() == Some(Errno::NOSPC.raw_os_error());
    let mut places = path.ancestors().filter(|dir| full && dir.is_absolute());
    let place = places.find_map(|dir| Some((dir, rustix::fs::statvfs(dir).ok()?)));
    let Some((dir, stat)) = place else {
        return error;
    };
    let (lacking, other) = if stat.f_files > 0 && stat.f_favail == 0 {
        ("inodes", "one with more inodes")
    } else {
        ("space", "a larger one")
    };
    let dir = dir.display();
    io::Error::new(
        io::ErrorKind::StorageFull,
        format!(
            "{error}: the filesystem of {dir} has no {lacking} left; `composefs-store gc` removes what no \
             tag needs, and else the repository needs {other}"
        ),
    )
}

/// What is wrong with an object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// It isn't a regular file.
    #[error("it is not a regular file")]
    NotAFile,
    /// Its size isn't that of the content.
    #[error("it has {actual} bytes instead of {expected}")]
    Size {
        /// The size of what it should hold.
        expected: u64,
        /// The size it has.
        actual: u64,
    },
    /// The kernel measures another digest.
    #[error("its fs-verity digest is {0}")]
    Measured(VerityDigest),
    /// Its content has another digest.
    #[error("its content has the digest {0}")]
    Content(VerityDigest),
    /// fs-verity isn't enabled on it, in a secure repository.
    #[error("fs-verity is not enabled on it")]
    NoVerity,
}

/// What was found in place of expected content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Actual {
    /// Content of another size, in bytes.
    #[error("{0} bytes long")]
    Size(u64),
    /// Content with another digest.
    #[error("{0}")]
    Digest(VerityDigest),
}

/// The settings that a repository keeps for life, for [`Error::SettingsDiffer`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The digest algorithm.
    pub algorithm: Algorithm,
    /// The image formats.
    pub formats: Formats,
    /// Whether fs-verity is required.
    pub security: Security,
}

impl std::fmt::Display for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}, format {}, {}",
            self.algorithm.name(),
            self.formats,
            self.security
        )
    }
}
