//! What fails again and again is told now and then: a log of the same line, many times a second, tells less than one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How often a failure that lasts is told.
const INTERVAL: Duration = Duration::from_secs(60);

/// Something that can fail again and again. Any thread may say that it has.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    state: Mutex<State>,
    /// It was told that it fails, and not that it works.
    lasts: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    told_at: Option<Duration>,
    since: u64,
}

impl Throttle {
    /// It has failed, at this time of the server's clock. If that is to be told: how often it has since it was told
    /// last, this time included.
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

    /// It works. If that is to be told: how often it has failed since it was told that it does. What comes and goes
    /// many times is told as often as what lasts.
    pub(crate) fn works(&self) -> Option<u64> {
        // Mostly it has worked before, too.
        if !self.lasts.load(Ordering::Relaxed) || !self.lasts.swap(false, Ordering::Relaxed) {
            return None;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Some(std::mem::take(&mut state.since))
    }
}
