//! The front end for blobs: a tar that comes as it is or compressed, read once from its beginning.
//!
//! The blob is hashed as it comes in and read to its end, behind the end of the tar too, so that its
//! digest and size can be compared with those of the manifest.

use std::io::{self, ErrorKind, Read};

use repository::oci::{BlobDigest, LayerDescriptor};
use sha2::{Digest as _, Sha256};

use super::{Imported, Layer};
use crate::compression::{OpenError, Uncompressed};
use crate::error::LayerError;
use crate::source::Blob;

/// How much of the tar is looked at in one go, in bytes.
const CHUNK: usize = 64 * 1024;

/// Reads a blob, and compares it with what the manifest says of it.
pub(super) fn read(
    blob: &dyn Blob,
    descriptor: Option<&LayerDescriptor>,
    mut layer: Layer<'_>,
) -> Result<Imported, LayerError> {
    let verified = Verified::new(blob.open()?, descriptor.map(|it| it.size));
    let mut tar = Uncompressed::open(verified).map_err(|error| match error {
        OpenError::Read(error) => LayerError::Read(error),
        OpenError::Unsupported(name) => LayerError::Compression(name),
    })?;
    let read = match read_tar(&mut tar, &mut layer) {
        Err(error @ (LayerError::Stopped | LayerError::TooLarge { .. })) => return Err(error),
        read => read,
    };
    // Whatever else is wrong with a blob that is not the right one does not matter.
    let drained = tar.into_inner().finish(descriptor);
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
            Ok(count) => {
                let budget = layer.context.budget;
                if !budget.take(count as u64) {
                    return Err(LayerError::TooLarge {
                        entry: layer.splitter.member().map(|_| layer.member_name()),
                        limit: budget.limit(),
                    });
                }
                layer.tar(&chunk[..count])?;
            }
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
