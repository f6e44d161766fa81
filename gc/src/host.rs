//! What the caller knows and does: the part of a collection that isn't in the repository's own format.

use repository::{Repository, StreamName, Tag};
use serde::Serialize;

use crate::boot::Orphan;
use crate::plan::RemoveReason;
use crate::roots::{Problem, RefId, Root};

/// An error of the caller's.
pub type HostError = Box<dyn std::error::Error + Send + Sync>;

/// What keeps things in a repository, as far as the caller knows. Plain values; what can't be read
/// becomes a [`Problem`], never a missing root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// Roots beside the refs that nothing explains. A root that needs a ref explains it.
    pub roots: Vec<Root>,
    /// What can't be read.
    pub problems: Vec<Problem>,
    /// Refs that are to go, unless a root needs them.
    pub given_up: Vec<GivenUp>,
    /// Tags that are to be made.
    pub missing_tags: Vec<MissingTag>,
    /// Published layers that are to go.
    pub unused_layers: Vec<UnusedLayer>,
    /// Files of interrupted deployments that are to go.
    pub orphans: Vec<Orphan>,
}

impl Known {
    /// Adds what another source knows.
    pub fn extend(&mut self, other: Self) {
        self.roots.extend(other.roots);
        self.problems.extend(other.problems);
        self.given_up.extend(other.given_up);
        self.missing_tags.extend(other.missing_tags);
        self.unused_layers.extend(other.unused_layers);
        self.orphans.extend(other.orphans);
    }
}

/// A ref that is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenUp {
    /// Which.
    pub id: RefId,
    /// Why.
    pub reason: RemoveReason,
}

/// A tag that is to be made before anything is removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MissingTag {
    /// The tag.
    pub tag: Tag,
    /// The manifest that it is to point at.
    pub target: StreamName,
    /// Why, in words.
    pub reason: String,
}

/// A published layer that is to go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnusedLayer {
    /// Its ID.
    pub layer: String,
    /// Why.
    pub reason: RemoveReason,
}

/// The host whose repository is collected.
pub trait Host {
    /// What the caller knows now. Called again under the exclusive lock, so it must look again, and must
    /// not open the repository a second time.
    fn known(&mut self, repository: &Repository) -> Known;

    /// Removes published layers, which podman must not see without their content: called under the
    /// exclusive lock, before anything else is removed, and only if there are any. Returns the IDs of those
    /// that are gone. A layer that turns out to be in use stays, and so does one that cannot be removed
    /// without making others wait: what is known is asked for again afterwards, and must keep it.
    fn remove_layers(
        &mut self,
        repository: &Repository,
        layers: &[UnusedLayer],
    ) -> Result<Vec<String>, HostError>;
}

/// A repository by itself.
impl Host for () {
    fn known(&mut self, _: &Repository) -> Known {
        Known::default()
    }

    fn remove_layers(
        &mut self,
        _: &Repository,
        _: &[UnusedLayer],
    ) -> Result<Vec<String>, HostError> {
        Ok(Vec::new())
    }
}
