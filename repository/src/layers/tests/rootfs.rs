//! The tree of the rootfs rules.

use super::*;

fn tree(layers: &[&[New<'_>]]) -> Vec<String> {
    let usr = [directory("usr")];
    let layers: Vec<&[New<'_>]> = std::iter::once(&usr[..])
        .chain(layers.iter().copied())
        .collect();
    let mut lines = below_root(&merge(Rules::Rootfs(XattrFilter::AllowlistOnly), &layers).unwrap());
    lines.retain(|line| !line.starts_with("usr d "));
    lines
}

fn error(layers: &[&[New<'_>]]) -> String {
    match merge(Rules::Rootfs(XattrFilter::AllowlistOnly), layers) {
        Err(error) => error,
        Ok(tree) => panic!("made {:?}", lines(&tree)),
    }
}

#[test]
fn the_root_looks_like_usr_and_run_is_emptied() {
    let tree = merge(
        Rules::Rootfs(XattrFilter::AllowlistOnly),
        &[&[
            directory("./").mode(0o711).owner(9, 9),
            directory("usr/")
                .mode(0o750)
                .owner(1, 2)
                .pax("mtime", "55.5")
                .xattr("security.capability", "c"),
            directory("run")
                .mode(0o700)
                .owner(3, 4)
                .xattr("security.capability", "r"),
            file("run/pid"),
        ]],
    )
    .unwrap();
    assert_eq!(
        lines(&tree),
        [
            "/ d 750 1:2 55 security.capability=c",
            "run d 700 3:4 55 security.capability=r",
            "usr d 750 1:2 55 security.capability=c",
        ]
    );
    assert_eq!(tree.metadata(tree.root()).mtime.nsec, 500_000_000);
    let run = tree.lookup_path(b"run").unwrap();
    assert_eq!(tree.metadata(run).mtime.nsec, 500_000_000);
}

#[test]
fn of_the_xattrs_only_capabilities_stay() {
    let member = file("a")
        .xattr("security.capability", "c")
        .xattr("security.selinux", "s")
        .xattr("user.a", "u")
        .xattr("trusted.t", "t");
    assert_eq!(
        tree(&[&[member]]),
        ["a f 644 0:0 100 1 \"\" security.capability=c"]
    );
}

#[test]
fn without_a_directory_usr_there_is_no_image() {
    for layer in [
        vec![file("a")],
        vec![symlink("usr", "a")],
        vec![file("usr")],
    ] {
        assert!(error(&[&layer]).contains("without a directory /usr"));
    }
    assert!(
        error(&[&[directory("usr"), symlink("run", "usr")]]).contains("/run is not a directory")
    );
}

#[test]
fn later_layers_replace_merge_and_remove() {
    assert_eq!(
        tree(&[
            &[
                directory("d"),
                file("d/a"),
                file("d/b"),
                directory("gone"),
                file("gone/x"),
                file("f"),
                directory("opaque"),
                file("opaque/old"),
            ],
            &[
                directory("d").mode(0o700),
                file("d/.wh.a"),
                file("d/.wh.never"),
                file(".wh.gone"),
                directory("f"),
                file("opaque/early"),
                file("opaque/.wh..wh..opq"),
                file("opaque/late"),
                file("./d//./c"),
            ],
        ]),
        [
            "d d 700 0:0 100",
            "d/b f 644 0:0 100 1 \"\"",
            "d/c f 644 0:0 100 1 \"\"",
            "f d 755 0:0 100",
            "opaque d 755 0:0 100",
            "opaque/late f 644 0:0 100 1 \"\"",
        ]
    );
}

#[test]
fn hard_links_share_the_inode_that_is_there_in_any_layer() {
    assert_eq!(
        tree(&[
            &[file("a").content(b"1")],
            &[
                link("b", "/a").mode(0o777).owner(5, 5),
                link("c", "a"),
                file("a").content(b"2")
            ],
        ]),
        [
            "a f 644 0:0 100 1 \"2\"",
            "b f 644 0:0 100 2 \"1\"",
            "c f 644 0:0 100 2 \"1\"",
        ]
    );
}

#[test]
fn symlinks_keep_their_mode_and_devices_their_number() {
    assert_eq!(
        tree(&[&[
            symlink("l", "nowhere"),
            new("null", b'3', 0o666).device(1, 3),
            new("white", b'3', 0).device(0, 0),
        ]]),
        [
            "l l 644 0:0 100 1 nowhere",
            "null c 666 0:0 100 1 259",
            "white c 0 0:0 100 1 0",
        ]
    );
}

#[test]
fn entries_without_a_place_are_errors_as_in_composefs_rs() {
    for (layer, expected) in [
        (vec![file("a/b")], "a/b: its directory does not exist"),
        (
            vec![file("a"), file("a/b")],
            "a/b: its directory is not a directory",
        ),
        (
            vec![directory("d"), symlink("l", "d"), file("l/f")],
            "l/f: its directory is not a directory",
        ),
        (
            vec![file("a/.wh.b")],
            "a/.wh.b: its directory does not exist",
        ),
        (
            vec![directory("d"), file("d/../f")],
            "d/../f: path contains \"..\"",
        ),
        (vec![file("d/..")], "d/..: the root must be a directory"),
        (vec![file("./")], "./: the root must be a directory"),
        (
            vec![link("a", "b")],
            "a: target b of the hard link does not exist",
        ),
        (
            vec![directory("d"), link("a", "d")],
            "a: target d of the hard link is a directory",
        ),
        (vec![symlink("a", "")], "a: symlink without target"),
    ] {
        assert_eq!(error(&[&layer]), expected);
    }
}

#[test]
fn a_directory_that_ends_in_dotdot_is_the_root() {
    let metadata = [directory("usr"), directory("usr/..").mode(0o123)];
    let mut merge = Merge::new(Rules::Rootfs(XattrFilter::AllowlistOnly));
    merge
        .add_layer(split(&Tar::of(&metadata).0, 512).unwrap())
        .unwrap();
    assert_eq!(merge.tree().metadata(merge.tree().root()).mode, 0o123);
}
