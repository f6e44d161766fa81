//! The EROFS images of OCI images: which an image has, and making those that it lacks.
//!
//! An image's config stream names its EROFS images by [`ErofsKey`]; this module turns keys into
//! images. Everything goes through a [`Batch`]: nothing is visible before its commit. Follows the
//! composefs repository format, sections "named references" and "commit".

use std::collections::BTreeSet;

use composefs_image::{
    Dialect, Format, Tree, VerityDigest, VerityHasher, WriteOptions, write_image,
};

use crate::layers::{BootError, MergeError, Rules, XattrFilter, make_bootable, merged_tree};
use crate::oci::{self, ConfigDigest, ErofsKey, ErofsRefs, Image, NewImage, OciError};
use crate::{Batch, Error, ReadObjects, Repository, Result};

/// Why no EROFS image can be made of an image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MakeError {
    /// The layers make no tree.
    #[error("image {image}: {source}")]
    Tree {
        /// The image.
        image: ConfigDigest,
        /// What is wrong.
        source: MergeError,
    },
    /// The tree is none to boot from.
    #[error("image {image} cannot be booted: {source}")]
    Boot {
        /// The image.
        image: ConfigDigest,
        /// What is wrong.
        source: BootError,
    },
    /// A kind of image of which it is not known how to make it.
    #[error("it is not known how to make a {0} image")]
    UnknownKey(ErofsKey),
    /// The image cannot be entered.
    #[error(transparent)]
    Oci(#[from] OciError),
    /// The repository is at fault.
    #[error(transparent)]
    Repository(Box<Error>),
}

impl From<Error> for MakeError {
    fn from(error: Error) -> Self {
        Self::Repository(Box::new(error))
    }
}

impl MakeError {
    /// Whether the image is sound, but not one that an EROFS image can be made of.
    pub fn is_unfit(&self) -> bool {
        match self {
            Self::Tree { source, .. } => source.is_unfit(),
            Self::Boot { source, .. } => source.is_unfit(),
            _ => false,
        }
    }
}

impl Batch<'_> {
    /// Writes the image of a tree in a format, and links it in `images/`; returns its digest.
    pub fn store_tree(&self, tree: &Tree, format: Format) -> Result<VerityDigest> {
        let options = WriteOptions {
            format,
            dialect: Dialect::ComposefsRs,
        };
        let mut object = self.object_writer()?;
        write_image(tree, &options, &mut object)
            .map_err(|source| Error::WriteImage { format, source })?;
        let (digest, _, _) = object.finish()?;
        self.link_image(&digest);
        Ok(digest)
    }
}

/// Whether the image has an EROFS image of this kind that can be mounted.
pub fn is_present(repository: &Repository, image: &Image, key: &ErofsKey) -> Result<bool> {
    match image.erofs().get(key) {
        Some(digest) => {
            Ok(repository.has_image(digest)? && repository.object_size(digest)?.is_some())
        }
        None => Ok(false),
    }
}

/// Makes EROFS images of an image that is in the repository, and enters them with the image; returns
/// them. What the image has besides stays.
pub fn make(
    batch: &Batch<'_>,
    image: &Image,
    keys: &BTreeSet<ErofsKey>,
) -> Result<ErofsRefs, MakeError> {
    let (mut rootfs, mut boot) = (Vec::new(), Vec::new());
    for key in keys {
        match (key.rootfs_format(), key.boot_variant()) {
            (Some(format), _) => rootfs.push((key, format)),
            (None, Some((format, xattrs))) => boot.push((key, format, xattrs)),
            (None, None) => return Err(MakeError::UnknownKey(key.clone())),
        }
    }
    let mut made = ErofsRefs::new();
    for filter in XattrFilter::ALL {
        let is_default = filter == XattrFilter::default();
        let boot: Vec<_> = boot.iter().filter(|(.., of)| *of == filter).collect();
        if boot.is_empty() && (rootfs.is_empty() || !is_default) {
            continue;
        }
        let mut tree = rootfs_tree(batch, image, filter)?;
        for (key, format) in rootfs.iter().filter(|_| is_default) {
            made.insert((*key).clone(), batch.store_tree(&tree, *format)?);
        }
        if boot.is_empty() {
            continue;
        }
        bootable(batch, image, &mut tree)?;
        for (key, format, _) in boot {
            made.insert((*key).clone(), batch.store_tree(&tree, *format)?);
        }
    }
    enter(batch, image, &made)?;
    Ok(made)
}

/// The digest that an EROFS image of this kind must have. Stores nothing.
pub fn digest(
    objects: &(impl ReadObjects + ?Sized),
    image: &Image,
    key: &ErofsKey,
) -> Result<VerityDigest, MakeError> {
    let mut hasher = VerityHasher::new(objects.algorithm());
    write(objects, image, key, &mut hasher)?;
    Ok(hasher.finish())
}

/// Stores an EROFS image of this kind once more, as the same object, if that is what comes out; returns
/// whether it is. Enters nothing: the image has it already.
pub fn store_again(
    batch: &Batch<'_>,
    image: &Image,
    key: &ErofsKey,
    recorded: &VerityDigest,
) -> Result<bool, MakeError> {
    if digest(batch, image, key)? != *recorded {
        return Ok(false);
    }
    let mut object = batch.object_writer()?;
    write(batch, image, key, &mut object)?;
    let (made, _, _) = object.finish()?;
    Ok(made == *recorded)
}

fn write(
    objects: &(impl ReadObjects + ?Sized),
    image: &Image,
    key: &ErofsKey,
    out: &mut impl std::io::Write,
) -> Result<(), MakeError> {
    let (format, tree) = match (key.rootfs_format(), key.boot_variant()) {
        (Some(format), _) => (format, rootfs_tree(objects, image, XattrFilter::default())?),
        (None, Some((format, xattrs))) => {
            let mut tree = rootfs_tree(objects, image, xattrs)?;
            bootable(objects, image, &mut tree)?;
            (format, tree)
        }
        (None, None) => return Err(MakeError::UnknownKey(key.clone())),
    };
    let options = WriteOptions {
        format,
        dialect: Dialect::ComposefsRs,
    };
    write_image(&tree, &options, out).map_err(|source| Error::WriteImage { format, source })?;
    Ok(())
}

/// Enters EROFS images that are stored in the batch as those of `image`.
pub(crate) fn enter(batch: &Batch<'_>, image: &Image, made: &ErofsRefs) -> Result<(), MakeError> {
    let layers: Vec<_> = image
        .layers()
        .iter()
        .map(|layer| (layer.diff_id, layer.stream))
        .collect();
    let mut erofs = image.erofs().clone();
    // What is gone cannot be entered again.
    let mut gone = Vec::new();
    for (key, digest) in &erofs {
        if !batch.has(digest)? {
            gone.push(key.clone());
        }
    }
    erofs.retain(|key, _| !gone.contains(key));
    erofs.extend(made.iter().map(|(key, digest)| (key.clone(), *digest)));
    let new = NewImage {
        manifest: image.manifest(),
        config: image.config(),
        layers: &layers,
        erofs: &erofs,
        indexes: &[],
    };
    oci::store_image(batch, &new)?;
    Ok(())
}

/// The tree of an image's layers.
pub(crate) fn rootfs_tree(
    objects: &(impl ReadObjects + ?Sized),
    image: &Image,
    xattrs: XattrFilter,
) -> Result<Tree, MakeError> {
    let layers: Vec<_> = image.layers().iter().map(|layer| layer.stream).collect();
    merged_tree(objects, &layers, Rules::Rootfs(xattrs)).map_err(|source| MakeError::Tree {
        image: image.config().digest(),
        source,
    })
}

/// Makes the tree of an image one to boot from.
pub(crate) fn bootable(
    objects: &(impl ReadObjects + ?Sized),
    image: &Image,
    tree: &mut Tree,
) -> Result<(), MakeError> {
    make_bootable(tree, objects).map_err(|source| MakeError::Boot {
        image: image.config().digest(),
        source,
    })
}
