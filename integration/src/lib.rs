//! End-to-end tests with real podman, filesystems and peers.
#![forbid(unsafe_code)]
