//! tar-split: what of a layer's tar is not the content of files.
//!
//! A stream of JSON lines, compressed with gzip (by every c/storage so far) or zstd (in zstd:chunked blobs), each a *segment* (raw bytes: headers, padding, end blocks) or a *file*
//! (name, size and CRC-64 of content that is to be taken from the layer's directory). Written one after
//! the other they give the layer's tar. Reading streams; a line, the number of files and thereby memory
//! are bounded whatever the gzip stream expands to.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::read::MultiGzDecoder;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

/// Longest line. c/storage cuts padding into pieces of 1 MiB; headers between two files are far less.
const MAX_LINE: usize = 32 << 20;
/// Most files in a layer.
pub(crate) const MAX_FILES: usize = 4 << 20;
/// log2 of the largest zstd window that is accepted, which is memory: what the strongest level of podman's
/// compressor uses.
const WINDOW_LOG_MAX: u32 = 25;
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// What is wrong with a tar-split.
#[derive(Debug, thiserror::Error)]
pub enum TarSplitError {
    /// The compressed stream is damaged, cut off, or could not be read.
    #[error("the tar-split cannot be read")]
    Read(#[source] io::Error),
    /// A line is not the JSON it should be.
    #[error("line {line} of the tar-split is damaged")]
    Json {
        /// The line, from 1.
        line: u64,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A line has a value that is not valid.
    #[error("line {line} of the tar-split: {problem}")]
    Entry {
        /// The line, from 1.
        line: u64,
        /// What is wrong.
        problem: &'static str,
    },
    /// Two entries have the same name, so that one file would be taken for both.
    #[error("the tar-split names {name} twice")]
    Duplicate {
        /// The name.
        name: EntryName,
    },
    /// The tar-split has more lines of one kind, or a longer line, than any layer needs.
    #[error("the tar-split has {problem}")]
    TooLarge {
        /// What there is too much of.
        problem: &'static str,
    },
}

/// The name of a tar member: any bytes. Shown with `\` escapes where it is not printable.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryName(Vec<u8>);

impl EntryName {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// The path beneath a layer's directory that the name means: relative, without empty, `.` and `..`
    /// components. `None` if it means the directory itself, leads out of it, or has a NUL.
    pub fn beneath(&self) -> Option<Vec<u8>> {
        let mut parts: Vec<&[u8]> = Vec::new();
        let absolute = self.0.first() == Some(&b'/');
        for part in self.0.split(|&b| b == b'/') {
            match part {
                b"" | b"." => {}
                b".." => {
                    // `/..` is `/`, as everywhere; a relative name must not climb.
                    if parts.pop().is_none() && !absolute {
                        return None;
                    }
                }
                part => parts.push(part),
            }
        }
        (!parts.is_empty() && !self.0.contains(&0)).then(|| parts.join(&b'/'))
    }

    /// The name by which duplicates are recognised: what Go's `path.Clean` makes of it.
    fn cleaned(&self) -> Vec<u8> {
        let absolute = self.0.first() == Some(&b'/');
        let mut parts: Vec<&[u8]> = Vec::new();
        for part in self.0.split(|&b| b == b'/') {
            match part {
                b"" | b"." => {}
                b".." => match parts.last() {
                    Some(&last) if last != b".." => {
                        parts.pop();
                    }
                    _ if absolute => {}
                    _ => parts.push(part),
                },
                part => parts.push(part),
            }
        }
        let mut cleaned = if absolute { vec![b'/'] } else { Vec::new() };
        cleaned.extend(parts.join(&b'/'));
        if cleaned.is_empty() {
            cleaned.push(b'.');
        }
        cleaned
    }
}

impl From<Vec<u8>> for EntryName {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl From<&str> for EntryName {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl fmt::Debug for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The CRC-64 by which tar-split knows a file's content: Go's `crc64.ISO`.
#[derive(Debug, Clone)]
pub struct ContentCrc(crc_fast::Digest);

impl ContentCrc {
    /// Of no content yet.
    pub fn new() -> Self {
        Self(crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64GoIso))
    }

    /// Adds content.
    pub fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    /// The CRC, big-endian as tar-split has it.
    pub fn finish(&self) -> [u8; 8] {
        self.0.finalize().to_be_bytes()
    }
}

impl Default for ContentCrc {
    fn default() -> Self {
        Self::new()
    }
}

/// One line of a tar-split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TarSplitEntry {
    /// Bytes of the tar.
    Segment(Vec<u8>),
    /// A tar member. If it has content, the content comes here in the tar.
    File {
        /// The member's name.
        name: EntryName,
        /// Size in bytes of the content that comes here; 0 for none.
        size: u64,
        /// CRC-64 of the content; all zero for none.
        crc64: [u8; 8],
    },
}

/// Decompresses what the first bytes say that it is.
enum Decoder<R> {
    /// Nothing was read yet. `None` after an error.
    Start(Option<BufReader<R>>),
    Gzip(Box<MultiGzDecoder<BufReader<R>>>),
    Zstd(zstd::stream::read::Decoder<'static, BufReader<R>>),
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            *self = match self {
                Self::Gzip(decoder) => return decoder.read(buffer),
                Self::Zstd(decoder) => return decoder.read(buffer),
                Self::Start(start) => {
                    let Some(mut start) = start.take() else {
                        return Ok(0);
                    };
                    if start.fill_buf()?.starts_with(&ZSTD_MAGIC) {
                        let mut decoder = zstd::stream::read::Decoder::with_buffer(start)?;
                        decoder.window_log_max(WINDOW_LOG_MAX)?;
                        Self::Zstd(decoder)
                    } else {
                        Self::Gzip(Box::new(MultiGzDecoder::new(start)))
                    }
                }
            }
        }
    }
}

/// Reads the entries of a tar-split. Ends after the first error.
pub struct TarSplit<R> {
    lines: BufReader<Decoder<R>>,
    buffer: Vec<u8>,
    line: u64,
    /// Hashes of the names so far: 16 bytes each however long the names are.
    names: HashSet<[u8; 16]>,
    done: bool,
}

impl<R> fmt::Debug for TarSplit<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TarSplit(after line {})", self.line)
    }
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: u32,
    #[serde(borrow, default)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    name_raw: Option<Cow<'a, str>>,
    #[serde(default)]
    size: Option<i64>,
    #[serde(borrow, default)]
    payload: Option<Cow<'a, str>>,
}

impl<R: Read> TarSplit<R> {
    /// Reads from `compressed`, the content of a `.tar-split.gz` file, which may be zstd as well.
    pub fn new(compressed: R) -> Self {
        let start = BufReader::with_capacity(64 << 10, compressed);
        Self {
            lines: BufReader::with_capacity(64 << 10, Decoder::Start(Some(start))),
            buffer: Vec::new(),
            line: 0,
            names: HashSet::new(),
            done: false,
        }
    }

    fn read_entry(&mut self) -> Result<Option<TarSplitEntry>, TarSplitError> {
        loop {
            self.buffer.clear();
            let read = (&mut self.lines)
                .take(MAX_LINE as u64 + 1)
                .read_until(b'\n', &mut self.buffer)
                .map_err(TarSplitError::Read)?;
            if read == 0 {
                return Ok(None);
            }
            self.line += 1;
            if read > MAX_LINE {
                return Err(TarSplitError::TooLarge {
                    problem: "a line of more than 32 MiB",
                });
            }
            if !self.buffer.trim_ascii().is_empty() {
                break;
            }
        }
        let line = self.line;
        let invalid = |problem| TarSplitError::Entry { line, problem };
        let entry: Line<'_> = serde_json::from_slice(&self.buffer)
            .map_err(|source| TarSplitError::Json { line, source })?;
        let payload = match &entry.payload {
            Some(text) => STANDARD
                .decode(text.as_bytes())
                .map_err(|_| invalid("the payload is not base64"))?,
            None => Vec::new(),
        };
        match entry.kind {
            1 => {
                let name = match (entry.name_raw, entry.name) {
                    (Some(raw), _) if !raw.is_empty() => STANDARD
                        .decode(raw.as_bytes())
                        .map_err(|_| invalid("name_raw is not base64"))?,
                    (_, Some(name)) => name.into_owned().into_bytes(),
                    _ => return Err(invalid("a file has no name")),
                };
                let name = EntryName(name);
                let size = u64::try_from(entry.size.unwrap_or(0))
                    .map_err(|_| invalid("a file has a negative size"))?;
                let crc64 = match payload.as_slice() {
                    [] if size == 0 => [0; 8],
                    crc => crc
                        .try_into()
                        .map_err(|_| invalid("the CRC of a file has not 8 bytes"))?,
                };
                self.remember(&name)?;
                Ok(Some(file(name, size, crc64)))
            }
            2 => Ok(Some(TarSplitEntry::Segment(payload))),
            _ => Err(invalid("the type is neither file nor segment")),
        }
    }

    fn remember(&mut self, name: &EntryName) -> Result<(), TarSplitError> {
        if !self.names.insert(short_hash(&name.cleaned())) {
            return Err(TarSplitError::Duplicate { name: name.clone() });
        }
        if self.names.len() > MAX_FILES {
            return Err(TarSplitError::TooLarge {
                problem: "more than 4,194,304 files",
            });
        }
        Ok(())
    }
}

/// 16 bytes by which a name is known: enough that nobody finds two names with the same ones.
pub(crate) fn short_hash(name: &[u8]) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&Sha256::digest(name)[..16]);
    short
}

/// The size field of a link or device header may be set although no content follows; tar-split then
/// records the size together with the CRC of nothing.
fn file(name: EntryName, size: u64, crc64: [u8; 8]) -> TarSplitEntry {
    let size = if crc64 == ContentCrc::new().finish() {
        0
    } else {
        size
    };
    TarSplitEntry::File { name, size, crc64 }
}

impl<R: Read> Iterator for TarSplit<R> {
    type Item = Result<TarSplitEntry, TarSplitError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let entry = self.read_entry().transpose();
        self.done = !matches!(entry, Some(Ok(_)));
        entry
    }
}

#[cfg(test)]
mod tests;
