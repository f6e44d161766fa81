//! A buffered output that knows its position.

use std::io::{self, Write};

const BUFFER: usize = 128 * 1024;

pub(super) struct Sink<'a, W> {
    out: &'a mut W,
    buffer: Vec<u8>,
    /// Bytes handed to `out`.
    flushed: u64,
}

impl<'a, W: Write> Sink<'a, W> {
    pub(super) fn new(out: &'a mut W) -> Self {
        Self {
            out,
            buffer: Vec::with_capacity(BUFFER + 4096),
            flushed: 0,
        }
    }

    pub(super) fn position(&self) -> u64 {
        self.flushed + self.buffer.len() as u64
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.write_all(&self.buffer)?;
        self.flushed += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    pub(super) fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        self.out.flush()
    }

    #[inline]
    pub(super) fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BUFFER {
            self.flush()?;
        }
        Ok(())
    }

    #[inline]
    pub(super) fn u16(&mut self, value: u16) -> io::Result<()> {
        self.put(&value.to_le_bytes())
    }

    #[inline]
    pub(super) fn u32(&mut self, value: u32) -> io::Result<()> {
        self.put(&value.to_le_bytes())
    }

    #[inline]
    pub(super) fn u64(&mut self, value: u64) -> io::Result<()> {
        self.put(&value.to_le_bytes())
    }

    pub(super) fn zeros(&mut self, count: u64) -> io::Result<()> {
        let mut left = count;
        while left > 0 {
            let part = left.min(4096) as usize;
            self.put(&[0; 4096][..part])?;
            left -= part as u64;
        }
        Ok(())
    }

    /// Zeros up to an absolute position, which lies ahead.
    pub(super) fn pad_to(&mut self, position: u64) -> io::Result<()> {
        let here = self.position();
        debug_assert!(here <= position, "{here} is behind {position}");
        self.zeros(position.saturating_sub(here))
    }

    /// Zeros up to a multiple of `alignment`.
    pub(super) fn align(&mut self, alignment: u64) -> io::Result<()> {
        self.pad_to(self.position().next_multiple_of(alignment))
    }
}
