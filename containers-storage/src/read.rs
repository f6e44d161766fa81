//! Reading whole files with a limit.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc::O_NONBLOCK;

use serde::de::DeserializeOwned;

use crate::error::Error;

/// Largest file of records: a store with 100,000 layers has about 60 MiB.
const MAX_RECORDS: u64 = 256 << 20;

pub(crate) fn io_error(path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io {
        path: path.to_owned(),
        source,
    }
}

/// The content of `path`, or `None` if it does not exist.
pub(crate) fn read_limited(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, Error> {
    // A fifo in place of the file must not make us wait.
    let file = match File::options()
        .read(true)
        .custom_flags(O_NONBLOCK)
        .open(path)
    {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io_error(path)(e)),
    };
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(io_error(path))?;
    if bytes.len() as u64 > limit {
        return Err(Error::TooLarge {
            path: path.to_owned(),
            limit,
        });
    }
    Ok(Some(bytes))
}

/// The records in the JSON array `path`; a missing or empty file has none, as c/storage has it.
pub(crate) fn read_records<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, Error> {
    match read_limited(path, MAX_RECORDS)? {
        Some(bytes) if !bytes.is_empty() => {
            let records: Option<Vec<T>> =
                serde_json::from_slice(&bytes).map_err(|source| Error::Json {
                    path: path.to_owned(),
                    source,
                })?;
            Ok(records.unwrap_or_default())
        }
        _ => Ok(Vec::new()),
    }
}
