//! The socket of a connection, read request by request. Every byte of the connection passes here.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

use crate::conn::answers;
use crate::conn::state::{Conn, Socket};
use crate::net::link::Link;
use crate::net::plain::Readable;
use crate::sys;
use crate::threads::turns::Hold;

use super::framing::{Framing, Scan, heads_end, is_request};
use super::progress::BodyFault;

/// How many responses to pipelined requests may leave in one write, if they are short. hyper serves this many requests
/// before it lets other connections have their turn. So no response waits for longer than a turn.
const BATCH: u64 = 16;
const BATCH_BYTES: usize = 16 << 10;

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A connection's socket, and what has been received of later requests.
#[allow(
    clippy::struct_excessive_bools,
    reason = "none of them says anything of another"
)]
pub(in crate::conn) struct Wire {
    socket: Socket<Link>,
    framing: Framing,
    /// Bytes that were received, but not yet given to hyper: the rest of the request, and the next requests.
    ahead: BytesMut,
    /// How many bytes of `ahead` hold whole heads of requests, if `ahead` begins with a head.
    heads: usize,
    /// Responses that wait for the next response, which will follow at once, to be written together with it.
    out: BytesMut,
    /// The responses in `out` may also wait for a handler …
    hold: Option<Arc<Hold>>,
    /// … unless the last of them is not finished, or the first has begun to leave.
    must_leave: bool,
    /// How many responses end in `out`, or before it.
    held: u64,
    /// Whether our FIN follows the written bytes.
    shut: bool,
    /// The responses that were written last before the server stops, and may not have arrived: where they end, and how
    /// many they are.
    last_end: u64,
    last: u32,
    /// A read has failed. hyper takes that only for the end of a body, and lets the handler go on.
    failed: bool,
    /// The client has closed its side.
    finished: bool,
    /// Bytes of a body that nobody reads were discarded.
    skipped: bool,
    /// The state that only few connections need.
    rare: Option<Box<Rare>>,
}

#[derive(Default)]
struct Rare {
    /// The ends of the responses that were written while the server stops, and may not have arrived.
    ends: Vec<u64>,
    /// This future ends when the connection has been reset.
    reset: Option<Reset>,
}

type Reset = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

impl Wire {
    pub(in crate::conn) fn new(socket: Socket<Link>) -> Self {
        Self {
            socket,
            framing: Framing::default(),
            ahead: BytesMut::new(),
            heads: 0,
            out: BytesMut::new(),
            hold: None,
            must_leave: false,
            held: 0,
            shut: false,
            last_end: 0,
            last: 0,
            failed: false,
            finished: false,
            skipped: false,
            rare: None,
        }
    }

    /// A connection that ends before HTTP has begun on it, with these last bytes. What the client sends is no request.
    pub(in crate::conn) fn refused(socket: Socket<Link>, last: &[u8]) -> Self {
        let mut wire = Self::new(socket);
        wire.framing = Framing::Opaque;
        wire.out.extend_from_slice(last);
        wire
    }

    pub(in crate::conn) fn conn(&self) -> &Arc<Conn> {
        self.socket.conn()
    }

    /// Waits until there is something to read. Returns `true` if that is bytes, and `false` if the client has left.
    pub(in crate::conn) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if !ready!(self.poll_skip_body(cx)) {
            return Poll::Ready(false);
        }
        if is_request(&self.ahead) {
            return Poll::Ready(true);
        }
        Poll::Ready(match ready!(self.socket.stream.poll_readable(cx)) {
            Readable::Bytes => true,
            Readable::End => {
                self.finished = true;
                false
            }
            Readable::Failed => {
                self.read_has_failed();
                false
            }
        })
    }

    /// Whether a part of a record has come whose rest will tell whether it is for HTTP.
    pub(in crate::conn) fn holds_part(&self) -> bool {
        self.socket.stream.holds_part()
    }

    /// Reads and discards what nobody has read of the last request's body. Returns whether the body has come to its
    /// end.
    fn poll_skip_body(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        self.follow_head();
        if !self.framing.is_in_body() {
            return Poll::Ready(true);
        }
        while self.framing.is_in_body() {
            if self.ahead.is_empty() && (ready!(self.poll_read_ahead(cx)).is_err() || self.finished)
            {
                return Poll::Ready(false);
            }
            match self.framing.scan(&self.ahead) {
                Ok(Scan { skip, take, .. }) => {
                    self.advance(skip + take);
                    self.skipped = true;
                }
                Err(_) => return Poll::Ready(false),
            }
        }
        self.publish();
        Poll::Ready(true)
    }

    /// Whether the client has sent more of a body that nobody reads, since this was asked last.
    pub(in crate::conn) fn has_skipped(&mut self) -> bool {
        std::mem::take(&mut self.skipped)
    }

    /// Reads bytes into `buf`: those that belong to the present request, or begin the next request.
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.conn().h1.is_too_slow() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        if self.conn().h1.is_upgraded() {
            self.framing = Framing::Opaque;
        } else {
            self.follow_head();
        }
        while buf.remaining() > 0 {
            let start = buf.filled().len();
            let between = matches!(self.framing, Framing::Between);
            if self.ahead.is_empty() {
                let polled = self.poll_read_stream(cx, buf);
                if polled.is_pending() && self.holds_part() {
                    self.publish(); // A part of a record is here, and no longer in the kernel.
                }
                ready!(polled)?;
                let read = &buf.filled()[start..];
                if read.is_empty() {
                    if matches!(self.framing, Framing::Opaque) && self.socket.stream.is_truncated()
                    {
                        return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                    }
                    if self.framing.is_in_body() {
                        self.conn().h1.body_failed(BodyFault::CutShort);
                    }
                    return Poll::Ready(Ok(())); // the end
                }
                let scan = self.framing.scan(read);
                let Scan { skip, take, .. } = self.followed(scan)?;
                let end = skip + take;
                if end < read.len() {
                    self.ahead.extend_from_slice(&read[end..]);
                    self.heads = heads_end(&self.ahead);
                }
                if skip > 0 {
                    buf.filled_mut()
                        .copy_within(start + skip..start + end, start);
                }
                buf.set_filled(start + take);
            } else {
                let len = self.ahead.len().min(buf.remaining());
                let scan = self.framing.scan(&self.ahead[..len]);
                let Scan { skip, take, .. } = self.followed(scan)?;
                buf.put_slice(&self.ahead[skip..skip + take]);
                self.advance(skip + take);
                if !self.ahead.is_empty() && take == 0 {
                    // This is a carriage return that may yet become an empty line.
                    ready!(self.poll_read_ahead(cx))?;
                    if self.finished {
                        return Poll::Ready(Ok(()));
                    }
                }
            }
            if buf.filled().len() > start {
                if between {
                    self.conn().head_begins();
                }
                break;
            }
        }
        self.publish();
        Poll::Ready(Ok(()))
    }

    /// Tells the connection if the scan has found a malformed body, or a foreign target.
    fn followed(&self, scan: io::Result<Scan>) -> io::Result<Scan> {
        match &scan {
            Ok(scan) if scan.is_foreign => self.conn().h1.target_is_foreign(),
            Ok(_) => {}
            Err(_) => self.conn().h1.body_failed(BodyFault::Malformed),
        }
        scan
    }

    /// Takes the first `count` bytes out of `ahead`.
    fn advance(&mut self, count: usize) {
        self.heads = self.heads.saturating_sub(count);
        if count == self.ahead.len() {
            self.ahead = BytesMut::new(); // Gives the memory back.
        } else {
            self.ahead.advance(count);
        }
    }

    /// Behind a head, sets what follows it. The service has told the connection that before anything more is read.
    fn follow_head(&mut self) {
        if let Framing::AfterHead = self.framing {
            self.framing.follow(self.socket.conn().h1.body_length());
        }
    }

    /// Tells the connection what is known about the bytes to come.
    fn publish(&self) {
        let conn = self.conn();
        // Behind a head, the service says what is left of its request.
        if !matches!(self.framing, Framing::AfterHead) {
            conn.h1.set_body_left(self.framing.left());
        }
        // What has not been looked at may be a request.
        let held = self.socket.stream.held();
        let is_request = held > 0 || is_request(&self.ahead);
        conn.h1.set_ahead(self.ahead.len() + held, is_request);
    }

    fn poll_read_stream(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let start = buf.filled().len();
        let result = ready!(self.socket.stream.poll_read(cx, buf));
        if result.is_err() {
            self.read_has_failed();
        }
        self.finished |= result.is_ok() && buf.filled().len() == start;
        Poll::Ready(result)
    }

    /// If the client is still there, and only its TLS is broken, the rest of what it sends is read at the end, so that
    /// it gets to know that.
    fn read_has_failed(&mut self) {
        self.failed |= !self.socket.stream.is_broken();
    }

    fn poll_read_ahead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut bytes = [0; 8192];
        let mut buf = ReadBuf::new(&mut bytes);
        ready!(self.poll_read_stream(cx, &mut buf))?;
        self.ahead.extend_from_slice(buf.filled());
        self.heads = heads_end(&self.ahead);
        Poll::Ready(Ok(()))
    }

    /// How often our answer to the client's SYN had to be repeated, if the client has sent nothing since.
    pub(in crate::conn) fn handshake_repeats(&self) -> u32 {
        // With TLS, more has been sent since, and the client has measured the round trip.
        if self.conn().is_new() && !self.is_secure() {
            // So far, we have sent nothing else.
            let link = &self.socket.stream;
            link.kind().handshake_repeats(link.as_fd())
        } else {
            0
        }
    }

    /// Writes a response, or a part of it. The bytes go into `out` if another response will follow at once.
    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let batched = self.out.len() + bytes.len();
        if batched > BATCH_BYTES || (self.out.is_empty() && !self.is_response_next()) {
            ready!(self.poll_write_out(cx))?;
            return self.poll_write_stream(cx, bytes);
        }
        self.must_leave |= self.conn().is_waiting_for_handler();
        self.out.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_stream(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = self.socket.stream.poll_write(cx, bytes);
        self.conn().h1.has_written(polled.is_pending());
        polled
    }

    fn poll_flush_stream(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = self.socket.stream.poll_flush(cx);
        self.conn().h1.has_written(polled.is_pending());
        polled
    }

    /// How many of the written bytes the client's kernel has acknowledged.
    pub(in crate::conn) fn acked(&self) -> u64 {
        self.socket.stream.written().saturating_sub(self.unacked())
    }

    /// Whether the next request is here, and can be answered without waiting for anybody.
    fn is_response_next(&mut self) -> bool {
        if self.heads == 0 {
            return false;
        }
        self.follow_head();
        let conn = self.conn();
        matches!(self.framing, Framing::Between)
            && is_request(&self.ahead[..self.heads])
            && !conn.h1.is_upgraded()
            && !conn.h1.is_answered_alone()
            && conn.unflushed() < BATCH
    }

    /// hyper calls this when all it had has been written, and whenever it waits for a handler. A finished response
    /// never waits for a handler that blocks: if a handler on another thread does not answer as soon as it can, the
    /// connection is woken, and this function is called again.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let is_waiting = self.conn().is_waiting_for_handler();
        if self.conn().h1.asks_now() {
            // The 100 goes behind all earlier answers, which hyper has just written.
            self.out.extend_from_slice(CONTINUE);
            self.must_leave = true;
            cx.waker().wake_by_ref();
        }
        if !self.out.is_empty() {
            let may_wait = if is_waiting {
                !self.must_leave && Hold::ask(&mut self.hold, cx.waker())
            } else {
                self.is_response_next()
            };
            if may_wait {
                self.held = self.conn().unflushed();
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_write_out(cx))?;
        }
        ready!(self.poll_flush_stream(cx))?;
        self.flushed();
        if is_waiting {
            self.poll_lost(cx)
        } else {
            Poll::Ready(Ok(()))
        }
    }

    /// Writes what waits in `out`.
    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.out.is_empty() {
            return Poll::Ready(Ok(()));
        }
        self.must_leave = true;
        if let Some(hold) = self.hold.take() {
            hold.end();
        }
        while !self.out.is_empty() {
            let polled = self.socket.stream.poll_write(cx, &self.out);
            self.conn().h1.has_written(polled.is_pending());
            self.out.advance(ready!(polled)?);
        }
        self.out = BytesMut::new(); // Gives the memory back.
        self.must_leave = false;
        Poll::Ready(Ok(()))
    }

    /// Answers a head that has not come in time, because hyper does not. The answer leaves when the wire is closed.
    /// There is no answer in the middle of another response.
    pub(in crate::conn) fn answer_late(&mut self) {
        if self.conn().unflushed() == 0 && !self.conn().is_waiting_for_handler() {
            self.out.extend_from_slice(answers::late().as_bytes());
        }
    }

    /// Whether the link has TLS.
    pub(in crate::conn) fn is_secure(&self) -> bool {
        self.socket.stream.is_secure()
    }

    /// Closes our side.
    pub(in crate::conn) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_out(cx))?;
        ready!(self.socket.stream.poll_shutdown(cx))?;
        self.shut = true;
        Poll::Ready(Ok(()))
    }

    /// All that hyper had has been given to the kernel, except for what waits in `out`.
    pub(in crate::conn) fn flushed(&mut self) {
        if self.out.is_empty() {
            self.held = 0;
            self.responses_flushed(u64::MAX);
        }
    }

    /// Writes what waits in `out`, after hyper is done.
    pub(in crate::conn) fn poll_rescue(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_out(cx))?;
        ready!(self.socket.stream.poll_flush(cx))?;
        let held = std::mem::take(&mut self.held);
        self.responses_flushed(held);
        Poll::Ready(Ok(()))
    }

    fn responses_flushed(&mut self, count: u64) {
        if self.socket.stream.is_worn() {
            self.conn().h1.wears_out();
        }
        let responses = self.conn().responses_flushed(count);
        if responses > 0 && self.conn().is_stopping() {
            let written = self.socket.stream.written();
            let ends = &mut self.rare.get_or_insert_default().ends;
            ends.extend((0..responses).map(|_| written));
        } else if responses > 0 {
            self.last_end = self.socket.stream.written();
            self.last = u32::try_from(responses).unwrap_or(u32::MAX);
        }
    }

    /// How many bytes the client's kernel has not acknowledged.
    fn unacked(&self) -> u64 {
        let link = &self.socket.stream;
        let queued = self.conn().unacked_at_reset();
        let queued = queued.unwrap_or_else(|| link.kind().unacked(link.as_fd()));
        // Behind the last of them there may be a FIN, and what TLS says at the end.
        u64::from(queued).saturating_sub(u64::from(self.shut) + link.written_behind())
    }

    /// Whether there are bytes that have not arrived, but still may. After a reset they never will.
    pub(in crate::conn) fn is_delivering(&self) -> bool {
        let link = &self.socket.stream;
        self.unacked() > 0 && !link.kind().is_over(link.as_fd())
    }

    /// Reads and discards until the client closes its side, or an error comes. If the bytes begin a request, that
    /// request has crossed our close.
    pub(in crate::conn) fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            while !self.ahead.is_empty() {
                self.follow_head();
                let between = matches!(self.framing, Framing::Between);
                match self.framing.scan(&self.ahead) {
                    Ok(Scan { take: 1.., .. }) if between => {
                        self.conn().raced();
                        self.framing = Framing::Opaque;
                    }
                    Ok(Scan {
                        skip: 0, take: 0, ..
                    }) => break, // a lone carriage return
                    Ok(Scan { skip, take, .. }) => self.advance(skip + take),
                    Err(_) => self.framing = Framing::Opaque,
                }
            }
            if self.finished || self.failed {
                return Poll::Ready(());
            }
            if ready!(self.poll_read_ahead(cx)).is_err() {
                return Poll::Ready(());
            }
        }
    }

    /// Stops watching for a reset, and frees what that needs. Between two requests, a reset is seen like every other
    /// event.
    pub(in crate::conn) fn unwatch_reset(&mut self) {
        if let Some(rare) = &mut self.rare {
            rare.reset = None;
        }
    }

    /// Whether the client has closed its side, behind the requests that we have read. If not, the task is woken when it
    /// does.
    fn has_closed(&mut self, cx: &mut Context<'_>) -> bool {
        let is_behind = self.ahead.is_empty() && !self.framing.is_in_body();
        is_behind
            && matches!(
                self.socket.stream.poll_readable(cx),
                Poll::Ready(Readable::End)
            )
    }

    /// Checks whether the client has left. If it has, returns an error; if not, the task is woken when it does. hyper
    /// reads nothing while a handler works, so hyper would not notice.
    fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.failed {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if self.conn().shared().options.abort_on_close && self.has_closed(cx) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let is_watched = |rare: &Rare| rare.reset.is_some();
        if !self.rare.as_deref().is_some_and(is_watched) {
            match self.socket.stream.poll_peek(cx, &mut [0]) {
                Poll::Pending => return Poll::Ready(Ok(())),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                // More bytes, or a FIN (the client may only have closed its half), do not mean that the client has
                // left. But they hide a later reset, because there is always something to read. So the reset alone is
                // watched for, by a copy of the descriptor. Few connections ever need it.
                Poll::Ready(Ok(_)) => {
                    let copy = self.socket.stream.as_fd().try_clone_to_owned();
                    let copy = copy.and_then(|copy| sys::watch_for(copy, Interest::ERROR));
                    let Ok(copy) = copy else {
                        return Poll::Ready(Ok(())); // No descriptor is free: the write will show it.
                    };
                    self.rare.get_or_insert_default().reset = Some(Box::pin(async move {
                        // The copy is registered without EPOLLOUT. So this ends only when both sides are closed
                        // (EPOLLHUP): after a reset, or when the client has closed its Unix socket.
                        let _ = copy.writable().await;
                    }));
                }
            }
        }
        let reset = self.rare.as_mut().and_then(|rare| rare.reset.as_mut());
        match reset.map(|reset| reset.as_mut().poll(cx)) {
            Some(Poll::Ready(())) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            _ => Poll::Ready(Ok(())),
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let is_over = self.shut || self.conn().is_killed() || std::thread::panicking();
        if self.conn().h1.is_upgraded() && self.is_secure() && !is_over {
            // Its owner is done with it, and may not have said so. The client could not tell that from an attack.
            let _ = self.poll_shutdown(&mut Context::from_waker(Waker::noop()));
        }
        if (self.shut && self.finished) || self.failed {
            self.conn().over();
        }
        if self.conn().is_stopping() {
            let (unacked, acked) = (self.unacked(), self.acked());
            let last = if self.last_end > acked {
                u64::from(self.last)
            } else {
                0
            };
            let ends = self.rare.iter().flat_map(|rare| &rare.ends);
            let others = ends.filter(|end| **end > acked).count() as u64;
            self.conn().unacknowledged(last + others, unacked);
        }
    }
}

/// The place of the wire while hyper drives the connection. The wire is taken back when hyper is done. hyper gives its
/// transport to the holder of a request that asks for an upgrade, even if the upgrade was declined, and the holder may
/// keep it.
pub(super) type Slot = Arc<Mutex<Option<Wire>>>;

pub(super) fn slot(wire: Wire) -> Slot {
    Arc::new(Mutex::new(Some(wire)))
}

/// See [`Wire::acked`].
pub(super) fn acked(slot: &Slot) -> u64 {
    lock(slot).as_ref().map_or(0, Wire::acked)
}

/// Takes the wire back. An upgraded connection belongs to the owner of the transport, and ends with it.
pub(super) fn take(slot: &Slot) -> Option<Wire> {
    lock(slot).take_if(|wire| !wire.conn().h1.is_upgraded())
}

/// Takes the wire of an upgraded connection back, if nobody else has it any more.
pub(super) fn take_back(slot: Slot) -> Option<Wire> {
    let slot = Arc::into_inner(slot)?;
    let mut wire = slot.into_inner().unwrap_or_else(PoisonError::into_inner)?;
    wire.framing = Framing::Opaque;
    Some(wire)
}

fn lock(slot: &Slot) -> MutexGuard<'_, Option<Wire>> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The transport through which hyper uses the wire.
pub(super) struct Transport(Slot);

impl Transport {
    pub(super) fn new(slot: &Slot) -> Self {
        Self(Arc::clone(slot))
    }

    fn with<T>(&self, f: impl FnOnce(&mut Wire) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match &mut *lock(&self.0) {
            Some(wire) => f(wire),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl Transport {
    /// Waits until there is something to read. For what was upgraded.
    pub(super) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.with(|wire| {
            if wire.ahead.is_empty() {
                ready!(wire.socket.stream.poll_readable(cx));
            }
            Poll::Ready(Ok(()))
        })
        .map(drop)
    }

    /// Waits until there is room for bytes. For what was upgraded.
    pub(super) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.with(|wire| {
            ready!(wire.poll_write_out(cx))?;
            wire.socket.stream.poll_writable(cx)
        })
        .map(drop)
    }

    /// The socket, if bytes pass through it as they are, and none waits here.
    pub(super) fn descriptor(&self) -> Option<RawFd> {
        let wire = lock(&self.0);
        let wire = wire.as_ref()?;
        let is_plain = !wire.is_secure() && wire.ahead.is_empty() && wire.out.is_empty();
        is_plain.then(|| wire.socket.stream.as_fd().as_raw_fd())
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.with(|wire| {
            let before = buf.filled().len();
            let poll = wire.poll_read(cx, buf);
            let read = match poll {
                Poll::Ready(_) => Poll::Ready(buf.filled().len() - before),
                Poll::Pending => Poll::Pending,
            };
            wire.conn().h1.has_read(read);
            wire.conn().h1.body_is_read();
            poll
        })
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.with(|wire| wire.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|wire| {
            // hyper has written all it had. The wire has little of it.
            if wire.conn().h1.has_given_all() {
                cx.waker().wake_by_ref();
            }
            wire.poll_flush(cx)
        })
    }

    /// The task that drives the connection closes it, once hyper is done. But after an upgrade this is the only way to
    /// close it.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|wire| {
            if wire.conn().h1.is_upgraded() {
                return wire.poll_shutdown(cx);
            }
            ready!(wire.poll_write_out(cx))?;
            ready!(wire.socket.stream.poll_flush(cx))?;
            wire.flushed();
            Poll::Ready(Ok(()))
        })
    }
}
