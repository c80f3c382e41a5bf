//! What became of a request, as C is told it, and lines of an access log.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{c_char, c_int, c_void};
use std::mem::offset_of;
use std::sync::Arc;

use crate::process;
use crate::record::{Form, Line, micros, unix_micros, version_number};
use crate::{Error, RequestEnd, RequestRecord, Result};

use super::boundary::{
    Sized, output, read_sized, room, status, status_anywhere, value, write_bytes,
};
use super::callbacks::{ForeignData, Host};
use super::request::{httpdown_request, see, with};
use super::types::httpdown_status::*;
use super::types::{httpdown_bytes, httpdown_destroy_fn};

/// How a request has ended: its column in the report.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(dead_code, reason = "Rust 1.88 does not see that it is for C")]
pub enum httpdown_request_end {
    /// The kernel has the whole response. In a stop, the client's kernel has it.
    HTTPDOWN_END_SERVED = 0,
    /// The handler failed after the response had begun. The client saw the response cut.
    HTTPDOWN_END_FAILED = 1,
    /// The client left before the response or the request's body was complete, or the request's body turned out to be
    /// malformed after the response had begun.
    HTTPDOWN_END_GONE = 2,
    /// The client was too slow with the body, or in taking the answer.
    HTTPDOWN_END_TIMED_OUT = 3,
    /// A kill cut the request, or answered it with 503 because nobody had begun to work on it.
    HTTPDOWN_END_KILLED = 4,
}

/// The form of a line that httpdown_log_line writes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(dead_code, reason = "Rust 1.88 does not see that it is for C")]
pub enum httpdown_log_format {
    /// The Common Log Format: 127.0.0.1 - - [06/Nov/1994:08:49:37 +0000] "GET /a?b HTTP/1.1" 200 13
    HTTPDOWN_LOG_COMMON = 0,
    /// The same, followed by Referer and User-Agent, each in quotes, and "-" if the request had none.
    HTTPDOWN_LOG_COMBINED = 1,
    /// A JSON object, with everything that a httpdown_request_record has, except `data`.
    HTTPDOWN_LOG_JSON = 2,
}

/// What became of a request. The durations are in microseconds, in real time, and count from `began_us`; -1: it has not
/// come to that. Everything that the struct points to is borrowed from it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct httpdown_request_record {
    /// sizeof(httpdown_request_record), as the library knows it.
    pub struct_size: usize,
    /// How the request has ended: a httpdown_request_end.
    pub end: c_int,
    /// The status of the answer; 0 if there was no answer.
    pub status_code: c_int,
    /// The version of HTTP times ten: 10 or 11; 0 if a kill cut the request before its head was complete.
    pub version: c_int,
    /// Not 0: the connection has TLS.
    pub tls: c_int,
    /// The number of the request's connection, the same as in `on_conn_state`.
    pub conn_id: u64,
    /// The number of the request on its connection, from 1.
    pub number: u64,
    /// How many bytes of the request's body came before the end of the answer. Of a body in chunks, only those count
    /// that were read. The head, and what the transfer coding adds, do not count.
    pub received: u64,
    /// How many bytes of the answer's body were given to the connection. The head, and what the transfer coding adds,
    /// do not count. If the request was not served, some of these bytes may not have left.
    pub sent: u64,
    /// When the first byte of the request came, by the machine's clock: microseconds since 1970.
    pub began_us: i64,
    /// Until the head was complete.
    pub head_us: i64,
    /// Until the handler was called, or the request was taken from the queue.
    pub called_us: i64,
    /// Until the answer began: its head was given to the connection.
    pub answered_us: i64,
    /// Until the kernel had the last byte of the answer.
    pub flushed_us: i64,
    /// Until it was seen that the client's kernel had acknowledged the last byte of the answer. Only a stop looks, when
    /// the connection ends.
    pub acknowledged_us: i64,
    /// Until the end of the request was known. Never -1.
    pub ended_us: i64,
    /// The client's address, like httpdown_request_peer_addr.
    pub peer: httpdown_bytes,
    /// The method. Empty if a kill cut the request before its head was complete; also the target.
    pub method: httpdown_bytes,
    /// The target, not decoded, like httpdown_request_target.
    pub target: httpdown_bytes,
    /// The value of the first Referer header; `data` is NULL if the request had none.
    pub referer: httpdown_bytes,
    /// The value of the first User-Agent header; `data` is NULL if the request had none.
    pub user_agent: httpdown_bytes,
    /// What httpdown_request_set_data has set last; NULL if nothing.
    pub data: *mut c_void,
    /// Not 0: the program had the request for longer than handler_timeout_ms.
    pub overdue: c_int,
    /// For a field to come: 0.
    pub reserved: c_int,
}

/// A request has ended: for an access log. `record` is borrowed until the callback returns. Called on the events
/// thread.
pub type httpdown_done_fn =
    Option<unsafe extern "C" fn(record: *const httpdown_request_record, user_data: *mut c_void)>;

// Field-by-field assignment leaves padding unwritten.
const _: () = {
    let words = size_of::<usize>() * 12;
    let ints = size_of::<c_int>() * 6;
    assert!(size_of::<httpdown_request_record>() == words + ints + size_of::<u64>() * 11);
};

// C sees the numbers that the core has.
const _: () = {
    use httpdown_request_end::*;
    assert!(HTTPDOWN_END_SERVED as c_int == RequestEnd::Served as c_int);
    assert!(HTTPDOWN_END_FAILED as c_int == RequestEnd::Failed as c_int);
    assert!(HTTPDOWN_END_GONE as c_int == RequestEnd::Gone as c_int);
    assert!(HTTPDOWN_END_TIMED_OUT as c_int == RequestEnd::TimedOut as c_int);
    assert!(HTTPDOWN_END_KILLED as c_int == RequestEnd::Killed as c_int);
};

// SAFETY: zero is valid in each field, and the size comes first.
unsafe impl Sized for httpdown_request_record {
    const LEAST: usize = offset_of!(httpdown_request_record, referer);
}

/// Writes one line of an access log into `buffer`, NUL-terminated and without a line end, and its length without the
/// NUL into `*len`. `format` is a httpdown_log_format. `record` may be a copy that the program has made or changed.
///
/// Whatever a client sends, it cannot forge a line. In the Common Log Format, a quote and a backslash have a backslash
/// before them, and other bytes that are not visible ASCII are written as \xHH; the time is in UTC; the last number is
/// `sent`, or "-" for 0; the status is 000 if there was no answer. In JSON, bytes that are not UTF-8 are replaced by
/// U+FFFD; what is not known is null; the keys are the names of the struct's fields, but "time", "version" ("1.1"),
/// "status", "end" ("served") and "tls" (true or false). Never blocks. May be called in a forked child.
///
/// Returns OK; TOO_LARGE if the line needs more than `size` bytes (then `buffer` has an empty text, and `*len` is still
/// the line's length: make room for one byte more; `buffer` may be NULL if `size` is 0); INVALID_ARGUMENT.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_log_line(
    record: *const httpdown_request_record,
    format: c_int,
    buffer: *mut c_char,
    size: usize,
    len: *mut usize,
) -> c_int {
    status_anywhere(|| {
        // SAFETY: the header's preface: NULL or a record. What a newer one has more is not in a line.
        let (record, _): (httpdown_request_record, _) = unsafe { read_sized(record, "record")? };
        // SAFETY: the header's preface: NULL or a buffer of that size.
        let buffer = unsafe { room(buffer, size, "buffer")? };
        // SAFETY: the header's preface: NULL or writable.
        let len = unsafe { output(len, "len")? };
        let form = form(format)?;
        let mut text = String::new();
        // SAFETY: the header's preface: bytes of those lengths.
        let line = unsafe { line(&record)? };
        let written = line.write(form, &mut text);
        written.map_err(|_| Error::InvalidArgument("record cannot be written".into()))?;
        write_bytes(buffer, len, text.as_bytes()).map(|()| HTTPDOWN_STATUS_OK)
    })
}

fn form(format: c_int) -> Result<Form> {
    const COMMON: c_int = httpdown_log_format::HTTPDOWN_LOG_COMMON as c_int;
    const COMBINED: c_int = httpdown_log_format::HTTPDOWN_LOG_COMBINED as c_int;
    const JSON: c_int = httpdown_log_format::HTTPDOWN_LOG_JSON as c_int;
    match format {
        COMMON => Ok(Form::Common),
        COMBINED => Ok(Form::Combined),
        JSON => Ok(Form::Json),
        other => Err(Error::InvalidArgument(format!(
            "format {other} is not known"
        ))),
    }
}

/// # Safety
/// The bytes in the record are of the lengths that it says.
unsafe fn line<'a>(record: &httpdown_request_record) -> Result<Line<'a>> {
    let bytes = |bytes: httpdown_bytes, name| -> Result<&'a [u8]> {
        // SAFETY: the same promise.
        unsafe { bytes.as_slice(name) }
    };
    let maybe = |field: httpdown_bytes, name| {
        let is_there = !field.data.is_null();
        is_there.then(|| bytes(field, name)).transpose()
    };
    let ends = [
        RequestEnd::Served,
        RequestEnd::Failed,
        RequestEnd::Gone,
        RequestEnd::TimedOut,
        RequestEnd::Killed,
    ];
    Ok(Line {
        end: ends
            .into_iter()
            .find(|end| c_int::from(*end as u8) == record.end),
        status: record.status_code,
        version: record.version,
        is_secure: record.tls != 0,
        conn_id: record.conn_id,
        number: record.number,
        received: record.received,
        sent: record.sent,
        began_us: record.began_us,
        head_us: record.head_us,
        called_us: record.called_us,
        answered_us: record.answered_us,
        flushed_us: record.flushed_us,
        acknowledged_us: record.acknowledged_us,
        ended_us: record.ended_us,
        is_overdue: record.overdue != 0,
        peer: bytes(record.peer, "record.peer")?,
        method: bytes(record.method, "record.method")?,
        target: bytes(record.target, "record.target")?,
        referer: maybe(record.referer, "record.referer")?,
        user_agent: maybe(record.user_agent, "record.user_agent")?,
    })
}

/// Sets the program's own data of a request: an opaque pointer, which httpdown_request_data returns, and `on_done`
/// finds in the record. `destroy` (may be NULL) is called with `data` exactly once, on any thread: when other data is
/// set, or when the request does not live any more, nor its record (the callback `on_done` has returned, or the record
/// was dropped). It is called before the `destroy` of the server's options. On an error, the data is still yours, and
/// `destroy` is not called. Never blocks.
///
/// Returns OK, ALREADY_REPLIED, INVALID_ARGUMENT, FORKED.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_request_set_data(
    request: *mut httpdown_request,
    data: *mut c_void,
    destroy: httpdown_destroy_fn,
) -> c_int {
    status(|| {
        let set = |request: &httpdown_request, exchange: &mut crate::Exchange| {
            let new = Arc::new(RequestData {
                own: ForeignData {
                    pointer: data,
                    destroy,
                },
                // SAFETY: the request has not been ended, so its server lives.
                _host: unsafe { request.host() },
            });
            exchange.attach(Arc::clone(&new) as Arc<dyn Any + Send + Sync>);
            // SAFETY: the header says: one thread at a time.
            Ok(unsafe { request.set_data(new) })
        };
        // SAFETY: the header's preface.
        let old = unsafe { with(request, set)? };
        drop(old);
        Ok(())
    })
}

/// Returns what httpdown_request_set_data has set last; NULL if nothing, or if the request does not live any more.
/// Never blocks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_request_data(request: *const httpdown_request) -> *mut c_void {
    value(std::ptr::null_mut(), || {
        // SAFETY: the header's preface.
        let (_, request) = unsafe { see(request)? };
        // SAFETY: the header says: one thread at a time.
        let data = unsafe { request.data() };
        Ok(data.map_or(std::ptr::null_mut(), |data| data.own.pointer))
    })
}

/// The host's data of a request. The fields are dropped in this order.
#[derive(Debug)]
pub(super) struct RequestData {
    own: ForeignData,
    /// What is destroyed may need it.
    _host: Arc<ForeignData>,
}

/// A record, and what C sees of it.
pub(super) struct Told {
    raw: httpdown_request_record,
    _peer: String,
    _record: Box<RequestRecord>,
}

impl Told {
    /// What the result's `raw` points to is in the heap, and stays where it is.
    fn new(record: Box<RequestRecord>) -> Self {
        let peer = record.conn().peer.to_string();
        let us = |duration: Option<_>| duration.map_or(-1, micros);
        let maybe = |field: Option<&[u8]>| field.map_or(httpdown_bytes::NONE, httpdown_bytes::of);
        let data = record.data().and_then(|data| data.downcast_ref());
        let raw = httpdown_request_record {
            struct_size: size_of::<httpdown_request_record>(),
            end: record.end as c_int,
            status_code: record.status.map_or(0, |status| status.as_u16().into()),
            version: version_number(record.version()),
            tls: record.conn().is_secure().into(),
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
            peer: httpdown_bytes::of(peer.as_bytes()),
            method: httpdown_bytes::of(record.method().as_bytes()),
            target: httpdown_bytes::of(record.target().as_bytes()),
            referer: maybe(record.referer()),
            user_agent: maybe(record.user_agent()),
            data: data.map_or(std::ptr::null_mut(), |data: &RequestData| data.own.pointer),
            overdue: record.overdue.into(),
            reserved: 0,
        };
        Self {
            raw,
            _peer: peer,
            _record: record,
        }
    }
}

pub(super) fn done(host: Host, callback: httpdown_done_fn) -> impl FnMut(&RequestRecord) {
    move |record| {
        if let Some(callback) = callback {
            let told = Told::new(Box::new(record.clone()));
            // SAFETY: the host's own callback, with the host's own data; the record lives until it returns.
            unsafe { callback(&raw const told.raw, host.data.pointer) };
        }
    }
}

/// A record that was pulled.
struct Pulled(Option<Box<Told>>);

impl Drop for Pulled {
    fn drop(&mut self) {
        // The request's data is the parent's to destroy.
        if process::forked()
            && let Some(told) = self.0.take()
        {
            Box::leak(told);
        }
    }
}

thread_local! {
    /// The record that this thread has pulled last.
    static PULLED: RefCell<Pulled> = const { RefCell::new(Pulled(None)) };
}

/// Keeps a record that was pulled until the thread pulls the next event. NULL if the thread is ending.
pub(super) fn keep(record: Box<RequestRecord>) -> *const httpdown_request_record {
    let told = Box::new(Told::new(record));
    let raw = &raw const told.raw;
    let kept = PULLED.try_with(|pulled| pulled.replace(Pulled(Some(told))));
    kept.map_or(std::ptr::null(), |_| raw)
}

/// Drops the record that this thread has pulled last.
pub(super) fn forget() {
    // The host may be called, and come here again.
    let old = PULLED.try_with(|pulled| pulled.replace(Pulled(None)));
    drop(old);
}
