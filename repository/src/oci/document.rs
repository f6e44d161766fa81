//! Manifests and configs: JSON of which the bytes are the identity, so they are kept as they came.
//!
//! OCI image manifests and Docker's schema 2, which differ in media types only. What does not stand
//! in an image's way (annotations, history, unknown keys) is left to `oci-spec` or ignored.

use oci_spec::image::{ImageConfiguration, ImageManifest, MediaType};

use super::{BlobDigest, ConfigDigest, DiffId, DigestError, ManifestDigest};

/// Most bytes of a manifest or config that are read. Registries accept 4 MiB.
pub const DOCUMENT_LIMIT: u64 = 8 << 20;

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// What is wrong with a manifest or config.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DocumentError {
    /// It is not the JSON it should be.
    #[error("it cannot be parsed: {0}")]
    Json(#[from] oci_spec::OciSpecError),
    /// It is too large.
    #[error("it has more than {DOCUMENT_LIMIT} bytes")]
    TooLarge,
    /// The media type of a manifest is that of something else: an index, or an old Docker format.
    #[error("a manifest of type {0} is not an image manifest")]
    ManifestType(String),
    /// The config is not that of an image: the manifest is that of another kind of artifact.
    #[error("a config of type {0} is not that of an image")]
    ConfigType(String),
    /// A digest is not `sha256:`.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// A manifest and a config that do not belong together, or that do not fit the layers.
    #[error("{0}")]
    Mismatch(String),
}

/// Which family of media types a manifest uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ManifestFormat {
    /// OCI image manifest.
    Oci,
    /// Docker image manifest, schema 2.
    Docker,
}

impl ManifestFormat {
    /// The media type of a manifest.
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.manifest.v1+json",
            Self::Docker => DOCKER_MANIFEST,
        }
    }
}

/// A layer as a manifest describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerDescriptor {
    /// Digest of the blob.
    pub digest: BlobDigest,
    /// Size of the blob in bytes.
    pub size: u64,
    /// Media type, which tells the compression.
    pub media_type: String,
}

/// An image manifest.
#[derive(Clone, Debug)]
pub struct Manifest {
    bytes: Vec<u8>,
    digest: ManifestDigest,
    format: ManifestFormat,
    config: ConfigDigest,
    layers: Vec<LayerDescriptor>,
    spec: ImageManifest,
}

impl Manifest {
    /// Parses a manifest and keeps its bytes.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, DocumentError> {
        check_size(&bytes)?;
        let spec = ImageManifest::from_reader(&bytes[..])?;
        let config_type = spec.config().media_type();
        let format = match (spec.media_type(), config_type) {
            (Some(MediaType::ImageManifest), _) | (None, MediaType::ImageConfig) => {
                ManifestFormat::Oci
            }
            (Some(other), _) if other.as_ref() == DOCKER_MANIFEST => ManifestFormat::Docker,
            (None, _) => ManifestFormat::Docker,
            (Some(other), _) => return Err(DocumentError::ManifestType(other.to_string())),
        };
        // Docker's config type is met below OCI manifests, too, and the other way round.
        if *config_type != MediaType::ImageConfig && config_type.as_ref() != DOCKER_CONFIG {
            return Err(DocumentError::ConfigType(config_type.to_string()));
        }
        let layers = spec
            .layers()
            .iter()
            .map(|layer| {
                Ok(LayerDescriptor {
                    digest: layer.digest().as_ref().parse()?,
                    size: layer.size(),
                    media_type: layer.media_type().to_string(),
                })
            })
            .collect::<Result<_, DigestError>>()?;
        Ok(Self {
            digest: ManifestDigest::of(&bytes),
            format,
            config: spec.config().digest().as_ref().parse()?,
            layers,
            spec,
            bytes,
        })
    }

    /// The manifest as it came.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Digest of the bytes.
    pub fn digest(&self) -> ManifestDigest {
        self.digest
    }

    /// OCI or Docker.
    pub fn format(&self) -> ManifestFormat {
        self.format
    }

    /// The config it names.
    pub fn config(&self) -> ConfigDigest {
        self.config
    }

    /// The layers it names, from the base up.
    pub fn layers(&self) -> &[LayerDescriptor] {
        &self.layers
    }

    /// All of it.
    pub fn spec(&self) -> &ImageManifest {
        &self.spec
    }
}

/// An image's config.
#[derive(Clone, Debug)]
pub struct Config {
    bytes: Vec<u8>,
    digest: ConfigDigest,
    diff_ids: Vec<DiffId>,
    spec: ImageConfiguration,
}

impl Config {
    /// Parses a config and keeps its bytes.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, DocumentError> {
        check_size(&bytes)?;
        let spec = ImageConfiguration::from_reader(&bytes[..])?;
        let diff_ids = spec.rootfs().diff_ids().iter();
        Ok(Self {
            digest: ConfigDigest::of(&bytes),
            diff_ids: diff_ids.map(|id| id.parse()).collect::<Result<_, _>>()?,
            spec,
            bytes,
        })
    }

    /// The config as it came.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Digest of the bytes: the image's ID.
    pub fn digest(&self) -> ConfigDigest {
        self.digest
    }

    /// The layers, from the base up. The same layer can occur more than once.
    pub fn diff_ids(&self) -> &[DiffId] {
        &self.diff_ids
    }

    /// All of it.
    pub fn spec(&self) -> &ImageConfiguration {
        &self.spec
    }
}

pub(super) fn check_size(bytes: &[u8]) -> Result<(), DocumentError> {
    if bytes.len() as u64 > DOCUMENT_LIMIT {
        return Err(DocumentError::TooLarge);
    }
    Ok(())
}

/// Checks that a manifest names this config, and one layer for each of its diff IDs.
pub fn check_pair(manifest: &Manifest, config: &Config) -> Result<(), DocumentError> {
    if manifest.config != config.digest {
        return Err(DocumentError::Mismatch(format!(
            "the manifest names the config {}, and this is {}",
            manifest.config, config.digest
        )));
    }
    if manifest.layers.len() != config.diff_ids.len() {
        return Err(DocumentError::Mismatch(format!(
            "the manifest has {} layers, and the config {}",
            manifest.layers.len(),
            config.diff_ids.len()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn manifest(media_type: Option<&str>, config_type: &str) -> Vec<u8> {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let mut value = json!({
            "schemaVersion": 2,
            "config": {"mediaType": config_type, "digest": digest, "size": 2},
            "layers": [{"mediaType": "application/x", "digest": digest, "size": 3, "extra": 1}],
        });
        if let Some(media_type) = media_type {
            value["mediaType"] = media_type.into();
        }
        serde_json::to_vec_pretty(&value).unwrap()
    }

    #[test]
    fn oci_and_docker_manifests_are_understood_and_their_bytes_kept() {
        let oci = "application/vnd.oci.image.config.v1+json";
        for (media_type, config_type, format) in [
            (
                Some(ManifestFormat::Oci.media_type()),
                oci,
                ManifestFormat::Oci,
            ),
            (None, oci, ManifestFormat::Oci),
            (Some(DOCKER_MANIFEST), DOCKER_CONFIG, ManifestFormat::Docker),
            (None, DOCKER_CONFIG, ManifestFormat::Docker),
        ] {
            let bytes = manifest(media_type, config_type);
            let parsed = Manifest::parse(bytes.clone()).unwrap();
            assert_eq!(parsed.format(), format);
            assert_eq!(parsed.bytes(), bytes);
            assert_eq!(parsed.digest(), ManifestDigest::of(&bytes));
            assert_eq!(parsed.layers()[0].size, 3);
        }
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let oci = "application/vnd.oci.image.config.v1+json";
        let index = manifest(Some("application/vnd.oci.image.index.v1+json"), oci);
        assert!(matches!(
            Manifest::parse(index),
            Err(DocumentError::ManifestType(_))
        ));
        let artifact = manifest(None, "application/vnd.oci.empty.v1+json");
        assert!(matches!(
            Manifest::parse(artifact),
            Err(DocumentError::ConfigType(_))
        ));
        assert!(Manifest::parse(b"{}".to_vec()).is_err());
        assert!(Config::parse(b"[]".to_vec()).is_err());
        let large = vec![b' '; DOCUMENT_LIMIT as usize + 1];
        assert!(matches!(Config::parse(large), Err(DocumentError::TooLarge)));
    }

    #[test]
    fn a_config_gives_its_diff_ids_in_order() {
        let ids = [DiffId::of(b"a"), DiffId::of(b"b"), DiffId::of(b"a")];
        let bytes = serde_json::to_vec(&json!({
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": ids},
        }))
        .unwrap();
        let config = Config::parse(bytes).unwrap();
        assert_eq!(config.diff_ids(), ids);
    }
}
