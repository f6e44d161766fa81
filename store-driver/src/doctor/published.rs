//! Our store behind the view: mounts, and whether what is published is what the repository has.

use std::{collections::BTreeMap, fs, path::PathBuf};

use containers_storage::LayerId;
use repository::Repository;
use serde::Serialize;

use super::{
    Facts,
    finding::{Finding, Fix, Kind, Remedy, Severity, shell},
};
use crate::{
    Fault, Layout, check_published,
    error::Result,
    mount::MountTable,
    paths::StorePaths,
    store::{image_of, open_existing},
    view::{ViewMount, view_mount},
};

/// What is published, and mounted.
#[derive(Clone, Debug, Serialize)]
pub struct PublishedFacts {
    /// What is mounted on the view.
    pub view: ViewMount,
    /// The path by which the links in the store name the repository, if it is another one now.
    pub moved_from: Option<PathBuf>,
    /// How each layer that we mount is mounted.
    #[serde(skip)]
    pub(crate) mounts: BTreeMap<LayerId, LayerMount>,
    #[serde(skip)]
    pub(crate) faults: Vec<Fault>,
}

/// What is at the place of a layer's mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LayerMount {
    Right,
    Missing(PathBuf),
    Other(PathBuf),
}

/// How many layers are published in each layout.
pub(super) fn count(paths: &StorePaths) -> Result<(usize, usize)> {
    let (mut blob, mut mounted) = (0, 0);
    if let Some(own) = open_existing(paths)? {
        for record in own.root().layer_records()? {
            match Layout::of(paths, &record.id) {
                Ok(Layout::Blob) => blob += 1,
                Ok(Layout::Mounted) => mounted += 1,
                // Told as a fault.
                Err(_) => {}
            }
        }
    }
    Ok((blob, mounted))
}

/// Looks at what needs no lock of the store.
pub(super) fn look_at_mounts(repository: &Repository) -> Result<PublishedFacts> {
    let paths = StorePaths::of(repository);
    let was = fs::read_link(paths.store().join("repository")).ok();
    Ok(PublishedFacts {
        view: view_mount(&paths)?,
        moved_from: was.filter(|was| was != paths.repository()),
        mounts: BTreeMap::new(),
        faults: Vec::new(),
    })
}

/// Looks at everything published. Reads all images and the streams of all layers.
pub(super) fn look(repository: &Repository) -> Result<PublishedFacts> {
    let paths = StorePaths::of(repository);
    let mut facts = PublishedFacts {
        faults: check_published(repository, None)?,
        ..look_at_mounts(repository)?
    };
    let Some(own) = open_existing(&paths)? else {
        return Ok(facts);
    };
    let table = MountTable::read()?;
    for record in own.root().layer_records()? {
        if !matches!(Layout::of(&paths, &record.id), Ok(Layout::Mounted)) {
            continue;
        }
        let target = paths.layer_mount(&record.id);
        let source = image_of(repository, &record.id)?.map(|image| format!("composefs:{image}"));
        let found = match (table.top_at(&target), source) {
            (None, _) => LayerMount::Missing(target),
            (Some(mount), Some(source))
                if mount.filesystem == "overlay" && mount.source == source.as_bytes() =>
            {
                LayerMount::Right
            }
            (Some(_), _) => LayerMount::Other(target),
        };
        facts.mounts.insert(record.id, found);
    }
    Ok(facts)
}

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let repository = &facts.repository;
    let published = match &facts.published {
        Ok(published) => published,
        Err(problem) => {
            return vec![Finding {
                finding: Kind::StoreUnreadable,
                severity: Severity::Error,
                subject: repository.store.display().to_string(),
                problem: problem.clone(),
                why: "what is published cannot be told, and podman may refuse the whole store"
                    .into(),
                remedy: Remedy::advice(
                    "restore what is damaged, or take the store out of additionalimagestores, remove the \
                     directory and publish again; what was built on its layers is lost",
                ),
            }];
        }
    };
    let us = format!("composefs-store --repo {}", shell(&repository.path));
    let serve = || Remedy::Command {
        command: format!("{us} serve-mounts"),
        fix: Some(Fix::ServeMounts),
    };
    let layers = repository.blob_layers + repository.mounted_layers;
    let mut findings = Vec::new();
    let mut add = |finding, severity, subject: String, problem: String, why: &str, remedy| {
        findings.push(Finding {
            finding,
            severity,
            subject,
            problem,
            why: why.into(),
            remedy,
        });
    };
    let view = repository.view.display().to_string();
    match &published.view {
        ViewMount::None if layers > 0 => add(
            Kind::ViewNotMounted,
            Severity::Error,
            view,
            "the read-only view of the store is not mounted".into(),
            "podman sees a store without images there, or none at all",
            serve(),
        ),
        ViewMount::Ours | ViewMount::None => {}
        ViewMount::Other(found) => add(
            Kind::ForeignMount,
            Severity::Error,
            view.clone(),
            format!("something else is mounted there: {found}"),
            "podman does not see what is published, or may delete from it",
            Remedy::command(format!("umount {} && {us} serve-mounts", shell(&view))),
        ),
    }
    if let Some(was) = &published.moved_from
        && layers > 0
    {
        add(
            Kind::StoreMoved,
            Severity::Error,
            repository.path.display().to_string(),
            format!("it was published as {}", was.display()),
            "the links in the store lead there, so no container starts",
            Remedy::command(format!(
                "mkdir -p {0} && mount --bind {1} {0}",
                shell(was),
                shell(&repository.path)
            )),
        );
    }
    let mut missing = 0_usize;
    for mount in published.mounts.values() {
        match mount {
            LayerMount::Right => {}
            LayerMount::Missing(_) => missing += 1,
            LayerMount::Other(path) => add(
                Kind::ForeignMount,
                Severity::Error,
                path.display().to_string(),
                "something other than the layer is mounted there".into(),
                "containers on the layer get that in its place",
                Remedy::command(format!("umount {} && {us} serve-mounts", shell(path))),
            ),
        }
    }
    if missing > 0 {
        add(
            Kind::LayerNotMounted,
            Severity::Error,
            repository.path.display().to_string(),
            format!("{missing} of the layers published in the layout mounted are not mounted"),
            "containers of their images do not start",
            serve(),
        );
    }
    for fault in &published.faults {
        add(
            Kind::LayerDamaged,
            Severity::Error,
            fault.path.display().to_string(),
            fault.problem.clone(),
            "containers of its images do not start, or show something else",
            Remedy::Command {
                command: format!("{us} fsck --repair"),
                fix: Some(Fix::Images),
            },
        );
    }
    findings
}
