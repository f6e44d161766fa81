//! The filesystem of the repository: clones, fs-verity, room.

use std::{
    fs::File,
    io::{self, Write as _},
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use repository::{Algorithm, sys::Enabled};
use rustix::{
    fs::{Mode, OFlags, ioctl_ficlone},
    io::Errno,
};
use serde::Serialize;

use super::{
    Facts,
    finding::{Finding, Fix, Kind, Remedy, Severity, shell},
};
use crate::{mount::MountTable, paths::StorePaths, publish::check_objects_directory};

/// What the filesystem of the repository can do and has left.
#[derive(Clone, Debug, Serialize)]
pub struct FilesystemFacts {
    /// Its type, such as `xfs`.
    pub kind: String,
    /// Files can be cloned (reflinks); `None` if it could not be tried.
    pub reflink: Option<bool>,
    /// It has fs-verity; `None` if it could not be tried.
    pub verity: Option<bool>,
    /// Free bytes.
    pub free_bytes: u64,
    /// Size in bytes.
    pub bytes: u64,
    /// Free inodes; `None` where they are made as they are needed.
    pub free_inodes: Option<u64>,
    /// podman's graph root, if it is on another filesystem.
    pub graphroot_elsewhere: Option<PathBuf>,
    /// What is wrong with owner and mode of the directory of objects.
    pub objects_mode: Option<String>,
}

/// Looks at it, and tries clones and fs-verity with files without a name.
pub(super) fn probe(paths: &StorePaths, graphroot: Option<&Path>) -> io::Result<FilesystemFacts> {
    let path = paths.repository();
    let stat = rustix::fs::statvfs(path)?;
    let device = path.metadata()?.dev();
    let elsewhere = graphroot.filter(|root| {
        let existing = root.ancestors().find_map(|it| it.metadata().ok());
        existing.is_some_and(|metadata| metadata.dev() != device)
    });
    Ok(FilesystemFacts {
        kind: kind_of(path),
        reflink: can_clone(path).ok(),
        verity: has_verity(path).ok(),
        free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        free_inodes: (stat.f_files > 0).then_some(stat.f_favail),
        graphroot_elsewhere: elsewhere.map(Path::to_owned),
        objects_mode: check_objects_directory(paths)
            .err()
            .map(|error| error.to_string()),
    })
}

fn kind_of(path: &Path) -> String {
    let table = MountTable::read().unwrap_or_default();
    path.ancestors()
        .find_map(|ancestor| table.top_at(ancestor))
        .map_or_else(|| "unknown".into(), |mount| mount.filesystem.clone())
}

fn can_clone(directory: &Path) -> io::Result<bool> {
    let mut from = tempfile::tempfile_in(directory)?;
    from.write_all(&[1; 4096])?;
    let to = tempfile::tempfile_in(directory)?;
    match ioctl_ficlone(to.as_fd(), from.as_fd()) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL | Errno::NOSYS) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn has_verity(directory: &Path) -> io::Result<bool> {
    let mut named = tempfile::NamedTempFile::new_in(directory)?;
    named.write_all(&[1; 4096])?;
    let path = named.into_temp_path();
    // The descriptor that wrote is closed, and this one only reads.
    let file: File =
        rustix::fs::open(&*path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?.into();
    match repository::sys::enable_verity(&file, Algorithm::Sha256)? {
        Enabled::Yes => Ok(true),
        Enabled::Unsupported => Ok(false),
        Enabled::Busy => Err(Errno::TXTBSY.into()),
    }
}

/// Less than this is little, whatever the size.
const FEW_BYTES: u64 = 64 << 20;
const FEW_INODES: u64 = 10_000;

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let repository = &facts.repository;
    let Some(filesystem) = &facts.filesystem else {
        return Vec::new();
    };
    let mut findings = Vec::new();
    let mut add = |finding, severity, problem: String, why: &str, remedy| {
        findings.push(Finding {
            finding,
            severity,
            subject: repository.path.display().to_string(),
            problem,
            why: why.into(),
            remedy,
        });
    };
    let kind = &filesystem.kind;
    if filesystem.reflink == Some(false) {
        add(
            Kind::NoReflink,
            Severity::Note,
            format!("its filesystem ({kind}) cannot clone files"),
            "an import copies what podman has, and both take space",
            Remedy::advice("keep podman's storage and the repository on one XFS or btrfs"),
        );
    } else if let Some(graphroot) = &filesystem.graphroot_elsewhere {
        add(
            Kind::OtherFilesystem,
            Severity::Note,
            format!(
                "it is on another filesystem than podman's storage {}",
                graphroot.display()
            ),
            "an import copies what podman has, and both take space",
            Remedy::advice("keep podman's storage and the repository on one filesystem"),
        );
    }
    if filesystem.verity == Some(false) {
        if repository.secure {
            add(
                Kind::NoVerity,
                Severity::Error,
                format!(
                    "it is a secure repository, but its filesystem ({kind}) has no fs-verity now"
                ),
                "nothing can be imported, and no image can be mounted",
                Remedy::advice(match kind.as_str() {
                    "ext4" => {
                        "run `tune2fs -O verity` on its device, with a kernel that has CONFIG_FS_VERITY"
                    }
                    _ => "move it to ext4 or btrfs, with a kernel that has CONFIG_FS_VERITY",
                }),
            );
        } else {
            add(
                Kind::NoVerity,
                Severity::Note,
                format!("kernel or filesystem ({kind}) have no fs-verity"),
                "digests are checked by fsck, not by the kernel whenever a file is read",
                Remedy::advice("use ext4 with the feature `verity`, or btrfs"),
            );
        }
    } else if filesystem.verity == Some(true) && !repository.secure {
        add(
            Kind::NoVerity,
            Severity::Note,
            format!("its filesystem ({kind}) has fs-verity, but it was made with --insecure"),
            "containers are not verified",
            Remedy::advice("make another repository with `composefs-store init`, and import again"),
        );
    }
    let least = FEW_BYTES.max(filesystem.bytes / 100);
    if filesystem.free_bytes < least {
        add(
            Kind::LowSpace,
            Severity::Warning,
            format!("only {} MiB are free", filesystem.free_bytes >> 20),
            "imports and containers run out of space",
            Remedy::command(format!(
                "composefs-store --repo {} gc",
                shell(&repository.path)
            )),
        );
    }
    if let Some(free) = filesystem.free_inodes
        && free < FEW_INODES
    {
        add(
            Kind::LowInodes,
            Severity::Warning,
            format!("only {free} inodes are free"),
            "each file of an image takes one, once",
            Remedy::command(format!(
                "composefs-store --repo {} gc",
                shell(&repository.path)
            )),
        );
    }
    if let Some(problem) = &filesystem.objects_mode
        && repository.blob_layers > 0
    {
        let objects = shell(&repository.objects);
        add(
            Kind::ObjectsMode,
            Severity::Error,
            problem.clone(),
            "`/` of every container in the layout blob has this owner and mode",
            Remedy::Command {
                command: format!("chown 0:0 {objects} && chmod 0555 {objects}"),
                fix: Some(Fix::ObjectsMode),
            },
        );
    }
    findings
}
