//! What `composefs-info` does: questions to images, answered line by line in the words of the C tool.
//!
//! Images are read as they are stored and shown as C shows them: what the formats add (stubs, the
//! overlay's xattrs, marks of whiteouts) is hidden, escaped names are unescaped, of several names of a
//! file the later ones are hard links. But the xattrs that mark a directory with whiteouts as opaque stay
//! visible, as in C. Better than C: SHA-512 digests are shown, and the whiteouts of V2 images are.

mod listing;
mod view;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};

use composefs_image::{Algorithm, ReadError, VerityDigest, VerityHasher};
use repository::sys::{Measured, measure_verity};
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Mode, OFlags, open, statat};
use rustix::io::Errno;
use thiserror::Error;

pub use listing::{dump, list};
use view::View;

/// Why a question has no answer.
#[derive(Debug, Error)]
pub enum InfoError {
    /// A file or directory could not be read.
    #[error("{}: {error}", .path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        error: io::Error,
    },
    /// A file is no image, or a damaged one.
    #[error("{}: {error}", .path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: ReadError,
    },
    /// A filter is more than one name.
    #[error("--filter {0:?}: a filter is a single name in the root of the image")]
    Filter(String),
    /// The answer could not be written.
    #[error("writing the answer: {0}")]
    Output(#[from] io::Error),
}

fn failed<E: Into<io::Error>>(path: &Path) -> impl FnOnce(E) -> InfoError {
    move |error| InfoError::Io {
        path: path.to_owned(),
        error: error.into(),
    }
}

/// Which names in the root of an image count. Empty: all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter(BTreeSet<Vec<u8>>);

impl Filter {
    /// Only these names.
    pub fn new(names: impl IntoIterator<Item = Vec<u8>>) -> Result<Self, InfoError> {
        let names: BTreeSet<Vec<u8>> = names.into_iter().collect();
        match names.iter().find(|name| name.contains(&b'/')) {
            None => Ok(Self(names)),
            Some(name) => Err(InfoError::Filter(
                String::from_utf8_lossy(name).into_owned(),
            )),
        }
    }
}

/// An image in memory.
#[derive(Debug)]
pub struct ImageBytes {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl ImageBytes {
    /// Reads the file.
    pub fn read(path: &Path) -> Result<Self, InfoError> {
        Ok(Self {
            path: path.to_owned(),
            bytes: fs::read(path).map_err(failed(path))?,
        })
    }

    fn damaged(&self) -> impl Fn(ReadError) -> InfoError {
        |error| InfoError::Image {
            path: self.path.clone(),
            error,
        }
    }

    fn view(&self, filter: &Filter) -> Result<View<'_>, InfoError> {
        View::new(&self.bytes, filter).map_err(self.damaged())
    }
}

/// An object directory, to look for objects in.
#[derive(Debug)]
pub struct BaseDirectory {
    path: PathBuf,
    directory: OwnedFd,
}

impl BaseDirectory {
    /// Opens the directory.
    pub fn open(path: &Path) -> Result<Self, InfoError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            path: path.to_owned(),
            directory: open(path, flags, Mode::empty()).map_err(failed(path))?,
        })
    }

    fn has(&self, object: &[u8]) -> Result<bool, InfoError> {
        let start = object.iter().position(|&byte| byte != b'/');
        let relative = object
            .get(start.unwrap_or(object.len())..)
            .unwrap_or_default();
        match statat(&self.directory, relative, AtFlags::empty()) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
            Err(error) => {
                let name = String::from_utf8_lossy(relative).into_owned();
                Err(failed(&self.path.join(name))(error))
            }
        }
    }
}

/// The paths of the objects that images name: sorted, each once.
#[derive(Debug, Default)]
pub struct Objects(BTreeSet<Vec<u8>>);

impl Objects {
    /// Adds those of an image.
    pub fn add(&mut self, image: &ImageBytes, filter: &Filter) -> Result<(), InfoError> {
        for entry in image.view(filter)? {
            let entry = entry.map_err(image.damaged())?;
            if let Some(object) = entry.object()
                && !self.0.contains(object)
            {
                self.0.insert(object.to_vec());
            }
        }
        Ok(())
    }

    /// Leaves out those that a directory has.
    pub fn without_those_in(mut self, base: &BaseDirectory) -> Result<Self, InfoError> {
        let mut missing = BTreeSet::new();
        for object in std::mem::take(&mut self.0) {
            if !base.has(&object)? {
                missing.insert(object);
            }
        }
        self.0 = missing;
        Ok(self)
    }

    /// One path per line.
    pub fn print(&self, out: &mut impl Write) -> Result<(), InfoError> {
        for object in &self.0 {
            out.write_all(object)?;
            out.write_all(b"\n")?;
        }
        Ok(())
    }
}

/// The SHA-256 fs-verity digest of a file: the kernel's where it has one, else computed.
pub fn measure(path: &Path) -> Result<VerityDigest, InfoError> {
    let mut file = File::open(path).map_err(failed(path))?;
    if let Measured::Digest(digest) = measure_verity(&file).map_err(failed(path))?
        && digest.algorithm() == Algorithm::Sha256
    {
        return Ok(digest);
    }
    let mut hasher = VerityHasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(length) => hasher.update(buffer.get(..length).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(path)(error)),
        }
    }
}

#[cfg(test)]
mod tests;
