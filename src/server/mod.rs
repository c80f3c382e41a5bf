//! The server as its host uses it: the host asks it, stops it and waits for it.

mod accept;
mod builder;
mod door;
mod lifecycle;
mod member;
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
use crate::restart::{self, Restart, Restarted};
use crate::shared::Shared;
use crate::sys::SignalMask;
use crate::threads::{self, END_GRACE, Role, Thread};
#[cfg(feature = "tls")]
use crate::tls::Tls;

pub use builder::Builder;
pub use signals::Signals;

/// A running server. All clones stand for one server, and any thread may use them. Dropping them does not stop the
/// server.
///
/// | | in async code | blocking |
/// | --- | --- | --- |
/// | serve until a signal | [`run_async`](Server::run_async) | [`run`](Server::run) |
/// | the same for several servers | [`run_all_async`](Signals::run_all_async) | [`run_all`](Signals::run_all) |
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
    /// Makes a builder with the default settings. Change them, and then start the server.
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(crate) fn of(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Begins the stop, and returns at once. A second call does nothing. May be called anywhere, even in a signal
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

    /// Stops the server: takes no new connections, finishes what is there, and then returns the report. Other calls,
    /// later or meanwhile, wait for this end and get this answer. Before the answer, all callbacks for events have been
    /// called, up to the last, for [`Phase::Stopped`]; but a stop waits at most a second for callbacks that block.
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
    /// serving had failed or a listening socket could not be closed; [`Error::WouldDeadlock`] on one of the server's
    /// own threads, on a thread that holds a request from the queue, and in a handler, a service or a response's body,
    /// on any runtime: the stop would wait for its caller. In that case, the stop has begun. [`Error::Forked`].
    ///
    /// The server cannot see a task of the host that a handler waits for, or that holds an upgraded connection. In such
    /// a task, this call takes as long as the stop timeout.
    pub async fn stop(&self) -> Result<Report> {
        self.stop_begin();
        self.wait().await
    }

    /// Like [`Server::stop`], for code that is not async: blocks.
    ///
    /// # Errors
    /// The errors of [`Server::stop`]; [`Error::WouldDeadlock`] also on a thread without which the
    /// [runtime](Builder::runtime) that drives the connections does not get on. To find that out takes a second. In
    /// that case, the stop has begun.
    pub fn stop_blocking(&self) -> Result<Report> {
        self.stop_begin();
        self.wait_blocking(None)
    }

    /// Waits until the server has ended, no matter who has stopped it.
    ///
    /// # Errors
    /// The errors of [`Server::stop`].
    pub async fn wait(&self) -> Result<Report> {
        if let Some(ended) = self.cannot_wait() {
            return self.ended(ended);
        }
        let mut outcome = pin!(self.shared.outcome.wait());
        let result = poll_fn(|cx| match outcome.as_mut().poll(cx) {
            // A handler may continue a wait that was begun elsewhere.
            Poll::Pending if threads::on_thread_of(self.shared.id) => {
                Poll::Ready(Err(Error::WouldDeadlock))
            }
            poll => poll,
        });
        self.ended(result.await)
    }

    /// Waits until a stop begins, whoever begins it; ready at once if one has begun. Use it for work that would go on
    /// for ever: a stream of events ends, a task takes no more work, so that the stop need not wait for the stop
    /// timeout. With a [lame duck](Builder::lame_duck), it is ready when the lame duck begins; then clients that come
    /// again still come here. [`Builder::on_phase`] reports [`Phase::Quiescing`], when they no longer can.
    ///
    /// This does not keep the server from ending. Any task may wait, on any runtime, also within a handler
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
                    // In case the notification fails.
                    _ = shared.outcome.wait() => {}
                }
            }
        })
    }

    /// Like [`Server::wait`], for code that is not async: blocks, at most until `deadline`.
    ///
    /// # Errors
    /// The errors of [`Server::stop_blocking`]; [`Error::WouldBlock`] if the deadline passes before.
    pub fn wait_blocking(&self, deadline: Option<Instant>) -> Result<Report> {
        let waits = || self.shared.outcome.wait_until(deadline);
        let outcome = self.cannot_block(deadline).or_else(waits);
        self.ended(outcome.unwrap_or(Err(Error::WouldBlock)))
    }

    /// Checks that a call that waits for the server's end is not made where the call would wait for itself.
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

    /// Like [`Server::check_can_wait`], for a call that blocks the thread: the thread may drive connections, even if it
    /// is the host's.
    fn check_can_block(&self, deadline: Option<Instant>) -> Result<()> {
        self.check_can_wait()?;
        match &self.shared.lent {
            Some(lent) => lent.check_gets_on(self.shared.outcome.wait(), deadline),
            None => Ok(()),
        }
    }

    /// The answer to a caller that has waited for the end.
    fn ended(&self, outcome: Result<()>) -> Result<Report> {
        match outcome {
            Ok(()) => Ok(self.report()),
            Err(error) => Err(error.with(self.report())),
        }
    }

    /// The answer where the caller may not wait for the end: how the server has ended, if that is known. The callbacks
    /// for the last events get this answer, too.
    fn cannot_wait(&self) -> Option<Result<()>> {
        let error = self.check_can_wait().err()?;
        Some(self.shared.outcome.get().unwrap_or(Err(error)))
    }

    /// Like [`Server::cannot_wait`], for a call that blocks.
    fn cannot_block(&self, deadline: Option<Instant>) -> Option<Result<()>> {
        let check = match self.shared.outcome.get() {
            None => self.check_can_block(deadline),
            Some(_) => self.check_can_wait(),
        };
        let error = check.err()?;
        Some(self.shared.outcome.get().unwrap_or(Err(error)))
    }

    /// Serves until SIGTERM or SIGINT, stops, and returns the answer: blocks. A second signal goes straight to the
    /// kill, unless it [comes too soon](Builder::second_signal); a third does what it would have done without us. At
    /// the end, the signals do again what they did before. A signal that comes before this call is not caught: see
    /// [`Signals`]. Meanwhile the calling thread takes the signals, even if it blocks them: a signal that was blocked
    /// and came before this call stops the server, too. An ignored SIGINT stays ignored, for example where a
    /// non-interactive shell starts a program in the background; SIGTERM always stops.
    ///
    /// # Errors
    /// The errors of [`Server::stop_blocking`], but no stop has begun where it would wait for itself;
    /// [`Error::Unsupported`] if another run is under way in this process.
    pub fn run(&self) -> Result<Report> {
        Signals::catch()?.run(self)
    }

    /// Like [`Server::run`], for async code: waits without blocking, on any runtime. If the future is dropped before
    /// its end, the signals do again what they did before, and the server goes on.
    ///
    /// # Errors
    /// The errors of [`Server::stop`], but no stop has begun where it would wait for itself; [`Error::Unsupported`] if
    /// another run is under way in this process.
    pub async fn run_async(&self) -> Result<Report> {
        Signals::catch()?.run_async(self).await
    }

    /// Ends the server and frees its threads: stops it if nobody has, and returns when its threads have ended,
    /// including those of the callbacks. Left behind are handlers that had to be abandoned, and callbacks that do not
    /// return within the kill timeout or a second, whichever is longer. Blocks; on a thread that would wait for itself,
    /// it returns at once and the rest follows on another thread.
    pub fn close(self) {
        self.stop_begin();
        match self.check_can_block(None) {
            Err(Error::Forked) => {}
            Err(_) => {
                // If no thread can be started, the server still ends; only its threads are then not joined.
                let id = self.shared.id;
                let body = move || self.wait_and_join();
                // The host's last callbacks may be called on that thread, too: so its signal mask is that of the other
                // threads that call them.
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

    /// How the server has ended; `None` before its end. Never blocks.
    ///
    /// The error is the one that [`Server::stop`] and [`Server::wait`] return.
    #[must_use]
    #[allow(clippy::missing_errors_doc, reason = "it hands one on")]
    pub fn outcome(&self) -> Option<Result<()>> {
        let outcome = self.shared.outcome.get()?;
        Some(outcome.map_err(|error| error.with(self.report())))
    }

    /// The phase that the server has reached.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.shared.phases.get()
    }

    /// Whether new requests are welcome, for a readiness probe. False from the moment when a stop is asked for, so also
    /// in the lame duck. Never blocks; may be called anywhere, even in a signal handler.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.shared.is_ready()
    }

    /// From now on, new connections get these certificates and keys, and these checks of clients; open connections keep
    /// theirs. All of it is checked first, and changes together or not at all. The limits of handshakes stay as they
    /// are; so do ticket keys, unless `tls` brings some. Any thread may call this; it does not block.
    ///
    /// # Errors
    /// [`Error::Tls`] or [`Error::InvalidArgument`] if something cannot be used, and [`Error::Unsupported`] if the
    /// server does not speak TLS. Then nothing has changed. [`Error::Forked`].
    #[cfg(feature = "tls")]
    pub fn reload_tls(&self, tls: &Tls) -> Result<()> {
        if process::forked() {
            return Err(Error::Forked);
        }
        self.shared.tls()?.reload(tls)
    }

    /// Like [`Server::reload_tls`], with the settings that the server has, whose files are read again: for certificates
    /// that were renewed in their places. What is not from files stays as it is. The log says what came of it, whoever
    /// has asked for it. Blocks while the files are read. [`Builder::reload_on_hup`] has [`Server::run`] do this on
    /// SIGHUP.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::OutOfResources`] if a file cannot be read; [`Error::Tls`] if something cannot be used;
    /// [`Error::Unsupported`] if the server does not speak TLS, or has nothing from files. Then nothing has changed.
    /// [`Error::Forked`].
    #[cfg(feature = "tls")]
    pub fn reread_tls(&self) -> Result<()> {
        if process::forked() {
            return Err(Error::Forked);
        }
        self.shared.reread_tls()
    }

    /// Restarts the program without a loss: starts it anew, as it was started, with the listening sockets of all
    /// servers of this process; and when the new process has proved itself, it takes over, and all servers of this
    /// process stop. They stop like in [`Server::stop`], but nobody is refused, and there is no
    /// [lame duck](Builder::lame_duck).
    ///
    /// The new process does what this one did: it calls [`Listener::bind`](crate::Listener::bind) with the same
    /// addresses, and gets the sockets. As soon as it serves all of them, it accepts, too. If it is still there after
    /// [`Restart::probation`](crate::Restart::probation), it has proved itself. If it ends or hangs before, it is ended,
    /// and this process goes on as before: it has never ceased to accept. Only the connections that the failed process
    /// had accepted are lost; the error says how many they were.
    ///
    /// The answer comes when the new process has taken over, and this one accepts no more: the stop has begun, and
    /// [`Server::wait`] waits for it. Whoever connects then comes to the new process. Any thread and any runtime may
    /// wait, also in a handler.
    ///
    /// ```no_run
    /// # use httpdown::{Dispatch, Exchange, Listener, Restart, Server};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> httpdown::Result<()> {
    /// # let handler = |exchange: Exchange| drop(exchange);
    /// # let listener = Listener::bind("127.0.0.1:8080")?;
    /// # let server = Server::builder().handle(listener, Dispatch::default(), handler)?;
    /// match server.restart(Restart::default()).await {
    ///     Ok(restarted) => println!("process {} has taken over", restarted.pid),
    ///     Err(error) => eprintln!("this process goes on: {error}"),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::RestartFailed`]; [`Error::Busy`] if a restart is under way, if this process has not taken over from its
    /// own predecessor yet, or if too many [earlier processes](crate::Restart::max_predecessors) still drain;
    /// [`Error::Stopped`] if a stop was asked for; [`Error::Unsupported`] where a restart cannot work: in the first
    /// process of a container, and in a service of systemd that is not of `Type=notify`; [`Error::InvalidArgument`];
    /// [`Error::OutOfResources`]; [`Error::Forked`].
    pub async fn restart(&self, restart: Restart) -> Result<Restarted> {
        restart::wait_async(|told| restart::begin(restart, self.shared.id, told)).await
    }

    /// Like [`Server::restart`], for code that is not async: blocks.
    ///
    /// # Errors
    /// The errors of [`Server::restart`].
    pub fn restart_blocking(&self, restart: Restart) -> Result<Restarted> {
        restart::wait(|told| restart::begin(restart, self.shared.id, told))
    }

    /// Like [`Server::restart`], but returns as soon as the restart was begun. [`Restart::on_end`] is told how it ends;
    /// so is the [log](Builder::on_log).
    ///
    /// # Errors
    /// Those of [`Server::restart`] that refuse a restart.
    pub fn restart_begin(&self, restart: Restart) -> Result<()> {
        restart::begin(restart, self.shared.id, drop)
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

    /// Takes the oldest event. If there is none, waits for one until `deadline` (`None`: as long as the server lives).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] unless the server was built with [`Builder::pull_events`]; [`Error::WouldBlock`] when
    /// the deadline has passed; [`Error::Stopped`] when the server has ended and all events were taken.
    pub fn next_event(&self, deadline: Option<Instant>) -> Result<Event> {
        if !self.shared.events.are_pulled() {
            return Err(Error::InvalidArgument(
                "the server was not told to keep events".into(),
            ));
        }
        self.shared.events.next(deadline)
    }

    /// A descriptor for an event loop. It is readable (level-triggered) while events wait to be taken by
    /// [`Server::next_event`], and after the end, when [`Server::wait_blocking`] does not wait any more. The end makes
    /// it readable even without [`Builder::pull_events`]. The descriptor belongs to the server. Never blocks.
    ///
    /// With this descriptor, and that of the [queue](crate::RequestQueue::descriptor), one thread can serve and stop:
    /// it begins the stop, and goes on taking, answering and looking until it finds the end here.
    ///
    /// # Errors
    /// [`Error::OutOfResources`] or [`Error::Io`] if no descriptor is available.
    pub fn event_descriptor(&self) -> Result<BorrowedFd<'_>> {
        let descriptor = self.shared.events.descriptor();
        descriptor.map_err(|error| Error::io("making the events' descriptor", error))
    }
}

impl Exchange {
    /// The server that the request came to.
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
