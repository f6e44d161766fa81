//! Layers in a real repository in a temporary directory.

use super::*;
use crate::meta::{Formats, Security};
use crate::splitstream::{ContentType, Writer};
use crate::{Batch, Format, InitOptions, Repository};

fn repository(directory: &tempfile::TempDir) -> Repository {
    let options = InitOptions {
        algorithm: Algorithm::Sha256,
        formats: Formats::single(Format::V1),
        security: Security::Insecure,
    };
    let path = directory.path().join("repo");
    Repository::init(&path, &options).unwrap();
    Repository::open(path).unwrap()
}

fn store(batch: &Batch<'_>, members: &[New<'_>]) -> VerityDigest {
    let mut writer = Writer::new(batch, ContentType::OCI_LAYER).unwrap();
    for piece in split(&Tar::of(members).0, 512).unwrap().pieces {
        match piece {
            Piece::Inline(bytes) => writer.inline(&bytes).unwrap(),
            Piece::External(digest) => {
                writer.external(&digest, 0).unwrap();
            }
        }
    }
    writer.finish().unwrap().0
}

#[test]
fn layers_are_merged_before_and_after_they_are_committed() {
    let directory = tempfile::tempdir().unwrap();
    let repository = repository(&directory);
    let batch = repository.batch().unwrap();
    let big = [3; 5000];
    // More inline bytes than are read at a time.
    let names: Vec<String> = (0..300).map(|number| format!("usr/{number:03}")).collect();
    let many: Vec<_> = std::iter::once(directory_usr())
        .chain(names.iter().map(|name| file(name)))
        .collect();
    let lower = store(&batch, &many);
    let upper = store(
        &batch,
        &[
            directory_usr(),
            file("usr/big").content(&big),
            file("usr/.wh.000"),
        ],
    );

    let layers = [lower, upper];
    let tree = merged_tree(&batch, &layers, Rules::Rootfs(XattrFilter::AllowlistOnly)).unwrap();
    let found = tree.lookup_path(b"usr/big").unwrap();
    let content = Content::External {
        size: 5000,
        digest: Some(digest(&big)),
        path: None,
    };
    assert_eq!(tree.kind(found), Kind::Regular(content));
    assert_eq!(tree.child_count(tree.lookup_path(b"usr").unwrap()), 300);
    batch.commit().unwrap();
    let again = merged_tree(
        &repository,
        &layers,
        Rules::Rootfs(XattrFilter::AllowlistOnly),
    )
    .unwrap();
    assert_eq!(lines(&again), lines(&tree));

    let mut counts = Vec::new();
    for_each_prefix(&repository, &layers, |index, tree| {
        counts.push((index, tree.walk().count()));
        Ok::<_, MergeError>(())
    })
    .unwrap();
    assert_eq!(counts, [(0, 302), (1, 302)]);
}

fn directory_usr() -> New<'static> {
    directory("usr")
}

#[test]
fn an_error_names_the_layer_and_the_entry() {
    let directory = tempfile::tempdir().unwrap();
    let repository = repository(&directory);
    let batch = repository.batch().unwrap();
    let layer = store(&batch, &[file("no/parent")]);
    let error = |layer| {
        let error = merged_tree(&batch, &[layer], Rules::Rootfs(XattrFilter::AllowlistOnly))
            .err()
            .unwrap();
        let MergeError::Layer { layer: named, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(*named, layer);
        error.to_string()
    };
    assert!(error(layer).contains("no/parent: its directory does not exist"));
    assert!(error(digest(b"absent")).contains("missing"));

    let mut writer = Writer::new(&batch, ContentType::OCI_CONFIG).unwrap();
    writer.inline(b"x").unwrap();
    let (other, _) = writer.finish().unwrap();
    assert!(error(other).contains("holds ociconfg, not ocilayer"));
}
