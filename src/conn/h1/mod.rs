//! HTTP/1, by hyper.
//!
//! hyper speaks over a [`Transport`], which notices every byte and gives it one request at a time, and calls a service
//! that notices every request. Both tell the [`Progress`]. hyper's own graceful shutdown is never called: it closes a
//! new or an idle connection even when a request is on its way.

mod framing;
mod persistence;
mod progress;
mod reply_body;
mod service;
mod upgraded;
mod validate;
mod wire;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use crate::limits::Limit;
use crate::options::Options;
use crate::phase::Phase;

use super::deadlines::{Deadline, Deadlines};
use super::patience::Patience;
use super::respond::Respond;
use super::state::Conn;
use super::until_kill;

pub(super) use framing::{BodyLength, is_request};
pub(super) use progress::{BodyFault, Progress};
pub(crate) use upgraded::Upgraded;
pub(super) use wire::Wire;

use service::Tracked;
use wire::{Slot, Transport};

/// What hyper has by default: the maximum number of bytes that it reads at once, and of fields in a head.
const HYPER_BUFFER: usize = 8192 + 4096 * 100;
const HYPER_HEADERS: usize = 100;

/// How HTTP/1 on a connection has ended.
pub(super) enum End {
    /// There has been nothing to do for a while, since this moment. Or there is nothing to do, and the server stops.
    Idle(Wire, Instant),
    /// The connection is to be closed.
    Close {
        wire: Wire,
        /// Everything that there was to write is written, or waits in the wire.
        is_complete: bool,
    },
    /// The connection is to be reset: by a kill, or because an error has ended it during a response whose end is the
    /// end of the connection. Earlier answers may wait in the wire.
    Cut(Wire),
    /// The connection was upgraded, and belongs to somebody else now.
    HandedOver(Lent),
}

/// The wire of a connection that belongs to somebody else.
pub(super) struct Lent(Slot);

impl Lent {
    /// The wire, if nobody else has it any more. Otherwise the connection ends when the other owner does.
    pub(super) fn take_back(self) -> Option<Wire> {
        wire::take_back(self.0)
    }
}

/// Lets hyper drive the connection until it has been idle for a while or, if it is not busy, for a moment.
pub(super) async fn run<R: Respond>(
    wire: Wire,
    deadlines: &mut Deadlines,
    respond: R,
    conn: &Arc<Conn>,
    is_busy: bool,
) -> End {
    let service = Tracked::new(respond, Arc::clone(conn));
    let slot = wire::slot(wire);
    let why = drive(service, &slot, deadlines, conn, is_busy).await;
    let Some(mut wire) = wire::take(&slot) else {
        return End::HandedOver(Lent(slot));
    };
    // A request that is lost is not driven any more; its listener may want to know.
    conn.listening().call();
    match why {
        Why::Idle(since) => End::Idle(wire, since),
        // hyper does not read a body to its end if nobody else reads it.
        Why::Done if conn.h1.goes_on() && !conn.h1.has_read_body() => {
            match until_kill(conn, |cx| wire.poll_rescue(cx)).await {
                Some(Ok(())) => {
                    wire.flushed();
                    End::Idle(wire, Instant::now())
                }
                _ => End::Close {
                    wire,
                    is_complete: false,
                },
            }
        }
        Why::Done => End::Close {
            wire,
            is_complete: true,
        },
        Why::Failed => End::Close {
            wire,
            is_complete: false,
        },
        Why::Late => {
            wire.answer_late();
            End::Close {
                wire,
                is_complete: false,
            }
        }
        Why::Cut => End::Cut(wire),
    }
}

/// Why hyper drives the connection no more.
enum Why {
    /// See [`End::Idle`].
    Idle(Instant),
    /// hyper has written everything. The connection is to be closed, or was upgraded.
    Done,
    /// hyper has ended with an error. Some bytes of the answers may not have been written.
    Failed,
    /// A request's head did not come in time.
    Late,
    /// See [`End::Cut`].
    Cut,
}

/// Like [`run`], but the wire stays in the slot.
#[allow(
    clippy::too_many_lines,
    reason = "what a connection waits for, in the order that decides"
)]
async fn drive<R: Respond>(
    service: Tracked<R>,
    slot: &Slot,
    deadlines: &mut Deadlines,
    conn: &Arc<Conn>,
    is_busy: bool,
) -> Why {
    let options = &conn.shared().options;
    let http = parser(options)
        .serve_connection(TokioIo::new(Transport::new(slot)), service)
        .with_upgrades();
    let mut http = pin!(http);
    let mut head = None;
    let mut reader = None;
    let mut pause = None;
    let mut drain_is_near = false;
    let rate = options.least_rate();
    let mut body = Patience::new(Deadline::Body, options.body_timeout, rate);
    let mut write = Patience::new(Deadline::Write, options.write_timeout, rate);

    poll_fn(|cx| {
        // This check comes before hyper is polled, because hyper might just now get an answer that comes too late. But
        // the kill's own 503 may still go out.
        let phase = conn.shared().phases.get();
        if phase.cuts() && !conn.is_refused() {
            conn.cut();
            return Poll::Ready(Why::Cut);
        }
        if let Poll::Ready(result) = http.as_mut().poll(cx) {
            return Poll::Ready(match result {
                Err(_) if conn.is_cut() => {
                    conn.cut();
                    Why::Cut
                }
                Err(error) if error.is_parse() => {
                    if error.is_parse_too_large() {
                        conn.limit_bites(Limit::Head);
                    }
                    conn.head_refused();
                    Why::Done
                }
                Err(_) => Why::Failed,
                Ok(()) => Why::Done,
            });
        }
        if phase.cuts() {
            conn.cut();
            return Poll::Ready(Why::Cut);
        }
        if let Some(handled) = conn.handled()
            && handled
                .poll_overdue(conn.shared(), deadlines, cx)
                .is_ready()
        {
            conn.listening().overdue();
        }
        if conn.listening().is_asking() {
            tell_listener(&mut drain_is_near, phase, deadlines, conn, cx);
        }
        let h1 = &conn.h1;
        let is_body_late = body
            .poll_end(
                h1.is_body_missing(),
                h1.body_waits(),
                || h1.received(),
                deadlines,
                cx,
            )
            .is_ready();
        if is_body_late {
            // hyper reads again, and is told.
            h1.body_failed(BodyFault::TooSlow);
            conn.timed_out();
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let is_answer_stuck = write
            .poll_end(
                h1.is_write_blocked(),
                h1.write_waits(),
                || wire::acked(slot),
                deadlines,
                cx,
            )
            .is_ready();
        if is_answer_stuck {
            conn.timed_out();
            conn.cut();
            return Poll::Ready(Why::Cut);
        }
        let idle_since = if phase.drains() && conn.is_at_rest() {
            Some(Instant::now())
        } else if phase.drains() && conn.is_between_requests() && !conn.h1.is_upgraded() {
            // The last request is answered, and its body is not through: somebody may still read it, and gets it from
            // hyper. Each piece must come, and be read, in the time that a next request would have.
            let pieces = conn.h1.pieces();
            if reader.replace(pieces) != Some(pieces) {
                deadlines.set(Deadline::Reader, options.idle_grace);
            }
            ready!(deadlines.poll(Deadline::Reader, cx));
            Some(Instant::now())
        } else if conn.is_idle() {
            if is_busy {
                long_pause(&mut pause, deadlines, conn, cx)
            } else {
                Some(Instant::now())
            }
        } else {
            None
        };
        if let Some(since) = idle_since {
            // hyper may still wait to tell a handler that a body has ended, though the handler does not want that body.
            let is_last = conn.is_close_announced() || (conn.requests() > 0 && !conn.h1.goes_on());
            return Poll::Ready(if is_last { Why::Done } else { Why::Idle(since) });
        }
        if !conn.h1.is_reading_head() {
            if head.take().is_some() {
                deadlines.clear(Deadline::Head);
            }
            return Poll::Pending;
        }
        // Another head may have begun right where the previous one has ended.
        let requests = conn.requests();
        if head.replace(requests) != Some(requests) {
            deadlines.set(Deadline::Head, options.header_timeout);
        }
        ready!(deadlines.poll(Deadline::Head, cx));
        conn.timed_out();
        Poll::Ready(Why::Late)
    })
    .await
}

/// Tells whoever listens what they want to know. `drain_is_near`: it is known when the drain's turn is.
pub(super) fn tell_listener(
    drain_is_near: &mut bool,
    phase: Phase,
    deadlines: &mut Deadlines,
    conn: &Conn,
    cx: &mut Context<'_>,
) {
    let listening = conn.listening();
    if !phase.drains() || !listening.waits_for_drain() {
        *drain_is_near = false;
    } else {
        if !std::mem::replace(drain_is_near, true) {
            deadlines.set(Deadline::Drain, conn.shared().next_drain_turn());
        }
        if deadlines.poll(Deadline::Drain, cx).is_ready() {
            listening.drains();
        }
    }
    listening.call();
}

/// hyper, as it is used here.
fn parser(options: &Options) -> http1::Builder {
    // half_close: a client that sends its request and then a FIN still reads the answer; by default hyper would cancel
    // its handler.
    // writev: what hyper writes at once it copies together. For short responses, the copy costs less than to keep
    // account of their pieces; for long ones it costs no more, if the kernel finds the copy in the processor's cache.
    let mut http = http1::Builder::new();
    http.half_close(true).writev(false);
    let most = options.max_head_size();
    http.max_header_size(most);
    if most > HYPER_BUFFER {
        http.max_buf_size(most);
    }
    // With its own default number, hyper has no need to allocate.
    if let Some(count) = options.max_headers
        && count.get() != HYPER_HEADERS
    {
        http.max_headers(count.get());
    }
    http
}

/// A pause between two requests: the number of requests when the pause was first seen, and the moment of that.
type Pause = (u64, Instant);

/// Since when a connection has been idle, if that is long enough for it to be parked. To set a deadline for each pause
/// would cost every request something; so the number of requests is compared only now and then.
fn long_pause(
    pause: &mut Option<Pause>,
    deadlines: &mut Deadlines,
    conn: &Conn,
    cx: &mut Context<'_>,
) -> Option<Instant> {
    let requests = conn.requests();
    match pause {
        Some(_) if deadlines.poll_again(Deadline::Pause, cx).is_pending() => return None,
        Some((then, since)) if *then == requests => return Some(*since),
        _ => {}
    }
    let options = &conn.shared().options;
    let since = Instant::now();
    *pause = Some((requests, since));
    let patience = options.park_after.min(options.idle_timeout);
    deadlines.set(Deadline::Pause, patience);
    let poll = deadlines.poll(Deadline::Pause, cx);
    poll.is_ready().then_some(since)
}
