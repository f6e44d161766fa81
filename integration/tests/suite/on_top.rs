//! What podman does on top of our images: save, push, commit, load and pull; and what becomes of an image
//! that something was built on.

use crate::builds::built_tree;
use crate::scene::{IMAGE, Scene, unique};
use anyhow::{Context, Result, ensure};
use flate2::read::MultiGzDecoder;
use integration::fixture::noise;
use integration::oci::digest;
use integration::store::Layout;
use integration::tar::Member;
use integration::{Access, DockerRegistry, Fixture, Kind, Podman, Release, Tree, finish, ok};
use serde_json::Value;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};

/// The config's digest, and the diff IDs of the blobs, of the only image in an OCI layout.
#[derive(Debug, PartialEq)]
struct Content {
    config: String,
    diff_ids: Vec<String>,
}

impl Content {
    /// Reads every blob; what the config says of the layers must be true.
    fn of_layout(dir: &Path) -> Result<Self> {
        let index: Value = serde_json::from_slice(&std::fs::read(dir.join("index.json"))?)?;
        let blob = |descriptor: &Value| -> Result<Vec<u8>> {
            let name = descriptor["digest"].as_str().context("no digest")?;
            let bytes = std::fs::read(dir.join("blobs").join(name.replace(':', "/")))?;
            ensure!(digest(&bytes) == name, "{name} has other bytes");
            Ok(bytes)
        };
        let manifest: Value = serde_json::from_slice(&blob(&index["manifests"][0])?)?;
        let config: Value = serde_json::from_slice(&blob(&manifest["config"])?)?;
        let mut diff_ids = Vec::new();
        for layer in manifest["layers"].as_array().context("no layers")? {
            let mut bytes = blob(layer)?;
            if bytes.starts_with(&[0x1f, 0x8b]) {
                let mut tar = Vec::new();
                MultiGzDecoder::new(&bytes[..]).read_to_end(&mut tar)?;
                bytes = tar;
            }
            diff_ids.push(digest(&bytes));
        }
        let declared = config["rootfs"]["diff_ids"].as_array();
        let declared: Vec<&str> = declared
            .context("no diff IDs")?
            .iter()
            .filter_map(Value::as_str)
            .collect();
        ensure!(diff_ids == declared, "{diff_ids:?}, not {declared:?}");
        let config = manifest["config"]["digest"].as_str().context("no digest")?;
        Ok(Self {
            config: config.to_owned(),
            diff_ids,
        })
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// The records of layers that an engine has in its own storage, without those of containers.
fn own_layers(podman: &Podman) -> Result<Vec<Value>> {
    let file = podman.graphroot().join("overlay-layers/layers.json");
    match std::fs::read(&file) {
        Ok(text) => Ok(serde_json::from_slice(&text)?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| text(&file)),
    }
}

/// Of a child of our image, an engine stored its own layers alone, and they stand on ours.
fn only_the_child_is_stored(podman: &Podman, ours: &[PathBuf]) -> Result<()> {
    let layers = own_layers(podman)?;
    let is_ours = |id: &Value| {
        let is = |path: &PathBuf| {
            path.file_name()
                .is_some_and(|name| Some(name) == id.as_str().map(AsRef::as_ref))
        };
        ours.iter().any(is)
    };
    let on_ours = layers.iter().filter(|layer| is_ours(&layer["parent"]));
    ensure!(on_ours.count() == 1, "stored: {layers:?}");
    let again = layers.iter().find(|layer| is_ours(&layer["id"]));
    ensure!(again.is_none(), "stored again: {again:?}");
    Ok(())
}

/// The directories of published layers.
fn published_layers(scene: &Scene) -> Result<Vec<PathBuf>> {
    let overlay = "composefs-store/podman-store/overlay";
    let mut found: Vec<PathBuf> = std::fs::read_dir(scene.store.repo().join(overlay))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    found.retain(|path| path.file_name().is_some_and(|name| name.len() == 64));
    found.sort();
    Ok(found)
}

/// What [`built_tree`] builds.
const CHILD: &str = "localhost/built:latest";

/// What a container changes before it is committed; the times of what it changes are set at the end.
const CHANGES: &str = "\
chmod 0751 /usr/lib/large.bin
mv /work/renamed /work/new-name
rm -r /work/replaced; mkdir /work/replaced; echo new >/work/replaced/new
echo more >>/data/sizes/65; rm /data/sizes/64
touch -d @1600000001 /work/replaced/new /work/replaced /work /data/sizes/65 /data/sizes
";

fn committed_tree(podman: &Podman) -> Result<Tree> {
    const COMMITTED: &str = "localhost/committed:latest";
    podman.ok(&["run", "--name", "changed", IMAGE, "sh", "-euc", CHANGES])?;
    podman.ok(&["commit", "--quiet", "changed", COMMITTED])?;
    podman.ok(&["rm", "changed"])?;
    let tree = podman.tree(COMMITTED, &[])?;
    podman.ok(&["rmi", COMMITTED])?;
    Ok(tree)
}

fn everything_on_top_works(release: Release, layout: Layout) -> Result<()> {
    let scene = Scene::hard(release, Kind::Xfs)?;
    let podman = scene.published(layout)?;
    let ours = published_layers(&scene)?;
    let expected = Content::of_layout(scene.fixture.layout())?;

    // save and push, blob by blob.
    let saved = scene.disk.path().join("saved");
    podman.ok(&[
        "save",
        "--quiet",
        "--format",
        "oci-dir",
        "--output",
        &text(&saved),
        IMAGE,
    ])?;
    assert_eq!(Content::of_layout(&saved)?, expected, "saved");
    let registry = DockerRegistry::start(scene.machine.peers(), Access::Open)?;
    let pushed = registry.image("pushed:1");
    podman.ok(&["push", "--quiet", "--tls-verify=false", IMAGE, &pushed])?;
    let copied = scene.disk.path().join("copied");
    ok(podman
        .command("skopeo")
        .args(["copy", "--quiet", "--src-tls-verify=false"])
        .args([
            format!("docker://{pushed}"),
            format!("oci:{}:x", copied.display()),
        ]))?;
    assert_eq!(Content::of_layout(&copied)?, expected, "pushed");

    // commit; a build is in `builds`.
    let tree = committed_tree(&scene.own)?;
    committed_tree(&podman)?.must_equal("committed on ours", &tree, "on podman's own")?;
    ensure!(own_layers(&podman)?.is_empty(), "layers are left");

    // A child that another podman made: from an archive, and from a registry.
    let tree = built_tree(&scene.own)?;
    let archive = scene.disk.path().join("child.tar");
    scene
        .own
        .ok(&["save", "--quiet", "--output", &text(&archive), CHILD])?;
    podman.ok(&["load", "--quiet", "--input", &text(&archive)])?;
    only_the_child_is_stored(&podman, &ours)?;
    same_tree(&podman, CHILD, &tree)?;
    podman.ok(&["rmi", CHILD])?;

    let child = registry.image("child:1");
    scene
        .own
        .ok(&["push", "--quiet", "--tls-verify=false", CHILD, &child])?;
    podman.ok(&["pull", "--quiet", "--tls-verify=false", &child])?;
    only_the_child_is_stored(&podman, &ours)?;
    same_tree(&podman, &child, &tree)?;

    // And out again, our layers and podman's in one image.
    let saved = scene.disk.path().join("saved-child");
    podman.ok(&[
        "save",
        "--quiet",
        "--format",
        "oci-dir",
        "--output",
        &text(&saved),
        &child,
    ])?;
    let saved = Content::of_layout(&saved)?;
    assert_eq!(saved.diff_ids[..expected.diff_ids.len()], expected.diff_ids);
    assert_eq!(published_layers(&scene)?, ours);
    scene.store.ok(&["fsck"])?;
    Ok(())
}

fn same_tree(podman: &Podman, image: &str, expected: &Tree) -> Result<()> {
    let mut found = podman.tree(image, &[])?;
    if let Some(run) = found.entries.get_mut(b"run".as_slice()) {
        run.mtime = (0, 0);
    }
    found.must_equal("on our layers", expected, "on podman's own")
}

#[test]
fn save_push_commit_load_and_pull_work_on_top_with_podman_4_in_layout_mounted() -> Result<()> {
    everything_on_top_works(Release::Host, Layout::Mounted)
}

#[test]
fn save_push_commit_load_and_pull_work_on_top_with_podman_5_4_in_layout_blob() -> Result<()> {
    everything_on_top_works(Release::Trixie, Layout::Blob)
}

#[test]
fn save_push_commit_load_and_pull_work_on_top_with_podman_5_4_in_layout_mounted() -> Result<()> {
    everything_on_top_works(Release::Trixie, Layout::Mounted)
}

#[test]
fn save_push_commit_load_and_pull_work_on_top_with_podman_5_8_in_layout_blob() -> Result<()> {
    everything_on_top_works(Release::Sid, Layout::Blob)
}

#[test]
fn save_push_commit_load_and_pull_work_on_top_with_podman_5_8_in_layout_mounted() -> Result<()> {
    everything_on_top_works(Release::Sid, Layout::Mounted)
}

/// A small image with content that no other test has.
pub(crate) fn small(dir: &Path) -> Result<Fixture> {
    let seed = unique();
    let layer = |n: u64| {
        let file = |f| Member::file(format!("layer{n}-{f}"), noise(seed + 10 * n + f, 3000));
        (0..5).map(file).collect()
    };
    Fixture::of_own_layers(dir, seed, (1..4).map(layer).collect())
}

/// Short names of layers by directory.
pub(crate) fn link_ids(layers: &[PathBuf]) -> Result<Vec<String>> {
    let read = |path: &PathBuf| Ok(std::fs::read_to_string(path.join("link"))?);
    layers.iter().map(read).collect()
}

fn a_child_keeps_the_layers_it_is_built_on(release: Release, layout: Layout) -> Result<()> {
    let scene = Scene::new(release, Kind::Xfs, small)?;
    let podman = scene.published(layout)?;
    let conf = text(podman.storage_conf());
    let unpublish = |options: &[&str]| {
        let command = ["unpublish", "--storage-conf", &conf, IMAGE];
        scene.store.finish(&[&command, options].concat())
    };
    let layers = published_layers(&scene)?;
    let links = link_ids(&layers)?;
    podman.build(
        "localhost/child",
        &format!("FROM {IMAGE}\nRUN echo child >/child\n"),
    )?;

    unpublish(&[])?.refused_with(&["is built on it", "--when-unused"])?;
    podman.ok(&["run", "--rm", IMAGE, "true"])?;
    unpublish(&["--when-unused"])?.success()?;
    podman
        .finish(&["run", "--rm", "--pull", "never", IMAGE, "true"])?
        .refused()?;
    scene.store.ok(&["untag", IMAGE])?;
    let gc = ["gc", "--storage-conf", &conf];
    scene.store.ok(&gc)?;
    assert_eq!(published_layers(&scene)?, layers);
    let read = "cat /child && for file in /layer*; do cat \"$file\" >/tmp/read || exit 1; done";
    podman.ok(&["run", "--rm", "localhost/child", "sh", "-euc", read])?;

    // Published again they are the same layers, whose layout cannot change.
    scene.import()?;
    let other = match layout {
        Layout::Blob => Layout::Mounted,
        Layout::Mounted => Layout::Blob,
    };
    let metacopy = text(scene.consumer(Layout::Blob)?.storage_conf());
    let publish = |layout: Layout, conf: &str| {
        let layout = layout.word();
        let command = ["publish", "--storage-conf", conf, "--layout", layout, IMAGE];
        scene.store.finish(&command)
    };
    publish(other, &metacopy)?.refused_with(&["a layer's layout cannot change"])?;
    publish(layout, &conf)?.success()?;
    assert_eq!(published_layers(&scene)?, layers);
    assert_eq!(link_ids(&layers)?, links);
    podman.ok(&["run", "--rm", "localhost/child", "sh", "-euc", read])?;

    unpublish(&["--when-unused"])?.success()?;
    scene.store.ok(&["untag", IMAGE])?;
    scene.store.ok(&gc)?;
    podman.ok(&["rmi", "localhost/child"])?;
    scene.store.ok(&gc)?;
    assert_eq!(published_layers(&scene)?, [] as [PathBuf; 0]);
    assert_eq!(scene.store.objects()?, [] as [PathBuf; 0]);
    scene.store.ok(&["fsck"])?;
    Ok(())
}

#[test]
fn a_child_image_of_podman_4_keeps_the_layers_it_is_built_on() -> Result<()> {
    a_child_keeps_the_layers_it_is_built_on(Release::Host, Layout::Mounted)
}

#[test]
fn a_child_image_of_podman_5_8_keeps_the_layers_it_is_built_on() -> Result<()> {
    a_child_keeps_the_layers_it_is_built_on(Release::Sid, Layout::Blob)
}

/// The record of an unpublished image goes with its last container, also where all its layers are those of
/// another image and stay.
#[test]
fn the_record_of_an_unpublished_image_goes_with_its_last_container() -> Result<()> {
    const OTHER: &str = "localhost/other:latest";
    let seed = unique();
    let layers = |count: u64| {
        let layer = |n| vec![Member::file(format!("layer{n}"), noise(seed + n, 3000))];
        (0..count).map(layer).collect()
    };
    let scene = Scene::new(Release::Sid, Kind::Xfs, |dir| {
        Fixture::of_own_layers(dir, seed, layers(2))
    })?;
    let other = scene.disk.path().join("other");
    Fixture::of_own_layers(&other, seed, layers(3))?;
    let podman = scene.published(Layout::Mounted)?;
    let conf = text(podman.storage_conf());
    let other = format!("oci:{}", other.display());
    scene.store.ok(&["import", "--tag", OTHER, &other])?;
    scene.publish_image(OTHER, Layout::Mounted, &podman)?;

    podman.ok(&["run", "--detach", "--name", "old", IMAGE, "sleep", "6000"])?;
    let unpublish = ["unpublish", "--when-unused", "--storage-conf", &conf, IMAGE];
    scene.store.ok(&unpublish)?;
    let collect = |options: &[&str]| -> Result<serde_json::Value> {
        let command = [&["--json", "gc", "--storage-conf", &conf], options].concat();
        Ok(serde_json::from_slice(&scene.store.ok(&command)?.stdout)?)
    };
    let done = collect(&[])?;
    assert_eq!(done["plan"]["unpublished"], serde_json::json!([]));
    podman.ok(&["commit", "--quiet", "old", "localhost/committed"])?;
    podman.ok(&["rmi", "--no-prune", "localhost/committed"])?;

    podman.ok(&["rm", "--force", "--time", "0", "old"])?;
    let planned = collect(&["--dry-run"])?["plan"]["unpublished"].clone();
    let kinds: Vec<_> = planned
        .as_array()
        .into_iter()
        .flatten()
        .map(|it| &it["kind"])
        .collect();
    assert_eq!(kinds, ["image-record"], "{planned}");
    let done = collect(&[])?;
    assert_eq!(done["plan"]["unpublished"], planned);
    assert_eq!(done["swept"]["image_records"], 1, "{done}");
    let listed = [
        "images",
        "--all",
        "--noheading",
        "--format",
        "{{.Repository}}:{{.Tag}}",
    ];
    assert_eq!(podman.ok(&listed)?.text(), OTHER);
    podman.ok(&["run", "--rm", OTHER, "cat", "/layer2"])?;
    scene.store.ok(&["fsck"])?;
    Ok(())
}

#[test]
fn publish_and_unpublish_killed_at_any_step_can_be_done_again() -> Result<()> {
    let scene = Scene::new(Release::Host, Kind::Xfs, small)?;
    let podman = scene.published(Layout::Mounted)?;
    let conf = text(podman.storage_conf());
    let unpublish = ["unpublish", "--storage-conf", &conf, IMAGE];
    let publish = [
        "publish",
        "--storage-conf",
        &conf,
        "--layout",
        "mounted",
        IMAGE,
    ];
    let killed = |step: &str, command: &[&str]| -> Result<()> {
        let done = finish(&mut scene.store.command_killed_at(step, command)?)?;
        ensure!(done.status.signal() == Some(9), "{step}: {done}");
        podman.ok(&["images", "--quiet"])?;
        Ok(())
    };
    for step in [
        "unpublish-image-hidden",
        "unpublish-image-dropped",
        "unpublish-image-removed",
        "unpublish-layers-removed",
        "unpublish-unmounted",
        "unpublish-ref:2",
    ] {
        killed(step, &unpublish)?;
        scene.store.ok(&["gc", "--storage-conf", &conf])?;
        assert_eq!(published_layers(&scene)?, [] as [PathBuf; 0], "{step}");
        let images = scene
            .store
            .repo()
            .join("composefs-store/podman-store/overlay-images");
        let left = std::fs::read_dir(images)?.count();
        assert_eq!(left, 2, "{step}: more than a lock and a list");
        scene.store.ok(&publish)?;
        podman.ok(&["run", "--rm", IMAGE, "cat", "/layer1-0"])?;
    }
    for step in [
        "publish-images-committed",
        "publish-layers-staged",
        "publish-layers-committed",
        "publish-image-committed",
    ] {
        scene.store.ok(&unpublish)?;
        killed(step, &publish)?;
        scene.store.ok(&publish)?;
        podman.ok(&["run", "--rm", IMAGE, "cat", "/layer1-0"])?;
    }
    scene.store.ok(&["fsck"])?;
    Ok(())
}
