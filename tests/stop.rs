//! The stop, seen from outside: what it promises to clients, and what it says to its host.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::similar_names,
    reason = "a helper that fails fails its test; and a server serves what was served"
)]

mod common;

use std::convert::Infallible;
use std::fs::File;
use std::io::ErrorKind;
use std::net::{Shutdown, TcpListener};
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use httpdown::{
    Addr, Body, Builder, ConnState, Dispatch, Error, Exchange, Listener, LogLevel, MockClock,
    Phase, Server,
};
use hyper::service::service_fn;
use socket2::{SockAddr, SockRef, Socket};

use common::{
    Client, Gate, Journal, LONG, Recorder, addr, assert_balanced, builder, into_journal, listener,
    reply, states_of, stop, stop_elsewhere, tcp_listener, unconnected, wait, wait_for_report,
};

const MINUTE: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

/// A server that answers `hello`; `/gate` only when the gate is open. Says who has come to the gate, and which phase
/// it is in.
struct Fixture {
    server: Server,
    gate: Gate,
    /// Entered by a handler that is about to wait at the gate.
    at_gate: Journal<String>,
    phases: Journal<Phase>,
    _open_at_end: common::OpenAtEnd,
}

impl Fixture {
    fn new() -> Self {
        Self::with(builder())
    }

    fn with(builder: Builder) -> Self {
        Self::on(listener(), builder)
    }

    /// Handlers run in place, on so many threads.
    fn in_place(threads: NonZeroUsize) -> Self {
        Self::dispatched(listener(), builder().io_threads(threads), Dispatch::Inline)
    }

    fn on(listener: Listener, builder: Builder) -> Self {
        Self::dispatched(listener, builder, Dispatch::default())
    }

    fn dispatched(listener: Listener, builder: Builder, dispatch: Dispatch) -> Self {
        let (gate, at_gate, phases) = (Gate::new(), Journal::new(), Journal::new());
        let handler = {
            let (gate, at_gate) = (gate.clone(), at_gate.clone());
            move |exchange: Exchange| {
                if exchange.uri() == "/gate" {
                    at_gate.write(exchange.uri().to_string());
                    gate.pass();
                }
                let _ = reply(exchange, "hello");
            }
        };
        let server = builder
            .on_phase(into_journal(&phases))
            .handle(listener, dispatch, handler)
            .unwrap();
        Self {
            server,
            _open_at_end: gate.open_at_end(),
            gate,
            at_gate,
            phases,
        }
    }

    fn connect(&self) -> Client {
        Client::connect(addr(&self.server))
    }

    /// A client whose request waits at the gate.
    fn client_at_gate(&self) -> Client {
        let count = self.at_gate.all().len();
        let client = Client::get(addr(&self.server), "/gate");
        self.at_gate.wait_for_count(count + 1);
        client
    }

    /// A client that has got an answer, and could send another request.
    fn idle_client(&self) -> Client {
        let mut client = Client::get(addr(&self.server), "/");
        assert_eq!(client.answer().text(), "hello");
        client
    }

    fn wait_for_phase(&self, phase: Phase) {
        self.phases.wait_for(|entered| *entered == phase);
    }

    fn assert_runs(&self) {
        let result = self.server.wait_blocking(Some(Instant::now()));
        assert!(matches!(result, Err(Error::WouldBlock)), "{result:?}");
    }
}

#[test]
fn a_server_without_requests_stops() {
    let fixture = Fixture::new();
    let report = stop(&fixture.server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.connections, report.requests), (0, 0));
    let refused = Client::try_connect(addr(&fixture.server)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

/// golang/go 22682, hyper 2730: a connection that never sends a request holds up the stop.
#[test]
fn a_server_whose_requests_are_finished_stops() {
    let fixture = Fixture::new();
    let idle = fixture.idle_client();
    let new = fixture.connect();
    wait_for_report(&fixture.server, |report| report.conns_new == 1);
    let report = stop(&fixture.server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.connections, report.served), (2, 1));
    assert_eq!(report.closed_idle, 2);
    idle.assert_closed();
    new.assert_closed();
}

#[test]
fn a_request_under_way_gets_its_whole_answer() {
    const PIECE: usize = 50;
    const PIECES: usize = 1_000;
    let begun = Gate::new();
    let draining = Gate::new();
    let _open_at_end = draining.open_at_end();
    let (writes, goes_on) = (begun.clone(), draining.clone());
    let handler = move |mut exchange: Exchange| {
        exchange.start(Response::new(())).unwrap();
        for index in 0..PIECES {
            if index == PIECES / 10 {
                writes.open();
                goes_on.pass();
            }
            exchange.write(&[b'x'; PIECE]).unwrap();
        }
        exchange.finish().unwrap();
    };
    let server = builder()
        .on_phase(move |phase| {
            if phase == Phase::Draining {
                draining.open();
            }
        })
        .handle(listener(), Dispatch::default(), handler)
        .unwrap();
    let mut client = Client::get(addr(&server), "/");
    begun.pass();
    let stopping = stop_elsewhere(&server);
    let answer = client.answer();
    assert!(answer.body == vec![b'x'; PIECE * PIECES]);
    client.assert_closed();
    let report = stopping.join().unwrap().unwrap();
    assert_balanced(&report);
    assert_eq!(report.served, 1);
}

#[test]
fn new_connections_are_refused_while_an_old_request_goes_on() {
    let fixture = Fixture::new();
    let mut client = fixture.client_at_gate();
    fixture.server.stop_begin();
    fixture.wait_for_phase(Phase::Draining);
    let refused = Client::try_connect(addr(&fixture.server)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    fixture.assert_runs();
    fixture.gate.open();
    assert_eq!(client.answer().text(), "hello");
    assert_eq!(wait(&fixture.server).unwrap().served, 1);
}

#[test]
fn answers_after_the_stop_say_that_the_connection_closes() {
    let fixture = Fixture::new();
    let mut idle = fixture.connect();
    idle.ask("/");
    assert!(!idle.answer().closes());
    let mut client = fixture.client_at_gate();
    fixture.server.stop_begin();
    fixture.wait_for_phase(Phase::Draining);
    fixture.gate.open();
    assert!(client.answer().closes());
    client.assert_closed();
    idle.assert_closed();
    assert_balanced(&wait(&fixture.server).unwrap());
}

#[test]
fn an_answer_begun_before_the_stop_is_the_last_of_its_connection() {
    let (begun, gate) = (Gate::new(), Gate::new());
    let _open_at_end = gate.open_at_end();
    let (begins, goes_on) = (begun.clone(), gate.clone());
    let server = builder()
        .handle(
            listener(),
            Dispatch::default(),
            move |mut exchange: Exchange| {
                exchange.start(Response::new(())).unwrap();
                begins.open();
                goes_on.pass();
                exchange.write(b"late").unwrap();
                exchange.finish().unwrap();
            },
        )
        .unwrap();
    let mut client = Client::get(addr(&server), "/");
    begun.pass();
    let head = client.try_head().unwrap();
    assert!(!head.closes());
    let stopping = stop_elsewhere(&server);
    wait_for_report(&server, |report| report.phase == Phase::Draining);
    gate.open();
    assert_eq!(client.try_chunk().unwrap().unwrap(), b"late");
    assert_eq!(client.try_chunk().unwrap(), None);
    client.assert_closed();
    assert_balanced(&stopping.join().unwrap().unwrap());
}

#[test]
fn a_handler_that_has_answered_holds_up_the_stop_until_it_returns() {
    let gate = Gate::new();
    let _open_at_end = gate.open_at_end();
    let returns = gate.clone();
    let server = builder()
        .handle(
            listener(),
            Dispatch::default(),
            move |exchange: Exchange| {
                reply(exchange, "early").unwrap();
                returns.pass();
            },
        )
        .unwrap();
    let mut client = Client::get(addr(&server), "/");
    assert_eq!(client.answer().text(), "early");
    server.stop_begin();
    client.assert_closed();
    let result = server.wait_blocking(Some(Instant::now()));
    assert!(matches!(result, Err(Error::WouldBlock)), "{result:?}");
    gate.open();
    assert_balanced(&wait(&server).unwrap());
}

#[test]
fn a_kept_cancellation_does_not_hold_up_the_stop() {
    let told = Journal::new();
    let tells = told.clone();
    let server = builder()
        .handle(
            listener(),
            Dispatch::default(),
            move |exchange: Exchange| {
                let (cancellation, tells) = (exchange.cancellation(), tells.clone());
                thread::spawn(move || {
                    let _ = cancellation.wait_until(None);
                    tells.write(());
                });
                reply(exchange, "hello").unwrap();
            },
        )
        .unwrap();
    let mut client = Client::get(addr(&server), "/");
    assert_eq!(client.answer().text(), "hello");
    assert_balanced(&stop(&server).unwrap());
    told.wait_for_count(1);
}

/// hyper 3792: a graceful shutdown closes a connection with half a head in its buffer.
#[test]
fn a_partly_received_head_at_the_stop_is_answered() {
    let fixture = Fixture::new();
    let mut client = fixture.connect();
    client.send("GET / HTTP/1.1\r\nHo");
    wait_for_report(&fixture.server, |report| report.conns_active == 1);
    fixture.server.stop_begin();
    fixture.wait_for_phase(Phase::Draining);
    fixture.assert_runs();
    client.send("st: test\r\n\r\n");
    let answer = client.answer();
    assert_eq!((answer.status, answer.text()), (200, "hello"));
    assert!(answer.closes());
    client.assert_closed();
    let report = wait(&fixture.server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.served, report.closed_idle), (1, 0));
}

/// hyper with `pipeline_flush`: the beginning of a next head withholds a finished response.
#[test]
fn a_partly_received_head_behind_a_request_is_answered() {
    let fixture = Fixture::new();
    let mut client = fixture.connect();
    client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\nGET / HTTP/1.1\r\nHo");
    assert!(!client.answer().closes());
    wait_for_report(&fixture.server, |report| report.served == 1);
    fixture.server.stop_begin();
    fixture.wait_for_phase(Phase::Draining);
    client.send("st: test\r\n\r\n");
    let answer = client.answer();
    assert_eq!((answer.status, answer.text()), (200, "hello"));
    assert!(answer.closes());
    client.assert_closed();
    let report = wait(&fixture.server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.served, report.closed_idle), (2, 0));
}

#[test]
fn a_body_that_comes_slowly_during_the_stop_is_read_to_its_end() {
    let server = builder()
        .handle(listener(), Dispatch::default(), |mut exchange: Exchange| {
            let body = exchange.read_to_end(1 << 20).unwrap();
            reply(exchange, body).unwrap();
        })
        .unwrap();
    let mut client = Client::connect(addr(&server));
    client.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\n01");
    wait_for_report(&server, |report| report.requests == 1);
    let stopping = stop_elsewhere(&server);
    wait_for_report(&server, |report| report.phase == Phase::Draining);
    for piece in ["234", "567", "89"] {
        client.send(piece);
    }
    assert_eq!(client.answer().text(), "0123456789");
    assert_balanced(&stopping.join().unwrap().unwrap());
}

/// hyper: a graceful shutdown drops the requests that it has buffered.
#[test]
fn pipelined_requests_received_before_the_stop_are_all_answered() {
    let fixture = Fixture::new();
    let mut client = fixture.connect();
    let request = |path| format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n");
    client.send([request("/gate"), request("/"), request("/")].concat());
    fixture.at_gate.wait_for_count(1);
    fixture.server.stop_begin();
    fixture.wait_for_phase(Phase::Draining);
    fixture.gate.open();
    let closes = [client.answer(), client.answer(), client.answer()].map(|answer| answer.closes());
    assert_eq!(closes, [false, false, true]);
    assert_eq!(wait(&fixture.server).unwrap().served, 3);
}

/// gunicorn 3397, golang/go 68849: a listener is closed with connections in its queue, which are reset.
#[test]
fn connections_that_wait_to_be_accepted_at_the_stop_are_served() {
    const CLIENTS: usize = 40;
    let fixture = Fixture::in_place(NonZeroUsize::MIN);
    let idle = fixture.idle_client();
    let mut clients = vec![fixture.client_at_gate()];
    // The handler blocks the thread that accepts: these wait in the kernel.
    clients.extend((1..CLIENTS).map(|_| Client::get(addr(&fixture.server), "/")));
    assert_eq!(fixture.server.report().connections, 2);
    fixture.server.stop_begin();
    fixture.wait_for_phase(Phase::Draining);
    fixture.gate.open();
    let lost = clients
        .iter_mut()
        .filter_map(|client| client.try_answer().err())
        .collect::<Vec<_>>();
    assert!(lost.is_empty(), "{} of {CLIENTS}: {lost:?}", lost.len());
    idle.assert_closed();
    let report = wait(&fixture.server).unwrap();
    assert_balanced(&report);
    assert_eq!(report.served, 1 + CLIENTS as u64);
}

#[test]
fn a_listener_is_gone_after_the_stop_though_a_handler_blocks_the_thread_that_accepts() {
    let fixture = Fixture::in_place(NonZeroUsize::MIN);
    let addr = addr(&fixture.server);
    let mut client = fixture.client_at_gate();
    fixture.server.stop_begin();
    fixture.wait_for_phase(Phase::Draining);
    let refused = Client::try_connect(addr).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    // The next server can have the address; but an abstract name is taken as long as its socket is open.
    if addr.as_ip().is_some() {
        Listener::bind(&addr.to_string()).unwrap();
    }
    fixture.gate.open();
    assert_eq!(client.answer().text(), "hello");
    assert_balanced(&wait(&fixture.server).unwrap());
}

#[test]
fn new_connections_are_served_while_a_handler_blocks_the_thread_that_accepts() {
    let two = NonZeroUsize::new(2).unwrap();
    let fixture = Fixture::in_place(two);
    // The first client is served where it is accepted.
    let mut at_gate = fixture.client_at_gate();
    let others: Vec<_> = (0..10).map(|_| fixture.idle_client()).collect();
    fixture.gate.open();
    assert_eq!(at_gate.answer().text(), "hello");
    drop((at_gate, others));
    // When it gets on, it accepts again.
    fixture.idle_client();
    let report = stop(&fixture.server).unwrap();
    assert_balanced(&report);
    assert_eq!(report.served, 12);
}

/// What it holds is in an answer's body, and dropped on an I/O thread.
struct Lent(Gate, Journal<()>);

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        b"lent"
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.1.write(());
        self.0.pass();
    }
}

#[test]
fn new_connections_are_served_while_a_host_blocks_the_thread_that_accepts_by_taking_memory_back() {
    let (gate, dropped) = (Gate::new(), Journal::new());
    let _open_at_end = gate.open_at_end();
    let lent = Mutex::new(Some(Lent(gate.clone(), dropped.clone())));
    let server = builder()
        .io_threads(NonZeroUsize::new(2).unwrap())
        .handle(
            listener(),
            Dispatch::default(),
            move |exchange: Exchange| {
                let lent = lent.lock().unwrap().take();
                let _ = match lent {
                    Some(lent) => exchange.reply(Response::new(Bytes::from_owner(lent))),
                    None => reply(exchange, "hello"),
                };
            },
        )
        .unwrap();
    let mut first = Client::get(addr(&server), "/");
    dropped.wait_for_count(1);
    let mut others: Vec<_> = (0..10).map(|_| Client::get(addr(&server), "/")).collect();
    for client in &mut others {
        assert_eq!(client.answer().text(), "hello");
    }
    gate.open();
    assert_eq!(first.answer().text(), "lent");
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!(report.served, 11);
}

#[test]
fn a_lame_duck_still_accepts_but_is_not_ready() {
    let clock = MockClock::new();
    let fixture = Fixture::with(builder().lame_duck(10 * SECOND).clock(clock.clone()));
    let idle: Vec<_> = (0..10).map(|_| fixture.idle_client()).collect();
    assert!(fixture.server.is_ready());
    fixture.server.stop_begin();
    fixture.wait_for_phase(Phase::LameDuck);
    clock.wait_for_timers(1, LONG).unwrap();
    assert!(!fixture.server.is_ready());
    clock.advance(9 * SECOND);
    // Who has a connection is told to go elsewhere, and who comes again is served.
    let mut idle = idle.into_iter();
    let mut old = idle.next().unwrap();
    old.ask("/");
    let new = Client::get(addr(&fixture.server), "/");
    for mut client in [old, new] {
        assert!(client.answer().closes());
        client.assert_closed();
    }
    assert_eq!(fixture.server.phase(), Phase::LameDuck);
    clock.advance(SECOND);
    let report = wait(&fixture.server).unwrap();
    assert_balanced(&report);
    assert_eq!(report.closed_idle, 9);
    assert_eq!(report.stop_duration, 10 * SECOND);
    idle.for_each(Client::assert_closed);
}

#[test]
fn a_kill_ends_the_lame_duck() {
    let clock = MockClock::new();
    let fixture = Fixture::with(builder().lame_duck(10 * SECOND).clock(clock.clone()));
    let client = fixture.idle_client();
    fixture.server.stop_begin();
    fixture.wait_for_phase(Phase::LameDuck);
    fixture.server.kill_begin();
    assert_balanced(&wait(&fixture.server).unwrap());
    client.assert_ended();
}

#[test]
fn requests_may_finish_until_the_stop_timeout() {
    let clock = MockClock::new();
    let fixture = Fixture::with(builder().clock(clock.clone()));
    let mut client = fixture.client_at_gate();
    fixture.server.stop_begin();
    clock.wait_for_timers(1, LONG).unwrap();
    clock.advance(59 * SECOND);
    fixture.assert_runs();
    fixture.gate.open();
    assert_eq!(client.answer().text(), "hello");
    let report = wait(&fixture.server).unwrap();
    assert_balanced(&report);
    assert_eq!(report.stop_duration, 59 * SECOND);
    assert_eq!(report.served, 1);
}

#[test]
fn the_stop_timeout_cuts_what_is_left() {
    let clock = MockClock::new();
    let begun = Gate::new();
    let (begins, told) = (begun.clone(), Journal::new());
    let tells = told.clone();
    let server = builder()
        .stop_timeout(5 * SECOND)
        .clock(clock.clone())
        .handle(
            tcp_listener(),
            Dispatch::default(),
            move |mut exchange: Exchange| {
                // Without a length: a FIN would make what has come look complete.
                exchange.start(Response::new(())).unwrap();
                exchange.write(b"half").unwrap();
                begins.open();
                let why = exchange
                    .cancellation()
                    .wait_until(Some(Instant::now() + LONG));
                tells.write(format!("{why:?}"));
                assert!(matches!(exchange.write(b"more"), Err(Error::Killed(_))));
                assert!(matches!(exchange.finish(), Err(Error::Killed(_))));
            },
        )
        .unwrap();
    let mut client = Client::connect(addr(&server));
    client.send("GET / HTTP/1.0\r\n\r\n");
    begun.pass();
    assert_eq!(client.try_head().unwrap().status, 200);
    assert_eq!(client.exactly(4).unwrap(), b"half");
    let stopping = stop_elsewhere(&server);
    clock.wait_for_timers(1, LONG).unwrap();
    clock.advance(5 * SECOND);
    let cut = client.until_end().unwrap_err();
    assert_eq!(cut.kind(), ErrorKind::ConnectionReset);
    let result = stopping.join().unwrap();
    assert!(matches!(result, Err(Error::Killed(_))), "{result:?}");
    assert_eq!(told.all(), ["Some(Killed(None))"]);
    let report = server.report();
    assert_balanced(&report);
    assert_eq!((report.killed, report.abandoned), (1, 0));
}

#[test]
fn a_kill_waits_for_handlers_until_the_kill_timeout() {
    let clock = MockClock::new();
    let fixture = Fixture::with(builder().clock(clock.clone()));
    let client = fixture.client_at_gate();
    fixture.server.stop_begin();
    clock.wait_for_timers(1, LONG).unwrap();
    clock.advance(MINUTE);
    fixture.wait_for_phase(Phase::Killing);
    client.assert_ended();
    clock.advance(59 * SECOND);
    fixture.assert_runs();
    fixture.gate.open();
    let result = wait(&fixture.server);
    assert!(matches!(result, Err(Error::Killed(_))), "{result:?}");
    let report = fixture.server.report();
    assert_balanced(&report);
    assert_eq!((report.killed, report.abandoned), (1, 0));
    assert_eq!(report.stop_duration, 119 * SECOND);
}

/// What a handler does that never returns: in the pool, or on the thread that drives its connection.
fn never_returning_handler_is_abandoned(dispatch: Dispatch) {
    let clock = MockClock::new();
    let (gate, begun, phases) = (Gate::new(), Gate::new(), Journal::new());
    let _open_at_end = gate.open_at_end();
    let (begins, never) = (begun.clone(), gate.clone());
    let server = builder()
        .clock(clock.clone())
        .on_phase(into_journal(&phases))
        .handle(listener(), dispatch, move |exchange: Exchange| {
            begins.open();
            never.pass();
            let _ = reply(exchange, "too late");
        })
        .unwrap();
    let client = Client::get(addr(&server), "/");
    begun.pass();
    server.stop_begin();
    clock.wait_for_timers(1, LONG).unwrap();
    clock.advance(MINUTE);
    phases.wait_for(|phase| *phase == Phase::Killing);
    client.assert_ended();
    clock.advance(MINUTE);
    let result = wait(&server);
    assert!(matches!(result, Err(Error::TimedOut(_))), "{result:?}");
    let report = server.report();
    assert_eq!(report.phase, Phase::Stopped);
    assert_eq!((report.requests, report.abandoned), (1, 1));
    assert_eq!(report.stop_duration, 2 * MINUTE);
}

#[test]
fn a_handler_that_never_returns_is_abandoned() {
    never_returning_handler_is_abandoned(Dispatch::default());
}

#[test]
fn a_handler_that_never_returns_to_its_io_thread_is_abandoned() {
    never_returning_handler_is_abandoned(Dispatch::Inline);
}

#[test]
fn an_abandoned_request_is_among_the_killed() {
    let clock = MockClock::new();
    let fixture = Fixture::with(builder().clock(clock.clone()));
    let client = fixture.client_at_gate();
    fixture.server.stop_begin();
    clock.wait_for_timers(1, LONG).unwrap();
    clock.advance(MINUTE);
    fixture.wait_for_phase(Phase::Killing);
    client.assert_ended();
    clock.advance(MINUTE);
    let result = wait(&fixture.server);
    assert!(matches!(result, Err(Error::TimedOut(_))), "{result:?}");
    let report = fixture.server.report();
    assert_balanced(&report);
    assert_eq!((report.killed, report.abandoned), (1, 1));
}

#[test]
fn a_second_stop_gets_the_same_answer() {
    let (stats, bumps) = Recorder::new();
    let fixture = Fixture::with(builder().stats(stats));
    let mut client = fixture.client_at_gate();
    let stops: Vec<_> = (0..3).map(|_| stop_elsewhere(&fixture.server)).collect();
    fixture.wait_for_phase(Phase::Draining);
    fixture.gate.open();
    assert_eq!(client.answer().text(), "hello");
    let reports: Vec<_> = stops
        .into_iter()
        .map(|stop| stop.join().unwrap().unwrap())
        .collect();
    assert!(reports.iter().all(|report| *report == reports[0]));
    assert_eq!(stop(&fixture.server).unwrap(), reports[0]);
    assert_eq!(wait(&fixture.server).unwrap(), reports[0]);
    fixture.server.close();
    let stops = bumps.all().into_iter().filter(|(key, _)| key == "sum stop");
    assert_eq!(stops.count(), 1);
}

#[test]
fn a_second_stop_of_a_killed_server_gets_the_same_error() {
    let fixture = Fixture::with(builder().stop_timeout(Duration::ZERO));
    let client = fixture.client_at_gate();
    let first = stop_elsewhere(&fixture.server);
    client.assert_ended();
    fixture.gate.open();
    assert!(matches!(first.join().unwrap(), Err(Error::Killed(_))));
    assert!(matches!(stop(&fixture.server), Err(Error::Killed(_))));
}

#[test]
fn a_kill_may_come_without_a_stop() {
    let (stats, bumps) = Recorder::new();
    let fixture = Fixture::with(builder().stats(stats));
    let client = fixture.client_at_gate();
    let idle = fixture.idle_client();
    fixture.server.kill_begin();
    client.assert_ended();
    idle.assert_ended();
    fixture.gate.open();
    let result = wait(&fixture.server);
    assert!(matches!(result, Err(Error::Killed(_))), "{result:?}");
    let report = fixture.server.report();
    assert_balanced(&report);
    assert_eq!((report.served, report.killed), (1, 1));
    fixture.server.close();
    let keys: Vec<_> = bumps.all().into_iter().map(|(key, _)| key).collect();
    assert!(keys.contains(&"sum stop".into()) && keys.contains(&"sum kill".into()));
}

#[test]
fn a_kill_during_the_drain_cuts_what_is_left() {
    let fixture = Fixture::new();
    let client = fixture.client_at_gate();
    fixture.server.stop_begin();
    fixture.wait_for_phase(Phase::Draining);
    fixture.server.kill_begin();
    client.assert_ended();
    fixture.gate.open();
    let result = wait(&fixture.server);
    assert!(matches!(result, Err(Error::Killed(_))), "{result:?}");
}

#[test]
fn a_partly_received_head_that_a_kill_cuts_is_a_killed_request() {
    let fixture = Fixture::new();
    let mut client = fixture.connect();
    client.send("GET / HTTP/1.1\r\nHo");
    wait_for_report(&fixture.server, |report| report.conns_active == 1);
    fixture.server.kill_begin();
    client.assert_ended();
    let result = wait(&fixture.server);
    assert!(matches!(result, Err(Error::Killed(_))), "{result:?}");
    let report = fixture.server.report();
    assert_balanced(&report);
    assert_eq!((report.requests, report.killed), (1, 1));
}

#[test]
fn the_states_of_a_connection_are_told() {
    use ConnState::{Active, Closed, Idle, New};
    let events = Journal::new();
    let fixture = Fixture::with(builder().on_conn_state(into_journal(&events)));
    let mut client = fixture.connect();
    client.ask("/");
    client.answer();
    events.wait_until(|events| states_of(events, 0).ends_with(&[Idle]));
    client.ask("/");
    client.answer();
    let silent = fixture.connect();
    wait_for_report(&fixture.server, |report| report.conns_new == 1);
    let local = client.name();
    stop(&fixture.server).unwrap();
    client.assert_closed();
    silent.assert_closed();
    fixture.server.close();
    let events = events.all();
    assert_eq!(
        states_of(&events, 0),
        [New, Active, Idle, Active, Idle, Closed]
    );
    assert_eq!(states_of(&events, 1), [New, Closed]);
    assert_eq!(events[0].peer.to_string(), local);
}

#[test]
fn the_phases_are_told_in_order() {
    use Phase::{Draining, Killing, LameDuck, Quiescing, Serving, Stopped};
    let fixture = Fixture::new();
    stop(&fixture.server).unwrap();
    fixture.server.close();
    let plain = [Serving, Quiescing, Draining, Stopped];
    assert_eq!(fixture.phases.all(), plain);

    let builder = builder().lame_duck(Duration::from_millis(1));
    let fixture = Fixture::with(builder.stop_timeout(Duration::ZERO));
    let _client = fixture.client_at_gate();
    fixture.server.stop_begin();
    fixture.wait_for_phase(Killing);
    fixture.gate.open();
    fixture.server.close();
    let full = [Serving, LameDuck, Quiescing, Draining, Killing, Stopped];
    assert_eq!(fixture.phases.all(), full);
}

#[test]
fn an_address_that_cannot_be_listened_on_is_an_error() {
    let taken = listener();
    let error = Listener::bind(&taken.local_addr().to_string()).unwrap_err();
    let Error::Io(what, source) = error else {
        panic!("{error:?}");
    };
    assert_eq!(source.kind(), ErrorKind::AddrInUse);
    assert!(what.contains(&taken.local_addr().to_string()), "{what}");

    // Reserved for documentation: no machine has it.
    let error = Listener::bind("192.0.2.1:0").unwrap_err();
    assert!(
        matches!(&error, Error::Io(_, source) if source.kind() == ErrorKind::AddrNotAvailable),
        "{error:?}"
    );
}

#[test]
fn a_bad_address_is_an_error() {
    for bad in [
        "",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:99999",
        "::1:0",
        "[::1:0",
        ":x",
    ] {
        let error = Listener::bind(bad).unwrap_err();
        assert!(matches!(error, Error::Address(_)), "{bad}: {error:?}");
        assert!(error.to_string().contains(&format!("{bad:?}")), "{error}");
    }
}

#[test]
fn a_descriptor_that_does_not_listen_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = Client::connect(listener.local_addr().unwrap());
    let stream = client.socket().try_clone().unwrap();
    let error = Listener::from_fd(stream.into()).unwrap_err();
    assert!(matches!(error, Error::InvalidArgument(_)), "{error:?}");
    let file = File::open("/dev/null").unwrap();
    let error = Listener::from_fd(file.into()).unwrap_err();
    assert!(matches!(error, Error::InvalidArgument(_)), "{error:?}");
    let result = builder().queue(Vec::new());
    assert!(
        matches!(result, Err(Error::InvalidArgument(_))),
        "{result:?}"
    );
}

#[test]
fn a_server_may_have_several_listeners() {
    let server = builder()
        .handle(
            vec![listener(), listener()],
            Dispatch::Inline,
            |exchange: Exchange| {
                let local = exchange.conn().local.to_string();
                let _ = reply(exchange, local);
            },
        )
        .unwrap();
    assert_eq!(server.local_addrs().len(), 2);
    for addr in server.local_addrs() {
        let mut client = Client::get(addr, "/");
        assert_eq!(client.answer().text(), addr.to_string());
    }
    assert_eq!(stop(&server).unwrap().served, 2);
    for addr in server.local_addrs() {
        Client::try_connect(addr).unwrap_err();
    }
}

/// Runs a test in a process of its own, with few descriptors. True in that process.
fn alone(name: &str) -> bool {
    const ALONE: &str = "HTTPDOWN_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let output = Command::new("sh")
        .args(["-c", "ulimit -n 100; exec \"$@\"", "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    assert!(text.contains("1 passed"), "{text}");
    false
}

/// Takes all descriptors that are left, and then has clients ask: more than may find one that somebody has just let go.
fn without_descriptors(server: &Addr) -> (Vec<File>, Vec<Client>) {
    let sockets: Vec<_> = (0..5).map(|_| unconnected(server).unwrap()).collect();
    let mut taken = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        taken.push(file);
    }
    let asks = |(addr, socket): (SockAddr, Socket)| {
        socket.connect(&addr).unwrap();
        let mut client = Client::from(socket);
        client.set_read_timeout(LONG);
        client.ask("/");
        client
    };
    (taken, sockets.into_iter().map(asks).collect())
}

fn assert_answered(clients: Vec<Client>) {
    for mut client in clients {
        assert_eq!(client.answer().text(), "hello");
    }
}

#[test]
fn without_descriptors_accepting_pauses_and_goes_on() {
    if !alone("without_descriptors_accepting_pauses_and_goes_on") {
        return;
    }
    let (stats, bumps) = Recorder::new();
    let fixture = Fixture::with(builder().stats(stats));
    let idle = fixture.idle_client();
    let (taken, clients) = without_descriptors(addr(&fixture.server));
    bumps.wait_for(|(key, _)| key == "sum accept.error");
    drop(taken);
    assert_answered(clients);
    assert_balanced(&stop(&fixture.server).unwrap());
    idle.assert_closed();
}

#[test]
fn without_descriptors_the_log_says_so_now_and_then() {
    if !alone("without_descriptors_the_log_says_so_now_and_then") {
        return;
    }
    let (stats, bumps) = Recorder::new();
    let (clock, lines) = (MockClock::new(), Journal::new());
    let written = lines.clone();
    let builder = builder()
        .clock(clock.clone())
        .stats(stats)
        .on_log(move |_, line| written.write(line.to_owned()));
    let fixture = Fixture::with(builder);
    let (taken, clients) = without_descriptors(addr(&fixture.server));
    // Each is told before the line about it.
    let fails_again = || {
        let failures = |bumps: &[(String, f64)]| {
            let is_failure = |(key, _): &&(String, f64)| key == "sum accept.error";
            bumps.iter().filter(is_failure).count()
        };
        let so_far = failures(&bumps.all());
        bumps.wait_until(|bumps| failures(bumps) >= so_far + 4);
    };
    fails_again();
    assert_eq!(lines.all().len(), 1, "{:?}", lines.all());
    clock.advance(Duration::from_secs(59));
    fails_again();
    assert_eq!(lines.all().len(), 1, "{:?}", lines.all());
    clock.advance(Duration::from_secs(1));
    fails_again();
    drop(taken);
    assert_answered(clients);
    lines.wait_for(|line| line.starts_with("accepting goes on (it has failed "));
    let lines = lines.all();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[1].ends_with(" times since this was said last)"));
    fixture.server.kill_begin();
    let _ = wait(&fixture.server);
}

/// Closes a descriptor that belongs to somebody else. Its number may then be anybody's: only in a process where nobody
/// opens anything.
fn close_behind_the_back(fd: RawFd) {
    #[allow(unsafe_code, reason = "that is the fault that is tested")]
    // SAFETY: the number is open, and its owner is prepared.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
}

#[test]
fn an_error_of_closing_the_listener_is_the_answer() {
    if !alone("an_error_of_closing_the_listener_is_the_answer") {
        return;
    }
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let fd = socket.as_raw_fd();
    let (stats, bumps) = Recorder::new();
    let builder = builder().stats(stats);
    let fixture = Fixture::on(socket.try_into().unwrap(), builder);
    let mut client = fixture.client_at_gate();
    close_behind_the_back(fd);
    let stopping = stop_elsewhere(&fixture.server);
    fixture.wait_for_phase(Phase::Draining);
    fixture.gate.open();
    assert_eq!(client.answer().text(), "hello");
    let results = [
        stopping.join().unwrap(),
        stop(&fixture.server),
        wait(&fixture.server),
    ];
    for result in results {
        let Err(Error::Io(what, source)) = result else {
            panic!("{result:?}");
        };
        assert!(what.contains("closing"), "{what}");
        assert_eq!(source.raw_os_error(), Some(9), "EBADF, not {source}");
    }
    assert_balanced(&fixture.server.report());
    fixture.server.close();
    let key = ("sum listener.close.error".into(), 1.0);
    assert_eq!(bumps.all().iter().filter(|bump| **bump == key).count(), 1);
}

#[test]
fn an_error_of_serving_is_the_answer() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let copy = socket.try_clone().unwrap();
    let logs = Journal::new();
    let writes = logs.clone();
    let builder = builder().on_log(move |level, text: &str| writes.write((level, text.to_owned())));
    let fixture = Fixture::on(socket.try_into().unwrap(), builder);
    let mut client = fixture.client_at_gate();
    let waiting = {
        let server = fixture.server.clone();
        thread::spawn(move || wait(&server))
    };
    SockRef::from(&copy).shutdown(Shutdown::Read).unwrap();
    fixture.wait_for_phase(Phase::Draining);
    fixture.assert_runs();
    fixture.gate.open();
    assert_eq!(client.answer().text(), "hello");
    for result in [
        waiting.join().unwrap(),
        stop(&fixture.server),
        wait(&fixture.server),
    ] {
        assert!(matches!(result, Err(Error::Io(..))), "{result:?}");
    }
    let report = fixture.server.report();
    assert_balanced(&report);
    assert_eq!(report.served, 1);
    fixture.server.close();
    let errors = logs
        .all()
        .into_iter()
        .filter(|(level, _)| *level == LogLevel::Error);
    assert_eq!(errors.count(), 1);
}

/// A stop that a handler waits for would wait for the handler.
fn stop_from_within_a_handler(dispatch: Dispatch) {
    let results = Journal::new();
    let writes = results.clone();
    let server = builder()
        .handle(listener(), dispatch, move |exchange: Exchange| {
            let server = exchange.server();
            writes.write(format!("{:?}", server.stop_blocking()));
            writes.write(format!("{:?}", server.wait_blocking(None)));
            reply(exchange, "stops").unwrap();
        })
        .unwrap();
    let mut client = Client::get(addr(&server), "/");
    assert_eq!(client.answer().text(), "stops");
    let report = wait(&server).unwrap();
    assert_eq!(results.all(), ["Err(WouldDeadlock)", "Err(WouldDeadlock)"]);
    assert_eq!(report.served, 1);
}

#[test]
fn a_handler_can_begin_the_stop_but_not_wait_for_it() {
    stop_from_within_a_handler(Dispatch::default());
}

#[test]
fn an_inline_handler_can_begin_the_stop_but_not_wait_for_it() {
    stop_from_within_a_handler(Dispatch::Inline);
}

#[test]
fn a_handler_can_close_its_server() {
    let server = builder()
        .handle(listener(), Dispatch::default(), |exchange: Exchange| {
            exchange.server().close();
            reply(exchange, "closes").unwrap();
        })
        .unwrap();
    let mut client = Client::get(addr(&server), "/");
    assert_eq!(client.answer().text(), "closes");
    assert_eq!(wait(&server).unwrap().served, 1);
}

#[test]
fn a_service_can_begin_the_stop_but_not_wait_for_it() {
    let running = Arc::new(OnceLock::<Server>::new());
    let service = {
        let running = Arc::clone(&running);
        service_fn(move |_: Request<Body>| {
            let running = Arc::clone(&running);
            async move {
                let text = match running.get() {
                    Some(server) => format!("{:?}", server.stop().await),
                    None => "not yet".into(),
                };
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
            }
        })
    };
    let server = builder().serve(listener(), service).unwrap();
    running.set(server.clone()).unwrap();
    let mut client = Client::get(addr(&server), "/");
    assert_eq!(client.answer().text(), "Err(WouldDeadlock)");
    assert_balanced(&wait(&server).unwrap());
}

#[test]
fn blocking_work_that_a_service_has_left_behind_does_not_hold_up_the_stop() {
    let gate = Gate::new();
    let _open_at_end = gate.open_at_end();
    let begun = Journal::new();
    let (waits, begins) = (gate.clone(), begun.clone());
    let service = service_fn(move |_: Request<Body>| {
        let (waits, begins) = (waits.clone(), begins.clone());
        tokio::task::spawn_blocking(move || {
            begins.write(());
            waits.pass();
        });
        async { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from("begun")))) }
    });
    let server = builder().serve(listener(), service).unwrap();
    let mut client = Client::get(addr(&server), "/");
    assert_eq!(client.answer().text(), "begun");
    begun.wait_for_count(1);
    server.stop_begin();
    let result = server.wait_blocking(Some(Instant::now() + LONG / 5));
    assert_balanced(&result.unwrap());
}

#[test]
fn a_stop_can_be_awaited() {
    let fixture = Fixture::new();
    let mut client = fixture.client_at_gate();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (stopped, waited, ()) = runtime.block_on(async {
        let server = fixture.server.clone();
        let open = async {
            tokio::task::yield_now().await;
            fixture.gate.open();
        };
        tokio::join!(server.stop(), server.wait(), open)
    });
    assert_eq!(client.answer().text(), "hello");
    assert_balanced(&stopped.unwrap());
    assert_balanced(&waited.unwrap());
}

#[test]
fn connections_may_run_on_a_runtime_of_the_host() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let fixture = Fixture::with(builder().runtime(runtime.handle().clone()));
    let idle = fixture.idle_client();
    let mut client = fixture.client_at_gate();
    fixture.server.stop_begin();
    fixture.wait_for_phase(Phase::Draining);
    fixture.gate.open();
    assert_eq!(client.answer().text(), "hello");
    idle.assert_closed();
    assert_balanced(&wait(&fixture.server).unwrap());
}

#[test]
fn a_server_whose_runtime_goes_away_ends_and_says_so() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let fixture = Fixture::with(builder().runtime(runtime.handle().clone()));
    let idle = fixture.idle_client();
    runtime.shutdown_timeout(LONG);
    let error = wait(&fixture.server).unwrap_err();
    assert!(format!("{error:#}").contains("runtime"), "{error:#}");
    assert_balanced(&fixture.server.report());
    idle.assert_ended();
}

#[test]
fn a_head_that_comes_too_slowly_is_cut() {
    let fixture = Fixture::with(builder().header_timeout(Duration::from_millis(100)));
    let idle = fixture.idle_client();
    let mut slow = fixture.connect();
    slow.send("GET / HTTP/1.1\r\nHo");
    assert_eq!(slow.answer().status, 408);
    slow.assert_ended();
    let report = wait_for_report(&fixture.server, |report| report.conns_open == 1);
    assert_eq!(report.requests, 1);
    // It is for heads only: not for a connection between two requests.
    let report = stop(&fixture.server).unwrap();
    assert_eq!(report.closed_idle, 1);
    idle.assert_closed();
}

#[test]
fn many_idle_connections_are_all_closed() {
    const CLIENTS: usize = 200;
    let fixture = Fixture::new();
    let clients: Vec<_> = (0..CLIENTS).map(|_| fixture.idle_client()).collect();
    let report = stop(&fixture.server).unwrap();
    assert_balanced(&report);
    assert_eq!(report.closed_idle, CLIENTS as u64);
    clients.into_iter().for_each(Client::assert_closed);
}

#[test]
fn servers_stop_independently() {
    let (one, other) = (Fixture::new(), Fixture::new());
    let mut client = other.client_at_gate();
    stop(&one.server).unwrap();
    other.gate.open();
    assert_eq!(client.answer().text(), "hello");
    assert!(other.server.is_ready());
    stop(&other.server).unwrap();
}

#[test]
fn servers_come_and_go() {
    for _ in 0..50 {
        let fixture = Fixture::new();
        let client = fixture.idle_client();
        fixture.server.close();
        client.assert_closed();
    }
}

#[test]
fn who_needs_the_server_gets_it_before_it_serves() {
    let (give, given) = mpsc::channel();
    let server = builder()
        .on_start(move |server| give.send(server.clone()).unwrap())
        .handle(listener(), Dispatch::Inline, drop)
        .unwrap();
    let own = given.try_recv().unwrap();
    assert_eq!(own.local_addrs(), server.local_addrs());
    stop(&own).unwrap();
    assert_eq!(server.report().phase, Phase::Stopped);
}

/// Else what it starts would be deaf to signals, and it would wait for itself.
#[test]
fn the_callback_for_the_start_has_the_hosts_signals_and_cannot_wait() {
    const TERM: u64 = 1 << (15 - 1);
    let (tell, told) = mpsc::channel();
    let server = builder()
        .on_start(move |server| {
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
            let blocked = u64::from_str_radix(blocked.unwrap().trim(), 16).unwrap();
            tell.send((blocked & TERM, server.wait_blocking(None)))
                .unwrap();
        })
        .handle(listener(), Dispatch::Inline, drop)
        .unwrap();
    let (blocked, waited) = told.recv().unwrap();
    assert_eq!(blocked, 0);
    assert!(matches!(waited, Err(Error::WouldDeadlock)), "{waited:?}");
    stop(&server).unwrap();
}

#[test]
fn who_knows_a_server_that_could_not_start_does_not_wait_for_ever() {
    let (give, given) = mpsc::channel();
    let started = builder()
        .on_start(move |server| {
            give.send(server.clone()).unwrap();
            std::panic::resume_unwind(Box::new(()));
        })
        .handle(listener(), Dispatch::Inline, drop);
    assert!(matches!(started, Err(Error::Panicked)), "{started:?}");
    let own = given.try_recv().unwrap();
    assert!(matches!(stop(&own), Err(Error::Panicked)));
}
