//! Telling the caller how far long work has come.

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for other processes: to leave the repository, or to be done with what goes. Counts nothing.
    Waiting,
    /// Reading what the roots need. Counts streams and images.
    Marking,
    /// Listing objects. Counts the 256 directories of them.
    Listing,
    /// Removing names. Counts them.
    RemovingNames,
    /// Removing objects. Counts them.
    RemovingObjects,
    /// Checking objects. Counts the 256 directories of them.
    CheckingObjects,
    /// Checking streams and images. Counts them.
    CheckingNames,
    /// Making layers and images again and comparing them. Counts them.
    CheckingMeaning,
    /// Having objects stored again. Counts them.
    Mending,
}

/// Hears how far long work has come, possibly from several threads at once. `()` doesn't listen.
pub trait Progress: Sync {
    /// A phase begins; it will have `total` steps, if that is known.
    fn begin(&self, phase: Phase, total: Option<u64>) {
        let _ = (phase, total);
    }

    /// That many more steps of the phase are done.
    fn advance(&self, steps: u64) {
        let _ = steps;
    }
}

impl Progress for () {}
