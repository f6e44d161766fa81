//! What most tests begin with: a machine, podman's own storage with an image, and a repository on the
//! same filesystem.

use anyhow::Result;
use integration::fixture::Limits;
use integration::store::Layout;
use integration::{
    Engine, Filesystem, Finished, Fixture, Kind, Machine, Peers, Podman, Release, Store,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The name of the image in every scene.
pub(crate) const IMAGE: &str = "localhost/fixture:latest";

/// A number that no other test of this run gets, for content that no other test has: gc looks at the
/// mounts of the whole machine, and keeps what looks like its own.
pub(crate) fn unique() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1 << 32);
    NEXT.fetch_add(1000, Ordering::Relaxed)
}

/// Fields in the order in which they must be dropped.
pub(crate) struct Scene {
    /// An engine that has the image in its own storage.
    pub(crate) own: Podman,
    pub(crate) store: Store,
    pub(crate) machine: Arc<Machine>,
    pub(crate) fixture: Fixture,
    pub(crate) disk: Filesystem,
}

impl Scene {
    /// A machine of `release` whose podman has the hard image, on a filesystem of `kind`.
    pub(crate) fn hard(release: Release, kind: Kind) -> Result<Self> {
        let limits = match kind {
            Kind::Xfs => Limits::PORTABLE,
            Kind::Btrfs | Kind::Ext4 => Limits::NONE,
        };
        Self::new(release, kind, |dir| Fixture::hard(dir, limits))
    }

    /// A machine of `release` whose podman has the image that `fixture` writes.
    pub(crate) fn new(
        release: Release,
        kind: Kind,
        fixture: impl FnOnce(&std::path::Path) -> Result<Fixture>,
    ) -> Result<Self> {
        let peers = Peers::from_env()?;
        let disk = Filesystem::new(&peers, kind, 2048)?;
        let fixture = fixture(&disk.path().join("layout"))?;
        let machine = Machine::start(&peers, release)?;
        let own = Podman::new(&machine, &disk.path().join("own"), &Engine::default())?;
        own.load(fixture.layout(), IMAGE)?;
        let store = Store::init(&machine, &disk.path().join("repository"))?;
        Ok(Self {
            own,
            store,
            machine,
            fixture,
            disk,
        })
    }

    /// Arguments that import the image from the scene's own podman.
    pub(crate) fn import_arguments(&self) -> [String; 4] {
        let root = self.own.graphroot().display().to_string();
        ["import".into(), "--storage-root".into(), root, IMAGE.into()]
    }

    /// Imports the image.
    pub(crate) fn import(&self) -> Result<()> {
        let arguments = self.import_arguments();
        self.store.ok(&arguments.each_ref().map(String::as_str))?;
        Ok(())
    }

    /// Another engine on the machine: empty storage of its own, our store, and the mount options that
    /// `layout` needs.
    pub(crate) fn consumer(&self, layout: Layout) -> Result<Podman> {
        let engine = Engine::with_store(&self.store.podman_store()?);
        let engine = match layout {
            Layout::Blob => engine.metacopy(),
            Layout::Mounted => engine,
        };
        Podman::new(
            &self.machine,
            &self.disk.path().join(layout.word()),
            &engine,
        )
    }

    /// Publishes the image for `consumer`.
    pub(crate) fn publish(&self, layout: Layout, consumer: &Podman) -> Result<()> {
        self.publish_image(IMAGE, layout, consumer).map(drop)
    }

    /// Publishes an image of the store for `consumer`.
    pub(crate) fn publish_image(
        &self,
        image: &str,
        layout: Layout,
        consumer: &Podman,
    ) -> Result<Finished> {
        let conf = consumer.storage_conf().display().to_string();
        self.store.ok(&[
            "publish",
            "--layout",
            layout.word(),
            "--storage-conf",
            &conf,
            image,
        ])
    }

    /// Imports and publishes the image, and gives an engine that has it from our store alone.
    pub(crate) fn published(&self, layout: Layout) -> Result<Podman> {
        self.import()?;
        let consumer = self.consumer(layout)?;
        self.publish(layout, &consumer)?;
        Ok(consumer)
    }
}
