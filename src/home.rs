//! An I/O thread, where it meets the threads to which it hands requests over.
//!
//! To wake a thread costs more than most requests do. So what crosses is gathered, both ways. What the I/O thread has
//! to tell others it tells once for all connections that were ready together ([`at_turn_end`]). And tasks that others
//! wake are noted in a list; only if the I/O thread is asleep, the first makes it wake ([`Home`]).
//!
//! The list is looked through when the thread has slept, when it wants to sleep, and before each connection is driven.
//! That is enough where nothing but connections lives on the thread: a task of somebody else's could keep tokio from
//! ever sleeping. So services of the host's, which may spawn what they like, have no such homes.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use pin_project_lite::pin_project;

/// How long something may be put off to the end of a turn, should that not come sooner.
const TURN: Duration = Duration::from_micros(500);

/// An I/O thread, for those who wake what lives on it.
#[derive(Debug, Default)]
pub(crate) struct Home {
    calls: Mutex<Calls>,
    /// Whether there are some, to be asked without the lock; who asks too early asks again before it sleeps.
    called: AtomicBool,
}

#[derive(Debug, Default)]
struct Calls {
    woken: Vec<Arc<HomeWaker>>,
    /// Wakes the thread, as long as it lives here.
    bell: Option<Waker>,
    /// Nobody has rung yet since the thread last wanted to sleep.
    asleep: bool,
}

/// Wakes a task: on the thread that it lives on as tokio does, from elsewhere by the list.
#[derive(Debug)]
struct HomeWaker {
    home: Arc<Home>,
    task: Waker,
}

pin_project! {
    /// A connection that lives on an I/O thread.
    pub(crate) struct Housed<F> {
        #[pin]
        connection: F,
        home: Arc<Home>,
        // Of its task, by way of the home.
        waker: Option<Waker>,
    }
}

impl<F: Future<Output = ()>> Future for Housed<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        let home = this.home;
        if home.called.load(Ordering::Relaxed) {
            home.answer(home.calls());
        }
        end_turn(|latest| latest <= Instant::now());
        let waker = this.waker.get_or_insert_with(|| {
            Waker::from(Arc::new(HomeWaker {
                home: Arc::clone(home),
                task: cx.waker().clone(),
            }))
        });
        this.connection.poll(&mut Context::from_waker(waker))
    }
}

/// What a thread does at the end of its turn.
pub(crate) trait TurnEnd {
    fn turn_ends(self: Arc<Self>);
}

/// On an I/O thread.
struct Here {
    home: Arc<Home>,
    put_off: Option<(Instant, Arc<dyn TurnEnd>)>,
}

thread_local! {
    static HERE: RefCell<Option<Here>> = const { RefCell::new(None) };
}

/// Tells `work` when the connections have been driven that are ready now; at once, on a thread without a home.
pub(crate) fn at_turn_end(work: &Arc<impl TurnEnd + 'static>) {
    let is_put_off = HERE.with_borrow_mut(|here| {
        let Some(here) = here else { return false };
        // A home is one server's, which has no more than one of this kind.
        if here.put_off.is_none() {
            here.put_off = Some((Instant::now() + TURN, Arc::clone(work) as _));
        }
        true
    });
    if !is_put_off {
        Arc::clone(work).turn_ends();
    }
}

impl Home {
    /// Makes the calling thread live here until `end`: the future that its runtime is to run for.
    pub(crate) async fn live(self: Arc<Self>, end: impl Future) {
        let home = Arc::clone(&self);
        HERE.set(Some(Here {
            home,
            put_off: None,
        }));
        let mut end = pin!(end);
        poll_fn(|cx| {
            self.calls().bell.get_or_insert_with(|| cx.waker().clone());
            end.as_mut().poll(cx).map(drop)
        })
        .await;
        end_turn(|_| true);
        // They know their home: it must not know them for ever.
        let calls = std::mem::take(&mut *self.calls());
        drop(calls);
    }

    /// The task of a connection that lives here.
    pub(crate) fn house<F: Future<Output = ()>>(self: Arc<Self>, connection: F) -> Housed<F> {
        Housed {
            connection,
            home: self,
            waker: None,
        }
    }

    /// tokio has nothing more to do, and looks again after this.
    pub(crate) fn before_sleep(&self) {
        end_turn(|_| true);
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

    fn answer(&self, mut calls: MutexGuard<'_, Calls>) {
        self.called.store(false, Ordering::Relaxed);
        // As many are likely to come again.
        let room = Vec::with_capacity(calls.woken.len());
        let woken = std::mem::replace(&mut calls.woken, room);
        drop(calls);
        for waker in woken {
            waker.task.wake_by_ref();
        }
    }

    fn call(&self, waker: Arc<HomeWaker>) {
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
                .is_some_and(|here| std::ptr::eq(Arc::as_ptr(&here.home), self))
        };
        // A thread that has no locals any more is another.
        HERE.try_with(is_here).unwrap_or(false)
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does what has been put off, if it is due.
fn end_turn(is_due: impl FnOnce(Instant) -> bool) {
    let put_off = HERE.with_borrow_mut(|here| {
        let put_off = &mut here.as_mut()?.put_off;
        put_off.take_if(|(latest, _)| is_due(*latest))
    });
    if let Some((_, work)) = put_off {
        work.turn_ends();
    }
}

impl Wake for HomeWaker {
    fn wake(self: Arc<Self>) {
        if self.home.is_here() {
            self.task.wake_by_ref();
        } else {
            Arc::clone(&self.home).call(self);
        }
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.home.is_here() {
            self.task.wake_by_ref();
        } else {
            self.home.call(Arc::clone(self));
        }
    }
}
