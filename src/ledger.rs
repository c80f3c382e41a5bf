//! What became of every connection and every request. It is counted while serving, and the stop reports it.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::report::Report;

/// A counter that any thread may read.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    /// The value. What was counted before it, in this counter or another, is seen by every thread that reads that
    /// counter afterwards.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Adds `n`. For a counter that only one thread writes at a time: needs no locked instruction.
    pub(crate) fn raise(&self, n: u64) {
        self.0.store(self.get() + n, Ordering::Release);
    }

    /// Subtracts `n`, like [`Count::raise`].
    pub(crate) fn lower(&self, n: u64) {
        self.0.store(self.get() - n, Ordering::Release);
    }

    /// Moves what has been counted here to `other`. Both counters must be written like in [`Count::raise`].
    pub(crate) fn move_to(&self, other: &Self) {
        let value = self.get();
        self.lower(value);
        other.raise(value);
    }

    /// Adds `n`. For a counter that several threads write.
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Release);
    }
}

/// The requests of one connection, or of all that have been closed: how many have come, and what became of them.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) requests: Count,
    pub(crate) served: Count,
    pub(crate) failed: Count,
    pub(crate) gone: Count,
    pub(crate) timed_out: Count,
    pub(crate) killed: Count,
}

/// The counts of a [`Ledger`] at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    pub(crate) requests: u64,
    pub(crate) served: u64,
    pub(crate) failed: u64,
    pub(crate) gone: u64,
    pub(crate) timed_out: u64,
    pub(crate) killed: u64,
}

impl Ledger {
    /// The counts now. The columns never hold more requests than have come, even while the connection counts: a request
    /// comes before it is in a column, and may still move from `served` to `gone` or `killed`.
    pub(crate) fn counts(&self) -> Counts {
        let (gone, killed) = (self.gone.get(), self.killed.get());
        let (served, failed) = (self.served.get(), self.failed.get());
        let timed_out = self.timed_out.get();
        Counts {
            requests: self.requests.get(),
            served,
            failed,
            gone,
            timed_out,
            killed,
        }
    }

    /// Adds a closed connection's counts to those of the server.
    pub(crate) fn add(&self, counts: &Counts) {
        self.requests.add(counts.requests);
        self.served.add(counts.served);
        self.failed.add(counts.failed);
        self.gone.add(counts.gone);
        self.timed_out.add(counts.timed_out);
        self.killed.add(counts.killed);
    }

    pub(crate) fn add_to(&self, report: &mut Report) {
        let counts = self.counts();
        report.requests += counts.requests;
        report.served += counts.served;
        report.failed += counts.failed;
        report.gone += counts.gone;
        report.timed_out += counts.timed_out;
        report.killed += counts.killed;
    }
}

impl Counts {
    /// How many requests are in no column.
    pub(crate) fn open(&self) -> u64 {
        self.requests - (self.served + self.failed + self.gone + self.timed_out + self.killed)
    }
}

/// How connections ended. Each has ended in one way.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    pub(crate) closed: Count,
    pub(crate) idle: Count,
    pub(crate) raced: Count,
    pub(crate) gone: Count,
    pub(crate) timed_out: Count,
    pub(crate) tls_failed: Count,
    pub(crate) tls_timed_out: Count,
    pub(crate) killed: Count,
    /// How many of the killed connections were hijacked.
    pub(crate) hijacked_killed: Count,
    /// Bytes that were left in our kernel.
    pub(crate) bytes_unacked: Count,
}

impl Ends {
    pub(crate) fn add_to(&self, report: &mut Report) {
        report.conns_closed = self.closed.get();
        report.closed_idle = self.idle.get();
        report.raced = self.raced.get();
        report.conns_gone = self.gone.get();
        report.conns_timed_out = self.timed_out.get();
        report.conns_tls_failed = self.tls_failed.get();
        report.conns_tls_timed_out = self.tls_timed_out.get();
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
