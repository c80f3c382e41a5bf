//! What the server knows about a connection and about the requests on it.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::Wake;
use std::thread;

use http::request::Parts;
use once_cell::sync::OnceCell;
use socket2::SockRef;

use crate::conn_info::{ConnInfo, ConnState};
use crate::events::LogLevel;
use crate::holdings;
use crate::ledger::{Count, Ledger};
use crate::limits::Limit;
use crate::net::Connected;
use crate::net::plain::{self, Stream};
use crate::net::proxy::Ends;
use crate::record::{Recording, RequestEnd};
use crate::registry::Member;
use crate::report::Report;
use crate::shared::Shared;
use crate::sys;
#[cfg(feature = "tls")]
use crate::tls::{self, TlsInfo};

use super::driver::Driver;
use super::h1::{BodyFault, BodyLength, Progress, is_request};
use super::handling::{Handled, Handling};
use super::listening::{Listener, Listening};
use super::number::Number;
use super::recordings::{Opened, Recordings};

/// How a connection ends, if nothing on it is lost.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
enum Ending {
    /// In the normal way.
    Closed = 0,
    /// The stop has closed it after a response that announced the end.
    Announced = 1,
    /// The stop, or the idle timeout, has closed the connection while it was new or idle.
    Idle = 2,
    /// We have closed the connection in one of these ways, and a request has come since.
    Raced = 3,
    /// The client was too slow: with a head, with a body, or in taking an answer.
    TimedOut = 4,
    /// The bytes that came are no request. The last response has said so, and that we close.
    Refused = 5,
    /// The handshake of TLS has failed.
    Unshaken = 6,
    /// The handshake of TLS did not come to its end in time.
    HandshakeTimedOut = 7,
    /// A handler had taken the connection over, and has let go of it.
    LetGo = 8,
}

impl Ending {
    fn from_u8(value: u8) -> Self {
        match value {
            0 => Self::Closed,
            1 => Self::Announced,
            2 => Self::Idle,
            3 => Self::Raced,
            4 => Self::TimedOut,
            5 => Self::Refused,
            6 => Self::Unshaken,
            7 => Self::HandshakeTimedOut,
            _ => Self::LetGo,
        }
    }
}

/// One connection. The task that drives it writes the counts; others only read them.
#[derive(Debug)]
pub(crate) struct Conn {
    /// Shared with the requests that C keeps. Otherwise each request would get a copy of it.
    info: Arc<ConnInfo>,
    /// The same, once a proxy has said whose connection this is.
    proxied: OnceCell<Arc<ConnInfo>>,
    shared: Arc<Shared>,
    /// The other end is in this library: there is neither TLS nor the PROXY protocol.
    is_ours: bool,
    state: AtomicU8,
    /// The socket's number, by which another thread can reset the socket.
    number: Number,
    driver: Driver,
    /// How far HTTP/1 has come.
    pub(super) h1: Progress,
    listening: Listening,
    ledger: Ledger,
    /// `None` if nobody wants to be told of each request.
    recordings: Option<Box<Recordings>>,
    /// `None` if no request is ever overdue.
    handled: Option<Box<Handled>>,
    /// The counts that the ledger had when the connection was closed have been added to the server's counts. A handler
    /// may have blocked a thread, which then comes to the connection later; what that thread adds is ignored. See
    /// [`Register::settle`].
    settled: AtomicBool,
    /// Requests that the service has, and whose response hyper does not have completely.
    in_service: Count,
    /// Responses that hyper has completely, and the kernel does not.
    unflushed: Count,
    /// Those of them that will not count as served. They are the last: no other request comes behind half a request, or
    /// after a kill.
    unserved: Unserved,
    /// A kill has answered a request with 503. Any thread may say so.
    has_refused: AtomicBool,
    /// Requests that nothing holds any more. Any thread counts.
    let_go: Count,
    /// How the connection ends: an [`Ending`].
    ending: AtomicU8,
    /// The connection must be closed by a reset. Without the reset, a cut response would look complete.
    is_to_be_reset: AtomicBool,
    /// Both sides have closed the connection.
    is_over: AtomicBool,
    /// The connection is counted among those of its client.
    is_counted: AtomicBool,
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
            is_ours,
        }: Connected,
    ) -> Accepted {
        let registry = &shared.registry;
        let state = if !is_ours && (shared.has_tls() || shared.proxies.contains(&peer)) {
            ConnState::Handshaking
        } else {
            ConnState::New
        };
        let conn = Arc::new(Self {
            info: Arc::new(ConnInfo {
                id: registry.next_id(),
                peer,
                local,
                credentials: stream.credentials(),
                proxy: None,
                forwarding: shared.forwarding.clone(),
                #[cfg(feature = "tls")]
                tls: OnceCell::new(),
            }),
            proxied: OnceCell::new(),
            shared: Arc::clone(shared),
            is_ours,
            state: AtomicU8::new(state as u8),
            number: Number::new(stream.as_raw_fd()),
            driver: Driver::default(),
            h1: Progress::default(),
            listening: Listening::default(),
            ledger: Ledger::default(),
            recordings: shared.events.wants_done().then(Box::default),
            handled: shared.options.limits_handlers().then(Box::default),
            in_service: Count::default(),
            unflushed: Count::default(),
            unserved: Unserved::default(),
            has_refused: AtomicBool::new(false),
            let_go: Count::default(),
            settled: AtomicBool::new(false),
            ending: AtomicU8::new(Ending::Closed as u8),
            is_to_be_reset: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            is_counted: AtomicBool::new(false),
            undelivered: AtomicBool::new(false),
            unacked_at_reset: OnceCell::new(),
        });
        registry.enter(conn.info.id, Arc::clone(&conn));
        if shared.options.max_conns.is_some() {
            shared.limits.conns.enter();
        }
        holdings::changes(None, state);
        conn.tell(state);
        Socket {
            open: Open(conn),
            stream,
        }
    }

    /// Whether its client may have another connection: this one. If not, the connection is to be refused.
    pub(super) fn may_enter(&self) -> bool {
        let Some(most) = self.shared.options.max_client_conns else {
            return true;
        };
        let enters = self
            .shared
            .limits
            .clients
            .enter(&self.info().peer, most.get());
        self.is_counted.store(enters, Ordering::Relaxed);
        if !enters {
            self.limit_bites(Limit::ClientConns);
            self.set_ending(Ending::Refused);
        }
        enters
    }

    pub(crate) fn info(&self) -> &Arc<ConnInfo> {
        self.proxied.get().unwrap_or(&self.info)
    }

    /// Whether the connection must begin with a header of the PROXY protocol.
    pub(super) fn begins_with_proxy(&self) -> bool {
        !self.is_ours && self.shared.proxies.contains(&self.info.peer)
    }

    /// How the connection speaks TLS, if it does.
    #[cfg(feature = "tls")]
    pub(super) fn tls(&self) -> Option<&tls::Context> {
        self.shared.tls.as_ref().filter(|_| !self.is_ours)
    }

    /// The header has come. `ends`: what it says.
    pub(super) fn proxied(&self, ends: Option<Ends>) {
        if let Some(Ends { client, server }) = ends {
            let _ = self.proxied.set(Arc::new(ConnInfo {
                peer: client.into(),
                local: server.into(),
                proxy: Some(Arc::new(self.info.peer.clone())),
                ..ConnInfo::clone(&self.info)
            }));
        }
        if !self.shared.has_tls() {
            self.set_state(ConnState::New);
        }
    }

    /// A header was to come, and has not.
    pub(super) fn proxy_refused(&self, why: &str) {
        self.set_ending(Ending::Refused);
        let shared = &self.shared;
        shared.events.sum("proxy.error", 1.0);
        let (now, level) = (shared.clock.now(), LogLevel::Warning);
        let text = format_args!("{why}, from {}", self.info.peer);
        let what = "no header of the PROXY protocol";
        let throttle = &shared.proxy_failures;
        shared.events.log_rarely(throttle, now, level, what, &text);
    }

    fn link_kind(&self) -> plain::Kind {
        plain::Kind::of(&self.info.local)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The driver is told of every new phase and, while the connection is parked, of all other events.
    pub(super) fn driver(&self) -> &Driver {
        &self.driver
    }

    pub(super) fn listening(&self) -> &Listening {
        &self.listening
    }

    /// From now on, and until [`Conn::ignore`], the listener is told of the drain.
    pub(crate) fn listen(&self, listener: Arc<dyn Listener>) {
        self.listening.set(listener);
        if self.is_stopping() {
            // The task does not look at this phase again by itself.
            self.driver().wake();
        }
    }

    pub(crate) fn ignore<L: Listener>(&self, listener: &L) {
        self.listening.clear(std::ptr::from_ref(listener).cast());
        if self.state() == ConnState::Hijacked {
            // The task has nobody to tell anything any more.
            self.driver().wake();
        }
    }

    /// Lets the connection's task call its listener. False if the connection has ended, and has no task any more.
    #[must_use]
    pub(crate) fn call_soon(&self) -> bool {
        let will_call = self.listening.ask_for_call();
        if will_call {
            self.driver().wake();
        }
        will_call
    }

    fn state(&self) -> ConnState {
        ConnState::from_u8(self.state.load(Ordering::Relaxed))
    }

    #[inline]
    fn set_state(&self, state: ConnState) {
        holdings::changes(Some(self.state()), state);
        self.state.store(state as u8, Ordering::Relaxed);
        self.tell(state);
    }

    #[inline]
    fn tell(&self, state: ConnState) {
        self.shared.events.conn(self.info(), state);
    }

    /// The handshake of TLS is done: HTTP can begin.
    #[cfg(feature = "tls")]
    pub(super) fn handshake_done(&self, info: TlsInfo) {
        let _ = self.info().tls.set(Arc::new(info));
        self.set_state(ConnState::New);
    }

    #[cfg(feature = "tls")]
    pub(super) fn handshake_failed(&self) {
        self.set_ending(Ending::Unshaken);
    }

    #[cfg(feature = "tls")]
    pub(super) fn handshake_timed_out(&self) {
        self.set_ending(Ending::HandshakeTimedOut);
    }

    /// The first byte of a request goes to hyper.
    pub(super) fn head_begins(&self) {
        self.h1.head_begins();
        if let Some(mut recordings) = self.recordings() {
            recordings.head_begins();
        }
        // A pipelined request may come before the response to the one before it is flushed.
        if self.is_between_requests() {
            self.set_state(ConnState::Active);
        }
    }

    /// Where the request is that the program has, if it may be overdue.
    pub(super) fn handled(&self) -> Option<&Handled> {
        self.handled.as_deref()
    }

    fn recordings(&self) -> Option<Opened<'_>> {
        let recordings = self.recordings.as_deref();
        recordings.map(|recordings| recordings.open(&self.shared))
    }

    /// Moves counts, and notes that in the records if there are any. For what happens to each request: without records,
    /// nothing of them is in its way.
    #[inline]
    fn count<T>(&self, count: impl FnOnce() -> T, note: impl FnOnce(&mut Opened<'_>, &T)) -> T {
        #[cold]
        #[inline(never)]
        fn noted<T>(
            conn: &Conn,
            count: impl FnOnce() -> T,
            note: impl FnOnce(&mut Opened<'_>, &T),
        ) -> T {
            let mut recordings = conn.recordings();
            let counted = count();
            if let Some(recordings) = &mut recordings {
                note(recordings, &counted);
            }
            counted
        }
        if self.recordings.is_none() {
            return count();
        }
        noted(self, count, note)
    }

    /// hyper has read a request's head and gives it to the service. `is_upgrade`: the request asks for an upgrade.
    /// `waits`: the client waits for a 100 before it sends the body.
    #[allow(clippy::inline_always, reason = "else every request pays for a call")]
    #[inline(always)]
    pub(super) fn request_begins(
        self: &Arc<Self>,
        head: &Parts,
        body: BodyLength,
        is_upgrade: bool,
        waits: bool,
    ) -> Inflight {
        self.h1.request_begins(body, is_upgrade, waits);
        let mut recording = None;
        self.count(
            || {
                self.ledger.requests.raise(1);
                self.in_service.raise(1);
            },
            |recordings, ()| {
                let number = self.ledger.requests.get();
                recording = recordings.request_begins(&self.info, number, head, body);
            },
        );
        Inflight {
            conn: Arc::clone(self),
            followed: self.followed(recording),
            column: AtomicU8::new(Column::Served as u8),
        }
    }

    #[inline]
    fn followed(&self, recording: Option<Arc<Recording>>) -> Option<Box<Followed>> {
        let is_followed = recording.is_some() || self.handled.is_some();
        is_followed.then(|| {
            Box::new(Followed {
                recording,
                handling: OnceCell::new(),
            })
        })
    }

    /// hyper has refused a request's head, and has answered it. The head does not count as a request.
    pub(super) fn head_refused(&self) {
        self.h1.head_ends();
        self.set_ending(Ending::Refused);
    }

    /// Like [`Conn::head_refused`], but the service has refused the head. `body`: the length of the body that would
    /// follow.
    pub(super) fn request_refused(&self, body: BodyLength) {
        self.head_refused();
        self.h1.set_body_length(body);
    }

    /// How many requests have come.
    pub(super) fn requests(&self) -> u64 {
        self.ledger.requests.get()
    }

    /// There is the whole response to a request, which will count in this column.
    #[inline]
    pub(super) fn response_written(&self, column: Column) {
        self.count(
            || {
                self.in_service.move_to(&self.unflushed);
                if let Some(unserved) = self.unserved.of(column) {
                    unserved.raise(1);
                }
            },
            |recordings, ()| {
                recordings.body_left(self.h1.body_length());
                recordings.response_written(column.end());
            },
        );
    }

    /// The service has failed after the response had begun: hyper will cut the response. After a kill, the service was
    /// asked to end like this. Behind half a request, there may be no other way.
    pub(super) fn response_failed(&self) {
        let recordings = self.recordings();
        let end = if self.is_killed() {
            self.in_service.move_to(&self.ledger.killed);
            RequestEnd::Killed
        } else if self.h1.body_fault() == Some(BodyFault::TooSlow) {
            self.in_service.move_to(&self.ledger.timed_out);
            RequestEnd::TimedOut
        } else if self.h1.body_fault().is_some() {
            self.in_service.move_to(&self.ledger.gone);
            self.undelivered.store(true, Ordering::Relaxed);
            RequestEnd::Gone
        } else {
            self.in_service.move_to(&self.ledger.failed);
            self.shared.events.sum("handler.error", 1.0);
            RequestEnd::Failed
        };
        if let Some(mut recordings) = recordings {
            recordings.body_left(self.h1.body_length());
            recordings.response_failed(end);
        }
    }

    /// Nothing that is under way on the connection will be finished, and that is not the client's doing.
    pub(super) fn requests_failed(&self) {
        let recordings = self.recordings();
        let (column, end) = if self.is_killed() {
            (&self.ledger.killed, RequestEnd::Killed)
        } else {
            (&self.ledger.failed, RequestEnd::Failed)
        };
        self.in_service.move_to(column);
        self.unflushed.move_to(column);
        if let Some(mut recordings) = recordings {
            recordings.body_left(self.h1.body_length());
            recordings.requests_failed(end);
        }
        self.cut();
    }

    /// A limit has bitten on this connection.
    #[cold]
    pub(super) fn limit_bites(&self, limit: Limit) {
        let why = format_args!("from {}", self.info().peer);
        self.shared.limit_bites(limit, &why);
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.shared.phases.get().drains()
    }

    pub(crate) fn is_killed(&self) -> bool {
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
        let served = self.count(
            || {
                self.unflushed.lower(flushed);
                let served = flushed - self.unserved_flushed(flushed);
                self.ledger.served.raise(served);
                served
            },
            |recordings, _| recordings.responses_flushed(flushed, self.is_stopping()),
        );
        let is_idle = self.unflushed.get() == 0 && !self.is_waiting_for_handler();
        if is_idle && !self.h1.is_reading_head() && self.state() == ConnState::Active {
            self.set_state(ConnState::Idle);
        }
        served
    }

    /// How many of the responses that were flushed just now do not count as served.
    fn unserved_flushed(&self, flushed: u64) -> u64 {
        let Unserved {
            gone,
            timed_out,
            killed,
        } = &self.unserved;
        let all = gone.get() + timed_out.get() + killed.get();
        if all == 0 {
            return 0;
        }
        let behind = self.unflushed.get();
        let mut left = all.saturating_sub(behind).min(flushed);
        let unserved = left;
        for (waiting, column) in [
            (gone, &self.ledger.gone),
            (timed_out, &self.ledger.timed_out),
            (killed, &self.ledger.killed),
        ] {
            let count = waiting.get().min(left);
            waiting.lower(count);
            column.raise(count);
            left -= count;
        }
        if self.ledger.gone.get() > 0 {
            self.undelivered.store(true, Ordering::Relaxed);
        }
        unserved
    }

    pub(super) fn is_new(&self) -> bool {
        self.state() == ConnState::New
    }

    pub(super) fn is_between_requests(&self) -> bool {
        let state = self.state();
        matches!(
            state,
            ConnState::New | ConnState::Idle | ConnState::Handshaking
        )
    }

    /// Whether nothing is under way, not even the rest of a request that has been answered. hyper then holds nothing,
    /// except perhaps the last piece of a body.
    pub(super) fn is_at_rest(&self) -> bool {
        self.is_between_requests() && self.h1.has_read_body()
    }

    /// Whether the connection can do without hyper: it is at rest, and hyper has given all of the last request to the
    /// handler, which may read on after its answer.
    pub(super) fn is_idle(&self) -> bool {
        self.is_at_rest() && self.h1.is_waiting_for_bytes()
    }

    /// Whether a byte of another request has reached this host, behind the request that is being answered. If that
    /// request has not been read to its end, and does not say where its end is, this cannot be known.
    pub(super) fn has_request_behind(&self) -> bool {
        match self.h1.body_length() {
            BodyLength::Chunked => false,
            BodyLength::Known(0) => self.h1.is_request_ahead() || self.has_unread(),
            BodyLength::Known(left) => {
                let ahead = self.h1.ahead();
                let unread = self.number.with(|fd| sys::with_fd(fd, sys::unread));
                let unread = u64::from(unread.unwrap_or(0));
                u64::from(ahead) + self.shared.at_most_content(unread) > left
            }
        }
    }

    /// Whether the kernel has an unread byte.
    pub(super) fn has_bytes(&self) -> bool {
        let unread = self.number.with(|fd| sys::with_fd(fd, sys::unread));
        unread.is_some_and(|count| count > 0)
    }

    /// Whether the kernel has an unread byte of a request.
    pub(super) fn has_unread(&self) -> bool {
        let mut bytes = [0; 64];
        // The peek fails if there is nothing to read.
        let mut peeked =
            |fd| sys::with_fd(fd, |fd| sys::peek(fd, &mut bytes).is_ok_and(is_request));
        self.number.with(&mut peeked).unwrap_or(false)
    }

    /// A kill has answered a request with 503.
    pub(super) fn is_refused(&self) -> bool {
        self.has_refused.load(Ordering::Relaxed)
    }

    pub(super) fn is_waiting_for_handler(&self) -> bool {
        self.in_service.get() > 0
    }

    /// We close the connection between two requests.
    pub(super) fn closed_idle(&self) {
        self.set_ending(Ending::Idle);
    }

    /// The stop closes the connection after the response under way, which says so.
    pub(super) fn close_announced(&self) {
        self.set_ending(Ending::Announced);
    }

    /// Whether the last response has told the client that the connection ends.
    pub(super) fn is_close_announced(&self) -> bool {
        matches!(self.ending(), Ending::Announced | Ending::Refused)
    }

    /// A request has come after we had closed the connection.
    pub(super) fn raced(&self) {
        let is_ours = match self.ending() {
            Ending::Idle | Ending::Announced => true,
            Ending::Closed => self.is_stopping(),
            Ending::Raced
            | Ending::TimedOut
            | Ending::Refused
            | Ending::Unshaken
            | Ending::HandshakeTimedOut
            | Ending::LetGo => false,
        };
        if is_ours {
            self.set_ending(Ending::Raced);
            let stops = self.shared.phases.get().announces_close();
            let key = if stops { "drain.race" } else { "idle.race" };
            self.shared.events.sum(key, 1.0);
        }
    }

    /// The client was too slow.
    pub(super) fn timed_out(&self) {
        self.set_ending(Ending::TimedOut);
    }

    pub(crate) fn has_timed_out(&self) -> bool {
        matches!(self.ending(), Ending::TimedOut)
    }

    fn ending(&self) -> Ending {
        Ending::from_u8(self.ending.load(Ordering::Relaxed))
    }

    fn set_ending(&self, ending: Ending) {
        self.ending.store(ending as u8, Ordering::Relaxed);
    }

    /// The last `responses` responses, and the last `bytes` bytes, had not been acknowledged when the connection ended
    /// during a stop.
    pub(super) fn unacknowledged(&self, responses: u64, bytes: u64) {
        self.shared.ends.bytes_unacked.add(bytes);
        let recordings = self.recordings();
        let ledger = &self.ledger;
        let (lost, end) = if self.is_killed() {
            (&ledger.killed, RequestEnd::Killed)
        } else {
            (&ledger.gone, RequestEnd::Gone)
        };
        ledger.served.lower(responses);
        lost.raise(responses);
        if let Some(mut recordings) = recordings {
            recordings.delivered(responses, end);
        }
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

    /// Whoever had taken the connection over has let go of it. What a kill cuts from now on is only the end.
    pub(super) fn let_go(&self) {
        if !self.is_killed() {
            self.set_ending(Ending::LetGo);
        }
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
        self.h1.is_close_delimited() || self.is_killed()
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
        self.leave_limits();
        self.set_state(ConnState::Closed);
        if !was_hijacked {
            self.shared.events.sum("conn.closed", 1.0);
        }
        let is_cut =
            lost > 0 || self.h1.is_reading_head() || self.undelivered.load(Ordering::Relaxed);
        let count = match self.ending() {
            Ending::TimedOut => &ends.timed_out,
            Ending::Unshaken => &ends.tls_failed,
            Ending::HandshakeTimedOut => &ends.tls_timed_out,
            Ending::LetGo if !is_cut => &ends.closed,
            _ if killed && was_hijacked => {
                ends.hijacked_killed.add(1);
                &ends.killed
            }
            _ if killed && is_cut => &ends.killed,
            _ if is_cut => &ends.gone,
            Ending::Closed | Ending::Announced | Ending::Refused | Ending::LetGo => &ends.closed,
            Ending::Idle => &ends.idle,
            Ending::Raced => &ends.raced,
        };
        count.add(1);
    }

    /// The connection is no longer counted against the limits.
    fn leave_limits(&self) {
        let limits = &self.shared.limits;
        if self.is_counted.load(Ordering::Relaxed) {
            limits.clients.leave(&self.info().peer);
        }
        if self.shared.options.max_conns.is_some() {
            limits.conns.leave();
        }
    }

    /// Adds the counts to the server's counts, for good. Returns how many requests were lost: those that are in no
    /// column yet.
    fn settle(&self, killed: bool, failed: bool) -> u64 {
        let mut recordings = self.recordings();
        // By the registry, so that no report counts the connection twice.
        self.shared.registry.settle(|| {
            let mut counts = self.ledger.counts();
            // If one byte of a request has come, it counts as a request.
            let is_head_cut = killed && self.h1.is_reading_head();
            counts.requests += u64::from(is_head_cut);
            let lost = counts.open();
            let (column, end) = match (killed, failed) {
                (true, _) => (&mut counts.killed, RequestEnd::Killed),
                (_, true) => (&mut counts.failed, RequestEnd::Failed),
                _ if self.has_timed_out() => (&mut counts.timed_out, RequestEnd::TimedOut),
                _ => (&mut counts.gone, RequestEnd::Gone),
            };
            *column += lost;
            if let Some(recordings) = &mut recordings {
                let cut_head = is_head_cut.then_some((&self.info, counts.requests));
                recordings.body_left(self.h1.body_length());
                recordings.settle(end, cut_head);
            }
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

    fn look_at_handler(&self) {
        if let Some(handling) = self.handled().and_then(Handled::get) {
            handling.look(&self.shared);
        }
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
            ConnState::Handshaking => &mut report.conns_handshaking,
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

    pub(super) fn map<T>(self, to: impl FnOnce(S) -> T) -> Socket<T> {
        let Self { open, stream } = self;
        let stream = to(stream);
        Socket { open, stream }
    }

    /// Converts the stream to another type, if it can be.
    #[cfg(feature = "tls")]
    pub(super) fn try_map<T, E>(
        self,
        to: impl FnOnce(S) -> Result<T, (S, E)>,
    ) -> Result<Socket<T>, (Self, E)> {
        let Self { open, stream } = self;
        match to(stream) {
            Ok(stream) => Ok(Socket { open, stream }),
            Err((stream, error)) => Err((Self { open, stream }, error)),
        }
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

/// In which column of the books a request will be, once its response is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Column {
    Served = 0,
    /// The client had left the request half-way, and was answered only in case that it still reads.
    Gone = 1,
    /// The answer was the 503 of a kill.
    Killed = 2,
    /// The client was too slow with the request's body, and was told so.
    TimedOut = 3,
}

/// Responses that are written, and not flushed, and will not count as served.
#[derive(Debug, Default)]
struct Unserved {
    gone: Count,
    timed_out: Count,
    killed: Count,
}

impl Column {
    /// How the request is told to have ended.
    fn end(self) -> RequestEnd {
        match self {
            Self::Served => RequestEnd::Served,
            Self::Gone => RequestEnd::Gone,
            Self::Killed => RequestEnd::Killed,
            Self::TimedOut => RequestEnd::TimedOut,
        }
    }
}

impl Unserved {
    fn of(&self, column: Column) -> Option<&Count> {
        match column {
            Column::Served => None,
            Column::Gone => Some(&self.gone),
            Column::TimedOut => Some(&self.timed_out),
            Column::Killed => Some(&self.killed),
        }
    }
}

/// One request, from its head to the end of its response and of its handler. While this value lives, a stop waits for
/// the request.
#[derive(Debug)]
pub(crate) struct Inflight {
    conn: Arc<Conn>,
    /// `None` if nobody wants to know more of the request. In a box, because requests are moved often.
    followed: Option<Box<Followed>>,
    /// A [`Column`]. Any thread may set it.
    column: AtomicU8,
}

#[derive(Debug)]
struct Followed {
    /// `None` if nobody wants to be told of the request.
    recording: Option<Arc<Recording>>,
    /// Set when the program gets the request, if the request may be overdue.
    handling: OnceCell<Arc<Handling>>,
}

impl Inflight {
    pub(crate) fn conn(&self) -> &Arc<Conn> {
        &self.conn
    }

    /// Where everything is noted that the host is told of the request. `None` if nobody wants to be told.
    pub(crate) fn recording(&self) -> Option<&Arc<Recording>> {
        self.followed.as_ref()?.recording.as_ref()
    }

    fn handling(&self) -> Option<&Arc<Handling>> {
        self.followed.as_ref()?.handling.get()
    }

    /// The program gets the request.
    #[inline]
    pub(crate) fn is_handed_over(&self, head: &Parts) {
        if let Some(handled) = self.conn.handled() {
            self.handling_begins(head, handled);
        }
    }

    #[cold]
    fn handling_begins(&self, head: &Parts, handled: &Handled) {
        let limit = self.conn.shared.options.handler_timeout;
        let new = || Arc::new(Handling::new(head, self.recording(), limit));
        let handling = self.followed.as_ref();
        let handling = handling.map(|followed| followed.handling.get_or_init(new));
        handled.set(handling.cloned());
    }

    /// The program has given the whole answer, or nobody can get one any more. Only the first call counts.
    #[inline]
    pub(crate) fn is_handled(&self) {
        if let Some(handling) = self.handling() {
            handling.end(&self.conn.shared);
        }
    }

    /// Like [`Inflight::is_handled`], in the connection's task.
    #[inline]
    pub(super) fn is_over(&self) {
        if let Some(handled) = self.conn.handled() {
            self.is_handled();
            // What it keeps may be the buffer that its head came in.
            handled.set(None);
        }
    }

    /// Whether the program has had the request for longer than it should.
    pub(crate) fn is_overdue(&self) -> bool {
        self.handling()
            .is_some_and(|handling| handling.is_overdue())
    }

    /// The answer is the 503 of a kill. The request counts as killed, not as served.
    pub(crate) fn refused(&self) {
        self.set_column(Column::Killed);
        self.conn.has_refused.store(true, Ordering::Relaxed);
    }

    /// The client has left the request half-way, and is answered only in case that it still reads. The request counts
    /// as gone, not as served.
    pub(crate) fn gave_up(&self) {
        self.set_column(Column::Gone);
    }

    /// The client was too slow with the request's body, and is told so. The request counts as timed out, not as served.
    pub(crate) fn was_too_slow(&self) {
        self.set_column(Column::TimedOut);
    }

    pub(super) fn column(&self) -> Column {
        match self.column.load(Ordering::Relaxed) {
            0 => Column::Served,
            1 => Column::Gone,
            2 => Column::Killed,
            _ => Column::TimedOut,
        }
    }

    fn set_column(&self, column: Column) {
        self.column.store(column as u8, Ordering::Relaxed);
    }
}

impl Drop for Inflight {
    fn drop(&mut self) {
        self.conn.let_go.add(1);
    }
}
