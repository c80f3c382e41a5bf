//! Queries and percent-encoded text: bytes in, bytes out. No function here needs a request or a server.

use std::borrow::Cow;
use std::ffi::{CStr, c_char, c_int};

use crate::Result;
use crate::query::{Query, decode, percent_decode};

use super::boundary::{null, output, room, status_anywhere, value_anywhere, write_bytes};
use super::types::httpdown_status::*;
use super::types::{httpdown_bytes, httpdown_header};

/// Finds the first pair with this name (NUL-terminated) in a query, "name=value&other=value", and decodes its value:
///
///   char text[32];
///   size_t len;
///   if (httpdown_query_value(httpdown_request_query(request), "duration", text, sizeof text, &len) == 0) ...
///
/// Writes the value into `buffer`, NUL-terminated, and its length without the NUL into `*len`. The value may contain
/// NULs (%00), where C takes it to end, and need not be UTF-8; `len` is always the whole length. The format is that of
/// forms, so this function can also read the body of a form: %20 and + are a space, names are compared decoded, a name
/// without '=' has an empty value, and a '%' without two hexadecimal digits stands for itself. `buffer` must not
/// overlap the query. Never blocks.
///
/// Returns OK; NOT_FOUND; TOO_LARGE if the value needs more than `size` bytes (then `buffer` has an empty text, and
/// `*len` is still the value's length: make room for one byte more; `buffer` may be NULL if `size` is 0);
/// INVALID_ARGUMENT.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_query_value(
    query: httpdown_bytes,
    name: *const c_char,
    buffer: *mut c_char,
    size: usize,
    len: *mut usize,
) -> c_int {
    status_anywhere(|| {
        if name.is_null() {
            return Err(null("name"));
        }
        // SAFETY: the header's preface: NUL-terminated.
        let name = unsafe { CStr::from_ptr(name) };
        // SAFETY: the header's preface: bytes of that length.
        let query = unsafe { query.as_slice("query")? };
        // SAFETY: the header's preface: NULL or a buffer of that size.
        let buffer = unsafe { room(buffer, size, "buffer")? };
        // SAFETY: the header's preface: NULL or writable.
        let len = unsafe { output(len, "len")? };
        let Some(value) = Query::new(query).get_bytes(name.to_bytes()) else {
            return Ok(HTTPDOWN_STATUS_NOT_FOUND);
        };
        write_bytes(buffer, len, &value).map(|()| HTTPDOWN_STATUS_OK)
    })
}

/// Takes the first pair from a query: name and value, both borrowed from the query and not decoded (for that, call
/// httpdown_query_decode). Sets `*rest` to the part of the query that follows. Never blocks:
///
///   httpdown_bytes rest = httpdown_request_query(request);
///   httpdown_header pair;
///   while (httpdown_query_next(&rest, &pair)) ...
///
/// Returns false, and writes no pair, when no pair is left, or an argument is NULL.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_query_next(
    rest: *mut httpdown_bytes,
    pair: *mut httpdown_header,
) -> bool {
    let next = || -> Result<bool> {
        // SAFETY: the header's preface: NULL or bytes of that length, which may be changed.
        let rest = unsafe { rest.as_mut() }.ok_or_else(|| null("rest"))?;
        // SAFETY: the header's preface: NULL or writable.
        let pair = unsafe { output(pair, "pair")? };
        // SAFETY: the header's preface: bytes of that length.
        let mut pairs = Query::new(unsafe { rest.as_slice("rest")? }).pairs();
        let found = pairs.next_encoded();
        *rest = httpdown_bytes::of(pairs.rest());
        let Some((name, value)) = found else {
            return Ok(false);
        };
        pair.write(httpdown_header {
            name: httpdown_bytes::of(name),
            value: httpdown_bytes::of(value),
        });
        Ok(true)
    };
    value_anywhere(false, next)
}

/// Decodes a name or a value of a query: %20 and + are a space. Everything else is like in httpdown_query_value.
///
/// Returns OK, TOO_LARGE, INVALID_ARGUMENT.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_query_decode(
    encoded: httpdown_bytes,
    buffer: *mut c_char,
    size: usize,
    len: *mut usize,
) -> c_int {
    // SAFETY: the same promises.
    unsafe { decode_by(decode, encoded, buffer, size, len) }
}

/// Decodes a part of a path: %20 is a space, + is a plus. Split a path at its slashes before you decode: a decoded
/// slash (%2F) does not separate parts. Everything else is like in httpdown_query_value.
///
/// Returns OK, TOO_LARGE, INVALID_ARGUMENT.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_percent_decode(
    encoded: httpdown_bytes,
    buffer: *mut c_char,
    size: usize,
    len: *mut usize,
) -> c_int {
    // SAFETY: the same promises.
    unsafe { decode_by(percent_decode, encoded, buffer, size, len) }
}

/// # Safety
/// `encoded` is bytes of that length, `buffer` is NULL or has `size` bytes, `len` is NULL or writable.
unsafe fn decode_by(
    decode: fn(&[u8]) -> Cow<'_, [u8]>,
    encoded: httpdown_bytes,
    buffer: *mut c_char,
    size: usize,
    len: *mut usize,
) -> c_int {
    status_anywhere(|| {
        // SAFETY: the caller's promise.
        let decoded = decode(unsafe { encoded.as_slice("encoded")? });
        // SAFETY: the caller's promise.
        let buffer = unsafe { room(buffer, size, "buffer")? };
        // SAFETY: the caller's promise.
        let len = unsafe { output(len, "len")? };
        write_bytes(buffer, len, &decoded).map(|()| HTTPDOWN_STATUS_OK)
    })
}
