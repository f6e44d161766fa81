//! Roots: what is kept for its own sake, and what makes it impossible to tell.

use std::collections::HashSet;
use std::path::PathBuf;

use composefs_image::VerityDigest;
use repository::list::{Foreign, Oddity};
use repository::{Category, RefPath, Repository, Result, Tag};
use serde::Serialize;

use crate::graph::Node;
use crate::json;

/// Something that is kept, with everything it needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Root {
    /// A tag.
    Tag {
        /// The tag.
        tag: Tag,
        /// The name of the manifest stream.
        target: String,
    },
    /// Any other ref.
    Ref {
        /// Whether it is below `streams/refs/` or `images/refs/`.
        category: Category,
        /// Its path there.
        path: RefPath,
        /// The name of the stream or image.
        target: String,
    },
    /// A link in `streams/` or `images/` whose name can't be understood: it may matter to somebody else.
    OddLink {
        /// The link, relative to the repository.
        #[serde(serialize_with = "json::path")]
        path: PathBuf,
        /// The object it points at.
        #[serde(serialize_with = "json::text")]
        object: VerityDigest,
    },
}

impl std::fmt::Display for Root {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tag { tag, .. } => write!(f, "tag {tag}"),
            Self::Ref { category, path, .. } => {
                write!(f, "ref {}/refs/{path}", category.directory())
            }
            Self::OddLink { path, .. } => write!(f, "link {}", path.display()),
        }
    }
}

/// Something that is needed and can't be read. As long as there is one, everything that exists may be
/// needed, so everything is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Problem {
    /// A ref points at a stream or image that doesn't exist.
    #[error(
        "{root} points at {target}, which does not exist; remove the ref, or import the image again"
    )]
    Dangling {
        /// The ref.
        root: Root,
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
        "{root} needs object {object}: {error}; import the image again, or remove what needs it"
    )]
    Unreadable {
        /// The root that needs it.
        root: Root,
        /// The object.
        #[serde(serialize_with = "json::text")]
        object: VerityDigest,
        /// What is wrong, in words.
        error: String,
    },
}

/// The roots of a repository with their nodes, and what can't be understood.
pub(crate) struct Found {
    pub(crate) roots: Vec<(Root, Node)>,
    pub(crate) problems: Vec<Problem>,
    /// What doesn't belong where it is and can't name anything: left alone.
    pub(crate) ignored: Vec<Foreign>,
}

/// Every ref is a root but those given up, and every link with an odd name.
pub(crate) fn find(
    repository: &Repository,
    odd: Vec<Foreign>,
    given_up: &HashSet<(Category, RefPath)>,
) -> Result<Found> {
    let mut found = Found {
        roots: Vec::new(),
        problems: Vec::new(),
        ignored: Vec::new(),
    };
    for category in [Category::Streams, Category::Images] {
        let refs = repository.refs(category)?;
        for reference in refs.entries {
            if given_up.contains(&(category, reference.path.clone())) {
                continue;
            }
            let node = Node::named(category, &reference.target, repository.algorithm());
            let root = root_of(category, reference.path, reference.target.clone());
            match node {
                Some(node) => found.roots.push((root, node)),
                None => found.problems.push(Problem::Dangling {
                    root,
                    target: reference.target,
                }),
            }
        }
        for foreign in refs.foreign {
            if foreign.oddity == Oddity::NotALink {
                found.ignored.push(foreign);
            } else {
                found.problems.push(Problem::OddRef {
                    path: foreign.path,
                    oddity: foreign.oddity.to_string(),
                });
            }
        }
    }
    for foreign in odd {
        if let Oddity::LinkName(object) = foreign.oddity {
            let path = foreign.path;
            let root = Root::OddLink { path, object };
            found.roots.push((root, Node::Object(object)));
        } else {
            found.ignored.push(foreign);
        }
    }
    Ok(found)
}

fn root_of(category: Category, path: RefPath, target: String) -> Root {
    match (category, path.tag()) {
        (Category::Streams, Some(tag)) => Root::Tag { tag, target },
        _ => Root::Ref {
            category,
            path,
            target,
        },
    }
}
