//! How long a client may make its request wait.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant as Start};

use once_cell::sync::Lazy;
use tokio::time::Instant;

use super::deadlines::{Deadline, Deadlines};

/// Time that a client may be waited for. Waiting uses it up, and bytes earn it back, at the rate that is asked of the
/// client, but never more than there was at first. So a client that does nothing is out of time after that, and one
/// that keeps the rate never is.
///
/// What bytes earn is counted only when the time is over, so a busy connection pays nothing for it.
#[derive(Debug)]
pub(super) struct Patience {
    /// Its deadline is not moved with each wait, but looked at when it has passed.
    deadline: Deadline,
    limit: Duration,
    /// Bytes a second.
    rate: u64,
    left: Duration,
    /// How much of the waiting has been counted.
    counted: u32,
    /// How far the client was when its bytes were counted last.
    position: u64,
}

impl Patience {
    pub(super) fn new(deadline: Deadline, limit: Duration, rate: u64) -> Self {
        Self {
            deadline,
            limit,
            rate,
            left: limit,
            counted: 0,
            position: 0,
        }
    }

    /// To be called whenever the task runs. `is_client_next`: something is to come from the client, or to be taken by
    /// it, whether anybody waits for that, as `waits` tells, or not. `position` says how many bytes have come from it,
    /// or have gone to it. Ready when the time is over.
    #[inline]
    pub(super) fn poll_end(
        &mut self,
        is_client_next: bool,
        waits: &Waits,
        position: impl Fn() -> u64,
        deadlines: &mut Deadlines,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        if is_client_next {
            return self.poll_waiting(waits, position, deadlines, cx);
        }
        // What nobody polls would never be set again.
        if waits.is_timed() && deadlines.poll(self.deadline, cx).is_ready() {
            waits.set_timed(false);
        }
        Poll::Pending
    }

    #[inline(never)]
    fn poll_waiting(
        &mut self,
        waits: &Waits,
        position: impl Fn() -> u64,
        deadlines: &mut Deadlines,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        loop {
            if self.left == self.limit {
                self.position = position();
            }
            let waited = waits.total();
            let millis = waited.wrapping_sub(self.counted);
            self.left = self
                .left
                .saturating_sub(Duration::from_millis(millis.into()));
            self.counted = waited;
            if self.left.is_zero() {
                self.earn(position());
            }
            if self.left.is_zero() {
                waits.set_timed(false);
                deadlines.clear(self.deadline);
                return Poll::Ready(());
            }
            if !waits.is_timed() {
                deadlines.set(self.deadline, self.left);
                waits.set_timed(true);
            }
            ready!(deadlines.poll(self.deadline, cx));
            waits.set_timed(false);
        }
    }

    fn earn(&mut self, position: u64) {
        let bytes = position.saturating_sub(self.position);
        let millis = bytes.saturating_mul(1_000) / self.rate;
        self.left = Duration::from_millis(millis).min(self.limit);
        self.position = position;
    }
}

/// How long somebody has waited for a client, in milliseconds. Shorter waits count as none: whoever sends a byte in
/// each keeps any rate. The numbers begin again after 49 days, and only their differences count. Any one thread at a
/// time may begin and end.
#[derive(Debug, Default)]
pub(super) struct Waits {
    /// Since when somebody waits: see [`now`]. 0: nobody does.
    since: AtomicU32,
    /// How long they have waited before.
    before: AtomicU32,
    /// A deadline is set. Who waits reads it, perhaps on another thread.
    timed: AtomicBool,
}

impl Waits {
    /// Returns whether the connection's task must be told, because it would not look.
    pub(super) fn begin(&self) -> bool {
        if self.since.load(Ordering::Relaxed) == 0 {
            self.since.store(now(), Ordering::SeqCst);
        }
        !self.is_timed()
    }

    pub(super) fn end(&self) {
        let since = self.since.load(Ordering::Relaxed);
        if since != 0 {
            let waited = now().wrapping_sub(since);
            self.before.fetch_add(waited, Ordering::Relaxed);
            self.since.store(0, Ordering::Release);
        }
    }

    fn total(&self) -> u32 {
        let since = self.since.load(Ordering::SeqCst);
        let before = self.before.load(Ordering::Relaxed);
        if since == 0 {
            before
        } else {
            before.wrapping_add(now().wrapping_sub(since))
        }
    }

    fn is_timed(&self) -> bool {
        self.timed.load(Ordering::SeqCst)
    }

    fn set_timed(&self, is_timed: bool) {
        self.timed.store(is_timed, Ordering::SeqCst);
    }
}

/// The time in milliseconds since some moment; never 0. It is tokio's, so that tests can set it.
#[allow(clippy::cast_possible_truncation, reason = "it begins again")]
fn now() -> u32 {
    static START: Lazy<Start> = Lazy::new(Start::now);
    let start = *START;
    let since = Instant::now().into_std().saturating_duration_since(start);
    (since.as_millis() as u32).max(1)
}
