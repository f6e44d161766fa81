//! podman's containers-storage as data: configuration, locks, records, tar-split.
//!
//! This crate reads the overlay stores that podman, buildah, skopeo and CRI-O keep: which images there
//! are, which layers they have, and the exact tar stream of a layer, put together from its tar-split
//! and the files in its directory. It takes the engine's own locks (POSIX record locks, as
//! open-file-description locks on a descriptor opened read-only), and it never writes to a store that
//! belongs to an engine. The one thing it writes is a store of our own, the *additional image store*
//! ([`own_store`]).
//!
//! A reading session:
//!
//! 1. [`StorageConf`]: where the store is.
//! 2. [`Storage::open`], [`Storage::find_image`]: records are read under the read lock of `images.lock`,
//!    which is released before the call returns.
//! 3. [`Image::layers`], bottom layer first.
//! 4. For each layer [`Layer::open`], which checks the record under the read lock of `layers.lock`. Then
//!    tar-split and files are read without any lock, however long that takes, and podman never waits.
//! 5. [`OpenLayer::check_unchanged`] at the end. The engine marks a layer's record before it touches the
//!    layer's files, and never takes the mark back: a record that is complete and the same at the end
//!    means that the files were whole all the time.
//!
//! Everything read from disk is untrusted: sizes are bounded, names never leave the layer's directory,
//! and digests of manifest and config are checked. That a layer's bytes are the right ones is for the
//! caller to decide, by hashing the whole stream and comparing it with the config's diff ID.
#![forbid(unsafe_code)]

mod conf;
mod digest;
mod error;
mod ids;
mod image;
mod layer;
mod lock;
pub mod own_store;
mod read;
mod records;
pub mod rootless;
mod storage;
mod tar_split;
#[cfg(feature = "testing")]
pub mod testing;

pub use conf::{
    ConfError, ConfRules, ConfSource, Environment, NaiveDiffReason, OverlayOptions, StorageConf,
    podman_version,
};
pub use digest::{
    ConfigDigest, DiffId, Digest, DigestError, InvalidDigest, ManifestDigest, chain_id,
};
pub use error::Error;
pub use ids::{ContainerId, ImageId, InvalidId, LayerId, LinkId};
pub use image::Image;
pub use layer::{Layer, LayerKind, LayerTarSplit, OpenLayer};
pub use lock::{Interrupt, LastWrite, LockError, ReadLock, WriteLock};
pub use records::{ContainerRecord, IdMapping, ImageRecord, LayerFlags, LayerRecord};
pub use storage::{Driver, OpenOptions, RootKind, Storage, StoreRoot};
pub use tar_split::{ContentCrc, EntryName, TarSplit, TarSplitEntry, TarSplitError};
