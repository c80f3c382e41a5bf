//! What is set on listening sockets, and so on the connections that they accept.
#![allow(clippy::unwrap_used, reason = "a test that fails panics")]

mod common;

use std::net::TcpStream;
use std::num::NonZeroUsize;
use std::os::fd::AsFd as _;
use std::time::Duration;

use common::{Client, Journal, addr, assert_balanced, builder, hello, stop, unconnected};
use http::Response;
use httpdown::{Addr, Builder, Dispatch, Error, Exchange, Listener};
use socket2::{SockRef, Socket};

fn count(count: usize) -> NonZeroUsize {
    count.try_into().unwrap()
}

/// A connection as the server gets it.
fn accepted(listener: &Listener) -> Socket {
    let client = TcpStream::connect(listener.local_addr()).unwrap();
    let (connection, _) = SockRef::from(&listener.as_fd()).accept().unwrap();
    drop(client);
    connection
}

#[test]
fn connections_have_the_options_of_their_listener() {
    let mut builder = builder()
        .tcp_keepalive(Duration::from_secs(20))
        .tcp_user_timeout(Duration::from_secs(7))
        .receive_buffer(count(20_000))
        .send_buffer(count(30_000))
        .tcp_backlog(count(77));
    let listener = builder.listen("127.0.0.1:0").unwrap();
    let connection = accepted(&listener);
    assert!(connection.keepalive().unwrap());
    assert_eq!(
        connection.tcp_keepalive_time().unwrap(),
        Duration::from_secs(20)
    );
    assert_eq!(
        connection.tcp_keepalive_interval().unwrap(),
        Duration::from_secs(5)
    );
    assert_eq!(connection.tcp_keepalive_retries().unwrap(), 4);
    let timeout = connection.tcp_user_timeout().unwrap();
    assert_eq!(timeout, Some(Duration::from_secs(7)));
    // The kernel doubles them.
    assert_eq!(connection.recv_buffer_size().unwrap(), 40_000);
    assert_eq!(connection.send_buffer_size().unwrap(), 60_000);
    let server = hello(builder, listener);
    let mut client = Client::get(addr(&server), "/");
    assert_eq!(client.answer().text(), "hello");
    assert_balanced(&stop(&server).unwrap());
}

/// Beyond 2 MiB for all, an answer in pieces keeps 48 KiB, and hyper has 32 KiB of it. The rest is the kernel's.
#[test]
fn clients_that_take_nothing_fill_no_memory() {
    const CLIENTS: usize = 60;
    const PIECE: usize = 16 << 10;
    let mut builder = builder()
        .send_buffer(count(4096))
        .write_timeout(Duration::from_millis(300));
    let listener = builder.listen("127.0.0.1:0").unwrap();
    let taken = Journal::new();
    let journal = taken.clone();
    let handler = move |mut exchange: Exchange| {
        exchange.start(Response::new(())).unwrap();
        let pieces = std::iter::repeat_with(|| exchange.write(&[0; PIECE]));
        journal.write(pieces.take_while(Result::is_ok).count() * PIECE);
    };
    let server = builder
        .handle(listener, Dispatch::Pool(count(CLIENTS)), handler)
        .unwrap();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (to, socket) = unconnected(addr(&server)).unwrap();
            socket.set_recv_buffer_size(2048).unwrap();
            socket.connect(&to).unwrap();
            let request = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n";
            assert_eq!(socket.send(request).unwrap(), request.len());
            socket
        })
        .collect();
    taken.wait_for_count(CLIENTS);
    drop(clients);
    let all: usize = taken.all().iter().sum();
    assert!(all <= (2 << 20) + CLIENTS * (128 << 10), "{all} bytes");
    assert_balanced(&stop(&server).unwrap());
}

#[test]
fn by_default_the_system_decides() {
    let listener = builder().listen("127.0.0.1:0").unwrap();
    let connection = accepted(&listener);
    assert!(!connection.keepalive().unwrap());
    assert_eq!(connection.tcp_user_timeout().unwrap(), None);
}

#[test]
fn a_socket_takes_ipv4_too_unless_it_is_told_not_to() {
    let Ok(any) = builder().listen("[::]:0") else {
        return common::skip(&"no IPv6");
    };
    assert!(!SockRef::from(&any.as_fd()).only_v6().unwrap());
    let six = builder().v6_only(true).listen("[::]:0").unwrap();
    assert!(SockRef::from(&six.as_fd()).only_v6().unwrap());
    // So another socket can take IPv4 on the same port.
    let Addr::Ip(at) = six.local_addr() else {
        panic!("{six:?}")
    };
    let four = builder().listen(&format!("0.0.0.0:{}", at.port())).unwrap();
    let server = hello(builder(), vec![six, four]);
    assert_balanced(&stop(&server).unwrap());
}

#[test]
fn what_no_socket_can_have_is_refused() {
    let second = Duration::from_secs(1);
    let wrong: [(Builder, &str); 6] = [
        (
            builder().tcp_keepalive(second / 2),
            "tcp_keepalive is 500ms",
        ),
        (
            builder().tcp_keepalive(second * 32_768),
            "tcp_keepalive is 32768s",
        ),
        (
            builder().tcp_user_timeout(Duration::ZERO),
            "tcp_user_timeout is 0ns",
        ),
        (
            builder().tcp_backlog(count(65_536)),
            "tcp_backlog is more than 65535",
        ),
        (
            builder().receive_buffer(count((1 << 30) + 1)),
            "receive_buffer is more",
        ),
        (
            builder().send_buffer(count((1 << 30) + 1)),
            "send_buffer is more",
        ),
    ];
    for (mut builder, expected) in wrong {
        match builder.listen("127.0.0.1:0") {
            Err(Error::InvalidArgument(why)) => assert!(why.starts_with(expected), "{why}"),
            other => panic!("{other:?}"),
        }
    }
}
