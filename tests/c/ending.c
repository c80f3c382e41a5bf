/* Threads and processes that end, or are to end, while they use the library: their locals may be gone by then. */
#include "test.h"

/* Answers when it is released: after the stop has begun. */
static void answers_late(httpdown_request *request, void *user_data) {
    fixture *f = user_data;
    gate_add(&f->entered);
    gate_wait(&f->release, 1);
    EQUAL(httpdown_reply_text(request, 200, "answered"), 0);
}

static fixture *ending;
static int client;
static pthread_t releaser;

static void *releases(void *unused) {
    UNTIL(httpdown_phase(ending->server) >= HTTPDOWN_PHASE_QUIESCING);
    gate_add(&ending->release);
    return unused;
}

/* A server with a request under way, which is answered once a stop has begun. */
static void begin(int dispatch) {
    ending = new_fixture();
    httpdown_options options = options_for(ending, dispatch == HTTPDOWN_DISPATCH_QUEUE ? NULL : answers_late);
    options.dispatch = dispatch;
    options.stop_timeout_ms = options.kill_timeout_ms = PATIENCE_MS;
    record_all(&options);
    client = dial(start(&options));
    put(client, GET("/"));
    if (dispatch == HTTPDOWN_DISPATCH_POOL) {
        gate_wait(&ending->entered, 1);
        releaser = spawn(releases, NULL);
    }
}

static void stops_and_frees(void) {
    EQUAL(httpdown_report(NULL, NULL), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    CHECK(strcmp(httpdown_last_error(), "server is NULL") == 0);
    httpdown_stop_report report = {.struct_size = sizeof report};
    EQUAL(httpdown_stop(ending->server), 0);
    EQUAL(httpdown_wait(ending->server, HTTPDOWN_FOREVER, &report), 0);
    EQUAL(report.served, 1);
    httpdown_free(ending->server);
    EQUAL(gate_value(&ending->destroyed), 1);
    expect(client, 200, "answered");
}

static void frees(void) {
    httpdown_free(ending->server);
    EQUAL(gate_value(&ending->destroyed), 1);
    expect(client, 200, "answered");
}

static void starts_a_server(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, hello);
    record_all(&options);
    httpdown_clock *clock = new_clock();
    options.clock = clock;
    httpdown_server *server = start(&options);
    get(server, 200, "Hello, World!");
    EQUAL(httpdown_stop(server), 0);
    httpdown_free(server);
    httpdown_clock_free(clock);
}

/* So that this thread has whatever locals the library may have. */
static void use_all_locals(void) {
    EQUAL(httpdown_wait(ending->server, 1, NULL), HTTPDOWN_STATUS_WOULD_BLOCK);
    starts_a_server();
}

static void a_stop_at_exit_answers_what_is_under_way(void) {
    begin(HTTPDOWN_DISPATCH_POOL);
    use_all_locals();
    CHECK(atexit(stops_and_frees) == 0);
}

static void a_free_at_exit_stops_first(void) {
    begin(HTTPDOWN_DISPATCH_POOL);
    use_all_locals();
    CHECK(atexit(frees) == 0);
}

/* ---- from the destructor of a dying thread's locals ---- */

static pthread_key_t key;
static void (*at_thread_end)(void);

static void is_destroyed(void *count) {
    /* The C library calls it again while there is a value: it may come before the library's own, and once more after. */
    if (count != (void *)3) {
        CHECK(pthread_setspecific(key, (char *)count + 1) == 0);
        return;
    }
    at_thread_end();
}

static void *ends(void *uses) {
    CHECK(pthread_setspecific(key, (void *)1) == 0);
    if (uses != NULL) use_all_locals();
    return NULL;
}

static void at_the_end_of_a_thread(void (*what)(void), bool uses) {
    at_thread_end = what;
    CHECK(pthread_key_create(&key, is_destroyed) == 0);
    join(spawn(ends, uses ? &key : NULL));
    CHECK(pthread_key_delete(key) == 0);
}

static void a_stop_by_a_dying_thread_answers_what_is_under_way(void) {
    for (int uses = 0; uses < 2; uses++) {
        begin(HTTPDOWN_DISPATCH_POOL);
        at_the_end_of_a_thread(stops_and_frees, uses);
    }
}

static void a_free_by_a_dying_thread_stops_first(void) {
    for (int uses = 0; uses < 2; uses++) {
        begin(HTTPDOWN_DISPATCH_POOL);
        at_the_end_of_a_thread(frees, uses);
    }
}

/* Everything that waits, reads, or wakes. */
static void takes_reads_and_answers(void) {
    httpdown_request *request = NULL;
    size_t count = 0;
    httpdown_bytes body;
    EQUAL(httpdown_next(ending->server, HTTPDOWN_FOREVER, &request, 1, &count), 0);
    EQUAL(count, 1);
    EQUAL(httpdown_request_wait_cancelled(request, 1), HTTPDOWN_STATUS_WOULD_BLOCK);
    CHECK(!httpdown_request_cancelled(request));
    EQUAL(httpdown_request_body(request, 100, HTTPDOWN_FOREVER, &body), 0);
    EQUAL(body.len, 0);
    EQUAL(httpdown_reply_start(request, 200, NULL, 0), 0);
    char piece[1000];
    memset(piece, 'x', sizeof piece);
    for (int i = 0; i < 4000; i++) EQUAL(httpdown_reply_write(request, piece, sizeof piece, HTTPDOWN_FOREVER, NULL), 0);
    EQUAL(httpdown_reply_finish(request), 0);
}

static void *reads_all(void *unused) {
    response r = take(client);
    EQUAL(r.status, 200);
    CHECK(r.whole);
    EQUAL(r.len, 4000 * 1000);
    done(&r);
    return unused;
}

static void a_dying_thread_may_take_and_answer(void) {
    begin(HTTPDOWN_DISPATCH_QUEUE);
    pthread_t reader = spawn(reads_all, NULL);
    at_the_end_of_a_thread(takes_reads_and_answers, true);
    join(reader);
    end_server(ending, 0);
}

static void a_dying_thread_may_start_a_server(void) {
    begin(HTTPDOWN_DISPATCH_POOL);
    at_the_end_of_a_thread(starts_a_server, true);
    end_server(ending, 0);
    expect(client, 200, "answered");
}

static void ends_itself(const httpdown_server *server, int phase, void *user_data) {
    (void)user_data;
    if (phase == HTTPDOWN_PHASE_SERVING) EQUAL(httpdown_stop_begin(server), 0);
}

static void runs(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, hello);
    options.on_phase = ends_itself;
    EQUAL(httpdown_run(&options, NULL, NULL, 0), 0);
    EQUAL(gate_value(&f->destroyed), 1);
}

static void a_dying_thread_may_run(void) {
    begin(HTTPDOWN_DISPATCH_POOL);
    at_the_end_of_a_thread(runs, true);
    end_server(ending, 0);
    expect(client, 200, "answered");
}

/* A thread of the pool: what it would wait for is itself. */
static void frees_elsewhere(void) {
    httpdown_free(ending->server);
}

static void marks_its_thread(httpdown_request *request, void *user_data) {
    answers_late(request, user_data);
    CHECK(pthread_setspecific(key, (void *)1) == 0);
}

static void a_free_by_a_dying_thread_of_the_pool_follows_elsewhere(void) {
    at_thread_end = frees_elsewhere;
    CHECK(pthread_key_create(&key, is_destroyed) == 0);
    ending = new_fixture();
    httpdown_options options = options_for(ending, marks_its_thread);
    client = dial(start(&options));
    put(client, GET("/"));
    gate_wait(&ending->entered, 1);
    EQUAL(httpdown_stop_begin(ending->server), 0);
    gate_add(&ending->release);
    expect(client, 200, "answered");
    gate_wait(&ending->destroyed, 1);
    UNTIL(thread_count() == 1);
}

int main(int argc, char **argv) {
    (void)argc;
    tests_chosen = argv + 1;
    RUN(a_stop_at_exit_answers_what_is_under_way);
    RUN(a_free_at_exit_stops_first);
    RUN(a_stop_by_a_dying_thread_answers_what_is_under_way);
    RUN(a_free_by_a_dying_thread_stops_first);
    RUN(a_dying_thread_may_take_and_answer);
    RUN(a_dying_thread_may_start_a_server);
    RUN(a_dying_thread_may_run);
    RUN(a_free_by_a_dying_thread_of_the_pool_follows_elsewhere);
    return test_end(argv[0]);
}
