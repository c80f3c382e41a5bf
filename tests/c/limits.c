/* When descriptors or threads cannot be had: it is said, nothing leaks, and it goes on when they can. And what is done
 * so that idle connections do not hold them for ever. */
#include "test.h"

static void limit_to(int resource, rlim_t count) {
    struct rlimit limit;
    CHECK(getrlimit(resource, &limit) == 0);
    limit.rlim_cur = count < limit.rlim_max ? count : limit.rlim_max;
    CHECK(setrlimit(resource, &limit) == 0);
}

static rlim_t limit_of(int resource) {
    struct rlimit limit;
    CHECK(getrlimit(resource, &limit) == 0);
    return limit.rlim_cur;
}

/* So many more descriptors can be had. The numbers below must all be taken. */
static void leave_descriptors(int count) {
    limit_to(RLIMIT_NOFILE, 4096);
    int first = dup(0);
    CHECK(first >= 0);
    close(first);
    limit_to(RLIMIT_NOFILE, (rlim_t)(first + count));
}

static void all_descriptors(void) {
    limit_to(RLIMIT_NOFILE, 4096);
}

static int listening_socket(void) {
    struct sockaddr_in addr = {.sin_family = AF_INET};
    addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0 && bind(fd, (struct sockaddr *)&addr, sizeof addr) == 0 && listen(fd, 16) == 0);
    return fd;
}

/* Serve with 0, 1, 2, ... descriptors left, until it succeeds. */
static void serving_needs_descriptors(void) {
    for (int way = 0; way < 4; way++) {
        int failures = 0;
        for (int left = 0;; left++) {
            CHECK(left < 100);
            fixture *f = new_fixture();
            httpdown_options options = options_for(f, way == 2 ? NULL : hello);
            if (way >= 1) record_all(&options);
            int fd = -1;
            if (way == 3) {
                fd = listening_socket();
                options.fds = &fd;
                options.fd_count = 1;
                options.addr = NULL;
            }
            int before = fd_count();
            httpdown_server *server = NULL;
            char error[256] = "";
            leave_descriptors(left);
            int status = httpdown_serve(&options, &server, error, sizeof error);
            all_descriptors();
            if (status == 0) {
                /* It has all it needs, or it says that serving has failed; it never hangs. */
                f->server = server;
                int end = httpdown_stop(server);
                CHECK(end == 0 || end == HTTPDOWN_STATUS_IO || end == HTTPDOWN_STATUS_OUT_OF_RESOURCES);
                if (end != 0) fprintf(stderr, "way %d, %d left: serve said OK, and stop %d\n", way, left, end);
                EQUAL(end, 0);
                httpdown_free(server);
                free_fixture(f);
                break;
            }
            failures++;
            if (status != HTTPDOWN_STATUS_OUT_OF_RESOURCES)
                fprintf(stderr, "way %d, %d left: %d: %s\n", way, left, status, error);
            EQUAL(status, HTTPDOWN_STATUS_OUT_OF_RESOURCES);
            CHECK(server == NULL && strlen(error) > 0);
            EQUAL(gate_value(&f->destroyed), 1);
            UNTIL(thread_count() == 1); /* what was started has ended */
            EQUAL(fd_count(), before);
            if (fd >= 0) close(fd);
            free(f);
        }
        CHECK(failures >= 3);
    }
}

static void accepting_pauses_and_goes_on(void) {
    enum { CLIENTS = 10 };
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, hello);
    record_all(&options);
    httpdown_server *server = start(&options);
    get(server, 200, NULL); /* a thread of the pool has started */
    UNTIL(report_of(server).conns_open == 0);
    int fds[CLIENTS];
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port_of(server))};
    addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (int i = 0; i < CLIENTS; i++) {
        fds[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        struct timeval patience_ = {.tv_sec = PATIENCE_S};
        CHECK(fds[i] >= 0 && setsockopt(fds[i], SOL_SOCKET, SO_RCVTIMEO, &patience_, sizeof patience_) == 0);
    }
    leave_descriptors(3);
    for (int i = 0; i < CLIENTS; i++) {
        CHECK(connect(fds[i], (struct sockaddr *)&addr, sizeof addr) == 0);
        put(fds[i], GET("/"));
    }
    wait_stat(f, HTTPDOWN_STAT_SUM, "accept.error", 2);
    wait_told(f, HTTPDOWN_EVENT_LOG, HTTPDOWN_LOG_WARNING, "accepting pauses", 1);
    CHECK(report_of(server).connections <= 4);
    for (int i = 0; i < 3; i++) expect(fds[i], 200, "Hello, World!"); /* who is in is served */
    /* One leaves, the next comes in. */
    close(fds[0]);
    expect(fds[3], 200, "Hello, World!");
    all_descriptors();
    for (int i = 4; i < CLIENTS; i++) expect(fds[i], 200, "Hello, World!");
    for (int i = 1; i < CLIENTS; i++) close(fds[i]);
    EQUAL(end_server(f, 0).served, CLIENTS + 1);
    free_fixture(f);
}

/* A stop ends, although not all who wait in the queue can be accepted at once. */
static void a_stop_ends_without_descriptors(void) {
    enum { CLIENTS = 8 };
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, hello);
    record_all(&options);
    httpdown_server *server = start(&options);
    get(server, 200, NULL);
    UNTIL(report_of(server).conns_open == 0);
    int fds[CLIENTS];
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port_of(server))};
    addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (int i = 0; i < CLIENTS; i++) fds[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    leave_descriptors(2);
    for (int i = 0; i < CLIENTS; i++) {
        CHECK(connect(fds[i], (struct sockaddr *)&addr, sizeof addr) == 0);
        put(fds[i], GET("/"));
    }
    wait_stat(f, HTTPDOWN_STAT_SUM, "accept.error", 1);
    int status = httpdown_stop(server);
    CHECK(status == 0 || status == HTTPDOWN_STATUS_IO);
    all_descriptors();
    httpdown_stop_report report = end_server(f, status);
    int answered = 0;
    for (int i = 0; i < CLIENTS; i++) {
        char byte;
        answered += recv(fds[i], &byte, 1, 0) == 1;
        close(fds[i]);
    }
    EQUAL(answered + 1, report.served);
    if (answered < CLIENTS)
        fprintf(stderr, "without descriptors a stop answered %d of %d established clients, status %d\n", answered, CLIENTS,
                status);
    EQUAL(answered, CLIENTS);
    free_fixture(f);
}

static void the_queues_descriptor_may_fail(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, NULL);
    httpdown_server *server = start(&options);
    int fd = 77;
    leave_descriptors(0);
    int status = httpdown_queue_fd(server, &fd);
    all_descriptors();
    EQUAL(status, HTTPDOWN_STATUS_OUT_OF_RESOURCES);
    EQUAL(fd, 77);
    EQUAL(httpdown_queue_fd(server, &fd), 0);
    end_server(f, 0);
    free_fixture(f);
}

/* ---- threads ---- */

/* As somebody who may have only so many threads. */
static bool become_nobody(const char *test) {
    if (geteuid() != 0) {
        printf("%s: skipped: needs root\n", test);
        return false;
    }
    /* A user of our own: nobody else's threads count. */
    uid_t user = (uid_t)(200000 + getpid());
    if (setgid(user) != 0 || setuid(user) != 0) {
        printf("%s: skipped: cannot become another user\n", test);
        return false;
    }
    return true;
}

/* Of the serve that has failed nothing is left that would be missing there. */
static void a_child_serves(void) {
    pid_t pid = fork();
    int status = 0;
    if (pid == 0) {
        alarm(PATIENCE_S);
        fixture *f = new_fixture();
        httpdown_options options = options_for(f, hello);
        get(start(&options), 200, NULL);
        end_server(f, 0);
        _exit(0);
    }
    CHECK(pid > 0 && waitpid(pid, &status, 0) == pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void serving_needs_threads(void) {
    if (!become_nobody("serving_needs_threads")) return;
    rlim_t all = limit_of(RLIMIT_NPROC);
    int failures = 0;
    for (rlim_t threads = 1;; threads++) {
        CHECK(threads < 30);
        fixture *f = new_fixture();
        httpdown_options options = options_for(f, hello);
        record_all(&options);
        options.io_threads = 4;
        int before = fd_count();
        httpdown_server *server = NULL;
        char error[256] = "";
        limit_to(RLIMIT_NPROC, threads);
        int status = httpdown_serve(&options, &server, error, sizeof error);
        limit_to(RLIMIT_NPROC, all);
        if (status == 0) {
            f->server = server;
            get(server, 200, NULL);
            end_server(f, 0);
            free_fixture(f);
            break;
        }
        failures++;
        if (status != HTTPDOWN_STATUS_OUT_OF_RESOURCES) fprintf(stderr, "%d threads: %d: %s\n", (int)threads, status, error);
        EQUAL(status, HTTPDOWN_STATUS_OUT_OF_RESOURCES);
        CHECK(server == NULL && strlen(error) > 0);
        a_child_serves();
        gate_wait(&f->destroyed, 1);
        EQUAL(gate_value(&f->destroyed), 1);
        UNTIL(thread_count() == 1);
        UNTIL(fd_count() == before);
        free(f);
    }
    CHECK(failures >= 5); /* four that drive connections, one for events, one for control */
}

static void handlers_need_threads(void) {
    if (!become_nobody("handlers_need_threads")) return;
    rlim_t all = limit_of(RLIMIT_NPROC);
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, hello);
    record_all(&options);
    httpdown_server *server = start(&options);
    limit_to(RLIMIT_NPROC, 1);
    for (int i = 0; i < 3; i++) get(server, 500, NULL); /* visibly */
    UNTIL(times_told(f, HTTPDOWN_EVENT_LOG, HTTPDOWN_LOG_ERROR, NULL) > 0); /* it comes on another thread */
    limit_to(RLIMIT_NPROC, all);
    get(server, 200, NULL);
    limit_to(RLIMIT_NPROC, 1);
    for (int i = 0; i < 3; i++) get(server, 200, NULL); /* the thread that there is does it */
    limit_to(RLIMIT_NPROC, all);
    end_server(f, 0);
    free_fixture(f);
}

static void frees_without_threads(httpdown_request *request, void *user_data) {
    fixture *f = user_data;
    gate_wait(&f->release, 1);
    limit_to(RLIMIT_NPROC, 1);
    httpdown_free(f->server);
    EQUAL(httpdown_reply_text(request, 200, "freed"), 0);
}

static void freeing_needs_no_thread(void) {
    if (!become_nobody("freeing_needs_no_thread")) return;
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, frees_without_threads);
    httpdown_server *server = start(&options);
    int fd = dial(server);
    put(fd, GET("/"));
    gate_add(&f->release);
    expect(fd, 200, "freed");
    close(fd);
    gate_wait(&f->destroyed, 1);
    free_fixture(f);
}

static void idle_connections_are_closed(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, hello);
    options.idle_timeout_ms = 100;
    httpdown_server *server = start(&options);
    int silent = dial(server), idle = dial(server);
    put(idle, GET("/"));
    expect(idle, 200, "Hello, World!");
    char byte;
    EQUAL(recv(idle, &byte, 1, 0), 0);
    EQUAL(recv(silent, &byte, 1, 0), 0);
    close(idle);
    close(silent);
    EQUAL(end_server(f, 0).closed_idle, 2);
    free_fixture(f);
}

static void responses_tell_of_the_idle_timeout(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, hello);
    options.idle_timeout_ms = 61500;
    options.idle_grace_ms = 1000;
    options.keep_alive_header = 1;
    httpdown_server *server = start(&options);
    int fd = dial(server);
    put(fd, GET("/"));
    char answer[1024] = "";
    for (size_t have = 0; strstr(answer, "World!") == NULL;) {
        ssize_t count = recv(fd, answer + have, sizeof answer - 1 - have, 0);
        CHECK(count > 0);
        have += (size_t)count;
    }
    CHECK(strstr(answer, "\r\nkeep-alive: timeout=60\r\n") != NULL);
    close(fd);
    end_server(f, 0);

    struct {
        uint32_t idle_timeout_ms;
        const char *reason;
    } wrong[] = {{0, "there is no idle_timeout"}, {1999, "idle_timeout (1.999s)"}, {HTTPDOWN_NOW, "idle_timeout is 0"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        options.idle_timeout_ms = wrong[i].idle_timeout_ms;
        options.user_data = NULL;
        options.destroy = NULL;
        char error[256] = "";
        EQUAL(httpdown_serve(&options, &server, error, sizeof error), HTTPDOWN_STATUS_INVALID_ARGUMENT);
        CHECK(strstr(error, wrong[i].reason) != NULL);
    }
    free_fixture(f);
}

/* Reads the body, and leaves the rest to the library. */
static void reads(httpdown_request *request, void *user_data) {
    fixture *f = user_data;
    char piece[64];
    size_t count;
    for (;;) {
        int status = httpdown_request_read(request, piece, sizeof piece, HTTPDOWN_FOREVER, &count);
        if (status != 0) {
            EQUAL(status, HTTPDOWN_STATUS_TOO_LARGE);
            status = httpdown_request_read(request, piece, sizeof piece, HTTPDOWN_FOREVER, &count);
            EQUAL(status, HTTPDOWN_STATUS_TOO_LARGE);
            httpdown_bytes body;
            EQUAL(httpdown_request_body(request, 1 << 20, HTTPDOWN_FOREVER, &body), HTTPDOWN_STATUS_TOO_LARGE);
            gate_add(&f->entered);
            return;
        }
        if (count == 0) break;
    }
    httpdown_reply_text(request, 200, "read");
}

static void clients_meet_limits(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, reads);
    options.max_headers = 3;
    options.max_head_size = 200;
    options.max_target_size = 19;
    options.max_body_size = 10;
    options.max_conn_requests = 2;
    options.max_conns = 100000;
    options.max_client_conns = 100000;
    options.max_queued = 100000;
    options.tcp_backlog = 100;
    options.tcp_keepalive_ms = 60000;
    options.tcp_user_timeout_ms = 60000;
    options.receive_buffer = 100000;
    options.send_buffer = 100000;
    options.v6_only = 1;
    httpdown_server *server = start(&options);
    static const struct {
        const char *head;
        int status;
    } cases[] = {
        {"GET / HTTP/1.1\r\nHost: a\r\nb: c\r\nd: e\r\n\r\n", 200},
        {"GET / HTTP/1.1\r\nHost: a\r\nb: c\r\nd: e\r\nf: g\r\n\r\n", 431},
        {"GET /234567890123456789 HTTP/1.1\r\nHost: a\r\n\r\n", 200},
        {"GET /2345678901234567890 HTTP/1.1\r\nHost: a\r\n\r\n", 414},
        {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n0123456789", 200},
        {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n", 413},
        {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n0123456789x\r\n", 413},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int fd = dial(server);
        put(fd, cases[i].head);
        expect(fd, cases[i].status, NULL);
        close(fd);
    }
    EQUAL(gate_value(&f->entered), 1);
    int fd = dial(server);
    put(fd, GET("/"));
    expect(fd, 200, "read");
    put(fd, GET("/"));
    expect(fd, 200, "read");
    char byte;
    EQUAL(recv(fd, &byte, 1, 0), 0);
    close(fd);
    httpdown_stop_report report = end_server(f, 0);
    EQUAL(report.requests, 6);
    EQUAL(report.served, 6);
    EQUAL(report.conns_gone, 0);

    options.max_headers = 0;
    options.tcp_keepalive_ms = HTTPDOWN_NOW;
    char wrong[256] = "";
    options.user_data = NULL;
    options.destroy = NULL;
    EQUAL(httpdown_serve(&options, &server, wrong, sizeof wrong), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    CHECK(strstr(wrong, "tcp_keepalive is 0ns") != NULL);
    options.tcp_keepalive_ms = HTTPDOWN_FOREVER;
    options.max_headers = 5000;
    char error[256] = "";
    EQUAL(httpdown_serve(&options, &server, error, sizeof error), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    CHECK(strstr(error, "max_headers is more than 4096") != NULL);
    free_fixture(f);
}

int main(int argc, char **argv) {
    (void)argc;
    tests_chosen = argv + 1;
    RUN(serving_needs_descriptors);
    RUN(accepting_pauses_and_goes_on);
    RUN(a_stop_ends_without_descriptors);
    RUN(the_queues_descriptor_may_fail);
    RUN(serving_needs_threads);
    RUN(handlers_need_threads);
    RUN(freeing_needs_no_thread);
    RUN(idle_connections_are_closed);
    RUN(responses_tell_of_the_idle_timeout);
    RUN(clients_meet_limits);
    return test_end(argv[0]);
}
