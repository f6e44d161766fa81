//! SELinux labels: podman has to be allowed to read what is published.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{
    Facts,
    finding::{Finding, Kind, Remedy, Severity, shell},
};

/// Whether the kernel has a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// No SELinux.
    Off,
    /// What is forbidden is logged.
    Permissive,
    /// What is forbidden fails.
    Enforcing,
}

/// The policy, and what it says about the repository.
#[derive(Clone, Debug, Serialize)]
pub struct SelinuxFacts {
    /// The policy's mode.
    pub mode: Mode,
    /// The label of each directory that podman reads, if it has one.
    pub labels: Vec<(PathBuf, Option<String>)>,
}

/// The types under which podman reads storage.
const TYPES: [&str; 5] = [
    "container_var_lib_t",
    "container_ro_file_t",
    "container_file_t",
    "container_share_t",
    "usr_t",
];

pub(super) fn look(directories: &[PathBuf]) -> SelinuxFacts {
    let mode = match std::fs::read_to_string("/sys/fs/selinux/enforce") {
        Ok(text) if text.trim() == "1" => Mode::Enforcing,
        Ok(_) => Mode::Permissive,
        Err(_) => Mode::Off,
    };
    let labels = match mode {
        Mode::Off => Vec::new(),
        _ => directories
            .iter()
            .filter(|path| path.exists())
            .map(|path| (path.clone(), label(path)))
            .collect(),
    };
    SelinuxFacts { mode, labels }
}

fn label(path: &Path) -> Option<String> {
    let mut value = vec![0_u8; 1024];
    let length = rustix::fs::getxattr(path, "security.selinux", &mut value[..]).ok()?;
    value.truncate(length);
    let text = String::from_utf8(value).ok()?;
    Some(text.trim_end_matches('\0').to_owned())
}

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let severity = match facts.selinux.mode {
        Mode::Off => return Vec::new(),
        Mode::Permissive => Severity::Note,
        Mode::Enforcing => Severity::Warning,
    };
    let mut findings = Vec::new();
    let repository = shell(&facts.repository.path);
    for (path, label) in &facts.selinux.labels {
        let kind = label.as_deref().and_then(|label| label.split(':').nth(2));
        if kind.is_some_and(|kind| TYPES.contains(&kind)) {
            continue;
        }
        findings.push(Finding {
            finding: Kind::SelinuxLabel,
            severity,
            subject: path.display().to_string(),
            problem: match label {
                Some(label) => format!("its SELinux label is {label}"),
                None => "it has no SELinux label".into(),
            },
            why: "podman may not be allowed to read images there".into(),
            remedy: Remedy::command(format!(
                "semanage fcontext -a -e /var/lib/containers {repository} && restorecon -R {repository}"
            )),
        });
    }
    findings
}
