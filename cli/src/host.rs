//! The host as a collection sees it: what its podmans, and whoever else is asked, need of a repository.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use containers_storage::{Environment, ImageId, LayerId, StorageConf};
use gc::boot::{Orphans, Sources};
use gc::{
    Doubt, GivenUp, Known, Need, Owner, OwnerKind, Problem, PublishedKind, RefId, RemoveReason,
    Retention, Root, Unpublished,
};
use repository::oci::ManifestDigest;
use repository::{Category, RefPath, Repository};
use store_driver::{Claim, Claimant, LeftRecords, StorePaths, Stores, User};

use crate::args::HostArgs;
use crate::commands::publish::podman_conf;
use crate::progress::short;

/// Where to look.
pub(crate) struct Host {
    stores: Stores,
    sysroot: Option<PathBuf>,
    boot: Vec<PathBuf>,
    orphans: Orphans,
    retention: Option<Retention>,
    /// Whether podman's reading kept layers from being removed.
    podman_reads: bool,
    /// Unpublished images whose records are gone.
    forgotten: Vec<ImageId>,
    /// What becomes of those that are left.
    left: LeftRecords,
}

/// How long podman may read from the store of published images while everybody waits for a collection.
const PATIENCE: Duration = Duration::from_secs(2);

impl Host {
    pub(crate) fn new(args: &HostArgs, orphans: Orphans) -> anyhow::Result<Self> {
        Ok(Self {
            stores: stores(args)?,
            sysroot: args.sysroot.clone(),
            boot: args.boot.clone(),
            orphans,
            retention: None,
            podman_reads: false,
            forgotten: Vec::new(),
            left: LeftRecords::Go,
        })
    }

    /// Gives up tags by their number and age.
    pub(crate) fn retain(&mut self, retention: Retention) {
        self.retention = Some(retention);
    }

    fn expired_tags(&self, repository: &Repository) -> Known {
        let Some(retention) = &self.retention else {
            return Known::default();
        };
        match retention.given_up(repository) {
            Ok(given_up) => Known {
                given_up,
                ..Known::default()
            },
            Err(error) => unreadable(repository.path().join("streams/refs"), &error),
        }
    }

    /// Where boot entries and deployments are, if there is a host around the repository.
    fn sources(&self, repository: &Repository) -> Option<Sources> {
        let mut sources = match &self.sysroot {
            Some(sysroot) => Sources::at(sysroot),
            None => Sources::of(repository)?,
        };
        sources.boot.extend_from_slice(&self.boot);
        Some(sources)
    }

    /// What boots from the repository.
    fn deployments(&self, repository: &Repository) -> Known {
        match self.sources(repository) {
            Some(sources) => gc::boot::look(repository, &sources, self.orphans),
            None => Known::default(),
        }
    }

    /// Boot entries, those of one image perhaps, that cannot be resolved: the file, and what is wrong.
    pub(crate) fn unresolved(
        &self,
        repository: &Repository,
        image: Option<&ManifestDigest>,
    ) -> anyhow::Result<Vec<(PathBuf, String)>> {
        let Some(sources) = self.sources(repository) else {
            return Ok(Vec::new());
        };
        let state = gc::boot::find(&sources);
        let problems = match image {
            Some(image) => gc::boot::check_image(repository, &state, image)?,
            None => gc::boot::check(repository, &state)?,
        };
        Ok(problems
            .into_iter()
            .map(|problem| (problem.path, problem.fault.to_string()))
            .collect())
    }
}

/// What is mounted.
fn mounts(repository: &Repository) -> Known {
    let root = |found: store_driver::MountUse| Root {
        owner: Owner {
            kind: OwnerKind::Mount,
            name: found.target.display().to_string(),
        },
        reason: format!("process {} sees it", found.pid),
        needs: found.images.into_iter().map(Need::Object).collect(),
    };
    match store_driver::mounted_images(repository) {
        Ok(found) => Known {
            roots: found.into_iter().map(root).collect(),
            ..Known::default()
        },
        Err(error) => unreadable("/proc".into(), &error),
    }
}

/// Somebody may need anything.
fn unreadable(path: PathBuf, error: &dyn std::error::Error) -> Known {
    Known {
        problems: vec![Problem::Source {
            path,
            error: error.to_string(),
            doubt: Doubt::Everything,
        }],
        ..Known::default()
    }
}

/// podman's stores: the one that is configured, those that are named, and those of users.
pub(crate) fn stores(args: &HostArgs) -> anyhow::Result<Stores> {
    let mut stores = Stores::from(podman_conf(args.storage_conf.as_deref())?);
    let environment = Environment::current();
    let named = args.podman_root.iter();
    let named = named.map(|root| StorageConf::for_root(root, &environment));
    stores.configured.extend(named);
    stores.found = StorageConf::of_users();
    Ok(stores)
}

impl gc::Host for Host {
    fn known(&mut self, repository: &Repository) -> Known {
        let mut known = self.deployments(repository);
        let mut podman = podman(repository, &self.stores, self.left);
        if self.podman_reads {
            keep_unused(repository, &mut podman);
        }
        known.extend(podman);
        known.extend(mounts(repository));
        known.extend(self.expired_tags(repository));
        known
    }

    fn withdraw(
        &mut self,
        repository: &Repository,
        unpublished: &[Unpublished],
    ) -> Result<(), gc::HostError> {
        if unpublished.iter().any(Unpublished::is_image_record) {
            let forgotten = store_driver::forget_unpublished(repository, &self.stores)?;
            self.forgotten = forgotten.unwrap_or_default();
        }
        self.left = LeftRecords::Stay;
        Ok(())
    }

    fn remove_published(
        &mut self,
        repository: &Repository,
        _: &[Unpublished],
    ) -> Result<Vec<Unpublished>, gc::HostError> {
        let done = store_driver::remove_unused_layers(repository, &self.stores, PATIENCE)?;
        self.podman_reads = done.is_none();
        Ok(unpublished(
            &self.forgotten,
            &done.unwrap_or_default().removed,
        ))
    }
}

/// What podman needs.
fn podman(repository: &Repository, stores: &Stores, left: LeftRecords) -> Known {
    let claims = match store_driver::claims(repository, stores, left) {
        Ok(claims) => claims,
        Err(error) => return unreadable(StorePaths::of(repository).store(), &error),
    };
    let image_ref = |path: RefPath| RefId {
        category: Category::Images,
        path,
    };
    let root = |claim: Claim| {
        let (kind, name, reason) = describe(claim.claimant);
        Root {
            owner: Owner { kind, name },
            reason,
            needs: claim
                .refs
                .into_iter()
                .map(|path| Need::Ref(image_ref(path)))
                .collect(),
        }
    };
    let given_up = |path| GivenUp {
        id: image_ref(path),
        reason: RemoveReason::Unpublished,
    };
    let problem = |(path, error)| Problem::Source {
        path,
        error,
        doubt: Doubt::Kept,
    };
    Known {
        roots: claims.claims.into_iter().map(root).collect(),
        problems: claims.unreadable.into_iter().map(problem).collect(),
        given_up: claims.unclaimed.into_iter().map(given_up).collect(),
        unpublished: unpublished(&claims.forgotten, &claims.unused),
        ..Known::default()
    }
}

/// What goes from the store of published images, as a plan names it.
fn unpublished(images: &[ImageId], layers: &[LayerId]) -> Vec<Unpublished> {
    let item = |kind, id: &dyn fmt::Display, reason| Unpublished {
        kind,
        id: id.to_string(),
        reason,
    };
    let image = |id| item(PublishedKind::ImageRecord, id, RemoveReason::NoContainers);
    let layer = |id| item(PublishedKind::Layer, id, RemoveReason::Unpublished);
    let images = images.iter().map(|id| image(id));
    images.chain(layers.iter().map(|id| layer(id))).collect()
}

/// Keeps published layers that nobody uses, for a later collection.
fn keep_unused(repository: &Repository, known: &mut Known) {
    known.unpublished.clear();
    let needs = known.given_up.drain(..).map(|item| Need::Ref(item.id));
    known.roots.push(Root {
        owner: Owner {
            kind: OwnerKind::Podman,
            name: StorePaths::of(repository).store().display().to_string(),
        },
        reason: "podman reads from it: layers that nobody uses go with a later gc".into(),
        needs: needs.collect(),
    });
}

fn describe(claimant: Claimant) -> (OwnerKind, String, String) {
    match claimant {
        Claimant::Image { id, names, layout } => {
            let name = if names.is_empty() {
                short(&id).to_owned()
            } else {
                names.join(", ")
            };
            let reason = match layout {
                Some(layout) => format!("shown to podman in the {layout} layout"),
                None => "shown to podman".into(),
            };
            (OwnerKind::Published, name, reason)
        }
        Claimant::Unpublished { id } => (
            OwnerKind::Podman,
            format!("image {}", short(&id)),
            "is unpublished, and its record goes with a later gc".into(),
        ),
        Claimant::User(user) => {
            let (name, reason) = match &user {
                User::Layer { store, layer } => (
                    format!("layer {} in {}", short(layer), store.display()),
                    "built on a published layer",
                ),
                User::Container { store, container } => (
                    format!("container {} in {}", short(container), store.display()),
                    "made from a published layer",
                ),
                User::Image { store, image } => (
                    format!("image {} in {}", short(image), store.display()),
                    "has a published layer as its top layer",
                ),
                User::Mounted { runroot } => (
                    runroot.display().to_string(),
                    "has a published layer mounted",
                ),
                User::Mount { target, pid } => (
                    format!("mount {} of process {pid}", target.display()),
                    "shows a published layer",
                ),
                User::Unreadable { path, .. } => (
                    path.display().to_string(),
                    "cannot be read, and may need a published layer",
                ),
            };
            (OwnerKind::Podman, name, reason.to_owned())
        }
    }
}
