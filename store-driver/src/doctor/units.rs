//! What happens at boot, and who uses podman on its own terms: files of systemd, read as files, so that a
//! host that is not running can be looked at as well.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{
    Facts,
    finding::{Finding, Kind, Remedy, Severity, shell},
    stores::entries,
};

/// Mounts the view and the layers.
pub(crate) const MOUNTS: &str = "composefs-store-mounts.service";
/// Measures what is published, before podman is shown it.
const VERIFY: &str = "composefs-store-verify.service";
/// Collects garbage.
const GC: &str = "composefs-store-gc.timer";

/// Where units are, those that count first.
const DIRECTORIES: [&str; 4] = [
    "etc/systemd/system",
    "run/systemd/system",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
];

/// The repositories that our units look for by themselves.
const DEFAULT_REPOSITORIES: [&str; 2] = ["/sysroot/composefs", "/var/lib/composefs-store"];

/// Options of podman's that drop or replace what storage.conf says.
const DROPPING: [&str; 3] = ["--root", "--storage-driver", "--storage-opt"];

/// Services that remove images that they do not need, of whatever store.
const COLLECTORS: [&str; 2] = ["crio.service", "kubelet.service"];

/// What the units of a host say.
#[derive(Clone, Debug, Default, Serialize)]
pub struct UnitFacts {
    /// systemd has booted this host.
    pub systemd: bool,
    /// The units of ours, and of others that matter here, that are installed.
    pub installed: BTreeMap<String, PathBuf>,
    /// Those of them that something starts.
    pub enabled: BTreeSet<String>,
    /// The repository that the unit for mounts is told of, if it is told.
    pub mounts_repository: Option<PathBuf>,
    /// Units and environments that drop or replace the settings in storage.conf: the file and the text.
    pub dropping: Vec<(PathBuf, String)>,
}

/// Reads the units below `sysroot`.
pub(super) fn look(sysroot: &Path) -> UnitFacts {
    let mut facts = UnitFacts {
        systemd: sysroot.join("run/systemd/system").is_dir(),
        ..UnitFacts::default()
    };
    let known = [MOUNTS, VERIFY, GC].into_iter().chain(COLLECTORS);
    let known: BTreeSet<&str> = known.collect();
    for directory in DIRECTORIES.map(|directory| sysroot.join(directory)) {
        for (name, path) in entries(&directory) {
            let Some(name) = name.to_str() else { continue };
            let ending = name.rsplit_once('.').map(|(_, ending)| ending);
            if known.contains(name) && path.is_file() {
                facts
                    .installed
                    .entry(name.to_owned())
                    .or_insert(path.clone());
            }
            if matches!(ending, Some("wants" | "requires")) {
                for (name, _) in entries(&path) {
                    if let Some(name) = name.to_str().filter(|name| known.contains(name)) {
                        facts.enabled.insert(name.to_owned());
                    }
                }
            }
            read_unit(name, &path, &mut facts);
        }
    }
    for (_, path) in entries(&sysroot.join("etc/containers/systemd")) {
        dropping(&path, &mut facts.dropping);
    }
    dropping(&sysroot.join("etc/environment"), &mut facts.dropping);
    facts
}

/// Looks into a unit, or into its drop-ins.
fn read_unit(name: &str, path: &Path, facts: &mut UnitFacts) {
    let files = match name.strip_suffix(".d") {
        Some(_) => entries(path).into_iter().map(|(_, path)| path).collect(),
        None if Path::new(name)
            .extension()
            .is_some_and(|it| it == "service") =>
        {
            vec![path.to_owned()]
        }
        None => return,
    };
    for file in files {
        if name.trim_end_matches(".d") == MOUNTS
            && let Ok(text) = fs::read_to_string(&file)
            && let Some(repository) = repository_of(&text)
        {
            facts.mounts_repository = Some(repository);
        }
        dropping(&file, &mut facts.dropping);
    }
}

/// The repository that a unit names.
fn repository_of(unit: &str) -> Option<PathBuf> {
    let lines = unit.lines().map(str::trim);
    let mut values = lines.filter_map(|line| {
        let value = line.strip_prefix("Environment=")?.trim_matches('"');
        value.strip_prefix("COMPOSEFS_STORE_REPO=")
    });
    values.next_back().map(PathBuf::from)
}

/// The lines of a file that take podman's settings away.
fn dropping(file: &Path, found: &mut Vec<(PathBuf, String)>) {
    /// Units are short.
    const LARGEST: u64 = 1 << 20;
    let is_small = file
        .metadata()
        .is_ok_and(|it| it.is_file() && it.len() <= LARGEST);
    let Some(text) = is_small.then(|| fs::read_to_string(file).ok()).flatten() else {
        return;
    };
    for line in text.lines().map(str::trim) {
        if is_dropping(line) && !found.iter().any(|(path, _)| path == file) {
            found.push((file.to_owned(), line.to_owned()));
        }
    }
}

fn is_dropping(line: &str) -> bool {
    if line.starts_with(['#', ';']) {
        return false;
    }
    let is_option = |word: &str| {
        let name = word.split('=').next().unwrap_or_default();
        DROPPING.contains(&name)
    };
    let runs_podman =
        (line.starts_with("Exec") && line.contains("podman")) || line.starts_with("GlobalArgs=");
    let options = line.split_once('=').map_or(line, |(_, value)| value);
    (runs_podman && options.split_whitespace().any(is_option))
        || line.contains("STORAGE_OPTS=")
        || line.contains("STORAGE_DRIVER=")
}

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let units = &facts.units;
    let repository = &facts.repository;
    let published = repository.blob_layers + repository.mounted_layers > 0;
    let mut findings = Vec::new();
    let mut add = |finding, severity, subject: &str, problem: String, why: &str, remedy| {
        findings.push(Finding {
            finding,
            severity,
            subject: subject.to_owned(),
            problem,
            why: why.into(),
            remedy,
        });
    };
    let enable = |unit: &str| {
        if units.installed.contains_key(unit) {
            Remedy::command(format!("systemctl enable {unit}"))
        } else {
            Remedy::advice(format!(
                "install contrib/systemd/{unit} in /etc/systemd/system and enable it"
            ))
        }
    };
    if published && !units.enabled.contains(MOUNTS) {
        if units.systemd {
            add(
                Kind::UnitDisabled,
                Severity::Warning,
                MOUNTS,
                "nothing starts it".into(),
                "after a boot podman sees no published image until `serve-mounts` has run",
                enable(MOUNTS),
            );
        } else {
            add(
                Kind::UnitDisabled,
                Severity::Note,
                MOUNTS,
                "nothing starts it, and this host was not booted by systemd".into(),
                "after a boot podman sees no published image until `serve-mounts` has run",
                Remedy::advice("have whatever boots this host run `composefs-store serve-mounts`"),
            );
        }
    }
    if units.systemd && !units.enabled.contains(GC) {
        add(
            Kind::UnitDisabled,
            Severity::Note,
            GC,
            "nothing starts it".into(),
            "what nothing needs any more stays until somebody runs `composefs-store gc`",
            enable(GC),
        );
    }
    if units.systemd && facts.is_verification_wanted() && !units.enabled.contains(VERIFY) {
        add(
            Kind::UnitDisabled,
            Severity::Warning,
            VERIFY,
            "nothing starts it, and images are published as verified".into(),
            "the kernel measures the files of an image, but not the image itself",
            enable(VERIFY),
        );
    }
    let is_default = DEFAULT_REPOSITORIES
        .iter()
        .any(|path| repository.path == Path::new(path));
    let is_told = match &units.mounts_repository {
        Some(path) => *path == repository.path,
        None => is_default,
    };
    if published && units.enabled.contains(MOUNTS) && !is_told {
        let path = repository.path.display();
        add(
            Kind::UnitOtherRepository,
            Severity::Warning,
            MOUNTS,
            match &units.mounts_repository {
                Some(other) => format!("it serves the repository {}", other.display()),
                None => "it serves a repository in a default place".into(),
            },
            "after a boot podman sees no image of this repository until `serve-mounts` has run",
            Remedy::command(format!(
                "mkdir -p /etc/systemd/system/{MOUNTS}.d && printf '%s\\n' '[Unit]' ConditionPathIsDirectory= \
                 {} '[Service]' {} >/etc/systemd/system/{MOUNTS}.d/repository.conf",
                shell(format!("RequiresMountsFor={path}")),
                shell(format!("Environment=\"COMPOSEFS_STORE_REPO={path}\"")),
            )),
        );
    }
    for (file, line) in &units.dropping {
        add(
            Kind::OptionsReplaced,
            Severity::Warning,
            &file.display().to_string(),
            format!("it has {line:?}"),
            "podman then goes without the additionalimagestores and mountopt of storage.conf",
            Remedy::advice(
                "take the option out, or add --storage-opt for the store and for mountopt beside it",
            ),
        );
    }
    for collector in COLLECTORS {
        if published && units.enabled.contains(collector) {
            add(
                Kind::ImageCollector,
                Severity::Warning,
                collector,
                "it is enabled, and may read the same storage.conf".into(),
                "it lists published images among its own, wants to remove what it does not need, and fails on \
                 them",
                Remedy::advice(
                    "name the store with --storage-opt in the units of podman that need it, not in storage.conf",
                ),
            );
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn units_are_found_where_systemd_has_them() {
        let root = tempfile::tempdir().unwrap();
        let unit = "usr/lib/systemd/system/composefs-store-mounts.service";
        write(
            root.path(),
            unit,
            include_str!("../../../contrib/systemd/composefs-store-mounts.service"),
        );
        write(
            root.path(),
            "etc/systemd/system/composefs-store-mounts.service.d/repository.conf",
            "[Service]\nEnvironment=\"COMPOSEFS_STORE_REPO=/srv/composefs\"\n",
        );
        write(
            root.path(),
            "etc/systemd/system/basic.target.wants/composefs-store-mounts.service",
            "",
        );
        write(
            root.path(),
            "etc/systemd/system/app.service",
            "[Service]\nExecStart=/usr/bin/podman --root /srv/containers run app\n",
        );
        write(
            root.path(),
            "etc/containers/systemd/app.container",
            "[Container]\n# GlobalArgs=--root=/x\nGlobalArgs=--storage-opt=overlay.mountopt=nodev\n",
        );
        let facts = look(root.path());
        assert!(!facts.systemd);
        assert_eq!(facts.installed[MOUNTS], root.path().join(unit));
        assert!(facts.enabled.contains(MOUNTS));
        assert_eq!(
            facts.mounts_repository.as_deref(),
            Some(Path::new("/srv/composefs"))
        );
        let dropping: Vec<&str> = facts
            .dropping
            .iter()
            .map(|(_, line)| line.as_str())
            .collect();
        assert_eq!(
            dropping,
            [
                "ExecStart=/usr/bin/podman --root /srv/containers run app",
                "GlobalArgs=--storage-opt=overlay.mountopt=nodev"
            ]
        );
    }

    #[test]
    fn only_what_takes_settings_away_is_told() {
        for line in [
            "ExecStart=/usr/bin/podman run --rootfs /srv/tree",
            "# Environment=STORAGE_OPTS=x",
            "ExecStart=/usr/bin/other --root /x",
            "ExecStart=/usr/bin/podman system service",
        ] {
            assert!(!is_dropping(line), "{line}");
        }
        for line in [
            "Environment=STORAGE_OPTS=overlay.mountopt=nodev",
            "STORAGE_DRIVER=vfs",
            "ExecStart=podman --storage-driver=vfs images",
        ] {
            assert!(is_dropping(line), "{line}");
        }
    }

    /// The units and tmpfiles.d snippet that we ship.
    #[test]
    fn what_we_ship_for_the_boot_comes_before_every_podman() {
        let mounts = include_str!("../../../contrib/systemd/composefs-store-mounts.service");
        let before: BTreeSet<&str> = mounts
            .lines()
            .filter_map(|line| line.strip_prefix("Before="))
            .flat_map(str::split_whitespace)
            .collect();
        for unit in [
            "basic.target",
            "podman.socket",
            "podman.service",
            "podman-restart.service",
            "podman-auto-update.service",
            "podman-clean-transient.service",
            "crio.service",
        ] {
            assert!(before.contains(unit), "{unit}");
        }
        assert!(mounts.contains("RequiresMountsFor="));
        let tmpfiles = include_str!("../../../contrib/tmpfiles.d/composefs-store.conf");
        let lines: Vec<&str> = tmpfiles
            .lines()
            .filter(|line| !line.starts_with('#') && !line.is_empty())
            .collect();
        let run = crate::paths::StorePaths::all_runs().display();
        assert_eq!(lines, [format!("d {run} 0755 root root -")]);
    }
}
