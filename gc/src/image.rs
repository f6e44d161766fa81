//! Telling what an object is, and which objects an EROFS image names.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use composefs_image::{ReadError, VerityDigest, image_objects, read_image};
use repository::{Repository, splitstream};

/// The first four bytes of a composefs image.
const IMAGE_MAGIC: [u8; 4] = 0xd078_629a_u32.to_le_bytes();

/// The largest image that is read, in bytes: room for some ten million files.
const MAX_IMAGE: u64 = 4 << 30;

/// What kind of object it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contents {
    Splitstream,
    Image,
    Other,
}

/// Tells by its first bytes what an object is; leaves the position at the start.
pub(crate) fn sniff(file: &mut File) -> std::io::Result<Contents> {
    let mut start = Vec::new();
    file.take(splitstream::SNIFF_LENGTH as u64)
        .read_to_end(&mut start)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(if splitstream::is_splitstream(&start) {
        Contents::Splitstream
    } else if start.starts_with(&IMAGE_MAGIC) {
        Contents::Image
    } else {
        Contents::Other
    })
}

/// Reads an image into memory.
pub(crate) fn read(repository: &Repository, digest: &VerityDigest) -> Result<Vec<u8>, Invalid> {
    Ok(repository.read_object(digest, MAX_IMAGE)?)
}

/// The objects that an image names, some of them more than once.
pub(crate) fn objects(
    image: &[u8],
) -> Result<impl Iterator<Item = Result<VerityDigest, ReadError>>, Invalid> {
    Ok(image_objects(image)?)
}

/// Reads all of an image, which shows whether it is sound, and hands the objects that it names to
/// `names`.
pub(crate) fn check(
    repository: &Repository,
    digest: &VerityDigest,
    mut names: impl FnMut(VerityDigest),
) -> Result<(), Invalid> {
    let image = repository.read_object(digest, MAX_IMAGE)?;
    read_image(&image)?;
    for object in image_objects(&image)? {
        names(object?);
    }
    Ok(())
}

/// Why an image can't be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Invalid {
    #[error(transparent)]
    Repository(#[from] repository::Error),
    #[error(transparent)]
    Image(#[from] ReadError),
}
