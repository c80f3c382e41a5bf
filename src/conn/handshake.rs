//! The handshake of TLS. The connection is new when the handshake has succeeded.

use std::future::{Future, poll_fn};
use std::os::fd::AsFd;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use crate::events::LogLevel;
use crate::net::link::Link;
use crate::net::plain::Plain;
use crate::net::tls::{Failed, Fault, Hello, Secure};
use crate::tls::{self, Reason, TlsInfo};

use super::answers;
use super::deadlines::{Deadline, Deadlines};
use super::h1::Wire;
use super::parked;
use super::state::{Conn, Socket};

/// How a handshake has ended.
pub(super) enum Handshake {
    Done(Wire),
    /// The connection is to be closed. What the client is to be told waits in the wire.
    Close(Wire),
    /// A kill has come.
    Killed,
}

/// Why a handshake does not go on.
#[derive(Clone, Copy)]
enum Early {
    Killed,
    TimedOut,
    /// A stop has waited for a first byte.
    Silent,
}

/// Waits for the handshake, as long as it may take. The time runs from the moment when the connection was accepted.
pub(super) async fn run(
    mut socket: Socket<Plain>,
    tls: &tls::Context,
    deadlines: &mut Deadlines,
) -> Handshake {
    let conn = Arc::clone(socket.conn());
    deadlines.set(Deadline::Handshake, tls.limits().timeout);
    poll_fn(|cx| {
        conn.driver().driven_by(cx.waker());
        Poll::Ready(())
    })
    .await;

    let mut hello = Hello::default();
    let heard = in_time(&conn, deadlines, |cx, deadlines| {
        if let Poll::Ready(heard) = hello.poll(cx, &mut socket.stream) {
            return Poll::Ready(Ok(heard));
        }
        if hello.has_begun() || !conn.is_stopping() {
            return Poll::Pending;
        }
        // As for a new connection without TLS: what is on its way may arrive.
        if !deadlines.is_set(Deadline::Grace) {
            let repeats = socket
                .stream
                .kind()
                .handshake_repeats(socket.stream.as_fd());
            let grace = parked::grace(&conn.shared().options, repeats);
            deadlines.set(Deadline::Grace, grace);
        }
        ready!(deadlines.poll(Deadline::Grace, cx));
        if conn.has_unread() {
            return Poll::Pending; // tokio will wake the task for it.
        }
        Poll::Ready(Err(Early::Silent))
    })
    .await;
    match heard {
        Ok(Ok(())) => {}
        Ok(Err(Failed {
            why: Fault::Left | Fault::Io(_),
            ..
        })) if !hello.has_begun() => {
            // Somebody has looked whether the port is open.
            return Handshake::Close(Wire::refused(socket.map(Link::from), &[]));
        }
        Ok(Err(failed)) => return refused(socket.map(Link::from), tls, failed),
        Err(early) => return ended(socket.map(Link::from), early),
    }
    let server_name = hello.take_server_name();

    // From here on, it costs: a signature, and what rustls keeps.
    let mut turn = pin!(tls.turn());
    let _turn = match in_time(&conn, deadlines, |cx, _| turn.as_mut().poll(cx).map(Ok)).await {
        Ok(turn) => turn,
        Err(early) => return ended(socket.map(Link::from), early),
    };
    let config = tls.config();
    let answered = socket.try_map(|plain| Secure::new(plain, hello, config));
    let mut socket = match answered {
        Ok(socket) => socket,
        Err((socket, failed)) => return refused(socket.map(Link::from), tls, *failed),
    };
    let shaken = in_time(&conn, deadlines, |cx, _| {
        socket.stream.poll_handshake(cx).map(Ok)
    })
    .await;
    let info = TlsInfo::of(socket.stream.session(), server_name);
    let socket = socket.map(|secure| Link::Tls(Box::new(secure)));
    match shaken {
        Ok(Ok(())) => {
            let events = &conn.shared().events;
            events.sum("tls.handshake", 1.0);
            if info.is_resumed() {
                events.sum("tls.resumed", 1.0);
            }
            deadlines.clear_all();
            conn.handshake_done(info);
            Handshake::Done(Wire::new(socket))
        }
        // The alert waits in the link.
        Ok(Err(why)) => refused(socket, tls, Failed::silent(why)),
        Err(early) => ended(socket, early),
    }
}

/// Waits for a step of the handshake, until the time of the whole is over, or until a kill.
async fn in_time<T>(
    conn: &Conn,
    deadlines: &mut Deadlines,
    mut poll: impl FnMut(&mut Context<'_>, &mut Deadlines) -> Poll<Result<T, Early>>,
) -> Result<T, Early> {
    poll_fn(|cx| {
        if conn.is_killed() {
            return Poll::Ready(Err(Early::Killed));
        }
        if let Poll::Ready(result) = poll(cx, deadlines) {
            return Poll::Ready(result);
        }
        ready!(deadlines.poll(Deadline::Handshake, cx));
        Poll::Ready(Err(Early::TimedOut))
    })
    .await
}

/// The client is told nothing: it has said too little to be told anything.
fn ended(socket: Socket<Link>, early: Early) -> Handshake {
    let conn = socket.conn();
    match early {
        Early::Killed => {
            conn.cut();
            return Handshake::Killed;
        }
        Early::Silent => {
            conn.closed_idle();
            // What comes now has crossed our close, as a request does on a connection without TLS.
            return Handshake::Close(Wire::new(socket));
        }
        Early::TimedOut => {
            conn.handshake_timed_out();
            conn.shared().events.sum(Reason::Timeout.key(), 1.0);
        }
    }
    Handshake::Close(Wire::refused(socket, &[]))
}

fn refused(socket: Socket<Link>, tls: &tls::Context, failed: Failed) -> Handshake {
    let Failed { why, alert } = failed;
    let conn = socket.conn();
    let shared = conn.shared();
    let reason = reason(&why);
    conn.handshake_failed();
    shared.events.sum(reason.key(), 1.0);
    let (now, level) = (shared.clock.now(), LogLevel::Info);
    let text = format_args!("{why}, from {}", conn.info().peer);
    let what = "a TLS handshake has failed";
    shared
        .events
        .log_rarely(tls.failures(reason), now, level, what, &text);
    let last = match why {
        Fault::PlainHttp => answers::without_tls().into_bytes(),
        _ => alert,
    };
    Handshake::Close(Wire::refused(socket, &last))
}

fn reason(fault: &Fault) -> Reason {
    match fault {
        Fault::Tls(error) => Reason::of(error),
        Fault::PlainHttp => Reason::PlainHttp,
        Fault::NoTls => Reason::NotTls,
        Fault::Left | Fault::Io(_) => Reason::Left,
    }
}
