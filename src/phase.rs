//! How far a server has come, what that means for its other parts, and who is told.

use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// How far a server has come. A phase only moves forward.
///
/// ```
/// # use httpdown::{Dispatch, Exchange, Listener, Phase, Server};
/// # use std::sync::mpsc;
/// # fn main() -> httpdown::Result<()> {
/// let (tell, told) = mpsc::channel();
/// let handler = |exchange: Exchange| drop(exchange);
/// let server = Server::builder()
///     .on_phase(move |phase| drop(tell.send(phase)))
///     .handle(Listener::bind("127.0.0.1:0")?, Dispatch::default(), handler)?;
/// server.stop_blocking()?;
/// let phases: Vec<Phase> = told.try_iter().collect();
/// assert!(phases.is_sorted());
/// assert_eq!(phases.last(), Some(&Phase::Stopped));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
#[repr(u8)]
pub enum Phase {
    /// The server accepts and answers.
    #[default]
    Serving = 0,
    /// The server still accepts, but is no longer ready: load balancers should look elsewhere.
    LameDuck = 1,
    /// New handshakes are refused, old ones are taken over, and the listening sockets are closed. Connections begin to
    /// drain.
    Quiescing = 2,
    /// There are no new connections; requests under way are finished.
    Draining = 3,
    /// The stop timeout has passed: what is left is cut.
    Killing = 4,
    /// The server has ended.
    Stopped = 5,
}

impl Phase {
    /// Whether the next response on a connection says that the connection ends.
    pub(crate) fn announces_close(self) -> bool {
        self >= Self::LameDuck
    }

    /// Whether there are no new connections, and the open ones come to their end.
    pub(crate) fn drains(self) -> bool {
        self >= Self::Quiescing
    }

    /// Whether connections and requests are cut.
    pub(crate) fn cuts(self) -> bool {
        self >= Self::Killing
    }

    fn from_u8(value: u8) -> Self {
        match value {
            0 => Self::Serving,
            1 => Self::LameDuck,
            2 => Self::Quiescing,
            3 => Self::Draining,
            4 => Self::Killing,
            _ => Self::Stopped,
        }
    }
}

/// The phase, which every connection looks at; and the stop and the kill, for which one can wait.
#[derive(Debug, Default)]
pub(crate) struct Phases {
    current: AtomicU8,
    killing: Notify,
    killing_for_tasks: Notify,
    /// Tasks wait for this, too.
    stopping: Notify,
}

/// Who waits, and so whose waker is to be called.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Waiter {
    /// A thread, which has a waker of ours.
    Thread,
    /// The host's task. Its waker is the host's and may block, so it is told last.
    Task,
}

impl Phases {
    pub(crate) fn get(&self) -> Phase {
        Phase::from_u8(self.current.load(Ordering::Acquire))
    }

    pub(crate) fn set(&self, phase: Phase) {
        self.current.store(phase as u8, Ordering::Release);
    }

    /// Waits for a stop that begins after this call.
    pub(crate) fn stopping(&self) -> Notified<'_> {
        self.stopping.notified()
    }

    /// Waits until the server kills.
    pub(crate) async fn killing(&self, waiter: Waiter) {
        let told = match waiter {
            Waiter::Thread => self.killing.notified(),
            Waiter::Task => self.killing_for_tasks.notified(),
        };
        if !self.get().cuts() {
            told.await;
        }
    }

    /// Tells the threads that wait for this phase.
    pub(crate) fn tell_threads(&self, phase: Phase) {
        if phase.cuts() {
            self.killing.notify_waiters();
        }
    }

    /// Tells the tasks that wait for this phase, by calling the host's wakers.
    pub(crate) fn tell_tasks(&self, phase: Phase) {
        if phase.cuts() {
            self.killing_for_tasks.notify_waiters();
        }
        self.stopping.notify_waiters();
    }
}
