/* Events that the program takes itself. */
#include "test.h"

enum { ALL = HTTPDOWN_EVENT_STAT | HTTPDOWN_EVENT_CONN | HTTPDOWN_EVENT_PHASE | HTTPDOWN_EVENT_LOG |
             HTTPDOWN_EVENT_DONE };

static httpdown_options pulling(fixture *f, httpdown_handler_fn handler, uint32_t kinds) {
    httpdown_options options = options_for(f, handler);
    options.pull_events = kinds;
    return options;
}

static void unanswered(httpdown_request *request, void *user_data) {
    (void)request, (void)user_data;
}

static int next(const httpdown_server *server, uint32_t timeout_ms, httpdown_event *event) {
    memset(event, 0x5a, sizeof *event);
    event->struct_size = sizeof *event;
    int status = httpdown_next_event(server, timeout_ms, event);
    EQUAL(event->struct_size, sizeof *event);
    if (status != 0) return status;
    CHECK(memchr(event->name, 0, sizeof event->name) != NULL && memchr(event->text, 0, sizeof event->text) != NULL);
    CHECK(event->kind == 1 || event->kind == 2 || event->kind == 4 || event->kind == 8 || event->kind == 16);
    return 0;
}

static void every_kind_can_be_pulled(void) {
    fixture *f = new_fixture();
    httpdown_options options = pulling(f, unanswered, ALL);
    httpdown_server *server = start(&options);
    get(server, 500, NULL);
    UNTIL(report_of(server).conns_open == 0);
    EQUAL(httpdown_stop(server), 0);
    int stats = 0, conns = 0, phases = 0, logs = 0, records = 0;
    httpdown_event event;
    int status;
    while ((status = next(server, HTTPDOWN_FOREVER, &event)) == 0) {
        if (event.kind == HTTPDOWN_EVENT_STAT) {
            static const struct {
                const char *key;
                int code;
            } expected[] = {
                {"serve", HTTPDOWN_STAT_SUM},         {"stop", HTTPDOWN_STAT_SUM},
                {"conn.closed", HTTPDOWN_STAT_SUM},   {"handler.error", HTTPDOWN_STAT_SUM},
                {"stop.time", HTTPDOWN_STAT_TIME},    {"stop.conn.count", HTTPDOWN_STAT_HISTOGRAM},
            };
            for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
                if (strcmp(event.name, expected[i].key) != 0) continue;
                EQUAL(event.code, expected[i].code);
                stats++;
            }
        } else if (event.kind == HTTPDOWN_EVENT_CONN) {
            CHECK(is_client_addr(event.name, strlen(event.name)));
            CHECK(event.code >= HTTPDOWN_CONN_NEW && event.code <= HTTPDOWN_CONN_CLOSED);
            conns++;
        } else if (event.kind == HTTPDOWN_EVENT_PHASE) {
            CHECK(event.code >= phases); /* forward only */
            phases++;
        } else if (event.kind == HTTPDOWN_EVENT_DONE) {
            CHECK(event.record != NULL && event.record->status_code == 500);
            records++;
        } else {
            CHECK(event.code == HTTPDOWN_LOG_ERROR && strlen(event.text) > 0);
            logs++;
        }
    }
    EQUAL(status, HTTPDOWN_STATUS_STOPPED);
    EQUAL(next(server, HTTPDOWN_NOW, &event), HTTPDOWN_STATUS_STOPPED);
    EQUAL(stats, 6);
    CHECK(conns >= 3 && phases == 4 && logs >= 1 && records == 1);
    end_server(f, 0);
    free_fixture(f);
}

static void only_what_was_asked_for_comes(void) {
    for (uint32_t kind = 1; kind < 32; kind *= 2) {
        fixture *f = new_fixture();
        httpdown_options options = pulling(f, unanswered, kind);
        httpdown_server *server = start(&options);
        get(server, 500, NULL);
        EQUAL(httpdown_stop(server), 0);
        httpdown_event event;
        int count = 0;
        while (next(server, HTTPDOWN_FOREVER, &event) == 0) {
            EQUAL(event.kind, kind);
            count++;
        }
        CHECK(count > 0);
        end_server(f, 0);
        free_fixture(f);
    }
}

static void a_pull_can_time_out(void) {
    fixture *f = new_fixture();
    httpdown_options options = pulling(f, hello, HTTPDOWN_EVENT_PHASE);
    httpdown_server *server = start(&options);
    httpdown_event event;
    EQUAL(next(server, HTTPDOWN_FOREVER, &event), 0);
    EQUAL(event.code, HTTPDOWN_PHASE_SERVING);
    EQUAL(next(server, HTTPDOWN_NOW, &event), HTTPDOWN_STATUS_WOULD_BLOCK);
    EQUAL(next(server, 0, &event), HTTPDOWN_STATUS_WOULD_BLOCK);
    EQUAL(next(server, 30, &event), HTTPDOWN_STATUS_WOULD_BLOCK);
    end_server(f, 0);
    free_fixture(f);
}

static bool is_readable(int fd, int timeout_ms) {
    struct pollfd watched = {.fd = fd, .events = POLLIN};
    int ready = poll(&watched, 1, timeout_ms);
    CHECK(ready >= 0 && (watched.revents & ~POLLIN) == 0);
    return ready == 1;
}

static void the_descriptor_is_readable_while_events_wait_and_after_the_end(void) {
    for (int comes_late = 0; comes_late < 2; comes_late++) {
        fixture *f = new_fixture();
        httpdown_options options = pulling(f, hello, HTTPDOWN_EVENT_PHASE);
        httpdown_server *server = start(&options);
        httpdown_event event;
        int fd = -1, again = -1;
        if (comes_late) get(server, 200, NULL);
        EQUAL(httpdown_event_fd(server, &fd), 0);
        EQUAL(httpdown_event_fd(server, &again), 0);
        EQUAL(fd, again);
        CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);
        CHECK(is_readable(fd, PATIENCE_MS));
        EQUAL(next(server, HTTPDOWN_NOW, &event), 0);
        CHECK(!is_readable(fd, 0));
        EQUAL(httpdown_stop_begin(server), 0);
        int last = HTTPDOWN_PHASE_SERVING, status;
        do {
            CHECK(is_readable(fd, PATIENCE_MS));
            while (next(server, HTTPDOWN_NOW, &event) == 0) last = event.code;
            status = httpdown_wait(server, HTTPDOWN_NOW, NULL);
        } while (status == HTTPDOWN_STATUS_WOULD_BLOCK);
        EQUAL(status, 0);
        EQUAL(last, HTTPDOWN_PHASE_STOPPED);
        CHECK(is_readable(fd, PATIENCE_MS));
        end_server(f, 0);
        free_fixture(f);
    }
}

/* It tells the end, whether there are events to be taken or not. */
static void the_descriptor_tells_the_end_also_where_callbacks_get_the_events(void) {
    for (int calls_back = 0; calls_back < 2; calls_back++) {
        fixture *f = new_fixture();
        httpdown_options options = options_for(f, hello);
        if (calls_back) record_all(&options);
        httpdown_server *server = start(&options);
        int fd = -1;
        EQUAL(httpdown_event_fd(server, &fd), 0);
        get(server, 200, NULL);
        CHECK(!is_readable(fd, 0));
        EQUAL(httpdown_stop_begin(server), 0);
        CHECK(is_readable(fd, PATIENCE_MS));
        EQUAL(httpdown_wait(server, HTTPDOWN_NOW, NULL), 0);
        end_server(f, 0);
        free_fixture(f);
    }
}

static void *pulls(void *argument) {
    httpdown_event event;
    intptr_t count = 0;
    while (next(((fixture *)argument)->server, HTTPDOWN_FOREVER, &event) == 0) count++;
    return (void *)count;
}

static void several_threads_may_pull(void) {
    fixture *f = new_fixture();
    httpdown_options options = pulling(f, hello, HTTPDOWN_EVENT_PHASE | HTTPDOWN_EVENT_CONN);
    httpdown_server *server = start(&options);
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) threads[i] = spawn(pulls, f);
    int clients = scaled(50);
    for (int i = 0; i < clients; i++) get(server, 200, NULL);
    EQUAL(httpdown_stop(server), 0);
    intptr_t count = 0;
    for (int i = 0; i < 4; i++) count += (intptr_t)join(threads[i]);
    CHECK(count >= clients * 3 + 4);
    EQUAL(report_of(server).events_dropped, 0);
    end_server(f, 0);
    free_fixture(f);
}

/* Who takes nothing loses events of connections first: what is rare stays. */
static void what_nobody_takes_is_dropped_and_counted(void) {
    fixture *f = new_fixture();
    httpdown_options options = pulling(f, hello, ALL);
    options.dispatch = HTTPDOWN_DISPATCH_INLINE;
    httpdown_server *server = start(&options);
    int fd = dial(server);
    enum { REQUESTS = 10000, BATCH = 100 };
    for (int i = 0; i < REQUESTS / BATCH; i++) {
        for (int j = 0; j < BATCH; j++) put(fd, GET("/"));
        for (int j = 0; j < BATCH; j++) expect(fd, 200, NULL);
        if (report_of(server).events_dropped > 100) break;
    }
    close(fd);
    /* Pipelined requests may share their states: then there is less to drop. */
    for (int i = 0; i < 10000 && report_of(server).events_dropped == 0; i++) get(server, 200, NULL);
    CHECK(report_of(server).events_dropped > 0);
    httpdown_stop_report report = {.struct_size = sizeof report};
    EQUAL(httpdown_stop(server), 0);
    EQUAL(httpdown_wait(server, HTTPDOWN_FOREVER, &report), 0);
    check_sums(&report);
    httpdown_event event;
    int conns = 0, phases = 0, stop_time = 0;
    while (next(server, HTTPDOWN_FOREVER, &event) == 0) {
        conns += event.kind == HTTPDOWN_EVENT_CONN;
        phases += event.kind == HTTPDOWN_EVENT_PHASE;
        stop_time += event.kind == HTTPDOWN_EVENT_STAT && strcmp(event.name, "stop.time") == 0;
    }
    CHECK(conns >= 1000 && conns < 20000);
    EQUAL(phases, 4);
    EQUAL(stop_time, 1);
    end_server(f, 0);
    free_fixture(f);
}

static void a_server_without_pulling_has_no_events(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, hello);
    httpdown_server *server = start(&options);
    httpdown_event event = {.struct_size = sizeof event};
    EQUAL(httpdown_next_event(server, HTTPDOWN_FOREVER, &event), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    end_server(f, 0);
    free_fixture(f);
}

static void a_short_event_is_enough(void) {
    fixture *f = new_fixture();
    httpdown_options options = pulling(f, hello, HTTPDOWN_EVENT_PHASE);
    httpdown_server *server = start(&options);
    httpdown_event event;
    memset(&event, 0x5a, sizeof event);
    event.struct_size = offsetof(httpdown_event, conn_id);
    EQUAL(httpdown_next_event(server, HTTPDOWN_FOREVER, &event), 0);
    EQUAL(event.kind, HTTPDOWN_EVENT_PHASE);
    EQUAL(event.conn_id, 0x5a5a5a5a5a5a5a5a);
    EQUAL(event.text[511], 0x5a);
    end_server(f, 0);
    free_fixture(f);
}

int main(int argc, char **argv) {
    (void)argc;
    tests_chosen = argv + 1;
    RUN(every_kind_can_be_pulled);
    RUN(only_what_was_asked_for_comes);
    RUN(a_pull_can_time_out);
    RUN(the_descriptor_is_readable_while_events_wait_and_after_the_end);
    RUN(the_descriptor_tells_the_end_also_where_callbacks_get_the_events);
    RUN(several_threads_may_pull);
    RUN(what_nobody_takes_is_dropped_and_counted);
    RUN(a_server_without_pulling_has_no_events);
    RUN(a_short_event_is_enough);
    return test_end(argv[0]);
}
