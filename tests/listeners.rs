//! What a stop does with its listening sockets, of whatever kind: nobody who is connected is lost, nothing hangs.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use httpdown::{Builder, Listener, LogLevel, Phase, Report, Server};
use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, Type};

use common::deny::{deny, deny_netlink};
use common::{
    Client, Deaf, Journal, LONG, assert_balanced, builder, half_open, hello, into_journal, ip,
    listener, set_option, skip, stop, stop_elsewhere, tcp, wait_for_half_open, wait_for_phase,
    wait_for_report,
};

/// The option that binds a socket to an interface by its number.
const SO_BINDTOIFINDEX: i32 = 62;

/// A server whose connections have all the time to send their request.
fn patient() -> Builder {
    builder().idle_grace(LONG)
}

/// As that; whoever holds its stop in the quiescing, holds it for long.
fn easily_held() -> Builder {
    patient().quiesce_timeout(LONG)
}

fn assert_not_held(report: &Report) {
    assert!(report.stop_duration < LONG / 2, "{report:?}");
}

/// What is logged at level warning and above.
fn warnings(builder: Builder) -> (Builder, Journal<String>) {
    let journal = Journal::new();
    let written = journal.clone();
    let builder = builder.on_log(move |level, text| {
        if !matches!(level, LogLevel::Info) {
            written.write(text.to_owned());
        }
    });
    (builder, journal)
}

fn listen(socket: Socket, addr: &str, backlog: i32) -> Listener {
    let addr: SocketAddr = addr.parse().unwrap();
    socket.bind(&addr.into()).unwrap();
    socket.listen(backlog).unwrap();
    Listener::from_fd(socket.into()).unwrap()
}

/// Has a listening socket hear nothing but the first segment of a handshake, as if the network lost the others. Who
/// connects is established from its own point of view, and half open for the server; until the server sets a filter of
/// its own.
fn lose_acks(listener: &impl AsFd) {
    let flags = 13;
    let (syn, all) = (0x02, u32::MAX);
    SockRef::from(listener)
        .attach_filter(&[
            SockFilter::new(0x30, 0, 0, flags),      // load a byte
            SockFilter::new(0x54, 0, 0, syn),        // and
            SockFilter::new(0x06 | 0x10, 0, 0, all), // return the accumulator: nothing, or two bytes
        ])
        .unwrap();
}

/// The server is stopping and has one half-open handshake: that client is served, and the stop ends.
fn assert_served_at_the_stop(server: &Server, client: Deaf) -> Report {
    let stopping = stop_elsewhere(server);
    wait_for_phase(server, Phase::Quiescing);
    let mut client = client.hear();
    client.ask("/");
    assert_eq!(client.answer().text(), "hello");
    drop(client);
    let report = stopping.join().unwrap().unwrap();
    assert_balanced(&report);
    assert_eq!((report.served, report.unaccepted), (1, 0));
    report
}

/// A command that runs this test in a process of its own, by way of another command. None in that process.
fn alone(name: &str, by: &[&str]) -> Option<Command> {
    const ALONE: &str = "HTTPDOWN_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return None;
    }
    let mut command = Command::new(by[0]);
    command
        .args(&by[1..])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(ALONE, "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Some(command)
}

fn assert_passes(child: Child) {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    assert!(text.contains("1 passed"), "{text}");
}

/// Whether we may make network namespaces; if not, the test is skipped.
fn can_make_namespaces() -> bool {
    let result = Command::new("unshare").args(["-rn", "true"]).status();
    let can = result.is_ok_and(|status| status.success());
    if !can {
        skip(&"no network namespace can be made (unshare -rn)");
    }
    can
}

#[test]
fn a_handshake_that_is_half_done_at_the_stop_is_finished_and_served() {
    let server = hello(patient(), listener());
    let client = Deaf::connect(ip(&server));
    assert_served_at_the_stop(&server, client);
}

#[test]
fn a_client_whose_handshake_was_repeated_has_time_to_repeat_its_request() {
    // To all others it gives 5 ms.
    let server = hello(builder(), listener());
    let client = Deaf::connect(ip(&server));
    let silent = Client::connect(ip(&server));
    let stopping = stop_elsewhere(&server);
    wait_for_phase(&server, Phase::Quiescing);
    let mut client = client.hear();
    silent.assert_closed();
    let soon = Instant::now() + Duration::from_millis(300);
    assert!(server.wait_blocking(Some(soon)).is_err(), "it goes on");
    client.ask("/");
    assert_eq!(client.answer().text(), "hello");
    drop(client);
    let report = stopping.join().unwrap().unwrap();
    assert_eq!((report.served, report.closed_idle), (1, 1));
}

/// gunicorn 3397: what waits in the accept queue at a stop.
#[test]
fn a_full_queue_at_the_stop_is_served() {
    const CLIENTS: u64 = 200;
    let listener = listener();
    let addr = listener.local_addr().as_ip().unwrap();
    // Nobody accepts yet. Half of them have sent their request, the others do so after the stop has begun.
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| Client::connect(addr)).collect();
    let half = clients.len() / 2;
    let (early, late) = clients.split_at_mut(half);
    for client in &mut *early {
        client.ask("/");
    }
    let server = hello(patient(), listener);
    let stopping = stop_elsewhere(&server);
    wait_for_phase(&server, Phase::Quiescing);
    for client in late {
        client.ask("/");
    }
    for client in &mut clients {
        assert_eq!(client.answer().text(), "hello");
    }
    drop(clients);
    let report = stopping.join().unwrap().unwrap();
    assert_eq!((report.served, report.unaccepted), (CLIENTS, 0));
}

/// A process that has a copy of a descriptor, as one that was forked without closing it.
#[derive(Debug)]
struct Holder(Child);

impl Holder {
    fn of(listener: &TcpListener) -> Self {
        let copy = listener.try_clone().unwrap();
        let child = Command::new("sleep")
            .arg(LONG.as_secs().to_string())
            .stdin(Stdio::from(OwnedFd::from(copy)))
            .spawn();
        Self(child.unwrap())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn a_port_is_free_after_the_stop_although_a_child_has_a_copy_of_the_listener() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let holder = Holder::of(&socket);
    let server = hello(builder(), Listener::try_from(socket).unwrap());
    let addr = ip(&server);
    assert_eq!(Client::get(addr, "/").answer().text(), "hello");
    stop(&server).unwrap();
    let error = Client::try_connect(addr).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    let next = hello(builder(), Listener::bind(&addr.to_string()).unwrap());
    assert_eq!(Client::get(addr, "/").answer().text(), "hello");
    stop(&next).unwrap();
    drop(holder);
}

#[test]
fn sockets_with_reuse_port_share_an_address_and_others_do_not() {
    let mut reusing = builder().reuse_port(true);
    let first = reusing.listen("127.0.0.1:0").unwrap();
    let at = first.local_addr().to_string();
    assert!(Listener::bind(&at).is_err());
    let one = hello(reusing, first);
    let two = hello(builder(), Listener::bind_reuse_port(&at).unwrap());
    assert!(Listener::bind(&at).is_err());
    stop(&one).unwrap();
    for _ in 0..20 {
        assert_eq!(Client::get(ip(&two), "/").answer().text(), "hello");
    }
    stop(&two).unwrap();
    assert!(Listener::bind(&at).is_ok());
}

#[test]
fn a_shared_listener_is_left_to_its_other_holder() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let listener = Listener::try_from(other.try_clone().unwrap()).unwrap();
    let server = hello(patient(), listener.shared());
    let addr = ip(&server);
    let mut busy = Client::get(addr, "/");
    assert_eq!(busy.answer().text(), "hello");
    let half_open = Deaf::connect(addr);
    let stopping = stop_elsewhere(&server);
    wait_for_phase(&server, Phase::Draining);
    // Neither filtered while the server drains, nor shut down when it has ended.
    let during = Client::connect(addr);
    drop(busy);
    let report = stopping.join().unwrap().unwrap();
    assert_eq!((report.served, report.unaccepted), (1, 0));
    let after = Client::connect(addr);
    let half_open = half_open.hear();
    other.set_nonblocking(false).unwrap();
    for client in [during, after, half_open] {
        let (_, peer) = other.accept().unwrap();
        assert_eq!(peer, client.addr());
    }
}

#[test]
fn nobody_is_lost_in_a_group_of_listeners_on_one_port() {
    stop_a_group_under_load("127.1.0");
}

#[test]
fn nobody_is_lost_in_a_group_of_listeners_that_cannot_be_filtered() {
    deny_socket_option(libc::SO_ATTACH_FILTER);
    stop_a_group_under_load("127.2.0");
}

fn stop_a_group_under_load(network: &str) {
    const LISTENERS: usize = 3;
    const CLIENTS: usize = 48;
    const ROUNDS: usize = 5;
    for round in 1..=ROUNDS {
        let mut place = format!("{network}.{round}:0");
        let group: Vec<_> = (0..LISTENERS)
            .map(|_| {
                let socket = tcp(place.parse().unwrap());
                socket.set_reuse_port(true).unwrap();
                let listener = listen(socket, &place, 128);
                place = listener.local_addr().to_string();
                listener
            })
            .collect();
        let server = hello(patient(), group);
        let addr = ip(&server);
        // Each connects again and again, until it is refused; whoever is connected is answered.
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                thread::spawn(move || {
                    let mut answers = 0;
                    while let Ok(mut client) = Client::try_connect(addr) {
                        client.ask("/");
                        assert_eq!(client.answer().text(), "hello");
                        answers += 1;
                    }
                    answers
                })
            })
            .collect();
        wait_for_report(&server, |report| report.served > 100);
        let report = stop(&server).unwrap();
        let answers: u64 = clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .sum();
        assert_eq!(
            (report.served, report.unaccepted),
            (answers, 0),
            "{report:?}"
        );
        assert_balanced(&report);
    }
}

#[test]
fn a_silent_client_of_a_deferred_accept_is_served() {
    let listener = listener();
    set_option(&listener, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 30);
    let server = hello(patient(), listener);
    let addr = ip(&server);
    let mut clients = [Client::connect(addr), Client::connect(addr)];
    for client in &clients {
        wait_for_half_open(addr, client.addr());
    }
    let stopping = stop_elsewhere(&server);
    wait_for_phase(&server, Phase::Quiescing);
    let [quick, slow] = &mut clients;
    quick.ask("/");
    assert_eq!(quick.answer().text(), "hello");
    // The other is silent until the listener is closed: it is taken over when the kernel repeats its answer.
    wait_for_phase(&server, Phase::Draining);
    slow.ask("/");
    assert_eq!(slow.answer().text(), "hello");
    drop(clients);
    let report = stopping.join().unwrap().unwrap();
    assert_eq!((report.served, report.unaccepted), (2, 0));
}

#[test]
fn ipv6_and_dual_stack_handshakes_are_finished() {
    for (bound, host) in [
        ("[::1]:0", "::1"),
        ("[::]:0", "::1"),
        ("[::]:0", "127.0.0.1"),
    ] {
        let Ok(listener) = Listener::bind(bound) else {
            eprintln!("skipped: no IPv6");
            return;
        };
        let server = hello(patient(), listener);
        let addr = SocketAddr::new(host.parse().unwrap(), ip(&server).port());
        let client = Deaf::connect(addr);
        assert_served_at_the_stop(&server, client);
    }
}

#[test]
fn a_listener_of_a_mapped_address_is_one_of_ipv4() {
    let mapped = "[::ffff:127.0.0.1]:0";
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None).and_then(|socket| {
        socket.set_only_v6(false)?;
        let addr: SocketAddr = mapped.parse().unwrap();
        socket.bind(&addr.into())?;
        socket.listen(128)?;
        Ok(socket)
    });
    let Ok(socket) = socket else {
        eprintln!("skipped: no IPv6");
        return;
    };
    let given = Listener::from_fd(socket.into()).unwrap();
    for listener in [given, Listener::bind(mapped).unwrap()] {
        let server = hello(patient(), listener);
        assert_eq!(ip(&server).ip(), IpAddr::from(Ipv4Addr::LOCALHOST));
        // The kernel lists its handshakes as those of IPv6.
        let client = Deaf::connect(ip(&server));
        assert_served_at_the_stop(&server, client);
    }
}

#[test]
fn a_multipath_listener_refuses_new_handshakes_and_finishes_old_ones() {
    let Ok(socket) = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)) else {
        eprintln!("skipped: no multipath TCP");
        return;
    };
    let listener = listen(socket, "127.0.0.1:0", 128);
    assert_refuses_new_and_finishes_old(listener, ErrorKind::ConnectionRefused);
}

#[test]
fn a_stop_that_cannot_refuse_says_so_and_finishes_old_handshakes() {
    let listener = listener();
    deny_socket_option(libc::SO_ATTACH_FILTER);
    deny_socket_option(SO_BINDTOIFINDEX);
    let (builder, warnings) = warnings(patient());
    let server = hello(builder, listener);
    let client = Deaf::connect(ip(&server));
    assert_served_at_the_stop(&server, client);
    server.close();
    let warnings = warnings.all();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    let expected = "a handshake that begins now may be lost";
    assert!(warnings[0].contains(expected), "{warnings:?}");
}

#[test]
fn a_listener_with_a_locked_filter_refuses_all_the_same() {
    let listener = listener();
    if !can_filter(&listener) {
        return;
    }
    set_option(&listener, libc::SOL_SOCKET, libc::SO_LOCK_FILTER, 1);
    assert_refuses_new_and_finishes_old(listener, ErrorKind::ConnectionRefused);
}

#[test]
fn without_the_privilege_to_filter_new_handshakes_are_refused_all_the_same() {
    deny_socket_option(libc::SO_ATTACH_FILTER);
    for bound in ["127.0.0.1:0", "[::1]:0", ":0"] {
        match Listener::bind(bound) {
            Ok(listener) => {
                assert_refuses_new_and_finishes_old(listener, ErrorKind::ConnectionRefused);
            }
            Err(_) => eprintln!("skipped: no IPv6"),
        }
    }
}

#[test]
fn new_handshakes_are_refused_while_an_old_one_is_waited_for() {
    let listener = listener();
    if !can_filter(&listener) {
        return;
    }
    assert_refuses_new_and_finishes_old(listener, ErrorKind::TimedOut);
}

/// Attaches a filter that lets everything pass. If that is not allowed, the test is skipped.
fn can_filter(listener: &Listener) -> bool {
    let pass_all = SockFilter::new(0x06, 0, 0, u32::MAX);
    let result = SockRef::from(listener).attach_filter(&[pass_all]);
    if let Err(error) = &result {
        eprintln!("skipped: no privilege to attach a filter: {error}");
    }
    result.is_ok()
}

fn assert_refuses_new_and_finishes_old(listener: Listener, how: ErrorKind) {
    let (builder, warnings) = warnings(builder().idle_grace(Duration::from_secs(1)));
    let server = hello(builder, listener);
    let mut addr = ip(&server);
    if addr.ip().is_unspecified() {
        addr.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    let old = Deaf::connect(addr);
    let stopping = stop_elsewhere(&server);
    wait_for_phase(&server, Phase::Quiescing);
    // The phase begins a moment before the refusal; and a SYN that comes just then may find no way for the answer to it.
    let is_refused = || Client::try_connect(addr).is_err_and(|error| error.kind() == how);
    assert!((0..1_000).any(|_| is_refused()));
    assert_eq!(server.phase(), Phase::Quiescing);
    let mut old = old.hear();
    old.ask("/");
    assert_eq!(old.answer().text(), "hello");
    drop(old);
    let report = stopping.join().unwrap().unwrap();
    assert_eq!((report.served, report.unaccepted), (1, 0));
    server.close();
    assert_eq!(warnings.all(), [""; 0]);
}

#[test]
fn a_handshake_that_is_never_done_ends_with_the_quiesce_timeout() {
    const TIMEOUT: Duration = Duration::from_millis(300);
    let server = hello(builder().quiesce_timeout(TIMEOUT), listener());
    let client = Deaf::connect(ip(&server));
    let report = stop(&server).unwrap();
    // Half the time of the next timeout that could end it.
    let bounds = TIMEOUT..Duration::from_secs(2);
    assert!(bounds.contains(&report.stop_duration), "{report:?}");
    assert_eq!((report.served, report.unaccepted), (0, 0));
    drop(client);
}

#[test]
fn without_descriptors_a_handshake_is_still_seen_and_waited_for() {
    let name = "without_descriptors_a_handshake_is_still_seen_and_waited_for";
    let few = ["sh", "-c", "ulimit -n 100; exec \"$@\"", "sh"];
    if let Some(mut command) = alone(name, &few) {
        return assert_passes(command.spawn().unwrap());
    }
    let server = hello(patient(), listener());
    let client = Deaf::connect(ip(&server));
    let mut taken = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        taken.push(file);
    }
    let stopping = stop_elsewhere(&server);
    wait_for_phase(&server, Phase::Quiescing);
    let mut client = client.hear();
    client.ask("/");
    assert_eq!(server.phase(), Phase::Quiescing);
    taken.clear();
    assert_eq!(client.answer().text(), "hello");
    drop(client);
    let report = stopping.join().unwrap().unwrap();
    assert_eq!((report.served, report.unaccepted), (1, 0));
}

fn deny_socket_option(option: i32) {
    let arguments = [(1, libc::SOL_SOCKET), (2, option)];
    deny(libc::SYS_setsockopt, &arguments, libc::EPERM);
}

#[test]
fn without_netlink_handshakes_are_counted_all_the_same() {
    deny_netlink();
    let (builder, warnings) = warnings(patient());
    let server = hello(builder, listener());
    let client = Deaf::connect(ip(&server));
    assert_served_at_the_stop(&server, client);
    server.close();
    assert_eq!(warnings.all(), [""; 0]);
}

#[test]
fn without_netlink_a_handshake_on_another_port_is_not_waited_for() {
    deny_netlink();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = Deaf::connect(other.local_addr().unwrap());
    let server = hello(builder().quiesce_timeout(LONG), listener());
    stop(&server).unwrap();
    assert_eq!(half_open(other.local_addr().unwrap().port()), 1);
    drop(client);
}

#[test]
fn a_handshake_on_another_port_is_not_waited_for() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = Deaf::connect(other.local_addr().unwrap());
    let server = hello(builder().quiesce_timeout(LONG), listener());
    stop(&server).unwrap();
    assert_eq!(half_open(other.local_addr().unwrap().port()), 1);
    drop(client);
}

/// The stop waited for what it cannot see, and no longer.
fn assert_gave_a_round_trip(report: &Report) {
    let round_trip = Duration::from_secs(1)..Duration::from_secs(3);
    assert!(round_trip.contains(&report.stop_duration), "{report:?}");
}

#[test]
fn handshakes_that_cannot_be_counted_are_given_a_round_trip() {
    let name = "handshakes_that_cannot_be_counted_are_given_a_round_trip";
    if let Some(mut command) = alone(name, &["unshare", "-rn"]) {
        if !can_make_namespaces() {
            return;
        }
        // It gets a listener of our network namespace, and does not see its handshakes from its own.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let child = command.stdin(OwnedFd::from(listener)).spawn().unwrap();
        drop(command); // and with it our copy of the listener
        let mut client = Client::get(addr, "/");
        assert_eq!(client.answer().text(), "hello");
        drop(client);
        assert_passes(child);
        return;
    }
    let listener = io::stdin().as_fd().try_clone_to_owned().unwrap();
    let (builder, warnings) = warnings(builder());
    let server = hello(builder, Listener::from_fd(listener).unwrap());
    wait_for_report(&server, |report| report.served == 1);
    let report = stop(&server).unwrap();
    assert_gave_a_round_trip(&report);
    server.close();
    let warnings = warnings.all();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("cannot be counted"), "{warnings:?}");
}

#[test]
fn a_handshake_by_syn_cookie_is_given_a_round_trip() {
    let name = "a_handshake_by_syn_cookie_is_given_a_round_trip";
    let prepare = "ip link set lo up && echo 2 > /proc/sys/net/ipv4/tcp_syncookies && exec \"$@\"";
    if let Some(mut command) = alone(name, &["unshare", "-rn", "sh", "-c", prepare, "sh"]) {
        if can_make_namespaces() {
            assert_passes(command.spawn().unwrap());
        }
        return;
    }
    let listener = listener();
    lose_acks(&listener);
    let phases = Journal::new();
    let server = hello(patient().on_phase(into_journal(&phases)), listener);
    // From then on cookies are noticed.
    phases.wait_for(|phase| *phase == Phase::Serving);
    let mut client = Client::connect(ip(&server));
    assert_eq!(half_open(ip(&server).port()), 0, "not by cookie");
    let stopping = stop_elsewhere(&server);
    wait_for_phase(&server, Phase::Quiescing);
    client.ask("/");
    assert_eq!(client.answer().text(), "hello");
    drop(client);
    let report = stopping.join().unwrap().unwrap();
    assert_eq!((report.served, report.unaccepted), (1, 0));
    assert_gave_a_round_trip(&report);
}

/// A member of a group of listeners on one port.
fn member(place: &str) -> Listener {
    let socket = tcp(place.parse().unwrap());
    socket.set_reuse_port(true).unwrap();
    listen(socket, place, 1024)
}

#[test]
fn a_handshake_on_another_address_of_the_port_is_not_waited_for() {
    let ours = listener();
    let port = ours.local_addr().port().unwrap();
    let other = TcpListener::bind(("127.3.0.1", port)).unwrap();
    let server = hello(easily_held(), ours);
    let deaf = Deaf::connect(other.local_addr().unwrap());
    let report = stop(&server).unwrap();
    assert_not_held(&report);
    drop(deaf);
}

#[test]
fn without_netlink_a_handshake_on_another_address_of_the_port_is_not_waited_for() {
    deny_netlink();
    a_handshake_on_another_address_of_the_port_is_not_waited_for();
}

#[test]
fn a_handshake_on_another_address_that_comes_to_ours_is_waited_for() {
    // Of any address; more precisely, nobody listens there.
    let ours = Listener::bind("0.0.0.0:0").unwrap();
    let port = ours.local_addr().port().unwrap();
    let server = hello(patient(), ours);
    let client = Deaf::connect(SocketAddr::from(([127, 3, 0, 2], port)));
    assert_served_at_the_stop(&server, client);
}

#[test]
fn a_successor_in_the_group_keeps_its_clients_and_does_not_hold_the_stop() {
    for fallback in [false, true] {
        if fallback {
            deny_netlink();
        }
        let old = member("127.3.0.3:0");
        let place = old.local_addr().as_ip().unwrap();
        let successor = member(&place.to_string());
        let server = hello(easily_held(), old);
        let successor = hello(patient(), successor);
        // Of enough handshakes some are the successor's; none of them holds a stop that lasts for so short a time.
        let deaf: Vec<_> = (0..8).map(|_| Deaf::connect(place)).collect();
        let stopping = stop_elsewhere(&server);
        wait_for_phase(&server, Phase::Quiescing);
        let mut longest = Duration::ZERO;
        for _ in 0..50 {
            let began = Instant::now();
            // A SYN that was dropped would come again after a second.
            let stream = TcpStream::connect_timeout(&place, Duration::from_secs(5)).unwrap();
            longest = longest.max(began.elapsed());
            drop(stream);
        }
        assert!(longest < Duration::from_millis(900), "{longest:?}");
        let report = stopping.join().unwrap().unwrap();
        assert_not_held(&report);
        drop(deaf);
        stop(&successor).unwrap();
    }
}

/// Clients of a group in which servers come and go; each connects for each request.
#[derive(Debug)]
struct Crowd {
    over: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Seen>>,
}

/// What clients have seen.
#[derive(Debug, Default)]
struct Seen {
    answers: u64,
    lost: Vec<io::Error>,
    longest_connect: Duration,
}

impl Crowd {
    fn of(size: usize, place: SocketAddr) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let clients = (0..size).map(|_| {
            let over = Arc::clone(&over);
            thread::spawn(move || {
                let mut seen = Seen::default();
                while !over.load(Ordering::Relaxed) {
                    match seen.connect_and_ask(place) {
                        Ok(()) => seen.answers += 1,
                        Err(error) => seen.lost.push(error),
                    }
                }
                seen
            })
        });
        let clients = clients.collect();
        Self { over, clients }
    }

    /// What all have seen until now. Nobody was lost, and nobody had to try more than twice to connect.
    fn assert_happy(self) {
        self.over.store(true, Ordering::Relaxed);
        let mut all = Seen::default();
        for client in self.clients {
            let seen = client.join().unwrap();
            all.answers += seen.answers;
            all.lost.extend(seen.lost);
            all.longest_connect = all.longest_connect.max(seen.longest_connect);
        }
        let (answers, longest) = (all.answers, all.longest_connect);
        println!("{answers} answered, {longest:?} at most to connect");
        assert!(all.lost.is_empty(), "{all:?}");
        assert!(longest < Duration::from_secs(2), "{all:?}");
    }
}

impl Seen {
    fn connect_and_ask(&mut self, place: SocketAddr) -> io::Result<()> {
        let began = Instant::now();
        let stream = TcpStream::connect_timeout(&place, LONG)?;
        self.longest_connect = self.longest_connect.max(began.elapsed());
        stream.set_read_timeout(Some(LONG))?;
        let mut client = Client::from(stream);
        client.try_send("GET / HTTP/1.1\r\nHost: test\r\n\r\n")?;
        client.try_answer()?;
        // So that tens of thousands of sockets do not wait in TIME_WAIT: a census has to look at each.
        client.reset();
        Ok(())
    }
}

/// A server in a process of its own.
#[derive(Debug)]
struct Process {
    child: Child,
    says: BufReader<ChildStdout>,
}

const PLACE: &str = "HTTPDOWN_TEST_PLACE";

/// What is run in such a process: serves there, until something is written to it.
fn serve_in_this_process() {
    let place = std::env::var(PLACE).unwrap();
    let server = hello(patient(), member(&place));
    println!("serves");
    wait_for_report(&server, |report| report.served > 50);
    println!("is busy");
    io::stdin().lock().read_line(&mut String::new()).unwrap();
    stop(&server).unwrap();
}

impl Process {
    fn start(test: &str, place: SocketAddr) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(PLACE, place.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let says = BufReader::new(child.stdout.take().unwrap());
        let mut process = Self { child, says };
        process.wait_until_it("serves");
        process
    }

    fn wait_until_it(&mut self, does: &str) {
        let mut line = String::new();
        while !line.contains(does) {
            line.clear();
            assert!(self.says.read_line(&mut line).unwrap() > 0);
        }
    }

    fn stop(mut self) {
        self.child.stdin.take().unwrap().write_all(b"\n").unwrap();
        let mut rest = String::new();
        self.says.read_to_string(&mut rest).unwrap();
        assert!(self.child.wait().unwrap().success(), "{rest}");
    }
}

/// As many processes as in `HTTPDOWN_STOPS`, or 20.
fn processes_follow_each_other(test: &str, place: &str) {
    if std::env::var_os(PLACE).is_some() {
        return serve_in_this_process();
    }
    let stops = std::env::var("HTTPDOWN_STOPS").map_or(20, |stops| stops.parse().unwrap());
    // It does not listen, so it has no clients; it keeps the port.
    let reserved = tcp(place.parse().unwrap());
    reserved.set_reuse_port(true).unwrap();
    reserved
        .bind(&place.parse::<SocketAddr>().unwrap().into())
        .unwrap();
    let place = reserved.local_addr().unwrap().as_socket().unwrap();
    let mut serving = Process::start(test, place);
    let crowd = Crowd::of(16, place);
    for _ in 0..stops {
        let mut next = Process::start(test, place);
        next.wait_until_it("is busy");
        std::mem::replace(&mut serving, next).stop();
    }
    crowd.assert_happy();
    serving.stop();
}

#[test]
fn a_process_that_leaves_a_group_loses_nobody() {
    processes_follow_each_other("a_process_that_leaves_a_group_loses_nobody", "127.3.0.4:0");
}

#[test]
fn a_process_that_leaves_a_group_loses_nobody_where_the_kernel_moves_clients_to_the_others() {
    let name =
        "a_process_that_leaves_a_group_loses_nobody_where_the_kernel_moves_clients_to_the_others";
    let prepare = "ip link set lo up && echo 1 > /proc/sys/net/ipv4/tcp_migrate_req && exec \"$@\"";
    if let Some(mut command) = alone(name, &["unshare", "-rn", "sh", "-c", prepare, "sh"]) {
        if can_make_namespaces() {
            assert_passes(command.spawn().unwrap());
        }
        return;
    }
    processes_follow_each_other(name, "127.3.0.5:0");
}

#[test]
fn several_that_leave_a_group_at_once_lose_nobody() {
    let mut serving = hello(patient(), member("127.3.0.6:0"));
    let place = ip(&serving);
    let crowd = Crowd::of(8, place);
    for _ in 0..5 {
        let mut leaving = vec![serving];
        leaving.extend((0..2).map(|_| hello(patient(), member(&place.to_string()))));
        serving = hello(patient(), member(&place.to_string()));
        wait_for_report(&serving, |report| report.served > 50);
        let stopping: Vec<_> = leaving.iter().map(stop_elsewhere).collect();
        for stopping in stopping {
            stopping.join().unwrap().unwrap();
        }
    }
    crowd.assert_happy();
    stop(&serving).unwrap();
}

#[test]
fn a_group_that_all_leave_at_once_changes_while_they_look_at_it() {
    for _ in 0..20 {
        let first = member("127.3.0.12:0");
        let place = first.local_addr().to_string();
        let members = std::iter::once(first).chain((0..3).map(|_| member(&place)));
        let (servers, warnings): (Vec<_>, Vec<_>) = members
            .map(|member| {
                let (builder, warnings) = warnings(patient());
                (hello(builder, member), warnings)
            })
            .unzip();
        let stopping: Vec<_> = servers.iter().map(stop_elsewhere).collect();
        for stopping in stopping {
            stopping.join().unwrap().unwrap();
        }
        drop(servers);
        for warnings in warnings {
            assert_eq!(warnings.all(), [""; 0]);
        }
    }
}

#[test]
fn several_sockets_of_a_server_leave_a_group_together() {
    let first = member("127.3.0.7:0");
    let place = first.local_addr().as_ip().unwrap();
    let other = hello(patient(), member(&place.to_string()));
    // Many, because what goes wrong goes wrong between the close of one and the close of the next.
    let others = (0..24).map(|_| member(&place.to_string()));
    let ours: Vec<_> = std::iter::once(first).chain(others).collect();
    let server = hello(patient(), ours);
    let crowd = Crowd::of(8, place);
    wait_for_report(&server, |report| report.served > 50);
    let report = stop(&server).unwrap();
    assert_eq!(report.unaccepted, 0, "{report:?}");
    crowd.assert_happy();
    stop(&other).unwrap();
}

/// Then the sockets are bound to an interface that does not exist: their answers to a SYN find no way.
#[test]
fn without_a_filter_several_sockets_of_a_server_leave_a_group_together() {
    deny_socket_option(libc::SO_ATTACH_FILTER);
    several_sockets_of_a_server_leave_a_group_together();
}

#[test]
fn who_is_in_the_handshake_with_one_that_leaves_a_group_is_served() {
    for place in ["127.3.0.8:0", "[::1]:0", "0.0.0.0:0", "[::]:0"] {
        let old = member(place);
        lose_acks(&old);
        let copy = old.as_fd().try_clone_to_owned().unwrap();
        let port = old.local_addr().port().unwrap();
        let place = SocketAddr::new(old.local_addr().as_ip().unwrap().ip(), port);
        let server = hello(easily_held(), old);
        let (successor, warnings) = warnings(patient());
        let successor = hello(successor, member(&place.to_string()));
        let mut clients: Vec<_> = (0..40).map(|_| Client::connect(place)).collect();
        // On a busy machine, an acknowledgement may still be on its way to the successor: not all of them need be ours.
        assert!(half_open(port) > 0);
        let stopping = stop_elsewhere(&server);
        wait_for_phase(&server, Phase::Quiescing);
        SockRef::from(&copy).detach_filter().unwrap();
        for client in &mut clients {
            client.ask("/");
        }
        for client in &mut clients {
            assert_eq!(client.answer().text(), "hello");
        }
        drop(clients);
        let report = stopping.join().unwrap().unwrap();
        assert!(report.served > 0, "{report:?}");
        assert_not_held(&report);
        assert_eq!(report.served + stop(&successor).unwrap().served, 40);
        assert_eq!(warnings.all(), [""; 0]);
    }
}

#[test]
fn a_successor_that_comes_while_one_quiesces_has_its_clients_heard() {
    let old = member("127.3.0.9:0");
    let place = old.local_addr().as_ip().unwrap();
    let server = hello(patient(), old);
    let slow = Deaf::connect(place);
    let stopping = stop_elsewhere(&server);
    wait_for_phase(&server, Phase::Quiescing);
    let successor = hello(patient(), member(&place.to_string()));
    // Who comes before the other one is seen is not heard at first, and tries again after a second.
    let crowd = Crowd::of(4, place);
    wait_for_report(&successor, |report| report.served > 50);
    let mut slow = slow.hear();
    slow.ask("/");
    assert_eq!(slow.answer().text(), "hello");
    drop(slow);
    stopping.join().unwrap().unwrap();
    crowd.assert_happy();
    stop(&successor).unwrap();
}

#[test]
fn who_has_left_a_group_leaves_the_choice_to_the_kernel() {
    let server = hello(patient(), member("127.3.0.10:0"));
    let place = ip(&server);
    let stays = hello(patient(), member(&place.to_string()));
    stop(&server).unwrap();
    let comes = hello(patient(), member(&place.to_string()));
    let clients: Vec<_> = (0..64).map(|_| Client::connect(place)).collect();
    // 1 of 2^63 times all come to one.
    for server in [&stays, &comes] {
        wait_for_report(server, |report| report.connections > 0);
    }
    drop(clients);
    for server in [&stays, &comes] {
        stop(server).unwrap();
    }
}

#[test]
fn a_group_too_large_to_be_left_without_a_loss_is_told() {
    let (builder, warnings) = warnings(patient());
    let server = hello(builder, member("127.3.0.11:0"));
    let place = ip(&server).to_string();
    let others: Vec<_> = (0..64).map(|_| member(&place)).collect();
    stop(&server).unwrap();
    server.close();
    let warnings = warnings.all();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].contains("may be lost: it has 65 members"),
        "{warnings:?}"
    );
    drop(others);
}
