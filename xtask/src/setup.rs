//! What a fresh Debian 12 lacks: packages, newer Debians in root directories, and the peers that are
//! built from source.
//!
//! Each part is made only where it is missing or was made from another recipe, and appears under its
//! name only when it is complete. A part that cannot be made is an error, never a skipped test.

use crate::steps::{cargo, ok};
use crate::vm;
use anyhow::{Context, Result, bail, ensure};
use integration::peers::cache_dir;
use rustix::fs::{FlockOperation, flock};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::path::Path;
use std::process::Command;

/// Packages of the demo.
const FOR_DEMO: &[&str] = &[
    "crun",
    "mmdebstrap",
    "netavark",
    "podman",
    "skopeo",
    "uidmap",
    "xfsprogs",
];

/// Further packages of the tests.
const FOR_TESTS: &[&str] = &[
    "apache2-utils",
    "btrfs-progs",
    "busybox-static",
    "curl",
    "docker-registry",
    "e2fsprogs",
    "erofs-utils",
    "openssl",
    "strace",
    "systemd",
];

/// A Debian in a root directory of its own.
pub(crate) struct Root {
    /// Name of its directory.
    pub(crate) name: &'static str,
    pub(crate) release: &'static str,
    pub(crate) packages: &'static [&'static str],
    /// A shell script that mmdebstrap runs before the packages are installed, with the directory as `$1`.
    pub(crate) before: &'static str,
    /// The same at the end.
    pub(crate) after: &'static str,
}

/// Newer podmans.
const ROOTS: &[Root] = &[
    Root {
        name: "trixie",
        release: "trixie",
        packages: &[
            "crun", "mount", "netavark", "nftables", "podman", "skopeo", "uidmap",
        ],
        before: "",
        after: "",
    },
    Root {
        name: "sid",
        release: "sid",
        packages: &[
            "composefs",
            "crun",
            "erofs-utils",
            "mount",
            "netavark",
            "nftables",
            "podman",
            "skopeo",
            "uidmap",
        ],
        before: "",
        after: "",
    },
];

const CFSCTL_VERSION: &str = "0.9.4";

/// The list of packages that a root directory was made from.
const RECIPE: &str = "etc/composefs-store-packages";

/// Installs what the demo needs.
pub(crate) fn for_demo() -> Result<()> {
    root()?;
    let _lock = cache_lock("setup")?;
    packages(FOR_DEMO)
}

/// Installs what the benchmarks of imports and containers need.
pub(crate) fn for_bench() -> Result<()> {
    for_tests()?;
    let _lock = cache_lock("setup")?;
    packages(&["strace", "util-linux-extra"])
}

/// Installs what the tests need.
pub(crate) fn for_tests() -> Result<()> {
    root()?;
    let _lock = cache_lock("setup")?;
    packages(&[FOR_DEMO, FOR_TESTS].concat())?;
    roots(ROOTS)?;
    cfsctl().context("install cfsctl")?;
    oracle().context("install the program of integration/oracle")
}

/// Installs what the virtual machine needs.
pub(crate) fn for_vm() -> Result<()> {
    root()?;
    let _lock = cache_lock("setup")?;
    packages(&[FOR_DEMO, FOR_TESTS].concat())?;
    roots(&[vm::GUEST, vm::EMULATOR])
}

fn roots(wanted: &[Root]) -> Result<()> {
    for root in wanted {
        debian(root).with_context(|| format!("make the root directory {}", root.name))?;
    }
    Ok(())
}

/// A lock in the cache directory, held until dropped.
pub(crate) fn cache_lock(name: &str) -> Result<File> {
    let cache = cache_dir();
    std::fs::create_dir_all(&cache).with_context(|| format!("create {}", cache.display()))?;
    let lock = File::create(cache.join(format!("{name}.lock")))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    Ok(lock)
}

fn root() -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "mounts, loop devices and packages need root"
    );
    Ok(())
}

fn packages(wanted: &[&str]) -> Result<()> {
    let listing = Command::new("dpkg-query")
        .args(["--show", "--showformat", "${db:Status-Status} ${Package}\n"])
        .output()
        .context("start dpkg-query: this needs Debian")?;
    let listing = String::from_utf8(listing.stdout)?;
    let installed: BTreeSet<&str> = listing
        .lines()
        .filter_map(|line| line.strip_prefix("installed "))
        .collect();
    let missing: Vec<&&str> = wanted.iter().filter(|p| !installed.contains(**p)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    ok(apt_get().arg("update"))?;
    ok(apt_get()
        .args(["install", "--yes", "--no-install-recommends"])
        .args(missing))
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command
        .arg("--quiet")
        .env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn debian(root: &Root) -> Result<()> {
    let roots = cache_dir().join("roots");
    let done = roots.join(root.name);
    let recipe = [&root.packages.join("\n"), root.before, root.after].concat();
    if std::fs::read_to_string(done.join(RECIPE)).is_ok_and(|found| found == recipe) {
        return Ok(());
    }
    std::fs::create_dir_all(&roots)?;
    let new = roots.join(format!("{}.new", root.name));
    remove(&new)?;
    ok(Command::new("mmdebstrap")
        .args(["--quiet", "--variant=apt"])
        // A mirror may be some days behind the end of the validity of sid's Release file.
        .arg("--aptopt=Acquire::Check-Valid-Until \"false\"")
        .arg(format!("--include={}", root.packages.join(",")))
        .arg(format!("--essential-hook={}", or_true(root.before)))
        .arg(format!("--customize-hook={}", or_true(root.after)))
        .arg(root.release)
        .arg(&new)
        .current_dir("/"))?;
    std::fs::write(new.join(RECIPE), recipe)?;
    let old = roots.join(format!("{}.old", root.name));
    remove(&old)?;
    if done.exists() {
        std::fs::rename(&done, &old)?;
    }
    std::fs::rename(&new, &done)?;
    remove(&old)
}

/// The script, or one that does nothing.
fn or_true(script: &str) -> &str {
    if script.is_empty() { "true" } else { script }
}

fn cfsctl() -> Result<()> {
    let source = ["composefs-ctl", "--version", CFSCTL_VERSION].map(OsString::from);
    let wanted = format!("composefs-ctl {CFSCTL_VERSION} ");
    install("cfsctl", &wanted, &source)
}

/// composefs-rs as a library, behind a program that answers thousands of requests.
fn oracle() -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../integration/oracle");
    let manifest = std::fs::read_to_string(path.join("Cargo.toml"))?;
    let version = manifest
        .lines()
        .find_map(|line| line.strip_prefix("version = \"")?.strip_suffix('"'))
        .context("its Cargo.toml has no version")?;
    let wanted = format!("composefs-rs-oracle {version} ");
    let source = [OsString::from("--path"), path.clone().into()];
    install("composefs-rs-oracle", &wanted, &source)
}

/// Installs a program into a directory of the cache, unless `.crates.toml` there has `wanted`.
fn install(name: &str, wanted: &str, source: &[OsString]) -> Result<()> {
    let done = cache_dir().join(name);
    if std::fs::read_to_string(done.join(".crates.toml")).is_ok_and(|found| found.contains(wanted))
    {
        return Ok(());
    }
    let new = cache_dir().join(format!("{name}.new"));
    remove(&new)?;
    ok(cargo()
        .args(["install", "--locked"])
        .args(source)
        .arg("--root")
        .arg(&new)
        // Not the lints, profiles and aliases of this workspace.
        .current_dir("/"))?;
    if !new.join("bin").join(name).exists() {
        bail!("cargo install made no {name}");
    }
    remove(&done)?;
    std::fs::rename(&new, &done)?;
    Ok(())
}

fn remove(dir: &Path) -> Result<()> {
    if dir.exists() {
        std::fs::remove_dir_all(dir).with_context(|| format!("remove {}", dir.display()))?;
    }
    Ok(())
}
