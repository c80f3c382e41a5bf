//! The three ways by which requests reach a handler. All of them give an [`Exchange`].

mod pool;
mod queue;
mod work_queue;

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use http::Response;
use http::request::Parts;

pub use queue::{QueueItem, RequestQueue};

use crate::conn::{Body, Inflight, Respond};
use crate::contain::contain;
use crate::request::{Exchange, ReplyBody, ReplySlot};

use crate::sys::SignalMask;
use pool::Pool;

/// Answers requests. It is called from several threads at once. A closure that takes an [`Exchange`] is a handler.
///
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering};
///
/// use httpdown::{Dispatch, Exchange, Handler, Listener, Server};
///
/// #[derive(Default)]
/// struct Counter(AtomicU64);
///
/// impl Handler for Counter {
///     fn handle(&self, exchange: Exchange) {
///         let count = self.0.fetch_add(1, Ordering::Relaxed) + 1;
///         let answer = http::Response::new(format!("request {count}\n").into());
///         // If the client has left, nobody wants the answer.
///         let _ = exchange.reply(answer);
///     }
/// }
///
/// # fn main() -> httpdown::Result<()> {
/// let listener = Listener::bind("127.0.0.1:0")?;
/// let server = Server::builder().handle(listener, Dispatch::default(), Counter::default())?;
/// server.stop_blocking()?;
/// # Ok(())
/// # }
/// ```
pub trait Handler: Send + Sync + 'static {
    /// Answers one request, either now, or later from any thread that the exchange is moved to.
    ///
    /// If the handler panics, or drops the exchange unanswered, the client gets a 500.
    fn handle(&self, exchange: Exchange);
}

impl<F: Fn(Exchange) + Send + Sync + 'static> Handler for F {
    fn handle(&self, exchange: Exchange) {
        self(exchange);
    }
}

/// On which threads a [`Handler`] is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Dispatch {
    /// On a pool of at most this many threads, which are started when they are needed. The handler may block.
    Pool(NonZeroUsize),
    /// On the thread that drives the connection. This is the fastest way. But the handler must not block, because the
    /// other connections of that thread wait for it. A short body ([`body_buffer`](crate::Builder::body_buffer)) is
    /// there when the handler is called. Of another one, the handler can read the part that was received before the call:
    /// at least 64 KiB, if that much has come. To read the rest, move the [`Exchange`] to another thread, or ask to be
    /// told ([`Exchange::notify`]).
    Inline,
}

impl Default for Dispatch {
    /// A pool of up to 512 threads. An idle thread costs some kilobytes and ends after 10 seconds. So the limit
    /// protects the machine, and needs no tuning. If all threads are busy, requests wait.
    fn default() -> Self {
        Self::Pool(const { NonZeroUsize::new(512).unwrap() })
    }
}

/// The code that answers the requests, from the view of the control thread.
pub(crate) enum Backend {
    /// The host's service, or a handler in place: there is nothing to end.
    Direct,
    Pool(Arc<Pool>),
    Queue(RequestQueue),
}

impl Backend {
    /// Whether requests leave the thread that drives their connection.
    pub(crate) fn hands_over(&self) -> bool {
        !matches!(self, Self::Direct)
    }

    /// For a kill: answers the requests that nobody has begun to work on with 503.
    pub(crate) fn refuse_queued(&self) {
        match self {
            Self::Direct => {}
            Self::Pool(pool) => pool.refuse_queued().for_each(Exchange::refuse),
            Self::Queue(queue) => queue.end().for_each(Exchange::refuse),
        }
    }

    /// Call this when no more requests will come. Waits for the threads. Threads that a handler still holds at the
    /// deadline are left behind. Returns whether all threads have ended.
    #[must_use]
    pub(crate) fn end_threads(&self, deadline: Instant) -> bool {
        self.refuse_queued();
        match self {
            Self::Pool(pool) => pool.end_threads(deadline),
            Self::Direct | Self::Queue(_) => true,
        }
    }
}

/// Passes each request to the code that answers it.
#[derive(Clone)]
pub(crate) enum Dispatcher {
    Inline(Arc<dyn Handler>),
    Pool(Arc<Pool>),
    Queue(RequestQueue),
}

impl Dispatcher {
    pub(crate) fn new(
        dispatch: Dispatch,
        handler: impl Handler,
        server: u64,
        mask: SignalMask,
    ) -> Self {
        let handler: Arc<dyn Handler> = Arc::new(handler);
        match dispatch {
            Dispatch::Inline => Self::Inline(handler),
            Dispatch::Pool(threads) => {
                Self::Pool(Arc::new(Pool::new(handler, threads, server, mask)))
            }
        }
    }

    pub(crate) fn backend(&self) -> Backend {
        match self {
            Self::Inline(_) => Backend::Direct,
            Self::Pool(pool) => Backend::Pool(Arc::clone(pool)),
            Self::Queue(queue) => Backend::Queue(queue.clone()),
        }
    }
}

impl Dispatcher {
    /// What of its body must be there before the handler gets the request.
    fn waits_for(&self, exchange: &Exchange) -> Option<Part> {
        if !exchange.may_have_come() {
            None
        } else if exchange.is_short() {
            // A handler that waits for a body keeps a thread from others, and one in place cannot wait.
            Some(Part::Whole)
        } else {
            // hyper reads next what was received.
            matches!(self, Self::Inline(_)).then_some(Part::Received)
        }
    }

    #[inline]
    fn hand_over(&self, exchange: Exchange, slot: &ReplySlot) {
        slot.inflight().is_handed_over(exchange.head());
        match self {
            Self::Inline(handler) => call(&**handler, exchange, slot),
            Self::Pool(pool) => pool.push(exchange),
            Self::Queue(queue) => queue.push(exchange),
        }
    }
}

impl Respond for Dispatcher {
    type Body = ReplyBody;
    type Error = Infallible;
    type Future = Reply;
    type Outcome = Arc<ReplySlot>;

    fn begin(&self, inflight: Inflight) -> Arc<ReplySlot> {
        Arc::new(ReplySlot::new(inflight))
    }

    fn respond(&self, head: Parts, body: Body, slot: &Arc<ReplySlot>) -> Reply {
        let exchange = Exchange::new(head, body, Arc::clone(slot));
        let mut later = None;
        if let Some(part) = self.waits_for(&exchange) {
            later = Some(Call {
                to: self.clone(),
                part,
                exchange: Some(exchange),
            });
        } else {
            self.hand_over(exchange, slot);
        }
        Reply::new(slot, later)
    }
}

/// The answer that the connection waits for.
#[derive(Debug)]
pub(crate) struct Reply {
    slot: Arc<ReplySlot>,
    /// The handler that is still to be called.
    call: Option<Call>,
}

impl Reply {
    pub(crate) fn new(slot: &Arc<ReplySlot>, call: Option<Call>) -> Self {
        let slot = Arc::clone(slot);
        Self { slot, call }
    }
}

impl Future for Reply {
    type Output = Result<Response<ReplyBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(call) = &mut self.call {
            ready!(call.poll_ready(cx));
            if let Some(call) = self.call.take() {
                call.make(&self.slot);
            }
        }
        self.slot.poll_answer(cx).map(Ok)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Whole,
    Received,
}

/// A request that waits for its body, or for a part of it, before it is handed over.
pub(crate) struct Call {
    to: Dispatcher,
    part: Part,
    /// `None` after it is handed over.
    exchange: Option<Exchange>,
}

impl Call {
    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match (&mut self.exchange, self.part) {
            (Some(exchange), Part::Whole) => exchange.poll_whole(cx),
            (Some(exchange), Part::Received) => exchange.poll_come(cx),
            (None, _) => Poll::Ready(()),
        }
    }

    pub(crate) fn make(mut self, slot: &ReplySlot) {
        let Some(exchange) = self.exchange.take() else {
            return;
        };
        if self.part == Part::Whole && exchange.has_no_body() {
            // No handler has asked for it yet. Dropped, it is answered like one whose handler could not read its body.
            drop(exchange);
        } else {
            self.to.hand_over(exchange, slot);
        }
    }
}

/// For a connection that has ended before the handler was called.
impl Drop for Call {
    fn drop(&mut self) {
        if let Some(exchange) = self.exchange.take() {
            exchange.withdraw();
        }
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Call").field(&self.exchange).finish()
    }
}

/// Calls the handler. If the handler panics, its exchange is dropped, and the client gets a 500. The caller keeps the
/// request's slot during this call, so the request counts until the handler returns, even if it was answered before.
fn call(handler: &dyn Handler, exchange: Exchange, slot: &ReplySlot) {
    if let Some(recording) = slot.inflight().recording() {
        recording.is_called();
    }
    let panicked = contain(|| handler.handle(exchange)).is_none();
    if panicked {
        slot.tell("a handler panicked");
    }
}
