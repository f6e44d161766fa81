//! Images in a real repository in a temporary directory.

use std::fs::File;

use composefs_image::{Algorithm, Format, VerityDigest};
use serde_json::json;

use super::*;
use crate::meta::{Formats, Security};
use crate::splitstream::{self, ContentType, NamedRefs, Writer};
use crate::{Batch, InitOptions, Repository, StreamName, Tag};

struct Fixture {
    directory: tempfile::TempDir,
}

/// An image of layers that are known by one letter each.
struct Made {
    manifest: Manifest,
    config: Config,
}

fn made(layers: &str, annotation: &str) -> Made {
    let diff_ids: Vec<DiffId> = layers.bytes().map(|byte| DiffId::of(&[byte])).collect();
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = Config::parse(serde_json::to_vec(&config).unwrap()).unwrap();
    let descriptors: Vec<_> = diff_ids
        .iter()
        .map(|diff_id| {
            json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": diff_id,
                "size": 1,
            })
        })
        .collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": ManifestFormat::Oci.media_type(),
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config.digest(),
            "size": config.bytes().len(),
        },
        "layers": descriptors,
        "annotations": {"a": annotation},
    });
    let manifest = Manifest::parse(serde_json::to_vec_pretty(&manifest).unwrap()).unwrap();
    Made { manifest, config }
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = InitOptions {
            algorithm: Algorithm::Sha256,
            formats: Formats::dual(),
            security: Security::Insecure,
        };
        Repository::init(directory.path().join("repo"), &options).unwrap();
        Self { directory }
    }

    fn open(&self) -> Repository {
        Repository::open(self.directory.path().join("repo")).unwrap()
    }

    /// Stores an image with these EROFS images, given by their content.
    fn store(&self, image: &Made, erofs: &[(ErofsKey, &str)], name: Option<&str>) -> StoredImage {
        let repository = self.open();
        let batch = repository.batch().unwrap();
        let layers = layers(&batch, &image.config);
        let erofs = erofs
            .iter()
            .map(|(key, content)| {
                let (image, _) = batch.store_bytes(content.as_bytes()).unwrap();
                (key.clone(), image)
            })
            .collect();
        let stored = store_image(
            &batch,
            &NewImage {
                manifest: &image.manifest,
                config: &image.config,
                layers: &layers,
                erofs: &erofs,
                indexes: &[],
            },
        )
        .unwrap();
        if let Some(name) = name {
            tag(&batch, &Tag::new(name).unwrap(), &image.manifest.digest()).unwrap();
        }
        batch.commit().unwrap();
        stored
    }
}

fn layers(batch: &Batch<'_>, config: &Config) -> Vec<(DiffId, VerityDigest)> {
    let store = |diff_id: &DiffId| {
        let mut writer = Writer::new(batch, ContentType::OCI_LAYER).unwrap();
        writer.inline(diff_id.as_bytes()).unwrap();
        let (stream, _) = writer.finish().unwrap();
        batch.link_stream(&diff_id.stream_name(), &stream);
        (*diff_id, stream)
    };
    config.diff_ids().iter().map(store).collect()
}

fn refs(repository: &Repository, stream: &VerityDigest) -> (NamedRefs, Vec<VerityDigest>) {
    let reader = splitstream::open(repository, stream, None).unwrap();
    let order = reader.stream_refs().collect::<Result<_, _>>().unwrap();
    (reader.named_refs().unwrap(), order)
}

fn not_found(repository: &Repository, name: &str) {
    let error = find(repository, name).unwrap_err();
    assert!(matches!(error, OciError::NotFound(_)), "{name:?}: {error}");
}

#[test]
fn a_stored_image_is_found_with_all_that_belongs_to_it() {
    let fixture = Fixture::new();
    let image = made("aba", "x");
    let keys = [
        (ErofsKey::RootfsV1, "one"),
        (ErofsKey::RootfsV2, "two"),
        (ErofsKey::Boot(".v1".into()), "boot"),
    ];
    let stored = fixture.store(&image, &keys, Some("registry.example/library/thing:latest"));
    let repository = fixture.open();

    let Images { images, damaged } = images(&repository).unwrap();
    assert!(damaged.is_empty());
    let [found] = &images[..] else {
        panic!("{images:?}");
    };
    assert_eq!(found.manifest().bytes(), image.manifest.bytes());
    assert_eq!(found.config().bytes(), image.config.bytes());
    assert_eq!(found.manifest_stream(), &stored.manifest_stream);
    assert_eq!(found.config_stream(), &stored.config_stream);
    assert_eq!(
        found.tags(),
        [Tag::new("registry.example/library/thing:latest").unwrap()]
    );
    let diff_ids: Vec<_> = found.layers().iter().map(|layer| layer.diff_id).collect();
    assert_eq!(diff_ids, image.config.diff_ids());
    let object =
        |content: &str| composefs_image::verity_digest(Algorithm::Sha256, content.as_bytes());
    assert_eq!(found.rootfs(Format::V1), Some(&object("one")));
    assert_eq!(found.rootfs(Format::V2), Some(&object("two")));
    assert_eq!(found.rootfs(Format::V0), None);

    // References are written in the order of the format: layers once, V2, V1, boot.
    let (named, order) = refs(&repository, &stored.config_stream);
    let layer = |byte: u8| named[&DiffId::of(&[byte]).to_string()];
    assert_eq!(
        order,
        [
            layer(b'a'),
            layer(b'b'),
            object("two"),
            object("one"),
            object("boot")
        ]
    );
    let (named, order) = refs(&repository, &stored.manifest_stream);
    assert_eq!(
        named[&format!("config:{}", image.config.digest())],
        stored.config_stream
    );
    assert_eq!(order, [stored.config_stream, layer(b'a'), layer(b'b')]);
}

#[test]
fn storing_the_same_again_changes_nothing() {
    let fixture = Fixture::new();
    let keys = [(ErofsKey::RootfsV1, "one")];
    let first = fixture.store(&made("ab", "x"), &keys, Some("t"));
    assert_eq!(fixture.store(&made("ab", "x"), &keys, Some("t")), first);
}

#[test]
fn erofs_images_that_are_known_stay_when_others_come() {
    let fixture = Fixture::new();
    let image = made("a", "x");
    let boot = ErofsKey::Boot(String::new());
    fixture.store(
        &image,
        &[(ErofsKey::RootfsV1, "old"), (boot.clone(), "boot")],
        Some("t"),
    );
    fixture.store(
        &image,
        &[(ErofsKey::RootfsV1, "new"), (ErofsKey::RootfsV2, "two")],
        None,
    );
    let found = find(&fixture.open(), "t").unwrap();
    let keys: Vec<_> = found.erofs().keys().collect();
    assert_eq!(keys, [&ErofsKey::RootfsV2, &ErofsKey::RootfsV1, &boot]);
    let object = composefs_image::verity_digest(Algorithm::Sha256, b"new");
    assert_eq!(found.rootfs(Format::V1), Some(&object));
}

#[test]
fn every_manifest_of_a_config_gets_its_new_stream() {
    let fixture = Fixture::new();
    let (first, second, other) = (made("ab", "gzip"), made("ab", "zstd"), made("b", ""));
    let old = fixture.store(&first, &[], Some("first"));
    let unrelated = fixture.store(&other, &[], Some("other"));
    let new = fixture.store(&second, &[(ErofsKey::RootfsV1, "image")], Some("second"));
    assert_ne!(old.config_stream, new.config_stream);

    let repository = fixture.open();
    let found = find(&repository, "first").unwrap();
    assert_eq!(found.config_stream(), &new.config_stream);
    assert_eq!(found.erofs(), find(&repository, "second").unwrap().erofs());
    assert_eq!(found.manifest().digest(), first.manifest.digest());
    let (_, old_order) = refs(&repository, &old.manifest_stream);
    let (_, order) = refs(&repository, found.manifest_stream());
    assert_eq!(order[0], new.config_stream);
    assert_eq!(order[1..], old_order[1..]);
    let found = find(&repository, "other").unwrap();
    assert_eq!(found.manifest_stream(), &unrelated.manifest_stream);
}

#[test]
fn an_image_is_found_by_tag_digest_id_and_their_parts() {
    let fixture = Fixture::new();
    let (app, base) = (made("ab", ""), made("b", ""));
    fixture.store(&app, &[], Some("registry.example/org/app:latest"));
    fixture.store(&base, &[], Some("localhost/base:1"));
    let repository = fixture.open();
    let found = find(&repository, "base:1").unwrap();
    assert_eq!(found.manifest().digest(), base.manifest.digest());
    let digest = app.manifest.digest();
    let id = app.config.digest();
    for name in [
        "registry.example/org/app:latest".to_owned(),
        "registry.example/org/app".into(),
        digest.to_string(),
        digest.to_hex(),
        id.to_string(),
        id.to_hex(),
        id.to_hex()[..12].into(),
        digest.to_hex()[..12].into(),
    ] {
        let found = find(&repository, &name).unwrap();
        assert_eq!(found.manifest().digest(), digest, "{name}");
    }
    for name in [
        "",
        "app",
        "org/app:latest",
        "base",
        "org",
        "@x",
        "sha256:",
        "no/app",
        &id.to_hex()[..2],
        &id.to_hex().to_uppercase(),
    ] {
        not_found(&repository, name);
    }
    let half = format!("sha256:{}", &id.to_hex()[..12]);
    not_found(&repository, &half);
}

#[test]
fn the_beginning_of_several_ids_is_ambiguous() {
    let fixture = Fixture::new();
    // Images enough that two begin with the same three digits.
    let mut seen = std::collections::HashMap::new();
    let (prefix, twins) = (0..)
        .find_map(|number| {
            let image = made("a", "");
            let mut json: serde_json::Value = serde_json::from_slice(image.config.bytes()).unwrap();
            json["author"] = number.to_string().into();
            let config = Config::parse(serde_json::to_vec(&json).unwrap()).unwrap();
            let prefix = config.digest().to_hex()[..3].to_owned();
            let twin = seen.insert(prefix.clone(), config.clone())?;
            Some((prefix, [config, twin]))
        })
        .unwrap();
    for config in twins {
        let image = made("a", "");
        let json = String::from_utf8(image.manifest.bytes().to_vec()).unwrap();
        let json = json.replace(
            &image.config.digest().to_string(),
            &config.digest().to_string(),
        );
        let manifest = Manifest::parse(json.into_bytes()).unwrap();
        fixture.store(&Made { manifest, config }, &[], None);
    }
    let error = find(&fixture.open(), &prefix).unwrap_err();
    let OciError::Ambiguous { candidates, .. } = error else {
        panic!("{error}");
    };
    assert!(candidates.len() >= 2);
}

#[test]
fn images_of_one_id_count_as_one_and_the_tagged_one_is_preferred() {
    let fixture = Fixture::new();
    let (first, second) = (made("a", "1"), made("a", "2"));
    fixture.store(&first, &[], None);
    fixture.store(&second, &[], None);
    let id = first.config.digest().to_hex();
    assert!(find(&fixture.open(), &id).is_ok());
    for (image, other) in [(&first, &second), (&second, &first)] {
        fixture.store(image, &[], Some("t"));
        let repository = fixture.open();
        let found = find(&repository, &id).unwrap();
        assert_eq!(found.manifest().digest(), image.manifest.digest());
        let other = other.manifest.digest();
        assert_eq!(
            find(&repository, &other.to_string())
                .unwrap()
                .manifest()
                .digest(),
            other
        );
    }
}

#[test]
fn a_tag_moves_and_goes_and_the_image_stays() {
    let fixture = Fixture::new();
    let (first, second) = (made("a", ""), made("b", ""));
    fixture.store(&first, &[], Some("t"));
    fixture.store(&second, &[], Some("t"));
    let repository = fixture.open();
    let name = Tag::new("t").unwrap();
    assert_eq!(tags(&repository).unwrap()[&name], second.manifest.digest());
    assert!(untag(&repository, &name).unwrap());
    assert!(!untag(&repository, &name).unwrap());
    assert!(tags(&repository).unwrap().is_empty());
    assert_eq!(images(&repository).unwrap().images.len(), 2);
    not_found(&repository, "t");

    let batch = repository.batch().unwrap();
    let missing = made("c", "").manifest.digest();
    assert!(matches!(
        tag(&batch, &name, &missing),
        Err(OciError::NoStream(_))
    ));
}

#[test]
fn documents_and_layers_that_do_not_fit_are_refused() {
    let fixture = Fixture::new();
    let repository = fixture.open();
    let batch = repository.batch().unwrap();
    let (image, other) = (made("ab", ""), made("a", ""));
    let whole = layers(&batch, &image.config);
    let erofs = ErofsRefs::new();
    let new = NewImage {
        manifest: &image.manifest,
        config: &image.config,
        layers: &whole,
        erofs: &erofs,
        indexes: &[],
    };
    let error = |new: &NewImage<'_>| store_image(&batch, new).unwrap_err();

    let mixed = NewImage {
        config: &other.config,
        ..new
    };
    assert!(matches!(
        error(&mixed),
        OciError::Manifest {
            source: DocumentError::Mismatch(_),
            ..
        }
    ));
    let short = NewImage {
        layers: &whole[..1],
        ..new
    };
    assert!(matches!(error(&short), OciError::NoLayer { .. }));
    let swapped = [whole[1], whole[0]];
    let swapped = NewImage {
        layers: &swapped,
        ..new
    };
    assert!(matches!(
        error(&swapped),
        OciError::OtherLayer { position: 0, .. }
    ));
    let long = [&whole[..], &whole[..1]].concat();
    let long = NewImage {
        layers: &long,
        ..new
    };
    assert!(matches!(
        error(&long),
        OciError::OtherLayer {
            position: 2,
            expected: None,
            ..
        }
    ));
    let absent = composefs_image::verity_digest(Algorithm::Sha256, b"absent");
    let erofs = ErofsRefs::from([(ErofsKey::RootfsV1, absent)]);
    let unstored = NewImage {
        erofs: &erofs,
        ..new
    };
    assert!(matches!(error(&unstored), OciError::NotStored(digest) if digest == absent));
    assert!(store_image(&batch, &new).is_ok());
}

#[test]
fn a_damaged_image_does_not_hide_the_others() {
    let fixture = Fixture::new();
    let (sound, damaged) = (made("a", ""), made("b", ""));
    fixture.store(&sound, &[], Some("sound"));
    fixture.store(&damaged, &[], Some("damaged"));
    let repository = fixture.open();
    let document = composefs_image::verity_digest(Algorithm::Sha256, damaged.manifest.bytes());
    let path = repository
        .path()
        .join("objects")
        .join(document.object_path());
    std::fs::remove_file(path).unwrap();

    let all = images(&repository).unwrap();
    assert_eq!(all.images.len(), 1);
    assert_eq!(all.damaged[0].0, damaged.manifest.digest());
    assert!(find(&repository, "sound").is_ok());
    assert!(matches!(
        find(&repository, "damaged"),
        Err(OciError::Repository(_))
    ));

    // A document in the place of another one.
    let path = repository.path().join("objects").join(
        composefs_image::verity_digest(Algorithm::Sha256, sound.config.bytes()).object_path(),
    );
    std::fs::remove_file(&path).unwrap();
    std::io::Write::write_all(&mut File::create(path).unwrap(), damaged.config.bytes()).unwrap();
    assert!(matches!(
        find(&repository, "sound"),
        Err(OciError::WrongDocument { .. })
    ));
}

#[test]
fn artifacts_are_not_images() {
    let fixture = Fixture::new();
    let repository = fixture.open();
    let batch = repository.batch().unwrap();
    let manifest = json!({
        "schemaVersion": 2,
        "config": {
            "mediaType": "application/vnd.oci.empty.v1+json",
            "digest": ConfigDigest::of(b"{}"),
            "size": 2,
        },
        "layers": [],
    });
    let bytes = serde_json::to_vec(&manifest).unwrap();
    let (document, _) = batch.store_bytes(&bytes).unwrap();
    let mut writer = Writer::new(&batch, ContentType::OCI_MANIFEST).unwrap();
    writer.external(&document, bytes.len() as u64).unwrap();
    let (stream, _) = writer.finish().unwrap();
    batch.link_stream(&ManifestDigest::of(&bytes).stream_name(), &stream);
    batch.link_stream(&StreamName::new("something-else").unwrap(), &stream);
    batch.commit().unwrap();
    let Images { images, damaged } = images(&repository).unwrap();
    assert!(images.is_empty() && damaged.is_empty());
}

#[test]
fn images_that_are_entered_at_once_keep_what_the_others_know_of_their_config() {
    const WRITERS: usize = 8;
    let fixture = Fixture::new();
    // One config; each writer has a manifest and an EROFS image of its own.
    let images: Vec<_> = (0..WRITERS).map(|n| made("ab", &n.to_string())).collect();
    let key = |n: usize| ErofsKey::Boot(format!(".{n}"));
    let together = std::sync::Barrier::new(WRITERS);
    std::thread::scope(|scope| {
        for (n, image) in images.iter().enumerate() {
            let (fixture, together) = (&fixture, &together);
            scope.spawn(move || {
                together.wait();
                let (content, name) = (format!("erofs {n}"), format!("t{n}"));
                fixture.store(image, &[(key(n), &content)], Some(&name));
            });
        }
    });
    let repository = fixture.open();
    let current = repository
        .stream(&images[0].config.digest().stream_name())
        .unwrap();
    for n in 0..WRITERS {
        let image = find(&repository, &format!("t{n}")).unwrap();
        assert_eq!(Some(*image.config_stream()), current);
        for other in 0..WRITERS {
            let content = format!("erofs {other}");
            let digest = composefs_image::verity_digest(Algorithm::Sha256, content.as_bytes());
            assert_eq!(image.erofs().get(&key(other)), Some(&digest));
        }
    }
}

#[test]
fn an_image_is_found_by_the_digest_of_its_index() {
    let fixture = Fixture::new();
    let (image, other) = (made("a", ""), made("b", ""));
    let index = |manifests: &[String]| {
        let entries: Vec<_> = manifests
            .iter()
            .map(|digest| {
                format!(
                    r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":2}}"#
                )
            })
            .collect();
        let json = format!(
            r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
            entries.join(",")
        );
        Index::parse(json.into_bytes()).unwrap()
    };
    let manifests = [&image, &other].map(|made| made.manifest.digest());
    let inner = index(&manifests.map(|digest| digest.to_string()));
    let outer = index(&[inner.digest().to_string()]);
    for made in [&image, &other] {
        fixture.store(made, &[], None);
    }
    let add = |manifest: ManifestDigest, indexes: &[Index]| {
        let repository = fixture.open();
        let batch = repository.batch().unwrap();
        add_indexes(&batch, manifest, indexes)?;
        batch.commit().unwrap();
        Ok::<_, OciError>(())
    };
    let strange = add(image.manifest.digest(), std::slice::from_ref(&outer)).unwrap_err();
    assert!(matches!(strange, OciError::NotInIndex { .. }), "{strange}");
    add(image.manifest.digest(), &[outer.clone(), inner.clone()]).unwrap();
    add(image.manifest.digest(), std::slice::from_ref(&inner)).unwrap();
    for index in [&outer, &inner] {
        let found = find(&fixture.open(), &index.digest().to_string()).unwrap();
        assert_eq!(found.manifest().digest(), image.manifest.digest());
    }
    // It stays when the image is stored again, and two images of one index are told apart by nothing.
    fixture.store(&image, &[], None);
    find(&fixture.open(), &outer.digest().to_string()).unwrap();
    add(other.manifest.digest(), std::slice::from_ref(&inner)).unwrap();
    let both = find(&fixture.open(), &inner.digest().to_string()).unwrap_err();
    assert!(matches!(both, OciError::Ambiguous { .. }), "{both}");
}
