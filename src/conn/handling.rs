//! How long a request is with the program, if somebody wants to know when that is too long ([`handler_timeout`]).
//!
//! It is advice: nothing is cut. The connection's task has a deadline for it, in the one table of [`super::deadlines`],
//! and is late if its thread is blocked. So whoever looks first counts the request: this task, the end of the request,
//! or the control thread while an I/O thread does not get on.
//!
//! [`handler_timeout`]: crate::Builder::handler_timeout

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::request::Parts;
use http::{Method, Uri};
use tokio::time::Instant;

use crate::events::LogLevel;
use crate::record::Recording;
use crate::shared::Shared;

use super::deadlines::{Deadline, Deadlines};

/// It was found to be overdue, and counted.
const OVERDUE: u8 = 1;
/// The connection's task has told that.
const TOLD: u8 = 2;
/// The program has given the whole answer, or nobody can get one any more.
const ENDED: u8 = 4;

/// A request that the program has.
#[derive(Debug)]
pub(super) struct Handling {
    since: Instant,
    limit: Duration,
    state: AtomicU8,
    method: Method,
    target: Uri,
    recording: Option<Arc<Recording>>,
}

impl Handling {
    pub(super) fn new(head: &Parts, recording: Option<&Arc<Recording>>, limit: Duration) -> Self {
        Self {
            since: Instant::now(),
            limit,
            state: AtomicU8::new(0),
            method: head.method.clone(),
            target: head.uri.clone(),
            recording: recording.cloned(),
        }
    }

    /// Whether the request is overdue, or was when it ended.
    pub(super) fn is_overdue(&self) -> bool {
        let state = self.state.load(Ordering::Acquire);
        state & OVERDUE != 0 || state & ENDED == 0 && self.is_late()
    }

    /// The request ends, perhaps late.
    pub(super) fn end(&self, shared: &Shared) {
        self.look(shared);
        self.state.fetch_or(ENDED, Ordering::AcqRel);
    }

    /// If the request is overdue, counts it, once. Any thread may look.
    pub(super) fn look(&self, shared: &Shared) {
        let is_open = self.state.load(Ordering::Relaxed) & (OVERDUE | ENDED) == 0;
        if is_open
            && self.is_late()
            && self.state.fetch_or(OVERDUE, Ordering::AcqRel) & OVERDUE == 0
        {
            self.count(shared);
        }
    }

    #[cold]
    fn count(&self, shared: &Shared) {
        shared.overdue.add(1);
        shared.events.sum("handler.overdue", 1.0);
        if let Some(recording) = &self.recording {
            recording.is_overdue();
        }
        let (now, level) = (shared.clock.now(), LogLevel::Warning);
        let what = "a request is overdue (handler_timeout)";
        let throttle = &shared.overdue_requests;
        let why = format_args!("{} {}", self.method, self.target);
        shared.events.log_rarely(throttle, now, level, what, &why);
    }

    fn is_late(&self) -> bool {
        self.since.elapsed() >= self.limit
    }
}

/// The request on a connection that the program has: there is at most one.
#[derive(Debug, Default)]
pub(super) struct Handled(Mutex<Option<Arc<Handling>>>);

impl Handled {
    pub(super) fn set(&self, handling: Option<Arc<Handling>>) {
        let before = std::mem::replace(&mut *self.lock(), handling);
        drop(before);
    }

    pub(super) fn get(&self) -> Option<Arc<Handling>> {
        self.lock().clone()
    }

    /// To be called whenever the connection's task runs. Ready, once for each request, when it is overdue.
    pub(super) fn poll_overdue(
        &self,
        shared: &Shared,
        deadlines: &mut Deadlines,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        const DEADLINE: Deadline = Deadline::Handler;
        let Some(handling) = self.get() else {
            return Poll::Pending;
        };
        if handling.state.load(Ordering::Acquire) & (TOLD | ENDED) != 0 {
            return Poll::Pending;
        }
        // The deadline of an earlier request stands until it has passed: to move it with each request would cost more.
        let mut stands = if deadlines.is_set(DEADLINE) {
            deadlines.poll_again(DEADLINE, cx)
        } else {
            Poll::Ready(())
        };
        while stands.is_ready() {
            if handling.is_late() {
                deadlines.clear(DEADLINE);
                handling.look(shared);
                handling.state.fetch_or(TOLD, Ordering::AcqRel);
                return Poll::Ready(());
            }
            deadlines.set_from(handling.since, DEADLINE, handling.limit);
            stands = deadlines.poll(DEADLINE, cx);
        }
        Poll::Pending
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Handling>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
