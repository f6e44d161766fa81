//! One layer, from its source to a splitstream with the diff ID it must have.
//!
//! Two ends of a queue, both worked by the layer's own thread. The front end follows the tar's headers
//! to know what each payload is, and pushes a job for every file: [`tar_split`] walks a tar-split and has
//! the files read, [`blob`] reads a tar itself and fills the buffers. The back end ([`Layer::take_one`])
//! takes the answers in order, feeds SHA-256 and writes the splitstream. So each file is hashed and
//! stored by a worker, ahead of the place where the tar needs it; only SHA-256 and the splitstream's
//! compression run in order. The front end goes on as long as there are free buffers, which bounds
//! memory and open files alike.
//!
//! Nothing of the layer has a name when [`import`] returns its splitstream's digest; the batch's
//! commit gives it one.

mod blob;
mod tar_split;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;

use composefs_image::{VerityDigest, VerityHasher};
use containers_storage::{ContentCrc, EntryName};
use repository::layers::{MemberKind, Placement, Step, TarSplitter};
use repository::oci::DiffId;
use repository::splitstream::{ContentType, Mention, Writer};
use repository::{ChecksumWriter, ObjectWriter, StagedChecksums, Stored};
use sha2::{Digest as _, Sha256};

use crate::error::{FileError, LayerError, MemberProblem};
use crate::image::DiffIdCheck;
use crate::pool::{Answer, Lost, Queue, promise};
use crate::progress::{Event, Progress};
use crate::report::{Counts, LayerOutcome};
use crate::source::{LayerContent, SourceLayer};
use crate::work::{
    BUFFER, Buffer, BytesJob, Context, FileDone, FilesDone, FilesError, FilesJob, Job, JobError,
    LeavesJob, Object, PieceDone, SmallDone, Source,
};

/// Bytes of headers and the like in flight, beside the segment in hand.
const SEGMENTS_MAX: usize = 1 << 20;
/// Payload in bytes of a member that is no regular file but has content, of which there are none in
/// practice. It would have to be kept in memory.
const OTHER_MAX: u64 = 1 << 20;
/// Members of a layer: as many as a tar-split may have files. The tree that is made of them is in memory.
const MEMBERS_MAX: u32 = 4 << 20;
/// Bytes between two progress events.
const ADVANCE: u64 = 4 << 20;

/// A layer that was read.
pub(crate) struct Imported {
    /// `None` if the source is trusted.
    diff_id: Option<DiffId>,
    pub(crate) stream: VerityDigest,
    pub(crate) checksums: StagedChecksums,
    pub(crate) tar_bytes: u64,
    pub(crate) counts: Counts,
}

/// Reads a layer, stages its objects and its splitstream, and compares its diff ID.
pub(crate) fn import(
    source: &SourceLayer<'_>,
    index: usize,
    context: &Context<'_>,
    queue: &Queue<Job>,
    progress: &dyn Progress,
) -> Result<Imported, LayerError> {
    let sha256 = match (context.diff_ids, &source.content) {
        (DiffIdCheck::TrustSource, LayerContent::Stored(_)) => None,
        _ => Some(Sha256::new()),
    };
    let layer = Layer::new(index, sha256, context, queue, progress)?;
    let imported = match &source.content {
        LayerContent::Stored(stored) => tar_split::read(stored, layer)?,
        LayerContent::Blob { descriptor, blob } => {
            blob::read(blob.as_ref(), descriptor.as_ref(), layer)?
        }
    };
    match imported.diff_id {
        Some(actual) if actual != source.diff_id => Err(LayerError::DiffId { actual }),
        _ => Ok(imported),
    }
}

/// One layer in work.
struct Layer<'a> {
    context: &'a Context<'a>,
    queue: &'a Queue<Job>,
    // The front end: what the tar said.
    splitter: TarSplitter,
    members: u32,
    due: Due,
    /// A buffer that is being filled with content that came with the tar itself.
    filling: Option<Buffer>,
    free: Vec<Buffer>,
    /// Small files that are not in the queue yet, for more to join them; their bytes.
    files: Option<FilesJob>,
    files_bytes: usize,
    // Between the ends.
    pending: VecDeque<Pending>,
    pending_bytes: usize,
    /// Jobs of small files in `pending` that are in the queue or done.
    files_queued: usize,
    // The back end: what was read.
    /// Small files that were read and are not all taken yet.
    taken: Option<TakenFiles>,
    /// `None` if the source is trusted.
    sha256: Option<Sha256>,
    writer: Writer<'a, 'a>,
    /// Those of the objects that the splitstream names.
    checksums: ChecksumWriter<'a, 'a>,
    large: Option<OpenLarge<'a>>,
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
    /// The tar brings it itself, and it becomes an object; `left` bytes of it are still to come.
    Rest { left: u64 },
}

/// A part of the tar on its way from the front to the back end.
enum Pending {
    /// Bytes that stay inline.
    Inline(Vec<u8>),
    /// Content that one buffer holds.
    File {
        name: EntryName,
        answer: Answer<Result<FileDone, JobError>>,
    },
    /// The first of the small files that one buffer holds.
    Files(Answer<Result<FilesDone, FilesError>>),
    /// The next one of them.
    NextFile,
    /// The beginning of larger content.
    Large(Large),
    /// All of it, which nobody has to see.
    Unread,
    /// The next piece of it.
    Piece(Answer<Result<PieceDone, JobError>>),
}

/// Small files that were read, of which some are taken.
struct TakenFiles {
    buffer: Buffer,
    /// Where the next one begins in the buffer.
    at: usize,
    left: std::vec::IntoIter<SmallDone>,
}

/// Content of more than one piece.
struct Large {
    name: EntryName,
    size: u64,
    from: LargeFrom,
}

/// Where the pieces come from.
enum LargeFrom {
    /// A file of the layer, which is cloned when all of it was read.
    File {
        source: Arc<Source>,
        crc64: [u8; 8],
        to: FileTo,
    },
    /// The tar itself. It becomes an object piece by piece.
    Tar,
}

/// What a larger file of the layer becomes.
#[derive(Clone, Copy)]
enum FileTo {
    Inline,
    /// An object whose digest is yet to be computed.
    Object,
    /// The object that the kernel says it is.
    Measured(VerityDigest),
}

/// The larger content that the back end is in the middle of.
struct OpenLarge<'a> {
    name: EntryName,
    size: u64,
    left: u64,
    crc: ContentCrc,
    to: LargeTo<'a>,
}

enum LargeTo<'a> {
    File {
        source: Arc<Source>,
        expected_crc: [u8; 8],
        to: FileTo,
        verity: Box<VerityHasher>,
    },
    Object(Box<ObjectWriter<'a, 'a>>),
}

impl Imported {
    pub(crate) fn outcome(&self) -> LayerOutcome {
        match self.diff_id {
            Some(_) => LayerOutcome::Imported,
            None => LayerOutcome::Trusted,
        }
    }
}

impl<'a> Layer<'a> {
    fn new(
        index: usize,
        sha256: Option<Sha256>,
        context: &'a Context<'a>,
        queue: &'a Queue<Job>,
        progress: &'a dyn Progress,
    ) -> Result<Self, LayerError> {
        Ok(Self {
            context,
            queue,
            splitter: TarSplitter::new(),
            members: 0,
            due: Due::Nothing,
            filling: None,
            free: (0..context.buffers).map(|_| Buffer::new()).collect(),
            files: None,
            files_bytes: 0,
            taken: None,
            pending: VecDeque::new(),
            pending_bytes: 0,
            files_queued: 0,
            sha256,
            writer: Writer::new(context.batch, ContentType::OCI_LAYER)?,
            checksums: context.batch.checksum_writer()?,
            large: None,
            counts: Counts::default(),
            tar_bytes: 0,
            meter: Meter {
                layer: index,
                progress,
                bytes: 0,
                files: 0,
                told: 0,
            },
        })
    }

    // The front end.

    /// Takes the next bytes of the tar itself: headers, and the content that is among them.
    fn tar(&mut self, bytes: &[u8]) -> Result<(), LayerError> {
        let mut inline_from = 0;
        let mut at = 0;
        while at < bytes.len() {
            let left = match self.due {
                Due::Rest { left } => left,
                Due::Whole {
                    size,
                    placement: Placement::External,
                } => {
                    self.push_inline(&bytes[inline_from..at])?;
                    self.begin_content(size)?;
                    size
                }
                _ => {
                    at += self.step(&bytes[at..])?;
                    continue;
                }
            };
            let rest = &bytes[at..];
            let content = &rest[..rest.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
            self.content(content, left)?;
            at += content.len();
            inline_from = at;
        }
        self.push_inline(&bytes[inline_from..])
    }

    /// Begins content that the tar brings itself.
    fn begin_content(&mut self, size: u64) -> Result<(), LayerError> {
        if size > BUFFER as u64 {
            let name = self.member_name();
            self.push(Pending::Large(Large {
                name,
                size,
                from: LargeFrom::Tar,
            }))?;
        }
        Ok(())
    }

    /// Takes some of that content, of which `left` bytes were to come.
    fn content(&mut self, mut bytes: &[u8], mut left: u64) -> Result<(), LayerError> {
        while !bytes.is_empty() {
            let mut buffer = match self.filling.take() {
                Some(buffer) => buffer,
                None => self.buffer()?,
            };
            let taken = buffer.append(bytes);
            bytes = &bytes[taken..];
            left -= taken as u64;
            if left > 0 && !buffer.is_full() {
                self.filling = Some(buffer);
            } else {
                self.content_buffer(buffer)?;
            }
        }
        self.due = match left {
            0 => Due::Nothing,
            left => Due::Rest { left },
        };
        Ok(())
    }

    /// Has a full buffer, or the last one, of the current member hashed.
    fn content_buffer(&mut self, buffer: Buffer) -> Result<(), LayerError> {
        let size = self.splitter.member().map_or(0, |member| member.size);
        if size > BUFFER as u64 {
            let (promise, answer) = promise();
            self.queue.push(Job::Leaves(LeavesJob { buffer, promise }));
            return self.push(Pending::Piece(answer));
        }
        let (promise, answer) = promise();
        self.queue.push(Job::Bytes(BytesJob { buffer, promise }));
        let name = self.member_name();
        self.push(Pending::File { name, answer })
    }

    fn member_name(&self) -> EntryName {
        let path = self.splitter.member().map(|member| member.path.clone());
        EntryName::from(path.unwrap_or_default())
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
        self.members += 1;
        if self.members > MEMBERS_MAX {
            return Err(LayerError::TooManyMembers {
                entry: self.member_name(),
                limit: MEMBERS_MAX,
            });
        }
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

    // Between the ends.

    fn push_inline(&mut self, bytes: &[u8]) -> Result<(), LayerError> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.push(Pending::Inline(bytes.to_vec()))
    }

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

    /// Has the small files read that were put together so far.
    fn submit_files(&mut self) {
        if let Some(job) = self.files.take() {
            self.queue.push(Job::Files(job));
            self.files_queued += 1;
        }
    }

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
            Pending::File { name, answer } => {
                let done = settle(answer, &name)?;
                self.read(done.buffer.bytes());
                self.external(&done.object, done.buffer.bytes().len() as u64)?;
                self.free.push(done.buffer.clear());
                self.meter.file();
            }
            Pending::Files(answer) => {
                if self.files_queued == 0 {
                    self.submit_files();
                }
                self.files_queued = self.files_queued.saturating_sub(1);
                let FilesDone { buffer, files } = settle_files(answer)?;
                self.taken = Some(TakenFiles {
                    buffer,
                    at: 0,
                    left: files.into_iter(),
                });
                self.take_small_file()?;
            }
            Pending::NextFile => self.take_small_file()?,
            Pending::Large(large) => self.begin_large(large)?,
            Pending::Unread => self.take_unread()?,
            Pending::Piece(answer) => self.take_piece(answer)?,
        }
        Ok(())
    }

    fn take_small_file(&mut self) -> Result<(), LayerError> {
        // The files of a job always follow each other.
        let Some(mut taken) = self.taken.take() else {
            return Err(LayerError::WorkerLost);
        };
        let Some(file) = taken.left.next() else {
            return Err(LayerError::WorkerLost);
        };
        let content = &taken.buffer.bytes()[taken.at..taken.at + file.read];
        self.read(content);
        self.pass((file.size - file.read) as u64);
        match file.object {
            None => self.writer.inline(content)?,
            Some(object) => self.external(&object, file.size as u64)?,
        }
        self.meter.file();
        taken.at += file.read;
        if taken.left.len() > 0 {
            self.taken = Some(taken);
        } else {
            self.free.push(taken.buffer.clear());
        }
        Ok(())
    }

    /// Every byte of the tar goes through here, in order.
    fn read(&mut self, bytes: &[u8]) {
        if let Some(sha256) = &mut self.sha256 {
            sha256.update(bytes);
        }
        self.pass(bytes.len() as u64);
    }

    /// Counts bytes of the tar.
    fn pass(&mut self, bytes: u64) {
        self.tar_bytes += bytes;
        self.meter.bytes(bytes);
    }

    fn external(&mut self, object: &Object, size: u64) -> Result<(), LayerError> {
        let tally = match object.stored {
            Stored::Present => &mut self.counts.present,
            Stored::Reflinked => &mut self.counts.reflinked,
            Stored::Copied => &mut self.counts.copied,
            Stored::Written => &mut self.counts.written,
        };
        tally.add(size);
        if self.writer.external(&object.digest, size)? == Mention::First {
            self.checksums.push(object.crc64)?;
        }
        Ok(())
    }

    fn begin_large(&mut self, large: Large) -> Result<(), LayerError> {
        let to = match large.from {
            LargeFrom::File { source, crc64, to } => LargeTo::File {
                source,
                expected_crc: crc64,
                to,
                verity: Box::new(VerityHasher::new(self.context.algorithm)),
            },
            LargeFrom::Tar => LargeTo::Object(Box::new(self.context.batch.object_writer()?)),
        };
        self.large = Some(OpenLarge {
            name: large.name,
            size: large.size,
            left: large.size,
            crc: ContentCrc::new(),
            to,
        });
        Ok(())
    }

    fn take_piece(
        &mut self,
        answer: Answer<Result<PieceDone, JobError>>,
    ) -> Result<(), LayerError> {
        // A piece always follows the beginning of its file.
        let Some(mut large) = self.large.take() else {
            return Err(LayerError::WorkerLost);
        };
        let done = settle(answer, &large.name)?;
        let bytes = done.buffer.bytes();
        self.read(bytes);
        large.crc.update(bytes);
        match &mut large.to {
            LargeTo::File { to, verity, .. } => match to {
                FileTo::Inline => self.writer.inline(bytes)?,
                FileTo::Object => verity.push_leaves(&done.leaves, bytes.len() as u64),
                FileTo::Measured(_) => {}
            },
            LargeTo::Object(object) => object.write_hashed(bytes, &done.leaves)?,
        }
        large.left -= bytes.len() as u64;
        self.free.push(done.buffer.clear());
        if large.left > 0 {
            self.large = Some(large);
            return Ok(());
        }
        self.finish_large(large)
    }

    fn finish_large(&mut self, large: OpenLarge<'_>) -> Result<(), LayerError> {
        let crc64 = large.crc.finish();
        match &large.to {
            LargeTo::File { expected_crc, .. } if crc64 != *expected_crc => Err(LayerError::File {
                name: large.name,
                source: FileError::Content,
            }),
            _ => self.store_large(large, crc64),
        }
    }

    /// Passes over larger content that is known to be an object.
    fn take_unread(&mut self) -> Result<(), LayerError> {
        // It always follows the beginning of its file.
        let Some(large) = self.large.take() else {
            return Err(LayerError::WorkerLost);
        };
        let LargeTo::File { expected_crc, .. } = &large.to else {
            return Err(LayerError::WorkerLost);
        };
        let crc64 = *expected_crc;
        self.pass(large.size);
        self.store_large(large, crc64)
    }

    fn store_large(&mut self, large: OpenLarge<'_>, crc64: [u8; 8]) -> Result<(), LayerError> {
        let name = large.name;
        let in_file = |source| LayerError::File { name, source };
        let object = |digest, stored| Object {
            digest,
            stored,
            crc64,
        };
        match large.to {
            LargeTo::File {
                to: FileTo::Inline, ..
            } => {}
            LargeTo::File {
                source, to, verity, ..
            } => {
                let digest = match to {
                    FileTo::Measured(digest) => digest,
                    _ => verity.finish(),
                };
                let stored = source.store(self.context, &digest).map_err(in_file)?;
                self.external(&object(digest, stored), large.size)?;
            }
            LargeTo::Object(writer) => {
                let (digest, size, stored) = writer.finish()?;
                self.external(&object(digest, stored), size)?;
            }
        }
        self.meter.file();
        Ok(())
    }

    /// Takes everything that is pending, and what was read as a whole.
    fn finish(mut self) -> Result<Imported, LayerError> {
        self.splitter.finish()?;
        while !self.pending.is_empty() {
            self.take_one()?;
        }
        self.meter.tell();
        let (stream, _) = self.writer.finish()?;
        Ok(Imported {
            diff_id: self
                .sha256
                .map(|sha256| DiffId::from_bytes(sha256.finalize().into())),
            stream,
            checksums: self.checksums.finish(&stream)?,
            tar_bytes: self.tar_bytes,
            counts: self.counts,
        })
    }
}

impl Pending {
    /// Memory that the part holds besides buffers, roughly.
    fn own_bytes(&self) -> usize {
        let held = match self {
            Self::Inline(bytes) => bytes.len(),
            Self::File { .. }
            | Self::Files(_)
            | Self::NextFile
            | Self::Large(_)
            | Self::Unread
            | Self::Piece(_) => 0,
        };
        held + size_of::<Self>()
    }
}

/// Waits for a job that concerns the file `name`.
fn settle<T>(answer: Answer<Result<T, JobError>>, name: &EntryName) -> Result<T, LayerError> {
    match answer.wait() {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(failed(error, name.clone())),
        Err(Lost) => Err(LayerError::WorkerLost),
    }
}

fn settle_files(answer: Answer<Result<FilesDone, FilesError>>) -> Result<FilesDone, LayerError> {
    match answer.wait() {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(FilesError { name, error })) => Err(failed(error, name)),
        Err(Lost) => Err(LayerError::WorkerLost),
    }
}

fn failed(error: JobError, name: EntryName) -> LayerError {
    match error {
        JobError::Stopped => LayerError::Stopped,
        JobError::File(FileError::Open(error)) => error.into(),
        JobError::File(source) => LayerError::File { name, source },
    }
}

/// Tells the progress of a layer, not too often.
struct Meter<'a> {
    layer: usize,
    progress: &'a dyn Progress,
    bytes: u64,
    files: u64,
    /// The bytes that were told last.
    told: u64,
}

impl Meter<'_> {
    fn bytes(&mut self, bytes: u64) {
        self.bytes += bytes;
        if self.bytes - self.told >= ADVANCE {
            self.tell();
        }
    }

    fn file(&mut self) {
        self.files += 1;
    }

    fn tell(&mut self) {
        self.told = self.bytes;
        self.progress.event(&Event::LayerAdvanced {
            layer: self.layer,
            bytes: self.bytes,
            files: self.files,
        });
    }
}
