//! Trying again, with pauses that grow, a bounded number of times.

use std::time::{Duration, Instant};

use super::session::Failure;
use crate::cancel::Cancel;
use crate::child::LOOK;

/// How often to try again where nobody says so.
const RETRIES: u32 = 3;
/// The first pause, and the longest.
const PAUSE: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(20);

/// How many attempts are left.
#[derive(Debug)]
pub(super) struct Attempts {
    retries: u32,
    used: u32,
}

impl Attempts {
    pub(super) fn new(retries: Option<u32>) -> Self {
        Self {
            retries: retries.unwrap_or(RETRIES),
            used: 0,
        }
    }

    /// Something came of the last attempt: all are left again.
    pub(super) fn succeeded(&mut self) {
        self.used = 0;
    }

    /// Pauses, if the failure may pass by itself and there is an attempt left; else gives it back.
    pub(super) fn pause(&mut self, failure: Failure, cancel: &Cancel) -> Result<(), Failure> {
        if !failure.may_pass() || self.used == self.retries {
            return Err(failure);
        }
        let pause = pause(self.used);
        self.used += 1;
        tracing::warn!(
            "{failure}; trying again in {:.1} s ({} of {})",
            pause.as_secs_f64(),
            self.used,
            self.retries
        );
        let end = Instant::now() + pause;
        loop {
            if cancel.is_cancelled() {
                return Err(Failure::Cancelled);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(LOOK));
        }
    }
}

/// The pause after so many others.
fn pause(before: u32) -> Duration {
    PAUSE
        .saturating_mul(2u32.saturating_pow(before))
        .min(PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_are_bounded() {
        let pauses: Vec<_> = (0..4).map(|before| pause(before).as_millis()).collect();
        assert_eq!(pauses, [500, 1000, 2000, 4000]);
        assert_eq!(pause(31), PAUSE_MAX);
        assert_eq!(pause(u32::MAX), PAUSE_MAX);
    }

    #[test]
    fn attempts_end_and_what_cannot_pass_ends_at_once() {
        let cancel = Cancel::new();
        let transient = || Failure::said("unexpected EOF".to_owned());
        let mut none = Attempts::new(Some(0));
        assert!(none.pause(transient(), &cancel).is_err());
        let mut one = Attempts::new(Some(1));
        assert!(
            one.pause(Failure::said("manifest unknown".to_owned()), &cancel)
                .is_err()
        );
        one.pause(transient(), &cancel).unwrap();
        assert!(one.pause(transient(), &cancel).is_err());
        one.succeeded();
        cancel.cancel();
        let stopped = one.pause(transient(), &cancel);
        assert!(matches!(stopped, Err(Failure::Cancelled)));
    }
}
