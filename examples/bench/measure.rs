//! What is measured.

use std::fs::{self, File};
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::Result;
use crate::client::{Clients, Lives, Load, own_cpu, percentile};
use crate::count::Tool;
use crate::paced;
use crate::process::{Cpus, Server};
use crate::servers::{SERVERS, Spec};
use crate::tls::{CERTIFICATE, Sessions, Tls};
use crate::transfer::{BODY, Transfer};

/// A figure's name and value.
pub(crate) type Figure = (&'static str, f64);

/// Something to measure.
#[derive(Debug)]
pub(crate) struct Measurement {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// Of one server, once.
    pub(crate) run: fn(&Bench, &Spec) -> Result<Vec<Figure>>,
    /// For which servers it makes sense.
    pub(crate) applies: fn(&Spec) -> bool,
    /// The program or the file that it needs.
    pub(crate) needs: Option<&'static str>,
    pub(crate) turns: Turns,
}

/// How servers take turns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Turns {
    /// It is exact: once each.
    Once,
    /// It is noisy: one after the other, and again.
    Rounds,
    /// It is mostly waiting: all at the same time.
    Together,
}

/// What measurements share.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) cpus: Cpus,
    /// For 1, a load takes about a second.
    pub(crate) scale: f64,
}

pub(crate) static MEASUREMENTS: &[Measurement] = &[
    Measurement {
        name: "instructions",
        about: "user instructions a request, sequential and 16 in a write, on one connection (valgrind)",
        run: |_, spec| {
            Ok(vec![
                (
                    "instructions",
                    Tool::Callgrind.per_request(spec, Load::SEQUENTIAL)?,
                ),
                (
                    "instructions_pipelined",
                    Tool::Callgrind.per_request(spec, Load::PIPELINED)?,
                ),
            ])
        },
        applies: |spec| spec.in_valgrind,
        needs: Some(Tool::Callgrind.program()),
        turns: Turns::Once,
    },
    Measurement {
        name: "syscalls",
        about: "system calls a request, in the same two ways (strace)",
        run: |_, spec| {
            Ok(vec![
                (
                    "syscalls",
                    Tool::Strace.per_request(spec, Load::SEQUENTIAL)?,
                ),
                (
                    "syscalls_pipelined",
                    Tool::Strace.per_request(spec, Load::PIPELINED)?,
                ),
            ])
        },
        applies: |_| true,
        needs: Some(Tool::Strace.program()),
        turns: Turns::Once,
    },
    timed(
        "ka64",
        "CPU a request: 64 connections, one request after the other",
        |bench, spec| cpu(bench, spec, Load::keep_alive(64, 1), 60_000.0, KA64),
    ),
    timed(
        "pipe16",
        "CPU a request: 64 connections, 16 requests in a write",
        |bench, spec| cpu(bench, spec, Load::keep_alive(64, 16), 200_000.0, PIPE16),
    ),
    timed(
        "new",
        "CPU a request: a connection for each, which the client closes",
        |bench, spec| {
            cpu(
                bench,
                spec,
                Load::one_request(64, Lives::Short),
                12_000.0,
                NEW,
            )
        },
    ),
    timed(
        "close",
        "CPU a request: a connection for each, which the server closes",
        |bench, spec| {
            cpu(
                bench,
                spec,
                Load::one_request(64, Lives::Closed),
                12_000.0,
                CLOSE,
            )
        },
    ),
    Measurement {
        applies: |spec| spec.has_threads(),
        ..timed(
            "threads",
            "CPU a request and requests a second, pipelined: one I/O thread and two",
            threads,
        )
    },
    Measurement {
        applies: |spec| spec.sleeps,
        ..timed(
            "blocking",
            "latency at 2,000 requests a second, and when every hundredth handler takes 100 ms",
            blocking,
        )
    },
    timed(
        "start",
        "from the start of the process to its first answer",
        |bench, spec| {
            bench.cpus.use_all()?;
            Ok(vec![("start_ms", spec.start()?.start.as_secs_f64() * 1e3)])
        },
    ),
    Measurement {
        name: "idle",
        about: "what an idle server has in memory, and how often it wakes: without connections, and with 100",
        run: idle,
        applies: |_| true,
        needs: None,
        turns: Turns::Together,
    },
    Measurement {
        name: "connections",
        about: "memory of an idle connection, of 10,000",
        run: connections,
        applies: |spec| spec.takes_many,
        needs: None,
        turns: Turns::Once,
    },
    Measurement {
        name: "slowly",
        about: "memory of an idle connection, of 1,000 that come little by little, when it has been idle for seconds",
        run: connections_slowly,
        applies: |spec| spec.takes_many,
        needs: None,
        turns: Turns::Together,
    },
    tls(
        "tls-ka64",
        "TLS, CPU a request: 64 connections, one request after the other",
        |bench, spec| {
            bench.cpus.share_one()?;
            let figures = tls_load(spec, Load::keep_alive(64, 1), bench.scaled(40_000.0));
            bench.cpus.use_all()?;
            Ok(TLS_KA64.into_iter().zip(figures?).collect())
        },
    ),
    tls(
        "tls-handshakes",
        "TLS, CPU a full handshake and a request, and how many a second, 64 at a time",
        |bench, spec| handshakes(bench, spec, Sessions::Forget, 4_000.0, TLS_HANDSHAKES),
    ),
    tls(
        "tls-resumed",
        "the same when each handshake resumes a session, by the ticket of an earlier one",
        |bench, spec| handshakes(bench, spec, Sessions::Resume, 6_000.0, TLS_RESUMED),
    ),
    Measurement {
        turns: Turns::Once,
        ..tls(
            "tls-idle",
            "TLS, memory of an idle connection, of 10,000, when it has been idle for seconds",
            tls_idle,
        )
    },
    Measurement {
        applies: Spec::sends_bodies,
        ..tls(
            "tls-down",
            "TLS, CPU and time for 1 GiB from the server, on one connection, 64 MiB in an answer",
            |bench, spec| transfer(bench, spec, Transfer::download, TLS_DOWN),
        )
    },
    Measurement {
        applies: Spec::reads_bodies,
        ..tls(
            "tls-up",
            "the same to the server, 64 MiB in a request",
            |bench, spec| transfer(bench, spec, Transfer::upload, TLS_UP),
        )
    },
];

const fn timed(
    name: &'static str,
    about: &'static str,
    run: fn(&Bench, &Spec) -> Result<Vec<Figure>>,
) -> Measurement {
    Measurement {
        name,
        about,
        run,
        applies: |_| true,
        needs: None,
        turns: Turns::Rounds,
    }
}

const fn tls(
    name: &'static str,
    about: &'static str,
    run: fn(&Bench, &Spec) -> Result<Vec<Figure>>,
) -> Measurement {
    Measurement {
        applies: Spec::has_tls,
        needs: Some(CERTIFICATE),
        ..timed(name, about, run)
    }
}

/// The figures' names in a scenario: the server's CPU time for a request in microseconds, requests a second, the
/// median and the 99th percentile of the latency in microseconds, and the clients' CPU time for a request.
type Names = [&'static str; 5];

const KA64: Names = [
    "ka64",
    "ka64_per_s",
    "ka64_p50_us",
    "ka64_p99_us",
    "ka64_client",
];
const PIPE16: Names = [
    "pipe16",
    "pipe16_per_s",
    "pipe16_p50_us",
    "pipe16_p99_us",
    "pipe16_client",
];
const NEW: Names = ["new", "new_per_s", "new_p50_us", "new_p99_us", "new_client"];
const CLOSE: Names = [
    "close",
    "close_per_s",
    "close_p50_us",
    "close_p99_us",
    "close_client",
];
const TLS_KA64: Names = [
    "tls_ka64",
    "tls_ka64_per_s",
    "tls_ka64_p50_us",
    "tls_ka64_p99_us",
    "tls_ka64_client",
];
const TLS_HANDSHAKES: Names = [
    "tls_handshakes",
    "tls_handshakes_per_s",
    "tls_handshakes_p50_us",
    "tls_handshakes_p99_us",
    "tls_handshakes_client",
];
const TLS_RESUMED: Names = [
    "tls_resumed",
    "tls_resumed_per_s",
    "tls_resumed_p50_us",
    "tls_resumed_p99_us",
    "tls_resumed_client",
];

/// Server and clients on one core.
fn cpu(bench: &Bench, spec: &Spec, load: Load, requests: f64, names: Names) -> Result<Vec<Figure>> {
    bench.cpus.share_one()?;
    let figures = plain_load(spec, load, bench.scaled(requests), 1);
    bench.cpus.use_all()?;
    Ok(names.into_iter().zip(figures?).collect())
}

fn plain_load(spec: &Spec, load: Load, requests: usize, threads: usize) -> Result<[f64; 5]> {
    let server = spec.start_with(&[], threads)?;
    let mut clients = Clients::new(server.addr, load)?;
    warm_up(&mut clients, requests)?;
    under_load(&server, &mut clients, requests)
}

fn tls_load(spec: &Spec, load: Load, requests: usize) -> Result<[f64; 5]> {
    let server = spec.start_tls()?;
    let tls = Tls::new(Sessions::Forget)?;
    let mut clients = Clients::with_tls(&tls, server.addr, load)?;
    warm_up(&mut clients, requests)?;
    under_load(&server, &mut clients, requests)
}

/// Memory is got, threads are started, branches are known, each client has had an answer.
fn warm_up(clients: &mut Clients, requests: usize) -> Result<()> {
    clients.ask(requests / 20 + clients.count())?;
    Ok(())
}

fn under_load(server: &Server, clients: &mut Clients, requests: usize) -> Result<[f64; 5]> {
    let before = server.cpu()?;
    let outcome = clients.ask(requests)?;
    let cpu = server.cpu()?.saturating_sub(before);
    if cpu.is_zero() {
        return Err("the kernel does not tell the CPU time of threads (schedstat)".into());
    }
    let count = outcome.latencies.len() as f64;
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    Ok([
        micros(cpu) / count,
        count / outcome.elapsed.as_secs_f64(),
        micros(percentile(&outcome.latencies, 0.5)),
        micros(percentile(&outcome.latencies, 0.99)),
        micros(outcome.cpu) / count,
    ])
}

/// On all cores, the clients too: two threads cannot have a core each where there are but two. But a server that takes
/// no more CPU time for a request with two threads than with one has nothing that holds it back, and what the clients
/// take is little, pipelined.
fn threads(bench: &Bench, spec: &Spec) -> Result<Vec<Figure>> {
    const REQUESTS: f64 = 200_000.0;
    let load = Load::keep_alive(64, 16);
    let one = plain_load(spec, load, bench.scaled(REQUESTS), 1)?;
    let two = plain_load(spec, load, bench.scaled(REQUESTS), 2)?;
    Ok(vec![
        ("threads_1", one[0]),
        ("threads_1_per_s", one[1]),
        ("threads_2", two[0]),
        ("threads_2_per_s", two[1]),
    ])
}

fn blocking(bench: &Bench, spec: &Spec) -> Result<Vec<Figure>> {
    let server = spec.start()?;
    let requests = bench.scaled(4_000.0);
    paced::ask(server.addr, requests / 10, None)?;
    let without = paced::ask(server.addr, requests, None)?;
    let with = paced::ask(server.addr, requests, Some("/sleep/100"))?;
    let micros = |times: &[Duration], part| percentile(times, part).as_secs_f64() * 1e6;
    Ok(vec![
        ("blocking_p50_without", micros(&without, 0.5)),
        ("blocking_p50_with", micros(&with, 0.5)),
        ("blocking_p99_without", micros(&without, 0.99)),
        ("blocking_p99_with", micros(&with, 0.99)),
    ])
}

fn idle(_: &Bench, spec: &Spec) -> Result<Vec<Figure>> {
    const SETTLES: Duration = Duration::from_secs(1);
    const WATCHED: Duration = Duration::from_secs(5);
    let server = spec.start()?;
    let sleeps_a_second = || -> Result<f64> {
        thread::sleep(SETTLES);
        let before = server.sleeps()?;
        thread::sleep(WATCHED);
        Ok((server.sleeps()? - before) as f64 / WATCHED.as_secs_f64())
    };
    let without = sleeps_a_second()?;
    let memory = server.memory()?;
    let mut clients = Clients::new(server.addr, Load::keep_alive(100, 1))?;
    clients.ask(100)?;
    let with = sleeps_a_second()?;
    Ok(vec![
        ("idle_resident_kib", memory.resident as f64),
        ("idle_private_kib", memory.private as f64),
        ("idle_wakes_0", without),
        ("idle_wakes_100", with),
    ])
}

/// After this time, a server has given back what it will.
const GIVES_BACK: Duration = Duration::from_millis(2500);

/// Each connection has had one request.
fn connections(bench: &Bench, spec: &Spec) -> Result<Vec<Figure>> {
    let count = bench.scaled(10_000.0).min(most_connections());
    let server = spec.start()?;
    let before = server.memory()?;
    let mut clients = Clients::new(server.addr, Load::keep_alive(count, 1))?;
    clients.ask(count)?;
    let memory = server.memory()?;
    let bytes = memory.private.saturating_sub(before.private) * 1024;
    Ok(vec![("bytes_per_connection", bytes as f64 / count as f64)])
}

/// A server may give back what an idle connection does not need. Memory that all of them needed at first would still be
/// the process's; what the first ones have given back, the next ones use.
fn connections_slowly(_: &Bench, spec: &Spec) -> Result<Vec<Figure>> {
    const BATCHES: usize = 8;
    // All servers are there at the same time.
    let batch = (most_connections() / SERVERS.len() / BATCHES).min(125);
    let server = spec.start()?;
    let (mut clients, mut memory) = (Vec::new(), Vec::new());
    for _ in 0..BATCHES {
        let mut some = Clients::new(server.addr, Load::keep_alive(batch, 1))?;
        some.ask(batch)?;
        clients.push(some);
        thread::sleep(GIVES_BACK);
        memory.push(server.memory()?.private);
    }
    let bytes = memory[BATCHES - 1].saturating_sub(memory[0]) * 1024;
    let count = (BATCHES - 1) * batch;
    Ok(vec![(
        "bytes_per_connection_slowly",
        bytes as f64 / count as f64,
    )])
}

/// Server and clients on a core each. If the clients' part of a handshake is less work than the server's, only the
/// server limits how many come in a second.
fn handshakes(
    bench: &Bench,
    spec: &Spec,
    sessions: Sessions,
    count: f64,
    names: Names,
) -> Result<Vec<Figure>> {
    let count = bench.scaled(count);
    let figures = apart(bench, spec, |server| {
        let tls = Tls::new(sessions)?;
        let load = Load::one_request(64, Lives::Short);
        let mut clients = Clients::with_tls(&tls, server.addr, load)?;
        // The first handshakes that count use the tickets of these.
        warm_up(&mut clients, count)?;
        let before = tls.resumed();
        let figures = under_load(server, &mut clients, count)?;
        let resumed = tls.resumed() - before;
        if sessions == Sessions::Resume && resumed != count {
            return Err(format!("{resumed} of {count} handshakes have resumed a session").into());
        }
        Ok(figures)
    })?;
    Ok(names.into_iter().zip(figures).collect())
}

/// Each connection has had one request. A hundred come at a time, because thousands of handshakes that are under way
/// together need memory of their own, and each of them must be over in time.
fn tls_idle(bench: &Bench, spec: &Spec) -> Result<Vec<Figure>> {
    const AT_A_TIME: usize = 100;
    let count = bench.scaled(10_000.0).min(most_connections());
    let server = spec.start_tls()?;
    let tls = Tls::new(Sessions::Forget)?;
    let before = server.memory()?;
    let mut clients = Vec::new();
    for first in (0..count).step_by(AT_A_TIME) {
        let some = AT_A_TIME.min(count - first);
        let load = Load::keep_alive(some, 1);
        let mut batch = Clients::with_tls(&tls, server.addr, load)?;
        batch.ask(some)?;
        clients.push(batch);
    }
    thread::sleep(GIVES_BACK);
    let memory = server.memory()?;
    let bytes = memory.private.saturating_sub(before.private) * 1024;
    Ok(vec![(
        "tls_bytes_per_connection",
        bytes as f64 / count as f64,
    )])
}

/// The figures' names for a direction: the server's CPU time for 1 GiB in seconds, megabytes a second, and the client's
/// CPU time for 1 GiB in seconds.
type TransferNames = [&'static str; 3];

const TLS_DOWN: TransferNames = ["tls_down", "tls_down_mb_per_s", "tls_down_client"];
const TLS_UP: TransferNames = ["tls_up", "tls_up_mb_per_s", "tls_up_client"];

/// Server and client on a core each.
fn transfer(
    bench: &Bench,
    spec: &Spec,
    run: fn(&mut Transfer, usize) -> io::Result<()>,
    names: TransferNames,
) -> Result<Vec<Figure>> {
    const GIB: f64 = (1_u64 << 30) as f64;
    let bodies = bench.scaled(GIB / BODY as f64);
    // What nginx sends; it takes no room on the disk.
    fs::create_dir_all("build/bench/bytes")?;
    File::create(format!("build/bench/bytes/{BODY}"))?.set_len(BODY as u64)?;
    let figures = apart(bench, spec, |server| {
        let mut client = Transfer::new(server.addr, &Tls::new(Sessions::Forget)?)?;
        run(&mut client, 1)?;
        let (begin, before, own) = (Instant::now(), server.cpu()?, own_cpu());
        run(&mut client, bodies)?;
        let own = own_cpu().saturating_sub(own);
        let cpu = server.cpu()?.saturating_sub(before);
        let elapsed = begin.elapsed();
        let bytes = (bodies * BODY) as f64;
        let for_a_gib = |time: Duration| time.as_secs_f64() * GIB / bytes;
        let rate = bytes / 1e6 / elapsed.as_secs_f64();
        Ok([for_a_gib(cpu), rate, for_a_gib(own)])
    })?;
    Ok(names.into_iter().zip(figures).collect())
}

/// The server has a core of its own, which the caller leaves to it meanwhile.
fn apart<T>(bench: &Bench, spec: &Spec, run: impl FnOnce(&Server) -> Result<T>) -> Result<T> {
    bench.cpus.share_one()?;
    let server = spec.start_tls();
    let result = bench.cpus.leave_one().and(server);
    let result = result.map_err(Into::into).and_then(|server| run(&server));
    bench.cpus.use_all()?;
    result
}

/// The limit of descriptors is the servers', too.
fn most_connections() -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit)
        .unwrap_or(usize::MAX)
        .saturating_sub(200)
}

/// As many descriptors as may be had, for us and the servers.
pub(crate) fn raise_limits() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    Ok(setrlimit(Resource::Nofile, raised)?)
}

impl Bench {
    fn scaled(&self, count: f64) -> usize {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a positive number, and not large"
        )]
        let count = (count * self.scale).max(1.0) as usize;
        count
    }
}
