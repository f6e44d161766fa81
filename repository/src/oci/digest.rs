//! The digests of OCI content as names of streams: composefs repository format, "OCI content as streams".

pub use oci_digest::{BlobDigest, ConfigDigest, DiffId, DigestError, ManifestDigest};

use crate::StreamName;

/// A digest of something that is a stream in a repository.
pub trait NamesStream: Sized {
    /// The name of its stream.
    fn stream_name(&self) -> StreamName;

    /// The digest in the name of a stream, if it is of this kind.
    fn from_stream_name(name: &StreamName) -> Option<Self>;
}

macro_rules! names_stream {
    ($digest:ident, $prefix:literal) => {
        impl NamesStream for $digest {
            fn stream_name(&self) -> StreamName {
                StreamName::new(format!(concat!($prefix, "{}"), self))
                    .expect("digests have no slashes and are short")
            }

            fn from_stream_name(name: &StreamName) -> Option<Self> {
                name.as_str().strip_prefix($prefix)?.parse().ok()
            }
        }
    };
}

names_stream!(ManifestDigest, "oci-manifest-");
names_stream!(ConfigDigest, "oci-config-");
names_stream!(DiffId, "oci-layer-");
names_stream!(BlobDigest, "oci-blob-");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_part_of_a_stream_name() {
        let digest = DiffId::of(b"");
        let name = digest.stream_name();
        assert_eq!(name.as_str(), format!("oci-layer-{digest}"));
        assert_eq!(DiffId::from_stream_name(&name), Some(digest));
        assert_eq!(ConfigDigest::from_stream_name(&name), None);
    }
}
