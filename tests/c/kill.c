/* When the stop timeout passes: what is left is cut, and a stop ends on time whatever handlers do. */
#include "test.h"

/* Begins an answer, waits until it is cut, and says what it saw. */
static void streaming(httpdown_request *request, void *user_data) {
    fixture *f = user_data;
    EQUAL(httpdown_reply_start(request, 200, NULL, 0), 0);
    EQUAL(httpdown_reply_write(request, "begun", 5, HTTPDOWN_FOREVER, NULL), 0);
    gate_add(&f->entered);
    EQUAL(httpdown_request_wait_cancelled(request, HTTPDOWN_FOREVER), HTTPDOWN_STATUS_KILLED);
    CHECK(httpdown_request_cancelled(request));
    EQUAL(httpdown_reply_write(request, "more", 4, HTTPDOWN_FOREVER, NULL), HTTPDOWN_STATUS_KILLED);
    EQUAL(httpdown_reply_finish(request), HTTPDOWN_STATUS_KILLED);
    gate_add(&f->left);
}

/* The head and the first bytes, and then the cut: never an end that looks like a whole response. */
static void expect_cut(int fd) {
    response r = take(fd);
    CHECK(!r.whole);
    if (r.status != 0) CHECK(strcmp(r.body, "begun") == 0);
    done(&r);
    close(fd);
}

static void a_missed_stop_timeout_kills(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, streaming);
    record_all(&options);
    httpdown_clock *clock = new_clock();
    options.clock = clock;
    httpdown_server *server = start(&options);
    int fd = dial(server);
    put(fd, GET("/"));
    gate_wait(&f->entered, 1);
    EQUAL(httpdown_stop_begin(server), 0);
    wait_timers(clock, 2); /* the minute's count, and the stop timeout */
    gate_wait(&f->phase[HTTPDOWN_PHASE_DRAINING], 1);
    advance(clock, 59999);
    EQUAL(httpdown_phase(server), HTTPDOWN_PHASE_DRAINING);
    EQUAL(httpdown_wait(server, 50, NULL), HTTPDOWN_STATUS_WOULD_BLOCK);
    advance(clock, 1);
    httpdown_stop_report report = end_server(f, HTTPDOWN_STATUS_KILLED);
    EQUAL(gate_value(&f->left), 1); /* nothing of the host's runs any more */
    expect_cut(fd);
    EQUAL(report.killed, 1);
    EQUAL(report.served, 0);
    EQUAL(report.abandoned, 0);
    EQUAL(report.stop_duration_ms, 60000);
    EQUAL(wait_stat(f, HTTPDOWN_STAT_SUM, "kill.conn.count", 1), 1);
    EQUAL(times_stat(f, HTTPDOWN_STAT_SUM, "kill.timeout"), 0);
    EQUAL(gate_value(&f->phase[HTTPDOWN_PHASE_KILLING]), 1);
    httpdown_clock_free(clock);
    free_fixture(f);
}

static void within_the_stop_timeout_nothing_is_cut(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, slow);
    record_all(&options);
    httpdown_clock *clock = new_clock();
    options.clock = clock;
    options.stop_timeout_ms = 5000;
    httpdown_server *server = start(&options);
    int fd = dial(server);
    put(fd, GET("/"));
    gate_wait(&f->entered, 1);
    EQUAL(httpdown_stop_begin(server), 0);
    wait_timers(clock, 2);
    advance(clock, 4999);
    gate_add(&f->release);
    expect(fd, 200, "slow");
    close(fd);
    httpdown_stop_report report = end_server(f, 0);
    EQUAL(report.stop_duration_ms, 4999);
    EQUAL(times_stat(f, HTTPDOWN_STAT_SUM, "kill"), 0);
    httpdown_clock_free(clock);
    free_fixture(f);
}

static void no_stop_timeout_kills_at_once(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, streaming);
    options.stop_timeout_ms = HTTPDOWN_NOW;
    httpdown_server *server = start(&options);
    int fd = dial(server);
    put(fd, GET("/"));
    gate_wait(&f->entered, 1);
    EQUAL(httpdown_stop(server), HTTPDOWN_STATUS_KILLED);
    expect_cut(fd);
    end_server(f, HTTPDOWN_STATUS_KILLED);
    free_fixture(f);
}

/* ---- handlers that do not return ---- */

static void stubborn(httpdown_request *request, void *user_data) {
    fixture *f = user_data;
    gate_add(&f->entered);
    gate_wait(&f->release, 1);
    int status = httpdown_reply_text(request, 200, "too late");
    CHECK(status == HTTPDOWN_STATUS_KILLED || status == HTTPDOWN_STATUS_GONE);
    gate_add(&f->left);
}

static void a_handler_that_stays_is_abandoned(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, stubborn);
    record_all(&options);
    httpdown_clock *clock = new_clock();
    options.clock = clock;
    options.stop_timeout_ms = 2000;
    options.kill_timeout_ms = 1000;
    httpdown_server *server = start(&options);
    int fd = dial(server);
    put(fd, GET("/"));
    gate_wait(&f->entered, 1);
    EQUAL(httpdown_stop_begin(server), 0);
    wait_timers(clock, 2);
    advance(clock, 2000);
    gate_wait(&f->phase[HTTPDOWN_PHASE_KILLING], 1);
    response r = take(fd); /* the client is cut at once, not when the kill timeout passes */
    CHECK(!r.whole && r.status == 0);
    done(&r);
    close(fd);
    wait_timers(clock, 2);
    EQUAL(httpdown_wait(server, HTTPDOWN_NOW, NULL), HTTPDOWN_STATUS_WOULD_BLOCK);
    advance(clock, 1000);
    httpdown_stop_report report = {.struct_size = sizeof report};
    EQUAL(httpdown_wait(server, HTTPDOWN_FOREVER, &report), HTTPDOWN_STATUS_TIMED_OUT);
    EQUAL(report.status, HTTPDOWN_STATUS_TIMED_OUT);
    check_sums(&report);
    EQUAL(report.requests, 1);
    EQUAL(report.killed, 1);
    EQUAL(report.abandoned, 1);
    EQUAL(report.conns_open, 0);
    EQUAL(report.stop_duration_ms, 3000);
    EQUAL(httpdown_stop(server), HTTPDOWN_STATUS_TIMED_OUT);
    httpdown_free(server);
    EQUAL(gate_value(&f->left), 0);
    EQUAL(gate_value(&f->destroyed), 0); /* the handler still uses it */
    gate_add(&f->release);
    gate_wait(&f->destroyed, 1);
    EQUAL(gate_value(&f->left), 1);
    httpdown_clock_free(clock);
    free_fixture(f);
}

/* It has answered, but it does not return. */
static void answers_and_stays(httpdown_request *request, void *user_data) {
    fixture *f = user_data;
    EQUAL(httpdown_reply_text(request, 200, "answered"), 0);
    gate_add(&f->entered);
    gate_wait(&f->release, 1);
}

static void a_handler_that_stays_after_its_answer_is_waited_for(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, answers_and_stays);
    record_all(&options);
    httpdown_clock *clock = new_clock();
    options.clock = clock;
    httpdown_server *server = start(&options);
    int fd = dial(server);
    put(fd, GET("/"));
    expect(fd, 200, "answered");
    gate_wait(&f->entered, 1);
    EQUAL(httpdown_stop_begin(server), 0);
    wait_timers(clock, 2);
    advance(clock, 60000);
    gate_wait(&f->phase[HTTPDOWN_PHASE_KILLING], 1);
    wait_timers(clock, 2);
    advance(clock, 60000);
    httpdown_stop_report report = {.struct_size = sizeof report};
    EQUAL(httpdown_wait(server, HTTPDOWN_FOREVER, &report), HTTPDOWN_STATUS_TIMED_OUT);
    check_sums(&report);
    EQUAL(report.served, 1);
    EQUAL(report.killed, 0);
    EQUAL(report.abandoned, 1);
    close(fd);
    httpdown_free(server);
    gate_add(&f->release);
    gate_wait(&f->destroyed, 1);
    httpdown_clock_free(clock);
    free_fixture(f);
}

/* In place, it also holds the thread that drives its connection, and others. */
static void an_inline_handler_that_stays_does_not_hold_the_stop(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, stubborn);
    record_all(&options);
    httpdown_clock *clock = new_clock();
    options.clock = clock;
    options.dispatch = HTTPDOWN_DISPATCH_INLINE;
    options.io_threads = 1;
    httpdown_server *server = start(&options);
    int idle = dial(server), fd = dial(server);
    wait_told(f, HTTPDOWN_EVENT_CONN, HTTPDOWN_CONN_NEW, NULL, 2);
    put(fd, GET("/"));
    gate_wait(&f->entered, 1);
    EQUAL(httpdown_stop_begin(server), 0);
    wait_timers(clock, 2);
    advance(clock, 60000);
    gate_wait(&f->phase[HTTPDOWN_PHASE_KILLING], 1);
    /* The thread is held, so the socket is reset from elsewhere. */
    response r = take(fd);
    CHECK(!r.whole && (r.was_reset || by_unix()));
    done(&r);
    CHECK(is_at_end(idle));
    close(fd);
    close(idle);
    wait_timers(clock, 2);
    advance(clock, 60000);
    httpdown_stop_report report = {.struct_size = sizeof report};
    EQUAL(httpdown_wait(server, HTTPDOWN_FOREVER, &report), HTTPDOWN_STATUS_TIMED_OUT);
    EQUAL(report.abandoned, 1);
    EQUAL(report.killed, 1);
    check_sums(&report);
    EQUAL(report.conns_open, 0);
    httpdown_free(server);
    EQUAL(gate_value(&f->destroyed), 0);
    gate_add(&f->release);
    gate_wait(&f->destroyed, 1);
    httpdown_clock_free(clock);
    free_fixture(f);
}

/* ---- other functions of the program's that do not return ---- */

static void stays(void *user_data) {
    fixture *f = user_data;
    gate_add(&f->entered);
    gate_wait(&f->release, 1);
    gate_add(&f->left);
}

static void lends(httpdown_request *request, void *user_data) {
    EQUAL(httpdown_reply_borrowed(request, 200, NULL, 0, "lent", 4, stays, user_data), 0);
}

/* Nobody can have it any more: the memory is given back at once, on the handler's own thread. */
static void lends_too_late(httpdown_request *request, void *user_data) {
    fixture *f = user_data;
    gate_add(&f->left);
    EQUAL(httpdown_request_wait_cancelled(request, HTTPDOWN_FOREVER), HTTPDOWN_STATUS_KILLED);
    EQUAL(httpdown_reply_borrowed(request, 200, NULL, 0, "lent", 4, stays, f), HTTPDOWN_STATUS_KILLED);
}

static void *takes_and_lends(void *argument) {
    fixture *f = argument;
    httpdown_request *request;
    size_t count;
    EQUAL(httpdown_next(f->server, HTTPDOWN_FOREVER, &request, 1, &count), 0);
    lends(request, f);
    return NULL;
}

static void a_release_that_stays_does_not_hold_the_stop(void) {
    static const struct {
        httpdown_handler_fn handler;
        int dispatch;
    } ways[] = {
        {lends, HTTPDOWN_DISPATCH_POOL},
        {lends, HTTPDOWN_DISPATCH_INLINE},
        {NULL, HTTPDOWN_DISPATCH_QUEUE},
        {lends_too_late, HTTPDOWN_DISPATCH_POOL},
        {lends_too_late, HTTPDOWN_DISPATCH_INLINE},
    };
    for (size_t i = 0; i < 2 * sizeof ways / sizeof *ways; i++) {
        bool kill = i % 2 == 1, late = ways[i / 2].handler == lends_too_late;
        fixture *f = new_fixture();
        httpdown_options options = options_for(f, ways[i / 2].handler);
        options.dispatch = ways[i / 2].dispatch;
        options.stop_timeout_ms = 50;
        options.kill_timeout_ms = 50;
        httpdown_server *server = start(&options);
        int fd = dial(server);
        put(fd, GET("/"));
        if (ways[i / 2].handler == NULL) join(spawn(takes_and_lends, f));
        gate_wait(late ? &f->left : &f->entered, 1);
        double began = now_s();
        if (kill) EQUAL(httpdown_kill_begin(server), 0);
        EQUAL(httpdown_stop(server), HTTPDOWN_STATUS_TIMED_OUT);
        CHECK(now_s() - began < PATIENCE_S / 4);
        httpdown_stop_report report = report_of(server);
        check_sums(&report);
        EQUAL(report.status, HTTPDOWN_STATUS_TIMED_OUT);
        EQUAL(report.conns_open, 0);
        EQUAL(report.requests, 1);
        EQUAL(report.abandoned, 1);
        close(fd);
        gate_wait(&f->entered, 1);
        httpdown_free(server);
        /* A handler that is left behind still has it, or the connection of one. */
        if (ways[i / 2].handler != NULL) EQUAL(gate_value(&f->destroyed), 0);
        gate_add(&f->release);
        gate_wait(&f->destroyed, 1);
        free_fixture(f);
    }
}

static void destroys_and_stays(void *user_data) {
    stays(user_data);
    on_destroy(user_data);
}

static void *frees(void *server) {
    httpdown_free(server);
    return NULL;
}

/* It is called when nobody waits for the server any more, and holds only whoever frees it. */
static void a_destroy_that_stays_holds_neither_its_stop_nor_another(void) {
    static const httpdown_handler_fn handlers[] = {hello, NULL};
    for (int i = 0; i < 2; i++) {
        fixture *f = new_fixture(), *other = new_fixture();
        httpdown_options options = options_for(f, handlers[i]), others = options_for(other, hello);
        options.destroy = destroys_and_stays;
        record_all(&options);
        httpdown_server *server = start(&options), *another = start(&others);
        int fd = dial(server);
        UNTIL(report_of(server).conns_new == 1);
        EQUAL(httpdown_stop(server), 0);
        httpdown_stop_report report = {.struct_size = sizeof report};
        EQUAL(httpdown_wait(server, HTTPDOWN_FOREVER, &report), 0);
        check_sums(&report);
        EQUAL(gate_value(&f->entered), 0);
        pthread_t freeing = spawn(frees, server);
        gate_wait(&f->entered, 1);
        get(another, 200, "Hello, World!");
        end_server(other, 0);
        gate_add(&f->release);
        join(freeing);
        close(fd);
        free_fixture(f);
        free_fixture(other);
    }
}

/* ---- kill_begin ---- */

static void kill_begin_needs_no_stop(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, streaming);
    record_all(&options);
    httpdown_server *server = start(&options);
    int fd = dial(server), idle = dial(server);
    put(fd, GET("/"));
    gate_wait(&f->entered, 1);
    EQUAL(httpdown_kill_begin(server), 0);
    EQUAL(httpdown_kill_begin(server), 0);
    httpdown_stop_report report = end_server(f, HTTPDOWN_STATUS_KILLED);
    EQUAL(report.killed, 1);
    expect_cut(fd);
    CHECK(is_at_end(idle));
    close(idle);
    free_fixture(f);
}

static void kill_begin_during_a_stop(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, streaming);
    record_all(&options);
    options.lame_duck_ms = HTTPDOWN_FOREVER;
    httpdown_server *server = start(&options);
    int fd = dial(server);
    put(fd, GET("/"));
    gate_wait(&f->entered, 1);
    EQUAL(httpdown_stop_begin(server), 0);
    gate_wait(&f->phase[HTTPDOWN_PHASE_LAME_DUCK], 1);
    EQUAL(httpdown_kill_begin(server), 0);
    EQUAL(httpdown_stop_begin(server), 0); /* no way back */
    end_server(f, HTTPDOWN_STATUS_KILLED);
    expect_cut(fd);
    free_fixture(f);
}

static void killing_what_is_idle_cuts_nothing(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, hello);
    httpdown_server *server = start(&options);
    int fresh = dial(server), idle = dial(server);
    put(idle, GET("/"));
    expect(idle, 200, NULL);
    UNTIL(report_of(server).conns_idle == 1 && report_of(server).conns_new == 1);
    EQUAL(httpdown_kill_begin(server), 0);
    httpdown_stop_report report = end_server(f, 0);
    EQUAL(report.served, 1);
    CHECK(is_at_end(fresh) && is_at_end(idle));
    close(fresh);
    close(idle);
    free_fixture(f);
}

/* A request whose head has only begun to come is a request too. */
static void half_a_head_counts_as_killed(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, hello);
    httpdown_server *server = start(&options);
    int fd = dial(server);
    put(fd, "GET / HT");
    UNTIL(report_of(server).conns_active == 1);
    EQUAL(httpdown_kill_begin(server), 0);
    httpdown_stop_report report = end_server(f, HTTPDOWN_STATUS_KILLED);
    EQUAL(report.requests, 1);
    EQUAL(report.killed, 1);
    response r = take(fd);
    CHECK(r.status == 0);
    done(&r);
    close(fd);
    free_fixture(f);
}

/* A handler that is told KILLED has lost its client: whole answers and KILLED exclude each other. */
static void answers_at_once(httpdown_request *request, void *user_data) {
    fixture *f = user_data;
    gate_add(&f->entered);
    while (!httpdown_request_cancelled(request)) {}
    if (httpdown_reply_text(request, 200, "late") == HTTPDOWN_STATUS_KILLED) gate_add(&f->left);
}

static void returns_at_once(httpdown_request *request, void *user_data) {
    fixture *f = user_data;
    gate_add(&f->entered);
    while (!httpdown_request_cancelled(request)) {}
    gate_add(&f->left);
}

static void check_nothing_slips_through(httpdown_handler_fn handler) {
    enum { CLIENTS = 4 };
    for (int round = 0, rounds = scaled(50); round < rounds; round++) {
        fixture *f = new_fixture();
        httpdown_options options = options_for(f, handler);
        httpdown_server *server = start(&options);
        int fds[CLIENTS];
        for (int i = 0; i < CLIENTS; i++) {
            fds[i] = dial(server);
            put(fds[i], GET("/"));
        }
        gate_wait(&f->entered, CLIENTS);
        EQUAL(httpdown_kill_begin(server), 0);
        int whole = 0;
        for (int i = 0; i < CLIENTS; i++) {
            response r = take(fds[i]);
            whole += r.whole;
            done(&r);
            close(fds[i]);
        }
        httpdown_stop_report report = {.struct_size = sizeof report};
        int status = httpdown_wait(server, HTTPDOWN_FOREVER, &report);
        check_sums(&report);
        EQUAL(gate_value(&f->left), CLIENTS);
        if (status != HTTPDOWN_STATUS_KILLED || report.killed != CLIENTS || whole != 0)
            fprintf(stderr, "round %d: status %d, killed %d, served %d, whole answers %d\n", round, status,
                    (int)report.killed, (int)report.served, whole);
        EQUAL(status, HTTPDOWN_STATUS_KILLED);
        EQUAL(report.killed, CLIENTS);
        EQUAL(whole, 0);
        end_server(f, HTTPDOWN_STATUS_KILLED);
        free_fixture(f);
    }
}

static void no_answer_slips_through_a_kill(void) {
    check_nothing_slips_through(answers_at_once);
}

static void no_error_page_slips_through_a_kill(void) {
    check_nothing_slips_through(returns_at_once);
}

/* Requests that wait for a thread of the pool are told 503. */
static void what_waits_for_a_thread_is_refused(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, stubborn);
    options.pool_threads = 1;
    httpdown_server *server = start(&options);
    int first = dial(server), second = dial(server);
    put(first, GET("/"));
    gate_wait(&f->entered, 1);
    put(second, GET("/"));
    UNTIL(report_of(server).requests == 2);
    EQUAL(httpdown_kill_begin(server), 0);
    expect(second, 503, NULL);
    response r = take(first);
    CHECK(r.status == 0);
    done(&r);
    gate_add(&f->release);
    httpdown_stop_report report = end_server(f, HTTPDOWN_STATUS_KILLED);
    EQUAL(report.requests, 2);
    EQUAL(report.killed, 2);
    close(first);
    close(second);
    free_fixture(f);
}

/* A client that takes nothing, and one that sends nothing, are cut as well. */
static void floods(httpdown_request *request, void *user_data) {
    fixture *f = user_data;
    static char block[65536];
    EQUAL(httpdown_reply_start(request, 200, NULL, 0), 0);
    int status;
    do {
        gate_add(&f->entered);
        status = httpdown_reply_write(request, block, sizeof block, HTTPDOWN_FOREVER, NULL);
    } while (status == 0);
    EQUAL(status, HTTPDOWN_STATUS_KILLED);
    EQUAL(httpdown_reply_finish(request), HTTPDOWN_STATUS_KILLED);
    gate_add(&f->left);
}

static void reads(httpdown_request *request, void *user_data) {
    fixture *f = user_data;
    httpdown_bytes body;
    gate_add(&f->entered);
    EQUAL(httpdown_request_body(request, 1000, HTTPDOWN_FOREVER, &body), HTTPDOWN_STATUS_KILLED);
    char buffer[10];
    size_t count;
    EQUAL(httpdown_request_read(request, buffer, sizeof buffer, HTTPDOWN_FOREVER, &count), HTTPDOWN_STATUS_KILLED);
    EQUAL(httpdown_reply_abort(request), 0);
    gate_add(&f->left);
}

static void blocked_readers_and_writers_are_woken(void) {
    static const httpdown_handler_fn handlers[] = {floods, reads};
    for (int i = 0; i < 2; i++) {
        fixture *f = new_fixture();
        httpdown_options options = options_for(f, handlers[i]);
        httpdown_server *server = start(&options);
        int fd = dial(server);
        put(fd, "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 100\r\n\r\nabc");
        gate_wait(&f->entered, 1);
        for (int before = 0; i == 0;) { /* until the writer stands still */
            int after = gate_value(&f->entered);
            if (after == before && after > 4) break;
            before = after;
            nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
        }
        EQUAL(httpdown_kill_begin(server), 0);
        end_server(f, HTTPDOWN_STATUS_KILLED);
        EQUAL(gate_value(&f->left), 1);
        close(fd);
        free_fixture(f);
    }
}

/* The timers of a kill are real ones without a mock clock. */
static void real_timeouts_work_too(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, stubborn);
    options.stop_timeout_ms = 50;
    options.kill_timeout_ms = 50;
    httpdown_server *server = start(&options);
    int fd = dial(server);
    put(fd, GET("/"));
    gate_wait(&f->entered, 1);
    EQUAL(httpdown_stop(server), HTTPDOWN_STATUS_TIMED_OUT);
    httpdown_stop_report report = report_of(server);
    CHECK(report.stop_duration_ms >= 100);
    EQUAL(report.status, HTTPDOWN_STATUS_TIMED_OUT);
    close(fd);
    httpdown_free(server);
    gate_add(&f->release);
    gate_wait(&f->destroyed, 1);
    free_fixture(f);
}

int main(int argc, char **argv) {
    (void)argc;
    tests_chosen = argv + 1;
    RUN(a_missed_stop_timeout_kills);
    RUN(within_the_stop_timeout_nothing_is_cut);
    RUN(no_stop_timeout_kills_at_once);
    RUN(a_handler_that_stays_is_abandoned);
    RUN(a_handler_that_stays_after_its_answer_is_waited_for);
    RUN(an_inline_handler_that_stays_does_not_hold_the_stop);
    RUN(a_release_that_stays_does_not_hold_the_stop);
    RUN(a_destroy_that_stays_holds_neither_its_stop_nor_another);
    RUN(kill_begin_needs_no_stop);
    RUN(kill_begin_during_a_stop);
    RUN(killing_what_is_idle_cuts_nothing);
    RUN(half_a_head_counts_as_killed);
    RUN(no_answer_slips_through_a_kill);
    RUN(no_error_page_slips_through_a_kill);
    RUN(what_waits_for_a_thread_is_refused);
    RUN(blocked_readers_and_writers_are_woken);
    RUN(real_timeouts_work_too);
    return test_end(argv[0]);
}
