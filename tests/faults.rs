//! System calls that fail while a server stops, one or several of them, for good or now and then: the stop ends on time all
//! the same, and its ledger balances.
//!
//! For good they fail by a filter of system calls, which cannot be taken back, so each stop has a process of its own. Now and
//! then they fail by functions of libc's names, which are linked in its place. `HTTPDOWN_FAULTS` says how many stops there
//! are, `HTTPDOWN_FAULT_SEED` runs the one of a seed that has failed.
#![allow(clippy::unwrap_used, reason = "a test that fails panics")]

mod common;

use std::num::NonZeroUsize;
use std::process::Command;
use std::time::{Duration, Instant};

use httpdown::{Builder, Dispatch, Error, Exchange, Listeners, Server};

use common::deny::deny_everywhere;
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

fn serve(builder: Builder, listeners: impl Into<Listeners>, way: usize) -> Server {
    let handler = |exchange: Exchange| {
        let _ = reply(exchange, "hello");
    };
    let dispatch = [Dispatch::Inline, Dispatch::default()][way % 2];
    builder.handle(listeners, dispatch, handler).unwrap()
}

/// The functions that the library calls, for the library's threads.
#[allow(
    unsafe_code,
    clippy::cast_possible_truncation,
    reason = "they stand for libc's, and pass on what they get"
)]
mod shim {
    use std::cell::Cell;
    use std::ffi::{c_int, c_void};
    use std::sync::Mutex;

    /// A call that fails, some times after having succeeded for some.
    #[derive(Clone, Copy, Debug)]
    pub(super) struct Fault {
        pub(super) call: i64,
        pub(super) error: i32,
        pub(super) after: u32,
        pub(super) times: u32,
    }

    static FAULTS: Mutex<Vec<Fault>> = Mutex::new(Vec::new());

    thread_local! {
        /// A test's own thread, or a client's.
        static SPARED: Cell<bool> = const { Cell::new(false) };
    }

    pub(super) fn spare_this_thread() {
        SPARED.set(true);
    }

    pub(super) fn set(faults: &[Fault]) {
        *FAULTS.lock().unwrap() = faults.to_vec();
    }

    fn error(call: i64) -> Option<i32> {
        if SPARED.try_with(Cell::get).unwrap_or(true) {
            return None;
        }
        let mut faults = FAULTS.lock().unwrap();
        let fault = faults.iter_mut().find(|fault| fault.call == call)?;
        if fault.after > 0 {
            fault.after -= 1;
            return None;
        }
        fault.times = fault.times.checked_sub(1)?;
        Some(fault.error)
    }

    fn fail(error: i32) -> isize {
        // SAFETY: the calling thread's own.
        unsafe { *libc::__errno_location() = error };
        -1
    }

    macro_rules! shim {
        ($name:ident, $call:expr, ($($arg:ident: $type:ty),*) -> $result:ty) => {
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name($($arg: $type),*) -> $result {
                if let Some(error) = error($call) {
                    return fail(error) as $result;
                }
                // SAFETY: the caller's promise to libc.
                unsafe { libc::syscall($call, $($arg),*) as $result }
            }
        };
    }

    shim!(accept4, libc::SYS_accept4, (fd: c_int, addr: *mut c_void, len: *mut c_void, flags: c_int) -> c_int);
    shim!(epoll_ctl, libc::SYS_epoll_ctl, (set: c_int, op: c_int, fd: c_int, event: *mut c_void) -> c_int);
    shim!(setsockopt, libc::SYS_setsockopt,
        (fd: c_int, level: c_int, name: c_int, value: *const c_void, len: u32) -> c_int);
    shim!(getsockopt, libc::SYS_getsockopt,
        (fd: c_int, level: c_int, name: c_int, value: *mut c_void, len: *mut u32) -> c_int);
    shim!(socket, libc::SYS_socket, (domain: c_int, kind: c_int, protocol: c_int) -> c_int);
    shim!(connect, libc::SYS_connect, (fd: c_int, addr: *const c_void, len: u32) -> c_int);
    shim!(shutdown, libc::SYS_shutdown, (fd: c_int, how: c_int) -> c_int);
    shim!(fcntl, libc::SYS_fcntl, (fd: c_int, command: c_int, argument: usize) -> c_int);
    shim!(ioctl, libc::SYS_ioctl, (fd: c_int, request: usize, argument: usize) -> c_int);

    /// Of netlink, and of bytes that are looked at before they are read.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn recv(fd: c_int, to: *mut c_void, len: usize, flags: c_int) -> isize {
        if let Some(error) = error(libc::SYS_recvfrom) {
            return fail(error);
        }
        // SAFETY: the caller's promise to libc.
        unsafe {
            libc::recvfrom(
                fd,
                to,
                len,
                flags,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
            )
        }
    }

    /// Whatever it says, the descriptor is closed, as in the kernel.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn close(fd: c_int) -> c_int {
        // SAFETY: the caller's promise to libc.
        let result = unsafe { libc::syscall(libc::SYS_close, fd) } as c_int;
        error(libc::SYS_close).map_or(result, |error| fail(error) as c_int)
    }
}

/// What happens in every stop here, with faults from shortly before it on. What it returns says whether those
/// have been answered who had sent a part of a request, and who connected just then.
fn stop_with_faults(random: &mut fastrand::Rng, arm: impl FnOnce()) -> impl FnOnce() -> bool {
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
    common::wait_for_report(&server, |report| {
        (report.conns_new, report.conns_active, report.conns_idle) == (1, 1, 1)
    });
    arm();
    let late = Client::try_connect(addr(&server)).and_then(|mut late| {
        late.try_send("GET / HTTP/1.1\r\nHost: test\r\n\r\n")?;
        Ok(late)
    });
    let began = Instant::now();
    server.stop_begin();
    let sent = under_way.try_send(": test\r\n\r\n");
    let clients = move || {
        let is_answered = sent.and_then(|()| under_way.try_answer()).is_ok();
        is_answered && late.and_then(|mut late| late.try_answer()).is_ok()
    };
    let result = server.wait_blocking(Some(began + LONG / 2));
    assert!(!matches!(result, Err(Error::WouldBlock)), "{server:?}");
    // Stop, kill, a second for threads, and much for a busy machine.
    assert!(began.elapsed() < LONG / 5, "{:?}", began.elapsed());
    assert_balanced(&server.report());
    drop((answered, idle));
    clients
}

/// One stop, in this process.
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
    println!("seed {seed}: {faults:?}");
    // Its clients may not be able to find out: their system calls fail, too.
    drop(stop_with_faults(&mut random, || {
        for ((_, call), (_, error)) in &faults {
            deny_everywhere(*call, *error);
        }
    }));
}

/// How many stops, and the seed of the first.
fn stops() -> std::ops::Range<u64> {
    if let Some(seed) = std::env::var_os(SEED) {
        let seed = seed.to_str().unwrap().parse().unwrap();
        return seed..seed + 1;
    }
    let count = std::env::var("HTTPDOWN_FAULTS").map_or(100, |text| text.parse().unwrap());
    let first = fastrand::u64(..1 << 32);
    first..first + count
}

#[test]
fn stops_end_and_balance_whatever_system_calls_fail() {
    if std::env::var_os(SEED).is_some() {
        stops().for_each(one_stop);
        return;
    }
    shim::spare_this_thread();
    for seed in stops() {
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

#[test]
fn stops_end_and_balance_whatever_system_calls_fail_now_and_then() {
    shim::spare_this_thread();
    for seed in stops() {
        let mut random = fastrand::Rng::with_seed(seed);
        let faults: Vec<_> = (0..random.usize(1..=3))
            .map(|_| {
                let (_, call) = random.choice(CALLS).unwrap();
                let (_, error) = random.choice(ERRORS).unwrap();
                shim::Fault {
                    call,
                    error,
                    after: random.u32(0..6),
                    times: random.u32(1..4),
                }
            })
            .collect();
        println!("seed {seed}: {faults:?}");
        let are_answered = stop_with_faults(&mut random, || shim::set(&faults));
        shim::set(&[]);
        // Who is connected is accepted all the same, a little later.
        if faults.iter().all(|fault| fault.call == libc::SYS_accept4) {
            assert!(are_answered(), "seed {seed}: {faults:?}");
        }
    }
}
