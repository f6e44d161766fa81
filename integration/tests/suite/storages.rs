//! podman's storage in every shape that it has: drivers, split and transient stores, additional stores on
//! read-only filesystems, composefs-backed layers, and what other versions of podman leave. The repository
//! is that of the usual import of the same image, object by object.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use containers_storage::LayerId;
use containers_storage::testing::{Reshape, SplitRecords};
use integration::fixture::noise;
use integration::store::Layout;
use integration::tar::Member;
use integration::{
    Containers, Driver, Engine, Filesystem, Finished, Fixture, Kind, Peers, Podman, Release, Store,
    finish, ok,
};
use serde_json::Value;

use crate::on_top::small;
use crate::scene::{IMAGE, Scene};
use crate::sources::{Contents, contents_of, copy, path};

/// A machine with an image, and what a repository holds with that image alone.
struct Bench {
    scene: Scene,
    expected: Contents,
}

impl Bench {
    fn of(scene: Scene) -> Result<Self> {
        let layout = format!("oci:{}:latest", scene.fixture.layout().display());
        let expected = contents_of(&scene, "expected", &[&layout])?;
        Ok(Self { scene, expected })
    }

    fn hard(release: Release) -> Result<Self> {
        Self::of(Scene::hard(release, Kind::Xfs)?)
    }

    /// Another engine on the machine, with empty storage.
    fn engine(&self, name: &str, engine: &Engine) -> Result<Podman> {
        Podman::new(&self.scene.machine, &self.place(name), engine)
    }

    fn place(&self, name: &str) -> PathBuf {
        self.scene.disk.path().join(name)
    }

    fn load(&self, engine: &Podman) -> Result<()> {
        engine.load(self.scene.fixture.layout(), IMAGE)
    }

    /// Imports the image from what the engine sees, by its configuration alone, into a new repository,
    /// which must be the expected one. Gives what the import says.
    fn same_from(&self, engine: &Podman, name: &str) -> Result<Value> {
        let store = Store::init(&self.scene.machine, &self.place(&format!("of-{name}")))?;
        let done = import_in(engine, &store, &["--tag", IMAGE, IMAGE])?.success()?;
        self.must_be_same(&store, name)?;
        let report: Value = serde_json::from_slice(&done.stdout)?;
        Ok(report["imported"][0].clone())
    }

    /// The same from the store at `root`.
    fn same_at(&self, root: &Path, name: &str) -> Result<()> {
        let root = root.display().to_string();
        let store = Store::init(&self.scene.machine, &self.place(&format!("of-{name}")))?;
        store.ok(&["import", "--tag", IMAGE, "--storage-root", &root, IMAGE])?;
        self.must_be_same(&store, name)
    }

    fn must_be_same(&self, store: &Store, name: &str) -> Result<()> {
        store.ok(&["fsck"])?;
        Contents::of(store.repo())?.must_equal(name, &self.expected, "the usual import")
    }

    /// An image in the engine's storage is the same as its copy in a layout.
    fn same_as_copied(&self, engine: &Podman, image: &str, name: &str) -> Result<()> {
        let layout = format!("oci:{}:x", path(&self.scene, &format!("{name}-copy")));
        copy(engine, &format!("containers-storage:{image}"), &layout)?;
        let expected = contents_of(&self.scene, &format!("{name}-of-copy"), &[&layout])?;
        let store = Store::init(
            &self.scene.machine,
            &self.place(&format!("{name}-of-store")),
        )?;
        import_in(engine, &store, &["--tag", IMAGE, image])?.success()?;
        store.ok(&["fsck"])?;
        Contents::of(store.repo())?.must_equal(name, &expected, "its copy")
    }

    /// The storage of the scene's own podman, copied without its engine.
    fn copied_root(&self, name: &str) -> Result<PathBuf> {
        let root = self.place(name);
        ok(Command::new("cp")
            .args(["-a", "--reflink=always"])
            .arg(self.scene.own.graphroot())
            .arg(&root))?;
        Ok(root)
    }
}

/// `import` with an engine's configuration.
fn import_in(engine: &Podman, store: &Store, arguments: &[&str]) -> Result<Finished> {
    let program = engine.machine().peers().composefs_store()?;
    let mut command = engine.command(&program.display().to_string());
    command.arg("--repo").arg(store.repo());
    finish(command.args(["--json", "import"]).args(arguments))
}

/// The IDs in a file of records; none where there is no file.
fn ids(file: &Path) -> Result<Vec<String>> {
    if !file.exists() {
        return Ok(Vec::new());
    }
    let records: Vec<Value> = serde_json::from_slice(&std::fs::read(file)?)?;
    let ids = records.iter().map(|record| record["id"].as_str());
    ids.map(|id| Ok(id.context("a record has an ID")?.to_owned()))
        .collect()
}

#[test]
fn a_store_of_the_vfs_driver_gives_the_same_repository() -> Result<()> {
    for release in [Release::Host, Release::Trixie, Release::Sid] {
        let bench = Bench::hard(release)?;
        let vfs = Engine {
            driver: Driver::Vfs,
            ..Engine::default()
        };
        let engine = bench.engine("vfs", &vfs)?;
        bench.load(&engine)?;
        ensure!(engine.graphroot().join("vfs/dir").is_dir());
        bench.same_from(&engine, "vfs")?;
        bench.same_at(&engine.graphroot(), "vfs-root")?;
        // A layer whose directory has the lower layers' files too.
        let built = "localhost/built:1";
        engine.build(
            built,
            &format!("FROM {IMAGE}\nRUN echo built >/built && rm -rf /work\n"),
        )?;
        bench.same_as_copied(&engine, built, "built")?;
    }
    Ok(())
}

#[test]
fn a_store_with_a_root_of_its_own_for_images_gives_the_same_repository() -> Result<()> {
    for (release, records) in [
        (Release::Trixie, SplitRecords::Graphroot),
        (Release::Sid, SplitRecords::Imagestore),
    ] {
        let bench = Bench::hard(release)?;
        let images = bench.place("images");
        let split = Engine {
            imagestore: Some(images.clone()),
            ..Engine::default()
        };
        let engine = bench.engine("split", &split)?;
        bench.load(&engine)?;
        engine.ok(&["create", IMAGE, "true"])?;
        let holder = match records {
            SplitRecords::Graphroot => engine.graphroot(),
            SplitRecords::Imagestore => images,
        };
        let found = ids(&holder.join("overlay-layers/layers.json"))?;
        ensure!(found.len() >= 6, "{release:?} keeps records elsewhere");
        bench.same_from(&engine, "split")?;
        let built = "localhost/built:1";
        engine.build(built, &format!("FROM {IMAGE}\nRUN echo built >/built\n"))?;
        bench.same_as_copied(&engine, built, "built")?;
    }
    Ok(())
}

#[test]
fn a_transient_store_gives_the_same_repository_while_containers_run() -> Result<()> {
    for release in [Release::Trixie, Release::Sid] {
        let bench = Bench::hard(release)?;
        let transient = Engine {
            containers: Containers::Transient,
            ..Engine::default()
        };
        let engine = bench.engine("transient", &transient)?;
        bench.load(&engine)?;
        let run = [
            "run", "--detach", "--rm", "--name", "running", IMAGE, "sleep", "600",
        ];
        engine.ok(&run)?;
        let layers = bench
            .scene
            .machine
            .root()
            .join("run/engines/transient/storage/overlay-layers/volatile-layers.json");
        assert_eq!(ids(&layers)?.len(), 1, "{release:?}");
        bench.same_from(&engine, "transient")?;
        let change = "echo changed >/changed; rm /work/linked";
        engine.ok(&["exec", "running", "sh", "-c", change])?;
        let committed = "localhost/committed:1";
        engine.ok(&["commit", "--quiet", "running", committed])?;
        bench.same_as_copied(&engine, committed, "committed")?;
        engine.ok(&["rm", "--force", "--time", "0", "running"])?;
    }
    Ok(())
}

/// Where the kernel cannot shift owners, podman gives an image a second top layer for a container with other
/// ones. With `metacopy=on` all files in it are stubs, and its own content is in an older generation.
#[test]
fn copies_for_other_owners_give_the_same_repository() -> Result<()> {
    for release in [Release::Trixie, Release::Sid] {
        let bench = Bench::of(Scene::new(release, Kind::Xfs, small)?)?;
        let engine = bench.engine("mapped", &Engine::default().metacopy())?;
        bench.load(&engine)?;
        let before = engine.layers(IMAGE)?;
        let map = "0:100000:65536";
        let run = [
            "run", "--uidmap", map, "--gidmap", map, IMAGE, "stat", "-c", "%u", "/",
        ];
        let mut command = engine.command("podman");
        // As on a filesystem that cannot shift owners.
        command.env("_CONTAINERS_OVERLAY_DISABLE_IDMAP", "yes");
        assert_eq!(ok(command.args(run))?.text(), "0", "{release:?}");

        let file = engine.graphroot().join("overlay-images/images.json");
        let mut records: Vec<Value> = serde_json::from_slice(&std::fs::read(&file)?)?;
        let mapped = records[0]["mapped-layers"][0].clone();
        let copy = mapped.as_str().context("there is no copy")?.to_owned();
        let overlay = engine.graphroot().join("overlay").join(&copy);
        ensure!(overlay.join("diff1").is_dir(), "there is one generation");
        let files = ok(Command::new("find").arg(&overlay).args(["-type", "f"]))?.text();
        let is_stub = |file: &&str| {
            rustix::fs::lgetxattr(*file, "trusted.overlay.metacopy", &mut [0_u8; 64]).is_ok()
        };
        let stubs = files.lines().filter(is_stub).count();
        ensure!(stubs > 0, "all files have content: {files}");
        bench.same_from(&engine, "mapped")?;
        assert_eq!(engine.layers(IMAGE)?, before);

        // The copy is as good as the original.
        records[0]["layer"] = mapped;
        std::fs::write(&file, serde_json::to_vec(&records)?)?;
        bench.same_from(&engine, "copy")?;
    }
    Ok(())
}

#[test]
fn an_additional_store_on_a_read_only_filesystem_gives_the_same_repository() -> Result<()> {
    for release in [Release::Host, Release::Sid] {
        let bench = Bench::hard(release)?;
        let other = Filesystem::new(&Peers::from_env()?, Kind::Xfs, 1024)?;
        let maker = Podman::new(
            &bench.scene.machine,
            &other.path().join("maker"),
            &Engine::default(),
        )?;
        bench.load(&maker)?;
        let remount = |options: &str| {
            let mut mount = Command::new("mount");
            ok(mount.args(["-o", options]).arg(other.path()))
        };
        remount("remount,ro")?;
        let engine = bench.engine("elsewhere", &Engine::with_store(&maker.graphroot()))?;
        engine.ok(&["run", "--rm", IMAGE, "true"])?;
        bench.same_from(&engine, "locked")?;
        // As it comes in an image of an operating system: without lock files.
        remount("remount,rw")?;
        for lock in ["overlay-layers/layers.lock", "overlay-images/images.lock"] {
            std::fs::remove_file(maker.graphroot().join(lock))?;
        }
        remount("remount,ro")?;
        let report = bench.same_from(&engine, "elsewhere")?;
        let total = &report["total"];
        ensure!(
            total["reflinked"]["files"] == 0 && total["copied"]["files"].as_u64() > Some(20),
            "{total}"
        );

        // On the repository's filesystem, seen through a read-only mount: there its files are cloned.
        let shown = bench.place("shown");
        std::fs::create_dir(&shown)?;
        bench.scene.machine.sh(&format!(
            "mount --bind {from} {at} && mount -o remount,bind,ro {at}",
            from = bench.scene.own.graphroot().display(),
            at = shown.display()
        ))?;
        let engine = bench.engine("same-disk", &Engine::with_store(&shown))?;
        engine.ok(&["run", "--rm", IMAGE, "true"])?;
        let report = bench.same_from(&engine, "same-disk")?;
        let total = &report["total"];
        ensure!(
            total["reflinked"]["files"].as_u64() > Some(20) && total["copied"]["files"] == 0,
            "{total}"
        );
    }
    Ok(())
}

#[test]
fn a_store_that_we_publish_is_a_source_of_the_same_image() -> Result<()> {
    for (release, layout) in [
        (Release::Sid, Layout::Blob),
        (Release::Sid, Layout::Mounted),
        (Release::Host, Layout::Mounted),
    ] {
        let bench = Bench::hard(release)?;
        let consumer = bench.scene.published(layout)?;
        // Makes its storage.
        consumer.ok(&["run", "--rm", IMAGE, "true"])?;
        let report = bench.same_from(&consumer, "published")?;
        let total = &report["total"];
        ensure!(total["inlined"]["files"].as_u64() > Some(0), "{total}");
        // What podman builds on it has layers of both kinds.
        let built = "localhost/built:1";
        let file = format!("FROM {IMAGE}\nRUN echo built >/built && rm -rf /work/renamed\n");
        consumer.build(built, &file)?;
        bench.same_as_copied(&consumer, built, "built")?;
    }
    Ok(())
}

#[test]
fn a_published_store_that_is_not_mounted_is_refused_by_layer() -> Result<()> {
    let bench = Bench::hard(Release::Host)?;
    let consumer = bench.scene.published(Layout::Mounted)?;
    consumer.ok(&["images"])?;
    let layers = bench.scene.own.layers(IMAGE)?;
    // As after a boot without the unit that mounts.
    bench.scene.machine.sh(
        "awk '$5 ~ \"^/run/composefs-store/\" { print $5 }' /proc/self/mountinfo | sort -r | xargs umount",
    )?;
    let store = Store::init(&bench.scene.machine, &bench.place("target"))?;
    let refused = import_in(&consumer, &store, &["--tag", IMAGE, IMAGE])?.refused()?;
    ensure!(
        layers.iter().any(|layer| refused.stderr.contains(layer)),
        "{refused}"
    );
    assert_eq!(store.objects()?, Vec::<PathBuf>::new());
    store.ok(&["fsck"])?;
    Ok(())
}

/// Gives a store another shape.
type Shape = fn(&Reshape);

/// Changes each layer.
fn each(store: &Reshape, change: fn(&Reshape, &LayerId)) {
    for layer in store.layers() {
        change(store, &layer);
    }
}

/// Changes the top layer.
fn last(store: &Reshape, change: fn(&Reshape, &LayerId)) {
    change(store, store.layers().last().expect("a layer"));
}

#[test]
fn every_shape_that_podman_gives_a_store_is_the_same_repository() -> Result<()> {
    let bench = Bench::hard(Release::Host)?;
    let shapes: [(&str, Shape); 4] = [
        ("zstd-tar-split", |store| {
            each(store, Reshape::zstd_tar_split);
        }),
        ("generations", |store| {
            each(store, Reshape::generations);
        }),
        ("volatile", |store| last(store, Reshape::volatile)),
        ("vfs-driver", Reshape::vfs),
    ];
    for (name, reshape) in shapes {
        let root = bench.copied_root(name)?;
        reshape(&Reshape::new(&root));
        bench
            .same_at(&root, name)
            .with_context(|| name.to_owned())?;
    }
    for records in [SplitRecords::Graphroot, SplitRecords::Imagestore] {
        let name = format!("split-{records:?}");
        let images = bench.place(&format!("{name}-images"));
        let split = Engine {
            imagestore: Some(images.clone()),
            ..Engine::default()
        };
        let engine = bench.engine(&name, &split)?;
        let root = bench.copied_root(&format!("{name}-root"))?;
        std::fs::rename(&root, engine.graphroot())?;
        Reshape::new(&engine.graphroot()).split(&images, records);
        bench.same_from(&engine, &name)?;
    }

    // A layer that is being made or removed.
    let root = bench.copied_root("incomplete")?;
    last(&Reshape::new(&root), Reshape::incomplete);
    let layer = Reshape::new(&root).layers().pop().context("a layer")?;
    let root = root.display().to_string();
    bench
        .scene
        .store
        .finish(&["import", "--storage-root", &root, IMAGE])?
        .refused_with(&[layer.as_str(), "incomplete"])?;
    assert_eq!(bench.scene.store.objects()?, Vec::<PathBuf>::new());
    Ok(())
}

/// Layers whose names fit into a table of contents, of which a flat layer's are.
fn partial_pull() -> Result<Bench> {
    let scene = Scene::new(Release::Host, Kind::Xfs, |dir| {
        let mut lower: Vec<Member> = [0, 1, 64, 65, 4096, 4097, 300_000]
            .into_iter()
            .map(|size| Member::file(format!("sizes/{size}"), noise(70, size)))
            .collect();
        lower.extend([
            // Behind the file in the order of names, which is that of the table of contents here.
            Member::hardlink("sizes/linked", "sizes/300000"),
            Member::symlink("symlink", "sizes/4096"),
            Member::fifo("fifo"),
            Member::char_device("null", 1, 3),
            Member::file("\u{fc}n\u{ef}code \n", noise(71, 900)).xattr("user.key", "value"),
            Member::file(format!("{}/deep", "d".repeat(90)), noise(72, 900)).mtime(-5, 7),
            Member::dir("opaque"),
            Member::file("opaque/below", noise(73, 900)),
            Member::file("gone", noise(74, 900)),
        ]);
        let upper = vec![
            Member::whiteout("", "gone"),
            Member::dir("opaque"),
            Member::opaque("opaque"),
            Member::file("opaque/above", noise(75, 70_000)),
            Member::file("sizes/4096", noise(76, 4096)),
            Member::file("same", noise(70, 4097)),
        ];
        Fixture::with_layers(dir, vec![lower, upper])
    })?;
    Bench::of(scene)
}

#[test]
fn flat_layers_of_partial_pulls_give_the_same_repository() -> Result<()> {
    let bench = partial_pull()?;
    let root = bench.copied_root("flat")?;
    let store = Reshape::new(&root);
    each(&store, Reshape::flat);
    bench.same_at(&root, "flat")?;
    // The same of an image whose top layer only its table of contents identifies.
    let layer = store.layers().pop().context("a layer")?;
    let id = store.toc_only(&layer);
    assert_ne!(id, layer);
    bench.same_at(&root, "toc-only")
}

#[test]
fn a_layer_without_tar_split_is_imported_only_as_another_one() -> Result<()> {
    let scene = Scene::new(Release::Sid, Kind::Xfs, |dir| {
        let lower = vec![
            Member::file("sizes/large", noise(80, 300_000)).mtime(1_500_000_000, 123_456_789),
            Member::file("sizes/small", "small")
                .owner(1000, 1001)
                .mode(0o4711),
            Member::hardlink("linked", "sizes/large"),
            Member::dir("opaque"),
            Member::file("opaque/below", noise(81, 900)),
            Member::file("gone", noise(82, 900)),
        ];
        let upper = vec![
            Member::whiteout("", "gone"),
            Member::dir("opaque"),
            Member::opaque("opaque"),
            Member::file("opaque/above", noise(83, 70_000)).xattr("user.key", "value"),
            Member::symlink("symlink", "sizes/large"),
        ];
        Fixture::with_layers(dir, vec![lower, upper])
    })?;
    let expected = scene.own.tree(IMAGE, &[])?;
    let root = scene.own.graphroot();
    let tar_splits = Reshape::new(&root);
    for layer in &tar_splits.layers()[1..] {
        tar_splits.without_tar_split(layer);
    }
    scene
        .store
        .finish(&scene.import_arguments().each_ref().map(String::as_str))?
        .refused_with(&["has no tar-split", "--allow-synthetic"])?;
    assert_eq!(scene.store.objects()?, Vec::<PathBuf>::new());
    scene.store.ok(&["fsck"])?;

    let root = root.display().to_string();
    let import = |store: &Store| -> Result<Value> {
        let arguments = [
            "--json",
            "import",
            "--allow-synthetic",
            "--storage-root",
            &root,
            IMAGE,
        ];
        let report: Value = serde_json::from_slice(&store.ok(&arguments)?.stdout)?;
        store.ok(&["fsck"])?;
        Ok(report["imported"][0].clone())
    };
    let first = import(&scene.store)?;
    assert_eq!(first["warnings"][0]["layers"], 2, "{first}");
    let other = Store::init(&scene.machine, &scene.disk.path().join("other"))?;
    assert_eq!(import(&other)?["manifest"], first["manifest"]);
    Contents::of(other.repo())?.must_equal("again", &Contents::of(scene.store.repo())?, "once")?;
    assert_eq!(import(&scene.store)?["outcome"], "present");

    let consumer = scene.consumer(Layout::Blob)?;
    scene.publish(Layout::Blob, &consumer)?;
    consumer
        .tree(IMAGE, &[])?
        .must_equal("synthetic layers", &expected, "podman's own")
}

#[test]
fn an_image_that_was_squashed_is_the_same_as_its_copy() -> Result<()> {
    for release in [Release::Host, Release::Sid] {
        let bench = Bench::hard(release)?;
        let own = &bench.scene.own;
        let file =
            format!("FROM {IMAGE}\nRUN echo one >/one\nRUN echo two >/two && rm /work/linked\n");
        for option in ["--squash", "--squash-all"] {
            let image = format!("localhost/{}:1", option.trim_matches('-'));
            own.build_with(&image, &file, &[option])?;
            bench.same_as_copied(own, &image, option.trim_matches('-'))?;
        }
        own.ok(&["run", "--name", "changed", IMAGE, "touch", "/changed"])?;
        own.ok(&[
            "commit",
            "--quiet",
            "--squash",
            "changed",
            "localhost/commit:1",
        ])?;
        bench.same_as_copied(own, "localhost/commit:1", "commit")?;
    }
    Ok(())
}
