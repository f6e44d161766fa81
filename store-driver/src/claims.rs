//! What of the repository podman needs, and who of it: what a collection has to know.
//!
//! Every published layer has a ref on its EROFS image. Who claims a layer, a published image or somebody
//! in a store of podman's, claims these refs, and those of the layers below it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::PathBuf,
};

use containers_storage::{ImageId, LayerId, LayerRecord, LinkId};
use repository::{RefPath, Repository};

use crate::{
    error::Result,
    hidden::{is_hidden, without_containers},
    in_use::{Consumers, Stores, User},
    layout::Layout,
    mounted::{AllMounts, MountUse},
    paths::StorePaths,
    store::{layer_ref, link_of, open_existing, published_refs},
};

/// What podman needs.
#[derive(Debug, Clone, Default)]
pub struct Claims {
    /// Who needs what.
    pub claims: Vec<Claim>,
    /// Layers that no published image has and nobody uses.
    pub unused: Vec<LayerId>,
    /// Unpublished images whose records are there for containers, of which none is left.
    pub forgotten: Vec<ImageId>,
    /// The refs below `images/refs/` that nobody claims.
    pub unclaimed: Vec<RefPath>,
    /// What cannot be read, and why. Every layer that it may use is claimed by it.
    pub unreadable: Vec<(PathBuf, String)>,
}

/// Somebody who needs published layers.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Who.
    pub claimant: Claimant,
    /// The refs of the layers, below `images/refs/`.
    pub refs: Vec<RefPath>,
}

/// Who needs a layer.
#[derive(Debug, Clone)]
pub enum Claimant {
    /// A published image.
    Image {
        /// Its ID.
        id: String,
        /// The names under which podman lists it.
        names: Vec<String>,
        /// The layout of its top layer, if the layer is there.
        layout: Option<Layout>,
    },
    /// An unpublished image without containers whose record is still there.
    Unpublished {
        /// Its ID.
        id: String,
    },
    /// Somebody in a store of podman's.
    User(User),
}

/// What is to become of the record of an unpublished image whose last container is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeftRecords {
    /// [`crate::forget_unpublished`] is going to take it away.
    Go,
    /// It stays for now, and claims the image's layers.
    Stay,
}

/// The mounts that show images of a repository, in every mount namespace that can be seen. A mount of a
/// published layer is among podman's [`Claims`] instead.
pub fn mounted_images(repository: &Repository) -> Result<Vec<MountUse>> {
    let mut uses = AllMounts::read()?.uses(repository, &[]);
    uses.retain(|found| !found.images.is_empty());
    Ok(uses)
}

/// Finds out what podman needs. Writes nothing and takes no lock.
pub fn claims(repository: &Repository, stores: &Stores, left: LeftRecords) -> Result<Claims> {
    let paths = StorePaths::of(repository);
    let Some(own) = open_existing(&paths)? else {
        return Ok(Claims {
            unclaimed: published_refs(repository)?,
            ..Claims::default()
        });
    };
    let records = own.root().layer_records()?;
    let mut images = own.root().image_records()?;
    let parked = own.removed()?;
    let mut consumers = Consumers::read(&paths)?;
    consumers.add(stores);
    let mut asked: Vec<(LayerId, Option<LinkId>)> = Vec::new();
    for record in &records {
        asked.push((record.id.clone(), link_of(&paths, &record.id)?));
    }
    asked.extend(parked.iter().map(|layer| (layer.id.clone(), layer.link)));
    let users = consumers.users_of(repository, &asked);
    let mut forgotten = without_containers(&images, &users);
    let mut staying = Vec::new();
    if left == LeftRecords::Stay {
        staying = std::mem::take(&mut forgotten);
    }
    // Containers claim what they need themselves.
    images.retain(|record| !is_hidden(record) || staying.contains(&record.id));

    let parents = Parents::of(&records);
    let mut all = Claims {
        forgotten,
        ..Claims::default()
    };
    let mut needed: HashSet<LayerId> = HashSet::new();
    for image in &images {
        let Some(top) = &image.layer else { continue };
        let layers = parents.chain(top);
        let id = image.id.to_string();
        let claimant = if is_hidden(image) {
            Claimant::Unpublished { id }
        } else {
            Claimant::Image {
                id,
                names: image.names.clone(),
                layout: Layout::of(&paths, top).ok(),
            }
        };
        all.claims.push(Claim {
            claimant,
            refs: layers.iter().map(layer_ref).collect::<Result<_>>()?,
        });
        needed.extend(layers);
    }
    let mut by_user: BTreeMap<String, (User, HashSet<LayerId>)> = BTreeMap::new();
    for (layer, _) in &asked {
        for user in users.of(layer) {
            let (_, layers) = by_user
                .entry(user.to_string())
                .or_insert_with(|| (user.clone(), HashSet::new()));
            layers.extend(parents.chain(layer));
        }
    }
    for (user, layers) in by_user.into_values() {
        let mut refs: Vec<RefPath> = layers.iter().map(layer_ref).collect::<Result<_>>()?;
        refs.sort_unstable();
        if let User::Unreadable { path, why } = &user {
            all.unreadable.push((path.clone(), why.clone()));
        }
        needed.extend(layers);
        all.claims.push(Claim {
            claimant: Claimant::User(user),
            refs,
        });
    }

    let existing: HashSet<RefPath> = published_refs(repository)?.into_iter().collect();
    for claim in &mut all.claims {
        // What is missing here, `fsck` tells; podman has the image open, if at all.
        claim.refs.retain(|path| existing.contains(path));
    }
    let mut unused: Vec<LayerId> = asked.into_iter().map(|(layer, _)| layer).collect();
    unused.retain(|layer| !needed.contains(layer));
    all.unused = unused;
    let claimed: HashSet<RefPath> = needed.iter().map(layer_ref).collect::<Result<_>>()?;
    all.unclaimed = existing
        .into_iter()
        .filter(|path| !claimed.contains(path))
        .collect();
    all.unclaimed.sort_unstable();
    Ok(all)
}

/// The parent of each layer.
struct Parents<'a>(HashMap<&'a LayerId, Option<&'a LayerId>>);

impl<'a> Parents<'a> {
    fn of(records: &'a [LayerRecord]) -> Self {
        Self(
            records
                .iter()
                .map(|record| (&record.id, record.parent.as_ref()))
                .collect(),
        )
    }

    /// A layer and all it stands on, topmost first.
    fn chain(&self, top: &LayerId) -> Vec<LayerId> {
        let mut chain = Vec::new();
        let mut next = Some(top);
        while let Some(layer) = next
            && chain.len() <= self.0.len()
        {
            chain.push(layer.clone());
            next = self.0.get(layer).copied().flatten();
        }
        chain
    }
}
