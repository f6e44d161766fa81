//! Loop devices for kernels that cannot mount EROFS from a file (`linux/loop.h`, since Linux 5.8).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Setter, ioctl};

const LOOP_CONTROL: &str = "/dev/loop-control";
const LOOP_CTL_GET_FREE: Opcode = 0x4C82;
const LOOP_CONFIGURE: Opcode = 0x4C0A;

const READ_ONLY: u32 = 1;
const AUTOCLEAR: u32 = 4;
const DIRECT_IO: u32 = 16;

/// Somebody else may take the free device first; that often in a row means something else is wrong.
const ATTEMPTS: usize = 64;

/// `struct loop_info64`; only the flags are used.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}
const _: () = assert!(size_of::<LoopInfo>() == 232);

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}
const _: () = assert!(size_of::<LoopConfig>() == 304);

/// `LOOP_CTL_GET_FREE`: no argument, the number of the device is the result.
struct GetFree;

// SAFETY: the ioctl reads and writes no memory of ours.
unsafe impl Ioctl for GetFree {
    type Output = i32;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        LOOP_CTL_GET_FREE
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(
        output: IoctlOutput,
        _: *mut std::ffi::c_void,
    ) -> rustix::io::Result<i32> {
        Ok(output)
    }
}

/// Attaches a file to a free loop device: read-only, 4096-byte blocks, direct I/O where the filesystem
/// has it, and cleared by the kernel once the last user (a mount, or the returned descriptor) is gone.
pub fn attach_loop_device(file: impl AsFd) -> io::Result<File> {
    let file = file.as_fd();
    let control = File::options().read(true).write(true).open(LOOP_CONTROL)?;
    for _ in 0..ATTEMPTS {
        // SAFETY: see `GetFree`.
        let number = unsafe { ioctl(&control, GetFree) }?;
        let device = File::open(format!("/dev/loop{number}"))?;
        let configured = match configure(&device, file.as_raw_fd(), DIRECT_IO) {
            Err(Errno::INVAL | Errno::OPNOTSUPP) => configure(&device, file.as_raw_fd(), 0),
            other => other,
        };
        match configured {
            Ok(()) => return Ok(device),
            Err(Errno::BUSY) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Errno::BUSY.into())
}

fn configure(device: &File, file: i32, extra_flags: u32) -> rustix::io::Result<()> {
    let config = LoopConfig {
        fd: file.cast_unsigned(),
        block_size: 4096,
        info: LoopInfo {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: READ_ONLY | AUTOCLEAR | extra_flags,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    // SAFETY: the opcode takes a pointer to a `struct loop_config`, which `LoopConfig` is; the
    // descriptor in it is open for the length of the call.
    unsafe { ioctl(device, Setter::<LOOP_CONFIGURE, LoopConfig>::new(config)) }
}
