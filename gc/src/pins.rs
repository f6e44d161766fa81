//! Pins: images that are kept until somebody says otherwise, with the reason for it.
//!
//! A pin is a ref, `streams/refs/composefs-store/pins/<manifest digest>`, which the collector of
//! composefs-rs keeps as well. Its reason is in a file of our own beside the repository's:
//! `composefs-store/pins/<manifest digest>.json`. A pin without a readable reason is a pin.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use repository::oci::{ManifestDigest, NamesStream as _};
use repository::{Category, PRIVATE_DIRECTORY, RefPath, Repository, failpoint};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The directory of pins below `streams/refs/`.
const PINS: &str = "composefs-store/pins";

/// The directory of reasons in [`PRIVATE_DIRECTORY`].
const REASONS: &str = "pins";

/// Most bytes of a file with a reason.
const MAX_REASON: u64 = 64 << 10;

/// A pinned image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    /// Its manifest.
    pub manifest: ManifestDigest,
    /// Why, if that can be read.
    pub reason: Option<String>,
    /// When, in seconds since 1970, if that can be read.
    pub since: Option<u64>,
}

/// What is in the file beside a pin.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Reason {
    reason: Option<String>,
    since: Option<u64>,
}

/// Pins an image; a pin that there is gets the new reason. Durable when it returns.
pub fn pin(repository: &Repository, manifest: &ManifestDigest, reason: &str) -> Result<()> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).ok();
    let reason = Reason {
        reason: Some(reason.to_owned()),
        since: since.map(|time| time.as_secs()),
    };
    let path = reason_path(repository, manifest);
    write_durably(&path, &reason).map_err(Error::io("write", &path))?;
    failpoint("pin-reason-written");
    let batch = repository.batch()?;
    let target = manifest.stream_name();
    batch.set_ref(Category::Streams, &pin_ref(manifest)?, target.as_str());
    batch.commit()?;
    Ok(())
}

/// Takes a pin away; returns whether there was one. Durable when it returns.
pub fn unpin(repository: &Repository, manifest: &ManifestDigest) -> Result<bool> {
    let there = repository.remove_ref(Category::Streams, &pin_ref(manifest)?)?;
    failpoint("pin-removed");
    let path = reason_path(repository, manifest);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", path)(error))
        }
        _ => Ok(there),
    }
}

/// The pins of a repository.
pub fn pins(repository: &Repository) -> Result<Vec<Pin>> {
    let refs = repository.refs(Category::Streams)?.entries.into_iter();
    Ok(refs
        .filter_map(|entry| pin_of(repository, &entry.path))
        .collect())
}

/// The pin that a ref below `streams/refs/` is.
pub(crate) fn pin_of(repository: &Repository, path: &RefPath) -> Option<Pin> {
    let name = path.as_path().strip_prefix(PINS).ok()?;
    let manifest: ManifestDigest = name.to_str()?.parse().ok()?;
    let Reason { reason, since } = read(&reason_path(repository, &manifest)).unwrap_or_default();
    Some(Pin {
        manifest,
        reason,
        since,
    })
}

fn pin_ref(manifest: &ManifestDigest) -> Result<RefPath> {
    Ok(RefPath::new(format!("{PINS}/{manifest}")).map_err(repository::Error::from)?)
}

fn reason_path(repository: &Repository, manifest: &ManifestDigest) -> PathBuf {
    let directory = repository.path().join(PRIVATE_DIRECTORY).join(REASONS);
    directory.join(format!("{manifest}.json"))
}

fn read(path: &Path) -> Option<Reason> {
    let mut text = Vec::new();
    let file = fs::File::open(path).ok()?;
    file.take(MAX_REASON).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

fn write_durably(path: &Path, reason: &Reason) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    serde_json::to_writer(&mut file, reason)?;
    file.write_all(b"\n")?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    fs::File::open(directory)?.sync_all()?;
    let parent = directory.parent().unwrap_or(Path::new("."));
    fs::File::open(parent)?.sync_all()
}
