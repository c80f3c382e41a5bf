/// httpdown for C++17: an HTTP server that stops without dropping a request.
///
///     int main() {
///         httpdown::options options;
///         options.addr = "127.0.0.1:8080";
///         options.handler = [](httpdown::request request) { request.reply_text(200, "Hello, World!"); };
///         httpdown::run(std::move(options)); // until SIGTERM or SIGINT
///     }
///
/// How to read this header. It is a thin layer: httpdown.h says more about each thing, and its names are the same.
///
///  1. What a client can cause is a return value: `false`, or nothing in the optional, when it has left or was cut; and
///     `request::status` says which. A mistake of the program's, or a lack of resources, is a httpdown::error.
///  2. A std::string_view that a request gives is borrowed until the request is destroyed or assigned to; ending it or
///     moving it does not matter. What you give is copied.
///  3. The const functions may be called by any thread, several at once; of the others, one at a time for each object.
///  4. Callbacks may throw: a handler's exception becomes a 500 (or a cut answer, if it had begun) and a line for
///     `on_log`, any other callback's just the line.
///  5. Without exceptions (-fno-exceptions) nothing is thrown, and nothing aborts: what would have thrown returns
///     `false`, nothing, an empty text, -1, or a report; `request::status` and `stop_report::status` say why. A server
///     is then started by `server::start`, or by `run` with a status.
///  6. Durations are rounded to what the library can count, milliseconds up to 49 days; more is without limit.
#ifndef HTTPDOWN_HPP
#define HTTPDOWN_HPP

#include <httpdown.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

// Programs may have files with exceptions and files without: their functions must not be taken for the same.
#ifdef __cpp_exceptions
#define HTTPDOWN_FLAVOUR with_exceptions
#else
#define HTTPDOWN_FLAVOUR without_exceptions
#endif

namespace httpdown {
inline namespace HTTPDOWN_FLAVOUR {

using std::chrono::milliseconds;

/// As a timeout: without limit.
inline constexpr milliseconds forever = milliseconds::max();

/// What a server has done, and what its stop has cost: the struct of httpdown.h.
using stop_report = httpdown_stop_report;

/// A call has failed. `what()` says why in English: what was wrong with an argument, say.
class error : public std::runtime_error {
public:
    explicit error(int status) : error(status, httpdown_status_string(status)) {}
    error(int status, const std::string &what) : std::runtime_error(what), status_(status) {}

    /// A httpdown_status; never OK.
    int status() const noexcept { return status_; }

private:
    int status_;
};

/// A server has ended, but not well: requests were cut (status KILLED), handlers had to be abandoned (TIMED_OUT), or
/// serving had failed (IO).
class stop_error : public error {
public:
    stop_error(int status, const stop_report &report) : error(status), report_(report) {}

    /// The counts at the end.
    const stop_report &report() const noexcept { return report_; }

private:
    stop_report report_;
};

/// A header field, of a request (its name in lower case then) or for an answer. Both are borrowed.
struct header {
    std::string_view name;
    std::string_view value;
};

/// Something to be called: as a std::function, but what can only be moved is welcome, too, like a lambda that has
/// captured a std::unique_ptr. Copies have a copy of what is called, or share it if it cannot be copied. Empty (false)
/// by default.
template <typename... Arguments>
class callback {
public:
    callback() noexcept = default;
    callback(std::nullptr_t) noexcept {}

    /// Anything that can be called with these arguments.
    template <typename Callable,
              typename = std::enable_if_t<std::is_invocable_v<std::decay_t<Callable> &, Arguments...> &&
                                          !std::is_same_v<std::decay_t<Callable>, callback>>>
    callback(Callable &&callable) : call_(copyable(std::forward<Callable>(callable))) {}

    /// Whether there is something to call.
    explicit operator bool() const noexcept { return static_cast<bool>(call_); }

    /// Calls it; it must not be empty.
    void operator()(Arguments... arguments) const { call_(std::forward<Arguments>(arguments)...); }

private:
    template <typename Callable>
    static auto copyable(Callable &&callable) {
        using plain = std::decay_t<Callable>;
        if constexpr (std::is_copy_constructible_v<plain>) {
            return plain(std::forward<Callable>(callable));
        } else {
            return [shared = std::make_shared<plain>(std::forward<Callable>(callable))](Arguments... arguments) {
                (*shared)(std::forward<Arguments>(arguments)...);
            };
        }
    }

    std::function<void(Arguments...)> call_{};
};

/// All pairs of a query, or of the body of a form (application/x-www-form-urlencoded): names and values, decoded, in
/// their order. Never blocks.
std::vector<std::pair<std::string, std::string>> query_pairs(std::string_view query);

/// Decodes a part of a path: %20 is a space, + is a plus. Split a path at its slashes first. Never blocks.
std::string percent_decode(std::string_view encoded);

class server_ref;

/// A request, and the duty to answer it once. It can be moved to any thread and kept: the client waits. Destroyed
/// without an answer, the client gets a 500; destroyed within an answer, the client sees it cut.
///
/// False when it has been ended or moved from: then answering, and reading its body, throws an error with the status
/// ALREADY_REPLIED. Of one that was ended, the head can still be read (`method`, `path`, headers, addresses): reply, and
/// then log the path. Of one that was moved from, there is nothing. One thread at a time, except for `cancelled` and
/// `wait_cancelled`.
class request {
public:
    request() noexcept = default;

    /// Takes over a request of the C interface that is owned: from httpdown_next, or after httpdown_request_defer.
    explicit request(httpdown_request *owned) noexcept : handle_(owned) {}

    /// Whether it has still to be ended.
    explicit operator bool() const noexcept { return handle_ != nullptr; }

    /// For the C interface: borrowed. Also of one that was ended: to be read.
    httpdown_request *get() const noexcept { return handle_ ? handle_.get() : ended_.get(); }

    /// The method, as it came: "GET".
    std::string_view method() const noexcept { return view(httpdown_request_method(get())); }

    /// The target, as it came: mostly path and query, "/a%20b?c=d".
    std::string_view target() const noexcept { return view(httpdown_request_target(get())); }

    /// The path of the target, not decoded: "/a%20b".
    std::string_view path() const noexcept { return view(httpdown_request_path(get())); }

    /// What follows the question mark, not decoded: "c=d"; `data()` is nullptr if there is no question mark.
    std::string_view query() const noexcept { return view(httpdown_request_query(get())); }

    /// The decoded value of the first pair of that name in the query, "name=value&other=value"; nothing if there is
    /// none. %20 and + are a space. It may have NULs within, and need not be UTF-8. Throws error: INVALID_ARGUMENT if
    /// the name is nullptr.
    std::optional<std::string> query_value(const char *name) const;

    /// All pairs of the query, names and values, decoded, in their order.
    std::vector<std::pair<std::string, std::string>> query_pairs() const;

    /// How it came: "http".
    std::string_view scheme() const noexcept { return view(httpdown_request_scheme(get())); }

    /// The version of HTTP times ten: 10 or 11.
    int version() const noexcept { return httpdown_request_version(get()); }

    /// The value of the first header of that name, in any case; `data()` is nullptr if there is none.
    std::string_view header(const char *name) const noexcept { return view(httpdown_request_header(get(), name)); }

    /// All headers; those of the same name stand together, in the order in which they came.
    std::vector<httpdown::header> headers() const;

    /// The client's address: "127.0.0.1:50000"; "unix:" by a Unix socket.
    std::string_view peer_addr() const noexcept { return view(httpdown_request_peer_addr(get())); }

    /// The server's address that the client connected to.
    std::string_view local_addr() const noexcept { return view(httpdown_request_local_addr(get())); }

    /// Which process has connected by a Unix socket, as the kernel knew it at that moment; nothing if the client has come
    /// otherwise. Throws error.
    std::optional<httpdown_credentials> peer_credentials() const;

    /// The number of its connection, as `on_conn_state` tells it.
    std::uint64_t conn_id() const noexcept { return httpdown_request_conn_id(get()); }

    /// The server that it came to: to stop it from a handler, say. Must not be used after the request is ended and its
    /// handler has returned, unless it is known that the server lives; it is empty then. A handler may run before the
    /// constructor of `server` has returned.
    server_ref server() const noexcept;

    /// Reads the next bytes of the body into `buffer`; blocks until there are some. Returns how many, 0 at the end;
    /// nothing if the client has left (`status` is GONE then), broke the protocol (BAD_BODY; without an answer it gets a
    /// 400), or was cut (KILLED). Throws error: WOULD_BLOCK with INLINE dispatch if nothing is there yet, INVALID_ARGUMENT
    /// if `size` is 0.
    std::optional<std::size_t> read(void *buffer, std::size_t size);

    /// The whole body, if it has at most `limit` bytes; blocks until all of it is there. Nothing if it is longer
    /// (`status` is TOO_LARGE then, and 413 is a good answer), or as for `read`. Throws error: WOULD_BLOCK as `read`.
    std::optional<std::string_view> body(std::size_t limit);

    /// What the last call on this request came to that reads the body, or answers: a httpdown_status. It says why there
    /// was `false`, or nothing: GONE, BAD_BODY, KILLED, TOO_LARGE; without exceptions also what would have been thrown. OK before
    /// such a call. Can be asked for when the request has been ended.
    int status() const noexcept { return status_; }

    /// Whether there is no more use in answering: the client has left, the server was killed, or the answer is complete
    /// (one that has no body is, soon after `start`). Never blocks. Any thread, also while another uses the request, as
    /// long as nobody ends or moves it.
    bool cancelled() const noexcept { return httpdown_request_cancelled(get()); }

    /// Sleeps until there is no more use in answering (true), or until the timeout (false). Threads as `cancelled`.
    bool wait_cancelled(milliseconds timeout = forever) const;

    /// Answers, and ends the request. Content-Length and Date are set for you. Does not wait for the client. Returns
    /// whether the client can still get it. Throws error: INVALID_ARGUMENT for a status that is not from 200 to 999,
    /// or a malformed header (the client gets a 500).
    bool reply(int status, std::string_view body = {}, const std::vector<httpdown::header> &headers = {});

    /// As `reply`, with a text as text/plain in UTF-8.
    bool reply_text(int status, std::string_view text);

    /// As `reply`, but the body is moved, not copied: for large ones.
    bool reply_owned(int status, std::string body, const std::vector<httpdown::header> &headers = {});

    /// Begins an answer whose body follows in pieces, chunked unless there is a Content-Length among the headers. The
    /// head is sent at once. Returns whether the client can still get it. Throws error: INVALID_ARGUMENT as `reply`
    /// (but nothing was sent, and the request is not ended), ALREADY_REPLIED.
    bool start(int status, const std::vector<httpdown::header> &headers = {});

    /// Sends more of the body, as soon as the client takes it. Blocks while 256 KiB wait already. Returns whether the
    /// client can still get it: not where the answer has no body (to HEAD, or a 204, 205 or 304). Throws error:
    /// INVALID_ARGUMENT before `start` or beyond the Content-Length, WOULD_BLOCK with INLINE dispatch if there is no
    /// room for all of it (nothing was taken).
    bool write(std::string_view data);

    /// Ends an answer that was begun, and the request. Does not wait for the client. Returns whether it can still get
    /// all of it. Throws error: INVALID_ARGUMENT before `start` (the client gets a 500).
    bool finish();

    /// Ends the request now, as its destructor would: a 500, or a cut answer. Nothing happens if it has been ended.
    void abort() noexcept {
        if (*this) httpdown_reply_abort(end());
    }

private:
    struct aborter {
        void operator()(httpdown_request *request) const noexcept { httpdown_reply_abort(request); }
    };
    struct releaser {
        void operator()(httpdown_request *request) const noexcept { httpdown_request_release(request); }
    };

    static std::string_view view(httpdown_bytes bytes) noexcept { return {bytes.data, bytes.len}; }
    static bool is_delivered(int status);
    bool delivered(int status);
    bool unanswered();

    /// The request, for the call that ends it; there must be one. From now on it is only to be read.
    httpdown_request *end() noexcept {
        // The C interface would let go of the head, too. If this fails, as in a forked child, there is no head to read.
        if (httpdown_request_retain(get()) == HTTPDOWN_STATUS_OK) ended_.reset(get());
        return handle_.release();
    }

    std::unique_ptr<httpdown_request, aborter> handle_{};
    /// What is left of it: only one of the two is there.
    std::unique_ptr<httpdown_request, releaser> ended_{};
    int status_ = HTTPDOWN_STATUS_OK;
};

/// A server that somebody else keeps: what callbacks get. Cheap to copy. It must not outlive the server.
///
/// Any thread may call the functions, several at once. Those that say nothing else throw error only in a child
/// that was forked meanwhile (FORKED), or for an empty one (INVALID_ARGUMENT).
class server_ref {
public:
    explicit server_ref(const httpdown_server *server = nullptr) noexcept : handle_(server) {}

    /// For the C interface: borrowed.
    const httpdown_server *get() const noexcept { return handle_; }

    /// Stops: no new connections, what is there is finished, and then the counts. Blocks, at most for lame_duck +
    /// stop_timeout + kill_timeout. Whoever calls later, or meanwhile, gets the same.
    ///
    /// Throws stop_error if it did not end well; error with WOULD_DEADLOCK in a handler or another callback, and on a
    /// thread that holds a request of the queue (the stop has begun then: `stop_begin` is what is meant there).
    stop_report stop() const;

    /// Begins the stop, and returns at once. A second time it does nothing. May be called anywhere, even in a signal
    /// handler.
    void stop_begin() const noexcept { httpdown_stop_begin(handle_); }

    /// Goes straight to the kill, whether a stop has begun or not. Otherwise as `stop_begin`.
    void kill_begin() const noexcept { httpdown_kill_begin(handle_); }

    /// Waits until the server has ended entirely, whoever has stopped it. Throws as `stop`.
    stop_report wait() const;

    /// As `wait`, at most for the timeout: then there is nothing in the optional.
    std::optional<stop_report> wait(milliseconds timeout) const;

    /// The counts as they are now. Never blocks.
    stop_report report() const;

    /// How far it has come. Never blocks.
    httpdown_phase_code phase() const noexcept { return static_cast<httpdown_phase_code>(httpdown_phase(handle_)); }

    /// Whether new requests are welcome, for a readiness probe: false from when a stop is asked for. Never blocks; may
    /// be called anywhere, even in a signal handler. The option `ready_path` has the server tell it by HTTP.
    bool ready() const noexcept { return httpdown_ready(handle_); }

    /// The address that it listens on: "127.0.0.1:8080". `index` counts the listening sockets, `fds` first. Never
    /// blocks. Throws error: INVALID_ARGUMENT if there is no such socket.
    std::string local_addr(std::size_t index = 0) const;

    /// Takes a request from the queue (QUEUE dispatch), waiting for one at most for the timeout:
    ///
    ///     while (auto request = server.next()) request->reply_text(200, "Hello, World!");
    ///
    /// There is none in the optional when none can come any more, and an empty one at the timeout. As long as it is
    /// not ended, this thread must not wait for the server to stop. Throws error: INVALID_ARGUMENT if there is no
    /// queue.
    std::optional<request> next(milliseconds timeout = forever) const;

    /// A descriptor for your own event loop: readable while requests wait in the queue, and after the end. It belongs
    /// to the server. Never blocks. Throws error: INVALID_ARGUMENT if there is no queue, OUT_OF_RESOURCES.
    int queue_fd() const;

    /// A descriptor for your own event loop: readable while events wait to be taken by `next_event`, and after the end,
    /// when `wait` does not wait any more; the latter also without the option `pull_events`. It belongs to the server.
    /// With it and `queue_fd`, one thread can serve and stop: httpdown.h says how, at httpdown_event_fd. Never blocks.
    /// Throws error: OUT_OF_RESOURCES.
    int event_fd() const;

    /// Takes the oldest event (the option `pull_events`), waiting for one at most for the timeout. There is none in
    /// the optional when all were taken and the server has ended; its `kind` is 0 at the timeout. Throws error:
    /// INVALID_ARGUMENT without that option.
    std::optional<httpdown_event> next_event(milliseconds timeout = forever) const;

protected:
    const httpdown_server *handle_;
};

/// A clock that stands still until it is moved, to test a stop without waiting for its timeouts. Movable. Any thread.
class mock_clock {
public:
    /// It stands at zero. Throws error.
    mock_clock();

    /// Moves the time on, and fires the timers that are due by then. Does not wait for what they set off.
    void advance(milliseconds time) const;

    /// Blocks until `count` timers are set; false at the timeout, which is of real time.
    bool wait_for_timers(std::size_t count, milliseconds timeout = forever) const;

    /// For the C interface: borrowed.
    const httpdown_clock *get() const noexcept { return handle_.get(); }

private:
    struct freer {
        void operator()(httpdown_clock *clock) const noexcept { httpdown_clock_free(clock); }
    };

    std::unique_ptr<httpdown_clock, freer> handle_{};
};

/// How a server shall be. What is left as it is means the default, which httpdown.h tells. Can be used for several
/// servers; each has its own copy of the callbacks (but see `callback`), which is destroyed when its last callback has
/// returned: on any thread, and at the latest when the server is destroyed (but for a handler that never returns).
struct options {
    /// Called with the key and the value.
    using stat = callback<std::string_view, double>;

    /// Where to listen, several separated by commas: HOST:PORT (":8080" is every address; port 0 lets the kernel choose),
    /// or a Unix socket ("unix:/run/app.sock?mode=0660&group=www-data", "unix:@name"; httpdown.h tells all of it). Empty:
    /// ":80", or nothing if there are `fds`.
    std::string addr{};
    /// Descriptors that listen already, TCP or Unix stream sockets: the server's once it has started, otherwise still yours.
    std::vector<int> fds{};
    /// The socket outlives this server (systemd, or workers restarted one by one). Whoever keeps it must go on
    /// accepting, or waiting clients are reset. A stop leaves what waits in the queues of the `fds` to the others.
    bool fds_shared = false;
    /// The sockets of `addr` have SO_REUSEPORT: several processes of the same user can each listen there with a socket
    /// of its own, if all of them set this. A stop has the kernel send new clients to the others, so that workers can
    /// be restarted one by one, and none is lost. Nobody is told any more that the address is in use.
    bool reuse_port = false;

    /// Answers a request, now or, moved elsewhere, later. Called from several threads at once. It may block, unless
    /// dispatch is INLINE. Required, but not with QUEUE dispatch.
    callback<request> handler{};
    /// How requests reach the program.
    httpdown_dispatch dispatch = HTTPDOWN_DISPATCH_POOL;
    /// How many threads the pool may have. 0: 512.
    std::uint32_t pool_threads = 0;
    /// How many threads drive connections. 0: one for each processor.
    std::uint32_t io_threads = 0;

    /// A path, "/healthz" say, that the server answers itself, also where all handlers are busy: 200 while `ready` says
    /// yes, then 503. "/" first, then visible ASCII, no query. Empty: none.
    std::string ready_path{};

    /// For a monitoring system; httpdown.h lists the keys. These and the next three are called on the events thread,
    /// one at a time; a slow one delays only the events behind it. (listen.error comes while the server is made.)
    stat bump_avg{}, bump_sum{}, bump_histogram{}, bump_time{};
    /// A connection, by its number, has changed its state. The text is the client's address.
    callback<server_ref, std::uint64_t, httpdown_conn_state, std::string_view> on_conn_state{};
    /// The server has entered a phase, SERVING included.
    callback<server_ref, httpdown_phase_code> on_phase{};
    /// Something that a person should know; the library itself prints nothing. Also called on the thread of a
    /// callback that has thrown, but never twice at once. What it throws is lost.
    callback<httpdown_log_level, std::string_view> on_log{};
    /// Kinds of event (httpdown_event_kind, or-ed) to be taken by `next_event`. Excludes the callbacks above.
    std::uint32_t pull_events = 0;

    /// For tests: the clock for the stop, kill and lame-duck timers. All other durations are in real time, `idle_grace`
    /// included. Needed only until the server has started.
    const mock_clock *clock = nullptr;
    /// How long a stop waits for what is there to finish, before it kills. 0 is not at all. By default a minute.
    std::optional<milliseconds> stop_timeout{};
    /// How long a kill waits for handlers that were cut to return, before it abandons them. By default a minute.
    std::optional<milliseconds> kill_timeout{};
    /// How long a stop goes on accepting, while `ready` says no and responses say Connection: close, so that load
    /// balancers and clients go elsewhere. By default not at all.
    std::optional<milliseconds> lame_duck{};
    /// How long the lame duck takes at least, however quiet it is: as long as a load balancer needs to notice. At most
    /// `lame_duck`. By default not at all.
    std::optional<milliseconds> lame_duck_min{};
    /// Ends the lame duck early, once no request has come for so long; those for `ready_path` do not count. At most
    /// `lame_duck`. By default never.
    std::optional<milliseconds> lame_duck_quiet{};
    /// How long a request's head may take; then the client gets a 408, and the connection is closed. By default 30
    /// seconds.
    std::optional<milliseconds> header_timeout{};
    /// How long a stop leaves a connection between two requests open, so that a request that is on its way is served.
    /// By default a second.
    std::optional<milliseconds> idle_grace{};
    /// How long a stop goes on accepting connections whose handshake had begun. By default 4 seconds.
    std::optional<milliseconds> quiesce_timeout{};
    /// How long a connection that the server has closed waits for the client to close its side. By default 2 seconds.
    std::optional<milliseconds> linger_timeout{};
    /// How long a connection may be without a request while the server serves; then it is closed, at most a second
    /// later. Not 0. By default there is no limit: a close can cross a request on its way, which is lost then (`raced`).
    std::optional<milliseconds> idle_timeout{};
    /// Responses tell of the idle timeout less `idle_grace`, in whole seconds, so that clients that know the field leave
    /// first: "Keep-Alive: timeout=N".
    bool keep_alive_header = false;
    /// Of `run`: how long after the first signal another one counts as the second, which goes straight to the kill. One
    /// that comes sooner has told the same thing again, as process managers and wrappers do. By default 500 ms.
    std::optional<milliseconds> second_signal{};
};

/// A running server, on threads of its own. Movable, not copyable.
///
/// The destructor ends it: it stops the server if nobody has, and blocks until its threads have ended and its callbacks
/// are destroyed. Where it would wait for itself (in a handler, say) it returns at once, and the rest follows
/// elsewhere. For the result of the stop, call `stop` or `wait` before. A child that is forked before that can have no
/// server (FORKED), and the destructor does nothing there; one that is forked afterwards can.
class server : public server_ref {
public:
    /// Starts it. Blocks only while a host name in `addr` is looked up. Throws error, with the reason as text. Without
    /// exceptions, one that could not be started is empty (`get()` is nullptr).
    explicit server(options options);

    /// As the constructor, but throws nothing (except std::bad_alloc): if there is nothing in the optional, `status` is
    /// the reason, and `what`, if it is not nullptr, the reason as text.
    static std::optional<server> start(options options, int &status, std::string *what = nullptr);

    server(server &&other) noexcept : server_ref(std::exchange(other.handle_, nullptr)) {}
    /// Ends the server that was here before, as the destructor does.
    server &operator=(server &&other) noexcept;
    ~server();

private:
    explicit server(const httpdown_server *started) noexcept : server_ref(started) {}
};

/// Serves until SIGTERM or SIGINT, stops, and returns the counts. Blocks. A second signal goes straight to the kill,
/// unless it comes too soon (`second_signal`). In a forked child they do what they would have done without us, and do
/// not stop the parent. To learn when the server listens, and where, set `on_phase`. The calling thread takes the
/// signals meanwhile, also if it blocks them. A SIGINT that is ignored stays so (a shell's background job); SIGTERM
/// always stops.
///
/// Throws error as the constructor of `server`, UNSUPPORTED if another run is under way, and stop_error as `stop`.
stop_report run(options options);

/// As `run`, but throws nothing (except std::bad_alloc): `status` is what it has come to, OK or the reason, and `what`,
/// if it is not nullptr, the reason as text.
stop_report run(options options, int &status, std::string *what = nullptr);

// The rest is how it is done.

namespace detail {

inline std::uint32_t to_ms(milliseconds time) noexcept {
    if (time.count() <= 0) return HTTPDOWN_NOW;
    return time.count() < HTTPDOWN_NOW ? static_cast<std::uint32_t>(time.count()) : HTTPDOWN_FOREVER;
}

inline std::uint32_t to_ms(const std::optional<milliseconds> &time) noexcept { return time ? to_ms(*time) : 0; }

/// Throws, if anything can be thrown; otherwise the caller returns what stands for the failure.
template <typename Error>
void raise([[maybe_unused]] const Error &failure) {
#ifdef __cpp_exceptions
    throw failure;
#endif
}

/// For the status that this thread's last call has returned.
inline void check(int status) {
    if (status != HTTPDOWN_STATUS_OK) raise(error(status, httpdown_last_error()));
}

/// A report that says what the call has come to.
inline stop_report checked(int status, stop_report report) {
    if (report.status != HTTPDOWN_STATUS_OK) raise(stop_error(report.status, report));
    check(status);
    if (report.status == HTTPDOWN_STATUS_OK) report.status = status;
    return report;
}

inline stop_report empty_report() noexcept {
    stop_report report{};
    report.struct_size = sizeof report;
    return report;
}

/// What one of the decoders makes of it.
inline std::string decoded(int (*decode)(httpdown_bytes, char *, std::size_t, std::size_t *), httpdown_bytes encoded) {
    std::string text(encoded.len + 1, '\0');
    std::size_t len = 0;
    check(decode(encoded, text.data(), text.size(), &len));
    text.resize(len);
    return text;
}

inline std::vector<httpdown_header> to_c(const std::vector<header> &headers) {
    std::vector<httpdown_header> all;
    all.reserve(headers.size());
    for (const header &each : headers)
        all.push_back({{each.name.data(), each.name.size()}, {each.value.data(), each.value.size()}});
    return all;
}

/// The callbacks of one server. The library has the only pointer to it, and ends it by `destroy`.
struct host {
    explicit host(options &&from) : of(std::move(from)) {}

    void log(int level, const char *text) noexcept {
#ifdef __cpp_exceptions
        try {
            tell(level, text);
        } catch (...) { // There is nobody left to tell.
        }
#else
        tell(level, text);
#endif
    }

    /// Calls a callback. No exception may pass through the library's frames.
    template <typename Callback>
    void guarded([[maybe_unused]] const char *name, Callback callback) noexcept {
#ifdef __cpp_exceptions
        try {
            try {
                callback();
            } catch (const std::exception &thrown) {
                log(HTTPDOWN_LOG_ERROR, (std::string(name) + " has thrown: " + thrown.what()).c_str());
            }
        } catch (...) { // Or there was no memory to describe it.
            log(HTTPDOWN_LOG_ERROR, "a callback has thrown something that is not a std::exception");
        }
#else
        callback();
#endif
    }

    void tell(int level, const char *text) {
        const std::lock_guard<std::mutex> one_at_a_time(logging);
        if (of.on_log) of.on_log(static_cast<httpdown_log_level>(level), text);
    }

    options of;
    std::mutex logging{};
};

/// What `function` of a host's options does, as a callback for statistics.
template <options::stat options::*function>
void bump(const char *key, double value, void *data) noexcept {
    auto &self = *static_cast<host *>(data);
    self.guarded("a callback for statistics", [&] { (self.of.*function)(key, value); });
}

/// Options as the C interface wants them, for one call. It must be made, for otherwise nobody ends the host.
class c_options {
public:
    explicit c_options(options &&from)
        : addr_(std::move(from.addr)), fds_(std::move(from.fds)), ready_path_(std::move(from.ready_path)) {
        raw_.struct_size = sizeof raw_;
        if (!addr_.empty()) raw_.addr = addr_.c_str();
        if (!ready_path_.empty()) raw_.ready_path = ready_path_.c_str();
        raw_.fds = fds_.data();
        raw_.fd_count = fds_.size();
        raw_.fds_shared = from.fds_shared;
        raw_.reuse_port = from.reuse_port;
        raw_.dispatch = from.dispatch;
        raw_.pool_threads = from.pool_threads;
        raw_.io_threads = from.io_threads;
        raw_.pull_events = from.pull_events;
        raw_.clock = from.clock == nullptr ? nullptr : from.clock->get();
        raw_.stop_timeout_ms = to_ms(from.stop_timeout);
        raw_.kill_timeout_ms = to_ms(from.kill_timeout);
        raw_.lame_duck_ms = to_ms(from.lame_duck);
        raw_.lame_duck_min_ms = to_ms(from.lame_duck_min);
        raw_.lame_duck_quiet_ms = to_ms(from.lame_duck_quiet);
        raw_.header_timeout_ms = to_ms(from.header_timeout);
        raw_.idle_grace_ms = to_ms(from.idle_grace);
        raw_.quiesce_timeout_ms = to_ms(from.quiesce_timeout);
        raw_.linger_timeout_ms = to_ms(from.linger_timeout);
        raw_.idle_timeout_ms = to_ms(from.idle_timeout);
        raw_.keep_alive_header = from.keep_alive_header;
        raw_.second_signal_ms = to_ms(from.second_signal);

        if (from.handler) raw_.handler = on_request;
        if (from.bump_avg) raw_.stats.bump_avg = bump<&options::bump_avg>;
        if (from.bump_sum) raw_.stats.bump_sum = bump<&options::bump_sum>;
        if (from.bump_histogram) raw_.stats.bump_histogram = bump<&options::bump_histogram>;
        if (from.bump_time) raw_.stats.bump_time = bump<&options::bump_time>;
        if (from.on_conn_state) raw_.on_conn_state = on_conn_state;
        if (from.on_phase) raw_.on_phase = on_phase;
        if (from.on_log) raw_.on_log = on_log;
        raw_.destroy = [](void *data) noexcept { delete static_cast<host *>(data); };
        raw_.user_data = new host(std::move(from));
    }

    const httpdown_options *get() const noexcept { return &raw_; }

private:
    static void on_request(httpdown_request *lent, void *data) noexcept {
        // Owned from the beginning: so the destructor alone decides what becomes of it.
        if (httpdown_request_defer(lent) != HTTPDOWN_STATUS_OK) return;
        auto &self = *static_cast<host *>(data);
        self.guarded("a handler", [&] { self.of.handler(request(lent)); });
    }

    static void on_conn_state(const httpdown_server *server, std::uint64_t conn, int state, const char *peer,
                              void *data) noexcept {
        auto &self = *static_cast<host *>(data);
        self.guarded("on_conn_state", [&] {
            self.of.on_conn_state(server_ref(server), conn, static_cast<httpdown_conn_state>(state), peer);
        });
    }

    static void on_phase(const httpdown_server *server, int phase, void *data) noexcept {
        auto &self = *static_cast<host *>(data);
        self.guarded("on_phase",
                     [&] { self.of.on_phase(server_ref(server), static_cast<httpdown_phase_code>(phase)); });
    }

    static void on_log(int level, const char *text, void *data) noexcept {
        static_cast<host *>(data)->log(level, text);
    }

    // Not within the host, which may be destroyed while the call is still reading them.
    std::string addr_;
    std::vector<int> fds_;
    std::string ready_path_;
    httpdown_options raw_{};
};

} // namespace detail

inline std::optional<httpdown_credentials> request::peer_credentials() const {
    httpdown_credentials found{};
    const int status = httpdown_request_peer_credentials(get(), &found);
    if (status == HTTPDOWN_STATUS_NOT_FOUND) return std::nullopt;
    detail::check(status);
    return found;
}

inline std::vector<header> request::headers() const {
    std::vector<httpdown_header> raw(httpdown_request_header_count(get()));
    std::size_t count = 0;
    if (get() != nullptr) detail::check(httpdown_request_headers(get(), 0, raw.data(), raw.size(), &count));
    std::vector<httpdown::header> all;
    all.reserve(count);
    for (std::size_t i = 0; i < count; i++) all.push_back({view(raw[i].name), view(raw[i].value)});
    return all;
}

inline std::optional<std::string> request::query_value(const char *name) const {
    const auto encoded = query();
    // What is decoded is not longer.
    std::string value(encoded.size() + 1, '\0');
    std::size_t len = 0;
    const int status =
        httpdown_query_value({encoded.data(), encoded.size()}, name, value.data(), value.size(), &len);
    if (status == HTTPDOWN_STATUS_NOT_FOUND) return std::nullopt;
    detail::check(status);
    if (status != HTTPDOWN_STATUS_OK) return std::nullopt;
    value.resize(len);
    return value;
}

inline std::vector<std::pair<std::string, std::string>> request::query_pairs() const {
    return httpdown::query_pairs(query());
}

inline std::vector<std::pair<std::string, std::string>> query_pairs(std::string_view query) {
    std::vector<std::pair<std::string, std::string>> all;
    httpdown_bytes rest{query.data(), query.size()};
    httpdown_header pair{};
    while (httpdown_query_next(&rest, &pair))
        all.emplace_back(detail::decoded(httpdown_query_decode, pair.name),
                         detail::decoded(httpdown_query_decode, pair.value));
    return all;
}

inline std::string percent_decode(std::string_view encoded) {
    return detail::decoded(httpdown_percent_decode, {encoded.data(), encoded.size()});
}

inline server_ref request::server() const noexcept { return server_ref(httpdown_request_server(get())); }

inline std::optional<std::size_t> request::read(void *buffer, std::size_t size) {
    std::size_t count = 0;
    if (!unanswered() || !delivered(httpdown_request_read(get(), buffer, size, &count))) return std::nullopt;
    return count;
}

inline std::optional<std::string_view> request::body(std::size_t limit) {
    httpdown_bytes bytes{};
    if (!unanswered() || !delivered(httpdown_request_body(get(), limit, &bytes))) return std::nullopt;
    return view(bytes);
}

inline bool request::wait_cancelled(milliseconds timeout) const {
    const int status = !*this ? static_cast<int>(HTTPDOWN_STATUS_ALREADY_REPLIED)
                              : httpdown_request_wait_cancelled(get(), detail::to_ms(timeout));
    if (!*this) detail::check(status);
    if (status == HTTPDOWN_STATUS_ALREADY_REPLIED) return true;
    return status != HTTPDOWN_STATUS_WOULD_BLOCK && !is_delivered(status);
}

inline bool request::reply(int status, std::string_view body, const std::vector<httpdown::header> &headers) {
    const auto raw = detail::to_c(headers);
    if (!unanswered()) return false;
    return delivered(httpdown_reply(end(), status, raw.data(), raw.size(), body.data(), body.size()));
}

inline bool request::reply_text(int status, std::string_view text) {
    return reply(status, text, {{"content-type", "text/plain; charset=utf-8"}});
}

inline bool request::reply_owned(int status, std::string body, const std::vector<httpdown::header> &headers) {
    const auto raw = detail::to_c(headers);
    if (!unanswered()) return false;
    auto *kept = new std::string(std::move(body));
    return delivered(httpdown_reply_borrowed(
        end(), status, raw.data(), raw.size(), kept->data(), kept->size(),
        [](void *data) noexcept { delete static_cast<std::string *>(data); }, kept));
}

inline bool request::start(int status, const std::vector<httpdown::header> &headers) {
    const auto raw = detail::to_c(headers);
    return unanswered() && delivered(httpdown_reply_start(get(), status, raw.data(), raw.size()));
}

inline bool request::write(std::string_view data) {
    if (!unanswered()) return false;
    const int status = httpdown_reply_write(get(), data.data(), data.size());
    // The answer has no body: nothing that the program could have known before.
    if (status == HTTPDOWN_STATUS_ALREADY_REPLIED) return status_ = status, false;
    return delivered(status);
}

inline bool request::finish() { return unanswered() && delivered(httpdown_reply_finish(end())); }

/// Whether a call has succeeded; false if the client was the reason.
inline bool request::is_delivered(int status) {
    switch (status) {
    case HTTPDOWN_STATUS_GONE:
    case HTTPDOWN_STATUS_BAD_BODY:
    case HTTPDOWN_STATUS_KILLED:
    case HTTPDOWN_STATUS_TOO_LARGE: break;
    default: detail::check(status);
    }
    return status == HTTPDOWN_STATUS_OK;
}

inline bool request::delivered(int status) { return is_delivered(status_ = status); }

/// Whether it can still be answered.
inline bool request::unanswered() {
    if (!*this) detail::check(status_ = HTTPDOWN_STATUS_ALREADY_REPLIED);
    return static_cast<bool>(*this);
}

inline stop_report server_ref::stop() const {
    stop_begin();
    return wait();
}

inline stop_report server_ref::wait() const {
    stop_report report = detail::empty_report();
    const int status = httpdown_wait(handle_, HTTPDOWN_FOREVER, &report);
    return detail::checked(status, report);
}

inline std::optional<stop_report> server_ref::wait(milliseconds timeout) const {
    stop_report report = detail::empty_report();
    const int status = httpdown_wait(handle_, detail::to_ms(timeout), &report);
    if (status == HTTPDOWN_STATUS_WOULD_BLOCK) return std::nullopt;
    return detail::checked(status, report);
}

inline stop_report server_ref::report() const {
    stop_report report = detail::empty_report();
    const int status = httpdown_report(handle_, &report);
    detail::check(status);
    if (status != HTTPDOWN_STATUS_OK) report.status = status;
    return report;
}

inline std::string server_ref::local_addr(std::size_t index) const {
    char text[512] = "";
    detail::check(httpdown_local_addr(handle_, index, text, sizeof text));
    return text;
}

inline std::optional<request> server_ref::next(milliseconds timeout) const {
    httpdown_request *taken = nullptr;
    std::size_t count = 0;
    const int status = httpdown_next(handle_, detail::to_ms(timeout), &taken, 1, &count);
    if (status == HTTPDOWN_STATUS_STOPPED) return std::nullopt;
    if (status == HTTPDOWN_STATUS_WOULD_BLOCK) return request();
    detail::check(status);
    if (taken == nullptr) return std::nullopt;
    return request(taken);
}

inline int server_ref::queue_fd() const {
    int fd = -1;
    detail::check(httpdown_queue_fd(handle_, &fd));
    return fd;
}

inline int server_ref::event_fd() const {
    int fd = -1;
    detail::check(httpdown_event_fd(handle_, &fd));
    return fd;
}

inline std::optional<httpdown_event> server_ref::next_event(milliseconds timeout) const {
    httpdown_event event{};
    event.struct_size = sizeof event;
    const int status = httpdown_next_event(handle_, detail::to_ms(timeout), &event);
    if (status == HTTPDOWN_STATUS_STOPPED) return std::nullopt;
    if (status == HTTPDOWN_STATUS_WOULD_BLOCK) return event;
    detail::check(status);
    if (status != HTTPDOWN_STATUS_OK) return std::nullopt;
    return event;
}

inline mock_clock::mock_clock() {
    httpdown_clock *clock = nullptr;
    detail::check(httpdown_clock_new_mock(&clock));
    handle_.reset(clock);
}

inline void mock_clock::advance(milliseconds time) const {
    if (time.count() < 0) return detail::check(HTTPDOWN_STATUS_INVALID_ARGUMENT);
    detail::check(httpdown_clock_advance(get(), static_cast<std::uint64_t>(time.count())));
}

inline bool mock_clock::wait_for_timers(std::size_t count, milliseconds timeout) const {
    const int status = httpdown_clock_wait_for_timers(get(), count, detail::to_ms(timeout));
    if (status == HTTPDOWN_STATUS_WOULD_BLOCK) return false;
    detail::check(status);
    return status == HTTPDOWN_STATUS_OK;
}

namespace detail {

/// Starts a server; what it returns is nullptr if there is none.
inline const httpdown_server *serve(options &&from, int &status, std::string &what) {
    const c_options raw(std::move(from));
    httpdown_server *started = nullptr;
    char why[512] = "";
    status = httpdown_serve(raw.get(), &started, why, sizeof why);
    what = why;
    return started;
}

inline stop_report run(options &&from, int &status, std::string &what) {
    const c_options raw(std::move(from));
    stop_report report = empty_report();
    char why[512] = "";
    status = httpdown_run(raw.get(), &report, why, sizeof why);
    what = why;
    return report;
}

} // namespace detail

inline server::server(options options) {
    int status = HTTPDOWN_STATUS_OK;
    std::string what;
    handle_ = detail::serve(std::move(options), status, what);
    if (status != HTTPDOWN_STATUS_OK) detail::raise(error(status, what));
}

inline std::optional<server> server::start(options options, int &status, std::string *what) {
    std::string why;
    const httpdown_server *started = detail::serve(std::move(options), status, why);
    if (what != nullptr) *what = std::move(why);
    if (status != HTTPDOWN_STATUS_OK) return std::nullopt;
    return server(started);
}

inline server &server::operator=(server &&other) noexcept {
    server moved(std::move(other));
    std::swap(handle_, moved.handle_);
    return *this;
}

// What httpdown_serve has given was not const; only what callbacks get is.
inline server::~server() { httpdown_free(const_cast<httpdown_server *>(handle_)); }

inline stop_report run(options options) {
    int status = HTTPDOWN_STATUS_OK;
    std::string what;
    const auto report = detail::run(std::move(options), status, what);
    if (report.status == HTTPDOWN_STATUS_OK && status != HTTPDOWN_STATUS_OK) detail::raise(error(status, what));
    return detail::checked(status, report);
}

inline stop_report run(options options, int &status, std::string *what) {
    std::string why;
    const auto report = detail::run(std::move(options), status, why);
    if (what != nullptr) *what = std::move(why);
    return report;
}

} // namespace HTTPDOWN_FLAVOUR
} // namespace httpdown

#undef HTTPDOWN_FLAVOUR

#endif
