//! Threads for handlers that block.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::num::NonZeroUsize;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::request::{Exchange, ReplySlot};
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
        let place = Rc::new(Place {
            pool: Arc::clone(self),
            request: RefCell::default(),
            was_replaced: Cell::new(false),
            has_come_back: Cell::new(false),
        });
        set_stand_in(Rc::clone(&place) as _);
        loop {
            match self
                .waiting
                .take(Some(Instant::now() + IDLE), VecDeque::pop_front)
            {
                Ok((exchange, next)) => {
                    self.make(next);
                    if let Some(exchange) = exchange {
                        place.request.replace(Some(Arc::clone(exchange.slot())));
                        if let Some(slot) = &*place.request.borrow() {
                            call(&*self.handler, exchange, slot);
                        }
                        place.request.take();
                    }
                    if place.has_come_back.take() && self.waiting.leave_if_crowded() {
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
    /// What it works on.
    request: RefCell<Option<Arc<ReplySlot>>>,
    /// Another thread may take its turn while it waits.
    was_replaced: Cell<bool>,
    /// It has waited since it took its request, so there may be too many threads now.
    has_come_back: Cell<bool>,
}

impl StandIn for Place {
    fn steps_aside(&self) {
        let (may_be_replaced, call) = self.pool.waiting.step_aside();
        self.was_replaced.set(may_be_replaced);
        if let (Call::Start, Some(request)) = (&call, &*self.request.borrow()) {
            let events = &request.inflight().conn().shared().events;
            events.sum("pool.stalled", 1.0);
        }
        self.pool.make(call);
    }

    fn comes_back(&self) {
        self.pool.waiting.come_back(self.was_replaced.get());
        self.has_come_back.set(true);
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
