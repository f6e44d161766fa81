//! Splitstreams, as anyone can have written them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use repository::Algorithm;
use repository::splitstream::{Piece, Reader};

/// More than this of one stream is a decompression bomb, which takes time, not memory.
const ENOUGH: usize = 1 << 20;

fuzz_target!(|data: &[u8]| {
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        read(data, algorithm);
    }
    // Compression keeps a fuzzer from finding its way to the chunks, so it is done for it.
    if let Some((split, rest)) = data.split_first_chunk::<2>()
        && let Some((refs, rest)) = rest.split_at_checked(usize::from(split[0]) * 32)
        && let Some((named, chunks)) = rest.split_at_checked(usize::from(split[1]))
    {
        read(&splitstream(refs, named, chunks), Algorithm::Sha256);
    }
});

fn read(data: &[u8], algorithm: Algorithm) {
    let Ok(mut reader) = Reader::new(data, algorithm, None) else {
        return;
    };
    let _ = reader.named_refs();
    reader
        .stream_refs()
        .chain(reader.object_refs())
        .take_while(Result::is_ok)
        .for_each(drop);
    let mut buffer = [0; 4096];
    let mut total = 0;
    while let Ok(Some(piece)) = reader.next_piece() {
        if let Piece::Inline(_) = piece {
            while let Ok(count @ 1..) = reader.read_inline(&mut buffer) {
                total += count;
                if total > ENOUGH {
                    return;
                }
            }
        }
        total += 8;
        if total > ENOUGH {
            return;
        }
    }
}

/// A splitstream with these sections ("composefs repository format, splitstream").
fn splitstream(refs: &[u8], named: &[u8], chunks: &[u8]) -> Vec<u8> {
    let pack = |bytes| zstd::encode_all(bytes, 1).expect("memory takes everything");
    let (named, chunks) = (pack(named), pack(chunks));
    let mut file = b"SplitStream\0\0\0\x01\x0c".to_vec();
    let mut position = 32_u64;
    let mut range = |length: usize| {
        let start = position;
        position += length as u64;
        [start.to_le_bytes(), position.to_le_bytes()].concat()
    };
    let info = range(80);
    let refs_range = range(refs.len());
    let named_range = range(named.len());
    let chunks_range = range(chunks.len());
    file.extend(info);
    // Both reference tables are the same one.
    for part in [&refs_range, &refs_range, &chunks_range, &named_range] {
        file.extend(part);
    }
    file.extend([0; 16]);
    file.extend(refs);
    file.extend(named);
    file.extend(chunks);
    file
}
