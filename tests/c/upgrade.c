/* Connections that a handler takes over. */
#include "test.h"

#define UPGRADE "GET / HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n"

static int destroyed;

static void destroy(void *user_data) {
    (void)user_data;
    __atomic_add_fetch(&destroyed, 1, __ATOMIC_SEQ_CST);
}

static httpdown_stream *take_over(httpdown_request *request) {
    httpdown_header headers[] = {{httpdown_str("Upgrade"), httpdown_str("echo")}};
    httpdown_stream *stream = NULL;
    CHECK(httpdown_request_asks_for_upgrade(request));
    EQUAL(httpdown_upgrade(request, headers, 1, &stream), 0);
    CHECK(stream != NULL);
    return stream;
}

/* Whether the client has got exactly this. */
static void expect_bytes(int fd, const char *text) {
    char bytes[64] = "";
    size_t len = 0;
    while (len < strlen(text)) {
        ssize_t count = read(fd, bytes + len, strlen(text) - len);
        CHECK(count > 0);
        len += (size_t)count;
    }
    CHECK(memcmp(bytes, text, len) == 0);
}

static int upgraded(fixture *f, const char *early) {
    int fd = dial(f->server);
    put(fd, UPGRADE);
    put(fd, early);
    response head = take_head(fd);
    EQUAL(head.status, 101);
    done(&head);
    return fd;
}

static void on_blocking(httpdown_request *request, void *user_data) {
    (void)user_data;
    httpdown_stream *stream = take_over(request);
    char bytes[100];
    size_t count = 0;
    while (httpdown_stream_read(stream, bytes, sizeof bytes, HTTPDOWN_FOREVER, &count) == 0 && count > 0)
        EQUAL(httpdown_stream_write(stream, bytes, count, HTTPDOWN_FOREVER, NULL), 0);
    EQUAL(httpdown_stream_shutdown(stream, HTTPDOWN_FOREVER), 0);
    httpdown_stream_free(stream);
}

static void a_handler_may_block(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, on_blocking);
    start(&options);
    int fd = upgraded(f, "early");
    expect_bytes(fd, "early");
    put(fd, "later");
    expect_bytes(fd, "later");
    shutdown(fd, SHUT_WR);
    CHECK(is_at_end(fd));
    close(fd);
    httpdown_stop_report report = end_server(f, 0);
    EQUAL(report.served, 1);
    EQUAL(report.conns_closed, 1);
    free_fixture(f);
}

static void on_event(httpdown_stream *stream, uint32_t ready, void *user_data) {
    if (ready & HTTPDOWN_DRAINING) {
        EQUAL(httpdown_stream_write(stream, "bye", 3, HTTPDOWN_NOW, &(size_t){0}), 0);
        httpdown_stream_free(stream);
        return;
    }
    char bytes[100];
    size_t count = 0, taken = 0;
    int status = httpdown_stream_read(stream, bytes, sizeof bytes, HTTPDOWN_NOW, &count);
    if (status == 0 && count > 0) {
        EQUAL(httpdown_stream_write(stream, bytes, count, HTTPDOWN_NOW, &taken), 0);
        EQUAL(taken, count);
    } else if (status != HTTPDOWN_STATUS_WOULD_BLOCK) {
        httpdown_stream_free(stream);
        return;
    }
    uint32_t wanted = HTTPDOWN_READABLE | HTTPDOWN_DRAINING;
    EQUAL(httpdown_stream_notify(stream, wanted, on_event, user_data, destroy), 0);
}

static void on_upgrade(httpdown_request *request, void *user_data) {
    (void)user_data;
    on_event(take_over(request), 0, NULL);
}

static void callbacks_serve_streams_until_the_drain(void) {
    enum { CLIENTS = 20 };
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, on_upgrade);
    options.dispatch = HTTPDOWN_DISPATCH_INLINE;
    start(&options);
    int fds[CLIENTS];
    for (int i = 0; i < CLIENTS; i++) fds[i] = upgraded(f, "early");
    for (int i = 0; i < CLIENTS; i++) expect_bytes(fds[i], "early");
    for (int i = 0; i < CLIENTS; i++) put(fds[i], "later");
    for (int i = 0; i < CLIENTS; i++) expect_bytes(fds[i], "later");
    close(fds[0]);
    UNTIL(report_of(f->server).conns_hijacked == CLIENTS - 1);
    EQUAL(httpdown_stop_begin(f->server), 0);
    for (int i = 1; i < CLIENTS; i++) {
        expect_bytes(fds[i], "bye");
        CHECK(is_at_end(fds[i]));
        close(fds[i]);
    }
    EQUAL(end_server(f, 0).served, CLIENTS);
    CHECK(destroyed >= CLIENTS);
    free_fixture(f);
}

/* Serves whatever comes by the queue, until nothing can come any more. */
static void *serve_queue(void *server) {
    httpdown_item items[7];
    size_t item_count;
    int status;
    while ((status = httpdown_next_item(server, HTTPDOWN_FOREVER, items, 7, &item_count)) == 0) {
        for (size_t i = 0; i < item_count; i++) {
            httpdown_stream *stream = items[i].stream;
            char bytes[100];
            size_t count = 0, taken = 0;
            if (items[i].ready == HTTPDOWN_NEW) {
                CHECK(stream == NULL && items[i].user_data == NULL);
                stream = take_over(items[i].request);
            } else {
                CHECK(items[i].request == NULL && items[i].user_data == &destroyed);
                if (items[i].ready & HTTPDOWN_DRAINING) {
                    EQUAL(httpdown_stream_write(stream, "bye", 3, HTTPDOWN_NOW, &taken), 0);
                    httpdown_stream_free(stream);
                    continue;
                }
                CHECK(items[i].ready & HTTPDOWN_READABLE);
            }
            int read = httpdown_stream_read(stream, bytes, sizeof bytes, HTTPDOWN_NOW, &count);
            if (read == 0 && count > 0) EQUAL(httpdown_stream_write(stream, bytes, count, HTTPDOWN_NOW, &taken), 0);
            else if (read != HTTPDOWN_STATUS_WOULD_BLOCK) {
                httpdown_stream_free(stream);
                continue;
            }
            uint32_t wanted = HTTPDOWN_READABLE | HTTPDOWN_DRAINING;
            EQUAL(httpdown_stream_notify(stream, wanted, NULL, &destroyed, destroy), 0);
        }
    }
    EQUAL(status, HTTPDOWN_STATUS_STOPPED);
    return NULL;
}

static void a_queue_serves_streams_until_the_drain(void) {
    enum { CLIENTS = 20 };
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, NULL);
    options.dispatch = HTTPDOWN_DISPATCH_QUEUE;
    start(&options);
    __atomic_store_n(&destroyed, 0, __ATOMIC_SEQ_CST);
    pthread_t thread;
    EQUAL(pthread_create(&thread, NULL, serve_queue, f->server), 0);
    int fds[CLIENTS];
    for (int i = 0; i < CLIENTS; i++) fds[i] = upgraded(f, "early");
    for (int i = CLIENTS; i-- > 0;) expect_bytes(fds[i], "early");
    for (int i = CLIENTS; i-- > 0;) put(fds[i], "later");
    for (int i = CLIENTS; i-- > 0;) expect_bytes(fds[i], "later");
    close(fds[0]);
    UNTIL(report_of(f->server).conns_hijacked == CLIENTS - 1);
    EQUAL(httpdown_stop_begin(f->server), 0);
    for (int i = 1; i < CLIENTS; i++) {
        expect_bytes(fds[i], "bye");
        CHECK(is_at_end(fds[i]));
        close(fds[i]);
    }
    pthread_join(thread, NULL);
    CHECK(__atomic_load_n(&destroyed, __ATOMIC_SEQ_CST) >= CLIENTS);
    EQUAL(end_server(f, 0).served, CLIENTS);
    free_fixture(f);
}

static httpdown_stream *kept;

static void keep(httpdown_request *request, void *user_data) {
    (void)user_data;
    __atomic_store_n(&kept, take_over(request), __ATOMIC_SEQ_CST);
}

static void note(httpdown_stream *stream, uint32_t ready, void *user_data) {
    (void)stream, (void)ready, (void)user_data;
}

static void wrong_arguments_are_refused(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, keep);
    start(&options);
    int fd = upgraded(f, "");
    UNTIL(__atomic_load_n(&kept, __ATOMIC_SEQ_CST) != NULL);
    char byte;
    size_t count = 0;
    const int invalid = HTTPDOWN_STATUS_INVALID_ARGUMENT;
    EQUAL(httpdown_stream_read(NULL, &byte, 1, HTTPDOWN_NOW, &count), invalid);
    EQUAL(httpdown_stream_read(kept, NULL, 1, HTTPDOWN_NOW, &count), invalid);
    EQUAL(httpdown_stream_read(kept, &byte, 0, HTTPDOWN_NOW, &count), invalid);
    EQUAL(httpdown_stream_read(kept, &byte, 1, HTTPDOWN_NOW, NULL), invalid);
    EQUAL(httpdown_stream_read(kept, &byte, 1, HTTPDOWN_NOW, &count), HTTPDOWN_STATUS_WOULD_BLOCK);
    EQUAL(httpdown_stream_read(kept, &byte, 1, 5, &count), HTTPDOWN_STATUS_WOULD_BLOCK);
    EQUAL(httpdown_stream_write(NULL, "x", 1, HTTPDOWN_NOW, &count), invalid);
    EQUAL(httpdown_stream_write(kept, NULL, 1, HTTPDOWN_NOW, &count), invalid);
    EQUAL(httpdown_stream_write(kept, "x", 1, HTTPDOWN_NOW, NULL), invalid);
    EQUAL(httpdown_stream_write(kept, NULL, 0, HTTPDOWN_NOW, &count), 0);
    EQUAL(httpdown_stream_shutdown(NULL, HTTPDOWN_NOW), invalid);
    EQUAL(httpdown_stream_notify(NULL, 0, note, NULL, destroy), invalid);
    EQUAL(httpdown_stream_notify(kept, 64, note, NULL, destroy), invalid);
    EQUAL(httpdown_stream_notify(kept, 0, NULL, NULL, destroy), invalid);
    EQUAL(destroyed, 3);
    EQUAL(httpdown_stream_notify(kept, 0, note, NULL, destroy), 0);
    int socket = -1;
    EQUAL(httpdown_stream_fd(kept, HTTPDOWN_NOW, NULL), invalid);
    EQUAL(httpdown_stream_fd(kept, HTTPDOWN_FOREVER, &socket), 0);
    EQUAL(send(socket, "direct", 6, MSG_NOSIGNAL), 6);
    expect_bytes(fd, "direct");
    httpdown_stream_free(NULL);
    httpdown_stream_free(kept);
    EQUAL(destroyed, 4);
    CHECK(is_at_end(fd));
    close(fd);
    httpdown_stream *none = NULL;
    EQUAL(httpdown_upgrade(NULL, NULL, 0, &none), invalid);
    CHECK(!httpdown_request_asks_for_upgrade(NULL));
    EQUAL(end_server(f, 0).served, 1);
    free_fixture(f);
}

int main(int argc, char **argv) {
    (void)argc;
    tests_chosen = argv + 1;
    RUN(a_handler_may_block);
    RUN(callbacks_serve_streams_until_the_drain);
    RUN(a_queue_serves_streams_until_the_drain);
    RUN(wrong_arguments_are_refused);
    return test_end(argv[0]);
}
