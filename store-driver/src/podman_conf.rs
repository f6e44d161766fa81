//! The lines of storage.conf with which podman finds the store and uses it without harm.
//!
//! The one place that knows them: what is refused for want of a line, what `doctor` asks for, what
//! `podman-conf` prints and what `contrib/containers-storage.conf` ships are the same. podman up to 5
//! reads one file and merges nothing, so its lines have to keep what is there; podman 6 reads drop-ins.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use containers_storage::{ConfRules, ConfSource, StorageConf};
use serde::Serialize;

use crate::{Enforcement, Layout};

/// The system's main file.
pub(crate) const MAIN_FILE: &str = "/etc/containers/storage.conf";

/// The drop-in of ours, which podman 6 reads for root alone.
pub(crate) const DROP_IN: &str = "/etc/containers/storage.rootful.conf.d/50-composefs-store.conf";

/// The table of `additionalimagestores`.
pub(crate) const STORES_TABLE: &str = "storage.options";

/// The table of `mountopt`.
pub(crate) const OVERLAY_TABLE: &str = "storage.options.overlay";

/// What becomes of the lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// They are a whole file that does not exist yet.
    NewFile,
    /// They belong into a file that there is, in place of those with the same keys.
    Edit,
    /// The system's file in `/usr` counts only as long as there is none in `/etc`: it is to be copied there
    /// first, then edited.
    CopyAndEdit,
    /// They are a whole drop-in.
    DropIn,
}

/// Lines of storage.conf.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PodmanConf {
    /// The file that they belong into.
    pub file: PathBuf,
    /// What becomes of them.
    pub place: Place,
    /// TOML, with the tables.
    pub text: String,
}

/// The lines by which a podman of root's with these rules, whose configuration is `conf` now, finds the store
/// at `view` and uses images in `layout` without harm.
pub fn podman_conf(
    conf: &StorageConf,
    rules: ConfRules,
    view: &Path,
    layout: Layout,
    enforcement: Enforcement,
) -> PodmanConf {
    let (file, place) = match (rules, &conf.source) {
        (ConfRules::DropIns, _) => (PathBuf::from(DROP_IN), Place::DropIn),
        (ConfRules::SingleFile, ConfSource::File(file)) if file.starts_with("/usr") => {
            (MAIN_FILE.into(), Place::CopyAndEdit)
        }
        (ConfRules::SingleFile, ConfSource::File(file)) => (file.clone(), Place::Edit),
        (ConfRules::SingleFile, _) => (MAIN_FILE.into(), Place::NewFile),
    };
    let mut text = String::new();
    let _ = writeln!(text, "[storage]\ndriver = \"overlay\"");
    // podman before 5 fails with a file that leaves these out.
    if place != Place::DropIn {
        let _ = writeln!(text, "graphroot = {}", quoted(&conf.graphroot));
        let _ = writeln!(text, "runroot = {}", quoted(&conf.runroot));
    }
    let stores = match place {
        Place::DropIn => format!(
            "additionalimagestores = [{{append=true}}, {}]",
            quoted(view)
        ),
        _ => stores_line(conf, view),
    };
    let _ = writeln!(text, "\n[{STORES_TABLE}]\n{stores}");
    let _ = writeln!(
        text,
        "\n[{OVERLAY_TABLE}]\n{}",
        mountopt_line(&conf.overlay_options().mountopt, layout, enforcement)
    );
    PodmanConf { file, place, text }
}

/// Whether podman is told of a store, under whatever path.
pub(crate) fn names_store(conf: &StorageConf, store: &Path) -> bool {
    conf.additional_image_stores.iter().any(|path| {
        path == store
            || path
                .canonicalize()
                .is_ok_and(|canonical| canonical == store)
    })
}

/// The `additionalimagestores` line that has the view beside the stores there are.
pub(crate) fn stores_line(conf: &StorageConf, view: &Path) -> String {
    let mut stores: Vec<String> = conf
        .additional_image_stores
        .iter()
        .filter(|store| *store != view)
        .map(|store| quoted(store))
        .collect();
    stores.push(quoted(view));
    format!("additionalimagestores = [{}]", stores.join(", "))
}

/// The line without one of the stores.
pub(crate) fn stores_line_without(conf: &StorageConf, store: &Path) -> String {
    let stores: Vec<String> = conf
        .additional_image_stores
        .iter()
        .filter(|other| *other != store)
        .map(|store| quoted(store))
        .collect();
    format!("additionalimagestores = [{}]", stores.join(", "))
}

/// The `mountopt` line that is safe for a layout and keeps the options there are.
pub(crate) fn mountopt_line(mountopt: &str, layout: Layout, enforcement: Enforcement) -> String {
    let mut options: Vec<&str> = mountopt
        .split(',')
        .map(str::trim)
        .filter(|option| !option.is_empty())
        // metacopy=on implies redirect_dir=on, and conflicts with any other.
        .filter(|option| layout == Layout::Mounted || !option.starts_with("redirect_dir="))
        .collect();
    let mut set = |key: &str, option| {
        options.retain(|other| !other.starts_with(key));
        if options.is_empty() {
            options.push("nodev");
        }
        options.push(option);
    };
    if layout == Layout::Blob {
        set("metacopy=", "metacopy=on");
        if enforcement == Enforcement::Required {
            set("verity=", "verity=require");
        }
    }
    if options.is_empty() {
        options.push("nodev");
    }
    format!("mountopt = \"{}\"", options.join(","))
}

/// A path as TOML has it.
fn quoted(path: &Path) -> String {
    format!("{:?}", path.display().to_string())
}

#[cfg(test)]
mod tests {
    use containers_storage::Environment;

    use super::*;

    const VIEW: &str = "/var/lib/composefs-store/composefs-store/podman";

    fn conf(text: &str, path: &str) -> StorageConf {
        StorageConf::parse(text, Path::new(path), &Environment::default()).unwrap()
    }

    fn lines(conf: &StorageConf, rules: ConfRules, enforcement: Enforcement) -> PodmanConf {
        podman_conf(conf, rules, Path::new(VIEW), Layout::Blob, enforcement)
    }

    #[test]
    fn the_files_we_ship_have_the_lines_that_are_printed_for_a_new_host() {
        for (shipped, enforcement) in [
            (
                include_str!("../../contrib/containers-storage.conf"),
                Enforcement::WhereSecure,
            ),
            (
                include_str!("../../contrib/containers-storage.verified.conf"),
                Enforcement::Required,
            ),
        ] {
            let shipped: Vec<&str> = shipped
                .lines()
                .filter(|line| !line.is_empty() && !line.starts_with('#'))
                .collect();
            let mut new = conf("", MAIN_FILE);
            new.source = ConfSource::BuiltIn;
            let printed = lines(&new, ConfRules::SingleFile, enforcement);
            assert_eq!(printed.place, Place::NewFile);
            let printed = printed.text.lines().filter(|line| !line.is_empty());
            assert_eq!(shipped, printed.collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_is_configured_already_is_kept() {
        let text = "[storage.options]\nadditionalimagestores = [\"/usr/lib/containers/storage\"]\n\
                    [storage.options.overlay]\nmountopt = \"nodev,fsync=0,metacopy=off\"\n";
        let printed = lines(
            &conf(text, "/etc/containers/storage.conf"),
            ConfRules::SingleFile,
            Enforcement::Required,
        );
        assert_eq!(printed.place, Place::Edit);
        assert_eq!(printed.file, Path::new("/etc/containers/storage.conf"));
        let now = conf(&printed.text, "/etc/containers/storage.conf");
        assert_eq!(
            now.additional_image_stores,
            [Path::new("/usr/lib/containers/storage"), Path::new(VIEW)]
        );
        assert_eq!(
            now.overlay_options().mountopt,
            "nodev,fsync=0,metacopy=on,verity=require"
        );
        assert_eq!(
            lines(&now, ConfRules::SingleFile, Enforcement::Required).text,
            printed.text,
            "the same lines once more"
        );
    }

    #[test]
    fn a_file_in_usr_is_copied_first_and_podman_6_gets_a_drop_in() {
        let usr = conf("", "/usr/share/containers/storage.conf");
        let printed = lines(&usr, ConfRules::SingleFile, Enforcement::WhereSecure);
        assert_eq!(printed.place, Place::CopyAndEdit);
        assert_eq!(printed.file, Path::new(MAIN_FILE));
        let printed = lines(&usr, ConfRules::DropIns, Enforcement::WhereSecure);
        assert_eq!(printed.place, Place::DropIn);
        assert!(printed.text.contains("{append=true}"), "{}", printed.text);
    }

    #[test]
    fn the_layout_mounted_asks_for_no_mount_options() {
        for (mountopt, line) in [
            ("", "mountopt = \"nodev\""),
            ("nodev,fsync=0", "mountopt = \"nodev,fsync=0\""),
        ] {
            assert_eq!(
                mountopt_line(mountopt, Layout::Mounted, Enforcement::Required),
                line
            );
        }
    }
}
