//! A runtime that the host lends us to drive connections, and what must not wait on its threads.
//!
//! Our own threads are marked as ours. Of a host's thread we only see which runtime it belongs to, and that can mean
//! two things. Either the runtime runs on the thread, and stands still while the thread waits; or the thread is beside
//! the runtime (`spawn_blocking`, or a `Handle::enter` somewhere), which is where one should wait. So we ask the
//! runtime itself.

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
    /// The runtime for which this thread has run our tasks.
    static RAN_FOR: Cell<Option<Id>> = const { Cell::new(None) };
}

#[derive(Debug)]
pub(crate) struct LentRuntime {
    handle: Handle,
    /// The runtime has run a task of ours, on some thread.
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

    /// Notes that the current thread runs a task on this runtime.
    pub(crate) fn seen(&self) {
        RAN_FOR.set(Some(self.handle.id()));
        self.was_seen.store(true, Ordering::Relaxed);
    }

    /// Checks whether the runtime gets on while this thread waits. To find out, blocks for at most a second; less if
    /// `awaited` is ready before, or the deadline passes.
    ///
    /// # Errors
    /// [`Error::WouldDeadlock`]: the runtime does not get on.
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
        // What comes first is the answer. Nothing here may end the thread's turn, so tokio's budget does not apply.
        let answer = unconstrained(async {
            tokio::select! {
                biased;
                _ = awaited => {}
                // This is also ready if the runtime has been shut down: then nothing can be expected of it.
                _ = probe => {}
            }
        });
        let patience = threads::deadline(END_GRACE);
        let until = deadline.map_or(patience, |deadline| deadline.min(patience));
        if threads::block_on(answer, Some(until)).is_some() || until < patience {
            return Ok(());
        }
        // The thread may be beside the runtime, and another thread may hold the runtime up.
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
