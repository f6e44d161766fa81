//! Other implementations of the formats: they accept what we write, and we accept what they write.

use crate::scene::{IMAGE, Scene};
use anyhow::{Context, Result, ensure};
use composefs_image::{Dialect, Format, WriteOptions};
use integration::store::Layout;
use integration::{Finished, Kind, Machine, Peers, Release, Store, ok};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// `cfsctl` on this machine's own namespace; it needs no other.
pub(crate) fn cfsctl(repo: &Path, args: &[&str]) -> Result<Command> {
    let mut command = Command::new(Peers::from_env()?.cfsctl()?);
    command.arg("--repo").arg(repo).args(args);
    Ok(command)
}

pub(crate) fn cfsctl_ok(repo: &Path, args: &[&str]) -> Result<Finished> {
    ok(&mut cfsctl(repo, args)?)
}

pub(crate) fn cfsctl_json(repo: &Path, args: &[&str]) -> Result<Value> {
    Ok(serde_json::from_slice(&cfsctl_ok(repo, args)?.stdout)?)
}

/// What must be equal in two repositories that hold the same image.
#[derive(Debug, PartialEq)]
struct Inspected {
    manifest: String,
    config: String,
    erofs: String,
}

fn inspect(repo: &Path, name: &str) -> Result<Inspected> {
    let image = cfsctl_json(repo, &["oci", "inspect", name])?;
    let field = |key: &str| -> Result<String> {
        let text = image[key].as_str();
        Ok(text
            .with_context(|| format!("no {key} in {image}"))?
            .to_owned())
    };
    Ok(Inspected {
        manifest: field("manifest")?,
        config: field("config")?,
        erofs: field("composefs_erofs")?,
    })
}

/// A repository that `cfsctl` has made and pulled the scene's image into.
fn pulled_by_cfsctl(scene: &Scene, algorithm: &str) -> Result<std::path::PathBuf> {
    let repo = scene.disk.path().join(format!("cfsctl-{algorithm}"));
    let id = format!("fsverity-{algorithm}-12");
    cfsctl_ok(&repo, &["init", "--insecure", "--algorithm", &id])?;
    let source = format!("oci:{}:latest", scene.fixture.layout().display());
    cfsctl_ok(&repo, &["oci", "pull", &source, IMAGE])?;
    Ok(repo)
}

#[test]
fn cfsctl_gives_the_same_image_digest_with_sha512() -> Result<()> {
    let scene = Scene::hard(Release::Host, Kind::Btrfs)?;
    let theirs = pulled_by_cfsctl(&scene, "sha512")?;
    scene.import()?;
    assert_eq!(
        inspect(scene.store.repo(), IMAGE)?,
        inspect(&theirs, IMAGE)?
    );
    Ok(())
}

#[test]
fn cfsctl_gives_the_same_image_digest_with_sha256() -> Result<()> {
    let scene = Scene::hard(Release::Host, Kind::Btrfs)?;
    let theirs = pulled_by_cfsctl(&scene, "sha256")?;
    let repo = scene.disk.path().join("ours-sha256");
    let ours = Store::init_with(&scene.machine, &repo, &["--algorithm", "sha256"])?;
    let arguments = scene.import_arguments();
    ours.ok(&arguments.each_ref().map(String::as_str))?;
    assert_eq!(inspect(&repo, IMAGE)?, inspect(&theirs, IMAGE)?);
    Ok(())
}

#[test]
fn cfsctl_accepts_lists_and_keeps_what_we_wrote() -> Result<()> {
    let scene = Scene::hard(Release::Host, Kind::Xfs)?;
    let podman = scene.published(Layout::Mounted)?;
    let repo = scene.store.repo();
    let fsck = || -> Result<()> {
        for args in [&["fsck", "--json"][..], &["oci", "fsck", "--json"]] {
            let found = cfsctl_json(repo, args)?;
            ensure!(found["ok"] == true, "{found}");
        }
        Ok(())
    };
    fsck()?;
    let images = cfsctl_json(repo, &["oci", "images", "--json"])?;
    ensure!(images["images"][0]["name"] == IMAGE, "{images}");

    let expected = scene.own.tree(IMAGE, &[])?;
    let before = scene.store.objects()?;
    cfsctl_ok(repo, &["gc"])?;
    assert_eq!(scene.store.objects()?, before);
    fsck()?;
    scene.store.ok(&["fsck"])?;
    podman
        .tree(IMAGE, &[])?
        .must_equal("after cfsctl gc", &expected, "from podman's own")
}

#[test]
fn we_accept_list_and_keep_what_cfsctl_wrote() -> Result<()> {
    let scene = Scene::hard(Release::Host, Kind::Xfs)?;
    let repo = pulled_by_cfsctl(&scene, "sha512")?;
    let store = Store::open(&scene.machine, &repo);
    store.ok(&["fsck"])?;
    let listed = store.ok(&["images"])?;
    ensure!(listed.text().contains(IMAGE), "{listed}");
    let image = inspect(&repo, IMAGE)?;
    store.ok(&["gc"])?;
    store.ok(&["fsck"])?;
    assert_eq!(inspect(&repo, IMAGE)?, image);
    ensure!(cfsctl_json(&repo, &["oci", "fsck", "--json"])?["ok"] == true);

    // Importing over it changes nothing.
    let arguments = scene.import_arguments();
    store.ok(&arguments.each_ref().map(String::as_str))?;
    assert_eq!(inspect(&repo, IMAGE)?, image);
    Ok(())
}

/// The C tools read the image, and what they make of it is the same tree to them.
///
/// Not the same bytes: composefs-rs orders shared xattrs in its own way, and an image in a repository
/// must be the one that it would make.
fn c_tools_read(machine: &Machine, image: &Path) -> Result<()> {
    let script = "composefs-info dump \"$1\" >/tmp/dump && test -s /tmp/dump && \
         mkcomposefs --min-version=1 --max-version=1 --from-file /tmp/dump /tmp/again && \
         composefs-info dump /tmp/again | cmp /tmp/dump -";
    ok(machine
        .command("sh")
        .args(["-euc", script, "sh"])
        .arg(image))?;
    ok(machine.command("fsck.erofs").arg(image))?;
    Ok(())
}

#[test]
fn c_tools_read_every_image_that_we_wrote() -> Result<()> {
    let scene = Scene::hard(Release::Sid, Kind::Btrfs)?;
    scene.published(Layout::Blob)?;
    let layers = scene
        .store
        .repo()
        .join("composefs-store/podman-store/overlay");
    let mut images: Vec<_> = std::fs::read_dir(&layers)?
        .flatten()
        .map(|layer| layer.path().join("composefs-data/composefs.blob"))
        .filter(|blob| blob.exists())
        .collect();
    assert_eq!(images.len(), scene.own.layers(IMAGE)?.len());
    for image in std::fs::read_dir(scene.store.repo().join("images"))?.flatten() {
        if image.file_type()?.is_symlink() {
            images.push(image.path());
        }
    }
    for image in images {
        c_tools_read(&scene.machine, &image)?;
    }
    Ok(())
}

/// What our writer makes of the C tools' dump of `image` must be `image`.
fn we_reproduce(machine: &Machine, image: &Path) -> Result<()> {
    let dump = ok(machine.command("composefs-info").arg("dump").arg(image))?.stdout;
    let tree = composefs_image::dumpfile::read_dump(dump.as_slice(), Dialect::C)?;
    let options = WriteOptions {
        format: Format::V1,
        dialect: Dialect::C,
    };
    let mut ours = Vec::new();
    composefs_image::write_image(&tree, &options, &mut ours)?;
    ensure!(
        ours == std::fs::read(image)?,
        "another image of {}",
        image.display()
    );
    Ok(())
}

#[test]
fn we_make_every_image_that_mkcomposefs_made_byte_for_byte() -> Result<()> {
    let scene = Scene::hard(Release::Sid, Kind::Btrfs)?;
    let mut images = Vec::new();
    // Layers with raw whiteouts and opaque directories, and the tree of a container.
    let container = scene.own.ok(&["create", IMAGE])?.text();
    let merged = scene.own.ok(&["mount", &container])?.text();
    let mut sources = vec![std::path::PathBuf::from(merged)];
    for layer in scene.own.layers(IMAGE)? {
        sources.push(scene.own.graphroot().join(format!("overlay/{layer}/diff")));
    }
    for source in sources {
        let image = scene.disk.path().join(format!("image{}", images.len()));
        ok(scene
            .machine
            .command("mkcomposefs")
            .args(["--min-version=1", "--max-version=1"])
            .args([&source, &image]))?;
        images.push(image);
    }
    ensure!(images.len() > 5);
    for image in images {
        we_reproduce(&scene.machine, &image)?;
    }
    Ok(())
}
