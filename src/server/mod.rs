//! The server as its host sees it: asked, stopped, waited for.

mod accept;
mod builder;
mod door;
mod lifecycle;
mod signals;

use std::fmt;
use std::future::{Future, poll_fn};
use std::os::fd::BorrowedFd;
use std::pin::pin;
use std::sync::{Arc, PoisonError};
use std::task::Poll;
use std::time::Instant;

use crate::addr::Addr;
use crate::contain::for_tasks;
use crate::error::{Error, Result};
use crate::events::Event;
use crate::orders::Order;
use crate::phase::Phase;
use crate::process;
use crate::report::Report;
use crate::request::{Exchange, is_held_here};
use crate::shared::Shared;
use crate::sys::SignalMask;
use crate::threads::{self, END_GRACE, Role, Thread};

pub use builder::Builder;
pub use signals::Signals;

/// A running server. Clones are the same server; any thread may use them. Dropping them does not stop it.
///
/// | | in async code | blocking |
/// | --- | --- | --- |
/// | serve until a signal | [`run_async`](Server::run_async) | [`run`](Server::run) |
/// | stop, and wait | [`stop`](Server::stop) | [`stop_blocking`](Server::stop_blocking) |
/// | wait for a stop of others | [`wait`](Server::wait) | [`wait_blocking`](Server::wait_blocking) |
///
/// ```
/// use httpdown::{Dispatch, Exchange, Listener, Phase, Server};
///
/// # fn main() -> httpdown::Result<()> {
/// let hello = |exchange: Exchange| {
///     let _ = exchange.reply(http::Response::new("Hello, World!".into()));
/// };
/// let listener = Listener::bind("127.0.0.1:0")?;
/// let server = Server::builder().handle(listener, Dispatch::default(), hello)?;
/// assert!(server.is_ready());
///
/// // Any thread may ask for the stop, and any number may wait for it.
/// let stops = server.clone();
/// std::thread::spawn(move || stops.stop_begin());
/// let report = server.wait_blocking(None)?;
/// assert_eq!(report.phase, Phase::Stopped);
/// server.close();
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
}

impl Server {
    /// A server with the default settings, to be changed and started.
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(crate) fn of(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Begins the stop, and returns at once. A second time it does nothing. May be called anywhere, even in a signal
    /// handler.
    pub fn stop_begin(&self) {
        self.order(Order::Stop);
    }

    /// Goes straight to the kill, and returns at once. May be called anywhere, even in a signal handler.
    pub fn kill_begin(&self) {
        self.order(Order::Kill);
    }

    fn order(&self, order: Order) {
        if !process::forked() {
            self.shared.orders.give(order);
        }
    }

    /// Stops: no new connections, what is there is finished, and then the answer. Whoever calls later, or meanwhile,
    /// waits for the same end and gets the same answer. Before that the callbacks for events have been called, to the
    /// last, [`Phase::Stopped`]; but for callbacks that block no stop waits longer than a second.
    ///
    /// ```
    /// # use httpdown::{Dispatch, Exchange, Listener, Server};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> httpdown::Result<()> {
    /// # let handler = |exchange: Exchange| drop(exchange);
    /// # let listener = Listener::bind("127.0.0.1:0")?;
    /// # let server = Server::builder().handle(listener, Dispatch::default(), handler)?;
    /// let report = server.stop().await?;
    /// assert_eq!(report.killed, 0); // or it would have been an error
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Killed`] if requests were cut; [`Error::TimedOut`] if handlers had to be abandoned; [`Error::Io`] if
    /// serving had failed or a listening socket could not be closed; [`Error::WouldDeadlock`] on a thread of the
    /// server's own, on one that holds a request from the queue, and in a handler, a service or a response's body, on
    /// whatever runtime: the stop would wait for that. The stop has begun then. [`Error::Forked`].
    ///
    /// What cannot be seen is a task of the host's that a handler waits for, or that holds an upgraded connection:
    /// there this takes as long as the stop timeout.
    pub async fn stop(&self) -> Result<Report> {
        self.stop_begin();
        self.wait().await
    }

    /// As [`Server::stop`], for code that is not async: blocks.
    ///
    /// # Errors
    /// As [`Server::stop`]; [`Error::WouldDeadlock`] also on a thread without which the [runtime](Builder::runtime)
    /// that drives the connections does not get on. That takes a second to be found out. The stop has begun then.
    pub fn stop_blocking(&self) -> Result<Report> {
        self.stop_begin();
        self.wait_blocking(None)
    }

    /// Waits until the server has ended, whoever has stopped it.
    ///
    /// # Errors
    /// As [`Server::stop`].
    pub async fn wait(&self) -> Result<Report> {
        if let Some(ended) = self.cannot_wait() {
            return self.ended(ended);
        }
        let mut outcome = pin!(self.shared.outcome.wait());
        let result = poll_fn(|cx| match outcome.as_mut().poll(cx) {
            // A handler may go on with a wait that was begun elsewhere.
            Poll::Pending if threads::on_thread_of(self.shared.id) => {
                Poll::Ready(Err(Error::WouldDeadlock))
            }
            poll => poll,
        });
        self.ended(result.await)
    }

    /// Waits until a stop begins, whoever begins it: ready at once if one has begun. For what would go on for ever: a
    /// stream of events ends, a task takes no more work, so that the stop needs not wait for the stop timeout. With a
    /// [lame duck](Builder::lame_duck) it is ready at the beginning of that, while clients that come again still come
    /// here; [`Builder::on_phase`] tells of [`Phase::Quiescing`], when they no longer can.
    ///
    /// Does not keep the server from ending. Any task may wait, on whatever runtime, within a handler too
    /// ([`Exchange::server`](crate::Exchange::server)). In a forked child it is ready at once.
    ///
    /// ```
    /// # use httpdown::{Dispatch, Exchange, Listener, Server};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> httpdown::Result<()> {
    /// # let handler = |exchange: Exchange| drop(exchange);
    /// # let listener = Listener::bind("127.0.0.1:0")?;
    /// let server = Server::builder().handle(listener, Dispatch::default(), handler)?;
    /// let cleaning = tokio::spawn({
    ///     let stopping = server.stopping();
    ///     async move {
    ///         stopping.await;
    ///         "no more of that"
    ///     }
    /// });
    /// server.stop().await?;
    /// assert_eq!(cleaning.await.unwrap(), "no more of that");
    /// # Ok(())
    /// # }
    /// ```
    pub fn stopping(&self) -> impl Future<Output = ()> + Send + use<> {
        let shared = Arc::clone(&self.shared);
        for_tasks(async move {
            let told = shared.phases.stopping();
            if shared.is_ready() && !process::forked() {
                tokio::select! {
                    biased;
                    () = told => {}
                    // Should that have failed.
                    _ = shared.outcome.wait() => {}
                }
            }
        })
    }

    /// As [`Server::wait`], for code that is not async: blocks, at most until `deadline`.
    ///
    /// # Errors
    /// As [`Server::stop_blocking`]; [`Error::WouldBlock`] if the deadline passes before.
    pub fn wait_blocking(&self, deadline: Option<Instant>) -> Result<Report> {
        let waits = || self.shared.outcome.wait_until(deadline);
        let outcome = self.cannot_block(deadline).or_else(waits);
        self.ended(outcome.unwrap_or(Err(Error::WouldBlock)))
    }

    /// A call that waits for the server to end must not be made where it would wait for itself.
    fn check_can_wait(&self) -> Result<()> {
        if process::forked() {
            return Err(Error::Forked);
        }
        let id = self.shared.id;
        if threads::on_thread_of(id) || is_held_here(id) {
            return Err(Error::WouldDeadlock);
        }
        Ok(())
    }

    /// Like [`Server::check_can_wait`], for a call that blocks the thread: it may be one that drives connections, be it
    /// the host's.
    fn check_can_block(&self, deadline: Option<Instant>) -> Result<()> {
        self.check_can_wait()?;
        match &self.shared.lent {
            Some(lent) => lent.check_gets_on(self.shared.outcome.wait(), deadline),
            None => Ok(()),
        }
    }

    /// The answer to who has waited for the end.
    fn ended(&self, outcome: Result<()>) -> Result<Report> {
        match outcome {
            Ok(()) => Ok(self.report()),
            Err(error) => Err(error.with(self.report())),
        }
    }

    /// What is said where nobody may wait for the end: how it was, if that is known; the callbacks for the last events
    /// are told, too.
    fn cannot_wait(&self) -> Option<Result<()>> {
        let error = self.check_can_wait().err()?;
        Some(self.shared.outcome.get().unwrap_or(Err(error)))
    }

    /// As [`Server::cannot_wait`], for a call that blocks.
    fn cannot_block(&self, deadline: Option<Instant>) -> Option<Result<()>> {
        let check = match self.shared.outcome.get() {
            None => self.check_can_block(deadline),
            Some(_) => self.check_can_wait(),
        };
        let error = check.err()?;
        Some(self.shared.outcome.get().unwrap_or(Err(error)))
    }

    /// Serves until SIGTERM or SIGINT, stops, and returns the answer: blocks. A second signal goes straight to the
    /// kill, unless it [comes too soon](Builder::second_signal); a third does what it would have done without us. What
    /// the signals did before is restored at the end. A signal that comes before this call is not caught: see
    /// [`Signals`]. The calling thread takes the signals meanwhile, also if it blocks them: one that was blocked and
    /// came before stops the server, too. A SIGINT that is ignored stays so, as where a shell that is not interactive
    /// starts a program in the background; SIGTERM always stops.
    ///
    /// # Errors
    /// As [`Server::stop_blocking`], but that no stop has begun where it would wait for itself;
    /// [`Error::Unsupported`] if another run is under way in this process.
    pub fn run(&self) -> Result<Report> {
        Signals::catch()?.run(self)
    }

    /// As [`Server::run`], for async code: waits without blocking, on whatever runtime. Dropped before its end, it
    /// restores what the signals did before, and the server goes on.
    ///
    /// # Errors
    /// As [`Server::stop`], but that no stop has begun where it would wait for itself; [`Error::Unsupported`] if
    /// another run is under way in this process.
    pub async fn run_async(&self) -> Result<Report> {
        Signals::catch()?.run_async(self).await
    }

    /// Ends the server and frees its threads: stops it if nobody has, and returns when its threads have ended, those
    /// of the callbacks included. Handlers that had to be abandoned, and callbacks that do not return within the kill
    /// timeout or a second, whichever is longer, are left behind. Blocks; on a thread that would wait for itself, it
    /// returns at once and the rest follows elsewhere.
    pub fn close(self) {
        self.stop_begin();
        match self.check_can_block(None) {
            Err(Error::Forked) => {}
            Err(_) => {
                // Should no thread be had, the server still ends; only its threads are then not joined.
                let id = self.shared.id;
                let body = move || self.wait_and_join();
                // The last of the host's callbacks may be called there, too: as where they were called before.
                let mask = Some(SignalMask::here().and_pipe());
                let _ = threads::spawn_thread("httpdown-free", id, Role::Other, mask, body);
            }
            Ok(()) => self.wait_and_join(),
        }
    }

    fn wait_and_join(&self) {
        let _ = self.shared.outcome.wait_until(None);
        self.join();
    }

    fn join(&self) {
        let patience = self.shared.options.kill_timeout.max(END_GRACE);
        let deadline = threads::deadline(patience);
        let threads = std::mem::take(&mut *self.threads());
        // Callbacks that do not return are left behind.
        let _ = threads::join_all(threads, deadline);
    }

    fn threads(&self) -> std::sync::MutexGuard<'_, Vec<Thread>> {
        self.shared
            .threads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// How it has ended; `None` before. Never blocks.
    ///
    /// The error is the one that [`Server::stop`] and [`Server::wait`] return.
    #[must_use]
    #[allow(clippy::missing_errors_doc, reason = "it hands one on")]
    pub fn outcome(&self) -> Option<Result<()>> {
        let outcome = self.shared.outcome.get()?;
        Some(outcome.map_err(|error| error.with(self.report())))
    }

    /// How far the server has come.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.shared.phases.get()
    }

    /// Whether new requests are welcome: for a readiness probe. False from the moment when a stop is asked for, and so
    /// from the lame duck on. Never blocks; may be called anywhere, even in a signal handler.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.shared.is_ready()
    }

    /// The counts as they are now.
    #[must_use]
    pub fn report(&self) -> Report {
        self.shared.report()
    }

    /// The addresses that the server listens on, or did, in the order of its listeners.
    #[must_use]
    pub fn local_addrs(&self) -> &[Addr] {
        &self.shared.local_addrs
    }

    /// Takes the oldest event, waiting for one until `deadline` (`None`: as long as the server lives).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] unless the server was built with [`Builder::pull_events`]; [`Error::WouldBlock`]
    /// when the deadline has passed; [`Error::Stopped`] when the server has ended and all were taken.
    pub fn next_event(&self, deadline: Option<Instant>) -> Result<Event> {
        if !self.shared.events.are_pulled() {
            return Err(Error::InvalidArgument(
                "the server was not told to keep events".into(),
            ));
        }
        self.shared.events.next(deadline)
    }

    /// A descriptor for an event loop: readable (level-triggered) while events wait to be taken by
    /// [`Server::next_event`], and after the end, when [`Server::wait_blocking`] does not wait any more; the latter
    /// also without [`Builder::pull_events`]. It belongs to the server. Never blocks.
    ///
    /// With it, and that of the [queue](crate::RequestQueue::descriptor), one thread can serve and stop: it begins the
    /// stop, and goes on taking, answering and looking until it finds the end here.
    ///
    /// # Errors
    /// [`Error::OutOfResources`] or [`Error::Io`] if no descriptor can be had.
    pub fn event_descriptor(&self) -> Result<BorrowedFd<'_>> {
        let descriptor = self.shared.events.descriptor();
        descriptor.map_err(|error| Error::io("making the events' descriptor", error))
    }
}

impl Exchange {
    /// The server that it came to.
    #[must_use]
    pub fn server(&self) -> Server {
        Server::of(Arc::clone(self.shared()))
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("local_addrs", &self.shared.local_addrs)
            .field("phase", &self.phase())
            .finish_non_exhaustive()
    }
}
