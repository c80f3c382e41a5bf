//! `httpdown_request`: how it is read and answered.

use std::cell::UnsafeCell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Version};
use once_cell::sync::OnceCell;

#[cfg(feature = "tls")]
use crate::TlsInfo;
use crate::conn_info::ConnInfo;
use crate::request::ReplySlot;
use crate::{Error, Exchange, Result};

use super::boundary::{deadline, null, output, room, slice, status, status_of_several, value};
use super::callbacks::ForeignData;
use super::record::RequestData;
use super::server::httpdown_server;
use super::table::{ENDING, Entry, Holders, LENT, OPEN, OWNED, RETAINED, find, insert};
#[cfg(feature = "tls")]
use super::tls_settings::Texts;
use super::types::httpdown_status::*;
use super::types::{
    HTTPDOWN_FOREVER, httpdown_bytes, httpdown_credentials, httpdown_destroy_fn, httpdown_header,
};

/// A request, and the means to answer it exactly once: with one call (httpdown_reply...), or in pieces
/// (httpdown_reply_start, _write, _finish). The answer ends the request.
///
/// A request is lent to a handler until the handler returns. After httpdown_request_defer or httpdown_reply_start has
/// succeeded, you own the request, and must end it. You also own a request from httpdown_next. A request lives until it
/// is ended and its handler, if any, has returned; with httpdown_request_retain, also until httpdown_request_release.
/// While the request lives, its head can be read, and borrowed bytes stay valid. So you may reply, and then log the
/// path.
///
/// The pointer stands for this request alone. If you use the pointer after the request's life, the call finds nothing
/// (ALREADY_REPLIED), and never another request; but borrowed bytes are gone. The pointer points to no memory. One
/// thread at a time may use a request, except for httpdown_request_cancelled, httpdown_request_wait_cancelled and
/// httpdown_request_overdue.
pub struct httpdown_request {
    head: Parts,
    conn: Arc<ConnInfo>,
    /// Set until the request is ended.
    exchange: UnsafeCell<Option<Exchange>>,
    /// Set until the request is ended. The slot is not in the exchange, because other threads may ask for it while the
    /// exchange is used.
    slot: UnsafeCell<Option<Arc<ReplySlot>>>,
    /// The server is in an Arc. Only an owned request counts there. A lent request relies on its handler's count;
    /// otherwise all I/O threads would write the count for every request.
    server: *const httpdown_server,
    /// The whole body, once it has been asked for.
    body: OnceCell<Bytes>,
    /// The host's own data.
    data: UnsafeCell<Option<Arc<RequestData>>>,
    target: OnceCell<String>,
    peer: OnceCell<String>,
    local: OnceCell<String>,
    /// What comes with an item of the queue: httpdown_request_notify.
    pub(super) told: UnsafeCell<Option<ForeignData>>,
    proxy: OnceCell<String>,
    client: OnceCell<Box<Sender>>,
    #[cfg(feature = "tls")]
    tls: OnceCell<Box<Texts>>,
}

impl httpdown_request {
    #[inline]
    fn new(mut exchange: Exchange, server: &Arc<httpdown_server>) -> Self {
        Self {
            head: exchange.take_head(),
            conn: Arc::clone(exchange.conn_info()),
            slot: UnsafeCell::new(Some(Arc::clone(exchange.slot()))),
            exchange: UnsafeCell::new(Some(exchange)),
            server: Arc::as_ptr(server),
            body: OnceCell::new(),
            data: UnsafeCell::new(None),
            target: OnceCell::new(),
            peer: OnceCell::new(),
            local: OnceCell::new(),
            told: UnsafeCell::new(None),
            proxy: OnceCell::new(),
            client: OnceCell::new(),
            #[cfg(feature = "tls")]
            tls: OnceCell::new(),
        }
    }

    /// Who has sent the request.
    fn sender(&self) -> &Sender {
        self.client.get_or_init(|| {
            let client = self.conn.client(&self.head.headers);
            Box::new(Sender {
                addr: client.addr.to_string(),
                scheme: client.scheme,
                host: client.host.unwrap_or_default(),
            })
        })
    }

    /// What the handshake has agreed on.
    #[cfg(feature = "tls")]
    pub(super) fn tls(&self) -> Option<&Arc<TlsInfo>> {
        self.conn.tls.get()
    }

    /// What is told of the client's certificate.
    #[cfg(feature = "tls")]
    pub(super) fn texts(&self, make: impl FnOnce() -> Texts) -> &Texts {
        self.tls.get_or_init(|| Box::new(make()))
    }

    pub(super) fn server(&self) -> *const httpdown_server {
        self.server
    }

    pub(super) fn head(&self) -> &Parts {
        &self.head
    }

    /// The data of the server's host.
    ///
    /// # Safety
    /// The request has not been ended.
    pub(super) unsafe fn host(&self) -> Arc<ForeignData> {
        // SAFETY: until the request's end, its handler or its owner keeps the server alive.
        unsafe { &*self.server }.data()
    }

    /// Sets the host's own data, and returns the earlier data.
    ///
    /// # Safety
    /// Nobody else uses the data meanwhile.
    pub(super) unsafe fn set_data(&self, data: Arc<RequestData>) -> Option<Arc<RequestData>> {
        // SAFETY: the same promise.
        unsafe { &mut *self.data.get() }.replace(data)
    }

    /// The host's own data.
    ///
    /// # Safety
    /// Nobody sets the data while the result is used.
    pub(super) unsafe fn data(&self) -> Option<&RequestData> {
        // SAFETY: the same promise.
        unsafe { &*self.data.get() }.as_deref()
    }

    pub(super) fn take_headers(&mut self) -> HeaderMap {
        std::mem::take(&mut self.head.headers)
    }

    /// Takes the exchange, to answer and end the request.
    ///
    /// # Safety
    /// The caller has set `ENDING`. The header says that other users of the request are done.
    unsafe fn take(&self) -> Option<Exchange> {
        // SAFETY: the caller's promise.
        drop(unsafe { &mut *self.slot.get() }.take());
        // SAFETY: the same promise.
        unsafe { &mut *self.exchange.get() }.take()
    }
}

/// What is to be believed of who has sent a request, as text.
struct Sender {
    addr: String,
    scheme: &'static str,
    host: String,
}

/// The error when C's pointer is none that we gave out.
#[cold]
fn no_request(pointer: *const httpdown_request) -> Error {
    if pointer.is_null() {
        null("request")
    } else {
        Error::InvalidArgument("request is not a request".into())
    }
}

/// Finds a request that lives.
///
/// # Safety
/// While the result is used, nobody else may end the request.
#[allow(
    clippy::inline_always,
    reason = "a handler makes several calls that begin with this"
)]
#[inline(always)]
pub(super) unsafe fn see(
    pointer: *const httpdown_request,
) -> Result<(Entry, &'static httpdown_request)> {
    let entry = find(pointer).ok_or_else(|| no_request(pointer))?;
    if entry.holders() == 0 {
        return Err(Error::AlreadyReplied);
    }
    // SAFETY: the request has a holder, and the caller promises that a holder stays.
    let request = unsafe { entry.request() };
    Ok((entry, request.ok_or(Error::AlreadyReplied)?))
}

/// Calls `f` with a request that has not been ended.
///
/// # Safety
/// During the call, nobody else uses the request in this way, or ends it.
pub(super) unsafe fn with<T>(
    pointer: *mut httpdown_request,
    f: impl FnOnce(&httpdown_request, &mut Exchange) -> Result<T>,
) -> Result<T> {
    // SAFETY: the same promise.
    let (entry, request) = unsafe { see(pointer)? };
    if entry.holders() & OPEN == 0 {
        return Err(Error::AlreadyReplied);
    }
    // SAFETY: the header says of all functions that come here: one thread at a time.
    let exchange = unsafe { &mut *request.exchange.get() };
    let exchange = exchange.as_mut().ok_or(Error::AlreadyReplied)?;
    f(request, exchange)
}

/// Finds the slot of a request that has not been ended.
///
/// # Safety
/// Nobody ends the request while the result is used.
unsafe fn slot(pointer: *const httpdown_request) -> Result<&'static Arc<ReplySlot>> {
    // SAFETY: the same promise.
    let (entry, request) = unsafe { see(pointer)? };
    if entry.holders() & OPEN == 0 {
        return Err(Error::AlreadyReplied);
    }
    // SAFETY: only the thread that ends the request writes the slot.
    let slot = unsafe { &*request.slot.get() };
    slot.as_ref().ok_or(Error::AlreadyReplied)
}

/// Calls a handler with a request that is lent to it.
pub(super) fn lend(
    exchange: Exchange,
    server: &Arc<httpdown_server>,
    handler: impl FnOnce(*mut httpdown_request),
) {
    let Some(entry) = insert(|| httpdown_request::new(exchange, server), LENT | OPEN) else {
        return;
    };
    handler(entry.pointer());
    if entry.holders() & (OPEN | OWNED) == OPEN {
        // The handler has not answered. Dropping the exchange gives a 500 and a line in the log.
        let _ = end_as(entry, |_, _| Ok(()));
    }
    entry.replace(LENT, 0);
}

/// Gives a request away for good: the owner of the pointer ends it. `None`, and a 500, if there is no room.
pub(super) fn own(
    exchange: Exchange,
    server: &Arc<httpdown_server>,
) -> Option<*mut httpdown_request> {
    let entry = insert(|| httpdown_request::new(exchange, server), OPEN)?;
    keep(entry, Arc::as_ptr(server));
    Some(entry.pointer())
}

/// Turns a lent request into an owned one, which keeps its server alive. The caller ensures that `server` lives.
fn keep(entry: Entry, server: *const httpdown_server) {
    if entry
        .replace(OPEN, OPEN | OWNED)
        .is_some_and(|holders| holders & OWNED == 0)
    {
        // SAFETY: the server is in an Arc, which lives as long as the request is lent.
        unsafe { Arc::increment_strong_count(server) };
    }
}

/// Ends a request with `answer`, whatever the result of `answer` is.
///
/// # Safety
/// During the call, other threads use the request only where the header allows it.
pub(super) unsafe fn end(
    pointer: *mut httpdown_request,
    answer: impl FnOnce(Entry, &mut Exchange) -> Result<()>,
) -> c_int {
    status(|| {
        // SAFETY: the same promise.
        let (entry, _) = unsafe { see(pointer)? };
        end_as(entry, answer)
    })
}

/// Like [`end`], for a request that was already found. If `answer` does not answer, the client gets a 500.
fn end_as(entry: Entry, answer: impl FnOnce(Entry, &mut Exchange) -> Result<()>) -> Result<()> {
    let holders = entry.replace(OPEN, ENDING).ok_or(Error::AlreadyReplied)?;
    // Dropped last, even if the host's code panics.
    let _ending = Ending { entry, holders };
    // SAFETY: `ENDING` holds the request.
    let request = unsafe { entry.request() }.ok_or(Error::AlreadyReplied)?;
    // SAFETY: nobody else can have set `ENDING`, and the header says that other users are done.
    let mut exchange = unsafe { request.take() }.ok_or(Error::AlreadyReplied)?;
    let result = exchange.answer_by(|exchange| answer(entry, exchange));
    exchange.name_if_unanswered(&request.head.uri);
    result
}

/// While this value lives, a request is being ended.
struct Ending {
    entry: Entry,
    /// The holders before `ENDING` was set.
    holders: Holders,
}

impl Drop for Ending {
    fn drop(&mut self) {
        // SAFETY: `ENDING` holds the request.
        let request = unsafe { self.entry.request() };
        let server = request.map(|request| request.server);
        self.entry.replace(ENDING, 0);
        if let Some(server) = server.filter(|_| self.holders & OWNED != 0) {
            // SAFETY: the count that `keep` has added.
            unsafe { Arc::decrement_strong_count(server) };
        }
    }
}

/// A field of the request's head.
///
/// # Safety
/// The header's preface.
unsafe fn field(
    pointer: *const httpdown_request,
    get: impl FnOnce(&httpdown_request) -> httpdown_bytes,
) -> httpdown_bytes {
    value(httpdown_bytes::NONE, || {
        // SAFETY: the same promise.
        let (_, request) = unsafe { see(pointer)? };
        Ok(get(request))
    })
}

/// Returns the method as the client sent it: "GET". Borrowed as long as the request lives. Never blocks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_request_method(
    request: *const httpdown_request,
) -> httpdown_bytes {
    // SAFETY: the same promise.
    unsafe {
        field(request, |request| {
            httpdown_bytes::of(request.head.method.as_str().as_bytes())
        })
    }
}

/// Returns the target, mostly path and query, not decoded: "/a%20b?c=d". A fragment is not included. Borrowed as long
/// as the request lives. Never blocks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_request_target(
    request: *const httpdown_request,
) -> httpdown_bytes {
    // SAFETY: the same promise.
    unsafe {
        field(request, |request| {
            let target = request.target.get_or_init(|| request.head.uri.to_string());
            httpdown_bytes::of(target.as_bytes())
        })
    }
}

/// Returns the path of the target, not decoded: "/a%20b". Borrowed as long as the request lives. Never blocks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_request_path(request: *const httpdown_request) -> httpdown_bytes {
    // SAFETY: the same promise.
    unsafe {
        field(request, |request| {
            httpdown_bytes::of(request.head.uri.path().as_bytes())
        })
    }
}

/// Returns the query: the part of the target after the question mark, not decoded: "c=d". `data` is NULL if there is no
/// question mark. Borrowed as long as the request lives. Never blocks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_request_query(
    request: *const httpdown_request,
) -> httpdown_bytes {
    // SAFETY: the same promise.
    unsafe {
        field(request, |request| {
            let query = request.head.uri.query();
            query.map_or(httpdown_bytes::NONE, |query| {
                httpdown_bytes::of(query.as_bytes())
            })
        })
    }
}

/// Returns the scheme by which the request came: "http", or, by TLS, "https". Static. Never blocks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_request_scheme(
    request: *const httpdown_request,
) -> httpdown_bytes {
    // SAFETY: the same promise.
    unsafe {
        field(request, |request| {
            let scheme: &[u8] = if request.conn.is_secure() {
                b"https"
            } else {
                b"http"
            };
            httpdown_bytes::of(scheme)
        })
    }
}

/// Returns the version of HTTP times ten: 10 or 11; 0 if there is no request. Never blocks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_request_version(request: *const httpdown_request) -> c_int {
    value(0, || {
        // SAFETY: the header's preface.
        let (_, request) = unsafe { see(request)? };
        Ok(if request.head.version == Version::HTTP_10 {
            10
        } else {
            11
        })
    })
}

/// Returns the value of the first header with this name (NUL-terminated, in upper or lower case); `data` is NULL if
/// there is no such header. If the target is absolute ("http://a/b"), the value of "Host" comes from the target.
/// Borrowed as long as the request lives. Never blocks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_request_header(
    request: *const httpdown_request,
    name: *const c_char,
) -> httpdown_bytes {
    if name.is_null() {
        return httpdown_bytes::NONE;
    }
    // SAFETY: the header's preface: NUL-terminated.
    let name = unsafe { CStr::from_ptr(name) };
    // SAFETY: the same promise.
    unsafe {
        field(request, |request| {
            let name = HeaderName::from_bytes(name.to_bytes());
            let value = name.ok().and_then(|name| request.head.headers.get(name));
            value.map_or(httpdown_bytes::NONE, |value| {
                httpdown_bytes::of(value.as_bytes())
            })
        })
    }
}

/// Returns the number of header fields. Never blocks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_request_header_count(request: *const httpdown_request) -> usize {
    value(0, || {
        // SAFETY: the header's preface.
        let (_, request) = unsafe { see(request)? };
        Ok(request.head.headers.len())
    })
}

/// Writes up to `capacity` header fields into `headers`, starting with field number `first` (0: from the beginning),
/// and their number into `*count`. Fields with the same name stand together, in the order in which they came. Borrowed
/// as long as the request lives. Never blocks.
///
/// Returns OK, INVALID_ARGUMENT, ALREADY_REPLIED, FORKED.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_request_headers(
    request: *const httpdown_request,
    first: usize,
    headers: *mut httpdown_header,
    capacity: usize,
    count: *mut usize,
) -> c_int {
    status(|| {
        // SAFETY: the header's preface.
        let (_, request) = unsafe { see(request)? };
        // SAFETY: the header's preface: NULL or an array of that size.
        let headers = unsafe { room(headers, capacity, "headers")? };
        // SAFETY: the header's preface: NULL or writable.
        let count = unsafe { output(count, "count")? };
        count.write(write_fields(&request.head.headers, first, headers));
        Ok(())
    })
}

/// Returns the address from which the connection comes. An IPv4 address has the form "127.0.0.1:50000", even if the
/// socket accepts IPv4 and IPv6. For a Unix socket the address is "unix:", followed by a path or a name if the client
/// has bound its own socket. If a header of the PROXY protocol says whose connection it is (proxy_protocol_from), this
/// is the address in the header. What is to be believed of the fields that other proxies set:
/// httpdown_request_client_addr. Borrowed as long as the request lives. Never blocks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_request_peer_addr(
    request: *const httpdown_request,
) -> httpdown_bytes {
    // SAFETY: the same promise.
    unsafe {
        field(request, |request| {
            let peer = request.peer.get_or_init(|| request.conn.peer.to_string());
            httpdown_bytes::of(peer.as_bytes())
        })
    }
}

/// Returns the server's address that the client connected to: the proxy's, if a header of the PROXY protocol says that.
/// Borrowed as long as the request lives. Never blocks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_request_local_addr(
    request: *const httpdown_request,
) -> httpdown_bytes {
    // SAFETY: the same promise.
    unsafe {
        field(request, |request| {
            let local = request.local.get_or_init(|| request.conn.local.to_string());
            httpdown_bytes::of(local.as_bytes())
        })
    }
}

/// Returns the address of the proxy from which the connection comes, if it has said by the PROXY protocol whose
/// connection it is; otherwise nothing (`data` is NULL). Borrowed as long as the request lives. Never blocks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_request_proxy_addr(
    request: *const httpdown_request,
) -> httpdown_bytes {
    // SAFETY: the same promise.
    unsafe {
        field(request, |request| {
            let Some(addr) = request.conn.proxy() else {
                return httpdown_bytes::NONE;
            };
            let proxy = request.proxy.get_or_init(|| addr.to_string());
            httpdown_bytes::of(proxy.as_bytes())
        })
    }
}

/// Returns the address of the client that has sent the request, as far as that is to be believed: without the option
/// `trusted_proxies`, httpdown_request_peer_addr. If the request comes from a trusted proxy, the address is the one
/// that it says, or, if that is a trusted proxy too, the one that this says, and so on. The text is "192.0.2.1" or
/// "2001:db8::1" if no port is known, otherwise as in httpdown_request_peer_addr; "unknown", or a name that begins with
/// an underscore, if a trusted proxy does not say the address. Borrowed as long as the request lives. Never blocks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_request_client_addr(
    request: *const httpdown_request,
) -> httpdown_bytes {
    // SAFETY: the same promise.
    unsafe {
        field(request, |request| {
            httpdown_bytes::of(request.sender().addr.as_bytes())
        })
    }
}

/// Returns how the client has asked, "http" or "https": as a trusted proxy says, otherwise like
/// httpdown_request_scheme. Borrowed as long as the request lives. Never blocks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_request_client_scheme(
    request: *const httpdown_request,
) -> httpdown_bytes {
    // SAFETY: the same promise.
    unsafe {
        field(request, |request| {
            httpdown_bytes::of(request.sender().scheme.as_bytes())
        })
    }
}

/// Returns the host that the client has asked for, perhaps with a port: as a trusted proxy says, otherwise the field
/// Host. Empty without one (HTTP/1.0). Borrowed as long as the request lives. Never blocks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_request_client_host(
    request: *const httpdown_request,
) -> httpdown_bytes {
    // SAFETY: the same promise.
    unsafe {
        field(request, |request| {
            httpdown_bytes::of(request.sender().host.as_bytes())
        })
    }
}

/// Writes into `*credentials` which process has connected by a Unix socket, as the kernel knew it at the time of the
/// connect (SO_PEERCRED, see unix(7)). That process may have passed the connection to another process since. Never
/// blocks.
///
/// Returns OK; NOT_FOUND if the client has not connected by a Unix socket; INVALID_ARGUMENT, ALREADY_REPLIED, FORKED.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_request_peer_credentials(
    request: *const httpdown_request,
    credentials: *mut httpdown_credentials,
) -> c_int {
    status_of_several(|| {
        // SAFETY: the header's preface.
        let (_, request) = unsafe { see(request)? };
        // SAFETY: the header's preface: NULL or writable.
        let output = unsafe { output(credentials, "credentials")? };
        let Some(found) = request.conn.credentials else {
            return Ok(HTTPDOWN_STATUS_NOT_FOUND);
        };
        output.write(httpdown_credentials {
            pid: found.pid.unwrap_or(0),
            uid: found.uid,
            gid: found.gid,
        });
        Ok(HTTPDOWN_STATUS_OK)
    })
}

/// Returns the number of the request's connection, the same as in `on_conn_state`. Never blocks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_request_conn_id(request: *const httpdown_request) -> u64 {
    value(0, || {
        // SAFETY: the header's preface.
        let (_, request) = unsafe { see(request)? };
        Ok(request.conn.id)
    })
}

/// Returns the server that the request came to. A handler may run before httpdown_serve has returned the server. The
/// pointer is borrowed until the handler has returned or the request is ended, whichever is later; do not free the
/// server by this pointer unless you also own the server. NULL if `request` is NULL. Never blocks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_request_server(
    request: *const httpdown_request,
) -> *const httpdown_server {
    value(std::ptr::null(), || {
        // SAFETY: the header's preface.
        let (entry, request) = unsafe { see(request)? };
        let is_alive = entry.holders() & (LENT | OPEN) != 0;
        Ok(if is_alive {
            request.server
        } else {
            std::ptr::null()
        })
    })
}

/// Reads the next bytes of the request's body into `buffer`, and writes their number into `*count`; 0 is the end of the
/// body. Waits at most `timeout_ms` until there are some bytes. With HTTPDOWN_NOW, any thread may make this call. A
/// client may wait with its body until it is asked (Expect: 100-continue). The first read, or httpdown_reply_start,
/// asks it. If the client has its whole answer already, a stop lets the connection end when no bytes have come, or been
/// read, for idle_grace_ms.
///
/// Returns OK, WOULD_BLOCK (no bytes are there: the time has passed, or the thread drives connections and must not
/// wait), GONE (the client has left), BAD_BODY (the client has broken the protocol; if the request is then ended
/// without an answer, the client gets a 400), TOO_SLOW (the client was waited for too long: body_timeout_ms; without an
/// answer it gets a 408), TOO_LARGE (the client has sent more than max_body_size; without an answer it gets a 413),
/// KILLED, INVALID_ARGUMENT, ALREADY_REPLIED, FORKED.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_request_read(
    request: *mut httpdown_request,
    buffer: *mut c_void,
    capacity: usize,
    timeout_ms: u32,
    count: *mut usize,
) -> c_int {
    status(|| {
        // SAFETY: the header's preface: NULL or a buffer of that size.
        let buffer = unsafe { room(buffer.cast::<u8>(), capacity, "buffer")? };
        // SAFETY: the header's preface: NULL or writable.
        let count = unsafe { output(count, "count")? };
        if buffer.is_empty() {
            return Err(Error::InvalidArgument("no room to read into".into()));
        }
        let (limit, deadline) = (buffer.len(), timeout(timeout_ms));
        // SAFETY: the header's preface.
        let data = unsafe { with(request, |_, exchange| exchange.read_by(limit, deadline))? };
        for (place, byte) in buffer.iter_mut().zip(&data) {
            place.write(*byte);
        }
        count.write(data.len());
        Ok(())
    })
}

/// Gives the whole body of the request, if the body has at most `limit` bytes. `*body` is borrowed as long as the
/// request lives. Waits at most `timeout_ms` until the whole body is there. With HTTPDOWN_NOW, any thread may make this
/// call. A second call gives the same bytes. Bytes that httpdown_request_read took before are missing.
///
/// Returns OK, TOO_LARGE (the body is longer; nothing is lost: ask again, or read the body in pieces, unless the client
/// has sent more than max_body_size), WOULD_BLOCK (not all of it is there; nothing is lost), and as
/// httpdown_request_read.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_request_body(
    request: *mut httpdown_request,
    limit: usize,
    timeout_ms: u32,
    body: *mut httpdown_bytes,
) -> c_int {
    status(|| {
        // SAFETY: the header's preface: NULL or writable.
        let output = unsafe { output(body, "body")? };
        let deadline = timeout(timeout_ms);
        let read = |request: &httpdown_request, exchange: &mut Exchange| {
            if request.body.get().is_none() {
                let _ = request.body.set(exchange.read_to_end_by(limit, deadline)?);
            }
            let bytes = request.body.get().map_or(&[][..], |body| body);
            if bytes.len() > limit {
                return Err(Error::TooLarge);
            }
            output.write(httpdown_bytes::of(bytes));
            Ok(())
        };
        // SAFETY: the header's preface.
        unsafe { with(request, read) }
    })
}

/// Writes the trailer fields of the request's body, like httpdown_request_headers. They are there when the end of the
/// body has been read; before, and without any, `*count` is 0. Borrowed until the request is ended. Never blocks.
///
/// Returns OK, INVALID_ARGUMENT, ALREADY_REPLIED, FORKED.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_request_trailers(
    request: *mut httpdown_request,
    first: usize,
    trailers: *mut httpdown_header,
    capacity: usize,
    count: *mut usize,
) -> c_int {
    status(|| {
        // SAFETY: the header's preface: NULL or an array of that size.
        let room = unsafe { room(trailers, capacity, "trailers")? };
        // SAFETY: the header's preface: NULL or writable.
        let count = unsafe { output(count, "count")? };
        let copy = |_: &httpdown_request, exchange: &mut Exchange| {
            count.write(write_fields(exchange.trailers(), first, room));
            Ok(())
        };
        // SAFETY: the header's preface.
        unsafe { with(request, copy) }
    })
}

/// Writes the fields from number `first` on, as many as there is room for. Returns their number.
fn write_fields(
    fields: &HeaderMap,
    first: usize,
    room: &mut [MaybeUninit<httpdown_header>],
) -> usize {
    let mut written = 0;
    for (place, (name, value)) in room.iter_mut().zip(fields.iter().skip(first)) {
        place.write(httpdown_header {
            name: httpdown_bytes::of(name.as_str().as_bytes()),
            value: httpdown_bytes::of(value.as_bytes()),
        });
        written += 1;
    }
    written
}

/// As a deadline; `None`: without limit.
pub(super) fn timeout(timeout_ms: u32) -> Option<Instant> {
    (timeout_ms != HTTPDOWN_FOREVER)
        .then(|| deadline(timeout_ms))
        .flatten()
}

/// Returns whether an answer is useless by now: the client has left, the server was killed, or the answer is complete
/// (an answer without a body is complete soon after httpdown_reply_start). True if `request` is NULL. Never blocks. Any
/// thread may make this call, even while another thread uses the request, until the request is ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_request_cancelled(request: *const httpdown_request) -> bool {
    value(true, || {
        // SAFETY: the header's preface.
        let slot = unsafe { slot(request)? };
        Ok(slot.over().is_some())
    })
}

/// Returns whether the program has had the request for longer than `handler_timeout_ms`; false without that option, or
/// if `request` is NULL. This is advice, and an answer is as useful as before (httpdown_request_cancelled): for a
/// handler that computes, and would rather send a part of its result, or say that it is busy. It is also true while the
/// handler blocks the thread that drives the connection, and before HTTPDOWN_OVERDUE is told. Never blocks. Any thread
/// may make this call, even while another thread uses the request, until the request is ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_request_overdue(request: *const httpdown_request) -> bool {
    value(false, || {
        // SAFETY: the header's preface.
        let slot = unsafe { slot(request)? };
        Ok(slot.inflight().is_overdue())
    })
}

/// Sleeps for `timeout_ms`, or until an answer is useless (see httpdown_request_cancelled). Any thread may make this
/// call, even while another thread uses the request, until the request is ended. With HTTPDOWN_DISPATCH_INLINE, a
/// handler that waits here blocks the thread that would see its client leave, and all connections of that thread. So
/// this call learns only of a kill and of the timeout.
///
/// Returns WOULD_BLOCK (the time has passed: go on), GONE (the client has left), KILLED, ALREADY_REPLIED (the answer is
/// complete), INVALID_ARGUMENT, FORKED. A client that has only closed its half of the connection (a FIN) may still
/// read, and is not gone.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_request_wait_cancelled(
    request: *const httpdown_request,
    timeout_ms: u32,
) -> c_int {
    status(|| {
        // SAFETY: the header's preface.
        let cancellation = unsafe { slot(request)? }.cancellation();
        let why = cancellation.wait_until(deadline(timeout_ms));
        Err(why.unwrap_or(Error::WouldBlock))
    })
}

/// Keeps a request that was lent to a handler. You own the request now: you may move it to another thread, and must end
/// it. Never blocks. After the end of the request, the handler may still read its head, but other threads may not,
/// unless httpdown_request_retain was called.
///
/// Returns OK, ALREADY_REPLIED, INVALID_ARGUMENT, FORKED.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_request_defer(request: *mut httpdown_request) -> c_int {
    status(|| {
        // SAFETY: the header's preface.
        let (entry, request) = unsafe { see(request)? };
        if entry.holders() & OPEN == 0 {
            return Err(Error::AlreadyReplied);
        }
        keep(entry, request.server);
        Ok(())
    })
}

/// Makes a request that has not been ended live until httpdown_request_release, even after its end. Until then, its
/// head can be read, and the body that httpdown_request_body has given. A second call does nothing. The request must
/// still be ended. A stop does not wait for the release. Never blocks.
///
/// Returns OK, ALREADY_REPLIED, INVALID_ARGUMENT, FORKED.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_request_retain(request: *mut httpdown_request) -> c_int {
    status(|| {
        // SAFETY: the header's preface.
        let (entry, _) = unsafe { see(request)? };
        let open = entry.replace(OPEN, OPEN | RETAINED);
        open.map(drop).ok_or(Error::AlreadyReplied)
    })
}

/// Gives up a request that httpdown_request_retain has kept. Any thread may make this call, but nobody may read the
/// request at the same time. If the request has not been ended, it must still be ended. Never blocks.
///
/// Returns OK, ALREADY_REPLIED (the request does not live any more, or was not retained), INVALID_ARGUMENT, FORKED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_request_release(request: *mut httpdown_request) -> c_int {
    status(|| {
        // SAFETY: the header's preface.
        let (entry, _) = unsafe { see(request)? };
        let retained = entry.replace(RETAINED, 0);
        retained.map(drop).ok_or(Error::AlreadyReplied)
    })
}

/// Answers with a whole response, and ends the request, whatever this function returns. It copies all arguments before
/// it returns. It does not wait for the client.
///
/// `status_code` is from 200 to 999. The library sets Content-Length and Date. A 204 or 205 has no body: a given body
/// is not sent, nor is a given Content-Length (for 205, it is 0). A header's name or value with a forbidden character
/// (CR, LF, NUL) is refused: then the client gets a 500, as for any INVALID_ARGUMENT.
///
/// Returns OK, GONE (the client has left), TOO_SLOW, KILLED, ALREADY_REPLIED, INVALID_ARGUMENT, FORKED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_reply(
    request: *mut httpdown_request,
    status_code: c_int,
    headers: *const httpdown_header,
    header_count: usize,
    body: *const c_void,
    body_len: usize,
) -> c_int {
    // SAFETY: the same promise.
    unsafe {
        end(request, |_, exchange| {
            let body = Bytes::copy_from_slice(slice(body.cast::<u8>(), body_len, "body")?);
            let head = response(status_code, headers, header_count)?;
            exchange.try_reply(head.map(|()| body))
        })
    }
}

/// Answers with a text (NUL-terminated UTF-8) as text/plain. Otherwise like httpdown_reply.
///
/// Returns as httpdown_reply.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_reply_text(
    request: *mut httpdown_request,
    status_code: c_int,
    text: *const c_char,
) -> c_int {
    // SAFETY: the same promise.
    unsafe {
        end(request, |entry, exchange| {
            let text = super::boundary::text(text, "text")?;
            let text = text.ok_or_else(|| Error::InvalidArgument("text is NULL".into()))?;
            let body = Bytes::copy_from_slice(text.as_bytes());
            let mut head = Response::new(());
            *head.status_mut() = status_of_answer(status_code)?;
            *head.headers_mut() = entry.spare();
            head.headers_mut().insert(
                http::header::CONTENT_TYPE,
                HeaderValue::from_static("text/plain; charset=utf-8"),
            );
            exchange.try_reply(head.map(|()| body))
        })
    }
}

/// Answers with a body that is not copied. The body must not change until `release` (may be NULL) is called with
/// `release_data`. `release` is called exactly once, on any thread, whatever this function returns, perhaps before it
/// returns. `release` should not block: mostly it is called on a thread that drives connections, and they wait for
/// `release`. Otherwise like httpdown_reply.
///
/// Returns as httpdown_reply.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_reply_borrowed(
    request: *mut httpdown_request,
    status_code: c_int,
    headers: *const httpdown_header,
    header_count: usize,
    body: *const c_void,
    body_len: usize,
    release: httpdown_destroy_fn,
    release_data: *mut c_void,
) -> c_int {
    let owner = ForeignData {
        pointer: release_data,
        destroy: release,
    };
    // SAFETY: the same promise.
    unsafe {
        end(request, |_, exchange| {
            let bytes = slice(body.cast::<u8>(), body_len, "body")?;
            let body = Bytes::from_owner(Lent {
                bytes,
                _owner: owner,
            });
            let head = response(status_code, headers, header_count)?;
            exchange.try_reply(head.map(|()| body))
        })
    }
}

/// The host's memory, which is borrowed until this value is dropped.
struct Lent {
    bytes: &'static [u8],
    _owner: ForeignData,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        self.bytes
    }
}

/// Begins an answer whose body follows in pieces. The head is sent as soon as the connection can take it. On OK you own
/// the request, and must end it by httpdown_reply_finish or httpdown_reply_abort. Otherwise the request is as before.
/// Never blocks.
///
/// The body is sent in chunks, unless the headers have a Content-Length (which is not sent with a 204 or 205). The head
/// says Connection: close if, when it is sent, more than 64 KiB of the request's body are still missing, or the end of
/// a chunked body is. The reason: nobody knows whether the rest will be read.
///
/// Returns as httpdown_reply.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_reply_start(
    request: *mut httpdown_request,
    status_code: c_int,
    headers: *const httpdown_header,
    header_count: usize,
) -> c_int {
    status(|| {
        let begin = |exchange: &mut Exchange| {
            // SAFETY: the header's preface: an array of that length.
            exchange.start(unsafe { response(status_code, headers, header_count)? })
        };
        // SAFETY: the header's preface.
        unsafe {
            with(request, |_, exchange| exchange.answer_by(begin))?;
            let (entry, request) = see(request)?;
            keep(entry, request.server);
        }
        Ok(())
    })
}

/// Sends more of the answer's body, as soon as the client takes it, and writes into `*taken` how many bytes those are.
/// `data` is copied. If too many bytes wait to be sent (256 KiB; 48 KiB if the server's clients together leave more
/// than 2 MiB waiting), waits at most `timeout_ms` until there is room: a slow client slows the writer down. On
/// OK at least one byte was taken, if there are any: write the rest again. With HTTPDOWN_FOREVER all of `data` is
/// taken, and `taken` may be NULL. With HTTPDOWN_NOW, any thread may make this call.
///
/// Returns OK, WOULD_BLOCK (nothing was taken: the time has passed, or the thread drives connections and must not
/// wait), GONE (the client has left), TOO_SLOW (it has taken nothing for too long: write_timeout_ms), KILLED,
/// ALREADY_REPLIED (the answer has no body: it is to HEAD, or a 204, 205 or 304), INVALID_ARGUMENT (also: no answer has
/// begun, or the body exceeds its Content-Length), FORKED. On a thread that drives connections, HTTPDOWN_FOREVER takes
/// all of `data` or nothing; when nothing waits, there is room for any length.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_reply_write(
    request: *mut httpdown_request,
    data: *const c_void,
    len: usize,
    timeout_ms: u32,
    taken: *mut usize,
) -> c_int {
    status(|| {
        // SAFETY: the header's preface: bytes of that length.
        let data = unsafe { slice(data.cast::<u8>(), len, "data")? };
        let deadline = timeout(timeout_ms);
        // SAFETY: the header's preface: NULL or writable.
        let output = unsafe { output(taken, "taken") };
        if deadline.is_some() && output.is_err() {
            return output.map(drop);
        }
        // SAFETY: the header's preface.
        let taken = unsafe { with(request, |_, exchange| exchange.write_by(data, deadline))? };
        if let Ok(output) = output {
            output.write(taken);
        }
        Ok(())
    })
}

/// Sets the trailer fields of an answer that was begun, instead of those that were set before; httpdown_reply_finish
/// sends them. They are copied. They reach only a client that has asked for them (TE: trailers), and only those fields
/// that the answer's header field Trailer has named, in an answer without a Content-Length (RFC 9110, 6.5.1). Never
/// blocks.
///
/// Returns OK, INVALID_ARGUMENT (also: no answer has begun), ALREADY_REPLIED, FORKED.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_reply_trailers(
    request: *mut httpdown_request,
    trailers: *const httpdown_header,
    trailer_count: usize,
) -> c_int {
    status(|| {
        // SAFETY: the header's preface: an array of that length.
        let trailers = unsafe { fields(trailers, trailer_count, "trailers")? };
        // SAFETY: the header's preface.
        unsafe { with(request, |_, exchange| exchange.set_trailers(trailers)) }
    })
}

/// Ends an answer that was begun, and the request, whatever this function returns. Does not wait for the client. Both
/// of these are INVALID_ARGUMENT: without httpdown_reply_start, the client gets a 500; if fewer bytes were written than
/// the Content-Length says, the client sees the answer cut.
///
/// Returns OK, GONE (the client has left), TOO_SLOW, KILLED, ALREADY_REPLIED, INVALID_ARGUMENT, FORKED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_reply_finish(request: *mut httpdown_request) -> c_int {
    // SAFETY: the same promise.
    unsafe { end(request, |_, exchange| exchange.try_finish()) }
}

/// Ends a request without an answer. The client gets a 500 or, if an answer has begun, sees the answer cut. Never
/// blocks.
///
/// Returns OK, ALREADY_REPLIED, INVALID_ARGUMENT, FORKED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_reply_abort(request: *mut httpdown_request) -> c_int {
    // SAFETY: the same promise.
    unsafe { end(request, |_, _| Ok(())) }
}

/// Returns the bytes of a NUL-terminated text, for a httpdown_header. NULL gives no bytes. Never blocks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_str(text: *const c_char) -> httpdown_bytes {
    if text.is_null() {
        return httpdown_bytes::NONE;
    }
    // SAFETY: the header's preface: NUL-terminated.
    httpdown_bytes::of(unsafe { CStr::from_ptr(text) }.to_bytes())
}

/// Returns whether the bytes are exactly this NUL-terminated text. Never blocks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_bytes_equal(bytes: httpdown_bytes, text: *const c_char) -> bool {
    if text.is_null() {
        return false;
    }
    // SAFETY: the header's preface: NUL-terminated.
    let text = unsafe { CStr::from_ptr(text) };
    // SAFETY: the header's preface: bytes of that length.
    let bytes = unsafe { bytes.as_slice("bytes") };
    bytes.is_ok_and(|bytes| bytes == text.to_bytes())
}

/// The head of an answer.
///
/// # Safety
/// NULL or an array of that length.
pub(super) unsafe fn response(
    status_code: c_int,
    headers: *const httpdown_header,
    header_count: usize,
) -> Result<Response<()>> {
    let code = status_of_answer(status_code)?;
    // SAFETY: the same promise.
    let map = unsafe { fields(headers, header_count, "headers")? };
    let mut response = Response::new(());
    *response.status_mut() = code;
    *response.headers_mut() = map;
    Ok(response)
}

/// Header or trailer fields.
///
/// # Safety
/// NULL or an array of that length.
pub(super) unsafe fn fields(
    headers: *const httpdown_header,
    header_count: usize,
    name: &str,
) -> Result<HeaderMap> {
    let wrong = Error::InvalidArgument;
    // SAFETY: the caller's promise.
    let headers = unsafe { slice(headers, header_count, name)? };
    let mut map = HeaderMap::new();
    for header in headers {
        // SAFETY: the header's preface: bytes of that length.
        let name = unsafe { header.name.as_slice("header name")? };
        // SAFETY: as above.
        let value = unsafe { header.value.as_slice("header value")? };
        let quoted = |bytes: &[u8]| bytes.escape_ascii().to_string();
        let name = HeaderName::from_bytes(name)
            .map_err(|_| wrong(format!("not a header name: \"{}\"", quoted(name))))?;
        let value = HeaderValue::from_bytes(value).map_err(|_| {
            wrong(format!(
                "not a value for the header {name}: \"{}\"",
                quoted(value)
            ))
        })?;
        map.try_append(name, value)
            .map_err(|_| wrong("too many headers".to_owned()))?;
    }
    Ok(map)
}

fn status_of_answer(number: c_int) -> Result<StatusCode> {
    let code = u16::try_from(number).ok();
    let code = code.and_then(|code| StatusCode::from_u16(code).ok());
    code.ok_or_else(|| Error::InvalidArgument(format!("{number} is not a status from 200 to 999")))
}
