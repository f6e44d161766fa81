//! The composefs repository on disk: objects, splitstreams, images, refs and OCI content.
//!
//! Follows the repository format of composefs-rs 0.9 in both directions. State of our own lives
//! under [`PRIVATE_DIRECTORY`] in the repository root, which other implementations ignore.
//!
//! # Reading
//!
//! [`Repository::open`] takes a shared `flock` on the repository directory and keeps it for the life
//! of the handle, so nothing is deleted underneath it. Reading writes nothing: not even `meta.json` of
//! a repository that has none.
//!
//! # Writing
//!
//! Everything is written through a [`Batch`]. Objects are staged in a private directory; only
//! [`Batch::commit`] gives names, in this order, each step durable before the next begins:
//!
//! 1. the content of all staged objects,
//! 2. their names in `objects/`, and files of our own about layers, none of which keeps anything alive,
//! 3. the links in `streams/` and `images/`,
//! 4. the refs below `streams/refs/` and `images/refs/`.
//!
//! A crash at any instant leaves at worst objects without a name and an abandoned staging directory;
//! both are garbage that the next collection reclaims.
//!
//! # Deleting
//!
//! [`Repository::exclusive`] trades the shared lock for the exclusive one; the guard it returns is the
//! only thing with methods that delete. Callers delete names, sync, and then content.
#![deny(unsafe_code)]

mod batch;
pub mod boot;
mod checksums;
mod digest_table;
mod durable;
pub mod erofs;
mod error;
mod exclusive;
mod layer_files;
pub mod layers;
pub mod list;
pub mod meta;
pub mod names;
mod object;
pub mod oci;
mod repo;
pub mod splitstream;
pub mod sys;
#[cfg(test)]
mod testing;
pub mod upgrade;
mod verification;

pub use ::failpoint::failpoint;
pub use batch::{
    Batch, ChecksumWriter, CommitStats, CopyPolicy, ObjectWriter, StagedChecksums, Stored,
};
pub use checksums::LayerChecksums;
pub use composefs_image::{Algorithm, Format, VerityDigest};
pub use error::{Error, Result};
pub use exclusive::{Exclusive, Wait};
pub use meta::{Formats, Meta, Security};
pub use names::{Category, RefPath, StreamName, Tag};
pub use object::ReadObjects;
pub use repo::{InitOptions, InitOutcome, Repository};
pub use verification::Verification;

/// The directory in the repository root that holds our own state; other implementations ignore it.
pub const PRIVATE_DIRECTORY: &str = "composefs-store";
