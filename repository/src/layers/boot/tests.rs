//! Trees with things to boot from, good ones and bad ones.

use composefs_image::{Algorithm, Metadata, Timestamp, VerityDigest};

use super::*;
use crate::Error;

/// No objects: everything here is stored inline.
struct NoObjects;

impl ReadObjects for NoObjects {
    fn algorithm(&self) -> Algorithm {
        Algorithm::Sha256
    }

    fn open_object(&self, digest: &VerityDigest) -> crate::Result<std::fs::File> {
        Err(Error::NoObject(*digest))
    }
}

const FILE: Kind<'_> = Kind::Regular(Content::EMPTY);

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

fn text(content: &str) -> Kind<'_> {
    Kind::Regular(Content::Inline(content.as_bytes()))
}

/// A tree that can be booted, and these besides.
fn tree(besides: &[(&str, Kind<'_>)]) -> Tree {
    let mut tree = Tree::new(Metadata::default());
    for path in ["/usr", "/boot", "/sysroot"] {
        put(&mut tree, path, Kind::Directory);
    }
    for (path, kind) in besides {
        put(&mut tree, path, *kind);
    }
    tree
}

#[test]
fn mount_points_are_emptied_and_get_the_time_of_usr() {
    let mut tree = tree(&[
        (
            "/boot/loader/entries/a.conf",
            text("title A\nlinux /usr/k\ninitrd\t /usr//i\nlinuxx /no\n"),
        ),
        ("/boot/EFI/Linux/a.efi", FILE),
        ("/usr/k", FILE),
        ("/usr/i", FILE),
        ("/sysroot/ostree/x", FILE),
    ]);
    let mtime = Timestamp { sec: 7, nsec: 8 };
    let usr = tree.lookup_path(b"/usr").unwrap();
    tree.change_metadata(usr, |metadata| metadata.mtime = mtime);
    make_bootable(&mut tree, &NoObjects).unwrap();
    for path in EMPTIED {
        let id = tree.lookup_path(path).unwrap();
        assert_eq!(tree.child_count(id), 0);
        assert_eq!(tree.metadata(id).mtime, mtime);
    }
    assert_eq!(tree.child_count(usr), 2);
}

#[test]
fn what_a_boot_would_stumble_over_is_refused_with_its_path() {
    let link = Kind::Symlink(b"a");
    let entry = "/boot/loader/entries/a.conf";
    let kernel = "/usr/lib/modules/1/vmlinuz";
    for (besides, path) in [
        (
            &[("/boot/loader/entries", FILE)][..],
            "/boot/loader/entries",
        ),
        (
            &[("/boot/loader/entries/x.conf/y", FILE)],
            "/boot/loader/entries/x.conf",
        ),
        (&[(entry, link)], entry),
        (&[(entry, text("linux /usr/none"))], entry),
        (&[(entry, text("initrd /usr"))], entry),
        (
            &[(entry, text("efi /usr/../usr/k")), ("/usr/k", FILE)],
            entry,
        ),
        (&[(entry, text("linux "))], entry),
        (
            &[("/boot/EFI/Linux/x/y.efi", link)],
            "/boot/EFI/Linux/x/y.efi",
        ),
        (
            &[("/boot/loader/addons/y.addon.efi", link)],
            "/boot/loader/addons/y.addon.efi",
        ),
        (
            &[("/usr/lib/modules/1/y.efi", link)],
            "/usr/lib/modules/1/y.efi",
        ),
        (&[("/usr/lib/modules", link)], "/usr/lib/modules"),
        (&[("/boot/aboot-.img", FILE)], "/boot/aboot-.img"),
        (&[("/boot/aboot-1.img", link)], "/boot/aboot-1.img"),
        (
            &[("/boot/aboot-1.img", FILE), ("/boot/aboot-2.img", FILE)],
            "/boot/aboot-2.img",
        ),
        (
            &[("/boot/aboot-1.img", FILE), (kernel, FILE)],
            "/boot/aboot-1.img",
        ),
        (&[("/boot/vbmeta-1.img", FILE)], "/boot/vbmeta-1.img"),
    ] {
        let error = make_bootable(&mut tree(besides), &NoObjects).unwrap_err();
        assert_eq!(error.path.escape_ascii().to_string(), path, "{error}");
        assert!(error.is_unfit());
    }
    for fine in [
        &[("/boot/aboot-1.img", FILE), ("/boot/vbmeta-1.img", FILE)][..],
        &[
            ("/boot/aboot-1.img", FILE),
            ("/boot/EFI/Linux/a.addon.efi", FILE),
        ],
        &[("/boot/loader/entries/a.txt", link)],
        &[("/usr/lib/modules/1/vmlinuz", link)],
        &[("/usr/lib/modules/x", link)],
    ] {
        make_bootable(&mut tree(fine), &NoObjects).unwrap();
    }
}

#[test]
fn without_the_directories_there_is_no_boot_image() {
    for missing in ["/usr", "/boot", "/sysroot"] {
        let mut without = tree(&[]);
        without.unlink(without.root(), &missing.as_bytes()[1..]);
        let error = make_bootable(&mut without, &NoObjects).unwrap_err();
        assert_eq!(error.path, missing.as_bytes());
        assert!(matches!(error.problem, BootProblem::Missing));
        put(&mut without, missing, Kind::Symlink(b"elsewhere"));
        let error = make_bootable(&mut without, &NoObjects).unwrap_err();
        assert!(error.path.starts_with(missing.as_bytes()));
        assert!(matches!(error.problem, BootProblem::NotADirectory));
    }
}

#[test]
fn an_object_that_cannot_be_read_is_no_fault_of_the_image() {
    let content = Content::External {
        size: 100,
        digest: Some(composefs_image::verity_digest(Algorithm::Sha256, b"x")),
        path: None,
    };
    let mut tree = tree(&[("/etc/selinux/config", Kind::Regular(content))]);
    let error = make_bootable(&mut tree, &NoObjects).unwrap_err();
    assert_eq!(error.path, b"/etc/selinux/config");
    assert!(!error.is_unfit());
}
