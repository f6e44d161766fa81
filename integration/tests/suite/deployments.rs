//! What a host boots is kept, by us and by cfsctl, and is given up with its deployment.

use crate::peers::{cfsctl_json, cfsctl_ok};
use anyhow::{Context, Result, ensure};
use gc::simulate::{Host, Loader, ManifestDigest, Mounts, Record, VerityDigest};
use integration::bootable::{self, Policy};
use integration::{Filesystem, Finished, Kind, Machine, Peers, Release, Store};

const IMAGE: &str = "localhost/os:1";

/// A simulated host whose real repository `cfsctl` has made, with a bootable image in it.
struct Scene {
    disk: Filesystem,
    host: Host,
    store: Store,
    id: VerityDigest,
    manifest: ManifestDigest,
}

impl Scene {
    fn new(loader: Loader, mounts: Mounts) -> Result<Self> {
        let peers = Peers::from_env()?;
        let disk = Filesystem::new(&peers, Kind::Xfs, 600)?;
        let fixture = bootable::write(&disk.path().join("layout"), Policy::Targeted)?;
        let host = Host::new(&disk.path().join("host"), loader, mounts)?;
        let repo = host.sysroot().join("composefs");
        cfsctl_ok(&repo, &["init", "--insecure"])?;
        let source = format!("oci:{}:latest", fixture.layout().display());
        cfsctl_ok(&repo, &["oci", "pull", "--bootable", &source, IMAGE])?;
        let image = cfsctl_json(&repo, &["oci", "inspect", IMAGE])?;
        let field = |key: &str| image[key].as_str().with_context(|| format!("{image}"));
        let store = Store::open(&Machine::start(&peers, Release::Host)?, &repo);
        // What cfsctl has replaced while it pulled.
        store.ok(&["gc"])?;
        Ok(Self {
            store,
            id: VerityDigest::from_hex(field("composefs_boot_erofs")?)?,
            manifest: ManifestDigest::of(field("manifest")?.as_bytes()),
            disk,
            host,
        })
    }

    fn deploy(&mut self) -> Result<()> {
        let record = Record::Manifest(self.manifest);
        let done = self.host.deploy(self.id, record, 1)?;
        ensure!(done.is_ok());
        Ok(())
    }

    /// Runs a command with the options that say where the host is.
    fn run(&self, args: &[&str]) -> Result<Finished> {
        let sysroot = self.host.sysroot();
        let (boot, esp) = (self.host.boot(), self.host.esp());
        let paths = [sysroot, boot, esp].map(|path| path.display().to_string());
        let host = [
            "--sysroot",
            &paths[0],
            "--boot",
            &paths[1],
            "--boot",
            &paths[2],
        ];
        self.store.finish(&[args, &host].concat())
    }

    fn tag(&self) -> String {
        format!("localhost/bootc-{}", self.manifest)
    }

    /// cfsctl reads the image under this name.
    fn cfsctl_has(&self, name: &str) -> Result<()> {
        let image = cfsctl_json(self.store.repo(), &["oci", "inspect", name])?;
        let manifest = image["manifest"].as_str().context("no manifest")?;
        ensure!(
            ManifestDigest::of(manifest.as_bytes()) == self.manifest,
            "{image}"
        );
        for args in [&["fsck", "--json"][..], &["oci", "fsck", "--json"]] {
            let found = cfsctl_json(self.store.repo(), args)?;
            ensure!(found["ok"] == true, "{found}");
        }
        Ok(())
    }
}

#[test]
fn what_is_deployed_outlives_its_tag_under_every_loader_and_cfsctl_keeps_it() -> Result<()> {
    for loader in Loader::ALL {
        for mounts in [Mounts::Inside, Mounts::Separate] {
            let mut scene = Scene::new(loader, mounts)?;
            scene.deploy()?;
            scene.store.ok(&["untag", IMAGE])?;
            let objects = scene.store.objects()?;

            let planned = scene.run(&["--json", "gc", "--dry-run"])?.success()?;
            let planned: serde_json::Value = serde_json::from_slice(&planned.stdout)?;
            ensure!(
                planned["plan"]["missing_tags"][0]["tag"] == scene.tag(),
                "{planned}"
            );
            ensure!(planned["plan"]["roots"][0]["kind"] == "boot", "{planned}");
            let done = scene.run(&["--json", "gc"])?.success()?;
            let done: serde_json::Value = serde_json::from_slice(&done.stdout)?;
            assert_eq!(done["plan"], planned["plan"]);
            assert_eq!(scene.store.objects()?, objects);
            let roots = scene.run(&["roots"])?.success()?.text();
            ensure!(roots.contains("next deployment, named by"), "{roots}");

            // bootc's tag is all that cfsctl knows of a deployment.
            cfsctl_ok(scene.store.repo(), &["gc"])?;
            assert_eq!(scene.store.objects()?, objects);
            scene.cfsctl_has(&scene.tag())?;
        }
    }
    Ok(())
}

#[test]
fn a_broken_host_is_reported_with_the_file_and_gc_fails_after_doing_what_is_safe() -> Result<()> {
    let mut scene = Scene::new(Loader::GrubBls, Mounts::Separate)?;
    scene.deploy()?;
    scene.store.ok(&["untag", IMAGE])?;
    let objects = scene.store.objects()?;
    let state = scene.host.sysroot().join("state/deploy");
    let origin = state.join(format!("{0}/{0}.origin", scene.id));
    let content = std::fs::read(&origin)?;
    for cut in [0, 30, content.len() - 2] {
        std::fs::write(&origin, &content[..cut])?;
        let report = scene.run(&["gc"])?;
        report.refused_with(&[origin.to_str().context("not UTF-8")?])?;
        assert_eq!(scene.store.objects()?, objects);
    }
    std::fs::write(&origin, content)?;
    scene.run(&["gc"])?.success()?;

    // An entry that is gone leaves an orphan, with everything that it needs.
    let entries = scene.host.boot().join("loader/entries");
    let kept = scene.disk.path().join("kept");
    std::fs::rename(&entries, &kept)?;
    scene
        .run(&["gc", "--prune-orphans"])?
        .refused_with(&["no boot entry was found"])?;
    assert_eq!(scene.store.objects()?, objects);
    std::fs::rename(&kept, &entries)?;
    scene.run(&["gc", "--prune-orphans"])?.success()?;
    scene.cfsctl_has(&scene.tag())
}

#[test]
fn an_interrupted_upgrade_is_an_orphan_until_it_is_pruned() -> Result<()> {
    let mut scene = Scene::new(Loader::SystemdUki, Mounts::Inside)?;
    scene.deploy()?;
    scene.store.ok(&["gc"])?;
    // The upgrade to a boot image that the repository doesn't have ends before it is announced.
    let other = VerityDigest::from_hex(&"ab".repeat(64))?;
    scene.host.interrupt_after(Some(4));
    let record = Record::Manifest(scene.manifest);
    let done = scene.host.deploy(other, record, 2)?;
    ensure!(done.is_err());
    let state = scene
        .host
        .sysroot()
        .join("state/deploy")
        .join(other.to_hex());
    // Staged entries count where nothing is known of /run.
    scene.run(&["gc"])?.refused_with(&["cannot boot"])?;
    let entries = scene.host.esp().join("loader/entries.staged");
    std::fs::remove_dir_all(entries)?;
    let report = scene.run(&["gc"])?;
    report.refused_with(&[state.to_str().context("not UTF-8")?, "--prune-orphans"])?;
    let pruned = scene.run(&["gc", "--prune-orphans"])?.success()?.text();
    ensure!(pruned.contains("3 orphans"), "{pruned}");
    ensure!(!state.exists());
    scene.run(&["gc"])?.success()?;
    scene.cfsctl_has(&scene.tag())
}
