//! Whose connection it is, and who has sent a request, where proxies stand between: by the PROXY protocol, and by fields
//! of a request's head. And what a stop does with a connection whose header is on its way.
#![allow(clippy::unwrap_used, reason = "a test that fails panics")]

mod common;

use std::convert::Infallible;

use bytes::Bytes;
use common::{
    Client, Journal, LONG, Recorder, addr, assert_balanced, builder, each_way, listener, reply,
    stop, stop_elsewhere, tcp_listener, wait_for_phase, wait_for_report,
};
use http::{Request, Response};
use http_body_util::Full;
use httpdown::{
    Body, Builder, ConnInfo, ConnState, Dispatch, Error, Exchange, Listener, Phase, Server,
};
use hyper::service::service_fn;

/// Every client of these tests.
const ALL: &str = "127.0.0.0/8, unix:";
const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const V1: &str = "PROXY TCP4 192.0.2.1 198.51.100.2 4660 80\r\n";
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc6\x33\x64\x02\x12\x34\0\x50";
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

fn proxied() -> Builder {
    builder().proxy_protocol_from(ALL)
}

fn show(conn: &ConnInfo) -> String {
    let proxy = conn.proxy().map(ToString::to_string);
    format!("{} {} {proxy:?}", conn.peer, conn.local)
}

/// Answers with what is known of the connection.
fn serve(builder: Builder, listener: Listener) -> Server {
    let handler = |exchange: Exchange| {
        let text = show(exchange.conn());
        let _ = reply(exchange, text);
    };
    builder
        .handle(listener, Dispatch::default(), handler)
        .unwrap()
}

#[test]
fn a_header_says_whose_the_connection_is() {
    let server = serve(proxied(), listener());
    let v1 = V1.as_bytes();
    for header in [v1, V2, b"PROXY UNKNOWN\r\n", LOCAL] {
        let says = !header.starts_with(b"PROXY UNKNOWN") && header != LOCAL;
        for length in [1, 5, header.len(), 1_000] {
            let mut client = Client::plain(addr(&server));
            let expected = if says {
                let proxy = Some(client.name());
                format!("192.0.2.1:4660 198.51.100.2:80 {proxy:?}")
            } else {
                format!("{} {} None", client.name(), addr(&server))
            };
            // With TLS, the header comes before it.
            for piece in header.chunks(length) {
                client.send_raw(piece);
            }
            client.speak_tls();
            client.send([GET, GET].concat());
            assert_eq!(client.answer().text(), expected);
            assert_eq!(client.answer().text(), expected);
        }
    }
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.connections, report.served), (16, 32), "{report:?}");
}

#[test]
fn in_one_segment_with_the_request() {
    let server = serve(proxied(), listener());
    if !common::tls::is_everywhere() {
        for header in [V1.as_bytes(), V2] {
            let mut client = Client::plain(addr(&server));
            client.send_raw([header, GET.as_bytes(), GET.as_bytes()].concat());
            for _ in 0..2 {
                assert!(client.answer().text().starts_with("192.0.2.1:4660 "));
            }
        }
    }
    assert_balanced(&stop(&server).unwrap());
}

#[test]
fn without_a_header_the_connection_ends() {
    let (stats, bumps) = Recorder::new();
    let lines = Journal::new();
    let journal = lines.clone();
    let builder = proxied().stats(stats);
    let builder = builder.on_log(move |level, line| journal.write(format!("{level:?} {line}")));
    let server = serve(builder, listener());
    let v2_too_long = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff";
    let sent: [&[u8]; 5] = [
        GET.as_bytes(),
        b"PROXY TCP4 192.0.2.1\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0c",
        v2_too_long,
        b"\x16\x03\x01",
    ];
    for bytes in sent {
        let mut client = Client::plain(addr(&server));
        client.send_raw(bytes);
        client.assert_ended();
    }
    // Cut short.
    let mut client = Client::plain(addr(&server));
    client.send_raw("PROXY TCP4");
    client.fin();
    client.assert_ended();
    // Somebody looks whether the port is open.
    let client = Client::plain(addr(&server));
    client.fin();
    client.assert_ended();
    wait_for_report(&server, |report| {
        report.connections == 7 && report.conns_open == 0
    });
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.requests, report.conns_closed), (0, 7), "{report:?}");
    let count = bumps
        .all()
        .iter()
        .filter(|(key, _)| key == "sum proxy.error")
        .count();
    assert_eq!(count, 6);
    let lines = lines.all();
    let told: Vec<_> = lines.iter().filter(|line| line.contains("PROXY")).collect();
    assert_eq!(told.len(), 1, "{lines:?}");
    let expected = "Warning no header of the PROXY protocol: there is none, from ";
    assert!(told[0].starts_with(expected), "{}", told[0]);
}

#[test]
fn from_others_a_header_is_no_more_than_a_bad_request() {
    let server = serve(builder().proxy_protocol_from("192.0.2.0/24"), listener());
    let mut client = Client::connect(addr(&server));
    client.send([V1, GET].concat());
    let answer = client.answer();
    assert_eq!((answer.status, answer.closes()), (400, true));
    let mut client = Client::connect(addr(&server));
    client.send(GET);
    assert!(client.answer().text().ends_with(" None"));
    assert_balanced(&stop(&server).unwrap());
}

#[test]
fn the_states_of_a_connection_tell_its_clients_address() {
    use ConnState::{Active, Closed, Handshaking, Idle, New};
    let events = Journal::new();
    let builder = proxied().on_conn_state(common::into_journal(&events));
    let server = serve(builder, listener());
    let mut client = Client::plain(addr(&server));
    events.wait_for_count(1);
    client.send_raw(V1);
    client.speak_tls();
    client.send(GET);
    client.answer();
    let proxy = client.name();
    drop(client);
    wait_for_report(&server, |report| report.conns_open == 0);
    stop(&server).unwrap();
    let events = events.all();
    let states: Vec<_> = events.iter().map(|event| event.state).collect();
    assert_eq!(states, [Handshaking, New, Active, Idle, Closed]);
    assert_eq!(events[0].peer.to_string(), proxy);
    assert!(
        events[1..]
            .iter()
            .all(|event| event.peer.to_string() == "192.0.2.1:4660")
    );
}

#[test]
fn a_limit_for_clients_is_for_those_behind_the_proxy() {
    let server = serve(
        proxied().max_client_conns(1.try_into().unwrap()),
        listener(),
    );
    let connect = |header: &str| {
        let mut client = Client::plain(addr(&server));
        client.send_raw(header);
        client
    };
    let ask = |mut client: Client| {
        client.speak_tls();
        client.send(GET);
        assert_eq!(client.answer().status, 200);
        client
    };
    let one = ask(connect(V1));
    let other = ask(connect(&V1.replace("192.0.2.1", "192.0.2.2")));
    let mut refused = connect(V1);
    if common::tls::is_everywhere() {
        refused.assert_ended();
    } else {
        assert_eq!(refused.answer().status, 503);
    }
    drop(one);
    wait_for_report(&server, |report| report.conns_open == 1);
    drop((ask(connect(V1)), other));
    assert_balanced(&stop(&server).unwrap());
}

/// A stop waits for a header that has begun, and treats a connection whose header has come as new.
#[test]
fn a_stop_loses_no_connection_whose_header_has_begun() {
    // So long that a connection which is closed for it would fail the test.
    let server = serve(proxied().idle_grace(LONG), listener());
    let connect = |bytes: &[u8]| {
        let mut client = Client::plain(addr(&server));
        client.send_raw(bytes);
        client
    };
    let v1 = V1.as_bytes();
    let begun = [
        connect(&v1[..1]),
        connect(&V2[..4]),
        connect(&V2[..20]),
        connect(b""),
    ];
    let new = connect(v1);
    let pending = if common::tls::is_everywhere() { 5 } else { 4 };
    wait_for_report(&server, |report| {
        report.conns_handshaking == pending && report.connections == 5
    });
    let stopping = stop_elsewhere(&server);
    wait_for_phase(&server, Phase::Draining);
    let rest = [&v1[1..], &V2[4..], &V2[20..], V2, b""];
    for (mut client, rest) in begun.into_iter().chain([new]).zip(rest) {
        client.send_raw(rest);
        client.speak_tls();
        client.send(GET);
        let answer = client.answer();
        assert!(answer.text().starts_with("192.0.2.1:4660 "), "{answer:?}");
        assert!(answer.closes());
    }
    let report = stopping.join().unwrap().unwrap();
    assert_balanced(&report);
    assert_eq!((report.served, report.conns_closed), (5, 5), "{report:?}");
}

#[test]
fn a_stop_does_not_wait_for_those_who_say_nothing() {
    let server = serve(proxied(), listener());
    let silent = Client::plain(addr(&server));
    let mut new = Client::plain(addr(&server));
    new.send_raw(V1);
    let pending = if common::tls::is_everywhere() { 2 } else { 1 };
    wait_for_report(&server, |report| {
        report.connections == 2 && report.conns_handshaking == pending
    });
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!(report.closed_idle, 2, "{report:?}");
    silent.assert_ended();
    new.assert_ended();
}

#[test]
fn a_kill_waits_for_no_header() {
    let server = serve(proxied(), listener());
    let mut client = Client::plain(addr(&server));
    client.send_raw(&V2[..14]);
    wait_for_report(&server, |report| report.conns_handshaking == 1);
    server.kill_begin();
    let _ = common::wait(&server);
    let report = server.report();
    assert_balanced(&report);
    client.assert_ended();
}

#[test]
fn lists_that_make_no_sense_are_refused() {
    for (builder, name) in [
        (
            builder().proxy_protocol_from("here"),
            "proxy_protocol_from: ",
        ),
        (builder().trusted_proxies(""), "trusted_proxies: "),
        (
            builder().trusted_proxies("::1").forwarded_by("x"),
            "forwarded_by is ",
        ),
        (
            builder().forwarded_by("forwarded"),
            "forwarded_by has nobody",
        ),
    ] {
        match builder.handle(tcp_listener(), Dispatch::Inline, |_| {}) {
            Err(Error::InvalidArgument(why)) => assert!(why.starts_with(name), "{why}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_trusted_proxy_says_who_has_sent_a_request() {
    let text =
        |client: &httpdown::Client| format!("{} {} {:?}", client.addr, client.scheme, client.host);
    let trusting = || builder().trusted_proxies(ALL).conn_info(true);
    let handler = move |exchange: Exchange| {
        let text = text(&exchange.client());
        let _ = reply(exchange, text);
    };
    let service = service_fn(move |request: Request<Body>| async move {
        let conn = request.extensions().get::<ConnInfo>().unwrap();
        let text = text(&conn.client(request.headers()));
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
    });
    let mut servers = Vec::from(each_way(trusting, handler));
    servers.push(trusting().serve(listener(), service).unwrap());
    for server in servers {
        let mut client = Client::connect(addr(&server));
        let scheme = if common::tls::is_everywhere() {
            "https"
        } else {
            "http"
        };
        client.send(GET);
        let expected = format!("{} {scheme} some(\"a\")", client.name());
        assert_eq!(
            client.answer().text().to_lowercase(),
            expected.to_lowercase()
        );
        client.send(
            "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.1.1.1, 192.0.2.1\r\n\
             X-Forwarded-Proto: https\r\nX-Forwarded-Host: b:8443\r\n\r\n",
        );
        assert_eq!(client.answer().text(), "192.0.2.1 https Some(\"b:8443\")");
        assert_balanced(&stop(&server).unwrap());
    }
}

/// The proxy that has connected says by its header who has connected to it: another proxy, which sets fields.
#[test]
fn both_together() {
    let handler = |exchange: Exchange| {
        let text = format!("{} {}", exchange.client().addr, exchange.conn().peer);
        let _ = reply(exchange, text);
    };
    let builder = || {
        proxied()
            .trusted_proxies("192.0.2.0/24")
            .forwarded_by("forwarded")
    };
    for server in each_way(builder, handler) {
        let mut client = Client::plain(addr(&server));
        client.send_raw(V1);
        client.speak_tls();
        client.send("GET / HTTP/1.1\r\nHost: a\r\nForwarded: for=\"[2001:db8::1]:7\"\r\n\r\n");
        assert_eq!(client.answer().text(), "[2001:db8::1]:7 192.0.2.1:4660");
        // The address of the socket is not trusted, as far as fields go.
        let mut client = Client::plain(addr(&server));
        client.send_raw(LOCAL);
        client.speak_tls();
        client.send("GET / HTTP/1.1\r\nHost: a\r\nForwarded: for=1.1.1.1\r\n\r\n");
        let peer = client.name();
        assert_eq!(client.answer().text(), format!("{peer} {peer}"));
        assert_balanced(&stop(&server).unwrap());
    }
}
