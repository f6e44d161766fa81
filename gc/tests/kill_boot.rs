//! The process dies at every durable step of a collection that makes and removes tags of bootc's and
//! prunes what an interrupted upgrade has left: every deployment can be booted afterwards, and the next
//! collection finishes the work.

mod common;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

use common::images::{Os, TestHost, collect, init, os_objects, scratch, store_os};
use common::{assert_clean, child_killed_at};
use gc::boot::{self, Orphans, Sources, bootc_tag};
use gc::simulate::{Host, Loader, Mounts, Record};
use repository::{Algorithm, Repository, oci};

const DIRECTORY: &str = "KILL_BOOT_TEST";

fn run_child(directory: &Path, failpoint: &str) -> ExitStatus {
    child_killed_at(failpoint, &[(DIRECTORY, directory)])
}

fn sources(directory: &Path) -> Sources {
    Sources {
        run: Some(directory.join("run")),
        ..Sources::at(directory.join("sysroot"))
    }
}

fn open(directory: &Path) -> Repository {
    Repository::open(directory.join("sysroot/composefs")).unwrap()
}

#[test]
#[ignore = "the process that the other tests kill"]
fn child() {
    let directory = std::env::var_os(DIRECTORY).unwrap();
    let directory = Path::new(&directory);
    let mut host = TestHost {
        sources: sources(directory),
        orphans: Orphans::Prune,
        running: Vec::new(),
    };
    collect(&mut open(directory), &mut host);
}

/// Two deployments, one of them without tag; a tag without deployment; half an upgrade.
fn scene(directory: &Path, loader: Loader) -> [Os; 3] {
    let mut host = Host::new(directory, loader, Mounts::Inside).unwrap();
    let repository = init(&host.sysroot().join("composefs"), Algorithm::Sha256);
    let store = |name: &str, tag: bool| {
        let os = store_os(&repository, name, "", &["shared", name], None);
        if tag {
            let batch = repository.batch().unwrap();
            oci::tag(&batch, &bootc_tag(&os.manifest), &os.manifest).unwrap();
            batch.commit().unwrap();
        }
        os
    };
    let images = [store("old", false), store("new", true), store("half", true)];
    for os in &images[..2] {
        let record = Record::Manifest(os.manifest);
        host.deploy(os.id, record, 1).unwrap().unwrap();
        host.finalize().unwrap().unwrap();
        host.reboot().unwrap();
    }
    host.interrupt_after(Some(4));
    let half = &images[2];
    let record = Record::Manifest(half.manifest);
    assert!(host.deploy(half.id, record, 2).unwrap().is_err());
    images
}

fn assert_boots(directory: &Path, images: &[Os]) {
    let repository = open(directory);
    for os in images {
        os_objects(&repository, os.manifest);
    }
    let state = boot::find(&sources(directory));
    let live: Vec<_> = state
        .deployments
        .iter()
        .filter(|deployment| deployment.state.is_some())
        .map(|deployment| deployment.id)
        .collect();
    assert!(images.iter().all(|os| live.contains(&os.id)), "{state:#?}");
    assert_clean(&repository);
}

#[test]
fn a_collection_that_is_killed_anywhere_keeps_every_deployment_and_the_next_one_finishes() {
    let mut tried = 0;
    for loader in [Loader::GrubBls, Loader::SystemdUki] {
        for point in [
            "prune-orphan",
            "prune-file",
            "prune-origin",
            "prune-directory",
            "prune-synced",
            "commit-ref",
            "commit-refs-set",
            "commit-done",
            "remove-ref",
            "remove-name",
            "removed-names-synced",
            "remove-object",
        ] {
            for n in 1.. {
                let scratch = scratch();
                let directory = scratch.path();
                let images = scene(directory, loader);
                let status = run_child(directory, &format!("{point}:{n}"));
                if status.success() {
                    assert!(n > 1, "{point} is never reached");
                    break;
                }
                assert_eq!(status.signal(), Some(9), "{point}:{n}");
                tried += 1;
                assert_boots(directory, &images[..2]);

                assert!(run_child(directory, "").success());
                assert_boots(directory, &images[..2]);
                let state = boot::find(&sources(directory));
                assert_eq!((state.orphans.len(), state.problems.len()), (0, 0));
                let mut repository = open(directory);
                let tags = oci::tags(&repository).unwrap();
                let mut expected = [&images[0], &images[1]].map(|os| bootc_tag(&os.manifest));
                expected.sort();
                assert_eq!(tags.into_keys().collect::<Vec<_>>(), expected);
                let mut host = TestHost {
                    sources: sources(directory),
                    orphans: Orphans::Prune,
                    running: Vec::new(),
                };
                let (_, swept) = collect(&mut repository, &mut host);
                assert_eq!(swept, gc::Swept::default());
            }
        }
    }
    assert!(tried >= 50, "only {tried} points were tried");
}
