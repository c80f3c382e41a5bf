//! A restart: the program is started anew, and takes over without a loss (ADR 0029).
//!
//! ```text
//! this process:  idle ──► starting ──► probation ──► handed over, and stops
//!                 ▲           │            │
//!                 └───────────┴────────────┘  the new one has failed
//! ```
//!
//! The coordinator knows the servers of this process, and which side of a restart the process is on.

mod canary;
mod errors;
mod new;
mod notify;
mod old;
mod pid_file;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use once_cell::sync::OnceCell;
use tokio::sync::{oneshot, watch};

use crate::error::{Error, Result};
use crate::events::LogLevel;
use crate::handover::Passed;
use crate::inherited::{self, Tenure};
use crate::process;
use crate::stats::StatKind;
use crate::sys::{self, EventFd, SignalMask};
use crate::threads;

use notify::Manager;
pub use notify::no_notify;

/// How long a stop waits for the end of a restart that it has cancelled: for the new process to leave the sockets, and
/// for that to be noticed.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(3);
/// Why a process is not ready.
const NO_SERVER: &str = "no server was started";

/// How the program is restarted: [`Server::restart`](crate::Server::restart).
///
/// ```
/// use std::time::Duration;
/// use httpdown::Restart;
///
/// let restart = Restart::default()
///     .ready_timeout(Duration::from_secs(20))
///     .before(|| match std::fs::exists("/etc/app/keep") {
///         Ok(true) => Err("/etc/app/keep exists".into()),
///         _ => Ok(()),
///     });
/// # drop(restart);
/// ```
#[derive(Clone)]
#[must_use]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is a setting of its own"
)]
pub struct Restart {
    program: Option<PathBuf>,
    args: Option<Vec<OsString>>,
    env: Option<Vec<(OsString, OsString)>>,
    dir: Option<PathBuf>,
    ready_timeout: Duration,
    probation: Duration,
    max_predecessors: usize,
    drop_unclaimed: bool,
    keep_fds: bool,
    plain_stderr: bool,
    by_hangup: bool,
    no_signal: bool,
    pid_file: Option<PathBuf>,
    before: Option<Arc<Veto>>,
    on_end: Option<Arc<Told>>,
}

type Told = dyn Fn(&Result<Restarted>) + Send + Sync;
type Veto = dyn Fn() -> std::result::Result<(), String> + Send + Sync;

impl Default for Restart {
    fn default() -> Self {
        Self {
            program: None,
            args: None,
            env: None,
            dir: None,
            ready_timeout: Duration::from_secs(60),
            probation: Duration::from_secs(3),
            max_predecessors: 8,
            drop_unclaimed: false,
            keep_fds: false,
            plain_stderr: false,
            by_hangup: false,
            no_signal: false,
            pid_file: None,
            before: None,
            on_end: None,
        }
    }
}

impl Restart {
    /// The file that is executed: an absolute path. Default: the one that this process was started from. Its path is
    /// looked up anew, so a link that leads elsewhere now, or a file that was replaced, means the new version.
    pub fn program(mut self, path: impl Into<PathBuf>) -> Self {
        self.program = Some(path.into());
        self
    }

    /// The arguments, at least one; the first one is the program's name. Default: those of this process.
    pub fn args<T: Into<OsString>>(mut self, args: impl IntoIterator<Item = T>) -> Self {
        self.args = Some(args.into_iter().map(Into::into).collect());
        self
    }

    /// The environment, without what a restart itself needs, and without what systemd has told this process
    /// (`NOTIFY_SOCKET` and the like): the new process gets both. Default: the one that this process was started with.
    pub fn env<T: Into<OsString>>(mut self, env: impl IntoIterator<Item = (T, T)>) -> Self {
        let env = env
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()));
        self.env = Some(env.collect());
        self
    }

    /// The working directory: an absolute path. Default: the one that this process was started in.
    pub fn directory(mut self, path: impl Into<PathBuf>) -> Self {
        self.dir = Some(path.into());
        self
    }

    /// How long the new process may take until it serves all sockets, more than zero. Default: 60 seconds. In real
    /// time.
    pub fn ready_timeout(mut self, timeout: Duration) -> Self {
        self.ready_timeout = timeout;
        self
    }

    /// How long both processes accept, once the new one is ready. If the new one dies within this time, this one goes
    /// on. Default: 3 seconds; zero for none. In real time.
    pub fn probation(mut self, time: Duration) -> Self {
        self.probation = time;
        self
    }

    /// While so many earlier processes still drain, a restart is refused ([`Error::Busy`]): each of them holds memory.
    /// At least 1. Default: 8.
    pub fn max_predecessors(mut self, count: usize) -> Self {
        self.max_predecessors = count;
        self
    }

    /// A socket that the new process does not listen on any more is stopped like in a stop, without a loss. Otherwise
    /// it makes the restart fail, because it is a mistake more often than not. With this setting the new process must
    /// call [`restart_ready`] when all its servers serve.
    pub fn drop_unclaimed(mut self, drops: bool) -> Self {
        self.drop_unclaimed = drops;
        self
    }

    /// The new process also gets the descriptors of this one that are not close-on-exec, with their numbers. They must
    /// be out of the way of the sockets, which have the numbers from 3 on: otherwise the restart fails.
    pub fn keep_fds(mut self, keeps: bool) -> Self {
        self.keep_fds = keeps;
        self
    }

    /// The new process writes to this one's standard error at once. Otherwise it gets a pipe until it is ready, so that
    /// what it says of its failure is in the error of the restart, too. A program that looks at its start whether that is
    /// a terminal, or the journal (`JOURNAL_STREAM`), sees the pipe.
    pub fn plain_stderr(mut self, plain: bool) -> Self {
        self.plain_stderr = plain;
        self
    }

    /// During a [run](crate::Server::run), SIGHUP restarts the program, too. Not together with
    /// [`Builder::reload_on_hup`](crate::Builder::reload_on_hup). For [`Builder::restart`](crate::Builder::restart).
    pub fn on_hup(mut self, restarts: bool) -> Self {
        self.by_hangup = restarts;
        self
    }

    /// During a [run](crate::Server::run), SIGUSR2 does what it does without us. By default it restarts the program, if
    /// its action is the default one, which would end the program. For
    /// [`Builder::restart`](crate::Builder::restart).
    pub fn no_signal(mut self, leaves: bool) -> Self {
        self.no_signal = leaves;
        self
    }

    pub(crate) fn is_by_hangup(&self) -> bool {
        self.by_hangup
    }

    pub(crate) fn is_by_signal(&self) -> bool {
        !self.no_signal
    }

    /// A file that has the process ID of the program, for those who look for it there: an absolute path. A restart
    /// replaces the file when the new process has proved itself. The new version is written beside the file before
    /// that, with the process ID added to the name; if that fails, so does the restart. The first process's file is
    /// written by the program, or by whoever starts it. A symbolic link is replaced by a file. Default: none.
    pub fn pid_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.pid_file = Some(path.into());
        self
    }

    /// Is asked before the new process is started. An error refuses the restart: its text is in
    /// [`Error::RestartFailed`]. Called on the restart's own thread. A stop that is asked for meanwhile does not wait for
    /// the answer, but a [run](crate::Server::run) does.
    pub fn before(
        mut self,
        veto: impl Fn() -> std::result::Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        self.before = Some(Arc::new(veto));
        self
    }

    /// Is told how the restart has ended, before those who wait for it. Called on the restart's own thread. After a
    /// success, the stop of this process's servers has begun.
    pub fn on_end(mut self, told: impl Fn(&Result<Restarted>) + Send + Sync + 'static) -> Self {
        self.on_end = Some(Arc::new(told));
        self
    }

    /// Whether there can be such a process. Arguments and the values of variables are not shown: they may be secrets.
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |why: String| Err(Error::InvalidArgument(why));
        let has_zero = |text: &OsStr| text.as_bytes().contains(&0);
        for (name, path) in [
            ("program", &self.program),
            ("directory", &self.dir),
            ("pid_file", &self.pid_file),
        ] {
            let Some(path) = path else { continue };
            if has_zero(path.as_os_str()) {
                return wrong(format!("{name} has a zero byte"));
            }
            if !path.is_absolute() {
                return wrong(format!("{name} \"{}\" is not absolute", path.display()));
            }
        }
        if let Some(path) = &self.pid_file
            && (path.file_name().is_none() || path.as_os_str().as_bytes().ends_with(b"/"))
        {
            let path = path.display();
            return wrong(format!("pid_file \"{path}\" is not the path of a file"));
        }
        if self.args.as_ref().is_some_and(Vec::is_empty) {
            return wrong("args is empty: the first one is the program's name".into());
        }
        let mut args = self.args.iter().flatten();
        if let Some(index) = args.position(|arg| has_zero(arg)) {
            return wrong(format!("args[{index}] has a zero byte"));
        }
        for (name, value) in self.env.iter().flatten() {
            let is_wrong = name.is_empty() || name.as_bytes().contains(&b'=');
            let has_zero = has_zero(name) || has_zero(value);
            let name = name.display();
            if is_wrong {
                return wrong(format!("env: \"{name}\" is not a variable's name"));
            }
            if has_zero {
                return wrong(format!("env: \"{name}\" has a zero byte"));
            }
        }
        if self.ready_timeout.is_zero() {
            return wrong("ready_timeout is 0: no process would be ready in time".into());
        }
        if self.max_predecessors == 0 {
            return wrong("max_predecessors is 0: every restart would be refused".into());
        }
        Ok(())
    }
}

impl fmt::Debug for Restart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither arguments nor the environment, which may hold secrets.
        f.debug_struct("Restart")
            .field("program", &self.program)
            .field("ready_timeout", &self.ready_timeout)
            .field("probation", &self.probation)
            .finish_non_exhaustive()
    }
}

/// A restart that was a success: the new process has taken over, and the servers of this process stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Restarted {
    /// The new process.
    pub pid: u32,
    /// How long it took, with the probation.
    pub took: Duration,
}

/// Where this process is in a restart: [`restart_info`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
#[repr(u8)]
pub enum RestartState {
    /// There is no restart.
    #[default]
    Idle = 0,
    /// This process was started by a restart, and its predecessor may still go on without it.
    Succeeding = 1,
    /// A new process was started, and is not ready.
    Starting = 2,
    /// The new process is ready, and both accept.
    Probation = 3,
    /// The new process has taken over; the servers of this one stop, or have stopped.
    HandedOver = 4,
}

/// What is known of the restarts of this program: [`restart_info`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RestartInfo {
    /// Where this process is in a restart.
    pub state: RestartState,
    /// How many restarts led to this process.
    pub generation: u64,
    /// The new process, from its start on, if there is one.
    pub successor: Option<u32>,
    /// The earlier processes that have not ended.
    pub predecessors: Vec<u32>,
}

/// What is known of the restarts of this program. Never blocks. Any thread may call it. A program that was not
/// restarted, and has no restart, gets [`RestartInfo::default`].
///
/// ```
/// assert_eq!(httpdown::restart_info(), httpdown::RestartInfo::default());
/// ```
#[must_use]
pub fn restart_info() -> RestartInfo {
    if process::forked() {
        return RestartInfo::default();
    }
    COORDINATOR.get().map(Coordinator::info).unwrap_or_default()
}

/// Says that this process has started all its servers, and that they are the service. Returns at once. Does nothing
/// after the first call that has succeeded.
///
/// In a process that was started by a restart, it is needed only with [`Restart::drop_unclaimed`]; otherwise the
/// process is ready as soon as it serves all sockets that it was given. A socket that nobody serves makes the restart
/// fail after [`Restart::ready_timeout`]; with this call it fails at once.
///
/// To systemd (`Type=notify`) it says `READY=1`, if this process was not started by a restart; and from now on what
/// becomes of the servers: `STOPPING=1` when the stop of the last one begins, and `WATCHDOG=1` if the unit has
/// `WatchdogSec=`. [`Server::run`](crate::Server::run) and [`Signals`](crate::Signals) do so by themselves. A program
/// that talks with systemd itself, or that goes on after its last server, calls [`no_notify`] first.
///
/// ```
/// # use httpdown::{Dispatch, Exchange, Listener, Server};
/// # fn main() -> httpdown::Result<()> {
/// # let handler = |exchange: Exchange| drop(exchange);
/// let web = Server::builder().handle(Listener::bind("127.0.0.1:0")?, Dispatch::default(), handler)?;
/// httpdown::restart_ready()?;
/// # web.stop_blocking()?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::RestartFailed`] if a socket is not served, or no server was started: the restart has failed then, and this
/// process is ended. [`Error::InvalidArgument`] if no server was started, in a process that was not started by a
/// restart: nothing is said then. [`Error::Forked`].
pub fn restart_ready() -> Result<()> {
    say_ready(true)
}

/// Says what a [run](crate::Server::run) says when its servers serve: that they are the service. For a program that
/// waits for its signals itself. Like [`restart_ready`], but other threads may start more servers later: a socket that
/// is not served yet is no error. In a process that was started by a restart with [`Restart::drop_unclaimed`], it is
/// closed.
///
/// # Errors
/// Those of [`restart_ready`], but for sockets that are not served.
///
/// ```
/// # use httpdown::{Dispatch, Exchange, Listener, Server};
/// # fn main() -> httpdown::Result<()> {
/// # let handler = |exchange: Exchange| drop(exchange);
/// let web = Server::builder().handle(Listener::bind("127.0.0.1:0")?, Dispatch::default(), handler)?;
/// httpdown::run_ready()?;
/// # web.stop_blocking()?;
/// # Ok(())
/// # }
/// ```
pub fn run_ready() -> Result<()> {
    say_ready(false)
}

fn say_ready(is_all: bool) -> Result<()> {
    if process::forked() {
        return Err(Error::Forked);
    }
    // Without a server, nobody may have looked.
    inherited::look();
    let coordinator = coordinator();
    let has_served = coordinator.lock().served > 0;
    match inherited::predecessor() {
        Some(predecessor) if !has_served => return Err(predecessor.fail(NO_SERVER.into())),
        None if !has_served => return Err(Error::InvalidArgument(NO_SERVER.into())),
        // Nothing else says to a predecessor that drops the rest that there will be no more.
        Some(predecessor) if is_all || predecessor.drops_unclaimed => {
            coordinator.say_ready(predecessor)?;
        }
        _ => {}
    }
    coordinator.announce();
    Ok(())
}

/// How many earlier processes have not ended. `None` if this process was not started by a restart.
pub(crate) fn count_predecessors() -> Option<usize> {
    inherited::predecessor()?;
    let mut state = coordinator().lock();
    state.forget_ended();
    Some(state.predecessors.len())
}

/// A server, as a restart sees it.
pub(crate) trait Party: Send + Sync {
    /// The server's number in this process.
    fn id(&self) -> u64;
    /// Copies of the sockets that it listens on, if it still does.
    fn sockets(&self) -> Result<Vec<Handed>>;
    /// A stop was asked for.
    fn is_stopping(&self) -> bool;
    /// Whether it has a socket that a predecessor may still take back.
    fn borrows(&self) -> bool;
    /// Leaves the sockets to others, and stops. `successor`: who has them, if that is a new process.
    fn leave(&self, successor: Option<u32>);
    /// What is to be asked of a new process, before it is ready.
    fn canary(&self) -> Option<&str>;
    /// Serves a connection that did not come by the sockets. It speaks plain HTTP.
    fn inject(&self, stream: UnixStream) -> io::Result<()>;
    /// Gives each thread that drives connections a copy of this, which the thread drops when it comes to it.
    fn ask_threads(&self, given: &Arc<dyn Send + Sync>);
    fn log(&self, level: LogLevel, text: String);
    fn stat(&self, kind: StatKind, key: &'static str, value: f64);
}

/// A socket that is passed on.
#[derive(Debug)]
pub(crate) struct Handed {
    /// They are passed on in this order.
    pub(crate) order: u64,
    pub(crate) copy: OwnedFd,
    pub(crate) name: &'static str,
    pub(crate) passed: Passed,
    /// `None`: no listener has it.
    pub(crate) tenure: Option<Arc<Tenure>>,
}

static COORDINATOR: OnceCell<Coordinator> = OnceCell::new();

/// Knows the servers of this process, and where the process is in a restart.
pub(crate) struct Coordinator {
    state: Mutex<State>,
    /// Whether servers may accept.
    permit: watch::Sender<bool>,
    /// Notified when a server has left its sockets.
    left: Condvar,
    /// Whether a restart is under way.
    restarts: watch::Sender<bool>,
    manager: Option<Manager>,
}

#[derive(Default)]
struct State {
    parties: Vec<Arc<dyn Party>>,
    attempt: Option<Arc<Attempt>>,
    /// The new process that has taken over.
    successor: Option<u32>,
    /// The earlier processes, and what tells of their ends.
    predecessors: Vec<(u32, OwnedFd)>,
    generation: u64,
    /// How many servers there have been.
    served: u64,
    /// Whether the thread that talks with the predecessor was started.
    has_met: bool,
    succession: Succession,
    standing: Standing,
    service: Service,
    /// While it is there, the manager's watchdog is told that this process gets on.
    watchdog: Option<mpsc::Sender<()>>,
}

/// What the predecessor knows of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Standing {
    #[default]
    Starts,
    /// It was told that all its sockets are served.
    IsReady,
    /// That is no longer true, because a server stops.
    Withdraws,
    /// It goes on, and this process must leave the sockets to it.
    Leaves,
}

/// What the service manager knows of this process's servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Service {
    /// The host has not said what they are.
    #[default]
    Unannounced,
    /// They are the service.
    Announced,
    /// So they were, and it ends.
    Ending,
}

impl State {
    fn forget_ended(&mut self) {
        self.predecessors.retain(|(_, process)| !has_ended(process));
    }
}

/// How far this process is in taking over from its predecessor.
#[derive(Clone, Debug, Default)]
enum Succession {
    /// It has none, or has taken over.
    #[default]
    Done,
    /// With what wakes the thread that talks with the predecessor.
    Under(Arc<new::Call>),
    /// It was told to stop.
    Over,
}

/// A restart that is under way.
struct Attempt {
    stage: AtomicU8,
    /// 0: not started yet.
    pid: std::sync::atomic::AtomicU32,
    /// The host has permitted it, and it was not cancelled before that.
    has_begun: AtomicBool,
    is_cancelled: AtomicBool,
    /// Wakes the restart's thread when it is cancelled.
    wake: EventFd,
    /// What it has begun is done, or undone.
    is_settled: watch::Sender<bool>,
}

impl Attempt {
    fn new() -> Result<Self> {
        Ok(Self {
            stage: AtomicU8::new(RestartState::Starting as u8),
            pid: 0.into(),
            has_begun: AtomicBool::new(false),
            is_cancelled: AtomicBool::new(false),
            wake: EventFd::new().map_err(|error| Error::io("eventfd", error))?,
            is_settled: watch::Sender::new(false),
        })
    }

    fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::SeqCst)
    }

    /// Returns whether it may begin. Either this function sees that it was cancelled, or [`Attempt::cancel`] sees that it
    /// has begun.
    fn begins(&self) -> bool {
        self.has_begun.store(true, Ordering::SeqCst);
        !self.is_cancelled()
    }

    /// Returns whether it may have begun something, which it undoes now. While the host is still asked, it has not.
    fn cancel(&self) -> bool {
        self.is_cancelled.store(true, Ordering::SeqCst);
        self.wake.set();
        self.has_begun.load(Ordering::SeqCst)
    }

    fn settle(&self) {
        self.is_settled.send_replace(true);
    }

    fn is_in_probation(&self) -> bool {
        self.stage.load(Ordering::Relaxed) == RestartState::Probation as u8
    }

    fn enter_probation(&self) {
        let probation = RestartState::Probation as u8;
        self.stage.store(probation, Ordering::Relaxed);
    }
}

fn coordinator() -> &'static Coordinator {
    COORDINATOR.get_or_init(|| Coordinator {
        state: Mutex::default(),
        permit: watch::Sender::new(inherited::predecessor().is_none()),
        left: Condvar::new(),
        restarts: watch::Sender::new(false),
        manager: Manager::of_this_process(),
    })
}

/// Makes a server known that listens on its sockets, and does not accept yet.
pub(crate) fn enrol(party: Arc<dyn Party>) -> Enrolment {
    let coordinator = coordinator();
    let mut state = coordinator.lock();
    state.parties.push(Arc::clone(&party));
    drop(state);
    if let Some(predecessor) = inherited::predecessor() {
        coordinator.succeed_to(predecessor, &party);
    }
    coordinator.lock().served += 1;
    Enrolment { coordinator, party }
}

/// While this value lives, the server is known. It is dropped when the server has left its sockets.
pub(crate) struct Enrolment {
    coordinator: &'static Coordinator,
    party: Arc<dyn Party>,
}

impl Enrolment {
    /// Waits until the server may accept.
    pub(crate) async fn may_accept(&self) {
        let mut permit = self.coordinator.permit.subscribe();
        if inherited::predecessor().is_some() {
            let _ = permit.wait_for(|may| *may).await;
        }
    }

    /// The server stops. If a restart is under way, it is cancelled; then this waits until the sockets are the server's
    /// alone. If this process has not taken over yet, its predecessor must not rely on it any more.
    pub(crate) async fn stops(&self) {
        let attempt = {
            let mut state = self.coordinator.lock();
            if let Succession::Under(call) = &state.succession {
                call.wake();
                if state.standing == Standing::IsReady && self.party.borrows() {
                    state.standing = Standing::Withdraws;
                }
            }
            state.attempt.clone()
        };
        if let Some(attempt) = attempt
            && attempt.cancel()
        {
            let mut settled = attempt.is_settled.subscribe();
            let settled = settled.wait_for(|is_settled| *is_settled);
            let _ = tokio::time::timeout(CANCEL_TIMEOUT, settled).await;
        }
        self.coordinator.tell_stop(&self.party);
    }
}

impl Drop for Enrolment {
    fn drop(&mut self) {
        let mut state = self.coordinator.lock();
        state
            .parties
            .retain(|party| !Arc::ptr_eq(party, &self.party));
        let succession = state.succession.clone();
        drop(state);
        self.coordinator.left.notify_all();
        if let Succession::Under(call) = succession {
            call.wake();
        }
    }
}

/// Begins a restart, and has one server tell of it. The result is given to `told`, on the restart's thread.
///
/// # Errors
/// It is refused: [`Error::InvalidArgument`], [`Error::Busy`], [`Error::Stopped`], [`Error::Unsupported`],
/// [`Error::Forked`]; or there is no thread.
pub(crate) fn begin(
    restart: Restart,
    asker: u64,
    told: impl FnOnce(Result<Restarted>) + Send + 'static,
) -> Result<()> {
    if process::forked() {
        return Err(Error::Forked);
    }
    restart.check()?;
    old::can_restart()?;
    let coordinator = coordinator();
    let (attempt, asker) = coordinator.take_turn(&restart, asker)?;
    let mask = SignalMask::here().and_pipe();
    let thread = Turn {
        coordinator,
        attempt: Arc::clone(&attempt),
        told: Some(Box::new(told)),
    };
    let started = threads::apart("httpdown-restart", move || {
        old::run(thread, asker, restart, mask);
    });
    started.map(drop).inspect_err(|_| coordinator.end(&attempt))
}

/// Waits until no restart is under way. From then on, nothing is called that the host has given for one.
pub(crate) async fn none_under_way() {
    let mut restarts = coordinator().restarts.subscribe();
    let _ = restarts.wait_for(|is_under_way| !is_under_way).await;
}

/// Waits for a restart: blocks.
pub(crate) fn wait(
    begin: impl FnOnce(Box<dyn FnOnce(Result<Restarted>) + Send>) -> Result<()>,
) -> Result<Restarted> {
    // No channel of std: on the thread that waits, it would leave behind what valgrind takes for a leak.
    let told = Arc::new((Mutex::new(None), Condvar::new()));
    let tells = Arc::clone(&told);
    begin(Box::new(move |result| {
        let (told, changed) = &*tells;
        *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        changed.notify_all();
    }))?;
    let (told, changed) = &*told;
    let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
    // It is told whatever happens: `Turn`.
    loop {
        if let Some(result) = told.take() {
            return result;
        }
        told = changed.wait(told).unwrap_or_else(PoisonError::into_inner);
    }
}

/// The same, without blocking.
pub(crate) async fn wait_async(
    begin: impl FnOnce(Box<dyn FnOnce(Result<Restarted>) + Send>) -> Result<()>,
) -> Result<Restarted> {
    let (tell, told) = oneshot::channel();
    begin(Box::new(move |result| drop(tell.send(result))))?;
    told.await.unwrap_or(Err(Error::Panicked))
}

/// The right of the restart's thread to be the only one. When it is dropped, the restart has ended.
struct Turn {
    coordinator: &'static Coordinator,
    attempt: Arc<Attempt>,
    #[allow(clippy::type_complexity, reason = "it has no other use")]
    told: Option<Box<dyn FnOnce(Result<Restarted>) + Send>>,
}

impl Turn {
    fn end(mut self, result: Result<Restarted>) {
        self.finish(result);
    }

    fn finish(&mut self, result: Result<Restarted>) {
        self.coordinator.end(&self.attempt);
        if let Some(told) = self.told.take() {
            told(result);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.told.is_some() {
            self.finish(Err(Error::Panicked));
        }
    }
}

impl Coordinator {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn info(&self) -> RestartInfo {
        let mut state = self.lock();
        state.forget_ended();
        let attempt = state.attempt.as_ref();
        let started = attempt.map(|attempt| attempt.pid.load(Ordering::Relaxed));
        RestartInfo {
            state: match (&state.succession, attempt) {
                _ if state.successor.is_some() => RestartState::HandedOver,
                (Succession::Under(_) | Succession::Over, _) => RestartState::Succeeding,
                (_, Some(attempt)) if attempt.is_in_probation() => RestartState::Probation,
                (_, Some(_)) => RestartState::Starting,
                (_, None) => RestartState::Idle,
            },
            generation: state.generation,
            successor: state.successor.or_else(|| started.filter(|pid| *pid > 0)),
            predecessors: state.predecessors.iter().map(|(pid, _)| *pid).collect(),
        }
    }

    /// Checks that a restart may begin, and notes that it has.
    fn take_turn(&self, restart: &Restart, asker: u64) -> Result<(Arc<Attempt>, Arc<dyn Party>)> {
        let busy = |why: String| Err(Error::Busy(why));
        let mut state = self.lock();
        if let Some(pid) = state.successor {
            return busy(format!("process {pid} has taken over"));
        }
        if state.attempt.is_some() {
            return busy("a restart is under way".into());
        }
        match state.succession {
            Succession::Done => {}
            Succession::Under(_) => {
                let pids = inherited::predecessor().map(|predecessor| &predecessor.pids);
                let pid = pids.and_then(|pids| pids.first()).unwrap_or(&0);
                return busy(format!(
                    "this process has not taken over from PID {pid} yet"
                ));
            }
            Succession::Over => return Err(Error::Stopped),
        }
        let parties = &state.parties;
        let asker = parties.iter().find(|party| party.id() == asker);
        let is_any_stopping = parties.iter().any(|party| party.is_stopping());
        let Some(asker) = asker.filter(|_| !is_any_stopping).map(Arc::clone) else {
            return Err(Error::Stopped);
        };
        state.forget_ended();
        if state.predecessors.len() >= restart.max_predecessors {
            let pids: Vec<_> = state
                .predecessors
                .iter()
                .map(|(pid, _)| pid.to_string())
                .collect();
            let (count, pids) = (pids.len(), pids.join(", "));
            let why = format!("{count} earlier processes still drain: {pids}");
            drop(state);
            self.tell_refused(&why, &asker);
            return busy(why);
        }
        let attempt = Arc::new(Attempt::new()?);
        state.attempt = Some(Arc::clone(&attempt));
        self.restarts.send_replace(true);
        Ok((attempt, asker))
    }

    /// Gives this to each thread that drives connections. When all have got on to it, or have ended, it is dropped.
    fn ask_threads(&self, given: &Arc<dyn Send + Sync>) {
        // The end of a server that stops is limited by its own timeouts, whatever its threads do.
        for party in self.parties().iter().filter(|party| !party.is_stopping()) {
            party.ask_threads(given);
        }
    }

    fn end(&self, attempt: &Attempt) {
        let mut state = self.lock();
        state.attempt = None;
        self.restarts.send_replace(false);
        drop(state);
        attempt.settle();
    }
}

/// Whether a process has ended, by its descriptor.
fn has_ended(process: &OwnedFd) -> bool {
    let mut watched = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    poll(&mut watched, PollTimeout::ZERO).is_ok_and(|count| count > 0)
}

/// Descriptors for the earlier processes that still live.
fn living(pids: &[u32]) -> Vec<(u32, OwnedFd)> {
    let living = |pid: &u32| Some((*pid, sys::pidfd(*pid).ok()?));
    pids.iter().filter_map(living).collect()
}
