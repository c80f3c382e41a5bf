//! Who wants to know more of a request than its answer needs.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Is told in the connection's task, between two steps of hyper.
pub(crate) trait Listener: Send + Sync {
    /// The server drains, and it is this request's turn to end.
    fn drains(&self);

    /// The program has had the request for longer than it should.
    fn overdue(&self);

    /// The listener has asked to be called.
    fn call(&self);
}

/// The listener waits for the drain.
const DRAIN: u8 = 1;
/// The listener has asked to be called.
const CALL: u8 = 2;
/// No task looks any more.
const CLOSED: u8 = 4;

/// The listener of a connection: that of its last request, if that has one.
#[derive(Default)]
pub(super) struct Listening {
    /// Can be read without the lock.
    asks_for: AtomicU8,
    /// In a box, because most connections have none.
    listener: Mutex<Option<Box<Arc<dyn Listener>>>>,
}

impl Listening {
    pub(super) fn set(&self, listener: Arc<dyn Listener>) {
        let before = self.lock().replace(Box::new(listener));
        self.asks_for.fetch_or(DRAIN, Ordering::AcqRel);
        drop(before);
    }

    /// The listener's request has ended.
    pub(super) fn clear(&self, listener: *const ()) {
        let is_it =
            |set: &mut Box<Arc<dyn Listener>>| std::ptr::addr_eq(Arc::as_ptr(set), listener);
        let mut set = self.lock();
        let before = set.take_if(is_it);
        if before.is_some() {
            self.asks_for.fetch_and(CLOSED, Ordering::AcqRel);
        }
        drop(set);
    }

    /// False if the connection has ended, and will not call.
    pub(super) fn ask_for_call(&self) -> bool {
        self.asks_for.fetch_or(CALL, Ordering::AcqRel) & CLOSED == 0
    }

    /// The connection has ended. Calls for the last time.
    pub(super) fn close(&self) {
        self.asks_for.fetch_or(CLOSED, Ordering::AcqRel);
        self.call();
    }

    pub(super) fn is_set(&self) -> bool {
        self.lock().is_some()
    }

    pub(super) fn is_asking(&self) -> bool {
        self.asks_for.load(Ordering::Acquire) & !CLOSED != 0
    }

    pub(super) fn waits_for_drain(&self) -> bool {
        self.asks_for.load(Ordering::Acquire) & DRAIN != 0
    }

    pub(super) fn drains(&self) {
        self.asks_for.fetch_and(!DRAIN, Ordering::AcqRel);
        if let Some(listener) = self.get() {
            listener.drains();
        }
    }

    pub(super) fn overdue(&self) {
        if let Some(listener) = self.get() {
            listener.overdue();
        }
    }

    /// Calls the listener, if it has asked for that.
    pub(super) fn call(&self) {
        let asked_for = self.asks_for.fetch_and(!CALL, Ordering::AcqRel);
        if asked_for & CALL != 0
            && let Some(listener) = self.get()
        {
            listener.call();
        }
    }

    /// The lock is free while the listener is called.
    fn get(&self) -> Option<Arc<dyn Listener>> {
        self.lock().as_deref().cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Box<Arc<dyn Listener>>>> {
        self.listener.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listening").finish_non_exhaustive()
    }
}
