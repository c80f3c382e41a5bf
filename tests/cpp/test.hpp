// A test program's few tools: a check, a client over a plain socket, and things to wait for.
#ifndef TEST_HPP
#define TEST_HPP

#include <httpdown.hpp>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

inline std::atomic<int> failures{0};

inline void not_so(const char *file, int line, const std::string &what) {
    std::fprintf(stderr, "%s:%d: not so: %s\n", file, line, what.c_str());
    failures++;
}

inline bool contains(std::string_view text, std::string_view part) { return text.find(part) != text.npos; }

#define CHECK(condition) ((condition) ? void() : not_so(__FILE__, __LINE__, #condition))
#define CHECK_CONTAINS(text, part) \
    (contains(text, part) ? void() : not_so(__FILE__, __LINE__, std::string(part) + " is in:\n" + std::string(text)))

// A connection. Reading gives up after half a minute, so that nothing hangs.
class client {
public:
    explicit client(const std::string &addr) {
        const std::string abstract = "unix:@";
        const bool is_unix = addr.compare(0, abstract.size(), abstract) == 0;
        fd_ = socket(is_unix ? AF_UNIX : AF_INET, SOCK_STREAM, 0);
        const timeval limit{30, 0};
        setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
        if (is_unix) {
            sockaddr_un to{};
            to.sun_family = AF_UNIX;
            const auto length = addr.copy(to.sun_path + 1, sizeof to.sun_path - 1, abstract.size());
            const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + length);
            connected_ = connect(fd_, reinterpret_cast<const sockaddr *>(&to), size) == 0;
            return;
        }
        const auto colon = addr.rfind(':');
        sockaddr_in to{};
        to.sin_family = AF_INET;
        to.sin_port = htons(static_cast<std::uint16_t>(std::stoi(addr.substr(colon + 1))));
        inet_pton(AF_INET, addr.substr(0, colon).c_str(), &to.sin_addr);
        connected_ = connect(fd_, reinterpret_cast<const sockaddr *>(&to), sizeof to) == 0;
    }
    client(const client &) = delete;
    client &operator=(const client &) = delete;
    ~client() { leave(); }

    bool connected() const { return connected_; }

    void send(std::string_view text) {
        while (!text.empty()) {
            const ssize_t sent = ::send(fd_, text.data(), text.size(), MSG_NOSIGNAL);
            if (sent <= 0) return;
            text.remove_prefix(static_cast<std::size_t>(sent));
        }
    }

    // Until `end` has come; or everything, if it does not come.
    std::string read_until(std::string_view end) {
        while (received_.find(end) == std::string::npos || end.empty()) {
            char buffer[65536];
            const ssize_t count = recv(fd_, buffer, sizeof buffer, 0);
            if (count <= 0) break;
            received_.append(buffer, static_cast<std::size_t>(count));
        }
        return received_;
    }

    std::string read_all() { return read_until(""); }

    // With a reset, which the other side notices at once.
    void leave() {
        if (fd_ < 0) return;
        const linger reset{1, 0};
        setsockopt(fd_, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        close(fd_);
        fd_ = -1;
    }

private:
    int fd_ = -1;
    bool connected_ = false;
    std::string received_{};
};

// One request on a connection of its own; the whole answer, with its head.
inline std::string ask(const std::string &addr, const std::string &target, const std::string &method = "GET",
                       const std::string &body = "") {
    client one(addr);
    std::string head = method + " " + target + " HTTP/1.1\r\nHost: test\r\nConnection: close\r\n";
    if (!body.empty()) head += "Content-Length: " + std::to_string(body.size()) + "\r\n";
    one.send(head + "\r\n" + body);
    return one.read_all();
}

inline bool starts_with(std::string_view text, std::string_view start) {
    return text.substr(0, start.size()) == start;
}

inline bool ends_with(std::string_view text, std::string_view end) {
    return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

// The status of the error that `call` throws; 0 if it throws none.
#ifdef __cpp_exceptions
template <typename Call>
int status_of(Call call) {
    try {
        call();
    } catch (const httpdown::error &error) {
        CHECK(*error.what() != '\0');
        return error.status();
    }
    return 0;
}
#endif

// Lines from other threads, to be waited for.
class lines {
public:
    void add(std::string line) {
        const std::lock_guard<std::mutex> lock(mutex_);
        all_.push_back(std::move(line));
        changed_.notify_all();
    }

    // Whether a line with `part` has come, within half a minute.
    bool wait_for(std::string_view part) {
        std::unique_lock<std::mutex> lock(mutex_);
        return changed_.wait_for(lock, std::chrono::seconds(30), [&] {
            for (const auto &line : all_)
                if (contains(line, part)) return true;
            return false;
        });
    }

    std::string joined() {
        const std::lock_guard<std::mutex> lock(mutex_);
        std::string text;
        for (const auto &line : all_) text += line + "\n";
        return text;
    }

private:
    std::mutex mutex_{};
    std::condition_variable changed_{};
    std::vector<std::string> all_{};
};

// Whether servers listen on Unix sockets: so the same tests are run once more (HTTPDOWN_TEST_SOCKETS=unix).
inline bool by_unix() {
    const char *kind = std::getenv("HTTPDOWN_TEST_SOCKETS");
    return kind != nullptr && std::string_view(kind) == "unix";
}

// An address that nobody else has: the kernel's choice of a port, or an abstract name.
inline std::string any_addr() {
    static std::atomic<int> count{0};
    if (!by_unix()) return "127.0.0.1:0";
    return "unix:@httpdown-cpp-" + std::to_string(getpid()) + "-" + std::to_string(count++);
}

// Whether a server says that of a client.
inline bool is_client_addr(std::string_view addr) {
    return by_unix() ? addr == "unix:" : starts_with(addr, "127.0.0.1:");
}

// Options for a test: an address of its own.
template <typename Handler>
httpdown::options serving(Handler handler) {
    httpdown::options options;
    options.addr = any_addr();
    options.handler = std::move(handler);
    return options;
}

// In the other file: a header whose functions were not inline could not be in both.
std::string ask_a_server_of_the_other_file();

// In the file about restarts.
extern std::string this_program;
bool is_for_restarts(const char *what, int &status);
void a_program_restarts_itself();
void a_restart_can_be_refused();

// In the file about TLS.
void a_request_by_tls_says_how_it_came();
void clients_can_have_certificates();
void certificates_are_chosen_by_name_and_replaced();
void bad_tls_settings_are_errors_with_a_reason();

// In the file about what happens to a request.
void an_echo_needs_no_thread();
void what_happens_is_told_once();
void a_stream_ends_when_the_server_drains();
void a_request_that_is_overdue_is_as_good_as_before();
void one_thread_serves_all_by_the_queue();
void waiting_has_a_limit();
void trailers_go_both_ways();

// In the file about connections that are taken over.
void a_stream_goes_both_ways();
void a_stream_ends_with_the_drain();
void a_queue_tells_of_streams();
void what_asks_for_no_upgrade_gets_none();

// In a file without exceptions.
void without_exceptions();

#endif
