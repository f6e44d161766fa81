//! What fsck has found.

use std::path::PathBuf;

use composefs_image::VerityDigest;
use repository::list::Foreign;
use serde::Serialize;

use crate::json;

/// The result of [`crate::fsck()`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// How much was looked at.
    pub counts: Counts,
    /// What is wrong, sorted by path; empty if nothing is.
    pub findings: Vec<Finding>,
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
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.defect)
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

impl Report {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    pub(super) fn add(&mut self, path: impl Into<PathBuf>, defect: Defect) {
        self.findings.push(Finding {
            path: path.into(),
            defect,
        });
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
    }

    pub(super) fn finish(&mut self) {
        self.findings.sort_unstable();
    }
}
