//! Headers and extended headers that lie, repeat or contradict each other, and archives that end badly.

use super::Outcome::{OnlyPodmanRefuses, OnlyWeRefuse, PodmanRefuses, Same};
use super::{Case, judge};
use anyhow::Result;
use integration::tar::raw::END;
use integration::tar::{Member, Raw};

/// A directory entry for `data`, which podman would otherwise make up.
fn data() -> Raw {
    Raw::new("data/", b'5').set(100, 8, "0000755\0")
}

fn plain(name: &str) -> Raw {
    Raw::file(name, "content")
}

fn joined(headers: &[Raw]) -> Vec<u8> {
    headers.iter().flat_map(Raw::bytes).collect()
}

/// GNU's magic instead of ustar's.
fn gnu(raw: Raw) -> Raw {
    raw.set(257, 8, "ustar  \0")
}

#[test]
fn extended_headers_mean_what_they_mean_to_podman_or_are_refused() -> Result<()> {
    let record = |key, value: &'static [u8]| Raw::pax(&[(key, value)]);
    let text = |content: &[u8]| Raw::new("PaxHeaders/x", b'x').payload(content);
    let huge = vec![b'v'; (1 << 20) + 1];
    let cases = [
        Case::raw(
            "a size larger than the header's",
            Same,
            &[
                data(),
                record("size", b"7"),
                Raw::new("data/f", b'0')
                    .payload("content")
                    .set(124, 12, "00000000000\0"),
            ],
        ),
        Case::raw(
            "a size smaller than the header's",
            PodmanRefuses,
            &[
                data(),
                record("size", b"3"),
                Raw::file("data/f", [b'c'; 600]),
            ],
        ),
        Case::raw(
            "a negative size",
            PodmanRefuses,
            &[data(), record("size", b"-1"), plain("data/f")],
        ),
        Case::raw(
            "a size of no number",
            PodmanRefuses,
            &[data(), record("size", b"seven"), plain("data/f")],
        ),
        Case::raw(
            "a size beyond 63 bits",
            PodmanRefuses,
            &[
                data(),
                record("size", b"9223372036854775808"),
                plain("data/f"),
            ],
        ),
        Case::raw(
            "a size beyond the end",
            PodmanRefuses,
            &[
                data(),
                record("size", b"9223372036854775807"),
                plain("data/f"),
            ],
        ),
        Case::raw(
            "a size with a sign",
            Same,
            &[data(), record("size", b"+7"), plain("data/f")],
        ),
        Case::raw(
            "an empty size",
            Same,
            &[data(), record("size", b""), plain("data/f")],
        ),
        Case::raw(
            "a record that is longer than it says",
            PodmanRefuses,
            &[data(), text(b"8 path=data/longer\n"), plain("data/f")],
        ),
        Case::raw(
            "a record that is shorter than it says",
            PodmanRefuses,
            &[data(), text(b"99 path=data/g\n"), plain("data/f")],
        ),
        Case::raw(
            "a record without a length",
            OnlyPodmanRefuses,
            &[data(), text(b"path=data/g\n"), plain("data/f")],
        ),
        Case::raw(
            "a record without a key",
            OnlyPodmanRefuses,
            &[data(), text(b"6 =ab\n"), plain("data/f")],
        ),
        Case::raw(
            "a record of 1 MiB",
            PodmanRefuses,
            &[data(), Raw::pax(&[("comment", &huge)]), plain("data/f")],
        ),
        Case::raw(
            "a path, and then an empty one",
            Same,
            &[
                data(),
                Raw::pax(&[("path", b"data/g"), ("path", b"")]),
                plain("data/f"),
            ],
        ),
        Case::raw(
            "an empty path",
            Same,
            &[data(), record("path", b""), plain("data/f")],
        ),
        Case::raw(
            "a path with a zero",
            PodmanRefuses,
            &[data(), record("path", b"data/g\0h"), plain("data/f")],
        ),
        Case::raw(
            "a path twice",
            Same,
            &[
                data(),
                Raw::pax(&[("path", b"data/g"), ("path", b"data/h")]),
                plain("data/f"),
            ],
        ),
        Case::raw(
            "a path up and out",
            Same,
            &[record("path", b"../../escape"), Raw::new("data/f", b'0')],
        ),
        Case::raw(
            "a user beyond 32 bits",
            Same,
            &[data(), record("uid", b"4294967296"), plain("data/f")],
        ),
        Case::raw(
            "a negative user",
            OnlyWeRefuse(&["data/f", "PAX record uid"]),
            &[data(), record("uid", b"-1"), plain("data/f")],
        ),
        Case::raw(
            "a user of no number",
            PodmanRefuses,
            &[data(), record("uid", b"root"), plain("data/f")],
        ),
        Case::raw(
            "a time before 1970",
            Same,
            &[data(), record("mtime", b"-1.5"), plain("data/f")],
        ),
        Case::raw(
            "a symlink's time before 1970",
            Same,
            &[
                data(),
                record("mtime", b"-1.5"),
                Raw::new("data/s", b'2').target("x"),
            ],
        ),
        Case::raw(
            "a time beyond all reason",
            Same,
            &[
                data(),
                record("mtime", b"9223372036854775807"),
                plain("data/f"),
            ],
        ),
        Case::raw(
            "a time of no number",
            PodmanRefuses,
            &[data(), record("mtime", b"today"), plain("data/f")],
        ),
        Case::raw(
            "a time with too many digits",
            Same,
            &[data(), record("mtime", b"12.1234567899"), plain("data/f")],
        ),
        Case::raw(
            "a time with a fraction of no number",
            OnlyPodmanRefuses,
            &[data(), record("mtime", b"12.x"), plain("data/f")],
        ),
        Case::raw(
            "two extended headers for one file",
            OnlyWeRefuse(&["more than one extension header"]),
            &[
                data(),
                record("path", b"data/g"),
                record("mtime", b"12"),
                plain("data/f"),
            ],
        ),
        Case::raw(
            "an extended header and a long name",
            OnlyWeRefuse(&["data/f", "different values of its path"]),
            &[
                data(),
                record("path", b"data/g"),
                gnu(Raw::new("././@LongLink", b'L')).payload("data/h\0"),
                plain("data/f"),
            ],
        ),
        Case::raw(
            "an extended header and a long name that agree",
            Same,
            &[
                data(),
                record("path", b"data/g"),
                gnu(Raw::new("././@LongLink", b'L')).payload("data/g\0"),
                plain("data/f"),
            ],
        ),
        Case::raw(
            "a global header with a path",
            Same,
            &[
                data(),
                Raw::new("g", b'g').payload("15 path=data/g\n"),
                plain("data/f"),
            ],
        ),
        Case::raw(
            "a global header between an extended header and its file",
            Same,
            &[
                data(),
                record("path", b"data/g"),
                Raw::new("g", b'g').payload("13 comment=a\n"),
                plain("data/f"),
            ],
        ),
        Case::raw(
            "an extended header without a file",
            OnlyWeRefuse(&["extension header without a member"]),
            &[data(), record("path", b"data/g")],
        ),
        Case::raw(
            "an empty extended header",
            Same,
            &[data(), text(b""), plain("data/f")],
        ),
        Case::raw(
            "a long name without its zero",
            Same,
            &[
                data(),
                gnu(Raw::new("L", b'L')).payload("data/long"),
                plain("data/f"),
            ],
        ),
        Case::raw(
            "a long name with bytes behind its zero",
            Same,
            &[
                data(),
                gnu(Raw::new("L", b'L')).payload("data/long\0er"),
                plain("data/f"),
            ],
        ),
        Case::raw(
            "a long name of 2 MiB",
            PodmanRefuses,
            &[
                data(),
                gnu(Raw::new("L", b'L')).payload(vec![b'n'; 2 << 20]),
                plain("data/f"),
            ],
        ),
        Case::raw(
            "two long names",
            OnlyWeRefuse(&["more than one extension header"]),
            &[
                data(),
                gnu(Raw::new("L", b'L')).payload("data/g\0"),
                gnu(Raw::new("L", b'L')).payload("data/h\0"),
                plain("data/f"),
            ],
        ),
        Case::raw(
            "a long link target of a file",
            Same,
            &[
                data(),
                gnu(Raw::new("K", b'K')).payload("data/g\0"),
                plain("data/f"),
            ],
        ),
        Case::raw(
            "an old GNU sparse file",
            PodmanRefuses,
            &[
                data(),
                gnu(plain("data/f"))
                    .set(156, 1, "S")
                    .set(386, 12, "00000000000\0")
                    .set(398, 12, "00000000007\0")
                    .set(483, 12, "00000000100\0"),
            ],
        ),
        Case::raw(
            "a sparse file of PAX format 0.0",
            OnlyWeRefuse(&["data/f", "sparse"]),
            &[
                data(),
                Raw::pax(&[
                    ("GNU.sparse.size", b"100"),
                    ("GNU.sparse.numblocks", b"1"),
                    ("GNU.sparse.offset", b"0"),
                    ("GNU.sparse.numbytes", b"7"),
                ]),
                plain("data/f"),
            ],
        ),
        Case::raw(
            "a sparse file of PAX format 0.1",
            OnlyWeRefuse(&["data/f", "sparse"]),
            &[
                data(),
                Raw::pax(&[
                    ("GNU.sparse.name", b"data/g"),
                    ("GNU.sparse.size", b"100"),
                    ("GNU.sparse.numblocks", b"1"),
                    ("GNU.sparse.map", b"0,7"),
                ]),
                plain("data/f"),
            ],
        ),
        Case::raw(
            "a sparse file of PAX format 1.0",
            OnlyWeRefuse(&["data/f", "sparse"]),
            &[
                data(),
                Raw::pax(&[
                    ("GNU.sparse.major", b"1"),
                    ("GNU.sparse.minor", b"0"),
                    ("GNU.sparse.name", b"data/g"),
                    ("GNU.sparse.realsize", b"100"),
                ]),
                Raw::file("data/f", {
                    let mut content = b"1\n0\n7\n".to_vec();
                    content.resize(512, 0);
                    content.extend(b"content");
                    content
                }),
            ],
        ),
    ];
    judge(&cases)
}

#[test]
fn headers_mean_what_they_mean_to_podman_or_are_refused() -> Result<()> {
    let file = || plain("data/f");
    let base256 = |low: &[u8], length: usize, fill: u8| {
        let mut field = vec![fill; length];
        field[length - low.len()..].copy_from_slice(low);
        field
    };
    let negative = |length| base256(&[0xfe], length, 0xff);
    let cases = [
        Case::raw(
            "a size in base 256",
            Same,
            &[
                data(),
                file().set(124, 12, [&[0x80][..], &base256(&[7], 11, 0)].concat()),
            ],
        ),
        Case::raw(
            "a negative size in base 256",
            PodmanRefuses,
            &[data(), file().set(124, 12, negative(12))],
        ),
        Case::raw(
            "a size of all bits",
            PodmanRefuses,
            &[data(), file().set(124, 12, [0xff; 12])],
        ),
        Case::raw(
            "a size beyond 63 bits",
            PodmanRefuses,
            &[
                data(),
                file().set(124, 12, [&[0x80][..], &[0xff; 11]].concat()),
            ],
        ),
        Case::raw(
            "a user in base 256",
            Same,
            &[data(), file().set(108, 8, b"\x80\0\0\0\0\x01\0\0")],
        ),
        Case::raw(
            "a user beyond 32 bits",
            Same,
            &[data(), file().set(108, 8, b"\x80\0\0\x01\0\0\0\0")],
        ),
        Case::raw(
            "a time before 1970 in base 256",
            Same,
            &[data(), file().set(136, 12, negative(12))],
        ),
        Case::raw(
            "a time with a minus",
            PodmanRefuses,
            &[data(), file().set(136, 12, "-0000000001\0")],
        ),
        Case::raw(
            "a mode with the type of a directory",
            Same,
            &[data(), file().set(100, 8, "0040755\0")],
        ),
        Case::raw(
            "a mode of all bits",
            Same,
            &[data(), file().set(100, 8, "7777777\0")],
        ),
        Case::raw(
            "a mode in base 256",
            Same,
            &[data(), file().set(100, 8, b"\x80\0\0\0\0\0\x01\xed")],
        ),
        Case::raw(
            "a mode of no number",
            PodmanRefuses,
            &[data(), file().set(100, 8, "rw-r--r-")],
        ),
        Case::raw(
            "empty numbers",
            Same,
            &[
                data(),
                file()
                    .set(100, 8, "")
                    .set(108, 8, "")
                    .set(116, 8, "")
                    .set(136, 12, ""),
            ],
        ),
        Case::raw(
            "numbers among spaces",
            Same,
            &[data(), file().set(108, 8, "  17 \0 ")],
        ),
        Case::raw(
            "a number behind a zero",
            Same,
            &[data(), file().set(108, 8, "17\x00777")],
        ),
        Case::raw(
            "a number with a sign",
            OnlyPodmanRefuses,
            &[data(), file().set(108, 8, "+17\0")],
        ),
        Case::raw(
            "a type nobody knows",
            PodmanRefuses,
            &[data(), file().set(156, 1, "Z")],
        ),
        Case::raw(
            "a type nobody knows without content",
            PodmanRefuses,
            &[data(), Raw::new("data/f", b'Z')],
        ),
        Case::raw(
            "a dump directory",
            PodmanRefuses,
            &[data(), gnu(Raw::new("data/d/", b'D'))],
        ),
        Case::raw(
            "a volume header",
            PodmanRefuses,
            &[gnu(Raw::new("volume", b'V')), data()],
        ),
        Case::raw(
            "a multi-volume part",
            PodmanRefuses,
            &[data(), gnu(file()).set(156, 1, "M")],
        ),
        Case::raw(
            "a contiguous file",
            OnlyPodmanRefuses,
            &[data(), file().set(156, 1, "7")],
        ),
        Case::raw("an old file", Same, &[data(), file().set(156, 1, "\0")]),
        Case::raw("an old directory", Same, &[data(), Raw::new("data/d/", 0)]),
        Case::raw(
            "an old directory with content",
            OnlyPodmanRefuses,
            &[data(), Raw::file("data/d/", "content").set(156, 1, "\0")],
        ),
        Case::raw(
            "a file whose name ends in a slash",
            Same,
            &[data(), Raw::new("data/d/", b'0')],
        ),
        Case::raw(
            "a file with content whose name ends in a slash",
            Same,
            &[data(), Raw::file("data/d/", "content")],
        ),
        Case::raw(
            "a ustar prefix",
            Same,
            &[data(), plain("f").set(345, 155, "data")],
        ),
        Case::raw("a v7 header", Same, &[data(), file().set(257, 8, "")]),
        Case::raw(
            "a v7 header with a prefix",
            Same,
            &[data(), file().set(257, 8, "").set(345, 155, "data")],
        ),
        Case::raw(
            "a magic nobody knows",
            Same,
            &[data(), file().set(257, 8, "magic!!\0")],
        ),
        Case::raw(
            "a GNU header with times where ustar has a prefix",
            Same,
            &[data(), gnu(file()).set(345, 12, "14000000000\0")],
        ),
        Case::raw(
            "a star header",
            Same,
            &[data(), file().set(508, 4, "tar\0")],
        ),
        Case::raw(
            "the PAX version of ustar",
            Same,
            &[data(), file().set(257, 8, "ustar\x0001")],
        ),
    ];
    judge(&cases)
}

#[test]
fn archives_that_end_badly_are_read_as_podman_reads_them_or_are_refused() -> Result<()> {
    let whole = joined(&[data(), plain("data/f")]);
    let ends = |tail: &[u8]| [whole.as_slice(), tail].concat();
    let second = plain("data/second").bytes();
    let mut damaged = ends(&END);
    damaged[512 + 3] ^= 1;
    let mut signed = Raw::file(b"data/\xff\xff\xff\xff", "content").bytes();
    // The sum of the bytes as numbers with a sign, as some old programs made it.
    let sum: i64 = signed[..512]
        .iter()
        .enumerate()
        .map(|(at, &byte)| {
            if (148..156).contains(&at) {
                32
            } else {
                i64::from(byte as i8)
            }
        })
        .sum();
    signed[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let cases = [
        Case::bytes("nothing", Same, Vec::new()),
        Case::bytes("the end alone", Same, END.to_vec()),
        Case::bytes("no end", Same, ends(&[])),
        Case::bytes("half an end", Same, ends(&[0; 512])),
        Case::bytes("a part of an end", PodmanRefuses, ends(&[0; 700])),
        Case::bytes("a part of half an end", PodmanRefuses, ends(&[0; 100])),
        Case::bytes("zeros behind the end", Same, ends(&vec![0; 20_480])),
        Case::bytes(
            "nonsense behind the end",
            Same,
            ends(&[&END[..], b"nonsense"].concat()),
        ),
        Case::bytes(
            "a file behind the end",
            Same,
            ends(&[&END[..], &second, &END[..]].concat()),
        ),
        Case::bytes(
            "a file behind half an end",
            OnlyPodmanRefuses,
            ends(&[&END[..512], &second, &END[..]].concat()),
        ),
        Case::bytes("nonsense", PodmanRefuses, vec![b'n'; 2048]),
        Case::bytes("a few bytes", PodmanRefuses, b"nonsense".to_vec()),
        Case::bytes("cut in a header", PodmanRefuses, whole[..700].to_vec()),
        Case::bytes("cut in a file", PodmanRefuses, whole[..1028].to_vec()),
        Case::bytes("cut in padding", OnlyWeRefuse(&[]), whole[..1100].to_vec()),
        Case::bytes("a header with a flipped bit", PodmanRefuses, damaged),
        Case::bytes(
            "a checksum of signed bytes",
            OnlyWeRefuse(&["checksum"]),
            [data().bytes(), signed, END.to_vec()].concat(),
        ),
        Case::of(
            "a file of nothing but a header",
            Same,
            &[Member::dir("data"), Member::file("data/empty", [])],
        ),
    ];
    judge(&cases)
}
