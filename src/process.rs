//! What belongs to the process and not to a server: fork detection, and the signals of a run.
//!
//! Nothing else in the library is global.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::unix::AsyncFd;

use crate::sys::{self, Bell, EventFd, Signal, SignalMask};

static IN_CHILD: AtomicBool = AtomicBool::new(false);
static WATCHING: AtomicBool = AtomicBool::new(false);
/// How many [`Ours`] there are.
static OURS: AtomicUsize = AtomicUsize::new(0);

/// Something that belongs to this process, and that no child has that is forked meanwhile: a thread of ours, or the
/// catching of signals. In such a child each call must say so instead of waiting for threads that are not there. A
/// child that is forked when there is none has lost nothing, and may have servers of its own.
#[derive(Debug)]
pub(crate) struct Ours(());

impl Ours {
    /// Counts it, as long as this lives.
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

/// Has the child of every later fork marked, if it must be. Without a lock, which a fork might leave locked: that it is
/// asked for twice does no harm.
fn watch_forks() -> io::Result<()> {
    /// Runs before fork returns in the child, where the other threads are not: atomics only.
    extern "C" fn in_child() {
        if OURS.load(Ordering::Relaxed) > 0 {
            IN_CHILD.store(true, Ordering::Relaxed);
        }
        SIGNALLED.leave();
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

/// What the handler writes to. A child that may run servers makes its own: this one is its parent's as well.
static SIGNALLED: Bell = Bell::new();
/// When the first signal came, and when the last: on the clock of [`sys::uptime`], 0 before.
static FIRST_AT: AtomicU64 = AtomicU64::new(0);
static LAST_AT: AtomicU64 = AtomicU64::new(0);
static CATCHING: AtomicBool = AtomicBool::new(false);
/// The process that catches.
static CATCHER: AtomicU32 = AtomicU32::new(0);

/// A forked child inherits the handler, and shares with its parent what this writes to: the parent would stop, and the
/// child live on. A signal to the child does what it would without us. Its number tells also a child from `vfork` or
/// `clone`, which run no handlers of `pthread_atfork`, and the mark also one that is, in a namespace of its own, number 1
/// like its parent.
extern "C" fn on_signal(number: libc::c_int) {
    if forked() || std::process::id() != CATCHER.load(Ordering::Relaxed) {
        for signal in STOP_SIGNALS.iter().filter(|s| s.number() == number) {
            signal.restore();
            // Blocked until this returns, unless the child has another thread, and that takes it.
            signal.send_to_self();
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

/// SIGTERM and SIGINT are caught while this lives; dropped, it puts back what was there before. A SIGINT that is
/// ignored stays so: a shell that is not interactive has that done for what it starts in the background, which an
/// interrupt of the foreground must not end. Nobody ignores SIGTERM for others.
#[derive(Debug)]
pub(crate) struct StopSignals {
    caught: Vec<&'static Signal>,
    _ours: Ours,
}

impl StopSignals {
    /// Catches them. `None` if another run of this process does already.
    pub(crate) fn catch() -> io::Result<Option<Self>> {
        // First: a child that is forked in the middle of this must not take the signals for caught.
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

    /// Has the calling thread take them, also if it blocked them.
    pub(crate) fn hear_here(&self) -> Hearing {
        let caught = self.caught.iter().map(|signal| signal.number());
        Hearing(SignalMask::only(caught).unblock())
    }
}

/// Dropped, on the thread that has made it, it has that block again what it blocked before.
#[derive(Debug)]
pub(crate) struct Hearing(SignalMask);

impl Drop for Hearing {
    fn drop(&mut self) {
        self.0.set();
    }
}

/// Tells of the signals that are caught.
#[derive(Debug)]
pub(crate) struct SignalWatch {
    signalled: &'static EventFd,
    readiness: AsyncFd<BorrowedFd<'static>>,
    /// When the last one came that was told of.
    told: Option<u64>,
}

impl SignalWatch {
    /// Needs a tokio runtime.
    pub(crate) fn new() -> io::Result<Self> {
        let signalled = SIGNALLED.get_or_make()?;
        Ok(Self {
            signalled,
            readiness: sys::watch(signalled.as_fd())?,
            told: None,
        })
    }

    /// Waits for a signal: the first, and then one that has come at least `pause` after the one that was told of last.
    /// Those in between have told the same thing again. When they came counts, not when this looks.
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
            let mut ready = self.readiness.readable().await?;
            self.signalled.clear();
            ready.clear_ready();
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Drop for StopSignals {
    fn drop(&mut self) {
        self.caught.iter().for_each(|signal| signal.restore());
        CATCHING.store(false, Ordering::Release);
    }
}
