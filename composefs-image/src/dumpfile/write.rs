//! Writing a dumpfile.

use std::collections::HashMap;
use std::io::{self, Write};

use super::escape::{Style, escape};
use crate::tree::{Content, InodeId, Kind, Tree};

/// Writes a tree as a dumpfile, depth first and sorted. Of several names of an inode the first one
/// stands for it, the others are hard links to that.
pub fn write_dump(tree: &Tree, out: &mut impl Write) -> io::Result<()> {
    let mut path = Vec::new();
    // Per depth the length of the path.
    let mut lengths = Vec::new();
    let mut linked: HashMap<InodeId, Vec<u8>> = HashMap::new();
    let mut line = Vec::new();
    for visit in tree.walk() {
        if visit.depth == 0 {
            path.push(b'/');
            lengths.push(0);
        } else {
            lengths.truncate(visit.depth);
            path.truncate(lengths[visit.depth - 1]);
            path.push(b'/');
            path.extend_from_slice(visit.name);
            lengths.push(path.len());
        }
        line.clear();
        let target = linked.get(&visit.id).map(Vec::as_slice);
        write_line(tree, visit.id, &path, target, &mut line)?;
        line.push(b'\n');
        out.write_all(&line)?;
        if target.is_none() && tree.name_count(visit.id) > 1 {
            linked.insert(visit.id, path.clone());
        }
    }
    out.flush()
}

fn write_line(
    tree: &Tree,
    id: InodeId,
    path: &[u8],
    link_target: Option<&[u8]>,
    line: &mut Vec<u8>,
) -> io::Result<()> {
    let metadata = tree.metadata(id);
    let kind = tree.kind(id);
    let size = match kind {
        Kind::Regular(content) => content.size(),
        Kind::Symlink(target) => target.len() as u64,
        _ => 0,
    };
    let rdev = match kind {
        Kind::CharDevice(rdev) | Kind::BlockDevice(rdev) => rdev,
        _ => 0,
    };
    escape(line, path, Style::Field);
    write!(
        line,
        " {size} {}{:o} {} {} {} {rdev} {}.{} ",
        if link_target.is_some() { "@" } else { "" },
        tree.st_mode(id),
        tree.nlink(id),
        metadata.uid,
        metadata.gid,
        metadata.mtime.sec,
        metadata.mtime.nsec,
    )?;
    if let Some(target) = link_target {
        escape(line, target, Style::Field);
        line.extend_from_slice(b" - -");
        return Ok(());
    }
    match kind {
        Kind::Symlink(target) => {
            escape(line, target, Style::Field);
            line.extend_from_slice(b" - -");
        }
        Kind::Regular(Content::Inline(content)) => {
            line.extend_from_slice(b"- ");
            escape(line, content, Style::Field);
            line.extend_from_slice(b" -");
        }
        Kind::Regular(Content::External { digest, path, .. }) => {
            match (path, digest) {
                (Some(path), _) => escape(line, path, Style::Field),
                (None, Some(digest)) => line.extend_from_slice(digest.object_path().as_bytes()),
                (None, None) => line.push(b'-'),
            }
            line.extend_from_slice(b" - ");
            match digest {
                Some(digest) => {
                    line.extend_from_slice(digest.encode_hex(&mut [0; 128]).as_bytes());
                }
                None => line.push(b'-'),
            }
        }
        _ => line.extend_from_slice(b"- - -"),
    }
    for (name, value) in tree.xattrs(id) {
        line.push(b' ');
        escape(line, name, Style::Xattr);
        line.push(b'=');
        escape(line, value, Style::Xattr);
    }
    Ok(())
}
