//! Giving a repository further image formats, in place.
//!
//! Every image exists once in each of the repository's formats, so those that are missing are made
//! first, and `meta.json` says so last. Everything before that last step leaves a repository of the old
//! formats with a few images more, which is sound; begun again, an upgrade makes what is still missing.
//! A format is never given up while an image has it: somebody may boot or mount it. Follows the composefs
//! repository format, section "meta.json".

use std::collections::BTreeSet;

use composefs_image::Format;

use crate::erofs::{self, MakeError};
use crate::layers::XattrFilter;
use crate::oci::{self, ErofsKey, Image, ManifestDigest, OciError};
use crate::{Error, Formats, Repository, Tag, Wait};
use failpoint::failpoint;

/// Why a repository does not get other formats.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpgradeError {
    /// A format would be given up that an image has.
    #[error(
        "the repository cannot change from {from} to {to}: image {image} exists in {format} and would not be made anew"
    )]
    Needed {
        /// The repository's formats.
        from: Formats,
        /// The formats that were asked for.
        to: Formats,
        /// The format that would be given up.
        format: Format,
        /// An image that has it: a tag, or the manifest's digest.
        image: String,
    },
    /// V0 repositories hold no OCI images.
    #[error("a repository of format {} cannot get further formats", Format::V0)]
    V0,
    /// An image is damaged.
    #[error("image {image} is damaged, so the images that it lacks cannot be made: {source}")]
    Damaged {
        /// Its tag.
        image: Tag,
        /// What is wrong.
        source: OciError,
    },
    /// An image cannot be made.
    #[error(transparent)]
    Make(#[from] MakeError),
}

impl From<Error> for UpgradeError {
    fn from(error: Error) -> Self {
        Self::Make(error.into())
    }
}

impl From<OciError> for UpgradeError {
    fn from(error: OciError) -> Self {
        Self::Make(error.into())
    }
}

/// What an upgrade is to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The repository's formats.
    pub from: Formats,
    /// The formats it is to have.
    pub to: Formats,
    /// The tagged images that lack EROFS images.
    pub images: Vec<PlannedImage>,
}

/// An image that lacks EROFS images.
#[derive(Clone, Debug)]
pub struct PlannedImage {
    image: Image,
    /// What it lacks.
    pub missing: BTreeSet<ErofsKey>,
}

impl PlannedImage {
    /// The image.
    pub fn image(&self) -> &Image {
        &self.image
    }
}

/// What an upgrade has done.
#[derive(Debug, Default)]
pub struct Upgraded {
    /// How many EROFS images were made.
    pub made: usize,
    /// Images that EROFS images cannot be made of, and why. The importer has said so before.
    pub unfit: Vec<(ManifestDigest, MakeError)>,
}

/// The dual formats that a repository with these formats can get: V1 and V2, and the default stays.
pub fn dual(from: &Formats) -> Formats {
    from.clone().with(Format::V1).with(Format::V2)
}

/// What has to be made so that every tagged image exists in the formats `to`; changes nothing.
pub fn plan(repository: &Repository, to: &Formats) -> Result<Plan, UpgradeError> {
    let from = repository.formats();
    if from.contains(Format::V0) || to.contains(Format::V0) {
        return Err(UpgradeError::V0);
    }
    let found = oci::images(repository)?;
    for (digest, source) in found.damaged {
        let tags = oci::tags(repository)?;
        if let Some((tag, _)) = tags.into_iter().find(|(_, of)| *of == digest) {
            return Err(UpgradeError::Damaged { image: tag, source });
        }
    }
    for format in from.all().filter(|format| !to.contains(*format)) {
        if let Some(image) = found.images.iter().find(|image| has_format(image, format)) {
            return Err(UpgradeError::Needed {
                from: from.clone(),
                to: to.clone(),
                format,
                image: name(image),
            });
        }
    }
    let mut images = Vec::new();
    for image in found.images {
        if image.tags().is_empty() {
            continue;
        }
        let mut missing = BTreeSet::new();
        for key in wanted(&image, to) {
            if !erofs::is_present(repository, &image, &key)? {
                missing.insert(key);
            }
        }
        if !missing.is_empty() {
            images.push(PlannedImage { image, missing });
        }
    }
    Ok(Plan {
        from: from.clone(),
        to: to.clone(),
        images,
    })
}

/// Gives the repository the formats `to`; tells `begin` of each image before its EROFS images are made.
///
/// The images are made while others use the repository; then they have to leave it for a moment, which
/// `wait` is about. When it returns, everything is durable.
pub fn upgrade(
    repository: &mut Repository,
    to: &Formats,
    wait: Wait,
    mut begin: impl FnMut(&PlannedImage),
) -> Result<Upgraded, UpgradeError> {
    let mut done = Upgraded::default();
    make_missing(repository, to, &mut done, &mut begin)?;
    if repository.formats() == to {
        return Ok(done);
    }
    failpoint("upgrade-images-made");
    let mut exclusive = repository.exclusive(wait)?;
    // What others have brought in the old formats meanwhile.
    make_missing(&exclusive, to, &mut done, &mut begin)?;
    failpoint("upgrade-alone");
    exclusive.set_formats(to)?;
    Ok(done)
}

fn make_missing(
    repository: &Repository,
    to: &Formats,
    done: &mut Upgraded,
    begin: &mut impl FnMut(&PlannedImage),
) -> Result<(), UpgradeError> {
    for planned in plan(repository, to)?.images {
        let digest = planned.image.manifest().digest();
        if done.unfit.iter().any(|(unfit, _)| *unfit == digest) {
            continue;
        }
        begin(&planned);
        let batch = repository.batch()?;
        match erofs::make(&batch, &planned.image, &planned.missing) {
            Ok(made) => {
                batch.commit()?;
                done.made += made.len();
            }
            Err(error) if error.is_unfit() => done.unfit.push((digest, error)),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// What an image should have: a root filesystem in each format, and boot images in each format with
/// every filter with which it has one.
fn wanted(image: &Image, formats: &Formats) -> BTreeSet<ErofsKey> {
    let filters: BTreeSet<XattrFilter> = image
        .erofs()
        .keys()
        .filter_map(|key| key.boot_variant().map(|(_, xattrs)| xattrs))
        .collect();
    let keys = |format| {
        let boot = filters
            .iter()
            .filter_map(move |xattrs| ErofsKey::boot(format, *xattrs));
        ErofsKey::rootfs(format).into_iter().chain(boot)
    };
    formats.all().flat_map(keys).collect()
}

fn has_format(image: &Image, format: Format) -> bool {
    image.erofs().keys().any(|key| {
        let boot = key.boot_variant().map(|(format, _)| format);
        key.rootfs_format().or(boot) == Some(format)
    })
}

/// What a user calls the image.
fn name(image: &Image) -> String {
    match image.tags().first() {
        Some(tag) => tag.to_string(),
        None => image.manifest().digest().to_string(),
    }
}
