//! A runtime that the host lends us to drive connections, and what must not wait on its threads.
//!
//! A thread of ours knows that it is one. Of a host's thread we only see which runtime it belongs to, and that can mean
//! two things: that the runtime runs on it, and stands still while the thread waits; or that it is beside the runtime
//! (`spawn_blocking`, or a `Handle::enter` somewhere), which is where one should wait. So we ask the runtime itself.

use std::cell::Cell;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tokio::runtime::{Handle, Id};
use tokio::task::unconstrained;

use crate::error::{Error, Result};
use crate::threads::{self, END_GRACE};

thread_local! {
    /// Of which runtime this thread has run tasks of ours.
    static RAN_FOR: Cell<Option<Id>> = const { Cell::new(None) };
}

#[derive(Debug)]
pub(crate) struct LentRuntime {
    handle: Handle,
    /// It has run a task of ours, on some thread.
    was_seen: AtomicBool,
}

impl LentRuntime {
    pub(crate) fn new(handle: Handle) -> Self {
        Self {
            handle,
            was_seen: AtomicBool::new(false),
        }
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Notes on which thread a task of it runs.
    pub(crate) fn seen(&self) {
        RAN_FOR.set(Some(self.handle.id()));
        self.was_seen.store(true, Ordering::Relaxed);
    }

    /// Whether the runtime gets on while this thread waits. Blocks for at most a second, to find out; less if `awaited`
    /// is ready before, or the deadline passes.
    ///
    /// # Errors
    /// [`Error::WouldDeadlock`]: it does not.
    pub(crate) fn check_gets_on(
        self: &Arc<Self>,
        awaited: impl Future,
        deadline: Option<Instant>,
    ) -> Result<()> {
        if !self.may_run_here() {
            return Ok(());
        }
        let probed = Arc::clone(self);
        let probe = self.handle.spawn(async move { probed.seen() });
        // What comes first is the answer; nothing here is to end the thread's turn.
        let answer = unconstrained(async {
            tokio::select! {
                biased;
                _ = awaited => {}
                // Or the runtime has been shut down: then nothing is to be expected of it.
                _ = probe => {}
            }
        });
        let patience = threads::deadline(END_GRACE);
        let until = deadline.map_or(patience, |deadline| deadline.min(patience));
        if threads::block_on(answer, Some(until)).is_some() || until < patience {
            return Ok(());
        }
        // It may be a thread beside the runtime, and another one holds that up.
        let was_here = RAN_FOR.get() == Some(self.handle.id());
        if was_here || !self.was_seen.load(Ordering::Relaxed) {
            return Err(Error::WouldDeadlock);
        }
        Ok(())
    }

    fn may_run_here(&self) -> bool {
        let is_this = |id| id == self.handle.id();
        Handle::try_current().is_ok_and(|current| is_this(current.id()))
            || RAN_FOR.get().is_some_and(is_this)
    }
}
