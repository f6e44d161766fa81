//! Whatever containers/image has a transport for: registries (`docker://`), `docker-daemon:` and others.
//!
//! `skopeo experimental-image-proxy` does the talking: credentials, certificates, mirrors, the signature
//! policy, the choice by platform. Nothing that it hands over is believed: the manifest must have the
//! digest that it names, and the importer verifies config, blobs and layers as those of any source.
//!
//! The proxy hands over manifests converted to OCI and never an index. Where the bytes are not those of
//! the digest, and for the index that a manifest was chosen from, `skopeo inspect --raw` asks again. The
//! image itself is the one that the proxy opened, because that is what the signature policy was applied
//! to; an index counts only if it names that image.
//!
//! # Retries
//!
//! What may pass by itself is tried again with growing pauses: opening an image, and a blob whose
//! download broke. A blob is then begun anew and what was handed on already is skipped; its digest covers
//! both parts. Layers that the repository has are not asked for at all.

mod artifact;
mod download;
mod policy;
mod retry;
mod session;

use std::io::Read as _;
use std::process::Command;
use std::sync::Arc;

use containers_image_proxy::oci_spec::image::Digest;
use repository::oci::{Config, DOCUMENT_LIMIT, LayerDescriptor, Manifest, ManifestDigest};
use serde::Deserialize;

pub use self::artifact::{artifact_from_skopeo, referrers_from_skopeo};
use self::download::Download;
use self::session::{Failure, Policy, Skopeo};
use super::files::check_platform;
use super::names::completed;
use super::{Blob, Origin, SourceError, SourceImage, SourceOptions};
use crate::child::{self, Messages};
use crate::registry::{Problem, complaint};

/// The transports that are left to skopeo.
pub(super) const TRANSPORTS: [&str; 6] = [
    "docker",
    "docker-daemon",
    "atomic",
    "ostree",
    "sif",
    "tarball",
];

/// An image of any transport that skopeo knows; `reference` is with the transport.
pub fn from_skopeo(
    reference: &str,
    options: &SourceOptions,
) -> Result<SourceImage<'static>, SourceError> {
    let skopeo = Arc::new(Skopeo::new(reference, options, Policy::Applied)?);
    let documents = skopeo.retrying(|| Documents::fetch(&skopeo))?;
    let unusable = |source| SourceError::Image {
        image: reference.to_owned(),
        source,
    };
    let manifest = Manifest::parse(documents.manifest).map_err(unusable)?;
    let descriptor = manifest.spec().config();
    let config = RemoteBlob {
        skopeo: Arc::clone(&skopeo),
        digest: descriptor.digest().clone(),
        size: descriptor.size(),
    };
    let config = Config::parse(read_document(&skopeo, &config)?).map_err(unusable)?;
    check_platform(options, reference, &config)?;
    let blob = |descriptor: &LayerDescriptor| {
        Ok(Box::new(RemoteBlob::new(&skopeo, descriptor)?) as Box<dyn Blob>)
    };
    let mut image = SourceImage::of_blobs(reference.to_owned(), &manifest, &config, blob)?;
    image.names = full_name(reference).into_iter().collect();
    image.indexes = documents.index.into_iter().collect();
    Ok(image)
}

/// The manifest as it is in the registry, and the index that it was chosen from.
struct Documents {
    manifest: Vec<u8>,
    index: Option<Vec<u8>>,
}

/// What an index names.
#[derive(Deserialize)]
struct Index {
    manifests: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    digest: String,
}

impl Documents {
    fn fetch(skopeo: &Skopeo) -> Result<Self, Failure> {
        let (digest, converted) = skopeo.manifest()?;
        let is_it = |bytes: &[u8]| ManifestDigest::of(bytes).to_string() == digest;
        let raw = inspect_raw(skopeo, skopeo.reference())?;
        if is_it(&raw) {
            return Ok(Self {
                manifest: raw,
                index: None,
            });
        }
        let names_it = serde_json::from_slice::<Index>(&raw)
            .is_ok_and(|index| index.manifests.iter().any(|entry| entry.digest == digest));
        if !names_it {
            return Err(Failure::moved(skopeo.reference()));
        }
        let manifest = if is_it(&converted) {
            converted
        } else {
            inspect_raw(skopeo, &with_digest(skopeo.reference(), &digest))?
        };
        if !is_it(&manifest) {
            return Err(Failure::moved(skopeo.reference()));
        }
        Ok(Self {
            manifest,
            index: Some(raw),
        })
    }
}

/// The manifest or index of `reference`, byte for byte.
fn inspect_raw(skopeo: &Skopeo, reference: &str) -> Result<Vec<u8>, Failure> {
    let mut command = Command::new("skopeo");
    command
        .args(["inspect", "--raw"])
        .args(skopeo.inspect_arguments())
        .args(["--", reference]);
    let ended = child::finish(command, Messages::Kept, DOCUMENT_LIMIT, skopeo.cancel())
        .map_err(|error| Failure::not_run(&error))?;
    if skopeo.cancel().is_cancelled() {
        return Err(Failure::Cancelled);
    }
    if !ended.status.success() {
        return Err(Failure::said(complaint(&ended.messages)));
    }
    Ok(ended.output)
}

/// All of a blob that is a document.
fn read_document(skopeo: &Skopeo, blob: &RemoteBlob) -> Result<Vec<u8>, SourceError> {
    let mut document = Vec::new();
    blob.open()?
        .take(DOCUMENT_LIMIT + 1)
        .read_to_end(&mut document)
        .map_err(|error| skopeo.broken(error))?;
    Ok(document)
}

/// A blob that skopeo fetches.
struct RemoteBlob {
    skopeo: Arc<Skopeo>,
    digest: Digest,
    size: u64,
}

impl RemoteBlob {
    fn new(skopeo: &Arc<Skopeo>, descriptor: &LayerDescriptor) -> Result<Self, SourceError> {
        let digest = descriptor.digest.to_string();
        Ok(Self {
            digest: digest.parse().map_err(|_| SourceError::Skopeo {
                image: skopeo.reference().to_owned(),
                message: format!("{digest} is no digest"),
                problem: Problem::Other,
            })?,
            skopeo: Arc::clone(skopeo),
            size: descriptor.size,
        })
    }
}

impl Blob for RemoteBlob {
    fn open(&self) -> Result<Box<dyn std::io::Read + '_>, SourceError> {
        let download = Download::new(&self.skopeo, self.digest.clone(), self.size);
        Ok(Box::new(download))
    }

    fn origin(&self) -> Origin {
        Origin::Network
    }
}

/// The full name that an image has by its reference, as podman would call it after a pull.
fn full_name(reference: &str) -> Option<String> {
    let name = reference
        .strip_prefix("docker://")
        .or_else(|| reference.strip_prefix("docker-daemon:"))?;
    if name.starts_with("sha256:") {
        return None;
    }
    Some(completed(name))
}

/// The same repository with a digest in place of a tag or digest.
fn with_digest(reference: &str, digest: &str) -> String {
    let name = reference.split('@').next().unwrap_or(reference);
    let slash = name.rfind('/').unwrap_or(0);
    let name = match name[slash..].find(':') {
        Some(colon) => &name[..slash + colon],
        None => name,
    };
    format!("{name}@{digest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_as_podman_completes_them() {
        for (reference, name) in [
            ("docker://127.0.0.1:5000/a", "127.0.0.1:5000/a:latest"),
            ("docker://a.example/b/c:1", "a.example/b/c:1"),
            ("docker://localhost/a", "localhost/a:latest"),
            ("docker://a.example/b@sha256:00", "a.example/b@sha256:00"),
            ("docker-daemon:localhost/app:1", "localhost/app:1"),
        ] {
            assert_eq!(full_name(reference).as_deref(), Some(name));
        }
        assert_eq!(full_name("docker-daemon:sha256:00"), None);
        assert_eq!(full_name("sif:image.sif"), None);
    }

    #[test]
    fn a_digest_replaces_a_tag_but_not_a_port() {
        for (reference, expected) in [
            (
                "docker://127.0.0.1:5000/a:1",
                "docker://127.0.0.1:5000/a@sha256:00",
            ),
            (
                "docker://127.0.0.1:5000/a",
                "docker://127.0.0.1:5000/a@sha256:00",
            ),
            ("docker://a/b:1@sha256:11", "docker://a/b@sha256:00"),
            ("docker://debian:12", "docker://debian@sha256:00"),
        ] {
            assert_eq!(with_digest(reference, "sha256:00"), expected);
        }
    }
}
