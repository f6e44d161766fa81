//! One layer, from tar-split and files to a splitstream with the diff ID it must have.
//!
//! Two ends of a queue, both worked by the layer's own thread. The front end ([`Layer::plan`]) walks
//! the tar-split, follows the tar's headers to know what each payload is, and pushes a job for every
//! file. The back end ([`Layer::take_one`]) takes the answers in order, feeds SHA-256 and writes the
//! splitstream. So each file is read once, by a worker, ahead of the place where the tar needs it; only
//! SHA-256 and the splitstream's compression run in order. The front end goes on as long as there are
//! free buffers, which bounds memory and open files alike.
//!
//! Nothing of the layer has a name when [`import`] returns its splitstream's digest; the batch's
//! commit gives it one.

use std::collections::VecDeque;
use std::io::Write as _;
use std::sync::Arc;

use composefs_image::{VerityDigest, VerityHasher};
use containers_storage::{ContentCrc, EntryName, LayerGuard, TarSplitEntry};
use repository::layers::{MemberKind, Placement, Step, TarSplitter};
use repository::oci::DiffId;
use repository::splitstream::{ContentType, Writer};
use repository::{ObjectWriter, PRIVATE_DIRECTORY, Stored};
use sha2::{Digest as _, Sha256};

use crate::error::{FileError, LayerError, MemberProblem};
use crate::pool::{Answer, Lost, Queue, promise};
use crate::progress::{Event, Progress};
use crate::report::Counts;
use crate::work::{
    BUFFER, Buffer, Content, Context, FileDone, FileJob, Job, JobError, PieceDone, PieceJob, Source,
};

/// Bytes of headers and the like in flight, beside the segment in hand.
const SEGMENTS_MAX: usize = 1 << 20;
/// Payload in bytes of a member that is no regular file but has content, of which there are none in
/// practice. It would have to be kept in memory.
const OTHER_MAX: u64 = 1 << 20;
/// Bytes between two progress events.
const ADVANCE: u64 = 4 << 20;

/// A layer that was read and has the right diff ID.
pub(crate) struct Imported {
    pub(crate) stream: VerityDigest,
    pub(crate) tar_bytes: u64,
    pub(crate) counts: Counts,
}

/// Reads a layer under its store's read lock, stages its objects and its splitstream, and compares its
/// diff ID.
pub(crate) fn import<'l>(
    source: &'l containers_storage::Layer,
    expected: &DiffId,
    index: usize,
    context: &Context<'_>,
    queue: &Queue<Job<'l>>,
    progress: &dyn Progress,
) -> Result<Imported, LayerError> {
    let guard = source.lock()?;
    let guard = Arc::new(guard);
    let mut layer = Layer {
        guard: Arc::clone(&guard),
        context,
        queue,
        splitter: TarSplitter::new(),
        due: Due::Nothing,
        free: (0..context.buffers).map(|_| Buffer::new()).collect(),
        pending: VecDeque::new(),
        pending_bytes: 0,
        sha256: Sha256::new(),
        writer: Writer::new(context.batch, ContentType::OCI_LAYER)?,
        embedded: None,
        large: None,
        counts: Counts::default(),
        tar_bytes: 0,
        meter: Meter {
            layer: index,
            progress,
            bytes: 0,
            files: 0,
        },
    };
    for entry in guard.tar_split()? {
        if context.stop.is_set() {
            return Err(LayerError::Stopped);
        }
        layer.plan(entry?)?;
    }
    layer.splitter.finish()?;
    while !layer.pending.is_empty() {
        layer.take_one()?;
    }
    layer.meter.tell();

    let actual = DiffId::from_bytes(layer.sha256.finalize().into());
    if actual != *expected {
        return Err(LayerError::DiffId { actual });
    }
    Ok(Imported {
        stream: layer.writer.finish()?.0,
        tar_bytes: layer.tar_bytes,
        counts: layer.counts,
    })
}

/// One layer in work.
struct Layer<'a, 'l> {
    guard: Arc<LayerGuard<'l>>,
    context: &'a Context<'a>,
    queue: &'a Queue<Job<'l>>,
    // The front end: what the tar-split said.
    splitter: TarSplitter,
    due: Due,
    free: Vec<Buffer>,
    // Between the ends.
    pending: VecDeque<Pending>,
    pending_bytes: usize,
    // The back end: what was read.
    sha256: Sha256,
    writer: Writer<'a, 'a>,
    embedded: Option<ObjectWriter<'a, 'a>>,
    large: Option<OpenLarge>,
    counts: Counts,
    tar_bytes: u64,
    meter: Meter<'a>,
}

/// The payload that the tar's headers announced to the front end.
#[derive(Clone, Copy)]
enum Due {
    /// None.
    Nothing,
    /// All of it is still to come.
    Whole { size: u64, placement: Placement },
    /// `left` bytes of it are still to come in segments, and become an object.
    Rest { left: u64 },
}

/// A part of the tar on its way from the front to the back end.
enum Pending {
    /// Bytes that stay inline.
    Inline(Vec<u8>),
    /// Bytes of an object that came in a segment; `left` bytes of it follow.
    Embedded { bytes: Vec<u8>, left: u64 },
    /// A file that one buffer holds.
    File {
        name: EntryName,
        answer: Answer<Result<FileDone, JobError>>,
    },
    /// The beginning of a larger file.
    Large(Large),
    /// The next piece of that file.
    Piece(Answer<Result<PieceDone, JobError>>),
}

/// A file of more than one piece.
struct Large {
    name: EntryName,
    size: u64,
    crc64: [u8; 8],
    content: Content,
    source: Arc<Source>,
}

/// The larger file that the back end is in the middle of.
struct OpenLarge {
    file: Large,
    left: u64,
    crc: ContentCrc,
    verity: VerityHasher,
}

impl Layer<'_, '_> {
    // The front end.

    fn plan(&mut self, entry: TarSplitEntry) -> Result<(), LayerError> {
        match entry {
            TarSplitEntry::Segment(bytes) => self.segment(bytes),
            TarSplitEntry::File { size: 0, .. } => Ok(()),
            TarSplitEntry::File { name, size, crc64 } => self.file(name, size, crc64),
        }
    }

    /// Finds the headers in a segment. Content may be in it too: a tar-split need not leave it out.
    fn segment(&mut self, mut bytes: Vec<u8>) -> Result<(), LayerError> {
        let mut inline_from = 0;
        let mut at = 0;
        while at < bytes.len() {
            let left = match self.due {
                Due::Rest { left } => left,
                Due::Whole {
                    size,
                    placement: Placement::External,
                } => size,
                _ => {
                    at += self.step(&bytes[at..])?;
                    continue;
                }
            };
            let rest = &bytes[at..];
            let content = &rest[..rest.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
            let left = left - content.len() as u64;
            let end = at + content.len();
            let content = Pending::Embedded {
                bytes: content.to_vec(),
                left,
            };
            let before = bytes[inline_from..at].to_vec();
            self.push(Pending::Inline(before))?;
            self.push(content)?;
            self.due = if left == 0 {
                Due::Nothing
            } else {
                Due::Rest { left }
            };
            at = end;
            inline_from = end;
        }
        bytes.drain(..inline_from);
        self.push(Pending::Inline(bytes))
    }

    /// One step of the splitter; the bytes it took.
    fn step(&mut self, bytes: &[u8]) -> Result<usize, LayerError> {
        match self.splitter.push(bytes)? {
            Step::Inline(taken) => Ok(taken),
            Step::Payload(taken) => {
                self.due = Due::Nothing;
                Ok(taken)
            }
            Step::Member {
                consumed,
                placement,
            } => {
                self.member(placement)?;
                Ok(consumed)
            }
        }
    }

    fn member(&mut self, placement: Placement) -> Result<(), LayerError> {
        let Some(member) = self.splitter.member() else {
            return Ok(());
        };
        let size = member.size;
        let refuse = |problem| {
            let name = EntryName::from(member.path.clone());
            Err(LayerError::Member { name, problem })
        };
        match member.kind {
            _ if size == 0 => {
                self.due = Due::Nothing;
                return Ok(());
            }
            MemberKind::Regular => {}
            MemberKind::Other(_) if size <= OTHER_MAX => {}
            MemberKind::Other(_) => return refuse(MemberProblem::UnknownType { size }),
            _ => return refuse(MemberProblem::SizeWithoutContent),
        }
        if member.kind == MemberKind::Regular && placement == Placement::Inline {
            self.counts.inlined.add(size);
        }
        self.due = Due::Whole { size, placement };
        Ok(())
    }

    /// Has a file read that the tar-split says comes next.
    fn file(&mut self, name: EntryName, size: u64, crc64: [u8; 8]) -> Result<(), LayerError> {
        let problem = match self.due {
            Due::Whole { size: header, .. } if header == size => None,
            Due::Whole { size: header, .. } => Some(MemberProblem::Size { size, header }),
            _ => Some(MemberProblem::NotDue { size }),
        };
        if let Some(problem) = problem {
            return Err(LayerError::Member { name, problem });
        }
        let due = std::mem::replace(&mut self.due, Due::Nothing);
        let content = if let Due::Whole {
            placement: Placement::External,
            ..
        } = due
        {
            Content::Object
        } else {
            self.step_over(size)?;
            Content::Inline
        };
        if size > BUFFER as u64 {
            return self.large_file(name, size, crc64, content);
        }
        let buffer = self.buffer()?;
        let (promise, answer) = promise();
        self.queue.push(Job::File(FileJob {
            layer: Arc::clone(&self.guard),
            name: name.clone(),
            size,
            crc64,
            content,
            buffer,
            promise,
        }));
        self.push(Pending::File { name, answer })
    }

    fn large_file(
        &mut self,
        name: EntryName,
        size: u64,
        crc64: [u8; 8],
        content: Content,
    ) -> Result<(), LayerError> {
        let source = match Source::open(&self.guard, &name, size) {
            Ok(source) => Arc::new(source),
            Err(source) => return Err(LayerError::File { name, source }),
        };
        self.push(Pending::Large(Large {
            name,
            size,
            crc64,
            content,
            source: Arc::clone(&source),
        }))?;
        let mut at = 0;
        while at < size {
            let len = (size - at).min(BUFFER as u64);
            let buffer = self.buffer()?;
            let (promise, answer) = promise();
            self.queue.push(Job::Piece(PieceJob {
                source: Arc::clone(&source),
                at,
                len: len as usize,
                buffer,
                promise,
            }));
            self.push(Pending::Piece(answer))?;
            at += len;
        }
        Ok(())
    }

    /// Takes the splitter over inline content that is yet to be read. It only counts the bytes.
    fn step_over(&mut self, size: u64) -> Result<(), LayerError> {
        let zeros = [0; 512];
        let mut left = size;
        while left > 0 {
            let some = &zeros[..left.min(zeros.len() as u64) as usize];
            left -= self.step(some)? as u64;
        }
        Ok(())
    }

    // Between the ends.

    fn push(&mut self, part: Pending) -> Result<(), LayerError> {
        self.pending_bytes += part.own_bytes();
        self.pending.push_back(part);
        while self.pending_bytes > SEGMENTS_MAX {
            self.take_one()?;
        }
        Ok(())
    }

    /// A free buffer, as soon as there is one.
    fn buffer(&mut self) -> Result<Buffer, LayerError> {
        loop {
            if self.context.stop.is_set() {
                return Err(LayerError::Stopped);
            }
            if let Some(buffer) = self.free.pop() {
                return Ok(buffer);
            }
            self.take_one()?;
        }
    }

    // The back end.

    /// Takes the oldest pending part, waiting for it if it is being read.
    fn take_one(&mut self) -> Result<(), LayerError> {
        let Some(part) = self.pending.pop_front() else {
            return Ok(());
        };
        self.pending_bytes -= part.own_bytes();
        match part {
            Pending::Inline(bytes) => {
                self.read(&bytes);
                self.writer.inline(&bytes)?;
            }
            Pending::Embedded { bytes, left } => self.take_embedded(&bytes, left)?,
            Pending::File { name, answer } => {
                let done = settle(answer, &name)?;
                self.read(done.buffer.bytes());
                match done.object {
                    None => self.writer.inline(done.buffer.bytes())?,
                    Some((digest, stored)) => {
                        self.external(&digest, done.buffer.bytes().len() as u64, stored)?;
                    }
                }
                self.free.push(done.buffer);
                self.meter.file();
            }
            Pending::Large(file) => {
                self.large = Some(OpenLarge {
                    left: file.size,
                    crc: ContentCrc::new(),
                    verity: VerityHasher::new(self.context.algorithm),
                    file,
                });
            }
            Pending::Piece(answer) => self.take_piece(answer)?,
        }
        Ok(())
    }

    /// Every byte of the tar goes through here, in order.
    fn read(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        self.tar_bytes += bytes.len() as u64;
        self.meter.bytes(bytes.len() as u64);
    }

    fn external(
        &mut self,
        digest: &VerityDigest,
        size: u64,
        stored: Stored,
    ) -> Result<(), LayerError> {
        let tally = match stored {
            Stored::Present => &mut self.counts.present,
            Stored::Reflinked => &mut self.counts.reflinked,
            Stored::Copied | Stored::Written => &mut self.counts.copied,
        };
        tally.add(size);
        self.writer.external(digest, size)?;
        Ok(())
    }

    fn take_embedded(&mut self, bytes: &[u8], left: u64) -> Result<(), LayerError> {
        self.read(bytes);
        let mut object = match self.embedded.take() {
            Some(object) => object,
            None => self.context.batch.object_writer()?,
        };
        object
            .write_all(bytes)
            .map_err(|source| repository::Error::Io {
                action: "write an object in",
                path: PRIVATE_DIRECTORY.into(),
                source,
            })?;
        if left > 0 {
            self.embedded = Some(object);
            return Ok(());
        }
        let (digest, size, stored) = object.finish()?;
        self.meter.file();
        self.external(&digest, size, stored)
    }

    fn take_piece(
        &mut self,
        answer: Answer<Result<PieceDone, JobError>>,
    ) -> Result<(), LayerError> {
        // A piece always follows the beginning of its file.
        let Some(mut large) = self.large.take() else {
            return Err(LayerError::WorkerLost);
        };
        let done = settle(answer, &large.file.name)?;
        let bytes = done.buffer.bytes();
        self.read(bytes);
        large.crc.update(bytes);
        match large.file.content {
            Content::Inline => self.writer.inline(bytes)?,
            Content::Object => large.verity.push_leaves(&done.leaves, bytes.len() as u64),
        }
        large.left -= bytes.len() as u64;
        self.free.push(done.buffer);
        if large.left > 0 {
            self.large = Some(large);
            return Ok(());
        }
        let OpenLarge {
            file, crc, verity, ..
        } = large;
        let in_file = |source| LayerError::File {
            name: file.name.clone(),
            source,
        };
        if crc.finish() != file.crc64 {
            return Err(in_file(FileError::Content));
        }
        if file.content == Content::Object {
            let digest = verity.finish();
            let stored = file.source.store(self.context, &digest).map_err(in_file)?;
            self.external(&digest, file.size, stored)?;
        }
        self.meter.file();
        Ok(())
    }
}

impl Pending {
    /// Memory that the part holds besides buffers, roughly.
    fn own_bytes(&self) -> usize {
        let held = match self {
            Self::Inline(bytes) | Self::Embedded { bytes, .. } => bytes.len(),
            Self::File { .. } | Self::Large(_) | Self::Piece(_) => 0,
        };
        held + size_of::<Self>()
    }
}

/// Waits for a job that concerns the file `name`.
fn settle<T>(answer: Answer<Result<T, JobError>>, name: &EntryName) -> Result<T, LayerError> {
    match answer.wait() {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(JobError::Stopped)) => Err(LayerError::Stopped),
        Ok(Err(JobError::File(FileError::Open(error)))) => Err(error.into()),
        Ok(Err(JobError::File(source))) => Err(LayerError::File {
            name: name.clone(),
            source,
        }),
        Err(Lost) => Err(LayerError::WorkerLost),
    }
}

/// Tells the progress of a layer, not too often.
struct Meter<'a> {
    layer: usize,
    progress: &'a dyn Progress,
    bytes: u64,
    files: u64,
}

impl Meter<'_> {
    fn bytes(&mut self, bytes: u64) {
        self.bytes += bytes;
        if self.bytes >= ADVANCE {
            self.tell();
        }
    }

    fn file(&mut self) {
        self.files += 1;
    }

    fn tell(&mut self) {
        let (bytes, files) = (
            std::mem::take(&mut self.bytes),
            std::mem::take(&mut self.files),
        );
        if bytes > 0 || files > 0 {
            self.progress.event(&Event::LayerAdvanced {
                layer: self.layer,
                bytes,
                files,
            });
        }
    }
}
