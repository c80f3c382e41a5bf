//! What happens to a request, told by a callback or by the queue.

use std::ffi::{c_int, c_void};

use crate::{Error, Exchange, QueueItem, Ready};

use super::boundary::{deadline, output, room, status};
use super::callbacks::ForeignData;
use super::request::{httpdown_request, own, with};
use super::server::{httpdown_server, queue_of};
use super::types::httpdown_ready_kind::*;
use super::types::{httpdown_destroy_fn, httpdown_item, httpdown_ready_fn};

/// Asks to be told once, as soon as at least one of these things (httpdown_ready_kind, or-ed) has happened to the
/// request. What has happened before is told at once; so nothing is lost between two calls. That the request is gone
/// (HTTPDOWN_GONE) is always told. It may be told in vain that reading or writing is possible: then they return
/// WOULD_BLOCK, and you ask again. This replaces an earlier call whose event has not been told. Never blocks.
///
/// `tell` is called on the thread that drives the connection, so it must not block: it may read and write with
/// HTTPDOWN_NOW, ask again, or end the request. Meanwhile no other thread may use the request, except where its
/// function says so. If `tell` is NULL, the event is an item of httpdown_next_item; only with HTTPDOWN_DISPATCH_QUEUE.
///
/// Nothing is told after the request has ended: the call that ends it waits until a `tell` that runs on another thread
/// has returned. So do not hold a lock there that `tell` takes. A request that a handler still holds must be kept first
/// (httpdown_request_defer), or it ends when the handler returns. `destroy` (may be NULL) is called exactly once with
/// `user_data`, on any thread: after `tell` has returned, when the event is not wanted any more, or before this
/// function returns an error. With the queue, `user_data` lives until the next call of this function, or as long as the
/// request.
///
/// Returns OK, INVALID_ARGUMENT (also: there is no queue), ALREADY_REPLIED, FORKED.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_request_notify(
    request: *mut httpdown_request,
    wanted: u32,
    tell: httpdown_ready_fn,
    user_data: *mut c_void,
    destroy: httpdown_destroy_fn,
) -> c_int {
    let data = ForeignData {
        pointer: user_data,
        destroy,
    };
    status(|| {
        let wanted = u8::try_from(wanted).ok().and_then(Ready::from_bits);
        let wanted = wanted.ok_or_else(|| Error::InvalidArgument("wanted: unknown bits".into()))?;
        // The pointer is a number, and points to no memory.
        let pointer = request as usize;
        let ask = |request: &httpdown_request, exchange: &mut Exchange| {
            let Some(tell) = tell else {
                // SAFETY: the request is in use by this thread only.
                let server = unsafe { &*request.server() };
                let queue = queue_of(server)?;
                let token = to_token(pointer, data.pointer as usize);
                // SAFETY: the same.
                let before = unsafe { &mut *request.told.get() }.replace(data);
                queue.notify(exchange, wanted, token);
                drop(before);
                return Ok(());
            };
            exchange.notify(wanted, move |ready| {
                let data = data;
                // SAFETY: the host's own callback, with the host's own data.
                unsafe { tell(pointer as *mut _, ready.bits().into(), data.pointer) };
            });
            Ok(())
        };
        // SAFETY: the header's preface.
        unsafe { with(request, ask) }
    })
}

/// Takes up to `capacity` items: requests from the queue, as httpdown_next does, and events of requests that were taken
/// before (httpdown_request_notify), and of streams (httpdown_stream_notify). Waits at most `timeout_ms` for the first
/// one. The descriptor of httpdown_queue_fd is readable while there are items. So one thread, or one event loop, serves
/// any number of slow clients.
///
/// Any thread may make this call, several at once. An event of a request may come out on any of them; from then on, the
/// request belongs to this thread, and not to the one that had it before.
///
/// Returns OK, WOULD_BLOCK (at the timeout), STOPPED (no request can come any more, and nothing that was asked for can
/// happen any more), INVALID_ARGUMENT, FORKED.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_next_item(
    server: *const httpdown_server,
    timeout_ms: u32,
    items: *mut httpdown_item,
    capacity: usize,
    count: *mut usize,
) -> c_int {
    status(|| {
        // SAFETY: the header's preface: NULL or a server.
        let handle = unsafe { super::boundary::borrow(server, "server")? };
        // SAFETY: the header's preface: NULL or an array of that size.
        let items = unsafe { room(items, capacity, "items")? };
        // SAFETY: the header's preface: NULL or writable.
        let count = unsafe { output(count, "count")? };
        let taken = queue_of(handle)?.take_all(items.len(), deadline(timeout_ms))?;
        // SAFETY: `server` is the Arc that httpdown_serve gave out.
        let handle = unsafe { super::server::share(server) };
        let known = taken.into_iter().filter_map(|item| match item {
            QueueItem::Request(exchange) => Some(httpdown_item {
                request: own(exchange, &handle)?,
                ready: HTTPDOWN_NEW as u32,
                ..NOTHING
            }),
            QueueItem::Ready { token, ready } => {
                let (request, user_data) = from_token(token);
                Some(httpdown_item {
                    request: request as *mut _,
                    user_data: user_data as *mut _,
                    ready: ready.bits().into(),
                    ..NOTHING
                })
            }
            QueueItem::StreamReady { token, ready } => {
                let (stream, user_data) = from_token(token);
                Some(httpdown_item {
                    stream: stream as *mut _,
                    user_data: user_data as *mut _,
                    ready: ready.bits().into(),
                    ..NOTHING
                })
            }
        });
        let mut written = 0;
        for (place, item) in items.iter_mut().zip(known) {
            place.write(item);
            written += 1;
        }
        count.write(written);
        Ok(())
    })
}

/// An item that is about nothing.
const NOTHING: httpdown_item = httpdown_item {
    request: std::ptr::null_mut(),
    user_data: std::ptr::null_mut(),
    ready: 0,
    reserved_0: 0,
    stream: std::ptr::null_mut(),
};

/// A request, or a stream, and its `user_data`. They go along with the event, because another thread may use the request when it
/// comes out.
pub(super) fn to_token(request: usize, user_data: usize) -> u128 {
    (request as u128) << 64 | user_data as u128
}

#[allow(clippy::cast_possible_truncation, reason = "the two halves")]
fn from_token(token: u128) -> (usize, usize) {
    ((token >> 64) as usize, token as usize)
}

const _: () = {
    assert!(HTTPDOWN_READABLE as u8 == Ready::READABLE.bits());
    assert!(HTTPDOWN_WRITABLE as u8 == Ready::WRITABLE.bits());
    assert!(HTTPDOWN_GONE as u8 == Ready::GONE.bits());
    assert!(HTTPDOWN_DRAINING as u8 == Ready::DRAINING.bits());
    assert!(HTTPDOWN_OVERDUE as u8 == Ready::OVERDUE.bits());
    assert!(HTTPDOWN_NEW as u8 & Ready::OVERDUE.bits() == 0);
};
