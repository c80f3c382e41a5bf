//! The deadlines of a connection: at most one of each name, and one timer for all of them.
//!
//! They are on tokio's clock, like everything that happens in a connection's task: the runtime that wakes the task for
//! bytes also wakes it for time, and a test can pause both. The deadlines of the whole stop are on the server's
//! [`Clock`](crate::Clock), which the control thread waits on.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::task::unconstrained;
use tokio::time::{Instant, Sleep, sleep_until};

/// What a connection waits for, for a limited time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deadline {
    /// The rest of a request's head must come.
    Head,
    /// If no other request comes, the connection is parked.
    Pause,
    /// During a stop: a handler that has answered must take the next piece of the request's body.
    Reader,
    /// A request must come, or the idle connection is closed.
    Idle,
    /// Like `Idle`, during a stop.
    Grace,
    /// The client must close its side of a closed connection.
    Linger,
    /// The next look whether the client has acknowledged everything. No event reports that.
    Look,
    /// The handshake of TLS must be done.
    #[cfg_attr(
        not(feature = "tls"),
        allow(dead_code, reason = "the others keep their numbers")
    )]
    Handshake,
    /// The client must send more of a request's body.
    Body,
    /// The client must take more of an answer.
    Write,
    /// It is the request's turn to learn of the drain.
    Drain,
    /// The program should have answered.
    Handler,
}

const COUNT: usize = Deadline::Handler as usize + 1;
const _: () = assert!(COUNT <= u16::BITS as usize, "each has a bit");

/// The deadlines that are set. Without any, this takes one word.
#[derive(Debug, Default)]
pub(super) struct Deadlines(Option<Pin<Box<Table>>>);

pin_project! {
    #[project = TableProjection]
    #[derive(Debug)]
    struct Table {
        at: [Option<Instant>; COUNT],
        // Which of them had passed when the timer was set last: a bit for each.
        passed: u16,
        // Set to the earliest deadline that has not passed.
        #[pin]
        timer: Sleep,
    }
}

impl Table {
    fn put(self: Pin<&mut Self>, deadline: Deadline, at: Option<Instant>) {
        let this = self.project();
        this.at[deadline as usize] = at;
        *this.passed &= !(1 << deadline as u16);
    }
}

impl Deadlines {
    /// Sets the deadline to so long from now. If it was set, its old time is forgotten.
    pub(super) fn set(&mut self, deadline: Deadline, after: Duration) {
        self.set_from(Instant::now(), deadline, after);
    }

    /// Like [`Deadlines::set`], from another moment on.
    pub(super) fn set_from(&mut self, start: Instant, deadline: Deadline, after: Duration) {
        let at = start.checked_add(after).unwrap_or_else(far_away);
        let table = self.0.get_or_insert_with(|| {
            Box::pin(Table {
                at: [None; COUNT],
                passed: 0,
                timer: sleep_until(at),
            })
        });
        table.as_mut().put(deadline, Some(at));
    }

    pub(super) fn is_set(&self, deadline: Deadline) -> bool {
        self.at(deadline).is_some()
    }

    pub(super) fn clear(&mut self, deadline: Deadline) {
        if let Some(table) = &mut self.0 {
            table.as_mut().put(deadline, None);
        }
    }

    pub(super) fn clear_all(&mut self) {
        self.0 = None;
    }

    /// Waits for a deadline, which must be set. The task is also woken for the others.
    pub(super) fn poll(&mut self, deadline: Deadline, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let now = Instant::now();
            match self.at(deadline) {
                Some(at) if at > now => {}
                _ => return Poll::Ready(()),
            }
            ready!(self.poll_timer(now, cx));
        }
    }

    /// Like [`Deadlines::poll`], for a deadline that this task has polled since it was set: that is quicker.
    pub(super) fn poll_again(&mut self, deadline: Deadline, cx: &mut Context<'_>) -> Poll<()> {
        let stands = self.0.as_ref().is_some_and(|table| {
            let is_seen = table.passed & 1 << deadline as u16 != 0;
            !is_seen && !table.timer.is_elapsed()
        });
        if stands {
            return Poll::Pending; // The timer wakes the task at this deadline, or for an earlier one.
        }
        self.poll(deadline, cx)
    }

    fn at(&self, deadline: Deadline) -> Option<Instant> {
        self.0.as_ref()?.at[deadline as usize]
    }

    /// Waits for the earliest deadline that is later than `now`.
    fn poll_timer(&mut self, now: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let Some(table) = &mut self.0 else {
            return Poll::Ready(());
        };
        let TableProjection {
            at,
            passed,
            mut timer,
        } = table.as_mut().project();
        let mut earliest = None;
        for (bit, at) in at.iter().enumerate() {
            match *at {
                Some(at) if at > now => {
                    earliest = Some(earliest.map_or(at, |earliest: Instant| earliest.min(at)));
                }
                Some(_) => *passed |= 1 << bit,
                None => {}
            }
        }
        let Some(earliest) = earliest else {
            return Poll::Ready(());
        };
        if timer.deadline() != earliest {
            timer.as_mut().reset(earliest);
        }
        // Even a task that tokio wants to pause must be woken in time.
        Pin::new(&mut unconstrained(timer)).poll(cx)
    }
}

/// Stands for a time that no clock can count to.
fn far_away() -> Instant {
    const YEARS: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);
    Instant::now() + YEARS
}

/// Checks a condition again and again, with growing pauses, because no event reports it.
#[derive(Debug)]
pub(super) struct Looks {
    /// In milliseconds; 0 before the first pause.
    pause: u32,
    max: u32,
}

/// The pauses between two looks, in milliseconds. During a stop, the longest is about as long as a client's kernel may
/// delay an acknowledgement. Before a stop, nobody waits for the acknowledgement, so the pause may be longer.
const MIN_PAUSE: u32 = 1;
const MAX_PAUSE_AT_STOP: u32 = 50;
const MAX_PAUSE: u32 = 1_000;

impl Looks {
    pub(super) const SERVING: Self = Self {
        pause: 0,
        max: MAX_PAUSE,
    };

    pub(super) const STOPPING: Self = Self {
        pause: 0,
        max: MAX_PAUSE_AT_STOP,
    };

    /// Makes the looks as frequent as a stop needs them.
    pub(super) fn hurry(&mut self, deadlines: &mut Deadlines) {
        if self.max != MAX_PAUSE_AT_STOP {
            *self = Self::STOPPING;
            deadlines.clear(Deadline::Look);
        }
    }

    /// Waits until the condition is true. Returns whether it had to wait, that is, whether the condition was not true
    /// at once.
    pub(super) fn poll_until(
        &mut self,
        deadlines: &mut Deadlines,
        cx: &mut Context<'_>,
        condition: impl Fn() -> bool,
    ) -> Poll<bool> {
        loop {
            if deadlines.is_set(Deadline::Look) {
                ready!(deadlines.poll(Deadline::Look, cx));
                deadlines.clear(Deadline::Look);
            }
            if condition() {
                return Poll::Ready(self.pause > 0);
            }
            self.pause = (2 * self.pause).clamp(MIN_PAUSE, self.max);
            deadlines.set(Deadline::Look, Duration::from_millis(self.pause.into()));
        }
    }
}
