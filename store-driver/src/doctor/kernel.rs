//! The kernel: what it can mount, found out by mounting.
//!
//! An empty image is mounted detached, so nobody sees it, in the ways that podman and we use.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    process::{Child, Command, Stdio},
};

use composefs_image::{Dialect, Format, Metadata, Tree, WriteOptions, write_image};
use repository::sys::{MountAttribute, set_mount_attribute};
use rustix::{
    fs::{CWD, Mode, OFlags, open},
    mount::{OpenTreeFlags, open_tree},
};
use serde::Serialize;

use super::{
    Facts,
    finding::{Finding, Kind, Remedy, Severity},
};
use crate::mount::{Backing, Composefs, MountError, Verity};

/// What the running kernel can do.
#[derive(Clone, Debug, Serialize)]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct KernelFacts {
    /// `uname -r`.
    pub release: String,
    /// A filesystem that it lacks.
    pub missing_filesystem: Option<&'static str>,
    /// An EROFS image is mounted from its file, without a loop device.
    pub file_backed_erofs: bool,
    /// Loop devices can be had.
    pub loop_devices: bool,
    /// Overlays take data-only layers and `metacopy=on`.
    pub data_only_layers: bool,
    /// Overlays take `verity=require`.
    pub overlay_verity: bool,
    /// An overlay fits on a composefs whose EROFS is mounted from its file.
    pub overlay_on_container: bool,
    /// The filesystem of the store can be shown with shifted owners.
    pub idmapped_store: bool,
}

/// Tries everything, on the filesystem of `directory`. Needs `CAP_SYS_ADMIN`; what cannot be tried counts as
/// lacking.
pub(super) fn probe(directory: &Path) -> KernelFacts {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let v1 = empty_image(directory, Format::V1);
    let v2 = empty_image(directory, Format::V2);
    let data = open(
        directory,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    );
    let (Ok(v1), Ok(v2), Ok(data)) = (v1, v2, data) else {
        tracing::warn!("nothing can be tried in {}", directory.display());
        return KernelFacts {
            release,
            missing_filesystem: None,
            file_backed_erofs: false,
            loop_devices: false,
            data_only_layers: false,
            overlay_verity: false,
            overlay_on_container: false,
            idmapped_store: false,
        };
    };
    let try_mount = |composefs: Composefs<'_>| {
        let result = composefs.mount();
        if let Err(error) = &result {
            tracing::debug!("{error}");
        }
        result
    };
    let plain = try_mount(composefs(&v1, data.as_fd()));
    let missing_filesystem = match &plain {
        Err(MountError::NoFilesystem { filesystem }) => Some(*filesystem),
        _ => None,
    };
    let file_backed = try_mount(composefs(&v1, data.as_fd()).backing(Backing::File)).is_ok();
    KernelFacts {
        release,
        missing_filesystem,
        file_backed_erofs: file_backed,
        loop_devices: Path::new("/dev/loop-control").exists(),
        // A V2 image cannot be mounted without.
        data_only_layers: try_mount(composefs(&v2, data.as_fd())).is_ok(),
        overlay_verity: try_mount(composefs(&v2, data.as_fd()).verity(Verity::Require)).is_ok(),
        overlay_on_container: file_backed
            && composefs(&v1, data.as_fd())
                .leaves_room_on_file()
                .unwrap_or(false),
        idmapped_store: idmapped_clone(directory).is_ok(),
    }
}

fn composefs<'a>(image: &'a File, data: BorrowedFd<'a>) -> Composefs<'a> {
    Composefs::new(image.as_fd(), "composefs-store-probe").data(data)
}

/// An image of an empty tree, in a file without a name.
fn empty_image(directory: &Path, format: Format) -> std::io::Result<File> {
    let mut file = tempfile::tempfile_in(directory)?;
    let options = WriteOptions {
        format,
        dialect: Dialect::ComposefsRs,
    };
    let mut bytes = Vec::new();
    write_image(&Tree::new(Metadata::default()), &options, &mut bytes)
        .map_err(std::io::Error::other)?;
    file.write_all(&bytes)?;
    Ok(file)
}

/// A process in a user namespace of its own, ended when dropped.
struct Namespace(Child);

impl Namespace {
    fn new() -> std::io::Result<Self> {
        let mut child = Command::new("unshare")
            .args(["--user", "--map-root-user", "sh", "-c", "echo; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut ready = [0];
        let said = child.stdout.as_mut().map(|out| out.read_exact(&mut ready));
        let namespace = Self(child);
        said.unwrap_or(Ok(()))?;
        Ok(namespace)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Shows a directory with shifted owners, detached, as podman does with a store.
fn idmapped_clone(directory: &Path) -> std::io::Result<()> {
    let namespace = Namespace::new()?;
    let map = File::open(format!("/proc/{}/ns/user", namespace.0.id()))?;
    let clone = open_tree(
        CWD,
        directory,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )?;
    set_mount_attribute(clone.as_fd(), MountAttribute::IdMapped(map.as_fd()))
}

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let Some(kernel) = &facts.kernel else {
        return vec![Finding {
            finding: Kind::NotRoot,
            severity: Severity::Note,
            subject: "composefs-store doctor".into(),
            problem: "what the kernel can mount was not tried".into(),
            why: "mounting needs root, and so does most of what is looked at".into(),
            remedy: Remedy::command("sudo composefs-store doctor"),
        }];
    };
    let mut findings = Vec::new();
    let mut add = |finding, severity, problem: &str, why: &str, remedy| {
        findings.push(Finding {
            finding,
            severity,
            subject: format!("kernel {}", kernel.release),
            problem: problem.into(),
            why: why.into(),
            remedy,
        });
    };
    if let Some(filesystem) = kernel.missing_filesystem {
        add(
            Kind::KernelFilesystem,
            Severity::Error,
            &format!("it has no {filesystem} filesystem"),
            "no image can be mounted, neither by podman nor by us",
            Remedy::command(format!("modprobe {filesystem}")),
        );
        return findings;
    }
    if !kernel.data_only_layers {
        add(
            Kind::KernelDataOnly,
            match facts.repository.blob_layers {
                0 => Severity::Note,
                _ => Severity::Error,
            },
            "its overlay has no data-only layers (Linux 6.5)",
            "podman cannot start containers of the layout blob, and V2 images cannot be mounted",
            Remedy::advice("use Linux 6.5 or newer, or publish with --layout mounted"),
        );
    }
    if !kernel.file_backed_erofs {
        let (severity, remedy) = if kernel.loop_devices {
            (
                Severity::Note,
                Remedy::advice("use Linux 6.12 or newer, with CONFIG_EROFS_FS_BACKED_BY_FILE"),
            )
        } else {
            (Severity::Error, Remedy::command("modprobe loop"))
        };
        add(
            Kind::KernelLoop,
            severity,
            "it mounts EROFS images through loop devices only",
            "each mount of an image takes a loop device, and these can run out",
            remedy,
        );
    }
    if kernel.file_backed_erofs && !kernel.overlay_on_container {
        add(
            Kind::KernelStacking,
            Severity::Note,
            "it counts an EROFS mounted from a file as a level of stacking",
            "overlays in containers (podman in podman, volumes with :O) fail in the layout blob; in the \
             layout mounted, loop devices are used instead",
            Remedy::advice("use Linux 6.19 or newer, or a kernel that has the count reverted"),
        );
    }
    if !kernel.overlay_verity && facts.repository.secure {
        add(
            Kind::KernelVerity,
            Severity::Error,
            "its overlay does not know verity=require (Linux 6.6)",
            "images of this repository, which has fs-verity, cannot be mounted in the layout mounted",
            Remedy::advice("use Linux 6.6 or newer"),
        );
    }
    if !kernel.idmapped_store {
        add(
            Kind::KernelIdmap,
            Severity::Note,
            &format!(
                "{} cannot be shown with shifted owners",
                facts.repository.path.display()
            ),
            "containers with a user namespace of their own (--userns, --uidmap) get a copy of the whole tree",
            Remedy::advice(
                "keep the repository on a filesystem with idmapped mounts: ext4, XFS, btrfs",
            ),
        );
    }
    findings
}
