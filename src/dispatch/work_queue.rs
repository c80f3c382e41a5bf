//! The queue of requests that wait, and the threads that wait for requests.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use once_cell::sync::OnceCell;

use crate::error::{Error, Result};
use crate::limits::Limit;
use crate::request::{Exchange, Notice};
use crate::sys::EventFd;

/// A queue of requests: first come, first served, by any free thread.
///
/// At most one thread at a time is on its way to the queue. When a thread has taken a request, and more requests wait
/// but no thread is coming, it calls the next thread before it begins to work. So a burst wakes hardly more threads
/// than it needs. And no request waits for a handler that blocks, as long as a thread is available.
#[derive(Debug)]
pub(super) struct WorkQueue {
    /// How many threads may be started for this queue.
    limit: usize,
    state: Mutex<State>,
    /// Readable while requests wait and after the end; made when somebody asks for it.
    readable: OnceCell<EventFd>,
}

#[derive(Debug)]
struct State {
    requests: VecDeque<Exchange>,
    /// What has happened to requests that were taken before.
    notices: VecDeque<Arc<Notice>>,
    /// How many such notices are still to come, or wait here.
    expected: usize,
    /// A request is the next to come out, though notices wait.
    is_requests_turn: bool,
    ended: bool,
    coming: Coming,
    /// The threads that wait here. The last to come is the first to be called: its caches are warm, and the others may
    /// end.
    asleep: Vec<Arc<Sleeper>>,
    /// How many more threads may be started. Less than 0 when threads have come back that stood aside.
    room: isize,
    /// How many threads wait for a client.
    aside: usize,
}

/// So many threads may stand aside: each costs the system something.
const MOST_ASIDE: usize = 4_096;

/// The thread that is on its way to the queue.
#[derive(Debug)]
enum Coming {
    Nobody,
    Woken(Arc<Sleeper>),
    Started,
}

/// A thread that waits.
#[derive(Debug)]
pub(super) struct Sleeper {
    woken: Condvar,
    /// It waits for notices, too, and not only for a request.
    takes_all: bool,
}

/// How to call a thread. The caller does this after it has released the lock.
#[must_use]
#[derive(Debug)]
pub(super) enum Call {
    Nobody,
    Wake(Arc<Sleeper>),
    /// Start a thread that calls [`WorkQueue::arrive`] first and [`WorkQueue::leave`] last; or call
    /// [`WorkQueue::not_started`].
    Start,
}

impl WorkQueue {
    /// A queue that asks for at most `limit` threads to be started.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            state: Mutex::new(State {
                requests: VecDeque::new(),
                notices: VecDeque::new(),
                expected: 0,
                is_requests_turn: false,
                ended: false,
                coming: Coming::Nobody,
                asleep: Vec::new(),
                room: isize::try_from(limit).unwrap_or(isize::MAX),
                aside: 0,
            }),
            readable: OnceCell::new(),
        }
    }

    /// Adds a request, but refuses it after the end, and if too many wait. True if a thread should be called soon:
    /// [`WorkQueue::call`].
    pub(super) fn push(&self, exchange: Exchange) -> bool {
        let mut state = self.lock();
        if state.ended {
            drop(state);
            exchange.refuse();
            return false;
        }
        if let Some(most) = exchange.shared().options.max_queued
            && state.is_full(most.get())
        {
            drop(state);
            let why = format_args!("{most} requests wait");
            exchange.shared().limit_bites(Limit::Queued, &why);
            exchange.turn_away();
            return false;
        }
        state.requests.push_back(exchange);
        if state.requests.len() == 1 {
            self.signal();
        }
        state.could_call()
    }

    /// Adds what has happened to a request. True as for [`WorkQueue::push`].
    pub(super) fn add_notice(&self, notice: Arc<Notice>) -> bool {
        let mut state = self.lock();
        state.notices.push_back(notice);
        self.signal();
        state.could_call()
    }

    /// So many more notices, or fewer, are to come.
    pub(super) fn expects_notices(&self, more: isize) {
        let mut state = self.lock();
        state.expected = state.expected.saturating_add_signed(more);
        if state.ended && state.expected == 0 {
            self.signal();
            state.wake_all();
        }
    }

    /// Calls a thread, if requests wait and no thread is coming.
    pub(super) fn call(&self) -> Call {
        self.lock().call()
    }

    /// Waits until there are requests, and takes what `pick` takes.
    ///
    /// # Errors
    /// [`Error::Stopped`] after the end, [`Error::WouldBlock`] when the deadline has passed.
    pub(super) fn take<T>(
        &self,
        deadline: Option<Instant>,
        pick: impl FnOnce(&mut VecDeque<Exchange>) -> T,
    ) -> Result<(T, Call)> {
        let mut state = self.lock();
        while state.requests.is_empty() {
            if state.ended {
                return Err(Error::Stopped);
            }
            // Notices are for others. This thread may have been called in vain, instead of one of them.
            if let Call::Wake(other) = state.call() {
                other.wake();
            }
            state = sleep(state, deadline, false)?;
        }
        let taken = pick(&mut state.requests);
        self.clear_if_empty(&state);
        let call = state.call();
        Ok((taken, call))
    }

    /// Like [`WorkQueue::take`], and also takes up to `limit` notices. Ends only when no notice is to come any more.
    pub(super) fn take_all<T>(
        &self,
        limit: usize,
        deadline: Option<Instant>,
        pick: impl FnOnce(&mut VecDeque<Exchange>, usize) -> T,
    ) -> Result<(Vec<Arc<Notice>>, T, Call)> {
        let mut state = self.lock();
        while state.requests.is_empty() && state.notices.is_empty() {
            if state.ended && state.expected == 0 {
                return Err(Error::Stopped);
            }
            state = sleep(state, deadline, true)?;
        }
        let mut count = limit.min(state.notices.len());
        if count == limit && !state.requests.is_empty() {
            // Now and then there is room for a request, too.
            state.is_requests_turn = !state.is_requests_turn;
            count -= usize::from(state.is_requests_turn);
        }
        let notices: Vec<_> = state.notices.drain(..count).collect();
        let taken = pick(&mut state.requests, limit - count);
        self.clear_if_empty(&state);
        let call = state.call();
        Ok((notices, taken, call))
    }

    fn clear_if_empty(&self, state: &State) {
        let is_over = state.ended && state.expected == 0;
        if state.requests.is_empty()
            && state.notices.is_empty()
            && !is_over
            && let Some(readable) = self.readable.get()
        {
            readable.clear();
        }
    }

    /// Says that a thread that was to be started has come.
    pub(super) fn arrive(&self) {
        self.lock().coming = Coming::Nobody;
    }

    /// Says that a thread could not be started. If there is no other thread, returns the requests, because nobody would
    /// take them.
    pub(super) fn not_started(&self) -> (Call, VecDeque<Exchange>) {
        let mut state = self.lock();
        state.coming = Coming::Nobody;
        // A thread may have fallen asleep since.
        let next = if state.asleep.is_empty() {
            Call::Nobody
        } else {
            state.call()
        };
        state.room += 1;
        // Those who stand aside come back.
        let left = if state.room.cast_unsigned() == self.limit + state.aside {
            std::mem::take(&mut state.requests)
        } else {
            VecDeque::new()
        };
        (next, left)
    }

    /// Says that a started thread wants to end. False if there is a request to take after all.
    pub(super) fn leave(&self) -> bool {
        let mut state = self.lock();
        let idle = state.requests.is_empty();
        if idle {
            state.room += 1;
        }
        idle
    }

    /// A started thread waits for a client. Returns whether another one may take its turn, and how to call it.
    pub(super) fn step_aside(&self) -> (bool, Call) {
        let mut state = self.lock();
        state.aside += 1;
        let may_be_replaced = state.aside <= MOST_ASIDE;
        if !may_be_replaced {
            return (false, Call::Nobody);
        }
        state.room += 1;
        (true, state.call())
    }

    /// A thread that stood aside goes on. `was_replaced`: what [`WorkQueue::step_aside`] has returned.
    pub(super) fn come_back(&self, was_replaced: bool) {
        let mut state = self.lock();
        state.aside -= 1;
        state.room -= isize::from(was_replaced);
    }

    /// Whether a started thread has to end, because there are too many. If so, it has left.
    pub(super) fn leave_if_crowded(&self) -> bool {
        let mut state = self.lock();
        let is_crowded = state.room < 0;
        state.room += isize::from(is_crowded);
        is_crowded
    }

    /// Call this when no more requests will come. Returns the requests that nobody has taken.
    pub(super) fn end(&self) -> VecDeque<Exchange> {
        let mut state = self.lock();
        state.ended = true;
        self.signal();
        let left = std::mem::take(&mut state.requests);
        state.wake_all();
        left
    }

    pub(super) fn descriptor(&self) -> io::Result<BorrowedFd<'_>> {
        let state = self.lock();
        let readable = self.readable.get_or_try_init(|| {
            let readable = EventFd::new()?;
            if state.ended || !state.requests.is_empty() || !state.notices.is_empty() {
                readable.set();
            }
            Ok(readable)
        });
        drop(state);
        readable.map(EventFd::as_fd)
    }

    pub(super) fn len(&self) -> usize {
        self.lock().requests.len()
    }

    fn signal(&self) {
        if let Some(readable) = self.readable.get() {
            readable.set();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sleeper {
    pub(super) fn wake(&self) {
        self.woken.notify_one();
    }
}

impl State {
    fn is_nobody_coming(&self) -> bool {
        matches!(self.coming, Coming::Nobody)
    }

    fn could_call(&self) -> bool {
        self.is_nobody_coming() && (self.room > 0 || !self.asleep.is_empty())
    }

    fn wake_all(&mut self) {
        for thread in std::mem::take(&mut self.asleep) {
            thread.wake();
        }
    }

    /// Whether `most` requests wait, beside those that a thread is there for, or will be.
    fn is_full(&self, most: usize) -> bool {
        let room = usize::try_from(self.room).unwrap_or(0);
        let coming = usize::from(!self.is_nobody_coming());
        self.requests.len() >= most.saturating_add(self.asleep.len() + room + coming)
    }

    fn call(&mut self) -> Call {
        let is_empty = self.requests.is_empty() && self.notices.is_empty();
        if is_empty || !self.is_nobody_coming() {
            return Call::Nobody;
        }
        let is_for_all = !self.requests.is_empty();
        let can_take = |thread: &Arc<Sleeper>| is_for_all || thread.takes_all;
        if let Some(at) = self.asleep.iter().rposition(can_take) {
            let thread = self.asleep.remove(at);
            self.coming = Coming::Woken(Arc::clone(&thread));
            return Call::Wake(thread);
        }
        if self.room <= 0 {
            // The threads that are at work will look here when they are done.
            return Call::Nobody;
        }
        self.room -= 1;
        self.coming = Coming::Started;
        Call::Start
    }
}

/// Returns when this thread is called. May also return without a call.
fn sleep(
    mut state: MutexGuard<'_, State>,
    deadline: Option<Instant>,
    takes_all: bool,
) -> Result<MutexGuard<'_, State>> {
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    if left.is_some_and(|left| left.is_zero()) {
        return Err(Error::WouldBlock);
    }
    let me = Arc::new(Sleeper {
        woken: Condvar::new(),
        takes_all,
    });
    state.asleep.push(Arc::clone(&me));
    state = match left {
        None => me.woken.wait(state).unwrap_or_else(PoisonError::into_inner),
        Some(left) => {
            let woken = me.woken.wait_timeout(state, left);
            woken.unwrap_or_else(PoisonError::into_inner).0
        }
    };
    if matches!(&state.coming, Coming::Woken(thread) if Arc::ptr_eq(thread, &me)) {
        state.coming = Coming::Nobody;
    } else {
        state.asleep.retain(|thread| !Arc::ptr_eq(thread, &me));
    }
    Ok(state)
}
