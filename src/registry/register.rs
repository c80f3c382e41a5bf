//! Which members exist, and which of their accounts have been settled. At every moment, each account is either with its
//! member or in the sum.
//!
//! This module knows nothing of connections, so that a model checker can try all its interleavings (`tests/models.rs`).

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use crate::sync::{Mutex, MutexGuard, PoisonError};

/// The members that anything still holds, by number.
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

    /// Takes out a member that is being dropped. Calls `when_empty` if it was the last.
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

    /// Calls `settle`, which adds an account to the sum of the settled accounts, and marks it as settled. Nobody looks
    /// meanwhile.
    pub(crate) fn settle<R>(&self, settle: impl FnOnce() -> R) -> R {
        let _all = self.lock();
        settle()
    }

    /// Returns the members that are not settled, at a moment when all others are in the sum. `take_sum` reads the sum
    /// at that moment.
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
        // A member that is dropped here takes itself out, and needs the lock for that.
        drop(settled);
        unsettled
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Weak<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
