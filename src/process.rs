//! What belongs to the process and not to a server: fork detection, and the signals of a run.
//!
//! Nothing else in the library is global.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use once_cell::sync::OnceCell;

use crate::sys::{self, EventFd, Signal};

static IN_CHILD: AtomicBool = AtomicBool::new(false);
static FORK_WATCH: OnceCell<()> = OnceCell::new();

/// Notices every later fork: threads do not survive it, so in the child each call must say so instead of waiting for
/// threads that are gone.
pub(crate) fn watch_forks() -> io::Result<()> {
    extern "C" fn in_child() {
        IN_CHILD.store(true, Ordering::Relaxed);
    }
    FORK_WATCH
        .get_or_try_init(|| sys::at_fork(in_child))
        .copied()
}

/// Whether this process is the forked child of one that had a server, or caught signals. Async-signal-safe.
pub(crate) fn forked() -> bool {
    IN_CHILD.load(Ordering::Relaxed)
}

/// The signals that end a run.
static STOP_SIGNALS: [Signal; 2] = [Signal::new(libc::SIGTERM), Signal::new(libc::SIGINT)];

/// What the handler writes to: it lives for ever, because a handler may still be running on another thread when the
/// old action has been restored.
static SIGNALLED: OnceCell<EventFd> = OnceCell::new();
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
}

impl StopSignals {
    /// Catches them. `None` if another run of this process does already.
    pub(crate) fn catch() -> io::Result<Option<Self>> {
        watch_forks()?;
        if CATCHING.swap(true, Ordering::Acquire) {
            return Ok(None);
        }
        let mut signals = Self { caught: Vec::new() };
        SIGNALLED.get_or_try_init(EventFd::new)?.clear();
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
        let signalled = SIGNALLED.get_or_try_init(EventFd::new)?;
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
