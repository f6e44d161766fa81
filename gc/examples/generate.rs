//! Makes a repository for `cargo xtask bench gc`: images of one layer with many small files, of which the
//! second half has no tag. Neighbours share a tenth of their files.
//!
//! Arguments: a directory without a repository, about how many objects, how many images.

use std::sync::atomic::{AtomicUsize, Ordering};

use composefs_image::{
    Content, Dialect, Kind, Metadata, Timestamp, Tree, WriteOptions, write_image,
};
use repository::oci::{
    self, Config, DiffId, ErofsKey, ErofsRefs, Manifest, NamesStream as _, NewImage,
};
use repository::splitstream::{ContentType, Writer};
use repository::{Batch, Format, InitOptions, Repository, Security, Tag, VerityDigest};
use serde_json::json;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Objects of an image that aren't its files: manifest and config with their streams, layer, EROFS image.
const OTHERS: usize = 6;

/// Syncing takes longer than storing one image.
const IMAGES_PER_BATCH: usize = 40;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, objects, images] = arguments.as_slice() else {
        return Err("DIRECTORY OBJECTS IMAGES".into());
    };
    let images: usize = images.parse()?;
    let files = (objects.parse::<usize>()? / images)
        .checked_sub(OTHERS)
        .ok_or("there are too few objects for these images")?;
    let options = InitOptions {
        security: Security::Insecure,
        ..InitOptions::default()
    };
    Repository::init(directory, &options)?;
    let repository = Repository::open(directory)?;
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        loop {
            let first = next.fetch_add(IMAGES_PER_BATCH, Ordering::Relaxed);
            if first >= images {
                return Ok(());
            }
            let batch = repository.batch()?;
            for number in first..images.min(first + IMAGES_PER_BATCH) {
                let tag = (number < images / 2).then(|| format!("localhost/bench:{number}"));
                store(&batch, number, files, tag.as_deref())?;
            }
            batch.commit()?;
        }
    };
    let threads = std::thread::available_parallelism()?.get();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().map_err(|_| "a thread panicked")?)
    })
}

fn store(batch: &Batch<'_>, number: usize, files: usize, tag: Option<&str>) -> Result<()> {
    let first = number * files;
    let mut objects = Vec::new();
    for file in first..first + files + files / 10 {
        let content = format!("{file:080}\n");
        let (object, _) = batch.store_bytes(content.as_bytes())?;
        objects.push((file.to_string(), object, content.len() as u64));
    }
    let layer = layer(batch, number, &objects)?;
    let image = erofs(batch, &objects)?;
    let config = Config::parse(serde_json::to_vec(&json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": [layer.0] },
    }))?)?;
    let manifest = Manifest::parse(serde_json::to_vec(&json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config.digest(), "size": config.bytes().len(),
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer.0, "size": 1,
        }],
    }))?)?;
    let key = ErofsKey::rootfs(Format::V1).ok_or("there is no key for V1")?;
    let new = NewImage {
        manifest: &manifest,
        config: &config,
        layers: &[layer],
        erofs: &ErofsRefs::from([(key, image)]),
        indexes: &[],
    };
    oci::store_image(batch, &new)?;
    if let Some(tag) = tag {
        oci::tag(batch, &Tag::new(tag)?, &manifest.digest())?;
    }
    Ok(())
}

/// A layer whose name is made up: nobody computes diff IDs here.
fn layer(
    batch: &Batch<'_>,
    number: usize,
    objects: &[(String, VerityDigest, u64)],
) -> Result<(DiffId, VerityDigest)> {
    let mut writer = Writer::new(batch, ContentType::OCI_LAYER)?;
    for (_, object, size) in objects {
        writer.inline(&[0; 512])?;
        writer.external(object, *size)?;
    }
    let (stream, _) = writer.finish()?;
    let diff_id = DiffId::of(&number.to_le_bytes());
    batch.link_stream(&diff_id.stream_name(), &stream);
    Ok((diff_id, stream))
}

fn erofs(batch: &Batch<'_>, objects: &[(String, VerityDigest, u64)]) -> Result<VerityDigest> {
    let metadata = || Metadata {
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: Timestamp { sec: 0, nsec: 0 },
    };
    let mut tree = Tree::new(metadata());
    for (name, object, size) in objects {
        let kind = Kind::Regular(Content::External {
            size: *size,
            digest: Some(*object),
            path: None,
        });
        let inode = tree.add(metadata(), kind);
        tree.link(tree.root(), name.as_bytes(), inode)?;
    }
    let options = WriteOptions {
        format: Format::V1,
        dialect: Dialect::ComposefsRs,
    };
    let mut writer = batch.object_writer()?;
    write_image(&tree, &options, &mut writer)?;
    let (digest, ..) = writer.finish()?;
    batch.link_image(&digest);
    Ok(digest)
}
