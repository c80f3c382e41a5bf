//! What is measured.

use std::thread;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::Result;
use crate::client::{Clients, Lives, Load, percentile};
use crate::count::Tool;
use crate::paced;
use crate::process::Cpus;
use crate::servers::{SERVERS, Spec};

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
    /// The program that it needs.
    pub(crate) tool: Option<Tool>,
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
        tool: Some(Tool::Callgrind),
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
        tool: Some(Tool::Strace),
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
        tool: None,
        turns: Turns::Together,
    },
    Measurement {
        name: "connections",
        about: "memory of an idle connection, of 10,000",
        run: connections,
        applies: |spec| spec.takes_many,
        tool: None,
        turns: Turns::Once,
    },
    Measurement {
        name: "slowly",
        about: "memory of an idle connection, of 1,000 that come little by little, when it has been idle for seconds",
        run: connections_slowly,
        applies: |spec| spec.takes_many,
        tool: None,
        turns: Turns::Together,
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
        tool: None,
        turns: Turns::Rounds,
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

/// Server and clients on one core.
fn cpu(bench: &Bench, spec: &Spec, load: Load, requests: f64, names: Names) -> Result<Vec<Figure>> {
    bench.cpus.share_one()?;
    let figures = under_load(bench, spec, load, requests, 1);
    bench.cpus.use_all()?;
    Ok(names.into_iter().zip(figures?).collect())
}

fn under_load(
    bench: &Bench,
    spec: &Spec,
    load: Load,
    requests: f64,
    threads: usize,
) -> Result<[f64; 5]> {
    let requests = bench.scaled(requests);
    let server = spec.start_with(&[], threads)?;
    let mut clients = Clients::new(server.addr, load)?;
    // Memory is got, threads are started, branches are known.
    clients.ask(requests / 20 + load.connections)?;
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
    let one = under_load(bench, spec, load, REQUESTS, 1)?;
    let two = under_load(bench, spec, load, REQUESTS, 2)?;
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
    const GIVES_BACK: Duration = Duration::from_millis(2500);
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
