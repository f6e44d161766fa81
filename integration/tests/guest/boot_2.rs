//! After a reboot.

use crate::guest::{Disk, IMAGE, LARGE, PLAIN, SMALL, VERIFIED, podman, run};
use crate::tampering::Tampering;
use anyhow::{Context, Result, ensure};
use integration::{finish, ok};
use serde_json::Value;
use std::process::Command;

const MOUNTS: &str = "composefs-store-mounts.service";
const VERIFY: &str = "composefs-store-verify.service";

#[test]
fn a_the_units_have_verified_and_mounted_what_was_published() -> Result<()> {
    ok(Command::new("systemctl").args(["is-active", MOUNTS]))?;
    let log = journal(VERIFY)?;
    ensure!(
        log.contains("measured 2 images") && log.contains("no findings"),
        "{log}"
    );
    for image in [IMAGE, SMALL] {
        run(image, &format!("cat {LARGE} >/dev/null"))?.success()?;
    }
    Ok(())
}

#[test]
fn b_podman_is_shown_nothing_while_an_image_is_not_what_was_published() -> Result<()> {
    let disk = Disk::this()?;
    // Publishing it again tells its layer.
    let top = disk.publish("blob", SMALL)?;
    let erofs = disk.erofs(&top)?;
    let path = erofs.display().to_string();
    let mut objects = disk.objects()?.into_iter();
    let other = objects.find(|other| *other != erofs).context("no other")?;
    let tampered = Tampering::Swapped.apply(&erofs, &other)?;
    finish(Command::new("systemctl").args(["restart", MOUNTS]))?.refused()?;
    let log = journal(VERIFY)?;
    let words = [path.as_str(), Tampering::Swapped.words(), SMALL];
    let is_said = |line: &str| words.iter().all(|word| line.contains(word));
    ensure!(log.lines().any(is_said), "{log}");
    ensure!(ok(&mut podman(&["images", "--quiet"]))?.text().is_empty());
    tampered.undo()?;
    ok(Command::new("systemctl").args(["start", MOUNTS]))?;
    run(SMALL, "true")?.success()?;
    Ok(())
}

#[test]
fn c_doctor_finds_a_host_in_order_and_what_is_not() -> Result<()> {
    let disk = Disk::this()?;
    let doctor = || -> Result<Vec<String>> {
        // It ends with 1 when it finds something.
        let done = finish(&mut disk.store(&["--json", "doctor"]))?;
        let report: Value = serde_json::from_slice(&done.stdout)?;
        let found = report["findings"].as_array().context("no findings")?;
        let serious = found.iter().filter(|finding| finding["severity"] != "note");
        let names = serious.filter_map(|finding| finding["finding"].as_str());
        Ok(names.map(str::to_owned).collect())
    };
    let none = [""; 0];
    assert_eq!(doctor()?, none);
    disk.configure(PLAIN)?;
    assert_eq!(doctor()?, ["verity-off"]);
    disk.configure(VERIFIED)?;
    ok(Command::new("systemctl").args(["disable", MOUNTS]))?;
    assert_eq!(doctor()?, ["unit-disabled"]);
    ok(Command::new("systemctl").args(["enable", MOUNTS]))?;
    assert_eq!(doctor()?, none);
    Ok(())
}

/// What a unit has said since the boot.
fn journal(unit: &str) -> Result<String> {
    let args = ["--boot", "--no-pager", "--output", "cat", "--unit", unit];
    Ok(ok(Command::new("journalctl").args(args))?.text())
}

#[test]
fn d_fsck_finds_nothing() -> Result<()> {
    let disk = Disk::this()?;
    ok(&mut disk.store(&["fsck"]))?;
    ok(&mut disk.store(&["fsck", "--read-data"]))?;
    Ok(())
}
