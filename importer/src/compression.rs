//! What a blob or an archive is compressed with, and how it is uncompressed while it is read.
//!
//! Like podman this goes by the first bytes, not by media types. Concatenated gzip members and zstd
//! frames are one stream, and the skippable frames of zstd:chunked are skipped.

use std::io::{self, BufReader, Chain, Cursor, Read};

use flate2::bufread::MultiGzDecoder;

/// Bytes that tell the compressions apart.
pub(crate) const MAGIC: usize = 6;

/// How much is read from below in one go, in bytes.
const CHUNK: usize = 64 * 1024;

/// log2 of the largest zstd window that is accepted, which is memory: the limit of the zstd tool.
const WINDOW_LOG_MAX: u32 = 27;

/// How something is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
    Unsupported(&'static str),
}

impl Compression {
    /// Judges by the first [`MAGIC`] bytes, or fewer if there are no more.
    pub(crate) fn of(magic: &[u8]) -> Self {
        match magic {
            [0x1f, 0x8b, 8, ..] => Self::Gzip,
            // A frame, or a skippable frame in front of one.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [b'B', b'Z', b'h', ..] => Self::Unsupported("bzip2"),
            [0xfd, b'7', b'z', b'X', b'Z', 0] => Self::Unsupported("xz"),
            _ => Self::None,
        }
    }
}

/// Why a stream cannot be uncompressed from its beginning.
#[derive(Debug)]
pub(crate) enum OpenError {
    Read(io::Error),
    Unsupported(&'static str),
}

/// A stream from its beginning, of which the first bytes were looked at.
type Whole<R> = BufReader<Chain<Cursor<Vec<u8>>, R>>;

/// What is in a stream that may be compressed.
pub(crate) enum Uncompressed<R: Read> {
    Plain(Whole<R>),
    Gzip(Box<MultiGzDecoder<Whole<R>>>),
    Zstd(Box<zstd::Decoder<'static, Whole<R>>>),
}

impl<R: Read> Uncompressed<R> {
    pub(crate) fn open(mut stream: R) -> Result<Self, OpenError> {
        let mut magic = Vec::with_capacity(MAGIC);
        (&mut stream)
            .take(MAGIC as u64)
            .read_to_end(&mut magic)
            .map_err(OpenError::Read)?;
        let compression = Compression::of(&magic);
        let whole = BufReader::with_capacity(CHUNK, Cursor::new(magic).chain(stream));
        match compression {
            Compression::None => Ok(Self::Plain(whole)),
            Compression::Gzip => Ok(Self::Gzip(Box::new(MultiGzDecoder::new(whole)))),
            Compression::Zstd => {
                let decoder = zstd::Decoder::with_buffer(whole).and_then(|mut decoder| {
                    decoder.window_log_max(WINDOW_LOG_MAX)?;
                    Ok(decoder)
                });
                Ok(Self::Zstd(Box::new(decoder.map_err(OpenError::Read)?)))
            }
            Compression::Unsupported(name) => Err(OpenError::Unsupported(name)),
        }
    }

    /// The stream itself, which may have been read ahead.
    pub(crate) fn into_inner(self) -> R {
        let whole = match self {
            Self::Plain(whole) => whole,
            Self::Gzip(decoder) => decoder.into_inner(),
            Self::Zstd(decoder) => decoder.finish(),
        };
        whole.into_inner().into_inner().1
    }
}

impl<R: Read> Read for Uncompressed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Gzip(stream) => stream.read(buffer),
            Self::Zstd(stream) => stream.read(buffer),
        }
    }
}
