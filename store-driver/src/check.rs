//! Is what podman is shown what the repository has? And mending it where the repository still has it.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::{self, Seek as _, Write as _},
    path::{Path, PathBuf},
};

use composefs_image::{Dialect, Format, Tree, VerityHasher, WriteOptions, write_image};
use containers_storage::{Digest, LayerId, LayerRecord, own_store::OwnStore};
use repository::{
    Repository, VerityDigest, failpoint,
    layers::for_each_prefix,
    oci::{DiffId, ManifestDigest, NamesStream as _},
};

use rustix::fs::{FlockOperation, flock};

use crate::{
    Layout,
    error::{Error, Result},
    layout::COMPOSEFS_DATA,
    paths::StorePaths,
    publish::link_or_copy,
    store::{Store, image_of, open_existing, with_ancestors},
};

/// Something that podman is shown and that is not as it was published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The layer's directory.
    pub path: PathBuf,
    /// What is wrong and what to do, in words.
    pub problem: String,
}

/// The EROFS image in a layer's directory in the layout [`Layout::Blob`].
pub(crate) fn blob_of(paths: &StorePaths, layer: &LayerId) -> PathBuf {
    paths
        .layer_directory(layer)
        .join(COMPOSEFS_DATA)
        .join("composefs.blob")
}

/// Compares every published layer with its image, and that with the one that its layers make, as far as the
/// repository still has these: they go with the image's last tag, which its containers do not need. With
/// `only`, looks at the layers of the image with this manifest alone. Reads all these images and the layers'
/// streams. Writes nothing.
pub fn check_published(
    repository: &Repository,
    only: Option<&ManifestDigest>,
) -> Result<Vec<Fault>> {
    let paths = StorePaths::of(repository);
    let Some(own) = open_existing(&paths)? else {
        return Ok(Vec::new());
    };
    let faults = faults(repository, &paths, &own, only);
    if matches!(&faults, Ok(faults) if faults.is_empty()) {
        return faults;
    }
    // Somebody may have published or unpublished meanwhile. Nobody does while the lock is held.
    let path = paths.publish_lock();
    let lock = match File::open(&path) {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return faults,
        Err(error) => return Err(Error::io("open", path)(error)),
    };
    rustix::io::retry_on_intr(|| flock(&lock, FlockOperation::LockShared))
        .map_err(Error::io("lock", &path))?;
    self::faults(repository, &paths, &own, only)
}

fn faults(
    repository: &Repository,
    paths: &StorePaths,
    own: &OwnStore,
    only: Option<&ManifestDigest>,
) -> Result<Vec<Fault>> {
    let mut records = own.root().layer_records()?;
    if let Some(&manifest) = only {
        let digest = Some(Digest::from(manifest));
        let mut images = own.root().image_records()?;
        images.retain(|image| image.digest == digest);
        let tops: HashSet<LayerId> = images.into_iter().filter_map(|image| image.layer).collect();
        let layers = with_ancestors(&records, |id| tops.contains(id));
        records.retain(|record| layers.contains(&record.id));
    }
    let mut faults = Vec::new();
    let mut images = HashMap::new();
    for record in &records {
        let mut fault = |problem: String| {
            faults.push(Fault {
                path: paths.layer_directory(&record.id),
                problem,
            });
        };
        let Some(image) = image_of(repository, &record.id)? else {
            fault("the repository has no image for this layer; publish its image again".into());
            continue;
        };
        images.insert(record.id.clone(), image);
        match Layout::of(paths, &record.id) {
            Ok(Layout::Mounted) => {}
            Ok(Layout::Blob) => {
                let blob = blob_of(paths, &record.id);
                match digest_of(repository, &blob) {
                    Ok(actual) if actual == image => {}
                    Ok(actual) => fault(format!(
                        "its EROFS image has the digest {actual} instead of {image}; fsck --repair \
                         replaces it"
                    )),
                    Err(error) => fault(format!("{}: {error}", blob.display())),
                }
            }
            Err(error) => fault(error.to_string()),
        }
    }
    for chain in chains(&records) {
        if let Some(streams) = streams_of(repository, &chain)? {
            compare(repository, paths, &chain, &streams, &images, &mut faults);
        }
    }
    faults.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(faults)
}

/// Makes the images of a chain of layers again and compares each.
fn compare(
    repository: &Repository,
    paths: &StorePaths,
    chain: &[&LayerRecord],
    streams: &[VerityDigest],
    images: &HashMap<LayerId, VerityDigest>,
    faults: &mut Vec<Fault>,
) {
    let result = each_tree(repository, chain, streams, |record, tree| {
        let Some(recorded) = images.get(&record.id) else {
            return Ok(());
        };
        let mut hasher = VerityHasher::new(repository.algorithm());
        write(&record.id, tree, &mut hasher)?;
        let actual = hasher.finish();
        if actual != *recorded {
            faults.push(Fault {
                path: paths.layer_directory(&record.id),
                problem: format!(
                    "the layers make the image {actual}, but {recorded} is published; unpublish its \
                     image, and publish it again"
                ),
            });
        }
        Ok(())
    });
    if let Err(error) = result
        && let Some(top) = chain.last()
    {
        faults.push(Fault {
            path: paths.layer_directory(&top.id),
            problem: format!("its layers cannot be read: {error}"),
        });
    }
}

/// The image of a published layer, made again from its layers; `None` if no published layer has this image,
/// or if the layers make another one or cannot be read.
pub fn published_image_again(
    repository: &Repository,
    image: &VerityDigest,
) -> Result<Option<File>> {
    let paths = StorePaths::of(repository);
    let Some(own) = open_existing(&paths)? else {
        return Ok(None);
    };
    let records = own.root().layer_records()?;
    let mut layer = None;
    for record in &records {
        if image_of(repository, &record.id)?.as_ref() == Some(image) {
            layer = Some(&record.id);
        }
    }
    let Some(layer) = layer else {
        return Ok(None);
    };
    for chain in chains(&records) {
        let Some(position) = chain.iter().position(|record| record.id == *layer) else {
            continue;
        };
        let Some(streams) = streams_of(repository, &chain[..=position])? else {
            return Ok(None);
        };
        let mut made = None;
        let result = each_tree(repository, &chain, &streams, |record, tree| {
            if record.id == *layer {
                let directory = paths.private();
                let mut file =
                    tempfile::tempfile_in(&directory).map_err(Error::io("write in", &directory))?;
                let mut out = io::BufWriter::new(&mut file);
                write(&record.id, tree, &mut out)?;
                out.flush().map_err(Error::io("write in", &directory))?;
                drop(out);
                file.rewind().map_err(Error::io("write in", &directory))?;
                made = Some(file);
            }
            Ok(())
        });
        return Ok(result.ok().and(made));
    }
    Ok(None)
}

/// Puts the repository's image in place of each EROFS image in the store that differs from it; returns the
/// layers. Containers that run keep what they use.
pub fn mend_published(repository: &Repository) -> Result<Vec<LayerId>> {
    let paths = StorePaths::of(repository);
    if open_existing(&paths)?.is_none() {
        return Ok(Vec::new());
    }
    // The lock of the store, so that nobody publishes meanwhile.
    let store = Store::open(repository)?;
    let mut mended = Vec::new();
    for record in store.own.root().layer_records()? {
        let (Ok(Layout::Blob), Some(image)) = (
            Layout::of(&paths, &record.id),
            image_of(repository, &record.id)?,
        ) else {
            continue;
        };
        let blob = blob_of(&paths, &record.id);
        if matches!(digest_of(repository, &blob), Ok(actual) if actual == image) {
            continue;
        }
        let object = repository.object_file(&image);
        if !matches!(digest_of(repository, &object), Ok(actual) if actual == image) {
            continue;
        }
        let new = blob.with_extension("new");
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("remove", new)(error));
            }
            _ => {}
        }
        link_or_copy(repository, &image, &new)?;
        store.own.sync()?;
        failpoint("mend-linked");
        fs::rename(&new, &blob).map_err(Error::io("replace", &blob))?;
        failpoint("mend-replaced");
        store.own.sync()?;
        mended.push(record.id);
    }
    Ok(mended)
}

fn digest_of(repository: &Repository, path: &Path) -> io::Result<VerityDigest> {
    let mut hasher = VerityHasher::new(repository.algorithm());
    io::copy(&mut File::open(path)?, &mut hasher)?;
    Ok(hasher.finish())
}

/// Every layer with those below it, bottom first: a chain for each layer that is nobody's parent.
fn chains(records: &[LayerRecord]) -> Vec<Vec<&LayerRecord>> {
    let by_id: HashMap<&LayerId, &LayerRecord> =
        records.iter().map(|record| (&record.id, record)).collect();
    let parents: HashSet<&LayerId> = records
        .iter()
        .filter_map(|record| record.parent.as_ref())
        .collect();
    let tops = records
        .iter()
        .filter(|record| !parents.contains(&record.id));
    tops.map(|top| {
        let mut chain = Vec::new();
        let mut next = Some(top);
        while let Some(record) = next
            // No chain is longer than there are layers.
            && chain.len() < records.len()
        {
            chain.push(record);
            next = record
                .parent
                .as_ref()
                .and_then(|parent| by_id.get(parent).copied());
        }
        chain.reverse();
        chain
    })
    .collect()
}

/// The streams of a chain of layers; `None` if the repository no longer has all of them.
fn streams_of(
    repository: &Repository,
    chain: &[&LayerRecord],
) -> Result<Option<Vec<VerityDigest>>> {
    let mut streams = Vec::new();
    for record in chain {
        let diff_id = record.diff_digest.as_ref().map(ToString::to_string);
        let Some(Ok(diff_id)) = diff_id.map(|text| text.parse::<DiffId>()) else {
            return Ok(None);
        };
        let Some(stream) = repository.stream(&diff_id.stream_name())? else {
            return Ok(None);
        };
        streams.push(stream);
    }
    Ok(Some(streams))
}

/// Merges a chain of layers as podman does, and shows the tree after each of them.
fn each_tree(
    repository: &Repository,
    chain: &[&LayerRecord],
    streams: &[VerityDigest],
    mut visit: impl FnMut(&LayerRecord, &Tree) -> Result<()>,
) -> Result<()> {
    for_each_prefix(repository, streams, |index, tree| {
        chain
            .get(index)
            .map_or(Ok(()), |record| visit(record, tree))
    })
}

/// Writes the image of a published layer's tree.
pub(crate) fn write(layer: &LayerId, tree: &Tree, out: &mut impl io::Write) -> Result<()> {
    let options = WriteOptions {
        format: Format::V1,
        // Nobody else computes this image's digest, and the other dialect cannot say that a file has
        // more links than names.
        dialect: Dialect::C,
    };
    write_image(tree, &options, out).map_err(|source| Error::WriteImage {
        layer: layer.clone(),
        source,
    })?;
    Ok(())
}
