//! Small durable file operations with the store's modes, whatever the umask.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use failpoint::failpoint;

use crate::error::Error;

const DIR_MODE: u32 = 0o755;
const FILE_MODE: u32 = 0o644;

pub(super) fn write_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Write {
        action,
        path: path.to_owned(),
        source,
    }
}

/// Creates the directory, or does nothing if it exists.
pub(super) fn make_dir(path: &Path) -> Result<(), Error> {
    match DirBuilder::new().mode(DIR_MODE).create(path) {
        Ok(()) => fs::set_permissions(path, Permissions::from_mode(DIR_MODE))
            .map_err(write_error("set the mode of", path)),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(e) => Err(write_error("create", path)(e)),
    }
}

/// Creates the file with `content`, or does nothing if it exists.
pub(super) fn make_file(path: &Path, content: &[u8]) -> Result<(), Error> {
    match create_new(path, content) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result.map_err(write_error("create", path)),
    }
}

fn create_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .open(path)?;
    file.set_permissions(Permissions::from_mode(FILE_MODE))?;
    file.write_all(content)?;
    file.sync_all()
}

/// Writes `content` to `.<name>.new` beside `path`, on disk when this returns. Only a holder of the
/// write lock does this, so what is there under that name is left over from a crash.
pub(super) fn write_temporary(path: &Path, content: &[u8]) -> Result<PathBuf, Error> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.new"));
    remove_file(&temporary)?;
    create_new(&temporary, content).map_err(write_error("write", &temporary))?;
    Ok(temporary)
}

/// Writes `path`, replacing what is there, under its name only when it is on disk.
pub(super) fn replace_file(path: &Path, content: &[u8]) -> Result<(), Error> {
    rename(&write_temporary(path, content)?, path)
}

pub(super) fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    failpoint("own-store");
    fs::rename(from, to).map_err(write_error("create", to))
}

/// Removes the file, or does nothing if there is none.
pub(super) fn remove_file(path: &Path) -> Result<(), Error> {
    failpoint("own-store");
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(write_error("remove", path)),
    }
}

/// Removes the directory and all in it, or does nothing if there is none.
pub(super) fn remove_dir_all(path: &Path) -> Result<(), Error> {
    failpoint("own-store");
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(write_error("remove", path)),
    }
}

pub(super) fn sync_dir(path: &Path) -> Result<(), Error> {
    failpoint("own-store");
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(write_error("sync", path))
}

pub(super) fn sync_parent(path: &Path) -> Result<(), Error> {
    path.parent().map_or(Ok(()), sync_dir)
}
