use super::*;
use crate::fsverity::Algorithm;
use crate::generator::{Limits, Random, Recipe};
use crate::tree::{Content, Kind, Timestamp, Tree};

const ROOT: &str = "/ 0 40755 2 0 0 0 0.0 - - -\n";
const DIGEST: &str = "83334d2a5a79c35ecec7b206551570ffb7c723db2fb0ea790e9f63bfb4992858";
const BOTH: [Dialect; 2] = [Dialect::C, Dialect::ComposefsRs];

fn dump(tree: &Tree) -> Vec<u8> {
    let mut dump = Vec::new();
    write_dump(tree, &mut dump).unwrap();
    dump
}

fn read(text: &str, dialect: Dialect) -> Result<Tree, LineError> {
    match read_dump(text.as_bytes(), dialect) {
        Ok(tree) => Ok(tree),
        Err(DumpError::Line { problem, .. }) => Err(problem),
        Err(error) => panic!("{error}"),
    }
}

/// Reads the root and these lines with both dialects.
fn read_both(lines: &str) -> [Result<Tree, LineError>; 2] {
    BOTH.map(|dialect| read(&format!("{ROOT}{lines}"), dialect))
}

fn kind<'t>(tree: &'t Tree, path: &str) -> Kind<'t> {
    tree.kind(tree.lookup_path(path.as_bytes()).unwrap())
}

#[test]
fn a_dumpfile_gives_the_tree_that_was_written() {
    for seed in 0..400 {
        for dialect in BOTH {
            let algorithm = [Algorithm::Sha256, Algorithm::Sha512][seed as usize % 2];
            let mut tree = Recipe::random(seed, Limits { dialect, algorithm }).build();
            if dialect == Dialect::ComposefsRs {
                // It cannot read what it writes for them.
                let ids: Vec<_> = tree.walk().map(|visit| visit.id).collect();
                for id in ids {
                    tree.change_metadata(id, |metadata| {
                        metadata.mtime.sec = metadata.mtime.sec.max(0);
                    });
                }
            }
            let text = dump(&tree);
            let read = read_dump(&*text, dialect).unwrap();
            assert!(read == tree, "{dialect:?}, seed {seed}");
            assert_eq!(dump(&read), text);
        }
    }
}

#[test]
fn every_kind_of_line_is_written_as_the_format_says() {
    let text = format!(
        "/ 0 40755 3 1 2 0 -5.7 - - - user.a\\x3db=\\x3d-\n\
         /\\x20\\xff 0 60644 1 0 0 259 0.0 - - -\n\
         /- 1 100644 1 0 0 0 0.0 - \\x2d -\n\
         /dir 0 40755 2 0 0 0 0.0 - - - user.empty=\n\
         /dir/external 70 100644 2 0 0 0 0.0 {0}/{1} - {2}\n\
         /dir/link 1 120777 1 0 0 0 0.0 \\x2d - -\n\
         /empty 0 100644 1 0 0 0 0.0 - - -\n\
         /hard 70 @100644 2 0 0 0 0.0 /dir/external - -\n\
         /sparse 70 100644 1 0 0 0 0.0 - - -\n",
        &DIGEST[..2],
        &DIGEST[2..],
        DIGEST
    );
    let tree = read(&text, Dialect::C).unwrap();
    assert_eq!(String::from_utf8(dump(&tree)).unwrap(), text);
}

#[test]
fn the_last_newline_may_be_missing() {
    for dialect in BOTH {
        assert!(read(ROOT.trim_end(), dialect).is_ok());
    }
}

#[test]
fn fraction_of_a_second_is_a_number_of_nanoseconds() {
    let [c, rs] = read_both("/a 0 10644 1 0 0 0 1.5 - - -\n");
    for tree in [c.unwrap(), rs.unwrap()] {
        let id = tree.lookup_path(b"/a").unwrap();
        assert_eq!(tree.metadata(id).mtime, Timestamp { sec: 1, nsec: 5 });
    }
}

#[test]
fn both_dialects_refuse_damaged_lines() {
    let lines: &[(&str, LineError)] = &[
        ("/a", LineError::Missing(Field::Size)),
        ("/a x 100644 1 0 0 0 0.0 - - -", number(Field::Size, "x")),
        (
            "/a 0 10x644 1 0 0 0 0.0 - - -",
            number(Field::Mode, "10x644"),
        ),
        (
            "/a 0 1000644 1 0 0 0 0.0 - - -",
            number(Field::Mode, "1000644"),
        ),
        ("/a 0 100644 -1 0 0 0 0.0 - - -", number(Field::Nlink, "-1")),
        (
            "/a 0 100644 1 4294967296 0 0 0.0 - - -",
            number(Field::Uid, "4294967296"),
        ),
        ("/a 0 100644 1 0  0 0.0 - - -", number(Field::Gid, "")),
        (
            "/a 0 20644 1 0 0 4294967296 0.0 - - -",
            number(Field::Rdev, "4294967296"),
        ),
        ("/a 0 100644 1 0 0 0 0 - - -", number(Field::Mtime, "0")),
        (
            "/a 0 100644 1 0 0 0 0.-1 - - -",
            number(Field::Mtime, "0.-1"),
        ),
        ("/a 0 644 1 0 0 0 0.0 - - -", LineError::FileType(0o644)),
        (
            "/a\\y 0 100644 1 0 0 0 0.0 - - -",
            LineError::Escape(Field::Path),
        ),
        (
            "/a 1 100644 1 0 0 0 0.0 - \\x4 -",
            LineError::Escape(Field::Content),
        ),
        ("/a\0 0 100644 1 0 0 0 0.0 - - -", LineError::Nul),
        ("/ 0 40755 2 0 0 0 0.0 - - -", LineError::Root),
        (
            "/a/b 0 100644 1 0 0 0 0.0 - - -",
            LineError::NoParent(b"/a/b".as_slice().into()),
        ),
        (
            "/a 0 10644 1 0 0 0 0.0 - - -\n/a/b 0 10644 1 0 0 0 0.0 - - -",
            LineError::NoParent(b"/a/b".as_slice().into()),
        ),
        (
            "/a 0 10644 1 0 0 0 0.0 - - -\n/a 0 10644 1 0 0 0 0.0 - - -",
            LineError::Duplicate(b"/a".as_slice().into()),
        ),
        (
            "/a 0 @100644 1 0 0 0 0.0 /b - -",
            LineError::HardLink(b"/b".as_slice().into()),
        ),
        (
            "/a 0 @100644 1 0 0 0 0.0 / - -",
            LineError::HardLink(b"/".as_slice().into()),
        ),
        (
            "/a 0 @100644 1 0 0 0 0.0 - - -",
            LineError::Missing(Field::Payload),
        ),
        (
            "/a 1 100644 1 0 0 0 0.0 x - abc",
            LineError::Digest(DigestError::HexLength(3)),
        ),
        ("/a 0 10644 1 0 0 0 0.0 - - - user.a", LineError::Xattr),
        ("/a 0 10644 1 0 0 0 0.0 - - -  user.a=", LineError::Xattr),
    ];
    for (lines, problem) in lines {
        for result in read_both(lines) {
            assert_eq!(result.unwrap_err(), *problem, "{lines}");
        }
    }
    for dialect in BOTH {
        assert_eq!(
            read("/a 0 40755 2 0 0 0 0.0 - - -", dialect).unwrap_err(),
            LineError::Root
        );
        assert!(matches!(
            read_dump(b"".as_slice(), dialect).unwrap_err(),
            DumpError::Empty
        ));
    }
}

fn number(field: Field, text: &str) -> LineError {
    LineError::Number {
        field,
        text: text.as_bytes().into(),
    }
}

#[test]
fn errors_name_the_line() {
    let text = format!("{ROOT}/a 0 10644 1 0 0 0 0.0 - - -\n/b\n");
    let error = read_dump(text.as_bytes(), Dialect::C).unwrap_err();
    assert!(
        error.to_string().starts_with("line 3 of the dumpfile: "),
        "{error}"
    );
    // Also when it is found at the end.
    let text = format!("{ROOT}/a 0 @100644 1 0 0 0 0.0 /b - -\n/c 0 10644 1 0 0 0 0.0 - - -\n");
    let error = read_dump(text.as_bytes(), Dialect::C).unwrap_err();
    assert!(
        error.to_string().starts_with("line 2 of the dumpfile: "),
        "{error}"
    );
}

#[test]
fn what_only_the_c_tools_take_is_refused_for_composefs_rs() {
    let external = format!("/a 70 100644 1 0 0 0 0.0 some/where - {DIGEST}");
    let content = format!("/a 3 100644 1 0 0 0 0.0 - abc {DIGEST}");
    let digest_alone = format!("/a 3 100644 1 0 0 0 0.0 - - {DIGEST}");
    let long = "x".repeat(2000);
    let large = format!("/a 2000 100644 1 0 0 0 0.0 - {long} -");
    let target = format!("/a 0 120777 1 0 0 0 0.0 {long} - -");
    for lines in [
        "a 0 10644 1 0 0 0 0.0 - - -",
        "/a 0 10644 1 0 0 0 0.0",
        "//a 0 10644 1 0 0 0 0.0 - - -",
        "/a 0 @100644 1 0 0 0 0.0 /b - -\n/b 0 10644 2 0 0 0 0.0 - - -",
        "/b 0 10644 2 0 0 0 0.0 - - -\n/a 0 @100644 1 0 0 0 0.0 b - -",
        "/a 0 10644 1 0 0 5 0.0 - - -",
        "/a 0 10644 1 0 0 0 -1.0 - - -",
        "/a 0 10644 1 0 0 0 1.1000000000 - - -",
        "/a 70 100644 1 0 0 0 0.0 some/where - -",
        "/a 0 10644 1 0 0 0 0.0 - - - ",
        "/a 0 10644 1 0 0 0 0.0 - - - user.a=1 ",
        "/a 0 100644 1 0 0 0 0.0 some/where - -",
        "/a 0 20000 2 0 0 0 0.0 - - -\n/b 0 @20000 2 0 0 0 0.0 /a - -",
        &content,
        &digest_alone,
        &large,
        &target,
    ] {
        let [c, rs] = read_both(lines);
        assert!(c.is_ok(), "{lines}: {c:?}");
        assert!(rs.is_err(), "{lines}");
    }
    let mut bytes = format!("{ROOT}/a 0 10644 1 0 0 0 0.0 - - -\n").into_bytes();
    bytes[ROOT.len() + 1] = 0xff;
    assert!(read_dump(&*bytes, Dialect::C).is_ok());
    assert!(read_dump(&*bytes, Dialect::ComposefsRs).is_err());

    let [c, rs] = read_both(&external);
    let path = |tree: &Tree| match kind(tree, "/a") {
        Kind::Regular(Content::External { path, .. }) => path.map(<[u8]>::to_vec),
        _ => None,
    };
    assert_eq!(path(&c.unwrap()).as_deref(), Some(b"some/where".as_slice()));
    assert_eq!(path(&rs.unwrap()), None);
}

#[test]
fn what_only_composefs_rs_takes_is_refused_for_the_c_tools() {
    for lines in [
        "/a 5 100644 1 0 0 0 0.0 - abc -",
        "\n/a 0 10644 1 0 0 0 0.0 - - -",
        "/a 0 10644 1 0 0 0 0.0 - - - =x",
    ] {
        let [c, rs] = read_both(lines);
        assert!(c.is_err(), "{lines}");
        assert!(rs.is_ok(), "{lines}: {rs:?}");
    }
}

#[test]
fn dialects_disagree_about_who_wins() {
    let [c, rs] = read_both(&format!(
        "/a 3 100644 1 0 0 0 0.0 {}/{} abc -\n\
         /b 0 10644 7 0 0 0 0.0 - - - user.a=2 user.a=1\n",
        &DIGEST[..2],
        &DIGEST[2..]
    ));
    let (c, rs) = (c.unwrap(), rs.unwrap());
    assert_eq!(kind(&c, "/a"), Kind::Regular(Content::Inline(b"abc")));
    assert!(matches!(
        kind(&rs, "/a"),
        Kind::Regular(Content::External { size: 3, .. })
    ));
    for (tree, nlink, value) in [(&c, 7, b"1"), (&rs, 1, b"2")] {
        let id = tree.lookup_path(b"/b").unwrap();
        assert_eq!(tree.nlink(id), nlink);
        assert_eq!(tree.xattr(id, b"user.a"), Some(value.as_slice()));
    }
}

#[test]
fn hard_links_to_hard_links_lead_to_the_same_inode_in_any_order() {
    let text = format!(
        "{ROOT}/c 0 @100644 3 0 0 0 0.0 /b - -\n\
         /b 0 @100644 3 0 0 0 0.0 /a - -\n\
         /a 3 100644 3 0 0 0 0.0 - abc -\n"
    );
    let tree = read(&text, Dialect::C).unwrap();
    let ids = ["/a", "/b", "/c"].map(|path| tree.lookup_path(path.as_bytes()));
    assert_eq!(ids, [ids[0]; 3]);
    assert_eq!(tree.nlink(ids[0].unwrap()), 3);
    let circle =
        format!("{ROOT}/a 0 @100644 1 0 0 0 0.0 /b - -\n/b 0 @100644 1 0 0 0 0.0 /a - -\n");
    assert!(matches!(
        read(&circle, Dialect::C),
        Err(LineError::HardLink(_))
    ));
}

#[test]
fn a_line_without_end_takes_bounded_memory() {
    let endless = std::io::BufReader::new(std::io::repeat(b'x'));
    assert!(matches!(
        read_dump(endless, Dialect::C).unwrap_err(),
        DumpError::Line {
            line: 1,
            problem: LineError::TooLong
        }
    ));
}

#[test]
fn damaged_dumpfiles_give_errors_or_trees() {
    let mut random = Random::new(7);
    for seed in 0..200 {
        let dialect = BOTH[seed as usize % 2];
        let algorithm = Algorithm::Sha256;
        let mut text = dump(&Recipe::random(seed, Limits { dialect, algorithm }).build());
        for _ in 0..20 {
            let place = random.below(text.len() as u64) as usize;
            text[place] = match random.below(3) {
                0 => b' ',
                1 => *random.pick(b"/@-.\\x0189\n="),
                _ => random.next() as u8,
            };
            let _ = read_dump(&*text, dialect);
        }
    }
}
