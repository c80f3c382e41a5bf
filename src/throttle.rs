//! Limits how often a repeated failure is logged. One line says more than the same line many times a second.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The interval at which a lasting failure is logged.
const INTERVAL: Duration = Duration::from_secs(60);

/// An operation that can fail again and again. Any thread may report a failure.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    state: Mutex<State>,
    /// The failure was logged, and it was not logged since that the operation works again.
    lasts: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    told_at: Option<Duration>,
    since: u64,
}

impl Throttle {
    /// Says that the operation has failed, at this time of the server's clock. If this should be logged, returns the
    /// number of failures since the last log line, including this one.
    pub(crate) fn fails(&self, now: Duration) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.since += 1;
        if state
            .told_at
            .is_some_and(|told| now.saturating_sub(told) < INTERVAL)
        {
            return None;
        }
        state.told_at = Some(now);
        self.lasts.store(true, Ordering::Relaxed);
        Some(std::mem::take(&mut state.since))
    }

    /// Says that the operation works. If this should be logged, returns the number of failures since the last log line
    /// about a failure. A failure that comes and goes is logged as often as a failure that lasts.
    pub(crate) fn works(&self) -> Option<u64> {
        // Mostly the operation has worked before, too.
        if !self.lasts.load(Ordering::Relaxed) || !self.lasts.swap(false, Ordering::Relaxed) {
            return None;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Some(std::mem::take(&mut state.since))
    }
}
