//! The values that the server measures for a monitoring system.

/// A client of a monitoring system. Every method does nothing by default.
///
/// The methods are called on the events thread, one at a time. So a slow method delays only later events, and never a
/// request or a stop. (`listen.error` comes before the events thread exists, on the thread that calls
/// [`Builder::listen`](crate::Builder::listen).)
///
/// # Keys
///
/// | key | method | when |
/// | --- | --- | --- |
/// | `serve` | sum | the server has begun to serve |
/// | `listen.error` | sum | an address could not be listened on |
/// | `accept.error` | sum | accepting a connection failed; the server goes on |
/// | `conn.closed` | sum | a connection was closed, or taken over by a handler (hijacked) |
/// | `pool.stalled` | sum | a thread was started in place of one whose handler waits for its client |
/// | `handler.error` | sum | a handler failed, or ended without an answer: the client got a 500 or a cut response |
/// | `handler.overdue` | sum | a handler has had a request for longer than `handler_timeout`; nothing was cut |
/// | `file.error` | sum | the file of an answer became shorter, or could not be read: the client saw it cut (`handler.error` counts it, too) |
/// | `http-state.new`, `.active`, `.idle`, `.total` | avg | connections in that state, once a minute |
/// | `stop` | sum | the first stop began |
/// | `stop.conn.count` | histogram | connections that were open then |
/// | `stop.time` | time | the stop ended; how long it took |
/// | `drain.race` | sum | a request came on a connection that the stop had closed |
/// | `idle.race` | sum | a request came, before a stop, on a connection that the idle timeout or `max_conn_requests` had closed |
/// | `proxy.error` | sum | a header of the PROXY protocol was missing, malformed or late: the connection was closed |
/// | `limit.head` | sum | a head was refused: too many fields, or too large (431) |
/// | `limit.target` | sum | a target was refused: too long (414) |
/// | `limit.body` | sum | a body was refused: too large (413) |
/// | `limit.conn_requests` | sum | a connection has had all the requests that it may have |
/// | `limit.conns` | sum | accepting pauses: so many connections are open |
/// | `limit.client_conns` | sum | a connection was refused: its client has so many (503) |
/// | `limit.queued` | sum | a request was refused: so many wait (503) |
/// | `kill` | sum | the stop timeout passed, or a kill was asked for |
/// | `kill.conn.count` | sum | connections that were open then |
/// | `kill.timeout` | sum | the kill timeout passed |
/// | `kill.time` | time | the kill ended; how long it took |
/// | `tls.handshake` | sum | a TLS handshake is done |
/// | `tls.resumed` | sum | it goes on from an earlier session |
/// | `tls.error.version`, `.parameters` | sum | a handshake failed: no common version; no common cipher suite, key exchange, signature or protocol |
/// | `tls.error.client_certificate` | sum | the client's certificate is missing, or is not accepted |
/// | `tls.error.alert` | sum | the client has refused: mostly it does not trust the server's certificate |
/// | `tls.error.protocol`, `.not_tls`, `.plain_http` | sum | the client has broken the protocol, speaks another one, or HTTP without TLS |
/// | `tls.error.left`, `.timeout`, `.other` | sum | the client has left, or was too slow; anything else |
/// | `tls.expires` | avg | seconds until the first of the server's certificates ends, once a minute |
/// | `tls.reloads` | avg | how often the settings were replaced, once a minute |
/// | `tls.reload_failed` | sum | the files could not be read again ([`Server::reread_tls`](crate::Server::reread_tls), SIGHUP) |
/// | `memory.trim` | time | memory was given back to the system (`trim_memory`); how long it took |
/// | `restart` | sum | a [restart](crate::Server::restart) was asked for on this server |
/// | `restart.failed` | sum | it failed, and this process goes on |
/// | `restart.lost` | sum | connections that a new process had when it failed; a reset or an end is all that their clients saw |
/// | `restart.time` | time | the new process has taken over; how long that took |
/// | `restart.predecessors` | avg | earlier processes that have not ended, once a minute, if this one was started by a restart |
/// | `restart.unclaimed` | sum | sockets on which the new process does not listen any more ([`Restart::drop_unclaimed`](crate::Restart::drop_unclaimed)) |
/// | `listener.close.error` | sum | a listening socket could not be closed |
///
/// # Example
///
/// ```
/// # use std::collections::HashMap;
/// #[derive(Default)]
/// struct Sums(HashMap<String, f64>);
///
/// impl httpdown::Stats for Sums {
///     fn bump_sum(&mut self, key: &str, value: f64) {
///         *self.0.entry(key.to_owned()).or_default() += value;
///     }
/// }
///
/// let builder = httpdown::Server::builder().stats(Sums::default());
/// # let _ = builder;
/// ```
pub trait Stats: Send + 'static {
    /// An average: the monitoring system should take the mean of the values over a period.
    fn bump_avg(&mut self, key: &str, value: f64) {
        let _ = (key, value);
    }

    /// A counter goes up by `value`.
    fn bump_sum(&mut self, key: &str, value: f64) {
        let _ = (key, value);
    }

    /// A histogram: the monitoring system should keep the distribution of the values.
    fn bump_histogram(&mut self, key: &str, value: f64) {
        let _ = (key, value);
    }

    /// A timed action has ended. It took `seconds`.
    fn bump_time(&mut self, key: &str, seconds: f64) {
        let _ = (key, seconds);
    }
}

/// The method of [`Stats`] that a value is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StatKind {
    /// [`Stats::bump_avg`]
    Avg,
    /// [`Stats::bump_sum`]
    Sum,
    /// [`Stats::bump_histogram`]
    Histogram,
    /// [`Stats::bump_time`]
    Time,
}
