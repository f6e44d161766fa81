//! Ctrl-C, SIGTERM and SIGHUP.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use importer::pull::PullError;
use importer::source::SourceError;
use importer::{Cancel, ImportError};

use crate::progress::{Channel, Ending};

/// What an interrupt does to an import.
///
/// While one is at work, the first asks it to stop, which takes back what it staged. The second ends the
/// process at once, as the first does at any other time: there is nothing to take back then, or the
/// next gc does it.
pub(crate) struct Interrupt {
    pub(crate) cancel: Cancel,
    at_work: Arc<AtomicBool>,
}

impl Interrupt {
    /// Watches for interrupts from now on. Once in a process.
    pub(crate) fn watch(channel: &Channel) -> anyhow::Result<Self> {
        let this = Self {
            cancel: Cancel::new(),
            at_work: Arc::default(),
        };
        let (cancel, at_work) = (this.cancel.clone(), Arc::clone(&this.at_work));
        let channel = channel.clone();
        ctrlc::set_handler(move || {
            if cancel.is_cancelled() || !at_work.load(Ordering::SeqCst) {
                channel.end(Ending::Interrupted, Some("interrupted"));
                std::process::exit(Ending::Interrupted.status().into());
            }
            cancel.cancel();
        })
        .context("cannot watch for interrupts")?;
        Ok(this)
    }

    /// Fails if an interrupt came too late for the work that is done.
    pub(crate) fn check(&self) -> Result<(), Interrupted> {
        if self.cancel.is_cancelled() {
            Err(Interrupted)
        } else {
            Ok(())
        }
    }

    /// Does what must be stopped in an orderly way.
    pub(crate) fn at_work<T>(&self, work: impl FnOnce() -> T) -> T {
        self.at_work.store(true, Ordering::SeqCst);
        let result = work();
        self.at_work.store(false, Ordering::SeqCst);
        result
    }
}

/// An interrupt came between two pieces of work.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Whether an interrupt is why a command failed.
pub(crate) fn is_cause(error: &anyhow::Error) -> bool {
    error.is::<Interrupted>()
        || error.chain().any(|cause| {
            matches!(cause.downcast_ref(), Some(ImportError::Cancelled))
                || matches!(cause.downcast_ref(), Some(PullError::Cancelled))
                || matches!(cause.downcast_ref(), Some(SourceError::Cancelled))
        })
}
