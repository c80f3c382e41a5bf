//! The queue of requests that the host takes itself, on its own threads or from its own event loop.

use std::fmt;
use std::future::pending;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use crate::error::{Error, Result};
use crate::request::{Exchange, Inbox, Notice, Ready, Stream, Taken, Tell, Token};
use crate::threads::LentRuntime;
use crate::threads::turns::{TurnEnd, at_turn_end};

use super::work_queue::{Call, WorkQueue};

/// A queue of requests that wait to be taken. Clones refer to the same queue; any thread may use it.
///
/// Requests can be taken until a kill. Requests that nobody has taken by then are answered with 503.
///
/// ```
/// use httpdown::{Listener, Server};
///
/// # fn main() -> httpdown::Result<()> {
/// let (server, queue) = Server::builder().queue(Listener::bind("127.0.0.1:0")?)?;
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
    waiting: Arc<WorkQueue>,
    /// The host's runtime, if it drives the connections.
    lent: Option<Arc<LentRuntime>>,
}

/// What [`RequestQueue::take_all`] takes.
#[derive(Debug)]
pub enum QueueItem {
    /// A request that has come.
    Request(Exchange),
    /// Something has happened to a request that was taken before: [`RequestQueue::notify`].
    Ready {
        /// What stands for the request.
        token: u128,
        /// What has happened.
        ready: Ready,
    },
    /// Something has happened to a stream: [`RequestQueue::notify_stream`].
    StreamReady {
        /// What stands for the stream.
        token: u128,
        /// What has happened.
        ready: Ready,
    },
}

impl RequestQueue {
    pub(crate) fn new(lent: Option<Arc<LentRuntime>>) -> Self {
        let waiting = Arc::new(WorkQueue::new(0));
        Self { waiting, lent }
    }

    pub(crate) fn push(&self, exchange: Exchange) {
        if self.waiting.push(exchange) {
            at_turn_end(&self.waiting);
        }
    }

    /// Takes up to `limit` requests, and waits until `deadline` for the first (`None`: as long as the server lives).
    ///
    /// The calling thread counts as the holder of these requests until each of them is finished. A blocking stop or
    /// wait on this thread would wait for itself, and fails.
    ///
    /// # Errors
    /// [`Error::Stopped`] when no request can come any more, [`Error::WouldBlock`] when the deadline has passed,
    /// [`Error::WouldDeadlock`] on the only thread of the [runtime](crate::Builder::runtime) that brings the requests;
    /// this takes one second to find out. Then wait on another thread (`spawn_blocking`), or wait for the
    /// [descriptor](RequestQueue::descriptor). [`Error::InvalidArgument`] if `limit` is 0.
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
        hold_here(&mut exchanges);
        Ok(exchanges)
    }

    /// Like [`RequestQueue::take`], and also takes what has happened to requests that were taken before, as was asked
    /// for by [`RequestQueue::notify`] and [`RequestQueue::notify_stream`]. So one thread, or one event loop, serves any number of slow clients.
    ///
    /// # Errors
    /// Those of [`RequestQueue::take`]. [`Error::Stopped`] comes only when also nothing that was asked for can happen
    /// any more.
    pub fn take_all(&self, limit: usize, deadline: Option<Instant>) -> Result<Vec<QueueItem>> {
        if limit == 0 {
            return Err(Error::InvalidArgument("room for no request".into()));
        }
        let mut taken = self.take_all_by(limit, self.deadline_to_look(deadline));
        if let (Err(Error::WouldBlock), Some(lent)) = (&taken, &self.lent) {
            lent.check_gets_on(pending::<()>(), deadline)?;
            taken = self.take_all_by(limit, deadline);
        }
        taken
    }

    /// Lets an item with this token come out of the queue once, as soon as one of these things has happened to the
    /// request; see [`Exchange::ready`]. This replaces what was asked for before and has not been taken. No item comes
    /// after the request has ended. Never blocks.
    pub fn notify(&self, exchange: &mut Exchange, wanted: Ready, token: u128) {
        let inbox = Arc::clone(&self.waiting);
        exchange.tell(wanted, Tell::Queue(inbox, Token::Request(token)));
    }

    /// Like [`RequestQueue::notify`], for a connection that was taken over; see [`Stream::ready`]. No item comes after
    /// the stream was dropped.
    pub fn notify_stream(&self, stream: &Stream, wanted: Ready, token: u128) {
        let inbox = Arc::clone(&self.waiting);
        stream.tell(wanted, Tell::Queue(inbox, Token::Stream(token)));
    }

    /// On the host's runtime that brings the requests, the first step only looks whether there are any.
    fn deadline_to_look(&self, deadline: Option<Instant>) -> Option<Instant> {
        match self.lent {
            Some(_) => Some(Instant::now()),
            None => deadline,
        }
    }

    fn take_by(&self, limit: usize, deadline: Option<Instant>) -> Result<Vec<Exchange>> {
        let (exchanges, next) = self.waiting.take(deadline, |requests| {
            requests.drain(..limit.min(requests.len())).collect()
        })?;
        wake(next);
        Ok(exchanges)
    }

    fn take_all_by(&self, limit: usize, deadline: Option<Instant>) -> Result<Vec<QueueItem>> {
        loop {
            let (notices, mut exchanges, next) =
                self.waiting.take_all(limit, deadline, |requests, limit| {
                    let count = limit.min(requests.len());
                    requests.drain(..count).collect::<Vec<_>>()
                })?;
            wake(next);
            hold_here(&mut exchanges);
            let told = notices.iter().filter_map(|notice| {
                let (token, ready) = notice.take()?;
                self.waiting.expects_notices(-1);
                Some(match token {
                    Token::Request(token) => QueueItem::Ready { token, ready },
                    Token::Stream(token) => QueueItem::StreamReady { token, ready },
                })
            });
            let mut items: Vec<_> = told.collect();
            items.extend(exchanges.into_iter().map(QueueItem::Request));
            // The requests of which something was to be told may all have ended.
            if !items.is_empty() {
                return Ok(items);
            }
        }
    }

    /// A descriptor for an event loop, readable while requests wait, and after the end. The descriptor belongs to the
    /// queue.
    ///
    /// # Errors
    /// If the system has no more descriptors.
    pub fn descriptor(&self) -> Result<BorrowedFd<'_>> {
        let descriptor = self.waiting.descriptor();
        descriptor.map_err(|error| Error::io("making the queue's descriptor", error))
    }

    /// Call this when no more requests will come. Returns the requests that nobody has taken.
    pub(crate) fn end(&self) -> impl Iterator<Item = Exchange> + use<> {
        self.waiting.end().into_iter()
    }
}

/// The calling thread holds these requests.
fn hold_here(exchanges: &mut [Exchange]) {
    if let Some(first) = exchanges.first() {
        let taken = Taken::here(first.server_id());
        for exchange in exchanges {
            exchange.taken_by(taken.clone());
        }
    }
}

fn wake(call: Call) {
    // A queue without room for threads never asks to start one.
    if let Call::Wake(thread) = call {
        thread.wake();
    }
}

impl Inbox for WorkQueue {
    fn tell(self: Arc<Self>, notice: Arc<Notice>) {
        if self.add_notice(notice) {
            at_turn_end(&self);
        }
    }

    fn expects(&self, more: isize) {
        self.expects_notices(more);
    }
}

impl TurnEnd for WorkQueue {
    fn turn_ends(self: Arc<Self>) {
        wake(self.call());
    }
}

impl fmt::Debug for RequestQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestQueue")
            .field("waiting", &self.waiting.len())
            .finish_non_exhaustive()
    }
}
