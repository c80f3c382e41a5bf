/* What makes no sense is said to make no sense: nothing crashes, and nothing changes. */
#include "test.h"

#include <ctype.h>

#define INVALID HTTPDOWN_STATUS_INVALID_ARGUMENT

/* ---- why ---- */

#define WHY(call, text)                                                                                              \
    do {                                                                                                             \
        EQUAL(call, INVALID);                                                                                        \
        if (strcmp(httpdown_last_error(), text) != 0) fprintf(stderr, "it says \"%s\"\n", httpdown_last_error());     \
        CHECK(strcmp(httpdown_last_error(), text) == 0);                                                             \
    } while (0)

static void says_why(httpdown_request *request, void *user_data) {
    fixture *f = user_data;
    httpdown_header lines = {{"x", 1}, {"a\r\nb", 4}}, name = {{"a b", 3}, {"", 0}},
                    length = {{"content-length", 14}, {"5", 1}};
    WHY(httpdown_reply_start(request, 99, NULL, 0), "99 is not a status from 200 to 999");
    WHY(httpdown_reply_start(request, 100, NULL, 0), "100 Continue is not a final status");
    WHY(httpdown_reply_start(request, 200, NULL, 1), "headers is NULL");
    WHY(httpdown_reply_start(request, 200, &name, 1), "not a header name: \"a b\"");
    WHY(httpdown_reply_start(request, 200, &lines, 1), "not a value for the header x: \"a\\r\\nb\"");
    WHY(httpdown_reply_write(request, "x", 1, HTTPDOWN_FOREVER, NULL), "no answer has begun");
    /* A call that succeeds leaves it. */
    EQUAL(httpdown_request_headers(request, 0, &name, 1, &(size_t){0}), 0);
    CHECK(strcmp(httpdown_last_error(), "no answer has begun") == 0);
    if (httpdown_bytes_equal(httpdown_request_path(request), "/length"))
        WHY(httpdown_reply(request, 200, &length, 1, "four", 4), "Content-Length is not the length of the body");
    else WHY(httpdown_reply_text(request, 200, "\xff"), "text is not UTF-8");
    EQUAL(httpdown_reply_text(request, 200, ""), HTTPDOWN_STATUS_ALREADY_REPLIED);
    CHECK(strcmp(httpdown_last_error(), "the request has been answered already") == 0);
    gate_add(&f->left);
}

static void a_failing_call_says_why(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, says_why);
    httpdown_server *server = start(&options);
    CHECK(strcmp(httpdown_last_error(), "") == 0);
    get(server, 500, NULL);
    int fd = dial(server);
    put(fd, GET_CLOSE("/length"));
    expect(fd, 500, NULL);
    close(fd);
    /* Each thread has its own. */
    CHECK(strcmp(httpdown_last_error(), "") == 0);
    WHY(httpdown_local_addr(server, 7, (char[64]){0}, 64), "no such listening socket");
    WHY(httpdown_report(server, NULL), "report is NULL");
    EQUAL(httpdown_stop_begin(NULL), INVALID);
    CHECK(strcmp(httpdown_last_error(), "report is NULL") == 0);
    options.addr = "nonsense";
    options.destroy = NULL;
    httpdown_server *none;
    CHECK(httpdown_serve(&options, &none, NULL, 0) != 0);
    CHECK(strstr(httpdown_last_error(), "nonsense") != NULL);
    end_server(f, 0);
    free_fixture(f);
}

/* ---- NULL, in every place ---- */

static void null_for_requests(httpdown_request *request, void *user_data) {
    fixture *f = user_data;
    size_t count = 77;
    httpdown_header header;
    httpdown_bytes body = {"unset", 5};
    char buffer[4] = "xyz";
    EQUAL(httpdown_request_headers(request, 0, NULL, 1, &count), INVALID);
    EQUAL(httpdown_request_headers(request, 0, &header, 1, NULL), INVALID);
    EQUAL(httpdown_request_headers(request, 0, &header, (size_t)-1, &count), INVALID);
    EQUAL(httpdown_request_read(request, NULL, 4, HTTPDOWN_FOREVER, &count), INVALID);
    EQUAL(httpdown_request_read(request, buffer, 4, HTTPDOWN_FOREVER, NULL), INVALID);
    EQUAL(httpdown_request_read(request, NULL, 0, HTTPDOWN_FOREVER, &count), INVALID);
    EQUAL(httpdown_request_body(request, 100, HTTPDOWN_FOREVER, NULL), INVALID);
    EQUAL(count, 77);
    CHECK(strcmp(buffer, "xyz") == 0);
    CHECK(httpdown_request_header(request, NULL).data == NULL);
    EQUAL(httpdown_request_body(request, 100, HTTPDOWN_FOREVER, &body), 0); /* nothing was lost on the way */
    CHECK(httpdown_bytes_equal(body, "body"));
    EQUAL(httpdown_reply_start(request, 200, NULL, 1), INVALID);
    EQUAL(httpdown_reply_start(request, 200, &header, (size_t)-1 / 2), INVALID);
    EQUAL(httpdown_reply_start(request, 200, NULL, 0), 0);
    EQUAL(httpdown_reply_write(request, NULL, 3, HTTPDOWN_FOREVER, NULL), INVALID);
    EQUAL(httpdown_reply_write(request, "x", (size_t)-1, HTTPDOWN_FOREVER, NULL), INVALID);
    EQUAL(httpdown_reply_write(request, "ok", 2, HTTPDOWN_FOREVER, NULL), 0);
    EQUAL(httpdown_reply_finish(request), 0);
    gate_add(&f->left);
}

static void null_is_never_a_crash(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, null_for_requests);
    httpdown_server *server = start(&options), *none = (httpdown_server *)&none;
    httpdown_stop_report report = {.struct_size = sizeof report};
    httpdown_event event = {.struct_size = sizeof event};
    httpdown_request *request;
    httpdown_clock *clock = new_clock();
    char text[64];
    size_t count;
    int fd;

    httpdown_options_init(NULL, sizeof options);
    EQUAL(httpdown_serve(NULL, &none, text, sizeof text), INVALID);
    CHECK(none == NULL && text[0] != 0);
    httpdown_options unplaced = options;
    fixture *g = new_fixture();
    unplaced.user_data = g;
    EQUAL(httpdown_serve(&unplaced, NULL, text, sizeof text), INVALID);
    CHECK(text[0] != 0);
    EQUAL(gate_value(&g->destroyed), 1); /* the options could be read */
    free(g);
    EQUAL(httpdown_serve(NULL, NULL, NULL, 0), INVALID);
    EQUAL(httpdown_serve(NULL, NULL, NULL, 100), INVALID);
    EQUAL(httpdown_run(NULL, &report, text, sizeof text), INVALID);
    EQUAL(httpdown_run(NULL, NULL, NULL, 0), INVALID);
    EQUAL(httpdown_run_all(NULL, 1, &report, text, sizeof text), INVALID);
    EQUAL(httpdown_run_all(NULL, 0, NULL, NULL, 0), INVALID);
    EQUAL(httpdown_stop(NULL), INVALID);
    EQUAL(httpdown_stop_begin(NULL), INVALID);
    EQUAL(httpdown_kill_begin(NULL), INVALID);
    EQUAL(httpdown_wait(NULL, HTTPDOWN_FOREVER, &report), INVALID);
    EQUAL(httpdown_report(NULL, &report), INVALID);
    EQUAL(httpdown_report(server, NULL), INVALID);
    EQUAL(httpdown_phase(NULL), HTTPDOWN_PHASE_STOPPED);
    CHECK(!httpdown_ready(NULL));
    EQUAL(httpdown_local_addr(NULL, 0, text, sizeof text), INVALID);
    EQUAL(httpdown_local_addr(server, 0, NULL, 64), INVALID);
    httpdown_free(NULL);
    EQUAL(httpdown_next(NULL, HTTPDOWN_NOW, &request, 1, &count), INVALID);
    EQUAL(httpdown_next(server, HTTPDOWN_NOW, NULL, 1, &count), INVALID);
    EQUAL(httpdown_next(server, HTTPDOWN_NOW, &request, 1, NULL), INVALID);
    EQUAL(httpdown_queue_fd(NULL, &fd), INVALID);
    EQUAL(httpdown_queue_fd(server, NULL), INVALID);
    EQUAL(httpdown_event_fd(NULL, &fd), INVALID);
    EQUAL(httpdown_event_fd(server, NULL), INVALID);
    EQUAL(httpdown_next_event(NULL, HTTPDOWN_NOW, &event), INVALID);
    EQUAL(httpdown_next_event(server, HTTPDOWN_NOW, NULL), INVALID);

    CHECK(httpdown_request_method(NULL).data == NULL);
    CHECK(httpdown_request_target(NULL).data == NULL);
    CHECK(httpdown_request_path(NULL).data == NULL);
    CHECK(httpdown_request_query(NULL).data == NULL);
    CHECK(httpdown_request_scheme(NULL).data == NULL);
    CHECK(httpdown_request_header(NULL, "host").data == NULL);
    CHECK(httpdown_request_header(NULL, NULL).data == NULL);
    CHECK(httpdown_request_peer_addr(NULL).data == NULL);
    httpdown_credentials client;
    EQUAL(httpdown_request_peer_credentials(NULL, &client), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    CHECK(httpdown_request_local_addr(NULL).data == NULL);
    CHECK(httpdown_request_server(NULL) == NULL);
    EQUAL(httpdown_request_version(NULL), 0);
    EQUAL(httpdown_request_header_count(NULL), 0);
    EQUAL(httpdown_request_conn_id(NULL), 0);
    CHECK(httpdown_request_cancelled(NULL));
    CHECK(!httpdown_request_overdue(NULL));
    EQUAL(httpdown_request_headers(NULL, 0, NULL, 0, &count), INVALID);
    EQUAL(httpdown_request_read(NULL, text, 1, HTTPDOWN_FOREVER, &count), INVALID);
    EQUAL(httpdown_request_body(NULL, 1, HTTPDOWN_FOREVER, &(httpdown_bytes){0}), INVALID);
    EQUAL(httpdown_request_wait_cancelled(NULL, HTTPDOWN_FOREVER), INVALID);
    EQUAL(httpdown_request_defer(NULL), INVALID);
    EQUAL(httpdown_request_retain(NULL), INVALID);
    EQUAL(httpdown_request_release(NULL), INVALID);
    /* Nor is what never was a request. */
    for (size_t i = 1; i < 99; i++) {
        httpdown_request *wrong = (httpdown_request *)(i < 64 ? i : (size_t)-1 / i);
        CHECK(httpdown_request_method(wrong).data == NULL);
        int status = httpdown_reply_text(wrong, 200, "nobody");
        CHECK(status == INVALID || status == HTTPDOWN_STATUS_ALREADY_REPLIED);
    }
    EQUAL(httpdown_reply(NULL, 200, NULL, 0, NULL, 0), INVALID);
    EQUAL(httpdown_reply_text(NULL, 200, "x"), INVALID);
    EQUAL(httpdown_reply_borrowed(NULL, 200, NULL, 0, NULL, 0, NULL, NULL), INVALID);
    EQUAL(httpdown_reply_start(NULL, 200, NULL, 0), INVALID);
    EQUAL(httpdown_reply_write(NULL, "x", 1, HTTPDOWN_FOREVER, NULL), INVALID);
    EQUAL(httpdown_reply_finish(NULL), INVALID);
    EQUAL(httpdown_reply_abort(NULL), INVALID);

    httpdown_bytes query = {"a=b", 3};
    EQUAL(httpdown_query_value(query, NULL, text, sizeof text, &count), INVALID);
    EQUAL(httpdown_query_value(query, "a", NULL, 2, &count), INVALID);
    EQUAL(httpdown_query_value(query, "a", text, sizeof text, NULL), INVALID);
    EQUAL(httpdown_query_value((httpdown_bytes){NULL, 3}, "a", text, sizeof text, &count), INVALID);
    EQUAL(httpdown_query_decode((httpdown_bytes){NULL, 3}, text, sizeof text, &count), INVALID);
    EQUAL(httpdown_query_decode(query, text, sizeof text, NULL), INVALID);
    EQUAL(httpdown_percent_decode(query, NULL, 9, &count), INVALID);
    EQUAL(httpdown_percent_decode(query, text, sizeof text, NULL), INVALID);
    CHECK(!httpdown_query_next(NULL, &(httpdown_header){0}) && !httpdown_query_next(&query, NULL));
    CHECK(!httpdown_query_next(&(httpdown_bytes){NULL, 3}, &(httpdown_header){0}));

    EQUAL(httpdown_clock_new_mock(NULL), INVALID);
    EQUAL(httpdown_clock_advance(NULL, 1), INVALID);
    EQUAL(httpdown_clock_wait_for_timers(NULL, 0, 0), INVALID);
    EQUAL(httpdown_clock_wait_for_timers(clock, 1, HTTPDOWN_NOW), HTTPDOWN_STATUS_WOULD_BLOCK);
    EQUAL(httpdown_clock_wait_for_timers(clock, 0, HTTPDOWN_NOW), 0);
    httpdown_clock_free(NULL);
    httpdown_clock_free(clock);

    fd = dial(server);
    put(fd, "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 4\r\n\r\nbody");
    expect(fd, 200, "ok");
    gate_wait(&f->left, 1);
    close(fd);
    end_server(f, 0);
    free_fixture(f);
}

/* ---- sizes of structs ---- */

static int try(const void *options, char *error, size_t error_size) {
    httpdown_server *server = NULL;
    int status = httpdown_serve(options, &server, error, error_size);
    CHECK((status == 0) == (server != NULL));
    httpdown_free(server);
    return status;
}

static void sizes_of_options(void) {
    union {
        httpdown_options options;
        unsigned char bytes[8192];
    } u;
    const size_t absurd[] = {0, 1, 7, 8, 15, 4097, 8192, (size_t)1 << 32, (size_t)-1, (size_t)-1 / 2};
    for (size_t i = 0; i < sizeof absurd / sizeof *absurd; i++) {
        memset(&u, 0, sizeof u);
        u.options.struct_size = absurd[i];
        EQUAL(try(&u, NULL, 0), INVALID);
        httpdown_stop_report report = {.struct_size = absurd[i], .requests = 5};
        httpdown_event event = {.struct_size = absurd[i], .value = 5};
        httpdown_options good = {.struct_size = sizeof good, .addr = "127.0.0.1:0", .handler = hello};
        httpdown_server *server;
        EQUAL(httpdown_serve(&good, &server, NULL, 0), 0);
        EQUAL(httpdown_report(server, &report), INVALID);
        EQUAL(httpdown_wait(server, HTTPDOWN_NOW, &report), INVALID);
        EQUAL(httpdown_run(&good, &report, NULL, 0), INVALID);
        EQUAL(httpdown_next_event(server, HTTPDOWN_NOW, &event), INVALID);
        EQUAL(report.requests, 5);
        CHECK(event.value > 4);
        httpdown_free(server);
    }
    /* Older: what it does not have is the default. */
    memset(&u, 0x5a, sizeof u);
    memset(&u, 0, offsetof(httpdown_options, user_data));
    u.options.struct_size = offsetof(httpdown_options, user_data);
    u.options.addr = "127.0.0.1:0";
    u.options.handler = hello;
    EQUAL(try(&u, NULL, 0), 0);
    u.options.struct_size = offsetof(httpdown_options, fds);
    EQUAL(try(&u, NULL, 0), INVALID); /* too old to have a handler */
    /* Newer: fine, if what is not known is zero. */
    memset(&u, 0, sizeof u);
    u.options.struct_size = sizeof u.options + 40;
    u.options.addr = "127.0.0.1:0";
    u.options.handler = hello;
    EQUAL(try(&u, NULL, 0), 0);
    u.bytes[sizeof u.options + 39] = 1;
    EQUAL(try(&u, NULL, 0), HTTPDOWN_STATUS_UNSUPPORTED);
    u.options.struct_size--;
    EQUAL(try(&u, NULL, 0), 0);
}

static void options_init_sets_all(void) {
    union {
        httpdown_options options;
        unsigned char bytes[8192];
    } u;
    memset(&u, 0x5a, sizeof u);
    httpdown_options_init(&u.options, 0);
    httpdown_options_init(&u.options, 4);
    httpdown_options_init(&u.options, 5000);
    httpdown_options_init(&u.options, (size_t)-1);
    for (size_t i = 0; i < sizeof u; i++) EQUAL(u.bytes[i], 0x5a);
    httpdown_options_init(&u.options, sizeof u.options + 24);
    EQUAL(u.options.struct_size, sizeof u.options + 24);
    for (size_t i = sizeof(size_t); i < sizeof u; i++) EQUAL(u.bytes[i], i < sizeof u.options + 24 ? 0 : 0x5a);
    u.options.struct_size = sizeof u.options;
    u.options.addr = "127.0.0.1:0";
    u.options.handler = hello;
    EQUAL(try(&u, NULL, 0), 0);
}

/* ---- options ---- */

static void options_that_make_no_sense(void) {
    char error[256];
    httpdown_options good = {.struct_size = sizeof good, .addr = "127.0.0.1:0", .handler = hello}, bad;
#define BAD(field, wrong, expected) \
    do { \
        bad = good; \
        bad.field = wrong; \
        EQUAL(try(&bad, error, sizeof error), expected); \
        CHECK(strlen(error) > 0); \
    } while (0)
    BAD(dispatch, 3, HTTPDOWN_STATUS_UNSUPPORTED);
    BAD(dispatch, -1, HTTPDOWN_STATUS_UNSUPPORTED);
    BAD(dispatch, HTTPDOWN_DISPATCH_QUEUE, INVALID); /* with a handler */
    BAD(handler, NULL, INVALID);
    BAD(pull_events, 32, HTTPDOWN_STATUS_UNSUPPORTED);
    BAD(pull_events, (uint32_t)-1, HTTPDOWN_STATUS_UNSUPPORTED);
    BAD(pool_threads, (uint32_t)-1, INVALID);
    BAD(io_threads, (uint32_t)-5, INVALID);
    BAD(fd_count, 1, INVALID); /* and no fds */
    BAD(fd_count, (size_t)-1, INVALID);
    good.pull_events = HTTPDOWN_EVENT_LOG;
    BAD(on_log, on_log, INVALID);
    BAD(on_phase, on_phase, INVALID);
    BAD(on_conn_state, on_conn_state, INVALID);
    BAD(stats.bump_avg, on_avg, INVALID);
    BAD(stats.bump_sum, on_sum, INVALID);
    BAD(stats.bump_histogram, on_histogram, INVALID);
    BAD(stats.bump_time, on_time, INVALID);
    EQUAL(try(&good, error, sizeof error), 0);
    EQUAL(strlen(error), 0);
}

/* ---- addresses ---- */

static int try_addr(const char *addr) {
    char error[256] = "";
    httpdown_options options = {.struct_size = sizeof options, .addr = addr, .handler = hello};
    int status = try(&options, error, sizeof error);
    CHECK((status == 0) == (error[0] == 0));
    if (status == HTTPDOWN_STATUS_PANIC) fprintf(stderr, "panic with %s\n", addr);
    return status;
}

static void addresses_that_make_no_sense(void) {
    static const char *const wrong[] = {
        "",           "127.0.0.1",     "localhost",      "127.0.0.1:",      "127.0.0.1:http",   "127.0.0.1:99999",
        "127.0.0.1:-1", "127.0.0.1:65536", "127.0.0.1:+80", "127.0.0.1: 80", "1.2.3.4.5:0",      "::1:0",
        "[::1:0",     "[::1]",         "::1]:0",         "[]:0",            "[127.0.0.1]:0",    "127.0.0.1:0,",
        ",127.0.0.1:0", ",",            "127.0.0.1:0,,127.0.0.1:0", "127.0.0.1:0;127.0.0.1:0", "no.such.host.invalid:0",
        "http://127.0.0.1:0", "[::1%nosuchinterface]:0", "a b:0", "256.0.0.1:0",
        "unix:",      "unix:@",        "unix:/tmp/x?mode=9", "unix:/tmp/x?user=no such user", "unix:@x?mode=600",
        "unix:/tmp/x?color=red",
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        int status = try_addr(wrong[i]);
        if (status != HTTPDOWN_STATUS_ADDR_INVALID) fprintf(stderr, "\"%s\": status %d\n", wrong[i], status);
        EQUAL(status, HTTPDOWN_STATUS_ADDR_INVALID);
    }
    int status = try_addr("\xff\xfe:0");
    CHECK(status == INVALID || status == HTTPDOWN_STATUS_ADDR_INVALID);
    EQUAL(try_addr("192.0.2.1:0"), HTTPDOWN_STATUS_IO); /* not an address of this machine */
    char *longest = malloc(70000);
    memset(longest, 'a', 70000);
    strcpy(longest + 69990, ":0");
    EQUAL(try_addr(longest), HTTPDOWN_STATUS_ADDR_INVALID);
    free(longest);
    EQUAL(try_addr("127.0.0.1:0"), 0);
    EQUAL(try_addr(" 127.0.0.1:0 , localhost:0"), 0);
}

static void ipv6_stands_in_brackets(void) {
    int probe = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in6 addr = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    bool has_ipv6 = probe >= 0 && bind(probe, (struct sockaddr *)&addr, sizeof addr) == 0;
    if (probe >= 0) close(probe);
    if (!has_ipv6) {
        printf("ipv6_stands_in_brackets: skipped: no IPv6 here\n");
        return;
    }
    httpdown_options options = {.struct_size = sizeof options, .addr = "[::1]:0", .handler = hello};
    httpdown_server *server = start(&options);
    char text[64];
    EQUAL(httpdown_local_addr(server, 0, text, sizeof text), 0);
    CHECK(strncmp(text, "[::1]:", 6) == 0);
    httpdown_free(server);
    EQUAL(try_addr("::1:8080"), HTTPDOWN_STATUS_ADDR_INVALID);
    EQUAL(try_addr("[::]:0"), 0);
    EQUAL(try_addr(":0"), 0);
}

static void a_port_in_use(void) {
    httpdown_options options = {.struct_size = sizeof options, .addr = "127.0.0.1:0", .handler = hello};
    httpdown_server *server = start(&options);
    char text[64], list[256];
    EQUAL(httpdown_local_addr(server, 0, text, sizeof text), 0);
    EQUAL(try_addr(text), HTTPDOWN_STATUS_ADDR_IN_USE);
    snprintf(list, sizeof list, "127.0.0.1:0,%s", text);
    int client = dial(server);
    put(client, "GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    expect(client, 200, NULL); /* the server has opened all it needs */
    int before = fd_count();
    EQUAL(try_addr(list), HTTPDOWN_STATUS_ADDR_IN_USE);
    EQUAL(fd_count(), before); /* the first one was closed again */
    close(client);
    snprintf(list, sizeof list, ":%d", port_of(server));
    EQUAL(try_addr(list), HTTPDOWN_STATUS_ADDR_IN_USE);
    get(server, 200, NULL);
    httpdown_free(server);
    EQUAL(try_addr(text), 0); /* free again at once */
}

static void a_privileged_port(void) {
    /* In this process nothing of httpdown's has been called yet. */
    FILE *limit = fopen("/proc/sys/net/ipv4/ip_unprivileged_port_start", "r");
    int first = 1024;
    if (limit != NULL) {
        if (fscanf(limit, "%d", &first) != 1) first = 1024;
        fclose(limit);
    }
    if (first <= 1) {
        printf("a_privileged_port: skipped: this machine has none\n");
        return;
    }
    if (geteuid() == 0 && (setgid(65534) != 0 || setuid(65534) != 0)) {
        printf("a_privileged_port: skipped: cannot become nobody\n");
        return;
    }
    EQUAL(try_addr("127.0.0.1:1"), HTTPDOWN_STATUS_PERMISSION_DENIED);
}

/* ---- descriptors ---- */

static int listening_socket(void) {
    struct sockaddr_in addr = {.sin_family = AF_INET};
    addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0 && bind(fd, (struct sockaddr *)&addr, sizeof addr) == 0 && listen(fd, 16) == 0);
    return fd;
}

static bool checks_flags;

/* The good one first: on an error both stay the caller's, and just as they were. */
static void try_fd(int bad, int expected) {
    int fds[2] = {listening_socket(), bad}, count = fd_count();
    int flags = fcntl(bad, F_GETFL), good_flags = fcntl(fds[0], F_GETFL);
    char error[256] = "";
    httpdown_options options = {
        .struct_size = sizeof options, .fds = fds, .fd_count = 2, .handler = hello};
    int status = try(&options, error, sizeof error);
    if (status != expected) fprintf(stderr, "descriptor %d: status %d: %s\n", bad, status, error);
    EQUAL(status, expected);
    /* By the number that the host knows. */
    char named[32];
    snprintf(named, sizeof named, "descriptor %d", bad);
    CHECK(strstr(error, named) != NULL && !isdigit((unsigned char)strstr(error, named)[strlen(named)]));
    EQUAL(fd_count(), count);
    CHECK(fcntl(fds[0], F_GETFD) >= 0);
    if (checks_flags) {
        EQUAL(fcntl(bad, F_GETFL), flags);
        EQUAL(fcntl(fds[0], F_GETFL), good_flags);
    }
    close(fds[0]);
}

static void descriptors_that_make_no_sense(void) {
    int closed = fcntl(0, F_DUPFD, 900), pair[2];
    close(closed);
    try_fd(-1, INVALID);
    try_fd(-100, INVALID);
    try_fd(closed, INVALID);
    try_fd(1 << 20, INVALID);
    int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC), tcp = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int udp = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), local = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    struct sockaddr_un addr = {.sun_family = AF_UNIX}; /* the kernel finds a name */
    CHECK(bind(local, (struct sockaddr *)&addr, sizeof addr.sun_family) == 0 && listen(local, 16) == 0);
    CHECK(pipe(pair) == 0);
    try_fd(tcp, INVALID);
    try_fd(udp, INVALID);
    try_fd(local, INVALID);
    try_fd(file, INVALID);
    try_fd(pair[0], INVALID);
}

/* Not even their flags, which whoever has a copy would see: a terminal, a pipe. */
static void refused_descriptors_are_not_touched(void) {
    checks_flags = true;
    descriptors_that_make_no_sense();
}

/* A descriptor twice would be closed twice: somebody else's, the second time. */
static void the_same_descriptor_twice(void) {
    int fd = listening_socket(), fds[2] = {fd, fd};
    httpdown_options options = {.struct_size = sizeof options, .fds = fds, .fd_count = 2, .handler = hello};
    EQUAL(try(&options, NULL, 0), INVALID);
    CHECK(fcntl(fd, F_GETFD) >= 0);
    close(fd);
}

static void a_good_descriptor_with_a_bad_address(void) {
    int fd = listening_socket();
    httpdown_options options = {
        .struct_size = sizeof options, .addr = "nonsense", .fds = &fd, .fd_count = 1, .handler = hello};
    EQUAL(try(&options, NULL, 0), HTTPDOWN_STATUS_ADDR_INVALID);
    CHECK(fcntl(fd, F_GETFD) >= 0);
    options.addr = NULL;
    EQUAL(try(&options, NULL, 0), 0);
    CHECK(fcntl(fd, F_GETFD) < 0);
}

/* ---- answers ---- */

static struct {
    int status;
    httpdown_header header;
    size_t header_count;
} answer;
static int answered;
static gate answers_given = GATE;
static int answers_seen;

static void answers(httpdown_request *request, void *user_data) {
    (void)user_data;
    if (httpdown_bytes_equal(httpdown_request_path(request), "/start")) {
        answered = httpdown_reply_start(request, answer.status, &answer.header, answer.header_count);
        if (answered == 0) httpdown_reply_finish(request);
        else httpdown_reply_text(request, 200, "otherwise"); /* it is as it was before */
    } else answered = httpdown_reply(request, answer.status, &answer.header, answer.header_count, "body", 4);
    gate_add(&answers_given);
}

/* Everything that goes over the wire, up to the end of the connection. */
static char *raw(httpdown_server *server, const char *path) {
    int fd = dial(server);
    char text[128];
    snprintf(text, sizeof text, "GET %s HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n", path);
    put(fd, text);
    response r = {0};
    while (take_bytes(fd, 1, &r)) {}
    close(fd);
    gate_wait(&answers_given, ++answers_seen); /* `answered` is known then */
    return r.body;
}

static void answer_is_refused(httpdown_server *server, const char *splits) {
    char *wire = raw(server, "/whole");
    CHECK(strncmp(wire, "HTTP/1.1 500 ", 13) == 0);
    if (splits != NULL) CHECK(strstr(wire, splits) == NULL);
    free(wire);
    EQUAL(answered, INVALID);
    wire = raw(server, "/start");
    CHECK(strncmp(wire, "HTTP/1.1 200 ", 13) == 0 && strstr(wire, "\r\n\r\notherwise") != NULL);
    if (splits != NULL) CHECK(strstr(wire, splits) == NULL);
    free(wire);
    EQUAL(answered, INVALID);
}

static void status_codes(void) {
    httpdown_options options = {.struct_size = sizeof options, .addr = "127.0.0.1:0", .handler = answers};
    httpdown_server *server = start(&options);
    static const int wrong[] = {0, 1, 99, 100, 101, 199, 1000, -1, -200, 65536 + 200, 0x7fffffff, (int)0x80000000};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        answer.status = wrong[i];
        answer_is_refused(server, NULL);
    }
    httpdown_free(server);
}

static void headers_cannot_split_a_response(void) {
    httpdown_options options = {.struct_size = sizeof options, .addr = "127.0.0.1:0", .handler = answers};
    httpdown_server *server = start(&options);
    answer.status = 200;
    answer.header_count = 1;
#define TRY(name_, name_len, value_, value_len) \
    do { \
        answer.header.name = (httpdown_bytes){name_, name_len}; \
        answer.header.value = (httpdown_bytes){value_, value_len}; \
        answer_is_refused(server, "evil"); \
    } while (0)
    static const char *const values[] = {"a\r\nevil: 1", "a\nevil: 1", "a\revil: 1", "\r\n\r\nevil", "evil\r", "evil\n",
                                         "\x01""evil", "evil\x7f"};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) TRY("x", 1, values[i], strlen(values[i]));
    static const char *const names[] = {"x\r\nevil", "x\nevil", "evil:", "evil ", " evil", "ev il", "evil\t", "(evil)",
                                        "ev\xc3\xa4il", "evil/", "\x7f""evil"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) TRY(names[i], strlen(names[i]), "v", 1);
    TRY("x", 1, "ev\0il", 6);
    TRY("ev\0il", 6, "v", 1);
    TRY("", 0, "evil", 4);
    TRY(NULL, 0, "evil", 4);
    TRY(NULL, 3, "evil", 4);
    TRY("x", 1, NULL, 4);
    TRY("x", 1, "evil", (size_t)-1);
    TRY("transfer-encoding", 17, "chunked", 7);
    TRY("Transfer-Encoding", 17, "identity", 8);
    TRY("content-length", 14, "x", 1);
    /* What is fine goes out as it is. */
    answer.header = (httpdown_header){httpdown_str("X-Fine"), httpdown_str("tab\there, \xc3\xa4 and \xff")};
    char *wire = raw(server, "/whole");
    CHECK(strstr(wire, "\r\nx-fine: tab\there, \xc3\xa4 and \xff\r\n") != NULL);
    free(wire);
    EQUAL(answered, 0);
    httpdown_free(server);
}

static void not_utf8(httpdown_request *request, void *user_data) {
    (void)user_data;
    const char *text = httpdown_bytes_equal(httpdown_request_path(request), "/null") ? NULL : "a\xff";
    EQUAL(httpdown_reply_text(request, 200, text), INVALID);
    gate_add(&answers_given);
}

static void texts_are_utf8(void) {
    httpdown_options options = {.struct_size = sizeof options, .addr = "127.0.0.1:0", .handler = not_utf8};
    httpdown_server *server = start(&options);
    char *wire = raw(server, "/latin1");
    CHECK(strncmp(wire, "HTTP/1.1 500 ", 13) == 0);
    free(wire);
    wire = raw(server, "/null");
    CHECK(strncmp(wire, "HTTP/1.1 500 ", 13) == 0);
    free(wire);
    httpdown_free(server);
}

/* Many headers, and big ones: refused or sent whole, never a crash. */
static void many_headers(httpdown_request *request, void *user_data) {
    (void)user_data;
    enum { MANY = 40000 };
    httpdown_header *headers = calloc(MANY, sizeof *headers);
    CHECK(headers != NULL);
    for (size_t i = 0; i < MANY; i++) headers[i] = (httpdown_header){httpdown_str("x"), httpdown_str("y")};
    answered = httpdown_reply(request, 200, headers, MANY, "body", 4);
    free(headers);
    gate_add(&answers_given);
}

static void very_many_headers(void) {
    httpdown_options options = {.struct_size = sizeof options, .addr = "127.0.0.1:0", .handler = many_headers};
    httpdown_server *server = start(&options);
    char *wire = raw(server, "/");
    CHECK(answered == 0 || answered == INVALID);
    if (answered == 0) CHECK(strncmp(wire, "HTTP/1.1 200 ", 13) == 0 && strstr(wire, "\r\n\r\nbody") != NULL);
    else CHECK(strncmp(wire, "HTTP/1.1 500 ", 13) == 0);
    free(wire);
    httpdown_free(server);
}

/* ---- the text of an error ---- */

static bool is_utf8(const char *text) {
    for (const unsigned char *at = (const unsigned char *)text; *at != 0;) {
        int more = *at < 0x80 ? 0 : *at >= 0xf0 ? 3 : *at >= 0xe0 ? 2 : *at >= 0xc0 ? 1 : -1;
        if (more < 0) return false;
        at++;
        while (more-- > 0)
            if ((*at++ & 0xc0) != 0x80) return false;
    }
    return true;
}

static void errors_are_cut_to_what_fits(void) {
    httpdown_options options = {
        .struct_size = sizeof options, .addr = "\xe2\x82\xac\xe2\x82\xac\xf0\x9f\x98\x80\xc3\xa4 has no port", .handler = hello};
    char whole[512], cut[512];
    EQUAL(try(&options, whole, sizeof whole), HTTPDOWN_STATUS_ADDR_INVALID);
    CHECK(is_utf8(whole) && strlen(whole) > 20);
    for (size_t size = 0; size <= strlen(whole) + 2; size++) {
        memset(cut, 0x55, sizeof cut);
        EQUAL(try(&options, cut, size), HTTPDOWN_STATUS_ADDR_INVALID);
        for (size_t i = size; i < sizeof cut; i++) EQUAL(cut[i], 0x55);
        if (size == 0) continue;
        CHECK(memchr(cut, 0, size) != NULL);
        CHECK(is_utf8(cut) && strncmp(cut, whole, strlen(cut)) == 0);
        CHECK(strlen(cut) + 4 >= size - 1 || strlen(cut) == strlen(whole));
    }
    EQUAL(try(&options, NULL, 100), HTTPDOWN_STATUS_ADDR_INVALID);
    EQUAL(try(&options, whole, (size_t)-1), HTTPDOWN_STATUS_ADDR_INVALID); /* an absurd size is no reason to crash */
}

int main(int argc, char **argv) {
    (void)argc;
    tests_chosen = argv + 1;
    RUN(a_failing_call_says_why);
    RUN(null_is_never_a_crash);
    RUN(sizes_of_options);
    RUN(options_init_sets_all);
    RUN(options_that_make_no_sense);
    RUN(addresses_that_make_no_sense);
    RUN(ipv6_stands_in_brackets);
    RUN(a_port_in_use);
    RUN(a_privileged_port);
    RUN(descriptors_that_make_no_sense);
    RUN(refused_descriptors_are_not_touched);
    RUN(the_same_descriptor_twice);
    RUN(a_good_descriptor_with_a_bad_address);
    RUN(status_codes);
    RUN(headers_cannot_split_a_response);
    RUN(texts_are_utf8);
    RUN(very_many_headers);
    RUN(errors_are_cut_to_what_fits);
    return test_end(argv[0]);
}
