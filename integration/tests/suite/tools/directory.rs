//! A directory with everything that an image can hold.

use anyhow::{Context, Result};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, lsetxattr, makedev, mknodat,
    utimensat,
};
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

/// Makes the directory at `root`, owned by all kinds of users; needs root.
pub(super) fn make(root: &Path) -> Result<()> {
    let at = |name: &str| root.join(name);
    for directory in ["", "files", "links", "nodes", "xattrs", "names", "wide"] {
        fs::create_dir(at(directory)).with_context(|| format!("make {directory}"))?;
    }

    for size in [
        0, 1, 63, 64, 65, 255, 4095, 4096, 4097, 8192, 100_000, 1_048_577,
    ] {
        let content: Vec<u8> = (0..size).map(|i| (i * 7 % 251) as u8).collect();
        fs::write(at(&format!("files/{size}")), &content)?;
        fs::write(at(&format!("files/again-{size}")), &content)?;
    }
    for size in [1 << 20, 100 << 20] {
        File::create(at(&format!("files/sparse-{size}")))?.set_len(size)?;
    }
    for mode in [0, 0o777, 0o1644, 0o2755, 0o4711] {
        let path = at(&format!("files/mode-{mode:o}"));
        fs::write(&path, "mode")?;
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
    }
    for id in [1, 65535, 65536, u32::MAX - 1] {
        let path = at(&format!("files/owner-{id}"));
        fs::write(&path, "owner")?;
        lchown(&path, Some(id), Some(id / 2))?;
    }
    for (name, sec, nsec) in [
        ("before-1970", -1_000_000, 999_999_999),
        ("1970", 0, 1),
        ("far", 1 << 34, 5),
    ] {
        let path = at(&format!("files/time-{name}"));
        fs::write(&path, "time")?;
        set_time(&path, sec, nsec)?;
    }
    for name in ["a", "b", "c"] {
        fs::hard_link(at("files/4097"), at(&format!("links/hard-{name}")))?;
    }

    for length in [1, 31, 64, 255, 1023, 2048, 3900, 4000, 4094] {
        symlink("t".repeat(length), at(&format!("links/{length}")))?;
        fs::hard_link(
            at(&format!("links/{length}")),
            at(&format!("links/hard-{length}")),
        )?;
    }
    symlink("..", at("links/directory"))?;

    let node = |name: &str, kind, major, minor| {
        mknodat(
            CWD,
            at(&format!("nodes/{name}")),
            kind,
            Mode::from_raw_mode(0o640),
            makedev(major, minor),
        )
    };
    node("pipe", FileType::Fifo, 0, 0)?;
    node("null", FileType::CharacterDevice, 1, 3)?;
    node("large", FileType::CharacterDevice, 4095, 1_048_575)?;
    node("block", FileType::BlockDevice, 8, 300)?;
    node("block-0", FileType::BlockDevice, 0, 0)?;
    drop(UnixListener::bind(at("nodes/socket"))?);

    for name in [
        &b"with space"[..],
        b"-",
        b"back\\slash",
        b"new\nline\ttab",
        b"equals=sign",
        b"\xff\xfe not UTF-8",
        b"00",
        b"!before dot",
        "ü".as_bytes(),
    ] {
        fs::write(at("names").join(OsStr::from_bytes(name)), name)?;
    }
    fs::write(at("names").join("n".repeat(255)), "longest")?;
    for name in ["00", "ff", "a0"] {
        fs::write(at(name), "where a stub would be")?;
    }

    for i in 0..3000 {
        fs::write(at(&format!("wide/{i}")), i.to_string())?;
    }
    let mut deep = at("deep");
    for _ in 0..100 {
        fs::create_dir(&deep)?;
        deep.push("d");
    }
    xattrs(root)
}

/// Adds whiteouts, which need format V1.
pub(super) fn add_whiteouts(root: &Path) -> Result<()> {
    let whiteouts = root.join("whiteouts");
    fs::create_dir(&whiteouts)?;
    for path in [
        whiteouts.join("gone"),
        whiteouts.join("too"),
        root.join("root-whiteout"),
    ] {
        let mode = Mode::from_raw_mode(0);
        mknodat(CWD, &path, FileType::CharacterDevice, mode, 0)?;
    }
    set_xattr(&whiteouts, "trusted.overlay.opaque", b"y")?;
    set_xattr(&whiteouts.join("gone"), "trusted.kept", b"value")
}

fn xattrs(root: &Path) -> Result<()> {
    let at = |name: &str| root.join("xattrs").join(name);
    for name in ["one", "two", "three", "large", "many", "acl", "overlay"] {
        fs::write(at(name), name)?;
    }
    symlink("target", at("symlink"))?;
    fs::create_dir(at("directory"))?;
    for name in ["one", "two", "three"] {
        set_xattr(&at(name), "user.shared", b"the same value")?;
        set_xattr(&at(name), "user.own", name.as_bytes())?;
        set_xattr(&at(name), "user.empty", b"")?;
    }
    set_xattr(&at("one"), "user.bytes", b"a=b \xff\0\\\n-")?;
    set_xattr(&at("one"), "user.dash", b"-")?;
    set_xattr(&at("one"), "user.name=with equals", b"x")?;
    set_xattr(&at("large"), "user.large", &[b'l'; 15_000])?;
    for i in 0..150 {
        let value = if i % 2 == 0 { "even" } else { "odd" };
        set_xattr(&at("many"), &format!("user.{i:03}"), value.as_bytes())?;
    }
    // cap_net_bind_service=ep
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    set_xattr(&at("two"), "security.capability", &capability)?;
    set_xattr(&at("symlink"), "trusted.on-a-symlink", b"x")?;
    for name in ["opaque", "redirect", "metacopy", "overlay.nested", "other"] {
        set_xattr(&at("overlay"), &format!("trusted.overlay.{name}"), b"y")?;
        set_xattr(&at("directory"), &format!("trusted.overlay.{name}"), b"y")?;
        set_xattr(&at("directory"), &format!("user.overlay.{name}"), b"y")?;
    }
    set_xattr(root, "user.on-the-root", b"x")?;
    set_xattr(root, "trusted.overlay.opaque", b"x")?;
    let acl = access_control_list();
    set_xattr(&at("acl"), "system.posix_acl_access", &acl)?;
    set_xattr(&at("directory"), "system.posix_acl_default", &acl)
}

/// `user::rw-,user:1000:r--,group::r--,mask::r--,other::---` as the kernel encodes it.
fn access_control_list() -> Vec<u8> {
    const NO_ID: u32 = u32::MAX;
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (1_u16, 6_u16, NO_ID),
        (2, 4, 1000),
        (4, 4, NO_ID),
        (16, 4, NO_ID),
        (32, 0, NO_ID),
    ] {
        acl.extend(tag.to_le_bytes());
        acl.extend(permissions.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    acl
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) -> Result<()> {
    lsetxattr(path, name, value, XattrFlags::empty())
        .with_context(|| format!("set {name} on {}", path.display()))
}

fn set_time(path: &Path, sec: i64, nsec: i64) -> Result<()> {
    let time = Timespec {
        tv_sec: sec,
        tv_nsec: nsec,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}
