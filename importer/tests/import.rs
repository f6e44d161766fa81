//! Imports of generated storage roots: what comes out, and what is refused.

mod support;

use std::error::Error;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use containers_storage::ContentCrc;
use importer::source::from_storage;
use importer::{
    Cancel, Counts, DiffIdCheck, Event, FileError, ImportError, ImportOptions, ImportReport,
    LayerError, LayerOutcome, MemberProblem, Outcome, Quiet, Tally, Warning, import_image,
};
use repository::oci::{DiffId, NamesStream};
use repository::splitstream::copy_stream;
use repository::{
    Algorithm, Category, CopyPolicy, InitOptions, Repository, Security, Tag, VerityDigest,
};
use support::{Entry, LayerData, Store, dir, embedded, file, hard_link, link, member, noise};

struct Repo {
    dir: tempfile::TempDir,
    repository: Repository,
}

impl Repo {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = InitOptions {
            algorithm: Algorithm::Sha256,
            security: Security::Insecure,
            ..InitOptions::default()
        };
        Repository::init(dir.path(), &options).unwrap();
        Self {
            repository: Repository::open(dir.path()).unwrap(),
            dir,
        }
    }

    fn import(&self, store: &Store) -> Result<ImportReport, ImportError> {
        self.import_with(store, &options())
    }

    fn import_with(
        &self,
        store: &Store,
        options: &ImportOptions,
    ) -> Result<ImportReport, ImportError> {
        let image = from_storage(&store.image())?;
        import_image(&self.repository, &image, options, &Quiet)
    }

    fn streams(&self) -> Vec<String> {
        let streams = self.repository.streams().unwrap().entries;
        streams.iter().map(|link| link.name.to_string()).collect()
    }

    fn layer_tar(&self, diff_id: &DiffId) -> Vec<u8> {
        let stream = self.repository.stream(&diff_id.stream_name()).unwrap();
        let mut tar = Vec::new();
        copy_stream(&self.repository, &stream.unwrap(), &mut tar).unwrap();
        tar
    }

    fn objects(&self) -> Vec<VerityDigest> {
        (0..=255)
            .flat_map(|shard| self.repository.objects_in(shard).unwrap().entries)
            .collect()
    }

    /// Nothing has a name, and nothing is left in staging.
    fn assert_untouched(&self) {
        assert_eq!(self.streams(), [""; 0]);
        assert_eq!(self.objects(), []);
        assert_eq!(self.repository.images().unwrap().entries, []);
        self.assert_no_staging();
    }

    fn assert_no_staging(&self) {
        assert_eq!(self.repository.staging().unwrap().len(), 0);
    }
}

fn options() -> ImportOptions {
    ImportOptions {
        tags: vec![Tag::new("localhost/test:1").unwrap()],
        ..ImportOptions::default()
    }
}

fn diff_id(layer: &LayerData) -> DiffId {
    DiffId::of(&layer.tar)
}

fn files(tally: Tally) -> u64 {
    tally.files
}

/// The error with everything behind it, as a user sees it.
fn chain(error: &ImportError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}

/// The import fails, names the layer and what else is given, and leaves nothing.
fn assert_refused(store: &Store, layer: usize, names: &[&str]) -> LayerError {
    let repo = Repo::new();
    let error = repo.import(store).unwrap_err();
    let text = chain(&error);
    let id = store.ids[layer].to_string();
    for name in [&id[..]].iter().chain(names) {
        assert!(text.contains(name), "{text:?} does not name {name}");
    }
    repo.assert_untouched();
    match error {
        ImportError::Layer {
            source,
            layer: failed,
            ..
        } => {
            assert_eq!(failed.id.as_ref(), Some(&store.ids[layer]));
            source
        }
        other => panic!("{other:?}"),
    }
}

fn base() -> Vec<Entry> {
    vec![
        dir("usr"),
        dir("usr/bin"),
        file("usr/bin/large", noise(1, 700_001)),
        file("usr/bin/small", noise(2, 5000)),
        file("usr/bin/tiny", "#!/bin/sh\n"),
        file("usr/empty", ""),
        link("usr/link", "bin/large"),
        hard_link("usr/hard", "usr/bin/small"),
        dir("etc"),
        dir("run"),
    ]
}

fn second() -> Vec<Entry> {
    vec![
        dir("etc"),
        file("etc/.wh.gone", ""),
        file("etc/same", noise(2, 5000)),
        file("etc/other", noise(3, 65)),
        file("etc/line", noise(4, 64)),
    ]
}

fn two_layers() -> Store {
    Store::new(&[&base(), &second()])
}

#[test]
fn an_import_keeps_every_byte_of_every_layer() {
    let (repo, store) = (Repo::new(), two_layers());
    let report = repo.import(&store).unwrap();

    assert_eq!(report.outcome, Outcome::Imported);
    for layer in &store.layers {
        assert_eq!(repo.layer_tar(&diff_id(layer)), layer.tar);
    }
    let tag = repo.repository.tag(&Tag::new("localhost/test:1").unwrap());
    assert_eq!(
        tag.unwrap(),
        Some(report.manifest.stream_name().to_string())
    );
    assert_eq!(repo.streams().len(), 4, "two layers, config, manifest");
    let images = repo.repository.images().unwrap().entries;
    assert_eq!(
        images.iter().map(|link| link.name).collect::<Vec<_>>(),
        report.rootfs
    );
    assert_eq!(report.rootfs.len(), 1);
    repo.assert_no_staging();
}

#[test]
fn a_report_counts_where_content_went() {
    let (repo, store) = (Repo::new(), two_layers());
    let report = repo.import(&store).unwrap();

    let Counts {
        reflinked,
        copied,
        present,
        inlined,
        ..
    } = report.total;
    assert_eq!(files(reflinked) + files(copied), 3);
    assert_eq!(reflinked.bytes + copied.bytes, 700_001 + 5000 + 65);
    assert_eq!(
        present,
        Tally {
            files: 1,
            bytes: 5000
        }
    );
    assert_eq!(
        inlined,
        Tally {
            files: 2,
            bytes: 10 + 64
        }
    );
    let copied = (copied.files > 0).then_some(Warning::Copied(copied));
    assert_eq!(report.warnings, copied.into_iter().collect::<Vec<_>>());
    for (layer, report) in store.layers.iter().zip(&report.layers) {
        assert_eq!(report.outcome, LayerOutcome::Imported);
        assert_eq!(report.tar_bytes, layer.tar.len() as u64);
    }
}

#[test]
fn an_image_that_is_there_is_only_tagged() {
    let (repo, store) = (Repo::new(), two_layers());
    let first = repo.import(&store).unwrap();
    let objects = repo.objects();
    // Proof that nothing is read: there is nothing to be read any more.
    fs::remove_dir_all(store.diff(0)).unwrap();

    let tags = vec![Tag::new("another").unwrap()];
    let again = repo
        .import_with(&store, &ImportOptions { tags, ..options() })
        .unwrap();

    assert_eq!(again.outcome, Outcome::Present);
    assert_eq!(again.rootfs, first.rootfs);
    assert_eq!(again.total, Counts::default());
    assert_eq!(repo.objects(), objects);
    let refs = repo.repository.refs(Category::Streams).unwrap().entries;
    assert_eq!(refs.len(), 2);
}

#[test]
fn sizes_around_every_limit_come_out_as_the_right_objects() {
    let sizes: &[(&'static str, usize)] = &[
        ("usr/a", 1),
        ("usr/b", 64),
        ("usr/c", 65),
        ("usr/d", 511),
        ("usr/e", 512),
        ("usr/f", 513),
        ("usr/g", 4096),
        ("usr/h", 128 * 1024),
        ("usr/i", 128 * 1024 + 1),
        ("usr/j", 5 << 20),
    ];
    let content = |size: usize| noise(size as u64, size);
    let mut entries = vec![dir("usr")];
    entries.extend(sizes.iter().map(|(name, size)| file(name, content(*size))));
    let (repo, store) = (Repo::new(), Store::new(&[&entries]));

    repo.import(&store).unwrap();

    assert_eq!(
        repo.layer_tar(&diff_id(&store.layers[0])),
        store.layers[0].tar
    );
    for (name, size) in sizes {
        let digest = composefs_image::verity_digest(Algorithm::Sha256, &content(*size));
        let stored = repo.repository.object_size(&digest).unwrap();
        assert_eq!(stored, (*size > 64).then_some(*size as u64), "{name}");
    }
}

#[test]
fn one_job_does_as_well_as_many() {
    let store = two_layers();
    let repos = [1, 8].map(|jobs| {
        let repo = Repo::new();
        let jobs = std::num::NonZeroUsize::new(jobs);
        repo.import_with(&store, &ImportOptions { jobs, ..options() })
            .unwrap();
        repo
    });
    assert_eq!(repos[0].objects(), repos[1].objects());
}

#[test]
fn content_inside_the_tar_split_becomes_an_object_too() {
    let large = noise(7, 300_000);
    let (repo, store) = (
        Repo::new(),
        Store::new(&[&[
            dir("usr"),
            embedded("usr/in", large.clone()),
            embedded("usr/tiny", "x"),
        ]]),
    );
    // The content comes from the tar-split; there need not be a file.
    fs::remove_file(store.diff(0).join("usr/in")).unwrap();

    let report = repo.import(&store).unwrap();

    assert_eq!(
        repo.layer_tar(&diff_id(&store.layers[0])),
        store.layers[0].tar
    );
    let digest = composefs_image::verity_digest(Algorithm::Sha256, &large);
    assert_eq!(repo.repository.object_size(&digest).unwrap(), Some(300_000));
    assert_eq!(report.total.inlined, Tally { files: 1, bytes: 1 });
}

#[test]
fn a_layer_that_occurs_twice_is_read_once() {
    let layer = || LayerData::new(&base());
    let (repo, store) = (
        Repo::new(),
        Store::of(vec![layer(), LayerData::new(&second()), layer()]),
    );
    let report = repo.import(&store).unwrap();
    let outcomes: Vec<_> = report.layers.iter().map(|layer| layer.outcome).collect();
    assert_eq!(
        outcomes,
        [
            LayerOutcome::Imported,
            LayerOutcome::Imported,
            LayerOutcome::Repeated
        ]
    );
}

#[test]
fn an_image_that_makes_no_rootfs_image_is_recorded_without_one() {
    let content = || noise(1, 100);
    for (entries, reason) in [
        (vec![dir("bin"), file("bin/sh", content())], "/usr"),
        (
            vec![dir("usr"), file("usr/lib/file", content())],
            "usr/lib/file",
        ),
    ] {
        let (repo, store) = (Repo::new(), Store::new(&[&entries]));
        let report = repo.import(&store).unwrap();
        assert!(
            report.warnings.iter().any(|warning| matches!(
                warning,
                Warning::NoRootfs { reason: text } if text.contains(reason)
            )),
            "{:?}",
            report.warnings
        );
        assert_eq!(report.rootfs, []);
        assert_eq!(repo.streams().len(), 3);
    }
}

#[test]
fn content_of_a_member_of_unknown_type_stays_inline() {
    let odd = member("usr/odd", b'Z', noise(5, 300_000));
    let (repo, store) = (Repo::new(), Store::new(&[&[dir("usr"), odd]]));
    let report = repo.import(&store).unwrap();
    assert_eq!(report.total, Counts::default());
    assert_eq!(
        repo.layer_tar(&diff_id(&store.layers[0])),
        store.layers[0].tar
    );
}

#[test]
fn import_refuses_much_content_of_a_member_of_unknown_type() {
    let odd = member("usr/odd", b'Z', vec![0; (1 << 20) + 1]);
    assert_refused(&Store::new(&[&[dir("usr"), odd]]), 0, &["usr/odd"]);
}

#[test]
fn import_refuses_a_directory_with_content() {
    let store = Store::new(&[&[member("usr", b'5', noise(6, 100))]]);
    let error = assert_refused(&store, 0, &["usr"]);
    let problem = MemberProblem::SizeWithoutContent;
    assert!(
        matches!(error, LayerError::Member { problem: p, .. } if p == problem),
        "{error:?}"
    );
}

#[test]
fn import_refuses_a_missing_file() {
    let store = two_layers();
    fs::remove_file(store.diff(1).join("etc/other")).unwrap();
    assert_refused(&store, 1, &["etc/other", "missing"]);
}

#[test]
fn import_refuses_changed_content() {
    let store = two_layers();
    fs::write(store.diff(0).join("usr/bin/small"), noise(99, 5000)).unwrap();
    let error = assert_refused(
        &store,
        0,
        &["usr/bin/small", &diff_id(&store.layers[0]).to_string()],
    );
    assert!(
        matches!(
            error,
            LayerError::File {
                source: FileError::Content,
                ..
            }
        ),
        "{error:?}"
    );
}

#[test]
fn import_refuses_a_changed_piece_of_a_large_file() {
    let store = two_layers();
    let mut content = noise(1, 700_001);
    content[400_000] ^= 1;
    fs::write(store.diff(0).join("usr/bin/large"), content).unwrap();
    let error = assert_refused(&store, 0, &["usr/bin/large"]);
    assert!(
        matches!(
            error,
            LayerError::File {
                source: FileError::Content,
                ..
            }
        ),
        "{error:?}"
    );
}

#[test]
fn import_refuses_changed_inline_content() {
    let store = two_layers();
    fs::write(store.diff(0).join("usr/bin/tiny"), "#!/bin/no\n").unwrap();
    assert_refused(&store, 0, &["usr/bin/tiny"]);
}

#[test]
fn import_refuses_a_truncated_file() {
    let store = two_layers();
    fs::write(store.diff(0).join("usr/bin/small"), noise(2, 4999)).unwrap();
    let error = assert_refused(&store, 0, &["usr/bin/small"]);
    assert!(
        matches!(
            error,
            LayerError::File {
                source: FileError::Size {
                    expected: 5000,
                    actual: 4999
                },
                ..
            }
        ),
        "{error:?}"
    );
}

#[test]
fn import_refuses_a_symlink_in_place_of_a_file() {
    let store = two_layers();
    let path = store.diff(0).join("usr/bin/small");
    let outside = store.diff(1).join("etc/same");
    fs::remove_file(&path).unwrap();
    symlink(outside, &path).unwrap();
    assert_refused(&store, 0, &["usr/bin/small", "symlink"]);
}

#[test]
fn import_refuses_a_stub_without_content() {
    // What a metacopy file of a shifted layer looks like to somebody who reads it.
    let store = two_layers();
    fs::write(store.diff(0).join("usr/bin/small"), vec![0; 5000]).unwrap();
    assert_refused(&store, 0, &["usr/bin/small"]);
}

#[test]
fn import_refuses_a_missing_tar_split() {
    let store = two_layers();
    fs::remove_file(store.tar_split(1)).unwrap();
    assert_refused(&store, 1, &["tar-split"]);
}

#[test]
fn import_refuses_a_tar_split_cut_within_its_gzip() {
    let store = two_layers();
    let gzip = fs::read(store.tar_split(0)).unwrap();
    fs::write(store.tar_split(0), &gzip[..gzip.len() - 12]).unwrap();
    assert_refused(&store, 0, &["tar-split"]);
}

#[test]
fn import_refuses_a_tar_split_without_its_last_lines() {
    let mut store = two_layers();
    store.change_tar_split(0, |lines| lines.truncate(lines.len() - 1));
    let error = assert_refused(&store, 0, &[]);
    assert!(matches!(error, LayerError::DiffId { .. }), "{error:?}");
    store.change_tar_split(0, |lines| lines.truncate(5));
    assert_refused(&store, 0, &[]);
}

#[test]
fn import_refuses_an_altered_header() {
    let mut store = two_layers();
    store.change_tar_split(0, |lines| {
        let mut header = STANDARD
            .decode(lines[0]["payload"].as_str().unwrap())
            .unwrap();
        // Owner 1 in place of 0, and the checksum to fit.
        header[108..116].copy_from_slice(b"0000001\0");
        let sum = u32::from_str_radix(std::str::from_utf8(&header[148..154]).unwrap(), 8).unwrap();
        header[148..154].copy_from_slice(format!("{:06o}", sum + 1).as_bytes());
        lines[0]["payload"] = STANDARD.encode(header).into();
    });
    let error = assert_refused(&store, 0, &["diff ID"]);
    assert!(matches!(error, LayerError::DiffId { .. }), "{error:?}");
}

/// Storage whose first layer is not what its diff ID says, with checksums that say nothing.
fn forged() -> Store {
    let mut store = two_layers();
    let forged = LayerData::new(&[file("usr/bin/small", noise(98, 5000))]);
    fs::write(store.diff(0).join("usr/bin/small"), noise(98, 5000)).unwrap();
    store.change_tar_split(0, |lines| {
        let line = lines
            .iter_mut()
            .find(|line| line["name"] == "usr/bin/small")
            .unwrap();
        line["payload"] = forged.tar_split[1]["payload"].clone();
    });
    store
}

#[test]
fn import_refuses_content_that_was_changed_together_with_its_crc() {
    let error = assert_refused(&forged(), 0, &["diff ID"]);
    assert!(matches!(error, LayerError::DiffId { .. }), "{error:?}");
}

/// The CRC-64s that the repository has kept of a layer, in the order of its objects.
fn kept_checksums(repo: &Repo, layer: &LayerData) -> Vec<[u8; 8]> {
    let diff_id = diff_id(layer);
    let stream = repo.repository.stream(&diff_id.stream_name()).unwrap();
    let kept = repo.repository.layer_checksums(&diff_id, &stream.unwrap());
    let kept = kept.unwrap().expect("the import keeps them");
    kept.map(|object| {
        let (object, kept) = object.unwrap();
        let content = repo.repository.read_object(&object, 1 << 30).unwrap();
        let mut crc = ContentCrc::new();
        crc.update(&content);
        assert_eq!(crc.finish(), kept, "{object}");
        kept
    })
    .collect()
}

#[test]
fn import_keeps_the_checksum_of_each_object_once() {
    let (repo, store) = (
        Repo::new(),
        Store::new(&[&[
            file("small", noise(1, 1000)),
            file("again", noise(1, 1000)),
            file("inline", noise(2, 64)),
            file("large", noise(3, 1_000_000)),
            embedded("within", noise(4, 5000)),
            embedded("large-within", noise(5, 400_000)),
            file("small-too", noise(6, 65)),
        ]]),
    );
    for options in [trusting(), options()] {
        repo.import_with(&store, &options).unwrap();
        assert_eq!(kept_checksums(&repo, &store.layers[0]).len(), 5);
    }
}

fn trusting() -> ImportOptions {
    ImportOptions {
        diff_ids: DiffIdCheck::TrustSource,
        ..options()
    }
}

#[test]
fn a_trusted_layer_is_known_as_such_until_it_is_verified() {
    let (repo, store) = (Repo::new(), two_layers());
    let layers: Vec<_> = store.layers.iter().map(diff_id).collect();
    let unverified = || {
        let mut found = layers.clone();
        found.retain(|layer| repo.repository.is_unverified(layer).unwrap());
        found
    };
    let outcomes = |report: &ImportReport| -> Vec<_> {
        report.layers.iter().map(|layer| layer.outcome).collect()
    };

    let trusted = repo.import_with(&store, &trusting()).unwrap();
    assert_eq!(outcomes(&trusted), [LayerOutcome::Trusted; 2]);
    assert_eq!(unverified(), layers);
    let again = repo.import_with(&store, &trusting()).unwrap();
    assert_eq!(again.outcome, Outcome::Present);
    let objects = repo.objects();

    let verified = repo.import(&store).unwrap();
    assert_eq!(outcomes(&verified), [LayerOutcome::Imported; 2]);
    assert_eq!(unverified(), []);
    assert_eq!(repo.objects(), objects);
    let again = repo.import_with(&store, &trusting()).unwrap();
    assert_eq!(again.outcome, Outcome::Present);
    assert_eq!(unverified(), []);
}

#[test]
fn a_trusted_layer_that_is_not_what_it_is_called_never_becomes_a_verified_one() {
    let (repo, store) = (Repo::new(), forged());
    repo.import_with(&store, &trusting()).unwrap();

    let error = repo.import(&store).unwrap_err();

    assert!(chain(&error).contains("diff ID"), "{error:?}");
    let layer = diff_id(&store.layers[0]);
    assert!(repo.repository.is_unverified(&layer).unwrap());
}

#[test]
fn a_trusted_layer_has_its_checksums_compared() {
    let (repo, store) = (Repo::new(), two_layers());
    fs::write(store.diff(0).join("usr/bin/small"), noise(98, 5000)).unwrap();

    let error = repo.import_with(&store, &trusting()).unwrap_err();

    assert!(chain(&error).contains("usr/bin/small"), "{error:?}");
    assert!(repo.streams().is_empty());
}

#[test]
fn import_refuses_a_size_that_differs_from_the_tar_header() {
    let mut store = two_layers();
    fs::write(store.diff(0).join("usr/bin/small"), noise(2, 6000)).unwrap();
    store.change_tar_split(0, |lines| {
        let line = lines
            .iter_mut()
            .find(|line| line["name"] == "usr/bin/small")
            .unwrap();
        line["size"] = 6000.into();
    });
    let error = assert_refused(&store, 0, &["usr/bin/small"]);
    let problem = MemberProblem::Size {
        size: 6000,
        header: 5000,
    };
    assert!(
        matches!(error, LayerError::Member { problem: p, .. } if p == problem),
        "{error:?}"
    );
}

#[test]
fn import_refuses_content_where_no_header_announces_it() {
    let mut store = two_layers();
    store.change_tar_split(0, |lines| {
        let mut line = lines[5].clone();
        assert_eq!(line["name"], "usr/bin/large");
        line["name"] = "usr/bin/tiny".into();
        lines.insert(1, line);
    });
    assert_refused(&store, 0, &["usr/bin/tiny"]);
}

#[test]
fn import_refuses_a_layer_that_is_not_the_one_of_the_config() {
    let layers = vec![LayerData::new(&base()), LayerData::new(&second())];
    let claimed = [
        layers[0].diff_id(),
        containers_storage::DiffId::of(b"another"),
    ];
    let store = Store::claiming(layers, &claimed);
    let error = assert_refused(
        &store,
        1,
        &[
            &claimed[1].to_string(),
            &store.layers[1].diff_id().to_string(),
        ],
    );
    assert!(matches!(error, LayerError::DiffId { .. }), "{error:?}");
}

#[test]
fn import_refuses_to_copy_when_told_so() {
    // Nothing can be cloned out of a tmpfs.
    let store = Store::new_in(Path::new("/dev/shm"), &[&base()]);
    let repo = Repo::new();
    let options = ImportOptions {
        copy: CopyPolicy::Refuse,
        ..options()
    };
    let error = repo.import_with(&store, &options).unwrap_err();
    let text = chain(&error);
    assert!(text.contains("usr/bin/"), "{text}");
    assert!(
        text.contains("cloned") && text.contains("copying is refused"),
        "{text}"
    );
    repo.assert_untouched();
}

#[test]
fn an_import_succeeds_after_one_that_failed() {
    let (repo, store) = (Repo::new(), two_layers());
    let path = store.diff(1).join("etc/other");
    let content = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    repo.import(&store).unwrap_err();
    fs::write(&path, content).unwrap();
    let report = repo.import(&store).unwrap();
    assert_eq!(report.outcome, Outcome::Imported);
    assert_eq!(
        repo.layer_tar(&diff_id(&store.layers[1])),
        store.layers[1].tar
    );
}

#[test]
fn a_large_import_goes_on_where_it_was_interrupted() {
    // By their records the layers are so large that each is committed alone.
    let (repo, store) = (Repo::new(), two_layers());
    store.claim_size(0, 2 << 30);
    store.claim_size(1, 2 << 30);
    let path = store.diff(1).join("etc/other");
    let content = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();

    repo.import(&store).unwrap_err();
    let first = diff_id(&store.layers[0]).stream_name().to_string();
    assert_eq!(repo.streams(), [first]);
    assert_eq!(repo.repository.refs(Category::Streams).unwrap().entries, []);
    repo.assert_no_staging();

    fs::write(&path, content).unwrap();
    fs::remove_dir_all(store.diff(0)).unwrap();
    let report = repo.import(&store).unwrap();
    let outcomes: Vec<_> = report.layers.iter().map(|layer| layer.outcome).collect();
    assert_eq!(outcomes, [LayerOutcome::Present, LayerOutcome::Imported]);
}

#[test]
fn a_layer_that_lost_an_object_is_read_again() {
    let (repo, store) = (Repo::new(), two_layers());
    repo.import(&store).unwrap();
    let digest = composefs_image::verity_digest(Algorithm::Sha256, &noise(3, 65));
    fs::remove_file(repo.repository.object_file(&digest)).unwrap();
    let tag = Tag::new("localhost/test:1").unwrap();
    assert!(repository::oci::untag(&repo.repository, &tag).unwrap());

    let report = repo.import(&store).unwrap();

    let outcomes: Vec<_> = report.layers.iter().map(|layer| layer.outcome).collect();
    assert_eq!(outcomes, [LayerOutcome::Present, LayerOutcome::Imported]);
    assert_eq!(
        repo.layer_tar(&diff_id(&store.layers[1])),
        store.layers[1].tar
    );
}

#[test]
fn a_cancelled_import_leaves_nothing() {
    let (repo, store) = (Repo::new(), two_layers());
    let cancel = Cancel::new();
    let options = ImportOptions {
        cancel: cancel.clone(),
        ..options()
    };
    let progress = |event: &Event<'_>| {
        if let Event::LayerStarted { .. } = event {
            cancel.cancel();
        }
    };
    let image = from_storage(&store.image()).unwrap();
    let error = import_image(&repo.repository, &image, &options, &progress).unwrap_err();
    assert!(matches!(error, ImportError::Cancelled), "{error:?}");
    repo.assert_untouched();
}

#[test]
fn progress_adds_up_to_the_layers() {
    let (repo, store) = (Repo::new(), two_layers());
    let seen = std::sync::Mutex::new(vec![(0, 0); 2]);
    let progress = |event: &Event<'_>| {
        if let Event::LayerAdvanced {
            layer,
            bytes,
            files,
        } = event
        {
            let seen = &mut seen.lock().unwrap()[*layer];
            assert!(*bytes >= seen.0 && *files >= seen.1);
            *seen = (*bytes, *files);
        }
    };
    let image = from_storage(&store.image()).unwrap();
    import_image(&repo.repository, &image, &options(), &progress).unwrap();
    let expected: Vec<_> = store
        .layers
        .iter()
        .map(|layer| (layer.tar.len() as u64, 3))
        .collect();
    assert_eq!(*seen.lock().unwrap(), expected);
}

#[test]
fn a_report_is_json_with_digests_as_text() {
    let (repo, store) = (Repo::new(), two_layers());
    let report = repo.import(&store).unwrap();
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["outcome"], "imported");
    assert_eq!(json["image"], store.image.as_str());
    assert_eq!(json["manifest"], report.manifest.to_string());
    assert_eq!(json["rootfs"][0], report.rootfs[0].to_hex());
    assert_eq!(
        json["layers"][0]["diff_id"],
        diff_id(&store.layers[0]).to_string()
    );
    assert_eq!(json["layers"][0]["inlined"]["files"], 1);
    assert!(json["times"]["layers"].is_f64());
    let _ = repo.dir;
}
