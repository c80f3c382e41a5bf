//! What became of one request: told to the host when the request has ended.

mod line;

use std::any::Any;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use http::header::{REFERER, USER_AGENT};
use http::request::Parts;
use http::{HeaderName, StatusCode, Version};

use crate::conn_info::ConnInfo;

pub(crate) use line::{Form, Line};

/// How a request has ended: its column in the [`Report`](crate::Report).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum RequestEnd {
    /// The kernel has the whole response. In a stop, the client's kernel has it.
    Served = 0,
    /// The handler failed after the response had begun. The client saw the response cut.
    Failed = 1,
    /// The client left before the response or the request's body was complete, or the request's body turned out to be
    /// malformed after the response had begun.
    Gone = 2,
    /// The client was too slow with the body, or in taking the answer.
    TimedOut = 3,
    /// A kill cut the request, or answered it with 503 because nobody had taken it.
    Killed = 4,
}

impl RequestEnd {
    /// The name of the column: `served`, `failed`, `gone`, `timed_out`, `killed`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Served => "served",
            Self::Failed => "failed",
            Self::Gone => "gone",
            Self::TimedOut => "timed_out",
            Self::Killed => "killed",
        }
    }
}

/// What became of one request. See [`Builder::on_done`](crate::Builder::on_done).
///
/// The durations count from [`began`](RequestRecord::began), in real time. `None`: it has not come to that.
///
/// ```
/// use httpdown::{Dispatch, Exchange, Listener, RequestRecord, Server};
///
/// # fn main() -> httpdown::Result<()> {
/// let handler = |exchange: Exchange| drop(exchange);
/// let server = Server::builder()
///     .on_done(|record: &RequestRecord| println!("{}", record.combined_log()))
///     .handle(Listener::bind("127.0.0.1:0")?, Dispatch::default(), handler)?;
/// server.stop_blocking()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct RequestRecord {
    /// How the request has ended.
    pub end: RequestEnd,
    /// The status of the answer; `None` if there was no answer.
    pub status: Option<StatusCode>,
    /// How many bytes of the request's body came before the end of the answer. Of a body in chunks, only those count
    /// that were read. The head, and what the transfer coding adds, do not count.
    pub received: u64,
    /// How many bytes of the answer's body were given to the connection. The head, and what the transfer coding adds,
    /// do not count. If the request was not served, some of these bytes may not have left.
    pub sent: u64,
    /// Until the head was complete.
    pub head: Option<Duration>,
    /// Until the handler or the service was called, or the request was taken from the queue.
    pub called: Option<Duration>,
    /// Until the answer began: its head was given to the connection.
    pub answered: Option<Duration>,
    /// Until the kernel had the last byte of the answer.
    pub flushed: Option<Duration>,
    /// Until it was seen that the client's kernel had acknowledged the last byte of the answer. Only a stop looks, when
    /// the connection ends.
    pub acknowledged: Option<Duration>,
    /// Until the end of the request was known.
    pub ended: Duration,
    /// The program had the request for longer than [`handler_timeout`](crate::Builder::handler_timeout).
    pub overdue: bool,
    data: Option<Arc<dyn Any + Send + Sync>>,
    of: Arc<Recording>,
}

impl RequestRecord {
    /// The connection that the request came on.
    #[must_use]
    pub fn conn(&self) -> &ConnInfo {
        &self.of.conn
    }

    /// The number of the request on its connection, from 1.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.of.number
    }

    /// When the first byte of the request came, by the machine's clock.
    #[must_use]
    pub fn began(&self) -> SystemTime {
        self.of.began
    }

    /// The request's method. Empty if a kill cut the request before its head was complete; also the target.
    #[must_use]
    pub fn method(&self) -> &str {
        str::from_utf8(self.of.texts.method()).unwrap_or_default()
    }

    /// The request's target, as the client sent it.
    #[must_use]
    pub fn target(&self) -> &str {
        str::from_utf8(self.of.texts.target()).unwrap_or_default()
    }

    /// The request's version of HTTP; `None` if its head was not complete.
    #[must_use]
    pub fn version(&self) -> Option<Version> {
        self.of.version
    }

    /// The value of the request's first `Referer` header.
    #[must_use]
    pub fn referer(&self) -> Option<&[u8]> {
        self.of.texts.referer()
    }

    /// The value of the request's first `User-Agent` header.
    #[must_use]
    pub fn user_agent(&self) -> Option<&[u8]> {
        self.of.texts.user_agent()
    }

    /// What the handler has given by [`Exchange::attach`](crate::Exchange::attach).
    #[must_use]
    pub fn data(&self) -> Option<&(dyn Any + Send + Sync)> {
        self.data.as_deref()
    }

    /// One line in the Common Log Format, without a line end:
    /// `127.0.0.1 - - [06/Nov/1994:08:49:37 +0000] "GET /a?b HTTP/1.1" 200 13`.
    ///
    /// The time is in UTC. The last number is [`sent`](RequestRecord::sent), or `-` for 0. The status is `000` if there
    /// was no answer. A quote and a backslash have a backslash before them; other bytes that are not visible ASCII are
    /// written as `\xHH`. So whatever a client sends, it cannot forge a line.
    #[must_use]
    pub fn common_log(&self) -> impl fmt::Display + '_ {
        Written(self, Form::Common)
    }

    /// The line of [`common_log`](RequestRecord::common_log), followed by `Referer` and `User-Agent`, each in quotes,
    /// and `"-"` if the request had none.
    #[must_use]
    pub fn combined_log(&self) -> impl fmt::Display + '_ {
        Written(self, Form::Combined)
    }

    /// A JSON object in one line, without a line end, with all that is known, in microseconds. Bytes that are not UTF-8
    /// are replaced by U+FFFD.
    #[must_use]
    pub fn json(&self) -> impl fmt::Display + '_ {
        Written(self, Form::Json)
    }

    /// About how many bytes of memory the record takes.
    pub(crate) fn size(&self) -> usize {
        size_of::<Self>() + size_of::<Recording>() + self.of.texts.bytes.len()
    }

    /// Whether dropping the record may call the host's code.
    pub(crate) fn has_data(&self) -> bool {
        self.data.is_some()
    }
}

impl fmt::Debug for RequestRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestRecord")
            .field("end", &self.end)
            .field("method", &self.method())
            .field("target", &self.target())
            .field("status", &self.status)
            .field("conn", &self.conn().id)
            .field("number", &self.number())
            .finish_non_exhaustive()
    }
}

/// A record as a line.
struct Written<'a>(&'a RequestRecord, Form);

impl fmt::Display for Written<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(record, form) = self;
        let peer = record.conn().peer.to_string();
        let us = |duration: Option<Duration>| duration.map_or(-1, micros);
        let line = Line {
            end: Some(record.end),
            status: record.status.map_or(0, |status| status.as_u16().into()),
            version: version_number(record.version()),
            is_secure: record.conn().is_secure(),
            conn_id: record.conn().id,
            number: record.number(),
            received: record.received,
            sent: record.sent,
            began_us: unix_micros(record.began()),
            head_us: us(record.head),
            called_us: us(record.called),
            answered_us: us(record.answered),
            flushed_us: us(record.flushed),
            acknowledged_us: us(record.acknowledged),
            ended_us: micros(record.ended),
            is_overdue: record.overdue,
            peer: peer.as_bytes(),
            method: record.of.texts.method(),
            target: record.of.texts.target(),
            referer: record.referer(),
            user_agent: record.user_agent(),
        };
        line.write(*form, f)
    }
}

/// The version of HTTP times ten; 0 for none.
pub(crate) fn version_number(version: Option<Version>) -> i32 {
    match version {
        None => 0,
        Some(Version::HTTP_10) => 10,
        Some(_) => 11,
    }
}

/// A duration in microseconds.
pub(crate) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// A time in microseconds since 1970.
pub(crate) fn unix_micros(time: SystemTime) -> i64 {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => micros(since),
        Err(before) => -micros(before.duration()),
    }
}

/// The first byte of a request has come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Beginning {
    at: SystemTime,
    start: Instant,
}

impl Beginning {
    pub(crate) fn now() -> Self {
        Self {
            at: SystemTime::now(),
            start: Instant::now(),
        }
    }
}

/// A request whose record is not finished. The connection, the service and the handler write into it, each on its own
/// thread.
pub(crate) struct Recording {
    conn: Arc<ConnInfo>,
    number: u64,
    began: SystemTime,
    start: Instant,
    version: Option<Version>,
    texts: Texts,
    /// The length of the body, if the head says it.
    length: Option<u64>,
    status: AtomicU16,
    received: AtomicU64,
    sent: AtomicU64,
    head: Moment,
    called: Moment,
    answered: Moment,
    flushed: Moment,
    overdue: AtomicBool,
    data: Mutex<Option<Arc<dyn Any + Send + Sync>>>,
}

impl Recording {
    /// `head`: `None` if it has not come completely. `length`: of the body, if the head says it.
    pub(crate) fn new(
        conn: &Arc<ConnInfo>,
        number: u64,
        beginning: Beginning,
        head: Option<&Parts>,
        length: Option<u64>,
    ) -> Self {
        let Beginning { at, start } = beginning;
        let recording = Self {
            conn: Arc::clone(conn),
            number,
            began: at,
            start,
            version: head.map(|head| head.version),
            texts: head.map(Texts::of).unwrap_or_default(),
            length,
            status: AtomicU16::new(0),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            head: Moment::default(),
            called: Moment::default(),
            answered: Moment::default(),
            flushed: Moment::default(),
            overdue: AtomicBool::new(false),
            data: Mutex::default(),
        };
        if head.is_some() {
            recording.head.is_now(start);
        }
        recording
    }

    /// The handler is called, or the request is taken from the queue.
    pub(crate) fn is_called(&self) {
        self.called.is_now(self.start);
    }

    /// There is an answer.
    pub(crate) fn is_answered(&self, status: StatusCode) {
        self.status.store(status.as_u16(), Ordering::Relaxed);
        self.answered.is_now(self.start);
    }

    /// The kernel has all of the answer.
    pub(crate) fn is_flushed(&self) {
        self.flushed.is_now(self.start);
    }

    /// The program has had the request for longer than it should.
    pub(crate) fn is_overdue(&self) {
        self.overdue.store(true, Ordering::Relaxed);
    }

    /// Bytes of the request's body were read.
    pub(crate) fn has_received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// This much of the body, if that is known, has not come. Somebody may have left what has come.
    pub(crate) fn has_left(&self, left: Option<u64>) {
        if let (Some(length), Some(left)) = (self.length, left) {
            let come = length.saturating_sub(left);
            self.received.fetch_max(come, Ordering::Relaxed);
        }
    }

    /// Bytes of the answer's body were given to the connection.
    pub(crate) fn has_sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn attach(&self, data: Arc<dyn Any + Send + Sync>) {
        let old = self.data().replace(data);
        // Dropped here, when the lock is free again: this may call the host.
        drop(old);
    }

    fn data(&self) -> MutexGuard<'_, Option<Arc<dyn Any + Send + Sync>>> {
        self.data.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The record. `is_acknowledged`: the client's kernel has all of the answer.
    pub(crate) fn finish(self: Arc<Self>, end: RequestEnd, is_acknowledged: bool) -> RequestRecord {
        let ended = self.start.elapsed();
        let data = self.data().take();
        RequestRecord {
            end,
            status: StatusCode::from_u16(self.status.load(Ordering::Relaxed)).ok(),
            received: self.received.load(Ordering::Relaxed),
            sent: self.sent.load(Ordering::Relaxed),
            head: self.head.get(),
            called: self.called.get(),
            answered: self.answered.get(),
            flushed: self.flushed.get(),
            acknowledged: is_acknowledged.then_some(ended),
            ended,
            overdue: self.overdue.load(Ordering::Relaxed),
            data,
            of: self,
        }
    }
}

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recording")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

/// A moment, in nanoseconds since the request's first byte; 0 if it has not come.
#[derive(Debug, Default)]
struct Moment(AtomicU64);

impl Moment {
    fn is_now(&self, start: Instant) {
        let since = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.0.store(since.max(1), Ordering::Relaxed);
    }

    fn get(&self) -> Option<Duration> {
        let since = self.0.load(Ordering::Relaxed);
        (since > 0).then(|| Duration::from_nanos(since))
    }
}

/// What is kept of a head: copies, in one piece of memory, because the head itself is part of the connection's buffer,
/// which would be kept with it.
#[derive(Default)]
struct Texts {
    bytes: Box<[u8]>,
    /// Where each text ends: method, target, `Referer`, `User-Agent`.
    ends: [usize; 4],
    has_referer: bool,
    has_user_agent: bool,
}

impl Texts {
    fn of(head: &Parts) -> Self {
        let value = |name: HeaderName| head.headers.get(name).map(http::HeaderValue::as_bytes);
        let (referer, user_agent) = (value(REFERER), value(USER_AGENT));
        let method = head.method.as_str().as_bytes();
        let mut texts = Self {
            has_referer: referer.is_some(),
            has_user_agent: user_agent.is_some(),
            ..Self::default()
        };
        let uri = &head.uri;
        let (referer, user_agent) = (referer.unwrap_or_default(), user_agent.unwrap_or_default());
        let mut bytes = Vec::new();
        // Mostly the target is a path, and can be copied as it is.
        let path = uri
            .path_and_query()
            .filter(|_| uri.authority().is_none() && uri.scheme().is_none())
            .map(http::uri::PathAndQuery::as_str);
        let target = path.map_or_else(|| uri.to_string().into(), std::borrow::Cow::Borrowed);
        let all = [method, target.as_bytes(), referer, user_agent];
        bytes.reserve_exact(all.iter().map(|text| text.len()).sum());
        for (text, end) in all.into_iter().zip(&mut texts.ends) {
            bytes.extend_from_slice(text);
            *end = bytes.len();
        }
        texts.bytes = bytes.into();
        texts
    }

    fn method(&self) -> &[u8] {
        &self.bytes[..self.ends[0]]
    }

    fn target(&self) -> &[u8] {
        &self.bytes[self.ends[0]..self.ends[1]]
    }

    fn referer(&self) -> Option<&[u8]> {
        let text = &self.bytes[self.ends[1]..self.ends[2]];
        self.has_referer.then_some(text)
    }

    fn user_agent(&self) -> Option<&[u8]> {
        let text = &self.bytes[self.ends[2]..self.ends[3]];
        self.has_user_agent.then_some(text)
    }
}
