//! Code of the host's, called so that its panics end there.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};

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

/// Has a task of the host's wait for what tells many: its waker cannot keep the others from being told.
pub(crate) async fn for_tasks<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|cx| {
        let waker = Waker::from(Arc::new(Contained(cx.waker().clone())));
        future.as_mut().poll(&mut Context::from_waker(&waker))
    })
    .await
}

/// A waker of the host's, whose panic would keep what it is told of from those who are told next.
struct Contained(Waker);

impl Wake for Contained {
    fn wake(self: Arc<Self>) {
        contain(|| self.0.wake_by_ref());
    }
}
