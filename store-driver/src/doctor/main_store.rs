//! podman's own storage, as far as it builds on published layers. Read without its locks: each file is
//! replaced as a whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use containers_storage::{ImageRecord, LayerId, LayerRecord, StorageConf};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    Facts, StoreFacts,
    finding::{Finding, Kind, Remedy, Severity, shell},
    podman::FIRST_WITH_CHECK,
    stores::entries,
};
use crate::{
    names::{names_hidden_by, tag_command},
    podman_conf::{STORES_TABLE, stores_line},
};

/// The storage of root's podman.
#[derive(Clone, Debug, Default, Serialize)]
pub struct MainFacts {
    /// The graph root.
    pub graphroot: PathBuf,
    /// Files that cannot be read, and why.
    pub unreadable: Vec<String>,
    #[serde(skip)]
    pub(crate) layers: Vec<LayerRecord>,
    #[serde(skip)]
    pub(crate) images: Vec<ImageRecord>,
    /// The `lower` file of each layer's directory.
    #[serde(skip)]
    pub(crate) directories: BTreeMap<String, Option<String>>,
}

/// Reads what a configuration names.
pub(super) fn read(conf: &StorageConf) -> MainFacts {
    let mut facts = MainFacts {
        graphroot: conf.graphroot.clone(),
        ..MainFacts::default()
    };
    for root in [Some(&conf.graphroot), conf.imagestore.as_ref()]
        .into_iter()
        .flatten()
    {
        for file in ["layers.json", "volatile-layers.json"] {
            let records = records(
                &root.join("overlay-layers").join(file),
                &mut facts.unreadable,
            );
            facts.layers.extend(records);
        }
        let images = root.join("overlay-images/images.json");
        let images = records(&images, &mut facts.unreadable);
        facts.images.extend(images);
        for (name, path) in entries(&root.join("overlay")) {
            if let Some(name) = name.to_str().filter(|name| name.len() == 64) {
                let lower = fs::read_to_string(path.join("lower")).ok();
                facts.directories.insert(name.to_owned(), lower);
            }
        }
    }
    facts
}

fn records<T: DeserializeOwned>(path: &Path, unreadable: &mut Vec<String>) -> Vec<T> {
    let read = || -> io::Result<Vec<T>> {
        match fs::read(path) {
            Ok(text) => Ok(serde_json::from_slice(&text)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    };
    read().unwrap_or_else(|error| {
        unreadable.push(format!("{}: {error}", path.display()));
        Vec::new()
    })
}

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let (Some(main), Some(conf)) = (&facts.main, facts.root_conf()) else {
        return Vec::new();
    };
    let mut findings = Vec::new();
    let is_configured = |store: &StoreFacts| conf.additional_image_stores.contains(&store.path);
    let own: BTreeSet<&str> = main
        .layers
        .iter()
        .map(|record| record.id.as_str())
        .collect();
    let overlay = main.graphroot.join("overlay");
    let in_store = |layer: &str| {
        facts.stores.iter().find(|store| {
            store
                .layer_records
                .iter()
                .any(|record| record.id.as_str() == layer)
        })
    };
    let has_children_elsewhere = main.layers.iter().any(|record| {
        record
            .parent
            .as_ref()
            .is_some_and(|parent| !own.contains(parent.as_str()))
    });
    for record in &main.layers {
        let id = record.id.as_str();
        let mut add = |finding, severity, problem: String, why: &str, remedy| {
            findings.push(Finding {
                finding,
                severity,
                subject: overlay.join(id).display().to_string(),
                problem,
                why: why.into(),
                remedy,
            });
        };
        let has_directory = main.directories.contains_key(id);
        if record.flags.incomplete
            && !has_directory
            && let Some(store) = facts
                .stores
                .iter()
                .find(|store| is_configured(store) && store.directories.contains_key(id))
        {
            add(
                Kind::IncompleteLayer,
                Severity::Error,
                format!(
                    "podman began to make this layer, and the only directory of that name is in {}",
                    store.path.display()
                ),
                "podman wants to remove the layer, takes that directory for it, and fails with every command",
                Remedy::command(format!("mkdir {}", shell(overlay.join(id)))),
            );
        }
        let Some(parent) = record.parent.as_ref().map(LayerId::as_str) else {
            continue;
        };
        if own.contains(parent) {
            continue;
        }
        match in_store(parent) {
            None => add(
                Kind::LostParent,
                Severity::Error,
                format!("it is built on layer {parent}, which no store has"),
                "its image or container does not start",
                Remedy::advice(
                    "publish the image that it was built on again, or remove what was built with `podman rmi` \
                     or `podman rm`",
                ),
            ),
            Some(store) if !is_configured(store) => add(
                Kind::LostParent,
                Severity::Error,
                format!(
                    "it is built on layer {parent} of {}, which podman is not told of",
                    store.path.display()
                ),
                "its image or container does not start",
                Remedy::line(conf, STORES_TABLE, stores_line(conf, &store.path)),
            ),
            Some(store) => {
                let link = store.directories.get(parent).map(|it| it.link.as_str());
                let lower = main.directories.get(id).and_then(Option::as_ref);
                if let (true, Some(link), Some(lower)) = (store.ours.is_some(), link, lower)
                    && !main.directories.contains_key(parent)
                    && *lower != format!("l/{link}")
                {
                    add(
                        Kind::DanglingLower,
                        Severity::Error,
                        format!(
                            "it names its lower layers as {lower:?}, and they are \"l/{link}\" now"
                        ),
                        "its image or container does not start, or shows files of other layers",
                        Remedy::command(format!(
                            "printf %s l/{link} >{}",
                            shell(overlay.join(id).join("lower"))
                        )),
                    );
                }
            }
        }
    }
    same_things(facts, main, &mut findings);
    if has_children_elsewhere
        && facts
            .podman
            .as_ref()
            .is_some_and(|podman| podman.version >= FIRST_WITH_CHECK)
    {
        findings.push(Finding {
            finding: Kind::SystemCheck,
            severity: Severity::Note,
            subject: main.graphroot.display().to_string(),
            problem: "images or containers in it are built on layers of an additional image store"
                .into(),
            why: "`podman system check --repair` takes these layers for missing, and deletes them"
                .into(),
            remedy: Remedy::advice("do not run `podman system check --repair`"),
        });
    }
    for problem in &main.unreadable {
        findings.push(Finding {
            finding: Kind::StoreUnreadable,
            severity: Severity::Error,
            subject: main.graphroot.display().to_string(),
            problem: problem.clone(),
            why: "podman cannot read it either; no published layer can be removed while it may be in use"
                .into(),
            remedy: Remedy::advice("restore the file from a backup, or run `podman system reset`"),
        });
    }
    findings
}

/// Layers and names that more than one store has.
fn same_things(facts: &Facts, main: &MainFacts, findings: &mut Vec<Finding>) {
    let mut layers: BTreeMap<&str, &Path> = main
        .layers
        .iter()
        .map(|record| (record.id.as_str(), main.graphroot.as_path()))
        .collect();
    let mut names: BTreeMap<&str, (&str, &Path)> = BTreeMap::new();
    for image in &main.images {
        for name in &image.names {
            names.insert(name, (image.id.as_str(), &main.graphroot));
        }
    }
    for store in &facts.stores {
        let mut same = 0_usize;
        let mut first = None;
        for record in &store.layer_records {
            if let Some(other) = layers.get(record.id.as_str()) {
                same += 1;
                first = Some(*other);
            }
        }
        for record in &store.layer_records {
            layers.entry(record.id.as_str()).or_insert(&store.path);
        }
        if let Some(first) = first {
            findings.push(Finding {
                finding: Kind::SameLayer,
                severity: Severity::Note,
                subject: store.path.display().to_string(),
                problem: format!("{same} of its layers are in {}, too", first.display()),
                why: "podman uses those, so they take space twice, and what is built on them does not use ours"
                    .into(),
                remedy: Remedy::advice("remove the image there with `podman rmi`"),
            });
        }
        for image in &store.image_records {
            let hidden = names_hidden_by(&main.images, &image.id, &image.names);
            if !hidden.is_empty() {
                findings.push(Finding {
                    finding: Kind::HiddenName,
                    severity: Severity::Warning,
                    subject: store.path.display().to_string(),
                    problem: format!(
                        "{} has a copy of the image {} under other names than {}",
                        main.graphroot.display(),
                        image.id,
                        hidden.join(", ")
                    ),
                    why: "podman takes its own copy of an image for the only one, and does not find these names"
                        .into(),
                    remedy: Remedy::command(tag_command(
                        &image.id,
                        &hidden.iter().map(shell).collect::<Vec<_>>(),
                    )),
                });
            }
            for name in &image.names {
                let (other, owner) = *names
                    .entry(name)
                    .or_insert((image.id.as_str(), &store.path));
                if other != image.id.as_str() && owner != store.path {
                    findings.push(Finding {
                        finding: Kind::SameName,
                        severity: Severity::Warning,
                        subject: store.path.display().to_string(),
                        problem: format!("{name} is another image in {}", owner.display()),
                        why: "podman runs that one".into(),
                        remedy: Remedy::command(format!("podman untag {other} {}", shell(name))),
                    });
                }
            }
        }
    }
}
