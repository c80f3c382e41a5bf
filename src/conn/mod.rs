//! One connection: how it is driven, and what a stop does to it.
//!
//! ```text
//! parked ──bytes──► active: hyper drives it ──between two requests, after a while or at a stop──► parked
//!    └──time over, or the client has left──► closing ◄──the last response──┘
//! ```
//!
//! hyper speaks HTTP over a [`Transport`], which notices every byte, and calls a service that notices every request.
//! Both tell the [`Conn`], which is the one place that knows the connection's state. hyper's own graceful shutdown is
//! never called: it closes a new or an idle connection even when a request is on its way.

mod body;
mod framing;
mod number;
mod park;
mod service;
mod state;
#[cfg(test)]
mod tests;
mod validate;
mod wire;

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::task::{unconstrained, yield_now};
use tokio::time::{Instant, Sleep, sleep};

use crate::contain::contain;
use crate::events::LogLevel;
use crate::threads::{self, Spawn};

pub use body::Body;
pub(crate) use service::{BoxError, Outcome, Plain, Respond, clones};
pub(crate) use state::{Accepted, Conn, Inflight};

use park::Resume;
use service::Tracked;
use wire::{Slot, Transport, Wire};

/// How often the connection checks whether its client has acknowledged all that it was sent. The pause, in
/// milliseconds, is short at first, and grows. During a stop its maximum is about as long as a client's kernel may
/// delay an acknowledgement. Before a stop, nobody waits for the acknowledgement, so the pause may be longer.
const MIN_PAUSE: u32 = 1;
const MAX_PAUSE_AT_STOP: u32 = 50;
const MAX_PAUSE: u32 = 1_000;

/// How much longer a new connection's grace is for each time that the handshake was repeated. The client took the delay
/// of that repetition for the round trip. If its request is lost on the way too, the client repeats it only after three
/// times as long: 3 s after the first repetition, at 1 s (RFC 6298), 9 s after the second, at 3 s.
const REQUEST_RETRANSMISSION: Duration = Duration::from_millis(4_500);

/// Serves one connection to its end. `make` creates the service that answers its requests.
pub(crate) fn serve<M, R, S>(accepted: Accepted, make: &Arc<Mutex<M>>, worker: Arc<S>)
where
    M: FnMut(&Arc<Conn>) -> R + Send + 'static,
    R: Respond + Clone,
    S: Spawn,
{
    let runs = Arc::clone(&worker);
    let make = Arc::clone(make);
    runs.spawn(async move {
        // `make` is called here, and not in the thread that accepts: that thread must survive what the host's code
        // does.
        let service = contain(|| {
            let mut make = make.lock().unwrap_or_else(PoisonError::into_inner);
            make(accepted.conn())
        });
        let Some(respond) = service else {
            let events = &accepted.conn().shared().events;
            let text = "a service panicked when it was made, or cloned, for a connection";
            events.log(LogLevel::Error, text);
            return;
        };
        let conn = Arc::clone(accepted.conn());
        let wire = match Wire::new(accepted) {
            Ok(wire) => wire,
            Err(error) => {
                let shared = conn.shared();
                let (now, level) = (shared.clock.now(), LogLevel::Error);
                let what = "cannot drive a connection";
                let throttle = &shared.drive_failures;
                shared.events.log_rarely(throttle, now, level, what, &error);
                return;
            }
        };
        let parked = Box::new(Parked {
            wire,
            idle_since: Instant::now(),
            timers: None,
            respond,
            worker,
        });
        // Mostly the first request is here already. When tokio has looked, the connection need not be parked to wait
        // for it.
        yield_now().await;
        go_on(parked).await;
    });
}

/// The task of a connection that is not parked: drives the connection as long as there is something to do.
async fn go_on<R, S>(mut parked: Box<Parked<R, S>>)
where
    R: Respond + Clone,
    S: Spawn,
{
    let conn = Arc::clone(parked.wire.conn());
    let complete = loop {
        let Poll::Ready(event) = parked.look() else {
            conn.driver().park(parked);
            return;
        };
        poll_fn(|cx| {
            conn.driver().driven_by(cx.waker());
            Poll::Ready(())
        })
        .await;
        match event {
            Event::Bytes => {}
            Event::Left => break false,
            Event::TimeOver => {
                conn.closed_idle();
                break false;
            }
        }
        // A connection that is new, or has just been idle for long, will probably be idle for long again.
        let park_after = conn.shared().options.park_after;
        let requests = conn.requests();
        let is_busy = requests > 0 && parked.idle_since.elapsed() < park_after;
        let service = Tracked::new(parked.respond.clone(), Arc::clone(&conn));
        let active = Box::pin(active(parked.wire, service, &conn, is_busy));
        let Some((end, left)) = unless_it_panics(active, &conn).await else {
            return;
        };
        let Some(left) = left else {
            conn.hijacked_if_open();
            // The new owner of the connection may keep it for long, and does not need the task's waker.
            conn.driver().look();
            return;
        };
        parked.wire = left;
        match end {
            // Empty lines are no request.
            End::Parked(_) if conn.requests() == requests => {}
            End::Parked(since) => parked.rests_since(since),
            // hyper does not read a body to its end if nobody else reads it.
            End::Done if conn.goes_on() && !conn.has_read_body() => {
                let rescue = until_kill(&conn, |cx| parked.wire.poll_rescue(cx));
                let Some(Ok(())) = rescue.await else {
                    break false;
                };
                parked.wire.flushed();
                parked.rests_since(Instant::now());
            }
            End::Done => break true,
            End::Failed => break false,
            End::Late => {
                parked.wire.answer_late();
                break false;
            }
            End::Cut => {
                // Earlier answers go out before the reset, as far as the kernel takes them now.
                let _ = poll_fn(|cx| Poll::Ready(parked.wire.poll_rescue(cx))).await;
                return;
            }
        }
    };
    Box::pin(close(parked.wire, complete)).await;
}

/// Drives a connection to the end of its activity. Returns `None` if the host's code panics where nobody expects a
/// panic, for example when something is dropped. After such a panic, or if the runtime ends before the activity does,
/// the requests under way have failed.
async fn unless_it_panics<T>(
    active: Pin<Box<impl Future<Output = T>>>,
    conn: &Arc<Conn>,
) -> Option<T> {
    let mut unfinished = Unfinished {
        // The activity is dropped after the connection has been told.
        active: Some(active),
        conn: Some(conn),
    };
    let end = poll_fn(|cx| {
        let Some(active) = &mut unfinished.active else {
            return Poll::Ready(None);
        };
        let poll = || threads::driving(conn.shared().id, || active.as_mut().poll(cx));
        match contain(poll) {
            Some(poll) => poll.map(Some),
            None => Poll::Ready(None),
        }
    })
    .await;
    if end.is_some() {
        unfinished.conn = None;
    } else {
        let events = &conn.shared().events;
        events.log(LogLevel::Error, "the host's code panicked in a connection");
        events.sum("handler.error", 1.0);
    }
    // What is left of the activity may be the host's code, too, and may panic when dropped.
    contain(|| drop(unfinished));
    end
}

/// A connection that may be dropped in the middle of a request.
struct Unfinished<'a, F> {
    active: Option<Pin<Box<F>>>,
    conn: Option<&'a Arc<Conn>>,
}

impl<F> Drop for Unfinished<'_, F> {
    fn drop(&mut self) {
        if let Some(conn) = self.conn {
            conn.requests_failed();
        }
        self.active = None;
    }
}

/// A connection that is new or idle, and has no parser. While nothing happens, this is all that is kept of the
/// connection; it needs no task either.
struct Parked<R, S> {
    wire: Wire,
    idle_since: Instant,
    timers: Option<Box<Timers>>,
    respond: R,
    worker: Arc<S>,
}

/// What ends the rest of a parked connection.
enum Event {
    /// There is something to read.
    Bytes,
    /// The client has left.
    Left,
    /// The connection is to be closed.
    TimeOver,
}

/// How long a connection may still be parked. Most connections need no timer.
struct Timers {
    patience: Option<Pin<Box<Sleep>>>,
    last_answer: Backoff,
    grace: Option<Pin<Box<Sleep>>>,
    last_answer_at_stop: Backoff,
}

impl<R: Respond + Clone, S: Spawn> Parked<R, S> {
    /// Whether there is something to do. If not, the caller must park this connection: what happens from now on is told
    /// to its [`Conn`].
    fn look(&mut self) -> Poll<Event> {
        let conn = Arc::clone(self.wire.conn());
        conn.driver().look();
        self.poll(&mut Context::from_waker(&Waker::from(conn)))
    }

    fn rests_since(&mut self, since: Instant) {
        self.idle_since = since;
        self.timers = None;
        self.wire.unwatch_reset();
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        let Self { wire, timers, .. } = self;
        // A request that has reached this host is served, whatever the timers say.
        if let Poll::Ready(has_bytes) = wire.poll_readable(cx) {
            return Poll::Ready(if has_bytes { Event::Bytes } else { Event::Left });
        }
        if wire.has_skipped() {
            // A client that still sends is not idle.
            self.idle_since = Instant::now();
            if let Some(timers) = timers {
                timers.patience = None;
            }
        }
        let conn = wire.conn();
        let shared = conn.shared();
        let phase = shared.phases.get();
        let timeout = shared.options.idle_timeout;
        if !phase.drains() {
            if timeout == Duration::MAX {
                return Poll::Pending;
            }
            let Timers {
                patience,
                last_answer,
                ..
            } = &mut **timers.get_or_insert_default();
            // A client that has not received the last answer yet is not idle.
            if patience.is_none() && ready!(last_answer.poll_until(cx, || !wire.is_delivering())) {
                self.idle_since = Instant::now();
            }
            let patience = patience.get_or_insert_with(|| {
                Box::pin(sleep(timeout.saturating_sub(self.idle_since.elapsed())))
            });
            ready!(patience.as_mut().poll(cx));
        } else if !phase.cuts() {
            let Timers {
                grace,
                last_answer_at_stop,
                ..
            } = &mut **timers.get_or_insert_default();
            // A request that is on its way is served: the grace is the time in which it may arrive. The grace begins
            // when the last answer has arrived.
            if grace.is_none() {
                ready!(last_answer_at_stop.poll_until(cx, || !wire.is_delivering()));
            }
            let grace = grace.get_or_insert_with(|| {
                let repeats = wire.handshake_repeats();
                let patience = REQUEST_RETRANSMISSION.saturating_mul(repeats);
                Box::pin(sleep(shared.options.idle_grace.saturating_add(patience)))
            });
            ready!(grace.as_mut().poll(cx));
        }
        // tokio may not know yet that the kernel has bytes. It will wake this connection for them.
        if !phase.cuts() && conn.has_unread() {
            return Poll::Pending;
        }
        Poll::Ready(Event::TimeOver)
    }
}

impl<R: Respond + Clone, S: Spawn> Resume for Parked<R, S> {
    fn resume(self: Box<Self>) {
        Arc::clone(&self.worker).spawn(go_on(self));
    }
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            patience: None,
            last_answer: Backoff::up_to(MAX_PAUSE),
            grace: None,
            last_answer_at_stop: Backoff::up_to(MAX_PAUSE_AT_STOP),
        }
    }
}

/// Checks a condition again and again, where no event reports it.
#[derive(Debug)]
struct Backoff {
    /// In milliseconds.
    pause: u32,
    max: u32,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Backoff {
    fn up_to(max: u32) -> Self {
        Self {
            pause: 0,
            max,
            timer: None,
        }
    }

    /// Waits until the condition is true. Returns whether it had to wait, that is, whether the condition was not true
    /// at once.
    fn poll_until(&mut self, cx: &mut Context<'_>, condition: impl Fn() -> bool) -> Poll<bool> {
        loop {
            if let Some(timer) = &mut self.timer {
                ready!(timer.as_mut().poll(cx));
            }
            if condition() {
                return Poll::Ready(self.timer.is_some());
            }
            self.pause = (2 * self.pause).clamp(MIN_PAUSE, self.max);
            let pause = Duration::from_millis(self.pause.into());
            self.timer = Some(Box::pin(sleep(pause)));
        }
    }
}

/// How hyper's work on a connection ended.
enum End {
    /// There has been nothing to do for a while, since this moment. Or there is nothing to do, and the server stops.
    Parked(Instant),
    /// All has been written. The connection is to be closed, or it was upgraded.
    Done,
    /// hyper has ended with an error. Some bytes of the answers may not have been written.
    Failed,
    /// A request's head did not come in time.
    Late,
    /// A kill has cut the connection. Or an error has ended it during a response whose end is the end of the
    /// connection.
    Cut,
}

/// Lets hyper drive the connection until it has been idle for a while or, if it is not busy, for a moment. Returns the
/// wire, unless the connection was upgraded.
async fn active<R: Respond>(
    wire: Wire,
    service: Tracked<R>,
    conn: &Arc<Conn>,
    is_busy: bool,
) -> (End, Option<Wire>) {
    let slot = wire::slot(wire);
    let end = drive(service, &slot, conn, is_busy).await;
    (end, wire::take(&slot))
}

/// Like [`active`], but the wire stays in the slot.
async fn drive<R: Respond>(
    service: Tracked<R>,
    slot: &Slot,
    conn: &Arc<Conn>,
    is_busy: bool,
) -> End {
    let shared = conn.shared();
    // half_close: a client that sends its request and then a FIN still reads the answer; by default hyper would cancel
    // its handler.
    // writev: what hyper writes at once it copies together. For short responses, the copy costs less than to keep
    // account of their pieces; for long ones it costs no more, if the kernel finds the copy in the processor's cache.
    let http = http1::Builder::new()
        .half_close(true)
        .writev(false)
        .serve_connection(TokioIo::new(Transport::new(slot)), service)
        .with_upgrades();
    let mut http = pin!(http);
    let mut header_timer = None;
    let mut pause = None;
    let mut rest = None;

    poll_fn(|cx| {
        // This check comes before hyper is polled, because hyper might just now get an answer that comes too late. But
        // the kill's own 503 may still go out.
        let phase = shared.phases.get();
        if phase.cuts() && !conn.is_refused() {
            conn.cut();
            return Poll::Ready(End::Cut);
        }
        if let Poll::Ready(result) = http.as_mut().poll(cx) {
            return Poll::Ready(match result {
                Err(_) if conn.is_cut() => {
                    conn.cut();
                    End::Cut
                }
                Err(error) if error.is_parse() => {
                    conn.head_refused();
                    End::Done
                }
                Err(_) => End::Failed,
                Ok(()) => End::Done,
            });
        }
        if phase.cuts() {
            conn.cut();
            return Poll::Ready(End::Cut);
        }
        let idle_since = if phase.drains() && conn.is_at_rest() {
            Some(Instant::now())
        } else if phase.drains() && conn.is_between_requests() && !conn.is_waiting_for_bytes() {
            // A handler that still reads the last request's body gets it from hyper. For each piece it has the time
            // that a next request would have.
            let reads = conn.reads();
            rest.take_if(|(then, _)| *then != reads);
            let grace = || (reads, Box::pin(sleep(shared.options.idle_grace)));
            let (_, timer) = rest.get_or_insert_with(grace);
            ready!(timer.as_mut().poll(cx));
            Some(Instant::now())
        } else if conn.is_idle() {
            if is_busy {
                long_pause(&mut pause, conn, cx)
            } else {
                Some(Instant::now())
            }
        } else {
            None
        };
        if let Some(since) = idle_since {
            // hyper may still wait to tell a handler that a body has ended, though the handler does not want that body.
            let is_last = conn.is_close_announced();
            return Poll::Ready(if is_last {
                End::Done
            } else {
                End::Parked(since)
            });
        }
        if !conn.is_reading_head() {
            header_timer = None;
            return Poll::Pending;
        }
        // Another head may have begun right where the previous one has ended.
        let head = conn.requests();
        header_timer.take_if(|(timed, _)| *timed != head);
        let (_, timer) = header_timer
            .get_or_insert_with(|| (head, Box::pin(sleep(shared.options.header_timeout))));
        ready!(timer.as_mut().poll(cx));
        conn.timed_out();
        Poll::Ready(End::Late)
    })
    .await
}

/// A pause between two requests: the number of requests when the pause was first seen, the moment of that, and the
/// timer that says when to look again.
type Pause = (u64, Instant, Pin<Box<Sleep>>);

/// Since when a connection has been idle, if that is long enough for it to be parked. A timer for each pause would cost
/// every request something; so the number of requests is compared only now and then.
fn long_pause(pause: &mut Option<Pause>, conn: &Conn, cx: &mut Context<'_>) -> Option<Instant> {
    let requests = conn.requests();
    match pause {
        Some((.., timer)) if !timer.is_elapsed() => return None,
        Some((then, since, _)) if *then == requests => return Some(*since),
        _ => {}
    }
    let options = &conn.shared().options;
    let mut timer = Box::pin(sleep(options.park_after.min(options.idle_timeout)));
    // The timer is not polled again here, so it must be registered by this poll, even when tokio wants the task to
    // pause.
    let _ = Pin::new(&mut unconstrained(timer.as_mut())).poll(cx);
    *pause = Some((requests, Instant::now(), timer));
    None
}

/// Closes our side, and then reads and discards until the client closes its side. If the socket were closed while the
/// client still sends, the kernel would answer with a reset, which destroys what the client has not read yet
/// (RFC 9112, 9.6). During a stop, this function also waits until the client's kernel has acknowledged all bytes: the
/// end of the process or of the machine, which may follow the stop, must not destroy them either.
///
/// `complete`: all that hyper had is written, or waits in the wire.
async fn close(mut wire: Wire, complete: bool) {
    let conn = Arc::clone(wire.conn());
    let _ = until_kill(&conn, |cx| wire.poll_rescue(cx)).await;
    if complete {
        wire.flushed();
    }
    let Some(Ok(())) = until_kill(&conn, |cx| wire.poll_shutdown(cx)).await else {
        return; // The client has gone, or a kill has begun.
    };
    let mut linger: Option<Pin<Box<Sleep>>> = None;
    until_kill(&conn, |cx| {
        // The timer is polled first. A client that sends without pause uses up all that tokio lets a task do at a time,
        // and leaves nothing for the timer.
        if let Some(timer) = &mut linger
            && timer.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(());
        }
        if wire.poll_discard(cx).is_ready() {
            return Poll::Ready(());
        }
        // Mostly the client has closed already, and this timer is never created.
        let timeout = conn.shared().options.linger_timeout;
        let timer = linger.get_or_insert_with(|| Box::pin(sleep(timeout)));
        timer.as_mut().poll(cx)
    })
    .await;
    let mut delivery = Backoff::up_to(MAX_PAUSE_AT_STOP);
    until_kill(&conn, |cx| {
        // A stop may begin while this waits.
        let has_arrived = || !conn.is_stopping() || !wire.is_delivering();
        if delivery.poll_until(cx, has_arrived).is_pending() {
            // Bytes left unread would cause a reset.
            let _ = wire.poll_discard(cx);
            return Poll::Pending;
        }
        Poll::Ready(())
    })
    .await;
}

/// Waits until `poll` is ready, or until the server has begun to kill; then returns `None`. `poll` is called whenever
/// the task is woken.
async fn until_kill<T>(
    conn: &Conn,
    mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
) -> Option<T> {
    poll_fn(|cx| match poll(cx) {
        Poll::Ready(result) => Poll::Ready(Some(result)),
        Poll::Pending if conn.is_killed() => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    })
    .await
}
