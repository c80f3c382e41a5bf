//! Durations of nothing and without end, in all combinations: nothing overflows or panics, and nothing is killed that
//! had not to be.
#![allow(clippy::unwrap_used, reason = "a test that fails panics")]

mod common;

use std::convert::Infallible;
use std::io::Write;
use std::net::Shutdown;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use httpdown::{Body, Builder, Dispatch, Error, Exchange, Phase, Server};
use hyper::service::service_fn;
use hyper::{Request, Response};

use common::{
    Client, Journal, LONG, addr, assert_balanced, builder, hello, listener, reply, wait,
    wait_for_phase,
};

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: test\r\n\r\n";

/// Pipelines requests without end, and reads until a response says that it is the last. Whether one did.
fn pipeline(mut client: Client) -> JoinHandle<bool> {
    let mut sender = client.socket().try_clone().unwrap();
    let sends = thread::spawn(move || {
        let requests = REQUEST.repeat(50);
        while sender.write_all(requests.as_bytes()).is_ok() {}
    });
    thread::spawn(move || {
        let mut told = false;
        while let Ok(answer) = client.try_answer() {
            told |= answer.closes();
        }
        // Whoever still sends ends by that.
        let _ = client.socket().shutdown(Shutdown::Both);
        sends.join().unwrap();
        told
    })
}

#[test]
fn in_a_lame_duck_without_limit_pipelined_requests_are_answered() {
    let builder = builder()
        .lame_duck(Duration::MAX)
        .lame_duck_quiet(Duration::from_millis(200));
    let server = hello(builder, listener());
    let mut client = Client::connect(addr(&server));
    client.ask("/");
    client.answer();
    server.stop_begin();
    wait_for_phase(&server, Phase::LameDuck);
    client.send(REQUEST.repeat(3));
    for _ in 0..3 {
        client.answer();
    }
    let report = wait(&server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.requests, report.served), (4, 4));
}

#[test]
fn a_lame_duck_that_ends_early_leaves_its_time_to_nobody_who_pipelines() {
    let builder = builder()
        .lame_duck(Duration::from_secs(3600))
        .lame_duck_quiet(Duration::from_millis(50))
        // A client that is slow to begin must not be closed as idle, nor must one that is slow to read lose its last answer
        // because it has gone on sending.
        .idle_grace(LONG)
        .linger_timeout(LONG)
        .stop_timeout(Duration::from_secs(4));
    let server = hello(builder, listener());
    let mut client = Client::connect(addr(&server));
    client.ask("/");
    client.answer();
    // What is being read goes on in the lame duck: its first byte is no request yet.
    server.stop_begin();
    wait_for_phase(&server, Phase::Quiescing);
    let told = pipeline(client);
    let report = wait(&server).unwrap();
    assert!(told.join().unwrap());
    assert_eq!(report.killed, 0, "{report:?}");
}

/// What can be extreme. `None`: the default of these tests.
const EXTREMES: [Option<Duration>; 4] = [
    None,
    Some(Duration::ZERO),
    Some(Duration::from_millis(1)),
    Some(Duration::MAX),
];

type Set = fn(Builder, Duration) -> Builder;

const DURATIONS: [(&str, Set); 9] = [
    ("lame_duck", |builder, duration| {
        builder
            .lame_duck(duration)
            .lame_duck_quiet(duration.min(Duration::from_millis(20)))
    }),
    ("stop_timeout", Builder::stop_timeout),
    ("kill_timeout", Builder::kill_timeout),
    ("quiesce_timeout", Builder::quiesce_timeout),
    ("linger_timeout", Builder::linger_timeout),
    ("header_timeout", Builder::header_timeout),
    ("second_signal", Builder::second_signal),
    ("idle_grace", Builder::idle_grace),
    ("idle_timeout", |builder, duration| {
        // None at all is refused.
        builder.idle_timeout(duration.max(Duration::from_nanos(1)))
    }),
];

fn start(builder: Builder, way: usize) -> Server {
    let handler = |exchange: Exchange| {
        let _ = reply(exchange, "hello");
    };
    match way {
        0 => builder
            .handle(listener(), Dispatch::Inline, handler)
            .unwrap(),
        1 => builder
            .handle(listener(), Dispatch::default(), handler)
            .unwrap(),
        2 => {
            let (server, queue) = builder.queue(listener()).unwrap();
            thread::spawn(move || {
                while let Ok(requests) = queue.take(16, None) {
                    requests.into_iter().for_each(handler);
                }
            });
            server
        }
        _ => {
            let service = service_fn(|_: Request<Body>| async {
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"hello"))))
            });
            builder.serve(listener(), service).unwrap()
        }
    }
}

/// Two at a time, each with each, and each way to handle requests in turn.
#[test]
fn every_pair_of_extreme_durations_ends_and_balances() {
    let panics = Journal::new();
    let seen = panics.clone();
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        seen.write(info.to_string());
        before(info);
    }));
    let mut way = 0;
    for (at, (first, set_first)) in DURATIONS.iter().enumerate() {
        for (second, set_second) in &DURATIONS[at + 1..] {
            for one in EXTREMES {
                for other in EXTREMES {
                    let mut builder = builder().idle_grace(Duration::from_millis(1));
                    if let Some(one) = one {
                        builder = set_first(builder, one);
                    }
                    if let Some(other) = other {
                        builder = set_second(builder, other);
                    }
                    let case = format!("{first} {one:?}, {second} {other:?}, way {way}");
                    stop_while_pipelining(builder, way, &case);
                    way = (way + 1) % 4;
                }
            }
        }
    }
    drop(std::panic::take_hook());
    assert_eq!(panics.all(), Vec::<String>::new());
}

fn stop_while_pipelining(builder: Builder, way: usize, case: &str) {
    let server = start(builder, way);
    let mut client = Client::connect(addr(&server));
    // A header timeout, or an idle timeout, of nothing may be quicker.
    let _ = client.try_send(REQUEST.repeat(3));
    let answered = (0..3).filter(|_| client.try_answer().is_ok()).count();
    server.stop_begin();
    // It answers the server's FIN with its own, which a linger without limit waits for; an idle grace without limit
    // waits for the client's.
    let is_first = case.contains(&format!("idle_grace {:?}", Some(Duration::MAX)));
    let leaves = thread::spawn(move || {
        if !is_first {
            let _ = client.until_end();
        }
    });
    let result = server.wait_blocking(Some(Instant::now() + LONG));
    leaves.join().unwrap();
    assert!(!matches!(result, Err(Error::WouldBlock)), "{case}");
    let report = server.report();
    assert_balanced(&report);
    assert!(report.served >= answered as u64, "{case}: {report:?}");
    let is_hasty = case.contains("stop_timeout Some(0") || case.contains("stop_timeout Some(1ms");
    if !is_hasty {
        assert!(result.is_ok(), "{case}: {result:?}, {report:?}");
        assert_eq!(report.killed, 0, "{case}: {report:?}");
    }
}
