//! Reading the entries of a layer out of its split form.
//!
//! Memory is bounded: one portion of the stream, and at most 1 MiB of metadata for an entry.
//! Payloads that a tree has no use for are skipped. What an entry means for a tree is not judged
//! here, only that it and its payload are what a splitstream of a layer can hold.

use composefs_image::{Metadata, VerityDigest};

use super::{
    error::{EntryError, EntryProblem, LayerError, TarError},
    header::MemberKind,
    splitter::{INLINE_LIMIT, Member, Placement, Step, TarSplitter},
};

/// A portion of a split layer.
#[derive(Debug)]
pub enum Chunk<'a> {
    /// Bytes of the tar; not empty.
    Inline(&'a [u8]),
    /// All of an object, in place of a payload.
    External(VerityDigest),
}

/// Where the portions of a split layer come from.
pub trait Chunks {
    /// The next portion; `None` at the end. Inline bytes may be cut anywhere.
    fn next_chunk(&mut self) -> crate::Result<Option<Chunk<'_>>>;
}

/// The content of a regular file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// At most [`INLINE_LIMIT`] bytes.
    Inline(Vec<u8>),
    /// An object.
    External {
        /// Size in bytes, as the tar says; more than [`INLINE_LIMIT`].
        size: u64,
        /// The object.
        digest: VerityDigest,
    },
}

/// What an entry puts into a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A directory.
    Directory,
    /// A regular file.
    Regular(Body),
    /// Another name for the file at this path, as recorded in the tar.
    HardLink(Vec<u8>),
    /// A symbolic link with this target.
    Symlink(Vec<u8>),
    /// A character device with its number as in `stat`.
    CharDevice(u32),
    /// A block device with its number as in `stat`.
    BlockDevice(u32),
    /// A named pipe.
    Fifo,
}

/// An entry of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As recorded: may be absolute, hold `..`, end in a slash. Never empty.
    pub path: Vec<u8>,
    /// Mode, owner and modification time.
    pub metadata: Metadata,
    /// In the order of the tar; of a name that occurs twice the last one counts.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The rest.
    pub item: Item,
    /// The type flag, as recorded.
    pub type_flag: u8,
}

impl Entry {
    /// An error about this entry.
    pub(super) fn error(&self, problem: EntryProblem) -> EntryError {
        EntryError {
            path: self.path.clone(),
            problem,
        }
    }
}

/// Reads entries from the portions of a split layer.
pub struct EntryReader<C> {
    chunks: C,
    splitter: TarSplitter,
    inline: Vec<u8>,
    taken: usize,
}

enum Input {
    Inline,
    External(VerityDigest),
    End,
}

impl<C: Chunks> EntryReader<C> {
    /// At the start of a layer.
    pub fn new(chunks: C) -> Self {
        Self {
            chunks,
            splitter: TarSplitter::new(),
            inline: Vec::new(),
            taken: 0,
        }
    }

    /// The next entry; `None` at the end of the layer.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, LayerError> {
        loop {
            match self.input()? {
                Input::End => {
                    self.splitter.finish()?;
                    return Ok(None);
                }
                Input::External(_) => return Err(self.misplaced().into()),
                Input::Inline => {}
            }
            match self.push()? {
                Step::Inline(_) | Step::Payload(_) => {}
                Step::Member { placement, .. } => {
                    if let Some(member) = self.splitter.take_member() {
                        return self.entry(member, placement).map(Some);
                    }
                }
            }
        }
    }

    /// Makes sure that there are inline bytes, if that is what comes next.
    fn input(&mut self) -> crate::Result<Input> {
        if self.taken < self.inline.len() {
            return Ok(Input::Inline);
        }
        loop {
            match self.chunks.next_chunk()? {
                None => return Ok(Input::End),
                Some(Chunk::External(digest)) => return Ok(Input::External(digest)),
                Some(Chunk::Inline([])) => {}
                Some(Chunk::Inline(bytes)) => {
                    self.inline.clear();
                    self.inline.extend_from_slice(bytes);
                    self.taken = 0;
                    return Ok(Input::Inline);
                }
            }
        }
    }

    fn push(&mut self) -> Result<Step, TarError> {
        let step = self.splitter.push(&self.inline[self.taken..])?;
        let (Step::Inline(n) | Step::Member { consumed: n, .. } | Step::Payload(n)) = step;
        self.taken += n;
        Ok(step)
    }

    fn entry(&mut self, member: Member, placement: Placement) -> Result<Entry, LayerError> {
        let error = |path: &[u8], problem| EntryError {
            path: path.to_vec(),
            problem,
        };
        let item = match (member.kind, placement) {
            (MemberKind::Regular, Placement::External) => match self.input()? {
                Input::External(digest) => Item::Regular(Body::External {
                    size: member.size,
                    digest,
                }),
                Input::Inline => {
                    return Err(error(&member.path, EntryProblem::LargeInline(member.size)).into());
                }
                Input::End => {
                    return Err(TarError::truncated(Some(member.path), &self.splitter).into());
                }
            },
            (MemberKind::Regular, Placement::Inline) => {
                Item::Regular(Body::Inline(self.small_payload(&member)?))
            }
            (MemberKind::Directory, _) => Item::Directory,
            (MemberKind::HardLink, _) => Item::HardLink(member.link_target),
            (MemberKind::Symlink, _) => Item::Symlink(member.link_target),
            (MemberKind::Fifo, _) => Item::Fifo,
            (MemberKind::CharDevice, _) => Item::CharDevice(
                device_number(member.device).map_err(|problem| error(&member.path, problem))?,
            ),
            (MemberKind::BlockDevice, _) => Item::BlockDevice(
                device_number(member.device).map_err(|problem| error(&member.path, problem))?,
            ),
            (MemberKind::Other(flag), _) => {
                return Err(error(&member.path, EntryProblem::UnknownType(flag)).into());
            }
        };
        Ok(Entry {
            path: member.path,
            metadata: Metadata {
                mode: member.mode,
                uid: member.uid,
                gid: member.gid,
                mtime: member.mtime,
            },
            xattrs: member.xattrs,
            item,
            type_flag: member.type_flag,
        })
    }

    fn small_payload(&mut self, member: &Member) -> Result<Vec<u8>, LayerError> {
        debug_assert!(member.size <= INLINE_LIMIT);
        let mut content = Vec::with_capacity(member.size as usize);
        while (content.len() as u64) < member.size {
            match self.input()? {
                Input::Inline => {}
                Input::External(_) => {
                    return Err(EntryError {
                        path: member.path.clone(),
                        problem: EntryProblem::SmallExternal(member.size),
                    }
                    .into());
                }
                Input::End => {
                    let path = Some(member.path.clone());
                    return Err(TarError::truncated(path, &self.splitter).into());
                }
            }
            let start = self.taken;
            self.push()?;
            content.extend_from_slice(&self.inline[start..self.taken]);
        }
        Ok(content)
    }

    fn misplaced(&self) -> TarError {
        TarError {
            path: None,
            offset: self.splitter.offset(),
            kind: super::error::TarErrorKind::MisplacedObject,
        }
    }
}

/// The low 32 bits of `makedev`, as `stat` and EROFS have them.
fn device_number(device: Option<(u32, u32)>) -> Result<u32, EntryProblem> {
    let (major, minor) = device.ok_or(EntryProblem::NoDeviceNumber)?;
    if major > 0xfff || minor > 0xf_ffff {
        return Err(EntryProblem::LargeDeviceNumber { major, minor });
    }
    Ok((minor & 0xff) | (major << 8) | ((minor & 0xf_ff00) << 12))
}
