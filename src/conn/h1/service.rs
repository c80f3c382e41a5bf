//! The service that hyper calls: every request and every response passes here.

use std::future::Future;
use std::mem::ManuallyDrop;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body;
use hyper::body::Incoming;
use hyper::ext::ReasonPhrase;
use hyper::service::Service;
use pin_project_lite::pin_project;

use crate::conn::answers;
use crate::conn::body::{Body as RequestBody, Rest, Unread};
use crate::conn::respond::{BoxError, Outcome, Respond};
use crate::conn::state::Conn;
use crate::contain::contain;
use crate::events::LogLevel;
use crate::limits::Limit;
use crate::record::Recording;

use super::framing::BodyLength;
use super::progress::BodyFault;
use super::reply_body::{Source, TrackedBody};
use super::validate::validate;

/// Tells the connection about each request, and what becomes of it.
pub(super) struct Tracked<R> {
    respond: R,
    conn: Arc<Conn>,
}

impl<R> Tracked<R> {
    pub(super) fn new(respond: R, conn: Arc<Conn>) -> Self {
        Self { respond, conn }
    }

    /// Checks the limits that hyper does not check; if one of them bites, returns the status to refuse the request
    /// with.
    #[inline]
    fn within_limits(&self, target: &Uri, body: BodyLength) -> Result<(), StatusCode> {
        let options = &self.conn.shared().options;
        if target_size(target) > options.max_target_size() {
            self.conn.limit_bites(Limit::Target);
            return Err(StatusCode::URI_TOO_LONG);
        }
        if matches!(body, BodyLength::Known(length) if length > options.max_body_size()) {
            self.conn.limit_bites(Limit::Body);
            return Err(StatusCode::PAYLOAD_TOO_LARGE);
        }
        Ok(())
    }
}

/// The length of a target, as the client has sent it.
#[inline]
fn target_size(target: &Uri) -> usize {
    let path = target
        .path_and_query()
        .map_or(0, |path| path.as_str().len());
    let Some(authority) = target.authority() else {
        return path;
    };
    let scheme = target.scheme_str().map_or(0, |it| it.len() + "://".len());
    scheme + authority.as_str().len() + path
}

impl<R: Respond> Service<Request<Incoming>> for Tracked<R> {
    type Response = Response<TrackedBody<R::Body, R::Outcome>>;
    type Error = std::convert::Infallible;
    type Future = TrackedFuture<R::Future, R::Body, R::Outcome>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (mut head, body) = request.into_parts();
        let length = body.size_hint().exact();
        let length = length.map_or(BodyLength::Chunked, BodyLength::Known);
        let is_http10 = head.version < Version::HTTP_11;
        let wishes = match validate(&mut head, self.conn.h1.is_target_foreign())
            .and_then(|wishes| self.within_limits(&head.uri, length).map(|()| wishes))
        {
            Ok(wishes) => wishes,
            Err(status) => {
                self.conn.request_refused(length);
                return TrackedFuture::refusal(status, is_http10);
            }
        };
        // The only extension that hyper gives a request is the upgrade that the request asks for.
        let is_upgrade = !head.extensions.is_empty();
        let has_body = length != BodyLength::Known(0);
        let waits = has_body && wishes.waits;
        let inflight = self.conn.request_begins(&head, length, is_upgrade, waits);
        let answering = Answering {
            rest: has_body.then(|| Rest::new(&self.conn, inflight.recording())),
            outcome: self.respond.begin(inflight),
            is_complete: false,
            asks_for: AsksFor::of(&head.method),
            is_upgrade,
            is_http10,
            has_plain_length: length != BodyLength::Chunked && !waits,
            keep_alive: wishes.keep_alive,
            announces: self.conn.shared().announcement.is_some(),
        };
        let shared = self.conn.shared();
        let most = shared.options.max_body_size();
        let body = RequestBody::new(body, answering.rest.as_ref(), waits, most);
        let (future, early);
        if shared.options.ready_path.as_deref() == Some(head.uri.path()) {
            let answer = answers::readiness(&head.method, shared.answers_ready());
            future = None;
            early = Some(Box::new(Early::Answer(answer.map(Source::own))));
        } else {
            shared.request_came();
            // By reference, and taken out only within: a closure that owns the head is copied from call to call.
            let mut given = Some((head, body));
            future = contain(|| {
                let (head, body) = given.take()?;
                Some(self.respond.respond(head, body, &answering.outcome))
            })
            .flatten();
            // Nothing is left of it. To see that when it is dropped costs a call.
            let _ = ManuallyDrop::new(given);
            early = future
                .is_none()
                .then(|| Box::new(Early::Failure(PANICKED.to_owned())));
        }
        TrackedFuture {
            future,
            early,
            unread: None,
            answering: Some(answering),
        }
    }
}

/// Whether an answer of this status has no content, and no headers that speak of any (RFC 9110, 15.3.5 and 15.3.6).
fn is_empty(status: StatusCode) -> bool {
    matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT)
}

/// Held while a response is owed. If this value is dropped before hyper has the whole response, the request is lost.
#[derive(Debug)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "none of them says anything of another"
)]
pub(super) struct Answering<O: Outcome> {
    outcome: O,
    is_complete: bool,
    /// `None` if the request has no body.
    pub(super) rest: Option<Arc<Rest>>,
    asks_for: AsksFor,
    /// The request asks for an upgrade, or a tunnel.
    is_upgrade: bool,
    pub(super) is_http10: bool,
    /// The body has a length, and the client sends it without being asked. So the end of the body is known, whether it
    /// is read or not. To know the end of a chunked body is not enough: if there is also a length, which hyper does not
    /// show, hyper ends the connection, and says so.
    pub(super) has_plain_length: bool,
    /// The client wants the connection to go on.
    pub(super) keep_alive: bool,
    /// The response tells the client the idle timeout, if the connection goes on after it.
    announces: bool,
}

/// What follows the head of a successful answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AsksFor {
    Body,
    NoBody,
    Tunnel,
}

impl AsksFor {
    fn of(method: &Method) -> Self {
        match *method {
            Method::HEAD => Self::NoBody,
            Method::CONNECT => Self::Tunnel,
            _ => Self::Body,
        }
    }
}

impl<O: Outcome> Answering<O> {
    pub(super) fn conn(&self) -> &Arc<Conn> {
        self.outcome.inflight().conn()
    }

    pub(super) fn recording(&self) -> Option<&Arc<Recording>> {
        self.outcome.inflight().recording()
    }

    #[allow(clippy::inline_always, reason = "else every request pays for a call")]
    #[inline(always)]
    pub(super) fn complete(mut self) {
        self.is_complete = true;
        self.outcome.inflight().is_over();
        self.outcome.complete();
        self.conn()
            .response_written(self.outcome.inflight().column());
    }

    /// The answer after a service's failure: a 500, and a line in the log. If the client has not sent a whole request,
    /// a 400, whatever the service makes of that.
    fn failed<B: Body>(self, why: &str) -> Response<TrackedBody<B, O>> {
        if let Some(fault) = self.conn().h1.body_fault().filter(|_| why != PANICKED) {
            let answer = match fault {
                BodyFault::Malformed => answers::bad_request(),
                BodyFault::CutShort => {
                    self.outcome.inflight().gave_up();
                    answers::bad_request()
                }
                BodyFault::TooSlow => {
                    self.outcome.inflight().was_too_slow();
                    answers::body_late()
                }
                BodyFault::TooLarge => answers::body_too_large(),
            };
            return self.answered(answer.map(Source::own), |body| body);
        }
        let events = &self.conn().shared().events;
        events.log(LogLevel::Error, format!("a handler failed: {why}"));
        events.sum("handler.error", 1.0);
        self.answered(answers::service_failed().map(Source::own), |body| body)
    }

    #[allow(
        clippy::inline_always,
        reason = "else the response is copied, for every request"
    )]
    #[inline(always)]
    fn answered<S: Body, B: Body>(
        self,
        mut response: Response<S>,
        source: impl FnOnce(S) -> Source<B>,
    ) -> Response<TrackedBody<B, O>> {
        // This calls the host's code: its body is asked for its length.
        let Some(remaining) = contain(|| self.prepare(&mut response)) else {
            contain(|| drop(response));
            return self.failed(PANICKED);
        };
        if is_empty(response.status()) {
            return self.emptied(response);
        }
        response.map(|body| TrackedBody {
            body: source(body),
            remaining,
            answering: Some(self),
        })
    }

    /// An answer whose status says that it has no content. Any content that it has is dropped. hyper states the length
    /// of nothing, if a length must be stated.
    #[cold]
    fn emptied<S: Body, B: Body>(self, response: Response<S>) -> Response<TrackedBody<B, O>> {
        let (head, body) = response.into_parts();
        contain(|| drop(body));
        let body = TrackedBody {
            body: Source::own(Bytes::new()),
            remaining: Some(0),
            answering: Some(self),
        };
        Response::from_parts(head, body)
    }

    /// Writes into the head what there is to say about the connection, and tells the connection what becomes of it.
    /// Returns how many bytes of the body hyper will take, if that is known.
    fn prepare<S: Body>(&self, response: &mut Response<S>) -> Option<u64> {
        // The version is set, whatever the service says: for any other version, hyper writes something untrue, or
        // nothing at all.
        *response.version_mut() = Version::HTTP_11;
        let status = response.status();
        if status.canonical_reason().is_none()
            && response.extensions().get::<ReasonPhrase>().is_none()
        {
            // Otherwise hyper sends "<none>". The phrase may be empty (RFC 9112, 4).
            let none = ReasonPhrase::from_static(b"");
            response.extensions_mut().insert(none);
        }
        let agrees = status == StatusCode::SWITCHING_PROTOCOLS
            || (self.asks_for == AsksFor::Tunnel && status.is_success());
        let upgrades = self.is_upgrade && agrees;
        if upgrades || status.is_informational() || is_empty(status) {
            // Such an answer has neither field: RFC 9110, 8.6 and 15.3.6; RFC 9112, 6.1. For 205, hyper adds a length
            // of 0.
            response.headers_mut().remove(CONTENT_LENGTH);
            response.headers_mut().remove(TRANSFER_ENCODING);
        }
        let no_body = upgrades
            || self.asks_for == AsksFor::NoBody
            || status.is_informational()
            || is_empty(status)
            || status == StatusCode::NOT_MODIFIED;
        let declared = || {
            let length = response.headers().get(CONTENT_LENGTH)?;
            length.to_str().ok()?.parse().ok()
        };
        let remaining = if no_body {
            Some(0)
        } else {
            response.body().size_hint().exact().or_else(declared)
        };
        if let Some(recording) = self.recording() {
            recording.is_answered(status);
        }
        if upgrades {
            self.conn().h1.upgrade_agreed();
        } else if self.is_last(response.headers(), remaining) {
            self.say_close(response);
        } else {
            self.conn().h1.set_goes_on(true);
            if self.announces {
                self.announce(response.headers_mut());
            }
        }
        remaining
    }
}

impl<O: Outcome> Drop for Answering<O> {
    fn drop(&mut self) {
        if !self.is_complete {
            self.outcome.inflight().is_over();
            self.outcome.lose();
        }
        if let Some(rest) = &self.rest {
            rest.end(!self.is_complete && self.conn().is_killed());
        }
    }
}

const PANICKED: &str = "it panicked";

/// What is there for hyper, but may not be given to it yet.
enum Early<B: Body> {
    Answer(Response<Source<B>>),
    /// There is no answer, for this reason.
    Failure(String),
    /// The answer to bytes that are no request.
    Refusal(Response<Source<B>>),
}

pin_project! {
    pub(super) struct TrackedFuture<F, B: Body, O: Outcome> {
        // None if there is no service to be asked (any more).
        #[pin]
        future: Option<F>,
        // In a box, because it is rare.
        early: Option<Box<Early<B>>>,
        // The rest of the request's body, which is read before `early` is given to hyper.
        unread: Option<Box<Unread>>,
        // None for a refusal: no service has been asked.
        answering: Option<Answering<O>>,
    }
}

impl<F, B: Body, O: Outcome> TrackedFuture<F, B, O> {
    #[cold]
    fn refusal(status: StatusCode, is_http10: bool) -> Self {
        let mut response = answers::refusal(status).map(Source::own);
        if is_http10 {
            // Otherwise hyper adds `keep-alive`, if the client has asked for that.
            *response.version_mut() = Version::HTTP_10;
        }
        Self {
            future: None,
            early: Some(Box::new(Early::Refusal(response))),
            unread: None,
            answering: None,
        }
    }
}

impl<F, B, E, O> Future for TrackedFuture<F, B, O>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
    E: Into<BoxError>,
    O: Outcome,
{
    type Output = Result<Response<TrackedBody<B, O>>, std::convert::Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let (Some(unread), Some(answering)) = (&mut *this.unread, &*this.answering) {
            ready!(unread.poll_drain(answering.conn(), answering.recording(), cx));
            *this.unread = None;
        }
        let answering = this.answering.take();
        if this.early.is_some()
            && let Some(waiting) = answering.as_ref()
            && waiting.conn().h1.must_ask()
        {
            *this.answering = answering;
            return Poll::Pending; // The transport wakes us when it has asked.
        }
        if let Some(early) = this.early.take() {
            return Poll::Ready(Ok(match (*early, answering) {
                (Early::Answer(response), Some(answering)) => {
                    answering.answered(response, |body| body)
                }
                (Early::Failure(why), Some(answering)) => answering.failed(&why),
                (Early::Answer(response) | Early::Refusal(response), _) => {
                    response.map(|body| TrackedBody {
                        body,
                        remaining: None,
                        answering: None,
                    })
                }
                (Early::Failure(_), None) => return Poll::Pending,
            }));
        }
        let Some(answering) = answering else {
            return Poll::Pending; // The future was polled again after its end.
        };
        let Some(future) = this.future.as_mut().as_pin_mut() else {
            return Poll::Pending; // The future was polled again after its end.
        };
        // The closure does not return the response, and no function does: each would copy it.
        let mut result = None;
        let poll = || {
            // The text of an error comes from the host's code, too.
            if let Poll::Ready(ready) = future.poll(cx) {
                result = Some(ready.map_err(|error| error.into().to_string()));
            }
        };
        let has_panicked = contain(poll).is_none();
        if result.is_none() && !has_panicked {
            *this.answering = Some(answering);
            return Poll::Pending;
        }
        if !answering.conn().h1.has_read_body() {
            // Return to hyper once: before it polls again, it looks whether anybody still reads the body, and whether
            // the rest is there. If not, the head of this answer will say that the connection ends.
            this.future.set(None);
            let unread = answering.rest.as_ref().and_then(|rest| rest.take());
            *this.unread = unread.map(Box::new);
            *this.early = Some(Box::new(match result {
                Some(Ok(response)) => Early::Answer(response.map(Source::host)),
                Some(Err(why)) => Early::Failure(why),
                None => Early::Failure(PANICKED.to_owned()),
            }));
            *this.answering = Some(answering);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(match result {
            Some(Ok(response)) => answering.answered(response, Source::host),
            Some(Err(why)) => answering.failed(&why),
            None => answering.failed(PANICKED),
        }))
    }
}
