//! One module for each group of commands.

pub(crate) mod artifacts;
pub(crate) mod boot;
pub(crate) mod df;
pub(crate) mod doctor;
pub(crate) mod fsck;
pub(crate) mod gc;
pub(crate) mod images;
pub(crate) mod import;
pub(crate) mod init;
pub(crate) mod inspect;
pub(crate) mod keep;
pub(crate) mod manual;
pub(crate) mod mount;
pub(crate) mod publish;
pub(crate) mod pull;
pub(crate) mod upgrade_format;
pub(crate) mod verify;

use std::path::PathBuf;

use crate::output::Style;
use crate::progress::Channel;

/// What every command knows.
pub(crate) struct Context {
    /// The repository's directory, which need not exist yet.
    pub(crate) repo: PathBuf,
    /// How to print the result.
    pub(crate) style: Style,
    /// How to tell everything else.
    pub(crate) channel: Channel,
}
