//! A buffer that moves to an unnamed file of the staging directory when it gets large.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};

use crate::batch::Batch;

/// How much stays in memory, in bytes.
const MEMORY: usize = 1 << 20;

/// Bytes that are written first and read back later, once or never.
pub(super) struct Spool<'b, 'r> {
    batch: &'b Batch<'r>,
    memory: Vec<u8>,
    /// What came before `memory`.
    file: Option<File>,
    len: u64,
}

impl<'b, 'r> Spool<'b, 'r> {
    pub(super) fn new(batch: &'b Batch<'r>) -> Self {
        Self {
            batch,
            memory: Vec::new(),
            file: None,
            len: 0,
        }
    }

    /// How many bytes are in it.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Moves everything to `out`, and is empty.
    pub(super) fn drain_to(&mut self, out: &mut impl Write) -> io::Result<()> {
        if let Some(file) = &mut self.file {
            file.seek(SeekFrom::Start(0))?;
            io::copy(file, out)?;
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
        }
        out.write_all(&self.memory)?;
        self.memory.clear();
        self.len = 0;
        Ok(())
    }
}

impl Write for Spool<'_, '_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.memory.len() + data.len() > MEMORY {
            let file = match &mut self.file {
                Some(file) => file,
                None => self
                    .file
                    .insert(self.batch.scratch_file().map_err(io::Error::other)?),
            };
            file.write_all(&self.memory)?;
            file.write_all(data)?;
            self.memory.clear();
        } else {
            self.memory.extend_from_slice(data);
        }
        self.len += data.len() as u64;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
