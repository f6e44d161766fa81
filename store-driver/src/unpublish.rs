//! Taking an image away from podman, and the layers that nobody needs any more.
//!
//! In the order of "additional image stores", deleting: the image's record goes first, so that no new
//! container can be made of it; then, under the write lock of the layers, which keeps containers and
//! child layers from being created, podman's stores are searched for users and what is free is moved
//! away. Once more without the lock, and only then are files, mounts and refs removed. What is in use
//! stays, and goes with a later call.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use containers_storage::{ImageId, Interrupt, LayerId, LayerRecord, LinkId, own_store::OwnStore};
use repository::{Category, RefPath, Repository, failpoint};
use serde::Serialize;

use crate::{
    error::{Error, Result},
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
    /// The image, which podman does not list any more.
    pub image: ImageId,
    /// Layers that are gone.
    pub removed: Vec<LayerId>,
    /// Layers that no published image has and that are in use. A later call removes them.
    pub kept: Vec<KeptLayer>,
}

/// Stops showing an image to podman. `stores` are searched for users beside those seen before.
pub fn unpublish(
    repository: &Repository,
    image: &ImageId,
    stores: &Stores,
) -> Result<UnpublishReport> {
    let mut store = Store::open(repository)?;
    store.consumers.note(stores)?;
    let mut images = store.own.images()?;
    if images.remove(image).is_none() {
        return Err(Error::NotPublished {
            image: image.to_string(),
        });
    }
    images.commit()?;
    failpoint("unpublish-image-removed");
    let unused = sweep(repository, &mut store)?;
    Ok(UnpublishReport {
        image: image.clone(),
        removed: unused.removed,
        kept: unused.kept,
    })
}

/// Layers that no published image has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct UnusedLayers {
    /// Those that nobody uses, which go.
    pub removed: Vec<LayerId>,
    /// Those that are in use, which stay.
    pub kept: Vec<KeptLayer>,
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
    if open_existing(&StorePaths::of(repository))?.is_none() {
        return Ok(Some(UnusedLayers::default()));
    }
    let end = Instant::now() + patience;
    let sweep = || {
        let interrupt = Interrupt::when(move || Instant::now() >= end);
        let mut store = Store::open_unless(repository, interrupt)?;
        store.consumers.note(stores)?;
        sweep(repository, &mut store)
    };
    match sweep() {
        Err(Error::Storage(containers_storage::Error::Interrupted { .. })) => Ok(None),
        result => result.map(Some),
    }
}

/// The layers that published images need, and the records of all others.
fn split(own: &OwnStore) -> Result<(HashSet<LayerId>, Vec<LayerRecord>)> {
    let images = own.root().image_records()?.into_iter();
    let tops: HashSet<LayerId> = images.filter_map(|record| record.layer).collect();
    let mut records = own.root().layer_records()?;
    let needed = with_ancestors(&records, |id| tops.contains(id));
    records.retain(|record| !needed.contains(&record.id));
    Ok((needed, records))
}

/// The refs of published layers other than `layers`.
fn refs_of_others(repository: &Repository, layers: &HashSet<LayerId>) -> Result<Vec<RefPath>> {
    let keep: HashSet<RefPath> = layers.iter().map(layer_ref).collect::<Result<_>>()?;
    let mut refs = published_refs(repository)?;
    refs.retain(|path| !keep.contains(path));
    Ok(refs)
}

fn sweep(repository: &Repository, store: &mut Store) -> Result<UnusedLayers> {
    let (_, candidates) = split(&store.own)?;
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
        .filter(|id| !used.contains(id))
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
