//! The server as its host sees it: built, started, asked, stopped.

mod accept;
mod door;
mod lifecycle;

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

use http::{HeaderValue, Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use once_cell::sync::OnceCell;
use tokio::task::JoinHandle;

use crate::clock::{Clock, Latest, SystemClock};
use crate::conn::{self, BoxError, Conn, Plain, Respond};
use crate::conn_info::ConnInfo;
use crate::contain::for_tasks;
use crate::dispatch::{Backend, Dispatch, Dispatcher, Handler, RequestQueue};
use crate::error::{Error, Result};
use crate::events::{ConnEvent, Event, Events, Interest, LogLevel, Observers};
use crate::ledger::{Count, Ends, Ledger};
use crate::net::{Listener, Listeners};
use crate::options::Options;
use crate::orders::{Order, Orders};
use crate::outcome::Outcome;
use crate::phase::{Phase, Phases};
use crate::process::{self, SignalWatch, StopSignals};
use crate::registry::Registry;
use crate::report::Report;
use crate::request::{Exchange, is_held_here};
use crate::shared::Shared;
use crate::stats::Stats;
use crate::sys::SignalMask;
use crate::threads::{self, END_GRACE, Executor, Helper, IoThreads, LentRuntime, Role, Thread};
use crate::throttle::Throttle;

use lifecycle::Control;

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
    options: Options,
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
        self.options.stop_timeout = timeout;
        self
    }

    /// How long a kill waits for handlers that were cut to return, before it abandons them; and the end of the server
    /// for what else of the host's runs on its threads (the handler's `Drop`, thread-local destructors), there at
    /// least a second, and in real time. Default: 1 minute. [`Duration::MAX`]: no limit. On the server's
    /// [clock](Builder::clock).
    pub fn kill_timeout(mut self, timeout: Duration) -> Self {
        self.options.kill_timeout = timeout;
        self
    }

    /// How long a stop goes on accepting, while [`Server::is_ready`] says no and responses say `Connection: close`, so
    /// that load balancers and clients go elsewhere. Default: 0. On the server's [clock](Builder::clock).
    pub fn lame_duck(mut self, duration: Duration) -> Self {
        self.options.lame_duck = duration;
        self
    }

    /// Ends the lame duck early, once no request has come for so long: then nobody sends any here. Requests for the
    /// [ready path](Builder::ready_path) do not count, nor do connections without a request. At most the lame duck's
    /// time. Default: 0, which is never early. On the server's [clock](Builder::clock).
    pub fn lame_duck_quiet(mut self, silence: Duration) -> Self {
        self.options.lame_duck_quiet = silence;
        self
    }

    /// How long the lame duck takes at least, however quiet it is: as long as a load balancer needs to notice (its
    /// checks' interval, times the failures that it wants to see). At most the lame duck's time. Default: 0. On the
    /// server's [clock](Builder::clock).
    pub fn lame_duck_min(mut self, duration: Duration) -> Self {
        self.options.lame_duck_min = duration;
        self
    }

    /// A path, `/healthz` say, that the server answers itself, whatever the handlers are doing: 200 while
    /// [`Server::is_ready`], then 503. For GET, HEAD, and OPTIONS; compared with the path of a request's target byte
    /// for byte, without the query. Such a request counts like any other. Default: none.
    pub fn ready_path(mut self, path: impl Into<String>) -> Self {
        self.options.ready_path = Some(path.into());
        self
    }

    /// Whether each request that a [service](Builder::serve) gets has a [`ConnInfo`](crate::ConnInfo) among its
    /// extensions. Default: no, because the first extension of a request costs three allocations, about a tenth of
    /// what a request costs in user space.
    pub fn conn_info(mut self, inserts: bool) -> Self {
        self.options.conn_info = inserts;
        self
    }

    /// How long a request's head may take from its first byte to its last; then the client gets a 408, and the
    /// connection is closed. Default: 30 seconds. [`Duration::MAX`]: no limit. In real time, whatever the clock.
    pub fn header_timeout(mut self, timeout: Duration) -> Self {
        self.options.header_timeout = timeout;
        self
    }

    /// How long a connection may be without a request while the server serves: between two, or before the first. Then it
    /// is closed; it may live on for a second more. Not 0. Default: no limit ([`Duration::MAX`]), because a close can
    /// cross a request on its way, which is lost then (`raced` in the [`Report`]). Against that, be more patient than
    /// the clients (a load balancer's timeout for idle connections, say), or tell them: [`Builder::keep_alive_header`].
    /// In real time, whatever the clock.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.options.idle_timeout = timeout;
        self
    }

    /// Has responses tell of the idle timeout, `Keep-Alive: timeout=N`, so that clients that know this field leave an
    /// idle connection before the server does. N is the [idle timeout](Builder::idle_timeout) less the
    /// [idle grace](Builder::idle_grace), in whole seconds, and at least 1, so that a request that was sent in the last
    /// moment still comes in time. It is not said where the connection ends, nor in a response that has a `Connection`
    /// or `Keep-Alive` field of its own. Default: false.
    pub fn keep_alive_header(mut self, announce: bool) -> Self {
        self.options.keep_alive_header = announce;
        self
    }

    /// How long a stop goes on accepting connections whose handshake had begun, before it closes the listening sockets
    /// all the same. It ends as soon as there are none; counts within the stop timeout. Default: 4 seconds, which gives
    /// a handshake that lost a segment two more chances (retransmissions come after 1 s and 3 s). In real time, whatever
    /// the clock.
    pub fn quiesce_timeout(mut self, timeout: Duration) -> Self {
        self.options.quiesce_timeout = timeout;
        self
    }

    /// How long a stop leaves a connection between two requests open, so that a request that is on its way is served
    /// and answered with `Connection: close`. More than the round trip to the clients. It is counted from when the
    /// client's kernel has the last answer, and a new connection whose handshake needed repetition gets 4.5 seconds
    /// more for each: so late would its client repeat a request that was lost. Default: 1 second. In real time,
    /// whatever the clock.
    pub fn idle_grace(mut self, grace: Duration) -> Self {
        self.options.idle_grace = grace;
        self
    }

    /// How long a connection that we have closed waits for the client to close its side, so that what was sent last is
    /// not destroyed by a reset. A stop waits longer where a client has not acknowledged all that it was sent, up to the
    /// stop timeout. Default: 2 seconds. In real time, whatever the clock.
    pub fn linger_timeout(mut self, timeout: Duration) -> Self {
        self.options.linger_timeout = timeout;
        self
    }

    /// How long after the first signal of a [run](Server::run) another one counts as the second, which kills; and after
    /// that, as the third. One that comes sooner has told the same thing again: a process manager signals the whole
    /// group, and a wrapper in it forwards what it gets. Zero: at once; [`Duration::MAX`]: never. Default: 500
    /// milliseconds. In real time, whatever the clock.
    pub fn second_signal(mut self, pause: Duration) -> Self {
        self.options.second_signal = pause;
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
        self.start(listeners.into(), |_, _| {
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
        self.start(listeners.into(), |_, _| (make, Backend::Direct))
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
        self.start(listeners.into(), move |id, mask| {
            let dispatcher = Dispatcher::new(dispatch, handler, id, mask);
            let backend = dispatcher.backend();
            (conn::clones(dispatcher), backend)
        })
    }

    /// Serves requests by queueing them, for the host to take on its own threads. Returns at once.
    ///
    /// # Errors
    /// As [`Builder::serve`].
    pub fn queue(self, listeners: impl Into<Listeners>) -> Result<(Server, RequestQueue)> {
        let queue = self.new_queue();
        let server = self.serve_by(queue.clone(), listeners)?;
        Ok((server, queue))
    }

    /// For [`Builder::serve_by`].
    pub(crate) fn new_queue(&self) -> RequestQueue {
        RequestQueue::new(self.runtime.clone())
    }

    /// As [`Builder::queue`], with a queue that somebody may know already.
    pub(crate) fn serve_by(
        self,
        queue: RequestQueue,
        listeners: impl Into<Listeners>,
    ) -> Result<Server> {
        self.start(listeners.into(), |_, _| {
            let dispatcher = Dispatcher::Queue(queue);
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
        runtime: tokio::runtime::Handle,
    ) -> Result<Shared> {
        let clock = self.clock.clone();
        let announcement = format!("timeout={}", self.options.announced());
        let announcement = HeaderValue::try_from(announcement).ok();
        Ok(Shared {
            id,
            announcement: announcement.filter(|_| self.options.keep_alive_header),
            options: self.options.clone(),
            clock: clock.unwrap_or_else(|| Arc::new(SystemClock::default())),
            events: Events::new(self.interest(), self.pulled.is_some()),
            accept_failures: Throttle::default(),
            drive_failures: Throttle::default(),
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
        respond: impl FnOnce(u64, SignalMask) -> (M, Backend) + Send + 'static,
    ) -> Result<Server> {
        if process::forked() {
            return Err(Error::Forked);
        }
        let Listeners(listeners) = listeners;
        if listeners.is_empty() {
            return Err(Error::InvalidArgument("no address to listen on".into()));
        }
        self.options.check()?;
        let mask = SignalMask::here().and_pipe();
        threads::elsewhere(move || self.start_here(listeners, mask, respond))
    }

    /// On a thread of its own. `mask`: what threads block on which the host's code runs.
    fn start_here<R: Respond + Clone, M: FnMut(&Arc<Conn>) -> R + Send + 'static>(
        self,
        listeners: Vec<Listener>,
        mask: SignalMask,
        respond: impl FnOnce(u64, SignalMask) -> (M, Backend),
    ) -> Result<Server> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let control_runtime = threads::new_runtime()?;
        let interest = self.interest();
        let runtime = control_runtime.handle().clone();
        let shared = Arc::new(self.shared(id, &listeners, runtime)?);
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
            threads::spawn_thread(name, id, Role::Other, mask, body)
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

    /// Like [`Server::check_can_wait`], for a call that blocks the thread: it may be one that drives connections, be it the
    /// host's.
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
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.shared.local_addrs
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
        let pause = server.shared.options.second_signal;
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
