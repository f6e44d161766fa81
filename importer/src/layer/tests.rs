//! Layers whose digests the kernel knows, which it does on few filesystems: here somebody else knows them.

use std::fs::File;
use std::os::fd::BorrowedFd;

use composefs_image::Algorithm;
use repository::{Batch, CopyPolicy, InitOptions, Repository, Security};

use super::*;
use crate::cancel::Cancel;
use crate::progress::Quiet;
use crate::support::{Store, file, noise};
use crate::work::{Budget, Files, Stop};

const SMALL: usize = 1000;
const LARGE: usize = 1_000_000;

/// What the files are said to be.
fn claimed(size: usize) -> Vec<u8> {
    vec![7; size]
}

/// Knows the digest of every file, and is wrong, so that it shows who believes it.
fn measure(file: BorrowedFd<'_>, algorithm: Algorithm) -> std::io::Result<Option<VerityDigest>> {
    let size = File::from(file.try_clone_to_owned()?).metadata()?.len();
    let content = claimed(size as usize);
    Ok(Some(composefs_image::verity_digest(algorithm, &content)))
}

/// Imports the layer of a store, and gives what it was found to be and the objects of its splitstream.
fn import_measured(
    batch: &Batch<'_>,
    store: &Store,
    diff_ids: DiffIdCheck,
) -> (Imported, Vec<VerityDigest>) {
    let stored = store.image().layers().unwrap();
    let files = Arc::new(Files {
        open: stored[0].open().unwrap(),
        measure: Some(measure),
    });
    let cancel = Cancel::new();
    let context = Context {
        batch,
        algorithm: batch.repository().algorithm(),
        copy: CopyPolicy::Allow,
        diff_ids,
        buffers: 2,
        budget: &Budget::new(0),
        stop: Stop::new(&cancel),
    };
    let queue = Queue::new();
    let imported = std::thread::scope(|scope| {
        scope.spawn(|| queue.serve(|job: Job| job.run(&context)));
        let _close = queue.close_on_drop();
        let sha256 = context.needs_content().then(Sha256::new);
        let layer = Layer::new(0, sha256, &context, &queue, &Quiet).unwrap();
        tar_split::read_files(&files, layer).unwrap()
    });
    let stream = repository::splitstream::open(batch, &imported.stream, None).unwrap();
    let objects = stream.object_refs().map(Result::unwrap).collect();
    (imported, objects)
}

#[test]
fn a_digest_that_the_kernel_knows_is_neither_computed_nor_the_content_read_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let options = InitOptions {
        security: Security::Insecure,
        ..InitOptions::default()
    };
    Repository::init(dir.path(), &options).unwrap();
    let repository = Repository::open(dir.path()).unwrap();
    let batch = repository.batch().unwrap();
    let known = [SMALL, LARGE].map(|size| batch.store_bytes(&claimed(size)).unwrap().0);
    let store = Store::new(&[&[
        file("small", noise(1, SMALL)),
        file("inline", noise(2, 10)),
        file("large", noise(3, LARGE)),
        file("small-too", noise(4, SMALL)),
    ]]);
    let layer = &store.layers[0];

    let (verified, objects) = import_measured(&batch, &store, DiffIdCheck::Verify);
    assert_eq!(objects, known);
    assert_eq!(verified.diff_id, Some(layer.diff_id()));
    assert_eq!(verified.tar_bytes, layer.tar.len() as u64);

    for name in ["small", "large", "small-too"] {
        // As long as before.
        let path = store.diff(0).join(name);
        let len = path.metadata().unwrap().len();
        std::fs::write(path, vec![9; len as usize]).unwrap();
    }
    let (trusted, objects) = import_measured(&batch, &store, DiffIdCheck::TrustSource);
    assert_eq!(objects, known);
    assert_eq!(trusted.diff_id, None);
    assert_eq!(trusted.tar_bytes, layer.tar.len() as u64);
    assert_eq!(trusted.counts.present.files, 3);
    assert_eq!(trusted.stream, verified.stream);
}
