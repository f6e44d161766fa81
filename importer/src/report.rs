//! What an import did, in numbers.

use std::ops::AddAssign;
use std::time::Duration;

use composefs_image::VerityDigest;
use containers_storage::{ImageId, LayerId};
use repository::oci::{BlobDigest, ConfigDigest, DiffId, ManifestDigest};
use serde::{Serialize, Serializer};

/// What an import did. Serialises to the object that `import --json` prints; digests are text,
/// durations seconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ImportReport {
    /// Where it came from: the source's name for it, with the transport.
    pub source: String,
    /// The image's ID: the one it has in containers-storage, from elsewhere its config's digest.
    pub image: ImageId,
    /// Its manifest's digest.
    pub manifest: ManifestDigest,
    /// Its config's digest.
    pub config: ConfigDigest,
    /// What became of the image.
    pub outcome: Outcome,
    /// The digests of its root filesystem images, default format first; empty if it has none.
    #[serde(serialize_with = "as_texts")]
    pub rootfs: Vec<VerityDigest>,
    /// The tags it has been given.
    pub tags: Vec<String>,
    /// Its layers, bottom layer first.
    pub layers: Vec<LayerReport>,
    /// The sums over all layers.
    pub total: Counts,
    /// The time each stage took.
    pub times: Times,
    /// What the user should know though the import succeeded.
    pub warnings: Vec<Warning>,
}

/// What became of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It is in the repository now.
    Imported,
    /// It was there before, whole; at most tags were added.
    Present,
}

/// What became of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LayerReport {
    /// Its ID in containers-storage, if it came from there.
    pub id: Option<LayerId>,
    /// The digest of the blob it was in, where it was in one that the manifest describes.
    pub blob: Option<BlobDigest>,
    /// Its diff ID.
    pub diff_id: DiffId,
    /// Whether it was read.
    pub outcome: LayerOutcome,
    /// Size of the uncompressed tar in bytes; 0 if the layer was not read.
    pub tar_bytes: u64,
    /// Where its files' content went.
    #[serde(flatten)]
    pub counts: Counts,
    /// The time it took, other layers' work on the same processors included.
    #[serde(serialize_with = "as_seconds")]
    pub time: Duration,
}

/// Whether a layer was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerOutcome {
    /// Read, verified and stored.
    Imported,
    /// Read and stored, without comparing the diff ID ([`crate::DiffIdCheck::TrustSource`]).
    Trusted,
    /// In the repository already.
    Present,
    /// The image has the same layer further down.
    Repeated,
}

/// Files and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Number of files.
    pub files: u64,
    /// Their content in bytes.
    pub bytes: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes += bytes;
    }
}

/// Where the content of regular files went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Cloned: the repository shares the blocks with the source.
    pub reflinked: Tally,
    /// Copied, because cloning was not possible.
    pub copied: Tally,
    /// Written as they came, from a blob or a tar-split: there was no file to clone.
    pub written: Tally,
    /// In the repository already.
    pub present: Tally,
    /// At most 64 bytes each: inside the splitstream and the image.
    pub inlined: Tally,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.files += other.files;
        self.bytes += other.bytes;
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.reflinked += other.reflinked;
        self.copied += other.copied;
        self.written += other.written;
        self.present += other.present;
        self.inlined += other.inlined;
    }
}

/// The time each stage took, by the clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Times {
    /// Finding out what is there already.
    #[serde(serialize_with = "as_seconds")]
    pub check: Duration,
    /// Reading, verifying and staging layers.
    #[serde(serialize_with = "as_seconds")]
    pub layers: Duration,
    /// Making the root filesystem image.
    #[serde(serialize_with = "as_seconds")]
    pub rootfs: Duration,
    /// Making everything durable and giving it names.
    #[serde(serialize_with = "as_seconds")]
    pub publish: Duration,
}

/// What the user should know though the import succeeded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "warning", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Warning {
    /// The image has no root filesystem image: its layers do not make one by the rules of composefs-rs.
    /// An image without a directory `/usr` is the usual case.
    NoRootfs {
        /// Why.
        reason: String,
    },
    /// Layers had lost their tar: the image is made of others, and has other digests than its source.
    Synthetic {
        /// The manifest of the image in the source.
        manifest: ManifestDigest,
        /// How many of its layers are synthetic.
        layers: usize,
    },
    /// Files were copied; the store now needs their space twice.
    Copied(Tally),
}

impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoRootfs { reason } => write!(
                f,
                "the image is recorded without a root filesystem image: {reason}"
            ),
            Self::Synthetic { manifest, layers } => write!(
                f,
                "{layers} layers had no tar-split and are synthetic: this image is not {manifest}, which \
                 it was made from, and no signature of that one is valid for it"
            ),
            Self::Copied(Tally { files, bytes }) => write!(
                f,
                "{files} files ({bytes} bytes) were copied, because the filesystem cannot clone them \
                 into the repository"
            ),
        }
    }
}

fn as_texts<T: ToString, S: Serializer>(values: &[T], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(values.iter().map(ToString::to_string))
}

fn as_seconds<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(time.as_secs_f64())
}
