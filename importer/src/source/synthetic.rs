//! Manifest and config of an image some of whose layers are synthetic.
//!
//! The config must name the diff IDs that the layers have now, so config and manifest are others than the
//! source's, and say so: annotations of the manifest name the manifest it was made from, and those of a
//! synthetic layer's descriptor the diff ID that the layer had. Written so that the same image gives the
//! same bytes.

use repository::oci::{ConfigDigest, DiffId, ManifestDigest};
use serde_json::{Value, json};

/// Annotation of the manifest: the manifest of the image that this one was made from.
const MANIFEST: &str = "org.composefs-store.synthetic.manifest";
/// Annotation of a layer's descriptor: the diff ID that the layer had there.
const DIFF_ID: &str = "org.composefs-store.synthetic.diff-id";

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// Manifest and config with other layers; `made` has the diff ID and size of each layer that is other.
pub(super) fn rewrite(
    manifest: &[u8],
    config: &[u8],
    made: &[Option<(DiffId, u64)>],
) -> Result<(Vec<u8>, Vec<u8>), String> {
    let source = ManifestDigest::of(manifest);
    let parse = |bytes| serde_json::from_slice::<Value>(bytes).map_err(|error| error.to_string());
    let (mut manifest, mut config) = (parse(manifest)?, parse(config)?);
    let diff_ids = config
        .pointer_mut("/rootfs/diff_ids")
        .and_then(Value::as_array_mut)
        .filter(|ids| ids.len() == made.len())
        .ok_or("the config does not name the layers")?;
    let layers = manifest
        .get_mut("layers")
        .and_then(Value::as_array_mut)
        .filter(|layers| layers.len() == made.len())
        .ok_or("the manifest does not name the layers")?;
    for ((diff_id, layer), made) in diff_ids.iter_mut().zip(layers).zip(made) {
        let media_type = layer["mediaType"].as_str().unwrap_or_default();
        if let Some(compression) = media_type.strip_prefix(DOCKER_LAYER) {
            layer["mediaType"] = json!(format!("{OCI_LAYER}{}", compression.replace('.', "+")));
        }
        if let Some((new, size)) = made {
            let had = diff_id.take();
            *diff_id = json!(new.to_string());
            *layer = json!({
                "mediaType": OCI_LAYER,
                "digest": new.to_string(),
                "size": size,
                "annotations": {DIFF_ID: had},
            });
        }
    }
    let config = config.to_string().into_bytes();
    manifest["schemaVersion"] = json!(2);
    manifest["mediaType"] = json!(OCI_MANIFEST);
    manifest["config"] = json!({
        "mediaType": OCI_CONFIG,
        "digest": ConfigDigest::of(&config).to_string(),
        "size": config.len(),
    });
    if !manifest["annotations"].is_object() {
        manifest["annotations"] = json!({});
    }
    manifest["annotations"][MANIFEST] = json!(source.to_string());
    Ok((manifest.to_string().into_bytes(), config))
}

/// If the manifest is that of an image with synthetic layers: the manifest it was made from, and how many
/// they are.
pub(crate) fn made_from(manifest: &[u8]) -> Option<(ManifestDigest, usize)> {
    let manifest: Value = serde_json::from_slice(manifest).ok()?;
    let source = manifest["annotations"][MANIFEST].as_str()?.parse().ok()?;
    let layers = manifest["layers"].as_array()?.iter();
    let synthetic = layers.filter(|layer| layer["annotations"][DIFF_ID].is_string());
    Some((source, synthetic.count()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documents_name_what_they_were_made_from_and_nothing_else_changes() {
        let (old, other) = (DiffId::of(b"old"), DiffId::of(b"other"));
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": {"Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": [other.to_string(), old.to_string()]},
        });
        let blob = json!({
            "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "digest": format!("sha256:{}", "a".repeat(64)), "size": 5,
        });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": {"mediaType": "application/vnd.docker.container.image.v1+json",
                "digest": ConfigDigest::of(config.to_string().as_bytes()).to_string(), "size": 1},
            "layers": [blob.clone(), blob],
        });
        let (manifest, config) = (manifest.to_string(), config.to_string());
        let new = DiffId::of(b"new");
        let made = [None, Some((new, 1024))];
        let written = rewrite(manifest.as_bytes(), config.as_bytes(), &made).unwrap();
        assert_eq!(
            written,
            rewrite(manifest.as_bytes(), config.as_bytes(), &made).unwrap()
        );
        let source = ManifestDigest::of(manifest.as_bytes());
        assert_eq!(made_from(&written.0), Some((source, 1)));
        assert_eq!(made_from(manifest.as_bytes()), None);

        let [manifest, config] =
            [&written.0, &written.1].map(|bytes| serde_json::from_slice::<Value>(bytes).unwrap());
        let ids = [other.to_string(), new.to_string()];
        assert_eq!(config["rootfs"]["diff_ids"], json!(ids));
        assert_eq!(config["config"]["Cmd"], json!(["sh"]));
        assert_eq!(
            manifest["layers"][0]["mediaType"],
            json!(format!("{OCI_LAYER}+gzip"))
        );
        assert_eq!(manifest["layers"][1]["digest"], json!(new.to_string()));
        assert_eq!(
            manifest["layers"][1]["annotations"][DIFF_ID],
            json!(old.to_string())
        );
        let digest = ConfigDigest::of(&written.1).to_string();
        assert_eq!(manifest["config"]["digest"], json!(digest));

        let error = rewrite(manifest.to_string().as_bytes(), b"{}", &made).unwrap_err();
        assert!(error.contains("config"), "{error}");
    }
}
