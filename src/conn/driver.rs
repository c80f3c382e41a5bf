//! Which task continues a connection when something happens: its own task or, if the connection is parked, a new one.
//!
//! A task lives as long as there is something to do. What is left of the connection then waits here, in its `Conn`. The
//! `Conn` is the waker that the socket, the timers and the phases know: so an idle connection has no task, and only its
//! own wakers hold it. A runtime that ends wakes the connections that wait in it before it drops the wakers, and the
//! phases wake all: then the connection goes on, or, where nothing runs any more, is dropped.
//!
//! This module knows nothing of connections, so that a model checker can try all its interleavings (`tests/models.rs`).

use std::fmt;
use std::task::Waker;

use crate::sync::{Mutex, MutexGuard, PoisonError};

/// A parked connection, which can go on by itself.
pub(super) trait Resume: Send {
    /// Spawns a task that looks at what has happened.
    fn resume(self: Box<Self>);
}

/// Who goes on with a connection: see the module.
#[derive(Default)]
pub(super) struct Driver(Mutex<State>);

#[derive(Default)]
enum State {
    /// A task looks whether there is something to do, and will then set the next state.
    #[default]
    Looking,
    /// Something has happened since the task began to look, and the task may not have seen it.
    Woken,
    /// The connection has a task, with this waker.
    Driven(Waker),
    /// The connection has no task.
    Parked(Box<dyn Resume>),
}

impl Driver {
    /// To be called before looking whether there is something to do. What happens from then on is not lost.
    pub(super) fn look(&self) {
        *self.state() = State::Looking;
    }

    /// The task with this waker drives the connection. To be called before that task looks for the first time.
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
                // Another thread may run the resumed task, and park it again, before this call returns. So the lock
                // must be free.
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
