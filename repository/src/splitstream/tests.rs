//! Round trips, the bytes themselves, and hostile files.

use std::io::Write;

use composefs_image::{Algorithm, VerityDigest, verity_digest};

use super::layout::{HEADER_SIZE, INFO_SIZE};
use super::*;
use crate::batch::Batch;
use crate::testing::TestRepository;

/// A splitstream with two external pieces, one of them twice, and a named reference.
fn example(batch: &Batch<'_>) -> (VerityDigest, Vec<u8>, [VerityDigest; 3]) {
    let a = batch.store_bytes(&[b'a'; 100]).unwrap().0;
    let b = batch.store_bytes(&[b'b'; 200]).unwrap().0;
    let config = batch.store_bytes(b"{}").unwrap().0;
    let mut writer = Writer::new(batch, ContentType::OCI_LAYER).unwrap();
    writer.inline(b"head").unwrap();
    writer.inline(b"er").unwrap();
    writer.external(&b, 200).unwrap();
    writer.external(&a, 100).unwrap();
    writer.inline(b"middle").unwrap();
    writer.external(&b, 200).unwrap();
    writer.named_ref("z:z", &config).unwrap();
    writer.named_ref("a", &config).unwrap();
    assert_eq!(writer.total_size(), 512);
    let (digest, _) = writer.finish().unwrap();
    let content = batch.read_object(&digest, 1 << 20).unwrap();
    assert_eq!(verity_digest(Algorithm::Sha256, &content), digest);
    (digest, content, [a, b, config])
}

fn with_example<T>(use_it: impl FnOnce(&[u8], [VerityDigest; 3]) -> T) -> T {
    let test = TestRepository::new();
    let repository = test.open();
    let batch = repository.batch().unwrap();
    let (_, content, digests) = example(&batch);
    use_it(&content, digests)
}

fn read(content: &[u8]) -> Result<Reader<&[u8]>, SplitstreamError> {
    Reader::new(content, Algorithm::Sha256, None)
}

/// Reads everything that can be read of a stream.
fn read_all(content: &[u8]) -> Result<Vec<(Piece, Vec<u8>)>, SplitstreamError> {
    let mut reader = read(content)?;
    reader.named_refs()?;
    for digest in reader.stream_refs().chain(reader.object_refs()) {
        digest?;
    }
    let mut pieces = Vec::new();
    while let Some(piece) = reader.next_piece()? {
        let mut inline = Vec::new();
        let mut buffer = [0; 3];
        loop {
            let count = reader.read_inline(&mut buffer)?;
            if count == 0 {
                break;
            }
            inline.extend_from_slice(&buffer[..count]);
        }
        pieces.push((piece, inline));
    }
    Ok(pieces)
}

#[test]
fn what_is_written_is_read_back_with_inline_data_merged() {
    with_example(|content, [a, b, config]| {
        let reader = read(content).unwrap();
        assert_eq!(reader.content_type(), ContentType::OCI_LAYER);
        assert_eq!(reader.total_size(), 512);
        let object_refs: Vec<_> = reader.object_refs().map(Result::unwrap).collect();
        assert_eq!(object_refs, [b, a]);
        let stream_refs: Vec<_> = reader.stream_refs().map(Result::unwrap).collect();
        assert_eq!(stream_refs, [config]);
        let expected = NamedRefs::from([("a".into(), config), ("z:z".into(), config)]);
        assert_eq!(reader.named_refs().unwrap(), expected);
        assert_eq!(
            read_all(content).unwrap(),
            [
                (Piece::Inline(6), b"header".to_vec()),
                (Piece::External(b), Vec::new()),
                (Piece::External(a), Vec::new()),
                (Piece::Inline(6), b"middle".to_vec()),
                (Piece::External(b), Vec::new()),
            ]
        );
    });
}

#[test]
fn the_logical_stream_comes_back_whole() {
    let test = TestRepository::new();
    let repository = test.open();
    let batch = repository.batch().unwrap();
    let (digest, ..) = example(&batch);
    let mut out = Vec::new();
    assert_eq!(copy_stream(&batch, &digest, &mut out).unwrap(), 512);
    let expected = [
        b"header".as_slice(),
        &[b'b'; 200],
        &[b'a'; 100],
        b"middle",
        &[b'b'; 200],
    ]
    .concat();
    assert_eq!(out, expected);
}

#[test]
fn the_parts_stand_where_the_format_says() {
    with_example(|content, [a, b, config]| {
        assert_eq!(&content[..16], b"SplitStream\0\0\0\x01\x0c");
        assert_eq!(content[16..24], 32_u64.to_le_bytes());
        assert_eq!(content[24..32], 112_u64.to_le_bytes());
        assert_eq!(content[32..40], 112_u64.to_le_bytes());
        assert_eq!(&content[96..104], b"ocilayer");
        assert_eq!(content[104..112], 512_u64.to_le_bytes());
        let refs = [config.as_bytes(), b.as_bytes(), a.as_bytes()].concat();
        assert_eq!(&content[112..208], refs);
        assert_eq!(&content[208..214], b"\x28\xb5\x2f\xfd\x00\x58");
    });
}

#[test]
fn a_stream_without_named_references_has_the_empty_frame() {
    let test = TestRepository::new();
    let repository = test.open();
    let batch = repository.batch().unwrap();
    let mut writer = Writer::new(&batch, ContentType::OCI_BLOB).unwrap();
    writer.inline(b"x").unwrap();
    let (digest, _) = writer.finish().unwrap();
    let content = batch.read_object(&digest, 1 << 20).unwrap();
    let empty = b"\x28\xb5\x2f\xfd\x20\x00\x01\x00\x00";
    assert_eq!(content.get(112..121), Some(empty.as_slice()));
}

#[test]
fn inline_data_larger_than_memory_is_one_chunk() {
    let test = TestRepository::new();
    let repository = test.open();
    let batch = repository.batch().unwrap();
    let mut writer = Writer::new(&batch, ContentType::OCI_LAYER).unwrap();
    let mut state = 1_u32;
    let noise: Vec<u8> = (0..3_000_000)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect();
    for part in noise.chunks(70_001) {
        writer.inline(part).unwrap();
    }
    let (digest, _) = writer.finish().unwrap();
    let content = batch.read_object(&digest, 1 << 24).unwrap();
    assert_eq!(
        read_all(&content).unwrap(),
        [(Piece::Inline(3_000_000), noise)]
    );
}

#[test]
fn the_old_header_is_read() {
    with_example(|content, _| {
        let mut old = content.to_vec();
        old[..16].copy_from_slice(&content[16..32]);
        old[16..18].fill(0);
        old[18..29].copy_from_slice(b"SplitStream");
        old[29..32].copy_from_slice(&[0, 1, 12]);
        assert!(is_splitstream(&old));
        assert_eq!(read_all(&old).unwrap(), read_all(content).unwrap());
    });
}

#[test]
fn another_content_type_or_algorithm_is_refused() {
    with_example(|content, _| {
        let expected = Some(ContentType::OCI_CONFIG);
        assert!(matches!(
            Reader::new(content, Algorithm::Sha256, expected),
            Err(SplitstreamError::ContentType { .. })
        ));
        assert!(matches!(
            Reader::new(content, Algorithm::Sha512, None),
            Err(SplitstreamError::Algorithm { found: 1, .. })
        ));
    });
}

#[test]
fn every_truncation_is_an_error() {
    with_example(|content, _| {
        for len in 0..content.len() {
            assert!(read_all(&content[..len]).is_err(), "{len} bytes");
        }
    });
}

#[test]
fn no_changed_byte_makes_the_reader_panic() {
    with_example(|content, _| {
        for position in 0..content.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut changed = content.to_vec();
                changed[position] = value;
                let _ = read_all(&changed);
            }
        }
    });
}

/// The example with another stream section, made of these chunks.
fn with_chunks(content: &[u8], chunks: &[u8]) -> Vec<u8> {
    let start = u64::from_le_bytes(content[64..72].try_into().unwrap()) as usize;
    let mut changed = content[..start].to_vec();
    let mut encoder = zstd::stream::write::Encoder::new(&mut changed, 0).unwrap();
    encoder.write_all(chunks).unwrap();
    encoder.finish().unwrap();
    let end = changed.len() as u64;
    changed[72..80].copy_from_slice(&end.to_le_bytes());
    changed
}

#[test]
fn impossible_chunks_are_errors() {
    with_example(|content, _| {
        let index = with_chunks(content, &2_i64.to_le_bytes());
        assert!(matches!(
            read_all(&index),
            Err(SplitstreamError::ObjectIndex { index: 2, count: 2 })
        ));
        let endless = with_chunks(content, &i64::MIN.to_le_bytes());
        assert!(matches!(
            read_all(&endless),
            Err(SplitstreamError::Truncated)
        ));
        let partial = with_chunks(content, &[0; 7]);
        assert!(matches!(
            read_all(&partial),
            Err(SplitstreamError::Truncated)
        ));
        assert_eq!(read_all(&with_chunks(content, &[])).unwrap(), []);
    });
}

#[test]
fn sections_outside_the_file_are_errors() {
    with_example(|content, _| {
        for (field, name) in [(32, "stream refs"), (48, "object refs"), (64, "stream")] {
            for (start, end) in [(0, u64::MAX), (64, 32), (u64::MAX, u64::MAX)] {
                let mut changed = content.to_vec();
                changed[field..field + 8].copy_from_slice(&u64::to_le_bytes(start));
                changed[field + 8..field + 16].copy_from_slice(&u64::to_le_bytes(end));
                match read_all(&changed) {
                    Err(SplitstreamError::Section(section)) => assert_eq!(section, name),
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!(HEADER_SIZE + INFO_SIZE, 112);
    });
}

#[test]
fn malformed_named_references_are_errors() {
    for text in [
        "0:a",
        "a\0",
        "5:a\0",
        "-1:a\0",
        "0:a\0\0",
        ":a\0",
        "0:\u{0}x\0",
    ] {
        with_example(|content, _| {
            let mut changed = content.to_vec();
            let start = changed.len() as u64;
            changed.extend(zstd::encode_all(text.as_bytes(), 0).unwrap());
            let end = changed.len() as u64;
            changed[80..88].copy_from_slice(&start.to_le_bytes());
            changed[88..96].copy_from_slice(&end.to_le_bytes());
            assert!(
                matches!(
                    read(&changed).unwrap().named_refs(),
                    Err(SplitstreamError::NamedRefs)
                ),
                "{text:?}"
            );
        });
    }
}
