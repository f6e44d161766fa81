//! Stores as other versions and settings of podman make them: each layer's tar comes out byte for byte.

mod common;

use std::fs;
use std::path::Path;

use common::{Fixture, MadeLayer, Root, conf_for, open_conf, reassemble};
use containers_storage::testing::{Reshape, SplitRecords};
use containers_storage::{Driver, Error, LayerId, LayerKind, Storage};

/// Two layers with an image; the upper one replaces a file of the lower one.
fn made(root: &Root) -> [MadeLayer; 2] {
    let big = vec![42; 100_000];
    let lower = root.layer(
        None,
        &[
            ("usr/bin/tool", &big),
            ("usr/empty", b""),
            ("etc/conf", b"old"),
            ("etc/\u{e9} \n", b"odd"),
        ],
    );
    let upper = root.layer(
        Some(&lower),
        &[
            ("etc/conf", b"new"),
            ("etc/same", b"old"),
            ("usr/bin/other", &big),
        ],
    );
    root.image(&["localhost/app:latest"], &[&lower, &upper]);
    [lower, upper]
}

fn assert_reads(storage: &Storage, made: &[MadeLayer; 2]) {
    let layers = storage.find_image("app").unwrap().layers().unwrap();
    for (layer, made) in layers.iter().zip(made) {
        assert_eq!(reassemble(layer).unwrap(), made.tar);
        assert_eq!(layer.diff_id(), made.diff_id);
    }
    assert_eq!(layers.len(), made.len());
}

fn reshaped(reshape: impl FnOnce(&Reshape, &[MadeLayer; 2])) -> (Fixture, Root, [MadeLayer; 2]) {
    let fixture = Fixture::new();
    let root = fixture.root("main");
    let layers = made(&root);
    reshape(&Reshape::new(&root.path), &layers);
    (fixture, root, layers)
}

#[test]
fn a_tar_split_in_zstd_is_read() {
    let (_fixture, root, made) = reshaped(|store, made| store.zstd_tar_split(&made[1].id));
    assert_reads(&root.open(), &made);
}

#[test]
fn a_flat_layer_of_a_partial_pull_is_read_through_its_table_of_contents() {
    let (_fixture, root, made) = reshaped(|store, made| {
        for layer in made {
            store.flat(&layer.id);
        }
    });
    let layers = root.open().find_image("app").unwrap().layers().unwrap();
    assert_eq!(layers[0].kind().unwrap(), LayerKind::Flat);
    assert_reads(&root.open(), &made);
}

#[test]
fn a_layer_that_only_its_table_of_contents_identifies_is_read() {
    let mut new: Option<LayerId> = None;
    let (_fixture, root, made) = reshaped(|store, made| {
        store.flat(&made[1].id);
        new = Some(store.toc_only(&made[1].id));
    });
    let storage = root.open();
    assert_reads(&storage, &made);
    let image = storage.find_image("app").unwrap();
    let top = image.layers().unwrap().pop().unwrap();
    assert_eq!(top.id(), &new.unwrap());
    assert_eq!(top.diff_size(), None);
    assert!(top.record().flags.expected_diff_id.is_some());
    assert_ne!(image.id().as_str(), image.config_digest().unwrap().to_hex());
}

#[test]
fn a_flat_layer_with_a_damaged_table_of_contents_is_refused() {
    let (_fixture, root, made) = reshaped(|store, made| store.flat(&made[1].id));
    let dir = root.path.join("overlay-layers").join(made[1].id.as_str());
    let toc = dir.join(containers_storage::own_store::big_data_file_name(
        "zstd-chunked-manifest",
    ));
    let open = |text: &str| {
        fs::write(&toc, text).unwrap();
        root.open().find_image("app").unwrap().layers().unwrap()[1].open()
    };
    let digest = format!("sha256:{}", "a".repeat(64));
    for bad in [
        String::new(),
        "[]".to_owned(),
        r#"{"entries":{}}"#.to_owned(),
        r#"{"entries":[{"type":"reg","name":"a","digest":"sha256:../../etc/passwd"}]}"#.to_owned(),
        format!(r#"{{"entries":[{{"type":"reg","name":"../a","digest":"{digest}"}}]}}"#),
        r#"{"entries":[{"type":"reg","name":"a","digest":"#.to_owned(),
    ] {
        let error = open(&bad).unwrap_err();
        assert!(matches!(error, Error::Json { .. }), "{bad}: {error}");
    }
    // An object that is not there is a file that is missing.
    let names = ["etc/conf", "etc/same", "usr/bin/other"]
        .map(|name| format!(r#"{{"type":"reg","name":"./{name}","digest":"{digest}"}}"#));
    let layer = open(&format!(
        r#"{{"version":1,"entries":[{}]}}"#,
        names.join(",")
    ))
    .unwrap();
    let error = layer.open_file(&"etc/conf".into()).unwrap_err();
    assert!(matches!(error, Error::FileMissing { .. }), "{error}");
}

#[test]
fn generations_with_metacopy_stubs_are_read() {
    let (_fixture, root, made) = reshaped(|store, made| store.generations(&made[0].id));
    assert_reads(&root.open(), &made);
}

#[test]
fn the_whole_trees_of_a_vfs_store_are_read() {
    let (_fixture, root, made) = reshaped(|store, _| store.vfs());
    let storage = root.open();
    assert_eq!(storage.roots()[0].driver(), Driver::Vfs);
    assert_reads(&storage, &made);
}

#[test]
fn volatile_layers_are_found_and_stable_ones_win() {
    let (_fixture, root, made) = reshaped(|store, made| store.volatile(&made[1].id));
    assert_reads(&root.open(), &made);
    // A second record with the ID of a stable layer does not count.
    let file = "overlay-layers/volatile-layers.json";
    root.add_record(
        file,
        serde_json::json!({"id": made[0].id, "parent": made[1].id}),
    );
    assert_reads(&root.open(), &made);
}

#[test]
fn a_transient_store_has_its_volatile_layers_below_the_run_root() {
    let (fixture, root, made) = reshaped(|store, made| store.volatile(&made[1].id));
    let run = fixture.dir.path().join("run");
    fs::create_dir_all(run.join("overlay-layers")).unwrap();
    let file = "overlay-layers/volatile-layers.json";
    fs::rename(root.path.join(file), run.join(file)).unwrap();
    let toml = format!("runroot=\"{}\"\ntransient_store=true", run.display());
    assert_reads(&open_conf(conf_for(&root.path, &toml)), &made);
}

#[test]
fn both_generations_of_split_stores_are_read() {
    for records in [SplitRecords::Graphroot, SplitRecords::Imagestore] {
        let images = tempfile::tempdir().unwrap();
        let (_fixture, root, made) = reshaped(|store, _| store.split(images.path(), records));
        let toml = format!("imagestore=\"{}\"", images.path().display());
        assert_reads(&open_conf(conf_for(&root.path, &toml)), &made);
    }
}

#[test]
fn an_incomplete_layer_below_is_refused_too() {
    let (_fixture, root, _) = reshaped(|store, made| store.incomplete(&made[0].id));
    let layers = root.open().find_image("app").unwrap().layers().unwrap();
    let error = layers[0].open().unwrap_err();
    assert!(matches!(error, Error::LayerIncomplete { .. }), "{error}");
    assert!(layers[1].open().is_ok());
}

#[test]
fn an_additional_store_needs_no_lock_files() {
    let (fixture, root, made) = reshaped(|_, _| {});
    for lock in ["overlay-layers/layers.lock", "overlay-images/images.lock"] {
        fs::remove_file(root.path.join(lock)).unwrap();
    }
    let main = fixture.root("own");
    let store = root.path.display();
    let toml = format!("[storage.options]\nadditionalimagestores=[\"{store}\"]");
    assert_reads(&open_conf(conf_for(Path::new(&main.path), &toml)), &made);
    assert!(!root.path.join("overlay-layers/layers.lock").exists());
}
