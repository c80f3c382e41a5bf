//! What belongs to the process and not to a server: fork detection, and the signals of a run.
//!
//! Nothing else in the library is global.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use once_cell::sync::OnceCell;

use crate::sys::{self, EventFd, OldAction};

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

/// Whether this process is the forked child of one that had a server. Async-signal-safe.
pub(crate) fn forked() -> bool {
    IN_CHILD.load(Ordering::Relaxed)
}

/// The signals that end a run.
const STOP_SIGNALS: [libc::c_int; 2] = [libc::SIGTERM, libc::SIGINT];

/// What the handler writes to: it lives for ever, because a handler may still be running on another thread when the
/// old action has been restored.
static SIGNALLED: OnceCell<EventFd> = OnceCell::new();
static SIGNALS_SEEN: AtomicU32 = AtomicU32::new(0);
static CATCHING: AtomicBool = AtomicBool::new(false);

extern "C" fn on_signal(_signal: libc::c_int) {
    SIGNALS_SEEN.fetch_add(1, Ordering::Relaxed);
    if let Some(signalled) = SIGNALLED.get() {
        signalled.set();
    }
}

/// SIGTERM and SIGINT are caught while this lives; dropped, it puts back what was there before.
#[derive(Debug)]
pub(crate) struct StopSignals {
    old: Vec<OldAction>,
}

impl StopSignals {
    /// Catches them. `None` if another run of this process does already.
    pub(crate) fn catch() -> io::Result<Option<Self>> {
        if CATCHING.swap(true, Ordering::Acquire) {
            return Ok(None);
        }
        let mut signals = Self { old: Vec::new() };
        SIGNALLED.get_or_try_init(EventFd::new)?.clear();
        SIGNALS_SEEN.store(0, Ordering::Relaxed);
        for signal in STOP_SIGNALS {
            signals.old.push(sys::catch_signal(signal, on_signal)?);
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
        self.old.iter().for_each(sys::restore_signal);
        CATCHING.store(false, Ordering::Release);
    }
}
