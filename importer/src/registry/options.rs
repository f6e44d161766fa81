//! Options for talking to a registry.

use std::path::PathBuf;

/// How to talk to a registry. Whatever is not given is as podman and skopeo find it: credentials of
/// `podman login`, certificates below `/etc/containers/certs.d`, `policy.json`, `registries.conf`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegistryOptions {
    /// A file with credentials, as `podman login --authfile` writes it.
    pub authfile: Option<PathBuf>,
    /// A directory of certificates (`*.crt`, `*.cert`, `*.key`).
    pub cert_dir: Option<PathBuf>,
    /// Whether the registry must prove who it is.
    pub tls_verify: TlsVerify,
    /// A signature policy, instead of `policy.json`.
    pub signature_policy: Option<PathBuf>,
    /// How often what may pass by itself is tried again, after the first time.
    pub retries: Option<u32>,
}

/// Whether a registry must prove who it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TlsVerify {
    /// As `registries.conf` says; it must, where that says nothing.
    #[default]
    Configured,
    /// It must.
    Required,
    /// It need not, and may speak plain HTTP.
    Off,
}

impl TlsVerify {
    /// The value of `--tls-verify`, if it is to be given at all.
    pub(crate) fn argument(self) -> Option<&'static str> {
        match self {
            Self::Configured => None,
            Self::Required => Some("--tls-verify=true"),
            Self::Off => Some("--tls-verify=false"),
        }
    }
}
