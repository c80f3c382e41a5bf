//! A request and the answer to it, in the hands of a handler: on any thread, for as long as it takes.

use std::error::Error as _;
use std::fmt;
use std::future::{Future, pending, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::thread;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, EXPECT, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use once_cell::sync::Lazy;
use tokio::sync::{Semaphore, TryAcquireError, mpsc};

use crate::conn::BodyFault;
use crate::conn_info::ConnInfo;
use crate::error::{Error, Result};
use crate::phase::Waiter;
use crate::query::Query;
use crate::shared::Shared;
use crate::threads;
use crate::threads::LentRuntime;

use super::held::Taken;
use super::reply_slot::{Cancellation, ReplySlot};

/// A response is handed to the connection in pieces of at most this many bytes …
const PIECE: usize = 64 << 10;
/// … of which so many bytes may wait: a slow client makes the writer wait instead of filling the memory.
const ROOM: usize = 4 * PIECE;

/// One request, and the means to answer it once.
///
/// It can be moved to any thread and kept: the client waits. Reading and writing may block, which they never do on a
/// thread that drives connections ([`Dispatch::Inline`](crate::Dispatch::Inline)): there they fail with
/// [`Error::WouldBlock`]. So they do on a thread without which a [runtime of the host's](crate::Builder::runtime) does
/// not get on, which takes a second to be found out.
///
/// Dropped without an answer, the client gets a 500, or, if its body was found to be malformed, a 400; dropped within an
/// answer, the client sees it cut.
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

/// Where the head was taken.
static NO_HEAD: Lazy<Parts> = Lazy::new(|| Request::new(()).into_parts().0);

/// In a box because an exchange is passed on from hand to hand.
struct Inner {
    /// `None` once somebody has taken it.
    head: Option<Parts>,
    body: RequestBody,
    answer: Answer,
    /// The answer has no body (HEAD, 204, 205, 304): nothing can be written for it.
    bodyless: bool,
    /// What its Content-Length promises and has not been written yet.
    owing: Option<u64>,
    /// The thread that took it from the queue holds it.
    taken: Option<Taken>,
    /// Why the last attempt to answer has failed.
    refused: Option<Error>,
    slot: Arc<ReplySlot>,
}

struct RequestBody {
    /// `None` once the whole answer is given.
    incoming: Option<Incoming>,
    /// The client waits to be asked for it (RFC 9110, 10.1.1): to read is to ask.
    is_awaited: bool,
    /// What has been received and not yet read.
    rest: Bytes,
    /// Why no more will come: hyper says so once, and then calls it the end.
    failed: Option<Error>,
}

enum Answer {
    Owed,
    Begun(Writing),
    Given,
}

/// The writer's end of an answer's body.
struct Writing {
    queue: mpsc::UnboundedSender<Piece>,
    room: Arc<Semaphore>,
}

#[derive(Debug)]
pub(crate) enum Piece {
    /// So many of the bytes take up room until the connection has them.
    Data(Bytes, usize),
    End,
}

impl Exchange {
    pub(crate) fn new(request: Request<Incoming>, slot: Arc<ReplySlot>) -> Self {
        let (head, incoming) = request.into_parts();
        let is_awaited = !incoming.is_end_stream() && head.headers.contains_key(EXPECT);
        Self(Box::new(Inner {
            body: RequestBody {
                is_awaited,
                incoming: Some(incoming),
                rest: Bytes::new(),
                failed: None,
            },
            bodyless: head.method == Method::HEAD,
            head: Some(head),
            answer: Answer::Owed,
            owing: None,
            taken: None,
            refused: None,
            slot,
        }))
    }

    fn head(&self) -> &Parts {
        self.0.head.as_ref().unwrap_or(&NO_HEAD)
    }

    pub(crate) fn slot(&self) -> &Arc<ReplySlot> {
        &self.0.slot
    }

    /// The head, for who keeps it longer than the exchange.
    #[cfg(feature = "capi")]
    pub(crate) fn take_head(&mut self) -> Parts {
        let head = self.0.head.take();
        head.unwrap_or_else(|| Request::new(()).into_parts().0)
    }

    /// What a report calls a request whose head was taken, if there will be one.
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

    /// The request's target, as it came.
    #[must_use]
    pub fn uri(&self) -> &Uri {
        &self.head().uri
    }

    /// What the query of the target says: none is an empty one.
    #[must_use]
    pub fn query(&self) -> Query<'_> {
        Query::new(self.uri().query().unwrap_or_default())
    }

    /// The request's version of HTTP.
    #[must_use]
    pub fn version(&self) -> Version {
        self.head().version
    }

    /// The request's headers. `Host` is what the target says, where that is absolute (`http://a/b`).
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        &self.head().headers
    }

    /// The connection that it came on.
    #[must_use]
    pub fn conn(&self) -> &ConnInfo {
        self.conn_info()
    }

    pub(crate) fn conn_info(&self) -> &Arc<ConnInfo> {
        self.0.slot.inflight().conn().info()
    }

    /// The number of the server that it came to.
    pub(crate) fn server_id(&self) -> u64 {
        self.shared().id
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        self.0.slot.inflight().conn().shared()
    }

    /// Why there is no more use in answering: [`Error::Gone`], [`Error::Killed`], or [`Error::AlreadyReplied`], where the
    /// answer is complete. Never blocks.
    #[must_use]
    pub fn cancelled(&self) -> Option<Error> {
        self.0.slot.over()
    }

    /// Something that can wait, on any thread, until there is no more use in answering.
    #[must_use]
    pub fn cancellation(&self) -> Cancellation {
        self.0.slot.cancellation()
    }

    pub(crate) fn taken_by(&mut self, holder: Taken) {
        self.0.taken = Some(holder);
    }

    /// Reads the next bytes of the request's body into `buf`; 0 is its end. Blocks until there are some. A client that
    /// waits to be asked for its body (`Expect: 100-continue`) is asked by the first read, or by [`Exchange::start`].
    ///
    /// # Errors
    /// [`Error::Gone`] if the client has left, [`Error::BadBody`] if it broke the protocol within the body,
    /// [`Error::Killed`] after a kill, [`Error::WouldBlock`] on an I/O thread if nothing is there.
    pub fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        let data = self.read_bytes(buf.len())?;
        buf[..data.len()].copy_from_slice(&data);
        Ok(data.len())
    }

    /// As [`Exchange::read`], not copied: at most `limit` bytes; none is the end.
    ///
    /// # Errors
    /// As [`Exchange::read`].
    pub fn read_bytes(&mut self, limit: usize) -> Result<Bytes> {
        if self.0.body.rest.is_empty() && limit > 0 {
            self.0.body.rest = self.next_data()?.unwrap_or_default();
        }
        let count = limit.min(self.0.body.rest.len());
        Ok(self.0.body.rest.split_to(count))
    }

    /// Reads what is left of the request's body, if that is at most `limit` bytes. Blocks until all of it is there.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if the body is longer (what has come stays to be read); otherwise as [`Exchange::read`].
    pub fn read_to_end(&mut self, limit: usize) -> Result<Bytes> {
        let incoming = self.0.body.incoming.as_ref();
        let announced = incoming.map_or(0, |body| body.size_hint().lower());
        if announced.saturating_add(self.0.body.rest.len() as u64) > limit as u64 {
            return Err(Error::TooLarge);
        }
        loop {
            if self.0.body.rest.len() > limit {
                return Err(Error::TooLarge);
            }
            // If it is too long, or would block, what has been received stays to be read.
            let Some(data) = self.next_data()? else {
                return Ok(std::mem::take(&mut self.0.body.rest));
            };
            self.0.body.append(data);
        }
    }

    fn next_data(&mut self) -> Result<Option<Bytes>> {
        if let Some(why) = &self.0.body.failed {
            return Err(why.clone());
        }
        let result = self.receive();
        if let Err(why @ (Error::Gone | Error::BadBody | Error::Killed(_))) = &result {
            self.0.body.failed = Some(why.clone());
            self.0.body.rest = Bytes::new();
        }
        result
    }

    fn receive(&mut self) -> Result<Option<Bytes>> {
        let Inner { body, slot, .. } = &mut *self.0;
        let lent = slot.inflight().conn().shared().lent.as_ref();
        body.is_awaited = false;
        wait_for(lent, async {
            tokio::select! {
                biased;
                data = poll_fn(|cx| body.poll_data(slot, cx)) => data,
                Some(why) = async { slot.cancellation().wait_as(Waiter::Thread).await } => Err(why),
            }
        })
    }

    /// Whether there is a body that has not come, and is not waited for by its client.
    pub(crate) fn may_have_come(&self) -> bool {
        let body = &self.0.body;
        let incoming = body.incoming.as_ref();
        incoming.is_some_and(|incoming| !incoming.is_end_stream()) && !body.is_awaited
    }

    /// Takes what has come of the body, up to some limit, so that it can be read where nobody may wait.
    pub(crate) fn poll_come(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Inner { body, slot, .. } = &mut *self.0;
        if body.rest.len() >= PIECE {
            return Poll::Ready(());
        }
        match body.poll_data(slot, cx) {
            Poll::Ready(Ok(Some(data))) => {
                body.append(data);
                // hyper reads the next now, if it is there.
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

    /// Nobody has been called with it, and nobody will be.
    pub(crate) fn withdraw(mut self) {
        self.0.answer = Answer::Given;
    }

    /// Answers with a whole response. Does not wait for the client.
    ///
    /// A 204 or 205 has no body: what is given is not sent, nor is a Content-Length (for 205, it is 0).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the status is not from 200 to 999, or the headers contradict the body (the client
    /// gets a 500); [`Error::Gone`] or [`Error::Killed`] if the client cannot get it any more;
    /// [`Error::AlreadyReplied`] if an answer has begun, which is cut by this.
    pub fn reply(mut self, response: Response<Bytes>) -> Result<()> {
        self.answer_by(|exchange| exchange.try_reply(response))
    }

    /// An attempt to answer. If it fails, and none succeeds, the log will say why.
    pub(crate) fn answer_by(
        &mut self,
        attempt: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        let result = attempt(self);
        self.0.refused = result.as_ref().err().cloned();
        result
    }

    /// As [`Exchange::reply`]; to be dropped then.
    pub(crate) fn try_reply(&mut self, response: Response<Bytes>) -> Result<()> {
        let length = response.body().len() as u64;
        let declared = declared_length(&response)?;
        if !self.0.bodyless && declared.is_some_and(|declared| declared != length) {
            let why = "Content-Length is not the length of the body";
            return Err(Error::InvalidArgument(why.into()));
        }
        self.leave_body();
        self.answer_with(response.map(|body| ReplyBody::Whole(Some(body))))
    }

    /// Begins an answer whose body follows in pieces: [`Exchange::write`], then [`Exchange::finish`].
    ///
    /// The body goes out chunked unless the headers have a Content-Length (which is not sent with a 204 or 205). The
    /// head is sent as soon as the connection can take it. If more than 64 KiB of the request's body have still to come by
    /// then, or, of a body in chunks, its end, the head says `Connection: close`: it is not known whether they will be read.
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
    /// [`Error::InvalidArgument`] if the status is not from 200 to 999, or a header is not for the handler to set
    /// (nothing was sent: answer otherwise); [`Error::Gone`] or [`Error::Killed`] if the client cannot get it any
    /// more; [`Error::AlreadyReplied`].
    pub fn start(&mut self, response: Response<()>) -> Result<()> {
        self.answer_by(|exchange| exchange.try_start(response))
    }

    fn try_start(&mut self, response: Response<()>) -> Result<()> {
        let declared = declared_length(&response)?;
        self.ask_for_body();
        let (pieces, body) = pieces();
        let status = response.status();
        self.0.bodyless |= matches!(
            status,
            StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED
        );
        let result = self.answer_with(response.map(|()| body));
        if result.is_ok() {
            self.0.answer = Answer::Begun(pieces);
            self.0.owing = declared.filter(|_| !self.0.bodyless);
        }
        result
    }

    /// A client that waits to be asked for its body is asked before the answer begins: behind that it might wait for ever.
    fn ask_for_body(&mut self) {
        let Inner { body, slot, .. } = &mut *self.0;
        if !body.rest.is_empty() || body.failed.is_some() {
            return;
        }
        body.is_awaited = false;
        // Whoever reads it next asks again.
        match body.poll_data(slot, &mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(Some(data))) => body.rest = data,
            Poll::Ready(Err(why)) => body.failed = Some(why),
            Poll::Ready(Ok(None)) | Poll::Pending => {}
        }
    }

    /// Whether [`Exchange::start`] has succeeded.
    #[must_use]
    pub fn is_started(&self) -> bool {
        matches!(self.0.answer, Answer::Begun(_))
    }

    /// Sends more of the body: at once, as far as the client takes it. Blocks while too much waits already: more than
    /// 256 KiB.
    ///
    /// # Errors
    /// [`Error::Gone`] or [`Error::Killed`] if the client cannot get it any more, [`Error::AlreadyReplied`] if the answer
    /// has no body (to HEAD, or a 204, 205 or 304) and `data` is not empty, [`Error::InvalidArgument`] before
    /// [`Exchange::start`] or if it is more than the Content-Length, [`Error::WouldBlock`] on an I/O thread if there is no
    /// room for all of it (then none of it is taken; there is room for any length when nothing waits).
    pub fn write(&mut self, data: &[u8]) -> Result<()> {
        self.write_bytes(Bytes::copy_from_slice(data))
    }

    /// As [`Exchange::write`], not copied.
    ///
    /// # Errors
    /// As [`Exchange::write`].
    pub fn write_bytes(&mut self, mut data: Bytes) -> Result<()> {
        let waits = self.may_write(data.len())?;
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(PIECE));
            self.send(piece, waits)?;
        }
        Ok(())
    }

    /// Whether so many bytes may be written now, all or none of them; and whether that may wait for room.
    fn may_write(&mut self, len: usize) -> Result<bool> {
        let Answer::Begun(pieces) = &self.0.answer else {
            return Err(Error::InvalidArgument("no answer has begun".into()));
        };
        if let Some(why) = self.0.slot.lost() {
            return Err(why);
        }
        if self.0.bodyless && len > 0 {
            return Err(Error::AlreadyReplied);
        }
        let owing =
            match self.0.owing {
                Some(owing) => Some(owing.checked_sub(len as u64).ok_or_else(|| {
                    Error::InvalidArgument("more than the Content-Length".into())
                })?),
                None => None,
            };
        let lent = self.shared().lent.as_ref();
        let waits = pieces.are_too_many(len) && may_wait(lent);
        if !waits && !pieces.have_room(len) {
            return Err(Error::WouldBlock);
        }
        self.0.owing = owing;
        Ok(waits)
    }

    /// Ends an answer that was begun. Does not wait for the client.
    ///
    /// # Errors
    /// [`Error::Gone`] or [`Error::Killed`] if the client cannot get all of it any more, [`Error::InvalidArgument`]
    /// before [`Exchange::start`] (the client gets a 500), or if less was written than the Content-Length says (the
    /// client sees the answer cut).
    pub fn finish(mut self) -> Result<()> {
        self.answer_by(Self::try_finish)
    }

    /// As [`Exchange::finish`]; to be dropped then.
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
        match pieces.queue.send(Piece::End) {
            Err(_) if !self.0.slot.is_complete() => Err(self.not_taken()),
            // Or it has known before that this is the end.
            _ => Ok(()),
        }
    }

    /// Nobody will read more of the body. To be said before the answer ends: when hyper sees a body dropped, it ends the
    /// connection, and says so if the head of the answer is not written yet.
    fn leave_body(&mut self) {
        let Some(incoming) = self.0.body.incoming.take() else {
            return;
        };
        if !incoming.is_end_stream() && !self.0.body.is_awaited {
            self.0.slot.leave_unread(incoming);
        }
    }

    fn send(&mut self, data: Bytes, waits: bool) -> Result<()> {
        let Answer::Begun(pieces) = &self.0.answer else {
            return Err(Error::AlreadyReplied);
        };
        pieces
            .send(data, waits)
            .map_err(|NotTaken| self.not_taken())
    }

    /// What it means that the connection takes no more pieces.
    fn not_taken(&self) -> Error {
        self.0.slot.over().unwrap_or(Error::Gone)
    }

    fn answer_with(&mut self, response: Response<ReplyBody>) -> Result<()> {
        if !matches!(self.0.answer, Answer::Owed) {
            return Err(self.0.slot.lost().unwrap_or(Error::AlreadyReplied));
        }
        // After a kill no answer may slip through, or the client could not tell it from one that was finished in time.
        self.0.slot.answer(response)?;
        self.0.answer = Answer::Given;
        Ok(())
    }

    /// Answers with the 503 of a kill: nobody has taken the request in time.
    pub(crate) fn refuse(mut self) {
        self.0.slot.inflight().refused();
        if let Answer::Owed = std::mem::replace(&mut self.0.answer, Answer::Given) {
            self.leave_body();
            let text = "the server is stopping\n";
            self.0
                .slot
                .give(plain(StatusCode::SERVICE_UNAVAILABLE, text));
        }
    }

    /// It ends without an answer, and the client can still get one.
    fn unanswered(&mut self) {
        self.leave_body();
        let (slot, uri) = (&self.0.slot, self.uri());
        match (&self.0.body.failed, &self.0.refused) {
            // The client's fault, and no matter for the log.
            (Some(Error::BadBody), _) => {
                slot.give(bad_request());
                return;
            }
            // It may still read: it has left only the request.
            (Some(Error::Gone), _) => {
                slot.inflight().conn().gave_up();
                slot.give(bad_request());
                return;
            }
            _ if thread::panicking() => slot.tell(format!("a handler panicked: {uri}")),
            (_, Some(why @ Error::InvalidArgument(_))) => {
                slot.tell(format!("the answer to {uri} was refused: {why}"));
            }
            _ => slot.tell(format!("a handler did not answer {uri}")),
        }
        let shared = slot.inflight().conn().shared();
        shared.events.sum("handler.error", 1.0);
        let text = "internal server error\n";
        slot.give(plain(StatusCode::INTERNAL_SERVER_ERROR, text));
    }

    /// It ends within its answer, which the client would still get: its body sees that no end came.
    fn unfinished(&self) {
        let (slot, uri) = (&self.0.slot, self.uri());
        match (&self.0.body.failed, &self.0.refused) {
            // The client has left the request, or broken it.
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
    /// The next bytes that have come; `None` at the end.
    fn poll_data(&mut self, slot: &ReplySlot, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>>> {
        let Some(incoming) = &mut self.incoming else {
            return Poll::Ready(Ok(None));
        };
        loop {
            // hyper may tell of the end only with the next request, if it has had the answer before.
            if incoming.is_end_stream() {
                return Poll::Ready(Ok(None));
            }
            match ready!(Pin::new(&mut *incoming).poll_frame(cx)) {
                None => return Poll::Ready(Ok(None)),
                // An empty frame, or trailers: not the end yet.
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => return Poll::Ready(Ok(Some(data))),
                    _ => {}
                },
                Some(Err(why)) => {
                    let conn = slot.inflight().conn();
                    if is_malformed(&why) {
                        conn.body_failed(BodyFault::Malformed);
                    }
                    let why = match conn.body_fault() {
                        Some(BodyFault::Malformed) => Error::BadBody,
                        _ => Error::Gone,
                    };
                    return Poll::Ready(Err(slot.lost().unwrap_or(why)));
                }
            }
        }
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
        match std::mem::replace(&mut self.0.answer, Answer::Given) {
            Answer::Given => {}
            // The client has all that there is to have, or cannot get it any more: the handler may know.
            Answer::Begun(_) if self.0.bodyless || self.0.slot.over().is_some() => {}
            // Told before its body learns of it.
            Answer::Begun(_pieces) => self.unfinished(),
            // Nobody would get it; and after a kill nobody may.
            Answer::Owed if self.0.slot.lost().is_some() => {}
            Answer::Owed => self.unanswered(),
        }
    }
}

/// Whether hyper says of a body that the client has made it wrong.
fn is_malformed(error: &hyper::Error) -> bool {
    let source = error.source().and_then(|source| source.downcast_ref());
    source.is_some_and(|error: &io::Error| {
        matches!(
            error.kind(),
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput
        )
    })
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

/// The Content-Length of a head, if it has one. Refuses what would confuse the client about where the response ends.
fn declared_length<B>(response: &Response<B>) -> Result<Option<u64>> {
    let wrong = |what: String| Err(Error::InvalidArgument(what));
    let status = response.status();
    if status.is_informational() {
        return wrong(format!("{status} is not a final status"));
    }
    let mut declared = None;
    // Most answers have so few headers that looking at each is quicker than looking one up.
    for (name, value) in response.headers() {
        if name == TRANSFER_ENCODING {
            return wrong("Transfer-Encoding is not the handler's to set".into());
        }
        if name == CONTENT_LENGTH {
            let digits = value.to_str().ok().filter(|text| {
                // As RFC 9110 has it: str::parse would take a plus sign.
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

/// For a body that cannot be read to its end: so the connection ends behind it.
fn bad_request() -> Response<ReplyBody> {
    let mut response = plain(StatusCode::BAD_REQUEST, "bad request\n");
    let close = http::HeaderValue::from_static("close");
    response
        .headers_mut()
        .insert(http::header::CONNECTION, close);
    response
}

fn plain(status: StatusCode, text: &'static str) -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody::Whole(Some(Bytes::from_static(text.as_bytes()))));
    *response.status_mut() = status;
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

/// Waits on this thread, unless it is one that drives connections: that would wait for itself.
fn wait_for<T>(
    lent: Option<&Arc<LentRuntime>>,
    future: impl Future<Output = Result<T>>,
) -> Result<T> {
    let mut future = pin!(future);
    let looks = threads::on_io_thread() || lent.is_some();
    let deadline = looks.then(Instant::now);
    let mut result = threads::block_on(future.as_mut(), deadline);
    if result.is_none() && may_wait(lent) {
        result = threads::block_on(future, None);
    }
    result.unwrap_or(Err(Error::WouldBlock))
}

/// Whether this thread may wait for what a connection does. May block for a second, to find out.
fn may_wait(lent: Option<&Arc<LentRuntime>>) -> bool {
    let gets_on = |lent: &Arc<LentRuntime>| lent.check_gets_on(pending::<()>(), None).is_ok();
    !threads::on_io_thread() && lent.is_none_or(gets_on)
}

/// Both ends of a body in pieces.
fn pieces() -> (Writing, ReplyBody) {
    let (queue, taken) = mpsc::unbounded_channel();
    let room = Arc::new(Semaphore::new(ROOM));
    let body = ReplyBody::Pieces(Written {
        queue: taken,
        room: Arc::clone(&room),
    });
    (Writing { queue, room }, body)
}

/// The connection takes no more pieces.
struct NotTaken;

impl Writing {
    fn have_room(&self, len: usize) -> bool {
        let free = self.room.available_permits();
        free >= len || free == ROOM || self.queue.is_closed()
    }

    /// Whether they may have to wait for each other.
    fn are_too_many(&self, len: usize) -> bool {
        self.room.available_permits() < len
    }

    /// Waits for room, if it may; on a thread that must not, there is some, or as much as there can be.
    fn send(&self, data: Bytes, waits: bool) -> Result<(), NotTaken> {
        let wanted = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let taken = match self.room.try_acquire_many(wanted) {
            Ok(permit) => permit,
            Err(TryAcquireError::Closed) => return Err(NotTaken),
            Err(TryAcquireError::NoPermits) if !waits => {
                let left = u32::try_from(self.room.available_permits()).unwrap_or(0);
                // Nobody but this takes any.
                self.room.try_acquire_many(left).map_err(|_| NotTaken)?
            }
            Err(TryAcquireError::NoPermits) => {
                let room = threads::block_on(self.room.acquire_many(wanted), None);
                room.and_then(Result::ok).ok_or(NotTaken)?
            }
        };
        let count = taken.num_permits();
        taken.forget();
        self.queue
            .send(Piece::Data(data, count))
            .map_err(|_| NotTaken)
    }
}

/// The body of an answer, as the connection takes it.
#[derive(Debug)]
pub(crate) enum ReplyBody {
    Whole(Option<Bytes>),
    Pieces(Written),
}

/// The connection's end of a body in pieces.
#[derive(Debug)]
pub(crate) struct Written {
    queue: mpsc::UnboundedReceiver<Piece>,
    room: Arc<Semaphore>,
}

impl Drop for Written {
    fn drop(&mut self) {
        // Before the queue, or who waits for room would wait for ever.
        self.room.close();
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>>>> {
        match &mut *self {
            Self::Whole(body) => Poll::Ready(body.take().map(|data| Ok(Frame::data(data)))),
            Self::Pieces(pieces) => pieces.queue.poll_recv(cx).map(|piece| match piece {
                Some(Piece::Data(data, count)) => {
                    pieces.room.add_permits(count);
                    Some(Ok(Frame::data(data)))
                }
                Some(Piece::End) => None,
                None => Some(Err(Error::Gone)),
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.as_ref().is_none_or(Bytes::is_empty),
            Self::Pieces(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => SizeHint::with_exact(body.as_ref().map_or(0, Bytes::len) as u64),
            Self::Pieces(_) => SizeHint::default(),
        }
    }
}
