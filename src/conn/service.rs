//! The service as hyper sees it: every request and every response passes here.

use std::cell::Cell;
use std::error::Error as StdError;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
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
    type Future = TrackedFuture<R::Future>;

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
        let call = || self.respond.respond(request, &inflight);
        let future = catch_unwind(AssertUnwindSafe(call)).ok();
        TrackedFuture {
            future,
            answering: Some(Answering {
                inflight,
                has_body,
                is_connect,
                is_http10,
            }),
        }
    }
}

/// Held while a response is owed: dropped without [`Answering::complete`], the request is lost.
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
    fn failed<B>(self, why: &str) -> Response<TrackedBody<B>> {
        let events = &self.conn().shared().events;
        events.log(LogLevel::Error, format!("a handler failed: {why}"));
        events.sum("handler.error", 1.0);
        let mut response = Response::new(TrackedBody {
            body: None,
            remaining: Some(0),
            answering: Some(self),
        });
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        response
    }

    fn answered<B: Body>(self, response: Response<B>) -> Response<TrackedBody<B>> {
        let (mut head, body) = response.into_parts();
        let upgrades = head.status == StatusCode::SWITCHING_PROTOCOLS
            || (self.is_connect && head.status.is_success());
        if upgrades {
            self.conn().upgrade_agreed();
        } else if self.conn().shared().phases.get() >= Phase::Quiescing
            && !self.conn().has_request_behind()
        {
            // The client then knows that this connection ends, and sends its next request on another.
            head.headers
                .insert(CONNECTION, HeaderValue::from_static("close"));
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
            body: Some(body),
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

pin_project! {
    pub(super) struct TrackedFuture<F> {
        // None if the service panicked when it was called.
        #[pin]
        future: Option<F>,
        answering: Option<Answering>,
    }
}

impl<F, B, E> Future for TrackedFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
    E: Into<BoxError>,
{
    type Output = Result<Response<TrackedBody<B>>, std::convert::Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = match this.future.as_pin_mut() {
            Some(future) => match catch_unwind(AssertUnwindSafe(|| future.poll(cx))) {
                Ok(poll) => ready!(poll).map_err(|error| error.into().to_string()),
                Err(_) => Err("it panicked".to_owned()),
            },
            None => Err("it panicked".to_owned()),
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
    pub(super) struct TrackedBody<B> {
        #[pin]
        body: Option<B>,
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
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        let this = self.project();
        let Some(mut body) = this.body.as_pin_mut() else {
            return Poll::Ready(None);
        };
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
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}
