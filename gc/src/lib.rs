//! Who needs what in a composefs repository: roots, the plan, the sweep, and fsck.
//!
//! Collecting garbage is three steps that live apart:
//!
//! 1. [`plan()`] finds the roots (every ref, tags among them, and what the caller's [`Host`] knows), marks
//!    what they need, and decides on each ref, stream, image, object and staging directory, with a reason.
//!    It writes nothing.
//! 2. [`prepare`] takes the exclusive lock, which it keeps, and plans again if the plan doesn't hold any
//!    more, so that what was planned is what is done.
//! 3. [`Prepared::execute`] removes names, makes that durable, and then removes content.
//!
//! When in doubt, it is alive: as long as anything that is needed can't be read, everything that it
//! might name is kept, and [`Plan::problems`] says what is in the way.
//!
//! [`fsck()`] looks for damage instead, and changes nothing; [`repair()`] mends what others still have.
#![forbid(unsafe_code)]

pub mod boot;
mod digests;
mod error;
mod execute;
pub mod fsck;
mod graph;
mod host;
mod image;
mod json;
mod leases;
mod mark;
mod objects;
mod pins;
mod plan;
mod progress;
mod repair;
mod retention;
mod roots;
#[cfg(any(test, feature = "simulate"))]
pub mod simulate;
mod usage;

pub use error::{Error, Result};
pub use execute::{Prepared, Swept, prepare};
pub use fsck::{FsckOptions, Report, fsck, fsck_image, keepers};
pub use host::{GivenUp, Host, HostError, Known, MissingTag, PublishedKind, Unpublished};
pub use leases::{Holder, Lease};
pub use objects::Objects;
pub use pins::{Pin, pin, pins, unpin};
pub use plan::{
    Decision, InDoubt, Item, KeepReason, ObjectItem, Plan, RefItem, RemoveReason, StagingItem, plan,
};
pub use progress::{Phase, Progress};
pub use repair::{Mended, RepairError, Repaired, Supplier, confirm, repair};
pub use retention::Retention;
pub use roots::{Doubt, Need, Owner, OwnerKind, Problem, RefId, Root, Roots, roots};
pub use usage::{ImageUsage, LayerUsage, Part, Size, Usage, layer_usage, usage};
