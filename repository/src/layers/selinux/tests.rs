//! Trees that are labelled by their own policy.

use composefs_image::{Algorithm, Content, Metadata, VerityDigest};

use super::*;
use crate::Error;

/// No objects: the policies here are stored inline.
struct NoObjects;

impl ReadObjects for NoObjects {
    fn algorithm(&self) -> Algorithm {
        Algorithm::Sha256
    }

    fn open_object(&self, digest: &VerityDigest) -> crate::Result<std::fs::File> {
        Err(Error::NoObject(*digest))
    }
}

fn put(tree: &mut Tree, path: &str, kind: Kind<'_>) -> InodeId {
    let (parent, name) = path.rsplit_once('/').unwrap();
    let parent = match tree.lookup_path(parent.as_bytes()) {
        Some(parent) => parent,
        None => put(tree, parent, Kind::Directory),
    };
    let id = tree.add(Metadata::default(), kind);
    tree.link(parent, name.as_bytes(), id).unwrap();
    id
}

fn file(tree: &mut Tree, path: &str, content: &str) -> InodeId {
    put(
        tree,
        path,
        Kind::Regular(Content::Inline(content.as_bytes())),
    )
}

/// A tree with the policy `targeted`, of these files.
fn with_policy(files: &[(&str, &str)]) -> Tree {
    let mut tree = Tree::new(Metadata::default());
    file(&mut tree, "/etc/selinux/config", "SELINUXTYPE=targeted\n");
    for (name, text) in files {
        let path = format!("/etc/selinux/targeted/contexts/files/{name}");
        file(&mut tree, &path, text);
    }
    tree
}

fn labelled(mut tree: Tree) -> Tree {
    label(&mut tree, &NoObjects).unwrap();
    tree
}

fn label_of<'t>(tree: &'t Tree, path: &str) -> Option<&'t str> {
    let id = tree.lookup_path(path.as_bytes()).unwrap();
    tree.xattr(id, XATTR)
        .map(|label| str::from_utf8(label).unwrap())
}

fn failure(mut tree: Tree) -> BootError {
    label(&mut tree, &NoObjects).unwrap_err()
}

#[test]
fn every_type_has_its_own_patterns_and_the_last_match_counts() {
    let contexts = "/.* any\n/ root\n/x.* -d dir\n/x.* -- file\n/x.* -l link\n/x.* -c char\n\
                    /x.* -b block\n/x.* -p fifo\n/x.* -s socket\n/xnone <<none>>\n";
    let mut tree = with_policy(&[
        ("file_contexts", contexts),
        ("file_contexts.homedirs", "/home home\n/local home\n"),
        ("file_contexts.local", "/local local\n/xlocal local\n"),
    ]);
    for (name, kind) in [
        ("xd", Kind::Directory),
        ("xf", Kind::Regular(Content::EMPTY)),
        ("xl", Kind::Symlink(b"/nowhere")),
        ("xc", Kind::CharDevice(0)),
        ("xb", Kind::BlockDevice(1)),
        ("xp", Kind::Fifo),
        ("xs", Kind::Socket),
        ("xnone", Kind::Fifo),
        ("xlocal", Kind::Fifo),
        ("home", Kind::Directory),
        ("local", Kind::Directory),
    ] {
        let id = put(&mut tree, &format!("/{name}"), kind);
        tree.set_xattr(id, XATTR, b"old");
    }
    let tree = labelled(tree);
    for (path, expected) in [
        ("/", Some("root")),
        ("/etc/selinux", Some("any")),
        ("/xd", Some("dir")),
        ("/xf", Some("file")),
        ("/xl", Some("link")),
        ("/xc", Some("char")),
        ("/xb", Some("block")),
        ("/xp", Some("fifo")),
        ("/xs", Some("socket")),
        ("/xnone", None),
        ("/xlocal", Some("local")),
        ("/home", Some("home")),
        ("/local", Some("home")),
    ] {
        assert_eq!(label_of(&tree, path), expected, "{path}");
    }
}

#[test]
fn aliases_count_for_everything_below_and_chain_level_by_level() {
    let contexts = "/.* other\n/usr/lib(/.*)? lib\n/srv/deep(/.*)? deep\n/a(/.*)? never\n";
    let mut tree = with_policy(&[
        ("file_contexts", contexts),
        ("file_contexts.subs", "/a /usr/lib\n/usr/lib/b /nowhere\n"),
        (
            "file_contexts.subs_dist",
            "/usr/lib/b /srv/\n/e/f /usr/lib\n",
        ),
    ]);
    for path in ["/a/x", "/a/b/deep/y", "/a/b/z", "/a/c", "/e/f", "/z"] {
        file(&mut tree, path, "");
    }
    let tree = labelled(tree);
    for (path, expected) in [
        ("/a", "lib"),
        ("/a/x", "lib"),
        ("/a/b", "other"),
        ("/a/b/deep", "deep"),
        ("/a/b/deep/y", "deep"),
        ("/a/b/z", "other"),
        ("/a/c", "lib"),
        ("/e/f", "lib"),
        ("/z", "other"),
    ] {
        assert_eq!(label_of(&tree, path), Some(expected), "{path}");
    }
}

#[test]
fn a_name_with_another_label_gets_an_inode_of_its_own() {
    let contexts = "/.* one\n/b two\n/d two\n/e <<none>>\n/f three\n/g three\n";
    let mut tree = with_policy(&[("file_contexts", contexts)]);
    let id = file(&mut tree, "/a", "x");
    for name in ["b", "c", "d", "e"] {
        tree.link(tree.root(), name.as_bytes(), id).unwrap();
    }
    let same = file(&mut tree, "/f", "y");
    tree.link(tree.root(), b"g", same).unwrap();
    let tree = labelled(tree);
    let ids = ["a", "b", "c", "d", "e"].map(|name| tree.lookup_path(name.as_bytes()).unwrap());
    let labels = ["a", "b", "c", "d", "e"].map(|name| label_of(&tree, name));
    assert_eq!(
        labels,
        [Some("one"), Some("two"), Some("one"), Some("two"), None]
    );
    // The copies are not linked with each other.
    assert_eq!(ids.map(|id| tree.nlink(id)), [2, 1, 2, 1, 1]);
    assert_eq!(ids[0], ids[2]);
    assert_eq!(tree.kind(ids[4]), tree.kind(ids[0]));
    assert_eq!(tree.nlink(tree.lookup_path(b"/f").unwrap()), 2);
}

#[test]
fn names_need_not_be_utf8() {
    let mut tree = with_policy(&[("file_contexts", "/.* any\n/x.y odd\n/x\\xffz bytes\n")]);
    for name in [&b"x\xffy"[..], b"x\xffz", b"x\ny"] {
        let id = tree.add(Metadata::default(), Kind::Fifo);
        tree.link(tree.root(), name, id).unwrap();
    }
    let tree = labelled(tree);
    let label = |name| {
        tree.xattr(tree.lookup(tree.root(), name).unwrap(), XATTR)
            .unwrap()
    };
    assert_eq!(label(b"x\xffy"), b"odd");
    assert_eq!(label(b"x\ny"), b"odd");
    assert_eq!(label(b"x\xffz"), b"bytes");
}

#[test]
fn without_a_policy_labels_go() {
    for config in [None, Some("SELINUX=disabled\n")] {
        let mut tree = Tree::new(Metadata::default());
        if let Some(config) = config {
            file(&mut tree, "/etc/selinux/config", config);
        }
        let id = file(&mut tree, "/x", "");
        tree.set_xattr(id, XATTR, b"old");
        tree.set_xattr(id, b"user.x", b"1");
        let tree = labelled(tree);
        assert_eq!(label_of(&tree, "/x"), None);
        assert!(tree.xattr(id, b"user.x").is_some());
    }
}

#[test]
fn a_policy_that_is_not_whole_or_reached_through_links_is_an_error_with_its_path() {
    let check = |tree: Tree, path: &str, fits: fn(&BootProblem) -> bool| {
        let error = failure(tree);
        assert_eq!(error.path.escape_ascii().to_string(), path, "{error}");
        assert!(fits(&error.problem), "{error}");
    };
    let files = "/etc/selinux/targeted/contexts/files";
    check(with_policy(&[]), files, |p| {
        matches!(p, BootProblem::Missing)
    });
    check(
        with_policy(&[("file_contexts.local", "/ x")]),
        &format!("{files}/file_contexts"),
        |p| matches!(p, BootProblem::Missing),
    );
    check(
        with_policy(&[("file_contexts", "/ x\n/ -q y\n")]),
        &format!("{files}/file_contexts"),
        |p| matches!(p, BootProblem::Line { line: 2, .. }),
    );
    check(
        with_policy(&[("file_contexts", "/ x\n"), ("file_contexts.subs", "/a\n")]),
        &format!("{files}/file_contexts.subs"),
        |p| matches!(p, BootProblem::Line { line: 1, .. }),
    );
    check(with_policy(&[("file_contexts", "/( x\n")]), files, |p| {
        matches!(p, BootProblem::Pattern { .. })
    });

    let mut tree = Tree::new(Metadata::default());
    put(
        &mut tree,
        "/etc/selinux/config",
        Kind::Symlink(b"/etc/shadow"),
    );
    check(tree, "/etc/selinux/config", |p| {
        matches!(p, BootProblem::NotAFile)
    });
    let mut tree = Tree::new(Metadata::default());
    put(
        &mut tree,
        "/etc/selinux",
        Kind::Symlink(b"/usr/etc/selinux"),
    );
    check(tree, "/etc/selinux", |p| {
        matches!(p, BootProblem::NotADirectory)
    });
    let mut tree = Tree::new(Metadata::default());
    file(
        &mut tree,
        "/etc/selinux/config",
        "SELINUXTYPE=../../secret\n",
    );
    check(tree, "/etc/selinux/../../secret/contexts/files", |p| {
        matches!(p, BootProblem::DotDot)
    });
    let mut tree = Tree::new(Metadata::default());
    let large = Content::External {
        size: POLICY_LIMIT + 1,
        digest: Some(composefs_image::verity_digest(Algorithm::Sha256, b"x")),
        path: None,
    };
    put(&mut tree, "/etc/selinux/config", Kind::Regular(large));
    check(tree, "/etc/selinux/config", |p| {
        matches!(p, BootProblem::TooLarge { .. })
    });
}

#[test]
fn deep_trees_need_no_deep_stack() {
    let mut tree = with_policy(&[("file_contexts", "/.* any\n")]);
    let mut directory = tree.root();
    for _ in 0..5_000 {
        let id = tree.add(Metadata::default(), Kind::Directory);
        tree.link(directory, b"d", id).unwrap();
        directory = id;
    }
    let tree = labelled(tree);
    assert_eq!(tree.xattr(directory, XATTR), Some(&b"any"[..]));
}
