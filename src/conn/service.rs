//! The service as hyper sees it: every request and every response passes here.

use std::cell::Cell;
use std::error::Error as StdError;
use std::future::Future;
use std::io::IoSlice;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::Service;
use pin_project_lite::pin_project;

use super::framing::BodyLength;
use super::track::{Conn, Fate, Inflight};
use crate::events::LogLevel;
use crate::lifecycle::Phase;

pub(crate) type BoxError = Box<dyn StdError + Send + Sync>;

/// Whatever answers requests: a hyper service of the host's, or a handler behind one of the dispatch modes.
pub(crate) trait Respond: Send + 'static {
    type Body: Body<Data: Send, Error: Into<BoxError>> + Send + 'static;
    type Error: Into<BoxError>;
    type Future: Future<Output = Result<Response<Self::Body>, Self::Error>> + Send + 'static;

    fn respond(&self, request: Request<Incoming>, inflight: &Inflight) -> Self::Future;
}

/// A hyper service of the host's.
#[derive(Clone, Debug)]
pub(crate) struct Plain<S>(pub(crate) S);

impl<S, B> Respond for Plain<S>
where
    S: Service<Request<Incoming>, Response = Response<B>> + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    type Body = B;
    type Error = S::Error;
    type Future = S::Future;

    fn respond(&self, mut request: Request<Incoming>, inflight: &Inflight) -> S::Future {
        request.extensions_mut().insert(inflight.conn().info());
        self.0.call(request)
    }
}

/// Tells the connection of each request, and what became of it.
pub(super) struct Tracked<R> {
    respond: R,
    conn: Arc<Conn>,
    /// The last request's.
    fate: Cell<Option<Arc<Fate>>>,
}

impl<R> Tracked<R> {
    pub(super) fn new(respond: R, conn: Arc<Conn>) -> Self {
        Self {
            respond,
            conn,
            fate: Cell::new(None),
        }
    }
}

impl<R: Respond> Service<Request<Incoming>> for Tracked<R> {
    type Response = Response<TrackedBody<R::Body>>;
    type Error = std::convert::Infallible;
    type Future = TrackedFuture<R::Future, R::Body>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let body = request.body();
        let length = body.size_hint().exact();
        let length = length.map_or(BodyLength::Chunked, BodyLength::Known);
        let mut fate = self.fate.take();
        let inflight = self.conn.request_begins(length, &mut fate);
        self.fate.set(fate);
        let has_body = request.method() != Method::HEAD;
        let is_connect = request.method() == Method::CONNECT;
        let is_http10 = request.version() < Version::HTTP_11;
        let shared = self.conn.shared();
        let (future, answer);
        if shared.config.ready_path.as_deref() == Some(request.uri().path()) {
            let readiness = Readiness::of(request.method(), shared.is_ready());
            future = None;
            answer = Some(Ok(readiness.answer()));
        } else {
            shared.request_came();
            let call = || self.respond.respond(request, &inflight);
            future = catch_unwind(AssertUnwindSafe(call)).ok();
            answer = future.is_none().then(panicked);
        }
        TrackedFuture {
            future,
            answer,
            answering: Some(Answering {
                inflight,
                has_body,
                is_connect,
                is_http10,
            }),
        }
    }
}

/// Held while a response is owed: dropped before the request's [`Fate`] is complete, the request is lost.
#[derive(Debug)]
struct Answering {
    inflight: Inflight,
    has_body: bool,
    is_connect: bool,
    is_http10: bool,
}

impl Answering {
    fn conn(&self) -> &Arc<Conn> {
        self.inflight.conn()
    }

    /// What becomes of a service's failure: a line in the log, and a 500.
    fn failed<B: Body>(self, why: &str) -> Response<TrackedBody<B>> {
        let events = &self.conn().shared().events;
        events.log(LogLevel::Error, format!("a handler failed: {why}"));
        events.sum("handler.error", 1.0);
        self.answered(own_answer(StatusCode::INTERNAL_SERVER_ERROR, ""))
    }

    fn answered<B: Body>(self, response: Response<Source<B>>) -> Response<TrackedBody<B>> {
        let (mut head, body) = response.into_parts();
        let upgrades = head.status == StatusCode::SWITCHING_PROTOCOLS
            || (self.is_connect && head.status.is_success());
        if upgrades {
            self.conn().upgrade_agreed();
        } else if self.conn().shared().phases.get() >= Phase::LameDuck
            && (!self.conn().has_request_behind() || self.conn().shared().is_stop_pressing())
        {
            // The client then knows that this connection ends, and sends its next request on another.
            head.headers
                .insert(CONNECTION, HeaderValue::from_static("close"));
            if self.is_http10 {
                // Else hyper adds `keep-alive`, if the client has asked for that.
                head.version = Version::HTTP_10;
            }
            self.conn().close_announced();
        }
        let no_body = upgrades
            || !self.has_body
            || head.status.is_informational()
            || matches!(
                head.status,
                StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
            );
        let declared = || {
            head.headers
                .get(CONTENT_LENGTH)?
                .to_str()
                .ok()?
                .parse()
                .ok()
        };
        let remaining = if no_body {
            Some(0)
        } else {
            body.size_hint().exact().or_else(declared)
        };
        if self.is_http10 && remaining.is_none() {
            // Its end is the connection's: cut, it must not end like that.
            self.conn().response_ends_with_connection();
        }
        let body = TrackedBody {
            body,
            remaining,
            answering: Some(self),
        };
        Response::from_parts(head, body)
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        let fate = self.inflight.fate();
        if !fate.is_complete() {
            fate.lose();
        }
    }
}

fn panicked<T>() -> Result<T, String> {
    Err("it panicked".to_owned())
}

/// What a readiness probe is told.
#[derive(Clone, Copy, Debug)]
enum Readiness {
    Ready,
    Stopping,
    WrongMethod,
}

impl Readiness {
    fn of(method: &Method, ready: bool) -> Self {
        match *method {
            // OPTIONS is what HAProxy sends by default.
            Method::GET | Method::HEAD | Method::OPTIONS if ready => Self::Ready,
            Method::GET | Method::HEAD | Method::OPTIONS => Self::Stopping,
            _ => Self::WrongMethod,
        }
    }

    fn answer<B>(self) -> Response<Source<B>> {
        let mut response = match self {
            Self::Ready => own_answer(StatusCode::OK, "ready\n"),
            Self::Stopping => own_answer(StatusCode::SERVICE_UNAVAILABLE, "stopping\n"),
            Self::WrongMethod => own_answer(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n"),
        };
        for (name, value) in [
            (CONTENT_TYPE, "text/plain; charset=utf-8"),
            (CACHE_CONTROL, "no-store"),
            (ALLOW, "GET, HEAD, OPTIONS"),
        ] {
            let value = HeaderValue::from_static(value);
            response.headers_mut().insert(name, value);
        }
        response
    }
}

/// An answer that the host has no part in.
fn own_answer<B>(status: StatusCode, text: &'static str) -> Response<Source<B>> {
    let body = Full::new(text.as_bytes());
    let mut response = Response::new(Source::Own { body });
    *response.status_mut() = status;
    response
}

pin_project! {
    pub(super) struct TrackedFuture<F, B> {
        // None if there is no service to be asked (any more).
        #[pin]
        future: Option<F>,
        // The answer, if it is there already.
        answer: Option<Result<Response<Source<B>>, String>>,
        answering: Option<Answering>,
    }
}

impl<F, B, E> Future for TrackedFuture<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
    E: Into<BoxError>,
{
    type Output = Result<Response<TrackedBody<B>>, std::convert::Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let result = match (this.answer.take(), this.future.as_mut().as_pin_mut()) {
            (Some(result), _) => result,
            (None, Some(future)) => {
                let result = match catch_unwind(AssertUnwindSafe(|| future.poll(cx))) {
                    Ok(poll) => ready!(poll)
                        .map(|response| response.map(|body| Source::Host { body }))
                        .map_err(|error| error.into().to_string()),
                    Err(_) => panicked(),
                };
                let answering = this.answering.as_ref();
                if answering.is_some_and(|answering| !answering.conn().has_read_body()) {
                    // Before hyper asks again, it looks whether anybody still reads the body. If not, and the rest is
                    // not there yet, it will close the connection; then the head of this answer says so.
                    this.future.set(None);
                    *this.answer = Some(result);
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                result
            }
            (None, None) => return Poll::Pending, // Polled again after its end.
        };
        let Some(answering) = this.answering.take() else {
            return Poll::Pending; // Polled again after its end.
        };
        Poll::Ready(Ok(match result {
            Ok(response) => answering.answered(response),
            Err(why) => answering.failed(&why),
        }))
    }
}

pin_project! {
    // The body of an answer: of the host's, or of our own.
    #[project = SourceProjection]
    enum Source<B> {
        Host { #[pin] body: B },
        Own { #[pin] body: Full<&'static [u8]> },
    }
}

impl<B: Body> Body for Source<B> {
    type Data = Chunk<B::Data>;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, B::Error>>> {
        match self.project() {
            SourceProjection::Host { body } => body
                .poll_frame(cx)
                .map_ok(|frame| frame.map_data(Chunk::Host)),
            SourceProjection::Own { body } => body
                .poll_frame(cx)
                .map_ok(|frame| frame.map_data(Chunk::Own))
                .map_err(|never| match never {}),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Host { body } => body.is_end_stream(),
            Self::Own { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Host { body } => body.size_hint(),
            Self::Own { body } => body.size_hint(),
        }
    }
}

/// Bytes of a [`Source`].
#[derive(Debug)]
pub(super) enum Chunk<D> {
    Host(D),
    Own(&'static [u8]),
}

impl<D: Buf> Buf for Chunk<D> {
    fn remaining(&self) -> usize {
        match self {
            Self::Host(data) => data.remaining(),
            Self::Own(text) => text.remaining(),
        }
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Self::Host(data) => data.chunk(),
            Self::Own(text) => text.chunk(),
        }
    }

    fn chunks_vectored<'a>(&'a self, dst: &mut [IoSlice<'a>]) -> usize {
        match self {
            Self::Host(data) => data.chunks_vectored(dst),
            Self::Own(text) => text.chunks_vectored(dst),
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Self::Host(data) => data.advance(count),
            Self::Own(text) => text.advance(count),
        }
    }
}

pin_project! {
    pub(super) struct TrackedBody<B> {
        #[pin]
        body: Source<B>,
        // Bytes that hyper will still take, where that is known: it does not ask for the end after the last one.
        remaining: Option<u64>,
        answering: Option<Answering>,
    }

    impl<B> PinnedDrop for TrackedBody<B> {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            // Before the body, so that its writer is told what has become of it, not only that nobody takes more.
            if let Some(answering) = this.answering.take()
                && *this.remaining == Some(0)
            {
                answering.inflight.fate().complete();
                answering.conn().response_written();
            }
        }
    }
}

impl<B> Body for TrackedBody<B>
where
    B: Body<Error: Into<BoxError>>,
{
    type Data = Chunk<B::Data>;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, BoxError>>> {
        let this = self.project();
        let mut body = this.body;
        let failure = match catch_unwind(AssertUnwindSafe(|| body.as_mut().poll_frame(cx))) {
            Ok(poll) => match ready!(poll) {
                Some(Ok(frame)) => {
                    if let (Some(remaining), Some(data)) = (&mut *this.remaining, frame.data_ref())
                    {
                        *remaining = remaining.saturating_sub(data.remaining() as u64);
                    }
                    if body.is_end_stream() {
                        *this.remaining = Some(0);
                    }
                    return Poll::Ready(Some(Ok(frame)));
                }
                None if this.remaining.is_none_or(|remaining| remaining == 0) => {
                    *this.remaining = Some(0);
                    return Poll::Ready(None);
                }
                None => "the body ended before its Content-Length".into(),
                Some(Err(error)) => error.into(),
            },
            Err(_) => "the body panicked".into(),
        };
        if let Some(answering) = this.answering.take() {
            answering.conn().response_failed();
        }
        Poll::Ready(Some(Err(failure)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
