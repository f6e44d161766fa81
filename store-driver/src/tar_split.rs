//! The tar-split of a layer, made from its splitstream.
//!
//! podman needs it to give the layer back byte for byte (`save`, `push`). A file entry stands for
//! content that podman takes from below the layer's `diff`, so it is written only for a file that the
//! *merged* tree has at that very path; everything else (small files that live inside the EROFS image,
//! files that a later entry of the layer replaced, names that podman refuses to see twice) is embedded
//! in segments. Only the concatenation counts.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs::File,
    io::{self, Read, Write},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use composefs_image::{Content, Kind, Tree, VerityDigest};
use containers_storage::ContentCrc;
use flate2::{Compression, write::GzEncoder};
use repository::{
    ReadObjects,
    layers::{Chunk, Chunks, LayerError, Step, TarError, TarSplitter},
};
use serde::Serialize;

/// Bytes in one segment, before base64.
const SEGMENT: usize = 256 << 10;

const WHITEOUT_PREFIX: &[u8] = b".wh.";

/// Content checksums of objects.
pub(crate) type Checksums = HashMap<VerityDigest, [u8; 8]>;

/// What a layer record needs to know of the tar.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct TarFacts {
    /// Length of the tar in bytes.
    pub(crate) size: u64,
    /// Owners that occur, whiteouts not counted.
    pub(crate) uids: BTreeSet<u32>,
    /// Groups that occur, whiteouts not counted.
    pub(crate) gids: BTreeSet<u32>,
}

/// Why a tar-split could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TarSplitError {
    /// The layer cannot be read.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// An object of the layer cannot be read.
    #[error("object {digest}")]
    Object {
        /// The object.
        digest: VerityDigest,
        /// Why.
        source: io::Error,
    },
    /// The tar-split cannot be written.
    #[error("writing")]
    Write(#[from] io::Error),
}

/// The objects that stand in a layer, each once, in the order of the tar.
pub(crate) fn objects_of(chunks: &mut impl Chunks) -> repository::Result<Vec<VerityDigest>> {
    let mut seen = HashSet::new();
    let mut objects = Vec::new();
    while let Some(chunk) = chunks.next_chunk()? {
        if let Chunk::External(digest) = chunk
            && seen.insert(digest)
        {
            objects.push(digest);
        }
    }
    Ok(objects)
}

/// Reads objects on all processors and adds their checksums to `known`. Each is read once.
pub(crate) fn checksum(
    objects: &impl ReadObjects,
    digests: &[VerityDigest],
    known: &mut Checksums,
) -> Result<(), TarSplitError> {
    let missing: Vec<_> = digests.iter().filter(|d| !known.contains_key(d)).collect();
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Ok(Vec::with_capacity(missing.len())));
    let worker = || {
        let mut buffer = vec![0; 128 << 10];
        while let Some(digest) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
            let result = checksum_one(objects, digest, &mut buffer);
            let mut results = results
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            match (&mut *results, result) {
                (Ok(done), Ok(crc)) => done.push((**digest, crc)),
                (Ok(_), Err(error)) => *results = Err(error),
                (Err(_), _) => return,
            }
        }
    };
    let workers = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(8);
    std::thread::scope(|scope| {
        for _ in 1..workers {
            scope.spawn(worker);
        }
        worker();
    });
    known.extend(
        results
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner)?,
    );
    Ok(())
}

fn checksum_one(
    objects: &impl ReadObjects,
    digest: &VerityDigest,
    buffer: &mut [u8],
) -> Result<[u8; 8], TarSplitError> {
    let mut file = objects.open_object(digest).map_err(LayerError::from)?;
    let mut crc = ContentCrc::new();
    loop {
        match file.read(buffer) {
            Ok(0) => return Ok(crc.finish()),
            Ok(length) => crc.update(buffer.get(..length).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => {
                return Err(TarSplitError::Object {
                    digest: *digest,
                    source,
                });
            }
        }
    }
}

/// Writes the gzipped tar-split of a layer. `tree` is the merged tree up to and with this layer.
pub(crate) fn write_tar_split(
    layer: &mut impl Chunks,
    tree: &Tree,
    checksums: &Checksums,
    objects: &impl ReadObjects,
    out: impl Write,
) -> Result<TarFacts, TarSplitError> {
    let mut writer = Lines::new(out);
    let mut splitter = TarSplitter::new();
    let mut facts = TarFacts::default();
    let mut names = HashSet::new();
    while let Some(chunk) = layer.next_chunk().map_err(LayerError::from)? {
        match chunk {
            Chunk::Inline(mut bytes) => {
                writer.segment(bytes)?;
                while !bytes.is_empty() {
                    let taken = match splitter.push(bytes).map_err(layer_error)? {
                        Step::Inline(taken) | Step::Payload(taken) => taken,
                        Step::Member { consumed, .. } => {
                            note_owner(&splitter, &mut facts);
                            consumed
                        }
                    };
                    bytes = bytes.get(taken..).unwrap_or_default();
                }
            }
            Chunk::External(digest) => {
                let member = splitter.member();
                let name = member.and_then(|member| name_of(tree, &member.path, &digest));
                let size = member.map_or(0, |member| member.size);
                let crc = checksums.get(&digest);
                match (name, crc) {
                    (Some(name), Some(crc)) if names.insert(name.clone()) => {
                        writer.file(&name, size, *crc)?;
                    }
                    _ => {
                        let file = objects.open_object(&digest).map_err(LayerError::from)?;
                        writer
                            .embed(file)
                            .map_err(|source| TarSplitError::Object { digest, source })?;
                    }
                }
            }
        }
    }
    splitter.finish().map_err(layer_error)?;
    facts.size = splitter.offset();
    writer.finish()?;
    Ok(facts)
}

fn layer_error(error: TarError) -> TarSplitError {
    TarSplitError::Layer(error.into())
}

fn note_owner(splitter: &TarSplitter, facts: &mut TarFacts) {
    let Some(member) = splitter.member() else {
        return;
    };
    let base = member
        .path
        .split(|byte| *byte == b'/')
        .rfind(|part| !part.is_empty())
        .unwrap_or_default();
    if !base.starts_with(WHITEOUT_PREFIX) {
        facts.uids.insert(member.uid);
        facts.gids.insert(member.gid);
    }
}

/// The path by which podman finds this object in the merged tree, if the member's own path leads there.
fn name_of(tree: &Tree, path: &[u8], digest: &VerityDigest) -> Option<Vec<u8>> {
    let parts: Vec<&[u8]> = path
        .split(|byte| *byte == b'/')
        .filter(|part| !matches!(*part, b"" | b"."))
        .collect();
    let name = parts.join(&b'/');
    match tree.kind(tree.lookup_path(&name)?) {
        Kind::Regular(Content::External {
            digest: Some(found),
            ..
        }) if found == *digest => Some(name),
        _ => None,
    }
}

#[derive(Serialize)]
struct Line<'a> {
    r#type: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name_raw: Option<String>,
    #[serde(skip_serializing_if = "is_zero")]
    size: u64,
    payload: String,
    position: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde passes references
fn is_zero(size: &u64) -> bool {
    *size == 0
}

const FILE: u8 = 1;
const SEGMENT_TYPE: u8 = 2;

/// Writes lines; collects bytes until a segment is worth one.
struct Lines<W: Write> {
    out: GzEncoder<W>,
    pending: Vec<u8>,
    position: u64,
}

impl<W: Write> Lines<W> {
    fn new(out: W) -> Self {
        Self {
            out: GzEncoder::new(out, Compression::fast()),
            pending: Vec::new(),
            position: 0,
        }
    }

    fn segment(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(SEGMENT - self.pending.len()));
            self.pending.extend_from_slice(now);
            bytes = later;
            if self.pending.len() == SEGMENT {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn embed(&mut self, mut content: File) -> io::Result<()> {
        let mut buffer = vec![0; SEGMENT];
        loop {
            match content.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(length) => self.segment(buffer.get(..length).unwrap_or_default())?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn file(&mut self, name: &[u8], size: u64, crc: [u8; 8]) -> io::Result<()> {
        self.flush()?;
        let text = std::str::from_utf8(name).ok();
        self.line(&Line {
            r#type: FILE,
            name: text,
            name_raw: text.is_none().then(|| STANDARD.encode(name)),
            size,
            payload: STANDARD.encode(crc),
            position: self.position,
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let payload = STANDARD.encode(&self.pending);
        self.pending.clear();
        self.line(&Line {
            r#type: SEGMENT_TYPE,
            name: None,
            name_raw: None,
            size: 0,
            payload,
            position: self.position,
        })
    }

    fn line(&mut self, line: &Line<'_>) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, line)?;
        self.out.write_all(b"\n")?;
        self.position += 1;
        Ok(())
    }

    fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        self.out.finish()?.flush()
    }
}
