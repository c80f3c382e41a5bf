//! Who may take connections from the kernel: the accepting task, until the stop closes the door. And when the stop has
//! taken all of them.
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

/// How often nobody must be found outside, one time after the other: a client whose SYN, or whose last segment, is in the
/// hands of another processor is not to be seen for a moment.
const QUIET_LOOKS: u32 = 2;

/// Whether somebody is still outside the door.
#[derive(Debug, Default)]
pub(crate) struct Quiet {
    looks: u32,
}

impl Quiet {
    /// One look: whether a handshake is under way, and whether a connection waits. In this order: whoever is through with the
    /// handshake meanwhile waits.
    pub(crate) fn look(
        &mut self,
        in_handshake: impl FnOnce() -> bool,
        waits: impl FnOnce() -> bool,
    ) {
        let is_quiet = !in_handshake() && !waits();
        self.looks = if is_quiet { self.looks + 1 } else { 0 };
    }

    /// Nobody is.
    pub(crate) fn is_certain(&self) -> bool {
        self.looks >= QUIET_LOOKS
    }
}
