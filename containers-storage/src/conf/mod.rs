//! storage.conf: which store a user's podman uses, and how it mounts.
//!
//! There are two sets of rules ([`ConfRules`]). Up to podman 5 (c/storage 1.62) one file counts, nothing
//! is merged. `CONTAINERS_STORAGE_CONF` names it; else root has `/etc/containers/storage.conf` or, if that is missing,
//! `/usr/share/containers/storage.conf`; a user has `$XDG_CONFIG_HOME/containers/storage.conf`, or only
//! the driver of the system's file. `STORAGE_DRIVER` and `STORAGE_OPTS` are applied as a file is read.
//! From podman 6 on there are drop-ins as well, and users take over all that the system's files say; see
//! `dropins`. Where both sets say the same, as nearly everywhere, it does not matter which podman there
//! is; where they do not, podman is asked for its version.
//!
//! Reading files is [`StorageConf::discover`]; what their text means is [`StorageConf::parse`].

mod dropins;
mod environment;
mod file;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Serialize;

pub use environment::Environment;
use file::ConfFile;

const DEFAULT_GRAPHROOT: &str = "/var/lib/containers/storage";
const DEFAULT_RUNROOT: &str = "/run/containers/storage";

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfError {
    /// A file that must be there could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not TOML, or a key has the wrong type.
    #[error("{origin} is not a valid storage.conf")]
    Syntax {
        /// Where the text is from.
        origin: ConfSource,
        /// What is wrong, with line and column.
        source: Box<toml::de::Error>,
    },
    /// A value has a form that podman refuses.
    #[error("{origin}: {key} has the invalid value {value:?}")]
    Value {
        /// Where the value is from.
        origin: ConfSource,
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
    },
}

/// Where a configuration is from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConfSource {
    /// This file.
    File(PathBuf),
    /// These files, each on top of those before it.
    Files(Vec<PathBuf>),
    /// No file; the values that are built in.
    BuiltIn,
    /// A root that was named by the caller.
    Root(PathBuf),
}

impl std::fmt::Display for ConfSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Files(paths) => {
                let paths: Vec<_> = paths
                    .iter()
                    .map(|path| path.display().to_string())
                    .collect();
                f.write_str(&paths.join(", "))
            }
            Self::BuiltIn => f.write_str("the built-in configuration"),
            Self::Root(path) => write!(f, "the storage root {}", path.display()),
        }
    }
}

/// By which rules podman finds its configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConfRules {
    /// One file, as up to podman 5.
    SingleFile,
    /// A main file and drop-ins, as from podman 6 on.
    DropIns,
}

impl ConfRules {
    /// The rules of the podman that prints `version` when it is asked for it. Without one, the newest.
    pub fn of_version(version: &str) -> Self {
        let number = version.split_whitespace().last().unwrap_or_default();
        match number.split('.').next().unwrap_or_default().parse::<u32>() {
            Ok(major) if major < 6 => Self::SingleFile,
            _ => Self::DropIns,
        }
    }

    /// The rules of the podman that is installed.
    fn installed() -> Self {
        Self::of_version(&podman_version().unwrap_or_default())
    }
}

/// What `podman --version` prints; `None` if there is no podman that tells its version.
///
/// Some fail even at that with a storage.conf that they cannot use, so they are given one that they can.
pub fn podman_version() -> Option<String> {
    const CONF: &[u8] =
        b"[storage]\ndriver = \"overlay\"\ngraphroot = \"/var/lib/containers/storage\"\n\
                          runroot = \"/run/containers/storage\"\n";
    let conf = rustix::fs::memfd_create("storage.conf", rustix::fs::MemfdFlags::CLOEXEC).ok()?;
    rustix::io::write(&conf, CONF).ok()?;
    let output = Command::new("podman")
        .arg("--version")
        // Opened anew by that name, the file is read from its beginning, however often.
        .env("CONTAINERS_STORAGE_CONF", "/proc/self/fd/0")
        .stdin(conf)
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Where a user's store is and how it is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StorageConf {
    /// Where the values are from.
    pub source: ConfSource,
    /// The storage driver; `None` leaves the choice to podman.
    pub driver: Option<String>,
    /// The order in which podman tries drivers, if none is set.
    pub driver_priority: Vec<String>,
    /// Root of the store.
    pub graphroot: PathBuf,
    /// Root of its run-time state.
    pub runroot: PathBuf,
    /// A second root to which images are written, if the store is split.
    pub imagestore: Option<PathBuf>,
    /// Container records live below the run root.
    pub transient_store: bool,
    /// Read-only stores that are searched after the main one, in order.
    pub additional_image_stores: Vec<PathBuf>,
    overlay: OverlayOptions,
}

/// Options of the overlay driver that decide how layers look on disk and how they are compared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct OverlayOptions {
    /// Mount options, separated by commas.
    pub mountopt: String,
    /// A program that mounts in the kernel's place, such as fuse-overlayfs.
    pub mount_program: Option<PathBuf>,
    /// podman writes its own layers as composefs images.
    pub use_composefs: bool,
    /// All files get this mode; the real one is in an xattr.
    pub force_mask: Option<String>,
    /// Quota of a container's own layer.
    pub size: Option<String>,
    /// Files keep the owner that they are written with, if it cannot be changed.
    pub ignore_chown_errors: bool,
}

/// Why podman compares two mounted trees instead of reading the upper directory, so that `build` and
/// `commit` are right on composefs-backed lower layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NaiveDiffReason {
    /// `use_composefs` is set.
    UseComposefs,
    /// A mount program is set.
    MountProgram,
    /// `mountopt` has `metacopy=on` or `redirect_dir=on`.
    MountOption,
}

impl OverlayOptions {
    /// Whether `mountopt` contains `option`.
    pub fn has_mount_option(&self, option: &str) -> bool {
        self.mountopt.split(',').any(|o| o.trim() == option)
    }

    /// Whether these options make podman use its naive diff. `None` does not prove the opposite: a
    /// kernel whose overlay turns on redirects by default has the same effect.
    pub fn naive_diff(&self) -> Option<NaiveDiffReason> {
        if self.use_composefs {
            Some(NaiveDiffReason::UseComposefs)
        } else if self.mount_program.is_some() {
            Some(NaiveDiffReason::MountProgram)
        } else if self.has_mount_option("metacopy=on") || self.has_mount_option("redirect_dir=on") {
            Some(NaiveDiffReason::MountOption)
        } else {
            None
        }
    }

    /// Applies one driver option `key=value`, with or without the driver's name before the key.
    fn apply(
        &mut self,
        stores: &mut Vec<PathBuf>,
        option: &str,
        origin: &ConfSource,
    ) -> Result<(), ConfError> {
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        let key = key.trim().to_lowercase();
        let key = ["overlay.", "overlay2.", "."]
            .iter()
            .fold(key.as_str(), |key, prefix| {
                key.strip_prefix(prefix).unwrap_or(key)
            });
        let parse_switch = |key| {
            file::parse_bool(value).ok_or_else(|| ConfError::Value {
                origin: origin.clone(),
                key,
                value: value.to_owned(),
            })
        };
        match key {
            "mountopt" => value.clone_into(&mut self.mountopt),
            "mount_program" => self.mount_program = non_empty(value).map(PathBuf::from),
            "force_mask" => self.force_mask = non_empty(value).map(str::to_owned),
            "size" => self.size = non_empty(value).map(str::to_owned),
            "use_composefs" => self.use_composefs = parse_switch("use_composefs")?,
            "ignore_chown_errors" => {
                self.ignore_chown_errors = parse_switch("ignore_chown_errors")?;
            }
            "imagestore" | "additionalimagestore" => {
                if let Some(value) = non_empty(value) {
                    stores.push(absolute(origin, "imagestore", value)?);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn non_empty(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

fn absolute(origin: &ConfSource, key: &'static str, value: &str) -> Result<PathBuf, ConfError> {
    let path = Path::new(value);
    if path.is_absolute() {
        Ok(path.components().collect())
    } else {
        Err(ConfError::Value {
            origin: origin.clone(),
            key,
            value: value.to_owned(),
        })
    }
}

impl StorageConf {
    /// The configuration that podman would use in `environment`.
    pub fn discover(environment: &Environment) -> Result<Self, ConfError> {
        let [single, drop_ins] = [ConfRules::SingleFile, ConfRules::DropIns]
            .map(|rules| Self::discover_by(environment, rules));
        if let (Ok(single), Ok(drop_ins)) = (&single, &drop_ins)
            && single.is_same_store(drop_ins)
        {
            return Ok(single.clone());
        }
        match ConfRules::installed() {
            ConfRules::SingleFile => single,
            ConfRules::DropIns => drop_ins,
        }
    }

    /// The configuration that a podman with these rules uses in `environment`.
    pub fn discover_by(environment: &Environment, rules: ConfRules) -> Result<Self, ConfError> {
        Self::discover_below(Path::new("/"), environment, rules)
    }

    /// Whether two configurations say the same, from wherever they are.
    fn is_same_store(&self, other: &Self) -> bool {
        let same_source = Self {
            source: self.source.clone(),
            ..other.clone()
        };
        *self == same_source
    }

    /// As [`StorageConf::discover`] by given rules, with the system's files below `sysroot`.
    fn discover_below(
        sysroot: &Path,
        environment: &Environment,
        rules: ConfRules,
    ) -> Result<Self, ConfError> {
        match rules {
            ConfRules::SingleFile => Self::single_file(sysroot, environment),
            ConfRules::DropIns => dropins::discover_below(sysroot, environment),
        }
    }

    fn single_file(sysroot: &Path, environment: &Environment) -> Result<Self, ConfError> {
        if let Some(path) = environment.get("CONTAINERS_STORAGE_CONF") {
            let path = PathBuf::from(path);
            return Self::parse(&read_required(&path)?, &path, environment);
        }
        let system = [
            "etc/containers/storage.conf",
            "usr/share/containers/storage.conf",
        ]
        .map(|path| sysroot.join(path));
        let user = environment.config_home().join("containers/storage.conf");
        if !environment.is_root()
            && let Some(text) = read_optional(&user)?
        {
            return Self::parse(&text, &user, environment);
        }
        for path in system {
            if let Some(text) = read_optional(&path)? {
                let conf = Self::parse(&text, &path, environment)?;
                return Ok(if environment.is_root() {
                    conf
                } else {
                    conf.for_user(&text, environment)
                });
            }
        }
        Ok(Self::built_in(environment))
    }

    /// The configuration for a root named by the caller, as podman's `--root` means it: no additional
    /// stores, no driver options, and nothing of the host's files.
    pub fn for_root(root: &Path, environment: &Environment) -> Self {
        Self {
            source: ConfSource::Root(root.to_owned()),
            graphroot: root.to_owned(),
            ..Self::built_in(environment)
        }
    }

    /// The configurations of the users of this machine, without root's, whose stores exist: those in
    /// `/etc/passwd`, and owners of directories in `/home` and `/var/home`. What a user has written into a
    /// configuration that cannot be used is ignored, as podman would not run with it. Where it depends on
    /// podman's version which store a user has, both are named.
    pub fn of_users() -> Vec<Self> {
        Self::of_users_below(Path::new("/"))
    }

    fn of_users_below(sysroot: &Path) -> Vec<Self> {
        let mut users: BTreeMap<PathBuf, u32> = BTreeMap::new();
        for home in ["home", "var/home"].map(|home| sysroot.join(home)) {
            for entry in fs::read_dir(home).into_iter().flatten().flatten() {
                if let Ok(metadata) = entry.metadata()
                    && metadata.is_dir()
                {
                    users.insert(entry.path(), metadata.uid());
                }
            }
        }
        let passwd = fs::read_to_string(sysroot.join("etc/passwd")).unwrap_or_default();
        for line in passwd.lines() {
            let fields: Vec<&str> = line.split(':').collect();
            if let [_, _, uid, _, _, home, ..] = fields.as_slice()
                && let (Ok(uid), Ok(home)) = (uid.parse(), Path::new(home).strip_prefix("/"))
            {
                users.insert(sysroot.join(home), uid);
            }
        }
        let mut confs: Vec<Self> = users
            .into_iter()
            .filter(|(_, uid)| *uid != 0)
            .flat_map(|(home, uid)| {
                let environment = Environment {
                    uid,
                    variables: [("HOME".into(), home.into())].into(),
                };
                [ConfRules::SingleFile, ConfRules::DropIns].map(|rules| {
                    Self::discover_below(sysroot, &environment, rules)
                        .unwrap_or_else(|_| Self::built_in(&environment))
                })
            })
            .filter(|conf| conf.graphroot.is_dir())
            .collect();
        confs.dedup_by(|a, b| a.is_same_store(b));
        confs
    }

    /// What podman uses where there is no file at all.
    fn built_in(environment: &Environment) -> Self {
        let (graphroot, runroot) = default_roots(environment);
        Self {
            source: ConfSource::BuiltIn,
            driver: None,
            driver_priority: Vec::new(),
            graphroot,
            runroot,
            imagestore: None,
            transient_store: false,
            additional_image_stores: Vec::new(),
            overlay: OverlayOptions::default(),
        }
    }

    /// What `text`, the content of the storage.conf at `path`, means in `environment`.
    pub fn parse(text: &str, path: &Path, environment: &Environment) -> Result<Self, ConfError> {
        let source = ConfSource::File(path.to_owned());
        let file = ConfFile::parse(text).map_err(|error| ConfError::Syntax {
            origin: source.clone(),
            source: Box::new(error),
        })?;
        Self::interpret(file, source, environment)
    }

    /// What the values of `file` mean in `environment`.
    fn interpret(
        file: ConfFile,
        source: ConfSource,
        environment: &Environment,
    ) -> Result<Self, ConfError> {
        let storage = file.storage;

        let (default_graphroot, default_runroot) = default_roots(environment);
        let expanded = |text: &str, default: PathBuf| match non_empty(text) {
            Some(text) => resolve(&environment.expand(text)),
            None => default,
        };
        let graphroot = match non_empty(&storage.rootless_storage_path) {
            Some(path) if !environment.is_root() => {
                expanded(&storage.graphroot, resolve(&environment.expand(path)))
            }
            _ => expanded(&storage.graphroot, default_graphroot),
        };
        let imagestore = non_empty(&storage.imagestore).map(PathBuf::from);
        if imagestore.as_ref() == Some(&graphroot) {
            return Err(ConfError::Value {
                origin: source,
                key: "imagestore (it must differ from graphroot)",
                value: storage.imagestore,
            });
        }

        let driver = environment
            .non_empty("STORAGE_DRIVER")
            .map(|driver| driver.to_string_lossy().into_owned())
            .or_else(|| non_empty(&storage.driver).map(str::to_owned))
            .map(|driver| {
                if driver == "overlay2" {
                    "overlay".to_owned()
                } else {
                    driver
                }
            });

        let mut overlay = OverlayOptions::default();
        let mut stores = Vec::new();
        if let Some(options) = environment.get("STORAGE_OPTS") {
            for option in options.to_string_lossy().split(',') {
                overlay.apply(&mut stores, option, &source)?;
            }
        } else {
            let options = &storage.options;
            for store in &options.additionalimagestores {
                // podman lets one entry name several stores.
                for store in store.split(',').filter(|s| !s.is_empty()) {
                    stores.push(absolute(&source, "additionalimagestores", store)?);
                }
            }
            let first = |new: &str, old: &str| {
                if new.is_empty() {
                    old.to_owned()
                } else {
                    new.to_owned()
                }
            };
            overlay.mountopt = first(&options.overlay.mountopt, &options.mountopt);
            overlay.mount_program = non_empty(&first(
                &options.overlay.mount_program,
                &options.mount_program,
            ))
            .map(PathBuf::from);
            overlay.force_mask = non_empty(&options.overlay.force_mask).map(str::to_owned);
            overlay.size =
                non_empty(&first(&options.overlay.size, &options.size)).map(str::to_owned);
            let switch = |key, switch: &file::Switch| {
                switch.value().map_err(|value| ConfError::Value {
                    origin: source.clone(),
                    key,
                    value: value.to_owned(),
                })
            };
            overlay.use_composefs = switch("use_composefs", &options.overlay.use_composefs)?;
            overlay.ignore_chown_errors =
                switch("ignore_chown_errors", &options.overlay.ignore_chown_errors)?
                    || switch("ignore_chown_errors", &options.ignore_chown_errors)?;
        }

        Ok(Self {
            runroot: expanded(&storage.runroot, default_runroot),
            source,
            driver,
            driver_priority: storage.driver_priority,
            graphroot,
            imagestore,
            transient_store: storage.transient_store,
            additional_image_stores: stores,
            overlay,
        })
    }

    /// What a user without a file of their own takes over from the system's file: the driver and the
    /// path meant for users, but neither additional stores nor mount options.
    fn for_user(self, text: &str, environment: &Environment) -> Self {
        let mut conf = Self::built_in(environment);
        if let Ok(file) = ConfFile::parse(text)
            && let Some(path) = non_empty(&file.storage.rootless_storage_path)
        {
            conf.graphroot = resolve(&environment.expand(path));
        }
        conf.source = self.source;
        conf.driver = self.driver;
        if environment.non_empty("STORAGE_OPTS").is_some() {
            conf.overlay = self.overlay;
            conf.additional_image_stores = self.additional_image_stores;
        }
        conf
    }

    /// The overlay driver's options.
    pub fn overlay_options(&self) -> &OverlayOptions {
        &self.overlay
    }
}

fn default_roots(environment: &Environment) -> (PathBuf, PathBuf) {
    if environment.is_root() {
        (DEFAULT_GRAPHROOT.into(), DEFAULT_RUNROOT.into())
    } else {
        (
            environment.data_home().join("containers/storage"),
            environment.runtime_dir().join("containers"),
        )
    }
}

/// The path with its symlinks resolved, or as it is if it does not exist.
fn resolve(path: &Path) -> PathBuf {
    path.canonicalize()
        .unwrap_or_else(|_| path.components().collect())
}

fn read_required(path: &Path) -> Result<String, ConfError> {
    read_optional(path)?.ok_or_else(|| ConfError::Read {
        path: path.to_owned(),
        source: io::ErrorKind::NotFound.into(),
    })
}

fn read_optional(path: &Path) -> Result<Option<String>, ConfError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(source) => Err(ConfError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests;
