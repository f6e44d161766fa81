//! Boot images: made once for each format, recorded with their image, and found by digest.
//!
//! A boot image differs from the root filesystem image of the same layers
//! ([`crate::layers::make_bootable`]), and its digest is what a kernel command line names
//! ([`composefs_image::karg`]). Nothing here writes outside the repository: kernels and loader entries
//! are somebody else's. Follows the composefs repository format, "named references" and "bootable
//! image".

use std::collections::BTreeSet;
use std::io::Write;

use composefs_image::{
    Dialect, Format, Tree, VerityDigest, VerityHasher, WriteError, WriteOptions, write_image,
};

use crate::erofs::{self, MakeError};
use crate::layers::XattrFilter;
use crate::oci::{self, ConfigDigest, ErofsKey, ErofsRefs, Image, ManifestDigest, OciError};
use crate::{Error, Repository};

/// The formats in which boot images exist; V0 has no name for them.
const FORMATS: [Format; 2] = [Format::V1, Format::V2];

/// Why there is no boot image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootImageError {
    /// It cannot be made.
    #[error(transparent)]
    Make(#[from] MakeError),
    /// The repository has only V0 images, which are not for booting.
    #[error(
        "the repository makes no images to boot from: its format is {}",
        Format::V0
    )]
    NoFormat,
    /// A digest that no boot image of this repository can have.
    #[error(transparent)]
    Digest(Box<Error>),
    /// An image cannot be written to be compared.
    #[error("image {image} in format {format}: {source}")]
    Write {
        /// The image.
        image: ConfigDigest,
        /// The format.
        format: Format,
        /// What is wrong.
        source: WriteError,
    },
}

impl From<Error> for BootImageError {
    fn from(error: Error) -> Self {
        Self::Make(error.into())
    }
}

impl From<OciError> for BootImageError {
    fn from(error: OciError) -> Self {
        Self::Make(error.into())
    }
}

/// A boot image of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootImage {
    /// Its format.
    pub format: Format,
    /// Its digest.
    pub digest: VerityDigest,
    /// Whether it was there before.
    pub origin: Origin,
}

/// Whether an image was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It was.
    Present,
    /// It has been made.
    Made,
}

/// Makes the boot images of an image in all formats of the repository, those that are there excepted.
/// When it returns they are durable, recorded, and kept for as long as the image is. Returned in the
/// repository's order of formats.
pub fn prepare(
    repository: &Repository,
    image: &Image,
    xattrs: XattrFilter,
) -> Result<Vec<BootImage>, BootImageError> {
    let formats = repository.formats().all();
    let keys: Vec<(Format, ErofsKey)> = formats
        .filter_map(|format| Some((format, ErofsKey::boot(format, xattrs)?)))
        .collect();
    if keys.is_empty() {
        return Err(BootImageError::NoFormat);
    }
    let mut missing = BTreeSet::new();
    for (_, key) in &keys {
        if !erofs::is_present(repository, image, key)? {
            missing.insert(key.clone());
        }
    }
    let mut made = ErofsRefs::new();
    if !missing.is_empty() {
        let batch = repository.batch()?;
        made = erofs::make(&batch, image, &missing)?;
        batch.commit()?;
    }
    let found = |(format, key): (Format, ErofsKey)| {
        let (digest, origin) = match made.get(&key) {
            Some(digest) => (digest, Origin::Made),
            None => (image.erofs().get(&key)?, Origin::Present),
        };
        Some(BootImage {
            format,
            digest: *digest,
            origin,
        })
    };
    Ok(keys.into_iter().filter_map(found).collect())
}

/// An EROFS image that was searched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The image that it is one of.
    pub image: ManifestDigest,
    /// Which of its EROFS images it is. Not necessarily one to boot from.
    pub key: ErofsKey,
    /// Whether it was there.
    pub origin: Origin,
}

/// What a search came to.
#[derive(Debug)]
pub struct Search {
    /// What was found.
    pub found: Option<Found>,
    /// How many images were made in vain.
    pub tried: usize,
    /// Images that no boot image can be made of, and why.
    pub unfit: Vec<(ManifestDigest, MakeError)>,
}

/// Finds the image whose EROFS image has this digest, among `images`.
///
/// If none has it on record, boot images are made in memory in every format, not only those of the
/// repository, and with every xattr filter, until one has the digest. That one is then stored and
/// recorded: so a unified kernel image that another release has sealed with other defaults gets its
/// boot image back. Images with tags are tried first.
pub fn find(
    repository: &Repository,
    digest: &VerityDigest,
    images: &[Image],
) -> Result<Search, BootImageError> {
    repository
        .check_algorithm(digest)
        .map_err(|error| BootImageError::Digest(Box::new(error)))?;
    let mut search = Search {
        found: None,
        tried: 0,
        unfit: Vec::new(),
    };
    for image in images {
        let recorded = image.erofs().iter().find(|(_, other)| *other == digest);
        if let Some((key, _)) = recorded
            && erofs::is_present(repository, image, key)?
        {
            search.found = Some(Found {
                image: image.manifest().digest(),
                key: key.clone(),
                origin: Origin::Present,
            });
            return Ok(search);
        }
    }
    let (tagged, untagged): (Vec<_>, Vec<_>) =
        images.iter().partition(|image| !image.tags().is_empty());
    for image in tagged.into_iter().chain(untagged) {
        for xattrs in XattrFilter::ALL {
            match search_image(repository, digest, image, xattrs, &mut search.tried) {
                Ok(None) => {}
                Ok(found) => {
                    search.found = found;
                    return Ok(search);
                }
                Err(BootImageError::Make(error)) if error.is_unfit() => {
                    search.unfit.push((image.manifest().digest(), error));
                    break;
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(search)
}

/// All images of the repository that are whole, for [`find`].
pub fn candidates(repository: &Repository) -> Result<Vec<Image>, OciError> {
    Ok(oci::images(repository)?.images)
}

fn search_image(
    repository: &Repository,
    digest: &VerityDigest,
    image: &Image,
    xattrs: XattrFilter,
    tried: &mut usize,
) -> Result<Option<Found>, BootImageError> {
    let mut tree = erofs::rootfs_tree(repository, image, xattrs)?;
    erofs::bootable(repository, image, &mut tree)?;
    for format in FORMATS {
        let made =
            digest_of(repository, &tree, format).map_err(|source| BootImageError::Write {
                image: image.config().digest(),
                format,
                source,
            })?;
        *tried += 1;
        let Some(key) = ErofsKey::boot(format, xattrs).filter(|_| made == *digest) else {
            continue;
        };
        let batch = repository.batch()?;
        let stored = batch.store_tree(&tree, format)?;
        erofs::enter(&batch, image, &ErofsRefs::from([(key.clone(), stored)]))?;
        batch.commit()?;
        return Ok(Some(Found {
            image: image.manifest().digest(),
            key,
            origin: Origin::Made,
        }));
    }
    Ok(None)
}

/// The digest that the image of a tree has, without storing it.
fn digest_of(
    repository: &Repository,
    tree: &Tree,
    format: Format,
) -> Result<VerityDigest, WriteError> {
    let options = WriteOptions {
        format,
        dialect: Dialect::ComposefsRs,
    };
    let mut hasher = VerityHasher::new(repository.algorithm());
    write_image(tree, &options, &mut hasher)?;
    hasher.flush()?;
    Ok(hasher.finish())
}
