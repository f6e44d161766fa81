//! The errors of this crate. Each names the path, image, layer or store it is about, and the remedy
//! where there is one.

use std::{io, path::PathBuf};

use containers_storage::{ImageId, LayerId};

use crate::{Layout, User, mount::MountError};

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with showing images to podman.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The repository could not be read or written.
    #[error(transparent)]
    Repository(#[from] repository::Error),
    /// An image's manifest, config or layers in the repository cannot be used.
    #[error(transparent)]
    Oci(#[from] repository::oci::OciError),
    /// A layer in the repository cannot be made into a file tree.
    #[error(transparent)]
    Layers(#[from] repository::layers::MergeError),
    /// The tar-split of a layer, by which podman gives it back, could not be made.
    #[error("making the tar-split of layer {layer}")]
    TarSplit {
        /// The layer.
        layer: LayerId,
        /// Why.
        source: Box<crate::tar_split::TarSplitError>,
    },
    /// The image store of our own, or podman's configuration, could not be read.
    #[error(transparent)]
    Storage(#[from] containers_storage::Error),
    /// A lock of our own image store could not be taken.
    #[error(transparent)]
    Lock(#[from] containers_storage::LockError),
    /// An ordinary user wants to publish.
    #[error(
        "publishing needs root: podman, or we, would have to mount EROFS images, which the kernel lets no \
         user do; import and publish into a repository of root's"
    )]
    NeedsRoot,
    /// Something could not be mounted.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// An EROFS image could not be written.
    #[error("writing the image of layer {layer}")]
    WriteImage {
        /// The layer.
        layer: LayerId,
        /// Why.
        source: composefs_image::WriteError,
    },
    /// A file or directory could not be used.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, to be read after "cannot".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The image has no layers: an artifact, which podman cannot run.
    #[error("image {image} has no layers; only container images can be published")]
    NoLayers {
        /// The image.
        image: ImageId,
    },
    /// A layer is published in the other layout, and what was built on it depends on that.
    #[error(
        "layer {layer} is published in the layout {has}, and a layer's layout cannot change: publish with \
         `--layout {has}`, or unpublish every image that has this layer first"
    )]
    OtherLayout {
        /// The layer.
        layer: LayerId,
        /// The layout it has.
        has: Layout,
    },
    /// podman would commit builds wrongly on composefs layers.
    #[error(
        "the layout `blob` needs podman's naive diff, or `podman build` and `podman commit` corrupt images; \
         {conf} does not ask for it: add the line\n    {line}\nbelow [storage.options.overlay] there, or \
         publish with `--layout mounted`"
    )]
    NativeDiff {
        /// The configuration that podman uses.
        conf: String,
        /// The line to add or change.
        line: String,
    },
    /// A mount program mounts in the kernel's place and does not understand composefs layers.
    #[error(
        "{conf} has mount_program = \"{}\", which cannot mount the layout `blob`: remove it, or publish with \
         `--layout mounted`", program.display()
    )]
    MountProgram {
        /// The configuration that podman uses.
        conf: String,
        /// The program.
        program: PathBuf,
    },
    /// podman does not use the overlay driver.
    #[error(
        "{conf} has the storage driver {driver:?}; an image store for the overlay driver is of no use there: set \
         driver = \"overlay\""
    )]
    OtherDriver {
        /// The configuration that podman uses.
        conf: String,
        /// The driver.
        driver: String,
    },
    /// The objects directory's mode and owner become those of `/` in containers.
    #[error(
        "{} has mode {mode:04o} and owner {uid}:{gid}, which in the layout `blob` become those of every \
         container's `/`: run `chown 0:0` and `chmod 0555` on it, or publish with `--layout mounted`",
        path.display()
    )]
    ObjectsMode {
        /// The directory of objects.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
    },
    /// The store was made when the repository had another path, which its links name.
    #[error(
        "what is published names the repository by the path {}, but it is at {} now: mount or move it back, or \
         unpublish everything there first", was.display(), is.display()
    )]
    Moved {
        /// The path in the store.
        was: PathBuf,
        /// The path now.
        is: PathBuf,
    },
    /// Something else is mounted where a layer or the view belongs.
    #[error(
        "{} has something else mounted on it ({found}): unmount it first", path.display()
    )]
    ForeignMount {
        /// The directory.
        path: PathBuf,
        /// What is there.
        found: String,
    },
    /// Some layers could not be mounted; all others are.
    #[error("{} cannot be mounted: {}", count(failed.len()), describe(failed))]
    NotAllMounted {
        /// The layers, and why.
        failed: Vec<NotMounted>,
    },
    /// Something is to be verified, and the repository has no fs-verity.
    #[error(
        "{} is a repository without fs-verity, so what containers read cannot be verified: make another with \
         `init`, without `--insecure`, on a filesystem that has it (ext4 made or tuned with `-O verity`, btrfs), \
         and import the image there; or publish without `--verified`", repository.display()
    )]
    NoVerity {
        /// The repository.
        repository: PathBuf,
    },
    /// podman mounts the image itself, and is not told to have the kernel verify it.
    #[error(
        "{conf} does not have podman verify what containers read: the layout `blob` needs the line\n    {line}\n\
         below [storage.options.overlay] there; or publish with `--layout mounted`, where we mount the image"
    )]
    NoVerityOption {
        /// The configuration that podman uses.
        conf: String,
        /// The line to add or change.
        line: String,
    },
    /// An EROFS image is not what was published.
    #[error("{}: {problem}", path.display())]
    Unsound {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// No published image, or more than one, is meant by this.
    #[error("no published image is meant by {image:?}; `images` lists them")]
    NotPublished {
        /// What was asked for.
        image: String,
    },
    /// Something is built on an image, or runs from it.
    #[error(
        "image {image} is in use: {}; remove that first, or hide the image now with `unpublish --when-unused`: \
         gc then removes its layers when the last of it is gone",
        list(users)
    )]
    InUse {
        /// The image.
        image: ImageId,
        /// Who uses its layers.
        users: Vec<User>,
    },
    /// A record of our own store without what belongs to it.
    #[error("{}: {problem}", store.display())]
    Damaged {
        /// The store.
        store: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// A layer that could not be mounted.
#[derive(Debug)]
pub struct NotMounted {
    /// The layer.
    pub layer: LayerId,
    /// The published images that have it, by name.
    pub images: Vec<String>,
    /// Why.
    pub error: Error,
}

impl Error {
    /// An [`Error::Io`], as a closure for `map_err`.
    pub(crate) fn io<E: Into<io::Error>>(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source: source.into(),
        }
    }
}

fn count(layers: usize) -> String {
    match layers {
        1 => "1 layer".to_owned(),
        _ => format!("{layers} layers"),
    }
}

fn list(users: &[User]) -> String {
    let users: Vec<String> = users.iter().map(ToString::to_string).collect();
    users.join("; ")
}

/// Each layer with its images, its error and what caused that.
fn describe(failed: &[NotMounted]) -> String {
    let one = |failed: &NotMounted| {
        let (layer, error) = (&failed.layer, &failed.error);
        let mut text = match failed.images.as_slice() {
            [] => format!("{layer}: {error}"),
            images => format!("{layer} of {}: {error}", images.join(", ")),
        };
        let mut cause = std::error::Error::source(error);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    };
    failed.iter().map(one).collect::<Vec<_>>().join("; ")
}
