//! Readiness, and the lame duck that ends when nobody sends requests any more.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use std::convert::Infallible;
use std::num::NonZeroUsize;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use httpdown::{Body, Builder, Dispatch, Error, Exchange, MockClock, Phase, Server};
use hyper::service::service_fn;

use common::{
    Answer, Client, Gate, LONG, addr, assert_balanced, builder, listener, reply, stop, wait,
    wait_for_report,
};

const SECOND: Duration = Duration::from_secs(1);

/// A server that says `hello` to whatever reaches its handler.
fn hello(builder: Builder) -> Server {
    let handler = |exchange: Exchange| drop(reply(exchange, "hello"));
    let dispatch = Dispatch::Inline;
    builder.handle(listener(), dispatch, handler).unwrap()
}

/// One request, on a connection of its own.
fn fetch(server: &Server, path: &str) -> Answer {
    Client::get(addr(server), path).answer()
}

fn assert_tells(answer: &Answer, status: u16, text: &str) {
    assert_eq!((answer.status, answer.text()), (status, text));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let kind = answer.header("content-type");
    assert_eq!(kind, Some("text/plain; charset=utf-8"));
    assert_eq!(answer.header("allow"), Some("get, head, options"));
}

/// A lame duck of at most 60 seconds, on a clock of its own.
struct Duck {
    server: Server,
    clock: MockClock,
}

impl Duck {
    /// Ends after so many seconds without a request, but not before `min`.
    fn new(quiet: u32, min: u32) -> Self {
        let clock = MockClock::new();
        let builder = builder()
            .clock(clock.clone())
            .ready_path("/ready")
            .lame_duck(60 * SECOND)
            .lame_duck_min(min * SECOND)
            .lame_duck_quiet(quiet * SECOND);
        let server = hello(builder);
        server.stop_begin();
        let duck = Self { server, clock };
        duck.wait_for_timers();
        duck
    }

    /// The duck's whole time, and its silence: when both are set, it waits.
    fn wait_for_timers(&self) {
        self.clock.wait_for_timers(2, LONG).unwrap();
    }

    /// So much time passes, and the duck goes on.
    #[track_caller]
    fn lives(&self, seconds: u32) {
        self.clock.advance(seconds * SECOND);
        self.wait_for_timers();
        assert_eq!(self.server.phase(), Phase::LameDuck);
    }

    /// So much time passes, and the duck has ended just then.
    #[track_caller]
    fn ends(self, seconds: u32, in_all: u32) {
        self.clock.advance(seconds * SECOND);
        let report = wait(&self.server).unwrap();
        assert_balanced(&report);
        assert_eq!(report.stop_duration, in_all * SECOND);
    }
}

#[test]
fn the_ready_path_tells_whether_the_server_is_ready() {
    let clock = MockClock::new();
    let builder = builder().clock(clock.clone()).lame_duck(10 * SECOND);
    let server = hello(builder.ready_path("/ready"));
    assert_tells(&fetch(&server, "/ready"), 200, "ready\n");
    let mut kept = Client::get(addr(&server), "/ready?verbose=1");
    assert_tells(&kept.answer(), 200, "ready\n");

    server.stop_begin();
    clock.wait_for_timers(1, LONG).unwrap();
    kept.ask("/ready");
    for answer in [kept.answer(), fetch(&server, "/ready")] {
        assert_tells(&answer, 503, "stopping\n");
        assert!(answer.closes());
    }
    clock.advance(10 * SECOND);
    let report = wait(&server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.requests, report.served), (4, 4));
}

#[test]
fn the_ready_path_says_stopping_during_the_drain() {
    let server = hello(builder().idle_grace(LONG).ready_path("/ready"));
    let mut client = Client::get(addr(&server), "/ready");
    client.answer();
    let mut late = Client::connect(addr(&server));
    wait_for_report(&server, |report| report.conns_new == 1);
    server.stop_begin();
    while server.phase() < Phase::Draining {
        std::thread::yield_now();
    }
    for client in [&mut client, &mut late] {
        client.ask("/ready");
        let answer = client.answer();
        assert_tells(&answer, 503, "stopping\n");
        assert!(answer.closes());
    }
    assert_balanced(&wait(&server).unwrap());
}

#[test]
fn the_ready_path_is_compared_with_the_path_of_the_target() {
    let server = hello(builder().ready_path("/ready"));
    for same in ["/ready", "/ready?", "/ready?a=/b", "http://host:80/ready?a"] {
        assert_eq!(fetch(&server, same).text(), "ready\n", "{same}");
    }
    for other in [
        "/", "/ready/", "//ready", "/Ready", "/%72eady", "/readyz", "/?/ready",
    ] {
        assert_eq!(fetch(&server, other).text(), "hello", "{other}");
    }
    stop(&server).unwrap();

    let server = hello(builder());
    assert_eq!(fetch(&server, "/ready").text(), "hello");
    stop(&server).unwrap();
}

#[test]
fn the_ready_path_is_for_methods_that_change_nothing() {
    let server = hello(builder().ready_path("/ready"));
    let mut client = Client::connect(addr(&server));
    client.send("HEAD /ready HTTP/1.1\r\nHost: test\r\n\r\n");
    let head = client.try_head().unwrap();
    assert_tells(&head, 200, "");
    assert_eq!(head.header("content-length"), Some("6"));
    // What HAProxy sends by default.
    client.send("OPTIONS /ready HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert_tells(&client.answer(), 200, "ready\n");
    for method in ["POST", "PUT", "DELETE", "PATCH", "TRACE", "BREW"] {
        let head = format!("{method} /ready HTTP/1.1\r\nHost: test\r\n");
        client.send(head + "Content-Length: 4\r\n\r\nbody");
        let answer = client.answer();
        assert_tells(&answer, 405, "method not allowed\n");
        assert!(!answer.closes(), "{method}");
    }
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!(report.served, 8);
}

#[test]
fn the_ready_path_is_answered_when_the_pool_is_full() {
    let (entered, gate) = (Gate::new(), Gate::new());
    let _open_at_end = gate.open_at_end();
    let (enters, passes) = (entered.clone(), gate.clone());
    let handler = move |exchange: Exchange| {
        enters.open();
        passes.pass();
        let _ = reply(exchange, "hello");
    };
    let builder = builder().ready_path("/ready");
    let dispatch = Dispatch::Pool(NonZeroUsize::MIN);
    let server = builder.handle(listener(), dispatch, handler).unwrap();
    let mut busy = Client::get(addr(&server), "/");
    entered.pass();
    let mut waiting = Client::get(addr(&server), "/");
    wait_for_report(&server, |report| report.requests == 2);
    assert_tells(&fetch(&server, "/ready"), 200, "ready\n");
    gate.open();
    assert_eq!(busy.answer().text(), "hello");
    assert_eq!(waiting.answer().text(), "hello");
    stop(&server).unwrap();
}

#[test]
fn the_ready_path_is_answered_when_nobody_takes_from_the_queue() {
    let builder = builder().ready_path("/ready");
    let (server, queue) = builder.queue(listener()).unwrap();
    let mut waiting = Client::get(addr(&server), "/");
    wait_for_report(&server, |report| report.requests == 1);
    assert_tells(&fetch(&server, "/ready"), 200, "ready\n");
    for exchange in queue.take(2, None).unwrap() {
        assert_eq!(exchange.uri(), "/");
        reply(exchange, "hello").unwrap();
    }
    assert_eq!(waiting.answer().text(), "hello");
    stop(&server).unwrap();
}

#[test]
fn the_ready_path_is_answered_before_a_hyper_service() {
    let service = service_fn(|_: Request<Body>| async {
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from("hello"))))
    });
    let builder = builder().ready_path("/ready");
    let server = builder.serve(listener(), service).unwrap();
    assert_tells(&fetch(&server, "/ready"), 200, "ready\n");
    assert_eq!(fetch(&server, "/").text(), "hello");
    stop(&server).unwrap();
}

#[test]
fn a_failure_of_the_service_during_a_lame_duck_closes_too() {
    let service =
        service_fn(|_: Request<Body>| async { Err::<Response<Full<Bytes>>, _>("no good") });
    let clock = MockClock::new();
    let builder = builder().clock(clock.clone()).lame_duck(SECOND);
    let server = builder.serve(listener(), service).unwrap();
    assert!(!fetch(&server, "/").closes());
    server.stop_begin();
    clock.wait_for_timers(1, LONG).unwrap();
    let answer = fetch(&server, "/");
    assert_eq!(answer.status, 500);
    assert!(answer.closes());
    clock.advance(SECOND);
    wait(&server).unwrap();
}

#[test]
fn a_lame_duck_agrees_to_upgrades() {
    let service = service_fn(|request: Request<Body>| async {
        tokio::spawn(hyper::upgrade::on(request)); // Closed as soon as it is there.
        Response::builder()
            .status(101)
            .header("connection", "upgrade")
            .header("upgrade", "test")
            .body(Full::<Bytes>::default())
    });
    let clock = MockClock::new();
    let builder = builder().clock(clock.clone()).lame_duck(SECOND);
    let server = builder.serve(listener(), service).unwrap();
    server.stop_begin();
    clock.wait_for_timers(1, LONG).unwrap();
    let mut client = Client::connect(addr(&server));
    client.send("GET / HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: test\r\n\r\n");
    let answer = client.try_head().unwrap();
    assert_eq!(answer.status, 101);
    assert_eq!(answer.header("connection"), Some("upgrade"));
    client.assert_closed();
    clock.advance(SECOND);
    assert_balanced(&wait(&server).unwrap());
}

#[test]
fn a_lame_duck_ends_when_no_request_has_come_for_a_while() {
    let duck = Duck::new(5, 0);
    for _ in 0..3 {
        duck.lives(4);
        assert_eq!(fetch(&duck.server, "/").status, 200);
    }
    duck.lives(4);
    duck.ends(1, 17);
}

#[test]
fn a_lame_duck_without_a_request_ends_after_the_silence() {
    let duck = Duck::new(5, 0);
    duck.lives(4);
    duck.ends(1, 5);
}

#[test]
fn a_lame_duck_takes_its_least_time_however_quiet_it_is() {
    let duck = Duck::new(5, 20);
    fetch(&duck.server, "/");
    duck.lives(19);
    duck.ends(1, 20);

    // The silence may begin before the least time is over, and end behind it.
    let duck = Duck::new(5, 20);
    duck.lives(18);
    fetch(&duck.server, "/");
    duck.lives(4);
    duck.ends(1, 23);
}

#[test]
fn a_lame_duck_takes_at_most_its_time_however_busy_it_is() {
    let duck = Duck::new(20, 0);
    for _ in 0..3 {
        duck.lives(19);
        assert_eq!(fetch(&duck.server, "/").status, 200);
    }
    duck.ends(3, 60);
}

#[test]
fn a_lame_duck_that_need_not_be_quiet_takes_all_its_time() {
    let clock = MockClock::new();
    let builder = builder().clock(clock.clone());
    let server = hello(builder.lame_duck(60 * SECOND).lame_duck_min(SECOND));
    server.stop_begin();
    clock.wait_for_timers(1, LONG).unwrap();
    clock.advance(59 * SECOND);
    fetch(&server, "/");
    assert_eq!(server.phase(), Phase::LameDuck);
    clock.advance(SECOND);
    assert_eq!(wait(&server).unwrap().stop_duration, 60 * SECOND);
}

#[test]
fn checks_do_not_keep_a_lame_duck_alive() {
    let duck = Duck::new(5, 0);
    duck.lives(4);
    // Readiness probes, on a connection each and on a kept one, and a check that only connects.
    assert_eq!(fetch(&duck.server, "/ready").status, 503);
    let mut other = Client::connect(addr(&duck.server));
    other.send("POST /ready HTTP/1.1\r\nHost: test\r\n\r\n");
    assert_eq!(other.answer().status, 405);
    let silent = Client::connect(addr(&duck.server));
    wait_for_report(&duck.server, |report| report.conns_new == 1);
    drop(silent);
    duck.ends(1, 5);
}

#[test]
fn requests_on_old_connections_keep_a_lame_duck_alive() {
    let clock = MockClock::new();
    let builder = builder().clock(clock.clone()).lame_duck(60 * SECOND);
    let server = hello(builder.lame_duck_quiet(5 * SECOND));
    let mut old = Client::get(addr(&server), "/");
    old.answer();
    server.stop_begin();
    let duck = Duck { server, clock };
    duck.wait_for_timers();
    duck.lives(4);
    old.ask("/");
    assert!(old.answer().closes());
    duck.lives(4);
    duck.ends(1, 9);
}

#[test]
fn a_request_counts_when_it_comes_not_when_it_is_answered() {
    let (entered, gate) = (Gate::new(), Gate::new());
    let _open_at_end = gate.open_at_end();
    let (enters, passes) = (entered.clone(), gate.clone());
    let handler = move |exchange: Exchange| {
        enters.open();
        passes.pass();
        let _ = reply(exchange, "hello");
    };
    let clock = MockClock::new();
    let builder = builder().clock(clock.clone()).lame_duck(60 * SECOND);
    let builder = builder.lame_duck_quiet(5 * SECOND);
    let dispatch = Dispatch::default();
    let server = builder.handle(listener(), dispatch, handler).unwrap();
    server.stop_begin();
    let duck = Duck { server, clock };
    duck.wait_for_timers();
    let mut client = Client::get(addr(&duck.server), "/");
    entered.pass();
    duck.lives(3);
    gate.open();
    assert_eq!(client.answer().text(), "hello");
    duck.ends(2, 5);
}

#[test]
fn a_kill_ends_a_lame_duck_that_waits_for_silence() {
    let duck = Duck::new(60, 60);
    duck.server.kill_begin();
    duck.ends(0, 0);
}

#[test]
fn settings_that_make_no_sense_are_errors() {
    let why = |builder: Builder| match builder.queue(listener()) {
        Err(Error::InvalidArgument(why)) => why,
        other => unreachable!("{other:?}"),
    };
    for path in [
        "",
        "ready",
        "*",
        "/a?",
        "/a?b",
        "/a#",
        "/a b",
        "/\n",
        "/a\0",
        "/a\x7f",
        "/ä",
        "http://a/b",
    ] {
        let why = why(builder().ready_path(path));
        assert!(why.contains(&format!("ready_path {path:?}")), "{why}");
    }
    let duck = || builder().lame_duck(5 * SECOND);
    assert_eq!(
        why(duck().lame_duck_min(6 * SECOND)),
        "lame_duck_min (6s) is longer than lame_duck (5s)"
    );
    assert_eq!(
        why(duck().lame_duck_quiet(6 * SECOND)),
        "lame_duck_quiet (6s) is longer than lame_duck (5s)"
    );
    let alone = why(builder().lame_duck_quiet(SECOND));
    assert_eq!(alone, "lame_duck_quiet (1s) is longer than lame_duck (0ns)");

    let most = duck().lame_duck_min(5 * SECOND).lame_duck_quiet(5 * SECOND);
    for fine in [
        most,
        builder().ready_path("/"),
        builder().ready_path("/-/ready:~(%41)"),
    ] {
        let (server, _) = fine.queue(listener()).unwrap();
        server.kill_begin(); // Its lame duck would take real time.
        server.close();
    }
}
