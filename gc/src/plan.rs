//! The plan: what is kept and what goes, with a reason for each thing. Data; writes nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;

use composefs_image::VerityDigest;
use repository::list::{StagingDir, StagingOwner, StreamLink};
use repository::{Repository, StreamName};
use serde::Serialize;

use crate::boot::Orphan;
use crate::digests::Digests;
use crate::error::Result;
use crate::graph::{Graph, Marks, Node, Target, Unknown};
use crate::host::{Host, Known, MissingTag, Unpublished};
use crate::json;
use crate::leases;
use crate::mark::{Rank, mark};
use crate::objects;
use crate::objects::Objects;
use crate::progress::{Phase, Progress};
use crate::roots::{self, Doubt, FoundRef, Problem, RefId, Root};

/// What is to become of everything in a repository.
///
/// Reasons refer to [`Plan::roots`] by index. Objects number in the millions; all else is short.
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
    /// What goes from the store of published images.
    pub unpublished: Vec<Unpublished>,
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
    pub objects: Objects,
    /// The staging directories.
    pub staging: Vec<StagingItem>,
    /// The leases.
    pub leases: Vec<LeaseItem>,
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

/// A lease and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeaseItem {
    /// Its name.
    pub name: String,
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
    /// It is the record of an unpublished image, and no container needs it any more.
    NoContainers,
    /// It is a tag of bootc's, and no deployment needs it.
    NotDeployed,
    /// It is a tag beyond the number that is to be kept.
    BeyondLast,
    /// It is a tag older than what is to be kept.
    TooOld,
    /// It keeps what refers to an image or index that is not in the repository.
    SubjectGone,
    /// It is the staging directory or lease of a process that is gone.
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
    let mut unpublished = known.unpublished.clone();
    let mut missing_tags = known.missing_tags.clone();
    let staging = repository.staging()?;
    let leases = leases::leases(repository)?;
    let mut found = roots::find(repository, odd, known.clone(), &staging, &leases)?;

    let digests = objects::list(repository, jobs(), progress, &mut found.ignored)?;
    let graph = Graph::new(repository, &streams.entries, &images.entries, &digests);
    let marks = Marks::new(streams.entries.len(), images.entries.len(), digests.len());
    follow(&graph, &marks, &mut found, progress);
    let missing = graph.into_missing();
    let in_doubt = found
        .problems
        .iter()
        .any(|problem| problem.doubt() == Doubt::Everything);
    if in_doubt {
        unpublished.clear();
    }
    missing_tags.retain(|missing| !found.refs.contains_key(&RefId::of_tag(&missing.tag)));
    let decide = Decide {
        marks,
        digests: &digests,
        in_doubt,
    };
    let streams = streams
        .entries
        .into_iter()
        .enumerate()
        .map(|(index, StreamLink { name, object })| Item {
            decision: decide.link(Node::Stream(index), &object),
            name,
            object,
        })
        .collect();
    let images = images
        .entries
        .into_iter()
        .enumerate()
        .map(|(index, link)| Item {
            decision: decide.link(Node::Image(index), &link.object),
            name: link.name,
            object: link.object,
        })
        .collect();
    let refs = decide.refs(found.refs);
    let Decide { marks, .. } = decide;
    let root_of = |index| marks.root(Node::Payload(index));
    let objects = Objects::decided(repository, digests, in_doubt, root_of, jobs())?;
    Ok(Plan {
        refs,
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
        unpublished,
        missing_tags,
        orphans: known.orphans.clone(),
        streams,
        images,
        objects,
        staging: staging_items(staging),
        leases: lease_items(leases),
        known,
    })
}

/// How much is kept although nothing is known to need it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InDoubt {
    /// Refs, tags among them.
    pub refs: u64,
    /// Links in `streams/`.
    pub streams: u64,
    /// Links in `images/`.
    pub images: u64,
    /// Objects.
    pub objects: u64,
}

impl Plan {
    /// What is kept only because not everything could be read.
    pub fn in_doubt(&self) -> InDoubt {
        fn count(decisions: impl Iterator<Item = Decision>) -> u64 {
            let in_doubt = decisions.filter(|it| *it == Decision::Keep(KeepReason::InDoubt));
            in_doubt.count() as u64
        }
        InDoubt {
            refs: count(self.refs.iter().map(|item| item.decision)),
            streams: count(self.streams.iter().map(|item| item.decision)),
            images: count(self.images.iter().map(|item| item.decision)),
            objects: count(self.objects.iter().map(|item| item.decision)),
        }
    }

    /// The roots that stand for what a problem may mean, as far as there are any of its own: those that are
    /// named by the file that cannot be read.
    pub fn roots_of(&self, problem: &Problem) -> impl Iterator<Item = &Root> {
        let name = match problem {
            Problem::Source { path, .. } => Some(path.display().to_string()),
            _ => None,
        };
        let roots = self.roots.iter();
        roots.filter(move |root| Some(&root.owner.name) == name.as_ref())
    }

    /// Whether it is still what [`plan()`] would say, as far as names and what the caller knows can tell:
    /// objects never change, and those that came since are in no plan. `known` may be that of the time
    /// after refs and layers that the plan gives up are gone.
    pub(crate) fn holds(&self, repository: &Repository, known: &Known) -> Result<bool> {
        let streams = repository.streams()?;
        let images = repository.images()?;
        let odd = [streams.foreign, images.foreign].concat();
        let staging = repository.staging()?;
        let leases = leases::leases(repository)?;
        let found = roots::find(repository, odd, known.clone(), &staging, &leases)?;
        let kept = |items: BTreeMap<RefId, FoundRef>| -> Vec<(RefId, String)> {
            let kept = items.into_iter().filter(|(_, found)| found.fate.is_ok());
            kept.map(|(id, found)| (id, found.target)).collect()
        };
        let mine = self.refs.iter().filter(|item| !item.decision.is_removal());
        let mine = mine.map(|item| (item.id.clone(), item.target.clone()));
        Ok(found.roots == self.roots
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
fn follow(graph: &Graph<'_>, marks: &Marks, found: &mut roots::Found, progress: &dyn Progress) {
    progress.begin(Phase::Marking, None);
    let roots = &found.roots;
    let problems = Mutex::new(Vec::new());
    let problem = |unknown: Unknown, root: usize| {
        let Some(root) = roots.get(root) else { return };
        let owner = root.owner.clone();
        let problem = match unknown {
            Unknown::NoLink(target) => Problem::Dangling { owner, target },
            Unknown::Object(object, error) => Problem::Unreadable {
                owner,
                object,
                error,
            },
        };
        problems
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .push(problem);
    };
    let mut nodes = Vec::new();
    for (target, root) in std::mem::take(&mut found.targets) {
        let rank = Rank {
            // Who needs something in particular comes before who may need anything.
            distance: if target == Target::Links { 1 << 31 } else { 0 },
            root: u32::try_from(root).unwrap_or(u32::MAX),
        };
        match graph.resolve(&target) {
            Ok(resolved) => nodes.extend(resolved.into_iter().map(|node| (node, rank))),
            Err(unknown) => problem(unknown, root),
        }
    }
    // All of the first are followed to their ends before the last begin.
    nodes.sort_by_key(|(_, rank)| *rank);
    let last = nodes.partition_point(|(_, rank)| rank.distance == 0);
    for nodes in [nodes.split_off(last), nodes].into_iter().rev() {
        mark(nodes, marks, jobs(), |node, rank, needs| {
            graph.references(node, needs, &mut |unknown| {
                problem(unknown, rank.root as usize);
            });
            progress.advance(1);
        });
    }
    let mut problems = problems
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    // The threads' order is not to be seen.
    problems.sort_by_cached_key(ToString::to_string);
    problems.dedup();
    found.problems.extend(problems);
}

/// As many threads as the machine runs at once.
pub(crate) fn jobs() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The rule by which everything is decided.
struct Decide<'a> {
    marks: Marks,
    digests: &'a Digests,
    in_doubt: bool,
}

impl Decide<'_> {
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
    fn link(&self, node: Node, object: &VerityDigest) -> Decision {
        let of_object = || self.marks.root(Node::Payload(self.digests.find(object)?));
        decide(self.marks.root(node).or_else(of_object), self.in_doubt)
    }
}

/// What becomes of something that this root needs.
pub(crate) fn decide(root: Option<usize>, in_doubt: bool) -> Decision {
    match root {
        Some(root) => Decision::Keep(KeepReason::Root(root)),
        None if in_doubt => Decision::Keep(KeepReason::InDoubt),
        None => Decision::Remove(RemoveReason::Unreferenced),
    }
}

fn staging_items(found: Vec<StagingDir>) -> Vec<StagingItem> {
    let item = |dir: StagingDir| StagingItem {
        name: dir.name,
        bytes: dir.bytes,
        decision: match dir.owner {
            StagingOwner::Alive => Decision::Keep(KeepReason::InUse),
            StagingOwner::Gone => Decision::Remove(RemoveReason::Abandoned),
        },
    };
    found.into_iter().map(item).collect()
}

fn lease_items(found: Vec<leases::Found>) -> Vec<LeaseItem> {
    let item = |lease: leases::Found| LeaseItem {
        name: lease.name,
        decision: match lease.holder {
            Some(_) => Decision::Keep(KeepReason::InUse),
            None => Decision::Remove(RemoveReason::Abandoned),
        },
    };
    found.into_iter().map(item).collect()
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
