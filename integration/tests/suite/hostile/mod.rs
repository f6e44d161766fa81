//! Layers made to harm or to confuse, one table for each kind: podman either shows a tree, and then ours
//! is the same one, or refuses the layer, and then so do we.
//!
//! Every case is an image of two layers: [`lower`] and the hostile one. It is imported twice: from
//! podman's storage, and as an OCI layout, where podman has not had a look at it before.

mod headers;
mod links;
mod paths;
mod whiteouts;
mod xattrs;

use crate::peers::cfsctl_ok;
use anyhow::{Context, Result, ensure};
use integration::oci::digest;
use integration::store::Layout;
use integration::tar::raw::END;
use integration::tar::{Dialect, Member, Raw, archive};
use integration::tree::{Scope, Tree};
use integration::{
    Engine, Filesystem, Finished, Fixture, Kind, Machine, Peers, Podman, Release, Store,
};
use serde_json::Value;
use std::fmt::Write as _;
use std::time::SystemTime;

/// One hostile layer, and what becomes of it.
pub(crate) struct Case {
    name: &'static str,
    layer: Vec<u8>,
    outcome: Outcome,
}

/// What podman and the program under test do.
#[derive(Clone, Copy)]
pub(crate) enum Outcome {
    /// podman shows a tree, and so do we: the same.
    Same,
    /// podman loads it; the import is refused with these words, the first of which name the entry.
    OnlyWeRefuse(&'static [&'static str]),
    /// podman loads and we import it, but publishing is refused with these words: podman's tree of it
    /// is not one that an image can hold.
    Unpublished(&'static [&'static str]),
    /// podman does not load it. From a layout the import is refused, or else the image cannot be
    /// published: podman never sees it.
    PodmanRefuses,
    /// podman does not load it, for the sake of something that does no harm; composefs-rs reads it as we
    /// do.
    OnlyPodmanRefuses,
}

impl Case {
    /// A layer of complete members.
    fn of(name: &'static str, outcome: Outcome, members: &[Member]) -> Self {
        Self {
            name,
            layer: archive(members, Dialect::Pax),
            outcome,
        }
    }

    /// A layer of headers as they are, with its end.
    fn raw(name: &'static str, outcome: Outcome, headers: &[Raw]) -> Self {
        let mut layer: Vec<u8> = headers.iter().flat_map(Raw::bytes).collect();
        layer.extend(END);
        Self::bytes(name, outcome, layer)
    }

    /// Whatever these bytes are.
    fn bytes(name: &'static str, outcome: Outcome, layer: Vec<u8>) -> Self {
        Self {
            name,
            layer,
            outcome,
        }
    }
}

/// What hostile layers are put on.
fn lower() -> Vec<u8> {
    archive(
        &[
            Member::dir("usr"),
            Member::dir("etc"),
            Member::file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
            Member::dir("data"),
            Member::dir("data/real"),
            Member::file("data/real/below", "below"),
            Member::file("data/file", "a file of the lower layer"),
            Member::symlink("data/link", "real"),
            Member::symlink("data/out", "/etc"),
        ],
        Dialect::Pax,
    )
}

/// The places of a table.
struct Bench {
    podman: Podman,
    /// Sees what was imported from podman's storage.
    consumer: Podman,
    store: Store,
    /// Sees what was imported from layouts.
    layout_consumer: Podman,
    layout_store: Store,
    disk: Filesystem,
}

/// Tries every case of a table and tells of all that are not as the table has them.
pub(crate) fn judge(cases: &[Case]) -> Result<()> {
    let peers = Peers::from_env()?;
    // Symlink targets of any length.
    let disk = Filesystem::new(&peers, Kind::Btrfs, 2048)?;
    let machine = Machine::start(&peers, Release::Host)?;
    let podman = Podman::new(&machine, &disk.path().join("own"), &Engine::default())?;
    let pair = |name: &str| -> Result<(Store, Podman)> {
        let store = Store::init(&machine, &disk.path().join(name))?;
        let engine = Engine::with_store(&store.podman_store()?);
        let consumer = disk.path().join(format!("{name}-consumer"));
        Ok((store, Podman::new(&machine, &consumer, &engine)?))
    };
    let (store, consumer) = pair("repository")?;
    let (layout_store, layout_consumer) = pair("layouts")?;
    let bench = Bench {
        podman,
        consumer,
        store,
        layout_consumer,
        layout_store,
        disk,
    };
    let mut wrong = String::new();
    for (number, case) in cases.iter().enumerate() {
        if let Err(error) = bench.case(number, case) {
            let _ = writeln!(wrong, "== {}: {error:#}", case.name);
        }
    }
    for store in [&bench.store, &bench.layout_store] {
        store.ok(&["fsck"])?;
        cfsctl_ok(store.repo(), &["fsck"])?;
    }
    ensure!(wrong.is_empty(), "not as in the table:\n{wrong}");
    Ok(())
}

impl Bench {
    fn case(&self, number: usize, case: &Case) -> Result<()> {
        let image = &format!("localhost/case{number}:latest");
        let layout = self.disk.path().join(format!("layout{number}"));
        let fixture = Fixture::of_tars(&layout, vec![lower(), case.layer.clone()])?;
        let loaded = self.podman.load(fixture.layout(), image);
        let source = format!("oci:{}:latest", layout.display());
        let direct = self
            .layout_store
            .finish(&["import", "--tag", image, &source])?;
        let layer = digest(&case.layer);
        let (_, layer) = layer.split_once(':').context("a digest")?;
        let nothing_named = |store: &Store| -> Result<()> {
            let images = store.ok(&["images", "--json"])?.text();
            ensure!(!images.contains(image.as_str()), "it has a name: {images}");
            Ok(())
        };

        if let Outcome::PodmanRefuses | Outcome::OnlyPodmanRefuses = case.outcome {
            ensure!(loaded.is_err(), "podman loads it: {}", self.shown(image));
        } else {
            loaded.context("podman refuses it")?;
            let root = self.podman.graphroot().display().to_string();
            let import = self
                .store
                .finish(&["import", "--storage-root", &root, image])?;
            if let Outcome::OnlyWeRefuse(words) = case.outcome {
                import.refused_with(&[words, &[layer]].concat())?;
                nothing_named(&self.store)?;
            } else {
                import.success()?;
            }
        }

        match case.outcome {
            Outcome::PodmanRefuses | Outcome::OnlyPodmanRefuses if !direct.status.success() => {
                direct.refused_with(&[layer])?;
                nothing_named(&self.layout_store)
            }
            Outcome::PodmanRefuses => {
                let publish = publish(&self.layout_store, &self.layout_consumer, image)?;
                publish.refused().context("from a layout")?;
                Ok(())
            }
            Outcome::OnlyPodmanRefuses => {
                publish(&self.layout_store, &self.layout_consumer, image)?.success()?;
                Ok(())
            }
            Outcome::OnlyWeRefuse(words) if !direct.status.success() => {
                direct.refused_with(&[words, &[layer]].concat())?;
                nothing_named(&self.layout_store)
            }
            Outcome::OnlyWeRefuse(_) => {
                publish(&self.layout_store, &self.layout_consumer, image)?.success()?;
                self.same(&self.layout_consumer, image)
                    .context("from a layout")
            }
            Outcome::Same | Outcome::Unpublished(_) => {
                direct.success()?;
                ensure!(
                    recorded(&self.store, image)? == recorded(&self.layout_store, image)?,
                    "from a layout it is another image"
                );
                let publish = publish(&self.store, &self.consumer, image)?;
                if let Outcome::Unpublished(words) = case.outcome {
                    publish.refused_with(words)?;
                    return Ok(());
                }
                publish.success()?;
                self.same(&self.consumer, image)
            }
        }
    }

    /// Compares the tree that `consumer` has from us with podman's own.
    fn same(&self, consumer: &Podman, image: &str) -> Result<()> {
        let mut theirs = mounted(&self.podman, image)?;
        let mut ours = mounted(consumer, image)?;
        forget_times_of_the_extraction(&mut theirs, &mut ours);
        ours.must_equal("from our store", &theirs, "from podman's own")
    }

    /// The names in podman's tree of an image, for messages.
    fn shown(&self, image: &str) -> String {
        match mounted(&self.podman, image) {
            Err(error) => format!("{error:#}"),
            Ok(tree) => tree
                .entries
                .keys()
                .take(40)
                .fold(String::new(), |text, path| {
                    text + &format!("/{} ", path.escape_ascii())
                }),
        }
    }
}

fn publish(store: &Store, consumer: &Podman, image: &str) -> Result<Finished> {
    let conf = consumer.storage_conf().display().to_string();
    store.finish(&[
        "publish",
        "--layout",
        Layout::Mounted.word(),
        "--storage-conf",
        &conf,
        image,
    ])
}

/// What a repository says of an image.
fn recorded(store: &Store, image: &str) -> Result<Value> {
    let images: Value = serde_json::from_slice(&store.ok(&["images", "--json"])?.stdout)?;
    let found = images["images"]
        .as_array()
        .context("a list")?
        .iter()
        .find(|found| found.to_string().contains(image));
    Ok(found
        .with_context(|| format!("{image} is not in {images}"))?
        .clone())
}

/// The tree of an image as podman mounts it for a container.
fn mounted(podman: &Podman, image: &str) -> Result<Tree> {
    let id = podman.ok(&["create", "--pull", "never", image, "sh"])?;
    let id = id.text();
    let path = podman.ok(&["mount", &id])?.text();
    let path = path.strip_prefix('/').context("a path")?;
    let tree = Tree::read(&podman.machine().root().join(path), Scope::Mount);
    podman.ok(&["umount", &id])?;
    podman.ok(&["rm", &id])?;
    tree
}

/// podman gives the directories that it makes up the time at which it does.
fn forget_times_of_the_extraction(theirs: &mut Tree, ours: &mut Tree) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.unwrap_or_default().as_secs() as i64;
    for (path, entry) in &mut theirs.entries {
        if (now - 3600..=now).contains(&entry.mtime.0) {
            entry.mtime = (0, 0);
            if let Some(entry) = ours.entries.get_mut(path) {
                entry.mtime = (0, 0);
            }
        }
    }
}
