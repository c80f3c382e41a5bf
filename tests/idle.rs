//! The idle timeout, and what responses say of it.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use std::time::Duration;

use common::{
    Client, addr, assert_balanced, builder, hello, listener, stop, wait, wait_for_report,
};
use http::{HeaderName, Response};
use httpdown::{Builder, Dispatch, Error, Exchange, Phase, Server};

const SECOND: Duration = Duration::from_secs(1);

/// Answers with the header field that the path names, `/name/value`.
fn answer(exchange: Exchange) {
    let mut response = Response::new("hello".into());
    let path = exchange.uri().path().to_owned();
    if let Some((name, value)) = path[1..].split_once('/') {
        let name = name.parse::<HeaderName>().unwrap();
        response.headers_mut().insert(name, value.parse().unwrap());
    }
    let _ = exchange.reply(response);
}

/// What the answer to this request says of its connection: `Connection` and `Keep-Alive`.
fn said(server: &Server, request: &str) -> (Option<String>, Option<String>) {
    let mut client = Client::connect(addr(server));
    client.send(request);
    let answer = client.try_head().unwrap();
    let field = |name| answer.header(name).map(str::to_owned);
    (field("connection"), field("keep-alive"))
}

#[test]
fn an_idle_connection_is_closed_and_so_is_one_that_never_asks() {
    let server = hello(builder().idle_timeout(SECOND / 10), listener());
    let silent = Client::connect(addr(&server));
    let mut client = Client::get(addr(&server), "/");
    assert_eq!(client.answer().header("keep-alive"), None);
    client.assert_closed();
    silent.assert_closed();
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.served, report.closed_idle), (1, 2));
}

#[test]
fn responses_say_when_an_idle_connection_ends() {
    let builder = builder().idle_grace(SECOND).ready_path("/ready");
    let server = builder
        .idle_timeout(61 * SECOND + SECOND / 2)
        .keep_alive_header(true)
        .handle(listener(), Dispatch::default(), answer)
        .unwrap();
    let announced = (Some("keep-alive".into()), Some("timeout=60".into()));
    for request in [
        "GET / HTTP/1.1\r\n\r\n",
        "HEAD / HTTP/1.1\r\nConnection: x, keep-alive\r\n\r\n",
        "GET /ready HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\na",
        "GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n",
    ] {
        assert_eq!(said(&server, request), announced, "{request}");
    }
    let close = (Some("close".into()), None);
    for (request, expected) in [
        ("GET / HTTP/1.1\r\nConnection: x, Close\r\n\r\n", &close),
        ("GET / HTTP/1.0\r\n\r\n", &(None, None)),
        ("GET /connection/close HTTP/1.1\r\n\r\n", &close),
        // The rest of this body does not come: the connection cannot go on.
        ("POST / HTTP/1.1\r\nContent-Length: 99999\r\n\r\na", &close),
        // Who says something of the kind is not contradicted.
        (
            "GET /keep-alive/max=1 HTTP/1.1\r\n\r\n",
            &(None, Some("max=1".into())),
        ),
        (
            "GET /connection/x HTTP/1.1\r\n\r\n",
            &(Some("x".into()), None),
        ),
    ] {
        assert_eq!(said(&server, request), *expected, "{request}");
    }
    stop(&server).unwrap();
}

#[test]
fn the_lame_duck_closes_instead() {
    let builder = builder().lame_duck(600 * SECOND).idle_timeout(60 * SECOND);
    let server = hello(builder.keep_alive_header(true), listener());
    server.stop_begin();
    let close = (Some("close".into()), None);
    wait_for_report(&server, |report| report.phase == Phase::LameDuck);
    assert_eq!(said(&server, "GET / HTTP/1.1\r\n\r\n"), close);
    server.kill_begin();
    let _ = wait(&server);
}

#[test]
fn timeouts_that_make_no_sense_are_refused() {
    let why = |builder: Builder| match builder.queue(listener()) {
        Err(Error::InvalidArgument(why)) => why,
        other => panic!("{other:?}"),
    };
    let zero = why(builder().idle_timeout(Duration::ZERO));
    assert_eq!(zero, "idle_timeout is 0: no request could come in time");
    let alone = why(builder().keep_alive_header(true));
    assert_eq!(
        alone,
        "keep_alive_header has nothing to say: there is no idle_timeout"
    );
    let builder = builder()
        .idle_grace(SECOND)
        .idle_timeout(Duration::from_millis(1_999));
    assert_eq!(
        why(builder.keep_alive_header(true)),
        "keep_alive_header has nothing to say: idle_timeout (1.999s) is not a second longer than idle_grace (1s)"
    );
}
