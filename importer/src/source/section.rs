//! A part of a file: a blob in a directory, or a member of an archive.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::{Blob, SourceError};

/// A part of a file that stays where it is. Cheap to clone, and readable from several threads at once.
#[derive(Debug, Clone)]
pub(super) struct Section {
    file: Arc<File>,
    start: u64,
    size: u64,
}

impl Section {
    /// `size` bytes of the file from `start`.
    pub(super) fn new(file: Arc<File>, start: u64, size: u64) -> Self {
        Self { file, start, size }
    }

    /// Its size in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// All of it, if it is not larger than `limit`; else `None`.
    pub(super) fn read_all(&self, limit: u64) -> io::Result<Option<Vec<u8>>> {
        if self.size > limit {
            return Ok(None);
        }
        let mut bytes = vec![0; self.size as usize];
        self.file.read_exact_at(&mut bytes, self.start)?;
        Ok(Some(bytes))
    }

    /// Reads it from its beginning.
    pub(super) fn reader(&self) -> SectionReader<'_> {
        SectionReader {
            section: self,
            at: 0,
        }
    }
}

impl Blob for Section {
    fn open(&self) -> Result<Box<dyn Read + '_>, SourceError> {
        Ok(Box::new(self.reader()))
    }
}

/// Reads a section. The end of the file before the end of the section is an error.
pub(super) struct SectionReader<'s> {
    section: &'s Section,
    at: u64,
}

impl Read for SectionReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.section.size - self.at;
        let wanted = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let at = self.section.start.saturating_add(self.at);
        let count = self.section.file.read_at(&mut buffer[..wanted], at)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += count as u64;
        Ok(count)
    }
}
