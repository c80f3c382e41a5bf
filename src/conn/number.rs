//! A socket's number, for threads that do not own the socket. The number is known as long as the socket is open.
//!
//! This module knows nothing of connections, so that a model checker can try all its interleavings (`tests/models.rs`).

use std::os::fd::RawFd;

use crate::sync::{Mutex, MutexGuard, PoisonError};

/// The number is `None` from shortly before the socket is closed.
#[derive(Debug)]
pub(super) struct Number(Mutex<Option<RawFd>>);

impl Number {
    pub(super) fn new(fd: RawFd) -> Self {
        Self(Mutex::new(Some(fd)))
    }

    /// Calls `f` while the socket cannot be closed; does not call it if the socket is closed.
    pub(super) fn with<T>(&self, f: impl FnOnce(RawFd) -> T) -> Option<T> {
        self.lock().map(f)
    }

    /// The socket is about to be closed. Calls `f` first, unless the number was forgotten before. From then on, no
    /// thread can reach the socket by its number.
    pub(super) fn forget<T>(&self, f: impl FnOnce(RawFd) -> T) -> Option<T> {
        let mut number = self.lock();
        number.take().map(f)
    }

    /// Calls `f`, which closes the socket if it fails. Meanwhile no thread can reach the socket by its number, and
    /// afterwards only if `f` has not failed.
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
