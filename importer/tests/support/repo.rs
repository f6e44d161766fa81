//! A repository, and what the tests ask of it.
#![allow(dead_code, reason = "each test program uses a part of it")]

use importer::source::SourceImage;
use importer::{ImportError, ImportOptions, ImportReport, LayerError, Quiet, import_image};
use repository::oci::{DiffId, NamesStream};
use repository::splitstream::copy_stream;
use repository::{Algorithm, InitOptions, Repository, Security, Tag, VerityDigest};

pub(crate) struct Repo {
    _dir: tempfile::TempDir,
    pub(crate) repository: Repository,
}

impl Repo {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = InitOptions {
            algorithm: Algorithm::Sha256,
            security: Security::Insecure,
            ..InitOptions::default()
        };
        Repository::init(dir.path(), &options).unwrap();
        Self {
            repository: Repository::open(dir.path()).unwrap(),
            _dir: dir,
        }
    }

    /// Imports with the tag `test`.
    pub(crate) fn import(&self, image: &SourceImage<'_>) -> Result<ImportReport, ImportError> {
        self.import_with(image, ImportOptions::default())
    }

    pub(crate) fn import_with(
        &self,
        image: &SourceImage<'_>,
        options: ImportOptions,
    ) -> Result<ImportReport, ImportError> {
        let options = ImportOptions {
            tags: vec![Tag::new("test").unwrap()],
            ..options
        };
        import_image(&self.repository, image, &options, &Quiet)
    }

    pub(crate) fn layer_tar(&self, diff_id: &DiffId) -> Vec<u8> {
        let stream = self.repository.stream(&diff_id.stream_name()).unwrap();
        let mut tar = Vec::new();
        copy_stream(&self.repository, &stream.unwrap(), &mut tar).unwrap();
        tar
    }

    pub(crate) fn objects(&self) -> Vec<VerityDigest> {
        (0..=255)
            .flat_map(|shard| self.repository.objects_in(shard).unwrap().entries)
            .collect()
    }

    pub(crate) fn streams(&self) -> Vec<(String, VerityDigest)> {
        let streams = self.repository.streams().unwrap().entries;
        streams
            .iter()
            .map(|link| (link.name.to_string(), link.object))
            .collect()
    }

    pub(crate) fn assert_untouched(&self) {
        assert_eq!(self.streams(), []);
        assert_eq!(self.objects(), []);
        assert!(self.repository.staging().unwrap().is_empty());
    }
}

/// What the one layer of an image is refused for; nothing of it may stay.
pub(crate) fn refused(image: &SourceImage<'_>, options: ImportOptions) -> LayerError {
    let repo = Repo::new();
    let error = repo.import_with(image, options).unwrap_err();
    repo.assert_untouched();
    match error {
        ImportError::Layer { source, .. } => source,
        other => panic!("{other:?}"),
    }
}
