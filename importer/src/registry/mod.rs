//! What podman and skopeo are told about registries, and what their messages mean.
//!
//! Both programs use the same library and take the same options; neither has error codes. So the
//! options are one type here, and the reading of messages ([`Problem`]) is one function.

mod options;
mod problem;

pub use options::{RegistryOptions, TlsVerify};
pub use problem::Problem;
pub(crate) use problem::{and_remedy, complaint};
