//! The events that the server sends to its host, through a bounded queue. One thread delivers them, or the host takes
//! them.
//!
//! Nothing that serves or stops ever waits here. When the reader is too slow, events are dropped and counted.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use once_cell::sync::OnceCell;

use crate::addr::Addr;
use crate::conn_info::{ConnInfo, ConnState};
use crate::contain::contain;
use crate::error::{Error, Result};
use crate::phase::Phase;
use crate::record::RequestRecord;
use crate::stats::{StatKind, Stats};
use crate::sys::EventFd;
use crate::throttle::Throttle;

/// The maximum number of waiting events of connections. At 100,000 requests a second with two events each, the queue
/// holds the events of 80 ms.
const CAPACITY: usize = 16_384;
/// The room that is kept free beyond `CAPACITY` for the rare events. So events of connections do not push out stats,
/// phases and log lines.
const RESERVE: usize = 1_024;
/// How much memory the records of requests may take while they wait. Clients choose how long their texts are.
const MOST_BYTES: usize = 16 << 20;

/// An event that the server sends to its host.
///
/// ```
/// # use httpdown::{Dispatch, Error, Event, Exchange, Listener, Server};
/// # fn main() -> httpdown::Result<()> {
/// let handler = |exchange: Exchange| drop(exchange);
/// let server = Server::builder()
///     .pull_events()
///     .handle(Listener::bind("127.0.0.1:0")?, Dispatch::default(), handler)?;
/// server.stop_begin();
/// loop {
///     match server.next_event(None) {
///         Ok(Event::Phase(phase)) => println!("{phase:?}"),
///         Ok(Event::Log(level, text)) => println!("{level:?}: {text}"),
///         Ok(_) => {}
///         Err(Error::Stopped) => break, // there will be no more
///         Err(error) => return Err(error),
///     }
/// }
/// # server.wait_blocking(None)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A value for a monitoring system: see [`Stats`] for the keys.
    Stat {
        /// What kind of value it is.
        kind: StatKind,
        /// The key of the value.
        key: &'static str,
        /// The value; for a time, in seconds.
        value: f64,
    },
    /// A connection has changed its state.
    Conn(ConnEvent),
    /// The server has entered a phase.
    Phase(Phase),
    /// A message for a person.
    Log(LogLevel, String),
    /// A request has ended.
    Done(Box<RequestRecord>),
}

/// A change of a connection's state.
///
/// ```
/// # use httpdown::{ConnEvent, ConnState, Dispatch, Exchange, Listener, Server};
/// # fn main() -> httpdown::Result<()> {
/// let on_conn = |event: ConnEvent| match event.state {
///     ConnState::New => println!("{} comes from {}", event.id, event.peer),
///     ConnState::Closed => println!("{} is closed", event.id),
///     _ => {}
/// };
/// let handler = |exchange: Exchange| drop(exchange);
/// let server = Server::builder()
///     .on_conn_state(on_conn)
///     .handle(Listener::bind("127.0.0.1:0")?, Dispatch::default(), handler)?;
/// server.stop_blocking()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConnEvent {
    /// The connection's number, unique within its server.
    pub id: u64,
    /// The client's address.
    pub peer: Addr,
    /// The connection's new state.
    pub state: ConnState,
}

/// How much a log line matters.
///
/// ```
/// # use httpdown::{Dispatch, Exchange, Listener, LogLevel, Server};
/// # fn main() -> httpdown::Result<()> {
/// let on_log = |level: LogLevel, text: &str| match level {
///     LogLevel::Info => {}
///     LogLevel::Warning => eprintln!("warning: {text}"),
///     _ => eprintln!("error: {text}"),
/// };
/// let handler = |exchange: Exchange| drop(exchange);
/// let server = Server::builder()
///     .on_log(on_log)
///     .handle(Listener::bind("127.0.0.1:0")?, Dispatch::default(), handler)?;
/// server.stop_blocking()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogLevel {
    /// Something failed.
    Error,
    /// Something unexpected happened; the server goes on.
    Warning,
    /// For information.
    Info,
}

/// The kinds of event that anybody wants. Other events are not made.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::struct_excessive_bools, reason = "one for each kind of event")]
pub(crate) struct Interest {
    pub(crate) stats: bool,
    pub(crate) conns: bool,
    pub(crate) phases: bool,
    pub(crate) logs: bool,
    pub(crate) done: bool,
}

impl Interest {
    pub(crate) fn any(self) -> bool {
        self.stats || self.conns || self.phases || self.logs || self.done
    }
}

pub(crate) type OnConn = Box<dyn FnMut(ConnEvent) + Send>;
pub(crate) type OnPhase = Box<dyn FnMut(Phase) + Send>;
pub(crate) type OnDone = Box<dyn FnMut(&RequestRecord) + Send>;
pub(crate) type OnLog = Box<dyn FnMut(LogLevel, &str) + Send>;

/// The callbacks of a server. They run on the events thread, one at a time.
#[derive(Default)]
pub(crate) struct Observers {
    pub(crate) stats: Option<Box<dyn Stats>>,
    pub(crate) conns: Option<OnConn>,
    pub(crate) phases: Option<OnPhase>,
    pub(crate) logs: Option<OnLog>,
    pub(crate) done: Option<OnDone>,
}

impl Observers {
    pub(crate) fn interest(&self) -> Interest {
        Interest {
            stats: self.stats.is_some(),
            conns: self.conns.is_some(),
            phases: self.phases.is_some(),
            logs: self.logs.is_some(),
            done: self.done.is_some(),
        }
    }

    fn deliver(&mut self, event: Event) {
        match event {
            Event::Stat { kind, key, value } => {
                if let Some(stats) = &mut self.stats {
                    match kind {
                        StatKind::Avg => stats.bump_avg(key, value),
                        StatKind::Sum => stats.bump_sum(key, value),
                        StatKind::Histogram => stats.bump_histogram(key, value),
                        StatKind::Time => stats.bump_time(key, value),
                    }
                }
            }
            Event::Conn(event) => self.conns.iter_mut().for_each(|f| f(event.clone())),
            Event::Phase(phase) => self.phases.iter_mut().for_each(|f| f(phase)),
            Event::Log(level, text) => self.logs.iter_mut().for_each(|f| f(level, &text)),
            Event::Done(record) => self.done.iter_mut().for_each(|f| f(&record)),
        }
    }
}

impl fmt::Debug for Observers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.interest().fmt(f)
    }
}

/// The queue of events.
#[derive(Debug)]
pub(crate) struct Events {
    interest: Interest,
    queue: Mutex<Queue>,
    changed: Condvar,
    /// The host takes the events. Then the descriptor is readable while events wait.
    pulled: bool,
    /// The descriptor, which is readable also after the end. It is made when somebody asks for it.
    readable: OnceCell<EventFd>,
}

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<Event>,
    /// How much memory the records of requests among them take.
    bytes: usize,
    closed: bool,
    /// Those who wait for the end have been told.
    ended: bool,
    /// There is an events thread that has not delivered all events.
    delivers: bool,
    dropped: u64,
}

impl Events {
    pub(crate) fn new(interest: Interest, pulled: bool) -> Self {
        Self {
            interest,
            queue: Mutex::default(),
            changed: Condvar::new(),
            pulled,
            readable: OnceCell::new(),
        }
    }

    pub(crate) fn interest(&self) -> Interest {
        self.interest
    }

    /// Whether the host takes the events itself.
    pub(crate) fn are_pulled(&self) -> bool {
        self.pulled
    }

    pub(crate) fn stat(&self, kind: StatKind, key: &'static str, value: f64) {
        if self.interest.stats {
            self.push(Event::Stat { kind, key, value });
        }
    }

    pub(crate) fn sum(&self, key: &'static str, value: f64) {
        self.stat(StatKind::Sum, key, value);
    }

    #[inline]
    pub(crate) fn conn(&self, conn: &ConnInfo, state: ConnState) {
        if self.interest.conns {
            self.push(Event::Conn(ConnEvent {
                id: conn.id,
                peer: conn.peer.clone(),
                state,
            }));
        }
    }

    pub(crate) fn phase(&self, phase: Phase) {
        if self.interest.phases {
            self.push(Event::Phase(phase));
        }
    }

    pub(crate) fn log(&self, level: LogLevel, text: impl Into<String>) {
        if self.interest.logs {
            self.push(Event::Log(level, text.into()));
        }
    }

    /// Logs `what` and why, unless this was logged a short time ago. Use this for failures that a client or a state of
    /// the machine may cause again and again.
    pub(crate) fn log_rarely(
        &self,
        throttle: &Throttle,
        now: Duration,
        level: LogLevel,
        what: &str,
        why: &dyn fmt::Display,
    ) {
        if self.interest.logs
            && let Some(times) = throttle.fails(now)
        {
            let again = match times {
                1 => String::new(),
                times => format!(" ({times} times since this was said last)"),
            };
            self.log(level, format!("{what}: {why}{again}"));
        }
    }

    /// Whether anybody wants to be told of each request.
    pub(crate) fn wants_done(&self) -> bool {
        self.interest.done
    }

    /// A request has ended. Gives the record back if there is no room for it: who drops it may call the host.
    pub(crate) fn done(&self, record: RequestRecord) -> Option<RequestRecord> {
        match self.try_push(Event::Done(Box::new(record))) {
            Some(Event::Done(record)) => Some(*record),
            _ => None,
        }
    }

    fn push(&self, event: Event) {
        drop(self.try_push(event));
    }

    /// Gives the event back if there is no room for it.
    fn try_push(&self, event: Event) -> Option<Event> {
        let (room, bytes) = match &event {
            Event::Conn(_) => (CAPACITY, 0),
            Event::Done(record) => (CAPACITY, record.size()),
            _ => (CAPACITY + RESERVE, 0),
        };
        let mut queue = self.lock();
        let is_full = queue.events.len() >= room || queue.bytes + bytes > MOST_BYTES;
        if queue.closed || is_full {
            queue.dropped += 1;
            return Some(event);
        }
        queue.bytes += bytes;
        queue.events.push_back(event);
        if self.pulled && queue.events.len() == 1 {
            self.signal();
        }
        drop(queue);
        self.changed.notify_one();
        None
    }

    /// The number of events that were lost because nobody took them in time.
    pub(crate) fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    /// Accepts no more events. Events in the queue can still be taken.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Those who wait for the end have been told.
    pub(crate) fn end(&self) {
        self.lock().ended = true;
        self.signal();
    }

    /// A descriptor that is readable while events wait, if the host takes the events, and after the end.
    pub(crate) fn descriptor(&self) -> io::Result<BorrowedFd<'_>> {
        let queue = self.lock();
        let readable = self.readable.get_or_try_init(|| {
            let readable = EventFd::new()?;
            if queue.ended || (self.pulled && !queue.events.is_empty()) {
                readable.set();
            }
            Ok(readable)
        });
        drop(queue);
        readable.map(EventFd::as_fd)
    }

    fn signal(&self) {
        if let Some(readable) = self.readable.get() {
            readable.set();
        }
    }

    /// Takes the oldest event. Waits for an event until `deadline` (`None`: without limit).
    pub(crate) fn next(&self, deadline: Option<Instant>) -> Result<Event> {
        let mut queue = self.lock();
        loop {
            if let Some(event) = queue.events.pop_front() {
                if let Event::Done(record) = &event {
                    queue.bytes = queue.bytes.saturating_sub(record.size());
                }
                if self.pulled
                    && queue.events.is_empty()
                    && !queue.ended
                    && let Some(readable) = self.readable.get()
                {
                    readable.clear();
                }
                return Ok(event);
            }
            if queue.closed {
                return Err(Error::Stopped);
            }
            queue = match deadline {
                None => self
                    .changed
                    .wait(queue)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left == Duration::ZERO {
                        return Err(Error::WouldBlock);
                    }
                    self.changed
                        .wait_timeout(queue, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
    }

    /// Says that there will be an events thread.
    pub(crate) fn will_deliver(&self) {
        self.lock().delivers = true;
    }

    /// The life of the events thread.
    pub(crate) fn deliver_all(&self, mut observers: Observers) {
        while let Ok(event) = self.next(None) {
            // If the host's callback panics, only this event is lost, not the later ones.
            contain(|| observers.deliver(event));
        }
        self.none_delivers();
    }

    /// Says that there is no events thread (any more).
    pub(crate) fn none_delivers(&self) {
        self.lock().delivers = false;
        self.changed.notify_all();
    }

    /// Waits until the events thread, if there is one, has delivered the events from before the close. Waits at most
    /// until the deadline.
    pub(crate) fn wait_delivered(&self, deadline: Instant) {
        let mut queue = self.lock();
        while queue.delivers {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.changed.wait_timeout(queue, left);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
