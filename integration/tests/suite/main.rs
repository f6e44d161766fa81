//! The end-to-end tests, by topic. They run in the namespaces of `cargo xtask test`.
#![forbid(unsafe_code)]

mod bombs;
mod boot;
mod builds;
mod collection;
mod commands;
mod crashes;
mod damage;
mod deployments;
mod disks;
mod documents;
mod faults;
mod filesystems;
mod harness;
mod hostile;
mod images;
mod importing;
mod keeping;
mod kernel;
mod locking;
mod memory;
mod mounting;
mod on_top;
mod peers;
mod publishing;
mod racing;
mod registry;
mod repairing;
mod rootless;
mod scene;
mod sources;
mod storages;
mod stress;
mod tools;
mod trees;
mod verified;
