//! Images as importing stores them, small ones, and what they consist of.

use std::collections::BTreeSet;

use composefs_image::image_objects;
use gc::boot::{self, Orphans, Sources};
use gc::{Known, Need, Owner, OwnerKind, Plan, Root, Swept, Unpublished};
use repository::layers::XattrFilter;
use repository::oci::{
    self, Config, ConfigDigest, DiffId, ErofsKey, ErofsRefs, Manifest, ManifestDigest, NewImage,
};
use repository::{
    Algorithm, Format, Formats, InitOptions, Repository, Security, Tag, VerityDigest, Wait,
    splitstream,
};
use serde_json::json;

use super::{store_erofs, store_layer};

/// An image of an operating system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Os {
    pub(crate) manifest: ManifestDigest,
    pub(crate) config: ConfigDigest,
    pub(crate) layers: Vec<DiffId>,
    pub(crate) rootfs: VerityDigest,
    /// Its boot image, which is the ID of its deployment.
    pub(crate) id: VerityDigest,
}

/// A directory that forgets fast, where there is one.
pub(crate) fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

pub(crate) fn init(path: &std::path::Path, algorithm: Algorithm) -> Repository {
    let options = InitOptions {
        algorithm,
        formats: Formats::single(Format::V1),
        security: Security::Insecure,
    };
    Repository::init(path, &options).unwrap();
    Repository::open(path).unwrap()
}

/// Stores an image with these layers, each of one file. `name` makes configs differ, `salt` manifests of
/// the same config.
pub(crate) fn store_os(
    repository: &Repository,
    name: &str,
    salt: &str,
    layers: &[&str],
    tag: Option<&Tag>,
) -> Os {
    let batch = repository.batch().unwrap();
    let stored: Vec<_> = layers
        .iter()
        .map(|file| store_layer(&batch, &[file]))
        .collect();
    let diff_ids: Vec<_> = stored.iter().map(|(id, _)| *id).collect();
    let config = json!({
        "architecture": "amd64", "os": "linux", "author": name, "config": {},
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = Config::parse(config.to_string().into_bytes()).unwrap();
    let blobs: Vec<_> = diff_ids
        .iter()
        .map(|id| {
            json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": id, "size": 1,
            })
        })
        .collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config.digest(), "size": config.bytes().len(),
        },
        "layers": blobs, "annotations": { "salt": salt },
    });
    let manifest = Manifest::parse(manifest.to_string().into_bytes()).unwrap();
    let rootfs = store_erofs(&batch, layers);
    // It differs from the other by a file of its own.
    let own = format!("boot image of {name}");
    let id = store_erofs(&batch, &[layers, &[&own]].concat());
    let erofs = ErofsRefs::from([
        (ErofsKey::rootfs(Format::V1).unwrap(), rootfs),
        (
            ErofsKey::boot(Format::V1, XattrFilter::default()).unwrap(),
            id,
        ),
    ]);
    let image = NewImage {
        manifest: &manifest,
        config: &config,
        layers: &stored,
        erofs: &erofs,
        indexes: &[],
    };
    oci::store_image(&batch, &image).unwrap();
    if let Some(tag) = tag {
        oci::tag(&batch, tag, &manifest.digest()).unwrap();
    }
    batch.commit().unwrap();
    Os {
        manifest: manifest.digest(),
        config: config.digest(),
        layers: diff_ids,
        rootfs,
        id,
    }
}

/// All objects that an EROFS image consists of; panics if one can't be read.
pub(crate) fn erofs_objects(repository: &Repository, image: &VerityDigest) -> Vec<VerityDigest> {
    let bytes = repository.read_object(image, 1 << 20).unwrap();
    let files = image_objects(&bytes).unwrap().map(Result::unwrap);
    let all: Vec<_> = files.chain([*image]).collect();
    for object in &all {
        repository.read_object(object, 1 << 20).unwrap();
    }
    all
}

/// All objects that a stream consists of; panics if one can't be read.
fn stream_objects(repository: &Repository, stream: &VerityDigest) -> Vec<VerityDigest> {
    let reader = splitstream::open(repository, stream, None).unwrap();
    let files = reader.object_refs().map(Result::unwrap);
    let all: Vec<_> = files.chain([*stream]).collect();
    for object in &all {
        repository.read_object(object, 1 << 20).unwrap();
    }
    all
}

/// All objects that an image consists of; panics if one can't be read.
pub(crate) fn os_objects(
    repository: &Repository,
    manifest: ManifestDigest,
) -> BTreeSet<VerityDigest> {
    let image = oci::image(repository, manifest).unwrap();
    let mut objects = BTreeSet::new();
    let layers = image.layers().iter().map(|layer| &layer.stream);
    for stream in layers.chain([image.manifest_stream(), image.config_stream()]) {
        objects.extend(stream_objects(repository, stream));
    }
    for erofs in image.erofs().values() {
        objects.extend(erofs_objects(repository, erofs));
    }
    objects
}

/// All objects of a repository, listed without opening the 256 directories that may be missing.
pub(crate) fn objects(repository: &Repository) -> BTreeSet<VerityDigest> {
    let names = |path: &std::path::Path| -> Vec<String> {
        let entries = std::fs::read_dir(path).into_iter().flatten();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    let directory = repository.path().join("objects");
    let shards = names(&directory).into_iter();
    shards
        .flat_map(|shard| {
            let rest = names(&directory.join(&shard)).into_iter();
            rest.map(move |rest| VerityDigest::from_hex(&format!("{shard}{rest}")).unwrap())
        })
        .collect()
}

/// A host with bootc, and containers that run.
pub(crate) struct TestHost {
    pub(crate) sources: Sources,
    pub(crate) orphans: Orphans,
    /// The root filesystems of containers.
    pub(crate) running: Vec<VerityDigest>,
}

impl gc::Host for TestHost {
    fn known(&mut self, repository: &Repository) -> Known {
        let mut known = boot::look(repository, &self.sources, self.orphans);
        known.roots.extend(self.running.iter().map(|image| Root {
            owner: Owner {
                kind: OwnerKind::Podman,
                name: "container".into(),
            },
            reason: "runs".into(),
            needs: vec![Need::Image(*image)],
        }));
        known
    }

    fn remove_published(
        &mut self,
        _: &Repository,
        _: &[Unpublished],
    ) -> Result<Vec<Unpublished>, gc::HostError> {
        Ok(Vec::new())
    }
}

/// Collects; what was done is what was planned.
pub(crate) fn collect(repository: &mut Repository, host: &mut TestHost) -> (Plan, Swept) {
    let plan = gc::plan(repository, host, &()).unwrap();
    let planned = serde_json::to_value(&plan).unwrap();
    let prepared = gc::prepare(repository, plan, Wait::Fail, host, &()).unwrap();
    let (done, swept) = prepared.execute(host, &()).unwrap();
    assert_eq!(serde_json::to_value(&done).unwrap(), planned);
    (done, swept)
}
