//! The mount table of this process (`/proc/self/mountinfo`), to find out what is mounted already.

use std::{
    ffi::OsString,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use super::MountError;

const MOUNTINFO: &str = "/proc/self/mountinfo";

/// One mounted filesystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// Where it is attached.
    pub target: PathBuf,
    /// The directory of the filesystem that is shown; differs from `/` for bind mounts.
    pub root: PathBuf,
    /// `major:minor` of the filesystem.
    pub device: String,
    /// Filesystem type, e.g. `overlay`.
    pub filesystem: String,
    /// The source string, e.g. `composefs:<image>`.
    pub source: Vec<u8>,
    /// Options of this mount (not of the filesystem), e.g. `ro,relatime`.
    pub options: String,
    /// Options of the filesystem, e.g. `ro,lowerdir=/a:/b`.
    pub super_options: Vec<u8>,
}

impl MountEntry {
    /// Whether writing through this mount is refused.
    pub fn is_read_only(&self) -> bool {
        self.options.split(',').any(|option| option == "ro")
    }
}

/// The mounts of the calling process's namespace, in the order of their mounting.
#[derive(Clone, Debug, Default)]
pub struct MountTable {
    entries: Vec<MountEntry>,
}

impl MountTable {
    /// Reads the table of this process.
    pub fn read() -> Result<Self, MountError> {
        let text = std::fs::read(MOUNTINFO).map_err(|error| MountError::path(MOUNTINFO, error))?;
        Ok(Self::parse(&text))
    }

    /// Parses the content of a `mountinfo` file. Lines that do not have its form are left out.
    pub fn parse(text: &[u8]) -> Self {
        Self {
            entries: text
                .split(|byte| *byte == b'\n')
                .filter_map(parse_line)
                .collect(),
        }
    }

    /// All mounts, in the order of their mounting.
    pub fn all(&self) -> impl Iterator<Item = &MountEntry> {
        self.entries.iter()
    }

    /// The topmost mount at `target`, which must be absolute and free of symlinks.
    pub fn top_at(&self, target: &Path) -> Option<&MountEntry> {
        self.entries
            .iter()
            .rev()
            .find(|entry| entry.target == target)
    }

    /// All mounts at or below `directory`, latest first: the order in which to unmount them.
    pub fn below<'a>(&'a self, directory: &'a Path) -> impl Iterator<Item = &'a MountEntry> {
        self.entries
            .iter()
            .rev()
            .filter(move |entry| entry.target.starts_with(directory))
    }
}

// id parent major:minor root target options [optional...] - type source superoptions
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = fields.nth(2)?;
    let root = fields.next()?;
    let target = fields.next()?;
    let options = fields.next()?;
    fields.find(|field| *field == b"-")?;
    let filesystem = fields.next()?;
    let source = fields.next()?;
    let super_options = fields.next().unwrap_or_default();
    Some(MountEntry {
        target: path(target),
        root: path(root),
        device: String::from_utf8_lossy(device).into_owned(),
        filesystem: String::from_utf8_lossy(filesystem).into_owned(),
        source: unescape(source),
        options: String::from_utf8_lossy(options).into_owned(),
        super_options: unescape(super_options),
    })
}

fn path(escaped: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(escaped)))
}

/// Undoes the kernel's `\ooo` escapes of space, tab, newline and backslash.
fn unescape(escaped: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(escaped.len());
    let mut rest = escaped;
    while let Some((&first, tail)) = rest.split_first() {
        if let [
            b'\\',
            a @ b'0'..=b'3',
            b @ b'0'..=b'7',
            c @ b'0'..=b'7',
            after @ ..,
        ] = rest
        {
            bytes.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
            rest = after;
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = br"27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
60 27 0:55 / /run/x\040y rw,relatime shared:5 master:1 - overlay composefs:aa ro,lowerdir=/a
61 60 254:0 /var/store /view ro,relatime - ext4 /dev/vda rw
62 61 0:56 / /view/l\134n ro - overlay composefs:bb ro
not a mount
63 61 0:57 / /view ro - tmpfs none rw
";

    #[test]
    fn the_topmost_mount_of_a_target_is_found_by_its_unescaped_path() {
        let table = MountTable::parse(TABLE);
        let entry = table.top_at(Path::new("/run/x y")).unwrap();
        assert_eq!(entry.source, b"composefs:aa");
        assert_eq!(entry.filesystem, "overlay");
        assert!(!entry.is_read_only());
        assert_eq!(
            table.top_at(Path::new("/view")).unwrap().filesystem,
            "tmpfs"
        );
        assert!(table.top_at(Path::new("/nothing")).is_none());
    }

    #[test]
    fn mounts_below_a_directory_come_latest_first() {
        let table = MountTable::parse(TABLE);
        let targets: Vec<_> = table
            .below(Path::new("/view"))
            .map(|entry| entry.target.to_str().unwrap())
            .collect();
        assert_eq!(targets, ["/view", "/view/l\\n", "/view"]);
    }

    #[test]
    fn a_truncated_table_is_no_panic() {
        for end in 0..TABLE.len() {
            MountTable::parse(&TABLE[..end]);
        }
    }
}
