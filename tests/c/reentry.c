/* Calls from where they would wait for themselves, and from signal handlers. */
#include "test.h"

static void stops_and_waits(httpdown_request *request, void *user_data) {
    fixture *f = user_data;
    const httpdown_server *server = httpdown_request_server(request);
    EQUAL(httpdown_wait(server, HTTPDOWN_FOREVER, NULL), HTTPDOWN_STATUS_WOULD_DEADLOCK);
    EQUAL(httpdown_phase(server), HTTPDOWN_PHASE_SERVING); /* a wait begins nothing */
    EQUAL(httpdown_stop(server), HTTPDOWN_STATUS_WOULD_DEADLOCK);
    EQUAL(httpdown_stop(server), HTTPDOWN_STATUS_WOULD_DEADLOCK);
    gate_wait(&f->phase[HTTPDOWN_PHASE_DRAINING], 1); /* it has begun */
    EQUAL(httpdown_reply_text(request, 200, "stopping"), 0);
}

static void a_handler_may_stop_its_server(void) {
    for (int dispatch = 0; dispatch < 2; dispatch++) {
        fixture *f = new_fixture();
        httpdown_options options = options_for(f, stops_and_waits);
        record_all(&options);
        options.dispatch = dispatch;
        httpdown_server *server = start(&options);
        get(server, 200, "stopping");
        EQUAL(httpdown_wait(server, HTTPDOWN_FOREVER, NULL), 0);
        end_server(f, 0);
        free_fixture(f);
    }
}

static void frees_its_server(httpdown_request *request, void *user_data) {
    fixture *f = user_data;
    gate_wait(&f->release, 1);
    httpdown_free(f->server);
    /* The request lives on. */
    CHECK(httpdown_bytes_equal(httpdown_request_method(request), "GET"));
    CHECK(httpdown_request_server(request) != NULL);
    EQUAL(httpdown_phase(httpdown_request_server(request)) >= HTTPDOWN_PHASE_SERVING, 1);
    gate_wait(&f->phase[HTTPDOWN_PHASE_DRAINING], 1);
    EQUAL(gate_value(&f->destroyed), 0);
    EQUAL(httpdown_reply_text(request, 200, "freed"), 0);
}

static void a_handler_may_free_its_server(void) {
    for (int dispatch = 0; dispatch < 2; dispatch++) {
        fixture *f = new_fixture();
        httpdown_options options = options_for(f, frees_its_server);
        record_all(&options);
        options.dispatch = dispatch;
        httpdown_server *server = start(&options);
        int fd = dial(server);
        put(fd, GET("/"));
        gate_add(&f->release);
        expect(fd, 200, "freed");
        close(fd);
        gate_wait(&f->destroyed, 1);
        free_fixture(f); /* and no thread is left */
    }
}

/* ---- on the events thread ---- */

typedef struct {
    fixture base;
    int frees;      /* 1: free, 0: stop and wait */
    int where;      /* 0: phase, 1: connection, 2: stat, 3: log */
    gate ready;
} reentrant;

static void from_a_callback(reentrant *r, int where) {
    if (r->where != where || gate_value(&r->base.entered) > 0) return;
    gate_add(&r->base.entered);
    gate_wait(&r->ready, 1); /* until serve has returned */
    if (r->frees) {
        httpdown_free(r->base.server);
    } else {
        EQUAL(httpdown_wait(r->base.server, HTTPDOWN_FOREVER, NULL), HTTPDOWN_STATUS_WOULD_DEADLOCK);
        EQUAL(httpdown_stop(r->base.server), HTTPDOWN_STATUS_WOULD_DEADLOCK);
        httpdown_stop_report report = {.struct_size = sizeof report};
        EQUAL(httpdown_report(r->base.server, &report), 0);
    }
    gate_add(&r->base.left);
}

static void phase_reenters(const httpdown_server *server, int phase, void *user_data) {
    CHECK(server != NULL);
    if (phase == HTTPDOWN_PHASE_SERVING) from_a_callback(user_data, 0);
}

static void conn_reenters(const httpdown_server *server, uint64_t id, int state, const char *peer, void *user_data) {
    CHECK(server != NULL && peer != NULL && id < 100);
    if (state == HTTPDOWN_CONN_CLOSED) from_a_callback(user_data, 1);
}

static void stat_reenters(const char *key, double value, void *user_data) {
    CHECK(value >= 0);
    if (strcmp(key, "conn.closed") == 0) from_a_callback(user_data, 2);
}

static void log_reenters(int level, const char *text, void *user_data) {
    CHECK(level >= 0 && text != NULL);
    from_a_callback(user_data, 3);
}

static void unanswered(httpdown_request *request, void *user_data) {
    (void)request, (void)user_data;
}

static void callbacks_may_stop_and_free(void) {
    for (int round = 0; round < 8; round++) {
        reentrant *r = calloc(1, sizeof *r);
        CHECK(r != NULL);
        fixture *fresh = new_fixture();
        r->base = *fresh;
        free(fresh);
        r->ready = (gate)GATE;
        r->frees = round & 1;
        r->where = round / 2;
        httpdown_options options = options_for(&r->base, unanswered);
        options.on_phase = phase_reenters;
        options.on_conn_state = conn_reenters;
        options.stats.bump_sum = stat_reenters;
        options.on_log = log_reenters;
        httpdown_server *server = start(&options);
        if (r->where != 0) get(server, 500, NULL);
        gate_add(&r->ready);
        gate_wait(&r->base.left, 1);
        if (!r->frees) end_server(&r->base, 0);
        gate_wait(&r->base.destroyed, 1);
        EQUAL(gate_value(&r->base.destroyed), 1);
        UNTIL(thread_count() == 1);
        free(r);
    }
}

/* ---- with a request of the queue ---- */

static httpdown_request *take_one(httpdown_server *server) {
    httpdown_request *request;
    size_t count;
    EQUAL(httpdown_next(server, HTTPDOWN_FOREVER, &request, 1, &count), 0);
    return request;
}

static void *waits(void *server) {
    return (void *)(intptr_t)httpdown_wait(server, HTTPDOWN_FOREVER, NULL);
}

static void a_holder_of_a_request_may_not_wait(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, NULL);
    record_all(&options);
    httpdown_server *server = start(&options);
    int fds[2];
    httpdown_request *requests[2];
    for (int i = 0; i < 2; i++) {
        fds[i] = dial(server);
        put(fds[i], GET("/"));
        requests[i] = take_one(server);
    }
    EQUAL(httpdown_wait(server, HTTPDOWN_FOREVER, NULL), HTTPDOWN_STATUS_WOULD_DEADLOCK);
    EQUAL(httpdown_phase(server), HTTPDOWN_PHASE_SERVING);
    EQUAL(httpdown_reply_text(requests[0], 200, "one"), 0);
    EQUAL(httpdown_stop(server), HTTPDOWN_STATUS_WOULD_DEADLOCK); /* still one */
    gate_wait(&f->phase[HTTPDOWN_PHASE_DRAINING], 1);
    pthread_t other = spawn(waits, server); /* others may */
    EQUAL(httpdown_reply_text(requests[1], 200, "two"), 0);
    EQUAL(httpdown_stop(server), 0);
    EQUAL((intptr_t)join(other), 0);
    for (int i = 0; i < 2; i++) {
        expect(fds[i], 200, i == 0 ? "one" : "two");
        close(fds[i]);
    }
    end_server(f, 0);
    free_fixture(f);
}

static void a_holder_of_a_request_may_free(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, NULL);
    record_all(&options);
    httpdown_server *server = start(&options);
    int fd = dial(server);
    put(fd, GET("/"));
    httpdown_request *request = take_one(server);
    httpdown_free(server);
    gate_wait(&f->phase[HTTPDOWN_PHASE_DRAINING], 1);
    EQUAL(httpdown_reply_text(request, 200, "after free"), 0);
    expect(fd, 200, "after free");
    close(fd);
    gate_wait(&f->destroyed, 1);
    free_fixture(f);
}

/* When the server has ended, nothing waits: the answer is that of the stop. */
static void a_holder_learns_of_the_end(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, NULL);
    options.stop_timeout_ms = options.kill_timeout_ms = 20;
    httpdown_server *server = start(&options);
    int fd = dial(server);
    put(fd, GET("/"));
    httpdown_request *request = take_one(server);
    EQUAL(httpdown_stop_begin(server), 0);
    EQUAL((intptr_t)join(spawn(waits, server)), HTTPDOWN_STATUS_TIMED_OUT);
    httpdown_stop_report report = {.struct_size = sizeof report};
    int status = httpdown_wait(server, HTTPDOWN_NOW, &report);
    if (report.phase == HTTPDOWN_PHASE_STOPPED) EQUAL(report.status, HTTPDOWN_STATUS_TIMED_OUT);
    EQUAL(status, HTTPDOWN_STATUS_TIMED_OUT);
    EQUAL(httpdown_reply_text(request, 200, "late"), HTTPDOWN_STATUS_KILLED);
    close(fd);
    httpdown_free(server);
    gate_wait(&f->destroyed, 1);
    free_fixture(f);
}

/* ---- a server and another ---- */

static httpdown_server *other_server;

static void stops_the_other(httpdown_request *request, void *user_data) {
    (void)user_data;
    EQUAL(httpdown_stop(other_server), 0);
    httpdown_free(other_server);
    EQUAL(httpdown_reply_text(request, 200, "stopped the other"), 0);
}

static void starts_another(httpdown_request *request, void *user_data) {
    (void)user_data;
    httpdown_options options = {.struct_size = sizeof options, .addr = any_addr(), .handler = hello};
    httpdown_server *server;
    EQUAL(httpdown_serve(&options, &server, NULL, 0), 0);
    get(server, 200, "Hello, World!");
    httpdown_free(server);
    EQUAL(httpdown_reply_text(request, 200, "started another"), 0);
}

static void a_handler_may_stop_another_server(void) {
    for (int dispatch = 0; dispatch < 2; dispatch++) {
        fixture *f = new_fixture(), *g = new_fixture();
        httpdown_options options = options_for(f, stops_the_other), others = options_for(g, hello);
        options.dispatch = dispatch;
        httpdown_server *server = start(&options);
        other_server = start(&others);
        get(other_server, 200, NULL);
        get(server, 200, "stopped the other");
        gate_wait(&g->destroyed, 1);
        end_server(f, 0);
        free_fixture(f);
        free(g);
    }
}

static void a_handler_may_start_another_server(void) {
    for (int dispatch = 0; dispatch < 2; dispatch++) {
        fixture *f = new_fixture();
        httpdown_options options = options_for(f, starts_another);
        options.dispatch = dispatch;
        httpdown_server *server = start(&options);
        get(server, 200, "started another");
        end_server(f, 0);
        free_fixture(f);
    }
}

/* ---- before serve has returned ---- */

static void asks_its_server(httpdown_request *request, void *user_data) {
    (void)user_data;
    char addr[64];
    const httpdown_server *server = httpdown_request_server(request);
    CHECK(server != NULL);
    EQUAL(httpdown_local_addr(server, 0, addr, sizeof addr), 0);
    CHECK(httpdown_ready(server));
    EQUAL(httpdown_phase(server), HTTPDOWN_PHASE_SERVING);
    EQUAL(httpdown_reply_text(request, 200, addr), 0);
}

static void *asks_at_once(void *argument) {
    put(*(int *)argument, GET_CLOSE("/"));
    expect(*(int *)argument, 200, NULL);
    return NULL;
}

/* The connection waits in the queue of a listening socket before the server begins. */
static void a_handler_may_run_before_serve_returns(void) {
    for (int round = 0, rounds = scaled(100); round < rounds; round++) {
        fixture *f = new_fixture();
        httpdown_options options = options_for(f, asks_its_server);
        struct sockaddr_in addr = {.sin_family = AF_INET};
        addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        socklen_t len = sizeof addr;
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        CHECK(bind(fd, (struct sockaddr *)&addr, len) == 0 && listen(fd, 16) == 0);
        CHECK(getsockname(fd, (struct sockaddr *)&addr, &len) == 0);
        int client = connect_to(ntohs(addr.sin_port));
        CHECK(client >= 0);
        pthread_t asker = spawn(asks_at_once, &client);
        options.addr = NULL;
        options.fds = &fd;
        options.fd_count = 1;
        options.dispatch = round & 1;
        start(&options);
        join(asker);
        close(client);
        end_server(f, 0);
        free_fixture(f);
    }
}

/* A stop, or a kill, that comes while the server is still being started. */
static void stops_at_once(const httpdown_server *server, int phase, void *user_data) {
    fixture *f = user_data;
    if (phase != HTTPDOWN_PHASE_SERVING) return;
    EQUAL(f->extra_count % 2 == 0 ? httpdown_stop_begin(server) : httpdown_kill_begin(server), 0);
    int status = httpdown_stop(server);
    CHECK(status == HTTPDOWN_STATUS_WOULD_DEADLOCK || status == 0); /* 0: it has ended already, and nothing would wait */
    gate_add(&f->entered);
}

static void a_stop_may_come_before_serve_returns(void) {
    for (int round = 0, rounds = scaled(200); round < rounds; round++) {
        fixture *f = new_fixture();
        httpdown_options options = options_for(f, hello);
        options.on_phase = stops_at_once;
        f->extra_count = round;
        httpdown_server *server = start(&options);
        EQUAL(httpdown_wait(server, HTTPDOWN_FOREVER, NULL), 0);
        gate_wait(&f->entered, 1);
        end_server(f, 0);
        free_fixture(f);
    }
}

/* ---- where a borrowed body is released ---- */

/* It may ask the server, and the request that it was for, which is there until its handler returns. */
static void release_asks(void *user_data) {
    fixture *f = user_data;
    httpdown_stop_report report = {.struct_size = sizeof report};
    EQUAL(httpdown_report(f->server, &report), 0);
    CHECK(report.requests > 0);
    CHECK(httpdown_phase(f->server) >= HTTPDOWN_PHASE_SERVING);
    bool gone = httpdown_request_cancelled(f->extra);
    int status = httpdown_request_wait_cancelled(f->extra, HTTPDOWN_NOW);
    /* Where it is called by the reply, the request is being ended. */
    EQUAL(gone, status == HTTPDOWN_STATUS_GONE || status == HTTPDOWN_STATUS_KILLED ||
                    status == HTTPDOWN_STATUS_ALREADY_REPLIED);
    gate_add(&f->release);
}

/* Keeps the only I/O thread until a kill has begun. */
static void release_blocks(void *user_data) {
    fixture *f = user_data;
    gate_add(&f->entered);
    gate_wait(&f->phase[HTTPDOWN_PHASE_KILLING], 1);
}

static void lends(httpdown_request *request, void *user_data) {
    fixture *f = user_data;
    httpdown_bytes path = httpdown_request_path(request);
    if (httpdown_bytes_equal(path, "/first")) {
        gate_wait(&f->entered, 1);
        EQUAL(httpdown_reply_borrowed(request, 200, NULL, 0, "first", 5, release_blocks, f), 0);
        return;
    }
    f->extra = request;
    gate_add(&f->entered);
    int code = 200, expected = 0;
    if (httpdown_bytes_equal(path, "/wrong")) {
        code = 99;
        expected = HTTPDOWN_STATUS_INVALID_ARGUMENT;
    } else if (httpdown_bytes_equal(path, "/gone")) {
        expected = HTTPDOWN_STATUS_GONE;
        EQUAL(httpdown_request_wait_cancelled(request, HTTPDOWN_FOREVER), expected);
    } else if (httpdown_bytes_equal(path, "/killed")) {
        gate_wait(&f->entered, 2); /* the I/O thread cannot take the answer */
    }
    int status = httpdown_reply_borrowed(request, code, NULL, 0, "lent", 4, release_asks, f);
    /* The kill may have begun before. */
    if (status != HTTPDOWN_STATUS_KILLED || !httpdown_bytes_equal(path, "/killed")) EQUAL(status, expected);
    gate_wait(&f->release, 1);
}

static void a_release_may_ask_whenever_it_is_called(void) {
    static const char *const requests[] = {GET("/sent"), GET("/wrong"), GET("/gone"), GET("/killed")};
    for (int i = 0; i < 4; i++) {
        fixture *f = new_fixture();
        httpdown_options options = options_for(f, lends);
        record_all(&options);
        options.io_threads = 1;
        httpdown_server *server = start(&options);
        int fd = dial(server), first = dial(server);
        put(fd, requests[i]);
        gate_wait(&f->entered, 1);
        if (i == 2) {
            reset(fd);
        } else if (i == 3) {
            put(first, GET("/first"));
            gate_wait(&f->entered, 2);
            EQUAL(httpdown_kill_begin(server), 0);
        }
        gate_wait(&f->release, 1);
        if (i < 2) expect(fd, i == 0 ? 200 : 500, NULL);
        if (i != 2) close(fd);
        close(first);
        end_server(f, i == 3 ? HTTPDOWN_STATUS_KILLED : 0);
        EQUAL(gate_value(&f->release), 1);
        free_fixture(f);
    }
}

/* ---- signal handlers ---- */

static const httpdown_server *volatile signalled;
static volatile sig_atomic_t order, result, serving, while_serving;

static void on_signal(int number) {
    (void)number;
    int saved = errno;
    errno = 4711;
    if (serving) while_serving++;
    result = order == 0 ? httpdown_stop_begin(signalled) : httpdown_kill_begin(signalled);
    if (errno != 4711) result = 1000;
    errno = saved;
}

static void catch_signal(int number) {
    struct sigaction action = {.sa_handler = on_signal};
    sigemptyset(&action.sa_mask);
    CHECK(sigaction(number, &action, NULL) == 0);
}

static void signal_handlers_may_begin_the_end(void) {
    catch_signal(SIGUSR1);
    for (order = 0; order < 2; order++) {
        fixture *f = new_fixture();
        httpdown_options options = options_for(f, slow);
        record_all(&options);
        options.stop_timeout_ms = order == 0 ? HTTPDOWN_FOREVER : 0;
        signalled = start(&options);
        int fd = dial(signalled);
        put(fd, GET("/"));
        gate_wait(&f->entered, 1);
        result = 99;
        raise(SIGUSR1);
        EQUAL(result, 0);
        raise(SIGUSR1);
        EQUAL(result, 0);
        gate_wait(&f->phase[order == 0 ? HTTPDOWN_PHASE_DRAINING : HTTPDOWN_PHASE_KILLING], 1);
        gate_add(&f->release);
        if (order == 0) expect(fd, 200, "slow");
        close(fd);
        end_server(f, order == 0 ? 0 : HTTPDOWN_STATUS_KILLED);
        free_fixture(f);
    }
}

/* The signal interrupts the very thread that waits, or stops, or takes. */
static void *signals_main(void *argument) {
    gate_wait(&((fixture *)argument)->release, 1);
    kill(getpid(), SIGUSR1);
    return NULL;
}

static void a_signal_ends_a_wait(void) {
    catch_signal(SIGUSR1);
    order = 0;
    for (int round = 0, rounds = scaled(50); round < rounds; round++) {
        fixture *f = new_fixture();
        httpdown_options options = options_for(f, hello);
        signalled = start(&options);
        sigset_t usr1;
        sigemptyset(&usr1);
        sigaddset(&usr1, SIGUSR1);
        CHECK(pthread_sigmask(SIG_BLOCK, &usr1, NULL) == 0);
        pthread_t thread = spawn(signals_main, f);
        CHECK(pthread_sigmask(SIG_UNBLOCK, &usr1, NULL) == 0);
        gate_add(&f->release);
        EQUAL(httpdown_wait(signalled, HTTPDOWN_FOREVER, NULL), 0);
        join(thread);
        end_server(f, 0);
        free_fixture(f);
    }
}

/* "May be called in a signal handler, and anywhere else": also while httpdown_serve has not returned, on the very
 * thread that is in it, with the server that a callback was told. */
static pthread_t serving_thread;
static gate delivered = GATE;

static void signals_the_starter(const httpdown_server *server, int phase, void *user_data) {
    (void)user_data;
    if (phase != HTTPDOWN_PHASE_SERVING) return;
    signalled = server;
    pthread_kill(serving_thread, SIGUSR1);
    gate_add(&delivered);
}

static void a_signal_within_serve_does_not_hang(void) {
    catch_signal(SIGUSR1);
    order = 0;
    serving_thread = pthread_self();
    enum { FDS = 200 };
    for (int round = 0, rounds = scaled(30); round < rounds; round++) {
        fixture *f = new_fixture();
        httpdown_options options = options_for(f, hello);
        options.on_phase = signals_the_starter;
        int fds[FDS]; /* many, so that serve has something to do at its end */
        for (int i = 0; i < FDS; i++) {
            struct sockaddr_in addr = {.sin_family = AF_INET};
            addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
            fds[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
            CHECK(bind(fds[i], (struct sockaddr *)&addr, sizeof addr) == 0 && listen(fds[i], 1) == 0);
        }
        options.fds = fds;
        options.fd_count = FDS;
        alarm(20); /* a hang is the failure */
        serving = 1;
        start(&options);
        serving = 0;
        gate_wait(&delivered, round + 1);
        alarm(2 * PATIENCE_S);
        EQUAL(httpdown_wait(f->server, HTTPDOWN_FOREVER, NULL), 0); /* the signal's stop */
        end_server(f, 0);
        free_fixture(f);
    }
    if (getenv("HTTPDOWN_TEST_VERBOSE")) fprintf(stderr, "%d signals came within serve\n", (int)while_serving);
}

int main(int argc, char **argv) {
    (void)argc;
    tests_chosen = argv + 1;
    RUN(a_handler_may_stop_its_server);
    RUN(a_handler_may_free_its_server);
    RUN(callbacks_may_stop_and_free);
    RUN(a_holder_of_a_request_may_not_wait);
    RUN(a_holder_of_a_request_may_free);
    RUN(a_holder_learns_of_the_end);
    RUN(a_handler_may_stop_another_server);
    RUN(a_handler_may_start_another_server);
    RUN(a_handler_may_run_before_serve_returns);
    RUN(a_stop_may_come_before_serve_returns);
    RUN(a_release_may_ask_whenever_it_is_called);
    RUN(signal_handlers_may_begin_the_end);
    RUN(a_signal_ends_a_wait);
    RUN(a_signal_within_serve_does_not_hang);
    return test_end(argv[0]);
}
