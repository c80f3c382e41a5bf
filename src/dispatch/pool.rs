//! Threads for handlers that block.

use std::collections::VecDeque;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Handler, call};
use crate::exchange::Exchange;
use crate::runtime::{Role, Thread, spawn_thread};

/// How long a thread without work stays.
const IDLE: Duration = Duration::from_secs(10);

/// At most so many threads, started when a request comes and none is idle.
pub(crate) struct Pool {
    handler: Arc<dyn Handler>,
    limit: NonZeroUsize,
    server: u64,
    work: Arc<Work>,
}

#[derive(Default)]
struct Work {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Exchange>,
    threads: Vec<Thread>,
    started: usize,
    running: usize,
    idle: usize,
    refusing: bool,
    closed: bool,
}

impl Pool {
    pub(crate) fn new(handler: Arc<dyn Handler>, limit: NonZeroUsize, server: u64) -> Self {
        Self {
            handler,
            limit,
            server,
            work: Arc::default(),
        }
    }

    pub(crate) fn push(&self, exchange: Exchange) {
        let mut state = self.work.lock();
        if state.refusing {
            drop(state);
            return exchange.refuse();
        }
        state.queue.push_back(exchange);
        if state.idle >= state.queue.len() {
            drop(state);
            self.work.changed.notify_one();
        } else if state.running < self.limit.get() {
            self.start_thread(&mut state);
        }
    }

    fn start_thread(&self, state: &mut State) {
        let name = format!("httpdown-h{}", state.started);
        let (work, handler) = (Arc::clone(&self.work), Arc::clone(&self.handler));
        match spawn_thread(&name, self.server, Role::Other, move || work.run(&*handler)) {
            Ok(thread) => {
                state.started += 1;
                state.running += 1;
                state.threads.retain(|thread| !thread.is_finished());
                state.threads.push(thread);
            }
            // The threads that there are will come to it. If there is none at all, the request fails, visibly.
            Err(_) if state.running > 0 => {}
            Err(_) => drop(state.queue.pop_back()),
        }
    }

    /// What no handler has begun; from now on nothing is taken any more.
    pub(crate) fn refuse_queued(&self) -> Vec<Exchange> {
        let mut state = self.work.lock();
        state.refusing = true;
        state.queue.drain(..).collect()
    }

    pub(crate) fn close(&self, deadline: Instant) {
        let threads = {
            let mut state = self.work.lock();
            state.refusing = true;
            state.closed = true;
            std::mem::take(&mut state.threads)
        };
        self.work.changed.notify_all();
        for thread in threads {
            thread.join(deadline);
        }
    }
}

impl Work {
    fn run(&self, handler: &dyn Handler) {
        let mut state = self.lock();
        loop {
            if let Some(exchange) = state.queue.pop_front() {
                drop(state);
                let fate = Arc::clone(exchange.fate());
                call(handler, exchange, &fate);
                drop(fate);
                state = self.lock();
                continue;
            }
            if state.closed {
                break;
            }
            state.idle += 1;
            let (back, waited) = self
                .changed
                .wait_timeout(state, IDLE)
                .unwrap_or_else(PoisonError::into_inner);
            state = back;
            state.idle -= 1;
            if waited.timed_out() && state.queue.is_empty() {
                break;
            }
        }
        state.running -= 1;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}
