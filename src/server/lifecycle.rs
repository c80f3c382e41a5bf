//! The life of a server, and above all its end: one state machine, on a thread that no handler can block.
//!
//! ```text
//! serving ──► lame duck ──► quiescing ──► draining ──► killing ──► stopped
//! ```

use std::pin::pin;
use std::sync::{Arc, mpsc};
#[cfg(feature = "tls")]
use std::time::SystemTime;
use std::time::{Duration, Instant};

use crate::contain::contain;
use crate::dispatch::Backend;
use crate::error::{Error, Result};
use crate::events::LogLevel;
use crate::inherited::{self, Sockets};
use crate::net::Listener;
use crate::net::census::Census;
use crate::orders::{Inbox, Order};
use crate::phase::Phase;
use crate::restart::{self, Enrolment};
use crate::shared::Shared;
use crate::stats::StatKind;
use crate::sys;
use crate::threads::{self, END_GRACE, Executor, IoThreads, Thread};

use super::accept::{self, Accepting, Serve};
use super::member::Member;

/// How long connections may take to notice a kill by themselves before their sockets are reset by the control thread.
/// Only connections whose I/O thread is blocked by a handler need the reset; the others use the time to write what is
/// ready to be written.
const KILL_GRACE: Duration = Duration::from_millis(100);
/// How often connections are counted for the statistics.
const STATE_INTERVAL: Duration = Duration::from_secs(60);

/// How long a program may take from the start of its first server to that of its last.
const STARTED: Duration = Duration::from_secs(10);
/// How long many connections must have been gone before their memory is given back to the system: longer than clients
/// take that all connect again.
const TRIM_AFTER: Duration = Duration::from_secs(2);
/// The pause between two times that memory is given back, because it may hold others up.
const TRIM_PAUSE: Duration = Duration::from_secs(60);

/// Everything that the control thread owns.
pub(crate) struct Control {
    pub(crate) shared: Arc<Shared>,
    pub(crate) listeners: Vec<Listener>,
    pub(crate) executor: Executor,
    pub(crate) threads: IoThreads,
    pub(crate) backend: Backend,
    /// Starts to drive a connection on the executor. The helper must drop the last copy: what answers requests is the
    /// host's code, and is dropped with it.
    pub(crate) serve: Serve,
}

impl Control {
    /// The life of the control thread: from the first connection to the last; then the outcome is told to all who wait.
    /// `enrols` is dropped when restarts know the server.
    pub(crate) fn run(
        self,
        runtime: tokio::runtime::Runtime,
        helpers: Thread,
        enrols: mpsc::Sender<()>,
    ) {
        // Whatever happens here, all who wait for the end get an answer.
        let settling = Settling(Arc::clone(&self.shared));
        let life = live(
            &self.shared,
            self.listeners,
            &self.executor,
            &self.serve,
            &self.backend,
            enrols,
        );
        let lived = contain(|| runtime.block_on(life));
        let end = lived.unwrap_or(End {
            result: Err(Error::Panicked),
            patience: Duration::ZERO,
        });
        drop(runtime);
        let deadline = threads::deadline(end.patience);
        let helper = self.shared.helper.clone();
        // What answers requests is dropped before those that wait are told. So none of the host's code is called after
        // that.
        let serve = self.serve;
        drop(helper.run(move || drop(serve)));
        let mut ended = self.backend.end_threads(deadline);
        let (threads_ended, left) = self.threads.stop(deadline);
        ended &= threads_ended;
        ended &= self.shared.readers.end(deadline);
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
        // Host code that is still running then has been abandoned.
        let result = match end.result {
            Ok(()) | Err(Error::Killed(_)) if !ended => Err(Error::TimedOut(None)),
            result => result,
        };
        settling.0.settle(result);
        // After the outcome is settled: so the callback for the end knows it.
        self.shared.events.phase(Phase::Stopped);
        self.shared.events.close();
        // A callback that blocks must not delay those who wait.
        let deadline = threads::deadline(END_GRACE);
        self.shared.events.wait_delivered(deadline);
        drop(settling);
    }
}

/// When dropped, it tells those who wait how the server has ended. If the outcome is not settled by then, it tells them
/// that the control thread has failed.
struct Settling(Arc<Shared>);

impl Drop for Settling {
    fn drop(&mut self) {
        self.0.settle(Err(Error::Panicked));
        self.0.outcome.tell();
        // After the outcome is told: who sees the end of the events finds the outcome.
        self.0.events.end();
    }
}

/// How the last connection has ended, and how long threads may take to end.
struct End {
    result: Result<()>,
    patience: Duration,
}

/// Begins a phase. If the phase changes what connections do between two requests or in one, every connection looks at
/// it; but only when the helper comes to it. The helper does that because waking a task may drop the task, if its
/// runtime has gone.
fn enter(shared: &Arc<Shared>, phase: Phase) {
    shared.phases.set(phase);
    shared.events.phase(phase);
    let tells = Arc::clone(shared);
    drop(shared.helper.run(move || tells.announce(phase)));
}

/// Serves until a stop is ordered, and then stops.
async fn live(
    shared: &Arc<Shared>,
    listeners: Vec<Listener>,
    executor: &Executor,
    serve: &Serve,
    backend: &Backend,
    enrols: mpsc::Sender<()>,
) -> End {
    let clock = &*shared.clock;
    let options = &shared.options;
    let events = &shared.events;
    let inbox = match Inbox::new(&shared.orders) {
        Ok(inbox) => inbox,
        Err(error) => {
            return End {
                result: Err(error),
                patience: options.kill_timeout,
            };
        }
    };
    let census = Census::new();
    begin(shared, &listeners);
    let mut accepting = Accepting::new(listeners, shared, executor, serve);
    let member = Member::new(shared, accepting.entrance(), executor);
    let enrolment = restart::enrol(Arc::new(member));
    drop(enrols);
    let (may_accept, mut serve_error) = serve_until_stop(&inbox, &enrolment, &mut accepting).await;

    let stop_began = clock.now();
    shared.stop_began(stop_began);
    // The sockets are not this process's alone while a new process has them, too. Nobody is refused meanwhile.
    tokio::select! {
        biased;
        () = inbox.at_least(Order::Kill) => {}
        () = enrolment.stops() => {}
    }
    if let Some(error) = &serve_error {
        events.log(LogLevel::Error, format!("serving failed: {error:#}"));
    } else {
        events.sum("stop", 1.0);
        let open = shared.report().conns_open;
        events.stat(StatKind::Histogram, "stop.conn.count", open as f64);
        if !options.lame_duck.is_zero() && may_accept && !shared.leaves() {
            enter(shared, Phase::LameDuck);
            serve_error = tokio::select! {
                biased;
                () = inbox.at_least(Order::Kill) => None,
                () = clock.sleep(options.lame_duck) => None,
                () = quiet(shared, stop_began), if !options.lame_duck_quiet.is_zero() => None,
                error = accepting.failed() => Some(error),
            };
        }
    }

    shared.quiescing_began(clock.now());
    let stop_timeout = clock.sleep(options.stop_timeout);
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
    drop(enrolment);
    enter(shared, Phase::Draining);
    let drained = quiet
        && tokio::select! {
            biased;
            () = shared.registry.emptied() => true,
            () = &mut out_of_time => false,
        };
    // Connections that end because the host's runtime ends are not drained.
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

/// Tells that the server serves, and starts what looks after it.
fn begin(shared: &Arc<Shared>, listeners: &[Listener]) {
    let (events, options) = (&shared.events, &shared.options);
    // With TLS, it also looks at the certificates.
    if events.interest().stats || (events.interest().logs && shared.has_tls()) {
        tokio::spawn(count_connections(Arc::clone(shared)));
    }
    if options.trim_memory {
        tokio::spawn(give_memory_back(Arc::clone(shared)));
    }
    events.sum("serve", 1.0);
    events.phase(Phase::Serving);
    for amiss in listeners.iter().filter_map(Listener::serves) {
        events.log(LogLevel::Warning, amiss.to_owned());
    }
    if let Some(inherited) = inherited::known() {
        tokio::spawn(complain(inherited, Arc::clone(shared)));
    }
}

/// Returns whether it could ever accept, and what has failed.
async fn serve_until_stop(
    inbox: &Inbox<'_>,
    enrolment: &Enrolment,
    accepting: &mut Accepting,
) -> (bool, Option<Error>) {
    let may_accept = tokio::select! {
        biased;
        () = inbox.at_least(Order::Stop) => false,
        () = enrolment.may_accept() => true,
    };
    if !may_accept {
        return (false, None);
    }
    accepting.start();
    let failed = tokio::select! {
        biased;
        () = inbox.at_least(Order::Stop) => None,
        error = accepting.failed() => Some(error),
    };
    (true, failed)
}

/// The result of a stop. `cut`: how the kill went, if there was one.
fn conclude(shared: &Shared, cut: Option<Cut>, error: Option<Error>) -> End {
    let kill_timeout = shared.options.kill_timeout;
    let patience = match cut {
        None => kill_timeout,
        // What has not ended by now is the host's code, and its time is over.
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

/// Waits until no request has come for the time after which nobody is expected to send any more.
async fn quiet(shared: &Shared, lame_since: Duration) {
    let options = &shared.options;
    let earliest = lame_since.saturating_add(options.lame_duck_min);
    loop {
        let last = shared.last_request.get().max(lame_since);
        let end = last.saturating_add(options.lame_duck_quiet).max(earliest);
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
    let kill_timeout = clock.sleep(shared.options.kill_timeout);
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

/// Tells the host of inherited sockets on which nobody listens, when the program has had time to start all its servers.
async fn complain(inherited: &'static Sockets, shared: Arc<Shared>) {
    shared.clock.sleep(STARTED).await;
    for complaint in inherited.complaints() {
        shared.events.log(LogLevel::Error, complaint);
    }
}

/// Once a minute, reports the number of connections in each state.
async fn count_connections(shared: Arc<Shared>) {
    #[cfg(feature = "tls")]
    let mut certificates = Certificates::default();
    loop {
        #[cfg(feature = "tls")]
        certificates.look(&shared);
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
        if let Some(count) = restart::count_predecessors() {
            let key = "restart.predecessors";
            shared.events.stat(StatKind::Avg, key, count as f64);
        }
    }
}

/// Gives memory back to the system when a crowd of connections has gone. The helper does it, because the allocator may
/// take its time.
async fn give_memory_back(shared: Arc<Shared>) {
    loop {
        shared.crowd.gone().await;
        shared.clock.sleep(TRIM_AFTER).await;
        if !shared.crowd.has_gone() {
            continue;
        }
        shared.crowd.disperse();
        let trimmed = shared.helper.run(|| {
            let began = Instant::now();
            sys::trim_memory();
            began.elapsed()
        });
        if let Ok(took) = trimmed.await {
            let (time, seconds) = (StatKind::Time, took.as_secs_f64());
            shared.events.stat(time, "memory.trim", seconds);
        }
        shared.clock.sleep(TRIM_PAUSE).await;
    }
}

/// Tells the host of certificates that end soon, or have other faults: at the start, after each reload, and each day.
#[cfg(feature = "tls")]
#[derive(Default)]
struct Certificates(Option<(Duration, u64)>);

#[cfg(feature = "tls")]
impl Certificates {
    fn look(&mut self, shared: &Shared) {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        let Some(tls) = &shared.tls else { return };
        let (time, reloads, now) = (shared.clock.now(), tls.reloads(), SystemTime::now());
        let events = &shared.events;
        events.stat(StatKind::Avg, "tls.expires", tls.seconds_left(now));
        events.stat(StatKind::Avg, "tls.reloads", reloads as f64);
        if self
            .0
            .is_none_or(|(told, of)| of != reloads || time.saturating_sub(told) >= DAY)
        {
            self.0 = Some((time, reloads));
            for warning in tls.warnings(now) {
                events.log(LogLevel::Warning, warning);
            }
        }
    }
}
