//! The helper: a thread that does for the control thread what may wait, or may run the host's code.
//!
//! The control thread decides, and waits only for timers and messages. The helper does what the control thread cannot
//! limit in time: a system call that another process can make block, the waking of tasks, the dropping of what the host
//! has given us. If the helper is held up, the control thread goes on without it when its time is over.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::contain::contain;

type Job = Box<dyn FnOnce() + Send>;

/// The helper's jobs, in the order in which they are done. All clones share them.
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
    /// The life of the thread: it does the jobs that were given before [`Helper::end`], and then ends.
    pub(crate) fn live(&self) {
        while let Some(job) = self.next() {
            // If the host's code panics, only its own job is lost. The job's waiter sees that no answer comes.
            contain(job);
        }
    }

    /// Lets the helper do `job`. The answer never comes if the job panics, or is given after the end.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move || {
            // If the caller waits no more, the answer is left to us, and is dropped here.
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

    /// No more jobs will be given.
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
