//! What of a process's surroundings decides where its storage is.
//!
//! Taken once and handed on, so that the rules are functions of values and tests need no real environment.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use crate::rootless::{CONFIGURED, ROOTLESS_UID};

/// User id and environment variables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// The user whose storage is meant.
    pub uid: u32,
    /// The environment variables.
    pub variables: BTreeMap<OsString, OsString>,
}

impl Environment {
    /// The environment of this process. In a user namespace that [`crate::rootless`] or `podman unshare`
    /// has made, the user is the one outside.
    pub fn current() -> Self {
        let uid = rustix::process::geteuid().as_raw();
        Self::of(uid, std::env::vars_os().collect())
    }

    /// That of a user of this machine who has just logged in, as far as their home directory goes; `None`
    /// if the system knows no user of that name.
    pub fn of_user(name: &str) -> std::io::Result<Option<Self>> {
        // Users need not be in /etc/passwd.
        let output = std::process::Command::new("getent")
            .args(["--", "passwd", name])
            .output()?;
        let line = String::from_utf8_lossy(&output.stdout);
        let fields: Vec<&str> = line.trim_end().split(':').collect();
        let [_, _, uid, _, _, home, ..] = fields.as_slice() else {
            return Ok(None);
        };
        Ok(uid.parse().ok().map(|uid| Self {
            uid,
            variables: [("HOME".into(), home.into())].into(),
        }))
    }

    fn of(uid: u32, variables: BTreeMap<OsString, OsString>) -> Self {
        let mut environment = Self { uid, variables };
        if environment.non_empty(CONFIGURED).is_some()
            && let Some(outside) = environment.non_empty(ROOTLESS_UID)
            && let Some(outside) = outside.to_str().and_then(|text| text.parse().ok())
        {
            environment.uid = outside;
        }
        environment
    }

    /// A variable that is set, if only to the empty string.
    pub(crate) fn get(&self, name: &str) -> Option<&OsStr> {
        self.variables
            .get(OsStr::new(name))
            .map(OsString::as_os_str)
    }

    /// A variable that is set and not empty.
    pub(crate) fn non_empty(&self, name: &str) -> Option<&OsStr> {
        self.get(name).filter(|value| !value.is_empty())
    }

    /// Whether the user is root.
    pub fn is_root(&self) -> bool {
        self.uid == 0
    }

    fn home(&self) -> PathBuf {
        self.non_empty("HOME")
            .map_or_else(|| PathBuf::from("/"), PathBuf::from)
    }

    pub(crate) fn config_home(&self) -> PathBuf {
        self.non_empty("XDG_CONFIG_HOME")
            .map_or_else(|| self.home().join(".config"), PathBuf::from)
    }

    /// Where the user's programs keep their data: `$XDG_DATA_HOME` or `~/.local/share`.
    pub fn data_home(&self) -> PathBuf {
        self.non_empty("XDG_DATA_HOME")
            .map_or_else(|| self.home().join(".local/share"), PathBuf::from)
    }

    pub(crate) fn runtime_dir(&self) -> PathBuf {
        self.non_empty("XDG_RUNTIME_DIR").map_or_else(
            || PathBuf::from(format!("/run/user/{}", self.uid)),
            PathBuf::from,
        )
    }

    /// Replaces `$UID`, `$NAME` and `${NAME}` in a path of storage.conf; what is not set becomes empty.
    pub(crate) fn expand(&self, text: &str) -> PathBuf {
        let mut expanded = OsString::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            expanded.push(before);
            let (name, remaining) = if let Some(braced) = after.strip_prefix('{') {
                braced.split_once('}').unwrap_or((braced, ""))
            } else {
                let end = after
                    .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                    .unwrap_or(after.len());
                after.split_at(end)
            };
            if name == "UID" {
                expanded.push(self.uid.to_string());
            } else if let Some(value) = self.get(name) {
                expanded.push(value);
            }
            rest = remaining;
        }
        expanded.push(rest);
        PathBuf::from(expanded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_a_namespace_of_podmans_the_user_is_the_one_outside() {
        let of = |uid, variables: &[(&str, &str)]| {
            let variables = variables.iter().map(|(k, v)| (k.into(), v.into()));
            Environment::of(uid, variables.collect()).uid
        };
        let unshared = [(CONFIGURED, "done"), (ROOTLESS_UID, "1000")];
        assert_eq!(of(0, &unshared), 1000);
        assert_eq!(of(0, &unshared[1..]), 0);
        assert_eq!(of(0, &[(CONFIGURED, "done"), (ROOTLESS_UID, "x")]), 0);
        assert_eq!(of(1001, &[]), 1001);
    }

    #[test]
    fn paths_expand_user_id_and_variables() {
        let environment = Environment {
            uid: 1000,
            variables: [("HOME".into(), "/home/ann".into())].into(),
        };
        for (text, path) in [
            ("$HOME/storage", "/home/ann/storage"),
            ("${HOME}x/$UID/$NONE/z", "/home/annx/1000//z"),
            ("/plain", "/plain"),
            ("/a/${HOME", "/a//home/ann"),
        ] {
            assert_eq!(environment.expand(text), PathBuf::from(path), "{text}");
        }
    }
}
