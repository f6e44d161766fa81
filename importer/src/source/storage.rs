//! podman's own storage.

use containers_storage::Image;

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
