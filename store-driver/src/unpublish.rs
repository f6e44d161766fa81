//! Taking an image away from podman, and the layers that nobody needs any more.
//!
//! In the order of "additional image stores", deleting: first the image loses its names, so that no new
//! container is made of it. An engine that is running may have looked it up and not yet made its container,
//! and nothing in any store says so: we wait until the engines that run have ended, or for [`PATIENCE`]. If
//! it has containers by then, its record stays for them ([`hide`]). Else the record goes, and after
//! another wait, for those that are listing it, what belongs to it. Then, under the write lock of the
//! layers, which keeps containers and child layers from being created, podman's stores are searched for
//! users and what is free is moved away. Once more without the lock, and only then are files, mounts and
//! refs removed. What is in use stays, and goes with a later call.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use containers_storage::{
    ImageId, ImageRecord, Interrupt, LayerId, LayerRecord, LinkId, own_store::OwnStore,
};
use repository::{Category, RefPath, Repository, failpoint};
use serde::Serialize;

use crate::{
    engines::Engines,
    error::{Error, Result},
    hidden::{hide, is_hidden, without_containers},
    in_use::{Stores, User},
    paths::StorePaths,
    serve::LayerMounts,
    store::{Store, layer_ref, link_of, open_existing, published_refs, with_ancestors},
};

/// A layer that stays although no published image has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeptLayer {
    /// The layer.
    pub layer: LayerId,
    /// Who uses it; empty if only a layer above it is used.
    pub users: Vec<User>,
}

/// What [`unpublish`] did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UnpublishReport {
    /// The image, which podman does not find by any name any more.
    pub image: ImageId,
    /// Layers that are gone.
    pub removed: Vec<LayerId>,
    /// Layers that no published image has and that are in use. A later call removes them.
    pub kept: Vec<KeptLayer>,
}

/// What becomes of an image that something is built on, or runs from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhileInUse {
    /// Nothing: [`Error::InUse`].
    Refuse,
    /// It has no names any more; [`remove_unused_layers`] removes its layers when nobody uses them.
    Hide,
}

/// How long engines that run may take to do what they looked an image up for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Stops showing an image to podman. `stores` are searched for users beside those seen before.
pub fn unpublish(
    repository: &Repository,
    image: &ImageId,
    in_use: WhileInUse,
    stores: &Stores,
) -> Result<UnpublishReport> {
    let mut store = Store::open(repository)?;
    store.consumers.note(stores)?;
    if in_use == WhileInUse::Refuse {
        let users = users_of_image(repository, &store, image)?;
        if !users.is_empty() {
            return Err(Error::InUse {
                image: image.clone(),
                users,
            });
        }
    }
    let mut images = store.own.images()?;
    match images.get_mut(image) {
        Some(record) if !is_hidden(record) => hide(record),
        _ => {
            return Err(Error::NotPublished {
                image: image.to_string(),
            });
        }
    }
    images.commit()?;
    failpoint("unpublish-image-hidden");
    wait_for_engines()?;
    forget_hidden(repository, &mut store)?;
    let unused = sweep(repository, &mut store)?;
    Ok(UnpublishReport {
        image: image.clone(),
        removed: unused.removed,
        kept: unused.kept,
    })
}

/// Gives engines that run the time to do what they looked an image up for.
fn wait_for_engines() -> Result<()> {
    let running = Engines::running()?.wait(PATIENCE)?;
    if running > 0 {
        tracing::info!("{running} engines go on running; they are not waited for any longer");
    }
    Ok(())
}

/// Takes the records of hidden images away that have no containers. Returns their IDs.
fn forget_hidden(repository: &Repository, store: &mut Store) -> Result<Vec<ImageId>> {
    let mut hidden = store.own.root().image_records()?;
    hidden.retain(is_hidden);
    if hidden.is_empty() {
        return Ok(Vec::new());
    }
    let mut asked = Vec::new();
    for layer in hidden.iter().filter_map(|record| record.layer.as_ref()) {
        asked.push((layer.clone(), link_of(&store.paths, layer)?));
    }
    let users = store.consumers.users_of(repository, &asked);
    let forgotten = without_containers(&hidden, &users);
    if forgotten.is_empty() {
        return Ok(forgotten);
    }
    let mut images = store.own.images()?;
    for image in &forgotten {
        images.remove(image);
    }
    // An engine that has read the list reads the images one by one after it.
    images.commit_unmarked()?;
    failpoint("unpublish-image-dropped");
    wait_for_engines()?;
    store.own.images()?.commit()?;
    failpoint("unpublish-image-removed");
    Ok(forgotten)
}

/// The layers that images have, of all that there are.
fn layers_of(images: &[&ImageRecord], layers: &[LayerRecord]) -> HashSet<LayerId> {
    with_ancestors(layers, |id| {
        images.iter().any(|image| image.layer.as_ref() == Some(id))
    })
}

/// Who uses the layers that an image has and no other published image.
fn users_of_image(repository: &Repository, store: &Store, image: &ImageId) -> Result<Vec<User>> {
    let records = store.own.root().image_records()?;
    let (own, mut others): (Vec<_>, Vec<_>) =
        records.iter().partition(|record| record.id == *image);
    others.retain(|record| !is_hidden(record));
    let layers = store.own.root().layer_records()?;
    let needed = layers_of(&others, &layers);
    let mut asked = Vec::new();
    for layer in layers_of(&own, &layers) {
        if !needed.contains(&layer) {
            let link = link_of(&store.paths, &layer)?;
            asked.push((layer, link));
        }
    }
    let users = store.consumers.users_of(repository, &asked);
    let mut found: Vec<User> = asked
        .iter()
        .flat_map(|(layer, _)| users.of(layer).iter().cloned())
        .collect();
    found.sort_by_cached_key(ToString::to_string);
    found.dedup();
    Ok(found)
}

/// Layers that no published image has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct UnusedLayers {
    /// Those that nobody uses, which are gone.
    pub removed: Vec<LayerId>,
    /// Those that are in use, which stay.
    pub kept: Vec<KeptLayer>,
}

/// Takes the records of unpublished images away whose last container is gone, and returns their IDs. Without a
/// store it makes none.
///
/// It waits for engines that may have the images in a list, so nobody should have to wait for it. `None` says
/// that podman has been reading the store for too long, and that records may be left.
pub fn forget_unpublished(
    repository: &Repository,
    stores: &Stores,
) -> Result<Option<Vec<ImageId>>> {
    // For the engines, and as much for podman's locks.
    within(2 * PATIENCE, repository, stores, forget_hidden)
}

/// Removes the layers that no published image has and nobody uses: what an earlier [`unpublish`] had to
/// keep, and what a crash while publishing left behind. Without a store it makes none.
///
/// For callers that others wait for: `None` says that podman has been reading the store for longer than
/// `patience`, and that layers may be left.
pub fn remove_unused_layers(
    repository: &Repository,
    stores: &Stores,
    patience: Duration,
) -> Result<Option<UnusedLayers>> {
    within(patience, repository, stores, sweep)
}

/// Does something with the store, if there is one; `None` if podman's locks are waited for longer than `patience`.
/// `stores` are searched for users beside those seen before.
fn within<T: Default>(
    patience: Duration,
    repository: &Repository,
    stores: &Stores,
    act: impl FnOnce(&Repository, &mut Store) -> Result<T>,
) -> Result<Option<T>> {
    if open_existing(&StorePaths::of(repository))?.is_none() {
        return Ok(Some(T::default()));
    }
    let end = Instant::now() + patience;
    let interrupt = Interrupt::when(move || Instant::now() >= end);
    let done = Store::open_unless(repository, interrupt).and_then(|mut store| {
        store.consumers.note(stores)?;
        act(repository, &mut store)
    });
    match done {
        Err(Error::Storage(containers_storage::Error::Interrupted { .. })) => Ok(None),
        result => result.map(Some),
    }
}

/// The records of layers that no published image needs, and those of them that hidden images need.
fn candidates(own: &OwnStore) -> Result<(Vec<LayerRecord>, HashSet<LayerId>)> {
    let images = own.root().image_records()?;
    let (hidden, published): (Vec<_>, Vec<_>) = images.iter().partition(|image| is_hidden(image));
    let mut records = own.root().layer_records()?;
    let needed = layers_of(&published, &records);
    let hidden = layers_of(&hidden, &records);
    records.retain(|record| !needed.contains(&record.id));
    Ok((records, hidden))
}

/// The refs of published layers other than `layers`.
fn refs_of_others(repository: &Repository, layers: &HashSet<LayerId>) -> Result<Vec<RefPath>> {
    let keep: HashSet<RefPath> = layers.iter().map(layer_ref).collect::<Result<_>>()?;
    let mut refs = published_refs(repository)?;
    refs.retain(|path| !keep.contains(path));
    Ok(refs)
}

fn sweep(repository: &Repository, store: &mut Store) -> Result<UnusedLayers> {
    let (candidates, hidden) = candidates(&store.own)?;
    if candidates.is_empty() {
        clear_up(repository, store)?;
        return Ok(UnusedLayers::default());
    }
    let asked: Vec<(LayerId, Option<LinkId>)> = candidates
        .iter()
        .map(|record| Ok((record.id.clone(), link_of(&store.paths, &record.id)?)))
        .collect::<Result<_>>()?;

    let mut transaction = store.own.layers()?;
    let users = store.consumers.users_of(repository, &asked);
    let used = with_ancestors(&candidates, |id| !users.of(id).is_empty());
    let free: Vec<LayerId> = candidates
        .iter()
        .map(|record| record.id.clone())
        .filter(|id| !used.contains(id) && !hidden.contains(id))
        .collect();
    for layer in &free {
        transaction.remove(layer);
    }
    if free.is_empty() {
        drop(transaction);
    } else {
        transaction.commit()?;
    }
    failpoint("unpublish-layers-removed");

    // Looks for users a second time before anything is lost.
    store.settle_removed(repository)?;
    let present = clear_up(repository, store)?;
    let removed = free
        .into_iter()
        .filter(|layer| !present.contains(layer))
        .collect();
    let kept = candidates
        .into_iter()
        .filter(|record| present.contains(&record.id))
        .map(|record| KeptLayer {
            users: users.of(&record.id).to_vec(),
            layer: record.id,
        })
        .collect();
    Ok(UnusedLayers { removed, kept })
}

/// Takes mounts and refs away that no layer of the store has. Returns the layers there are.
fn clear_up(repository: &Repository, store: &Store) -> Result<HashSet<LayerId>> {
    let records = store.own.root().layer_records()?;
    let mut layers: HashSet<LayerId> = records.into_iter().map(|record| record.id).collect();
    let present = layers.clone();
    // Those that wait to be restored are still somebody's.
    layers.extend(store.own.removed()?.into_iter().map(|layer| layer.id));
    LayerMounts::new(repository, &store.paths)?.remove_others(&layers)?;
    failpoint("unpublish-unmounted");
    for path in refs_of_others(repository, &layers)? {
        failpoint("unpublish-ref");
        repository.remove_ref(Category::Images, &path)?;
    }
    Ok(present)
}
