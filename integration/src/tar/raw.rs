//! Tar headers byte by byte: what no tar program writes.

use super::{data, octal, record};

/// One header block and its payload, with nothing made right but the checksum.
#[derive(Clone, Debug)]
pub struct Raw {
    block: [u8; 512],
    payload: Vec<u8>,
}

impl Raw {
    /// A ustar header of this type for `name`, which is cut after 100 bytes; mode 0644, owned by root, of
    /// 2020, without payload.
    pub fn new(name: impl AsRef<[u8]>, kind: u8) -> Self {
        let mut raw = Self {
            block: [0; 512],
            payload: Vec::new(),
        };
        raw.field(0, 100, name.as_ref());
        for (at, value) in [(100, 0o644), (108, 0), (116, 0), (329, 0), (337, 0)] {
            octal(&mut raw.block[at..at + 8], value);
        }
        octal(&mut raw.block[124..136], 0);
        octal(&mut raw.block[136..148], 1_600_000_000);
        raw.block[156] = kind;
        raw.field(257, 8, b"ustar\x0000");
        raw
    }

    /// A regular file.
    pub fn file(name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Self {
        Self::new(name, b'0').payload(content)
    }

    /// A PAX header with these records.
    pub fn pax(records: &[(&str, &[u8])]) -> Self {
        let mut content = Vec::new();
        for (key, value) in records {
            record(&mut content, key.as_bytes(), value);
        }
        Self::new("PaxHeaders/x", b'x').payload(content)
    }

    /// With this payload, and its length in the size field.
    #[must_use]
    pub fn payload(mut self, content: impl AsRef<[u8]>) -> Self {
        self.payload = content.as_ref().to_vec();
        octal(&mut self.block[124..136], self.payload.len() as u64);
        self
    }

    /// With this link target, cut after 100 bytes.
    #[must_use]
    pub fn target(self, target: impl AsRef<[u8]>) -> Self {
        self.set(157, 100, target)
    }

    /// With these bytes in the field of `length` bytes at `at`, and zeros behind them.
    #[must_use]
    pub fn set(mut self, at: usize, length: usize, value: impl AsRef<[u8]>) -> Self {
        self.field(at, length, value.as_ref());
        self
    }

    /// The header with its checksum, and the payload with its padding.
    pub fn bytes(&self) -> Vec<u8> {
        let mut block = self.block;
        block[148..156].fill(b' ');
        let sum: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
        octal(&mut block[148..155], sum);
        let mut out = block.to_vec();
        data(&mut out, &self.payload);
        out
    }

    fn field(&mut self, at: usize, length: usize, value: &[u8]) {
        let field = &mut self.block[at..at + length];
        field.fill(0);
        let length = value.len().min(length);
        field[..length].copy_from_slice(&value[..length]);
    }
}

/// The two blocks that end an archive.
pub const END: [u8; 1024] = [0; 1024];
