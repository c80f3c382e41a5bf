/* Readiness, and the lame duck that ends when nobody sends requests any more. */
#include "test.h"

/* One request, on a connection of its own. */
static void ask_for(int port, const char *request, int status, const char *body) {
    int fd = connect_to(port);
    CHECK(fd >= 0);
    put(fd, request);
    expect(fd, status, body);
    close(fd);
}

static void expect_ready(const httpdown_server *server) {
    CHECK(httpdown_ready(server));
    ask_for(port_of(server), GET("/ready"), 200, "ready\n");
}

static void expect_stopping(const httpdown_server *server) {
    CHECK(!httpdown_ready(server));
    ask_for(port_of(server), GET("/ready"), 503, "stopping\n");
}

static httpdown_options ready_options(fixture *f, httpdown_handler_fn handler, httpdown_clock *clock) {
    httpdown_options options = options_for(f, handler);
    options.ready_path = "/ready";
    options.clock = clock;
    options.on_phase = on_phase;
    return options;
}

static void the_ready_path_tells_whether_the_server_is_ready(void) {
    fixture *f = new_fixture();
    httpdown_clock *clock = new_clock();
    httpdown_options options = ready_options(f, hello, clock);
    char path[] = "/ready";
    options.ready_path = path;
    options.lame_duck_ms = 5000;
    httpdown_server *server = start(&options);
    path[1] = 'x'; /* it was copied */
    expect_ready(server);
    int fd = dial(server);
    put(fd, GET("/ready?verbose"));
    response r = take(fd);
    EQUAL(r.status, 200);
    CHECK(strcmp(header_of(&r, "cache-control"), "no-store") == 0);
    CHECK(strcmp(header_of(&r, "content-type"), "text/plain; charset=utf-8") == 0);
    CHECK(header_of(&r, "connection") == NULL);
    done(&r);
    put(fd, "POST /ready HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\n\r\n");
    r = take(fd);
    EQUAL(r.status, 405);
    CHECK(strcmp(header_of(&r, "allow"), "GET, HEAD, OPTIONS") == 0);
    done(&r);
    get(server, 200, "Hello, World!");

    EQUAL(httpdown_stop_begin(server), 0);
    wait_timers(clock, 1);
    put(fd, GET("/ready"));
    r = take(fd);
    EQUAL(r.status, 503);
    CHECK(strcmp(header_of(&r, "connection"), "close") == 0);
    done(&r);
    CHECK(is_at_end(fd));
    close(fd);
    expect_stopping(server);
    advance(clock, 5000);
    httpdown_stop_report report = end_server(f, 0);
    EQUAL(report.requests, 6);
    EQUAL(report.served, 6);
    httpdown_clock_free(clock);
    free_fixture(f);
}

static void the_ready_path_is_answered_when_the_pool_is_full(void) {
    fixture *f = new_fixture();
    httpdown_options options = ready_options(f, slow, NULL);
    options.pool_threads = 1;
    httpdown_server *server = start(&options);
    int busy = dial(server), waiting = dial(server);
    put(busy, GET("/"));
    put(waiting, GET("/"));
    UNTIL(report_of(server).requests == 2);
    expect_ready(server);
    gate_add(&f->release);
    expect(busy, 200, "slow");
    expect(waiting, 200, "slow");
    close(busy);
    close(waiting);
    end_server(f, 0);
    free_fixture(f);
}

static void the_ready_path_is_answered_when_nobody_takes_from_the_queue(void) {
    fixture *f = new_fixture();
    httpdown_options options = ready_options(f, NULL, NULL);
    httpdown_server *server = start(&options);
    int fd = dial(server);
    put(fd, GET("/"));
    UNTIL(report_of(server).requests == 1);
    expect_ready(server);
    httpdown_request *requests[2];
    size_t count = 0;
    EQUAL(httpdown_next(server, HTTPDOWN_FOREVER, requests, 2, &count), 0);
    EQUAL(count, 1); /* the other never came there */
    EQUAL(httpdown_reply_text(requests[0], 200, "taken"), 0);
    expect(fd, 200, "taken");
    close(fd);
    end_server(f, 0);
    free_fixture(f);
}

/* A lame duck of at most a minute: it takes 10 s at least, and ends after 5 s without a request. */
static httpdown_server *start_duck(fixture *f, httpdown_clock *clock) {
    httpdown_options options = ready_options(f, hello, clock);
    options.lame_duck_ms = 60000;
    options.lame_duck_min_ms = 10000;
    options.lame_duck_quiet_ms = 5000;
    httpdown_server *server = start(&options);
    EQUAL(httpdown_stop_begin(server), 0);
    wait_timers(clock, 2);
    return server;
}

static void duck_lives(httpdown_server *server, httpdown_clock *clock, uint64_t ms) {
    advance(clock, ms);
    wait_timers(clock, 2);
    EQUAL(httpdown_phase(server), HTTPDOWN_PHASE_LAME_DUCK);
}

static void end_duck(fixture *f, httpdown_clock *clock, uint64_t ms, uint64_t in_all) {
    advance(clock, ms);
    httpdown_stop_report report = end_server(f, 0);
    EQUAL(report.stop_duration_ms, in_all);
    httpdown_clock_free(clock);
    free_fixture(f);
}

static void a_quiet_lame_duck_takes_its_least_time(void) {
    fixture *f = new_fixture();
    httpdown_clock *clock = new_clock();
    httpdown_server *server = start_duck(f, clock);
    duck_lives(server, clock, 9999);
    expect_stopping(server); /* does not break the silence */
    end_duck(f, clock, 1, 10000);
}

static void a_lame_duck_ends_after_the_last_request(void) {
    fixture *f = new_fixture();
    httpdown_clock *clock = new_clock();
    httpdown_server *server = start_duck(f, clock);
    for (int i = 0; i < 3; i++) {
        duck_lives(server, clock, 4000);
        get(server, 200, "Hello, World!");
    }
    duck_lives(server, clock, 4999);
    end_duck(f, clock, 1, 17000);
}

static void a_lame_duck_takes_at_most_its_time(void) {
    fixture *f = new_fixture();
    httpdown_clock *clock = new_clock();
    httpdown_server *server = start_duck(f, clock);
    for (int i = 0; i < 14; i++) {
        duck_lives(server, clock, 4000);
        get(server, 200, "Hello, World!");
    }
    end_duck(f, clock, 4000, 60000);
}

static void refused(httpdown_options options, const char *reason) {
    char error[256] = "";
    httpdown_server *server = NULL;
    options.user_data = NULL;
    options.destroy = NULL;
    EQUAL(httpdown_serve(&options, &server, error, sizeof error), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    CHECK(server == NULL);
    if (strstr(error, reason) == NULL) fprintf(stderr, "%s\n", error);
    CHECK(strstr(error, reason) != NULL);
    EQUAL(httpdown_run(&options, NULL, error, sizeof error), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    CHECK(strstr(error, reason) != NULL);
}

static void options_that_make_no_sense_are_refused(void) {
    static const char *const paths[] = {"", "ready", "*", "/a?", "/a?b", "/a#b", "/a b", "/\n", "/\x7f", "/\xC3\xA4",
                                        "http://a/b"};
    httpdown_options options = options_for(NULL, hello);
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        options.ready_path = paths[i];
        refused(options, "ready_path");
    }
    options.ready_path = "/\xFF";
    refused(options, "options.ready_path is not UTF-8");
    options.ready_path = NULL;

    options.lame_duck_quiet_ms = 1;
    refused(options, "lame_duck_quiet (1ms) is longer than lame_duck (0ns)");
    options.lame_duck_ms = 5000;
    options.lame_duck_quiet_ms = HTTPDOWN_FOREVER;
    refused(options, "lame_duck_quiet");
    options.lame_duck_quiet_ms = 5000;
    options.lame_duck_min_ms = 5001;
    refused(options, "lame_duck_min (5.001s) is longer than lame_duck (5s)");

    fixture *f = new_fixture();
    options.lame_duck_min_ms = 5000;
    options.ready_path = "/-/ready:~(%41)";
    options.user_data = f;
    options.destroy = on_destroy;
    EQUAL(httpdown_kill_begin(start(&options)), 0); /* its lame duck would take real time */
    end_server(f, 0);
    free_fixture(f);
}

/* ---- a run ---- */

static int tells;

static void tell_phase(const httpdown_server *server, int phase, void *user_data) {
    (void)user_data;
    int number = phase == HTTPDOWN_PHASE_SERVING ? port_of(server) : phase;
    CHECK(write(tells, &number, sizeof number) == sizeof number);
}

static int hear(int from) {
    int number = -1;
    CHECK(read(from, &number, sizeof number) == sizeof number);
    return number;
}

static void a_signal_begins_the_lame_duck_and_a_second_ends_it(void) {
    int ends[2], status = 0;
    CHECK(pipe(ends) == 0);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        alarm(2 * PATIENCE_S);
        tells = ends[1];
        httpdown_options options = ready_options(NULL, hello, NULL);
        options.destroy = NULL;
        options.on_phase = tell_phase;
        options.lame_duck_ms = options.lame_duck_min_ms = options.lame_duck_quiet_ms = HTTPDOWN_FOREVER;
        options.second_signal_ms = HTTPDOWN_NOW;
        _exit(httpdown_run(&options, NULL, NULL, 0));
    }
    close(ends[1]);
    int port = hear(ends[0]);
    ask_for(port, GET("/ready"), 200, "ready\n");
    CHECK(kill(pid, SIGTERM) == 0);
    EQUAL(hear(ends[0]), HTTPDOWN_PHASE_LAME_DUCK);
    ask_for(port, GET("/ready"), 503, "stopping\n");
    ask_for(port, GET("/"), 200, "Hello, World!");
    CHECK(kill(pid, SIGTERM) == 0);
    EQUAL(hear(ends[0]), HTTPDOWN_PHASE_QUIESCING);
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK(WIFEXITED(status));
    EQUAL(WEXITSTATUS(status), 0); /* nothing was cut */
    close(ends[0]);
}

/* ---- a signal handler ---- */

static const httpdown_server *asked_about;
static volatile sig_atomic_t was_ready = -1;

static void asks(int number) {
    (void)number;
    was_ready = httpdown_ready(asked_about);
}

static void a_signal_handler_may_ask(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, hello);
    asked_about = start(&options);
    struct sigaction before, action = {.sa_handler = asks};
    CHECK(sigaction(SIGUSR1, &action, &before) == 0);
    raise(SIGUSR1);
    EQUAL(was_ready, 1);
    EQUAL(httpdown_stop(asked_about), 0);
    raise(SIGUSR1);
    EQUAL(was_ready, 0);
    CHECK(sigaction(SIGUSR1, &before, NULL) == 0);
    end_server(f, 0);
    free_fixture(f);
}

int main(int argc, char **argv) {
    (void)argc;
    tests_chosen = argv + 1;
    RUN(a_signal_begins_the_lame_duck_and_a_second_ends_it); /* first: it forks */
    RUN(the_ready_path_tells_whether_the_server_is_ready);
    RUN(the_ready_path_is_answered_when_the_pool_is_full);
    RUN(the_ready_path_is_answered_when_nobody_takes_from_the_queue);
    RUN(a_quiet_lame_duck_takes_its_least_time);
    RUN(a_lame_duck_ends_after_the_last_request);
    RUN(a_lame_duck_takes_at_most_its_time);
    RUN(options_that_make_no_sense_are_refused);
    RUN(a_signal_handler_may_ask);
    return test_end(argv[0]);
}
