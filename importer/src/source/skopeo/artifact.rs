//! Artifacts in a registry, and those that refer to an image.

use std::sync::Arc;

use oci_spec::image::ImageIndex;
use repository::oci::{Artifact, ManifestDigest};

use super::session::{Failure, Policy, Skopeo};
use super::{Documents, RemoteBlob, full_name, inspect_raw, read_document, with_digest};
use crate::registry::Problem;
use crate::source::{Blob, SourceArtifact, SourceError, SourceOptions};

/// What cosign appends to the tag of an image's digest: signatures, attestations, bills of material.
const COSIGN: [&str; 3] = ["sig", "att", "sbom"];
/// Artifacts of one image, at most.
const REFERRERS_MAX: usize = 1000;

/// An artifact of any transport that skopeo knows.
pub fn artifact_from_skopeo(
    reference: &str,
    options: &SourceOptions,
) -> Result<SourceArtifact<'static>, SourceError> {
    artifact(reference, options, Policy::Applied)
}

fn artifact(
    reference: &str,
    options: &SourceOptions,
    policy: Policy,
) -> Result<SourceArtifact<'static>, SourceError> {
    let skopeo = Arc::new(Skopeo::new(reference, options, policy)?);
    let documents = skopeo.retrying(|| Documents::fetch(&skopeo))?;
    let unusable = |source| SourceError::Image {
        image: reference.to_owned(),
        source,
    };
    let artifact = Artifact::parse(documents.manifest).map_err(unusable)?;
    let blob = |descriptor| RemoteBlob::new(&skopeo, descriptor);
    let config = read_document(&skopeo, &blob(artifact.config())?)?;
    let blobs = artifact
        .layers()
        .iter()
        .map(|layer| Ok(Box::new(blob(layer)?) as Box<dyn Blob>))
        .collect::<Result<_, SourceError>>()?;
    Ok(SourceArtifact {
        name: reference.to_owned(),
        names: full_name(reference).into_iter().collect(),
        manifest: artifact.bytes().to_vec(),
        config,
        blobs,
    })
}

/// The artifacts that refer to the image with the manifest `subject` in the repository of `reference`:
/// those that the index `sha256-<hex>` names, which clients keep for registries without an interface for
/// referrers, and those under cosign's tags. skopeo asks for nothing else.
///
/// The signature policy is about images: it is not applied to what is their signature.
pub fn referrers_from_skopeo(
    reference: &str,
    subject: &ManifestDigest,
    options: &SourceOptions,
) -> Result<Vec<SourceArtifact<'static>>, SourceError> {
    let skopeo = Skopeo::new(reference, options, Policy::NotApplied)?;
    let tag = format!("sha256-{}", subject.to_hex());
    let at = |tag: &str| {
        let name = with_digest(reference, "");
        format!("{}:{tag}", name.trim_end_matches('@'))
    };
    let mut found = Vec::new();
    if let Some(index) = optional(&skopeo, &at(&tag))? {
        let index = ImageIndex::from_reader(&index[..]).map_err(|error| SourceError::Image {
            image: at(&tag),
            source: error.into(),
        })?;
        for entry in index.manifests().iter().take(REFERRERS_MAX) {
            let name = with_digest(reference, entry.digest().as_ref());
            found.push(artifact(&name, options, Policy::NotApplied)?);
        }
    }
    for suffix in COSIGN {
        let name = at(&format!("{tag}.{suffix}"));
        if optional(&skopeo, &name)?.is_some() {
            found.push(artifact(&name, options, Policy::NotApplied)?);
        }
    }
    Ok(found)
}

/// A document, if there is one.
fn optional(skopeo: &Skopeo, reference: &str) -> Result<Option<Vec<u8>>, SourceError> {
    skopeo.retrying(|| match inspect_raw(skopeo, reference) {
        Ok(document) => Ok(Some(document)),
        Err(Failure::Said {
            problem: Problem::NotFound,
            ..
        }) => Ok(None),
        Err(failure) => Err(failure),
    })
}
