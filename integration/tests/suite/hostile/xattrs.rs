//! Extended attributes, too many, too large, or not what they say.

use super::Outcome::{OnlyPodmanRefuses, PodmanRefuses, Same};
use super::{Case, judge};
use anyhow::Result;
use integration::tar::{Member, Raw};

/// `count` attributes of `size` bytes each.
fn many(count: usize, size: usize) -> Member {
    (0..count).fold(Member::file("data/f", "x"), |member, n| {
        member.xattr(&format!("user.{n:04}"), vec![b'v'; size])
    })
}

#[test]
fn xattrs_are_as_podman_sets_them_or_are_refused() -> Result<()> {
    let data = || Member::dir("data");
    let with = |key: &str, value: &[u8]| [data(), Member::file("data/f", "x").xattr(key, value)];
    let cases = [
        Case::of("of no name", PodmanRefuses, &with("", b"v")),
        Case::of("of a namespace alone", PodmanRefuses, &with("user.", b"v")),
        Case::of("of no namespace", Same, &with("name", b"v")),
        Case::of("of an unknown namespace", Same, &with("nobody.name", b"v")),
        Case::of("of an empty value", Same, &with("user.name", b"")),
        Case::of("of a value with zeros", Same, &with("user.name", b"\0a\0")),
        Case::of(
            "of the longest name",
            Same,
            &with(&format!("user.{}", "n".repeat(250)), b"v"),
        ),
        Case::of(
            "of a longer name",
            PodmanRefuses,
            &with(&format!("user.{}", "n".repeat(251)), b"v"),
        ),
        Case::of(
            "of a value longer than Linux takes",
            PodmanRefuses,
            &with("user.name", &vec![b'v'; 65_537]),
        ),
        Case::of("200 of them", Same, &[data(), many(200, 20)]),
        Case::of(
            "more than a tar reader takes",
            PodmanRefuses,
            &[data(), many(40, 60_000)],
        ),
        Case::of(
            "capabilities that are none",
            OnlyPodmanRefuses,
            &with("security.capability", b"all of them"),
        ),
        Case::of(
            "an ACL that is none",
            Same,
            &with("system.posix_acl_access", b"everybody"),
        ),
        Case::of(
            "a label",
            Same,
            &with("security.selinux", b"system_u:object_r:x:s0\0"),
        ),
        Case::of(
            "an integrity hash that is none",
            Same,
            &with("security.ima", b"\x01nonsense"),
        ),
        Case::of(
            "on a symlink",
            Same,
            &[
                data(),
                Member::symlink("data/s", "x").xattr("trusted.name", "v"),
            ],
        ),
        Case::of(
            "on a device",
            Same,
            &[
                data(),
                Member::char_device("data/c", 1, 3).xattr("trusted.name", "v"),
            ],
        ),
        Case::of(
            "of users on a symlink",
            OnlyPodmanRefuses,
            &[
                data(),
                Member::symlink("data/s", "x").xattr("user.name", "v"),
            ],
        ),
        Case::raw(
            "twice the same, and then empty",
            Same,
            &[
                Raw::new("data/", b'5'),
                Raw::pax(&[("SCHILY.xattr.user.a", b"1"), ("SCHILY.xattr.user.a", b"")]),
                Raw::file("data/f", "x"),
            ],
        ),
        Case::raw(
            "twice the same",
            Same,
            &[
                Raw::new("data/", b'5'),
                Raw::pax(&[("SCHILY.xattr.user.a", b"1"), ("SCHILY.xattr.user.a", b"2")]),
                Raw::file("data/f", "x"),
            ],
        ),
        Case::raw(
            "in the words of libarchive",
            Same,
            &[
                Raw::new("data/", b'5'),
                Raw::pax(&[("LIBARCHIVE.xattr.user.a", b"dg==")]),
                Raw::file("data/f", "x"),
            ],
        ),
    ];
    judge(&cases)
}
