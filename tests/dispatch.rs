//! How requests reach handlers and services, and what becomes of the answers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::similar_names,
    reason = "a helper that fails fails its test; and a server serves what was served"
)]

mod common;

use std::collections::{HashSet, VecDeque};
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io::ErrorKind;

use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Empty, Full};
use httpdown::{
    Addr, Body, Builder, ConnInfo, ConnState, Dispatch, Error, Exchange, Listener, Phase, Report,
    Result, Server,
};
use hyper::body::Frame;
use hyper::service::{Service, service_fn};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use common::{
    Client, Gate, Journal, LONG, Recorder, addr, assert_balanced, builder, into_journal, listener,
    reply, serve_upgrades, states_of, stop, stop_elsewhere, tcp_listener, wait, wait_for_report,
};

fn pool(threads: usize) -> Dispatch {
    Dispatch::Pool(NonZeroUsize::new(threads).unwrap())
}

fn serve(dispatch: Dispatch, handler: impl Fn(Exchange) + Send + Sync + 'static) -> Server {
    builder().handle(listener(), dispatch, handler).unwrap()
}

/// A server whose requests a thread takes from the queue, one after the other, until there are no more.
fn serve_queue(builder: Builder, handler: impl Fn(Exchange) + Send + 'static) -> Server {
    let (server, queue) = builder.queue(listener()).unwrap();
    thread::spawn(move || {
        while let Ok(taken) = queue.take(16, None) {
            for exchange in taken {
                handler(exchange);
            }
        }
    });
    server
}

/// The same handler by each of the three ways.
fn each_way(handler: impl Fn(Exchange) + Clone + Send + Sync + 'static, test: impl Fn(&Server)) {
    let servers = [
        serve(Dispatch::default(), handler.clone()),
        serve(Dispatch::Inline, handler.clone()),
        serve_queue(builder(), handler),
    ];
    for server in servers {
        test(&server);
        assert_balanced(&stop(&server).unwrap());
    }
}

fn post(path: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!("POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

#[test]
fn a_handler_sees_the_request_and_answers_it_each_way() {
    let handler = |exchange: Exchange| {
        assert_eq!(exchange.method(), Method::GET);
        assert_eq!(exchange.uri(), "/path?query=1");
        assert_eq!(exchange.version(), Version::HTTP_11);
        assert_eq!(exchange.headers()["x-test"], "yes");
        assert_eq!(exchange.conn().local, exchange.server().local_addrs()[0]);
        let response = Response::builder()
            .status(StatusCode::CREATED)
            .header("x-peer", exchange.conn().peer.to_string())
            .body(Bytes::from("made"))
            .unwrap();
        exchange.reply(response).unwrap();
    };
    each_way(handler, |server| {
        let mut client = Client::connect(addr(server));
        for _ in 0..3 {
            client.send("GET /path?query=1 HTTP/1.1\r\nHost: test\r\nX-Test: yes\r\n\r\n");
            let answer = client.answer();
            assert_eq!((answer.status, answer.text()), (201, "made"));
            assert_eq!(answer.header("x-peer"), Some(&*client.name()));
            assert_eq!(answer.header("content-length"), Some("4"));
        }
    });
}

#[test]
fn an_answer_in_pieces_is_chunked_each_way() {
    let handler = |mut exchange: Exchange| {
        assert!(!exchange.is_started());
        exchange.start(Response::new(())).unwrap();
        assert!(exchange.is_started());
        exchange.write(b"one, ").unwrap();
        exchange.write(b"").unwrap();
        exchange.write_bytes(Bytes::from("two")).unwrap();
        exchange.finish().unwrap();
    };
    each_way(handler, |server| {
        let mut client = Client::get(addr(server), "/");
        let answer = client.answer();
        assert_eq!(answer.text(), "one, two");
        assert_eq!(answer.header("transfer-encoding"), Some("chunked"));
        client.ask("/");
        assert_eq!(client.answer().text(), "one, two");
    });
}

#[test]
fn an_answer_may_have_no_body_at_all() {
    let handler = |mut exchange: Exchange| {
        exchange.start(Response::new(())).unwrap();
        exchange.finish().unwrap();
    };
    each_way(handler, |server| {
        let mut client = Client::get(addr(server), "/");
        assert_eq!(client.answer().text(), "");
        client.ask("/");
        assert_eq!(client.answer().text(), "");
    });
}

#[test]
fn an_unanswered_request_gets_a_500_each_way() {
    each_way(drop, |server| {
        let mut client = Client::get(addr(server), "/");
        assert_eq!(client.answer().status, 500);
        client.ask("/");
        assert_eq!(client.answer().status, 500);
    });
}

#[test]
fn a_panic_gets_a_500_and_is_told() {
    for dispatch in [pool(1), Dispatch::Inline] {
        let (stats, bumps) = Recorder::new();
        let logs = Journal::new();
        let writes = logs.clone();
        let server = builder()
            .stats(stats)
            .on_log(move |_, text: &str| writes.write(text.to_owned()))
            .handle(listener(), dispatch, |exchange: Exchange| {
                assert!(exchange.uri() == "/", "that is what the test wants");
                reply(exchange, "fine").unwrap();
            })
            .unwrap();
        let mut client = Client::get(addr(&server), "/panic");
        assert_eq!(client.answer().status, 500);
        client.ask("/");
        assert_eq!(client.answer().text(), "fine");
        let report = stop(&server).unwrap();
        assert_balanced(&report);
        assert_eq!((report.requests, report.served), (2, 2));
        server.close();
        let errors = bumps
            .all()
            .into_iter()
            .filter(|(key, _)| key == "sum handler.error");
        assert_eq!(errors.count(), 1);
        assert!(
            logs.all().iter().any(|line| line.contains("panicked")),
            "{logs:?}"
        );
    }
}

#[test]
fn a_panic_within_an_answer_cuts_it() {
    let server = serve(pool(1), |mut exchange: Exchange| {
        exchange.start(Response::new(())).unwrap();
        exchange.write(b"half").unwrap();
        panic!("that is what the test wants");
    });
    let mut client = Client::get(addr(&server), "/");
    client.try_answer().unwrap_err();
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!(report.failed, 1);
}

#[test]
fn an_answer_that_is_not_finished_is_cut() {
    for request in [
        "GET / HTTP/1.1\r\nHost: test\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
    ] {
        let (stats, bumps) = Recorder::new();
        let server = builder()
            .stats(stats)
            .handle(tcp_listener(), pool(1), |mut exchange: Exchange| {
                exchange.start(Response::new(())).unwrap();
                exchange.write(b"half").unwrap();
            })
            .unwrap();
        let mut client = Client::connect(addr(&server));
        client.send(request);
        // With HTTP/1.0 a FIN would say that this was all.
        client.try_answer().expect_err(request);
        let report = stop(&server).unwrap();
        assert_balanced(&report);
        assert_eq!((report.failed, report.served), (1, 0));
        server.close();
        let errors = bumps
            .all()
            .into_iter()
            .filter(|(key, _)| key == "sum handler.error");
        assert_eq!(errors.count(), 1);
    }
}

#[test]
fn only_one_answer_is_possible() {
    let results = Journal::new();
    let writes = results.clone();
    let server = serve(pool(1), move |mut exchange: Exchange| {
        assert!(matches!(
            exchange.write(b"early"),
            Err(Error::InvalidArgument(_))
        ));
        exchange.start(Response::new(())).unwrap();
        let again = exchange.start(Response::new(()));
        writes.write(format!("{again:?}"));
        exchange.write(b"still whole").unwrap();
        exchange.finish().unwrap();
    });
    let mut client = Client::get(addr(&server), "/");
    assert_eq!(client.answer().text(), "still whole");
    assert_eq!(results.all(), ["Err(AlreadyReplied)"]);

    let server = serve(pool(1), move |mut exchange: Exchange| {
        exchange.start(Response::new(())).unwrap();
        let result = reply(exchange, "instead");
        assert!(matches!(result, Err(Error::AlreadyReplied)), "{result:?}");
    });
    Client::get(addr(&server), "/").try_answer().unwrap_err();
    assert_eq!(stop(&server).unwrap().failed, 1);

    let server = serve(pool(1), move |exchange: Exchange| {
        let result = exchange.finish();
        assert!(
            matches!(result, Err(Error::InvalidArgument(_))),
            "{result:?}"
        );
    });
    assert_eq!(Client::get(addr(&server), "/").answer().status, 500);
}

#[test]
fn a_head_that_contradicts_its_body_is_refused() {
    let bad = |name: &str, value: &str| Response::builder().header(name, value);
    let server = serve(pool(1), move |mut exchange: Exchange| {
        let not_final = Response::builder()
            .status(StatusCode::CONTINUE)
            .body(())
            .unwrap();
        let coded = bad("transfer-encoding", "chunked").body(()).unwrap();
        let no_number = bad("content-length", "ten").body(()).unwrap();
        let two = bad("content-length", "1").header("content-length", "1");
        for response in [not_final, coded, no_number, two.body(()).unwrap()] {
            let result = exchange.start(response);
            assert!(
                matches!(result, Err(Error::InvalidArgument(_))),
                "{result:?}"
            );
        }
        // Nothing was sent: it can still be answered.
        match exchange.uri().path() {
            "/reply" => {
                let wrong = bad("content-length", "5")
                    .body(Bytes::from("four"))
                    .unwrap();
                let result = exchange.reply(wrong);
                assert!(
                    matches!(result, Err(Error::InvalidArgument(_))),
                    "{result:?}"
                );
            }
            _ => reply(exchange, "at last").unwrap(),
        }
    });
    let mut client = Client::get(addr(&server), "/");
    assert_eq!(client.answer().text(), "at last");
    client.ask("/reply");
    assert_eq!(client.answer().status, 500);
    assert_balanced(&stop(&server).unwrap());
}

#[test]
fn a_content_length_is_kept_to() {
    let server = serve(pool(1), |mut exchange: Exchange| {
        let head = Response::builder()
            .header("content-length", "4")
            .body(())
            .unwrap();
        let path = exchange.uri().path().to_owned();
        exchange.start(head).unwrap();
        exchange.write(b"fo").unwrap();
        match &*path {
            "/short" => {}
            "/long" => {
                exchange.write(b"ur").unwrap();
                // How soon this is noticed depends on how soon the connection takes what was written.
                let noticed = (0..1_000_000).find_map(|_| exchange.write(b"more").err());
                assert!(
                    matches!(noticed, Some(Error::InvalidArgument(_))),
                    "{noticed:?}"
                );
            }
            _ => exchange.write(b"ur").unwrap(),
        }
        exchange.finish().unwrap();
    });
    let mut client = Client::get(addr(&server), "/right");
    let answer = client.answer();
    assert_eq!(
        (answer.text(), answer.header("transfer-encoding")),
        ("four", None)
    );
    client.ask("/long");
    assert_eq!(client.answer().text(), "four");
    let mut client = Client::get(addr(&server), "/short");
    client.try_answer().unwrap_err();
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.served, report.failed), (2, 1));
}

#[test]
fn answers_without_a_body_have_none() {
    let handler = |mut exchange: Exchange| {
        let status = match exchange.uri().path() {
            "/204" => StatusCode::NO_CONTENT,
            "/304" => StatusCode::NOT_MODIFIED,
            _ => StatusCode::OK,
        };
        let mut response = Response::new(());
        *response.status_mut() = status;
        if exchange.uri().query().is_some() {
            exchange.start(response).unwrap();
            exchange.write(b"").unwrap();
            for _ in 0..100 {
                let written = exchange.write(b"goes nowhere");
                assert!(matches!(written, Err(Error::AlreadyReplied)));
            }
            exchange.finish().unwrap();
        } else {
            let body = if status == StatusCode::OK { "body" } else { "" };
            exchange
                .reply(response.map(|()| Bytes::from(body)))
                .unwrap();
        }
    };
    for dispatch in [pool(4), Dispatch::Inline] {
        let server = serve(dispatch, handler);
        let mut client = Client::connect(addr(&server));
        for (method, path, status) in [
            ("HEAD", "/", 200),
            ("HEAD", "/?pieces", 200),
            ("GET", "/204", 204),
            ("GET", "/204?pieces", 204),
            ("GET", "/304", 304),
            ("GET", "/304?pieces", 304),
            ("HEAD", "/304?pieces", 304),
        ] {
            client.send(format!("{method} {path} HTTP/1.1\r\nHost: test\r\n\r\n"));
            let answer = client.try_head().unwrap();
            assert_eq!(answer.status, status, "{method} {path}");
            if path == "/" {
                assert_eq!(answer.header("content-length"), Some("4"));
            }
        }
        // Had a body been sent, this would not be what comes next.
        client.ask("/");
        assert_eq!(client.answer().text(), "body");
        let report = stop(&server).unwrap();
        assert_balanced(&report);
        assert_eq!(report.served, 8);
    }
}

#[test]
fn a_body_can_be_read_in_pieces_of_any_size() {
    let body: Vec<u8> = (0..200_000u32).map(|n| n.to_le_bytes()[0]).collect();
    for size in [1_000, 65_536, 1_000_000] {
        let server = serve(pool(1), move |mut exchange: Exchange| {
            let (mut buf, mut whole) = (vec![0; size], Vec::new());
            loop {
                match exchange.read(&mut buf).unwrap() {
                    0 => break,
                    count => whole.extend_from_slice(&buf[..count]),
                }
            }
            assert_eq!(exchange.read(&mut buf).unwrap(), 0);
            reply(exchange, whole).unwrap();
        });
        let mut client = Client::connect(addr(&server));
        client.send(post("/", &body));
        assert!(client.answer().body == body);
        client.send("POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n");
        for piece in body.chunks(70_001) {
            client.send(format!("{:x}\r\n", piece.len()));
            client.send(piece);
            client.send("\r\n");
        }
        client.send("0\r\n\r\n");
        assert!(client.answer().body == body);
    }
}

/// When hyper has sent all of an answer, it tells of a body's end only with the next request.
#[test]
fn a_body_may_be_read_to_its_end_behind_the_answer() {
    let (lengths, read) = std::sync::mpsc::channel();
    let server = serve(Dispatch::default(), move |mut exchange| {
        let head = Response::builder().header("content-length", 2).body(());
        exchange.start(head.unwrap()).unwrap();
        exchange.write(b"ok").unwrap();
        let length = exchange.read_to_end(1 << 20).map(|body| body.len());
        lengths.send(length).unwrap();
        exchange.finish().unwrap();
    });
    let mut client = Client::connect(addr(&server));
    let body = vec![b'x'; 100_000];
    client.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 100000\r\n\r\n");
    assert_eq!(client.answer().text(), "ok");
    client.send(&body);
    let length = read.recv_timeout(common::LONG).unwrap();
    assert_eq!(length.unwrap(), body.len());
    assert_balanced(&stop(&server).unwrap());
}

#[test]
fn a_body_that_is_too_long_is_not_read_to_its_end() {
    let server = serve(pool(1), |mut exchange: Exchange| {
        let _ = exchange.read_bytes(2).unwrap();
        let text = match exchange.read_to_end(8) {
            Ok(rest) => format!("{} more", rest.len()),
            Err(Error::TooLarge) => {
                // Nothing of it is lost.
                let rest = exchange.read_to_end(9).unwrap();
                format!("too long: {} more", rest.len())
            }
            Err(error) => panic!("{error}"),
        };
        reply(exchange, text).unwrap();
    });
    let chunked = |body: &str| {
        let length = body.len();
        format!(
            "POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n"
        )
    };
    for (body, text) in [
        ("01", "0 more"),
        ("0123456789", "8 more"),
        ("0123456789x", "too long: 9 more"),
    ] {
        for request in [post("/", body.as_bytes()), chunked(body).into()] {
            let mut client = Client::connect(addr(&server));
            client.send(request);
            assert_eq!(client.answer().text(), text);
        }
    }
}

#[test]
fn a_body_that_is_cut_is_an_error() {
    let results = Journal::new();
    let writes = results.clone();
    let server = serve(pool(1), move |mut exchange: Exchange| {
        writes.write(format!("{:?}", exchange.read_to_end(100)));
    });
    let mut client = Client::connect(addr(&server));
    client.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nhalf");
    client.half_close();
    results.wait_for_count(1);
    let mut client = Client::connect(addr(&server));
    client.send("POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n");
    results.wait_for_count(2);
    assert_eq!(results.all(), ["Err(Gone)", "Err(BadBody)"]);
    assert_balanced(&stop(&server).unwrap());
}

/// Bodies in chunks, each malformed in its own way.
fn malformed_chunks() -> Vec<String> {
    let bodies = [
        "nonsense\r\n",
        "fffffffffffffffff\r\n",
        "1;\x01\r\na\r\n",
        "1 \r\na\r\n",
        "1\r\nab\r\n",
        "1\r\na\r\n0\r\nno trailer\r\n\r\n",
        "1\r\na\r\n0\r\na: \x01\r\n\r\n",
    ];
    let head = "POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n";
    bodies.map(|body| format!("{head}{body}")).to_vec()
}

/// Requests whose client sends no more in the middle of the body, but still reads.
fn half_requests() -> [&'static str; 3] {
    [
        "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nhalf",
        "POST / HTTP/1.0\r\nContent-Length: 10\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhalf",
    ]
}

/// A server that tells what it logs, and counts of its handlers' errors.
fn told(
    serve: impl FnOnce(Builder) -> Server,
) -> (Server, Journal<String>, Journal<(String, f64)>) {
    let (stats, bumps) = Recorder::new();
    let logs = Journal::new();
    let writes = logs.clone();
    let builder = builder().stats(stats);
    let server = serve(builder.on_log(move |_, text: &str| writes.write(text.to_owned())));
    (server, logs, bumps)
}

/// Ends it, and says how many errors its handlers have made.
fn errors(server: &Server, bumps: &Journal<(String, f64)>) -> usize {
    server.clone().close();
    let bumps = bumps.all().into_iter();
    bumps.filter(|(key, _)| key == "sum handler.error").count()
}

/// Reads the body elsewhere, and gives up if that fails.
fn reads(exchange: Exchange, results: &Journal<String>) {
    let results = results.clone();
    thread::spawn(move || {
        let mut exchange = exchange;
        match exchange.read_to_end(100) {
            Ok(_) => reply(exchange, "whole").unwrap(),
            Err(why) => {
                drop(exchange);
                results.write(format!("{why:?}"));
            }
        }
    });
}

#[test]
fn a_malformed_body_is_the_clients_fault() {
    for dispatch in [Dispatch::default(), Dispatch::Inline] {
        let results = Journal::new();
        let writes = results.clone();
        let (server, logs, bumps) = told(|builder| {
            let handler = move |exchange: Exchange| reads(exchange, &writes);
            builder.handle(listener(), dispatch, handler).unwrap()
        });
        let requests = malformed_chunks();
        for request in &requests {
            let mut client = Client::connect(addr(&server));
            client.send(request);
            assert_eq!(client.answer().status, 400, "{request:?}");
        }
        let report = stop(&server).unwrap();
        assert_balanced(&report);
        assert_eq!(report.served, requests.len() as u64, "{report:?}");
        assert_eq!(results.all(), vec!["BadBody"; requests.len()]);
        assert_eq!((errors(&server, &bumps), logs.all()), (0, vec![]));
    }
}

#[test]
fn a_service_that_fails_at_a_malformed_body_gets_a_400() {
    let service = service_fn(|request: Request<Body>| async move {
        let body = request.into_body().collect().await?;
        Ok::<_, Error>(Response::new(Full::new(body.to_bytes())))
    });
    let (server, logs, bumps) = told(|builder| builder.serve(listener(), service).unwrap());
    for request in malformed_chunks() {
        let mut client = Client::connect(addr(&server));
        client.send(&request);
        assert_eq!(client.answer().status, 400, "{request:?}");
    }
    for request in half_requests() {
        let mut client = Client::connect(addr(&server));
        client.send(request);
        client.half_close();
        assert_eq!(client.answer().status, 400, "{request:?}");
    }
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.served, report.gone), (7, 3), "{report:?}");
    assert_eq!((errors(&server, &bumps), logs.all()), (0, vec![]));
}

#[test]
fn a_client_that_leaves_within_its_body_is_gone_and_nobody_is_blamed() {
    let results = Journal::new();
    let writes = results.clone();
    let (server, logs, bumps) = told(|builder| {
        let handler = move |exchange: Exchange| reads(exchange, &writes);
        builder.handle(listener(), pool(4), handler).unwrap()
    });
    for request in half_requests() {
        let mut client = Client::connect(addr(&server));
        client.send(request);
        client.half_close();
        // It may still want to know.
        assert_eq!(client.answer().status, 400, "{request:?}");
    }
    for request in half_requests() {
        drop({
            let mut client = Client::connect(addr(&server));
            client.send(request);
            client
        });
    }
    results.wait_for_count(6);
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.gone, report.conns_gone), (6, 6), "{report:?}");
    assert_eq!(results.all(), vec!["Gone"; 6]);
    assert_eq!((errors(&server, &bumps), logs.all()), (0, vec![]));
}

#[test]
fn an_answer_that_follows_half_a_request_may_stay_unfinished() {
    let (server, logs, bumps) = told(|builder| {
        let handler = |mut exchange: Exchange| {
            exchange.start(Response::new(())).unwrap();
            exchange.write(b"begun").unwrap();
            exchange.read_to_end(100).unwrap_err();
        };
        builder.handle(listener(), pool(1), handler).unwrap()
    });
    for request in half_requests() {
        let mut client = Client::connect(addr(&server));
        client.send(request);
        client.half_close();
        client.try_answer().unwrap_err();
    }
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.gone, report.failed), (3, 0), "{report:?}");
    assert_eq!((errors(&server, &bumps), logs.all()), (0, vec![]));
}

#[test]
fn a_status_without_a_reason_phrase_has_none() {
    fn odd() -> http::response::Builder {
        Response::builder().status(299)
    }
    let service = service_fn(|_: Request<Body>| async {
        Ok::<_, Infallible>(odd().body(Full::new(Bytes::new())).unwrap())
    });
    let handler = |exchange: Exchange| exchange.reply(odd().body(Bytes::new()).unwrap()).unwrap();
    for server in [
        builder().serve(listener(), service).unwrap(),
        serve(Dispatch::Inline, handler),
        serve(pool(1), handler),
    ] {
        let mut client = Client::connect(addr(&server));
        client.send("GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        let answer = String::from_utf8(client.until_end().unwrap()).unwrap();
        assert!(answer.starts_with("HTTP/1.1 299 \r\n"), "{answer:?}");
        stop(&server).unwrap();
    }
}

/// One line for one mistake, which says what it was.
#[test]
fn the_log_says_once_why_a_request_has_failed() {
    let bad = |value: &str| Response::builder().header("content-length", value);
    let (server, logs, bumps) = told(|builder| {
        let handler = move |mut exchange: Exchange| match exchange.uri().path() {
            "/forgotten" => drop(exchange),
            "/refused" => {
                let wrong = bad("5").body(Bytes::from("four")).unwrap();
                exchange.reply(wrong).unwrap_err();
            }
            "/not-begun" => exchange.finish().unwrap_err().to_string().clear(),
            "/refused-start" => {
                exchange.start(bad("x").body(()).unwrap()).unwrap_err();
            }
            "/panic" => panic!("that is what the test wants"),
            "/panic-behind" => {
                reply(exchange, "fine").unwrap();
                panic!("that is what the test wants");
            }
            "/short" => {
                exchange.start(bad("5").body(()).unwrap()).unwrap();
                exchange.finish().unwrap_err();
            }
            "/twice" => {
                exchange.start(Response::new(())).unwrap();
                reply(exchange, "again").unwrap_err();
            }
            "/panic-within" => {
                exchange.start(Response::new(())).unwrap();
                panic!("that is what the test wants");
            }
            _ => {
                exchange.start(Response::new(())).unwrap();
            }
        };
        builder.handle(listener(), pool(1), handler).unwrap()
    });
    let cases = [
        ("/forgotten", "a handler did not answer /forgotten"),
        (
            "/refused",
            "the answer to /refused was refused: Content-Length is not the length of the body",
        ),
        (
            "/not-begun",
            "the answer to /not-begun was refused: no answer has begun",
        ),
        (
            "/refused-start",
            "the answer to /refused-start was refused: Content-Length is not one number",
        ),
        ("/panic", "a handler panicked: /panic"),
        ("/panic-behind", "a handler panicked"),
        (
            "/short",
            "the answer to /short was cut: less than the Content-Length",
        ),
        (
            "/twice",
            "the answer to /twice was cut: the request has been answered already",
        ),
        (
            "/panic-within",
            "a handler panicked in its answer: /panic-within",
        ),
        ("/left", "a handler left its answer to /left unfinished"),
    ];
    for (path, _) in cases {
        let mut client = Client::get(addr(&server), path);
        match client.try_answer() {
            Ok(answer) => assert_eq!(
                answer.status,
                if path == "/panic-behind" { 200 } else { 500 }
            ),
            Err(_) => assert!(["/short", "/twice", "/panic-within", "/left"].contains(&path)),
        }
    }
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.served, report.failed), (6, 4));
    assert_eq!(errors(&server, &bumps), 9);
    assert_eq!(logs.all(), cases.map(|(_, line)| line.to_owned()));
}

#[test]
fn a_kill_and_a_client_that_has_left_blame_no_handler() {
    let begun = Journal::new();
    let begins = begun.clone();
    let (server, logs, bumps) = told(|builder| {
        let handler = move |mut exchange: Exchange| {
            exchange.start(Response::new(())).unwrap();
            begins.write(());
            let why = exchange.cancellation().wait_until(None);
            assert!(matches!(why, Some(Error::Gone | Error::Killed(_))));
            exchange.finish().unwrap_err();
        };
        builder.handle(listener(), pool(20), handler).unwrap()
    });
    let clients: Vec<_> = (0..20).map(|_| Client::get(addr(&server), "/")).collect();
    begun.wait_for_count(20);
    server.kill_begin();
    let _ = wait(&server);
    drop(clients);
    assert_eq!(server.report().killed, 20);
    assert_eq!((errors(&server, &bumps), logs.all()), (0, vec![]));
}

#[test]
fn a_client_that_does_not_read_makes_the_writer_wait() {
    const TOTAL: usize = 64 << 20;
    let written = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&written);
    let server = serve(pool(1), move |mut exchange: Exchange| {
        exchange.start(Response::new(())).unwrap();
        let piece = Bytes::from(vec![b'x'; 64 << 10]);
        while counts.load(Ordering::Relaxed) < TOTAL {
            exchange.write_bytes(piece.clone()).unwrap();
            counts.fetch_add(piece.len(), Ordering::Relaxed);
        }
        exchange.finish().unwrap();
    });
    let mut client = Client::get(addr(&server), "/");
    // It stands still: not for how long, but at how much, is what matters.
    let mut seen = 0;
    for _ in 0..1_000 {
        thread::sleep(Duration::from_millis(20));
        let now = written.load(Ordering::Relaxed);
        if now > 0 && now == seen {
            break;
        }
        seen = now;
    }
    assert!(
        seen < TOTAL / 2,
        "{seen} bytes are on their way to a client that reads nothing"
    );
    assert_eq!(client.answer().body.len(), TOTAL);
    assert_balanced(&stop(&server).unwrap());
}

#[test]
fn a_waiting_writer_learns_that_its_client_has_gone() {
    let results = Journal::new();
    let writes = results.clone();
    let server = serve(pool(1), move |mut exchange: Exchange| {
        exchange.start(Response::new(())).unwrap();
        let why = (0..1_000_000).find_map(|_| exchange.write(&vec![b'x'; 64 << 10]).err());
        let deadline = Some(Instant::now() + LONG);
        let told = exchange.cancellation().wait_until(deadline);
        writes.write(format!("{why:?} {told:?}"));
        assert!(matches!(exchange.finish(), Err(Error::Gone)));
    });
    let mut client = Client::get(addr(&server), "/");
    client.try_head().unwrap();
    client.reset();
    results.wait_for_count(1);
    assert_eq!(results.all(), ["Some(Gone) Some(Gone)"]);
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!(report.gone, 1);
}

/// A handler that waits until it is told why there is no more use in answering.
fn serve_waiter(dispatch: Dispatch) -> (Server, Journal<()>, Journal<String>) {
    let (begun, results) = (Journal::new(), Journal::new());
    let (begins, writes) = (begun.clone(), results.clone());
    let server = serve(dispatch, move |exchange: Exchange| {
        assert!(exchange.cancelled().is_none());
        begins.write(());
        let why = exchange
            .cancellation()
            .wait_until(Some(Instant::now() + LONG));
        writes.write(format!("{why:?}"));
        assert!(exchange.cancelled().is_some());
        let result = reply(exchange, "too late");
        assert!(
            matches!(result, Err(Error::Gone | Error::Killed(_))),
            "{result:?}"
        );
    });
    (server, begun, results)
}

#[test]
fn a_waiting_handler_learns_that_its_client_has_gone() {
    let (server, begun, results) = serve_waiter(pool(1));
    let client = Client::get(addr(&server), "/");
    begun.wait_for_count(1);
    client.reset();
    results.wait_for_count(1);
    assert_eq!(results.all(), ["Some(Gone)"]);
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.gone, report.served), (1, 0));
}

#[test]
fn a_waiting_handler_learns_that_its_client_has_gone_with_its_body_unread() {
    let (server, begun, results) = serve_waiter(pool(1));
    let mut client = Client::connect(addr(&server));
    client.send(post("/", b"nobody reads this"));
    begun.wait_for_count(1);
    client.reset();
    results.wait_for_count(1);
    assert_eq!(results.all(), ["Some(Gone)"]);
    assert_balanced(&stop(&server).unwrap());
}

#[test]
fn a_waiting_handler_learns_that_its_client_has_gone_with_a_request_behind() {
    let (server, begun, results) = serve_waiter(pool(1));
    let mut client = Client::connect(addr(&server));
    client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    begun.wait_for_count(1);
    client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    client.reset();
    results.wait_for_count(1);
    assert_eq!(results.all(), ["Some(Gone)"]);
    assert_balanced(&stop(&server).unwrap());
}

#[test]
fn a_waiting_handler_learns_of_the_kill() {
    let (server, begun, results) = serve_waiter(pool(2));
    let clients = [
        Client::get(addr(&server), "/"),
        Client::get(addr(&server), "/"),
    ];
    begun.wait_for_count(2);
    server.kill_begin();
    assert!(matches!(wait(&server), Err(Error::Killed(_))));
    assert_eq!(results.all(), ["Some(Killed(None))", "Some(Killed(None))"]);
    clients.into_iter().for_each(Client::assert_ended);
    let report = server.report();
    assert_balanced(&report);
    assert_eq!((report.killed, report.gone), (2, 0));
}

#[test]
fn a_cancellation_can_be_awaited() {
    let (waiting, told) = (Journal::new(), Journal::new());
    let (waits, tells) = (waiting.clone(), told.clone());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let handle = runtime.handle().clone();
    let server = serve(Dispatch::Inline, move |exchange: Exchange| {
        let (waits, tells) = (waits.clone(), tells.clone());
        handle.spawn(async move {
            let cancellation = exchange.cancellation();
            assert!(cancellation.cancelled().is_none());
            waits.write(());
            let _ = cancellation.wait().await;
            tells.write(cancellation.cancelled().map(|why| why.to_string()));
        });
    });
    let client = Client::get(addr(&server), "/");
    waiting.wait_for_count(1);
    client.reset();
    told.wait_for_count(1);
    assert_eq!(told.all(), [Some(Error::Gone.to_string())]);
    assert_balanced(&stop(&server).unwrap());
}

#[test]
fn an_exchange_may_be_answered_on_another_thread() {
    for dispatch in [pool(1), Dispatch::Inline] {
        let (parked, taken) = mpsc::channel();
        let server = serve(dispatch, move |exchange: Exchange| {
            parked.send(exchange).unwrap();
        });
        let mut clients: Vec<_> = (0..3).map(|_| Client::get(addr(&server), "/")).collect();
        let exchanges: Vec<_> = clients
            .iter()
            .map(|_| taken.recv_timeout(LONG).unwrap())
            .collect();
        let stopping = stop_elsewhere(&server);
        wait_for_report(&server, |report| report.phase == Phase::Draining);
        for exchange in exchanges.into_iter().rev() {
            reply(exchange, "late").unwrap();
        }
        for client in &mut clients {
            assert_eq!(client.answer().text(), "late");
        }
        assert_eq!(stopping.join().unwrap().unwrap().served, 3);
    }
}

#[test]
fn an_io_thread_does_not_wait() {
    let results = Journal::new();
    let writes = results.clone();
    let server = serve(Dispatch::Inline, move |mut exchange: Exchange| {
        if exchange.method() == Method::POST {
            writes.write(format!("{:?}", exchange.read_to_end(100)));
            reply(exchange, "not there yet").unwrap();
        } else {
            exchange.start(Response::new(())).unwrap();
            let full = (0..1_000).find_map(|_| exchange.write(&vec![b'x'; 64 << 10]).err());
            writes.write(format!("{full:?}"));
        }
    });
    let mut client = Client::connect(addr(&server));
    client.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nhalf");
    assert_eq!(client.answer().text(), "not there yet");
    Client::get(addr(&server), "/").try_answer().unwrap_err();
    assert_eq!(results.all(), ["Err(WouldBlock)", "Some(WouldBlock)"]);
    assert_balanced(&stop(&server).unwrap());
}

#[test]
fn an_endless_answer_that_has_no_body_ends() {
    let ends = Journal::new();
    let told = ends.clone();
    let server = serve(pool(2), move |mut exchange: Exchange| {
        let is_polled = exchange.uri().path() == "/polled";
        exchange.start(Response::new(())).unwrap();
        let cancellation = exchange.cancellation();
        let why = if is_polled {
            cancellation.wait_until(Some(Instant::now() + LONG))
        } else {
            std::iter::repeat_with(|| exchange.write(b"more").err()).find_map(|why| why)
        };
        exchange.write(b"").unwrap();
        told.write(format!("{why:?}, {:?}", exchange.cancelled()));
    });
    for (path, says) in [
        ("/polled", "Some(AlreadyReplied), Some(AlreadyReplied)"),
        ("/written", "Some(AlreadyReplied), "),
    ] {
        let mut client = Client::connect(addr(&server));
        client.send(format!("HEAD {path} HTTP/1.1\r\nHost: test\r\n\r\n"));
        assert_eq!(client.try_head().unwrap().status, 200);
        ends.wait_for(|told| told.starts_with(says));
    }
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.served, report.failed), (2, 0));
}

#[test]
fn an_io_thread_has_room_for_bytes_and_not_for_pieces() {
    const ROOM: usize = 256 << 10;
    let results = Journal::new();
    let told = results.clone();
    let server = serve(Dispatch::Inline, move |mut exchange: Exchange| {
        exchange.start(Response::new(())).unwrap();
        let results = if exchange.uri().path() == "/small" {
            let bytes = (0..ROOM).take_while(|_| exchange.write(b"x").is_ok());
            vec![
                format!("{}", bytes.count()),
                format!("{:?}", exchange.write(b"x")),
            ]
        } else {
            // As much as there is at once, if nothing waits.
            let large = [ROOM + 1, 1].map(|len| exchange.write(&vec![b'x'; len]));
            large.map(|result| format!("{result:?}")).to_vec()
        };
        told.write(results.join(", "));
        exchange.finish().unwrap();
    });
    for (path, length, says) in [
        ("/small", ROOM, "262144, Err(WouldBlock)"),
        ("/large", ROOM + 1, "Ok(()), Err(WouldBlock)"),
    ] {
        let answer = Client::get(addr(&server), path).answer();
        assert_eq!(answer.body.len(), length);
        assert_eq!(results.all().pop().unwrap(), says);
    }
}

#[test]
fn to_finish_an_answer_waits_for_nobody() {
    let (sender, receiver) = mpsc::channel::<Exchange>();
    let finished = Journal::new();
    let told = finished.clone();
    thread::spawn(move || {
        for exchange in receiver {
            told.write(exchange.finish().is_ok());
        }
    });
    let waits = finished.clone();
    let server = serve(Dispatch::Inline, move |mut exchange: Exchange| {
        exchange.start(Response::new(())).unwrap();
        while exchange.write(&[b'x'; 4096]).is_ok() {}
        sender.send(exchange).unwrap();
        // Until then, this thread takes nothing of it.
        waits.wait_for_count(1);
    });
    assert_eq!(
        Client::get(addr(&server), "/").answer().body.len(),
        256 << 10
    );
    assert_eq!(finished.all(), [true]);
}

#[test]
fn what_an_io_thread_has_written_it_can_finish() {
    let server = serve(Dispatch::Inline, |mut exchange: Exchange| {
        exchange.start(Response::new(())).unwrap();
        let taken = (0..1_000)
            .take_while(|_| exchange.write(b"x").is_ok())
            .count();
        assert!(taken > 0);
        exchange.finish().unwrap();
    });
    let mut client = Client::get(addr(&server), "/");
    assert!(!client.answer().body.is_empty());
    assert_balanced(&stop(&server).unwrap());
}

#[test]
fn requests_beyond_the_limit_of_the_pool_wait() {
    const LIMIT: usize = 2;
    let (gate, begun) = (Gate::new(), Journal::new());
    let _open_at_end = gate.open_at_end();
    let running = Arc::new(AtomicUsize::new(0));
    let (passes, begins) = (gate.clone(), begun.clone());
    let server = serve(pool(LIMIT), move |exchange: Exchange| {
        let now = running.fetch_add(1, Ordering::SeqCst) + 1;
        begins.write(now);
        passes.pass();
        running.fetch_sub(1, Ordering::SeqCst);
        reply(exchange, "served").unwrap();
    });
    let mut clients: Vec<_> = (0..10).map(|_| Client::get(addr(&server), "/")).collect();
    wait_for_report(&server, |report| report.requests == 10);
    begun.wait_for_count(LIMIT);
    assert_eq!(begun.all().len(), LIMIT);
    // Those that wait are served though the stop has begun.
    let stopping = stop_elsewhere(&server);
    wait_for_report(&server, |report| report.phase == Phase::Draining);
    gate.open();
    for client in &mut clients {
        assert_eq!(client.answer().text(), "served");
    }
    let report = stopping.join().unwrap().unwrap();
    assert_balanced(&report);
    assert_eq!(report.served, 10);
    assert!(begun.all().iter().all(|running| *running <= LIMIT));
}

/// Several clients send now one request, now several at once, and wait for the answers. Returns how many.
fn load(addr: &'static Addr, rounds: usize) -> usize {
    let clients: Vec<_> = (0..8)
        .map(|client| {
            thread::spawn(move || {
                let bursts = (0..rounds).map(|round| [1, 4, 1, 16][(client + round) % 4]);
                let mut connection = Client::connect(addr);
                bursts.fold(0, |answered, burst| {
                    connection.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n".repeat(burst));
                    for _ in 0..burst {
                        assert_eq!(connection.answer().text(), "served");
                    }
                    answered + burst
                })
            })
        })
        .collect();
    clients
        .into_iter()
        .map(|client| client.join().unwrap())
        .sum()
}

#[test]
fn the_pool_takes_up_work_however_it_comes() {
    for limit in [1, 2, 3, 512] {
        let server = serve(pool(limit), |exchange: Exchange| {
            reply(exchange, "served").unwrap();
        });
        let answered = load(addr(&server), 100);
        assert_eq!(stop(&server).unwrap().served, answered as u64);
    }
}

#[test]
fn a_burst_does_not_wait_for_handlers_that_block() {
    for (limit, blockers) in [(2, 1), (8, 7), (512, 100)] {
        let gate = Gate::new();
        let _open_at_end = gate.open_at_end();
        let passes = gate.clone();
        let server = serve(pool(limit), move |exchange: Exchange| {
            if exchange.uri() == "/block" {
                passes.pass();
            }
            reply(exchange, "served").unwrap();
        });
        let mut blocked: Vec<_> = (0..blockers)
            .map(|_| Client::connect(addr(&server)))
            .collect();
        let mut others: Vec<_> = (0..200).map(|_| Client::connect(addr(&server))).collect();
        for client in &mut blocked {
            client.ask("/block");
        }
        for _ in 0..3 {
            for client in &mut others {
                client.ask("/");
            }
            for client in &mut others {
                assert_eq!(client.answer().text(), "served");
            }
        }
        gate.open();
        for client in &mut blocked {
            assert_eq!(client.answer().text(), "served");
        }
        assert_balanced(&stop(&server).unwrap());
    }
}

#[test]
fn one_request_after_another_takes_few_threads() {
    let threads = Journal::new();
    let writes = threads.clone();
    let server = serve(Dispatch::default(), move |exchange: Exchange| {
        writes.write(thread::current().id());
        reply(exchange, "served").unwrap();
    });
    let mut client = Client::connect(addr(&server));
    for _ in 0..500 {
        client.ask("/");
        assert_eq!(client.answer().text(), "served");
    }
    // More than one, if a request comes before the thread that has answered the last one looks for the next.
    let threads: HashSet<_> = threads.all().into_iter().collect();
    assert!(threads.len() <= 20, "{}", threads.len());
}

#[test]
fn an_answer_that_nobody_takes_does_not_keep_others_from_being_taken() {
    let (gate, begun) = (Gate::new(), Journal::new());
    let _open_at_end = gate.open_at_end();
    let (passes, begins) = (gate.clone(), begun.clone());
    let server = serve(Dispatch::default(), move |exchange: Exchange| {
        if exchange.uri() == "/block" {
            begins.write(());
            passes.pass();
        }
        let _ = reply(exchange, "served");
    });
    let clients: Vec<_> = (0..20)
        .map(|_| Client::get(addr(&server), "/block"))
        .collect();
    begun.wait_for_count(clients.len());
    for client in clients {
        client.reset();
    }
    wait_for_report(&server, |report| report.gone == 20);
    gate.open();
    load(addr(&server), 20);
    assert_balanced(&stop(&server).unwrap());
}

/// A kill while one request is with a handler and others wait: the first is cut, the others are refused.
fn assert_refused(waiting: &mut [Client], report: &Report) {
    for client in waiting {
        let answer = client.answer();
        assert_eq!(answer.status, 503);
        assert!(answer.closes());
    }
    assert_balanced(report);
    assert_eq!((report.served, report.killed), (0, report.requests));
}

/// The number of the calling thread.
fn own_tid() -> String {
    let path = std::fs::read_link("/proc/thread-self").unwrap();
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn a_thread_of_the_pool_that_had_nothing_to_do_for_long_makes_room_for_another() {
    let tids = Journal::new();
    let written = tids.clone();
    let server = serve(pool(1), move |exchange| {
        written.write(own_tid());
        let _ = reply(exchange, "hello");
    });
    for count in 1..=2 {
        assert_eq!(Client::get(addr(&server), "/").answer().text(), "hello");
        let thread = std::path::Path::new("/proc/self/task").join(&tids.all()[count - 1]);
        let deadline = Instant::now() + LONG;
        while thread.exists() {
            assert!(Instant::now() < deadline, "it stays");
            thread::sleep(Duration::from_millis(20));
        }
    }
    stop(&server).unwrap();
}

#[test]
fn a_kill_refuses_what_waits_for_the_pool() {
    let (begun, results) = (Journal::new(), Journal::new());
    let (begins, writes) = (begun.clone(), results.clone());
    let server = serve(pool(1), move |exchange: Exchange| {
        begins.write(());
        let why = exchange
            .cancellation()
            .wait_until(Some(Instant::now() + LONG));
        writes.write(format!("{why:?}"));
    });
    let running = Client::get(addr(&server), "/");
    begun.wait_for_count(1);
    let mut waiting: Vec<_> = (0..5).map(|_| Client::get(addr(&server), "/")).collect();
    wait_for_report(&server, |report| report.requests == 6);
    server.kill_begin();
    assert!(matches!(wait(&server), Err(Error::Killed(_))));
    running.assert_ended();
    assert_refused(&mut waiting, &server.report());
    assert_eq!(results.all(), ["Some(Killed(None))"]);
}

#[test]
fn a_kill_refuses_what_waits_in_the_queue() {
    let (server, queue) = builder().queue(listener()).unwrap();
    let running = Client::get(addr(&server), "/");
    let mut taken = queue.take(1, Some(Instant::now() + LONG)).unwrap();
    let mut waiting: Vec<_> = (0..5).map(|_| Client::get(addr(&server), "/")).collect();
    wait_for_report(&server, |report| report.requests == 6);
    server.kill_begin();
    let exchange = taken.pop().unwrap();
    let why = exchange
        .cancellation()
        .wait_until(Some(Instant::now() + LONG));
    assert!(format!("{why:?}").contains("Killed"), "{why:?}");
    running.assert_ended();
    let ended = queue.take(1, Some(Instant::now() + LONG));
    assert!(matches!(ended, Err(Error::Stopped)), "{ended:?}");
    assert!(matches!(reply(exchange, "too late"), Err(Error::Killed(_))));
    assert!(matches!(wait(&server), Err(Error::Killed(_))));
    assert_refused(&mut waiting, &server.report());
}

#[test]
fn queued_requests_can_be_taken_during_the_drain() {
    let (server, queue) = builder().queue(listener()).unwrap();
    let mut clients: Vec<_> = (0..5).map(|_| Client::get(addr(&server), "/")).collect();
    wait_for_report(&server, |report| report.requests == 5);
    let stopping = stop_elsewhere(&server);
    wait_for_report(&server, |report| report.phase == Phase::Draining);
    let mut count = 0;
    while count < 5 {
        for exchange in queue.take(2, Some(Instant::now() + LONG)).unwrap() {
            reply(exchange, "drained").unwrap();
            count += 1;
        }
    }
    for client in &mut clients {
        let answer = client.answer();
        assert_eq!(answer.text(), "drained");
        assert!(answer.closes());
    }
    assert_eq!(stopping.join().unwrap().unwrap().served, 5);
    assert!(matches!(queue.take(1, None), Err(Error::Stopped)));
}

#[test]
fn the_queue_does_not_wait_longer_than_it_is_told() {
    let (_server, queue) = builder().queue(listener()).unwrap();
    assert!(matches!(
        queue.take(1, Some(Instant::now())),
        Err(Error::WouldBlock)
    ));
    assert!(matches!(
        queue.take(0, None),
        Err(Error::InvalidArgument(_))
    ));
}

#[test]
fn a_thread_that_holds_a_request_cannot_wait_for_the_stop() {
    let (server, queue) = builder().queue(listener()).unwrap();
    let mut client = Client::get(addr(&server), "/");
    let mut taken = queue.take(1, Some(Instant::now() + LONG)).unwrap();
    let exchange = taken.pop().unwrap();
    assert!(matches!(server.stop_blocking(), Err(Error::WouldDeadlock)));
    // Another thread may.
    let waiting = {
        let server = server.clone();
        thread::spawn(move || wait(&server))
    };
    assert!(matches!(
        server.wait_blocking(None),
        Err(Error::WouldDeadlock)
    ));
    reply(exchange, "served").unwrap();
    assert_balanced(&wait(&server).unwrap());
    assert_balanced(&waiting.join().unwrap().unwrap());
    assert_eq!(client.answer().text(), "served");
}

#[test]
fn the_descriptor_of_the_queue_is_readable_while_requests_wait() {
    let is_readable = |fd: &dyn AsFd, timeout: Duration| {
        // A copy, so that readiness of the moment is asked of a fresh registration: level, not edge.
        let copy = fd.as_fd().try_clone_to_owned().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            #[allow(deprecated, reason = "the new one is unsafe, and this copy stays open")]
            let copy = tokio::io::unix::AsyncFd::new(copy).unwrap();
            tokio::time::timeout(timeout, copy.readable()).await.is_ok()
        })
    };
    let soon = Duration::from_millis(20);
    let (server, queue) = builder().queue(listener()).unwrap();
    let mut first = Client::get(addr(&server), "/");
    wait_for_report(&server, |report| report.requests == 1);
    let fd = queue.descriptor().unwrap();
    assert!(
        is_readable(&fd, LONG),
        "a request waited before the descriptor was made"
    );
    let mut second = Client::get(addr(&server), "/");
    wait_for_report(&server, |report| report.requests == 2);
    let answer_one = || {
        let exchange = queue
            .take(1, Some(Instant::now() + LONG))
            .unwrap()
            .pop()
            .unwrap();
        reply(exchange, "served").unwrap();
    };
    answer_one();
    assert!(is_readable(&fd, LONG), "one still waits");
    answer_one();
    assert!(!is_readable(&fd, soon), "none waits");
    assert_eq!(first.answer().text(), "served");
    assert_eq!(second.answer().text(), "served");
    first.ask("/");
    assert!(is_readable(&fd, LONG), "the next has come");
    answer_one();
    assert_balanced(&stop(&server).unwrap());
    assert!(is_readable(&fd, LONG), "the end");
    assert!(matches!(queue.take(1, None), Err(Error::Stopped)));
    assert!(is_readable(&fd, LONG), "still the end");
}

#[test]
fn a_queue_can_have_many_takers() {
    for count in [1, 2, 4] {
        let (server, queue) = builder().queue(listener()).unwrap();
        let takers: Vec<_> = (0..count)
            .map(|_| {
                let queue = queue.clone();
                thread::spawn(move || {
                    let mut served = 0;
                    while let Ok(taken) = queue.take(3, None) {
                        for exchange in taken {
                            reply(exchange, "served").unwrap();
                            served += 1;
                        }
                    }
                    served
                })
            })
            .collect();
        let answered = load(addr(&server), 100);
        assert_eq!(stop(&server).unwrap().served, answered as u64);
        let served: usize = takers.into_iter().map(|taker| taker.join().unwrap()).sum();
        assert_eq!(served, answered);
    }
}

#[test]
fn a_taker_that_holds_what_it_took_leaves_the_rest_to_the_others() {
    let (server, queue) = builder().queue(listener()).unwrap();
    let (gate, taken) = (Gate::new(), Journal::new());
    let _open_at_end = gate.open_at_end();
    let takers: Vec<_> = (0..4)
        .map(|_| {
            let (queue, passes, takes) = (queue.clone(), gate.clone(), taken.clone());
            thread::spawn(move || {
                while let Ok(taken) = queue.take(1, None) {
                    takes.write(());
                    passes.pass();
                    for exchange in taken {
                        reply(exchange, "served").unwrap();
                    }
                }
            })
        })
        .collect();
    let mut clients: Vec<_> = (0..4).map(|_| Client::get(addr(&server), "/")).collect();
    taken.wait_for_count(4);
    gate.open();
    for client in &mut clients {
        assert_eq!(client.answer().text(), "served");
    }
    assert_balanced(&stop(&server).unwrap());
    for taker in takers {
        taker.join().unwrap();
    }
}

#[test]
fn a_service_echoes_and_knows_its_connection() {
    let service = service_fn(|request: Request<Body>| async move {
        let info = request.extensions().get::<ConnInfo>().unwrap().clone();
        let body = request.into_body().collect().await?.to_bytes();
        let response = Response::builder().header("x-conn", info.id.to_string());
        Ok::<_, Error>(response.body(Full::new(body)).unwrap())
    });
    let server = builder().conn_info(true);
    let server = server.serve(listener(), service).unwrap();
    for id in 0..3 {
        let mut client = Client::connect(addr(&server));
        client.send(post("/", b"echo"));
        let answer = client.answer();
        assert_eq!(answer.text(), "echo");
        assert_eq!(answer.header("x-conn"), Some(&*format!("{id}")));
    }
    assert_eq!(stop(&server).unwrap().served, 3);
}

#[test]
fn a_service_that_fails_or_panics_gets_a_500() {
    let service = service_fn(|request: Request<Body>| {
        assert!(request.uri() != "/panic", "that is what the test wants");
        async move {
            assert!(
                request.uri() != "/panic-later",
                "that is what the test wants"
            );
            match request.uri().path() {
                "/fail" => Err("failed"),
                _ => Ok(Response::new(Full::new(Bytes::from("fine")))),
            }
        }
    });
    let (stats, bumps) = Recorder::new();
    let server = builder().stats(stats).serve(listener(), service).unwrap();
    let mut client = Client::connect(addr(&server));
    for path in ["/panic", "/panic-later", "/fail"] {
        client.ask(path);
        assert_eq!(client.answer().status, 500, "{path}");
        client.ask("/");
        assert_eq!(client.answer().text(), "fine");
    }
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!(report.served, 6);
    server.close();
    let errors = bumps
        .all()
        .into_iter()
        .filter(|(key, _)| key == "sum handler.error");
    assert_eq!(errors.count(), 3);
}

/// Answers, and cannot be cloned while it must not be.
struct ClonedAtTimes(Arc<AtomicBool>);

impl Clone for ClonedAtTimes {
    fn clone(&self) -> Self {
        assert!(
            !self.0.load(Ordering::SeqCst),
            "that is what the test wants"
        );
        Self(Arc::clone(&self.0))
    }
}

impl Service<Request<Body>> for ClonedAtTimes {
    type Response = Response<Empty<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn call(&self, _: Request<Body>) -> Self::Future {
        ready(Ok(Response::new(Empty::new())))
    }
}

#[test]
fn a_service_that_panics_when_it_is_cloned_harms_only_the_connection_that_it_was_for() {
    let panics = Arc::new(AtomicBool::new(false));
    let server = builder()
        .serve(listener(), ClonedAtTimes(Arc::clone(&panics)))
        .unwrap();
    let mut before = Client::get(addr(&server), "/");
    assert_eq!(before.answer().status, 200);
    panics.store(true, Ordering::SeqCst);
    Client::get(addr(&server), "/").assert_ended();
    panics.store(false, Ordering::SeqCst);
    let mut after = Client::get(addr(&server), "/");
    assert_eq!(after.answer().status, 200);
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.connections, report.served), (3, 2));
}

/// A body of these frames, one by one; a frame that is an error fails, one that is nothing panics.
#[derive(Debug)]
struct Frames {
    rest: VecDeque<Option<Result<&'static str, &'static str>>>,
    /// Pending once before each frame, so that what came before it is sent.
    pauses: bool,
}

impl hyper::body::Body for Frames {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        self.pauses = !self.pauses;
        if self.pauses {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(self.rest.pop_front().map(|frame| {
            let data = frame.expect("that is what the test wants")?;
            Ok(Frame::data(Bytes::from(data)))
        }))
    }
}

#[test]
fn a_body_that_fails_is_cut() {
    let service = service_fn(|request: Request<Body>| {
        let last = match request.uri().path() {
            "/fail" => Some(Some(Err("failed"))),
            "/panic" => Some(None),
            _ => None,
        };
        let first = [Some(Ok("whole, ")), Some(Ok("or not"))];
        let body = Frames {
            rest: first.into_iter().chain(last).collect(),
            pauses: false,
        };
        ready(Ok::<_, Infallible>(Response::new(body))) as Ready<_>
    });
    let (stats, bumps) = Recorder::new();
    let server = builder()
        .stats(stats)
        .serve(tcp_listener(), service)
        .unwrap();
    assert_eq!(
        Client::get(addr(&server), "/").answer().text(),
        "whole, or not"
    );
    for path in ["/fail", "/panic"] {
        Client::get(addr(&server), path).try_answer().unwrap_err();
        let mut old = Client::connect(addr(&server));
        old.send(format!("GET {path} HTTP/1.0\r\n\r\n"));
        old.try_answer()
            .expect_err("a FIN would make it look complete");
    }
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.served, report.failed), (1, 4));
    server.close();
    let errors = bumps
        .all()
        .into_iter()
        .filter(|(key, _)| key == "sum handler.error");
    assert_eq!(errors.count(), 4);
}

#[test]
fn a_service_whose_client_leaves_is_dropped() {
    struct Told(Journal<()>);
    impl Drop for Told {
        fn drop(&mut self) {
            self.0.write(());
        }
    }
    let (begun, dropped) = (Journal::new(), Journal::new());
    let (begins, drops) = (begun.clone(), dropped.clone());
    let service = service_fn(move |_: Request<Body>| {
        let told = Told(drops.clone());
        begins.write(());
        async move {
            let _told = told;
            std::future::pending::<Result<Response<Empty<Bytes>>, Infallible>>().await
        }
    });
    let server = builder().serve(listener(), service).unwrap();
    let client = Client::get(addr(&server), "/");
    begun.wait_for_count(1);
    client.reset();
    dropped.wait_for_count(1);
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!(report.gone, 1);
}

/// A service that upgrades every connection, and echoes on it until the client closes its half.
fn serve_echo_upgrade(builder: Builder, listener: Listener) -> Server {
    serve_upgrades(builder, listener, |io| async move {
        let (mut reader, mut writer) = tokio::io::split(io);
        let mut buf = [0; 1024];
        while let Ok(count @ 1..) = reader.read(&mut buf).await {
            if writer.write_all(&buf[..count]).await.is_err() {
                return;
            }
        }
    })
}

fn upgraded_client(server: &Server) -> Client {
    let mut client = Client::connect(addr(server));
    client
        .send("GET / HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nfirst");
    assert_eq!(client.try_head().unwrap().status, 101);
    assert_eq!(client.exactly(5).unwrap(), b"first");
    client
}

#[test]
fn an_upgraded_connection_is_hijacked_and_counts_until_it_is_released() {
    let (stats, bumps) = Recorder::new();
    let events = Journal::new();
    let server = serve_echo_upgrade(
        builder().stats(stats).on_conn_state(into_journal(&events)),
        listener(),
    );
    let mut client = upgraded_client(&server);
    let report = wait_for_report(&server, |report| report.conns_hijacked == 1);
    assert_eq!((report.conns_open, report.served), (1, 1));
    let stopping = stop_elsewhere(&server);
    wait_for_report(&server, |report| report.phase == Phase::Draining);
    client.send("still there");
    assert_eq!(client.exactly(11).unwrap(), b"still there");
    client.half_close();
    client.assert_closed();
    let report = stopping.join().unwrap().unwrap();
    assert_balanced(&report);
    assert_eq!((report.served, report.closed_idle), (1, 0));
    server.close();
    let states = states_of(&events.all(), 0);
    assert!(
        states.starts_with(&[ConnState::New, ConnState::Active]),
        "{states:?}"
    );
    assert!(
        states.ends_with(&[ConnState::Hijacked, ConnState::Closed]),
        "{states:?}"
    );
    let closed = bumps
        .all()
        .into_iter()
        .filter(|(key, _)| key == "sum conn.closed");
    assert_eq!(closed.count(), 1, "as hijacked, and not once more");
}

#[test]
fn a_kill_resets_an_upgraded_connection() {
    let server = serve_echo_upgrade(builder(), tcp_listener());
    let mut client = upgraded_client(&server);
    wait_for_report(&server, |report| report.conns_hijacked == 1);
    server.kill_begin();
    let error = client.until_end().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let _ = wait(&server);
    let report = server.report();
    assert_balanced(&report);
    assert_eq!(report.conns_hijacked, 0);
}

#[test]
fn a_kill_that_cuts_an_upgraded_connection_is_told() {
    let server = serve_echo_upgrade(builder(), listener());
    let client = upgraded_client(&server);
    wait_for_report(&server, |report| report.conns_hijacked == 1);
    server.kill_begin();
    client.assert_ended();
    let result = wait(&server);
    assert!(matches!(result, Err(Error::Killed(_))), "{result:?}");
}

#[test]
fn a_broken_request_gets_a_400_and_harms_nobody() {
    let seen = Arc::new(Mutex::new(0));
    let counts = Arc::clone(&seen);
    let server = serve(pool(1), move |exchange: Exchange| {
        *counts.lock().unwrap() += 1;
        reply(exchange, "fine").unwrap();
    });
    for broken in [
        "nonsense\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "GET / HTTP/1.1\r\nbad header\r\n\r\n",
    ] {
        let mut client = Client::connect(addr(&server));
        client.send(broken);
        let answer = client.answer();
        assert!(answer.status == 400 || answer.status == 505, "{answer:?}");
    }
    assert_eq!(Client::get(addr(&server), "/").answer().text(), "fine");
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!(report.requests, 1);
    assert_eq!(*seen.lock().unwrap(), 1);
}
