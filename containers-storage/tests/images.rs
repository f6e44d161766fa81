//! Finding images and their layers.

mod common;

use std::fs;

use common::{Fixture, conf_for, open_conf, reassemble};
use containers_storage::own_store::big_data_file_name;
use containers_storage::{Error, ManifestDigest, OpenOptions, Storage};
use serde_json::json;

#[test]
fn an_image_is_found_by_name_id_prefix_and_digest() {
    let fixture = Fixture::new();
    let root = fixture.root("main");
    let layer = root.layer(None, &[("a", b"a")]);
    let (id, digest) = root.image(
        &["registry.example/team/app:1.2", "localhost/app:latest"],
        &[&layer],
    );
    root.image(&["localhost/other:latest"], &[]);
    let storage = root.open();
    for name in [
        "registry.example/team/app:1.2",
        "localhost/app:latest",
        "localhost/app",
        "app:latest",
        "app",
        id.as_str(),
        &id[..12],
        &format!("sha256:{id}"),
        &digest.to_string(),
        &format!("registry.example/team/app@{digest}"),
        &format!("app@{digest}"),
        &format!("registry.example/team/app:1.2@{digest}"),
    ] {
        let image = storage
            .find_image(name)
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(image.id().as_str(), id, "{name}");
    }
}

#[test]
fn a_short_name_is_never_completed_by_a_registry() {
    let fixture = Fixture::new();
    let root = fixture.root("main");
    let (_, digest) = root.image(&["registry.example/team/app:latest"], &[]);
    let storage = root.open();
    for name in [
        "app",
        "team/app",
        "app:latest",
        "",
        "registry.example/team/app:1",
        &format!("app@{digest}"),
    ] {
        let error = storage.find_image(name).expect_err(name);
        assert!(
            matches!(error, Error::ImageNotFound { .. }),
            "{name}: {error}"
        );
    }
    let error = storage.find_image("app").unwrap_err().to_string();
    assert!(
        error.contains("did you mean registry.example/team/app:latest?"),
        "{error}"
    );
}

#[test]
fn an_ambiguous_prefix_or_digest_names_the_candidates() {
    let fixture = Fixture::new();
    let root = fixture.root("main");
    let index = "sha256:".to_owned() + &"1".repeat(64);
    for id in ["c0ffee01", "c0ffee02"] {
        root.add_record(
            "overlay-images/images.json",
            json!({"id": id, "big-data-digests": {format!("manifest-{index}"): index}}),
        );
    }
    let storage = root.open();
    for name in ["c0ffee", index.as_str()] {
        match storage.find_image(name) {
            Err(Error::AmbiguousImage { candidates, .. }) => assert_eq!(candidates.len(), 2),
            other => panic!("{name}: {other:?}"),
        }
    }
    assert_eq!(
        storage
            .find_image("c0ffee0")
            .unwrap_err()
            .to_string()
            .matches("c0ffee0")
            .count(),
        3
    );
    assert!(storage.find_image("c0ffee01").is_ok());
}

#[test]
fn the_main_store_wins_over_an_additional_one() {
    let fixture = Fixture::new();
    let (main, extra) = (fixture.root("main"), fixture.root("extra"));
    let layer = main.layer(None, &[("a", b"a")]);
    let (id, _) = main.image(&["localhost/app:latest"], &[&layer]);
    extra.image(&["localhost/app:latest"], &[]);
    let (only, _) = extra.image(&["localhost/only:latest"], &[]);
    let conf = conf_for(
        &main.path,
        &format!(
            "[storage.options]\nadditionalimagestores=[{:?}, \"/nowhere/store\"]",
            extra.path
        ),
    );
    let storage = open_conf(conf);
    assert_eq!(storage.find_image("app").unwrap().id().as_str(), id);
    assert_eq!(storage.find_image("only").unwrap().id().as_str(), only);
    assert_eq!(storage.images().unwrap().len(), 3);
}

#[test]
fn layers_are_listed_bottom_first_through_all_stores() {
    let fixture = Fixture::new();
    let (main, extra) = (fixture.root("main"), fixture.root("extra"));
    let base = extra.layer(None, &[("base", b"base")]);
    let top = main.layer(Some(&base), &[("top", b"top")]);
    main.image(&["localhost/app:latest"], &[&base, &top]);
    let conf = conf_for(
        &main.path,
        &format!(
            "[storage.options]\nadditionalimagestores=[{:?}]",
            extra.path
        ),
    );
    let layers = open_conf(conf).find_image("app").unwrap().layers().unwrap();
    let ids: Vec<_> = layers.iter().map(|layer| layer.id().clone()).collect();
    assert_eq!(ids, [base.id.clone(), top.id.clone()]);
    assert_eq!(layers[0].store_root().path(), extra.path);
    assert_eq!(reassemble(&layers[0]).unwrap(), base.tar);
    assert_eq!(reassemble(&layers[1]).unwrap(), top.tar);
}

#[test]
fn a_split_store_is_read_from_both_roots() {
    let fixture = Fixture::new();
    let (main, images) = (fixture.root("main"), fixture.root("images"));
    // c/storage 1.53 to 1.57: records and tar-split in the graph root, directories in the image root.
    let base = main.layer(None, &[("base", b"base")]);
    fs::rename(
        main.path.join("overlay").join(base.id.as_str()),
        images.path.join("overlay").join(base.id.as_str()),
    )
    .unwrap();
    // 1.58 and later: records in the image root, tar-split still in the graph root.
    let top = images.layer(Some(&base), &[("top", b"top")]);
    fs::rename(images.tar_split(&top), main.tar_split(&top)).unwrap();
    images.image(&["localhost/app:latest"], &[&base, &top]);

    let conf = conf_for(&main.path, &format!("imagestore={:?}", images.path));
    let layers = open_conf(conf).find_image("app").unwrap().layers().unwrap();
    assert_eq!(reassemble(&layers[0]).unwrap(), base.tar);
    assert_eq!(reassemble(&layers[1]).unwrap(), top.tar);
}

#[test]
fn volatile_layer_records_are_read() {
    let fixture = Fixture::new();
    let root = fixture.root("main");
    let layer = root.layer(None, &[("a", b"a")]);
    root.image(&["localhost/app:latest"], &[&layer]);
    fs::rename(
        root.layers_json(),
        root.path.join("overlay-layers/volatile-layers.json"),
    )
    .unwrap();
    fs::write(root.layers_json(), "[]").unwrap();
    let layers = root.open().find_image("app").unwrap().layers().unwrap();
    assert_eq!(layers[0].id(), &layer.id);
}

#[test]
fn a_chain_that_ends_early_is_missing_or_circular_is_refused() {
    let fixture = Fixture::new();
    let root = fixture.root("main");
    let base = root.layer(None, &[("a", b"a")]);
    let top = root.layer(Some(&base), &[("b", b"b")]);
    root.image(&["localhost/app:latest"], &[&base, &top]);
    let image = root.open().find_image("app").unwrap();

    root.change_layer(&top, |record| record["parent"] = json!(null));
    let error = image.layers().unwrap_err();
    assert!(
        matches!(
            error,
            Error::LayerCount {
                expected: 2,
                found: 1,
                ..
            }
        ),
        "{error}"
    );

    root.change_layer(&top, |record| record["parent"] = json!("f".repeat(64)));
    let error = image.layers().unwrap_err();
    assert!(matches!(error, Error::LayerNotFound { .. }), "{error}");

    root.change_layer(&top, |record| record["parent"] = json!(top.id));
    let error = image.layers().unwrap_err();
    assert!(matches!(error, Error::LayerCycle { .. }), "{error}");
}

#[test]
fn an_image_that_was_chosen_from_an_index_has_its_own_manifest_and_the_index() {
    let fixture = Fixture::new();
    let root = fixture.root("main");
    let (id, digest) = root.image(&["localhost/app:latest"], &[]);
    // As podman records it: the digest is that of the index.
    let index = json!({"schemaVersion": 2, "manifests": [{"digest": digest.to_string()}]});
    let index = index.to_string();
    let of_index = ManifestDigest::of(index.as_bytes()).to_string();
    let key = format!("manifest-{of_index}");
    let file = big_data_file_name(&key);
    fs::write(
        root.path.join("overlay-images").join(&id).join(file),
        &index,
    )
    .unwrap();
    let mut records: serde_json::Value =
        serde_json::from_slice(&fs::read(root.images_json()).unwrap()).unwrap();
    records[0]["digest"] = json!(of_index);
    records[0]["big-data-digests"][&key] = json!(of_index);
    fs::write(root.images_json(), records.to_string()).unwrap();

    let image = root.open().find_image(&of_index).unwrap();
    assert_eq!(image.digest().unwrap(), digest);
    assert_eq!(ManifestDigest::of(&image.manifest().unwrap()), digest);
    assert_eq!(image.config_digest().unwrap().to_hex(), id);
    assert_eq!(image.indexes().unwrap(), [index.into_bytes()]);
}

#[test]
fn manifest_and_config_with_another_content_are_refused() {
    let fixture = Fixture::new();
    let root = fixture.root("main");
    let (id, digest) = root.image(&["localhost/app:latest"], &[]);
    let image = root.open().find_image("app").unwrap();
    assert_eq!(image.digest().unwrap(), digest);
    assert_eq!(image.config_digest().unwrap().to_hex(), id);

    let dir = root.path.join("overlay-images").join(&id);
    for entry in fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        bytes.push(b'\n');
        fs::write(path, bytes).unwrap();
    }
    let error = image.manifest().unwrap_err();
    assert!(
        matches!(
            error,
            Error::DigestMismatch {
                what: "manifest",
                ..
            }
        ),
        "{error}"
    );
    let error = image.layers().unwrap_err();
    assert!(
        matches!(
            error,
            Error::DigestMismatch {
                what: "manifest",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn an_image_that_is_removed_while_it_is_read_is_said_to_be() {
    let fixture = Fixture::new();
    let root = fixture.root("main");
    let (id, _) = root.image(&["localhost/app:latest"], &[]);
    let image = root.open().find_image("app").unwrap();
    fs::remove_dir_all(root.path.join("overlay-images").join(&id)).unwrap();
    let error = image.explain(image.manifest().unwrap_err());
    assert!(matches!(error, Error::UnsupportedImage { .. }), "{error}");
    fs::write(root.path.join("overlay-images/images.lock"), [1; 64]).unwrap();
    let error = image.explain(image.manifest().unwrap_err());
    assert!(matches!(error, Error::ImageChanged { .. }), "{error}");
}

#[test]
fn unknown_keys_of_records_survive_and_null_is_empty() {
    let text = json!({
        "id": "c0ffee", "names": null, "big-data-names": null, "flags": null,
        "from-the-future": {"x": [1, 2]}
    });
    let layer: containers_storage::LayerRecord = serde_json::from_value(text.clone()).unwrap();
    assert_eq!(
        serde_json::to_value(&layer).unwrap(),
        json!({"id": "c0ffee", "from-the-future": {"x": [1, 2]}})
    );
    let image: containers_storage::ImageRecord = serde_json::from_value(text).unwrap();
    assert_eq!(
        serde_json::to_value(&image).unwrap()["from-the-future"],
        json!({"x": [1, 2]})
    );
    let flags = json!({"id": "c0ffee", "flags": {"incomplete": true, "mine": "kept"}});
    let layer: containers_storage::LayerRecord = serde_json::from_value(flags.clone()).unwrap();
    assert!(layer.flags.incomplete);
    assert_eq!(serde_json::to_value(&layer).unwrap(), flags);
}

#[test]
fn damaged_records_are_an_error_that_names_the_file() {
    let fixture = Fixture::new();
    let root = fixture.root("main");
    for content in [
        "{",
        "[{\"id\": 3}]",
        "[{\"id\": \"../x\"}]",
        "[{\"id\":\"a\",\"digest\":\"md5:1\"}]",
    ] {
        fs::write(root.images_json(), content).unwrap();
        let error = root.open().images().unwrap_err();
        assert!(
            error.to_string().contains("images.json"),
            "{content}: {error}"
        );
    }
    fs::write(root.images_json(), "").unwrap();
    assert!(root.open().images().unwrap().is_empty());
}

#[test]
fn a_root_of_another_driver_is_refused() {
    let fixture = Fixture::new();
    let open = |name: &str| {
        Storage::open(&OpenOptions {
            root: Some(fixture.dir.path().join(name)),
            conf: None,
        })
    };
    assert!(matches!(open("missing"), Err(Error::NoStore { .. })));
    fs::create_dir_all(fixture.dir.path().join("btrfs/btrfs-images")).unwrap();
    match open("btrfs") {
        Err(Error::UnsupportedDriver { driver, .. }) => assert_eq!(driver, "btrfs"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_missing_lock_file_is_an_error_and_is_not_created() {
    let fixture = Fixture::new();
    let root = fixture.root("main");
    root.image(&["localhost/app:latest"], &[]);
    let lock = root.path.join("overlay-images/images.lock");
    fs::remove_file(&lock).unwrap();
    let error = root.open().images().unwrap_err();
    assert!(matches!(error, Error::NoLockFile { .. }), "{error}");
    assert!(!lock.exists());
    // A store that nobody wrote to has neither.
    fs::remove_file(root.images_json()).unwrap();
    assert!(root.open().images().unwrap().is_empty());
}
