//! One connection: how it is driven, and what a stop does to it.
//!
//! hyper speaks HTTP over a [`Socket`] that notices every byte, and to a service that notices every request; both tell
//! the [`Conn`], which is the one place that knows the connection's state.

mod io;
mod service;
mod track;

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::sleep;

use crate::events::LogLevel;
use crate::lifecycle::Phase;

pub(crate) use service::{BoxError, Plain, Respond};
pub(crate) use track::{Accepted, Conn, Fate, Inflight, Registry};
pub use track::{ConnInfo, ConnState};

use io::Socket;
use service::Tracked;

/// How a connection came to its end.
enum End {
    /// hyper is done with it: closed on either side, or handed to whoever upgraded it.
    Done,
    /// A kill cut it.
    Cut,
    /// A request's head did not come in time.
    HeaderTimeout,
}

/// Serves one connection to its end.
pub(crate) async fn serve<R: Respond>(accepted: Accepted, respond: R) {
    let shared = Arc::clone(accepted.conn().shared());
    let conn = Arc::clone(accepted.conn());
    let socket = match Socket::new(accepted) {
        Ok(socket) => socket,
        Err(error) => {
            shared.events.log(
                LogLevel::Error,
                format!("cannot drive a connection: {error}"),
            );
            return;
        }
    };
    if let End::Done = drive(socket, respond, &conn).await {
        conn.hijacked_if_open();
    }
}

async fn drive<R: Respond>(socket: Socket, respond: R, conn: &Arc<Conn>) -> End {
    let shared = conn.shared();
    // half_close: a client that sends its request and then a FIN still reads; by default hyper would cancel its handler.
    let http = http1::Builder::new()
        .half_close(true)
        .serve_connection(
            TokioIo::new(socket),
            Tracked::new(respond, Arc::clone(conn)),
        )
        .with_upgrades();
    let mut http = pin!(http);
    let (mut registered, mut closing) = (false, false);
    let (mut header_timer, mut idle_timer) = (None, None);

    poll_fn(|cx| {
        if !registered {
            registered = true;
            conn.woken_by_phases(cx.waker());
        }
        loop {
            let phase = shared.phases.get();
            // Before hyper is asked, which might just now get an answer that comes too late; but a 503 of the kill's own
            // may still go out.
            if phase >= Phase::Killing && !conn.is_refused() {
                conn.reset_if_unfinished();
                return Poll::Ready(End::Cut);
            }
            if let Poll::Ready(result) = http.as_mut().poll(cx) {
                match result {
                    Ok(()) => conn.response_flushed(),
                    Err(_) => conn.reset_if_cut(),
                }
                return Poll::Ready(End::Done);
            }
            if phase >= Phase::Killing {
                conn.reset_if_unfinished();
                return Poll::Ready(End::Cut);
            }
            // A request that has reached this host is served. tokio may not know yet of what the kernel has; it will
            // wake us for it.
            if phase < Phase::Quiescing || closing {
                break;
            }
            if !conn.is_between_requests() {
                idle_timer = None;
                break;
            }
            // A request that is on its way is served: it has the grace to arrive in.
            let grace = idle_timer.get_or_insert_with(|| Box::pin(sleep(shared.config.idle_grace)));
            if grace.as_mut().poll(cx).is_pending() || conn.has_unread() {
                break;
            }
            closing = true;
            conn.closed_by_stop();
            http.as_mut().graceful_shutdown();
        }
        if !conn.is_reading_head() {
            header_timer = None;
            return Poll::Pending;
        }
        let timer =
            header_timer.get_or_insert_with(|| Box::pin(sleep(shared.config.header_timeout)));
        timer.as_mut().poll(cx).map(|()| End::HeaderTimeout)
    })
    .await
}
