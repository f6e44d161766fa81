//! A flag that asks a running import to stop.
//!
//! It is set from a signal handler's thread or another part of a program and looked at between chunks
//! of file content, so an import ends within milliseconds, drops its batch and with it what it staged.
//! It never interrupts a durable step half way.

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

    /// Whether the flag is set.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
