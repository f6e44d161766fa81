//! Reading a layer: what is refused, and that the tar comes out byte for byte.

mod common;

use std::fs;
use std::os::unix::fs::symlink;

use common::{Fixture, MadeLayer, Root, gzip, reassemble};
use containers_storage::{EntryName, Error, Layer, LayerKind};
use serde_json::json;

fn one_layer(root: &Root, files: &[(&str, &[u8])]) -> (MadeLayer, Layer) {
    let made = root.layer(None, files);
    root.image(&["localhost/app:latest"], &[&made]);
    (made, find(root))
}

fn find(root: &Root) -> Layer {
    let image = root.open().find_image("app").unwrap();
    image.layers().unwrap().remove(0)
}

fn set_xattr(path: &std::path::Path, name: &str) {
    rustix::fs::setxattr(path, name, b"", rustix::fs::XattrFlags::empty()).unwrap();
}

#[test]
fn the_tar_of_a_layer_comes_out_byte_for_byte() {
    let root_dir = Fixture::new();
    let root = root_dir.root("main");
    let big = vec![42; 100_000];
    let (made, layer) = one_layer(
        &root,
        &[
            ("usr/bin/tool", &big),
            ("usr/empty", b""),
            (".wh.gone", b""),
            ("usr/<&> \n", b"odd"),
        ],
    );
    assert_eq!(reassemble(&layer).unwrap(), made.tar);
    assert_eq!(layer.diff_id(), made.diff_id);
    assert_eq!(layer.diff_size(), Some(made.tar.len() as u64));
}

#[test]
fn an_incomplete_layer_is_refused() {
    let fixture = Fixture::new();
    let root = fixture.root("main");
    let (made, layer) = one_layer(&root, &[("a", b"a")]);
    root.change_layer(&made, |record| {
        record["flags"] = json!({"incomplete": true});
    });
    let error = find(&root).open().unwrap_err();
    assert!(matches!(error, Error::LayerIncomplete { .. }), "{error}");
    // A layer that was complete when it was listed, and is being deleted now.
    root.mark_layers_written();
    let error = layer.open().unwrap_err();
    assert!(matches!(error, Error::LayerChanged { .. }), "{error}");
}

#[test]
fn a_layer_that_was_removed_or_replaced_meanwhile_is_refused() {
    let fixture = Fixture::new();
    let root = fixture.root("main");
    let (made, layer) = one_layer(&root, &[("a", b"a")]);
    // Another layer was written: nothing to complain about.
    root.mark_layers_written();
    root.layer(None, &[("b", b"b")]);
    assert!(layer.open().is_ok());
    root.change_layer(&made, |record| {
        record["created"] = json!("2026-01-01T00:00:00Z");
    });
    let error = layer.open().unwrap_err();
    assert!(matches!(error, Error::LayerChanged { .. }), "{error}");
    fs::write(root.layers_json(), "[]").unwrap();
    let error = layer.open().unwrap_err();
    assert!(matches!(error, Error::LayerChanged { .. }), "{error}");
}

#[test]
fn a_layer_that_is_removed_while_it_is_read_is_said_to_be_removed() {
    let fixture = Fixture::new();
    let root = fixture.root("main");
    let (made, layer) = one_layer(&root, &[("a", b"a"), ("b", b"b")]);
    let open = layer.open().unwrap();
    open.check_unchanged().unwrap();
    // As the engine does it: mark, record, files.
    root.mark_layers_written();
    root.change_layer(&made, |record| {
        record["flags"] = json!({"incomplete": true});
    });
    assert!(open.open_file(&EntryName::from("a")).is_ok());
    let error = open.check_unchanged().unwrap_err();
    assert!(matches!(error, Error::LayerChanged { .. }), "{error}");
    fs::remove_dir_all(root.diff(&made)).unwrap();
    fs::write(root.layers_json(), "[]").unwrap();
    for result in [
        open.open_file(&EntryName::from("b")).map(drop),
        open.check_unchanged(),
    ] {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::LayerChanged { .. }), "{error}");
    }
}

#[test]
fn a_missing_directory_tar_split_or_file_is_named() {
    let fixture = Fixture::new();
    let root = fixture.root("main");
    let (made, layer) = one_layer(&root, &[("etc/conf", b"x")]);
    fs::remove_file(root.diff(&made).join("etc/conf")).unwrap();
    let error = reassemble(&layer).unwrap_err();
    assert!(matches!(error, Error::FileMissing { .. }), "{error}");
    assert!(
        error.to_string().contains("\"etc/conf\"") && error.to_string().contains(made.id.as_str())
    );
    fs::remove_file(root.tar_split(&made)).unwrap();
    let error = reassemble(&layer).unwrap_err();
    assert!(matches!(error, Error::NoTarSplit { .. }), "{error}");
    fs::remove_dir_all(root.diff(&made).parent().unwrap()).unwrap();
    let error = layer.open().unwrap_err();
    assert!(
        matches!(error, Error::LayerDirectoryMissing { .. }),
        "{error}"
    );
}

#[test]
fn a_truncated_tar_split_is_an_error_that_names_the_layer() {
    let fixture = Fixture::new();
    let root = fixture.root("main");
    let (made, layer) = one_layer(&root, &[("a", b"a")]);
    let bytes = fs::read(root.tar_split(&made)).unwrap();
    for length in [0, 1, bytes.len() / 2, bytes.len() - 1] {
        fs::write(root.tar_split(&made), &bytes[..length]).unwrap();
        // Nothing at all is an empty stream, which the diff ID refutes.
        match reassemble(&layer) {
            Err(error @ Error::TarSplit { .. }) => {
                assert!(error.to_string().contains(made.id.as_str()));
            }
            other => assert!(length == 0 && other.unwrap().is_empty(), "{length}"),
        }
    }
}

#[test]
fn files_are_found_in_older_generations_and_behind_metacopy_stubs() {
    let fixture = Fixture::new();
    let root = fixture.root("main");
    let (made, layer) = one_layer(&root, &[("a", b"aaaa"), ("dir/b", b"bbbb"), ("c", b"cccc")]);
    // An id-mapped copy was made twice: content is in diff1 and diff2, with stubs in front.
    let dir = root.diff(&made).parent().unwrap().to_owned();
    fs::rename(dir.join("diff"), dir.join("diff2")).unwrap();
    fs::create_dir_all(dir.join("diff1/dir")).unwrap();
    fs::rename(dir.join("diff2/dir/b"), dir.join("diff1/dir/b")).unwrap();
    fs::create_dir_all(dir.join("diff/dir")).unwrap();
    for stub in ["diff/a", "diff1/a", "diff/dir/b"] {
        fs::write(dir.join(stub), [0; 4]).unwrap();
        set_xattr(&dir.join(stub), "user.overlay.metacopy");
    }
    assert_eq!(reassemble(&layer).unwrap(), made.tar);
    fs::remove_file(dir.join("diff2/a")).unwrap();
    let error = reassemble(&layer).unwrap_err();
    assert!(matches!(error, Error::FileMissing { .. }), "{error}");
}

#[test]
fn names_never_lead_out_of_the_layer_or_through_links() {
    let fixture = Fixture::new();
    let root = fixture.root("main");
    let (made, layer) = one_layer(&root, &[("usr/lib/a", b"inside")]);
    let diff = root.diff(&made);
    fs::write(diff.parent().unwrap().join("outside"), "outside").unwrap();
    symlink("usr", diff.join("dir-link")).unwrap();
    symlink("/etc/passwd", diff.join("absolute")).unwrap();
    symlink("usr/lib/a", diff.join("relative")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        diff.join("fifo"),
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();

    let open = layer.open().unwrap();
    let problem = |name: &str| match open.open_file(&EntryName::from(name)) {
        Err(Error::UnsafeFile { problem, .. }) => problem,
        other => panic!("{name}: {other:?}"),
    };
    for name in [
        "../outside",
        "usr/../../outside",
        "a/../../../x",
        "",
        ".",
        "/",
        "a\0b",
    ] {
        assert_eq!(problem(name), "leaves the layer's directory", "{name:?}");
    }
    for name in ["dir-link/lib/a", "absolute", "relative"] {
        assert_eq!(problem(name), "leads through a symlink", "{name}");
    }
    for name in ["fifo", "usr", "usr/lib/"] {
        assert_eq!(problem(name), "is not a regular file", "{name}");
    }
    for name in [
        "usr/lib/a",
        "/usr/lib/a",
        "./usr//lib/a",
        "/../usr/lib/a",
        "usr/x/../lib/a",
    ] {
        assert!(open.open_file(&EntryName::from(name)).is_ok(), "{name}");
    }
    for name in ["usr/lib/b", "usr/lib/a/b", "nothing/here"] {
        let error = open.open_file(&EntryName::from(name)).unwrap_err();
        assert!(matches!(error, Error::FileMissing { .. }), "{error}");
    }
}

#[test]
fn layers_that_are_no_directory_trees_are_recognised() {
    let fixture = Fixture::new();
    let root = fixture.root("main");
    let (made, layer) = one_layer(&root, &[("a", b"a")]);
    let dir = root.diff(&made).parent().unwrap().to_owned();
    assert_eq!(layer.kind().unwrap(), LayerKind::Tree);

    fs::create_dir(dir.join("composefs-data")).unwrap();
    assert_eq!(layer.kind().unwrap(), LayerKind::Composefs);

    // A partial pull: what it says about itself decides.
    let data = root.path.join("overlay-layers").join(made.id.as_str());
    fs::create_dir(&data).unwrap();
    let data = data.join(containers_storage::own_store::big_data_file_name(
        "zstd-chunked-layer-data",
    ));
    fs::write(&data, r#"{"format":1}"#).unwrap();
    assert_eq!(layer.kind().unwrap(), LayerKind::Flat);
    let error = layer.open().unwrap_err();
    assert!(matches!(error, Error::NoTableOfContents { .. }), "{error}");
    fs::write(&data, r#"{"format":0}"#).unwrap();
    assert_eq!(layer.kind().unwrap(), LayerKind::Tree);
    fs::remove_file(&data).unwrap();
    fs::remove_dir(dir.join("composefs-data")).unwrap();

    // A composefs that is mounted elsewhere.
    fs::rename(dir.join("diff"), dir.join("elsewhere")).unwrap();
    symlink(dir.join("elsewhere"), dir.join("diff")).unwrap();
    assert_eq!(layer.kind().unwrap(), LayerKind::Composefs);
    assert_eq!(reassemble(&layer).unwrap(), made.tar);

    fs::write(dir.join("additionallayer"), "/store/x").unwrap();
    match layer.open() {
        Err(Error::UnsupportedLayer { kind, .. }) => {
            assert_eq!(kind, LayerKind::AdditionalLayerStore);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_tar_split_that_names_a_file_twice_is_refused() {
    let fixture = Fixture::new();
    let root = fixture.root("main");
    let (made, layer) = one_layer(&root, &[("a", b"a")]);
    let lines = "{\"type\":1,\"name\":\"dir/a\"}\n{\"type\":1,\"name\":\"./dir//a/\"}\n";
    fs::write(root.tar_split(&made), gzip(lines.as_bytes())).unwrap();
    let error = reassemble(&layer).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("twice"), "{cause}");
}
