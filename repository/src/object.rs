//! Reading objects: opening them by digest, with the checks that the repository's security asks for.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use composefs_image::{Algorithm, VerityDigest};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Damage, Error, Result};
use crate::meta::Security;
use crate::repo::Repository;
use crate::sys::{self, Measured};

/// Something that objects can be read from: a [`Repository`], or a [`crate::Batch`], which also has
/// those that aren't committed yet.
pub trait ReadObjects: Sync {
    /// The algorithm of every digest.
    fn algorithm(&self) -> Algorithm;

    /// Opens an object for reading. In a secure repository its measured digest must be `digest`; in an
    /// insecure one it must be if there is one. [`Error::NoObject`] if it is missing.
    fn open_object(&self, digest: &VerityDigest) -> Result<File>;

    /// Reads a whole object of at most `limit` bytes into memory.
    fn read_object(&self, digest: &VerityDigest, limit: u64) -> Result<Vec<u8>> {
        let file = self.open_object(digest)?;
        let read =
            |error| Error::io("read", Path::new("objects").join(digest.object_path()))(error);
        let size = file.metadata().map_err(read)?.len();
        let mut content = Vec::new();
        if size <= limit {
            content.reserve_exact(size as usize);
            // One byte more than allowed tells a file that grew from one that just fits.
            let limit = limit.saturating_add(1);
            file.take(limit).read_to_end(&mut content).map_err(read)?;
        }
        let size = size.max(content.len() as u64);
        if size > limit {
            return Err(Error::ObjectTooLarge {
                digest: *digest,
                size,
                limit,
            });
        }
        Ok(content)
    }
}

impl ReadObjects for Repository {
    fn algorithm(&self) -> Algorithm {
        self.algorithm()
    }

    fn open_object(&self, digest: &VerityDigest) -> Result<File> {
        let file = self.open_unchecked(digest)?;
        self.check_measured(&file, digest)?;
        Ok(file)
    }
}

impl Repository {
    /// Opens an object for reading, see [`ReadObjects::open_object`].
    pub fn open_object(&self, digest: &VerityDigest) -> Result<File> {
        ReadObjects::open_object(self, digest)
    }

    /// Reads a whole object of at most `limit` bytes, see [`ReadObjects::read_object`].
    pub fn read_object(&self, digest: &VerityDigest, limit: u64) -> Result<Vec<u8>> {
        ReadObjects::read_object(self, digest, limit)
    }

    /// The size of an object in bytes; `None` if it is missing. Its digest isn't looked at.
    pub fn object_size(&self, digest: &VerityDigest) -> Result<Option<u64>> {
        self.check_algorithm(digest)?;
        let Some(objects) = self.objects()? else {
            return Ok(None);
        };
        let path = digest.object_path();
        match rustix::fs::statat(objects, &path, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_file() => {
                Ok(Some(stat.st_size as u64))
            }
            Ok(_) => Err(Error::DamagedObject {
                digest: *digest,
                damage: Damage::NotAFile,
            }),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(Error::io("examine", self.object_file(digest))(error)),
        }
    }

    /// Opens an object without comparing its fs-verity digest: for `fsck`, which wants to say what is
    /// wrong with it. It is a regular file.
    pub fn open_unchecked(&self, digest: &VerityDigest) -> Result<File> {
        self.check_algorithm(digest)?;
        let objects = self.objects()?.ok_or(Error::NoObject(*digest))?;
        // Not waiting for a writer, should it be a fifo.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let damaged = |damage| Error::DamagedObject {
            digest: *digest,
            damage,
        };
        let file = match rustix::fs::openat(objects, digest.object_path(), flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => return Err(Error::NoObject(*digest)),
            Err(Errno::LOOP) => return Err(damaged(Damage::NotAFile)),
            Err(error) => return Err(Error::io("open", self.object_file(digest))(error)),
        };
        let metadata = file
            .metadata()
            .map_err(Error::io("examine", self.object_file(digest)))?;
        if metadata.is_file() {
            Ok(file)
        } else {
            Err(damaged(Damage::NotAFile))
        }
    }

    /// Compares the kernel's digest of an open object, as far as the repository's security asks for it.
    pub(crate) fn check_measured(&self, file: &File, digest: &VerityDigest) -> Result<()> {
        let damage = match self.measure(file, digest)? {
            Measured::Digest(measured) if measured == *digest => return Ok(()),
            Measured::Digest(measured) => Damage::Measured(measured),
            Measured::Disabled | Measured::Unsupported if self.security() == Security::Insecure => {
                return Ok(());
            }
            Measured::Disabled | Measured::Unsupported => Damage::NoVerity,
        };
        Err(Error::DamagedObject {
            digest: *digest,
            damage,
        })
    }

    /// What the kernel says about an open object.
    pub fn measure(&self, file: &File, digest: &VerityDigest) -> Result<Measured> {
        sys::measure_verity(file).map_err(Error::io(
            "measure the fs-verity digest of",
            self.object_file(digest),
        ))
    }

    /// Whether there is an object of this digest with this size; another size is an error. In a secure
    /// repository the kernel's digest is compared too.
    pub(crate) fn has_sound_object(&self, digest: &VerityDigest, size: u64) -> Result<bool> {
        let Some(actual) = self.object_size(digest)? else {
            return Ok(false);
        };
        if actual != size {
            return Err(Error::DamagedObject {
                digest: *digest,
                damage: Damage::Size {
                    expected: size,
                    actual,
                },
            });
        }
        if self.security() == Security::Secure {
            self.open_object(digest)?;
        }
        Ok(true)
    }

    pub(crate) fn check_algorithm(&self, digest: &VerityDigest) -> Result<()> {
        if digest.algorithm() == self.algorithm() {
            Ok(())
        } else {
            Err(Error::WrongAlgorithm {
                digest: *digest,
                algorithm: self.algorithm(),
            })
        }
    }
}
