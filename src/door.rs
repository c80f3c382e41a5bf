//! Who may take connections from the kernel: the accepting task, until the stop closes the door.
//!
//! It knows nothing else, so that all its interleavings can be gone through (`tests/models.rs`).

use crate::sync::{Mutex, MutexGuard, PoisonError};

/// Whoever takes a connection from the kernel and enters it into the registry holds the door meanwhile. So once it is
/// closed, each connection is either in the registry or still in the kernel's queue.
#[derive(Debug)]
pub(crate) struct Door(Mutex<bool>);

impl Default for Door {
    fn default() -> Self {
        Self(Mutex::new(true))
    }
}

impl Door {
    /// Does that while the door is open; not at all if it is closed.
    pub(crate) fn pass<T>(&self, take: impl FnOnce() -> T) -> Option<T> {
        let is_open = self.is_open();
        is_open.then(take)
    }

    /// Waits for who is passing. Nobody does from now on.
    pub(crate) fn close(&self) {
        *self.is_open() = false;
    }

    fn is_open(&self) -> MutexGuard<'_, bool> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
