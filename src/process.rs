//! What belongs to the process and not to a server: fork detection, and the signals of a run.
//!
//! Nothing else in the library is global.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use crate::sys::{self, Bell, Signal};

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
static SIGNALS_SEEN: AtomicU32 = AtomicU32::new(0);
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
    SIGNALS_SEEN.fetch_add(1, Ordering::Relaxed);
    if let Some(signalled) = SIGNALLED.get() {
        signalled.set();
    }
}

/// SIGTERM and SIGINT are caught while this lives; dropped, it puts back what was there before.
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
        SIGNALS_SEEN.store(0, Ordering::Relaxed);
        CATCHER.store(std::process::id(), Ordering::Relaxed);
        for signal in &STOP_SIGNALS {
            signal.catch(on_signal)?;
            signals.caught.push(signal);
        }
        Ok(Some(signals))
    }

    /// Calls `seen` with the number of signals so far, each time one has come. Needs a tokio runtime.
    pub(crate) async fn watch(mut seen: impl FnMut(u32)) -> io::Result<()> {
        let signalled = SIGNALLED.get_or_make()?;
        let readiness = sys::watch(signalled.as_fd())?;
        loop {
            let mut ready = readiness.readable().await?;
            signalled.clear();
            ready.clear_ready();
            seen(SIGNALS_SEEN.load(Ordering::Relaxed));
        }
    }
}

impl Drop for StopSignals {
    fn drop(&mut self) {
        self.caught.iter().for_each(|signal| signal.restore());
        CATCHING.store(false, Ordering::Release);
    }
}
