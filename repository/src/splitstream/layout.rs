//! The fixed parts of a splitstream: header and info block, to and from bytes.

use composefs_image::Algorithm;

use super::{ContentType, SplitstreamError};

const MAGIC: &[u8; 11] = b"SplitStream";
const VERSION: u8 = 0;
const BLOCK_BITS: u8 = 12;

pub(super) const HEADER_SIZE: u64 = 32;
pub(super) const INFO_SIZE: u64 = 80;

/// How many bytes from its start tell whether an object is a splitstream.
pub const SNIFF_LENGTH: usize = 32;

/// Whether an object that begins with these bytes, of which [`SNIFF_LENGTH`] suffice, is a splitstream
/// (not: whether it is a sound one).
pub fn is_splitstream(start: &[u8]) -> bool {
    start.starts_with(MAGIC) || start.get(18..29) == Some(MAGIC)
}

/// Byte offsets in the file, the end exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Range {
    pub(super) fn len(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// The range if it lies within a file of `size` bytes.
    fn within(self, size: u64, what: &'static str) -> Result<Self, SplitstreamError> {
        if self.start <= self.end && self.end <= size {
            Ok(self)
        } else {
            Err(SplitstreamError::Section(what))
        }
    }

    fn encode(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.start.to_le_bytes());
        out.extend_from_slice(&self.end.to_le_bytes());
    }
}

/// The info block: where everything is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Info {
    pub(super) stream_refs: Range,
    pub(super) object_refs: Range,
    pub(super) stream: Range,
    pub(super) named_refs: Range,
    pub(super) content_type: ContentType,
    pub(super) total_size: u64,
}

/// The header and info block that today's writers produce.
pub(super) fn encode(algorithm: Algorithm, info: &Info) -> Vec<u8> {
    let mut out = Vec::with_capacity((HEADER_SIZE + INFO_SIZE) as usize);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&[VERSION, 0, 0, algorithm.kernel_id(), BLOCK_BITS]);
    Range {
        start: HEADER_SIZE,
        end: HEADER_SIZE + INFO_SIZE,
    }
    .encode(&mut out);
    info.stream_refs.encode(&mut out);
    info.object_refs.encode(&mut out);
    info.stream.encode(&mut out);
    info.named_refs.encode(&mut out);
    out.extend_from_slice(info.content_type.as_bytes());
    out.extend_from_slice(&info.total_size.to_le_bytes());
    out
}

/// Reads a header, today's or the one that bootc wrote up to 1.15; returns where the info block is, in
/// a file of `size` bytes.
pub(super) fn decode_header(
    header: &[u8; HEADER_SIZE as usize],
    algorithm: Algorithm,
    size: u64,
) -> Result<Range, SplitstreamError> {
    let mut fields = Fields(header);
    let (info, version, found, block_bits);
    if header.starts_with(MAGIC) {
        fields.skip(MAGIC.len());
        version = fields.byte();
        fields.skip(2);
        found = fields.byte();
        block_bits = fields.byte();
        info = fields.range();
    } else if is_splitstream(header) {
        info = fields.range();
        fields.skip(2 + MAGIC.len());
        version = fields.byte();
        found = fields.byte();
        block_bits = fields.byte();
    } else {
        return Err(SplitstreamError::Magic);
    }
    if version != VERSION {
        return Err(SplitstreamError::Version(version));
    }
    if block_bits != BLOCK_BITS {
        return Err(SplitstreamError::BlockSize(block_bits));
    }
    if found != algorithm.kernel_id() {
        return Err(SplitstreamError::Algorithm {
            found,
            expected: algorithm,
        });
    }
    let info = info.within(size, "info")?;
    if info.len() < INFO_SIZE {
        return Err(SplitstreamError::Section("info"));
    }
    Ok(info)
}

/// Reads an info block, in a file of `size` bytes.
pub(super) fn decode_info(
    info: &[u8; INFO_SIZE as usize],
    algorithm: Algorithm,
    size: u64,
) -> Result<Info, SplitstreamError> {
    let mut fields = Fields(info);
    let whole = |range: Range, what| {
        let range = range.within(size, what)?;
        if range.len().is_multiple_of(algorithm.digest_len() as u64) {
            Ok(range)
        } else {
            Err(SplitstreamError::Section(what))
        }
    };
    Ok(Info {
        stream_refs: whole(fields.range(), "stream refs")?,
        object_refs: whole(fields.range(), "object refs")?,
        stream: fields.range().within(size, "stream")?,
        named_refs: fields.range().within(size, "named refs")?,
        content_type: ContentType::from_bytes(fields.array()),
        total_size: u64::from_le_bytes(fields.array()),
    })
}

/// Takes fields off the front of a fixed-size block; zeros beyond its end, which nobody asks for.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk() {
            Some((field, rest)) => {
                self.0 = rest;
                *field
            }
            None => [0; N],
        }
    }

    fn byte(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    fn range(&mut self) -> Range {
        Range {
            start: u64::from_le_bytes(self.array()),
            end: u64::from_le_bytes(self.array()),
        }
    }

    fn skip(&mut self, count: usize) {
        self.0 = self.0.get(count..).unwrap_or_default();
    }
}
