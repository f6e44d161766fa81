//! The containers-storage that bootc owns below a system root.
//!
//! Made and used as bootc makes and uses it, so that it goes on with what we began and the other way
//! round: the store is `SYSROOT/ostree/bootc/storage`, where `ostree/bootc` is a link to
//! `../composefs/bootc`; podman sees it, in a mount namespace of its own, as `/run/bootc/storage`,
//! because podman writes paths into its database; its run root is the directory below that mount, as
//! file descriptor 3. Credentials are those of ostree and nobody's personal ones.
//!
//! SELinux labels are left to bootc, which labels a store that lacks its stamp file as soon as it opens
//! it.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use containers_storage::Environment;
use repository::Tag;
use repository::oci::ManifestDigest;
use rustix::fs::{MemfdFlags, memfd_create};
use thiserror::Error;

use super::podman::{self, PodmanOutput};
use super::{PullError, PullOptions, Pulled};

/// The store as podman sees it; also, below the mount, podman's run root.
const ALIAS: &str = "/run/bootc/storage";
/// podman's run root as it is in its database.
const RUN_ROOT: &str = "/proc/self/fd/3";
/// Where ostree and bootc keep credentials, first one first.
const AUTH_FILES: [&str; 3] = [
    "/run/ostree/auth.json",
    "/etc/ostree/auth.json",
    "/usr/lib/ostree/auth.json",
];
/// `$1` is the store, the rest is the command. The run root is opened before the mount covers it.
const ENTER: &str = r#"
exec 3</run/bootc/storage
mount --bind -- "$1" /run/bootc/storage
shift
exec "$@"
"#;

/// bootc's containers-storage below a system root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootcStorage {
    sysroot: PathBuf,
}

/// Why bootc's storage cannot be prepared.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BootcError {
    /// Mounts need root.
    #[error("bootc's storage can be used by root only")]
    NotRoot,
    /// A system root without a repository.
    #[error("{} is not a system root with composefs: there is no {}", .0.display(), .0.join("composefs").display())]
    NoRepository(PathBuf),
    /// A file or directory could not be made.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was to be done.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

fn failed<'p>(action: &'static str, path: &'p Path) -> impl FnOnce(io::Error) -> BootcError + 'p {
    move |source| BootcError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

pub(super) fn check_root() -> Result<(), BootcError> {
    if Environment::current().is_root() {
        Ok(())
    } else {
        Err(BootcError::NotRoot)
    }
}

impl BootcStorage {
    /// The storage below `sysroot`, `/sysroot` on a booted host. It need not exist yet.
    pub fn of_sysroot(sysroot: impl Into<PathBuf>) -> Self {
        Self {
            sysroot: sysroot.into(),
        }
    }

    /// Its root as podman on this host would name it: an additional image store for others.
    pub fn root(&self) -> PathBuf {
        self.sysroot.join("ostree/bootc/storage")
    }

    pub(super) fn pull(&self, reference: &str, options: &PullOptions) -> Result<Pulled, PullError> {
        check_root()?;
        self.directories()?;
        fs::create_dir_all(ALIAS).map_err(failed("create", Path::new(ALIAS)))?;
        let auth = Auth::find(options)?;
        let root = self.root();
        if !root.exists() {
            self.create(&root, options)?;
        }
        if let Some(name) = reference.strip_prefix("containers-storage:") {
            // podman's `pull` does nothing with a transport that is podman's storage itself.
            let to = format!("containers-storage:[overlay@{ALIAS}+{RUN_ROOT}]{name}");
            let push = ["image", "push", "--remove-signatures", "--", name, &to];
            let quiet = (options.output == PodmanOutput::Quiet).then_some("--quiet");
            let push = push[..2]
                .iter()
                .copied()
                .chain(quiet)
                .chain(push[2..].iter().copied());
            let command = enter(&root, "podman", push.map(str::to_owned));
            podman::run(command, "unshare", reference, options)?;
            return Ok(Pulled::Name(name.to_owned()));
        }
        let arguments = podman::arguments(reference, options, || Command::new("podman"))?;
        let mut command = in_storage(&root, arguments);
        auth.tell(&mut command);
        let said = podman::run(command, "unshare", reference, options)?;
        podman::pulled_id(reference, &said)
    }

    /// `composefs/bootc`, and `ostree/bootc` as a link to it; a directory of that name, from ostree,
    /// stays and holds the store.
    fn directories(&self) -> Result<(), BootcError> {
        if !self.sysroot.join("composefs").is_dir() {
            return Err(BootcError::NoRepository(self.sysroot.clone()));
        }
        for dir in ["composefs/bootc", "ostree"] {
            let dir = self.sysroot.join(dir);
            fs::create_dir_all(&dir).map_err(failed("create", &dir))?;
        }
        let link = self.sysroot.join("ostree/bootc");
        match symlink("../composefs/bootc", &link) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made.map_err(failed("create", &link)),
        }
    }

    /// Lets podman make a store beside its place and moves it there when it is one.
    fn create(&self, root: &Path, options: &PullOptions) -> Result<(), PullError> {
        let new = root.with_extension("tmp");
        match fs::remove_dir_all(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &new)(error).into());
            }
            _ => {}
        }
        fs::create_dir(&new).map_err(failed("create", &new))?;
        let quiet = PullOptions {
            output: PodmanOutput::Quiet,
            ..options.clone()
        };
        let reference = root.display().to_string();
        podman::run(
            in_storage(&new, ["images".to_owned()]),
            "unshare",
            &reference,
            &quiet,
        )?;
        fs::rename(&new, root).map_err(failed("create", root))?;
        let parent = self.sysroot.join("ostree/bootc");
        File::open(&parent)
            .and_then(|dir| dir.sync_all())
            .map_err(failed("sync", &parent))?;
        Ok(())
    }
}

/// podman with its storage in `root`.
fn in_storage(root: &Path, arguments: impl IntoIterator<Item = String>) -> Command {
    let storage = ["--root", ALIAS, "--runroot", RUN_ROOT].map(str::to_owned);
    enter(root, "podman", storage.into_iter().chain(arguments))
}

/// A command in a mount namespace where the storage is at its alias.
fn enter(root: &Path, program: &str, arguments: impl IntoIterator<Item = String>) -> Command {
    let mut command = Command::new("unshare");
    command
        .args([
            "--mount",
            "--propagation",
            "slave",
            "sh",
            "-euc",
            ENTER,
            "sh",
        ])
        .arg(root)
        .arg(program)
        .args(arguments);
    command
}

/// The tag with which bootc keeps an image in its repository: `localhost/bootc-` and the manifest's
/// digest. bootc removes it when no deployment has this manifest any more.
pub fn bootc_tag(manifest: &ManifestDigest) -> Tag {
    Tag::new(format!("localhost/bootc-{manifest}")).expect("a digest is short and has no @")
}

/// Where podman has its credentials from.
enum Auth {
    /// From a file that the user named, as an argument.
    Given,
    /// From ostree's.
    File(&'static Path),
    /// There are none: an empty list, so that podman does not take anybody's personal ones.
    None(File),
}

impl Auth {
    fn find(options: &PullOptions) -> Result<Self, BootcError> {
        if options.registry.authfile.is_some() {
            return Ok(Self::Given);
        }
        if let Some(file) = AUTH_FILES.map(Path::new).into_iter().find(|it| it.exists()) {
            return Ok(Self::File(file));
        }
        let name = Path::new("auth.json");
        let empty = memfd_create("auth.json", MemfdFlags::CLOEXEC)
            .map_err(io::Error::from)
            .map_err(failed("create", name))?;
        let mut empty = File::from(empty);
        empty.write_all(b"{}").map_err(failed("write", name))?;
        Ok(Self::None(empty))
    }

    fn tell(&self, command: &mut Command) {
        let file = match self {
            Self::Given => return,
            Self::File(file) => file.to_path_buf(),
            Self::None(empty) => {
                let (process, descriptor) = (std::process::id(), empty.as_raw_fd());
                format!("/proc/{process}/fd/{descriptor}").into()
            }
        };
        command.env("REGISTRY_AUTH_FILE", file);
    }
}
