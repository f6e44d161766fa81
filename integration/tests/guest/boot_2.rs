//! After a reboot.

use crate::guest::{Disk, IMAGE};
use anyhow::Result;
use integration::ok;
use std::process::Command;

#[test]
fn a_the_unit_has_mounted_what_was_published() -> Result<()> {
    ok(Command::new("systemctl").args(["is-active", "composefs-store-mounts.service"]))?;
    Disk::Ext4.run(IMAGE, "true")?.success()?;
    Ok(())
}

#[test]
fn b_another_repository_is_mounted_by_hand() -> Result<()> {
    Disk::Btrfs.run(IMAGE, "true")?.refused()?;
    ok(&mut Disk::Btrfs.store(&["serve-mounts"]))?;
    Disk::Btrfs.run(IMAGE, "true")?.success()?;
    Ok(())
}

#[test]
fn c_fsck_finds_nothing() -> Result<()> {
    for disk in Disk::ALL {
        ok(&mut disk.store(&["fsck"]))?;
    }
    Ok(())
}
