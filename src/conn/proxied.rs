//! The header by which a trusted proxy says whose connection it passes on. It comes before TLS and HTTP. The connection
//! is new when the header has come, and the handshake of TLS is done, if there is one.

use std::future::poll_fn;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::task::{Poll, ready};

use crate::net::link::Link;
use crate::net::plain::Plain;
use crate::net::proxy::{Fault, Header};

use super::close::close;
use super::deadlines::{Deadline, Deadlines};
use super::h1::Wire;
use super::parked;
use super::state::Socket;

/// Why a connection ends before its header has come.
enum Early {
    Killed,
    /// The header is late, or something else.
    Refused(&'static str),
    TimedOut,
    /// The peer has left before the first byte: it has only looked whether the port is open.
    Left,
    /// A stop has waited for a first byte.
    Silent,
}

/// Waits for the header, as long as the head of a request may take. `None`: the connection has ended.
pub(super) async fn read(
    mut socket: Socket<Plain>,
    deadlines: &mut Deadlines,
) -> Option<Socket<Plain>> {
    let conn = Arc::clone(socket.conn());
    let options = &conn.shared().options;
    deadlines.set(Deadline::Head, options.header_timeout);
    let mut header = Header::default();
    let read = poll_fn(|cx| {
        conn.driver().driven_by(cx.waker());
        if conn.is_killed() {
            return Poll::Ready(Err(Early::Killed));
        }
        if let Poll::Ready(read) = header.poll(cx, &mut socket.stream) {
            return Poll::Ready(read.map_err(|fault| match fault {
                Fault::Malformed(why) => Early::Refused(why),
                Fault::Left if header.has_begun() => Early::Refused("it was cut short"),
                Fault::Left => Early::Left,
            }));
        }
        if !header.has_begun() && conn.is_stopping() {
            // As for a new connection: what is on its way may arrive.
            if !deadlines.is_set(Deadline::Grace) {
                let kind = socket.stream.kind();
                let repeats = kind.handshake_repeats(socket.stream.as_fd());
                deadlines.set(Deadline::Grace, parked::grace(options, repeats));
            }
            // If the kernel has bytes, tokio will wake the task for them.
            if deadlines.poll(Deadline::Grace, cx).is_ready() && !conn.has_bytes() {
                return Poll::Ready(Err(Early::Silent));
            }
        }
        ready!(deadlines.poll(Deadline::Head, cx));
        Poll::Ready(Err(Early::TimedOut))
    })
    .await;
    let early = match read {
        Ok(ends) => {
            deadlines.clear_all();
            conn.proxied(ends);
            return Some(socket);
        }
        Err(early) => early,
    };
    let socket = socket.map(Link::from);
    let wire = match early {
        Early::Killed => {
            conn.cut();
            return None;
        }
        Early::Silent => {
            conn.closed_idle();
            // What comes now has crossed our close, as a request does.
            Wire::new(socket)
        }
        Early::Left => Wire::refused(socket, &[]),
        Early::Refused(why) => {
            conn.proxy_refused(why);
            Wire::refused(socket, &[])
        }
        Early::TimedOut => {
            conn.proxy_refused("it has not come in time");
            conn.timed_out();
            Wire::refused(socket, &[])
        }
    };
    Box::pin(close(wire, std::mem::take(deadlines), true)).await;
    None
}
