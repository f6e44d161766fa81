//! The process dies at every durable step of a sweep: what is needed is never lost, no name is left
//! without its content, and the next collection finishes the work.

mod common;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

use common::*;
use repository::oci::{DiffId, NamesStream};
use repository::{Category, Repository, Wait};

const DIRECTORY: &str = "KILL_TEST_REPOSITORY";

fn run_child(directory: &Path, failpoint: &str) -> ExitStatus {
    child_killed_at(failpoint, &[(DIRECTORY, directory)])
}

#[test]
#[ignore = "the process that the other tests kill"]
fn child() {
    let mut repository = Repository::open(std::env::var_os(DIRECTORY).unwrap()).unwrap();
    let plan = gc::plan(&repository, &mut (), &()).unwrap();
    let prepared = gc::prepare(&mut repository, plan, Wait::Fail, &mut (), &()).unwrap();
    prepared.execute(&mut (), &()).unwrap();
}

/// A repository with an image that is needed, one that isn't, and an abandoned staging directory.
fn with_garbage() -> Directory {
    let directory = Directory::new();
    let repository = directory.open();
    store_image(&repository, &["needed", "shared"]);
    store_image(&repository, &["garbage", "shared", "more"]);
    repository
        .remove_ref(Category::Streams, &tag("garbage"))
        .unwrap();
    let abandoned = directory
        .path()
        .join("composefs-store/staging/0123456789abcdef");
    std::fs::create_dir(&abandoned).unwrap();
    std::fs::write(abandoned.join("0"), "content").unwrap();
    directory
}

/// Whether the checksums of the layer of these files are there, whole.
fn has_checksums(repository: &Repository, files: &[&str]) -> bool {
    let layer = DiffId::of(files.concat().as_bytes());
    let Some(stream) = repository.stream(&layer.stream_name()).unwrap() else {
        return false;
    };
    let checksums = repository.layer_checksums(&layer, &stream).unwrap();
    let Some(found) = checksums else {
        return false;
    };
    let found: Vec<_> = found.map(|object| object.unwrap().1).collect();
    let expected: Vec<_> = files.iter().map(|file| [file.as_bytes()[0]; 8]).collect();
    found == expected
}

fn kept_checksums(directory: &Directory) -> usize {
    let checksums = directory.path().join("composefs-store/checksums");
    std::fs::read_dir(checksums).unwrap().count()
}

#[test]
fn a_sweep_that_is_killed_anywhere_loses_nothing_and_the_next_one_finishes() {
    let mut tried = 0;
    for point in [
        "remove-name",
        "sync-removed-names",
        "removed-names-synced",
        "remove-layer-file",
        "remove-object",
        "remove-staging",
    ] {
        for n in 1.. {
            let directory = with_garbage();
            let status = run_child(&directory.path(), &format!("{point}:{n}"));
            if status.success() {
                assert!(n > 1, "{point} is never reached");
                break;
            }
            assert_eq!(status.signal(), Some(9), "{point}:{n}");
            tried += 1;

            let repository = directory.open();
            assert_clean(&repository);
            assert!(has_file(&repository, "needed"));
            assert!(has_checksums(&repository, &["needed", "shared"]));
            drop(repository);
            assert!(run_child(&directory.path(), "").success());
            let repository = directory.open();
            assert_clean(&repository);
            assert!(has_file(&repository, "needed") && has_file(&repository, "shared"));
            assert!(!has_file(&repository, "garbage") && !has_file(&repository, "more"));
            assert_eq!(repository.streams().unwrap().entries.len(), 3);
            assert_eq!(repository.images().unwrap().entries.len(), 1);
            assert_eq!(objects(&repository).len(), 8);
            assert_eq!(repository.staging().unwrap(), []);
            assert!(has_checksums(&repository, &["needed", "shared"]));
            assert_eq!(kept_checksums(&directory), 1);
        }
    }
    assert!(tried >= 14, "only {tried} points were tried");
}
