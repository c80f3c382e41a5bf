/* What the C tests share: checks, gates, a raw HTTP client, and a record of what the server told.
 *
 * Every test runs in a process of its own, forked before anything of httpdown's has been used: one that crashes or
 * hangs fails alone. `NAME TEST...` runs only those tests.
 */
#ifndef HTTPDOWN_TEST_H
#define HTTPDOWN_TEST_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <httpdown.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stddef.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#if defined(__GNUC__)
#define MAYBE_UNUSED __attribute__((unused))
#else
#define MAYBE_UNUSED
#endif
#define T static MAYBE_UNUSED

/* Nothing that works takes longer than this; it is only there to end what hangs. */
enum { PATIENCE_S = 60, PATIENCE_MS = PATIENCE_S * 1000 };

/* ---- checks ---- */

#define CHECK(condition) \
    do { \
        if (!(condition)) test_fail(__FILE__, __LINE__, #condition); \
    } while (0)

/* Two integers: says what they were. */
#define EQUAL(actual, expected) \
    do { \
        long long actual_ = (long long)(actual), expected_ = (long long)(expected); \
        if (actual_ != expected_) { \
            char text_[256]; \
            snprintf(text_, sizeof text_, "%s is %lld, not %s (%lld)", #actual, actual_, #expected, expected_); \
            test_fail(__FILE__, __LINE__, text_); \
        } \
    } while (0)

/* For what becomes true soon, and of which no callback tells. */
#define UNTIL(condition) \
    do { \
        int tries_ = PATIENCE_MS; \
        while (!(condition)) { \
            if (tries_-- == 0) test_fail(__FILE__, __LINE__, "never: " #condition); \
            nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL); \
        } \
    } while (0)

static const char *test_name = "";

T void test_fail(const char *file, int line, const char *what) {
    fprintf(stderr, "%s:%d: %s: %s\n", file, line, test_name, what);
    fflush(NULL);
    _exit(1);
}

/* ---- running ---- */

static int tests_passed, tests_failed;
static char **tests_chosen;

T bool test_is_chosen(const char *name) {
    if (tests_chosen == NULL || *tests_chosen == NULL) return true;
    for (char **chosen = tests_chosen; *chosen != NULL; chosen++)
        if (strcmp(*chosen, name) == 0) return true;
    return false;
}

T void test_run(const char *name, void (*test)(void)) {
    if (!test_is_chosen(name)) return;
    fflush(NULL);
    pid_t pid = fork();
    if (pid < 0) {
        perror("fork");
        exit(2);
    }
    if (pid == 0) {
        test_name = name;
        alarm(2 * PATIENCE_S);
        test();
        exit(0);
    }
    int status = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {}
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
        tests_passed++;
        return;
    }
    tests_failed++;
    if (WIFSIGNALED(status))
        fprintf(stderr, "%s: %s\n", name, WTERMSIG(status) == SIGALRM ? "hung" : strsignal(WTERMSIG(status)));
    else
        fprintf(stderr, "%s: failed with status %d\n", name, WEXITSTATUS(status));
}

#define RUN(test) test_run(#test, test)

T int test_end(const char *program) {
    const char *base = strrchr(program, '/');
    base = base != NULL ? base + 1 : program;
    if (tests_failed > 0) printf("%s: %d passed, %d failed\n", base, tests_passed, tests_failed);
    else printf("%s: %d passed\n", base, tests_passed);
    return tests_failed > 0;
}

/* How often something is repeated: `count`, or fewer where everything is slower (HTTPDOWN_TEST_SCALE=10: a tenth). */
T int scaled(int count) {
    const char *scale = getenv("HTTPDOWN_TEST_SCALE");
    int divisor = scale != NULL ? atoi(scale) : 1;
    if (divisor > 1) count /= divisor;
    return count > 0 ? count : 1;
}

/* ---- threads ---- */

/* A number that threads wait for. It only grows. */
typedef struct {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int value;
} gate;
#define GATE {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0}

T void gate_add(gate *g) {
    pthread_mutex_lock(&g->mutex);
    g->value++;
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->mutex);
}

T int gate_value(gate *g) {
    pthread_mutex_lock(&g->mutex);
    int value = g->value;
    pthread_mutex_unlock(&g->mutex);
    return value;
}

T struct timespec patience(void) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += PATIENCE_S;
    return until;
}

T void gate_wait(gate *g, int value) {
    struct timespec until = patience();
    pthread_mutex_lock(&g->mutex);
    while (g->value < value) {
        if (pthread_cond_timedwait(&g->changed, &g->mutex, &until) == ETIMEDOUT) {
            fprintf(stderr, "a gate stands at %d, not %d\n", g->value, value);
            test_fail(__FILE__, __LINE__, "nobody opened a gate");
        }
    }
    pthread_mutex_unlock(&g->mutex);
}

T pthread_t spawn(void *(*body)(void *), void *argument) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, body, argument) != 0) test_fail(__FILE__, __LINE__, "pthread_create");
    return thread;
}

T void *join(pthread_t thread) {
    void *result = NULL;
    if (pthread_join(thread, &result) != 0) test_fail(__FILE__, __LINE__, "pthread_join");
    return result;
}

T int entries(const char *directory) {
    DIR *dir = opendir(directory);
    CHECK(dir != NULL);
    int count = 0;
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) count += entry->d_name[0] != '.';
    closedir(dir);
    return count;
}

T int thread_count(void) {
    return entries("/proc/self/task");
}

T int fd_count(void) {
    return entries("/proc/self/fd") - 1; /* opendir's own */
}

T double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* ---- what the server told ---- */

typedef struct {
    int kind;       /* a httpdown_event_kind */
    int code;
    uint64_t conn;
    double value;
    char text[128]; /* key, peer or line */
} told;

enum { TOLD_MAX = 4096 };

/* What a test's server has as user_data. */
typedef struct {
    gate entered, release, left, destroyed, phase[6];
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    told list[TOLD_MAX];
    size_t count;
    httpdown_server *server; /* set by `start` */
    void *extra;
    int extra_count;
} fixture;

T fixture *new_fixture(void) {
    fixture *f = calloc(1, sizeof *f);
    CHECK(f != NULL);
    gate fresh = GATE;
    f->entered = f->release = f->left = f->destroyed = fresh;
    for (int i = 0; i < 6; i++) f->phase[i] = fresh;
    pthread_mutex_init(&f->mutex, NULL);
    pthread_cond_init(&f->changed, NULL);
    return f;
}

T void tell(fixture *f, told what) {
    pthread_mutex_lock(&f->mutex);
    if (f->count < TOLD_MAX) f->list[f->count++] = what;
    pthread_cond_broadcast(&f->changed);
    pthread_mutex_unlock(&f->mutex);
}

T void tell_stat(fixture *f, int code, const char *key, double value) {
    told what = {.kind = HTTPDOWN_EVENT_STAT, .code = code, .value = value};
    snprintf(what.text, sizeof what.text, "%s", key);
    tell(f, what);
}

T void on_avg(const char *key, double value, void *user_data) {
    tell_stat(user_data, HTTPDOWN_STAT_AVG, key, value);
}
T void on_sum(const char *key, double value, void *user_data) {
    tell_stat(user_data, HTTPDOWN_STAT_SUM, key, value);
}
T void on_histogram(const char *key, double value, void *user_data) {
    tell_stat(user_data, HTTPDOWN_STAT_HISTOGRAM, key, value);
}
T void on_time(const char *key, double value, void *user_data) {
    tell_stat(user_data, HTTPDOWN_STAT_TIME, key, value);
}

T void on_conn_state(const httpdown_server *server, uint64_t conn, int state, const char *peer, void *user_data) {
    told what = {.kind = HTTPDOWN_EVENT_CONN, .code = state, .conn = conn};
    CHECK(server != NULL);
    snprintf(what.text, sizeof what.text, "%s", peer);
    tell(user_data, what);
}

T void on_phase(const httpdown_server *server, int phase, void *user_data) {
    fixture *f = user_data;
    CHECK(server != NULL && phase >= 0 && phase <= 5);
    told what = {.kind = HTTPDOWN_EVENT_PHASE, .code = phase};
    tell(f, what);
    gate_add(&f->phase[phase]);
}

T void on_log(int level, const char *text, void *user_data) {
    told what = {.kind = HTTPDOWN_EVENT_LOG, .code = level};
    snprintf(what.text, sizeof what.text, "%s", text);
    tell(user_data, what);
}

T void on_destroy(void *user_data) {
    gate_add(&((fixture *)user_data)->destroyed);
}

T bool told_matches(const told *what, int kind, int code, const char *text) {
    return what->kind == kind && (code < 0 || what->code == code) && (text == NULL || strstr(what->text, text));
}

/* How often it was told; `code` < 0 and `text` NULL: any. */
T int times_told(fixture *f, int kind, int code, const char *text) {
    int count = 0;
    pthread_mutex_lock(&f->mutex);
    for (size_t i = 0; i < f->count; i++) count += told_matches(&f->list[i], kind, code, text);
    pthread_mutex_unlock(&f->mutex);
    return count;
}

/* Waits until it has been told so often, and returns the last of them. */
T told wait_told(fixture *f, int kind, int code, const char *text, int times) {
    struct timespec until = patience();
    pthread_mutex_lock(&f->mutex);
    for (;;) {
        int count = 0;
        for (size_t i = 0; i < f->count; i++) {
            if (told_matches(&f->list[i], kind, code, text) && ++count == times) {
                told what = f->list[i];
                pthread_mutex_unlock(&f->mutex);
                return what;
            }
        }
        if (pthread_cond_timedwait(&f->changed, &f->mutex, &until) == ETIMEDOUT) {
            fprintf(stderr, "waited for %s (%d, %d)\n", text != NULL ? text : "anything", kind, code);
            test_fail(__FILE__, __LINE__, "never told");
        }
    }
}

T int times_stat(fixture *f, int code, const char *key) {
    return times_told(f, HTTPDOWN_EVENT_STAT, code, key);
}

T double wait_stat(fixture *f, int code, const char *key, int times) {
    return wait_told(f, HTTPDOWN_EVENT_STAT, code, key, times).value;
}

/* ---- the server ---- */

/* Whether servers listen on Unix sockets: so the same tests are run once more (HTTPDOWN_TEST_SOCKETS=unix). */
T bool by_unix(void) {
    const char *kind = getenv("HTTPDOWN_TEST_SOCKETS");
    return kind != NULL && strcmp(kind, "unix") == 0;
}

/* An address that nobody else has: the kernel's choice of a port; or an abstract name, in which a number stands for it. */
T const char *any_addr(void) {
    static char names[256][32];
    static int count;
    if (!by_unix()) return "127.0.0.1:0";
    int number = __atomic_fetch_add(&count, 1, __ATOMIC_RELAXED) % 256;
    snprintf(names[number], sizeof names[number], "unix:@httpdown-c:%d", getpid() * 256 + number);
    return names[number];
}

/* What a server has to say of a client that has not bound its socket. */
T bool is_client_addr(const char *addr, size_t len) {
    if (by_unix()) return len == 5 && memcmp(addr, "unix:", 5) == 0;
    return len > 10 && memcmp(addr, "127.0.0.1:", 10) == 0;
}

/* Options for a test: an address of its own, the fixture, and its destructor. */
T httpdown_options options_for(fixture *f, httpdown_handler_fn handler) {
    httpdown_options options = {
        .struct_size = sizeof options,
        .addr = any_addr(),
        .handler = handler,
        .user_data = f,
        .destroy = on_destroy,
        /* Handlers here mostly see a body as it comes. */
        .body_buffer = 1,
        /* Most clients here stay idle and answer no FIN. */
        .idle_grace_ms = 5,
        .linger_timeout_ms = 50,
    };
    if (handler == NULL) options.dispatch = HTTPDOWN_DISPATCH_QUEUE;
    return options;
}

T void record_all(httpdown_options *options) {
    options->stats.bump_avg = on_avg;
    options->stats.bump_sum = on_sum;
    options->stats.bump_histogram = on_histogram;
    options->stats.bump_time = on_time;
    options->on_conn_state = on_conn_state;
    options->on_phase = on_phase;
    options->on_log = on_log;
}

T httpdown_server *start(const httpdown_options *options) {
    char error[256] = "";
    httpdown_server *server = NULL;
    int status = httpdown_serve(options, &server, error, sizeof error);
    if (status != 0) fprintf(stderr, "httpdown_serve: %d: %s\n", status, error);
    EQUAL(status, HTTPDOWN_STATUS_OK);
    CHECK(server != NULL);
    if (options->user_data != NULL) ((fixture *)options->user_data)->server = server;
    return server;
}

/* Its port; of a Unix socket, the number in its name. */
T int port_of(const httpdown_server *server) {
    char addr[128];
    EQUAL(httpdown_local_addr(server, 0, addr, sizeof addr), 0);
    return atoi(strrchr(addr, ':') + 1);
}

T httpdown_stop_report report_of(const httpdown_server *server) {
    httpdown_stop_report report = {.struct_size = sizeof report};
    EQUAL(httpdown_report(server, &report), 0);
    return report;
}

/* What must hold whenever a server has stopped. */
T void check_sums(const httpdown_stop_report *report) {
    EQUAL(report->phase, HTTPDOWN_PHASE_STOPPED);
    EQUAL(report->requests, report->served + report->failed + report->gone + report->timed_out + report->killed);
    EQUAL(report->conns_open,
          report->conns_new + report->conns_active + report->conns_idle + report->conns_hijacked);
}

/* Stops, checks the status, frees, and checks that `destroy` was called once. */
T httpdown_stop_report end_server(fixture *f, int expected) {
    httpdown_stop_report report = {.struct_size = sizeof report};
    EQUAL(httpdown_stop(f->server), expected);
    EQUAL(httpdown_wait(f->server, HTTPDOWN_FOREVER, &report), expected);
    EQUAL(report.status, expected);
    check_sums(&report);
    httpdown_free(f->server);
    gate_wait(&f->destroyed, 1);
    EQUAL(gate_value(&f->destroyed), 1);
    return report;
}

T void free_fixture(fixture *f) {
    UNTIL(thread_count() == 1);
    EQUAL(gate_value(&f->destroyed), 1);
    free(f);
}

T void hello(httpdown_request *request, void *user_data) {
    (void)user_data;
    httpdown_reply_text(request, 200, "Hello, World!");
}

/* Says that it has begun, and answers when it may. */
T void slow(httpdown_request *request, void *user_data) {
    fixture *f = user_data;
    gate_add(&f->entered);
    gate_wait(&f->release, 1);
    httpdown_reply_text(request, 200, "slow");
    gate_add(&f->left);
}

/* ---- a client ---- */

T int connect_to(int port) {
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    int len = snprintf(name.sun_path + 1, sizeof name.sun_path - 1, "httpdown-c:%d", port);
    bool is_unix = by_unix() && port > 65535;
    int fd = socket(is_unix ? AF_UNIX : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0);
    struct timeval limit = {.tv_sec = PATIENCE_S};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    int connected;
    if (is_unix)
        connected = connect(fd, (struct sockaddr *)&name, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)len));
    else connected = connect(fd, (struct sockaddr *)&addr, sizeof addr);
    if (connected == 0) return fd;
    int error = errno;
    close(fd);
    errno = error;
    return -1;
}

T int dial(const httpdown_server *server) {
    int fd = connect_to(port_of(server));
    CHECK(fd >= 0);
    return fd;
}

T bool is_refused(int port) {
    int fd = connect_to(port);
    if (fd < 0) return errno == ECONNREFUSED;
    close(fd);
    return false;
}

T void put_bytes(int fd, const void *data, size_t len) {
    const char *from = data;
    while (len > 0) {
        ssize_t sent = send(fd, from, len, MSG_NOSIGNAL);
        CHECK(sent > 0);
        from += sent;
        len -= (size_t)sent;
    }
}

T void put(int fd, const char *text) {
    put_bytes(fd, text, strlen(text));
}

/* Closes with a reset. */
T void reset(int fd) {
    struct linger linger = {.l_onoff = 1, .l_linger = 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    close(fd);
}

typedef struct {
    int status;      /* 0: no whole head came */
    char head[8192]; /* NUL-terminated, with its last empty line */
    char *body;      /* NUL-terminated; to be freed by `done` */
    size_t len;
    size_t room; /* the bytes that `body` has */
    bool whole;      /* the body came to its end */
    bool was_reset;
} response;

/* As recv. On some kernels a child's end interrupts it, where there is a timeout. */
T ssize_t receive(int fd, void *to, size_t size) {
    ssize_t got;
    do got = recv(fd, to, size, 0);
    while (got < 0 && errno == EINTR);
    return got;
}

T bool take_byte(int fd, char *byte, response *r) {
    ssize_t got = receive(fd, byte, 1);
    if (got < 0) {
        if (errno == EAGAIN) test_fail(__FILE__, __LINE__, "no answer");
        r->was_reset = errno == ECONNRESET;
    }
    return got == 1;
}

T bool take_bytes(int fd, size_t count, response *r) {
    size_t needed = r->len + count + 1;
    if (needed > r->room) {
        r->room = needed > 2 * r->room ? needed : 2 * r->room; /* valgrind copies with each realloc */
        r->body = realloc(r->body, r->room);
        CHECK(r->body != NULL);
    }
    while (count > 0) {
        ssize_t got = receive(fd, r->body + r->len, count);
        if (got <= 0) {
            if (got < 0 && errno == EAGAIN) test_fail(__FILE__, __LINE__, "no answer");
            r->was_reset = got < 0 && errno == ECONNRESET;
            r->body[r->len] = 0;
            return false;
        }
        r->len += (size_t)got;
        count -= (size_t)got;
    }
    r->body[r->len] = 0;
    return true;
}

T bool take_line(int fd, char *line, size_t size, response *r) {
    size_t len = 0;
    while (len + 1 < size && take_byte(fd, &line[len], r))
        if (line[len++] == '\n') {
            line[len] = 0;
            return true;
        }
    line[len] = 0;
    return false;
}

/* The value of a header (in lower case, as httpdown sends them), or NULL. */
T const char *header_of(const response *r, const char *name) {
    static _Thread_local char value[1024];
    char start[128];
    snprintf(start, sizeof start, "\r\n%s: ", name);
    const char *at = strstr(r->head, start);
    if (at == NULL) return NULL;
    at += strlen(start);
    snprintf(value, sizeof value, "%.*s", (int)strcspn(at, "\r"), at);
    return value;
}

/* Only the head of a response. */
T response take_head(int fd) {
    response r = {0};
    size_t len = 0;
    while (len + 1 < sizeof r.head && strstr(len > 3 ? r.head + len - 4 : "", "\r\n\r\n") == NULL) {
        if (!take_byte(fd, &r.head[len], &r)) return r;
        r.head[++len] = 0;
    }
    CHECK(sscanf(r.head, "HTTP/1.1 %d", &r.status) == 1 || sscanf(r.head, "HTTP/1.0 %d", &r.status) == 1);
    return r;
}

T void take_body(int fd, response *r) {
    const char *length = header_of(r, "content-length"), *coding = header_of(r, "transfer-encoding");
    char line[64];
    take_bytes(fd, 0, r);
    if (r->status == 204 || r->status == 304) r->whole = true;
    else if (coding != NULL && strcmp(coding, "chunked") == 0) {
        while (take_line(fd, line, sizeof line, r)) {
            size_t count = strtoul(line, NULL, 16);
            if (count == 0) {
                r->whole = take_line(fd, line, sizeof line, r);
                return;
            }
            if (!take_bytes(fd, count, r) || !take_line(fd, line, sizeof line, r)) return;
        }
    } else if (length != NULL) r->whole = take_bytes(fd, strtoul(length, NULL, 10), r);
    else {
        while (take_bytes(fd, 1, r)) {}
        r->whole = !r->was_reset;
    }
}

T response take(int fd) {
    response r = take_head(fd);
    if (r.status != 0) take_body(fd, &r);
    return r;
}

T void done(response *r) {
    free(r->body);
    memset(r, 0, sizeof *r);
}

/* A response that was not cut, with this status and body. */
T void expect(int fd, int status, const char *body) {
    response r = take(fd);
    if (r.status != status || !r.whole || (body != NULL && strcmp(r.body, body) != 0))
        fprintf(stderr, "got %d %s, whole %d, reset %d\n%s", r.status, r.body != NULL ? r.body : "", r.whole, r.was_reset,
                r.head);
    EQUAL(r.status, status);
    CHECK(r.whole);
    if (body != NULL) CHECK(strcmp(r.body, body) == 0);
    done(&r);
}

/* The server has closed its side, with nothing more before. */
T bool is_at_end(int fd) {
    char byte;
    ssize_t got = recv(fd, &byte, 1, 0);
    if (got < 0 && errno == EAGAIN) test_fail(__FILE__, __LINE__, "the connection stays open");
    return got == 0 || (got < 0 && errno == ECONNRESET);
}

#define GET(path) "GET " path " HTTP/1.1\r\nhost: test\r\n\r\n"
#define GET_CLOSE(path) "GET " path " HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n"

/* One request on a connection of its own. */
T void get(const httpdown_server *server, int status, const char *body) {
    int fd = dial(server);
    put(fd, GET_CLOSE("/"));
    expect(fd, status, body);
    close(fd);
}

T httpdown_clock *new_clock(void) {
    httpdown_clock *clock = NULL;
    EQUAL(httpdown_clock_new_mock(&clock), 0);
    return clock;
}

T void advance(httpdown_clock *clock, uint64_t ms) {
    EQUAL(httpdown_clock_advance(clock, ms), 0);
}

T void wait_timers(httpdown_clock *clock, size_t count) {
    EQUAL(httpdown_clock_wait_for_timers(clock, count, PATIENCE_MS), 0);
}

#endif
