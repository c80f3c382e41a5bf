//! What the server knows about a connection and about the requests on it.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::task::Wake;
use std::thread;

use once_cell::sync::OnceCell;
use socket2::SockRef;

use crate::conn_info::{ConnInfo, ConnState};
use crate::ledger::{Count, Ledger};
use crate::net::Connected;
use crate::net::link::{self, Stream};
use crate::registry::Member;
use crate::report::Report;
use crate::shared::Shared;
use crate::sys;

use super::framing::{BodyLength, is_request};
use super::number::Number;
use super::park::Driver;

/// Stands for the length of a body whose head does not say the length.
const UNKNOWN: u64 = u64::MAX;

/// How a connection ends, if nothing on it is lost.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
enum End {
    /// In the normal way.
    Closed = 0,
    /// The stop has closed it after a response that announced the end.
    Announced = 1,
    /// The stop, or the idle timeout, has closed the connection while it was new or idle.
    Idle = 2,
    /// We have closed the connection in one of these ways, and a request has come since.
    Raced = 3,
    /// A request's head did not come in time.
    TimedOut = 4,
    /// The bytes that came are no request. The last response has said so, and that we close.
    Refused = 5,
}

impl End {
    fn from_u8(value: u8) -> Self {
        match value {
            0 => Self::Closed,
            1 => Self::Announced,
            2 => Self::Idle,
            3 => Self::Raced,
            4 => Self::TimedOut,
            _ => Self::Refused,
        }
    }
}

/// Whether a client that waits for a 100 before it sends a body gets one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Asking {
    /// There is nothing to ask for, or hyper takes care of the 100.
    Settled = 0,
    /// Nobody has read or dropped the body yet.
    Unknown = 1,
    /// The 100 is to be sent before the answer.
    Owed = 2,
}

/// Why the body of a request does not come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum BodyFault {
    /// The client has broken the protocol.
    Malformed = 1,
    /// The client has sent no more.
    CutShort = 2,
}

/// One connection. The task that drives it writes the counts; others only read them.
#[derive(Debug)]
pub(crate) struct Conn {
    /// Shared with the requests that C keeps. Otherwise each request would get a copy of it.
    info: Arc<ConnInfo>,
    shared: Arc<Shared>,
    state: AtomicU8,
    /// The socket's number, by which another thread can reset the socket.
    number: Number,
    driver: Driver,
    ledger: Ledger,
    /// The counts that the ledger had when the connection was closed have been added to the server's counts. A handler
    /// may have blocked a thread, which then comes to the connection later; what that thread adds is ignored. See
    /// [`Register::settle`].
    settled: AtomicBool,
    /// Bytes of a request have come, but not yet its whole head.
    reading_head: AtomicBool,
    /// See [`Conn::is_target_foreign`].
    foreign_target: AtomicBool,
    /// hyper has used up all the bytes that it got, and waits for more.
    waiting_for_bytes: AtomicBool,
    /// How often hyper has got bytes.
    reads: Count,
    /// Requests that the service has, and whose response hyper does not have completely.
    in_service: Count,
    /// Responses that hyper has completely, and the kernel does not.
    unflushed: Count,
    /// How many of the requests in service or unflushed were answered 503 by a kill. Any thread counts.
    refused: Count,
    /// How many of them were answered although the client had left them half-way. Any thread counts.
    given_up: Count,
    /// Requests that nothing holds any more. Any thread counts.
    let_go: Count,
    /// The last response has agreed to an upgrade: the bytes that come now are not HTTP for us.
    upgraded: AtomicBool,
    /// How many bytes of the last request's body have not been given to hyper; [`UNKNOWN`] if only the end of the body
    /// will tell.
    body_left: AtomicU64,
    /// What is wrong with the last request's body: a [`BodyFault`], or 0. No other request comes behind such a body.
    body_fault: AtomicU8,
    /// How many bytes have been read from the kernel and not yet given to hyper.
    ahead: AtomicU32,
    /// If the last request is complete: the bytes ahead are more than empty lines.
    ahead_is_request: AtomicBool,
    /// See [`Conn::is_answered_alone`].
    answered_alone: AtomicBool,
    /// Whether the client is to be asked for the last request's body: an [`Asking`].
    asking: AtomicU8,
    /// The head of the last response does not say that the connection ends.
    goes_on: AtomicBool,
    /// The response under way ends only with the connection. A FIN in its middle would make it look complete.
    close_delimited: AtomicBool,
    /// How the connection ends: an [`End`].
    end: AtomicU8,
    /// The connection must be closed by a reset. Without the reset, a cut response would look complete.
    is_to_be_reset: AtomicBool,
    /// Both sides have closed the connection.
    is_over: AtomicBool,
    /// Some responses that had been flushed did not arrive.
    undelivered: AtomicBool,
    /// How many bytes the client had not acknowledged when a kill reset the connection. After the reset, the kernel
    /// cannot tell any more.
    unacked_at_reset: OnceCell<u32>,
}

impl Conn {
    /// Creates a new connection and enters it into the registry. The stream is non-blocking.
    pub(crate) fn accept(
        shared: &Arc<Shared>,
        Connected {
            stream,
            peer,
            local,
        }: Connected,
    ) -> Accepted {
        let registry = &shared.registry;
        let conn = Arc::new(Self {
            info: Arc::new(ConnInfo {
                id: registry.next_id(),
                peer,
                local,
                credentials: stream.credentials(),
            }),
            shared: Arc::clone(shared),
            state: AtomicU8::new(ConnState::New as u8),
            number: Number::new(stream.as_raw_fd()),
            driver: Driver::default(),
            ledger: Ledger::default(),
            reading_head: AtomicBool::new(false),
            foreign_target: AtomicBool::new(false),
            waiting_for_bytes: AtomicBool::new(false),
            reads: Count::default(),
            in_service: Count::default(),
            unflushed: Count::default(),
            refused: Count::default(),
            given_up: Count::default(),
            let_go: Count::default(),
            settled: AtomicBool::new(false),
            upgraded: AtomicBool::new(false),
            body_left: AtomicU64::new(0),
            body_fault: AtomicU8::new(0),
            ahead: AtomicU32::new(0),
            ahead_is_request: AtomicBool::new(false),
            answered_alone: AtomicBool::new(false),
            goes_on: AtomicBool::new(false),
            asking: AtomicU8::new(Asking::Settled as u8),
            close_delimited: AtomicBool::new(false),
            end: AtomicU8::new(End::Closed as u8),
            is_to_be_reset: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            undelivered: AtomicBool::new(false),
            unacked_at_reset: OnceCell::new(),
        });
        registry.enter(conn.info.id, Arc::clone(&conn));
        conn.tell(ConnState::New);
        Socket {
            open: Open(conn),
            stream,
        }
    }

    pub(crate) fn info(&self) -> &Arc<ConnInfo> {
        &self.info
    }

    fn link_kind(&self) -> link::Kind {
        link::Kind::of(&self.info.local)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The driver is told of every new phase and, while the connection is parked, of all other events.
    pub(super) fn driver(&self) -> &Driver {
        &self.driver
    }

    fn state(&self) -> ConnState {
        ConnState::from_u8(self.state.load(Ordering::Relaxed))
    }

    fn set_state(&self, state: ConnState) {
        self.state.store(state as u8, Ordering::Relaxed);
        self.tell(state);
    }

    fn tell(&self, state: ConnState) {
        self.shared.events.conn(&self.info, state);
    }

    /// The first byte of a request goes to hyper.
    pub(super) fn head_begins(&self) {
        self.reading_head.store(true, Ordering::Relaxed);
        // A pipelined request may come before the response to the one before it is flushed.
        if self.is_between_requests() {
            self.set_state(ConnState::Active);
        }
    }

    /// hyper has read a request's head and gives it to the service. `is_upgrade`: the request asks for an upgrade.
    /// `waits`: the client waits for a 100 before it sends the body.
    pub(super) fn request_begins(
        self: &Arc<Self>,
        body: BodyLength,
        is_upgrade: bool,
        waits: bool,
    ) -> Inflight {
        let asking = if waits {
            Asking::Unknown
        } else {
            Asking::Settled
        };
        self.set_asking(asking);
        self.reading_head.store(false, Ordering::Relaxed);
        let is_alone = is_upgrade || body == BodyLength::Chunked;
        self.answered_alone.store(is_alone, Ordering::Relaxed);
        self.set_goes_on(false);
        self.set_body_length(body);
        self.ledger.requests.raise(1);
        self.in_service.raise(1);
        Inflight {
            conn: Arc::clone(self),
        }
    }

    /// hyper reads the body. Either somebody has asked for it, and hyper asks the client by the 100; or nobody will
    /// ask.
    pub(super) fn body_is_read(&self) {
        self.set_asking(Asking::Settled);
    }

    /// Called before an answer begins. Says whether we must ask the client for the body first. Somebody still has the
    /// body, and may read it when the client no longer waits for the 100: hyper asks only before the answer begins.
    pub(super) fn must_ask(&self) -> bool {
        let must = self.asking() != Asking::Settled;
        if must {
            self.set_asking(Asking::Owed);
        }
        must
    }

    /// Whether a 100 is to be sent now.
    pub(super) fn asks_now(&self) -> bool {
        let owed = self.asking() == Asking::Owed;
        if owed {
            self.set_asking(Asking::Settled);
        }
        owed
    }

    fn asking(&self) -> Asking {
        match self.asking.load(Ordering::Relaxed) {
            0 => Asking::Settled,
            1 => Asking::Unknown,
            _ => Asking::Owed,
        }
    }

    fn set_asking(&self, asking: Asking) {
        self.asking.store(asking as u8, Ordering::Relaxed);
    }

    /// hyper has refused a request's head, and has answered it. The head does not count as a request.
    pub(super) fn head_refused(&self) {
        self.reading_head.store(false, Ordering::Relaxed);
        self.set_goes_on(false);
        self.set_end(End::Refused);
    }

    /// Like [`Conn::head_refused`], but the service has refused the head. `body`: the length of the body that would
    /// follow.
    pub(super) fn request_refused(&self, body: BodyLength) {
        self.head_refused();
        self.set_body_length(body);
    }

    /// The head that hyper gets has bytes in its target that hyper will not show.
    pub(super) fn target_is_foreign(&self) {
        self.foreign_target.store(true, Ordering::Relaxed);
    }

    /// Whether the target of the head that hyper has got is incomplete, compared with what the client has sent, or has
    /// bytes in it that no target may have.
    pub(super) fn is_target_foreign(&self) -> bool {
        self.foreign_target.load(Ordering::Relaxed)
    }

    /// Whether the head of the last response has not said that the connection ends.
    pub(super) fn goes_on(&self) -> bool {
        self.goes_on.load(Ordering::Relaxed)
    }

    pub(super) fn set_goes_on(&self, goes_on: bool) {
        self.goes_on.store(goes_on, Ordering::Relaxed);
    }

    /// How many requests have come.
    pub(super) fn requests(&self) -> u64 {
        self.ledger.requests.get()
    }

    /// Whether the answer to the last request must not wait for the next answer. hyper may never come to the next
    /// request while it holds chunks that nobody reads. And hyper does not flush before it gives the connection away.
    pub(super) fn is_answered_alone(&self) -> bool {
        self.answered_alone.load(Ordering::Relaxed)
    }

    /// hyper has the whole response.
    pub(super) fn response_written(&self) {
        self.in_service.move_to(&self.unflushed);
    }

    /// The service has failed after the response had begun: hyper will cut the response. After a kill, the service was
    /// asked to end like this. Behind half a request, there may be no other way.
    pub(super) fn response_failed(&self) {
        if self.is_killed() {
            self.in_service.move_to(&self.ledger.killed);
        } else if self.body_fault().is_some() {
            self.in_service.move_to(&self.ledger.gone);
            self.undelivered.store(true, Ordering::Relaxed);
        } else {
            self.in_service.move_to(&self.ledger.failed);
            self.shared.events.sum("handler.error", 1.0);
        }
    }

    /// The body of the last request will not come to its end.
    pub(crate) fn body_failed(&self, fault: BodyFault) {
        self.body_fault.store(fault as u8, Ordering::Relaxed);
    }

    pub(crate) fn body_fault(&self) -> Option<BodyFault> {
        match self.body_fault.load(Ordering::Relaxed) {
            0 => None,
            1 => Some(BodyFault::Malformed),
            _ => Some(BodyFault::CutShort),
        }
    }

    /// The client has left the last request half-way, and is answered only in case that it still reads. The request
    /// counts as gone, not as served.
    pub(crate) fn gave_up(&self) {
        self.given_up.add(1);
    }

    /// Nothing that is under way on the connection will be finished, and that is not the client's doing.
    pub(super) fn requests_failed(&self) {
        let column = if self.is_killed() {
            &self.ledger.killed
        } else {
            &self.ledger.failed
        };
        self.in_service.move_to(column);
        self.unflushed.move_to(column);
        self.cut();
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.shared.phases.get().drains()
    }

    pub(super) fn is_killed(&self) -> bool {
        self.shared.phases.get().cuts()
    }

    /// The number of responses that the kernel does not have completely.
    pub(super) fn unflushed(&self) -> u64 {
        self.unflushed.get()
    }

    /// The kernel now has the first `count` unflushed responses completely. Returns how many requests were served by
    /// that.
    pub(super) fn responses_flushed(&self, count: u64) -> u64 {
        let flushed = count.min(self.unflushed.get());
        if flushed == 0 {
            return 0;
        }
        self.unflushed.lower(flushed);
        // The refused requests are the last ones: after a kill, no other request comes.
        let behind = self.in_service.get() + self.unflushed.get();
        let killed = self.refused.get().saturating_sub(behind).min(flushed);
        if killed > 0 {
            self.refused.sub(killed);
            self.ledger.killed.raise(killed);
        }
        // No other request comes behind half a request, either.
        let gone = self.given_up.get().saturating_sub(behind);
        let gone = gone.min(flushed - killed);
        if gone > 0 {
            self.given_up.sub(gone);
            self.ledger.gone.raise(gone);
            self.undelivered.store(true, Ordering::Relaxed);
        }
        self.ledger.served.raise(flushed - killed - gone);
        let is_idle = behind == 0 && !self.is_reading_head();
        if is_idle && self.state() == ConnState::Active {
            self.set_state(ConnState::Idle);
        }
        flushed - killed - gone
    }

    pub(super) fn is_new(&self) -> bool {
        self.state() == ConnState::New
    }

    pub(super) fn is_between_requests(&self) -> bool {
        matches!(self.state(), ConnState::New | ConnState::Idle)
    }

    pub(super) fn is_reading_head(&self) -> bool {
        self.reading_head.load(Ordering::Relaxed)
    }

    /// Whether nothing is under way, not even the rest of a request that has been answered. hyper then holds nothing,
    /// except perhaps the last piece of a body.
    pub(super) fn is_at_rest(&self) -> bool {
        self.is_between_requests() && self.has_read_body()
    }

    /// Whether the connection can do without hyper: it is at rest, and hyper has given all of the last request to the
    /// handler, which may read on after its answer.
    pub(super) fn is_idle(&self) -> bool {
        self.is_at_rest() && self.is_waiting_for_bytes()
    }

    pub(super) fn is_waiting_for_bytes(&self) -> bool {
        self.waiting_for_bytes.load(Ordering::Relaxed)
    }

    /// hyper has read. Either it has got bytes, or it has to wait for them.
    pub(super) fn has_read(&self, waits: bool) {
        self.waiting_for_bytes.store(waits, Ordering::Relaxed);
        if !waits {
            self.reads.raise(1);
        }
    }

    /// How often hyper has got bytes.
    pub(super) fn reads(&self) -> u64 {
        self.reads.get()
    }

    /// Whether hyper has got all of the last request, and has given away all of its body, except perhaps the last
    /// piece.
    pub(super) fn has_read_body(&self) -> bool {
        self.body_length() == BodyLength::Known(0)
    }

    /// What is left of the last request's body.
    pub(super) fn body_length(&self) -> BodyLength {
        match self.body_left.load(Ordering::Relaxed) {
            UNKNOWN => BodyLength::Chunked,
            left => BodyLength::Known(left),
        }
    }

    fn set_body_length(&self, length: BodyLength) {
        self.set_body_left(match length {
            BodyLength::Known(length) => Some(length),
            BodyLength::Chunked => None,
        });
    }

    /// `None`: only the end of the body will tell.
    pub(super) fn set_body_left(&self, left: Option<u64>) {
        self.body_left
            .store(left.unwrap_or(UNKNOWN), Ordering::Relaxed);
    }

    /// `count` bytes have been read that hyper has not got.
    pub(super) fn set_ahead(&self, count: usize, is_request: bool) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.ahead.store(count, Ordering::Relaxed);
        self.ahead_is_request.store(is_request, Ordering::Relaxed);
    }

    /// Whether a byte of another request has reached this host, behind the request that is being answered. If that
    /// request has not been read to its end, and does not say where its end is, this cannot be known.
    pub(super) fn has_request_behind(&self) -> bool {
        match self.body_length() {
            BodyLength::Chunked => false,
            BodyLength::Known(0) => {
                self.ahead_is_request.load(Ordering::Relaxed) || self.has_unread()
            }
            BodyLength::Known(left) => {
                let ahead = self.ahead.load(Ordering::Relaxed);
                let unread = self.number.with(|fd| sys::with_fd(fd, sys::unread));
                u64::from(ahead) + u64::from(unread.unwrap_or(0)) > left
            }
        }
    }

    /// Whether the kernel has an unread byte of a request.
    pub(super) fn has_unread(&self) -> bool {
        let mut bytes = [0; 64];
        // The peek fails if there is nothing to read.
        let mut peeked =
            |fd| sys::with_fd(fd, |fd| sys::peek(fd, &mut bytes).is_ok_and(is_request));
        self.number.with(&mut peeked).unwrap_or(false)
    }

    pub(super) fn upgrade_agreed(&self) {
        self.upgraded.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_upgraded(&self) -> bool {
        self.upgraded.load(Ordering::Relaxed)
    }

    pub(super) fn response_ends_with_connection(&self) {
        self.close_delimited.store(true, Ordering::Relaxed);
    }

    /// A kill has answered a request with 503.
    pub(super) fn is_refused(&self) -> bool {
        self.refused.get() > 0
    }

    pub(super) fn is_waiting_for_handler(&self) -> bool {
        self.in_service.get() > 0
    }

    /// We close the connection between two requests.
    pub(super) fn closed_idle(&self) {
        self.set_end(End::Idle);
    }

    /// The stop closes the connection after the response under way, which says so.
    pub(super) fn close_announced(&self) {
        self.set_end(End::Announced);
    }

    /// Whether the last response has told the client that the connection ends.
    pub(super) fn is_close_announced(&self) -> bool {
        matches!(self.end(), End::Announced | End::Refused)
    }

    /// A request has come after we had closed the connection.
    pub(super) fn raced(&self) {
        let is_ours = match self.end() {
            End::Idle | End::Announced => true,
            End::Closed => self.is_stopping(),
            End::Raced | End::TimedOut | End::Refused => false,
        };
        if is_ours {
            self.set_end(End::Raced);
            let stops = self.shared.phases.get().announces_close();
            let key = if stops { "drain.race" } else { "idle.race" };
            self.shared.events.sum(key, 1.0);
        }
    }

    /// The head of a request has not come in time.
    pub(super) fn timed_out(&self) {
        self.set_end(End::TimedOut);
    }

    fn end(&self) -> End {
        End::from_u8(self.end.load(Ordering::Relaxed))
    }

    fn set_end(&self, end: End) {
        self.end.store(end as u8, Ordering::Relaxed);
    }

    /// The last `responses` responses, and the last `bytes` bytes, had not been acknowledged when the connection ended
    /// during a stop.
    pub(super) fn unacknowledged(&self, responses: u64, bytes: u64) {
        self.shared.ends.bytes_unacked.add(bytes);
        let ledger = &self.ledger;
        let lost = if self.is_killed() {
            &ledger.killed
        } else {
            &ledger.gone
        };
        ledger.served.lower(responses);
        lost.raise(responses);
        self.undelivered.fetch_or(responses > 0, Ordering::Relaxed);
    }

    /// Nothing is left of the connection but the socket.
    pub(super) fn over(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    /// hyper is done, but the socket is still open: the connection was upgraded, and somebody else has it now.
    pub(super) fn hijacked_if_open(&self) {
        // A thread that closes the socket meanwhile waits until the connection is marked.
        self.number.with(|_| {
            self.set_state(ConnState::Hijacked);
            self.shared.events.sum("conn.closed", 1.0);
        });
    }

    /// A kill: a connection in a request is closed by a reset, so that a cut response cannot look complete.
    pub(super) fn cut(&self) {
        if self.is_between_requests() {
            self.closed_idle();
        } else {
            self.is_to_be_reset.store(true, Ordering::Relaxed);
        }
    }

    /// An error has ended the connection, and a FIN would make the response look complete, or hide that a kill caused
    /// the error.
    pub(super) fn is_cut(&self) -> bool {
        self.close_delimited.load(Ordering::Relaxed) || self.is_killed()
    }

    pub(super) fn unacked_at_reset(&self) -> Option<u32> {
        self.unacked_at_reset.get().copied()
    }

    /// The connection is closed for us. When the kill timeout has passed, this happens to every connection that is
    /// still open, though its thread may never come to it.
    fn closed(&self) {
        self.number.forget(|fd| self.close_books(Some(fd)));
    }

    /// Counts the connection and its requests. If the socket is not closed yet, also ends the connection, even if
    /// somebody has a copy of the descriptor.
    fn close_books(&self, fd: Option<RawFd>) {
        let (killed, ends) = (self.is_killed(), &self.shared.ends);
        // The host's code has panicked while the connection was driven; the client has not left.
        let failed = !killed && thread::panicking();
        let mut lost = self.settle(killed, failed);
        let was_hijacked = self.state() == ConnState::Hijacked;
        // The connection is ended here, because closing the socket does not end it while a forked child holds a copy of
        // the descriptor.
        let is_reset = self.is_to_be_reset.load(Ordering::Relaxed) || (failed && lost > 0);
        let is_over = self.is_over.load(Ordering::Relaxed);
        if let Some(fd) = fd.filter(|_| is_reset || !is_over) {
            sys::with_fd(fd, |fd| {
                if is_reset {
                    self.link_kind().reset(fd);
                } else {
                    let _ = SockRef::from(&fd).shutdown(Shutdown::Both);
                }
            });
        }
        if failed {
            lost = 0;
        }
        self.set_state(ConnState::Closed);
        if !was_hijacked {
            self.shared.events.sum("conn.closed", 1.0);
        }
        let is_cut = lost > 0 || self.is_reading_head() || self.undelivered.load(Ordering::Relaxed);
        let count = match self.end() {
            End::TimedOut => &ends.timed_out,
            _ if killed && was_hijacked => {
                ends.hijacked_killed.add(1);
                &ends.killed
            }
            _ if killed && is_cut => &ends.killed,
            _ if is_cut => &ends.gone,
            End::Closed | End::Announced | End::Refused => &ends.closed,
            End::Idle => &ends.idle,
            End::Raced => &ends.raced,
        };
        count.add(1);
    }

    /// Adds the counts to the server's counts, for good. Returns how many requests were lost: those that are in no
    /// column yet.
    fn settle(&self, killed: bool, failed: bool) -> u64 {
        // By the registry, so that no report counts the connection twice.
        self.shared.registry.settle(|| {
            let mut counts = self.ledger.counts();
            // If one byte of a request has come, it counts as a request.
            counts.requests += u64::from(killed && self.is_reading_head());
            let lost = counts.open();
            let column = match (killed, failed) {
                (true, _) => &mut counts.killed,
                (_, true) => &mut counts.failed,
                _ => &mut counts.gone,
            };
            *column += lost;
            self.shared.ledger.add(&counts);
            self.settled.store(true, Ordering::Relaxed);
            lost
        })
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        self.shared.registry.leave(self.info.id);
    }
}

impl Member for Conn {
    fn wake(&self) {
        self.driver().wake();
    }

    fn reset(&self) {
        self.number.with(|fd| {
            sys::with_fd(fd, |fd| {
                let kind = self.link_kind();
                self.unacked_at_reset.get_or_init(|| kind.unacked(fd));
                kind.reset(fd);
            });
        });
    }

    fn abandon(&self) {
        self.closed();
    }

    fn held(&self) -> u64 {
        let let_go = self.let_go.get();
        self.ledger.requests.get() - let_go
    }

    fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Relaxed)
    }

    fn add_to(&self, report: &mut Report) {
        self.ledger.add_to(report);
        let count = match self.state() {
            ConnState::New => &mut report.conns_new,
            ConnState::Active => &mut report.conns_active,
            ConnState::Idle => &mut report.conns_idle,
            ConnState::Hijacked => &mut report.conns_hijacked,
            ConnState::Closed => return,
        };
        *count += 1;
        report.conns_open += 1;
    }
}

impl Wake for Conn {
    fn wake(self: Arc<Self>) {
        self.driver().wake();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.driver().wake();
    }
}

/// A connection's socket. Another thread that resets it knows only its number. So, before the socket is closed, the
/// books of the connection are closed, and the number is forgotten.
#[derive(Debug)]
pub(crate) struct Socket<S> {
    // The fields are dropped in this order.
    open: Open,
    pub(super) stream: S,
}

/// A connection that no runtime drives yet.
pub(crate) type Accepted = Socket<Stream>;

impl<S> Socket<S> {
    pub(super) fn conn(&self) -> &Arc<Conn> {
        &self.open.0
    }

    /// Converts the stream to another type. If that fails, the stream is closed.
    pub(super) fn convert<T>(self, to: impl FnOnce(S) -> io::Result<T>) -> io::Result<Socket<T>> {
        let Self { open, stream } = self;
        let conn = &open.0;
        match conn.number.forget_if_err(|| to(stream)) {
            Ok(stream) => Ok(Socket { open, stream }),
            Err(error) => {
                conn.close_books(None);
                Err(error)
            }
        }
    }
}

/// Stands for an open socket. It is dropped just before the socket is closed.
#[derive(Debug)]
struct Open(Arc<Conn>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.closed();
    }
}

/// One request, from its head to the end of its response and of its handler. While this value lives, a stop waits for
/// the request.
#[derive(Debug)]
pub(crate) struct Inflight {
    conn: Arc<Conn>,
}

impl Inflight {
    pub(crate) fn conn(&self) -> &Arc<Conn> {
        &self.conn
    }

    /// The answer is the 503 of a kill. The request counts as killed, not as served.
    pub(crate) fn refused(&self) {
        self.conn.refused.add(1);
    }
}

impl Drop for Inflight {
    fn drop(&mut self) {
        self.conn.let_go.add(1);
    }
}
