//! The front end for blobs: a tar that comes as it is or compressed, read once from its beginning.
//!
//! Like podman it goes by the first bytes, not by the media type. Concatenated gzip members and zstd
//! frames are one tar, and the skippable frames of zstd:chunked are skipped. The blob is hashed as it
//! comes in and read to its end, behind the end of the tar too, so that its digest and size can be
//! compared with those of the manifest.

use std::io::{self, BufReader, Chain, Cursor, ErrorKind, Read};

use flate2::bufread::MultiGzDecoder;
use repository::oci::{BlobDigest, LayerDescriptor};
use sha2::{Digest as _, Sha256};

use super::{Imported, Layer};
use crate::error::LayerError;
use crate::source::Blob;

/// How much of the tar is looked at in one go, in bytes.
const CHUNK: usize = 64 * 1024;

/// log2 of the largest zstd window that is accepted, which is memory: the limit of the zstd tool.
const WINDOW_LOG_MAX: u32 = 27;

/// Bytes that tell the compressions apart.
const MAGIC: usize = 6;

/// Reads a blob, and compares it with what the manifest says of it.
pub(super) fn read(
    blob: &dyn Blob,
    descriptor: Option<&LayerDescriptor>,
    mut layer: Layer<'_>,
) -> Result<Imported, LayerError> {
    let verified = Verified::new(blob.open()?, descriptor.map(|it| it.size));
    let mut tar = Tar::open(verified)?;
    let read = read_tar(&mut tar, &mut layer);
    if matches!(read, Err(LayerError::Stopped)) {
        return Err(LayerError::Stopped);
    }
    // Whatever else is wrong with a blob that is not the right one does not matter.
    let drained = tar.into_blob().finish(descriptor);
    if let Err(error @ (LayerError::BlobDigest { .. } | LayerError::BlobSize { .. })) = drained {
        return Err(error);
    }
    read?;
    drained?;
    layer.finish()
}

fn read_tar(tar: &mut impl Read, layer: &mut Layer<'_>) -> Result<(), LayerError> {
    let mut chunk = vec![0; CHUNK];
    loop {
        if layer.context.stop.is_set() {
            return Err(LayerError::Stopped);
        }
        match tar.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(count) => layer.tar(&chunk[..count])?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(LayerError::Read(error)),
        }
    }
}

/// A blob that is hashed and measured while it is read.
struct Verified<R> {
    blob: R,
    /// Bytes that may still come, if the size is known.
    left: Option<u64>,
    read: u64,
    too_large: bool,
    sha256: Sha256,
}

impl<R: Read> Verified<R> {
    fn new(blob: R, size: Option<u64>) -> Self {
        Self {
            blob,
            left: size,
            read: 0,
            too_large: false,
            sha256: Sha256::new(),
        }
    }

    /// Reads the rest and compares.
    fn finish(mut self, descriptor: Option<&LayerDescriptor>) -> Result<(), LayerError> {
        let rest = io::copy(&mut self, &mut io::sink());
        let Some(descriptor) = descriptor else {
            return rest.map(drop).map_err(LayerError::Read);
        };
        let wrong_size = |actual| LayerError::BlobSize {
            expected: descriptor.size,
            actual,
        };
        if self.too_large {
            return Err(wrong_size(None));
        }
        rest.map_err(LayerError::Read)?;
        if self.read != descriptor.size {
            return Err(wrong_size(Some(self.read)));
        }
        let actual = BlobDigest::from_bytes(self.sha256.finalize().into());
        if actual != descriptor.digest {
            return Err(LayerError::BlobDigest { actual });
        }
        Ok(())
    }
}

impl<R: Read> Read for Verified<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.blob.read(buffer)?;
        if let Some(left) = &mut self.left {
            let Some(rest) = left.checked_sub(count as u64) else {
                self.too_large = true;
                return Err(io::Error::other("the blob is larger than it should be"));
            };
            *left = rest;
        }
        self.read += count as u64;
        self.sha256.update(&buffer[..count]);
        Ok(count)
    }
}

/// A blob from its beginning, of which the first bytes were looked at.
type Whole<R> = BufReader<Chain<Cursor<Vec<u8>>, Verified<R>>>;

/// The tar in a blob.
enum Tar<R: Read> {
    Plain(Whole<R>),
    Gzip(Box<MultiGzDecoder<Whole<R>>>),
    Zstd(Box<zstd::Decoder<'static, Whole<R>>>),
}

impl<R: Read> Tar<R> {
    fn open(mut blob: Verified<R>) -> Result<Self, LayerError> {
        let mut magic = Vec::with_capacity(MAGIC);
        (&mut blob)
            .take(MAGIC as u64)
            .read_to_end(&mut magic)
            .map_err(LayerError::Read)?;
        let compression = Compression::of(&magic);
        let whole = BufReader::with_capacity(CHUNK, Cursor::new(magic).chain(blob));
        match compression {
            Compression::None => Ok(Self::Plain(whole)),
            Compression::Gzip => Ok(Self::Gzip(Box::new(MultiGzDecoder::new(whole)))),
            Compression::Zstd => {
                let decoder = zstd::Decoder::with_buffer(whole).and_then(|mut decoder| {
                    decoder.window_log_max(WINDOW_LOG_MAX)?;
                    Ok(decoder)
                });
                Ok(Self::Zstd(Box::new(decoder.map_err(LayerError::Read)?)))
            }
            Compression::Unsupported(name) => Err(LayerError::Compression(name)),
        }
    }

    fn into_blob(self) -> Verified<R> {
        let whole = match self {
            Self::Plain(whole) => whole,
            Self::Gzip(decoder) => decoder.into_inner(),
            Self::Zstd(decoder) => decoder.finish(),
        };
        whole.into_inner().into_inner().1
    }
}

impl<R: Read> Read for Tar<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tar) => tar.read(buffer),
            Self::Gzip(tar) => tar.read(buffer),
            Self::Zstd(tar) => tar.read(buffer),
        }
    }
}

/// How a blob is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
    Unsupported(&'static str),
}

impl Compression {
    fn of(magic: &[u8]) -> Self {
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
