//! The statistics and the other events: which, when, in which order; and that whoever takes them slowly harms nobody.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::similar_names,
    reason = "a helper that fails fails its test; and a server serves what was served"
)]

mod common;

use std::net::{Shutdown, TcpListener};
use std::time::{Duration, Instant};

use httpdown::{
    Builder, ConnEvent, ConnState, Dispatch, Error, Event, Exchange, MockClock, Phase, Server,
    StatKind, Stats,
};
use socket2::SockRef;

use common::{
    Bump, Client, Gate, Journal, LONG, Recorder, addr, assert_balanced, builder, listener, reply,
    rest_of_events, states_of, stop, wait, wait_for_report,
};

const MINUTE: Duration = Duration::from_secs(60);

/// Answers `hello`; `/gate` only when the gate is open.
fn serve(builder: Builder, gate: &Gate, at_gate: &Journal<()>) -> Server {
    let (gate, at_gate) = (gate.clone(), at_gate.clone());
    let handler = move |exchange: Exchange| {
        if exchange.uri() == "/gate" {
            at_gate.write(());
            gate.pass();
        }
        let _ = reply(exchange, "hello");
    };
    builder
        .handle(listener(), Dispatch::default(), handler)
        .unwrap()
}

/// A server, its statistics, and its clock.
struct Fixture {
    server: Server,
    clock: MockClock,
    bumps: Journal<Bump>,
    gate: Gate,
    at_gate: Journal<()>,
    _open_at_end: common::OpenAtEnd,
}

impl Fixture {
    fn new() -> Self {
        let clock = MockClock::new();
        let (stats, bumps) = Recorder::new();
        let (gate, at_gate) = (Gate::new(), Journal::new());
        let builder = builder().clock(clock.clone()).stats(stats);
        let fixture = Self {
            server: serve(builder, &gate, &at_gate),
            clock,
            bumps,
            _open_at_end: gate.open_at_end(),
            gate,
            at_gate,
        };
        // The one for the count of connections.
        fixture.wait_for_timers(1);
        fixture
    }

    fn wait_for_timers(&self, count: usize) {
        self.clock.wait_for_timers(count, LONG).unwrap();
    }

    fn idle_client(&self) -> Client {
        let mut client = Client::get(addr(&self.server), "/");
        assert_eq!(client.answer().text(), "hello");
        wait_for_report(&self.server, |report| report.conns_idle > 0);
        client
    }

    fn client_at_gate(&self) -> Client {
        let client = Client::get(addr(&self.server), "/gate");
        self.at_gate.wait_for_count(1);
        client
    }

    /// All that was told, once the server has ended.
    fn close(&self) -> Vec<Bump> {
        self.server.clone().close();
        self.bumps.all()
    }
}

fn assert_bumps(bumps: &[Bump], expected: &[(&str, f64)]) {
    let bumps: Vec<_> = bumps.iter().map(|(key, value)| (&**key, *value)).collect();
    assert_eq!(bumps, expected);
}

#[test]
fn a_plain_stop_is_told_in_order() {
    let fixture = Fixture::new();
    let _idle = fixture.idle_client();
    stop(&fixture.server).unwrap();
    let expected = [
        ("sum serve", 1.0),
        ("sum stop", 1.0),
        ("histogram stop.conn.count", 1.0),
        ("sum conn.closed", 1.0),
        ("time stop.time", 0.0),
    ];
    assert_bumps(&fixture.close(), &expected);
}

#[test]
fn the_times_are_those_of_the_clock() {
    let fixture = Fixture::new();
    let mut client = fixture.client_at_gate();
    fixture.server.stop_begin();
    fixture.wait_for_timers(2);
    fixture.clock.advance(Duration::from_millis(1_500));
    fixture.gate.open();
    assert_eq!(client.answer().text(), "hello");
    wait(&fixture.server).unwrap();
    let bumps = fixture.close();
    assert_bumps(&bumps[bumps.len() - 1..], &[("time stop.time", 1.5)]);
}

#[test]
fn the_full_kill_path_is_told_in_order() {
    let fixture = Fixture::new();
    let _idle = fixture.idle_client();
    let client = fixture.client_at_gate();
    fixture.server.stop_begin();
    // The idle connection is closed; the other stays.
    fixture.wait_for_timers(2);
    fixture.bumps.wait_for(|(key, _)| key == "sum conn.closed");
    fixture.clock.advance(MINUTE);
    client.assert_ended();
    // The minute's count of connections, and the kill timeout.
    fixture.wait_for_timers(2);
    fixture.clock.advance(MINUTE);
    let result = wait(&fixture.server);
    assert!(matches!(result, Err(Error::TimedOut(_))), "{result:?}");
    let (averages, others): (Vec<_>, Vec<_>) = fixture
        .close()
        .into_iter()
        .partition(|(key, _)| key.starts_with("avg "));
    let expected = [
        ("sum serve", 1.0),
        ("sum stop", 1.0),
        ("histogram stop.conn.count", 2.0),
        ("sum conn.closed", 1.0),
        ("sum kill", 1.0),
        ("sum kill.conn.count", 1.0),
        ("sum conn.closed", 1.0),
        ("sum kill.timeout", 1.0),
        ("time kill.time", 60.0),
        ("time stop.time", 120.0),
    ];
    assert_bumps(&others, &expected);
    assert!(averages.len() >= 4, "{averages:?}");
}

#[test]
fn a_kill_that_is_in_time_is_told_without_its_timeout() {
    let fixture = Fixture::new();
    let client = fixture.client_at_gate();
    fixture.server.stop_begin();
    fixture.wait_for_timers(2);
    fixture.clock.advance(MINUTE);
    client.assert_ended();
    fixture.gate.open();
    assert!(matches!(wait(&fixture.server), Err(Error::Killed(_))));
    let mut bumps = fixture.close();
    bumps.retain(|(key, _)| !key.starts_with("avg "));
    let expected = [
        ("sum serve", 1.0),
        ("sum stop", 1.0),
        ("histogram stop.conn.count", 1.0),
        ("sum kill", 1.0),
        ("sum kill.conn.count", 1.0),
        ("sum conn.closed", 1.0),
        ("time kill.time", 0.0),
        ("time stop.time", 60.0),
    ];
    assert_bumps(&bumps, &expected);
}

#[test]
fn connections_are_counted_every_minute() {
    let fixture = Fixture::new();
    let silent = Client::connect(addr(&fixture.server));
    let idle = [fixture.idle_client(), fixture.idle_client()];
    let active = fixture.client_at_gate();
    wait_for_report(&fixture.server, |report| {
        (report.conns_new, report.conns_active, report.conns_idle) == (1, 1, 2)
    });
    fixture.clock.advance(Duration::from_secs(59));
    fixture.bumps.wait_for_count(1);
    assert_bumps(&fixture.bumps.all(), &[("sum serve", 1.0)]);
    for minute in 1..=3 {
        fixture.clock.advance(Duration::from_secs(1));
        fixture.bumps.wait_for_count(1 + 4 * minute);
        // It counts again when it has set its timer again.
        fixture.wait_for_timers(1);
        fixture.clock.advance(Duration::from_secs(59));
    }
    let counts = [
        ("avg http-state.new", 1.0),
        ("avg http-state.active", 1.0),
        ("avg http-state.idle", 2.0),
        ("avg http-state.total", 4.0),
    ];
    let expected = [&[("sum serve", 1.0)][..], &counts, &counts, &counts].concat();
    assert_bumps(&fixture.bumps.all(), &expected);
    fixture.gate.open();
    stop(&fixture.server).unwrap();
    drop((silent, idle, active));
}

#[test]
fn connections_are_counted_during_a_stop_too() {
    let fixture = Fixture::new();
    let mut client = fixture.client_at_gate();
    fixture.clock.advance(Duration::from_secs(30));
    fixture.server.stop_begin();
    fixture.wait_for_timers(2);
    fixture.clock.advance(Duration::from_secs(30));
    fixture
        .bumps
        .wait_for(|(key, _)| key == "avg http-state.total");
    fixture.gate.open();
    assert_eq!(client.answer().text(), "hello");
    wait(&fixture.server).unwrap();
    let expected = [
        ("sum serve", 1.0),
        ("sum stop", 1.0),
        ("histogram stop.conn.count", 1.0),
        ("avg http-state.new", 0.0),
        ("avg http-state.active", 1.0),
        ("avg http-state.idle", 0.0),
        ("avg http-state.total", 1.0),
        ("sum conn.closed", 1.0),
        ("time stop.time", 30.0),
    ];
    assert_bumps(&fixture.close(), &expected);
}

#[test]
fn closed_connections_are_told_whoever_closes_them() {
    let fixture = Fixture::new();
    drop(fixture.idle_client());
    fixture.bumps.wait_for_count(2);
    fixture.idle_client().reset();
    fixture.bumps.wait_for_count(3);
    let mut broken = Client::connect(addr(&fixture.server));
    broken.send("nonsense\r\n\r\n");
    fixture.bumps.wait_for_count(4);
    let expected = [
        ("sum serve", 1.0),
        ("sum conn.closed", 1.0),
        ("sum conn.closed", 1.0),
        ("sum conn.closed", 1.0),
    ];
    assert_bumps(&fixture.bumps.all(), &expected);
    stop(&fixture.server).unwrap();
}

#[test]
fn an_address_that_cannot_be_listened_on_is_told() {
    let taken = listener();
    let (stats, bumps) = Recorder::new();
    let mut builder = builder().stats(stats);
    builder.listen(&taken.local_addr().to_string()).unwrap_err();
    builder.listen("127.0.0.1:0").unwrap();
    assert_bumps(&bumps.all(), &[("sum listen.error", 1.0)]);
}

#[test]
fn a_server_that_fails_tells_no_stop() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let copy = socket.try_clone().unwrap();
    let (stats, bumps) = Recorder::new();
    let server = builder()
        .stats(stats)
        .handle(
            httpdown::Listener::try_from(socket).unwrap(),
            Dispatch::Inline,
            |exchange: Exchange| reply(exchange, "hello").unwrap(),
        )
        .unwrap();
    let mut client = Client::get(addr(&server), "/");
    assert_eq!(client.answer().text(), "hello");
    SockRef::from(&copy).shutdown(Shutdown::Read).unwrap();
    assert!(matches!(wait(&server), Err(Error::Io(..))));
    assert!(matches!(stop(&server), Err(Error::Io(..))));
    server.close();
    let bumps = bumps.all();
    assert_bumps(&bumps[..2], &[("sum serve", 1.0), ("sum conn.closed", 1.0)]);
    assert!(
        bumps
            .iter()
            .all(|(key, _)| key != "sum stop" && key != "time stop.time")
    );
}

/// Statistics that stand still until the gate is open.
#[derive(Debug)]
struct Slow(Gate, Journal<()>, Recorder);

impl Stats for Slow {
    fn bump_sum(&mut self, key: &str, value: f64) {
        self.1.write(());
        self.0.pass();
        self.2.bump_sum(key, value);
    }
}

#[test]
fn slow_statistics_delay_neither_requests_nor_the_stop() {
    let (gate, reached) = (Gate::new(), Journal::new());
    let _open_at_end = gate.open_at_end();
    let (recorder, bumps) = Recorder::new();
    let server = serve(
        builder().stats(Slow(gate.clone(), reached.clone(), recorder)),
        &Gate::new(),
        &Journal::new(),
    );
    reached.wait_for_count(1);
    for _ in 0..50 {
        let mut client = Client::get(addr(&server), "/");
        assert_eq!(client.answer().text(), "hello");
    }
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!(report.served, 50);
    assert!(bumps.all().is_empty());
    // What it has not taken yet is not lost.
    gate.open();
    server.close();
    let closed = bumps
        .all()
        .into_iter()
        .filter(|(key, _)| key == "sum conn.closed");
    assert_eq!(closed.count(), 50);
}

#[test]
fn statistics_that_panic_harm_nobody() {
    #[derive(Debug)]
    struct Panics(Journal<()>);
    impl Stats for Panics {
        fn bump_sum(&mut self, key: &str, _: f64) {
            self.0.write(());
            panic!("that is what the test wants: {key}");
        }
    }
    let bumps = Journal::new();
    let server = serve(
        builder().stats(Panics(bumps.clone())),
        &Gate::new(),
        &Journal::new(),
    );
    bumps.wait_for_count(1);
    let mut client = Client::get(addr(&server), "/");
    assert_eq!(client.answer().text(), "hello");
    assert_balanced(&stop(&server).unwrap());
    server.close();
    bumps.wait_for_count(3);
}

#[test]
fn events_can_be_pulled() {
    use ConnState::{Active, Closed, Idle, New};
    let gate = Gate::new();
    let server = serve(builder().pull_events(), &gate, &Journal::new());
    let first = server.next_event(Some(Instant::now() + LONG)).unwrap();
    let is_serve = |event: &Event| {
        matches!(
            event,
            Event::Stat {
                kind: StatKind::Sum,
                key: "serve",
                value: 1.0
            }
        )
    };
    assert!(is_serve(&first), "{first:?}");
    let phase = server.next_event(Some(Instant::now() + LONG)).unwrap();
    assert!(matches!(phase, Event::Phase(Phase::Serving)), "{phase:?}");
    let none = server.next_event(Some(Instant::now()));
    assert!(matches!(none, Err(Error::WouldBlock)), "{none:?}");
    let mut client = Client::get(addr(&server), "/");
    assert_eq!(client.answer().text(), "hello");
    stop(&server).unwrap();
    let events = rest_of_events(&server);
    let conns: Vec<ConnEvent> = events
        .iter()
        .filter_map(|event| match event {
            Event::Conn(event) => Some(event.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(states_of(&conns, 0), [New, Active, Idle, Closed]);
    let phases: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::Phase(phase) => Some(*phase),
            _ => None,
        })
        .collect();
    assert_eq!(phases, [Phase::Quiescing, Phase::Draining, Phase::Stopped]);
    let end = server.next_event(None);
    assert!(matches!(end, Err(Error::Stopped)), "{end:?}");
    assert_eq!(server.report().events_dropped, 0);
}

#[test]
fn events_are_not_kept_for_who_did_not_ask() {
    let server = serve(builder(), &Gate::new(), &Journal::new());
    let error = server.next_event(None);
    assert!(matches!(error, Err(Error::InvalidArgument(_))), "{error:?}");
    stop(&server).unwrap();
}

#[test]
fn events_that_nobody_takes_are_counted_and_leave_room_for_the_rare_ones() {
    let server = serve(builder().pull_events(), &Gate::new(), &Journal::new());
    let mut client = Client::connect(addr(&server));
    // Three a request: more than are kept.
    for _ in 0..10_000 {
        client.ask("/");
        assert_eq!(client.answer().text(), "hello");
    }
    let report = wait_for_report(&server, |report| report.served == 10_000);
    assert!(report.events_dropped > 0);
    let before = report.events_dropped;
    let report = stop(&server).unwrap();
    assert_eq!(report.served, 10_000);
    let events = rest_of_events(&server);
    let kept = events.len();
    assert!(kept < 20_000, "{kept}");
    // What happens rarely was not pushed out.
    let is_stopped = |event: &Event| matches!(event, Event::Phase(Phase::Stopped));
    assert!(events.iter().any(is_stopped));
    for expected in ["serve", "stop", "conn.closed", "stop.time"] {
        let is_it = |event: &Event| matches!(event, Event::Stat { key, .. } if *key == expected);
        assert!(events.iter().any(is_it), "{expected}");
    }
    let dropped = server.report().events_dropped;
    assert!(dropped >= before);
    let common = events
        .iter()
        .filter(|event| matches!(event, Event::Conn(_) | Event::Done(_)))
        .count();
    assert_eq!(
        common as u64 + dropped,
        3 * 10_000 + 2,
        "each is there, or counted"
    );
}
