//! What is published, and under which names.

use std::collections::{BTreeMap, BTreeSet};

use containers_storage::{Digest, ImageId, ImageRecord, LayerId};
use repository::{Repository, VerityDigest, oci};
use serde::Serialize;

use crate::{
    Layout,
    error::{Error, Result},
    hidden::is_hidden,
    names::podman_name,
    paths::StorePaths,
    store::{Store, image_of, open_existing},
    verify::is_promised,
};

/// An image that podman is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PublishedImage {
    /// Its ID, the same as everywhere.
    pub id: ImageId,
    /// Digest of its manifest.
    pub manifest: Digest,
    /// The names under which podman lists it.
    pub names: Vec<String>,
    /// Its top layer.
    pub layer: LayerId,
    /// How many layers it has.
    pub layers: usize,
    /// The layout of the top layer.
    pub layout: Layout,
    /// Whether it was published as verified.
    pub verified: bool,
    /// The EROFS image of its whole tree; `None` if the repository has lost it.
    #[serde(serialize_with = "as_text")]
    pub image: Option<VerityDigest>,
}

#[allow(clippy::ref_option)] // serde passes a reference to the field
fn as_text<S: serde::Serializer>(
    digest: &Option<VerityDigest>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match digest {
        Some(digest) => serializer.collect_str(digest),
        None => serializer.serialize_none(),
    }
}

/// The published images, in the order of their publishing. Writes nothing.
pub fn published(repository: &Repository) -> Result<Vec<PublishedImage>> {
    let paths = StorePaths::of(repository);
    let Some(own) = open_existing(&paths)? else {
        return Ok(Vec::new());
    };
    let mut images = own.root().image_records()?;
    images.retain(|record| !is_hidden(record));
    let layers = own.root().layer_records()?;
    let parents: BTreeMap<&LayerId, Option<&LayerId>> = layers
        .iter()
        .map(|record| (&record.id, record.parent.as_ref()))
        .collect();
    images
        .iter()
        .map(|record| {
            let (Some(layer), Some(manifest)) = (&record.layer, &record.digest) else {
                return Err(damaged(&paths, record, "has no layer or no digest"));
            };
            let mut count = 0;
            let mut next = Some(layer);
            while let Some(layer) = next {
                next = *parents
                    .get(layer)
                    .ok_or_else(|| damaged(&paths, record, "has a layer without a record"))?;
                count += 1;
                if count > layers.len() {
                    return Err(damaged(
                        &paths,
                        record,
                        "has layers that stand on themselves",
                    ));
                }
            }
            Ok(PublishedImage {
                id: record.id.clone(),
                manifest: manifest.clone(),
                names: record.names.clone(),
                layout: Layout::of(&paths, layer)?,
                verified: is_promised(record),
                image: image_of(repository, layer)?,
                layer: layer.clone(),
                layers: count,
            })
        })
        .collect()
}

fn damaged(paths: &StorePaths, record: &ImageRecord, problem: &str) -> Error {
    Error::Damaged {
        store: paths.store(),
        problem: format!("image {} {problem}", record.id),
    }
}

/// The published image that `text` means: its ID or manifest digest, one of its names in any form that
/// is a tag, or the unique beginning of its ID.
pub fn find_published(repository: &Repository, text: &str) -> Result<PublishedImage> {
    let mut images = published(repository)?;
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    let name = podman_name(text);
    let index = images
        .iter()
        .position(|image| {
            image.id.as_str() == hex
                || image.manifest.as_str() == text
                || image.names.iter().any(|n| Some(n) == name.as_ref())
        })
        .or_else(|| {
            let mut fitting = images
                .iter()
                .enumerate()
                .filter(|(_, image)| hex.len() >= 3 && image.id.as_str().starts_with(hex));
            match (fitting.next(), fitting.next()) {
                (Some((index, _)), None) => Some(index),
                _ => None,
            }
        });
    match index {
        Some(index) => Ok(images.swap_remove(index)),
        None => Err(Error::NotPublished {
            image: text.to_owned(),
        }),
    }
}

/// Gives every published image the names of its tags as they are now; a name whose tag has moved to an image
/// that is not published stays where it is. To be called after tags changed; does nothing if there is no
/// store. Returns the images whose names changed.
pub fn refresh_names(repository: &Repository) -> Result<Vec<ImageId>> {
    let paths = StorePaths::of(repository);
    if open_existing(&paths)?.is_none() {
        return Ok(Vec::new());
    }
    let mut store = Store::open(repository)?;
    let records = store.own.root().image_records()?;
    let wanted = wanted_names(repository, &records, None)?;
    if records
        .iter()
        .all(|record| names_in(&wanted, record) == record.names)
    {
        return Ok(Vec::new());
    }
    let mut images = store.own.images()?;
    let changed = set_names(&mut images, &wanted);
    images.commit()?;
    Ok(changed)
}

/// The names of each image by its ID. Images are told apart by their configs: two manifests with one
/// config are one image for podman.
pub(crate) type WantedNames = BTreeMap<ImageId, BTreeSet<String>>;

/// The names that the repository's tags give. A name that two tags with different images would get (`app`
/// and `localhost/app:latest`) goes to the tag that is the name itself. `records` save opening images
/// that are known, and keeps the names of one whose manifest cannot be read any more.
///
/// A name never goes from podman because its tag has moved: it stays with the image that has it until the
/// tag's new image is published, or is `new`.
pub(crate) fn wanted_names(
    repository: &Repository,
    records: &[ImageRecord],
    new: Option<&ImageId>,
) -> Result<WantedNames> {
    let published = || records.iter().filter(|record| !is_hidden(record));
    let mut owners: BTreeMap<String, oci::ManifestDigest> = BTreeMap::new();
    for (tag, manifest) in oci::tags(repository)? {
        let Some(name) = podman_name(tag.as_str()) else {
            continue;
        };
        let is_exact = tag.as_str() == name;
        if is_exact || !owners.contains_key(&name) {
            owners.insert(name, manifest);
        }
    }
    let mut ids: BTreeMap<oci::ManifestDigest, Option<ImageId>> = published()
        .filter_map(|record| {
            let manifest = record.digest.as_ref()?.as_str().parse().ok()?;
            Some((manifest, Some(record.id.clone())))
        })
        .collect();
    let mut wanted = WantedNames::new();
    for (name, manifest) in owners {
        let id = ids
            .entry(manifest)
            .or_insert_with(|| match oci::image(repository, manifest) {
                Ok(image) => Some(image_id(&image)),
                Err(error) => {
                    tracing::warn!(%manifest, "image is left out of podman's names: {error}");
                    None
                }
            });
        let is_shown = |id: &ImageId| new == Some(id) || published().any(|record| record.id == *id);
        let holder = match id {
            Some(id) if is_shown(id) => Some(&*id),
            _ => published()
                .find(|record| record.names.contains(&name))
                .map(|record| &record.id),
        };
        if let Some(id) = holder {
            wanted.entry(id.clone()).or_default().insert(name);
        }
    }
    Ok(wanted)
}

/// The ID that podman has for an image.
pub(crate) fn image_id(image: &oci::Image) -> ImageId {
    image
        .config()
        .digest()
        .to_hex()
        .parse()
        .expect("hex digits are a valid ID")
}

pub(crate) fn names_in(wanted: &WantedNames, record: &ImageRecord) -> Vec<String> {
    if is_hidden(record) {
        return Vec::new();
    }
    wanted
        .get(&record.id)
        .map(|names| names.iter().cloned().collect())
        .unwrap_or_default()
}

/// Gives every image its names; returns those that had others.
pub(crate) fn set_names(
    images: &mut containers_storage::own_store::ImagesTxn<'_>,
    wanted: &WantedNames,
) -> Vec<ImageId> {
    let ids: Vec<ImageId> = images
        .records()
        .iter()
        .map(|record| record.id.clone())
        .collect();
    let mut changed = Vec::new();
    for id in ids {
        if let Some(record) = images.get_mut(&id) {
            let names = names_in(wanted, record);
            if names != record.names {
                record.names = names;
                changed.push(id);
            }
        }
    }
    changed
}
