//! What publishing an image takes: its chain of layers, and which of them are there.

use containers_storage::{DiffId, LayerId, chain_id};
use repository::{Repository, VerityDigest, oci};

use super::PublishOptions;
use crate::{
    Enforcement, Layout,
    error::{Error, Result},
    store::{Store, image_of},
};

/// A layer to publish.
pub(super) struct PlannedLayer {
    pub(super) id: LayerId,
    pub(super) parent: Option<LayerId>,
    pub(super) diff_id: DiffId,
    pub(super) stream: VerityDigest,
    /// podman's view has it.
    pub(super) has_record: bool,
    /// The repository keeps its EROFS image.
    pub(super) has_image: bool,
}

/// What is there and what is to be made.
pub(super) struct Plan {
    pub(super) layout: Layout,
    pub(super) enforcement: Enforcement,
    /// From the base up.
    pub(super) layers: Vec<PlannedLayer>,
}

impl Plan {
    pub(super) fn new(
        repository: &Repository,
        image: &oci::Image,
        options: &PublishOptions<'_>,
        store: &Store,
    ) -> Result<Self> {
        let layout = options.layout;
        let records = store.own.root().layer_records()?;
        let mut layers: Vec<PlannedLayer> = Vec::new();
        for layer in image.layers() {
            let diff_id = layer.diff_id;
            let parent = layers.last().map(|below| below.id.clone());
            let id = chain_id(parent.as_ref(), &diff_id);
            let has_record = records.iter().any(|record| record.id == id);
            if has_record {
                let has = Layout::of(&store.paths, &id)?;
                if has != layout {
                    return Err(Error::OtherLayout { layer: id, has });
                }
            }
            layers.push(PlannedLayer {
                has_image: match image_of(repository, &id)? {
                    Some(image) => repository.has_image(&image)?,
                    None => false,
                },
                id,
                parent,
                diff_id,
                stream: layer.stream,
                has_record,
            });
        }
        Ok(Self {
            layout,
            enforcement: options.enforcement,
            layers,
        })
    }

    pub(super) fn is_incomplete(&self) -> bool {
        self.layers
            .iter()
            .any(|layer| !layer.has_record || !layer.has_image)
    }
}
