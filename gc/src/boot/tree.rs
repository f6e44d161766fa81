//! Reading below a directory that isn't trusted.
//!
//! Every path is resolved by the kernel as if the directory were the root (`openat2` with
//! `RESOLVE_IN_ROOT`), so neither `..` nor a symbolic link leads out of it. What is read is bounded.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// The most entries of a directory that are listed.
const MAX_ENTRIES: usize = 4096;

/// A directory whose content isn't trusted.
#[derive(Debug)]
pub(crate) struct UntrustedDir {
    fd: OwnedFd,
    place: Place,
}

/// Where an [`UntrustedDir`] is, to open it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// A trusted path.
    base: PathBuf,
    /// Directories below it, each of them the root of the next.
    below: Vec<PathBuf>,
}

impl Place {
    /// Opens it; `None` if it is gone.
    pub(crate) fn open(&self) -> Result<Option<UntrustedDir>> {
        let mut dir = UntrustedDir::open(&self.base)?;
        for below in &self.below {
            let Some(parent) = dir else { return Ok(None) };
            dir = parent.sub(below)?;
        }
        Ok(dir)
    }
}

/// Why something below the directory can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReadFault {
    #[error("it cannot be read: {}", std::io::Error::from(*.0))]
    Io(Errno),
    #[error("it is not a regular file")]
    NotAFile,
    #[error("it has more than {0} bytes")]
    TooLarge(u64),
    #[error("it has more than {MAX_ENTRIES} entries")]
    TooMany,
}

impl From<Errno> for ReadFault {
    fn from(error: Errno) -> Self {
        Self::Io(error)
    }
}

type Result<T> = std::result::Result<T, ReadFault>;

impl UntrustedDir {
    /// Opens the directory; `None` if there is none. The path itself is trusted.
    pub(crate) fn open(path: &Path) -> Result<Option<Self>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(Self {
                fd,
                place: Place {
                    base: path.to_owned(),
                    below: Vec::new(),
                },
            })),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The directory below it, a root of its own from then on; `None` if there is none.
    pub(crate) fn sub(&self, relative: impl AsRef<Path>) -> Result<Option<Self>> {
        let relative = relative.as_ref();
        let fd = self.open_at(relative, OFlags::RDONLY | OFlags::DIRECTORY)?;
        Ok(fd.map(|fd| {
            let mut place = self.place.clone();
            place.below.push(relative.to_owned());
            Self { fd, place }
        }))
    }

    /// Where it is.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// The open directory.
    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// The path of something below it.
    pub(crate) fn join(&self, relative: impl AsRef<Path>) -> PathBuf {
        let below = self.place.below.iter();
        let path = below.fold(self.place.base.clone(), |path, below| path.join(below));
        path.join(relative)
    }

    /// Device and inode.
    pub(crate) fn identity(&self) -> Result<(u64, u64)> {
        let stat = rustix::fs::fstat(&self.fd)?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// The names in a directory with their types, sorted; empty if there is no such directory.
    pub(crate) fn list(&self, relative: impl AsRef<Path>) -> Result<Vec<(OsString, FileType)>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let Some(fd) = self.open_at(relative.as_ref(), flags)? else {
            return Ok(Vec::new());
        };
        let mut entries = Vec::new();
        for entry in Dir::read_from(&fd)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            if entries.len() == MAX_ENTRIES {
                return Err(ReadFault::TooMany);
            }
            let file_type = match entry.file_type() {
                FileType::Unknown => {
                    let stat = rustix::fs::statat(
                        &fd,
                        entry.file_name(),
                        rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
                    )?;
                    FileType::from_raw_mode(stat.st_mode)
                }
                known => known,
            };
            entries.push((OsString::from_vec(name.to_owned()), file_type));
        }
        entries.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        Ok(entries)
    }

    /// Opens a regular file for reading; `None` if there is none.
    pub(crate) fn file(&self, relative: impl AsRef<Path>) -> Result<Option<File>> {
        // A FIFO must not make us wait.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let Some(fd) = self.open_at(relative.as_ref(), flags)? else {
            return Ok(None);
        };
        let stat = rustix::fs::fstat(&fd)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(ReadFault::NotAFile);
        }
        Ok(Some(File::from(fd)))
    }

    /// Reads a regular file of at most `limit` bytes; `None` if there is none.
    pub(crate) fn read(&self, relative: impl AsRef<Path>, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(file) = self.file(relative)? else {
            return Ok(None);
        };
        let mut content = Vec::new();
        file.take(limit + 1)
            .read_to_end(&mut content)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        if content.len() as u64 > limit {
            return Err(ReadFault::TooLarge(limit));
        }
        Ok(Some(content))
    }

    fn open_at(&self, relative: &Path, flags: OFlags) -> Result<Option<OwnedFd>> {
        let relative = relative.strip_prefix("/").unwrap_or(relative);
        let relative = if relative == Path::new("") {
            Path::new(".")
        } else {
            relative
        };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        // The kernel gives up now and then while something is renamed.
        for _ in 0..100 {
            match rustix::fs::openat2(
                &self.fd,
                relative,
                flags | OFlags::CLOEXEC,
                Mode::empty(),
                resolve,
            ) {
                Ok(fd) => return Ok(Some(fd)),
                Err(Errno::NOENT) => return Ok(None),
                Err(Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Errno::AGAIN.into())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn nothing_outside_the_directory_is_read() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().join("root");
        fs::create_dir_all(root.join("sub")).unwrap();
        fs::write(scratch.path().join("secret"), "secret").unwrap();
        symlink("../secret", root.join("relative")).unwrap();
        symlink(scratch.path().join("secret"), root.join("absolute")).unwrap();
        symlink("/sub", root.join("inside")).unwrap();
        symlink("/proc/self/root", root.join("magic")).unwrap();
        fs::write(root.join("sub/file"), "content").unwrap();
        let dir = UntrustedDir::open(&root).unwrap().unwrap();
        for path in [
            "relative",
            "absolute",
            "../secret",
            "/../secret",
            "magic/etc/passwd",
        ] {
            assert_eq!(dir.read(path, 100), Ok(None), "{path}");
        }
        assert_eq!(dir.read("inside/file", 100), Ok(Some(b"content".to_vec())));
        let sub = dir.sub("inside").unwrap().unwrap();
        assert_eq!(sub.read("../sub/file", 100), Ok(None));
        assert_eq!(sub.read("file", 100), Ok(Some(b"content".to_vec())));
    }

    #[test]
    fn what_is_no_file_or_too_large_is_not_read() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = UntrustedDir::open(scratch.path()).unwrap().unwrap();
        fs::write(scratch.path().join("file"), "12345").unwrap();
        assert_eq!(dir.read("file", 4), Err(ReadFault::TooLarge(4)));
        assert_eq!(dir.read("file", 5), Ok(Some(b"12345".to_vec())));
        rustix::fs::mknodat(
            rustix::fs::CWD,
            scratch.path().join("fifo"),
            FileType::Fifo,
            Mode::RUSR,
            0,
        )
        .unwrap();
        assert_eq!(dir.read("fifo", 5), Err(ReadFault::NotAFile));
        assert_eq!(dir.read(".", 5), Err(ReadFault::NotAFile));
        symlink("loop", scratch.path().join("loop")).unwrap();
        assert_eq!(dir.read("loop", 5), Err(ReadFault::Io(Errno::LOOP)));
        assert_eq!(dir.read("file/below", 5), Err(ReadFault::Io(Errno::NOTDIR)));
        assert_eq!(dir.list("nowhere"), Ok(vec![]));
    }
}
