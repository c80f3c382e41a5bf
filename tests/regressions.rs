//! Known failures of other servers, each named after what it protects. Those that were tested before are where they
//! were, and name their report as these do.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a helper that fails fails its test"
)]

mod common;

use std::convert::Infallible;
use std::io::Write;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use httpdown::{Body, Builder, Dispatch, Error, Exchange, Phase, Report, Server};
use hyper::service::service_fn;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use common::{
    Client, Gate, Journal, LONG, OpenAtEnd, addr, assert_balanced, builder, hello, listener, reply,
    stop, stop_elsewhere, wait, wait_for_report,
};

/// How requests reach the handler.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Pool,
    Inline,
    Queue,
    Service,
}

const WAYS: [Way; 4] = [Way::Pool, Way::Inline, Way::Queue, Way::Service];

/// A server that answers `hello`, or with the body; `/gate` only when the gate is open, `/blind` without a look at the
/// body; a body that is malformed or cut with a 400.
struct Fixture {
    server: Server,
    gate: Gate,
    /// Entered by a handler that is about to wait at the gate.
    at_gate: Journal<()>,
    /// What has become of bodies.
    bodies: Journal<bool>,
    _open_at_end: OpenAtEnd,
}

#[derive(Clone)]
struct Handler {
    gate: Gate,
    at_gate: Journal<()>,
    bodies: Journal<bool>,
}

impl Handler {
    fn pass_gate(&self) {
        self.at_gate.write(());
        self.gate.pass();
    }

    fn handle(&self, mut exchange: Exchange) {
        if exchange.uri() == "/gate" {
            self.pass_gate();
        }
        if exchange.uri() == "/blind" {
            let _ = reply(exchange, "hello");
            return;
        }
        let body = exchange.read_to_end(1 << 20);
        // The thread that drives the connection cannot wait for it.
        let is_read = !matches!(body, Err(Error::WouldBlock | Error::WouldDeadlock));
        if is_read {
            self.bodies.write(body.is_ok());
        }
        let _ = match body {
            Ok(body) if !body.is_empty() => reply(exchange, body),
            Err(_) if is_read => exchange.reply(status(StatusCode::BAD_REQUEST)),
            _ => reply(exchange, "hello"),
        };
    }

    async fn respond(self, request: Request<Body>) -> Result<Response<Full<Bytes>>, Infallible> {
        let (head, body) = request.into_parts();
        if head.uri == "/gate" {
            let handler = self.clone();
            let _ = tokio::task::spawn_blocking(move || handler.pass_gate()).await;
        }
        if head.uri == "/blind" {
            return Ok(Response::new(Full::from("hello")));
        }
        let body = body.collect().await;
        self.bodies.write(body.is_ok());
        Ok(match body.map(http_body_util::Collected::to_bytes) {
            Ok(body) if body.is_empty() => Response::new(Full::from("hello")),
            Ok(body) => Response::new(Full::from(body)),
            Err(_) => status(StatusCode::BAD_REQUEST).map(Full::from),
        })
    }
}

fn status(status: StatusCode) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = status;
    response
}

impl Fixture {
    fn new() -> Self {
        Self::with(Way::Pool, builder())
    }

    /// A server whose clients have time to send something during the stop.
    fn patient() -> Self {
        Self::with(Way::Pool, builder().idle_grace(LONG))
    }

    fn with(way: Way, builder: Builder) -> Self {
        let (gate, at_gate, bodies) = (Gate::new(), Journal::new(), Journal::new());
        let handler = Handler {
            gate: gate.clone(),
            at_gate: at_gate.clone(),
            bodies: bodies.clone(),
        };
        let pool = Dispatch::Pool(const { NonZeroUsize::new(4).unwrap() });
        let handle = {
            let handler = handler.clone();
            move |exchange| handler.handle(exchange)
        };
        let server = match way {
            Way::Pool => builder.handle(listener(), pool, handle).unwrap(),
            Way::Inline => builder
                .handle(listener(), Dispatch::Inline, handle)
                .unwrap(),
            Way::Service => {
                let respond = move |request| handler.clone().respond(request);
                builder.serve(listener(), service_fn(respond)).unwrap()
            }
            Way::Queue => {
                let (server, queue) = builder.queue(listener()).unwrap();
                thread::spawn(move || {
                    while let Ok(taken) = queue.take(1, None) {
                        taken.into_iter().for_each(&handle);
                    }
                });
                server
            }
        };
        Self {
            server,
            _open_at_end: gate.open_at_end(),
            gate,
            at_gate,
            bodies,
        }
    }

    fn connect(&self) -> Client {
        Client::connect(addr(&self.server))
    }

    /// A connection that the server has taken.
    fn new_client(&self) -> Client {
        let count = self.server.report().connections;
        let client = self.connect();
        wait_for_report(&self.server, |report| report.connections > count);
        client
    }

    /// Stops elsewhere, and returns when no new connection is possible.
    fn begin_stop(&self) -> JoinHandle<httpdown::Result<Report>> {
        let stopping = stop_elsewhere(&self.server);
        wait_for_report(&self.server, |report| report.phase >= Phase::Draining);
        stopping
    }
}

fn finish(stopping: JoinHandle<httpdown::Result<Report>>) -> Report {
    let report = stopping.join().unwrap().unwrap();
    assert_balanced(&report);
    report
}

const GET: &str = "GET / HTTP/1.1\r\nhost: test\r\n\r\n";
const CHUNKED: &str = "POST / HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n";

fn post(body: &str) -> String {
    let length = body.len();
    format!("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: {length}\r\n\r\n{body}")
}

/// hyper 3808: a connection that has just been accepted is closed at a graceful shutdown, its request unread.
#[test]
fn a_request_sent_just_before_the_stop_is_served_without_any_grace() {
    for _ in 0..20 {
        let fixture = Fixture::with(Way::Pool, builder().idle_grace(Duration::ZERO));
        let mut client = fixture.connect();
        client.send(GET);
        let stopping = stop_elsewhere(&fixture.server);
        assert_eq!(client.answer().text(), "hello");
        drop(client);
        assert_eq!(finish(stopping).served, 1);
    }
}

/// golang/go 23829: clients that post without pause see errors at a graceful shutdown.
#[test]
fn clients_that_post_without_pause_see_no_error_at_a_stop() {
    const CLIENTS: usize = 4;
    for _ in 0..5 {
        let fixture = Fixture::with(Way::Pool, builder().idle_grace(LONG));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let mut client = fixture.new_client();
                thread::spawn(move || {
                    let mut answers = 0;
                    loop {
                        client.send(post("body"));
                        let answer = client.answer();
                        assert_eq!(answer.text(), "body");
                        answers += 1;
                        if answer.closes() {
                            return answers;
                        }
                    }
                })
            })
            .collect();
        wait_for_report(&fixture.server, |report| report.served > 100);
        let stopping = stop_elsewhere(&fixture.server);
        let answers: u64 = clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .sum();
        let report = finish(stopping);
        assert_eq!((report.served, report.raced), (answers, 0));
    }
}

/// hyper with `pipeline_flush`: an empty line behind a last request withholds its answer.
#[test]
fn an_empty_line_behind_the_last_request_does_not_withhold_its_answer() {
    let fixture = Fixture::new();
    for behind in ["\r\n", "\r\n\r\n", "\n", "\r"] {
        let mut client = fixture.connect();
        client.send(format!(
            "GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n{behind}"
        ));
        let answer = client.answer();
        assert_eq!((answer.text(), answer.closes()), ("hello", true));
        client.assert_closed();
    }
    let report = stop(&fixture.server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.served, report.conns_closed), (4, 4));
}

/// hyper with `pipeline_flush`: a bad request behind a good one withholds the good one's answer, and the 400.
#[test]
fn a_good_request_with_a_bad_one_behind_it_is_answered_and_then_the_bad_one() {
    for stops in [false, true] {
        let fixture = Fixture::patient();
        let mut client = fixture.new_client();
        let stopping = stops.then(|| fixture.begin_stop());
        client.send([GET, "nonsense\r\n\r\n"].concat());
        assert_eq!(client.answer().text(), "hello");
        assert_eq!(client.answer().status, 400);
        client.assert_closed();
        let report = finish(stopping.unwrap_or_else(|| stop_elsewhere(&fixture.server)));
        assert_eq!((report.requests, report.served), (1, 1));
        assert_eq!((report.conns_closed, report.conns_gone), (1, 0));
    }
}

#[test]
fn a_refused_head_is_no_request_and_its_client_has_not_left() {
    let fixture = Fixture::with(Way::Pool, builder().linger_timeout(LONG));
    let mut client = fixture.connect();
    client.send("nonsense\r\n\r\n");
    assert_eq!(client.answer().status, 400);
    // It has been answered, and the server lingers.
    assert_eq!(client.until_end().unwrap(), b"");
    fixture.server.kill_begin();
    let report = wait(&fixture.server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.requests, report.conns_closed), (0, 1));
    drop(client);
}

/// What half-closing clients send, and the answers' bodies.
fn half_closing() -> [(String, &'static [&'static str]); 4] {
    [
        (GET.into(), &["hello"]),
        (GET.repeat(3), &["hello", "hello", "hello"]),
        (post("0123456789"), &["0123456789"]),
        (
            format!("{CHUNKED}4\r\n0123\r\n6\r\n456789\r\n0\r\n\r\n"),
            &["0123456789"],
        ),
    ]
}

fn assert_half_closing_is_answered(way: Way, text: &str, answers: &[&str], mut client: Client) {
    client.send(text);
    client.half_close();
    for expected in answers {
        let answer = client.answer();
        assert_eq!(answer.status, 200, "{way:?} {text:?}");
        if way != Way::Inline {
            assert_eq!(answer.text(), *expected, "{way:?}");
        }
    }
    client.assert_closed();
}

/// hyper without `half_close` cancels the handler of a client that has closed its half.
#[test]
fn half_closing_clients_are_answered() {
    for way in WAYS {
        let fixture = Fixture::with(way, builder());
        for (text, answers) in half_closing() {
            assert_half_closing_is_answered(way, &text, answers, fixture.connect());
        }
        let mut client = Client::get(addr(&fixture.server), "/gate");
        fixture.at_gate.wait_for_count(1);
        client.half_close();
        fixture.gate.open();
        assert_eq!(client.answer().text(), "hello", "{way:?}");
        client.assert_closed();
        let report = stop(&fixture.server).unwrap();
        assert_balanced(&report);
        assert_eq!((report.served, report.conns_gone), (7, 0), "{way:?}");
    }
}

/// The same at a stop.
#[test]
fn half_closing_clients_are_answered_at_a_stop() {
    for way in WAYS {
        let fixture = Fixture::with(way, builder().idle_grace(LONG));
        let clients = half_closing().map(|_| fixture.new_client());
        let mut client = Client::get(addr(&fixture.server), "/gate");
        fixture.at_gate.wait_for_count(1);
        let stopping = fixture.begin_stop();
        client.half_close();
        fixture.gate.open();
        assert_eq!(client.answer().text(), "hello", "{way:?}");
        client.assert_closed();
        for ((text, answers), client) in half_closing().into_iter().zip(clients) {
            assert_half_closing_is_answered(way, &text, answers, client);
        }
        let report = finish(stopping);
        assert_eq!((report.served, report.conns_gone), (7, 0), "{way:?}");
        assert_eq!(report.raced, 0, "{way:?}");
    }
}

/// h2o 2534: a socket that is closed while the client still sends is reset, and the end of the answer destroyed.
#[test]
fn an_early_413_reaches_a_client_that_goes_on_sending() {
    const TEXT: usize = 300_000;
    let handler = |exchange: Exchange| {
        let mut response = Response::new(Bytes::from(vec![b'x'; TEXT]));
        *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
        let _ = exchange.reply(response);
    };
    let server = builder()
        .linger_timeout(LONG)
        .handle(listener(), Dispatch::default(), handler)
        .unwrap();
    let fixed = "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 100000000\r\n\r\n";
    for head in [fixed, CHUNKED] {
        let mut client = Client::connect(addr(&server));
        client.send(head);
        let mut upload = client.socket().try_clone().unwrap();
        let sending = thread::spawn(move || {
            let chunk = [b"1000\r\n", vec![b'x'; 0x1000].as_slice(), b"\r\n"].concat();
            // As much as the answer to its end takes; it ends with our client's half of the connection.
            while upload.write_all(&chunk).is_ok() {}
        });
        let answer = client.answer();
        assert_eq!((answer.status, answer.body.len()), (413, TEXT));
        client.half_close();
        sending.join().unwrap();
        client.assert_closed();
    }
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.served, report.conns_closed), (2, 2));
}

#[test]
fn a_client_that_sends_without_pause_does_not_outlast_the_linger_timeout() {
    const SENDERS: usize = 4;
    const LINGER: Duration = Duration::from_millis(20);
    let server = hello(
        builder()
            .io_threads(NonZeroUsize::MIN)
            .linger_timeout(LINGER),
        listener(),
    );
    let mut worst = Duration::ZERO;
    for _ in 0..8 {
        let mut client = Client::connect(addr(&server));
        client.send("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 1000000000000\r\n\r\n");
        // So many that the server finds more than it reads at once, however often it looks.
        let senders: Vec<_> = (0..SENDERS)
            .map(|_| {
                let mut stream = client.socket().try_clone().unwrap();
                let bytes = vec![0; 1 << 18];
                thread::spawn(move || while stream.write_all(&bytes).is_ok() {})
            })
            .collect();
        assert_eq!(client.answer().text(), "hello");
        let began = Instant::now();
        wait_for_report(&server, |report| report.conns_open == 0);
        worst = worst.max(began.elapsed());
        for sender in senders {
            sender.join().unwrap();
        }
    }
    assert!(worst < 50 * LINGER, "{worst:?}");
    assert_balanced(&stop(&server).unwrap());
}

/// Upgrades every connection and echoes on it; behind `bye` it closes its half, and writes down what it still reads.
fn serve_echo(builder: Builder, after_bye: &Journal<String>) -> Server {
    let after_bye = after_bye.clone();
    let service = service_fn(move |mut request: Request<Body>| {
        let upgrade = hyper::upgrade::on(&mut request);
        let after_bye = after_bye.clone();
        tokio::spawn(async move {
            let mut io = hyper_util::rt::TokioIo::new(upgrade.await.unwrap());
            let mut buf = [0; 1024];
            while let Ok(count @ 1..) = io.read(&mut buf).await {
                io.write_all(&buf[..count]).await.unwrap();
                if buf[..count].ends_with(b"bye") {
                    io.shutdown().await.unwrap();
                    let mut rest = String::new();
                    io.read_to_string(&mut rest).await.unwrap();
                    after_bye.write(rest);
                    return;
                }
            }
        });
        let mut response = status(StatusCode::OK).map(Full::<Bytes>::from);
        if request.method() != Method::CONNECT {
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let headers = response.headers_mut();
            headers.insert("connection", "upgrade".parse().unwrap());
            headers.insert("upgrade", "echo".parse().unwrap());
        }
        std::future::ready(Ok::<_, Infallible>(response))
    });
    builder.serve(listener(), service).unwrap()
}

const UPGRADE: &str =
    "GET / HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
const CONNECT: &str = "CONNECT test:80 HTTP/1.1\r\nhost: test:80\r\n\r\n";

/// axum-server 40 and 67: a stop forgets upgraded connections; and one that says `close` has not upgraded at all.
#[test]
fn an_upgrade_or_a_tunnel_agreed_during_a_stop_works_with_the_bytes_behind_it() {
    let after_bye = Journal::new();
    let server = serve_echo(builder().idle_grace(LONG), &after_bye);
    let clients = [(UPGRADE, 101, Some("upgrade")), (CONNECT, 200, None)]
        .map(|expected| (Client::connect(addr(&server)), expected));
    wait_for_report(&server, |report| report.conns_new == 2);
    let stopping = stop_elsewhere(&server);
    wait_for_report(&server, |report| report.phase == Phase::Draining);
    for (mut client, (text, status, connection)) in clients {
        client.send([text, "first"].concat());
        let head = client.try_head().unwrap();
        assert_eq!(
            (head.status, head.header("connection")),
            (status, connection)
        );
        assert_eq!(client.exactly(5).unwrap(), b"first");
        wait_for_report(&server, |report| report.conns_hijacked == 1);
        client.send("bye");
        assert_eq!(client.until_end().unwrap(), b"bye");
        client.send("still there");
        client.half_close();
        wait_for_report(&server, |report| report.conns_hijacked == 0);
    }
    assert_eq!(after_bye.all(), ["still there", "still there"]);
    let report = finish(stopping);
    assert_eq!((report.served, report.conns_closed), (2, 2));
}

#[test]
fn upgraded_connections_and_tunnels_are_killed_with_the_rest() {
    let server = serve_echo(builder(), &Journal::new());
    let clients = [UPGRADE, CONNECT].map(|text| {
        let mut client = Client::connect(addr(&server));
        client.send([text, "first"].concat());
        client.try_head().unwrap();
        assert_eq!(client.exactly(5).unwrap(), b"first");
        // What it sends acknowledges what it has read.
        client.send("more");
        assert_eq!(client.exactly(4).unwrap(), b"more");
        client
    });
    wait_for_report(&server, |report| report.conns_hijacked == 2);
    server.kill_begin();
    clients.into_iter().for_each(Client::assert_ended);
    assert!(matches!(wait(&server), Err(Error::Killed(_))));
    let report = server.report();
    assert_balanced(&report);
    assert_eq!((report.conns_killed, report.hijacked_killed), (2, 2));
    assert_eq!((report.served, report.killed), (2, 0));
    assert_eq!(report.bytes_unacked, 0);
}

/// Java's `HttpClient` and `curl --http2` ask for h2c with each plain request. Whoever declines that, and keeps the request,
/// keeps the connection from nothing.
#[test]
fn a_declined_upgrade_changes_nothing_of_how_its_connection_ends() {
    const LARGE: usize = 4 << 20;
    const FIELDS: &str =
        "host: test\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: \r\n";
    let kept = Journal::new();
    let keeps = kept.clone();
    let service = service_fn(move |mut request: Request<Body>| {
        keeps.write(Arc::new(Mutex::new(hyper::upgrade::on(&mut request))));
        let declined =
            status(StatusCode::PAYLOAD_TOO_LARGE).map(|_| Full::<Bytes>::from("declined"));
        std::future::ready(Ok::<_, Infallible>(declined))
    });
    let builder = builder().idle_grace(LONG).linger_timeout(LONG);
    let server = builder.serve(listener(), service).unwrap();

    let mut client = Client::connect(addr(&server));
    client.send(format!(
        "POST / HTTP/1.1\r\n{FIELDS}content-length: {LARGE}\r\n\r\n"
    ));
    client.send(vec![b'x'; LARGE]);
    let answer = client.answer();
    assert_eq!(
        (answer.status, answer.text(), answer.closes()),
        (413, "declined", true)
    );
    client.assert_closed();

    let mut client = Client::connect(addr(&server));
    client
        .send(["CONNECT test:80 HTTP/1.1\r\nhost: test:80\r\nconnection: close\r\n\r\n"].concat());
    let answer = client.answer();
    assert_eq!((answer.status, answer.closes()), (413, true));
    client.assert_closed();

    let mut client = Client::connect(addr(&server));
    let get = |fields| format!("GET / HTTP/1.1\r\n{fields}\r\n");
    client.send(get(FIELDS));
    assert!(!client.answer().closes());
    client.send(get("host: test\r\n"));
    assert!(!client.answer().closes());
    client.send(get(FIELDS));
    assert!(!client.answer().closes());
    let stopping = stop_elsewhere(&server);
    wait_for_report(&server, |report| report.phase == Phase::Draining);
    client.send(get(FIELDS));
    assert!(client.answer().closes());
    client.assert_closed();
    let report = finish(stopping);
    assert_eq!((report.served, report.conns_closed), (6, 3));
    assert_eq!(kept.all().len(), 6);
}

#[test]
fn a_client_that_waits_for_100_continue_at_a_stop_is_told_and_answered() {
    let fixture = Fixture::patient();
    let mut client = fixture.new_client();
    let stopping = fixture.begin_stop();
    client
        .send("POST / HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n");
    assert_eq!(client.try_head().unwrap().status, 100);
    client.send("body");
    let answer = client.answer();
    assert_eq!((answer.text(), answer.closes()), ("body", true));
    client.assert_closed();
    assert_eq!(finish(stopping).served, 1);
}

#[test]
fn clients_of_http_1_0_are_answered_at_a_stop_and_told_that_it_closes() {
    let fixture = Fixture::patient();
    let mut clients = ["", "connection: keep-alive\r\n"].map(|header| {
        let client = fixture.new_client();
        (client, format!("GET / HTTP/1.0\r\n{header}\r\n"))
    });
    // One of them has been there before.
    clients[1].0.send(&clients[1].1);
    assert_eq!(
        clients[1].0.answer().header("connection"),
        Some("keep-alive")
    );
    let stopping = fixture.begin_stop();
    for (mut client, text) in clients {
        client.send(text);
        let answer = client.answer();
        assert_eq!((answer.text(), answer.closes()), ("hello", true));
        client.assert_closed();
    }
    assert_eq!(finish(stopping).served, 3);
}

#[test]
fn a_head_request_at_a_stop_is_answered_without_a_body() {
    let fixture = Fixture::patient();
    let mut client = fixture.new_client();
    let stopping = fixture.begin_stop();
    client.send("HEAD / HTTP/1.1\r\nhost: test\r\n\r\n");
    let head = client.try_head().unwrap();
    assert_eq!(head.header("content-length"), Some("5"));
    assert!(head.closes());
    client.assert_closed();
    assert_eq!(finish(stopping).served, 1);
}

#[test]
fn a_request_behind_a_small_body_that_nobody_reads_is_answered() {
    for stops in [false, true] {
        let server = hello(builder().idle_grace(LONG), listener());
        let mut client = Client::connect(addr(&server));
        wait_for_report(&server, |report| report.conns_new == 1);
        let stopping = stops.then(|| stop_elsewhere(&server));
        if stops {
            wait_for_report(&server, |report| report.phase == Phase::Draining);
        }
        client.send([post("small").as_str(), GET].concat());
        let closes = [client.answer(), client.answer()].map(|answer| answer.closes());
        assert_eq!(closes, [false, stops]);
        drop(client);
        let report = finish(stopping.unwrap_or_else(|| stop_elsewhere(&server)));
        assert_eq!((report.served, report.raced), (2, 0));
    }
}

#[test]
fn a_request_behind_a_body_that_is_read_after_the_answer_has_begun_is_answered() {
    // More than hyper reads before anybody asks for it.
    let body = "body".repeat(5_000);
    let gates = [Gate::new(), Gate::new(), Gate::new()];
    let [entered, starts, reads] = gates.clone();
    let handler = move |mut exchange: Exchange| {
        if exchange.method() == Method::POST {
            entered.open();
            starts.pass();
            exchange.start(Response::new(())).unwrap();
            reads.pass();
            let body = exchange.read_to_end(usize::MAX).unwrap();
            exchange.write_bytes(body).unwrap();
            exchange.finish().unwrap();
        } else {
            let _ = reply(exchange, "hello");
        }
    };
    let builder = builder().idle_grace(LONG);
    let server = builder
        .handle(listener(), Dispatch::default(), handler)
        .unwrap();
    let [entered, starts, reads] = gates;
    let _open = [starts.open_at_end(), reads.open_at_end()];
    let mut client = Client::connect(addr(&server));
    client.send([post(&body).as_str(), GET].concat());
    entered.pass();
    let stopping = stop_elsewhere(&server);
    wait_for_report(&server, |report| report.phase == Phase::Draining);
    starts.open();
    let head = client.try_head().unwrap();
    assert!(!head.closes());
    reads.open();
    assert_eq!(client.try_body(&head).unwrap(), body.as_bytes());
    let answer = client.answer();
    assert_eq!((answer.text(), answer.closes()), ("hello", true));
    drop(client);
    let report = finish(stopping);
    assert_eq!((report.served, report.raced), (2, 0));
}

#[test]
fn a_large_body_that_nobody_reads_ends_its_connection_but_not_its_answer() {
    for stops in [false, true] {
        let server = hello(builder().idle_grace(LONG).linger_timeout(LONG), listener());
        let mut client = Client::connect(addr(&server));
        wait_for_report(&server, |report| report.conns_new == 1);
        let stopping = stops.then(|| stop_elsewhere(&server));
        if stops {
            wait_for_report(&server, |report| report.phase == Phase::Draining);
        }
        let text = [post(&"x".repeat(1 << 20)).as_str(), GET].concat();
        client.send(text);
        let answer = client.answer();
        assert_eq!((answer.text(), answer.closes()), ("hello", true));
        client.assert_closed();
        let report = finish(stopping.unwrap_or_else(|| stop_elsewhere(&server)));
        assert_eq!((report.requests, report.served), (1, 1));
    }
}

/// hyper: an answer is given before the rest of the body has come, the connection closed, and the client not told.
#[test]
fn an_answer_that_ends_its_connection_because_of_an_unread_body_says_so() {
    for way in WAYS {
        let fixture = Fixture::with(way, builder());
        for body in [
            "content-length: 100000\r\n\r\nsome",
            "transfer-encoding: chunked\r\n\r\n4\r\nsome\r\n",
        ] {
            for _ in 0..10 {
                let mut client = fixture.connect();
                client.send(format!("POST /blind HTTP/1.1\r\nhost: test\r\n{body}"));
                let answer = client.answer();
                assert_eq!(answer.text(), "hello");
                assert!(answer.closes(), "{way:?} {body:?}");
                client.assert_closed();
            }
        }
        assert_balanced(&stop(&fixture.server).unwrap());
    }
}

/// axum pull 3478: a head that is half sent at the stop.
#[test]
fn a_head_that_comes_byte_by_byte_during_a_stop_is_answered() {
    let fixture = Fixture::new();
    let mut client = fixture.connect();
    let (begin, rest) = GET.split_at(1);
    client.send(begin);
    wait_for_report(&fixture.server, |report| report.conns_active == 1);
    let stopping = fixture.begin_stop();
    for byte in rest.as_bytes() {
        client.send([*byte]);
        thread::yield_now();
    }
    let answer = client.answer();
    assert_eq!((answer.text(), answer.closes()), ("hello", true));
    client.assert_closed();
    assert_eq!(finish(stopping).served, 1);
}

#[test]
fn chunks_may_be_split_anywhere_by_a_stop() {
    const CHUNKS: &str = "4\r\n0123\r\n6;e=1\r\n456789\r\n0\r\na: b\r\n\r\n";
    let fixture = Fixture::with(Way::Service, builder());
    let clients: Vec<_> = (0..CHUNKS.len())
        .map(|split| {
            let mut client = fixture.connect();
            client.send([CHUNKED, &CHUNKS[..split]].concat());
            (client, &CHUNKS[split..])
        })
        .collect();
    let count = clients.len() as u64;
    wait_for_report(&fixture.server, |report| report.requests == count);
    let stopping = fixture.begin_stop();
    for (mut client, rest) in clients {
        client.send(rest);
        let answer = client.answer();
        assert_eq!((answer.text(), answer.closes()), ("0123456789", true));
        client.assert_closed();
    }
    assert_eq!(finish(stopping).served, count);
}

#[test]
fn malformed_chunks_are_an_error_to_the_handler_and_hang_nobody() {
    const MALFORMED: [&str; 8] = [
        "g\r\n",
        "1 \r\na\r\n0\r\n\r\n",
        "1\na\n0\n\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "+1\r\na\r\n0\r\n\r\n",
        "11111111111111111\r\n",
        "1\r\na\r\n0\r\na\n\r\n",
        "\r\n",
    ];
    for way in [Way::Pool, Way::Queue, Way::Service] {
        for stops in [false, true] {
            let fixture = Fixture::with(way, builder().idle_grace(LONG));
            let clients = MALFORMED.map(|chunks| (fixture.new_client(), chunks));
            let stopping = stops.then(|| fixture.begin_stop());
            for (mut client, chunks) in clients {
                client.send([CHUNKED, chunks].concat());
                let seen = client.until_end().unwrap();
                let seen = String::from_utf8(seen).unwrap();
                assert!(
                    seen.is_empty() || seen.starts_with("HTTP/1.1 400 "),
                    "{way:?} {chunks:?}: {seen:?}"
                );
            }
            assert_eq!(fixture.bodies.all(), [false; MALFORMED.len()], "{way:?}");
            finish(stopping.unwrap_or_else(|| stop_elsewhere(&fixture.server)));
        }
    }
}

#[test]
fn the_header_timeout_ends_half_a_head_during_a_stop_but_not_an_empty_line() {
    let builder = builder().idle_grace(LONG);
    let fixture = Fixture::with(
        Way::Pool,
        builder.header_timeout(Duration::from_millis(100)),
    );
    let mut clients = ["\r\n", "\r", "\r\n\n\r", "GET / HT"].map(|text| {
        let mut client = fixture.new_client();
        client.send(text);
        (client, text)
    });
    let stopping = fixture.begin_stop();
    let [empty @ .., (half, _)] = &mut clients;
    // Ended later than those that came before it.
    assert_eq!(half.answer().status, 408);
    assert_eq!(half.until_end().unwrap(), b"");
    for (client, text) in empty {
        let rest = if text.ends_with('\r') { "\n" } else { "" };
        client.send([rest, GET].concat());
        assert_eq!(client.answer().text(), "hello", "{text:?}");
    }
    drop(clients);
    let report = finish(stopping);
    assert_eq!((report.served, report.conns_timed_out), (3, 1));
}
