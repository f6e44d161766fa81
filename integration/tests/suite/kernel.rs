//! Images of random trees as the running kernel shows them, and as `fsck.erofs` judges them.
//!
//! Each image is mounted as the composefs it is, overlay and all, and walked by descriptors, so that
//! no path is too long. What is seen must be the tree that the image was made from, as far as
//! overlayfs shows it ("composefs image format, what the kernel shows when mounted").

use crate::images::{C, ComposefsRs, dump, with_unsigned_times};
use anyhow::{Context, Result, bail, ensure};
use composefs_image::generator::{Limits, Recipe};
use composefs_image::{
    Algorithm, Content, Dialect, Format, InodeId, Kind, Timestamp, Tree, WriteOptions, write_image,
};
use integration::{Machine, Peers, Release, finish};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, open, openat};
use rustix::io::Errno;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use store_driver::mount::{Busy, Composefs, unmount};

/// Trees for each dialect and format.
const TREES: u64 = 250;

/// The writers and formats that there are images of.
const IMAGES: [(Dialect, Format); 4] = [
    (Dialect::C, Format::V0),
    (Dialect::C, Format::V1),
    (Dialect::ComposefsRs, Format::V1),
    (Dialect::ComposefsRs, Format::V2),
];

/// Bytes that are mostly text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Bytes(Vec<u8>);

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// The entries of a tree by path; the root is the empty path.
type Entries = BTreeMap<Vec<u8>, Entry>;

/// What one name gives.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    Inode(Box<Inode>),
    /// The name is listed, but has nothing behind it.
    Refused(Errno),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Inode {
    /// Type and permissions.
    mode: u32,
    owner: (u32, u32),
    device: (u32, u32),
    /// 0 for directories: what their names take differs from format to format.
    size: u64,
    mtime: Timestamp,
    nlink: u32,
    xattrs: BTreeMap<Bytes, Value>,
    /// What is in a file, or the target of a symlink.
    content: Bytes,
    /// All names of the inode, where there are several.
    names: Vec<Bytes>,
}

/// The value of an xattr.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Bytes(Bytes),
    /// The kernel lists the name and gives no value.
    Withheld,
}

/// Who may ask for the values of `user.` xattrs: the kernel keeps them to itself elsewhere.
fn has_user_values(mode: u32) -> bool {
    matches!(
        FileType::from_raw_mode(mode),
        FileType::RegularFile | FileType::Directory
    )
}

fn below(path: &[u8], name: &[u8]) -> Vec<u8> {
    [path, b"/", name].concat()
}

/// Fills in [`Inode::names`] from what tells inodes apart.
fn with_names<N>(mut entries: Entries, inodes: HashMap<N, Vec<Vec<u8>>>) -> Entries {
    for mut names in inodes.into_values().filter(|names| names.len() > 1) {
        names.sort();
        for name in &names {
            if let Some(Entry::Inode(inode)) = entries.get_mut(name) {
                inode.names = names.iter().cloned().map(Bytes).collect();
            }
        }
    }
    entries
}

/// An ACL that says what the permission bits 0644 say.
const ACL: &[u8] = b"\x02\0\0\0\
    \x01\0\x06\0\xff\xff\xff\xff\
    \x04\0\x04\0\xff\xff\xff\xff\
    \x20\0\x04\0\xff\xff\xff\xff";
/// `cap_net_raw=ep`.
const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
/// What composefs-rs would write twice, on directories with whiteouts and on whiteouts.
const WHITEOUT_XATTRS: [&[u8]; 6] = [
    b"trusted.overlay.opaque",
    b"trusted.overlay.whiteout",
    b"trusted.overlay.whiteouts",
    b"user.overlay.opaque",
    b"user.overlay.whiteout",
    b"user.overlay.whiteouts",
];

/// Makes of a tree one that a kernel gives out as a whole: with owners that exist, and with values
/// that are valid where the kernel looks into them.
fn presentable(mut tree: Tree, dialect: Dialect) -> Tree {
    let visits: Vec<(InodeId, Vec<u8>, InodeId)> = tree
        .walk()
        .map(|visit| (visit.parent, visit.name.to_vec(), visit.id))
        .collect();
    let mut done = HashSet::new();
    for (parent, name, id) in visits {
        let kind = tree.kind(id);
        let whiteout = kind == Kind::CharDevice(0);
        let directory = kind == Kind::Directory;
        let regular = matches!(kind, Kind::Regular(_));
        let acl = !matches!(kind, Kind::Symlink(_));
        let again = !done.insert(id);
        if whiteout {
            // Which one of several directories is marked depends on the order of a dumpfile. And
            // composefs-rs may take a whiteout in the root for one of its own.
            let like_own = parent == tree.root() && name.len() == 2;
            if again || like_own && dialect == Dialect::ComposefsRs {
                tree.unlink(parent, &name);
            }
        }
        if again {
            continue;
        }
        // "No owner" maps to nobody, and not even root may then look inside.
        tree.change_metadata(id, |metadata| {
            metadata.uid = metadata.uid.min(u32::MAX - 1);
            metadata.gid = metadata.gid.min(u32::MAX - 1);
        });
        let valid = [
            ("system.posix_acl_access", ACL, acl),
            ("system.posix_acl_default", ACL, directory),
            ("security.capability", CAPABILITY, regular),
        ];
        for (name, value, may_have) in valid {
            if tree.remove_xattr(id, name.as_bytes()) && may_have {
                tree.set_xattr(id, name.as_bytes(), value);
            }
        }
        tree.retain_xattrs(id, |name, _| {
            let known = valid.iter().any(|(valid, ..)| valid.as_bytes() == name);
            let twice = dialect == Dialect::ComposefsRs && WHITEOUT_XATTRS.contains(&name);
            (known || !name.starts_with(b"system.posix_acl_")) && !twice
        });
    }
    tree
}

/// What a mount must show of a tree.
fn expected(tree: &Tree, format: Format) -> Entries {
    let mut entries = Entries::new();
    let mut inodes: HashMap<InodeId, Vec<Vec<u8>>> = HashMap::new();
    let mut todo = vec![(Vec::new(), tree.root())];
    while let Some((path, id)) = todo.pop() {
        for (name, child) in tree.children(id) {
            // Overlayfs reads its root as merged from layers, and leaves out whiteouts there.
            let left_out = id == tree.root() && format == Format::V2;
            if !(left_out && tree.kind(child) == Kind::CharDevice(0)) {
                todo.push((below(&path, name), child));
            }
        }
        inodes.entry(id).or_default().push(path.clone());
        entries.insert(path, expected_entry(tree, id, format));
    }
    with_names(entries, inodes)
}

fn expected_entry(tree: &Tree, id: InodeId, format: Format) -> Entry {
    let kind = tree.kind(id);
    let is_whiteout = |id| tree.kind(id) == Kind::CharDevice(0);
    let escapes = format != Format::V2;
    if is_whiteout(id) && !escapes {
        return Entry::Refused(Errno::NOENT);
    }
    let (size, content) = match kind {
        Kind::Regular(Content::Inline(bytes)) | Kind::Symlink(bytes) => {
            (bytes.len() as u64, bytes.to_vec())
        }
        Kind::Regular(Content::External { size, digest, path }) => {
            match object(digest.map(|digest| digest.object_path()), path) {
                Ok(object) => (size, object),
                Err(errno) => return Entry::Refused(errno),
            }
        }
        _ => (0, Vec::new()),
    };
    let (mode, device) = match kind {
        Kind::CharDevice(0) => (0o100_000 | u32::from(tree.metadata(id).mode), (0, 0)),
        Kind::CharDevice(device) | Kind::BlockDevice(device) => {
            let minor = device & 0xff | device >> 12 & 0xf_ff00;
            (tree.st_mode(id).into(), (device >> 8 & 0xfff, minor))
        }
        _ => (tree.st_mode(id).into(), (0, 0)),
    };
    let metadata = tree.metadata(id);
    let mut mtime = metadata.mtime;
    if format == Format::V2 {
        mtime.nsec = 0;
    }
    let mut xattrs: BTreeMap<Vec<u8>, Vec<u8>> = tree
        .xattrs(id)
        .filter(|(name, _)| {
            let mut namespaces = ["user.", "trusted.", "security.", "system.posix_acl_"].iter();
            namespaces.any(|namespace| name.starts_with(namespace.as_bytes()))
        })
        .map(|(name, value)| (name.to_vec(), value.to_vec()))
        .collect();
    let mut mark = |mark: &str, value: &[u8]| {
        for namespace in ["trusted", "user"] {
            let name = format!("{namespace}.overlay.{mark}").into_bytes();
            xattrs.insert(name, value.to_vec());
        }
    };
    if is_whiteout(id) {
        mark("whiteout", b"");
    }
    if escapes && tree.is_directory(id) && tree.children(id).any(|(_, id)| is_whiteout(id)) {
        mark("whiteouts", b"");
        if format == Format::V1 {
            mark("opaque", b"x");
        }
    }
    let xattrs = xattrs.into_iter().map(|(name, value)| {
        let value = match &*name {
            b"user." | b"trusted.overlay." => Value::Withheld,
            name if name.starts_with(b"user.") && !has_user_values(mode) => Value::Withheld,
            _ => Value::Bytes(Bytes(value)),
        };
        (Bytes(name), value)
    });
    Entry::Inode(Box::new(Inode {
        mode,
        owner: (metadata.uid, metadata.gid),
        device,
        size,
        mtime,
        nlink: tree.nlink(id),
        xattrs: xattrs.collect(),
        content: Bytes(content),
        names: Vec::new(),
    }))
}

/// What is in the object of an external file: where it is. The objects of these tests say so.
fn object(of_digest: Option<String>, path: Option<&[u8]>) -> Result<Vec<u8>, Errno> {
    match (path, of_digest) {
        // Overlayfs wants one slash between names and at least one name.
        (Some(path), _) if path.starts_with(b"/") => Err(Errno::INVAL),
        (Some([]), _) | (None, None) => Err(Errno::IO),
        (Some(path), _) => Ok(path.to_vec()),
        (None, Some(path)) => Ok(path.into_bytes()),
    }
}

/// Walks what is mounted at `root`.
fn seen(root: &Path) -> Result<Entries> {
    let mut entries = Entries::new();
    let mut inodes: HashMap<u64, Vec<Vec<u8>>> = HashMap::new();
    let root = open(
        root,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut todo = vec![(Vec::new(), root)];
    while let Some((path, fd)) = todo.pop() {
        let context = || format!("at {:?}", String::from_utf8_lossy(&path));
        let (inode, number) = seen_inode(fd.as_fd()).with_context(context)?;
        inodes.entry(number).or_default().push(path.clone());
        if FileType::from_raw_mode(inode.mode) == FileType::Directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let listing = openat(&fd, c".", flags, Mode::empty()).with_context(context)?;
            for entry in Dir::new(listing)? {
                let entry = entry.with_context(context)?;
                let name = entry.file_name();
                if matches!(name.to_bytes(), b"." | b"..") {
                    continue;
                }
                let path = below(&path, name.to_bytes());
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                match openat(&fd, name, flags, Mode::empty()) {
                    Ok(fd) => todo.push((path, fd)),
                    Err(errno) => {
                        entries.insert(path, Entry::Refused(errno));
                    }
                }
            }
        }
        entries.insert(path, Entry::Inode(Box::new(inode)));
    }
    Ok(with_names(entries, inodes))
}

/// The inode, and its number.
fn seen_inode(fd: BorrowedFd<'_>) -> Result<(Inode, u64)> {
    // Leads to what the descriptor is open on, even to a symlink itself.
    let link = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let stat = rustix::fs::statat(fd, c"", AtFlags::EMPTY_PATH)?;
    let mut size = stat.st_size as u64;
    let content = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Symlink => rustix::fs::readlinkat(fd, c"", Vec::new())?.into_bytes(),
        FileType::RegularFile => {
            let mut bytes = Vec::new();
            // More than any of these files has; sizes of objects promise far more.
            File::open(&link)?.take(1 << 16).read_to_end(&mut bytes)?;
            bytes
        }
        FileType::Directory => {
            size = 0;
            Vec::new()
        }
        _ => Vec::new(),
    };
    let device = stat.st_rdev;
    let inode = Inode {
        mode: stat.st_mode,
        owner: (stat.st_uid, stat.st_gid),
        device: (rustix::fs::major(device), rustix::fs::minor(device)),
        size,
        mtime: Timestamp {
            sec: stat.st_mtime,
            nsec: u32::try_from(stat.st_mtime_nsec)?,
        },
        nlink: u32::try_from(stat.st_nlink)?,
        xattrs: seen_xattrs(&link, stat.st_mode)?,
        content: Bytes(content),
        names: Vec::new(),
    };
    Ok((inode, stat.st_ino))
}

fn seen_xattrs(path: &Path, mode: u32) -> Result<BTreeMap<Bytes, Value>> {
    const MAX: usize = 1 << 16;
    let mut list = vec![0_u8; MAX];
    let len = rustix::fs::listxattr(path, &mut list[..]).context("list xattrs")?;
    let mut xattrs = BTreeMap::new();
    let mut value = vec![0_u8; MAX];
    for name in list[..len].split_inclusive(|&byte| byte == 0) {
        let name = CString::from_vec_with_nul(name.to_vec())?;
        let value = match rustix::fs::getxattr(path, &name, &mut value[..]) {
            Ok(len) => Value::Bytes(Bytes(value[..len].to_vec())),
            Err(Errno::NODATA) if !has_user_values(mode) => Value::Withheld,
            // A namespace without a name in it.
            Err(Errno::INVAL) => Value::Withheld,
            Err(errno) => bail!("xattr {name:?}: {errno}"),
        };
        let other = xattrs.insert(Bytes(name.into_bytes()), value);
        ensure!(other.is_none(), "an xattr is listed twice");
    }
    Ok(xattrs)
}

fn image(tree: &Tree, dialect: Dialect, format: Format) -> Result<Vec<u8>> {
    let mut image = Vec::new();
    write_image(tree, &WriteOptions { format, dialect }, &mut image)?;
    Ok(image)
}

/// Where images are mounted.
struct Place {
    image: PathBuf,
    objects: PathBuf,
    target: PathBuf,
}

impl Place {
    fn new(peers: &Peers) -> Result<Self> {
        let scratch = peers.scratch_dir("kernel")?;
        let objects = scratch.join("objects");
        std::fs::create_dir_all(objects.join("some"))?;
        std::fs::write(objects.join("some/where"), "some/where")?;
        // Not in the scratch directory, whose mounts appear in every machine.
        let target = PathBuf::from("/run").join(scratch.file_name().context("a name")?);
        std::fs::create_dir(&target)?;
        Ok(Self {
            image: scratch.join("image"),
            objects,
            target,
        })
    }

    /// Makes the objects of a tree, each with its own path in it.
    fn fill(&self, tree: &Tree) -> Result<()> {
        for visit in tree.walk() {
            let Kind::Regular(Content::External { digest, path, .. }) = tree.kind(visit.id) else {
                continue;
            };
            let paths = [
                digest.map(|digest| digest.object_path()),
                path.and_then(|path| String::from_utf8(path.to_vec()).ok()),
            ];
            for path in paths.into_iter().flatten() {
                // Those of digests, as opposed to what is no path of an object.
                if path.as_bytes().get(2) == Some(&b'/') {
                    let object = self.objects.join(&path);
                    std::fs::create_dir_all(object.parent().context("a parent")?)?;
                    std::fs::write(object, path)?;
                }
            }
        }
        Ok(())
    }

    /// What the kernel shows, or why it does not.
    fn walk(&self, image: &[u8]) -> Result<Result<Entries>> {
        // A new file each time: the kernel may still know the last one's pages.
        let _ = std::fs::remove_file(&self.image);
        std::fs::write(&self.image, image)?;
        let image = File::open(&self.image)?;
        let objects = File::open(&self.objects)?;
        let mount = Composefs::new(image.as_fd(), "kernel-test").data(objects.as_fd());
        Ok(match mount.mount() {
            Err(error) => Err(error.into()),
            Ok(mount) => {
                mount.attach(&self.target)?;
                let entries = seen(&self.target);
                // Children of other tests hold our descriptors until they become programs.
                unmount(&self.target, Busy::Detach)?;
                entries
            }
        })
    }

    /// The first difference between a tree and what the kernel shows of it.
    fn difference(&self, tree: &Tree, dialect: Dialect, format: Format) -> Result<Option<String>> {
        self.fill(tree)?;
        let seen = match self.walk(&image(tree, dialect, format)?)? {
            Ok(seen) => seen,
            Err(error) => return Ok(Some(format!("{error:#}"))),
        };
        let expected = expected(tree, format);
        let paths = expected.keys().chain(seen.keys());
        for path in paths {
            let (expected, seen) = (expected.get(path), seen.get(path));
            if expected != seen {
                let path = String::from_utf8_lossy(path);
                return Ok(Some(format!(
                    "{path:?}\nexpected {expected:?}\nseen {seen:?}"
                )));
            }
        }
        Ok(None)
    }
}

#[test]
fn images_of_random_trees_are_shown_by_the_kernel_as_what_they_are() -> Result<()> {
    let place = Place::new(&Peers::from_env()?)?;
    for (dialect, format) in IMAGES {
        for seed in 0..TREES {
            // Overlayfs takes digests of both.
            let algorithm = match (dialect, seed % 2) {
                (Dialect::ComposefsRs, 1) => Algorithm::Sha512,
                _ => Algorithm::Sha256,
            };
            let recipe = Recipe::random(seed, Limits { dialect, algorithm });
            let different = |tree: Tree| {
                let tree = presentable(tree, dialect);
                place.difference(&tree, dialect, format)
            };
            if different(recipe.build())?.is_some() {
                let small = recipe.shrink(|tree| matches!(different(tree.clone()), Ok(Some(_))));
                let tree = presentable(small.build(), dialect);
                let how = place.difference(&tree, dialect, format)?;
                let how = how.unwrap_or_else(|| "different only sometimes".to_owned());
                let dump = dump(&tree)?;
                let dump = String::from_utf8_lossy(&dump);
                bail!("{format} of tree {seed}, {dialect:?}: {how}\n{dump}");
            }
        }
    }
    Ok(())
}

/// Trees whose images `fsck.erofs` judges.
const CHECKED_TREES: u64 = 100;

#[test]
fn fsck_erofs_accepts_images_where_it_accepts_those_of_the_peers() -> Result<()> {
    let peers = Peers::from_env()?;
    let machine = Machine::start(&peers, Release::Sid)?;
    let scratch = peers.scratch_dir("fsck")?;
    let judge = |image: &[u8]| -> Result<bool> {
        let file = scratch.join("image");
        std::fs::write(&file, image)?;
        let done = finish(machine.command("fsck.erofs").arg(&file))?;
        match done.status.code() {
            Some(0) => Ok(true),
            Some(1) => Ok(false),
            _ => bail!("{done}"),
        }
    };
    let c = C::new(&peers)?;
    let mut composefs_rs = ComposefsRs::start(&peers)?;
    let (mut accepted, mut all) = (0, 0);
    for (dialect, format) in IMAGES {
        for seed in 0..CHECKED_TREES {
            let algorithm = Algorithm::Sha256;
            let tree = Recipe::random(seed, Limits { dialect, algorithm }).build();
            let dump = dump(&tree)?;
            let theirs = match dialect {
                Dialect::C => c.image(&dump, format)?,
                Dialect::ComposefsRs => {
                    composefs_rs.image(&with_unsigned_times(&dump)?, format, algorithm)?
                }
            };
            // What the peer refuses is no image to compare with.
            let Ok(theirs) = theirs else { continue };
            let ours = judge(&image(&tree, dialect, format)?)?;
            all += 1;
            accepted += u64::from(ours);
            ensure!(
                ours == judge(&theirs)?,
                "{format} of tree {seed}, {dialect:?}: accepted is {}\n{}",
                if ours { "ours alone" } else { "theirs alone" },
                String::from_utf8_lossy(&dump)
            );
        }
    }
    ensure!(
        accepted * 2 > all,
        "{accepted} of {all} accepted images are too few to have proven anything"
    );
    Ok(())
}
