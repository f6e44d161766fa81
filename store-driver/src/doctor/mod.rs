//! Whether this host can use what is published, and if not, why not.
//!
//! [`examine`] observes: kernel, filesystem, podman, configurations, stores, mounts, units. [`diagnose`] is
//! a function from what was observed to findings, each with what is wrong, what comes of it, and the one
//! command or line that mends it. Every subject is a module with both halves. Nothing is changed but by
//! [`fix`], and by that only what is ours. `docs/doctor.md` has the list of findings, and which known hazard
//! shows in which.
//!
//! Observing writes nothing that lasts: files without a name on the repository's filesystem, and mounts
//! that nobody sees. podman itself is asked what it makes of its configuration, and makes its own
//! directories as with any other command.

mod conf;
mod filesystem;
mod finding;
mod kernel;
mod main_store;
mod podman;
mod published;
mod selinux;
mod stores;
#[cfg(test)]
mod tests;
mod units;

use std::{
    collections::BTreeSet,
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::PathBuf,
};

use containers_storage::{ConfRules, Environment, StorageConf};
use repository::Repository;
use serde::{Serialize, Serializer};

pub use conf::ConfFacts;
pub use filesystem::FilesystemFacts;
pub use finding::{Finding, Fix, Kind, Remedy, Severity};
pub use kernel::KernelFacts;
pub use main_store::MainFacts;
pub use podman::{Info, PodmanFacts, Version};
pub use published::PublishedFacts;
pub use selinux::{Mode, SelinuxFacts};
pub use stores::StoreFacts;
pub use units::UnitFacts;

use crate::{
    check::mend_published,
    error::{Error, Result},
    paths::StorePaths,
    serve::serve_mounts,
    view::ViewMount,
};

/// The repository, as far as podman is concerned.
#[derive(Clone, Debug, Serialize)]
pub struct RepositoryFacts {
    /// Its directory.
    pub path: PathBuf,
    /// The path for `additionalimagestores`.
    pub view: PathBuf,
    /// The directory behind the view, which podman must not see.
    pub store: PathBuf,
    /// The directory of objects.
    pub objects: PathBuf,
    /// Every object has fs-verity.
    pub secure: bool,
    /// How many layers are published in the layout blob.
    pub blob_layers: usize,
    /// How many layers are published in the layout mounted.
    pub mounted_layers: usize,
}

/// What was observed.
#[derive(Clone, Debug, Serialize)]
pub struct Facts {
    /// The repository.
    pub repository: RepositoryFacts,
    /// The kernel; `None` if only root could have tried.
    pub kernel: Option<KernelFacts>,
    /// The filesystem of the repository; `None` if it cannot be looked at.
    pub filesystem: Option<FilesystemFacts>,
    /// podman; `None` if there is none.
    pub podman: Option<PodmanFacts>,
    /// The configurations, root's first.
    pub confs: Vec<ConfFacts>,
    /// The stores that root's configuration names, and the view.
    pub stores: Vec<StoreFacts>,
    /// What is published, or why that cannot be told.
    #[serde(serialize_with = "value_or_error")]
    pub published: Result<PublishedFacts, String>,
    /// The storage of root's podman, if its configuration can be read.
    pub main: Option<MainFacts>,
    /// Units.
    pub units: UnitFacts,
    /// SELinux.
    pub selinux: SelinuxFacts,
}

impl Facts {
    /// Root's configuration, if it can be read.
    fn root_conf(&self) -> Option<&StorageConf> {
        let root = self.confs.iter().find(|user| user.uid == 0)?;
        root.conf.as_ref().ok()
    }

    /// Whether images are published that must be verified.
    fn is_verification_wanted(&self) -> bool {
        self.stores.iter().any(|store| store.verified_images > 0)
    }
}

/// Whose configurations to look at.
#[derive(Clone, Debug)]
pub struct Examination {
    /// The environment of root's podman.
    pub environment: Environment,
    /// Further users, and their environments.
    pub users: Vec<(String, Environment)>,
}

/// Looks at the host. What needs root is not tried without, and who keeps a lock is not waited for.
pub fn examine(repository: &Repository, examination: &Examination) -> Facts {
    let paths = StorePaths::of(repository);
    let is_locked = !stores::locked(&paths.store()).is_empty();
    let (blob_layers, mounted_layers) = if is_locked {
        (0, 0)
    } else {
        published::count(&paths).unwrap_or_default()
    };
    let podman = podman::version();
    let rules = podman.map(|(_, rules)| rules);
    let environment = &examination.environment;
    let mut confs = vec![conf::read("root", environment, rules)];
    for (name, environment) in &examination.users {
        confs.push(conf::read(name, environment, rules));
    }
    let is_root = Environment::current().is_root();
    let mut facts = Facts {
        repository: RepositoryFacts {
            path: paths.repository().to_owned(),
            view: paths.view(),
            store: paths.store(),
            objects: paths.objects(),
            secure: repository.is_secure(),
            blob_layers,
            mounted_layers,
        },
        kernel: is_root.then(|| kernel::probe(paths.repository())),
        filesystem: None,
        podman: None,
        confs,
        stores: Vec::new(),
        published: if is_locked {
            published::look_at_mounts(repository)
        } else {
            published::look(repository)
        }
        .map_err(|error| error.to_string()),
        main: None,
        units: units::look("/".as_ref()),
        selinux: selinux::look(&[paths.view(), paths.objects()]),
    };
    let root_conf = facts.root_conf().cloned();
    let graphroot = root_conf.as_ref().map(|conf| conf.graphroot.as_path());
    facts.filesystem = filesystem::probe(&paths, graphroot).ok();
    let mut named = root_conf
        .as_ref()
        .map_or_else(Vec::new, |conf| conf.additional_image_stores.clone());
    if matches!(&facts.published, Ok(published) if published.view == ViewMount::Ours) {
        named.push(paths.view());
    }
    // The same directory by two names is one store.
    let mut seen = BTreeSet::new();
    named.retain(|path| match path.metadata() {
        Ok(metadata) => seen.insert((metadata.dev(), metadata.ino())),
        Err(_) => true,
    });
    facts.stores = named
        .iter()
        .map(|path| {
            let is_ours = [paths.view(), paths.store()].contains(path);
            stores::look(path, is_ours.then(|| paths.store()).as_deref())
        })
        .collect();
    let may_wait = is_locked || facts.stores.iter().any(|store| !store.locked.is_empty());
    facts.podman = podman.map(|(version, rules)| {
        let info = (is_root && !may_wait).then(|| podman::info(environment));
        let (info, failure) = match info {
            Some(Ok(info)) => (Some(info), None),
            Some(Err(failure)) => (None, Some(failure)),
            None => (None, None),
        };
        PodmanFacts {
            version,
            storage: version.storage().map(|minor| format!("1.{minor}")),
            rules,
            info,
            failure,
        }
    });
    facts.main = root_conf.as_ref().map(main_store::read);
    facts
}

/// What is wrong, the worst first.
pub fn diagnose(facts: &Facts) -> Vec<Finding> {
    let checks = [
        kernel::check,
        filesystem::check,
        podman::check,
        conf::check,
        stores::check,
        published::check,
        main_store::check,
        units::check,
        selinux::check,
    ];
    let mut findings: Vec<Finding> = checks.iter().flat_map(|check| check(facts)).collect();
    findings.sort_by_key(|finding| finding.severity);
    findings
}

/// Mends what findings say about files of ours, and nothing else. Returns what was done; what that changed,
/// another [`examine`] tells.
pub fn fix(repository: &Repository, findings: &[Finding]) -> Result<Vec<Fix>> {
    let mut fixes: Vec<Fix> = findings
        .iter()
        .filter_map(|finding| match &finding.remedy {
            Remedy::Command { fix, .. } => *fix,
            _ => None,
        })
        .collect();
    fixes.sort_unstable();
    fixes.dedup();
    for fix in &fixes {
        match fix {
            Fix::ObjectsMode => {
                let objects = StorePaths::of(repository).objects();
                let change = || {
                    chown(&objects, Some(0), Some(0))?;
                    fs::set_permissions(&objects, Permissions::from_mode(0o555))
                };
                change().map_err(Error::io("set owner and mode of", &objects))?;
            }
            Fix::ServeMounts => {
                serve_mounts(repository)?;
            }
            Fix::Images => {
                mend_published(repository)?;
            }
        }
    }
    Ok(fixes)
}

/// The rules by which the podman that is installed finds its configuration; without one, the newest.
pub fn podman_rules() -> ConfRules {
    podman::version().map_or(ConfRules::DropIns, |(_, rules)| rules)
}

/// What was read, or `{"error": …}`.
fn value_or_error<T: Serialize, S: Serializer>(
    value: &Result<T, String>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Failure<'a> {
        error: &'a str,
    }
    match value {
        Ok(value) => value.serialize(serializer),
        Err(error) => Failure { error }.serialize(serializer),
    }
}
