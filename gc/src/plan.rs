//! The plan: what is kept and what goes, with a reason for each thing. Data; writes nothing.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use composefs_image::VerityDigest;
use repository::list::{Foreign, StagingOwner, StreamLink};
use repository::{Repository, Result, StreamName};
use serde::Serialize;

use crate::boot::Orphan;
use crate::graph::{Graph, Node, Unknown};
use crate::host::{Host, Known, MissingTag, UnusedLayer};
use crate::json;
use crate::mark::mark;
use crate::progress::{Phase, Progress};
use crate::roots::{self, Doubt, FoundRef, Problem, RefId, Root};

/// What is to become of everything in a repository.
///
/// Reasons refer to [`Plan::roots`] by index. Objects number in the hundred thousands; all else is short.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// What is kept for its own sake.
    pub roots: Vec<Root>,
    /// What makes it impossible to tell what is needed. If any of it may mean everything
    /// ([`Doubt::Everything`]), nothing is removed but abandoned staging directories.
    pub problems: Vec<Problem>,
    /// Objects that files of images and layers need and that don't exist. Nothing depends on them here;
    /// `fsck` says more.
    #[serde(serialize_with = "texts")]
    pub missing: Vec<VerityDigest>,
    /// Things that don't belong where they are and can't name anything: left alone.
    pub ignored: Vec<Ignored>,
    /// Published layers that no published image has and nobody uses.
    pub layers: Vec<UnusedLayer>,
    /// Tags that are made first.
    pub missing_tags: Vec<MissingTag>,
    /// Files of interrupted deployments, which go before anything in the repository does.
    pub orphans: Vec<Orphan>,
    /// The refs, tags among them.
    pub refs: Vec<RefItem>,
    /// The links in `streams/`.
    pub streams: Vec<Item<StreamName>>,
    /// The links in `images/`.
    #[serde(serialize_with = "image_items")]
    pub images: Vec<Item<VerityDigest>>,
    /// The objects.
    pub objects: Vec<ObjectItem>,
    /// The staging directories.
    pub staging: Vec<StagingItem>,
    /// What the caller knew.
    #[serde(skip)]
    known: Known,
}

/// Something that doesn't belong where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ignored {
    /// Its path, relative to the repository.
    #[serde(serialize_with = "json::path")]
    pub path: PathBuf,
    /// What is odd about it, in words.
    pub oddity: String,
}

/// A ref and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RefItem {
    /// Which.
    #[serde(rename = "ref")]
    pub id: RefId,
    /// The name of the stream or image that it points at.
    pub target: String,
    /// What becomes of it.
    #[serde(flatten)]
    pub decision: Decision,
}

/// A link and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Item<N> {
    /// Its name.
    pub name: N,
    /// The object it points at.
    #[serde(serialize_with = "json::text")]
    pub object: VerityDigest,
    /// What becomes of it.
    #[serde(flatten)]
    pub decision: Decision,
}

/// An object and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ObjectItem {
    /// Its digest.
    #[serde(serialize_with = "json::text")]
    pub digest: VerityDigest,
    /// Its size in bytes, looked up only if it is removed. What removing it frees may be less: its blocks
    /// may be shared with another file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// What becomes of it.
    #[serde(flatten)]
    pub decision: Decision,
}

/// A staging directory and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StagingItem {
    /// Its name.
    pub name: String,
    /// The bytes in its files.
    pub bytes: u64,
    /// What becomes of it.
    #[serde(flatten)]
    pub decision: Decision,
}

/// What becomes of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "decision", content = "reason", rename_all = "kebab-case")]
pub enum Decision {
    /// It stays.
    Keep(KeepReason),
    /// It goes.
    Remove(RemoveReason),
}

/// Why something stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeepReason {
    /// The root with this index needs it; others may too.
    Root(usize),
    /// Nothing is known to need it, but not everything could be read ([`Plan::problems`]).
    InDoubt,
    /// It is being written.
    InUse,
}

/// Why something goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RemoveReason {
    /// No root needs it.
    Unreferenced,
    /// It is of a published layer that no published image has and nobody uses.
    Unpublished,
    /// It is a tag of bootc's, and no deployment needs it.
    NotDeployed,
    /// It is a tag beyond the number that is to be kept.
    BeyondLast,
    /// It is a tag older than what is to be kept.
    TooOld,
    /// It is the staging directory of a process that is gone.
    Abandoned,
}

impl Decision {
    /// Whether it goes.
    pub fn is_removal(self) -> bool {
        matches!(self, Self::Remove(_))
    }
}

/// Finds out what is needed, and decides. Writes nothing.
///
/// Without the exclusive lock others may add to the repository meanwhile: the plan is good enough to
/// show, and [`crate::prepare`] makes it good enough to act on.
pub fn plan(repository: &Repository, host: &mut dyn Host, progress: &dyn Progress) -> Result<Plan> {
    let known = host.known(repository);
    plan_with(repository, known, progress)
}

pub(crate) fn plan_with(
    repository: &Repository,
    known: Known,
    progress: &dyn Progress,
) -> Result<Plan> {
    let streams = repository.streams()?;
    let images = repository.images()?;
    let odd = [streams.foreign, images.foreign].concat();
    let mut layers = known.unused_layers.clone();
    let mut missing_tags = known.missing_tags.clone();
    let mut found = roots::find(repository, odd, known.clone())?;

    let graph = Graph::new(repository, &streams.entries, &images.entries);
    let reached = follow(&graph, &mut found, progress);
    let in_doubt = found
        .problems
        .iter()
        .any(|problem| problem.doubt() == Doubt::Everything);
    if in_doubt {
        layers.clear();
    }
    missing_tags.retain(|missing| !found.refs.contains_key(&RefId::of_tag(&missing.tag)));
    let decide = Decide { reached, in_doubt };
    let streams = streams
        .entries
        .into_iter()
        .map(|StreamLink { name, object }| Item {
            decision: decide.link(&Node::Stream(name.clone()), &object),
            name,
            object,
        })
        .collect();
    let images = images
        .entries
        .into_iter()
        .map(|link| Item {
            decision: decide.link(&Node::Image(link.name), &link.object),
            name: link.name,
            object: link.object,
        })
        .collect();
    let (objects, missing) = objects(repository, &decide, &mut found.ignored, progress)?;
    Ok(Plan {
        refs: decide.refs(found.refs),
        roots: found.roots,
        problems: found.problems,
        missing,
        ignored: found
            .ignored
            .into_iter()
            .map(|foreign| Ignored {
                path: foreign.path,
                oddity: foreign.oddity.to_string(),
            })
            .collect(),
        layers,
        missing_tags,
        orphans: known.orphans.clone(),
        streams,
        images,
        objects,
        staging: staging(repository)?,
        known,
    })
}

impl Plan {
    /// Whether it is still what [`plan()`] would say, as far as names and what the caller knows can tell:
    /// objects never change, and those that came since are in no plan. `known` may be that of the time
    /// after refs and layers that the plan gives up are gone.
    pub(crate) fn holds(&self, repository: &Repository, known: &Known) -> Result<bool> {
        let streams = repository.streams()?;
        let images = repository.images()?;
        let odd = [streams.foreign, images.foreign].concat();
        let found = roots::find(repository, odd, known.clone())?;
        let kept = |items: BTreeMap<RefId, FoundRef>| -> Vec<(RefId, String)> {
            let kept = items.into_iter().filter(|(_, found)| found.fate.is_ok());
            kept.map(|(id, found)| (id, found.target)).collect()
        };
        let mine = self.refs.iter().filter(|item| !item.decision.is_removal());
        let mine = mine.map(|item| (item.id.clone(), item.target.clone()));
        Ok(known.roots == self.known.roots
            && known.problems == self.known.problems
            && known.missing_tags == self.known.missing_tags
            && known.orphans == self.known.orphans
            && kept(found.refs) == mine.collect::<Vec<_>>()
            && streams.entries.len() == self.streams.len()
            && images.entries.len() == self.images.len()
            && streams
                .entries
                .iter()
                .zip(&self.streams)
                .all(|(link, item)| link.name == item.name && link.object == item.object)
            && images
                .entries
                .iter()
                .zip(&self.images)
                .all(|(link, item)| link.name == item.name && link.object == item.object))
    }
}

/// Follows the roots; what can't be followed becomes a problem.
fn follow(
    graph: &Graph<'_>,
    found: &mut roots::Found,
    progress: &dyn Progress,
) -> HashMap<Node, usize> {
    progress.begin(Phase::Marking, None);
    let roots = &found.roots;
    let problems = &mut found.problems;
    mark(std::mem::take(&mut found.nodes), |node, index, needs| {
        let result = graph.references(node, needs);
        if !matches!(node, Node::Payload(_)) {
            progress.advance(1);
        }
        let (Err(unknown), Some(root)) = (result, roots.get(index)) else {
            return;
        };
        let owner = root.owner.clone();
        problems.push(match unknown {
            Unknown::NoLink(target) => Problem::Dangling { owner, target },
            Unknown::Object(object, error) => Problem::Unreadable {
                owner,
                object,
                error,
            },
        });
    })
}

/// The rule by which everything is decided.
struct Decide {
    reached: HashMap<Node, usize>,
    in_doubt: bool,
}

impl Decide {
    fn refs(&self, found: BTreeMap<RefId, FoundRef>) -> Vec<RefItem> {
        let item = |(id, found): (RefId, FoundRef)| RefItem {
            id,
            target: found.target,
            decision: match found.fate {
                Ok(root) => Decision::Keep(KeepReason::Root(root)),
                Err(_) if self.in_doubt => Decision::Keep(KeepReason::InDoubt),
                Err(reason) => Decision::Remove(reason),
            },
        };
        found.into_iter().map(item).collect()
    }

    /// A link stays if it is needed, or its object is.
    fn link(&self, node: &Node, object: &VerityDigest) -> Decision {
        match self.reached.get(node) {
            Some(root) => Decision::Keep(KeepReason::Root(*root)),
            None => self.object(object),
        }
    }

    fn object(&self, object: &VerityDigest) -> Decision {
        let root = [Node::Payload, Node::Object, Node::Container]
            .into_iter()
            .find_map(|node| self.reached.get(&node(*object)));
        match root {
            Some(root) => Decision::Keep(KeepReason::Root(*root)),
            None if self.in_doubt => Decision::Keep(KeepReason::InDoubt),
            None => Decision::Remove(RemoveReason::Unreferenced),
        }
    }
}

/// Decides on every object, and finds the needed ones that are missing.
fn objects(
    repository: &Repository,
    decide: &Decide,
    ignored: &mut Vec<Foreign>,
    progress: &dyn Progress,
) -> Result<(Vec<ObjectItem>, Vec<VerityDigest>)> {
    progress.begin(Phase::Listing, Some(256));
    let mut items = Vec::new();
    for shard in 0..=255 {
        let listing = repository.objects_in(shard)?;
        ignored.extend(listing.foreign);
        for digest in listing.entries {
            let decision = decide.object(&digest);
            let bytes = if decision.is_removal() {
                repository.object_size(&digest)?
            } else {
                None
            };
            items.push(ObjectItem {
                digest,
                bytes,
                decision,
            });
        }
        progress.advance(1);
    }
    // Shards and their entries are sorted, so all of it is.
    let exists = |object: &VerityDigest| {
        items
            .binary_search_by_key(object, |item| item.digest)
            .is_ok()
    };
    let mut missing: Vec<_> = decide
        .reached
        .keys()
        .filter_map(|node| match node {
            Node::Payload(object) if !exists(object) => Some(*object),
            _ => None,
        })
        .collect();
    missing.sort_unstable();
    Ok((items, missing))
}

fn staging(repository: &Repository) -> Result<Vec<StagingItem>> {
    let items = repository.staging()?.into_iter().map(|dir| StagingItem {
        name: dir.name,
        bytes: dir.bytes,
        decision: match dir.owner {
            StagingOwner::Alive => Decision::Keep(KeepReason::InUse),
            StagingOwner::Gone => Decision::Remove(RemoveReason::Abandoned),
        },
    });
    Ok(items.collect())
}

fn texts<S: serde::Serializer>(digests: &[VerityDigest], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(digests.iter().map(VerityDigest::to_hex))
}

fn image_items<S: serde::Serializer>(
    items: &[Item<VerityDigest>],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(items.iter().map(|item| Item {
        name: item.name.to_hex(),
        object: item.object,
        decision: item.decision,
    }))
}
