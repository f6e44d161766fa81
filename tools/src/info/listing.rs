//! `ls` and `dump`.

use std::collections::HashMap;
use std::io::Write;

use composefs_image::dumpfile::{Style, escape};
use composefs_image::erofs::hard_linked;
use rustix::fs::FileType;

use super::view::{Entry, Inode, Shown};
use super::{Filter, ImageBytes, InfoError};

/// Prints what is in an image: a line per name, with the target of symlinks and the object of files.
pub fn list(image: &ImageBytes, filter: &Filter, out: &mut impl Write) -> Result<(), InfoError> {
    let mut line = Vec::new();
    // The root is not listed.
    for entry in image.view(filter)?.skip(1) {
        let Entry { path, inode } = entry.map_err(image.damaged())?;
        line.clear();
        escape(&mut line, &path, Style::Line);
        if let Shown::First(inode) = inode {
            match (inode.file_type(), inode.data(), inode.object) {
                (FileType::Directory, ..) => line.extend_from_slice(b"/\t"),
                (FileType::Symlink, Some(target), _) => {
                    line.extend_from_slice(b"\t-> ");
                    escape(&mut line, target, Style::Word);
                }
                (FileType::RegularFile, _, Some(object)) => {
                    line.extend_from_slice(b"\t@ ");
                    escape(&mut line, object, Style::Word);
                }
                _ => {}
            }
        }
        line.push(b'\n');
        out.write_all(&line)?;
    }
    Ok(())
}

/// Prints an image as a dumpfile, which `mkcomposefs --from-file` turns into the image again.
pub fn dump(image: &ImageBytes, filter: &Filter, out: &mut impl Write) -> Result<(), InfoError> {
    let linked = hard_linked(&image.bytes).map_err(image.damaged())?;
    // Of each inode with several names the first path, and its line from there on: the later lines
    // repeat it, but for the payload, which is that path.
    let mut first_lines: HashMap<u64, FirstLine> = HashMap::new();
    let mut line = Vec::new();
    for entry in image.view(filter)? {
        let Entry { path, inode } = entry.map_err(image.damaged())?;
        line.clear();
        let shown_path = if path.is_empty() {
            b"/"
        } else {
            path.as_slice()
        };
        escape(&mut line, shown_path, Style::Word);
        match inode {
            Shown::First(inode) => {
                let start = line.len();
                before_mode(&inode, &mut line);
                let mode = line.len();
                before_payload(&inode, &mut line);
                let payload = line.len();
                write_payload(&inode, &mut line);
                let rest = line.len();
                after_payload(&inode, &mut line);
                if linked.contains(&inode.stored.nid) {
                    let part =
                        |from: usize, to: usize| line.get(from..to).unwrap_or_default().to_vec();
                    let first = FirstLine {
                        path,
                        before_mode: part(start, mode),
                        before_payload: part(mode, payload),
                        after_payload: part(rest, line.len()),
                    };
                    first_lines.insert(inode.stored.nid, first);
                }
            }
            Shown::HardLink(nid) => {
                // The first name may be a stub, which is not shown; then neither are the others.
                let Some(first) = first_lines.get(&nid) else {
                    continue;
                };
                line.extend_from_slice(&first.before_mode);
                line.push(b'@');
                line.extend_from_slice(&first.before_payload);
                escape(&mut line, &first.path, Style::Field);
                line.extend_from_slice(&first.after_payload);
            }
        }
        line.push(b'\n');
        out.write_all(&line)?;
    }
    Ok(())
}

struct FirstLine {
    path: Vec<u8>,
    before_mode: Vec<u8>,
    before_payload: Vec<u8>,
    after_payload: Vec<u8>,
}

fn before_mode(inode: &Inode<'_>, line: &mut Vec<u8>) {
    line.extend_from_slice(format!(" {} ", inode.size).as_bytes());
}

fn before_payload(inode: &Inode<'_>, line: &mut Vec<u8>) {
    let stored = &inode.stored;
    let text = format!(
        "{:o} {} {} {} {} {}.{} ",
        inode.mode,
        stored.nlink,
        stored.uid,
        stored.gid,
        stored.rdev,
        stored.mtime.sec,
        stored.mtime.nsec,
    );
    line.extend_from_slice(text.as_bytes());
}

fn write_payload(inode: &Inode<'_>, line: &mut Vec<u8>) {
    let payload = match inode.file_type() {
        FileType::Symlink => inode.data(),
        _ => inode.object,
    };
    escape(line, payload.unwrap_or_default(), Style::Field);
}

fn after_payload(inode: &Inode<'_>, line: &mut Vec<u8>) {
    line.push(b' ');
    let content = match inode.file_type() {
        FileType::RegularFile => inode.data(),
        _ => None,
    };
    escape(line, content.unwrap_or_default(), Style::Field);
    line.push(b' ');
    match inode.digest {
        Some(digest) => line.extend_from_slice(digest.encode_hex(&mut [0; 128]).as_bytes()),
        None => line.push(b'-'),
    }
    for (name, value) in &inode.xattrs {
        line.push(b' ');
        escape(line, name, Style::Xattr);
        line.push(b'=');
        escape(line, value, Style::Xattr);
    }
}
