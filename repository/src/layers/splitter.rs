//! The one state machine that knows where in a tar the headers, payloads and padding are.
//!
//! It is fed bytes in any portions and tells for each portion whether it is to be kept verbatim or
//! is the payload of a regular file above [`INLINE_LIMIT`], which a splitstream stores as an object
//! of its own. The importer uses it to split a layer; [`super::entry`] uses it to read the split
//! layer back. It keeps at most [`METADATA_LIMIT`] bytes, never reads files, and judges only what
//! the tar format says, not whether a path is safe. Follows the composefs repository format, "layer
//! tar to splitstream" and "interpreting a tar entry".

use composefs_image::Timestamp;

use super::{
    error::{TarError, TarErrorKind},
    header::{BLOCK, Header, MemberKind, Role},
    pax,
};

/// Largest regular file, in bytes, whose content stays inline in a splitstream and in an image.
pub const INLINE_LIMIT: u64 = 64;

/// Most bytes of long names and PAX records that one member may bring along.
pub const METADATA_LIMIT: u64 = 1 << 20;

const XATTR_PREFIX: &str = "SCHILY.xattr.";

/// What a tar says of one of its members, long names and PAX records applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// As recorded: may be absolute, hold `..`, end in a slash. Never empty.
    pub path: Vec<u8>,
    /// The type.
    pub kind: MemberKind,
    /// The type flag that it comes from.
    pub type_flag: u8,
    /// Target of a hard or symbolic link, as recorded; empty when there is none.
    pub link_target: Vec<u8>,
    /// Permission bits, set-ID bits and sticky bit.
    pub mode: u16,
    /// Owner; wider numbers lose their upper bits.
    pub uid: u32,
    /// Group; wider numbers lose their upper bits.
    pub gid: u32,
    /// Modification time.
    pub mtime: Timestamp,
    /// Length of the payload in bytes, which a member of any type may have.
    pub size: u64,
    /// Major and minor number, where the header format has them.
    pub device: Option<(u32, u32)>,
    /// Extended attributes in the order of the tar; names can occur twice, the last counts.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Where a member's payload goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// It stays in the stream: feed it to [`TarSplitter::push`] like everything else.
    Inline,
    /// It becomes an object: take exactly the member's `size` bytes out of the tar; the next
    /// [`TarSplitter::push`] starts behind them.
    External,
}

/// What the splitter made of the bytes it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// That many bytes are headers, padding or the end of the archive. They are inline.
    Inline(usize),
    /// That many bytes complete the headers of a member and are inline.
    /// [`TarSplitter::member`] tells which; its payload comes next.
    Member {
        /// Bytes taken.
        consumed: usize,
        /// Where the payload goes.
        placement: Placement,
    },
    /// That many bytes are payload of the current member and are inline.
    Payload(usize),
}

enum State {
    /// In front of or inside a header block.
    Header,
    /// Inside the payload of an extension header; `padding` follows.
    Extension {
        role: Role,
        remaining: u64,
        padding: u64,
    },
    Payload {
        remaining: u64,
        padding: u64,
    },
    Padding(u64),
    End,
}

#[derive(Default)]
struct Pending {
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: Option<Vec<u8>>,
    bytes: u64,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.long_name.is_none() && self.long_link.is_none() && self.pax.is_none()
    }
}

/// The state machine. See the module's documentation.
///
/// ```
/// use repository::layers::{Placement, Step, TarSplitter};
///
/// fn inline_bytes(mut tar: &[u8]) -> Result<usize, repository::layers::TarError> {
///     let mut splitter = TarSplitter::new();
///     let mut inline = 0;
///     while !tar.is_empty() {
///         let taken = match splitter.push(tar)? {
///             Step::Inline(n) | Step::Payload(n) => n,
///             Step::Member { consumed, placement: Placement::Inline } => consumed,
///             Step::Member { consumed, placement: Placement::External } => {
///                 let size = splitter.member().map_or(0, |member| member.size);
///                 tar = &tar[size as usize..]; // a real caller checks, and stores them
///                 consumed
///             }
///         };
///         inline += taken;
///         tar = &tar[taken..];
///     }
///     splitter.finish()?;
///     Ok(inline)
/// }
/// assert_eq!(inline_bytes(&[0; 1024])?, 1024);
/// # Ok::<(), repository::layers::TarError>(())
/// ```
pub struct TarSplitter {
    state: State,
    block: [u8; BLOCK],
    filled: usize,
    after_zero_block: bool,
    pending: Pending,
    member: Option<Member>,
    offset: u64,
    header_offset: u64,
}

impl Default for TarSplitter {
    fn default() -> Self {
        Self::new()
    }
}

impl TarSplitter {
    /// At the start of an archive.
    pub fn new() -> Self {
        Self {
            state: State::Header,
            block: [0; BLOCK],
            filled: 0,
            after_zero_block: false,
            pending: Pending::default(),
            member: None,
            offset: 0,
            header_offset: 0,
        }
    }

    /// The member whose headers were completed last.
    pub fn member(&self) -> Option<&Member> {
        self.member.as_ref()
    }

    /// Hands the current member over.
    pub(super) fn take_member(&mut self) -> Option<Member> {
        self.member.take()
    }

    /// Bytes of the tar that lie behind, external payloads included.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Looks at the next bytes of the tar, which must not be empty, and takes some of them: at
    /// least one, rarely all. Call again with the rest.
    pub fn push(&mut self, input: &[u8]) -> Result<Step, TarError> {
        debug_assert!(!input.is_empty(), "push without bytes makes no progress");
        let step = self.advance(input).map_err(|kind| TarError {
            path: Header::parse(&self.block).ok().map(|header| header.path()),
            offset: self.header_offset,
            kind,
        })?;
        let (Step::Inline(n) | Step::Member { consumed: n, .. } | Step::Payload(n)) = step;
        self.offset = self.offset.saturating_add(n as u64);
        if let Step::Member {
            placement: Placement::External,
            ..
        } = step
        {
            let size = self.member.as_ref().map_or(0, |member| member.size);
            self.offset = self.offset.saturating_add(size);
        }
        Ok(step)
    }

    /// To be called where the tar ends: an error inside a member. The end-of-archive blocks may be
    /// missing.
    pub fn finish(&self) -> Result<(), TarError> {
        let complete = match self.state {
            State::End => true,
            State::Header => self.filled == 0 && self.pending.is_empty(),
            _ => false,
        };
        if complete {
            Ok(())
        } else {
            Err(TarError {
                path: self.member.as_ref().map(|member| member.path.clone()),
                offset: self.offset,
                kind: TarErrorKind::Truncated,
            })
        }
    }

    fn advance(&mut self, input: &[u8]) -> Result<Step, TarErrorKind> {
        let available = input.len() as u64;
        match &mut self.state {
            State::End => Ok(Step::Inline(input.len())),
            State::Padding(remaining) => {
                let n = available.min(*remaining);
                *remaining -= n;
                if *remaining == 0 {
                    self.state = State::Header;
                }
                Ok(Step::Inline(n as usize))
            }
            State::Payload { remaining, padding } => {
                let n = available.min(*remaining);
                *remaining -= n;
                if *remaining == 0 {
                    self.state = after_payload(*padding);
                }
                Ok(Step::Payload(n as usize))
            }
            State::Extension {
                role,
                remaining,
                padding,
            } => {
                let n = available.min(*remaining);
                *remaining -= n;
                let bytes = &input[..n as usize];
                let Pending {
                    long_name,
                    long_link,
                    pax,
                    ..
                } = &mut self.pending;
                match role {
                    Role::LongName => long_name.get_or_insert_default().extend_from_slice(bytes),
                    Role::LongLink => long_link.get_or_insert_default().extend_from_slice(bytes),
                    Role::Pax => pax.get_or_insert_default().extend_from_slice(bytes),
                    _ => {}
                }
                if *remaining == 0 {
                    self.state = after_payload(*padding);
                }
                Ok(Step::Inline(bytes.len()))
            }
            State::Header => {
                if self.filled == 0 {
                    self.header_offset = self.offset;
                }
                let n = input.len().min(BLOCK - self.filled);
                self.block[self.filled..self.filled + n].copy_from_slice(&input[..n]);
                self.filled += n;
                if self.filled < BLOCK {
                    return Ok(Step::Inline(n));
                }
                self.filled = 0;
                let block = self.block;
                self.header(&block, n)
            }
        }
    }

    fn header(&mut self, block: &[u8; BLOCK], consumed: usize) -> Result<Step, TarErrorKind> {
        if block.iter().all(|&byte| byte == 0) {
            if self.after_zero_block {
                if !self.pending.is_empty() {
                    return Err(TarErrorKind::DanglingExtension);
                }
                self.state = State::End;
            }
            self.after_zero_block = true;
            return Ok(Step::Inline(consumed));
        }
        self.after_zero_block = false;

        let header = Header::parse(block)?;
        let role = header.role();
        match role {
            Role::Sparse => Err(TarErrorKind::Sparse),
            Role::GlobalPax => {
                let size = header.size()?;
                if size > METADATA_LIMIT {
                    return Err(TarErrorKind::MetadataLimit);
                }
                // composefs-rs forgets what stood before a global header; so must we, or the
                // trees would differ.
                self.pending = Pending::default();
                self.state = extension(role, size);
                Ok(Step::Inline(consumed))
            }
            Role::LongName | Role::LongLink | Role::Pax => {
                let size = header.size()?;
                self.begin_extension(role, size)?;
                Ok(Step::Inline(consumed))
            }
            Role::Member(kind) => {
                let pending = std::mem::take(&mut self.pending);
                let member = build_member(&header, kind, pending)?;
                let padding = padding_of(member.size);
                let external = kind == MemberKind::Regular && member.size > INLINE_LIMIT;
                let placement = if external {
                    self.state = after_payload(padding);
                    Placement::External
                } else {
                    self.state = if member.size == 0 {
                        State::Header
                    } else {
                        State::Payload {
                            remaining: member.size,
                            padding,
                        }
                    };
                    Placement::Inline
                };
                self.member = Some(member);
                Ok(Step::Member {
                    consumed,
                    placement,
                })
            }
        }
    }

    fn begin_extension(&mut self, role: Role, size: u64) -> Result<(), TarErrorKind> {
        let pending = &mut self.pending;
        let slot = match role {
            Role::LongName => &mut pending.long_name,
            Role::LongLink => &mut pending.long_link,
            _ => &mut pending.pax,
        };
        if slot.is_some() {
            return Err(TarErrorKind::DuplicateExtension);
        }
        *slot = Some(Vec::new());
        pending.bytes = pending.bytes.saturating_add(size);
        if pending.bytes > METADATA_LIMIT {
            return Err(TarErrorKind::MetadataLimit);
        }
        self.state = extension(role, size);
        Ok(())
    }
}

fn padding_of(size: u64) -> u64 {
    let used = size % BLOCK as u64;
    if used == 0 { 0 } else { BLOCK as u64 - used }
}

fn after_payload(padding: u64) -> State {
    if padding == 0 {
        State::Header
    } else {
        State::Padding(padding)
    }
}

fn extension(role: Role, size: u64) -> State {
    if size == 0 {
        State::Header
    } else {
        State::Extension {
            role,
            remaining: size,
            padding: padding_of(size),
        }
    }
}

fn build_member(
    header: &Header<'_>,
    kind: MemberKind,
    pending: Pending,
) -> Result<Member, TarErrorKind> {
    let records = Records::read(pending.pax.as_deref().unwrap_or_default())?;
    let long_name = pending.long_name.map(until_nul);
    let long_link = pending.long_link.map(until_nul);
    // Go lets the GNU form win, composefs-rs the PAX form: nobody can say what such a member is.
    for (long, record, what) in [
        (&long_name, records.path, "path"),
        (&long_link, records.linkpath, "link target"),
    ] {
        if let (Some(long), Some(record)) = (long, record)
            && long != record
        {
            return Err(TarErrorKind::Contradiction { what });
        }
    }
    let member = Member {
        path: match (records.path, long_name) {
            (Some(path), _) => path.to_vec(),
            (None, Some(name)) => name,
            (None, None) => header.path(),
        },
        kind,
        type_flag: header.type_flag(),
        link_target: match (records.linkpath, long_link) {
            (Some(target), _) => target.to_vec(),
            (None, Some(target)) => target,
            (None, None) => header.link_target().to_vec(),
        },
        mode: (header.mode()? & 0o7777) as u16,
        uid: records.uid.map_or_else(|| header.uid(), Ok)? as u32,
        gid: records.gid.map_or_else(|| header.gid(), Ok)? as u32,
        mtime: match records.mtime {
            Some(time) => time,
            None => Timestamp {
                sec: header.mtime()? as i64,
                nsec: 0,
            },
        },
        size: records.size.map_or_else(|| header.size(), Ok)?,
        device: header.device()?,
        xattrs: records.xattrs,
    };
    if member.path.is_empty() {
        return Err(TarErrorKind::EmptyPath);
    }
    // A payload beyond what an offset can express cannot be followed by anything.
    if member.size > i64::MAX as u64 {
        return Err(TarErrorKind::Number { field: "size" });
    }
    Ok(member)
}

/// What the PAX records of a member say. Of a key that comes twice the last record counts; one without
/// a value says nothing.
#[derive(Default)]
struct Records<'a> {
    path: Option<&'a [u8]>,
    linkpath: Option<&'a [u8]>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<Timestamp>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl<'a> Records<'a> {
    fn read(data: &'a [u8]) -> Result<Self, TarErrorKind> {
        let mut records = Self::default();
        for record in pax::Records::new(data) {
            let (key, value) = record?;
            let given = (!value.is_empty()).then_some(value);
            let number = |key| given.map(|value| pax::number(key, value)).transpose();
            match key {
                "path" => records.path = given,
                "linkpath" => records.linkpath = given,
                "size" => records.size = number("size")?,
                "uid" => records.uid = number("uid")?,
                "gid" => records.gid = number("gid")?,
                "mtime" => {
                    records.mtime = given.map(|value| pax::time("mtime", value)).transpose()?;
                }
                _ if key.starts_with("GNU.sparse.") => return Err(TarErrorKind::Sparse),
                _ => {
                    if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
                        records.xattrs.push((name.into(), value.to_vec()));
                    }
                }
            }
        }
        Ok(records)
    }
}

/// A long name ends at its first NUL, if it has one.
fn until_nul(mut text: Vec<u8>) -> Vec<u8> {
    if let Some(end) = text.iter().position(|&byte| byte == 0) {
        text.truncate(end);
    }
    text
}
