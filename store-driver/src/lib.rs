//! A composefs repository as podman sees it: the additional image store and its mounts.
#![forbid(unsafe_code)]

pub mod mount;
