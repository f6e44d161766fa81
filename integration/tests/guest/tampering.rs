//! Changing what is immutable, as somebody would who can write to the disk.

use anyhow::{Context, Result};
use integration::ok;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is done to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tampering {
    /// One bit is another one, and fs-verity is off.
    Changed,
    /// One bit is another one, and fs-verity is on, for that content.
    ChangedAndSealed,
    /// It has the right content, but fs-verity is off.
    Unsealed,
    /// It is another, sound object.
    Swapped,
    /// Its end is missing.
    Truncated,
    /// It is not there.
    Missing,
}

impl Tampering {
    pub(crate) const ALL: [Self; 6] = [
        Self::Changed,
        Self::ChangedAndSealed,
        Self::Unsealed,
        Self::Swapped,
        Self::Truncated,
        Self::Missing,
    ];

    /// What a message about it says.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Changed | Self::Unsealed | Self::Truncated => "fs-verity is not enabled on it",
            Self::ChangedAndSealed | Self::Swapped => "its fs-verity digest is",
            Self::Missing => "it is missing",
        }
    }

    /// Does it to `file`; `other` is a sound object.
    pub(crate) fn apply(self, file: &Path, other: &Path) -> Result<Tampered> {
        let whole = std::fs::read(file)?;
        // The one that has fs-verity, out of the way.
        let kept = PathBuf::from(format!("{}.kept", file.display()));
        std::fs::rename(file, &kept)?;
        let tampered = Tampered {
            file: file.to_owned(),
            kept,
        };
        match self {
            Self::Changed | Self::ChangedAndSealed => {
                let mut content = whole;
                let byte = content.last_mut().context("it is empty")?;
                *byte ^= 1;
                std::fs::write(file, content)?;
            }
            Self::Unsealed => std::fs::write(file, whole)?,
            Self::Truncated => {
                let half = whole.get(..whole.len() / 2).unwrap_or_default();
                std::fs::write(file, half)?;
            }
            Self::Swapped => std::fs::hard_link(other, file)?,
            Self::Missing => {}
        }
        if self == Self::ChangedAndSealed {
            ok(Command::new("fsverity")
                .args(["enable", "--hash-alg", "sha512"])
                .arg(file))?;
        }
        Ok(tampered)
    }
}

/// A file that was tampered with.
pub(crate) struct Tampered {
    file: PathBuf,
    kept: PathBuf,
}

impl Tampered {
    /// Makes it as it was.
    pub(crate) fn undo(self) -> Result<()> {
        Ok(std::fs::rename(self.kept, self.file)?)
    }
}
