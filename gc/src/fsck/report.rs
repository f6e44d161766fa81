//! What fsck has found.

use std::collections::BTreeSet;
use std::path::PathBuf;

use composefs_image::VerityDigest;
use repository::list::Foreign;
use repository::oci::DiffId;
use serde::Serialize;

use crate::json;
use crate::roots::Owner;

/// The result of [`crate::fsck()`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// How much was looked at.
    pub counts: Counts,
    /// What is wrong, sorted by path; empty if nothing is.
    pub findings: Vec<Finding>,
    /// Layers that were imported without comparing their diff IDs (`import --trust-source`). That is nothing
    /// wrong.
    pub unverified: Vec<Unverified>,
}

/// A layer that was imported without comparing its diff ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Unverified {
    /// The layer.
    #[serde(serialize_with = "json::text")]
    pub layer: DiffId,
    /// What is known of it now.
    pub diff_id: Comparison,
}

/// Whether a diff ID has been compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Comparison {
    /// It has not, or the layer cannot be read.
    NotCompared,
    /// This check has, and it is right: [`crate::confirm`] takes the mark away.
    Right,
    /// This check has, and it is wrong, which is among the findings.
    Wrong,
}

/// How much was looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Objects.
    pub objects: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Links in `streams/`.
    pub streams: u64,
    /// Links in `images/`.
    pub images: u64,
    /// Refs of both.
    pub refs: u64,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// What it is wrong with, relative to the repository.
    #[serde(serialize_with = "json::path")]
    pub path: PathBuf,
    /// What is wrong with it.
    #[serde(flatten)]
    pub defect: Defect,
    /// Who needs the objects concerned, as far as [`super::add_owners`] was asked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub needed_by: Vec<Owner>,
}

impl Finding {
    /// A finding of which it is not known yet who is concerned.
    pub fn new(path: impl Into<PathBuf>, defect: Defect) -> Self {
        Self {
            path: path.into(),
            defect,
            needed_by: Vec::new(),
        }
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.defect)?;
        for (index, owner) in self.needed_by.iter().enumerate() {
            let before = if index == 0 { "; needed by " } else { ", " };
            write!(f, "{before}{owner}")?;
        }
        Ok(())
    }
}

/// What can be wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, thiserror::Error)]
#[serde(tag = "defect", rename_all = "kebab-case")]
pub enum Defect {
    /// It doesn't belong where it is.
    #[error("{oddity}")]
    Foreign {
        /// What is odd about it, in words.
        oddity: String,
    },
    /// The content of an object isn't what its name says, or can't be read.
    #[error("{error}")]
    DamagedObject {
        /// The object.
        #[serde(serialize_with = "json::text")]
        object: VerityDigest,
        /// What is wrong, in words.
        error: String,
    },
    /// Its object doesn't exist.
    #[error("object {object} is missing")]
    MissingObject {
        /// The object.
        #[serde(serialize_with = "json::text")]
        object: VerityDigest,
    },
    /// It names objects that don't exist.
    #[error("it names {count} objects that do not exist, the first is {first}")]
    MissingObjects {
        /// How many different ones.
        count: u64,
        /// The one that it names first.
        #[serde(serialize_with = "json::text")]
        first: VerityDigest,
        /// All of them.
        #[serde(skip)]
        all: Vec<VerityDigest>,
    },
    /// The object isn't a sound splitstream.
    #[error("{error}")]
    InvalidStream {
        /// What is wrong, in words.
        error: String,
    },
    /// The object isn't a sound image.
    #[error("{error}")]
    InvalidImage {
        /// What is wrong, in words.
        error: String,
    },
    /// The manifest's or config's stream isn't what its name says, or names what is not there.
    #[error("{error}")]
    InvalidOciImage {
        /// What is wrong, in words.
        error: String,
    },
    /// A layer isn't the one that its name says.
    #[error(
        "its content has the diff ID {actual}; import the image again under another repository, and compare"
    )]
    WrongDiffId {
        /// The diff ID that it has.
        actual: String,
    },
    /// An image isn't the one that the layers make.
    #[error(
        "the layers of image {image} make another image, {actual}; another release may have made this one"
    )]
    OtherImage {
        /// The image's ID.
        image: String,
        /// The digest of the image that the layers make.
        #[serde(serialize_with = "json::text")]
        actual: VerityDigest,
    },
    /// Something that depends on the repository isn't what it should be: a published layer, a boot entry.
    #[error("{error}")]
    Dependent {
        /// What is wrong, in words.
        error: String,
    },
    /// The link's name isn't the digest of its object.
    #[error("it points at object {object}, which is not the one it is named after")]
    MisnamedImage {
        /// The object.
        #[serde(serialize_with = "json::text")]
        object: VerityDigest,
    },
    /// The stream or image that a ref points at doesn't exist.
    #[error("it points at {target}, which does not exist")]
    DanglingRef {
        /// The name.
        target: String,
    },
}

impl Defect {
    /// The objects that are damaged or missing.
    pub fn objects(&self) -> &[VerityDigest] {
        match self {
            Self::DamagedObject { object, .. } | Self::MissingObject { object } => {
                std::slice::from_ref(object)
            }
            Self::MissingObjects { all, .. } => all,
            _ => &[],
        }
    }
}

impl Report {
    /// The objects that are damaged, or missing and needed.
    pub fn broken(&self) -> BTreeSet<VerityDigest> {
        let findings = self.findings.iter();
        findings
            .flat_map(|finding| finding.defect.objects())
            .copied()
            .collect()
    }

    /// Adds what the caller found wrong with something that depends on the repository.
    pub fn add_dependent(&mut self, path: impl Into<PathBuf>, error: String) {
        self.add(path, Defect::Dependent { error });
        self.finish();
    }

    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    pub(super) fn add(&mut self, path: impl Into<PathBuf>, defect: Defect) {
        self.findings.push(Finding::new(path, defect));
    }

    pub(super) fn add_foreign(&mut self, foreign: Foreign) {
        let oddity = foreign.oddity.to_string();
        self.add(foreign.path, Defect::Foreign { oddity });
    }

    /// Adds what another thread has found.
    pub(super) fn merge(&mut self, other: Self) {
        self.counts.objects += other.counts.objects;
        self.counts.bytes += other.counts.bytes;
        self.findings.extend(other.findings);
        self.unverified.extend(other.unverified);
    }

    pub(super) fn finish(&mut self) {
        self.findings.sort_unstable();
        self.unverified.sort_unstable();
    }
}
