//! One storage.conf file: from TOML text to the values it sets.
//!
//! Keys that do not matter to a reader of the store are ignored, as podman ignores keys it does not
//! know. Nothing here reads a file or a variable.

use serde::Deserialize;

/// The values one file sets; what it leaves out is `None` or empty. Paths are not expanded.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct ConfFile {
    pub(super) storage: StorageTable,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct StorageTable {
    pub(super) driver: String,
    pub(super) driver_priority: Vec<String>,
    pub(super) graphroot: String,
    pub(super) runroot: String,
    pub(super) rootless_storage_path: String,
    pub(super) imagestore: String,
    pub(super) transient_store: bool,
    pub(super) options: OptionsTable,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct OptionsTable {
    pub(super) additionalimagestores: Vec<String>,
    /// Older places of the options of the `overlay` table.
    pub(super) mountopt: String,
    pub(super) mount_program: String,
    pub(super) size: String,
    pub(super) ignore_chown_errors: Switch,
    pub(super) overlay: OverlayTable,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct OverlayTable {
    pub(super) mountopt: String,
    pub(super) mount_program: String,
    pub(super) use_composefs: Switch,
    pub(super) force_mask: String,
    pub(super) size: String,
    pub(super) ignore_chown_errors: Switch,
}

/// A boolean that podman writes as a string.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub(super) enum Switch {
    Bool(bool),
    Text(String),
}

impl Default for Switch {
    fn default() -> Self {
        Self::Text(String::new())
    }
}

impl Switch {
    /// The value as Go's `ParseBool` reads it; the text itself if it is no boolean.
    pub(super) fn value(&self) -> Result<bool, &str> {
        match self {
            Self::Bool(value) => Ok(*value),
            Self::Text(text) => parse_bool(text).ok_or(text),
        }
    }
}

/// Reads what Go's `ParseBool` reads, and nothing as `false`.
pub(super) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "True" | "TRUE" => Some(true),
        "" | "0" | "f" | "F" | "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

impl ConfFile {
    pub(super) fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }
}
