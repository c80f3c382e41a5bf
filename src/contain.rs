//! Code of the host's, called so that its panics end there.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs code that is, or may call, the host's. `None` if it panics.
#[inline]
pub(crate) fn contain<T>(code: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(code)) {
        Ok(value) => Some(value),
        Err(payload) => {
            discard(payload);
            None
        }
    }
}

/// What a panic carries is the host's, too: to drop it may be the next panic.
#[cold]
fn discard(payload: Box<dyn Any + Send>) {
    if let Err(next) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        // And so on: this one is left where it is.
        let _ = Box::into_raw(next);
    }
}
