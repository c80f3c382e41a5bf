//! The state that is shared by the code that drives a connection and the code that answers a request on it.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use http::Response;
use tokio::sync::Notify;

use crate::conn::{Conn, Inflight, Listener, Outcome};
use crate::contain::{contain, for_tasks};
use crate::error::{Error, Result};
use crate::events::LogLevel;
use crate::phase::Waiter;
use crate::shared::Shared;
use crate::threads;

use super::exchange::ReplyBody;
use super::ready::{Notice, Ready, Subject};

const OPEN: u8 = 0;
const COMPLETE: u8 = 1;
const LOST: u8 = 2;
/// Like `LOST`, because the client was too slow.
const TOO_SLOW: u8 = 3;

/// The fate of a request. The answer passes through this slot to the connection.
pub(crate) struct ReplySlot {
    inflight: Inflight,
    state: AtomicU8,
    /// The log already says why the request has failed.
    is_told: AtomicBool,
    meeting: Mutex<Meeting>,
}

/// The side that comes first waits here for the other side.
#[derive(Default)]
struct Meeting {
    answer: Option<Response<ReplyBody>>,
    /// The waker of the connection's task.
    task: Option<Waker>,
    watch: Option<Arc<Watch>>,
    /// Waits for what happens to the request.
    waiter: Option<Waker>,
    notice: Option<Arc<Notice>>,
    /// The server drains, and the request has been told.
    is_draining: bool,
    /// The connection tells this slot of the drain.
    listens: bool,
}

impl ReplySlot {
    /// Waits for the answer. The answer may never come, if the request is lost; then the connection is about to be cut.
    pub(crate) fn poll_answer(&self, cx: &mut Context<'_>) -> Poll<Response<ReplyBody>> {
        let mut meeting = self.lock();
        if let Some(answer) = meeting.answer.take() {
            return Poll::Ready(answer);
        }
        meeting.task = Some(cx.waker().clone());
        Poll::Pending
    }

    pub(crate) fn new(inflight: Inflight) -> Self {
        Self {
            inflight,
            state: AtomicU8::new(OPEN),
            is_told: AtomicBool::new(false),
            meeting: Mutex::default(),
        }
    }

    pub(crate) fn inflight(&self) -> &Inflight {
        &self.inflight
    }

    /// Writes a line into the log, at most one for each request that fails.
    pub(crate) fn tell(&self, line: impl Into<String>) {
        if !self.is_told.swap(true, Ordering::Relaxed) {
            let events = &self.inflight.conn().shared().events;
            events.log(LogLevel::Error, line);
        }
    }

    /// Gives the answer to the connection.
    ///
    /// # Errors
    /// [`Error::Gone`] or [`Error::Killed`] if the answer is useless by now.
    pub(crate) fn answer(&self, response: Response<ReplyBody>) -> Result<()> {
        if let Some(why) = self.lost() {
            return Err(why);
        }
        if self.give(response) {
            Ok(())
        } else {
            Err(self.lost().unwrap_or(Error::Gone))
        }
    }

    /// Like [`ReplySlot::answer`], even after a kill. False if nobody will take the answer.
    pub(crate) fn give(&self, response: Response<ReplyBody>) -> bool {
        let mut meeting = self.lock();
        if self.state.load(Ordering::Relaxed) != OPEN {
            return false;
        }
        meeting.answer = Some(response);
        let task = meeting.task.take();
        drop(meeting);
        if let Some(task) = task {
            task.wake();
        }
        true
    }

    /// Whether hyper has all of the response.
    pub(crate) fn is_complete(&self) -> bool {
        self.state.load(Ordering::Acquire) == COMPLETE
    }

    /// The reason why the client cannot get an answer any more.
    pub(crate) fn lost(&self) -> Option<Error> {
        lost(&self.state, self.inflight.conn().shared())
    }

    /// The reason why an answer is useless by now, including that the answer is complete.
    pub(crate) fn over(&self) -> Option<Error> {
        over(&self.state, self.inflight.conn().shared())
    }

    /// Returns a value that can wait for the end of the request.
    pub(crate) fn cancellation(&self) -> Cancellation {
        let mut meeting = self.lock();
        let watch = meeting.watch.get_or_insert_with(|| {
            Arc::new(Watch {
                shared: Arc::clone(self.inflight.conn().shared()),
                state: AtomicU8::new(self.state.load(Ordering::Relaxed)),
                changed: Notify::new(),
            })
        });
        Cancellation(Arc::clone(watch))
    }

    /// From now on, the waker is called when something happens to the request.
    pub(super) fn wake_on_change(self: &Arc<Self>, waker: &Waker) {
        let mut meeting = self.lock();
        let before = meeting.waiter.replace(waker.clone());
        let must_listen = !std::mem::replace(&mut meeting.listens, true);
        drop(meeting);
        drop(before);
        if must_listen {
            self.inflight.conn().listen(Arc::clone(self) as _);
        }
    }

    /// Who is told of what happens. Made when it is first asked for.
    pub(super) fn notice(self: &Arc<Self>) -> Arc<Notice> {
        let mut meeting = self.lock();
        let notice = meeting
            .notice
            .get_or_insert_with(|| Notice::new(Arc::downgrade(self) as _));
        Arc::clone(notice)
    }

    /// Nobody wants to know any more. Waits until a callback on another thread has returned.
    pub(super) fn ignore(&self) {
        let mut meeting = self.lock();
        if !meeting.listens {
            return;
        }
        let (waiter, notice) = (meeting.waiter.take(), meeting.notice.take());
        drop(meeting);
        self.inflight.conn().ignore(self);
        drop(waiter);
        if let Some(notice) = notice {
            notice.end();
        }
    }

    /// Something has happened that may not be what is waited for. So the waiter stays, and may be woken in vain.
    fn wake_waiter(&self) {
        let waiter = self.lock().waiter.clone();
        if let Some(waiter) = waiter {
            contain(|| waiter.wake());
        }
    }

    fn set(&self, state: u8) {
        let mut meeting = self.lock();
        // Stored under the lock, so that a watch either sees the state when it is made, or is told.
        self.state.store(state, Ordering::Release);
        // The answer of a complete request has been taken; the answer of a lost request will never be taken. We drop it
        // after the lock is released, because its memory may be the host's, and then the host is called.
        let unwanted = match state {
            LOST | TOO_SLOW => meeting.answer.take(),
            _ => None,
        };
        let (watch, waiter) = (meeting.watch.clone(), meeting.waiter.take());
        drop(meeting);
        drop(unwanted);
        if let Some(waiter) = waiter {
            contain(|| waiter.wake());
        }
        if let Some(watch) = watch {
            watch.state.store(state, Ordering::Release);
            watch.changed.notify_waiters();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Meeting> {
        self.meeting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outcome for Arc<ReplySlot> {
    fn inflight(&self) -> &Inflight {
        &self.inflight
    }

    fn complete(&self) {
        self.set(COMPLETE);
    }

    fn lose(&self) {
        let is_too_slow = self.inflight.conn().has_timed_out();
        self.set(if is_too_slow { TOO_SLOW } else { LOST });
    }
}

impl Subject for ReplySlot {
    fn conn(&self) -> &Arc<Conn> {
        self.inflight.conn()
    }

    /// That it was lost, the drain, and that it is overdue.
    fn happened(&self) -> Ready {
        let mut ready = Ready::NONE;
        if self.lost().is_some() {
            ready |= Ready::GONE;
        }
        if self.lock().is_draining {
            ready |= Ready::DRAINING;
        }
        if self.inflight.is_overdue() {
            ready |= Ready::OVERDUE;
        }
        ready
    }

    fn complain(&self, line: &str) {
        self.tell(line);
    }
}

impl Listener for ReplySlot {
    fn drains(&self) {
        self.lock().is_draining = true;
        self.wake_waiter();
    }

    fn overdue(&self) {
        self.wake_waiter();
    }

    fn call(&self) {
        let notice = self.lock().notice.clone();
        if let Some(notice) = notice {
            notice.call();
        }
    }
}

impl fmt::Debug for ReplySlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplySlot")
            .field("inflight", &self.inflight)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

fn lost(state: &AtomicU8, shared: &Shared) -> Option<Error> {
    match state.load(Ordering::Acquire) {
        COMPLETE => None,
        _ if shared.phases.get().cuts() => Some(Error::Killed(None)),
        LOST => Some(Error::Gone),
        TOO_SLOW => Some(Error::TooSlow),
        _ => None,
    }
}

fn over(state: &AtomicU8, shared: &Shared) -> Option<Error> {
    match state.load(Ordering::Acquire) {
        COMPLETE => Some(Error::AlreadyReplied),
        _ => lost(state, shared),
    }
}

/// The part of a request's state that outlives the request, for those who wait for its end.
#[derive(Debug)]
struct Watch {
    shared: Arc<Shared>,
    state: AtomicU8,
    changed: Notify,
}

/// Tells whether an answer to a request is still useful. It is independent of the [`Exchange`](crate::Exchange) itself,
/// and a stop does not wait for it.
///
/// ```
/// use std::time::{Duration, Instant};
///
/// use httpdown::Exchange;
///
/// /// Works for as long as somebody waits for the result.
/// fn search(exchange: Exchange) {
///     let cancellation = exchange.cancellation();
///     let mut found = 0;
///     while found < 1_000 {
///         if cancellation.cancelled().is_some() {
///             return; // The client has left, or the server kills.
///         }
///         found += 1;
///     }
///     let _ = exchange.reply(http::Response::new(format!("{found}\n").into()));
/// }
/// # let _ = search;
/// ```
#[derive(Clone, Debug)]
pub struct Cancellation(Arc<Watch>);

impl Cancellation {
    /// The reason why an answer is useless by now: [`Error::Gone`], [`Error::Killed`], or [`Error::AlreadyReplied`] if
    /// the answer is complete. Never blocks.
    #[must_use]
    pub fn cancelled(&self) -> Option<Error> {
        over(&self.0.state, &self.0.shared)
    }

    /// Blocks until an answer is useless, and returns the reason, like [`Cancellation::cancelled`]; `None` if
    /// `deadline` passes before.
    ///
    /// If a handler that is called in place ([`Dispatch::Inline`](crate::Dispatch::Inline)) waits here, it blocks the
    /// thread that would see its client leave, and all connections of that thread. So the handler learns only of a kill
    /// and of the deadline. This is also true for the only thread of the [host's runtime](crate::Builder::runtime).
    #[must_use]
    pub fn wait_until(&self, deadline: Option<Instant>) -> Option<Error> {
        let lost = threads::block_on(self.wait_as(Waiter::Thread), deadline)?;
        Some(lost.unwrap_or(Error::AlreadyReplied))
    }

    /// Waits until an answer is useless, and returns the reason, like [`Cancellation::cancelled`].
    pub async fn wait(&self) -> Error {
        let lost = for_tasks(self.wait_as(Waiter::Task)).await;
        lost.unwrap_or(Error::AlreadyReplied)
    }

    /// Waits, and returns why the client cannot get the answer any more; `None` if the answer is complete.
    pub(crate) async fn wait_as(&self, waiter: Waiter) -> Option<Error> {
        let Watch {
            shared,
            state,
            changed,
        } = &*self.0;
        loop {
            let changed = changed.notified();
            if state.load(Ordering::Acquire) == COMPLETE {
                return None;
            }
            if let Some(why) = lost(state, shared) {
                return Some(why);
            }
            tokio::select! {
                () = changed => {}
                () = shared.phases.killing(waiter) => {}
            }
        }
    }
}
