//! Sources of container images into a composefs repository, verified.
//!
//! A source hands over an image ([`source::SourceImage`]); [`import_image`] does the rest, the same for
//! all sources. How a source is added is in [`source`].
//!
//! # What an import does
//!
//! 1. **Check.** Manifest and config are read with their digests; layers that the repository has
//!    already, whole, are left alone. Where the others certainly do not fit on the filesystem, that is
//!    the end.
//! 2. **Layers.** Each other layer is read, in one of two ways. A layer of containers-storage is put
//!    together again from its tar-split and its files. Every file is
//!    read once; that one read feeds the SHA-256 of the tar, the CRC-64 of the tar-split and the file's
//!    fs-verity digest. A file whose object is missing is then cloned (FICLONE) from the descriptor that
//!    was read, never linked; where the filesystem cannot clone it is copied, if [`ImportOptions::copy`]
//!    lets it. A blob is uncompressed and cut up as it comes in, and never kept as a whole; its own digest
//!    and size must be those of the manifest. In both ways the tar's SHA-256 must be the diff ID that the
//!    config names.
//! 3. **Rootfs.** The layers' tree becomes the EROFS image that `cfsctl oci pull` would make.
//! 4. **Publish.** Objects, layer streams, images, config, manifest and tags get their names.
//!
//! # What is durable when
//!
//! All of it goes through one [`repository::Batch`] and one commit, which syncs the filesystem twice
//! however many layers there are: nothing has a name before everything is verified. An image of more
//! than a gibibyte is committed in groups of layers of about that size, so that an import that is
//! interrupted goes on from the last group: a layer's stream in the repository is always one that was
//! verified and is complete. Layers of an unfinished import have no ref, so a collection reclaims them.
//!
//! # Concurrency and memory
//!
//! One set of [`ImportOptions::jobs`] worker threads reads, hashes and clones for all layers; each layer
//! in work, of which there are at most eight, has a thread that goes through its tar in order. All of
//! them together have some megabytes of buffers. Memory depends on the number of jobs and, some hundred
//! bytes each, of files; not on their sizes.
//!
//! A layer is read without its store's lock: podman goes on creating containers, pulling and removing.
//! If it removes the layer meanwhile, the import fails and says so, and nothing is published.
#![forbid(unsafe_code)]

// What the tests share calls it so.
#[cfg(test)]
extern crate self as importer;

mod artifact;
mod aside;
mod cancel;
mod child;
mod compression;
mod error;
mod image;
mod layer;
mod pool;
mod preflight;
mod present;
mod progress;
pub mod pull;
pub mod registry;
mod report;
pub mod source;
#[cfg(test)]
#[path = "../tests/support/mod.rs"]
mod support;
mod work;

pub use artifact::{ArtifactReport, Keep, import_artifact};
pub use aside::Aside;
pub use cancel::Cancel;
pub use error::{FileError, ImportError, LayerError, MemberProblem, Shortage};
pub use image::{DiffIdCheck, ImportOptions, free_space, import_image};
pub use progress::{Event, LayerPlan, Progress, Quiet, Stage};
pub use report::{Counts, ImportReport, LayerOutcome, LayerReport, Outcome, Tally, Times, Warning};
