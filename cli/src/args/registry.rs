//! The words for registries.

use std::path::PathBuf;

use clap::{ArgAction, Args};
use importer::registry::{RegistryOptions, TlsVerify};
use importer::source::Platform;

/// How to talk to a registry.
#[derive(Debug, Args)]
#[command(next_help_heading = "Registry options")]
pub(crate) struct RegistryArgs {
    /// Credentials, as `podman login --authfile` writes them [default: those of podman login]
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
    /// Certificates for the registry (*.crt, *.cert, *.key) [default: below /etc/containers/certs.d]
    #[arg(long, value_name = "DIR")]
    cert_dir: Option<PathBuf>,
    /// Whether the registry must have a trusted certificate [default: as registries.conf says]
    #[arg(
        long,
        value_name = "true|false",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        action = ArgAction::Set
    )]
    tls_verify: Option<bool>,
    /// A signature policy [default: /etc/containers/policy.json]
    #[arg(long, value_name = "FILE")]
    signature_policy: Option<PathBuf>,
    /// How often to try again what may pass by itself [default: 3]
    #[arg(long, value_name = "N")]
    retry: Option<u32>,
}

impl RegistryArgs {
    pub(crate) fn options(&self) -> RegistryOptions {
        RegistryOptions {
            authfile: self.authfile.clone(),
            cert_dir: self.cert_dir.clone(),
            tls_verify: match self.tls_verify {
                None => TlsVerify::Configured,
                Some(true) => TlsVerify::Required,
                Some(false) => TlsVerify::Off,
            },
            signature_policy: self.signature_policy.clone(),
            retries: self.retry,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// What to pull: anything that `podman pull` takes
    #[arg(value_name = "REF")]
    pub(crate) reference: String,
    /// Further names of the image in the repository [default: its names in podman's storage]
    #[arg(long, value_name = "NAME")]
    pub(crate) tag: Vec<String>,
    /// Pull into bootc's own storage below the system root, with bootc's credentials and tag
    #[arg(long)]
    pub(crate) bootc: bool,
    /// The system root for --bootc
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/sysroot",
        requires = "bootc"
    )]
    pub(crate) sysroot: PathBuf,
    /// The platform to choose from an index, as os/arch[/variant] [default: this host's]
    #[arg(long, value_name = "PLATFORM")]
    pub(crate) platform: Option<Platform>,
    /// Fail instead of copying a file that cannot be reflinked
    #[arg(long)]
    pub(crate) no_copy: bool,
    /// How many files to read at a time [default: one for each processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) jobs: Option<u16>,
    /// Import what refers to the image, too: signatures, bills of material
    #[arg(long)]
    pub(crate) with_referrers: bool,
    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
}
