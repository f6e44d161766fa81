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
    /// What of the store of published images is to go.
    pub unpublished: Vec<Unpublished>,
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
        self.unpublished.extend(other.unpublished);
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

/// Something in the store of published images that is to go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unpublished {
    /// What it is.
    pub kind: PublishedKind,
    /// Its ID.
    pub id: String,
    /// Why.
    pub reason: RemoveReason,
}

impl Unpublished {
    /// Whether it is a record of an image.
    pub fn is_image_record(&self) -> bool {
        self.kind == PublishedKind::ImageRecord
    }
}

/// What there is in the store of published images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PublishedKind {
    /// A layer.
    Layer,
    /// The nameless record of an image, kept for containers after the image was unpublished.
    ImageRecord,
}

/// The host whose repository is collected.
pub trait Host {
    /// What the caller knows now. Called again under the exclusive lock, so it must look again, and must
    /// not open the repository a second time.
    fn known(&mut self, repository: &Repository) -> Known;

    /// Takes away the image records among what is to go, and waits for whoever may have found them already:
    /// called under the shared lock, so that nobody has to wait for that. What is known afterwards must keep
    /// the layers of records that are left.
    fn withdraw(
        &mut self,
        repository: &Repository,
        unpublished: &[Unpublished],
    ) -> Result<(), HostError> {
        let _ = (repository, unpublished);
        Ok(())
    }

    /// Removes what is published: podman must not see it without its content, so this is called under the
    /// exclusive lock, before anything else is removed, and only if there is any. Returns what is gone, with
    /// what [`Self::withdraw`] has taken away. What turns out to be in use stays, and so does what cannot be
    /// removed without making others wait: what is known is asked for again afterwards, and must keep it.
    fn remove_published(
        &mut self,
        repository: &Repository,
        unpublished: &[Unpublished],
    ) -> Result<Vec<Unpublished>, HostError>;
}

/// A repository by itself.
impl Host for () {
    fn known(&mut self, _: &Repository) -> Known {
        Known::default()
    }

    fn remove_published(
        &mut self,
        _: &Repository,
        _: &[Unpublished],
    ) -> Result<Vec<Unpublished>, HostError> {
        Ok(Vec::new())
    }
}
