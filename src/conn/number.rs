//! A socket as it is known to those who do not own it: by its number, for as long as it is open.
//!
//! It knows nothing of connections, so that all its interleavings can be gone through (`tests/models.rs`).

use std::os::fd::RawFd;

use crate::sync::{Mutex, MutexGuard, PoisonError};

/// `None` from shortly before the socket is closed.
#[derive(Debug)]
pub(super) struct Number(Mutex<Option<RawFd>>);

impl Number {
    pub(super) fn new(fd: RawFd) -> Self {
        Self(Mutex::new(Some(fd)))
    }

    /// Does that while the socket cannot be closed; not at all if it is.
    pub(super) fn with<T>(&self, f: impl FnOnce(RawFd) -> T) -> Option<T> {
        self.lock().map(f)
    }

    /// The socket is about to be closed. Does that before, unless somebody has been here: from then on, nobody else comes to
    /// it by its number.
    pub(super) fn forget<T>(&self, f: impl FnOnce(RawFd) -> T) -> Option<T> {
        let mut number = self.lock();
        number.take().map(f)
    }

    /// Does what closes the socket if it fails: meanwhile nobody comes to it, and afterwards only if it has not failed.
    pub(super) fn forget_if_err<T, E>(&self, f: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let mut number = self.lock();
        let result = f();
        if result.is_err() {
            *number = None;
        }
        result
    }

    fn lock(&self) -> MutexGuard<'_, Option<RawFd>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
