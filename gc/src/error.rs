//! The errors of a collection.

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
    /// The caller can't remove published layers.
    #[error("cannot remove published layers that nobody uses")]
    Layers(#[source] HostError),
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
