//! What a stop must not lose: requests on their way, the end of a response. (Connections: `listeners.rs`.)
#![allow(
    clippy::unwrap_used,
    dead_code,
    reason = "a helper that fails fails its test; and not every test file needs all helpers"
)]

mod common;

use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use http::Response;
use httpdown::{Dispatch, Error, Exchange, Listener, Phase, Server};

use common::{
    Client, Gate, LONG, addr, assert_balanced, builder, hello, listener, reply, stop,
    stop_elsewhere, tcp_listener, unconnected, wait_for_report,
};

/// hyper 3792, 3808: a graceful shutdown closes new and idle connections with a request on its way.
#[test]
fn a_request_on_its_way_to_an_idle_or_a_new_connection_is_served() {
    let server = hello(builder().idle_grace(LONG), listener());
    let mut idle = Client::get(addr(&server), "/");
    assert_eq!(idle.answer().text(), "hello");
    let new = Client::connect(addr(&server));
    wait_for_report(&server, |report| report.conns_new == 1);
    let stopping = stop_elsewhere(&server);
    while server.phase() < Phase::Draining {
        thread::yield_now();
    }
    for mut client in [idle, new] {
        client.ask("/");
        let answer = client.answer();
        assert_eq!(answer.text(), "hello");
        assert!(answer.closes());
    }
    let report = stopping.join().unwrap().unwrap();
    assert_eq!((report.served, report.closed_idle, report.raced), (3, 0, 0));
}

#[test]
fn a_connection_that_stays_idle_is_closed_after_the_grace() {
    let server = hello(builder().idle_grace(Duration::from_millis(20)), listener());
    let mut client = Client::get(addr(&server), "/");
    assert_eq!(client.answer().text(), "hello");
    let stopping = stop_elsewhere(&server);
    client.assert_closed();
    assert_eq!(stopping.join().unwrap().unwrap().closed_idle, 1);
}

#[test]
fn a_request_that_crosses_the_close_is_counted_as_a_race() {
    let server = hello(builder().linger_timeout(LONG), listener());
    let mut client = Client::get(addr(&server), "/");
    assert_eq!(client.answer().text(), "hello");
    let stopping = stop_elsewhere(&server);
    // The server's side is closed now, as if the request had been on its way.
    assert_eq!(client.until_end().unwrap(), b"");
    client.ask("/");
    drop(client);
    let report = stopping.join().unwrap().unwrap();
    assert_eq!((report.closed_idle, report.raced), (0, 1));
}

/// h2o 2534, hyper 3078: a close while the client sends resets the connection, and destroys the end of the answer.
/// Its client was told that the connection ends.
#[test]
fn a_request_behind_a_body_that_nobody_read_is_no_race() {
    let (start, rest) = ("POST / HTTP/1.1\r\nHost: test\r\n", "GET / HTTP/1.1\r\n");
    let long = 100_000;
    for (body, rest) in [
        (
            format!("Content-Length: {long}\r\n\r\n"),
            "1".repeat(long) + rest,
        ),
        (
            "Transfer-Encoding: chunked\r\n\r\n5\r\n01234\r\n".to_owned(),
            format!("0\r\n\r\n{rest}"),
        ),
    ] {
        let gate = Gate::new();
        let _open_at_end = gate.open_at_end();
        let goes_on = gate.clone();
        let server = builder()
            .linger_timeout(LONG)
            .handle(
                listener(),
                Dispatch::default(),
                move |mut exchange: Exchange| {
                    exchange.start(Response::new(())).unwrap();
                    goes_on.pass();
                    exchange.finish().unwrap();
                },
            )
            .unwrap();
        let mut client = Client::connect(addr(&server));
        client.send([start, &body].concat());
        let head = client.try_head().unwrap();
        // It says so, because the body is not there, and nobody knows whether it will be read.
        assert!(head.closes());
        gate.open();
        client.try_body(&head).unwrap();
        // Before the server has closed, the rest would let the connection go on.
        assert!(client.until_end().unwrap().is_empty());
        client.send(rest);
        drop(client);
        wait_for_report(&server, |report| report.conns_closed == 1);
        let report = stop(&server).unwrap();
        assert_balanced(&report);
        assert_eq!((report.served, report.raced), (1, 0), "{body:?}");
    }
}

#[test]
fn an_early_answer_reaches_a_client_that_is_still_sending() {
    const TEXT: usize = 300_000;
    let handler = |exchange: Exchange| {
        // Without a look at the body.
        let _ = reply(exchange, vec![b'x'; TEXT]);
    };
    let server = builder()
        .linger_timeout(LONG)
        .handle(tcp_listener(), Dispatch::default(), handler)
        .unwrap();
    for served in 1..=5 {
        // Little fits into the client's window, so the end of the answer waits in the server's kernel, which would
        // discard it if the socket were closed with bytes of the upload unread.
        let mut client = small_client(&server);
        client.send("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 100000000\r\n\r\n");
        client.send(vec![0; 200_000]);
        wait_for_report(&server, |report| report.served == served);
        client.send(vec![0; 10_000]);
        assert_eq!(client.answer().text().len(), TEXT);
    }
    assert_eq!(stop(&server).unwrap().served, 5);
}

/// A client whose kernel takes little.
fn small_client(server: &Server) -> Client {
    let (addr, client) = unconnected(addr(server)).unwrap();
    client.set_recv_buffer_size(4096).unwrap();
    client.connect(&addr).unwrap();
    client.set_read_timeout(Some(LONG)).unwrap();
    client.into()
}

/// A client that reads nothing until it is asked to, and whose kernel takes little.
fn unwilling_reader(server: &Server, path: &str) -> Client {
    let mut client = small_client(server);
    client.ask(path);
    client
}

/// Answers with as many bytes as its kernel takes without a reader, or more.
fn large(builder: httpdown::Builder, listener: Listener, size: usize) -> Server {
    let handler = move |exchange: Exchange| {
        let _ = reply(exchange, vec![b'x'; size]);
    };
    builder
        .handle(listener, Dispatch::default(), handler)
        .unwrap()
}

#[test]
fn a_stop_waits_until_the_client_has_the_response_not_only_the_kernel() {
    const SIZE: usize = 100_000;
    let server = large(builder(), tcp_listener(), SIZE);
    let mut client = unwilling_reader(&server, "/");
    // All of it is in the server's kernel, most of it for good, and the linger timeout is short.
    wait_for_report(&server, |report| report.served == 1);
    let stopping = stop_elsewhere(&server);
    client.set_read_timeout(Duration::from_millis(500));
    let head = client.try_head().unwrap();
    assert_eq!(head.header("content-length"), Some("100000"));
    assert_eq!(client.exactly(10).unwrap(), b"xxxxxxxxxx");
    // Many times what a server gives it that only lingers.
    let deadline = Instant::now() + Duration::from_millis(300);
    let waited = server.wait_blocking(Some(deadline));
    assert!(matches!(waited, Err(Error::WouldBlock)), "{waited:?}");
    client.set_read_timeout(LONG);
    client.exactly(SIZE - 10).unwrap();
    client.assert_closed();
    let report = stopping.join().unwrap().unwrap();
    assert_balanced(&report);
    assert_eq!((report.served, report.bytes_unacked), (1, 0));
}

#[test]
fn a_client_that_is_still_reading_has_the_grace_only_then() {
    const SIZE: usize = 100_000;
    let server = large(
        builder().idle_grace(Duration::from_millis(400)),
        tcp_listener(),
        SIZE,
    );
    let mut client = unwilling_reader(&server, "/");
    wait_for_report(&server, |report| report.served == 1);
    let stopping = stop_elsewhere(&server);
    let deadline = Instant::now() + Duration::from_millis(800);
    assert!(server.wait_blocking(Some(deadline)).is_err(), "it goes on");
    assert_eq!(client.answer().body.len(), SIZE);
    client.ask("/");
    let answer = client.answer();
    assert_eq!(answer.body.len(), SIZE);
    assert!(answer.closes());
    client.assert_closed();
    let report = stopping.join().unwrap().unwrap();
    assert_eq!((report.served, report.closed_idle, report.raced), (2, 0, 0));
}

#[test]
fn a_response_that_a_kill_leaves_in_the_kernel_is_not_counted_as_served() {
    let server = large(
        builder().stop_timeout(Duration::from_millis(100)),
        tcp_listener(),
        100_000,
    );
    let client = unwilling_reader(&server, "/");
    wait_for_report(&server, |report| report.served == 1);
    assert!(matches!(stop(&server), Err(Error::Killed(_))));
    let report = server.report();
    assert_balanced(&report);
    assert_eq!(
        (report.served, report.killed, report.conns_killed),
        (0, 1, 1)
    );
    assert!(report.bytes_unacked > 50_000, "{report:?}");
    drop(client);
}

#[test]
fn a_stop_is_not_over_after_4_of_67_megabytes() {
    const SIZE: usize = 67 << 20;
    let server = large(builder(), listener(), SIZE);
    let mut client = unwilling_reader(&server, "/");
    let head = client.try_head().unwrap();
    assert_eq!(
        head.header("content-length"),
        Some(SIZE.to_string().as_str())
    );
    client.exactly(4 << 20).unwrap();
    let stopping = stop_elsewhere(&server);
    client.exactly(SIZE - (4 << 20)).unwrap();
    client.assert_closed();
    let report = stopping.join().unwrap().unwrap();
    assert_balanced(&report);
    assert_eq!((report.served, report.bytes_unacked), (1, 0));
}

#[test]
fn a_client_that_resets_its_connection_does_not_hold_a_stop_that_waits_for_its_acknowledgement() {
    let server = large(builder(), tcp_listener(), 100_000);
    let client = unwilling_reader(&server, "/");
    wait_for_report(&server, |report| report.served == 1);
    let stopping = stop_elsewhere(&server);
    let deadline = Instant::now() + Duration::from_millis(200);
    assert!(server.wait_blocking(Some(deadline)).is_err());
    client.reset();
    let report = stopping.join().unwrap().unwrap();
    assert_balanced(&report);
    assert_eq!((report.served, report.gone, report.conns_gone), (0, 1, 1));
    assert!(report.bytes_unacked > 50_000, "{report:?}");
}

#[test]
fn a_client_that_never_ceases_to_pipeline_does_not_turn_the_stop_into_a_kill() {
    let server = hello(builder().stop_timeout(Duration::from_secs(2)), listener());
    let mut client = Client::connect(addr(&server));
    let mut sender = client.socket().try_clone().unwrap();
    let sender = thread::spawn(move || {
        let requests = "GET / HTTP/1.1\r\nHost: test\r\n\r\n".repeat(50);
        while sender.write_all(requests.as_bytes()).is_ok() {}
    });
    assert!(!client.answer().closes());
    let stopping = stop_elsewhere(&server);
    while !client.answer().closes() {}
    drop(client);
    let report = stopping.join().unwrap().unwrap();
    assert_balanced(&report);
    assert_eq!((report.killed, report.conns_killed), (0, 0));
    sender.join().unwrap();
}
