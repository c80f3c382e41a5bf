//! Who goes on with a connection when something happens: its task, or, if it is parked, a new one.
//!
//! A task lives as long as there is something to do. What is left then waits here, in the connection's `Conn`, which is
//! the waker that its socket, its timers and the phases know: so an idle connection has no task. All that holds it are its
//! own wakers. The end of a runtime wakes those that wait in it before it drops them, and the phases wake all: then it goes
//! on, or, where nothing runs any more, is dropped.
//!
//! It knows nothing of connections, so that all its interleavings can be gone through (`tests/models.rs`).

use std::fmt;
use std::task::Waker;

use crate::sync::{Mutex, MutexGuard, PoisonError};

/// What can go on by itself.
pub(super) trait Resume: Send {
    /// Spawns a task that looks what has happened.
    fn resume(self: Box<Self>);
}

/// See the module.
#[derive(Default)]
pub(super) struct Driver(Mutex<State>);

#[derive(Default)]
enum State {
    /// Somebody looks whether there is something to do, and will say who waits.
    #[default]
    Looking,
    /// Something has happened since, and nobody has seen it for sure.
    Woken,
    /// It has a task.
    Driven(Waker),
    /// It has none.
    Parked(Box<dyn Resume>),
}

impl Driver {
    /// From now on, what happens is not lost: to be called before it is looked whether there is something to do.
    pub(super) fn look(&self) {
        *self.state() = State::Looking;
    }

    /// A task of this waker drives it: to be called before that looks for the first time.
    pub(super) fn driven_by(&self, task: &Waker) {
        *self.state() = State::Driven(task.clone());
    }

    /// There was nothing to do. Whatever happens, or has happened since [`Driver::look`], resumes it.
    pub(super) fn park(&self, parked: Box<dyn Resume>) {
        let mut state = self.state();
        if let State::Woken = *state {
            drop(state);
            parked.resume();
        } else {
            *state = State::Parked(parked);
        }
    }

    /// Something has happened.
    pub(super) fn wake(&self) {
        let mut state = self.state();
        match std::mem::replace(&mut *state, State::Woken) {
            State::Looking | State::Woken => {}
            State::Driven(task) => {
                task.wake_by_ref();
                *state = State::Driven(task);
            }
            State::Parked(parked) => {
                // Elsewhere it may look, and park, before this is over.
                drop(state);
                parked.resume();
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").finish_non_exhaustive()
    }
}
