//! hyper finds the same requests in the same bytes, whether it gets them from a wire or by itself: or we are stricter.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Empty};
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{TestCaseError, TestRunner};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Bench, Run, config};
use crate::conn::Plain;
use crate::phase::Phase;

/// A request as its service gets it; `None`: its body did not come whole.
type Seen = (Method, String, Option<Bytes>);

/// Notes every request.
#[derive(Clone, Debug, Default)]
struct Recorder(Arc<Mutex<Vec<Seen>>>);

impl Recorder {
    fn seen(&self) -> Vec<Seen> {
        self.0.lock().unwrap().clone()
    }
}

/// For hyper's bodies, and for ours.
impl<B> Service<Request<B>> for Recorder
where
    B: http_body::Body<Data = Bytes, Error: Send> + Send + 'static,
{
    type Response = Response<Empty<Bytes>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<B>) -> Self::Future {
        let seen = Arc::clone(&self.0);
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let body = body
                .collect()
                .await
                .ok()
                .map(http_body_util::Collected::to_bytes);
            seen.lock()
                .unwrap()
                .push((head.method, head.uri.to_string(), body));
            Ok(Response::new(Empty::new()))
        })
    }
}

/// Gives all of its bytes in one read, and swallows what is written.
struct Memory<'a>(&'a [u8]);

impl AsyncRead for Memory<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (now, rest) = self.0.split_at(self.0.len().min(buf.remaining()));
        buf.put_slice(now);
        self.0 = rest;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Memory<'_> {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

async fn by_hyper(bytes: &[u8]) -> Vec<Seen> {
    let recorder = Recorder::default();
    let mut http = http1::Builder::new();
    let conn = http.half_close(true);
    let _ = conn
        .serve_connection(TokioIo::new(Memory(bytes)), recorder.clone())
        .await;
    recorder.seen()
}

/// In pieces of these lengths and a last one. Without any, all is there at once, and the server may as well stop. Also
/// whether the last answer was a refusal.
async fn by_us(bench: &Bench, bytes: &[u8], pieces: &[usize]) -> (Vec<Seen>, bool) {
    let recorder = Recorder::default();
    let mut run = Run::start(bench, &Plain(recorder.clone()));
    if pieces.is_empty() {
        run.enter(Phase::Quiescing).await;
    }
    let mut rest = bytes;
    for piece in pieces {
        let (now, later) = rest.split_at(*piece.min(&rest.len()));
        rest = later;
        if run.gone.is_none() && !now.is_empty() {
            run.send(now).await;
        }
    }
    run.send(rest).await;
    run.half_close().await;
    let got = String::from_utf8_lossy(&run.peer.got).into_owned();
    run.close(false).await;
    run.kill().await;
    let last = got.rfind("HTTP/1.").map_or("", |at| &got[at..]);
    let is_refusal = last.get(9..12).is_some_and(|status| status != "200");
    (recorder.seen(), is_refusal)
}

/// A request, or something like it.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let end = || select(&["\r\n", "\r\n", "\r\n", "\n"][..]);
    let field = prop_oneof![
        Just("te: a".to_owned()),
        Just("x:".to_owned()),
        Just("connection: keep-alive".to_owned()),
        Just("a: \tb ".to_owned()),
        "[a-z]{1,3}: [ -~]{0,5}",
    ];
    let body = prop_oneof![
        3 => Just((String::new(), Vec::new())),
        2 => prop::collection::vec(select(&b"\r\n0:a "[..]), 0..30)
            .prop_map(|body| (format!("content-length: {}", body.len()), body)),
        2 => chunks().prop_map(|body| ("transfer-encoding: chunked".to_owned(), body)),
        1 => chunks().prop_map(|body| ("Transfer-Encoding: gzip, Chunked".to_owned(), body)),
        1 => chunks().prop_map(|body| ("content-length: 3\r\ntransfer-encoding: chunked".to_owned(), body)),
    ];
    let head = (
        select(&["", "", "", "\r\n", "\n", "\r\n\n"][..]),
        select(&["GET", "POST", "PUT", "HEAD", "X"][..]),
        "/[a-z]{0,3}",
        select(&["1", "1", "1", "1", "0"][..]),
    );
    (
        head,
        prop::collection::vec((field, end()), 0..3),
        body,
        end(),
        end(),
    )
        .prop_map(
            |((empty, method, target, version), fields, (length, body), end, last)| {
                let mut text =
                    format!("{empty}{method} {target} HTTP/1.{version}{end}host: b{end}");
                for (field, end) in fields {
                    text.extend([field.as_str(), end]);
                }
                if !length.is_empty() {
                    text.extend([length.as_str(), end]);
                }
                [text.as_bytes(), last.as_bytes(), &body].concat()
            },
        )
}

fn chunks() -> impl Strategy<Value = Vec<u8>> {
    let chunk = (
        prop::collection::vec(select(&b"\r\n0:a "[..]), 1..20),
        select(&["", "", "", "0", "00"][..]),
        select(&["", "", "", ";a", " ;a=b", ";a=\"b\"", "\t;"][..]),
    );
    let trailers = select(&["", "", "a: b\r\n", "a: b\r\nc:\r\n"][..]);
    (prop::collection::vec(chunk, 0..4), trailers).prop_map(|(chunks, trailers)| {
        let mut bytes = Vec::new();
        for (data, zeroes, extension) in chunks {
            bytes.extend(format!("{zeroes}{:x}{extension}\r\n", data.len()).into_bytes());
            bytes.extend(data);
            bytes.extend(b"\r\n");
        }
        bytes.extend(format!("0\r\n{trailers}\r\n").into_bytes());
        bytes
    })
}

/// A change to the bytes.
#[derive(Clone, Debug)]
enum Change {
    Insert(Index, u8),
    Replace(Index, u8),
    Remove(Index),
}

fn change() -> impl Strategy<Value = Change> {
    let byte = || select(&b"\r\n\r\n 0123af;:,\tG/\0\x7f\xff-+x\""[..]);
    prop_oneof![
        (any::<Index>(), byte()).prop_map(|(at, byte)| Change::Insert(at, byte)),
        (any::<Index>(), byte()).prop_map(|(at, byte)| Change::Replace(at, byte)),
        any::<Index>().prop_map(Change::Remove),
    ]
}

/// The bytes of a client: requests, often somewhat wrong.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let changes = prop_oneof![
        Just(Vec::new()).boxed(),
        prop::collection::vec(change(), 1..4).boxed()
    ];
    (prop::collection::vec(message(), 1..4), changes).prop_map(|(messages, changes)| {
        let mut bytes = messages.concat();
        for change in changes {
            match change {
                Change::Insert(at, byte) => bytes.insert(at.index(bytes.len()), byte),
                Change::Replace(at, byte) => {
                    let at = at.index(bytes.len());
                    bytes[at] = byte;
                }
                Change::Remove(at) => {
                    bytes.remove(at.index(bytes.len()));
                }
            }
        }
        bytes
    })
}

#[test]
fn hyper_finds_the_same_requests_as_without_us() {
    let bench = Bench::new();
    let pieces = prop::collection::vec(prop_oneof![1..4usize, 1..80usize], 0..12);
    let cases = (stream(), pieces);
    let result = TestRunner::new(config(3_000)).run(&cases, |(bytes, pieces)| {
        let (theirs, (ours, is_refusal)) = bench.runtime.block_on(async {
            let theirs = by_hyper(&bytes).await;
            (theirs, by_us(&bench, &bytes, &pieces).await)
        });
        if ours == theirs {
            return Ok(());
        }
        if is_refusal && theirs.starts_with(&ours) {
            return Ok(());
        }
        // Where the wire is stricter, that is the last request, and its body is refused.
        let stricter = ours
            .split_last()
            .is_some_and(|((method, target, body), before)| {
                body.is_none()
                    && theirs.starts_with(before)
                    && theirs
                        .get(before.len())
                        .is_some_and(|(m, t, _)| m == method && t == target)
            });
        if stricter {
            return Ok(());
        }
        let text = bytes.escape_ascii();
        Err(TestCaseError::fail(format!(
            "{text}\nhyper alone {theirs:?}\nwith us {ours:?}"
        )))
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}
