//! What a client may send, and how often: beyond a limit it is told so, in whatever way requests are answered, and the
//! report's sums hold.
#![allow(clippy::unwrap_used, reason = "a test that fails panics")]

mod common;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::num::NonZeroUsize;

use common::{
    Client, Gate, Journal, LONG, Recorder, addr, assert_balanced, builder, each_way, hello, ip,
    listener, reply, stop, stop_elsewhere, tcp_listener, unconnected, wait_for_report,
};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use httpdown::{Body, Builder, Dispatch, Error, Exchange, Server};
use hyper::service::service_fn;

fn count(count: usize) -> NonZeroUsize {
    count.try_into().unwrap()
}

/// Servers that answer with what they have read of a body, in each way, a service among them. They note what reading
/// has failed with.
fn echo(builder: impl Fn() -> Builder, failed: &Journal<Error>) -> Vec<Server> {
    let journal = failed.clone();
    let handler = move |mut exchange: Exchange| {
        let mut body = Vec::new();
        loop {
            match exchange.read_bytes(1 << 20) {
                Ok(piece) if piece.is_empty() => break,
                Ok(piece) => body.extend(piece),
                // In place, what has not come cannot be read.
                Err(Error::WouldBlock) => break,
                Err(why) => {
                    let again = exchange.read_bytes(1).unwrap_err();
                    assert_eq!(format!("{why:?}"), format!("{again:?}"));
                    journal.write(why);
                    return;
                }
            }
        }
        let _ = reply(exchange, body);
    };
    let journal = failed.clone();
    let service = service_fn(move |request: Request<Body>| {
        let journal = journal.clone();
        async move {
            let read = request.into_body().collect().await;
            let read = read.inspect_err(|why| journal.write(why.clone()))?;
            Ok::<_, Error>(Response::new(Full::new(read.to_bytes())))
        }
    });
    let mut servers = Vec::from(each_way(&builder, handler));
    servers.push(builder().serve(listener(), service).unwrap());
    servers
}

fn limited() -> Builder {
    builder()
        .max_headers(count(10))
        .max_head_size(count(1_000))
        .max_target_size(count(100))
        .max_body_size(10)
}

fn head(line: &str, fields: usize, size: usize) -> String {
    let mut head = format!("{line}\r\nHost: a\r\n");
    for number in 2..fields {
        write!(head, "x{number}: y\r\n").unwrap();
    }
    let left = size.saturating_sub(head.len() + "z: \r\n\r\n".len());
    format!("{head}z: {}\r\n\r\n", "z".repeat(left))
}

#[test]
fn a_head_has_limits() {
    let target = |length: usize| format!("GET /{} HTTP/1.1", "t".repeat(length - 1));
    let absolute = |length: usize| {
        let path = "t".repeat(length - "http://a/".len());
        format!("GET http://a/{path} HTTP/1.1")
    };
    let get = "GET / HTTP/1.1";
    let cases = [
        (head(get, 10, 0), 200),
        (head(get, 11, 0), 431),
        (head(get, 10, 1_000), 200),
        (head(get, 10, 1_001), 431),
        (head(get, 2, 100_000), 431),
        (head(&target(100), 2, 0), 200),
        (head(&target(101), 2, 0), 414),
        (head(&absolute(100), 2, 0), 200),
        (head(&absolute(101), 2, 0), 414),
        // The head is too large before its target ends.
        (head(&target(2_000), 2, 0), 431),
        (head("POST / HTTP/1.1\r\nContent-Length: 11", 2, 0), 413),
        (
            head("POST / HTTP/1.1\r\nContent-Length: 99999999999999", 2, 0),
            413,
        ),
        (
            head(
                "POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 11",
                2,
                0,
            ),
            413,
        ),
    ];
    for server in echo(limited, &Journal::new()) {
        let mut served = 0;
        for (head, status) in &cases {
            let text = &head[..head.len().min(60)];
            for pieces in [1, 7] {
                let mut client = Client::connect(addr(&server));
                for piece in head.as_bytes().chunks(head.len().div_ceil(pieces)) {
                    // It may be refused before its end.
                    let _ = client.try_send(piece);
                }
                let answer = client.answer();
                assert_eq!(answer.status, *status, "{text}");
                if *status == 200 {
                    served += 1;
                } else {
                    assert!(answer.closes(), "{text}: {answer:?}");
                    client.assert_ended();
                }
            }
        }
        let report = stop(&server).unwrap();
        assert_balanced(&report);
        // What is refused does not count as a request.
        assert_eq!((report.requests, report.served), (served, served));
        assert_eq!(report.conns_gone, 0, "{report:?}");
    }
}

#[test]
fn by_default_too() {
    let server = hello(builder(), listener());
    let line = |length: usize| format!("GET /{} HTTP/1.1", "t".repeat(length - 1));
    for (head, status) in [
        (head("GET / HTTP/1.1", 100, 0), 200),
        (head("GET / HTTP/1.1", 101, 0), 431),
        (head("GET / HTTP/1.1", 2, 65_536), 200),
        (head("GET / HTTP/1.1", 2, 65_537), 431),
        (head(&line(8_192), 2, 0), 200),
        (head(&line(8_193), 2, 0), 414),
    ] {
        let mut client = Client::connect(addr(&server));
        let _ = client.try_send(&head);
        assert_eq!(client.answer().status, status, "{}", head.len());
    }
    assert_balanced(&stop(&server).unwrap());
}

#[test]
fn a_head_may_be_larger_than_the_parser_expects() {
    let large = || {
        let builder = builder().max_head_size(count(2 << 20));
        builder.max_headers(count(4_096))
    };
    let server = hello(large(), listener());
    for (head, status) in [
        (head("GET / HTTP/1.1", 4_096, 2 << 20), 200),
        (head("GET / HTTP/1.1", 4_096, (2 << 20) + 1), 431),
        (head("GET / HTTP/1.1", 4_097, 0), 431),
    ] {
        let mut client = Client::connect(addr(&server));
        let _ = client.try_send(&head);
        assert_eq!(client.answer().status, status, "{}", head.len());
    }
    assert_balanced(&stop(&server).unwrap());
}

const CHUNKED: &str = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";

#[test]
fn a_body_in_chunks_is_read_until_it_is_too_large() {
    let failed = Journal::new();
    for (way, server) in echo(limited, &failed).into_iter().enumerate() {
        let mut client = Client::connect(addr(&server));
        client.send([CHUNKED, "4\r\n0123\r\n6\r\n456789\r\n0\r\n\r\n"].concat());
        let answer = client.answer();
        assert_eq!((answer.status, answer.text()), (200, "0123456789"), "{way}");
        // What follows is not read as a request, though the body has come to its end.
        let next = "GET /next HTTP/1.1\r\nHost: a\r\n\r\n";
        client.send([CHUNKED, "4\r\n0123\r\n7\r\n456789x\r\n0\r\n\r\n", next].concat());
        let answer = client.answer();
        assert_eq!((answer.status, answer.closes()), (413, true), "{way}");
        client.assert_closed();
        wait_for_report(&server, |report| report.conns_open == 0);
        let report = stop(&server).unwrap();
        assert_balanced(&report);
        assert_eq!((report.requests, report.served), (2, 2), "{way}");
        assert_eq!(report.conns_closed, 1, "{report:?}");
    }
    let failed = failed.all();
    assert_eq!(failed.len(), 4, "{failed:?}");
    assert!(
        failed.iter().all(|why| matches!(why, Error::TooLarge)),
        "{failed:?}"
    );
}

/// A client that never ends its body is answered, and cut.
#[test]
fn a_body_without_an_end_is_not_read_for_ever() {
    let failed = Journal::new();
    for (way, server) in echo(limited, &failed).into_iter().enumerate().skip(1) {
        let mut client = Client::connect(addr(&server));
        client.send([CHUNKED, "5\r\n01234\r\n"].concat());
        client.send("ffff\r\nabcdef");
        assert_eq!(client.answer().status, 413, "{way}");
        let report = stop(&server).unwrap();
        assert_balanced(&report);
        assert_eq!((report.requests, report.served), (1, 1), "{way}");
    }
}

#[test]
fn an_answer_that_has_begun_is_cut() {
    let handler = |mut exchange: Exchange| {
        exchange.start(Response::new(())).unwrap();
        exchange.write(b"begun").unwrap();
        while exchange
            .read_bytes(1 << 20)
            .is_ok_and(|piece| !piece.is_empty())
        {}
    };
    let server = limited()
        .handle(listener(), Dispatch::default(), handler)
        .unwrap();
    let mut client = Client::connect(addr(&server));
    client.send(CHUNKED);
    let head = client.try_head().unwrap();
    assert_eq!(client.try_chunk().unwrap().as_deref(), Some(&b"begun"[..]));
    client.send("b\r\n0123456789x\r\n");
    client.try_body(&head).unwrap_err();
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.requests, report.gone, report.failed), (1, 1, 0));
}

#[test]
fn a_connection_has_so_many_requests() {
    let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let most = || builder().max_conn_requests(count(3));
    for server in echo(most, &Journal::new()) {
        let mut client = Client::connect(addr(&server));
        for number in 1..=3 {
            client.send(get);
            let answer = client.answer();
            assert_eq!((answer.status, answer.closes()), (200, number == 3));
        }
        client.assert_closed();
        // Those that have been sent already are answered, but not for ever.
        for (sent, answered) in [(5, 5), (6, 6), (9, 6)] {
            let mut client = Client::connect(addr(&server));
            client.send(get.repeat(sent));
            for number in 1..=answered {
                assert_eq!(
                    client.answer().closes(),
                    number == answered,
                    "{number} of {sent}"
                );
            }
            client.assert_closed();
        }
        let report = stop(&server).unwrap();
        assert_balanced(&report);
        assert_eq!((report.requests, report.served), (20, 20), "{report:?}");
        assert_eq!((report.conns_closed, report.raced), (3, 1), "{report:?}");
    }
}

#[test]
fn what_bites_is_counted_and_logged_now_and_then() {
    let (stats, bumps) = Recorder::new();
    let lines = Journal::new();
    let journal = lines.clone();
    let builder = limited().max_conn_requests(count(1)).stats(stats);
    let builder = builder.on_log(move |level, line| journal.write(format!("{level:?} {line}")));
    let server = hello(builder, listener());
    let mut from = String::new();
    for _ in 0..3 {
        for request in [
            head("GET / HTTP/1.1", 11, 0),
            head(&format!("GET /{} HTTP/1.1", "t".repeat(100)), 2, 0),
            head("POST / HTTP/1.1\r\nContent-Length: 11", 2, 0),
            head("GET / HTTP/1.1", 2, 0),
        ] {
            let mut client = Client::connect(addr(&server));
            if from.is_empty() {
                from = client.name();
            }
            client.send(request);
            assert!(client.answer().closes());
            client.assert_ended();
        }
    }
    assert_balanced(&stop(&server).unwrap());
    for key in ["head", "target", "body", "conn_requests"] {
        let key = format!("sum limit.{key}");
        let count = bumps.all().iter().filter(|(name, _)| *name == key).count();
        assert_eq!(count, 3, "{key}");
    }
    let lines = lines.all();
    let of = |option: &str| {
        lines
            .iter()
            .filter(|line| line.contains(option))
            .collect::<Vec<_>>()
    };
    for option in [
        "max_headers",
        "max_target_size",
        "max_body_size",
        "max_conn_requests",
    ] {
        assert_eq!(of(option).len(), 1, "{lines:?}");
    }
    let expected = format!("Info a head is too large (max_headers, max_head_size): from {from}");
    assert_eq!(*of("max_headers")[0], expected);
}

#[test]
fn limits_have_limits() {
    let serve = |builder: Builder| match builder.handle(listener(), Dispatch::Inline, |_| {}) {
        Err(Error::InvalidArgument(why)) => why,
        other => panic!("{other:?}"),
    };
    for (builder, name) in [
        (builder().max_headers(count(4_097)), "max_headers"),
        (
            builder().max_head_size(count((16 << 20) + 1)),
            "max_head_size",
        ),
        (builder().max_target_size(count(65_535)), "max_target_size"),
    ] {
        let why = serve(builder);
        assert!(why.starts_with(&format!("{name} is more than")), "{why}");
    }
}

/// Nobody reads it, so it is not counted.
#[test]
fn a_body_that_is_empty_may_be_the_limit() {
    let server = hello(builder().max_body_size(0), listener());
    let mut client = Client::connect(addr(&server));
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(client.answer().text(), "hello");
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx");
    assert_eq!(client.answer().status, 413);
    assert_balanced(&stop(&server).unwrap());
}

/// A client that comes from this address.
fn client_from(server: &Server, from: [u8; 4]) -> Client {
    let (to, socket) = unconnected(ip(server)).unwrap();
    let from = SocketAddr::from((from, 0));
    socket.bind(&from.into()).unwrap();
    socket.connect(&to).unwrap();
    Client::from(socket)
}

#[test]
fn new_clients_wait_until_others_have_ended() {
    let (stats, bumps) = Recorder::new();
    let lines = Journal::new();
    let journal = lines.clone();
    let builder = builder().max_conns(count(2)).stats(stats);
    let builder = builder.on_log(move |level, line| journal.write(format!("{level:?} {line}")));
    let server = hello(builder, listener());
    let mut clients: Vec<_> = (0..5).map(|_| Client::plain(addr(&server))).collect();
    let ask = |client: &mut Client| {
        client.speak_tls();
        client.ask("/");
        assert_eq!(client.answer().text(), "hello");
    };
    // In their order, two at a time.
    for _ in 0..4 {
        ask(&mut clients[0]);
        bumps.wait_until(|bumps| bumps.iter().any(|(key, _)| key == "sum limit.conns"));
        assert!(server.report().conns_open <= 2);
        drop(clients.remove(0));
    }
    ask(&mut clients[0]);
    // Nobody waits any more, so it does not bite.
    let bites = |bumps: &[_]| {
        let bites = |(key, _): &&(String, f64)| key == "sum limit.conns";
        bumps.iter().filter(bites).count()
    };
    wait_for_report(&server, |report| report.conns_open == 1);
    let count = bites(&bumps.all());
    let mut other = Client::connect(addr(&server));
    other.ask("/");
    assert_eq!(other.answer().text(), "hello");
    assert_eq!(bites(&bumps.all()), count);
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.connections, report.served), (6, 6));
    let line = "Warning accepting pauses (max_conns): 2 connections are open";
    let told = lines.all().iter().filter(|it| *it == line).count();
    assert_eq!(told, 1, "{:?}", lines.all());
}

#[test]
fn a_stop_takes_over_those_who_wait() {
    let (stats, bumps) = Recorder::new();
    let builder = builder().max_conns(count(1)).idle_grace(LONG).stats(stats);
    let server = hello(builder, listener());
    let mut first = Client::connect(addr(&server));
    first.ask("/");
    assert_eq!(first.answer().text(), "hello");
    let mut waiting: Vec<_> = (0..3).map(|_| Client::plain(addr(&server))).collect();
    bumps.wait_for(|(key, _)| key == "sum limit.conns");
    let stopping = stop_elsewhere(&server);
    wait_for_report(&server, |report| report.connections == 4);
    for client in &mut waiting {
        client.speak_tls();
        client.ask("/");
        let answer = client.answer();
        assert_eq!((answer.text(), answer.closes()), ("hello", true));
    }
    drop((first, waiting));
    let report = stopping.join().unwrap().unwrap();
    assert_balanced(&report);
    assert_eq!((report.served, report.unaccepted), (4, 0));
}

#[test]
fn one_client_may_have_so_many_connections() {
    let (stats, bumps) = Recorder::new();
    let builder = builder().max_client_conns(count(2)).stats(stats);
    let server = hello(builder, tcp_listener());
    let ask = |from| {
        let mut client = client_from(&server, from);
        client.ask("/");
        let answer = client.answer();
        assert_eq!((answer.status, answer.text()), (200, "hello"));
        client
    };
    let one = ask([127, 0, 0, 8]);
    let two = ask([127, 0, 0, 8]);
    for _ in 0..3 {
        let mut third = client_from(&server, [127, 0, 0, 8]);
        if common::tls::is_everywhere() {
            third.fin();
            continue;
        }
        let answer = third.answer();
        assert_eq!((answer.status, answer.closes()), (503, true));
        assert_eq!(answer.header("retry-after"), Some("1"));
        assert_eq!(answer.text(), "too many connections from your address\n");
        // The answer is not destroyed by what is sent meanwhile.
        let _ = third.try_send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        third.assert_closed();
    }
    let other = ask([127, 0, 0, 9]);
    drop(one);
    wait_for_report(&server, |report| report.conns_open == 2);
    let again = ask([127, 0, 0, 8]);
    drop((two, other, again));
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.connections, report.served), (7, 4));
    assert_eq!(
        (report.conns_closed, report.conns_gone),
        (7, 0),
        "{report:?}"
    );
    let bites = bumps.all();
    let bites = bites
        .iter()
        .filter(|(key, _)| key == "sum limit.client_conns");
    assert_eq!(bites.count(), 3);
}

/// A handler that is busy until the gate opens.
fn busy(gate: &Gate) -> impl Fn(Exchange) + Clone + use<> {
    let gate = gate.clone();
    move |exchange: Exchange| {
        gate.pass();
        let _ = reply(exchange, "hello");
    }
}

#[test]
fn so_many_requests_wait_for_a_thread() {
    let (gate, (stats, bumps)) = (Gate::new(), Recorder::new());
    let builder = builder().max_queued(count(2)).stats(stats);
    let dispatch = Dispatch::Pool(count(2));
    let server = builder.handle(listener(), dispatch, busy(&gate)).unwrap();
    let mut clients: Vec<_> = (0..4).map(|_| Client::get(addr(&server), "/")).collect();
    wait_for_report(&server, |report| report.requests == 4);
    // Two are worked on, and two wait, or will soon: a thread may not have begun yet.
    let mut refused = Client::get(addr(&server), "/");
    let answer = refused.answer();
    assert_eq!((answer.status, answer.closes()), (503, false));
    assert_eq!(answer.header("retry-after"), Some("1"));
    bumps.wait_for(|(key, _)| key == "sum limit.queued");
    gate.open();
    for client in &mut clients {
        assert_eq!(client.answer().text(), "hello");
    }
    // The connection has gone on.
    refused.ask("/");
    assert_eq!(refused.answer().text(), "hello");
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.requests, report.served), (6, 6));
}

#[test]
fn so_many_requests_wait_to_be_taken() {
    let (server, queue) = builder().max_queued(count(2)).queue(listener()).unwrap();
    let mut clients: Vec<_> = (0..3).map(|_| Client::connect(addr(&server))).collect();
    let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
    for (number, client) in clients.iter_mut().enumerate() {
        client.send(post);
        wait_for_report(&server, |report| report.requests == number as u64 + 1);
    }
    // The last of them.
    assert_eq!(clients[2].answer().status, 503);
    for exchange in queue.take(3, None).unwrap() {
        reply(exchange, "taken").unwrap();
    }
    for client in &mut clients[..2] {
        assert_eq!(client.answer().text(), "taken");
    }
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.requests, report.served), (3, 3));
}

/// A burst is no queue: there are threads for it.
#[test]
fn a_burst_does_not_wait_where_threads_are_free() {
    let builder = builder().max_queued(count(1));
    let server = hello(builder, listener());
    for _ in 0..20 {
        let mut client = Client::connect(addr(&server));
        let mut others: Vec<_> = (0..50).map(|_| Client::connect(addr(&server))).collect();
        for other in &mut others {
            other.ask("/");
        }
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(50));
        for _ in 0..50 {
            assert_eq!(client.answer().status, 200);
        }
        for other in &mut others {
            assert_eq!(other.answer().status, 200);
        }
    }
    assert_balanced(&stop(&server).unwrap());
}
