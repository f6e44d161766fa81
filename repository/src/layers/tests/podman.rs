//! The tree of the podman rules. The expected trees are those that podman 4.3 showed for these
//! layers, but for the times of directories that it made itself.

use super::*;

fn tree(layers: &[&[New<'_>]]) -> Vec<String> {
    below_root(&merge(Rules::Podman, layers).unwrap())
}

fn error(layers: &[&[New<'_>]]) -> String {
    match merge(Rules::Podman, layers) {
        Err(error) => error,
        Ok(tree) => panic!("made {:?}", lines(&tree)),
    }
}

fn root(layers: &[&[New<'_>]]) -> String {
    lines(&merge(Rules::Podman, layers).unwrap()).swap_remove(0)
}

#[test]
fn a_root_entry_counts_only_when_it_is_written_as_a_slash() {
    let metadata = |path| directory(path).mode(0o711).owner(5, 6).xattr("user.a", "1");
    assert_eq!(root(&[]), "/ d 555 0:0 0");
    assert_eq!(root(&[&[metadata("./")]]), "/ d 555 0:0 0");
    assert_eq!(
        root(&[&[directory("a"), metadata("a/..")]]),
        "/ d 555 0:0 0"
    );
    assert_eq!(root(&[&[metadata("/")]]), "/ d 711 5:6 100 user.a=1");
    // The next layer's root begins with mode and owner of the one below.
    assert_eq!(root(&[&[metadata("/")], &[file("a")]]), "/ d 711 5:6 100");
}

#[test]
fn missing_parents_hide_the_metadata_of_lower_directories() {
    assert_eq!(
        tree(&[
            &[
                directory("low")
                    .mode(0o701)
                    .owner(7, 8)
                    .mtime(77)
                    .xattr("user.low", "1"),
                file("low/old")
            ],
            &[
                file("low/new"),
                file("made/here/file"),
                file("other/.wh.gone")
            ],
        ]),
        [
            "low d 755 0:0 77",
            "low/new f 644 0:0 100 1 \"\"",
            "low/old f 644 0:0 100 1 \"\"",
            "made d 755 0:0 0",
            "made/here d 755 0:0 0",
            "made/here/file f 644 0:0 100 1 \"\"",
            "other d 755 0:0 0",
        ]
    );
    // The set-group-ID bit is inherited.
    assert_eq!(
        tree(&[&[directory("s").mode(0o2755).owner(0, 99), file("s/made/f")]])[1],
        "s/made d 2755 0:0 0"
    );
}

#[test]
fn parents_that_were_made_take_the_metadata_of_a_later_entry() {
    assert_eq!(
        tree(&[&[file("d/f"), directory("d").mode(0o700)]])[0],
        "d d 700 0:0 100"
    );
}

#[test]
fn an_old_file_whose_path_ends_in_a_slash_is_a_directory() {
    let old = |path, flag| New { flag, ..file(path) };
    assert_eq!(
        tree(&[&[old("a/", 0), old("b", 0), old("c/", b'0')]]),
        [
            "a d 644 0:0 100",
            "b f 644 0:0 100 1 \"\"",
            "c f 644 0:0 100 1 \"\"",
        ]
    );
}

#[test]
fn times_before_1970_and_modes_of_symlinks_are_not_kept() {
    assert_eq!(
        tree(&[&[
            file("f").mtime(-7),
            symlink("l", "f").mtime(-5),
            directory("d").mtime(9_300_000_000),
        ]]),
        [
            "d d 755 0:0 0",
            "f f 644 0:0 0 1 \"\"",
            "l l 777 0:0 -5 1 f",
        ]
    );
}

#[test]
fn a_hard_link_changes_the_file_that_it_links_to() {
    let cap = || {
        file("cap")
            .mode(0o755)
            .xattr("security.capability", "c")
            .xattr("user.a", "1")
    };
    assert_eq!(
        tree(&[&[
            cap(),
            link("cap2", "./cap").mode(0o700).owner(33, 44).mtime(4242)
        ]]),
        [
            "cap f 700 33:44 4242 2 \"\" user.a=1",
            "cap2 f 700 33:44 4242 2 \"\" user.a=1",
        ]
    );
    assert_eq!(
        tree(&[&[cap(), link("cap2", "/x/../cap").mode(0o755)]])[1],
        "cap2 f 755 0:0 100 2 \"\" security.capability=c user.a=1"
    );
    // Only the owner of a symlink changes.
    assert_eq!(
        tree(&[&[
            symlink("f", "zz").owner(3, 0),
            link("g", "f").owner(7, 0).mtime(99)
        ]]),
        ["f l 777 7:0 100 2 zz", "g l 777 7:0 100 2 zz"]
    );
}

#[test]
fn links_are_counted_in_the_layer_that_has_them() {
    assert_eq!(
        tree(&[
            &[file("a"), link("b", "a"), link("c", "a")],
            &[file(".wh.b"), file("c")],
        ]),
        ["a f 644 0:0 100 3 \"\"", "c f 644 0:0 100 1 \"\""]
    );
}

#[test]
fn overlayfs_decides_what_hides_what() {
    assert_eq!(
        tree(&[
            &[
                directory("real"),
                file("real/f"),
                symlink("link", "real"),
                file("file"),
                directory("dir"),
                file("dir/f"),
                directory("both"),
                file("both/low"),
                directory("opq"),
                file("opq/low"),
            ],
            &[
                // Over a symlink of a lower layer comes a directory, not a file behind it.
                file("link/new"),
                directory("file"),
                file("dir"),
                directory("both").mode(0o700).xattr("user.u", "1"),
                file("both/up"),
                file("opq/early"),
                file("opq/.wh..wh..opq"),
                file("opq/late"),
            ],
        ]),
        [
            "both d 700 0:0 100 user.u=1",
            "both/low f 644 0:0 100 1 \"\"",
            "both/up f 644 0:0 100 1 \"\"",
            "dir f 644 0:0 100 1 \"\"",
            "file d 755 0:0 100",
            "link d 755 0:0 0",
            "link/new f 644 0:0 100 1 \"\"",
            "opq d 755 0:0 100",
            "opq/early f 644 0:0 100 1 \"\"",
            "opq/late f 644 0:0 100 1 \"\"",
            "real d 755 0:0 100",
            "real/f f 644 0:0 100 1 \"\"",
        ]
    );
}

#[test]
fn symlinks_of_the_same_layer_are_followed_inside_it() {
    assert_eq!(
        tree(&[&[
            directory("r"),
            symlink("absolute", "/r"),
            file("absolute/a"),
            symlink("outside", "../../../r"),
            file("outside/b"),
            file("absolute/../c"),
            file("../d"),
        ]]),
        [
            "absolute l 777 0:0 100 1 /r",
            "c f 644 0:0 100 1 \"\"",
            "d f 644 0:0 100 1 \"\"",
            "outside l 777 0:0 100 1 ../../../r",
            "r d 755 0:0 100",
            "r/a f 644 0:0 100 1 \"\"",
            "r/b f 644 0:0 100 1 \"\"",
        ]
    );
}

#[test]
fn whiteouts_take_away_what_is_below_and_nothing_else() {
    let base = [
        directory("d"),
        file("d/x"),
        file("f"),
        new("zero", b'3', 0o600).device(1, 3),
    ];
    assert_eq!(
        tree(&[
            &base,
            &[
                file(".wh.d"),
                file("d/.wh.x"),
                file(".wh.never"),
                link(".wh.f", "nowhere"),
                new("zero", b'3', 0).device(0, 0),
            ],
        ]),
        [""; 0]
    );
    // A whiteout in front of the directory that replaces it is lost.
    assert_eq!(
        tree(&[&base[..2], &[file(".wh.d"), directory("d").mode(0o700)]]),
        ["d d 700 0:0 100", "d/x f 644 0:0 100 1 \"\""]
    );
    // The root cannot be opaque, and a marker in front of a directory counts for it.
    assert_eq!(
        tree(&[
            &base[..2],
            &[file(".wh..wh..opq"), file("d/.wh..wh..opq"), directory("d")]
        ]),
        ["d d 755 0:0 100"]
    );
    // Below a file there is nothing to hide.
    assert_eq!(
        tree(&[&[file("f"), file("f/.wh.x"), file("f/y/.wh.x")]]),
        ["f f 644 0:0 100 1 \"\""]
    );
}

#[test]
fn xattrs_are_kept_but_for_those_that_podman_or_linux_do_not_show() {
    let all = |member: New<'static>| {
        member
            .xattr("user.u", "1")
            .xattr("trusted.t", "2")
            .xattr("trusted.overlay.redirect", "x")
            .xattr("security.capability", "3")
            .xattr("security.selinux", "x")
            .xattr("nonsense", "x")
            .xattr("user.overlay.u", "4")
    };
    assert_eq!(
        tree(&[&[
            all(file("f")),
            all(new("p", b'6', 0o600)),
            all(symlink("l", "f"))
        ]]),
        [
            "f f 644 0:0 100 1 \"\" security.capability=3 trusted.t=2 user.overlay.u=4 user.u=1",
            "l l 777 0:0 100 1 f security.capability=3 trusted.t=2",
            "p p 600 0:0 100 1 security.capability=3 trusted.t=2",
        ]
    );
    assert_eq!(
        tree(&[
            &[directory("d"), file("d/low")],
            &[directory("d").xattr("trusted.overlay.opaque", "y")],
        ]),
        ["d d 755 0:0 100"]
    );
}

#[test]
fn an_xattr_without_a_value_is_none_and_the_last_of_a_name_counts() {
    let file = file("f")
        .xattr("user.twice", "1")
        .xattr("user.gone", "1")
        .xattr("user.empty", "")
        .xattr("user.twice", "2")
        .xattr("user.gone", "");
    assert_eq!(tree(&[&[file]]), ["f f 644 0:0 100 1 \"\" user.twice=2"]);
}

#[test]
fn an_opaque_mark_below_a_file_means_nothing() {
    assert_eq!(
        tree(&[
            &[directory("d"), file("d/low")],
            &[
                file("f"),
                symlink("l", "f"),
                file("f/.wh..wh..opq"),
                file("l/.wh..wh..opq")
            ],
        ]),
        [
            "d d 755 0:0 100",
            "d/low f 644 0:0 100 1 \"\"",
            "f f 644 0:0 100 1 \"\"",
            "l l 777 0:0 100 1 f",
        ]
    );
}

#[test]
fn an_access_acl_sets_the_mode_and_stays_only_if_it_says_more() {
    let entry = |tag: u8, permissions: u8| [tag, 0, permissions, 0, 0xff, 0xff, 0xff, 0xff];
    let minimal = [
        &[2, 0, 0, 0][..],
        &entry(1, 6),
        &entry(4, 4),
        &entry(0x20, 0),
    ]
    .concat();
    let name = "system.posix_acl_access";
    assert_eq!(
        tree(&[&[
            file("a").mode(0o4777).xattr(name, &minimal),
            file("b").xattr(name, "")
        ]]),
        ["a f 4640 0:0 100 1 \"\"", "b f 644 0:0 100 1 \"\""]
    );
}

#[test]
fn run_is_kept_and_nothing_is_needed() {
    assert_eq!(
        tree(&[&[directory("run"), file("run/pid")]]),
        ["run d 755 0:0 100", "run/pid f 644 0:0 100 1 \"\""]
    );
}

#[test]
fn layers_that_podman_refuses_are_refused() {
    let long = "d/".repeat(2048);
    for (layer, expected) in [
        (
            vec![file("a"), file("a/b")],
            "a/b: its directory is not a directory",
        ),
        (
            vec![file(".wh.a"), file("a/b")],
            "a/b: its directory is not a directory",
        ),
        (
            vec![file("a"), file(".wh.a")],
            ".wh.a: whiteout of something in the same layer",
        ),
        (
            vec![file("d/.wh.")],
            "d/.wh.: whiteout of something in the same layer",
        ),
        (
            vec![directory("d"), link("a", "d")],
            "a: target d of the hard link is a directory",
        ),
        (
            vec![symlink("a", "a"), file("a/b")],
            "a/b: too many symlinks on the way to its directory",
        ),
        (
            vec![symlink("a", "nope"), file("a/b")],
            "a/b: its directory does not exist",
        ),
        (
            vec![symlink("a", "nope"), file("a/b/c")],
            "a/b/c: its directory does not exist",
        ),
        (vec![file("/")], "/: the root must be a directory"),
        (
            vec![file("a/b"), file("./a//c/../b")],
            "./a//c/../b: the layer has had an entry of this path before",
        ),
        (
            vec![file("a").xattr("user.", "1")],
            "a: Linux has no xattr of the name user.",
        ),
        (
            vec![directory("d").xattr("trusted.overlay.redirect", "/x")],
            "d: xattr trusted.overlay.redirect",
        ),
        (
            vec![file("x").pax("path", "n".repeat(256))],
            "a name has 256 bytes",
        ),
        (vec![file("x").pax("path", &long)], "path of 4096 bytes"),
        (
            vec![symlink("s", "x").pax("linkpath", "x".repeat(4096))],
            "symlink target of 4096 bytes",
        ),
    ] {
        let found = error(&[&layer]);
        assert!(found.contains(expected), "{found}");
    }
    let lower = [file("f")];
    assert_eq!(
        error(&[&lower, &[link("g", "f")]]),
        "g: target f of the hard link does not exist"
    );
    assert_eq!(
        error(&[&[directory("d")], &[symlink("l", "d"), file("l/x")]]),
        "l/x: its directory does not exist"
    );
}

#[test]
fn the_tree_is_that_of_the_layers_so_far() {
    let mut merge = Merge::new(Rules::Podman);
    let mut seen: Vec<Vec<String>> = Vec::new();
    for layer in [&[file("a"), file("b")][..], &[file(".wh.a")], &[file("a")]] {
        merge
            .add_layer(split(&Tar::of(layer).0, 512).unwrap())
            .unwrap();
        let names = merge.tree().children(merge.tree().root());
        seen.push(
            names
                .map(|(name, _)| String::from_utf8_lossy(name).into_owned())
                .collect(),
        );
    }
    let expected: [Vec<&str>; 3] = [vec!["a", "b"], vec!["b"], vec!["a", "b"]];
    assert_eq!(
        seen,
        expected.map(|names| names.into_iter().map(String::from).collect::<Vec<_>>())
    );
}
