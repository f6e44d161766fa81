//! The harness of the end-to-end tests and of `cargo xtask demo`.
//!
//! A [`Machine`] is a host as podman sees it: Debian 12 itself, or a newer Debian in a root directory
//! of its own, each in a private mount namespace with its own `/run`. A [`Podman`] is one engine on
//! it with its own storage; a [`Filesystem`] is a loop device that takes reflinks or does not; a
//! [`Fixture`] is an image made to be hard. A [`Tree`] is what a process in a container sees.
//!
//! Nothing here works outside the namespaces that `cargo xtask` makes (see `xtask/src/isolate.rs`):
//! that is what guarantees that mounts, loop devices and processes go away, and that the machine's
//! own `/etc/containers` and `/var/lib/containers` are never touched.
#![forbid(unsafe_code)]

pub mod bootable;
pub mod command;
pub mod docker_registry;
pub mod faults;
pub mod faulty_proxy;
pub mod filesystem;
pub mod fixture;
pub mod locks;
pub mod machine;
pub mod oci;
pub mod peers;
pub mod podman;
pub mod registry;
pub mod store;
pub mod tar;
pub mod tree;
pub mod user;

pub use command::{Finished, finish, finish_podman, ok};
pub use docker_registry::{Access, DockerRegistry};
pub use faulty_proxy::{Fault, FaultyProxy};
pub use filesystem::{Filesystem, Kind};
pub use fixture::Fixture;
pub use machine::{Machine, Release};
pub use peers::Peers;
pub use podman::{Containers, Driver, Engine, Podman};
pub use store::{Layout, Store};
pub use tree::Tree;
pub use user::User;
