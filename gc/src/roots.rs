//! Roots: what is kept for its own sake, who keeps it, why, and what makes it impossible to tell.
//!
//! Every ref of the repository is a root, but that of an artifact whose subject is gone. What else keeps things, a booted host or podman's containers,
//! the caller knows ([`crate::Host`]), and hands over as the same plain values.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use composefs_image::{Algorithm, VerityDigest};
use repository::list::{Foreign, Oddity, Ref, StagingDir, StagingOwner};
use repository::{Category, RefPath, Repository, StreamName, Tag, oci};
use serde::{Serialize, Serializer};

use crate::error::Result;
use crate::graph::Target;
use crate::host::Known;
use crate::json;
use crate::leases;
use crate::pins::pin_of;
use crate::plan::RemoveReason;

/// Something that is kept, with everything it needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Root {
    /// Who keeps it.
    #[serde(flatten)]
    pub owner: Owner,
    /// Why, in words.
    pub reason: String,
    /// What is kept.
    pub needs: Vec<Need>,
}

impl std::fmt::Display for Root {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.owner)
    }
}

/// Who keeps something.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Owner {
    /// What it is.
    #[serde(rename = "kind")]
    pub kind: OwnerKind,
    /// Which one: a tag, a file, a container.
    pub name: String,
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// What keeps something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OwnerKind {
    /// A tag.
    Tag,
    /// A pin.
    Pin,
    /// A lease that is held.
    Lease,
    /// A host that boots from it.
    Boot,
    /// An image that podman is shown.
    Published,
    /// A container or image in a store of podman's.
    Podman,
    /// A mounted filesystem.
    Mount,
    /// Any other ref.
    Ref,
    /// A link in `streams/` or `images/` whose name can't be understood: it may matter to somebody else.
    Link,
}

impl std::fmt::Display for OwnerKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tag => "tag",
            Self::Pin => "pin",
            Self::Lease => "lease",
            Self::Boot => "boot",
            Self::Published => "published",
            Self::Podman => "podman",
            Self::Mount => "mount",
            Self::Ref => "ref",
            Self::Link => "link",
        })
    }
}

/// Something that a root keeps.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Need {
    /// A ref, and what it points at.
    Ref(RefId),
    /// The stream of this name.
    Stream(StreamName),
    /// The EROFS image with this digest, whether `images/` has it or not.
    Image(#[serde(serialize_with = "json::text")] VerityDigest),
    /// An object and, if it is a stream or an image, what it needs.
    Object(#[serde(serialize_with = "json::text")] VerityDigest),
    /// Everything that has a name in `streams/` or `images/`.
    Links,
}

impl std::fmt::Display for Need {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ref(id) => write!(f, "{id}"),
            Self::Stream(name) => write!(f, "{name}"),
            Self::Image(digest) => write!(f, "image {digest}"),
            Self::Object(digest) => write!(f, "object {digest}"),
            Self::Links => f.write_str("everything with a name"),
        }
    }
}

/// Which ref.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RefId {
    /// Whether it is below `streams/refs/` or `images/refs/`.
    pub category: Category,
    /// Its path there.
    pub path: RefPath,
}

impl RefId {
    /// The ref of a tag.
    pub fn of_tag(tag: &Tag) -> Self {
        Self {
            category: Category::Streams,
            path: RefPath::of_tag(tag),
        }
    }

    /// The tag that it is; `None` if it is another kind of ref.
    pub fn tag(&self) -> Option<Tag> {
        match self.category {
            Category::Streams => self.path.tag(),
            Category::Images => None,
        }
    }
}

impl std::fmt::Display for RefId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/refs/{}", self.category.directory(), self.path)
    }
}

impl Serialize for RefId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How much may depend on something that can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Doubt {
    /// Anything: nothing is removed.
    Everything,
    /// Only what is among the roots in any case.
    Kept,
}

/// Something that is needed and can't be read. Everything that it might mean is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "problem", rename_all = "kebab-case")]
pub enum Problem {
    /// A root needs a stream or image that doesn't exist.
    #[error(
        "{owner} points at {target}, which does not exist; remove the ref, or import the image again"
    )]
    Dangling {
        /// Who needs it.
        owner: Owner,
        /// The name that doesn't exist.
        target: String,
    },
    /// A link below `refs/` can't be understood.
    #[error("{}: {oddity}; remove it if nobody needs it", path.display())]
    OddRef {
        /// The link, relative to the repository.
        #[serde(serialize_with = "json::path")]
        path: PathBuf,
        /// What is odd about it, in words.
        oddity: String,
    },
    /// A stream or image is missing, damaged or not what it should be.
    #[error(
        "{owner} needs object {object}: {error}; import the image again, or remove what needs it"
    )]
    Unreadable {
        /// Who needs it.
        owner: Owner,
        /// The object.
        #[serde(serialize_with = "json::text")]
        object: VerityDigest,
        /// What is wrong, in words.
        error: String,
    },
    /// A file outside the repository that says what is needed can't be understood.
    #[error("{}: {error}", path.display())]
    Source {
        /// The file.
        #[serde(serialize_with = "json::path")]
        path: PathBuf,
        /// What is wrong with it and what to do, in words.
        error: String,
        /// What it may mean.
        doubt: Doubt,
    },
}

impl Problem {
    /// How much may depend on it.
    pub fn doubt(&self) -> Doubt {
        match self {
            Self::Source { doubt, .. } => *doubt,
            _ => Doubt::Everything,
        }
    }
}

/// The roots of a repository, and what can't be understood.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Roots {
    /// What is kept for its own sake.
    pub roots: Vec<Root>,
    /// What can't be told.
    pub problems: Vec<Problem>,
}

/// Finds the roots without following them. Writes nothing.
pub fn roots(repository: &Repository, known: Known) -> Result<Roots> {
    let streams = repository.streams()?;
    let images = repository.images()?;
    let odd = [streams.foreign, images.foreign].concat();
    let staging = repository.staging()?;
    let leases = leases::leases(repository)?;
    let found = find(repository, odd, known, &staging, &leases)?;
    Ok(Roots {
        roots: found.roots,
        problems: found.problems,
    })
}

/// The roots of a repository with their nodes, and what can't be understood.
pub(crate) struct Found {
    /// Those that the caller knows come first, in its order.
    pub(crate) roots: Vec<Root>,
    /// Where marking starts, each with the index of its root.
    pub(crate) targets: Vec<(Target, usize)>,
    pub(crate) problems: Vec<Problem>,
    /// What doesn't belong where it is and can't name anything: left alone.
    pub(crate) ignored: Vec<Foreign>,
    /// All refs with what they point at, sorted.
    pub(crate) refs: BTreeMap<RefId, FoundRef>,
}

pub(crate) struct FoundRef {
    /// The name of the stream or image.
    pub(crate) target: String,
    /// The index of its root, or why it goes.
    pub(crate) fate: std::result::Result<usize, RemoveReason>,
}

/// Every ref is a root but those given up, and every link with an odd name, beside what the caller knows.
pub(crate) fn find(
    repository: &Repository,
    odd: Vec<Foreign>,
    known: Known,
    staging: &[StagingDir],
    leases: &[leases::Found],
) -> Result<Found> {
    let mut finder = Finder {
        algorithm: repository.algorithm(),
        targets: BTreeMap::new(),
        keepers: HashMap::new(),
        roots: Vec::new(),
        needed: Vec::new(),
        problems: known.problems,
    };
    let mut ignored = Vec::new();
    for category in [Category::Streams, Category::Images] {
        let listing = repository.refs(category)?;
        for Ref { path, target } in listing.entries {
            finder.targets.insert(RefId { category, path }, target);
        }
        for foreign in listing.foreign {
            if foreign.oddity == Oddity::NotALink {
                ignored.push(foreign);
            } else {
                finder.problems.push(Problem::OddRef {
                    path: foreign.path,
                    oddity: foreign.oddity.to_string(),
                });
            }
        }
    }

    for root in known.roots {
        finder.add(root);
    }
    let mut given_up: HashMap<RefId, RemoveReason> = known
        .given_up
        .into_iter()
        .map(|item| (item.id, item.reason))
        .collect();
    for id in finder.targets.keys() {
        if id.category == Category::Streams && oci::is_orphaned_referrer(repository, &id.path)? {
            given_up.insert(id.clone(), RemoveReason::SubjectGone);
        }
    }
    let others: Vec<_> = finder
        .targets
        .keys()
        .filter(|id| !finder.keepers.contains_key(id) && !given_up.contains_key(id))
        .cloned()
        .collect();
    for id in others {
        finder.add(root_of(repository, id));
    }
    for foreign in odd {
        if let Oddity::LinkName(object) = foreign.oddity {
            finder.add(Root {
                owner: Owner {
                    kind: OwnerKind::Link,
                    name: foreign.path.display().to_string(),
                },
                reason: "its name may mean something to somebody else".into(),
                needs: vec![Need::Object(object)],
            });
        } else {
            ignored.push(foreign);
        }
    }
    for lease in leases {
        if let Some(holder) = &lease.holder {
            finder.add(root_of_lease(holder));
        }
    }
    for writer in staging {
        if writer.owner == StagingOwner::Alive {
            finder.add(Root {
                owner: Owner {
                    kind: OwnerKind::Lease,
                    name: format!("writer {}", writer.name),
                },
                reason: "is writing, and may use what is there".into(),
                needs: vec![Need::Links],
            });
        }
    }
    let fate = |id: &RefId| match (finder.keepers.get(id), given_up.get(id)) {
        (Some(root), _) => Ok(*root),
        // Without a keeper it has been given up.
        (None, reason) => Err(reason.copied().unwrap_or(RemoveReason::Unreferenced)),
    };
    Ok(Found {
        refs: finder
            .targets
            .iter()
            .map(|(id, target)| {
                let target = target.clone();
                let fate = fate(id);
                (id.clone(), FoundRef { target, fate })
            })
            .collect(),
        roots: finder.roots,
        targets: finder.needed,
        problems: finder.problems,
        ignored,
    })
}

/// Roots as they come together.
struct Finder {
    algorithm: Algorithm,
    targets: BTreeMap<RefId, String>,
    /// The first root that claims a ref.
    keepers: HashMap<RefId, usize>,
    roots: Vec<Root>,
    needed: Vec<(Target, usize)>,
    problems: Vec<Problem>,
}

impl Finder {
    fn add(&mut self, root: Root) {
        let index = self.roots.len();
        for need in &root.needs {
            let needed = match need {
                Need::Stream(name) => Target::Stream(name.clone()),
                Need::Image(digest) => Target::Image(*digest),
                Need::Object(digest) => Target::Object(*digest),
                Need::Links => Target::Links,
                Need::Ref(id) => {
                    self.keepers.entry(id.clone()).or_insert(index);
                    let target = self.targets.get(id);
                    let needed = target.and_then(|target| self.named(id.category, target));
                    let Some(needed) = needed else {
                        self.problems.push(Problem::Dangling {
                            owner: root.owner.clone(),
                            target: target.cloned().unwrap_or_else(|| id.to_string()),
                        });
                        continue;
                    };
                    needed
                }
            };
            self.needed.push((needed, index));
        }
        self.roots.push(root);
    }

    /// The link of this name; `None` if no link can have it.
    fn named(&self, category: Category, name: &str) -> Option<Target> {
        match category {
            Category::Streams => StreamName::new(name).ok().map(Target::Stream),
            Category::Images => VerityDigest::from_hex(name)
                .ok()
                .filter(|digest| digest.algorithm() == self.algorithm)
                .map(Target::Image),
        }
    }
}

/// The root that a ref is by itself.
fn root_of(repository: &Repository, id: RefId) -> Root {
    let pin = match id.category {
        Category::Streams => pin_of(repository, &id.path),
        Category::Images => None,
    };
    let (kind, name, reason) = match (id.tag(), pin) {
        (Some(tag), _) => (
            OwnerKind::Tag,
            tag.to_string(),
            "kept until it is untagged".into(),
        ),
        (None, Some(pin)) => (
            OwnerKind::Pin,
            pin.manifest.to_string(),
            pin.reason
                .unwrap_or_else(|| "kept until it is unpinned".into()),
        ),
        (None, None) => (
            OwnerKind::Ref,
            id.to_string(),
            "kept until it is removed".into(),
        ),
    };
    Root {
        owner: Owner { kind, name },
        reason,
        needs: vec![Need::Ref(id)],
    }
}

fn root_of_lease(holder: &leases::Holder) -> Root {
    let leases::Holder { purpose, pid, .. } = holder;
    Root {
        owner: Owner {
            kind: OwnerKind::Lease,
            name: format!("process {pid}"),
        },
        reason: purpose.clone(),
        needs: vec![Need::Links],
    }
}
