//! Sources of container images into a composefs repository, verified.
#![forbid(unsafe_code)]
