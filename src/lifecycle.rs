//! The life of a server, and above all its end: one state machine, on a thread that no handler can block.
//!
//! ```text
//! serving ──► lame duck ──► quiescing ──► draining ──► killing ──► stopped
//! ```

use std::os::fd::{AsFd, BorrowedFd};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::accept::{self, Accepting, Serve};
use crate::census::Census;
use crate::contain::contain;
use crate::dispatch::Backend;
use crate::error::{Error, Result};
use crate::events::LogLevel;
use crate::listener::Listener;
use crate::runtime::{self, END_GRACE, Executor, IoThreads, Thread};
use crate::server::Shared;
use crate::stats::StatKind;
use crate::sys::{self, EventFd};

/// How long connections may take to notice a kill by themselves before their sockets are reset from here. Only those
/// whose I/O thread a handler blocks need that; the others use the time to write what is ready to be written.
const KILL_GRACE: Duration = Duration::from_millis(100);
/// How often connections are counted for the statistics.
const STATE_INTERVAL: Duration = Duration::from_secs(60);

/// How far a server has come. A phase only moves forward.
///
/// ```
/// # use httpdown::{Dispatch, Exchange, Listener, Phase, Server};
/// # use std::sync::mpsc;
/// # fn main() -> httpdown::Result<()> {
/// let (tell, told) = mpsc::channel();
/// let handler = |exchange: Exchange| drop(exchange);
/// let server = Server::builder()
///     .on_phase(move |phase| drop(tell.send(phase)))
///     .handle(Listener::bind("127.0.0.1:0")?, Dispatch::default(), handler)?;
/// server.stop_blocking()?;
/// let phases: Vec<Phase> = told.try_iter().collect();
/// assert!(phases.is_sorted());
/// assert_eq!(phases.last(), Some(&Phase::Stopped));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
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

/// The phase, to be looked at by every connection; and the stop and the kill, to be waited for.
#[derive(Debug, Default)]
pub(crate) struct Phases {
    current: AtomicU8,
    killing: Notify,
    killing_for_tasks: Notify,
    /// For tasks, too.
    stopping: Notify,
}

/// Who waits: whose waker is to be called.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Waiter {
    /// A thread, by a waker of ours.
    Thread,
    /// A task of the host's, by the host's waker, which may block: it is told last.
    Task,
}

impl Phases {
    pub(crate) fn get(&self) -> Phase {
        Phase::from_u8(self.current.load(Ordering::Acquire))
    }

    fn set(&self, phase: Phase) {
        self.current.store(phase as u8, Ordering::Release);
    }

    /// Waits until the stop begins, if it has not before this call.
    pub(crate) fn stopping(&self) -> Notified<'_> {
        self.stopping.notified()
    }

    /// Waits until the server kills.
    pub(crate) async fn killing(&self, waiter: Waiter) {
        let told = match waiter {
            Waiter::Thread => self.killing.notified(),
            Waiter::Task => self.killing_for_tasks.notified(),
        };
        if self.get() < Phase::Killing {
            told.await;
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

/// Everything that the control thread owns.
pub(crate) struct Control {
    pub(crate) shared: Arc<Shared>,
    pub(crate) listeners: Vec<Listener>,
    pub(crate) executor: Executor,
    pub(crate) threads: IoThreads,
    pub(crate) backend: Backend,
    /// Has a connection driven on the executor. The last one of these is to be dropped by the helper: what answers
    /// requests is the host's, and goes with it.
    pub(crate) serve: Serve,
}

impl Control {
    /// The life of the control thread: from the first connection to the last, and then the answer to all who wait.
    pub(crate) fn run(self, runtime: tokio::runtime::Runtime, helpers: Thread) {
        // Whatever happens here, those who wait get an answer.
        let settling = Settling(Arc::clone(&self.shared));
        let life = live(
            &self.shared,
            self.listeners,
            &self.executor,
            &self.serve,
            &self.backend,
        );
        let lived = contain(|| runtime.block_on(life));
        let end = lived.unwrap_or(End {
            result: Err(Error::Panicked),
            patience: Duration::ZERO,
        });
        drop(runtime);
        let deadline = runtime::deadline(end.patience);
        let helper = self.shared.helper.clone();
        // What serves goes before those that wait are told: then nothing of the host's is called any more.
        let serve = self.serve;
        drop(helper.run(move || drop(serve)));
        let mut ended = self.backend.end_threads(deadline);
        let (threads_ended, left) = self.threads.stop(deadline);
        ended &= threads_ended;
        if left > 0 {
            let text = format!(
                "{left} tasks that a service had spawned on the server's threads were dropped; on a runtime of your \
                 own (Builder::runtime) they go on"
            );
            self.shared.events.log(LogLevel::Warning, text);
        }
        let backend = self.backend;
        drop(helper.run(move || drop(backend)));
        helper.end();
        ended &= helpers.join(deadline);
        self.shared.phases.set(Phase::Stopped);
        self.shared.events.phase(Phase::Stopped);
        self.shared.events.close();
        // What of the host's is still running then has been abandoned.
        let result = match end.result {
            Ok(()) | Err(Error::Killed(_)) if !ended => Err(Error::TimedOut(None)),
            result => result,
        };
        settling.0.settle(result);
        // A callback that blocks is no reason to keep those who wait.
        let deadline = runtime::deadline(END_GRACE);
        self.shared.events.wait_delivered(deadline);
        drop(settling);
    }
}

/// Dropped, it tells those who wait how the server has ended; if that is not settled, that the control thread has
/// failed.
struct Settling(Arc<Shared>);

impl Drop for Settling {
    fn drop(&mut self) {
        self.0.settle(Err(Error::Panicked));
        self.0.outcome.tell();
        // Behind that: who sees this finds how it has ended.
        self.0.events.end();
    }
}

/// How the last connection has ended, and how long threads may take to do so.
struct End {
    result: Result<()>,
    patience: Duration,
}

/// Begins a phase. Every connection looks at it, if it changes what they do between two requests or in one; but not
/// before the helper comes to it, for to wake a task may be to drop it, if its runtime has gone.
fn enter(shared: &Arc<Shared>, phase: Phase) {
    shared.phases.set(phase);
    shared.events.phase(phase);
    let tells = Arc::clone(shared);
    drop(shared.helper.run(move || announce(&tells, phase)));
}

fn announce(shared: &Shared, phase: Phase) {
    let kills = phase >= Phase::Killing;
    if kills {
        shared.phases.killing.notify_waiters();
    }
    if !matches!(phase, Phase::LameDuck | Phase::Draining) {
        shared.registry.wake_all();
    }
    if kills {
        shared.phases.killing_for_tasks.notify_waiters();
    }
    shared.phases.stopping.notify_waiters();
}

/// As [`enter`], done when it returns.
#[cfg(test)]
pub(crate) fn enter_here(shared: &Shared, phase: Phase) {
    shared.phases.set(phase);
    shared.events.phase(phase);
    announce(shared, phase);
}

/// Serves until a stop, and stops.
async fn live(
    shared: &Arc<Shared>,
    listeners: Vec<Listener>,
    executor: &Executor,
    serve: &Serve,
    backend: &Backend,
) -> End {
    let clock = &*shared.clock;
    let config = &shared.config;
    let events = &shared.events;
    let inbox = match Inbox::new(&shared.orders) {
        Ok(inbox) => inbox,
        Err(error) => {
            return End {
                result: Err(error),
                patience: config.kill_timeout,
            };
        }
    };
    let census = Census::new();
    if events.interest().stats {
        tokio::spawn(count_connections(Arc::clone(shared)));
    }
    events.sum("serve", 1.0);
    events.phase(Phase::Serving);
    let mut accepting = Accepting::start(listeners, shared, executor, serve);

    let mut serve_error = tokio::select! {
        biased;
        () = inbox.at_least(Order::Stop) => None,
        error = accepting.failed() => Some(error),
    };

    let stop_began = clock.now();
    shared.stop_began(stop_began);
    if let Some(error) = &serve_error {
        events.log(LogLevel::Error, format!("serving failed: {error:#}"));
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
                error = accepting.failed() => Some(error),
            };
        }
    }

    shared.quiescing_began(clock.now());
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
        () = accepting.quiesce(census) => true,
        () = &mut out_of_time => false,
    };
    let quiet = quiet
        && tokio::select! {
            biased;
            () = accepting.released() => true,
            () = &mut out_of_time => false,
        };
    let close_error = accepting.close().await;
    enter(shared, Phase::Draining);
    let drained = quiet
        && tokio::select! {
            biased;
            () = shared.registry.emptied() => true,
            () = &mut out_of_time => false,
        };
    // Connections that end because the host's runtime does are not drained.
    if drained && serve_error.is_none() && executor.is_gone().await {
        serve_error = Some(accept::runtime_gone());
    }
    let cut = if drained {
        None
    } else {
        Some(kill(shared, backend).await)
    };
    if close_error.is_some() {
        events.sum("listener.close.error", 1.0);
    }
    let stop_ended = clock.now();
    shared.stop_ended(stop_ended);
    if serve_error.is_none() {
        let seconds = stop_ended.saturating_sub(stop_began).as_secs_f64();
        events.stat(StatKind::Time, "stop.time", seconds);
    }

    conclude(shared, cut, serve_error.or(close_error))
}

/// What a stop comes to. `cut`: how the kill went, if it came to one.
fn conclude(shared: &Shared, cut: Option<Cut>, error: Option<Error>) -> End {
    let kill_timeout = shared.config.kill_timeout;
    let patience = match cut {
        None => kill_timeout,
        // What has not ended by now is the host's, and its time is over.
        Some(Cut { ended: false, .. }) => {
            return End {
                result: Err(Error::TimedOut(None)),
                patience: Duration::ZERO,
            };
        }
        Some(Cut { began, .. }) => kill_timeout.saturating_sub(began.elapsed()),
    };
    let report = shared.report();
    let is_cut = report.killed + report.conns_killed + report.unaccepted > 0;
    End {
        result: match error {
            _ if is_cut => Err(Error::Killed(None)),
            Some(error) => Err(error),
            None => Ok(()),
        },
        patience: patience.max(END_GRACE),
    }
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

/// How a kill went.
#[derive(Clone, Copy)]
struct Cut {
    began: Instant,
    /// Everything ended within the kill timeout.
    ended: bool,
}

/// Cuts what is left.
async fn kill(shared: &Arc<Shared>, backend: &Backend) -> Cut {
    let killing = Instant::now();
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
    Cut {
        began: killing,
        ended,
    }
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
