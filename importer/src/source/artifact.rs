//! OCI artifacts that are not images, from an OCI layout or a registry.

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use repository::oci::{Artifact, ManifestDigest};

use super::files::{Content, Files, Naming};
use super::layout::Layout;
use super::{Blob, SourceError, SourceOptions};

/// Documents that are looked at for a subject, at most.
const SEARCHED_MAX: usize = 1000;

/// An artifact as a source has it, with nothing verified yet.
pub struct SourceArtifact<'s> {
    /// What it is called, with its transport.
    pub name: String,
    /// The full names that it has there.
    pub names: Vec<String>,
    /// The manifest's bytes.
    pub manifest: Vec<u8>,
    /// The config's bytes.
    pub config: Vec<u8>,
    /// One for each layer of the manifest.
    pub blobs: Vec<Box<dyn Blob + 's>>,
}

/// The artifact that a descriptor in a layout names.
pub(super) fn in_layout(
    content: &Content<'_>,
    name: &str,
    descriptor: &Descriptor,
) -> Result<SourceArtifact<'static>, SourceError> {
    let manifest = content.described(descriptor)?;
    let document = format!("manifest {}", descriptor.digest());
    let artifact = Artifact::parse(manifest).map_err(content.files.unusable(&document))?;
    let file = |digest: &repository::oci::BlobDigest| Naming::Oci.blob(&digest.to_hex());
    let config = content.files.document(&file(&artifact.config().digest))?;
    let blobs = artifact
        .layers()
        .iter()
        .map(|layer| Ok(Box::new(content.files.get(&file(&layer.digest))?) as Box<dyn Blob>))
        .collect::<Result<_, SourceError>>()?;
    Ok(SourceArtifact {
        name: name.to_owned(),
        names: Vec::new(),
        manifest: artifact.bytes().to_vec(),
        config,
        blobs,
    })
}

/// The artifacts of a layout that refer to an image: those with such a subject, in `index.json` or in
/// the index `sha256-<hex>` that the distribution specification has for registries without an interface
/// for them.
pub(super) fn referrers_in_layout(
    files: Files,
    name: &str,
    subject: &ManifestDigest,
    options: &SourceOptions,
) -> Result<Vec<SourceArtifact<'static>>, SourceError> {
    let Layout { content, index } = Layout::open(files, options)?;
    let mut candidates: Vec<Descriptor> = index.manifests().clone();
    let mut found: Vec<SourceArtifact<'static>> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    let mut searched = 0;
    while let Some(candidate) = candidates.pop() {
        searched += 1;
        if searched > SEARCHED_MAX {
            break;
        }
        if !seen.insert(candidate.digest().to_string()) {
            continue;
        }
        let bytes = content.described(&candidate)?;
        if super::files::is_index(candidate.media_type()) {
            if let Ok(index) = ImageIndex::from_reader(&bytes[..]) {
                candidates.extend(index.manifests().iter().cloned());
            }
            continue;
        }
        let refers = ImageManifest::from_reader(&bytes[..]).is_ok_and(|manifest| {
            let of = manifest.subject().as_ref();
            of.is_some_and(|of| of.digest().as_ref() == subject.to_string())
        });
        if refers {
            let name = format!("{name}@{}", candidate.digest());
            found.push(in_layout(&content, &name, &candidate)?);
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}
