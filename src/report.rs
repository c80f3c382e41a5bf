//! The counts that a server gives about itself and about its stop.

use std::time::Duration;

use crate::phase::Phase;

/// The counts of what a server has done, and of what its stop has cost. A report is a snapshot; take one at any time.
///
/// Every connection and every request is in exactly one column. When the server has stopped, these sums hold:
/// `connections = conns_closed + closed_idle + raced + conns_gone + conns_timed_out + conns_tls_failed +
/// conns_tls_timed_out + conns_killed` and `requests = served + failed + gone + timed_out + killed`.
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
    /// The server's phase.
    pub phase: Phase,
    /// How long the stop has taken so far, by the server's clock; zero before the stop begins.
    pub stop_duration: Duration,
    /// Connections accepted.
    pub connections: u64,
    /// Connections open now: the sum of the next five.
    pub conns_open: u64,
    /// Open connections whose TLS handshake is not done, or whose header of the PROXY protocol has not come.
    pub conns_handshaking: u64,
    /// Open connections on which no byte has come yet.
    pub conns_new: u64,
    /// Open connections with a request under way.
    pub conns_active: u64,
    /// Open connections between two requests.
    pub conns_idle: u64,
    /// Open connections that a handler has taken over (upgraded).
    pub conns_hijacked: u64,
    /// Connections that ended normally: closed by the client between two requests, closed by us after a response that
    /// said so, refused because their client has too many (`max_client_conns`), or released by the handler that had
    /// taken them over.
    pub conns_closed: u64,
    /// Connections that the stop or the idle timeout closed while they were new or idle.
    pub closed_idle: u64,
    /// Connections that the stop, the idle timeout or `max_conn_requests` closed, and on which a request came after
    /// that. The request had crossed our FIN, or the response that announced the close, on the wire. HTTP/1.1 cannot
    /// prevent this; a larger `idle_grace` or `idle_timeout` makes it rarer.
    pub raced: u64,
    /// Connections whose client left in the middle of a request.
    pub conns_gone: u64,
    /// Connections that were closed because the client was too slow: with the head of a request (`header_timeout`) or
    /// its body (`body_timeout`), or in taking an answer (`write_timeout`).
    pub conns_timed_out: u64,
    /// Connections that were closed because the TLS handshake failed, or whose client left in it (not one
    /// that left before its first byte: `conns_closed`). The statistics say why
    /// (`tls.error.…`, see [`Stats`](crate::Stats)).
    pub conns_tls_failed: u64,
    /// Connections that were closed because the TLS handshake did not come to its end in time.
    pub conns_tls_timed_out: u64,
    /// Connections that a kill cut.
    pub conns_killed: u64,
    /// Requests whose head has been read, and requests that a kill cut before their head was read.
    pub requests: u64,
    /// Requests whose whole response was given to the kernel. If a request was answered during the stop, or was the
    /// last on its connection before the stop, the client's kernel has also acknowledged the response.
    pub served: u64,
    /// Requests whose handler failed after the response had begun. The client saw the response cut.
    pub failed: u64,
    /// Requests whose client left before the response or the request's body was complete, and requests whose body
    /// turned out to be malformed, or larger than `max_body_size`, after the response had begun.
    pub gone: u64,
    /// Requests that ended because the client was too slow with the body (`body_timeout`), or in taking the answer
    /// (`write_timeout`).
    pub timed_out: u64,
    /// Requests that a kill cut, and requests that a kill answered with 503 because nobody had taken them from the
    /// queue.
    pub killed: u64,
    /// Requests, answered or not, whose handler still held them when the kill timeout had passed. These requests are
    /// also in one of the columns above.
    pub abandoned: u64,
    /// Requests that the program has had for longer than `handler_timeout`. These requests are also in one of the
    /// columns above, when they have ended.
    pub overdue: u64,
    /// Connections that a handler had taken over, and that a kill cut. They are also in `conns_killed`.
    pub hijacked_killed: u64,
    /// Connections that still waited to be accepted when their listening socket had to be closed. The process had no
    /// descriptors for them.
    pub unaccepted: u64,
    /// The process that has taken over, if the stop was the end of a [restart](crate::Server::restart).
    pub successor: Option<u32>,
    /// Bytes that were written to clients, but that the clients' kernels had not acknowledged when the connections
    /// ended during the stop.
    pub bytes_unacked: u64,
    /// Events that were dropped because they were not taken in time.
    pub events_dropped: u64,
}
