//! The JSON files that bootc writes beside deployments: the staged deployment, and the metadata of very
//! old deployments.

use composefs_image::{DigestError, VerityDigest};
use repository::oci::{ConfigDigest, DiffId};
use serde::Deserialize;

/// Why a file can't be taken at its word.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("it cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    #[error("it does not name a deployment: {0}")]
    Id(#[from] DigestError),
}

/// Reads `/run/composefs/staged-deployment`: the ID of the staged deployment.
pub(crate) fn staged(json: &[u8]) -> Result<VerityDigest, RecordError> {
    #[derive(Deserialize)]
    struct Staged {
        depl_id: String,
    }
    let staged: Staged = serde_json::from_slice(json)?;
    Ok(VerityDigest::from_hex(&staged.depl_id)?)
}

/// What the sidecar of an old deployment says: the parts of the image that have a digest. That of the
/// manifest isn't among them, because bootc has formatted it anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImgInfo {
    /// The image's config.
    pub(crate) config: ConfigDigest,
    /// Its layers.
    pub(crate) layers: Vec<DiffId>,
}

/// Reads `<id>.imginfo`.
pub(crate) fn img_info(json: &[u8]) -> Result<ImgInfo, RecordError> {
    #[derive(Deserialize)]
    struct File {
        manifest: Manifest,
        config: Config,
    }
    #[derive(Deserialize)]
    struct Manifest {
        config: Descriptor,
    }
    #[derive(Deserialize)]
    struct Descriptor {
        digest: ConfigDigest,
    }
    #[derive(Deserialize)]
    struct Config {
        rootfs: RootFs,
    }
    #[derive(Deserialize)]
    struct RootFs {
        diff_ids: Vec<DiffId>,
    }
    let file: File = serde_json::from_slice(json)?;
    Ok(ImgInfo {
        config: file.manifest.config.digest,
        layers: file.config.rootfs.diff_ids,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_staged_deployment_is_read_and_nothing_shorter() {
        let id = VerityDigest::from_hex(&"07".repeat(64)).unwrap();
        let json = format!(r#"{{"depl_id":"{id}","finalization_locked":false}}"#);
        assert_eq!(staged(json.as_bytes()).unwrap(), id);
        for end in 0..json.len() {
            assert!(staged(&json.as_bytes()[..end]).is_err(), "{end}");
        }
        assert!(staged(br#"{"depl_id":"../../etc"}"#).is_err());
    }

    #[test]
    fn the_sidecar_names_config_and_layers() {
        let config = ConfigDigest::of(b"config");
        let layer = DiffId::of(b"layer");
        let json = format!(
            r#"{{"config":{{"architecture":"amd64","rootfs":{{"type":"layers","diff_ids":["{layer}"]}}}},
                "manifest":{{"schemaVersion":2,"config":{{"digest":"{config}","size":6}},"layers":[]}}}}"#
        );
        let layers = vec![layer];
        assert_eq!(
            img_info(json.as_bytes()).unwrap(),
            ImgInfo { config, layers }
        );
        for end in 0..json.len() {
            assert!(img_info(&json.as_bytes()[..end]).is_err(), "{end}");
        }
    }
}
