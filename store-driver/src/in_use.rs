//! Who uses our layers.
//!
//! podman leaves no mark in an additional store, so its own stores have to be read: layers built on
//! ours, containers, records of images that name our layers, mounts ("additional image stores", who uses
//! a layer). This takes podman's locks only as the readers of records do. What cannot be read counts as
//! "in use": a layer is free only if that has been seen.
//!
//! A store whose configuration is gone by the time an image is unpublished still has its containers, so
//! the stores seen at publishing are written down ([`Consumers`]).

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt, fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use containers_storage::{ContainerRecord, ImageRecord, LayerId, LayerRecord, LinkId, StorageConf};
use repository::Repository;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    error::{Error, Result},
    mounted::{AllMounts, MountUse},
    paths::StorePaths,
};

/// Somebody who uses a layer, or may.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum User {
    /// A layer of podman's is built on it: a container's, or a built image's.
    Layer {
        /// podman's graph root.
        store: PathBuf,
        /// The layer.
        layer: String,
    },
    /// A container was made from it.
    Container {
        /// podman's graph root.
        store: PathBuf,
        /// The container.
        container: String,
    },
    /// An image record in podman's own store has it as its top layer.
    Image {
        /// podman's graph root.
        store: PathBuf,
        /// The image.
        image: String,
    },
    /// podman has it mounted.
    Mounted {
        /// podman's run root.
        runroot: PathBuf,
    },
    /// A mount shows it.
    Mount {
        /// Where.
        target: PathBuf,
        /// A process that sees the mount.
        pid: u32,
    },
    /// Whether it is used cannot be told.
    Unreadable {
        /// What cannot be read.
        path: PathBuf,
        /// Why, and what to do.
        why: String,
    },
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layer { store, layer } => {
                write!(f, "layer {layer} in {} is built on it", store.display())
            }
            Self::Container { store, container } => {
                write!(f, "container {container} in {}", store.display())
            }
            Self::Image { store, image } => {
                write!(f, "image {image} in {}", store.display())
            }
            Self::Mounted { runroot } => {
                write!(f, "podman has it mounted ({})", runroot.display())
            }
            Self::Mount { target, pid } => {
                write!(f, "mounted on {} (process {pid})", target.display())
            }
            Self::Unreadable { path, why } => {
                write!(f, "{} cannot be read ({why})", path.display())
            }
        }
    }
}

/// A store of podman's that may build on ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Consumer {
    graphroot: PathBuf,
    runroot: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    imagestore: Option<PathBuf>,
    #[serde(default)]
    transient: bool,
}

impl From<&StorageConf> for Consumer {
    fn from(conf: &StorageConf) -> Self {
        Self {
            graphroot: conf.graphroot.clone(),
            runroot: conf.runroot.clone(),
            imagestore: conf.imagestore.clone(),
            transient: conf.transient_store,
        }
    }
}

impl Consumer {
    fn roots(&self) -> Vec<&Path> {
        let roots = [Some(&self.graphroot), self.imagestore.as_ref()];
        roots.into_iter().flatten().map(PathBuf::as_path).collect()
    }

    fn image_records(&self) -> Result<Vec<ImageRecord>, Unreadable> {
        let mut found = Vec::new();
        for root in self.roots() {
            found.extend(records(&root.join("overlay-images/images.json"))?);
        }
        Ok(found)
    }
}

/// The images that podman has in storage of its own; none where its records cannot be read.
pub(crate) fn own_images(conf: &StorageConf) -> Vec<ImageRecord> {
    Consumer::from(conf).image_records().unwrap_or_default()
}

/// The stores of podman's in which users are searched for, beside those seen before.
#[derive(Debug, Clone, Default)]
pub struct Stores {
    /// Those that the operator configured or named. They are remembered: a store whose configuration is
    /// gone still has its containers.
    pub configured: Vec<StorageConf>,
    /// Those that were found, of users for example. They are looked for each time.
    pub found: Vec<StorageConf>,
}

impl From<StorageConf> for Stores {
    fn from(conf: StorageConf) -> Self {
        Self {
            configured: vec![conf],
            found: Vec::new(),
        }
    }
}

/// A store as it is written down.
#[derive(Serialize, Deserialize)]
struct Noted {
    #[serde(flatten)]
    consumer: Consumer,
    /// Whether it has ever been seen. One that podman has not made yet holds nothing.
    #[serde(default = "seen")]
    seen: bool,
}

/// Files of earlier versions have only stores that were seen.
fn seen() -> bool {
    true
}

/// The stores known so far, one JSON file beside our store.
pub(crate) struct Consumers {
    path: PathBuf,
    /// Each, and whether it has ever been seen.
    known: BTreeMap<Consumer, bool>,
    /// Stores that are not to be written down.
    found: BTreeSet<Consumer>,
}

impl Consumers {
    pub(crate) fn read(paths: &StorePaths) -> Result<Self> {
        let path = paths.private().join("podman-consumers.json");
        let known = match fs::read(&path) {
            Ok(text) => serde_json::from_slice::<Vec<Noted>>(&text)
                .map_err(|error| Error::io("read", &path)(io::Error::from(error)))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(Error::io("read", path)(error)),
        };
        Ok(Self {
            path,
            known: known.into_iter().map(|it| (it.consumer, it.seen)).collect(),
            found: BTreeSet::new(),
        })
    }

    /// Adds stores. Whether there is something to be written down: podman may make a store after an image
    /// was published for it, and it is remembered then already.
    pub(crate) fn add(&mut self, stores: &Stores) -> bool {
        let found = stores.found.iter().map(Consumer::from);
        self.found
            .extend(found.filter(|consumer| consumer.graphroot.exists()));
        let before = self.known.clone();
        for conf in &stores.configured {
            self.known.entry(conf.into()).or_insert(false);
        }
        for (consumer, seen) in &mut self.known {
            *seen = *seen || consumer.graphroot.exists();
        }
        self.known != before
    }

    /// Adds stores, and writes down what is new.
    pub(crate) fn note(&mut self, stores: &Stores) -> Result<()> {
        if !self.add(stores) {
            return Ok(());
        }
        let write = || -> io::Result<()> {
            let parent = self.path.parent().unwrap_or(Path::new("/"));
            let mut file = tempfile::NamedTempFile::new_in(parent)?;
            let noted: Vec<Noted> = self
                .known
                .iter()
                .map(|(consumer, seen)| Noted {
                    consumer: consumer.clone(),
                    seen: *seen,
                })
                .collect();
            serde_json::to_writer_pretty(&mut file, &noted)?;
            file.as_file().sync_all()?;
            file.persist(&self.path)?;
            fs::File::open(parent)?.sync_all()
        };
        write().map_err(Error::io("write", &self.path))
    }

    /// The users of `layers`, our layers that might go, with their short names: in podman's stores, and
    /// mounts.
    pub(crate) fn users_of(
        &self,
        repository: &Repository,
        layers: &[(LayerId, Option<LinkId>)],
    ) -> Users {
        let mut users = self.users_in_stores(layers);
        match AllMounts::read().map(|mounts| mounts.uses(repository, layers)) {
            Ok(uses) => {
                for MountUse {
                    target,
                    pid,
                    layers,
                    ..
                } in uses
                {
                    for layer in &layers {
                        let target = target.clone();
                        users.add(layer, User::Mount { target, pid });
                    }
                }
            }
            Err(error) => {
                for (layer, _) in layers {
                    let (path, why) = ("/proc".into(), error.to_string());
                    users.add(layer, User::Unreadable { path, why });
                }
            }
        }
        users
    }

    fn users_in_stores(&self, layers: &[(LayerId, Option<LinkId>)]) -> Users {
        let mut users = Users::default();
        let not_made = |consumer: &Consumer, seen: bool| !seen && !consumer.graphroot.exists();
        let known = self.known.iter();
        let known = known.filter_map(|(it, seen)| (!not_made(it, *seen)).then_some(it));
        let consumers: BTreeSet<&Consumer> = known.chain(&self.found).collect();
        for consumer in consumers {
            if let Err(Unreadable { path, why }) = scan(consumer, layers, &mut users) {
                let why = format!(
                    "{why}; if podman's store {} is gone for good, remove it from {}",
                    consumer.graphroot.display(),
                    self.path.display()
                );
                for (layer, _) in layers {
                    users.add(
                        layer,
                        User::Unreadable {
                            path: path.clone(),
                            why: why.clone(),
                        },
                    );
                }
            }
        }
        users
    }
}

/// Users by layer.
#[derive(Debug, Default)]
pub(crate) struct Users(BTreeMap<LayerId, Vec<User>>);

impl Users {
    fn add(&mut self, layer: &LayerId, user: User) {
        let users = self.0.entry(layer.clone()).or_default();
        if !users.contains(&user) {
            users.push(user);
        }
    }

    /// Who uses a layer itself; that something is built on a layer above it is not counted here.
    pub(crate) fn of(&self, layer: &LayerId) -> &[User] {
        self.0.get(layer).map_or(&[], Vec::as_slice)
    }
}

/// What could not be read.
struct Unreadable {
    path: PathBuf,
    why: String,
}

impl Unreadable {
    fn at(path: &Path, why: impl fmt::Display) -> Self {
        Self {
            path: path.to_owned(),
            why: why.to_string(),
        }
    }
}

fn scan(
    consumer: &Consumer,
    layers: &[(LayerId, Option<LinkId>)],
    users: &mut Users,
) -> Result<(), Unreadable> {
    let store = &consumer.graphroot;
    fs::metadata(store).map_err(|error| Unreadable::at(store, error))?;
    let roots = consumer.roots();
    let volatile = if consumer.transient {
        &consumer.runroot
    } else {
        store
    };

    let mut layer_records: Vec<LayerRecord> = Vec::new();
    for root in &roots {
        layer_records.extend(records(&root.join("overlay-layers/layers.json"))?);
    }
    let image_records = consumer.image_records()?;
    layer_records.extend(records(
        &volatile.join("overlay-layers/volatile-layers.json"),
    )?);
    let mut containers: Vec<ContainerRecord> = Vec::new();
    for file in ["containers.json", "volatile-containers.json"] {
        containers.extend(records(&volatile.join("overlay-containers").join(file))?);
    }
    let container_of = |layer: &str| {
        containers.iter().find(|container| {
            container
                .layer
                .as_ref()
                .is_some_and(|id| id.as_str() == layer)
        })
    };
    let layer_user = |layer: &str| match container_of(layer) {
        Some(container) => User::Container {
            store: store.clone(),
            container: container.id.to_string(),
        },
        None => User::Layer {
            store: store.clone(),
            layer: layer.to_owned(),
        },
    };

    // A layer that podman has itself comes before ours, so what names it by ID means podman's.
    let own: HashSet<&LayerId> = layer_records.iter().map(|record| &record.id).collect();
    let ours: HashSet<&LayerId> = layers
        .iter()
        .map(|(id, _)| id)
        .filter(|id| !own.contains(id))
        .collect();
    for record in &layer_records {
        if let Some(parent) = record.parent.as_ref().filter(|id| ours.contains(id)) {
            users.add(parent, layer_user(record.id.as_str()));
        }
    }
    for record in &image_records {
        for layer in record.layer.iter().chain(&record.mapped_layers) {
            if ours.contains(layer) {
                users.add(
                    layer,
                    User::Image {
                        store: store.clone(),
                        image: record.id.to_string(),
                    },
                );
            }
        }
    }

    // Short names are exact: they mean our copy also where podman has the layer by now.
    let links: BTreeMap<&str, &LayerId> = layers
        .iter()
        .filter_map(|(id, link)| Some((link.as_ref()?.as_str(), id)))
        .collect();
    for root in &roots {
        scan_lowers(&root.join("overlay"), |directory, link| {
            if let Some(layer) = links.get(link) {
                users.add(layer, layer_user(directory));
            }
        })?;
    }

    let mounted: Vec<MountPoint> =
        records(&consumer.runroot.join("overlay-layers/mountpoints.json"))?;
    for mount in mounted {
        if let Some((layer, _)) = layers.iter().find(|(id, _)| id.as_str() == mount.id)
            && ours.contains(layer)
        {
            users.add(
                layer,
                User::Mounted {
                    runroot: consumer.runroot.clone(),
                },
            );
        }
    }
    Ok(())
}

/// An entry of `mountpoints.json`.
#[derive(Deserialize)]
struct MountPoint {
    #[serde(default)]
    id: String,
}

/// Most bytes of a file of records; beyond all that podman could still load in a reasonable time.
const MAX_RECORDS: u64 = 1 << 30;

/// Most bytes of a `lower` file: 500 short names, with room to spare.
const MAX_LOWER: u64 = 64 << 10;

/// The records in a file; none if there is no file.
fn records<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, Unreadable> {
    match read_limited(path, MAX_RECORDS) {
        // podman creates some of these files before it has anything to write.
        Ok(Some(text)) if text.is_empty() => Ok(Vec::new()),
        Ok(Some(text)) => serde_json::from_slice::<Option<Vec<T>>>(&text)
            .map(Option::unwrap_or_default)
            .map_err(|error| Unreadable::at(path, error)),
        Ok(None) => Ok(Vec::new()),
        Err(error) => Err(Unreadable::at(path, error)),
    }
}

/// Calls `found` with each layer directory's name and each short name in its `lower`. Where that is a directory,
/// podman is trying out there what overlayfs can do.
fn scan_lowers(overlay: &Path, mut found: impl FnMut(&str, &str)) -> Result<(), Unreadable> {
    let entries = match fs::read_dir(overlay) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Unreadable::at(overlay, error)),
    };
    for entry in entries {
        let entry = entry.map_err(|error| Unreadable::at(overlay, error))?;
        let path = entry.path().join("lower");
        let text = match read_limited(&path, MAX_LOWER) {
            Ok(Some(text)) => text,
            Ok(None) => continue,
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => continue,
            Err(error) => return Err(Unreadable::at(&path, error)),
        };
        let directory = entry.file_name();
        let directory = directory.to_string_lossy();
        for lower in String::from_utf8_lossy(&text).split(':') {
            found(&directory, lower.trim().strip_prefix("l/").unwrap_or(lower));
        }
    }
    Ok(())
}

/// The content of a file; `None` if there is none or its directory is no directory.
fn read_limited(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let mut content = Vec::new();
    file.take(limit + 1).read_to_end(&mut content)?;
    if content.len() as u64 > limit {
        return Err(io::Error::other(format!("more than {limit} bytes")));
    }
    Ok(Some(content))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const LINK: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

    fn id(digit: char) -> String {
        std::iter::repeat_n(digit, 64).collect()
    }

    struct Fixture {
        root: tempfile::TempDir,
        consumers: Consumers,
    }

    impl Fixture {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            for directory in [
                "overlay/l",
                "overlay-layers",
                "overlay-images",
                "overlay-containers",
            ] {
                fs::create_dir_all(root.path().join("graph").join(directory)).unwrap();
            }
            let consumer = Consumer {
                graphroot: root.path().join("graph"),
                runroot: root.path().join("run"),
                imagestore: None,
                transient: false,
            };
            Self {
                consumers: Consumers {
                    path: root.path().join("consumers.json"),
                    known: BTreeMap::from([(consumer, true)]),
                    found: BTreeSet::new(),
                },
                root,
            }
        }

        fn write(&self, path: &str, content: &str) {
            let path = self.root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }

        fn users(&self) -> Vec<User> {
            let layer: LayerId = id('a').parse().unwrap();
            let users = self
                .consumers
                .users_in_stores(&[(layer.clone(), Some(LINK.parse().unwrap()))]);
            users.of(&layer).to_vec()
        }
    }

    #[test]
    fn a_store_that_knows_nothing_of_a_layer_does_not_use_it() {
        assert_eq!(Fixture::new().users(), []);
    }

    #[test]
    fn a_container_uses_the_layer_that_its_own_layer_is_built_on() {
        let fixture = Fixture::new();
        let (own, container) = (id('b'), id('c'));
        fixture.write(
            "graph/overlay-layers/volatile-layers.json",
            &format!(r#"[{{"id":"{own}","parent":"{}"}}]"#, id('a')),
        );
        fixture.write(
            "graph/overlay-containers/volatile-containers.json",
            &format!(r#"[{{"id":"{container}","layer":"{own}"}}]"#),
        );
        let store = fixture.root.path().join("graph");
        assert_eq!(fixture.users(), [User::Container { store, container }]);
    }

    #[test]
    fn the_lower_file_counts_even_where_podman_has_the_layer_itself() {
        let fixture = Fixture::new();
        let own = id('b');
        fixture.write(
            "graph/overlay-layers/layers.json",
            &format!(
                r#"[{{"id":"{}"}},{{"id":"{own}","parent":"{}"}}]"#,
                id('a'),
                id('a')
            ),
        );
        assert_eq!(fixture.users(), [], "podman's own copy is meant");
        fixture.write(
            &format!("graph/overlay/{own}/lower"),
            &format!("l/{}:l/{LINK}", "B".repeat(26)),
        );
        let store = fixture.root.path().join("graph");
        assert_eq!(fixture.users(), [User::Layer { store, layer: own }]);
    }

    #[test]
    fn where_podman_tries_overlayfs_out_nothing_is_in_use() {
        let fixture = Fixture::new();
        let lower = "graph/overlay/volatile-check3541920844/lower";
        fs::create_dir_all(fixture.root.path().join(lower)).unwrap();
        assert_eq!(fixture.users(), []);
    }

    #[test]
    fn an_image_record_without_layers_of_its_own_uses_ours() {
        let fixture = Fixture::new();
        fixture.write(
            "graph/overlay-images/images.json",
            &format!(r#"[{{"id":"{}","layer":"{}"}}]"#, id('d'), id('a')),
        );
        let store = fixture.root.path().join("graph");
        let image = id('d');
        assert_eq!(fixture.users(), [User::Image { store, image }]);
    }

    #[test]
    fn a_mounted_layer_is_in_use() {
        let fixture = Fixture::new();
        fixture.write(
            "run/overlay-layers/mountpoints.json",
            &format!(r#"[{{"id":"{}","path":"/x","count":1}}]"#, id('a')),
        );
        let runroot = fixture.root.path().join("run");
        assert_eq!(fixture.users(), [User::Mounted { runroot }]);
    }

    #[test]
    fn a_store_that_podman_has_not_made_yet_is_remembered_and_one_that_is_gone_is_in_use() {
        let mut fixture = Fixture::new();
        let graph = fixture.root.path().join("graph");
        let aside = fixture.root.path().join("aside");
        fs::rename(&graph, &aside).unwrap();
        for seen in fixture.consumers.known.values_mut() {
            *seen = false;
        }
        assert_eq!(fixture.users(), []);
        assert!(!fixture.consumers.add(&Stores::default()));

        fs::rename(&aside, &graph).unwrap();
        assert!(fixture.consumers.add(&Stores::default()));
        assert_eq!(fixture.users(), []);
        fs::rename(&graph, &aside).unwrap();
        assert!(matches!(
            fixture.users().as_slice(),
            [User::Unreadable { .. }]
        ));
    }

    #[test]
    fn what_cannot_be_read_counts_as_in_use() {
        let fixture = Fixture::new();
        fixture.write("graph/overlay-layers/layers.json", "[{");
        assert!(matches!(&fixture.users()[..], [User::Unreadable { .. }]));

        let fixture = Fixture::new();
        symlink("loop", fixture.root.path().join("graph/overlay/loop")).unwrap();
        assert!(matches!(&fixture.users()[..], [User::Unreadable { .. }]));

        let fixture = Fixture::new();
        fs::remove_dir_all(fixture.root.path().join("graph")).unwrap();
        let users = fixture.users();
        assert!(matches!(&users[..], [User::Unreadable { .. }]));
        assert!(
            users[0].to_string().contains("consumers.json"),
            "says the remedy"
        );
    }
}
