//! Layers that are in a repository, or in a batch on their way there.

use std::fs::File;

use composefs_image::{Tree, VerityDigest};

use super::{Chunk, Chunks, EntryReader, LayerError, Merge, MergeError, Rules};
use crate::splitstream::{self, ContentType, Piece, Reader};
use crate::{Error, ReadObjects};

/// How many inline bytes are decompressed at a time.
const PORTION: usize = 64 * 1024;

/// The splitstream of a layer as [`Chunks`].
pub struct LayerStream {
    digest: VerityDigest,
    reader: Reader<File>,
    inside: bool,
    buffer: Vec<u8>,
}

impl LayerStream {
    /// Opens the layer that the object `digest` is.
    pub fn open(
        objects: &(impl ReadObjects + ?Sized),
        digest: &VerityDigest,
    ) -> crate::Result<Self> {
        Ok(Self {
            digest: *digest,
            reader: splitstream::open(objects, digest, Some(ContentType::OCI_LAYER))?,
            inside: false,
            buffer: vec![0; PORTION],
        })
    }
}

impl Chunks for LayerStream {
    fn next_chunk(&mut self) -> crate::Result<Option<Chunk<'_>>> {
        let failed = |source| Error::Splitstream {
            digest: self.digest,
            source,
        };
        loop {
            if self.inside {
                let count = self.reader.read_inline(&mut self.buffer).map_err(failed)?;
                if count > 0 {
                    return Ok(Some(Chunk::Inline(&self.buffer[..count])));
                }
                self.inside = false;
            }
            match self.reader.next_piece().map_err(failed)? {
                None => return Ok(None),
                Some(Piece::External(object)) => return Ok(Some(Chunk::External(object))),
                Some(Piece::Inline(_)) => self.inside = true,
            }
        }
    }
}

/// Reads the entries of the layer that the object `layer` is.
pub fn entries(
    objects: &(impl ReadObjects + ?Sized),
    layer: &VerityDigest,
) -> crate::Result<EntryReader<LayerStream>> {
    LayerStream::open(objects, layer).map(EntryReader::new)
}

/// The tree of an image with these layers, given by their splitstreams from the base up.
pub fn merged_tree(
    objects: &(impl ReadObjects + ?Sized),
    layers: &[VerityDigest],
    rules: Rules,
) -> Result<Tree, MergeError> {
    let mut merge = Merge::new(rules);
    for &layer in layers {
        add(&mut merge, objects, layer)?;
    }
    merge.finish()
}

/// Calls `visit` with the tree that podman shows for the first layer, for the first two, and so on,
/// with the index of the layer on top. There is one tree, which grows from call to call.
pub fn for_each_prefix<E: From<MergeError>>(
    objects: &(impl ReadObjects + ?Sized),
    layers: &[VerityDigest],
    mut visit: impl FnMut(usize, &Tree) -> Result<(), E>,
) -> Result<(), E> {
    let mut merge = Merge::new(Rules::Podman);
    for (index, &layer) in layers.iter().enumerate() {
        add(&mut merge, objects, layer)?;
        visit(index, merge.tree())?;
    }
    Ok(())
}

fn add(
    merge: &mut Merge,
    objects: &(impl ReadObjects + ?Sized),
    layer: VerityDigest,
) -> Result<(), MergeError> {
    LayerStream::open(objects, &layer)
        .map_err(LayerError::from)
        .and_then(|stream| merge.add_layer(stream))
        .map_err(|source| MergeError::Layer {
            layer,
            source: Box::new(source),
        })
}
