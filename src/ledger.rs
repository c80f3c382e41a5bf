//! What became of every connection and every request: counted while serving, reported by the stop.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::lifecycle::Phase;

/// What a server has done, and what its stop has cost. A snapshot: take it at any time.
///
/// Once the server has stopped the sums hold:
/// `requests = served + failed + gone + killed`, and `connections` is what was accepted in all.
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
    /// Connections that the stop closed while they were new or idle.
    pub closed_idle: u64,
    /// Of those, connections on which bytes came after we had closed: the client had sent a request that crossed our
    /// FIN on the wire. HTTP/1.1 has no means against that; a larger `idle_grace` makes it rarer.
    pub raced: u64,
    /// Requests whose head has been read, and those that a kill cut before it was.
    pub requests: u64,
    /// Requests whose whole response was given to the kernel.
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
    /// Upgraded connections that a kill cut.
    pub hijacked_killed: u64,
    /// Connections that still waited to be accepted when their listening socket had to be closed (there were no
    /// descriptors for them).
    pub unaccepted: u64,
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
