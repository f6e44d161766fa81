//! A main file and drop-ins, as podman 6 (c/storage 1.63) has them.
//!
//! The main file is the first that exists of the user's, `/etc/containers/storage.conf` and
//! `/usr/share/containers/storage.conf`. On top of it come the files `*.conf` of the drop-in directories,
//! sorted by name over all of them; of two files with one name the one of the later directory counts. A
//! later scalar wins, a later list replaces the earlier, unless it has the element `{append=true}`, which
//! stays in force for the files that follow.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::file::ConfFile;
use super::{ConfError, ConfSource, Environment, StorageConf, read_optional, read_required};

/// The configuration in `environment`, with the system's files below `sysroot`.
pub(super) fn discover_below(
    sysroot: &Path,
    environment: &Environment,
) -> Result<StorageConf, ConfError> {
    let mut merged = Merged::default();
    if let Some(path) = environment.get("CONTAINERS_STORAGE_CONF") {
        let path = PathBuf::from(path);
        merged.add(&read_required(&path)?, path)?;
    } else {
        let user = environment.config_home().join("containers");
        let places = [
            user.clone(),
            sysroot.join("etc/containers"),
            sysroot.join("usr/share/containers"),
        ];
        for path in places.map(|place| place.join("storage.conf")) {
            if let Some(text) = read_optional(&path)? {
                merged.add(&text, path)?;
                break;
            }
        }
        for path in drop_ins(sysroot, &user, environment)? {
            // A file that goes away meanwhile is as good as one that never was.
            if let Some(text) = read_optional(&path)? {
                merged.add(&text, path)?;
            }
        }
    }
    if let Some(path) = environment.non_empty("CONTAINERS_STORAGE_CONF_OVERRIDE") {
        let path = PathBuf::from(path);
        merged.add(&read_required(&path)?, path)?;
    }
    merged.interpret(environment)
}

/// The drop-in files in the order in which they apply.
fn drop_ins(
    sysroot: &Path,
    user: &Path,
    environment: &Environment,
) -> Result<Vec<PathBuf>, ConfError> {
    let mut directories = Vec::new();
    for system in ["usr/share/containers", "etc/containers"].map(|dir| sysroot.join(dir)) {
        directories.push(system.join("storage.conf.d"));
        if environment.is_root() {
            directories.push(system.join("storage.rootful.conf.d"));
        } else {
            let rootless = system.join("storage.rootless.conf.d");
            let own = rootless.join(environment.uid.to_string());
            directories.extend([rootless, own]);
        }
    }
    directories.push(user.join("storage.conf.d"));

    let mut files: BTreeMap<OsString, PathBuf> = BTreeMap::new();
    for directory in directories {
        let read = |source| ConfError::Read {
            path: directory.clone(),
            source,
        };
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound
                        | io::ErrorKind::NotADirectory
                        | io::ErrorKind::PermissionDenied
                ) =>
            {
                continue;
            }
            Err(error) => return Err(read(error)),
        };
        for entry in entries {
            let entry = entry.map_err(read)?;
            // Not a symlink either.
            let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
            if is_file && entry.path().extension().is_some_and(|end| end == "conf") {
                files.insert(entry.file_name(), entry.path());
            }
        }
    }
    Ok(files.into_values().collect())
}

/// Files read so far, one on top of the other.
#[derive(Default)]
struct Merged {
    table: Table,
    /// Lists that following files add to, by their path of keys.
    appending: BTreeSet<Vec<String>>,
    files: Vec<PathBuf>,
}

impl Merged {
    fn add(&mut self, text: &str, path: PathBuf) -> Result<(), ConfError> {
        let table = text.parse::<Table>().map_err(|error| ConfError::Syntax {
            origin: ConfSource::File(path.clone()),
            source: Box::new(error),
        })?;
        merge(&mut self.table, table, &mut self.appending, &mut Vec::new());
        self.files.push(path);
        Ok(())
    }

    fn interpret(mut self, environment: &Environment) -> Result<StorageConf, ConfError> {
        let source = match (self.files.len(), self.files.pop()) {
            (_, None) => ConfSource::BuiltIn,
            (1, Some(file)) => ConfSource::File(file),
            (_, Some(last)) => {
                self.files.push(last);
                ConfSource::Files(self.files)
            }
        };
        let file: ConfFile = self.table.try_into().map_err(|error| ConfError::Syntax {
            origin: source.clone(),
            source: Box::new(error),
        })?;
        StorageConf::interpret(file, source, environment)
    }
}

fn merge(
    to: &mut Table,
    from: Table,
    appending: &mut BTreeSet<Vec<String>>,
    keys: &mut Vec<String>,
) {
    for (key, value) in from {
        keys.push(key.clone());
        match (value, to.get_mut(&key)) {
            (Value::Table(from), Some(Value::Table(to))) => merge(to, from, appending, keys),
            (Value::Table(from), _) => {
                let mut table = Table::new();
                merge(&mut table, from, appending, keys);
                to.insert(key, Value::Table(table));
            }
            (Value::Array(mut from), there) => {
                let mut append = appending.contains(keys);
                from.retain(|element| match append_switch(element) {
                    Some(switch) => {
                        append = switch;
                        false
                    }
                    None => true,
                });
                if append {
                    appending.insert(keys.clone());
                } else {
                    appending.remove(keys);
                }
                match there {
                    Some(Value::Array(to)) if append => to.extend(from),
                    _ => {
                        to.insert(key, Value::Array(from));
                    }
                }
            }
            (value, _) => {
                to.insert(key, value);
            }
        }
        keys.pop();
    }
}

/// The value of `append` in the element `{append=…}` of a list.
fn append_switch(element: &Value) -> Option<bool> {
    element.as_table()?.get("append")?.as_bool()
}
