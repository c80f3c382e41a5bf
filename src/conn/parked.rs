//! A connection that is new or idle.

use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::time::Instant;

use crate::options::Options;
use crate::threads::Spawn;

use super::deadlines::{Deadline, Deadlines, Looks};
use super::driver::Resume;
use super::go_on;
use super::h1::Wire;
use super::respond::Respond;

/// How much longer a new connection's grace is for each time that the handshake was repeated. The client took the delay
/// of that repetition for the round trip. If its request is lost on the way too, the client repeats it only after three
/// times as long: 3 s after the first repetition, at 1 s (RFC 6298), 9 s after the second, at 3 s.
const REQUEST_RETRANSMISSION: Duration = Duration::from_millis(4_500);

/// How long a stop waits for the first bytes on a new connection, whose handshake was repeated so many times.
pub(super) fn grace(options: &Options, handshake_repeats: u32) -> Duration {
    let patience = REQUEST_RETRANSMISSION.saturating_mul(handshake_repeats);
    options.idle_grace.saturating_add(patience)
}

/// A connection that is new or idle, and has no parser. While nothing happens, this is all that is kept of the
/// connection; it needs no task either.
pub(super) struct Parked<R, S> {
    pub(super) wire: Wire,
    pub(super) deadlines: Deadlines,
    looks: Looks,
    idle_since: Instant,
    pub(super) respond: R,
    worker: Arc<S>,
}

/// What ends the rest of a parked connection.
pub(super) enum Wakeup {
    /// There is something to read.
    Bytes,
    /// The client has left.
    Left,
    /// The connection is to be closed.
    TimeOver,
    /// A part of a record has come, and not its rest in time.
    Late,
}

impl<R: Respond + Clone, S: Spawn> Parked<R, S> {
    pub(super) fn new(wire: Wire, deadlines: Deadlines, respond: R, worker: Arc<S>) -> Self {
        Self {
            wire,
            deadlines,
            looks: Looks::SERVING,
            idle_since: Instant::now(),
            respond,
            worker,
        }
    }

    /// Whether there is something to do. If not, the caller must park this connection: what happens from now on is told
    /// to its [`Conn`].
    pub(super) fn look(&mut self) -> Poll<Wakeup> {
        let conn = Arc::clone(self.wire.conn());
        conn.driver().look();
        self.poll(&mut Context::from_waker(&Waker::from(conn)))
    }

    /// The connection has been idle since this moment.
    pub(super) fn rests_since(&mut self, since: Instant) {
        self.idle_since = since;
        self.deadlines.clear_all();
        self.looks = Looks::SERVING;
        self.wire.has_skipped();
        self.wire.unwatch_reset();
    }

    /// For how long the connection has been idle.
    pub(super) fn rest(&self) -> Duration {
        self.idle_since.elapsed()
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Wakeup> {
        let Self {
            wire,
            deadlines,
            looks,
            idle_since,
            ..
        } = self;
        // A request that has reached this host is served, whatever the deadlines say.
        if let Poll::Ready(has_bytes) = wire.poll_readable(cx) {
            return Poll::Ready(if has_bytes {
                Wakeup::Bytes
            } else {
                Wakeup::Left
            });
        }
        if wire.holds_part() && !wire.conn().is_killed() {
            // This may be a request, until its rest tells.
            if !deadlines.is_set(Deadline::Head) {
                let options = &wire.conn().shared().options;
                deadlines.set(Deadline::Head, options.header_timeout);
            }
            ready!(deadlines.poll(Deadline::Head, cx));
            return Poll::Ready(Wakeup::Late);
        }
        deadlines.clear(Deadline::Head);
        if wire.has_skipped() {
            // A client that still sends is not idle.
            *idle_since = Instant::now();
            deadlines.clear(Deadline::Idle);
        }
        let conn = wire.conn();
        let options = &conn.shared().options;
        let phase = conn.shared().phases.get();
        let has_arrived = || !wire.is_delivering();
        if !phase.drains() {
            if options.idle_timeout == Duration::MAX {
                return Poll::Pending;
            }
            if !deadlines.is_set(Deadline::Idle) {
                // A client that has not received the last answer yet is not idle.
                if ready!(looks.poll_until(deadlines, cx, has_arrived)) {
                    *idle_since = Instant::now();
                }
                deadlines.set_from(*idle_since, Deadline::Idle, options.idle_timeout);
            }
            ready!(deadlines.poll(Deadline::Idle, cx));
        } else if !phase.cuts() {
            // A request that is on its way is served: the grace is the time in which it may arrive. The grace begins
            // when the last answer has arrived.
            if !deadlines.is_set(Deadline::Grace) {
                looks.hurry(deadlines);
                ready!(looks.poll_until(deadlines, cx, has_arrived));
                deadlines.set(Deadline::Grace, grace(options, wire.handshake_repeats()));
            }
            ready!(deadlines.poll(Deadline::Grace, cx));
        }
        // tokio may not know yet that the kernel has bytes. It will wake this connection for them.
        if !phase.cuts() && conn.has_unread() {
            return Poll::Pending;
        }
        Poll::Ready(Wakeup::TimeOver)
    }
}

impl<R: Respond + Clone, S: Spawn> Resume for Parked<R, S> {
    fn resume(self: Box<Self>) {
        Arc::clone(&self.worker).spawn(go_on(self));
    }
}
