//! Who is there, and whose account has been settled: each in one of the two, whenever one looks.
//!
//! It knows nothing of connections, so that all its interleavings can be gone through (`tests/models.rs`).

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use crate::sync::{Mutex, MutexGuard, PoisonError};

/// Those that anything still holds, by number.
#[derive(Debug)]
pub(crate) struct Register<T: ?Sized>(Mutex<HashMap<u64, Weak<T>>>);

impl<T: ?Sized> Default for Register<T> {
    fn default() -> Self {
        Self(Mutex::new(HashMap::new()))
    }
}

impl<T: ?Sized> Register<T> {
    pub(crate) fn insert(&self, number: u64, one: &Arc<T>) {
        self.lock().insert(number, Arc::downgrade(one));
    }

    /// Takes out who is being dropped, and does that if it was the last.
    pub(crate) fn remove(&self, number: u64, when_empty: impl FnOnce()) {
        let mut all = self.lock();
        all.remove(&number);
        if all.is_empty() {
            when_empty();
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    pub(crate) fn all(&self) -> Vec<Arc<T>> {
        self.lock().values().filter_map(Weak::upgrade).collect()
    }

    /// Adds an account to the sum of those that are settled, and marks it as one: nobody looks meanwhile.
    pub(crate) fn settle<R>(&self, settle: impl FnOnce() -> R) -> R {
        let _all = self.lock();
        settle()
    }

    /// Those that are not settled, when all others are in the sum: what `take_sum` does with it comes at the same time.
    pub(crate) fn unsettled(
        &self,
        is_settled: impl Fn(&T) -> bool,
        take_sum: impl FnOnce(),
    ) -> Vec<Arc<T>> {
        let all = self.lock();
        let held = all.values().filter_map(Weak::upgrade);
        let (settled, unsettled): (Vec<_>, _) = held.partition(|one| is_settled(one));
        take_sum();
        drop(all);
        // Who is dropped here takes itself out, for which it needs the lock.
        drop(settled);
        unsettled
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Weak<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
