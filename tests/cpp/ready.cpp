// What happens to a request: told by callbacks, and by the queue.
#include "test.hpp"

#include <poll.h>

using httpdown::milliseconds;
using httpdown::request;
using std::chrono::seconds;

static const milliseconds now{0};
static const std::string chunked =
    "POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\n\r\n";

// An echo that never waits. The callback keeps it alive; when that is destroyed, so is the request.
struct echo : std::enable_shared_from_this<echo> {
    explicit echo(request from) : asked(std::move(from)) { living++; }
    echo(const echo &) = delete;
    echo &operator=(const echo &) = delete;
    ~echo() { living--; }

    void go_on() {
        for (;;) {
            if (left.empty()) {
                const auto count = asked.read(bytes, sizeof bytes, now);
                if (!count) return again(HTTPDOWN_READABLE);
                if (*count == 0) {
                    asked.finish();
                    return;
                }
                left = {bytes, *count};
            }
            const auto taken = asked.write(left, now);
            if (!taken || *taken == 0) return again(HTTPDOWN_WRITABLE);
            left.remove_prefix(*taken);
        }
    }

    void again(std::uint32_t wanted) {
        if (asked.status() != HTTPDOWN_STATUS_WOULD_BLOCK) return;
        CHECK(asked.notify(wanted, [self = shared_from_this()](std::uint32_t ready) {
            if ((ready & HTTPDOWN_GONE) == 0) self->go_on();
        }));
    }

    request asked;
    char bytes[65536] = {};
    std::string_view left{};
    static std::atomic<int> living;
};

std::atomic<int> echo::living{0};

static void on_echo(request asked) {
    CHECK(asked.start(200));
    std::make_shared<echo>(std::move(asked))->go_on();
}

void an_echo_needs_no_thread() {
    for (const auto dispatch : {HTTPDOWN_DISPATCH_INLINE, HTTPDOWN_DISPATCH_POOL}) {
        auto options = serving(on_echo);
        options.dispatch = dispatch;
        options.pool_threads = 1;
        httpdown::server server(std::move(options));
        std::vector<std::unique_ptr<client>> clients;
        for (int i = 0; i < 10; i++) {
            clients.push_back(std::make_unique<client>(server.local_addr()));
            clients.back()->send(chunked + "5\r\nhello\r\n");
            clients.back()->read_until("hello");
        }
        // One leaves in the middle; one sends more than fits anywhere, and reads it only afterwards.
        clients[0]->leave();
        const std::string much(std::size_t{4} << 20, 'x');
        std::thread sender([&] { clients[1]->send("400000\r\n" + much + "\r\n"); });
        CHECK(clients[1]->read_until(std::string(10, 'x')).size() > 10);
        for (std::size_t i = 2; i < clients.size(); i++) clients[i]->send("1\r\n!\r\n0\r\n\r\n");
        for (std::size_t i = 2; i < clients.size(); i++) CHECK(contains(clients[i]->read_until("\r\n0\r\n\r\n"), "!"));
        std::thread reader([&] { CHECK(clients[1]->read_until("\r\n0\r\n\r\n").size() > much.size()); });
        sender.join();
        clients[1]->send("0\r\n\r\n");
        reader.join();
        const auto report = server.stop();
        CHECK(report.served == 9 && report.gone == 1);
    }
    CHECK(echo::living == 0);
}

void what_happens_is_told_once() {
    struct {
        std::promise<std::uint32_t> gone{}, replaced{};
        std::promise<void> forgotten{};
        std::promise<request> kept{};
    } f;
    lines said;
    auto options = serving([&](request asked) { f.kept.set_value(std::move(asked)); });
    options.on_log = [&](httpdown_log_level, std::string_view text) { said.add(std::string(text)); };
    httpdown::server server(std::move(options));
    client one(server.local_addr());
    one.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    auto asked = f.kept.get_future().get();
    CHECK(status_of([&] { asked.notify(1024, [](std::uint32_t) {}); }) == HTTPDOWN_STATUS_INVALID_ARGUMENT);
    CHECK(status_of([&] { asked.notify(0, nullptr); }) == HTTPDOWN_STATUS_INVALID_ARGUMENT);
    CHECK(status_of([&] { asked.notify_queue(0); }) == HTTPDOWN_STATUS_INVALID_ARGUMENT);

    // What holds already is told at once. A closure that nobody wants any more is destroyed without a call.
    const auto on_destroy = std::shared_ptr<void>(nullptr, [&](void *) { f.forgotten.set_value(); });
    CHECK(asked.notify(0, [on_destroy](std::uint32_t) { CHECK(false); }));
    const_cast<std::shared_ptr<void> &>(on_destroy).reset();
    CHECK(asked.notify(HTTPDOWN_WRITABLE, [&](std::uint32_t ready) { f.replaced.set_value(ready); }));
    CHECK(f.replaced.get_future().get() == HTTPDOWN_WRITABLE);
    CHECK(f.forgotten.get_future().wait_for(seconds(30)) == std::future_status::ready);

    // An exception is a line for the log, and changes nothing of the request.
    CHECK(asked.notify(HTTPDOWN_WRITABLE, [](std::uint32_t) { throw std::runtime_error("no reason"); }));
    CHECK(said.wait_for("the callback of a request has thrown: no reason"));

    CHECK(asked.notify(0, [&](std::uint32_t ready) { f.gone.set_value(ready); }));
    one.leave();
    CHECK(f.gone.get_future().get() == HTTPDOWN_GONE && asked.cancelled());
    CHECK(!asked.reply(200) && asked.status() == HTTPDOWN_STATUS_GONE);
    CHECK(status_of([&] { asked.notify(0, [](std::uint32_t) {}); }) == HTTPDOWN_STATUS_ALREADY_REPLIED);
    CHECK(server.stop().gone == 1);
}

void a_stream_ends_when_the_server_drains() {
    httpdown::server server(serving([](request asked) {
        CHECK(asked.start(200) && asked.write("begun"));
        const auto kept = std::make_shared<request>(std::move(asked));
        CHECK(kept->notify(HTTPDOWN_DRAINING, [kept](std::uint32_t ready) {
            CHECK(ready == HTTPDOWN_DRAINING);
            CHECK(kept->write("bye", now) == 3 && kept->finish());
        }));
    }));
    client one(server.local_addr()), two(server.local_addr());
    for (auto *each : {&one, &two}) {
        each->send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
        each->read_until("begun");
    }
    CHECK(server.stop().served == 2);
    for (auto *each : {&one, &two}) CHECK(ends_with(each->read_all(), "3\r\nbye\r\n0\r\n\r\n"));
}

void a_request_that_is_overdue_is_as_good_as_before() {
    std::promise<std::uint32_t> told;
    std::promise<bool> recorded;
    auto options = serving([&](request asked) {
        const auto kept = std::make_shared<request>(std::move(asked));
        CHECK(kept->notify(HTTPDOWN_OVERDUE, [&, kept](std::uint32_t ready) {
            CHECK(kept->overdue() && !kept->cancelled());
            CHECK(kept->reply(200, "late") && !kept->overdue());
            told.set_value(ready);
        }));
    });
    options.handler_timeout = milliseconds(50);
    options.on_done = [&](const httpdown::request_record &record) { recorded.set_value(record.overdue()); };
    httpdown::server server(std::move(options));
    client one(server.local_addr());
    one.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    one.read_until("late");
    CHECK(told.get_future().get() == HTTPDOWN_OVERDUE && recorded.get_future().get());
    const auto report = server.stop();
    CHECK(report.served == 1 && report.overdue == 1);
}

// One thread, and no callback: the program finds its requests by what it has given along.
void one_thread_serves_all_by_the_queue() {
    constexpr std::size_t count = 10;
    httpdown::options options;
    options.addr = any_addr();
    options.dispatch = HTTPDOWN_DISPATCH_QUEUE;
    httpdown::server server(std::move(options));
    std::vector<std::unique_ptr<client>> clients;
    for (std::size_t i = 0; i < count; i++) {
        clients.push_back(std::make_unique<client>(server.local_addr()));
        clients.back()->send(chunked + "5\r\nhello\r\n");
    }
    struct kept {
        request asked;
        std::string body{};
    };
    std::vector<std::unique_ptr<kept>> all;
    std::size_t answered = 0;
    const int fd = server.queue_fd();
    for (;;) {
        pollfd watched{fd, POLLIN, 0};
        CHECK(poll(&watched, 1, 30'000) == 1);
        if (watched.revents == 0) return;
        auto item = server.next_item(now);
        if (!item) break;
        if (item->ready == 0) continue;
        if (item->ready == HTTPDOWN_NEW) {
            CHECK(item->request && item->user_data == nullptr);
            all.push_back(std::unique_ptr<kept>(new kept{std::move(item->request)}));
            CHECK(all.back()->asked.notify_queue(HTTPDOWN_READABLE, all.back().get()));
            // The ends of the bodies come only when all requests are there.
            if (all.size() == count)
                for (const auto &each : clients) each->send("0\r\n\r\n");
            continue;
        }
        CHECK(item->ready == HTTPDOWN_READABLE && !item->request);
        auto &[asked, body] = *static_cast<kept *>(item->user_data);
        char bytes[100];
        const auto came = asked.read(bytes, sizeof bytes, now);
        CHECK(came || asked.status() == HTTPDOWN_STATUS_WOULD_BLOCK);
        if (came && *came == 0) {
            CHECK(asked.reply(200, body));
            if (++answered == count) server.stop_begin();
            continue;
        }
        if (came) body.append(bytes, *came);
        CHECK(asked.notify_queue(HTTPDOWN_READABLE, item->user_data));
    }
    for (const auto &each : clients) CHECK(ends_with(each->read_all(), "\r\n\r\nhello"));
    CHECK(server.stop().served == count);
}

void waiting_has_a_limit() {
    std::promise<void> full;
    httpdown::server server(serving([&](request asked) {
        char buffer[10];
        CHECK(!asked.read(buffer, sizeof buffer, now) && asked.status() == HTTPDOWN_STATUS_WOULD_BLOCK);
        CHECK(!asked.body(10, milliseconds(1)) && asked.status() == HTTPDOWN_STATUS_WOULD_BLOCK);
        CHECK(asked.start(200) && asked.write("") && asked.write("", now) == 0);
        std::string all(1 << 20, 'x');
        std::size_t sent = 0;
        while (const auto taken = asked.write(all, now)) {
            if (*taken == 0) break;
            sent += *taken;
        }
        CHECK(asked.status() == HTTPDOWN_STATUS_WOULD_BLOCK && sent > 0);
        CHECK(asked.write(all, milliseconds(1)).has_value());
        full.set_value();
        CHECK(asked.write("end", httpdown::forever) == 3 && asked.finish());
    }));
    client one(server.local_addr());
    one.send(chunked);
    full.get_future().wait();
    CHECK(ends_with(one.read_until("0\r\n\r\n"), "3\r\nend\r\n0\r\n\r\n"));
}

void trailers_go_both_ways() {
    httpdown::server server(serving([](request asked) {
        CHECK(asked.trailers().empty());
        CHECK(asked.body(10) == "abc");
        std::string seen;
        for (auto [name, value] : asked.trailers()) seen += std::string(name) + "=" + std::string(value) + ";";
        CHECK(status_of([&] { asked.set_trailers({}); }) == HTTPDOWN_STATUS_INVALID_ARGUMENT);
        CHECK(asked.start(200, {{"trailer", "x-sum"}}) && asked.write(seen));
        CHECK(asked.set_trailers({{"x-sum", "none"}}) && asked.set_trailers({{"x-sum", "9"}}));
        CHECK(asked.finish());
        CHECK(request().trailers().empty());
    }));
    client one(server.local_addr());
    std::string fields;
    for (int i = 0; i < 20; i++) fields += "X-" + std::to_string(i) + ": 1\r\n";
    one.send(chunked + "3\r\nabc\r\n0\r\n" + fields + "\r\n");
    const auto answer = one.read_until("x-sum: 9\r\n\r\n");
    CHECK_CONTAINS(answer, "\r\n0\r\nx-sum: 9\r\n\r\n");
    for (int i = 0; i < 20; i++) CHECK_CONTAINS(answer, "x-" + std::to_string(i) + "=1;");
}
