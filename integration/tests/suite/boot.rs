//! Boot images: the same digests as composefs-rs, recorded as it records them; formats changed in place.

use crate::peers::{cfsctl, cfsctl_json, cfsctl_ok};
use anyhow::{Context, Result, ensure};
use integration::bootable::{self, Policy};
use integration::tar::Member;
use integration::{Filesystem, Fixture, Kind, Machine, Peers, Release, Store, finish};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const IMAGE: &str = "localhost/os:1";
const FORMATS: [&str; 2] = ["1", "2"];
const FILTERS: [&str; 2] = ["allowlist-only", "keep-user-xattrs"];
const SIGKILL: i32 = 9;

struct Scene {
    machine: Arc<Machine>,
    fixture: Fixture,
    disk: Filesystem,
}

impl Scene {
    fn new(fixture: impl FnOnce(&Path) -> Result<Fixture>) -> Result<Self> {
        let peers = Peers::from_env()?;
        let disk = Filesystem::new(&peers, Kind::Xfs, 600)?;
        let fixture = fixture(&disk.path().join("layout"))?;
        Ok(Self {
            machine: Machine::start(&peers, Release::Host)?,
            fixture,
            disk,
        })
    }

    fn with_policy(policy: Policy) -> Result<Self> {
        Self::new(|dir| bootable::write(dir, policy))
    }

    /// A repository that `cfsctl` has made, with the image pulled into it.
    fn pulled(&self, name: &str, algorithm: &str, format: &str, pull: &[&str]) -> Result<PathBuf> {
        let repo = self.disk.path().join(name);
        let id = format!("fsverity-{algorithm}-12");
        cfsctl_ok(
            &repo,
            &[
                "init",
                "--insecure",
                "--algorithm",
                &id,
                "--erofs-version",
                format,
            ],
        )?;
        let source = format!("oci:{}:latest", self.fixture.layout().display());
        cfsctl_ok(&repo, &[&["oci", "pull"], pull, &[&source, IMAGE]].concat())?;
        Ok(repo)
    }

    fn store(&self, repo: &Path) -> Store {
        Store::open(&self.machine, repo)
    }
}

/// What `cfsctl` says is the digest.
fn computed(repo: &Path, format: &str, options: &[&str]) -> Result<String> {
    let args = [
        &["--erofs-version", format, "oci", "compute-id"],
        options,
        &[IMAGE],
    ]
    .concat();
    Ok(cfsctl_ok(repo, &args)?.text())
}

fn prepared(store: &Store, filter: &str) -> Result<Vec<(String, String)>> {
    let done = store.ok(&["--json", "boot", "prepare", "--xattrs", filter, IMAGE])?;
    let report: serde_json::Value = serde_json::from_slice(&done.stdout)?;
    let images = report["images"].as_array().context("no images")?;
    let field = |image: &serde_json::Value, name: &str| -> Result<String> {
        Ok(image[name].as_str().context("no string")?.to_owned())
    };
    images
        .iter()
        .map(|image| Ok((field(image, "format")?, field(image, "digest")?)))
        .collect()
}

/// `cfsctl` has nothing to complain of, and its gc takes no image.
fn cfsctl_agrees(store: &Store) -> Result<()> {
    for args in [&["fsck", "--json"][..], &["oci", "fsck", "--json"]] {
        let found = cfsctl_json(store.repo(), args)?;
        ensure!(found["ok"] == true, "{found}");
    }
    let images = || -> Result<Vec<_>> {
        let entries = std::fs::read_dir(store.repo().join("images"))?;
        let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
        names.sort();
        Ok(names)
    };
    let before = images()?;
    cfsctl_ok(store.repo(), &["gc"])?;
    assert_eq!(images()?, before);
    store.ok(&["gc"])?;
    assert_eq!(images()?, before);
    store.ok(&["fsck"])?;
    Ok(())
}

fn boot_digests_are_those_of_cfsctl(policy: Policy) -> Result<()> {
    let scene = Scene::with_policy(policy)?;
    for algorithm in ["sha256", "sha512"] {
        for format in FORMATS {
            let name = format!("{algorithm}-{format}");
            let repo = scene.pulled(&name, algorithm, format, &[])?;
            let store = scene.store(&repo);
            for filter in FILTERS {
                let expected = computed(&repo, format, &["--bootable", "--xattrs", filter])?;
                let expected = [(format!("v{format}"), expected)];
                assert_eq!(prepared(&store, filter)?, expected, "{name} {filter}");
                // Again nothing changes.
                assert_eq!(prepared(&store, filter)?, expected, "{name} {filter}");
            }
            cfsctl_agrees(&store)?;
        }
    }
    Ok(())
}

#[test]
fn boot_digests_are_those_of_cfsctl_without_a_policy() -> Result<()> {
    boot_digests_are_those_of_cfsctl(Policy::Absent)
}

#[test]
fn boot_digests_are_those_of_cfsctl_with_a_policy_that_is_disabled() -> Result<()> {
    boot_digests_are_those_of_cfsctl(Policy::Disabled)
}

#[test]
fn boot_digests_are_those_of_cfsctl_with_labels_of_every_kind() -> Result<()> {
    boot_digests_are_those_of_cfsctl(Policy::Targeted)
}

#[test]
fn boot_images_are_recorded_where_cfsctl_looks_for_them() -> Result<()> {
    let scene = Scene::with_policy(Policy::Targeted)?;
    for format in FORMATS {
        let ours = scene.pulled(&format!("ours{format}"), "sha512", format, &[])?;
        let theirs = scene.pulled(
            &format!("theirs{format}"),
            "sha512",
            format,
            &["--bootable"],
        )?;
        scene.store(&ours).ok(&["boot", "prepare", IMAGE])?;
        // The one that has it on record does not make it.
        let made = prepared(&scene.store(&theirs), "allowlist-only")?;
        let [(_, digest)] = &made[..] else {
            panic!("{made:?}");
        };
        for repo in [&ours, &theirs] {
            let linked = cfsctl_ok(repo, &["oci", "linked-erofs-images", digest])?.text();
            ensure!(linked.contains(digest.as_str()), "{linked}");
        }
        let links = |repo: &Path| cfsctl_json(repo, &["oci", "inspect", IMAGE]);
        let (ours, theirs) = (links(&ours)?, links(&theirs)?);
        for key in ["composefs_erofs", "composefs_boot_erofs"] {
            assert_eq!(ours[key], theirs[key], "{key}");
        }
        ensure!(ours["composefs_boot_erofs"] == digest.as_str(), "{ours}");
    }
    Ok(())
}

#[test]
fn kernel_arguments_name_the_boot_image_as_the_peers_write_them() -> Result<()> {
    let scene = Scene::with_policy(Policy::Absent)?;
    let repo = scene.pulled("repo", "sha512", "1", &[])?;
    let store = scene.store(&repo);
    let none = store.finish(&["boot", "karg", IMAGE])?;
    none.refused_with(&["boot prepare"])?;
    store.ok(&["upgrade-format", "dual"])?;
    let made = prepared(&store, "allowlist-only")?;
    let [(_, v1), (_, v2)] = &made[..] else {
        panic!("{made:?}");
    };
    let karg = |options: &[&str]| -> Result<String> {
        Ok(store
            .ok(&[&["boot", "karg", IMAGE], options].concat())?
            .text())
    };
    let required = ["--verity", "required"];
    assert_eq!(karg(&[])?, format!("composefs.digest=?v1-sha512-12:{v1}"));
    assert_eq!(
        karg(&required)?,
        format!("composefs.digest=v1-sha512-12:{v1}")
    );
    assert_eq!(karg(&["--format", "v2"])?, format!("composefs=?{v2}"));
    assert_eq!(karg(&["--bootc"])?, format!("composefs=?{v1}"));

    // The same words as those of cfsctl, which names a directory's image.
    let directory = scene.disk.path().join("directory");
    for name in ["usr", "boot", "sysroot"] {
        std::fs::create_dir_all(directory.join(name))?;
    }
    for (format, own) in [
        ("1", karg(&required)?),
        ("2", karg(&["--format", "v2", "--verity", "required"])?),
    ] {
        let mut command = cfsctl(&repo, &["--erofs-version", format, "compute-karg"])?;
        let theirs = integration::ok(command.arg(&directory))?.text();
        let words = |argument: &str| {
            argument
                .rfind(['=', ':'])
                .map(|end| argument[..=end].to_owned())
        };
        assert_eq!(words(&own), words(&theirs));
    }
    Ok(())
}

#[test]
fn an_image_sealed_with_other_defaults_is_found_by_its_digest() -> Result<()> {
    let scene = Scene::with_policy(Policy::Targeted)?;
    let repo = scene.pulled("repo", "sha256", "1", &[])?;
    let store = scene.store(&repo);
    for (format, filter) in [("2", FILTERS[0]), ("1", FILTERS[1]), ("2", FILTERS[1])] {
        let digest = computed(&repo, format, &["--bootable", "--xattrs", filter])?;
        for recovered in [true, false] {
            let found = store.ok(&["boot", "find", &digest])?.text();
            let expected = format!("boot image, v{format}, xattrs {filter}");
            ensure!(
                found.contains(&expected) && found.contains(IMAGE),
                "{found}"
            );
            ensure!(found.contains("recovered") == recovered, "{found}");
        }
        // cfsctl finds it, too, and so does a mount.
        ensure!(repo.join("images").join(&digest).exists());
    }
    let rootfs = computed(&repo, "1", &[])?;
    let found = store.ok(&["boot", "find", &rootfs])?.text();
    ensure!(found.contains("rootfs image, v1"), "{found}");
    store
        .finish(&["boot", "find", &"ab".repeat(32)])?
        .refused()?;
    store
        .finish(&["boot", "find", &"ab".repeat(64)])?
        .refused()?;
    cfsctl_agrees(&store)
}

#[test]
fn what_cannot_be_booted_is_refused_as_cfsctl_refuses_it() -> Result<()> {
    let config = "etc/selinux/config";
    let files = "etc/selinux/targeted/contexts/files";
    for (name, member, words) in [
        (
            "no-boot",
            Member::whiteout("", "boot"),
            &["/boot", "must have it"][..],
        ),
        (
            "file",
            Member::file("sysroot", ""),
            &["/sysroot", "not a directory"],
        ),
        (
            "entry",
            Member::symlink("boot/loader/entries/b.conf", "a.conf"),
            &["b.conf", "not a regular file"],
        ),
        (
            "kernel",
            Member::file("boot/loader/entries/b.conf", "linux /boot/none\n"),
            &["b.conf", "/boot/none"],
        ),
        (
            "uki",
            Member::symlink("boot/EFI/Linux/b.efi", "a.efi"),
            &["b.efi", "not a regular file"],
        ),
        (
            "aboot",
            Member::file("boot/aboot-1.img", "ANDROID!"),
            &["aboot-1.img", "all that the image"],
        ),
        (
            "config",
            Member::symlink(config, "/usr/config"),
            &["/etc/selinux/config", "not a regular file"],
        ),
        (
            "contexts",
            Member::whiteout("etc/selinux/targeted/contexts/files/", "file_contexts"),
            &["file_contexts", "must have it"],
        ),
        (
            "type",
            Member::file(format!("{files}/file_contexts.local"), "/a\n/b -y c\n"),
            &["file_contexts.local", "line 1"],
        ),
        (
            "expression",
            Member::file(format!("{files}/file_contexts.local"), "/(a c\n"),
            &["/(a", "cannot be used"],
        ),
    ] {
        let scene = Scene::new(|dir| bootable::spoiled(dir, vec![member]))?;
        let repo = scene.pulled("repo", "sha256", "1", &[])?;
        let args = ["oci", "compute-id", "--bootable", IMAGE];
        finish(&mut cfsctl(&repo, &args)?)?
            .refused()
            .with_context(|| format!("cfsctl and {name}"))?;
        scene
            .store(&repo)
            .finish(&["boot", "prepare", IMAGE])?
            .refused_with(words)?;
    }
    Ok(())
}

#[test]
fn an_image_without_usr_is_refused_with_the_reason() -> Result<()> {
    // cfsctl does not even pull such an image: take /usr away from one of ours.
    let scene = Scene::new(|dir| bootable::spoiled(dir, vec![Member::whiteout("", "usr")]))?;
    let repo = scene.disk.path().join("repo");
    cfsctl_ok(&repo, &["init", "--insecure"])?;
    let source = format!("oci:{}:latest", scene.fixture.layout().display());
    finish(&mut cfsctl(&repo, &["oci", "pull", &source, IMAGE])?)?.refused()?;
    // The manifest is there, without a tag.
    let streams = std::fs::read_dir(repo.join("streams"))?;
    let manifest = streams
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .find_map(|name| name.strip_prefix("oci-manifest-").map(str::to_owned))
        .context("no manifest")?;
    let store = scene.store(&repo);
    store
        .finish(&["boot", "prepare", &manifest])?
        .refused_with(&["/usr"])?;
    Ok(())
}

fn formats(store: &Store) -> Result<serde_json::Value> {
    let meta = std::fs::read(store.repo().join("meta.json"))?;
    let meta: serde_json::Value = serde_json::from_slice(&meta)?;
    Ok(meta["erofs_formats"].clone())
}

/// All four images of the fixture, as `cfsctl` computes them.
fn all_images(repo: &Path) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for format in FORMATS {
        for options in [&[][..], &["--bootable"]] {
            all.push(computed(repo, format, options)?);
        }
    }
    all.sort();
    Ok(all)
}

fn images(repo: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(repo.join("images"))?;
    let names = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<_> = names.filter(|name| name != "refs").collect();
    names.sort();
    Ok(names)
}

#[test]
fn a_repository_becomes_dual_in_place_from_v1_and_from_v2() -> Result<()> {
    let scene = Scene::with_policy(Policy::Targeted)?;
    for (format, other) in [("1", "2"), ("2", "1")] {
        let repo = scene.pulled(format, "sha512", format, &["--bootable"])?;
        let store = scene.store(&repo);
        let before = images(&repo)?;
        let plan = store.ok(&["upgrade-format", "--dry-run", "dual"])?.text();
        for key in ["composefs.image", "composefs.image.boot"] {
            let key = if other == "1" {
                format!("{key}.v1")
            } else {
                key.to_owned()
            };
            ensure!(plan.contains(&format!("make {key} of {IMAGE}")), "{plan}");
        }
        assert_eq!(images(&repo)?, before);

        store.ok(&["upgrade-format", "dual"])?;
        assert_eq!(images(&repo)?, all_images(&repo)?);
        let number = |format: &str| format.parse::<u8>();
        let expected = serde_json::json!({"default": number(format)?, "extra": [number(other)?]});
        assert_eq!(formats(&store)?, expected);
        cfsctl_agrees(&store)?;
        assert_eq!(images(&repo)?, all_images(&repo)?);

        // Nothing is left to do, and there is no way back.
        let plan = store.ok(&["upgrade-format", "--dry-run", "dual"])?.text();
        ensure!(!plan.contains("make"), "{plan}");
        store.ok(&["upgrade-format", "dual"])?;
        for narrow in ["v1", "v2"] {
            store
                .finish(&["upgrade-format", narrow])?
                .refused_with(&[IMAGE, "exists in"])?;
        }
        // What comes now comes in both.
        let source = format!("oci:{}:latest", scene.fixture.layout().display());
        cfsctl_ok(&repo, &["oci", "pull", "--bootable", &source, "again"])?;
        assert_eq!(images(&repo)?, all_images(&repo)?);
    }
    Ok(())
}

#[test]
fn an_upgrade_killed_at_any_durable_step_can_be_repeated() -> Result<()> {
    let scene = Scene::with_policy(Policy::Absent)?;
    let pristine = scene.pulled("pristine", "sha256", "1", &["--bootable"])?;
    let expected = all_images(&pristine)?;
    let old = formats(&scene.store(&pristine))?;
    for (number, step) in [
        "commit-staged",
        "commit-object:2",
        "commit-objects-synced",
        "commit-bridges",
        "commit-bridged",
        "commit-stream:2",
        "commit-image",
        "commit-linked",
        "commit-remove-bridge:2",
        "commit-done",
        "upgrade-images-made",
        "upgrade-alone",
        "meta-staged",
        "meta-linked",
        "meta-replaced",
        "meta-synced",
    ]
    .iter()
    .enumerate()
    {
        let repo = scene.disk.path().join(format!("r{number}"));
        integration::ok(
            std::process::Command::new("cp")
                .arg("-a")
                .args([&pristine, &repo]),
        )?;
        let store = scene.store(&repo);
        let args = ["upgrade-format", "dual"];
        let killed = finish(&mut store.command_killed_at(step, &args)?)?;
        ensure!(
            killed.status.signal() == Some(SIGKILL),
            "{step} is no step: {killed}"
        );

        // Either the old formats, or everything is there.
        store.ok(&["fsck"])?;
        if formats(&store)? != old {
            assert_eq!(images(&repo)?, expected, "{step}");
        }
        cfsctl_agrees(&store).with_context(|| format!("after a crash at {step}"))?;
        store.ok(&args)?;
        assert_eq!(images(&repo)?, expected, "{step}");
        assert_ne!(formats(&store)?, old, "{step}");
        cfsctl_agrees(&store)?;
    }
    Ok(())
}

#[test]
fn a_new_repository_has_the_formats_that_were_asked_for() -> Result<()> {
    let scene = Scene::with_policy(Policy::Absent)?;
    for (word, default, extra) in [("v1", 1, None), ("v2", 2, None), ("dual", 1, Some(2))] {
        let repo = scene.disk.path().join(word);
        let store = Store::init_with(&scene.machine, &repo, &["--format", word])?;
        let mut expected = serde_json::json!({ "default": default });
        if let Some(extra) = extra {
            expected["extra"] = serde_json::json!([extra]);
        }
        assert_eq!(formats(&store)?, expected);
        let source = format!("oci:{}:latest", scene.fixture.layout().display());
        cfsctl_ok(&repo, &["oci", "pull", &source, IMAGE])?;
        assert_eq!(images(&repo)?.len(), 1 + usize::from(extra.is_some()));
    }
    Ok(())
}
