//! Who may take connections from the kernel: the accepting task, until the stop closes the door. Also, when the stop
//! has taken all of them.
//!
//! This module knows nothing else, so that a model checker can try all its interleavings (`tests/models.rs`).

use crate::sync::{Mutex, MutexGuard, PoisonError};

/// A thread that takes a connection from the kernel and enters it into the registry holds the door meanwhile. So once
/// the door is closed, each connection is either in the registry or still in the kernel's queue.
#[derive(Debug)]
pub(crate) struct Door(Mutex<bool>);

impl Default for Door {
    fn default() -> Self {
        Self(Mutex::new(true))
    }
}

impl Door {
    /// Calls `take` while the door is open; does not call it if the door is closed.
    pub(crate) fn pass<T>(&self, take: impl FnOnce() -> T) -> Option<T> {
        let is_open = self.is_open();
        is_open.then(take)
    }

    /// Closes the door: waits for a thread that is passing it. From now on, nobody passes.
    pub(crate) fn close(&self) {
        *self.is_open() = false;
    }

    fn is_open(&self) -> MutexGuard<'_, bool> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many looks in a row must find nobody outside. A client whose SYN, or whose last segment, is being handled by
/// another processor cannot be seen for a moment.
const QUIET_LOOKS: u32 = 2;

/// Whether somebody is still outside the door.
#[derive(Debug, Default)]
pub(crate) struct Quiet {
    looks: u32,
}

impl Quiet {
    /// One look: whether a handshake is under way, and then whether a connection waits. The order matters: a client
    /// that ends its handshake between the two is seen waiting.
    pub(crate) fn look(
        &mut self,
        in_handshake: impl FnOnce() -> bool,
        waits: impl FnOnce() -> bool,
    ) {
        let is_quiet = !in_handshake() && !waits();
        self.looks = if is_quiet { self.looks + 1 } else { 0 };
    }

    /// Whether it is certain that nobody is outside.
    pub(crate) fn is_certain(&self) -> bool {
        self.looks >= QUIET_LOOKS
    }
}
