//! What needs fs-verity or systemd: the tests of `cargo xtask vm`, run in its guests.
//!
//! There is a guest for each filesystem under the repository: ext4, which has fs-verity and cannot clone, and
//! btrfs, which has both. A guest is started once for each `boot_N`; the tests of a boot run one after
//! another, in the order of their names, and find what the earlier ones left.

mod boot_1;
mod boot_2;
mod guest;
mod tampering;
