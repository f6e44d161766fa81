//! Merging layers that are in a repository.

use composefs_image::{Tree, VerityDigest};

use super::{LayerError, Merge, MergeError, Rules};

/// The tree of an image with these layers, given by their splitstreams from the base up.
pub fn merged_tree(
    repository: &Repository,
    layers: &[VerityDigest],
    rules: Rules,
) -> Result<Tree, MergeError> {
    let mut merge = Merge::new(rules);
    for &layer in layers {
        add(&mut merge, repository, layer)?;
    }
    merge.finish()
}

/// Calls `visit` with the tree that podman shows for the first layer, for the first two, and so on,
/// with the index of the layer on top. There is one tree, which grows from call to call.
pub fn for_each_prefix<E: From<MergeError>>(
    repository: &Repository,
    layers: &[VerityDigest],
    mut visit: impl FnMut(usize, &Tree) -> Result<(), E>,
) -> Result<(), E> {
    let mut merge = Merge::new(Rules::Podman);
    for (index, &layer) in layers.iter().enumerate() {
        add(&mut merge, repository, layer)?;
        visit(index, merge.tree())?;
    }
    Ok(())
}

fn add(merge: &mut Merge, repository: &Repository, layer: VerityDigest) -> Result<(), MergeError> {
    let stream = repository
        .open_stream(&layer, ContentType::OCI_LAYER)
        .map_err(LayerError::from);
    stream
        .and_then(|stream| merge.add_layer(stream))
        .map_err(|source| MergeError::Layer {
            layer,
            source: Box::new(source),
        })
}
