//! `lossmeter` finds requests that an HTTP/1.1 server loses when it is stopped by a signal under load.
//!
//! It starts the server, drives clients in one of several modes (`modes.rs`), sends the signal at a random moment, lets the
//! clients go on until they are refused, and says of each request what became of it. It knows no server in particular:
//! all it needs is a command line with a place for an address. Servers that tell at their end what they have counted
//! have their books compared with the clients' (`tally.rs`). With `--restart` it restarts the server instead
//! (`restart.rs`), and nobody may be refused.
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
mod process;
mod restart;
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
use trial::{Problem, Trial};

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
            let restarts = options.restarts.is_some();
            if restarts {
                process::adopt_orphans()?;
            }
            let measuring = measure(options.into(), net.into());
            // On a thread of the runtime: those are where the clients are.
            let result =
                runtime.block_on(async { runtime.spawn(or_interrupted(measuring)).await? });
            drop(runtime);
            if restarts {
                process::kill_survivors();
            }
            result
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

/// Makes all stops or restarts, and tells the results. Whether there is nothing to complain of.
async fn measure(options: Arc<Options>, net: Arc<Net>) -> Result<bool, Failure> {
    eprintln!("seed {}", options.seed);
    let rows = try_all(&options, net).await?;
    print!("{}", output::table(options.event(), &rows));
    if let Some(path) = &options.json {
        fs::write(path, format!("{:#}\n", output::to_json(&options, &rows)))?;
    }
    if let Some(path) = &options.svg {
        fs::write(path, chart::chart(options.event(), &rows))?;
    }
    Ok(rows.iter().all(Row::is_good))
}

/// Makes all stops or restarts: mode by mode, and within a mode the servers take turns. The restarts of a server follow
/// each other.
async fn try_all(options: &Arc<Options>, net: Arc<Net>) -> Result<Vec<Row>, Failure> {
    let servers = options.servers.len();
    let mut rows: Vec<_> = options
        .modes
        .iter()
        .flat_map(|mode| {
            options
                .servers
                .iter()
                .map(|server| Row::new(options.event(), &server.name, mode))
        })
        .collect();
    let each = options.restarts.unwrap_or(options.stops) as usize;
    let mut progress = Progress::new(options.modes.len() * servers * each);
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

/// Enters a stop, or the restarts of a server, into its row, and shows the progress.
fn enter(
    (row, number, result): (usize, u32, Result<Vec<Trial>, Problem>),
    rows: &mut [Row],
    progress: &mut Progress,
    options: &Options,
) -> Result<(), Failure> {
    let row = &mut rows[row];
    let what = format!("{} {} #", row.server, row.mode.name);
    match result {
        Ok(trials) => {
            for (number, trial) in (number..).zip(trials) {
                let what = format!("{what}{number}");
                report(&what, &trial, progress, options);
                progress.step(&what);
                row.add(trial);
            }
        }
        Err(Problem::Unsupported(why)) => row.skipped = Some(why),
        Err(Problem::Broken(why)) => return Err(format!("{what}{number}: {why}").into()),
    }
    Ok(())
}

/// Says what there is to complain of.
fn report(what: &str, trial: &Trial, progress: &Progress, options: &Options) {
    let losses = trial.tally.losses();
    let losses = losses.map(|(outcome, count)| format!(", {count} {}", outcome.name()));
    let differences = trial.ledger.iter().flatten();
    let failed = trial.status.iter().filter(|_| trial.time.is_none());
    let others = differences.chain(failed).map(|text| format!(", {text}"));
    let complaints: Vec<_> = losses.chain(others).collect();
    if options.verbose || !complaints.is_empty() {
        let requests = trial.tally.requests();
        let lost = trial.tally.lost();
        let complaints = complaints.concat();
        let time = trial.time.filter(|_| options.verbose);
        let time = time.map(|time| format!(" in {} ms", time.as_millis()));
        let time = time.unwrap_or_default();
        progress.say(&format!(
            "{what}{time}: {requests} requests, {lost} lost{complaints}"
        ));
    }
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
