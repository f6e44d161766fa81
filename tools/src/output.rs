//! Where an image goes: a file that appears whole or not at all, or a descriptor that is written through.
//!
//! Better than the C tool, which truncates the file first: a name that is free or names a regular file
//! gets the finished, durable image with a rename. Anything else (a device, a pipe, a symlink such as
//! `/dev/stdout` or `/proc/self/fd/3`, which a caller may hold open) is written in place, as in C.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;
use thiserror::Error;

/// Why an image file could not be written.
#[derive(Debug, Error)]
#[error("{}: {action}: {error}", .path.display())]
pub struct OutputError {
    /// The image.
    pub path: PathBuf,
    /// What was tried.
    pub action: &'static str,
    /// The system's answer.
    pub error: io::Error,
}

/// An image file that is being written. Dropped without [`ImageFile::finish`], a file that would have
/// been replaced is as it was.
#[derive(Debug)]
pub struct ImageFile {
    path: PathBuf,
    form: Form,
}

#[derive(Debug)]
enum Form {
    Replacing(NamedTempFile),
    InPlace(File),
}

impl ImageFile {
    /// Begins to write the image at `path`. A regular file that is there gives its mode to the new one;
    /// a new name gets 0666 less the umask.
    pub fn create(path: &Path) -> Result<Self, OutputError> {
        let failed = |action| {
            move |error| OutputError {
                path: path.to_owned(),
                action,
                error,
            }
        };
        let mode = match fs::symlink_metadata(path) {
            Ok(old) if old.is_file() => Some(old.permissions()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed("looking")(error)),
            Ok(_) => {
                let file = OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .open(path)
                    .map_err(failed("opening"))?;
                return Ok(Self {
                    path: path.to_owned(),
                    form: Form::InPlace(file),
                });
            }
        };
        let file = tempfile::Builder::new()
            .prefix(".composefs-image-")
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(parent(path))
            .map_err(failed("creating"))?;
        if let Some(mode) = mode {
            file.as_file()
                .set_permissions(mode)
                .map_err(failed("changing the mode"))?;
        }
        Ok(Self {
            path: path.to_owned(),
            form: Form::Replacing(file),
        })
    }

    /// Ends the image. A regular file is durable under its name when this returns.
    pub fn finish(self) -> Result<(), OutputError> {
        let Self { path, form } = self;
        let Form::Replacing(file) = form else {
            // A file: there is no buffer to flush.
            return Ok(());
        };
        let sync = || {
            file.as_file().sync_all()?;
            file.persist(&path)?;
            File::open(parent(&path))?.sync_all()
        };
        sync().map_err(|error| OutputError {
            path: path.clone(),
            action: "saving",
            error,
        })
    }
}

/// The directory that has the name `path`.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

impl Write for ImageFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.form {
            Form::Replacing(file) => file.as_file_mut().write(bytes),
            Form::InPlace(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn write(path: &Path, content: &[u8]) {
        let mut file = ImageFile::create(path).unwrap();
        file.write_all(content).unwrap();
        file.finish().unwrap();
    }

    #[test]
    fn an_image_that_is_given_up_leaves_the_old_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        write(&path, b"old");
        let mut file = ImageFile::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        drop(file);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_replaced_file_keeps_its_mode() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        write(&path, b"old");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        write(&path, b"new");
        assert_eq!(fs::read(&path).unwrap(), b"new");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
    }

    #[test]
    fn a_symlink_is_written_through() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        let link = directory.path().join("link");
        symlink(&target, &link).unwrap();
        write(&link, b"a longer first image");
        write(&link, b"second");
        assert_eq!(fs::read(&target).unwrap(), b"second");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }
}
