//! Connections in virtual time: real sockets on loopback, whose bytes and FINs are waited for, and a clock that moves
//! only when nothing is left to do. So a random script of a client and of a stop has one outcome, and what must hold
//! for it can be worked out from the script.

mod books;
mod idle;
mod life;
mod overdue;
mod proxied;
mod requests;
mod slow;

use std::future::{Future, poll_fn};
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proptest::test_runner::Config;
use socket2::{SockRef, Socket, Type};
use tokio::runtime::Handle;

use super::{Conn, Respond, serve};
use crate::events::{Event, Interest};
use crate::net::plain::Kind;
use crate::net::{Connected, Listener};
use crate::phase::Phase;
use crate::record::RequestEnd;
use crate::server::{Builder, Server};
use crate::shared::Shared;
use crate::sys;
use crate::threads::Spawn;

/// Begins a phase, and does all that follows from that before it returns.
fn enter(shared: &Shared, phase: Phase) {
    shared.phases.set(phase);
    shared.events.phase(phase);
    shared.announce(phase);
}

/// What time moves by. All times are multiples of it.
const TICK: Duration = Duration::from_millis(50);
// In ticks.
const GRACE: u32 = 4;
const LINGER: u32 = 6;
const HEADER: u32 = 10;
const IDLE: u32 = 7;
const PARK: u32 = 2;

/// What the sockets hold of the responses, about.
const BUFFER: usize = 16 << 10;

/// `PROPTEST_CASES` sets another number of cases.
fn config(cases: u32) -> Config {
    Config {
        cases: std::env::var("PROPTEST_CASES").map_or(cases, |text| text.parse().unwrap()),
        failure_persistence: None,
        max_shrink_iters: 3_000,
        ..Config::default()
    }
}

/// Where cases run.
#[derive(Debug)]
struct Bench {
    runtime: tokio::runtime::Runtime,
    listener: Listener,
}

/// Where clients connect: as for the tests in `tests/`, also by Unix sockets.
fn place() -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    match std::env::var("HTTPDOWN_TEST_SOCKETS") {
        Ok(kind) if kind == "unix" => {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            format!("unix:@httpdown-bench-{}-{count}", std::process::id())
        }
        _ => "127.0.0.1:0".into(),
    }
}

impl Bench {
    fn new() -> Self {
        Self::at(&place())
    }

    /// For what only TCP tells: which bytes the client's kernel has.
    fn of_tcp() -> Self {
        Self::at("127.0.0.1:0")
    }

    fn at(place: &str) -> Self {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        Self {
            runtime: builder.enable_all().start_paused(true).build().unwrap(),
            listener: Listener::bind(place).unwrap(),
        }
    }
}

impl Bench {
    /// Both ends of a connection with small buffers.
    fn connect(&self) -> (Socket, Connected) {
        let addr = SockRef::from(&self.listener).local_addr().unwrap();
        let client = Socket::new(addr.domain(), Type::STREAM, None).unwrap();
        client.set_recv_buffer_size(BUFFER).unwrap();
        client.connect(&addr).unwrap();
        if !addr.is_unix() {
            client.set_tcp_nodelay(true).unwrap();
        }
        let connected = self.listener.accept().unwrap();
        let stream = SockRef::from(&connected.stream);
        stream.set_send_buffer_size(BUFFER).unwrap();
        (client, connected)
    }
}

/// A client's end of a connection, and what it has seen.
#[derive(Debug)]
struct Peer {
    stream: Option<Socket>,
    is_reading: bool,
    got: Vec<u8>,
    /// Our end of the connection is over: whether by a FIN.
    end: Option<bool>,
}

impl Peer {
    fn look(&mut self) {
        let Some(stream) = &mut self.stream else {
            return;
        };
        let mut buf = [0; 16 << 10];
        while self.is_reading && self.end.is_none() {
            match stream.read(&mut buf) {
                Ok(0) => self.end = Some(true),
                Ok(count) => self.got.extend_from_slice(&buf[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.end = Some(false),
            }
        }
        // Acknowledges what has come now, not within the next 40 ms of real time.
        let _ = stream.set_tcp_quickack(true);
    }
}

type Ambush = Arc<Mutex<Option<Box<dyn FnOnce() + Send>>>>;

/// A connection that is served, and its client.
struct Run {
    shared: Arc<Shared>,
    /// Held by the connection, too.
    worker: Arc<Watched>,
    /// Our end, for as long as the connection is open.
    socket: (RawFd, Kind),
    peer: Peer,
    tick: u32,
    /// When our FIN or a reset was seen.
    ended: Option<u32>,
    /// When nothing was left of the connection.
    gone: Option<u32>,
    /// The host is told of each request, and takes no other events.
    is_told: bool,
}

impl Run {
    fn start<R: Respond + Clone + Sync>(bench: &Bench, respond: &R) -> Self {
        Self::start_with(bench, respond, Server::builder())
    }

    fn start_with<R: Respond + Clone + Sync>(bench: &Bench, respond: &R, builder: Builder) -> Self {
        let done = Interest {
            done: true,
            ..Interest::default()
        };
        let is_told = !builder.pulls();
        let builder = if is_told { builder.pull(done) } else { builder };
        let mut shared = builder
            .idle_grace(GRACE * TICK)
            .linger_timeout(LINGER * TICK)
            .header_timeout(HEADER * TICK)
            .shared(0, &[], tokio::runtime::Handle::current())
            .unwrap();
        shared.options.park_after = PARK * TICK;
        let shared = Arc::new(shared);
        let (client, connected) = bench.connect();
        client.set_nonblocking(true).unwrap();
        let socket = (connected.stream.as_raw_fd(), Kind::of(&connected.local));
        let accepted = Conn::accept(&shared, connected);
        let worker = Arc::new(Watched {
            runtime: Handle::current(),
            polls: Arc::default(),
            ambush: Arc::default(),
        });
        let respond = respond.clone();
        let make = Arc::new(Mutex::new(move |_: &Arc<super::Conn>| respond.clone()));
        serve(accepted, &make, Arc::clone(&worker));
        Self {
            shared,
            worker,
            socket,
            peer: Peer {
                stream: Some(client),
                is_reading: true,
                got: Vec::new(),
                end: None,
            },
            tick: 0,
            ended: None,
            gone: None,
            is_told,
        }
    }

    /// Until nothing is left to do at this time.
    async fn settle(&mut self) {
        let mut quiet = 0;
        for _ in 0..2_000 {
            let before = (self.polls(), self.peer.got.len());
            // Has the runtime look for events, and does not let it move the clock.
            tokio::task::yield_now().await;
            self.peer.look();
            let after = (self.polls(), self.peer.got.len());
            quiet = if before == after { quiet + 1 } else { 0 };
            if quiet == 3 {
                if !self.wait_for_delivery() {
                    break;
                }
                quiet = 0;
            }
        }
        assert!(quiet == 3, "the server does not come to rest");
        if self.peer.end.is_some() {
            self.ended.get_or_insert(self.tick);
        }
        if Arc::strong_count(&self.worker) == 1 && self.shared.report().conns_open == 0 {
            self.gone.get_or_insert(self.tick);
        }
    }

    /// On a busy machine, the kernel may take its time for what has been sent, in either direction. The clock must not
    /// move meanwhile. Returns whether there was something to wait for.
    fn wait_for_delivery(&mut self) -> bool {
        let (shared, (fd, kind)) = (Arc::clone(&self.shared), self.socket);
        let is_delivering = |peer: &Peer| {
            let is_open = shared.report().conns_open > 0;
            let Some(client) = peer.stream.as_ref().filter(|_| is_open) else {
                return false;
            };
            let client = client.as_fd();
            sys::with_fd(fd, |fd| {
                // Acknowledges what has come, as the client does.
                let _ = SockRef::from(&fd).set_tcp_quickack(true);
                peer.is_reading && kind.unacked(fd) > 0
                    || kind.unacked(client) > 0 && !kind.is_over(client)
            })
        };
        if !is_delivering(&self.peer) {
            return false;
        }
        let deadline = Instant::now() + Duration::from_secs(1);
        while is_delivering(&self.peer) {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::yield_now();
            self.peer.look();
        }
        true
    }

    /// The same for the client's FIN or reset.
    fn wait_for_end(&self) {
        let deadline = Instant::now() + Duration::from_secs(1);
        while self.shared.report().conns_open > 0
            && !sys::with_fd(self.socket.0, sys::is_read_shut)
            && Instant::now() < deadline
        {
            std::thread::yield_now();
        }
    }

    fn polls(&self) -> usize {
        self.worker.polls.load(Ordering::Relaxed)
    }

    async fn tick(&mut self) {
        tokio::time::advance(TICK).await;
        self.tick += 1;
        self.settle().await;
    }

    /// False if the connection is broken.
    async fn send(&mut self, bytes: &[u8]) -> bool {
        let Some(stream) = &mut self.peer.stream else {
            return false;
        };
        let sent = match stream.write(bytes) {
            Ok(count) => count == bytes.len(),
            Err(error) => {
                assert_ne!(
                    error.kind(),
                    ErrorKind::WouldBlock,
                    "too much for the sockets"
                );
                false
            }
        };
        self.settle().await;
        sent
    }

    /// What has come is seen, whether or not the client reads otherwise.
    async fn catch_up(&mut self) {
        let was = std::mem::replace(&mut self.peer.is_reading, true);
        self.settle().await;
        self.peer.is_reading = was;
    }

    async fn half_close(&mut self) {
        if let Some(stream) = &self.peer.stream {
            let _ = stream.shutdown(Shutdown::Write);
            self.wait_for_end();
        }
        self.settle().await;
    }

    async fn close(&mut self, reset: bool) {
        if let Some(stream) = self.peer.stream.take() {
            if reset {
                stream.set_linger(Some(Duration::ZERO)).unwrap();
            }
            drop(stream);
            self.wait_for_end();
        }
        self.settle().await;
    }

    async fn enter(&mut self, phase: Phase) {
        enter(&self.shared, phase);
        self.settle().await;
    }

    /// As the control thread does it.
    async fn kill(&mut self) {
        self.enter(Phase::Killing).await;
        self.shared.registry.reset_all();
        self.settle().await;
    }
}

/// In each of these lives, the host is told of each request once, and what the report says.
impl Drop for Run {
    fn drop(&mut self) {
        let report = self.shared.report();
        if std::thread::panicking() || report.conns_open > 0 || !self.is_told {
            return;
        }
        let told = std::iter::from_fn(|| self.shared.events.next(Some(Instant::now())).ok());
        let mut ends = [0; 5];
        for event in told {
            let Event::Done(record) = event else {
                panic!("{event:?}");
            };
            ends[record.end as usize] += 1;
        }
        assert_eq!(ends.iter().sum::<u64>(), report.requests, "{report:?}");
        let of = |end: RequestEnd| ends[end as usize];
        assert_eq!(
            of(RequestEnd::Failed),
            report.failed,
            "{ends:?}, {report:?}"
        );
        assert_eq!(
            of(RequestEnd::TimedOut),
            report.timed_out,
            "{ends:?}, {report:?}"
        );
        // Only those may differ that were told before the stop, and had not arrived when it came.
        let stops = self.shared.phases.get().drains();
        for (end, count) in [
            (RequestEnd::Gone, report.gone),
            (RequestEnd::Killed, report.killed),
        ] {
            assert!(
                of(end) == count || stops && of(end) < count,
                "{ends:?}, {report:?}"
            );
        }
    }
}

/// Where a connection runs, watched.
struct Watched {
    runtime: Handle,
    /// How often it has run.
    polls: Arc<AtomicUsize>,
    /// Done just before it runs again: between what has woken it and what it does then.
    ambush: Ambush,
}

impl Spawn for Watched {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let (polls, ambush) = (Arc::clone(&self.polls), Arc::clone(&self.ambush));
        self.runtime.spawn(watched(task, polls, ambush));
    }
}

async fn watched(future: impl Future<Output = ()>, polls: Arc<AtomicUsize>, ambush: Ambush) {
    let mut future = pin!(future);
    poll_fn(|cx| {
        polls.fetch_add(1, Ordering::Relaxed);
        let ambush = ambush.lock().unwrap().take();
        if let Some(ambush) = ambush {
            ambush();
        }
        future.as_mut().poll(cx)
    })
    .await;
}
