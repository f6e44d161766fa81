//! Streams that hold one document: reading and writing them.

use composefs_image::VerityDigest;

use super::{
    Config, ConfigDigest, DOCUMENT_LIMIT, Manifest, ManifestDigest, NamesStream, OciError,
    error::Result,
};
use crate::splitstream::{self, ContentType, NamedRefs, Writer};
use crate::{Batch, Error, ReadObjects, StreamName};

/// What a manifest stream calls its config stream, before the digest.
const CONFIG_KEY: &str = "config:";

/// The name that a manifest stream has for its config stream.
pub(super) fn config_key(config: &ConfigDigest) -> String {
    format!("{CONFIG_KEY}{config}")
}

/// The config that a manifest stream names, and its stream.
pub(super) fn config_ref(refs: &NamedRefs) -> Option<(ConfigDigest, VerityDigest)> {
    refs.iter().find_map(|(name, stream)| {
        let digest = name.strip_prefix(CONFIG_KEY)?.parse().ok()?;
        Some((digest, *stream))
    })
}

/// A document's stream, without the document.
pub(super) struct DocumentStream {
    /// The object that is the document.
    pub(super) document: VerityDigest,
    pub(super) refs: NamedRefs,
}

/// Opens the stream `name`, which the object `stream` is.
pub(super) fn open(
    objects: &(impl ReadObjects + ?Sized),
    name: &StreamName,
    stream: &VerityDigest,
    content_type: ContentType,
) -> Result<DocumentStream> {
    let reader = splitstream::open(objects, stream, Some(content_type))?;
    let broken = |source| Error::Splitstream {
        digest: *stream,
        source,
    };
    let mut documents = reader.object_refs();
    let (Some(document), None) = (documents.next(), documents.next()) else {
        return Err(OciError::NotOneObject {
            stream: name.clone(),
        });
    };
    Ok(DocumentStream {
        document: document.map_err(broken)?,
        refs: reader.named_refs().map_err(broken)?,
    })
}

/// Reads a manifest and checks its digest.
pub(super) fn read_manifest(
    objects: &(impl ReadObjects + ?Sized),
    digest: ManifestDigest,
    document: &VerityDigest,
) -> Result<Manifest> {
    let bytes = objects.read_object(document, DOCUMENT_LIMIT)?;
    if ManifestDigest::of(&bytes) != digest {
        let stream = digest.stream_name();
        return Err(OciError::WrongDocument { stream });
    }
    Manifest::parse(bytes).map_err(|source| OciError::Manifest { digest, source })
}

/// Reads a config and checks its digest.
pub(super) fn read_config(
    objects: &(impl ReadObjects + ?Sized),
    digest: ConfigDigest,
    document: &VerityDigest,
) -> Result<Config> {
    let bytes = objects.read_object(document, DOCUMENT_LIMIT)?;
    if ConfigDigest::of(&bytes) != digest {
        let stream = digest.stream_name();
        return Err(OciError::WrongDocument { stream });
    }
    Config::parse(bytes).map_err(|source| OciError::Config { digest, source })
}

/// Writes a stream of one document with references in the given order; of a name that comes twice
/// the first counts.
pub(super) fn write<'a>(
    batch: &Batch<'_>,
    content_type: ContentType,
    document: &VerityDigest,
    refs: impl IntoIterator<Item = (String, &'a VerityDigest)>,
) -> Result<VerityDigest> {
    let missing = || OciError::NotStored(*document);
    let size = batch.object_size(document)?.ok_or_else(missing)?;
    let mut writer = Writer::new(batch, content_type)?;
    let mut known = std::collections::HashSet::new();
    for (name, target) in refs {
        if known.insert(name.clone()) {
            writer.named_ref(&name, target)?;
        }
    }
    writer.external(document, size)?;
    let (stream, _) = writer.finish()?;
    Ok(stream)
}
