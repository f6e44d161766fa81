//! What fsck finds.

mod common;

use std::fs;
use std::os::unix::fs::symlink;

use common::images::{os_objects, store_os};
use common::*;
use gc::fsck::{Comparison, Defect, Finding, Unverified};
use gc::{Report, fsck};
use repository::oci::NamesStream as _;
use repository::{Repository, Verification};

fn findings(repository: &Repository) -> Vec<Finding> {
    fsck(repository, options(), &()).unwrap().findings
}

fn directory_with_image() -> (Directory, Repository) {
    let directory = Directory::new();
    let repository = directory.open();
    store_image(&repository, &["first", "second"]);
    (directory, repository)
}

#[test]
fn a_sound_repository_has_no_findings_and_everything_is_counted() {
    let (_directory, repository) = directory_with_image();
    let report = fsck(&repository, options(), &()).unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
    assert_eq!(report.counts.objects, objects(&repository).len() as u64);
    assert_eq!(report.counts.streams, 3);
    assert_eq!(report.counts.images, 1);
    assert_eq!(report.counts.refs, 1);
    assert!(report.counts.bytes > 1000);
}

#[test]
fn a_changed_object_of_the_same_size_is_found() {
    let (_directory, repository) = directory_with_image();
    let digest = composefs_image::verity_digest(repository.algorithm(), &content("first"));
    fs::write(repository.object_file(&digest), content("xirst")).unwrap();
    let found = findings(&repository);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(
        found[0].path,
        std::path::Path::new("objects").join(digest.object_path())
    );
    assert!(matches!(&found[0].defect, Defect::DamagedObject { .. }));
    let json = serde_json::to_value(&found[0]).unwrap();
    assert_eq!(json["defect"], "damaged-object");
}

#[test]
fn a_missing_payload_is_found_in_stream_and_image() {
    let (_directory, repository) = directory_with_image();
    let digest = composefs_image::verity_digest(repository.algorithm(), &content("first"));
    fs::remove_file(repository.object_file(&digest)).unwrap();
    let found = findings(&repository);
    let expected = Defect::MissingObjects {
        count: 1,
        first: digest,
        all: vec![digest],
    };
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.iter().all(|finding| finding.defect == expected));
    assert!(found[0].path.starts_with("images"));
    assert!(found[1].path.starts_with("streams"));
}

#[test]
fn a_missing_stream_object_and_a_dangling_ref_are_found() {
    let (directory, repository) = directory_with_image();
    let streams = repository.streams().unwrap().entries;
    let manifest = streams
        .iter()
        .find(|link| link.name.as_str().starts_with("oci-manifest"))
        .unwrap();
    fs::remove_file(repository.object_file(&manifest.object)).unwrap();
    let missing = Defect::MissingObject {
        object: manifest.object,
    };
    assert_eq!(findings(&repository)[0].defect, missing);
    fs::remove_file(
        directory
            .path()
            .join("streams")
            .join(manifest.name.as_str()),
    )
    .unwrap();
    let found = findings(&repository);
    let dangling = Defect::DanglingRef {
        target: manifest.name.to_string(),
    };
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].defect, dangling);
}

#[test]
fn a_truncated_stream_and_an_image_that_is_none_are_found() {
    let (_directory, repository) = directory_with_image();
    let layer = repository.streams().unwrap().entries;
    let layer = layer
        .iter()
        .find(|link| link.name.as_str().starts_with("oci-layer"))
        .unwrap();
    let path = repository.object_file(&layer.object);
    let mut bytes = fs::read(&path).unwrap();
    bytes.truncate(bytes.len() - 5);
    fs::write(&path, bytes).unwrap();
    let image = repository.images().unwrap().entries[0].name;
    fs::write(repository.object_file(&image), "no image").unwrap();
    let found = findings(&repository);
    let count = |what: fn(&Defect) -> bool| {
        let defects = found.iter().map(|finding| &finding.defect);
        defects.filter(|defect| what(defect)).count()
    };
    assert_eq!(
        count(|defect| matches!(defect, Defect::DamagedObject { .. })),
        2
    );
    assert_eq!(
        count(|defect| matches!(defect, Defect::InvalidStream { .. })),
        1
    );
    assert_eq!(
        count(|defect| matches!(defect, Defect::InvalidImage { .. })),
        1
    );
}

#[test]
fn names_that_do_not_belong_are_found() {
    let (directory, repository) = directory_with_image();
    let root = directory.path();
    fs::write(root.join("streams/file"), "").unwrap();
    symlink("elsewhere", root.join("images/link")).unwrap();
    fs::write(root.join("streams/refs/file"), "").unwrap();
    fs::create_dir_all(root.join("objects/00")).unwrap();
    fs::write(root.join("objects/00/odd"), "").unwrap();
    fs::write(root.join("objects/.tmp-object-000000000000"), "").unwrap();
    fs::write(root.join("anything"), "").unwrap();
    let found = findings(&repository);
    assert_eq!(found.len(), 4, "{found:?}");
    assert!(
        found
            .iter()
            .all(|finding| matches!(finding.defect, Defect::Foreign { .. }))
    );
}

#[test]
fn an_image_under_another_name_is_found() {
    let (directory, repository) = directory_with_image();
    let image = repository.images().unwrap().entries[0].name;
    let other = composefs_image::verity_digest(repository.algorithm(), &content("first"));
    let target = format!("../objects/{}", image.object_path());
    symlink(target, directory.path().join("images").join(other.to_hex())).unwrap();
    let found = findings(&repository);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].defect, Defect::MisnamedImage { object: image });
}

#[test]
fn one_image_is_checked_with_all_it_needs_and_nothing_else() {
    let directory = Directory::new();
    let repository = directory.open();
    let mine = store_os(&repository, "mine", "", &["shared", "mine"], None);
    let other = store_os(&repository, "other", "", &["shared", "other"], None);
    let look = |image| gc::fsck_image(&repository, image, options(), &()).unwrap();
    let report = look(mine.manifest);
    assert_eq!(report.findings, []);
    let all = os_objects(&repository, mine.manifest);
    assert_eq!(report.counts.objects, all.len() as u64);
    assert_eq!((report.counts.streams, report.counts.images), (4, 2));

    let file = |name| {
        let digest = composefs_image::verity_digest(repository.algorithm(), &content(name));
        repository.object_file(&digest)
    };
    fs::write(file("other"), "damage").unwrap();
    assert_eq!(look(mine.manifest).findings, []);
    assert_eq!(look(other.manifest).findings.len(), 1);
    fs::remove_file(file("shared")).unwrap();
    // The layer and both EROFS images name it.
    assert_eq!(look(mine.manifest).findings.len(), 3);
    fs::remove_file(
        directory
            .path()
            .join("streams")
            .join(mine.manifest.stream_name().as_str()),
    )
    .unwrap();
    let gone = look(mine.manifest).findings;
    assert!(
        matches!(&gone[0].defect, Defect::InvalidOciImage { .. }),
        "{gone:?}"
    );
}

#[test]
fn a_layer_whose_source_was_trusted_is_no_finding() {
    let directory = Directory::new();
    let repository = directory.open();
    let batch = repository.batch().unwrap();
    let (layer, _) = store_layer(&batch, &["file"]);
    batch.set_verification(&layer, Verification::Trusted);
    batch.commit().unwrap();
    let report = fsck(&repository, options(), &()).unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
    let expected = Unverified {
        layer,
        diff_id: Comparison::NotCompared,
    };
    assert_eq!(report.unverified, [expected]);
    assert_eq!(gc::confirm(&repository, &report).unwrap(), 0);

    let right = Report {
        unverified: vec![Unverified {
            diff_id: Comparison::Right,
            ..expected
        }],
        ..report
    };
    assert_eq!(gc::confirm(&repository, &right).unwrap(), 1);
    let report = fsck(&repository, options(), &()).unwrap();
    assert_eq!(report.unverified, []);
}
