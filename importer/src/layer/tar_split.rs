//! The front end for containers-storage: a tar-split, and the files of the layer's directory.

use std::sync::Arc;

use containers_storage::{EntryName, TarSplitEntry};
use repository::layers::Placement;

use super::{Due, FileTo, Imported, Large, LargeFrom, Layer, Pending};
use crate::error::{LayerError, MemberProblem};
use crate::pool::promise;
use crate::work::{
    BUFFER, Content, FILES, Files, FilesJob, Hashing, Job, PieceJob, SmallFile, Source,
};

/// Reads a layer. The engine may go on working on its store meanwhile.
pub(super) fn read(
    stored: &containers_storage::Layer,
    layer: Layer<'_>,
) -> Result<Imported, LayerError> {
    read_files(&Arc::new(Files::new(stored.open()?)), layer)
}

pub(super) fn read_files(files: &Arc<Files>, layer: Layer<'_>) -> Result<Imported, LayerError> {
    let front = TarSplit {
        files: Arc::clone(files),
        layer,
    };
    let imported = front.read().map_err(|error| match error {
        LayerError::Stopped => error,
        // A file that changed or went away is only what comes of a layer that is being removed.
        _ => match files.open.check_unchanged() {
            Err(changed @ containers_storage::Error::LayerChanged { .. }) => changed.into(),
            _ => error,
        },
    })?;
    if imported.diff_id.is_none() {
        // Nothing else proves that the files were whole while they were read.
        files.open.check_unchanged()?;
    }
    Ok(imported)
}

struct TarSplit<'a> {
    files: Arc<Files>,
    layer: Layer<'a>,
}

impl TarSplit<'_> {
    fn read(mut self) -> Result<Imported, LayerError> {
        let files = Arc::clone(&self.files);
        for entry in files.open.tar_split()? {
            if self.layer.context.stop.is_set() {
                return Err(LayerError::Stopped);
            }
            self.entry(entry?)?;
        }
        self.layer.finish()
    }

    fn entry(&mut self, entry: TarSplitEntry) -> Result<(), LayerError> {
        match entry {
            // Content may be in it too: a tar-split need not leave it out.
            TarSplitEntry::Segment(bytes) => self.layer.tar(&bytes),
            TarSplitEntry::File { size: 0, .. } => Ok(()),
            TarSplitEntry::File { name, size, crc64 } => self.file(name, size, crc64),
        }
    }

    /// Has a file read that the tar-split says comes next.
    fn file(&mut self, name: EntryName, size: u64, crc64: [u8; 8]) -> Result<(), LayerError> {
        let problem = match self.layer.due {
            Due::Whole { size: header, .. } if header == size => None,
            Due::Whole { size: header, .. } => Some(MemberProblem::Size { size, header }),
            _ => Some(MemberProblem::NotDue { size }),
        };
        if let Some(problem) = problem {
            return Err(LayerError::Member { name, problem });
        }
        let due = std::mem::replace(&mut self.layer.due, Due::Nothing);
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
        let file = SmallFile {
            name,
            size: size as usize,
            crc64,
            content,
        };
        self.small_file(file)
    }

    /// Adds a file to the job that is being put together, or begins one with it.
    fn small_file(&mut self, file: SmallFile) -> Result<(), LayerError> {
        let layer = &mut self.layer;
        if let Some(job) = &mut layer.files
            && job.files.len() < FILES
            && layer.files_bytes + file.size <= BUFFER
        {
            layer.files_bytes += file.size;
            job.files.push(file);
            return layer.push(Pending::NextFile);
        }
        layer.submit_files();
        let buffer = layer.buffer()?;
        let (promise, answer) = promise();
        layer.files_bytes = file.size;
        layer.files = Some(FilesJob {
            layer: Arc::clone(&self.files),
            files: vec![file],
            buffer,
            promise,
        });
        layer.push(Pending::Files(answer))
    }

    fn large_file(
        &mut self,
        name: EntryName,
        size: u64,
        crc64: [u8; 8],
        content: Content,
    ) -> Result<(), LayerError> {
        let opened = Source::open(&self.files.open, &name, size).and_then(|source| {
            let to = match content {
                Content::Inline => FileTo::Inline,
                Content::Object => match self.files.measured(&source, self.layer.context)? {
                    Some(digest) => FileTo::Measured(digest),
                    None => FileTo::Object,
                },
            };
            Ok((Arc::new(source), to))
        });
        let (source, to) = match opened {
            Ok(opened) => opened,
            Err(source) => return Err(LayerError::File { name, source }),
        };
        self.layer.push(Pending::Large(Large {
            name,
            size,
            from: LargeFrom::File {
                source: Arc::clone(&source),
                crc64,
                to,
            },
        }))?;
        let hashing = match to {
            FileTo::Measured(_) if !self.layer.context.needs_content() => {
                return self.layer.push(Pending::Unread);
            }
            FileTo::Object => Hashing::Leaves,
            FileTo::Measured(_) | FileTo::Inline => Hashing::Nothing,
        };
        let mut at = 0;
        while at < size {
            let len = (size - at).min(BUFFER as u64);
            let buffer = self.layer.buffer()?;
            let (promise, answer) = promise();
            self.layer.queue.push(Job::Piece(PieceJob {
                source: Arc::clone(&source),
                at,
                len: len as usize,
                hashing,
                buffer,
                promise,
            }));
            self.layer.push(Pending::Piece(answer))?;
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
            left -= self.layer.step(some)? as u64;
        }
        Ok(())
    }
}
