/* httpdown: an HTTP server that stops without dropping a request.
 *
 * cbindgen makes this header from src/ffi; change it there, and run `make header`.
 *
 * How to read this header
 *
 *  1. Every pointer that httpdown gives you is owned (the function says how you end it) or borrowed (the function says
 *     until when you may use it). You never free() httpdown's memory, and httpdown never frees yours.
 *  2. Every pointer that you pass must be valid for what the function does with it. NULL never crashes: where a
 *     function says so, NULL is fine; everywhere else the result is INVALID_ARGUMENT.
 *  3. Text that you pass is NUL-terminated UTF-8, and httpdown copies it. Bytes that you get are a pointer and a
 *     length, borrowed.
 *  4. Functions that can fail return a httpdown_status as an int; HTTPDOWN_STATUS_OK is 0. Outputs come last, and are
 *     written only on OK.
 *  5. Structs whose first field is struct_size know their own size. Set this field, so that an older or newer library
 *     understands the struct.
 *  6. Functions that take a const pointer may be called by any thread, several at once. Other functions may be called
 *     by only one thread at a time for each object. Both kinds also work at exit() (atexit, static destructors), and
 *     while a thread ends (the destructors of its locals): a server may be stopped and freed there, and it answers the
 *     requests that are under way.
 *  7. Handlers run on httpdown's threads, several at a time (or you take requests on your own threads: httpdown_next).
 *     A handler must not longjmp out, call pthread_exit, fork without exec, or let an exception out. Events come on
 *     their own thread, which serves no requests: a slow callback delays only later events. httpdown's threads cannot
 *     be cancelled. If you cancel one of your threads (pthread_cancel) in a call of httpdown, the call first returns,
 *     and the thread is cancelled at its next cancellation point; but the thread must not have
 *     PTHREAD_CANCEL_ASYNCHRONOUS set.
 *  8. httpdown changes nothing in your process: no signals (except in httpdown_run and httpdown_run_all, which restore
 *     them), no output, no locale. Its threads that run none of your code block all signals except those for faults
 *     (SEGV, BUS, FPE, ILL, TRAP, SYS). Its threads that run your code (handlers, callbacks) block the signals that the
 *     thread that started the server blocked, and PIPE, as if that thread had created them. So children that you start
 *     there receive signals, and your signal handlers may run there.
 *     A program that takes signals itself (sigwait, signalfd) must block them first, and then start the server.
 *  9. After fork() without exec, calls in the child return FORKED if, at the fork, a server had not been freed yet,
 *     httpdown_run or httpdown_run_all had not returned, or a thread had been left behind. The calls also return FORKED
 *     in that child's own children. Any other child may have its own servers: a daemon forks first, and then serves.
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

/* Whether the library has TLS. */
#define HTTPDOWN_HAS_TLS 1

#if defined(__GNUC__) || defined(__clang__)
#define HTTPDOWN_MUST_USE __attribute__((warn_unused_result))
#else
#define HTTPDOWN_MUST_USE
#endif


// As a timeout: do not wait.
#define HTTPDOWN_NOW 4294967294

// As a timeout: wait without limit.
#define HTTPDOWN_FOREVER 4294967295

// As a length, in httpdown_reply_fd: to the end of the file.
#define HTTPDOWN_TO_END UINT64_MAX

// The result of a call. Functions return this status as an int. Numbers are never reused.
typedef enum {
    // The call has succeeded.
    HTTPDOWN_STATUS_OK = 0,
    // An argument makes no sense: NULL where something is needed, a size or a value out of range.
    HTTPDOWN_STATUS_INVALID_ARGUMENT = 1,
    // The options ask for something that this version of the library does not know.
    HTTPDOWN_STATUS_UNSUPPORTED = 2,
    // An address could not be parsed or resolved.
    HTTPDOWN_STATUS_ADDR_INVALID = 3,
    // The address is in use.
    HTTPDOWN_STATUS_ADDR_IN_USE = 4,
    // The operating system does not permit this (mostly: to listen on a port below 1024).
    HTTPDOWN_STATUS_PERMISSION_DENIED = 5,
    // Another error of the operating system.
    HTTPDOWN_STATUS_IO = 6,
    // The kill timeout passed while handlers were still running. These handlers were abandoned.
    HTTPDOWN_STATUS_TIMED_OUT = 7,
    // The server has stopped, so this call came too late.
    HTTPDOWN_STATUS_STOPPED = 8,
    // The call would wait for its own thread, or for a request that this thread holds.
    HTTPDOWN_STATUS_WOULD_DEADLOCK = 9,
    // The request has been answered already, or its answer has begun.
    HTTPDOWN_STATUS_ALREADY_REPLIED = 10,
    // The system had no more threads, descriptors or memory.
    HTTPDOWN_STATUS_OUT_OF_RESOURCES = 11,
    // There is nothing to take yet, or no room yet. Either the call's own timeout has passed, or the thread must not
    // wait.
    HTTPDOWN_STATUS_WOULD_BLOCK = 12,
    // The client has left.
    HTTPDOWN_STATUS_GONE = 13,
    // The stop timeout passed, or a kill was asked for, and requests were cut.
    HTTPDOWN_STATUS_KILLED = 14,
    // The process was forked, and this is the child; the server's threads live in the parent. Every call returns this
    // status in a child that was forked while one of these existed: a server that had not been freed, a running
    // httpdown_run or httpdown_run_all, or a thread that one of them had left behind. The same holds for that child's own children. An
    // exec ends this state.
    HTTPDOWN_STATUS_FORKED = 15,
    // A body is longer than the given limit, or a text is longer than the buffer.
    HTTPDOWN_STATUS_TOO_LARGE = 16,
    // The thing that was asked for does not exist.
    HTTPDOWN_STATUS_NOT_FOUND = 17,
    // The client has broken the protocol in the body of its request.
    HTTPDOWN_STATUS_BAD_BODY = 18,
    // A certificate, a key or something else of the TLS settings cannot be used; the text says why.
    HTTPDOWN_STATUS_TLS = 19,
    // The client was too slow with its request's body, or in taking its answer: `body_timeout_ms`, `write_timeout_ms`.
    HTTPDOWN_STATUS_TOO_SLOW = 20,
    // The program could not be restarted; the process goes on as before.
    HTTPDOWN_STATUS_RESTART_FAILED = 21,
    // Not now: something of the kind is under way.
    HTTPDOWN_STATUS_BUSY = 22,
    // A bug in httpdown. Please report it.
    HTTPDOWN_STATUS_PANIC = 99,
} httpdown_status;

// The phase of a server's life, returned by httpdown_phase. A phase only moves forward.
typedef enum {
    // The server accepts connections and answers requests.
    HTTPDOWN_PHASE_SERVING = 0,
    // The server still accepts connections, but is no longer ready (lame_duck_ms).
    HTTPDOWN_PHASE_LAME_DUCK = 1,
    // The server accepts the connections that wait in its listening sockets, and closes these sockets.
    HTTPDOWN_PHASE_QUIESCING = 2,
    // The server takes no new connections, and finishes the requests that it has (stop_timeout_ms).
    HTTPDOWN_PHASE_DRAINING = 3,
    // The server cuts the connections that are left (kill_timeout_ms).
    HTTPDOWN_PHASE_KILLING = 4,
    // The server has stopped.
    HTTPDOWN_PHASE_STOPPED = 5,
} httpdown_phase_code;

// The state of a connection.
typedef enum {
    // The connection was accepted, and its TLS handshake is done, if it has one; no byte of a request has come yet.
    HTTPDOWN_CONN_NEW = 0,
    // A request is under way: from its first byte to the last byte of its response.
    HTTPDOWN_CONN_ACTIVE = 1,
    // The connection is between two requests.
    HTTPDOWN_CONN_IDLE = 2,
    // A handler has taken the connection over; it no longer carries HTTP.
    HTTPDOWN_CONN_HIJACKED = 3,
    // The connection is closed.
    HTTPDOWN_CONN_CLOSED = 4,
    // The connection was accepted, and its TLS handshake is not done, or its header of the PROXY protocol has not
    // come. It becomes new.
    HTTPDOWN_CONN_HANDSHAKING = 5,
} httpdown_conn_state;

// How requests reach the program: the option `dispatch`.
typedef enum {
    // The handler is called on a pool of threads (`pool_threads`). It may block.
    HTTPDOWN_DISPATCH_POOL = 0,
    // The handler is called on the thread that drives the connection. This is the fastest way. But the handler must
    // not block, because other connections wait for this thread. On this thread, reading and writing fail with
    // WOULD_BLOCK instead of waiting. A short body (`body_buffer`) is there when the handler is called. Of another one,
    // the handler can read the part that was received before the call (at least 64 KiB, if that much has come). To
    // read the rest, keep the request, and read on another thread, or ask to be told (httpdown_request_notify).
    HTTPDOWN_DISPATCH_INLINE = 1,
    // There is no handler: the program takes requests with httpdown_next.
    HTTPDOWN_DISPATCH_QUEUE = 2,
} httpdown_dispatch;

// How much a log line matters.
typedef enum {
    // Something failed.
    HTTPDOWN_LOG_ERROR = 0,
    // Something unexpected happened; the server goes on.
    HTTPDOWN_LOG_WARNING = 1,
    // For information.
    HTTPDOWN_LOG_INFO = 2,
} httpdown_log_level;

// The kinds of event, as bits for the option `pull_events`.
typedef enum {
    // A value for a monitoring system. `code` is a httpdown_stat_kind, `name` is the key, `value` is the value.
    HTTPDOWN_EVENT_STAT = 1,
    // A connection has changed its state. `code` is a httpdown_conn_state, `conn_id` is the connection's number,
    // `name` is the client's address.
    HTTPDOWN_EVENT_CONN = 2,
    // The server has entered a new phase. `code` is a httpdown_phase_code.
    HTTPDOWN_EVENT_PHASE = 4,
    // A log line. `code` is a httpdown_log_level, `text` is the line.
    HTTPDOWN_EVENT_LOG = 8,
    // A request has ended. `record` says what became of it, `conn_id` is the connection's number.
    HTTPDOWN_EVENT_DONE = 16,
} httpdown_event_kind;

// The callback of httpdown_stats that a value is meant for.
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

// A version of TLS.
typedef enum {
    // TLS 1.2 (RFC 5246).
    HTTPDOWN_TLS_1_2 = 12,
    // TLS 1.3 (RFC 8446).
    HTTPDOWN_TLS_1_3 = 13,
} httpdown_tls_version;

// Whether clients are asked for certificates: `client_auth`.
typedef enum {
    // No client is asked.
    HTTPDOWN_CLIENT_AUTH_NONE = 0,
    // A client may have none. A certificate that it has must be valid.
    HTTPDOWN_CLIENT_AUTH_OPTIONAL = 1,
    // A client without a valid certificate is refused.
    HTTPDOWN_CLIENT_AUTH_REQUIRED = 2,
} httpdown_client_auth;

// What can happen to a request: httpdown_request_notify, httpdown_next_item. They are or-ed.
typedef enum {
    // Reading the body would not wait: there are bytes, or the end, or the reason why no more bytes come.
    HTTPDOWN_READABLE = 1,
    // Writing would take at least some of the bytes, or fail. Before an answer begins, this is so.
    HTTPDOWN_WRITABLE = 2,
    // An answer has become useless: the client has left or was too slow, or the server kills.
    HTTPDOWN_GONE = 4,
    // The server drains: an answer without an end should end now. At a stop, `drain_rate` requests a second are told.
    HTTPDOWN_DRAINING = 8,
    // A request that has come. Only httpdown_next_item tells this.
    HTTPDOWN_NEW = 16,
    // The program has had the request for longer than `handler_timeout_ms`. An answer is as useful as before. Not for
    // a stream (httpdown_upgrade): there, it is never told.
    HTTPDOWN_OVERDUE = 32,
} httpdown_ready_kind;

// How a request has ended: its column in the report.
typedef enum {
    // The kernel has the whole response. In a stop, the client's kernel has it.
    HTTPDOWN_END_SERVED = 0,
    // The handler failed after the response had begun. The client saw the response cut.
    HTTPDOWN_END_FAILED = 1,
    // The client left before the response or the request's body was complete, or the request's body turned out to be
    // malformed after the response had begun.
    HTTPDOWN_END_GONE = 2,
    // The client was too slow with the body, or in taking the answer.
    HTTPDOWN_END_TIMED_OUT = 3,
    // A kill cut the request, or answered it with 503 because nobody had begun to work on it.
    HTTPDOWN_END_KILLED = 4,
} httpdown_request_end;

// The form of a line that httpdown_log_line writes.
typedef enum {
    // The Common Log Format: 127.0.0.1 - - [06/Nov/1994:08:49:37 +0000] "GET /a?b HTTP/1.1" 200 13
    HTTPDOWN_LOG_COMMON = 0,
    // The same, followed by Referer and User-Agent, each in quotes, and "-" if the request had none.
    HTTPDOWN_LOG_COMBINED = 1,
    // A JSON object, with everything that a httpdown_request_record has, except `data`.
    HTTPDOWN_LOG_JSON = 2,
} httpdown_log_format;

// Where a process is in a restart.
typedef enum {
    // There is no restart.
    HTTPDOWN_RESTART_IDLE = 0,
    // This process was started by a restart, and its predecessor may still go on without it.
    HTTPDOWN_RESTART_SUCCEEDING = 1,
    // A new process was started, and is not ready.
    HTTPDOWN_RESTART_STARTING = 2,
    // The new process is ready, and both accept.
    HTTPDOWN_RESTART_PROBATION = 3,
    // The new process has taken over; the servers of this one stop, or have stopped.
    HTTPDOWN_RESTART_HANDED_OVER = 4,
} httpdown_restart_state;

// What a restart does otherwise than by default: the `flags` of httpdown_restart_options, or-ed.
typedef enum {
    // A socket that the new process does not listen on any more is stopped like in a stop, without a loss. Otherwise it
    // makes the restart fail, because it is a mistake more often than not. With this flag the new process must call
    // httpdown_restart_ready when all its servers serve, or httpdown_run_ready, as httpdown_run does.
    HTTPDOWN_RESTART_DROP_UNCLAIMED = 1,
    // The new process also gets the descriptors of this one that are not close-on-exec, with their numbers. They must
    // be out of the way of the sockets, which have the numbers from 3 on: otherwise the restart fails.
    HTTPDOWN_RESTART_KEEP_FDS = 2,
    // The new process writes to this one's standard error at once. Otherwise it gets a pipe until it is ready, which is
    // copied there, so that what it says of its failure is in the text of the result, too. A program that looks at its
    // start whether that is a terminal, or the journal (JOURNAL_STREAM), sees the pipe.
    HTTPDOWN_RESTART_PLAIN_STDERR = 4,
    // In httpdown_options.restart: SIGHUP restarts the program, too. Not together with `reload_on_hup`.
    HTTPDOWN_RESTART_ON_HUP = 8,
    // In httpdown_options.restart: SIGUSR2 does what it does without httpdown.
    HTTPDOWN_RESTART_NO_SIGNAL = 16,
} httpdown_restart_flag;

// A clock for tests. Its time stands still until you move it, so a test of a stop need not wait for timeouts. Any
// thread may use the clock, several at once.
typedef struct httpdown_clock httpdown_clock;

// A request, and the means to answer it exactly once: with one call (httpdown_reply...), or in pieces
// (httpdown_reply_start, _write, _finish). The answer ends the request.
//
// A request is lent to a handler until the handler returns. After httpdown_request_defer or httpdown_reply_start has
// succeeded, you own the request, and must end it. You also own a request from httpdown_next. A request lives until it
// is ended and its handler, if any, has returned; with httpdown_request_retain, also until httpdown_request_release.
// While the request lives, its head can be read, and borrowed bytes stay valid. So you may reply, and then log the
// path.
//
// The pointer stands for this request alone. If you use the pointer after the request's life, the call finds nothing
// (ALREADY_REPLIED), and never another request; but borrowed bytes are gone. The pointer points to no memory. One
// thread at a time may use a request, except for httpdown_request_cancelled, httpdown_request_wait_cancelled and
// httpdown_request_overdue.
typedef struct httpdown_request httpdown_request;

// A server. All functions except httpdown_free take a const pointer to it, so any thread may call them, several at
// once.
typedef struct httpdown_server httpdown_server;

// A connection that a handler has taken over: httpdown_upgrade. Any thread may use it, several at once; so one thread
// can read while another one writes. The time limits for requests do not apply to it. A kill resets it.
typedef struct httpdown_stream httpdown_stream;

// Answers a request, either now (httpdown_reply...) or later (httpdown_request_defer, httpdown_reply_start). The
// library calls the handler from several threads at once.
typedef void (*httpdown_handler_fn)(httpdown_request *request, void *user_data);

// Frees the program's data when the library no longer needs it. Called exactly once, on any thread.
typedef void (*httpdown_destroy_fn)(void *user_data);

// A value for a monitoring system. Called on the events thread.
typedef void (*httpdown_stat_fn)(const char *key, double value, void *user_data);

// Callbacks for a monitoring system. Each of them may be NULL. They are called on the events thread, one at a time. A
// slow callback delays only later events. (listen.error comes on the thread that calls httpdown_serve.)
//
// The keys are: sums serve, listen.error, accept.error, conn.closed, handler.error, file.error, pool.stalled (a thread
// was started in place of one whose handler waits for its client), proxy.error, stop, drain.race, idle.race, kill,
// kill.conn.count, kill.timeout, listener.close.error; times stop.time, kill.time, memory.trim; histogram
// stop.conn.count; and once a minute the averages http-state.new, http-state.active, http-state.idle,
// http-state.total. With TLS: sums tls.handshake, tls.resumed, and for handshakes that fail tls.error.version (no
// common one), tls.error.parameters (no common cipher suite, key exchange, signature or protocol),
// tls.error.client_certificate (missing, or not accepted), tls.error.alert (the client refuses), tls.error.protocol,
// tls.error.not_tls, tls.error.plain_http, tls.error.left, tls.error.timeout, tls.error.other; averages, once a
// minute: tls.expires (seconds until the first of the server's certificates ends), tls.reloads. For limits that bite:
// sums limit.head, limit.target, limit.body, limit.conn_requests, limit.conns, limit.client_conns, limit.queued. For
// restarts: sums restart, restart.failed, restart.lost (connections that a failed process had), restart.unclaimed
// (sockets on which the new process does not listen any more); time restart.time.
typedef struct {
    // The monitoring system should take the mean of the values over a period.
    httpdown_stat_fn bump_avg;
    // A counter goes up by `value`.
    httpdown_stat_fn bump_sum;
    // The monitoring system should keep the distribution of the values.
    httpdown_stat_fn bump_histogram;
    // A timed action has ended. `value` is its duration in seconds.
    httpdown_stat_fn bump_time;
} httpdown_stats;

// A connection has changed its state (a httpdown_conn_state). `peer` is the client's address, borrowed until the
// callback returns. Called on the events thread.
typedef void (*httpdown_conn_state_fn)(const httpdown_server *server,
                                       uint64_t conn_id,
                                       int state,
                                       const char *peer,
                                       void *user_data);

// The server has entered a phase (a httpdown_phase_code). The phase SERVING is the first of all events, STOPPED is the
// last. Called on the events thread. Any thread may use `server` until the callback for STOPPED has returned (or, if
// you own the server, until you free it). In the callback for STOPPED, httpdown_wait returns how the server has ended.
// Threads that wait elsewhere are told after this callback, or when one second has passed.
typedef void (*httpdown_phase_fn)(const httpdown_server *server, int phase, void *user_data);

// A message for a person. `level` is a httpdown_log_level; `text` is borrowed until the callback returns. Called on
// the events thread.
typedef void (*httpdown_log_fn)(int level, const char *text, void *user_data);

// Borrowed bytes: the memory belongs to somebody else. Text is not NUL-terminated. `data` is NULL only if the thing
// does not exist (no such header, for example). If `len` is 0, `data` may have any value.
typedef struct {
    // The first byte.
    const char *data;
    // The number of bytes.
    size_t len;
} httpdown_bytes;

// A certificate chain and its private key, in PEM. Each of the two is in a file, or in memory: set one of these. One
// file may hold both: then give its path twice. (Only if both are in files, they can be read again.) The chain begins
// with the server's own certificate; each certificate was issued by the next. The key is ECDSA (P-256 or P-384; with
// aws-lc-rs, which is the default, also P-521), Ed25519, or RSA of at least 2,048 bits, as PKCS#8, PKCS#1 or SEC1, and
// not encrypted.
typedef struct {
    // The file with the chain.
    const char *cert_file;
    // The file with the key.
    const char *key_file;
    // The chain.
    httpdown_bytes cert;
    // The key.
    httpdown_bytes key;
} httpdown_certificate;

// How a server speaks TLS: the option `tls`. Set `struct_size`; zero means the default in each other field. The
// strings, the arrays and the files are read before the call returns.
typedef struct {
    // Required: sizeof(httpdown_tls).
    size_t struct_size;
    // The server's certificate: see httpdown_certificate. It is for all names that none of `more` has, and for clients
    // that name none.
    const char *cert_file;
    // Its key.
    const char *key_file;
    // The certificate, if it is in memory.
    httpdown_bytes cert;
    // The key, if it is in memory.
    httpdown_bytes key;
    // More certificates: chosen for clients that ask for one of their names (SNI), an exact one rather than one with
    // a wildcard. A name may have several, with keys of different types: a client gets one whose signatures it can
    // check, and ECDSA rather than RSA.
    const httpdown_certificate *more;
    // The number of `more`.
    size_t more_count;
    // Whether clients are asked for certificates: a httpdown_client_auth. If they are, `ca` or `ca_file` is required.
    int client_auth;
    // The oldest version of TLS that clients may use: a httpdown_tls_version. Default: TLS 1.2.
    int min_version;
    // The PEM file with the CA certificates, one of which must have issued a client's certificate.
    const char *ca_file;
    // The CA certificates, if they are in memory.
    httpdown_bytes ca;
    // The PEM file with revocation lists. Once there are lists, each certificate of a client's chain needs one from
    // its issuer.
    const char *crl_file;
    // The revocation lists, if they are in memory.
    httpdown_bytes crl;
    // The keys of session tickets, 48 bytes each (a name of 16 and a secret of 32), all of them random: the first
    // encrypts, all decrypt, at most 16. Servers with the same keys resume each other's sessions, so that after a
    // restart clients need no full handshakes. Replace them now and then, by httpdown_tls_reload. Default: keys of the
    // server's own, a new one every 6 hours.
    httpdown_bytes ticket_keys;
    // How long a handshake may take, from the moment when the connection was accepted. Default: 10,000. In real time.
    uint32_t handshake_timeout_ms;
    // How many handshakes may be under way, from the end of the client's first message. Others wait for their turn.
    // Default: 10,000.
    uint32_t handshakes;
} httpdown_tls;

// What became of a request. The durations are in microseconds, in real time, and count from `began_us`; -1: it has not
// come to that. Everything that the struct points to is borrowed from it.
typedef struct {
    // sizeof(httpdown_request_record), as the library knows it.
    size_t struct_size;
    // How the request has ended: a httpdown_request_end.
    int end;
    // The status of the answer; 0 if there was no answer.
    int status_code;
    // The version of HTTP times ten: 10 or 11; 0 if a kill cut the request before its head was complete.
    int version;
    // Not 0: the connection has TLS.
    int tls;
    // The number of the request's connection, the same as in `on_conn_state`.
    uint64_t conn_id;
    // The number of the request on its connection, from 1.
    uint64_t number;
    // How many bytes of the request's body came before the end of the answer. Of a body in chunks, only those count
    // that were read. The head, and what the transfer coding adds, do not count.
    uint64_t received;
    // How many bytes of the answer's body were given to the connection. The head, and what the transfer coding adds,
    // do not count. If the request was not served, some of these bytes may not have left.
    uint64_t sent;
    // When the first byte of the request came, by the machine's clock: microseconds since 1970.
    int64_t began_us;
    // Until the head was complete.
    int64_t head_us;
    // Until the handler was called, or the request was taken from the queue.
    int64_t called_us;
    // Until the answer began: its head was given to the connection.
    int64_t answered_us;
    // Until the kernel had the last byte of the answer.
    int64_t flushed_us;
    // Until it was seen that the client's kernel had acknowledged the last byte of the answer. Only a stop looks, when
    // the connection ends.
    int64_t acknowledged_us;
    // Until the end of the request was known. Never -1.
    int64_t ended_us;
    // The client's address, like httpdown_request_peer_addr.
    httpdown_bytes peer;
    // The method. Empty if a kill cut the request before its head was complete; also the target.
    httpdown_bytes method;
    // The target, not decoded, like httpdown_request_target.
    httpdown_bytes target;
    // The value of the first Referer header; `data` is NULL if the request had none.
    httpdown_bytes referer;
    // The value of the first User-Agent header; `data` is NULL if the request had none.
    httpdown_bytes user_agent;
    // What httpdown_request_set_data has set last; NULL if nothing.
    void *data;
    // Not 0: the program had the request for longer than handler_timeout_ms.
    int overdue;
    // For a field to come: 0.
    int reserved;
} httpdown_request_record;

// A request has ended: for an access log. `record` is borrowed until the callback returns. Called on the events
// thread.
typedef void (*httpdown_done_fn)(const httpdown_request_record *record, void *user_data);

// Decides whether a restart may begin. Anything but 0 refuses it. The reason may be written into `why`, which has room
// for `size` bytes, is "" before, and is to be NUL-terminated: it becomes part of the result's text. Called on the
// restart's own thread, before the new process is started. It may block, and the restart waits for it; a stop does not,
// but httpdown_run and httpdown_run_all return only when it has returned.
typedef int (*httpdown_before_restart_fn)(char *why, size_t size, void *user_data);

// Tells how a restart has ended. `status` is OK or RESTART_FAILED. `text` says why it has failed ("" on OK), and is
// borrowed until the callback returns. `pid` is the process that has taken over; 0 if it has failed. Called once for a
// restart that has begun, on its own thread, and before httpdown_restart returns. On OK, the stop of this process's
// servers has begun. Do not wait for that stop here.
typedef void (*httpdown_restart_fn)(int status, const char *text, uint32_t pid, void *user_data);

// How the program is restarted: httpdown_restart. Set `struct_size`; zero means the default in each other field. The
// texts and the arrays are copied before the call returns.
typedef struct {
    // Required: sizeof(httpdown_restart_options).
    size_t struct_size;
    // The file that is executed: an absolute path. Default: the one that this process was started from. Its path is
    // looked up anew, so a link that leads elsewhere now, or a file that was replaced, means the new version.
    const char *program;
    // The arguments, at least one, and behind them a NULL, like in execve(2); the first one is the program's name.
    // Default: those of this process.
    char *const *argv;
    // The environment, as texts of the form NAME=VALUE, and behind them a NULL, without what a restart itself needs.
    // Default: the one that this process was started with.
    char *const *envp;
    // The working directory: an absolute path. Default: the one that this process was started in.
    const char *directory;
    // Is asked whether the restart may begin. May be NULL.
    httpdown_before_restart_fn before;
    // Is told how the restart has ended. May be NULL.
    httpdown_restart_fn on_restart;
    // The pointer that is passed to these callbacks. The data must live until `destroy` is called.
    void *user_data;
    // Called with `user_data` exactly once, on any thread: after the last callback has returned, and before
    // httpdown_restart returns; or before either function returns an error (but not if the options could not be read:
    // an impossible struct_size). May be NULL.
    httpdown_destroy_fn destroy;
    // How long the new process may take until it serves all sockets. Default: 60,000. In real time.
    uint32_t ready_timeout_ms;
    // How long both processes accept, once the new one is ready. If the new one dies within this time, this one goes
    // on. HTTPDOWN_NOW: no time. Default: 3,000. In real time.
    uint32_t probation_ms;
    // A restart is refused (BUSY) while so many earlier processes still drain, because each of them holds memory.
    // Default: 8.
    uint32_t max_predecessors;
    // httpdown_restart_flag, or-ed.
    uint32_t flags;
    // A file that has the process ID of the program, for those who look for it there: an absolute path. A restart
    // replaces the file when the new process has proved itself. The new version is written beside the file before that,
    // with the process ID added to the name; if that fails, so does the restart. The first process's file is written by
    // the program, or by whoever starts it. A symbolic link is replaced by a file. Default: none.
    const char *pid_file;
} httpdown_restart_options;

// The settings of a server. Zero in a field means its default, so set `struct_size` and the fields that you need:
// httpdown_options options = { .struct_size = sizeof options, .addr = ":8080", .handler = hello };
//
// The call copies the struct and everything that it points to, except `user_data`. You may free both when the call has
// returned. Durations are in milliseconds; HTTPDOWN_NOW means no time at all, HTTPDOWN_FOREVER means no limit.
typedef struct {
    // Required: sizeof(httpdown_options). A shorter struct, from an older header, gets the defaults for the missing
    // fields. A longer struct, from a newer header, is accepted if the fields that this library does not know are
    // zero.
    size_t struct_size;
    // The addresses to listen on, separated by commas. An address is HOST:PORT, or a Unix socket. Put an IPv6 address
    // in brackets ("[::1]:8080"). Without a host (":8080"), the server listens on every address. With port 0, the
    // kernel chooses the port (httpdown_local_addr tells it). Host names are looked up, which blocks.
    // "unix:/run/app.sock" is a Unix stream socket, at a path of at most 107 bytes. If a socket file exists there and
    // nobody listens on it, the server replaces it; if somebody listens on it, the address is in use. After a '?' you
    // can say who may connect, because a client needs permission to write to the file:
    // "unix:/run/app.sock?mode=0660&group=www-data" (mode in octal; user and group are names or numbers). Without a
    // mode, the umask decides. When the server closes the socket, it removes the file, unless another file has
    // replaced it. "unix:@name" is an abstract socket: it has no file, and everybody in the same network namespace may
    // connect to it. A path with a comma or a '?' cannot be written here: bind the socket yourself, and give it as one
    // of the `fds`.
    //
    // If the program was started with listening sockets by systemd's protocol (LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES;
    // see sd_listen_fds(3)), an inherited socket that listens at the address is taken, and nothing is bound. Without a
    // host, both [::] and 0.0.0.0 match. "fd:NAME" takes the inherited socket of that name (FileDescriptorName= in a
    // .socket unit), whatever its address, and never binds; of several sockets with the name, each "fd:NAME" takes the
    // next. Options and parameters for sockets do not apply to them. A stop leaves the clients that wait in an
    // inherited socket to whoever has passed it on, as with `fds_shared`, and the file of a Unix socket stays. When
    // the server has stopped, another server can take the socket. The first server that has an `addr` removes the
    // variables from the environment, on the thread that starts it, and makes the descriptors close-on-exec; other
    // threads must not use the environment meanwhile. 10 seconds after the first server has started, on_log is told
    // (ERROR) of each inherited socket on which nobody listens. What no server can use (a UDP socket) is left to you.
    //
    // Default: ":80" (with `tls`: ":443"), or nothing if there are `fds`.
    const char *addr;
    // Descriptors of sockets that already listen: TCP, or Unix stream sockets. You remove the files of Unix sockets
    // yourself. On OK the library owns the descriptors; on an error you still own them. Other sockets may listen on
    // the same TCP address by SO_REUSEPORT. Then a stop makes the kernel send new clients to these sockets before it
    // closes ours. To do this, the stop connects to each of these sockets once, and replaces the program of the group,
    // if the group has one (SO_ATTACH_REUSEPORT_CBPF); on_log says so.
    const int *fds;
    // The number of `fds`.
    size_t fd_count;
    // The handler that answers requests. Required, unless `dispatch` is QUEUE; then the handler must be NULL.
    httpdown_handler_fn handler;
    // The pointer that is passed to every callback. The data must live until `destroy` is called.
    void *user_data;
    // Called with `user_data` exactly once: after the last callback has returned, or before httpdown_serve returns an
    // error (but not if the options could not be read: NULL, or an impossible struct_size). A `release` of
    // httpdown_reply_borrowed that does not return does not count as a callback here. Mostly httpdown_free,
    // httpdown_run or httpdown_run_all calls `destroy`, on its caller's thread, and returns only after `destroy` has
    // returned. A stop never waits for `destroy`.
    httpdown_destroy_fn destroy;
    // Callbacks for a monitoring system.
    httpdown_stats stats;
    // Called when a connection changes its state.
    httpdown_conn_state_fn on_conn_state;
    // Called when the server enters a phase.
    httpdown_phase_fn on_phase;
    // Called with messages for a person. The library itself prints nothing.
    httpdown_log_fn on_log;
    // For tests: a clock from httpdown_clock_new_mock, for the stop, kill and lame-duck timers. All other durations
    // are in real time, including `idle_grace_ms`. You may free the clock as soon as the call has returned.
    const httpdown_clock *clock;
    // How long a stop waits for open requests to finish before it kills, counted from the end of the lame duck. Once
    // half of this time has passed, or 30 seconds, responses say Connection: close even to a client that has already
    // sent more requests, because a client that never stops pipelining would otherwise never come to its end. Default:
    // 60,000. On the server's `clock`.
    uint32_t stop_timeout_ms;
    // How long a kill waits for the handlers of cut requests to return, before it abandons these handlers. The end of
    // the server waits as long, but at least a second and in real time, for the program's other code on the server's
    // threads (destructors, for example). Default: 60,000. On the server's `clock`.
    uint32_t kill_timeout_ms;
    // How long a stop still accepts connections. During this time httpdown_ready is false and responses say
    // Connection: close, so that load balancers and clients go elsewhere. Default: no time. On the server's `clock`.
    uint32_t lame_duck_ms;
    // How long a request's head may take, from its first byte to its last. After this time the client gets a 408, and
    // the connection is closed. Default: 30,000. In real time.
    uint32_t header_timeout_ms;
    // How requests reach the program: a httpdown_dispatch. Default: HTTPDOWN_DISPATCH_POOL.
    int dispatch;
    // The maximum number of threads in the pool. Threads are started when they are needed. If all are busy, requests
    // wait. Default: 512.
    uint32_t pool_threads;
    // The number of threads that drive connections. Default: one for each processor that the process may use.
    uint32_t io_threads;
    // Not 0: the sockets of `fds` outlive this server (systemd, or workers that are restarted one by one). The process
    // that keeps a socket must go on accepting, or waiting clients are reset. A stop closes our copy of the `fds`, and
    // leaves the connections that wait in their queues to the other processes. If all processes may stop together,
    // give each of them its own socket: `reuse_port`.
    int fds_shared;
    // The kinds of event (httpdown_event_kind, or-ed) that the program takes with httpdown_next_event. Then there is
    // no events thread, and no callback except the handler may be set.
    uint32_t pull_events;
    // How long a stop leaves an idle connection (between two requests) open, so that a request that is already on its
    // way is served, and answered with Connection: close. Set more than the round trip to the clients. The time starts
    // when the client's kernel has the last answer. A new connection gets 4.5 seconds more for each retransmission
    // that its handshake needed, because its client would repeat a lost request that late. Default: 1,000. In real
    // time.
    uint32_t idle_grace_ms;
    // How long a stop still accepts connections whose handshake had begun before. This time ends as soon as there are
    // no such connections. It is a part of `stop_timeout_ms`. The default gives a handshake that lost a segment two
    // more chances (retransmissions come after 1 s and 3 s). Default: 4,000. In real time.
    uint32_t quiesce_timeout_ms;
    // How long a connection that the server has closed waits for the client to close its side. Without this wait, a
    // reset could destroy the bytes that were sent last. If a client has not acknowledged everything that was sent to
    // it, a stop waits longer, up to `stop_timeout_ms`. Default: 2,000. In real time.
    uint32_t linger_timeout_ms;
    // A path, such as "/healthz", that the server answers itself, even when all handlers are busy: with 200 while
    // httpdown_ready is true, then with 503. The methods are GET, HEAD and OPTIONS; others get 405. The server
    // compares this path with the path of a request's target byte for byte, without the query. Such a request counts
    // like any other in the report. The path begins with "/", the rest is visible ASCII, without a query. Default: no
    // path.
    const char *ready_path;
    // The minimum duration of the lame duck, even if no requests come (`lame_duck_quiet_ms`). Set the time that a load
    // balancer needs to notice: the interval of its checks, times the number of failures that it waits for. At most
    // `lame_duck_ms`. Default: no time. On the server's `clock`.
    uint32_t lame_duck_min_ms;
    // Ends the lame duck early when no request has come for this time, because then nobody sends requests here any
    // more. Requests for `ready_path` do not count, nor do connections without a request. At most `lame_duck_ms`.
    // Default: never early. On the server's `clock`.
    uint32_t lame_duck_quiet_ms;
    // How long a connection may be without a request while the server serves: between two requests, or before the
    // first. Then the server closes the connection, at most one second later. Not HTTPDOWN_NOW. By default there is no
    // limit, because a request may be on its way while the server closes; then this request is lost (`raced` in the
    // report). To avoid that, set more than the clients' own timeout (for example, a load balancer's timeout for idle
    // connections), or tell the clients: `keep_alive_header`. Default: no limit. In real time.
    uint32_t idle_timeout_ms;
    // Not 0: responses announce the idle timeout, "Keep-Alive: timeout=N", so that clients that know this field close
    // an idle connection before the server does. N is `idle_timeout_ms` minus `idle_grace_ms`, so that a request that
    // was sent at the last moment still comes in time. N is in whole seconds, and at least 1. The field is not added
    // when the connection ends, nor to a response that has its own Connection or Keep-Alive field. Default: 0.
    int keep_alive_header;
    // For httpdown_run: how long after the first signal another signal counts as the second, which goes straight to
    // the kill; and how long after the second, as the third. A signal that comes sooner is taken for a repetition: a
    // process manager signals the whole group, and a wrapper in the group forwards the signal, too. HTTPDOWN_NOW: at
    // once; HTTPDOWN_FOREVER: never. If several servers run together, the longest of their times counts for all.
    // Default: 500. In real time.
    uint32_t second_signal_ms;
    // Not 0: the sockets of `addr` have SO_REUSEPORT, so that several processes of the same user can each listen there
    // with their own socket. The kernel spreads new clients over these sockets. A stop makes the kernel send new
    // clients to the other sockets before it closes its own. So workers can be restarted one by one, and no client is
    // lost. All processes that listen there must set this option, and none of them is told any more that the address
    // is in use. It does not apply to `fds`, nor to inherited sockets: their creator sets SO_REUSEPORT. Default: 0.
    int reuse_port;
    // TLS on every connection. NULL: none. A client that speaks HTTP without TLS then gets a 400, in plain text. If
    // the library was built without TLS (HTTPDOWN_HAS_TLS), a value that is not NULL is UNSUPPORTED.
    const httpdown_tls *tls;
    // Not 0: for httpdown_run: SIGHUP reads the files of `tls` again (certificates, keys, CAs, revocation lists), and
    // new connections get what was read. If anything cannot be used, all stays as it was, and the log says why. By
    // default, SIGHUP does what it did before, so it mostly ends the program. Needs `tls`, with at least one file.
    // Default: 0.
    int reload_on_hup;
    // How long a client may keep those waiting who read its request's body. Bytes give it time back, a second for each
    // `least_rate` bytes, but never more than this time in all. So a client that sends nothing is cut after this time,
    // and one that sends slowly, but at that rate, is not. Only the time counts in which somebody waits for the body.
    // Then reading fails with TOO_SLOW, the client gets a 408 if no answer has begun, and the connection is closed.
    // Not HTTPDOWN_NOW. Default: 30,000. In real time.
    uint32_t body_timeout_ms;
    // How long a client may leave its answer untaken, when the kernel can hold no more of it. Bytes that the client's
    // kernel acknowledges give it time back, as for `body_timeout_ms`. Then the connection is reset, and writing fails
    // with TOO_SLOW. Not HTTPDOWN_NOW. Default: 30,000. In real time.
    uint32_t write_timeout_ms;
    // How many bytes a second a client must send of a body, or take of an answer, so that it is not cut by
    // `body_timeout_ms` or `write_timeout_ms`. Default: 240.
    uint32_t least_rate;
    // A request whose body is known to be shorter than so many bytes reaches its handler when the body is there, so
    // that a slow client occupies no handler. Longer ones, those in chunks, and those that the client sends only when
    // it is asked (Expect: 100-continue) reach it at once. At most 16 MiB. Default: 65,536.
    uint32_t body_buffer;
    // How many requests a second are told that the server drains, of those that have asked to be told. So the clients
    // of many endless answers do not all connect elsewhere at once. All are told before half of `stop_timeout_ms` has
    // passed. Default: 1,000.
    uint32_t drain_rate;
    // Called for each request that has ended: for an access log. Every request of the report is told exactly once,
    // unless the callback is so slow that events are dropped (`events_dropped`). So a probe of `ready_path` is told,
    // and bytes that are no request (400, 408) are not. An upgrade ends when the kernel has the answer that agrees to
    // it. While the server serves, a request has ended when the kernel has the whole answer; in a stop, when the
    // client's kernel has it, or the connection ends. A client that got its answer before a stop, and turns out in the
    // stop not to have it all, was told as served, though the report counts its request as gone or killed. Without
    // this callback, nothing is noted for it, and no clock is read.
    httpdown_done_fn on_done;
    // The peers that must begin each connection with a header of the PROXY protocol, version 1 or 2, which says whose
    // connection it is: IP addresses and networks with commas between them, and "unix:" for all clients of Unix
    // sockets ("10.0.0.0/8, unix:"). The client's address of such a connection is the one in the header, and so is the
    // server's. The header comes before TLS, within `header_timeout_ms`. Without it the connection is closed, and the
    // log says so. From other peers, such a header is no more than a malformed request. Default: nobody.
    const char *proxy_protocol_from;
    // The proxies whose fields in a request's head are believed, as a list like that of `proxy_protocol_from`. Such
    // fields say for whom a request was forwarded: httpdown_request_client_addr. Who asks the server directly could
    // send the same fields, so believe only proxies that set them, or remove them. Default: nobody.
    const char *trusted_proxies;
    // The fields that `trusted_proxies` set. "x-forwarded": X-Forwarded-For, X-Forwarded-Proto and X-Forwarded-Host,
    // which most proxies set; "forwarded": Forwarded (RFC 7239); "x-real-ip": X-Real-IP. No others are believed,
    // because a proxy passes on what it does not know as the client has sent it. Default: x-forwarded.
    const char *forwarded_by;
    // The maximum size of a request's body in bytes. If the head announces more, the client gets a 413 at once, and no
    // handler sees the request. In chunks, a body is read until there is more of it: then reading fails with
    // TOO_LARGE, and the client gets a 413 if no answer has begun. Either way, the connection is closed. By default
    // there is no limit, because what a body costs is decided where it is read: nothing is kept of it but
    // `body_buffer`. Default: no limit.
    uint64_t max_body_size;
    // The maximum number of fields in a request's head. A client that sends more gets a 431, and the connection is
    // closed. Another number than 100, which is the default of the parser, costs each request an allocation. At most
    // 4,096. The trailers of a body may have as many; a body with more is malformed. Default: 100.
    uint32_t max_headers;
    // The maximum size of a request's head in bytes: its first line, its fields and its empty line. A client that
    // sends more gets a 431, and the connection is closed. The trailers of a body may be as large; a body with larger
    // ones is malformed, and so is a body with more than 16 KiB of chunk extensions. The default is twice what nginx
    // and Kestrel take. At most 16 MiB. Default: 65,536.
    uint32_t max_head_size;
    // The maximum length of a request's target in bytes, with its query. A client that sends more gets a 414, and the
    // connection is closed. A target is a part of a head, so `max_head_size` limits it, too. RFC 9110 asks for at
    // least 8,000; the default is about what nginx, Apache and Kestrel take. At most 65,534. Default: 8,192.
    uint32_t max_target_size;
    // The number of requests after which a connection ends: the answer to this request says Connection: close. A
    // client that has already sent more requests is answered up to twice this number. A limit spreads clients anew
    // over the servers behind a balancer, and gives back what a connection has come to hold. Default: no limit.
    uint32_t max_conn_requests;
    // The maximum number of open connections. While so many are open, accepting pauses, and new clients wait in the
    // kernel's queue; they are accepted when others end. A stop accepts them beyond this number, as always. Set less
    // than the process has descriptors. With this limit, `idle_timeout_ms` should be set, too, or idle clients keep
    // others out. Default: no limit.
    uint32_t max_conns;
    // The maximum number of open connections from one IP address; of IPv6, from one /64, because a client has mostly
    // all of these. A connection beyond it gets a 503 with Retry-After at once, and is closed; with TLS it is closed
    // without a word. Clients of Unix sockets are not limited. Many clients may share an address: behind one router,
    // or one proxy. Default: no limit.
    uint32_t max_client_conns;
    // The maximum number of requests that wait for a handler (pool), or to be taken (queue), while no thread is free.
    // A request beyond it gets a 503 with Retry-After at once, and its connection goes on. By default all wait, and
    // when more come than can be answered, all wait ever longer. Default: no limit.
    uint32_t max_queued;
    // How many connections may wait to be accepted, on each TCP socket of `addr`. The kernel caps the number at
    // `net.core.somaxconn`, which is 4,096 since Linux 5.4. At most 65,535. This and the options below do not apply to
    // `fds`, nor to inherited sockets: their creator sets them up. Default: 4,096.
    uint32_t tcp_backlog;
    // Not 0: a socket that listens on all addresses (`:8080`, `[::]:8080`) takes IPv6 only. By default it takes IPv4,
    // too. Set this if another socket is to take IPv4 on the same port. Default: 0.
    int v6_only;
    // After this silence, the kernel asks a client four times whether it is still there (SO_KEEPALIVE), and gives the
    // connection up after as long again. So a connection whose client is gone without a word does not stay for ever,
    // whatever is done with it (after an upgrade, say). From 1 second to 32,767 seconds, in whole seconds. Default:
    // never. In real time.
    uint32_t tcp_keepalive_ms;
    // How long what was sent may stay without an acknowledgement, before the kernel gives the connection up
    // (TCP_USER_TIMEOUT). The system's own limit is about 15 minutes. `write_timeout_ms` is mostly the better choice:
    // it also cuts clients that acknowledge, and do not read. From 1 second to 32,767 seconds. Default: the system's.
    // In real time.
    uint32_t tcp_user_timeout_ms;
    // The size of a TCP connection's receive buffer (SO_RCVBUF). The kernel doubles the number, and caps it at
    // `net.core.rmem_max`. A fixed buffer no longer grows with a fast client, so set it only to save memory. At most 1
    // GiB. Default: the system's, which grows.
    uint32_t receive_buffer;
    // The size of a TCP connection's send buffer (SO_SNDBUF), like `receive_buffer`; its cap is `net.core.wmem_max`.
    // At most 1 GiB. Default: the system's, which grows.
    uint32_t send_buffer;
    // Not 0: a client that has closed its side of the connection (a FIN; with TLS, `close_notify`) while its request
    // is answered counts as gone. So a handler that waits for something else, as in a long poll, learns at once that
    // its client has left, and not when it answers. By default such a client still gets its answer, because it may
    // only have closed its half: `nc -N`, `socat` and some libraries do so after the request, browsers and curl never
    // do. The option of this name in `haproxy` does the same, and nginx does it always. Default: 0.
    int abort_on_close;
    // How long a request may be with the program before it counts as overdue. Its time begins when it is handed over
    // (to the pool, the queue, the handler or the service), so it has its wait for a thread in it, but not that for a
    // short body (`body_buffer`). The time ends when the program has given the whole answer: an answer without an end
    // is overdue, too. This is advice: nothing is cut, and the answer is as good as before. An overdue request is
    // counted (`overdue` in the report, the statistic `handler.overdue`), now and then logged with its method and
    // target, and told to those who have asked. By default there is no limit, because none fits both a page and a long
    // poll, and because it costs each request a clock and an allocation. Not HTTPDOWN_NOW. Default: never. In real
    // time.
    uint32_t handler_timeout_ms;
    // Not 0: when most of many busy connections have come to rest or gone, the memory that they used goes back to the
    // system: some seconds later, and at most once a minute, a thread of the server calls `malloc_trim`. By default
    // this memory stays with the allocator of the process, which uses it for what comes next. The call looks through
    // the whole heap of the process, and other threads that allocate may wait meanwhile: some 40 ms for 240 MB to give
    // back, and up to a second in a heap of gigabytes that has many small holes. So set this in a program that mostly
    // serves HTTP. Only with glibc. Default: 0.
    int trim_memory;
    // The target of a request, such as "/healthz?deep", by which a new process proves at a restart that it works.
    // Before it says that it is ready, and before any client comes, it sends itself a GET past the sockets, without
    // TLS. An answer with a status below 400, complete, is a success; anything else makes the restart fail, and an
    // answer that does not come does so when the time to get ready is over. Handlers see an ordinary request, from an
    // unnamed Unix socket; the report counts it. Default: no request.
    const char *canary;
    // For httpdown_run: how SIGUSR2 restarts the program. By default it does so with all defaults, if its action is
    // the default one, which would end the program. HTTPDOWN_RESTART_NO_SIGNAL turns that off, and
    // HTTPDOWN_RESTART_ON_HUP adds SIGHUP. `on_restart` is told of each restart. If several servers run together, that
    // of the first one counts; those of the others must be NULL. Copied, like all options; its `destroy` is called
    // when the server has ended.
    const httpdown_restart_options *restart;
} httpdown_options;

// The counts of what a server has done, and of what its stop has cost. Set `struct_size` before the call.
//
// Every connection and every request is in exactly one column. When the server has stopped, these sums hold:
// connections = conns_closed + closed_idle + raced + conns_gone + conns_timed_out + conns_tls_failed +
// conns_tls_timed_out + conns_killed, and requests = served + failed + gone + timed_out + killed.
typedef struct {
    // Required: sizeof(httpdown_stop_report).
    size_t struct_size;
    // The server's phase: a httpdown_phase_code.
    int phase;
    // The result of the stop: a httpdown_status. OK until the stop has ended.
    int status;
    // How long the stop has taken so far, in milliseconds; 0 before the stop begins.
    uint64_t stop_duration_ms;
    // Connections accepted.
    uint64_t connections;
    // Connections open now: the sum of the next four, and conns_handshaking.
    uint64_t conns_open;
    // Open connections on which no byte has come yet.
    uint64_t conns_new;
    // Open connections with a request under way.
    uint64_t conns_active;
    // Open connections between two requests.
    uint64_t conns_idle;
    // Open connections that a handler has taken over.
    uint64_t conns_hijacked;
    // Connections that ended normally: closed by the client between two requests, closed by the server after a
    // response that said so, refused because their client has too many (max_client_conns), or released by the handler
    // that had taken them over.
    uint64_t conns_closed;
    // Connections that the stop or the idle timeout closed while they were new or idle.
    uint64_t closed_idle;
    // Connections that the stop, the idle timeout or max_conn_requests closed, and on which a request came after that.
    // The request had crossed our FIN, or the response that announced the close, on the wire. HTTP/1.1 cannot prevent
    // this; a larger idle_grace_ms or idle_timeout_ms makes it rarer.
    uint64_t raced;
    // Connections whose client left in the middle of a request.
    uint64_t conns_gone;
    // Connections that were closed because the client was too slow: with the head of a request (header_timeout_ms) or
    // its body (body_timeout_ms), or in taking an answer (write_timeout_ms).
    uint64_t conns_timed_out;
    // Connections that a kill cut.
    uint64_t conns_killed;
    // Requests whose head has been read, and requests that a kill cut before their head was read.
    uint64_t requests;
    // Requests whose whole response was given to the kernel. If a request was answered during the stop, or was the
    // last on its connection before the stop, the client's kernel has also acknowledged the response.
    uint64_t served;
    // Requests whose handler failed after the response had begun. The client saw the response cut.
    uint64_t failed;
    // Requests whose client left before the response or the request's body was complete, and requests whose body
    // turned out to be malformed, or larger than max_body_size, after the response had begun.
    uint64_t gone;
    // Requests that a kill cut, and requests that a kill answered with 503 because nobody had begun to work on them.
    uint64_t killed;
    // Requests, answered or not, whose handler still held them when the kill timeout had passed. These requests are
    // also in one of the columns above.
    uint64_t abandoned;
    // Connections that a handler had taken over, and that a kill cut. They are also in conns_killed.
    uint64_t hijacked_killed;
    // Connections that still waited to be accepted when their listening socket had to be closed. The process had no
    // descriptors for them.
    uint64_t unaccepted;
    // Bytes that were written to clients, but that the clients' kernels had not acknowledged when the connections
    // ended during the stop.
    uint64_t bytes_unacked;
    // Events that were dropped because they were not taken in time.
    uint64_t events_dropped;
    // Open connections whose TLS handshake is not done, or whose header of the PROXY protocol has not come.
    uint64_t conns_handshaking;
    // Connections that were closed because the TLS handshake failed, or whose client left in it (not one
    // that left before its first byte: conns_closed). The statistics say why (tls.error...).
    uint64_t conns_tls_failed;
    // Connections that were closed because the TLS handshake did not come to its end in time (handshake_timeout_ms).
    uint64_t conns_tls_timed_out;
    // Requests that ended because the client was too slow with the body (body_timeout_ms), or in taking the answer
    // (write_timeout_ms).
    uint64_t timed_out;
    // Requests that the program has had for longer than handler_timeout_ms. These requests are also in one of the
    // columns above, when they have ended.
    uint64_t overdue;
    // The process that has taken over, if the stop was the end of a restart (httpdown_restart); otherwise 0.
    uint64_t successor_pid;
} httpdown_stop_report;

// An event of a server. Set `struct_size` before the call. `kind` decides which other fields are used.
typedef struct {
    // Required: sizeof(httpdown_event).
    size_t struct_size;
    // A httpdown_event_kind.
    int kind;
    // The meaning depends on `kind`.
    int code;
    // For CONN and DONE: the connection's number, unique within its server.
    uint64_t conn_id;
    // For STAT: the value.
    double value;
    // For STAT: the key. For CONN: the client's address; a path that is too long is cut. NUL-terminated.
    char name[64];
    // For LOG: the line; a line that is too long is cut. NUL-terminated.
    char text[512];
    // For DONE: the record; NULL for other kinds. Borrowed until this thread calls httpdown_next_event again, or ends.
    const httpdown_request_record *record;
} httpdown_event;

// A header field, from a request or for a reply.
typedef struct {
    // The field's name. In a request, the name is in lower case.
    httpdown_bytes name;
    // The field's value.
    httpdown_bytes value;
} httpdown_header;

// The process that has connected by a Unix socket. See httpdown_request_peer_credentials.
typedef struct {
    // The process ID; 0 if the process is in another PID namespace that ours does not see.
    uint32_t pid;
    // The process's effective user ID.
    uint32_t uid;
    // The process's effective group ID.
    uint32_t gid;
} httpdown_credentials;

// Tells what has happened to a request (httpdown_ready_kind, or-ed): httpdown_request_notify. Called on the thread
// that drives the connection, so it must not block.
typedef void (*httpdown_ready_fn)(httpdown_request *request, uint32_t ready, void *user_data);

// What httpdown_next_item takes: a request that has come, or an event of a request that was taken before, or of a
// stream.
typedef struct {
    // The request. You own it. NULL for an event of a stream.
    httpdown_request *request;
    // The `user_data` of httpdown_request_notify or httpdown_stream_notify; NULL for a request that has come.
    void *user_data;
    // What has happened: httpdown_ready_kind, or-ed. HTTPDOWN_NEW for a request that has come.
    uint32_t ready;
    // Zero.
    uint32_t reserved_0;
    // The stream, if this is an event of one: httpdown_stream_notify. Otherwise NULL.
    httpdown_stream *stream;
} httpdown_item;

// Tells what has happened to a stream (httpdown_ready_kind, or-ed): httpdown_stream_notify. Called on the thread that
// drives the connection, so it must not block.
typedef void (*httpdown_stream_fn)(httpdown_stream *stream, uint32_t ready, void *user_data);

// What the TLS handshake of a connection has agreed on: httpdown_request_tls. Set `struct_size` before the call.
typedef struct {
    // Required: sizeof(httpdown_tls_info).
    size_t struct_size;
    // A httpdown_tls_version.
    int version;
    // Not 0: the session goes on from an earlier connection, by a ticket.
    int resumed;
    // The cipher suite, by its name in the IANA's registry: "TLS13_AES_256_GCM_SHA384".
    httpdown_bytes cipher_suite;
    // The name that the client has asked for (SNI), in lower case. `data` is NULL if it has named none.
    httpdown_bytes server_name;
    // The protocol that was agreed on (ALPN): "http/1.1" or "http/1.0". `data` is NULL if the client has offered none.
    httpdown_bytes alpn;
    // The client's certificate, which was verified, in DER. `data` is NULL if there is none: here and below.
    httpdown_bytes client_certificate;
    // Its subject (RFC 4514): "CN=alice,O=Example".
    httpdown_bytes client_subject;
    // Its alternative names (host names, addresses, mail addresses, URIs), one in each line. Their kinds are not told
    // apart: if a mere host name must not pass for a mail address, for example, read `client_certificate`.
    httpdown_bytes client_names;
    // The SHA-256 digest of `client_certificate`.
    uint8_t client_fingerprint[32];
} httpdown_tls_info;

// What is known of the restarts of a program: httpdown_restart_info. Set `struct_size` before the call.
typedef struct {
    // Required: sizeof(httpdown_restarts).
    size_t struct_size;
    // Where this process is in a restart: a httpdown_restart_state.
    int state;
    // The new process, from its start on; 0 if there is none.
    uint32_t successor_pid;
    // How many restarts led to this process.
    uint64_t generation;
    // How many earlier processes have not ended.
    size_t predecessor_count;
} httpdown_restarts;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Sets every field to its default: zero, except `struct_size`. This function is for C++ before C++20, and for
// languages without designated initialisers. `struct_size` is the caller's sizeof(httpdown_options). Does nothing if
// `options` is NULL or the size makes no sense.
void httpdown_options_init(httpdown_options *options,
                           size_t struct_size);

// Sets every field to its default, like httpdown_options_init. `struct_size` is the caller's sizeof(httpdown_tls).
void httpdown_tls_init(httpdown_tls *tls,
                       size_t struct_size);

// Starts a server, and returns at once. The server runs on its own threads.
//
// On OK you own `*server`, and end it by httpdown_free. Otherwise `*server` is NULL, and `error` (may be NULL) has the
// reason as text, cut to `error_size` and NUL-terminated. The call blocks only while a host name, or a user or group,
// in `addr` is looked up, and, for at most one second, while another process holds a lock on the directory of a Unix
// socket (flock(2)).
//
// Returns OK, INVALID_ARGUMENT, UNSUPPORTED, ADDR_INVALID, ADDR_IN_USE, PERMISSION_DENIED, IO, OUT_OF_RESOURCES, TLS,
// FORKED.
HTTPDOWN_MUST_USE
int httpdown_serve(const httpdown_options *options,
                   httpdown_server **server,
                   char *error,
                   size_t error_size);

// Serves until SIGTERM or SIGINT, stops, and returns the result of the stop.
//
// A second signal goes straight to the kill, unless it comes within second_signal_ms of the first. A third signal has
// the effect that it had before this call. The earlier actions of the signals are restored at the end. A process can
// have only one run at a time. In a child of fork or vfork, the signals have their earlier effect, and do not stop the
// parent. A daemon forks first, and then runs: a child that is forked during the run can have no server (FORKED). To
// learn when the server listens, and where, set the option `on_phase`.
//
// During the run the calling thread takes the signals, even if it blocks them. So a blocked signal that came before
// the run stops the server, too. If SIGINT is ignored, it stays ignored (a shell that is not interactive ignores it
// for programs in the background); SIGTERM always stops. `report` (may be NULL; set its struct_size) is written if the
// server has run, however it ended. `error` is like in httpdown_serve. Blocks.
//
// After a restart, this process finishes its requests, and ignores SIGTERM and SIGINT: they are for the new one. Its
// end comes after stop_timeout_ms and kill_timeout_ms at the latest. To end it sooner, send SIGKILL, or call
// httpdown_kill_begin.
//
// Returns as httpdown_serve and, when the server has run, as httpdown_stop.
HTTPDOWN_MUST_USE
int httpdown_run(const httpdown_options *options,
                 httpdown_stop_report *report,
                 char *error,
                 size_t error_size);

// Runs several servers until SIGTERM or SIGINT, like httpdown_run runs one: for example a public server, and one for
// metrics at an internal address.
//
// `options` has `count` pointers, each to the options of one server. Each server has its own callbacks, `user_data`
// and stop timeouts, and calls its own `destroy`. The signals are caught before the first server starts. The servers
// start in their order. The first signal stops all servers at the same time, and a second one kills all. Two options
// are about signals. Of `second_signal_ms`, the longest counts, so nothing is cut earlier than any server permits.
// SIGHUP is for every server that has set `reload_on_hup`.
//
// The call returns when all servers have ended. A server that is stopped in another way (by httpdown_stop_begin in a
// handler, for example) ends alone, and the others go on. But if a server fails, the others are stopped, too. If a
// server cannot be started, the servers that have started are stopped like by a signal, and `error` names the one that
// could not, by its index and its `addr`. A restart is for all of them, and a stop of one cancels it. After a restart,
// SIGTERM and SIGINT are ignored, as in httpdown_run.
//
// `reports` (may be NULL) has `count` reports; set the struct_size of each. A report is written if its server has run,
// however the server ended; its `status` is the result of that server. `error` is like in httpdown_serve. Blocks.
//
// Returns as httpdown_run. If the servers have run, the worst of their results counts: an error such as IO, then
// TIMED_OUT, then KILLED. INVALID_ARGUMENT also if `count` is 0 or more than 1,024, or if a pointer in `options` is
// NULL or there twice.
HTTPDOWN_MUST_USE
int httpdown_run_all(const httpdown_options *const *options,
                     size_t count,
                     httpdown_stop_report *reports,
                     char *error,
                     size_t error_size);

// Stops the server: it takes no new connections and finishes the open requests; then this call returns the result.
// Blocks, at most for lame_duck_ms + stop_timeout_ms + kill_timeout_ms. Other callers, at this time or later, wait for
// the same end and get the same result. Before the call returns, all callbacks for events have been called; the last
// is on_phase with HTTPDOWN_PHASE_STOPPED. But a stop waits at most one second for callbacks that block.
//
// Do not call this on the only thread that takes requests from the queue. While that thread waits here, nobody answers
// new requests until the kill. Such a thread calls httpdown_stop_begin, and goes on: see httpdown_event_fd.
//
// Returns OK (nothing was cut), KILLED (requests were cut when the stop timeout had passed), TIMED_OUT (handlers had
// to be abandoned), IO (serving had failed, or a listening socket could not be closed), WOULD_DEADLOCK (the server has
// not ended, and the calling thread belongs to the server, or holds an unfinished request of the queue; the stop has
// begun nevertheless), INVALID_ARGUMENT, FORKED.
HTTPDOWN_MUST_USE
int httpdown_stop(const httpdown_server *server);

// Begins the stop and returns at once. A second call does nothing. Never blocks; may be called anywhere, even in a
// signal handler.
//
// Returns OK, INVALID_ARGUMENT, FORKED.
int httpdown_stop_begin(const httpdown_server *server);

// Goes straight to the kill, whether a stop has begun or not, and returns at once. Otherwise like httpdown_stop_begin.
//
// Returns OK, INVALID_ARGUMENT, FORKED.
int httpdown_kill_begin(const httpdown_server *server);

// Waits at most `timeout_ms` until the server has ended completely, no matter who has stopped it. Any number of
// threads may wait; all get the same result. `report` may be NULL (otherwise set its struct_size); it is written
// whenever the server has ended.
//
// Returns as httpdown_stop, and WOULD_BLOCK at the timeout.
HTTPDOWN_MUST_USE
int httpdown_wait(const httpdown_server *server,
                  uint32_t timeout_ms,
                  httpdown_stop_report *report);

// Writes the current counts into `*report`. May be called at any time. Never blocks. Set `report->struct_size` before.
//
// Returns OK, INVALID_ARGUMENT, FORKED.
HTTPDOWN_MUST_USE
int httpdown_report(const httpdown_server *server,
                    httpdown_stop_report *report);

// Returns the server's phase: a httpdown_phase_code. Returns HTTPDOWN_PHASE_STOPPED also if `server` is NULL, and
// where other calls return FORKED. Never blocks.
int httpdown_phase(const httpdown_server *server);

// Returns whether new requests are welcome, for a readiness probe. The result is false from the moment when a stop is
// asked for, and so during the lame duck; also if `server` is NULL and after a fork. Never blocks; may be called
// anywhere, even in a signal handler. With the option `ready_path`, the server answers this question by HTTP.
bool httpdown_ready(const httpdown_server *server);

// Writes the address that the server listens on as text ("127.0.0.1:8080", "unix:/run/app.sock") into `buffer`,
// NUL-terminated; 512 bytes are enough. A path in `addr` is made absolute. `index` counts the listening sockets: `fds`
// first, then those of `addr`. Never blocks.
//
// Returns OK, INVALID_ARGUMENT (also: no such index, or the buffer is too small), FORKED.
HTTPDOWN_MUST_USE
int httpdown_local_addr(const httpdown_server *server,
                        size_t index,
                        char *buffer,
                        size_t size);

// Ends a server: stops it if nobody has done so, waits until its threads have ended, and frees it. NULL is fine.
//
// Blocks like httpdown_stop, and then until the callbacks for events have been called, at most for kill_timeout_ms or
// one second, whichever is longer. On a thread that would wait for itself (in a handler, for example) the call returns
// at once, and another thread does the rest. Handlers that never return are left behind; `destroy` is called when the
// last of them does return. Nothing may use the server during this call or after it. In a child that was forked before
// this call, the call does nothing: see FORKED.
void httpdown_free(httpdown_server *server);

// Takes requests from the queue (the option `dispatch` is HTTPDOWN_DISPATCH_QUEUE). Writes up to `capacity` requests
// into `requests`, and their number into `*count`. Waits at most `timeout_ms` for the first request. Any thread may
// make this call, several at once. You own the requests: each must be ended exactly once, by any thread.
//
// While one of these requests is unfinished, the calling thread must not wait for the server to stop: WOULD_DEADLOCK.
// Requests can be taken until the kill. Requests that nobody has taken by then are answered with 503.
//
// Returns OK, WOULD_BLOCK (at the timeout), STOPPED (no request can come any more), INVALID_ARGUMENT, FORKED.
HTTPDOWN_MUST_USE
int httpdown_next(const httpdown_server *server,
                  uint32_t timeout_ms,
                  httpdown_request **requests,
                  size_t capacity,
                  size_t *count);

// Writes a descriptor for the program's own event loop into `*fd`. The descriptor is readable (level-triggered) while
// requests wait in the queue, and after the end, when httpdown_next returns STOPPED. The descriptor belongs to the
// server; do not read from it or close it. Never blocks.
//
// Returns OK, INVALID_ARGUMENT, OUT_OF_RESOURCES, FORKED.
HTTPDOWN_MUST_USE
int httpdown_queue_fd(const httpdown_server *server,
                      int *fd);

// Writes a descriptor for the program's own event loop into `*fd`. The descriptor is readable (level-triggered) while
// events wait for httpdown_next_event. It is also readable after the end, when httpdown_wait does not wait any more,
// even without the option `pull_events`. The descriptor belongs to the server; do not read from it or close it. Never
// blocks.
//
// With this descriptor and that of httpdown_queue_fd, a program with one thread stops without blocking, and loses no
// request. The program calls httpdown_stop_begin, and goes on with its loop. In the loop it polls both descriptors;
// takes and answers requests (httpdown_next with HTTPDOWN_NOW) until httpdown_next returns STOPPED, and from then on
// polls only this descriptor; takes events, if it has asked for them; and calls httpdown_wait with HTTPDOWN_NOW. While
// httpdown_wait returns WOULD_BLOCK, or WOULD_DEADLOCK because the thread holds a request, the server has not ended.
// After that, httpdown_free returns at once.
//
// Returns OK, INVALID_ARGUMENT, OUT_OF_RESOURCES, FORKED.
HTTPDOWN_MUST_USE
int httpdown_event_fd(const httpdown_server *server,
                      int *fd);

// Takes the oldest event (the option `pull_events`). Waits at most `timeout_ms` for an event. Any thread may make this
// call, several at once. Set `event->struct_size` before. Events that nobody takes in time are dropped, and counted in
// the report.
//
// Returns OK, WOULD_BLOCK (at the timeout), STOPPED (the server has ended and all events were taken),
// INVALID_ARGUMENT, FORKED.
HTTPDOWN_MUST_USE
int httpdown_next_event(const httpdown_server *server,
                        uint32_t timeout_ms,
                        httpdown_event *event);

// Returns the meaning of a status as English text: static, NUL-terminated, never NULL. May be called anywhere.
const char *httpdown_status_string(int status);

// Returns, as English text, why the calling thread's last failing call has failed. Functions that return a status set
// this text, whatever the status. The text is NUL-terminated, cut to 511 bytes, and never NULL: "" if no call has
// failed. The text belongs to the library, and is valid until the thread's next failing call, or the thread's end; a
// call that succeeds does not change it. Never blocks. Any thread may make this call, even while the thread ends.
// httpdown_stop_begin and httpdown_kill_begin, which signal handlers may call, do not set the text.
const char *httpdown_last_error(void);

// Returns the version of the library that runs, as text: static, NUL-terminated. The header's version is
// HTTPDOWN_VERSION.
const char *httpdown_version(void);

// Returns the method as the client sent it: "GET". Borrowed as long as the request lives. Never blocks.
httpdown_bytes httpdown_request_method(const httpdown_request *request);

// Returns the target, mostly path and query, not decoded: "/a%20b?c=d". A fragment is not included. Borrowed as long
// as the request lives. Never blocks.
httpdown_bytes httpdown_request_target(const httpdown_request *request);

// Returns the path of the target, not decoded: "/a%20b". Borrowed as long as the request lives. Never blocks.
httpdown_bytes httpdown_request_path(const httpdown_request *request);

// Returns the query: the part of the target after the question mark, not decoded: "c=d". `data` is NULL if there is no
// question mark. Borrowed as long as the request lives. Never blocks.
httpdown_bytes httpdown_request_query(const httpdown_request *request);

// Returns the scheme by which the request came: "http", or, by TLS, "https". Static. Never blocks.
httpdown_bytes httpdown_request_scheme(const httpdown_request *request);

// Returns the version of HTTP times ten: 10 or 11; 0 if there is no request. Never blocks.
int httpdown_request_version(const httpdown_request *request);

// Returns the value of the first header with this name (NUL-terminated, in upper or lower case); `data` is NULL if
// there is no such header. If the target is absolute ("http://a/b"), the value of "Host" comes from the target.
// Borrowed as long as the request lives. Never blocks.
httpdown_bytes httpdown_request_header(const httpdown_request *request,
                                       const char *name);

// Returns the number of header fields. Never blocks.
size_t httpdown_request_header_count(const httpdown_request *request);

// Writes up to `capacity` header fields into `headers`, starting with field number `first` (0: from the beginning),
// and their number into `*count`. Fields with the same name stand together, in the order in which they came. Borrowed
// as long as the request lives. Never blocks.
//
// Returns OK, INVALID_ARGUMENT, ALREADY_REPLIED, FORKED.
HTTPDOWN_MUST_USE
int httpdown_request_headers(const httpdown_request *request,
                             size_t first,
                             httpdown_header *headers,
                             size_t capacity,
                             size_t *count);

// Returns the address from which the connection comes. An IPv4 address has the form "127.0.0.1:50000", even if the
// socket accepts IPv4 and IPv6. For a Unix socket the address is "unix:", followed by a path or a name if the client
// has bound its own socket. If a header of the PROXY protocol says whose connection it is (proxy_protocol_from), this
// is the address in the header. What is to be believed of the fields that other proxies set:
// httpdown_request_client_addr. Borrowed as long as the request lives. Never blocks.
httpdown_bytes httpdown_request_peer_addr(const httpdown_request *request);

// Returns the server's address that the client connected to: the proxy's, if a header of the PROXY protocol says that.
// Borrowed as long as the request lives. Never blocks.
httpdown_bytes httpdown_request_local_addr(const httpdown_request *request);

// Returns the address of the proxy from which the connection comes, if it has said by the PROXY protocol whose
// connection it is; otherwise nothing (`data` is NULL). Borrowed as long as the request lives. Never blocks.
httpdown_bytes httpdown_request_proxy_addr(const httpdown_request *request);

// Returns the address of the client that has sent the request, as far as that is to be believed: without the option
// `trusted_proxies`, httpdown_request_peer_addr. If the request comes from a trusted proxy, the address is the one
// that it says, or, if that is a trusted proxy too, the one that this says, and so on. The text is "192.0.2.1" or
// "2001:db8::1" if no port is known, otherwise as in httpdown_request_peer_addr; "unknown", or a name that begins with
// an underscore, if a trusted proxy does not say the address. Borrowed as long as the request lives. Never blocks.
httpdown_bytes httpdown_request_client_addr(const httpdown_request *request);

// Returns how the client has asked, "http" or "https": as a trusted proxy says, otherwise like
// httpdown_request_scheme. Borrowed as long as the request lives. Never blocks.
httpdown_bytes httpdown_request_client_scheme(const httpdown_request *request);

// Returns the host that the client has asked for, perhaps with a port: as a trusted proxy says, otherwise the field
// Host. Empty without one (HTTP/1.0). Borrowed as long as the request lives. Never blocks.
httpdown_bytes httpdown_request_client_host(const httpdown_request *request);

// Writes into `*credentials` which process has connected by a Unix socket, as the kernel knew it at the time of the
// connect (SO_PEERCRED, see unix(7)). That process may have passed the connection to another process since. Never
// blocks.
//
// Returns OK; NOT_FOUND if the client has not connected by a Unix socket; INVALID_ARGUMENT, ALREADY_REPLIED, FORKED.
HTTPDOWN_MUST_USE
int httpdown_request_peer_credentials(const httpdown_request *request,
                                      httpdown_credentials *credentials);

// Returns the number of the request's connection, the same as in `on_conn_state`. Never blocks.
uint64_t httpdown_request_conn_id(const httpdown_request *request);

// Returns the server that the request came to. A handler may run before httpdown_serve has returned the server. The
// pointer is borrowed until the handler has returned or the request is ended, whichever is later; do not free the
// server by this pointer unless you also own the server. NULL if `request` is NULL. Never blocks.
const httpdown_server *httpdown_request_server(const httpdown_request *request);

// Reads the next bytes of the request's body into `buffer`, and writes their number into `*count`; 0 is the end of the
// body. Waits at most `timeout_ms` until there are some bytes. With HTTPDOWN_NOW, any thread may make this call. A
// client may wait with its body until it is asked (Expect: 100-continue). The first read, or httpdown_reply_start,
// asks it. If the client has its whole answer already, a stop lets the connection end when no bytes have come, or been
// read, for idle_grace_ms.
//
// Returns OK, WOULD_BLOCK (no bytes are there: the time has passed, or the thread drives connections and must not
// wait), GONE (the client has left), BAD_BODY (the client has broken the protocol; if the request is then ended
// without an answer, the client gets a 400), TOO_SLOW (the client was waited for too long: body_timeout_ms; without an
// answer it gets a 408), TOO_LARGE (the client has sent more than max_body_size; without an answer it gets a 413),
// KILLED, INVALID_ARGUMENT, ALREADY_REPLIED, FORKED.
HTTPDOWN_MUST_USE
int httpdown_request_read(httpdown_request *request,
                          void *buffer,
                          size_t capacity,
                          uint32_t timeout_ms,
                          size_t *count);

// Gives the whole body of the request, if the body has at most `limit` bytes. `*body` is borrowed as long as the
// request lives. Waits at most `timeout_ms` until the whole body is there. With HTTPDOWN_NOW, any thread may make this
// call. A second call gives the same bytes. Bytes that httpdown_request_read took before are missing.
//
// Returns OK, TOO_LARGE (the body is longer; nothing is lost: ask again, or read the body in pieces, unless the client
// has sent more than max_body_size), WOULD_BLOCK (not all of it is there; nothing is lost), and as
// httpdown_request_read.
HTTPDOWN_MUST_USE
int httpdown_request_body(httpdown_request *request,
                          size_t limit,
                          uint32_t timeout_ms,
                          httpdown_bytes *body);

// Writes the trailer fields of the request's body, like httpdown_request_headers. They are there when the end of the
// body has been read; before, and without any, `*count` is 0. Borrowed until the request is ended. Never blocks.
//
// Returns OK, INVALID_ARGUMENT, ALREADY_REPLIED, FORKED.
HTTPDOWN_MUST_USE
int httpdown_request_trailers(httpdown_request *request,
                              size_t first,
                              httpdown_header *trailers,
                              size_t capacity,
                              size_t *count);

// Returns whether an answer is useless by now: the client has left, the server was killed, or the answer is complete
// (an answer without a body is complete soon after httpdown_reply_start). True if `request` is NULL. Never blocks. Any
// thread may make this call, even while another thread uses the request, until the request is ended.
bool httpdown_request_cancelled(const httpdown_request *request);

// Returns whether the program has had the request for longer than `handler_timeout_ms`; false without that option, or
// if `request` is NULL. This is advice, and an answer is as useful as before (httpdown_request_cancelled): for a
// handler that computes, and would rather send a part of its result, or say that it is busy. It is also true while the
// handler blocks the thread that drives the connection, and before HTTPDOWN_OVERDUE is told. Never blocks. Any thread
// may make this call, even while another thread uses the request, until the request is ended.
bool httpdown_request_overdue(const httpdown_request *request);

// Sleeps for `timeout_ms`, or until an answer is useless (see httpdown_request_cancelled). Any thread may make this
// call, even while another thread uses the request, until the request is ended. With HTTPDOWN_DISPATCH_INLINE, a
// handler that waits here blocks the thread that would see its client leave, and all connections of that thread. So
// this call learns only of a kill and of the timeout.
//
// Returns WOULD_BLOCK (the time has passed: go on), GONE (the client has left), KILLED, ALREADY_REPLIED (the answer is
// complete), INVALID_ARGUMENT, FORKED. A client that has only closed its half of the connection (a FIN) may still
// read, and is not gone.
HTTPDOWN_MUST_USE
int httpdown_request_wait_cancelled(const httpdown_request *request,
                                    uint32_t timeout_ms);

// Keeps a request that was lent to a handler. You own the request now: you may move it to another thread, and must end
// it. Never blocks. After the end of the request, the handler may still read its head, but other threads may not,
// unless httpdown_request_retain was called.
//
// Returns OK, ALREADY_REPLIED, INVALID_ARGUMENT, FORKED.
HTTPDOWN_MUST_USE
int httpdown_request_defer(httpdown_request *request);

// Makes a request that has not been ended live until httpdown_request_release, even after its end. Until then, its
// head can be read, and the body that httpdown_request_body has given. A second call does nothing. The request must
// still be ended. A stop does not wait for the release. Never blocks.
//
// Returns OK, ALREADY_REPLIED, INVALID_ARGUMENT, FORKED.
HTTPDOWN_MUST_USE
int httpdown_request_retain(httpdown_request *request);

// Gives up a request that httpdown_request_retain has kept. Any thread may make this call, but nobody may read the
// request at the same time. If the request has not been ended, it must still be ended. Never blocks.
//
// Returns OK, ALREADY_REPLIED (the request does not live any more, or was not retained), INVALID_ARGUMENT, FORKED.
int httpdown_request_release(httpdown_request *request);

// Answers with a whole response, and ends the request, whatever this function returns. It copies all arguments before
// it returns. It does not wait for the client.
//
// `status_code` is from 200 to 999. The library sets Content-Length and Date. A 204 or 205 has no body: a given body
// is not sent, nor is a given Content-Length (for 205, it is 0). A header's name or value with a forbidden character
// (CR, LF, NUL) is refused: then the client gets a 500, as for any INVALID_ARGUMENT.
//
// Returns OK, GONE (the client has left), TOO_SLOW, KILLED, ALREADY_REPLIED, INVALID_ARGUMENT, FORKED.
int httpdown_reply(httpdown_request *request,
                   int status_code,
                   const httpdown_header *headers,
                   size_t header_count,
                   const void *body,
                   size_t body_len);

// Answers with a text (NUL-terminated UTF-8) as text/plain. Otherwise like httpdown_reply.
//
// Returns as httpdown_reply.
int httpdown_reply_text(httpdown_request *request, int status_code, const char *text);

// Answers with a body that is not copied. The body must not change until `release` (may be NULL) is called with
// `release_data`. `release` is called exactly once, on any thread, whatever this function returns, perhaps before it
// returns. `release` should not block: mostly it is called on a thread that drives connections, and they wait for
// `release`. Otherwise like httpdown_reply.
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

// Begins an answer whose body follows in pieces. The head is sent as soon as the connection can take it. On OK you own
// the request, and must end it by httpdown_reply_finish or httpdown_reply_abort. Otherwise the request is as before.
// Never blocks.
//
// The body is sent in chunks, unless the headers have a Content-Length (which is not sent with a 204 or 205). The head
// says Connection: close if, when it is sent, more than 64 KiB of the request's body are still missing, or the end of
// a chunked body is. The reason: nobody knows whether the rest will be read.
//
// Returns as httpdown_reply.
HTTPDOWN_MUST_USE
int httpdown_reply_start(httpdown_request *request,
                         int status_code,
                         const httpdown_header *headers,
                         size_t header_count);

// Sends more of the answer's body, as soon as the client takes it, and writes into `*taken` how many bytes those are.
// `data` is copied. If too many bytes wait to be sent (256 KiB; 48 KiB if the server's clients together leave more
// than 2 MiB waiting), waits at most `timeout_ms` until there is room: a slow client slows the writer down. On
// OK at least one byte was taken, if there are any: write the rest again. With HTTPDOWN_FOREVER all of `data` is
// taken, and `taken` may be NULL. With HTTPDOWN_NOW, any thread may make this call.
//
// Returns OK, WOULD_BLOCK (nothing was taken: the time has passed, or the thread drives connections and must not
// wait), GONE (the client has left), TOO_SLOW (it has taken nothing for too long: write_timeout_ms), KILLED,
// ALREADY_REPLIED (the answer has no body: it is to HEAD, or a 204, 205 or 304), INVALID_ARGUMENT (also: no answer has
// begun, or the body exceeds its Content-Length), FORKED. On a thread that drives connections, HTTPDOWN_FOREVER takes
// all of `data` or nothing; when nothing waits, there is room for any length.
HTTPDOWN_MUST_USE
int httpdown_reply_write(httpdown_request *request,
                         const void *data,
                         size_t len,
                         uint32_t timeout_ms,
                         size_t *taken);

// Sets the trailer fields of an answer that was begun, instead of those that were set before; httpdown_reply_finish
// sends them. They are copied. They reach only a client that has asked for them (TE: trailers), and only those fields
// that the answer's header field Trailer has named, in an answer without a Content-Length (RFC 9110, 6.5.1). Never
// blocks.
//
// Returns OK, INVALID_ARGUMENT (also: no answer has begun), ALREADY_REPLIED, FORKED.
HTTPDOWN_MUST_USE
int httpdown_reply_trailers(httpdown_request *request,
                            const httpdown_header *trailers,
                            size_t trailer_count);

// Ends an answer that was begun, and the request, whatever this function returns. Does not wait for the client. Both
// of these are INVALID_ARGUMENT: without httpdown_reply_start, the client gets a 500; if fewer bytes were written than
// the Content-Length says, the client sees the answer cut.
//
// Returns OK, GONE (the client has left), TOO_SLOW, KILLED, ALREADY_REPLIED, INVALID_ARGUMENT, FORKED.
int httpdown_reply_finish(httpdown_request *request);

// Ends a request without an answer. The client gets a 500 or, if an answer has begun, sees the answer cut. Never
// blocks.
//
// Returns OK, ALREADY_REPLIED, INVALID_ARGUMENT, FORKED.
int httpdown_reply_abort(httpdown_request *request);

// Returns the bytes of a NUL-terminated text, for a httpdown_header. NULL gives no bytes. Never blocks.
httpdown_bytes httpdown_str(const char *text);

// Returns whether the bytes are exactly this NUL-terminated text. Never blocks.
bool httpdown_bytes_equal(httpdown_bytes bytes, const char *text);

// Asks to be told once, as soon as at least one of these things (httpdown_ready_kind, or-ed) has happened to the
// request. What has happened before is told at once; so nothing is lost between two calls. That the request is gone
// (HTTPDOWN_GONE) is always told. It may be told in vain that reading or writing is possible: then they return
// WOULD_BLOCK, and you ask again. This replaces an earlier call whose event has not been told. Never blocks.
//
// `tell` is called on the thread that drives the connection, so it must not block: it may read and write with
// HTTPDOWN_NOW, ask again, or end the request. Meanwhile no other thread may use the request, except where its
// function says so. If `tell` is NULL, the event is an item of httpdown_next_item; only with HTTPDOWN_DISPATCH_QUEUE.
//
// Nothing is told after the request has ended: the call that ends it waits until a `tell` that runs on another thread
// has returned. So do not hold a lock there that `tell` takes. A request that a handler still holds must be kept first
// (httpdown_request_defer), or it ends when the handler returns. `destroy` (may be NULL) is called exactly once with
// `user_data`, on any thread: after `tell` has returned, when the event is not wanted any more, or before this
// function returns an error. With the queue, `user_data` lives until the next call of this function, or as long as the
// request.
//
// Returns OK, INVALID_ARGUMENT (also: there is no queue), ALREADY_REPLIED, FORKED.
HTTPDOWN_MUST_USE
int httpdown_request_notify(httpdown_request *request,
                            uint32_t wanted,
                            httpdown_ready_fn tell,
                            void *user_data,
                            httpdown_destroy_fn destroy);

// Takes up to `capacity` items: requests from the queue, as httpdown_next does, and events of requests that were taken
// before (httpdown_request_notify), and of streams (httpdown_stream_notify). Waits at most `timeout_ms` for the first
// one. The descriptor of httpdown_queue_fd is readable while there are items. So one thread, or one event loop, serves
// any number of slow clients.
//
// Any thread may make this call, several at once. An event of a request may come out on any of them; from then on, the
// request belongs to this thread, and not to the one that had it before.
//
// Returns OK, WOULD_BLOCK (at the timeout), STOPPED (no request can come any more, and nothing that was asked for can
// happen any more), INVALID_ARGUMENT, FORKED.
HTTPDOWN_MUST_USE
int httpdown_next_item(const httpdown_server *server,
                       uint32_t timeout_ms,
                       httpdown_item *items,
                       size_t capacity,
                       size_t *count);

// Whether the client asks for another protocol on this connection (Upgrade), or for a tunnel (CONNECT). Never blocks.
bool httpdown_request_asks_for_upgrade(httpdown_request *request);

// Takes over the connection of a request that asks for that, and ends the request, whatever this function returns. The
// client gets the status 101 with these headers, which must have the field Upgrade, or, to CONNECT, 200; Connection:
// upgrade is added. What the client has sent behind its request is not lost: the stream begins with it. The request's
// body, if it has one, must have been read. Never blocks.
//
// The connection counts as under way until httpdown_stream_free, so a stop waits for it: HTTPDOWN_DRAINING
// (httpdown_stream_notify) tells that it should end. The stream must be freed, also after httpdown_free.
//
// Returns OK, INVALID_ARGUMENT (also: the request asks for no upgrade; the client gets a 500), GONE (the client has
// left), TOO_SLOW, KILLED, ALREADY_REPLIED, FORKED.
HTTPDOWN_MUST_USE
int httpdown_upgrade(httpdown_request *request,
                     const httpdown_header *headers,
                     size_t header_count,
                     httpdown_stream **stream);

// Reads the next bytes into `buffer`, and writes their number into `*count`; 0 is the end. Waits at most `timeout_ms`
// for them. With HTTPDOWN_NOW, any thread may make this call.
//
// Returns OK, WOULD_BLOCK (no bytes are there: the time has passed, or the thread drives connections and must not
// wait), GONE (the connection has failed), KILLED, INVALID_ARGUMENT, FORKED.
HTTPDOWN_MUST_USE
int httpdown_stream_read(const httpdown_stream *stream,
                         void *buffer,
                         size_t capacity,
                         uint32_t timeout_ms,
                         size_t *count);

// Sends bytes, and writes into `*taken` how many those are. `data` is copied. If the kernel has no room, waits at most
// `timeout_ms` for it. On OK at least one byte was taken, if there are any: write the rest again. With
// HTTPDOWN_FOREVER all of `data` is taken, and `taken` may be NULL. With HTTPDOWN_NOW, any thread may make this call.
//
// Returns OK, WOULD_BLOCK (nothing was taken), GONE (the connection has failed), KILLED, INVALID_ARGUMENT, FORKED.
HTTPDOWN_MUST_USE
int httpdown_stream_write(const httpdown_stream *stream,
                          const void *data,
                          size_t len,
                          uint32_t timeout_ms,
                          size_t *taken);

// Says that no more bytes follow, when all that was written is sent. The client's bytes can still be read. Waits at
// most `timeout_ms`. With HTTPDOWN_NOW, any thread may make this call.
//
// Returns OK, WOULD_BLOCK (not all of it is sent: call again), GONE (the connection has failed), KILLED,
// INVALID_ARGUMENT, FORKED.
HTTPDOWN_MUST_USE
int httpdown_stream_shutdown(const httpdown_stream *stream,
                             uint32_t timeout_ms);

// Asks to be told once what happens, like httpdown_request_notify. HTTPDOWN_GONE tells only of a kill: that the client
// has left shows when the stream is read. `tell` is not called any more when the stream was freed:
// httpdown_stream_free waits until a `tell` that runs on another thread has returned. `tell` may free the stream
// itself. If `tell` is NULL, the event is an item of httpdown_next_item; only with HTTPDOWN_DISPATCH_QUEUE. Then
// `user_data` lives until the next call of this function, or as long as the stream. Never blocks.
//
// Returns OK, INVALID_ARGUMENT (also: there is no queue), FORKED.
HTTPDOWN_MUST_USE
int httpdown_stream_notify(const httpdown_stream *stream,
                           uint32_t wanted,
                           httpdown_stream_fn tell,
                           void *user_data,
                           httpdown_destroy_fn destroy);

// Writes the descriptor of the connection's socket into `*fd`, for an event loop or a library that reads and writes it
// by itself. The descriptor is non-blocking, and belongs to the stream: do not close it, and use nothing else of the
// stream as long as you use it. Waits at most `timeout_ms` until the answer has left.
//
// Returns OK, UNSUPPORTED (the connection has TLS, or bytes that have come before were not read yet), WOULD_BLOCK,
// GONE, KILLED, INVALID_ARGUMENT, FORKED.
HTTPDOWN_MUST_USE
int httpdown_stream_fd(const httpdown_stream *stream,
                       uint32_t timeout_ms,
                       int *fd);

// Closes the connection, and frees the stream; does not wait for the client. What was written is sent, and reaches a
// client that still sends: the connection ends like after a last answer (`linger_timeout_ms`), and a stop waits for
// that. NULL is fine. In a forked child, does nothing.
void httpdown_stream_free(httpdown_stream *stream);

// Answers with bytes of an open file, and ends the request, whatever this function returns: `length` bytes from
// `offset` on, or all of them to the end with HTTPDOWN_TO_END. Does not wait for the client, nor for the disk; but on
// a network file system, to ask for the file's size may take a while.
//
// `fd` must be a regular file that is open for reading. The library takes it over, whatever this function returns: it
// closes `fd` when it needs it no more, perhaps before it returns. If you want to keep the file open, give a copy
// (dup(2)): the file's position is neither used nor changed.
//
// The file is read in pieces of 64 KiB, when the client takes them, so the answer takes no more memory than any other.
// The library sets Content-Length, to HEAD too. If the file becomes shorter meanwhile, or cannot be read, the client
// sees the answer cut, the request counts as failed, and the log says why (statistic: file.error). So replace a file
// by renaming another one to its name.
//
// Returns as httpdown_reply. INVALID_ARGUMENT also means that `fd` is not such a file, or that it does not have all
// these bytes; IO, that the file's size is not known. In these cases the client gets a 500.
int httpdown_reply_fd(httpdown_request *request,
                      int status_code,
                      const httpdown_header *headers,
                      size_t header_count,
                      int fd,
                      uint64_t offset,
                      uint64_t length);

// Answers a GET or HEAD with a file: all of it, or what the client asks for. Ends the request, whatever this function
// returns. `headers` are sent, too. This function opens the file and looks at its metadata, which may take a while
// where the disk is slow. Otherwise the file is sent as by httpdown_reply_fd.
//
// The client gets
//
//   206 if it has asked for a part, or several (Range), and for this state of the file, if it says (If-Range);
//   304 if it has this state of the file (If-None-Match, If-Modified-Since);
//   403 if the file may not be read; 404 if there is no such file, or it is no regular file;
//   405 if the method is not GET or HEAD;
//   412 if it wants another state (If-Match, If-Unmodified-Since);
//   416 if the part that it has asked for lies behind the end;
//   200 otherwise.
//
// All these are answers: then this function returns OK. To answer in another way if there is no file, open it, and
// call httpdown_reply_open_file.
//
// An ETag and Last-Modified are sent, unless `headers` have their own, which then are compared. The tag is made from
// the file's size, its time of change (in nanoseconds) and its inode. It is a weak one as long as the last change is
// less than 2 s old. The Content-Type is that of httpdown_content_type, unless `headers` have another. A Range of more
// than 16 parts, or of more bytes than the file has, is ignored.
//
// The path is NUL-terminated, need not be UTF-8, and is used as it is. Never make it from a request's target without a
// check that it stays in its folder: the example files.c shows one.
//
// Returns as httpdown_reply. INVALID_ARGUMENT also means that `headers` have a Content-Length or Content-Range, or an
// ETag or Last-Modified that is malformed; IO and OUT_OF_RESOURCES, that the file cannot be opened for another reason.
// In these cases the client gets a 500.
int httpdown_reply_file(httpdown_request *request,
                        const char *path,
                        const httpdown_header *headers,
                        size_t header_count);

// Like httpdown_reply_file, for a file that is open already. Its name is not known, so there is no Content-Type,
// unless
// `headers` have one. The library takes `fd` over, as in httpdown_reply_fd.
//
// Returns as httpdown_reply_file. INVALID_ARGUMENT also means that `fd` is not a regular file that is open for
// reading.
int httpdown_reply_open_file(httpdown_request *request,
                             int fd,
                             const httpdown_header *headers,
                             size_t header_count);

// Returns the content type of a file, by the extension of its name (NUL-terminated), in upper or lower case:
// "text/html; charset=utf-8". The types are those that web sites mostly need; all other files are
// "application/octet-stream". Text is taken for UTF-8. Only the name is looked at: the file need not exist. Static.
// Never blocks.
httpdown_bytes httpdown_content_type(const char *path);

// Writes one line of an access log into `buffer`, NUL-terminated and without a line end, and its length without the
// NUL into `*len`. `format` is a httpdown_log_format. `record` may be a copy that the program has made or changed.
//
// Whatever a client sends, it cannot forge a line. In the Common Log Format, a quote and a backslash have a backslash
// before them, and other bytes that are not visible ASCII are written as \xHH; the time is in UTC; the last number is
// `sent`, or "-" for 0; the status is 000 if there was no answer. In JSON, bytes that are not UTF-8 are replaced by
// U+FFFD; what is not known is null; the keys are the names of the struct's fields, but "time", "version" ("1.1"),
// "status", "end" ("served") and "tls" (true or false). Never blocks. May be called in a forked child.
//
// Returns OK; TOO_LARGE if the line needs more than `size` bytes (then `buffer` has an empty text, and `*len` is still
// the line's length: make room for one byte more; `buffer` may be NULL if `size` is 0); INVALID_ARGUMENT.
HTTPDOWN_MUST_USE
int httpdown_log_line(const httpdown_request_record *record,
                      int format,
                      char *buffer,
                      size_t size,
                      size_t *len);

// Sets the program's own data of a request: an opaque pointer, which httpdown_request_data returns, and `on_done`
// finds in the record. `destroy` (may be NULL) is called with `data` exactly once, on any thread: when other data is
// set, or when the request does not live any more, nor its record (the callback `on_done` has returned, or the record
// was dropped). It is called before the `destroy` of the server's options. On an error, the data is still yours, and
// `destroy` is not called. Never blocks.
//
// Returns OK, ALREADY_REPLIED, INVALID_ARGUMENT, FORKED.
HTTPDOWN_MUST_USE
int httpdown_request_set_data(httpdown_request *request,
                              void *data,
                              httpdown_destroy_fn destroy);

// Returns what httpdown_request_set_data has set last; NULL if nothing, or if the request does not live any more.
// Never blocks.
void *httpdown_request_data(const httpdown_request *request);

// From now on, new connections get these certificates and keys, and these checks of clients; open connections keep
// theirs. All of it is checked first, and changes together or not at all: if the call fails, nothing has changed.
// `handshake_timeout_ms` and `handshakes` stay as they were when the server began. So do ticket keys, unless `tls`
// brings some. `error` (may be NULL) gets the reason as text, like in httpdown_serve. Any thread may make this call,
// but not a signal handler. It blocks only to read the files.
//
// If `tls` is NULL, the files of the settings that the server has are read again, because they were renewed in their
// places. What is in memory stays as it is. The log then says what came of it, too. The option `reload_on_hup` has
// httpdown_run do this on SIGHUP.
//
// Returns OK, TLS (something cannot be used), INVALID_ARGUMENT, IO or PERMISSION_DENIED (a file cannot be read),
// OUT_OF_RESOURCES, UNSUPPORTED (the server does not speak TLS; `tls` is NULL, and there are no files), FORKED.
HTTPDOWN_MUST_USE
int httpdown_tls_reload(const httpdown_server *server,
                        const httpdown_tls *tls,
                        char *error,
                        size_t error_size);

// Writes into `*info` what the TLS handshake of the request's connection has agreed on. Set `info->struct_size` before
// the call. What it points to is borrowed as long as the request lives. Never blocks.
//
// Returns OK; NOT_FOUND if the connection has no TLS; INVALID_ARGUMENT, ALREADY_REPLIED, FORKED.
HTTPDOWN_MUST_USE
int httpdown_request_tls(const httpdown_request *request,
                         httpdown_tls_info *info);

// Sets every field to its default, like httpdown_options_init. `struct_size` is the caller's
// sizeof(httpdown_restart_options).
void httpdown_restart_options_init(httpdown_restart_options *options, size_t struct_size);

// Restarts the program without a loss: starts it as a new process, which takes over the listening sockets of all
// servers of this process, and returns when it has. Whoever connects then comes to the new process. All servers of this
// one stop, without a lame duck: they finish their requests (httpdown_wait), and the report has `successor_pid`.
//
// The new process does what this one did: it calls httpdown_serve with the same `addr`, and gets the sockets. When it
// serves all of them, both processes accept connections for `probation_ms`. If the new process ends or hangs before
// that is over, it is ended, and this one goes on as before: it has never ceased to accept. Then the result is
// RESTART_FAILED, and `error` says why, with the last words of the new process: up to 4 KiB of its standard error, until
// it was ready. What it writes later goes to the real one, and is not in the text. Only the connections that a failed
// process had accepted are lost; the text says how many they were. A stop of any server of this process cancels the
// restart.
//
// `options` may be NULL. `error` is like in httpdown_serve. All servers of the process restart together; on_log and the
// statistics of `server` tell of it. Blocks until it has succeeded or failed: for as long as the new process needs, at
// most about ready_timeout_ms + probation_ms. Any thread may make this call, also in a handler: it waits for no
// request. But a thread that drives connections (HTTPDOWN_DISPATCH_INLINE), and the events thread, serve nobody
// meanwhile: httpdown_restart_begin is for them.
//
// Returns OK, RESTART_FAILED; BUSY (a restart is under way, or was a success; this process has not taken over from its
// own predecessor yet; too many earlier processes still drain), STOPPED (a stop was asked for), UNSUPPORTED (this is
// the first process of a container, or a service of systemd that is not of Type=notify; unknown flags),
// INVALID_ARGUMENT, OUT_OF_RESOURCES, FORKED.
HTTPDOWN_MUST_USE
int httpdown_restart(const httpdown_server *server,
                     const httpdown_restart_options *options,
                     char *error,
                     size_t error_size);

// Like httpdown_restart, but returns as soon as the restart has begun. `on_restart` is told how it ends, and so is
// on_log. Does not block.
//
// Returns OK (the restart has begun), BUSY, STOPPED, UNSUPPORTED, INVALID_ARGUMENT, OUT_OF_RESOURCES, FORKED.
HTTPDOWN_MUST_USE
int httpdown_restart_begin(const httpdown_server *server,
                           const httpdown_restart_options *options);

// Says that this process has started all its servers, and that they are the service. Does nothing after the first call
// that has succeeded. Never blocks.
//
// In a process that was started by a restart, it is needed only with HTTPDOWN_RESTART_DROP_UNCLAIMED; otherwise the
// process is ready as soon as it serves all sockets that it was given. A socket that nobody serves makes the restart
// fail after ready_timeout_ms; with this call it fails at once. httpdown_run does not make this call: it waits.
//
// To systemd (`Type=notify`) it says `READY=1`, if this process was not started by a restart; and from now on
// `STOPPING=1` when the stop of the last server begins, and `WATCHDOG=1` if the unit has `WatchdogSec=`. httpdown_run
// and httpdown_run_all do so by themselves.
//
// Returns OK, RESTART_FAILED (a socket is not served, or no server was started: httpdown_last_error says which; the
// restart has failed, and this process is ended), INVALID_ARGUMENT (no server was started, in a process that was not
// started by a restart; nothing was said), FORKED.
int httpdown_restart_ready(void);

// Says what httpdown_run says when its servers serve: that they are the service. For a program that waits for its
// signals itself. Like httpdown_restart_ready, but other threads may start more servers later: a socket that is not
// served yet is no error. In a process that was started by a restart with HTTPDOWN_RESTART_DROP_UNCLAIMED, it is closed.
//
// Returns what httpdown_restart_ready returns, but for sockets that are not served.
int httpdown_run_ready(void);

// Leaves it to the program to talk with systemd (sd_notify(3)): nothing is sent to NOTIFY_SOCKET, neither of starts and
// stops nor of restarts. A program that uses sd_notify itself calls this first, before its first server is started, in
// each process. Any thread may call it. Never blocks.
void httpdown_no_notify(void);

// Writes into `*restarts` what is known of the restarts of this program. Set `restarts->struct_size` before. Writes the
// process IDs of up to `capacity` earlier processes that have not ended into `predecessors` (NULL is fine if `capacity`
// is 0), the youngest first. Any thread may make this call. Never blocks.
//
// Returns OK, INVALID_ARGUMENT, FORKED.
HTTPDOWN_MUST_USE
int httpdown_restart_info(httpdown_restarts *restarts,
                          uint32_t *predecessors,
                          size_t capacity);

// Finds the first pair with this name (NUL-terminated) in a query, "name=value&other=value", and decodes its value:
//
//   char text[32];
//   size_t len;
//   if (httpdown_query_value(httpdown_request_query(request), "duration", text, sizeof text, &len) == 0) ...
//
// Writes the value into `buffer`, NUL-terminated, and its length without the NUL into `*len`. The value may contain
// NULs (%00), where C takes it to end, and need not be UTF-8; `len` is always the whole length. The format is that of
// forms, so this function can also read the body of a form: %20 and + are a space, names are compared decoded, a name
// without '=' has an empty value, and a '%' without two hexadecimal digits stands for itself. `buffer` must not
// overlap the query. Never blocks.
//
// Returns OK; NOT_FOUND; TOO_LARGE if the value needs more than `size` bytes (then `buffer` has an empty text, and
// `*len` is still the value's length: make room for one byte more; `buffer` may be NULL if `size` is 0);
// INVALID_ARGUMENT.
HTTPDOWN_MUST_USE
int httpdown_query_value(httpdown_bytes query,
                         const char *name,
                         char *buffer,
                         size_t size,
                         size_t *len);

// Takes the first pair from a query: name and value, both borrowed from the query and not decoded (for that, call
// httpdown_query_decode). Sets `*rest` to the part of the query that follows. Never blocks:
//
//   httpdown_bytes rest = httpdown_request_query(request);
//   httpdown_header pair;
//   while (httpdown_query_next(&rest, &pair)) ...
//
// Returns false, and writes no pair, when no pair is left, or an argument is NULL.
HTTPDOWN_MUST_USE
bool httpdown_query_next(httpdown_bytes *rest,
                         httpdown_header *pair);

// Decodes a name or a value of a query: %20 and + are a space. Everything else is like in httpdown_query_value.
//
// Returns OK, TOO_LARGE, INVALID_ARGUMENT.
HTTPDOWN_MUST_USE
int httpdown_query_decode(httpdown_bytes encoded,
                          char *buffer,
                          size_t size,
                          size_t *len);

// Decodes a part of a path: %20 is a space, + is a plus. Split a path at its slashes before you decode: a decoded
// slash (%2F) does not separate parts. Everything else is like in httpdown_query_value.
//
// Returns OK, TOO_LARGE, INVALID_ARGUMENT.
HTTPDOWN_MUST_USE
int httpdown_percent_decode(httpdown_bytes encoded,
                            char *buffer,
                            size_t size,
                            size_t *len);

// Makes a clock whose time is zero, for the option `clock` of one server or several.
//
// Returns OK, INVALID_ARGUMENT, FORKED. You own the clock; free it with httpdown_clock_free.
HTTPDOWN_MUST_USE int httpdown_clock_new_mock(httpdown_clock **clock);

// Moves the clock's time forward by `ms` milliseconds, and fires the timers that are due by then. Does not wait for
// the effects of these timers.
//
// Returns OK, INVALID_ARGUMENT, FORKED.
HTTPDOWN_MUST_USE
int httpdown_clock_advance(const httpdown_clock *clock,
                           uint64_t ms);

// Blocks until at least `count` timers are set, that is: until the server waits for its clock. `timeout_ms` is in real
// time. A server with statistics always has one timer set, for the counts that come once a minute.
//
// Returns OK, INVALID_ARGUMENT, WOULD_BLOCK (at the timeout), FORKED.
HTTPDOWN_MUST_USE
int httpdown_clock_wait_for_timers(const httpdown_clock *clock,
                                   size_t count,
                                   uint32_t timeout_ms);

// Frees a clock. A server that uses the clock keeps its own reference. NULL is fine.
void httpdown_clock_free(httpdown_clock *clock);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* HTTPDOWN_H */
