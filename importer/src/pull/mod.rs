//! `podman pull`, and where the image is afterwards.
//!
//! podman fetches, checks the signature policy and unpacks, into its own storage or into bootc's
//! ([`BootcStorage`]). What it pulled is then a source like any other: [`crate::import_image`] clones
//! its files, and `podman run` goes on working from where podman put it.

mod bootc;
mod podman;

use std::io;
use std::path::PathBuf;

use containers_storage::{Image, ImageId, OpenOptions, Storage};
use thiserror::Error;

use crate::cancel::Cancel;
use crate::registry::{Problem, RegistryOptions, and_remedy};
use crate::source::Platform;
pub use bootc::{BootcError, BootcStorage, bootc_tag};
pub use podman::PodmanOutput;

/// Which storage podman pulls into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PullInto {
    /// podman's own, as `storage.conf` and the environment say.
    Podman,
    /// bootc's, below a system root.
    Bootc(BootcStorage),
}

impl PullInto {
    /// Fails where whoever runs this cannot use the storage: that of bootc is root's.
    pub fn check(&self) -> Result<(), PullError> {
        match self {
            Self::Podman => Ok(()),
            Self::Bootc(_) => Ok(bootc::check_root()?),
        }
    }
}

/// How to pull.
#[derive(Debug, Clone)]
pub struct PullOptions {
    /// The storage to pull into.
    pub into: PullInto,
    /// How to talk to the registry.
    pub registry: RegistryOptions,
    /// The platform to choose from an index; `None`: this host's.
    pub platform: Option<Platform>,
    /// What podman shows of its work.
    pub output: PodmanOutput,
    /// Stops podman when set.
    pub cancel: Cancel,
}

/// Why a pull failed. The image is not in podman's storage then, or [`PullError::NotInStorage`].
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PullError {
    /// There is no podman.
    #[error("podman is not installed; `import docker://…` needs skopeo only")]
    NoPodman,
    /// podman could not be run.
    #[error("cannot run {program}")]
    Run {
        /// The program that was to run it.
        program: &'static str,
        /// What went wrong.
        source: io::Error,
    },
    /// podman failed.
    #[error("podman cannot pull {reference}: {message}{}", and_remedy(*problem, reference))]
    Podman {
        /// The image.
        reference: String,
        /// What podman said.
        message: String,
        /// What that means.
        problem: Problem,
    },
    /// podman failed, and showed on the terminal why.
    #[error("podman could not pull {reference}; its message is above")]
    Shown {
        /// The image.
        reference: String,
    },
    /// `--retry` is not known to this podman.
    #[error(
        "this podman has no --retry; it tries again three times by itself, so leave --retry away"
    )]
    NoRetry,
    /// podman pulled more than one image.
    #[error("{reference} is {count} images; name one of them")]
    Several {
        /// What was to be pulled.
        reference: String,
        /// How many images that was.
        count: usize,
    },
    /// podman said nothing that is an image ID.
    #[error("podman pulled {reference}, but did not say which image it is")]
    NoId {
        /// The image.
        reference: String,
    },
    /// podman put the image elsewhere than we look.
    #[error(
        "podman pulled {reference} as {image}, but it is not in the storage {}; compare with \
         `podman info`: podman may have another storage.conf or environment", root.display()
    )]
    NotInStorage {
        /// The image.
        reference: String,
        /// Its ID.
        image: String,
        /// The root that was searched.
        root: PathBuf,
        /// What the search said.
        source: containers_storage::Error,
    },
    /// The storage could not be read.
    #[error(transparent)]
    Storage(#[from] containers_storage::Error),
    /// bootc's storage could not be prepared.
    #[error(transparent)]
    Bootc(#[from] BootcError),
    /// [`Cancel`] was set.
    #[error("the pull was cancelled")]
    Cancelled,
}

/// Has podman pull an image, and finds it in the storage that podman put it into.
///
/// `reference` is anything that `podman pull` takes. podman asks the registry even if it has an image
/// of that name, and fetches only layers that it lacks.
pub fn pull(reference: &str, options: &PullOptions) -> Result<Image, PullError> {
    let pulled = pull_and_find(reference, options);
    options.cancel.explain(pulled, || PullError::Cancelled)
}

fn pull_and_find(reference: &str, options: &PullOptions) -> Result<Image, PullError> {
    let (pulled, root) = match &options.into {
        PullInto::Podman => (podman::pull(reference, options)?, None),
        PullInto::Bootc(bootc) => (bootc.pull(reference, options)?, Some(bootc.root())),
    };
    let storage = Storage::open(&OpenOptions { root, conf: None })?;
    let image = match &pulled {
        Pulled::Id(id) => id.as_str(),
        Pulled::Name(name) => name,
    };
    storage
        .find_image(image)
        .map_err(|source| PullError::NotInStorage {
            reference: reference.to_owned(),
            image: image.to_owned(),
            root: storage.conf().graphroot.clone(),
            source,
        })
}

/// How the image is to be found.
enum Pulled {
    Id(ImageId),
    Name(String),
}
