//! `httpdown_stream`: a connection that a handler has taken over.

use std::ffi::{c_int, c_void};
use std::sync::{Mutex, PoisonError};

use http::StatusCode;

use crate::{Error, Ready, RequestQueue, Stream};

use super::boundary::{borrow, output, room, slice, status, status_in_child_too};
use super::callbacks::ForeignData;
use super::ready::to_token;
use super::request::{end, fields, httpdown_request, timeout};
use super::server::queue_of;
use super::types::{httpdown_destroy_fn, httpdown_header, httpdown_stream_fn};

/// A connection that a handler has taken over: httpdown_upgrade. Any thread may use it, several at once; so one thread
/// can read while another one writes. The time limits for requests do not apply to it. A kill resets it.
pub struct httpdown_stream {
    stream: Stream,
    /// Of a server with QUEUE dispatch.
    queue: Option<RequestQueue>,
    /// What comes with an item of the queue: httpdown_stream_notify.
    told: Mutex<Option<ForeignData>>,
}

/// Whether the client asks for another protocol on this connection (Upgrade), or for a tunnel (CONNECT). Never blocks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_request_asks_for_upgrade(request: *mut httpdown_request) -> bool {
    super::boundary::value(false, || {
        // SAFETY: the header's preface.
        unsafe { super::request::with(request, |_, exchange| Ok(exchange.asks_for_upgrade())) }
    })
}

/// Takes over the connection of a request that asks for that, and ends the request, whatever this function returns. The
/// client gets the status 101 with these headers, which must have the field Upgrade, or, to CONNECT, 200; Connection:
/// upgrade is added. What the client has sent behind its request is not lost: the stream begins with it. The request's
/// body, if it has one, must have been read. Never blocks.
///
/// The connection counts as under way until httpdown_stream_free, so a stop waits for it: HTTPDOWN_DRAINING
/// (httpdown_stream_notify) tells that it should end. The stream must be freed, also after httpdown_free.
///
/// Returns OK, INVALID_ARGUMENT (also: the request asks for no upgrade; the client gets a 500), GONE (the client has
/// left), TOO_SLOW, KILLED, ALREADY_REPLIED, FORKED.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_upgrade(
    request: *mut httpdown_request,
    headers: *const httpdown_header,
    header_count: usize,
    stream: *mut *mut httpdown_stream,
) -> c_int {
    // SAFETY: the same promise.
    unsafe {
        end(request, |entry, exchange| {
            let output = output(stream, "stream")?;
            let mut response = http::Response::new(());
            *response.headers_mut() = fields(headers, header_count, "headers")?;
            *response.status_mut() = if exchange.is_connect() {
                StatusCode::OK
            } else {
                StatusCode::SWITCHING_PROTOCOLS
            };
            let stream = exchange.try_upgrade(response)?;
            let request = entry.request().ok_or(Error::AlreadyReplied)?;
            let queue = queue_of(&*request.server()).ok().cloned();
            output.write(Box::into_raw(Box::new(httpdown_stream {
                stream,
                queue,
                told: Mutex::default(),
            })));
            Ok(())
        })
    }
}

/// Reads the next bytes into `buffer`, and writes their number into `*count`; 0 is the end. Waits at most `timeout_ms`
/// for them. With HTTPDOWN_NOW, any thread may make this call.
///
/// Returns OK, WOULD_BLOCK (no bytes are there: the time has passed, or the thread drives connections and must not
/// wait), GONE (the connection has failed), KILLED, INVALID_ARGUMENT, FORKED.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_stream_read(
    stream: *const httpdown_stream,
    buffer: *mut c_void,
    capacity: usize,
    timeout_ms: u32,
    count: *mut usize,
) -> c_int {
    status(|| {
        // SAFETY: the header's preface: NULL or a stream.
        let stream = unsafe { borrow(stream, "stream")? };
        // SAFETY: the header's preface: NULL or a buffer of that size.
        let buffer = unsafe { room(buffer.cast::<u8>(), capacity, "buffer")? };
        // SAFETY: the header's preface: NULL or writable.
        let count = unsafe { output(count, "count")? };
        if buffer.is_empty() {
            return Err(Error::InvalidArgument("no room to read into".into()));
        }
        buffer.fill(std::mem::MaybeUninit::new(0));
        // SAFETY: all of it was just written.
        let buffer =
            unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast(), capacity) };
        count.write(stream.stream.read(buffer, timeout(timeout_ms))?);
        Ok(())
    })
}

/// Sends bytes, and writes into `*taken` how many those are. `data` is copied. If the kernel has no room, waits at most
/// `timeout_ms` for it. On OK at least one byte was taken, if there are any: write the rest again. With
/// HTTPDOWN_FOREVER all of `data` is taken, and `taken` may be NULL. With HTTPDOWN_NOW, any thread may make this call.
///
/// Returns OK, WOULD_BLOCK (nothing was taken), GONE (the connection has failed), KILLED, INVALID_ARGUMENT, FORKED.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_stream_write(
    stream: *const httpdown_stream,
    data: *const c_void,
    len: usize,
    timeout_ms: u32,
    taken: *mut usize,
) -> c_int {
    status(|| {
        // SAFETY: the header's preface: NULL or a stream.
        let stream = unsafe { borrow(stream, "stream")? };
        // SAFETY: the header's preface: bytes of that length.
        let data = unsafe { slice(data.cast::<u8>(), len, "data")? };
        let deadline = timeout(timeout_ms);
        // SAFETY: the header's preface: NULL or writable.
        let output = unsafe { output(taken, "taken") };
        if deadline.is_some() && output.is_err() {
            return output.map(drop);
        }
        let taken = stream.stream.write(data, deadline)?;
        if let Ok(output) = output {
            output.write(taken);
        }
        Ok(())
    })
}

/// Says that no more bytes follow, when all that was written is sent. The client's bytes can still be read. Waits at
/// most `timeout_ms`. With HTTPDOWN_NOW, any thread may make this call.
///
/// Returns OK, WOULD_BLOCK (not all of it is sent: call again), GONE (the connection has failed), KILLED,
/// INVALID_ARGUMENT, FORKED.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_stream_shutdown(
    stream: *const httpdown_stream,
    timeout_ms: u32,
) -> c_int {
    status(|| {
        // SAFETY: the header's preface: NULL or a stream.
        let stream = unsafe { borrow(stream, "stream")? };
        stream.stream.shutdown(timeout(timeout_ms))
    })
}

/// Asks to be told once what happens, like httpdown_request_notify. HTTPDOWN_GONE tells only of a kill: that the client
/// has left shows when the stream is read. `tell` is not called any more when the stream was freed:
/// httpdown_stream_free waits until a `tell` that runs on another thread has returned. `tell` may free the stream
/// itself. If `tell` is NULL, the event is an item of httpdown_next_item; only with HTTPDOWN_DISPATCH_QUEUE. Then
/// `user_data` lives until the next call of this function, or as long as the stream. Never blocks.
///
/// Returns OK, INVALID_ARGUMENT (also: there is no queue), FORKED.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_stream_notify(
    stream: *const httpdown_stream,
    wanted: u32,
    tell: httpdown_stream_fn,
    user_data: *mut c_void,
    destroy: httpdown_destroy_fn,
) -> c_int {
    let data = ForeignData {
        pointer: user_data,
        destroy,
    };
    status(|| {
        // SAFETY: the header's preface: NULL or a stream.
        let known = unsafe { borrow(stream, "stream")? };
        let wanted = u8::try_from(wanted).ok().and_then(Ready::from_bits);
        let wanted = wanted.ok_or_else(|| Error::InvalidArgument("wanted: unknown bits".into()))?;
        let pointer = stream as usize;
        let Some(tell) = tell else {
            let none = || Error::InvalidArgument("the server has no queue".into());
            let queue = known.queue.as_ref().ok_or_else(none)?;
            let token = to_token(pointer, data.pointer as usize);
            let mut told = known.told.lock().unwrap_or_else(PoisonError::into_inner);
            let before = told.replace(data);
            queue.notify_stream(&known.stream, wanted, token);
            drop(told);
            drop(before);
            return Ok(());
        };
        known.stream.notify(wanted, move |ready| {
            let data = data;
            // SAFETY: the host's own callback, with the host's own data; the stream was not freed.
            unsafe { tell(pointer as *mut _, ready.bits().into(), data.pointer) };
        });
        Ok(())
    })
}

/// Writes the descriptor of the connection's socket into `*fd`, for an event loop or a library that reads and writes it
/// by itself. The descriptor is non-blocking, and belongs to the stream: do not close it, and use nothing else of the
/// stream as long as you use it. Waits at most `timeout_ms` until the answer has left.
///
/// Returns OK, UNSUPPORTED (the connection has TLS, or bytes that have come before were not read yet), WOULD_BLOCK,
/// GONE, KILLED, INVALID_ARGUMENT, FORKED.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_stream_fd(
    stream: *const httpdown_stream,
    timeout_ms: u32,
    fd: *mut c_int,
) -> c_int {
    status(|| {
        // SAFETY: the header's preface: NULL or a stream.
        let stream = unsafe { borrow(stream, "stream")? };
        // SAFETY: the header's preface: NULL or writable.
        let fd = unsafe { output(fd, "fd")? };
        fd.write(stream.stream.descriptor(timeout(timeout_ms))?);
        Ok(())
    })
}

/// Closes the connection, and frees the stream; does not wait for the client. What was written is sent, and reaches a
/// client that still sends: the connection ends like after a last answer (`linger_timeout_ms`), and a stop waits for
/// that. NULL is fine. In a forked child, does nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_stream_free(stream: *mut httpdown_stream) {
    let _ = status_in_child_too(|| {
        if !stream.is_null() && !crate::process::forked() {
            // SAFETY: the header's preface: a stream that was not freed.
            drop(unsafe { Box::from_raw(stream) });
        }
        Ok(())
    });
}
