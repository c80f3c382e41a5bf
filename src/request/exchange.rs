//! A request and the answer to it. A handler may keep it on any thread, for any time.

use std::any::Any;
use std::fmt;
use std::future::{Future, pending, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::thread;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body::{Body as _, Frame, SizeHint};
use hyper::upgrade::OnUpgrade;
use once_cell::sync::Lazy;

use crate::conn::{Body, answers};
use crate::conn_info::ConnInfo;
use crate::error::{Error, Result};
use crate::forwarded::Client;
use crate::phase::Waiter;
use crate::query::Query;
use crate::shared::Shared;
use crate::threads;
use crate::threads::{LentRuntime, stalled};

use super::file_body::FileBody;
use super::held::Taken;
use super::pipe::{NotTaken, Writing, Written, pipe};
use super::ready::{Ready, Subject as _, Tell};
use super::reply_slot::{Cancellation, ReplySlot};
use super::stream::Stream;

/// So much of a body is received before a handler in place is called for it. More may come with the last piece.
const TAKEN_AHEAD: usize = 64 << 10;

/// One request, and the means to answer it once.
///
/// You may move an exchange to any thread and keep it; meanwhile the client waits. Reading and writing may block. But
/// on a thread that drives connections ([`Dispatch::Inline`](crate::Dispatch::Inline)) they never block, and fail with
/// [`Error::WouldBlock`] instead. They also fail on a thread that the [host's runtime](crate::Builder::runtime) needs
/// to make progress; this takes one second to find out.
///
/// If an exchange is dropped without an answer, the client gets a 500, or a 400 if the request's body was malformed. If
/// an exchange is dropped after an answer has begun, the client sees the answer cut.
///
/// ```
/// use http::{Response, StatusCode};
/// use httpdown::{Dispatch, Error, Exchange, Listener, Result, Server};
///
/// /// Sends back what it is sent: in one piece for POST, in several otherwise.
/// fn echo(mut exchange: Exchange) -> Result<()> {
///     if exchange.method() == http::Method::POST {
///         return match exchange.read_to_end(1 << 20) {
///             Ok(body) => exchange.reply(Response::new(body)),
///             Err(Error::TooLarge) => {
///                 let mut answer = Response::new("at most a megabyte\n".into());
///                 *answer.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
///                 exchange.reply(answer)
///             }
///             Err(error) => Err(error),
///         };
///     }
///     exchange.start(Response::new(()))?;
///     loop {
///         let piece = exchange.read_bytes(64 << 10)?;
///         if piece.is_empty() {
///             return exchange.finish();
///         }
///         exchange.write_bytes(piece)?;
///     }
/// }
///
/// # fn main() -> Result<()> {
/// let handler = |exchange: Exchange| {
///     if let Err(error) = echo(exchange) {
///         eprintln!("a request was not answered: {error:#}");
///     }
/// };
/// let server = Server::builder().handle(Listener::bind("127.0.0.1:0")?, Dispatch::default(), handler)?;
/// server.stop_blocking()?;
/// # Ok(())
/// # }
/// ```
pub struct Exchange(Box<Inner>);

/// Stands for a head that was taken.
static NO_HEAD: Lazy<Parts> = Lazy::new(|| Request::new(()).into_parts().0);

/// Boxed, because an exchange is moved often.
struct Inner {
    /// `None` once somebody has taken it.
    head: Option<Parts>,
    body: RequestBody,
    answer: Answer,
    /// The answer has no body (HEAD, 204, 205, 304): nothing can be written for it.
    bodyless: bool,
    /// The number of bytes that the answer's Content-Length promises and that have not been written yet.
    owing: Option<u64>,
    /// Marks the request as held by the thread that took it from the queue.
    taken: Option<Taken>,
    /// Why the last attempt to answer has failed.
    refused: Option<Error>,
    /// Somebody has asked what happens to the request.
    is_watched: bool,
    /// The request asks for an upgrade, or a tunnel.
    upgrade: Option<OnUpgrade>,
    #[cfg(feature = "capi")]
    is_connect: bool,
    slot: Arc<ReplySlot>,
}

struct RequestBody {
    /// `None` after the whole answer is given.
    incoming: Option<Body>,
    /// The bytes that have been received and not yet read.
    rest: Bytes,
    /// The reason why no more bytes will come.
    failed: Option<Error>,
    trailers: Option<Box<HeaderMap>>,
    /// Somebody waits for the whole body, and not for a part of it.
    is_wanted_whole: bool,
}

enum Answer {
    Owed,
    Begun(Writing),
    Given,
}

impl Exchange {
    pub(crate) fn new(mut head: Parts, body: Body, slot: Arc<ReplySlot>) -> Self {
        body.promise_to_drop();
        // hyper gives a request no other extension.
        let upgrade = if head.extensions.is_empty() {
            None
        } else {
            head.extensions.remove()
        };
        Self(Box::new(Inner {
            body: RequestBody {
                incoming: Some(body),
                rest: Bytes::new(),
                failed: None,
                trailers: None,
                is_wanted_whole: false,
            },
            bodyless: head.method == Method::HEAD,
            answer: Answer::Owed,
            owing: None,
            taken: None,
            refused: None,
            is_watched: false,
            upgrade,
            #[cfg(feature = "capi")]
            is_connect: head.method == Method::CONNECT,
            head: Some(head),
            slot,
        }))
    }

    pub(crate) fn head(&self) -> &Parts {
        self.0.head.as_ref().unwrap_or(&NO_HEAD)
    }

    pub(crate) fn slot(&self) -> &Arc<ReplySlot> {
        &self.0.slot
    }

    /// Takes the head, for a caller that keeps it longer than the exchange.
    #[cfg(feature = "capi")]
    pub(crate) fn take_head(&mut self) -> Parts {
        let head = self.0.head.take();
        head.unwrap_or_else(|| Request::new(()).into_parts().0)
    }

    /// Sets the URI of a request whose head was taken, if a log line may have to name the request.
    #[cfg(feature = "capi")]
    pub(crate) fn name_if_unanswered(&mut self, uri: &Uri) {
        if !matches!(self.0.answer, Answer::Given) {
            let (mut head, ()) = Request::new(()).into_parts();
            head.uri = uri.clone();
            self.0.head = Some(head);
        }
    }

    /// The request's method.
    #[must_use]
    pub fn method(&self) -> &Method {
        &self.head().method
    }

    /// The request's target, as the client sent it.
    #[must_use]
    pub fn uri(&self) -> &Uri {
        &self.head().uri
    }

    /// The query of the target. A target without a query has an empty one.
    #[must_use]
    pub fn query(&self) -> Query<'_> {
        Query::new(self.uri().query().unwrap_or_default())
    }

    /// The request's version of HTTP.
    #[must_use]
    pub fn version(&self) -> Version {
        self.head().version
    }

    /// The request's headers. If the target is absolute (`http://a/b`), the value of `Host` comes from the target.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        &self.head().headers
    }

    /// The trailer fields of the request's body. They are there when the end of the body has been read; before, and
    /// without any, this is empty.
    #[must_use]
    pub fn trailers(&self) -> &HeaderMap {
        static NONE: Lazy<HeaderMap> = Lazy::new(HeaderMap::new);
        self.0.body.trailers.as_deref().unwrap_or(&NONE)
    }

    /// Sets the trailer fields of an answer that was begun, instead of those that were set before; [`Exchange::finish`]
    /// sends them. They reach only a client that has asked for them (`TE: trailers`), and only those fields that the
    /// answer's header field `Trailer` has named, in an answer without a Content-Length (RFC 9110, 6.5.1). Never
    /// blocks.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if no answer has begun.
    pub fn set_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        match &mut self.0.answer {
            Answer::Begun(pieces) => {
                pieces.set_trailers(trailers);
                Ok(())
            }
            _ => Err(Error::InvalidArgument("no answer has begun".into())),
        }
    }

    /// The connection that the request came on.
    #[must_use]
    pub fn conn(&self) -> &ConnInfo {
        self.conn_info()
    }

    /// Attaches a value to the request's record, where [`RequestRecord::data`](crate::RequestRecord::data) finds it:
    /// for an access log that knows more than the server does. Replaces an earlier value. Without
    /// [`Builder::on_done`](crate::Builder::on_done), or after the request's end, nobody sees the value.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use httpdown::{Exchange, RequestRecord};
    ///
    /// fn handle(exchange: Exchange) {
    ///     exchange.attach(Arc::new("alice".to_owned()));
    ///     let _ = exchange.reply(http::Response::new("hello".into()));
    /// }
    ///
    /// fn log(record: &RequestRecord) {
    ///     let user = record.data().and_then(|data| data.downcast_ref::<String>());
    ///     println!("{:?} {}", user, record.common_log());
    /// }
    /// # let _ = (handle, log);
    /// ```
    pub fn attach(&self, data: Arc<dyn Any + Send + Sync>) {
        if let Some(recording) = self.0.slot.inflight().recording() {
            recording.attach(data);
        }
    }

    /// Who has sent the request, as far as that is to be believed: see [`Client`].
    #[must_use]
    pub fn client(&self) -> Client {
        self.conn().client(self.headers())
    }

    pub(crate) fn conn_info(&self) -> &Arc<ConnInfo> {
        self.0.slot.inflight().conn().info()
    }

    /// The number of the server that the request came to.
    pub(crate) fn server_id(&self) -> u64 {
        self.shared().id
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        self.0.slot.inflight().conn().shared()
    }

    /// The reason why an answer is useless by now: [`Error::Gone`], [`Error::Killed`], or [`Error::AlreadyReplied`] if
    /// the answer is complete. Never blocks.
    #[must_use]
    pub fn cancelled(&self) -> Option<Error> {
        self.0.slot.over()
    }

    /// Whether the program has had the request for longer than
    /// [`handler_timeout`](crate::Builder::handler_timeout); without that, false. This is advice, and an answer is as
    /// useful as before: for a handler that computes, and would rather send a part of its result, or say that it is
    /// busy. Reads a clock, so it is also true while the handler blocks the thread that drives the connection, and
    /// before [`Ready::OVERDUE`] is told. Never blocks.
    ///
    /// ```
    /// use httpdown::{Exchange, Result};
    ///
    /// /// Finds as much as it can in its time.
    /// fn search(exchange: Exchange) -> Result<()> {
    ///     let mut found = 0;
    ///     while found < 1_000 && !exchange.is_overdue() {
    ///         found += 1;
    ///     }
    ///     exchange.reply(http::Response::new(format!("{found}\n").into()))
    /// }
    /// # let _ = search;
    /// ```
    #[must_use]
    pub fn is_overdue(&self) -> bool {
        self.0.slot.inflight().is_overdue()
    }

    /// Returns a value that can wait, on any thread, until an answer is useless.
    #[must_use]
    pub fn cancellation(&self) -> Cancellation {
        self.0.slot.cancellation()
    }

    pub(crate) fn taken_by(&mut self, holder: Taken) {
        if let Some(recording) = self.0.slot.inflight().recording() {
            recording.is_called();
        }
        self.0.taken = Some(holder);
    }

    /// Reads the next bytes of the request's body into `buf`; 0 is the end of the body. Blocks until there are some
    /// bytes. A client may wait with its body until it is asked (`Expect: 100-continue`). The first read, or
    /// [`Exchange::start`], asks it. If the client has its whole answer already, a stop lets the connection end when no
    /// bytes have come, or been read, for the [idle grace](crate::Builder::idle_grace).
    ///
    /// # Errors
    /// [`Error::Gone`] if the client has left, [`Error::BadBody`] if the client broke the protocol in the body,
    /// [`Error::TooSlow`] if the client was waited for too long, [`Error::TooLarge`] if the client sent more than
    /// [`max_body_size`](crate::Builder::max_body_size) (the client gets a 413, if nobody answers), [`Error::Killed`]
    /// after a kill, [`Error::WouldBlock`] on an I/O thread if no bytes are there.
    pub fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        let data = self.read_bytes(buf.len())?;
        buf[..data.len()].copy_from_slice(&data);
        Ok(data.len())
    }

    /// Like [`Exchange::read`], but without a copy. Returns at most `limit` bytes; no bytes are the end of the body.
    ///
    /// # Errors
    /// The errors of [`Exchange::read`].
    pub fn read_bytes(&mut self, limit: usize) -> Result<Bytes> {
        self.read_by(limit, None)
    }

    /// Like [`Exchange::read_bytes`], but waits for bytes until `deadline` at most (`None`: without limit). With a
    /// deadline that has passed, it never waits, on any thread. [`Exchange::ready`] and [`Exchange::notify`] tell when
    /// it is worth while to try again.
    ///
    /// # Errors
    /// [`Error::WouldBlock`] if no bytes are there; otherwise the errors of [`Exchange::read`].
    pub fn read_by(&mut self, limit: usize, deadline: Option<Instant>) -> Result<Bytes> {
        self.0.body.is_wanted_whole = false;
        if self.0.body.rest.is_empty() && limit > 0 {
            self.0.body.rest = self.next_data(deadline)?.unwrap_or_default();
        }
        let count = limit.min(self.0.body.rest.len());
        Ok(self.0.body.rest.split_to(count))
    }

    /// Reads the rest of the request's body, if the rest has at most `limit` bytes. Blocks until the whole rest is
    /// there.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if the body is longer (the received bytes can still be read); otherwise the errors of
    /// [`Exchange::read`].
    pub fn read_to_end(&mut self, limit: usize) -> Result<Bytes> {
        self.read_to_end_by(limit, None)
    }

    /// Like [`Exchange::read_to_end`], but waits until `deadline` at most (`None`: without limit). With a deadline that
    /// has passed, it never waits, on any thread.
    ///
    /// # Errors
    /// [`Error::WouldBlock`] if not all of the body is there (nothing is lost); otherwise the errors of
    /// [`Exchange::read_to_end`].
    pub fn read_to_end_by(&mut self, limit: usize, deadline: Option<Instant>) -> Result<Bytes> {
        let incoming = self.0.body.incoming.as_ref();
        let announced = incoming.map_or(0, |body| body.size_hint().lower());
        if announced.saturating_add(self.0.body.rest.len() as u64) > limit as u64 {
            return Err(Error::TooLarge);
        }
        loop {
            if self.0.body.rest.len() > limit {
                return Err(Error::TooLarge);
            }
            // If the body is too long, or reading would block, the received bytes can still be read.
            self.0.body.is_wanted_whole = true;
            let Some(data) = self.next_data(deadline)? else {
                return Ok(std::mem::take(&mut self.0.body.rest));
            };
            self.0.body.append(data);
        }
    }

    fn next_data(&mut self, deadline: Option<Instant>) -> Result<Option<Bytes>> {
        if let Some(why) = &self.0.body.failed {
            return Err(why.clone());
        }
        let result = self.receive(deadline);
        if let Err(
            why @ (Error::Gone
            | Error::BadBody
            | Error::TooSlow
            | Error::TooLarge
            | Error::Killed(_)),
        ) = &result
        {
            self.0.body.failed = Some(why.clone());
            self.0.body.rest = Bytes::new();
        }
        result
    }

    fn receive(&mut self, deadline: Option<Instant>) -> Result<Option<Bytes>> {
        let Inner { body, slot, .. } = &mut *self.0;
        let lent = slot.inflight().conn().shared().lent.as_ref();
        let received = wait_for(lent, deadline, async {
            tokio::select! {
                biased;
                data = poll_fn(|cx| body.poll_data(cx)) => data,
                Some(why) = async { slot.cancellation().wait_as(Waiter::Thread).await } => Err(why),
            }
        });
        received.unwrap_or(Err(Error::WouldBlock))
    }

    /// Waits until at least one of these things has happened to the request, and returns all that have. That the
    /// request is [gone](Ready::GONE) is always told. It may be told in vain that reading or writing is possible: then
    /// [`Exchange::read_by`] and [`Exchange::write_by`] say [`Error::WouldBlock`], and you wait again.
    ///
    /// ```
    /// use std::time::Instant;
    ///
    /// use httpdown::{Error, Exchange, Ready, Result};
    ///
    /// /// Sends back what comes, without a thread of its own, until the server drains.
    /// async fn echo(mut exchange: Exchange) -> Result<()> {
    ///     exchange.start(http::Response::new(()))?;
    ///     loop {
    ///         let ready = exchange.ready(Ready::READABLE | Ready::DRAINING).await;
    ///         if ready.contains(Ready::DRAINING) {
    ///             return exchange.finish();
    ///         }
    ///         match exchange.read_by(8192, Some(Instant::now())) {
    ///             Ok(piece) if piece.is_empty() => return exchange.finish(),
    ///             Ok(mut piece) => {
    ///                 while !piece.is_empty() {
    ///                     exchange.ready(Ready::WRITABLE).await;
    ///                     match exchange.write_by(&piece, Some(Instant::now())) {
    ///                         Ok(taken) => drop(piece.split_to(taken)),
    ///                         Err(Error::WouldBlock) => {}
    ///                         Err(why) => return Err(why),
    ///                     }
    ///                 }
    ///             }
    ///             Err(Error::WouldBlock) => {}
    ///             Err(why) => return Err(why),
    ///         }
    ///     }
    /// }
    /// # let _ = echo;
    /// ```
    pub async fn ready(&mut self, wanted: Ready) -> Ready {
        poll_fn(|cx| self.poll_ready(wanted, cx)).await
    }

    /// Like [`Exchange::ready`], for a poll function.
    pub fn poll_ready(&mut self, wanted: Ready, cx: &mut Context<'_>) -> Poll<Ready> {
        self.0.is_watched = true;
        self.0.slot.wake_on_change(cx.waker());
        let mut ready = self.0.slot.happened().and(wanted);
        if self.0.slot.over().is_some() {
            ready |= Ready::GONE;
        }
        if wanted.contains(Ready::READABLE) && self.0.body.poll_readable(cx).is_ready() {
            ready |= Ready::READABLE;
        }
        if wanted.contains(Ready::WRITABLE)
            && match &self.0.answer {
                Answer::Begun(pieces) => pieces.poll_writable(cx).is_ready(),
                Answer::Owed | Answer::Given => true,
            }
        {
            ready |= Ready::WRITABLE;
        }
        if ready.is_empty() {
            Poll::Pending
        } else {
            Poll::Ready(ready)
        }
    }

    /// Calls `tell` once, as soon as one of these things has happened to the request, with all that have; see
    /// [`Exchange::ready`]. What has happened before is told at once. This replaces an earlier `tell` that was not
    /// called. Never blocks.
    ///
    /// `tell` is called on the thread that drives the connection, so it must not block. It is not called any more when
    /// the exchange has ended: whoever ends the exchange waits until a `tell` that runs on another thread has returned.
    pub fn notify(&mut self, wanted: Ready, tell: impl FnOnce(Ready) + Send + 'static) {
        self.tell(wanted, Tell::Call(Box::new(tell)));
    }

    pub(crate) fn tell(&mut self, wanted: Ready, tell: Tell) {
        let notice = self.0.slot.notice();
        notice.order(wanted, tell);
        let waker = Waker::from(Arc::clone(&notice));
        if let Poll::Ready(there) = self.poll_ready(wanted, &mut Context::from_waker(&waker)) {
            notice.is_there(there);
        }
    }

    /// Whether there is a body that has not come completely, and that the client sends without being asked.
    pub(crate) fn may_have_come(&self) -> bool {
        let body = &self.0.body;
        let incoming = body.incoming.as_ref();
        incoming.is_some_and(|incoming| !incoming.is_end_stream() && !incoming.is_awaited())
    }

    /// Takes the received part of the body, up to some limit, so that this part can be read on a thread that must not
    /// wait.
    pub(crate) fn poll_come(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let body = &mut self.0.body;
        if body.rest.len() >= TAKEN_AHEAD {
            return Poll::Ready(());
        }
        match body.poll_data(cx) {
            Poll::Ready(Ok(Some(data))) => {
                body.append(data);
                // hyper now reads the next piece, if it is there.
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Ready(Err(why)) => {
                body.failed = Some(why);
                Poll::Ready(())
            }
            Poll::Ready(Ok(None)) | Poll::Pending => Poll::Ready(()),
        }
    }

    /// Whether the body is known to be short.
    pub(crate) fn is_short(&self) -> bool {
        let limit = self.shared().options.body_buffer() as u64;
        let length = self.0.body.incoming.as_ref();
        let length = length.and_then(|incoming| incoming.size_hint().exact());
        length.is_some_and(|length| length < limit)
    }

    /// Takes the body, until it is there, or will never be.
    pub(crate) fn poll_whole(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let body = &mut self.0.body;
        match ready!(body.poll_data(cx)) {
            Ok(Some(data)) => {
                body.append(data);
                let incoming = body.incoming.as_ref();
                if incoming.is_none_or(http_body::Body::is_end_stream) {
                    return Poll::Ready(());
                }
                // hyper now reads the next piece, if it is there.
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Ok(None) => Poll::Ready(()),
            Err(why) => {
                body.failed = Some(why);
                Poll::Ready(())
            }
        }
    }

    /// Whether it is known that the body cannot be read.
    pub(crate) fn has_no_body(&self) -> bool {
        self.0.body.failed.is_some()
    }

    /// Gives the request up: no handler was called with it, and none will be.
    pub(crate) fn withdraw(mut self) {
        self.0.answer = Answer::Given;
    }

    /// Answers with a whole response. Does not wait for the client.
    ///
    /// A 204 or 205 has no body: a given body is not sent, nor is a given Content-Length (for 205, it is 0).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the status is not from 200 to 999, or the headers contradict the body (the client
    /// gets a 500); [`Error::Gone`] or [`Error::Killed`] if the client cannot get the answer any more;
    /// [`Error::AlreadyReplied`] if an answer has begun, which this call cuts.
    pub fn reply(mut self, response: Response<Bytes>) -> Result<()> {
        self.answer_by(|exchange| exchange.try_reply(response))
    }

    /// Makes an attempt to answer. If the attempt fails, and no later one succeeds, the log will say why.
    pub(crate) fn answer_by(
        &mut self,
        attempt: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        let result = attempt(self);
        self.0.refused = result.as_ref().err().cloned();
        result
    }

    /// Like [`Exchange::reply`]. The caller drops the exchange afterwards.
    pub(crate) fn try_reply(&mut self, response: Response<Bytes>) -> Result<()> {
        self.check_length(&response, response.body().len() as u64)?;
        self.leave_body();
        self.answer_with(ReplyBody::whole(response))
    }

    /// Like [`Exchange::try_reply`], with any body, which has so many bytes.
    pub(super) fn try_reply_with(
        &mut self,
        response: Response<ReplyBody>,
        length: u64,
    ) -> Result<()> {
        self.check_length(&response, length)?;
        self.leave_body();
        self.answer_with(response)
    }

    /// Checks that a Content-Length, if there is one, is the length of the body.
    fn check_length<B>(&self, response: &Response<B>, length: u64) -> Result<()> {
        let declared = declared_length(response)?;
        if !self.0.bodyless && declared.is_some_and(|declared| declared != length) {
            let why = "Content-Length is not the length of the body";
            return Err(Error::InvalidArgument(why.into()));
        }
        Ok(())
    }

    /// Begins an answer whose body follows in pieces: [`Exchange::write`], then [`Exchange::finish`].
    ///
    /// The body is sent in chunks unless the headers have a Content-Length (which is not sent with a 204 or 205). The
    /// head is sent as soon as the connection can take it. The head says `Connection: close` if, at that time, more
    /// than 64 KiB of the request's body are still missing, or the end of a chunked body is. The reason: nobody knows
    /// whether the rest will be read.
    ///
    /// ```
    /// use httpdown::{Exchange, Result};
    ///
    /// /// Sends back what it gets, as it comes.
    /// fn echo(mut exchange: Exchange) -> Result<()> {
    ///     exchange.start(http::Response::new(()))?;
    ///     let mut piece = [0; 8192];
    ///     loop {
    ///         match exchange.read(&mut piece)? {
    ///             0 => return exchange.finish(),
    ///             count => exchange.write(&piece[..count])?,
    ///         }
    ///     }
    /// }
    /// # let _ = echo;
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the status is not from 200 to 999, or the handler must not set a header (nothing
    /// was sent: give another answer); [`Error::Gone`] or [`Error::Killed`] if the client cannot get the answer any
    /// more; [`Error::AlreadyReplied`].
    pub fn start(&mut self, response: Response<()>) -> Result<()> {
        self.answer_by(|exchange| exchange.try_start(response))
    }

    fn try_start(&mut self, response: Response<()>) -> Result<()> {
        let declared = declared_length(&response)?;
        self.ask_for_body();
        let (pieces, body) = pipe(self.0.slot.inflight().conn().shared());
        let status = response.status();
        self.0.bodyless |= matches!(
            status,
            StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED
        );
        let result = self.answer_with(response.map(|()| ReplyBody::Pieces(body)));
        if result.is_ok() {
            self.0.answer = Answer::Begun(pieces);
            self.0.owing = declared.filter(|_| !self.0.bodyless);
        }
        result
    }

    /// Asks a client that waits with its body, before the answer begins. After that the client might wait for ever.
    fn ask_for_body(&mut self) {
        let body = &mut self.0.body;
        if !body.rest.is_empty() || body.failed.is_some() {
            return;
        }
        // The next reader polls again.
        match body.poll_data(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(Some(data))) => body.rest = data,
            Poll::Ready(Err(why)) => body.failed = Some(why),
            Poll::Ready(Ok(None)) | Poll::Pending => {}
        }
    }

    /// Whether the client asks for another protocol on this connection (`Upgrade`), or for a tunnel (`CONNECT`).
    #[must_use]
    pub fn asks_for_upgrade(&self) -> bool {
        self.0.upgrade.is_some()
    }

    /// Whether the client asks for a tunnel. The head may have been taken.
    #[cfg(feature = "capi")]
    pub(crate) fn is_connect(&self) -> bool {
        self.0.is_connect
    }

    /// Takes the connection over, and ends the exchange. The response says so: its status is 101 and it has the field
    /// `Upgrade`, or, for `CONNECT`, its status is 2xx. `Connection: upgrade` is added. What the client has sent behind
    /// its request is not lost: the stream begins with it. The rest of the request's body, if it has one, must have
    /// been read before. Never blocks.
    ///
    /// The connection counts as under way until the stream is dropped, so a stop waits for it:
    /// [`Ready::DRAINING`] tells that it should end.
    ///
    /// ```
    /// use http::Response;
    /// use httpdown::{Exchange, Result};
    ///
    /// /// Sends back what comes, in a protocol called echo.
    /// fn echo(exchange: Exchange) -> Result<()> {
    ///     let response = Response::builder().status(101).header("Upgrade", "echo").body(());
    ///     let stream = exchange.upgrade(response.unwrap_or_default())?;
    ///     let mut bytes = [0; 4096];
    ///     loop {
    ///         match stream.read(&mut bytes, None)? {
    ///             0 => return stream.shutdown(None),
    ///             count => stream.write(&bytes[..count], None)?,
    ///         };
    ///     }
    /// }
    /// # let _ = echo;
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the request asks for no upgrade, the response does not fit it, or the request's
    /// body was not read; [`Error::Gone`] or [`Error::Killed`] if the client cannot get the answer any more;
    /// [`Error::AlreadyReplied`].
    pub fn upgrade(mut self, response: Response<()>) -> Result<Stream> {
        let mut stream = None;
        self.answer_by(|exchange| {
            stream = Some(exchange.try_upgrade(response)?);
            Ok(())
        })?;
        stream.ok_or(Error::Panicked)
    }

    /// Like [`Exchange::upgrade`]. The caller drops the exchange afterwards.
    pub(crate) fn try_upgrade(&mut self, mut response: Response<()>) -> Result<Stream> {
        let wrong = |why: &str| Err(Error::InvalidArgument(why.into()));
        let is_switch = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let is_tunnel = response.status().is_success();
        if is_switch && !response.headers().contains_key(UPGRADE) {
            return wrong("an upgrade's answer says to which protocol: Upgrade");
        }
        if !is_switch && !is_tunnel {
            return wrong("the status of an upgrade is 101; of a tunnel, 2xx");
        }
        if self.may_have_come() || !self.0.body.rest.is_empty() {
            return wrong("the request's body was not read");
        }
        let Some(upgrade) = self.0.upgrade.take() else {
            return wrong("the request asks for no upgrade");
        };
        if is_switch {
            let headers = response.headers_mut();
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        }
        self.leave_body();
        // It listens before the connection is handed over.
        let stream = Stream::new(upgrade, Arc::clone(self.0.slot.inflight().conn()));
        self.answer_with(ReplyBody::whole(response.map(|()| Bytes::new())))?;
        Ok(stream)
    }

    /// Whether [`Exchange::start`] has succeeded.
    #[must_use]
    pub fn is_started(&self) -> bool {
        matches!(self.0.answer, Answer::Begun(_))
    }

    /// Sends more of the answer's body, as soon as the client takes it. Blocks while more than 256 KiB wait to be sent
    /// (48 KiB, if the server's clients together leave more than 2 MiB waiting).
    ///
    /// # Errors
    /// [`Error::Gone`] or [`Error::Killed`] if the client cannot get the data any more, [`Error::AlreadyReplied`] if
    /// the answer has no body (to HEAD, or a 204, 205 or 304) and `data` is not empty, [`Error::InvalidArgument`]
    /// before [`Exchange::start`] or if the body exceeds the Content-Length, [`Error::WouldBlock`] on an I/O thread if
    /// there is no room for all of `data` (then nothing is taken; when nothing waits, there is room for any length).
    pub fn write(&mut self, data: &[u8]) -> Result<()> {
        let mut rest = data;
        self.write_all(data.len(), |count| {
            let (piece, behind) = rest.split_at(count);
            rest = behind;
            Bytes::copy_from_slice(piece)
        })
    }

    /// Like [`Exchange::write`], but without a copy.
    ///
    /// # Errors
    /// The errors of [`Exchange::write`].
    pub fn write_bytes(&mut self, mut data: Bytes) -> Result<()> {
        self.write_all(data.len(), |count| data.split_to(count))
    }

    /// Writes `len` bytes. `next` gives the next so many of them. What there is no room for is not asked for, so it
    /// takes no memory here.
    fn write_all(&mut self, len: usize, mut next: impl FnMut(usize) -> Bytes) -> Result<()> {
        let (slot, pieces) = self.may_write(len)?;
        let lent = slot.inflight().conn().shared().lent.as_ref();
        let mut add = |count| pieces.add(next(count)).map_err(|NotTaken| not_taken(slot));
        // Nothing can always be written, also when an answer without a body is complete already.
        if len == 0 {
            return Ok(());
        }
        if pieces.room_for(len) == len {
            add(len)?;
        } else if may_wait(lent) {
            let mut rest = len;
            while rest > 0 {
                let count = pieces.room_for(rest);
                if count > 0 {
                    add(count)?;
                    rest -= count;
                } else {
                    stalled(poll_fn(|cx| pieces.poll_writable(cx)), None);
                }
            }
        } else if pieces.has_room(len) {
            add(len)?;
        } else {
            return Err(Error::WouldBlock);
        }
        self.has_written(len);
        Ok(())
    }

    /// Sends as much of `data` as there is room for, and returns how much that is: at least one byte, if there are any.
    /// If there is no room, waits for it until `deadline` at most; `None`: without limit, and until there was room for
    /// all. With a deadline that has passed, it never waits, on any thread. [`Exchange::ready`] and
    /// [`Exchange::notify`] tell when it is worth while to try again.
    ///
    /// # Errors
    /// [`Error::WouldBlock`] if nothing was taken; otherwise the errors of [`Exchange::write`].
    pub fn write_by(&mut self, data: &[u8], deadline: Option<Instant>) -> Result<usize> {
        if deadline.is_none() {
            return self.write(data).map(|()| data.len());
        }
        let (slot, pieces) = self.may_write(data.len())?;
        let lent = slot.inflight().conn().shared().lent.as_ref();
        let deadline = if deadline.is_some_and(|at| at > Instant::now()) && may_wait(lent) {
            deadline
        } else {
            None
        };
        let mut taken = 0;
        while taken < data.len() {
            let count = pieces.room_for(data.len() - taken);
            if count > 0 {
                let piece = Bytes::copy_from_slice(&data[taken..taken + count]);
                pieces.add(piece).map_err(|NotTaken| not_taken(slot))?;
                taken += count;
            } else if deadline.is_none()
                || stalled(poll_fn(|cx| pieces.poll_writable(cx)), deadline).is_none()
            {
                break;
            } else if let Some(why) = slot.lost() {
                return Err(why);
            }
        }
        self.has_written(taken);
        if taken == 0 && !data.is_empty() {
            return Err(Error::WouldBlock);
        }
        Ok(taken)
    }

    /// Checks that `len` bytes may be written now, all or some of them.
    fn may_write(&self, len: usize) -> Result<(&Arc<ReplySlot>, &Writing)> {
        let Answer::Begun(pieces) = &self.0.answer else {
            return Err(Error::InvalidArgument("no answer has begun".into()));
        };
        if let Some(why) = self.0.slot.lost() {
            return Err(why);
        }
        if self.0.bodyless && len > 0 {
            return Err(Error::AlreadyReplied);
        }
        if self.0.owing.is_some_and(|owing| owing < len as u64) {
            return Err(Error::InvalidArgument(
                "more than the Content-Length".into(),
            ));
        }
        Ok((&self.0.slot, pieces))
    }

    fn has_written(&mut self, len: usize) {
        if let Some(owing) = &mut self.0.owing {
            *owing -= len as u64;
        }
    }

    /// Ends an answer that was begun. Does not wait for the client.
    ///
    /// # Errors
    /// [`Error::Gone`] or [`Error::Killed`] if the client cannot get the whole answer any more,
    /// [`Error::InvalidArgument`] before [`Exchange::start`] (the client gets a 500), or if less was written than the
    /// Content-Length says (the client sees the answer cut).
    pub fn finish(mut self) -> Result<()> {
        self.answer_by(Self::try_finish)
    }

    /// Like [`Exchange::finish`]. The caller drops the exchange afterwards.
    pub(crate) fn try_finish(&mut self) -> Result<()> {
        if !self.is_started() {
            return Err(Error::InvalidArgument("no answer has begun".into()));
        }
        if let Some(why) = self.0.slot.lost() {
            return Err(why);
        }
        if self.0.owing.is_some_and(|owing| owing > 0) {
            let why = "less than the Content-Length";
            return Err(Error::InvalidArgument(why.into()));
        }
        let Answer::Begun(pieces) = std::mem::replace(&mut self.0.answer, Answer::Given) else {
            return Ok(());
        };
        self.leave_body();
        self.0.slot.inflight().is_handled();
        match pieces.end() {
            Err(NotTaken) if !self.0.slot.is_complete() => Err(not_taken(&self.0.slot)),
            // Or the connection knew the end before.
            _ => Ok(()),
        }
    }

    /// Says that nobody will read more of the body. Call this before the answer ends: then it is known whether the
    /// connection can go on.
    fn leave_body(&mut self) {
        self.0.body.incoming = None;
    }

    fn answer_with(&mut self, response: Response<ReplyBody>) -> Result<()> {
        if !matches!(self.0.answer, Answer::Owed) {
            return Err(self.0.slot.lost().unwrap_or(Error::AlreadyReplied));
        }
        // After a kill no answer may get through. Otherwise the client could not tell it from an answer that was
        // finished in time.
        if !matches!(response.body(), ReplyBody::Pieces(_)) {
            self.0.slot.inflight().is_handled();
        }
        self.0.slot.answer(response)?;
        self.0.answer = Answer::Given;
        Ok(())
    }

    /// Answers with the 503 of a kill, because nobody has taken the request in time.
    pub(crate) fn refuse(mut self) {
        self.0.slot.inflight().is_handled();
        self.0.slot.inflight().refused();
        if let Answer::Owed = std::mem::replace(&mut self.0.answer, Answer::Given) {
            self.leave_body();
            self.0.slot.give(ReplyBody::whole(answers::killed()));
        }
    }

    /// Answers with a 503, because too many requests wait before this one.
    pub(crate) fn turn_away(mut self) {
        self.0.slot.inflight().is_handled();
        if let Answer::Owed = std::mem::replace(&mut self.0.answer, Answer::Given) {
            self.leave_body();
            self.0.slot.give(ReplyBody::whole(answers::busy()));
        }
    }

    /// The exchange ends without an answer, while the client can still get one.
    fn unanswered(&mut self) {
        self.leave_body();
        let (slot, uri) = (&self.0.slot, self.uri());
        match (&self.0.body.failed, &self.0.refused) {
            // This is the client's fault, so the log does not tell it.
            (Some(Error::BadBody), _) => {
                slot.give(ReplyBody::whole(answers::bad_request()));
                return;
            }
            (Some(Error::TooLarge), _) => {
                slot.give(ReplyBody::whole(answers::body_too_large()));
                return;
            }
            (Some(Error::TooSlow), _) => {
                slot.inflight().was_too_slow();
                slot.give(ReplyBody::whole(answers::body_late()));
                return;
            }
            // The client may still read: it has given up only sending the request.
            (Some(Error::Gone), _) => {
                slot.inflight().gave_up();
                slot.give(ReplyBody::whole(answers::bad_request()));
                return;
            }
            _ if thread::panicking() => slot.tell(format!("a handler panicked: {uri}")),
            (_, Some(why @ Error::InvalidArgument(_))) => {
                slot.tell(format!("the answer to {uri} was refused: {why}"));
            }
            (_, Some(why @ (Error::Io(..) | Error::OutOfResources(..)))) => {
                slot.tell(format!("the answer to {uri} has failed: {why:#}"));
            }
            _ => slot.tell(format!("a handler did not answer {uri}")),
        }
        let shared = slot.inflight().conn().shared();
        shared.events.sum("handler.error", 1.0);
        slot.give(ReplyBody::whole(answers::unanswered()));
    }

    /// The exchange ends after an answer has begun, while the client would still get it. The answer's body sees that no
    /// end came.
    fn unfinished(&self) {
        let (slot, uri) = (&self.0.slot, self.uri());
        match (&self.0.body.failed, &self.0.refused) {
            // The client has given up the request, or broken the protocol.
            (Some(_), _) => {}
            _ if thread::panicking() => {
                slot.tell(format!("a handler panicked in its answer: {uri}"));
            }
            (_, Some(why @ (Error::InvalidArgument(_) | Error::AlreadyReplied))) => {
                slot.tell(format!("the answer to {uri} was cut: {why}"));
            }
            _ => slot.tell(format!("a handler left its answer to {uri} unfinished")),
        }
    }
}

impl RequestBody {
    /// The next received bytes; `None` at the end of the body.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>>> {
        let Some(incoming) = &mut self.incoming else {
            return Poll::Ready(Ok(None));
        };
        loop {
            // An empty frame or trailers are not the end yet.
            match ready!(Pin::new(&mut *incoming).poll_frame(cx)?).map(Frame::into_data) {
                None => return Poll::Ready(Ok(None)),
                Some(Ok(data)) if !data.is_empty() => return Poll::Ready(Ok(Some(data))),
                Some(Ok(_)) => {}
                Some(Err(frame)) => self.trailers = frame.into_trailers().ok().map(Box::new),
            }
        }
    }

    /// Waits until reading would not wait, or gets on.
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let is_enough = !self.rest.is_empty() && !self.is_wanted_whole;
        if is_enough || self.failed.is_some() {
            return Poll::Ready(());
        }
        match ready!(self.poll_data(cx)) {
            Ok(Some(data)) => self.append(data),
            Ok(None) => {}
            Err(why) => self.failed = Some(why),
        }
        Poll::Ready(())
    }

    fn append(&mut self, data: Bytes) {
        if self.rest.is_empty() {
            self.rest = data; // The usual case: one piece, not copied.
        } else {
            let mut whole = BytesMut::from(std::mem::take(&mut self.rest));
            whole.extend_from_slice(&data);
            self.rest = whole.freeze();
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.0.slot.inflight().is_handled();
        match std::mem::replace(&mut self.0.answer, Answer::Given) {
            Answer::Given => {}
            // The client has everything, or cannot get it any more. The handler may know this.
            Answer::Begun(_) if self.0.bodyless || self.0.slot.over().is_some() => {}
            // The log is written before the answer's body learns of the end.
            Answer::Begun(_pieces) => self.unfinished(),
            // Nobody would get an answer; and after a kill nobody may get one.
            Answer::Owed if self.0.slot.lost().is_some() => {}
            Answer::Owed => self.unanswered(),
        }
        if self.0.is_watched {
            self.0.slot.ignore();
        }
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange")
            .field("method", self.method())
            .field("uri", self.uri())
            .field("conn", &self.conn())
            .finish_non_exhaustive()
    }
}

/// The Content-Length of a head, if it has one. Refuses headers that would mislead the client about the end of the
/// response.
fn declared_length<B>(response: &Response<B>) -> Result<Option<u64>> {
    let wrong = |what: String| Err(Error::InvalidArgument(what));
    let status = response.status();
    if status.is_informational() {
        return wrong(format!("{status} is not a final status"));
    }
    let mut declared = None;
    // Most answers have few headers, so a look at each of them is quicker than a lookup.
    for (name, value) in response.headers() {
        if name == TRANSFER_ENCODING {
            return wrong("Transfer-Encoding is not the handler's to set".into());
        }
        if name == CONTENT_LENGTH {
            let digits = value.to_str().ok().filter(|text| {
                // RFC 9110 allows only digits; str::parse would also take a plus sign.
                text.bytes().all(|byte| byte.is_ascii_digit())
            });
            match digits.and_then(|digits| digits.parse().ok()) {
                Some(length) if declared.is_none() => declared = Some(length),
                _ => return wrong("Content-Length is not one number".into()),
            }
        }
    }
    Ok(declared)
}

/// Waits on this thread until the deadline, if there is one. A thread that drives connections only looks, because it
/// would wait for itself. `None` if the future is not ready.
pub(super) fn wait_for<T>(
    lent: Option<&Arc<LentRuntime>>,
    deadline: Option<Instant>,
    future: impl Future<Output = T>,
) -> Option<T> {
    let mut future = pin!(future);
    if threads::on_io_thread() || lent.is_some() {
        let looked = threads::block_on(future.as_mut(), Some(Instant::now()));
        let is_over = deadline.is_some_and(|at| at <= Instant::now());
        if looked.is_some() || is_over || !may_wait(lent) {
            return looked;
        }
    }
    stalled(future, deadline)
}

/// The error when the connection takes no more pieces.
fn not_taken(slot: &ReplySlot) -> Error {
    slot.over().unwrap_or(Error::Gone)
}

/// Whether this thread may wait for a connection. May block for one second to find out.
fn may_wait(lent: Option<&Arc<LentRuntime>>) -> bool {
    let gets_on = |lent: &Arc<LentRuntime>| lent.check_gets_on(pending::<()>(), None).is_ok();
    !threads::on_io_thread() && lent.is_none_or(gets_on)
}

/// The body of an answer, in the form that the connection takes.
#[derive(Debug)]
pub(crate) enum ReplyBody {
    Whole(Option<Bytes>),
    Pieces(Written),
    /// Boxed, because answers are moved often, and few are files.
    File(Box<FileBody>),
}

impl ReplyBody {
    pub(super) fn whole(response: Response<Bytes>) -> Response<Self> {
        response.map(|body| Self::Whole(Some(body)))
    }

    // Out of line, so that what most answers are is in line.
    #[inline(never)]
    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>>>> {
        match self {
            Self::Whole(body) => Poll::Ready(body.take().map(|data| Ok(Frame::data(data)))),
            Self::Pieces(pieces) => Pin::new(pieces).poll_frame(cx),
            Self::File(file) => file
                .poll_piece(cx)
                .map(|piece| Some(piece?.map(Frame::data))),
        }
    }

    #[inline(never)]
    fn is_at_end(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_none(),
            Self::Pieces(pieces) => pieces.is_end_stream(),
            Self::File(file) => file.left() == 0,
        }
    }
}

impl http_body::Body for ReplyBody {
    type Data = Bytes;
    type Error = Error;

    #[inline]
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>>>> {
        match &mut *self {
            Self::Whole(body) => Poll::Ready(body.take().map(|data| Ok(Frame::data(data)))),
            others => others.poll_part(cx),
        }
    }

    #[inline]
    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.as_ref().is_none_or(Bytes::is_empty),
            others => others.is_at_end(),
        }
    }

    #[inline]
    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => SizeHint::with_exact(body.as_ref().map_or(0, Bytes::len) as u64),
            Self::Pieces(pieces) => pieces.size_hint(),
            Self::File(file) => SizeHint::with_exact(file.left()),
        }
    }
}
