//! The image that is hard to get right, and small ones for single questions.
//!
//! All are reproducible byte for byte. Every layer lists the directories that its entries lie in, as
//! real layers do: where they are missing podman makes them up with the time of the import.

use crate::oci::{self, Encoding, Layer};
use crate::tar::{Dialect, Member, archive};
use anyhow::{Context, Result};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What the filesystem or the user namespace under an image can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest symlink target in bytes.
    pub symlink: usize,
    /// Largest user or group ID.
    pub id: u32,
}

impl Limits {
    /// Everything that an image may contain.
    pub const NONE: Self = Self {
        symlink: 4095,
        id: 2_000_000_000,
    };
    /// What XFS stores and what fits into a user namespace of 65,536 IDs.
    pub const PORTABLE: Self = Self {
        symlink: 1023,
        id: 65_533,
    };
}

/// An image as an OCI layout directory.
#[derive(Clone, Debug)]
pub struct Fixture {
    layout: PathBuf,
}

/// The large file of the fixtures that builds change, without leading slash.
pub const LARGE: &str = "usr/lib/large.bin";

impl Fixture {
    /// The hard image: six layers with everything that a tar can say.
    pub fn hard(dir: &Path, limits: Limits) -> Result<Self> {
        let mut image = Image::default();
        image.layer(base()?, Dialect::Pax, Encoding::Gzip);
        image.layer(first(limits), Dialect::Pax, Encoding::Plain);
        image.layer(second(limits), Dialect::Gnu, Encoding::Gzip);
        image.layer(third(), Dialect::Pax, Encoding::Gzip);
        image.layer(fourth(), Dialect::Gnu, Encoding::Gzip);
        image.layer(vec![Member::dir("data")], Dialect::Pax, Encoding::Gzip);
        image.write(dir)
    }

    /// A runnable image with one more layer for each of `layers`.
    pub fn with_layers(dir: &Path, layers: Vec<Vec<Member>>) -> Result<Self> {
        Self::on(base()?, dir, layers)
    }

    /// A runnable image of which every layer is of its own: `number`, which no other image has, stands in
    /// the lowest. What a test running beside this one mounts keeps layers of the same content, so that
    /// tests of what goes need such images.
    pub fn of_own_layers(dir: &Path, number: u64, layers: Vec<Vec<Member>>) -> Result<Self> {
        let mut lowest = base()?;
        lowest.push(Member::file("etc/fixture", number.to_string()));
        Self::on(lowest, dir, layers)
    }

    fn on(lowest: Vec<Member>, dir: &Path, layers: Vec<Vec<Member>>) -> Result<Self> {
        let mut image = Image::default();
        image.layer(lowest, Dialect::Pax, Encoding::Gzip);
        for members in layers {
            image.layer(members, Dialect::Pax, Encoding::Plain);
        }
        image.write(dir)
    }

    /// A runnable image of a single layer that no other fixture has, with `members` in it.
    pub fn with_one_layer(dir: &Path, members: Vec<Member>) -> Result<Self> {
        let mut image = Image::default();
        let all = [base()?, members].concat();
        image.layer(all, Dialect::Pax, Encoding::Gzip);
        image.write(dir)
    }

    /// An image of these tars alone, as they are.
    pub fn of_tars(dir: &Path, tars: Vec<Vec<u8>>) -> Result<Self> {
        let layers = tars.into_iter().map(|tar| Layer {
            tar,
            encoding: Encoding::Plain,
        });
        Image {
            layers: layers.collect(),
            dirs: BTreeMap::new(),
        }
        .write(dir)
    }

    /// The directory of the OCI layout.
    pub fn layout(&self) -> &Path {
        &self.layout
    }
}

/// `length` bytes that do not compress and do not repeat, different for every `seed`.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend(state.to_le_bytes());
    }
    out.truncate(length);
    out
}

/// Layers of an image being made.
#[derive(Default)]
struct Image {
    layers: Vec<Layer>,
    /// Directories seen so far, to repeat them as they were in later layers.
    dirs: BTreeMap<Vec<u8>, Member>,
}

impl Image {
    fn layer(&mut self, members: Vec<Member>, dialect: Dialect, encoding: Encoding) {
        let mut listed = Vec::new();
        let mut complete = Vec::new();
        for member in members {
            let name = member.name.strip_suffix(b"/").unwrap_or(&member.name);
            for at in (0..name.len()).filter(|&at| name[at] == b'/') {
                let parent = &name[..at];
                if !listed.iter().any(|l: &Vec<u8>| l == parent) {
                    let known = self.dirs.get(parent).cloned();
                    listed.push(parent.to_vec());
                    complete.push(known.unwrap_or_else(|| Member::dir(parent)));
                }
            }
            if member.kind == b'5' {
                listed.push(name.to_vec());
                self.dirs.insert(name.to_vec(), member.clone());
            }
            complete.push(member);
        }
        self.layers.push(Layer {
            tar: archive(&complete, dialect),
            encoding,
        });
    }

    fn write(self, dir: &Path) -> Result<Fixture> {
        let config = json!({
            "Env": ["PATH=/usr/bin", "FIXTURE=1"],
            "Cmd": ["/bin/sh"],
            "WorkingDir": "/",
            "Labels": { "org.example.fixture": "hard" },
        });
        oci::write_layout(dir, &self.layers, &config)?;
        Ok(Fixture {
            layout: dir.to_owned(),
        })
    }
}

/// A shell, and a stub for everything that podman would otherwise create when it starts a container:
/// creating it would change the times of directories.
fn base() -> Result<Vec<Member>> {
    const APPLETS: [&str; 22] = [
        "cat",
        "chmod",
        "chown",
        "cp",
        "dd",
        "echo",
        "env",
        "find",
        "id",
        "ln",
        "ls",
        "mkdir",
        "mv",
        "rm",
        "rmdir",
        "sh",
        "sha256sum",
        "sleep",
        "stat",
        "touch",
        "true",
        "test",
    ];
    let busybox = std::fs::read("/bin/busybox")
        .or_else(|_| std::fs::read("/usr/bin/busybox"))
        .context("read busybox, of the package busybox-static")?;
    let mut members: Vec<Member> = [
        "dev",
        "etc",
        "proc",
        "run",
        "run/secrets",
        "sys",
        "usr",
        "usr/bin",
        "var",
    ]
    .into_iter()
    .map(Member::dir)
    .collect();
    members.push(Member::dir("root").mode(0o700));
    members.push(Member::dir("tmp").mode(0o1777));
    members.push(Member::dir("var/tmp").mode(0o1777));
    members.push(Member::symlink("bin", "usr/bin"));
    for stub in [
        "etc/hosts",
        "etc/hostname",
        "etc/resolv.conf",
        "run/.containerenv",
    ] {
        members.push(Member::file(stub, []));
    }
    members.push(Member::symlink("etc/mtab", "/proc/mounts"));
    members.push(Member::file(
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\n",
    ));
    members.push(Member::file("etc/group", "root:x:0:\n"));
    members.push(Member::file("usr/bin/busybox", busybox).mode(0o755));
    for applet in APPLETS {
        members.push(Member::symlink(format!("usr/bin/{applet}"), "busybox"));
    }
    members.push(Member::dir("usr/lib"));
    members.push(Member::file(LARGE, noise(1, 3 << 20)));
    // For builds to rename, replace and change.
    for dir in ["work", "work/renamed", "work/renamed/deep", "work/replaced"] {
        members.push(Member::dir(dir));
    }
    for (name, length) in [("one", 10), ("two", 5000), ("deep/three", 70_000)] {
        members.push(Member::file(
            format!("work/renamed/{name}"),
            noise(2, length),
        ));
    }
    for name in ["old", "older"] {
        members.push(Member::file(format!("work/replaced/{name}"), noise(3, 300)));
    }
    members.push(Member::file("work/linked", noise(4, 9000)));
    Ok(members)
}

/// Names that programs get wrong.
fn names() -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = [
        "with space",
        " leading",
        "trailing ",
        "new\nline",
        "tab\there",
        "-dash",
        "back\\slash",
        "double\"quote",
        "single'quote",
        "a=b",
        "..dots",
        "...",
        "*",
        "$(x)",
        "%s",
        "ünïcode",
        "\u{1}",
    ]
    .iter()
    .map(|n| n.as_bytes().to_vec())
    .collect();
    names.push(b"not utf-8 \xff\xfe\x80".to_vec());
    names.push(b"\xc3".to_vec());
    names.push(vec![b'n'; 255]);
    names.push(vec![0xe9; 200]);
    names
}

fn symlink_lengths(limits: Limits) -> Vec<usize> {
    let mut lengths: Vec<usize> = (1..=130).collect();
    lengths.extend((131..4000).step_by(61));
    lengths.extend([255, 256, 257, 511, 512, 1022, 1023, 1024, 2048]);
    lengths.extend(4000..=4095);
    lengths.retain(|&l| l <= limits.symlink);
    lengths.sort_unstable();
    lengths.dedup();
    lengths
}

/// Adds one of everything.
fn first(limits: Limits) -> Vec<Member> {
    let mut members = vec![Member::dir("data").mtime(1_500_000_000, 123_456_789)];

    members.push(Member::dir("data/sizes"));
    for size in (0..=65).chain([127, 128, 4095, 4096, 4097, 8192, 65_536, (1 << 20) + 1]) {
        members.push(Member::file(format!("data/sizes/{size}"), noise(100, size)));
    }
    let mut sparse = vec![0; 8 << 20];
    sparse[5 << 20] = 1;
    members.push(Member::file("data/sizes/sparse", sparse));
    members.push(Member::file("data/sizes/zeros", vec![0; 1 << 20]));

    members.push(Member::dir("data/names"));
    for name in names() {
        let path = [b"data/names/", name.as_slice()].concat();
        members.push(Member::file(path, name));
    }
    for name in names() {
        let dir = [b"data/names/d", &name[..name.len().min(250)]].concat();
        members.push(Member::dir(&dir));
        members.push(Member::file(
            [dir.as_slice(), b"/inside"].concat(),
            "inside",
        ));
    }

    members.push(Member::dir("data/symlinks"));
    for length in symlink_lengths(limits) {
        let target: Vec<u8> = (0..length)
            .map(|i| {
                if i % 200 == 199 {
                    b'/'
                } else {
                    b'a' + (i % 26) as u8
                }
            })
            .collect();
        members.push(Member::symlink(format!("data/symlinks/{length}"), target));
    }
    members.push(Member::symlink(
        "data/symlinks/dangling",
        "/nowhere/\u{1}\n",
    ));
    members.push(
        Member::symlink("data/symlinks/owned", "1")
            .owner(1000, 1000)
            .mtime(1, 5),
    );

    members.push(Member::dir("data/special"));
    members.push(Member::fifo("data/special/fifo").owner(1, 2));
    members.push(Member::char_device("data/special/null", 1, 3));
    members.push(Member::char_device("data/special/high", 300, 70_000));
    members.push(Member::block_device("data/special/loop", 7, 0).mode(0o640));

    members.push(Member::dir("data/modes"));
    for mode in [
        0, 0o400, 0o755, 0o777, 0o4755, 0o2755, 0o6711, 0o1644, 0o7777,
    ] {
        members.push(Member::file(format!("data/modes/file{mode:04o}"), noise(5, 200)).mode(mode));
        members.push(Member::dir(format!("data/modes/dir{mode:04o}")).mode(mode));
    }

    members.push(Member::dir("data/owners").owner(10, 20));
    for id in [1, 1000, 65_534, 65_535, limits.id] {
        members.push(Member::file(format!("data/owners/{id}"), noise(6, 100)).owner(id, id - 1));
    }

    // Nothing before 1970: composefs-rs refuses such a layer, and so do we.
    members.push(Member::dir("data/times"));
    for (seconds, nanoseconds) in [
        (0, 0),
        (0, 1),
        (1, 999_999_999),
        (1_700_000_000, 1),
        (1_700_000_000, 100_000_000),
        (2_208_988_800, 5),
        (4_294_967_295, 0),
    ] {
        let name = format!("data/times/{seconds}.{nanoseconds}");
        members.push(Member::file(&name, "t").mtime(seconds, nanoseconds));
        members.push(Member::dir(format!("{name}.d")).mtime(seconds, nanoseconds));
    }

    // cap_net_raw+ep, version 2
    let capability = [
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    members.push(Member::dir("data/xattrs").xattr("user.on.directory", "yes"));
    members.push(
        Member::file("data/xattrs/capable", noise(7, 300))
            .mode(0o755)
            .xattr("security.capability", capability),
    );
    members.push(
        Member::file("data/xattrs/user", "u")
            .xattr("user.a", "1")
            .xattr("user.b", [0, 255, b'=', b'\n'])
            // No empty value: podman 4 drops it, podman 5 keeps it.
            .xattr("user.long", vec![b'v'; 2000]),
    );
    members.push(Member::file("data/xattrs/trusted", "t").xattr("trusted.fixture", "kept"));
    for file in 0..20 {
        // The same attributes in many inodes are shared by the EROFS writer.
        members.push(
            Member::file(format!("data/xattrs/shared{file}"), noise(8, 80))
                .xattr("user.shared", vec![b's'; 64]),
        );
    }

    members.push(Member::dir("data/links"));
    members.push(Member::file("data/links/a", noise(9, 1000)).mtime(77, 7));
    for name in ["data/links/b", "data/links/c", "data/sizes/linked"] {
        members.push(Member::hardlink(name, "data/links/a").mtime(77, 7));
    }
    members.push(Member::file("data/links/broken1", noise(10, 1000)));
    members.push(Member::hardlink("data/links/broken2", "data/links/broken1"));
    members.push(Member::file("data/links/empty", []));
    members.push(Member::hardlink("data/links/empty2", "data/links/empty"));

    members.push(Member::dir("data/many"));
    for number in 0..1500 {
        let name = format!("data/many/{number}{}", "x".repeat(number % 40));
        members.push(Member::file(name, number.to_string()));
    }
    let mut deep = "data/deep".to_owned();
    for level in 0..60 {
        deep = format!("{deep}/level{level}");
    }
    members.push(Member::file(format!("{deep}/bottom"), "bottom"));

    // For the later layers to change.
    for dir in [
        "opaque",
        "opaque2",
        "deleted",
        "becomes-file",
        "becomes-symlink",
        "old-name",
        "chmod",
        "again",
    ] {
        for name in ["x", "y", "sub/z"] {
            members.push(Member::file(
                format!("data/change/{dir}/{name}"),
                noise(11, 600),
            ));
        }
    }
    for name in [
        "overwritten",
        "chmodded",
        "chowned",
        "touched",
        "gone",
        "becomes-dir",
        "moved",
        "shrunk",
        "xattr-gone",
    ] {
        members.push(
            Member::file(format!("data/change/{name}"), noise(12, 5000)).xattr("user.layer", "1"),
        );
    }
    members.push(Member::symlink("data/change/link-becomes-dir", "opaque"));
    members.push(Member::symlink("data/change/link-changes", "old"));
    members
}

/// Overwrites and changes of metadata.
fn second(limits: Limits) -> Vec<Member> {
    let same = || noise(12, 5000);
    vec![
        Member::file("data/change/overwritten", noise(13, 7000)),
        Member::file("data/change/shrunk", "s"),
        Member::file("data/change/chmodded", same())
            .mode(0o4700)
            .xattr("user.layer", "1"),
        Member::file("data/change/chowned", same())
            .owner(limits.id, 7)
            .xattr("user.layer", "1"),
        Member::file("data/change/touched", same())
            .mtime(1, 2)
            .xattr("user.layer", "2"),
        Member::file("data/change/xattr-gone", same()),
        Member::dir("data/change/chmod")
            .mode(0o2770)
            .owner(5, 6)
            .xattr("user.dir", "changed"),
        Member::symlink("data/change/link-changes", "new"),
        Member::file(LARGE, noise(1, 3 << 20)).mode(0o600),
        // The other name keeps the old inode.
        Member::file("data/links/broken2", noise(14, 1000)),
        Member::file(
            format!("data/{}", "long/".repeat(40) + "name"),
            "found through a GNU long name",
        ),
        Member::symlink("data/symlinks/gnu", "t".repeat(limits.symlink.min(600))),
        Member::whiteout("data/change/", "gone"),
        Member::file("data/added-by-second", noise(15, 100)),
    ]
}

/// Deletions, opaque directories and renames.
fn third() -> Vec<Member> {
    vec![
        Member::whiteout("data/change/", "deleted"),
        Member::whiteout("data/change/", "moved"),
        Member::file("data/change/moved-here", noise(12, 5000)),
        Member::whiteout("data/change/", "old-name"),
        Member::dir("data/change/new-name").mode(0o711),
        Member::file("data/change/new-name/x", noise(11, 600)),
        Member::file("data/change/new-name/sub/z", noise(11, 600)),
        Member::dir("data/change/opaque"),
        Member::opaque("data/change/opaque"),
        Member::file("data/change/opaque/new", "new"),
        Member::file("data/change/opaque/x", "x again"),
        // The mark may also come after what it does not hide.
        Member::dir("data/change/opaque2").mode(0o750),
        Member::file("data/change/opaque2/new", "new"),
        Member::opaque("data/change/opaque2"),
        Member::whiteout("data/links/", "c"),
        Member::whiteout("data/special/", "null"),
        Member::whiteout("data/symlinks/", "1"),
        Member::whiteout("data/change/", "again"),
        Member::whiteout("data/names/", names()[3].as_slice()),
        Member::whiteout("", "nothing-here-to-delete"),
    ]
}

/// Entries that change their type, and things that come back.
fn fourth() -> Vec<Member> {
    vec![
        Member::file("data/change/becomes-file", "now a file"),
        Member::symlink("data/change/becomes-symlink", "opaque"),
        Member::dir("data/change/becomes-dir"),
        Member::file("data/change/becomes-dir/inside", "inside"),
        Member::dir("data/change/link-becomes-dir"),
        Member::file("data/change/link-becomes-dir/inside", "inside"),
        Member::dir("data/change/again").mode(0o700),
        Member::file("data/change/again/only", "only this"),
        Member::file("data/change/gone", "back again"),
        Member::fifo("data/change/overwritten"),
        Member::file("data/links/d", noise(16, 4000)),
        Member::hardlink("data/links/e", "data/links/d"),
        Member::whiteout("data/deep/level0/level1/", "level2"),
    ]
}
