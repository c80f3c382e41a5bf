//! Whether a thread gets on: it notes when it falls asleep and when it wakes, and another looks now and then. One that
//! does not sleep, because it has much to do, is given something small to do: if it comes to that, it gets on.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;

/// How often a thread is looked at while it is awake. It is stuck when it has been so for one such time.
const INTERVAL: Duration = Duration::from_millis(50);

/// One thread's. Who looks does so only while the thread is awake: if both are idle, nobody wakes.
#[derive(Debug, Default)]
pub(crate) struct Watchdog {
    /// How often the thread has fallen asleep or woken: odd while it sleeps.
    beats: AtomicU64,
    /// It is looked at now and then: nobody has to be told when it wakes.
    is_watched: AtomicBool,
    woken: Notify,
    is_stuck: AtomicBool,
}

impl Watchdog {
    /// By the thread, when it falls asleep.
    pub(crate) fn falls_asleep(&self) {
        self.beat(1);
    }

    /// By the thread, when it wakes.
    pub(crate) fn wakes(&self) {
        self.beat(1);
        // Either this sees that nobody watches, or who stops to watch sees the beat.
        if !self.is_watched.load(Ordering::SeqCst) {
            self.is_watched.store(true, Ordering::SeqCst);
            self.woken.notify_one();
        }
    }

    /// By the thread, when it comes to what it was given to do.
    pub(crate) fn goes_on(&self) {
        self.beat(2);
    }

    fn beat(&self, count: u64) {
        // One thread writes: it need not be one step.
        let beats = self.beats.load(Ordering::Relaxed);
        self.beats.store(beats + count, Ordering::SeqCst);
    }

    /// As it was found when somebody last looked.
    pub(crate) fn is_stuck(&self) -> bool {
        self.is_stuck.load(Ordering::Relaxed)
    }

    /// Waits until the thread is stuck, and says at which beat. `give` has it call [`Watchdog::goes_on`], as soon as it comes
    /// to that.
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

    /// Waits until it gets on from there.
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
