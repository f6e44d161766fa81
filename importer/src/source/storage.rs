//! podman's own storage.

use containers_storage::Image;

use super::synthetic::rewrite;
use super::{LayerContent, SourceError, SourceImage, SourceLayer};

/// An image of containers-storage. Its documents' digests are checked on the way.
pub fn from_storage(image: &Image) -> Result<SourceImage<'static>, SourceError> {
    Ok(read(image).map_err(|error| image.explain(error))?)
}

fn read(image: &Image) -> Result<SourceImage<'static>, containers_storage::Error> {
    let layers = image.layers()?.into_iter().map(|layer| SourceLayer {
        diff_id: layer.diff_id(),
        size: layer.diff_size(),
        content: LayerContent::Stored(Box::new(layer)),
    });
    let name = match image.names().first() {
        Some(name) => name.clone(),
        None => format!("@{}", image.id()),
    };
    Ok(SourceImage {
        name: format!("containers-storage:{name}"),
        id: Some(image.id().clone()),
        names: image.names().to_vec(),
        indexes: image.indexes()?,
        manifest: image.manifest()?,
        config: image.config()?,
        layers: layers.collect(),
    })
}

/// As [`from_storage`], with a tar made for each layer that has lost its tar-split. If there is one, the
/// image is another than the one in the storage, with documents that say so: see
/// `docs/synthetic-layers.md`. Every file of such a layer is read.
pub fn synthetic_from_storage(image: &Image) -> Result<SourceImage<'static>, SourceError> {
    let mut source = from_storage(image)?;
    let mut made = Vec::new();
    for layer in &mut source.layers {
        let LayerContent::Stored(stored) = &mut layer.content else {
            made.push(None);
            continue;
        };
        if stored.has_tar_split()? {
            made.push(None);
            continue;
        }
        **stored = stored.synthesised()?;
        layer.diff_id = stored.diff_id();
        layer.size = stored.diff_size();
        made.push(Some((layer.diff_id, layer.size.unwrap_or(0))));
    }
    if made.iter().any(Option::is_some) {
        let documents = rewrite(&source.manifest, &source.config, &made);
        let (manifest, config) = documents.map_err(|problem| SourceError::Synthetic {
            image: source.name.clone(),
            problem,
        })?;
        source.manifest = manifest;
        source.config = config;
        // Its ID is that of another image.
        source.id = None;
    }
    Ok(source)
}
