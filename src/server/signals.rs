//! Servers that run until a signal.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::JoinHandle;

use crate::error::{Error, Result};
use crate::events::LogLevel;
use crate::process::{self, HangupWatch, RunSignals, SignalWatch};
use crate::report::Report;
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

    /// Like [`Server::run`].
    ///
    /// # Errors
    /// The errors of [`Server::run`].
    pub fn run(mut self, server: &Server) -> Result<Report> {
        if let Some(Err(error)) = server.cannot_block(None) {
            return Err(error);
        }
        self.catch_hangup_for(server)?;
        let hearing = self.0.hear_here();
        let watching = self.watch(server);
        let result = server.wait_blocking(None);
        // `hearing` is dropped first: a signal that was blocked must not do now what it would have done if it had not
        // been blocked.
        drop(hearing);
        drop(watching);
        result
    }

    /// Like [`Server::run_async`].
    ///
    /// # Errors
    /// The errors of [`Server::run_async`].
    pub async fn run_async(mut self, server: &Server) -> Result<Report> {
        if let Some(Err(error)) = server.cannot_wait() {
            return Err(error);
        }
        self.catch_hangup_for(server)?;
        let _watching = self.watch(server);
        server.wait().await
    }

    fn catch_hangup_for(&mut self, server: &Server) -> Result<()> {
        if !server.shared.options.reload_on_hup {
            return Ok(());
        }
        let caught = self.0.catch_hangup();
        caught.map_err(|error| Error::io("sigaction", error))
    }

    /// Makes the signals stop the server.
    fn watch(self, server: &Server) -> Watching {
        let Self(signals) = self;
        let kept = Arc::new(Mutex::new(Some(signals)));
        let caught = Arc::clone(&kept);
        let watched = server.clone();
        let pause = server.shared.options.second_signal;
        let watch = async move {
            let mut watch = SignalWatch::new()?;
            watch.next(pause).await?;
            watched.stop_begin();
            watch.next(pause).await?;
            watched.kill_begin();
            // A signal that only repeats the second is not the third.
            tokio::time::sleep(pause).await;
            let_go(&caught);
            Ok::<_, io::Error>(())
        };
        let runtime = &server.shared.runtime;
        let mut tasks = vec![runtime.spawn(watch)];
        if server.shared.options.reload_on_hup {
            tasks.push(runtime.spawn(reread_on_hangup(Arc::clone(&server.shared))));
        }
        Watching {
            tasks,
            caught: kept,
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

/// Signals are watched until this value is dropped, or the server has ended.
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
