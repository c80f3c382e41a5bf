//! Requests that the host takes itself, on its own threads or from its own event loop.

use std::cell::RefCell;
use std::fmt;
use std::future::pending;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use super::line::{Call, Line};
use crate::error::{Error, Result};
use crate::exchange::Exchange;
use crate::home::{TurnEnd, at_turn_end};
use crate::lent::LentRuntime;

/// Requests waiting to be taken. Clones are the same queue; any thread may use it.
///
/// Requests can be taken until a kill; what nobody has taken by then is answered with 503.
///
/// ```
/// use httpdown::{Listener, Server};
///
/// # fn main() -> httpdown::Result<()> {
/// let server = Server::builder().queue(Listener::bind("127.0.0.1:0")?)?;
/// let queue = server.queue().expect("it was started with one").clone();
/// let worker = std::thread::spawn(move || {
///     // Until the server stops, and all have been taken.
///     while let Ok(requests) = queue.take(16, None) {
///         for exchange in requests {
///             let _ = exchange.reply(http::Response::new("taken\n".into()));
///         }
///     }
/// });
/// server.stop_blocking()?;
/// worker.join().unwrap();
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RequestQueue {
    line: Arc<Line>,
    /// If requests come by way of it.
    lent: Option<Arc<LentRuntime>>,
}

/// How many unfinished requests a thread has taken.
type Held = Arc<AtomicUsize>;

thread_local! {
    /// By queue. An allocation that somebody still knows, even if only weakly, is not used again for another queue.
    static HELD: RefCell<Vec<(Weak<Line>, Held)>> = const { RefCell::new(Vec::new()) };
}

/// Says, as long as it lives, that a thread has taken a request and not finished it.
#[derive(Debug)]
pub(crate) struct Taken(Held);

impl RequestQueue {
    pub(crate) fn new(lent: Option<Arc<LentRuntime>>) -> Self {
        let line = Arc::new(Line::new(0));
        Self { line, lent }
    }

    pub(crate) fn push(&self, exchange: Exchange) {
        if self.line.push(exchange) {
            at_turn_end(&self.line);
        }
    }

    /// Takes up to `limit` requests, and waits until `deadline` for the first (`None`: as long as the server lives).
    ///
    /// The calling thread counts as their holder until each is finished: a blocking stop or wait on it would wait for
    /// itself, and fails.
    ///
    /// # Errors
    /// [`Error::Stopped`] when no request can come any more, [`Error::WouldBlock`] when the deadline has passed,
    /// [`Error::WouldDeadlock`] on the only thread of the [runtime](crate::Builder::runtime) that is to bring the
    /// requests: wait on another (`spawn_blocking`), or for the [descriptor](RequestQueue::descriptor). That takes a
    /// second to be found out. [`Error::InvalidArgument`] if `limit` is 0.
    pub fn take(&self, limit: usize, deadline: Option<Instant>) -> Result<Vec<Exchange>> {
        if limit == 0 {
            return Err(Error::InvalidArgument("room for no request".into()));
        }
        let mut taken = self.take_by(limit, self.deadline_to_look(deadline));
        if let (Err(Error::WouldBlock), Some(lent)) = (&taken, &self.lent) {
            lent.check_gets_on(pending::<()>(), deadline)?;
            taken = self.take_by(limit, deadline);
        }
        let mut exchanges = taken?;
        let held = self.held_here();
        held.fetch_add(exchanges.len(), Ordering::Relaxed);
        for exchange in &mut exchanges {
            exchange.taken_by(Taken(Arc::clone(&held)));
        }
        Ok(exchanges)
    }

    /// On a runtime of the host's that is to bring them, it is first looked whether there are any.
    fn deadline_to_look(&self, deadline: Option<Instant>) -> Option<Instant> {
        match self.lent {
            Some(_) => Some(Instant::now()),
            None => deadline,
        }
    }

    fn take_by(&self, limit: usize, deadline: Option<Instant>) -> Result<Vec<Exchange>> {
        let (exchanges, next) = self.line.take(deadline, |requests| {
            requests.drain(..limit.min(requests.len())).collect()
        })?;
        wake(next);
        Ok(exchanges)
    }

    /// A descriptor for an event loop: readable while requests wait, and after the end. It belongs to the queue.
    ///
    /// # Errors
    /// If no descriptor can be had.
    pub fn descriptor(&self) -> Result<BorrowedFd<'_>> {
        let descriptor = self.line.descriptor();
        descriptor.map_err(|error| Error::io("making the queue's descriptor", error))
    }

    /// Whether the calling thread has taken a request that is not finished.
    pub(crate) fn is_held_here(&self) -> bool {
        let held = HELD.try_with(|held| self.find(&held.borrow()));
        matches!(held, Ok(Some(held)) if held.load(Ordering::Relaxed) > 0)
    }

    /// The calling thread's count.
    fn held_here(&self) -> Held {
        let find_or_add = |held: &RefCell<Vec<_>>| {
            let mut held = held.borrow_mut();
            self.find(&held).unwrap_or_else(|| {
                held.retain(|(line, _): &(Weak<Line>, _)| line.strong_count() > 0);
                let count = Held::default();
                held.push((Arc::downgrade(&self.line), Arc::clone(&count)));
                count
            })
        };
        // A thread that is ending, and has no locals any more, waits for no server either.
        HELD.try_with(find_or_add).unwrap_or_default()
    }

    fn find(&self, held: &[(Weak<Line>, Held)]) -> Option<Held> {
        let is_this = |line: &Weak<Line>| line.as_ptr() == Arc::as_ptr(&self.line);
        let (_, count) = held.iter().find(|(line, _)| is_this(line))?;
        Some(Arc::clone(count))
    }

    /// No more requests will come; returns those that nobody has taken.
    pub(crate) fn end(&self) -> impl Iterator<Item = Exchange> + use<> {
        self.line.end().into_iter()
    }
}

fn wake(call: Call) {
    // A line without room asks for no thread to be started.
    if let Call::Wake(thread) = call {
        thread.wake();
    }
}

impl TurnEnd for Line {
    fn turn_ends(self: Arc<Self>) {
        wake(self.call());
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for RequestQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestQueue")
            .field("waiting", &self.line.len())
            .finish_non_exhaustive()
    }
}
