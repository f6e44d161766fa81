//! Splitstreams.
/// What is wrong with a splitstream.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SplitstreamError {
    /// Not one
    #[error("it is not a splitstream")]
    NotASplitstream,
}
