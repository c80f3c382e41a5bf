//! System calls that fail while a server stops, one or several of them, each time or for good: the stop ends on time all
//! the same, and its ledger balances.
//!
//! A filter of system calls cannot be taken back, so each stop has a process of its own. `HTTPDOWN_FAULTS` says how many
//! stops there are, `HTTPDOWN_FAULT_SEED` runs the one of a seed that has failed.
#![allow(clippy::unwrap_used, reason = "a test that fails panics")]

mod common;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use httpdown::{Builder, Dispatch, Error, Exchange, Listeners, Server};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use common::{Client, LONG, addr, assert_balanced, builder, listener, reply};

const SEED: &str = "HTTPDOWN_FAULT_SEED";

/// What a stop calls, and what its connections call to end.
const CALLS: [(&str, i64); 12] = [
    ("accept4", libc::SYS_accept4),
    ("epoll_ctl", libc::SYS_epoll_ctl),
    ("setsockopt", libc::SYS_setsockopt),
    ("getsockopt", libc::SYS_getsockopt),
    ("socket", libc::SYS_socket),
    ("shutdown", libc::SYS_shutdown),
    ("close", libc::SYS_close),
    ("netlink", libc::SYS_recvfrom),
    ("eventfd2", libc::SYS_eventfd2),
    ("clone3", libc::SYS_clone3),
    ("fcntl", libc::SYS_fcntl),
    ("ioctl", libc::SYS_ioctl),
];

const ERRORS: [(&str, i32); 4] = [
    ("EPERM", libc::EPERM),
    ("ENOMEM", libc::ENOMEM),
    ("EMFILE", libc::EMFILE),
    ("EINTR", libc::EINTR),
];

/// Has the call fail in every thread of this process, for good.
fn deny(call: i64, error: i32) {
    let filter = SeccompFilter::new(
        BTreeMap::from([(call, vec![])]),
        SeccompAction::Allow,
        SeccompAction::Errno(error.cast_unsigned()),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    seccompiler::apply_filter_all_threads(&program).unwrap();
}

fn serve(builder: Builder, listeners: impl Into<Listeners>, way: usize) -> Server {
    let handler = |exchange: Exchange| {
        let _ = reply(exchange, "hello");
    };
    let dispatch = [Dispatch::Inline, Dispatch::default()][way % 2];
    builder.handle(listeners, dispatch, handler).unwrap()
}

/// One stop, in this process: its description.
fn one_stop(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let faults: Vec<_> = (0..random.usize(1..=2))
        .map(|_| {
            let (call, error) = (
                random.choice(CALLS).unwrap(),
                random.choice(ERRORS).unwrap(),
            );
            (call, error)
        })
        .collect();
    let builder = builder()
        .io_threads(NonZeroUsize::new(random.usize(1..=2)).unwrap())
        .quiesce_timeout(Duration::from_millis(50))
        .stop_timeout(Duration::from_millis(500))
        .kill_timeout(Duration::from_millis(500));
    let server = serve(builder, listener(), random.usize(0..2));
    let mut answered = Client::get(addr(&server), "/");
    answered.answer();
    let idle = Client::connect(addr(&server));
    let mut under_way = Client::connect(addr(&server));
    under_way.send("GET / HTTP/1.1\r\nHost");
    common::wait_for_report(&server, |report| report.conns_active == 1);
    println!("seed {seed}: {faults:?}");
    for ((_, call), (_, error)) in &faults {
        deny(*call, *error);
    }
    let began = Instant::now();
    server.stop_begin();
    // Clients that find out by themselves, or not at all.
    let sent = under_way.try_send(": test\r\n\r\n");
    let client = thread::Builder::new().spawn(move || {
        let _ = sent.and_then(|()| under_way.try_answer());
    });
    let result = server.wait_blocking(Some(began + LONG / 2));
    assert!(!matches!(result, Err(Error::WouldBlock)), "{server:?}");
    // Stop, kill, a second for threads, and much for a busy machine.
    assert!(began.elapsed() < LONG / 5, "{:?}", began.elapsed());
    assert_balanced(&server.report());
    drop((answered, idle, client));
}

#[test]
fn stops_end_and_balance_whatever_system_calls_fail() {
    if let Some(seed) = std::env::var_os(SEED) {
        one_stop(seed.to_str().unwrap().parse().unwrap());
        return;
    }
    let count = std::env::var("HTTPDOWN_FAULTS").map_or(100, |text| text.parse().unwrap());
    let first = fastrand::u64(..1 << 32);
    for seed in first..first + count {
        let output = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "stops_end_and_balance_whatever_system_calls_fail",
            ])
            .arg("--nocapture")
            .env(SEED, seed.to_string())
            .output()
            .unwrap();
        let (text, errors) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        let passed = output.status.success() && text.contains("1 passed");
        assert!(passed, "seed {seed}:\n{text}\n{errors}");
    }
}
