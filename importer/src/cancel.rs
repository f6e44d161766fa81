//! A flag that asks a running import to stop.
//!
//! It is set from a signal handler's thread or another part of a program and looked at between chunks
//! of file content, before each file that is written, and while an import waits for a lock. So an import
//! ends within milliseconds, drops its batch and with it what it staged. It never interrupts a durable
//! step half way; once names appear, the import goes on to its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Asks an import to stop; clones share the flag.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// A flag that is not set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the flag, for good.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// The flag itself, for whoever waits on behalf of the import.
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }

    /// The result, but an error after the flag was set is `cancelled`: whoever gave up because of the flag
    /// may have said so in other words.
    pub(crate) fn explain<T, E>(
        &self,
        result: Result<T, E>,
        cancelled: impl FnOnce() -> E,
    ) -> Result<T, E> {
        result.map_err(|error| {
            if self.is_cancelled() {
                cancelled()
            } else {
                error
            }
        })
    }

    /// Whether the flag is set.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
