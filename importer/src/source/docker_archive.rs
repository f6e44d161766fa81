//! `docker-archive:`, what `docker save` and `podman save` write: a tar with `manifest.json`, configs and
//! layers.
//!
//! Such an archive has no image manifest. podman and skopeo make one up when they read it, and so does
//! this, byte for byte the same, so that an image has the digest here that it has after `podman load`:
//! Docker's schema 2, in which every layer is described by its diff ID and its uncompressed size.
//!
//! Layers may be called anything (`<id>/layer.tar`, `<hex>.tar`, `blobs/sha256/<hex>`), may be links to
//! those of other images, and may be compressed; then the size has to be found out by uncompressing them
//! once more. Archives of Docker before 1.10, which have `repositories` and no `manifest.json`, are refused
//! as by podman.

use std::io::Read;
use std::path::{Path, PathBuf};

use repository::oci::{BlobDigest, Config, DiffId, LayerDescriptor};
use serde::{Deserialize, Serialize};

use super::archive::{Archive, Duplicates, uncompress};
use super::files::Files;
use super::names::completed;
use super::section::Section;
use super::{LayerContent, SourceError, SourceImage, SourceLayer, SourceOptions};
use crate::compression::{Compression, MAGIC, OpenError, Uncompressed};

const INDEX: &str = "manifest.json";
const OLD_INDEX: &str = "repositories";

const MANIFEST_TYPE: &str = "application/vnd.docker.distribution.manifest.v2+json";
const CONFIG_TYPE: &str = "application/vnd.docker.container.image.v1+json";
/// What podman says of layers that are not compressed.
const LAYER_TYPE: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// Which image of an archive is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ArchiveImage {
    /// The only one.
    Only,
    /// The one of this name, which podman completes: `app` is `…/library/app:latest` of Docker's own registry.
    Name(String),
    /// The one at this place in `manifest.json`, from 0.
    Position(usize),
}

/// An image in `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// A manifest, with its keys in the order in which podman writes them.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Schema2<'a> {
    schema_version: u32,
    media_type: &'a str,
    config: Schema2Descriptor<'a>,
    layers: Vec<Schema2Descriptor<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Schema2Descriptor<'a> {
    media_type: &'a str,
    size: u64,
    digest: String,
}

/// A layer in the archive.
struct Found {
    section: Section,
    compressed: bool,
    /// Uncompressed, in bytes.
    size: u64,
}

/// An image of an archive, which may itself be compressed.
pub fn from_docker_archive(
    file: &Path,
    image: &ArchiveImage,
    options: &SourceOptions,
) -> Result<SourceImage<'static>, SourceError> {
    let name = format!("docker-archive:{}{}", file.display(), suffix(image));
    let files = Files::Archive(Archive::open(file, Duplicates::First, options)?);
    if files.find(INDEX)?.is_none() && files.find(OLD_INDEX)?.is_some() {
        return Err(SourceError::OldDockerArchive {
            path: file.to_owned(),
        });
    }
    let items: Vec<Item> =
        serde_json::from_slice(&files.document(INDEX)?).map_err(|source| SourceError::Json {
            path: file.join(INDEX),
            source,
        })?;
    let item = choose(&name, image, &items)?;

    let config =
        Config::parse(files.document(&item.config)?).map_err(files.unusable(&item.config))?;
    let paths = item.layers.as_deref().unwrap_or_default();
    if paths.len() != config.diff_ids().len() {
        let text = format!(
            "{INDEX} has {} layers, and the config {}",
            paths.len(),
            config.diff_ids().len()
        );
        let mismatch = repository::oci::DocumentError::Mismatch(text);
        return Err(files.unusable(&item.config)(mismatch));
    }
    let found = paths
        .iter()
        .map(|path| find_layer(&files, path, options))
        .collect::<Result<Vec<_>, _>>()?;
    let manifest = manifest(&config, &found);
    let layers = config.diff_ids().iter().zip(found).map(|(diff_id, layer)| {
        // What the manifest describes is what comes out of a compressed layer, not the layer.
        let descriptor = (!layer.compressed).then(|| LayerDescriptor {
            digest: blob_of(diff_id),
            size: layer.size,
            media_type: LAYER_TYPE.into(),
        });
        SourceLayer {
            diff_id: *diff_id,
            size: Some(layer.size),
            content: LayerContent::Blob {
                descriptor,
                blob: Box::new(layer.section),
            },
        }
    });
    Ok(SourceImage {
        name,
        id: None,
        names: item
            .repo_tags
            .iter()
            .flatten()
            .map(|it| completed(it))
            .collect(),
        indexes: Vec::new(),
        manifest,
        layers: layers.collect(),
        config: config.bytes().to_vec(),
    })
}

fn choose<'i>(
    name: &str,
    image: &ArchiveImage,
    items: &'i [Item],
) -> Result<&'i Item, SourceError> {
    let found = match (image, items) {
        (ArchiveImage::Only, [item]) => Some(item),
        (ArchiveImage::Only, [_, _, ..]) => {
            return Err(SourceError::SeveralImages {
                image: name.into(),
                available: titles(items),
            });
        }
        (ArchiveImage::Only, []) => None,
        (ArchiveImage::Position(position), _) => items.get(*position),
        (ArchiveImage::Name(wanted), _) => {
            let wanted = completed(wanted);
            items.iter().find(|item| {
                let mut names = item.repo_tags.iter().flatten();
                names.any(|name| completed(name) == wanted)
            })
        }
    };
    found.ok_or_else(|| SourceError::NotFound {
        image: name.into(),
        available: titles(items),
    })
}

/// How the images of an archive can be asked for.
fn titles(items: &[Item]) -> Vec<String> {
    let title = |(position, item): (usize, &Item)| match item.repo_tags.as_deref() {
        Some([name, ..]) => format!(":{name}"),
        _ => format!(":@{position}"),
    };
    items.iter().enumerate().map(title).collect()
}

fn find_layer(files: &Files, name: &str, options: &SourceOptions) -> Result<Found, SourceError> {
    let section = files.get(name)?;
    let path = files.path().join(name);
    let unreadable = SourceError::io(&path);
    let mut magic = Vec::new();
    section
        .reader()
        .take(MAGIC as u64)
        .read_to_end(&mut magic)
        .map_err(&unreadable)?;
    if Compression::of(&magic) == Compression::None {
        let size = section.size();
        return Ok(Found {
            section,
            compressed: false,
            size,
        });
    }
    let mut tar = Uncompressed::open(section.reader()).map_err(|error| match error {
        OpenError::Read(error) => unreadable(error),
        OpenError::Unsupported(compression) => SourceError::Compression {
            path: path.clone(),
            compression,
        },
    })?;
    let size = uncompress(&path, &mut tar, options, |_| Ok(()))?;
    Ok(Found {
        section,
        compressed: true,
        size,
    })
}

fn manifest(config: &Config, layers: &[Found]) -> Vec<u8> {
    let layers = config.diff_ids().iter().zip(layers);
    let manifest = Schema2 {
        schema_version: 2,
        media_type: MANIFEST_TYPE,
        config: Schema2Descriptor {
            media_type: CONFIG_TYPE,
            size: config.bytes().len() as u64,
            digest: config.digest().to_string(),
        },
        layers: layers
            .map(|(diff_id, layer)| Schema2Descriptor {
                media_type: LAYER_TYPE,
                size: layer.size,
                digest: diff_id.to_string(),
            })
            .collect(),
    };
    serde_json::to_vec(&manifest).expect("text and numbers are JSON")
}

fn blob_of(diff_id: &DiffId) -> BlobDigest {
    BlobDigest::from_bytes(*diff_id.as_bytes())
}

fn suffix(image: &ArchiveImage) -> String {
    match image {
        ArchiveImage::Only => String::new(),
        ArchiveImage::Name(name) => format!(":{name}"),
        ArchiveImage::Position(position) => format!(":@{position}"),
    }
}

/// `PATH[:NAME|:@POSITION]`. As for podman, a path has no colon.
pub(super) fn parse(text: &str) -> Option<(PathBuf, ArchiveImage)> {
    let (path, image) = text.split_once(':').unwrap_or((text, ""));
    let image = match image.strip_prefix('@') {
        Some(position) => ArchiveImage::Position(position.parse().ok()?),
        None if image.is_empty() => ArchiveImage::Only,
        None => ArchiveImage::Name(image.into()),
    };
    (!path.is_empty()).then(|| (path.into(), image))
}
