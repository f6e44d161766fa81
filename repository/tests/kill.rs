//! The process dies at every durable step of a commit: nothing that was there is lost, no name stands
//! for anything incomplete, and doing it again succeeds.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};

use composefs_image::verity_digest;
use repository::list::StagingOwner;
use repository::oci::{DiffId, NamesStream};
use repository::splitstream::{self, ContentType};
use repository::{
    Algorithm, Category, Format, Formats, InitOptions, RefPath, Repository, Security, StreamName,
    Tag, Verification, Wait,
};

const DIRECTORY: &str = "KILL_TEST_REPOSITORY";

/// Stores an "image" of some objects under a name: a stream with external pieces, an image link, a tag
/// and a ref.
fn store(repository: &Repository, what: &str) {
    let batch = repository.batch().unwrap();
    let mut writer = splitstream::Writer::new(&batch, ContentType::OCI_LAYER).unwrap();
    let mut checksums = batch.checksum_writer().unwrap();
    for n in 0..3 {
        let content = format!("{what} {n}").repeat(50);
        let (object, _) = batch.store_bytes(content.as_bytes()).unwrap();
        writer.external(&object, content.len() as u64).unwrap();
        checksums.push([n; 8]).unwrap();
    }
    let (image, _) = batch
        .store_bytes(format!("image {what}").as_bytes())
        .unwrap();
    writer.named_ref("composefs.image", &image).unwrap();
    let (stream, _) = writer.finish().unwrap();
    let name = StreamName::new(format!("stream-{what}")).unwrap();
    batch.link_stream(&name, &stream);
    batch.link_stream(&StreamName::new("latest").unwrap(), &stream);
    // A layer whose diff ID nobody compared.
    let layer = layer(what);
    batch.link_stream(&layer.stream_name(), &stream);
    batch.set_verification(&layer, Verification::Trusted);
    batch.keep_checksums(&layer, checksums.finish(&stream).unwrap());
    batch.link_image(&image);
    let tag = RefPath::of_tag(&Tag::new(what).unwrap());
    batch.set_ref(Category::Streams, &tag, name.as_str());
    let image_ref = RefPath::new("composefs-store/latest").unwrap();
    batch.set_ref(Category::Images, &image_ref, &image.to_hex());
    batch.commit().unwrap();
}

fn layer(what: &str) -> DiffId {
    DiffId::of(what.as_bytes())
}

/// Every name stands for something complete.
fn assert_sound(repository: &Repository) {
    let read = |digest| {
        let content = repository.read_object(&digest, 1 << 20).unwrap();
        assert_eq!(verity_digest(Algorithm::Sha256, &content), digest);
    };
    for shard in 0..=255 {
        let objects = repository.objects_in(shard).unwrap();
        assert_eq!(objects.foreign, []);
        objects.entries.into_iter().for_each(read);
    }
    let streams = repository.streams().unwrap();
    let images = repository.images().unwrap();
    for what in ["first", "second"] {
        let layer = layer(what);
        if let Some(stream) = repository.stream(&layer.stream_name()).unwrap() {
            assert!(repository.is_unverified(&layer).unwrap());
            let kept = repository.layer_checksums(&layer, &stream).unwrap();
            let kept: Vec<_> = kept.unwrap().map(|object| object.unwrap().1).collect();
            assert_eq!(kept, [[0; 8], [1; 8], [2; 8]]);
        }
    }
    assert_eq!(streams.foreign, []);
    assert_eq!(images.foreign, []);
    for stream in &streams.entries {
        let reader = splitstream::open(repository, &stream.object, None).unwrap();
        for object in reader.object_refs().chain(reader.stream_refs()) {
            read(object.unwrap());
        }
    }
    for image in &images.entries {
        assert_eq!(image.name, image.object);
        read(image.object);
    }
    for reference in repository.refs(Category::Streams).unwrap().entries {
        let exists = |name: &StreamName| name.as_str() == reference.target;
        assert!(streams.entries.iter().any(|stream| exists(&stream.name)));
    }
    for reference in repository.refs(Category::Images).unwrap().entries {
        let exists = |name: String| name == reference.target;
        assert!(
            images
                .entries
                .iter()
                .any(|image| exists(image.name.to_hex()))
        );
    }
}

fn has_tag(repository: &Repository, tag: &str) -> bool {
    repository.tag(&Tag::new(tag).unwrap()).unwrap().is_some()
}

/// Runs [`child`] in a process of its own.
fn run_child(directory: &Path, failpoint: &str) -> ExitStatus {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--quiet"])
        .env(DIRECTORY, directory)
        .env("COMPOSEFS_STORE_FAILPOINT", failpoint)
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap()
}

#[test]
#[ignore = "the process that the other test kills"]
fn child() {
    let repository = Repository::open(std::env::var_os(DIRECTORY).unwrap()).unwrap();
    store(&repository, "second");
}

#[test]
fn a_commit_that_is_killed_anywhere_harms_nothing_and_succeeds_when_repeated() {
    let points = [
        ("commit-staged", 1),
        ("commit-content-synced", 1),
        ("commit-object", 5),
        ("commit-checksums", 1),
        ("commit-mark", 1),
        ("commit-objects-named", 1),
        ("commit-objects-synced", 1),
        ("commit-bridges", 1),
        ("commit-bridged", 1),
        ("commit-stream", 3),
        ("commit-image", 1),
        ("commit-linked", 1),
        ("commit-remove-bridge", 2),
        ("commit-ref", 2),
        ("commit-refs-set", 1),
        ("commit-done", 1),
    ];
    for (point, count) in points {
        for n in 1..=count {
            let point = format!("{point}:{n}");
            let directory = tempfile::tempdir().unwrap();
            let options = InitOptions {
                algorithm: Algorithm::Sha256,
                formats: Formats::single(Format::V1),
                security: Security::Insecure,
            };
            let path = directory.path().join("repository");
            Repository::init(&path, &options).unwrap();
            store(&Repository::open(&path).unwrap(), "first");

            let status = run_child(&path, &point);
            assert_eq!(status.signal(), Some(9), "{point} is never reached");
            let mut repository = Repository::open(&path).unwrap();
            assert_sound(&repository);
            assert!(has_tag(&repository, "first"), "{point}");
            let staging = repository.staging().unwrap();
            assert_eq!(staging.len(), 1, "{point}");
            assert_eq!(staging[0].owner, StagingOwner::Gone, "{point}");
            let exclusive = repository.exclusive(Wait::Fail).unwrap();
            assert!(exclusive.remove_staging(&staging[0].name).unwrap());
            drop(exclusive);
            assert_eq!(repository.staging().unwrap(), []);
            drop(repository);

            assert!(run_child(&path, "").success(), "{point}");
            let repository = Repository::open(&path).unwrap();
            assert_sound(&repository);
            assert!(has_tag(&repository, "first"), "{point}");
            assert!(has_tag(&repository, "second"), "{point}");
            assert_eq!(repository.staging().unwrap(), []);
        }
    }
}
