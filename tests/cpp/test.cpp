// The C++ interface over real sockets. Each test is a function; nothing waits by sleeping.
#include "test.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>

using httpdown::milliseconds;
using httpdown::request;
using std::chrono::seconds;

static void hello(request request) { request.reply_text(200, "Hello, World!"); }

static void it_says_hello() {
    httpdown::server server(serving(hello));
    CHECK(server.ready());
    CHECK(server.phase() == HTTPDOWN_PHASE_SERVING);
    CHECK(starts_with(server.local_addr(), by_unix() ? "unix:@" : "127.0.0.1:"));
    CHECK(status_of([&] { server.local_addr(1); }) == HTTPDOWN_STATUS_INVALID_ARGUMENT);

    const auto answer = ask(server.local_addr(), "/");
    CHECK(starts_with(answer, "HTTP/1.1 200 OK\r\n"));
    CHECK(contains(answer, "content-type: text/plain; charset=utf-8\r\n"));
    CHECK(contains(answer, "content-length: 13\r\n"));
    CHECK(ends_with(answer, "\r\n\r\nHello, World!"));

    CHECK(server.report().phase == HTTPDOWN_PHASE_SERVING);
    const auto report = server.stop();
    CHECK(report.phase == HTTPDOWN_PHASE_STOPPED);
    CHECK(report.requests == 1 && report.served == 1 && report.killed == 0);
    CHECK(!server.ready());
    CHECK(!client(server.local_addr()).connected());
    CHECK(server.wait(milliseconds(0))->served == 1); // whoever comes later gets the same
}

static void it_reads_what_was_sent() {
    httpdown::server server(serving([](request request) {
        std::string seen;
        for (auto [name, value] : request.headers()) seen += std::string(name) + "=" + std::string(value) + ";";
        const auto body = request.body(100);
        CHECK(request.method() == "BREW" && request.version() == 11 && request.scheme() == "http");
        CHECK(request.target() == "/a%20b?c=d" && request.path() == "/a%20b" && request.query() == "c=d");
        CHECK(request.header("HOST") == "test" && request.header("none").data() == nullptr);
        CHECK(is_client_addr(request.peer_addr()) && request.proxy_addr().data() == nullptr);
        CHECK(request.client_addr() == request.peer_addr() && request.client_scheme() == "http");
        CHECK(request.client_host() == "test");
        CHECK(request.peer_credentials().has_value() == by_unix() && !request.tls());
        CHECK(request.local_addr() == request.server().local_addr());
        CHECK(!request.cancelled() && !request.wait_cancelled(milliseconds(0)));
        CHECK(body == "body");
        CHECK(request.reply(200, seen, {{"x-one", "1"}, {"x-two", ""}}));
        CHECK(!request);
        CHECK(request.method() == "BREW" && !request.headers().empty() && request.cancelled());
    }));
    const auto answer = ask(server.local_addr(), "/a%20b?c=d", "BREW", "body");
    CHECK(contains(answer, "x-one: 1\r\nx-two: \r\n"));
    CHECK(ends_with(answer, "host=test;connection=close;content-length=4;"));
}

static void it_decodes_the_query() {
    using pairs = std::vector<std::pair<std::string, std::string>>;
    httpdown::server server(serving([](request request) {
        CHECK(request.query_value("a") == "1 2+3");
        CHECK(request.query_value("name") == "Ü" && request.query_value("flag") == "");
        CHECK(request.query_value("nul") == std::string("\0x", 2));
        CHECK(!request.query_value("none") && !request.query_value("b"));
        CHECK(status_of([&] { request.query_value(nullptr); }) == HTTPDOWN_STATUS_INVALID_ARGUMENT);
        const auto all = request.query_pairs();
        CHECK(all.size() == 5 && all[4] == pairs::value_type("a", "again"));
        hello(std::move(request));
        CHECK(!request.query_value("a") && request.query_pairs().empty());
    }));
    CHECK(starts_with(ask(server.local_addr(), "/?a=1+2%2B3&name=%C3%9C&flag&&nul=%00x&%61=again"), "HTTP/1.1 200 "));
    CHECK((httpdown::query_pairs("x=1&y") == pairs{{"x", "1"}, {"y", ""}}));
    CHECK(httpdown::query_pairs({}).empty() && httpdown::query_pairs("&&").empty());
    CHECK(httpdown::percent_decode("a%20b+c%2") == "a b+c%2" && httpdown::percent_decode({}).empty());
}

static void a_handler_may_be_one_that_only_moves() {
    std::promise<void> destroyed;
    auto text = std::unique_ptr<std::string, std::function<void(std::string *)>>(
        new std::string("captured"), [&](std::string *owned) {
            delete owned;
            destroyed.set_value();
        });
    {
        httpdown::options options;
        options.addr = "127.0.0.1:0";
        options.handler = [text = std::move(text)](request request) { request.reply_text(200, *text); };
        options.on_phase = [owned = std::make_unique<int>(1)](httpdown::server_ref, httpdown_phase_code) { ++*owned; };
        const auto copy = options; // shares what it cannot copy
        httpdown::server one(std::move(options)), two(copy);
        CHECK(ends_with(ask(one.local_addr(), "/"), "\r\n\r\ncaptured"));
        one.stop();
        CHECK(ends_with(ask(two.local_addr(), "/"), "\r\n\r\ncaptured"));
    }
    CHECK(destroyed.get_future().wait_for(seconds(30)) == std::future_status::ready);

    std::function<void(request)> none;
    CHECK(!httpdown::callback<request>(none) && !httpdown::callback<request>(nullptr));
    CHECK(!httpdown::callback<request>(static_cast<void (*)(request)>(nullptr)));
}

static void a_body_that_is_too_large_is_not_a_client_that_has_left() {
    std::promise<int> gone;
    httpdown::server server(serving([&](request request) {
        CHECK(request.status() == HTTPDOWN_STATUS_OK);
        if (request.path() == "/gone") {
            CHECK(request.start(200) && request.write("begun"));
            CHECK(!request.body(1 << 20));
            gone.set_value(request.status());
            return;
        }
        CHECK(!request.body(3));
        CHECK(request.status() == HTTPDOWN_STATUS_TOO_LARGE);
        CHECK(request.body(4) == "body" && request.status() == HTTPDOWN_STATUS_OK);
        request.reply_text(413, "too long");
    }));
    CHECK(starts_with(ask(server.local_addr(), "/large", "POST", "body"), "HTTP/1.1 413 "));
    client one(server.local_addr());
    one.send("POST /gone HTTP/1.1\r\nHost: test\r\nContent-Length: 100000\r\n\r\nhalf");
    one.read_until("begun");
    one.leave();
    CHECK(gone.get_future().get() == HTTPDOWN_STATUS_GONE);
}

static void servers_can_be_started_without_throwing() {
    int status = -1;
    std::string what;
    auto server = httpdown::server::start(serving(hello), status, &what);
    CHECK(server && status == HTTPDOWN_STATUS_OK);
    auto taken = serving(hello);
    taken.addr = server->local_addr();
    CHECK(!httpdown::server::start(taken, status, &what) && status == HTTPDOWN_STATUS_ADDR_IN_USE);
    CHECK(contains(what, taken.addr));
    httpdown::run(taken, status);
    CHECK(status == HTTPDOWN_STATUS_ADDR_IN_USE);
}

// C would see only what is before it.
static void a_text_with_a_nul_is_refused() {
    const std::string nul("/a\0b", 4);
    httpdown::options wrong;
    int status = 0;
    std::string what;
    const auto is_refused = [&](const char *name) {
        const auto why = std::string(name) + " contains a NUL";
        // Even then, nothing of the host is left behind.
        auto alive = std::make_shared<int>(0);
        wrong.addr = wrong.addr.empty() ? any_addr() : wrong.addr;
        wrong.handler = [alive](request asked) { asked.reply(200); };
        if (!wrong.restart) wrong.restart.emplace();
        wrong.restart->before = [alive] { return std::string(); };
        CHECK(!httpdown::server::start(wrong, status, &what) && status == HTTPDOWN_STATUS_INVALID_ARGUMENT);
        CHECK(what == why);
        CHECK(status_of([&] { httpdown::server server(wrong); }) == HTTPDOWN_STATUS_INVALID_ARGUMENT);
        CHECK(status_of([&] { httpdown::run(wrong); }) == HTTPDOWN_STATUS_INVALID_ARGUMENT);
        CHECK(httpdown::run_all({serving(hello), wrong}, status, &what).size() == 2);
        CHECK(status == HTTPDOWN_STATUS_INVALID_ARGUMENT && what == "options[1]: " + why);
        wrong = {};
        CHECK(alive.use_count() == 1);
    };
    wrong.addr = nul;
    is_refused("addr");
    wrong.canary = nul;
    is_refused("canary");
    wrong.tls.emplace().key_file = nul;
    is_refused("tls.key_file");
    wrong.restart.emplace().directory = nul;
    is_refused("directory");
    wrong.restart.emplace().args = {"app", nul};
    is_refused("args");

    const httpdown::server server(serving(hello));
    httpdown::restart_options restart;
    restart.env = {"A=" + nul};
    CHECK(server.restart(restart, status, &what) == 0 && status == HTTPDOWN_STATUS_INVALID_ARGUMENT);
    CHECK(what == "env contains a NUL");
    CHECK(status_of([&] { server.restart(restart); }) == HTTPDOWN_STATUS_INVALID_ARGUMENT);
    CHECK(status_of([&] { server.restart_begin(restart); }) == HTTPDOWN_STATUS_INVALID_ARGUMENT);
    httpdown::tls_options tls;
    tls.more.emplace_back().cert_file = nul;
    CHECK(!server.tls_reload(tls, status, &what) && what == "tls.more.cert_file contains a NUL");
}

static void what_is_borrowed_may_be_the_answer() {
    httpdown::server server(serving([](request request) {
        const auto method = request.method(), agent = request.header("host");
        request.reply(200, method, {{"x-host", agent}});
    }));
    for (const std::string method : {"GET", "BREW", "A-METHOD-THAT-IS-QUITE-LONG"}) {
        const auto answer = ask(server.local_addr(), "/", method);
        CHECK(contains(answer, "x-host: test\r\n"));
        CHECK(ends_with(answer, "\r\n\r\n" + method));
    }
}

static void it_echoes() {
    httpdown::server server(serving([](request request) {
        if (request.path() == "/whole") {
            const auto body = request.body(1 << 20);
            body ? request.reply_owned(200, std::string(*body)) : request.reply_text(413, "too long");
            return;
        }
        char buffer[4096];
        if (!request.start(200)) return;
        while (auto count = request.read(buffer, sizeof buffer)) {
            if (*count == 0) {
                request.finish();
                return;
            }
            if (!request.write({buffer, *count})) return;
        }
    }));
    const std::string body(1 << 20, 'x');
    CHECK(ends_with(ask(server.local_addr(), "/whole", "POST", body), "\r\n\r\n" + body));
    CHECK(starts_with(ask(server.local_addr(), "/whole", "POST", body + "x"), "HTTP/1.1 413 "));

    const auto pieces = ask(server.local_addr(), "/pieces", "POST", "some text");
    CHECK(contains(pieces, "transfer-encoding: chunked\r\n"));
    CHECK(ends_with(pieces, "\r\n\r\n9\r\nsome text\r\n0\r\n\r\n"));
    CHECK(server.stop().failed == 0);
}

struct not_a_std_exception {};

static void an_exception_is_a_500_and_a_line() {
    lines log;
    auto options = serving([](request request) {
        if (request.path() == "/throw") throw std::runtime_error("out of tea");
        if (request.path() == "/odd") throw not_a_std_exception();
        hello(std::move(request));
    });
    options.on_log = [&](httpdown_log_level level, std::string_view text) {
        CHECK(level == HTTPDOWN_LOG_ERROR);
        log.add(std::string(text));
        throw std::runtime_error("lost");
    };
    httpdown::server server(std::move(options));
    CHECK(starts_with(ask(server.local_addr(), "/throw"), "HTTP/1.1 500 "));
    CHECK(log.wait_for("a handler has thrown: out of tea"));
    CHECK(starts_with(ask(server.local_addr(), "/odd"), "HTTP/1.1 500 "));
    CHECK(log.wait_for("has thrown something that is not a std::exception"));
    CHECK(starts_with(ask(server.local_addr(), "/"), "HTTP/1.1 200 "));
    CHECK(server.stop().served == 3); // a 500 is an answer
}

static void an_exception_within_an_answer_cuts_it() {
    lines log;
    std::promise<void> seen;
    auto options = serving([&](request request) {
        request.start(200);
        request.write("half of");
        seen.get_future().wait();
        throw std::runtime_error("out of tea");
    });
    options.on_log = [&](httpdown_log_level, std::string_view text) { log.add(std::string(text)); };
    httpdown::server server(std::move(options));
    client one(server.local_addr());
    one.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    CHECK(starts_with(one.read_until("half of"), "HTTP/1.1 200 "));
    seen.set_value();
    const auto answer = one.read_all();
    CHECK(!ends_with(answer, "0\r\n\r\n"));
    CHECK(log.wait_for("out of tea"));
    CHECK(server.stop().failed == 1);
}

static void an_answer_can_come_later_and_elsewhere() {
    std::promise<request> later;
    httpdown::server server(serving([&](request request) { later.set_value(std::move(request)); }));
    std::thread other([&] {
        auto request = later.get_future().get();
        request.reply_text(200, "later");
    });
    CHECK(ends_with(ask(server.local_addr(), "/"), "later"));
    other.join();
    CHECK(server.stop().served == 1);
}

static void a_stop_waits_for_an_answer_that_comes_later() {
    std::promise<request> later;
    httpdown::server server(serving([&](request request) { later.set_value(std::move(request)); }));
    client one(server.local_addr());
    one.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    auto request = later.get_future().get();
    server.stop_begin();
    CHECK(!server.wait(milliseconds(20)));
    CHECK(request.reply_text(200, "in time"));
    CHECK(ends_with(one.read_all(), "in time"));
    CHECK(server.wait().served == 1);
}

static void destroyed_without_an_answer_is_a_500() {
    httpdown::server server(serving([](request request) {
        if (request.path() == "/abort") {
            request.abort();
            request.abort(); // nothing to end any more
        }
    }));
    CHECK(starts_with(ask(server.local_addr(), "/"), "HTTP/1.1 500 "));
    CHECK(starts_with(ask(server.local_addr(), "/abort"), "HTTP/1.1 500 "));
}

/// What a request says of its head outlives its answer, and its handler, as long as the request does.
static void the_head_outlives_the_answer() {
    std::promise<httpdown::request> kept;
    auto options = serving([&](request request) {
        const auto path = request.path(), method = request.method();
        CHECK(request.reply_text(200, "answered"));
        CHECK(!request && path == "/kept" && method == "PURGE");
        CHECK(request.path() == "/kept" && request.header("host") == "test" && request.headers().size() == 2);
        CHECK(request.cancelled());
        request.abort(); // Nothing is left to be ended.
        kept.set_value(std::move(request));
        CHECK(request.get() == nullptr && request.path().empty());
    });
    httpdown::request one;
    {
        httpdown::server server(std::move(options));
        client client(server.local_addr());
        client.send("PURGE /kept HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        client.read_all();
        one = kept.get_future().get();
        CHECK(server.stop().served == 1);
    }
    CHECK(!one && one.path() == "/kept" && is_client_addr(one.peer_addr()) && one.server().get() == nullptr);
    CHECK(status_of([&] { one.reply(200); }) == HTTPDOWN_STATUS_ALREADY_REPLIED);
    one = httpdown::request();
    CHECK(one.path().empty());
}

static void mistakes_are_errors() {
    httpdown::server server(serving([](request request) {
        CHECK(status_of([&] { request.write("too early"); }) == HTTPDOWN_STATUS_INVALID_ARGUMENT);
        CHECK(status_of([&] { request.start(99); }) == HTTPDOWN_STATUS_INVALID_ARGUMENT);
        CHECK(status_of([&] { request.start(200, {{"two\r\nlines", ""}}); }) == HTTPDOWN_STATUS_INVALID_ARGUMENT);
        try {
            request.start(200, {{"x", "two\r\nlines"}});
        } catch (const httpdown::error &why) {
            CHECK(std::string_view(why.what()) == "not a value for the header x: \"two\\r\\nlines\"");
        }
        CHECK(status_of([&] { request.reply(200, "", {{"x", "two\r\nlines"}}); }) == HTTPDOWN_STATUS_INVALID_ARGUMENT);
        CHECK(!request);
        CHECK(status_of([&] { request.reply(200); }) == HTTPDOWN_STATUS_ALREADY_REPLIED);
        CHECK(status_of([&] { request.body(1); }) == HTTPDOWN_STATUS_ALREADY_REPLIED);
        CHECK(status_of([&] { request.finish(); }) == HTTPDOWN_STATUS_ALREADY_REPLIED);
    }));
    CHECK(starts_with(ask(server.local_addr(), "/"), "HTTP/1.1 500 "));
}

static void files_are_answers() {
    char path[] = "/tmp/httpdown-cpp-XXXXXX";
    const int made = mkstemp(path);
    CHECK(made >= 0 && write(made, "0123456789", 10) == 10);
    const auto opened = [&path] { return open(path, O_RDONLY | O_CLOEXEC); };
    const auto is_open = [](int fd) { return fcntl(fd, F_GETFD) >= 0; };
    httpdown::server server(serving([&](request request) {
        const auto target = request.path();
        if (target == "/all") CHECK(request.reply_fd(200, opened()));
        else if (target == "/part") CHECK(request.reply_fd(299, opened(), {{"x-part", "yes"}}, 2, 3));
        else if (target == "/rest") CHECK(request.reply_fd(200, opened(), {}, 8));
        else if (target == "/file") CHECK(request.reply_file(path, {{"content-type", "text/digits"}}));
        else if (target == "/open") CHECK(request.reply_open_file(opened()));
        else if (target == "/absent") CHECK(request.reply_file(std::string(path) + "/none"));
        else {
            CHECK(status_of([&] { request.reply_file(std::string(path) + std::string(1, '\0')); }) ==
                  HTTPDOWN_STATUS_INVALID_ARGUMENT);
            // Whatever becomes of a call, its descriptor is closed.
            const int first = opened(), second = opened();
            CHECK(status_of([&] { request.reply_fd(200, first); }) == HTTPDOWN_STATUS_ALREADY_REPLIED);
            CHECK(status_of([&] { request.reply_open_file(second); }) == HTTPDOWN_STATUS_ALREADY_REPLIED);
            CHECK(!is_open(first) && !is_open(second));
        }
    }));
    const auto addr = server.local_addr();
    CHECK(ends_with(ask(addr, "/all"), "\r\n\r\n0123456789"));
    CHECK(contains(ask(addr, "/all", "HEAD"), "content-length: 10\r\n"));
    const auto part = ask(addr, "/part");
    CHECK(starts_with(part, "HTTP/1.1 299 ") && ends_with(part, "\r\n\r\n234"));
    CHECK(contains(part, "x-part: yes\r\n"));
    CHECK(ends_with(ask(addr, "/rest"), "\r\n\r\n89"));
    const auto file = ask(addr, "/file");
    CHECK(contains(file, "content-type: text/digits\r\n") && contains(file, "etag: W/\""));
    CHECK(contains(file, "last-modified: ") && ends_with(file, "\r\n\r\n0123456789"));
    CHECK(starts_with(ask(addr, "/open", "POST"), "HTTP/1.1 405 "));
    CHECK(starts_with(ask(addr, "/absent"), "HTTP/1.1 404 "));
    CHECK(starts_with(ask(addr, "/wrong"), "HTTP/1.1 500 "));
    client one(addr);
    one.send("GET /open HTTP/1.1\r\nHost: test\r\nRange: bytes=-2\r\nConnection: close\r\n\r\n");
    const auto range = one.read_all();
    CHECK(starts_with(range, "HTTP/1.1 206 ") && contains(range, "content-range: bytes 8-9/10\r\n"));
    CHECK(ends_with(range, "\r\n\r\n89"));
    CHECK(httpdown::content_type("a/b.PNG") == "image/png");
    CHECK(server.stop().served == 9);
    close(made);
    unlink(path);
}

static void a_client_that_leaves_is_no_error() {
    std::promise<void> done;
    httpdown::server server(serving([&](request request) {
        CHECK(request.start(200));
        CHECK(request.write("begun"));
        CHECK(request.wait_cancelled(seconds(30)));
        CHECK(request.cancelled());
        CHECK(!request.write("more"));
        CHECK(!request.finish());
        done.set_value();
    }));
    client one(server.local_addr());
    one.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    one.read_until("begun");
    one.leave();
    done.get_future().wait();
    CHECK(server.stop().gone == 1);
}

static void servers_and_requests_move() {
    static_assert(!std::is_copy_constructible_v<httpdown::server> && !std::is_copy_constructible_v<request>);
    static_assert(std::is_nothrow_move_constructible_v<httpdown::server>);
    static_assert(std::is_nothrow_move_assignable_v<httpdown::server>);
    static_assert(std::is_nothrow_move_constructible_v<request> && std::is_nothrow_move_assignable_v<request>);

    auto options = serving([](request request) {
        auto view = request.path();
        auto moved = std::move(request);
        CHECK(!request && moved);
        CHECK(view == moved.path()); // what is borrowed does not move
        request = std::move(moved);
        request.reply_text(200, view);
    });
    options.addr = "127.0.0.1:0";
    std::vector<httpdown::server> servers;
    for (int i = 0; i < 3; i++) servers.emplace_back(options); // one value, several servers
    const auto last = servers[2].local_addr();
    CHECK(ends_with(ask(last, "/moved"), "/moved"));

    const auto first = servers[0].local_addr();
    servers[0] = std::move(servers[2]); // ends the one that was there
    CHECK(!client(first).connected());
    CHECK(servers[0].local_addr() == last);
    CHECK(status_of([&] { servers[2].report(); }) == HTTPDOWN_STATUS_INVALID_ARGUMENT);
    CHECK(ends_with(ask(last, "/again"), "/again"));
}

static void a_handler_cannot_wait_for_itself() {
    std::promise<int> status;
    httpdown::server server(serving([&](request request) {
        status.set_value(status_of([&] { request.server().stop(); }));
        request.reply_text(200, "stopping");
    }));
    CHECK(ends_with(ask(server.local_addr(), "/"), "stopping"));
    CHECK(status.get_future().get() == HTTPDOWN_STATUS_WOULD_DEADLOCK);
    CHECK(server.wait().served == 1); // the stop had begun
}

static void a_server_can_be_destroyed_by_its_handler() {
    std::promise<void> made;
    std::unique_ptr<httpdown::server> server;
    const auto gone = std::make_shared<std::promise<void>>();
    // Ends with the handler, and says so.
    std::shared_ptr<void> witness(nullptr, [gone](void *) { gone->set_value(); });
    server = std::make_unique<httpdown::server>(
        serving([&, witness, ready = made.get_future().share()](request request) {
            ready.wait();
            server.reset();
            request.reply_text(200, "the last one");
        }));
    witness.reset();
    const auto where = server->local_addr();
    made.set_value();
    CHECK(ends_with(ask(where, "/"), "the last one"));
    gone->get_future().wait();
}

static void callbacks_are_destroyed_once() {
    const auto state = std::make_shared<int>(0);
    const auto handler = [state](request request) { hello(std::move(request)); };
    {
        httpdown::server server(serving(handler));
        const auto moved = std::move(server);
        CHECK(state.use_count() == 3); // here, in `handler`, and the server's
        ask(moved.local_addr(), "/");
    }
    CHECK(state.use_count() == 2);

    auto bad = serving(handler);
    bad.addr = "nowhere";
    CHECK(status_of([&] { httpdown::server server(std::move(bad)); }) == HTTPDOWN_STATUS_ADDR_INVALID);
    CHECK(state.use_count() == 2);
}

static void a_kill_is_an_error_with_the_counts() {
    const httpdown::mock_clock clock;
    std::promise<void> begun;
    auto options = serving([&](request request) {
        begun.set_value();
        CHECK(request.wait_cancelled());
        CHECK(!request.reply_text(200, "too late"));
    });
    options.clock = &clock;
    options.stop_timeout = seconds(10);
    httpdown::server server(std::move(options));
    client one(server.local_addr());
    one.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    begun.get_future().wait();

    auto stopped = std::async(std::launch::async, [&] {
        try {
            server.stop();
        } catch (const httpdown::stop_error &error) {
            CHECK(error.report().killed == 1 && error.report().stop_duration_ms == 10000);
            return error.status();
        }
        return 0;
    });
    CHECK(clock.wait_for_timers(1, seconds(30)));
    clock.advance(milliseconds(9999));
    CHECK(!server.wait(milliseconds(20)));
    clock.advance(milliseconds(1));
    CHECK(one.read_all().empty());
    CHECK(stopped.get() == HTTPDOWN_STATUS_KILLED);
    CHECK(status_of([&] { server.wait(); }) == HTTPDOWN_STATUS_KILLED);
    CHECK(server.report().status == HTTPDOWN_STATUS_KILLED);
}

static void an_abandoned_handler_is_an_error_too() {
    const httpdown::mock_clock clock;
    std::promise<void> begun, go_on;
    const auto gone = std::make_shared<std::promise<void>>();
    {
        std::shared_ptr<void> witness(nullptr, [gone](void *) { gone->set_value(); });
        auto options = serving([&, witness](request) {
            begun.set_value();
            go_on.get_future().wait(); // whatever happens to the request
        });
        witness.reset();
        options.clock = &clock;
        options.stop_timeout = milliseconds(0);
        options.kill_timeout = seconds(1);
        httpdown::server server(std::move(options));
        client one(server.local_addr());
        one.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
        begun.get_future().wait();
        server.kill_begin();
        auto stopped = std::async(std::launch::async, [&] { return status_of([&] { server.stop(); }); });
        CHECK(clock.wait_for_timers(1)); // that of the kill: a stop timeout of 0 needs none
        clock.advance(seconds(1));
        CHECK(stopped.get() == HTTPDOWN_STATUS_TIMED_OUT);
        CHECK(server.report().abandoned == 1);
    }
    go_on.set_value();
    gone->get_future().wait(); // its state goes when it has returned
}

static void a_lame_duck_ends_when_it_is_quiet() {
    const httpdown::mock_clock clock;
    auto options = serving(hello);
    options.clock = &clock;
    options.ready_path = "/ready";
    options.lame_duck = seconds(60);
    options.lame_duck_min = seconds(8);
    options.lame_duck_quiet = seconds(5);
    httpdown::server server(std::move(options));
    const auto addr = server.local_addr();
    CHECK(server.ready());
    CHECK(ends_with(ask(addr, "/ready"), "ready\n"));
    server.stop_begin();
    CHECK(clock.wait_for_timers(2, seconds(30)));
    CHECK(!server.ready());
    clock.advance(seconds(4));
    CHECK(ends_with(ask(addr, "/"), "Hello, World!"));
    clock.advance(seconds(4)); // The least time is over, but it is not quiet for long enough.
    CHECK(clock.wait_for_timers(2, seconds(30)));
    const auto answer = ask(addr, "/ready");
    CHECK(starts_with(answer, "HTTP/1.1 503 "));
    CHECK(ends_with(answer, "stopping\n"));
    CHECK(server.phase() == HTTPDOWN_PHASE_LAME_DUCK);
    clock.advance(seconds(1));
    CHECK(server.stop().stop_duration_ms == 9000);
}

static void idle_connections_are_closed_and_told_so() {
    auto options = serving(hello);
    options.idle_timeout = milliseconds(1100);
    options.idle_grace = milliseconds(0);
    options.keep_alive_header = true;
    httpdown::server server(std::move(options));
    client one(server.local_addr());
    one.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    CHECK_CONTAINS(one.read_all(), "keep-alive: timeout=1\r\n");
    CHECK(server.stop().closed_idle == 1);
}

static void bad_options_are_errors_with_a_reason() {
    const auto refused = [](httpdown::options options, int status, std::string_view reason) {
        try {
            httpdown::server server(std::move(options));
            not_so(__FILE__, __LINE__, "it is refused");
        } catch (const httpdown::error &error) {
            CHECK(error.status() == status);
            CHECK_CONTAINS(error.what(), reason);
        }
    };
    refused({}, HTTPDOWN_STATUS_INVALID_ARGUMENT, "handler");
    auto options = serving(hello);
    options.dispatch = HTTPDOWN_DISPATCH_QUEUE;
    refused(options, HTTPDOWN_STATUS_INVALID_ARGUMENT, "handler");
    options = serving(hello);
    options.addr = "127.0.0.1:99999";
    refused(options, HTTPDOWN_STATUS_ADDR_INVALID, "99999");
    options.addr = any_addr();
    options.fds = {-1};
    refused(options, HTTPDOWN_STATUS_INVALID_ARGUMENT, "-1");
    options.fds = {};
    options.pull_events = HTTPDOWN_EVENT_LOG;
    options.on_phase = [](httpdown::server_ref, httpdown_phase_code) {};
    refused(options, HTTPDOWN_STATUS_INVALID_ARGUMENT, "pull_events");

    options = serving(hello);
    options.ready_path = "ready";
    refused(options, HTTPDOWN_STATUS_INVALID_ARGUMENT, "ready_path \"ready\"");
    options.ready_path = "/ready";
    options.lame_duck = seconds(5);
    options.lame_duck_min = seconds(6);
    refused(options, HTTPDOWN_STATUS_INVALID_ARGUMENT, "lame_duck_min (6s)");
    options.lame_duck_min = {};
    options.lame_duck_quiet = httpdown::forever;
    refused(options, HTTPDOWN_STATUS_INVALID_ARGUMENT, "lame_duck_quiet");

    options = serving(hello);
    options.idle_timeout = seconds(0);
    refused(options, HTTPDOWN_STATUS_INVALID_ARGUMENT, "idle_timeout is 0");
    options.idle_timeout = httpdown::forever;
    options.keep_alive_header = true;
    refused(options, HTTPDOWN_STATUS_INVALID_ARGUMENT, "there is no idle_timeout");

    httpdown::server server(serving(hello));
    options = serving(hello);
    options.addr = server.local_addr();
    refused(options, HTTPDOWN_STATUS_ADDR_IN_USE, server.local_addr());
}

static void tls_can_only_be_replaced_where_it_is() {
    httpdown::server server(serving(hello));
    CHECK(status_of([&] { server.tls_reload({}); }) == HTTPDOWN_STATUS_INVALID_ARGUMENT);
    CHECK(status_of([] { httpdown::server_ref().tls_reload({}); }) == HTTPDOWN_STATUS_INVALID_ARGUMENT);
    CHECK(status_of([] { request().tls(); }) == HTTPDOWN_STATUS_INVALID_ARGUMENT);
}

static void it_takes_over_listening_descriptors() {
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in any{};
    any.sin_family = AF_INET;
    any.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(bind(fd, reinterpret_cast<const sockaddr *>(&any), sizeof any) == 0 && listen(fd, 8) == 0);

    auto options = serving(hello);
    options.fds = {fd};
    options.addr = "nowhere";
    CHECK(status_of([&] { httpdown::server server(options); }) == HTTPDOWN_STATUS_ADDR_INVALID);
    CHECK(fcntl(fd, F_GETFD) != -1); // still ours

    options.addr = "";
    httpdown::server server(options);
    CHECK(fcntl(fd, F_GETFD) == -1);
    CHECK(ends_with(ask(server.local_addr(), "/"), "Hello, World!"));
}

static void requests_can_be_taken_from_the_queue() {
    httpdown::options options;
    options.addr = any_addr();
    options.dispatch = HTTPDOWN_DISPATCH_QUEUE;
    httpdown::server server(std::move(options));
    auto early = server.next(milliseconds(0));
    CHECK(early && !*early);

    auto first = std::async(std::launch::async, [&] { return ask(server.local_addr(), "/first"); });
    pollfd readable{server.queue_fd(), POLLIN, 0};
    CHECK(poll(&readable, 1, 30000) == 1);
    auto taken = server.next();
    CHECK(taken && taken->path() == "/first");
    CHECK(status_of([&] { server.stop(); }) == HTTPDOWN_STATUS_WOULD_DEADLOCK);
    taken->reply_text(200, "taken");
    CHECK(ends_with(first.get(), "taken"));
    CHECK(server.wait().served == 1);
    CHECK(!server.next()); // none can come any more
    pollfd ended{server.event_fd(), POLLIN, 0};
    CHECK(poll(&ended, 1, 30000) == 1);

    httpdown::server other(serving(hello));
    CHECK(status_of([&] { other.next(); }) == HTTPDOWN_STATUS_INVALID_ARGUMENT);
    CHECK(status_of([&] { other.queue_fd(); }) == HTTPDOWN_STATUS_INVALID_ARGUMENT);
}

static void threads_can_share_the_queue() {
    httpdown::options options;
    options.addr = any_addr();
    options.dispatch = HTTPDOWN_DISPATCH_QUEUE;
    httpdown::server server(std::move(options));
    std::vector<std::thread> takers;
    for (int i = 0; i < 4; i++)
        takers.emplace_back([&] {
            while (auto request = server.next()) request->reply_text(200, request->path());
        });
    for (int i = 0; i < 20; i++) {
        const auto path = "/" + std::to_string(i);
        CHECK(ends_with(ask(server.local_addr(), path), path));
    }
    CHECK(server.stop().served == 20);
    for (auto &taker : takers) taker.join();
}

static void inline_dispatch_serves_in_place() {
    std::promise<int> status;
    auto options = serving([&](request request) {
        char byte;
        if (request.method() == "POST") status.set_value(status_of([&] { request.read(&byte, 1); }));
        hello(std::move(request));
    });
    options.dispatch = HTTPDOWN_DISPATCH_INLINE;
    options.io_threads = 1;
    httpdown::server server(std::move(options));
    CHECK(ends_with(ask(server.local_addr(), "/"), "Hello, World!"));
    client one(server.local_addr());
    one.send("POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n");
    CHECK(status.get_future().get() == HTTPDOWN_STATUS_WOULD_BLOCK);
    one.read_until("World!");
}

static void callbacks_tell_what_happens() {
    lines told;
    {
        auto options = serving(hello);
        options.on_phase = [&](httpdown::server_ref server, httpdown_phase_code phase) {
            CHECK(!server.local_addr().empty());
            told.add("phase " + std::to_string(phase));
            if (phase == HTTPDOWN_PHASE_DRAINING) throw std::runtime_error("out of tea");
        };
        options.on_conn_state = [&](httpdown::server_ref server, std::uint64_t, httpdown_conn_state state,
                                    std::string_view peer) {
            CHECK(server.phase() <= HTTPDOWN_PHASE_STOPPED && is_client_addr(peer));
            told.add("conn " + std::to_string(state));
        };
        options.on_log = [&](httpdown_log_level, std::string_view text) { told.add(std::string(text)); };
        options.bump_sum = [&](std::string_view key, double value) {
            told.add("sum " + std::string(key) + " " + std::to_string(static_cast<int>(value)));
            if (key == "serve") throw std::runtime_error("out of milk");
        };
        options.bump_time = [&](std::string_view key, double) { told.add("time " + std::string(key)); };
        options.bump_histogram = [&](std::string_view key, double) { told.add("histogram " + std::string(key)); };
        httpdown::server server(std::move(options));
        ask(server.local_addr(), "/");
        server.stop();
    }
    // All of it has been told when the server is destroyed.
    const auto all = told.joined();
    for (const char *line : {"phase 0", "conn 0", "conn 1", "conn 4", "phase 2", "phase 3", "phase 5", "sum serve 1",
                             "sum stop 1", "sum conn.closed 1", "histogram stop.conn.count", "time stop.time",
                             "on_phase has thrown: out of tea",
                             "a callback for statistics has thrown: out of milk"})
        CHECK_CONTAINS(all, line + std::string("\n"));
}

static void events_can_be_pulled() {
    auto options = serving(hello);
    options.pull_events = HTTPDOWN_EVENT_PHASE;
    httpdown::server server(std::move(options));
    auto event = server.next_event();
    CHECK(event && event->kind == HTTPDOWN_EVENT_PHASE && event->code == HTTPDOWN_PHASE_SERVING);
    event = server.next_event(milliseconds(0));
    CHECK(event && event->kind == 0);
    server.stop_begin();
    int last = -1;
    while ((event = server.next_event())) last = event->code;
    CHECK(last == HTTPDOWN_PHASE_STOPPED);
}

static void records_tell_what_became_of_each_request() {
    lines told;
    auto options = serving([](request request) {
        CHECK(request.data() == nullptr);
        request.set_data(std::string("alice"));
        CHECK(std::any_cast<std::string>(*request.data()) == "alice");
        request.reply_text(200, "hello");
        CHECK(std::any_cast<std::string>(*request.data()) == "alice");
        CHECK(status_of([&] { request.set_data(1); }) == HTTPDOWN_STATUS_ALREADY_REPLIED);
    });
    options.on_done = [&](const httpdown::request_record &record) {
        CHECK(record.end() == HTTPDOWN_END_SERVED && record.status() == 200 && record.version() == 11);
        CHECK(record.conn_id() == 0 && record.number() == 1 && !record.tls() && is_client_addr(record.peer()));
        CHECK(record.method() == "POST" && record.target() == "/a?b" && record.referer().data() == nullptr);
        CHECK(record.received() == 4 && record.sent() == 5);
        CHECK(*record.head() <= *record.called() && *record.called() <= *record.answered());
        CHECK(*record.answered() <= *record.flushed() && *record.flushed() <= record.ended());
        CHECK(record.began() <= std::chrono::system_clock::now() && record.user_agent().data() == nullptr);
        CHECK(std::any_cast<std::string>(*record.data()) == "alice");
        CHECK(contains(record.json(), "\"target\":\"/a?b\""));
        CHECK(record.combined_log() == record.common_log() + " \"-\" \"-\"");
        told.add(record.common_log());
        throw std::runtime_error("out of ink");
    };
    options.on_log = [&](httpdown_log_level, std::string_view text) { told.add(std::string(text)); };
    {
        httpdown::server server(std::move(options));
        ask(server.local_addr(), "/a?b", "POST", "body");
    }
    CHECK_CONTAINS(told.joined(), std::string("\"POST /a?b HTTP/1.1\" 200 5\n"));
    CHECK_CONTAINS(told.joined(), std::string("on_done has thrown: out of ink\n"));
}

static void a_run_ends_with_a_signal() {
    auto options = serving(hello);
    options.on_phase = [](httpdown::server_ref server, httpdown_phase_code phase) {
        if (phase != HTTPDOWN_PHASE_SERVING) return;
        CHECK(ends_with(ask(server.local_addr(), "/"), "Hello, World!"));
        CHECK(status_of([] { httpdown::run(serving(hello)); }) == HTTPDOWN_STATUS_UNSUPPORTED);
        kill(getpid(), SIGTERM);
    };
    CHECK(httpdown::run(options).served == 1);

    options.stop_timeout = milliseconds(0);
    std::promise<void> begun;
    options.handler = [&](request request) {
        begun.set_value();
        CHECK(request.wait_cancelled());
    };
    options.on_phase = [&](httpdown::server_ref server, httpdown_phase_code phase) {
        if (phase != HTTPDOWN_PHASE_SERVING) return;
        client one(server.local_addr());
        one.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
        begun.get_future().wait();
        kill(getpid(), SIGTERM);
        CHECK(one.read_all().empty());
    };
    try {
        httpdown::run(options);
        not_so(__FILE__, __LINE__, "it ends with an error");
    } catch (const httpdown::stop_error &error) {
        CHECK(error.status() == HTTPDOWN_STATUS_KILLED);
        CHECK(error.report().killed == 1);
    }
    options.addr = "nowhere";
    CHECK(status_of([&] { httpdown::run(options); }) == HTTPDOWN_STATUS_ADDR_INVALID);
}

static void several_servers_end_with_one_signal() {
    constexpr int count = 3;
    std::atomic<int> serving_now{0};
    const auto several = [&](auto handler) {
        std::vector<httpdown::options> all;
        for (int i = 0; i < count; i++) {
            all.push_back(serving(handler));
            all.back().stop_timeout = milliseconds(0);
            all.back().on_phase = [&](httpdown::server_ref server, httpdown_phase_code phase) {
                if (phase != HTTPDOWN_PHASE_SERVING) return;
                CHECK(ends_with(ask(server.local_addr(), "/"), "Hello, World!"));
                // The last one that has been asked.
                if (++serving_now == count) kill(getpid(), SIGTERM);
            };
        }
        return all;
    };
    auto reports = httpdown::run_all(several(hello));
    CHECK(reports.size() == count);
    for (const auto &report : reports) CHECK(report.served == 1 && report.phase == HTTPDOWN_PHASE_STOPPED);

    // One is cut.
    serving_now = 0;
    std::promise<void> begun;
    std::thread client_of_it;
    auto all = several(hello);
    all[1].handler = [&](request request) {
        begun.set_value();
        CHECK(request.wait_cancelled());
    };
    all[1].on_phase = [&](httpdown::server_ref server, httpdown_phase_code phase) {
        if (phase != HTTPDOWN_PHASE_SERVING) return;
        client_of_it = std::thread([addr = server.local_addr()] { ask(addr, "/"); });
        begun.get_future().wait();
        if (++serving_now == count) kill(getpid(), SIGTERM);
    };
    try {
        httpdown::run_all(std::move(all));
        not_so(__FILE__, __LINE__, "it ends with an error");
    } catch (const httpdown::stop_error &error) {
        CHECK(error.status() == HTTPDOWN_STATUS_KILLED);
        CHECK(error.report().killed == 1 && error.report().served == 0);
    }
    client_of_it.join();

    // One cannot be started.
    serving_now = -count;
    all = several(hello);
    all[2].addr = "nowhere";
    int status = HTTPDOWN_STATUS_OK;
    std::string what;
    for (auto &one : all) one.on_phase = nullptr;
    reports = httpdown::run_all(all, status, &what);
    CHECK(status == HTTPDOWN_STATUS_ADDR_INVALID && starts_with(what, "server 2 (nowhere): "));
    CHECK(reports[1].phase == HTTPDOWN_PHASE_STOPPED && reports[2].phase != HTTPDOWN_PHASE_STOPPED);
    CHECK(status_of([&] { httpdown::run_all(all); }) == HTTPDOWN_STATUS_ADDR_INVALID);
    CHECK(status_of([] { httpdown::run_all({}); }) == HTTPDOWN_STATUS_INVALID_ARGUMENT);
}

static void two_files_can_include_it() {
    CHECK(ends_with(ask_a_server_of_the_other_file(), "from the other file"));
}

int main(int argc, char **argv) {
    this_program = argv[0];
    int status = 0;
    if (argc > 1 && is_for_restarts(argv[1], status)) return status;
#define TEST(name) {#name, name}
    const struct {
        const char *name;
        void (*run)();
    } tests[] = {
        TEST(it_says_hello),
        TEST(it_reads_what_was_sent),
        TEST(it_decodes_the_query),
        TEST(a_handler_may_be_one_that_only_moves),
        TEST(a_body_that_is_too_large_is_not_a_client_that_has_left),
        TEST(servers_can_be_started_without_throwing),
        TEST(without_exceptions),
        TEST(what_is_borrowed_may_be_the_answer),
        TEST(it_echoes),
        TEST(an_exception_is_a_500_and_a_line),
        TEST(an_exception_within_an_answer_cuts_it),
        TEST(an_answer_can_come_later_and_elsewhere),
        TEST(a_stop_waits_for_an_answer_that_comes_later),
        TEST(destroyed_without_an_answer_is_a_500),
        TEST(the_head_outlives_the_answer),
        TEST(mistakes_are_errors),
        TEST(files_are_answers),
        TEST(a_client_that_leaves_is_no_error),
        TEST(servers_and_requests_move),
        TEST(a_handler_cannot_wait_for_itself),
        TEST(a_server_can_be_destroyed_by_its_handler),
        TEST(callbacks_are_destroyed_once),
        TEST(a_kill_is_an_error_with_the_counts),
        TEST(an_abandoned_handler_is_an_error_too),
        TEST(a_lame_duck_ends_when_it_is_quiet),
        TEST(idle_connections_are_closed_and_told_so),
        TEST(bad_options_are_errors_with_a_reason),
        TEST(a_request_by_tls_says_how_it_came),
        TEST(clients_can_have_certificates),
        TEST(certificates_are_chosen_by_name_and_replaced),
        TEST(bad_tls_settings_are_errors_with_a_reason),
        TEST(tls_can_only_be_replaced_where_it_is),
        TEST(it_takes_over_listening_descriptors),
        TEST(requests_can_be_taken_from_the_queue),
        TEST(threads_can_share_the_queue),
        TEST(inline_dispatch_serves_in_place),
        TEST(a_stream_goes_both_ways),
        TEST(a_stream_ends_with_the_drain),
        TEST(a_queue_tells_of_streams),
        TEST(what_asks_for_no_upgrade_gets_none),
        TEST(an_echo_needs_no_thread),
        TEST(what_happens_is_told_once),
        TEST(a_stream_ends_when_the_server_drains),
        TEST(a_request_that_is_overdue_is_as_good_as_before),
        TEST(one_thread_serves_all_by_the_queue),
        TEST(waiting_has_a_limit),
        TEST(trailers_go_both_ways),
        TEST(callbacks_tell_what_happens),
        TEST(events_can_be_pulled),
        TEST(records_tell_what_became_of_each_request),
        TEST(a_program_restarts_itself),
        TEST(a_restart_can_be_refused),
        TEST(a_text_with_a_nul_is_refused),
        TEST(a_run_ends_with_a_signal),
        TEST(several_servers_end_with_one_signal),
        TEST(two_files_can_include_it),
    };
    int failed = 0, passed = 0;
    for (const auto &test : tests) {
        const int before = failures;
        test.run();
        const bool good = failures == before;
        good ? passed++ : failed++;
        std::printf("%s %s\n", good ? "ok  " : "FAIL", test.name);
        std::fflush(stdout);
    }
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
