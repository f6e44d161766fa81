use std::fs::{self, File, FileTimes, hard_link};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::time::{Duration, UNIX_EPOCH};

use composefs_image::{Algorithm, verity_digest};
use rustix::fs::{CWD, Mode, XattrFlags, mknodat, setxattr};
use tempfile::TempDir;

use super::*;
use crate::store::DigestStore;

fn options() -> ScanOptions {
    ScanOptions::new(NonZeroUsize::new(3).unwrap())
}

fn lookup(tree: &Tree, path: &str) -> InodeId {
    tree.lookup_path(path.as_bytes())
        .unwrap_or_else(|| panic!("{path} is in the tree"))
}

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn files_up_to_64_bytes_are_inline_and_larger_ones_external() {
    let directory = directory();
    for size in [0, 1, 64, 65, 4096, 300_000] {
        fs::write(directory.path().join(size.to_string()), vec![7; size]).unwrap();
    }
    let tree = scan(directory.path(), &options(), None).unwrap();
    for size in [0, 1, 64] {
        assert_eq!(
            tree.kind(lookup(&tree, &size.to_string())),
            Kind::Regular(Content::Inline(&vec![7; size]))
        );
    }
    for size in [65, 4096, 300_000] {
        assert_eq!(
            tree.kind(lookup(&tree, &size.to_string())),
            Kind::Regular(Content::External {
                size: size as u64,
                digest: Some(verity_digest(Algorithm::Sha256, &vec![7; size])),
                path: None,
            })
        );
    }
}

#[test]
fn symlinks_are_kept_and_never_followed() {
    let directory = directory();
    fs::create_dir(directory.path().join("sub")).unwrap();
    fs::write(directory.path().join("sub/file"), "x").unwrap();
    symlink("sub", directory.path().join("to-directory")).unwrap();
    symlink("/etc/passwd", directory.path().join("outside")).unwrap();
    symlink("nowhere", directory.path().join("dangling")).unwrap();
    let tree = scan(directory.path(), &options(), None).unwrap();
    for (name, target) in [
        ("to-directory", "sub"),
        ("outside", "/etc/passwd"),
        ("dangling", "nowhere"),
    ] {
        assert_eq!(
            tree.kind(lookup(&tree, name)),
            Kind::Symlink(target.as_bytes())
        );
    }
    assert_eq!(tree.child_count(tree.root()), 4);
}

#[test]
fn a_source_that_is_a_symlink_or_a_file_is_refused() {
    let directory = directory();
    let link = directory.path().join("link");
    symlink(".", &link).unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    for path in [link, file] {
        assert!(matches!(
            scan(&path, &options(), None),
            Err(ScanError::NotADirectory(refused)) if refused == path
        ));
    }
    assert!(matches!(
        scan(&directory.path().join("none"), &options(), None),
        Err(ScanError::Io { .. })
    ));
}

#[test]
fn sockets_and_pipes_are_kept_without_being_opened() {
    let directory = directory();
    let _listener = UnixListener::bind(directory.path().join("socket")).unwrap();
    let pipe = directory.path().join("pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let tree = scan(directory.path(), &options(), None).unwrap();
    assert_eq!(tree.kind(lookup(&tree, "socket")), Kind::Socket);
    assert_eq!(tree.kind(lookup(&tree, "pipe")), Kind::Fifo);
}

#[test]
fn hard_links_are_one_inode_only_when_tracked() {
    let directory = directory();
    let first = directory.path().join("first");
    fs::write(&first, [1; 100]).unwrap();
    hard_link(&first, directory.path().join("second")).unwrap();

    let tree = scan(directory.path(), &options(), None).unwrap();
    assert_ne!(lookup(&tree, "first"), lookup(&tree, "second"));
    assert_eq!(tree.nlink(lookup(&tree, "first")), 1);

    let tracked = ScanOptions {
        hard_links: HardLinks::Tracked,
        ..options()
    };
    let tree = scan(directory.path(), &tracked, None).unwrap();
    assert_eq!(lookup(&tree, "first"), lookup(&tree, "second"));
    assert_eq!(tree.nlink(lookup(&tree, "first")), 2);
}

#[test]
fn times_are_kept_to_the_nanosecond_or_made_zero() {
    let directory = directory();
    let path = directory.path().join("file");
    let file = File::create(&path).unwrap();
    let time = UNIX_EPOCH + Duration::new(1_600_000_000, 123_456_789);
    file.set_times(FileTimes::new().set_modified(time)).unwrap();
    let before_1970 = UNIX_EPOCH - Duration::from_millis(1500);
    File::open(directory.path())
        .unwrap()
        .set_times(FileTimes::new().set_modified(before_1970))
        .unwrap();

    let mtime = |options: &ScanOptions, path: &str| {
        let tree = scan(directory.path(), options, None).unwrap();
        let mtime = tree.metadata(lookup(&tree, path)).mtime;
        (mtime.sec, mtime.nsec)
    };
    assert_eq!(mtime(&options(), "file"), (1_600_000_000, 123_456_789));
    assert_eq!(mtime(&options(), "/"), (-2, 500_000_000));
    let epoch = ScanOptions {
        times: Times::Epoch,
        ..options()
    };
    assert_eq!(mtime(&epoch, "file"), (0, 0));
    assert_eq!(mtime(&epoch, "/"), (0, 0));
}

#[test]
fn user_xattrs_are_read_unless_none_are_wanted() {
    let directory = directory();
    let path = directory.path().join("file");
    File::create(&path).unwrap();
    for (name, value) in [("user.empty", &b""[..]), ("user.b", b"\0\xff value")] {
        setxattr(&path, name, value, XattrFlags::empty()).unwrap();
    }
    let xattrs = |xattrs| {
        let options = ScanOptions {
            xattrs,
            ..options()
        };
        let tree = scan(directory.path(), &options, None).unwrap();
        tree.xattrs(lookup(&tree, "file"))
            .filter(|(name, _)| name.starts_with(b"user."))
            .map(|(name, value)| (name.to_vec(), value.to_vec()))
            .collect::<Vec<_>>()
    };
    let both = [
        (b"user.b".to_vec(), b"\0\xff value".to_vec()),
        (b"user.empty".to_vec(), Vec::new()),
    ];
    assert_eq!(xattrs(Xattrs::All), both);
    assert_eq!(xattrs(Xattrs::User), both);
    assert_eq!(xattrs(Xattrs::None), []);
}

#[test]
fn scanning_into_a_store_stores_external_files_only() {
    let directory = directory();
    let source = directory.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("small"), [1; 64]).unwrap();
    for name in ["large", "same"] {
        fs::write(source.join(name), [2; 65]).unwrap();
    }
    let path = directory.path().join("store");
    let store = DigestStore::open(&path).unwrap();
    let staging = store.stage().unwrap();
    scan(&source, &options(), Some(&staging)).unwrap();
    staging.commit().unwrap();
    let object = path.join(verity_digest(Algorithm::Sha256, &[2; 65]).object_path());
    assert_eq!(fs::read(&object).unwrap(), [2; 65]);
    assert_eq!(fs::read_dir(&path).unwrap().count(), 1);
    assert_eq!(fs::read_dir(object.parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn a_file_that_changes_is_noticed() {
    let directory = directory();
    let path = directory.path().join("file");
    fs::write(&path, "before").unwrap();
    let inode = Inode::open_source(&path).unwrap();
    assert!(inode.is_unchanged(&path).unwrap());
    fs::write(&path, "longer than before").unwrap();
    assert!(!inode.is_unchanged(&path).unwrap());
}

#[test]
fn a_name_that_now_is_a_symlink_is_not_followed_out_of_the_source() {
    let directory = directory();
    let inside = directory.path().join("inside");
    fs::create_dir(&inside).unwrap();
    let held = Inode::open_source(&inside).unwrap();
    fs::remove_dir(&inside).unwrap();
    symlink("/etc", &inside).unwrap();

    // What is held is still the directory that was there; what is opened now is the link.
    let level = Level::open(Tree::new(Metadata::default()).root(), &held, inside.clone()).unwrap();
    assert!(level.names.is_empty());
    let now = Inode::open_source(&inside).unwrap();
    assert_eq!(now.file_type(), FileType::Symlink);
    assert!(now.open_directory(&inside).is_err());
}
