//! Which objects an image names, without building its tree.

use super::image::{Image, Inode, Xattr, metacopy_digest};
use super::walk::Seen;
use super::{InodeError, ReadError};
use crate::erofs::format::{dirent_type, overlay};
use crate::fsverity::VerityDigest;
use crate::tree::mode;

/// The objects that the external files of an image name, by digest or by path, file by file; some
/// come more than once. Directories and xattrs are read, nothing else; memory is a bit per 32 bytes
/// of image.
pub fn image_objects(image: &[u8]) -> Result<ImageObjects<'_>, ReadError> {
    let image = Image::open(image)?;
    let mut objects = ImageObjects {
        seen: Seen::new(&image),
        directories: Vec::new(),
        files: Vec::new(),
        found: Vec::new(),
        image,
    };
    let root = objects.image.root;
    let inode = objects.image.inode(root)?;
    if inode.file_type() != mode::DIRECTORY {
        return Err(inode.error(InodeError::NotADirectory));
    }
    objects.seen.mark(root);
    objects.directories.push(inode);
    Ok(objects)
}

/// The iterator of [`image_objects`]. After an error it is not to be used further.
pub struct ImageObjects<'a> {
    image: Image<'a>,
    seen: Seen,
    directories: Vec<Inode<'a>>,
    /// Regular files of the directory read last.
    files: Vec<u64>,
    /// Digests of the file read last.
    found: Vec<VerityDigest>,
}

impl<'a> ImageObjects<'a> {
    fn read_directory(&mut self, directory: &Inode<'a>) -> Result<(), ReadError> {
        let data = self.image.data(directory)?;
        for entry in directory.entries(data) {
            let entry = entry?;
            if matches!(entry.name, b"." | b"..") || !self.seen.mark(entry.nid) {
                continue;
            }
            if entry.file_type == dirent_type(mode::DIRECTORY) {
                let inode = self.image.inode(entry.nid)?;
                if inode.file_type() != mode::DIRECTORY {
                    return Err(inode.error(InodeError::Mode(inode.mode)));
                }
                self.directories.push(inode);
            } else if entry.file_type == dirent_type(mode::REGULAR) {
                self.files.push(entry.nid);
            }
        }
        Ok(())
    }

    fn read_file(&mut self, nid: u64) -> Result<(), ReadError> {
        let inode = self.image.inode(nid)?;
        if !Image::is_chunked(&inode) {
            return Ok(());
        }
        for xattr in inode.xattrs()? {
            let xattr = self.image.xattr(nid, xattr?)?;
            if let Some(digest) = named_by(&xattr).map_err(|problem| inode.error(problem))?
                && !self.found.contains(&digest)
            {
                self.found.push(digest);
            }
        }
        Ok(())
    }
}

fn named_by(xattr: &Xattr<'_>) -> Result<Option<VerityDigest>, InodeError> {
    if xattr.is(overlay::METACOPY) {
        return metacopy_digest(xattr.value);
    }
    if xattr.is(overlay::REDIRECT) {
        let path = xattr.value.strip_prefix(b"/").unwrap_or(xattr.value);
        return Ok(VerityDigest::from_object_path(path));
    }
    Ok(None)
}

impl Iterator for ImageObjects<'_> {
    type Item = Result<VerityDigest, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(digest) = self.found.pop() {
                return Some(Ok(digest));
            }
            let read = if let Some(nid) = self.files.pop() {
                self.read_file(nid)
            } else {
                let directory = self.directories.pop()?;
                self.read_directory(&directory)
            };
            if let Err(error) = read {
                return Some(Err(error));
            }
        }
    }
}
