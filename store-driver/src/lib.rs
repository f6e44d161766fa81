//! A composefs repository as podman sees it: the additional image store and its mounts.
//!
//! # What podman sees
//!
//! An image store that keeps, for every published image, the full chain of its layers: chain IDs, parents,
//! original manifest and config. What backs a layer is not its own content but the EROFS image of the
//! *merged* tree up to it, so a container takes one EROFS mount however many layers its image has, while
//! `history`, `build` and `save` still see the real layers ("additional image stores", merged chain). How
//! the tree gets under the container is the layer's [`Layout`].
//!
//! # Life of an image
//!
//! ```text
//! publish ──▶ objects, EROFS images and refs in the repository    durable, nothing visible
//!         ──▶ mounts below /run                                   layout `mounted` only
//!         ──▶ layers, under the write lock of layers.lock         directory and record together
//!         ──▶ the image, under the write lock of images.lock      podman lists it
//!
//! unpublish ──▶ the image's names                       engines that run may have looked it up:
//!           ──▶ they have ended, or ten seconds         what they made of it is recorded by then
//!           ──▶ the image's record, without containers  engines that run may be listing it:
//!           ──▶ they have ended, or ten seconds
//!           ──▶ its big data, and layers that nothing uses ──▶ mounts ──▶ refs
//! ```
//!
//! A crash anywhere leaves garbage that the next call of [`publish`], [`unpublish`] or [`serve_mounts`]
//! puts in order, never a name without its content. A podman running meanwhile sees the old list or the
//! new one. No two locks of the store are ever held at once.
//!
//! # After a boot
//!
//! Mounts are gone then, and with them the view ([`StorePaths::view`]): podman works, but sees a store
//! without images until [`serve_mounts`] has run. `contrib/` has the systemd unit.
//!
//! # What it never does
//!
//! It never writes to podman's own store, never changes the layout or the short name of a published
//! layer, and never removes a layer that it cannot prove unused.
#![forbid(unsafe_code)]

mod check;
mod claims;
pub mod doctor;
mod engines;
mod error;
mod hidden;
mod host;
mod in_use;
mod layout;
pub mod mount;
mod mounted;
mod names;
mod paths;
mod podman_conf;
mod publish;
mod published;
mod serve;
mod store;
mod tar_split;
mod time;
mod unpublish;
mod verify;
mod view;

pub use check::{Fault, check_published, mend_published, published_image_again};
pub use claims::{Claim, Claimant, Claims, LeftRecords, claims, mounted_images};
pub use error::{Error, NotMounted, Result};
pub use host::{check_host, check_verified_host};
pub use in_use::{Stores, User};
pub use layout::{Layout, ParseLayoutError};
pub use mounted::MountUse;
pub use names::podman_name;
pub use paths::StorePaths;
pub use podman_conf::{Place, PodmanConf, podman_conf};
pub use publish::{LayerOutcome, Note, PublishOptions, PublishReport, PublishedLayer, publish};
pub use published::{PublishedImage, find_published, published, refresh_names};
pub use serve::{ServeReport, mount_image, serve_mounts, unmount_all};
pub use tar_split::TarSplitError;
pub use unpublish::{
    KeptLayer, UnpublishReport, UnusedLayers, WhileInUse, forget_unpublished, remove_unused_layers,
    unpublish,
};
pub use verify::{Enforcement, Unsound, VerifiedImage, VerifyReport, verify_published};
pub use view::{ViewMount, ViewState};
