//! What an import tells while it runs.
//!
//! One stream of events, so that a terminal's bars, JSON lines and nothing at all are three receivers
//! of the same thing. Events of different layers interleave; those of one layer come in order.

use std::fmt;

use containers_storage::LayerId;
use repository::oci::{BlobDigest, DiffId};
use serde::Serialize;

use crate::report::LayerReport;

/// Receives an import's events, from several threads at once. It must not block for long: the import
/// waits meanwhile.
pub trait Progress: Sync {
    /// Something happened.
    fn event(&self, event: &Event<'_>);
}

/// Hears nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn event(&self, _: &Event<'_>) {}
}

impl<F: Fn(&Event<'_>) + Sync> Progress for F {
    fn event(&self, event: &Event<'_>) {
        self(event);
    }
}

/// One thing that happened. As JSON: an object with the variant's name in `event`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event<'a> {
    /// The image's layers are known; bottom layer first.
    Layers {
        /// The layers.
        layers: &'a [LayerPlan],
    },
    /// The import turned to another stage.
    Stage {
        /// The stage that begins.
        stage: Stage,
    },
    /// A layer is being read.
    LayerStarted {
        /// Its index in [`Event::Layers`].
        layer: usize,
    },
    /// More of a layer was read. Both counts only grow.
    LayerAdvanced {
        /// Its index.
        layer: usize,
        /// Bytes of the uncompressed tar so far.
        bytes: u64,
        /// Files with content so far.
        files: u64,
    },
    /// A layer is verified, or was there already.
    LayerFinished {
        /// Its index.
        layer: usize,
        /// What became of it.
        report: &'a LayerReport,
    },
}

/// A layer that an import is about to deal with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LayerPlan {
    /// Its ID in containers-storage, if it comes from there.
    pub id: Option<LayerId>,
    /// The digest of the blob it is in, where it is in one that the manifest describes.
    pub blob: Option<BlobDigest>,
    /// Its diff ID.
    pub diff_id: DiffId,
    /// Size of the uncompressed tar in bytes, where the source knows it.
    pub size: Option<u64>,
}

impl fmt::Display for LayerPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.id, &self.blob) {
            (Some(id), _) => write!(f, "{id} ({})", self.diff_id),
            (None, Some(blob)) => write!(f, "{blob} (diff ID {})", self.diff_id),
            (None, None) => write!(f, "{}", self.diff_id),
        }
    }
}

/// The stages of an import, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Finding out what is there already.
    Check,
    /// Reading, verifying and storing layers.
    Layers,
    /// Making the root filesystem image.
    Rootfs,
    /// Making everything durable and giving it names.
    Publish,
}
