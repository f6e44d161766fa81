//! Simulated sysroots, for tests: what bootc leaves on a disk, without a kernel, a boot loader or an image
//! that could boot.

mod pe;

pub use pe::uki;
