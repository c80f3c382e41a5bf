//! The end of a connection.

use std::sync::Arc;
use std::task::{Context, Poll};

use super::deadlines::{Deadline, Deadlines, Looks};
use super::h1::Wire;
use super::state::Conn;
use super::until_kill;

/// Closes our side, and then reads and discards until the client closes its side. If the socket were closed while the
/// client still sends, the kernel would answer with a reset, which destroys what the client has not read yet
/// (RFC 9112, 9.6). During a stop, this function also waits until the client's kernel has acknowledged all bytes: the
/// end of the process or of the machine, which may follow the stop, must not destroy them either.
///
/// `is_complete`: all that hyper had is written, or waits in the wire.
pub(super) async fn close(mut wire: Wire, mut deadlines: Deadlines, is_complete: bool) {
    let conn = Arc::clone(wire.conn());
    deadlines.clear_all();
    let _ = until_kill(&conn, |cx| {
        let poll = wire.poll_rescue(cx).map(drop);
        // How long an answer may wait for its client was decided before. Of a stream that was let go, nobody has.
        if poll.is_ready() || !conn.h1.is_upgraded() || conn.is_stopping() {
            return poll;
        }
        poll_linger(&mut deadlines, &conn, cx)
    })
    .await;
    if is_complete {
        wire.flushed();
    }
    if is_complete && wire.is_secure() && !conn.h1.is_close_delimited() {
        // Many clients close as soon as they have their answer, and do not read what TLS says behind it. Their kernel
        // then resets the connection, and ours forgets what it was about to learn: whether the answer has arrived. So
        // that is awaited first. It matters only during a stop.
        let mut looks = Looks::STOPPING;
        let has_arrived = || !conn.is_stopping() || !wire.is_delivering();
        until_kill(&conn, |cx| {
            looks.poll_until(&mut deadlines, cx, has_arrived)
        })
        .await;
        deadlines.clear_all();
    }
    let shut = until_kill(&conn, |cx| {
        let poll = wire.poll_shutdown(cx);
        if poll.is_ready() || !wire.is_secure() || conn.is_stopping() {
            return poll.map(|result| result.is_ok());
        }
        // A client that reads nothing leaves no room for what TLS says at the end. Without that there is no FIN.
        poll_linger(&mut deadlines, &conn, cx).map(|()| false)
    })
    .await;
    if shut != Some(true) {
        return; // The client has gone, or a kill has begun.
    }
    deadlines.clear(Deadline::Linger);
    until_kill(&conn, |cx| {
        // The deadline is looked at first. A client that sends without pause uses up all that tokio lets a task do at a
        // time, and leaves nothing for the timer.
        let is_set = deadlines.is_set(Deadline::Linger);
        if is_set && deadlines.poll(Deadline::Linger, cx).is_ready() {
            return Poll::Ready(());
        }
        if wire.poll_discard(cx).is_ready() {
            return Poll::Ready(());
        }
        if is_set {
            return Poll::Pending;
        }
        // Mostly the client has closed already, and this deadline is never set.
        deadlines.set(Deadline::Linger, conn.shared().options.linger_timeout);
        deadlines.poll(Deadline::Linger, cx)
    })
    .await;
    let mut looks = Looks::STOPPING;
    until_kill(&conn, |cx| {
        // A stop may begin while this waits.
        let has_arrived = || !conn.is_stopping() || !wire.is_delivering();
        let arrival = looks.poll_until(&mut deadlines, cx, has_arrived);
        if arrival.is_pending() {
            // Bytes left unread would cause a reset.
            let _ = wire.poll_discard(cx);
        }
        arrival
    })
    .await;
}

/// Waits for as long as a client may take.
fn poll_linger(deadlines: &mut Deadlines, conn: &Conn, cx: &mut Context<'_>) -> Poll<()> {
    if !deadlines.is_set(Deadline::Linger) {
        deadlines.set(Deadline::Linger, conn.shared().options.linger_timeout);
    }
    deadlines.poll(Deadline::Linger, cx)
}
