//! How a server has ended: settled once, and then told to all who wait.

use std::fmt;
use std::future::poll_fn;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Instant;

use crate::contain::contain;
use crate::error::Result;

/// Threads that wait are told first, and then tasks, one by one: a task's waker is the host's code, and may panic or
/// block.
#[derive(Default)]
pub(crate) struct Outcome {
    state: Mutex<State>,
    settled: Condvar,
}

#[derive(Default)]
struct State {
    result: Option<Result<()>>,
    told: bool,
    next: u64,
    waiting: Vec<(u64, Waker)>,
}

impl Outcome {
    /// The outcome, even before those who wait are told.
    pub(crate) fn get(&self) -> Option<Result<()>> {
        self.lock().result.clone()
    }

    /// Sets the outcome. Only the first call counts.
    pub(crate) fn settle(&self, result: Result<()>) {
        self.lock().result.get_or_insert(result);
    }

    /// Tells the outcome to those who wait.
    pub(crate) fn tell(&self) {
        let mut state = self.lock();
        state.told = true;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        self.settled.notify_all();
        for (_, waker) in waiting {
            contain(|| waker.wake());
        }
    }

    pub(crate) async fn wait(&self) -> Result<()> {
        let mut place = Place {
            outcome: self,
            number: None,
        };
        poll_fn(|cx| {
            // The waker is cloned and dropped outside the lock: that is the host's code, and the thread that settles
            // the outcome needs the lock.
            let waker = cx.waker().clone();
            let mut state = self.lock();
            if let Some(result) = state.told() {
                drop(state);
                return Poll::Ready(result);
            }
            let number = *place.number.get_or_insert_with(|| {
                state.next += 1;
                state.next
            });
            let mine = state.waiting.iter_mut().find(|(other, _)| *other == number);
            let old = if let Some((_, old)) = mine {
                Some(std::mem::replace(old, waker))
            } else {
                state.waiting.push((number, waker));
                None
            };
            drop(state);
            drop(old);
            Poll::Pending
        })
        .await
    }

    /// Blocks until the outcome is told. Returns `None` if the deadline passes before.
    pub(crate) fn wait_until(&self, deadline: Option<Instant>) -> Option<Result<()>> {
        let mut state = self.lock();
        loop {
            if let Some(result) = state.told() {
                return Some(result);
            }
            state = match deadline {
                None => self
                    .settled
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return None;
                    }
                    let waited = self.settled.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn told(&self) -> Option<Result<()>> {
        self.result.clone().filter(|_| self.told)
    }
}

/// The place of a task that waits. When it is dropped, the task waits no more.
struct Place<'a> {
    outcome: &'a Outcome,
    number: Option<u64>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            let mut state = self.outcome.lock();
            let left = state.waiting.iter().position(|(other, _)| *other == number);
            let waker = left.map(|at| state.waiting.swap_remove(at));
            drop(state);
            drop(waker);
        }
    }
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Outcome").field(&self.get()).finish()
    }
}
