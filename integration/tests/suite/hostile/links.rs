//! Links, devices, and names that occur twice.

use super::Outcome::{OnlyWeRefuse, PodmanRefuses, Same, Unpublished};
use super::{Case, judge};
use anyhow::Result;
use integration::tar::{Member, Raw};

#[test]
fn links_and_devices_are_as_podman_has_them_or_are_refused() -> Result<()> {
    let devices: Vec<Member> = std::iter::once(Member::dir("data"))
        .chain((0..3000).map(|n| Member::char_device(format!("data/{n}"), 1 + n % 200, n)))
        .collect();
    let cases = [
        Case::of(
            "a hard link to nothing",
            PodmanRefuses,
            &[Member::hardlink("data/h", "data/nothing")],
        ),
        Case::of(
            "a hard link up and out",
            PodmanRefuses,
            &[Member::hardlink("data/h", "../../../../../../etc/hostname")],
        ),
        Case::of(
            "a hard link to an absolute name of the layer",
            Same,
            &[
                Member::dir("data"),
                Member::file("data/f", "content"),
                Member::hardlink("data/h", "/data/f"),
            ],
        ),
        Case::of(
            "a hard link to an absolute name outside",
            PodmanRefuses,
            &[Member::hardlink("data/h", "/etc/hostname")],
        ),
        Case::of(
            "a hard link to a file of the lower layer",
            PodmanRefuses,
            &[Member::hardlink("data/h", "data/file")],
        ),
        Case::of(
            "a hard link to a directory",
            PodmanRefuses,
            &[Member::dir("data/d"), Member::hardlink("data/h", "data/d")],
        ),
        Case::of(
            "a hard link to itself",
            PodmanRefuses,
            &[Member::hardlink("data/h", "data/h")],
        ),
        Case::of(
            "a hard link to what comes later",
            PodmanRefuses,
            &[
                Member::hardlink("data/h", "data/later"),
                Member::file("data/later", "content"),
            ],
        ),
        Case::of(
            "a hard link to a symlink",
            Same,
            &[
                Member::dir("data"),
                Member::symlink("data/s", "file"),
                Member::hardlink("data/h", "data/s"),
            ],
        ),
        Case::of(
            "a hard link through a symlink of the layer",
            Same,
            &[
                Member::dir("data"),
                Member::dir("data/own"),
                Member::file("data/own/f", "content"),
                Member::symlink("data/l", "own"),
                Member::hardlink("data/h", "data/l/f"),
            ],
        ),
        Case::of(
            "a hard link through a symlink out",
            PodmanRefuses,
            &[
                Member::symlink("data/l", "/etc"),
                Member::hardlink("data/h", "data/l/hostname"),
            ],
        ),
        Case::of(
            "a hard link without a target",
            PodmanRefuses,
            &[Member::hardlink("data/h", "")],
        ),
        Case::of(
            "a hard link with another owner, mode and time",
            Same,
            &[
                Member::dir("data"),
                Member::file("data/f", "content"),
                Member::hardlink("data/h", "data/f")
                    .owner(5, 6)
                    .mode(0o4711)
                    .mtime(7, 8),
            ],
        ),
        Case::raw(
            "a hard link that claims content",
            PodmanRefuses,
            &[
                Raw::file("data/f", "content"),
                Raw::new("data/h", b'1').target("data/f").payload("content"),
            ],
        ),
        Case::raw(
            "a symlink that claims content",
            PodmanRefuses,
            &[Raw::new("data/s", b'2').target("file").payload("content")],
        ),
        Case::raw(
            "a directory that claims content",
            PodmanRefuses,
            &[Raw::new("data/d/", b'5').payload("content")],
        ),
        Case::raw(
            "a fifo that claims content",
            PodmanRefuses,
            &[Raw::new("data/p", b'6').payload("content")],
        ),
        Case::raw(
            "a hard link with a size and no content",
            OnlyWeRefuse(&["data/h", "its tar header has a size"]),
            &[
                Raw::file("data/f", "content"),
                Raw::new("data/h", b'1')
                    .target("data/f")
                    .set(124, 12, "00000000007\0"),
            ],
        ),
        Case::raw(
            "a symlink with a size and no content",
            OnlyWeRefuse(&["data/s", "its tar header has a size"]),
            &[Raw::new("data/s", b'2')
                .target("file")
                .set(124, 12, "00000000007\0")],
        ),
        Case::raw(
            "a directory with a size and no content",
            OnlyWeRefuse(&["data/d", "its tar header has a size"]),
            &[Raw::new("data/d/", b'5').set(124, 12, "00000000007\0")],
        ),
        Case::of(
            "a symlink without a target",
            PodmanRefuses,
            &[Member::symlink("data/s", "")],
        ),
        Case::of(
            "a symlink target of 4,095 bytes",
            Same,
            &[
                Member::dir("data"),
                Member::symlink("data/s", vec![b'x'; 4094]),
            ],
        ),
        Case::of(
            "a symlink target of 4,096 bytes",
            PodmanRefuses,
            &[Member::symlink("data/s", vec![b'x'; 4096])],
        ),
        Case::of("3,000 devices", Same, &devices),
        Case::of(
            "a device that overlayfs takes for a whiteout",
            Same,
            &[Member::dir("data"), Member::char_device("data/file", 0, 0)],
        ),
        Case::of(
            "a device of the largest numbers",
            Same,
            &[
                Member::dir("data"),
                Member::block_device("data/b", 0xfff, 0xf_ffff),
            ],
        ),
        Case::of(
            "a device of larger numbers",
            Unpublished(&["data/b", "out of range"]),
            &[Member::block_device("data/b", 0x1000, 0)],
        ),
        Case::raw(
            "a device whose header has no numbers",
            Unpublished(&["data/c", "without device number"]),
            &[Raw::new("data/c", b'3').set(257, 8, "")],
        ),
        Case::of(
            "the same file twice",
            PodmanRefuses,
            &[Member::file("data/f", "1"), Member::file("data/f", "2")],
        ),
        Case::of(
            "the same file twice under names that are written differently",
            PodmanRefuses,
            &[Member::file("data/f", "1"), Member::file("./data//f", "2")],
        ),
        Case::of(
            "the same directory twice",
            PodmanRefuses,
            &[Member::dir("data"), Member::dir("data").mode(0o700)],
        ),
        Case::of(
            "a file, and a directory of its name",
            PodmanRefuses,
            &[Member::file("data/f", "1"), Member::dir("data/f")],
        ),
        Case::of(
            "names that differ in case",
            Same,
            &[
                Member::dir("data"),
                Member::file("data/f", "1"),
                Member::file("data/F", "2"),
            ],
        ),
    ];
    judge(&cases)
}
