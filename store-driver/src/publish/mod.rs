//! Showing an image to podman.
//!
//! Nothing that podman can see exists before it is complete, durable and kept alive by a ref: the
//! repository first, then mounts, then layers, then the image. Each step leaves something that a later
//! call finds and completes or clears away.

mod images;
mod plan;
mod report;
mod stage;

pub(crate) use images::check_objects_directory;
pub(crate) use stage::link_or_copy;

use std::time::SystemTime;

use containers_storage::{Environment, ImageRecord, StorageConf, own_store::BigData};
use repository::{Repository, Tag, failpoint, oci};

pub use report::{LayerOutcome, Note, PublishReport, PublishedLayer};

use self::{
    images::write_images,
    plan::Plan,
    report::{configuration_note, hidden_names_note},
    stage::add_layers,
};
use crate::{
    Enforcement, Layout,
    check::blob_of,
    error::{Error, Result},
    hidden::is_hidden,
    host::{check_host, check_verified_host},
    mount::Stacking,
    names::podman_name,
    published::{image_id, names_in, set_names, wanted_names},
    serve::{LayerMounts, detached_image},
    store::{Store, image_of},
    time::{is_rfc3339, rfc3339},
    verify::{check_secure, is_promised, measure, promise},
    view::ensure_view,
};

/// How to publish.
#[derive(Clone, Copy, Debug)]
pub struct PublishOptions<'a> {
    /// How podman gets at the tree.
    pub layout: Layout,
    /// podman's configuration: what it says decides whether a layout is safe, and its stores are
    /// remembered as users of ours.
    pub conf: &'a StorageConf,
    /// Whether what containers read must be verified.
    pub enforcement: Enforcement,
}

/// Shows an image of the repository to podman, under the names of its tags.
///
/// Needs `CAP_SYS_ADMIN` for the mounts. Once more for the same image: nothing happens, but that names
/// follow the tags and missing mounts are made. A layer that is published in the other layout is
/// refused ([`Error::OtherLayout`]), and so is a configuration of podman's with which the layout would
/// do harm ([`check_host`]); nothing is changed then.
///
/// With [`Enforcement::Required`] a repository without fs-verity is refused ([`Error::NoVerity`]), and so is
/// a configuration that does not have podman ask for verification where it mounts the image itself
/// ([`Error::NoVerityOption`]). That is noted in the image's record, until the image is unpublished.
pub fn publish(
    repository: &Repository,
    image: &oci::Image,
    options: &PublishOptions<'_>,
) -> Result<PublishReport> {
    if !Environment::current().is_root() {
        return Err(Error::NeedsRoot);
    }
    if options.enforcement == Enforcement::Required {
        check_secure(repository)?;
        check_verified_host(options.conf, options.layout)?;
    }
    check_host(options.conf, options.layout)?;
    if image.layers().is_empty() {
        return Err(Error::NoLayers {
            image: image_id(image),
        });
    }
    let mut store = Store::open(repository)?;
    store.check_place()?;
    let plan = Plan::new(repository, image, options, &store)?;
    if options.layout == Layout::Blob {
        check_objects_directory(&store.paths)?;
    }
    let view_state = ensure_view(&store.paths)?;
    store.consumers.note(&options.conf.clone().into())?;

    let mut notes = Vec::new();
    if plan.is_incomplete() {
        let images = write_images(repository, &plan, &store.paths, &mut notes)?;
        failpoint("publish-images-committed");
        add_layers(repository, &plan, &images, &mut store)?;
        failpoint("publish-layers-committed");
    }
    ensure_mounts(repository, &plan, &store)?;
    let names = add_image(repository, image, &plan, &mut store)?;
    failpoint("publish-image-committed");

    let unusable = |tag: &&Tag| podman_name(tag.as_str()).is_none();
    notes.extend(image.tags().iter().filter(unusable).map(|tag| {
        let tag = tag.as_str().to_owned();
        Note::UnusableTag { tag }
    }));
    notes.extend(hidden_names_note(options.conf, &image_id(image), &names));
    let view = store.paths.view();
    notes.extend(configuration_note(options.conf, &view));
    Ok(PublishReport {
        image: image_id(image),
        layout: options.layout,
        verified: options.enforcement == Enforcement::Required,
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

/// Mounts what the layout wants mounted. What is verified is measured, and mounted once where podman will do
/// it: a kernel that cannot verify shows now, and not when a container starts.
fn ensure_mounts(repository: &Repository, plan: &Plan, store: &Store) -> Result<()> {
    let mounts = LayerMounts::new(repository, &store.paths)?;
    for layer in &plan.layers {
        let Some(image) = image_of(repository, &layer.id)? else {
            continue;
        };
        if plan.layout == Layout::Mounted {
            mounts.ensure(&layer.id, &image, plan.enforcement)?;
        } else if plan.enforcement == Enforcement::Required {
            let blob = blob_of(&store.paths, &layer.id);
            measure(&blob, &image).map_err(|problem| Error::Unsound {
                path: blob,
                problem,
            })?;
            detached_image(repository, &image, plan.enforcement, Stacking::BelowOverlay)?;
        }
    }
    Ok(())
}

/// Gives podman the image, or only new names where it has it. Returns its names.
fn add_image(
    repository: &Repository,
    image: &oci::Image,
    plan: &Plan,
    store: &mut Store,
) -> Result<Vec<String>> {
    let id = image_id(image);
    let manifest = image.manifest().digest();
    let config = image.config().digest();
    let present = store.own.root().image_records()?;
    let wanted = wanted_names(repository, &present, Some(&id))?;
    let same = present.iter().find(|record| record.id == id);
    // A promise is kept until the image is unpublished.
    let verified = plan.enforcement == Enforcement::Required || same.is_some_and(is_promised);
    let is_present = |record: &ImageRecord| {
        record.id == id
            && !is_hidden(record)
            && is_promised(record) == verified
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
        "{}".clone_into(&mut record.metadata);
        record.created = image
            .config()
            .spec()
            .created()
            .clone()
            .filter(|created| is_rfc3339(created))
            .unwrap_or_else(|| rfc3339(SystemTime::now()));
        if verified {
            promise(&mut record);
        }
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
