//! Layers made in memory: what is read from them, and the trees they make.

mod podman;
mod read;
mod rootfs;
mod stored;

use composefs_image::{Algorithm, Content, Kind, Tree, VerityDigest, verity_digest};

use super::*;

/// A tar, written header by header.
#[derive(Clone, Default)]
pub(super) struct Tar(pub(super) Vec<u8>);

/// One member on its way into a [`Tar`].
#[derive(Clone)]
pub(super) struct New<'a> {
    path: &'a str,
    flag: u8,
    mode: u64,
    owner: (u64, u64),
    mtime: i64,
    target: &'a str,
    device: (u32, u32),
    content: &'a [u8],
    pax: Vec<(String, Vec<u8>)>,
}

fn new(path: &str, flag: u8, mode: u64) -> New<'_> {
    New {
        path,
        flag,
        mode,
        owner: (0, 0),
        mtime: 100,
        target: "",
        device: (0, 0),
        content: b"",
        pax: Vec::new(),
    }
}

pub(super) fn file(path: &str) -> New<'_> {
    new(path, b'0', 0o644)
}

pub(super) fn directory(path: &str) -> New<'_> {
    new(path, b'5', 0o755)
}

pub(super) fn link<'a>(path: &'a str, target: &'a str) -> New<'a> {
    New {
        target,
        ..new(path, b'1', 0o644)
    }
}

pub(super) fn symlink<'a>(path: &'a str, target: &'a str) -> New<'a> {
    New {
        target,
        ..new(path, b'2', 0o644)
    }
}

impl<'a> New<'a> {
    fn mode(self, mode: u64) -> Self {
        Self { mode, ..self }
    }

    fn owner(self, uid: u64, gid: u64) -> Self {
        Self {
            owner: (uid, gid),
            ..self
        }
    }

    fn mtime(self, mtime: i64) -> Self {
        Self { mtime, ..self }
    }

    fn content(self, content: &'a [u8]) -> Self {
        Self { content, ..self }
    }

    fn device(self, major: u32, minor: u32) -> Self {
        Self {
            device: (major, minor),
            ..self
        }
    }

    fn pax(mut self, key: &str, value: impl AsRef<[u8]>) -> Self {
        self.pax.push((key.into(), value.as_ref().into()));
        self
    }

    fn xattr(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.pax(&format!("SCHILY.xattr.{name}"), value)
    }

    fn header(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        block[..self.path.len()].copy_from_slice(self.path.as_bytes());
        octal(&mut block[100..108], self.mode);
        octal(&mut block[108..116], self.owner.0);
        octal(&mut block[116..124], self.owner.1);
        octal(&mut block[124..136], self.content.len() as u64);
        if self.mtime < 0 {
            block[136..140].fill(0xff);
            block[140..148].copy_from_slice(&self.mtime.to_be_bytes());
        } else {
            octal(&mut block[136..148], self.mtime as u64);
        }
        block[156] = self.flag;
        block[157..157 + self.target.len()].copy_from_slice(self.target.as_bytes());
        block[257..265].copy_from_slice(b"ustar\x0000");
        octal(&mut block[329..337], u64::from(self.device.0));
        octal(&mut block[337..345], u64::from(self.device.1));
        checksum(&mut block);
        block
    }
}

fn octal(field: &mut [u8], value: u64) {
    let text = format!("{value:0width$o}", width = field.len() - 1);
    field[..text.len()].copy_from_slice(text.as_bytes());
}

pub(super) fn checksum(block: &mut [u8; BLOCK]) {
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
    octal(&mut block[148..155], sum);
    block[155] = b' ';
}

pub(super) fn pax_records(records: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut data = Vec::new();
    for (key, value) in records {
        let rest = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
        let mut len = rest.len();
        while len.to_string().len() + rest.len() != len {
            len = len.to_string().len() + rest.len();
        }
        data.extend(len.to_string().into_bytes());
        data.extend(rest);
    }
    data
}

impl Tar {
    /// A tar of these members, with its end.
    pub(super) fn of(members: &[New<'_>]) -> Self {
        let mut tar = Self::default();
        for member in members {
            tar.add(member);
        }
        tar.end()
    }

    pub(super) fn add(&mut self, member: &New<'_>) {
        if !member.pax.is_empty() {
            let records = pax_records(&member.pax);
            self.add(&New {
                content: &records,
                pax: Vec::new(),
                ..new("PaxHeader", b'x', 0)
            });
        }
        self.0.extend(member.header());
        self.payload(member.content);
    }

    pub(super) fn payload(&mut self, content: &[u8]) {
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
    }

    pub(super) fn end(mut self) -> Self {
        self.0.extend([0; 2 * BLOCK]);
        self
    }
}

/// A layer as it is stored: cut by the splitter, inline bytes again in portions of `portion`.
pub(super) struct Split {
    pub(super) pieces: std::collections::VecDeque<Piece>,
    current: Vec<u8>,
    portion: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Inline(Vec<u8>),
    External(VerityDigest),
}

pub(super) fn digest(content: &[u8]) -> VerityDigest {
    verity_digest(Algorithm::Sha256, content)
}

/// Cuts a tar that is fed in portions of `portion` bytes.
pub(super) fn split(tar: &[u8], portion: usize) -> Result<Split, TarError> {
    let mut splitter = TarSplitter::new();
    let mut pieces = std::collections::VecDeque::new();
    let mut inline = Vec::new();
    let mut rest = tar;
    while !rest.is_empty() {
        let step = splitter.push(&rest[..portion.min(rest.len())])?;
        let (Step::Inline(n) | Step::Payload(n) | Step::Member { consumed: n, .. }) = step;
        inline.extend(&rest[..n]);
        rest = &rest[n..];
        if let Step::Member {
            placement: Placement::External,
            ..
        } = step
        {
            let size = splitter.member().unwrap().size as usize;
            let Some((content, behind)) = rest.split_at_checked(size) else {
                return Err(TarError::truncated(None, &splitter));
            };
            pieces.push_back(Piece::Inline(std::mem::take(&mut inline)));
            pieces.push_back(Piece::External(digest(content)));
            rest = behind;
        }
    }
    splitter.finish()?;
    assert_eq!(splitter.offset(), tar.len() as u64);
    pieces.push_back(Piece::Inline(inline));
    Ok(Split {
        pieces,
        current: Vec::new(),
        portion,
    })
}

impl Chunks for Split {
    fn next_chunk(&mut self) -> crate::Result<Option<Chunk<'_>>> {
        let piece = self.pieces.pop_front();
        Ok(match piece {
            None => None,
            Some(Piece::External(digest)) => Some(Chunk::External(digest)),
            Some(Piece::Inline(mut bytes)) => {
                if bytes.len() > self.portion {
                    let rest = bytes.split_off(self.portion);
                    self.pieces.push_front(Piece::Inline(rest));
                }
                self.current = bytes;
                Some(Chunk::Inline(&self.current))
            }
        })
    }
}

/// The tree of these layers.
pub(super) fn merge(rules: Rules, layers: &[&[New<'_>]]) -> Result<Tree, String> {
    let mut merge = Merge::new(rules);
    for layer in layers {
        let split = split(&Tar::of(layer).0, usize::MAX).map_err(|error| error.to_string())?;
        merge.add_layer(split).map_err(|error| error.to_string())?;
    }
    merge.finish().map_err(|error| error.to_string())
}

/// One line for each name: path, type, mode, owner, time, link count, payload and xattrs.
pub(super) fn lines(tree: &Tree) -> Vec<String> {
    let mut paths: Vec<Vec<u8>> = Vec::new();
    tree.walk()
        .map(|visit| {
            let id = visit.id;
            paths.truncate(visit.depth);
            paths.push(visit.name.to_vec());
            let path = String::from_utf8_lossy(&paths[1..].join(&b'/')).into_owned();
            let metadata = tree.metadata(id);
            let (kind, payload) = match tree.kind(id) {
                Kind::Directory => ('d', String::new()),
                Kind::Regular(Content::Inline(content)) => {
                    ('f', format!(" {:?}", String::from_utf8_lossy(content)))
                }
                Kind::Regular(Content::External { size, .. }) => ('f', format!(" {size} bytes")),
                Kind::Symlink(target) => ('l', format!(" {}", target.escape_ascii())),
                Kind::CharDevice(number) => ('c', format!(" {number}")),
                Kind::BlockDevice(number) => ('b', format!(" {number}")),
                Kind::Fifo => ('p', String::new()),
                Kind::Socket => ('s', String::new()),
            };
            let xattrs: Vec<String> = tree
                .xattrs(id)
                .map(|(name, value)| format!(" {}={}", name.escape_ascii(), value.escape_ascii()))
                .collect();
            let xattrs = xattrs.concat();
            let nlink = match kind {
                'd' => String::new(),
                _ => format!(" {}", tree.nlink(id)),
            };
            format!(
                "{} {kind} {:o} {}:{} {}{nlink}{payload}{xattrs}",
                if path.is_empty() { "/" } else { &path },
                metadata.mode,
                metadata.uid,
                metadata.gid,
                metadata.mtime.sec,
            )
        })
        .collect()
}

/// The lines of the tree without that of the root.
pub(super) fn below_root(tree: &Tree) -> Vec<String> {
    lines(tree).split_off(1)
}
