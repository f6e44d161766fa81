//! Writing an OCI image layout from layer tars.

use anyhow::Result;
use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::Path;

/// How a layer's blob is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// The tar itself.
    Plain,
    /// gzip.
    Gzip,
}

/// One layer: its tar, and how its blob is stored.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The tar.
    pub tar: Vec<u8>,
    /// How the blob is stored.
    pub encoding: Encoding,
}

/// The blob of a layer, whatever it is, and what the documents say of it.
#[derive(Clone, Debug)]
pub struct Blob {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Their media type.
    pub media_type: &'static str,
    /// The digest that the config has for the uncompressed layer.
    pub diff_id: String,
}

impl Layer {
    fn blob(&self) -> Result<Blob> {
        let (bytes, media_type) = match self.encoding {
            Encoding::Plain => (self.tar.clone(), "application/vnd.oci.image.layer.v1.tar"),
            Encoding::Gzip => {
                let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
                gzip.write_all(&self.tar)?;
                (
                    gzip.finish()?,
                    "application/vnd.oci.image.layer.v1.tar+gzip",
                )
            }
        };
        Ok(Blob {
            bytes,
            media_type,
            diff_id: digest(&self.tar),
        })
    }
}

/// Writes an image layout with one image, tagged `latest`, into the new directory `dir`.
pub fn write_layout(dir: &Path, layers: &[Layer], config: &Value) -> Result<()> {
    let blobs: Vec<Blob> = layers.iter().map(Layer::blob).collect::<Result<_>>()?;
    write_blobs(dir, &blobs, config)
}

/// The same with blobs that nothing is known of.
pub fn write_blobs(dir: &Path, blobs: &[Blob], config: &Value) -> Result<()> {
    std::fs::create_dir_all(dir.join("blobs/sha256"))?;
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let mut descriptors = Vec::new();
    let mut diff_ids = Vec::new();
    let mut history = Vec::new();
    for (number, blob) in blobs.iter().enumerate() {
        diff_ids.push(&blob.diff_id);
        descriptors.push(blob_descriptor(dir, &blob.bytes, blob.media_type)?);
        history.push(json!({
            "created": "2020-09-13T12:26:40Z",
            "created_by": format!("layer {number}"),
        }));
        // An entry of the history without a layer.
        history.push(json!({
            "created": "2020-09-13T12:26:40Z",
            "created_by": format!("ENV N={number}"),
            "empty_layer": true,
        }));
    }
    let config = json!({
        "created": "2020-09-13T12:26:40Z",
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": history,
    });
    let config = blob_descriptor(
        dir,
        &serde_json::to_vec(&config)?,
        "application/vnd.oci.image.config.v1+json",
    )?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": descriptors,
    });
    let mut manifest = blob_descriptor(
        dir,
        &serde_json::to_vec(&manifest)?,
        "application/vnd.oci.image.manifest.v1+json",
    )?;
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    std::fs::write(dir.join("index.json"), serde_json::to_vec(&index)?)?;
    Ok(())
}

/// The SHA-256 of a blob as OCI documents write it.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", sha256(bytes))
}

/// Makes the one image of a layout one for another architecture, of which nothing but its name is known.
pub fn rename_architecture(dir: &Path, architecture: &str) -> Result<()> {
    let index_file = dir.join("index.json");
    let mut index: Value = serde_json::from_slice(&std::fs::read(&index_file)?)?;
    let blob = |descriptor: &Value| -> Result<Value> {
        let digest = descriptor["digest"].as_str().unwrap_or_default();
        let file = dir.join("blobs").join(digest.replace(':', "/"));
        Ok(serde_json::from_slice(&std::fs::read(file)?)?)
    };
    let replace = |descriptor: &mut Value, document: &Value| -> Result<()> {
        let bytes = serde_json::to_vec(document)?;
        let new = blob_descriptor(dir, &bytes, "")?;
        for key in ["digest", "size"] {
            descriptor[key] = new[key].clone();
        }
        Ok(())
    };
    let mut manifest = blob(&index["manifests"][0])?;
    let mut config = blob(&manifest["config"])?;
    config["architecture"] = json!(architecture);
    replace(&mut manifest["config"], &config)?;
    replace(&mut index["manifests"][0], &manifest)?;
    std::fs::write(index_file, serde_json::to_vec(&index)?)?;
    Ok(())
}

/// The SHA-256 of `bytes` in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn blob_descriptor(dir: &Path, blob: &[u8], media_type: &str) -> Result<Value> {
    let digest = digest(blob);
    let file = dir.join("blobs").join(digest.replace(':', "/"));
    std::fs::write(file, blob)?;
    Ok(json!({ "mediaType": media_type, "digest": digest, "size": blob.len() }))
}
