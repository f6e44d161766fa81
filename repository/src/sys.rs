//! System calls that no safe crate has: fs-verity, loop devices, mount attributes, and a setting of the
//! allocator. The one module with `unsafe` in it.
//!
//! Follows `linux/fsverity.h`. It knows nothing of repositories: descriptors in, digests out. Files are
//! measured with whatever parameters they have; a digest is only comparable with ours if it was made
//! with 4096-byte blocks and no salt, which the digest itself covers.
#![allow(unsafe_code)]

mod loop_device;
mod memory;
mod mount_attribute;

pub use loop_device::attach_loop_device;
pub use memory::return_freed_memory;
pub use mount_attribute::{MountAttribute, set_mount_attribute};

use std::io;
use std::os::fd::AsFd;

use composefs_image::{Algorithm, VerityDigest};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, Updater, ioctl, opcode};

/// What the kernel says about the fs-verity digest of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measured {
    /// fs-verity is enabled; reads are checked against this digest.
    Digest(VerityDigest),
    /// The filesystem has fs-verity, but it is not enabled on this file.
    Disabled,
    /// The filesystem (or kernel) has no fs-verity.
    Unsupported,
}

/// The outcome of [`enable_verity`] where it isn't an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enabled {
    /// fs-verity is enabled, by this call or before it.
    Yes,
    /// The filesystem (or kernel) has no fs-verity.
    Unsupported,
    /// Somebody has the file open for writing.
    Busy,
}

/// `struct fsverity_enable_arg`.
#[repr(C)]
struct EnableArg {
    version: u32,
    hash_algorithm: u32,
    block_size: u32,
    salt_size: u32,
    salt_ptr: u64,
    sig_size: u32,
    reserved1: u32,
    sig_ptr: u64,
    reserved2: [u64; 11],
}
const _: () = assert!(size_of::<EnableArg>() == 128);

/// `struct fsverity_digest` with room for the longest digest there is.
#[repr(C)]
struct DigestArg {
    algorithm: u16,
    size: u16,
    digest: [u8; MAX_DIGEST],
}
const MAX_DIGEST: usize = 64;

/// The part of `struct fsverity_digest` before its flexible array: what the ioctl's number is made of.
#[repr(C)]
struct DigestHeader {
    algorithm: u16,
    size: u16,
}

const FS_IOC_ENABLE_VERITY: Opcode = opcode::write::<EnableArg>(b'f', 133);
const FS_IOC_MEASURE_VERITY: Opcode = opcode::read_write::<DigestHeader>(b'f', 134);

/// Enables fs-verity with `algorithm`, 4096-byte blocks and no salt on a file open for reading only.
///
/// Nobody may have the file open for writing, this process included ([`Enabled::Busy`]). Returns
/// [`Enabled::Yes`] also where fs-verity was on already, perhaps with other parameters: measure it.
pub fn enable_verity(file: impl AsFd, algorithm: Algorithm) -> io::Result<Enabled> {
    let argument = EnableArg {
        version: 1,
        hash_algorithm: u32::from(algorithm.kernel_id()),
        block_size: 4096,
        salt_size: 0,
        salt_ptr: 0,
        sig_size: 0,
        reserved1: 0,
        sig_ptr: 0,
        reserved2: [0; 11],
    };
    // SAFETY: the opcode takes a pointer to a `struct fsverity_enable_arg`, which `EnableArg` is; the
    // salt and signature sizes are 0, so the kernel follows neither of its pointers.
    let result = unsafe {
        let call = Setter::<FS_IOC_ENABLE_VERITY, EnableArg>::new(argument);
        ioctl(file, call)
    };
    match result {
        Ok(()) | Err(Errno::EXIST) => Ok(Enabled::Yes),
        Err(Errno::NOTTY | Errno::OPNOTSUPP) => Ok(Enabled::Unsupported),
        Err(Errno::TXTBSY) => Ok(Enabled::Busy),
        Err(error) => Err(error.into()),
    }
}

/// Asks the kernel for the fs-verity digest of a file. Constant time: the content isn't read.
///
/// A hash algorithm other than SHA-256 and SHA-512 is an error of kind `InvalidData`.
pub fn measure_verity(file: impl AsFd) -> io::Result<Measured> {
    let mut argument = DigestArg {
        algorithm: 0,
        size: MAX_DIGEST as u16,
        digest: [0; MAX_DIGEST],
    };
    // SAFETY: the opcode takes a pointer to a `struct fsverity_digest` followed by as many bytes as its
    // size field says, and `DigestArg` has these.
    let result = unsafe {
        let call = Updater::<FS_IOC_MEASURE_VERITY, DigestArg>::new(&mut argument);
        ioctl(file, call)
    };
    match result {
        Ok(()) => {}
        Err(Errno::NODATA) => return Ok(Measured::Disabled),
        Err(Errno::NOTTY | Errno::OPNOTSUPP) => return Ok(Measured::Unsupported),
        Err(error) => return Err(error.into()),
    }
    let invalid = |message: String| io::Error::new(io::ErrorKind::InvalidData, message);
    let algorithm = [Algorithm::Sha256, Algorithm::Sha512]
        .into_iter()
        .find(|algorithm| u16::from(algorithm.kernel_id()) == argument.algorithm)
        .ok_or_else(|| {
            invalid(format!(
                "fs-verity hash algorithm {} is unknown",
                argument.algorithm
            ))
        })?;
    argument
        .digest
        .get(..usize::from(argument.size))
        .and_then(|digest| VerityDigest::from_bytes(algorithm, digest).ok())
        .map(Measured::Digest)
        .ok_or_else(|| invalid(format!("fs-verity digest of {} bytes", argument.size)))
}
