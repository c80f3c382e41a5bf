//! Bodies of requests that nobody reads, or not to their end: behind an answer that does not say that its connection
//! ends, it goes on.
#![allow(clippy::unwrap_used, reason = "a test that fails panics")]

mod common;

use std::convert::Infallible;
use std::sync::{Arc, Mutex, mpsc};

use bytes::Bytes;
use common::{Client, Unsized, addr, assert_balanced, builder, each_way, listener, stop};
use http::{Request, Response};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use httpdown::{Body, Exchange, Server};
use hyper::service::service_fn;

/// What handlers do with a body, as the target says.
const WAYS: [&str; 6] = [
    "/drop",
    "/first",
    "/half",
    "/begin",
    "/begin-first",
    "/keep",
];

/// Reads about so much of the body, if there is as much.
fn read(exchange: &mut Exchange, mut left: usize) {
    let mut buf = [0; 4096];
    while left > 0 {
        let room = left.min(buf.len());
        match exchange.read(&mut buf[..room]) {
            Ok(count @ 1..) => left -= count,
            // There is no more, or, in place, not yet.
            _ => break,
        }
    }
}

fn answer(mut exchange: Exchange) {
    let length: usize = exchange.uri().query().unwrap_or("0").parse().unwrap();
    match exchange.uri().path() {
        "/first" | "/begin-first" => read(&mut exchange, 1),
        "/half" => read(&mut exchange, length / 2),
        _ => {}
    }
    if exchange.uri().path().starts_with("/begin") {
        exchange.start(Response::new(())).unwrap();
        let _ = exchange.write(b"hello");
        let _ = exchange.finish();
    } else {
        let _ = exchange.reply(Response::new("hello".into()));
    }
}

async fn serve(
    request: Request<Body>,
) -> Result<Response<UnsyncBoxBody<Bytes, Infallible>>, Infallible> {
    let hello = Full::new(Bytes::from_static(b"hello"));
    let (head, mut body) = request.into_parts();
    let length: usize = head.uri.query().unwrap_or("0").parse().unwrap();
    let mut left = match head.uri.path() {
        "/first" | "/begin-first" => 1,
        "/half" => length / 2,
        _ => 0,
    };
    while left > 0 {
        match body.frame().await {
            Some(Ok(frame)) => left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len)),
            _ => break,
        }
    }
    Ok(Response::new(match head.uri.path() {
        // It may yet be read until the answer is complete.
        "/begin" | "/begin-first" => Unsized(hello)
            .map_frame(move |frame| {
                let _ = body.size_hint();
                frame
            })
            .boxed_unsync(),
        "/keep" => {
            // Or even longer.
            tokio::spawn(async move {
                tokio::task::yield_now().await;
                drop(body);
            });
            hello.boxed_unsync()
        }
        _ => hello.boxed_unsync(),
    }))
}

fn servers() -> Vec<Server> {
    let mut servers = Vec::from(each_way(builder, answer));
    servers.push(builder().serve(listener(), service_fn(serve)).unwrap());
    servers
}

type Confirmed = Arc<Mutex<mpsc::Receiver<()>>>;

/// Servers like [`servers`], which begin with each request only when that is confirmed.
fn behind_a_gate() -> (Vec<Server>, mpsc::Sender<()>, Confirmed) {
    let (confirm, confirmed) = mpsc::channel();
    let confirmed = Arc::new(Mutex::new(confirmed));
    let gate = {
        let confirmed = Arc::clone(&confirmed);
        move || confirmed.lock().unwrap().recv().unwrap()
    };
    let handler = {
        let gate = gate.clone();
        move |exchange: Exchange| {
            gate();
            answer(exchange);
        }
    };
    let mut servers = Vec::from(each_way(builder, handler));
    let service = service_fn(move |request| {
        gate();
        serve(request)
    });
    servers.push(builder().serve(listener(), service).unwrap());
    (servers, confirm, confirmed)
}

/// Which of [`servers`] has no handler.
const SERVICE: usize = 3;

/// Where a service keeps the body for longer than it takes to answer.
const KEEP: [&str; 3] = ["/begin", "/begin-first", "/keep"];

fn chunked(length: usize, size: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for chunk in vec![b'a'; length].chunks(size) {
        bytes.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
        bytes.extend(chunk);
        bytes.extend(b"\r\n");
    }
    bytes.extend(b"0\r\n\r\n");
    bytes
}

/// A request for that: its head, and its body.
fn request(target: &str, length: usize, chunk: Option<usize>) -> (String, Vec<u8>) {
    let (field, body) = match chunk {
        None => (format!("Content-Length: {length}"), vec![b'a'; length]),
        Some(size) => (
            "Transfer-Encoding: chunked".to_owned(),
            chunked(length, size),
        ),
    };
    let head = format!("POST {target}?{length} HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n");
    (head, body)
}

/// As [`request`], in chunks, with a length that does not count: its connection must end (RFC 9112, 6.1).
fn request_of_two_lengths(target: &str, length: usize, size: usize) -> (String, Vec<u8>) {
    let (head, body) = request(target, length, Some(size));
    let head = head.replace("\r\n\r\n", "\r\nContent-Length: 5\r\n\r\n");
    (head, body)
}

const NEXT: &str = "GET /drop HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn no_connection_ends_behind_an_answer_that_did_not_say_so() {
    for (number, server) in servers().into_iter().enumerate() {
        for way in WAYS {
            for (length, chunk) in [
                (1, None),
                (20_000, None),
                (300_000, None),
                (1, Some(1)),
                (100, Some(7)),
                (20_000, Some(1_000)),
                (300_000, Some(30_000)),
            ] {
                for at_first in [0, 1, 600, usize::MAX] {
                    let text =
                        format!("{number}: {way}, {length} in {chunk:?}, {at_first} at first");
                    let (head, body) = request(way, length, chunk);
                    let (now, later) = body.split_at(at_first.min(body.len()));
                    let mut client = Client::connect(addr(&server));
                    // Of the larger ones, the answer may be there before all has been sent.
                    let mut sends = client.socket().try_clone().map(Client::from).unwrap();
                    sends.send([head.as_bytes(), &now[..now.len().min(60_000)]].concat());
                    let is_read = matches!(way, "/first" | "/half" | "/begin-first");
                    let later = [&now[now.len().min(60_000)..], later].concat();
                    if is_read && number != 0 {
                        // Else the handler would wait for it.
                        let _ = sends.try_send(&later);
                    }
                    let answer = client.answer();
                    assert_eq!(answer.text(), "hello", "{text}");
                    if answer.closes() {
                        continue;
                    }
                    if !(is_read && number != 0) {
                        sends.send(&later);
                    }
                    sends.send(NEXT);
                    let next = client.try_answer();
                    assert!(
                        next.is_ok_and(|next| next.text() == "hello"),
                        "{text}: {answer:?}"
                    );
                }
            }
        }
        let report = stop(&server).unwrap();
        assert_balanced(&report);
        assert_eq!(report.raced, 0, "{report:?}");
    }
}

#[test]
fn a_connection_ends_behind_an_answer_that_has_said_so() {
    for (number, server) in servers().into_iter().enumerate() {
        for way in WAYS {
            for (head, body) in [
                request(way, 300_000, None),
                request(way, 100, Some(7)),
                request_of_two_lengths(way, 100, 7),
                request_of_two_lengths(way, 5, 5),
            ] {
                for later in [0, 1, 4, body.len()] {
                    let text = format!("{number}: {head:?}, {later} later");
                    let mut client = Client::connect(addr(&server));
                    let (now, later) = body.split_at(body.len() - later);
                    client.send([head.as_bytes(), now].concat());
                    let mut sends = client.socket().try_clone().map(Client::from).unwrap();
                    let is_read = matches!(way, "/first" | "/half" | "/begin-first");
                    if is_read && number != 0 {
                        // Else the handler would wait for it.
                        sends.send(later);
                    }
                    let answer = client.answer();
                    assert_eq!(answer.text(), "hello", "{text}");
                    if head.contains("Content-Length: 5") {
                        assert!(answer.closes(), "{text}");
                    }
                    if answer.closes() {
                        if !(is_read && number != 0) {
                            let _ = sends.try_send(later);
                        }
                        assert!(client.until_end().unwrap().is_empty(), "{text}");
                    }
                }
            }
        }
        assert_balanced(&stop(&server).unwrap());
    }
}

/// Also where it is long, and somebody might still have read it: a request behind it is not given up.
#[test]
fn a_request_behind_a_body_that_nobody_reads_is_answered() {
    let (servers, confirm, confirmed) = behind_a_gate();
    for (number, server) in servers.into_iter().enumerate() {
        for way in WAYS {
            for length in [1, 20_000, 90_000] {
                let text = format!("{number}: {way}, {length}");
                let (head, body) = request(way, length, None);
                let mut client = Client::connect(addr(&server));
                client.send([head.as_bytes(), &body, NEXT.as_bytes()].concat());
                for _ in 0..2 {
                    confirm.send(()).unwrap();
                }
                let first = client.answer();
                assert_eq!(first.text(), "hello", "{text}");
                if number == SERVICE && KEEP.contains(&way) && first.closes() {
                    // A service that keeps it may never read it.
                    confirmed.lock().unwrap().recv().unwrap();
                    continue;
                }
                assert!(!first.closes(), "{text}");
                assert_eq!(client.answer().text(), "hello", "{text}");
                client.send(NEXT);
                confirm.send(()).unwrap();
                assert_eq!(client.answer().text(), "hello", "{text}");
            }
        }
        let report = stop(&server).unwrap();
        assert_balanced(&report);
        assert!(number == SERVICE || report.raced == 0, "{report:?}");
    }
}

/// What is left of a short one may come later: it is no request.
#[test]
fn the_rest_of_a_short_body_may_come_behind_the_answer() {
    for (number, server) in servers().into_iter().enumerate() {
        let ways = ["/drop", "/begin"];
        let ways = if number == SERVICE { &ways[..1] } else { &ways };
        for way in ways {
            let text = format!("{number}: {way}");
            let (head, body) = request(way, 60_000, None);
            let mut client = Client::connect(addr(&server));
            client.send(head);
            let answer = client.answer();
            assert_eq!((answer.text(), answer.closes()), ("hello", false), "{text}");
            for piece in body.chunks(7_000) {
                client.send(piece);
            }
            client.send(NEXT);
            assert_eq!(client.answer().text(), "hello", "{text}");
        }
        let report = stop(&server).unwrap();
        assert_balanced(&report);
        let served = 2 * ways.len() as u64;
        assert_eq!((report.served, report.raced), (served, 0), "{report:?}");
    }
}

/// What is short and there is read for the handler; but not what is long.
#[test]
fn what_is_short_costs_no_connection() {
    let (servers, confirm, _) = behind_a_gate();
    for server in servers {
        for way in ["/drop", "/first", "/half"] {
            for (length, chunk, is_short) in [
                (1, None, true),
                (30_000, None, true),
                (5, Some(5), true),
                (100, Some(7), true),
                (30_000, Some(1_000), true),
                (200_000, None, false),
                (200_000, Some(50_000), false),
            ] {
                if !is_short && way != "/drop" {
                    continue;
                }
                let text = format!("{way}, {length} in {chunk:?}");
                let (head, body) = request(way, length, chunk);
                let mut client = Client::connect(addr(&server));
                if is_short {
                    client.send([head.as_bytes(), &body, NEXT.as_bytes()].concat());
                } else {
                    client.send(head);
                }
                // One for each request: in place, the first answer may wait for the second.
                for _ in 0..=u8::from(is_short) {
                    confirm.send(()).unwrap();
                }
                assert_eq!(client.answer().closes(), !is_short, "{text}");
                if is_short {
                    assert_eq!(client.answer().text(), "hello", "{text}");
                }
            }
        }
        assert_balanced(&stop(&server).unwrap());
    }
}

/// Who waits to be asked for the body is not asked for one that nobody wants.
#[test]
fn nobody_is_asked_to_continue_for_nobody() {
    for server in servers() {
        for way in ["/drop", "/begin", "/keep"] {
            let (head, _) = request(way, 5, None);
            let head = head.replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n");
            let mut client = Client::connect(addr(&server));
            client.send(head);
            let mut answer = client.answer();
            // Who might still have read it has it asked for.
            if way != "/drop" && answer.status == 100 {
                answer = client.answer();
            }
            assert_eq!((answer.status, answer.closes()), (200, true), "{way}");
        }
        assert_balanced(&stop(&server).unwrap());
    }
}

/// Its client has the whole answer before the handler lets go of the body: a next request would wait for the handler.
#[test]
fn an_answer_that_is_complete_before_its_handler_ends_it_is_the_last() {
    let (confirm, confirmed) = mpsc::channel();
    let confirmed = Arc::new(Mutex::new(confirmed));
    let handler = move |mut exchange: Exchange| {
        let mut answer = Response::new(());
        *answer.status_mut() = http::StatusCode::NO_CONTENT;
        exchange.start(answer).unwrap();
        // In place, the answer leaves only when the handler has returned: so it goes on elsewhere.
        let confirmed = Arc::clone(&confirmed);
        std::thread::spawn(move || {
            confirmed.lock().unwrap().recv().unwrap();
            let _ = exchange.finish();
        });
    };
    for server in each_way(builder, handler) {
        let (head, _) = request("/", 60_000, None);
        let mut client = Client::connect(addr(&server));
        client.send(head);
        let answer = client.answer();
        assert_eq!((answer.status, answer.closes()), (204, true));
        confirm.send(()).unwrap();
        drop(client);
        assert_balanced(&stop(&server).unwrap());
    }
}
