/* httpdown: an HTTP server that stops without dropping a request.
 *
 * Made by cbindgen from src/ffi; change it there, and run `make header`.
 *
 * How to read this header
 *
 *  1. Every pointer that httpdown gives you is owned (its function says what ends it) or borrowed (its function says
 *     until when). You never free() its memory, it never frees yours.
 *  2. Every pointer that you give must be valid for what the function does with it. NULL is never a crash: it is fine
 *     where a function says so, and INVALID_ARGUMENT everywhere else.
 *  3. Text that you give is NUL-terminated UTF-8 and copied. Bytes that you get are a pointer and a length, borrowed.
 *  4. Functions that can fail return a httpdown_status as an int; HTTPDOWN_STATUS_OK is 0. Outputs come last, and are
 *     written only on OK.
 *  5. Structs whose first field is struct_size know their own size: set it, and an older or newer library understands.
 *  6. Functions that take a const pointer may be called by any thread, several at once. Of the others, one at a time
 *     for each object. Both also at exit() (atexit, static destructors), and while a thread ends (the destructors of
 *     its locals): a server may be stopped and freed there, and answers what is under way.
 *  7. Handlers run on httpdown's threads (or take requests on your own: httpdown_next), several at a time. They must
 *     not longjmp out, call pthread_exit, fork without exec, or let an exception out. Events come on one thread of
 *     their own, which serves nothing: a slow callback delays only later events. These threads cannot be cancelled. One
 *     of yours that is cancelled (pthread_cancel) in a call of httpdown goes on until the call has returned, and is
 *     cancelled at its next cancellation point; but it must not have PTHREAD_CANCEL_ASYNCHRONOUS set.
 *  8. httpdown touches nothing of your process: no signals (but in httpdown_run, which restores them), no output, no
 *     locale. Its threads that run none of your code block all signals but those for faults (SEGV, BUS, FPE, ILL, TRAP,
 *     SYS). Those that do (handlers, callbacks) block what the thread did that started the server, and PIPE, just as if
 *     that had made them: so children that you start there hear signals, and your signal handlers may run there.
 *     A program that takes signals itself (sigwait, signalfd) blocks them first, and then starts the server.
 *  9. After fork() without exec, calls in the child return FORKED if, at the fork, a server had not been freed yet,
 *     httpdown_run had not returned, or a thread was left behind; and so they do in the child's own children. Any other
 *     child may have servers of its own: a daemon forks first, and then serves.
 * 10. Before version 1.0 the interface may change with any minor version; the changelog says how.
 */


#ifndef HTTPDOWN_H
#define HTTPDOWN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HTTPDOWN_VERSION "0.1.0"
#define HTTPDOWN_VERSION_MAJOR 0
#define HTTPDOWN_VERSION_MINOR 1
#define HTTPDOWN_VERSION_PATCH 0

#if defined(__GNUC__) || defined(__clang__)
#define HTTPDOWN_MUST_USE __attribute__((warn_unused_result))
#else
#define HTTPDOWN_MUST_USE
#endif


// As a timeout: do not wait.
#define HTTPDOWN_NOW 4294967294

// As a timeout: wait without limit.
#define HTTPDOWN_FOREVER 4294967295

// What a call came to. Functions return it as an int. Numbers are never reused.
typedef enum {
    // Done.
    HTTPDOWN_STATUS_OK = 0,
    // An argument makes no sense: NULL where something is needed, a size or a value out of range.
    HTTPDOWN_STATUS_INVALID_ARGUMENT = 1,
    // The options ask for something that this version of the library does not know.
    HTTPDOWN_STATUS_UNSUPPORTED = 2,
    // An address could not be parsed or resolved.
    HTTPDOWN_STATUS_ADDR_INVALID = 3,
    // The address is in use.
    HTTPDOWN_STATUS_ADDR_IN_USE = 4,
    // The operating system does not permit it (a port below 1024, mostly).
    HTTPDOWN_STATUS_PERMISSION_DENIED = 5,
    // Another error of the operating system.
    HTTPDOWN_STATUS_IO = 6,
    // The kill timeout passed and handlers were still running: they were abandoned.
    HTTPDOWN_STATUS_TIMED_OUT = 7,
    // The server has stopped: too late for this call.
    HTTPDOWN_STATUS_STOPPED = 8,
    // The call would wait for the thread or the request that it is made from.
    HTTPDOWN_STATUS_WOULD_DEADLOCK = 9,
    // The request has been answered already, or its answer has begun.
    HTTPDOWN_STATUS_ALREADY_REPLIED = 10,
    // Threads, descriptors or memory could not be had.
    HTTPDOWN_STATUS_OUT_OF_RESOURCES = 11,
    // Nothing there yet, or no room yet: at a call's own timeout, or on a thread that must not wait.
    HTTPDOWN_STATUS_WOULD_BLOCK = 12,
    // The client has left.
    HTTPDOWN_STATUS_GONE = 13,
    // The stop timeout passed, or a kill was asked for, and requests were cut.
    HTTPDOWN_STATUS_KILLED = 14,
    // The process was forked, and this is the child: the server's threads live in the parent. For every call in a
    // child that was forked while there was a server that had not been freed, a httpdown_run, or a thread that one of
    // them had left behind; and in that child's own children. An exec ends it.
    HTTPDOWN_STATUS_FORKED = 15,
    // A body is longer than the limit that was given, or a text than the buffer.
    HTTPDOWN_STATUS_TOO_LARGE = 16,
    // What was asked for is not there.
    HTTPDOWN_STATUS_NOT_FOUND = 17,
    // The client has broken the protocol within the body of its request.
    HTTPDOWN_STATUS_BAD_BODY = 18,
    // A bug in httpdown. Please report it.
    HTTPDOWN_STATUS_PANIC = 99,
} httpdown_status;

// How far a server has come: httpdown_phase. A phase only moves forward.
typedef enum {
    // Accepting and answering.
    HTTPDOWN_PHASE_SERVING = 0,
    // Still accepting, but no longer ready (lame_duck_ms).
    HTTPDOWN_PHASE_LAME_DUCK = 1,
    // The listening sockets are being emptied and closed.
    HTTPDOWN_PHASE_QUIESCING = 2,
    // No new connections; what is there is finished (stop_timeout_ms).
    HTTPDOWN_PHASE_DRAINING = 3,
    // What is left is cut (kill_timeout_ms).
    HTTPDOWN_PHASE_KILLING = 4,
    // The end.
    HTTPDOWN_PHASE_STOPPED = 5,
} httpdown_phase_code;

// Where a connection is in its life.
typedef enum {
    // Accepted; no byte has come yet.
    HTTPDOWN_CONN_NEW = 0,
    // From the first byte of a request to the last byte of its response.
    HTTPDOWN_CONN_ACTIVE = 1,
    // Between two requests.
    HTTPDOWN_CONN_IDLE = 2,
    // Taken over by a handler: no longer HTTP.
    HTTPDOWN_CONN_HIJACKED = 3,
    // Gone.
    HTTPDOWN_CONN_CLOSED = 4,
} httpdown_conn_state;

// How requests reach the program: the option `dispatch`.
typedef enum {
    // The handler is called on a pool of threads (`pool_threads`), and may block.
    HTTPDOWN_DISPATCH_POOL = 0,
    // The handler is called on the thread that drives the connection: the fastest, but it must not block, because
    // other connections wait for it. Reading and writing fail with WOULD_BLOCK there instead of waiting. Of the request's body,
    // what has been received when the handler is called can be read (at least 64 KiB, if so much has come); keep the
    // request, and read the rest on another thread.
    HTTPDOWN_DISPATCH_INLINE = 1,
    // There is no handler: the program takes requests with httpdown_next.
    HTTPDOWN_DISPATCH_QUEUE = 2,
} httpdown_dispatch;

// How much a log line matters.
typedef enum {
    // Something failed.
    HTTPDOWN_LOG_ERROR = 0,
    // Something is odd; the server goes on.
    HTTPDOWN_LOG_WARNING = 1,
    // For information.
    HTTPDOWN_LOG_INFO = 2,
} httpdown_log_level;

// Kinds of event, as bits for the option `pull_events`.
typedef enum {
    // A value for a monitoring system. `code` is a httpdown_stat_kind, `name` the key, `value` the value.
    HTTPDOWN_EVENT_STAT = 1,
    // A connection's state. `code` is a httpdown_conn_state, `conn_id` the connection, `name` the client's address.
    HTTPDOWN_EVENT_CONN = 2,
    // A new phase. `code` is a httpdown_phase_code.
    HTTPDOWN_EVENT_PHASE = 4,
    // A log line. `code` is a httpdown_log_level, `text` the line.
    HTTPDOWN_EVENT_LOG = 8,
} httpdown_event_kind;

// Which callback of httpdown_stats a value would have gone to.
typedef enum {
    // bump_avg
    HTTPDOWN_STAT_AVG = 0,
    // bump_sum
    HTTPDOWN_STAT_SUM = 1,
    // bump_histogram
    HTTPDOWN_STAT_HISTOGRAM = 2,
    // bump_time; seconds
    HTTPDOWN_STAT_TIME = 3,
} httpdown_stat_kind;

// A clock that stands still until it is moved, to test a stop without waiting for its timeouts. Any thread may use
// it, several at once.
typedef struct httpdown_clock httpdown_clock;

// A request, and the means to answer it exactly once: with one call (httpdown_reply...), or in pieces
// (httpdown_reply_start, _write, _finish). That ends it.
//
// From a handler it is lent until the handler returns, unless httpdown_request_defer or httpdown_reply_start has
// succeeded: then it is owned, as is one from httpdown_next, and must be ended. It lives until it is ended, and also
// until the handler that it came to has returned; with httpdown_request_retain, also until httpdown_request_release.
// As long as it lives, its head can be read and what was borrowed from it stays: reply, and then log the path.
//
// The pointer stands for this request alone. Used when the request does not live any more, it finds nothing
// (ALREADY_REPLIED), and never another request; but bytes that were borrowed are gone. It points to no memory. One
// thread at a time, except for httpdown_request_cancelled and httpdown_request_wait_cancelled.
typedef struct httpdown_request httpdown_request;

// A server. All functions but httpdown_free take it as const: any thread may call them, several at once.
typedef struct httpdown_server httpdown_server;

// Answers a request: now (httpdown_reply...), or later (httpdown_request_defer, httpdown_reply_start). Called from
// several threads at once.
typedef void (*httpdown_handler_fn)(httpdown_request *request, void *user_data);

// Ends something of the program's when the library needs it no more. Called exactly once, on any thread.
typedef void (*httpdown_destroy_fn)(void *user_data);

// A value for a monitoring system. Called on the events thread.
typedef void (*httpdown_stat_fn)(const char *key, double value, void *user_data);

// Callbacks for a monitoring system; any may be NULL. Called on the events thread, one at a time: a slow one delays
// only the events behind it. (listen.error comes on the thread that calls httpdown_serve.)
//
// Keys: sums serve, listen.error, accept.error, conn.closed, handler.error, stop, drain.race, idle.race, kill, kill.conn.count,
// kill.timeout, listener.close.error; times stop.time, kill.time; histogram stop.conn.count; and once a minute the
// averages http-state.new, http-state.active, http-state.idle, http-state.total.
typedef struct {
    // The mean over a period is of interest.
    httpdown_stat_fn bump_avg;
    // A counter goes up.
    httpdown_stat_fn bump_sum;
    // The distribution is of interest.
    httpdown_stat_fn bump_histogram;
    // Something that took a time has ended: `value` is seconds.
    httpdown_stat_fn bump_time;
} httpdown_stats;

// A connection has changed its state (a httpdown_conn_state). `peer` is the client's address, borrowed until the
// callback returns. Called on the events thread.
typedef void (*httpdown_conn_state_fn)(const httpdown_server *server,
                                       uint64_t conn_id,
                                       int state,
                                       const char *peer,
                                       void *user_data);

// The server has entered a phase (a httpdown_phase_code), from SERVING, the first event of all, to STOPPED, the last.
// Called on the events thread. `server` may be used, on any thread, until the callback for STOPPED has returned (or, if
// it is also yours, until you free it). In that for STOPPED, httpdown_wait returns how the server has ended; those who
// wait elsewhere are told afterwards, or when a second has passed.
typedef void (*httpdown_phase_fn)(const httpdown_server *server, int phase, void *user_data);

// Something that a person should know. `level` is a httpdown_log_level; `text` is borrowed until the callback
// returns. Called on the events thread.
typedef void (*httpdown_log_fn)(int level, const char *text, void *user_data);

// How a server shall be. Zero in a field means its default, so set `struct_size` and what you need:
// httpdown_options options = { .struct_size = sizeof options, .addr = ":8080", .handler = hello };
//
// All of it is copied; the struct and what it points to may go when the call has returned, but for `user_data`.
// Durations are in milliseconds; HTTPDOWN_NOW means none at all, HTTPDOWN_FOREVER no limit.
typedef struct {
    // Required: sizeof(httpdown_options). A shorter struct, of an older header, has the defaults for the rest; a
    // longer one, of a newer header, is accepted if what this library does not know is zero.
    size_t struct_size;
    // Where to listen, several separated by commas: HOST:PORT, or a Unix socket. An IPv6 address stands in brackets
    // ("[::1]:8080"); without a host (":8080") it is every address; port 0 lets the kernel choose (httpdown_local_addr).
    // Host names are looked up, which blocks. "unix:/run/app.sock" is a Unix stream socket, at a path of at most 107 bytes.
    // A socket that is there, and on which nobody listens, is replaced; one on which somebody listens is in use. Behind a
    // '?' stands who may connect, which takes the permission to write to the file:
    // "unix:/run/app.sock?mode=0660&group=www-data" (mode in octal; user and group are names or numbers). Without a mode
    // it is what the umask leaves. When the socket is closed its file is removed, unless another has replaced it.
    // "unix:@name" is an abstract socket, which has no file, and to which everybody in the same network namespace may
    // connect. Default: ":80", or nothing if there are `fds`.
    const char *addr;
    // Descriptors that listen already: TCP, or Unix stream sockets, whose files stay yours to remove. On OK they are the
    // library's, on an error they stay yours. Where others listen on the same TCP address by SO_REUSEPORT, a stop has the
    // kernel send new clients to them before it closes ours. To that end it connects to each of them once, and replaces
    // the program of the group, if it has one (SO_ATTACH_REUSEPORT_CBPF): on_log says so.
    const int *fds;
    // How many.
    size_t fd_count;
    // Answers requests. Required, unless `dispatch` is QUEUE, where it must be NULL.
    httpdown_handler_fn handler;
    // Handed to every callback. Must live until `destroy` is called.
    void *user_data;
    // Called with `user_data` exactly once: after the last callback has returned, or before httpdown_serve returns an
    // error (but not if the options themselves could not be read: NULL, or a struct_size that is none). A `release` of
    // httpdown_reply_borrowed that does not return is no callback in this sense. Mostly httpdown_free or httpdown_run
    // calls it, on the thread that they are called on, and so lasts as long as it does; a stop never waits for it.
    httpdown_destroy_fn destroy;
    // Callbacks for a monitoring system.
    httpdown_stats stats;
    // Called when a connection changes its state.
    httpdown_conn_state_fn on_conn_state;
    // Called when the server enters a phase.
    httpdown_phase_fn on_phase;
    // Called with what a person should know. The library itself prints nothing.
    httpdown_log_fn on_log;
    // For tests: a clock of httpdown_clock_new_mock, for the stop, kill and lame-duck timers. All other durations are
    // in real time, `idle_grace_ms` included. May be freed at once.
    const httpdown_clock *clock;
    // How long a stop waits for what is there to finish, before it kills. Default: 60,000.
    uint32_t stop_timeout_ms;
    // How long a kill waits for handlers that were cut to return, before it abandons them. Default: 60,000.
    uint32_t kill_timeout_ms;
    // How long a stop goes on accepting, while httpdown_ready says no and responses say Connection: close, so that load
    // balancers and clients go elsewhere. Default: none.
    uint32_t lame_duck_ms;
    // How long a request's head may take, from its first byte to its last; then the client gets a 408, and the
    // connection is closed. Default: 30,000.
    uint32_t header_timeout_ms;
    // How requests reach the program: a httpdown_dispatch. Default: HTTPDOWN_DISPATCH_POOL.
    int dispatch;
    // How many threads the pool may have; they are started as they are needed. Requests beyond it wait. Default: 512.
    uint32_t pool_threads;
    // How many threads drive connections. Default: one for each processor that the process may use.
    uint32_t io_threads;
    // Not 0: the socket outlives this server (systemd, or workers restarted one by one). Whoever keeps it must go on
    // accepting, or waiting clients are reset. A stop closes our copy of the `fds` and leaves what waits in their
    // queues to the others. Where all processes may stop together, let each have a socket of its own: `reuse_port`.
    int fds_shared;
    // Kinds of event (httpdown_event_kind, or-ed) that the program takes itself with httpdown_next_event: there is no
    // events thread then, and no callback but the handler may be set.
    uint32_t pull_events;
    // How long a stop leaves a connection between two requests open, so that a request that is on its way is served,
    // and answered with Connection: close. More than the round trip to the clients. It is counted from when the
    // client's kernel has the last answer, and a new connection whose handshake needed repetition gets 4,500 more for
    // each: so late would its client repeat a request that was lost. Default: 1,000.
    uint32_t idle_grace_ms;
    // How long a stop goes on accepting connections whose handshake had begun. It ends as soon as there are none; counts
    // within stop_timeout_ms. Default: 4,000, which gives a handshake that lost a segment two more chances
    // (retransmissions come after 1 s and 3 s).
    uint32_t quiesce_timeout_ms;
    // How long a connection that the server has closed waits for the client to close its side, so that what was sent
    // last is not destroyed by a reset. A stop waits longer where a client has not acknowledged all that it was sent, up
    // to stop_timeout_ms. Default: 2,000.
    uint32_t linger_timeout_ms;
    // A path, "/healthz" say, that the server answers itself, whatever the handlers are doing, also where they are all
    // busy: 200 while httpdown_ready says yes, then 503. For GET, HEAD and OPTIONS; others get 405. It is compared with
    // the path of a request's target byte for byte, without the query. Such a request counts like any other in the
    // report. "/" first, then visible ASCII, no query. Default: NULL, none.
    const char *ready_path;
    // How long the lame duck takes at least, however quiet it is (lame_duck_quiet_ms): as long as a load balancer needs
    // to notice, which is its checks' interval times the failures that it wants to see. At most lame_duck_ms.
    // Default: none.
    uint32_t lame_duck_min_ms;
    // Ends the lame duck early, once no request has come for so long: then nobody sends any here. Requests for
    // ready_path do not count, nor do connections without a request. At most lame_duck_ms. Default: never early.
    uint32_t lame_duck_quiet_ms;
    // How long a connection may be without a request while the server serves: between two, or before the first. Then it
    // is closed; it may live on for a second more. Not HTTPDOWN_NOW. Default: no limit, because a close can cross a
    // request on its way, which is lost then (`raced` in the report). Against that, be more patient than the clients (a
    // load balancer's timeout for idle connections, say), or tell them: `keep_alive_header`. In real time, whatever the
    // clock.
    uint32_t idle_timeout_ms;
    // Not 0: responses tell of the idle timeout, "Keep-Alive: timeout=N", so that clients that know this field leave an
    // idle connection before the server does. N is idle_timeout_ms less idle_grace_ms, in whole seconds, and at least 1,
    // so that a request that was sent in the last moment still comes in time. It is not said where the connection ends,
    // nor in a response that has a Connection or Keep-Alive field of its own.
    int keep_alive_header;
    // Of httpdown_run: how long after the first signal another one counts as the second, which goes straight to the
    // kill; and after that, as the third. One that comes sooner has told the same thing again: a process manager signals
    // the whole group, and a wrapper in it forwards what it gets. HTTPDOWN_NOW: at once; HTTPDOWN_FOREVER: never.
    // Default: 500. In real time, whatever the clock.
    uint32_t second_signal_ms;
    // Not 0: the sockets of `addr` have SO_REUSEPORT, so that several processes of the same user can each listen there
    // with a socket of its own; the kernel spreads new clients over them. A stop has it send them to the others before
    // it closes its own, so that workers can be restarted one by one, and none is lost. All who listen there must set
    // this, and nobody is told any more that the address is in use. For `fds` it is theirs who made them. Default: 0.
    int reuse_port;
} httpdown_options;

// What a server has done, and what its stop has cost. Set `struct_size` before the call.
//
// Every connection and every request is in exactly one column. Once the server has stopped:
// connections = conns_closed + closed_idle + raced + conns_gone + conns_timed_out + conns_killed, and
// requests = served + failed + gone + killed.
typedef struct {
    // Required: sizeof(httpdown_stop_report).
    size_t struct_size;
    // How far the server has come: a httpdown_phase_code.
    int phase;
    // How the stop went: a httpdown_status. OK until it has ended.
    int status;
    // How long the stop has taken so far, in milliseconds; 0 before it begins.
    uint64_t stop_duration_ms;
    // Connections accepted.
    uint64_t connections;
    // Connections open now: the sum of the next four.
    uint64_t conns_open;
    // Open, and no byte has come yet.
    uint64_t conns_new;
    // Open, with a request under way.
    uint64_t conns_active;
    // Open, between two requests.
    uint64_t conns_idle;
    // Open, and taken over by a handler.
    uint64_t conns_hijacked;
    // Connections that ended as they should: closed by the client between two requests, by the server behind a response
    // that said so, or released by the handler that had taken them over.
    uint64_t conns_closed;
    // Connections that the stop, or the idle timeout, closed while they were new or idle.
    uint64_t closed_idle;
    // Connections that the stop or the idle timeout closed, and on which a request came after that: it had crossed our
    // FIN, or the response that announced it, on the wire. HTTP/1.1 has no means against that; a larger idle_grace_ms, or
    // idle_timeout_ms, makes it rarer.
    uint64_t raced;
    // Connections whose client left in the middle of a request.
    uint64_t conns_gone;
    // Connections that were closed because the head of a request did not come in time (header_timeout_ms).
    uint64_t conns_timed_out;
    // Connections that a kill cut.
    uint64_t conns_killed;
    // Requests whose head has been read, and those that a kill cut before it was.
    uint64_t requests;
    // Requests whose whole response was given to the kernel; of those that were answered while the server stopped, or
    // last before that on their connection: acknowledged by the client's kernel.
    uint64_t served;
    // Requests whose handler failed after the response had begun: the client saw it cut.
    uint64_t failed;
    // Requests whose client left before its response was complete, or before its own body was, or whose body was
    // malformed when the response had begun.
    uint64_t gone;
    // Requests that a kill cut, or answered with 503 because nobody had begun to work on them.
    uint64_t killed;
    // Requests whose handler still held them, answered or not, when the kill timeout had passed. They are also in one
    // of the columns above.
    uint64_t abandoned;
    // Of the connections that a kill cut, those that a handler had taken over.
    uint64_t hijacked_killed;
    // Connections that still waited to be accepted when their listening socket had to be closed: there were no
    // descriptors for them.
    uint64_t unaccepted;
    // Bytes that were written to clients, and that their kernels had not acknowledged when their connections ended
    // during the stop.
    uint64_t bytes_unacked;
    // Events that were dropped because nobody took them in time.
    uint64_t events_dropped;
} httpdown_stop_report;

// Something that happened. Set `struct_size` before the call; what else there is depends on `kind`.
typedef struct {
    // Required: sizeof(httpdown_event).
    size_t struct_size;
    // A httpdown_event_kind.
    int kind;
    // Depends on `kind`.
    int code;
    // Of CONN: the connection's number, unique within its server.
    uint64_t conn_id;
    // Of STAT: the value.
    double value;
    // Of STAT: the key. Of CONN: the client's address; a path is cut to what fits. NUL-terminated.
    char name[64];
    // Of LOG: the line, cut to what fits. NUL-terminated.
    char text[512];
} httpdown_event;

// Bytes that belong to somebody else. Text is not NUL-terminated. `data` is NULL only where there is nothing at all
// (no such header); with `len` 0 it may be anything.
typedef struct {
    // The first byte.
    const char *data;
    // How many there are.
    size_t len;
} httpdown_bytes;

// A header field, of a request or for a reply.
typedef struct {
    // Its name; of a request, in lower case.
    httpdown_bytes name;
    // Its value.
    httpdown_bytes value;
} httpdown_header;

// The process that has connected by a Unix socket: httpdown_request_peer_credentials.
typedef struct {
    // Its number; 0 if it is of another PID namespace, which ours does not see.
    uint32_t pid;
    // Its effective user.
    uint32_t uid;
    // Its effective group.
    uint32_t gid;
} httpdown_credentials;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Sets everything to its default: zero, but for `struct_size`. For C++ before C++20, and for languages without
// designated initialisers. `struct_size` is sizeof(httpdown_options) as the caller knows it. Does nothing if
// `options` is NULL or the size makes no sense.
void httpdown_options_init(httpdown_options *options,
                           size_t struct_size);

// Starts a server, and returns at once: it runs on threads of its own.
//
// On OK `*server` is yours, to be ended by httpdown_free; otherwise it is NULL, and `error` (may be NULL) has the
// reason as text, cut to `error_size` and NUL-terminated. Blocks only while a host name in `addr` is looked up,
// and, for at most a second, while another process holds a lock on the directory of a Unix socket (flock(2)).
//
// Returns OK, INVALID_ARGUMENT, UNSUPPORTED, ADDR_INVALID, ADDR_IN_USE, PERMISSION_DENIED, IO, OUT_OF_RESOURCES,
// FORKED.
HTTPDOWN_MUST_USE
int httpdown_serve(const httpdown_options *options,
                   httpdown_server **server,
                   char *error,
                   size_t error_size);

// Serves until SIGTERM or SIGINT, stops, and returns the result of the stop.
//
// A second signal goes straight to the kill, unless it comes within second_signal_ms of the first; a third does what
// it would have done without us. What the signals did before is restored at the end; only one run can be under way in
// a process. In a child, be it of fork or of vfork, they do what they would have done without us, and do not stop the
// parent. A daemon forks first, and then runs: a child that is forked meanwhile can have no server (FORKED). To learn
// when the server listens, and where, set the option `on_phase`. The calling thread takes the signals meanwhile, also
// if it blocks them: one that was blocked and came before stops the server, too. A SIGINT that is ignored stays so, as
// where a shell that is not interactive starts a program in the background; SIGTERM always stops. `report` (may be
// NULL; set its struct_size) is written if the server has run, however it ended. `error` as for httpdown_serve.
// Blocks.
//
// Returns as httpdown_serve and, when the server has run, as httpdown_stop.
HTTPDOWN_MUST_USE
int httpdown_run(const httpdown_options *options,
                 httpdown_stop_report *report,
                 char *error,
                 size_t error_size);

// Stops the server: no new connections, what is there is finished, and then the result. Blocks, at most for
// lame_duck_ms + stop_timeout_ms + kill_timeout_ms. Whoever calls later, or meanwhile, waits for the same end and
// gets the same result. Before that the callbacks for events have been called, to the last, on_phase with
// HTTPDOWN_PHASE_STOPPED; but for callbacks that block no stop waits longer than a second.
//
// Not for the only thread that takes requests from the queue: those that come while it waits here are answered by
// nobody until the kill. It calls httpdown_stop_begin, and goes on: see httpdown_event_fd.
//
// Returns OK (nothing was cut), KILLED (requests were cut when the stop timeout had passed), TIMED_OUT (handlers had
// to be abandoned), IO (serving had failed, or a listening socket could not be closed), WOULD_DEADLOCK (the server has
// not ended, and this is a thread of its own, or one that holds an unfinished request of the queue: the stop has begun
// then), INVALID_ARGUMENT, FORKED.
HTTPDOWN_MUST_USE
int httpdown_stop(const httpdown_server *server);

// Begins the stop and returns at once. A second time it does nothing. Never blocks; may be called in a signal
// handler, and anywhere else.
//
// Returns OK, INVALID_ARGUMENT, FORKED.
int httpdown_stop_begin(const httpdown_server *server);

// Goes straight to the kill, whether a stop has begun or not, and returns at once. Otherwise as httpdown_stop_begin.
//
// Returns OK, INVALID_ARGUMENT, FORKED.
int httpdown_kill_begin(const httpdown_server *server);

// Waits until the server has ended entirely, whoever has stopped it, at most `timeout_ms`. Any number of threads may
// wait; all get the same result. `report` may be NULL (otherwise set its struct_size); it is written whenever the
// server has ended.
//
// Returns as httpdown_stop, and WOULD_BLOCK at the timeout.
HTTPDOWN_MUST_USE
int httpdown_wait(const httpdown_server *server,
                  uint32_t timeout_ms,
                  httpdown_stop_report *report);

// The counts as they are now, at any time. Never blocks. Set `report->struct_size` before.
//
// Returns OK, INVALID_ARGUMENT, FORKED.
HTTPDOWN_MUST_USE int httpdown_report(const httpdown_server *server, httpdown_stop_report *report);

// How far the server has come: a httpdown_phase_code; HTTPDOWN_PHASE_STOPPED also if `server` is NULL and where
// other calls return FORKED. Never blocks.
int httpdown_phase(const httpdown_server *server);

// Whether new requests are welcome, for a readiness probe: false from the moment when a stop is asked for, and so from
// the lame duck on; also if `server` is NULL and after a fork. Never blocks; may be called in a signal handler, and
// anywhere else. The option `ready_path` has the server tell it to who asks by HTTP.
bool httpdown_ready(const httpdown_server *server);

// Writes the address that the server listens on as text ("127.0.0.1:8080", "unix:/run/app.sock") into `buffer`,
// NUL-terminated; 128 bytes are enough. A path in `addr` is made absolute. `index` counts the listening sockets: `fds`
// first, then those of `addr`. Never blocks.
//
// Returns OK, INVALID_ARGUMENT (also: no such index, or the buffer is too small), FORKED.
HTTPDOWN_MUST_USE
int httpdown_local_addr(const httpdown_server *server,
                        size_t index,
                        char *buffer,
                        size_t size);

// Ends a server: stops it if nobody has, waits until its threads have ended, and frees it. NULL is fine.
//
// Blocks as httpdown_stop does, and then until the callbacks for events have been called, at most for kill_timeout_ms
// or a second, whichever is longer. On a thread that would wait for itself (in a handler, say) it returns at once, and
// the rest follows elsewhere. Handlers that never return are left behind; `destroy` is called when the last of them
// does return. Nothing may use the server meanwhile or afterwards. In a child that was forked before it does nothing:
// see FORKED.
void httpdown_free(httpdown_server *server);

// Takes requests from the queue (the option `dispatch` is HTTPDOWN_DISPATCH_QUEUE): up to `capacity` of them into
// `requests`, and their number into `*count`. Waits for the first, at most `timeout_ms`. Any thread may call it,
// several at once. The requests are owned: each is to be ended exactly once, by any thread.
//
// While one of them is unfinished, the calling thread must not wait for the server to stop: WOULD_DEADLOCK.
// Requests can be taken until the kill; what nobody has taken by then is answered with 503.
//
// Returns OK, WOULD_BLOCK (at the timeout), STOPPED (no request can come any more), INVALID_ARGUMENT, FORKED.
HTTPDOWN_MUST_USE
int httpdown_next(const httpdown_server *server,
                  uint32_t timeout_ms,
                  httpdown_request **requests,
                  size_t capacity,
                  size_t *count);

// A descriptor for the program's own event loop: readable (level-triggered) while requests wait in the queue, and
// after the end, when httpdown_next returns STOPPED. It belongs to the server; do not read from it or close it. Never
// blocks.
//
// Returns OK, INVALID_ARGUMENT, OUT_OF_RESOURCES, FORKED.
HTTPDOWN_MUST_USE
int httpdown_queue_fd(const httpdown_server *server,
                      int *fd);

// A descriptor for the program's own event loop: readable (level-triggered) while events wait to be taken by
// httpdown_next_event, and after the end, when httpdown_wait does not wait any more; the latter also without the
// option `pull_events`. It belongs to the server; do not read from it or close it. Never blocks.
//
// With it, and that of httpdown_queue_fd, a program of one thread stops without blocking and loses nothing. It calls
// httpdown_stop_begin, and goes on with its loop: poll both, take and answer requests (httpdown_next with
// HTTPDOWN_NOW) until that returns STOPPED, from when on it polls only this one, take events if it has asked for them,
// and call httpdown_wait with HTTPDOWN_NOW: as long as that returns WOULD_BLOCK, or WOULD_DEADLOCK because the thread
// holds a request, the server has not ended. Then httpdown_free returns at once.
//
// Returns OK, INVALID_ARGUMENT, OUT_OF_RESOURCES, FORKED.
HTTPDOWN_MUST_USE
int httpdown_event_fd(const httpdown_server *server,
                      int *fd);

// Takes the oldest event (the option `pull_events`), waiting for one at most `timeout_ms`. Any thread may call it,
// several at once. Set `event->struct_size` before. Events that nobody takes in time are dropped, and counted in the
// report.
//
// Returns OK, WOULD_BLOCK (at the timeout), STOPPED (the server has ended and all were taken), INVALID_ARGUMENT,
// FORKED.
HTTPDOWN_MUST_USE
int httpdown_next_event(const httpdown_server *server,
                        uint32_t timeout_ms,
                        httpdown_event *event);

// What a status means, as English text: static, NUL-terminated, never NULL. May be called anywhere.
const char *httpdown_status_string(int status);

// Why the calling thread's last failing call has failed, as English text: of the functions that return a status, whatever
// the status. NUL-terminated, cut to 511 bytes, never NULL: "" if none has failed. It belongs to the library, and is valid
// until the thread's next failing call, or its end; a call that succeeds leaves it as it is. Never blocks. Any thread,
// also while it ends; httpdown_stop_begin and httpdown_kill_begin, which signal handlers may call, do not set it.
const char *httpdown_last_error(void);

// The version of the library that runs, as text: static, NUL-terminated. That of the header is HTTPDOWN_VERSION.
const char *httpdown_version(void);

// The method, as it came: "GET". Borrowed as long as the request lives. Never blocks.
httpdown_bytes httpdown_request_method(const httpdown_request *request);

// The target, mostly path and query, not decoded: "/a%20b?c=d"; without a fragment. Borrowed as long as the
// request lives. Never blocks.
httpdown_bytes httpdown_request_target(const httpdown_request *request);

// The path of the target, not decoded: "/a%20b". Borrowed as long as the request lives. Never blocks.
httpdown_bytes httpdown_request_path(const httpdown_request *request);

// What follows the question mark in the target, not decoded: "c=d"; `data` is NULL if there is none. Borrowed as long
// as the request lives. Never blocks.
httpdown_bytes httpdown_request_query(const httpdown_request *request);

// How the request came: "http". Static. Never blocks.
httpdown_bytes httpdown_request_scheme(const httpdown_request *request);

// The version of HTTP times ten: 10 or 11; 0 if there is no request. Never blocks.
int httpdown_request_version(const httpdown_request *request);

// The value of the first header of that name (NUL-terminated, in any case); `data` is NULL if there is none. "Host" is
// what the target says, where that is absolute ("http://a/b").
// Borrowed as long as the request lives. Never blocks.
httpdown_bytes httpdown_request_header(const httpdown_request *request,
                                       const char *name);

// How many header fields there are. Never blocks.
size_t httpdown_request_header_count(const httpdown_request *request);

// Header fields, all at once: writes up to `capacity` of them, from the `first` on (0: from the beginning), and their
// number into `*count`. Fields of the same name stand together, in the order in which they came. Borrowed as long as
// the request lives. Never blocks.
//
// Returns OK, INVALID_ARGUMENT, ALREADY_REPLIED, FORKED.
HTTPDOWN_MUST_USE
int httpdown_request_headers(const httpdown_request *request,
                             size_t first,
                             httpdown_header *headers,
                             size_t capacity,
                             size_t *count);

// The client's address: "127.0.0.1:50000", also where it came by a socket for IPv4 and IPv6; "unix:" by a Unix socket,
// with a path or a name behind it if the client has bound its own. Borrowed as long as the request lives. Never blocks.
httpdown_bytes httpdown_request_peer_addr(const httpdown_request *request);

// The server's address that the client connected to. Borrowed as long as the request lives. Never blocks.
httpdown_bytes httpdown_request_local_addr(const httpdown_request *request);

// Writes into `*credentials` which process has connected by a Unix socket, as the kernel knew it at that moment
// (SO_PEERCRED, see unix(7)). The connection may have been handed to another process since. Never blocks.
//
// Returns OK; NOT_FOUND if the client has not come by a Unix socket; INVALID_ARGUMENT, ALREADY_REPLIED, FORKED.
HTTPDOWN_MUST_USE
int httpdown_request_peer_credentials(const httpdown_request *request,
                                      httpdown_credentials *credentials);

// The number of the request's connection, as the option `on_conn_state` tells it. Never blocks.
uint64_t httpdown_request_conn_id(const httpdown_request *request);

// The server that the request came to; a handler may run before httpdown_serve has returned it. Borrowed until the
// handler has returned or the request is ended, whichever is later; not to be freed by this pointer unless it is also
// yours. NULL if `request` is. Never blocks.
const httpdown_server *httpdown_request_server(const httpdown_request *request);

// Reads the next bytes of the request's body into `buffer`, and their number into `*count`: 0 is the end. Blocks
// until there are some. A client that waits to be asked for its body (Expect: 100-continue) is asked by the first read,
// or by httpdown_reply_start.
//
// Returns OK, GONE (the client has left), BAD_BODY (it has broken the protocol; if the request is then ended without an
// answer, the client gets a 400), KILLED, WOULD_BLOCK (on a thread that drives
// connections, if nothing is there), INVALID_ARGUMENT, ALREADY_REPLIED, FORKED.
HTTPDOWN_MUST_USE
int httpdown_request_read(httpdown_request *request,
                          void *buffer,
                          size_t capacity,
                          size_t *count);

// The whole body of the request, if it has at most `limit` bytes: into `*body`, borrowed as long as the request
// lives. Blocks until all of it is there. Asked again, it gives the same; what httpdown_request_read took before is missing.
//
// Returns OK, TOO_LARGE (it is longer: nothing is lost, ask again or read it in pieces), and as httpdown_request_read.
HTTPDOWN_MUST_USE
int httpdown_request_body(httpdown_request *request,
                          size_t limit,
                          httpdown_bytes *body);

// Whether there is no more use in answering: the client has left, the server was killed, or the answer is complete (one
// that has no body is, soon after httpdown_reply_start). True if `request` is NULL. Never blocks. Any thread, also while
// another uses the request, until it is ended.
bool httpdown_request_cancelled(const httpdown_request *request);

// Sleeps for `timeout_ms`, or until there is no more use in answering. Any thread, also while another uses the
// request, until it is ended. In place (HTTPDOWN_DISPATCH_INLINE), a handler that waits here holds up the thread that
// would see its client leave, and all connections of that thread: it learns only of a kill, and of the time.
//
// Returns WOULD_BLOCK (the time has passed: go on), GONE (the client has left), KILLED, ALREADY_REPLIED (the answer is
// complete), INVALID_ARGUMENT, FORKED. A client that has only closed its half (a FIN) may still read, and is not gone.
HTTPDOWN_MUST_USE
int httpdown_request_wait_cancelled(const httpdown_request *request,
                                    uint32_t timeout_ms);

// Keeps a request that was lent to a handler: it is owned now, may be moved to another thread, and must be ended.
// Never blocks. Behind its end the handler may still read its head, but other threads may not, without
// httpdown_request_retain.
//
// Returns OK, ALREADY_REPLIED, INVALID_ARGUMENT, FORKED.
HTTPDOWN_MUST_USE
int httpdown_request_defer(httpdown_request *request);

// Has a request that has not been ended live until httpdown_request_release, also behind its end: its head can be read
// for so long, and the body that httpdown_request_body has given. A second time it does nothing. It must still be ended,
// and a stop does not wait for its release. Never blocks.
//
// Returns OK, ALREADY_REPLIED, INVALID_ARGUMENT, FORKED.
HTTPDOWN_MUST_USE
int httpdown_request_retain(httpdown_request *request);

// Gives up what httpdown_request_retain has kept. Any thread, but nobody may read the request meanwhile; if it has not
// been ended, it must be, as before. Never blocks.
//
// Returns OK, ALREADY_REPLIED (it does not live any more, or was not retained), INVALID_ARGUMENT, FORKED.
int httpdown_request_release(httpdown_request *request);

// Answers with a whole response, and ends the request, whatever this returns. All is copied before it returns. Does
// not wait for the client.
//
// `status_code` is from 200 to 999. Content-Length is set for you; so is Date. A 204 or 205 has no body: what is given
// is not sent, nor is a Content-Length among the headers (for 205, it is 0). A header's name or value with a
// character that does not belong there (CR, LF, NUL) is refused: the client then gets a 500, as for any
// INVALID_ARGUMENT.
//
// Returns OK, GONE (the client has left), KILLED, ALREADY_REPLIED, INVALID_ARGUMENT, FORKED.
int httpdown_reply(httpdown_request *request,
                   int status_code,
                   const httpdown_header *headers,
                   size_t header_count,
                   const void *body,
                   size_t body_len);

// Answers with a text (NUL-terminated UTF-8) as text/plain. Otherwise as httpdown_reply.
//
// Returns as httpdown_reply.
int httpdown_reply_text(httpdown_request *request, int status_code, const char *text);

// Answers with a body that is not copied: it must stay as it is until `release` (may be NULL) is called with
// `release_data`, exactly once, on any thread, whatever this returns; perhaps before it returns. It should not block:
// mostly it is called on a thread that drives connections, which wait for it. Otherwise as httpdown_reply.
//
// Returns as httpdown_reply.
int httpdown_reply_borrowed(httpdown_request *request,
                            int status_code,
                            const httpdown_header *headers,
                            size_t header_count,
                            const void *body,
                            size_t body_len,
                            httpdown_destroy_fn release,
                            void *release_data);

// Begins an answer whose body follows in pieces. The head is sent as soon as the connection can take it. On OK the
// request is owned and must be ended by httpdown_reply_finish or httpdown_reply_abort; otherwise it is as before. Never
// blocks.
//
// The body goes out chunked, unless there is a Content-Length among the headers (which is not sent with a 204 or 205).
// If more than 64 KiB of the request's body have still to come when the head is sent, or, of a body in chunks, its end,
// the head says Connection: close: it is not known whether they will be read.
//
// Returns as httpdown_reply.
HTTPDOWN_MUST_USE
int httpdown_reply_start(httpdown_request *request,
                         int status_code,
                         const httpdown_header *headers,
                         size_t header_count);

// Sends more of the body, as soon as the client takes it. `data` is copied. Blocks while too much waits already
// (256 KiB): a slow client slows the writer.
//
// Returns OK, GONE (the client has left), KILLED, WOULD_BLOCK (on a thread that drives connections, if there is no
// room for all of it: nothing was taken; when nothing waits, there is room for any length), ALREADY_REPLIED (the answer
// has no body: it is to HEAD, or a 204, 205 or 304), INVALID_ARGUMENT (also: no answer has begun, or this exceeds its
// Content-Length), FORKED.
HTTPDOWN_MUST_USE
int httpdown_reply_write(httpdown_request *request,
                         const void *data,
                         size_t len);

// Ends an answer that was begun, and the request, whatever this returns. Does not wait for the client. Without
// httpdown_reply_start the client gets a 500; with less written than the Content-Length says, it sees the answer cut
// (INVALID_ARGUMENT).
//
// Returns OK, GONE (the client has left), KILLED, ALREADY_REPLIED, INVALID_ARGUMENT, FORKED.
int httpdown_reply_finish(httpdown_request *request);

// Ends a request without an answer: the client gets a 500 or, if an answer has begun, sees it cut. Never blocks.
//
// Returns OK, ALREADY_REPLIED, INVALID_ARGUMENT, FORKED.
int httpdown_reply_abort(httpdown_request *request);

// The bytes of a NUL-terminated text, for a httpdown_header. NULL gives none. Never blocks.
httpdown_bytes httpdown_str(const char *text);

// Whether bytes are just this NUL-terminated text. Never blocks.
bool httpdown_bytes_equal(httpdown_bytes bytes, const char *text);

// The decoded value of the first pair of that name (NUL-terminated) in a query, "name=value&other=value":
//
//   char text[32];
//   size_t len;
//   if (httpdown_query_value(httpdown_request_query(request), "duration", text, sizeof text, &len) == 0) ...
//
// Writes it into `buffer`, NUL-terminated, and its length without the NUL into `*len`. It may have NULs within (%00),
// where C takes it to end, and it need not be UTF-8: `len` tells all of it. The format is that of forms, whose bodies
// can be read by this, too: %20 and + are a space, names are compared decoded, a name without '=' has an empty value,
// and a '%' without two hexadecimal digits stands for itself. `buffer` must not overlap the query. Never blocks.
//
// Returns OK; NOT_FOUND; TOO_LARGE if it needs more than `size` bytes (then `buffer` has an empty text, and `*len` is
// the length all the same: make room for one more; `buffer` may be NULL if `size` is 0); INVALID_ARGUMENT.
HTTPDOWN_MUST_USE
int httpdown_query_value(httpdown_bytes query,
                         const char *name,
                         char *buffer,
                         size_t size,
                         size_t *len);

// Takes the next pair from the beginning of a query: name and value, neither decoded (httpdown_query_decode does),
// borrowed from it. `*rest` is then what follows. Never blocks:
//
//   httpdown_bytes rest = httpdown_request_query(request);
//   httpdown_header pair;
//   while (httpdown_query_next(&rest, &pair)) ...
//
// Returns false, and writes no pair, when there is none left, or an argument is NULL.
HTTPDOWN_MUST_USE
bool httpdown_query_next(httpdown_bytes *rest,
                         httpdown_header *pair);

// Decodes a name or a value of a query: %20 and + are a space. Everything else as httpdown_query_value.
//
// Returns OK, TOO_LARGE, INVALID_ARGUMENT.
HTTPDOWN_MUST_USE
int httpdown_query_decode(httpdown_bytes encoded,
                          char *buffer,
                          size_t size,
                          size_t *len);

// Decodes a part of a path: %20 is a space, + is a plus. Split a path at its slashes first: a decoded one (%2F) is
// none. Everything else as httpdown_query_value.
//
// Returns OK, TOO_LARGE, INVALID_ARGUMENT.
HTTPDOWN_MUST_USE
int httpdown_percent_decode(httpdown_bytes encoded,
                            char *buffer,
                            size_t size,
                            size_t *len);

// Makes a clock that stands at zero, for the option `clock` of one server or several.
//
// Returns OK, INVALID_ARGUMENT, FORKED. The clock is yours: httpdown_clock_free.
HTTPDOWN_MUST_USE int httpdown_clock_new_mock(httpdown_clock **clock);

// Moves the time on by `ms` milliseconds, and fires the timers that are due by then. Does not wait for what they set
// off.
//
// Returns OK, INVALID_ARGUMENT, FORKED.
HTTPDOWN_MUST_USE
int httpdown_clock_advance(const httpdown_clock *clock,
                           uint64_t ms);

// Blocks until at least `count` timers are set, that is: until the server waits for its clock. `timeout_ms` is real
// time. A server with statistics always has one timer set, for the counts of every minute.
//
// Returns OK, INVALID_ARGUMENT, WOULD_BLOCK (at the timeout), FORKED.
HTTPDOWN_MUST_USE
int httpdown_clock_wait_for_timers(const httpdown_clock *clock,
                                   size_t count,
                                   uint32_t timeout_ms);

// Frees a clock. A server that uses it keeps what it needs. NULL is fine.
void httpdown_clock_free(httpdown_clock *clock);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* HTTPDOWN_H */
