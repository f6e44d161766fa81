//! An OCI image layout, in a directory (`oci:`) or a tar (`oci-archive:`).
//!
//! Follows the OCI image specification, "image layout", and podman where that leaves a choice. Own code
//! and not the crate `ocidir`: what that would save is joining `blobs/sha256/` and a digest. It links
//! OpenSSL, reads `index.json` whatever its size, chooses the host's platform only, and refuses the media
//! types of Docker and indexes in indexes, which podman writes and reads.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use oci_spec::image::{Descriptor, ImageIndex};
use repository::oci::ManifestDigest;

use super::archive::{Archive, Duplicates};
use super::artifact::{SourceArtifact, in_layout};
use super::files::{Content, Files, Naming, is_index};
use super::{SourceError, SourceImage, SourceOptions};

/// The key of a manifest's name in `index.json`.
const NAME: &str = "org.opencontainers.image.ref.name";

/// The full name, where the other one may be a tag only.
const FULL_NAME: &str = "io.containerd.image.name";

/// Which image of an OCI layout is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LayoutImage {
    /// The only one.
    Only,
    /// The one of this name: the annotation `org.opencontainers.image.ref.name`.
    Name(String),
    /// The one with this digest, which may be that of an index, and in an index.
    Digest(ManifestDigest),
    /// The one at this place in `index.json`, from 0.
    Position(usize),
}

/// An image of a layout in a directory.
pub fn from_oci_layout(
    directory: &Path,
    image: &LayoutImage,
    options: &SourceOptions,
) -> Result<SourceImage<'static>, SourceError> {
    let name = format!("oci:{}{}", directory.display(), suffix(image));
    from_files(Files::directory(directory)?, &name, image, options)
}

/// An image of a layout in a tar, which may be compressed.
pub fn from_oci_archive(
    file: &Path,
    image: &LayoutImage,
    options: &SourceOptions,
) -> Result<SourceImage<'static>, SourceError> {
    let name = format!("oci-archive:{}{}", file.display(), suffix(image));
    let archive = Archive::open(file, Duplicates::Last, options)?;
    from_files(Files::Archive(archive), &name, image, options)
}

fn from_files(
    files: Files,
    name: &str,
    image: &LayoutImage,
    options: &SourceOptions,
) -> Result<SourceImage<'static>, SourceError> {
    let layout = Layout::open(files, options)?;
    let chosen = choose(&layout.content, name, image, layout.index.manifests())?;
    let bytes = layout.content.described(&chosen)?;
    let found = layout.content.image(name, bytes, chosen.media_type())?;
    Ok(SourceImage {
        names: full_name(&chosen).into_iter().collect(),
        ..found
    })
}

/// The artifact of a layout, and no image, in a directory.
pub(super) fn artifact(
    files: Files,
    name: &str,
    image: &LayoutImage,
    options: &SourceOptions,
) -> Result<SourceArtifact<'static>, SourceError> {
    let layout = Layout::open(files, options)?;
    let chosen = choose(&layout.content, name, image, layout.index.manifests())?;
    let artifact = in_layout(&layout.content, name, &chosen)?;
    Ok(SourceArtifact {
        names: full_name(&chosen).into_iter().collect(),
        ..artifact
    })
}

/// A layout with the index that all of it is found by.
pub(super) struct Layout<'o> {
    pub(super) content: Content<'o>,
    pub(super) index: ImageIndex,
}

impl<'o> Layout<'o> {
    pub(super) fn open(files: Files, options: &'o SourceOptions) -> Result<Self, SourceError> {
        const INDEX: &str = "index.json";
        let index = files.document(INDEX)?;
        let index = ImageIndex::from_reader(&index[..])
            .map_err(|error| files.unusable(INDEX)(error.into()))?;
        let content = Content {
            files,
            naming: Naming::Oci,
            options,
        };
        Ok(Self { content, index })
    }
}

fn choose(
    content: &Content<'_>,
    name: &str,
    image: &LayoutImage,
    descriptors: &[Descriptor],
) -> Result<Descriptor, SourceError> {
    let fitting: Vec<_> = descriptors
        .iter()
        .enumerate()
        .filter(|(position, descriptor)| match image {
            // What belongs to an image, such as its signature, is not what is meant.
            LayoutImage::Only => descriptor.artifact_type().is_none(),
            LayoutImage::Name(wanted) => annotation(descriptor, NAME) == Some(wanted),
            LayoutImage::Digest(wanted) => descriptor.digest().as_ref() == wanted.to_string(),
            LayoutImage::Position(wanted) => position == wanted,
        })
        .map(|(_, descriptor)| descriptor)
        .collect();
    match fitting[..] {
        [] => {
            let within = match image {
                LayoutImage::Digest(wanted) => find_within(content, descriptors, wanted)?,
                _ => None,
            };
            within.ok_or_else(|| SourceError::NotFound {
                image: name.into(),
                available: descriptors.iter().map(title).collect(),
            })
        }
        // Several names for one image are one image.
        [first, ..] if fitting.iter().all(|it| it.digest() == first.digest()) => Ok(first.clone()),
        _ if fitting.iter().all(|it| it.platform().is_some()) => {
            let fitting: Vec<_> = fitting.into_iter().cloned().collect();
            content.choose(name, &fitting).cloned()
        }
        _ => Err(SourceError::SeveralImages {
            image: name.into(),
            available: fitting.into_iter().map(title).collect(),
        }),
    }
}

/// What an index has by this digest, or an index that it names. Each is read once; a layout need not have all.
fn find_within(
    content: &Content<'_>,
    descriptors: &[Descriptor],
    wanted: &ManifestDigest,
) -> Result<Option<Descriptor>, SourceError> {
    let wanted = wanted.to_string();
    let mut seen = HashSet::new();
    let is_index = |it: &&Descriptor| is_index(it.media_type());
    let mut indexes: Vec<Descriptor> = descriptors.iter().filter(is_index).cloned().collect();
    while let Some(index) = indexes.pop() {
        if !seen.insert(index.digest().to_string()) {
            continue;
        }
        let bytes = match content.described(&index) {
            Ok(bytes) => bytes,
            Err(SourceError::Missing { .. }) => continue,
            Err(error) => return Err(error),
        };
        let named = content.index(&bytes)?;
        let named = named.manifests().iter();
        if let Some(found) = named.clone().find(|it| it.digest().as_ref() == wanted) {
            return Ok(Some(found.clone()));
        }
        indexes.extend(named.filter(is_index).cloned());
    }
    Ok(None)
}

fn annotation<'d>(descriptor: &'d Descriptor, key: &str) -> Option<&'d String> {
    descriptor.annotations().as_ref()?.get(key)
}

/// How an image can be asked for.
fn title(descriptor: &Descriptor) -> String {
    match annotation(descriptor, NAME) {
        Some(name) => format!(":{name}"),
        None => format!("@{}", descriptor.digest()),
    }
}

/// The name of an image, if it is a full one and not a tag alone.
fn full_name(descriptor: &Descriptor) -> Option<String> {
    let full = annotation(descriptor, FULL_NAME);
    let name = annotation(descriptor, NAME).filter(|name| name.contains(['/', ':']));
    full.or(name).cloned()
}

pub(super) fn suffix(image: &LayoutImage) -> String {
    match image {
        LayoutImage::Only => String::new(),
        LayoutImage::Name(name) => format!(":{name}"),
        LayoutImage::Digest(digest) => format!("@{digest}"),
        LayoutImage::Position(position) => format!(":@{position}"),
    }
}

/// `PATH[:NAME|@DIGEST|:@POSITION]`. As for podman, a path has no colon.
pub(super) fn parse(text: &str) -> Option<(PathBuf, LayoutImage)> {
    if let Some((path, digest)) = text.split_once('@')
        && let Ok(digest) = digest.parse()
    {
        let path = path.strip_suffix(':').unwrap_or(path);
        return (!path.is_empty()).then(|| (path.into(), LayoutImage::Digest(digest)));
    }
    let (path, image) = text.split_once(':').unwrap_or((text, ""));
    let image = match image.strip_prefix('@') {
        Some(position) => LayoutImage::Position(position.parse().ok()?),
        None if image.is_empty() => LayoutImage::Only,
        None => LayoutImage::Name(image.into()),
    };
    (!path.is_empty()).then(|| (path.into(), image))
}
