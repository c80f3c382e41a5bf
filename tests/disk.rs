//! Files whose disk is slow, or fails.
//!
//! The disk is a function of libc's name, which is linked in its place.
#![allow(clippy::unwrap_used, reason = "a test that fails panics")]

mod common;

use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::time::Duration;

use http::{HeaderMap, Response};
use httpdown::{Dispatch, Error, Exchange, Phase, Server};

use common::{
    Client, Journal, addr, assert_balanced, builder, listener, reply, stop, stop_elsewhere,
    wait_for_phase,
};

#[allow(
    unsafe_code,
    clippy::cast_possible_truncation,
    reason = "they stand for libc's, and pass on what they get"
)]
mod disk {
    use std::ffi::{c_int, c_void};
    use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};

    use crate::common::Gate;

    /// Nothing is in the kernel's memory.
    pub(super) static COLD: AtomicBool = AtomicBool::new(false);
    /// How many reads have come to the disk.
    pub(super) static READS: AtomicU32 = AtomicU32::new(0);
    /// What a read fails with.
    pub(super) static ERROR: AtomicI32 = AtomicI32::new(0);
    /// What a read waits for.
    pub(super) static GATE: std::sync::Mutex<Option<Gate>> = std::sync::Mutex::new(None);

    fn fail(error: i32) -> isize {
        // SAFETY: the calling thread's own.
        unsafe { *libc::__errno_location() = error };
        -1
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn preadv2(
        fd: c_int,
        into: *const libc::iovec,
        count: c_int,
        offset: libc::off_t,
        flags: c_int,
    ) -> isize {
        if COLD.load(Ordering::SeqCst) {
            return fail(libc::EAGAIN);
        }
        // SAFETY: the caller's promise to libc.
        unsafe { libc::syscall(libc::SYS_preadv2, fd, into, count, offset, 0, flags) as isize }
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn pread64(fd: c_int, into: *mut c_void, len: usize, offset: i64) -> isize {
        if COLD.load(Ordering::SeqCst) {
            READS.fetch_add(1, Ordering::SeqCst);
            let gate = GATE.lock().unwrap().clone();
            if let Some(gate) = gate {
                gate.pass();
            }
            match ERROR.load(Ordering::SeqCst) {
                0 => {}
                error => return fail(error),
            }
        }
        // SAFETY: the caller's promise to libc.
        unsafe { libc::syscall(libc::SYS_pread64, fd, into, len, offset) as isize }
    }
}

use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::Gate;

/// The disk is one, and so are those who use it.
static ALONE: Mutex<()> = Mutex::new(());

/// A disk that is slow until the gate is opened, and ends with this value.
struct Slow(
    Gate,
    #[allow(dead_code, reason = "held")] MutexGuard<'static, ()>,
);

impl Slow {
    fn new() -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let gate = Gate::new();
        disk::READS.store(0, Ordering::SeqCst);
        *disk::GATE.lock().unwrap() = Some(gate.clone());
        disk::COLD.store(true, Ordering::SeqCst);
        Self(gate, alone)
    }

    /// Waits until so many reads have come.
    #[allow(clippy::unused_self, reason = "there is one while it is slow")]
    fn wait_for_reads(&self, count: u32) {
        let deadline = std::time::Instant::now() + common::LONG;
        while disk::READS.load(Ordering::SeqCst) < count {
            assert!(std::time::Instant::now() < deadline);
            std::thread::yield_now();
        }
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        disk::COLD.store(false, Ordering::SeqCst);
        disk::ERROR.store(0, Ordering::SeqCst);
        self.0.open();
    }
}

const SIZE: usize = 1_000_000;

/// A server with a single I/O thread, which sends a file, or says hello.
fn serve(builder: httpdown::Builder) -> Server {
    let name = format!("httpdown-disk-{}", std::process::id());
    let path = std::env::temp_dir().join(name);
    fs::write(&path, vec![b'x'; SIZE]).unwrap();
    let file = File::open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let handler = move |exchange: Exchange| {
        let _ = match exchange.uri().path() {
            "/file" => exchange.reply_fd(Response::new(()), file.try_clone().unwrap(), ..),
            "/range" => exchange.reply_open_file(file.try_clone().unwrap(), HeaderMap::new()),
            _ => reply(exchange, "hello"),
        };
    };
    builder
        .io_threads(NonZeroUsize::MIN)
        .handle(listener(), Dispatch::Inline, handler)
        .unwrap()
}

#[test]
fn a_slow_disk_holds_up_nobody_else() {
    let slow = Slow::new();
    let server = serve(builder());
    // More than may wait for the disk at once.
    let mut waiting: Vec<_> = (0..40)
        .map(|_| Client::get(addr(&server), "/file"))
        .collect();
    let heads: Vec<_> = waiting
        .iter_mut()
        .map(|client| client.try_head().unwrap())
        .collect();
    slow.wait_for_reads(32);
    assert_eq!(Client::get(addr(&server), "/").answer().text(), "hello");
    assert_eq!(disk::READS.load(Ordering::SeqCst), 32);
    slow.0.open();
    for (client, head) in waiting.iter_mut().zip(&heads) {
        assert_eq!(client.try_body(head).unwrap().len(), SIZE);
    }
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!(report.served, 41, "{report:?}");
}

#[test]
fn a_head_does_not_wait_for_a_slow_disk() {
    let slow = Slow::new();
    let server = serve(builder());
    let mut client = Client::connect(addr(&server));
    // What follows could be answered at once, but for the file before it.
    client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    client.send(
        ["GET /file HTTP/1.1", "GET / HTTP/1.1", "GET / HTTP/1.1"]
            .map(|line| format!("{line}\r\nHost: test\r\n\r\n"))
            .concat(),
    );
    assert_eq!(client.answer().text(), "hello");
    let head = client.try_head().unwrap();
    slow.wait_for_reads(1);
    slow.0.open();
    assert_eq!(client.try_body(&head).unwrap().len(), SIZE);
    assert_eq!(client.answer().text(), "hello");
    assert_eq!(client.answer().text(), "hello");
    assert_balanced(&stop(&server).unwrap());
}

#[test]
fn a_client_that_leaves_is_noticed_while_the_disk_is_slow() {
    let slow = Slow::new();
    let server = serve(builder());
    let mut client = Client::get(addr(&server), "/file");
    client.try_head().unwrap();
    slow.wait_for_reads(1);
    client.reset();
    common::wait_for_report(&server, |report| report.conns_gone == 1);
    slow.0.open();
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!(report.gone, 1, "{report:?}");
}

#[test]
fn a_stop_waits_for_a_slow_disk() {
    let slow = Slow::new();
    let server = serve(builder());
    let mut client = Client::connect(addr(&server));
    client.send("GET /range HTTP/1.1\r\nHost: test\r\nRange: bytes=5-500004\r\n\r\n");
    let head = client.try_head().unwrap();
    assert_eq!(head.status, 206);
    slow.wait_for_reads(1);
    let stopping = stop_elsewhere(&server);
    wait_for_phase(&server, Phase::Draining);
    slow.0.open();
    assert_eq!(client.try_body(&head).unwrap().len(), 500_000);
    let report = stopping.join().unwrap().unwrap();
    assert_balanced(&report);
    assert_eq!(report.served, 1, "{report:?}");
}

#[test]
fn a_disk_that_fails_cuts_the_answer() {
    let slow = Slow::new();
    let lines = Journal::new();
    let written = lines.clone();
    let server = serve(builder().on_log(move |_, line: &str| written.write(line.to_owned())));
    let mut client = Client::get(addr(&server), "/file");
    let head = client.try_head().unwrap();
    disk::ERROR.store(libc::EIO, Ordering::SeqCst);
    slow.0.open();
    assert!(client.try_body(&head).is_err());
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!(report.failed, 1, "{report:?}");
    lines.wait_for(|line| line.contains("the answer to /file was cut: its file cannot be read"));
}

#[test]
fn a_kill_does_not_wait_for_a_disk_that_hangs() {
    let slow = Slow::new();
    let server = serve(builder().kill_timeout(Duration::from_millis(10)));
    let mut client = Client::get(addr(&server), "/file");
    let head = client.try_head().unwrap();
    slow.wait_for_reads(1);
    server.kill_begin();
    assert!(client.try_body(&head).is_err());
    // A thread was left behind.
    let result = common::wait(&server);
    assert!(matches!(result, Err(Error::TimedOut(_))), "{result:?}");
    let report = server.report();
    assert_balanced(&report);
    assert_eq!((report.killed, report.abandoned), (1, 0), "{report:?}");
}
