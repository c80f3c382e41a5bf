//! What the threads of a server share: what a connection may see of its server, and what the stop works with.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use once_cell::sync::OnceCell;

use crate::addr::Addr;
use crate::clock::{Clock, Latest};
use crate::contain::contain;
use crate::crowd::Crowd;
use crate::error::{Error, Result};
use crate::events::{Events, LogLevel};
use crate::forwarded::Forwarding;
use crate::ledger::{Count, Ends, Ledger};
use crate::limits::{Limit, Limits};
use crate::options::Options;
use crate::orders::{Order, Orders};
use crate::outcome::Outcome;
use crate::phase::{Phase, Phases};
use crate::record::RequestRecord;
use crate::registry::Registry;
use crate::report::Report;
use crate::restart::Restart;
use crate::threads::{Helper, LentRuntime, Readers, Thread};
use crate::throttle::Throttle;
#[cfg(feature = "tls")]
use crate::tls;
use crate::trust::Networks;

/// How long a client may pipeline requests in a stop, at most, before it is told that its connection ends. Without this
/// limit, a stop without a timeout might wait for ever. Half of the default stop timeout.
const MOST_PATIENCE: Duration = Duration::from_secs(30);

/// The times of a stop, on the server's clock.
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
    pub(crate) options: Options,
    /// How a signal restarts the program.
    pub(crate) restart: Option<Restart>,
    /// What responses say about the idle timeout, in a `Keep-Alive` field.
    pub(crate) announcement: Option<HeaderValue>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) events: Events,
    /// The failures of accepting, and of driving what was accepted.
    pub(crate) accept_failures: Throttle,
    pub(crate) drive_failures: Throttle,
    pub(crate) limits: Limits,
    /// The peers that begin with a header of the PROXY protocol, and how often one was missing or malformed.
    pub(crate) proxies: Networks,
    pub(crate) proxy_failures: Throttle,
    /// The proxies whose fields are believed.
    pub(crate) forwarding: Option<Arc<Forwarding>>,
    pub(crate) orders: Orders,
    pub(crate) phases: Phases,
    /// When the last request came that shows that somebody still sends work. Noted only in the lame duck.
    pub(crate) last_request: Latest,
    pub(crate) registry: Registry,
    /// The connections that are busy; counted if [`Options::trim_memory`] is set.
    pub(crate) crowd: Crowd,
    /// The counts of connections that are no longer in the registry.
    pub(crate) ledger: Ledger,
    /// How connections ended.
    pub(crate) ends: Ends,
    pub(crate) abandoned: Count,
    /// Requests that the program has had for longer than it should, and when that was logged.
    pub(crate) overdue: Count,
    pub(crate) overdue_requests: Throttle,
    pub(crate) unaccepted: Count,
    /// How many requests have had their turn to learn of the drain.
    drain_turns: AtomicU64,
    stop: Mutex<StopTimes>,
    /// The sockets are left to another process.
    leaves: AtomicBool,
    /// The new process that has them. 0: none.
    successor: AtomicU32,
    pub(crate) outcome: Outcome,
    pub(crate) helper: Helper,
    /// What reads files that answers send.
    pub(crate) readers: Readers,
    /// The counts at the moment when the outcome was settled. What happens later in abandoned handlers changes nothing.
    last_report: OnceCell<Report>,
    pub(crate) local_addrs: Vec<Addr>,
    /// The control thread's runtime.
    pub(crate) runtime: tokio::runtime::Handle,
    /// The host's runtime, if connections run on it.
    pub(crate) lent: Option<Arc<LentRuntime>>,
    /// How TLS is spoken, if it is.
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<tls::Context>,
    pub(crate) threads: Mutex<Vec<Thread>>,
}

impl Shared {
    /// Makes the shared state of a server that has not begun. `runtime`: the control thread's runtime. `lent`: the
    /// host's runtime, if connections will run on it.
    pub(crate) fn new(
        id: u64,
        options: Options,
        clock: Arc<dyn Clock>,
        events: Events,
        local_addrs: Vec<Addr>,
        runtime: tokio::runtime::Handle,
        lent: Option<Arc<LentRuntime>>,
    ) -> Result<Self> {
        let (proxies, forwarding) = (options.proxy_protocol()?, options.forwarding()?);
        let announcement = format!("timeout={}", options.announced());
        let announcement = HeaderValue::try_from(announcement).ok();
        Ok(Self {
            id,
            announcement: announcement.filter(|_| options.keep_alive_header),
            options,
            restart: None,
            clock,
            events,
            accept_failures: Throttle::default(),
            drive_failures: Throttle::default(),
            limits: Limits::default(),
            proxies,
            proxy_failures: Throttle::default(),
            forwarding,
            orders: Orders::new()?,
            phases: Phases::default(),
            last_request: Latest::default(),
            registry: Registry::default(),
            crowd: Crowd::default(),
            ledger: Ledger::default(),
            ends: Ends::default(),
            abandoned: Count::default(),
            overdue: Count::default(),
            overdue_requests: Throttle::default(),
            unaccepted: Count::default(),
            drain_turns: AtomicU64::new(0),
            stop: Mutex::default(),
            leaves: AtomicBool::new(false),
            successor: AtomicU32::new(0),
            outcome: Outcome::default(),
            helper: Helper::default(),
            readers: Readers::default(),
            last_report: OnceCell::new(),
            local_addrs,
            runtime,
            lent,
            #[cfg(feature = "tls")]
            tls: None,
            threads: Mutex::default(),
        })
    }

    /// When the next request that wants to know learns of the drain. They do so one after the other, so that their
    /// clients do not connect elsewhere all at once.
    pub(crate) fn next_drain_turn(&self) -> Duration {
        let turn = self.drain_turns.fetch_add(1, Ordering::Relaxed);
        let rate = self.options.drain_rate();
        let delay = Duration::from_secs_f64(turn as f64 / rate);
        delay.min(self.options.stop_timeout / 2)
    }

    pub(crate) fn with_restart(mut self, restart: Option<Restart>) -> Self {
        self.restart = restart;
        self
    }

    #[cfg(feature = "tls")]
    pub(crate) fn with_tls(mut self, tls: Option<tls::Context>) -> Self {
        self.tls = tls;
        self
    }

    #[cfg(feature = "tls")]
    pub(crate) fn tls(&self) -> Result<&tls::Context> {
        let none = || Error::Unsupported("the server does not speak TLS".into());
        self.tls.as_ref().ok_or_else(none)
    }

    /// Reads the files of TLS again. Blocks meanwhile.
    pub(crate) fn reread_tls(&self) -> Result<()> {
        #[cfg(feature = "tls")]
        let read = self.tls().and_then(tls::Context::reread);
        #[cfg(not(feature = "tls"))]
        let read: Result<()> = Err(Error::Unsupported("this build has no TLS".into()));
        match &read {
            Ok(()) => {
                let what = "the TLS files were read again";
                self.events.log(LogLevel::Info, what);
            }
            Err(why) => {
                self.events.sum("tls.reload_failed", 1.0);
                let what = format!("the TLS settings stay as they are: {why}");
                self.events.log(LogLevel::Error, what);
            }
        }
        read
    }

    /// The keys of session tickets that the server has made, for a new process that takes over.
    #[cfg_attr(
        not(feature = "tls"),
        allow(clippy::unused_self, reason = "it is known without")
    )]
    pub(crate) fn ticket_keys(&self) -> Option<String> {
        #[cfg(feature = "tls")]
        return self.tls.as_ref()?.made_keys();
        #[cfg(not(feature = "tls"))]
        None
    }

    /// Whether connections speak TLS.
    #[cfg_attr(
        not(feature = "tls"),
        allow(clippy::unused_self, reason = "it is known without")
    )]
    pub(crate) fn has_tls(&self) -> bool {
        #[cfg(feature = "tls")]
        return self.tls.is_some();
        #[cfg(not(feature = "tls"))]
        false
    }

    /// How many bytes of HTTP there are in so many bytes on the wire, at most.
    #[cfg_attr(
        not(feature = "tls"),
        allow(clippy::unused_self, reason = "it is known without")
    )]
    pub(crate) fn at_most_content(&self, bytes: u64) -> u64 {
        #[cfg(feature = "tls")]
        if self.tls.is_some() {
            return tls::at_most_content(bytes);
        }
        bytes
    }

    /// Tells the host what became of a request.
    pub(crate) fn tell(&self, record: RequestRecord) {
        if let Some(untold) = self.events.done(record)
            && untold.has_data()
        {
            // What is attached is the host's, and the control thread may have come here.
            drop(self.helper.run(move || drop(untold)));
        }
    }

    pub(crate) fn stop_began(&self, at: Duration) {
        self.stop_times().began = Some(at);
    }

    /// From now on, there are no new connections, and the stop timeout runs.
    pub(crate) fn quiescing_began(&self, at: Duration) {
        self.stop_times().quiescing = Some(at);
    }

    pub(crate) fn stop_ended(&self, at: Duration) {
        self.stop_times().ended = Some(at);
    }

    /// Whether half of the stop timeout has passed. Then a client that never stops pipelining requests must be told
    /// that its connection ends, though it has sent more requests.
    pub(crate) fn is_stop_pressing(&self) -> bool {
        let began = self.stop_times().quiescing;
        let patience = (self.options.stop_timeout / 2).min(MOST_PATIENCE);
        began.is_some_and(|began| self.clock.now().saturating_sub(began) > patience)
    }

    fn stop_times(&self) -> MutexGuard<'_, StopTimes> {
        self.stop.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves the sockets to others, and stops.
    pub(crate) fn leave(&self, successor: Option<u32>) {
        self.leaves.store(true, Ordering::Release);
        if let Some(pid) = successor {
            self.successor.store(pid, Ordering::Release);
        }
        self.orders.give(Order::Stop);
    }

    pub(crate) fn leaves(&self) -> bool {
        self.leaves.load(Ordering::Acquire)
    }

    /// The new process that has taken over.
    pub(crate) fn successor(&self) -> Option<u32> {
        let pid = self.successor.load(Ordering::Acquire);
        (pid != 0).then_some(pid)
    }

    /// What a load balancer is told. If a new process has taken over, the service is as ready as before.
    pub(crate) fn answers_ready(&self) -> bool {
        self.is_ready() || self.successor().is_some() && !self.phases.get().cuts()
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.phases.get() == Phase::Serving && !self.orders.given(Order::Stop)
    }

    /// Tells all who wait that a phase has begun. If the phase changes what connections do between two requests or in
    /// one, every connection looks at it.
    pub(crate) fn announce(&self, phase: Phase) {
        self.phases.tell_threads(phase);
        if !matches!(phase, Phase::LameDuck | Phase::Draining) {
            self.registry.wake_all();
        }
        self.phases.tell_tasks(phase);
    }

    /// A limit has bitten.
    #[cold]
    pub(crate) fn limit_bites(&self, limit: Limit, why: &dyn fmt::Display) {
        self.events.sum(limit.key(), 1.0);
        let (throttle, now) = (self.limits.throttle(limit), self.clock.now());
        let level = if limit.is_of_all() {
            LogLevel::Warning
        } else {
            LogLevel::Info
        };
        self.events
            .log_rarely(throttle, now, level, limit.text(), why);
    }

    /// An I/O thread does not get on: it may be a handler in place that blocks it, and no timer of its connections
    /// fires.
    pub(crate) fn look_at_handlers(&self) {
        if self.options.limits_handlers() {
            self.registry.look_at_handlers();
        }
    }

    /// A request has come. Requests that only ask whether the server is ready are not reported here.
    pub(crate) fn request_came(&self) {
        if self.phases.get() == Phase::LameDuck {
            self.last_request.note(self.clock.now());
        }
    }

    /// Sets how the server has ended. Only the first call counts. Those who wait are not told yet.
    pub(crate) fn settle(&self, outcome: Result<()>) {
        // A report calls the clock, which is the host's code.
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
            overdue: self.overdue.get(),
            unaccepted: self.unaccepted.get(),
            successor: self.successor(),
            events_dropped: self.events.dropped(),
            ..Report::default()
        };
        self.ends.add_to(&mut report);
        self.registry.add_to(&mut report, &self.ledger);
        report
    }
}
