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
use std::os::fd::{AsFd, BorrowedFd};

use composefs_image::{Algorithm, VerityDigest, verity_digest_of_root};
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

/// `struct fsverity_read_metadata_arg`.
#[repr(C)]
struct ReadMetadataArg {
    metadata_type: u64,
    offset: u64,
    length: u64,
    buffer: u64,
    reserved: u64,
}
const _: () = assert!(size_of::<ReadMetadataArg>() == 40);

const FS_IOC_READ_VERITY_METADATA: Opcode = opcode::read_write::<ReadMetadataArg>(b'f', 135);
/// `FS_VERITY_METADATA_TYPE_DESCRIPTOR`.
const METADATA_DESCRIPTOR: u64 = 2;
/// Length of `struct fsverity_descriptor` in bytes.
const DESCRIPTOR: usize = 256;

/// The magic numbers of ext4, btrfs and f2fs, whose fs-verity is the kernel's own. A filesystem in user space
/// can say of a file what it likes.
const OWN_VERITY: [u64; 3] = [0xef53, 0x9123_683e, 0xf2f5_2010];

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

/// The digest of the object that a file's content would be, if the kernel knows it: the file has fs-verity with
/// this algorithm, 4096-byte blocks and no salt. What is read from the file is checked against it. Constant time:
/// the content isn't read.
pub fn object_digest(
    file: BorrowedFd<'_>,
    algorithm: Algorithm,
) -> io::Result<Option<VerityDigest>> {
    let filesystem = rustix::fs::fstatfs(file)?;
    if !OWN_VERITY.contains(&(filesystem.f_type as u64)) {
        return Ok(None);
    }
    let digest = match measure_verity(file) {
        Ok(Measured::Digest(digest)) if digest.algorithm() == algorithm => digest,
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some(descriptor) = read_descriptor(file)? else {
        return Ok(None);
    };
    Ok(is_of_object(&digest, &descriptor).then_some(digest))
}

/// Whether a digest is made with the parameters of objects: then the size and root hash in the descriptor that it
/// is the digest of make it again with those.
fn is_of_object(digest: &VerityDigest, descriptor: &[u8; DESCRIPTOR]) -> bool {
    let algorithm = digest.algorithm();
    let (_, rest) = descriptor.split_at(8);
    let Some((size, rest)) = rest.split_first_chunk() else {
        return false;
    };
    let root = rest.get(..algorithm.digest_len()).unwrap_or_default();
    verity_digest_of_root(algorithm, u64::from_le_bytes(*size), root) == *digest
}

/// The descriptor of a file with fs-verity; `None` where the kernel doesn't show it.
fn read_descriptor(file: BorrowedFd<'_>) -> io::Result<Option<[u8; DESCRIPTOR]>> {
    let mut descriptor = [0_u8; DESCRIPTOR];
    let mut argument = ReadMetadataArg {
        metadata_type: METADATA_DESCRIPTOR,
        offset: 0,
        length: DESCRIPTOR as u64,
        buffer: descriptor.as_mut_ptr() as u64,
        reserved: 0,
    };
    // SAFETY: the opcode takes a pointer to a `struct fsverity_read_metadata_arg`, which `ReadMetadataArg` is, and
    // writes at most `length` bytes to `buffer`, which has as many and outlives the call.
    let result = unsafe {
        let call = Updater::<FS_IOC_READ_VERITY_METADATA, ReadMetadataArg>::new(&mut argument);
        ioctl(file, call)
    };
    match result {
        Ok(()) => Ok(Some(descriptor)),
        Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::NODATA) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use composefs_image::verity_digest;
    use sha2::{Digest as _, Sha256};

    use super::*;

    /// A descriptor as the kernel has it, of a file of one block.
    fn descriptor(log_block_size: u8, salt: &[u8]) -> [u8; DESCRIPTOR] {
        let mut descriptor = [0; DESCRIPTOR];
        descriptor[..4].copy_from_slice(&[1, 1, log_block_size, salt.len() as u8]);
        descriptor[8] = 100;
        let mut block = [0; 4096];
        block[..100].fill(7);
        let salt_block = [salt, &[0; 64][salt.len()..]].concat();
        let salted = if salt.is_empty() {
            &[][..]
        } else {
            &salt_block
        };
        let block = &block[..1 << log_block_size];
        let root = Sha256::digest([salted, block].concat());
        descriptor[16..48].copy_from_slice(&root);
        descriptor[80..80 + salt.len()].copy_from_slice(salt);
        descriptor
    }

    #[test]
    fn only_digests_with_the_parameters_of_objects_are_those_of_objects() {
        let measured = |descriptor: &[u8; DESCRIPTOR]| {
            VerityDigest::from_bytes(Algorithm::Sha256, &Sha256::digest(descriptor)).unwrap()
        };
        let ours = descriptor(12, b"");
        assert_eq!(
            measured(&ours),
            verity_digest(Algorithm::Sha256, &[7; 100]),
            "the test's own idea of a descriptor"
        );
        assert!(is_of_object(&measured(&ours), &ours));
        for other in [descriptor(10, b""), descriptor(12, b"salt")] {
            assert!(!is_of_object(&measured(&other), &other));
        }
        let mut empty = ours;
        empty.fill(0);
        assert!(!is_of_object(&measured(&ours), &empty));
    }
}
