//! Images whose layers have lost their tar-split, imported with tars of our own making.

mod support;

use std::fs;

use containers_storage::testing::Reshape;
use importer::source::{from_storage, synthetic_from_storage};
use importer::{ImportOptions, ImportReport, Outcome, Quiet, Warning, import_image};
use repository::oci::{DiffId, NamesStream};
use repository::splitstream::copy_stream;
use repository::{InitOptions, Repository, Security, Tag};
use support::{Store, dir, embedded, file, hard_link, link, noise};

fn repository() -> (tempfile::TempDir, Repository) {
    let dir = tempfile::tempdir().unwrap();
    let options = InitOptions {
        security: Security::Insecure,
        ..InitOptions::default()
    };
    Repository::init(dir.path(), &options).unwrap();
    let repository = Repository::open(dir.path()).unwrap();
    (dir, repository)
}

fn store() -> Store {
    Store::new(&[
        &[dir("usr"), file("usr/kept", noise(1, 3000))],
        &[
            dir("b"),
            file("b/large", noise(2, 300_000)),
            hard_link("a-link", "b/large"),
            link("c", "b/large"),
            file("b/small", "small"),
            file("b/.wh.gone", ""),
            embedded("d", noise(3, 100)),
        ],
    ])
}

fn import(repository: &Repository, store: &Store) -> ImportReport {
    let image = synthetic_from_storage(&store.image()).unwrap();
    let options = ImportOptions {
        tags: vec![Tag::new("localhost/test:1").unwrap()],
        ..ImportOptions::default()
    };
    import_image(repository, &image, &options, &Quiet).unwrap()
}

/// Name, type and content of each member of a tar that needs no extensions.
fn members(tar: &[u8]) -> Vec<(String, u8, Vec<u8>)> {
    let mut members = Vec::new();
    let mut rest = tar;
    while rest[0] != 0 {
        let (header, after) = rest.split_at(512);
        let text = |field: &[u8]| {
            let end = field
                .iter()
                .position(|byte| *byte == 0)
                .unwrap_or(field.len());
            String::from_utf8(field[..end].to_vec()).unwrap()
        };
        let size = usize::from_str_radix(&text(&header[124..136]), 8).unwrap();
        if header[156] != b'x' {
            members.push((text(&header[..100]), header[156], after[..size].to_vec()));
        }
        rest = &after[size.next_multiple_of(512)..];
    }
    assert_eq!(rest, [0; 1024]);
    members
}

#[test]
fn a_layer_that_lost_its_tar_split_becomes_another_one_and_its_image_says_so() {
    let (_dir, repository) = repository();
    let store = store();
    fs::remove_file(store.tar_split(1)).unwrap();
    let source = store.image().digest().unwrap();
    let report = import(&repository, &store);

    assert_eq!(report.outcome, Outcome::Imported);
    assert_ne!(report.manifest, source);
    let warning = Warning::Synthetic {
        manifest: source,
        layers: 1,
    };
    assert!(report.warnings.contains(&warning), "{:?}", report.warnings);
    let [kept, made] = report.layers.as_slice() else {
        panic!("{:?}", report.layers);
    };
    assert_eq!(kept.diff_id, store.layers[0].diff_id());
    assert_ne!(made.diff_id, store.layers[1].diff_id());

    let stream = repository.stream(&made.diff_id.stream_name()).unwrap();
    let mut tar = Vec::new();
    copy_stream(&repository, &stream.unwrap(), &mut tar).unwrap();
    assert_eq!(DiffId::of(&tar), made.diff_id);
    let found = members(&tar);
    let expected = [
        ("./", b'5', vec![]),
        ("a-link", b'0', noise(2, 300_000)),
        ("b/", b'5', vec![]),
        ("b/.wh.gone", b'0', vec![]),
        ("b/large", b'1', vec![]),
        ("b/small", b'0', b"small".to_vec()),
        ("c", b'2', vec![]),
        ("d", b'0', noise(3, 100)),
    ]
    .map(|(name, kind, content)| (name.to_owned(), kind, content));
    assert_eq!(found, expected);

    // The same storage makes the same image.
    let again = import(&repository, &store);
    assert_eq!(again.outcome, Outcome::Present);
    assert_eq!(again.manifest, report.manifest);
    assert!(again.warnings.contains(&warning), "{:?}", again.warnings);
}

#[test]
fn an_image_with_all_its_tar_splits_stays_what_it_is() {
    let store = store();
    let image = synthetic_from_storage(&store.image()).unwrap();
    assert_eq!(
        image.manifest,
        from_storage(&store.image()).unwrap().manifest
    );
    assert!(image.id.is_some());
}

#[test]
fn a_flat_layer_without_tar_split_is_made_from_its_table_of_contents() {
    let (_dir, repository) = repository();
    let store = store();
    let reshape = Reshape::new(store.root());
    reshape.flat(&store.ids[1]);
    reshape.without_tar_split(&store.ids[1]);
    let report = import(&repository, &store);
    let diff_id = report.layers[1].diff_id;
    let stream = repository.stream(&diff_id.stream_name()).unwrap();
    let mut tar = Vec::new();
    copy_stream(&repository, &stream.unwrap(), &mut tar).unwrap();
    let names: Vec<_> = members(&tar).into_iter().map(|(name, ..)| name).collect();
    let expected = ["a-link", "b/", "b/.wh.gone", "b/large", "b/small", "c", "d"];
    assert_eq!(names, expected);
}
