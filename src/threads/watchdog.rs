//! Finds out whether a thread gets on. The thread notes when it falls asleep and when it wakes, and another thread
//! looks at that now and then. If the thread does not sleep, because it has much to do, it is given something small to
//! do: if it does that, it gets on.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;

/// How often a thread is looked at while it is awake. It is stuck when it has made no progress for one such interval.
const INTERVAL: Duration = Duration::from_millis(50);

/// The watchdog of one thread. The watcher looks only while the thread is awake: if both are idle, neither wakes.
#[derive(Debug, Default)]
pub(crate) struct Watchdog {
    /// How often the thread has fallen asleep or woken. The number is odd while it sleeps.
    beats: AtomicU64,
    /// The thread is looked at now and then, so nobody has to be told when it wakes.
    is_watched: AtomicBool,
    woken: Notify,
    is_stuck: AtomicBool,
}

impl Watchdog {
    /// Called by the thread when it falls asleep.
    pub(crate) fn falls_asleep(&self) {
        self.beat(1);
    }

    /// Called by the thread when it wakes.
    pub(crate) fn wakes(&self) {
        self.beat(1);
        // Either this thread sees that nobody watches, or the watcher, when it stops to watch, sees the beat.
        if !self.is_watched.load(Ordering::SeqCst) {
            self.is_watched.store(true, Ordering::SeqCst);
            self.woken.notify_one();
        }
    }

    /// Called by the thread when it does what it was given to do.
    pub(crate) fn goes_on(&self) {
        self.beat(2);
    }

    fn beat(&self, count: u64) {
        // Only one thread writes, so load and store need not be one atomic step.
        let beats = self.beats.load(Ordering::Relaxed);
        self.beats.store(beats + count, Ordering::SeqCst);
    }

    /// Whether the thread was stuck when somebody last looked.
    pub(crate) fn is_stuck(&self) -> bool {
        self.is_stuck.load(Ordering::Relaxed)
    }

    /// Waits until the thread is stuck, and returns the beat at which it is. `give` makes the thread call
    /// [`Watchdog::goes_on`], as soon as it comes to that.
    pub(crate) async fn gets_stuck(&self, give: impl Fn()) -> u64 {
        let mut seen = self.beats();
        let mut given = false;
        loop {
            sleep(INTERVAL).await;
            let beats = self.beats();
            if beats != seen {
                seen = beats;
                given = false;
                continue;
            }
            if beats.is_multiple_of(2) && !given {
                give();
                given = true;
                continue;
            }
            if beats.is_multiple_of(2) {
                self.is_stuck.store(true, Ordering::Relaxed);
                return beats;
            }
            self.is_watched.store(false, Ordering::SeqCst);
            if self.beats() == beats {
                self.woken.notified().await;
            }
            seen = self.beats();
        }
    }

    /// Waits until the thread gets on from the beat `stuck_at`.
    pub(crate) async fn gets_on(&self, stuck_at: u64) {
        while self.beats() == stuck_at {
            sleep(INTERVAL).await;
        }
        self.is_stuck.store(false, Ordering::Relaxed);
    }

    fn beats(&self) -> u64 {
        self.beats.load(Ordering::SeqCst)
    }
}
