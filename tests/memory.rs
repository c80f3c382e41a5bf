//! Memory that connections have used goes back to the system. This is a program of its own, because it looks at the
//! memory of the whole process.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![cfg(target_env = "gnu")]

mod common;

use std::fs;
use std::num::NonZeroUsize;
use std::thread;
use std::time::Instant;

use common::{Client, LONG, Recorder, addr, builder, hello, listener, stop, wait_for_report};

const CLIENTS: u64 = 300;
/// Kept in memory until it is whole.
const BODY: usize = 64_000;

/// The private memory of this process, in bytes.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let anonymous = status.lines().find_map(|line| {
        let kib = line.strip_prefix("RssAnon:")?.strip_suffix("kB")?;
        kib.trim().parse::<u64>().ok()
    });
    anonymous.unwrap() * 1024
}

#[test]
fn the_memory_of_a_crowd_goes_back_when_it_has_gone() {
    let (stats, journal) = Recorder::new();
    let builder = builder().body_buffer(NonZeroUsize::new(BODY + 1).unwrap());
    let server = hello(builder.trim_memory(true).stats(stats), listener());
    let before = resident();
    let mut clients: Vec<_> = (0..CLIENTS)
        .map(|_| Client::connect(addr(&server)))
        .collect();
    let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {BODY}\r\n\r\n");
    let body = "a".repeat(BODY);
    let (most, last) = body.split_at(BODY - 1);
    for client in &mut clients {
        client.send(&head);
        client.send(most);
    }
    wait_for_report(&server, |report| report.conns_active == CLIENTS);
    let deadline = Instant::now() + LONG;
    while resident() < before + CLIENTS * BODY as u64 * 3 / 4 {
        assert!(Instant::now() < deadline, "the bodies are not kept");
        thread::yield_now();
    }
    let full = resident();
    for client in &mut clients {
        client.send(last);
    }
    for client in &mut clients {
        assert_eq!(client.answer().text(), "hello");
    }
    drop(clients);
    journal.wait_for(|(key, _)| key == "time memory.trim");
    let left = resident();
    assert!(
        left < before + (full - before) / 4,
        "before {before}, full {full}, left {left}"
    );
    stop(&server).unwrap();
}
