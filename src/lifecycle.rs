//! The life of a server, and above all its end: one state machine, on a thread that no handler can block.
//!
//! ```text
//! serving ──► lame duck ──► quiescing ──► draining ──► killing ──► stopped
//! ```

use std::future::{Future, poll_fn};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use crate::census::Census;
use crate::conn::{Accepted, Registry};
use crate::dispatch::Backend;
use crate::error::{Error, Result};
use crate::events::LogLevel;
use crate::listener::{Accept, Listener};
use crate::runtime::{self, Executor};
use crate::server::Shared;
use crate::stats::StatKind;
use crate::sys::{self, EventFd};

/// How long connections may take to notice a kill by themselves before their sockets are reset from here. Only those
/// whose I/O thread a handler blocks need that; the others use the time to write what is ready to be written.
const KILL_GRACE: Duration = Duration::from_millis(100);
/// How long accepting pauses when there are no descriptors or no memory for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often the listening sockets must be found quiet, one time after the other, before they are closed: a SYN that
/// has just passed, on another processor, is not to be seen for a moment.
const QUIET_LOOKS: u32 = 2;
/// How long it is from one look to the next.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);
/// How long handshakes that the kernel does not list are waited for: a round trip to anywhere, or to most places with
/// a segment lost.
const ROUND_TRIP: Duration = Duration::from_secs(1);
/// How often connections are counted for the statistics.
const STATE_INTERVAL: Duration = Duration::from_secs(60);

/// How far a server has come. A phase only moves forward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// Accepting and answering.
    #[default]
    Serving = 0,
    /// Still accepting, but no longer ready: load balancers should look elsewhere.
    LameDuck = 1,
    /// New handshakes are refused, the old ones taken over, the listening sockets closed; connections begin to drain.
    Quiescing = 2,
    /// No new connections; what is there is finished.
    Draining = 3,
    /// The stop timeout has passed: what is left is cut.
    Killing = 4,
    /// The end.
    Stopped = 5,
}

impl Phase {
    fn from_u8(value: u8) -> Self {
        match value {
            0 => Self::Serving,
            1 => Self::LameDuck,
            2 => Self::Quiescing,
            3 => Self::Draining,
            4 => Self::Killing,
            _ => Self::Stopped,
        }
    }
}

/// The phase, to be looked at by every connection, and waited for by whoever has time.
#[derive(Debug, Default)]
pub(crate) struct Phases {
    current: AtomicU8,
    changed: Notify,
}

impl Phases {
    pub(crate) fn get(&self) -> Phase {
        Phase::from_u8(self.current.load(Ordering::Acquire))
    }

    fn set(&self, phase: Phase) {
        self.current.store(phase as u8, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// Waits until that phase, or a later one, has come.
    pub(crate) async fn reached(&self, phase: Phase) {
        loop {
            let changed = self.changed.notified();
            if self.get() >= phase {
                return;
            }
            changed.await;
        }
    }
}

/// The latest moment at which something has happened, on the server's clock. Any thread may note it.
#[derive(Debug, Default)]
pub(crate) struct Latest(AtomicU64);

impl Latest {
    pub(crate) fn note(&self, now: Duration) {
        let nanos = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        self.0.fetch_max(nanos, Ordering::Relaxed);
    }

    fn get(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

/// What a host can ask of a running server. A later one includes the ones before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Order {
    Stop = 1,
    Kill = 2,
}

/// Where orders are left, from any thread, and even from a signal handler.
#[derive(Debug)]
pub(crate) struct Orders {
    given: AtomicU8,
    wake: EventFd,
}

impl Orders {
    pub(crate) fn new() -> Result<Self> {
        let wake = EventFd::new().map_err(|error| Error::io("eventfd", error))?;
        Ok(Self {
            given: AtomicU8::new(0),
            wake,
        })
    }

    /// Async-signal-safe: an atomic operation and a `write(2)`.
    pub(crate) fn give(&self, order: Order) {
        self.given.fetch_max(order as u8, Ordering::Release);
        self.wake.set();
    }

    pub(crate) fn given(&self, order: Order) -> bool {
        self.given.load(Ordering::Acquire) >= order as u8
    }
}

/// Reads the orders, on the control thread's runtime.
struct Inbox<'a> {
    orders: &'a Orders,
    wake: AsyncFd<BorrowedFd<'a>>,
}

impl<'a> Inbox<'a> {
    fn new(orders: &'a Orders) -> Result<Self> {
        let wake = sys::watch(orders.wake.as_fd())
            .map_err(|error| Error::io("watching for orders", error))?;
        Ok(Self { orders, wake })
    }

    async fn at_least(&self, order: Order) {
        while !self.orders.given(order) {
            match self.wake.readable().await {
                Ok(mut ready) => {
                    self.orders.wake.clear();
                    ready.clear_ready();
                }
                Err(_) => return, // The runtime is going away, and we with it.
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket().as_fd()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket().as_raw_fd()
    }
}

/// The listening sockets, on the control thread's runtime.
struct Acceptor<'a> {
    listeners: Vec<AsyncFd<Listener>>,
    paused: Option<Pin<Box<tokio::time::Sleep>>>,
    shared: &'a Arc<Shared>,
    serve: &'a dyn Fn(Accepted),
}

impl Acceptor<'_> {
    /// Accepts until something fails for good.
    async fn accept(&mut self) -> Error {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        if let Some(pause) = &mut self.paused {
            if pause.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.paused = None;
        }
        for listener in &self.listeners {
            loop {
                let mut ready = match listener.poll_read_ready(cx) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(ready)) => ready,
                    Poll::Ready(Err(error)) => {
                        return Poll::Ready(Error::io("watching a listening socket", error));
                    }
                };
                match self.accept_one(listener.get_ref()) {
                    Accept::Conn(..) | Accept::Again => {}
                    Accept::Empty => ready.clear_ready(),
                    Accept::Exhausted(error) => {
                        self.shared.events.sum("accept.error", 1.0);
                        self.shared
                            .events
                            .log(LogLevel::Warning, format!("accepting pauses: {error}"));
                        let mut pause = Box::pin(tokio::time::sleep(ACCEPT_PAUSE));
                        let _ = pause.as_mut().poll(cx);
                        self.paused = Some(pause);
                        return Poll::Pending;
                    }
                    Accept::Failed(error) => {
                        return Poll::Ready(Error::io("accepting a connection", error));
                    }
                }
            }
        }
        Poll::Pending
    }

    fn accept_one(&self, listener: &Listener) -> Accept {
        let accept = listener.accept();
        if let Accept::Conn(stream, peer, local) = accept {
            (self.serve)(Registry::accept(self.shared, stream, peer, local));
            return Accept::Again;
        }
        accept
    }

    /// Those that listen, and that nobody else accepts from: what waits in a shared one is for whoever does.
    fn owned(&self) -> impl Iterator<Item = &Listener> {
        let all = self.listeners.iter().map(AsyncFd::get_ref);
        all.filter(|listener| !listener.is_shared() && listener.listens())
    }

    /// Takes over who is connected from its own point of view, and lets nobody else in: refuses new handshakes, and
    /// accepts until no old one is left. Where descriptors are short, it waits for connections to end.
    async fn quiesce(&self, mut census: Census) {
        let warn = |why| self.shared.events.log(LogLevel::Warning, why);
        // All of them first: in a group of sockets on one port, each is sent some of the clients.
        for listener in self.owned() {
            if let Err(error) = listener.refuse_new() {
                let addr = listener.local_addr();
                warn(format!(
                    "{addr}: a handshake that begins now may be lost: {error}"
                ));
            }
        }
        let began = Instant::now();
        let mut counted = true;
        let mut quiet = 0;
        while self.owned().next().is_some() {
            let looked = Instant::now();
            let emptied = self.try_empty();
            // Before the queues are looked at: whoever is through with the handshake meanwhile waits in one of them.
            let half_open = census.any_half_open(self.owned()).unwrap_or_else(|error| {
                if std::mem::take(&mut counted) {
                    warn(format!("half-open handshakes cannot be counted: {error}"));
                }
                false
            });
            let pending = half_open || self.owned().any(|listener| listener.queued() > 0);
            quiet = if pending { 0 } else { quiet + 1 };
            let all_seen = || counted && !census.any_cookies();
            if quiet >= QUIET_LOOKS && (began.elapsed() >= ROUND_TRIP || all_seen()) {
                return;
            }
            let pause = if emptied {
                // A look takes as long as the machine has sockets: half of our time is enough.
                LOOK_INTERVAL.max(looked.elapsed())
            } else {
                ACCEPT_PAUSE
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Accepts until the queues are empty. False if descriptors are short.
    fn try_empty(&self) -> bool {
        self.owned().all(|listener| {
            loop {
                // Not by way of tokio, whose budget may call a full queue empty.
                match self.accept_one(listener) {
                    Accept::Conn(..) | Accept::Again => {}
                    Accept::Exhausted(_) => return false,
                    Accept::Empty | Accept::Failed(_) => return true,
                }
            }
        })
    }

    /// Closes the sockets, and counts the connections that are lost by it. Returns the first error.
    fn close(self) -> Option<Error> {
        let mut failed = None;
        let emptied = self.try_empty();
        for listener in self.listeners {
            if !listener.get_ref().is_shared() {
                // Handshakes that are not done by now are no connections yet, from our point of view.
                let waiting = if emptied {
                    0
                } else {
                    listener.get_ref().queued()
                };
                self.shared.unaccepted.add(waiting.into());
            }
            // into_inner takes it out of the epoll set, where it would stay if another process had a copy.
            if let Err(error) = listener.into_inner().close() {
                failed.get_or_insert(Error::io("closing a listening socket", error));
            }
        }
        failed
    }
}

pub(crate) type Serve = Box<dyn Fn(&Executor, Accepted) + Send>;

/// Everything that the control thread owns.
pub(crate) struct Control {
    pub(crate) shared: Arc<Shared>,
    pub(crate) listeners: Vec<Listener>,
    pub(crate) executor: Executor,
    pub(crate) backend: Backend,
    /// Drives a connection on the executor.
    pub(crate) serve: Serve,
}

impl Control {
    /// The life of the control thread: from the first connection to the last, and then the answer to all who wait.
    pub(crate) fn run(self, runtime: tokio::runtime::Runtime) {
        let Self {
            shared,
            listeners,
            executor,
            backend,
            serve,
        } = self;
        let serve_one = |accepted| serve(&executor, accepted);
        let life = live(&shared, listeners, &serve_one, &backend);
        // Whatever happens here, those who wait get an answer.
        let result = catch_unwind(AssertUnwindSafe(|| runtime.block_on(life)))
            .unwrap_or(Err(Error::Panicked));
        drop(runtime);
        // What serves goes before those that wait are told: then nothing of the host's is called any more.
        drop(serve);
        // If handlers had to be abandoned, their time is over.
        let patience = match result {
            Err(Error::TimedOut | Error::Panicked) => Duration::ZERO,
            _ => shared.config.kill_timeout,
        };
        let deadline = runtime::deadline(patience);
        backend.close(deadline);
        executor.stop(deadline);
        enter(&shared, Phase::Stopped);
        shared.events.close();
        shared.settle(result);
    }
}

/// Begins a phase: every connection looks at it.
pub(crate) fn enter(shared: &Shared, phase: Phase) {
    shared.phases.set(phase);
    shared.registry.wake_all();
    shared.events.phase(phase);
}

/// Serves until a stop, and stops.
async fn live(
    shared: &Arc<Shared>,
    listeners: Vec<Listener>,
    serve: &dyn Fn(Accepted),
    backend: &Backend,
) -> Result<()> {
    let clock = &*shared.clock;
    let config = &shared.config;
    let events = &shared.events;
    let inbox = Inbox::new(&shared.orders)?;
    let census = Census::new();
    let listeners = listeners
        .into_iter()
        .map(sys::watch)
        .collect::<std::io::Result<_>>()
        .map_err(|error| Error::io("watching a listening socket", error))?;
    let mut acceptor = Acceptor {
        listeners,
        paused: None,
        shared,
        serve,
    };
    if events.interest().stats {
        tokio::spawn(count_connections(Arc::clone(shared)));
    }
    events.sum("serve", 1.0);
    events.phase(Phase::Serving);

    let mut serve_error = tokio::select! {
        biased;
        () = inbox.at_least(Order::Stop) => None,
        error = acceptor.accept() => Some(error),
    };

    let stop_began = clock.now();
    shared.stop_began(stop_began);
    if let Some(error) = &serve_error {
        events.log(LogLevel::Error, format!("serving failed: {error}"));
    } else {
        events.sum("stop", 1.0);
        let open = shared.report().conns_open;
        events.stat(StatKind::Histogram, "stop.conn.count", open as f64);
        if !config.lame_duck.is_zero() {
            enter(shared, Phase::LameDuck);
            serve_error = tokio::select! {
                biased;
                () = inbox.at_least(Order::Kill) => None,
                () = clock.sleep(config.lame_duck) => None,
                () = quiet(shared, stop_began), if !config.lame_duck_quiet.is_zero() => None,
                error = acceptor.accept() => Some(error),
            };
        }
    }

    let stop_timeout = clock.sleep(config.stop_timeout);
    let mut out_of_time = pin!(async {
        tokio::select! {
            () = inbox.at_least(Order::Kill) => {}
            () = stop_timeout => {}
        }
    });
    enter(shared, Phase::Quiescing);
    let quiet = tokio::select! {
        biased;
        () = acceptor.quiesce(census) => true,
        // In real time, as the retransmissions of the kernel are.
        () = tokio::time::sleep(config.quiesce_timeout) => true,
        () = &mut out_of_time => false,
    };
    let close_error = acceptor.close();
    enter(shared, Phase::Draining);
    let drained = quiet
        && tokio::select! {
            biased;
            () = shared.registry.emptied() => true,
            () = out_of_time => false,
        };
    let ended = drained || kill(shared, backend).await;
    if close_error.is_some() {
        events.sum("listener.close.error", 1.0);
    }
    let stop_ended = clock.now();
    shared.stop_ended(stop_ended);
    if serve_error.is_none() {
        let seconds = stop_ended.saturating_sub(stop_began).as_secs_f64();
        events.stat(StatKind::Time, "stop.time", seconds);
    }

    if !ended {
        return Err(Error::TimedOut);
    }
    let report = shared.report();
    if report.killed + report.conns_killed + report.unaccepted > 0 {
        return Err(Error::Killed);
    }
    serve_error.or(close_error).map_or(Ok(()), Err)
}

/// Waits until no request has come for as long as it takes to believe that nobody sends any more.
async fn quiet(shared: &Shared, lame_since: Duration) {
    let config = &shared.config;
    let earliest = lame_since.saturating_add(config.lame_duck_min);
    loop {
        let last = shared.last_request.get().max(lame_since);
        let end = last.saturating_add(config.lame_duck_quiet).max(earliest);
        let left = end.saturating_sub(shared.clock.now());
        if left.is_zero() {
            return;
        }
        shared.clock.sleep(left).await;
    }
}

/// Cuts what is left. True if everything ended within the kill timeout.
async fn kill(shared: &Arc<Shared>, backend: &Backend) -> bool {
    let clock = &*shared.clock;
    let events = &shared.events;
    let began = clock.now();
    let kill_timeout = clock.sleep(shared.config.kill_timeout);
    events.sum("kill", 1.0);
    events.sum("kill.conn.count", shared.report().conns_open as f64);
    backend.refuse_queued();
    enter(shared, Phase::Killing);

    let mut emptied = pin!(shared.registry.emptied());
    let mut ended = tokio::select! {
        () = &mut emptied => true,
        () = tokio::time::sleep(KILL_GRACE) => false,
    };
    if !ended {
        shared.registry.reset_all();
        ended = tokio::select! {
            biased;
            () = emptied => true,
            () = kill_timeout => false,
        };
    }
    if !ended {
        shared.abandoned.add(shared.registry.held());
        shared.registry.abandon_all();
        events.sum("kill.timeout", 1.0);
    }
    let seconds = clock.now().saturating_sub(began).as_secs_f64();
    events.stat(StatKind::Time, "kill.time", seconds);
    ended
}

/// Once a minute, the number of connections in each state.
async fn count_connections(shared: Arc<Shared>) {
    loop {
        shared.clock.sleep(STATE_INTERVAL).await;
        let report = shared.report();
        for (key, count) in [
            ("http-state.new", report.conns_new),
            ("http-state.active", report.conns_active),
            ("http-state.idle", report.conns_idle),
            (
                "http-state.total",
                report.conns_new + report.conns_active + report.conns_idle,
            ),
        ] {
            shared.events.stat(StatKind::Avg, key, count as f64);
        }
    }
}
