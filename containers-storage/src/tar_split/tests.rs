use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::*;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn read(lines: &str) -> Result<Vec<TarSplitEntry>, TarSplitError> {
    TarSplit::new(gzip(lines.as_bytes()).as_slice()).collect()
}

fn error(lines: &str) -> String {
    let error = read(lines).expect_err(lines);
    match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[test]
fn zstd_reads_as_gzip_does() {
    let lines = "{\"type\":2,\"payload\":\"AAEC\"}\n{\"type\":1,\"name\":\"a\"}\n";
    let zstd = zstd::encode_all(lines.as_bytes(), 3).unwrap();
    let entries: Vec<_> = TarSplit::new(zstd.as_slice())
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(entries, read(lines).unwrap());
    let cut = TarSplit::new(&zstd[..zstd.len() - 1]).collect::<Result<Vec<_>, _>>();
    assert!(matches!(cut, Err(TarSplitError::Read(_))), "{cut:?}");
}

#[test]
fn a_zstd_window_larger_than_podman_writes_is_refused() {
    // A frame header without a single segment whose window descriptor says 1 GiB, and an empty block.
    let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 20 << 3, 0x01, 0x00, 0x00];
    let entries = TarSplit::new(frame.as_slice()).collect::<Result<Vec<_>, _>>();
    assert!(
        matches!(entries, Err(TarSplitError::Read(_))),
        "{entries:?}"
    );
}

#[test]
fn the_crc_is_that_of_go() {
    let mut crc = ContentCrc::new();
    assert_eq!(crc.finish(), [0; 8]);
    crc.update(b"1234");
    crc.update(b"56789");
    assert_eq!(crc.finish(), 0xb909_56c7_75a4_1001_u64.to_be_bytes());
}

#[test]
fn lines_as_podman_writes_them_are_read() {
    // Taken from a store of podman 4.3.
    let lines = r#"{"type":2,"payload":"AAEC","position":0}
{"type":1,"name":"usr/a b\nc\u003c","size":13,"payload":"3xbeViSe3ek=","position":9}
{"type":1,"name_raw":"dXNyL//+","size":6,"payload":"MBh53Yw9sAA=","position":1}
{"type":1,"name":".wh.gone","payload":null,"position":7}
"#;
    let file = |name: &[u8], size, crc64| TarSplitEntry::File {
        name: name.to_vec().into(),
        size,
        crc64,
    };
    assert_eq!(
        read(lines).unwrap(),
        [
            TarSplitEntry::Segment(vec![0, 1, 2]),
            file(
                b"usr/a b\nc<",
                13,
                [0xdf, 0x16, 0xde, 0x56, 0x24, 0x9e, 0xdd, 0xe9]
            ),
            file(
                b"usr/\xff\xfe",
                6,
                [0x30, 0x18, 0x79, 0xdd, 0x8c, 0x3d, 0xb0, 0x00]
            ),
            file(b".wh.gone", 0, [0; 8]),
        ]
    );
}

#[test]
fn the_raw_name_takes_precedence() {
    let entries = read(r#"{"type":1,"name":"x","name_raw":"/w=="}"#).unwrap();
    assert!(matches!(&entries[0], TarSplitEntry::File { name, .. } if name.as_bytes() == b"\xff"));
}

#[test]
fn a_link_with_a_size_in_its_header_has_no_content() {
    let entries = read(r#"{"type":1,"name":"s","size":600,"payload":"AAAAAAAAAAA="}"#).unwrap();
    assert!(matches!(entries[0], TarSplitEntry::File { size: 0, .. }));
}

#[test]
fn lines_with_wrong_values_are_errors_that_name_the_line() {
    for (line, problem) in [
        ("nonsense", "line 2"),
        (r#"{"type":3}"#, "neither file nor segment"),
        (r#"{"type":1}"#, "no name"),
        (r#"{"type":1,"name":"a","size":-1}"#, "negative size"),
        (r#"{"type":1,"name":"a","size":1}"#, "8 bytes"),
        (
            r#"{"type":1,"name":"a","size":1,"payload":"AAAA"}"#,
            "8 bytes",
        ),
        (r#"{"type":2,"payload":"%"}"#, "not base64"),
        (r#"{"type":1,"name_raw":"%"}"#, "not base64"),
    ] {
        let error = error(&format!("{{\"type\":2,\"payload\":\"\"}}\n{line}\n"));
        assert!(
            error.contains(problem) && error.contains("line 2"),
            "{line}: {error}"
        );
    }
}

#[test]
fn names_that_clean_to_the_same_are_duplicates() {
    for (one, two) in [
        ("a", "a"),
        ("a/b", "./a//b/"),
        ("a", "b/../a"),
        ("/a", "/../a"),
    ] {
        let error = error(&format!(
            "{{\"type\":1,\"name\":\"{one}\"}}\n{{\"type\":1,\"name\":\"{two}\"}}\n"
        ));
        assert!(error.contains("twice"), "{one} {two}: {error}");
    }
    assert!(read("{\"type\":1,\"name\":\"a\"}\n{\"type\":1,\"name\":\"/a\"}\n").is_ok());
    assert!(read("{\"type\":1,\"name\":\"a\"}\n{\"type\":1,\"name\":\"../a\"}\n").is_ok());
}

#[test]
fn an_endless_line_is_refused_with_bounded_memory() {
    // Forty MiB without a line end take forty kilobytes of gzip.
    let bomb = gzip(&vec![b' '; 40 << 20]);
    assert!(bomb.len() < 1 << 20);
    let mut split = TarSplit::new(bomb.as_slice());
    assert!(matches!(
        split.next(),
        Some(Err(TarSplitError::TooLarge { .. }))
    ));
    assert!(split.buffer.capacity() <= 2 * (MAX_LINE + 1));
    assert!(split.next().is_none());
}

#[test]
fn a_stream_that_is_cut_off_or_followed_by_garbage_is_an_error() {
    let gz = gzip(b"{\"type\":2,\"payload\":\"AAEC\"}\n");
    for bytes in [
        &gz[..gz.len() - 1],
        &gz[..gz.len() - 8],
        &[&gz[..], b"garbage"].concat(),
    ] {
        let result: Result<Vec<_>, _> = TarSplit::new(bytes).collect();
        assert!(matches!(result, Err(TarSplitError::Read(_))), "{result:?}");
    }
    // Several members are one stream, as for Go.
    let two = [&gz[..], &gz[..]].concat();
    assert_eq!(TarSplit::new(two.as_slice()).count(), 2);
}

#[test]
fn names_resolve_beneath_the_layer_or_not_at_all() {
    let beneath = |name: &str| {
        EntryName::from(name)
            .beneath()
            .map(|b| String::from_utf8(b).unwrap())
    };
    assert_eq!(beneath("./usr//bin/./x/").as_deref(), Some("usr/bin/x"));
    assert_eq!(beneath("/../usr").as_deref(), Some("usr"));
    assert_eq!(beneath("a/../b").as_deref(), Some("b"));
    for name in ["..", "../a", "a/../../b", ".", "/", "", "a/..", "a\0"] {
        assert_eq!(beneath(name), None, "{name:?}");
    }
}

#[test]
fn a_name_is_shown_escaped() {
    let name = EntryName::from(b"a\n\x1b\xff\"".to_vec());
    assert_eq!(name.to_string(), r#""a\n\x1b\xff\"""#);
}
