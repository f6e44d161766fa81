//! `mount_setattr(2)` (Linux 5.12), which rustix doesn't have.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// `struct mount_attr`.
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}
const _: () = assert!(size_of::<MountAttr>() == 32);

const MOUNT_ATTR_RDONLY: u64 = 0x0000_0001;
const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

/// An attribute to give to a mount.
#[derive(Debug, Clone, Copy)]
pub enum MountAttribute<'a> {
    /// Nothing can be written through the mount.
    ReadOnly,
    /// What is mounted below it is not mounted below others, and the other way round.
    Private,
    /// Owners are shifted by the maps of this user namespace. Only for detached mounts of filesystems
    /// that support it.
    IdMapped(BorrowedFd<'a>),
}

/// Changes the mount that `mount` refers to (from `fsmount` or `open_tree`), not those below it.
pub fn set_mount_attribute(mount: impl AsFd, attribute: MountAttribute<'_>) -> io::Result<()> {
    let argument = match attribute {
        MountAttribute::ReadOnly => MountAttr {
            set: MOUNT_ATTR_RDONLY,
            ..MountAttr::default()
        },
        MountAttribute::Private => MountAttr {
            propagation: libc::MS_PRIVATE,
            ..MountAttr::default()
        },
        MountAttribute::IdMapped(namespace) => MountAttr {
            set: MOUNT_ATTR_IDMAP,
            user_namespace: u64::from(namespace.as_raw_fd().cast_unsigned()),
            ..MountAttr::default()
        },
    };
    // SAFETY: the path is an empty C string, the argument is a `struct mount_attr` of the size given,
    // and both live through the call, which keeps no pointer.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const argument,
            size_of::<MountAttr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
