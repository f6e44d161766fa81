//! Mounting composefs images through the kernel's new mount API.
//!
//! A composefs mount is two filesystems: the EROFS image, which carries names and metadata, below an
//! overlay whose data-only layers are object directories ("composefs image format, mounting"). Kernels
//! differ in what they accept, and which kernel runs is known only at run time, so every variant is
//! tried from the newest to the oldest; nothing is chosen at compile time.
//!
//! This module knows descriptors and paths, not repositories: it never decides which image is the right
//! one. It prints nothing; what the kernel says in its mount context travels in [`MountError`].

mod bind;
mod composefs;
mod context;
mod erofs;
mod table;

use std::{
    io,
    path::{Path, PathBuf},
};

pub use bind::bind_read_only;
pub use composefs::{Access, Backing, Composefs, LayerForm, Stacking, Upper, Verity};
pub use table::{MountEntry, MountTable};

use rustix::{
    fd::{AsFd, OwnedFd},
    fs::CWD,
    mount::{MoveMountFlags, UnmountFlags, move_mount, unmount as sys_unmount},
};

/// Why something could not be mounted or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// A system call of the mount API failed.
    #[error("{subject}: {step}: {error}{}", log_suffix(.log))]
    Kernel {
        /// What was being mounted: an image name or a path.
        subject: String,
        /// The step that failed, e.g. `mounting the overlay`.
        step: &'static str,
        /// The error number.
        error: io::Error,
        /// What the kernel wrote into the mount context, without its severity letters. Often empty.
        log: Vec<String>,
    },
    /// The kernel does not know a filesystem type.
    #[error(
        "this kernel has no `{filesystem}` filesystem: load the module (`modprobe {filesystem}`) or use a kernel that has it"
    )]
    NoFilesystem {
        /// `erofs` or `overlay`.
        filesystem: &'static str,
    },
    /// The file does not begin with a composefs header.
    #[error("{image}: not a composefs image ({why})")]
    NotAnImage {
        /// Name of the image, as in the mount's source.
        image: String,
        /// What is wrong with the header.
        why: &'static str,
    },
    /// Without data-only layers the root stubs of V0 and V1 have to hide the objects, and a V2 image has
    /// none.
    #[error("{subject}: a V2 image needs a kernel with data-only layers (6.5); use a V1 image")]
    NoStubs {
        /// What was being mounted.
        subject: String,
    },
    /// A file or directory that mounting needs could not be used.
    #[error("{}: {error}", path.display())]
    Path {
        /// The path concerned.
        path: PathBuf,
        /// The error.
        error: io::Error,
    },
}

fn log_suffix(log: &[String]) -> String {
    if log.is_empty() {
        String::new()
    } else {
        format!(" (kernel: {})", log.join("; "))
    }
}

impl MountError {
    fn path(path: impl Into<PathBuf>, error: impl Into<io::Error>) -> Self {
        Self::Path {
            path: path.into(),
            error: error.into(),
        }
    }

    /// The error number behind this error, where there is one.
    pub fn io_error(&self) -> Option<&io::Error> {
        match self {
            Self::Kernel { error, .. } | Self::Path { error, .. } => Some(error),
            Self::NoFilesystem { .. } | Self::NotAnImage { .. } | Self::NoStubs { .. } => None,
        }
    }
}

/// A mount that is attached nowhere yet. Dropping it unmounts.
#[derive(Debug)]
pub struct DetachedMount {
    fd: OwnedFd,
    subject: String,
}

impl DetachedMount {
    /// Shows the mount at `target`, an existing directory, on top of whatever is there.
    pub fn attach(self, target: &Path) -> Result<(), MountError> {
        move_mount(
            self.fd.as_fd(),
            c"",
            CWD,
            target,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
        .map_err(|error| MountError::Kernel {
            subject: format!("{} on {}", self.subject, target.display()),
            step: "attaching the mount",
            error: error.into(),
            log: Vec::new(),
        })
    }
}

/// How an unmount treats a mount that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Busy {
    /// Fail with `EBUSY`.
    Fail,
    /// Take the name away now and the mount when its last user goes (`MNT_DETACH`).
    Detach,
}

/// Takes the topmost mount at `target` away. `target` itself is never followed as a symlink.
pub fn unmount(target: &Path, busy: Busy) -> Result<(), MountError> {
    let flags = match busy {
        Busy::Fail => UnmountFlags::NOFOLLOW,
        Busy::Detach => UnmountFlags::NOFOLLOW | UnmountFlags::DETACH,
    };
    sys_unmount(target, flags).map_err(|error| MountError::Kernel {
        subject: target.display().to_string(),
        step: "unmounting",
        error: error.into(),
        log: Vec::new(),
    })
}
