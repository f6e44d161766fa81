//! podman's containers-storage as data: configuration, locks, records, tar-split.
#![forbid(unsafe_code)]
