//! The server as its host sees it: built, started, asked, stopped.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::task::Poll;
use std::time::{Duration, Instant};

use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use once_cell::sync::OnceCell;
use tokio::task::JoinHandle;

use crate::clock::{Clock, SystemClock};
use crate::conn::{self, BoxError, Conn, ConnInfo, Plain, Registry, Respond};
use crate::contain::{contain, for_tasks};
use crate::dispatch::{Backend, Dispatch, Dispatcher, Handler, RequestQueue};
use crate::error::{Error, Result};
use crate::events::{ConnEvent, Event, Events, Interest, LogLevel, Observers};
use crate::helper::Helper;
use crate::ledger::{Count, Ends, Ledger, Report};
use crate::lent::LentRuntime;
use crate::lifecycle::{Control, Latest, Order, Orders, Phase, Phases};
use crate::listener::{Listener, Listeners};
use crate::outcome::Outcome;
use crate::process::{self, SignalWatch, StopSignals};
use crate::rarely::Rarely;
use crate::runtime::{self, END_GRACE, Executor, IoThreads, Role, Thread};
use crate::stats::Stats;
use crate::sys::SignalMask;

/// What can be set.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) stop_timeout: Duration,
    pub(crate) kill_timeout: Duration,
    pub(crate) lame_duck: Duration,
    pub(crate) lame_duck_min: Duration,
    /// Zero: the lame duck takes its whole time.
    pub(crate) lame_duck_quiet: Duration,
    pub(crate) ready_path: Option<String>,
    pub(crate) conn_info: bool,
    pub(crate) header_timeout: Duration,
    /// [`Duration::MAX`]: none.
    pub(crate) idle_timeout: Duration,
    pub(crate) keep_alive_header: bool,
    pub(crate) quiesce_timeout: Duration,
    pub(crate) idle_grace: Duration,
    pub(crate) linger_timeout: Duration,
    pub(crate) second_signal: Duration,
    /// After how long a pause between two requests a connection leaves hyper, at least; at most twice that. No option:
    /// long beside the pauses of a busy client, and short beside the life of an idle connection.
    pub(crate) park_after: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            stop_timeout: Duration::from_secs(60),
            kill_timeout: Duration::from_secs(60),
            lame_duck: Duration::ZERO,
            lame_duck_min: Duration::ZERO,
            lame_duck_quiet: Duration::ZERO,
            ready_path: None,
            conn_info: false,
            header_timeout: Duration::from_secs(30),
            idle_timeout: Duration::MAX,
            keep_alive_header: false,
            // A SYN is sent again after 1 s, and then after 2 more: a handshake that lost one has had two chances.
            quiesce_timeout: Duration::from_secs(4),
            idle_grace: Duration::from_secs(1),
            linger_timeout: Duration::from_secs(2),
            // Whoever forwards a signal does it within milliseconds; a person who means it takes longer.
            second_signal: Duration::from_millis(500),
            park_after: Duration::from_secs(1),
        }
    }
}

impl Config {
    fn check(&self) -> Result<()> {
        let wrong = |why| Err(Error::InvalidArgument(why));
        if let Some(path) = &self.ready_path
            && !is_path(path)
        {
            return wrong(format!(
                "ready_path {path:?} is not a path: \"/\" first, then visible ASCII, and no query"
            ));
        }
        if self.idle_timeout.is_zero() {
            return wrong("idle_timeout is 0: no request could come in time".into());
        }
        if self.keep_alive_header && self.announced() == 0 {
            let (timeout, grace) = (self.idle_timeout, self.idle_grace);
            return wrong(format!(
                "keep_alive_header has nothing to say: idle_timeout ({timeout:?}) is not a second longer than \
                 idle_grace ({grace:?})"
            ));
        }
        if self.keep_alive_header && self.idle_timeout == Duration::MAX {
            return wrong("keep_alive_header has nothing to say: there is no idle_timeout".into());
        }
        for (name, part) in [
            ("lame_duck_min", self.lame_duck_min),
            ("lame_duck_quiet", self.lame_duck_quiet),
        ] {
            if part > self.lame_duck {
                let whole = self.lame_duck;
                return wrong(format!(
                    "{name} ({part:?}) is longer than lame_duck ({whole:?})"
                ));
            }
        }
        Ok(())
    }

    /// For how many seconds clients are told that they may leave a connection idle: as long as a request that they send
    /// at the last moment still comes in time. They count from when they have a response, which is later than we do, and
    /// their request needs its time, too: how much, `idle_grace` says.
    fn announced(&self) -> u64 {
        self.idle_timeout.saturating_sub(self.idle_grace).as_secs()
    }
}

/// Whether a request's target can have this path.
fn is_path(path: &str) -> bool {
    path.starts_with('/')
        && path.bytes().all(|byte| byte.is_ascii_graphic())
        && PathAndQuery::try_from(path).is_ok_and(|parsed| parsed.path() == path)
}

/// How long a client may at most pipeline requests in a stop before it is told that its connection ends: without limit, a
/// stop timeout without limit would be one for ever. Half of the default stop timeout.
const MOST_PATIENCE: Duration = Duration::from_secs(30);

/// On the server's clock.
#[derive(Clone, Copy, Debug, Default)]
struct StopTimes {
    began: Option<Duration>,
    quiescing: Option<Duration>,
    ended: Option<Duration>,
}

/// What the threads of a server share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) id: u64,
    pub(crate) config: Config,
    /// What responses say of the idle timeout, in a `Keep-Alive` field.
    pub(crate) announcement: Option<HeaderValue>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) events: Events,
    /// Of accepting, and of driving what was accepted.
    pub(crate) accept_failures: Rarely,
    pub(crate) drive_failures: Rarely,
    pub(crate) orders: Orders,
    pub(crate) phases: Phases,
    /// When the last request came that shows that somebody still sends work: known only in the lame duck.
    pub(crate) last_request: Latest,
    pub(crate) registry: Registry,
    /// Of connections that are no longer in the registry.
    pub(crate) ledger: Ledger,
    /// How connections ended.
    pub(crate) ends: Ends,
    pub(crate) abandoned: Count,
    pub(crate) unaccepted: Count,
    stop: Mutex<StopTimes>,
    pub(crate) outcome: Outcome,
    pub(crate) helper: Helper,
    /// The counts when the outcome was settled: what happens in handlers that were abandoned changes nothing.
    last_report: OnceCell<Report>,
    local_addrs: Vec<SocketAddr>,
    queue: Option<RequestQueue>,
    pulls_events: bool,
    /// The control thread's.
    runtime: tokio::runtime::Handle,
    /// If connections run on it.
    pub(crate) lent: Option<Arc<LentRuntime>>,
    threads: Mutex<Vec<Thread>>,
}

impl Shared {
    pub(crate) fn stop_began(&self, at: Duration) {
        self.stop_times().began = Some(at);
    }

    /// No new connections from now on: the stop timeout runs.
    pub(crate) fn quiescing_began(&self, at: Duration) {
        self.stop_times().quiescing = Some(at);
    }

    pub(crate) fn stop_ended(&self, at: Duration) {
        self.stop_times().ended = Some(at);
    }

    /// Whether half of the stop timeout has passed: then a client that never ceases to pipeline requests must be told
    /// that its connection ends, though it has sent more of them.
    pub(crate) fn is_stop_pressing(&self) -> bool {
        let began = self.stop_times().quiescing;
        let patience = (self.config.stop_timeout / 2).min(MOST_PATIENCE);
        began.is_some_and(|began| self.clock.now().saturating_sub(began) > patience)
    }

    fn stop_times(&self) -> std::sync::MutexGuard<'_, StopTimes> {
        self.stop.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.phases.get() == Phase::Serving && !self.orders.given(Order::Stop)
    }

    /// Waits until the stop begins; or, should that have failed, the end.
    async fn stopping(&self) {
        let told = self.phases.stopping();
        if self.is_ready() && !process::forked() {
            tokio::select! {
                biased;
                () = told => {}
                _ = self.outcome.wait() => {}
            }
        }
    }

    /// A request has come, and not one that only asks whether the server is ready.
    pub(crate) fn request_came(&self) {
        if self.phases.get() == Phase::LameDuck {
            self.last_request.note(self.clock.now());
        }
    }

    /// How it has ended. The first time counts. Those who wait are not told yet.
    pub(crate) fn settle(&self, outcome: Result<()>) {
        // A report asks the clock, which is the host's.
        if let Some(report) = contain(|| self.report()) {
            let _ = self.last_report.set(report);
        }
        self.outcome.settle(outcome);
    }

    pub(crate) fn report(&self) -> Report {
        if let Some(report) = self.last_report.get() {
            return *report;
        }
        let StopTimes { began, ended, .. } = *self.stop_times();
        let stop_duration = began.map_or(Duration::ZERO, |began| {
            ended
                .unwrap_or_else(|| self.clock.now())
                .saturating_sub(began)
        });
        let mut report = Report {
            phase: self.phases.get(),
            stop_duration,
            abandoned: self.abandoned.get(),
            unaccepted: self.unaccepted.get(),
            events_dropped: self.events.dropped(),
            ..Report::default()
        };
        self.ends.add_to(&mut report);
        self.registry.add_to(&mut report, &self.ledger);
        report
    }

    /// A call that waits for the server to end must not be made where it would wait for itself.
    fn check_can_wait(&self) -> Result<()> {
        if process::forked() {
            return Err(Error::Forked);
        }
        let holds_request = self.queue.as_ref().is_some_and(RequestQueue::is_held_here);
        if runtime::on_thread_of(self.id) || holds_request {
            return Err(Error::WouldDeadlock);
        }
        Ok(())
    }

    /// As that, for a call that blocks the thread: it may be one that drives connections, be it the host's.
    fn check_can_block(&self, deadline: Option<Instant>) -> Result<()> {
        self.check_can_wait()?;
        match &self.lent {
            Some(lent) => lent.check_gets_on(self.outcome.wait(), deadline),
            None => Ok(()),
        }
    }
}

/// Says how a server shall be, and starts it.
///
/// ```
/// # use std::convert::Infallible;
/// # use bytes::Bytes;
/// # use http_body_util::Full;
/// # use hyper::{Request, Response, body::Incoming, service::service_fn};
/// use httpdown::{Listener, Server};
///
/// # fn main() -> Result<(), httpdown::Error> {
/// let hello = service_fn(|_: Request<Incoming>| async {
///     Ok::<_, Infallible>(Response::new(Full::new(Bytes::from("Hello, World!"))))
/// });
/// let server = Server::builder()
///     .stop_timeout(std::time::Duration::from_secs(10))
///     .serve(Listener::bind("127.0.0.1:0")?, hello)?;
/// let report = server.stop_blocking()?; // in async code: server.stop().await?
/// assert_eq!(report.killed, 0);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
#[must_use]
pub struct Builder {
    config: Config,
    clock: Option<Arc<dyn Clock>>,
    observers: Observers,
    pulled: Option<Interest>,
    io_threads: Option<NonZeroUsize>,
    runtime: Option<Arc<LentRuntime>>,
    reuse_port: bool,
    slot: Option<Arc<OnceCell<Server>>>,
}

impl Builder {
    /// How long a stop waits for what is there to finish, before it kills; counted from the end of the lame duck. Once half
    /// of it has passed, or 30 seconds, responses say `Connection: close` also to a client that has sent more requests
    /// behind, because one that never ceases to pipeline would else never come to its end. Default: 1 minute.
    /// [`Duration::MAX`]: no limit. On the server's [clock](Builder::clock).
    pub fn stop_timeout(mut self, timeout: Duration) -> Self {
        self.config.stop_timeout = timeout;
        self
    }

    /// How long a kill waits for handlers that were cut to return, before it abandons them; and the end of the server
    /// for what else of the host's runs on its threads (the handler's `Drop`, thread-local destructors), there at
    /// least a second, and in real time. Default: 1 minute. [`Duration::MAX`]: no limit. On the server's
    /// [clock](Builder::clock).
    pub fn kill_timeout(mut self, timeout: Duration) -> Self {
        self.config.kill_timeout = timeout;
        self
    }

    /// How long a stop goes on accepting, while [`Server::is_ready`] says no and responses say `Connection: close`, so
    /// that load balancers and clients go elsewhere. Default: 0. On the server's [clock](Builder::clock).
    pub fn lame_duck(mut self, duration: Duration) -> Self {
        self.config.lame_duck = duration;
        self
    }

    /// Ends the lame duck early, once no request has come for so long: then nobody sends any here. Requests for the
    /// [ready path](Builder::ready_path) do not count, nor do connections without a request. At most the lame duck's
    /// time. Default: 0, which is never early. On the server's [clock](Builder::clock).
    pub fn lame_duck_quiet(mut self, silence: Duration) -> Self {
        self.config.lame_duck_quiet = silence;
        self
    }

    /// How long the lame duck takes at least, however quiet it is: as long as a load balancer needs to notice (its
    /// checks' interval, times the failures that it wants to see). At most the lame duck's time. Default: 0. On the
    /// server's [clock](Builder::clock).
    pub fn lame_duck_min(mut self, duration: Duration) -> Self {
        self.config.lame_duck_min = duration;
        self
    }

    /// A path, `/healthz` say, that the server answers itself, whatever the handlers are doing: 200 while
    /// [`Server::is_ready`], then 503. For GET, HEAD, and OPTIONS; compared with the path of a request's target byte
    /// for byte, without the query. Such a request counts like any other. Default: none.
    pub fn ready_path(mut self, path: impl Into<String>) -> Self {
        self.config.ready_path = Some(path.into());
        self
    }

    /// Whether each request that a [service](Builder::serve) gets has a [`ConnInfo`](crate::ConnInfo) among its
    /// extensions. Default: no, because the first extension of a request costs three allocations, about a tenth of
    /// what a request costs in user space.
    pub fn conn_info(mut self, inserts: bool) -> Self {
        self.config.conn_info = inserts;
        self
    }

    /// How long a request's head may take from its first byte to its last; then the client gets a 408, and the
    /// connection is closed. Default: 30 seconds. [`Duration::MAX`]: no limit. In real time, whatever the clock.
    pub fn header_timeout(mut self, timeout: Duration) -> Self {
        self.config.header_timeout = timeout;
        self
    }

    /// How long a connection may be without a request while the server serves: between two, or before the first. Then it
    /// is closed; it may live on for a second more. Not 0. Default: no limit ([`Duration::MAX`]), because a close can
    /// cross a request on its way, which is lost then (`raced` in the [`Report`]). Against that, be more patient than
    /// the clients (a load balancer's timeout for idle connections, say), or tell them: [`Builder::keep_alive_header`].
    /// In real time, whatever the clock.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.config.idle_timeout = timeout;
        self
    }

    /// Has responses tell of the idle timeout, `Keep-Alive: timeout=N`, so that clients that know this field leave an
    /// idle connection before the server does. N is the [idle timeout](Builder::idle_timeout) less the
    /// [idle grace](Builder::idle_grace), in whole seconds, and at least 1, so that a request that was sent in the last
    /// moment still comes in time. It is not said where the connection ends, nor in a response that has a `Connection`
    /// or `Keep-Alive` field of its own. Default: false.
    pub fn keep_alive_header(mut self, announce: bool) -> Self {
        self.config.keep_alive_header = announce;
        self
    }

    /// How long a stop goes on accepting connections whose handshake had begun, before it closes the listening sockets
    /// all the same. It ends as soon as there are none; counts within the stop timeout. Default: 4 seconds, which gives
    /// a handshake that lost a segment two more chances (retransmissions come after 1 s and 3 s). In real time, whatever
    /// the clock.
    pub fn quiesce_timeout(mut self, timeout: Duration) -> Self {
        self.config.quiesce_timeout = timeout;
        self
    }

    /// How long a stop leaves a connection between two requests open, so that a request that is on its way is served
    /// and answered with `Connection: close`. More than the round trip to the clients. It is counted from when the
    /// client's kernel has the last answer, and a new connection whose handshake needed repetition gets 4.5 seconds
    /// more for each: so late would its client repeat a request that was lost. Default: 1 second. In real time,
    /// whatever the clock.
    pub fn idle_grace(mut self, grace: Duration) -> Self {
        self.config.idle_grace = grace;
        self
    }

    /// How long a connection that we have closed waits for the client to close its side, so that what was sent last is
    /// not destroyed by a reset. A stop waits longer where a client has not acknowledged all that it was sent, up to the
    /// stop timeout. Default: 2 seconds. In real time, whatever the clock.
    pub fn linger_timeout(mut self, timeout: Duration) -> Self {
        self.config.linger_timeout = timeout;
        self
    }

    /// How long after the first signal of a [run](Server::run) another one counts as the second, which kills; and after
    /// that, as the third. One that comes sooner has told the same thing again: a process manager signals the whole
    /// group, and a wrapper in it forwards what it gets. Zero: at once; [`Duration::MAX`]: never. Default: 500
    /// milliseconds. In real time, whatever the clock.
    pub fn second_signal(mut self, pause: Duration) -> Self {
        self.config.second_signal = pause;
        self
    }

    /// The clock for the timers of the stop, the kill and the lame duck, for [`Report::stop_duration`], and for the
    /// minute between two counts of connections. All else is in real time. Default: [`SystemClock`]. For tests: a
    /// [`MockClock`](crate::MockClock), with an [idle grace](Builder::idle_grace) of some milliseconds.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Some(Arc::new(clock));
        self
    }

    /// A client for statistics, called on the events thread.
    pub fn stats(mut self, stats: impl Stats) -> Self {
        self.observers.stats = Some(Box::new(stats));
        self
    }

    /// Called on the events thread whenever a connection's state changes.
    pub fn on_conn_state(mut self, callback: impl FnMut(ConnEvent) + Send + 'static) -> Self {
        self.observers.conns = Some(Box::new(callback));
        self
    }

    /// Called on the events thread whenever the server enters a phase, from [`Phase::Serving`] to [`Phase::Stopped`]:
    /// there [`Server::outcome`] and [`Server::wait`] say how it has ended, and those who wait are told afterwards.
    pub fn on_phase(mut self, callback: impl FnMut(Phase) + Send + 'static) -> Self {
        self.observers.phases = Some(Box::new(callback));
        self
    }

    /// Called on the events thread with what a person should know. The library itself prints nothing.
    pub fn on_log(mut self, callback: impl FnMut(LogLevel, &str) + Send + 'static) -> Self {
        self.observers.logs = Some(Box::new(callback));
        self
    }

    /// Makes events of all kinds, to be taken by [`Server::next_event`]; callbacks set here are not called then, and
    /// there is no events thread.
    pub fn pull_events(self) -> Self {
        self.pull(Interest {
            stats: true,
            conns: true,
            phases: true,
            logs: true,
        })
    }

    pub(crate) fn pull(mut self, interest: Interest) -> Self {
        self.pulled = Some(interest);
        self
    }

    /// Has the server put there before any of its threads runs, and so before any callback does.
    #[cfg(feature = "capi")]
    pub(crate) fn slot(mut self, slot: Arc<OnceCell<Server>>) -> Self {
        self.slot = Some(slot);
        self
    }

    /// How many threads drive connections. Default: one for each processor that the process may use.
    pub fn io_threads(mut self, count: NonZeroUsize) -> Self {
        self.io_threads = Some(count);
        self
    }

    /// Accepts and drives connections on this runtime, whose I/O and time must be enabled, instead of threads of the
    /// server's own. It must outlive the server, which else stops with an error. Not the one that this is called on,
    /// unless you say so: a server on its own threads stops on time whatever happens on the host's.
    ///
    /// What a service spawns is the host's then, and goes on behind the stop.
    ///
    /// On its threads wait by [`Server::stop`] and [`Server::wait`], which are async. A call that blocks there, such as
    /// [`Server::stop_blocking`] or [`Server::run`], fails with [`Error::WouldDeadlock`] if the runtime does not get on
    /// meanwhile: on the thread of a current-thread runtime, or on the last worker of another that is not blocked. In
    /// `spawn_blocking` it may wait.
    pub fn runtime(mut self, runtime: tokio::runtime::Handle) -> Self {
        self.runtime = Some(Arc::new(LentRuntime::new(runtime)));
        self
    }

    /// [`Builder::listen`] binds as [`Listener::bind_reuse_port`]. Default: no.
    pub fn reuse_port(mut self, reuse: bool) -> Self {
        self.reuse_port = reuse;
        self
    }

    /// As [`Listener::bind`], and counts a failure: `listen.error` is told to the [`Stats`] set so far, on this thread,
    /// because there is no events thread yet.
    ///
    /// # Errors
    /// As [`Listener::bind`].
    pub fn listen(&mut self, addr: &str) -> Result<Listener> {
        let bound = if self.reuse_port {
            Listener::bind_reuse_port(addr)
        } else {
            Listener::bind(addr)
        };
        bound.inspect_err(|_| {
            if let Some(stats) = &mut self.observers.stats {
                stats.bump_sum("listen.error", 1.0);
            }
        })
    }

    /// Serves a hyper service: a clone of it for each connection. Returns at once.
    ///
    /// The service is called on threads of the server's own, each of which has a current-thread runtime of tokio's,
    /// whose timers and sockets it can use. Tasks that it spawns there (`tokio::spawn`) go on as long as the server
    /// does: at the end of the stop they are dropped, which the [log](Builder::on_log) tells. `block_in_place` panics
    /// there. A service for which that is not enough is to get a runtime of its own: [`Builder::runtime`].
    ///
    /// A service that fails or panics is answered for with a 500.
    ///
    /// ```
    /// # use std::convert::Infallible;
    /// # use bytes::Bytes;
    /// # use http_body_util::Full;
    /// # use hyper::{Request, Response, body::Incoming, service::service_fn};
    /// # use httpdown::{Listener, Server};
    /// # fn main() -> httpdown::Result<()> {
    /// let hello = service_fn(|_: Request<Incoming>| async {
    ///     Ok::<_, Infallible>(Response::new(Full::new(Bytes::from("Hello, World!"))))
    /// });
    /// let server = Server::builder().serve(Listener::bind("127.0.0.1:0")?, hello)?;
    /// server.stop_blocking()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] without a listener, or if a setting makes no sense; [`Error::OutOfResources`] if a
    /// thread or a descriptor cannot be had; [`Error::Forked`].
    pub fn serve<S, B>(self, listeners: impl Into<Listeners>, service: S) -> Result<Server>
    where
        S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send + 'static,
        B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        self.start(listeners.into(), None, |_, _| {
            (conn::clones(Plain(service)), Backend::Direct)
        })
    }

    /// Serves a tower service, an axum `Router` for instance: as [`Builder::serve`], a clone of it for each request.
    ///
    /// axum spawns a task for each upgrade, and applications spawn others: give it their [runtime](Builder::runtime). A
    /// handler has the client's address by [`Builder::conn_info`] and `Extension<ConnInfo>`. `examples/axum.rs` is a
    /// whole program, with streams of events and web sockets that end when a stop begins.
    ///
    /// ```
    /// # use httpdown::{Listener, Server};
    /// use axum::{Router, routing::get};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> httpdown::Result<()> {
    /// let app = Router::new().route("/", get(async || "Hello, World!"));
    /// let server = Server::builder()
    ///     .runtime(tokio::runtime::Handle::current())
    ///     .serve_tower(Listener::bind("127.0.0.1:0")?, app)?;
    /// server.stop().await?; // or: server.run_async().await? until SIGTERM or SIGINT
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Builder::serve`].
    pub fn serve_tower<S, B>(self, listeners: impl Into<Listeners>, service: S) -> Result<Server>
    where
        S: tower_service::Service<Request<Incoming>, Response = Response<B>>,
        S: Clone + Send + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send + 'static,
        B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        self.serve(listeners, TowerToHyperService::new(service))
    }

    /// Serves each connection by a service of its own, which `make` makes for it: as [`Builder::serve`]. `make` is
    /// called on the thread that drives the connection, for one connection at a time. A tower service goes through
    /// [`TowerToHyperService`].
    ///
    /// ```
    /// # use std::convert::Infallible;
    /// # use bytes::Bytes;
    /// # use http_body_util::Full;
    /// # use hyper::{Request, Response, body::Incoming, service::service_fn};
    /// # use httpdown::{Listener, Server};
    /// # fn main() -> httpdown::Result<()> {
    /// let listener = Listener::bind("127.0.0.1:0")?;
    /// let server = Server::builder().serve_connections(listener, |server, conn| {
    ///     let server = server.clone();
    ///     service_fn(move |_: Request<Incoming>| {
    ///         let text = format!("{}, connection {} of {server:?}", conn.peer, conn.id);
    ///         async { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text)))) }
    ///     })
    /// })?;
    /// server.stop_blocking()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Builder::serve`].
    pub fn serve_connections<S, B>(
        self,
        listeners: impl Into<Listeners>,
        mut make: impl FnMut(&Server, ConnInfo) -> S + Send + 'static,
    ) -> Result<Server>
    where
        S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send + 'static,
        B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        let make = move |conn: &Arc<Conn>| {
            let server = Server::of(Arc::clone(conn.shared()));
            Plain(make(&server, conn.info()))
        };
        self.start(listeners.into(), None, |_, _| (make, Backend::Direct))
    }

    /// Serves a handler, on the threads that `dispatch` says. Returns at once. See [`Exchange`](crate::Exchange) for
    /// what a handler does.
    ///
    /// # Errors
    /// As [`Builder::serve`].
    pub fn handle(
        self,
        listeners: impl Into<Listeners>,
        dispatch: Dispatch,
        handler: impl Handler,
    ) -> Result<Server> {
        self.start(listeners.into(), None, move |id, mask| {
            let dispatcher = Dispatcher::new(dispatch, handler, id, mask);
            let backend = dispatcher.backend();
            (conn::clones(dispatcher), backend)
        })
    }

    /// Serves requests by queueing them: see [`Server::queue`]. Returns at once.
    ///
    /// # Errors
    /// As [`Builder::serve`].
    pub fn queue(self, listeners: impl Into<Listeners>) -> Result<Server> {
        let queue = RequestQueue::new(self.runtime.clone());
        let dispatcher = Dispatcher::Queue(queue.clone());
        self.start(listeners.into(), Some(queue), |_, _| {
            let backend = dispatcher.backend();
            (conn::clones(dispatcher), backend)
        })
    }

    fn interest(&self) -> Interest {
        self.pulled.unwrap_or_else(|| self.observers.interest())
    }

    /// What the server's threads will share. Nothing runs yet.
    pub(crate) fn shared(
        &self,
        id: u64,
        listeners: &[Listener],
        queue: Option<RequestQueue>,
        runtime: tokio::runtime::Handle,
    ) -> Result<Shared> {
        let clock = self.clock.clone();
        let announcement = format!("timeout={}", self.config.announced());
        let announcement = HeaderValue::try_from(announcement).ok();
        Ok(Shared {
            id,
            announcement: announcement.filter(|_| self.config.keep_alive_header),
            config: self.config.clone(),
            clock: clock.unwrap_or_else(|| Arc::new(SystemClock::default())),
            events: Events::new(self.interest(), self.pulled.is_some()),
            accept_failures: Rarely::default(),
            drive_failures: Rarely::default(),
            orders: Orders::new()?,
            phases: Phases::default(),
            last_request: Latest::default(),
            registry: Registry::default(),
            ledger: Ledger::default(),
            ends: Ends::default(),
            abandoned: Count::default(),
            unaccepted: Count::default(),
            stop: Mutex::default(),
            outcome: Outcome::default(),
            helper: Helper::default(),
            last_report: OnceCell::new(),
            local_addrs: listeners.iter().map(Listener::local_addr).collect(),
            queue,
            pulls_events: self.pulled.is_some(),
            runtime,
            lent: self.runtime.clone(),
            threads: Mutex::default(),
        })
    }

    /// `respond`: has what makes for each connection what answers its requests.
    fn start<R: Respond + Clone, M: FnMut(&Arc<Conn>) -> R + Send + 'static>(
        self,
        listeners: Listeners,
        queue: Option<RequestQueue>,
        respond: impl FnOnce(u64, SignalMask) -> (M, Backend) + Send + 'static,
    ) -> Result<Server> {
        if process::forked() {
            return Err(Error::Forked);
        }
        let Listeners(listeners) = listeners;
        if listeners.is_empty() {
            return Err(Error::InvalidArgument("no address to listen on".into()));
        }
        self.config.check()?;
        let mask = SignalMask::here().and_pipe();
        runtime::elsewhere(move || self.start_here(listeners, queue, mask, respond))
    }

    /// On a thread of its own. `mask`: what threads block on which the host's code runs.
    fn start_here<R: Respond + Clone, M: FnMut(&Arc<Conn>) -> R + Send + 'static>(
        self,
        listeners: Vec<Listener>,
        queue: Option<RequestQueue>,
        mask: SignalMask,
        respond: impl FnOnce(u64, SignalMask) -> (M, Backend),
    ) -> Result<Server> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let control_runtime = runtime::new_runtime()?;
        let interest = self.interest();
        let runtime = control_runtime.handle().clone();
        let shared = Arc::new(self.shared(id, &listeners, queue, runtime)?);
        let (make, backend) = respond(id, mask);
        let (threads, executor) = match self.runtime {
            Some(lent) => (IoThreads::default(), Executor::on(lent)),
            None => IoThreads::start(id, self.io_threads, backend.hands_over(), mask)?,
        };
        let server = Server { shared };
        if let Some(slot) = self.slot {
            let _ = slot.set(server.clone());
        }
        let start = |name: &str, mask: Option<SignalMask>, body: Box<dyn FnOnce() + Send>| {
            runtime::spawn_thread(name, id, Role::Other, mask, body)
        };
        let started = if self.pulled.is_none() && interest.any() {
            let shared = Arc::clone(&server.shared);
            let observers = self.observers;
            shared.events.will_deliver();
            start(
                "httpdown-events",
                Some(mask),
                Box::new(move || shared.events.deliver_all(observers)),
            )
            .inspect_err(|_| server.shared.events.none_delivers())
            .map(Some)
        } else {
            Ok(None)
        };
        let started = started.and_then(|events| {
            server.threads().extend(events);
            let helper = server.shared.helper.clone();
            start("httpdown-aux", Some(mask), Box::new(move || helper.live()))
        });
        let started = started.and_then(|helper| {
            let workers = executor.clone();
            // One for all, to be called on the threads that serve: whatever the host does there.
            let make = Arc::new(Mutex::new(make));
            let control = Control {
                shared: Arc::clone(&server.shared),
                listeners,
                executor,
                threads,
                backend,
                serve: Arc::new(move |accepted| conn::serve(accepted, &make, workers.worker())),
            };
            let (hand_over, handed_over) = mpsc::channel();
            let body = move || {
                if let Ok(helper) = handed_over.recv() {
                    control.run(control_runtime, helper);
                }
            };
            let started = start("httpdown-ctl", None, Box::new(body));
            // Whoever has it joins it: if there is no control thread, we do.
            let ours = match &started {
                Ok(_) => hand_over.send(helper).err().map(|unsent| unsent.0),
                Err(_) => Some(helper),
            };
            server.threads().extend(ours);
            started
        });
        match started {
            Ok(control) => server.threads().push(control),
            Err(error) => {
                server.shared.events.close();
                server.shared.helper.end();
                server.join();
                return Err(error);
            }
        }
        Ok(server)
    }
}

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
            Poll::Pending if runtime::on_thread_of(self.shared.id) => {
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
        for_tasks(async move { shared.stopping().await })
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
        let error = self.shared.check_can_wait().err()?;
        Some(self.shared.outcome.get().unwrap_or(Err(error)))
    }

    /// As [`Server::cannot_wait`], for a call that blocks.
    fn cannot_block(&self, deadline: Option<Instant>) -> Option<Result<()>> {
        let check = match self.shared.outcome.get() {
            None => self.shared.check_can_block(deadline),
            Some(_) => self.shared.check_can_wait(),
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
        match self.shared.check_can_block(None) {
            Err(Error::Forked) => {}
            Err(_) => {
                // Should no thread be had, the server still ends; only its threads are then not joined.
                let id = self.shared.id;
                let body = move || self.wait_and_join();
                // The last of the host's callbacks may be called there, too: as where they were called before.
                let mask = Some(SignalMask::here().and_pipe());
                let _ = runtime::spawn_thread("httpdown-free", id, Role::Other, mask, body);
            }
            Ok(()) => self.wait_and_join(),
        }
    }

    fn wait_and_join(&self) {
        let _ = self.shared.outcome.wait_until(None);
        self.join();
    }

    fn join(&self) {
        let patience = self.shared.config.kill_timeout.max(END_GRACE);
        let deadline = runtime::deadline(patience);
        let threads = std::mem::take(&mut *self.threads());
        // Callbacks that do not return are left behind.
        let _ = runtime::join_all(threads, deadline);
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
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.shared.local_addrs
    }

    /// The queue, if the server was started by [`Builder::queue`].
    #[must_use]
    pub fn queue(&self) -> Option<&RequestQueue> {
        self.shared.queue.as_ref()
    }

    /// Takes the oldest event, waiting for one until `deadline` (`None`: as long as the server lives).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] unless the server was built with [`Builder::pull_events`]; [`Error::WouldBlock`]
    /// when the deadline has passed; [`Error::Stopped`] when the server has ended and all were taken.
    pub fn next_event(&self, deadline: Option<Instant>) -> Result<Event> {
        if !self.shared.pulls_events {
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
    /// With it, and that of the [queue](RequestQueue::descriptor), one thread can serve and stop: it begins the stop,
    /// and goes on taking, answering and looking until it finds the end here.
    ///
    /// # Errors
    /// [`Error::OutOfResources`] or [`Error::Io`] if no descriptor can be had.
    pub fn event_descriptor(&self) -> Result<BorrowedFd<'_>> {
        let descriptor = self.shared.events.descriptor();
        descriptor.map_err(|error| Error::io("making the events' descriptor", error))
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

/// SIGTERM and SIGINT, caught: from before a server starts, so that none is missed. Dropped, it restores what the
/// signals did before. In a child that is forked meanwhile they do what they did before at once, and no server can be
/// started there ([`Error::Forked`]): a daemon forks first.
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
pub struct Signals(StopSignals);

impl Signals {
    /// Catches them. Only one server, or group of servers, can be run by signals in a process.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if they are caught already; [`Error::Forked`].
    pub fn catch() -> Result<Self> {
        if process::forked() {
            return Err(Error::Forked);
        }
        let signals = StopSignals::catch().map_err(|error| Error::io("sigaction", error))?;
        let busy = || Error::Unsupported("another run is under way in this process".into());
        signals.map(Self).ok_or_else(busy)
    }

    /// As [`Server::run`].
    ///
    /// # Errors
    /// As [`Server::run`].
    pub fn run(self, server: &Server) -> Result<Report> {
        if let Some(Err(error)) = server.cannot_block(None) {
            return Err(error);
        }
        let hearing = self.0.hear_here();
        let watching = self.watch(server);
        let result = server.wait_blocking(None);
        // First: a signal that was blocked must not do now what it would have done if it had not been.
        drop(hearing);
        drop(watching);
        result
    }

    /// As [`Server::run_async`].
    ///
    /// # Errors
    /// As [`Server::run_async`].
    pub async fn run_async(self, server: &Server) -> Result<Report> {
        if let Some(Err(error)) = server.cannot_wait() {
            return Err(error);
        }
        let _watching = self.watch(server);
        server.wait().await
    }

    /// Has the signals stop the server.
    fn watch(self, server: &Server) -> Watching {
        let Self(signals) = self;
        let kept = Arc::new(Mutex::new(Some(signals)));
        let caught = Arc::clone(&kept);
        let watched = server.clone();
        let pause = server.shared.config.second_signal;
        let watch = async move {
            let mut watch = SignalWatch::new()?;
            watch.next(pause).await?;
            watched.stop_begin();
            watch.next(pause).await?;
            watched.kill_begin();
            // What tells the second again is not the third.
            tokio::time::sleep(pause).await;
            let_go(&caught);
            Ok::<_, io::Error>(())
        };
        let task = server.shared.runtime.spawn(watch);
        Watching { task, caught: kept }
    }
}

/// Signals are watched until it is dropped, or the server has ended.
struct Watching {
    task: JoinHandle<io::Result<()>>,
    caught: Arc<Mutex<Option<StopSignals>>>,
}

/// Has signals do again what they did before.
fn let_go(caught: &Mutex<Option<StopSignals>>) {
    drop(caught.lock().unwrap_or_else(PoisonError::into_inner).take());
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.task.abort();
        let_go(&self.caught);
    }
}
