//! What a stop must not lose, over a distance, where a handshake takes its time and a request is long on its way.
//!
//! Needs to make network namespaces and TUN devices: as root, or by `unshare --user --map-root-user cargo test`.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;
#[path = "../examples/lossmeter/lab.rs"]
mod lab;

use std::io::ErrorKind;
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use httpdown::{Builder, Dispatch, Exchange, Listener, Phase, Report, Server};

use common::{
    Client, Journal, LONG, assert_balanced, half_open, into_journal, ip, reply, skip, stop,
    wait_for_report,
};
use lab::Lab;

/// A lab, with the calling thread on the server's side; or none, and the test is skipped.
fn lab(one_way_ms: u64, loss: f64) -> Option<Lab> {
    match Lab::new(Duration::from_millis(one_way_ms), loss) {
        Ok(lab) => {
            lab.enter_server().unwrap();
            Some(lab)
        }
        Err(error) => {
            skip(&error);
            None
        }
    }
}

fn hello(lab: &Lab, builder: Builder) -> Server {
    let listener = Listener::bind(&format!("{}:0", lab.server_ip())).unwrap();
    let handler = |exchange: Exchange| {
        let _ = reply(exchange, "hello");
    };
    builder
        .handle(listener, Dispatch::default(), handler)
        .unwrap()
}

/// Runs `f` on the client's side.
fn on_client<T: Send>(lab: &Lab, f: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let run = || {
            lab.enter_client().unwrap();
            f()
        };
        scope.spawn(run).join().unwrap()
    })
}

fn connect(addr: SocketAddr) -> std::io::Result<Client> {
    let stream = TcpStream::connect_timeout(&addr, LONG)?;
    stream.set_read_timeout(Some(LONG))?;
    stream.set_nodelay(true)?;
    Ok(Client::from(stream))
}

/// One request after the other, each on a connection of its own, until the server is gone: how many were answered, and
/// what happened to the others.
fn ask_until_refused(addr: SocketAddr) -> (u64, Vec<String>) {
    let begin = Instant::now();
    let (mut answered, mut lost) = (0, Vec::new());
    while begin.elapsed() < LONG {
        let mut client = match connect(addr) {
            Ok(client) => client,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => break,
            Err(error) => {
                lost.push(format!("connecting: {error}"));
                continue;
            }
        };
        let answer = client
            .try_send("GET / HTTP/1.1\r\nhost: test\r\n\r\n")
            .and_then(|()| client.try_answer());
        match answer {
            Ok(answer) if answer.body == b"hello" => answered += 1,
            other => lost.push(format!("after {:?}: {other:?}", begin.elapsed())),
        }
    }
    (answered, lost)
}

/// Stops the server under so many clients, once it has served so many requests, and at a moment at which many handshakes
/// are half done: nothing is lost.
fn stop_under_load(lab: &Lab, server: &Server, clients: u32, after: u64) -> Report {
    let addr = ip(server);
    // One after the other, over the two round trips that a connection takes: so some are in each of its stages.
    let stagger = lab.one_way() * 4 / clients;
    thread::scope(|scope| {
        let clients: Vec<_> = (0..clients)
            .map(|index| {
                scope.spawn(move || {
                    lab.enter_client().unwrap();
                    thread::sleep(stagger * index);
                    ask_until_refused(addr)
                })
            })
            .collect();
        wait_for_report(server, |report| report.served >= after);
        let deadline = Instant::now() + LONG;
        while half_open(addr.port()) < clients.len() / 6 && Instant::now() < deadline {
            thread::yield_now();
        }
        let report = stop(server).unwrap();
        let (mut answered, mut lost) = (0, Vec::new());
        for client in clients {
            let (here, not) = client.join().unwrap();
            answered += here;
            lost.extend(not);
        }
        assert!(
            lost.is_empty(),
            "{} lost: {lost:#?}\n{report:?}",
            lost.len()
        );
        assert_balanced(&report);
        assert_eq!(report.served, answered, "{report:?}");
        assert_eq!(
            (report.requests, report.connections),
            (answered, answered),
            "{report:?}"
        );
        assert_eq!((report.raced, report.unaccepted), (0, 0), "{report:?}");
        report
    })
}

#[test]
fn a_round_trip_takes_as_long_as_asked_for() {
    const ROUND_TRIP: Duration = Duration::from_millis(20);
    let Some(lab) = lab(10, 0.0) else { return };
    let listener = Listener::bind(":0").unwrap();
    let port = listener.local_addr().port().unwrap();
    let handler = |exchange: Exchange| reply(exchange, "hello").unwrap();
    let server = Server::builder()
        .handle(listener, Dispatch::default(), handler)
        .unwrap();
    on_client(&lab, || {
        let addrs: [SocketAddr; 2] = [
            (lab.server_ip(), port).into(),
            (lab.server_ip6(), port).into(),
        ];
        for addr in addrs {
            let times: Vec<_> = (0..11)
                .map(|_| {
                    let begin = Instant::now();
                    let mut client = connect(addr).unwrap();
                    let time = begin.elapsed();
                    client.ask("/");
                    assert_eq!(client.answer().text(), "hello");
                    time
                })
                .collect();
            // A busy machine makes some of them longer.
            let shortest = times.iter().min().unwrap();
            let as_asked = ROUND_TRIP..ROUND_TRIP * 3 / 2;
            assert!(as_asked.contains(shortest), "{times:?}");
        }
        // The client's side has a loopback of its own, on which nobody listens.
        let refused = connect((Ipv6Addr::LOCALHOST, port).into()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    });
    assert_eq!(stop(&server).unwrap().served, 22);
}

#[test]
fn handshakes_half_done_at_a_stop_under_load_are_finished_and_served() {
    let Some(lab) = lab(10, 0.0) else { return };
    for cycle in 0..5 {
        let server = hello(&lab, Server::builder());
        stop_under_load(&lab, &server, 64, 100 + cycle * 37);
    }
}

#[test]
fn an_idle_server_waits_for_a_handshake_that_is_half_done() {
    let Some(lab) = lab(100, 0.0) else { return };
    let phases = Journal::new();
    let server = hello(
        &lab,
        Server::builder().on_phase({
            let mut write = into_journal(&phases);
            move |phase| write((phase, Instant::now()))
        }),
    );
    let addr = ip(&server);
    let is_connected = AtomicBool::new(false);
    thread::scope(|scope| {
        let client = scope.spawn(|| {
            lab.enter_client().unwrap();
            let (mut client, connected) = 'connect: loop {
                let client = connect(addr).unwrap();
                let connected = Instant::now();
                is_connected.store(true, Ordering::Relaxed);
                // However late this machine is to begin the stop.
                while server.report().phase < Phase::Quiescing {
                    if !is_connected.load(Ordering::Relaxed) {
                        continue 'connect;
                    }
                    thread::yield_now();
                }
                break (client, connected);
            };
            client.ask("/");
            let answer = client.answer();
            assert_eq!(answer.text(), "hello");
            assert!(answer.closes());
            connected
        });
        while half_open(addr.port()) == 0 {
            // It was over before this thread, which was late, saw it: another one.
            is_connected.store(false, Ordering::Relaxed);
            thread::yield_now();
        }
        let report = stop(&server).unwrap();
        assert_balanced(&report);
        assert_eq!((report.served, report.unaccepted), (1, 0));
        let at = |wanted| {
            let all = phases.all();
            all.iter().find(|(phase, _)| *phase == wanted).unwrap().1
        };
        let connected = client.join().unwrap();
        assert!(at(Phase::Draining) > connected, "closed too early");
        let quiescing = at(Phase::Draining) - at(Phase::Quiescing);
        assert!(quiescing < Duration::from_secs(1), "{quiescing:?}");
    });
}

#[test]
fn a_request_that_is_on_its_way_to_an_idle_connection_is_served() {
    let Some(lab) = lab(10, 0.0) else { return };
    let server = hello(&lab, Server::builder().idle_grace(LONG));
    on_client(&lab, || {
        let mut client = connect(ip(&server)).unwrap();
        client.ask("/");
        assert!(!client.answer().closes());
        // In this order: a busy machine may take longer from one line to the next than the way is long.
        server.stop_begin();
        client.ask("/");
        let answer = client.answer();
        assert_eq!(answer.text(), "hello");
        assert!(answer.closes());
        client.assert_closed();
    });
    let report = common::wait(&server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.served, report.raced, report.closed_idle), (2, 0, 0));
}

#[test]
fn where_frames_are_lost_requests_are_not() {
    const GRACE: Duration = Duration::from_secs(20);
    let Some(lab) = lab(10, 0.01) else { return };
    for cycle in 0..3 {
        // Where the handshake had to be repeated, the client's kernel takes that for the round trip: it repeats a lost
        // request after 3 s, or 9 s, which is longer than the grace is by default.
        let server = hello(&lab, Server::builder().idle_grace(GRACE));
        stop_under_load(&lab, &server, 32, 100 + cycle * 37);
    }
    assert!(lab.lost() > 0);
}
