use std::fs;

use composefs_image::dumpfile::read_dump;
use composefs_image::{Dialect, Format, WriteOptions, verity_digest, write_image};
use tempfile::TempDir;

use super::*;

const DUMP: &str = r"/ 0 40755 3 0 0 0 1700000000.0 - - -
/dir 0 40750 2 1000 1000 0 1700000001.500000000 - - - user.test=1
/dir/big 5000 100644 2 0 0 0 1600000000.0 21/a8507def1d5fad6393e6d722a0421d9f9f674461beb4ac74983bef9535b5d4 - 21a8507def1d5fad6393e6d722a0421d9f9f674461beb4ac74983bef9535b5d4
/dir/hard 0 @100644 2 0 0 0 0.0 /dir/big - -
/dir/link 3 120777 1 0 0 0 1700000000.0 big - -
/empty 0 100600 1 0 0 0 1700000000.0 - - -
/null 0 20666 1 0 0 259 1700000000.0 - - -
/small 3 100644 1 0 0 0 1700000000.0 - hi\n - user.only=a\x20b user.test=1
/wh 0 20000 1 0 0 0 1700000000.0 - - -
/with\x20space 3 120777 1 0 0 0 1700000000.0 a\x20b - -
";

/// The image in a file, as a format of the C tools.
fn image(format: Format) -> (TempDir, ImageBytes) {
    let tree = read_dump(DUMP.as_bytes(), Dialect::C).unwrap();
    let options = WriteOptions {
        format,
        dialect: Dialect::C,
    };
    let mut bytes = Vec::new();
    write_image(&tree, &options, &mut bytes).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    fs::write(&path, bytes).unwrap();
    let image = ImageBytes::read(&path).unwrap();
    (directory, image)
}

fn filter(names: &[&str]) -> Filter {
    Filter::new(names.iter().map(|name| name.as_bytes().to_vec())).unwrap()
}

fn listed(filter: &Filter) -> String {
    let mut out = Vec::new();
    list(&image(Format::V1).1, filter, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn dumped(format: Format, filter: &Filter) -> String {
    let mut out = Vec::new();
    dump(&image(format).1, filter, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn a_listing_is_that_of_the_c_tool() {
    assert_eq!(
        listed(&Filter::default()),
        "\
/dir/\t
/dir/big\t@ 21/a8507def1d5fad6393e6d722a0421d9f9f674461beb4ac74983bef9535b5d4
/dir/hard
/dir/link\t-> big
/empty
/null
/small
/wh
/with space\t-> a\\x20b
"
    );
}

#[test]
fn a_dump_is_that_of_the_c_tool() {
    let expected = DUMP
        .replace(
            "/ 0 40755 3 0 0 0 1700000000.0 - - -",
            "/ 4096 40755 3 0 0 0 1700000000.0 - - - \
             trusted.overlay.opaque=x user.overlay.opaque=x",
        )
        .replace("/dir 0 ", "/dir 74 ")
        .replace(
            "/dir/hard 0 @100644 2 0 0 0 0.0 /dir/big - -",
            "/dir/hard 5000 @100644 2 0 0 0 1600000000.0 /dir/big - \
             21a8507def1d5fad6393e6d722a0421d9f9f674461beb4ac74983bef9535b5d4",
        );
    assert_eq!(dumped(Format::V1, &Filter::default()), expected);
}

#[test]
fn whiteouts_of_v2_images_are_shown() {
    let dump = dumped(Format::V2, &filter(&["wh"]));
    let (_, line) = dump.trim_end().split_once('\n').unwrap();
    assert_eq!(line, "/wh 0 20000 1 0 0 0 1700000000.0 - - -");
}

#[test]
fn filters_keep_names_of_the_root() {
    assert_eq!(listed(&filter(&["null", "small"])), "/null\n/small\n");
    assert_eq!(listed(&filter(&["dir"])).lines().count(), 4);
    assert_eq!(listed(&filter(&["big", "none"])), "");
    assert!(matches!(
        Filter::new([b"dir/big".to_vec()]),
        Err(InfoError::Filter(name)) if name == "dir/big"
    ));
}

#[test]
fn objects_are_told_once_and_those_that_are_there_are_not_missing() {
    let (directory, image) = image(Format::V1);
    let print = |objects: &Objects| {
        let mut out = Vec::new();
        objects.print(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    };
    let object = "21/a8507def1d5fad6393e6d722a0421d9f9f674461beb4ac74983bef9535b5d4";
    let mut objects = Objects::default();
    for _ in 0..2 {
        objects.add(&image, &Filter::default()).unwrap();
    }
    assert_eq!(print(&objects), format!("{object}\n"));

    let base = BaseDirectory::open(directory.path()).unwrap();
    let missing = objects.without_those_in(&base).unwrap();
    assert_eq!(print(&missing), format!("{object}\n"));
    fs::create_dir(directory.path().join("21")).unwrap();
    fs::write(directory.path().join(object), "").unwrap();
    assert_eq!(print(&missing.without_those_in(&base).unwrap()), "");
}

#[test]
fn what_is_no_image_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    fs::write(&path, "no image").unwrap();
    let image = ImageBytes::read(&path).unwrap();
    let error = list(&image, &Filter::default(), &mut io::sink()).unwrap_err();
    assert!(matches!(&error, InfoError::Image { path: named, .. } if *named == path));
    assert!(ImageBytes::read(&directory.path().join("none")).is_err());
}

#[test]
fn any_file_can_be_measured() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    let content = vec![3; 300_000];
    fs::write(&path, &content).unwrap();
    assert_eq!(
        measure(&path).unwrap(),
        verity_digest(Algorithm::Sha256, &content)
    );
    assert!(measure(directory.path()).is_err());
}
