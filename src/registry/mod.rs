//! All connections of a server that anything still holds: a socket, a handler, a queued request. A stop is over when
//! there are no such connections.

mod register;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

use crate::ledger::Ledger;
use crate::report::Report;

use register::Register;

/// A connection, as far as the stop knows it. Any thread may call these methods.
pub(crate) trait Member: fmt::Debug + Send + Sync + 'static {
    /// Makes the task that drives the connection look at the phase.
    fn wake(&self);

    /// Resets the socket, if it is still connected.
    fn reset(&self);

    /// Closes the books of the connection. It is called when nobody will come to the connection any more, because a
    /// handler blocks its thread.
    fn abandon(&self);

    /// Counts the request that the program has, if it is overdue.
    fn look_at_handler(&self);

    /// How many requests are held by handlers, or wait in a queue.
    fn held(&self) -> u64;

    /// Whether the connection's counts have been added to those of the server.
    fn is_settled(&self) -> bool;

    /// Adds the connection's state, and the counts of its requests.
    fn add_to(&self, report: &mut Report);
}

#[derive(Debug, Default)]
pub(crate) struct Registry {
    members: Register<dyn Member>,
    accepted: AtomicU64,
    emptied: Notify,
}

impl Registry {
    /// Returns the number for a new connection.
    pub(crate) fn next_id(&self) -> u64 {
        self.accepted.fetch_add(1, Ordering::Relaxed)
    }

    /// Enters a new connection.
    pub(crate) fn enter(&self, id: u64, member: Arc<impl Member>) {
        let member: Arc<dyn Member> = member;
        self.members.insert(id, &member);
    }

    /// Nothing holds the connection any more.
    pub(crate) fn leave(&self, id: u64) {
        self.members.remove(id, || self.emptied.notify_waiters());
    }

    /// Lets a connection add its counts to those of the server. Nobody reads the counts meanwhile.
    pub(crate) fn settle<T>(&self, settle: impl FnOnce() -> T) -> T {
        self.members.settle(settle)
    }

    /// Waits until there is no connection.
    pub(crate) async fn emptied(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.members.is_empty() {
                return;
            }
            emptied.await;
        }
    }

    /// Makes every connection look at the phase.
    pub(crate) fn wake_all(&self) {
        for member in self.members.all() {
            member.wake();
        }
    }

    /// Resets all connections that are still connected.
    pub(crate) fn reset_all(&self) {
        for member in self.members.all() {
            member.reset();
        }
    }

    /// Closes the books on connections that nobody will come to any more.
    pub(crate) fn abandon_all(&self) {
        for member in self.members.all() {
            member.abandon();
        }
    }

    /// Counts the requests that are overdue, also those whose threads do not get on.
    pub(crate) fn look_at_handlers(&self) {
        for member in self.members.all() {
            member.look_at_handler();
        }
    }

    /// How many requests are held by handlers, or wait in a queue.
    pub(crate) fn held(&self) -> u64 {
        self.members.all().iter().map(|member| member.held()).sum()
    }

    /// Adds up the connections that are still held and, from `closed`, those that are not.
    pub(crate) fn add_to(&self, report: &mut Report, closed: &Ledger) {
        let is_settled = |member: &dyn Member| member.is_settled();
        let unsettled = self.members.unsettled(is_settled, || closed.add_to(report));
        report.connections = self.accepted.load(Ordering::Relaxed);
        for member in unsettled {
            member.add_to(report);
        }
    }
}
