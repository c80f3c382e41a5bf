//! Requests that the host takes itself, on its own threads or from its own event loop.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Instant;

use once_cell::sync::OnceCell;

use crate::error::{Error, Result};
use crate::exchange::Exchange;
use crate::sys::EventFd;

/// Requests waiting to be taken. Clones are the same queue; any thread may use it.
///
/// Requests can be taken until a kill; what nobody has taken by then is answered with 503.
#[derive(Clone)]
pub struct RequestQueue(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
    /// Readable while requests wait and after the end; made when somebody asks for it.
    readable: OnceCell<EventFd>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Exchange>,
    ended: bool,
    /// How many unfinished requests each thread has taken.
    holders: HashMap<ThreadId, usize>,
}

/// Says, as long as it lives, that a thread has taken a request and not finished it.
#[derive(Debug)]
pub(crate) struct Taken {
    queue: RequestQueue,
    thread: ThreadId,
}

impl RequestQueue {
    pub(crate) fn new() -> Self {
        Self(Arc::default())
    }

    pub(crate) fn push(&self, exchange: Exchange) {
        let mut state = self.lock();
        if state.ended {
            drop(state);
            return exchange.refuse();
        }
        state.queue.push_back(exchange);
        if state.queue.len() == 1 {
            self.signal();
        }
        drop(state);
        self.0.changed.notify_one();
    }

    /// Takes up to `limit` requests, and waits until `deadline` for the first (`None`: as long as the server lives).
    ///
    /// The calling thread counts as their holder until each is finished: a blocking stop or wait on it would wait for
    /// itself, and fails.
    ///
    /// # Errors
    /// [`Error::Stopped`] when no request can come any more, [`Error::WouldBlock`] when the deadline has passed.
    pub fn take(&self, limit: usize, deadline: Option<Instant>) -> Result<Vec<Exchange>> {
        if limit == 0 {
            return Err(Error::InvalidArgument("room for no request".into()));
        }
        let mut state = self.lock();
        while state.queue.is_empty() {
            if state.ended {
                return Err(Error::Stopped);
            }
            state = match deadline {
                None => self
                    .0
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(Error::WouldBlock);
                    }
                    self.0
                        .changed
                        .wait_timeout(state, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
        let count = limit.min(state.queue.len());
        let mut exchanges: Vec<_> = state.queue.drain(..count).collect();
        if state.queue.is_empty()
            && !state.ended
            && let Some(readable) = self.0.readable.get()
        {
            readable.clear();
        }
        let thread = thread::current().id();
        *state.holders.entry(thread).or_default() += count;
        drop(state);
        for exchange in &mut exchanges {
            let queue = self.clone();
            exchange.taken_by(Taken { queue, thread });
        }
        Ok(exchanges)
    }

    /// A descriptor for an event loop: readable while requests wait, and after the end. It belongs to the queue.
    ///
    /// # Errors
    /// If no descriptor can be had.
    pub fn descriptor(&self) -> Result<BorrowedFd<'_>> {
        let state = self.lock();
        let readable = self.0.readable.get_or_try_init(|| -> io::Result<_> {
            let readable = EventFd::new()?;
            if state.ended || !state.queue.is_empty() {
                readable.set();
            }
            Ok(readable)
        });
        drop(state);
        readable
            .map(EventFd::as_fd)
            .map_err(|error| Error::io("making the queue's descriptor", error))
    }

    /// Whether the calling thread has taken a request that is not finished.
    pub(crate) fn is_held_here(&self) -> bool {
        self.lock().holders.contains_key(&thread::current().id())
    }

    /// No more requests will come; returns those that nobody has taken.
    pub(crate) fn end(&self) -> Vec<Exchange> {
        let mut state = self.lock();
        state.ended = true;
        self.signal();
        let left = state.queue.drain(..).collect();
        drop(state);
        self.0.changed.notify_all();
        left
    }

    fn signal(&self) {
        if let Some(readable) = self.0.readable.get() {
            readable.set();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        if let Some(count) = state.holders.get_mut(&self.thread) {
            *count -= 1;
            if *count == 0 {
                state.holders.remove(&self.thread);
            }
        }
    }
}

impl fmt::Debug for RequestQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestQueue")
            .field("waiting", &self.lock().queue.len())
            .finish_non_exhaustive()
    }
}
