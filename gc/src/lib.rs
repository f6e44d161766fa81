//! Who needs what in a composefs repository: roots, the plan, the sweep, and fsck.
//!
//! Collecting garbage is three steps that live apart:
//!
//! 1. [`plan()`] finds the roots (every ref, tags among them), marks what they need, and decides on each
//!    stream, image, object and staging directory, with a reason. It writes nothing.
//! 2. [`prepare`] does the same under the exclusive lock, which it keeps, so that what was planned still
//!    holds when it is done.
//! 3. [`Prepared::execute`] removes names, makes that durable, and then removes content.
//!
//! When in doubt, it is alive: as long as anything that is needed can't be read, everything that it
//! might name is kept, and [`Plan::problems`] says what is in the way.
//!
//! [`fsck()`] looks for damage instead, and changes nothing.
#![forbid(unsafe_code)]

mod execute;
pub mod fsck;
mod graph;
mod image;
mod json;
mod mark;
mod plan;
mod progress;
mod roots;

pub use execute::{Prepared, Swept, prepare};
pub use fsck::{FsckOptions, Report, fsck};
pub use plan::{
    Decision, Item, KeepReason, ObjectItem, Plan, PlanOptions, RemoveReason, StagingItem, plan,
};
pub use progress::{Phase, Progress};
pub use roots::{Problem, Root};
