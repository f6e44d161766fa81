//! Splitting a tar and reading its entries.

use super::*;
use composefs_image::Timestamp;

fn entries(tar: &Tar) -> Result<Vec<Entry>, String> {
    let split = split(&tar.0, usize::MAX).map_err(|error| error.to_string())?;
    read(split)
}

fn read(split: Split) -> Result<Vec<Entry>, String> {
    let mut reader = EntryReader::new(split);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry().map_err(|error| error.to_string())? {
        entries.push(entry);
    }
    Ok(entries)
}

fn one(member: &New<'_>) -> Result<Entry, String> {
    let mut entries = entries(&Tar::of(std::slice::from_ref(member)))?;
    assert_eq!(entries.len(), 1);
    Ok(entries.remove(0))
}

fn extension(flag: u8, content: &[u8]) -> New<'_> {
    New {
        content,
        ..new("././@LongLink", flag, 0)
    }
}

#[test]
fn payloads_above_64_bytes_of_regular_files_become_objects() {
    let content = [7; 513];
    for (size, flag, external) in [
        (0, b'0', false),
        (64, b'0', false),
        (65, b'0', true),
        (512, b'0', true),
        (513, b'0', true),
        (65, 0, true),
        (65, b'7', true),
        (65, b'5', false),
        (65, b'V', false),
    ] {
        let member = New {
            flag,
            ..file("a").content(&content[..size])
        };
        let tar = Tar::of(&[member, file("b")]);
        let split = split(&tar.0, usize::MAX).unwrap();
        let objects = split
            .pieces
            .iter()
            .filter(|piece| **piece == Piece::External(digest(&content[..size])))
            .count();
        assert_eq!(objects, usize::from(external), "size {size}, flag {flag}");
    }
}

#[test]
fn where_the_bytes_are_cut_makes_no_difference() {
    let big = [1; 1500];
    let members = [
        directory("d"),
        file("d/big").content(&big).xattr("user.a", "b\nc=d"),
        file("d/small").content(b"small"),
        extension(b'K', b"target\0"),
        symlink("d/link", "short"),
        file("last"),
    ];
    let tar = Tar::of(&members);
    let whole: Vec<_> = split(&tar.0, usize::MAX).unwrap().pieces.into();
    let expected = read(split(&tar.0, usize::MAX).unwrap()).unwrap();
    assert_eq!(expected.len(), 5);
    assert_eq!(expected[3].item, Item::Symlink(b"target".to_vec()));
    for portion in [1, 7, 511, 512, 513, 1024] {
        let pieces: Vec<_> = split(&tar.0, portion).unwrap().pieces.into();
        assert_eq!(pieces, whole, "{portion}");
        assert_eq!(read(split(&tar.0, portion).unwrap()).unwrap(), expected);
    }
}

#[test]
fn every_type_is_read_with_its_payload() {
    for (member, item) in [
        (directory("d"), Item::Directory),
        (
            file("f").content(b"abc"),
            Item::Regular(Body::Inline(b"abc".to_vec())),
        ),
        (link("l", "f"), Item::HardLink(b"f".to_vec())),
        (symlink("s", "../f"), Item::Symlink(b"../f".to_vec())),
        (new("c", b'3', 0o666).device(1, 3), Item::CharDevice(259)),
        (
            new("b", b'4', 0o660).device(259, 0x12345),
            Item::BlockDevice(0x1231_0345),
        ),
        (new("p", b'6', 0o600), Item::Fifo),
    ] {
        assert_eq!(one(&member).unwrap().item, item, "{}", member.path);
    }
    assert!(
        one(&new("x", b'V', 0))
            .unwrap_err()
            .contains("type flag 'V'")
    );
    assert!(
        one(&new("c", b'3', 0).device(4096, 0))
            .unwrap_err()
            .contains("4096:0 is out of range")
    );
}

#[test]
fn pax_records_and_long_names_override_headers() {
    let gnu = [extension(b'L', b"gnu-name\0"), file("header-name")];
    assert_eq!(entries(&Tar::of(&gnu)).unwrap()[0].path, b"gnu-name");

    let records = pax_records(&[
        ("path".into(), b"pax-name".to_vec()),
        ("linkpath".into(), b"pax-target".to_vec()),
    ]);
    let all = [
        extension(b'L', b"pax-name\0"),
        extension(b'K', b"pax-target\0and more"),
        extension(b'x', &records),
        symlink("header-name", "header-target"),
    ];
    let entry = &entries(&Tar::of(&all)).unwrap()[0];
    assert_eq!(entry.path, b"pax-name");
    assert_eq!(entry.item, Item::Symlink(b"pax-target".to_vec()));
}

#[test]
fn metadata_comes_from_header_and_pax() {
    let entry = one(&file("a").mode(0o104_755).owner(12, 34).mtime(-2)).unwrap();
    assert_eq!(entry.metadata.mode, 0o4755);
    assert_eq!((entry.metadata.uid, entry.metadata.gid), (12, 34));
    assert_eq!(entry.metadata.mtime, Timestamp { sec: -2, nsec: 0 });

    let entry = one(&file("a")
        .pax("uid", "4294967297")
        .pax("gid", "5")
        .pax("mtime", "7.25")
        .xattr("user.a", b"\xff\0")
        .pax("LIBARCHIVE.xattr.user.b", "x"))
    .unwrap();
    assert_eq!((entry.metadata.uid, entry.metadata.gid), (1, 5));
    let mtime = Timestamp {
        sec: 7,
        nsec: 250_000_000,
    };
    assert_eq!(entry.metadata.mtime, mtime);
    assert_eq!(entry.xattrs, [(b"user.a".to_vec(), b"\xff\0".to_vec())]);
}

#[test]
fn the_ustar_prefix_belongs_to_the_path_and_a_v7_header_has_none() {
    for (magic, path) in [
        (b"ustar\x0000", "pre/name"),
        (b"ustar  \0", "name"),
        (b"\0\0\0\0\0\0\0\0", "name"),
    ] {
        let mut block = file("name").header();
        block[257..265].copy_from_slice(magic);
        block[345..348].copy_from_slice(b"pre");
        checksum(&mut block);
        let tar = Tar(block.to_vec()).end();
        assert_eq!(entries(&tar).unwrap()[0].path, path.as_bytes());
    }
}

#[test]
fn a_v7_header_has_neither_devices_nor_extensions() {
    for (flag, error) in [(b'3', "without device number"), (b'x', "type flag 'x'")] {
        let mut block = new("name", flag, 0).header();
        block[257..265].fill(0);
        checksum(&mut block);
        assert!(
            entries(&Tar(block.to_vec()).end())
                .unwrap_err()
                .contains(error)
        );
    }
}

#[test]
fn global_headers_have_no_effect() {
    let records = pax_records(&[("path".into(), b"global".to_vec())]);
    let tar = Tar::of(&[extension(b'g', &records), file("local"), file("other")]);
    let paths: Vec<_> = entries(&tar).unwrap().into_iter().map(|e| e.path).collect();
    assert_eq!(paths, [b"local".to_vec(), b"other".to_vec()]);
}

#[test]
fn an_archive_may_end_without_its_end_or_with_more_than_that() {
    let mut tar = Tar::default();
    tar.add(&file("empty-last"));
    assert_eq!(entries(&tar).unwrap().len(), 1);
    tar.0.extend([0; BLOCK]);
    assert_eq!(entries(&tar).unwrap().len(), 1);
    tar.add(&file("behind a single zero block"));
    assert_eq!(entries(&tar).unwrap().len(), 2);
    let mut tar = tar.end();
    tar.0.extend(b"anything at all");
    assert_eq!(entries(&tar).unwrap().len(), 2);
    assert_eq!(entries(&Tar::default()).unwrap(), []);
}

#[test]
fn a_tar_that_is_cut_short_is_an_error() {
    let big = [1; 600];
    let tar = Tar::of(&[
        file("a").xattr("user.a", "b").content(b"small"),
        file("b").content(&big),
    ]);
    let members = tar.0.len() - 2 * BLOCK;
    // A header boundary is a place to end, except between a header and what it announces.
    let first_end = 4 * BLOCK;
    for end in 1..members {
        let result = split(&tar.0[..end], usize::MAX).map(drop);
        assert_eq!(result.is_ok(), end == first_end, "{end}: {result:?}");
    }
    assert!(split(&tar.0[..members], usize::MAX).is_ok());
}

#[test]
fn hostile_headers_are_refused_by_kind() {
    let kind = |members: &[New<'_>]| {
        split(&Tar::of(members).0, usize::MAX)
            .map(drop)
            .unwrap_err()
    };
    let long = vec![b'a'; METADATA_LIMIT as usize / 2 + 1];
    let records = |key: &str, value: &str| pax_records(&[(key.into(), value.into())]);
    for (members, expected) in [
        (
            vec![extension(b'L', b"a"), extension(b'L', b"b"), file("f")],
            TarErrorKind::DuplicateExtension,
        ),
        (
            vec![extension(b'L', &long), extension(b'K', &long), file("f")],
            TarErrorKind::MetadataLimit,
        ),
        (vec![extension(b'L', b"a")], TarErrorKind::DanglingExtension),
        (
            vec![
                extension(b'L', b"a\0"),
                extension(b'x', &records("path", "b")),
                file("f"),
            ],
            TarErrorKind::Contradiction { what: "path" },
        ),
        (vec![file("")], TarErrorKind::EmptyPath),
        (vec![new("s", b'S', 0)], TarErrorKind::Sparse),
        (
            vec![
                extension(b'x', &records("GNU.sparse.major", "1")),
                file("f"),
            ],
            TarErrorKind::Sparse,
        ),
        (
            vec![extension(b'x', &records("mtime", "-")), file("f")],
            TarErrorKind::PaxValue { key: "mtime" },
        ),
        (
            vec![extension(b'x', &records("size", "x")), file("f")],
            TarErrorKind::PaxValue { key: "size" },
        ),
        (
            vec![
                extension(b'x', &records("size", "18446744073709551615")),
                file("f"),
            ],
            TarErrorKind::Number { field: "size" },
        ),
        (
            vec![extension(b'x', b"99 path=a\n"), file("f")],
            TarErrorKind::PaxRecord,
        ),
    ] {
        assert_eq!(kind(&members).kind, expected);
    }

    let mut block = file("damaged").header();
    block[0] = b'D';
    let error = split(&block, usize::MAX).map(drop).unwrap_err();
    assert!(matches!(error.kind, TarErrorKind::Checksum { .. }));
    let mut block = file("name").header();
    block[124..128].copy_from_slice(b"size");
    checksum(&mut block);
    let error = split(&block, usize::MAX).map(drop).unwrap_err();
    assert_eq!(error.kind, TarErrorKind::Number { field: "size" });
    assert_eq!(error.path.as_deref(), Some(&b"name"[..]));
    assert!(
        error
            .to_string()
            .starts_with("name: byte 0 of the layer tar")
    );
}

#[test]
fn a_split_layer_whose_pieces_are_in_the_wrong_place_is_an_error() {
    let small = Tar::of(&[file("s").content(b"small")]).0;
    let big = Tar::of(&[file("b").content(&[1; 65])]).0;
    let object = Piece::External(digest(b"object"));
    let inline = |bytes: &[u8]| Piece::Inline(bytes.to_vec());
    for (pieces, error) in [
        (vec![object.clone()], "object in the place of a header"),
        (
            vec![inline(&small[..BLOCK]), object.clone()],
            "5 bytes are stored as an object",
        ),
        (vec![inline(&big)], "65 bytes are stored inline"),
        (vec![inline(&big[..BLOCK])], "tar ends inside a member"),
        (
            vec![inline(&small[..BLOCK + 2])],
            "tar ends inside a member",
        ),
        (
            vec![inline(&small[..BLOCK + 5]), object.clone()],
            "object in the place of a header",
        ),
        (
            vec![inline(&big[..BLOCK]), object.clone(), object],
            "object in the place of a header",
        ),
    ] {
        let split = Split {
            pieces: pieces.into(),
            current: Vec::new(),
            portion: usize::MAX,
        };
        let found = read(split).unwrap_err();
        assert!(found.contains(error), "{found}");
    }
}

#[test]
fn damage_anywhere_in_a_layer_is_an_error_or_another_layer() {
    let tar = Tar::of(&[
        directory("usr"),
        file("usr/big").content(&[5; 70]).xattr("user.a", "b"),
        extension(b'K', b"usr/big\0"),
        link("usr/other", "x"),
        symlink("usr/link", "big"),
        file("usr/.wh.link"),
    ]);
    let mut sound = 0;
    for position in 0..tar.0.len() {
        for flip in [1, 0x80] {
            let mut tar = tar.0.clone();
            tar[position] ^= flip;
            // A header whose sum is right gets further.
            let start = position / BLOCK * BLOCK;
            if let Some(block) = tar[start..].first_chunk_mut::<BLOCK>() {
                checksum(block);
            }
            for rules in [Rules::Rootfs(XattrFilter::AllowlistOnly), Rules::Podman] {
                let Ok(split) = split(&tar, usize::MAX) else {
                    continue;
                };
                let mut merge = Merge::new(rules);
                sound += usize::from(merge.add_layer(split).is_ok());
            }
        }
    }
    assert!(sound > 0);
}
