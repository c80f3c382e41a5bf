//! Bodies of requests: what is there to be read, and when it is asked for.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::similar_names,
    reason = "a helper that fails fails its test; and what was heard hears"
)]

mod common;

use std::convert::Infallible;
use std::sync::{Arc, Barrier};
use std::thread;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use httpdown::{Dispatch, Error, Exchange, Server};
use hyper::body::Incoming;
use hyper::service::service_fn;

use common::{Client, Journal, addr, assert_balanced, builder, listener, reply, stop};

fn in_place(handler: impl Fn(Exchange) + Send + Sync + 'static) -> Server {
    let dispatch = Dispatch::Inline;
    builder().handle(listener(), dispatch, handler).unwrap()
}

fn head(fields: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: test\r\n{fields}\r\n\r\n")
}

/// A client that waits for a 100 before it sends its body.
fn waits(length: usize) -> String {
    head(&format!("Content-Length: {length}\r\nExpect: 100-continue"))
}

/// Answers with what can be read, and says how that ended.
fn echo_what_is_there(mut exchange: Exchange) {
    let mut body = Vec::new();
    let end = loop {
        match exchange.read_bytes(usize::MAX) {
            Ok(data) if data.is_empty() => break "all",
            Ok(data) => body.extend_from_slice(&data),
            Err(Error::WouldBlock) => break "more",
            Err(_) => break "error",
        }
    };
    let body = String::from_utf8(body).unwrap();
    reply(exchange, format!("{end}: {body}")).unwrap();
}

#[test]
fn in_place_what_has_been_received_can_be_read() {
    let server = in_place(echo_what_is_there);
    for (request, expected) in [
        (head("Content-Length: 5") + "hello", "all: hello"),
        (
            head("Transfer-Encoding: chunked") + "5\r\nhello\r\n0\r\n\r\n",
            "all: hello",
        ),
        (
            head("Transfer-Encoding: chunked") + "3\r\nhel\r\n2\r\nlo\r\n0\r\nX: y\r\n\r\n",
            "all: hello",
        ),
        (head("Content-Length: 0"), "all: "),
        (head("Content-Length: 10") + "half", "more: half"),
        (
            head("Transfer-Encoding: chunked") + "5\r\nhello\r\n5\r\nha",
            "more: helloha",
        ),
        (head("Content-Length: 10"), "more: "),
        // Whoever waits to be asked has sent nothing.
        (waits(10), "more: "),
    ] {
        for _ in 0..10 {
            let mut client = Client::connect(addr(&server));
            client.send(&request);
            let answer = client.answer();
            if answer.status == 100 {
                assert!(request.contains("Expect"), "{request}");
                assert_eq!(client.answer().text(), expected, "{request}");
            } else {
                assert_eq!(answer.text(), expected, "{request}");
            }
        }
    }
    assert_balanced(&stop(&server).unwrap());
}

#[test]
fn in_place_a_long_body_is_there_in_part() {
    let server = in_place(echo_what_is_there);
    let mut client = Client::connect(addr(&server));
    client.send(head("Content-Length: 1000000"));
    let _ = client.try_send(vec![b'x'; 1_000_000]);
    let answer = client.answer();
    let part = answer.text().strip_prefix("more: ").unwrap();
    // The most that is taken in advance, and what one look at the socket brings.
    assert!(part.len() < 1_000_000, "{}", part.len());
    assert_balanced(&stop(&server).unwrap());
}

#[test]
fn in_place_the_rest_can_be_read_elsewhere() {
    let server = in_place(|mut exchange: Exchange| {
        let first = exchange.read_bytes(2).unwrap();
        thread::spawn(move || {
            let rest = exchange.read_to_end(100).unwrap();
            reply(exchange, [&first[..], &rest[..]].concat()).unwrap();
        });
    });
    let mut client = Client::connect(addr(&server));
    client.send(head("Content-Length: 10") + "hello");
    client.send("world");
    assert_eq!(client.answer().text(), "helloworld");
    assert_balanced(&stop(&server).unwrap());
}

#[test]
fn a_request_that_is_lost_before_its_handler_is_called_is_not_blamed_on_it() {
    let lines = Journal::new();
    let written = lines.clone();
    let server = builder()
        .on_log(move |_, text: &str| written.write(text.to_owned()))
        .handle(listener(), Dispatch::Inline, echo_what_is_there)
        .unwrap();
    for _ in 0..50 {
        let mut client = Client::connect(addr(&server));
        client.send(head("Transfer-Encoding: chunked") + "5\r\nhello\r\n");
        client.reset();
    }
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!(report.failed, 0, "{report:?}");
    let blames = |line: &String| line.contains("did not answer");
    assert!(!lines.all().iter().any(blames), "{:?}", lines.all());
}

/// Asks as one who waits for a 100, and sends its body when that has come; `heard` then lets the handler go on.
fn assert_is_asked_for_first(server: &Server, heard: &dyn Fn()) {
    for _ in 0..50 {
        let mut client = Client::connect(addr(server));
        client.send(waits(5));
        assert_eq!(client.try_head().unwrap().status, 100);
        heard();
        client.send("hello");
        let mut answer = client.try_head().unwrap();
        while answer.status == 100 {
            answer = client.try_head().unwrap(); // Asked twice is no harm.
        }
        assert_eq!(answer.status, 200);
        assert_eq!(client.try_body(&answer).unwrap(), b"hello");
    }
    assert_balanced(&stop(server).unwrap());
}

/// Begins its answer, and reads when the client has heard of that, or been asked. What that waits for is the second.
fn begins_then_reads() -> (impl Fn(Exchange) + Clone + Send + Sync + 'static, impl Fn()) {
    let heard = Arc::new(Barrier::new(2));
    let hears = Arc::clone(&heard);
    let handler = move |mut exchange: Exchange| {
        exchange.start(Response::new(())).unwrap();
        heard.wait();
        let body = exchange.read_to_end(100).unwrap();
        exchange.write_bytes(body).unwrap();
        exchange.finish().unwrap();
    };
    (handler, move || {
        hears.wait();
    })
}

#[test]
fn a_body_is_asked_for_before_an_answer_that_begins_first() {
    let (handler, heard) = begins_then_reads();
    let dispatch = Dispatch::default();
    let server = builder().handle(listener(), dispatch, handler).unwrap();
    assert_is_asked_for_first(&server, &heard);
}

#[test]
fn a_body_is_asked_for_before_an_answer_that_begins_in_place() {
    let heard = Arc::new(Barrier::new(2));
    let hears = Arc::clone(&heard);
    let server = in_place(move |mut exchange: Exchange| {
        exchange.start(Response::new(())).unwrap();
        let heard = Arc::clone(&heard);
        thread::spawn(move || {
            heard.wait();
            let body = exchange.read_to_end(100).unwrap();
            exchange.write_bytes(body).unwrap();
            exchange.finish().unwrap();
        });
    });
    assert_is_asked_for_first(&server, &|| {
        hears.wait();
    });
}

#[test]
fn a_body_is_asked_for_before_an_answer_from_the_queue() {
    let (handler, heard) = begins_then_reads();
    let (server, queue) = builder().queue(listener()).unwrap();
    let takes = thread::spawn(move || {
        while let Ok(taken) = queue.take(16, None) {
            taken.into_iter().for_each(&handler);
        }
    });
    assert_is_asked_for_first(&server, &heard);
    takes.join().unwrap();
}

#[test]
fn a_body_is_asked_for_before_an_answer_of_a_service_that_is_made_of_it() {
    let service = service_fn(|request: Request<Incoming>| async move {
        Ok::<_, Infallible>(Response::new(request.into_body()))
    });
    let server = builder().serve(listener(), service).unwrap();
    assert_is_asked_for_first(&server, &|| ());
}

#[test]
fn a_body_that_nobody_wants_is_not_asked_for() {
    let refused = || {
        let mut response = Response::new(Bytes::from_static(b"no"));
        *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
        response
    };
    let handler = move |exchange: Exchange| exchange.reply(refused()).unwrap();
    let service = service_fn(move |_: Request<Incoming>| async move {
        Ok::<_, Infallible>(refused().map(Full::new))
    });
    for server in [
        builder()
            .handle(listener(), Dispatch::default(), handler)
            .unwrap(),
        in_place(handler),
        builder().serve(listener(), service).unwrap(),
    ] {
        let mut client = Client::connect(addr(&server));
        client.send(waits(10));
        let answer = client.answer();
        assert_eq!((answer.status, answer.text()), (413, "no"));
        assert!(answer.closes());
        client.assert_ended();
        assert_balanced(&stop(&server).unwrap());
    }
}
