//! Servers that run until a signal.

use std::cmp::Reverse;
use std::io;
use std::slice;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::error::{Error, Result};
use crate::events::LogLevel;
use crate::orders::Order;
use crate::phase::Phase;
use crate::process::{self, HangupWatch, RestartWatch, RunSignals, SignalWatch};
use crate::report::Report;
use crate::restart::{self, Restart};
use crate::shared::Shared;
use crate::threads;

use super::Server;

/// Catches SIGTERM and SIGINT, from before a server starts, so that no signal is missed. When this value is dropped,
/// the signals do again what they did before. In a child that is forked meanwhile, they do so at once, and no server
/// can be started there ([`Error::Forked`]): a daemon forks first.
///
/// ```no_run
/// # fn serve() -> httpdown::Result<httpdown::Server> { unimplemented!() }
/// # fn main() -> httpdown::Result<()> {
/// let signals = httpdown::Signals::catch()?;
/// let server = serve()?;
/// println!("serving");
/// let report = signals.run(&server)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Signals(RunSignals);

impl Signals {
    /// Catches the signals. Only one server, or group of servers, can be run by signals in a process.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the signals are caught already; [`Error::Forked`].
    pub fn catch() -> Result<Self> {
        if process::forked() {
            return Err(Error::Forked);
        }
        let signals = RunSignals::catch().map_err(|error| Error::io("sigaction", error))?;
        let busy = || Error::Unsupported("another run is under way in this process".into());
        signals.map(Self).ok_or_else(busy)
    }

    /// Catches SIGHUP, too, for servers that [want it](super::Builder::reload_on_hup). Without this call it is caught
    /// when the run begins: a SIGHUP between a server's start and its run then ends the program, and cuts its requests.
    /// Before the run begins, and if no server wants it, a SIGHUP does nothing.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn with_hangup(mut self) -> Result<Self> {
        let caught = self.0.catch_hangup();
        caught.map_err(|error| Error::io("sigaction", error))?;
        Ok(self)
    }

    /// Catches SIGUSR2, too, unless the program does something with it already: during the run, it
    /// [restarts](Server::restart) the program. Without this call it is caught when the run begins, and ends the program
    /// before.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn with_restart(mut self) -> Result<Self> {
        let caught = self.0.catch_restart();
        caught.map_err(|error| Error::io("sigaction", error))?;
        Ok(self)
    }

    /// Like [`Server::run`].
    ///
    /// # Errors
    /// The errors of [`Server::run`].
    pub fn run(self, server: &Server) -> Result<Report> {
        self.run_until_end(slice::from_ref(server))?;
        Ok(server.report())
    }

    /// Like [`Server::run_async`].
    ///
    /// # Errors
    /// The errors of [`Server::run_async`].
    pub async fn run_async(self, server: &Server) -> Result<Report> {
        self.run_until_end_async(slice::from_ref(server)).await?;
        Ok(server.report())
    }

    /// Like [`Server::run`], for several servers: a signal stops all of them at the same time, and a second one kills
    /// all. Returns when all have ended, with their reports in the same order.
    ///
    /// The second signal is told from a repetition by the longest [`second_signal`](super::Builder::second_signal) of
    /// the servers, so that it cuts nothing earlier than any of them permits. SIGHUP is for those that
    /// [want it](super::Builder::reload_on_hup). A server that is stopped in another way ends alone, and the others go
    /// on. But if a server fails, the others are stopped, too.
    ///
    /// ```no_run
    /// # fn serve(addr: &str) -> httpdown::Result<httpdown::Server> { unimplemented!() }
    /// # fn main() -> httpdown::Result<()> {
    /// let signals = httpdown::Signals::catch()?;
    /// let servers = [serve("0.0.0.0:8080")?, serve("127.0.0.1:9090")?];
    /// let [public, metrics] = servers.each_ref().map(httpdown::Server::local_addrs);
    /// println!("serving on {public:?}, and metrics on {metrics:?}");
    /// signals.run_all(&servers)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The worst result of a server, and the first of those that are equally bad: whatever is neither
    /// [`Error::TimedOut`] nor [`Error::Killed`] is worst, and then these two in this order.
    /// [`outcome`](Server::outcome) and [`report`](Server::report) tell of each server.
    /// [`Error::InvalidArgument`] if there are no servers. Otherwise the errors of [`Server::run`].
    pub fn run_all(self, servers: &[Server]) -> Result<Vec<Report>> {
        self.run_until_end(some(servers)?)?;
        Ok(servers.iter().map(Server::report).collect())
    }

    /// Like [`Signals::run_all`], for async code: waits without blocking, on any runtime, like [`Server::run_async`].
    ///
    /// # Errors
    /// Like [`Signals::run_all`], with the errors of [`Server::run_async`].
    pub async fn run_all_async(self, servers: &[Server]) -> Result<Vec<Report>> {
        self.run_until_end_async(some(servers)?).await?;
        Ok(servers.iter().map(Server::report).collect())
    }

    fn run_until_end(self, servers: &[Server]) -> Result<()> {
        refused(servers, |server| server.cannot_block(None))?;
        let this = self.ready_for(servers)?;
        let hearing = this.0.hear_here();
        let watching = this.watch(servers);
        let results = servers.iter().map(|server| server.wait_blocking(None));
        let result = worst(results.collect());
        // `hearing` is dropped first: a signal that was blocked must not do now what it would have done if it had not
        // been blocked.
        drop(hearing);
        drop(watching);
        threads::block_on(restart::none_under_way(), None);
        result
    }

    async fn run_until_end_async(self, servers: &[Server]) -> Result<()> {
        refused(servers, Server::cannot_wait)?;
        let watching = self.ready_for(servers)?.watch(servers);
        let mut results = Vec::new();
        for server in servers {
            results.push(server.wait().await);
        }
        drop(watching);
        restart::none_under_way().await;
        worst(results)
    }

    /// Catches what is caught only if a server wants it.
    fn ready_for(mut self, servers: &[Server]) -> Result<Self> {
        let restart = restart_of(servers);
        if restart.is_by_hangup() && servers.iter().any(wants_hangup) {
            let why = "SIGHUP cannot both restart the program and read the TLS files again";
            return Err(Error::InvalidArgument(why.into()));
        }
        if restart.is_by_hangup() || servers.iter().any(wants_hangup) {
            self = self.with_hangup()?;
        }
        if restart.is_by_signal() {
            self = self.with_restart()?;
        }
        restart::run_ready()?;
        Ok(self)
    }

    /// Makes the signals stop the servers. Each server is watched for by its own control thread, so that none needs
    /// another one to live.
    fn watch(self, servers: &[Server]) -> Watching {
        let caught = Arc::new(Mutex::new(Some(self.0)));
        let pause = servers
            .iter()
            .map(|server| server.shared.options.second_signal);
        let pause = pause.max().unwrap_or_default();
        let all: Arc<[Server]> = servers.into();
        let mut tasks = Vec::new();
        for server in servers {
            let runtime = &server.shared.runtime;
            let one = OneOfAll {
                server: server.clone(),
                all: Arc::clone(&all),
            };
            tasks.push(runtime.spawn(stop_on_signal(one, pause, Arc::clone(&caught))));
            let restart = restart_of(servers);
            if restart.is_by_signal() || restart.is_by_hangup() {
                tasks.push(runtime.spawn(restart_on_signal(server.clone(), restart.clone())));
            }
            if wants_hangup(server) {
                tasks.push(runtime.spawn(reread_on_hangup(Arc::clone(&server.shared))));
            }
        }
        Watching { tasks, caught }
    }
}

/// How a signal restarts the program: the first server says it.
fn restart_of(servers: &[Server]) -> Restart {
    let first = servers.first();
    let restart = first.and_then(|server| server.shared.restart.clone());
    restart.unwrap_or_default()
}

/// Restarts the program whenever a signal asks for it. Each server of a run waits for the signal, and one of them gets
/// it, because each may end alone.
async fn restart_on_signal(server: Server, restart: Restart) -> io::Result<()> {
    let watch = RestartWatch::new(restart.is_by_hangup())?;
    loop {
        watch.next().await?;
        if let Err(error) = server.restart_begin(restart.clone()) {
            let text = format!("restart refused: {error:#}");
            server.shared.events.log(LogLevel::Error, text);
        }
    }
}

fn wants_hangup(server: &Server) -> bool {
    server.shared.options.reload_on_hup
}

fn some(servers: &[Server]) -> Result<&[Server]> {
    if servers.is_empty() {
        return Err(Error::InvalidArgument("there are no servers to run".into()));
    }
    Ok(servers)
}

/// Fails if the caller may not wait for a server that has not ended.
fn refused(servers: &[Server], cannot: impl Fn(&Server) -> Option<Result<()>>) -> Result<()> {
    let living = servers.iter().filter(|server| server.outcome().is_none());
    living.filter_map(cannot).collect()
}

/// The worst result, and the first of those that are equally bad.
fn worst(results: Vec<Result<Report>>) -> Result<()> {
    let badness = |error: &Error| match error {
        Error::Killed(_) => 0,
        Error::TimedOut(_) => 1,
        _ => 2,
    };
    let errors = results.into_iter().filter_map(Result::err);
    // `min_by_key` prefers the first, and `max_by_key` the last.
    match errors.min_by_key(|error| Reverse(badness(error))) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// A server of a run, in a task that lives as long as its control thread's runtime.
struct OneOfAll {
    server: Server,
    all: Arc<[Server]>,
}

impl Drop for OneOfAll {
    /// If the server has failed, the program is no longer what it was meant to be: its end says so.
    fn drop(&mut self) {
        let has_failed = self.server.phase() >= Phase::Quiescing
            && !self.server.shared.orders.given(Order::Stop);
        if has_failed {
            self.all.iter().for_each(Server::stop_begin);
        }
    }
}

/// The first signal stops the server, and the second one kills it. The third does what it did before the run.
async fn stop_on_signal(
    one: OneOfAll,
    pause: Duration,
    caught: Arc<Mutex<Option<RunSignals>>>,
) -> io::Result<()> {
    let mut watch = SignalWatch::new()?;
    next_that_counts(&mut watch, &one.server, pause).await?;
    one.server.stop_begin();
    next_that_counts(&mut watch, &one.server, pause).await?;
    one.server.kill_begin();
    // A signal that only repeats the second is not the third. By then, all servers have been told of the second.
    tokio::time::sleep(pause).await;
    let_go(&caught);
    Ok(())
}

/// Once a successor has taken over, a signal is meant for it: a supervisor signals all processes of a service, and whoever
/// stops the service gets rid of those that drain by their stop timeout.
async fn next_that_counts(
    watch: &mut SignalWatch,
    server: &Server,
    pause: Duration,
) -> io::Result<()> {
    loop {
        watch.next(pause).await?;
        if server.shared.successor().is_none() {
            return Ok(());
        }
    }
}

/// Reads the files of TLS again, whenever SIGHUP has come.
async fn reread_on_hangup(shared: Arc<Shared>) -> io::Result<()> {
    let hangups = HangupWatch::new()?;
    loop {
        hangups.next().await?;
        let reader = Arc::clone(&shared);
        // A file system that hangs must hold up neither this thread nor a stop.
        match threads::apart("httpdown-tls", move || drop(reader.reread_tls())) {
            // Signals that come meanwhile wait.
            Ok(read) => drop(read.await),
            Err(error) => shared.events.log(LogLevel::Error, error.to_string()),
        }
    }
}

/// Signals are watched until this value is dropped, or the servers have ended.
struct Watching {
    tasks: Vec<JoinHandle<io::Result<()>>>,
    caught: Arc<Mutex<Option<RunSignals>>>,
}

/// Makes the signals do again what they did before.
fn let_go(caught: &Mutex<Option<RunSignals>>) {
    drop(caught.lock().unwrap_or_else(PoisonError::into_inner).take());
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        let_go(&self.caught);
    }
}
