//! Which repository a command works on.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use containers_storage::Environment;
use repository::Repository;

const BOOTC: &str = "/sysroot/composefs";
const DEFAULT: &str = "/var/lib/composefs-store";

/// `--repo` (or its variable) if given; else that of the system root that the command is about; else a
/// user's own place; else, for root, bootc's repository where it exists, else the system's place.
pub(crate) fn choose(given: Option<PathBuf>, sysroot: Option<&Path>) -> PathBuf {
    let known = given.or_else(|| Some(sysroot?.join("composefs")));
    known.unwrap_or_else(|| {
        let environment = Environment::current();
        let bootc = Path::new(BOOTC);
        if !environment.is_root() {
            environment.data_home().join("composefs-store")
        } else if bootc.is_dir() {
            bootc.to_owned()
        } else {
            DEFAULT.into()
        }
    })
}

/// Opens the repository, and says what to do where there is none.
pub(crate) fn open(path: &Path) -> anyhow::Result<Repository> {
    Repository::open(path).with_context(|| {
        if path.exists() {
            format!("cannot open the repository {}", path.display())
        } else {
            format!(
                "there is no repository at {0}; make one with: composefs-store --repo {0} init",
                path.display()
            )
        }
    })
}
