//! Requests that come before the answer to the one before them: their answers leave together where they can, and never
//! wait for anything but the processor.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a helper that fails fails its test"
)]

mod common;

use std::convert::Infallible;
use std::io::Read as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use bytes::Bytes;
use common::{
    Client, Gate, addr, assert_balanced, builder, each_way, listener, reply, stop, wait,
    wait_for_report,
};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use httpdown::{Body, Dispatch, Exchange, Server};
use hyper::service::service_fn;

fn serve(dispatch: Dispatch, handler: impl Fn(Exchange) + Send + Sync + 'static) -> Server {
    builder().handle(listener(), dispatch, handler).unwrap()
}

/// A server whose requests some threads take from its queue.
fn serve_queue(handler: impl Fn(Exchange) + Clone + Send + 'static) -> Server {
    let (server, queue) = builder().queue(listener()).unwrap();
    for _ in 0..3 {
        let (queue, handler) = (queue.clone(), handler.clone());
        thread::spawn(move || {
            while let Ok(taken) = queue.take(1, None) {
                taken.into_iter().for_each(&handler);
            }
        });
    }
    server
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n")
}

/// What `/N` answers with: N bytes, each request's different.
fn sized(exchange: Exchange) {
    let length = exchange.uri().path()[1..].parse().unwrap();
    let byte = b'a' + u8::try_from(length % 26).unwrap();
    let _ = reply(exchange, vec![byte; length]);
}

#[test]
fn answers_leave_together() {
    let server = serve(Dispatch::Inline, |exchange| {
        let _ = reply(exchange, "hello");
    });
    let mut client = Client::connect(addr(&server));
    for count in [16, 7, 2] {
        client.send(get("/").repeat(count));
        // What is written at once arrives at once on the loopback device.
        let mut answers = vec![0; 64 << 10];
        let length = client.socket().read(&mut answers).unwrap();
        let answers = String::from_utf8_lossy(&answers[..length]);
        assert_eq!(answers.matches("hello").count(), count, "{answers}");
    }
    let report = stop(&server).unwrap();
    assert_eq!(report.served, 25);
    assert_balanced(&report);
}

#[test]
fn no_answer_waits_for_the_handler_of_the_next() {
    let gate = Gate::new();
    let _open_at_end = gate.open_at_end();
    let closed = gate.clone();
    let server = serve(Dispatch::default(), move |exchange| {
        if exchange.uri().path() == "/gate" {
            closed.pass();
        }
        let _ = reply(exchange, "hello");
    });
    let mut client = Client::connect(addr(&server));
    client.send([get("/"), get("/"), get("/gate"), get("/")].concat());
    for _ in 0..2 {
        assert_eq!(client.answer().text(), "hello");
    }
    gate.open();
    for _ in 0..2 {
        assert_eq!(client.answer().text(), "hello");
    }
    assert_balanced(&stop(&server).unwrap());
}

/// Handlers wait until the client has the answers before theirs, or the first part of theirs, while others keep the
/// server so busy that there is always something that could leave together.
#[test]
fn nor_does_one_that_the_next_handler_needs() {
    let (confirm, confirmed) = mpsc::channel();
    let confirmed = Arc::new(Mutex::new(confirmed));
    let handler = move |mut exchange: Exchange| match exchange.uri().path() {
        "/next" => {
            confirmed.lock().unwrap().recv().unwrap();
            let _ = reply(exchange, "next");
        }
        "/parts" => {
            exchange.start(Response::new(())).unwrap();
            exchange.write(b"one").unwrap();
            confirmed.lock().unwrap().recv().unwrap();
            exchange.write(b"two").unwrap();
            exchange.finish().unwrap();
        }
        _ => {
            let _ = reply(exchange, "hello");
        }
    };
    for server in [
        serve(Dispatch::default(), handler.clone()),
        serve_queue(handler.clone()),
    ] {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let mut client = Client::connect(addr(&server));
                    while !over.load(Ordering::Relaxed) {
                        client.send(get("/").repeat(16));
                        for _ in 0..16 {
                            assert_eq!(client.answer().text(), "hello");
                        }
                    }
                });
            }
            let mut client = Client::connect(addr(&server));
            for _ in 0..50 {
                client.send([get("/").repeat(3), get("/next"), get("/parts")].concat());
                for _ in 0..3 {
                    assert_eq!(client.answer().text(), "hello");
                }
                confirm.send(()).unwrap();
                assert_eq!(client.answer().text(), "next");
                client.try_head().unwrap();
                assert_eq!(client.try_chunk().unwrap().unwrap(), b"one");
                confirm.send(()).unwrap();
                assert_eq!(client.try_chunk().unwrap().unwrap(), b"two");
                assert_eq!(client.try_chunk().unwrap(), None);
            }
            over.store(true, Ordering::Relaxed);
        });
        assert_balanced(&stop(&server).unwrap());
    }
}

/// Stopped or killed while answers are held back, wherever that finds them.
#[test]
fn a_stop_finds_what_is_held_back() {
    for round in 0..20 {
        let (is_kill, count) = (round % 2 == 0, 4);
        let handler = |exchange: Exchange| {
            let _ = reply(exchange, "hello");
        };
        for server in each_way(builder, handler) {
            let received: u64 = thread::scope(|scope| {
                let clients: Vec<_> = (0..count)
                    .map(|_| {
                        let mut client = Client::connect(addr(&server));
                        client.send(get("/").repeat(16));
                        scope.spawn(move || {
                            let mut received = 0;
                            while let Ok(answer) = client.try_answer() {
                                if is_kill && answer.status == 503 {
                                    break;
                                }
                                assert_eq!(answer.text(), "hello");
                                received += 1;
                                if answer.closes() {
                                    break;
                                }
                                if received % 16 == 0 {
                                    let _ = client.try_send(get("/").repeat(16));
                                }
                            }
                            received
                        })
                    })
                    .collect();
                wait_for_report(&server, |report| report.served > round * 16);
                if is_kill {
                    server.kill_begin();
                } else {
                    server.stop_begin();
                }
                let received = clients.into_iter().map(|client| client.join().unwrap());
                received.sum()
            });
            let report = match wait(&server) {
                Ok(report) => report,
                Err(_) => server.report(),
            };
            assert_balanced(&report);
            // At a kill, nobody can say which of the last have arrived before the reset.
            if !is_kill {
                assert_eq!(received, report.served, "{report:?}");
            }
        }
    }
}

#[test]
fn nor_for_the_rest_of_its_body() {
    let server = serve(Dispatch::default(), |mut exchange| {
        let body = exchange.read_to_end(100).unwrap();
        let _ = reply(exchange, body);
    });
    let mut client = Client::connect(addr(&server));
    let post = "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 8\r\n\r\n";
    client.send([&get("/"), post, "\r\n\r\n"].concat());
    assert_eq!(client.answer().text(), "");
    client.send(["\r\n\r\n", &get("/")].concat());
    assert_eq!(client.answer().text(), "\r\n\r\n\r\n\r\n");
    assert_eq!(client.answer().text(), "");
    assert_balanced(&stop(&server).unwrap());
}

/// Answers of all sizes around those at which they no longer leave together, to a client that reads when all has been
/// asked: the kernel takes only a part of them at first.
#[test]
fn answers_of_any_size_come_whole_and_in_their_order() {
    for server in each_way(builder, sized) {
        let mut client = Client::connect(addr(&server));
        let sizes: Vec<usize> = (0..200)
            .map(|n| [0, 1, 100, 8 << 10, 16_000, 16 << 10, 17_000, 300_000][n * 5 % 8] + n)
            .collect();
        let requests: String = sizes.iter().map(|size| get(&format!("/{size}"))).collect();
        client.send(requests);
        for size in sizes {
            let body = client.answer().body;
            assert_eq!(body.len(), size);
            let byte = b'a' + u8::try_from(size % 26).unwrap();
            assert!(body.iter().all(|got| *got == byte));
        }
        let report = stop(&server).unwrap();
        assert_eq!(report.served, 200);
        assert_balanced(&report);
    }
}

#[test]
fn answers_before_a_broken_request_come_before_its_400() {
    let server = serve(Dispatch::Inline, sized);
    let mut client = Client::connect(addr(&server));
    client.send([&get("/3"), &get("/4"), "BROKEN\r\n\r\n", &get("/5")].concat());
    assert_eq!(client.answer().text(), "ddd");
    assert_eq!(client.answer().text(), "eeee");
    assert_eq!(client.answer().status, 400);
    client.assert_closed();
    let report = stop(&server).unwrap();
    assert_eq!((report.requests, report.served), (2, 2));
    assert_balanced(&report);
}

#[test]
fn an_answer_that_closes_is_the_last() {
    let server = serve(Dispatch::Inline, |exchange| {
        let mut response = Response::new(Bytes::from_static(b"hello"));
        if exchange.uri().path() == "/last" {
            let close = http::HeaderValue::from_static("close");
            response.headers_mut().insert("connection", close);
        }
        let _ = exchange.reply(response);
    });
    let mut client = Client::connect(addr(&server));
    client.send([get("/"), get("/last"), get("/")].concat());
    assert_eq!(client.answer().text(), "hello");
    assert!(client.answer().closes());
    client.assert_closed();
    assert_balanced(&stop(&server).unwrap());
}

/// hyper holds chunks that nobody reads yet, and does not go on to the next request.
#[test]
fn nor_does_it_wait_for_who_reads_the_body_later() {
    let (bodies, mut kept) = tokio::sync::mpsc::unbounded_channel();
    let service = service_fn(move |request: Request<Body>| {
        let bodies = bodies.clone();
        async move {
            let mut body = request.into_body();
            if !http_body::Body::is_end_stream(&body) {
                body.frame().await.unwrap().unwrap();
                bodies.send(body).unwrap();
            }
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"hello"))))
        }
    });
    let server = builder().serve(listener(), service).unwrap();
    let mut client = Client::connect(addr(&server));
    let post = "POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunks = "3\r\none\r\n3\r\ntwo\r\n5\r\nthree\r\n0\r\n\r\n";
    client.send([post, chunks, &get("/")].concat());
    assert_eq!(client.answer().text(), "hello");
    drop(kept.blocking_recv());
    assert_balanced(&stop(&server).unwrap());
}

#[test]
fn an_answer_before_a_cut_one_arrives_and_counts() {
    // In HTTP/1.0 only the end of the connection ends what has no length: it is reset.
    let handler = |mut exchange: Exchange| {
        if exchange.uri().path() == "/cut" {
            exchange.start(Response::new(())).unwrap();
            exchange.write(b"hel").unwrap();
            return; // It is dropped unfinished.
        }
        let _ = reply(exchange, "hello");
    };
    for cut in [
        "GET /cut HTTP/1.1\r\nHost: test\r\n\r\n",
        "GET /cut HTTP/1.0\r\n\r\n",
    ] {
        for server in each_way(builder, handler) {
            let mut client = Client::connect(addr(&server));
            client.send([&get("/"), cut].concat());
            assert_eq!(client.answer().text(), "hello");
            assert!(client.try_answer().is_err());
            drop(client);
            let report = stop(&server).unwrap();
            assert_eq!((report.served, report.failed), (1, 1), "{report:?}");
            assert_balanced(&report);
        }
    }
}
