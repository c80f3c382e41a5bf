//! What a new process holds, where its predecessor can read it also when the process has died (ADR 0029).

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use once_cell::sync::OnceCell;

use crate::conn_info::ConnState;
use crate::sys::shared_memory;

/// How many connections, and on how many of them there is a request.
type Counters = [AtomicU64; 2];

/// Only while this process may fail under the eyes of its predecessor: the threads that drive connections all write
/// these counters. All connections come after the beginning.
static IS_SHOWN: AtomicBool = AtomicBool::new(false);
static COUNTERS: OnceCell<&'static Counters> = OnceCell::new();

/// Begins to count. Returns where the predecessor finds the counts. No connection may have been accepted.
pub(crate) fn show() -> io::Result<OwnedFd> {
    let (counters, fd) = shared_memory::counters()?;
    let is_first = COUNTERS.set(counters).is_ok();
    IS_SHOWN.store(is_first, Ordering::Relaxed);
    Ok(fd)
}

/// Nobody reads the counts any more.
pub(crate) fn hide() {
    IS_SHOWN.store(false, Ordering::Relaxed);
}

#[inline]
fn shown() -> Option<&'static Counters> {
    if !IS_SHOWN.load(Ordering::Relaxed) {
        return None;
    }
    COUNTERS.get().copied()
}

/// The kernel may give this process a connection while this value lives. It counts as one, so that none is missing.
pub(crate) struct Expected(Option<&'static Counters>);

pub(crate) fn expect() -> Expected {
    let shown = shown();
    if let Some([conns, _]) = shown {
        conns.fetch_add(1, Ordering::Relaxed);
    }
    Expected(shown)
}

impl Drop for Expected {
    fn drop(&mut self) {
        if let Some([conns, _]) = self.0 {
            conns.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// A connection's state changes. `None`: there was no connection before.
#[inline]
pub(crate) fn changes(from: Option<ConnState>, to: ConnState) {
    if let Some(counters) = shown() {
        count(counters, from, to);
    }
}

#[cold]
fn count([conns, requests]: &Counters, from: Option<ConnState>, to: ConnState) {
    match (from, to) {
        (None, _) => drop(conns.fetch_add(1, Ordering::Relaxed)),
        (_, ConnState::Closed) => drop(conns.fetch_sub(1, Ordering::Relaxed)),
        _ => {}
    }
    match (from, to) {
        (Some(ConnState::Active), ConnState::Active) => {}
        (Some(ConnState::Active), _) => drop(requests.fetch_sub(1, Ordering::Relaxed)),
        (_, ConnState::Active) => drop(requests.fetch_add(1, Ordering::Relaxed)),
        _ => {}
    }
}

/// What another process holds, or held at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holdings {
    pub(crate) conns: u64,
    pub(crate) requests: u64,
}

impl Holdings {
    pub(crate) fn read(shown: BorrowedFd<'_>) -> io::Result<Self> {
        let [conns, requests] = shared_memory::read(shown)?;
        Ok(Self { conns, requests })
    }
}
