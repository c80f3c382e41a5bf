//! The server's time: either the machine's time, or a test's.
//!
//! The timers of a stop and the minute between two counts of connections run on the server's clock. A test gives the
//! server a [`MockClock`] and moves it by hand, so that a stop timeout of a minute is tested in a millisecond.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// A future that ends after a duration.
pub type Sleep = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The source of the server's time.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The time since some fixed moment. It never goes back.
    fn now(&self) -> Duration;

    /// Makes a timer. The timer is set when this method is called, not when the future is first polled. It is polled
    /// only on a thread of the server that has a tokio runtime.
    fn sleep(&self, duration: Duration) -> Sleep;
}

/// The machine's monotonic clock.
#[derive(Debug)]
pub struct SystemClock(Instant);

impl Default for SystemClock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// A clock that stands still until it is [advanced](MockClock::advance). Clones show the same time.
///
/// Any thread may call all methods.
///
/// ```
/// use std::time::Duration;
///
/// use httpdown::{Dispatch, Error, Exchange, Listener, MockClock, Server};
///
/// # fn main() -> httpdown::Result<()> {
/// # let handler = |exchange: Exchange| drop(exchange);
/// # let listener = Listener::bind("127.0.0.1:0")?;
/// let clock = MockClock::new();
/// let server = Server::builder()
///     .clock(clock.clone())
///     .lame_duck(Duration::from_secs(60))
///     .handle(listener, Dispatch::default(), handler)?;
/// server.stop_begin();
/// clock.wait_for_timers(1, Duration::from_secs(10))?; // the lame duck's
/// clock.advance(Duration::from_secs(60));
/// assert_eq!(server.wait_blocking(None)?.stop_duration.as_secs(), 60);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct MockClock(Arc<Mock>);

#[derive(Debug, Default)]
struct Mock {
    state: Mutex<MockState>,
    timers_changed: Condvar,
}

#[derive(Debug, Default)]
struct MockState {
    now: Duration,
    next_id: u64,
    timers: Vec<MockTimer>,
}

#[derive(Debug)]
struct MockTimer {
    id: u64,
    due: Duration,
    waker: Option<Waker>,
}

impl MockClock {
    /// Makes a clock whose time is zero.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Moves the clock's time forward and fires every timer that is due by then. Does not wait for the effects of these
    /// timers.
    pub fn advance(&self, by: Duration) {
        let mut due = Vec::new();
        {
            let mut state = self.0.lock();
            state.now = state.now.saturating_add(by);
            let now = state.now;
            state.timers.retain_mut(|timer| {
                let fires = timer.due <= now;
                if fires {
                    due.extend(timer.waker.take());
                }
                !fires
            });
        }
        due.into_iter().for_each(Waker::wake);
    }

    /// Blocks until at least `count` timers are set. So a test knows that the server has come to the point where it
    /// waits. `timeout` is in real time.
    ///
    /// A server with [`Stats`](crate::Stats) always has one timer set, for its count of connections every minute.
    ///
    /// # Errors
    /// [`Error::WouldBlock`] if the timers were not set within `timeout`.
    pub fn wait_for_timers(&self, count: usize, timeout: Duration) -> Result<()> {
        let state = self.0.lock();
        let (state, _) = self
            .0
            .timers_changed
            .wait_timeout_while(state, timeout, |state| state.timers.len() < count)
            .unwrap_or_else(PoisonError::into_inner);
        if state.timers.len() < count {
            return Err(Error::WouldBlock);
        }
        Ok(())
    }
}

impl Mock {
    fn lock(&self) -> std::sync::MutexGuard<'_, MockState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock for MockClock {
    fn now(&self) -> Duration {
        self.0.lock().now
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        let mut state = self.0.lock();
        let id = state.next_id;
        state.next_id += 1;
        let due = state.now.saturating_add(duration);
        if due > state.now {
            state.timers.push(MockTimer {
                id,
                due,
                waker: None,
            });
            self.0.timers_changed.notify_all();
        }
        drop(state);
        Box::pin(MockSleep {
            mock: Arc::clone(&self.0),
            id,
        })
    }
}

struct MockSleep {
    mock: Arc<Mock>,
    id: u64,
}

impl Future for MockSleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.mock.lock();
        match state.timers.iter_mut().find(|timer| timer.id == self.id) {
            Some(timer) => {
                timer.waker = Some(cx.waker().clone());
                Poll::Pending
            }
            None => Poll::Ready(()),
        }
    }
}

impl Drop for MockSleep {
    fn drop(&mut self) {
        let mut state = self.mock.lock();
        state.timers.retain(|timer| timer.id != self.id);
    }
}

/// The latest moment of some event, on the server's clock. Any thread may note the event.
#[derive(Debug, Default)]
pub(crate) struct Latest(AtomicU64);

impl Latest {
    pub(crate) fn note(&self, now: Duration) {
        let nanos = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        self.0.fetch_max(nanos, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}
