use super::*;
use crate::fsverity::{Algorithm, verity_digest};

fn tree() -> Tree {
    Tree::new(Metadata::default())
}

fn file(tree: &mut Tree, name: &str) -> InodeId {
    let id = tree.add(Metadata::default(), Kind::Regular(Content::EMPTY));
    tree.link(tree.root(), name.as_bytes(), id).unwrap();
    id
}

fn directory(tree: &mut Tree, parent: InodeId, name: &str) -> InodeId {
    let id = tree.add(Metadata::default(), Kind::Directory);
    tree.link(parent, name.as_bytes(), id).unwrap();
    id
}

fn names(tree: &Tree, directory: InodeId) -> Vec<String> {
    tree.children(directory)
        .map(|(name, _)| String::from_utf8(name.to_vec()).unwrap())
        .collect()
}

#[test]
fn every_kind_comes_back_as_it_was_put_in() {
    let mut tree = tree();
    let digests = [
        verity_digest(Algorithm::Sha256, b"x"),
        verity_digest(Algorithm::Sha512, b"x"),
    ];
    let mut kinds = vec![
        Kind::Directory,
        Kind::Regular(Content::EMPTY),
        Kind::Regular(Content::Inline(b"content")),
        Kind::Regular(Content::External {
            size: u64::MAX,
            digest: None,
            path: None,
        }),
        Kind::Regular(Content::External {
            size: 7,
            digest: None,
            path: Some(b"somewhere"),
        }),
        Kind::Symlink(b"target"),
        Kind::CharDevice(0),
        Kind::BlockDevice(u32::MAX),
        Kind::Fifo,
        Kind::Socket,
    ];
    for digest in digests {
        for path in [None, Some(b"else/where".as_slice())] {
            kinds.push(Kind::Regular(Content::External {
                size: 1 << 40,
                digest: Some(digest),
                path,
            }));
        }
    }
    let ids: Vec<InodeId> = kinds
        .iter()
        .map(|&kind| tree.add(Metadata::default(), kind))
        .collect();
    for (kind, id) in kinds.into_iter().zip(ids) {
        assert_eq!(tree.kind(id), kind);
    }
}

#[test]
fn the_path_of_a_digest_is_not_kept_twice() {
    let mut tree = tree();
    let digest = verity_digest(Algorithm::Sha256, b"x");
    let path = digest.object_path();
    let content = |path| Content::External {
        size: 1,
        digest: Some(digest),
        path,
    };
    let id = tree.add(
        Metadata::default(),
        Kind::Regular(content(Some(path.as_bytes()))),
    );
    assert_eq!(tree.kind(id), Kind::Regular(content(None)));
}

#[test]
fn names_in_any_order_are_sorted_bytewise_in_a_directory_of_100_000() {
    let mut tree = tree();
    let count = 100_000_u32;
    // 7919 and the count have no common divisor: every name once, in a scattered order.
    for i in 0..count {
        file(&mut tree, &format!("{:x}", i * 7919 % count));
    }
    assert_eq!(tree.child_count(tree.root()), count as usize);
    let listed = names(&tree, tree.root());
    assert!(listed.is_sorted());
    for name in &listed {
        assert!(tree.lookup(tree.root(), name.as_bytes()).is_some());
    }
    for name in listed.iter().step_by(2) {
        assert!(tree.unlink(tree.root(), name.as_bytes()).is_some());
        assert!(tree.lookup(tree.root(), name.as_bytes()).is_none());
    }
    assert_eq!(tree.child_count(tree.root()), count as usize / 2);
    assert!(names(&tree, tree.root()).is_sorted());
    tree.clear_children(tree.root());
    assert_eq!(names(&tree, tree.root()), [""; 0]);
}

#[test]
fn hard_links_are_names_of_one_inode_and_are_counted() {
    let mut tree = tree();
    let id = file(&mut tree, "a");
    tree.link(tree.root(), b"b", id).unwrap();
    let sub = directory(&mut tree, ROOT, "sub");
    tree.link(sub, b"c", id).unwrap();
    assert_eq!(tree.nlink(id), 3);
    tree.set_nlink(id, Some(9));
    assert_eq!((tree.nlink(id), tree.name_count(id)), (9, 3));
    tree.set_nlink(id, None);

    tree.unlink(tree.root(), b"a");
    assert_eq!(tree.nlink(id), 2);
    // With the directory goes the name in it.
    tree.unlink(tree.root(), b"sub");
    assert_eq!(tree.nlink(id), 1);
    let other = file(&mut tree, "b");
    assert_eq!((tree.nlink(id), tree.nlink(other)), (0, 1));
}

#[test]
fn linking_a_name_to_what_it_names_changes_nothing() {
    let mut tree = tree();
    let id = file(&mut tree, "a");
    assert_eq!(tree.link(tree.root(), b"a", id), Ok(Some(id)));
    assert_eq!(tree.nlink(id), 1);
}

#[test]
fn directories_count_their_subdirectories() {
    let mut tree = tree();
    let sub = directory(&mut tree, ROOT, "sub");
    directory(&mut tree, ROOT, "more");
    directory(&mut tree, sub, "below");
    file(&mut tree, "file");
    assert_eq!((tree.nlink(tree.root()), tree.nlink(sub)), (4, 3));
}

#[test]
fn names_that_no_directory_can_hold_are_refused() {
    let mut tree = tree();
    let id = tree.add(Metadata::default(), Kind::Fifo);
    for name in [b"".as_slice(), b".", b"..", b"a/b", b"a\0b"] {
        assert_eq!(
            tree.link(tree.root(), name, id),
            Err(TreeError::BadName(name.into()))
        );
    }
    assert!(tree.link(tree.root(), &[b'x'; 255], id).is_ok());
    assert!(matches!(
        tree.link(tree.root(), &[b'x'; 256], id),
        Err(TreeError::LongName(_))
    ));
    assert!(matches!(
        tree.link(id, b"below", id),
        Err(TreeError::NotADirectory(_))
    ));
}

#[test]
fn a_directory_gets_no_second_name() {
    let mut tree = tree();
    let sub = directory(&mut tree, ROOT, "sub");
    for id in [sub, tree.root()] {
        assert!(matches!(
            tree.link(sub, b"again", id),
            Err(TreeError::DirectoryLinked(_))
        ));
    }
}

#[test]
fn deep_trees_are_walked_and_released_without_recursion() {
    let mut tree = tree();
    let mut parent = tree.root();
    for _ in 0..200_000 {
        parent = directory(&mut tree, parent, "d");
    }
    assert_eq!(tree.walk().last().unwrap().depth, 200_000);
    tree.clear_children(tree.root());
    assert_eq!(tree.walk().count(), 1);
}

#[test]
fn xattrs_are_sorted_replaced_and_removed() {
    let mut tree = tree();
    let id = tree.root();
    tree.set_xattr(id, b"user.b", b"2");
    tree.set_xattr(id, b"user.a", b"1");
    tree.set_xattr(id, b"user.b", b"3");
    let listed = |tree: &Tree, id| -> Vec<(Vec<u8>, Vec<u8>)> {
        tree.xattrs(id)
            .map(|(name, value)| (name.to_vec(), value.to_vec()))
            .collect()
    };
    let expected = [
        (b"user.a".to_vec(), b"1".to_vec()),
        (b"user.b".to_vec(), b"3".to_vec()),
    ];
    assert_eq!(listed(&tree, id), expected);
    assert_eq!(tree.xattr(id, b"user.b"), Some(b"3".as_slice()));
    assert_eq!(tree.xattr(id, b"user.c"), None);

    let other = tree.add(Metadata::default(), Kind::Fifo);
    tree.set_xattrs(
        other,
        [
            (b"user.b".as_slice(), b"0".as_slice()),
            (b"user.a", b"1"),
            (b"user.b", b"3"),
        ],
    );
    assert_eq!(listed(&tree, other), expected);

    assert!(tree.remove_xattr(id, b"user.a"));
    assert!(!tree.remove_xattr(id, b"user.a"));
    assert_eq!(listed(&tree, id), expected[1..]);
    tree.retain_all_xattrs(|name, _| name == b"user.a");
    assert_eq!(listed(&tree, id), []);
    assert_eq!(listed(&tree, other), expected[..1]);
    tree.copy_xattrs(other, id);
    assert_eq!(listed(&tree, id), expected[..1]);
}

#[test]
fn trees_are_equal_whatever_order_they_were_built_in() {
    let build = |order: &[&str]| {
        let mut tree = tree();
        for name in order {
            file(&mut tree, name);
        }
        tree
    };
    let mut one = build(&["a", "b", "c"]);
    let mut two = build(&["c", "x", "a", "b"]);
    assert_ne!(one, two);
    two.unlink(two.root(), b"x");
    assert_eq!(one, two);
    // Linked together is not the same as alike.
    let id = one.lookup(one.root(), b"a").unwrap();
    one.link(one.root(), b"b", id).unwrap();
    assert_ne!(one, two);
}

#[test]
fn a_duplicate_has_everything_but_the_names() {
    let mut tree = tree();
    let content = Content::External {
        size: 9,
        digest: None,
        path: Some(b"elsewhere"),
    };
    let id = tree.add(
        Metadata {
            uid: 7,
            ..Metadata::default()
        },
        Kind::Regular(content),
    );
    for name in [b"a", b"b"] {
        tree.link(tree.root(), name, id).unwrap();
    }
    tree.set_xattr(id, b"user.x", b"1");
    let copy = tree.duplicate(id);
    assert_eq!((tree.name_count(id), tree.name_count(copy)), (2, 0));
    tree.link(tree.root(), b"b", copy).unwrap();
    tree.set_xattr(copy, b"user.x", b"2");
    assert_eq!((tree.nlink(id), tree.nlink(copy)), (1, 1));
    assert_eq!(tree.kind(copy), Kind::Regular(content));
    assert_eq!(tree.metadata(copy), tree.metadata(id));
    assert_eq!(tree.xattr(id, b"user.x"), Some(&b"1"[..]));
    assert_eq!(tree.xattr(copy, b"user.x"), Some(&b"2"[..]));
}
