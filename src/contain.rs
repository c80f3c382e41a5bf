//! Calls the host's code so that its panics do not spread.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};

/// Runs code that is the host's code, or may call it. `None` if the code panics.
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

/// The payload of a panic is the host's, too, so dropping it may cause the next panic.
#[cold]
fn discard(payload: Box<dyn Any + Send>) {
    if let Err(next) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        // Dropping this payload might panic again, and so on. So this payload is leaked.
        let _ = Box::into_raw(next);
    }
}

/// Lets the host's task wait for an event that wakes many waiters. A panic in the task's waker cannot keep the others
/// from being woken.
pub(crate) async fn for_tasks<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|cx| {
        let waker = Waker::from(Arc::new(Contained(cx.waker().clone())));
        future.as_mut().poll(&mut Context::from_waker(&waker))
    })
    .await
}

/// The host's waker. Without this wrapper, its panic would keep the next waiters from being woken.
struct Contained(Waker);

impl Wake for Contained {
    fn wake(self: Arc<Self>) {
        contain(|| self.0.wake_by_ref());
    }
}
