//! The podman that is installed: its version, and what it says of itself.

use std::{fmt, path::PathBuf, process::Command, str::FromStr};

use containers_storage::{ConfRules, Environment, podman_version};
use serde::Serialize;
use serde_json::Value;

use super::{
    Facts,
    finding::{Finding, Kind, Remedy, Severity, shell},
};
use crate::{Layout, check_host};

/// Longer than any start of podman takes, even one that waits for another.
const PATIENCE: &str = "60";

/// A version of podman, or of the storage library in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second.
    pub minor: u32,
    /// The third.
    pub patch: u32,
}

impl Version {
    pub(super) const fn new(major: u32, minor: u32) -> Self {
        Self {
            major,
            minor,
            patch: 0,
        }
    }

    /// The minor version of c/storage 1 in this podman, as far as it is known: which podman has which is
    /// in no file of an installed podman.
    pub fn storage(self) -> Option<u32> {
        let minor = match (self.major, self.minor) {
            (4, 3) => 43,
            (4, 4) => 45,
            (4, 5) => 46,
            (4, 6) => 48,
            (4, 7) => 50,
            (4, 8 | 9) => 51,
            (5, minor @ 0..=5) => 53 + minor,
            (5, 6) => 59,
            (5, 7) => 61,
            (5, 8) => 62,
            _ => return None,
        };
        Some(minor)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// Text without a version in it.
#[derive(Debug, PartialEq, Eq)]
pub struct NoVersion;

impl FromStr for Version {
    type Err = NoVersion;

    /// Reads what `podman --version` prints, also with a suffix such as `-dev`.
    fn from_str(text: &str) -> Result<Self, NoVersion> {
        let last = text.split_whitespace().last().ok_or(NoVersion)?;
        let mut numbers = last.splitn(3, '.').map(|part| {
            let end = part.find(|c: char| !c.is_ascii_digit());
            part[..end.unwrap_or(part.len())].parse::<u32>().ok()
        });
        let mut next = || numbers.next().flatten();
        Ok(Self {
            major: next().ok_or(NoVersion)?,
            minor: next().ok_or(NoVersion)?,
            patch: next().unwrap_or_default(),
        })
    }
}

/// What podman says of itself.
#[derive(Clone, Debug, Serialize)]
pub struct PodmanFacts {
    /// Its version.
    pub version: Version,
    /// The version of c/storage in it.
    pub storage: Option<String>,
    /// By which rules it finds its configuration.
    pub rules: ConfRules,
    /// What `podman info` says, if it was asked and knew.
    pub info: Option<Info>,
    /// What podman said instead.
    pub failure: Option<String>,
}

/// What of `podman info` matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Info {
    /// Its main configuration file.
    pub config_file: PathBuf,
    /// Its graph root.
    pub graphroot: PathBuf,
    /// Its run root.
    pub runroot: PathBuf,
    /// Its storage driver.
    pub driver: String,
    /// Its additional image stores; podman before 5 names the last one alone.
    pub additional_stores: Vec<PathBuf>,
    /// Whether it reads what a container changed from the upper directory.
    pub native_diff: Option<bool>,
    /// Whether it can shift owners.
    pub supports_shifting: Option<bool>,
}

impl Info {
    /// Parses the JSON of `podman info`.
    pub(super) fn parse(json: &[u8]) -> Result<Self, String> {
        let all: Value = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        let store = &all["store"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let status = |name: &str| match store["graphStatus"][name].as_str() {
            Some("true") => Some(true),
            Some("false") => Some(false),
            _ => None,
        };
        let options = &store["graphOptions"];
        let list = &options["overlay.additionalImageStores"];
        let last = &options["overlay.imagestore"];
        let additional_stores = match (list.as_array(), last.as_str()) {
            (Some(list), _) => list.iter().map(|store| text(store).into()).collect(),
            (None, Some(last)) => vec![last.into()],
            (None, None) => Vec::new(),
        };
        Ok(Self {
            config_file: text(&store["configFile"]).into(),
            graphroot: text(&store["graphRoot"]).into(),
            runroot: text(&store["runRoot"]).into(),
            driver: text(&store["graphDriverName"]),
            additional_stores,
            native_diff: status("Native Overlay Diff"),
            supports_shifting: status("Supports shifting"),
        })
    }
}

/// The version of the podman that is installed.
pub(super) fn version() -> Option<(Version, ConfRules)> {
    let text = podman_version()?;
    Some((text.parse().ok()?, ConfRules::of_version(&text)))
}

/// Asks podman, with the environment of the configuration that is looked at.
pub(super) fn info(environment: &Environment) -> Result<Info, String> {
    let output = Command::new("timeout")
        .args([PATIENCE, "podman", "info", "--format", "json"])
        .env_clear()
        .envs(&environment.variables)
        .output()
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        Info::parse(&output.stdout)
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

/// The first podman that mounts images of the layout blob as it should.
const FIRST_WITH_BLOB: Version = Version::new(5, 0);

/// The first one that works without data-only layers.
pub(super) const FIRST_WITH_CHECK: Version = Version::new(5, 2);

/// The first one with the layout mounted.
const FIRST: Version = Version::new(4, 3);

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let Some(podman) = &facts.podman else {
        return vec![Finding {
            finding: Kind::NoPodman,
            severity: Severity::Warning,
            subject: "podman".into(),
            problem: "no podman is installed, or it does not tell its version".into(),
            why: "nobody can use what is published, and by which rules storage.conf is read is unknown".into(),
            remedy: Remedy::advice("install podman 4.3 or newer"),
        }];
    };
    let mut findings = Vec::new();
    let mut add = |finding, severity, problem: String, why: &str, remedy| {
        findings.push(Finding {
            finding,
            severity,
            subject: format!("podman {}", podman.version),
            problem,
            why: why.into(),
            remedy,
        });
    };
    let repository = &facts.repository;
    if podman.version < FIRST {
        add(
            Kind::PodmanTooOld,
            Severity::Error,
            "it is older than 4.3".into(),
            "nothing published was ever tried with it",
            Remedy::advice("install podman 4.3 or newer"),
        );
    } else if podman.version < FIRST_WITH_BLOB && repository.blob_layers > 0 {
        add(
            Kind::PodmanTooOld,
            Severity::Error,
            format!(
                "{} layers are published in the layout blob, which needs podman 5.0",
                repository.blob_layers
            ),
            "it shows containers the directory of objects in place of their files, or fails",
            Remedy::advice(
                "install podman 5, or `unpublish` these images and `publish --layout mounted` them",
            ),
        );
    }
    if let Some(message) = &podman.failure {
        add(
            Kind::PodmanFails,
            Severity::Error,
            format!("`podman info` fails: {message}"),
            "so does every other podman command",
            Remedy::advice("mend what else is found here; then look at podman's message"),
        );
    }
    if let Some(info) = &podman.info {
        let conf = facts.root_conf();
        // What the configuration says is told with it.
        let is_told = conf.is_some_and(|conf| check_host(conf, Layout::Blob).is_err());
        if info.native_diff == Some(true) && repository.blob_layers > 0 && !is_told {
            let command = format!(
                "composefs-store --repo {} podman-conf",
                shell(&repository.path)
            );
            add(
                Kind::NativeDiff,
                Severity::Error,
                "it uses native diff, while images are published in the layout blob".into(),
                "`podman build` and `podman commit` on them lose changes and files without a word",
                Remedy::Advice {
                    text: format!("take over the mountopt line that `{command}` prints"),
                },
            );
        }
        if let Some(conf) = conf
            && (info.graphroot != conf.graphroot || info.runroot != conf.runroot)
        {
            add(
                Kind::OtherRoots,
                Severity::Warning,
                format!(
                    "it works in {} and {}, where its configuration says {} and {}",
                    info.graphroot.display(),
                    info.runroot.display(),
                    conf.graphroot.display(),
                    conf.runroot.display()
                ),
                "podman's database remembers the first ones; who uses our layers is looked for in the others",
                Remedy::line(
                    conf,
                    "storage",
                    format!(
                        "graphroot = {:?}\nrunroot = {:?}",
                        info.graphroot.display().to_string(),
                        info.runroot.display().to_string()
                    ),
                ),
            );
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_with_whatever_comes_behind_them() {
        for (text, version) in [
            ("podman version 4.3.1\n", (4, 3, 1)),
            ("podman version 5.8.6", (5, 8, 6)),
            ("podman version 6.0.0-dev", (6, 0, 0)),
            ("podman version 5.5", (5, 5, 0)),
        ] {
            let read: Version = text.parse().unwrap();
            assert_eq!((read.major, read.minor, read.patch), version, "{text}");
        }
        for text in ["", "podman", "podman version x.y.z"] {
            assert_eq!(text.parse::<Version>(), Err(NoVersion), "{text:?}");
        }
    }

    #[test]
    fn every_podman_of_the_last_years_has_a_known_storage() {
        for (version, storage) in [((4, 3), 43), ((5, 0), 53), ((5, 4), 57), ((5, 8), 62)] {
            assert_eq!(Version::new(version.0, version.1).storage(), Some(storage));
        }
        assert_eq!(Version::new(6, 0).storage(), None);
    }

    #[test]
    fn info_of_podman_4_and_5_is_understood() {
        let five = br#"{"store": {"configFile": "/etc/containers/storage.conf", "graphDriverName": "overlay",
            "graphRoot": "/g", "runRoot": "/r",
            "graphOptions": {"overlay.additionalImageStores": ["/a", "/b"], "overlay.imagestore": "/b"},
            "graphStatus": {"Native Overlay Diff": "false", "Supports shifting": "true"}}}"#;
        let info = Info::parse(five).unwrap();
        assert_eq!(info.additional_stores, ["/a", "/b"].map(PathBuf::from));
        assert_eq!(info.native_diff, Some(false));
        assert_eq!(info.supports_shifting, Some(true));
        let four =
            br#"{"store": {"graphOptions": {"overlay.imagestore": "/a"}, "graphStatus": {}}}"#;
        let info = Info::parse(four).unwrap();
        assert_eq!(info.additional_stores, [PathBuf::from("/a")]);
        assert_eq!(info.native_diff, None);
        assert!(Info::parse(b"no JSON").is_err());
    }
}
