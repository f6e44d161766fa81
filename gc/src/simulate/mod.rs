//! Simulated sysroots, for tests: what bootc leaves on a disk, without a kernel, a boot loader or an image
//! that could boot.
//!
//! A [`Host`] does what bootc does (deploy, finalize, roll back, clean up), step by step, can be
//! interrupted at each, and can be damaged. What is on its disk is also in it as data, so that a test
//! knows the truth without reading files.

mod host;
mod pe;

pub use composefs_image::VerityDigest;
pub use repository::oci::ManifestDigest;

pub use host::{Damage, Host, Interrupted, Loader, Menu, Mounts, Record};
pub use pe::uki;
