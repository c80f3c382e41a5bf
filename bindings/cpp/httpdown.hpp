/// httpdown for C++17: an HTTP server that stops without dropping a request.
///
///     int main() {
///         httpdown::options options;
///         options.addr = "127.0.0.1:8080";
///         options.handler = [](httpdown::request request) { request.reply_text(200, "Hello, World!"); };
///         httpdown::run(std::move(options)); // until SIGTERM or SIGINT
///     }
///
/// How to read this header. It is a thin layer over httpdown.h, which uses the same names and says more about each of
/// them.
///
///  1. A failure that a client can cause is a return value: `false`, or an empty optional, when the client has left or
///     was cut. `request::status` says what happened. A mistake in the program, or a lack of resources, throws a
///     httpdown::error.
///  2. A std::string_view that a request gives is borrowed until the request is destroyed or assigned to. The view
///     stays valid when the request is ended or moved. The library copies what you pass.
///  3. Any thread may call the const functions, several at once. Only one thread at a time may call the other functions
///     of an object.
///  4. Callbacks may throw. A handler's exception becomes a 500 (or a cut answer, if the answer had begun) and a line
///     for `on_log`. An exception of another callback becomes only the line.
///  5. Without exceptions (-fno-exceptions) nothing is thrown, and nothing aborts. A call that would have thrown
///     returns `false`, an empty optional, an empty text, -1, or a report; `request::status` and `stop_report::status`
///     say why. Then start a server by `server::start`, or by `run` with a status, and replace its certificates by
///     `tls_reload` with a status. A restart has a status, too.
///  6. Durations are rounded to what the library can count: milliseconds, up to 49 days. A longer duration means no
///     limit.
#ifndef HTTPDOWN_HPP
#define HTTPDOWN_HPP

#include <httpdown.h>

#include <unistd.h>

#include <algorithm>
#include <any>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <iterator>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

// A program may have files with exceptions and files without. The linker must not merge their functions.
#ifdef __cpp_exceptions
#define HTTPDOWN_FLAVOUR with_exceptions
#else
#define HTTPDOWN_FLAVOUR without_exceptions
#endif

namespace httpdown {
inline namespace HTTPDOWN_FLAVOUR {

using std::chrono::milliseconds;

/// As a timeout: no limit.
inline constexpr milliseconds forever = milliseconds::max();

/// As a length, for `request::reply_fd`: to the end of the file.
inline constexpr std::uint64_t to_end = HTTPDOWN_TO_END;

/// The counts of what a server has done, and of what its stop has cost: the struct of httpdown.h.
using stop_report = httpdown_stop_report;

/// A call has failed. `what()` says why in English: for example, what was wrong with an argument.
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

/// A header field, from a request (then its name is in lower case) or for an answer. Name and value are borrowed.
struct header {
    std::string_view name;
    std::string_view value;
};

/// What the TLS handshake of a connection has agreed on: `request::tls`. Views are borrowed from the request.
struct tls_info {
    /// The version of the protocol.
    httpdown_tls_version version = HTTPDOWN_TLS_1_2;
    /// Whether the session goes on from an earlier connection, by a ticket.
    bool resumed = false;
    /// The cipher suite, by its name in the IANA's registry: "TLS13_AES_256_GCM_SHA384".
    std::string_view cipher_suite{};
    /// The name that the client has asked for (SNI), in lower case; `data()` is nullptr if it has named none.
    std::string_view server_name{};
    /// The protocol that was agreed on (ALPN): "http/1.1" or "http/1.0"; `data()` is nullptr if the client has offered
    /// none.
    std::string_view alpn{};
    /// The client's certificate, which was verified, in DER; `data()` is nullptr if there is none. Then the next three
    /// say nothing.
    std::string_view client_certificate{};
    /// Its subject (RFC 4514): "CN=alice,O=Example".
    std::string_view client_subject{};
    /// Its alternative names (host names, addresses, mail addresses, URIs), one in each line. Their kinds are not told
    /// apart: if a mere host name must not pass for a mail address, for example, read `client_certificate`.
    std::string_view client_names{};
    /// The SHA-256 digest of `client_certificate`.
    std::array<std::uint8_t, 32> client_fingerprint{};
};

/// A callback, like a std::function. But the target may be move-only, like a lambda that has captured a
/// std::unique_ptr. A copy of a callback copies the target, or shares the target if it cannot be copied. Empty (false)
/// by default.
template <typename... Arguments>
class callback {
public:
    callback() noexcept = default;
    callback(std::nullptr_t) noexcept {}

    /// Takes anything that can be called with these arguments.
    template <typename Callable,
              typename = std::enable_if_t<std::is_invocable_v<std::decay_t<Callable> &, Arguments...> &&
                                          !std::is_same_v<std::decay_t<Callable>, callback>>>
    callback(Callable &&callable) : call_(copyable(std::forward<Callable>(callable))) {}

    /// Whether there is something to call.
    explicit operator bool() const noexcept { return static_cast<bool>(call_); }

    /// Calls the target. The callback must not be empty.
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

/// Returns all pairs of a query, or of the body of a form (application/x-www-form-urlencoded): names and values,
/// decoded, in their order. Never blocks.
std::vector<std::pair<std::string, std::string>> query_pairs(std::string_view query);

/// Decodes a part of a path: %20 is a space, + is a plus. Split a path at its slashes first. Never blocks.
std::string percent_decode(std::string_view encoded);

/// The content type of a file, by the extension of its name: "text/html; charset=utf-8"; "application/octet-stream" if
/// the extension says nothing. Only the name is looked at. Never blocks.
inline std::string_view content_type(const std::string &path) noexcept {
    const auto type = httpdown_content_type(path.c_str());
    return {type.data, type.len};
}

class server_ref;
struct tls_options;
namespace detail {
class reporter;
class c_options;
} // namespace detail

/// What became of a request. A record is borrowed: from the library until the callback `on_done` returns, or from an
/// event, until the thread takes the next event. Durations count from `began`; an empty optional: it has not come to
/// that.
class request_record {
public:
    using microseconds = std::chrono::microseconds;

    /// A record of the C interface, such as that of an event.
    explicit request_record(const httpdown_request_record *borrowed) noexcept : of_(borrowed) {}

    /// The struct of the C interface.
    const httpdown_request_record *get() const noexcept { return of_; }

    /// How the request has ended: its column in the report.
    httpdown_request_end end() const noexcept { return static_cast<httpdown_request_end>(of_->end); }

    /// The status of the answer; 0 if there was no answer.
    int status() const noexcept { return of_->status_code; }

    /// The version of HTTP times ten; 0 if a kill cut the request before its head was complete.
    int version() const noexcept { return of_->version; }

    /// Whether the connection has TLS.
    bool tls() const noexcept { return of_->tls != 0; }

    /// The number of the request's connection, the same as in `on_conn_state`.
    std::uint64_t conn_id() const noexcept { return of_->conn_id; }

    /// The number of the request on its connection, from 1.
    std::uint64_t number() const noexcept { return of_->number; }

    /// How many bytes of the request's body came before the end of the answer. Of a body in chunks, only those count
    /// that were read. The head does not count.
    std::uint64_t received() const noexcept { return of_->received; }

    /// How many bytes of the answer's body were given to the connection, without the head. If the request was not
    /// served, some of these bytes may not have left.
    std::uint64_t sent() const noexcept { return of_->sent; }

    /// When the first byte of the request came, by the machine's clock.
    std::chrono::system_clock::time_point began() const noexcept {
        return std::chrono::system_clock::time_point(
            std::chrono::duration_cast<std::chrono::system_clock::duration>(microseconds(of_->began_us)));
    }

    /// Until the head was complete.
    std::optional<microseconds> head() const noexcept { return known(of_->head_us); }

    /// Until the handler was called, or the request was taken from the queue.
    std::optional<microseconds> called() const noexcept { return known(of_->called_us); }

    /// Until the answer began: its head was given to the connection.
    std::optional<microseconds> answered() const noexcept { return known(of_->answered_us); }

    /// Until the kernel had the last byte of the answer.
    std::optional<microseconds> flushed() const noexcept { return known(of_->flushed_us); }

    /// Until it was seen that the client's kernel had acknowledged the last byte of the answer. Only a stop looks.
    std::optional<microseconds> acknowledged() const noexcept { return known(of_->acknowledged_us); }

    /// Until the end of the request was known.
    microseconds ended() const noexcept { return microseconds(of_->ended_us); }

    /// Whether the program had the request for longer than `handler_timeout`.
    bool overdue() const noexcept { return of_->overdue != 0; }

    /// The client's address.
    std::string_view peer() const noexcept { return view(of_->peer); }

    /// The method. Empty if a kill cut the request before its head was complete.
    std::string_view method() const noexcept { return view(of_->method); }

    /// The target, not decoded.
    std::string_view target() const noexcept { return view(of_->target); }

    /// The first Referer header; `data()` is nullptr if the request had none.
    std::string_view referer() const noexcept { return view(of_->referer); }

    /// The first User-Agent header; `data()` is nullptr if the request had none.
    std::string_view user_agent() const noexcept { return view(of_->user_agent); }

    /// What `request::set_data` has set last; nullptr if nothing.
    const std::any *data() const noexcept { return static_cast<const std::any *>(of_->data); }

    /// The record as a line in the Common Log Format, without a line end; httpdown_log_line tells the details.
    std::string common_log() const { return line(HTTPDOWN_LOG_COMMON); }

    /// The same line, followed by Referer and User-Agent in quotes.
    std::string combined_log() const { return line(HTTPDOWN_LOG_COMBINED); }

    /// The record as a JSON object in one line, without a line end.
    std::string json() const { return line(HTTPDOWN_LOG_JSON); }

private:
    static std::string_view view(httpdown_bytes bytes) noexcept { return {bytes.data, bytes.len}; }
    static std::optional<microseconds> known(std::int64_t us) noexcept {
        return us < 0 ? std::nullopt : std::optional<microseconds>(microseconds(us));
    }
    std::string line(int format) const;

    const httpdown_request_record *of_;
};

class stream;

/// A request, and the duty to answer it once. You may move a request to any thread and keep it; meanwhile the client
/// waits. If a request is destroyed without an answer, the client gets a 500; if it is destroyed after an answer has
/// begun, the client sees the answer cut.
///
/// A request is false when it has been ended or moved from. Then answering it, and reading its body, throws an error
/// with the status ALREADY_REPLIED. The head of an ended request can still be read (`method`, `path`, headers,
/// addresses): you may reply, and then log the path. A request that was moved from has nothing to read. One thread at a
/// time may use a request, except for `cancelled`, `overdue` and `wait_cancelled`.
class request {
public:
    request() noexcept = default;

    /// Takes over an owned request of the C interface: from httpdown_next, or after httpdown_request_defer.
    explicit request(httpdown_request *owned) noexcept : handle_(owned) {}

    /// Whether the request has still to be ended.
    explicit operator bool() const noexcept { return handle_ != nullptr; }

    /// The pointer for the C interface: borrowed. Also works for an ended request, to read it.
    httpdown_request *get() const noexcept { return handle_ ? handle_.get() : ended_.get(); }

    /// The method as the client sent it: "GET".
    std::string_view method() const noexcept { return view(httpdown_request_method(get())); }

    /// The target as the client sent it: mostly path and query, "/a%20b?c=d".
    std::string_view target() const noexcept { return view(httpdown_request_target(get())); }

    /// The path of the target, not decoded: "/a%20b".
    std::string_view path() const noexcept { return view(httpdown_request_path(get())); }

    /// The query after the question mark, not decoded: "c=d"; `data()` is nullptr if there is no question mark.
    std::string_view query() const noexcept { return view(httpdown_request_query(get())); }

    /// The decoded value of the first pair with this name in the query, "name=value&other=value"; an empty optional if
    /// there is no such pair. %20 and + are a space. The value may contain NULs, and need not be UTF-8. Throws error:
    /// INVALID_ARGUMENT if the name is nullptr.
    std::optional<std::string> query_value(const char *name) const;

    /// All pairs of the query, names and values, decoded, in their order.
    std::vector<std::pair<std::string, std::string>> query_pairs() const;

    /// The scheme by which the request came: "http", or, by TLS, "https".
    std::string_view scheme() const noexcept { return view(httpdown_request_scheme(get())); }

    /// The version of HTTP times ten: 10 or 11.
    int version() const noexcept { return httpdown_request_version(get()); }

    /// The value of the first header with this name, in upper or lower case; `data()` is nullptr if there is no such
    /// header.
    std::string_view header(const char *name) const noexcept { return view(httpdown_request_header(get(), name)); }

    /// All headers. Headers with the same name stand together, in the order in which they came.
    std::vector<httpdown::header> headers() const;

    /// The address from which the connection comes: "127.0.0.1:50000"; "unix:" for a Unix socket. If a header of the
    /// PROXY protocol says whose connection it is (`proxy_protocol_from`), this is the address in the header.
    std::string_view peer_addr() const noexcept { return view(httpdown_request_peer_addr(get())); }

    /// The server's address that the client connected to.
    std::string_view local_addr() const noexcept { return view(httpdown_request_local_addr(get())); }

    /// The address of the proxy that has connected, if a header of the PROXY protocol says whose connection it is;
    /// otherwise `data()` is nullptr.
    std::string_view proxy_addr() const noexcept { return view(httpdown_request_proxy_addr(get())); }

    /// The address of the client that has sent the request, as far as that is to be believed: as `trusted_proxies` say,
    /// or `peer_addr`. "192.0.2.1" or "2001:db8::1" if no port is known; "unknown", or a name that begins with an
    /// underscore, if they do not say the address.
    std::string_view client_addr() const noexcept { return view(httpdown_request_client_addr(get())); }

    /// How the client has asked, "http" or "https": as a trusted proxy says, or `scheme`.
    std::string_view client_scheme() const noexcept { return view(httpdown_request_client_scheme(get())); }

    /// The host that the client has asked for, perhaps with a port: as a trusted proxy says, or the field Host.
    std::string_view client_host() const noexcept { return view(httpdown_request_client_host(get())); }

    /// The process that has connected by a Unix socket, as the kernel knew it at the time of the connect; an empty
    /// optional if the client has connected in another way. Throws error.
    std::optional<httpdown_credentials> peer_credentials() const;

    /// What the TLS handshake of the request's connection has agreed on; an empty optional if the connection has no
    /// TLS. Throws error.
    std::optional<tls_info> tls() const;

    /// The number of the request's connection, the same as in `on_conn_state`.
    std::uint64_t conn_id() const noexcept { return httpdown_request_conn_id(get()); }

    /// The program's own data of the request: what `set_data` has set last; nullptr if nothing. Do not mix this with
    /// httpdown_request_set_data.
    std::any *data() const noexcept { return static_cast<std::any *>(httpdown_request_data(get())); }

    /// Sets the program's own data of the request, which `data` returns, and `on_done` finds in the record. The data is
    /// destroyed exactly once, on any thread: when other data is set, or when the request and its record do not live
    /// any more. Throws error: ALREADY_REPLIED after the request's end.
    void set_data(std::any data);

    /// The server that the request came to, for example to stop the server from a handler. Do not use the result after
    /// the request is ended and its handler has returned, unless you know that the server lives. A call after that
    /// gives an empty server_ref. A handler may run before the constructor of `server` has returned.
    server_ref server() const noexcept;

    /// Reads the next bytes of the body into `buffer`; blocks until there are some bytes, at most for the timeout.
    /// Returns their number, 0 at the end of the body. Returns an empty optional if no bytes have come in time (then
    /// `status` is WOULD_BLOCK), or if the client has left (GONE), broke the protocol (BAD_BODY; without an answer the
    /// client gets a 400), was too slow (TOO_SLOW; without an answer it gets a 408), has sent more than `max_body_size`
    /// (TOO_LARGE; without an answer it gets a 413), or was cut (KILLED). With a timeout of 0, any thread may make this
    /// call, and it never blocks. Throws error: WOULD_BLOCK without a timeout, with INLINE dispatch, if no bytes are
    /// there yet; INVALID_ARGUMENT if `size` is 0.
    std::optional<std::size_t> read(void *buffer, std::size_t size, milliseconds timeout = forever);

    /// The whole body, if it has at most `limit` bytes; blocks until the whole body is there, at most for the timeout.
    /// The optional is empty if the body is longer (then `status` is TOO_LARGE, and 413 is a good answer), or in the
    /// cases of `read`; after a timeout nothing is lost. Throws error: WOULD_BLOCK like `read`.
    std::optional<std::string_view> body(std::size_t limit, milliseconds timeout = forever);

    /// The trailer fields of the body. They are there when the end of the body has been read; before, and without any,
    /// there are none. Borrowed until the request is ended. Never blocks. Throws error: ALREADY_REPLIED after the end.
    std::vector<httpdown::header> trailers() const;

    /// Calls `tell` once, as soon as at least one of these things (httpdown_ready_kind, or-ed) has happened to the
    /// request, with all that have: HTTPDOWN_READABLE, HTTPDOWN_WRITABLE, HTTPDOWN_DRAINING, HTTPDOWN_OVERDUE, and
    /// HTTPDOWN_GONE, which is always told. What has happened before is told at once, so nothing is lost between two
    /// calls. This replaces an earlier call whose `tell` was not called. Never blocks.
    ///
    ///     void go_on() { // of a struct that has the request, and that the callback keeps alive
    ///         char bytes[8192];
    ///         const auto count = request.read(bytes, sizeof bytes, milliseconds(0));
    ///         if (!count && request.status() == HTTPDOWN_STATUS_WOULD_BLOCK)
    ///             request.notify(HTTPDOWN_READABLE, [self = shared_from_this()](std::uint32_t) { self->go_on(); });
    ///         ...
    ///     }
    ///
    /// `tell` runs on the thread that drives the connection, perhaps before `notify` has returned. It must not block:
    /// it may read and write with a timeout of 0, call `notify` again, or end the request. Meanwhile no other thread
    /// may use the request, but for `cancelled`, `overdue` and `wait_cancelled`. Nothing is told after the request has
    /// ended: whoever ends it waits until a `tell` that runs on another thread has returned. So do not hold a lock
    /// there that `tell` takes.
    ///
    /// `tell` is destroyed exactly once, on any thread: after its call, when it is not wanted any more, or when
    /// `notify` has failed. If it throws, this becomes a line for `on_log` (if the request came to a handler), and the
    /// request stays as it is. Returns true; without exceptions also false, like every call that would have thrown.
    /// Throws error: INVALID_ARGUMENT for unknown bits, ALREADY_REPLIED.
    bool notify(std::uint32_t wanted, callback<std::uint32_t> tell);

    /// Like `notify`, but what happens is told by the server's queue (QUEUE dispatch): `server_ref::next_item` gives it
    /// once, with `user_data`. Throws error: also INVALID_ARGUMENT if there is no queue.
    bool notify_queue(std::uint32_t wanted, void *user_data = nullptr);

    /// The result of the last call on this request that reads the body or answers: a httpdown_status. It says why that
    /// call returned `false` or an empty optional: GONE, BAD_BODY, TOO_SLOW, KILLED, TOO_LARGE, WOULD_BLOCK; without
    /// exceptions also the status that would have been thrown. OK before the first such call. Also works after the
    /// request has been ended.
    int status() const noexcept { return status_; }

    /// Whether an answer is useless by now: the client has left, the server was killed, or the answer is complete (an
    /// answer without a body is complete soon after `start`). Never blocks. Any thread may make this call, even while
    /// another thread uses the request, as long as nobody ends or moves the request.
    bool cancelled() const noexcept { return httpdown_request_cancelled(get()); }

    /// Whether the program has had the request for longer than `handler_timeout`. This is advice, and an answer is as
    /// useful as before: for a handler that computes, and would rather send a part of its result. It is also true while
    /// the handler blocks the thread that drives the connection. Never blocks. The thread rules are those of
    /// `cancelled`.
    bool overdue() const noexcept { return httpdown_request_overdue(get()); }

    /// Sleeps until an answer is useless (true), or until the timeout (false). The thread rules are those of
    /// `cancelled`.
    bool wait_cancelled(milliseconds timeout = forever) const;

    /// Answers, and ends the request. The library sets Content-Length and Date. Does not wait for the client. Returns
    /// whether the client can still get the answer. Throws error: INVALID_ARGUMENT for a status that is not from 200 to
    /// 999, or a malformed header (the client gets a 500).
    bool reply(int status, std::string_view body = {}, const std::vector<httpdown::header> &headers = {});

    /// Like `reply`, with a text as text/plain in UTF-8.
    bool reply_text(int status, std::string_view text);

    /// Like `reply`, but the body is moved, not copied. For large bodies.
    bool reply_owned(int status, std::string body, const std::vector<httpdown::header> &headers = {});

    /// Answers with bytes of an open file, and ends the request: `length` bytes from `offset` on. `fd` is taken over,
    /// and closed when it is needed no more, whatever becomes of this call; to keep it, give a copy (dup(2)). The file
    /// is read in pieces, when the client takes them. If it becomes shorter meanwhile, or cannot be read, the client
    /// sees the answer cut. Returns and throws like `reply`; INVALID_ARGUMENT also if `fd` is not a regular file that
    /// is open for reading, or does not have all these bytes; IO.
    bool reply_fd(int status, int fd, const std::vector<httpdown::header> &headers = {}, std::uint64_t offset = 0,
                  std::uint64_t length = to_end);

    /// Answers a GET or HEAD with a file, and ends the request: with all of it, or what the client asks for (ranges and
    /// conditions; ETag and Last-Modified are sent). httpdown.h says more, at httpdown_reply_file. A file that is not
    /// there is a 404, one that may not be read a 403: these are answers, too. The Content-Type is that of
    /// `content_type`, unless `headers` have another. Never make the path from a request's target without a check that
    /// it stays in its folder. Returns and throws like `reply`; IO and OUT_OF_RESOURCES if the file cannot be opened
    /// for another reason.
    bool reply_file(const std::string &path, const std::vector<httpdown::header> &headers = {});

    /// Like `reply_file`, for a file that is open already, and is taken over as in `reply_fd`. Its name is not known,
    /// so there is no Content-Type, unless `headers` have one.
    bool reply_open_file(int fd, const std::vector<httpdown::header> &headers = {});

    /// Begins an answer whose body follows in pieces. The body is chunked unless the headers have a Content-Length. The
    /// head is sent at once. Returns whether the client can still get the answer. Throws error: INVALID_ARGUMENT like
    /// `reply` (but nothing was sent, and the request is not ended), ALREADY_REPLIED.
    bool start(int status, const std::vector<httpdown::header> &headers = {});

    /// Sends more of the answer's body, as soon as the client takes it. Blocks while 256 KiB wait to be sent. Returns
    /// whether the client can still get the data; false if the answer has no body (to HEAD, or a 204, 205 or 304).
    /// Throws error: INVALID_ARGUMENT before `start` or beyond the Content-Length, WOULD_BLOCK with INLINE dispatch if
    /// there is no room for all of `data` (nothing was taken).
    bool write(std::string_view data);

    /// Sends as much of `data` as there is room for, and returns how many bytes that is; blocks until there is some
    /// room, at most for the timeout. 0: there was none (then `status` is WOULD_BLOCK), or `data` is empty. Write the
    /// rest again. Returns an empty optional where the other `write` returns false. With a timeout of 0, any thread may
    /// make this call, and it never blocks. Throws error: INVALID_ARGUMENT like the other `write`.
    std::optional<std::size_t> write(std::string_view data, milliseconds timeout);

    /// Sets the trailer fields of an answer that was begun, instead of those that were set before; `finish` sends them.
    /// They reach only a client that has asked for them (TE: trailers), and only those that the answer's header field
    /// Trailer has named, in an answer without a Content-Length. Never blocks. Returns true, like `notify`. Throws
    /// error: INVALID_ARGUMENT before `start` or for a malformed field, ALREADY_REPLIED.
    bool set_trailers(const std::vector<httpdown::header> &trailers);

    /// Ends an answer that was begun, and the request. Does not wait for the client. Returns whether the client can
    /// still get the whole answer. Throws error: INVALID_ARGUMENT before `start` (the client gets a 500).
    bool finish();

    /// Whether the client asks for another protocol on this connection (Upgrade), or for a tunnel (CONNECT).
    bool asks_for_upgrade() const noexcept { return *this && httpdown_request_asks_for_upgrade(get()); }

    /// Takes the connection over, and ends the request. The client gets a 101 with these headers, which must have the
    /// field Upgrade, or, to CONNECT, a 200. What the client has sent behind its request is not lost: the stream begins
    /// with it. A stop waits until the stream is closed: HTTPDOWN_DRAINING (`stream::notify`) tells that it should be.
    /// The stream is empty if the client has left, or was cut. Throws error: INVALID_ARGUMENT (also if the client asks
    /// for no upgrade; it gets a 500), ALREADY_REPLIED.
    stream upgrade(const std::vector<httpdown::header> &headers = {});

    /// Ends the request now, like its destructor: with a 500, or a cut answer. Does nothing if the request has been
    /// ended.
    void abort() noexcept {
        if (*this) httpdown_reply_abort(end());
    }

private:
    friend class detail::c_options;
    request(httpdown_request *owned, std::shared_ptr<detail::reporter> reporter) noexcept
        : handle_(owned), reporter_(std::move(reporter)) {}

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
    bool came(int status, std::uint32_t timeout_ms);
    bool asked(int status);

    /// Gives the request to the call that ends it. There must be a request. From now on the request may only be read.
    httpdown_request *end() noexcept {
        // Without this, the C interface would free the head, too. If this fails, as in a forked child, there is no head
        // to read.
        if (httpdown_request_retain(get()) == HTTPDOWN_STATUS_OK) ended_.reset(get());
        return handle_.release();
    }

    std::unique_ptr<httpdown_request, aborter> handle_{};
    /// The request after its end. Only one of the two pointers is set.
    std::unique_ptr<httpdown_request, releaser> ended_{};
    /// Who is told of exceptions; nobody, if the request did not come to a handler.
    std::shared_ptr<detail::reporter> reporter_{};
    int status_ = HTTPDOWN_STATUS_OK;
};

/// A connection that was taken over: `request::upgrade`. Any thread may use it, several at once; so one thread can
/// read while another one writes. Only moving and closing it are for one thread alone. The time limits for requests do
/// not apply to it. A kill resets it. The destructor closes the connection.
///
/// `read`, `write` and `shutdown` return a httpdown_status: OK; WOULD_BLOCK if the time has passed, or the thread
/// drives connections and must not wait; GONE if the connection has failed; KILLED. Throws error for all others. With a
/// timeout of 0, any thread may make these calls, and they never block.
class stream {
public:
    stream() noexcept = default;

    /// Takes over a stream of the C interface.
    explicit stream(httpdown_stream *owned) noexcept : handle_(owned) {}

    /// Whether there is a connection.
    explicit operator bool() const noexcept { return handle_ != nullptr; }

    /// The pointer for the C interface: borrowed.
    httpdown_stream *get() const noexcept { return handle_.get(); }

    /// Reads the next bytes into `buffer`, and sets `count` to their number; 0 is the end.
    int read(void *buffer, std::size_t size, std::size_t &count, milliseconds timeout = forever) const;

    /// Sends all of `data`. On a thread that drives connections, it may take a part and return OK: use the other one.
    int write(std::string_view data) const;

    /// Sends as much of `data` as there is room for, and sets `taken` to how many bytes that is: at least one, if there
    /// are any. Write the rest again.
    int write(std::string_view data, std::size_t &taken, milliseconds timeout) const;

    /// Says that no more bytes follow, when all that was written is sent. The client's bytes can still be read.
    int shutdown(milliseconds timeout = forever) const;

    /// Calls `tell` once, as soon as at least one of these things (httpdown_ready_kind, or-ed) has happened, with all
    /// that have; like `request::notify`. HTTPDOWN_GONE tells only of a kill: that the client has left shows when the
    /// stream is read. `tell` may close the stream. What it throws is told to nobody.
    void notify(std::uint32_t wanted, callback<std::uint32_t> tell) const;

    /// Like `notify`, but what happens is told by the server's queue (QUEUE dispatch): `server_ref::next_item` gives it
    /// with this `user_data`. Throws error: INVALID_ARGUMENT if there is no queue.
    void notify_queue(std::uint32_t wanted, void *user_data = nullptr) const;

    /// The socket, for those who read and write it by themselves: it belongs to the stream. Waits until the answer has
    /// left. Throws error: UNSUPPORTED with TLS, or if bytes that have come before were not read yet.
    int fd(milliseconds timeout = forever) const;

    /// Closes the connection; does not wait for the client. What was written is sent, and reaches a client that still
    /// sends: the connection ends like after a last answer (`linger_timeout`), and a stop waits for that.
    void close() noexcept { handle_.reset(); }

private:
    struct closer {
        void operator()(httpdown_stream *stream) const noexcept { httpdown_stream_free(stream); }
    };
    static int checked(int status);

    std::unique_ptr<httpdown_stream, closer> handle_{};
};

/// What `server_ref::next_item` takes from the queue.
struct item {
    /// A request that has come; empty if something has happened to a request that was taken before, or to a stream.
    httpdown::request request{};
    /// The `user_data` of `request::notify_queue` or `stream::notify_queue`, by which the program finds that request or
    /// stream.
    void *user_data = nullptr;
    /// What has happened (httpdown_ready_kind, or-ed); HTTPDOWN_NEW if a request has come, 0 at the timeout.
    std::uint32_t ready = 0;
};

/// How the program is restarted: `server_ref::restart`. A field that you do not set means the default.
struct restart_options {
    /// The file that is executed: an absolute path. Default: the one that this process was started from. Its path is
    /// looked up anew, so a link that leads elsewhere now, or a file that was replaced, means the new version.
    std::string program{};
    /// The arguments; the first one is the program's name. Default: those of this process.
    std::vector<std::string> args{};
    /// The environment, as texts of the form NAME=VALUE, without what a restart itself needs. Default: the one that
    /// this process was started with.
    std::optional<std::vector<std::string>> env{};
    /// The working directory: an absolute path. Default: the one that this process was started in.
    std::string directory{};
    /// How long the new process may take until it serves all sockets. Default: 1 minute. In real time.
    std::optional<milliseconds> ready_timeout{};
    /// How long both processes accept, once the new one is ready. If the new one dies within this time, this one goes
    /// on. Default: 3 seconds. In real time.
    std::optional<milliseconds> probation{};
    /// A restart is refused (BUSY) while so many earlier processes still drain, because each of them holds memory. 0:
    /// 8.
    std::uint32_t max_predecessors = 0;
    /// A socket that the new process does not listen on any more is stopped like in a stop, without a loss. Otherwise
    /// it makes the restart fail, because it is a mistake more often than not. With this setting the new process must
    /// call `restart_ready` when all its servers serve, or `run_ready`, as `run` does.
    bool drop_unclaimed = false;
    /// The new process also gets the descriptors of this one that are not close-on-exec, with their numbers. They must
    /// be out of the way of the sockets, which have the numbers from 3 on: otherwise the restart fails.
    bool keep_fds = false;
    /// The new process writes to this one's standard error at once. Otherwise it gets a pipe until it is ready, so that
    /// what it says of its failure is in the error of the restart, too. A program that looks at its start whether that
    /// is a terminal, or the journal (JOURNAL_STREAM), sees the pipe.
    bool plain_stderr = false;
    /// In `options::restart`: SIGHUP restarts the program, too. Not together with `reload_on_hup`.
    bool on_hup = false;
    /// In `options::restart`: SIGUSR2 does what it does without httpdown.
    bool no_signal = false;
    /// A file that has the process ID of the program: an absolute path. A restart replaces it when the new process has
    /// proved itself. The first process's file is written by the program, or by whoever starts it. A symbolic link is
    /// replaced by a file. Default: none.
    std::string pid_file{};
    /// Says why there must be no restart now; an empty text means that it may begin. An exception refuses it, too.
    /// Called on the restart's own thread, before the new process is started.
    std::function<std::string()> before{};
    /// Is told how a restart that has begun has ended: OK or RESTART_FAILED, why, and the process that has taken over
    /// (0 if it has failed). Called on the restart's own thread, and before `restart` returns. Must not wait for the
    /// stop of the servers, which has begun then. What it throws is told to nobody.
    callback<int, std::string_view, std::uint32_t> on_restart{};
};

/// What is known of the restarts of this program: `restart_info`.
struct restarts {
    /// Where this process is in a restart.
    httpdown_restart_state state = HTTPDOWN_RESTART_IDLE;
    /// How many restarts led to this process.
    std::uint64_t generation = 0;
    /// The new process, from its start on; 0 if there is none.
    std::uint32_t successor_pid = 0;
    /// The earlier processes that have not ended, the youngest first.
    std::vector<std::uint32_t> predecessors{};
};

/// Returns what is known of the restarts of this program. Never blocks. Any thread may call it. Throws error: FORKED.
restarts restart_info();

/// Says that this process has started all its servers, if it was started by a restart. That is needed only with
/// `restart_options::drop_unclaimed`; otherwise the process is ready as soon as it serves all sockets that it was
/// given. Call it anyway to be told at once of a socket that was forgotten. It also tells systemd that the servers are
/// the service; `run` does so by itself. Does nothing after the first call that has succeeded. Returns true. Never
/// blocks. Throws error: RESTART_FAILED if a socket is not served, or no server was started (the restart has failed, and
/// this process is ended); INVALID_ARGUMENT if no server was started, in a process that was not started by a restart;
/// FORKED.
bool restart_ready();

/// Says what `run` says when its servers serve: that they are the service. For a program that waits for its signals
/// itself. Like `restart_ready`, but other threads may start more servers later: a socket that is not served yet is no
/// error; with `restart_options::drop_unclaimed` it is closed. Returns true. Throws what `restart_ready` throws, but for
/// such sockets.
bool run_ready();

/// Leaves it to the program to talk with systemd (`sd_notify`). Call it before the first server is started.
inline void no_notify() noexcept { httpdown_no_notify(); }

/// A reference to a server that somebody else owns; callbacks get one. Cheap to copy. It must not outlive the server.
///
/// Any thread may call the functions, several at once. Unless a function says more, it throws error only in a child
/// that was forked while the server existed (FORKED), or if the reference is empty (INVALID_ARGUMENT).
class server_ref {
public:
    explicit server_ref(const httpdown_server *server = nullptr) noexcept : handle_(server) {}

    /// For the C interface: borrowed.
    const httpdown_server *get() const noexcept { return handle_; }

    /// Stops the server: it takes no new connections and finishes the open requests; then this call returns the counts.
    /// Blocks, at most for lame_duck + stop_timeout + kill_timeout. Other callers, at this time or later, get the same
    /// counts.
    ///
    /// Throws stop_error if the server did not end well. Throws error with WOULD_DEADLOCK in a handler or another
    /// callback, and on a thread that holds a request of the queue (the stop has begun nevertheless; call `stop_begin`
    /// there instead).
    stop_report stop() const;

    /// Begins the stop, and returns at once. A second call does nothing. May be called anywhere, even in a signal
    /// handler.
    void stop_begin() const noexcept { httpdown_stop_begin(handle_); }

    /// Goes straight to the kill, whether a stop has begun or not. Otherwise like `stop_begin`.
    void kill_begin() const noexcept { httpdown_kill_begin(handle_); }

    /// Waits until the server has ended completely, no matter who has stopped it. Throws like `stop`.
    stop_report wait() const;

    /// Like `wait`, but waits at most for the timeout. After the timeout the optional is empty.
    std::optional<stop_report> wait(milliseconds timeout) const;

    /// The counts as they are now. Never blocks.
    stop_report report() const;

    /// The server's phase. Never blocks.
    httpdown_phase_code phase() const noexcept { return static_cast<httpdown_phase_code>(httpdown_phase(handle_)); }

    /// Whether new requests are welcome, for a readiness probe: false from the moment when a stop is asked for. Never
    /// blocks; may be called anywhere, even in a signal handler. With the option `ready_path`, the server answers this
    /// by HTTP.
    bool ready() const noexcept { return httpdown_ready(handle_); }

    /// The address that the server listens on: "127.0.0.1:8080". `index` counts the listening sockets, `fds` first.
    /// Never blocks. Throws error: INVALID_ARGUMENT if there is no such socket.
    std::string local_addr(std::size_t index = 0) const;

    /// From now on, new connections get these certificates and keys, and these checks of clients; open connections keep
    /// theirs. All of it is checked first, and changes together or not at all. `handshake_timeout` and `handshakes`
    /// stay as they were when the server began. So do ticket keys, unless `tls` has some. Blocks only to read the
    /// files. Throws error, with the reason as text: TLS if something cannot be used, INVALID_ARGUMENT, IO or
    /// PERMISSION_DENIED if a file cannot be read, UNSUPPORTED if the server does not speak TLS. Then nothing has
    /// changed.
    void tls_reload(const tls_options &tls) const;

    /// Like the other `tls_reload`, but throws nothing (except std::bad_alloc). Returns whether the settings were
    /// replaced. `status` is OK or the reason, and `*what` is the reason as text (unless `what` is nullptr).
    bool tls_reload(const tls_options &tls, int &status, std::string *what = nullptr) const;

    /// The same with the settings that the server has, whose files are read again: for certificates that were renewed
    /// in their places. What is in memory stays as it is. The log then says what came of it, too. The option
    /// `reload_on_hup` has `run` do this on SIGHUP. Also UNSUPPORTED if nothing is from files.
    void tls_reload() const;
    bool tls_reload(int &status, std::string *what = nullptr) const;

    /// Restarts the program without a loss: starts it as a new process, which takes over the listening sockets of all
    /// servers of this process, and returns its process ID when it has. Then all these servers stop; the report of
    /// `wait` has `successor_pid`. If the new process ends or hangs before, it is ended, and this one goes on as before:
    /// it has never ceased to accept. httpdown.h says more, at httpdown_restart.
    ///
    /// Blocks for as long as the new process needs, at most about ready_timeout + probation. Any thread may make this
    /// call, also in a handler, but with INLINE dispatch the handler's thread serves nobody meanwhile: use
    /// `restart_begin`. Throws error, with the reason as text: RESTART_FAILED, BUSY, STOPPED if a stop was asked for,
    /// UNSUPPORTED where a restart cannot work (the first process of a container, a service of systemd that is not of
    /// Type=notify), INVALID_ARGUMENT, OUT_OF_RESOURCES.
    std::uint32_t restart(restart_options options = {}) const;

    /// Like the other `restart`, but throws nothing (except std::bad_alloc). `status` is OK or the reason, and `*what`
    /// is the reason as text (unless `what` is nullptr). Returns 0 if it has failed.
    std::uint32_t restart(restart_options options, int &status, std::string *what = nullptr) const;

    /// Like `restart`, but returns as soon as the restart has begun; `on_restart` and the log are told how it ends.
    /// Returns true. Throws error: BUSY and the others, except RESTART_FAILED.
    bool restart_begin(restart_options options = {}) const;

    /// Takes a request from the queue (QUEUE dispatch). Waits for a request at most for the timeout:
    ///
    ///     while (auto request = server.next()) request->reply_text(200, "Hello, World!");
    ///
    /// The optional is empty when no request can come any more. At the timeout, the optional has an empty request. As
    /// long as the request is not ended, this thread must not wait for the server to stop. Throws error:
    /// INVALID_ARGUMENT if there is no queue.
    std::optional<request> next(milliseconds timeout = forever) const;

    /// Like `next`, and also takes what has happened to requests that were taken before (`request::notify_queue`), and
    /// to streams (`stream::notify_queue`). So one thread, or one event loop, serves any number of slow clients:
    ///
    ///     while (auto item = server.next_item())
    ///         if (item->ready == HTTPDOWN_NEW) begin(std::move(item->request)); // keeps it
    ///         else if (item->ready != 0) static_cast<connection *>(item->user_data)->go_on(item->ready);
    ///
    /// The optional is empty when no request can come any more, and nothing that was asked for can happen any more. At
    /// the timeout, and now and then in vain, the item's `ready` is 0. Nothing is told of a request that has ended. An
    /// event may come out on any thread that makes this call; from then on, this thread uses the request, and not the
    /// one that had it before. Throws error: INVALID_ARGUMENT if there is no queue.
    std::optional<item> next_item(milliseconds timeout = forever) const;

    /// A descriptor for your own event loop, readable while items wait in the queue, and after the end. The descriptor
    /// belongs to the server. Never blocks. Throws error: INVALID_ARGUMENT if there is no queue, OUT_OF_RESOURCES.
    int queue_fd() const;

    /// A descriptor for your own event loop, readable while events wait for `next_event`. It is also readable after the
    /// end, when `wait` does not wait any more, even without the option `pull_events`. The descriptor belongs to the
    /// server. With this descriptor and `queue_fd`, one thread can serve and stop: httpdown.h says how, at
    /// httpdown_event_fd. Never blocks. Throws error: OUT_OF_RESOURCES.
    int event_fd() const;

    /// Takes the oldest event (the option `pull_events`). Waits for an event at most for the timeout. The optional is
    /// empty when the server has ended and all events were taken. At the timeout, the event's `kind` is 0. Throws
    /// error: INVALID_ARGUMENT without that option.
    std::optional<httpdown_event> next_event(milliseconds timeout = forever) const;

protected:
    bool reload(const httpdown_tls *tls, int &status, std::string *what) const;

    const httpdown_server *handle_;
};

/// A clock for tests. Its time stands still until you move it, so a test of a stop need not wait for timeouts. Movable.
/// Any thread may use the clock.
class mock_clock {
public:
    /// Makes a clock whose time is zero. Throws error.
    mock_clock();

    /// Moves the clock's time forward, and fires the timers that are due by then. Does not wait for the effects of
    /// these timers.
    void advance(milliseconds time) const;

    /// Blocks until `count` timers are set; false at the timeout, which is in real time.
    bool wait_for_timers(std::size_t count, milliseconds timeout = forever) const;

    /// For the C interface: borrowed.
    const httpdown_clock *get() const noexcept { return handle_.get(); }

private:
    struct freer {
        void operator()(httpdown_clock *clock) const noexcept { httpdown_clock_free(clock); }
    };

    std::unique_ptr<httpdown_clock, freer> handle_{};
};

/// A certificate chain and its private key, in PEM. Each of the two is in a file, or in memory: set one of these. One
/// file may hold both: then give its name twice. (Only if both are in files, they can be read again.) The chain begins
/// with the server's own certificate; each certificate was issued by the next. httpdown.h says which keys can be used;
/// the key is not encrypted.
struct certificate {
    /// The file with the chain.
    std::string cert_file{};
    /// The file with the key.
    std::string key_file{};
    /// The chain, if it is in memory.
    std::string cert{};
    /// The key, if it is in memory.
    std::string key{};
};

/// How a server speaks TLS: the option `tls`. A field that you do not set means the default. The files are read before
/// the call returns that gets these settings.
struct tls_options {
    /// The server's certificate: see `certificate`. It is for all names that none of `more` has, and for clients that
    /// name none.
    std::string cert_file{};
    /// The file with its key.
    std::string key_file{};
    /// The certificate, if it is in memory.
    std::string cert{};
    /// The key, if it is in memory.
    std::string key{};
    /// More certificates: chosen for clients that ask for one of their names (SNI), an exact one rather than one with a
    /// wildcard. A name may have several, with keys of different types: a client gets one whose signatures it can
    /// check, and ECDSA rather than RSA.
    std::vector<certificate> more{};
    /// Whether clients are asked for certificates. If they are, `ca` or `ca_file` is required.
    httpdown_client_auth client_auth = HTTPDOWN_CLIENT_AUTH_NONE;
    /// The oldest version of TLS that clients may use. Default: TLS 1.2.
    std::optional<httpdown_tls_version> min_version{};
    /// The PEM file with the CA certificates, one of which must have issued a client's certificate.
    std::string ca_file{};
    /// The CA certificates, if they are in memory.
    std::string ca{};
    /// The PEM file with revocation lists. Once there are lists, each certificate of a client's chain needs one from
    /// its issuer.
    std::string crl_file{};
    /// The revocation lists, if they are in memory.
    std::string crl{};
    /// The keys of session tickets, 48 bytes each, all of them random: the first encrypts, all decrypt, at most 16.
    /// Servers with the same keys resume each other's sessions, so that after a restart clients need no full
    /// handshakes. Replace them now and then, by `tls_reload`. Default: keys of the server's own, a new one every 6
    /// hours.
    std::string ticket_keys{};
    /// How long a handshake may take, from the moment when the connection was accepted. Default: 10 seconds.
    std::optional<milliseconds> handshake_timeout{};
    /// How many handshakes may be under way, from the end of the client's first message. Others wait for their turn. 0:
    /// 10,000.
    std::uint32_t handshakes = 0;
};

/// The settings of a server. A field that you do not set means the default, which httpdown.h tells. You may use the
/// same options for several servers. Each server has its own copy of the callbacks (but see `callback`). The copy is
/// destroyed when the server's last callback has returned: on any thread, and at the latest when the server is
/// destroyed (except if a handler never returns).
struct options {
    /// Called with the key and the value.
    using stat = callback<std::string_view, double>;

    /// The addresses to listen on, separated by commas: HOST:PORT (":8080" is every address; with port 0 the kernel
    /// chooses the port), or a Unix socket ("unix:/run/app.sock?mode=0660&group=www-data", "unix:@name"), or a socket
    /// that systemd has passed to the program, by its address or by its name ("fd:web"). httpdown.h has the details.
    /// Empty: ":80" (with `tls`: ":443"), or nothing if there are `fds`.
    std::string addr{};
    /// Descriptors of sockets that already listen: TCP or Unix stream sockets. The server owns them after it has
    /// started; if it does not start, you still own them.
    std::vector<int> fds{};
    /// The sockets of `fds` outlive this server (systemd, or workers that are restarted one by one). The process that
    /// keeps a socket must go on accepting, or waiting clients are reset. A stop leaves the connections that wait in
    /// the queues of the `fds` to the other processes.
    bool fds_shared = false;

    /// TLS on every connection. A client that speaks HTTP without TLS then gets a 400, in plain text. Not set: no TLS.
    std::optional<tls_options> tls{};

    /// For `run`: how SIGUSR2 restarts the program. Not set: it does so with all defaults, if its action is the default
    /// one, which would end the program. `on_restart` is told of each restart. If several servers run together, that of
    /// the first one counts; the others must not have one.
    std::optional<restart_options> restart{};

    /// Answers a request now, or moves the request elsewhere and answers later. Called from several threads at once. It
    /// may block, unless dispatch is INLINE. Required, but not with QUEUE dispatch.
    callback<request> handler{};
    /// How requests reach the program.
    httpdown_dispatch dispatch = HTTPDOWN_DISPATCH_POOL;
    /// The maximum number of threads in the pool. 0: 512.
    std::uint32_t pool_threads = 0;

    /// For a monitoring system; httpdown.h lists the keys. These and the next four callbacks are called on the events
    /// thread, one at a time. A slow callback delays only later events. (listen.error comes while the server is made.)
    stat bump_avg{}, bump_sum{}, bump_histogram{}, bump_time{};
    /// A connection, by its number, has changed its state. The text is the client's address.
    callback<server_ref, std::uint64_t, httpdown_conn_state, std::string_view> on_conn_state{};
    /// The server has entered a phase, SERVING included.
    callback<server_ref, httpdown_phase_code> on_phase{};
    /// A message for a person; the library itself prints nothing. Also called on the thread of a callback that has
    /// thrown, but never twice at once. Exceptions that on_log throws are lost.
    callback<httpdown_log_level, std::string_view> on_log{};
    /// A request has ended, for an access log: `std::cout << record.combined_log() << '\n'`. Every request of the
    /// report is told exactly once, unless events are dropped; httpdown.h tells the details. Without this callback,
    /// nothing is noted for it.
    callback<const request_record &> on_done{};
    /// The kinds of event (httpdown_event_kind, or-ed) that the program takes with `next_event`. Excludes the callbacks
    /// for events above.
    std::uint32_t pull_events = 0;

    /// For tests: the clock for the stop, kill and lame-duck timers. All other durations are in real time, including
    /// `idle_grace`. Needed only until the server has started.
    const mock_clock *clock = nullptr;
    // options: begin fields (made from src/options.toml by `make options`)
    /// How long a stop waits for open requests to finish before it kills, counted from the end of the lame duck. Once
    /// half of this time has passed, or 30 seconds, responses say Connection: close even to a client that has already
    /// sent more requests, because a client that never stops pipelining would otherwise never come to its end. Default:
    /// 1 minute.
    std::optional<milliseconds> stop_timeout{};
    /// How long a kill waits for the handlers of cut requests to return, before it abandons these handlers. The end of
    /// the server waits as long, but at least a second and in real time, for the program's other code on the server's
    /// threads (destructors, for example). Default: 1 minute.
    std::optional<milliseconds> kill_timeout{};
    /// How long a stop still accepts connections. During this time `ready` is false and responses say Connection:
    /// close, so that load balancers and clients go elsewhere. Default: no time.
    std::optional<milliseconds> lame_duck{};
    /// How long a request's head may take, from its first byte to its last. After this time the client gets a 408, and
    /// the connection is closed. Default: 30 seconds.
    std::optional<milliseconds> header_timeout{};
    /// The number of threads that drive connections. Default: one for each processor that the process may use.
    std::uint32_t io_threads = 0;
    /// How long a stop leaves an idle connection (between two requests) open, so that a request that is already on its
    /// way is served, and answered with Connection: close. Set more than the round trip to the clients. The time starts
    /// when the client's kernel has the last answer. A new connection gets 4.5 seconds more for each retransmission
    /// that its handshake needed, because its client would repeat a lost request that late. Default: 1 second.
    std::optional<milliseconds> idle_grace{};
    /// How long a stop still accepts connections whose handshake had begun before. This time ends as soon as there are
    /// no such connections. It is a part of `stop_timeout`. The default gives a handshake that lost a segment two more
    /// chances (retransmissions come after 1 s and 3 s). Default: 4 seconds.
    std::optional<milliseconds> quiesce_timeout{};
    /// How long a connection that the server has closed waits for the client to close its side. Without this wait, a
    /// reset could destroy the bytes that were sent last. If a client has not acknowledged everything that was sent to
    /// it, a stop waits longer, up to `stop_timeout`. Default: 2 seconds.
    std::optional<milliseconds> linger_timeout{};
    /// A path, such as "/healthz", that the server answers itself, even when all handlers are busy: with 200 while
    /// `ready` is true, then with 503. The methods are GET, HEAD and OPTIONS; others get 405. The server compares this
    /// path with the path of a request's target byte for byte, without the query. Such a request counts like any other
    /// in the report. The path begins with "/", the rest is visible ASCII, without a query. Default: no path.
    std::string ready_path{};
    /// The minimum duration of the lame duck, even if no requests come (`lame_duck_quiet`). Set the time that a load
    /// balancer needs to notice: the interval of its checks, times the number of failures that it waits for. At most
    /// `lame_duck`. Default: no time.
    std::optional<milliseconds> lame_duck_min{};
    /// Ends the lame duck early when no request has come for this time, because then nobody sends requests here any
    /// more. Requests for `ready_path` do not count, nor do connections without a request. At most `lame_duck`.
    /// Default: never early.
    std::optional<milliseconds> lame_duck_quiet{};
    /// How long a connection may be without a request while the server serves: between two requests, or before the
    /// first. Then the server closes the connection, at most one second later. Not 0. By default there is no limit,
    /// because a request may be on its way while the server closes; then this request is lost (`raced` in the report).
    /// To avoid that, set more than the clients' own timeout (for example, a load balancer's timeout for idle
    /// connections), or tell the clients: `keep_alive_header`. Default: no limit.
    std::optional<milliseconds> idle_timeout{};
    /// True: responses announce the idle timeout, "Keep-Alive: timeout=N", so that clients that know this field close
    /// an idle connection before the server does. N is `idle_timeout` minus `idle_grace`, so that a request that was
    /// sent at the last moment still comes in time. N is in whole seconds, and at least 1. The field is not added when
    /// the connection ends, nor to a response that has its own Connection or Keep-Alive field. Default: false.
    bool keep_alive_header = false;
    /// For `run`: how long after the first signal another signal counts as the second, which goes straight to the kill;
    /// and how long after the second, as the third. A signal that comes sooner is taken for a repetition: a process
    /// manager signals the whole group, and a wrapper in the group forwards the signal, too. 0: at once; `forever`:
    /// never. If several servers run together, the longest of their times counts for all. Default: 500 milliseconds.
    std::optional<milliseconds> second_signal{};
    /// True: the sockets of `addr` have SO_REUSEPORT, so that several processes of the same user can each listen there
    /// with their own socket. The kernel spreads new clients over these sockets. A stop makes the kernel send new
    /// clients to the other sockets before it closes its own. So workers can be restarted one by one, and no client is
    /// lost. All processes that listen there must set this option, and none of them is told any more that the address
    /// is in use. It does not apply to `fds`, nor to inherited sockets: their creator sets SO_REUSEPORT. Default:
    /// false.
    bool reuse_port = false;
    /// True: for `run`: SIGHUP reads the files of `tls` again (certificates, keys, CAs, revocation lists), and new
    /// connections get what was read. If anything cannot be used, all stays as it was, and the log says why. By
    /// default, SIGHUP does what it did before, so it mostly ends the program. Needs `tls`, with at least one file.
    /// Default: false.
    bool reload_on_hup = false;
    /// How long a client may keep those waiting who read its request's body. Bytes give it time back, a second for each
    /// `least_rate` bytes, but never more than this time in all. So a client that sends nothing is cut after this time,
    /// and one that sends slowly, but at that rate, is not. Only the time counts in which somebody waits for the body.
    /// Then reading fails with TOO_SLOW, the client gets a 408 if no answer has begun, and the connection is closed.
    /// Not 0. Default: 30 seconds.
    std::optional<milliseconds> body_timeout{};
    /// How long a client may leave its answer untaken, when the kernel can hold no more of it. Bytes that the client's
    /// kernel acknowledges give it time back, as for `body_timeout`. Then the connection is reset, and writing fails
    /// with TOO_SLOW. Not 0. Default: 30 seconds.
    std::optional<milliseconds> write_timeout{};
    /// How many bytes a second a client must send of a body, or take of an answer, so that it is not cut by
    /// `body_timeout` or `write_timeout`. Default: 240.
    std::uint32_t least_rate = 0;
    /// A request whose body is known to be shorter than so many bytes reaches its handler when the body is there, so
    /// that a slow client occupies no handler. Longer ones, those in chunks, and those that the client sends only when
    /// it is asked (Expect: 100-continue) reach it at once. At most 16 MiB. Default: 65,536.
    std::uint32_t body_buffer = 0;
    /// How many requests a second are told that the server drains, of those that have asked to be told. So the clients
    /// of many endless answers do not all connect elsewhere at once. All are told before half of `stop_timeout` has
    /// passed. Default: 1,000.
    std::uint32_t drain_rate = 0;
    /// The peers that must begin each connection with a header of the PROXY protocol, version 1 or 2, which says whose
    /// connection it is: IP addresses and networks with commas between them, and "unix:" for all clients of Unix
    /// sockets ("10.0.0.0/8, unix:"). The client's address of such a connection is the one in the header, and so is the
    /// server's. The header comes before TLS, within `header_timeout`. Without it the connection is closed, and the log
    /// says so. From other peers, such a header is no more than a malformed request. Default: nobody.
    std::string proxy_protocol_from{};
    /// The proxies whose fields in a request's head are believed, as a list like that of `proxy_protocol_from`. Such
    /// fields say for whom a request was forwarded: `request::client_addr`. Who asks the server directly could send the
    /// same fields, so believe only proxies that set them, or remove them. Default: nobody.
    std::string trusted_proxies{};
    /// The fields that `trusted_proxies` set. "x-forwarded": X-Forwarded-For, X-Forwarded-Proto and X-Forwarded-Host,
    /// which most proxies set; "forwarded": Forwarded (RFC 7239); "x-real-ip": X-Real-IP. No others are believed,
    /// because a proxy passes on what it does not know as the client has sent it. Default: x-forwarded.
    std::string forwarded_by{};
    /// The maximum size of a request's body in bytes. If the head announces more, the client gets a 413 at once, and no
    /// handler sees the request. In chunks, a body is read until there is more of it: then reading fails with
    /// TOO_LARGE, and the client gets a 413 if no answer has begun. Either way, the connection is closed. By default
    /// there is no limit, because what a body costs is decided where it is read: nothing is kept of it but
    /// `body_buffer`. Default: no limit.
    std::uint64_t max_body_size = 0;
    /// The maximum number of fields in a request's head. A client that sends more gets a 431, and the connection is
    /// closed. Another number than 100, which is the default of the parser, costs each request an allocation. At most
    /// 4,096. The trailers of a body may have as many; a body with more is malformed. Default: 100.
    std::uint32_t max_headers = 0;
    /// The maximum size of a request's head in bytes: its first line, its fields and its empty line. A client that
    /// sends more gets a 431, and the connection is closed. The trailers of a body may be as large; a body with larger
    /// ones is malformed, and so is a body with more than 16 KiB of chunk extensions. The default is twice what nginx
    /// and Kestrel take. At most 16 MiB. Default: 65,536.
    std::uint32_t max_head_size = 0;
    /// The maximum length of a request's target in bytes, with its query. A client that sends more gets a 414, and the
    /// connection is closed. A target is a part of a head, so `max_head_size` limits it, too. RFC 9110 asks for at
    /// least 8,000; the default is about what nginx, Apache and Kestrel take. At most 65,534. Default: 8,192.
    std::uint32_t max_target_size = 0;
    /// The number of requests after which a connection ends: the answer to this request says Connection: close. A
    /// client that has already sent more requests is answered up to twice this number. A limit spreads clients anew
    /// over the servers behind a balancer, and gives back what a connection has come to hold. Default: no limit.
    std::uint32_t max_conn_requests = 0;
    /// The maximum number of open connections. While so many are open, accepting pauses, and new clients wait in the
    /// kernel's queue; they are accepted when others end. A stop accepts them beyond this number, as always. Set less
    /// than the process has descriptors. With this limit, `idle_timeout` should be set, too, or idle clients keep
    /// others out. Default: no limit.
    std::uint32_t max_conns = 0;
    /// The maximum number of open connections from one IP address; of IPv6, from one /64, because a client has mostly
    /// all of these. A connection beyond it gets a 503 with Retry-After at once, and is closed; with TLS it is closed
    /// without a word. Clients of Unix sockets are not limited. Many clients may share an address: behind one router,
    /// or one proxy. Default: no limit.
    std::uint32_t max_client_conns = 0;
    /// The maximum number of requests that wait for a handler (pool), or to be taken (queue), while no thread is free.
    /// A request beyond it gets a 503 with Retry-After at once, and its connection goes on. By default all wait, and
    /// when more come than can be answered, all wait ever longer. Default: no limit.
    std::uint32_t max_queued = 0;
    /// How many connections may wait to be accepted, on each TCP socket of `addr`. The kernel caps the number at
    /// `net.core.somaxconn`, which is 4,096 since Linux 5.4. At most 65,535. This and the options below do not apply to
    /// `fds`, nor to inherited sockets: their creator sets them up. Default: 4,096.
    std::uint32_t tcp_backlog = 0;
    /// True: a socket that listens on all addresses (`:8080`, `[::]:8080`) takes IPv6 only. By default it takes IPv4,
    /// too. Set this if another socket is to take IPv4 on the same port. Default: false.
    bool v6_only = false;
    /// After this silence, the kernel asks a client four times whether it is still there (SO_KEEPALIVE), and gives the
    /// connection up after as long again. So a connection whose client is gone without a word does not stay for ever,
    /// whatever is done with it (after an upgrade, say). From 1 second to 32,767 seconds, in whole seconds. Default:
    /// never.
    std::optional<milliseconds> tcp_keepalive{};
    /// How long what was sent may stay without an acknowledgement, before the kernel gives the connection up
    /// (TCP_USER_TIMEOUT). The system's own limit is about 15 minutes. `write_timeout` is mostly the better choice: it
    /// also cuts clients that acknowledge, and do not read. From 1 second to 32,767 seconds. Default: the system's.
    std::optional<milliseconds> tcp_user_timeout{};
    /// The size of a TCP connection's receive buffer (SO_RCVBUF). The kernel doubles the number, and caps it at
    /// `net.core.rmem_max`. A fixed buffer no longer grows with a fast client, so set it only to save memory. At most 1
    /// GiB. Default: the system's, which grows.
    std::uint32_t receive_buffer = 0;
    /// The size of a TCP connection's send buffer (SO_SNDBUF), like `receive_buffer`; its cap is `net.core.wmem_max`.
    /// At most 1 GiB. Default: the system's, which grows.
    std::uint32_t send_buffer = 0;
    /// True: a client that has closed its side of the connection (a FIN; with TLS, `close_notify`) while its request is
    /// answered counts as gone. So a handler that waits for something else, as in a long poll, learns at once that its
    /// client has left, and not when it answers. By default such a client still gets its answer, because it may only
    /// have closed its half: `nc -N`, `socat` and some libraries do so after the request, browsers and curl never do.
    /// The option of this name in `haproxy` does the same, and nginx does it always. Default: false.
    bool abort_on_close = false;
    /// How long a request may be with the program before it counts as overdue. Its time begins when it is handed over
    /// (to the pool, the queue, the handler or the service), so it has its wait for a thread in it, but not that for a
    /// short body (`body_buffer`). The time ends when the program has given the whole answer: an answer without an end
    /// is overdue, too. This is advice: nothing is cut, and the answer is as good as before. An overdue request is
    /// counted (`overdue` in the report, the statistic `handler.overdue`), now and then logged with its method and
    /// target, and told to those who have asked. By default there is no limit, because none fits both a page and a long
    /// poll, and because it costs each request a clock and an allocation. Not 0. Default: never.
    std::optional<milliseconds> handler_timeout{};
    /// True: when most of many busy connections have come to rest or gone, the memory that they used goes back to the
    /// system: some seconds later, and at most once a minute, a thread of the server calls `malloc_trim`. By default
    /// this memory stays with the allocator of the process, which uses it for what comes next. The call looks through
    /// the whole heap of the process, and other threads that allocate may wait meanwhile: some 40 ms for 240 MB to give
    /// back, and up to a second in a heap of gigabytes that has many small holes. So set this in a program that mostly
    /// serves HTTP. Only with glibc. Default: false.
    bool trim_memory = false;
    /// The target of a request, such as "/healthz?deep", by which a new process proves at a restart that it works.
    /// Before it says that it is ready, and before any client comes, it sends itself a GET past the sockets, without
    /// TLS. An answer with a status below 400, complete, is a success; anything else makes the restart fail, and an
    /// answer that does not come does so when the time to get ready is over. Handlers see an ordinary request, from an
    /// unnamed Unix socket; the report counts it. Default: no request.
    std::string canary{};
    // options: end fields
};

/// A running server. It runs on its own threads. Movable, not copyable.
///
/// The destructor ends the server: it stops the server if nobody has done so, and blocks until the server's threads
/// have ended and its callbacks are destroyed. On a thread that would wait for itself (in a handler, for example) the
/// destructor returns at once, and another thread does the rest. For the result of the stop, call `stop` or `wait`
/// before. A child that is forked before the destructor can have no server (FORKED), and the destructor does nothing
/// there. A child that is forked after it can have a server.
class server : public server_ref {
public:
    /// Starts the server. Blocks only while a host name in `addr` is looked up. Throws error, with the reason as text.
    /// Without exceptions, a server that could not be started is empty (`get()` is nullptr).
    explicit server(options options);

    /// Like the constructor, but throws nothing (except std::bad_alloc). If the optional is empty, `status` is the
    /// reason, and `*what` is the reason as text (unless `what` is nullptr).
    static std::optional<server> start(options options, int &status, std::string *what = nullptr);

    server(server &&other) noexcept : server_ref(std::exchange(other.handle_, nullptr)) {}
    /// Ends the server that was here before, like the destructor.
    server &operator=(server &&other) noexcept;
    ~server();

private:
    explicit server(const httpdown_server *started) noexcept : server_ref(started) {}
};

/// Serves until SIGTERM or SIGINT, stops, and returns the counts. Blocks. A second signal goes straight to the kill,
/// unless it comes too soon (`second_signal`). In a forked child the signals have the effect that they had before this
/// call, and do not stop the parent. To learn when the server listens, and where, set `on_phase`. During the run the
/// calling thread takes the signals, even if it blocks them. If SIGINT is ignored, it stays ignored (a shell's
/// background job); SIGTERM always stops.
///
/// Throws error like the constructor of `server`, UNSUPPORTED if another run is under way, and stop_error like `stop`.
stop_report run(options options);

/// Like `run`, but throws nothing (except std::bad_alloc). `status` is the result, OK or the reason, and `*what` is the
/// reason as text (unless `what` is nullptr).
stop_report run(options options, int &status, std::string *what = nullptr);

/// Like `run`, for several servers: a signal stops all of them at the same time, and a second one kills all. Of
/// `second_signal`, the longest counts, so nothing is cut earlier than any server permits. SIGHUP is for every server
/// that has set `reload_on_hup`. A server that is stopped in another way ends alone, and the others go on; but if a
/// server fails, the others are stopped, too. If a server cannot be started, the servers that have started are stopped
/// like by a signal, and `what` of the error names the one that could not. Returns the counts of each, in the same
/// order.
///
/// Throws like `run`. Of several results, the worst counts: an error such as IO, then TIMED_OUT, then KILLED.
std::vector<stop_report> run_all(std::vector<options> servers);

/// Like `run_all`, but throws nothing (except std::bad_alloc), like `run`. The `status` of each report is the result of
/// that server; `phase` is HTTPDOWN_PHASE_STOPPED if the server has run.
std::vector<stop_report> run_all(std::vector<options> servers, int &status, std::string *what = nullptr);

// The rest of this file is the implementation.

namespace detail {

inline std::uint32_t to_ms(milliseconds time) noexcept {
    if (time.count() <= 0) return HTTPDOWN_NOW;
    return time.count() < HTTPDOWN_NOW ? static_cast<std::uint32_t>(time.count()) : HTTPDOWN_FOREVER;
}

inline std::uint32_t to_ms(const std::optional<milliseconds> &time) noexcept { return time ? to_ms(*time) : 0; }

/// Throws, if exceptions are enabled. Otherwise the caller returns the value that stands for the failure.
template <typename Error>
void raise([[maybe_unused]] const Error &failure) {
#ifdef __cpp_exceptions
    throw failure;
#endif
}

/// Checks the status that this thread's last call has returned.
inline void check(int status) {
    if (status != HTTPDOWN_STATUS_OK) raise(error(status, httpdown_last_error()));
}

/// Checks a report that has the result of the call.
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

/// The result of one of the decoders.
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

inline httpdown_bytes to_c(const std::string &bytes) noexcept { return {bytes.data(), bytes.size()}; }

/// Gives texts to the C interface. It would see only what is before a NUL; such a text is refused.
class c_texts {
public:
    /// nullptr if the text is empty. `name`: of the setting.
    const char *give(const std::string &text, const char *name) {
        if (wrong_.empty() && text.find('\0') != std::string::npos) wrong_ = std::string(name) + " contains a NUL";
        return text.empty() ? nullptr : text.c_str();
    }

    /// Returns whether the call may be made. Otherwise says why not.
    bool check(int &status, std::string *what) const {
        if (wrong_.empty()) return true;
        status = HTTPDOWN_STATUS_INVALID_ARGUMENT;
        if (what != nullptr) *what = wrong_;
        return false;
    }

    void add(const c_texts &others) {
        if (wrong_.empty()) wrong_ = others.wrong_;
    }

private:
    std::string wrong_{};
};

/// A descriptor that is closed, unless it is given away.
class descriptor {
public:
    explicit descriptor(int fd) noexcept : fd_(fd) {}
    descriptor(const descriptor &) = delete;
    descriptor &operator=(const descriptor &) = delete;
    ~descriptor() {
        if (fd_ >= 0) ::close(fd_);
    }
    int release() noexcept { return std::exchange(fd_, -1); }

private:
    int fd_;
};

/// TLS settings in the form of the C interface: borrowed from the settings, for one call.
class c_tls {
public:
    explicit c_tls(const tls_options &from) {
        more_.reserve(from.more.size());
        for (const certificate &each : from.more)
            more_.push_back({texts_.give(each.cert_file, "tls.more.cert_file"),
                             texts_.give(each.key_file, "tls.more.key_file"), to_c(each.cert), to_c(each.key)});
        raw_.struct_size = sizeof raw_;
        raw_.cert_file = texts_.give(from.cert_file, "tls.cert_file");
        raw_.key_file = texts_.give(from.key_file, "tls.key_file");
        raw_.cert = to_c(from.cert);
        raw_.key = to_c(from.key);
        raw_.more = more_.data();
        raw_.more_count = more_.size();
        raw_.client_auth = from.client_auth;
        raw_.min_version = from.min_version ? static_cast<int>(*from.min_version) : 0;
        raw_.ca_file = texts_.give(from.ca_file, "tls.ca_file");
        raw_.ca = to_c(from.ca);
        raw_.crl_file = texts_.give(from.crl_file, "tls.crl_file");
        raw_.crl = to_c(from.crl);
        raw_.ticket_keys = to_c(from.ticket_keys);
        raw_.handshake_timeout_ms = to_ms(from.handshake_timeout);
        raw_.handshakes = from.handshakes;
    }
    c_tls(const c_tls &) = delete;
    c_tls &operator=(const c_tls &) = delete;

    const httpdown_tls *get() const noexcept { return &raw_; }
    const c_texts &texts() const noexcept { return texts_; }

private:
    c_texts texts_{};
    std::vector<httpdown_certificate> more_{};
    httpdown_tls raw_{};
};

/// The options of a restart in the form of the C interface, for one call.
class c_restart {
public:
    explicit c_restart(restart_options &&from) : of_(std::move(from)) {
        raw_.struct_size = sizeof raw_;
        raw_.program = texts_.give(of_.program, "program");
        if (!of_.args.empty()) raw_.argv = pointers(of_.args, argv_, "args");
        if (of_.env) raw_.envp = pointers(*of_.env, envp_, "env");
        raw_.directory = texts_.give(of_.directory, "directory");
        raw_.ready_timeout_ms = to_ms(of_.ready_timeout);
        raw_.probation_ms = to_ms(of_.probation);
        raw_.max_predecessors = of_.max_predecessors;
        if (of_.drop_unclaimed) raw_.flags |= HTTPDOWN_RESTART_DROP_UNCLAIMED;
        if (of_.keep_fds) raw_.flags |= HTTPDOWN_RESTART_KEEP_FDS;
        if (of_.plain_stderr) raw_.flags |= HTTPDOWN_RESTART_PLAIN_STDERR;
        if (of_.on_hup) raw_.flags |= HTTPDOWN_RESTART_ON_HUP;
        if (of_.no_signal) raw_.flags |= HTTPDOWN_RESTART_NO_SIGNAL;
        raw_.pid_file = texts_.give(of_.pid_file, "pid_file");
        if (of_.before) raw_.before = before;
        if (of_.on_restart) raw_.on_restart = on_restart;
        raw_.destroy = [](void *data) noexcept { delete static_cast<callbacks *>(data); };
        callbacks_.reset(new callbacks{std::move(of_.before), std::move(of_.on_restart)});
    }
    c_restart(const c_restart &) = delete;
    c_restart &operator=(const c_restart &) = delete;

    const c_texts &texts() const noexcept { return texts_; }

    /// The call must be made then: it owns the callbacks.
    const httpdown_restart_options *release() noexcept {
        raw_.user_data = callbacks_.release();
        return &raw_;
    }

private:
    struct callbacks {
        std::function<std::string()> before;
        callback<int, std::string_view, std::uint32_t> on_restart;
    };

    char *const *pointers(std::vector<std::string> &texts, std::vector<char *> &all, const char *name) {
        all.reserve(texts.size() + 1);
        for (std::string &text : texts) {
            texts_.give(text, name);
            all.push_back(text.data());
        }
        all.push_back(nullptr);
        return all.data();
    }

    static int before(char *why, std::size_t size, void *data) noexcept {
        const auto refuse = [&](std::string_view text) {
            why[text.copy(why, size - 1)] = '\0';
            return !text.empty();
        };
#ifdef __cpp_exceptions
        try {
            return refuse(static_cast<callbacks *>(data)->before());
        } catch (const std::exception &thrown) {
            refuse(thrown.what());
            return true;
        } catch (...) {
            return refuse("the check before it has thrown something that is not a std::exception");
        }
#else
        return refuse(static_cast<callbacks *>(data)->before());
#endif
    }

    static void on_restart(int status, const char *text, std::uint32_t pid, void *data) noexcept {
#ifdef __cpp_exceptions
        try {
            static_cast<callbacks *>(data)->on_restart(status, text, pid);
        } catch (...) { // There is nobody to tell.
        }
#else
        static_cast<callbacks *>(data)->on_restart(status, text, pid);
#endif
    }

    restart_options of_;
    std::unique_ptr<callbacks> callbacks_{};
    c_texts texts_{};
    std::vector<char *> argv_{};
    std::vector<char *> envp_{};
    httpdown_restart_options raw_{};
};

/// Tells the program what its callbacks have thrown, and what the library says: by `on_log`. The server has it, and
/// each of its requests.
class reporter {
public:
    explicit reporter(callback<httpdown_log_level, std::string_view> on_log) : on_log_(std::move(on_log)) {}

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

private:
    void tell(int level, const char *text) {
        const std::lock_guard<std::mutex> one_at_a_time(logging_);
        if (on_log_) on_log_(static_cast<httpdown_log_level>(level), text);
    }

    callback<httpdown_log_level, std::string_view> on_log_;
    std::mutex logging_{};
};

/// The callbacks of one server. The library has the only pointer to this host, and ends it by `destroy`.
struct host {
    explicit host(options &&from) : of(std::move(from)), to(std::make_shared<reporter>(std::move(of.on_log))) {}

    void log(int level, const char *text) noexcept { to->log(level, text); }

    template <typename Callback>
    void guarded(const char *name, Callback callback) noexcept {
        to->guarded(name, std::move(callback));
    }

    options of;
    std::shared_ptr<reporter> to;
};

/// What `request::notify` calls. The library has the only pointer to it.
struct told {
    callback<std::uint32_t> call;
    std::shared_ptr<reporter> to;

    template <typename Subject>
    static void tell(Subject *, std::uint32_t ready, void *data) noexcept {
        const auto &self = *static_cast<told *>(data);
        self.to->guarded("the callback of a request", [&] { self.call(ready); });
    }
};

/// Calls `function` of a host's options: a callback for statistics.
template <options::stat options::*function>
void bump(const char *key, double value, void *data) noexcept {
    auto &self = *static_cast<host *>(data);
    self.guarded("a callback for statistics", [&] { (self.of.*function)(key, value); });
}

/// The options in the form of the C interface, for one call.
class c_options {
public:
    explicit c_options(options &&from)
        : addr_(std::move(from.addr)), fds_(std::move(from.fds)), tls_(std::exchange(from.tls, std::nullopt)),
          restart_(std::exchange(from.restart, std::nullopt)) {
        raw_.struct_size = sizeof raw_;
        raw_.addr = texts_.give(addr_, "addr");
        raw_.fds = fds_.data();
        raw_.fd_count = fds_.size();
        raw_.fds_shared = from.fds_shared;
        raw_.dispatch = from.dispatch;
        raw_.pool_threads = from.pool_threads;
        raw_.pull_events = from.pull_events;
        raw_.clock = from.clock == nullptr ? nullptr : from.clock->get();
        if (tls_) raw_.tls = c_tls_.emplace(*tls_).get();
        if (c_tls_) texts_.add(c_tls_->texts());
        if (restart_) texts_.add(c_restart_.emplace(std::move(*restart_)).texts());
        // options: begin give (made from src/options.toml by `make options`)
        raw_.stop_timeout_ms = to_ms(from.stop_timeout);
        raw_.kill_timeout_ms = to_ms(from.kill_timeout);
        raw_.lame_duck_ms = to_ms(from.lame_duck);
        raw_.header_timeout_ms = to_ms(from.header_timeout);
        raw_.io_threads = from.io_threads;
        raw_.idle_grace_ms = to_ms(from.idle_grace);
        raw_.quiesce_timeout_ms = to_ms(from.quiesce_timeout);
        raw_.linger_timeout_ms = to_ms(from.linger_timeout);
        ready_path_ = std::move(from.ready_path);
        raw_.ready_path = texts_.give(ready_path_, "ready_path");
        raw_.lame_duck_min_ms = to_ms(from.lame_duck_min);
        raw_.lame_duck_quiet_ms = to_ms(from.lame_duck_quiet);
        raw_.idle_timeout_ms = to_ms(from.idle_timeout);
        raw_.keep_alive_header = from.keep_alive_header;
        raw_.second_signal_ms = to_ms(from.second_signal);
        raw_.reuse_port = from.reuse_port;
        raw_.reload_on_hup = from.reload_on_hup;
        raw_.body_timeout_ms = to_ms(from.body_timeout);
        raw_.write_timeout_ms = to_ms(from.write_timeout);
        raw_.least_rate = from.least_rate;
        raw_.body_buffer = from.body_buffer;
        raw_.drain_rate = from.drain_rate;
        proxy_protocol_from_ = std::move(from.proxy_protocol_from);
        raw_.proxy_protocol_from = texts_.give(proxy_protocol_from_, "proxy_protocol_from");
        trusted_proxies_ = std::move(from.trusted_proxies);
        raw_.trusted_proxies = texts_.give(trusted_proxies_, "trusted_proxies");
        forwarded_by_ = std::move(from.forwarded_by);
        raw_.forwarded_by = texts_.give(forwarded_by_, "forwarded_by");
        raw_.max_body_size = from.max_body_size;
        raw_.max_headers = from.max_headers;
        raw_.max_head_size = from.max_head_size;
        raw_.max_target_size = from.max_target_size;
        raw_.max_conn_requests = from.max_conn_requests;
        raw_.max_conns = from.max_conns;
        raw_.max_client_conns = from.max_client_conns;
        raw_.max_queued = from.max_queued;
        raw_.tcp_backlog = from.tcp_backlog;
        raw_.v6_only = from.v6_only;
        raw_.tcp_keepalive_ms = to_ms(from.tcp_keepalive);
        raw_.tcp_user_timeout_ms = to_ms(from.tcp_user_timeout);
        raw_.receive_buffer = from.receive_buffer;
        raw_.send_buffer = from.send_buffer;
        raw_.abort_on_close = from.abort_on_close;
        raw_.handler_timeout_ms = to_ms(from.handler_timeout);
        raw_.trim_memory = from.trim_memory;
        canary_ = std::move(from.canary);
        raw_.canary = texts_.give(canary_, "canary");
        // options: end give

        if (from.handler) raw_.handler = on_request;
        if (from.bump_avg) raw_.stats.bump_avg = bump<&options::bump_avg>;
        if (from.bump_sum) raw_.stats.bump_sum = bump<&options::bump_sum>;
        if (from.bump_histogram) raw_.stats.bump_histogram = bump<&options::bump_histogram>;
        if (from.bump_time) raw_.stats.bump_time = bump<&options::bump_time>;
        if (from.on_conn_state) raw_.on_conn_state = on_conn_state;
        if (from.on_phase) raw_.on_phase = on_phase;
        if (from.on_log) raw_.on_log = on_log;
        if (from.on_done) raw_.on_done = on_done;
        raw_.destroy = [](void *data) noexcept { delete static_cast<host *>(data); };
        host_ = std::make_unique<host>(std::move(from));
    }

    const c_texts &texts() const noexcept { return texts_; }

    /// The call must be made then: it owns the host, and the callbacks of the restart.
    const httpdown_options *release() noexcept {
        if (c_restart_) raw_.restart = c_restart_->release();
        raw_.user_data = host_.release();
        return &raw_;
    }

private:
    static void on_request(httpdown_request *lent, void *data) noexcept {
        // The request is owned from the beginning, so its destructor alone decides what becomes of it.
        if (httpdown_request_defer(lent) != HTTPDOWN_STATUS_OK) return;
        auto &self = *static_cast<host *>(data);
        self.guarded("a handler", [&] { self.of.handler(request(lent, self.to)); });
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

    static void on_done(const httpdown_request_record *record, void *data) noexcept {
        auto &self = *static_cast<host *>(data);
        self.guarded("on_done", [&] { self.of.on_done(request_record(record)); });
    }

    static void on_log(int level, const char *text, void *data) noexcept {
        static_cast<host *>(data)->log(level, text);
    }

    // These are not in the host, because the host may be destroyed while the call still reads them.
    std::string addr_;
    std::vector<int> fds_;
    std::optional<tls_options> tls_;
    std::optional<c_tls> c_tls_{};
    std::optional<restart_options> restart_;
    std::optional<c_restart> c_restart_{};
    std::unique_ptr<host> host_{};
    c_texts texts_{};
    // options: begin kept (made from src/options.toml by `make options`)
    std::string ready_path_{};
    std::string proxy_protocol_from_{};
    std::string trusted_proxies_{};
    std::string forwarded_by_{};
    std::string canary_{};
    // options: end kept
    httpdown_options raw_{};
};

} // namespace detail

inline std::string request_record::line(int format) const {
    std::size_t length = 0;
    int status = httpdown_log_line(of_, format, nullptr, 0, &length);
    if (status != HTTPDOWN_STATUS_TOO_LARGE) {
        detail::check(status);
        return {};
    }
    // With room for the NUL.
    std::string line(length + 1, '\0');
    detail::check(httpdown_log_line(of_, format, line.data(), line.size(), &length));
    line.resize(length);
    return line;
}

inline void request::set_data(std::any data) {
    auto owned = std::make_unique<std::any>(std::move(data));
    const auto destroy = [](void *old) noexcept { delete static_cast<std::any *>(old); };
    const int status = httpdown_request_set_data(get(), owned.get(), destroy);
    if (status == HTTPDOWN_STATUS_OK) owned.release();
    detail::check(status);
}

inline std::optional<httpdown_credentials> request::peer_credentials() const {
    httpdown_credentials found{};
    const int status = httpdown_request_peer_credentials(get(), &found);
    if (status == HTTPDOWN_STATUS_NOT_FOUND) return std::nullopt;
    detail::check(status);
    if (status != HTTPDOWN_STATUS_OK) return std::nullopt;
    return found;
}

inline std::optional<tls_info> request::tls() const {
    httpdown_tls_info found{};
    found.struct_size = sizeof found;
    const int status = httpdown_request_tls(get(), &found);
    if (status == HTTPDOWN_STATUS_NOT_FOUND) return std::nullopt;
    detail::check(status);
    if (status != HTTPDOWN_STATUS_OK) return std::nullopt;
    tls_info info;
    info.version = static_cast<httpdown_tls_version>(found.version);
    info.resumed = found.resumed != 0;
    info.cipher_suite = view(found.cipher_suite);
    info.server_name = view(found.server_name);
    info.alpn = view(found.alpn);
    info.client_certificate = view(found.client_certificate);
    info.client_subject = view(found.client_subject);
    info.client_names = view(found.client_names);
    std::copy(std::begin(found.client_fingerprint), std::end(found.client_fingerprint),
              info.client_fingerprint.begin());
    return info;
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
    // The decoded text is not longer than the encoded text.
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

inline std::optional<std::size_t> request::read(void *buffer, std::size_t size, milliseconds timeout) {
    std::size_t count = 0;
    if (!unanswered()) return std::nullopt;
    const auto ms = detail::to_ms(timeout);
    if (!came(httpdown_request_read(get(), buffer, size, ms, &count), ms)) return std::nullopt;
    return count;
}

inline std::optional<std::string_view> request::body(std::size_t limit, milliseconds timeout) {
    httpdown_bytes bytes{};
    if (!unanswered()) return std::nullopt;
    const auto ms = detail::to_ms(timeout);
    if (!came(httpdown_request_body(get(), limit, ms, &bytes), ms)) return std::nullopt;
    return view(bytes);
}

inline std::vector<header> request::trailers() const {
    std::vector<httpdown::header> all;
    if (get() == nullptr) return all;
    httpdown_header some[16] = {};
    std::size_t count = 0;
    do {
        const int status = httpdown_request_trailers(get(), all.size(), some, std::size(some), &count);
        detail::check(status);
        if (status != HTTPDOWN_STATUS_OK) break;
        for (std::size_t i = 0; i < count; i++) all.push_back({view(some[i].name), view(some[i].value)});
    } while (count == std::size(some));
    return all;
}

inline bool request::notify(std::uint32_t wanted, callback<std::uint32_t> tell) {
    if (!unanswered()) return false;
    if (!tell) return asked(HTTPDOWN_STATUS_INVALID_ARGUMENT);
    auto to = reporter_ ? reporter_ : std::make_shared<detail::reporter>(nullptr);
    auto *kept = new detail::told{std::move(tell), std::move(to)};
    // If this succeeds, the callback may have moved or destroyed this object by now.
    const int status = httpdown_request_notify(get(), wanted, detail::told::tell<httpdown_request>, kept,
                                               [](void *data) noexcept { delete static_cast<detail::told *>(data); });
    return status == HTTPDOWN_STATUS_OK || asked(status);
}

inline bool request::notify_queue(std::uint32_t wanted, void *user_data) {
    if (!unanswered()) return false;
    const int status = httpdown_request_notify(get(), wanted, nullptr, user_data, nullptr);
    return status == HTTPDOWN_STATUS_OK || asked(status);
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

inline bool request::reply_fd(int status, int fd, const std::vector<httpdown::header> &headers,
                              std::uint64_t offset, std::uint64_t length) {
    detail::descriptor file(fd);
    const auto raw = detail::to_c(headers);
    if (!unanswered()) return false;
    return delivered(
        httpdown_reply_fd(end(), status, raw.data(), raw.size(), file.release(), offset, length));
}

inline bool request::reply_file(const std::string &path, const std::vector<httpdown::header> &headers) {
    const auto raw = detail::to_c(headers);
    if (!unanswered()) return false;
    // C would see only what is before a NUL.
    const bool is_whole = path.find('\0') == std::string::npos;
    return delivered(
        httpdown_reply_file(end(), is_whole ? path.c_str() : nullptr, raw.data(), raw.size()));
}

inline bool request::reply_open_file(int fd, const std::vector<httpdown::header> &headers) {
    detail::descriptor file(fd);
    const auto raw = detail::to_c(headers);
    if (!unanswered()) return false;
    return delivered(httpdown_reply_open_file(end(), file.release(), raw.data(), raw.size()));
}

inline bool request::start(int status, const std::vector<httpdown::header> &headers) {
    const auto raw = detail::to_c(headers);
    return unanswered() && delivered(httpdown_reply_start(get(), status, raw.data(), raw.size()));
}

inline bool request::write(std::string_view data) {
    if (!unanswered()) return false;
    const int status = httpdown_reply_write(get(), data.data(), data.size(), HTTPDOWN_FOREVER, nullptr);
    // The answer has no body: nothing that the program could have known before.
    if (status == HTTPDOWN_STATUS_ALREADY_REPLIED) return status_ = status, false;
    return delivered(status);
}

inline std::optional<std::size_t> request::write(std::string_view data, milliseconds timeout) {
    std::size_t taken = 0;
    if (!unanswered()) return std::nullopt;
    const auto ms = detail::to_ms(timeout);
    const int status = httpdown_reply_write(get(), data.data(), data.size(), ms, &taken);
    if (status == HTTPDOWN_STATUS_ALREADY_REPLIED) return status_ = status, std::nullopt;
    if (!came(status, ms) && status_ != HTTPDOWN_STATUS_WOULD_BLOCK) return std::nullopt;
    return taken;
}

inline bool request::set_trailers(const std::vector<httpdown::header> &trailers) {
    const auto raw = detail::to_c(trailers);
    if (!unanswered()) return false;
    const int status = httpdown_reply_trailers(get(), raw.data(), raw.size());
    return status == HTTPDOWN_STATUS_OK || asked(status);
}

inline stream request::upgrade(const std::vector<httpdown::header> &headers) {
    const auto raw = detail::to_c(headers);
    httpdown_stream *taken = nullptr;
    if (!unanswered() || !delivered(httpdown_upgrade(end(), raw.data(), raw.size(), &taken))) return stream();
    return stream(taken);
}

inline int stream::checked(int status) {
    switch (status) {
    case HTTPDOWN_STATUS_WOULD_BLOCK:
    case HTTPDOWN_STATUS_GONE:
    case HTTPDOWN_STATUS_KILLED: break;
    default: detail::check(status);
    }
    return status;
}

inline int stream::read(void *buffer, std::size_t size, std::size_t &count, milliseconds timeout) const {
    return checked(httpdown_stream_read(get(), buffer, size, detail::to_ms(timeout), &count));
}

inline int stream::write(std::string_view data) const {
    return checked(httpdown_stream_write(get(), data.data(), data.size(), HTTPDOWN_FOREVER, nullptr));
}

inline int stream::write(std::string_view data, std::size_t &taken, milliseconds timeout) const {
    return checked(httpdown_stream_write(get(), data.data(), data.size(), detail::to_ms(timeout), &taken));
}

inline int stream::shutdown(milliseconds timeout) const {
    return checked(httpdown_stream_shutdown(get(), detail::to_ms(timeout)));
}

inline void stream::notify(std::uint32_t wanted, callback<std::uint32_t> tell) const {
    if (!tell) return detail::check(HTTPDOWN_STATUS_INVALID_ARGUMENT);
    auto *kept = new detail::told{std::move(tell), std::make_shared<detail::reporter>(nullptr)};
    // If this succeeds, the callback may have destroyed this object by now.
    detail::check(httpdown_stream_notify(get(), wanted, detail::told::tell<httpdown_stream>, kept,
                                         [](void *data) noexcept { delete static_cast<detail::told *>(data); }));
}

inline void stream::notify_queue(std::uint32_t wanted, void *user_data) const {
    detail::check(httpdown_stream_notify(get(), wanted, nullptr, user_data, nullptr));
}

inline int stream::fd(milliseconds timeout) const {
    int fd = -1;
    detail::check(httpdown_stream_fd(get(), detail::to_ms(timeout), &fd));
    return fd;
}

inline bool request::finish() { return unanswered() && delivered(httpdown_reply_finish(end())); }

/// Whether a call has succeeded; false if the client was the reason.
inline bool request::is_delivered(int status) {
    switch (status) {
    case HTTPDOWN_STATUS_GONE:
    case HTTPDOWN_STATUS_BAD_BODY:
    case HTTPDOWN_STATUS_TOO_SLOW:
    case HTTPDOWN_STATUS_KILLED:
    case HTTPDOWN_STATUS_TOO_LARGE: break;
    default: detail::check(status);
    }
    return status == HTTPDOWN_STATUS_OK;
}

inline bool request::delivered(int status) { return is_delivered(status_ = status); }

/// Like `delivered`, for a call that has waited no longer than this.
inline bool request::came(int status, std::uint32_t timeout_ms) {
    if (status != HTTPDOWN_STATUS_WOULD_BLOCK || timeout_ms == HTTPDOWN_FOREVER) return delivered(status);
    return status_ = status, false;
}

/// A call that cannot fail because of the client has failed.
inline bool request::asked(int status) {
    detail::check(status_ = status);
    return false;
}

/// Whether the request can still be answered.
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

inline void server_ref::tls_reload(const tls_options &tls) const {
    int status = HTTPDOWN_STATUS_OK;
    std::string what;
    if (!tls_reload(tls, status, &what)) detail::raise(error(status, what));
}

inline bool server_ref::tls_reload(const tls_options &tls, int &status, std::string *what) const {
    const detail::c_tls raw(tls);
    if (!raw.texts().check(status, what)) return false;
    return reload(raw.get(), status, what);
}

inline void server_ref::tls_reload() const {
    int status = HTTPDOWN_STATUS_OK;
    std::string what;
    if (!tls_reload(status, &what)) detail::raise(error(status, what));
}

inline bool server_ref::tls_reload(int &status, std::string *what) const {
    return reload(nullptr, status, what);
}

inline bool server_ref::reload(const httpdown_tls *tls, int &status, std::string *what) const {
    char why[512] = "";
    status = httpdown_tls_reload(handle_, tls, why, sizeof why);
    if (what != nullptr) *what = why;
    return status == HTTPDOWN_STATUS_OK;
}

inline std::uint32_t server_ref::restart(restart_options options) const {
    int status = HTTPDOWN_STATUS_OK;
    std::string what;
    const auto pid = restart(std::move(options), status, &what);
    if (status != HTTPDOWN_STATUS_OK) detail::raise(error(status, what));
    return pid;
}

inline std::uint32_t server_ref::restart(restart_options options, int &status, std::string *what) const {
    detail::c_restart raw(std::move(options));
    if (!raw.texts().check(status, what)) return 0;
    // More than the last words of the new process.
    std::string why(8192, '\0');
    status = httpdown_restart(handle_, raw.release(), why.data(), why.size());
    if (what != nullptr) *what = why.c_str();
    return status == HTTPDOWN_STATUS_OK ? restart_info().successor_pid : 0;
}

inline bool server_ref::restart_begin(restart_options options) const {
    detail::c_restart raw(std::move(options));
    int status = HTTPDOWN_STATUS_OK;
    std::string what;
    if (!raw.texts().check(status, &what)) return detail::raise(error(status, what)), false;
    status = httpdown_restart_begin(handle_, raw.release());
    detail::check(status);
    return status == HTTPDOWN_STATUS_OK;
}

inline bool restart_ready() {
    const int status = httpdown_restart_ready();
    detail::check(status);
    return status == HTTPDOWN_STATUS_OK;
}

inline bool run_ready() {
    const int status = httpdown_run_ready();
    detail::check(status);
    return status == HTTPDOWN_STATUS_OK;
}

inline restarts restart_info() {
    restarts all;
    httpdown_restarts found{};
    found.struct_size = sizeof found;
    do {
        all.predecessors.resize(found.predecessor_count);
        const int status = httpdown_restart_info(&found, all.predecessors.data(), all.predecessors.size());
        detail::check(status);
        if (status != HTTPDOWN_STATUS_OK) return restarts();
    } while (found.predecessor_count > all.predecessors.size());
    all.predecessors.resize(found.predecessor_count);
    all.state = static_cast<httpdown_restart_state>(found.state);
    all.generation = found.generation;
    all.successor_pid = found.successor_pid;
    return all;
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

inline std::optional<item> server_ref::next_item(milliseconds timeout) const {
    httpdown_item taken{};
    std::size_t count = 0;
    const int status = httpdown_next_item(handle_, detail::to_ms(timeout), &taken, 1, &count);
    if (status == HTTPDOWN_STATUS_STOPPED) return std::nullopt;
    if (status != HTTPDOWN_STATUS_WOULD_BLOCK) detail::check(status);
    if (status != HTTPDOWN_STATUS_OK && status != HTTPDOWN_STATUS_WOULD_BLOCK) return std::nullopt;
    item found;
    if (count == 0) return found;
    found.user_data = taken.user_data;
    found.ready = taken.ready;
    if (taken.ready == HTTPDOWN_NEW) found.request = request(taken.request);
    return found;
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

/// Starts a server. Returns nullptr if the server could not be started.
inline const httpdown_server *serve(options &&from, int &status, std::string &what) {
    c_options raw(std::move(from));
    if (!raw.texts().check(status, &what)) return nullptr;
    httpdown_server *started = nullptr;
    char why[512] = "";
    status = httpdown_serve(raw.release(), &started, why, sizeof why);
    what = why;
    return started;
}

inline stop_report run(options &&from, int &status, std::string &what) {
    c_options raw(std::move(from));
    stop_report report = empty_report();
    if (!raw.texts().check(status, &what)) return report;
    char why[512] = "";
    status = httpdown_run(raw.release(), &report, why, sizeof why);
    what = why;
    return report;
}

inline std::vector<stop_report> run_all(std::vector<options> &&from, int &status, std::string &what) {
    std::vector<std::unique_ptr<c_options>> kept;
    std::vector<const httpdown_options *> raw;
    std::vector<stop_report> reports(from.size(), empty_report());
    for (auto &server : from) {
        kept.push_back(std::make_unique<c_options>(std::move(server)));
        if (!kept.back()->texts().check(status, &what)) {
            what = "options[" + std::to_string(kept.size() - 1) + "]: " + what;
            return reports;
        }
    }
    for (const auto &server : kept) raw.push_back(server->release());
    char why[512] = "";
    status = httpdown_run_all(raw.data(), raw.size(), reports.data(), why, sizeof why);
    what = why;
    return reports;
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

// The pointer that httpdown_serve gave was not const; only the pointers that callbacks get are const.
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

inline std::vector<stop_report> run_all(std::vector<options> servers) {
    int status = HTTPDOWN_STATUS_OK;
    std::string what;
    auto reports = detail::run_all(std::move(servers), status, what);
    if (status == HTTPDOWN_STATUS_OK) return reports;
    for (const auto &report : reports)
        if (report.status == status) detail::raise(stop_error(status, report));
    detail::raise(error(status, what));
    // Without exceptions, those that have not run tell why.
    for (auto &report : reports)
        if (report.phase != HTTPDOWN_PHASE_STOPPED) report.status = status;
    return reports;
}

inline std::vector<stop_report> run_all(std::vector<options> servers, int &status, std::string *what) {
    std::string why;
    auto reports = detail::run_all(std::move(servers), status, why);
    if (what != nullptr) *what = std::move(why);
    return reports;
}

} // namespace HTTPDOWN_FLAVOUR
} // namespace httpdown

#undef HTTPDOWN_FLAVOUR

#endif
