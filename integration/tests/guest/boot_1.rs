//! Secure repositories from nothing: import, containers, and what happens to whoever changes an object.

use crate::guest::{Disk, IMAGE, LARGE, drop_caches, json, measured, named, replace};
use anyhow::{Result, ensure};
use integration::ok;
use std::fs::File;
use std::process::Command;

#[test]
fn a_imports_into_a_repository_with_fs_verity() -> Result<()> {
    for disk in Disk::ALL {
        disk.configure("nodev", false)?;
        ok(disk
            .command("skopeo")
            .args([
                "copy",
                "--quiet",
                "--insecure-policy",
                "oci:/work/layout:latest",
            ])
            .arg(format!("containers-storage:{IMAGE}")))?;
        ok(&mut disk.store(&["init"]))?;
        let report = json(&mut disk.store(&["--json", "import", IMAGE]))?;
        let total = &report["imported"][0]["total"];
        match disk {
            Disk::Ext4 => ensure!(total["reflinked"]["files"] == 0, "{report:#}"),
            Disk::Btrfs => ensure!(total["copied"]["files"] == 0, "{report:#}"),
        }
        for object in disk.objects()? {
            ensure!(
                measured(&object)? == format!("sha512:{}", named(&object)?),
                "{}",
                object.display()
            );
        }
        ok(&mut disk.store(&["fsck"]))?;
    }
    Ok(())
}

#[test]
fn b_an_object_cannot_be_written_to() -> Result<()> {
    for disk in Disk::ALL {
        for object in disk.objects()?.iter().take(20) {
            ensure!(File::options().write(true).open(object).is_err());
        }
    }
    Ok(())
}

#[test]
fn c_containers_of_the_mounted_layout_are_verified() -> Result<()> {
    for disk in Disk::ALL {
        ok(&mut disk.store(&["serve-mounts"]))?;
        disk.configure("nodev", true)?;
        ok(&mut disk.store(&["publish", "--layout", "mounted", IMAGE]))?;
        ok(disk.command("podman").args(["rmi", IMAGE]))?;
        disk.run(IMAGE, "true")?.success()?;
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        ensure!(mounts.contains("verity=require"), "{mounts}");
    }
    Ok(())
}

#[test]
fn d_a_changed_object_cannot_be_read() -> Result<()> {
    for disk in Disk::ALL {
        let object = disk.large_object()?;
        let whole = std::fs::read(&object)?;
        let kept = object.with_extension("kept");
        std::fs::rename(&object, &kept)?;
        let read = format!("cat /{LARGE} >/dev/null");
        drop_caches()?;
        disk.run(IMAGE, &read)?.refused()?; // missing
        let mut changed = whole.clone();
        changed[0] ^= 1;
        let short = whole[..whole.len() - 1].to_vec();
        for content in [changed, whole.clone(), short] {
            replace(&object, &content)?;
            drop_caches()?;
            disk.run(IMAGE, &read)?.refused()?;
            ok(Command::new("fsverity")
                .args(["enable", "--hash-alg", "sha512"])
                .arg(&object))?;
            drop_caches()?;
            let done = disk.run(IMAGE, &read)?;
            if content == whole {
                done.success()?;
            } else {
                done.refused()?;
            }
            std::fs::remove_file(&object)?;
        }
        std::fs::rename(&kept, &object)?;
        drop_caches()?;
        disk.run(IMAGE, &read)?.success()?;
    }
    Ok(())
}

#[test]
fn e_the_units_are_enabled() -> Result<()> {
    std::fs::copy("/work/bin/composefs-store", "/usr/bin/composefs-store")?;
    let units = "/etc/systemd/system";
    std::fs::copy(
        "/work/contrib/systemd/composefs-store-mounts.service",
        format!("{units}/composefs-store-mounts.service"),
    )?;
    ok(Command::new("systemctl").arg("daemon-reload"))?;
    ok(Command::new("systemctl").args(["enable", "composefs-store-mounts.service"]))?;
    Ok(())
}
