//! The state that belongs to the process and not to a server: fork detection, and the signals of a run.
//!
//! Nothing else in the library is global.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::unix::AsyncFd;

use crate::sys::{self, Bell, Signal, SignalMask};

static IN_CHILD: AtomicBool = AtomicBool::new(false);
static WATCHING: AtomicBool = AtomicBool::new(false);
/// The number of [`Ours`].
static OURS: AtomicUsize = AtomicUsize::new(0);

/// Something that belongs to this process, and that a child that is forked now does not have: one of our threads, or
/// the catching of signals. In such a child each call must fail instead of waiting for threads that do not exist. A
/// child that is forked while there is no such thing has lost nothing, and may have its own servers.
#[derive(Debug)]
pub(crate) struct Ours(());

impl Ours {
    /// Counts one such thing, as long as the returned value lives.
    pub(crate) fn count() -> io::Result<Self> {
        watch_forks()?;
        OURS.fetch_add(1, Ordering::Relaxed);
        Ok(Self(()))
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        OURS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Arranges that the child of every later fork is marked, if it must be. Uses no lock, because a fork might leave the
/// lock locked; a second registration does no harm.
fn watch_forks() -> io::Result<()> {
    /// Runs in the child before fork returns there. The other threads do not exist there, so this code uses only
    /// atomics.
    extern "C" fn in_child() {
        if OURS.load(Ordering::Relaxed) > 0 {
            IN_CHILD.store(true, Ordering::Relaxed);
        }
        SIGNALLED.leave();
        HUNG_UP.leave();
        RESTART_WANTED.leave();
    }
    if !WATCHING.load(Ordering::Acquire) {
        sys::at_fork(in_child)?;
        WATCHING.store(true, Ordering::Release);
    }
    Ok(())
}

/// Whether this process was forked from one that had something of [`Ours`], or is the child of such a process.
/// Async-signal-safe.
pub(crate) fn forked() -> bool {
    IN_CHILD.load(Ordering::Relaxed)
}

/// The signals that end a run.
static STOP_SIGNALS: [Signal; 2] = [Signal::new(libc::SIGTERM), Signal::new(libc::SIGINT)];

/// The signal that may have files read again, or restart the program.
static HANGUP: Signal = Signal::new(libc::SIGHUP);
/// The signal that restarts the program.
static RESTART: Signal = Signal::new(libc::SIGUSR2);

/// The handler writes to this bell. A child that may run servers makes its own bell, because it shares this one with
/// its parent.
static SIGNALLED: Bell = Bell::new();
/// The same for [`HANGUP`].
static HUNG_UP: Bell = Bell::new();
/// The same for a restart.
static RESTART_WANTED: Bell = Bell::new();
/// A restart was asked for by a signal, and nobody has begun it.
static WANTS_RESTART: AtomicBool = AtomicBool::new(false);
/// [`HANGUP`] asks for a restart.
static HANGUP_RESTARTS: AtomicBool = AtomicBool::new(false);
/// The times of the first and of the last signal, on the clock of [`sys::uptime`]; 0 before a signal.
static FIRST_AT: AtomicU64 = AtomicU64::new(0);
static LAST_AT: AtomicU64 = AtomicU64::new(0);
static CATCHING: AtomicBool = AtomicBool::new(false);
/// The ID of the process that catches the signals.
static CATCHER: AtomicU32 = AtomicU32::new(0);

/// A forked child inherits this handler, and shares the bell with its parent. Without a check, a signal to the child
/// would stop the parent, and the child would live on. So in a child, a signal has its earlier effect. The process ID
/// also detects a child of `vfork` or `clone`, which run no handlers of `pthread_atfork`. The mark also detects a child
/// that has the number 1 in its own namespace, like its parent.
extern "C" fn on_signal(number: libc::c_int) {
    if forked() || std::process::id() != CATCHER.load(Ordering::Relaxed) {
        let ours = STOP_SIGNALS.iter().chain([&HANGUP, &RESTART]);
        for signal in ours.filter(|signal| signal.number() == number) {
            signal.restore();
            // The signal is blocked until this handler returns, unless another thread of the child takes it.
            signal.send_to_self();
        }
        return;
    }
    let restarts = number == HANGUP.number() && HANGUP_RESTARTS.load(Ordering::Relaxed);
    if restarts || number == RESTART.number() {
        WANTS_RESTART.store(true, Ordering::Release);
        if let Some(wanted) = RESTART_WANTED.get() {
            wanted.set();
        }
        return;
    }
    if number == HANGUP.number() {
        if let Some(hung_up) = HUNG_UP.get() {
            hung_up.set();
        }
        return;
    }
    let now = nanos(sys::uptime()).max(1);
    let _ = FIRST_AT.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
    LAST_AT.fetch_max(now, Ordering::Relaxed);
    if let Some(signalled) = SIGNALLED.get() {
        signalled.set();
    }
}

/// While this value lives, SIGTERM and SIGINT are caught, and SIGHUP if that is asked for. Dropping it restores the
/// earlier actions. If SIGINT is ignored, it stays ignored: a shell that is not interactive ignores it for the programs
/// that it starts in the background, because an interrupt of the foreground must not end them. Nobody ignores SIGTERM
/// for others.
#[derive(Debug)]
pub(crate) struct RunSignals {
    caught: Vec<&'static Signal>,
    _ours: Ours,
}

impl RunSignals {
    /// Catches the signals. `None` if another run of this process already does.
    pub(crate) fn catch() -> io::Result<Option<Self>> {
        // This comes first, because a child that is forked in the middle of this function must not take the signals for
        // caught.
        let ours = Ours::count()?;
        if CATCHING.swap(true, Ordering::Acquire) {
            return Ok(None);
        }
        let mut signals = Self {
            caught: Vec::new(),
            _ours: ours,
        };
        SIGNALLED.get_or_make()?.clear();
        FIRST_AT.store(0, Ordering::Relaxed);
        LAST_AT.store(0, Ordering::Relaxed);
        CATCHER.store(std::process::id(), Ordering::Relaxed);
        for signal in &STOP_SIGNALS {
            if signal.number() == libc::SIGINT && signal.is_ignored()? {
                continue;
            }
            signal.catch(on_signal)?;
            signals.caught.push(signal);
        }
        Ok(Some(signals))
    }

    /// Catches SIGHUP, too, also where it was ignored: `nohup` wants it to end nothing, and it ends nothing. A second
    /// call does nothing.
    pub(crate) fn catch_hangup(&mut self) -> io::Result<()> {
        let hangup = HANGUP.number();
        if self.caught.iter().any(|signal| signal.number() == hangup) {
            return Ok(());
        }
        HUNG_UP.get_or_make()?.clear();
        HANGUP.catch(on_signal)?;
        self.caught.push(&HANGUP);
        Ok(())
    }

    /// Catches SIGUSR2, unless the host does something with it: its default action would end the program, so then nobody
    /// needs it. A second call does nothing.
    pub(crate) fn catch_restart(&mut self) -> io::Result<()> {
        let restart = RESTART.number();
        if self.caught.iter().any(|signal| signal.number() == restart) || !RESTART.is_default()? {
            return Ok(());
        }
        WANTS_RESTART.store(false, Ordering::Relaxed);
        RESTART_WANTED.get_or_make()?.clear();
        RESTART.catch(on_signal)?;
        self.caught.push(&RESTART);
        Ok(())
    }

    /// Makes the calling thread take the signals, even if it blocked them.
    pub(crate) fn hear_here(&self) -> Hearing {
        let caught = self.caught.iter().map(|signal| signal.number());
        Hearing(SignalMask::only(caught).unblock())
    }
}

/// When this value is dropped, on the thread that made it, the thread blocks again the signals that it blocked before.
#[derive(Debug)]
pub(crate) struct Hearing(SignalMask);

impl Drop for Hearing {
    fn drop(&mut self) {
        self.0.set();
    }
}

/// Reports the caught signals. Each server of a run has its own watch of the same bell. So no watch clears the bell, and
/// each is woken for every signal: the kernel reports each write to an eventfd anew to those who watch for edges.
#[derive(Debug)]
pub(crate) struct SignalWatch {
    readiness: AsyncFd<BorrowedFd<'static>>,
    /// The time of the last signal that was reported.
    told: Option<u64>,
}

impl SignalWatch {
    /// Needs a tokio runtime.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            readiness: sys::watch(SIGNALLED.get_or_make()?.as_fd())?,
            told: None,
        })
    }

    /// Waits for a signal: the first one, and then one that has come at least `pause` after the last reported one.
    /// Signals in between are repetitions. The time that counts is when a signal came, not when this method looks.
    pub(crate) async fn next(&mut self, pause: Duration) -> io::Result<()> {
        loop {
            let came = match self.told {
                None => FIRST_AT.load(Ordering::Relaxed),
                Some(told) => {
                    let last = LAST_AT.load(Ordering::Relaxed);
                    let counts = last > told && last - told >= nanos(pause);
                    if counts { last } else { 0 }
                }
            };
            if came != 0 {
                self.told = Some(came);
                return Ok(());
            }
            self.readiness.readable().await?.clear_ready();
        }
    }
}

/// Reports caught SIGHUPs. Does not clear the bell, like [`SignalWatch`].
#[derive(Debug)]
pub(crate) struct HangupWatch(AsyncFd<BorrowedFd<'static>>);

impl HangupWatch {
    /// Needs a tokio runtime.
    pub(crate) fn new() -> io::Result<Self> {
        let hung_up = HUNG_UP.get_or_make()?;
        Ok(Self(sys::watch(hung_up.as_fd())?))
    }

    /// Waits for the next signal. Those that came meanwhile count as one.
    pub(crate) async fn next(&self) -> io::Result<()> {
        self.0.readable().await?.clear_ready();
        Ok(())
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Reports signals that ask for a restart. Does not clear the bell, like [`SignalWatch`].
#[derive(Debug)]
pub(crate) struct RestartWatch(AsyncFd<BorrowedFd<'static>>);

impl RestartWatch {
    /// Needs a tokio runtime. `by_hangup`: SIGHUP asks for it, too, if it is caught.
    pub(crate) fn new(by_hangup: bool) -> io::Result<Self> {
        let wanted = RESTART_WANTED.get_or_make()?;
        HANGUP_RESTARTS.store(by_hangup, Ordering::Relaxed);
        Ok(Self(sys::watch(wanted.as_fd())?))
    }

    /// Waits for the next signal. Each is for one watch only. Those that came meanwhile count as one.
    pub(crate) async fn next(&self) -> io::Result<()> {
        while !WANTS_RESTART.swap(false, Ordering::AcqRel) {
            self.0.readable().await?.clear_ready();
        }
        Ok(())
    }
}

impl Drop for RunSignals {
    fn drop(&mut self) {
        HANGUP_RESTARTS.store(false, Ordering::Relaxed);
        self.caught.iter().for_each(|signal| signal.restore());
        CATCHING.store(false, Ordering::Release);
    }
}
