//! Images that a host could boot from, as far as their digests are concerned.

use crate::fixture::{Fixture, noise};
use crate::tar::Member;
use anyhow::Result;
use std::path::Path;

/// Which SELinux policy an image has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// None at all.
    Absent,
    /// A configuration that names none.
    Disabled,
    /// One in which every rule of labelling matters.
    Targeted,
}

const CONTEXTS: &str = "\
# All types, and the last that matches counts.
/.*\t\tsystem_u:object_r:default_t:s0
/\t-d\tsystem_u:object_r:root_t:s0
/usr(/.*)?\tsystem_u:object_r:usr_t:s0
/usr/bin(/.*)?\tsystem_u:object_r:bin_t:s0
/usr/bin/.*\t-l\tsystem_u:object_r:bin_link_t:s0
/usr/lib(/.*)?\tsystem_u:object_r:lib_t:s0
/usr/lib/(?!modules/)[^/]*\\.so\t--\tsystem_u:object_r:textrel_shlib_t:s0
/data/.*\t-p\tsystem_u:object_r:fifo_t:s0
/data/.*\t-c\tsystem_u:object_r:device_t:s0
/data/.*\t-b\tsystem_u:object_r:fixed_disk_device_t:s0
/data/names/[^/]*x.y\tsystem_u:object_r:odd_t:s0
/data/names/\\xff.*\tsystem_u:object_r:byte_t:s0
/data/none\t<<none>>
/data/hard/[a-c]\tsystem_u:object_r:first_t:s0
/data/hard/b\tsystem_u:object_r:second_t:s0
/data/hard/none\t<<none>>
/(boot|sysroot)\t-d\tsystem_u:object_r:boot_t:s0
/(boot|sysroot)/.*\tsystem_u:object_r:never_t:s0
/home/[^/]+/.+\tunconfined_u:object_r:user_home_t:s0
/srv/deep(/.*)?\tsystem_u:object_r:deep_t:s0
";

const LOCAL: &str =
    "/data/local  --  system_u:object_r:local_t:s0\n/data/both system_u:object_r:local_t:s0\n";
const HOMEDIRS: &str = "/data/both system_u:object_r:homedirs_t:s0\n";
const SUBS: &str = "/alias /usr/lib\n/usr/lib/inner /nowhere\n";
const SUBS_DIST: &str = "# later lines win\n/usr/lib/inner /srv\n/data/file-alias /usr/bin/x\n";

/// Writes an image with this policy, with something to boot from, and with what a boot image must not
/// contain.
pub fn write(dir: &Path, policy: Policy) -> Result<Fixture> {
    Fixture::with_layers(dir, vec![system(policy), data()])
}

/// An image that could be booted but for what `spoil` adds to it.
pub fn spoiled(dir: &Path, spoil: Vec<Member>) -> Result<Fixture> {
    Fixture::with_layers(dir, vec![system(Policy::Targeted), data(), spoil])
}

fn system(policy: Policy) -> Vec<Member> {
    let mut members = vec![
        // A fraction of a second, which V1 images record.
        Member::dir("usr").mtime(1_600_000_123, 456_000_000),
        Member::dir("boot").mode(0o700).mtime(5, 5),
        Member::dir("boot/loader/entries"),
        Member::file("boot/vmlinuz-6.1", noise(700, 9_000)),
        Member::file(
            "boot/loader/entries/a.conf",
            "title A\nlinux /boot/vmlinuz-6.1\noptions rw\n",
        ),
        Member::file("boot/EFI/Linux/a.efi", noise(701, 20_000)),
        Member::file("boot/EFI/Linux/a.efi.extra.d/b.addon.efi", noise(702, 100)),
        Member::dir("sysroot").owner(1, 2),
        Member::file("sysroot/ostree/x", noise(703, 100)),
        Member::dir("usr/lib"),
        Member::dir("usr/lib/modules"),
        Member::dir("usr/lib/modules/6.1"),
        Member::hardlink("usr/lib/modules/6.1/vmlinuz", "boot/vmlinuz-6.1"),
        Member::file("usr/lib/modules/6.1/initramfs.img", noise(704, 5_000)),
    ];
    let config = match policy {
        Policy::Absent => return members,
        Policy::Disabled => "SELINUX=disabled\n#SELINUXTYPE=targeted\n",
        Policy::Targeted => "# SELINUXTYPE=mls\nSELINUX=enforcing\nSELINUXTYPE= targeted \n",
    };
    members.push(Member::file("etc/selinux/config", config));
    let files = "etc/selinux/targeted/contexts/files";
    for (name, text) in [
        ("file_contexts", CONTEXTS),
        ("file_contexts.local", LOCAL),
        ("file_contexts.homedirs", HOMEDIRS),
        ("file_contexts.subs", SUBS),
        ("file_contexts.subs_dist", SUBS_DIST),
    ] {
        members.push(Member::file(format!("{files}/{name}"), text));
    }
    members
}

fn data() -> Vec<Member> {
    let mut members = vec![
        Member::fifo("data/fifo"),
        Member::char_device("data/char", 1, 3),
        Member::block_device("data/block", 7, 0),
        Member::symlink("usr/bin/link", "x"),
        Member::file("usr/bin/capable", noise(710, 300))
            .mode(0o755)
            .xattr(
                "security.capability",
                [
                    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                ],
            )
            .xattr("security.selinux", "from the build host\0")
            .xattr("user.kept", "perhaps"),
        Member::dir("data/names"),
        Member::file(b"data/names/x\xffy", "1"),
        Member::file("data/names/x\ny", "2"),
        Member::file(b"data/names/\xff\xfe", "3"),
        Member::dir("data/hard"),
        Member::file("data/hard/a", noise(711, 1_000)).xattr("user.hard", "link"),
    ];
    for name in ["b", "c", "none", "other"] {
        members.push(Member::hardlink(format!("data/hard/{name}"), "data/hard/a"));
    }
    for name in [
        "data/none",
        "data/local",
        "data/both",
        "data/file-alias",
        "usr/lib/a.so",
        "usr/lib/modules/b.so",
        "alias/c.so",
        "alias/inner/deep/d",
        "alias/inner/e",
        "home/someone/file",
    ] {
        members.push(Member::file(name, noise(712, name.len() * 7)));
    }
    members
}
