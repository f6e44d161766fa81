//! What needs fs-verity or systemd: the tests of `cargo xtask vm`, run in its guest.
//!
//! The guest is started once for each `boot_N`; the tests of a boot run one after another, in the order of
//! their names, and later boots find what the earlier ones left. Repositories are on ext4, which has
//! fs-verity and cannot clone, and on btrfs, which has both.

mod boot_1;
mod boot_2;
mod guest;
