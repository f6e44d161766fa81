//! Making, opening, writing, listing and deleting, on the filesystem of the machine.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use composefs_image::verity_digest;
use repository::list::{Oddity, StagingOwner};
use repository::splitstream::{self, ContentType};
use repository::{
    Algorithm, Category, CopyPolicy, Error, Format, Formats, InitOptions, InitOutcome, ReadObjects,
    RefPath, Repository, Security, Stored, StreamName, Tag, VerityDigest, Wait,
};

struct Directory(tempfile::TempDir);

impl Directory {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn repository(&self) -> PathBuf {
        self.0.path().join("repository")
    }

    /// A new repository here.
    fn init(&self) -> Repository {
        let outcome = Repository::init(self.repository(), &options()).unwrap();
        assert_eq!(outcome, InitOutcome::Created);
        Repository::open(self.repository()).unwrap()
    }
}

fn options() -> InitOptions {
    InitOptions {
        algorithm: Algorithm::Sha256,
        formats: Formats::single(Format::V1),
        security: Security::Insecure,
    }
}

fn name(name: &str) -> StreamName {
    StreamName::new(name).unwrap()
}

fn digest_of(content: &[u8]) -> VerityDigest {
    verity_digest(Algorithm::Sha256, content)
}

/// Everything below a directory: path, and content or target.
fn snapshot(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(path) = pending.pop() {
        for entry in fs::read_dir(&path).unwrap() {
            let path = entry.unwrap().path();
            let kind = path.symlink_metadata().unwrap().file_type();
            let content = if kind.is_symlink() {
                fs::read_link(&path)
                    .unwrap()
                    .into_os_string()
                    .into_encoded_bytes()
            } else if kind.is_dir() {
                pending.push(path.clone());
                Vec::new()
            } else {
                assert!(!kind.is_fifo());
                fs::read(&path).unwrap()
            };
            all.push((path, content));
        }
    }
    all.sort();
    all
}

#[test]
fn init_again_with_the_same_settings_does_nothing_and_with_others_names_both() {
    let directory = Directory::new();
    directory.init();
    let before = snapshot(directory.0.path());
    let again = Repository::init(directory.repository(), &options()).unwrap();
    assert_eq!(again, InitOutcome::AlreadyThere);
    let other = InitOptions {
        formats: Formats::dual(),
        ..options()
    };
    let error = Repository::init(directory.repository(), &other).unwrap_err();
    assert!(matches!(error, Error::SettingsDiffer { .. }));
    let message = error.to_string();
    assert!(message.contains("sha256, format v1, insecure"), "{message}");
    assert!(
        message.contains("sha256, format v1+v2, insecure"),
        "{message}"
    );
    assert_eq!(snapshot(directory.0.path()), before);
}

#[test]
fn init_makes_a_private_directory_with_nothing_but_meta_json() {
    let directory = Directory::new();
    let repository = directory.init();
    assert_eq!(repository.algorithm(), Algorithm::Sha256);
    assert!(!repository.is_secure());
    let metadata = fs::metadata(directory.repository()).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o700);
    let names: Vec<_> = snapshot(&directory.repository())
        .into_iter()
        .map(|(path, _)| path)
        .collect();
    assert_eq!(names, [directory.repository().join("meta.json")]);
}

#[test]
fn init_without_insecure_needs_fs_verity_and_leaves_nothing_behind() {
    // tmpfs never has fs-verity.
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = directory.path().join("a/b");
    let options = InitOptions::default();
    let error = Repository::init(&path, &options).unwrap_err();
    assert!(matches!(error, Error::NoVerity(_)), "{error}");
    assert!(error.to_string().contains("--insecure"), "{error}");
    assert_eq!(snapshot(directory.path()), []);
}

#[test]
fn a_directory_without_objects_or_meta_json_is_not_a_repository() {
    let directory = Directory::new();
    for path in [directory.0.path(), Path::new("/nonexistent/repository")] {
        let error = Repository::open(path).unwrap_err();
        assert!(matches!(error, Error::NotARepository(_)), "{error}");
    }
}

#[test]
fn a_repository_of_the_old_format_is_read_without_writing_and_upgraded_when_written_to() {
    let directory = Directory::new();
    let repository = directory.init();
    let batch = repository.batch().unwrap();
    let (digest, _) = batch.store_bytes(b"content").unwrap();
    batch.commit().unwrap();
    drop(repository);
    fs::remove_file(directory.repository().join("meta.json")).unwrap();

    let before = snapshot(&directory.repository());
    let repository = Repository::open(directory.repository()).unwrap();
    assert_eq!(repository.algorithm(), Algorithm::Sha256);
    assert_eq!(*repository.formats(), Formats::single(Format::V2));
    assert_eq!(repository.read_object(&digest, 100).unwrap(), b"content");
    assert_eq!(repository.streams().unwrap().entries, []);
    assert_eq!(snapshot(&directory.repository()), before);

    drop(repository.batch().unwrap());
    let reopened = Repository::open(directory.repository()).unwrap();
    assert_eq!(reopened.formats(), repository.formats());
    let meta = fs::read_to_string(directory.repository().join("meta.json")).unwrap();
    assert!(meta.contains("\"default\": 2") && !meta.contains("v1_erofs"));
}

#[test]
fn an_unknown_read_only_feature_forbids_writing_and_deleting_only() {
    let directory = Directory::new();
    drop(directory.init());
    let path = directory.repository().join("meta.json");
    let meta = fs::read_to_string(&path).unwrap();
    fs::write(&path, meta.replace("\"v1_erofs\"", "\"v1_erofs\", \"new\"")).unwrap();
    let mut repository = Repository::open(directory.repository()).unwrap();
    assert!(matches!(
        repository.batch(),
        Err(Error::ReadOnlyFeature { .. })
    ));
    assert!(matches!(
        repository.exclusive(Wait::Fail),
        Err(Error::ReadOnlyFeature { .. })
    ));
}

#[test]
fn nothing_is_visible_before_the_commit_and_all_of_it_after() {
    let directory = Directory::new();
    let repository = directory.init();
    let batch = repository.batch().unwrap();
    let (digest, stored) = batch.store_bytes(b"content").unwrap();
    assert_eq!((digest, stored), (digest_of(b"content"), Stored::Written));
    let mut writer = splitstream::Writer::new(&batch, ContentType::OCI_BLOB).unwrap();
    writer.external(&digest, 7).unwrap();
    let (stream, _) = writer.finish().unwrap();
    batch.link_stream(&name("oci-blob-sha256:00"), &stream);
    batch.link_image(&digest);
    let tag = RefPath::of_tag(&Tag::new("a/b:1").unwrap());
    batch.set_ref(Category::Streams, &tag, "oci-blob-sha256:00");
    let image_ref = RefPath::new("x/y/z").unwrap();
    batch.set_ref(Category::Images, &image_ref, &digest.to_hex());

    assert!(batch.has(&digest).unwrap());
    assert_eq!(batch.read_object(&digest, 7).unwrap(), b"content");
    assert_eq!(repository.object_size(&digest).unwrap(), None);
    let root: Vec<_> = fs::read_dir(directory.repository()).unwrap().collect();
    assert_eq!(root.len(), 2, "meta.json and the private directory");

    let stats = batch.commit().unwrap();
    assert_eq!(stats.written.objects, 2);
    assert_eq!(repository.read_object(&digest, 7).unwrap(), b"content");
    let found = repository.stream(&name("oci-blob-sha256:00")).unwrap();
    assert_eq!(found, Some(stream));
    assert!(repository.has_image(&digest).unwrap());
    let target = |path: &str| fs::read_link(directory.repository().join(path)).unwrap();
    assert_eq!(
        target("streams/refs/oci/a%2Fb:1"),
        Path::new("../../oci-blob-sha256:00")
    );
    assert_eq!(
        target("images/refs/x/y/z"),
        Path::new("../../../").join(digest.to_hex())
    );
    assert_eq!(
        target("streams/oci-blob-sha256:00"),
        Path::new("../objects").join(stream.object_path())
    );
    assert_eq!(
        repository.tag(&Tag::new("a/b:1").unwrap()).unwrap(),
        Some("oci-blob-sha256:00".into())
    );
    assert_eq!(repository.staging().unwrap(), []);
}

#[test]
fn a_dropped_batch_leaves_no_trace() {
    let directory = Directory::new();
    let repository = directory.init();
    let batch = repository.batch().unwrap();
    batch.store_bytes(b"content").unwrap();
    assert_eq!(repository.staging().unwrap()[0].owner, StagingOwner::Alive);
    drop(batch);
    assert_eq!(repository.staging().unwrap(), []);
    assert_eq!(
        repository.object_size(&digest_of(b"content")).unwrap(),
        None
    );
}

#[test]
fn an_object_is_stored_once_from_however_many_threads_and_batches() {
    let directory = Directory::new();
    let repository = directory.init();
    let batch = repository.batch().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for n in 0..50_u8 {
                    batch.store_bytes(&[n; 1000]).unwrap();
                }
            });
        }
    });
    let rival = repository.batch().unwrap();
    let (_, stored) = rival.store_bytes(&[7; 1000]).unwrap();
    assert_eq!(stored, Stored::Written);

    let stats = batch.commit().unwrap();
    assert_eq!(stats.written.objects, 50);
    assert_eq!(stats.written.bytes, 50_000);
    assert_eq!(stats.present.objects, 350);
    rival.commit().unwrap();
    let again = repository.batch().unwrap();
    let (_, stored) = again.store_bytes(&[7; 1000]).unwrap();
    assert_eq!(stored, Stored::Present);
    let count: usize = (0..=255)
        .map(|shard| repository.objects_in(shard).unwrap().entries.len())
        .sum();
    assert_eq!(count, 50);
}

#[test]
fn a_batch_that_is_stopped_leaves_nothing() {
    let directory = Directory::new();
    let repository = directory.init();
    drop(repository.batch().unwrap());
    let before = snapshot(&directory.repository());
    let stop = Arc::new(AtomicBool::new(false));
    let batch = repository.batch_until(Arc::clone(&stop)).unwrap();
    let (digest, _) = batch.store_bytes(b"content").unwrap();
    batch.link_stream(&name("stream"), &digest);
    stop.store(true, Ordering::Relaxed);
    let stopped = [
        batch.store_bytes(b"more").map(drop),
        batch.open_object(&digest).map(drop),
        batch.commit().map(drop),
    ];
    for result in stopped {
        assert!(matches!(result, Err(Error::Interrupted)), "{result:?}");
    }
    assert_eq!(snapshot(&directory.repository()), before);
}

#[test]
fn an_existing_object_of_another_size_is_an_error_and_not_overwritten() {
    let directory = Directory::new();
    let repository = directory.init();
    let batch = repository.batch().unwrap();
    let (digest, _) = batch.store_bytes(b"content").unwrap();
    batch.commit().unwrap();
    let path = repository.object_file(&digest);
    fs::write(&path, b"cont").unwrap();
    let batch = repository.batch().unwrap();
    assert!(matches!(
        batch.store_bytes(b"content"),
        Err(Error::DamagedObject { .. })
    ));
    assert_eq!(fs::read(&path).unwrap(), b"cont");
}

#[test]
fn a_file_is_stored_whatever_its_position_and_holes_are_kept() {
    let directory = Directory::new();
    let repository = directory.init();
    // tmpfs is another filesystem: this can only be a copy.
    let mut source = tempfile::tempfile_in("/dev/shm").unwrap();
    let mut content = vec![0; 1 << 20];
    content.extend_from_slice(b"end");
    std::io::Write::write_all(&mut source, &content).unwrap();
    let digest = digest_of(&content);
    let size = content.len() as u64;
    let batch = repository.batch().unwrap();
    let refused = batch.store_file(source.as_fd(), &digest, size, CopyPolicy::Refuse);
    assert!(matches!(refused, Err(Error::CopyRefused { .. })));
    let stored = batch.store_file(source.as_fd(), &digest, size, CopyPolicy::Allow);
    assert_eq!(stored.unwrap(), Stored::Copied);
    let stored = batch.store_file(source.as_fd(), &digest, size, CopyPolicy::Refuse);
    assert_eq!(stored.unwrap(), Stored::Present);
    batch.commit().unwrap();
    assert_eq!(repository.read_object(&digest, size).unwrap(), content);
    assert!(matches!(
        repository.read_object(&digest, size - 1),
        Err(Error::ObjectTooLarge { .. })
    ));
}

#[test]
fn a_file_that_changed_since_it_was_hashed_is_not_stored() {
    let directory = Directory::new();
    let repository = directory.init();
    let mut source = tempfile::tempfile_in("/dev/shm").unwrap();
    std::io::Write::write_all(&mut source, b"changed").unwrap();
    let batch = repository.batch().unwrap();
    for (content, size) in [(b"content".as_slice(), 7), (b"shorter", 6), (b"longer", 8)] {
        let result = batch.store_file(source.as_fd(), &digest_of(content), size, CopyPolicy::Allow);
        assert!(matches!(result, Err(Error::ContentChanged { .. })));
    }
    assert_eq!(batch.commit().unwrap().copied.objects, 0);
}

#[test]
fn links_and_refs_to_nothing_are_refused_before_anything_is_written() {
    let directory = Directory::new();
    let repository = directory.init();
    let batch = repository.batch().unwrap();
    batch.store_bytes(b"content").unwrap();
    batch.link_stream(&name("stream"), &digest_of(b"missing"));
    assert!(matches!(batch.commit(), Err(Error::Dangling { .. })));
    let batch = repository.batch().unwrap();
    let (digest, _) = batch.store_bytes(b"content").unwrap();
    batch.link_stream(&name("stream"), &digest);
    batch.set_ref(Category::Streams, &RefPath::new("ref").unwrap(), "other");
    assert!(matches!(batch.commit(), Err(Error::Dangling { .. })));
    assert_eq!(repository.stream(&name("stream")).unwrap(), None);
    assert_eq!(repository.object_size(&digest).unwrap(), None);
}

#[test]
fn links_and_refs_are_replaced_in_place() {
    let directory = Directory::new();
    let repository = directory.init();
    for content in [b"first".as_slice(), b"second"] {
        let batch = repository.batch().unwrap();
        let (digest, _) = batch.store_bytes(content).unwrap();
        batch.link_stream(&name("same"), &digest);
        let own = name(std::str::from_utf8(content).unwrap());
        batch.link_stream(&own, &digest);
        let path = RefPath::new("some/ref").unwrap();
        batch.set_ref(Category::Streams, &path, own.as_str());
        batch.commit().unwrap();
        let target = repository.reference(Category::Streams, &path).unwrap();
        assert_eq!(target.as_deref(), Some(own.as_str()));
        let stream = repository.stream(&name("same")).unwrap();
        assert_eq!(stream, Some(digest));
    }
    let path = RefPath::new("some/ref").unwrap();
    assert!(repository.remove_ref(Category::Streams, &path).unwrap());
    assert!(!repository.remove_ref(Category::Streams, &path).unwrap());
    assert_eq!(repository.refs(Category::Streams).unwrap().entries, []);
}

#[test]
fn a_digest_of_the_other_algorithm_is_refused() {
    let directory = Directory::new();
    let repository = directory.init();
    let other = verity_digest(Algorithm::Sha512, b"content");
    assert!(matches!(
        repository.open_object(&other),
        Err(Error::WrongAlgorithm { .. })
    ));
    assert!(matches!(
        repository.object_size(&other),
        Err(Error::WrongAlgorithm { .. })
    ));
}

#[test]
fn listings_report_what_does_not_belong_and_go_on() {
    let directory = Directory::new();
    let repository = directory.init();
    let batch = repository.batch().unwrap();
    let (digest, _) = batch.store_bytes(b"content").unwrap();
    batch.link_stream(&name("stream"), &digest);
    batch.link_image(&digest);
    batch.set_ref(Category::Streams, &RefPath::new("a/b").unwrap(), "stream");
    batch.commit().unwrap();

    let root = directory.repository();
    fs::write(root.join("streams/file"), "").unwrap();
    symlink("elsewhere", root.join("streams/broken")).unwrap();
    symlink("../objects/00/11", root.join("images/short")).unwrap();
    fs::write(root.join("streams/refs/file"), "").unwrap();
    symlink("..", root.join("streams/refs/up")).unwrap();
    symlink("../gone", root.join("streams/refs/dangling")).unwrap();
    fs::write(root.join("objects/odd"), "").unwrap();
    let shard = digest.to_hex()[..2].to_owned();
    fs::write(root.join("objects").join(&shard).join("odd"), "").unwrap();

    let streams = repository.streams().unwrap();
    assert_eq!(streams.entries.len(), 1);
    assert_eq!(streams.entries[0].object, digest);
    let oddities: Vec<_> = streams.foreign.iter().map(|odd| &odd.oddity).collect();
    assert_eq!(
        oddities,
        [&Oddity::Target("elsewhere".into()), &Oddity::NotALink]
    );
    let images = repository.images().unwrap();
    assert_eq!(images.entries[0].name, digest);
    assert_eq!(images.foreign.len(), 1);
    let refs = repository.refs(Category::Streams).unwrap();
    let targets: Vec<_> = refs.entries.iter().map(|r| r.target.as_str()).collect();
    assert_eq!(targets, ["stream", "gone"]);
    assert_eq!(refs.foreign.len(), 2);
    assert_eq!(repository.foreign_in_objects().unwrap().len(), 1);
    let objects = repository.objects_in(digest.as_bytes()[0]).unwrap();
    assert_eq!(objects.entries, [digest]);
    assert_eq!(objects.foreign.len(), 1);
}

#[test]
fn the_exclusive_lock_is_not_to_be_had_while_another_handle_is_open() {
    let directory = Directory::new();
    let mut repository = directory.init();
    let other = Repository::open(directory.repository()).unwrap();
    assert!(matches!(
        repository.exclusive(Wait::Fail),
        Err(Error::Busy(_))
    ));
    drop(other);
    let exclusive = repository.exclusive(Wait::Fail).unwrap();
    let path = directory.repository();
    let opener = std::thread::spawn(move || Repository::open(path).map(drop));
    drop(exclusive);
    opener.join().unwrap().unwrap();
    assert!(repository.exclusive(Wait::Block).is_ok());
}

#[test]
fn what_is_deleted_under_the_exclusive_lock_is_gone() {
    let directory = Directory::new();
    let mut repository = directory.init();
    let batch = repository.batch().unwrap();
    let (digest, _) = batch.store_bytes(b"content").unwrap();
    batch.link_stream(&name("stream"), &digest);
    batch.link_image(&digest);
    batch.commit().unwrap();
    let exclusive = repository.exclusive(Wait::Fail).unwrap();
    assert!(exclusive.remove_stream(&name("stream")).unwrap());
    assert!(exclusive.remove_image(&digest).unwrap());
    exclusive.sync_names().unwrap();
    let remove = || {
        let mut removed = Vec::new();
        let shard = digest.as_bytes()[0];
        exclusive
            .remove_objects(shard, [digest], |digest| removed.push(*digest))
            .unwrap();
        removed
    };
    assert_eq!(remove(), [digest]);
    assert_eq!(remove(), []);
    assert_eq!(exclusive.streams().unwrap().entries, []);
    assert_eq!(exclusive.images().unwrap().entries, []);
    assert_eq!(exclusive.object_size(&digest).unwrap(), None);
}

#[test]
fn objects_that_are_not_files_are_damaged_and_do_not_block() {
    let directory = Directory::new();
    let repository = directory.init();
    let digest = digest_of(b"content");
    let path = repository.object_file(&digest);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    rustix::fs::mkfifoat(
        rustix::fs::CWD,
        &path,
        rustix::fs::Mode::from_raw_mode(0o600),
    )
    .unwrap();
    assert!(matches!(
        repository.open_object(&digest),
        Err(Error::DamagedObject { .. })
    ));
    fs::remove_file(&path).unwrap();
    symlink("/etc/passwd", &path).unwrap();
    assert!(matches!(
        repository.open_object(&digest),
        Err(Error::DamagedObject { .. })
    ));
}
