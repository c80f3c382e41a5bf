//! Requests that RFC 9112 does not allow, and answers that RFC 9110 does not allow: on a socket, however requests are
//! answered.
#![allow(clippy::unwrap_used, reason = "a test that fails panics")]

mod common;

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use common::{
    Client, Journal, Unsized, addr, assert_balanced, builder, each_way, hello, listener, reply,
    stop,
};
use http::header::HOST;
use http::{Request, Response, Version};
use http_body_util::Full;
use httpdown::{Body, Exchange, Server};
use hyper::service::service_fn;

/// The same, however requests are answered: with the `Host` of the request.
fn servers() -> Vec<Server> {
    let handler = |exchange: Exchange| {
        let host = exchange.headers().get(HOST);
        let host = host.map_or(Bytes::new(), |host| Bytes::copy_from_slice(host.as_bytes()));
        let _ = reply(exchange, host);
    };
    let service = service_fn(|request: Request<Body>| async move {
        let host = request.headers().get(HOST);
        let host = host.map_or(Bytes::new(), |host| Bytes::copy_from_slice(host.as_bytes()));
        Ok::<_, Infallible>(Response::new(Full::new(host)))
    });
    let mut servers = Vec::from(each_way(builder, handler));
    servers.push(
        builder()
            .ready_path("/ready")
            .serve(listener(), service)
            .unwrap(),
    );
    servers
}

/// Heads without their last line, and the answer's status: `200` if the request is as it should be.
const HEADS: &[(&[u8], u16)] = &[
    // Host: once, and a host with or without a port.
    (b"GET / HTTP/1.1\r\n", 400),
    (b"GET /ready HTTP/1.1\r\n", 400),
    (b"GET / HTTP/1.1\r\nX-Host: a\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\nx: y\r\nhost: b\r\n", 400),
    (b"GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a, b\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a,b\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a b\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: me@a\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: http://a\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a/\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a/b\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a?b\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a#b\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\\b\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\"b\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\tb\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a:b\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a:-1\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a:+1\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a:1:2\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a::1\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a:65536\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a:99999999999999999999\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a%zz\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a%4\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: ::1\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: [::1\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: ::1]\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: [\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: []\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: [1]\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: [::1]a\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: [::1]:x\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a[::1]\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: [fe80::1%25eth0]\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: [v1.]\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: [v.a]\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: \xc3\xa4\r\n", 400),
    (b"GET / HTTP/1.0\r\nHost: \xff\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\n", 200),
    (b"GET / HTTP/1.1\r\nHost:\r\n", 200),
    (b"GET / HTTP/1.1\r\nHost: \t a \t\r\n", 200),
    (b"GET / HTTP/1.1\r\nHost: my_host.a-b.example.\r\n", 200),
    (b"GET / HTTP/1.1\r\nHost: xn--4ca%C3%A4~!$&'()*+;=\r\n", 200),
    (b"GET / HTTP/1.1\r\nHost: 127.0.0.1:65535\r\n", 200),
    (b"GET / HTTP/1.1\r\nHost: a:\r\n", 200),
    (b"GET / HTTP/1.1\r\nHost: a:00080\r\n", 200),
    (b"GET / HTTP/1.1\r\nHost: [::1]\r\n", 200),
    (b"GET / HTTP/1.1\r\nHost: [2001:DB8::192.0.2.1]:80\r\n", 200),
    (b"GET / HTTP/1.1\r\nHost: [v1.a:b]\r\n", 200),
    (b"GET / HTTP/1.0\r\n", 200),
    // The forms of a target, and what may stand in it.
    (b"GET * HTTP/1.1\r\nHost: a\r\n", 400),
    (b"CONNECT * HTTP/1.1\r\nHost: a\r\n", 400),
    (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n", 200),
    (b"GET a:80 HTTP/1.1\r\nHost: a\r\n", 400),
    (b"GET a HTTP/1.0\r\n", 400),
    (b"OPTIONS a:80 HTTP/1.1\r\nHost: a\r\n", 400),
    (b"CONNECT / HTTP/1.1\r\nHost: a\r\n", 400),
    (b"CONNECT a HTTP/1.1\r\nHost: a\r\n", 400),
    (b"CONNECT a: HTTP/1.1\r\nHost: a\r\n", 400),
    (b"CONNECT :80 HTTP/1.1\r\nHost: a\r\n", 400),
    (b"CONNECT a:b HTTP/1.1\r\nHost: a\r\n", 400),
    (b"CONNECT me@a:80 HTTP/1.1\r\nHost: a\r\n", 400),
    (b"CONNECT http://a:80/ HTTP/1.1\r\nHost: a\r\n", 400),
    (b"GET http://me@a/ HTTP/1.1\r\nHost: a\r\n", 400),
    (b"GET http://me:x@a/ HTTP/1.0\r\n", 400),
    (b"GET http://:80/ HTTP/1.1\r\nHost: a\r\n", 400),
    (b"GET http://a:b/ HTTP/1.1\r\nHost: a\r\n", 400),
    (b"GET http://a/ HTTP/1.1\r\n", 400),
    (b"GET http://a/ HTTP/1.1\r\nHost: b@\r\n", 400),
    (b"GET http://a HTTP/1.1\r\nHost: a\r\n", 200),
    (b"GET /\" HTTP/1.1\r\nHost: a\r\n", 400),
    (b"GET /?\" HTTP/1.1\r\nHost: a\r\n", 400),
    (b"GET /\xc3\xa4 HTTP/1.1\r\nHost: a\r\n", 400),
    (b"GET /\xff HTTP/1.1\r\nHost: a\r\n", 400),
    (b"GET /?\xc3\xa4 HTTP/1.0\r\n", 400),
    (b"GET /# HTTP/1.1\r\nHost: a\r\n", 400),
    (b"GET /a?b#c HTTP/1.1\r\nHost: a\r\n", 400),
    (b"GET http://a/#c HTTP/1.1\r\nHost: a\r\n", 400),
    (b"GET http://a#c HTTP/1.0\r\n", 400),
    (b"OPTIONS *#c HTTP/1.1\r\nHost: a\r\n", 400),
    (b"X#Y / HTTP/1.1\r\nHost: a\r\n", 200),
    (b"GET /%23%22%ff?[]|{} HTTP/1.1\r\nHost: a\r\nx: #\"\xe4\r\n", 200),
    // Expectations: only one is known.
    (b"GET / HTTP/1.1\r\nHost: a\r\nExpect: x\r\n", 417),
    (b"GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue, x\r\n", 417),
    (b"GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\n", 200),
    (b"GET / HTTP/1.1\r\nHost: a\r\nExpect:\r\n", 200),
    (b"GET / HTTP/1.0\r\nExpect: x\r\n", 200),
    // Codings: one, and that is `chunked`.
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n", 501),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", 501),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n", 501),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 501),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity, chunked\r\n", 501),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: , chunked\r\n", 501),
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: gzip, chunked\r\n", 501),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: ChunkeD\r\n", 200),
];

#[test]
fn what_is_no_request_is_refused_and_ends_the_connection() {
    for server in servers() {
        let mut accepted = 0;
        for (head, status) in HEADS {
            let text = head.escape_ascii();
            // What follows is not another request: neither read as one, nor answered.
            let body: &[u8] = if head.starts_with(b"POST") {
                b"0\r\n\r\n"
            } else {
                b""
            };
            let next = b"GET /next HTTP/1.1\r\nHost: next\r\n\r\n";
            let mut client = Client::connect(addr(&server));
            client.send([*head, b"\r\n", body, next].concat());
            let answer = client.answer();
            assert_eq!(answer.status, *status, "{text}");
            if *status != 200 {
                assert!(
                    answer.closes() || head.ends_with(b"1.0\r\n"),
                    "{text}: {answer:?}"
                );
                client.assert_closed();
                continue;
            }
            accepted += 1;
            if !head.windows(3).any(|bytes| bytes == b"1.0") {
                accepted += 1;
                assert_eq!(client.answer().text(), "next", "{text}");
            }
        }
        let report = stop(&server).unwrap();
        assert_balanced(&report);
        assert_eq!((report.requests, report.served), (accepted, accepted));
        assert_eq!((report.raced, report.conns_gone), (0, 0), "{report:?}");
    }
}

/// As above, but byte by byte, and behind a request that is answered.
#[test]
fn however_its_bytes_come() {
    let server = servers().remove(0);
    for target in ["/a#b", "/\"", "/ä", "http://a/#"] {
        let head = format!("\r\nGET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        let mut client = Client::connect(addr(&server));
        client.send("X#Y / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.answer().text(), "a");
        for byte in head.as_bytes() {
            client.send([*byte]);
        }
        assert_eq!(client.answer().status, 400, "{target}");
        client.assert_closed();
        let mut client = Client::connect(addr(&server));
        client.send(["GET / HTTP/1.1\r\nHost: b\r\n\r\n", &head].concat());
        assert_eq!(client.answer().text(), "b");
        assert_eq!(client.answer().status, 400, "{target}");
        client.assert_closed();
    }
    assert_balanced(&stop(&server).unwrap());
}

/// The body of a refused request does not become a request, whether it has come or comes yet.
#[test]
fn nothing_behind_a_refused_head_is_a_request() {
    let hidden = "GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n";
    for server in servers() {
        for head in [
            format!(
                "POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n",
                hidden.len()
            ),
            "POST / HTTP/1.1\r\nContent-Length: 99999\r\n\r\n".to_owned(),
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n".to_owned(),
        ] {
            for together in [true, false] {
                let mut client = Client::connect(addr(&server));
                if together {
                    client.send([head.as_str(), hidden].concat());
                } else {
                    client.send(&head);
                }
                assert!(client.try_head().unwrap().closes(), "{head}");
                let _ = client.try_send(hidden);
                client.assert_closed();
            }
        }
        let report = stop(&server).unwrap();
        assert_balanced(&report);
        assert_eq!((report.requests, report.raced), (0, 0), "{report:?}");
    }
}

#[test]
fn the_target_says_the_host_if_it_is_absolute() {
    for server in servers() {
        for (request, host) in [
            ("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", "b"),
            (
                "GET http://b:8080/x?y HTTP/1.1\r\nx: y\r\nHost: a:80\r\n\r\n",
                "b:8080",
            ),
            ("GET http://[::1]:1/ HTTP/1.1\r\nHost: \r\n\r\n", "[::1]:1"),
            (
                "GET http://b/ HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
                "b",
            ),
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "a"),
        ] {
            let mut client = Client::connect(addr(&server));
            client.send(request);
            assert_eq!(client.answer().text(), host, "{request}");
        }
        assert_balanced(&stop(&server).unwrap());
    }
}

#[test]
fn a_head_that_comes_too_late_is_answered() {
    let builder = builder().header_timeout(Duration::from_millis(50));
    let server = hello(builder.idle_timeout(Duration::from_millis(200)), listener());
    for head in [
        "G",
        "GET / HTTP/1.1\r\nHost: a\r\n",
        "\r\nGET / HTTP/1.1\r\nx",
    ] {
        for before in ["", "GET / HTTP/1.1\r\nHost: a\r\n\r\n"] {
            let mut client = Client::connect(addr(&server));
            client.send([before, head].concat());
            if !before.is_empty() {
                assert_eq!(client.answer().text(), "hello");
            }
            let answer = client.answer();
            assert_eq!((answer.status, answer.closes()), (408, true));
            assert!(
                answer
                    .header("date")
                    .is_some_and(|date| date.ends_with(" gmt"))
            );
            client.assert_closed();
        }
    }
    // Who has sent nothing that could be a request is not answered.
    for bytes in ["", "\r\n", "\r", "GET / HTTP/1.1\r\nHost: a\r\n\r\n\r\n"] {
        let mut client = Client::connect(addr(&server));
        client.send(bytes);
        if bytes.len() > 2 {
            assert_eq!(client.answer().text(), "hello");
        }
        client.assert_closed();
    }
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.served, report.conns_timed_out), (4, 6));
}

/// What the handler says of an answer that has no content, or must not have any.
const EMPTY: &[(&str, u16, &str, Option<&str>)] = &[
    // Method, status, content; the Content-Length that the client sees.
    ("GET", 204, "", None),
    ("GET", 204, "hello", None),
    ("HEAD", 204, "", None),
    ("HEAD", 204, "hello", None),
    ("GET", 205, "", Some("0")),
    ("GET", 205, "hello", Some("0")),
    ("GET", 304, "", Some("5")),
    ("HEAD", 200, "", Some("5")),
];

/// Each answer is ended where the client expects its end: else the next one would not be found.
#[test]
fn an_answer_without_content_has_none_and_does_not_say_so() {
    let next = "GET /200/?hello HTTP/1.1\r\nHost: a\r\n\r\n";
    for (way, server) in answering().into_iter().enumerate() {
        for (method, status, content, length) in EMPTY {
            for says in ["", "length", "pieces", "length,pieces"] {
                // A Content-Length that is wrong is refused, or the handler's own business.
                let is_wrong = says.contains("length") && content.len() != 5;
                let is_right = ["HEAD", "GET304"].concat().contains(method) && *status != 204;
                if is_wrong && !(is_right && (says.contains("pieces") || *method == "HEAD")) {
                    continue;
                }
                let text = format!("way {way}: {method} {status} {content:?}, {says}");
                let mut client = Client::connect(addr(&server));
                let request =
                    format!("{method} /{status}/{says}?{content} HTTP/1.1\r\nHost: a\r\n\r\n");
                client.send([request.as_str(), next].concat());
                let answer = client.try_head().unwrap();
                assert_eq!(answer.status, *status, "{text}: {answer:?}");
                let said = answer.header("content-length");
                if says.contains("length") || *status < 300 && *method == "GET" {
                    assert_eq!(said, *length, "{text}: {answer:?}");
                }
                if *status == 204 {
                    assert_eq!(answer.header("transfer-encoding"), None, "{text}");
                }
                assert_eq!(client.answer().text(), "hello", "{text}");
            }
        }
        assert_balanced(&stop(&server).unwrap());
    }
}

/// `/status/how?content`: answers with that; "length" says that the content is 5 bytes.
fn answering() -> Vec<Server> {
    let of = |path: &str| {
        let (status, how) = path[1..].split_once('/').unwrap();
        let mut head = Response::builder().status(status.parse::<u16>().unwrap());
        if how.contains("length") {
            head = head.header("content-length", "5");
        }
        (head.body(()).unwrap(), how.contains("pieces"))
    };
    let handler = move |mut exchange: Exchange| {
        let (head, in_pieces) = of(exchange.uri().path());
        let content = exchange.uri().query().unwrap_or_default().to_owned();
        if in_pieces {
            exchange.start(head).unwrap();
            let _ = exchange.write(content.as_bytes());
            let _ = exchange.finish();
        } else {
            exchange.reply(head.map(|()| content.into())).unwrap();
        }
    };
    let service = service_fn(move |request: Request<Body>| async move {
        let (head, in_pieces) = of(request.uri().path());
        let content = request.uri().query().unwrap_or_default().to_owned();
        let body = Full::new(Bytes::from(content));
        let body = if in_pieces {
            http_body_util::Either::Left(Unsized(body))
        } else {
            http_body_util::Either::Right(body)
        };
        let mut response = head.map(|()| body);
        // Whatever a service says of its version.
        *response.version_mut() = Version::HTTP_3;
        Ok::<_, Infallible>(response)
    });
    let mut servers = Vec::from(each_way(builder, handler));
    servers.push(builder().serve(listener(), service).unwrap());
    servers
}

/// The writer of an answer that has no content is told so, as for 204.
#[test]
fn nothing_can_be_written_for_205() {
    let told = Journal::new();
    let journal = told.clone();
    let handler = move |mut exchange: Exchange| {
        let head = Response::builder().status(205).body(()).unwrap();
        exchange.start(head).unwrap();
        journal.write(format!("{:?}", exchange.write(b"hello")));
        journal.write(format!("{:?}", exchange.finish()));
    };
    for server in each_way(builder, handler) {
        let mut client = Client::get(addr(&server), "/");
        let answer = client.answer();
        assert_eq!(
            (answer.status, answer.header("content-length")),
            (205, Some("0"))
        );
        assert_balanced(&stop(&server).unwrap());
    }
    assert_eq!(told.all(), ["Err(AlreadyReplied)", "Ok(())"].repeat(3));
}
