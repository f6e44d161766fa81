//! Repositories for unit tests.

use std::path::PathBuf;

use composefs_image::{Algorithm, Format};
use tempfile::TempDir;

use crate::{Formats, InitOptions, InitOutcome, Repository, Security};

/// A new insecure repository with SHA-256 digests in a directory of its own.
pub(crate) struct TestRepository {
    directory: TempDir,
}

impl TestRepository {
    pub(crate) fn new() -> Self {
        let test = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        let outcome = Repository::init(test.path(), &options()).unwrap();
        assert_eq!(outcome, InitOutcome::Created);
        test
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("repository")
    }

    pub(crate) fn open(&self) -> Repository {
        Repository::open(self.path()).unwrap()
    }
}

pub(crate) fn options() -> InitOptions {
    InitOptions {
        algorithm: Algorithm::Sha256,
        formats: Formats::single(Format::V1),
        security: Security::Insecure,
    }
}
