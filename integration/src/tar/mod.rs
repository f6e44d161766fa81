//! A tar writer for test layers: every kind of entry, PAX and GNU extensions, no cleverness.
//!
//! Not the `tar` crate, because test layers need headers that a well-meaning library will not write.

pub mod raw;

pub use raw::Raw;

/// How long names and link targets are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// PAX `path` and `linkpath` records.
    Pax,
    /// GNU `L` and `K` members.
    Gnu,
}

/// One member.
#[derive(Clone, Debug)]
pub struct Member {
    /// Name as written, without leading slash; directories end with one.
    pub name: Vec<u8>,
    /// Type flag.
    pub kind: u8,
    /// Permission bits.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Modification time: seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Link target.
    pub target: Vec<u8>,
    /// Device numbers.
    pub device: (u32, u32),
    /// Content.
    pub content: Vec<u8>,
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The modification time of members that do not say otherwise.
pub const MTIME: (i64, u32) = (1_600_000_000, 0);

impl Member {
    fn new(name: impl AsRef<[u8]>, kind: u8, mode: u32) -> Self {
        Self {
            name: name.as_ref().to_vec(),
            kind,
            mode,
            owner: (0, 0),
            mtime: MTIME,
            target: Vec::new(),
            device: (0, 0),
            content: Vec::new(),
            xattrs: Vec::new(),
        }
    }

    /// A regular file.
    pub fn file(name: impl AsRef<[u8]>, content: impl Into<Vec<u8>>) -> Self {
        Self {
            content: content.into(),
            ..Self::new(name, b'0', 0o644)
        }
    }

    /// A directory; the name gets its slash.
    pub fn dir(name: impl AsRef<[u8]>) -> Self {
        let mut member = Self::new(name, b'5', 0o755);
        member.name.push(b'/');
        member
    }

    /// A symlink.
    pub fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self {
            target: target.as_ref().to_vec(),
            ..Self::new(name, b'2', 0o777)
        }
    }

    /// A hard link to an earlier member of the same layer.
    pub fn hardlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self {
            target: target.as_ref().to_vec(),
            ..Self::new(name, b'1', 0o644)
        }
    }

    /// A fifo.
    pub fn fifo(name: impl AsRef<[u8]>) -> Self {
        Self::new(name, b'6', 0o600)
    }

    /// A character device.
    pub fn char_device(name: impl AsRef<[u8]>, major: u32, minor: u32) -> Self {
        Self {
            device: (major, minor),
            ..Self::new(name, b'3', 0o666)
        }
    }

    /// A block device.
    pub fn block_device(name: impl AsRef<[u8]>, major: u32, minor: u32) -> Self {
        Self {
            device: (major, minor),
            ..Self::new(name, b'4', 0o660)
        }
    }

    /// The whiteout of `dir/name`; `dir` is empty or ends with a slash.
    pub fn whiteout(dir: &str, name: impl AsRef<[u8]>) -> Self {
        let mut full = format!("{dir}.wh.").into_bytes();
        full.extend(name.as_ref());
        Self::new(full, b'0', 0)
    }

    /// The opaque mark of a directory.
    pub fn opaque(dir: &str) -> Self {
        Self::new(format!("{dir}/.wh..wh..opq"), b'0', 0)
    }

    /// With these permission bits.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// With this owner and group.
    #[must_use]
    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        self.owner = (uid, gid);
        self
    }

    /// With this modification time.
    #[must_use]
    pub fn mtime(mut self, seconds: i64, nanoseconds: u32) -> Self {
        self.mtime = (seconds, nanoseconds);
        self
    }

    /// With this extended attribute.
    #[must_use]
    pub fn xattr(mut self, key: &str, value: impl AsRef<[u8]>) -> Self {
        self.xattrs
            .push((key.as_bytes().to_vec(), value.as_ref().to_vec()));
        self
    }
}

/// The tar of `members`, with its two end blocks.
pub fn archive(members: &[Member], dialect: Dialect) -> Vec<u8> {
    let mut out = Vec::new();
    for member in members {
        write_member(&mut out, member, dialect);
    }
    out.resize(out.len() + 1024, 0);
    out
}

fn write_member(out: &mut Vec<u8>, member: &Member, dialect: Dialect) {
    let mut records = Vec::new();
    for (value, gnu_type, pax_key) in [
        (&member.name, b'L', "path"),
        (&member.target, b'K', "linkpath"),
    ] {
        if value.len() <= 100 {
            continue;
        }
        match dialect {
            Dialect::Pax => record(&mut records, pax_key.as_bytes(), value),
            Dialect::Gnu => {
                let mut content = value.clone();
                content.push(0);
                header(
                    out,
                    b"././@LongLink",
                    gnu_type,
                    &Member::file("", content.clone()),
                    content.len(),
                );
                data(out, &content);
            }
        }
    }
    let (seconds, nanoseconds) = member.mtime;
    if nanoseconds != 0 || seconds < 0 {
        record(
            &mut records,
            b"mtime",
            decimal_time(member.mtime).as_bytes(),
        );
    }
    for (key, id) in [("uid", member.owner.0), ("gid", member.owner.1)] {
        if id > 0o777_7777 {
            record(&mut records, key.as_bytes(), id.to_string().as_bytes());
        }
    }
    for (key, value) in &member.xattrs {
        record(
            &mut records,
            &[b"SCHILY.xattr.", key.as_slice()].concat(),
            value,
        );
    }
    if !records.is_empty() {
        header(
            out,
            b"PaxHeaders/x",
            b'x',
            &Member::file("", []),
            records.len(),
        );
        data(out, &records);
    }
    header(out, &member.name, member.kind, member, member.content.len());
    data(out, &member.content);
}

/// `-1.25` seconds are `(-2, 750_000_000)` in the kernel's words and `-1.25` in a PAX record.
fn decimal_time((seconds, nanoseconds): (i64, u32)) -> String {
    if seconds >= 0 || nanoseconds == 0 {
        return format!("{seconds}.{nanoseconds:09}");
    }
    format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds)
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length.to_string().len() + rest != length {
        length = length.to_string().len() + rest;
    }
    out.extend(format!("{length} ").into_bytes());
    out.extend(key);
    out.push(b'=');
    out.extend(value);
    out.push(b'\n');
}

fn header(out: &mut Vec<u8>, name: &[u8], kind: u8, member: &Member, size: usize) {
    let mut block = [0_u8; 512];
    put(&mut block[0..100], name);
    octal(&mut block[100..108], u64::from(member.mode));
    octal(&mut block[108..116], u64::from(member.owner.0 & 0o777_7777));
    octal(&mut block[116..124], u64::from(member.owner.1 & 0o777_7777));
    octal(&mut block[124..136], size as u64);
    octal(
        &mut block[136..148],
        u64::try_from(member.mtime.0).unwrap_or(0),
    );
    block[148..156].fill(b' ');
    block[156] = kind;
    put(&mut block[157..257], &member.target);
    put(&mut block[257..265], b"ustar\x0000");
    octal(&mut block[329..337], u64::from(member.device.0));
    octal(&mut block[337..345], u64::from(member.device.1));
    let sum: u64 = block.iter().map(|&b| u64::from(b)).sum();
    octal(&mut block[148..155], sum);
    out.extend(block);
}

fn put(field: &mut [u8], value: &[u8]) {
    let length = value.len().min(field.len());
    field[..length].copy_from_slice(&value[..length]);
}

fn octal(field: &mut [u8], value: u64) {
    let width = field.len() - 1;
    put(field, format!("{value:0width$o}\0").as_bytes());
}

fn data(out: &mut Vec<u8>, content: &[u8]) {
    out.extend(content);
    out.resize(out.len().next_multiple_of(512), 0);
}
