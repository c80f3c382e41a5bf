//! Requests that the host takes itself, on its own threads or from its own event loop.

use std::cell::RefCell;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use super::line::{Call, Line};
use crate::error::{Error, Result};
use crate::exchange::Exchange;
use crate::home::{TurnEnd, at_turn_end};

/// Requests waiting to be taken. Clones are the same queue; any thread may use it.
///
/// Requests can be taken until a kill; what nobody has taken by then is answered with 503.
#[derive(Clone)]
pub struct RequestQueue(Arc<Line>);

/// How many unfinished requests a thread has taken.
type Held = Arc<AtomicUsize>;

thread_local! {
    /// By queue. An allocation that somebody still knows, even if only weakly, is not used again for another queue.
    static HELD: RefCell<Vec<(Weak<Line>, Held)>> = const { RefCell::new(Vec::new()) };
}

/// Says, as long as it lives, that a thread has taken a request and not finished it.
#[derive(Debug)]
pub(crate) struct Taken(Held);

impl RequestQueue {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Line::new(0)))
    }

    pub(crate) fn push(&self, exchange: Exchange) {
        if self.0.push(exchange) {
            at_turn_end(&self.0);
        }
    }

    /// Takes up to `limit` requests, and waits until `deadline` for the first (`None`: as long as the server lives).
    ///
    /// The calling thread counts as their holder until each is finished: a blocking stop or wait on it would wait for
    /// itself, and fails. A thread of a host's runtime that drives connections is to wait here only briefly, if at all:
    /// the requests that it waits for may have to come from it.
    ///
    /// # Errors
    /// [`Error::Stopped`] when no request can come any more, [`Error::WouldBlock`] when the deadline has passed.
    pub fn take(&self, limit: usize, deadline: Option<Instant>) -> Result<Vec<Exchange>> {
        if limit == 0 {
            return Err(Error::InvalidArgument("room for no request".into()));
        }
        let (mut exchanges, next): (Vec<_>, _) = self.0.take(deadline, |requests| {
            requests.drain(..limit.min(requests.len())).collect()
        })?;
        wake(next);
        let held = self.held_here();
        held.fetch_add(exchanges.len(), Ordering::Relaxed);
        for exchange in &mut exchanges {
            exchange.taken_by(Taken(Arc::clone(&held)));
        }
        Ok(exchanges)
    }

    /// A descriptor for an event loop: readable while requests wait, and after the end. It belongs to the queue.
    ///
    /// # Errors
    /// If no descriptor can be had.
    pub fn descriptor(&self) -> Result<BorrowedFd<'_>> {
        let descriptor = self.0.descriptor();
        descriptor.map_err(|error| Error::io("making the queue's descriptor", error))
    }

    /// Whether the calling thread has taken a request that is not finished.
    pub(crate) fn is_held_here(&self) -> bool {
        let held = HELD.try_with(|held| self.find(&held.borrow()));
        matches!(held, Ok(Some(held)) if held.load(Ordering::Relaxed) > 0)
    }

    /// The calling thread's count.
    fn held_here(&self) -> Held {
        let find_or_add = |held: &RefCell<Vec<_>>| {
            let mut held = held.borrow_mut();
            self.find(&held).unwrap_or_else(|| {
                held.retain(|(line, _): &(Weak<Line>, _)| line.strong_count() > 0);
                let count = Held::default();
                held.push((Arc::downgrade(&self.0), Arc::clone(&count)));
                count
            })
        };
        // A thread that is ending, and has no locals any more, waits for no server either.
        HELD.try_with(find_or_add).unwrap_or_default()
    }

    fn find(&self, held: &[(Weak<Line>, Held)]) -> Option<Held> {
        let is_this = |line: &Weak<Line>| line.as_ptr() == Arc::as_ptr(&self.0);
        let (_, count) = held.iter().find(|(line, _)| is_this(line))?;
        Some(Arc::clone(count))
    }

    /// No more requests will come; returns those that nobody has taken.
    pub(crate) fn end(&self) -> impl Iterator<Item = Exchange> + use<> {
        self.0.end().into_iter()
    }
}

fn wake(call: Call) {
    // A line without room asks for no thread to be started.
    if let Call::Wake(thread) = call {
        thread.wake();
    }
}

impl TurnEnd for Line {
    fn turn_ends(self: Arc<Self>) {
        wake(self.call());
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for RequestQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestQueue")
            .field("waiting", &self.0.len())
            .finish_non_exhaustive()
    }
}
