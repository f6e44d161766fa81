//! The process dies at every durable step of a repair: nothing gets worse, names stay as they are, and
//! doing it again finishes the work.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

use common::*;
use composefs_image::VerityDigest;
use gc::{Supplier, fsck, repair};
use repository::{Category, Repository};

const DIRECTORY: &str = "KILL_TEST_REPOSITORY";
const OTHER: &str = "KILL_TEST_OTHER_REPOSITORY";

fn run_child(directory: &Path, other: &Path, failpoint: &str) -> ExitStatus {
    child_killed_at(failpoint, &[(DIRECTORY, directory), (OTHER, other)])
}

#[test]
#[ignore = "the process that the other tests kill"]
fn child() {
    let open = |key| Repository::open(std::env::var_os(key).unwrap()).unwrap();
    let repository = open(DIRECTORY);
    let mut suppliers: [Box<dyn Supplier>; 1] = [Box::new(open(OTHER))];
    // What a stream names shows only once the stream is whole.
    for _ in 0..3 {
        let found = fsck(&repository, options(), &()).unwrap();
        repair(&repository, &found, &mut suppliers, &()).unwrap();
    }
}

/// Every third object is damaged, cut off or gone, streams and images among them.
fn damaged() -> Directory {
    let directory = whole();
    let repository = directory.open();
    for (number, object) in objects(&repository).iter().enumerate() {
        let file = repository.object_file(object);
        let mut content = fs::read(&file).unwrap();
        match number % 4 {
            0 => content[0] ^= 1,
            1 => content.truncate(content.len() / 2),
            2 => {}
            _ => continue,
        }
        fs::remove_file(&file).unwrap();
        if number % 4 < 2 {
            fs::write(&file, content).unwrap();
        }
    }
    directory
}

fn whole() -> Directory {
    let directory = Directory::new();
    let repository = directory.open();
    store_image(&repository, &["first", "second"]);
    store_image(&repository, &["first", "third"]);
    directory
}

/// The objects with the right content.
fn sound(repository: &Repository) -> BTreeSet<VerityDigest> {
    let objects = objects(repository).into_iter();
    objects
        .filter(|object| {
            let content = fs::read(repository.object_file(object)).unwrap();
            composefs_image::verity_digest(repository.algorithm(), &content) == *object
        })
        .collect()
}

/// Every name and what it leads to.
fn names(repository: &Repository) -> String {
    let refs = [Category::Streams, Category::Images].map(|of| repository.refs(of).unwrap());
    format!(
        "{:?} {:?} {refs:?}",
        repository.streams().unwrap(),
        repository.images().unwrap()
    )
}

#[test]
fn a_repair_that_is_killed_anywhere_makes_nothing_worse_and_the_next_one_finishes() {
    let other = whole();
    let all = objects(&other.open());
    let mut tried = 0;
    for point in [
        "commit-staged",
        "commit-content-synced",
        "commit-object",
        "commit-objects-named",
        "commit-objects-synced",
        "commit-linked",
        "commit-refs-set",
        "commit-done",
    ] {
        for n in 1.. {
            let directory = damaged();
            let before = sound(&directory.open());
            let names_before = names(&directory.open());
            let status = run_child(&directory.path(), &other.path(), &format!("{point}:{n}"));
            if status.success() {
                assert!(n > 1, "{point} is never reached");
                break;
            }
            assert_eq!(status.signal(), Some(9), "{point}:{n}");
            tried += 1;

            let repository = directory.open();
            assert!(sound(&repository).is_superset(&before), "{point}:{n}");
            assert_eq!(names(&repository), names_before, "{point}:{n}");
            drop(repository);
            assert!(run_child(&directory.path(), &other.path(), "").success());
            let repository = directory.open();
            assert_clean(&repository);
            assert_eq!(sound(&repository), all);
            assert_eq!(names(&repository), names_before);
        }
    }
    assert!(tried >= 20, "only {tried} points were tried");
}
