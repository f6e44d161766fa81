//! What a host boots: boot loader entries, deployments and their state, as bootc's composefs backend keeps
//! them.
//!
//! [`find()`] reads a sysroot and the boot partitions and says which images must stay bootable, in which
//! manifests they come, what can't be understood, and what interrupted deployments have left. It reads
//! only, runs nothing, and never asks a registry. All of it is untrusted: sizes are bounded, and no
//! symbolic link leads out of the directory that was named.
//!
//! [`known()`] says what that keeps in a repository.
//!
//! Nothing is concluded from what is absent. Whatever any entry, state directory or record names is a
//! root, whether or not the rest of it is there; what can't be read is a [`Problem`], and says how far
//! the doubt reaches ([`Doubt`]).
//!
//! Formats: the UAPI boot loader specification, GRUB menus, unified kernel images, bootc's origin files,
//! `.imginfo` sidecars and staged deployment. Parsing them (`bls`, `grub`, `uki`, `origin`, `records`) is
//! apart from reading files (`tree`, `scan`), and that from concluding (`entries`, `find`, `known`).

mod artifact;
mod bls;
mod entries;
mod find;
mod grub;
mod known;
mod origin;
mod prune;
mod records;
mod scan;
mod tree;
mod uki;

use std::path::{Path, PathBuf};

use composefs_image::VerityDigest;
use composefs_image::karg::ArgumentError;
use repository::Repository;
use repository::oci::{ConfigDigest, DiffId, ManifestDigest};
use serde::Serialize;

use crate::json;
pub use crate::roots::Doubt;

pub use find::find;
pub use known::{Orphans, bootc_tag, check, check_image, known, look};
pub use prune::PruneError;
pub(crate) use prune::prune;

/// Where the physical root filesystem is mounted on a running host.
const SYSROOT: &str = "/sysroot";

/// Where to look. Everything that is global on a running host is a value here, so that another host's
/// disk, or a test's directory, can be looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources {
    /// The physical root filesystem: `state/deploy` is there, and `boot`, `boot/efi` and `efi` are looked
    /// at below it.
    pub sysroot: PathBuf,
    /// Other places where `/boot` or the EFI system partition may be mounted. Those that don't exist are
    /// left out, and those that are the same directory count once.
    pub boot: Vec<PathBuf>,
    /// `/run` of the host, where the staged deployment is announced. `None` if it isn't known; entries
    /// that are staged count then.
    pub run: Option<PathBuf>,
    /// The kernel command line of the running system, if the sysroot is the running system's.
    pub command_line: Option<Vec<u8>>,
    /// What is mounted at `/`, if the sysroot is the running system's: after a soft reboot another
    /// deployment than the command line says.
    pub root_source: Option<String>,
}

impl Sources {
    /// A sysroot by itself, unless it is the running host's.
    pub fn at(sysroot: impl Into<PathBuf>) -> Self {
        let sysroot = sysroot.into();
        if is_same(&sysroot, Path::new(SYSROOT)) {
            Self::running_at(sysroot)
        } else {
            Self {
                sysroot,
                ..Self::default()
            }
        }
    }

    /// The running host, if the repository is the one that it boots from: `/sysroot/composefs`.
    pub fn of(repository: &Repository) -> Option<Self> {
        is_same(repository.path(), &Path::new(SYSROOT).join("composefs"))
            .then(|| Self::running_at(SYSROOT.into()))
    }

    fn running_at(sysroot: PathBuf) -> Self {
        let boot = ["/boot", "/boot/efi", "/efi"];
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self {
            sysroot,
            boot: boot.map(PathBuf::from).to_vec(),
            run: Some("/run".into()),
            command_line: std::fs::read("/proc/cmdline").ok(),
            root_source: root_source(&mounts),
        }
    }
}

/// Whether two paths are the same file, and there is one.
fn is_same(one: &Path, other: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |path: &Path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.dev(), metadata.ino()))
    };
    let one = identity(one);
    one.is_some() && one == identity(other)
}

/// What is mounted at `/`, from the text of a `mountinfo`.
fn root_source(mountinfo: &str) -> Option<String> {
    let line = mountinfo
        .lines()
        .rfind(|line| line.split(' ').nth(4) == Some("/"))?;
    let (_, after) = line.split_once(" - ")?;
    after.split(' ').nth(1).map(str::to_owned)
}

/// What a host boots.
#[derive(Debug, Default, Serialize)]
pub struct BootState {
    /// Everything that boots an image, or says that it is running or staged. In the order of the boot
    /// menu, as far as that is known.
    pub entries: Vec<Entry>,
    /// What these entries boot, by ID.
    pub deployments: Vec<Deployment>,
    /// What interrupted deployments and clean-ups have left: no entry names it.
    pub orphans: Vec<Orphan>,
    /// What can't be understood.
    pub problems: Vec<Problem>,
    /// The directory that was looked at.
    #[serde(skip)]
    sysroot: PathBuf,
}

/// Something that boots an image, or says that it is running or staged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// The file.
    #[serde(serialize_with = "json::path")]
    pub path: PathBuf,
    /// What it is.
    pub kind: EntryKind,
    /// The images that it names; what boots is the first that exists.
    #[serde(serialize_with = "json::texts")]
    pub images: Vec<VerityDigest>,
}

/// What names an image to boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EntryKind {
    /// The command line of the running kernel.
    CommandLine,
    /// What is mounted at `/`.
    RootMount,
    /// A boot loader entry of type 1.
    Bls,
    /// A GRUB menu.
    Grub,
    /// A unified kernel image, which boot loaders find by themselves.
    Uki,
    /// A boot loader entry or menu that becomes active at shutdown.
    Staged,
    /// The record of a staged deployment in `/run`.
    StagedRecord,
}

impl EntryKind {
    /// Whether the boot loader reads it.
    pub fn is_active(self) -> bool {
        matches!(self, Self::Bls | Self::Grub | Self::Uki)
    }
}

/// A deployment: an image that an entry boots, and its state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Deployment {
    /// The digest of its boot image.
    #[serde(serialize_with = "json::text")]
    pub id: VerityDigest,
    /// Its place among the others.
    pub slot: Slot,
    /// The files that name it.
    #[serde(serialize_with = "json::paths")]
    pub named_by: Vec<PathBuf>,
    /// Its state directory; missing if another image of the same entry has it, or with a problem.
    pub state: Option<State>,
}

/// A deployment's place among the others. For people: all of them are kept alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Slot {
    /// It is running.
    Booted,
    /// It becomes the next at shutdown.
    Staged,
    /// It is the first of the boot menu.
    Next,
    /// It is the first of the boot menu that is neither running nor staged.
    Rollback,
    /// It is further down in the boot menu.
    Other,
}

impl std::fmt::Display for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Booted => "booted deployment",
            Self::Staged => "staged deployment",
            Self::Next => "next deployment",
            Self::Rollback => "rollback deployment",
            Self::Other => "deployment",
        })
    }
}

/// A state directory, `state/deploy/<id>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct State {
    /// The directory.
    #[serde(serialize_with = "json::path")]
    pub path: PathBuf,
    /// Which image was deployed.
    pub source: Source,
}

/// What a state directory says of the image that was deployed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "known", rename_all = "kebab-case")]
pub enum Source {
    /// Its manifest, from the origin file.
    Manifest {
        /// The manifest.
        digest: ManifestDigest,
    },
    /// The parts that have a digest, from a sidecar: the origin file is older than manifests in it.
    Legacy {
        /// The config.
        config: ConfigDigest,
        /// The layers.
        layers: Vec<DiffId>,
    },
    /// Nothing, and that is how old deployments are.
    Unrecorded,
    /// Nothing, because it can't be read.
    Unreadable,
}

/// Something that no entry names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Orphan {
    /// What it is.
    pub kind: OrphanKind,
    /// Where it is.
    #[serde(serialize_with = "json::path")]
    pub path: PathBuf,
    /// The images that it names.
    #[serde(serialize_with = "json::texts")]
    pub images: Vec<VerityDigest>,
    /// Which image was deployed, if it is a state directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// The sysroot.
    #[serde(skip)]
    sysroot: PathBuf,
    /// The filesystem that it is on.
    #[serde(skip)]
    place: tree::Place,
    /// The path below that filesystem.
    #[serde(skip)]
    relative: PathBuf,
}

/// What an orphan is, in the order of removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OrphanKind {
    /// An entry or menu that was staged and not announced: nothing will make it active.
    StagedEntry,
    /// A directory with kernel and initrd.
    Kernel,
    /// A unified kernel image.
    Uki,
    /// A directory with add-ons to a unified kernel image.
    Addons,
    /// A state directory.
    State,
}

impl std::fmt::Display for OrphanKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::StagedEntry => "staged boot entry",
            Self::Kernel => "kernel directory",
            Self::Uki => "unified kernel image",
            Self::Addons => "add-on directory",
            Self::State => "state directory",
        })
    }
}

/// Something that can't be understood, with the file's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{}: {fault}", path.display())]
pub struct Problem {
    /// The file.
    #[serde(serialize_with = "json::path")]
    pub path: PathBuf,
    /// What is wrong.
    #[serde(serialize_with = "json::text")]
    pub fault: Fault,
    /// How far the doubt reaches.
    pub doubt: Doubt,
}

/// What is wrong with something that was found, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// It can't be read.
    #[error("{0}")]
    Unreadable(String),
    /// There is no such directory.
    #[error("there is no such directory")]
    NoSysroot,
    /// An entry that starts nothing.
    #[error("it is a boot entry that starts nothing: it was cut off; write it again, or remove it")]
    NoKernel,
    /// An entry of bootc that names no image.
    #[error(
        "it is a boot entry of bootc that names no image: it was cut off; write it again, or remove it"
    )]
    NoImage,
    /// A kernel argument that names no image.
    #[error(transparent)]
    Argument(#[from] ArgumentError),
    /// A program that is started and isn't there, so that it isn't known what it boots.
    #[error(
        "it starts {0}, which is not there; mount the EFI system partition, or name where it is mounted"
    )]
    NoProgram(String),
    /// An artifact that an entry starts and that isn't there.
    #[error("it starts {0}, which is not there: it cannot boot; remove the entry, or deploy again")]
    NoArtifact(String),
    /// The name of an artifact that has bootc's prefix and is not one that bootc gives.
    #[error("{0:?} has bootc's prefix and is not the name of a unified kernel image of bootc's")]
    Name(String),
    /// Name and kernel arguments of a unified kernel image name different images.
    #[error("it is named after image {name}, and its kernel arguments name {argument}")]
    Disagree {
        /// What the name says.
        name: VerityDigest,
        /// What the arguments say.
        argument: VerityDigest,
    },
    /// A menu without entries.
    #[error("it has no menu entry: it was cut off; write it again, or remove it")]
    EmptyMenu,
    /// A menu that ends within an entry.
    #[error("it ends within an entry: it was cut off; write it again, or remove it")]
    CutMenu,
    /// No entry was found at all.
    #[error(
        "no boot entry was found, although there is something to boot; mount /boot and the EFI system \
         partition, or name where they are mounted"
    )]
    NoEntries,
    /// The running image has no entry.
    #[error(
        "it names image {0}, which no boot entry names; mount /boot and the EFI system partition, or \
         name where they are mounted"
    )]
    BootedWithoutEntry(VerityDigest),
    /// The staged deployment has no entry.
    #[error(
        "it names deployment {0}, which no boot entry names; deploy it again, or remove the file"
    )]
    StagedWithoutEntry(VerityDigest),
    /// There is no state directory for what an entry boots.
    #[error(
        "it boots image {0}, which has no state directory; deploy it again, or remove the entry"
    )]
    NoState(VerityDigest),
    /// A state directory without origin file.
    #[error("it has no origin file; deploy it again, or remove its boot entry")]
    NoOrigin,
    /// A name among the state directories that is no ID.
    #[error("its name is not that of a deployment; remove it if nobody needs it")]
    NoId,
    /// Something that no entry names.
    #[error("no boot entry names this {0}; gc --prune-orphans removes it")]
    Orphan(OrphanKind),
    /// The manifest is not in the repository.
    #[error("the repository does not have manifest {0}; import the image again")]
    NoManifest(ManifestDigest),
    /// The boot image is not in the repository.
    #[error(
        "the repository does not have image {0}: it cannot boot; make it again with boot prepare, or \
         remove the entry"
    )]
    NoBootImage(VerityDigest),
    /// Nothing says which manifest it was.
    #[error(
        "nothing says from which manifest image {0} was made; import the image again, or remove what \
         names it"
    )]
    Untraceable(VerityDigest),
    /// There are tags of bootc and no deployments.
    #[error(
        "no boot entry names an image, although the repository has tags of bootc; mount /boot and the \
         EFI system partition, or name another sysroot"
    )]
    NoDeployments,
}

impl From<tree::ReadFault> for Fault {
    fn from(fault: tree::ReadFault) -> Self {
        Self::Unreadable(fault.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_mount_at_the_root_is_the_one_that_counts() {
        let mounts = "22 1 0:20 / / rw - rootfs rootfs rw\n\
             25 22 0:22 / /proc rw,nosuid shared:5 - proc proc rw\n\
             30 22 0:33 / / ro,relatime shared:1 - overlay composefs:00ff ro\n";
        assert_eq!(root_source(mounts).as_deref(), Some("composefs:00ff"));
        assert_eq!(root_source(""), None);
    }
}
