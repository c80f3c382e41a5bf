//! TLS: handshakes, what a stop does to them, what clients can do to it, and what handlers learn. What is the same with
//! and without TLS is tested by the same tests (`HTTPDOWN_TEST_SOCKETS=tls`).
#![allow(
    clippy::unwrap_used,
    dead_code,
    reason = "a helper that fails fails its test; and not every test file needs all helpers"
)]

mod common;

use std::fs;
use std::future::poll_fn;
use std::io::{ErrorKind, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use httpdown::{
    Addr, Builder, ClientAuth, ConnState, Dispatch, Error, Exchange, Identity, Listener, Phase,
    Report, Server, TicketKey, Tls, TlsVersion,
};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rcgen::{ExtendedKeyUsagePurpose, date_time_ymd};
use rustls::version::{TLS12, TLS13};
use rustls::{AlertDescription, ClientConfig, HandshakeKind, SupportedProtocolVersion};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use common::tls::{self, Authority, Pair, alert, config, config_with};
use common::{
    Bump, Client, Gate, Journal, LONG, OpenAtEnd, Recorder, addr, assert_balanced, builder,
    each_way, into_journal, reply, serve_upgrades, set_option, states_of, stop, tcp_listener,
    unconnected, wait, wait_for_phase, wait_for_report,
};

/// More than the kernel takes for a client that does not read.
const LARGE: usize = 12 << 20;

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: test\r\n\r\n";

/// A server that speaks TLS, and what it says to its statistics. `/gate…` waits at a gate; `…/large` has a large answer;
/// `/body` reads the body and tells what has become of it; `/tls` says how the request has come.
struct Fixture {
    server: Server,
    gate: Gate,
    /// Entered by a handler that is about to wait at the gate.
    at_gate: Journal<()>,
    bodies: Journal<String>,
    bumps: Journal<Bump>,
    _open_at_end: OpenAtEnd,
}

impl Fixture {
    fn new() -> Self {
        Self::with(builder(), tls::settings())
    }

    fn with(builder: Builder, tls: Tls) -> Self {
        Self::on(builder.tls(tls), tcp_listener())
    }

    fn on(builder: Builder, listener: Listener) -> Self {
        let (gate, at_gate, bodies) = (Gate::new(), Journal::new(), Journal::new());
        let (stats, bumps) = Recorder::new();
        let handler = {
            let (gate, at_gate, bodies) = (gate.clone(), at_gate.clone(), bodies.clone());
            move |mut exchange: Exchange| {
                let path = exchange.uri().path().to_owned();
                if path.starts_with("/gate") {
                    at_gate.write(());
                    gate.pass();
                }
                if path == "/body" {
                    let read = exchange.read_to_end(LARGE).map(|body| body.len());
                    bodies.write(format!("{read:?}"));
                }
                let _ = match path.as_str() {
                    "/tls" => {
                        let text = described(&exchange);
                        reply(exchange, text)
                    }
                    path if path.ends_with("/large") => reply(exchange, vec![b'x'; LARGE]),
                    _ => reply(exchange, "hello"),
                };
            }
        };
        let server = builder
            .stats(stats)
            .handle(listener, Dispatch::default(), handler)
            .unwrap();
        Self {
            server,
            _open_at_end: gate.open_at_end(),
            gate,
            at_gate,
            bodies,
            bumps,
        }
    }

    fn addr(&self) -> &'static Addr {
        addr(&self.server)
    }

    fn connect(&self) -> Client {
        Client::secure(self.addr(), &config())
    }

    /// A client that has said nothing yet.
    fn silent(&self) -> Client {
        Client::silent(self.addr(), &config(), "localhost")
    }

    /// A client that has got an answer, and could send another request.
    fn idle_client(&self) -> Client {
        let mut client = self.connect();
        assert_answered(&mut client);
        client
    }

    /// A client whose request for that path waits at the gate.
    fn client_at_gate(&self, path: &str) -> Client {
        let count = self.at_gate.all().len();
        let mut client = self.connect();
        client.ask(path);
        self.at_gate.wait_for_count(count + 1);
        client
    }

    /// The server still serves others.
    fn assert_serves(&self) {
        self.idle_client();
    }

    fn begin_stop(&self) {
        self.server.stop_begin();
        wait_for_phase(&self.server, Phase::Draining);
    }

    /// The server has something to wait for.
    fn assert_goes_on(&self) {
        let waited = self
            .server
            .wait_blocking(Some(Instant::now() + Duration::from_millis(200)));
        assert!(matches!(waited, Err(Error::WouldBlock)), "{waited:?}");
    }

    fn report(&self, enough: impl Fn(&Report) -> bool) -> Report {
        wait_for_report(&self.server, enough)
    }

    /// Stops the server. Nothing was lost.
    #[track_caller]
    fn end(&self) -> Report {
        let report = stop(&self.server).unwrap();
        assert_balanced(&report);
        report
    }

    fn sums(&self, key: &str) -> usize {
        let bumps = self.bumps.all().into_iter();
        bumps.filter(|(is, _)| *is == format!("sum {key}")).count()
    }

    /// Why handshakes have failed, in the order of time.
    fn errors(&self) -> Vec<String> {
        let bumps = self.bumps.all().into_iter();
        let reason = |(key, _): Bump| Some(key.strip_prefix("sum tls.error.")?.to_owned());
        bumps.filter_map(reason).collect()
    }
}

fn described(exchange: &Exchange) -> String {
    match exchange.conn().tls() {
        Some(tls) => format!(
            "{:?} {} {:?} {}",
            tls.version(),
            tls.cipher_suite(),
            tls.server_name(),
            tls.is_resumed()
        ),
        None => "plain".to_owned(),
    }
}

fn assert_answered(client: &mut Client) {
    client.ask("/");
    let answer = client.answer();
    assert_eq!((answer.status, answer.text()), (200, "hello"));
}

/// Asserts that the server ends the connection as it should: `close_notify`, then a FIN.
#[track_caller]
fn assert_told(mut client: Client) {
    let rest = client.until_end().unwrap();
    assert!(rest.is_empty(), "{:?}", String::from_utf8_lossy(&rest));
    assert_eq!(client.until_end_raw().unwrap(), b"", "behind the end");
}

/// Asserts that the server has read what the only client has sent: a reset can destroy what was sent to the client.
#[track_caller]
fn assert_not_reset(fixture: &Fixture, mut client: Client) {
    assert_eq!(client.until_end_raw().unwrap(), b"");
    client.fin();
    fixture.report(|report| report.conns_open == 0);
    let error = client.socket().take_error().unwrap();
    assert!(error.is_none(), "{error:?}");
}

/// What the client is told when it is not let in. By TLS 1.3 it may have taken the handshake for done.
#[track_caller]
fn refusal(to: &'static Addr, config: &Arc<ClientConfig>) -> Option<AlertDescription> {
    let error = match Client::try_secure(to, config, "localhost") {
        Err(error) => error,
        Ok(mut client) => {
            let _ = client.try_send(REQUEST);
            client.try_answer().unwrap_err()
        }
    };
    let alert = alert(&error);
    assert!(alert.is_some(), "{error:?}");
    alert
}

fn config_of(versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
    let mut config = config_with(Authority::of_servers(), None, versions);
    config.resumption = rustls::client::Resumption::disabled();
    config
}

/// The same handshake messages, with one byte in each record.
fn in_tiny_records(records: &[u8]) -> Vec<u8> {
    let (mut records, mut tiny) = (records, Vec::new());
    while let [kind, major, minor, high, low, rest @ ..] = records {
        let (content, others) = rest.split_at(u16::from_be_bytes([*high, *low]).into());
        for byte in content {
            tiny.extend([*kind, *major, *minor, 0, 1, *byte]);
        }
        records = others;
    }
    tiny
}

/// A client with a first message of nearly the size that is allowed (64 KB).
fn config_with_large_hello() -> Arc<ClientConfig> {
    let mut config = config_of(rustls::DEFAULT_VERSIONS);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
        .alpn_protocols
        .extend((0..230).map(|_| vec![b'x'; 250]));
    Arc::new(config)
}

// Handshakes.

#[test]
fn a_request_by_tls_is_answered() {
    let fixture = Fixture::new();
    let mut client = fixture.connect();
    for _ in 0..3 {
        client.ask("/tls");
        let text = client.answer().text().to_owned();
        assert_eq!(
            text,
            "V1_3 TLS13_AES_256_GCM_SHA384 Some(\"localhost\") false"
        );
    }
    fixture.server.stop_begin();
    assert_told(client);
    let report = fixture.end();
    assert_eq!(report.served, 3);
    assert_eq!(fixture.sums("tls.handshake"), 1);
}

#[test]
fn tls_1_2_is_spoken_too() {
    let fixture = Fixture::new();
    let mut client = Client::secure(fixture.addr(), &Arc::new(config_of(&[&TLS12])));
    client.ask("/tls");
    let answer = client.answer();
    assert!(answer.text().starts_with("V1_2 TLS_ECDHE"), "{answer:?}");
    fixture.server.stop_begin();
    assert_told(client);
    assert_eq!(fixture.end().served, 1);
}

#[test]
fn a_first_message_may_come_in_pieces_of_any_size() {
    let fixture = Fixture::new();
    for is_tiny in [false, true] {
        let mut client = fixture.silent();
        client.socket().set_tcp_nodelay(true).unwrap();
        let mut hello = client.seal("");
        if is_tiny {
            hello = in_tiny_records(&hello);
        }
        for byte in hello {
            client.send_raw([byte]);
        }
        client.shake_hands().unwrap();
        assert_answered(&mut client);
        // All at once.
        let mut client = fixture.silent();
        let hello = in_tiny_records(&client.seal(""));
        client.send_raw(hello);
        client.shake_hands().unwrap();
        assert_answered(&mut client);
    }
    let report = fixture.end();
    assert_eq!((report.served, report.conns_tls_failed), (4, 0));
}

#[test]
fn a_first_message_may_have_the_largest_size() {
    let fixture = Fixture::new();
    let mut client = Client::silent(fixture.addr(), &config_with_large_hello(), "localhost");
    let hello = client.seal("");
    assert!(hello.len() > 55_000);
    client.send_raw(hello);
    client.shake_hands().unwrap();
    assert_answered(&mut client);
    assert_eq!(fixture.end().served, 1);
}

/// rustls keeps at most 64 KB of records, and has no alert for what is longer.
#[test]
fn a_first_message_that_is_too_large_is_refused() {
    let fixture = Fixture::with(builder().linger_timeout(LONG), tls::settings());
    let mut client = fixture.silent();
    // A ClientHello of 16 MB.
    client.send_raw([22, 3, 1, 0, 5, 1, 0xff, 0xff, 0xff, 3]);
    let error = client.shake_hands().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    assert_not_reset(&fixture, client);
    fixture.assert_serves();
    let report = fixture.end();
    assert_eq!((report.served, report.conns_tls_failed), (1, 1));
    assert_eq!(fixture.errors(), ["protocol"]);
}

/// The client has not left.
#[test]
fn a_first_message_in_too_many_records_is_refused() {
    let fixture = Fixture::with(builder().linger_timeout(LONG), tls::settings());
    let mut client = Client::silent(fixture.addr(), &config_with_large_hello(), "localhost");
    let hello = in_tiny_records(&client.seal(""));
    client.send_raw(hello);
    let error = client.shake_hands().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    assert_not_reset(&fixture, client);
    fixture.assert_serves();
    let report = fixture.end();
    assert_eq!((report.served, report.conns_tls_failed), (1, 1));
    assert_eq!(fixture.errors(), ["protocol"]);
}

#[test]
fn clients_that_never_finish_their_first_message_keep_nobody_out() {
    const CLIENTS: usize = 300;
    let tls = tls::settings().handshakes(NonZeroUsize::MIN);
    let fixture = Fixture::with(builder(), tls.handshake_timeout(LONG));
    let mut halves: Vec<_> = (0..CLIENTS)
        .map(|index| {
            let mut client = fixture.silent();
            let hello = client.seal("");
            // One in three has sent nothing, and one all but a byte.
            client.send_raw(&hello[..[0, hello.len() / 2, hello.len() - 1][index % 3]]);
            client
        })
        .collect();
    fixture.report(|report| report.conns_handshaking == CLIENTS as u64);
    fixture.assert_serves();
    let report = fixture.report(|report| report.conns_open == CLIENTS as u64);
    assert_eq!(report.conns_handshaking, CLIENTS as u64);
    // They leave.
    for client in &mut halves {
        client.fin();
    }
    fixture.report(|report| report.conns_open == 0);
    fixture.assert_serves();
    let report = fixture.end();
    let failed = CLIENTS as u64 * 2 / 3;
    assert_eq!(
        (report.served, report.conns_tls_failed, report.conns_closed),
        (2, failed, CLIENTS as u64 / 3 + 2),
        "{report:?}"
    );
    assert!(fixture.errors().iter().all(|error| error == "left"));
}

#[test]
fn a_handshake_must_end_in_time() {
    let tls = tls::settings().handshake_timeout(Duration::from_secs(1));
    let fixture = Fixture::with(builder(), tls);
    let mut witness = loop {
        // On a slow machine, the time may be too short.
        let client = Client::try_secure(fixture.addr(), &config(), "localhost");
        if let Ok(mut client) = client
            && client.try_send(REQUEST).is_ok()
            && client.try_answer().is_ok()
        {
            break client;
        }
    };
    let late = fixture.server.report().conns_tls_timed_out;
    let mut silent = fixture.silent();
    let mut half = fixture.silent();
    let hello = half.seal("");
    half.send_raw(&hello[..hello.len() / 2]);
    let mut between = fixture.silent();
    let hello = between.seal("");
    between.send_raw(hello);
    // The server's answer is here, and the client says nothing more.
    between.socket().peek(&mut [MaybeUninit::uninit()]).unwrap();
    assert_eq!(silent.until_end_raw().unwrap(), b"");
    assert_eq!(half.until_end_raw().unwrap(), b"");
    let _ = between.until_end_raw().unwrap();
    fixture.report(|report| report.conns_tls_timed_out == late + 3);
    assert_answered(&mut witness);
    let report = fixture.end();
    assert_eq!(report.conns_tls_timed_out, late + 3);
    assert_eq!(fixture.sums("tls.error.timeout") as u64, late + 3);
}

/// A client whose turn it is, but that does not go on.
fn between_hello_and_finished(fixture: &Fixture) -> Client {
    let mut client = fixture.silent();
    let hello = client.seal("");
    client.send_raw(hello);
    client.socket().peek(&mut [MaybeUninit::uninit()]).unwrap();
    client
}

#[test]
fn handshakes_beyond_their_number_wait_for_their_turn() {
    let tls = tls::settings().handshakes(NonZeroUsize::MIN);
    let fixture = Fixture::with(builder(), tls.handshake_timeout(LONG));
    let mut first = between_hello_and_finished(&fixture);
    // One of those who wait leaves, another is reset; they hold up nobody.
    let waits = || {
        let mut client = fixture.silent();
        let hello = client.seal("");
        client.send_raw(hello);
        client
    };
    let (gone, reset, mut second) = (waits(), waits(), waits());
    drop(gone);
    reset.reset();
    fixture.report(|report| report.connections == 4);
    second.set_read_timeout(Duration::from_millis(200));
    let silence = second.shake_hands().unwrap_err();
    assert_eq!(silence.kind(), ErrorKind::WouldBlock);
    second.set_read_timeout(LONG);
    first.shake_hands().unwrap();
    second.shake_hands().unwrap();
    assert_answered(&mut first);
    assert_answered(&mut second);
    let report = fixture.end();
    assert_eq!((report.served, report.conns_tls_failed), (2, 2));
    assert_eq!(fixture.errors(), ["left", "left"]);
}

#[test]
fn a_handshake_that_times_out_gives_its_turn_to_another() {
    let tls = tls::settings().handshakes(NonZeroUsize::MIN);
    let fixture = Fixture::with(builder(), tls.handshake_timeout(Duration::from_secs(1)));
    let _first = between_hello_and_finished(&fixture);
    // The time of those who wait runs, too: so they come again.
    let deadline = Instant::now() + LONG;
    while Client::try_secure(fixture.addr(), &config(), "localhost").is_err() {
        assert!(Instant::now() < deadline, "no turn");
    }
    let report = fixture.report(|report| report.conns_tls_timed_out >= 1);
    assert_eq!(report.conns_tls_failed, 0);
    fixture.end();
}

#[test]
fn http_without_tls_is_answered_in_plain_text() {
    let fixture = Fixture::with(builder().linger_timeout(LONG), tls::settings());
    let body = "x".repeat(300_000);
    for request in [
        REQUEST.to_owned(),
        format!("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 300000\r\n\r\n{body}"),
    ] {
        let mut client = Client::plain(fixture.addr());
        client.send(request);
        let answer = client.answer();
        assert_eq!(
            (answer.status, answer.text()),
            (400, "this port speaks HTTPS\n")
        );
        assert!(answer.closes());
        client.assert_closed();
    }
    fixture.assert_serves();
    let report = fixture.end();
    assert_eq!(
        (report.requests, report.conns_tls_failed),
        (1, 2),
        "{report:?}"
    );
    assert_eq!(fixture.errors(), ["plain_http", "plain_http"]);
}

#[test]
fn what_is_not_tls_is_closed_without_a_word() {
    let fixture = Fixture::with(builder().linger_timeout(LONG), tls::settings());
    // An SSLv2 ClientHello, zeros, the preface of a proxy protocol, an alert, application data.
    let garbage: [&[u8]; 5] = [
        &[0x80, 0x2e, 1, 0, 2, 0],
        &vec![0; 100_000],
        b"\r\n\r\n\0\r\nQUIT\n",
        &[21, 3, 3, 0, 2, 2, 40],
        &[23, 3, 3, 0, 2, 2, 40],
    ];
    for bytes in garbage {
        let mut client = Client::plain(fixture.addr());
        client.send(bytes);
        client.assert_closed();
    }
    // It begins like TLS.
    let mut client = fixture.silent();
    client.send_raw(vec![22; 100_000]);
    let error = client.shake_hands().unwrap_err();
    assert!(alert(&error).is_some(), "{error:?}");
    fixture.assert_serves();
    drop(client);
    let report = fixture.end();
    assert_eq!((report.requests, report.conns_tls_failed), (1, 6));
    let mut errors = fixture.errors();
    errors.sort_unstable();
    errors.dedup();
    assert_eq!(errors, ["not_tls", "protocol"]);
}

#[test]
fn a_client_that_leaves_before_its_first_byte_is_nothing_special() {
    let fixture = Fixture::new();
    let mut client = fixture.silent();
    client.fin();
    assert_eq!(client.until_end_raw().unwrap(), b"");
    fixture.assert_serves();
    let report = fixture.end();
    assert_eq!((report.conns_closed, report.conns_tls_failed), (2, 0));
    assert!(fixture.errors().is_empty());
}

/// Some load balancers look like this whether the port is open.
#[test]
fn a_client_that_resets_before_its_first_byte_is_nothing_special() {
    let fixture = Fixture::new();
    let client = fixture.silent();
    fixture.report(|report| report.conns_handshaking == 1);
    client.reset();
    fixture.report(|report| report.conns_open == 0);
    fixture.assert_serves();
    let report = fixture.end();
    assert_eq!((report.conns_closed, report.conns_tls_failed), (2, 0));
    assert!(fixture.errors().is_empty());
}

#[test]
fn a_client_that_leaves_in_the_handshake_is_counted() {
    let fixture = Fixture::new();
    let half = || {
        let mut client = fixture.silent();
        let hello = client.seal("");
        client.send_raw(&hello[..100]);
        client
    };
    let mut client = half();
    client.fin();
    assert_eq!(client.until_end_raw().unwrap(), b"");
    let client = half();
    fixture.report(|report| report.conns_handshaking == 1);
    client.reset();
    fixture.report(|report| report.conns_open == 0);
    let mut client = between_hello_and_finished(&fixture);
    client.fin();
    let _ = client.until_end_raw().unwrap();
    between_hello_and_finished(&fixture).reset();
    fixture.report(|report| report.conns_tls_failed == 4);
    fixture.assert_serves();
    let report = fixture.end();
    assert_eq!((report.conns_tls_failed, report.conns_gone), (4, 0));
    assert_eq!(fixture.errors(), ["left"; 4]);
}

#[test]
fn a_client_without_a_shared_version_or_protocol_is_told_so() {
    let fixture = Fixture::with(builder(), tls::settings().min_version(TlsVersion::V1_3));
    let old = Arc::new(config_of(&[&TLS12]));
    assert_eq!(
        refusal(fixture.addr(), &old),
        Some(AlertDescription::ProtocolVersion)
    );
    for versions in [&[&TLS13][..], &[&TLS12, &TLS13]] {
        let mut h2 = config_of(versions);
        h2.alpn_protocols = vec![b"h2".to_vec()];
        assert_eq!(
            refusal(fixture.addr(), &Arc::new(h2)),
            Some(AlertDescription::NoApplicationProtocol)
        );
    }
    fixture.assert_serves();
    let report = fixture.end();
    assert_eq!((report.requests, report.conns_tls_failed), (1, 3));
    assert_eq!(fixture.errors(), ["version", "parameters", "parameters"]);
}

#[test]
fn a_client_that_does_not_trust_the_server_says_so() {
    let fixture = Fixture::new();
    for version in [&TLS12, &TLS13] {
        let other = config_with(&Authority::named("Others"), None, &[version]);
        let refused = Client::try_secure(fixture.addr(), &Arc::new(other), "localhost");
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidData);
    }
    fixture.report(|report| report.conns_tls_failed == 2);
    fixture.assert_serves();
    fixture.end();
    assert_eq!(fixture.errors(), ["alert", "alert"]);
}

#[test]
fn only_clients_with_a_good_certificate_get_in() {
    let (ours, others) = (Authority::named("Clients"), Authority::named("Others"));
    let good = ours.issue(&["client"]);
    let foreign = others.issue(&["client"]);
    let expired = ours.issue_with(&["client"], |params| {
        params.not_after = date_time_ymd(2020, 1, 1);
    });
    let for_servers = ours.issue_with(&["client"], |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    let pem = ours.pem();
    for version in [&TLS12, &TLS13] {
        let with = |pair| Arc::new(config_with(Authority::of_servers(), pair, &[version]));
        for is_required in [false, true] {
            let clients = if is_required {
                ClientAuth::required(pem.as_bytes())
            } else {
                ClientAuth::optional(pem.as_bytes())
            };
            let tls = tls::settings().clients(clients.unwrap());
            let fixture = Fixture::with(builder().linger_timeout(LONG), tls);
            let mut client = Client::secure(fixture.addr(), &with(Some(&good)));
            assert_answered(&mut client);
            drop(client);
            let refused = |pair| refusal(fixture.addr(), &with(pair)).unwrap();
            assert_eq!(refused(Some(&foreign)), AlertDescription::UnknownCA);
            assert_eq!(
                refused(Some(&expired)),
                AlertDescription::CertificateExpired
            );
            refused(Some(&for_servers));
            let mut failed = 3;
            if is_required {
                refused(None);
                failed += 1;
            } else {
                let mut client = Client::secure(fixture.addr(), &with(None));
                assert_answered(&mut client);
            }
            let report = fixture.end();
            assert_eq!(report.conns_tls_failed, failed as u64);
            assert_eq!(report.requests, 5 - failed as u64);
            assert_eq!(fixture.errors(), vec!["client_certificate"; failed]);
        }
    }
}

/// By TLS 1.3, such a client has taken the handshake for done.
#[test]
fn a_client_that_is_refused_learns_it_though_it_is_sending() {
    let ours = Authority::named("Clients");
    let clients = ClientAuth::required(ours.pem().as_bytes()).unwrap();
    let tls = tls::settings().clients(clients);
    let fixture = Fixture::with(builder().linger_timeout(LONG), tls);
    let config = config_of(rustls::DEFAULT_VERSIONS);
    let mut client = Client::secure(fixture.addr(), &Arc::new(config));
    client.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 1000000\r\n\r\n");
    client.send("x".repeat(1_000_000));
    let error = client.try_answer().unwrap_err();
    assert_eq!(alert(&error), Some(AlertDescription::CertificateRequired));
    assert_not_reset(&fixture, client);
    let report = fixture.end();
    assert_eq!((report.requests, report.conns_tls_failed), (0, 1));
}

/// Rustls sends what was written before together with the end of the handshake.
#[test]
fn a_request_right_behind_the_handshake_is_answered() {
    let fixture = Fixture::new();
    for version in [&TLS12, &TLS13] {
        let config = Arc::new(config_of(&[version]));
        let mut client = Client::silent(fixture.addr(), &config, "localhost");
        client.tls().writer().write_all(REQUEST.as_bytes()).unwrap();
        client.shake_hands().unwrap();
        client.flush_tls().unwrap();
        assert_eq!(client.answer().text(), "hello");
    }
    assert_eq!(fixture.end().served, 2);
}

/// A listener whose connections' kernels take hardly anything for a client that does not read.
fn tight_listener() -> Listener {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    SockRef::from(&listener).set_send_buffer_size(4096).unwrap();
    Listener::try_from(listener).unwrap()
}

/// A connection whose kernel takes little.
fn small_client(to: &'static Addr) -> Client {
    let (addr, socket) = unconnected(to).unwrap();
    socket.set_recv_buffer_size(2048).unwrap();
    socket.connect(&addr).unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    socket.set_write_timeout(Some(LONG)).unwrap();
    Client::from(socket).with_tls(&config(), "localhost")
}

#[test]
fn a_handshake_of_which_the_client_reads_nothing_ends_in_time() {
    // Not the certificate of 50 KB is a danger, but what is the same for a long chain, or a long list of CAs.
    let names: Vec<_> = (0..1_500)
        .map(|index| format!("host-{index}.example.test"))
        .collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let identity = Authority::of_servers().issue(&names).identity();
    let tls = Tls::new(identity).handshake_timeout(Duration::from_millis(500));
    let fixture = Fixture::on(builder().tls(tls), tight_listener());
    let mut client = small_client(fixture.addr());
    let hello = client.seal("");
    client.send_raw(hello);
    client.socket().peek(&mut [MaybeUninit::uninit()]).unwrap();
    fixture.report(|report| report.conns_tls_timed_out == 1);
    drop(client);
    fixture.end();
}

// Handshakes in a stop.

#[test]
fn a_handshake_that_has_begun_goes_on_in_a_stop() {
    let tls = tls::settings().handshakes(NonZeroUsize::MIN);
    let fixture = Fixture::with(builder().idle_grace(LONG), tls.handshake_timeout(LONG));
    let mut first = between_hello_and_finished(&fixture);
    let mut waits = fixture.silent();
    let hello = waits.seal("");
    waits.send_raw(hello);
    let mut half = fixture.silent();
    let hello = half.seal("");
    half.send_raw(&hello[..100]);
    let mut silent = fixture.silent();
    fixture.report(|report| report.conns_handshaking == 4);
    fixture.begin_stop();
    half.send_raw(&hello[100..]);
    for client in [&mut first, &mut waits, &mut half, &mut silent] {
        client.shake_hands().unwrap();
        client.ask("/");
        let answer = client.answer();
        assert_eq!(answer.text(), "hello");
        assert!(answer.closes());
    }
    for client in [first, waits, half, silent] {
        assert_told(client);
    }
    let report = wait(&fixture.server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.served, report.conns_closed), (4, 4));
}

#[test]
fn a_silent_connection_has_the_grace_of_a_new_one_in_a_stop() {
    let fixture = Fixture::with(builder(), tls::settings().handshake_timeout(LONG));
    let client = Client::plain(fixture.addr());
    fixture.report(|report| report.conns_handshaking == 1);
    let report = fixture.end();
    client.assert_closed();
    assert_eq!((report.closed_idle, report.conns_tls_failed), (1, 0));
    assert!(fixture.errors().is_empty());
}

/// As a request is that crosses the close of a new connection without TLS: the client's request is lost all the same.
#[test]
fn a_first_message_that_crosses_the_close_is_a_race() {
    let fixture = Fixture::with(builder().linger_timeout(LONG), tls::settings());
    let mut client = fixture.silent();
    fixture.report(|report| report.conns_handshaking == 1);
    fixture.begin_stop();
    // The server's side is closed now.
    assert_eq!(client.until_end_raw().unwrap(), b"");
    let hello = client.seal("");
    client.send_raw(hello);
    drop(client);
    let report = wait(&fixture.server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.closed_idle, report.raced), (0, 1));
}

#[test]
fn a_handshake_that_does_not_go_on_holds_a_stop_for_its_time_only() {
    let tls = tls::settings().handshake_timeout(Duration::from_secs(1));
    let fixture = Fixture::with(builder(), tls.handshakes(NonZeroUsize::MIN));
    let mut half = fixture.silent();
    let hello = half.seal("");
    half.send_raw(&hello[..100]);
    let _between = between_hello_and_finished(&fixture);
    let mut waits = fixture.silent();
    let hello = waits.seal("");
    waits.send_raw(hello);
    fixture.report(|report| report.connections == 3);
    let report = fixture.end();
    assert_eq!((report.conns_tls_timed_out, report.closed_idle), (3, 0));
}

#[test]
fn a_kill_ends_handshakes() {
    let tls = tls::settings().handshake_timeout(LONG);
    let fixture = Fixture::with(builder(), tls.handshakes(NonZeroUsize::MIN));
    let silent = fixture.silent();
    let mut half = fixture.silent();
    let hello = half.seal("");
    half.send_raw(&hello[..100]);
    let between = between_hello_and_finished(&fixture);
    let mut waits = fixture.silent();
    let hello = waits.seal("");
    waits.send_raw(hello);
    fixture.report(|report| report.conns_handshaking == 4);
    fixture.server.kill_begin();
    let _ = wait(&fixture.server);
    let report = fixture.server.report();
    assert_balanced(&report);
    assert_eq!(
        (report.connections, report.conns_tls_failed),
        (4, 0),
        "{report:?}"
    );
    silent.assert_ended();
    half.assert_ended();
    drop((between, waits));
}

// Ends.

/// How a client ends what it sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Without TLS.
    PlainFin,
    Notify,
    Fin,
    Both,
}

/// Sends this, then the end. Returns what is answered, and what the report says: served, gone, closed, gone connections.
fn ended(bytes: &str, end: End) -> (Option<u16>, [u64; 4], Vec<String>) {
    let fixture = if end == End::PlainFin {
        let builder = Server::builder().idle_grace(Duration::from_millis(5));
        let builder = builder.body_buffer(NonZeroUsize::MIN);
        Fixture::on(
            builder.linger_timeout(Duration::from_millis(50)),
            tcp_listener(),
        )
    } else {
        Fixture::new()
    };
    let mut client = match end {
        End::PlainFin => Client::plain(fixture.addr()),
        _ => fixture.connect(),
    };
    client.send(bytes);
    match end {
        End::PlainFin | End::Fin => client.fin(),
        End::Notify => client.say_end(),
        End::Both => client.half_close(),
    }
    let answer = client.try_answer().ok();
    let answer = answer.map(|answer| answer.status);
    if end == End::PlainFin {
        client.assert_closed();
    } else {
        assert_told(client);
    }
    fixture.report(|report| report.conns_open == 0);
    let report = fixture.end();
    let counts = [
        report.served,
        report.gone,
        report.conns_closed,
        report.conns_gone,
    ];
    (answer, counts, fixture.bodies.all())
}

#[test]
fn an_end_means_the_same_however_it_is_said() {
    for bytes in [
        "",
        REQUEST,
        "GET / HTTP/1.1\r\nHo",
        "POST /body HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\nbody",
        "POST /body HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nhalf",
        "POST /body HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nhalf",
    ] {
        let plain = ended(bytes, End::PlainFin);
        for end in [End::Notify, End::Fin, End::Both] {
            assert_eq!(ended(bytes, end), plain, "{bytes:?} {end:?}");
        }
    }
}

#[test]
fn a_body_that_is_cut_by_an_end_is_an_error_for_its_handler() {
    for (head, body) in [
        ("Content-Length: 10", "half"),
        ("Transfer-Encoding: chunked", "4\r\nhalf\r\n"),
    ] {
        for end in [End::Notify, End::Fin, End::Both] {
            let request = format!("POST /body HTTP/1.1\r\nHost: test\r\n{head}\r\n\r\n{body}");
            let (.., bodies) = ended(&request, end);
            assert!(bodies[0].starts_with("Err"), "{end:?} {bodies:?}");
        }
    }
}

#[test]
fn a_client_that_has_said_its_end_still_gets_its_answer() {
    let fixture = Fixture::new();
    for end in [
        Client::half_close,
        Client::say_end,
        |client: &mut Client| client.fin(),
    ] {
        let mut client = fixture.client_at_gate("/gate/large");
        end(&mut client);
        fixture.gate.open();
        assert_eq!(client.answer().body.len(), LARGE);
        assert_told(client);
    }
    let report = fixture.end();
    assert_eq!((report.served, report.conns_closed), (3, 3), "{report:?}");
}

fn upgraded(mut client: Client) -> Client {
    client.shake_hands().unwrap();
    client.send("GET / HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n");
    assert_eq!(client.try_head().unwrap().status, 101);
    client
}

#[test]
fn after_an_upgrade_an_end_that_was_not_said_is_an_error() {
    let ends = Journal::new();
    let writes = ends.clone();
    let server = serve_upgrades(
        builder().tls(tls::settings()),
        tcp_listener(),
        move |mut io| {
            let writes = writes.clone();
            async move {
                let mut bytes = Vec::new();
                let end = io.read_to_end(&mut bytes).await;
                writes.write((bytes.len(), end.map_err(|error| error.kind()).err()));
            }
        },
    );
    for (end, seen) in [
        (End::Both, None),
        (End::Notify, None),
        (End::Fin, Some(ErrorKind::UnexpectedEof)),
    ] {
        let silent = Client::silent(addr(&server), &config(), "localhost");
        let mut client = upgraded(silent);
        client.send(vec![7; 100_000]);
        match end {
            End::Both => client.half_close(),
            End::Notify => client.say_end(),
            _ => client.fin(),
        }
        client.assert_ended();
        ends.wait_for(|entry| *entry == (100_000, seen));
    }
    assert_eq!(ends.all().len(), 3);
    assert_balanced(&stop(&server).unwrap());
}

/// With and without TLS: a server that writes much, and says how, and a client that reads slowly.
fn tight_upgrades<F>(
    run: impl Fn(TokioIo<Upgraded>) -> F + Clone + Send + Sync + 'static,
) -> [(Server, Client); 2]
where
    F: Future<Output = ()> + Send + 'static,
{
    let plain = Server::builder().idle_grace(Duration::from_millis(5));
    let plain = serve_upgrades(plain, tight_listener(), run.clone());
    let secure = serve_upgrades(builder().tls(tls::settings()), tight_listener(), run);
    let clients = [Client::plain(addr(&plain)), small_client(addr(&secure))];
    let mut servers = [plain, secure].into_iter();
    clients.map(|client| (servers.next().unwrap(), upgraded(client)))
}

/// As on a socket: nobody has to flush a TCP connection before waiting for what the other side says to it.
#[test]
fn after_an_upgrade_what_was_written_leaves_though_nobody_flushes() {
    let done = Journal::new();
    let writes = done.clone();
    let pairs = tight_upgrades(move |mut io| {
        let writes = writes.clone();
        async move {
            io.write_all(&vec![7; 1 << 20]).await.unwrap();
            let mut word = [0; 2];
            let read = io.read_exact(&mut word).await;
            writes.write(read.is_ok());
        }
    });
    for (index, (server, mut client)) in pairs.into_iter().enumerate() {
        client.set_read_timeout(Duration::from_secs(5));
        client.exactly(1 << 20).unwrap();
        client.send("ok");
        done.wait_for_count(index + 1);
        drop(client);
        assert_balanced(&stop(&server).unwrap());
    }
    assert_eq!(done.all(), [true, true]);
}

/// Who reads flushes on the way, and must not take the place of who waits to write.
#[test]
fn after_an_upgrade_one_task_can_read_while_another_writes() {
    let (blocked, read) = (Journal::new(), Journal::new());
    let (blocks, reads) = (blocked.clone(), read.clone());
    let secure = builder().tls(tls::settings());
    let server = serve_upgrades(secure, tight_listener(), move |io| {
        let (blocks, reads) = (blocks.clone(), reads.clone());
        async move {
            let (mut reader, mut writer) = tokio::io::split(io);
            let writing = tokio::spawn(async move {
                let bytes = vec![7; 1 << 20];
                let mut all = Box::pin(writer.write_all(&bytes));
                poll_fn(|cx| {
                    let poll = all.as_mut().poll(cx);
                    if poll.is_pending() {
                        blocks.write(());
                    }
                    poll
                })
                .await
                .unwrap();
                drop(all);
                writer.flush().await.unwrap();
            });
            reader.read_exact(&mut [0]).await.unwrap();
            reads.write(());
            writing.await.unwrap();
        }
    });
    let mut client = upgraded(small_client(addr(&server)));
    client.set_read_timeout(Duration::from_secs(5));
    blocked.wait_for_count(1);
    client.send("x");
    read.wait_for_count(1);
    client.exactly(1 << 20).unwrap();
    drop(client);
    assert_balanced(&stop(&server).unwrap());
}

// What comes between requests.

#[test]
fn new_keys_leave_a_parked_connection_parked_and_usable() {
    let fixture = Fixture::with(builder().idle_grace(LONG), tls::settings());
    let mut clients = [fixture.connect(), fixture.idle_client()];
    let renew = |client: &mut Client| {
        client.tls().refresh_traffic_keys().unwrap();
        client.flush_tls().unwrap();
    };
    let both_rest = |report: &Report| (report.conns_new, report.conns_idle) == (1, 1);
    fixture.report(both_rest);
    for client in &mut clients {
        (0..3).for_each(|_| renew(client));
        // And in pieces.
        client.tls().refresh_traffic_keys().unwrap();
        for byte in client.seal("") {
            client.send_raw([byte]);
        }
    }
    assert!(both_rest(&fixture.server.report()));
    clients.iter_mut().for_each(assert_answered);
    fixture.begin_stop();
    for mut client in clients {
        renew(&mut client);
        client.ask("/");
        let answer = client.answer();
        assert_eq!(answer.text(), "hello");
        assert!(answer.closes());
        assert_told(client);
    }
    let report = wait(&fixture.server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.served, report.conns_closed), (5, 2));
}

#[test]
fn new_keys_do_not_lengthen_the_grace() {
    let fixture = Fixture::with(
        builder().idle_grace(Duration::from_millis(300)),
        tls::settings(),
    );
    let mut client = fixture.idle_client();
    fixture.begin_stop();
    client.tls().refresh_traffic_keys().unwrap();
    client.flush_tls().unwrap();
    assert_told(client);
    let report = wait(&fixture.server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.closed_idle, report.raced), (1, 0));
}

#[test]
fn a_flood_of_new_keys_ends_the_connection() {
    let fixture = Fixture::with(builder().linger_timeout(LONG), tls::settings());
    let mut witness = fixture.idle_client();
    let mut client = fixture.idle_client();
    let mut flood = Vec::new();
    for _ in 0..40 {
        client.tls().refresh_traffic_keys().unwrap();
        flood.extend(client.seal(""));
    }
    client.send_raw(flood);
    // rustls has no alert for it.
    let error = client.try_answer().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{error:?}");
    drop(client);
    fixture.report(|report| report.conns_open == 1);
    assert_answered(&mut witness);
    drop(witness);
    let report = fixture.end();
    assert_eq!((report.served, report.conns_closed), (3, 2), "{report:?}");
}

#[test]
fn new_keys_are_no_flood_between_requests() {
    let fixture = Fixture::new();
    let mut client = fixture.idle_client();
    for _ in 0..100 {
        client.tls().refresh_traffic_keys().unwrap();
        assert_answered(&mut client);
    }
    drop(client);
    assert_eq!(fixture.end().served, 101);
}

#[test]
fn an_alert_ends_a_parked_connection() {
    let fixture = Fixture::new();
    let mut client = fixture.idle_client();
    // The client takes this for a broken record, and says so.
    let garbage = [[23, 3, 3, 0, 50].as_slice(), &[0; 50]].concat();
    client.tls().read_tls(&mut garbage.as_slice()).unwrap();
    client.tls().process_new_packets().unwrap_err();
    client.flush_tls().unwrap();
    fixture.report(|report| report.conns_open == 0);
    fixture.assert_serves();
    let report = fixture.end();
    assert_eq!((report.served, report.conns_closed), (2, 2), "{report:?}");
}

/// Breaks the protocol, and sends more.
fn break_protocol(client: &mut Client) {
    let mut bytes = [[23, 3, 3, 0, 50].as_slice(), &[0; 50]].concat();
    bytes.resize(500_000, 0);
    client.send_raw(bytes);
}

#[test]
fn a_client_that_breaks_the_protocol_learns_it() {
    let fixture = Fixture::with(builder().linger_timeout(LONG), tls::settings());
    let mut client = fixture.idle_client();
    break_protocol(&mut client);
    let error = client.try_answer().unwrap_err();
    assert_eq!(alert(&error), Some(AlertDescription::BadRecordMac));
    assert_not_reset(&fixture, client);
    fixture.assert_serves();
    assert_eq!(fixture.end().served, 2);
}

#[test]
fn a_client_that_breaks_the_protocol_in_a_body_learns_it() {
    let fixture = Fixture::with(builder().linger_timeout(LONG), tls::settings());
    let mut client = fixture.connect();
    client.send("POST /body HTTP/1.1\r\nHost: test\r\nContent-Length: 1000000\r\n\r\n");
    fixture.report(|report| report.requests == 1);
    break_protocol(&mut client);
    let error = client.try_answer().unwrap_err();
    assert_eq!(alert(&error), Some(AlertDescription::BadRecordMac));
    assert_not_reset(&fixture, client);
    fixture.bodies.wait_for(|body| body.starts_with("Err"));
    fixture.assert_serves();
    let report = fixture.end();
    assert_eq!((report.served, report.gone), (1, 1), "{report:?}");
}

#[test]
fn a_body_is_read_in_large_pieces_up_to_where_the_protocol_is_broken() {
    const RECORD: usize = 16 << 10;
    const SENT: usize = 10 * RECORD;
    let (gate, at_gate, read) = (Gate::new(), Journal::new(), Journal::new());
    let handler = {
        let (gate, at_gate, read) = (gate.clone(), at_gate.clone(), read.clone());
        move |mut exchange: Exchange| {
            at_gate.write(());
            gate.pass();
            let mut lengths = Vec::new();
            let end = loop {
                match exchange.read_bytes(usize::MAX) {
                    Ok(bytes) if bytes.is_empty() => break None,
                    Ok(bytes) => lengths.push(bytes.len()),
                    Err(error) => break Some(error),
                }
            };
            read.write((lengths, end));
        }
    };
    let builder = builder().tls(tls::settings());
    let dispatch = Dispatch::default();
    let server = builder.handle(tcp_listener(), dispatch, handler).unwrap();
    let _open_at_end = gate.open_at_end();
    let mut client = Client::secure(addr(&server), &config());
    client.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 1000000\r\n\r\n");
    at_gate.wait_for_count(1);
    let records = (0..SENT / RECORD).flat_map(|_| client.seal([7; RECORD]));
    let mut bytes: Vec<u8> = records.collect();
    bytes.extend_from_slice(&[23, 3, 3, 64, 0]);
    bytes.resize(bytes.len() + RECORD, 0);
    client.send_raw(bytes);
    gate.open();
    read.wait_for_count(1);
    let (lengths, end) = read.all().remove(0);
    assert_eq!(lengths.iter().sum::<usize>(), SENT, "{lengths:?}");
    let longest = *lengths.iter().max().unwrap();
    assert!((RECORD + 1..=4 * RECORD).contains(&longest), "{lengths:?}");
    assert!(matches!(end, Some(Error::BadBody)), "{end:?}");
    drop(client);
    assert_balanced(&stop(&server).unwrap());
}

// What has arrived.

#[test]
fn a_part_of_a_record_keeps_a_connection_open_in_a_stop() {
    // Where the record is cut; and how many requests were before, so that the connection is new, parked, or busy.
    for (cut, requests) in [(1, 1), (4, 0), (5, 1), (6, 3), (40, 0), (40, 3)] {
        let fixture = Fixture::with(builder().header_timeout(LONG), tls::settings());
        let mut client = fixture.connect();
        (0..requests).for_each(|_| assert_answered(&mut client));
        fixture.report(|report| report.conns_new + report.conns_idle == 1);
        let record = client.seal(REQUEST);
        client.send_raw(&record[..cut]);
        fixture.begin_stop();
        fixture.assert_goes_on();
        client.send_raw(&record[cut..]);
        let answer = client.answer();
        assert_eq!(answer.text(), "hello", "{cut} {requests}");
        assert!(answer.closes());
        assert_told(client);
        let report = wait(&fixture.server).unwrap();
        assert_balanced(&report);
        assert_eq!(
            (report.served, report.conns_closed, report.raced),
            (requests + 1, 1, 0)
        );
    }
}

#[test]
fn a_part_of_a_record_whose_rest_never_comes_times_out() {
    for stops in [false, true] {
        let builder = builder().header_timeout(Duration::from_millis(300));
        let fixture = Fixture::with(builder, tls::settings());
        let mut client = fixture.idle_client();
        let record = client.seal(REQUEST);
        client.send_raw(&record[..record.len() - 1]);
        if stops {
            fixture.server.stop_begin();
        }
        assert_told(client);
        fixture.report(|report| report.conns_open == 0);
        let report = fixture.end();
        assert_eq!(
            (report.served, report.conns_timed_out, report.requests),
            (1, 1, 1),
            "{report:?}"
        );
    }
}

/// A request has come, which is the second and the last of its connection and of the server.
fn assert_last_is_answered(fixture: &Fixture, mut client: Client) {
    let answer = client.answer();
    assert_eq!(answer.text(), "hello");
    assert!(answer.closes());
    assert_told(client);
    let report = wait(&fixture.server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.served, report.raced), (2, 0));
}

/// In plain text it is: the close of a connection after its answer could not be told from the loss of the next request.
#[test]
fn a_part_of_a_record_behind_a_request_keeps_the_connection_open() {
    for is_one_write in [true, false] {
        let fixture = Fixture::with(builder().header_timeout(LONG), tls::settings());
        let mut client = fixture.connect();
        let gate = client.seal("GET /gate HTTP/1.1\r\nHost: test\r\n\r\n");
        let next = client.seal(REQUEST);
        let (half, rest) = next.split_at(30);
        if is_one_write {
            client.send_raw([&gate, half].concat());
            fixture.at_gate.wait_for_count(1);
        } else {
            client.send_raw(gate);
            fixture.at_gate.wait_for_count(1);
            client.send_raw(half);
        }
        fixture.begin_stop();
        fixture.gate.open();
        let answer = client.answer();
        assert_eq!(answer.text(), "hello");
        assert!(!answer.closes(), "{is_one_write}");
        client.send_raw(rest);
        assert_last_is_answered(&fixture, client);
    }
}

/// As above, where the answered request has a body.
#[test]
fn a_part_of_a_record_behind_a_body_keeps_the_connection_open() {
    for (field, body) in [
        ("Content-Length: 4", "body"),
        ("Transfer-Encoding: chunked", "4\r\nbody\r\n0\r\n\r\n"),
    ] {
        let fixture = Fixture::with(builder().header_timeout(LONG), tls::settings());
        let mut client = fixture.connect();
        client.send(format!(
            "POST /body HTTP/1.1\r\nHost: test\r\n{field}\r\n\r\n"
        ));
        fixture.report(|report| report.requests == 1);
        fixture.begin_stop();
        let end = client.seal(body);
        let next = client.seal(REQUEST);
        let (half, rest) = next.split_at(30);
        client.send_raw([&end, half].concat());
        let answer = client.answer();
        assert_eq!(answer.text(), "hello");
        assert!(!answer.closes(), "{field}");
        client.send_raw(rest);
        assert_last_is_answered(&fixture, client);
    }
}

#[test]
fn two_requests_in_one_record_are_both_answered_in_a_stop() {
    let fixture = Fixture::new();
    let mut client = fixture.connect();
    client.send(format!("GET /gate HTTP/1.1\r\nHost: test\r\n\r\n{REQUEST}"));
    fixture.at_gate.wait_for_count(1);
    fixture.begin_stop();
    fixture.gate.open();
    let closes = [client.answer(), client.answer()].map(|answer| answer.closes());
    assert_eq!(closes, [false, true]);
    assert_told(client);
    let report = wait(&fixture.server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.served, report.raced), (2, 0));
}

#[test]
fn a_request_in_two_records_is_answered_in_a_stop() {
    for at in [1, 20] {
        let fixture = Fixture::new();
        let mut client = fixture.idle_client();
        let (start, rest) = REQUEST.split_at(at);
        client.send(start);
        fixture.begin_stop();
        fixture.assert_goes_on();
        client.send(rest);
        assert_last_is_answered(&fixture, client);
    }
}

#[test]
fn a_request_that_crosses_the_close_is_a_race() {
    let fixture = Fixture::with(builder().linger_timeout(LONG), tls::settings());
    let mut client = fixture.idle_client();
    fixture.begin_stop();
    assert!(client.until_end().unwrap().is_empty());
    client.ask("/");
    drop(client);
    let report = wait(&fixture.server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.closed_idle, report.raced), (0, 1));
}

#[test]
fn new_keys_that_cross_the_close_are_no_race() {
    let fixture = Fixture::with(builder().linger_timeout(LONG), tls::settings());
    let mut client = fixture.idle_client();
    fixture.begin_stop();
    assert!(client.until_end().unwrap().is_empty());
    client.tls().refresh_traffic_keys().unwrap();
    client.flush_tls().unwrap();
    client.half_close();
    let report = wait(&fixture.server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.closed_idle, report.raced), (1, 0));
}

// What is delivered.

#[test]
fn a_large_answer_reaches_a_slow_reader_in_a_stop() {
    let fixture = Fixture::new();
    let mut client = small_client(fixture.addr());
    client.shake_hands().unwrap();
    client.ask("/gate/large");
    fixture.at_gate.wait_for_count(1);
    fixture.begin_stop();
    fixture.gate.open();
    let head = client.try_head().unwrap();
    assert!(head.closes());
    fixture.assert_goes_on();
    let body = client.try_body(&head).unwrap();
    assert!(body.len() == LARGE && body.iter().all(|byte| *byte == b'x'));
    assert_told(client);
    let report = wait(&fixture.server).unwrap();
    assert_balanced(&report);
    assert_eq!(
        (report.served, report.conns_closed, report.bytes_unacked),
        (1, 1, 0)
    );
}

/// Answers with a body whose end is the end of the connection: a piece, and after the gate a large rest.
fn close_delimited(gate: &Gate) -> Server {
    let goes_on = gate.clone();
    let handler = move |mut exchange: Exchange| {
        exchange.start(http::Response::new(())).unwrap();
        exchange.write(b"piece").unwrap();
        goes_on.pass();
        let _ = exchange.write(&vec![b'x'; LARGE]);
        let _ = exchange.finish();
    };
    builder()
        .tls(tls::settings())
        .handle(tcp_listener(), Dispatch::default(), handler)
        .unwrap()
}

#[test]
fn the_end_of_a_body_without_a_length_is_told() {
    for stops in [false, true] {
        let gate = Gate::new();
        let _open_at_end = gate.open_at_end();
        let server = close_delimited(&gate);
        let mut client = small_client(addr(&server));
        client.shake_hands().unwrap();
        client.send("GET / HTTP/1.0\r\n\r\n");
        assert_eq!(client.try_head().unwrap().status, 200);
        if stops {
            server.stop_begin();
            wait_for_phase(&server, Phase::Draining);
        }
        gate.open();
        assert_eq!(client.until_end().unwrap().len(), 5 + LARGE);
        assert_eq!(client.until_end_raw().unwrap(), b"");
        drop(client);
        let report = stop(&server).unwrap();
        assert_balanced(&report);
        assert_eq!((report.served, report.bytes_unacked), (1, 0));
    }
}

#[test]
fn a_kill_does_not_let_a_cut_body_look_whole() {
    // Before the handler has written all, and when all waits for the client to read.
    for is_written in [false, true] {
        let gate = Gate::new();
        let _open_at_end = gate.open_at_end();
        let server = close_delimited(&gate);
        let mut client = small_client(addr(&server));
        client.shake_hands().unwrap();
        client.send("GET / HTTP/1.0\r\n\r\n");
        assert_eq!(client.try_head().unwrap().status, 200);
        assert_eq!(client.exactly(5).unwrap(), b"piece");
        if is_written {
            gate.open();
            client.exactly(1).unwrap();
        }
        server.kill_begin();
        let error = client.until_end().unwrap_err();
        assert!(
            [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset].contains(&error.kind()),
            "{error}"
        );
        gate.open();
        let result = wait(&server);
        assert!(matches!(result, Err(Error::Killed(_))), "{result:?}");
        let report = server.report();
        assert_balanced(&report);
        assert_eq!((report.served, report.killed), (0, 1), "{report:?}");
    }
}

/// Reads an answer of `hello`, and nothing behind the record in which it ends. Returns whether it says close.
fn answer_alone(client: &mut Client) -> bool {
    let mut text = Vec::new();
    while !text.ends_with(b"hello") {
        let mut socket = client.socket();
        let mut record = vec![0; 5];
        socket.read_exact(&mut record).unwrap();
        let length = u16::from_be_bytes([record[3], record[4]]);
        record.resize(5 + usize::from(length), 0);
        socket.read_exact(&mut record[5..]).unwrap();
        client.tls().read_tls(&mut record.as_slice()).unwrap();
        let state = client.tls().process_new_packets().unwrap();
        let mut content = vec![0; state.plaintext_bytes_to_read()];
        client.tls().reader().read_exact(&mut content).unwrap();
        text.extend(content);
    }
    let text = String::from_utf8(text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    text.contains("connection: close")
}

/// Its kernel does not acknowledge at once what comes next.
fn acknowledge_late(client: &Client) {
    set_option(client.socket(), libc::IPPROTO_TCP, libc::TCP_QUICKACK, 0);
}

#[test]
fn a_client_that_leaves_with_the_last_answer_is_served() {
    const ROUNDS: usize = 10;
    const CLIENTS: usize = 10;
    for _ in 0..ROUNDS {
        let fixture = Fixture::new();
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| fixture.client_at_gate("/gate"))
            .collect();
        fixture.begin_stop();
        fixture.gate.open();
        clients.iter().for_each(acknowledge_late);
        let threads = clients.into_iter().map(|mut client| {
            thread::spawn(move || {
                assert!(answer_alone(&mut client));
            })
        });
        threads
            .collect::<Vec<_>>()
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        let report = wait(&fixture.server).unwrap();
        assert_balanced(&report);
        assert_eq!(
            (report.served, report.gone, report.conns_closed),
            (CLIENTS as u64, 0, CLIENTS as u64),
            "{report:?}"
        );
    }
}

#[test]
fn what_clients_count_is_what_the_server_counts() {
    const CLIENTS: usize = 200;
    const THREADS: usize = 4;
    let handler = |exchange: Exchange| {
        let _ = reply(exchange, "hello");
    };
    for server in each_way(|| builder().tls(tls::settings()), handler) {
        // Not `listener`: each_way may have made a Unix socket's.
        let to = addr(&server);
        let (answered, asked) = (Arc::new(AtomicU64::new(0)), Gate::new());
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                let (answered, asked) = (Arc::clone(&answered), asked.clone());
                thread::spawn(move || {
                    let mut clients: Vec<_> = (0..CLIENTS / THREADS)
                        .map(|_| Client::secure(to, &config()))
                        .collect();
                    while !clients.is_empty() {
                        // All of them have asked before the first is answered.
                        clients.retain_mut(|client| client.try_send(REQUEST).is_ok());
                        clients.retain_mut(|client| {
                            let Ok(answer) = client.try_answer() else {
                                return false;
                            };
                            assert_eq!(answer.text(), "hello");
                            answered.fetch_add(1, Ordering::Relaxed);
                            !answer.closes()
                        });
                        asked.open();
                    }
                })
            })
            .collect();
        wait_for_report(&server, |report| report.connections == CLIENTS as u64);
        asked.pass();
        let report = stop(&server).unwrap();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_balanced(&report);
        let answered = answered.load(Ordering::Relaxed);
        assert_eq!(
            (report.served, report.requests, report.connections),
            (answered, answered, CLIENTS as u64),
            "{report:?}"
        );
    }
}

// Certificates and reloads.

/// The certificate that a client gets that asks for this name.
fn certificate_for(server: &Server, name: &'static str) -> Vec<u8> {
    // What fits is decided by the server alone.
    let mut client = Client::silent(addr(server), &config(), name);
    let _ = client.shake_hands();
    let chain = client.tls().peer_certificates().unwrap_or_default();
    chain.first().map(|der| der.to_vec()).unwrap_or_default()
}

#[test]
fn the_certificate_fits_the_name_that_is_asked_for() {
    let issue = |names: &[&str]| Authority::of_servers().issue(names);
    let default = issue(&["localhost", "127.0.0.1"]);
    let wild = issue(&["*.wild.test"]);
    let exact = issue(&["exact.wild.test"]);
    let tls = |default: &Pair, wild: &Pair, exact: &Pair| {
        let tls = Tls::new(default.identity());
        tls.identity(wild.identity()).identity(exact.identity())
    };
    let fixture = Fixture::with(builder(), tls(&default, &wild, &exact));
    let assert_chosen = |default: &Pair, wild: &Pair, exact: &Pair| {
        for (name, pair) in [
            ("localhost", default),
            ("LocalHost", default),
            ("a.wild.test", wild),
            ("A.Wild.TEST", wild),
            ("exact.wild.test", exact),
            ("127.0.0.1", default),
        ] {
            let der = certificate_for(&fixture.server, name);
            assert!(der == *pair.der(), "{name}");
        }
    };
    assert_chosen(&default, &wild, &exact);
    // Neither fits: the client gets the default one, and says that it does not like it.
    for name in ["wild.test", "a.b.wild.test", "other.test"] {
        let refused = Client::try_secure(fixture.addr(), &config(), name);
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidData);
    }
    fixture.report(|report| report.conns_tls_failed == 3);
    let [default, wild, exact] = [
        issue(&["localhost", "127.0.0.1"]),
        issue(&["*.wild.test"]),
        issue(&["exact.wild.test"]),
    ];
    fixture
        .server
        .reload_tls(&tls(&default, &wild, &exact))
        .unwrap();
    assert_chosen(&default, &wild, &exact);
    fixture.end();
    assert_eq!(fixture.errors(), ["alert"; 3]);
}

/// Files of this test alone.
struct Files(PathBuf);

impl Files {
    fn new(name: &str) -> Self {
        let name = format!("httpdown-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn put(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn certificates_are_replaced_under_load() {
    const RELOADS: usize = 100;
    const THREADS: usize = 4;
    let issue = || Authority::of_servers().issue(&["localhost"]);
    let pairs = [issue(), issue()];
    let files = Files::new("replaced");
    let put = |chain: usize, key: usize| {
        files.put("chain.pem", &pairs[chain % 2].chain);
        files.put("key.pem", &pairs[key % 2].key);
    };
    put(0, 0);
    let identity = Identity::from_pem_files(files.path("chain.pem"), files.path("key.pem"));
    let fixture = Fixture::with(builder(), Tls::new(identity.unwrap()));
    let mut config = config_of(rustls::DEFAULT_VERSIONS);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let config = Arc::new(config);
    let mut old = Client::secure(fixture.addr(), &config);
    assert_answered(&mut old);
    let (to, ends) = (fixture.addr(), Arc::new(AtomicBool::new(false)));
    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let (config, ends) = (Arc::clone(&config), Arc::clone(&ends));
            let ders = pairs.each_ref().map(Pair::der);
            thread::spawn(move || {
                let mut seen = [0_u64; 2];
                while !ends.load(Ordering::Relaxed) {
                    let mut client = Client::secure(to, &config);
                    assert_answered(&mut client);
                    assert_eq!(client.tls().alpn_protocol(), Some(&b"http/1.1"[..]));
                    let der = &client.tls().peer_certificates().unwrap()[0];
                    let index = ders.iter().position(|one| one == der).unwrap();
                    seen[index] += 1;
                }
                seen
            })
        })
        .collect();
    for index in 1..=RELOADS {
        put(index, index);
        fixture.server.reread_tls().unwrap();
        // What is broken changes nothing, and disturbs nobody.
        put(index + 1, index);
        fixture.server.reread_tls().unwrap_err();
        // Who comes from now on gets it.
        if index % 10 == 0 {
            let der = certificate_for(&fixture.server, "localhost");
            assert!(der == *pairs[index % 2].der(), "{index}");
        }
        assert_answered(&mut old);
    }
    ends.store(true, Ordering::Relaxed);
    let seen: Vec<_> = threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .collect();
    let served: u64 = seen.iter().flatten().sum();
    assert!(seen.iter().any(|[_, second]| *second > 0), "{seen:?}");
    let report = fixture.end();
    assert_eq!(report.served, served + 1 + RELOADS as u64);
    assert_eq!((report.conns_tls_failed, report.gone), (0, 0));
    assert!(fixture.errors().is_empty());
}

#[test]
fn what_cannot_be_used_changes_nothing() {
    let issue = || Authority::of_servers().issue(&["localhost"]);
    let (pair, other) = (issue(), issue());
    let broken = Identity::from_pem(other.chain.as_bytes(), pair.key.as_bytes());
    assert!(matches!(broken, Err(Error::Tls(_))), "{broken:?}");
    let half = &other.chain.as_bytes()[..other.chain.len() / 2];
    let broken = Identity::from_pem(half, other.key.as_bytes());
    assert!(matches!(broken, Err(Error::Tls(_))), "{broken:?}");

    let fixture = Fixture::with(builder(), Tls::new(pair.identity()));
    let key = TicketKey::generate().unwrap();
    for keys in [vec![], vec![key.clone(), key]] {
        let tls = Tls::new(other.identity()).ticket_keys(keys);
        let refused = fixture.server.reload_tls(&tls);
        assert!(
            matches!(refused, Err(Error::InvalidArgument(_))),
            "{refused:?}"
        );
        assert!(certificate_for(&fixture.server, "localhost") == *pair.der());
    }
    fixture.end();
}

#[test]
fn files_are_read_again() {
    let files = Files::new("reread");
    let issue = || Authority::of_servers().issue(&["localhost"]);
    let (first, second) = (issue(), issue());
    let put = |chain: &Pair, key: &Pair| {
        files.put("chain.pem", &chain.chain);
        files.put("key.pem", &key.key);
    };
    let [old, new] = ["Old", "New"].map(Authority::named);
    put(&first, &first);
    files.put("ca.pem", &old.pem());
    let identity = Identity::from_pem_files(files.path("chain.pem"), files.path("key.pem"));
    let clients = ClientAuth::optional_from_file(files.path("ca.pem")).unwrap();
    let fixture = Fixture::with(builder(), Tls::new(identity.unwrap()).clients(clients));
    let served = || certificate_for(&fixture.server, "localhost");
    let lets_in = |authority: &Authority| {
        let client = authority.issue(&["client"]);
        let config = config_with(Authority::of_servers(), Some(&client), &[&TLS12]);
        Client::try_secure(fixture.addr(), &Arc::new(config), "localhost").is_ok()
    };
    let refused = || fixture.server.reread_tls().unwrap_err().to_string();
    assert!(served() == *first.der());
    assert_eq!([&old, &new].map(lets_in), [true, false]);

    put(&second, &second);
    files.put("ca.pem", &new.pem());
    fixture.server.reread_tls().unwrap();
    assert!(served() == *second.der());
    assert_eq!([&old, &new].map(lets_in), [false, true]);

    // All or nothing, and the text says which file it is.
    put(&first, &second);
    assert!(refused().contains("key.pem\" does not fit certificate 1"));
    put(&first, &first);
    files.put("ca.pem", "");
    assert!(refused().contains("ca.pem\" is empty"));
    fs::remove_file(files.path("ca.pem")).unwrap();
    assert!(refused().contains("ca.pem"));
    assert!(served() == *second.der());
    assert_eq!([&old, &new].map(lets_in), [false, true]);

    files.put("ca.pem", &old.pem());
    fixture.server.reread_tls().unwrap();
    assert!(served() == *first.der());
    fixture.end();
    assert_eq!(fixture.sums("tls.reload_failed"), 3);
}

#[test]
fn only_what_is_from_files_is_read_again() {
    let fixture = Fixture::new();
    let refused = fixture.server.reread_tls();
    assert!(matches!(refused, Err(Error::Unsupported(_))), "{refused:?}");
    fixture.end();
    for builder in [builder(), builder().tls(tls::settings())] {
        let nothing = |_: Exchange| {};
        let refused =
            builder
                .reload_on_hup(true)
                .handle(tcp_listener(), Dispatch::default(), nothing);
        assert!(
            matches!(refused, Err(Error::InvalidArgument(_))),
            "{refused:?}"
        );
    }
}

#[test]
fn a_server_without_tls_cannot_be_given_certificates() {
    let server = Server::builder()
        .handle(tcp_listener(), Dispatch::default(), |exchange: Exchange| {
            let is_secure = exchange.conn().is_secure();
            let _ = reply(exchange, format!("{is_secure}"));
        })
        .unwrap();
    for refused in [server.reload_tls(&tls::settings()), server.reread_tls()] {
        assert!(matches!(refused, Err(Error::Unsupported(_))), "{refused:?}");
    }
    let mut client = Client::plain(addr(&server));
    client.ask("/");
    assert_eq!(client.answer().text(), "false");
    drop(client);
    stop(&server).unwrap();
    // Nor can it begin when it has ended; but that is no error.
    let fixture = Fixture::new();
    fixture.end();
    let _ = fixture.server.reload_tls(&tls::settings());
}

// Resumption.

/// Connects, and asks. Returns whether the session was resumed, as both sides see it.
#[track_caller]
fn resumes(server: &Server, config: &Arc<ClientConfig>) -> bool {
    let mut client = Client::secure(addr(server), config);
    client.ask("/tls");
    let answer = client.answer();
    let is_resumed = answer.text().ends_with("true");
    let kind = client.tls().handshake_kind();
    assert_eq!(is_resumed, kind == Some(HandshakeKind::Resumed), "{kind:?}");
    is_resumed
}

#[test]
fn a_session_is_resumed_at_the_next_server_with_the_same_keys() {
    let key = TicketKey::generate().unwrap();
    // The name is the same, and the secret is not: this key cannot read the tickets, which are garbled for it.
    let mut bytes = key.to_bytes();
    bytes[47] ^= 1;
    let garbled = TicketKey::from_bytes(bytes);
    let other = TicketKey::generate().unwrap();
    for version in [&TLS12, &TLS13] {
        let config = Arc::new(config_with(Authority::of_servers(), None, &[version]));
        let with = |keys: &[&TicketKey]| {
            let keys = keys.iter().map(|&key| key.clone());
            Fixture::with(builder(), tls::settings().ticket_keys(keys))
        };
        let first = with(&[&key]);
        assert!(!resumes(&first.server, &config));
        assert!(resumes(&first.server, &config));
        first.end();
        assert_eq!(
            (first.sums("tls.handshake"), first.sums("tls.resumed")),
            (2, 1)
        );

        let second = with(&[&key]);
        assert!(resumes(&second.server, &config));
        second.end();
        let rolled = with(&[&other, &key]);
        assert!(resumes(&rolled.server, &config));
        rolled.end();
        let after = with(&[&other]);
        assert!(resumes(&after.server, &config));
        after.end();
        let stranger = with(&[&key]);
        assert!(!resumes(&stranger.server, &config));
        stranger.end();
        let reader = with(&[&garbled]);
        assert!(!resumes(&reader.server, &config));
        reader.end();
        assert_eq!(reader.sums("tls.resumed"), 0);
        assert!(reader.errors().is_empty());
    }
}

#[test]
fn a_session_survives_new_certificates_but_not_new_rules_for_clients() {
    let ours = Authority::named("Clients");
    let own = ours.issue(&["client"]);
    let fresh = || {
        let identity = Authority::of_servers().issue(&["localhost"]).identity();
        Tls::new(identity)
    };
    for version in [&TLS12, &TLS13] {
        let config = config_with(Authority::of_servers(), Some(&own), &[version]);
        let config = Arc::new(config);
        let fixture = Fixture::with(builder(), fresh());
        let server = &fixture.server;
        assert!(!resumes(server, &config));
        server.reload_tls(&fresh()).unwrap();
        assert!(resumes(server, &config));
        let clients = ClientAuth::optional(ours.pem().as_bytes()).unwrap();
        server.reload_tls(&fresh().clients(clients)).unwrap();
        assert!(!resumes(server, &config));
        assert!(resumes(server, &config));
        let clients = ClientAuth::required(ours.pem().as_bytes()).unwrap();
        server.reload_tls(&fresh().clients(clients)).unwrap();
        assert!(!resumes(server, &config));
        assert!(resumes(server, &config));
        server.reload_tls(&fresh()).unwrap();
        assert!(!resumes(server, &config));
        fixture.end();
    }
}

/// A server that says which certificate the client has.
fn names_client(clients: ClientAuth) -> Server {
    let handler = |exchange: Exchange| {
        let tls = exchange.conn().tls().unwrap();
        let text = match tls.client_certificate() {
            Some(client) => format!("{} {:?}", tls.is_resumed(), client.names()),
            None => format!("{} nobody", tls.is_resumed()),
        };
        let _ = reply(exchange, text);
    };
    builder()
        .tls(tls::settings().clients(clients))
        .handle(tcp_listener(), Dispatch::default(), handler)
        .unwrap()
}

#[test]
fn a_resumed_session_still_has_its_clients_certificate() {
    let ours = Authority::named("Clients");
    let own = ours.issue(&["client.test"]);
    let said = |server: &Server, config: &Arc<ClientConfig>| {
        let mut client = Client::secure(addr(server), config);
        client.ask("/");
        client.answer().text().to_owned()
    };
    for version in [&TLS12, &TLS13] {
        let clients = ClientAuth::optional(ours.pem().as_bytes()).unwrap();
        let server = names_client(clients);
        let config = config_with(Authority::of_servers(), Some(&own), &[version]);
        let config = Arc::new(config);
        assert_eq!(said(&server, &config), "false [\"client.test\"]");
        assert_eq!(said(&server, &config), "true [\"client.test\"]");
        let config = Arc::new(config_with(Authority::of_servers(), None, &[version]));
        assert_eq!(said(&server, &config), "false nobody");
        assert_eq!(said(&server, &config), "true nobody");
        stop(&server).unwrap();
    }
}

#[test]
fn a_session_ends_with_its_clients_certificate() {
    let ours = Authority::named("Clients");
    for version in [&TLS12, &TLS13] {
        let lives = Duration::from_secs(4);
        let until = SystemTime::now() + lives;
        let own = ours.issue_with(&["client.test"], |params| {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            params.not_after = date_time_ymd(1970, 1, 1) + now.unwrap() + lives;
        });
        let clients = ClientAuth::required(ours.pem().as_bytes()).unwrap();
        let tls = tls::settings().clients(clients);
        let fixture = Fixture::with(builder().linger_timeout(LONG), tls);
        let config = config_with(Authority::of_servers(), Some(&own), &[version]);
        let config = Arc::new(config);
        let deadline = Instant::now() + LONG;
        let mut resumed = 0;
        let kind = loop {
            assert!(Instant::now() < deadline, "the certificate never ends");
            let client = Client::try_secure(fixture.addr(), &config, "localhost");
            let Ok(mut client) = client else {
                break None;
            };
            let kind = client.tls().handshake_kind();
            if client
                .try_send("GET /tls HTTP/1.1\r\nHost: test\r\n\r\n")
                .is_err()
                || client.try_answer().is_err()
            {
                break kind;
            }
            resumed += u64::from(kind == Some(HandshakeKind::Resumed));
        };
        assert!(
            SystemTime::now() + Duration::from_secs(1) >= until,
            "too early"
        );
        assert!(resumed > 0);
        // Mostly it is refused in the handshake.
        assert_ne!(kind, Some(HandshakeKind::Full), "{version:?}");
        let report = fixture.end();
        assert_eq!(report.conns_tls_failed, 1);
        assert_eq!(report.served, resumed + 1);
        assert_eq!(fixture.errors(), ["client_certificate"]);
    }
}

// What the host learns.

#[test]
fn a_handler_learns_what_the_handshake_has_agreed_on() {
    let ours = Authority::named("Clients");
    let own = ours.issue(&["client.test"]);
    let seen = Journal::new();
    let writes = seen.clone();
    let events = Journal::new();
    let clients = ClientAuth::optional(ours.pem().as_bytes()).unwrap();
    let server = builder()
        .tls(tls::settings().clients(clients))
        .on_conn_state(into_journal(&events))
        .handle(
            tcp_listener(),
            Dispatch::Inline,
            move |exchange: Exchange| {
                let tls = exchange.conn().tls().cloned();
                writes.write((exchange.conn().is_secure(), exchange.uri().clone(), tls));
                let _ = reply(exchange, "hello");
            },
        )
        .unwrap();
    let mut config = config_with(Authority::of_servers(), Some(&own), &[&TLS13]);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let mut client = Client::try_secure(addr(&server), &Arc::new(config), "LocalHost").unwrap();
    assert_answered(&mut client);
    client.send("GET https://localhost/a HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(client.answer().text(), "hello");
    let config = Arc::new(config_of(&[&TLS12]));
    let mut bare = Client::try_secure(addr(&server), &config, "127.0.0.1").unwrap();
    assert_answered(&mut bare);
    stop(&server).unwrap();
    drop((client, bare));

    let all = seen.all();
    let tls = |index: usize| all[index].2.clone().unwrap();
    assert!(all.iter().all(|(is_secure, ..)| *is_secure));
    let uris: Vec<_> = all.iter().map(|(_, uri, _)| uri.to_string()).collect();
    assert_eq!(uris, ["/", "https://localhost/a", "/"]);
    for index in [0, 1] {
        let tls = tls(index);
        assert_eq!(tls.version(), TlsVersion::V1_3);
        assert_eq!(tls.cipher_suite(), "TLS13_AES_256_GCM_SHA384");
        assert_eq!(tls.server_name(), Some("localhost"));
        assert_eq!(tls.alpn(), Some(&b"http/1.1"[..]));
        let certificate = tls.client_certificate().unwrap();
        assert_eq!(certificate.names(), ["client.test"]);
        assert!(*certificate.der() == *own.der());
        assert!(!tls.is_resumed());
    }
    let tls = tls(2);
    assert_eq!(tls.version(), TlsVersion::V1_2);
    assert!(tls.cipher_suite().starts_with("TLS_ECDHE_ECDSA_WITH_"));
    assert_eq!((tls.server_name(), tls.alpn()), (None, None));
    assert!(tls.client_certificate().is_none());

    server.close();
    let states = states_of(&events.all(), 0);
    assert!(
        states.starts_with(&[ConnState::Handshaking, ConnState::New, ConnState::Active]),
        "{states:?}"
    );
}

#[test]
fn a_connection_that_fails_to_shake_hands_was_never_new() {
    let events = Journal::new();
    let builder = builder().on_conn_state(into_journal(&events));
    let fixture = Fixture::with(builder, tls::settings());
    let mut client = Client::plain(fixture.addr());
    client.send(REQUEST);
    assert_eq!(client.answer().status, 400);
    drop(client);
    fixture.end();
    let states = states_of(&events.all(), 0);
    assert_eq!(states, [ConnState::Handshaking, ConnState::Closed]);
}

#[test]
fn tls_is_spoken_on_unix_sockets_too() {
    let name = format!("unix:@httpdown-test-tls-{}", std::process::id());
    let listener = Listener::bind(&name).unwrap();
    let fixture = Fixture::on(builder().tls(tls::settings()), listener);
    let mut client = fixture.client_at_gate("/gate/large");
    let mut plain = Client::plain(fixture.addr());
    plain.send(REQUEST);
    assert_eq!(plain.answer().status, 400);
    drop(plain);
    fixture.begin_stop();
    fixture.gate.open();
    assert_eq!(client.answer().body.len(), LARGE);
    assert_told(client);
    let report = wait(&fixture.server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.served, report.conns_tls_failed), (1, 1));
}
