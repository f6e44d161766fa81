//! Secure repositories from nothing: import, verified containers, and what happens to whoever changes what
//! they are made of.

use crate::guest::{
    Disk, IMAGE, LARGE, PLAIN, Reader, SMALL, VERIFIED, drop_caches, json, podman, run,
};
use crate::tampering::Tampering;
use anyhow::{Context, Result, ensure};
use integration::{finish, ok};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

#[test]
fn a_imports_into_a_repository_with_fs_verity() -> Result<()> {
    let disk = Disk::this()?;
    disk.configure(PLAIN)?;
    for (layout, image) in [("layout", IMAGE), ("small", SMALL)] {
        ok(Command::new("skopeo")
            .args(["copy", "--quiet", "--insecure-policy"])
            .arg(format!("oci:/work/{layout}:latest"))
            .arg(format!("containers-storage:{image}")))?;
    }
    ok(&mut disk.store(&["init"]))?;
    let report = json(&mut disk.store(&["--json", "import", IMAGE]))?;
    let total = &report["imported"][0]["total"];
    match disk {
        Disk::Ext4 => ensure!(total["reflinked"]["files"] == 0, "{report:#}"),
        Disk::Btrfs => ensure!(total["copied"]["files"] == 0, "{report:#}"),
    }
    ok(&mut disk.store(&["import", SMALL]))?;
    // Everything goes on from our store.
    ok(&mut podman(&["rmi", IMAGE, SMALL]))?;
    let objects = disk.objects()?;
    let measured = ok(Command::new("fsverity").arg("measure").args(&objects))?.text();
    ensure!(measured.lines().count() == objects.len(), "{measured}");
    for line in measured.lines() {
        let (digest, path) = line.split_once(' ').context("no digest")?;
        let path = path.strip_prefix(&format!("{}/objects/", disk.repository().display()));
        let name = path.context("not an object")?.replace('/', "");
        ensure!(digest == format!("sha512:{name}"), "{line}");
    }
    ok(&mut disk.store(&["fsck"]))?;
    Ok(())
}

#[test]
fn b_an_object_cannot_be_written_to() -> Result<()> {
    for object in Disk::this()?.objects()? {
        ensure!(File::options().write(true).open(object).is_err());
    }
    Ok(())
}

#[test]
fn c_verified_blobs_are_refused_where_podman_would_not_verify() -> Result<()> {
    let disk = Disk::this()?;
    ok(&mut disk.store(&["serve-mounts"]))?;
    disk.configure(PLAIN)?;
    let args = ["publish", "--verified", "--layout", "blob", IMAGE];
    finish(&mut disk.store(&args))?.refused_with(&[
        "/etc/containers/storage.conf",
        "mountopt = \"nodev,metacopy=on,verity=require\"",
    ])?;
    ensure!(ok(&mut podman(&["images", "--quiet"]))?.text().is_empty());
    Ok(())
}

#[test]
fn d_containers_of_the_layout_blob_are_verified() -> Result<()> {
    let disk = Disk::this()?;
    disk.configure(VERIFIED)?;
    let top = disk.publish("blob", IMAGE)?;
    ok(&mut disk.store(&["verify", "--published"]))?;
    disk.configure(PLAIN)?;
    let done = finish(&mut disk.store(&["verify", "--published"]))?.refused()?;
    for word in ["/etc/containers/storage.conf: ", "verity=require", IMAGE] {
        ensure!(done.text().contains(word), "no {word:?} in {done}");
    }
    disk.configure(VERIFIED)?;
    objects_are_verified(disk)?;

    // podman would mount any EROFS image: it is the check before that refuses it.
    let blob = disk.repository().join(format!(
        "composefs-store/podman-store/overlay/{top}/composefs-data/composefs.blob"
    ));
    let other = disk.erofs(&top)?;
    let other = another(disk, &other)?;
    for tampering in Tampering::ALL {
        let tampered = tampering.apply(&blob, &other)?;
        is_found(disk, tampering, &blob, &[IMAGE])?;
        tampered.undo()?;
    }
    ok(&mut disk.store(&["verify", "--published"]))?;
    Ok(())
}

/// From files with fs-verity. On btrfs the kernel does not say with which parameters, so that they are read.
#[test]
fn d_what_is_published_is_imported_into_a_second_repository() -> Result<()> {
    let disk = Disk::this()?;
    let second = disk.graphroot().with_file_name("second");
    let store = |args: &[&str]| {
        let mut command = Command::new("composefs-store");
        command.arg("--repo").arg(&second).args(args);
        command
    };
    ok(&mut store(&["init"]))?;
    let report = json(&mut store(&["--json", "import", "--trust-source", IMAGE]))?;
    let total = &report["imported"][0]["total"];
    if disk == Disk::Btrfs {
        ensure!(total["copied"]["files"] == 0, "{report:#}");
    }
    let large = object_of(disk, LARGE)?;
    let name = large.strip_prefix(disk.repository())?;
    ok(Command::new("fsverity")
        .arg("measure")
        .arg(second.join(name)))?;
    ok(&mut store(&["fsck", "--read-data"]))?;
    std::fs::remove_dir_all(&second)?;
    Ok(())
}

/// With these mount options podman says that metacopy was not supported. Does it still compare trees?
#[test]
fn e_podman_builds_right_on_verified_blobs() -> Result<()> {
    const CONTAINERFILE: &str = "FROM localhost/fixture:latest\n\
        RUN chmod 0751 /usr/lib/large.bin && mv /work/renamed /work/new-name && \
        rm -rf /work/replaced && mkdir /work/replaced && echo new >/work/replaced/new\n";
    const LOOK: &str = "stat -c '%a %s' /usr/lib/large.bin; sha256sum </usr/lib/large.bin; \
                        stat -c %s /work/new-name/deep/three; ls -A /work/replaced";
    let native = "{{index .Store.GraphStatus \"Native Overlay Diff\"}}";
    let native = ok(&mut podman(&["info", "--format", native]))?.text();
    ensure!(native == "false", "native diff: {native}");
    let before = run(
        IMAGE,
        "stat -c %s /usr/lib/large.bin; sha256sum </usr/lib/large.bin",
    )?;
    let before = before.success()?.text();
    let (size, digest) = before.split_once('\n').context("no digest")?;

    std::fs::create_dir_all("/var/tmp/build")?;
    std::fs::write("/var/tmp/build/Containerfile", CONTAINERFILE)?;
    ok(&mut podman(&[
        "build",
        "--quiet",
        "--network",
        "none",
        "--tag",
        "localhost/built",
        "/var/tmp/build",
    ]))?;
    let built = run("localhost/built", LOOK)?.success()?.text();
    ensure!(
        built == format!("751 {size}\n{digest}\n70000\nnew"),
        "{built}\nof {before}"
    );
    ok(&mut podman(&["rmi", "localhost/built"]))?;
    Ok(())
}

#[test]
fn f_containers_of_the_layout_mounted_are_verified() -> Result<()> {
    let disk = Disk::this()?;
    ok(&mut disk.store(&["unpublish", IMAGE]))?;
    disk.configure(PLAIN)?;
    let top = disk.publish("mounted", IMAGE)?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let ours: Vec<&str> = mounts
        .lines()
        .filter(|line| line.contains(" /run/composefs-store/"))
        .collect();
    ensure!(!ours.is_empty(), "{mounts}");
    ensure!(
        ours.iter().all(|line| line.contains("verity=require")),
        "{mounts}"
    );
    objects_are_verified(disk)?;

    let erofs = disk.erofs(&top)?;
    let other = another(disk, &erofs)?;
    let path = erofs.display().to_string();
    for tampering in Tampering::ALL {
        ok(&mut disk.store(&["serve-mounts", "--stop"]))?;
        let tampered = tampering.apply(&erofs, &other)?;
        drop_caches()?;
        finish(&mut disk.store(&["serve-mounts"]))?.refused_with(&[
            &path,
            tampering.words(),
            IMAGE,
        ])?;
        if tampering == Tampering::ChangedAndSealed {
            run(IMAGE, "true")?.refused()?;
        }
        is_found(disk, tampering, &erofs, &[IMAGE])?;
        tampered.undo()?;
    }
    ok(&mut disk.store(&["serve-mounts"]))?;
    run(IMAGE, "true")?.success()?;
    Ok(())
}

/// Whatever is done to the object of a file: a container that runs cannot read the file, and `verify` names
/// the object, the file and the image.
fn objects_are_verified(disk: Disk) -> Result<()> {
    let object = object_of(disk, LARGE)?;
    let other = another(disk, &object)?;
    let mut reader = Reader::start(IMAGE)?;
    ensure!(reader.reads(Path::new(LARGE))?);
    for tampering in Tampering::ALL {
        let tampered = tampering.apply(&object, &other)?;
        ensure!(
            !reader.reads(Path::new(LARGE))?,
            "{tampering:?}: the container can read it"
        );
        is_found(disk, tampering, &object, &[IMAGE, LARGE])?;
        tampered.undo()?;
        ensure!(reader.reads(Path::new(LARGE))?, "{tampering:?}: undone");
    }
    reader.end()
}

fn is_found(disk: Disk, tampering: Tampering, path: &Path, words: &[&str]) -> Result<()> {
    let done = finish(&mut disk.store(&["verify", "--published"]))?.refused()?;
    let text = done.text();
    let line = text
        .lines()
        .find(|line| line.starts_with(&format!("{}: ", path.display())));
    let line = line.with_context(|| done.to_string())?;
    for word in [&[tampering.words()], words].concat() {
        ensure!(line.contains(word), "{tampering:?}: no {word:?} in {line}");
    }
    Ok(())
}

/// The object that has the content of a file in the image.
fn object_of(disk: Disk, file: &str) -> Result<PathBuf> {
    let content = run(IMAGE, &format!("cat {file}"))?.success()?.stdout;
    for object in disk.objects()? {
        if std::fs::metadata(&object)?.len() == content.len() as u64
            && std::fs::read(&object)? == content
        {
            return Ok(object);
        }
    }
    anyhow::bail!("no object has the content of {file}")
}

/// An object that is not this one.
fn another(disk: Disk, object: &Path) -> Result<PathBuf> {
    let mut objects = disk.objects()?.into_iter();
    objects.find(|other| other != object).context("no other")
}

#[test]
fn g_the_units_are_enabled() -> Result<()> {
    const UNITS: [&str; 2] = [
        "composefs-store-mounts.service",
        "composefs-store-verify.service",
    ];
    let disk = Disk::this()?;
    disk.configure(VERIFIED)?;
    disk.publish("blob", SMALL)?;
    std::fs::copy("/work/bin/composefs-store", "/usr/bin/composefs-store")?;
    for unit in UNITS {
        let file = Path::new("/etc/systemd/system").join(unit);
        std::fs::copy(format!("/work/contrib/systemd/{unit}"), &file)?;
        if disk == Disk::Btrfs {
            // As the unit's comment says.
            let repository = disk.repository();
            let changes = file.with_extension("service.d");
            std::fs::create_dir_all(&changes)?;
            std::fs::write(
                changes.join("override.conf"),
                format!(
                    "[Unit]\nConditionPathIsDirectory=\nRequiresMountsFor={0}\n\
                     [Service]\nEnvironment=COMPOSEFS_STORE_REPO={0}\n",
                    repository.display()
                ),
            )?;
        }
    }
    ok(Command::new("systemctl").arg("daemon-reload"))?;
    ok(Command::new("systemctl").arg("enable").args(UNITS))?;
    Ok(())
}
