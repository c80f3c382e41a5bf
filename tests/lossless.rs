//! What a stop must not lose: handshakes half done, requests on their way, the end of a response.
#![allow(
    clippy::unwrap_used,
    dead_code,
    reason = "a helper that fails fails its test; and not every test file needs all helpers"
)]

mod common;

use std::fs;
use std::io::ErrorKind;
use std::thread;
use std::time::Duration;

use httpdown::{Dispatch, Exchange, Phase, Server};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use common::{Client, LONG, addr, builder, listener, reply, stop, stop_elsewhere, wait_for_report};

fn hello(builder: httpdown::Builder) -> Server {
    let handler = |exchange: Exchange| {
        let _ = reply(exchange, "hello");
    };
    builder
        .handle(listener(), Dispatch::default(), handler)
        .unwrap()
}

/// Whether the kernel has a half-open handshake for that port.
fn is_half_open(port: u16) -> bool {
    let local = format!(":{port:04X} ");
    fs::read_to_string("/proc/net/tcp")
        .unwrap()
        .lines()
        .any(|line| line.contains(&local) && line.split_whitespace().nth(3) == Some("03"))
}

#[test]
fn a_handshake_that_is_half_done_at_the_stop_is_finished_and_served() {
    let server = hello(builder());
    let addr = addr(&server);
    // A client that hears nothing: its SYN arrives, the answer to it does not.
    let client = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
    let return_op = u16::try_from(libc_bpf_return()).unwrap();
    client
        .attach_filter(&[SockFilter::new(return_op, 0, 0, 0)])
        .unwrap();
    client.set_nonblocking(true).unwrap();
    let connecting = client.connect(&addr.into()).unwrap_err();
    assert_eq!(connecting.raw_os_error(), Some(115), "in progress");
    while !is_half_open(addr.port()) {
        thread::yield_now();
    }
    let stopping = stop_elsewhere(&server);
    while server.phase() < Phase::Quiescing {
        thread::yield_now();
    }
    // It hears again: the server's kernel repeats its answer after a second, and the handshake goes on.
    client.detach_filter().unwrap();
    client.set_nonblocking(false).unwrap();
    let mut client = Client::from(std::net::TcpStream::from(client));
    // connect() is under way; the socket becomes writable when it is done.
    while let Err(error) = client.try_send("GET / HTTP/1.1\r\nhost: test\r\n\r\n") {
        assert!(
            matches!(
                error.kind(),
                ErrorKind::NotConnected | ErrorKind::BrokenPipe
            ),
            "{error}"
        );
        thread::yield_now();
    }
    let answer = client.answer();
    assert_eq!(answer.text(), "hello");
    assert!(answer.closes());
    drop(client);
    let report = stopping.join().unwrap().unwrap();
    assert_eq!((report.served, report.unaccepted), (1, 0));
}

/// `BPF_RET | BPF_K`, of linux/filter.h.
fn libc_bpf_return() -> u32 {
    0x06
}

#[test]
fn a_request_on_its_way_to_an_idle_or_a_new_connection_is_served() {
    let server = hello(builder().idle_grace(LONG));
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
    let server = hello(builder().idle_grace(Duration::from_millis(20)));
    let mut client = Client::get(addr(&server), "/");
    assert_eq!(client.answer().text(), "hello");
    let stopping = stop_elsewhere(&server);
    client.assert_closed();
    assert_eq!(stopping.join().unwrap().unwrap().closed_idle, 1);
}

#[test]
fn a_request_that_crosses_the_close_is_counted_as_a_race() {
    let server = hello(builder().linger_timeout(LONG));
    let mut client = Client::get(addr(&server), "/");
    assert_eq!(client.answer().text(), "hello");
    let stopping = stop_elsewhere(&server);
    // The server's side is closed now, but the client has not looked.
    wait_for_report(&server, |report| report.closed_idle == 1);
    client.ask("/");
    assert_eq!(client.until_end().unwrap(), b"");
    wait_for_report(&server, |report| report.raced == 1);
    drop(client);
    assert_eq!(stopping.join().unwrap().unwrap().raced, 1);
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
        .handle(listener(), Dispatch::default(), handler)
        .unwrap();
    for served in 1..=5 {
        // Little fits into the client's window, so the end of the answer waits in the server's kernel, which would
        // discard it if the socket were closed with bytes of the upload unread.
        let client = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        client.set_recv_buffer_size(4096).unwrap();
        client.connect(&addr(&server).into()).unwrap();
        client.set_read_timeout(Some(LONG)).unwrap();
        let mut client = Client::from(std::net::TcpStream::from(client));
        client.send("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 100000000\r\n\r\n");
        client.send(vec![0; 200_000]);
        wait_for_report(&server, |report| report.served == served);
        client.send(vec![0; 10_000]);
        assert_eq!(client.answer().text().len(), TEXT);
    }
    assert_eq!(stop(&server).unwrap().served, 5);
}
