//! `dir:`, the format of containers-image: `manifest.json`, and blobs under the digits of their digests.

use std::path::Path;

use super::files::{Content, Files, Naming, guess_type};
use super::{SourceError, SourceImage, SourceOptions};

/// How the file `version` begins in the directories that are read here.
const VERSION: &[u8] = b"Directory Transport Version: 1.";

/// The image of a directory that `skopeo copy … dir:` wrote.
pub fn from_directory(
    directory: &Path,
    options: &SourceOptions,
) -> Result<SourceImage<'static>, SourceError> {
    let content = Content {
        files: Files::directory(directory)?,
        naming: Naming::Dir,
        options,
    };
    // podman does not look at it; a later version would mean something.
    if content.files.find("version")?.is_some() {
        let version = content.files.document("version")?;
        if !version.starts_with(VERSION) {
            return Err(SourceError::Version {
                path: directory.to_owned(),
                version: String::from_utf8_lossy(&version).trim().into(),
            });
        }
    }
    let bytes = content.files.document("manifest.json")?;
    let media_type = guess_type(&bytes).map_err(|source| SourceError::Json {
        path: directory.join("manifest.json"),
        source,
    })?;
    content.image(&format!("dir:{}", directory.display()), bytes, &media_type)
}
