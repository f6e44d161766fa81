//! Writing a splitstream piece by piece, in the order of the stream.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::{self, Write};

use composefs_image::VerityDigest;
use zstd::stream::write::Encoder;

use super::ContentType;
use super::layout::{self, HEADER_SIZE, INFO_SIZE, Info, Range};
use super::spool::Spool;
use crate::batch::{Batch, Stored};
use crate::error::{Error, Result};
use crate::names::NameError;

/// What every splitstream is compressed with: zstd's default level.
const LEVEL: i32 = 0;

/// Whether a splitstream names an object for the first time: then it adds it to its object refs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mention {
    /// It was not named before.
    First,
    /// It was.
    Again,
}

/// Writes a splitstream into a [`Batch`]. The same pieces make the same bytes, wherever the inline ones
/// are cut. Dropping it forgets the stream.
pub struct Writer<'b, 'r> {
    batch: &'b Batch<'r>,
    content_type: ContentType,
    stream_refs: RefTable<'b, 'r>,
    object_refs: RefTable<'b, 'r>,
    /// Name to index in `stream_refs`.
    named: std::collections::BTreeMap<String, u64>,
    /// Inline data since the last external piece: it must become one chunk.
    inline: Spool<'b, 'r>,
    stream: Encoder<'static, Spool<'b, 'r>>,
    total: u64,
}

impl<'b, 'r> Writer<'b, 'r> {
    /// Begins a splitstream.
    pub fn new(batch: &'b Batch<'r>, content_type: ContentType) -> Result<Self> {
        Ok(Self {
            batch,
            content_type,
            stream_refs: RefTable::new(batch),
            object_refs: RefTable::new(batch),
            named: std::collections::BTreeMap::new(),
            inline: Spool::new(batch),
            stream: Encoder::new(Spool::new(batch), LEVEL).map_err(failed)?,
            total: 0,
        })
    }

    /// Appends bytes that are stored in the splitstream itself.
    pub fn inline(&mut self, data: &[u8]) -> Result<()> {
        self.total += data.len() as u64;
        self.inline.write_all(data).map_err(failed)
    }

    /// Appends the whole content of an object of `size` bytes, which is (or will be) stored in the same
    /// batch or repository.
    pub fn external(&mut self, object: &VerityDigest, size: u64) -> Result<Mention> {
        self.batch.repository().check_algorithm(object)?;
        self.flush_inline().map_err(failed)?;
        let (index, mention) = self.object_refs.index(object).map_err(failed)?;
        self.stream
            .write_all(&index.to_le_bytes())
            .map_err(failed)?;
        self.total = self.total.saturating_add(size);
        Ok(mention)
    }

    /// Adds a named reference to a stream or image, which keeps that alive. The order of the calls is
    /// the order of the stream refs.
    pub fn named_ref(&mut self, name: &str, target: &VerityDigest) -> Result<()> {
        self.batch.repository().check_algorithm(target)?;
        if name.contains('\0') {
            return Err(NameError::new("named reference", name, "it contains a NUL").into());
        }
        let (index, _) = self.stream_refs.index(target).map_err(failed)?;
        self.named.insert(name.to_owned(), index);
        Ok(())
    }

    /// How many bytes the stream has so far, those of external pieces included.
    pub fn total_size(&self) -> u64 {
        self.total
    }

    /// Enters the splitstream into the batch; returns its digest.
    pub fn finish(mut self) -> Result<(VerityDigest, Stored)> {
        self.flush_inline().map_err(failed)?;
        let mut stream = self.stream.finish().map_err(failed)?;
        let named_refs = encode_named(&self.named).map_err(failed)?;

        let mut position = HEADER_SIZE + INFO_SIZE;
        let mut section = |len| {
            let start = position;
            position += len;
            Range {
                start,
                end: position,
            }
        };
        let info = Info {
            stream_refs: section(self.stream_refs.digests.len()),
            object_refs: section(self.object_refs.digests.len()),
            named_refs: section(named_refs.len() as u64),
            stream: section(stream.len()),
            content_type: self.content_type,
            total_size: self.total,
        };
        let algorithm = self.batch.repository().algorithm();
        let mut object = self.batch.object_writer()?;
        object
            .write_all(&layout::encode(algorithm, &info))
            .and_then(|()| self.stream_refs.digests.drain_to(&mut object))
            .and_then(|()| self.object_refs.digests.drain_to(&mut object))
            .and_then(|()| object.write_all(&named_refs))
            .and_then(|()| stream.drain_to(&mut object))
            .map_err(failed)?;
        let (digest, _, stored) = object.finish()?;
        Ok((digest, stored))
    }

    fn flush_inline(&mut self) -> io::Result<()> {
        let len = self.inline.len();
        if len == 0 {
            return Ok(());
        }
        let len = i64::try_from(len).map_err(io::Error::other)?;
        self.stream.write_all(&(-len).to_le_bytes())?;
        self.inline.drain_to(&mut self.stream)
    }
}

/// Digests in the order of their first use, each once.
struct RefTable<'b, 'r> {
    batch: &'b Batch<'r>,
    digests: Spool<'b, 'r>,
    /// From the batch's numbers, so that the batch alone keeps digests in memory.
    indexes: HashMap<u32, u32>,
}

impl<'b, 'r> RefTable<'b, 'r> {
    fn new(batch: &'b Batch<'r>) -> Self {
        Self {
            batch,
            digests: Spool::new(batch),
            indexes: HashMap::new(),
        }
    }

    fn index(&mut self, digest: &VerityDigest) -> io::Result<(u64, Mention)> {
        let next = u32::try_from(self.indexes.len()).map_err(io::Error::other)?;
        match self.indexes.entry(self.batch.number_of(digest)) {
            Entry::Occupied(entry) => Ok(((*entry.get()).into(), Mention::Again)),
            Entry::Vacant(entry) => {
                self.digests.write_all(digest.as_bytes())?;
                Ok(((*entry.insert(next)).into(), Mention::First))
            }
        }
    }
}

fn encode_named(named: &std::collections::BTreeMap<String, u64>) -> io::Result<Vec<u8>> {
    let mut encoder = Encoder::new(Vec::new(), LEVEL)?;
    for (name, index) in named {
        write!(encoder, "{index}:{name}\0")?;
    }
    encoder.finish()
}

/// The pieces go to the staging directory or the encoder; which of them failed is in the error.
fn failed(error: io::Error) -> Error {
    Error::Io {
        action: "write a splitstream in",
        path: crate::PRIVATE_DIRECTORY.into(),
        source: error,
    }
}
