//! A connection that a handler has taken over: after an upgrade, or as a tunnel.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use hyper::upgrade::OnUpgrade;
use tokio::io::ReadBuf;

use crate::conn::{Conn, Listener, Upgraded};
use crate::conn_info::ConnInfo;
use crate::contain::contain;
use crate::error::{Error, Result};
use crate::events::LogLevel;

use super::exchange::wait_for;
use super::ready::{Notice, Ready, Subject, Tell};

/// A connection that a handler has taken over: [`Exchange::upgrade`](crate::Exchange::upgrade).
///
/// Any thread may use it, several at once; so one thread can read while another one writes. Dropping it closes the
/// connection, and does not wait. What was written is sent, and reaches a client that still sends: the connection ends
/// like after a last answer ([`linger_timeout`](crate::Builder::linger_timeout)), and a stop waits for that. The time
/// limits for requests do not apply to a stream. A kill resets it.
pub struct Stream(Arc<Inner>);

struct Inner {
    conn: Arc<Conn>,
    upgraded: Mutex<Upgraded>,
    watch: Mutex<Watch>,
}

#[derive(Default)]
struct Watch {
    /// Waits for what happens.
    waiter: Option<Waker>,
    notice: Option<Arc<Notice>>,
    is_draining: bool,
}

impl Stream {
    pub(super) fn new(upgrade: OnUpgrade, conn: Arc<Conn>) -> Self {
        let inner = Arc::new(Inner {
            conn,
            upgraded: Mutex::new(Upgraded::new(upgrade)),
            watch: Mutex::default(),
        });
        inner.conn.listen(Arc::clone(&inner) as _);
        Self(inner)
    }

    /// The connection that it is.
    #[must_use]
    pub fn conn(&self) -> &ConnInfo {
        self.0.conn.info()
    }

    /// Reads the next bytes into `buf`; 0 is the end. Waits for them until `deadline` at most (`None`: without limit).
    /// With a deadline that has passed, it never waits, on any thread.
    ///
    /// # Errors
    /// [`Error::WouldBlock`] if no bytes are there, [`Error::Gone`] if the connection has failed, [`Error::Killed`]
    /// after a kill.
    pub fn read(&self, buf: &mut [u8], deadline: Option<Instant>) -> Result<usize> {
        let mut buf = ReadBuf::new(buf);
        if buf.remaining() == 0 {
            return Ok(0);
        }
        self.wait(deadline, |inner, cx| {
            inner.upgraded().poll_read(cx, &mut buf)
        })?;
        // On a Unix socket, a kill looks like the end.
        if buf.filled().is_empty() && self.0.conn.is_killed() {
            return Err(Error::Killed(None));
        }
        Ok(buf.filled().len())
    }

    /// Sends as much of `data` as there is room for, and returns how much that is: at least one byte, if there are any.
    /// Waits for room until `deadline` at most; `None`: without limit, and until all of it is taken. With a deadline
    /// that has passed, it never waits, on any thread.
    ///
    /// # Errors
    /// [`Error::WouldBlock`] if nothing was taken; otherwise the errors of [`Stream::read`].
    pub fn write(&self, data: &[u8], deadline: Option<Instant>) -> Result<usize> {
        let mut taken = 0;
        while taken < data.len() {
            let rest = &data[taken..];
            match self.wait(deadline, |inner, cx| inner.upgraded().poll_write(cx, rest)) {
                Ok(count) => taken += count,
                Err(Error::WouldBlock) if taken > 0 => break,
                Err(why) => return Err(why),
            }
        }
        Ok(taken)
    }

    /// Says that no more bytes follow, when all that was written is sent. The client's bytes can still be read. Waits
    /// until `deadline` at most, as [`Stream::write`].
    ///
    /// # Errors
    /// [`Error::WouldBlock`] if not all of it is sent; otherwise the errors of [`Stream::read`].
    pub fn shutdown(&self, deadline: Option<Instant>) -> Result<()> {
        self.wait(deadline, |inner, cx| inner.upgraded().poll_shutdown(cx))
    }

    fn wait<T>(
        &self,
        deadline: Option<Instant>,
        mut poll: impl FnMut(&Inner, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Result<T> {
        let lent = self.0.conn.shared().lent.as_ref();
        match wait_for(lent, deadline, poll_fn(|cx| poll(&self.0, cx))) {
            None => Err(Error::WouldBlock),
            Some(Ok(value)) => Ok(value),
            Some(Err(_)) if self.0.conn.is_killed() => Err(Error::Killed(None)),
            Some(Err(_)) => Err(Error::Gone),
        }
    }

    /// Waits until at least one of these things has happened, and returns all that have; see
    /// [`Exchange::ready`](crate::Exchange::ready). [`Ready::GONE`] tells only of a kill: that the client has left
    /// shows when the stream is read.
    pub async fn ready(&self, wanted: Ready) -> Ready {
        poll_fn(|cx| self.poll_ready(wanted, cx)).await
    }

    /// Like [`Stream::ready`], for a poll function.
    pub fn poll_ready(&self, wanted: Ready, cx: &mut Context<'_>) -> Poll<Ready> {
        let before = self.0.watch().waiter.replace(cx.waker().clone());
        drop(before);
        let mut ready = self.0.happened().and(wanted | Ready::GONE);
        if wanted.contains(Ready::READABLE) && self.0.upgraded().poll_readable(cx).is_ready() {
            ready |= Ready::READABLE;
        }
        if wanted.contains(Ready::WRITABLE) && self.0.upgraded().poll_writable(cx).is_ready() {
            ready |= Ready::WRITABLE;
        }
        if ready.is_empty() {
            Poll::Pending
        } else {
            Poll::Ready(ready)
        }
    }

    /// Calls `tell` once, as soon as one of these things has happened; see
    /// [`Exchange::notify`](crate::Exchange::notify). It is not called any more when the stream was dropped: that waits
    /// until a `tell` that runs on another thread has returned.
    pub fn notify(&self, wanted: Ready, tell: impl FnOnce(Ready) + Send + 'static) {
        self.tell(wanted, Tell::Call(Box::new(tell)));
    }

    pub(crate) fn tell(&self, wanted: Ready, tell: Tell) {
        let notice = {
            let mut watch = self.0.watch();
            let notice = watch
                .notice
                .get_or_insert_with(|| Notice::new(Arc::downgrade(&self.0) as _));
            Arc::clone(notice)
        };
        notice.order(wanted, tell);
        let waker = Waker::from(Arc::clone(&notice));
        if let Poll::Ready(there) = self.poll_ready(wanted, &mut Context::from_waker(&waker)) {
            notice.is_there(there);
        }
    }

    /// The socket, for an event loop or a library that wants to read and write it by itself. It is non-blocking, and
    /// belongs to the stream: do not close it, and use nothing else of the stream as long as you use it. Waits until
    /// `deadline` at most (`None`: without limit) until the answer has left.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the connection has TLS, or bytes that have come before were not read yet.
    /// [`Error::WouldBlock`] if the answer has not left yet; otherwise the errors of [`Stream::read`].
    pub fn descriptor(&self, deadline: Option<Instant>) -> Result<RawFd> {
        let descriptor = self.wait(deadline, |inner, cx| inner.upgraded().descriptor(cx))?;
        let why = "the bytes of this connection do not pass through a socket as they are";
        descriptor.ok_or_else(|| Error::Unsupported(why.into()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // The connection's task takes the connection back when nobody listens any more. So this comes first.
        self.0.upgraded().let_go();
        self.0.conn.ignore(&*self.0);
        let (waiter, notice) = {
            let mut watch = self.0.watch();
            (watch.waiter.take(), watch.notice.take())
        };
        drop(waiter);
        if let Some(notice) = notice {
            notice.end();
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("conn", self.conn())
            .finish_non_exhaustive()
    }
}

impl Inner {
    fn upgraded(&self) -> MutexGuard<'_, Upgraded> {
        self.upgraded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self) -> MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subject for Inner {
    fn conn(&self) -> &Arc<Conn> {
        &self.conn
    }

    fn happened(&self) -> Ready {
        let mut ready = Ready::NONE;
        if self.conn.is_killed() {
            ready |= Ready::GONE;
        }
        if self.watch().is_draining {
            ready |= Ready::DRAINING;
        }
        ready
    }

    fn complain(&self, line: &str) {
        self.conn.shared().events.log(LogLevel::Error, line);
    }
}

impl Listener for Inner {
    fn drains(&self) {
        let mut watch = self.watch();
        watch.is_draining = true;
        // It stays: who waits for something else is woken in vain.
        let waiter = watch.waiter.clone();
        drop(watch);
        if let Some(waiter) = waiter {
            contain(|| waiter.wake());
        }
    }

    /// A connection that was taken over has its answer.
    fn overdue(&self) {}

    fn call(&self) {
        let notice = self.watch().notice.clone();
        if let Some(notice) = notice {
            notice.call();
        }
    }
}
