//! Whatever the host's own code does, and on whichever thread of ours: the stop ends on time, all who wait are told, and
//! the result is right.
#![allow(clippy::unwrap_used, reason = "a test that fails panics")]

mod common;

use std::any::Any;
use std::convert::Infallible;
use std::future::Future;
use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{Empty, Full};
use httpdown::{
    Body, Builder, Dispatch, Error, Exchange, Listener, MockClock, Phase, Report, RequestQueue,
    Server,
};
use hyper::service::{Service, service_fn};
use hyper::{Request, Response};
use tokio::runtime::Runtime;

use common::deny::deny;
use common::{
    Client, Deaf, Gate, Journal, LONG, addr, assert_balanced, builder, hello, into_journal,
    listener, reply, wait, wait_for_phase, wait_for_report,
};

/// What a hook of the host's does.
#[derive(Clone, Debug)]
enum Hook {
    Blocks(Gate),
    Panics,
    /// Nothing, until its time has come.
    Late(Arc<Late>),
}

impl Hook {
    fn run(&self) {
        match self {
            Self::Blocks(gate) => gate.pass(),
            Self::Panics if thread::panicking() => {}
            Self::Panics => panic_any(Carried),
            Self::Late(late) if late.has_come.load(Ordering::SeqCst) => {
                late.begun.write(());
                late.then.run();
            }
            Self::Late(_) => {}
        }
    }
}

/// What a panic carries, and where that is dropped, another begins.
struct Carried;

impl Drop for Carried {
    fn drop(&mut self) {
        assert!(thread::panicking(), "what a panic of the host's carries");
    }
}

#[derive(Debug)]
struct Late {
    has_come: AtomicBool,
    begun: Journal<()>,
    then: Hook,
}

impl Late {
    fn new(then: Hook) -> Arc<Self> {
        Arc::new(Self {
            has_come: AtomicBool::new(false),
            begun: Journal::new(),
            then,
        })
    }

    fn comes(&self) {
        self.has_come.store(true, Ordering::SeqCst);
    }
}

/// Runs the hook when it is dropped.
#[derive(Debug)]
struct OnDrop(Hook);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.run();
    }
}

impl AsRef<[u8]> for OnDrop {
    fn as_ref(&self) -> &[u8] {
        b"lent"
    }
}

/// A server that waits for nothing for long: one whose stop ends only with its time.
fn hasty() -> Builder {
    builder()
        .stop_timeout(Duration::from_millis(300))
        .kill_timeout(Duration::from_millis(300))
}

/// As much time as it takes, also on a busy machine, unless the stop can end only with it.
fn hasty_if(abandons: bool) -> Builder {
    if abandons { hasty() } else { builder() }
}

/// How a stop, or a kill, has ended; which it must.
fn ended(server: &Server, kill: bool) -> httpdown::Result<Report> {
    if kill {
        server.kill_begin();
    } else {
        server.stop_begin();
    }
    // A second of grace for threads, and much for a busy machine.
    let result = server.wait_blocking(Some(Instant::now() + LONG / 2));
    assert!(!matches!(result, Err(Error::WouldBlock)), "{server:?}");
    assert_eq!(server.report().phase, Phase::Stopped);
    assert_eq!(server.report().conns_open, 0);
    result
}

/// A runtime of the host's: one that hangs as soon as anything on it does.
fn hosts_runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

/// Asks the server once, and returns when there is an answer, or another end, or the hook has begun to block.
fn ask(server: &Server, blocks: Option<&Late>) {
    let mut client = Client::get(addr(server), "/");
    let Some(late) = blocks else {
        let _ = client.try_answer();
        return;
    };
    client.set_read_timeout(Duration::from_millis(20));
    let deadline = Instant::now() + LONG;
    let is_ended = || match client.socket().peek(&mut [MaybeUninit::uninit()]) {
        Err(error) => error.kind() != ErrorKind::WouldBlock,
        Ok(_) => true,
    };
    while late.begun.all().is_empty() && !is_ended() {
        assert!(Instant::now() < deadline, "{server:?}");
    }
}

/// Has a server made for each thing that a hook can do, asks it once if `asks`, and ends it both ways. `abandons`: the
/// stop goes on without the hook if that blocks.
fn each_way(asks: bool, abandons: bool, serve: impl Fn(Builder, Hook) -> Server) {
    for kill in [false, true] {
        let gate = Gate::new();
        let _open = gate.open_at_end();
        for then in [Hook::Blocks(gate.clone()), Hook::Panics] {
            let blocks = matches!(then, Hook::Blocks(_));
            let late = Late::new(then);
            late.comes();
            let server = serve(hasty_if(blocks && abandons), Hook::Late(Arc::clone(&late)));
            if asks {
                ask(&server, blocks.then_some(&*late));
            }
            let began = Instant::now();
            let result = ended(&server, kill);
            assert!(began.elapsed() < LONG / 4, "{:?}", began.elapsed());
            match result {
                Err(Error::TimedOut(_)) => assert!(blocks && abandons, "kill: {kill}"),
                // The hook may have begun before the client had its answer.
                Err(Error::Killed(Some(report))) if kill && blocks => assert_balanced(&report),
                result => {
                    assert!(!(blocks && abandons), "kill: {kill}");
                    assert_balanced(&result.unwrap());
                }
            }
        }
    }
}

fn dispatches() -> [Dispatch; 2] {
    [Dispatch::Inline, Dispatch::default()]
}

#[test]
fn a_handler_that_blocks_or_panics_when_it_is_dropped_does_not_hold_the_stop() {
    for dispatch in dispatches() {
        each_way(true, true, |builder, hook| {
            let captured = OnDrop(hook);
            let handler = move |exchange: Exchange| {
                let _ = &captured;
                let _ = reply(exchange, "hello");
            };
            builder.handle(listener(), dispatch, handler).unwrap()
        });
    }
}

#[test]
fn a_handler_that_was_never_called_and_blocks_when_it_is_dropped_does_not_hold_the_stop() {
    for dispatch in dispatches() {
        each_way(false, true, |builder, hook| {
            let captured = OnDrop(hook);
            let handler = move |_: Exchange| {
                let _ = &captured;
            };
            builder.handle(listener(), dispatch, handler).unwrap()
        });
    }
}

#[test]
fn a_thread_local_value_that_blocks_when_it_is_dropped_does_not_hold_the_stop() {
    thread_local! {
        static VALUE: Mutex<Option<OnDrop>> = const { Mutex::new(None) };
    }
    for (dispatch, kill) in dispatches()
        .into_iter()
        .flat_map(|dispatch| [(dispatch, false), (dispatch, true)])
    {
        let gate = Gate::new();
        let _open = gate.open_at_end();
        let hook = Hook::Blocks(gate.clone());
        let handler = move |exchange: Exchange| {
            VALUE.with(|value| *value.lock().unwrap() = Some(OnDrop(hook.clone())));
            let _ = reply(exchange, "hello");
        };
        let server = hasty().handle(listener(), dispatch, handler).unwrap();
        Client::get(addr(&server), "/").answer();
        let result = ended(&server, kill);
        assert!(matches!(result, Err(Error::TimedOut(_))), "{result:?}");
        assert_eq!(server.report().served, 1);
    }
}

#[test]
fn what_an_answer_has_lent_and_blocks_or_panics_when_it_is_given_back_does_not_hold_the_stop() {
    for dispatch in dispatches() {
        each_way(true, true, |builder, hook| {
            let handler = move |exchange: Exchange| {
                let lent = Bytes::from_owner(OnDrop(hook.clone()));
                let _ = exchange.reply(Response::new(lent));
            };
            builder.handle(listener(), dispatch, handler).unwrap()
        });
    }
}

#[test]
fn callbacks_for_events_that_block_or_panic_do_not_hold_the_stop() {
    each_way(true, false, |builder, hook| {
        let (phases, logs, conns) = (hook.clone(), hook.clone(), hook);
        let builder = builder
            .on_phase(move |_| phases.run())
            .on_log(move |_, _| logs.run())
            .on_conn_state(move |_| conns.run());
        hello(builder, listener())
    });
}

#[test]
fn who_waits_for_the_end_is_told_when_the_callbacks_have_been() {
    for kill in [false, true] {
        for round in 0..50 {
            let phases = Journal::new();
            let server = hello(builder().on_phase(into_journal(&phases)), listener());
            if kill {
                server.kill_begin();
            } else {
                server.stop_begin();
            }
            let began = Instant::now();
            let waited = if round % 2 == 0 {
                wait(&server)
            } else {
                hosts_runtime().block_on(server.wait())
            };
            // The end does not wait longer than a second, not even if the machine gives the events thread no time.
            if began.elapsed() < Duration::from_secs(1) {
                assert_eq!(phases.all().last(), Some(&Phase::Stopped), "{waited:?}");
            }
        }
    }
}

#[test]
fn the_callback_for_the_end_knows_how_it_went() {
    let ends = Journal::new();
    let (begun, told) = (Gate::new(), ends.clone());
    let begins = begun.clone();
    let slot = Arc::new(OnceLock::<Server>::new());
    let inside = Arc::clone(&slot);
    let server = builder()
        .stop_timeout(Duration::ZERO)
        .on_phase(move |phase| {
            if phase == Phase::Stopped {
                let server = inside.wait();
                told.write((server.outcome(), server.stop_blocking()));
            }
        })
        .handle(
            listener(),
            Dispatch::default(),
            move |exchange: Exchange| {
                begins.open();
                let _ = exchange.cancellation().wait_until(None);
            },
        )
        .unwrap();
    let _ = slot.set(server.clone());
    let _client = Client::get(addr(&server), "/");
    begun.pass();
    let result = common::stop(&server);
    assert!(matches!(result, Err(Error::Killed(_))), "{result:?}");
    let ends = ends.all();
    assert!(
        matches!(
            ends[..],
            [(Some(Err(Error::Killed(_))), Err(Error::Killed(_)))]
        ),
        "{ends:?}"
    );
}

#[test]
fn callbacks_for_events_that_block_or_panic_when_they_are_dropped_do_not_hold_the_stop() {
    each_way(true, false, |builder, hook| {
        let captured = OnDrop(hook);
        let builder = builder.on_phase(move |_| {
            let _ = &captured;
        });
        hello(builder, listener())
    });
}

/// A service that runs a hook at one of its clones, or at each.
struct Cloned {
    clones: Arc<AtomicU32>,
    bad: Option<u32>,
    hook: Hook,
}

impl Clone for Cloned {
    fn clone(&self) -> Self {
        let clone = self.clones.fetch_add(1, Ordering::SeqCst);
        if self.bad.is_none_or(|bad| bad == clone) {
            self.hook.run();
        }
        Self {
            clones: Arc::clone(&self.clones),
            bad: self.bad,
            hook: self.hook.clone(),
        }
    }
}

impl Service<Request<Body>> for Cloned {
    type Response = Response<Empty<Bytes>>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn call(&self, _: Request<Body>) -> Self::Future {
        std::future::ready(Ok(Response::new(Empty::new())))
    }
}

fn cloned(builder: Builder, bad: Option<u32>, hook: Hook) -> Server {
    let service = Cloned {
        clones: Arc::default(),
        bad,
        hook,
    };
    builder.serve(listener(), service).unwrap()
}

#[test]
fn a_service_that_panics_when_it_is_cloned_harms_only_the_connection_that_it_was_for() {
    for bad in 0..4 {
        let server = cloned(builder(), Some(bad), Hook::Panics);
        let mut answers = (0..4).map(|_| Client::get(addr(&server), "/").try_answer());
        assert_eq!(answers.by_ref().filter(Result::is_err).count(), 1);
        assert_balanced(&ended(&server, false).unwrap());
    }
}

#[test]
fn a_service_that_blocks_when_it_is_cloned_does_not_hold_the_stop() {
    let gate = Gate::new();
    let _open = gate.open_at_end();
    let server = cloned(hasty(), Some(0), Hook::Blocks(gate.clone()));
    let _client = Client::get(addr(&server), "/");
    let result = ended(&server, false);
    assert!(matches!(result, Err(Error::TimedOut(_))), "{result:?}");
}

/// A task's waker that blocks or panics.
struct BadWaker(Hook);

impl Wake for BadWaker {
    fn wake(self: Arc<Self>) {
        self.0.run();
    }
}

#[test]
fn a_task_whose_waker_blocks_or_panics_does_not_keep_the_end_from_others() {
    let gate = Gate::new();
    let _open = gate.open_at_end();
    for hook in [Hook::Blocks(gate), Hook::Panics] {
        let server = hello(builder(), listener());
        let waker = Waker::from(Arc::new(BadWaker(hook)));
        let mut waits = pin!(server.wait());
        let first = waits.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(first.is_pending());
        let elsewhere = server.clone();
        let waiting = thread::spawn(move || wait(&elsewhere));
        server.stop_begin();
        assert_balanced(&wait(&server).unwrap());
        assert_balanced(&waiting.join().unwrap().unwrap());
        let second = waits.poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(second, Poll::Ready(Ok(_))));
    }
}

/// How a host serves, with a hook somewhere in its code.
type Host = fn(Builder, Hook) -> Server;

fn handler(dispatch: Dispatch) -> impl Fn(Builder, Hook) -> Server {
    move |builder, hook| {
        let handler = move |exchange: Exchange| {
            if exchange.uri().path() == "/waits" {
                let _ = exchange.cancellation().wait_until(None);
            }
            hook.run();
            let _ = reply(exchange, "hello");
        };
        builder.handle(listener(), dispatch, handler).unwrap()
    }
}

/// A service that has the hook in each of its futures.
fn futures(builder: Builder, hook: Hook) -> Server {
    let service = service_fn(move |request: Request<Body>| {
        let captured = OnDrop(hook.clone());
        async move {
            let _captured = captured;
            if request.uri().path() == "/waits" {
                std::future::pending::<()>().await;
            }
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"hello"))))
        }
    });
    builder.serve(listener(), service).unwrap()
}

/// A service that has the hook in each of its clones, to be dropped with it; a client that waits gets no answer.
fn dropped_clones(builder: Builder, hook: Hook) -> Server {
    struct Dropped(OnDrop);
    impl Clone for Dropped {
        fn clone(&self) -> Self {
            let Self(OnDrop(hook)) = self;
            Self(OnDrop(hook.clone()))
        }
    }
    impl Service<Request<Body>> for Dropped {
        type Response = Response<Empty<Bytes>>;
        type Error = Infallible;
        type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

        fn call(&self, request: Request<Body>) -> Self::Future {
            Box::pin(async move {
                if request.uri().path() == "/waits" {
                    std::future::pending::<()>().await;
                }
                Ok(Response::new(Empty::new()))
            })
        }
    }
    builder.serve(listener(), Dropped(OnDrop(hook))).unwrap()
}

/// Answers with memory that has the hook; a client that waits does not take it all.
fn lent(builder: Builder, hook: Hook) -> Server {
    struct Lent {
        bytes: Vec<u8>,
        _hook: OnDrop,
    }
    impl AsRef<[u8]> for Lent {
        fn as_ref(&self) -> &[u8] {
            &self.bytes
        }
    }
    let handler = move |exchange: Exchange| {
        let waits = exchange.uri().path() == "/waits";
        let bytes = vec![0; if waits { 64 << 20 } else { 1 }];
        let hook = OnDrop(hook.clone());
        let lent = Bytes::from_owner(Lent { bytes, _hook: hook });
        let _ = exchange.reply(Response::new(lent));
    };
    builder
        .handle(listener(), Dispatch::default(), handler)
        .unwrap()
}

fn callbacks(builder: Builder, hook: Hook) -> Server {
    let (phases, logs, conns) = (hook.clone(), hook.clone(), hook);
    let builder = builder
        .on_phase(move |_| phases.run())
        .on_log(move |_, _| logs.run())
        .on_conn_state(move |_| conns.run());
    // One whose time never comes.
    handler(Dispatch::default())(builder, Hook::Late(Late::new(Hook::Panics)))
}

/// What a hook in it does when a request comes, or when a request is cut; and whether the stop must go on without it
/// where it blocks.
const HOSTS: [(&str, Host, bool); 7] = [
    (
        "a handler in place",
        |builder, hook| handler(Dispatch::Inline)(builder, hook),
        true,
    ),
    (
        "a handler on the pool",
        |builder, hook| handler(Dispatch::default())(builder, hook),
        true,
    ),
    ("a future", futures, true),
    ("a clone", |builder, hook| cloned(builder, None, hook), true),
    ("a clone's drop", dropped_clones, true),
    ("lent memory", lent, true),
    ("callbacks", callbacks, false),
];

/// How a server ends where the hook does that from within a phase on. Its timers run on the clock, which stands still
/// until a host that blocks has to be abandoned.
fn late(
    builder: Builder,
    phase: Phase,
    host: Host,
    then: Hook,
    kill: bool,
    abandons: bool,
) -> httpdown::Result<Report> {
    const HOUR: Duration = Duration::from_secs(3600);
    let (clock, late) = (MockClock::new(), Late::new(then));
    let mut builder = builder
        .clock(clock.clone())
        .idle_grace(LONG)
        .quiesce_timeout(LONG)
        // Threads are waited for in real time.
        .kill_timeout(if abandons { Duration::ZERO } else { LONG });
    if phase == Phase::LameDuck {
        builder = builder.lame_duck(HOUR);
    }
    let server = host(builder, Hook::Late(Arc::clone(&late)));
    let addr = addr(&server);
    let mut client = Client::get(addr, "/");
    client.answer();
    // A Unix socket has no handshake that could be half-way: it quiesces for a moment only.
    let deaf = addr.as_ip().filter(|_| phase == Phase::Quiescing);
    let deaf = deaf.map(Deaf::connect);
    if phase == Phase::Killing {
        client.ask("/waits");
        wait_for_report(&server, |report| report.requests == 2);
        late.comes();
    }
    server.stop_begin();
    wait_for_phase(&server, phase.min(Phase::Draining));
    if phase < Phase::Killing {
        late.comes();
        client.ask("/");
        late.begun.wait_for_count(1);
        // Who blocks answers nobody.
        if !abandons {
            let _ = client.try_answer();
        }
        drop(client);
    }
    drop(deaf);
    if kill {
        server.kill_begin();
    } else if phase != Phase::Quiescing {
        clock.wait_for_timers(1, LONG).unwrap();
        clock.advance(HOUR);
    }
    late.begun.wait_for_count(1);
    let deadline = Instant::now() + LONG / 2;
    loop {
        let soon = Instant::now() + Duration::from_millis(20);
        match server.wait_blocking(Some(soon)) {
            Err(Error::WouldBlock) if abandons => clock.advance(HOUR),
            Err(Error::WouldBlock) => {}
            result => return result,
        }
        assert!(Instant::now() < deadline, "{server:?}");
    }
}

fn late_each_way(phase: Phase, name: &str, host: Host, holds: bool) {
    for (kill, theirs) in [(false, false), (false, true), (true, false), (true, true)] {
        let runtime = hosts_runtime();
        let gate = Gate::new();
        let _open = gate.open_at_end();
        let is_cut = phase == Phase::Killing;
        for hook in [Hook::Panics, Hook::Blocks(gate)] {
            let case = format!("{name}, {phase:?}, kill: {kill}, theirs: {theirs}, {hook:?}");
            let abandons = holds && matches!(hook, Hook::Blocks(_));
            let mut builder = builder();
            if theirs {
                builder = builder.runtime(runtime.handle().clone());
            }
            match late(builder, phase, host, hook, kill, abandons) {
                Err(Error::TimedOut(_)) => assert!(abandons, "{case}"),
                Err(Error::Killed(_)) => assert!(is_cut && !abandons, "{case}"),
                Err(error) => panic!("{case}: {error:?}"),
                Ok(report) => {
                    assert!(!is_cut && !abandons, "{case}");
                    assert_balanced(&report);
                }
            }
        }
    }
}

#[test]
fn hooks_that_begin_to_block_or_panic_in_whatever_phase_do_not_hold_the_stop() {
    thread::scope(|scope| {
        for phase in [Phase::LameDuck, Phase::Quiescing, Phase::Killing] {
            for (name, host, holds) in HOSTS {
                // Nobody clones anything to cut a request.
                if phase < Phase::Killing || name != "a clone" {
                    scope.spawn(move || late_each_way(phase, name, host, holds));
                }
            }
        }
    });
}

/// Has a task wait for the end of a request with a bad waker, and asks it no more.
fn wait_badly(exchange: &Exchange, hook: Hook) -> impl Future + use<> {
    let cancellation = exchange.cancellation();
    let mut waits = Box::pin(async move { cancellation.wait().await });
    let waker = Waker::from(Arc::new(BadWaker(hook)));
    let first = waits.as_mut().poll(&mut Context::from_waker(&waker));
    assert!(first.is_pending());
    waits
}

fn take_one(queue: &RequestQueue) -> Exchange {
    let taken = queue.take(1, None);
    taken.unwrap().pop().unwrap()
}

#[test]
fn a_task_whose_waker_panics_when_its_request_ends_does_no_harm() {
    let (server, queue) = builder().queue(listener()).unwrap();
    let idle = Client::connect(addr(&server));
    let mut client = Client::get(addr(&server), "/");
    let exchange = take_one(&queue);
    let _waits = wait_badly(&exchange, Hook::Panics);
    wait_for_report(&server, |report| report.connections == 2);
    server.stop_begin();
    idle.assert_closed();
    reply(exchange, "hello").unwrap();
    assert_eq!(client.answer().text(), "hello");
    drop(client);
    assert_balanced(&wait(&server).unwrap());
}

#[test]
fn a_task_whose_waker_blocks_or_panics_does_not_keep_phases_from_others() {
    let gate = Gate::new();
    let _open = gate.open_at_end();
    for hook in [Hook::Blocks(gate), Hook::Panics] {
        let mut builder = builder();
        if matches!(hook, Hook::Blocks(_)) {
            builder = builder.kill_timeout(Duration::from_millis(300));
        }
        let (server, queue) = builder.queue(listener()).unwrap();
        let idle = Client::connect(addr(&server));
        let _client = Client::get(addr(&server), "/");
        let exchange = take_one(&queue);
        let _waits = wait_badly(&exchange, hook.clone());
        let cancellation = exchange.cancellation();
        let told = thread::spawn(move || cancellation.wait_until(Some(Instant::now() + LONG)));
        wait_for_report(&server, |report| report.connections == 2);
        server.stop_begin();
        idle.assert_closed();
        server.kill_begin();
        let told = told.join().unwrap();
        assert!(matches!(told, Some(Error::Killed(_))), "{told:?}");
        drop(exchange);
        let result = wait(&server);
        match hook {
            Hook::Panics => assert!(matches!(result, Err(Error::Killed(_))), "{result:?}"),
            _ => assert!(matches!(result, Err(Error::TimedOut(_))), "{result:?}"),
        }
    }
}

type Taker = fn(Exchange, &Hook);

/// What a thread of the host's does with a request from the queue, before and after the hook.
const TAKERS: [(&str, Taker); 3] = [
    ("holds it", |exchange, hook| {
        hook.run();
        assert!(matches!(reply(exchange, "late"), Err(Error::Killed(_))));
    }),
    ("has begun", |mut exchange, hook| {
        exchange.start(Response::new(())).unwrap();
        exchange.write(b"begun").unwrap();
        hook.run();
        assert!(matches!(exchange.finish(), Err(Error::Killed(_))));
    }),
    ("waits for the kill", |exchange, hook| {
        let _ = exchange.cancellation().wait_until(None);
        hook.run();
        drop(exchange);
    }),
];

/// Has a thread take the next request, and returns when it has.
fn taken(queue: &RequestQueue, taker: Taker, hook: Hook) -> thread::JoinHandle<()> {
    let (queue, begun) = (queue.clone(), Journal::new());
    let written = begun.clone();
    let thread = thread::spawn(move || {
        let exchange = take_one(&queue);
        written.write(());
        taker(exchange, &hook);
    });
    begun.wait_for_count(1);
    thread
}

#[test]
fn a_thread_that_has_taken_a_request_and_blocks_does_not_hold_the_stop() {
    for (name, taker) in TAKERS {
        for kill in [false, true] {
            let case = format!("{name}, kill: {kill}");
            let gate = Gate::new();
            let _open = gate.open_at_end();
            let (server, queue) = hasty().queue(listener()).unwrap();
            let client = Client::get(addr(&server), "/");
            let thread = taken(&queue, taker, Hook::Blocks(gate.clone()));
            let mut left = Client::get(addr(&server), "/");
            wait_for_report(&server, |report| report.requests == 2);
            let result = ended(&server, kill);
            assert!(
                matches!(result, Err(Error::TimedOut(_))),
                "{case}: {result:?}"
            );
            let report = server.report();
            assert_eq!((report.killed, report.abandoned), (2, 1), "{case}");
            assert_eq!(left.answer().status, 503, "{case}");
            assert!({ client }.try_answer().is_err(), "{case}");
            gate.open();
            thread.join().unwrap();
        }
    }
}

#[test]
fn a_thread_that_has_taken_a_request_and_panics_costs_no_more_than_that() {
    for (name, taker) in TAKERS {
        for kill in [false, true] {
            let case = format!("{name}, kill: {kill}");
            let waits = name == "waits for the kill";
            let (server, queue) = hasty_if(waits).queue(listener()).unwrap();
            let mut client = Client::get(addr(&server), "/");
            let thread = taken(&queue, taker, Hook::Panics);
            if waits {
                let result = ended(&server, kill);
                assert!(
                    matches!(result, Err(Error::Killed(_))),
                    "{case}: {result:?}"
                );
                assert_eq!(server.report().killed, 1, "{case}");
                assert!(client.try_answer().is_err(), "{case}");
            } else {
                let answer = client.try_answer().ok().map(|answer| answer.status);
                let report = ended(&server, kill).unwrap();
                assert_balanced(&report);
                let has_begun = name == "has begun";
                assert_eq!(answer, (!has_begun).then_some(500), "{case}");
                assert_eq!(report.failed, u64::from(has_begun), "{case}");
            }
            discard(thread.join().unwrap_err());
        }
    }
}

/// A service that gives each connection to a thread, which runs the hook while it has it.
fn hijacked(hook: &Hook) -> Server {
    let runs = hook.clone();
    let service = service_fn(move |mut request: Request<Body>| {
        let (upgrade, hook) = (hyper::upgrade::on(&mut request), runs.clone());
        tokio::spawn(async move {
            let upgraded = upgrade.await.unwrap();
            thread::spawn(move || {
                let has_it = AssertUnwindSafe(move || {
                    let _upgraded = upgraded;
                    hook.run();
                });
                if let Err(carried) = catch_unwind(has_it) {
                    discard(carried);
                }
            });
        });
        let response = Response::builder()
            .status(101)
            .header("connection", "upgrade")
            .header("upgrade", "nothing")
            .body(Empty::<Bytes>::new());
        std::future::ready(response)
    });
    let builder = hasty_if(matches!(hook, Hook::Blocks(_)));
    builder.serve(listener(), service).unwrap()
}

#[test]
fn a_thread_that_has_an_upgraded_connection_and_blocks_or_panics_does_not_hold_the_stop() {
    for kill in [false, true] {
        let gate = Gate::new();
        let _open = gate.open_at_end();
        for hook in [Hook::Blocks(gate), Hook::Panics] {
            let server = hijacked(&hook);
            let mut client = Client::connect(addr(&server));
            client.send(
                "GET / HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: nothing\r\n\r\n",
            );
            assert_eq!(client.try_head().unwrap().status, 101);
            let blocks = matches!(hook, Hook::Blocks(_));
            wait_for_report(&server, |report| {
                report.conns_hijacked == u64::from(blocks) && report.conns_active == 0
            });
            let result = ended(&server, kill);
            let report = server.report();
            assert_balanced(&report);
            assert_eq!((report.served, report.hijacked_killed), (1, blocks.into()));
            match result {
                Err(Error::TimedOut(_)) => assert!(blocks, "kill: {kill}"),
                result => assert!(!blocks && result.is_ok(), "kill: {kill}, {result:?}"),
            }
        }
    }
}

/// What a panic carries.
fn discard(carried: Box<dyn Any + Send>) {
    let next = catch_unwind(AssertUnwindSafe(|| drop(carried)));
    assert!(next.is_err());
}

#[test]
fn a_request_that_a_thread_has_taken_and_left_behind_ends_with_the_thread() {
    thread_local! {
        static VALUE: Mutex<Option<Exchange>> = const { Mutex::new(None) };
    }
    let (server, queue) = builder().queue(listener()).unwrap();
    let mut client = Client::get(addr(&server), "/");
    let taker = |exchange, _: &Hook| VALUE.with(|value| *value.lock().unwrap() = Some(exchange));
    let thread = taken(&queue, taker, Hook::Panics);
    assert_eq!(client.answer().status, 500);
    thread.join().unwrap();
    assert_balanced(&common::stop(&server).unwrap());
}

#[test]
fn requests_that_nobody_takes_end_with_the_stop_timeout() {
    // A late machine must not run out of the time for the kill.
    let patient = hasty().kill_timeout(LONG);
    let (server, _queue) = patient.queue(listener()).unwrap();
    let mut client = Client::get(addr(&server), "/");
    wait_for_report(&server, |report| report.requests == 1);
    let result = ended(&server, false);
    assert!(matches!(result, Err(Error::Killed(_))), "{result:?}");
    assert_eq!(client.answer().status, 503);
    assert_balanced(&server.report());
}

#[test]
fn a_panic_that_carries_another_costs_no_thread() {
    for dispatch in [Dispatch::Inline, Dispatch::Pool(NonZeroUsize::MIN)] {
        let server = builder()
            .handle(listener(), dispatch, |exchange: Exchange| {
                if exchange.uri().path() == "/panics" {
                    Hook::Panics.run();
                }
                let _ = reply(exchange, "hello");
            })
            .unwrap();
        assert_eq!(Client::get(addr(&server), "/panics").answer().status, 500);
        assert_eq!(Client::get(addr(&server), "/").answer().text(), "hello");
        assert_balanced(&common::stop(&server).unwrap());
    }
}

#[test]
fn a_runtime_of_the_hosts_that_goes_away_in_the_drain_is_no_clean_stop() {
    let runtime = hosts_runtime();
    let came = Journal::new();
    let written = came.clone();
    let service = service_fn(move |_: Request<Body>| {
        written.write(());
        std::future::pending::<Result<Response<Full<Bytes>>, Infallible>>()
    });
    let server = builder()
        .runtime(runtime.handle().clone())
        .serve(listener(), service)
        .unwrap();
    let mut client = Client::get(addr(&server), "/");
    came.wait_for_count(1);
    server.stop_begin();
    while server.phase() < Phase::Draining {
        thread::yield_now();
    }
    runtime.shutdown_background();
    assert!(client.try_answer().is_err());
    let result = wait(&server);
    assert!(matches!(result, Err(Error::Io(..))), "{result:?}");
}

#[test]
fn a_runtime_that_the_host_blocks_does_not_hold_the_stop_of_a_server_without_clients() {
    let gate = Gate::new();
    let _open = gate.open_at_end();
    let runtime = hosts_runtime();
    let server = hello(builder().runtime(runtime.handle().clone()), listener());
    Client::get(addr(&server), "/").answer();
    wait_for_report(&server, |report| report.conns_open == 0);
    let (blocked, written) = (gate.clone(), Journal::new());
    let begun = written.clone();
    drop(runtime.spawn(async move {
        begun.write(());
        blocked.pass();
    }));
    written.wait_for_count(1);
    // Before the stop timeout.
    assert_balanced(&common::stop(&server).unwrap());
    gate.open();
}

/// What a host's dropped future does on a runtime that has gone: it is dropped by whoever gives it a task.
#[test]
fn a_service_that_blocks_when_its_runtime_has_gone_does_not_hold_the_stop() {
    let gate = Gate::new();
    let _open = gate.open_at_end();
    let runtime = hosts_runtime();
    let hook = Hook::Blocks(gate);
    let service = service_fn(move |_: Request<Body>| {
        let captured = OnDrop(hook.clone());
        async move {
            let _captured = captured;
            std::future::pending::<Result<Response<Full<Bytes>>, Infallible>>().await
        }
    });
    let server = hasty()
        .runtime(runtime.handle().clone())
        .serve(listener(), service)
        .unwrap();
    let _client = Client::get(addr(&server), "/");
    common::wait_for_report(&server, |report| report.requests == 1);
    server.stop_begin();
    runtime.shutdown_background();
    assert!(ended(&server, false).is_err());
}

#[test]
fn new_connections_are_not_given_to_a_thread_that_is_blocked() {
    let (gate, entered) = (Gate::new(), Journal::new());
    let _open = gate.open_at_end();
    let (pass, written) = (gate.clone(), entered.clone());
    let server = builder()
        .io_threads(NonZeroUsize::new(2).unwrap())
        .handle(listener(), Dispatch::Inline, move |exchange: Exchange| {
            if exchange.uri().path() == "/block" {
                written.write(());
                pass.pass();
            }
            let name = thread::current().name().unwrap_or_default().to_owned();
            let _ = reply(exchange, name);
        })
        .unwrap();
    let addr = addr(&server);
    // One on each thread; the one that does not accept is blocked.
    let mut clients: Vec<_> = (0..4).map(|_| Client::get(addr, "/")).collect();
    let names: Vec<_> = clients
        .iter_mut()
        .map(|client| client.answer().text().to_owned())
        .collect();
    let second = names.iter().position(|name| name == "httpdown-1").unwrap();
    clients[second].ask("/block");
    entered.wait_for_count(1);
    // What was given to it before it was found blocked waits; behind that, all are served.
    let deadline = Instant::now() + LONG;
    let mut in_a_row = 0;
    while in_a_row < 10 {
        assert!(Instant::now() < deadline, "{in_a_row} in a row");
        let mut client = Client::get(addr, "/");
        client.set_read_timeout(Duration::from_millis(500));
        in_a_row = if client.try_answer().is_ok() {
            in_a_row + 1
        } else {
            0
        };
        clients.push(client);
    }
    gate.open();
    let _ = server.stop_blocking();
}

#[test]
fn a_stop_ends_where_accepting_fails_for_good() {
    for error in [
        libc::EPERM,
        libc::ENOSYS,
        libc::EINTR,
        libc::EMFILE,
        libc::EIO,
    ] {
        let listener = listener();
        thread::spawn(move || {
            deny(libc::SYS_accept4, &[], error);
            let builder = hasty().quiesce_timeout(Duration::from_millis(100));
            let server = hello(builder, listener);
            let _client = Client::connect(addr(&server));
            let result = ended(&server, false);
            // Somebody was connected, and could not be served.
            assert!(result.is_err(), "{error}: {result:?}");
            assert_eq!(server.report().unaccepted, 1, "{error}");
        })
        .join()
        .unwrap();
    }
}

#[test]
fn a_stop_ends_where_somebody_makes_the_listening_socket_blocking_again_and_again() {
    for shared in [false, true] {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let copy = socket.try_clone().unwrap();
        let mut listener = Listener::from_fd(OwnedFd::from(socket)).unwrap();
        if shared {
            listener = listener.shared();
        }
        let server = hello(builder(), listener);
        copy.set_nonblocking(false).unwrap();
        for _ in 0..3 {
            assert_eq!(Client::get(addr(&server), "/").answer().text(), "hello");
            copy.set_nonblocking(false).unwrap();
        }
        assert_balanced(&ended(&server, false).unwrap());
    }
}

#[test]
fn without_descriptors_the_queue_is_kept_until_the_stop_timeout() {
    // Denied in the server's threads only, and for ever: so what is seen is until when it tries.
    let listener = listener();
    thread::spawn(move || {
        deny(libc::SYS_accept4, &[], libc::EMFILE);
        let builder = builder()
            .quiesce_timeout(Duration::ZERO)
            .stop_timeout(Duration::from_millis(500));
        let server = hello(builder, listener);
        let _client = Client::connect(addr(&server));
        let began = Instant::now();
        let result = ended(&server, false);
        assert!(matches!(result, Err(Error::Killed(_))), "{result:?}");
        assert!(began.elapsed() >= Duration::from_millis(500));
        assert_eq!(server.report().unaccepted, 1);
    })
    .join()
    .unwrap();
}

#[test]
fn a_listener_that_always_has_clients_leaves_the_others_their_turn() {
    let (busy, other) = (listener(), listener());
    let (busy_addr, other_addr) = (busy.local_addr().clone(), other.local_addr().clone());
    // Time for a slow machine to serve all who wait by then.
    let server = hello(builder().quiesce_timeout(LONG), vec![busy, other]);
    let load: Vec<_> = (0..2)
        .map(|_| {
            let (server, addr) = (server.clone(), busy_addr.clone());
            thread::spawn(move || {
                while server.phase() == Phase::Serving {
                    drop(Client::try_connect(&addr));
                }
            })
        })
        .collect();
    for _ in 0..20 {
        assert_eq!(Client::get(&other_addr, "/").answer().text(), "hello");
    }
    server.stop_begin();
    for thread in load {
        thread.join().unwrap();
    }
    assert_balanced(&wait(&server).unwrap());
}

/// A body that panics in one of its methods, or when it is dropped.
struct BadBody {
    at: &'static str,
    given: bool,
}

impl BadBody {
    fn may_panic(&self, at: &str) {
        assert!(self.at != at, "in {at}");
    }
}

impl Drop for BadBody {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.may_panic("drop");
        }
    }
}

impl http_body::Body for BadBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        self.may_panic("poll_frame");
        let given = std::mem::replace(&mut self.given, true);
        let frame = http_body::Frame::data(Bytes::from_static(b"hello"));
        Poll::Ready((!given).then_some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.may_panic("is_end_stream");
        self.given
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.may_panic("size_hint");
        http_body::SizeHint::with_exact(5)
    }
}

#[test]
fn a_body_that_panics_is_the_hosts_failure_and_not_the_clients() {
    for at in ["poll_frame", "is_end_stream", "size_hint", "drop"] {
        let (recorder, bumps) = common::Recorder::new();
        let service = service_fn(move |_: Request<Body>| async move {
            Ok::<_, Infallible>(Response::new(BadBody { at, given: false }))
        });
        let server = builder()
            .stats(recorder)
            .serve(listener(), service)
            .unwrap();
        let answer = Client::get(addr(&server), "/").try_answer();
        server.stop_begin();
        let report = wait(&server).unwrap();
        server.close();
        assert_balanced(&report);
        assert_eq!(report.gone, 0, "{at}: {report:?}");
        match &answer {
            // It had not begun.
            Ok(answer) if at == "size_hint" => assert_eq!(answer.status, 500),
            Ok(answer) => assert_eq!((at, answer.text()), ("drop", "hello")),
            Err(_) => assert_eq!(report.failed, 1, "{at}: {report:?}"),
        }
        let is_told = bumps
            .all()
            .iter()
            .any(|(key, _)| key == "sum handler.error");
        assert!(is_told, "{at}: {answer:?}, {report:?}");
    }
}

/// An error that panics when somebody wants to know what it is.
#[derive(Debug)]
struct BadError;

impl std::fmt::Display for BadError {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Hook::Panics.run();
        Ok(())
    }
}

impl std::error::Error for BadError {}

#[test]
fn an_error_that_panics_when_it_is_told_gets_a_500_too() {
    let service =
        service_fn(|_: Request<Body>| async { Err::<Response<Empty<Bytes>>, _>(BadError) });
    let server = builder().serve(listener(), service).unwrap();
    let mut client = Client::get(addr(&server), "/");
    assert_eq!(client.answer().status, 500);
    // And where the request has a body that nobody reads.
    let mut other = Client::connect(addr(&server));
    other.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\n");
    assert_eq!(other.answer().status, 500);
    assert_balanced(&common::stop(&server).unwrap());
}

#[test]
fn in_place_on_a_runtime_of_the_hosts_nothing_waits_for_its_own_thread() {
    let runtime = hosts_runtime();
    let results = Journal::new();
    let written = results.clone();
    let server = builder()
        .runtime(runtime.handle().clone())
        .handle(
            listener(),
            Dispatch::Inline,
            move |mut exchange: Exchange| {
                let read = exchange.read(&mut [0; 10]);
                let stopped = exchange.server().stop_blocking();
                written.write((
                    matches!(read, Err(Error::WouldBlock)),
                    matches!(stopped, Err(Error::WouldDeadlock)),
                ));
                let _ = reply(exchange, "x");
            },
        )
        .unwrap();
    let mut client = Client::connect(addr(&server));
    client.send("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n");
    results.wait_for_count(1);
    assert_eq!(results.all(), [(true, true)]);
    assert_eq!(client.answer().text(), "x");
    wait(&server).unwrap();
}

#[test]
fn chunks_that_have_come_are_read_to_their_end_in_a_stop_also_behind_the_answer() {
    use http_body_util::BodyExt;
    let (go, done) = (Gate::new(), Journal::new());
    let (pass, written) = (go.clone(), done.clone());
    let service = service_fn(move |request: Request<Body>| {
        let (pass, written) = (pass.clone(), written.clone());
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap();
            pass.pass();
            let body = runtime.block_on(request.into_body().collect());
            written.write(body.map(|body| body.to_bytes().len()).ok());
        });
        async { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"early")))) }
    });
    let server = builder()
        .idle_grace(LONG)
        .serve(listener(), service)
        .unwrap();
    let mut client = Client::connect(addr(&server));
    let chunks = "3\r\nabc\r\n".repeat(10);
    client.send(format!(
        "POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n{chunks}0\r\n\r\n"
    ));
    assert_eq!(client.answer().text(), "early");
    server.stop_begin();
    while server.phase() < Phase::Draining {
        thread::yield_now();
    }
    go.open();
    done.wait_for_count(1);
    assert_eq!(done.all(), [Some(30)]);
    drop(client);
    assert_balanced(&wait(&server).unwrap());
}
