//! What a check finds, why it matters, and what mends it.

use std::path::PathBuf;

use containers_storage::{ConfSource, StorageConf};
use serde::Serialize;

use crate::podman_conf::{DROP_IN, MAIN_FILE};

/// What kind of thing was found. `docs/doctor.md` says of each which hazard it shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "docs/doctor.md has them all")]
pub enum Kind {
    NotRoot,
    KernelFilesystem,
    KernelDataOnly,
    KernelLoop,
    KernelStacking,
    KernelVerity,
    KernelIdmap,
    NoReflink,
    OtherFilesystem,
    NoVerity,
    LowSpace,
    LowInodes,
    ObjectsMode,
    NoPodman,
    PodmanTooOld,
    PodmanFails,
    OtherRoots,
    NativeDiff,
    ConfUnreadable,
    OtherDriver,
    MountProgram,
    NotConfigured,
    WritableStore,
    VerityOff,
    VerityInsecure,
    RootlessStore,
    RootlessMountopt,
    MainStoreOptions,
    StoreMissing,
    StoreNoLock,
    StoreUnreadable,
    StoreDuplicate,
    StorePair,
    StoreLink,
    StoreLayer,
    StoreLocked,
    SameLink,
    SameLayer,
    SameName,
    HiddenName,
    ViewNotMounted,
    ForeignMount,
    StoreMoved,
    LayerNotMounted,
    LayerDamaged,
    IncompleteLayer,
    LostParent,
    DanglingLower,
    SystemCheck,
    UnitDisabled,
    UnitOtherRepository,
    OptionsReplaced,
    ImageCollector,
    SelinuxLabel,
}

impl Kind {
    /// The word for it, as in JSON.
    pub fn name(self) -> String {
        serde_json::to_value(self)
            .ok()
            .and_then(|value| value.as_str().map(str::to_owned))
            .unwrap_or_default()
    }
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// podman fails, or gives wrong results.
    Error,
    /// It will, sooner or later or in some cases.
    Warning,
    /// It works, but less well than it could, or one has to know something.
    Note,
}

/// The one thing that mends it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Remedy {
    /// A command for root's shell.
    Command {
        /// The command.
        command: String,
        /// What `--fix` does in its place, where only files of ours change.
        fix: Option<Fix>,
    },
    /// A line of storage.conf, in place of one with the same key.
    Line {
        /// The file.
        file: PathBuf,
        /// What has to be copied there first, because the file would count in its place.
        copy_of: Option<PathBuf>,
        /// The table, without brackets.
        table: &'static str,
        /// The line.
        line: String,
    },
    /// Something to decide or to know.
    Advice {
        /// What.
        text: String,
    },
}

impl Remedy {
    pub(super) fn command(command: impl Into<String>) -> Self {
        Self::Command {
            command: command.into(),
            fix: None,
        }
    }

    /// A line in the file that decides for a configuration.
    pub(super) fn line(conf: &StorageConf, table: &'static str, line: impl Into<String>) -> Self {
        let (file, copy_of) = match &conf.source {
            ConfSource::File(file) if file.starts_with("/usr") => {
                (MAIN_FILE.into(), Some(file.clone()))
            }
            ConfSource::File(file) => (file.clone(), None),
            ConfSource::Files(_) => (DROP_IN.into(), None),
            ConfSource::BuiltIn | ConfSource::Root(_) => (MAIN_FILE.into(), None),
        };
        Self::Line {
            file,
            copy_of,
            table,
            line: line.into(),
        }
    }

    pub(super) fn advice(text: impl Into<String>) -> Self {
        Self::Advice { text: text.into() }
    }
}

/// A change of files of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fix {
    /// Owner and mode of the directory of objects.
    ObjectsMode,
    /// Records and directories of the store, the view, and the mounts of layers.
    ServeMounts,
    /// EROFS images in the store.
    Images,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What kind of thing.
    pub finding: Kind,
    /// How bad.
    pub severity: Severity,
    /// What it is about: a path, a user, a layer, a program.
    pub subject: String,
    /// What is wrong.
    pub problem: String,
    /// What comes of it.
    pub why: String,
    /// What mends it.
    pub remedy: Remedy,
}

/// An argument as a shell takes it.
pub(super) fn shell(word: impl AsRef<std::path::Path>) -> String {
    let word = word.as_ref().display().to_string();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_stays_one_word_of_a_shell() {
        assert_eq!(shell("/plain/path"), "/plain/path");
        assert_eq!(shell("/it's here"), r"'/it'\''s here'");
        assert_eq!(shell(""), "''");
    }
}
