//! The types that cross the boundary by value, and the names of the callbacks.

use std::ffi::{c_char, c_int, c_void};

use super::clock::httpdown_clock;
use super::record::{httpdown_done_fn, httpdown_request_record};
use super::request::httpdown_request;
use super::server::httpdown_server;
use super::stream::httpdown_stream;

/// The result of a call. Functions return this status as an int. Numbers are never reused.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum httpdown_status {
    /// The call has succeeded.
    HTTPDOWN_STATUS_OK = 0,
    /// An argument makes no sense: NULL where something is needed, a size or a value out of range.
    HTTPDOWN_STATUS_INVALID_ARGUMENT = 1,
    /// The options ask for something that this version of the library does not know.
    HTTPDOWN_STATUS_UNSUPPORTED = 2,
    /// An address could not be parsed or resolved.
    HTTPDOWN_STATUS_ADDR_INVALID = 3,
    /// The address is in use.
    HTTPDOWN_STATUS_ADDR_IN_USE = 4,
    /// The operating system does not permit this (mostly: to listen on a port below 1024).
    HTTPDOWN_STATUS_PERMISSION_DENIED = 5,
    /// Another error of the operating system.
    HTTPDOWN_STATUS_IO = 6,
    /// The kill timeout passed while handlers were still running. These handlers were abandoned.
    HTTPDOWN_STATUS_TIMED_OUT = 7,
    /// The server has stopped, so this call came too late.
    HTTPDOWN_STATUS_STOPPED = 8,
    /// The call would wait for its own thread, or for a request that this thread holds.
    HTTPDOWN_STATUS_WOULD_DEADLOCK = 9,
    /// The request has been answered already, or its answer has begun.
    HTTPDOWN_STATUS_ALREADY_REPLIED = 10,
    /// The system had no more threads, descriptors or memory.
    HTTPDOWN_STATUS_OUT_OF_RESOURCES = 11,
    /// There is nothing to take yet, or no room yet. Either the call's own timeout has passed, or the thread must not
    /// wait.
    HTTPDOWN_STATUS_WOULD_BLOCK = 12,
    /// The client has left.
    HTTPDOWN_STATUS_GONE = 13,
    /// The stop timeout passed, or a kill was asked for, and requests were cut.
    HTTPDOWN_STATUS_KILLED = 14,
    /// The process was forked, and this is the child; the server's threads live in the parent. Every call returns this
    /// status in a child that was forked while one of these existed: a server that had not been freed, a running
    /// httpdown_run or httpdown_run_all, or a thread that one of them had left behind. The same holds for that child's own children. An
    /// exec ends this state.
    HTTPDOWN_STATUS_FORKED = 15,
    /// A body is longer than the given limit, or a text is longer than the buffer.
    HTTPDOWN_STATUS_TOO_LARGE = 16,
    /// The thing that was asked for does not exist.
    HTTPDOWN_STATUS_NOT_FOUND = 17,
    /// The client has broken the protocol in the body of its request.
    HTTPDOWN_STATUS_BAD_BODY = 18,
    /// A certificate, a key or something else of the TLS settings cannot be used; the text says why.
    HTTPDOWN_STATUS_TLS = 19,
    /// The client was too slow with its request's body, or in taking its answer: `body_timeout_ms`, `write_timeout_ms`.
    HTTPDOWN_STATUS_TOO_SLOW = 20,
    /// The program could not be restarted; the process goes on as before.
    HTTPDOWN_STATUS_RESTART_FAILED = 21,
    /// Not now: something of the kind is under way.
    HTTPDOWN_STATUS_BUSY = 22,
    /// A bug in httpdown. Please report it.
    HTTPDOWN_STATUS_PANIC = 99,
}

/// The phase of a server's life, returned by httpdown_phase. A phase only moves forward.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(dead_code, reason = "Rust 1.88 does not see that it is for C")]
pub enum httpdown_phase_code {
    /// The server accepts connections and answers requests.
    HTTPDOWN_PHASE_SERVING = 0,
    /// The server still accepts connections, but is no longer ready (lame_duck_ms).
    HTTPDOWN_PHASE_LAME_DUCK = 1,
    /// The server accepts the connections that wait in its listening sockets, and closes these sockets.
    HTTPDOWN_PHASE_QUIESCING = 2,
    /// The server takes no new connections, and finishes the requests that it has (stop_timeout_ms).
    HTTPDOWN_PHASE_DRAINING = 3,
    /// The server cuts the connections that are left (kill_timeout_ms).
    HTTPDOWN_PHASE_KILLING = 4,
    /// The server has stopped.
    HTTPDOWN_PHASE_STOPPED = 5,
}

/// The state of a connection.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(dead_code, reason = "Rust 1.88 does not see that it is for C")]
pub enum httpdown_conn_state {
    /// The connection was accepted, and its TLS handshake is done, if it has one; no byte of a request has come yet.
    HTTPDOWN_CONN_NEW = 0,
    /// A request is under way: from its first byte to the last byte of its response.
    HTTPDOWN_CONN_ACTIVE = 1,
    /// The connection is between two requests.
    HTTPDOWN_CONN_IDLE = 2,
    /// A handler has taken the connection over; it no longer carries HTTP.
    HTTPDOWN_CONN_HIJACKED = 3,
    /// The connection is closed.
    HTTPDOWN_CONN_CLOSED = 4,
    /// The connection was accepted, and its TLS handshake is not done, or its header of the PROXY protocol has not
    /// come. It becomes new.
    HTTPDOWN_CONN_HANDSHAKING = 5,
}

/// How requests reach the program: the option `dispatch`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub enum httpdown_dispatch {
    /// The handler is called on a pool of threads (`pool_threads`). It may block.
    HTTPDOWN_DISPATCH_POOL = 0,
    /// The handler is called on the thread that drives the connection. This is the fastest way. But the handler must
    /// not block, because other connections wait for this thread. On this thread, reading and writing fail with
    /// WOULD_BLOCK instead of waiting. A short body (`body_buffer`) is there when the handler is called. Of another one,
    /// the handler can read the part that was received before the call (at least 64 KiB, if that much has come). To
    /// read the rest, keep the request, and read on another thread, or ask to be told (httpdown_request_notify).
    HTTPDOWN_DISPATCH_INLINE = 1,
    /// There is no handler: the program takes requests with httpdown_next.
    HTTPDOWN_DISPATCH_QUEUE = 2,
}

/// How much a log line matters.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(dead_code, reason = "Rust 1.88 does not see that it is for C")]
pub enum httpdown_log_level {
    /// Something failed.
    HTTPDOWN_LOG_ERROR = 0,
    /// Something unexpected happened; the server goes on.
    HTTPDOWN_LOG_WARNING = 1,
    /// For information.
    HTTPDOWN_LOG_INFO = 2,
}

/// The kinds of event, as bits for the option `pull_events`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub enum httpdown_event_kind {
    /// A value for a monitoring system. `code` is a httpdown_stat_kind, `name` is the key, `value` is the value.
    HTTPDOWN_EVENT_STAT = 1,
    /// A connection has changed its state. `code` is a httpdown_conn_state, `conn_id` is the connection's number,
    /// `name` is the client's address.
    HTTPDOWN_EVENT_CONN = 2,
    /// The server has entered a new phase. `code` is a httpdown_phase_code.
    HTTPDOWN_EVENT_PHASE = 4,
    /// A log line. `code` is a httpdown_log_level, `text` is the line.
    HTTPDOWN_EVENT_LOG = 8,
    /// A request has ended. `record` says what became of it, `conn_id` is the connection's number.
    HTTPDOWN_EVENT_DONE = 16,
}

/// The callback of httpdown_stats that a value is meant for.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(dead_code, reason = "Rust 1.88 does not see that it is for C")]
pub enum httpdown_stat_kind {
    /// bump_avg
    HTTPDOWN_STAT_AVG = 0,
    /// bump_sum
    HTTPDOWN_STAT_SUM = 1,
    /// bump_histogram
    HTTPDOWN_STAT_HISTOGRAM = 2,
    /// bump_time; seconds
    HTTPDOWN_STAT_TIME = 3,
}

/// Borrowed bytes: the memory belongs to somebody else. Text is not NUL-terminated. `data` is NULL only if the thing
/// does not exist (no such header, for example). If `len` is 0, `data` may have any value.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct httpdown_bytes {
    /// The first byte.
    pub data: *const c_char,
    /// The number of bytes.
    pub len: usize,
}

/// The process that has connected by a Unix socket. See httpdown_request_peer_credentials.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct httpdown_credentials {
    /// The process ID; 0 if the process is in another PID namespace that ours does not see.
    pub pid: u32,
    /// The process's effective user ID.
    pub uid: u32,
    /// The process's effective group ID.
    pub gid: u32,
}

/// A certificate chain and its private key, in PEM. Each of the two is in a file, or in memory: set one of these. One
/// file may hold both: then give its path twice. (Only if both are in files, they can be read again.) The chain begins
/// with the server's own certificate; each certificate was issued by the next. The key is ECDSA (P-256 or P-384; with
/// aws-lc-rs, which is the default, also P-521), Ed25519, or RSA of at least 2,048 bits, as PKCS#8, PKCS#1 or SEC1, and
/// not encrypted.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct httpdown_certificate {
    /// The file with the chain.
    pub cert_file: *const c_char,
    /// The file with the key.
    pub key_file: *const c_char,
    /// The chain.
    pub cert: httpdown_bytes,
    /// The key.
    pub key: httpdown_bytes,
}

/// A version of TLS.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(dead_code, reason = "Rust 1.88 does not see that it is for C")]
pub enum httpdown_tls_version {
    /// TLS 1.2 (RFC 5246).
    HTTPDOWN_TLS_1_2 = 12,
    /// TLS 1.3 (RFC 8446).
    HTTPDOWN_TLS_1_3 = 13,
}

/// Whether clients are asked for certificates: `client_auth`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(dead_code, reason = "Rust 1.88 does not see that it is for C")]
pub enum httpdown_client_auth {
    /// No client is asked.
    HTTPDOWN_CLIENT_AUTH_NONE = 0,
    /// A client may have none. A certificate that it has must be valid.
    HTTPDOWN_CLIENT_AUTH_OPTIONAL = 1,
    /// A client without a valid certificate is refused.
    HTTPDOWN_CLIENT_AUTH_REQUIRED = 2,
}

/// How a server speaks TLS: the option `tls`. Set `struct_size`; zero means the default in each other field. The
/// strings, the arrays and the files are read before the call returns.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct httpdown_tls {
    /// Required: sizeof(httpdown_tls).
    pub struct_size: usize,
    /// The server's certificate: see httpdown_certificate. It is for all names that none of `more` has, and for clients
    /// that name none.
    pub cert_file: *const c_char,
    /// Its key.
    pub key_file: *const c_char,
    /// The certificate, if it is in memory.
    pub cert: httpdown_bytes,
    /// The key, if it is in memory.
    pub key: httpdown_bytes,
    /// More certificates: chosen for clients that ask for one of their names (SNI), an exact one rather than one with
    /// a wildcard. A name may have several, with keys of different types: a client gets one whose signatures it can
    /// check, and ECDSA rather than RSA.
    pub more: *const httpdown_certificate,
    /// The number of `more`.
    pub more_count: usize,
    /// Whether clients are asked for certificates: a httpdown_client_auth. If they are, `ca` or `ca_file` is required.
    pub client_auth: c_int,
    /// The oldest version of TLS that clients may use: a httpdown_tls_version. Default: TLS 1.2.
    pub min_version: c_int,
    /// The PEM file with the CA certificates, one of which must have issued a client's certificate.
    pub ca_file: *const c_char,
    /// The CA certificates, if they are in memory.
    pub ca: httpdown_bytes,
    /// The PEM file with revocation lists. Once there are lists, each certificate of a client's chain needs one from
    /// its issuer.
    pub crl_file: *const c_char,
    /// The revocation lists, if they are in memory.
    pub crl: httpdown_bytes,
    /// The keys of session tickets, 48 bytes each (a name of 16 and a secret of 32), all of them random: the first
    /// encrypts, all decrypt, at most 16. Servers with the same keys resume each other's sessions, so that after a
    /// restart clients need no full handshakes. Replace them now and then, by httpdown_tls_reload. Default: keys of the
    /// server's own, a new one every 6 hours.
    pub ticket_keys: httpdown_bytes,
    /// How long a handshake may take, from the moment when the connection was accepted. Default: 10,000. In real time.
    pub handshake_timeout_ms: u32,
    /// How many handshakes may be under way, from the end of the client's first message. Others wait for their turn.
    /// Default: 10,000.
    pub handshakes: u32,
}

/// What the TLS handshake of a connection has agreed on: httpdown_request_tls. Set `struct_size` before the call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct httpdown_tls_info {
    /// Required: sizeof(httpdown_tls_info).
    pub struct_size: usize,
    /// A httpdown_tls_version.
    pub version: c_int,
    /// Not 0: the session goes on from an earlier connection, by a ticket.
    pub resumed: c_int,
    /// The cipher suite, by its name in the IANA's registry: "TLS13_AES_256_GCM_SHA384".
    pub cipher_suite: httpdown_bytes,
    /// The name that the client has asked for (SNI), in lower case. `data` is NULL if it has named none.
    pub server_name: httpdown_bytes,
    /// The protocol that was agreed on (ALPN): "http/1.1" or "http/1.0". `data` is NULL if the client has offered none.
    pub alpn: httpdown_bytes,
    /// The client's certificate, which was verified, in DER. `data` is NULL if there is none: here and below.
    pub client_certificate: httpdown_bytes,
    /// Its subject (RFC 4514): "CN=alice,O=Example".
    pub client_subject: httpdown_bytes,
    /// Its alternative names (host names, addresses, mail addresses, URIs), one in each line. Their kinds are not told
    /// apart: if a mere host name must not pass for a mail address, for example, read `client_certificate`.
    pub client_names: httpdown_bytes,
    /// The SHA-256 digest of `client_certificate`.
    pub client_fingerprint: [u8; 32],
}

/// A header field, from a request or for a reply.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct httpdown_header {
    /// The field's name. In a request, the name is in lower case.
    pub name: httpdown_bytes,
    /// The field's value.
    pub value: httpdown_bytes,
}

/// Answers a request, either now (httpdown_reply...) or later (httpdown_request_defer, httpdown_reply_start). The
/// library calls the handler from several threads at once.
pub type httpdown_handler_fn =
    Option<unsafe extern "C" fn(request: *mut httpdown_request, user_data: *mut c_void)>;

/// What can happen to a request: httpdown_request_notify, httpdown_next_item. They are or-ed.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub enum httpdown_ready_kind {
    /// Reading the body would not wait: there are bytes, or the end, or the reason why no more bytes come.
    HTTPDOWN_READABLE = 1,
    /// Writing would take at least some of the bytes, or fail. Before an answer begins, this is so.
    HTTPDOWN_WRITABLE = 2,
    /// An answer has become useless: the client has left or was too slow, or the server kills.
    HTTPDOWN_GONE = 4,
    /// The server drains: an answer without an end should end now. At a stop, `drain_rate` requests a second are told.
    HTTPDOWN_DRAINING = 8,
    /// A request that has come. Only httpdown_next_item tells this.
    HTTPDOWN_NEW = 16,
    /// The program has had the request for longer than `handler_timeout_ms`. An answer is as useful as before. Not for
    /// a stream (httpdown_upgrade): there, it is never told.
    HTTPDOWN_OVERDUE = 32,
}

/// Tells what has happened to a request (httpdown_ready_kind, or-ed): httpdown_request_notify. Called on the thread
/// that drives the connection, so it must not block.
pub type httpdown_ready_fn = Option<
    unsafe extern "C" fn(request: *mut httpdown_request, ready: u32, user_data: *mut c_void),
>;

/// Tells what has happened to a stream (httpdown_ready_kind, or-ed): httpdown_stream_notify. Called on the thread that
/// drives the connection, so it must not block.
pub type httpdown_stream_fn =
    Option<unsafe extern "C" fn(stream: *mut httpdown_stream, ready: u32, user_data: *mut c_void)>;

/// What httpdown_next_item takes: a request that has come, or an event of a request that was taken before, or of a
/// stream.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct httpdown_item {
    /// The request. You own it. NULL for an event of a stream.
    pub request: *mut httpdown_request,
    /// The `user_data` of httpdown_request_notify or httpdown_stream_notify; NULL for a request that has come.
    pub user_data: *mut c_void,
    /// What has happened: httpdown_ready_kind, or-ed. HTTPDOWN_NEW for a request that has come.
    pub ready: u32,
    /// Zero.
    pub reserved_0: u32,
    /// The stream, if this is an event of one: httpdown_stream_notify. Otherwise NULL.
    pub stream: *mut httpdown_stream,
}

/// Frees the program's data when the library no longer needs it. Called exactly once, on any thread.
pub type httpdown_destroy_fn = Option<unsafe extern "C" fn(user_data: *mut c_void)>;

/// A value for a monitoring system. Called on the events thread.
pub type httpdown_stat_fn =
    Option<unsafe extern "C" fn(key: *const c_char, value: f64, user_data: *mut c_void)>;

/// A connection has changed its state (a httpdown_conn_state). `peer` is the client's address, borrowed until the
/// callback returns. Called on the events thread.
pub type httpdown_conn_state_fn = Option<
    unsafe extern "C" fn(
        server: *const httpdown_server,
        conn_id: u64,
        state: c_int,
        peer: *const c_char,
        user_data: *mut c_void,
    ),
>;

/// The server has entered a phase (a httpdown_phase_code). The phase SERVING is the first of all events, STOPPED is the
/// last. Called on the events thread. Any thread may use `server` until the callback for STOPPED has returned (or, if
/// you own the server, until you free it). In the callback for STOPPED, httpdown_wait returns how the server has ended.
/// Threads that wait elsewhere are told after this callback, or when one second has passed.
pub type httpdown_phase_fn = Option<
    unsafe extern "C" fn(server: *const httpdown_server, phase: c_int, user_data: *mut c_void),
>;

/// A message for a person. `level` is a httpdown_log_level; `text` is borrowed until the callback returns. Called on
/// the events thread.
pub type httpdown_log_fn =
    Option<unsafe extern "C" fn(level: c_int, text: *const c_char, user_data: *mut c_void)>;

/// Callbacks for a monitoring system. Each of them may be NULL. They are called on the events thread, one at a time. A
/// slow callback delays only later events. (listen.error comes on the thread that calls httpdown_serve.)
///
/// The keys are: sums serve, listen.error, accept.error, conn.closed, handler.error, file.error, pool.stalled (a thread
/// was started in place of one whose handler waits for its client), proxy.error, stop, drain.race, idle.race, kill,
/// kill.conn.count, kill.timeout, listener.close.error; times stop.time, kill.time, memory.trim; histogram
/// stop.conn.count; and once a minute the averages http-state.new, http-state.active, http-state.idle,
/// http-state.total. With TLS: sums tls.handshake, tls.resumed, and for handshakes that fail tls.error.version (no
/// common one), tls.error.parameters (no common cipher suite, key exchange, signature or protocol),
/// tls.error.client_certificate (missing, or not accepted), tls.error.alert (the client refuses), tls.error.protocol,
/// tls.error.not_tls, tls.error.plain_http, tls.error.left, tls.error.timeout, tls.error.other; averages, once a
/// minute: tls.expires (seconds until the first of the server's certificates ends), tls.reloads. For limits that bite:
/// sums limit.head, limit.target, limit.body, limit.conn_requests, limit.conns, limit.client_conns, limit.queued. For
/// restarts: sums restart, restart.failed, restart.lost (connections that a failed process had), restart.unclaimed
/// (sockets on which the new process does not listen any more); time restart.time.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(clippy::struct_field_names, reason = "the names of the original")]
pub struct httpdown_stats {
    /// The monitoring system should take the mean of the values over a period.
    pub bump_avg: httpdown_stat_fn,
    /// A counter goes up by `value`.
    pub bump_sum: httpdown_stat_fn,
    /// The monitoring system should keep the distribution of the values.
    pub bump_histogram: httpdown_stat_fn,
    /// A timed action has ended. `value` is its duration in seconds.
    pub bump_time: httpdown_stat_fn,
}

/// The settings of a server. Zero in a field means its default, so set `struct_size` and the fields that you need:
/// httpdown_options options = { .struct_size = sizeof options, .addr = ":8080", .handler = hello };
///
/// The call copies the struct and everything that it points to, except `user_data`. You may free both when the call has
/// returned. Durations are in milliseconds; HTTPDOWN_NOW means no time at all, HTTPDOWN_FOREVER means no limit.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct httpdown_options {
    /// Required: sizeof(httpdown_options). A shorter struct, from an older header, gets the defaults for the missing
    /// fields. A longer struct, from a newer header, is accepted if the fields that this library does not know are
    /// zero.
    pub struct_size: usize,
    /// The addresses to listen on, separated by commas. An address is HOST:PORT, or a Unix socket. Put an IPv6 address
    /// in brackets ("[::1]:8080"). Without a host (":8080"), the server listens on every address. With port 0, the
    /// kernel chooses the port (httpdown_local_addr tells it). Host names are looked up, which blocks.
    /// "unix:/run/app.sock" is a Unix stream socket, at a path of at most 107 bytes. If a socket file exists there and
    /// nobody listens on it, the server replaces it; if somebody listens on it, the address is in use. After a '?' you
    /// can say who may connect, because a client needs permission to write to the file:
    /// "unix:/run/app.sock?mode=0660&group=www-data" (mode in octal; user and group are names or numbers). Without a
    /// mode, the umask decides. When the server closes the socket, it removes the file, unless another file has
    /// replaced it. "unix:@name" is an abstract socket: it has no file, and everybody in the same network namespace may
    /// connect to it. A path with a comma or a '?' cannot be written here: bind the socket yourself, and give it as one
    /// of the `fds`.
    ///
    /// If the program was started with listening sockets by systemd's protocol (LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES;
    /// see sd_listen_fds(3)), an inherited socket that listens at the address is taken, and nothing is bound. Without a
    /// host, both [::] and 0.0.0.0 match. "fd:NAME" takes the inherited socket of that name (FileDescriptorName= in a
    /// .socket unit), whatever its address, and never binds; of several sockets with the name, each "fd:NAME" takes the
    /// next. Options and parameters for sockets do not apply to them. A stop leaves the clients that wait in an
    /// inherited socket to whoever has passed it on, as with `fds_shared`, and the file of a Unix socket stays. When
    /// the server has stopped, another server can take the socket. The first server that has an `addr` removes the
    /// variables from the environment, on the thread that starts it, and makes the descriptors close-on-exec; other
    /// threads must not use the environment meanwhile. 10 seconds after the first server has started, on_log is told
    /// (ERROR) of each inherited socket on which nobody listens. What no server can use (a UDP socket) is left to you.
    ///
    /// Default: ":80" (with `tls`: ":443"), or nothing if there are `fds`.
    pub addr: *const c_char,
    /// Descriptors of sockets that already listen: TCP, or Unix stream sockets. You remove the files of Unix sockets
    /// yourself. On OK the library owns the descriptors; on an error you still own them. Other sockets may listen on
    /// the same TCP address by SO_REUSEPORT. Then a stop makes the kernel send new clients to these sockets before it
    /// closes ours. To do this, the stop connects to each of these sockets once, and replaces the program of the group,
    /// if the group has one (SO_ATTACH_REUSEPORT_CBPF); on_log says so.
    pub fds: *const c_int,
    /// The number of `fds`.
    pub fd_count: usize,
    /// The handler that answers requests. Required, unless `dispatch` is QUEUE; then the handler must be NULL.
    pub handler: httpdown_handler_fn,
    /// The pointer that is passed to every callback. The data must live until `destroy` is called.
    pub user_data: *mut c_void,
    /// Called with `user_data` exactly once: after the last callback has returned, or before httpdown_serve returns an
    /// error (but not if the options could not be read: NULL, or an impossible struct_size). A `release` of
    /// httpdown_reply_borrowed that does not return does not count as a callback here. Mostly httpdown_free,
    /// httpdown_run or httpdown_run_all calls `destroy`, on its caller's thread, and returns only after `destroy` has
    /// returned. A stop never waits for `destroy`.
    pub destroy: httpdown_destroy_fn,
    /// Callbacks for a monitoring system.
    pub stats: httpdown_stats,
    /// Called when a connection changes its state.
    pub on_conn_state: httpdown_conn_state_fn,
    /// Called when the server enters a phase.
    pub on_phase: httpdown_phase_fn,
    /// Called with messages for a person. The library itself prints nothing.
    pub on_log: httpdown_log_fn,
    /// For tests: a clock from httpdown_clock_new_mock, for the stop, kill and lame-duck timers. All other durations
    /// are in real time, including `idle_grace_ms`. You may free the clock as soon as the call has returned.
    pub clock: *const httpdown_clock,
    // options: begin fields (made from src/options.toml by `make options`)
    /// How long a stop waits for open requests to finish before it kills, counted from the end of the lame duck. Once
    /// half of this time has passed, or 30 seconds, responses say Connection: close even to a client that has already
    /// sent more requests, because a client that never stops pipelining would otherwise never come to its end. Default:
    /// 60,000. On the server's `clock`.
    pub stop_timeout_ms: u32,
    /// How long a kill waits for the handlers of cut requests to return, before it abandons these handlers. The end of
    /// the server waits as long, but at least a second and in real time, for the program's other code on the server's
    /// threads (destructors, for example). Default: 60,000. On the server's `clock`.
    pub kill_timeout_ms: u32,
    /// How long a stop still accepts connections. During this time httpdown_ready is false and responses say
    /// Connection: close, so that load balancers and clients go elsewhere. Default: no time. On the server's `clock`.
    pub lame_duck_ms: u32,
    /// How long a request's head may take, from its first byte to its last. After this time the client gets a 408, and
    /// the connection is closed. Default: 30,000. In real time.
    pub header_timeout_ms: u32,
    /// How requests reach the program: a httpdown_dispatch. Default: HTTPDOWN_DISPATCH_POOL.
    pub dispatch: c_int,
    /// The maximum number of threads in the pool. Threads are started when they are needed. If all are busy, requests
    /// wait. Default: 512.
    pub pool_threads: u32,
    /// The number of threads that drive connections. Default: one for each processor that the process may use.
    pub io_threads: u32,
    /// Not 0: the sockets of `fds` outlive this server (systemd, or workers that are restarted one by one). The process
    /// that keeps a socket must go on accepting, or waiting clients are reset. A stop closes our copy of the `fds`, and
    /// leaves the connections that wait in their queues to the other processes. If all processes may stop together,
    /// give each of them its own socket: `reuse_port`.
    pub fds_shared: c_int,
    /// The kinds of event (httpdown_event_kind, or-ed) that the program takes with httpdown_next_event. Then there is
    /// no events thread, and no callback except the handler may be set.
    pub pull_events: u32,
    /// How long a stop leaves an idle connection (between two requests) open, so that a request that is already on its
    /// way is served, and answered with Connection: close. Set more than the round trip to the clients. The time starts
    /// when the client's kernel has the last answer. A new connection gets 4.5 seconds more for each retransmission
    /// that its handshake needed, because its client would repeat a lost request that late. Default: 1,000. In real
    /// time.
    pub idle_grace_ms: u32,
    /// How long a stop still accepts connections whose handshake had begun before. This time ends as soon as there are
    /// no such connections. It is a part of `stop_timeout_ms`. The default gives a handshake that lost a segment two
    /// more chances (retransmissions come after 1 s and 3 s). Default: 4,000. In real time.
    pub quiesce_timeout_ms: u32,
    /// How long a connection that the server has closed waits for the client to close its side. Without this wait, a
    /// reset could destroy the bytes that were sent last. If a client has not acknowledged everything that was sent to
    /// it, a stop waits longer, up to `stop_timeout_ms`. Default: 2,000. In real time.
    pub linger_timeout_ms: u32,
    /// A path, such as "/healthz", that the server answers itself, even when all handlers are busy: with 200 while
    /// httpdown_ready is true, then with 503. The methods are GET, HEAD and OPTIONS; others get 405. The server
    /// compares this path with the path of a request's target byte for byte, without the query. Such a request counts
    /// like any other in the report. The path begins with "/", the rest is visible ASCII, without a query. Default: no
    /// path.
    pub ready_path: *const c_char,
    /// The minimum duration of the lame duck, even if no requests come (`lame_duck_quiet_ms`). Set the time that a load
    /// balancer needs to notice: the interval of its checks, times the number of failures that it waits for. At most
    /// `lame_duck_ms`. Default: no time. On the server's `clock`.
    pub lame_duck_min_ms: u32,
    /// Ends the lame duck early when no request has come for this time, because then nobody sends requests here any
    /// more. Requests for `ready_path` do not count, nor do connections without a request. At most `lame_duck_ms`.
    /// Default: never early. On the server's `clock`.
    pub lame_duck_quiet_ms: u32,
    /// How long a connection may be without a request while the server serves: between two requests, or before the
    /// first. Then the server closes the connection, at most one second later. Not HTTPDOWN_NOW. By default there is no
    /// limit, because a request may be on its way while the server closes; then this request is lost (`raced` in the
    /// report). To avoid that, set more than the clients' own timeout (for example, a load balancer's timeout for idle
    /// connections), or tell the clients: `keep_alive_header`. Default: no limit. In real time.
    pub idle_timeout_ms: u32,
    /// Not 0: responses announce the idle timeout, "Keep-Alive: timeout=N", so that clients that know this field close
    /// an idle connection before the server does. N is `idle_timeout_ms` minus `idle_grace_ms`, so that a request that
    /// was sent at the last moment still comes in time. N is in whole seconds, and at least 1. The field is not added
    /// when the connection ends, nor to a response that has its own Connection or Keep-Alive field. Default: 0.
    pub keep_alive_header: c_int,
    /// For httpdown_run: how long after the first signal another signal counts as the second, which goes straight to
    /// the kill; and how long after the second, as the third. A signal that comes sooner is taken for a repetition: a
    /// process manager signals the whole group, and a wrapper in the group forwards the signal, too. HTTPDOWN_NOW: at
    /// once; HTTPDOWN_FOREVER: never. If several servers run together, the longest of their times counts for all.
    /// Default: 500. In real time.
    pub second_signal_ms: u32,
    /// Not 0: the sockets of `addr` have SO_REUSEPORT, so that several processes of the same user can each listen there
    /// with their own socket. The kernel spreads new clients over these sockets. A stop makes the kernel send new
    /// clients to the other sockets before it closes its own. So workers can be restarted one by one, and no client is
    /// lost. All processes that listen there must set this option, and none of them is told any more that the address
    /// is in use. It does not apply to `fds`, nor to inherited sockets: their creator sets SO_REUSEPORT. Default: 0.
    pub reuse_port: c_int,
    /// TLS on every connection. NULL: none. A client that speaks HTTP without TLS then gets a 400, in plain text. If
    /// the library was built without TLS (HTTPDOWN_HAS_TLS), a value that is not NULL is UNSUPPORTED.
    pub tls: *const httpdown_tls,
    /// Not 0: for httpdown_run: SIGHUP reads the files of `tls` again (certificates, keys, CAs, revocation lists), and
    /// new connections get what was read. If anything cannot be used, all stays as it was, and the log says why. By
    /// default, SIGHUP does what it did before, so it mostly ends the program. Needs `tls`, with at least one file.
    /// Default: 0.
    pub reload_on_hup: c_int,
    /// How long a client may keep those waiting who read its request's body. Bytes give it time back, a second for each
    /// `least_rate` bytes, but never more than this time in all. So a client that sends nothing is cut after this time,
    /// and one that sends slowly, but at that rate, is not. Only the time counts in which somebody waits for the body.
    /// Then reading fails with TOO_SLOW, the client gets a 408 if no answer has begun, and the connection is closed.
    /// Not HTTPDOWN_NOW. Default: 30,000. In real time.
    pub body_timeout_ms: u32,
    /// How long a client may leave its answer untaken, when the kernel can hold no more of it. Bytes that the client's
    /// kernel acknowledges give it time back, as for `body_timeout_ms`. Then the connection is reset, and writing fails
    /// with TOO_SLOW. Not HTTPDOWN_NOW. Default: 30,000. In real time.
    pub write_timeout_ms: u32,
    /// How many bytes a second a client must send of a body, or take of an answer, so that it is not cut by
    /// `body_timeout_ms` or `write_timeout_ms`. Default: 240.
    pub least_rate: u32,
    /// A request whose body is known to be shorter than so many bytes reaches its handler when the body is there, so
    /// that a slow client occupies no handler. Longer ones, those in chunks, and those that the client sends only when
    /// it is asked (Expect: 100-continue) reach it at once. At most 16 MiB. Default: 65,536.
    pub body_buffer: u32,
    /// How many requests a second are told that the server drains, of those that have asked to be told. So the clients
    /// of many endless answers do not all connect elsewhere at once. All are told before half of `stop_timeout_ms` has
    /// passed. Default: 1,000.
    pub drain_rate: u32,
    /// Called for each request that has ended: for an access log. Every request of the report is told exactly once,
    /// unless the callback is so slow that events are dropped (`events_dropped`). So a probe of `ready_path` is told,
    /// and bytes that are no request (400, 408) are not. An upgrade ends when the kernel has the answer that agrees to
    /// it. While the server serves, a request has ended when the kernel has the whole answer; in a stop, when the
    /// client's kernel has it, or the connection ends. A client that got its answer before a stop, and turns out in the
    /// stop not to have it all, was told as served, though the report counts its request as gone or killed. Without
    /// this callback, nothing is noted for it, and no clock is read.
    pub on_done: httpdown_done_fn,
    /// The peers that must begin each connection with a header of the PROXY protocol, version 1 or 2, which says whose
    /// connection it is: IP addresses and networks with commas between them, and "unix:" for all clients of Unix
    /// sockets ("10.0.0.0/8, unix:"). The client's address of such a connection is the one in the header, and so is the
    /// server's. The header comes before TLS, within `header_timeout_ms`. Without it the connection is closed, and the
    /// log says so. From other peers, such a header is no more than a malformed request. Default: nobody.
    pub proxy_protocol_from: *const c_char,
    /// The proxies whose fields in a request's head are believed, as a list like that of `proxy_protocol_from`. Such
    /// fields say for whom a request was forwarded: httpdown_request_client_addr. Who asks the server directly could
    /// send the same fields, so believe only proxies that set them, or remove them. Default: nobody.
    pub trusted_proxies: *const c_char,
    /// The fields that `trusted_proxies` set. "x-forwarded": X-Forwarded-For, X-Forwarded-Proto and X-Forwarded-Host,
    /// which most proxies set; "forwarded": Forwarded (RFC 7239); "x-real-ip": X-Real-IP. No others are believed,
    /// because a proxy passes on what it does not know as the client has sent it. Default: x-forwarded.
    pub forwarded_by: *const c_char,
    /// The maximum size of a request's body in bytes. If the head announces more, the client gets a 413 at once, and no
    /// handler sees the request. In chunks, a body is read until there is more of it: then reading fails with
    /// TOO_LARGE, and the client gets a 413 if no answer has begun. Either way, the connection is closed. By default
    /// there is no limit, because what a body costs is decided where it is read: nothing is kept of it but
    /// `body_buffer`. Default: no limit.
    pub max_body_size: u64,
    /// The maximum number of fields in a request's head. A client that sends more gets a 431, and the connection is
    /// closed. Another number than 100, which is the default of the parser, costs each request an allocation. At most
    /// 4,096. The trailers of a body may have as many; a body with more is malformed. Default: 100.
    pub max_headers: u32,
    /// The maximum size of a request's head in bytes: its first line, its fields and its empty line. A client that
    /// sends more gets a 431, and the connection is closed. The trailers of a body may be as large; a body with larger
    /// ones is malformed, and so is a body with more than 16 KiB of chunk extensions. The default is twice what nginx
    /// and Kestrel take. At most 16 MiB. Default: 65,536.
    pub max_head_size: u32,
    /// The maximum length of a request's target in bytes, with its query. A client that sends more gets a 414, and the
    /// connection is closed. A target is a part of a head, so `max_head_size` limits it, too. RFC 9110 asks for at
    /// least 8,000; the default is about what nginx, Apache and Kestrel take. At most 65,534. Default: 8,192.
    pub max_target_size: u32,
    /// The number of requests after which a connection ends: the answer to this request says Connection: close. A
    /// client that has already sent more requests is answered up to twice this number. A limit spreads clients anew
    /// over the servers behind a balancer, and gives back what a connection has come to hold. Default: no limit.
    pub max_conn_requests: u32,
    /// The maximum number of open connections. While so many are open, accepting pauses, and new clients wait in the
    /// kernel's queue; they are accepted when others end. A stop accepts them beyond this number, as always. Set less
    /// than the process has descriptors. With this limit, `idle_timeout_ms` should be set, too, or idle clients keep
    /// others out. Default: no limit.
    pub max_conns: u32,
    /// The maximum number of open connections from one IP address; of IPv6, from one /64, because a client has mostly
    /// all of these. A connection beyond it gets a 503 with Retry-After at once, and is closed; with TLS it is closed
    /// without a word. Clients of Unix sockets are not limited. Many clients may share an address: behind one router,
    /// or one proxy. Default: no limit.
    pub max_client_conns: u32,
    /// The maximum number of requests that wait for a handler (pool), or to be taken (queue), while no thread is free.
    /// A request beyond it gets a 503 with Retry-After at once, and its connection goes on. By default all wait, and
    /// when more come than can be answered, all wait ever longer. Default: no limit.
    pub max_queued: u32,
    /// How many connections may wait to be accepted, on each TCP socket of `addr`. The kernel caps the number at
    /// `net.core.somaxconn`, which is 4,096 since Linux 5.4. At most 65,535. This and the options below do not apply to
    /// `fds`, nor to inherited sockets: their creator sets them up. Default: 4,096.
    pub tcp_backlog: u32,
    /// Not 0: a socket that listens on all addresses (`:8080`, `[::]:8080`) takes IPv6 only. By default it takes IPv4,
    /// too. Set this if another socket is to take IPv4 on the same port. Default: 0.
    pub v6_only: c_int,
    /// After this silence, the kernel asks a client four times whether it is still there (SO_KEEPALIVE), and gives the
    /// connection up after as long again. So a connection whose client is gone without a word does not stay for ever,
    /// whatever is done with it (after an upgrade, say). From 1 second to 32,767 seconds, in whole seconds. Default:
    /// never. In real time.
    pub tcp_keepalive_ms: u32,
    /// How long what was sent may stay without an acknowledgement, before the kernel gives the connection up
    /// (TCP_USER_TIMEOUT). The system's own limit is about 15 minutes. `write_timeout_ms` is mostly the better choice:
    /// it also cuts clients that acknowledge, and do not read. From 1 second to 32,767 seconds. Default: the system's.
    /// In real time.
    pub tcp_user_timeout_ms: u32,
    /// The size of a TCP connection's receive buffer (SO_RCVBUF). The kernel doubles the number, and caps it at
    /// `net.core.rmem_max`. A fixed buffer no longer grows with a fast client, so set it only to save memory. At most 1
    /// GiB. Default: the system's, which grows.
    pub receive_buffer: u32,
    /// The size of a TCP connection's send buffer (SO_SNDBUF), like `receive_buffer`; its cap is `net.core.wmem_max`.
    /// At most 1 GiB. Default: the system's, which grows.
    pub send_buffer: u32,
    /// Not 0: a client that has closed its side of the connection (a FIN; with TLS, `close_notify`) while its request
    /// is answered counts as gone. So a handler that waits for something else, as in a long poll, learns at once that
    /// its client has left, and not when it answers. By default such a client still gets its answer, because it may
    /// only have closed its half: `nc -N`, `socat` and some libraries do so after the request, browsers and curl never
    /// do. The option of this name in `haproxy` does the same, and nginx does it always. Default: 0.
    pub abort_on_close: c_int,
    /// How long a request may be with the program before it counts as overdue. Its time begins when it is handed over
    /// (to the pool, the queue, the handler or the service), so it has its wait for a thread in it, but not that for a
    /// short body (`body_buffer`). The time ends when the program has given the whole answer: an answer without an end
    /// is overdue, too. This is advice: nothing is cut, and the answer is as good as before. An overdue request is
    /// counted (`overdue` in the report, the statistic `handler.overdue`), now and then logged with its method and
    /// target, and told to those who have asked. By default there is no limit, because none fits both a page and a long
    /// poll, and because it costs each request a clock and an allocation. Not HTTPDOWN_NOW. Default: never. In real
    /// time.
    pub handler_timeout_ms: u32,
    /// Not 0: when most of many busy connections have come to rest or gone, the memory that they used goes back to the
    /// system: some seconds later, and at most once a minute, a thread of the server calls `malloc_trim`. By default
    /// this memory stays with the allocator of the process, which uses it for what comes next. The call looks through
    /// the whole heap of the process, and other threads that allocate may wait meanwhile: some 40 ms for 240 MB to give
    /// back, and up to a second in a heap of gigabytes that has many small holes. So set this in a program that mostly
    /// serves HTTP. Only with glibc. Default: 0.
    pub trim_memory: c_int,
    /// The target of a request, such as "/healthz?deep", by which a new process proves at a restart that it works.
    /// Before it says that it is ready, and before any client comes, it sends itself a GET past the sockets, without
    /// TLS. An answer with a status below 400, complete, is a success; anything else makes the restart fail, and an
    /// answer that does not come does so when the time to get ready is over. Handlers see an ordinary request, from an
    /// unnamed Unix socket; the report counts it. Default: no request.
    pub canary: *const c_char,
    /// For httpdown_run: how SIGUSR2 restarts the program. By default it does so with all defaults, if its action is
    /// the default one, which would end the program. HTTPDOWN_RESTART_NO_SIGNAL turns that off, and
    /// HTTPDOWN_RESTART_ON_HUP adds SIGHUP. `on_restart` is told of each restart. If several servers run together, that
    /// of the first one counts; those of the others must be NULL. Copied, like all options; its `destroy` is called
    /// when the server has ended.
    pub restart: *const httpdown_restart_options,
    // options: end fields
}

/// The counts of what a server has done, and of what its stop has cost. Set `struct_size` before the call.
///
/// Every connection and every request is in exactly one column. When the server has stopped, these sums hold:
/// connections = conns_closed + closed_idle + raced + conns_gone + conns_timed_out + conns_tls_failed +
/// conns_tls_timed_out + conns_killed, and requests = served + failed + gone + timed_out + killed.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct httpdown_stop_report {
    /// Required: sizeof(httpdown_stop_report).
    pub struct_size: usize,
    /// The server's phase: a httpdown_phase_code.
    pub phase: c_int,
    /// The result of the stop: a httpdown_status. OK until the stop has ended.
    pub status: c_int,
    /// How long the stop has taken so far, in milliseconds; 0 before the stop begins.
    pub stop_duration_ms: u64,
    /// Connections accepted.
    pub connections: u64,
    /// Connections open now: the sum of the next four, and conns_handshaking.
    pub conns_open: u64,
    /// Open connections on which no byte has come yet.
    pub conns_new: u64,
    /// Open connections with a request under way.
    pub conns_active: u64,
    /// Open connections between two requests.
    pub conns_idle: u64,
    /// Open connections that a handler has taken over.
    pub conns_hijacked: u64,
    /// Connections that ended normally: closed by the client between two requests, closed by the server after a
    /// response that said so, refused because their client has too many (max_client_conns), or released by the handler
    /// that had taken them over.
    pub conns_closed: u64,
    /// Connections that the stop or the idle timeout closed while they were new or idle.
    pub closed_idle: u64,
    /// Connections that the stop, the idle timeout or max_conn_requests closed, and on which a request came after that.
    /// The request had crossed our FIN, or the response that announced the close, on the wire. HTTP/1.1 cannot prevent
    /// this; a larger idle_grace_ms or idle_timeout_ms makes it rarer.
    pub raced: u64,
    /// Connections whose client left in the middle of a request.
    pub conns_gone: u64,
    /// Connections that were closed because the client was too slow: with the head of a request (header_timeout_ms) or
    /// its body (body_timeout_ms), or in taking an answer (write_timeout_ms).
    pub conns_timed_out: u64,
    /// Connections that a kill cut.
    pub conns_killed: u64,
    /// Requests whose head has been read, and requests that a kill cut before their head was read.
    pub requests: u64,
    /// Requests whose whole response was given to the kernel. If a request was answered during the stop, or was the
    /// last on its connection before the stop, the client's kernel has also acknowledged the response.
    pub served: u64,
    /// Requests whose handler failed after the response had begun. The client saw the response cut.
    pub failed: u64,
    /// Requests whose client left before the response or the request's body was complete, and requests whose body
    /// turned out to be malformed, or larger than max_body_size, after the response had begun.
    pub gone: u64,
    /// Requests that a kill cut, and requests that a kill answered with 503 because nobody had begun to work on them.
    pub killed: u64,
    /// Requests, answered or not, whose handler still held them when the kill timeout had passed. These requests are
    /// also in one of the columns above.
    pub abandoned: u64,
    /// Connections that a handler had taken over, and that a kill cut. They are also in conns_killed.
    pub hijacked_killed: u64,
    /// Connections that still waited to be accepted when their listening socket had to be closed. The process had no
    /// descriptors for them.
    pub unaccepted: u64,
    /// Bytes that were written to clients, but that the clients' kernels had not acknowledged when the connections
    /// ended during the stop.
    pub bytes_unacked: u64,
    /// Events that were dropped because they were not taken in time.
    pub events_dropped: u64,
    /// Open connections whose TLS handshake is not done, or whose header of the PROXY protocol has not come.
    pub conns_handshaking: u64,
    /// Connections that were closed because the TLS handshake failed, or whose client left in it (not one
    /// that left before its first byte: conns_closed). The statistics say why (tls.error...).
    pub conns_tls_failed: u64,
    /// Connections that were closed because the TLS handshake did not come to its end in time (handshake_timeout_ms).
    pub conns_tls_timed_out: u64,
    /// Requests that ended because the client was too slow with the body (body_timeout_ms), or in taking the answer
    /// (write_timeout_ms).
    pub timed_out: u64,
    /// Requests that the program has had for longer than handler_timeout_ms. These requests are also in one of the
    /// columns above, when they have ended.
    pub overdue: u64,
    /// The process that has taken over, if the stop was the end of a restart (httpdown_restart); otherwise 0.
    pub successor_pid: u64,
}

/// What a restart does otherwise than by default: the `flags` of httpdown_restart_options, or-ed.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub enum httpdown_restart_flag {
    /// A socket that the new process does not listen on any more is stopped like in a stop, without a loss. Otherwise it
    /// makes the restart fail, because it is a mistake more often than not. With this flag the new process must call
    /// httpdown_restart_ready when all its servers serve, or httpdown_run_ready, as httpdown_run does.
    HTTPDOWN_RESTART_DROP_UNCLAIMED = 1,
    /// The new process also gets the descriptors of this one that are not close-on-exec, with their numbers. They must
    /// be out of the way of the sockets, which have the numbers from 3 on: otherwise the restart fails.
    HTTPDOWN_RESTART_KEEP_FDS = 2,
    /// The new process writes to this one's standard error at once. Otherwise it gets a pipe until it is ready, which is
    /// copied there, so that what it says of its failure is in the text of the result, too. A program that looks at its
    /// start whether that is a terminal, or the journal (JOURNAL_STREAM), sees the pipe.
    HTTPDOWN_RESTART_PLAIN_STDERR = 4,
    /// In httpdown_options.restart: SIGHUP restarts the program, too. Not together with `reload_on_hup`.
    HTTPDOWN_RESTART_ON_HUP = 8,
    /// In httpdown_options.restart: SIGUSR2 does what it does without httpdown.
    HTTPDOWN_RESTART_NO_SIGNAL = 16,
}

/// Decides whether a restart may begin. Anything but 0 refuses it. The reason may be written into `why`, which has room
/// for `size` bytes, is "" before, and is to be NUL-terminated: it becomes part of the result's text. Called on the
/// restart's own thread, before the new process is started. It may block, and the restart waits for it; a stop does not,
/// but httpdown_run and httpdown_run_all return only when it has returned.
pub type httpdown_before_restart_fn =
    Option<unsafe extern "C" fn(why: *mut c_char, size: usize, user_data: *mut c_void) -> c_int>;

/// Tells how a restart has ended. `status` is OK or RESTART_FAILED. `text` says why it has failed ("" on OK), and is
/// borrowed until the callback returns. `pid` is the process that has taken over; 0 if it has failed. Called once for a
/// restart that has begun, on its own thread, and before httpdown_restart returns. On OK, the stop of this process's
/// servers has begun. Do not wait for that stop here.
pub type httpdown_restart_fn = Option<
    unsafe extern "C" fn(status: c_int, text: *const c_char, pid: u32, user_data: *mut c_void),
>;

/// How the program is restarted: httpdown_restart. Set `struct_size`; zero means the default in each other field. The
/// texts and the arrays are copied before the call returns.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct httpdown_restart_options {
    /// Required: sizeof(httpdown_restart_options).
    pub struct_size: usize,
    /// The file that is executed: an absolute path. Default: the one that this process was started from. Its path is
    /// looked up anew, so a link that leads elsewhere now, or a file that was replaced, means the new version.
    pub program: *const c_char,
    /// The arguments, at least one, and behind them a NULL, like in execve(2); the first one is the program's name.
    /// Default: those of this process.
    pub argv: *const *mut c_char,
    /// The environment, as texts of the form NAME=VALUE, and behind them a NULL, without what a restart itself needs.
    /// Default: the one that this process was started with.
    pub envp: *const *mut c_char,
    /// The working directory: an absolute path. Default: the one that this process was started in.
    pub directory: *const c_char,
    /// Is asked whether the restart may begin. May be NULL.
    pub before: httpdown_before_restart_fn,
    /// Is told how the restart has ended. May be NULL.
    pub on_restart: httpdown_restart_fn,
    /// The pointer that is passed to these callbacks. The data must live until `destroy` is called.
    pub user_data: *mut c_void,
    /// Called with `user_data` exactly once, on any thread: after the last callback has returned, and before
    /// httpdown_restart returns; or before either function returns an error (but not if the options could not be read:
    /// an impossible struct_size). May be NULL.
    pub destroy: httpdown_destroy_fn,
    /// How long the new process may take until it serves all sockets. Default: 60,000. In real time.
    pub ready_timeout_ms: u32,
    /// How long both processes accept, once the new one is ready. If the new one dies within this time, this one goes
    /// on. HTTPDOWN_NOW: no time. Default: 3,000. In real time.
    pub probation_ms: u32,
    /// A restart is refused (BUSY) while so many earlier processes still drain, because each of them holds memory.
    /// Default: 8.
    pub max_predecessors: u32,
    /// httpdown_restart_flag, or-ed.
    pub flags: u32,
    /// A file that has the process ID of the program, for those who look for it there: an absolute path. A restart
    /// replaces the file when the new process has proved itself. The new version is written beside the file before that,
    /// with the process ID added to the name; if that fails, so does the restart. The first process's file is written by
    /// the program, or by whoever starts it. A symbolic link is replaced by a file. Default: none.
    pub pid_file: *const c_char,
}

/// Where a process is in a restart.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(dead_code, reason = "Rust 1.88 does not see that it is for C")]
pub enum httpdown_restart_state {
    /// There is no restart.
    HTTPDOWN_RESTART_IDLE = 0,
    /// This process was started by a restart, and its predecessor may still go on without it.
    HTTPDOWN_RESTART_SUCCEEDING = 1,
    /// A new process was started, and is not ready.
    HTTPDOWN_RESTART_STARTING = 2,
    /// The new process is ready, and both accept.
    HTTPDOWN_RESTART_PROBATION = 3,
    /// The new process has taken over; the servers of this one stop, or have stopped.
    HTTPDOWN_RESTART_HANDED_OVER = 4,
}

/// What is known of the restarts of a program: httpdown_restart_info. Set `struct_size` before the call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct httpdown_restarts {
    /// Required: sizeof(httpdown_restarts).
    pub struct_size: usize,
    /// Where this process is in a restart: a httpdown_restart_state.
    pub state: c_int,
    /// The new process, from its start on; 0 if there is none.
    pub successor_pid: u32,
    /// How many restarts led to this process.
    pub generation: u64,
    /// How many earlier processes have not ended.
    pub predecessor_count: usize,
}

/// An event of a server. Set `struct_size` before the call. `kind` decides which other fields are used.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct httpdown_event {
    /// Required: sizeof(httpdown_event).
    pub struct_size: usize,
    /// A httpdown_event_kind.
    pub kind: c_int,
    /// The meaning depends on `kind`.
    pub code: c_int,
    /// For CONN and DONE: the connection's number, unique within its server.
    pub conn_id: u64,
    /// For STAT: the value.
    pub value: f64,
    /// For STAT: the key. For CONN: the client's address; a path that is too long is cut. NUL-terminated.
    pub name: [c_char; 64],
    /// For LOG: the line; a line that is too long is cut. NUL-terminated.
    pub text: [c_char; 512],
    /// For DONE: the record; NULL for other kinds. Borrowed until this thread calls httpdown_next_event again, or ends.
    pub record: *const httpdown_request_record,
}

/// As a timeout: do not wait.
pub const HTTPDOWN_NOW: u32 = 0xFFFF_FFFE;

/// As a timeout: wait without limit.
pub const HTTPDOWN_FOREVER: u32 = 0xFFFF_FFFF;

/// As a length, in httpdown_reply_fd: to the end of the file.
pub const HTTPDOWN_TO_END: u64 = u64::MAX;

// Field-by-field assignment leaves padding unwritten, and a longer struct's unknown bytes must be zero.
const _: () = {
    // options: begin size (made from src/options.toml by `make options`)
    let pointers = size_of::<usize>() * 23;
    let longs = size_of::<[u64; 1]>();
    let ints = size_of::<u32>() * 40;
    // options: end size
    assert!(size_of::<httpdown_options>() == pointers + longs + ints);
    let counts = size_of::<u64>() * 29;
    assert!(size_of::<httpdown_stop_report>() == size_of::<usize>() + 8 + counts);
    let (words, ints) = (size_of::<usize>() * 17, size_of::<u32>() * 4);
    assert!(size_of::<httpdown_tls>() == words + ints);
    assert!(size_of::<httpdown_tls_info>() == size_of::<usize>() * 13 + 8 + 32);
    let (words, ints) = (size_of::<usize>() * 10, size_of::<u32>() * 4);
    assert!(size_of::<httpdown_restart_options>() == words + ints);
    assert!(size_of::<httpdown_restarts>() == size_of::<usize>() * 2 + 8 + 8);
};

// C sees the numbers that the core has.
const _: () = {
    use crate::{ConnState, LogLevel, Phase, RestartState, StatKind};
    use httpdown_conn_state::*;
    use httpdown_log_level::*;
    use httpdown_phase_code::*;
    use httpdown_restart_state::*;
    use httpdown_stat_kind::*;
    assert!(HTTPDOWN_PHASE_SERVING as c_int == Phase::Serving as c_int);
    assert!(HTTPDOWN_PHASE_LAME_DUCK as c_int == Phase::LameDuck as c_int);
    assert!(HTTPDOWN_PHASE_QUIESCING as c_int == Phase::Quiescing as c_int);
    assert!(HTTPDOWN_PHASE_DRAINING as c_int == Phase::Draining as c_int);
    assert!(HTTPDOWN_PHASE_KILLING as c_int == Phase::Killing as c_int);
    assert!(HTTPDOWN_PHASE_STOPPED as c_int == Phase::Stopped as c_int);
    assert!(HTTPDOWN_CONN_NEW as c_int == ConnState::New as c_int);
    assert!(HTTPDOWN_CONN_ACTIVE as c_int == ConnState::Active as c_int);
    assert!(HTTPDOWN_CONN_IDLE as c_int == ConnState::Idle as c_int);
    assert!(HTTPDOWN_CONN_HIJACKED as c_int == ConnState::Hijacked as c_int);
    assert!(HTTPDOWN_CONN_CLOSED as c_int == ConnState::Closed as c_int);
    assert!(HTTPDOWN_CONN_HANDSHAKING as c_int == ConnState::Handshaking as c_int);
    assert!(HTTPDOWN_LOG_ERROR as c_int == LogLevel::Error as c_int);
    assert!(HTTPDOWN_LOG_WARNING as c_int == LogLevel::Warning as c_int);
    assert!(HTTPDOWN_LOG_INFO as c_int == LogLevel::Info as c_int);
    assert!(HTTPDOWN_STAT_AVG as c_int == StatKind::Avg as c_int);
    assert!(HTTPDOWN_STAT_SUM as c_int == StatKind::Sum as c_int);
    assert!(HTTPDOWN_STAT_HISTOGRAM as c_int == StatKind::Histogram as c_int);
    assert!(HTTPDOWN_STAT_TIME as c_int == StatKind::Time as c_int);
    assert!(HTTPDOWN_RESTART_IDLE as c_int == RestartState::Idle as c_int);
    assert!(HTTPDOWN_RESTART_SUCCEEDING as c_int == RestartState::Succeeding as c_int);
    assert!(HTTPDOWN_RESTART_STARTING as c_int == RestartState::Starting as c_int);
    assert!(HTTPDOWN_RESTART_PROBATION as c_int == RestartState::Probation as c_int);
    assert!(HTTPDOWN_RESTART_HANDED_OVER as c_int == RestartState::HandedOver as c_int);
};
