//! Reading a splitstream from an untrusted file, in bounded memory.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use composefs_image::{Algorithm, VerityDigest};
use zstd::stream::read::Decoder;

use super::layout::{self, HEADER_SIZE, INFO_SIZE, Info, Range};
use super::{ContentType, MAX_NAMED_REFS, NamedRefs, SplitstreamError};

/// The largest zstd window that is allocated, as a power of two; zstd's own limit for streams.
const MAX_WINDOW_LOG: u32 = 27;

/// How many digests are read at a time.
const REFS_PER_PAGE: u64 = 1024;

/// Something that can be read at any offset: a file, or bytes in memory.
pub trait ReadAt {
    /// The size in bytes.
    fn size(&self) -> io::Result<u64>;
    /// Reads some bytes at `offset`; 0 at the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
}

impl ReadAt for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset)
    }
}

impl ReadAt for &[u8] {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        self.get(offset..).unwrap_or_default().read(buffer)
    }
}

/// A piece of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// This many bytes, to be had by [`Reader::read_inline`]. Take the number for a claim: the file may
    /// end before.
    Inline(u64),
    /// The whole content of this object.
    External(VerityDigest),
}

/// Reads a splitstream.
pub struct Reader<R: ReadAt = File> {
    source: Arc<R>,
    info: Info,
    algorithm: Algorithm,
    object_refs: RefPage<R>,
    stream: Decoder<'static, BufReader<Section<R>>>,
    /// Unread bytes of the current inline piece.
    inline: u64,
}

impl<R: ReadAt> Reader<R> {
    /// Reads the header. `algorithm` is that of the repository; with `expected`, content of another type
    /// is an error.
    pub fn new(
        source: R,
        algorithm: Algorithm,
        expected: Option<ContentType>,
    ) -> Result<Self, SplitstreamError> {
        let size = source.size()?;
        let source = Arc::new(source);
        let mut header = [0; HEADER_SIZE as usize];
        if size < HEADER_SIZE {
            return Err(SplitstreamError::Magic);
        }
        section(
            &source,
            Range {
                start: 0,
                end: HEADER_SIZE,
            },
        )
        .read_exact(&mut header)?;
        let range = layout::decode_header(&header, algorithm, size)?;
        let mut block = [0; INFO_SIZE as usize];
        section(&source, range).read_exact(&mut block)?;
        let info = layout::decode_info(&block, algorithm, size)?;
        if let Some(expected) = expected
            && expected != info.content_type
        {
            return Err(SplitstreamError::ContentType {
                found: info.content_type,
                expected,
            });
        }
        Ok(Self {
            object_refs: RefPage::new(&source, info.object_refs, algorithm),
            stream: decoder(section(&source, info.stream))?,
            inline: 0,
            source,
            info,
            algorithm,
        })
    }

    /// What the stream holds.
    pub fn content_type(&self) -> ContentType {
        self.info.content_type
    }

    /// The length of the logical stream in bytes, as the header claims it.
    pub fn total_size(&self) -> u64 {
        self.info.total_size
    }

    /// The digests of the streams and images that this stream keeps alive.
    pub fn stream_refs(&self) -> Refs<R> {
        Refs::new(RefPage::new(
            &self.source,
            self.info.stream_refs,
            self.algorithm,
        ))
    }

    /// The digests of the external pieces, each once.
    pub fn object_refs(&self) -> Refs<R> {
        Refs::new(RefPage::new(
            &self.source,
            self.info.object_refs,
            self.algorithm,
        ))
    }

    /// The named references.
    pub fn named_refs(&self) -> Result<NamedRefs, SplitstreamError> {
        let section = section(&self.source, self.info.named_refs);
        let mut text = Vec::new();
        decoder(section)?
            .take(MAX_NAMED_REFS + 1)
            .read_to_end(&mut text)?;
        if text.len() as u64 > MAX_NAMED_REFS {
            return Err(SplitstreamError::NamedRefsTooLarge);
        }
        let mut page = RefPage::new(&self.source, self.info.stream_refs, self.algorithm);
        let mut named = NamedRefs::new();
        let Some(records) = text.strip_suffix(b"\0") else {
            return if text.is_empty() {
                Ok(named)
            } else {
                Err(SplitstreamError::NamedRefs)
            };
        };
        for record in records.split(|byte| *byte == 0) {
            let (index, name) = str::from_utf8(record)
                .ok()
                .and_then(|record| record.split_once(':'))
                .ok_or(SplitstreamError::NamedRefs)?;
            let index = index.parse().map_err(|_| SplitstreamError::NamedRefs)?;
            let digest = page.get(index)?.ok_or(SplitstreamError::NamedRefs)?;
            named.insert(name.to_owned(), digest);
        }
        Ok(named)
    }

    /// The next piece of the stream, `None` at its end. What is unread of an inline piece is skipped.
    pub fn next_piece(&mut self) -> Result<Option<Piece>, SplitstreamError> {
        let mut scratch = [0; 4096];
        while self.read_inline(&mut scratch)? > 0 {}

        let mut chunk = [0; 8];
        let mut filled = 0;
        while let Some(rest) = chunk.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.stream.read(rest) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(SplitstreamError::Truncated),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        let chunk = i64::from_le_bytes(chunk);
        if chunk < 0 {
            self.inline = chunk.unsigned_abs();
            return Ok(Some(Piece::Inline(self.inline)));
        }
        let index = chunk.unsigned_abs();
        match self.object_refs.get(index)? {
            Some(object) => Ok(Some(Piece::External(object))),
            None => Err(SplitstreamError::ObjectIndex {
                index,
                count: self.object_refs.count(),
            }),
        }
    }

    /// Reads some bytes of the current inline piece; 0 at its end.
    pub fn read_inline(&mut self, buffer: &mut [u8]) -> Result<usize, SplitstreamError> {
        let limit = usize::try_from(self.inline)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let buffer = buffer.get_mut(..limit).unwrap_or_default();
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match self.stream.read(buffer) {
                Ok(0) => return Err(SplitstreamError::Truncated),
                Ok(count) => {
                    self.inline -= count as u64;
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Iterates over the digests of a reference table.
pub struct Refs<R> {
    page: RefPage<R>,
    next: u64,
}

impl<R: ReadAt> Refs<R> {
    fn new(page: RefPage<R>) -> Self {
        Self { page, next: 0 }
    }

    /// How many there are in all.
    pub fn count(&self) -> u64 {
        self.page.count()
    }
}

impl<R: ReadAt> Iterator for Refs<R> {
    type Item = Result<VerityDigest, SplitstreamError>;

    fn next(&mut self) -> Option<Self::Item> {
        let digest = self.page.get(self.next).transpose()?;
        // After an error there is nothing more to be had.
        self.next = if digest.is_ok() {
            self.next + 1
        } else {
            u64::MAX
        };
        Some(digest)
    }
}

/// A window into a reference table, which may be far larger than memory should be.
struct RefPage<R> {
    source: Arc<R>,
    range: Range,
    algorithm: Algorithm,
    first: u64,
    page: Vec<u8>,
}

impl<R: ReadAt> RefPage<R> {
    fn new(source: &Arc<R>, range: Range, algorithm: Algorithm) -> Self {
        Self {
            source: Arc::clone(source),
            range,
            algorithm,
            first: 0,
            page: Vec::new(),
        }
    }

    fn count(&self) -> u64 {
        self.range.len() / self.algorithm.digest_len() as u64
    }

    /// The digest number `index`; `None` beyond the end.
    fn get(&mut self, index: u64) -> Result<Option<VerityDigest>, SplitstreamError> {
        if index >= self.count() {
            return Ok(None);
        }
        let len = self.algorithm.digest_len();
        let held = (self.page.len() / len) as u64;
        if index < self.first || index - self.first >= held {
            let count = REFS_PER_PAGE.min(self.count() - index);
            let start = self.range.start + index * len as u64;
            let end = start + count * len as u64;
            let mut page = vec![0; count as usize * len];
            section(&self.source, Range { start, end }).read_exact(&mut page)?;
            self.page = page;
            self.first = index;
        }
        let offset = (index - self.first) as usize * len;
        let digest = self.page.get(offset..offset + len).unwrap_or_default();
        VerityDigest::from_bytes(self.algorithm, digest)
            .map(Some)
            .map_err(|_| SplitstreamError::Section("refs"))
    }
}

/// Reads a range of the source from its beginning.
struct Section<R> {
    source: Arc<R>,
    range: Range,
}

fn section<R>(source: &Arc<R>, range: Range) -> Section<R> {
    Section {
        source: Arc::clone(source),
        range,
    }
}

impl<R: ReadAt> Read for Section<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let limit = usize::try_from(self.range.len())
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let buffer = buffer.get_mut(..limit).unwrap_or_default();
        let count = self.source.read_at(buffer, self.range.start)?;
        self.range.start += count as u64;
        Ok(count)
    }
}

fn decoder<R: ReadAt>(
    section: Section<R>,
) -> Result<Decoder<'static, BufReader<Section<R>>>, SplitstreamError> {
    let mut decoder = Decoder::new(section)?;
    decoder.window_log_max(MAX_WINDOW_LOG)?;
    Ok(decoder)
}
