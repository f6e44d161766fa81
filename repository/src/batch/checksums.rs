//! The checksums of a layer's objects on their way into the repository; see [`crate::checksums`].

use std::num::NonZeroU64;

use composefs_image::{VerityDigest, VerityHasher};

use super::Batch;
use super::staged::StagedFile;
use crate::checksums::MAGIC;
use crate::error::Result;
use crate::oci::DiffId;

/// How much is collected before it is written, in bytes.
const CHUNK: usize = 64 * 1024;

/// Takes the checksums of a layer's objects, in the order of its splitstream. Dropping it forgets them.
pub struct ChecksumWriter<'b, 'r> {
    staged: StagedFile<'b, 'r>,
    hasher: VerityHasher,
    buffer: Vec<u8>,
}

/// Checksums that a batch has, for [`Batch::keep_checksums`] of that same batch.
#[derive(Debug)]
pub struct StagedChecksums(pub(super) NonZeroU64);

impl Batch<'_> {
    /// Keeps the checksums of the objects of a layer that this batch links.
    pub fn keep_checksums(&self, layer: &DiffId, checksums: StagedChecksums) {
        self.state().checksums.insert(*layer, checksums);
    }
}

impl<'r> Batch<'r> {
    /// Begins to write the checksums of a layer's objects.
    pub fn checksum_writer(&self) -> Result<ChecksumWriter<'_, 'r>> {
        Ok(ChecksumWriter {
            staged: StagedFile::create(self)?,
            hasher: VerityHasher::new(self.repository.algorithm()),
            buffer: MAGIC.to_vec(),
        })
    }
}

impl ChecksumWriter<'_, '_> {
    /// Appends the CRC-64, big-endian, of an object that the splitstream has not named before.
    pub fn push(&mut self, checksum: [u8; 8]) -> Result<()> {
        self.buffer.extend(checksum);
        if self.buffer.len() < CHUNK {
            return Ok(());
        }
        self.flush()
    }

    /// Ends with the splitstream that the checksums are about.
    pub fn finish(mut self, stream: &VerityDigest) -> Result<StagedChecksums> {
        self.buffer.extend(stream.as_bytes());
        self.flush()?;
        self.staged.write(self.hasher.finish().as_bytes())?;
        Ok(StagedChecksums(self.staged.keep()))
    }

    fn flush(&mut self) -> Result<()> {
        self.hasher.update(&self.buffer);
        self.staged.write(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }
}
