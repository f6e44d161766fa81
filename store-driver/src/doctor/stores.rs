//! The additional image stores that podman is told of: whether it can open them, and whether each record
//! has what belongs to it ("additional image stores", what must exist).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use containers_storage::{ImageRecord, LayerRecord, RootKind, StoreRoot};
use serde::Serialize;

use super::{
    Facts,
    finding::{Finding, Fix, Kind, Remedy, Severity, shell},
};
use crate::{
    podman_conf::{STORES_TABLE, stores_line_without},
    verify::is_promised,
};

/// A store that podman reads.
#[derive(Clone, Debug, Default, Serialize)]
pub struct StoreFacts {
    /// Its directory, as storage.conf names it.
    pub path: PathBuf,
    /// Where it can be written to, if it is ours.
    pub ours: Option<PathBuf>,
    /// It is a directory.
    pub exists: bool,
    /// The lock files that are missing.
    pub missing_locks: Vec<PathBuf>,
    /// Why its records cannot be read.
    pub unreadable: Vec<String>,
    /// Lock files whose write lock somebody keeps, and the process, if the kernel names one.
    pub locked: BTreeMap<PathBuf, Option<u32>>,
    /// How many images it has.
    pub images: usize,
    /// How many layers it has.
    pub layers: usize,
    /// How many of its images are to be verified or not to run at all.
    pub verified_images: usize,
    #[serde(skip)]
    pub(crate) image_records: Vec<ImageRecord>,
    #[serde(skip)]
    pub(crate) layer_records: Vec<LayerRecord>,
    /// The directories that look like layers', by name.
    #[serde(skip)]
    pub(crate) directories: BTreeMap<String, LayerDirectory>,
    /// The targets of the links, by short name.
    #[serde(skip)]
    pub(crate) links: BTreeMap<String, PathBuf>,
    #[serde(skip)]
    pub(crate) tar_splits: BTreeSet<String>,
}

/// What is in a layer's directory.
#[derive(Clone, Debug, Default)]
pub(crate) struct LayerDirectory {
    /// The content of `link`.
    pub(crate) link: String,
    pub(crate) diff: Diff,
    pub(crate) lower: bool,
    /// Of `empty`, `merged` and `work`, those that are missing.
    pub(crate) missing: Vec<&'static str>,
}

/// What `diff` is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Diff {
    #[default]
    Missing,
    Directory,
    Link(PathBuf),
}

/// A lock that is held for longer is worth telling.
const LONG: Duration = Duration::from_secs(1);

/// Looks at the store in `path`; `ours` is the directory behind it if it is our view. Where somebody keeps a
/// write lock, it is not waited for, and records are not read.
pub(super) fn look(path: &Path, ours: Option<&Path>) -> StoreFacts {
    let root = StoreRoot::new(path.to_owned(), RootKind::Additional);
    let mut facts = StoreFacts {
        path: path.to_owned(),
        ours: ours.map(Path::to_owned),
        exists: path.is_dir(),
        ..StoreFacts::default()
    };
    if !facts.exists {
        return facts;
    }
    facts.missing_locks = lock_files(&root)
        .into_iter()
        .filter(|lock| !lock.exists())
        .collect();
    facts.locked = locked(path);
    if !facts.locked.is_empty() {
        return facts;
    }
    match root.image_records() {
        Ok(records) => facts.image_records = records,
        Err(error) => facts.unreadable.push(error.to_string()),
    }
    match root.layer_records() {
        Ok(records) => facts.layer_records = records,
        Err(error) => facts.unreadable.push(error.to_string()),
    }
    facts.images = facts.image_records.len();
    facts.layers = facts.layer_records.len();
    facts.verified_images = facts
        .image_records
        .iter()
        .filter(|record| ours.is_some() && is_promised(record))
        .count();
    facts.directories = directories(&root.overlay_dir());
    for entry in entries(&root.overlay_dir().join("l")) {
        if let (Some(name), Ok(target)) = (entry.0.to_str(), fs::read_link(&entry.1)) {
            facts.links.insert(name.to_owned(), target);
        }
    }
    for (name, _) in entries(&root.layers_dir()) {
        if let Some(id) = name
            .to_str()
            .and_then(|name| name.strip_suffix(".tar-split.gz"))
        {
            facts.tar_splits.insert(id.to_owned());
        }
    }
    facts
}

fn lock_files(root: &StoreRoot) -> [PathBuf; 2] {
    [
        root.layers_dir().join("layers.lock"),
        root.images_dir().join("images.lock"),
    ]
}

/// The lock files of the store in `path` whose write lock somebody keeps.
pub(super) fn locked(path: &Path) -> BTreeMap<PathBuf, Option<u32>> {
    let root = StoreRoot::new(path.to_owned(), RootKind::Additional);
    let files = lock_files(&root).into_iter();
    let files: Vec<_> = files
        .filter_map(|path| Some((path.metadata().ok()?, path)))
        .collect();
    let mut locked = writers_of(&files);
    if !locked.is_empty() {
        std::thread::sleep(LONG);
        let still = writers_of(&files);
        locked.retain(|lock, pid| still.get(lock) == Some(pid));
    }
    locked
}

/// Names and paths in a directory; none if it cannot be read.
pub(super) fn entries(directory: &Path) -> Vec<(std::ffi::OsString, PathBuf)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| (entry.file_name(), entry.path()))
        .collect()
}

fn directories(overlay: &Path) -> BTreeMap<String, LayerDirectory> {
    let is_layer =
        |name: &str| name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut found = BTreeMap::new();
    for (name, path) in entries(overlay) {
        let Some(name) = name.to_str().filter(|name| is_layer(name)) else {
            continue;
        };
        let exists = |name: &str| path.join(name).symlink_metadata().is_ok();
        found.insert(
            name.to_owned(),
            LayerDirectory {
                link: fs::read_to_string(path.join("link")).unwrap_or_default(),
                diff: diff(&path.join("diff")),
                lower: exists("lower"),
                missing: ["empty", "merged", "work"]
                    .into_iter()
                    .filter(|name| !exists(name))
                    .collect(),
            },
        );
    }
    found
}

fn diff(path: &Path) -> Diff {
    match fs::read_link(path) {
        Ok(target) => Diff::Link(target),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Diff::Missing,
        Err(_) => Diff::Directory,
    }
}

fn writers_of(locks: &[(fs::Metadata, PathBuf)]) -> BTreeMap<PathBuf, Option<u32>> {
    let table = fs::read("/proc/locks").unwrap_or_default();
    let table = String::from_utf8_lossy(&table);
    let found = locks.iter().flat_map(|(metadata, path)| {
        let writers = writers(&table, metadata).into_iter();
        writers.map(|writer| (path.clone(), writer))
    });
    found.collect()
}

/// Who holds a write lock on a file, of the lines of `/proc/locks`. Locks of open file descriptions, such as
/// ours, have no process.
fn writers(locks: &str, file: &fs::Metadata) -> Vec<Option<u32>> {
    let device = file.dev();
    let id = format!(
        "{:02x}:{:02x}:{}",
        rustix::fs::major(device),
        rustix::fs::minor(device),
        file.ino()
    );
    let of_line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // A line with `->` is of somebody who waits.
        match fields.as_slice() {
            [_, "POSIX" | "OFDLCK", _, "WRITE", pid, file, ..] if *file == id => {
                Some(pid.parse().ok())
            }
            _ => None,
        }
    };
    locks.lines().filter_map(of_line).collect()
}

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for store in &facts.stores {
        check_store(facts, store, &mut findings);
    }
    let mut owners: BTreeMap<&str, &Path> = BTreeMap::new();
    for store in &facts.stores {
        for link in store.links.keys() {
            if let Some(other) = owners.insert(link, &store.path) {
                findings.push(Finding {
                    finding: Kind::SameLink,
                    severity: Severity::Error,
                    subject: store.path.display().to_string(),
                    problem: format!("{} has the short name {link}, too", other.display()),
                    why: "containers on one of the two layers get the other".into(),
                    remedy: Remedy::advice("name one of the two stores only"),
                });
            }
        }
    }
    findings
}

fn check_store(facts: &Facts, store: &StoreFacts, findings: &mut Vec<Finding>) {
    let serve = || Remedy::Command {
        command: format!(
            "composefs-store --repo {} serve-mounts",
            shell(&facts.repository.path)
        ),
        fix: Some(Fix::ServeMounts),
    };
    let drop_it = || match facts.root_conf() {
        Some(conf) => Remedy::line(conf, STORES_TABLE, stores_line_without(conf, &store.path)),
        None => Remedy::advice("take it out of additionalimagestores"),
    };
    let mut add = |finding, severity, problem: String, why: &str, remedy| {
        findings.push(Finding {
            finding,
            severity,
            subject: store.path.display().to_string(),
            problem,
            why: why.into(),
            remedy,
        });
    };
    if !store.exists {
        let is_configured = facts
            .root_conf()
            .is_some_and(|conf| conf.additional_image_stores.contains(&store.path));
        if is_configured {
            add(
                Kind::StoreMissing,
                Severity::Error,
                "it is in additionalimagestores, and does not exist".into(),
                "every podman command fails",
                if store.ours.is_some() {
                    serve()
                } else {
                    drop_it()
                },
            );
        }
        return;
    }
    for lock in &store.missing_locks {
        add(
            Kind::StoreNoLock,
            Severity::Error,
            format!("{} is missing", lock.display()),
            "on a read-only mount podman fails; elsewhere it makes the file, perhaps below a mount that \
             comes later",
            match &store.ours {
                Some(writable) => {
                    let inside = lock.strip_prefix(&store.path).unwrap_or(lock);
                    Remedy::command(format!(
                        "install -m 644 /dev/null {}",
                        shell(writable.join(inside))
                    ))
                }
                None => drop_it(),
            },
        );
    }
    for problem in &store.unreadable {
        add(
            Kind::StoreUnreadable,
            Severity::Error,
            problem.clone(),
            "podman refuses the whole store, and with it every command",
            match &store.ours {
                Some(_) => Remedy::advice(
                    "take the store out of additionalimagestores, restore the file, or remove the directory \
                     podman-store and publish again; what was built on its layers is lost",
                ),
                None => drop_it(),
            },
        );
    }
    for (lock, pid) in &store.locked {
        add(
            Kind::StoreLocked,
            Severity::Warning,
            match pid {
                Some(pid) => format!("process {pid} keeps the write lock {}", lock.display()),
                None => format!("somebody keeps the write lock {}", lock.display()),
            },
            "every start of podman waits for it",
            Remedy::command(match pid {
                Some(pid) => format!("ps -f -p {pid}"),
                None => format!("fuser -v {}", shell(lock)),
            }),
        );
    }
    let ids = store
        .image_records
        .iter()
        .map(|record| record.id.to_string());
    let names = store
        .image_records
        .iter()
        .flat_map(|record| record.names.clone());
    let layers = store
        .layer_records
        .iter()
        .map(|record| record.id.to_string());
    for twice in duplicates(ids)
        .into_iter()
        .chain(duplicates(names))
        .chain(duplicates(layers))
    {
        add(
            Kind::StoreDuplicate,
            Severity::Error,
            format!("{twice} is in it twice"),
            "podman refuses the whole store, and with it every command",
            match &store.ours {
                Some(_) => Remedy::advice(
                    "take the store out of additionalimagestores, and tell the authors of composefs-store",
                ),
                None => drop_it(),
            },
        );
    }
    if store.unreadable.is_empty() && store.locked.is_empty() {
        check_layers(store, findings, &serve, &drop_it);
    }
}

fn duplicates(items: impl Iterator<Item = String>) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    items.filter(|item| !seen.insert(item.clone())).collect()
}

fn check_layers(
    store: &StoreFacts,
    findings: &mut Vec<Finding>,
    serve: &dyn Fn() -> Remedy,
    drop_it: &dyn Fn() -> Remedy,
) {
    let mut add = |finding, severity, layer: &str, problem: String, why: &str, remedy| {
        findings.push(Finding {
            finding,
            severity,
            subject: store.path.join("overlay").join(layer).display().to_string(),
            problem,
            why: why.into(),
            remedy,
        });
    };
    let records: BTreeMap<&str, &LayerRecord> = store
        .layer_records
        .iter()
        .map(|record| (record.id.as_str(), record))
        .collect();
    for name in store.directories.keys() {
        if !records.contains_key(name.as_str()) {
            add(
                Kind::StorePair,
                Severity::Error,
                name,
                "it has no record".into(),
                "a podman that makes this layer removes the directory, or fails where it cannot",
                if store.ours.is_some() {
                    serve()
                } else {
                    drop_it()
                },
            );
        }
    }
    for (name, record) in records {
        let Some(directory) = store.directories.get(name) else {
            add(
                Kind::StorePair,
                Severity::Error,
                name,
                "it has a record and no directory".into(),
                "containers of images with this layer do not start",
                if store.ours.is_some() {
                    serve()
                } else {
                    drop_it()
                },
            );
            continue;
        };
        let expected = Path::new("..").join(name).join("diff");
        let target = store.links.get(&directory.link);
        if target != Some(&expected) {
            let found = target.map_or("nothing".into(), |it| it.display().to_string());
            add(
                Kind::StoreLink,
                Severity::Error,
                name,
                format!(
                    "its short name {:?} leads to {found} instead of {}",
                    directory.link,
                    expected.display()
                ),
                "containers on this layer do not start, or get another one",
                match &store.ours {
                    Some(writable) if directory.link.len() == 26 => Remedy::command(format!(
                        "ln -sfn {} {}",
                        shell(&expected),
                        shell(writable.join("overlay/l").join(&directory.link))
                    )),
                    Some(_) => Remedy::advice("unpublish its image, and publish it again"),
                    None => drop_it(),
                },
            );
        }
        if let Some(writable) = &store.ours {
            if directory.diff == Diff::Missing || directory.lower {
                add(
                    Kind::StoreLayer,
                    Severity::Error,
                    name,
                    if directory.lower {
                        "it has a file `lower`, which no layer of ours has".into()
                    } else {
                        "it has no `diff`".into()
                    },
                    "containers on this layer do not start, or show what was deleted",
                    Remedy::advice("unpublish its image, and publish it again"),
                );
            }
            for missing in &directory.missing {
                let path = shell(writable.join("overlay").join(name).join(missing));
                add(
                    Kind::StoreLayer,
                    Severity::Error,
                    name,
                    format!("it has no directory `{missing}`"),
                    "podman cannot make it behind the read-only view, and cannot mount the layer itself \
                     without",
                    Remedy::command(match *missing {
                        "empty" => format!("install -d -m 755 {path}"),
                        _ => format!("install -d -m 700 {path}"),
                    }),
                );
            }
        }
        if record.diff_digest.is_none() || record.diff_size.is_none_or(|size| size < 0) {
            add(
                Kind::StoreLayer,
                Severity::Warning,
                name,
                "its record has no digest or size of the tar".into(),
                "podman calls its images corrupted",
                drop_it(),
            );
        }
        if !store.tar_splits.contains(name) {
            add(
                Kind::StoreLayer,
                Severity::Warning,
                name,
                "it has no tar-split".into(),
                "`podman save`, `push` and `system check` fail on its images",
                match &store.ours {
                    Some(_) => Remedy::advice("unpublish its image, and publish it again"),
                    None => Remedy::advice("store its images again with podman"),
                },
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_write_locks_on_the_very_file_count() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let metadata = file.as_file().metadata().unwrap();
        let device = metadata.dev();
        let id = format!(
            "{:02x}:{:02x}:{}",
            rustix::fs::major(device),
            rustix::fs::minor(device),
            metadata.ino()
        );
        let others = format!(
            "1: -> POSIX  ADVISORY  WRITE 12 {id} 0 EOF\n\
             2: POSIX  ADVISORY  READ 13 {id} 0 EOF\n\
             3: FLOCK  ADVISORY  WRITE 14 {id} 0 EOF\n\
             4: POSIX  ADVISORY  WRITE 15 {id}0 0 EOF\n"
        );
        assert_eq!(writers(&others, &metadata), []);
        let podman = format!("{others}5: POSIX  ADVISORY  WRITE 11 {id} 0 EOF\n");
        assert_eq!(writers(&podman, &metadata), [Some(11)]);
        let ours = format!("{others}5: OFDLCK ADVISORY  WRITE -1 {id} 0 EOF\n");
        assert_eq!(writers(&ours, &metadata), [None]);
    }
}
