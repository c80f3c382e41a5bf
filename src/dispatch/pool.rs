//! Threads for handlers that block.

use std::collections::VecDeque;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::request::Exchange;
use crate::sys::SignalMask;
use crate::threads::turns::{TurnEnd, at_turn_end};
use crate::threads::{Role, StandIn, Thread, join_all, set_stand_in, spawn_thread};

use super::work_queue::{Call, WorkQueue};
use super::{Handler, call};

/// How long a thread without work waits before it ends.
const IDLE: Duration = Duration::from_secs(10);

/// A limited number of threads. A thread is started when a request comes and no thread is idle.
pub(crate) struct Pool {
    handler: Arc<dyn Handler>,
    limit: NonZeroUsize,
    server: u64,
    mask: SignalMask,
    waiting: WorkQueue,
    threads: Mutex<Threads>,
}

#[derive(Default)]
struct Threads {
    alive: Vec<Thread>,
    started: usize,
    closed: bool,
}

impl Pool {
    /// `mask` has the signals that the pool's threads block.
    pub(crate) fn new(
        handler: Arc<dyn Handler>,
        limit: NonZeroUsize,
        server: u64,
        mask: SignalMask,
    ) -> Self {
        Self {
            handler,
            limit,
            server,
            mask,
            waiting: WorkQueue::new(limit.get()),
            threads: Mutex::default(),
        }
    }

    pub(crate) fn push(self: &Arc<Self>, exchange: Exchange) {
        if self.waiting.push(exchange) {
            at_turn_end(self);
        }
    }

    /// Returns the requests that no handler has begun. From now on the pool takes no more requests.
    pub(crate) fn refuse_queued(&self) -> impl Iterator<Item = Exchange> + use<> {
        self.waiting.end().into_iter()
    }

    /// Waits for the threads: see [`super::Backend::end_threads`].
    #[must_use]
    pub(crate) fn end_threads(&self, deadline: Instant) -> bool {
        let threads = {
            let mut threads = self.threads();
            threads.closed = true;
            std::mem::take(&mut threads.alive)
        };
        join_all(threads, deadline)
    }

    fn make(self: &Arc<Self>, call: Call) {
        match call {
            Call::Nobody => {}
            Call::Wake(thread) => thread.wake(),
            Call::Start => {
                if !self.start_thread() {
                    // The existing threads will take the request. If there is no thread at all, the requests fail
                    // visibly.
                    let (call, failed) = self.waiting.not_started();
                    drop(failed);
                    self.make(call);
                }
            }
        }
    }

    fn start_thread(self: &Arc<Self>) -> bool {
        let mut threads = self.threads();
        if threads.closed {
            return false;
        }
        let name = format!("httpdown-h{}", threads.started);
        let pool = Arc::clone(self);
        let body = move || pool.run();
        match spawn_thread(&name, self.server, Role::Other, Some(self.mask), body) {
            Ok(thread) => {
                threads.started += 1;
                threads.alive.retain(|thread| !thread.is_finished());
                threads.alive.push(thread);
                true
            }
            Err(_) => false,
        }
    }

    fn run(self: &Arc<Self>) {
        self.waiting.arrive();
        let place = Arc::new(Place {
            pool: Arc::clone(self),
            was_replaced: AtomicBool::new(false),
            has_come_back: AtomicBool::new(false),
        });
        set_stand_in(Arc::clone(&place) as _);
        loop {
            match self
                .waiting
                .take(Some(Instant::now() + IDLE), VecDeque::pop_front)
            {
                Ok((exchange, next)) => {
                    self.make(next);
                    if let Some(exchange) = exchange {
                        let slot = Arc::clone(exchange.slot());
                        call(&*self.handler, exchange, &slot);
                    }
                    let has_come_back = place.has_come_back.swap(false, Ordering::Relaxed);
                    if has_come_back && self.waiting.leave_if_crowded() {
                        break;
                    }
                }
                Err(_) if self.waiting.leave() => break,
                Err(_) => {}
            }
        }
    }

    fn threads(&self) -> MutexGuard<'_, Threads> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread's place in the pool. Only the thread itself uses it.
struct Place {
    pool: Arc<Pool>,
    /// Another thread may take its turn while it waits.
    was_replaced: AtomicBool,
    /// It has waited since it took its request, so there may be too many threads now.
    has_come_back: AtomicBool,
}

impl StandIn for Place {
    fn steps_aside(self: Arc<Self>) {
        let (may_be_replaced, call) = self.pool.waiting.step_aside();
        self.was_replaced.store(may_be_replaced, Ordering::Relaxed);
        self.pool.make(call);
    }

    fn comes_back(&self) {
        let was_replaced = self.was_replaced.load(Ordering::Relaxed);
        self.pool.waiting.come_back(was_replaced);
        self.has_come_back.store(true, Ordering::Relaxed);
    }
}

impl TurnEnd for Pool {
    fn turn_ends(self: Arc<Self>) {
        self.make(self.waiting.call());
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}
