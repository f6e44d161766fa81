//! Reading a dumpfile line by line.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::BufRead;

use super::escape::unescape;
use super::{DumpError, Field, LINE_MAX, LineError, limits};
use crate::erofs::Dialect;
use crate::fsverity::VerityDigest;
use crate::tree::{Content, InodeId, Kind, Metadata, SetId, Timestamp, Tree, mode};

/// Reads a dumpfile. What is accepted beyond what both read is in the table of the
/// [module](super). Memory: the tree and one line.
pub fn read_dump(mut input: impl BufRead, dialect: Dialect) -> Result<Tree, DumpError> {
    let mut reader = Reader {
        tree: None,
        dialect,
        last_directory: (Vec::new(), None),
        last_xattrs: (Vec::new(), None),
        hard_links: Vec::new(),
        nlinks: HashMap::new(),
    };
    let mut line = Vec::new();
    let mut number = 0;
    while {
        line.clear();
        std::io::Read::take(&mut input, LINE_MAX + 1).read_until(b'\n', &mut line)? > 0
    } {
        number += 1;
        let at = |problem| DumpError::Line {
            line: number,
            problem,
        };
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        if line.len() as u64 > LINE_MAX {
            return Err(at(LineError::TooLong));
        }
        if dialect == Dialect::ComposefsRs && line.trim_ascii().is_empty() {
            continue;
        }
        reader.line(&line, number).map_err(at)?;
    }
    reader.finish()
}

struct HardLink {
    line: u64,
    directory: InodeId,
    name: Box<[u8]>,
    target: Box<[u8]>,
}

struct Reader {
    tree: Option<Tree>,
    dialect: Dialect,
    /// The parent of the line before: most lines are next to each other.
    last_directory: (Vec<u8>, Option<InodeId>),
    /// The xattrs of the line before, as text.
    last_xattrs: (Vec<u8>, Option<SetId>),
    /// Hard links whose target may come later.
    hard_links: Vec<HardLink>,
    /// Link counts other than 1.
    nlinks: HashMap<InodeId, u32>,
}

/// Splits a line at single spaces.
struct Fields<'l> {
    rest: Option<&'l [u8]>,
    dialect: Dialect,
}

impl<'l> Fields<'l> {
    fn next(&mut self, field: Field) -> Result<&'l [u8], LineError> {
        let Some(rest) = self.rest else {
            return match (self.dialect, field) {
                (Dialect::C, Field::Payload | Field::Content | Field::Digest) => Ok(b"-"),
                _ => Err(LineError::Missing(field)),
            };
        };
        let end = memchr::memchr(b' ', rest);
        self.rest = end.map(|end| &rest[end + 1..]);
        Ok(&rest[..end.unwrap_or(rest.len())])
    }

    fn number<T: TryFrom<u64>>(&mut self, field: Field) -> Result<T, LineError> {
        let text = self.next(field)?;
        parse_number(text)
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(|| no_number(field, text))
    }

    fn optional(&mut self, field: Field) -> Result<Option<Cow<'l, [u8]>>, LineError> {
        match self.next(field)? {
            b"-" => Ok(None),
            text => unescape(text).map(Some).ok_or(LineError::Escape(field)),
        }
    }
}

fn no_number(field: Field, text: &[u8]) -> LineError {
    LineError::Number {
        field,
        text: text.into(),
    }
}

fn parse_number(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |number, digit| {
        let digit = digit.checked_sub(b'0').filter(|&digit| digit < 10)?;
        number.checked_mul(10)?.checked_add(digit.into())
    })
}

fn parse_octal(text: &[u8]) -> Option<u16> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u16, |number, digit| {
        let digit = digit.checked_sub(b'0').filter(|&digit| digit < 8)?;
        number.checked_mul(8)?.checked_add(digit.into())
    })
}

/// `seconds.nanoseconds`, both whole numbers: `1.5` is 5 nanoseconds after 1.
fn parse_time(text: &[u8], dialect: Dialect) -> Option<Timestamp> {
    let dot = text.iter().position(|&byte| byte == b'.')?;
    let (sec, nsec) = (&text[..dot], &text[dot + 1..]);
    let sec = match sec.strip_prefix(b"-") {
        Some(sec) if dialect == Dialect::C => {
            // Down to -2^63.
            0_i64.checked_sub_unsigned(parse_number(sec)?)?
        }
        // Both tools take what is above 2^63 for a time before 1970.
        _ => parse_number(sec)? as i64,
    };
    let nsec = u32::try_from(parse_number(nsec)?).ok()?;
    if dialect == Dialect::ComposefsRs && nsec >= 1_000_000_000 {
        return None;
    }
    Some(Timestamp { sec, nsec })
}

fn parse_digest(text: &[u8]) -> Result<VerityDigest, LineError> {
    VerityDigest::from_hex_bytes(text)
        .or_else(|_| VerityDigest::from_hex_bytes(&text.to_ascii_lowercase()))
        .map_err(LineError::Digest)
}

/// Directory and name of a path.
fn split_path(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let slash = path.iter().rposition(|&byte| byte == b'/');
    let (parent, name) = match slash {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&path[..0], path),
    };
    (!name.is_empty()).then_some((parent, name))
}

fn is_canonical(path: &[u8]) -> bool {
    path.strip_prefix(b"/").is_some_and(|names| {
        names.is_empty()
            || names
                .split(|&byte| byte == b'/')
                .all(|name| !matches!(name, b"" | b"." | b".."))
    })
}

impl Reader {
    fn line(&mut self, line: &[u8], number: u64) -> Result<(), LineError> {
        if memchr::memchr(0, line).is_some() {
            return Err(LineError::Nul);
        }
        if self.dialect == Dialect::ComposefsRs && str::from_utf8(line).is_err() {
            return Err(LineError::NotUtf8);
        }
        let mut fields = Fields {
            rest: Some(line),
            dialect: self.dialect,
        };
        let path = unescape(fields.next(Field::Path)?).ok_or(LineError::Escape(Field::Path))?;
        if self.dialect == Dialect::ComposefsRs && !is_canonical(&path) {
            return Err(LineError::Path(path.into()));
        }
        let size = fields.next(Field::Size)?;
        let mode = fields.next(Field::Mode)?;
        let (mode, is_link) = match mode.strip_prefix(b"@") {
            Some(mode) => (mode, true),
            None => (mode, false),
        };
        let mode = parse_octal(mode).ok_or_else(|| no_number(Field::Mode, mode))?;
        if is_link {
            if self.dialect == Dialect::ComposefsRs && parse_number(size).is_none() {
                return Err(no_number(Field::Size, size));
            }
            return self.hard_link(&path, mode, fields, number);
        }

        let size = parse_number(size).ok_or_else(|| no_number(Field::Size, size))?;
        let nlink: u32 = fields.number(Field::Nlink)?;
        let uid = fields.number(Field::Uid)?;
        let gid = fields.number(Field::Gid)?;
        let is_device = matches!(mode & mode::TYPE, mode::CHAR_DEVICE | mode::BLOCK_DEVICE);
        // What is no device may have any number there for the C tools.
        let rdev: u64 = fields.number(Field::Rdev)?;
        let mtime = fields.next(Field::Mtime)?;
        let metadata = Metadata {
            mode: mode & mode::PERMISSIONS,
            uid,
            gid,
            mtime: parse_time(mtime, self.dialect).ok_or_else(|| no_number(Field::Mtime, mtime))?,
        };
        let payload = fields.optional(Field::Payload)?;
        let content = fields.optional(Field::Content)?;
        let digest = fields.optional(Field::Digest)?;
        let xattrs = fields.rest;

        if self.dialect == Dialect::ComposefsRs {
            if rdev != 0 && !is_device {
                return Err(LineError::Unexpected(Field::Rdev));
            }
            if mode & mode::TYPE != mode::REGULAR {
                if content.is_some() {
                    return Err(LineError::Unexpected(Field::Content));
                }
                if digest.is_some() {
                    return Err(LineError::Unexpected(Field::Digest));
                }
            }
            if mode & mode::TYPE == mode::CHAR_DEVICE && rdev == 0 && nlink > 1 {
                return Err(LineError::Unexpected(Field::Nlink));
            }
        }
        let device =
            || u32::try_from(rdev).map_err(|_| no_number(Field::Rdev, rdev.to_string().as_bytes()));
        let digest = digest.as_deref();
        let kind = match mode & mode::TYPE {
            mode::DIRECTORY => Kind::Directory,
            mode::REGULAR => {
                Kind::Regular(self.content(size, payload.as_deref(), content.as_deref(), digest)?)
            }
            mode::SYMLINK => {
                let (_, limit) = limits(self.dialect);
                Kind::Symlink(
                    payload
                        .as_deref()
                        .filter(|target| (1..=limit).contains(&target.len()))
                        .filter(|target| !target.contains(&0))
                        .ok_or(LineError::Symlink(limit))?,
                )
            }
            mode::CHAR_DEVICE => Kind::CharDevice(device()?),
            mode::BLOCK_DEVICE => Kind::BlockDevice(device()?),
            mode::FIFO => Kind::Fifo,
            mode::SOCKET => Kind::Socket,
            _ => return Err(LineError::FileType(mode)),
        };

        let id = self.add(&path, metadata, kind)?;
        if self.dialect == Dialect::C && nlink != 1 && kind != Kind::Directory {
            self.nlinks.insert(id, nlink);
        }
        // The C tools do not mind a space at the end of the line.
        let xattrs = match (xattrs, self.dialect) {
            (Some(text), Dialect::C) => Some(text.strip_suffix(b" ").unwrap_or(text)),
            (xattrs, _) => xattrs,
        };
        match xattrs {
            None => Ok(()),
            Some(b"") if self.dialect == Dialect::C => Ok(()),
            Some(text) => self.xattrs(id, text),
        }
    }

    /// Adds an inode with its first name.
    fn add(
        &mut self,
        path: &[u8],
        metadata: Metadata,
        kind: Kind<'_>,
    ) -> Result<InodeId, LineError> {
        let is_root = path == b"/";
        match &mut self.tree {
            None if is_root && kind == Kind::Directory => {
                let tree = self.tree.insert(Tree::new(metadata));
                Ok(tree.root())
            }
            Some(_) if !is_root => {
                let (directory, name) = self.place(path)?;
                let tree = self.tree.as_mut().ok_or(LineError::Root)?;
                let id = tree.add(metadata, kind);
                match tree.link(directory, name, id)? {
                    None => Ok(id),
                    Some(_) => Err(LineError::Duplicate(path.into())),
                }
            }
            _ => Err(LineError::Root),
        }
    }

    /// The directory for a path, and the last name.
    fn place<'p>(&mut self, path: &'p [u8]) -> Result<(InodeId, &'p [u8]), LineError> {
        let tree = self.tree.as_ref().ok_or(LineError::Root)?;
        let (parent, name) = split_path(path).ok_or_else(|| LineError::Path(path.into()))?;
        let (last, directory) = &mut self.last_directory;
        let id = match (&*directory, parent.strip_prefix(&**last)) {
            (Some(id), Some(b"")) => return Ok((*id, name)),
            (Some(id), Some(below @ [b'/', ..])) => tree.lookup_below(*id, below),
            _ => tree.lookup_path(parent),
        };
        let id = id
            .filter(|&id| tree.is_directory(id))
            .ok_or_else(|| LineError::NoParent(path.into()))?;
        last.clear();
        last.extend_from_slice(parent);
        *directory = Some(id);
        Ok((id, name))
    }

    fn content<'f>(
        &self,
        size: u64,
        payload: Option<&'f [u8]>,
        content: Option<&'f [u8]>,
        digest: Option<&[u8]>,
    ) -> Result<Content<'f>, LineError> {
        let (limit, _) = limits(self.dialect);
        let c = self.dialect == Dialect::C;
        if let Some(content) = content.filter(|_| c || payload.is_none()) {
            let found = content.len() as u64;
            if found > limit {
                return Err(LineError::ContentLimit { size: found, limit });
            }
            if c && found != size {
                return Err(LineError::ContentSize {
                    size,
                    content: found,
                });
            }
            if !c && digest.is_some() {
                return Err(LineError::Unexpected(Field::Digest));
            }
            if !content.is_empty() {
                return Ok(Content::Inline(content));
            }
        }
        let digest = digest.map(parse_digest).transpose()?;
        if size == 0 {
            if !c && (payload.is_some() || digest.is_some()) {
                return Err(LineError::Unexpected(Field::Payload));
            }
            return Ok(Content::EMPTY);
        }
        let path = match (c, payload, digest) {
            (true, Some(path), _) => Some(path),
            // Verified, but nowhere.
            (true, None, Some(_)) => Some(b"".as_slice()),
            (false, Some(b""), _) => return Err(LineError::Missing(Field::Payload)),
            (_, None, None) | (false, Some(_), Some(_)) => None,
            (false, None, Some(_)) => return Err(LineError::Unexpected(Field::Digest)),
            (false, Some(path), None) => {
                if VerityDigest::from_object_path(path).is_none() {
                    return Err(LineError::Unexpected(Field::Payload));
                }
                Some(path)
            }
        };
        Ok(Content::External {
            size,
            digest,
            path: path.filter(|path| !path.is_empty() || digest.is_some()),
        })
    }

    fn xattrs(&mut self, id: InodeId, text: &[u8]) -> Result<(), LineError> {
        let Some(tree) = &mut self.tree else {
            return Err(LineError::Root);
        };
        let (last, set) = &mut self.last_xattrs;
        if let Some(set) = set.filter(|_| *last == text) {
            tree.set_xattr_set(id, set);
            return Ok(());
        }
        // Quadratic work in the C tools, which for that reason end here.
        if self.dialect == Dialect::C && text.len() > usize::from(u16::MAX) {
            return Err(LineError::Xattrs);
        }
        let mut xattrs = Vec::new();
        for xattr in text.split(|&byte| byte == b' ') {
            let equals = xattr.iter().position(|&byte| byte == b'=');
            let (name, value) = xattr.split_at(equals.ok_or(LineError::Xattr)?);
            let escape = || LineError::Escape(Field::Xattr);
            let name = unescape(name).ok_or_else(escape)?;
            let value = unescape(&value[1..]).ok_or_else(escape)?;
            let empty = name.is_empty() && self.dialect == Dialect::C;
            if empty || name.len() > 255 || name.contains(&0) {
                return Err(LineError::Xattr);
            }
            if u16::try_from(value.len()).is_err() {
                return Err(LineError::Xattrs);
            }
            xattrs.push((name, value));
        }
        if self.dialect == Dialect::ComposefsRs {
            // Of a name given twice the last in this order stays.
            xattrs.sort();
        }
        tree.set_xattrs(id, xattrs.iter().map(|(name, value)| (&**name, &**value)));
        last.clear();
        last.extend_from_slice(text);
        *set = Some(tree.xattr_set(id));
        Ok(())
    }

    fn hard_link(
        &mut self,
        path: &[u8],
        mode: u16,
        mut fields: Fields<'_>,
        line: u64,
    ) -> Result<(), LineError> {
        if mode & mode::TYPE == mode::DIRECTORY {
            return Err(LineError::HardLink(path.into()));
        }
        let skipped = [
            Field::Nlink,
            Field::Uid,
            Field::Gid,
            Field::Rdev,
            Field::Mtime,
        ];
        for field in skipped {
            let given = fields.next(field);
            if self.dialect == Dialect::ComposefsRs {
                given?;
            }
        }
        let target = fields
            .optional(Field::Payload)?
            .ok_or(LineError::Missing(Field::Payload))?;
        if self.dialect == Dialect::ComposefsRs && !is_canonical(&target) {
            return Err(LineError::Path(target.into()));
        }
        let (directory, name) = self.place(path)?;
        let link = HardLink {
            line,
            directory,
            name: name.into(),
            target: target.into(),
        };
        match self.dialect {
            Dialect::ComposefsRs => self.resolve(&link),
            Dialect::C => {
                self.hard_links.push(link);
                Ok(())
            }
        }
    }

    fn resolve(&mut self, link: &HardLink) -> Result<(), LineError> {
        let tree = self.tree.as_mut().ok_or(LineError::Root)?;
        let target = tree
            .lookup_path(&link.target)
            .filter(|&id| !tree.is_directory(id))
            .ok_or_else(|| LineError::HardLink(link.target.clone()))?;
        match tree.link(link.directory, &link.name, target)? {
            None => Ok(()),
            Some(_) => Err(LineError::Duplicate(link.name.clone())),
        }
    }

    fn finish(mut self) -> Result<Tree, DumpError> {
        // A link may name another one that comes later: as long as some get resolved, go on.
        let mut open = std::mem::take(&mut self.hard_links);
        while !open.is_empty() {
            let before = open.len();
            let mut failed = None;
            let mut left = Vec::new();
            for link in open {
                match self.resolve(&link) {
                    Ok(()) => {}
                    Err(problem @ LineError::HardLink(_)) => {
                        let line = link.line;
                        failed.get_or_insert(DumpError::Line { line, problem });
                        left.push(link);
                    }
                    Err(problem) => {
                        let line = link.line;
                        return Err(DumpError::Line { line, problem });
                    }
                }
            }
            if left.len() == before {
                return Err(failed.unwrap_or(DumpError::Empty));
            }
            open = left;
        }
        let mut tree = self.tree.ok_or(DumpError::Empty)?;
        // Only what the names do not say by themselves.
        let ids = (0..tree.inode_count() as u32).map(InodeId::from_index);
        if self.dialect == Dialect::C {
            for id in ids {
                let given = self.nlinks.get(&id).copied().unwrap_or(1);
                if !tree.is_directory(id) && given != tree.name_count(id) {
                    tree.set_nlink(id, Some(given));
                }
            }
        }
        Ok(tree)
    }
}
