//! Names that lead elsewhere.

use super::Outcome::{OnlyWeRefuse, PodmanRefuses, Same};
use super::{Case, judge};
use anyhow::Result;
use integration::tar::{Member, Raw};

#[test]
fn names_that_lead_elsewhere_end_where_podman_puts_them_or_are_refused() -> Result<()> {
    let deep = vec!["d"; 1500].join("/");
    let cases = [
        Case::of("up and out", Same, &[Member::file("../escape", [])]),
        Case::of(
            "up and out with content",
            OnlyWeRefuse(&["../escape"]),
            &[Member::file("../escape", "content")],
        ),
        Case::of(
            "down, up and out",
            OnlyWeRefuse(&["data/../../../escape"]),
            &[Member::file("data/../../../escape", "content")],
        ),
        Case::of(
            "absolute",
            Same,
            &[
                Member::dir("/data"),
                Member::file("/data/absolute", "content"),
            ],
        ),
        Case::of(
            "slashes and dots",
            Same,
            &[
                Member::dir(".//data//"),
                Member::file("//data//.//x", "content"),
                Member::file("./data/./y", "content"),
            ],
        ),
        Case::raw(
            "dot as a directory",
            Same,
            &[Raw::new(".", b'5').set(100, 8, "0000700\0")],
        ),
        Case::raw(
            "dot and slash as a directory",
            Same,
            &[Raw::new("./", b'5').set(100, 8, "0000700\0")],
        ),
        Case::raw(
            "slash as a directory",
            Same,
            &[Raw::new("/", b'5').set(100, 8, "0000700\0")],
        ),
        Case::raw(
            "two dots as a directory",
            Same,
            &[Raw::new("..", b'5').set(100, 8, "0000700\0")],
        ),
        Case::raw(
            "dot as a file",
            OnlyWeRefuse(&["\".\""]),
            &[Raw::file(".", "content")],
        ),
        Case::raw(
            "two dots as a file",
            PodmanRefuses,
            &[Raw::file("..", "content")],
        ),
        Case::raw(
            "slash as a file",
            PodmanRefuses,
            &[Raw::file("/", "content")],
        ),
        Case::raw(
            "without a name",
            OnlyWeRefuse(&["without a path"]),
            &[Raw::file("", "content")],
        ),
        Case::raw(
            "a directory without a name",
            OnlyWeRefuse(&["without a path"]),
            &[Raw::new("", b'5')],
        ),
        Case::of(
            "through a symlink of the layer",
            OnlyWeRefuse(&["data/l/file"]),
            &[
                Member::dir("data/own"),
                Member::symlink("data/l", "own"),
                Member::file("data/l/file", "content"),
            ],
        ),
        Case::of(
            "through a symlink of the layer, without content",
            Same,
            &[
                Member::dir("data"),
                Member::dir("data/own"),
                Member::symlink("data/l", "own"),
                Member::file("data/l/file", []),
            ],
        ),
        Case::of(
            "through an absolute symlink",
            PodmanRefuses,
            &[
                Member::symlink("data/l", "/etc"),
                Member::file("data/l/passwd", "content"),
            ],
        ),
        Case::of(
            "through an absolute symlink to a directory of the layer",
            OnlyWeRefuse(&["data/l/passwd"]),
            &[
                Member::dir("etc"),
                Member::symlink("data/l", "/etc"),
                Member::file("data/l/passwd", "content"),
            ],
        ),
        Case::of(
            "through a symlink up and out to a directory of the layer",
            OnlyWeRefuse(&["data/l/passwd"]),
            &[
                Member::dir("etc"),
                Member::symlink("data/l", "../../../../../../etc"),
                Member::file("data/l/passwd", "content"),
            ],
        ),
        Case::of(
            "through a symlink up and out",
            PodmanRefuses,
            &[
                Member::symlink("data/l", "../../../../../../tmp"),
                Member::file("data/l/file", "content"),
            ],
        ),
        Case::of(
            "through a symlink of the lower layer",
            Same,
            &[Member::file("data/link/file", "content")],
        ),
        Case::of(
            "through an absolute symlink of the lower layer",
            Same,
            &[Member::file("data/out/passwd", "content")],
        ),
        Case::of(
            "through a dangling symlink",
            PodmanRefuses,
            &[
                Member::symlink("data/l", "nowhere"),
                Member::file("data/l/file", "content"),
            ],
        ),
        Case::of(
            "through a loop of symlinks",
            PodmanRefuses,
            &[
                Member::symlink("data/l", "m"),
                Member::symlink("data/m", "l"),
                Member::file("data/l/file", "content"),
            ],
        ),
        Case::of(
            "below a file",
            PodmanRefuses,
            &[
                Member::file("data/f", "content"),
                Member::file("data/f/file", "content"),
            ],
        ),
        Case::of(
            "below a file of the lower layer",
            Same,
            &[
                Member::dir("data"),
                Member::file("data/file/below", "content"),
            ],
        ),
        Case::of(
            "a symlink in place of the directory just made",
            PodmanRefuses,
            &[
                Member::dir("data/d"),
                Member::file("data/d/file", "content"),
                Member::symlink("data/d", "/etc"),
            ],
        ),
        Case::of(
            "a name of 256 bytes",
            PodmanRefuses,
            &[Member::file(vec![b'n'; 256], "content")],
        ),
        Case::of(
            "a path longer than Linux takes",
            PodmanRefuses,
            &[Member::file(vec!["component"; 500].join("/"), "content")],
        ),
        Case::of(
            "a path of 1,500 directories",
            Same,
            &[
                Member::dir("d"),
                Member::file(format!("{deep}/f"), "content"),
            ],
        ),
        Case::of(
            "not UTF-8",
            Same,
            &[
                Member::dir("data"),
                Member::file(b"data/\xff\xfe", "content"),
                Member::dir(b"data/\xc3\x28"),
                Member::symlink(b"data/\xed\xa0\x80", b"\xff"),
            ],
        ),
        Case::of(
            "with line breaks and other bytes that terminals obey",
            Same,
            &[
                Member::dir("data"),
                Member::file(b"data/\n\r\x1b[2J\x07", "content"),
            ],
        ),
    ];
    judge(&cases)
}
