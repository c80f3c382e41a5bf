//! The body of a request. Whoever answers the request reads it; the connection takes back what nobody reads.

use std::error::Error as _;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;

use crate::error::{Error, Result};
use crate::limits::Limit;
use crate::record::Recording;

use super::h1::BodyFault;
use super::state::Conn;

/// The body of a request, as it arrives.
///
/// It is a [`http_body::Body`]: read it by `http_body_util::BodyExt`, or give it to a framework. A client may wait with
/// its body until it is asked (`Expect: 100-continue`); the first read asks it.
///
/// You may drop a body before its end. If it is dropped before the answer, and little is left of it, the connection
/// reads and discards the rest, and goes on with the next request. Otherwise the answer says `Connection: close`, and
/// the connection ends behind it.
///
/// You may also read a body after its answer. A stop then waits for it as long as a piece is read, or comes, within the
/// [idle grace](crate::Builder::idle_grace). If the server kills the request, reading fails.
///
/// A test of a service can make a body from bytes:
///
/// ```
/// use http_body_util::BodyExt;
/// use httpdown::Body;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> httpdown::Result<()> {
/// let body = Body::from("hello");
/// assert_eq!(body.collect().await?.to_bytes(), "hello");
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// Reading fails with [`Error::Gone`] if the connection has ended, [`Error::BadBody`] if the client broke the protocol
/// in the body, [`Error::TooSlow`] if the client was waited for too long, [`Error::TooLarge`] if the client sent more
/// than [`max_body_size`](crate::Builder::max_body_size), and [`Error::Killed`] after a kill. It fails again, in the
/// same way, if it is tried again.
#[derive(Default)]
pub struct Body(Option<Box<Source>>);

/// Where the bytes come from. In a box, because most requests have no body, and requests are moved often.
enum Source {
    Failed(Error),
    /// Bytes of the host's.
    Whole(Bytes),
    Client {
        incoming: Incoming,
        rest: Arc<Rest>,
        /// The client waits until it is asked for the body (RFC 9110, 10.1.1). Reading asks it.
        is_awaited: bool,
        /// How many more bytes the client may send.
        left: u64,
    },
}

impl Body {
    /// `rest`: where the part goes that nobody reads; `None` if the request has no body. `most`: how many bytes it may
    /// have.
    pub(super) fn new(
        incoming: Incoming,
        rest: Option<&Arc<Rest>>,
        is_awaited: bool,
        most: u64,
    ) -> Self {
        Self(rest.map(|rest| {
            Box::new(Source::Client {
                incoming,
                rest: Arc::clone(rest),
                is_awaited,
                left: most,
            })
        }))
    }

    /// Promises that whoever holds this body drops it before they end the answer.
    pub(crate) fn promise_to_drop(&self) {
        if let Some(Source::Client { rest, .. }) = self.0.as_deref() {
            rest.will_be_dropped.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the client waits until it is asked for the body, and nobody has asked it.
    pub(crate) fn is_awaited(&self) -> bool {
        let source = self.0.as_deref();
        source.is_some_and(|source| {
            matches!(
                source,
                Source::Client {
                    is_awaited: true,
                    ..
                }
            )
        })
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self((!bytes.is_empty()).then(|| Box::new(Source::Whole(bytes))))
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Bytes::from(text).into()
    }
}

impl From<&'static [u8]> for Body {
    fn from(bytes: &'static [u8]) -> Self {
        Bytes::from_static(bytes).into()
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Bytes::from_static(text.as_bytes()).into()
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>>>> {
        let Some(source) = self.0.as_deref_mut() else {
            return Poll::Ready(None);
        };
        let (incoming, rest, left) = match source {
            Source::Failed(why) => return Poll::Ready(Some(Err(why.clone()))),
            Source::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                self.0 = None;
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            Source::Client {
                incoming,
                rest,
                is_awaited,
                left,
            } => {
                *is_awaited = false;
                (incoming, rest, left)
            }
        };
        // If hyper has had the answer before, it may report the end only with the next request.
        if incoming.is_end_stream() {
            self.0 = None;
            return Poll::Ready(None);
        }
        let polled = Pin::new(incoming).poll_frame(cx);
        if polled.is_pending() {
            rest.is_wanted();
        }
        Poll::Ready(match ready!(polled) {
            Some(Ok(frame)) => {
                let length = frame.data_ref().map_or(0, Bytes::len);
                rest.is_read(length);
                if let Some(fewer) = left.checked_sub(length as u64) {
                    *left = fewer;
                    Some(Ok(frame))
                } else {
                    let why = rest.exceeded();
                    *source = Source::Failed(why.clone());
                    Some(Err(why))
                }
            }
            // hyper gives the reason only once, and reports the end of the body after that.
            Some(Err(why)) => {
                let why = rest.failed(&why);
                *source = Source::Failed(why.clone());
                Some(Err(why))
            }
            None => {
                self.0 = None;
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        match self.0.as_deref() {
            None => true,
            Some(Source::Failed(_) | Source::Whole(_)) => false,
            Some(Source::Client { incoming, .. }) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self.0.as_deref() {
            None => SizeHint::with_exact(0),
            Some(Source::Failed(_)) => SizeHint::default(),
            Some(Source::Whole(bytes)) => SizeHint::with_exact(bytes.len() as u64),
            Some(Source::Client { incoming, .. }) => incoming.size_hint(),
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        let Some(source) = self.0.take() else {
            return;
        };
        if let Source::Client {
            incoming,
            rest,
            is_awaited: false,
            ..
        } = *source
            && !incoming.is_end_stream()
        {
            rest.leave(incoming);
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body")
            .field("size_hint", &self.size_hint())
            .finish_non_exhaustive()
    }
}

/// What nobody reads of a request's body. It is kept until the answer is complete: when hyper sees that a body was
/// dropped, it ends the connection, and says so if the head of the answer is not written yet.
#[derive(Debug)]
pub(super) struct Rest {
    /// A body does not keep its connection in the registry.
    conn: Weak<Conn>,
    /// Where the bytes that are read are counted, if anybody wants to know.
    recording: Option<Arc<Recording>>,
    /// Whoever holds the body drops it before they end the answer. Nobody can say that of a service.
    will_be_dropped: AtomicBool,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
enum Kept {
    Nothing,
    Unread(Incoming),
    /// It was unread, and the connection has taken it.
    Taken,
    /// The answer is complete, or will never be: there is no more use in keeping anything. `true`: by a kill.
    Over(bool),
}

impl Rest {
    pub(super) fn new(conn: &Arc<Conn>, recording: Option<&Arc<Recording>>) -> Arc<Self> {
        Arc::new(Self {
            conn: Arc::downgrade(conn),
            recording: recording.cloned(),
            will_be_dropped: AtomicBool::new(false),
            kept: Mutex::new(Kept::Nothing),
        })
    }

    fn leave(&self, incoming: Incoming) {
        let mut kept = self.lock();
        if let Kept::Nothing = *kept {
            *kept = Kept::Unread(incoming);
        }
    }

    /// What is left of the body, if it is known that nobody reads it.
    pub(super) fn take(&self) -> Option<Unread> {
        let mut kept = self.lock();
        match std::mem::replace(&mut *kept, Kept::Taken) {
            Kept::Unread(body) => Some(Unread::new(body)),
            other => {
                *kept = other;
                None
            }
        }
    }

    /// Whether nobody will read the body when the answer is complete. `has_known_end`: that can be before somebody ends
    /// it, because its length is known.
    pub(super) fn is_left(&self, has_known_end: bool) -> bool {
        let will_be_dropped = !has_known_end && self.will_be_dropped.load(Ordering::Relaxed);
        will_be_dropped || !matches!(*self.lock(), Kept::Nothing)
    }

    /// Somebody waits for a piece of the body.
    fn is_wanted(&self) {
        if let Some(conn) = self.conn.upgrade()
            && conn.h1.piece_is_wanted()
        {
            conn.driver().wake();
        }
    }

    /// Somebody has read a piece of the body.
    fn is_read(&self, bytes: usize) {
        if let Some(recording) = &self.recording {
            recording.has_received(bytes);
        }
        if let Some(conn) = self.conn.upgrade() {
            conn.h1.piece_is_read();
        }
    }

    /// The answer is complete, or will never be.
    pub(super) fn end(&self, is_killed: bool) {
        // Dropped when the lock is free again.
        let kept = std::mem::replace(&mut *self.lock(), Kept::Over(is_killed));
        drop(kept);
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The client has sent more than it may: the reason why nobody gets that.
    #[cold]
    fn exceeded(&self) -> Error {
        if let Some(conn) = self.conn.upgrade() {
            conn.h1.body_failed(BodyFault::TooLarge);
            conn.h1.wears_out();
            conn.limit_bites(Limit::Body);
        }
        Error::TooLarge
    }

    /// The reason why no more of the body comes.
    fn failed(&self, why: &hyper::Error) -> Error {
        let Some(conn) = self.conn.upgrade() else {
            return match *self.lock() {
                Kept::Over(true) => Error::Killed(None),
                _ => Error::Gone,
            };
        };
        if conn.is_killed() {
            return Error::Killed(None);
        }
        if is_malformed(why) {
            conn.h1.body_failed(BodyFault::Malformed);
        }
        match conn.h1.body_fault() {
            Some(BodyFault::Malformed) => Error::BadBody,
            Some(BodyFault::TooSlow) => Error::TooSlow,
            Some(BodyFault::TooLarge) => Error::TooLarge,
            _ => Error::Gone,
        }
    }
}

/// The rest of a body that nobody reads. If the rest is short, it is read here, so that the connection can go on.
pub(super) struct Unread {
    body: Incoming,
    /// How many more bytes are worth reading.
    left: u64,
}

/// To read and discard this many bytes costs less than another connection.
pub(super) const SKIPPED: u64 = 64 << 10;

impl Unread {
    fn new(body: Incoming) -> Self {
        let left = SKIPPED;
        Self { body, left }
    }

    /// Reads and discards what is there, unless it is too much.
    pub(super) fn poll_drain(
        &mut self,
        conn: &Conn,
        recording: Option<&Arc<Recording>>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let is_too_long = |body: &Incoming, left| body.size_hint().lower() > left;
        while !conn.h1.has_read_body() && !is_too_long(&self.body, self.left) {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    let length = frame.data_ref().map_or(0, Bytes::len);
                    if let Some(recording) = recording {
                        recording.has_received(length);
                    }
                    let Some(left) = self.left.checked_sub(length as u64) else {
                        break;
                    };
                    self.left = left;
                }
                Poll::Ready(_) => break,
                // hyper does not have more bytes either.
                Poll::Pending if conn.h1.is_waiting_for_bytes() => break,
                Poll::Pending => {
                    // hyper gives the next piece when it is asked again.
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(())
    }
}

/// Whether hyper's error says that the client sent a malformed body.
fn is_malformed(error: &hyper::Error) -> bool {
    let source = error.source().and_then(|source| source.downcast_ref());
    source.is_some_and(|error: &io::Error| {
        matches!(
            error.kind(),
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput
        )
    })
}
