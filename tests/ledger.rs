//! Whatever clients do, and whenever the stop comes: each request is accounted for, no connection is left behind, and
//! nothing that had begun before a clean stop is lost.
//!
//! The runs are random: `HTTPDOWN_SEED=17 cargo test --test ledger` makes the choices of the one that failed as `seed 17`
//! once more. When which thread runs is chosen by the machine.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::similar_names,
    reason = "a helper that fails fails its test; and a server serves what was served"
)]

mod common;

use std::convert::Infallible;
use std::fmt;
use std::io;

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use httpdown::{Addr, Body, Dispatch, Error, Exchange, Report, RequestEnd, Server};
use hyper::service::service_fn;

use common::{Client, addr, assert_balanced, builder, listener, reply, wait};

const RUNS: u64 = 300;
/// What `/big` answers with: more than the buffers of a socket hold.
const BIG: usize = 1 << 20;

/// Marsaglia's xorshift.
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        // Neighbouring seeds must not begin alike; and zero would stay zero.
        let mut random = Self(seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        for _ in 0..8 {
            random.next();
        }
        random
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn index(&mut self, limit: usize) -> usize {
        usize::try_from(self.below(limit as u64)).unwrap()
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    /// Lets others run for a moment: long enough to matter, too short to slow the test down.
    fn dawdle(&mut self) {
        match self.below(8) {
            0 => thread::sleep(Duration::from_micros(self.below(2_000))),
            1..=4 => thread::yield_now(),
            _ => {}
        }
    }
}

/// How a run's requests are answered.
#[derive(Clone, Copy, Debug)]
enum Way {
    Pool,
    Inline,
    Queue,
    Service,
}

fn handle(mut exchange: Exchange) {
    let may_block = thread::current()
        .name()
        .is_some_and(|name| name.contains("-h"));
    let _ = match exchange.uri().path() {
        "/big" => reply(exchange, vec![b'x'; BIG]),
        "/echo" if may_block => match exchange.read_to_end(1 << 20) {
            Ok(body) => reply(exchange, body),
            Err(_) => return,
        },
        "/pieces" => {
            let mut write = || {
                exchange.start(Response::new(()))?;
                exchange.write(b"one, ")?;
                exchange.write(b"two")
            };
            write().and_then(|()| exchange.finish())
        }
        "/unanswered" => return,
        "/unfinished" => {
            let _ = exchange.start(Response::new(()));
            let _ = exchange.write(b"half");
            return;
        }
        _ => reply(exchange, "hello"),
    };
}

async fn respond(request: Request<Body>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let answer = match head.uri.path() {
        "/big" => vec![b'x'; BIG].into(),
        "/echo" if head.method == Method::POST => match body.collect().await {
            Ok(body) => body.to_bytes(),
            Err(_) => Bytes::new(),
        },
        "/pieces" => "one, two".into(),
        _ => "hello".into(),
    };
    Ok(Response::new(Full::new(answer)))
}

/// How many requests were told to have ended in each way.
type Told = Arc<Mutex<[u64; 5]>>;

fn serve(way: Way, stop_timeout: Duration, told: &Told) -> Server {
    let told = Arc::clone(told);
    let builder = builder()
        .stop_timeout(stop_timeout)
        .on_done(move |record| told.lock().unwrap()[record.end as usize] += 1);
    let pool = Dispatch::Pool(const { NonZeroUsize::new(3).unwrap() });
    match way {
        Way::Pool => builder.handle(listener(), pool, handle).unwrap(),
        Way::Inline => builder
            .handle(listener(), Dispatch::Inline, handle)
            .unwrap(),
        Way::Service => builder.serve(listener(), service_fn(respond)).unwrap(),
        Way::Queue => {
            let (server, queue) = builder.queue(listener()).unwrap();
            thread::Builder::new()
                .name("taker-h".into())
                .spawn(move || {
                    while let Ok(taken) = queue.take(4, None) {
                        for exchange in taken {
                            handle(exchange);
                        }
                    }
                })
                .unwrap();
            server
        }
    }
}

/// What the clients of a run have seen.
#[derive(Debug, Default)]
struct Tally {
    stopping: AtomicBool,
    /// Requests that were sent whole.
    sent: AtomicUsize,
    /// Whole answers.
    answered: AtomicUsize,
    /// Lost, though their first byte had been sent before the stop began.
    lost: Mutex<Vec<String>>,
    /// Not answered whole, and not owed: sent after that, or cut by its handler.
    crossed: AtomicUsize,
}

/// The paths of requests, and whether they are answered whole.
const PATHS: [(&str, bool); 6] = [
    ("/", true),
    ("/", true),
    ("/pieces", true),
    ("/big", true),
    ("/unanswered", true),
    ("/unfinished", false),
];

struct Visitor<'a> {
    addr: &'static Addr,
    random: Random,
    tally: &'a Tally,
    /// The run's service answers everything whole.
    service: bool,
}

/// The connection is at its end, as far as the client is concerned.
struct Over;

impl Visitor<'_> {
    fn visit(mut self) {
        for _ in 0..=self.random.below(3) {
            let Ok(mut client) = Client::try_connect(self.addr) else {
                return;
            };
            for _ in 0..=self.random.below(6) {
                self.random.dawdle();
                if self.act(&mut client).is_err() {
                    break;
                }
            }
            if self.random.one_in(4) {
                client.reset();
            }
        }
    }

    fn act(&mut self, client: &mut Client) -> Result<(), Over> {
        match self.random.below(12) {
            0 => {
                // Half a head, and away.
                let _ = client.try_send("GET / HTTP/1.1\r\nHo");
                self.random.dawdle();
                Err(Over)
            }
            1 => {
                // A request, and away before its answer.
                let _ = client.try_send(get("/big"));
                self.random.dawdle();
                Err(Over)
            }
            2 => {
                // An upload that never ends, and away.
                let _ = client.try_send(post(100));
                let _ = client.try_send("half");
                self.random.dawdle();
                Err(Over)
            }
            3 => {
                let _ = client.try_send("nonsense\r\n\r\n");
                let _ = client.try_answer();
                Err(Over)
            }
            4 => self.pipeline(client),
            5 | 6 => {
                let length = 1 + self.random.index(100_000);
                let body = vec![b'y'; length];
                self.request(client, &[post(length).as_bytes(), &body].concat(), true)
            }
            7 => {
                let result = self.request(client, get("/").as_bytes(), true);
                client.half_close();
                result.and(Err(Over))
            }
            _ => {
                let (path, whole) = PATHS[self.random.index(PATHS.len())];
                self.request(client, get(path).as_bytes(), whole || self.service)
            }
        }
    }

    /// Sends a request, in random pieces, and reads its answer.
    fn request(&mut self, client: &mut Client, request: &[u8], whole: bool) -> Result<(), Over> {
        let count = 1 + self.random.index(4);
        let mut in_time = None;
        for piece in request.chunks(request.len().div_ceil(count)) {
            let sent = client.try_send(piece);
            in_time.get_or_insert(self.is_in_time(&sent));
            self.random.dawdle();
        }
        self.answer(client, request, in_time == Some(true) && whole)
    }

    /// Several requests at once. An answer that says that the connection closes releases the server from those behind.
    fn pipeline(&mut self, client: &mut Client) -> Result<(), Over> {
        let count = 2 + self.random.index(4);
        let sent = client.try_send(get("/").repeat(count));
        let in_time = self.is_in_time(&sent);
        (0..count).try_for_each(|_| self.answer(client, b"a pipelined one", in_time))
    }

    /// Whether what was sent is in the server's kernel, and the stop has not begun.
    fn is_in_time(&self, sent: &io::Result<()>) -> bool {
        sent.is_ok() && !self.tally.stopping.load(Ordering::SeqCst)
    }

    fn answer(&self, client: &mut Client, request: &[u8], owed: bool) -> Result<(), Over> {
        self.tally.sent.fetch_add(1, Ordering::Relaxed);
        match client.try_answer() {
            Ok(answer) => {
                self.tally.answered.fetch_add(1, Ordering::Relaxed);
                if answer.closes() { Err(Over) } else { Ok(()) }
            }
            Err(error) => {
                if owed {
                    self.lose(request, &error);
                } else {
                    self.tally.crossed.fetch_add(1, Ordering::Relaxed);
                }
                Err(Over)
            }
        }
    }

    fn lose(&self, request: &[u8], error: &io::Error) {
        let request = String::from_utf8_lossy(&request[..request.len().min(20)]);
        let mut lost = self.tally.lost.lock().unwrap();
        lost.push(format!("{request:?}: {error}"));
    }
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n")
}

fn post(length: usize) -> String {
    format!("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n")
}

/// How a run ends.
#[derive(Clone, Copy, Debug)]
enum Ending {
    /// With all the time that it takes.
    Clean,
    /// With a stop timeout that passes soon.
    Hurried,
    /// With a kill.
    Killed,
}

/// A run that failed names itself.
struct Run {
    seed: u64,
    way: Way,
    ending: Ending,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, way, ending } = self;
        write!(f, "seed {seed} ({way:?}, {ending:?})")
    }
}

/// Of each request was told once, and what the report says.
fn assert_told(told: &[u64; 5], report: &Report, run: &Run) {
    let of = |end: RequestEnd| told[end as usize];
    let context = format!("{run}: {told:?}, {report:?}");
    assert_eq!(report.events_dropped, 0, "{context}");
    assert_eq!(told.iter().sum::<u64>(), report.requests, "{context}");
    assert_eq!(of(RequestEnd::Failed), report.failed, "{context}");
    assert_eq!(of(RequestEnd::TimedOut), report.timed_out, "{context}");
    // What was told before the stop may turn out not to have arrived.
    assert!(of(RequestEnd::Gone) <= report.gone, "{context}");
    assert!(of(RequestEnd::Killed) <= report.killed, "{context}");
}

/// Returns how many requests were not owed an answer, and got none.
fn run(seed: u64, ending: Ending) -> usize {
    let mut random = Random::new(seed);
    let way = [Way::Pool, Way::Inline, Way::Queue, Way::Service][random.index(4)];
    let run = Run { seed, way, ending };
    let stop_timeout = match ending {
        Ending::Hurried => Duration::from_micros(random.below(3_000)),
        _ => Duration::from_secs(60),
    };
    let told = Told::default();
    let server = serve(way, stop_timeout, &told);
    let tally = Arc::new(Tally::default());
    let stop_after = random.below(20);
    let result = thread::scope(|scope| {
        for _ in 0..=random.below(6) {
            let visitor = Visitor {
                addr: addr(&server),
                random: Random::new(random.next()),
                tally: &tally,
                service: matches!(way, Way::Service),
            };
            scope.spawn(|| visitor.visit());
        }
        // So many requests into the run; or, if there are not as many, at its end or thereabouts. Not by yielding, which
        // on a busy machine costs a turn of everybody else's each time.
        let end = Instant::now() + Duration::from_millis(3);
        while server.report().requests < stop_after && Instant::now() < end {
            thread::sleep(Duration::from_micros(20));
        }
        random.dawdle();
        tally.stopping.store(true, Ordering::SeqCst);
        match ending {
            Ending::Killed => server.kill_begin(),
            _ => server.stop_begin(),
        }
        wait(&server)
    });
    let report = server.report();
    assert_balanced(&report);
    assert_eq!(report.abandoned, 0, "{run}: {report:?}");
    // A connection may be cut whose request had been given up before, because its client had left it.
    let cut = report.killed + report.conns_killed + report.unaccepted;
    match (&result, ending) {
        (Ok(_), _) => assert_eq!(cut, 0, "{run}: {report:?}"),
        (Err(Error::Killed(_)), Ending::Hurried | Ending::Killed) => {
            assert!(cut > 0, "{run}: {report:?}");
        }
        _ => panic!("{run}: {result:?}, {report:?}"),
    }
    if let Ending::Clean = ending {
        let lost = tally.lost.lock().unwrap().clone();
        assert!(lost.is_empty(), "{run}: {tally:?}, {report:?}");
    }
    let answered = tally.answered.load(Ordering::Relaxed) as u64;
    // Not all answers are counted there: a 400 is one to no request.
    assert!(answered <= report.requests, "{run}: {tally:?}, {report:?}");
    server.close();
    assert_told(&told.lock().unwrap(), &report, &run);
    tally.crossed.load(Ordering::Relaxed)
}

fn runs(ending: Ending) {
    if let Some(seed) = std::env::var_os("HTTPDOWN_SEED") {
        run(seed.to_str().unwrap().parse().unwrap(), ending);
        return;
    }
    let crossed: usize = (0..RUNS).map(|seed| run(seed, ending)).sum();
    println!(
        "{RUNS} runs, {ending:?}: {crossed} requests came too late, or were cut by their handler"
    );
}

#[test]
fn a_clean_stop_loses_no_request() {
    runs(Ending::Clean);
}

#[test]
fn a_stop_that_is_cut_short_accounts_for_every_request() {
    runs(Ending::Hurried);
}

#[test]
fn a_kill_accounts_for_every_request() {
    runs(Ending::Killed);
}
