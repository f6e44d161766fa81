//! What a host boots stays, whatever state the host is in; what no entry names is reported, and goes on
//! request.

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use common::images::{Os, TestHost, collect, init, objects, os_objects, scratch, store_os};
use gc::boot::{self, Doubt, Fault, OrphanKind, Orphans, Slot, bootc_tag};
use gc::simulate::{Damage, Host, Loader, Mounts, Record};
use gc::{OwnerKind, Plan};
use repository::oci;
use repository::{Algorithm, Category, RefPath, Repository, Tag};

/// A host with its repository, and an image that nobody needs.
struct Scene {
    // Dropped last.
    repository: Repository,
    host: Host,
    garbage: Os,
    scratch: tempfile::TempDir,
}

impl Scene {
    fn new(loader: Loader) -> Self {
        let scratch = scratch();
        let host = Host::new(scratch.path(), loader, Mounts::Inside).unwrap();
        let repository = init(&host.sysroot().join("composefs"), Algorithm::Sha512);
        let garbage = store_os(&repository, "garbage", "", &["garbage"], None);
        Self {
            repository,
            host,
            garbage,
            scratch,
        }
    }

    /// An image that is deployed, tagged as bootc does.
    fn deployed(&mut self, name: &str) -> Os {
        let os = store_os(&self.repository, name, "", &["base", name], None);
        let batch = self.repository.batch().unwrap();
        oci::tag(&batch, &bootc_tag(&os.manifest), &os.manifest).unwrap();
        batch.commit().unwrap();
        let record = Record::Manifest(os.manifest);
        self.host.deploy(os.id, record, 1).unwrap().unwrap();
        os
    }

    /// A host with a deployment that runs and one to roll back to.
    fn with_two(loader: Loader) -> (Self, Os, Os) {
        let mut scene = Self::new(loader);
        let old = scene.deployed("old");
        let new = scene.deployed("new");
        scene.host.finalize().unwrap().unwrap();
        scene.host.reboot().unwrap();
        (scene, new, old)
    }

    fn test_host(&self, orphans: Orphans) -> TestHost {
        TestHost {
            sources: self.host.sources(),
            orphans,
            running: Vec::new(),
        }
    }

    fn collect(&mut self, orphans: Orphans) -> Plan {
        let mut host = self.test_host(orphans);
        collect(&mut self.repository, &mut host).0
    }

    fn has(&self, os: &Os) -> bool {
        oci::image(&self.repository, os.manifest).is_ok()
            && self.repository.object_size(&os.id).unwrap().is_some()
    }

    /// Everything of the image can be read.
    fn assert_has(&self, os: &Os) {
        os_objects(&self.repository, os.manifest);
    }

    fn state(&self, os: &Os) -> std::path::PathBuf {
        self.host
            .sysroot()
            .join("state/deploy")
            .join(os.id.to_hex())
    }

    /// The problems that a collection has, as text.
    fn problems(plan: &Plan) -> String {
        let problems: Vec<_> = plan.problems.iter().map(ToString::to_string).collect();
        problems.join("\n")
    }
}

#[test]
fn deployments_of_every_loader_stay_and_say_which_they_are() {
    for loader in Loader::ALL {
        let (mut scene, new, old) = Scene::with_two(loader);
        let staged = scene.deployed("staged");
        let state = boot::find(&scene.host.sources());
        assert_eq!(state.problems, [], "{loader:?}");
        assert_eq!(state.orphans, [], "{loader:?}");
        let slots: Vec<_> = state
            .deployments
            .iter()
            .map(|deployment| (deployment.id, deployment.slot))
            .collect();
        assert_eq!(
            slots,
            [
                (new.id, Slot::Booted),
                (staged.id, Slot::Staged),
                (old.id, Slot::Rollback)
            ]
        );
        let plan = scene.collect(Orphans::Keep);
        assert_eq!(plan.problems, [], "{loader:?}");
        let owners = plan.roots.iter().map(|root| root.owner.kind);
        assert_eq!(owners.collect::<Vec<_>>(), [OwnerKind::Boot; 3]);
        assert!(
            plan.roots[0]
                .reason
                .starts_with("booted deployment, named by ")
        );
        for os in [&new, &old, &staged] {
            scene.assert_has(os);
        }
        assert!(!scene.has(&scene.garbage));
    }
}

#[test]
fn tags_of_bootc_follow_the_deployments_and_those_of_others_do_not() {
    let (mut scene, new, old) = Scene::with_two(Loader::GrubBls);
    let undeployed = store_os(&scene.repository, "undeployed", "", &["undeployed"], None);
    let other = store_os(&scene.repository, "other", "", &["other"], None);
    let lookalikes = [
        // No digest, a digest in capitals, another manifest than the tag says.
        Tag::new("localhost/bootc-derived:latest").unwrap(),
        Tag::new(
            bootc_tag(&other.manifest)
                .as_str()
                .replace("sha256", "SHA256"),
        )
        .unwrap(),
        bootc_tag(&scene.garbage.manifest),
    ];
    let batch = scene.repository.batch().unwrap();
    oci::tag(
        &batch,
        &bootc_tag(&undeployed.manifest),
        &undeployed.manifest,
    )
    .unwrap();
    for tag in &lookalikes {
        oci::tag(&batch, tag, &other.manifest).unwrap();
    }
    batch.commit().unwrap();
    oci::untag(&scene.repository, &bootc_tag(&old.manifest)).unwrap();

    let mut host = scene.test_host(Orphans::Keep);
    let plan = gc::plan(&scene.repository, &mut host, &()).unwrap();
    let missing: Vec<_> = plan
        .missing_tags
        .iter()
        .map(|tag| tag.tag.clone())
        .collect();
    assert_eq!(missing, [bootc_tag(&old.manifest)]);
    let removed: Vec<_> = plan
        .refs
        .iter()
        .filter(|item| item.decision.is_removal())
        .map(|item| item.id.tag().unwrap())
        .collect();
    assert_eq!(removed, [bootc_tag(&undeployed.manifest)]);
    // That was only a plan.
    let tags = oci::tags(&scene.repository).unwrap();
    assert!(!tags.contains_key(&missing[0]) && tags.contains_key(&removed[0]));

    let plan = scene.collect(Orphans::Keep);
    assert_eq!(plan.problems, []);
    let tags = oci::tags(&scene.repository).unwrap();
    let mut expected = vec![bootc_tag(&new.manifest), bootc_tag(&old.manifest)];
    expected.extend(lookalikes);
    expected.sort();
    assert_eq!(tags.into_keys().collect::<Vec<_>>(), expected);
    scene.assert_has(&other);
    assert!(!scene.has(&undeployed));
}

#[test]
fn without_a_sysroot_tags_of_bootc_are_tags_like_any_other() {
    let (mut scene, new, _) = Scene::with_two(Loader::GrubBls);
    let plan = gc::plan(&scene.repository, &mut (), &()).unwrap();
    assert!(plan.refs.iter().all(|item| !item.decision.is_removal()));
    // Of an empty sysroot, or one whose boot filesystems aren't mounted, nothing is concluded.
    let empty = scene.scratch.path().join("empty");
    fs::create_dir(&empty).unwrap();
    for sysroot in [empty, scene.scratch.path().join("nowhere")] {
        let mut host = scene.test_host(Orphans::Prune);
        host.sources = boot::Sources::at(sysroot);
        let before = objects(&scene.repository);
        let (plan, _) = collect(&mut scene.repository, &mut host);
        assert_eq!(plan.problems.len(), 1, "{:?}", plan.problems);
        assert_eq!(objects(&scene.repository), before);
    }
    scene.assert_has(&new);
}

#[test]
fn a_boot_filesystem_that_is_not_mounted_is_noticed_and_nothing_is_pruned() {
    for loader in Loader::ALL {
        let (mut scene, new, old) = Scene::with_two(loader);
        let sysroot = scene.host.sysroot();
        fs::rename(sysroot.join("boot"), scene.scratch.path().join("unmounted")).unwrap();
        fs::create_dir(sysroot.join("boot")).unwrap();
        let before = objects(&scene.repository);
        let plan = scene.collect(Orphans::Prune);
        let problems = Scene::problems(&plan);
        assert!(problems.contains("no boot entry was found"), "{problems}");
        assert!(problems.contains("which no boot entry names"), "{problems}");
        assert_eq!(objects(&scene.repository), before);
        assert!(scene.state(&old).is_dir() && scene.state(&new).is_dir());
        // Named where it is, all is well.
        let mut host = scene.test_host(Orphans::Prune);
        host.sources
            .boot
            .push(scene.scratch.path().join("unmounted"));
        let esp = scene.scratch.path().join("unmounted/efi");
        host.sources.boot.push(esp);
        let (plan, _) = collect(&mut scene.repository, &mut host);
        assert_eq!(plan.problems, [], "{loader:?}");
        assert!(!scene.has(&scene.garbage));
    }
}

/// Each failure that the state of a deployment can have keeps the deployment, and is reported with the
/// file's name; garbage goes all the same.
#[test]
fn damaged_state_keeps_the_deployment_is_reported_and_does_not_keep_garbage() {
    for damage in [
        "no state",
        "no origin",
        "cut",
        "empty",
        "directory",
        "sidecar",
    ] {
        let (mut scene, new, old) = Scene::with_two(Loader::SystemdBls);
        let state = scene.state(&old);
        let origin = state.join(format!("{}.origin", old.id));
        let named = match damage {
            "no state" => {
                fs::remove_dir_all(&state).unwrap();
                scene.host.esp().join("loader/entries")
            }
            "no origin" => {
                fs::remove_file(&origin).unwrap();
                origin
            }
            "cut" => {
                scene.host.damage(&Damage::CutOrigin(old.id, 40)).unwrap();
                origin
            }
            "empty" => {
                fs::write(&origin, "").unwrap();
                origin
            }
            "directory" => {
                fs::remove_file(&origin).unwrap();
                fs::create_dir(&origin).unwrap();
                origin
            }
            _ => {
                fs::write(&origin, "[origin]\ncontainer-image-reference = x\n").unwrap();
                let sidecar = state.join(format!("{}.imginfo", old.id));
                fs::write(&sidecar, r#"{"config":{},"manif"#).unwrap();
                sidecar
            }
        };
        let plan = scene.collect(Orphans::Keep);
        let problems = Scene::problems(&plan);
        assert!(
            problems.contains(named.to_str().unwrap()),
            "{damage}: {problems}"
        );
        let doubts = plan.problems.iter().map(gc::Problem::doubt);
        assert!(
            doubts.into_iter().all(|doubt| doubt == Doubt::Kept),
            "{problems}"
        );
        scene.assert_has(&old);
        scene.assert_has(&new);
        assert!(!scene.has(&scene.garbage), "{damage}");
        let checked = boot::check(&scene.repository, &boot::find(&scene.host.sources()));
        assert_eq!(checked.unwrap().len(), plan.problems.len());
    }
}

#[test]
fn a_deployment_of_which_nothing_says_what_it_was_keeps_everything() {
    let (mut scene, _, old) = Scene::with_two(Loader::GrubUki);
    // Its boot image is on nobody's record any more, as in repositories of old tools.
    let lost = scene.deployed("lost");
    oci::untag(&scene.repository, &bootc_tag(&lost.manifest)).unwrap();
    let stream = scene.repository.path().join("streams");
    fs::remove_file(stream.join(format!("oci-manifest-{}", lost.manifest))).unwrap();
    let before = objects(&scene.repository);
    let plan = scene.collect(Orphans::Prune);
    let problems = Scene::problems(&plan);
    assert!(problems.contains(&lost.manifest.to_string()), "{problems}");
    assert_eq!(plan.problems[0].doubt(), Doubt::Everything);
    assert_eq!(objects(&scene.repository), before);
    scene.assert_has(&old);
}

#[test]
fn entries_that_cannot_be_understood_keep_everything() {
    for (loader, file, content) in [
        (Loader::GrubBls, "boot/loader/entries/bootc_x-1-1.conf", ""),
        (Loader::GrubBls, "boot/loader/entries/x.conf", "title x\n"),
        (
            Loader::GrubBls,
            "boot/loader/entries/bootc_x-1-1.conf",
            "linux /boot/vmlinuz\noptions rw\n",
        ),
        (
            Loader::SystemdBls,
            "boot/efi/loader/entries/x.conf",
            "linux /x\noptions composefs=00ff\n",
        ),
        (
            Loader::SystemdUki,
            "boot/efi/loader/entries/x.conf",
            "efi /EFI/Linux/bootc/bootc_composefs-00.efi\n",
        ),
        (
            Loader::SystemdUki,
            "boot/efi/loader/entries/x.conf",
            "uki /somewhere/else.efi\n",
        ),
        (Loader::GrubUki, "boot/grub2/user.cfg", ""),
        (
            Loader::GrubUki,
            "boot/grub2/user.cfg",
            "menuentry \"x\" {\n",
        ),
        (
            Loader::GrubUki,
            "boot/grub/grub.cfg",
            "linux /x composefs=0\n",
        ),
        (Loader::GrubBls, "boot/efi/EFI/Linux/mine.efi", "MZ"),
        (
            Loader::GrubBls,
            "../run/composefs/staged-deployment",
            "{\"depl_id\":",
        ),
    ] {
        let (mut scene, new, old) = Scene::with_two(loader);
        let path = scene.host.sysroot().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        let before = objects(&scene.repository);
        let plan = scene.collect(Orphans::Prune);
        let name = Path::new(file).file_name().unwrap().to_str().unwrap();
        let problems = Scene::problems(&plan);
        assert!(problems.contains(name), "{file} {content:?}: {problems}");
        let mut doubts = plan.problems.iter().map(gc::Problem::doubt);
        assert!(doubts.any(|doubt| doubt == Doubt::Everything), "{problems}");
        assert_eq!(objects(&scene.repository), before, "{file} {content:?}");
        assert!(scene.state(&old).is_dir() && scene.state(&new).is_dir());
    }
}

#[test]
fn entries_of_others_mean_nothing() {
    let (mut scene, ..) = Scene::with_two(Loader::SystemdUki);
    let esp = scene.host.esp();
    for (file, content) in [
        (
            "loader/entries/fedora.conf",
            "linux /vmlinuz\noptions root=/dev/sda1 ostree=/x\n",
        ),
        (
            "loader/entries/windows.conf",
            "efi /EFI/Microsoft/Boot/bootmgfw.efi\n",
        ),
        ("loader/entries/readme.txt", "not an entry"),
        ("loader/entries/.tmpabc", ""),
        ("EFI/Microsoft/Boot/other.efi", "MZ not really"),
        ("bootc_composefs", "a file"),
    ] {
        let path = esp.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    fs::write(
        esp.join("EFI/Linux/rescue.efi"),
        gc::simulate::uki(&["rescue"]),
    )
    .unwrap();
    let plan = scene.collect(Orphans::Prune);
    assert_eq!(plan.problems, []);
    assert!(!scene.has(&scene.garbage));
}

#[test]
fn a_unified_kernel_image_that_boots_by_itself_is_a_root_for_all_its_images() {
    let mut scene = Scene::new(Loader::SystemdUki);
    let alone = store_os(&scene.repository, "alone", "", &["alone"], None);
    let added = store_os(&scene.repository, "added", "", &["added"], None);
    let linux = scene.host.esp().join("EFI/Linux");
    let id = alone.id;
    let lines = [
        format!("composefs.digest=v1-sha512-12:{id}"),
        "second profile".to_owned(),
    ];
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    fs::write(linux.join("mine.efi"), gc::simulate::uki(&lines)).unwrap();
    fs::create_dir(linux.join("mine.efi.extra.d")).unwrap();
    let addon = format!("composefs={}", added.id);
    fs::write(
        linux.join("mine.efi.extra.d/more.addon.efi"),
        gc::simulate::uki(&[&addon]),
    )
    .unwrap();
    let plan = scene.collect(Orphans::Keep);
    // It has no state directory, and that is said.
    let problems = Scene::problems(&plan);
    assert!(problems.contains("has no state directory"), "{problems}");
    scene.assert_has(&alone);
    scene.assert_has(&added);
    assert!(!scene.has(&scene.garbage));
}

#[test]
fn a_name_and_arguments_that_disagree_keep_both() {
    let (mut scene, new, _) = Scene::with_two(Loader::SystemdUki);
    let other = store_os(&scene.repository, "other", "", &["other"], None);
    let name = format!("EFI/Linux/bootc/bootc_composefs-{}.efi", new.id);
    let line = format!("composefs={}", other.id);
    fs::write(scene.host.esp().join(&name), gc::simulate::uki(&[&line])).unwrap();
    let plan = scene.collect(Orphans::Keep);
    assert!(Scene::problems(&plan).contains(&name));
    scene.assert_has(&new);
    scene.assert_has(&other);
    assert!(!scene.has(&scene.garbage));
}

#[test]
fn old_deployments_are_traced_by_their_sidecar_or_their_boot_image() {
    let (mut scene, ..) = Scene::with_two(Loader::GrubBls);
    for (name, with_sidecar) in [("sidecar", true), ("bare", false)] {
        let os = store_os(&scene.repository, name, "", &[name], None);
        let record = if with_sidecar {
            Record::Legacy(os.config, os.layers.clone())
        } else {
            Record::Unrecorded
        };
        scene.host.deploy(os.id, record, 2).unwrap().unwrap();
        let plan = scene.collect(Orphans::Keep);
        assert!(
            Scene::problems(&plan)
                .lines()
                .all(|line| line.contains("state directory"))
        );
        scene.assert_has(&os);
        // bootc will find it by its tag from now on.
        let tags = oci::tags(&scene.repository).unwrap();
        assert_eq!(tags.get(&bootc_tag(&os.manifest)), Some(&os.manifest));
    }
    assert!(!scene.has(&scene.garbage));
}

#[test]
fn a_boot_image_that_is_missing_is_reported_and_its_manifest_kept() {
    let (mut scene, new, _) = Scene::with_two(Loader::GrubBls);
    let path = scene.repository.path();
    let gone = store_os(&scene.repository, "gone", "", &["gone"], None);
    // Its boot image is made by another release: it is on nobody's record.
    let id = repository::VerityDigest::from_hex(&"ab".repeat(64)).unwrap();
    let record = Record::Manifest(gone.manifest);
    scene.host.deploy(id, record, 1).unwrap().unwrap();
    assert!(path.is_dir());
    let plan = scene.collect(Orphans::Keep);
    let problems = Scene::problems(&plan);
    assert!(problems.contains("cannot boot"), "{problems}");
    let state = boot::find(&scene.host.sources());
    let has_problem = |checked: Vec<boot::Problem>| {
        let mut faults = checked.iter().map(|problem| &problem.fault);
        faults.any(|fault| *fault == Fault::NoBootImage(id))
    };
    assert!(has_problem(boot::check(&scene.repository, &state).unwrap()));
    let of_image = |os: &Os| boot::check_image(&scene.repository, &state, &os.manifest).unwrap();
    assert!(has_problem(of_image(&gone)));
    assert_eq!(of_image(&new), []);
    scene.assert_has(&gone);
    scene.assert_has(&new);
    assert!(!scene.has(&scene.garbage));
}

#[test]
fn orphans_are_listed_and_kept_until_they_are_pruned() {
    for loader in Loader::ALL {
        let (mut scene, new, old) = Scene::with_two(loader);
        // An upgrade that ended before it was announced.
        let half = store_os(&scene.repository, "half", "", &["half"], None);
        scene.host.interrupt_after(Some(4));
        let record = Record::Manifest(half.manifest);
        assert!(scene.host.deploy(half.id, record, 9).unwrap().is_err());
        fs::create_dir_all(scene.state(&half).join("etc/deep/er")).unwrap();
        // What it leads to is somebody else's.
        let outside = scene.scratch.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "").unwrap();
        symlink(&outside, scene.state(&half).join("etc/link")).unwrap();

        let plan = scene.collect(Orphans::Keep);
        let problems = Scene::problems(&plan);
        assert!(
            problems.contains("gc --prune-orphans removes it"),
            "{problems}"
        );
        scene.assert_has(&half);
        let state = boot::find(&scene.host.sources());
        let kinds: Vec<_> = state.orphans.iter().map(|orphan| orphan.kind).collect();
        assert!(kinds.contains(&OrphanKind::State) && kinds.contains(&OrphanKind::StagedEntry));
        let watched = scene.host.sysroot().join("ostree/bootc");
        fs::create_dir_all(&watched).unwrap();
        let long_ago = std::time::SystemTime::UNIX_EPOCH;
        fs::File::open(&watched)
            .unwrap()
            .set_modified(long_ago)
            .unwrap();

        let plan = scene.collect(Orphans::Prune);
        assert_eq!(plan.problems, [], "{loader:?}");
        assert_eq!(plan.orphans.len(), kinds.len());
        assert!(!scene.state(&half).exists());
        assert!(!scene.has(&half));
        assert!(outside.join("file").exists());
        assert!(scene.host.sysroot().join("state/os/default/var").is_dir());
        assert_ne!(watched.metadata().unwrap().modified().unwrap(), long_ago);
        for os in [&new, &old] {
            scene.assert_has(os);
            assert!(scene.state(os).is_dir());
        }
        let state = boot::find(&scene.host.sources());
        assert_eq!(
            (state.orphans.len(), state.problems.len()),
            (0, 0),
            "{state:?}"
        );
    }
}

#[test]
fn a_kernel_that_another_deployment_shares_is_no_orphan() {
    let (mut scene, ..) = Scene::with_two(Loader::GrubBls);
    // The first made the directory, the others use it.
    scene.deployed("third");
    scene.host.finalize().unwrap().unwrap();
    scene.host.reboot().unwrap();
    scene.host.clean_up().unwrap();
    assert_eq!(scene.host.artifacts.len(), 1);
    assert!(
        scene
            .host
            .menu
            .iter()
            .all(|entry| !entry.artifact.contains(&entry.id.to_hex()))
    );
    let plan = scene.collect(Orphans::Prune);
    assert_eq!((plan.problems.len(), plan.orphans.len()), (0, 0));
}

#[test]
fn a_sysroot_that_leads_elsewhere_is_not_followed() {
    let (mut scene, new, _) = Scene::with_two(Loader::GrubBls);
    let sysroot = scene.host.sysroot();
    let outside = scene.scratch.path().join("outside");
    fs::create_dir_all(outside.join("loader/entries")).unwrap();
    fs::write(outside.join("loader/entries/bad.conf"), "").unwrap();
    fs::remove_dir(sysroot.join("boot/efi")).ok();
    fs::remove_dir_all(sysroot.join("boot/efi")).ok();
    symlink(&outside, sysroot.join("boot/efi")).unwrap();
    symlink("../../../outside", sysroot.join("efi")).unwrap();
    let state = scene.state(&new);
    symlink(&outside, state.join("escape")).unwrap();
    let plan = scene.collect(Orphans::Prune);
    assert_eq!(plan.problems, []);
}

#[test]
fn what_is_published_lives_without_a_deployment() {
    let (mut scene, ..) = Scene::with_two(Loader::GrubBls);
    let batch = scene.repository.batch().unwrap();
    let path = RefPath::new("composefs-store/published/x").unwrap();
    batch.set_ref(Category::Images, &path, &scene.garbage.rootfs.to_hex());
    batch.commit().unwrap();
    scene.collect(Orphans::Keep);
    assert!(scene.repository.has_image(&scene.garbage.rootfs).unwrap());
    assert!(oci::image(&scene.repository, scene.garbage.manifest).is_err());
}

/// All regular files below a directory but those of the repository.
fn files(directory: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() && entry.file_name() != "composefs" {
            found.extend(files(&entry.path()));
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

#[test]
fn no_file_that_is_wrong_in_one_byte_or_cut_off_loses_a_deployment_or_its_state() {
    let mut state = 0_u32;
    let mut random = |limit: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize % limit
    };
    for loader in Loader::ALL {
        let (mut scene, new, old) = Scene::with_two(loader);
        let staged = scene.deployed("staged");
        let needed: std::collections::BTreeSet<_> = [&new, &old, &staged]
            .into_iter()
            .flat_map(|os| os_objects(&scene.repository, os.manifest))
            .collect();
        let mut tried = 0;
        let mut paths = files(&scene.host.sysroot());
        paths.push(scene.scratch.path().join("run/composefs/staged-deployment"));
        for path in paths {
            let content = fs::read(&path).unwrap();
            if content.is_empty() {
                continue;
            }
            for _ in 0..12 {
                let mut damaged = content.clone();
                let at = random(content.len());
                match random(4) {
                    0 => damaged.truncate(at),
                    1 => damaged[at] = b"#\n /{}=;\"\0"[random(10)],
                    2 => damaged[at] ^= 1 << random(8),
                    _ => damaged[at] = b"0123456789abcdef"[random(16)],
                }
                fs::write(&path, &damaged).unwrap();
                tried += 1;
                let mut host = scene.test_host(Orphans::Prune);
                let plan = gc::plan(&scene.repository, &mut host, &()).unwrap();
                let what = || {
                    format!(
                        "{} is {}\n{:#?}",
                        path.display(),
                        damaged.escape_ascii(),
                        plan.problems
                    )
                };
                let removed = plan
                    .objects
                    .iter()
                    .filter(|item| item.decision.is_removal());
                let lost = removed.filter(|item| needed.contains(&item.digest));
                assert_eq!(lost.count(), 0, "{}", what());
                let kept = [&new, &old, &staged].map(|os| scene.state(os));
                let pruned = plan
                    .orphans
                    .iter()
                    .filter(|orphan| kept.contains(&orphan.path));
                assert_eq!(pruned.count(), 0, "{}", what());
            }
            fs::write(&path, content).unwrap();
        }
        assert!(tried > 100, "{tried}");
    }
}
