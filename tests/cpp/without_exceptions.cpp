// Built with -fno-exceptions, in one program with files that have them: what would be thrown there is told here.
#include "test.hpp"

#ifdef __cpp_exceptions
#error "to be built with -fno-exceptions"
#endif

using httpdown::milliseconds;

static void handle(httpdown::request request) {
    CHECK(!request.write("too early") && request.status() == HTTPDOWN_STATUS_INVALID_ARGUMENT);
    CHECK(!request.start(99) && request.status() == HTTPDOWN_STATUS_INVALID_ARGUMENT);
    CHECK(!request.query_value(nullptr));
    const auto body = request.body(3);
    if (!body) {
        CHECK(request.status() == HTTPDOWN_STATUS_TOO_LARGE);
        request.reply_text(413, "too long");
    } else if (request.path() == "/two") {
        CHECK(!request.reply(200, "", {{"x", "two\r\nlines"}}) && request.status() == HTTPDOWN_STATUS_INVALID_ARGUMENT);
    } else {
        CHECK(request.reply(200, *body) && request.status() == HTTPDOWN_STATUS_OK);
    }
    CHECK(!request && !request.reply(200) && request.status() == HTTPDOWN_STATUS_ALREADY_REPLIED);
    CHECK(!request.finish() && !request.body(1) && !request.read(nullptr, 1));
    CHECK(request.wait_cancelled(milliseconds(0)));
}

static void servers_tell_what_they_came_to() {
    int status = -1;
    std::string what;
    auto server = httpdown::server::start(serving(handle), status, &what);
    CHECK(server && status == HTTPDOWN_STATUS_OK && what.empty());
    if (!server) return;
    const auto addr = server->local_addr();
    CHECK(server->local_addr(1).empty() && server->queue_fd() == -1 && !server->next());
    CHECK(ends_with(ask(addr, "/", "POST", "abc"), "\r\n\r\nabc"));
    CHECK(starts_with(ask(addr, "/", "POST", "abcd"), "HTTP/1.1 413 "));
    CHECK(starts_with(ask(addr, "/two"), "HTTP/1.1 500 "));

    auto taken = serving(handle);
    taken.addr = addr;
    CHECK(!httpdown::server::start(taken, status) && status == HTTPDOWN_STATUS_ADDR_IN_USE);
    CHECK(!httpdown::server::start(taken, status, &what) && contains(what, addr));
    const httpdown::server empty(taken);
    CHECK(empty.get() == nullptr && empty.report().status == HTTPDOWN_STATUS_INVALID_ARGUMENT);
    CHECK(empty.stop().status == HTTPDOWN_STATUS_INVALID_ARGUMENT);
    CHECK(httpdown::run(taken, status).status == HTTPDOWN_STATUS_OK && status == HTTPDOWN_STATUS_ADDR_IN_USE);
    CHECK(httpdown::run(taken).status == HTTPDOWN_STATUS_ADDR_IN_USE);
    const auto reports = httpdown::run_all({serving(handle), taken});
    CHECK(reports.size() == 2 && reports[0].status == HTTPDOWN_STATUS_OK);
    CHECK(reports[1].status == HTTPDOWN_STATUS_ADDR_IN_USE);
    CHECK(server->stop().status == HTTPDOWN_STATUS_OK && server->wait().served == 3);
}

static void a_cut_is_in_the_report() {
    auto options = serving([](httpdown::request request) {
        CHECK(request.start(200) && request.write("begun"));
        CHECK(request.wait_cancelled());
        CHECK(!request.finish() && request.status() == HTTPDOWN_STATUS_KILLED);
    });
    options.stop_timeout = milliseconds(0);
    const httpdown::server server(std::move(options));
    client one(server.local_addr());
    one.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    one.read_until("begun");
    const auto report = server.stop();
    CHECK(report.status == HTTPDOWN_STATUS_KILLED && report.killed == 1);
}

static void tls_tells_what_is_wrong_with_it() {
    auto options = serving(handle);
    options.tls.emplace();
    int status = -1;
    std::string what;
    CHECK(!httpdown::server::start(options, status, &what) && status == HTTPDOWN_STATUS_INVALID_ARGUMENT);
    CHECK_CONTAINS(what, "tls.cert");
    options.tls->cert = options.tls->key = "no PEM";
    CHECK(!httpdown::server::start(options, status, &what) && status == HTTPDOWN_STATUS_TLS && !what.empty());

    const httpdown::server server(serving(handle));
    CHECK(!server.tls_reload(*options.tls, status, &what) && status == HTTPDOWN_STATUS_TLS && !what.empty());
    server.tls_reload(*options.tls);
    CHECK(!httpdown::request().tls() && !httpdown::request().peer_credentials());
}

static void a_restart_tells_why_it_failed() {
    const httpdown::server server(serving(handle));
    httpdown::restart_options options;
    options.before = [] { return std::string("not now"); };
    int status = -1;
    std::string what;
    CHECK(server.restart(options, status, &what) == 0 && status == HTTPDOWN_STATUS_RESTART_FAILED);
    CHECK(what == "refused: not now");
    CHECK(server.restart(options) == 0 && httpdown::restart_ready());
    options.program = "not/absolute";
    CHECK(!server.restart_begin(options) && httpdown::restart_info().predecessors.empty());
}

void without_exceptions() {
    a_restart_tells_why_it_failed();
    tls_tells_what_is_wrong_with_it();
    servers_tell_what_they_came_to();
    a_cut_is_in_the_report();
}
