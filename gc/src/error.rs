//! The errors of a collection.

use std::io;
use std::path::{Path, PathBuf};

use crate::boot::PruneError;
use crate::host::HostError;

/// What can go wrong with a collection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The repository can't be read or changed.
    #[error(transparent)]
    Repository(#[from] repository::Error),
    /// Files of an interrupted deployment can't be removed.
    #[error(transparent)]
    Orphan(#[from] PruneError),
    /// A system call on state of our own failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, to be read after "cannot".
        action: &'static str,
        /// The file or directory concerned.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The caller can't remove published layers.
    #[error("cannot remove published layers that nobody uses")]
    Published(#[source] HostError),
}

impl Error {
    /// An [`Error::Io`], as a closure for `map_err`.
    pub(crate) fn io<E: Into<io::Error>>(
        action: &'static str,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::Io {
            action,
            path: path.as_ref().to_owned(),
            source: source.into(),
        }
    }
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
