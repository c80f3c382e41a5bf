//! `lossmeter` finds requests that an HTTP/1.1 server loses when it is stopped by a signal under load.
//!
//! It starts the server, drives clients in one of several modes (`modes.rs`), sends the signal at a random moment, lets the
//! clients go on until they are refused, and says of each request what became of it. It knows no server in particular:
//! all it needs is a command line with a place for an address. Servers that tell at their end what they have counted
//! have their books compared with the clients' (`tally.rs`).
//!
//! The clients are written on bare sockets, because an HTTP library hides what matters here: whether the connection
//! was still open when the request was written, whether it ended with a FIN or with a reset, before or within an
//! answer. `lossmeter --help` defines the classes.
//!
//! ```text
//! cargo run --release --example lossmeter -- 'build/hello -addr {addr}'
//! ```

mod anybody;
mod args;
mod bars;
mod chart;
mod client;
mod http;
mod lab;
mod modes;
mod net;
mod output;
mod peer;
mod server;
mod stream;
mod sys;
mod tally;
mod tls;
mod trial;

use std::error::Error;
use std::fs;
use std::io::{IsTerminal, Write, stderr};
use std::process::ExitCode;
use std::sync::Arc;

use fastrand::Rng;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use args::{Options, Task};
use net::Net;
use output::Row;
use trial::{Problem, Stop};

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> ExitCode {
    match serve_or_measure() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("lossmeter: {error}");
            ExitCode::from(2)
        }
    }
}

fn serve_or_measure() -> Result<bool, Failure> {
    let task = args::parse(std::env::args_os().skip(1)).map_err(|error| error.to_string())?;
    let way = match &task {
        Task::Measure(options) => options.way,
        _ => None,
    };
    let net = Net::new(way)?;
    let runtime = net.runtime()?;
    match task {
        Task::Help => {
            print!("{}", args::help());
            Ok(true)
        }
        Task::ServePeer(addr) => {
            runtime.block_on(peer::serve(&addr))?;
            Ok(true)
        }
        Task::Measure(options) => {
            let measuring = measure(options.into(), net.into());
            // On a thread of the runtime: those are where the clients are.
            runtime.block_on(async { runtime.spawn(or_interrupted(measuring)).await? })
        }
    }
}

/// Ends early when the user asks for it; servers that run are killed when their tasks are dropped.
async fn or_interrupted(
    measuring: impl Future<Output = Result<bool, Failure>>,
) -> Result<bool, Failure> {
    let (mut int, mut term) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    tokio::select! {
        result = measuring => result,
        _ = int.recv() => Err("interrupted".into()),
        _ = term.recv() => Err("terminated".into()),
    }
}

/// Makes all stops, and tells the results. Whether there is nothing to complain of.
async fn measure(options: Arc<Options>, net: Arc<Net>) -> Result<bool, Failure> {
    eprintln!("seed {}", options.seed);
    let rows = stop_all(&options, net).await?;
    print!("{}", output::table(&rows));
    if let Some(path) = &options.json {
        fs::write(path, format!("{:#}\n", output::to_json(&options, &rows)))?;
    }
    if let Some(path) = &options.svg {
        fs::write(path, chart::chart(&rows))?;
    }
    Ok(rows.iter().all(Row::is_good))
}

/// Makes all stops: mode by mode, and within a mode the servers take turns.
async fn stop_all(options: &Arc<Options>, net: Arc<Net>) -> Result<Vec<Row>, Failure> {
    let servers = options.servers.len();
    let mut rows: Vec<_> = options
        .modes
        .iter()
        .flat_map(|mode| {
            options
                .servers
                .iter()
                .map(|server| Row::new(&server.name, mode))
        })
        .collect();
    let mut progress = Progress::new(options.modes.len() * servers * options.stops as usize);
    let slots = Arc::new(Semaphore::new(options.jobs));
    let mut running = JoinSet::new();
    for (m, &mode) in options.modes.iter().enumerate() {
        for stop in 0..options.stops {
            for server in 0..servers {
                let slot = loop {
                    tokio::select! {
                        biased;
                        Some(done) = running.join_next() => enter(done?, &mut rows, &mut progress, options)?,
                        slot = Arc::clone(&slots).acquire_owned() => break slot?,
                    }
                };
                let row = m * servers + server;
                if rows[row].skipped.is_some() {
                    continue;
                }
                // The same for each server, and for a run with fewer modes.
                let mut seeds = Rng::with_seed(options.seed ^ u64::from(stop) << 32);
                let random = Rng::with_seed(seeds.u64(..));
                let (options, net) = (Arc::clone(options), Arc::clone(&net));
                running.spawn(async move {
                    let spec = &options.servers[server];
                    let result = trial::run(&options, &net, spec, mode, random).await;
                    drop(slot);
                    (row, stop, result)
                });
            }
        }
    }
    while let Some(done) = running.join_next().await {
        enter(done?, &mut rows, &mut progress, options)?;
    }
    progress.end();
    Ok(rows)
}

/// Enters a stop into its row, and shows the progress.
fn enter(
    (row, number, result): (usize, u32, Result<Stop, Problem>),
    rows: &mut [Row],
    progress: &mut Progress,
    options: &Options,
) -> Result<(), Failure> {
    let row = &mut rows[row];
    let what = format!("{} {} #{number}", row.server, row.mode.name);
    match result {
        Ok(stop) => {
            let losses = stop.tally.losses();
            let losses = losses.map(|(outcome, count)| format!(", {count} {}", outcome.name()));
            let differences = stop.ledger.iter().flatten();
            let differences = differences.map(|difference| format!(", {difference}"));
            let complaints: Vec<_> = losses.chain(differences).collect();
            if options.verbose || !complaints.is_empty() {
                let requests = stop.tally.requests();
                let lost = stop.tally.lost();
                let complaints = complaints.concat();
                progress.say(&format!(
                    "{what}: {requests} requests, {lost} lost{complaints}"
                ));
            }
            progress.step(&what);
            row.add(stop);
        }
        Err(Problem::Unsupported(why)) => row.skipped = Some(why),
        Err(Problem::Broken(why)) => return Err(format!("{what}: {why}").into()),
    }
    Ok(())
}

/// Tells on stderr how far the run has come: in one line that changes, if that is a terminal.
#[derive(Debug)]
struct Progress {
    done: usize,
    all: usize,
    changes: bool,
}

impl Progress {
    fn new(all: usize) -> Self {
        Self {
            done: 0,
            all,
            changes: stderr().is_terminal(),
        }
    }

    fn step(&mut self, what: &str) {
        self.done += 1;
        if self.changes {
            eprint!("\r\x1b[K[{}/{}] {what}", self.done, self.all);
            let _ = stderr().flush();
        } else if self.done.is_multiple_of(50) {
            eprintln!("[{}/{}] {what}", self.done, self.all);
        }
    }

    fn say(&self, line: &str) {
        let clear = if self.changes { "\r\x1b[K" } else { "" };
        eprintln!("{clear}{line}");
    }

    fn end(&self) {
        if self.changes {
            eprint!("\r\x1b[K");
        }
    }
}
