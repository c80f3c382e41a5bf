//! Connections between two requests, in virtual time.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::service::Service;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::sleep;

use super::{Bench, GRACE, IDLE, LINGER, PARK, Run, TICK};
use crate::conn::driver::{Driver, Resume};
use crate::conn::{Body, Plain};
use crate::events::Event;
use crate::phase::Phase;
use crate::server::Server;

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
/// In ticks.
const SECOND: u32 = 20;
const ANSWER: &str = "hello";
/// More than a client's socket holds, and less than that and ours.
const BIG: &str = match str::from_utf8(&[b'x'; 36_000]) {
    Ok(text) => text,
    Err(_) => "",
};

/// Answers at once, and tells of what comes of the body, whose pieces it takes slowly.
#[derive(Clone, Debug)]
struct Slow {
    pieces: UnboundedSender<Bytes>,
    /// How long it takes for a piece, in ticks.
    pace: u32,
    /// Copied by whoever drives a connection.
    copies: Arc<()>,
}

impl Slow {
    fn new() -> (Self, UnboundedReceiver<Bytes>) {
        let (pieces, received) = unbounded_channel();
        let copies = Arc::new(());
        let pace = 5 * PARK;
        let slow = Self {
            pieces,
            pace,
            copies,
        };
        (slow, received)
    }

    /// How many parsers there are.
    fn parsers(&self) -> usize {
        // This one, and the connection's own.
        Arc::strong_count(&self.copies) - 2
    }
}

impl Service<Request<Body>> for Slow {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn call(&self, request: Request<Body>) -> Self::Future {
        let (pieces, pace) = (self.pieces.clone(), self.pace);
        let is_big = request.uri().path() == "/big";
        let answer = if is_big { BIG } else { ANSWER };
        let mut body = request.into_body();
        tokio::spawn(async move {
            while let Some(Ok(frame)) = body.frame().await {
                if let Ok(data) = frame.into_data() {
                    let _ = pieces.send(data);
                }
                sleep(pace * TICK).await;
            }
        });
        ready(Ok(Response::new(Full::from(answer))))
    }
}

impl Run {
    async fn ticks(&mut self, count: u32) {
        for _ in 0..count {
            self.tick().await;
        }
    }

    /// How many answers have come.
    fn answers(&self) -> usize {
        let got = &self.peer.got;
        got.windows(ANSWER.len())
            .filter(|text| *text == ANSWER.as_bytes())
            .count()
    }
}

#[test]
fn an_idle_connection_needs_no_parser_and_no_processor() {
    let bench = Bench::new();
    bench.runtime.block_on(async {
        let (service, _) = Slow::new();
        let mut run = Run::start(&bench, &Plain(service.clone()));
        run.settle().await;
        assert_eq!(service.parsers(), 0);
        for count in 1..3 {
            assert!(run.send(GET).await);
            assert_eq!((run.answers(), service.parsers()), (count, 0));
            run.ticks(2 * PARK).await;
            let polls = run.polls();
            run.ticks(50 * PARK).await;
            assert_eq!(run.polls(), polls, "it has woken");
        }
        // Empty lines are no request.
        assert!(run.send(b"\r\n\r").await);
        run.ticks(2 * PARK).await;
        assert_eq!(service.parsers(), 0);
        assert!(run.send(b"\n").await);
        assert!(run.send(GET).await);
        assert_eq!((run.answers(), run.peer.end), (3, None));
    });
}

#[test]
fn a_busy_connection_keeps_its_parser() {
    let bench = Bench::new();
    bench.runtime.block_on(async {
        let (service, _) = Slow::new();
        let mut run = Run::start(&bench, &Plain(service.clone()));
        assert!(run.send(GET).await);
        assert_eq!(service.parsers(), 0, "nobody knows yet that it is busy");
        for _ in 0..20 {
            run.ticks(PARK - 1).await;
            assert!(run.send(GET).await);
            assert_eq!(service.parsers(), 1);
        }
        run.ticks(2 * PARK).await;
        assert_eq!(service.parsers(), 0);
        let polls = run.polls();
        run.ticks(50 * PARK).await;
        assert_eq!(run.polls(), polls, "it has woken");
    });
}

#[test]
fn a_client_that_leaves_an_idle_connection_is_noticed() {
    for (reset, request_first) in [(false, false), (true, false), (false, true)] {
        let bench = Bench::new();
        bench.runtime.block_on(async {
            let (service, _) = Slow::new();
            let mut run = Run::start(&bench, &Plain(service.clone()));
            assert!(run.send(GET).await);
            run.ticks(2 * PARK).await;
            assert_eq!(service.parsers(), 0);
            if request_first {
                // In one wake-up with the FIN.
                let stream = run.peer.stream.as_mut().unwrap();
                stream.write_all(GET).unwrap();
                run.half_close().await;
                assert_eq!(run.answers(), 2);
            } else {
                run.close(reset).await;
            }
            assert_eq!(run.gone, Some(run.tick));
            let report = run.shared.report();
            assert_eq!((report.conns_closed, report.raced), (1, 0), "{report:?}");
            assert_eq!(report.served, 1 + u64::from(request_first), "{report:?}");
        });
    }
}

#[test]
fn a_handler_that_has_answered_gets_the_rest_of_the_body() {
    let bench = Bench::new();
    bench.runtime.block_on(async {
        let (service, mut pieces) = Slow::new();
        let mut run = Run::start(&bench, &Plain(service.clone()));
        run.send(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n")
            .await;
        run.send(b"1\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\n\r\n").await;
        run.ticks(5 * 5 * PARK).await;
        for piece in ["a", "b", "c"] {
            assert_eq!(pieces.try_recv().ok(), Some(Bytes::from(piece)));
        }
        // As it was begun before that, the answer has said that it is the last.
        assert_eq!((run.answers(), run.peer.end), (1, Some(true)));
    });
}

/// With an idle timeout.
async fn with_timeout(bench: &Bench) -> Run {
    let (service, _) = Slow::new();
    let builder = Server::builder().idle_timeout(IDLE * TICK).pull_events();
    let mut run = Run::start_with(bench, &Plain(service), builder);
    run.settle().await;
    run
}

impl Run {
    async fn ticks_until(&mut self, tick: u32) {
        self.ticks(tick - self.tick).await;
    }

    /// How often this has been told.
    fn told(&self, key: &str) -> usize {
        let events = std::iter::from_fn(|| self.shared.events.next(Some(Instant::now())).ok());
        let is_key = |event: &Event| matches!(event, Event::Stat { key: told, .. } if *told == key);
        events.filter(is_key).count()
    }
}

#[test]
fn an_idle_connection_is_closed_when_its_time_is_over_and_not_before() {
    let bench = Bench::new();
    bench.runtime.block_on(async {
        for requests in [0, 1, 5] {
            let mut run = with_timeout(&bench).await;
            for _ in 0..requests {
                // Less than it takes to be parked.
                run.tick().await;
                assert!(run.send(GET).await);
            }
            let last = run.tick;
            run.ticks(IDLE - 1).await;
            assert_eq!(run.ended, None, "{requests}");
            run.ticks(1 + PARK).await;
            let ended = run.ended.unwrap();
            let latest = last + IDLE + if requests > 1 { PARK } else { 0 };
            assert!(ended <= latest, "{requests}: {ended}, not {latest}");
            assert_eq!(run.peer.end, Some(true), "reset");
            run.ticks_until(ended + LINGER).await;
            assert_eq!(run.gone, Some(run.tick));
            let report = run.shared.report();
            assert_eq!((report.closed_idle, report.raced), (1, 0), "{report:?}");
            assert_eq!((report.conns_open, report.served), (0, requests));
        }
    });
}

#[test]
fn empty_lines_do_not_keep_a_connection_open() {
    let bench = Bench::new();
    bench.runtime.block_on(async {
        let mut run = with_timeout(&bench).await;
        assert!(run.send(GET).await);
        while run.ended.is_none() {
            assert!(run.tick <= IDLE + PARK);
            run.tick().await;
            run.send(b"\r\n").await;
        }
        assert!(run.tick >= IDLE);
        // They are no request that has crossed the close.
        run.ticks(LINGER).await;
        assert_eq!(run.shared.report().closed_idle, 1);
    });
}

#[test]
fn a_request_in_the_very_moment_of_the_idle_timeout_is_served() {
    let bench = Bench::new();
    bench.runtime.block_on(async {
        let mut run = with_timeout(&bench).await;
        assert!(run.send(GET).await);
        run.ticks_until(IDLE - 1).await;
        let mut stream = run.peer.stream.as_ref().unwrap().try_clone().unwrap();
        *run.worker.ambush.lock().unwrap() = Some(Box::new(move || stream.write_all(GET).unwrap()));
        run.tick().await;
        assert_eq!((run.answers(), run.ended), (2, None));
        // And it has its whole time again.
        run.ticks_until(2 * IDLE - 1).await;
        assert_eq!(run.ended, None);
        run.tick().await;
        assert_eq!(run.ended, Some(2 * IDLE));
    });
}

#[test]
fn a_request_that_crosses_the_close_of_an_idle_connection_is_counted() {
    let bench = Bench::new();
    bench.runtime.block_on(async {
        let mut run = with_timeout(&bench).await;
        assert!(run.send(GET).await);
        run.ticks_until(IDLE).await;
        assert_eq!(run.ended, Some(IDLE));
        assert!(run.send(GET).await);
        run.close(false).await;
        assert_eq!(run.gone, Some(IDLE));
        let report = run.shared.report();
        assert_eq!((report.closed_idle, report.raced), (0, 1), "{report:?}");
        assert_eq!((report.requests, report.served), (1, 1), "{report:?}");
        assert_eq!(run.told("idle.race"), 1);
    });
}

#[test]
fn a_stop_leaves_an_idle_connection_its_grace_whatever_its_timeout() {
    let bench = Bench::new();
    bench.runtime.block_on(async {
        let mut run = with_timeout(&bench).await;
        assert!(run.send(GET).await);
        run.enter(Phase::LameDuck).await;
        run.ticks_until(IDLE - 1).await;
        run.enter(Phase::Quiescing).await;
        run.ticks(GRACE - 1).await;
        assert_eq!(run.ended, None);
        run.tick().await;
        assert_eq!(run.ended, Some(IDLE - 1 + GRACE));
    });
}

#[test]
fn a_connection_is_not_idle_while_its_client_still_receives() {
    let bench = Bench::of_tcp();
    bench.runtime.block_on(async {
        let mut run = with_timeout(&bench).await;
        run.peer.is_reading = false;
        assert!(run.send(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n").await);
        assert_eq!(run.shared.report().served, 1);
        run.ticks(10 * IDLE).await;
        run.catch_up().await;
        assert!(run.peer.got.ends_with(BIG.as_bytes()));
        assert_eq!(run.ended, None);
        // It counts from now, but for how rarely it is looked.
        run.peer.is_reading = true;
        run.ticks(IDLE - 1).await;
        assert_eq!(run.ended, None);
        run.ticks(1 + SECOND).await;
        assert_eq!(run.peer.end, Some(true));
    });
}

/// Whatever else it has waited for, and does no more.
#[test]
fn a_busy_connection_is_idle_in_time() {
    let bench = Bench::new();
    bench.runtime.block_on(async {
        // It has an idle timeout that is shorter than a pause.
        let (service, _) = Slow::new();
        let builder = Server::builder().idle_timeout(TICK).pull_events();
        let mut run = Run::start_with(&bench, &Plain(service), builder);
        run.settle().await;
        for _ in 0..2 {
            assert!(run.send(GET).await);
        }
        run.ticks(2 * PARK).await;
        assert_eq!(run.peer.end, Some(true));
        // It has waited for the rest of a head, while the pause passed.
        let mut run = with_timeout(&bench).await;
        for _ in 0..2 {
            assert!(run.send(GET).await);
        }
        run.tick().await;
        assert!(run.send(&GET[..10]).await);
        run.ticks(PARK).await;
        assert!(run.send(&GET[10..]).await);
        assert_eq!(run.answers(), 3);
        run.ticks(IDLE + 2 * PARK).await;
        assert_eq!(run.peer.end, Some(true));
    });
}

/// The look whether everything has arrived, which was to come soon, is not the last.
#[test]
fn a_connection_that_was_asked_while_it_delivered_is_idle_in_time() {
    let bench = Bench::of_tcp();
    bench.runtime.block_on(async {
        let mut run = with_timeout(&bench).await;
        run.peer.is_reading = false;
        assert!(run.send(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n").await);
        assert_eq!(run.shared.report().served, 1);
        assert!(run.send(GET).await);
        run.catch_up().await;
        assert_eq!(run.shared.report().served, 2);
        run.peer.is_reading = true;
        run.ticks(IDLE + 2 * PARK).await;
        assert_eq!(run.peer.end, Some(true));
    });
}

#[test]
fn a_connection_that_was_answered_before_its_body_came_ends_behind_that() {
    let bench = Bench::new();
    bench.runtime.block_on(async {
        let mut run = with_timeout(&bench).await;
        assert!(
            run.send(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\n")
                .await
        );
        assert_eq!(run.answers(), 1);
        // Whose body does not come is not idle.
        run.ticks(2 * IDLE).await;
        assert_eq!(run.ended, None);
        assert!(run.send(b"abc").await);
        assert_eq!(run.ended, Some(run.tick));
        assert_eq!(run.peer.end, Some(true), "reset");
        run.ticks(LINGER).await;
        let report = run.shared.report();
        assert_eq!((report.conns_closed, report.served), (1, 1), "{report:?}");
    });
}

/// During a stop, who reads on behind his answer has the grace for each piece, wherever the pieces are.
#[test]
fn chunks_that_have_come_are_read_in_their_own_time() {
    let bench = Bench::new();
    bench.runtime.block_on(async {
        let (mut service, mut received) = Slow::new();
        service.pace = GRACE - 1;
        let mut run = Run::start(&bench, &Plain(service));
        let head = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
        let chunks = "1\r\na\r\n".repeat(10);
        assert!(
            run.send(format!("{head}{chunks}0\r\n\r\n").as_bytes())
                .await
        );
        assert_eq!(run.answers(), 1);
        run.enter(Phase::Quiescing).await;
        run.ticks(10 * GRACE).await;
        let mut pieces = 0;
        while received.try_recv().is_ok() {
            pieces += 1;
        }
        assert_eq!(pieces, 10);
    });
}

/// Nor is anything served behind it, though the body was still to be read.
#[test]
fn a_connection_that_has_said_close_is_closed_when_its_reader_has_had_his_time() {
    let bench = Bench::new();
    bench.runtime.block_on(async {
        let mut run = with_timeout(&bench).await;
        let head = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n";
        assert!(run.send(format!("{head}abc").as_bytes()).await);
        assert_eq!(run.answers(), 1);
        run.enter(Phase::Quiescing).await;
        run.ticks(3 * GRACE).await;
        assert_eq!(run.ended, Some(GRACE));
        run.ticks(LINGER).await;
        let report = run.shared.report();
        assert_eq!((report.closed_idle, report.served), (0, 1), "{report:?}");
    });
}

#[test]
fn an_idle_connection_has_no_task() {
    let bench = Bench::new();
    bench.runtime.block_on(async {
        let mut run = with_timeout(&bench).await;
        let tasks = || bench.runtime.metrics().num_alive_tasks();
        assert_eq!(tasks(), 0);
        assert!(run.send(GET).await);
        assert_eq!((run.answers(), tasks()), (1, 0));
        // Nor in its grace, which begins with a look at what wakes everybody.
        run.enter(Phase::Quiescing).await;
        assert_eq!((run.ended, tasks()), (None, 0));
        run.ticks(GRACE).await;
        assert_eq!((run.ended, tasks()), (Some(GRACE), 1));
        run.ticks(LINGER).await;
        assert_eq!((run.gone, tasks()), (Some(run.tick), 0));
    });
}

/// Counts how often it is resumed.
struct Resumed(Arc<AtomicUsize>);

impl Resume for Resumed {
    fn resume(self: Box<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn what_happens_between_a_look_and_parking_is_not_lost() {
    for (before, after) in [(0, 1), (0, 2), (1, 0), (2, 1)] {
        let driver = Driver::default();
        let count = Arc::new(AtomicUsize::new(0));
        driver.look();
        (0..before).for_each(|_| driver.wake());
        driver.park(Box::new(Resumed(Arc::clone(&count))));
        (0..after).for_each(|_| driver.wake());
        // Once: whoever is resumed looks again.
        assert_eq!(count.load(Ordering::Relaxed), 1, "{before}, {after}");
    }
}
