//! What became of every connection and every request: counted while serving, reported by the stop.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::lifecycle::Phase;

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

/// A counter that any thread may read.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    /// What was counted before, in this counter or another, is seen by whoever reads that one later.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// For a counter that one thread writes at a time: no locked instruction.
    pub(crate) fn raise(&self, n: u64) {
        self.0.store(self.get() + n, Ordering::Release);
    }

    /// As [`Count::raise`].
    pub(crate) fn lower(&self, n: u64) {
        self.0.store(self.get() - n, Ordering::Release);
    }

    /// Moves what has been counted here to `other`; both as with [`Count::raise`].
    pub(crate) fn move_to(&self, other: &Self) {
        let value = self.get();
        self.lower(value);
        other.raise(value);
    }

    /// For a counter that several threads write.
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Release);
    }

    /// As [`Count::add`].
    pub(crate) fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Ordering::Release);
    }
}

/// The requests of one connection, or of all that have been closed: how many have come, and what became of them.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) requests: Count,
    pub(crate) served: Count,
    pub(crate) failed: Count,
    pub(crate) gone: Count,
    pub(crate) killed: Count,
}

/// What a [`Ledger`] says at one time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    pub(crate) requests: u64,
    pub(crate) served: u64,
    pub(crate) failed: u64,
    pub(crate) gone: u64,
    pub(crate) killed: u64,
}

impl Ledger {
    /// No more in the columns than have come, even while the connection counts: a request comes before it is in a
    /// column, and from `served` one may still go to `gone` or `killed`.
    pub(crate) fn counts(&self) -> Counts {
        let (gone, killed) = (self.gone.get(), self.killed.get());
        let (served, failed) = (self.served.get(), self.failed.get());
        Counts {
            requests: self.requests.get(),
            served,
            failed,
            gone,
            killed,
        }
    }

    /// Adds a closed connection's counts to those of the server.
    pub(crate) fn add(&self, counts: &Counts) {
        self.requests.add(counts.requests);
        self.served.add(counts.served);
        self.failed.add(counts.failed);
        self.gone.add(counts.gone);
        self.killed.add(counts.killed);
    }

    pub(crate) fn add_to(&self, report: &mut Report) {
        let counts = self.counts();
        report.requests += counts.requests;
        report.served += counts.served;
        report.failed += counts.failed;
        report.gone += counts.gone;
        report.killed += counts.killed;
    }
}

impl Counts {
    /// How many requests are in no column.
    pub(crate) fn open(&self) -> u64 {
        self.requests - (self.served + self.failed + self.gone + self.killed)
    }
}

/// How connections ended, each in one way.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    pub(crate) closed: Count,
    pub(crate) idle: Count,
    pub(crate) raced: Count,
    pub(crate) gone: Count,
    pub(crate) timed_out: Count,
    pub(crate) killed: Count,
    /// Of those killed.
    pub(crate) hijacked_killed: Count,
    /// Bytes left in our kernel.
    pub(crate) bytes_unacked: Count,
}

impl Ends {
    pub(crate) fn add_to(&self, report: &mut Report) {
        report.conns_closed = self.closed.get();
        report.closed_idle = self.idle.get();
        report.raced = self.raced.get();
        report.conns_gone = self.gone.get();
        report.conns_timed_out = self.timed_out.get();
        report.conns_killed = self.killed.get();
        report.hijacked_killed = self.hijacked_killed.get();
        report.bytes_unacked = self.bytes_unacked.get();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_in_the_columns_than_has_come_whenever_one_looks() {
        const REQUESTS: u64 = 100_000;
        let ledger = Ledger::default();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..REQUESTS {
                    ledger.requests.raise(1);
                    ledger.served.raise(1);
                    ledger.served.lower(1);
                    ledger.gone.raise(1);
                }
            });
            while ledger.counts().requests < REQUESTS {
                let counts = ledger.counts();
                assert!(counts.served + counts.gone <= counts.requests, "{counts:?}");
            }
        });
    }
}
