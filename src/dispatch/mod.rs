//! How requests reach a handler: three ways, one [`Exchange`].

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

use http::{Request, Response};
use hyper::body::Incoming;

pub use queue::RequestQueue;

use crate::conn::{Inflight, Respond};
use crate::contain::contain;
use crate::request::{Exchange, ReplyBody, ReplySlot};

use crate::sys::SignalMask;
use pool::Pool;

/// Answers requests. Called from several threads at once. A closure that takes an [`Exchange`] is one.
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
    /// Answers one request, now or, from whatever thread the exchange is moved to, later.
    ///
    /// If it panics, or drops the exchange unanswered, the client gets a 500.
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
    /// On a pool of at most this many threads, started as they are needed: the handler may block.
    Pool(NonZeroUsize),
    /// On the thread that drives the connection: the fastest, but the handler must not block, because the other
    /// connections of that thread wait for it. Of the request's body it can read what has been received when it is called:
    /// at least 64 KiB, if so much has come. The rest can be read where the [`Exchange`] is moved to.
    Inline,
}

impl Default for Dispatch {
    /// A pool of up to 512 threads. An idle one costs some kilobytes and ends after 10 seconds, so the limit is there
    /// to protect the machine, not to be tuned; requests beyond it wait.
    fn default() -> Self {
        Self::Pool(const { NonZeroUsize::new(512).unwrap() })
    }
}

/// What stands behind the connections, as the control thread sees it.
pub(crate) enum Backend {
    /// A service of the host's, or a handler in place: nothing to end.
    Direct,
    Pool(Arc<Pool>),
    Queue(RequestQueue),
}

impl Backend {
    /// Whether requests leave the thread that drives their connection.
    pub(crate) fn hands_over(&self) -> bool {
        !matches!(self, Self::Direct)
    }

    /// A kill: what nobody has begun to work on is answered with 503.
    pub(crate) fn refuse_queued(&self) {
        match self {
            Self::Direct => {}
            Self::Pool(pool) => pool.refuse_queued().for_each(Exchange::refuse),
            Self::Queue(queue) => queue.end().for_each(Exchange::refuse),
        }
    }

    /// No more requests will come. Waits for the threads; those that a handler still holds at the deadline are left to
    /// themselves. Says whether all have ended.
    #[must_use]
    pub(crate) fn end_threads(&self, deadline: Instant) -> bool {
        self.refuse_queued();
        match self {
            Self::Pool(pool) => pool.end_threads(deadline),
            Self::Direct | Self::Queue(_) => true,
        }
    }
}

/// Gives each request to wherever it is answered.
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

impl Respond for Dispatcher {
    type Body = ReplyBody;
    type Error = Infallible;
    type Future = Reply;
    type Outcome = Arc<ReplySlot>;

    fn begin(&self, inflight: Inflight) -> Arc<ReplySlot> {
        Arc::new(ReplySlot::new(inflight))
    }

    fn respond(&self, request: Request<Incoming>, slot: &Arc<ReplySlot>) -> Reply {
        let exchange = Exchange::new(request, Arc::clone(slot));
        let mut later = None;
        match self {
            // Nobody can wait there for a body: it is called with what has come of it, which hyper reads next.
            Self::Inline(handler) if exchange.may_have_come() => {
                later = Some(Call {
                    handler: Arc::clone(handler),
                    exchange: Some(exchange),
                });
            }
            Self::Inline(handler) => call(&**handler, exchange, slot),
            Self::Pool(pool) => pool.push(exchange),
            Self::Queue(queue) => queue.push(exchange),
        }
        Reply::new(slot, later)
    }
}

/// The answer, as the connection waits for it.
#[derive(Debug)]
pub(crate) struct Reply {
    slot: Arc<ReplySlot>,
    /// Who is still to be called.
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

/// A handler that is to be called in place, when what has come of the request's body is there.
pub(crate) struct Call {
    handler: Arc<dyn Handler>,
    /// `None` once it is called.
    exchange: Option<Exchange>,
}

impl Call {
    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.exchange {
            Some(exchange) => exchange.poll_come(cx),
            None => Poll::Ready(()),
        }
    }

    pub(crate) fn make(mut self, slot: &ReplySlot) {
        if let Some(exchange) = self.exchange.take() {
            call(&*self.handler, exchange, slot);
        }
    }
}

/// The connection has ended before.
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

/// Calls the handler; if it panics, its exchange is dropped on the way, and the client gets a 500. Whoever calls this
/// keeps the request's slot until then: it counts until the handler returns, even when it has answered before.
fn call(handler: &dyn Handler, exchange: Exchange, slot: &ReplySlot) {
    let panicked = contain(|| handler.handle(exchange)).is_none();
    if panicked {
        slot.tell("a handler panicked");
    }
}
