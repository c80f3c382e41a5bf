//! What crosses the boundary by value, and the names of what does not.

use std::ffi::{c_char, c_int, c_void};

use super::clock::httpdown_clock;
use super::request::httpdown_request;
use super::server::httpdown_server;

/// What a call came to. Functions return it as an int. Numbers are never reused.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum httpdown_status {
    /// Done.
    HTTPDOWN_STATUS_OK = 0,
    /// An argument makes no sense: NULL where something is needed, a size or a value out of range.
    HTTPDOWN_STATUS_INVALID_ARGUMENT = 1,
    /// The options ask for something that this version of the library does not know.
    HTTPDOWN_STATUS_UNSUPPORTED = 2,
    /// An address could not be parsed or resolved.
    HTTPDOWN_STATUS_ADDR_INVALID = 3,
    /// The address is in use.
    HTTPDOWN_STATUS_ADDR_IN_USE = 4,
    /// The operating system does not permit it (a port below 1024, mostly).
    HTTPDOWN_STATUS_PERMISSION_DENIED = 5,
    /// Another error of the operating system.
    HTTPDOWN_STATUS_IO = 6,
    /// The kill timeout passed and handlers were still running: they were abandoned.
    HTTPDOWN_STATUS_TIMED_OUT = 7,
    /// The server has stopped: too late for this call.
    HTTPDOWN_STATUS_STOPPED = 8,
    /// The call would wait for the thread or the request that it is made from.
    HTTPDOWN_STATUS_WOULD_DEADLOCK = 9,
    /// The request has been answered already, or its answer has begun.
    HTTPDOWN_STATUS_ALREADY_REPLIED = 10,
    /// Threads, descriptors or memory could not be had.
    HTTPDOWN_STATUS_OUT_OF_RESOURCES = 11,
    /// Nothing there yet, or no room yet: at a call's own timeout, or on a thread that must not wait.
    HTTPDOWN_STATUS_WOULD_BLOCK = 12,
    /// The client has left.
    HTTPDOWN_STATUS_GONE = 13,
    /// The stop timeout passed, or a kill was asked for, and requests were cut.
    HTTPDOWN_STATUS_KILLED = 14,
    /// The process was forked, and this is the child: the server's threads live in the parent. For every call in a
    /// child that was forked while there was a server that had not been freed, a httpdown_run, or a thread that one of
    /// them had left behind; and in that child's own children. An exec ends it.
    HTTPDOWN_STATUS_FORKED = 15,
    /// A body is longer than the limit that was given, or a text than the buffer.
    HTTPDOWN_STATUS_TOO_LARGE = 16,
    /// What was asked for is not there.
    HTTPDOWN_STATUS_NOT_FOUND = 17,
    /// The client has broken the protocol within the body of its request.
    HTTPDOWN_STATUS_BAD_BODY = 18,
    /// A bug in httpdown. Please report it.
    HTTPDOWN_STATUS_PANIC = 99,
}

/// How far a server has come: httpdown_phase. A phase only moves forward.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(dead_code, reason = "Rust 1.88 does not see that it is for C")]
pub enum httpdown_phase_code {
    /// Accepting and answering.
    HTTPDOWN_PHASE_SERVING = 0,
    /// Still accepting, but no longer ready (lame_duck_ms).
    HTTPDOWN_PHASE_LAME_DUCK = 1,
    /// The listening sockets are being emptied and closed.
    HTTPDOWN_PHASE_QUIESCING = 2,
    /// No new connections; what is there is finished (stop_timeout_ms).
    HTTPDOWN_PHASE_DRAINING = 3,
    /// What is left is cut (kill_timeout_ms).
    HTTPDOWN_PHASE_KILLING = 4,
    /// The end.
    HTTPDOWN_PHASE_STOPPED = 5,
}

/// Where a connection is in its life.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(dead_code, reason = "Rust 1.88 does not see that it is for C")]
pub enum httpdown_conn_state {
    /// Accepted; no byte has come yet.
    HTTPDOWN_CONN_NEW = 0,
    /// From the first byte of a request to the last byte of its response.
    HTTPDOWN_CONN_ACTIVE = 1,
    /// Between two requests.
    HTTPDOWN_CONN_IDLE = 2,
    /// Taken over by a handler: no longer HTTP.
    HTTPDOWN_CONN_HIJACKED = 3,
    /// Gone.
    HTTPDOWN_CONN_CLOSED = 4,
}

/// How requests reach the program: the option `dispatch`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub enum httpdown_dispatch {
    /// The handler is called on a pool of threads (`pool_threads`), and may block.
    HTTPDOWN_DISPATCH_POOL = 0,
    /// The handler is called on the thread that drives the connection: the fastest, but it must not block, because
    /// other connections wait for it. Reading and writing fail with WOULD_BLOCK there instead of waiting. Of the request's body,
    /// what has been received when the handler is called can be read (at least 64 KiB, if so much has come); keep the
    /// request, and read the rest on another thread.
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
    /// Something is odd; the server goes on.
    HTTPDOWN_LOG_WARNING = 1,
    /// For information.
    HTTPDOWN_LOG_INFO = 2,
}

/// Kinds of event, as bits for the option `pull_events`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub enum httpdown_event_kind {
    /// A value for a monitoring system. `code` is a httpdown_stat_kind, `name` the key, `value` the value.
    HTTPDOWN_EVENT_STAT = 1,
    /// A connection's state. `code` is a httpdown_conn_state, `conn_id` the connection, `name` the client's address.
    HTTPDOWN_EVENT_CONN = 2,
    /// A new phase. `code` is a httpdown_phase_code.
    HTTPDOWN_EVENT_PHASE = 4,
    /// A log line. `code` is a httpdown_log_level, `text` the line.
    HTTPDOWN_EVENT_LOG = 8,
}

/// Which callback of httpdown_stats a value would have gone to.
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

/// Bytes that belong to somebody else. Text is not NUL-terminated. `data` is NULL only where there is nothing at all
/// (no such header); with `len` 0 it may be anything.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct httpdown_bytes {
    /// The first byte.
    pub data: *const c_char,
    /// How many there are.
    pub len: usize,
}

/// The process that has connected by a Unix socket: httpdown_request_peer_credentials.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct httpdown_credentials {
    /// Its number; 0 if it is of another PID namespace, which ours does not see.
    pub pid: u32,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
}

/// A header field, of a request or for a reply.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct httpdown_header {
    /// Its name; of a request, in lower case.
    pub name: httpdown_bytes,
    /// Its value.
    pub value: httpdown_bytes,
}

/// Answers a request: now (httpdown_reply...), or later (httpdown_request_defer, httpdown_reply_start). Called from
/// several threads at once.
pub type httpdown_handler_fn =
    Option<unsafe extern "C" fn(request: *mut httpdown_request, user_data: *mut c_void)>;

/// Ends something of the program's when the library needs it no more. Called exactly once, on any thread.
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

/// The server has entered a phase (a httpdown_phase_code), from SERVING, the first event of all, to STOPPED, the last.
/// Called on the events thread. `server` may be used, on any thread, until the callback for STOPPED has returned (or, if
/// it is also yours, until you free it). In that for STOPPED, httpdown_wait returns how the server has ended; those who
/// wait elsewhere are told afterwards, or when a second has passed.
pub type httpdown_phase_fn = Option<
    unsafe extern "C" fn(server: *const httpdown_server, phase: c_int, user_data: *mut c_void),
>;

/// Something that a person should know. `level` is a httpdown_log_level; `text` is borrowed until the callback
/// returns. Called on the events thread.
pub type httpdown_log_fn =
    Option<unsafe extern "C" fn(level: c_int, text: *const c_char, user_data: *mut c_void)>;

/// Callbacks for a monitoring system; any may be NULL. Called on the events thread, one at a time: a slow one delays
/// only the events behind it. (listen.error comes on the thread that calls httpdown_serve.)
///
/// Keys: sums serve, listen.error, accept.error, conn.closed, handler.error, stop, drain.race, idle.race, kill, kill.conn.count,
/// kill.timeout, listener.close.error; times stop.time, kill.time; histogram stop.conn.count; and once a minute the
/// averages http-state.new, http-state.active, http-state.idle, http-state.total.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(clippy::struct_field_names, reason = "the names of the original")]
pub struct httpdown_stats {
    /// The mean over a period is of interest.
    pub bump_avg: httpdown_stat_fn,
    /// A counter goes up.
    pub bump_sum: httpdown_stat_fn,
    /// The distribution is of interest.
    pub bump_histogram: httpdown_stat_fn,
    /// Something that took a time has ended: `value` is seconds.
    pub bump_time: httpdown_stat_fn,
}

/// How a server shall be. Zero in a field means its default, so set `struct_size` and what you need:
/// httpdown_options options = { .struct_size = sizeof options, .addr = ":8080", .handler = hello };
///
/// All of it is copied; the struct and what it points to may go when the call has returned, but for `user_data`.
/// Durations are in milliseconds; HTTPDOWN_NOW means none at all, HTTPDOWN_FOREVER no limit.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct httpdown_options {
    /// Required: sizeof(httpdown_options). A shorter struct, of an older header, has the defaults for the rest; a
    /// longer one, of a newer header, is accepted if what this library does not know is zero.
    pub struct_size: usize,
    /// Where to listen, several separated by commas: HOST:PORT, or a Unix socket. An IPv6 address stands in brackets
    /// ("[::1]:8080"); without a host (":8080") it is every address; port 0 lets the kernel choose (httpdown_local_addr).
    /// Host names are looked up, which blocks. "unix:/run/app.sock" is a Unix stream socket, at a path of at most 107 bytes.
    /// A socket that is there, and on which nobody listens, is replaced; one on which somebody listens is in use. Behind a
    /// '?' stands who may connect, which takes the permission to write to the file:
    /// "unix:/run/app.sock?mode=0660&group=www-data" (mode in octal; user and group are names or numbers). Without a mode
    /// it is what the umask leaves. When the socket is closed its file is removed, unless another has replaced it.
    /// "unix:@name" is an abstract socket, which has no file, and to which everybody in the same network namespace may
    /// connect. Default: ":80", or nothing if there are `fds`.
    pub addr: *const c_char,
    /// Descriptors that listen already: TCP, or Unix stream sockets, whose files stay yours to remove. On OK they are the
    /// library's, on an error they stay yours. Where others listen on the same TCP address by SO_REUSEPORT, a stop has the
    /// kernel send new clients to them before it closes ours. To that end it connects to each of them once, and replaces
    /// the program of the group, if it has one (SO_ATTACH_REUSEPORT_CBPF): on_log says so.
    pub fds: *const c_int,
    /// How many.
    pub fd_count: usize,
    /// Answers requests. Required, unless `dispatch` is QUEUE, where it must be NULL.
    pub handler: httpdown_handler_fn,
    /// Handed to every callback. Must live until `destroy` is called.
    pub user_data: *mut c_void,
    /// Called with `user_data` exactly once: after the last callback has returned, or before httpdown_serve returns an
    /// error (but not if the options themselves could not be read: NULL, or a struct_size that is none). A `release` of
    /// httpdown_reply_borrowed that does not return is no callback in this sense. Mostly httpdown_free or httpdown_run
    /// calls it, on the thread that they are called on, and so lasts as long as it does; a stop never waits for it.
    pub destroy: httpdown_destroy_fn,
    /// Callbacks for a monitoring system.
    pub stats: httpdown_stats,
    /// Called when a connection changes its state.
    pub on_conn_state: httpdown_conn_state_fn,
    /// Called when the server enters a phase.
    pub on_phase: httpdown_phase_fn,
    /// Called with what a person should know. The library itself prints nothing.
    pub on_log: httpdown_log_fn,
    /// For tests: a clock of httpdown_clock_new_mock, for the stop, kill and lame-duck timers. All other durations are
    /// in real time, `idle_grace_ms` included. May be freed at once.
    pub clock: *const httpdown_clock,
    /// How long a stop waits for what is there to finish, before it kills. Default: 60,000.
    pub stop_timeout_ms: u32,
    /// How long a kill waits for handlers that were cut to return, before it abandons them. Default: 60,000.
    pub kill_timeout_ms: u32,
    /// How long a stop goes on accepting, while httpdown_ready says no and responses say Connection: close, so that load
    /// balancers and clients go elsewhere. Default: none.
    pub lame_duck_ms: u32,
    /// How long a request's head may take, from its first byte to its last; then the client gets a 408, and the
    /// connection is closed. Default: 30,000.
    pub header_timeout_ms: u32,
    /// How requests reach the program: a httpdown_dispatch. Default: HTTPDOWN_DISPATCH_POOL.
    pub dispatch: c_int,
    /// How many threads the pool may have; they are started as they are needed. Requests beyond it wait. Default: 512.
    pub pool_threads: u32,
    /// How many threads drive connections. Default: one for each processor that the process may use.
    pub io_threads: u32,
    /// Not 0: the socket outlives this server (systemd, or workers restarted one by one). Whoever keeps it must go on
    /// accepting, or waiting clients are reset. A stop closes our copy of the `fds` and leaves what waits in their
    /// queues to the others. Where all processes may stop together, let each have a socket of its own: `reuse_port`.
    pub fds_shared: c_int,
    /// Kinds of event (httpdown_event_kind, or-ed) that the program takes itself with httpdown_next_event: there is no
    /// events thread then, and no callback but the handler may be set.
    pub pull_events: u32,
    /// How long a stop leaves a connection between two requests open, so that a request that is on its way is served,
    /// and answered with Connection: close. More than the round trip to the clients. It is counted from when the
    /// client's kernel has the last answer, and a new connection whose handshake needed repetition gets 4,500 more for
    /// each: so late would its client repeat a request that was lost. Default: 1,000.
    pub idle_grace_ms: u32,
    /// How long a stop goes on accepting connections whose handshake had begun. It ends as soon as there are none; counts
    /// within stop_timeout_ms. Default: 4,000, which gives a handshake that lost a segment two more chances
    /// (retransmissions come after 1 s and 3 s).
    pub quiesce_timeout_ms: u32,
    /// How long a connection that the server has closed waits for the client to close its side, so that what was sent
    /// last is not destroyed by a reset. A stop waits longer where a client has not acknowledged all that it was sent, up
    /// to stop_timeout_ms. Default: 2,000.
    pub linger_timeout_ms: u32,
    /// A path, "/healthz" say, that the server answers itself, whatever the handlers are doing, also where they are all
    /// busy: 200 while httpdown_ready says yes, then 503. For GET, HEAD and OPTIONS; others get 405. It is compared with
    /// the path of a request's target byte for byte, without the query. Such a request counts like any other in the
    /// report. "/" first, then visible ASCII, no query. Default: NULL, none.
    pub ready_path: *const c_char,
    /// How long the lame duck takes at least, however quiet it is (lame_duck_quiet_ms): as long as a load balancer needs
    /// to notice, which is its checks' interval times the failures that it wants to see. At most lame_duck_ms.
    /// Default: none.
    pub lame_duck_min_ms: u32,
    /// Ends the lame duck early, once no request has come for so long: then nobody sends any here. Requests for
    /// ready_path do not count, nor do connections without a request. At most lame_duck_ms. Default: never early.
    pub lame_duck_quiet_ms: u32,
    /// How long a connection may be without a request while the server serves: between two, or before the first. Then it
    /// is closed; it may live on for a second more. Not HTTPDOWN_NOW. Default: no limit, because a close can cross a
    /// request on its way, which is lost then (`raced` in the report). Against that, be more patient than the clients (a
    /// load balancer's timeout for idle connections, say), or tell them: `keep_alive_header`. In real time, whatever the
    /// clock.
    pub idle_timeout_ms: u32,
    /// Not 0: responses tell of the idle timeout, "Keep-Alive: timeout=N", so that clients that know this field leave an
    /// idle connection before the server does. N is idle_timeout_ms less idle_grace_ms, in whole seconds, and at least 1,
    /// so that a request that was sent in the last moment still comes in time. It is not said where the connection ends,
    /// nor in a response that has a Connection or Keep-Alive field of its own.
    pub keep_alive_header: c_int,
    /// Of httpdown_run: how long after the first signal another one counts as the second, which goes straight to the
    /// kill; and after that, as the third. One that comes sooner has told the same thing again: a process manager signals
    /// the whole group, and a wrapper in it forwards what it gets. HTTPDOWN_NOW: at once; HTTPDOWN_FOREVER: never.
    /// Default: 500. In real time, whatever the clock.
    pub second_signal_ms: u32,
    /// Not 0: the sockets of `addr` have SO_REUSEPORT, so that several processes of the same user can each listen there
    /// with a socket of its own; the kernel spreads new clients over them. A stop has it send them to the others before
    /// it closes its own, so that workers can be restarted one by one, and none is lost. All who listen there must set
    /// this, and nobody is told any more that the address is in use. For `fds` it is theirs who made them. Default: 0.
    pub reuse_port: c_int,
}

/// What a server has done, and what its stop has cost. Set `struct_size` before the call.
///
/// Every connection and every request is in exactly one column. Once the server has stopped:
/// connections = conns_closed + closed_idle + raced + conns_gone + conns_timed_out + conns_killed, and
/// requests = served + failed + gone + killed.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct httpdown_stop_report {
    /// Required: sizeof(httpdown_stop_report).
    pub struct_size: usize,
    /// How far the server has come: a httpdown_phase_code.
    pub phase: c_int,
    /// How the stop went: a httpdown_status. OK until it has ended.
    pub status: c_int,
    /// How long the stop has taken so far, in milliseconds; 0 before it begins.
    pub stop_duration_ms: u64,
    /// Connections accepted.
    pub connections: u64,
    /// Connections open now: the sum of the next four.
    pub conns_open: u64,
    /// Open, and no byte has come yet.
    pub conns_new: u64,
    /// Open, with a request under way.
    pub conns_active: u64,
    /// Open, between two requests.
    pub conns_idle: u64,
    /// Open, and taken over by a handler.
    pub conns_hijacked: u64,
    /// Connections that ended as they should: closed by the client between two requests, by the server behind a response
    /// that said so, or released by the handler that had taken them over.
    pub conns_closed: u64,
    /// Connections that the stop, or the idle timeout, closed while they were new or idle.
    pub closed_idle: u64,
    /// Connections that the stop or the idle timeout closed, and on which a request came after that: it had crossed our
    /// FIN, or the response that announced it, on the wire. HTTP/1.1 has no means against that; a larger idle_grace_ms, or
    /// idle_timeout_ms, makes it rarer.
    pub raced: u64,
    /// Connections whose client left in the middle of a request.
    pub conns_gone: u64,
    /// Connections that were closed because the head of a request did not come in time (header_timeout_ms).
    pub conns_timed_out: u64,
    /// Connections that a kill cut.
    pub conns_killed: u64,
    /// Requests whose head has been read, and those that a kill cut before it was.
    pub requests: u64,
    /// Requests whose whole response was given to the kernel; of those that were answered while the server stopped, or
    /// last before that on their connection: acknowledged by the client's kernel.
    pub served: u64,
    /// Requests whose handler failed after the response had begun: the client saw it cut.
    pub failed: u64,
    /// Requests whose client left before its response was complete, or before its own body was, or whose body was
    /// malformed when the response had begun.
    pub gone: u64,
    /// Requests that a kill cut, or answered with 503 because nobody had begun to work on them.
    pub killed: u64,
    /// Requests whose handler still held them, answered or not, when the kill timeout had passed. They are also in one
    /// of the columns above.
    pub abandoned: u64,
    /// Of the connections that a kill cut, those that a handler had taken over.
    pub hijacked_killed: u64,
    /// Connections that still waited to be accepted when their listening socket had to be closed: there were no
    /// descriptors for them.
    pub unaccepted: u64,
    /// Bytes that were written to clients, and that their kernels had not acknowledged when their connections ended
    /// during the stop.
    pub bytes_unacked: u64,
    /// Events that were dropped because nobody took them in time.
    pub events_dropped: u64,
}

/// Something that happened. Set `struct_size` before the call; what else there is depends on `kind`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct httpdown_event {
    /// Required: sizeof(httpdown_event).
    pub struct_size: usize,
    /// A httpdown_event_kind.
    pub kind: c_int,
    /// Depends on `kind`.
    pub code: c_int,
    /// Of CONN: the connection's number, unique within its server.
    pub conn_id: u64,
    /// Of STAT: the value.
    pub value: f64,
    /// Of STAT: the key. Of CONN: the client's address; a path is cut to what fits. NUL-terminated.
    pub name: [c_char; 64],
    /// Of LOG: the line, cut to what fits. NUL-terminated.
    pub text: [c_char; 512],
}

/// As a timeout: do not wait.
pub const HTTPDOWN_NOW: u32 = 0xFFFF_FFFE;

/// As a timeout: wait without limit.
pub const HTTPDOWN_FOREVER: u32 = 0xFFFF_FFFF;

// Field-by-field assignment leaves padding unwritten, and a longer struct's unknown bytes must be zero.
const _: () = {
    let pointers = size_of::<usize>() * 16;
    let ints = size_of::<u32>() * 18;
    assert!(size_of::<httpdown_options>() == pointers + ints);
    let counts = size_of::<u64>() * 23;
    assert!(size_of::<httpdown_stop_report>() == size_of::<usize>() + 8 + counts);
};

// The numbers that C sees are those that the core has.
const _: () = {
    use crate::{ConnState, LogLevel, Phase, StatKind};
    use httpdown_conn_state::*;
    use httpdown_log_level::*;
    use httpdown_phase_code::*;
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
    assert!(HTTPDOWN_LOG_ERROR as c_int == LogLevel::Error as c_int);
    assert!(HTTPDOWN_LOG_WARNING as c_int == LogLevel::Warning as c_int);
    assert!(HTTPDOWN_LOG_INFO as c_int == LogLevel::Info as c_int);
    assert!(HTTPDOWN_STAT_AVG as c_int == StatKind::Avg as c_int);
    assert!(HTTPDOWN_STAT_SUM as c_int == StatKind::Sum as c_int);
    assert!(HTTPDOWN_STAT_HISTOGRAM as c_int == StatKind::Histogram as c_int);
    assert!(HTTPDOWN_STAT_TIME as c_int == StatKind::Time as c_int);
};
