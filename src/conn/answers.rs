//! The answers that do not come from the host. (hyper answers by itself what it cannot parse: 400, 431 and others.)

use std::time::SystemTime;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Method, Response, StatusCode};
use httpdate::fmt_http_date;

const BUSY: &str = "the server is busy\n";
/// After so many seconds a client may try again. A server that is busy is so for longer than requests take.
const RETRY_SECONDS: &str = "1";

/// To a request that breaks the rules, or cannot be read to its end: the connection ends after it.
pub(crate) fn bad_request() -> Response<Bytes> {
    closing(with_text(StatusCode::BAD_REQUEST, "bad request\n"))
}

/// To a request whose body has not come in time: the connection ends after it.
pub(crate) fn body_late() -> Response<Bytes> {
    closing(with_text(
        StatusCode::REQUEST_TIMEOUT,
        "the request's body came too slowly\n",
    ))
}

/// To a request whose body has turned out to be too large: the connection ends after it.
pub(crate) fn body_too_large() -> Response<Bytes> {
    closing(with_text(
        StatusCode::PAYLOAD_TOO_LARGE,
        "the request's body is too large\n",
    ))
}

/// To a head that is refused: the connection ends after it.
pub(super) fn refusal(status: StatusCode) -> Response<Bytes> {
    closing(empty(status))
}

/// The service has failed.
pub(super) fn service_failed() -> Response<Bytes> {
    empty(StatusCode::INTERNAL_SERVER_ERROR)
}

/// The handler has not answered.
pub(crate) fn unanswered() -> Response<Bytes> {
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    with_text(status, "internal server error\n")
}

/// A kill has come before anybody has taken the request.
pub(crate) fn killed() -> Response<Bytes> {
    let status = StatusCode::SERVICE_UNAVAILABLE;
    with_text(status, "the server is stopping\n")
}

/// To a request that would have to wait behind too many others.
pub(crate) fn busy() -> Response<Bytes> {
    let mut response = with_text(StatusCode::SERVICE_UNAVAILABLE, BUSY);
    let seconds = HeaderValue::from_static(RETRY_SECONDS);
    response.headers_mut().insert(RETRY_AFTER, seconds);
    response
}

/// To a readiness probe.
pub(super) fn readiness(method: &Method, is_ready: bool) -> Response<Bytes> {
    let mut response = match *method {
        // HAProxy sends OPTIONS by default.
        Method::GET | Method::HEAD | Method::OPTIONS if is_ready => {
            with_text(StatusCode::OK, "ready\n")
        }
        Method::GET | Method::HEAD | Method::OPTIONS => {
            with_text(StatusCode::SERVICE_UNAVAILABLE, "stopping\n")
        }
        _ => with_text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n"),
    };
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD, OPTIONS"));
    response
}

/// To a head that has not come in time, as bytes: hyper does not answer it. The connection ends after it.
pub(super) fn late() -> String {
    as_bytes(StatusCode::REQUEST_TIMEOUT, "")
}

/// To a request that has come without TLS where TLS is spoken, as bytes: there is no HTTP yet. The connection ends
/// after it.
#[cfg(feature = "tls")]
pub(super) fn without_tls() -> String {
    as_bytes(StatusCode::BAD_REQUEST, "this port speaks HTTPS\n")
}

/// To a connection beyond those that its client may have, as bytes: nothing has been read yet. The connection ends
/// after it.
pub(super) fn too_many_conns() -> String {
    let answer = as_bytes(
        StatusCode::SERVICE_UNAVAILABLE,
        "too many connections from your address\n",
    );
    answer.replacen("\r\n", &format!("\r\nretry-after: {RETRY_SECONDS}\r\n"), 1)
}

fn as_bytes(status: StatusCode, text: &str) -> String {
    let date = fmt_http_date(SystemTime::now());
    let length = text.len();
    let kind = match length {
        0 => "",
        _ => "content-type: text/plain; charset=utf-8\r\n",
    };
    format!(
        "HTTP/1.1 {status}\r\nconnection: close\r\n{kind}content-length: {length}\r\ndate: {date}\r\n\r\n{text}"
    )
}

fn empty(status: StatusCode) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = status;
    response
}

fn with_text(status: StatusCode, text: &'static str) -> Response<Bytes> {
    let mut response = empty(status);
    *response.body_mut() = Bytes::from_static(text.as_bytes());
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}

fn closing(mut response: Response<Bytes>) -> Response<Bytes> {
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(CONNECTION, close);
    response
}
