//! Imports of layers that come as blobs: compressed in every way, damaged, and cut off.

mod support;

use std::error::Error;
use std::io::{self, Cursor, Read, Write};

use flate2::{Compression, write::GzEncoder};
use importer::source::{Blob, LayerContent, SourceError, SourceImage, SourceLayer};
use importer::{
    Counts, ImportError, ImportOptions, ImportReport, LayerError, MemberProblem, Outcome, Tally,
};
use repository::oci::{BlobDigest, ConfigDigest, DiffId, LayerDescriptor};
use serde_json::json;
use support::repo::{self, Repo};
use support::{Entry, LayerData, dir, file, hard_link, link, member, noise};

/// A blob in memory; `error` is what reading it ends with.
struct Memory {
    bytes: Vec<u8>,
    error: Option<io::ErrorKind>,
}

impl Blob for Memory {
    fn open(&self) -> Result<Box<dyn Read + '_>, SourceError> {
        let content = Cursor::new(&self.bytes);
        Ok(match self.error {
            None => Box::new(content),
            Some(kind) => Box::new(content.chain(Broken(kind))),
        })
    }
}

struct Broken(io::ErrorKind);

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(self.0.into())
    }
}

struct Layer {
    diff_id: DiffId,
    described: Vec<u8>,
    delivered: Vec<u8>,
    error: Option<io::ErrorKind>,
}

impl Layer {
    fn of(tar: &[u8], blob: Vec<u8>) -> Self {
        Self {
            diff_id: DiffId::of(tar),
            described: blob.clone(),
            delivered: blob,
            error: None,
        }
    }
}

fn image(layers: Vec<Layer>) -> SourceImage<'static> {
    let diff_ids: Vec<_> = layers.iter().map(|it| it.diff_id.to_string()).collect();
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
    .to_string()
    .into_bytes();
    let media_type = "application/vnd.oci.image.layer.v1.tar";
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": ConfigDigest::of(&config).to_string(), "size": config.len(),
        },
        "layers": layers.iter().map(|layer| json!({
            "mediaType": media_type,
            "digest": BlobDigest::of(&layer.described).to_string(),
            "size": layer.described.len(),
        })).collect::<Vec<_>>(),
    })
    .to_string()
    .into_bytes();
    let layers = layers.into_iter().map(|layer| SourceLayer {
        diff_id: layer.diff_id,
        size: None,
        content: LayerContent::Blob {
            descriptor: Some(LayerDescriptor {
                digest: BlobDigest::of(&layer.described),
                size: layer.described.len() as u64,
                media_type: media_type.into(),
            }),
            blob: Box::new(Memory {
                bytes: layer.delivered,
                error: layer.error,
            }),
        },
    });
    SourceImage {
        name: "memory:test".into(),
        id: None,
        names: Vec::new(),
        indexes: Vec::new(),
        manifest,
        config,
        layers: layers.collect(),
    }
}

fn import(repo: &Repo, layers: Vec<Layer>) -> Result<ImportReport, ImportError> {
    repo.import(&image(layers))
}

fn refused(layer: Layer) -> LayerError {
    repo::refused(&image(vec![layer]), ImportOptions::default())
}

fn entries() -> Vec<Entry> {
    vec![
        dir("usr"),
        dir("usr/bin"),
        file("usr/bin/large", noise(1, 700_001)),
        file("usr/bin/exact", noise(5, 128 * 1024)),
        file("usr/bin/one-more", noise(6, 128 * 1024 + 1)),
        file("usr/bin/small", noise(2, 5000)),
        file("usr/bin/tiny", "#!/bin/sh\n"),
        file("usr/empty", ""),
        link("usr/link", "bin/large"),
        hard_link("usr/hard", "usr/bin/small"),
        file("usr/same", noise(2, 5000)),
        file("usr/limit", noise(3, 64)),
        file("usr/beyond", noise(4, 65)),
    ]
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// A zstd frame that decoders skip, as zstd:chunked puts its table of contents into.
fn skippable(content: &[u8]) -> Vec<u8> {
    let mut frame = 0x184d_2a50_u32.to_le_bytes().to_vec();
    frame.extend((content.len() as u32).to_le_bytes());
    frame.extend(content);
    frame
}

/// The blob cut into parts that are compressed one by one.
fn in_parts(tar: &[u8], compress: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    tar.chunks(100_000).flat_map(compress).collect()
}

#[test]
fn a_layer_is_the_same_however_it_is_compressed() {
    let tar = LayerData::new(&entries()).tar;
    let chunked = |part: &[u8]| [zstd(part), skippable(b"chunk")].concat();
    let blobs = [
        tar.clone(),
        gzip(&tar),
        in_parts(&tar, gzip),
        zstd(&tar),
        in_parts(&tar, zstd),
        in_parts(&tar, chunked),
        [skippable(b"first"), zstd(&tar)].concat(),
    ];
    let mut rootfs = Vec::new();
    for blob in blobs {
        let repo = Repo::new();
        let report = import(&repo, vec![Layer::of(&tar, blob)]).unwrap();
        assert_eq!(report.outcome, Outcome::Imported);
        assert_eq!(repo.layer_tar(&DiffId::of(&tar)), tar);
        let Counts {
            written,
            present,
            inlined,
            ..
        } = report.total;
        let tally = |files, bytes| Tally { files, bytes };
        assert_eq!(written, tally(5, 700_001 + 2 * 128 * 1024 + 1 + 5000 + 65));
        assert_eq!(present, tally(1, 5000));
        assert_eq!(inlined, tally(2, 10 + 64));
        rootfs.push(report.rootfs);
    }
    rootfs.dedup();
    assert_eq!(rootfs.len(), 1, "every repository has the same image");
}

#[test]
fn layers_of_several_blobs_are_read_side_by_side() {
    let tars: Vec<_> = (0..12)
        .map(|seed| LayerData::new(&[dir("usr"), file("usr/f", noise(seed, 300_000))]).tar)
        .collect();
    let repo = Repo::new();
    let layers = tars.iter().map(|tar| Layer::of(tar, gzip(tar))).collect();
    let report = import(&repo, layers).unwrap();
    assert_eq!(report.layers.len(), 12);
    for tar in &tars {
        assert_eq!(repo.layer_tar(&DiffId::of(tar)), *tar);
    }
}

#[test]
fn a_blob_that_the_manifest_does_not_name_is_refused_whatever_is_in_it() {
    let tar = LayerData::new(&entries()).tar;
    let mut flipped = gzip(&tar);
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    for delivered in [flipped, vec![0xff; gzip(&tar).len()]] {
        let actual = BlobDigest::of(&delivered);
        let layer = Layer {
            delivered,
            ..Layer::of(&tar, gzip(&tar))
        };
        match refused(layer) {
            LayerError::BlobDigest { actual: found } => assert_eq!(found, actual),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_blob_of_another_size_is_refused() {
    let tar = LayerData::new(&entries()).tar;
    let blob = gzip(&tar);
    let shorter = blob[..blob.len() - 1].to_vec();
    let longer = [&blob[..], b"x"].concat();
    for (delivered, expected) in [(shorter, Some(blob.len() as u64 - 1)), (longer, None)] {
        let layer = Layer {
            delivered,
            ..Layer::of(&tar, blob.clone())
        };
        match refused(layer) {
            LayerError::BlobSize { actual, .. } => assert_eq!(actual, expected),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_tar_with_another_diff_id_is_refused() {
    let tar = LayerData::new(&entries()).tar;
    let other = LayerData::new(&[dir("usr")]).tar;
    match refused(Layer::of(&tar, gzip(&other))) {
        LayerError::DiffId { actual } => assert_eq!(actual, DiffId::of(&other)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn compression_that_is_cut_off_or_followed_by_garbage_is_refused() {
    let tar = LayerData::new(&entries()).tar;
    let cut = |blob: Vec<u8>| blob[..blob.len() - 5].to_vec();
    for blob in [
        cut(gzip(&tar)),
        cut(zstd(&tar)),
        [gzip(&tar), b"garbage".to_vec()].concat(),
        [zstd(&tar), b"garbage".to_vec()].concat(),
    ] {
        let error = refused(Layer::of(&tar, blob));
        assert!(matches!(error, LayerError::Read(_)), "{error:?}");
    }
}

#[test]
fn a_tar_that_is_cut_off_is_refused_with_the_member() {
    let tar = LayerData::new(&entries()).tar;
    let cut = &tar[..300_000];
    let error = refused(Layer::of(cut, gzip(cut)));
    assert!(matches!(error, LayerError::Tar(_)), "{error:?}");
    let text = error.source().unwrap().to_string();
    assert!(text.contains("usr/bin/large"), "{text}");
}

#[test]
fn compressions_that_are_not_supported_are_named() {
    for (blob, name) in [(&b"BZh91AY&SY"[..], "bzip2"), (b"\xfd7zXZ\0\0\0", "xz")] {
        match refused(Layer::of(b"", blob.to_vec())) {
            LayerError::Compression(found) => assert_eq!(found, name),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_source_that_breaks_off_is_an_error_of_its_own() {
    let tar = LayerData::new(&entries()).tar;
    let blob = gzip(&tar);
    let layer = Layer {
        delivered: blob[..blob.len() / 2].to_vec(),
        error: Some(io::ErrorKind::ConnectionReset),
        ..Layer::of(&tar, blob.clone())
    };
    match refused(layer) {
        LayerError::Read(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_link_with_content_is_refused_by_name() {
    let tar = LayerData::new(&[dir("usr"), member("usr/odd", b'5', noise(1, 700))]).tar;
    match refused(Layer::of(&tar, gzip(&tar))) {
        LayerError::Member { name, problem } => {
            assert_eq!(name, b"usr/odd".to_vec().into());
            assert_eq!(problem, MemberProblem::SizeWithoutContent);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_empty_blob_is_an_empty_layer() {
    let repo = Repo::new();
    let tar = LayerData::new(&entries()).tar;
    let layers = vec![Layer::of(&tar, tar.clone()), Layer::of(b"", Vec::new())];
    let report = import(&repo, layers).unwrap();
    assert_eq!(report.layers[1].tar_bytes, 0);
}

#[test]
fn layers_that_become_larger_than_allowed_are_refused() {
    let tar = LayerData::new(&[dir("usr"), file("usr/zeros", vec![0; 50 << 20])]).tar;
    let allowed = |max_size| ImportOptions {
        max_size: Some(max_size),
        ..ImportOptions::default()
    };
    for blob in [gzip(&tar), zstd(&tar)] {
        assert!(blob.len() < 1 << 20);
        let image = image(vec![Layer::of(&tar, blob)]);
        let error = repo::refused(&image, allowed(tar.len() as u64 - 1));
        assert!(
            matches!(error, LayerError::TooLarge { limit, .. } if limit == tar.len() as u64 - 1)
        );
        Repo::new()
            .import_with(&image, allowed(tar.len() as u64))
            .unwrap();
    }
}

#[test]
fn the_limit_is_one_for_all_layers_together() {
    let tars: Vec<_> = (0..3)
        .map(|seed| LayerData::new(&[dir("usr"), file("usr/f", noise(seed, 300_000))]).tar)
        .collect();
    let sum: usize = tars.iter().map(Vec::len).sum();
    let layers = tars.iter().map(|tar| Layer::of(tar, gzip(tar))).collect();
    let options = ImportOptions {
        max_size: Some(sum as u64 - 1),
        ..ImportOptions::default()
    };
    let error = repo::refused(&image(layers), options);
    assert!(matches!(error, LayerError::TooLarge { .. }), "{error:?}");
}

#[test]
fn a_layer_of_more_members_than_memory_is_meant_for_is_refused() {
    // An empty file again and again: a few bytes for a thousand of them.
    let member = LayerData::new(&[file("f", "")]).tar[..512].to_vec();
    let some = gzip(&member.repeat(1 << 12));
    let blob = some.repeat((4 << 20 >> 12) + 1);
    let error = refused(Layer::of(b"never reached", blob));
    let limit = 4 << 20;
    assert!(matches!(error, LayerError::TooManyMembers { limit: found, .. } if found == limit));
}
