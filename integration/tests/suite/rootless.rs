//! Ordinary users: their own podman, their own repository, no root anywhere.

use crate::scene::IMAGE;
use anyhow::{Context, Result, ensure};
use integration::fixture::noise;
use integration::tar::Member;
use integration::user::SubordinateIds;
use integration::{
    Access, DockerRegistry, Filesystem, Fixture, Kind, Machine, Peers, Release, User, finish, ok,
};
use serde_json::Value;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// Layers with several owners, and with files that nobody can read without a capability.
fn fixture(dir: &Path) -> Result<Fixture> {
    let mut first = vec![
        Member::dir("home").owner(1000, 1000),
        Member::file("home/secret", noise(40, 5000))
            .owner(1000, 1000)
            .mode(0),
        Member::file("home/root-secret", noise(41, 5000)).mode(0),
        Member::file("home/suid", noise(42, 5000))
            .owner(33, 34)
            .mode(0o6711),
        Member::dir("home/closed").owner(65_533, 65_533).mode(0),
        Member::file("home/closed/inside", noise(43, 70_000)).owner(65_533, 1),
        Member::file("home/closed/small", "small").owner(65_533, 1),
        Member::file("gone", noise(44, 3000)),
        Member::dir("opaque"),
        Member::file("opaque/gone", noise(45, 3000)),
    ];
    first.extend((0..30).map(|n| {
        let owner = 1000 + u32::try_from(n).unwrap_or_default();
        Member::file(format!("home/{n}"), noise(400 + n, 9000)).owner(owner, owner)
    }));
    let second = vec![
        Member::file(".wh.gone", []),
        Member::dir("opaque"),
        Member::file("opaque/.wh..wh..opq", []),
        Member::file("opaque/new", noise(46, 3000)).owner(7, 8),
    ];
    Fixture::with_layers(dir, vec![first, second])
}

struct Scene {
    user: User,
    machine: Arc<Machine>,
    fixture: Fixture,
    disk: Filesystem,
}

impl Scene {
    /// A user whose podman has the image.
    fn new(release: Release) -> Result<Self> {
        let peers = Peers::from_env()?;
        let disk = Filesystem::new(&peers, Kind::Xfs, 1024)?;
        let fixture = fixture(&disk.path().join("layout"))?;
        let machine = Machine::start(&peers, release)?;
        let user = User::add(&machine, &disk.path().join("home"), SubordinateIds::Some)?;
        ok(user.command("sh").args([
            "-euc",
            r#"mkdir -p "$HOME/.config/containers"
            printf '[storage]\ndriver = "overlay"\n' >"$HOME/.config/containers/storage.conf"
            skopeo copy --quiet "oci:$1:latest" "containers-storage:$2""#,
            "sh",
            &fixture.layout().display().to_string(),
            IMAGE,
        ]))?;
        Ok(Self {
            user,
            machine,
            fixture,
            disk,
        })
    }

    fn repository(&self) -> PathBuf {
        self.user.home().join(".local/share/composefs-store")
    }

    fn store(&self, args: &[&str]) -> Result<integration::Finished> {
        ok(&mut self.user.store(args)?)
    }

    /// `cfsctl` as the user.
    fn cfsctl(&self, args: &[&str]) -> Result<integration::Finished> {
        let id = self.user.id().to_string();
        ok(Command::new("setpriv")
            .args(["--reuid", &id, "--regid", &id, "--clear-groups", "--"])
            .arg(Peers::from_env()?.cfsctl()?)
            .arg("--repo")
            .arg(self.repository())
            .args(args))
    }
}

/// Everything below `dir` with its owner.
fn owners(dir: &Path, found: &mut Vec<(PathBuf, u32, u32)>) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let metadata = path.symlink_metadata()?;
        found.push((path.clone(), metadata.uid(), metadata.gid()));
        if metadata.is_dir() {
            owners(&path, found)?;
        }
    }
    Ok(())
}

fn user_imports_from_their_own_podman(release: Release) -> Result<()> {
    let scene = Scene::new(release)?;
    scene.store(&["init", "--insecure"])?;
    let imported = scene.store(&["--json", "--progress", "json", "import", "--no-copy", IMAGE])?;
    // The program begins twice, and says so once.
    assert_eq!(imported.stderr.matches(r#""event":"begin""#).count(), 1);
    let report: Value = serde_json::from_slice(&imported.stdout)?;
    let total = &report["imported"][0]["total"];
    ensure!(
        total["reflinked"]["files"].as_u64() > Some(30) && total["copied"]["files"] == 0,
        "{total}"
    );
    scene.store(&["fsck"])?;

    // The whole repository is the user's, and composefs-rs works on it as the user.
    let mut found = Vec::new();
    owners(&scene.repository(), &mut found)?;
    let id = scene.user.id();
    let foreign: Vec<_> = found
        .iter()
        .filter(|(_, uid, gid)| (*uid, *gid) != (id, id))
        .collect();
    ensure!(found.len() > 30 && foreign.is_empty(), "{foreign:?}");
    scene.cfsctl(&["fsck"])?;
    scene.cfsctl(&["gc"])?;

    // The same image as composefs-rs makes of the same layers as root.
    let theirs = scene.disk.path().join("theirs");
    crate::peers::cfsctl_ok(&theirs, &["init", "--insecure"])?;
    let source = format!("oci:{}:latest", scene.fixture.layout().display());
    crate::peers::cfsctl_ok(&theirs, &["oci", "pull", &source, IMAGE])?;
    let expected = crate::peers::cfsctl_json(&theirs, &["oci", "inspect", IMAGE])?;
    let ours: Value = serde_json::from_slice(&scene.cfsctl(&["oci", "inspect", IMAGE])?.stdout)?;
    for key in ["manifest", "config", "composefs_erofs"] {
        assert_eq!(ours[key], expected[key], "{key}");
    }

    // In a namespace that podman has made, too; and collecting needs none.
    let program = Peers::from_env()?.composefs_store()?;
    let again = ok(scene
        .user
        .command("podman")
        .arg("unshare")
        .arg(program)
        .args(["--json", "import", IMAGE]))?;
    let report: Value = serde_json::from_slice(&again.stdout)?;
    assert_eq!(report["imported"][0]["outcome"], "present");
    scene.store(&["gc"])?;
    let images = scene.store(&["--json", "images"])?;
    let images: Value = serde_json::from_slice(&images.stdout)?;
    assert_eq!(images["images"][0]["tags"][0], IMAGE);
    finish(&mut scene.user.store(&["publish", IMAGE])?)?.refused_with(&["needs root"])?;
    scene.store(&["untag", IMAGE])?;
    scene.store(&["gc"])?;
    let left = std::fs::read_dir(scene.repository().join("objects"))?
        .map(|shard| Ok(std::fs::read_dir(shard?.path())?.count()))
        .sum::<std::io::Result<usize>>()
        .context("count objects")?;
    assert_eq!(left, 0);
    Ok(())
}

#[test]
fn user_imports_from_their_own_podman_5() -> Result<()> {
    user_imports_from_their_own_podman(Release::Trixie)
}

#[test]
fn user_imports_from_their_own_podman_4() -> Result<()> {
    user_imports_from_their_own_podman(Release::Host)
}

fn user_pulls_from_a_registry(release: Release) -> Result<()> {
    let scene = Scene::new(release)?;
    let registry = DockerRegistry::start(&Peers::from_env()?, Access::Open)?;
    let layout = format!("oci:{}:latest", scene.fixture.layout().display());
    registry.push(&scene.machine, &layout, "app:1")?;
    let image = registry.image("app:1");
    scene.store(&["init", "--insecure"])?;
    let pull = ["--json", "pull", "--tls-verify=false", "--no-copy", &image];
    let pulled = scene.store(&pull)?;
    let report: Value = serde_json::from_slice(&pulled.stdout)?;
    let storage = scene.user.home().join(".local/share/containers/storage");
    assert_eq!(report["pulled"]["storage"], storage.display().to_string());
    assert_eq!(report["imported"]["tags"][0], image, "{report}");
    scene.store(&["fsck"])?;
    let mut found = Vec::new();
    owners(&scene.repository(), &mut found)?;
    let id = scene.user.id();
    ensure!(found.iter().all(|(_, uid, gid)| (*uid, *gid) == (id, id)));
    // podman has it, and runs it.
    let listed =
        ok(scene
            .user
            .command("podman")
            .args(["images", "--format", "{{.Repository}}:{{.Tag}}"]))?;
    ensure!(listed.text().contains(&image), "{listed}");
    let again: Value = serde_json::from_slice(&scene.store(&pull)?.stdout)?;
    assert_eq!(again["imported"]["outcome"], "present");

    // bootc's storage is the host's.
    let bootc = ["pull", "--bootc", "--tls-verify=false", &image];
    finish(&mut scene.user.store(&bootc)?)?.refused_with(&["bootc's storage", "root"])?;
    Ok(())
}

#[test]
fn user_pulls_from_a_registry_with_podman_5() -> Result<()> {
    user_pulls_from_a_registry(Release::Trixie)
}

#[test]
fn user_pulls_from_a_registry_with_podman_4() -> Result<()> {
    user_pulls_from_a_registry(Release::Host)
}

#[test]
fn import_tells_a_user_what_is_missing_for_their_namespace() -> Result<()> {
    let peers = Peers::from_env()?;
    let machine = Machine::start(&peers, Release::Trixie)?;
    let home = |name: &str| peers.scratch_dir(name).map(|dir| dir.join("home"));

    let user = User::add(&machine, &home("no-ids")?, SubordinateIds::None)?;
    finish(&mut user.store(&["import", IMAGE])?)?
        .refused_with(&["/etc/subuid", "usermod --add-subuids"])?;

    let user = User::add(&machine, &home("no-helpers")?, SubordinateIds::Some)?;
    let mut import = user.command("env");
    import
        .arg("PATH=/nowhere")
        .arg(peers.composefs_store()?)
        .args(["import", IMAGE]);
    finish(&mut import)?.refused_with(&["newuidmap", "the package uidmap"])?;
    Ok(())
}
