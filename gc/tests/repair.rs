//! Mending, from a repository that still has what is broken.

mod common;

use std::collections::BTreeSet;
use std::fs;

use common::*;
use composefs_image::VerityDigest;
use gc::fsck::add_owners;
use gc::{Known, Repaired, Report, Supplier, fsck, repair};
use repository::Repository;

fn with_image() -> (Directory, Repository) {
    let directory = Directory::new();
    let repository = directory.open();
    store_image(&repository, &["first", "second"]);
    (directory, repository)
}

fn look(repository: &Repository) -> Report {
    fsck(repository, options(), &()).unwrap()
}

fn mend(repository: &Repository, suppliers: &mut [Box<dyn Supplier>]) -> Repaired {
    repair(repository, &look(repository), suppliers, &()).unwrap()
}

#[test]
fn every_object_can_be_mended_damaged_truncated_or_missing() {
    let (other, _) = with_image();
    let (_directory, repository) = with_image();
    let all = objects(&repository);
    for (number, object) in all.iter().enumerate() {
        let file = repository.object_file(object);
        let mut content = fs::read(&file).unwrap();
        match number % 3 {
            0 => content[0] ^= 1,
            1 => content.truncate(content.len() / 2),
            _ => {}
        }
        fs::remove_file(&file).unwrap();
        if number % 3 < 2 {
            fs::write(&file, content).unwrap();
        }
    }
    // What a stream names shows only once the stream is whole.
    let mut mended = 0;
    for _ in 0..3 {
        let done = mend(&repository, &mut [Box::new(other.open())]);
        assert_eq!(done.remaining, []);
        mended += done.mended.len();
    }
    assert_eq!(mended, all.len());
    assert_clean(&repository);
    assert_eq!(objects(&repository), all);
}

#[test]
fn content_that_is_not_right_does_not_count() {
    struct Liar(Repository, VerityDigest);
    impl Supplier for Liar {
        fn name(&self) -> String {
            "liar".into()
        }
        fn open(&mut self, _: &VerityDigest) -> Option<fs::File> {
            self.0.open_object(&self.1).ok()
        }
    }
    let (other, _) = with_image();
    let (_directory, repository) = with_image();
    let digest = |file| composefs_image::verity_digest(repository.algorithm(), &content(file));
    let broken = digest("first");
    fs::write(repository.object_file(&broken), "damage").unwrap();
    let before = fs::read(repository.object_file(&broken)).unwrap();

    let liar = Liar(other.open(), digest("second"));
    let done = mend(&repository, &mut [Box::new(liar)]);
    assert_eq!(done.mended, []);
    assert_eq!(done.remaining, [broken]);
    assert_eq!(fs::read(repository.object_file(&broken)).unwrap(), before);

    let liar = Liar(other.open(), digest("second"));
    let done = mend(&repository, &mut [Box::new(liar), Box::new(other.open())]);
    assert_eq!(done.mended.len(), 1);
    assert_eq!(done.mended[0].from, other.path().display().to_string());
    assert_clean(&repository);
}

#[test]
fn a_reader_keeps_what_it_has_open_while_an_object_is_replaced() {
    use std::io::Read as _;
    let (other, _) = with_image();
    let (_directory, repository) = with_image();
    let digest = composefs_image::verity_digest(repository.algorithm(), &content("first"));
    fs::write(repository.object_file(&digest), "damage").unwrap();
    let mut open = fs::File::open(repository.object_file(&digest)).unwrap();
    mend(&repository, &mut [Box::new(other.open())]);
    let mut read = String::new();
    open.read_to_string(&mut read).unwrap();
    assert_eq!(read, "damage");
}

#[test]
fn findings_name_everybody_who_needs_what_is_broken() {
    let directory = Directory::new();
    let repository = directory.open();
    store_image(&repository, &["first", "shared"]);
    store_image(&repository, &["second", "shared"]);
    store_image(&repository, &["third"]);
    let digest = |file| composefs_image::verity_digest(repository.algorithm(), &content(file));
    fs::remove_file(repository.object_file(&digest("shared"))).unwrap();
    fs::write(repository.object_file(&digest("third")), "damage").unwrap();

    let mut report = look(&repository);
    add_owners(&repository, Known::default(), &mut report).unwrap();
    let owners: BTreeSet<Vec<String>> = report
        .findings
        .iter()
        .map(|finding| finding.needed_by.iter().map(ToString::to_string).collect())
        .collect();
    let both = vec!["tag first".to_owned(), "tag second".to_owned()];
    let third = vec!["tag third".to_owned()];
    assert_eq!(
        owners,
        BTreeSet::from([both, third]),
        "{:?}",
        report.findings
    );
}
