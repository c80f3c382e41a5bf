//! What became of every connection and every request: counted while serving, reported by the stop.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::lifecycle::Phase;

/// What a server has done, and what its stop has cost. A snapshot: take it at any time.
///
/// Every connection and every request is in exactly one column. Once the server has stopped the sums hold:
/// `connections = conns_closed + closed_idle + raced + conns_gone + conns_timed_out + conns_killed` and
/// `requests = served + failed + gone + killed`.
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
    /// FIN, or the response that announced it, on the wire. HTTP/1.1 has no means against that; a larger `idle_grace`,
    /// or `idle_timeout`, makes it rarer.
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
    /// Requests whose client left before its response was complete.
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

/// A counter that only one thread writes at a time.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// For a counter that a single task writes: no locked instruction.
    pub(crate) fn bump(&self) {
        self.0.store(self.get() + 1, Ordering::Relaxed);
    }

    /// As [`Count::bump`], by more than one.
    pub(crate) fn raise(&self, n: u64) {
        self.0.store(self.get() + n, Ordering::Relaxed);
    }

    /// Moves what has been counted here to `other`; for a counter that a single task writes.
    pub(crate) fn move_to(&self, other: &Self) {
        let value = self.take();
        other.0.store(other.get() + value, Ordering::Relaxed);
    }

    /// What has been counted; the count begins anew. Any thread.
    pub(crate) fn take(&self) -> u64 {
        self.0.swap(0, Ordering::Relaxed)
    }

    /// For a counter that several threads write.
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Ordering::Relaxed);
    }
}

/// The counts of one connection, or of all that have been closed.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) requests: Count,
    pub(crate) served: Count,
    pub(crate) failed: Count,
    pub(crate) gone: Count,
    pub(crate) killed: Count,
}

impl Ledger {
    /// Adds a closed connection's counts to those of the server.
    pub(crate) fn add(&self, other: &Self) {
        self.requests.add(other.requests.get());
        self.served.add(other.served.get());
        self.failed.add(other.failed.get());
        self.gone.add(other.gone.get());
        self.killed.add(other.killed.get());
    }

    pub(crate) fn add_to(&self, report: &mut Report) {
        report.requests += self.requests.get();
        report.served += self.served.get();
        report.failed += self.failed.get();
        report.gone += self.gone.get();
        report.killed += self.killed.get();
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
