//! Where the peers and the programs under test are. `cargo xtask test` says so in the environment.

use anyhow::{Context, Result, bail};
use std::env;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Environment variable: the directory for everything a run writes, made and removed by xtask.
pub const SCRATCH: &str = "COMPOSEFS_STORE_SCRATCH";
/// Environment variable: the directory in which peers are kept between runs.
pub const CACHE: &str = "COMPOSEFS_STORE_CACHE";
/// The cache where [`CACHE`] is not set.
pub const DEFAULT_CACHE: &str = "/var/cache/composefs-store-test";

/// The directory for the temporary files of a run in this scratch directory.
pub fn temporary(scratch: &Path) -> PathBuf {
    scratch.join("tmp")
}

/// The directories of one run.
#[derive(Clone, Debug)]
pub struct Peers {
    cache: PathBuf,
    scratch: PathBuf,
}

impl Peers {
    /// The peers of this run; an error outside the namespaces of `cargo xtask`.
    pub fn from_env() -> Result<Self> {
        let Some(scratch) = env::var_os(SCRATCH) else {
            bail!("these tests need root, namespaces and peers: run them with `cargo xtask test`");
        };
        Ok(Self {
            cache: cache_dir(),
            scratch: PathBuf::from(scratch),
        })
    }

    /// The directory for everything this run writes. It is a shared mount: what is mounted below it
    /// by this process appears in every [`crate::Machine`].
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// The `TMPDIR` of everything in this run.
    pub fn temporary(&self) -> PathBuf {
        temporary(&self.scratch)
    }

    /// A new empty directory below the scratch directory, whose name begins with `name`.
    pub fn scratch_dir(&self, name: &str) -> Result<PathBuf> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = self
            .scratch
            .join(format!("{name}.{}.{number}", std::process::id()));
        std::fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
        Ok(dir)
    }

    /// The root directory of a newer Debian, by the name of its release.
    pub fn root(&self, release: &str) -> Result<PathBuf> {
        existing(self.cache.join("roots").join(release))
    }

    /// `cfsctl` of composefs-rs.
    pub fn cfsctl(&self) -> Result<PathBuf> {
        existing(self.cache.join("cfsctl/bin/cfsctl"))
    }

    /// The program of `integration/oracle`: images of dumpfiles as composefs-rs writes them.
    pub fn composefs_rs_oracle(&self) -> Result<PathBuf> {
        existing(
            self.cache
                .join("composefs-rs-oracle/bin/composefs-rs-oracle"),
        )
    }

    /// The program under test, built so that it kills itself at the step named in the environment
    /// variable `COMPOSEFS_STORE_FAILPOINT`.
    pub fn composefs_store(&self) -> Result<PathBuf> {
        existing(self.scratch.join("bin/composefs-store"))
    }
}

/// The directory in which peers are kept between runs.
pub fn cache_dir() -> PathBuf {
    env::var_os(CACHE).map_or_else(|| PathBuf::from(DEFAULT_CACHE), PathBuf::from)
}

fn existing(path: PathBuf) -> Result<PathBuf> {
    if path.exists() {
        return Ok(path);
    }
    bail!(
        "{} is missing: `cargo xtask setup` makes it",
        path.display()
    )
}
