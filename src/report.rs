//! What a server tells of itself, and at the end of how it has stopped.

use std::time::Duration;

use crate::phase::Phase;

/// What a server has done, and what its stop has cost. A snapshot: take it at any time.
///
/// Every connection and every request is in exactly one column. Once the server has stopped the sums hold:
/// `connections = conns_closed + closed_idle + raced + conns_gone + conns_timed_out + conns_killed` and
/// `requests = served + failed + gone + killed`.
///
/// ```
/// # use httpdown::{Dispatch, Exchange, Listener, Server};
/// # fn main() -> httpdown::Result<()> {
/// # let handler = |exchange: Exchange| drop(exchange);
/// # let listener = Listener::bind("127.0.0.1:0")?;
/// # let server = Server::builder().handle(listener, Dispatch::default(), handler)?;
/// let now = server.report();
/// println!("{} connections, {} of them with a request", now.conns_open, now.conns_active);
///
/// let stopped = server.stop_blocking()?;
/// println!("{} requests served, stopped in {:?}", stopped.served, stopped.stop_duration);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// How far the server has come.
    pub phase: Phase,
    /// How long the stop has taken so far, by the server's clock; zero before it begins.
    pub stop_duration: Duration,
    /// Connections accepted.
    pub connections: u64,
    /// Connections open now: the sum of the next four.
    pub conns_open: u64,
    /// Open, and no byte has come yet.
    pub conns_new: u64,
    /// Open, with a request under way.
    pub conns_active: u64,
    /// Open, between two requests.
    pub conns_idle: u64,
    /// Open, and taken over by a handler (upgraded).
    pub conns_hijacked: u64,
    /// Connections that ended as they should: closed by the client between two requests, by us behind a response that
    /// said so, or released by the handler that had taken them over.
    pub conns_closed: u64,
    /// Connections that the stop, or the idle timeout, closed while they were new or idle.
    pub closed_idle: u64,
    /// Connections that the stop or the idle timeout closed, and on which a request came after that: it had crossed our
    /// FIN, or the response that announced it, on the wire. HTTP/1.1 has no means against that; a larger `idle_grace`, or
    /// `idle_timeout`, makes it rarer.
    pub raced: u64,
    /// Connections whose client left in the middle of a request.
    pub conns_gone: u64,
    /// Connections that were closed because the head of a request did not come in time (`header_timeout`).
    pub conns_timed_out: u64,
    /// Connections that a kill cut.
    pub conns_killed: u64,
    /// Requests whose head has been read, and those that a kill cut before it was.
    pub requests: u64,
    /// Requests whose whole response was given to the kernel; of those that were answered while the server stopped, or
    /// last before that on their connection: acknowledged by the client's kernel.
    pub served: u64,
    /// Requests whose handler failed after the response had begun: the client saw it cut.
    pub failed: u64,
    /// Requests whose client left before its response was complete, or before its own body was, or whose body was
    /// malformed when the response had begun.
    pub gone: u64,
    /// Requests that a kill cut, or answered with 503 because nobody had taken them from the queue.
    pub killed: u64,
    /// Requests whose handler still held them, answered or not, when the kill timeout had passed. They are also in one
    /// of the columns above.
    pub abandoned: u64,
    /// Of the connections that a kill cut, those that a handler had taken over.
    pub hijacked_killed: u64,
    /// Connections that still waited to be accepted when their listening socket had to be closed (there were no
    /// descriptors for them).
    pub unaccepted: u64,
    /// Bytes that were written to clients, and that their kernels had not acknowledged when their connections ended
    /// during the stop.
    pub bytes_unacked: u64,
    /// Events that were dropped because nobody took them in time.
    pub events_dropped: u64,
}
