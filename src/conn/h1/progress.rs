//! How far HTTP/1 has come on a connection, in the request that is read and in the one that is answered.
//!
//! The transport and the service tell it, and read it; both run in the connection's task. Others only read.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::task::Poll;

use crate::conn::patience::Waits;
use crate::ledger::Count;

use super::framing::BodyLength;

/// Stands for the length of a body whose head does not say the length.
const UNKNOWN: u64 = u64::MAX;

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
pub(in crate::conn) enum BodyFault {
    /// The client has broken the protocol.
    Malformed = 1,
    /// The client has sent no more.
    CutShort = 2,
    /// The client has been waited for too long.
    TooSlow = 3,
    /// The client has sent more than it may.
    TooLarge = 4,
}

/// See the module.
#[derive(Debug, Default)]
pub(in crate::conn) struct Progress {
    /// Bytes of a request have come, but not yet its whole head.
    reading_head: AtomicBool,
    /// See [`Progress::is_target_foreign`].
    foreign_target: AtomicBool,
    /// hyper has used up all the bytes that it got, and waits for more.
    waiting_for_bytes: AtomicBool,
    /// How many bytes hyper has got.
    received: Count,
    /// How often somebody has read a piece of a body. Any thread counts.
    pieces: Count,
    /// Somebody waits for a piece of a body, on any thread.
    body_waits: Waits,
    /// The kernel takes no more bytes for the client now.
    write_waits: Waits,
    write_blocked: AtomicBool,
    /// How many bytes of a body hyper has been given, since it had written all it had.
    given: AtomicU32,
    /// The body waits until hyper has written them.
    gives_later: AtomicBool,
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
    /// See [`Progress::is_answered_alone`].
    answered_alone: AtomicBool,
    /// Whether the client is to be asked for the last request's body: an [`Asking`].
    asking: AtomicU8,
    /// The head of the last response does not say that the connection ends.
    goes_on: AtomicBool,
    /// The response under way ends only with the connection. A FIN in its middle would make it look complete.
    close_delimited: AtomicBool,
    /// The connection has to end before long: TLS can encrypt no more on it, or a body was too large.
    worn: AtomicBool,
}

impl Progress {
    /// The first byte of a request goes to hyper.
    pub(in crate::conn) fn head_begins(&self) {
        self.reading_head.store(true, Ordering::Relaxed);
    }

    /// No more of a head is to come: it is complete, or was refused.
    pub(in crate::conn) fn head_ends(&self) {
        self.reading_head.store(false, Ordering::Relaxed);
        self.set_goes_on(false);
    }

    /// hyper has read a request's head and gives it to the service. `is_upgrade`: the request asks for an upgrade.
    /// `waits`: the client waits for a 100 before it sends the body.
    pub(in crate::conn) fn request_begins(&self, body: BodyLength, is_upgrade: bool, waits: bool) {
        self.head_ends();
        self.body_waits.end();
        self.set_asking(if waits {
            Asking::Unknown
        } else {
            Asking::Settled
        });
        let is_alone = is_upgrade || body == BodyLength::Chunked;
        self.answered_alone.store(is_alone, Ordering::Relaxed);
        self.set_body_length(body);
    }

    /// How many bytes have been read from the kernel and not yet given to hyper.
    pub(in crate::conn) fn ahead(&self) -> u32 {
        self.ahead.load(Ordering::Relaxed)
    }

    /// If the last request is complete: whether the bytes ahead are more than empty lines.
    pub(in crate::conn) fn is_request_ahead(&self) -> bool {
        self.ahead_is_request.load(Ordering::Relaxed)
    }

    /// Whether the response under way ends only with the connection.
    pub(in crate::conn) fn is_close_delimited(&self) -> bool {
        self.close_delimited.load(Ordering::Relaxed)
    }

    /// hyper reads the body. Either somebody has asked for it, and hyper asks the client by the 100; or nobody will
    /// ask.
    pub(in crate::conn) fn body_is_read(&self) {
        self.set_asking(Asking::Settled);
    }

    /// Called before an answer begins. Says whether we must ask the client for the body first. Somebody still has the
    /// body, and may read it when the client no longer waits for the 100: hyper asks only before the answer begins.
    pub(in crate::conn) fn must_ask(&self) -> bool {
        let must = self.asking() != Asking::Settled;
        if must {
            self.set_asking(Asking::Owed);
        }
        must
    }

    /// Whether a 100 is to be sent now.
    pub(in crate::conn) fn asks_now(&self) -> bool {
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

    /// The head that hyper gets has bytes in its target that hyper will not show.
    pub(in crate::conn) fn target_is_foreign(&self) {
        self.foreign_target.store(true, Ordering::Relaxed);
    }

    /// Whether the target of the head that hyper has got is incomplete, compared with what the client has sent, or has
    /// bytes in it that no target may have.
    pub(in crate::conn) fn is_target_foreign(&self) -> bool {
        self.foreign_target.load(Ordering::Relaxed)
    }

    /// Whether the head of the last response has not said that the connection ends.
    pub(in crate::conn) fn goes_on(&self) -> bool {
        self.goes_on.load(Ordering::Relaxed)
    }

    pub(in crate::conn) fn set_goes_on(&self, goes_on: bool) {
        self.goes_on.store(goes_on, Ordering::Relaxed);
    }

    /// Whether the answer to the last request must not wait for the next answer. hyper may never come to the next
    /// request while it holds chunks that nobody reads. And hyper does not flush before it gives the connection away.
    pub(in crate::conn) fn is_answered_alone(&self) -> bool {
        self.answered_alone.load(Ordering::Relaxed)
    }

    /// The body of the last request will not come to its end.
    pub(in crate::conn) fn body_failed(&self, fault: BodyFault) {
        self.body_fault.store(fault as u8, Ordering::Relaxed);
    }

    /// Whether the client was waited for too long.
    pub(in crate::conn) fn is_too_slow(&self) -> bool {
        self.body_fault.load(Ordering::Relaxed) == BodyFault::TooSlow as u8
    }

    pub(in crate::conn) fn body_fault(&self) -> Option<BodyFault> {
        match self.body_fault.load(Ordering::Relaxed) {
            0 => None,
            1 => Some(BodyFault::Malformed),
            2 => Some(BodyFault::CutShort),
            3 => Some(BodyFault::TooSlow),
            _ => Some(BodyFault::TooLarge),
        }
    }

    pub(in crate::conn) fn is_reading_head(&self) -> bool {
        self.reading_head.load(Ordering::Relaxed)
    }

    pub(in crate::conn) fn is_waiting_for_bytes(&self) -> bool {
        self.waiting_for_bytes.load(Ordering::Relaxed)
    }

    /// hyper has read. Either it has got so many bytes, or it has to wait for them.
    pub(in crate::conn) fn has_read(&self, bytes: Poll<usize>) {
        self.waiting_for_bytes
            .store(bytes.is_pending(), Ordering::Relaxed);
        if let Poll::Ready(bytes) = bytes {
            self.received.raise(bytes as u64);
        }
    }

    /// How many bytes hyper has got.
    pub(in crate::conn) fn received(&self) -> u64 {
        self.received.get()
    }

    /// Somebody waits for a piece of a body. Returns whether the task must be told.
    pub(in crate::conn) fn piece_is_wanted(&self) -> bool {
        self.body_waits.begin()
    }

    pub(in crate::conn) fn body_waits(&self) -> &Waits {
        &self.body_waits
    }

    /// Somebody has read a piece of a body.
    pub(in crate::conn) fn piece_is_read(&self) {
        self.body_waits.end();
        self.pieces.add(1);
    }

    /// A number that grows when hyper gets bytes, and when somebody reads a piece of a body.
    pub(in crate::conn) fn pieces(&self) -> u64 {
        self.received.get() + self.pieces.get()
    }

    /// Whether the body of the last request goes on, and waits for the client.
    pub(in crate::conn) fn is_body_missing(&self) -> bool {
        self.is_waiting_for_bytes() && !self.has_read_body() && self.body_fault().is_none()
    }

    /// A write has taken bytes, or has to wait.
    #[inline]
    pub(in crate::conn) fn has_written(&self, waits: bool) {
        if waits || self.is_write_blocked() {
            self.is_stalled_by_client(waits);
        }
    }

    #[cold]
    fn is_stalled_by_client(&self, waits: bool) {
        if waits {
            self.write_waits.begin();
        } else {
            self.write_waits.end();
        }
        self.write_blocked.store(waits, Ordering::Relaxed);
    }

    /// hyper has been given bytes of a body.
    pub(in crate::conn) fn gives(&self, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let given = self.given.load(Ordering::Relaxed);
        self.given
            .store(given.saturating_add(bytes), Ordering::Relaxed);
    }

    /// Whether hyper may be given more. If not, [`Progress::has_given_all`] will tell.
    pub(in crate::conn) fn may_give(&self, most: u32) -> bool {
        let may = self.given.load(Ordering::Relaxed) < most;
        if !may {
            self.gives_later.store(true, Ordering::Relaxed);
        }
        may
    }

    /// hyper has written everything. Returns whether a body waits for that.
    pub(in crate::conn) fn has_given_all(&self) -> bool {
        if self.given.load(Ordering::Relaxed) == 0 {
            return false;
        }
        self.given.store(0, Ordering::Relaxed);
        self.gives_later.swap(false, Ordering::Relaxed)
    }

    pub(in crate::conn) fn write_waits(&self) -> &Waits {
        &self.write_waits
    }

    /// Whether the answer waits for the client to take what was sent before.
    pub(in crate::conn) fn is_write_blocked(&self) -> bool {
        self.write_blocked.load(Ordering::Relaxed)
    }

    /// Whether hyper has got all of the last request, and has given away all of its body, except perhaps the last
    /// piece.
    pub(in crate::conn) fn has_read_body(&self) -> bool {
        self.body_length() == BodyLength::Known(0)
    }

    /// What is left of the last request's body.
    pub(in crate::conn) fn body_length(&self) -> BodyLength {
        match self.body_left.load(Ordering::Relaxed) {
            UNKNOWN => BodyLength::Chunked,
            left => BodyLength::Known(left),
        }
    }

    pub(in crate::conn) fn set_body_length(&self, length: BodyLength) {
        self.set_body_left(match length {
            BodyLength::Known(length) => Some(length),
            BodyLength::Chunked => None,
        });
    }

    /// `None`: only the end of the body will tell.
    pub(in crate::conn) fn set_body_left(&self, left: Option<u64>) {
        self.body_left
            .store(left.unwrap_or(UNKNOWN), Ordering::Relaxed);
    }

    /// `count` bytes have been read that hyper has not got.
    pub(in crate::conn) fn set_ahead(&self, count: usize, is_request: bool) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.ahead.store(count, Ordering::Relaxed);
        self.ahead_is_request.store(is_request, Ordering::Relaxed);
    }

    pub(in crate::conn) fn wears_out(&self) {
        self.worn.store(true, Ordering::Relaxed);
    }

    /// Whether the connection has to end with the next answer.
    pub(in crate::conn) fn is_worn(&self) -> bool {
        self.worn.load(Ordering::Relaxed)
    }

    pub(in crate::conn) fn upgrade_agreed(&self) {
        self.upgraded.store(true, Ordering::Relaxed);
    }

    pub(in crate::conn) fn is_upgraded(&self) -> bool {
        self.upgraded.load(Ordering::Relaxed)
    }

    pub(in crate::conn) fn response_ends_with_connection(&self) {
        self.close_delimited.store(true, Ordering::Relaxed);
    }
}
