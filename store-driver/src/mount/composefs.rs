//! The composefs mount: EROFS below an overlay with data-only layers, in the newest form the running
//! kernel takes.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{CWD, Mode, OFlags, open},
    io::Errno,
    mount::{MountAttrFlags, MoveMountFlags, move_mount},
};

use repository::sys::{MountAttribute, set_mount_attribute};

use super::{
    Busy, DetachedMount, MountError,
    context::{FsContext, descriptor_path},
    erofs::{ImageHeader, Stands, Stubs, mount_erofs, read_header},
    unmount,
};

/// Whether the kernel checks the fs-verity digest of every object it opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verity {
    /// `verity=require`: a file without a digest, or whose object has another one, gives `EIO`.
    Require,
    /// [`Verity::Require`] where the kernel knows the option (6.6), else [`Verity::Off`].
    Try,
    /// Objects are served as they are.
    Off,
}

/// What the EROFS image is mounted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// The file, or a loop device where the kernel or the stacking depth asks for one.
    Auto,
    /// The file; an error before Linux 6.12.
    File,
    /// A loop device: read-only, autoclear, direct I/O.
    LoopDevice,
}

/// What will be stacked on the mount. The kernel stacks two filesystems, not more, and some releases of
/// 6.12 and 6.18 count a file-backed EROFS as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stacking {
    /// Nothing that needs a level of its own.
    Top,
    /// An overlay, such as a container's root, which must still be possible.
    BelowOverlay,
}

/// A writable layer on top.
#[derive(Clone, Copy, Debug)]
pub struct Upper<'a> {
    /// Directory that takes the changes.
    pub upper: BorrowedFd<'a>,
    /// Empty directory on the same filesystem, for the overlay's own use.
    pub work: BorrowedFd<'a>,
}

/// Whether a mount with a writable layer may be written to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Yes.
    #[default]
    ReadWrite,
    /// No: the layer is shown, not changed.
    ReadOnly,
}

/// A composefs image to mount. [`Composefs::new`] gives a read-only one without verity and without data.
#[derive(Clone, Debug)]
pub struct Composefs<'a> {
    image: BorrowedFd<'a>,
    source: String,
    data: Vec<BorrowedFd<'a>>,
    verity: Verity,
    backing: Backing,
    stacking: Stacking,
    upper: Option<Upper<'a>>,
    access: Access,
    id_map: Option<BorrowedFd<'a>>,
    newest_form: LayerForm,
}

/// The ways to hand layers to the overlay, newest first, with the first kernel that has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LayerForm {
    /// `lowerdir+` and `datadir+` by descriptor; a detached EROFS mount is accepted (6.15).
    Descriptors,
    /// `lowerdir+` and `datadir+` as strings (6.8).
    Appended,
    /// `lowerdir=A::B` (6.5).
    DataOnlyString,
    /// `lowerdir=A:B`: without data-only layers. Only for images whose root stubs hide the objects.
    PlainString,
}

impl LayerForm {
    /// The forms that want the image attached in the mount namespace, newest first.
    const OLDER: [Self; 3] = [Self::Appended, Self::DataOnlyString, Self::PlainString];
}

impl<'a> Composefs<'a> {
    /// `image` is open for reading; `source` is what the mount table will show, at most 255 bytes.
    pub fn new(image: BorrowedFd<'a>, source: impl Into<String>) -> Self {
        Self {
            image,
            source: source.into(),
            data: Vec::new(),
            verity: Verity::Off,
            backing: Backing::Auto,
            stacking: Stacking::Top,
            upper: None,
            access: Access::ReadWrite,
            id_map: None,
            newest_form: LayerForm::Descriptors,
        }
    }

    /// Adds an object directory; searched in the order added.
    #[must_use]
    pub fn data(mut self, directory: BorrowedFd<'a>) -> Self {
        self.data.push(directory);
        self
    }

    /// Sets the checking of objects.
    #[must_use]
    pub fn verity(mut self, verity: Verity) -> Self {
        self.verity = verity;
        self
    }

    /// Sets what the image is mounted from.
    #[must_use]
    pub fn backing(mut self, backing: Backing) -> Self {
        self.backing = backing;
        self
    }

    /// Sets what the mount must leave room for.
    #[must_use]
    pub fn stacking(mut self, stacking: Stacking) -> Self {
        self.stacking = stacking;
        self
    }

    /// Makes the mount writable.
    #[must_use]
    pub fn upper(mut self, upper: Upper<'a>) -> Self {
        self.upper = Some(upper);
        self
    }

    /// Sets whether the writable layer is written to.
    #[must_use]
    pub fn access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// Leaves the ways newer than `form` out, as on a kernel that lacks them.
    #[must_use]
    pub fn newest_form(mut self, form: LayerForm) -> Self {
        self.newest_form = form;
        self
    }

    /// Shifts owners by the maps of a user namespace (`/proc/PID/ns/user`).
    #[must_use]
    pub fn id_map(mut self, user_namespace: BorrowedFd<'a>) -> Self {
        self.id_map = Some(user_namespace);
        self
    }

    /// Mounts, detached.
    pub fn mount(&self) -> Result<DetachedMount, MountError> {
        let header = read_header(self.image, &self.source)?;
        let (image, stands) = self.mount_image(header, self.backing)?;
        let must_move = self.stacking == Stacking::BelowOverlay
            && self.backing == Backing::Auto
            && stands == Stands::OnFile
            && !self.file_backed_leaves_room(header)?;
        let image = if must_move {
            self.mount_image(header, Backing::LoopDevice)?.0
        } else {
            image
        };
        let fd = self.mount_overlay(header, &image)?;
        Ok(DetachedMount {
            fd,
            subject: self.source.clone(),
        })
    }

    /// Whether an overlay fits on this composefs if its image is mounted from the file. Needs an object
    /// directory.
    pub(crate) fn leaves_room_on_file(&self) -> Result<bool, MountError> {
        self.file_backed_leaves_room(read_header(self.image, &self.source)?)
    }

    fn mount_image(
        &self,
        header: ImageHeader,
        backing: Backing,
    ) -> Result<(OwnedFd, Stands), MountError> {
        let (mount, stands) = mount_erofs(self.image, &self.source, header, backing)?;
        if let Some(namespace) = self.id_map {
            set_mount_attribute(mount.as_fd(), MountAttribute::IdMapped(namespace)).map_err(
                |error| MountError::Kernel {
                    subject: self.source.clone(),
                    step: "mapping the owners of the image",
                    error,
                    log: Vec::new(),
                },
            )?;
        }
        Ok((mount, stands))
    }

    /// Whether an overlay still fits on a composefs over a file-backed EROFS. A property of the running
    /// kernel, so it is tried once per process.
    fn file_backed_leaves_room(&self, header: ImageHeader) -> Result<bool, MountError> {
        static LEAVES_ROOM: OnceLock<bool> = OnceLock::new();
        if let Some(known) = LEAVES_ROOM.get() {
            return Ok(*known);
        }
        let Some(data) = self.data.first() else {
            return Ok(true);
        };
        let (image, _) = self.mount_image(header, Backing::File)?;
        let trial = Attached::new(&self.mount_overlay(header, &image)?, &self.source)?;
        let context = FsContext::open("overlay", &self.source)?;
        context.string(
            "lowerdir",
            &format!(
                "{}:{}",
                descriptor_path(trial.root.as_fd()),
                descriptor_path(*data)
            ),
        )?;
        let fits = match context.mount(MountAttrFlags::MOUNT_ATTR_RDONLY) {
            Ok(_) => true,
            Err(error) if has_errno(&error, Errno::INVAL) => false,
            Err(error) => return Err(error),
        };
        Ok(*LEAVES_ROOM.get_or_init(|| fits))
    }

    /// Takes the image's mount: a kernel that cannot use it detached attaches it for good.
    fn mount_overlay(&self, header: ImageHeader, image: &OwnedFd) -> Result<OwnedFd, MountError> {
        // What a kernel new enough for the newest form says is the message that helps.
        let mut first = None;
        if self.newest_form == LayerForm::Descriptors {
            match self.mount_overlay_as(LayerForm::Descriptors, image.as_fd()) {
                Err(error) if is_unknown_option(&error) => first = Some(error),
                other => return other,
            }
        }
        let attached = Attached::new(image, &self.source)?;
        for form in LayerForm::OLDER {
            let needs_stubs = form == LayerForm::PlainString;
            if form < self.newest_form || (needs_stubs && header.stubs == Stubs::Absent) {
                continue;
            }
            match self.mount_overlay_as(form, attached.root.as_fd()) {
                Err(error) if is_unknown_option(&error) => {
                    first.get_or_insert(error);
                }
                other => return other,
            }
        }
        Err(first.unwrap_or_else(|| MountError::NoStubs {
            subject: self.source.clone(),
        }))
    }

    fn mount_overlay_as(
        &self,
        form: LayerForm,
        lower: BorrowedFd<'_>,
    ) -> Result<OwnedFd, MountError> {
        match self.verity {
            Verity::Require => self.configure_overlay(form, lower, Verity::Require),
            Verity::Off => self.configure_overlay(form, lower, Verity::Off),
            Verity::Try => match self.configure_overlay(form, lower, Verity::Require) {
                Err(error) if is_unknown_option(&error) => {
                    self.configure_overlay(form, lower, Verity::Off)
                }
                other => other,
            },
        }
    }

    fn configure_overlay(
        &self,
        form: LayerForm,
        lower: BorrowedFd<'_>,
        verity: Verity,
    ) -> Result<OwnedFd, MountError> {
        let context = FsContext::open("overlay", &self.source)?;
        context.string("source", &self.source)?;
        context.string("metacopy", "on")?;
        context.string("redirect_dir", "on")?;
        if verity == Verity::Require {
            context.string("verity", "require")?;
        }
        match form {
            LayerForm::Descriptors => {
                context.descriptor("lowerdir+", lower)?;
                for data in &self.data {
                    context.descriptor("datadir+", *data)?;
                }
            }
            LayerForm::Appended => {
                context.string("lowerdir+", &descriptor_path(lower))?;
                for data in &self.data {
                    context.string("datadir+", &descriptor_path(*data))?;
                }
            }
            LayerForm::DataOnlyString => {
                context.string("lowerdir", &self.joined_layers(lower, "::"))?;
            }
            LayerForm::PlainString => {
                context.string("lowerdir", &self.joined_layers(lower, ":"))?;
            }
        }
        if let Some(Upper { upper, work }) = &self.upper {
            context.string("upperdir", &descriptor_path(*upper))?;
            context.string("workdir", &descriptor_path(*work))?;
        }
        let attributes = if self.upper.is_some() && self.access == Access::ReadWrite {
            MountAttrFlags::empty()
        } else {
            MountAttrFlags::MOUNT_ATTR_RDONLY
        };
        context.mount(attributes)
    }

    fn joined_layers(&self, lower: BorrowedFd<'_>, separator: &str) -> String {
        let mut joined = descriptor_path(lower);
        for data in &self.data {
            joined.push_str(separator);
            joined.push_str(&descriptor_path(*data));
        }
        joined
    }
}

/// Errors by which a kernel says that it does not know an option or its form. `EINVAL` can also mean a
/// real refusal; the older forms then fail too, and the first error is reported.
fn is_unknown_option(error: &MountError) -> bool {
    [Errno::INVAL, Errno::OPNOTSUPP, Errno::BADF]
        .into_iter()
        .any(|errno| has_errno(error, errno))
}

fn has_errno(error: &MountError, errno: Errno) -> bool {
    error.io_error().and_then(std::io::Error::raw_os_error) == Some(errno.raw_os_error())
}

/// A mount attached to a private temporary directory for as long as this lives.
struct Attached {
    directory: PathBuf,
    root: OwnedFd,
}

impl Attached {
    fn new(mount: &OwnedFd, subject: &str) -> Result<Self, MountError> {
        let directory = temporary_directory()?;
        let attach = || -> Result<OwnedFd, MountError> {
            move_mount(
                mount.as_fd(),
                c"",
                CWD,
                &directory,
                MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
            )
            .map_err(|error| MountError::Kernel {
                subject: subject.to_owned(),
                step: "attaching the image temporarily",
                error: error.into(),
                log: Vec::new(),
            })?;
            open(
                &directory,
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .map_err(|error| {
                // Nobody else will: the guard does not exist yet.
                let _ = unmount(&directory, Busy::Detach);
                MountError::path(&directory, error)
            })
        };
        match attach() {
            Ok(root) => Ok(Self { directory, root }),
            Err(error) => {
                let _ = std::fs::remove_dir(&directory);
                Err(error)
            }
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.directory, Busy::Detach) {
            tracing::warn!("{error}");
            return;
        }
        if let Err(error) = std::fs::remove_dir(&self.directory) {
            tracing::warn!("{}: {error}", self.directory.display());
        }
    }
}

fn temporary_directory() -> Result<PathBuf, MountError> {
    let parent = if Path::new("/run").is_dir() {
        PathBuf::from("/run")
    } else {
        std::env::temp_dir()
    };
    tempfile::Builder::new()
        .prefix(".composefs-mount-")
        .tempdir_in(&parent)
        .map(tempfile::TempDir::keep)
        .map_err(|error| MountError::path(parent, error))
}
