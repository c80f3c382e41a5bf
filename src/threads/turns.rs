//! How an I/O thread works together with the threads to which it hands requests over.
//!
//! To wake a thread costs more than most requests do. So messages are gathered in both directions. What the I/O thread
//! has to tell others, it tells once for all connections that were ready together ([`at_turn_end`]). Tasks that other
//! threads wake are noted in a list; only if the I/O thread is asleep, the first of them makes it wake ([`Turns`]).
//!
//! The I/O thread looks through the list when it has slept, when it wants to sleep, and before it drives each
//! connection. That is enough if only connections live on the thread: a task of other code could keep tokio from ever
//! sleeping. So threads that run the host's services, which may spawn any tasks, gather nothing.
//!
//! A connection that waits for its next answer may hold finished answers back, so that all leave together ([`Hold`]).
//! It may do so only while the next answer comes as soon as it can, in the next turn.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use once_cell::sync::OnceCell;
use pin_project_lite::pin_project;

/// How long a turn may be. A turn ends earlier when the thread has nothing more to do.
const TURN: Duration = Duration::from_micros(500);

/// How long a connection may hold something back, however quick its handlers are.
const MAX_HOLD: Duration = Duration::from_micros(1_500);

/// An I/O thread, as seen by those who wake what lives on it.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    calls: Mutex<Calls>,
    /// Whether there are calls; it can be read without the lock. A thread that reads it too early reads it again before
    /// it sleeps.
    called: AtomicBool,
}

#[derive(Debug, Default)]
struct Calls {
    woken: Vec<Arc<TurnWaker>>,
    /// Wakes the thread, while the thread lives here.
    bell: Option<Waker>,
    /// No thread has rung the bell since this thread last wanted to sleep.
    asleep: bool,
}

/// Wakes a connection's task. On the thread that the task lives on, tokio wakes it; from other threads, the list is
/// used.
#[derive(Debug)]
struct TurnWaker {
    turns: Arc<Turns>,
    /// Set when the connection has been driven for the first time.
    task: OnceCell<Waker>,
    /// The task that this would wake has ended.
    ended: AtomicBool,
}

pin_project! {
    /// A connection that lives on an I/O thread.
    pub(crate) struct Gathered<F> {
        #[pin]
        connection: F,
        address: Arc<TurnWaker>,
        // Another reference to `address`.
        waker: Waker,
    }

    impl<F> PinnedDrop for Gathered<F> {
        fn drop(this: Pin<&mut Self>) {
            this.address.ended.store(true, Ordering::Relaxed);
        }
    }
}

impl<F: Future> Future for Gathered<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let turns = &this.address.turns;
        if turns.called.load(Ordering::Relaxed) {
            turns.answer(turns.calls());
        }
        enter(turns);
        this.address.task.get_or_init(|| cx.waker().clone());
        this.connection.poll(&mut Context::from_waker(this.waker))
    }
}

/// What a thread does at the end of its turn.
pub(crate) trait TurnEnd {
    fn turn_ends(self: Arc<Self>);
}

/// An I/O thread on which connections live.
struct Here {
    turns: Arc<Turns>,
    /// The number of the thread's present turn.
    turn: u64,
    /// When the turn ends at the latest; set if something is to be done at its end.
    latest: Option<Instant>,
    put_off: Option<Arc<dyn TurnEnd>>,
    holds: Vec<Arc<Hold>>,
}

thread_local! {
    static HERE: RefCell<Option<Here>> = const { RefCell::new(None) };
}

/// Tells `work` that the turn ends, when all connections that are ready now have been driven. On a thread that gathers
/// nothing, tells it at once.
pub(crate) fn at_turn_end(work: &Arc<impl TurnEnd + 'static>) {
    let is_put_off = HERE.with_borrow_mut(|here| {
        let Some(here) = here else { return false };
        // The thread belongs to one server, which has at most one such work.
        if here.put_off.is_none() {
            here.put_off = Some(Arc::clone(work) as _);
            here.time_turn();
        }
        true
    });
    if !is_put_off {
        Arc::clone(work).turn_ends();
    }
}

/// A connection's permission to hold something back while it waits for another thread. The permission ends, and the
/// connection is woken, when the connection has got nothing from that thread for a turn, when its own thread has
/// nothing else to do, or when it has lasted for [`MAX_HOLD`].
#[derive(Debug)]
pub(crate) struct Hold {
    waker: Waker,
    latest: Instant,
    /// The turn for which the permission was last asked for.
    turn: AtomicU64,
}

impl Hold {
    const OVER: u64 = 0;

    /// Asks for permission or, if there is `some`, for an extension of it. A thread that gathers nothing gives none.
    pub(crate) fn ask(some: &mut Option<Arc<Self>>, waker: &Waker) -> bool {
        HERE.with_borrow_mut(|here| {
            let Some(here) = here else { return false };
            if let Some(hold) = some {
                let goes_on = !hold.is_over();
                if goes_on {
                    hold.turn.store(here.turn, Ordering::Relaxed);
                }
                return goes_on;
            }
            let hold = Arc::new(Self {
                waker: waker.clone(),
                latest: Instant::now() + MAX_HOLD,
                turn: AtomicU64::new(here.turn),
            });
            *some = Some(Arc::clone(&hold));
            here.holds.push(hold);
            here.time_turn();
            true
        })
    }

    /// The permission is not needed any more.
    pub(crate) fn end(&self) {
        self.turn.store(Self::OVER, Ordering::Relaxed);
    }

    fn is_over(&self) -> bool {
        self.turn.load(Ordering::Relaxed) == Self::OVER
    }
}

impl Here {
    fn new(turns: &Arc<Turns>) -> Self {
        Self {
            turns: Arc::clone(turns),
            turn: Hold::OVER + 1,
            latest: None,
            put_off: None,
            holds: Vec::new(),
        }
    }

    /// There is something to do at the end of the turn.
    fn time_turn(&mut self) {
        self.latest.get_or_insert_with(|| Instant::now() + TURN);
    }

    /// Begins another turn, and returns the holds that have ended by that.
    fn end_turn(&mut self, is_last: bool) -> Vec<Arc<Hold>> {
        let turn = self.turn;
        self.turn += 1;
        self.latest = None;
        if self.holds.is_empty() {
            return Vec::new();
        }
        let now = Instant::now();
        let ends = |hold: &mut Arc<Hold>| {
            let renewed = hold.turn.load(Ordering::Relaxed);
            is_last || renewed < turn || hold.latest <= now
        };
        let ended: Vec<_> = self.holds.extract_if(.., ends).collect();
        if !self.holds.is_empty() {
            self.latest = Some(now + TURN);
        }
        ended
    }
}

impl Turns {
    /// Makes the calling thread live here until `end`, the future that its runtime is to run for.
    pub(crate) async fn live(self: Arc<Self>, end: impl Future) {
        let mut end = pin!(end);
        poll_fn(|cx| {
            self.calls().bell.get_or_insert_with(|| cx.waker().clone());
            end.as_mut().poll(cx).map(drop)
        })
        .await;
        call_others();
        end_turn(true);
        // The calls refer to the list, so the list must not refer to them for ever.
        let calls = std::mem::take(&mut *self.calls());
        drop(calls);
    }

    /// Makes the task of a connection that lives here.
    pub(crate) fn gather<F: Future>(self: Arc<Self>, connection: F) -> Gathered<F> {
        let address = Arc::new(TurnWaker {
            turns: self,
            task: OnceCell::new(),
            ended: AtomicBool::new(false),
        });
        Gathered {
            connection,
            waker: Waker::from(Arc::clone(&address)),
            address,
        }
    }

    /// tokio has nothing more to do, and will look again after this.
    pub(crate) fn before_sleep(&self) {
        call_others();
        let mut has_more = self.answer(self.calls());
        if !has_more && is_holding() {
            // The threads that have just been called may be quick, if a processor is free for them.
            thread::yield_now();
            has_more = self.answer(self.calls());
        }
        end_turn(!has_more);
        loop {
            let mut calls = self.calls();
            if calls.woken.is_empty() {
                calls.asleep = true;
                break;
            }
            self.answer(calls);
        }
    }

    pub(crate) fn after_sleep(&self) {
        let mut calls = self.calls();
        calls.asleep = false;
        self.answer(calls);
    }

    /// Wakes the tasks in the list. Returns whether any of them has something to do now.
    fn answer(&self, mut calls: MutexGuard<'_, Calls>) -> bool {
        if calls.woken.is_empty() {
            return false;
        }
        self.called.store(false, Ordering::Relaxed);
        // A similar number of tasks is likely to come again.
        let room = Vec::with_capacity(calls.woken.len());
        let woken = std::mem::replace(&mut calls.woken, room);
        drop(calls);
        let mut has_more = false;
        for waker in woken {
            waker.wake_here();
            has_more |= !waker.ended.load(Ordering::Relaxed);
        }
        has_more
    }

    fn call(&self, waker: Arc<TurnWaker>) {
        let mut calls = self.calls();
        if calls.bell.is_none() {
            return;
        }
        calls.woken.push(waker);
        self.called.store(true, Ordering::Relaxed);
        let must_ring = std::mem::take(&mut calls.asleep);
        let bell = if must_ring { calls.bell.clone() } else { None };
        drop(calls);
        if let Some(bell) = bell {
            bell.wake();
        }
    }

    fn is_here(&self) -> bool {
        let is_here = |here: &RefCell<Option<Here>>| {
            let here = here.borrow();
            here.as_ref()
                .is_some_and(|here| std::ptr::eq(Arc::as_ptr(&here.turns), self))
        };
        // A thread that has no thread-locals any more is another thread.
        HERE.try_with(is_here).unwrap_or(false)
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Called before a connection that lives here is driven.
fn enter(turns: &Arc<Turns>) {
    let latest = HERE.with_borrow_mut(|here| here.get_or_insert_with(|| Here::new(turns)).latest);
    if latest.is_some_and(|latest| latest <= Instant::now()) {
        call_others();
        end_turn(false);
    }
}

/// Does the work that has been put off.
fn call_others() {
    let work = HERE.with_borrow_mut(|here| here.as_mut()?.put_off.take());
    if let Some(work) = work {
        work.turn_ends();
    }
}

fn is_holding() -> bool {
    HERE.with_borrow(|here| here.as_ref().is_some_and(|here| !here.holds.is_empty()))
}

/// Ends the turn. If it is the last before the thread sleeps, also ends all holds.
fn end_turn(is_last: bool) {
    let ended = HERE.with_borrow_mut(|here| Some(here.as_mut()?.end_turn(is_last)));
    for hold in ended.into_iter().flatten() {
        if !hold.is_over() {
            hold.end();
            hold.waker.wake_by_ref();
        }
    }
}

impl TurnWaker {
    fn wake_here(&self) {
        // A task that has not been driven yet will be driven anyway.
        if let Some(task) = self.task.get() {
            task.wake_by_ref();
        }
    }
}

impl Wake for TurnWaker {
    fn wake(self: Arc<Self>) {
        if self.turns.is_here() {
            self.wake_here();
        } else {
            Arc::clone(&self.turns).call(self);
        }
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.turns.is_here() {
            self.wake_here();
        } else {
            self.turns.call(Arc::clone(self));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_call_for_a_connection_that_has_ended_keeps_nothing_back() {
        let turns = Arc::new(Turns::default());
        turns.calls().bell = Some(Waker::noop().clone());
        enter(&turns);
        let connection = Arc::clone(&turns).gather(std::future::pending::<()>());
        let late = Arc::clone(&connection.address);
        drop(connection);
        let mut hold = None;
        assert!(Hold::ask(&mut hold, Waker::noop()));
        turns.call(late);
        // The thread would sleep now, because nobody has anything to do.
        turns.before_sleep();
        assert!(hold.is_some_and(|hold| hold.is_over()));
    }

    #[test]
    fn a_connection_that_gets_something_in_every_turn_holds_nothing_back_for_ever() {
        enter(&Arc::new(Turns::default()));
        let (mut hold, began) = (None, Instant::now());
        while Hold::ask(&mut hold, Waker::noop()) {
            end_turn(false);
            assert!(began.elapsed() < Duration::from_secs(10));
        }
        assert!(began.elapsed() >= MAX_HOLD);
    }
}
