//! A tar that holds the files of an image: where each of them is in it.
//!
//! Nothing is unpacked. The headers are read once, and members are read where they lie. An archive that
//! is compressed, or that comes through a pipe, is first written to a temporary file without a name, in
//! `$TMPDIR` or `/var/tmp`, as podman does it.

use std::collections::HashMap;
use std::env;
use std::fs::File;
use std::io::{self, Read, Seek as _};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use repository::layers::{MemberKind, Placement, Step, TarSplitter};

use super::section::Section;
use super::{SourceError, SourceOptions};
use crate::compression::{Compression, MAGIC, OpenError, Uncompressed};

/// Most members of an archive: hundreds of images have some thousands.
const MEMBERS_MAX: usize = 1 << 18;

/// How much is read at a time while looking for headers, in bytes.
const STEP: usize = 4096;

/// The members of an archive.
pub(super) struct Archive {
    path: PathBuf,
    file: Arc<File>,
    members: HashMap<Vec<u8>, Member>,
}

enum Member {
    File { start: u64, size: u64 },
    Link { target: Vec<u8> },
    Other,
}

/// Which of several members of the same name counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Duplicates {
    /// The first, as for podman in a docker-archive, which it searches from the beginning.
    First,
    /// The last, as for podman in an oci-archive, which it unpacks.
    Last,
}

impl Archive {
    pub(super) fn open(
        path: &Path,
        duplicates: Duplicates,
        options: &SourceOptions,
    ) -> Result<Self, SourceError> {
        let unreadable = SourceError::io(path);
        let file = File::open(path).map_err(&unreadable)?;
        let file = plain(path, file, options)?;
        let file = Arc::new(file);
        let members = members(path, &file, duplicates)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            members,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A member, following a link to another one; `None` if there is no such member.
    pub(super) fn find(&self, name: &str) -> Result<Option<Section>, SourceError> {
        let mut name = normal(name.as_bytes());
        // One link, as podman follows: docker writes a layer that several images have as a link.
        for _ in 0..2 {
            match self.members.get(&name) {
                None => return Ok(None),
                Some(Member::File { start, size }) => {
                    let file = Arc::clone(&self.file);
                    return Ok(Some(Section::new(file, *start, *size)));
                }
                Some(Member::Link { target }) => name.clone_from(target),
                Some(Member::Other) => break,
            }
        }
        Err(SourceError::NotAFile {
            path: self.path.clone(),
            name: String::from_utf8_lossy(&name).into_owned(),
        })
    }
}

/// The archive as a file in which members can be read where they lie.
fn plain(path: &Path, file: File, options: &SourceOptions) -> Result<File, SourceError> {
    let unreadable = SourceError::io(path);
    let mut magic = [0; MAGIC];
    let is_file = file.metadata().map_err(&unreadable)?.is_file();
    if is_file {
        let count = file.read_at(&mut magic, 0).map_err(&unreadable)?;
        if Compression::of(&magic[..count]) == Compression::None {
            return Ok(file);
        }
    }
    let directory = env::var_os("TMPDIR").map_or_else(|| "/var/tmp".into(), PathBuf::from);
    let unwritable = SourceError::io(&directory);
    let mut copy = tempfile::tempfile_in(&directory).map_err(&unwritable)?;
    let mut content = Uncompressed::open(file).map_err(|error| match error {
        OpenError::Read(error) => unreadable(error),
        OpenError::Unsupported(compression) => SourceError::Compression {
            path: path.to_owned(),
            compression,
        },
    })?;
    uncompress(path, &mut content, options, |bytes| {
        io::Write::write_all(&mut copy, bytes).map_err(&unwritable)
    })?;
    copy.rewind().map_err(&unwritable)?;
    Ok(copy)
}

/// Reads what comes out of something compressed, until it is too much or nobody wants it any more; its size
/// in bytes.
pub(super) fn uncompress(
    path: &Path,
    content: &mut impl Read,
    options: &SourceOptions,
    mut take: impl FnMut(&[u8]) -> Result<(), SourceError>,
) -> Result<u64, SourceError> {
    let limit = options.max_size.unwrap_or(u64::MAX);
    let mut size = 0_u64;
    let mut chunk = vec![0; 64 * 1024];
    loop {
        if options.cancel.is_cancelled() {
            return Err(SourceError::Cancelled);
        }
        let count = match content.read(&mut chunk) {
            Ok(0) => return Ok(size),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(SourceError::io(path)(error)),
        };
        size += count as u64;
        if size > limit {
            return Err(SourceError::TooLarge {
                path: path.to_owned(),
                limit,
            });
        }
        take(&chunk[..count])?;
    }
}

/// Reads the headers of a tar.
fn members(
    path: &Path,
    file: &File,
    duplicates: Duplicates,
) -> Result<HashMap<Vec<u8>, Member>, SourceError> {
    let unreadable = SourceError::io(path);
    let invalid = |source| SourceError::Tar {
        path: path.to_owned(),
        source,
    };
    let mut members = HashMap::new();
    let mut splitter = TarSplitter::new();
    let mut buffer = [0; STEP];
    loop {
        let at = splitter.offset();
        let count = match file.read_at(&mut buffer, at) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(unreadable(error)),
        };
        let mut taken = 0;
        while taken < count {
            let step = splitter.push(&buffer[taken..count]).map_err(invalid)?;
            let (Step::Inline(n) | Step::Payload(n) | Step::Member { consumed: n, .. }) = step;
            taken += n;
            let Step::Member { placement, .. } = step else {
                continue;
            };
            let Some(member) = splitter.member() else {
                continue;
            };
            let start = at + taken as u64;
            let name = normal(&member.path);
            let new = match member.kind {
                MemberKind::Regular => Member::File {
                    start,
                    size: member.size,
                },
                MemberKind::Symlink => Member::Link {
                    target: joined(&name, &member.link_target),
                },
                MemberKind::HardLink => Member::Link {
                    target: normal(&member.link_target),
                },
                _ => Member::Other,
            };
            if duplicates == Duplicates::Last || !members.contains_key(&name) {
                members.insert(name, new);
            }
            if members.len() > MEMBERS_MAX {
                return Err(SourceError::TooManyMembers {
                    path: path.to_owned(),
                    limit: MEMBERS_MAX,
                });
            }
            if placement == Placement::External {
                // The splitter is behind the content already.
                break;
            }
        }
    }
    splitter.finish().map_err(invalid)?;
    let end = file.metadata().map_err(&unreadable)?.len();
    if splitter.offset() > end {
        return Err(unreadable(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(members)
}

/// A name without `.`, `..` and doubled slashes. Names are only ever compared, never opened.
fn normal(name: &[u8]) -> Vec<u8> {
    let mut components = Vec::new();
    for component in name.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                components.pop();
            }
            component => components.push(component),
        }
    }
    components.join(&b'/')
}

/// What the target of a symlink means, beside the link.
fn joined(link: &[u8], target: &[u8]) -> Vec<u8> {
    let directory = link.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    normal(&[&link[..directory], b"/", target].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_without_their_detours() {
        for (name, expected) in [
            ("./manifest.json", "manifest.json"),
            ("/a//b/./c", "a/b/c"),
            ("a/../../b", "b"),
            ("", ""),
        ] {
            assert_eq!(normal(name.as_bytes()), expected.as_bytes());
        }
        assert_eq!(joined(b"a/layer.tar", b"../b/layer.tar"), b"b/layer.tar");
        assert_eq!(joined(b"layer.tar", b"b"), b"b");
    }
}
