//! The idle timeout, and what responses say of it.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use std::fs;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use common::{
    Client, Gate, LONG, addr, assert_balanced, builder, hello, listener, reply, stop, tcp_listener,
    wait, wait_for_report,
};
use http::{HeaderName, Response};
use httpdown::{Builder, Dispatch, Error, Exchange, Phase, Server};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

const SECOND: Duration = Duration::from_secs(1);

/// Answers with the header field that the path names, `/name/value`.
fn answer(exchange: Exchange) {
    let mut response = Response::new("hello".into());
    let path = exchange.uri().path().to_owned();
    if let Some((name, value)) = path[1..].split_once('/') {
        let name = name.parse::<HeaderName>().unwrap();
        response.headers_mut().insert(name, value.parse().unwrap());
    }
    let _ = exchange.reply(response);
}

/// What the answer to this request says of its connection: `Connection` and `Keep-Alive`.
fn said(server: &Server, request: &str) -> (Option<String>, Option<String>) {
    let mut client = Client::connect(addr(server));
    client.send(request);
    let answer = client.try_head().unwrap();
    let field = |name| answer.header(name).map(str::to_owned);
    (field("connection"), field("keep-alive"))
}

#[test]
fn an_idle_connection_is_closed_and_so_is_one_that_never_asks() {
    let server = hello(builder().idle_timeout(SECOND / 10), listener());
    let silent = Client::connect(addr(&server));
    let mut client = Client::get(addr(&server), "/");
    assert_eq!(client.answer().header("keep-alive"), None);
    client.assert_closed();
    silent.assert_closed();
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.served, report.closed_idle), (1, 2));
}

#[test]
fn responses_say_when_an_idle_connection_ends() {
    let builder = builder().idle_grace(SECOND).ready_path("/ready");
    let server = builder
        .idle_timeout(61 * SECOND + SECOND / 2)
        .keep_alive_header(true)
        .handle(listener(), Dispatch::default(), answer)
        .unwrap();
    let announced = (Some("keep-alive".into()), Some("timeout=60".into()));
    for request in [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "HEAD / HTTP/1.1\r\nHost: a\r\nConnection: x, keep-alive\r\n\r\n",
        "GET /ready HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\na",
        "GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n",
    ] {
        assert_eq!(said(&server, request), announced, "{request}");
    }
    let close = (Some("close".into()), None);
    for (request, expected) in [
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n\r\n",
            &close,
        ),
        ("GET / HTTP/1.0\r\n\r\n", &close),
        ("GET /connection/close HTTP/1.1\r\nHost: a\r\n\r\n", &close),
        // The rest of this body does not come: the connection cannot go on.
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999\r\n\r\na",
            &close,
        ),
        // Who says something of the kind is not contradicted.
        (
            "GET /keep-alive/max=1 HTTP/1.1\r\nHost: a\r\n\r\n",
            &(None, Some("max=1".into())),
        ),
        (
            "GET /connection/x HTTP/1.1\r\nHost: a\r\n\r\n",
            &(Some("x".into()), None),
        ),
    ] {
        assert_eq!(said(&server, request), *expected, "{request}");
    }
    stop(&server).unwrap();
}

#[test]
fn the_lame_duck_closes_instead() {
    let builder = builder().lame_duck(600 * SECOND).idle_timeout(60 * SECOND);
    let server = hello(builder.keep_alive_header(true), listener());
    server.stop_begin();
    let close = (Some("close".into()), None);
    wait_for_report(&server, |report| report.phase == Phase::LameDuck);
    assert_eq!(said(&server, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"), close);
    server.kill_begin();
    let _ = wait(&server);
}

#[test]
fn timeouts_that_make_no_sense_are_refused() {
    let why = |builder: Builder| match builder.queue(listener()) {
        Err(Error::InvalidArgument(why)) => why,
        other => panic!("{other:?}"),
    };
    let zero = why(builder().idle_timeout(Duration::ZERO));
    assert_eq!(zero, "idle_timeout is 0: no request could come in time");
    let alone = why(builder().keep_alive_header(true));
    assert_eq!(
        alone,
        "keep_alive_header has nothing to say: there is no idle_timeout"
    );
    let builder = builder()
        .idle_grace(SECOND)
        .idle_timeout(Duration::from_millis(1_999));
    assert_eq!(
        why(builder.keep_alive_header(true)),
        "keep_alive_header has nothing to say: idle_timeout (1.999s) is not a second longer than idle_grace (1s)"
    );
}

/// A server that says on which thread it has answered, and something that is dropped with its handler.
fn tells_thread(builder: Builder, dispatch: Dispatch) -> (Server, Weak<()>) {
    let alive = Arc::new(());
    let weak = Arc::downgrade(&alive);
    let handler = move |exchange: Exchange| {
        let _ = (
            &alive,
            reply(exchange, format!("{:?}", thread::current().id())),
        );
    };
    (builder.handle(listener(), dispatch, handler).unwrap(), weak)
}

/// Waits until all is gone that a server has had of its host's.
fn assert_gone(weak: &Weak<()>) {
    let deadline = Instant::now() + LONG;
    while weak.strong_count() > 0 {
        assert!(Instant::now() < deadline, "something is left of the server");
        thread::yield_now();
    }
}

#[test]
fn a_connection_stays_on_its_thread_however_often_it_is_idle() {
    const THREADS: usize = 2;
    const CLIENTS: usize = 4 * THREADS;
    let threads = NonZeroUsize::new(THREADS).unwrap();
    let (server, _) = tells_thread(builder().io_threads(threads), Dispatch::Inline);
    let new = || Client::connect(addr(&server));
    let ask = |client: &mut Client| {
        client.ask("/");
        client.answer().text().to_owned()
    };
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| new()).collect();
    // Silent as they were when the next one came, they counted.
    let threads: Vec<_> = clients.iter_mut().map(ask).collect();
    let one = threads.iter().filter(|thread| **thread == threads[0]);
    assert_eq!(one.count(), CLIENTS / THREADS, "{threads:?}");
    assert_eq!(clients.iter_mut().map(ask).collect::<Vec<_>>(), threads);
    // Those that have left count no more.
    let mut all = threads.iter();
    clients.retain(|_| all.next() != Some(&threads[0]));
    wait_for_report(&server, |report| {
        report.conns_open == (CLIENTS - CLIENTS / THREADS) as u64
    });
    assert_eq!(ask(&mut new()), threads[0]);
    stop(&server).unwrap();
}

/// A runtime of a host's, which runs until this is dropped.
struct HostRuntime {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl HostRuntime {
    fn start(mut builder: tokio::runtime::Builder) -> Self {
        let runtime = builder.enable_all().build().unwrap();
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || drop(runtime.block_on(stopped)));
        Self {
            handle,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    fn both() -> [Self; 2] {
        [
            tokio::runtime::Builder::new_current_thread(),
            tokio::runtime::Builder::new_multi_thread(),
        ]
        .map(Self::start)
    }
}

impl Drop for HostRuntime {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn a_request_in_the_very_moment_in_which_a_connection_becomes_idle_is_answered() {
    const ROUNDS: usize = 300;
    let race = |server: &Server| {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..ROUNDS {
                        // The first may come before the connection is parked for the first time, the second before it
                        // is again.
                        let mut client = Client::get(addr(server), "/");
                        client.answer();
                        client.ask("/");
                        client.answer();
                    }
                });
            }
        });
        let report = stop(server).unwrap();
        assert_balanced(&report);
        assert_eq!(report.served, 4 * 2 * ROUNDS as u64);
    };
    for runtime in HostRuntime::both() {
        race(&hello(
            builder().runtime(runtime.handle.clone()),
            listener(),
        ));
    }
    for dispatch in [Dispatch::default(), Dispatch::Inline] {
        race(&tells_thread(builder(), dispatch).0);
    }
}

/// As /proc/net/tcp shows it.
fn in_hex(addr: SocketAddr) -> String {
    match addr {
        SocketAddr::V4(addr) => {
            let ip = u32::from_ne_bytes(addr.ip().octets());
            format!("{ip:08X}:{:04X}", addr.port())
        }
        SocketAddr::V6(_) => unreachable!("tests listen on 127.0.0.0/8"),
    }
}

/// How many descriptors of this process are the server's end of this connection.
fn descriptors_of_server_for(client: &Client) -> usize {
    let ends = [client.socket().peer_addr(), client.socket().local_addr()];
    let ends = ends.map(|addr| in_hex(addr.unwrap().as_socket().unwrap()));
    let table = fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
    // Number, local and remote address; state, queues, timer, retransmissions, user, timeout, inode.
    let fields = table.lines().map(|line| line.split_whitespace().skip(1));
    let mut theirs = fields.filter(|fields| fields.clone().take(2).eq(&ends));
    let inode = theirs.next().unwrap().nth(8).unwrap();
    let name = PathBuf::from(format!("socket:[{inode}]"));
    let all = fs::read_dir("/proc/self/fd").unwrap();
    all.filter(|fd| fs::read_link(fd.as_ref().unwrap().path()).is_ok_and(|to| to == name))
        .count()
}

fn wait_for_descriptors(client: &Client, count: usize) {
    let deadline = Instant::now() + LONG;
    while descriptors_of_server_for(client) != count {
        assert!(Instant::now() < deadline, "not {count}");
        thread::yield_now();
    }
}

#[test]
fn what_it_takes_to_see_a_reset_behind_unread_bytes_is_given_back_when_a_connection_is_idle() {
    let (entered, gate) = (Gate::new(), Gate::new());
    let (enters, passes) = (entered.clone(), gate.clone());
    let handler = move |exchange: Exchange| {
        enters.open();
        passes.pass();
        let _ = reply(exchange, "hello");
    };
    let server = builder()
        .handle(tcp_listener(), Dispatch::default(), handler)
        .unwrap();
    let _open = gate.open_at_end();
    let mut client = Client::get(addr(&server), "/");
    entered.pass();
    wait_for_descriptors(&client, 1);
    // Bytes that nobody reads now.
    client.ask("/");
    wait_for_descriptors(&client, 2);
    gate.open();
    client.answer();
    client.answer();
    wait_for_descriptors(&client, 1);
    stop(&server).unwrap();
}

#[test]
fn nothing_is_left_of_idle_connections_when_their_runtime_ends() {
    let runtimes = [HostRuntime::both(), HostRuntime::both()];
    let timeouts = [Duration::MAX, 3600 * SECOND];
    let timeouts = timeouts.into_iter().flat_map(|timeout| [timeout; 2]);
    for (runtime, timeout) in runtimes.into_iter().flatten().zip(timeouts) {
        let builder = builder()
            .runtime(runtime.handle.clone())
            .idle_timeout(timeout);
        let (server, weak) = tells_thread(builder, Dispatch::Inline);
        let silent = Client::connect(addr(&server));
        let mut client = Client::get(addr(&server), "/");
        client.answer();
        wait_for_report(&server, |report| {
            (report.conns_new, report.conns_idle) == (1, 1)
        });
        // It should have outlived the server.
        drop(runtime);
        client.assert_ended();
        silent.assert_ended();
        let result = wait(&server);
        assert!(matches!(result, Err(Error::Io(..))), "{result:?}");
        assert_balanced(&server.report());
        server.close();
        assert_gone(&weak);
    }
}

#[test]
fn idle_connections_on_a_thread_that_a_handler_blocks_are_closed_by_a_kill_and_leave_nothing() {
    let (gate, begun) = (Gate::new(), Gate::new());
    let _open_at_end = gate.open_at_end();
    let alive = Arc::new(());
    let weak = Arc::downgrade(&alive);
    let (begins, blocks) = (begun.clone(), gate.clone());
    let server = builder()
        .io_threads(NonZeroUsize::MIN)
        .stop_timeout(SECOND / 20)
        .kill_timeout(SECOND / 5)
        .handle(listener(), Dispatch::Inline, move |exchange: Exchange| {
            if exchange.uri() == "/block" {
                begins.open();
                blocks.pass();
            }
            let _ = (&alive, reply(exchange, "hello"));
        })
        .unwrap();
    let silent = Client::connect(addr(&server));
    let mut idle = Client::get(addr(&server), "/");
    idle.answer();
    let client = Client::get(addr(&server), "/block");
    begun.pass();
    let result = stop(&server);
    assert!(matches!(result, Err(Error::TimedOut(_))), "{result:?}");
    client.assert_ended();
    idle.assert_ended();
    silent.assert_ended();
    let report = server.report();
    assert_balanced(&report);
    assert_eq!((report.connections, report.abandoned), (3, 1));
    gate.open();
    server.close();
    assert_gone(&weak);
}
