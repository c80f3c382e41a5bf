//! The threads that read files, where that may have to wait for a disk.
//!
//! An I/O thread must not wait for a disk, because all its connections would wait, too. So it lets these threads read
//! what the kernel does not have in its memory. They are started when they are needed, and end when they have been idle
//! for some time.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::contain::contain;

use super::{Role, Thread, join_all, spawn_thread};

/// How many reads may wait for disks at the same time, in a server. nginx has as many threads for this.
const MOST: usize = 32;

/// How long a thread without work waits before it ends.
const IDLE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

/// The threads, and what they have to do. All clones are the same threads.
#[derive(Clone, Default)]
pub(crate) struct Readers(Arc<Pool>);

#[derive(Default)]
struct Pool {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    /// The threads that have been started and have not been joined.
    threads: Vec<Thread>,
    /// How many of them have not come to their end.
    alive: usize,
    /// How many of these wait for a job.
    idle: usize,
    started: usize,
    ended: bool,
}

impl Readers {
    /// Lets a thread of this server do `job`. The answer never comes if the job panics, if no thread can be started, or
    /// after [`Readers::end`].
    pub(crate) fn run<T: Send + 'static>(
        &self,
        server: u64,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (answer, answered) = oneshot::channel();
        let mut state = self.lock();
        if state.ended {
            return answered;
        }
        state.waiting.push_back(Box::new(move || {
            // If the caller waits no more, the answer is left to us, and is dropped here.
            drop(answer.send(job()));
        }));
        if state.idle < state.waiting.len() && state.alive < MOST {
            self.start_thread(&mut state, server);
        }
        // If there is no thread at all, nobody would ever do the jobs.
        let left = match state.alive {
            0 => std::mem::take(&mut state.waiting),
            _ => VecDeque::new(),
        };
        drop(state);
        drop(left);
        self.0.changed.notify_one();
        answered
    }

    fn start_thread(&self, state: &mut State, server: u64) {
        let name = format!("httpdown-f{}", state.started);
        let readers = self.clone();
        let body = move || readers.live();
        // If no thread can be started, those that there are take the job.
        if let Ok(thread) = spawn_thread(&name, server, Role::Other, None, body) {
            state.started += 1;
            state.alive += 1;
            state.threads.retain(|thread| !thread.is_finished());
            state.threads.push(thread);
        }
    }

    /// The life of a thread.
    fn live(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.waiting.pop_front() {
                drop(state);
                // The job's waiter sees that no answer comes.
                contain(job);
                state = self.lock();
                continue;
            }
            if state.ended {
                break;
            }
            state.idle += 1;
            let waited = self.0.changed.wait_timeout(state, IDLE);
            let (locked, waited) = waited.unwrap_or_else(PoisonError::into_inner);
            state = locked;
            state.idle -= 1;
            if waited.timed_out() && state.waiting.is_empty() {
                break;
            }
        }
        state.alive -= 1;
    }

    /// Ends the threads. What nobody has begun to read is not read. A thread that a disk still holds at the deadline is
    /// left to itself. Returns whether all have ended.
    #[must_use]
    pub(crate) fn end(&self, deadline: Instant) -> bool {
        let (waiting, threads) = {
            let mut state = self.lock();
            state.ended = true;
            (
                std::mem::take(&mut state.waiting),
                std::mem::take(&mut state.threads),
            )
        };
        drop(waiting);
        self.0.changed.notify_all();
        join_all(threads, deadline)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Readers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Readers")
            .field("alive", &self.lock().alive)
            .finish_non_exhaustive()
    }
}
