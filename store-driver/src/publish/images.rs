//! What is made of the layers themselves: EROFS images in the repository, and tar-splits.

use std::{
    collections::HashMap,
    fs::{self, File, Permissions},
    io::BufWriter,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::PathBuf,
};

use composefs_image::{Metadata, Tree};
use containers_storage::LayerId;
use repository::{
    Batch, Category, Repository, VerityDigest,
    layers::{LayerStream, for_each_prefix},
};

use super::{
    plan::{Plan, PlannedLayer},
    report::Note,
    stage::make_directory,
};
use crate::{
    Layout, check,
    error::{Error, Result},
    paths::StorePaths,
    store::layer_ref,
    tar_split::{
        Checksums, Expected, Known, Places, TarFacts, TarSplitError, checksum, objects_of,
        write_tar_split,
    },
};

/// What was made of the layers that needed something.
pub(super) struct Images {
    /// EROFS images by layer.
    pub(super) erofs: HashMap<LayerId, VerityDigest>,
    /// Facts for the records, and tar-splits in the incoming directory, of layers without record.
    pub(super) facts: HashMap<LayerId, TarFacts>,
}

/// Writes the EROFS image of each layer that lacks one and keeps it with a ref, and the tar-split of each
/// layer without record. The images are durable when this returns.
pub(super) fn write_images(
    repository: &Repository,
    plan: &Plan,
    paths: &StorePaths,
    notes: &mut Vec<Note>,
) -> Result<Images> {
    make_directory(&paths.incoming(), 0o700)?;
    let batch = repository.batch()?;
    let streams: Vec<VerityDigest> = plan.layers.iter().map(|layer| layer.stream).collect();
    let mut images = Images {
        erofs: HashMap::new(),
        facts: HashMap::new(),
    };
    let mut root = Metadata::default();
    std::thread::scope(|scope| {
        // A tar-split takes longer than all else, and needs the tree at the very end only.
        let begin = |index: usize| {
            let layer = plan.layers.get(index).filter(|layer| !layer.has_record)?;
            let write = || -> Result<_> {
                let checksums = checksums(repository, layer)?;
                let mut expected = Expected::default();
                let facts =
                    write_layer_tar_split(repository, layer, &mut expected, &checksums, paths)?;
                Ok((facts, expected))
            };
            Some(scope.spawn(write))
        };
        let mut begun = begin(0);
        for_each_prefix(repository, &streams, |index, tree| -> Result<()> {
            let Some(layer) = plan.layers.get(index) else {
                return Ok(());
            };
            root = tree.metadata(tree.root());
            if !layer.has_record || !layer.has_image {
                let digest = write_erofs(&batch, &layer.id, tree)?;
                images.erofs.insert(layer.id.clone(), digest);
            }
            if let Some(tar_split) = begun.take() {
                let written = tar_split.join();
                let (mut facts, expected) =
                    written.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                if !expected.are_right(tree) {
                    let checksums = self::checksums(repository, layer)?;
                    let mut known = Known::new(tree);
                    facts =
                        write_layer_tar_split(repository, layer, &mut known, &checksums, paths)?;
                }
                images.facts.insert(layer.id.clone(), facts);
            }
            begun = begin(index + 1);
            Ok(())
        })
    })?;
    batch.commit()?;
    if plan.layout == Layout::Blob {
        notes.extend(fit_objects_directory(paths, root)?);
    }
    Ok(images)
}

/// The checksums of all objects of a layer.
fn checksums(repository: &Repository, layer: &PlannedLayer) -> Result<Checksums> {
    if let Some(kept) = repository.layer_checksums(&layer.diff_id, &layer.stream)? {
        return Ok(kept.collect::<Result<_, _>>()?);
    }
    // Somebody else stored the layer.
    let mut stream = LayerStream::open(repository, &layer.stream)?;
    let objects = objects_of(&mut stream)?;
    checksum(repository, &objects).map_err(|source| tar_split_error(&layer.id, source))
}

fn tar_split_error(layer: &LayerId, source: TarSplitError) -> Error {
    Error::TarSplit {
        layer: layer.clone(),
        source: Box::new(source),
    }
}

fn write_erofs(batch: &Batch<'_>, layer: &LayerId, tree: &Tree) -> Result<VerityDigest> {
    let mut writer = batch.object_writer()?;
    check::write(layer, tree, &mut writer)?;
    let (digest, _, _) = writer.finish()?;
    batch.link_image(&digest);
    batch.set_ref(Category::Images, &layer_ref(layer)?, &digest.to_string());
    Ok(digest)
}

fn write_layer_tar_split(
    repository: &Repository,
    layer: &PlannedLayer,
    places: &mut impl Places,
    checksums: &Checksums,
    paths: &StorePaths,
) -> Result<TarFacts> {
    let path = incoming_tar_split(paths, &layer.id);
    let file = File::create(&path).map_err(Error::io("create", &path))?;
    file.set_permissions(Permissions::from_mode(0o644))
        .map_err(Error::io("set the mode of", &path))?;
    let mut stream = LayerStream::open(repository, &layer.stream)?;
    write_tar_split(
        &mut stream,
        places,
        checksums,
        repository,
        BufWriter::new(file),
    )
    .map_err(|source| tar_split_error(&layer.id, source))
}

pub(super) fn incoming_tar_split(paths: &StorePaths, layer: &LayerId) -> PathBuf {
    paths.incoming().join(format!("{layer}.tar-split.gz"))
}

/// The mode that composefs-rs gives to the objects' directory.
const OBJECTS_MODE: u32 = 0o755;

/// The mode that podman gives to `/` where no layer says otherwise, and hardly one can: it ignores `./`.
const PODMAN_ROOT_MODE: u32 = 0o555;

/// Mode and owner of the objects' directory become those of containers' `/` in the layout `blob`, so
/// they have to be the usual ones.
pub(crate) fn check_objects_directory(paths: &StorePaths) -> Result<u32> {
    let path = paths.objects();
    let metadata = fs::metadata(&path).map_err(Error::io("look at", &path))?;
    let (mode, uid, gid) = (metadata.mode() & 0o7777, metadata.uid(), metadata.gid());
    if matches!(mode, OBJECTS_MODE | PODMAN_ROOT_MODE) && (uid, gid) == (0, 0) {
        Ok(mode)
    } else {
        Err(Error::ObjectsMode {
            path,
            mode,
            uid,
            gid,
        })
    }
}

/// Gives the objects' directory the mode of the image's `/`, but only from the one usual mode to the
/// other, which are the same to root; the repository's own mode keeps others out. What differs then is
/// worth a note.
fn fit_objects_directory(paths: &StorePaths, root: Metadata) -> Result<Option<Note>> {
    let mut mode = check_objects_directory(paths)?;
    if mode == OBJECTS_MODE && u32::from(root.mode) == PODMAN_ROOT_MODE {
        let path = paths.objects();
        fs::set_permissions(&path, Permissions::from_mode(PODMAN_ROOT_MODE))
            .map_err(Error::io("set the mode of", &path))?;
        mode = PODMAN_ROOT_MODE;
    }
    let differs = (u32::from(root.mode), root.uid, root.gid) != (mode, 0, 0);
    Ok(differs.then_some(Note::RootMetadata {
        mode: root.mode,
        uid: root.uid,
        gid: root.gid,
        shown: mode,
    }))
}
