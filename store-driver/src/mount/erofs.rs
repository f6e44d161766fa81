//! Mounting the EROFS half of a composefs image: straight from the file where the kernel can (6.12),
//! through a read-only loop device elsewhere.

use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    io::{Errno, pread},
    mount::MountAttrFlags,
};

use super::{
    MountError,
    composefs::Backing,
    context::{FsContext, descriptor_path},
};

const COMPOSEFS_MAGIC: u32 = 0xd078_629a;
const FLAG_HAS_ACL: u32 = 1;
/// The composefs-rs format of 2024/25; it never sets [`FLAG_HAS_ACL`], so its absence says nothing.
const VERSION_WITHOUT_ACL_FLAG: u32 = 2;

/// Whether an image needs POSIX ACLs to be evaluated. Leaving them out where there are none saves a
/// lookup per permission check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Acl {
    Evaluate,
    Absent,
}

/// Whether the image's root has the 256 stubs that hide object directories on kernels without data-only
/// layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stubs {
    Present,
    Absent,
}

/// What mounting needs to know of an image, from its header alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ImageHeader {
    acl: Acl,
    pub(super) stubs: Stubs,
}

/// What an EROFS mount stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stands {
    OnFile,
    OnLoopDevice,
}

fn parse_header(header: &[u8; 16]) -> Result<ImageHeader, &'static str> {
    let word = |at: usize| {
        let mut bytes = [0_u8; 4];
        bytes.copy_from_slice(&header[at..at + 4]);
        u32::from_le_bytes(bytes)
    };
    if word(0) != COMPOSEFS_MAGIC {
        return Err("no composefs header");
    }
    let flags = word(8);
    let version = word(12);
    if version >= VERSION_WITHOUT_ACL_FLAG {
        return Ok(ImageHeader {
            acl: Acl::Evaluate,
            stubs: Stubs::Absent,
        });
    }
    Ok(ImageHeader {
        acl: if flags & FLAG_HAS_ACL == 0 {
            Acl::Absent
        } else {
            Acl::Evaluate
        },
        stubs: Stubs::Present,
    })
}

/// Reads the header of an image file.
pub(super) fn read_header(image: BorrowedFd<'_>, name: &str) -> Result<ImageHeader, MountError> {
    let mut header = [0_u8; 16];
    let length = pread(image, &mut header[..], 0).map_err(|error| MountError::path(name, error))?;
    if length != header.len() {
        return Err(MountError::NotAnImage {
            image: name.to_owned(),
            why: "shorter than its header",
        });
    }
    parse_header(&header).map_err(|why| MountError::NotAnImage {
        image: name.to_owned(),
        why,
    })
}

/// Mounts the image read-only and detached.
pub(super) fn mount_erofs(
    image: BorrowedFd<'_>,
    name: &str,
    header: ImageHeader,
    backing: Backing,
) -> Result<(OwnedFd, Stands), MountError> {
    let acl = header.acl;
    if backing != Backing::LoopDevice {
        match mount_source(&descriptor_path(image), name, acl) {
            Ok(mount) => return Ok((mount, Stands::OnFile)),
            Err(error) if backing == Backing::Auto && needs_block_device(&error) => {}
            Err(error) => return Err(error),
        }
    }
    let device =
        repository::sys::attach_loop_device(image).map_err(|error| MountError::Kernel {
            subject: name.to_owned(),
            step: "attaching a loop device",
            error,
            log: Vec::new(),
        })?;
    // The mount holds the device from here on; closing ours lets autoclear free it after unmount.
    let mount = mount_source(&descriptor_path(device.as_fd()), name, acl)?;
    Ok((mount, Stands::OnLoopDevice))
}

fn needs_block_device(error: &MountError) -> bool {
    matches!(error, MountError::Kernel { error, .. }
        if error.raw_os_error() == Some(Errno::NOTBLK.raw_os_error()))
}

fn mount_source(source: &str, name: &str, acl: Acl) -> Result<OwnedFd, MountError> {
    let context = FsContext::open("erofs", name)?;
    context.flag("ro")?;
    if acl == Acl::Absent {
        context.flag("noacl")?;
    }
    context.string("source", source)?;
    context.mount(MountAttrFlags::MOUNT_ATTR_RDONLY)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(flags: u32, version: u32) -> [u8; 16] {
        let mut bytes = [0_u8; 16];
        bytes[0..4].copy_from_slice(&COMPOSEFS_MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&1_u32.to_le_bytes());
        bytes[8..12].copy_from_slice(&flags.to_le_bytes());
        bytes[12..16].copy_from_slice(&version.to_le_bytes());
        bytes
    }

    #[test]
    fn acls_are_left_out_only_where_the_header_can_say_that_there_are_none() {
        let acl = |flags, version| parse_header(&header(flags, version)).unwrap().acl;
        assert_eq!(acl(0, 0), Acl::Absent);
        assert_eq!(acl(0, 1), Acl::Absent);
        assert_eq!(acl(1, 1), Acl::Evaluate);
        assert_eq!(acl(0, 2), Acl::Evaluate);
    }

    #[test]
    fn only_v0_and_v1_hide_objects_without_data_only_layers() {
        let stubs = |version| parse_header(&header(0, version)).unwrap().stubs;
        assert_eq!(stubs(0), Stubs::Present);
        assert_eq!(stubs(1), Stubs::Present);
        assert_eq!(stubs(2), Stubs::Absent);
    }

    #[test]
    fn a_file_without_the_composefs_magic_is_refused() {
        assert!(parse_header(&[0; 16]).is_err());
    }
}
