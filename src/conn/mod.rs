//! One connection: how it is driven, and what a stop does to it.
//!
//! ```text
//! handshaking (TLS) ──done──┐
//!                           ▼
//! parked ──bytes──► active: hyper drives it ──between two requests, after a while or at a stop──► parked
//!    └──time over, or the client has left──► closing ◄──the last response──┘
//! ```
//!
//! The [`Conn`] is the one place that knows the connection's state. Whoever drives the connection tells it.

pub(crate) mod answers;
mod body;
mod close;
mod deadlines;
mod driver;
mod h1;
mod handling;
#[cfg(feature = "tls")]
mod handshake;
mod listening;
mod number;
mod parked;
mod patience;
mod proxied;
mod recordings;
mod respond;
mod state;
#[cfg(test)]
mod tests;

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::task::yield_now;
#[cfg(feature = "tls")]
use tokio::time::timeout;

use crate::contain::contain;
use crate::events::LogLevel;
use crate::net::link::Link;
use crate::net::plain::{self, Stream};
use crate::threads::{self, Spawn};

pub use body::Body;
pub(crate) use h1::Upgraded;
pub(crate) use listening::Listener;
pub(crate) use respond::{BoxError, Outcome, Plain, Respond, clones};
pub(crate) use state::{Accepted, Conn, Inflight};

use deadlines::Deadlines;
use h1::Wire;
#[cfg(feature = "tls")]
use handshake::Handshake;
use parked::{Parked, Wakeup};
use state::Socket;

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
        let conn = Arc::clone(accepted.conn());
        let socket = match accepted.convert(Stream::drive) {
            Ok(socket) => socket,
            Err(error) => {
                let shared = conn.shared();
                let (now, level) = (shared.clock.now(), LogLevel::Error);
                let what = "cannot drive a connection";
                let throttle = &shared.drive_failures;
                shared.events.log_rarely(throttle, now, level, what, &error);
                return;
            }
        };
        let mut deadlines = Deadlines::default();
        let socket = if conn.begins_with_proxy() {
            let Some(socket) = Box::pin(proxied::read(socket, &mut deadlines)).await else {
                return;
            };
            socket
        } else {
            socket
        };
        if !conn.may_enter() {
            refuse(socket, deadlines).await;
            return;
        }
        let Some(wire) = begin(&conn, socket, &mut deadlines).await else {
            return;
        };
        // `make` is called here, and not in the thread that accepts: that thread must survive what the host's code
        // does.
        let service = contain(|| {
            let mut make = make.lock().unwrap_or_else(PoisonError::into_inner);
            make(&conn)
        });
        let Some(respond) = service else {
            let text = "a service panicked when it was made, or cloned, for a connection";
            conn.shared().events.log(LogLevel::Error, text);
            Box::pin(close::close(wire, deadlines, true)).await;
            return;
        };
        let parked = Box::new(Parked::new(wire, deadlines, respond, worker));
        // Mostly the first request is here already. When tokio has looked, the connection need not be parked to wait
        // for it.
        yield_now().await;
        go_on(parked).await;
    });
}

/// Closes a connection that is one too many. It is told so, unless it speaks TLS: a handshake would cost too much.
async fn refuse(socket: Socket<plain::Plain>, deadlines: Deadlines) {
    let last = if socket.conn().shared().has_tls() {
        String::new()
    } else {
        answers::too_many_conns()
    };
    let wire = Wire::refused(socket.map(Link::from), last.as_bytes());
    Box::pin(close::close(wire, deadlines, true)).await;
}

/// Makes a connection ready for HTTP. `None`: it has ended before.
#[cfg(not(feature = "tls"))]
#[allow(clippy::unused_async, reason = "with TLS, it waits for the handshake")]
async fn begin(_: &Arc<Conn>, socket: Socket<plain::Plain>, _: &mut Deadlines) -> Option<Wire> {
    Some(Wire::new(socket.map(Link::from)))
}

/// Makes a connection ready for HTTP. `None`: it has ended before.
#[cfg(feature = "tls")]
async fn begin(
    conn: &Arc<Conn>,
    socket: Socket<plain::Plain>,
    deadlines: &mut Deadlines,
) -> Option<Wire> {
    let Some(tls) = conn.tls() else {
        return Some(Wire::new(socket.map(Link::from)));
    };
    match Box::pin(handshake::run(socket, tls, deadlines)).await {
        Handshake::Done(wire) => Some(wire),
        Handshake::Close(wire) => {
            let deadlines = std::mem::take(deadlines);
            // A client that does not even read what is left for it has no more time than for a handshake.
            let end = Box::pin(close::close(wire, deadlines, true));
            let _ = timeout(tls.limits().timeout, end).await;
            None
        }
        Handshake::Killed => None,
    }
}

/// The task of a connection that is not parked: drives the connection as long as there is something to do.
async fn go_on<R, S>(mut parked: Box<Parked<R, S>>)
where
    R: Respond + Clone,
    S: Spawn,
{
    let conn = Arc::clone(parked.wire.conn());
    let shared = conn.shared();
    // Dropped last, when the buffers of the connection are free.
    let _busy = shared.options.trim_memory.then(|| shared.crowd.join());
    let is_complete = loop {
        let Poll::Ready(wakeup) = parked.look() else {
            conn.driver().park(parked);
            return;
        };
        poll_fn(|cx| {
            conn.driver().driven_by(cx.waker());
            Poll::Ready(())
        })
        .await;
        match wakeup {
            Wakeup::Bytes => {}
            Wakeup::Left => break false,
            Wakeup::TimeOver => {
                conn.closed_idle();
                break false;
            }
            Wakeup::Late => {
                conn.timed_out();
                break false;
            }
        }
        // A connection that is new, or has just been idle for long, will probably be idle for long again.
        let requests = conn.requests();
        let is_busy = requests > 0 && parked.rest() < conn.shared().options.park_after;
        let respond = parked.respond.clone();
        let run = h1::run(parked.wire, &mut parked.deadlines, respond, &conn, is_busy);
        let Some(end) = unless_it_panics(Box::pin(run), &conn).await else {
            return;
        };
        match end {
            h1::End::Idle(wire, since) => {
                parked.wire = wire;
                // Empty lines are no request.
                if conn.requests() != requests {
                    parked.rests_since(since);
                }
            }
            h1::End::Close { wire, is_complete } => {
                conn.listening().close();
                parked.wire = wire;
                break is_complete;
            }
            h1::End::Cut(mut wire) => {
                conn.listening().close();
                // Earlier answers go out before the reset, as far as the kernel takes them now.
                let _ = poll_fn(|cx| Poll::Ready(wire.poll_rescue(cx))).await;
                return;
            }
            h1::End::HandedOver(lent) => {
                conn.hijacked_if_open();
                listen(&conn, &mut parked.deadlines).await;
                let Some(wire) = lent.take_back() else {
                    // The new owner may keep the connection for long, and does not need the task's waker.
                    conn.driver().look();
                    return;
                };
                // What the owner has written last must not be lost, like the end of an answer.
                conn.let_go();
                parked.wire = wire;
                break true;
            }
        }
    };
    Box::pin(close::close(parked.wire, parked.deadlines, is_complete)).await;
}

/// As long as somebody listens to a connection that was handed over, tells them of the drain and of a kill.
async fn listen(conn: &Conn, deadlines: &mut Deadlines) {
    let (mut drain_is_near, mut is_killed) = (false, false);
    poll_fn(|cx| {
        let listening = conn.listening();
        if !listening.is_set() {
            return Poll::Ready(());
        }
        let phase = conn.shared().phases.get();
        if phase.cuts() && !std::mem::replace(&mut is_killed, true) {
            listening.drains();
        }
        h1::tell_listener(&mut drain_is_near, phase, deadlines, conn, cx);
        Poll::Pending
    })
    .await;
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
