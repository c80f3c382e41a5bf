/* What happens to a request: told by callbacks, and by the queue. */
#include "test.h"

#define CHUNKED "POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"

/* ---- an echo that never waits ---- */

typedef struct {
    char bytes[8192];
    size_t len, taken;
} echo;

static int destroyed;

static void free_echo(void *user_data) {
    (void)user_data;
    __atomic_add_fetch(&destroyed, 1, __ATOMIC_SEQ_CST);
}

static void go_on(httpdown_request *request, uint32_t ready, void *user_data) {
    echo *e = user_data;
    if (ready & HTTPDOWN_GONE) {
        httpdown_reply_abort(request);
        free(e);
        return;
    }
    int status;
    for (;;) {
        if (e->taken == e->len) {
            e->taken = 0;
            status = httpdown_request_read(request, e->bytes, sizeof e->bytes, HTTPDOWN_NOW, &e->len);
            if (status != 0) e->len = 0;
            if (status == 0 && e->len == 0) {
                EQUAL(httpdown_reply_finish(request), 0);
                free(e);
                return;
            }
            if (status != 0) break;
        }
        size_t taken = 0;
        status = httpdown_reply_write(request, e->bytes + e->taken, e->len - e->taken, HTTPDOWN_NOW, &taken);
        if (status != 0) break;
        CHECK(taken > 0 && taken <= e->len - e->taken);
        e->taken += taken;
    }
    if (status == HTTPDOWN_STATUS_GONE) {
        httpdown_reply_abort(request);
        free(e);
        return;
    }
    EQUAL(status, HTTPDOWN_STATUS_WOULD_BLOCK);
    uint32_t wanted = e->len == 0 ? HTTPDOWN_READABLE : HTTPDOWN_WRITABLE;
    EQUAL(httpdown_request_notify(request, wanted, go_on, e, free_echo), 0);
}

static void on_echo(httpdown_request *request, void *user_data) {
    (void)user_data;
    EQUAL(httpdown_reply_start(request, 200, NULL, 0), 0);
    go_on(request, 0, calloc(1, sizeof(echo)));
}

static void an_echo_needs_no_thread(int dispatch) {
    enum { CLIENTS = 50 };
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, on_echo);
    options.dispatch = dispatch;
    options.pool_threads = 1;
    options.io_threads = 1;
    start(&options);
    int fds[CLIENTS];
    response answers[CLIENTS];
    for (int i = 0; i < CLIENTS; i++) {
        fds[i] = dial(f->server);
        put(fds[i], CHUNKED);
    }
    for (int i = 0; i < CLIENTS; i++) answers[i] = take_head(fds[i]);
    for (int i = 0; i < CLIENTS; i++) put(fds[i], "5\r\nhello\r\n");
    for (int i = CLIENTS; i-- > 0;) put(fds[i], "0\r\n\r\n");
    for (int i = 0; i < CLIENTS; i++) {
        take_body(fds[i], &answers[i]);
        EQUAL(answers[i].status, 200);
        EQUAL(answers[i].len, 5);
        done(&answers[i]);
        close(fds[i]);
    }
    EQUAL(end_server(f, 0).served, CLIENTS);
    CHECK(destroyed >= CLIENTS);
    free_fixture(f);
}

static void in_place(void) {
    an_echo_needs_no_thread(HTTPDOWN_DISPATCH_INLINE);
}

static void beside_the_pool(void) {
    an_echo_needs_no_thread(HTTPDOWN_DISPATCH_POOL);
}

/* ---- the same by the queue ---- */

static void one_thread_serves_all_by_the_queue(void) {
    enum { CLIENTS = 20 };
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, NULL);
    start(&options);
    int fds[CLIENTS];
    for (int i = 0; i < CLIENTS; i++) {
        fds[i] = dial(f->server);
        put(fds[i], CHUNKED "5\r\nhello\r\n");
    }
    int queue = -1;
    EQUAL(httpdown_queue_fd(f->server, &queue), 0);
    int answered = 0, events = 0;
    bool has_stopped = false;
    for (;;) {
        struct pollfd watched = {.fd = queue, .events = POLLIN};
        EQUAL(poll(&watched, 1, PATIENCE_MS), 1);
        httpdown_item items[7];
        size_t count = 0;
        int status = httpdown_next_item(f->server, HTTPDOWN_NOW, items, 7, &count);
        if (status == HTTPDOWN_STATUS_STOPPED) break;
        if (status == HTTPDOWN_STATUS_WOULD_BLOCK) continue;
        EQUAL(status, 0);
        for (size_t i = 0; i < count; i++) {
            httpdown_request *request = items[i].request;
            if (items[i].ready == HTTPDOWN_NEW) {
                CHECK(items[i].user_data == NULL);
                EQUAL(httpdown_request_notify(request, HTTPDOWN_READABLE, NULL, &fds[0], free_echo), 0);
                continue;
            }
            events++;
            EQUAL(items[i].ready, HTTPDOWN_READABLE);
            CHECK(items[i].user_data == &fds[0]);
            httpdown_bytes body;
            status = httpdown_request_body(request, 100, HTTPDOWN_NOW, &body);
            if (status == HTTPDOWN_STATUS_WOULD_BLOCK) {
                /* The last pieces of all bodies come only when all first ones have been read. */
                if (events == CLIENTS)
                    for (int j = 0; j < CLIENTS; j++) put(fds[j], "0\r\n\r\n");
                EQUAL(httpdown_request_notify(request, HTTPDOWN_READABLE, NULL, &fds[0], free_echo), 0);
                continue;
            }
            EQUAL(status, 0);
            EQUAL(httpdown_reply(request, 200, NULL, 0, body.data, body.len), 0);
            if (++answered == CLIENTS) {
                EQUAL(httpdown_stop_begin(f->server), 0);
                has_stopped = true;
            }
        }
    }
    CHECK(has_stopped);
    for (int i = 0; i < CLIENTS; i++) {
        expect(fds[i], 200, "hello");
        close(fds[i]);
    }
    EQUAL(end_server(f, 0).served, CLIENTS);
    CHECK(destroyed >= CLIENTS);
    free_fixture(f);
}

/* ---- the end of a request ---- */

static uint32_t happened;

static void note(httpdown_request *request, uint32_t ready, void *user_data) {
    (void)request, (void)user_data;
    __atomic_store_n(&happened, ready, __ATOMIC_SEQ_CST);
}

static httpdown_request *kept;

static void keep(httpdown_request *request, void *user_data) {
    (void)user_data;
    EQUAL(httpdown_request_defer(request), 0);
    __atomic_store_n(&kept, request, __ATOMIC_SEQ_CST);
}

static httpdown_request *kept_one(void) {
    UNTIL(__atomic_load_n(&kept, __ATOMIC_SEQ_CST) != NULL);
    return kept;
}

static void a_client_that_leaves_is_told_of(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, keep);
    start(&options);
    int fd = dial(f->server);
    put(fd, GET("/"));
    httpdown_request *request = kept_one();
    EQUAL(httpdown_request_notify(request, 0, note, NULL, free_echo), 0);
    reset(fd);
    UNTIL(__atomic_load_n(&destroyed, __ATOMIC_SEQ_CST) == 1);
    EQUAL(happened, HTTPDOWN_GONE);
    EQUAL(httpdown_request_notify(request, 0, note, NULL, free_echo), 0);
    EQUAL(httpdown_reply_text(request, 200, "too late"), HTTPDOWN_STATUS_GONE);
    UNTIL(__atomic_load_n(&destroyed, __ATOMIC_SEQ_CST) == 2);
    EQUAL(httpdown_request_notify(request, 0, note, NULL, free_echo), HTTPDOWN_STATUS_ALREADY_REPLIED);
    EQUAL(destroyed, 3);
    EQUAL(end_server(f, 0).gone, 1);
    free_fixture(f);
}

static void finish(httpdown_request *request, uint32_t ready, void *user_data) {
    (void)user_data;
    EQUAL(ready, HTTPDOWN_DRAINING);
    EQUAL(httpdown_reply_write(request, "bye", 3, HTTPDOWN_NOW, &(size_t){0}), 0);
    EQUAL(httpdown_reply_finish(request), 0);
}

static void on_stream(httpdown_request *request, void *user_data) {
    (void)user_data;
    EQUAL(httpdown_reply_start(request, 200, NULL, 0), 0);
    EQUAL(httpdown_request_notify(request, HTTPDOWN_DRAINING, finish, NULL, free_echo), 0);
}

static void a_stream_ends_at_a_stop(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, on_stream);
    start(&options);
    int fds[5];
    for (int i = 0; i < 5; i++) {
        fds[i] = dial(f->server);
        put(fds[i], GET("/"));
    }
    UNTIL(report_of(f->server).requests == 5);
    EQUAL(httpdown_stop(f->server), 0);
    for (int i = 0; i < 5; i++) {
        expect(fds[i], 200, "bye");
        close(fds[i]);
    }
    EQUAL(end_server(f, 0).served, 5);
    EQUAL(destroyed, 5);
    free_fixture(f);
}

/* ---- a request that is with the program for too long ---- */

enum { SHORT_MS = 50 };

static gate recorded = GATE;

static void on_done(const httpdown_request_record *record, void *user_data) {
    (void)user_data;
    char line[512];
    size_t len;
    EQUAL(record->end, HTTPDOWN_END_SERVED);
    EQUAL(record->overdue, 1);
    EQUAL(record->reserved, 0);
    EQUAL(httpdown_log_line(record, HTTPDOWN_LOG_JSON, line, sizeof line, &len), 0);
    CHECK(strstr(line, ",\"overdue\":true,") != NULL);
    gate_add(&recorded);
}

static void a_request_that_is_overdue_is_told_of_and_not_cut(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, keep);
    options.handler_timeout_ms = SHORT_MS;
    options.on_done = on_done;
    start(&options);
    int fd = dial(f->server);
    put(fd, GET("/"));
    httpdown_request *request = kept_one();
    EQUAL(httpdown_request_notify(request, HTTPDOWN_NEW, note, NULL, NULL), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    EQUAL(httpdown_request_notify(request, HTTPDOWN_OVERDUE, note, NULL, free_echo), 0);
    UNTIL(__atomic_load_n(&destroyed, __ATOMIC_SEQ_CST) == 1);
    EQUAL(happened, HTTPDOWN_OVERDUE);
    CHECK(httpdown_request_overdue(request) && !httpdown_request_cancelled(request));
    EQUAL(report_of(f->server).overdue, 1);
    EQUAL(httpdown_reply_text(request, 200, "late"), 0);
    CHECK(!httpdown_request_overdue(request));
    expect(fd, 200, "late");
    close(fd);
    gate_wait(&recorded, 1);
    httpdown_stop_report report = end_server(f, 0);
    EQUAL(report.served, 1);
    EQUAL(report.overdue, 1);
    free_fixture(f);
}

static void by_the_queue_too(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, NULL);
    options.handler_timeout_ms = SHORT_MS;
    start(&options);
    int fd = dial(f->server);
    put(fd, GET("/"));
    httpdown_item item;
    size_t count = 0;
    EQUAL(httpdown_next_item(f->server, PATIENCE_MS, &item, 1, &count), 0);
    EQUAL(item.ready, HTTPDOWN_NEW);
    httpdown_request *request = item.request;
    EQUAL(httpdown_request_notify(request, HTTPDOWN_OVERDUE | HTTPDOWN_DRAINING, NULL, &fd, NULL), 0);
    EQUAL(httpdown_next_item(f->server, PATIENCE_MS, &item, 1, &count), 0);
    EQUAL(item.ready, HTTPDOWN_OVERDUE);
    CHECK(item.request == request && item.user_data == &fd);
    EQUAL(httpdown_reply_text(request, 200, "late"), 0);
    expect(fd, 200, "late");
    close(fd);
    EQUAL(end_server(f, 0).overdue, 1);
    free_fixture(f);
}

static void compute(httpdown_request *request, void *user_data) {
    (void)user_data;
    while (!httpdown_request_overdue(request)) CHECK(!httpdown_request_cancelled(request));
    EQUAL(httpdown_reply_text(request, 200, "a part"), 0);
}

static void a_handler_that_computes_sees_it_too(void) {
    static const int dispatches[] = {HTTPDOWN_DISPATCH_INLINE, HTTPDOWN_DISPATCH_POOL};
    for (int i = 0; i < 2; i++) {
        fixture *f = new_fixture();
        httpdown_options options = options_for(f, compute);
        options.handler_timeout_ms = SHORT_MS;
        options.dispatch = dispatches[i];
        start(&options);
        int fd = dial(f->server);
        put(fd, GET("/"));
        expect(fd, 200, "a part");
        close(fd);
        EQUAL(end_server(f, 0).overdue, 1);
        free_fixture(f);
    }
}

/* ---- trailers ---- */

static void on_trailers(httpdown_request *request, void *user_data) {
    (void)user_data;
    httpdown_header got[4];
    size_t count = 9;
    EQUAL(httpdown_request_trailers(request, 0, got, 4, &count), 0);
    EQUAL(count, 0);
    httpdown_bytes body;
    EQUAL(httpdown_request_body(request, 100, HTTPDOWN_FOREVER, &body), 0);
    EQUAL(httpdown_request_trailers(request, 0, got, 4, &count), 0);
    EQUAL(count, 1);
    CHECK(httpdown_bytes_equal(got[0].name, "x-sum") && httpdown_bytes_equal(got[0].value, "5"));
    EQUAL(httpdown_request_trailers(request, 1, got, 4, &count), 0);
    EQUAL(count, 0);
    httpdown_header sum = {httpdown_str("X-Sum"), httpdown_str("6")};
    EQUAL(httpdown_reply_trailers(request, &sum, 1), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    httpdown_header announced = {httpdown_str("Trailer"), httpdown_str("X-Sum")};
    EQUAL(httpdown_reply_start(request, 200, &announced, 1), 0);
    EQUAL(httpdown_reply_write(request, "a", 1, HTTPDOWN_FOREVER, NULL), 0);
    EQUAL(httpdown_reply_trailers(request, NULL, 1), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    EQUAL(httpdown_reply_trailers(request, &sum, 1), 0);
    EQUAL(httpdown_reply_finish(request), 0);
}

static void trailers_go_both_ways(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, on_trailers);
    start(&options);
    int fd = dial(f->server);
    put(fd, "POST / HTTP/1.1\r\nHost: test\r\nTE: trailers\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
            "1\r\nb\r\n0\r\nX-Sum: 5\r\n\r\n");
    char text[1024];
    size_t len = 0;
    for (ssize_t count; (count = read(fd, text + len, sizeof text - 1 - len)) > 0;) len += (size_t)count;
    text[len] = 0;
    CHECK(strstr(text, "1\r\na\r\n0\r\nx-sum: 6\r\n\r\n") != NULL);
    close(fd);
    EQUAL(end_server(f, 0).served, 1);
    free_fixture(f);
}

/* ---- what makes no sense ---- */

static void wrong_arguments_are_refused(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, keep);
    start(&options);
    int fd = dial(f->server);
    put(fd, GET("/"));
    httpdown_request *request = kept_one();
    EQUAL(httpdown_request_notify(NULL, 0, note, NULL, free_echo), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    EQUAL(httpdown_request_notify(request, HTTPDOWN_NEW, note, NULL, free_echo), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    EQUAL(httpdown_request_notify(request, 0x80000001, note, NULL, free_echo), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    EQUAL(httpdown_request_notify(request, 0, NULL, NULL, free_echo), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    EQUAL(destroyed, 4);
    EQUAL(httpdown_request_notify(request, 0, note, NULL, NULL), 0);
    httpdown_item item;
    size_t count = 0;
    EQUAL(httpdown_next_item(f->server, HTTPDOWN_NOW, &item, 1, &count), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    EQUAL(httpdown_next_item(NULL, HTTPDOWN_NOW, &item, 1, &count), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    EQUAL(httpdown_request_trailers(request, 0, NULL, 1, &count), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    EQUAL(httpdown_request_trailers(request, 0, NULL, 0, NULL), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    EQUAL(httpdown_reply_start(request, 200, NULL, 0), 0);
    EQUAL(httpdown_reply_write(request, "x", 1, HTTPDOWN_NOW, NULL), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    EQUAL(httpdown_reply_write(request, "x", 1, HTTPDOWN_FOREVER, NULL), 0);
    EQUAL(httpdown_reply_finish(request), 0);
    expect(fd, 200, "x");
    close(fd);
    EQUAL(end_server(f, 0).served, 1);
    free_fixture(f);
}

int main(int argc, char **argv) {
    (void)argc;
    tests_chosen = argv + 1;
    RUN(in_place);
    RUN(beside_the_pool);
    RUN(one_thread_serves_all_by_the_queue);
    RUN(a_client_that_leaves_is_told_of);
    RUN(a_stream_ends_at_a_stop);
    RUN(a_request_that_is_overdue_is_told_of_and_not_cut);
    RUN(by_the_queue_too);
    RUN(a_handler_that_computes_sees_it_too);
    RUN(trailers_go_both_ways);
    RUN(wrong_arguments_are_refused);
    return test_end(argv[0]);
}
