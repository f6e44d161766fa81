//! Whiteouts in places and orders that no tool writes.

use super::Outcome::{OnlyWeRefuse, PodmanRefuses, Same, Unpublished};
use super::{Case, judge};
use anyhow::Result;
use integration::tar::{Member, Raw};

#[test]
fn whiteouts_take_away_what_they_do_with_podman_or_are_refused() -> Result<()> {
    let data = || Member::dir("data");
    let cases = [
        Case::of(
            "an opaque mark before the entries",
            Same,
            &[
                data(),
                Member::opaque("data"),
                Member::file("data/new", "n"),
            ],
        ),
        Case::of(
            "an opaque mark behind the entries",
            Same,
            &[
                data(),
                Member::file("data/new", "n"),
                Member::opaque("data"),
            ],
        ),
        Case::of(
            "an opaque mark before its directory",
            Same,
            &[
                Member::opaque("data"),
                data(),
                Member::file("data/new", "n"),
            ],
        ),
        Case::of("an opaque root", Same, &[Member::file(".wh..wh..opq", [])]),
        Case::of(
            "an opaque mark below a file",
            Same,
            &[Member::file("data/f", "x"), Member::opaque("data/f")],
        ),
        Case::of(
            "an opaque mark below a file of the lower layer",
            Same,
            &[data(), Member::opaque("data/file")],
        ),
        Case::of(
            "a whiteout of the layer's own file",
            PodmanRefuses,
            &[
                Member::file("data/own", "x"),
                Member::whiteout("data/", "own"),
            ],
        ),
        Case::of(
            "a whiteout in front of the layer's own file",
            Same,
            &[
                data(),
                Member::whiteout("data/", "own"),
                Member::file("data/own", "x"),
            ],
        ),
        Case::of(
            "a whiteout in front of a directory that then is new",
            Same,
            &[
                data(),
                Member::whiteout("data/", "real"),
                Member::dir("data/real"),
                Member::file("data/real/new", "x"),
            ],
        ),
        Case::of(
            "a whiteout of nothing",
            Same,
            &[data(), Member::whiteout("data/", "nothing")],
        ),
        Case::of(
            "a whiteout below a file of the layer",
            Same,
            &[
                Member::file("data/f", "x"),
                Member::whiteout("data/f/", "x"),
            ],
        ),
        Case::of(
            "a whiteout below a whiteout",
            Same,
            &[
                data(),
                Member::whiteout("data/", "real"),
                Member::whiteout("data/real/", "below"),
            ],
        ),
        Case::of(
            "a whiteout of a whiteout",
            Same,
            &[data(), Member::whiteout("data/", ".wh.file")],
        ),
        Case::of(
            "a whiteout of no name",
            PodmanRefuses,
            &[data(), Member::whiteout("data/", "")],
        ),
        Case::of(
            "a whiteout of a dot",
            PodmanRefuses,
            &[data(), Member::whiteout("data/", ".")],
        ),
        Case::of(
            "a whiteout of two dots",
            PodmanRefuses,
            &[data(), Member::whiteout("data/", "..")],
        ),
        Case::of(
            "a whiteout of the root's directory",
            Same,
            &[Member::whiteout("", "data")],
        ),
        Case::of(
            "marks of aufs",
            OnlyWeRefuse(&[".wh..wh.aufs"]),
            &[
                Member::dir(".wh..wh.plnk"),
                Member::file(".wh..wh.aufs", "x"),
            ],
        ),
        Case::of(
            "a whiteout that is a directory",
            Same,
            &[data(), Member::dir("data/.wh.file")],
        ),
        Case::of(
            "a whiteout that is a symlink",
            Same,
            &[data(), Member::symlink("data/.wh.file", "x")],
        ),
        Case::of(
            "a whiteout with content",
            OnlyWeRefuse(&["data/.wh.file"]),
            &[data(), Member::file("data/.wh.file", "content")],
        ),
        Case::of(
            "a file below a whiteout's name",
            Same,
            &[data(), Member::file("data/.wh.d/file", "content")],
        ),
        Case::of(
            "a whiteout of a name that is not UTF-8",
            Same,
            &[data(), Member::whiteout("data/", b"\xff")],
        ),
        Case::of(
            "the same whiteout twice",
            PodmanRefuses,
            &[
                data(),
                Member::whiteout("data/", "file"),
                Member::whiteout("data/", "file"),
            ],
        ),
        Case::raw(
            "a hard link to a whiteout",
            Same,
            &[
                Raw::new("data/.wh.file", b'0'),
                Raw::new("data/h", b'1').target("data/file"),
            ],
        ),
        Case::of(
            "marks of aufs without content",
            Same,
            &[
                Member::dir(".wh..wh.plnk"),
                Member::file(".wh..wh.aufs", []),
            ],
        ),
        Case::of(
            "a directory that overlayfs takes for another one",
            Unpublished(&["data/x", "trusted.overlay.redirect"]),
            &[
                data(),
                Member::dir("data/x").xattr("trusted.overlay.redirect", "/etc"),
            ],
        ),
        Case::of(
            "xattrs that overlayfs takes for its own",
            Same,
            &[
                data(),
                Member::dir("data/real").xattr("trusted.overlay.opaque", "y"),
                Member::file("data/file", "mine").xattr("trusted.overlay.metacopy", ""),
                Member::dir("data/u").xattr("user.overlay.opaque", "y"),
            ],
        ),
    ];
    judge(&cases)
}
