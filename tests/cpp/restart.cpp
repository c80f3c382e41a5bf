// Restarts. The program that is restarted is this one, started once more, because a process hands over only once (and
// because valgrind has no clone(2) as a restart needs it; it does not follow into other programs).
#include "test.hpp"

#include <cstdlib>
#include <cstring>

using httpdown::milliseconds;
using httpdown::restart_info;
using httpdown::restart_options;

// The name by which this program was started.
std::string this_program;

static httpdown::server serve_again() {
    auto options = serving([](httpdown::request asked) {
        const auto info = restart_info();
        const char *mark = std::getenv("MARK");
        if (asked.path() == "/stop") asked.server().stop_begin();
        asked.reply(200, "mark " + std::string(mark == nullptr ? "-" : mark) + ", generation " +
                             std::to_string(info.generation) + ", after " +
                             (info.predecessors.empty() ? "-" : std::to_string(info.predecessors[0])));
    });
    options.addr = "127.0.0.1:0";
    return httpdown::server(std::move(options));
}

static int succeed() {
    const auto server = serve_again();
    CHECK(httpdown::restart_ready());
    CHECK(server.wait().successor_pid == 0);
    return failures;
}

// What `on_restart` is told.
struct told {
    std::mutex mutex{};
    std::condition_variable changed{};
    int count = 0;
    int status = -1;
    std::string text{};
    std::uint32_t pid = 0;

    auto callback() {
        return [this](int how, std::string_view why, std::uint32_t successor) {
            const std::lock_guard<std::mutex> lock(mutex);
            status = how;
            text = why;
            pid = successor;
            count++;
            changed.notify_all();
            throw std::runtime_error("to nobody");
        };
    }

    void wait() {
        std::unique_lock<std::mutex> lock(mutex);
        CHECK(changed.wait_for(lock, std::chrono::seconds(30), [&] { return count > 0; }));
    }
};

static restart_options options_for(const char *how) {
    restart_options options;
    options.args = {this_program, how};
    options.probation = milliseconds(100);
    return options;
}

static int restart_this() {
    const auto server = serve_again();
    const auto addr = server.local_addr();
    told failing, good;

    auto options = options_for("fails");
    options.on_restart = failing.callback();
    CHECK(server.restart_begin(std::move(options)));
    failing.wait();
    CHECK(failing.status == HTTPDOWN_STATUS_RESTART_FAILED && failing.pid == 0);
    CHECK_CONTAINS(failing.text, "has exited with status 3");
    // Its end comes a moment later.
    while (restart_info().state != HTTPDOWN_RESTART_IDLE) std::this_thread::yield();
    try {
        server.restart(options_for("fails"));
        CHECK(!"the new process has failed");
    } catch (const httpdown::error &error) {
        CHECK(error.status() == HTTPDOWN_STATUS_RESTART_FAILED);
        CHECK_CONTAINS(error.what(), "it is not well");
    }
    CHECK_CONTAINS(ask(addr, "/"), "mark -, generation 0, after -");

    options = options_for("succeeds");
    options.env = {"MARK=yes"};
    int asked = 0;
    options.before = [&asked] { return asked++, std::string(); };
    options.on_restart = good.callback();
    const auto pid = server.restart(std::move(options));
    CHECK(pid != 0 && good.count == 1 && asked == 1);
    CHECK(good.status == HTTPDOWN_STATUS_OK && good.text.empty() && good.pid == pid);
    const auto info = restart_info();
    CHECK(info.state == HTTPDOWN_RESTART_HANDED_OVER && info.successor_pid == pid && info.predecessors.empty());
    CHECK(status_of([&] { server.restart(); }) == HTTPDOWN_STATUS_BUSY);
    CHECK(server.wait().successor_pid == pid);
    CHECK_CONTAINS(ask(addr, "/"), "mark yes, generation 1, after " + std::to_string(getpid()));
    ask(addr, "/stop");
    return failures;
}

// Whether the program is not to run the tests, but to do this.
bool is_for_restarts(const char *what, int &status) {
    alarm(120);
    if (std::strcmp(what, "restarts") == 0) return status = restart_this(), true;
    if (std::strcmp(what, "succeeds") == 0) return status = succeed(), true;
    if (std::strcmp(what, "fails") != 0) return false;
    std::fprintf(stderr, "it is not well\n");
    return status = 3, true;
}

void a_program_restarts_itself() {
    CHECK(std::system(("'" + this_program + "' restarts").c_str()) == 0);
}

void a_restart_can_be_refused() {
    const auto server = serve_again();
    int status = 0;
    std::string what;
    const auto alive = std::make_shared<int>(1);
    const auto refuse = [&](std::function<std::string()> before) {
        restart_options options;
        options.before = [before, alive] { return before(); };
        options.on_restart = [alive](int, std::string_view, std::uint32_t) {};
        CHECK(server.restart(std::move(options), status, &what) == 0);
        CHECK(status == HTTPDOWN_STATUS_RESTART_FAILED);
        CHECK(alive.use_count() == 1);
        return what;
    };
    CHECK(refuse([] { return std::string("not on Fridays"); }) == "refused: not on Fridays");
    CHECK(refuse([]() -> std::string { throw std::runtime_error("cannot tell"); }) == "refused: cannot tell");
    CHECK_CONTAINS(refuse([]() -> std::string { throw std::runtime_error(""); }), "refused: ");
    CHECK_CONTAINS(refuse([]() -> std::string { throw 1; }), "has thrown something");
    CHECK_CONTAINS(refuse([] { return std::string(5000, 'x'); }), "refused: xxx");

    restart_options wrong;
    wrong.program = "not/absolute";
    CHECK(status_of([&] { server.restart(wrong); }) == HTTPDOWN_STATUS_INVALID_ARGUMENT);
    CHECK(status_of([&] { server.restart_begin(wrong); }) == HTTPDOWN_STATUS_INVALID_ARGUMENT);
    wrong = {};
    wrong.env = {"no value"};
    CHECK(status_of([&] { server.restart(wrong); }) == HTTPDOWN_STATUS_INVALID_ARGUMENT);
    CHECK(status_of([&] { httpdown::server_ref().restart(); }) == HTTPDOWN_STATUS_INVALID_ARGUMENT);
    CHECK(restart_info().state == HTTPDOWN_RESTART_IDLE && restart_info().successor_pid == 0);
    CHECK(httpdown::restart_ready() && httpdown::run_ready());
    server.stop();
    CHECK(status_of([&] { server.restart(); }) == HTTPDOWN_STATUS_STOPPED);
}
