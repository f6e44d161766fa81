//! Showing an image to podman.
//!
//! Nothing that podman can see exists before it is complete, durable and kept alive by a ref: the
//! repository first, then mounts, then layers, then the image. Each step leaves something that a later
//! call finds and completes or clears away.

use std::{
    collections::HashMap,
    fs::{self, DirBuilder, File, Permissions},
    io::{self, BufWriter},
    os::{
        fd::AsFd,
        unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    time::SystemTime,
};

use composefs_image::{Dialect, Format, Metadata, WriteOptions, write_image};
use containers_storage::{
    ConfigDigest, DiffId, ImageId, ImageRecord, LayerId, LayerRecord, LinkId, ManifestDigest,
    StorageConf, chain_id,
    own_store::{BigData, StagedLayer},
};
use repository::{
    Batch, Category, Repository, VerityDigest, failpoint,
    layers::{LayerStream, for_each_prefix},
    oci,
};
use rustix::fs::ioctl_ficlone;
use serde::Serialize;

use crate::{
    Layout,
    error::{Error, Result},
    host::check_host,
    layout::COMPOSEFS_DATA,
    names::podman_name,
    paths::StorePaths,
    published::{image_id, names_in, set_names, wanted_names},
    serve::LayerMounts,
    store::{Store, image_of, layer_ref},
    tar_split::{Checksums, TarFacts, checksum, objects_of, write_tar_split},
    time::{is_rfc3339, rfc3339},
    view::{ViewState, ensure_view},
};

/// How to publish.
#[derive(Clone, Copy, Debug)]
pub struct PublishOptions<'a> {
    /// How podman gets at the tree.
    pub layout: Layout,
    /// podman's configuration: what it says decides whether a layout is safe, and its stores are
    /// remembered as users of ours.
    pub conf: &'a StorageConf,
}

/// What became of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerOutcome {
    /// It was published by this call.
    New,
    /// It was there.
    Present,
}

/// A layer of a published image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PublishedLayer {
    /// The chain ID, which is podman's layer ID.
    pub id: LayerId,
    /// Whether it was there.
    pub outcome: LayerOutcome,
}

/// Something the user should know, although publishing succeeded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Note {
    /// podman is not configured with the store.
    NotConfigured {
        /// The configuration that podman uses.
        conf: String,
        /// The line to add.
        line: String,
    },
    /// A tag that is no image reference gives the image no name.
    UnusableTag {
        /// The tag.
        tag: String,
    },
    /// In the layout `blob`, a container's `/` has the mode and owner of the objects' directory.
    RootMetadata {
        /// The mode that the image gives to `/`.
        mode: u16,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
    },
}

impl std::fmt::Display for Note {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotConfigured { conf, line } => write!(
                f,
                "podman does not see the image yet: {conf} does not name the store; add the line\n    {line}\n\
                 below [storage.options] there"
            ),
            Self::UnusableTag { tag } => write!(
                f,
                "the tag {tag:?} is no image reference, so podman does not list the image under it"
            ),
            Self::RootMetadata { mode, uid, gid } => write!(
                f,
                "`/` has mode {mode:04o} and owner {uid}:{gid} in the image, and 0755 and 0:0 in containers of \
                 the layout `blob`"
            ),
        }
    }
}

/// What [`publish`] did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PublishReport {
    /// The image's ID, the same as everywhere.
    pub image: ImageId,
    /// The layout of its layers.
    pub layout: Layout,
    /// The names under which podman lists it.
    pub names: Vec<String>,
    /// Its layers, from the base up.
    pub layers: Vec<PublishedLayer>,
    /// The path for podman's `additionalimagestores`.
    pub view: PathBuf,
    /// Whether the view had to be mounted.
    pub view_state: ViewState,
    /// What the user should know.
    pub notes: Vec<Note>,
}

/// Shows an image of the repository to podman, under the names of its tags.
///
/// Needs `CAP_SYS_ADMIN` for the mounts. Once more for the same image: nothing happens, but that names
/// follow the tags and missing mounts are made. A layer that is published in the other layout is
/// refused ([`Error::OtherLayout`]), and so is a configuration of podman's with which the layout would
/// do harm ([`check_host`]); nothing is changed then.
pub fn publish(
    repository: &Repository,
    image: &oci::Image,
    options: &PublishOptions<'_>,
) -> Result<PublishReport> {
    check_host(options.conf, options.layout)?;
    if image.layers().is_empty() {
        return Err(Error::NoLayers {
            image: image_id(image),
        });
    }
    let mut store = Store::open(repository)?;
    store.check_place()?;
    let plan = Plan::new(repository, image, options.layout, &store)?;
    let view_state = ensure_view(&store.paths)?;
    store.consumers.note(options.conf)?;

    let mut notes = Vec::new();
    if plan.is_incomplete() {
        let images = write_images(repository, &plan, &store.paths, &mut notes)?;
        failpoint("publish-images-committed");
        add_layers(repository, &plan, &images, &mut store)?;
        failpoint("publish-layers-committed");
    }
    if options.layout == Layout::Mounted {
        let mounts = LayerMounts::new(repository, &store.paths)?;
        for layer in &plan.layers {
            if let Some(image) = image_of(repository, &layer.id)? {
                mounts.ensure(&layer.id, &image)?;
            }
        }
    }
    let names = add_image(repository, image, &plan, &mut store)?;
    failpoint("publish-image-committed");

    notes.extend(image.tags().iter().filter_map(|tag| {
        podman_name(tag.as_str())
            .is_none()
            .then(|| Note::UnusableTag {
                tag: tag.as_str().to_owned(),
            })
    }));
    let view = store.paths.view();
    notes.extend(configuration_note(options.conf, &view));
    Ok(PublishReport {
        image: image_id(image),
        layout: options.layout,
        names,
        layers: plan
            .layers
            .iter()
            .map(|layer| PublishedLayer {
                id: layer.id.clone(),
                outcome: if layer.has_record {
                    LayerOutcome::Present
                } else {
                    LayerOutcome::New
                },
            })
            .collect(),
        view,
        view_state,
        notes,
    })
}

fn configuration_note(conf: &StorageConf, view: &Path) -> Option<Note> {
    let is_view = |path: &PathBuf| {
        path == view || path.canonicalize().is_ok_and(|canonical| canonical == view)
    };
    if conf.additional_image_stores.iter().any(is_view) {
        return None;
    }
    let mut stores: Vec<String> = conf
        .additional_image_stores
        .iter()
        .map(|path| format!("{:?}", path.display().to_string()))
        .collect();
    stores.push(format!("{:?}", view.display().to_string()));
    Some(Note::NotConfigured {
        conf: conf.source.to_string(),
        line: format!("additionalimagestores = [{}]", stores.join(", ")),
    })
}

/// A layer to publish.
struct PlannedLayer {
    id: LayerId,
    parent: Option<LayerId>,
    diff_id: DiffId,
    stream: VerityDigest,
    /// podman's view has it.
    has_record: bool,
    /// The repository keeps its EROFS image.
    has_image: bool,
}

/// What is there and what is to be made.
struct Plan {
    layout: Layout,
    /// From the base up.
    layers: Vec<PlannedLayer>,
}

impl Plan {
    fn new(
        repository: &Repository,
        image: &oci::Image,
        layout: Layout,
        store: &Store,
    ) -> Result<Self> {
        let records = store.own.root().layer_records()?;
        let mut layers: Vec<PlannedLayer> = Vec::new();
        for layer in image.layers() {
            let diff_id = DiffId::from_bytes(*layer.diff_id.as_bytes());
            let parent = layers.last().map(|below| below.id.clone());
            let id = chain_id(parent.as_ref(), &diff_id);
            let has_record = records.iter().any(|record| record.id == id);
            if has_record {
                let has = Layout::of(&store.paths, &id)?;
                if has != layout {
                    return Err(Error::OtherLayout { layer: id, has });
                }
            }
            layers.push(PlannedLayer {
                has_image: match image_of(repository, &id)? {
                    Some(image) => repository.has_image(&image)?,
                    None => false,
                },
                id,
                parent,
                diff_id,
                stream: layer.stream,
                has_record,
            });
        }
        Ok(Self { layout, layers })
    }

    fn is_incomplete(&self) -> bool {
        self.layers
            .iter()
            .any(|layer| !layer.has_record || !layer.has_image)
    }
}

/// What was made of the layers that needed something.
struct Images {
    /// EROFS images by layer.
    erofs: HashMap<LayerId, VerityDigest>,
    /// Facts for the records, and tar-splits in the incoming directory, of layers without record.
    facts: HashMap<LayerId, TarFacts>,
}

/// Writes the EROFS image of each layer that lacks one and keeps it with a ref, and the tar-split of each
/// layer without record. The images are durable when this returns.
fn write_images(
    repository: &Repository,
    plan: &Plan,
    paths: &StorePaths,
    notes: &mut Vec<Note>,
) -> Result<Images> {
    make_incoming(paths)?;
    let checksums = checksums(repository, plan)?;
    let batch = repository.batch()?;
    let streams: Vec<VerityDigest> = plan.layers.iter().map(|layer| layer.stream).collect();
    let mut images = Images {
        erofs: HashMap::new(),
        facts: HashMap::new(),
    };
    let mut root = Metadata::default();
    for_each_prefix(repository, &streams, |index, tree| -> Result<()> {
        let Some(layer) = plan.layers.get(index) else {
            return Ok(());
        };
        root = tree.metadata(tree.root());
        if !layer.has_record || !layer.has_image {
            let digest = write_erofs(&batch, &layer.id, tree)?;
            images.erofs.insert(layer.id.clone(), digest);
        }
        if !layer.has_record {
            let facts = write_layer_tar_split(repository, layer, tree, &checksums, paths)?;
            images.facts.insert(layer.id.clone(), facts);
        }
        Ok(())
    })?;
    batch.commit()?;
    if plan.layout == Layout::Blob {
        check_objects_directory(paths)?;
        // Write permission for root makes no difference.
        if (root.mode | 0o200, root.uid, root.gid) != (0o755, 0, 0) {
            notes.push(Note::RootMetadata {
                mode: root.mode,
                uid: root.uid,
                gid: root.gid,
            });
        }
    }
    Ok(images)
}

/// Mode and owner of the objects' directory become those of containers' `/`.
fn check_objects_directory(paths: &StorePaths) -> Result<()> {
    let path = paths.objects();
    let metadata = fs::metadata(&path).map_err(Error::io("look at", &path))?;
    let (mode, uid, gid) = (metadata.mode() & 0o7777, metadata.uid(), metadata.gid());
    if (mode, uid, gid) == (0o755, 0, 0) {
        Ok(())
    } else {
        Err(Error::ObjectsMode {
            path,
            mode,
            uid,
            gid,
        })
    }
}

fn checksums(repository: &Repository, plan: &Plan) -> Result<Checksums> {
    let mut checksums = Checksums::new();
    for layer in plan.layers.iter().filter(|layer| !layer.has_record) {
        let mut stream = LayerStream::open(repository, &layer.stream)?;
        let objects = objects_of(&mut stream)?;
        checksum(repository, &objects, &mut checksums)
            .map_err(|source| tar_split_error(&layer.id, source))?;
    }
    Ok(checksums)
}

fn tar_split_error(layer: &LayerId, source: crate::tar_split::TarSplitError) -> Error {
    Error::TarSplit {
        layer: layer.clone(),
        source: Box::new(source),
    }
}

fn write_erofs(
    batch: &Batch<'_>,
    layer: &LayerId,
    tree: &composefs_image::Tree,
) -> Result<VerityDigest> {
    let options = WriteOptions {
        format: Format::V1,
        dialect: Dialect::ComposefsRs,
    };
    let mut writer = batch.object_writer()?;
    write_image(tree, &options, &mut writer).map_err(|source| Error::WriteImage {
        layer: layer.clone(),
        source,
    })?;
    let (digest, _, _) = writer.finish()?;
    batch.link_image(&digest);
    batch.set_ref(Category::Images, &layer_ref(layer)?, &digest.to_string());
    Ok(digest)
}

fn write_layer_tar_split(
    repository: &Repository,
    layer: &PlannedLayer,
    tree: &composefs_image::Tree,
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
        tree,
        checksums,
        repository,
        BufWriter::new(file),
    )
    .map_err(|source| tar_split_error(&layer.id, source))
}

fn incoming_tar_split(paths: &StorePaths, layer: &LayerId) -> PathBuf {
    paths.incoming().join(format!("{layer}.tar-split.gz"))
}

/// Makes directories and records of the layers without record, and gives them to podman all at once.
fn add_layers(
    repository: &Repository,
    plan: &Plan,
    images: &Images,
    store: &mut Store,
) -> Result<()> {
    let now = rfc3339(SystemTime::now());
    let mut staged = Vec::new();
    for layer in plan.layers.iter().filter(|layer| !layer.has_record) {
        let (Some(image), Some(facts)) = (images.erofs.get(&layer.id), images.facts.get(&layer.id))
        else {
            continue;
        };
        let mut record = LayerRecord::new(layer.id.clone());
        record.parent.clone_from(&layer.parent);
        record.created.clone_from(&now);
        record.diff_digest = Some(layer.diff_id.into());
        record.diff_size = Some(i64::try_from(facts.size).unwrap_or(i64::MAX));
        record.uid_set = facts.uids.iter().copied().collect();
        record.gid_set = facts.gids.iter().copied().collect();
        staged.push(StagedLayer {
            record,
            link: LinkId::random().map_err(Error::io("get random bytes for", "a layer's link"))?,
            directory: stage_directory(repository, plan.layout, &layer.id, image, &store.paths)?,
            tar_split: Some(incoming_tar_split(&store.paths, &layer.id)),
        });
    }
    if staged.is_empty() {
        return Ok(());
    }
    if plan.layout == Layout::Mounted {
        let mounts = LayerMounts::new(repository, &store.paths)?;
        for layer in &staged {
            if let Some(image) = images.erofs.get(&layer.record.id) {
                mounts.ensure(&layer.record.id, image)?;
            }
        }
    }
    store.own.sync()?;
    failpoint("publish-layers-staged");
    let mut transaction = store.own.layers()?;
    for layer in staged {
        transaction.add(layer);
    }
    transaction.commit()?;
    Ok(())
}

fn make_incoming(paths: &StorePaths) -> Result<()> {
    make_directory(&paths.incoming(), 0o700)
}

/// Makes a layer's directory in the incoming directory. podman wants `empty` where there is no `lower`,
/// and before 5.2 `merged` and `work`, which it cannot make itself behind the read-only view.
fn stage_directory(
    repository: &Repository,
    layout: Layout,
    layer: &LayerId,
    image: &VerityDigest,
    paths: &StorePaths,
) -> Result<PathBuf> {
    let directory = paths.incoming().join(layer.as_str());
    make_directory(&directory, 0o755)?;
    for (name, mode) in [("empty", 0o755), ("merged", 0o700), ("work", 0o700)] {
        make_directory(&directory.join(name), mode)?;
    }
    let link = |target: &Path, name: &str| {
        let path = directory.join(name);
        symlink(target, &path).map_err(Error::io("create", path))
    };
    match layout {
        Layout::Mounted => link(&paths.layer_mount(layer), "diff")?,
        Layout::Blob => {
            // podman takes the layer's ID from the last but one component of what `diff` leads to.
            let objs = paths
                .view()
                .join("overlay")
                .join(layer.as_str())
                .join("objs");
            link(&objs, "diff")?;
            link(&paths.objects(), "objs")?;
            let data = directory.join(COMPOSEFS_DATA);
            make_directory(&data, 0o755)?;
            link_or_copy(repository, image, &data.join("composefs.blob"))?;
        }
    }
    Ok(directory)
}

/// Makes a directory with this very mode, whatever the umask.
fn make_directory(path: &Path, mode: u32) -> Result<()> {
    DirBuilder::new()
        .mode(mode)
        .create(path)
        .map_err(Error::io("create directory", path))?;
    fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(Error::io("set the mode of", path))
}

/// Gives an object another name: the blob is immutable and ours, so one inode serves both. A file system
/// that cannot link further gets a clone or a copy.
fn link_or_copy(repository: &Repository, image: &VerityDigest, path: &Path) -> Result<()> {
    match fs::hard_link(repository.object_file(image), path) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::io("link", path)(error));
        }
        Err(_) => {}
    }
    let copy = || -> Result<()> {
        let mut from = repository.open_object(image)?;
        let mut to = File::create_new(path).map_err(Error::io("create", path))?;
        to.set_permissions(Permissions::from_mode(0o644))
            .map_err(Error::io("set the mode of", path))?;
        if ioctl_ficlone(to.as_fd(), from.as_fd()).is_err() {
            io::copy(&mut from, &mut to).map_err(Error::io("write", path))?;
        }
        Ok(())
    };
    copy()
}

/// Gives podman the image, or only new names where it has it. Returns its names.
fn add_image(
    repository: &Repository,
    image: &oci::Image,
    plan: &Plan,
    store: &mut Store,
) -> Result<Vec<String>> {
    let id = image_id(image);
    let manifest = ManifestDigest::from_bytes(*image.manifest().digest().as_bytes());
    let config = ConfigDigest::from_bytes(*image.config().digest().as_bytes());
    let wanted = wanted_names(repository)?;
    let present = store.own.root().image_records()?;
    let is_present = |record: &ImageRecord| {
        record.id == id
            && record
                .digest
                .as_ref()
                .is_some_and(|digest| *digest == manifest.into())
    };
    if present.iter().any(is_present)
        && present
            .iter()
            .all(|record| names_in(&wanted, record) == record.names)
    {
        return Ok(wanted.get(&id).into_iter().flatten().cloned().collect());
    }

    let mut transaction = store.own.images()?;
    if !transaction.records().iter().any(is_present) {
        let mut record = ImageRecord::new(id.clone());
        record.digest = Some(manifest.into());
        record.layer = plan.layers.last().map(|layer| layer.id.clone());
        record.metadata = "{}".to_owned();
        record.created = image
            .config()
            .spec()
            .created()
            .clone()
            .filter(|created| is_rfc3339(created))
            .unwrap_or_else(|| rfc3339(SystemTime::now()));
        let data = [
            (config.to_string(), image.config().bytes()),
            (format!("manifest-{manifest}"), image.manifest().bytes()),
            ("manifest".to_owned(), image.manifest().bytes()),
        ]
        .map(|(key, bytes)| BigData {
            key,
            bytes: bytes.to_vec(),
        });
        transaction.put(record, data.into());
    }
    set_names(&mut transaction, &wanted);
    let names = transaction
        .get(&id)
        .map(|record| record.names.clone())
        .unwrap_or_default();
    transaction.commit()?;
    Ok(names)
}
