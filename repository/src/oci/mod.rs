//! Images in a repository: manifests, configs, their layers and EROFS images, and tags.
//!
//! An image is a manifest stream; it names a config stream and layer streams, and the config stream
//! names the EROFS images. A tag is a ref to a manifest stream, and what keeps the image alive.
//! Follows the composefs repository format, "OCI content as streams". Never changes a byte of a
//! manifest or config.

mod artifact;
mod digest;
mod document;
mod erofs;
mod error;
mod image;
mod index;
mod store;
mod stream;
#[cfg(test)]
mod tests;

pub use artifact::{
    Artifact, add_referrer, artifact_stream, is_orphaned_referrer, referrers, store_artifact,
    store_blob,
};
pub use digest::{BlobDigest, ConfigDigest, DiffId, DigestError, ManifestDigest, NamesStream};
pub use document::{
    Config, DOCUMENT_LIMIT, DocumentError, LayerDescriptor, Manifest, ManifestFormat, check_pair,
};
pub use erofs::{ErofsKey, ErofsRefs};
pub use error::{OciError, Result};
pub use image::{Image, ImageLayer, Images, find, find_digest, image, images, tags, untag};
pub use index::{Index, add_indexes};
pub use store::{NewImage, StoredImage, store_image, tag};
