//! How many connections are busy, and whether a crowd of them has gone: then much of the memory that they used is free.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// Fewer connections than this leave too little behind. A busy connection has some 20 KiB, and at most some 1 MiB.
const MANY: usize = 256;

/// The connections that have a task, and so may have buffers.
#[derive(Debug, Default)]
pub(crate) struct Crowd {
    now: AtomicUsize,
    /// The most that there have been since the last call of [`Crowd::disperse`].
    most: AtomicUsize,
    gone: Notify,
}

/// A busy connection, until it is dropped.
#[derive(Debug)]
pub(crate) struct InCrowd<'a>(&'a Crowd);

impl Crowd {
    pub(crate) fn join(&self) -> InCrowd<'_> {
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        // A read first: no thread writes where all are only as many as before.
        if now > self.most.load(Ordering::Relaxed) {
            self.most.fetch_max(now, Ordering::Relaxed);
        }
        InCrowd(self)
    }

    /// Whether there were many, and a quarter of them is left at most.
    pub(crate) fn has_gone(&self) -> bool {
        let (now, most) = (
            self.now.load(Ordering::Relaxed),
            self.most.load(Ordering::Relaxed),
        );
        most >= MANY && now <= most / 4
    }

    /// Waits until [`Crowd::has_gone`] was true.
    pub(crate) async fn gone(&self) {
        self.gone.notified().await;
    }

    /// Those that are here now are the first of the next crowd.
    pub(crate) fn disperse(&self) {
        let now = self.now.load(Ordering::Relaxed);
        self.most.store(now, Ordering::Relaxed);
    }
}

impl Drop for InCrowd<'_> {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::Relaxed);
        if self.0.has_gone() {
            self.0.gone.notify_one();
        }
    }
}
