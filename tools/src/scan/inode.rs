//! One inode of the source, held by an `O_PATH` descriptor. What it says about itself.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use rustix::fd::OwnedFd;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Stat, fstat, getxattr, listxattr, openat, readlinkat,
    statat,
};
use rustix::io::Errno;

use super::ScanError;

/// An inode whose attributes were read once; [`Inode::is_unchanged`] compares.
pub(super) struct Inode {
    fd: OwnedFd,
    stat: Stat,
}

/// The kernel's limit for the list of names and for a value (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const XATTR_MAX: usize = 65536;

impl Inode {
    /// The source itself. As with every other name, a symlink there is not followed.
    pub(super) fn open_source(path: &Path) -> Result<Self, ScanError> {
        if statat(CWD, "/proc/self/fd", AtFlags::empty()).is_err() {
            return Err(ScanError::NoProc);
        }
        Self::open(CWD, path, path)
    }

    /// A name in a directory; `path` is for messages.
    pub(super) fn open_at(
        directory: &OwnedFd,
        name: &CStr,
        path: &Path,
    ) -> Result<Self, ScanError> {
        Self::open(directory, name, path)
    }

    fn open(
        directory: impl rustix::fd::AsFd,
        name: impl rustix::path::Arg,
        path: &Path,
    ) -> Result<Self, ScanError> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(directory, name, flags, Mode::empty())
            .map_err(ScanError::io(path, "opening"))?;
        let stat = fstat(&fd).map_err(ScanError::io(path, "reading attributes"))?;
        Ok(Self { fd, stat })
    }

    pub(super) fn stat(&self) -> &Stat {
        &self.stat
    }

    pub(super) fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// Size of a regular file in bytes.
    pub(super) fn size(&self) -> u64 {
        u64::try_from(self.stat.st_size).unwrap_or(0)
    }

    /// The path under which the kernel finds this very inode again.
    fn proc_path(&self) -> String {
        format!("/proc/self/fd/{}", self.fd.as_raw_fd())
    }

    pub(super) fn open_directory(&self, path: &Path) -> Result<OwnedFd, ScanError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(&self.fd, c".", flags, Mode::empty())
            .map_err(ScanError::io(path, "opening the directory"))
    }

    /// The content of a regular file. Not for other types: opening a device has effects.
    pub(super) fn open_file(&self, path: &Path) -> Result<File, ScanError> {
        openat(
            CWD,
            self.proc_path(),
            OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY,
            Mode::empty(),
        )
        .map(File::from)
        .map_err(ScanError::io(path, "opening"))
    }

    /// Whether size, content and attributes are still those of [`Inode::stat`].
    pub(super) fn is_unchanged(&self, path: &Path) -> Result<bool, ScanError> {
        let now = fstat(&self.fd).map_err(ScanError::io(path, "reading attributes"))?;
        let key = |stat: &Stat| {
            (
                stat.st_size,
                (stat.st_mtime, stat.st_mtime_nsec),
                (stat.st_ctime, stat.st_ctime_nsec),
            )
        };
        Ok(key(&now) == key(&self.stat))
    }

    pub(super) fn read_link(&self, path: &Path) -> Result<Vec<u8>, ScanError> {
        readlinkat(&self.fd, c"", Vec::new())
            .map(CString::into_bytes)
            .map_err(ScanError::io(path, "reading the symlink"))
    }

    /// The xattrs whose name is `wanted`.
    pub(super) fn xattrs(
        &self,
        wanted: fn(&[u8]) -> bool,
        path: &Path,
    ) -> Result<Vec<(CString, Vec<u8>)>, ScanError> {
        let proc_path = self.proc_path();
        let list = match sized(|buffer| listxattr(proc_path.as_str(), buffer)) {
            Ok(list) => list,
            // The filesystem has no xattrs.
            Err(Errno::NOTSUP) => return Ok(Vec::new()),
            Err(error) => return Err(ScanError::io(path, "listing xattrs")(error)),
        };
        list.split_inclusive(|&byte| byte == 0)
            .filter_map(|name| CStr::from_bytes_with_nul(name).ok())
            .filter(|name| wanted(name.to_bytes()))
            .map(
                |name| match sized(|buffer| getxattr(proc_path.as_str(), name, buffer)) {
                    Ok(value) => Ok((name.to_owned(), value)),
                    Err(Errno::NODATA) => Err(ScanError::Changed(path.to_owned())),
                    Err(error) => Err(ScanError::io(path, "reading an xattr")(error)),
                },
            )
            .collect()
    }
}

/// Calls with a small buffer, and once more with one that no list and no value outgrows.
fn sized(call: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut small = [0; 512];
    match call(&mut small) {
        Ok(length) => Ok(small.get(..length).unwrap_or_default().to_vec()),
        Err(Errno::RANGE) => {
            let mut large = vec![0; XATTR_MAX];
            let length = call(&mut large)?;
            large.truncate(length);
            Ok(large)
        }
        Err(error) => Err(error),
    }
}
