//! Repositories with images in them, as composefs-rs lays them out.
#![allow(dead_code, reason = "not every test file uses all of it")]

pub(crate) mod images;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use composefs_image::{
    Content, Dialect, Kind, Metadata, Timestamp, Tree, WriteOptions, write_image,
};
use repository::oci::{ConfigDigest, DiffId, ManifestDigest, NamesStream};
use repository::splitstream::{ContentType, Mention, Writer};
use repository::{
    Algorithm, Batch, Category, Format, Formats, InitOptions, RefPath, Repository, Security,
    StreamName, Tag, VerityDigest,
};

/// A repository in a directory of its own.
pub(crate) struct Directory(tempfile::TempDir);

impl Directory {
    pub(crate) fn new() -> Self {
        let directory = Self(tempfile::tempdir().unwrap());
        let options = InitOptions {
            algorithm: Algorithm::Sha256,
            formats: Formats::single(Format::V1),
            security: Security::Insecure,
        };
        Repository::init(directory.path(), &options).unwrap();
        directory
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().join("repository")
    }

    pub(crate) fn open(&self) -> Repository {
        Repository::open(self.path()).unwrap()
    }
}

pub(crate) fn name(name: &str) -> StreamName {
    StreamName::new(name).unwrap()
}

pub(crate) fn tag(tag: &str) -> RefPath {
    RefPath::of_tag(&Tag::new(tag).unwrap())
}

/// The content of the file `file`, large enough to be an object.
pub(crate) fn content(file: &str) -> Vec<u8> {
    file.repeat(100).into_bytes()
}

/// Stores a layer of these files; returns its diff ID and stream.
pub(crate) fn store_layer(batch: &Batch<'_>, files: &[&str]) -> (DiffId, VerityDigest) {
    let mut writer = Writer::new(batch, ContentType::OCI_LAYER).unwrap();
    let mut checksums = batch.checksum_writer().unwrap();
    for file in files {
        writer.inline(&[0; 512]).unwrap();
        let content = content(file);
        let (object, _) = batch.store_bytes(&content).unwrap();
        let mention = writer.external(&object, content.len() as u64).unwrap();
        if mention == Mention::First {
            checksums.push([content[0]; 8]).unwrap();
        }
    }
    let (stream, _) = writer.finish().unwrap();
    let diff_id = DiffId::of(files.concat().as_bytes());
    batch.link_stream(&diff_id.stream_name(), &stream);
    batch.keep_checksums(&diff_id, checksums.finish(&stream).unwrap());
    (diff_id, stream)
}

/// Stores an EROFS image of these files and links it.
pub(crate) fn store_erofs(batch: &Batch<'_>, files: &[&str]) -> VerityDigest {
    let metadata = || Metadata {
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: Timestamp { sec: 0, nsec: 0 },
    };
    let mut tree = Tree::new(metadata());
    for file in files {
        let content = content(file);
        let (digest, _) = batch.store_bytes(&content).unwrap();
        let kind = Kind::Regular(Content::External {
            size: content.len() as u64,
            digest: Some(digest),
            path: None,
        });
        let inode = tree.add(metadata(), kind);
        let root = tree.root();
        tree.link(root, file.as_bytes(), inode).unwrap();
    }
    let options = WriteOptions {
        format: Format::V1,
        dialect: Dialect::ComposefsRs,
    };
    let mut writer = batch.object_writer().unwrap();
    write_image(&tree, &options, &mut writer).unwrap();
    let (digest, ..) = writer.finish().unwrap();
    batch.link_image(&digest);
    digest
}

/// Stores a config stream that names the layers and the EROFS image.
pub(crate) fn store_config(
    batch: &Batch<'_>,
    layers: &[(DiffId, VerityDigest)],
    erofs: Option<&VerityDigest>,
) -> (ConfigDigest, VerityDigest) {
    let ids: Vec<_> = layers.iter().map(|(id, _)| id.to_string()).collect();
    let json = format!("config of {}", ids.join(" "));
    let named = layers
        .iter()
        .map(|(id, stream)| (id.to_string(), *stream))
        .chain(erofs.map(|image| ("composefs.image.v1".to_owned(), *image)));
    let stream = store_document(batch, &json, ContentType::OCI_CONFIG, named);
    let digest = ConfigDigest::of(json.as_bytes());
    batch.link_stream(&digest.stream_name(), &stream);
    (digest, stream)
}

/// Stores a manifest stream and tags it; `salt` makes manifests with the same content differ.
pub(crate) fn store_manifest(
    batch: &Batch<'_>,
    tag_name: &str,
    salt: &str,
    config: (ConfigDigest, VerityDigest),
    layers: &[(DiffId, VerityDigest)],
) -> ManifestDigest {
    let json = format!("manifest {salt} {}", config.0);
    let named = std::iter::once((format!("config:{}", config.0), config.1))
        .chain(layers.iter().map(|(id, stream)| (id.to_string(), *stream)));
    let stream = store_document(batch, &json, ContentType::OCI_MANIFEST, named);
    let digest = ManifestDigest::of(json.as_bytes());
    let name = digest.stream_name();
    batch.link_stream(&name, &stream);
    batch.set_ref(Category::Streams, &tag(tag_name), name.as_str());
    digest
}

fn store_document(
    batch: &Batch<'_>,
    json: &str,
    content_type: ContentType,
    named: impl Iterator<Item = (String, VerityDigest)>,
) -> VerityDigest {
    let (document, _) = batch.store_bytes(json.as_bytes()).unwrap();
    let mut writer = Writer::new(batch, content_type).unwrap();
    writer.external(&document, json.len() as u64).unwrap();
    for (name, digest) in named {
        writer.named_ref(&name, &digest).unwrap();
    }
    writer.finish().unwrap().0
}

/// Stores a whole image of one layer, tagged with its first file's name.
pub(crate) fn store_image(repository: &Repository, files: &[&str]) {
    let batch = repository.batch().unwrap();
    let layer = store_layer(&batch, files);
    let erofs = store_erofs(&batch, files);
    let config = store_config(&batch, &[layer], Some(&erofs));
    store_manifest(&batch, files[0], "", config, &[layer]);
    batch.commit().unwrap();
}

/// All objects of a repository.
pub(crate) fn objects(repository: &Repository) -> BTreeSet<VerityDigest> {
    (0..=255)
        .flat_map(|shard| repository.objects_in(shard).unwrap().entries)
        .collect()
}

/// Whether the repository has the content of this file.
pub(crate) fn has_file(repository: &Repository, file: &str) -> bool {
    let digest = composefs_image::verity_digest(Algorithm::Sha256, &content(file));
    repository.object_size(&digest).unwrap().is_some()
}

/// As deep as these repositories go: their documents mean nothing.
pub(crate) fn options() -> gc::FsckOptions {
    gc::FsckOptions {
        jobs: 2,
        depth: gc::fsck::Depth::Content,
        ..gc::FsckOptions::default()
    }
}

/// fsck finds nothing.
pub(crate) fn assert_clean(repository: &Repository) {
    let report = gc::fsck(repository, options(), &()).unwrap();
    assert_eq!(report.findings, []);
}

/// Runs the test `child` of the same program, with these paths in its environment, to the failpoint.
pub(crate) fn child_killed_at(failpoint: &str, paths: &[(&str, &Path)]) -> ExitStatus {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--quiet"])
        .envs(paths.iter().copied())
        .env("COMPOSEFS_STORE_FAILPOINT", failpoint)
        .stdout(Stdio::null())
        .status()
        .unwrap()
}
