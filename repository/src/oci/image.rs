//! Looking at the images of a repository, and finding one.

use std::collections::BTreeMap;

use composefs_image::{Format, VerityDigest};

use super::{
    BlobDigest, Config, ConfigDigest, DiffId, DocumentError, ErofsKey, ErofsRefs, Manifest,
    ManifestDigest, NamesStream, OciError, error::Result, store::erofs_refs, stream,
};
use crate::layers::XattrFilter;
use crate::splitstream::ContentType;
use crate::{Category, RefPath, Repository, Tag};

/// Fewest digits of an ID that are taken for one.
const MIN_PREFIX: usize = 3;

/// A layer of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageLayer {
    /// Its diff ID.
    pub diff_id: DiffId,
    /// Its splitstream.
    pub stream: VerityDigest,
}

/// An image in a repository.
#[derive(Clone, Debug)]
pub struct Image {
    manifest: Manifest,
    manifest_stream: VerityDigest,
    config: Config,
    config_stream: VerityDigest,
    layers: Vec<ImageLayer>,
    erofs: ErofsRefs,
    tags: Vec<Tag>,
}

impl Image {
    /// Its manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Its config; the digest of that is the image's ID.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The manifest's splitstream.
    pub fn manifest_stream(&self) -> &VerityDigest {
        &self.manifest_stream
    }

    /// The config's splitstream.
    pub fn config_stream(&self) -> &VerityDigest {
        &self.config_stream
    }

    /// Its layers, from the base up.
    pub fn layers(&self) -> &[ImageLayer] {
        &self.layers
    }

    /// Its EROFS images.
    pub fn erofs(&self) -> &ErofsRefs {
        &self.erofs
    }

    /// Its rootfs image in a format.
    pub fn rootfs(&self, format: Format) -> Option<&VerityDigest> {
        self.erofs.get(&ErofsKey::rootfs(format)?)
    }

    /// Its boot image in a format and with these xattrs.
    pub fn boot(&self, format: Format, xattrs: XattrFilter) -> Option<&VerityDigest> {
        self.erofs.get(&ErofsKey::boot(format, xattrs)?)
    }

    /// Its tags, sorted.
    pub fn tags(&self) -> &[Tag] {
        &self.tags
    }
}

/// All images of a repository.
#[derive(Debug, Default)]
pub struct Images {
    /// Those that are whole, by manifest digest.
    pub images: Vec<Image>,
    /// Those that are not, and why. Their tags are in [`tags`].
    pub damaged: Vec<(ManifestDigest, OciError)>,
}

/// All images, tagged or not. Other OCI artifacts are left out.
pub fn images(repository: &Repository) -> Result<Images> {
    let tags = tags_by_image(repository)?;
    let mut found = Images::default();
    for entry in index(repository)? {
        match open_image(repository, entry.digest, &entry.stream, &tags) {
            Ok(image) => found.images.push(image),
            Err(OciError::Manifest {
                source: DocumentError::ConfigType(_),
                ..
            }) => {}
            Err(error) => found.damaged.push((entry.digest, error)),
        }
    }
    Ok(found)
}

/// The image with this manifest.
pub fn image(repository: &Repository, digest: ManifestDigest) -> Result<Image> {
    let name = digest.stream_name();
    let stream = repository.stream(&name)?.ok_or(OciError::NoStream(name))?;
    open_image(repository, digest, &stream, &tags_by_image(repository)?)
}

/// All tags with the images that they name.
pub fn tags(repository: &Repository) -> Result<BTreeMap<Tag, ManifestDigest>> {
    let refs = repository.refs(Category::Streams)?.entries.into_iter();
    Ok(refs
        .filter_map(|entry| {
            let name = crate::StreamName::new(entry.target).ok()?;
            Some((entry.path.tag()?, ManifestDigest::from_stream_name(&name)?))
        })
        .collect())
}

/// Removes a tag; whether there was one. The image stays until the next collection.
pub fn untag(repository: &Repository, tag: &Tag) -> Result<bool> {
    Ok(repository.remove_ref(Category::Streams, &RefPath::of_tag(tag))?)
}

/// Finds an image by what a user calls it. The first of these that fits:
///
/// 1. a tag, which may lack `:latest` and `localhost/`, as podman completes names;
/// 2. `sha256:` and the digest of its manifest or of an index that it was chosen from, or its ID (the
///    digest of its config);
/// 3. the beginning of its ID or manifest digest, at least three hexadecimal digits.
///
/// [`OciError::Ambiguous`] if several images fit equally. Images of the same ID count as one; then
/// it is one with a tag, if there is one.
pub fn find(repository: &Repository, name: &str) -> Result<Image> {
    let digest = find_digest(repository, name)?;
    image(repository, digest)
}

/// The manifest of the image that [`find`] would open, which may be damaged.
pub fn find_digest(repository: &Repository, name: &str) -> Result<ManifestDigest> {
    let tags = tags(repository)?;
    let tagged = spellings(name)
        .into_iter()
        .find_map(|name| tags.get(&Tag::new(name).ok()?));
    if let Some(&digest) = tagged {
        return Ok(digest);
    }

    let whole = name.starts_with("sha256:");
    let digits = name.strip_prefix("sha256:").unwrap_or(name);
    let is_hex = digits
        .bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if !is_hex || digits.len() < if whole { 64 } else { MIN_PREFIX } {
        return Err(OciError::NotFound(name.into()));
    }
    let mut by_id: BTreeMap<ConfigDigest, Vec<ManifestDigest>> = BTreeMap::new();
    let mut fitting = Vec::new();
    for entry in index(repository)? {
        match entry.config {
            Some(config) if config.to_hex().starts_with(digits) => {
                by_id.entry(config).or_default().push(entry.digest);
            }
            _ if entry.digest.to_hex().starts_with(digits)
                || (whole && entry.indexes.iter().any(|it| it.to_hex() == digits)) =>
            {
                fitting.push((entry.digest, entry.digest.to_string()));
            }
            _ => {}
        }
    }
    for (config, manifests) in by_id {
        let tagged = manifests
            .iter()
            .find(|manifest| tags.values().any(|tagged| tagged == *manifest));
        if let Some(&manifest) = tagged.or(manifests.first()) {
            fitting.push((manifest, config.to_string()));
        }
    }
    unique(name, fitting)?.ok_or_else(|| OciError::NotFound(name.into()))
}

/// The tags that a name may stand for, as podman completes names: with `:latest`, and on `localhost`.
/// Never the end of a longer name, which may be somebody else's image.
fn spellings(name: &str) -> Vec<String> {
    let mut spellings = vec![name.to_owned()];
    let last = name.rsplit('/').next().unwrap_or(name);
    if !last.contains([':', '@']) {
        spellings.push(format!("{name}:latest"));
    }
    for index in 0..spellings.len() {
        spellings.push(format!("localhost/{}", spellings[index]));
    }
    spellings
}

fn unique(name: &str, fitting: Vec<(ManifestDigest, String)>) -> Result<Option<ManifestDigest>> {
    let Some(&(first, _)) = fitting.first() else {
        return Ok(None);
    };
    if fitting.iter().all(|(digest, _)| *digest == first) {
        return Ok(Some(first));
    }
    Err(OciError::Ambiguous {
        name: name.into(),
        candidates: fitting
            .into_iter()
            .map(|(_, candidate)| candidate)
            .collect(),
    })
}

struct IndexEntry {
    digest: ManifestDigest,
    stream: VerityDigest,
    /// Unknown where the stream is damaged.
    config: Option<ConfigDigest>,
    /// Those that it was chosen from.
    indexes: Vec<BlobDigest>,
}

/// All manifests, sorted, without reading the documents.
fn index(repository: &Repository) -> Result<Vec<IndexEntry>> {
    let streams = repository.streams()?.entries.into_iter();
    Ok(streams
        .filter_map(|link| {
            let digest = ManifestDigest::from_stream_name(&link.name)?;
            let opened = stream::open(
                repository,
                &link.name,
                &link.object,
                ContentType::OCI_MANIFEST,
            );
            let refs = opened.map(|stream| stream.refs).unwrap_or_default();
            Some(IndexEntry {
                digest,
                stream: link.object,
                config: stream::config_ref(&refs).map(|(config, _)| config),
                indexes: super::index::refs(&refs).map(|(it, _)| it).collect(),
            })
        })
        .collect())
}

fn tags_by_image(repository: &Repository) -> Result<BTreeMap<ManifestDigest, Vec<Tag>>> {
    let mut by_image: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (tag, image) in tags(repository)? {
        by_image.entry(image).or_default().push(tag);
    }
    Ok(by_image)
}

fn open_image(
    repository: &Repository,
    digest: ManifestDigest,
    manifest_stream: &VerityDigest,
    tags: &BTreeMap<ManifestDigest, Vec<Tag>>,
) -> Result<Image> {
    let name = digest.stream_name();
    let opened = stream::open(
        repository,
        &name,
        manifest_stream,
        ContentType::OCI_MANIFEST,
    )?;
    let manifest = stream::read_manifest(repository, digest, &opened.document)?;

    // What the manifest names is what collections keep; the link can be newer.
    let config_digest = manifest.config();
    let config_name = config_digest.stream_name();
    let named = opened.refs.get(&stream::config_key(&config_digest));
    let config_stream = match named {
        Some(&stream) => stream,
        None => repository
            .stream(&config_name)?
            .ok_or_else(|| OciError::NoStream(config_name.clone()))?,
    };
    let opened_config = stream::open(
        repository,
        &config_name,
        &config_stream,
        ContentType::OCI_CONFIG,
    )?;
    let config = stream::read_config(repository, config_digest, &opened_config.document)?;

    let layers = config
        .diff_ids()
        .iter()
        .map(|&diff_id| {
            let name = diff_id.to_string();
            let stream = opened_config.refs.get(&name).or(opened.refs.get(&name));
            let missing = OciError::NoLayer {
                image: config_digest,
                diff_id,
            };
            let stream = *stream.ok_or(missing)?;
            Ok(ImageLayer { diff_id, stream })
        })
        .collect::<Result<_>>()?;
    Ok(Image {
        layers,
        erofs: erofs_refs(&opened_config.refs),
        tags: tags.get(&digest).cloned().unwrap_or_default(),
        manifest,
        manifest_stream: *manifest_stream,
        config,
        config_stream,
    })
}
