// Connections that a handler takes over.
#include "test.hpp"

using httpdown::milliseconds;
using httpdown::request;
using httpdown::stream;

static const milliseconds now{0};
static const std::string upgrade =
    "GET / HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";

static stream take_over(request &asked) {
    CHECK(asked.asks_for_upgrade());
    auto taken = asked.upgrade({{"upgrade", "echo"}});
    CHECK(taken && !asked && !asked.asks_for_upgrade());
    return taken;
}

void a_stream_goes_both_ways() {
    httpdown::server server(serving([](request asked) {
        const auto taken = take_over(asked);
        char bytes[100];
        std::size_t count = 0;
        while (taken.read(bytes, sizeof bytes, count) == HTTPDOWN_STATUS_OK && count > 0)
            CHECK(taken.write({bytes, count}) == HTTPDOWN_STATUS_OK);
        CHECK(taken.shutdown() == HTTPDOWN_STATUS_OK);
    }));
    client one(server.local_addr());
    one.send(upgrade + "early");
    CHECK_CONTAINS(one.read_until("early"), " 101 ");
    one.send("later");
    CHECK_CONTAINS(one.read_until("later"), "later");
}

// A stream that its own callback serves, until the server drains.
struct service : std::enable_shared_from_this<service> {
    explicit service(stream from) : taken(std::move(from)) {}

    void go_on() {
        char bytes[100];
        std::size_t count = 0, sent = 0;
        const int status = taken.read(bytes, sizeof bytes, count, now);
        if (status == HTTPDOWN_STATUS_OK && count > 0) {
            CHECK(taken.write({bytes, count}, sent, now) == HTTPDOWN_STATUS_OK && sent == count);
        } else if (status != HTTPDOWN_STATUS_WOULD_BLOCK) {
            return;
        }
        const auto wanted = HTTPDOWN_READABLE | HTTPDOWN_DRAINING;
        taken.notify(wanted, [self = shared_from_this()](std::uint32_t ready) {
            std::size_t last = 0;
            if ((ready & HTTPDOWN_DRAINING) != 0) self->taken.write("bye", last, now);
            else self->go_on();
        });
    }

    stream taken;
};

void a_stream_ends_with_the_drain() {
    auto options = serving([](request asked) { std::make_shared<service>(take_over(asked))->go_on(); });
    options.dispatch = HTTPDOWN_DISPATCH_INLINE;
    httpdown::server server(std::move(options));
    client one(server.local_addr());
    one.send(upgrade + "early");
    CHECK_CONTAINS(one.read_until("early"), " 101 ");
    server.stop_begin();
    CHECK_CONTAINS(one.read_until("bye"), "bye");
    CHECK(server.wait().served == 1);
}

void a_queue_tells_of_streams() {
    httpdown::options options;
    options.addr = any_addr();
    options.dispatch = HTTPDOWN_DISPATCH_QUEUE;
    httpdown::server server(std::move(options));
    std::thread serves([&] {
        stream taken;
        const auto wanted = HTTPDOWN_READABLE | HTTPDOWN_DRAINING;
        while (auto item = server.next_item()) {
            if (item->ready == 0) continue;
            if (item->ready == HTTPDOWN_NEW) {
                taken = take_over(item->request);
            } else {
                CHECK(!item->request && item->user_data == &taken);
                std::size_t last = 0;
                if ((item->ready & HTTPDOWN_DRAINING) != 0) {
                    CHECK(taken.write("bye", last, now) == HTTPDOWN_STATUS_OK);
                    taken.close();
                    continue;
                }
            }
            char bytes[100];
            std::size_t count = 0, sent = 0;
            if (taken.read(bytes, sizeof bytes, count, now) == HTTPDOWN_STATUS_OK)
                CHECK(taken.write({bytes, count}, sent, now) == HTTPDOWN_STATUS_OK && sent == count);
            taken.notify_queue(wanted, &taken);
        }
    });
    client one(server.local_addr());
    one.send(upgrade + "early");
    CHECK_CONTAINS(one.read_until("early"), " 101 ");
    one.send("later");
    CHECK_CONTAINS(one.read_until("later"), "later");
    server.stop_begin();
    CHECK_CONTAINS(one.read_until("bye"), "bye");
    serves.join();
    CHECK(server.wait().served == 1);
}

void what_asks_for_no_upgrade_gets_none() {
    httpdown::server server(serving([](request asked) {
        CHECK(!asked.asks_for_upgrade());
        CHECK(status_of([&] { asked.upgrade({{"upgrade", "echo"}}); }) == HTTPDOWN_STATUS_INVALID_ARGUMENT);
    }));
    client one(server.local_addr());
    one.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    CHECK_CONTAINS(one.read_until("\r\n\r\n"), " 500 ");
    CHECK(!stream());
    CHECK(status_of([] { stream().shutdown(now); }) == HTTPDOWN_STATUS_INVALID_ARGUMENT);
}
