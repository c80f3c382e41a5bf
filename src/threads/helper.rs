//! The helper: a thread that does for the control thread what may wait, or may run code of the host's.
//!
//! The control thread decides, and waits only for timers and messages. What it cannot bound itself it has done here: a
//! system call that another process can make block, the waking of tasks, the dropping of what the host has given us. If the
//! helper is held up, the control thread goes on without it when its time is over.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::contain::contain;

type Job = Box<dyn FnOnce() + Send>;

/// What the helper has to do, in this order. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Helper(Arc<Jobs>);

#[derive(Default)]
struct Jobs {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    ended: bool,
}

impl Helper {
    /// The life of the thread: until [`Helper::end`], and then what was asked for before it.
    pub(crate) fn live(&self) {
        while let Some(job) = self.next() {
            // Host code that panics costs its own job, whose waiter sees that no answer comes.
            contain(job);
        }
    }

    /// Has `job` done. The answer never comes if it panics, or is asked for after the end.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move || {
            // A caller that waits no more has left what the answer holds to us.
            drop(answer.send(job()));
        });
        let mut state = self.lock();
        if !state.ended {
            state.waiting.push_back(job);
            drop(state);
            self.0.changed.notify_one();
        }
        answered
    }

    /// Nothing more will be asked for.
    pub(crate) fn end(&self) {
        self.lock().ended = true;
        self.0.changed.notify_all();
    }

    fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.waiting.pop_front() {
                return Some(job);
            }
            if state.ended {
                return None;
            }
            let waited = self.0.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Helper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Helper")
            .field("waiting", &self.lock().waiting.len())
            .finish_non_exhaustive()
    }
}
