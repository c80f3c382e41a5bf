/* Requests that the program takes itself. */
#include "test.h"

static fixture *begin(const httpdown_options *more) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, NULL);
    record_all(&options);
    if (more != NULL) {
        options.stop_timeout_ms = more->stop_timeout_ms;
        options.kill_timeout_ms = more->kill_timeout_ms;
        options.clock = more->clock;
    }
    start(&options);
    return f;
}

static httpdown_request *take_one(const httpdown_server *server) {
    httpdown_request *request = NULL;
    size_t count = 0;
    EQUAL(httpdown_next(server, HTTPDOWN_FOREVER, &request, 1, &count), 0);
    EQUAL(count, 1);
    CHECK(request != NULL);
    return request;
}

static bool is_readable(int fd, int timeout_ms) {
    struct pollfd watched = {.fd = fd, .events = POLLIN};
    int ready = poll(&watched, 1, timeout_ms);
    CHECK(ready >= 0 && (watched.revents & ~POLLIN) == 0);
    return ready == 1;
}

static void several_are_taken_at_once(void) {
    enum { COUNT = 10 };
    fixture *f = begin(NULL);
    int fds[COUNT];
    for (int i = 0; i < COUNT; i++) {
        fds[i] = dial(f->server);
        put(fds[i], GET("/"));
    }
    UNTIL(report_of(f->server).requests == COUNT);
    httpdown_request *requests[COUNT + 5] = {0};
    size_t count = 99, taken = 0;
    EQUAL(httpdown_next(f->server, HTTPDOWN_FOREVER, requests, 0, &count), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    EQUAL(count, 99);
    EQUAL(httpdown_next(f->server, HTTPDOWN_NOW, requests, 3, &count), 0);
    EQUAL(count, 3);
    CHECK(requests[2] != NULL && requests[3] == NULL);
    taken = count;
    while (taken < COUNT) {
        EQUAL(httpdown_next(f->server, HTTPDOWN_FOREVER, requests + taken, COUNT + 5 - taken, &count), 0);
        taken += count;
    }
    EQUAL(taken, COUNT);
    EQUAL(httpdown_next(f->server, HTTPDOWN_NOW, requests + COUNT, 5, &count), HTTPDOWN_STATUS_WOULD_BLOCK);
    EQUAL(httpdown_next(f->server, 0, requests + COUNT, 5, &count), HTTPDOWN_STATUS_WOULD_BLOCK);
    EQUAL(httpdown_next(f->server, 30, requests + COUNT, 5, &count), HTTPDOWN_STATUS_WOULD_BLOCK);
    for (int i = 0; i < COUNT; i++) {
        CHECK(httpdown_request_server(requests[i]) == f->server);
        EQUAL(httpdown_request_defer(requests[i]), 0); /* it is owned already */
        EQUAL(httpdown_reply_text(requests[i], 200, "taken"), 0);
    }
    for (int i = 0; i < COUNT; i++) {
        expect(fds[i], 200, "taken");
        close(fds[i]);
    }
    EQUAL(end_server(f, 0).served, COUNT);
    free_fixture(f);
}

static void the_descriptor_is_readable_while_requests_wait(void) {
    fixture *f = begin(NULL);
    int queue = -1, again = -1;
    EQUAL(httpdown_queue_fd(f->server, &queue), 0);
    EQUAL(httpdown_queue_fd(f->server, &again), 0);
    EQUAL(queue, again);
    CHECK(fcntl(queue, F_GETFD) & FD_CLOEXEC);
    CHECK(!is_readable(queue, 0));
    int first = dial(f->server), second = dial(f->server);
    put(first, GET("/"));
    CHECK(is_readable(queue, PATIENCE_MS));
    CHECK(is_readable(queue, 0)); /* level-triggered */
    put(second, GET("/"));
    UNTIL(report_of(f->server).requests == 2);
    httpdown_request *requests[2];
    requests[0] = take_one(f->server);
    CHECK(is_readable(queue, PATIENCE_MS));
    requests[1] = take_one(f->server);
    CHECK(!is_readable(queue, 0));
    for (int i = 0; i < 2; i++) EQUAL(httpdown_reply_text(requests[i], 200, "polled"), 0);
    expect(first, 200, "polled");
    expect(second, 200, "polled");
    put(first, GET("/"));
    CHECK(is_readable(queue, PATIENCE_MS));
    EQUAL(httpdown_reply_text(take_one(f->server), 200, "again"), 0);
    expect(first, 200, "again");
    close(first);
    close(second);
    EQUAL(httpdown_stop(f->server), 0);
    CHECK(is_readable(queue, PATIENCE_MS)); /* after the end, always */
    httpdown_request *none;
    size_t count;
    EQUAL(httpdown_next(f->server, HTTPDOWN_FOREVER, &none, 1, &count), HTTPDOWN_STATUS_STOPPED);
    CHECK(is_readable(queue, 0));
    end_server(f, 0);
    free_fixture(f);
}

static void the_descriptor_may_come_late(void) {
    fixture *f = begin(NULL);
    int fd = dial(f->server), queue;
    put(fd, GET("/"));
    UNTIL(report_of(f->server).requests == 1);
    EQUAL(httpdown_queue_fd(f->server, &queue), 0);
    CHECK(is_readable(queue, PATIENCE_MS));
    EQUAL(httpdown_reply_text(take_one(f->server), 200, "late"), 0);
    expect(fd, 200, "late");
    close(fd);
    end_server(f, 0);
    free_fixture(f);
    f = begin(NULL);
    EQUAL(httpdown_stop(f->server), 0);
    EQUAL(httpdown_queue_fd(f->server, &queue), 0);
    CHECK(is_readable(queue, 0));
    end_server(f, 0);
    free_fixture(f);
}

/* ---- threads that take ---- */

static void *takes_until_stopped(void *argument) {
    fixture *f = argument;
    intptr_t answered = 0;
    for (;;) {
        httpdown_request *requests[4];
        size_t count;
        int status = httpdown_next(f->server, HTTPDOWN_FOREVER, requests, 4, &count);
        if (status == HTTPDOWN_STATUS_STOPPED) return (void *)answered;
        EQUAL(status, 0);
        CHECK(count >= 1 && count <= 4);
        for (size_t i = 0; i < count; i++) {
            httpdown_bytes path = httpdown_request_path(requests[i]);
            EQUAL(httpdown_reply(requests[i], 200, NULL, 0, path.data, path.len), 0);
            answered++;
        }
    }
}

static void *asks_again_and_again(void *argument) {
    fixture *f = argument;
    int fd = dial(f->server);
    for (int i = 0, count = scaled(200); i < count; i++) {
        char text[64];
        snprintf(text, sizeof text, "GET /%d HTTP/1.1\r\nhost: test\r\n\r\n", i);
        put(fd, text);
        snprintf(text, sizeof text, "/%d", i);
        expect(fd, 200, text);
    }
    close(fd);
    return NULL;
}

static void several_threads_take(void) {
    enum { TAKERS = 4, CLIENTS = 4 };
    fixture *f = begin(NULL);
    pthread_t takers[TAKERS], clients[CLIENTS];
    for (int i = 0; i < TAKERS; i++) takers[i] = spawn(takes_until_stopped, f);
    for (int i = 0; i < CLIENTS; i++) clients[i] = spawn(asks_again_and_again, f);
    for (int i = 0; i < CLIENTS; i++) join(clients[i]);
    EQUAL(httpdown_stop(f->server), 0);
    intptr_t answered = 0;
    for (int i = 0; i < TAKERS; i++) answered += (intptr_t)join(takers[i]);
    EQUAL(answered, CLIENTS * scaled(200));
    EQUAL(end_server(f, 0).served, (uint64_t)answered);
    free_fixture(f);
}

/* ---- stops ---- */

static void requests_are_taken_during_a_stop(void) {
    fixture *f = begin(NULL);
    int fd = dial(f->server);
    put(fd, GET("/"));
    UNTIL(report_of(f->server).requests == 1);
    EQUAL(httpdown_stop_begin(f->server), 0);
    gate_wait(&f->phase[HTTPDOWN_PHASE_DRAINING], 1);
    httpdown_request *request = take_one(f->server), *none;
    size_t count;
    EQUAL(httpdown_next(f->server, HTTPDOWN_NOW, &none, 1, &count), HTTPDOWN_STATUS_WOULD_BLOCK); /* not STOPPED yet */
    CHECK(!httpdown_request_cancelled(request));
    EQUAL(httpdown_reply_text(request, 200, "in time"), 0);
    expect(fd, 200, "in time");
    EQUAL(httpdown_next(f->server, HTTPDOWN_FOREVER, &none, 1, &count), HTTPDOWN_STATUS_STOPPED);
    EQUAL(httpdown_next(f->server, HTTPDOWN_NOW, &none, 1, &count), HTTPDOWN_STATUS_STOPPED);
    close(fd);
    end_server(f, 0);
    free_fixture(f);
}

/* ---- a program of one thread ---- */

typedef struct {
    const httpdown_server *server;
    struct pollfd fds[2]; /* the queue, and the events and the end */
    int answered, phase;
    httpdown_request *kept; /* the last one, if it is to be answered in the next round */
} loop;

static void answer_one(httpdown_request *request, loop *l) {
    EQUAL(httpdown_reply_text(request, 200, "looped"), 0);
    l->answered++;
}

static void take_all(loop *l) {
    httpdown_request *requests[4];
    size_t count;
    int status;
    while ((status = httpdown_next(l->server, HTTPDOWN_NOW, requests, 4, &count)) == 0)
        for (size_t i = 0; i < count; i++) {
            if (l->kept != NULL) answer_one(l->kept, l);
            l->kept = requests[i];
        }
    if (status == HTTPDOWN_STATUS_STOPPED) l->fds[0].fd = -1; /* stays readable, and says nothing new */
    else EQUAL(status, HTTPDOWN_STATUS_WOULD_BLOCK);
}

static void hear_all(loop *l) {
    httpdown_event event = {.struct_size = sizeof event};
    int status;
    while ((status = httpdown_next_event(l->server, HTTPDOWN_NOW, &event)) == 0) {
        EQUAL(event.kind, HTTPDOWN_EVENT_PHASE);
        CHECK(event.code >= l->phase);
        l->phase = event.code;
    }
    CHECK(status == HTTPDOWN_STATUS_WOULD_BLOCK || status == HTTPDOWN_STATUS_STOPPED);
}

/* One round; the result of the stop, or WOULD_BLOCK. */
static int go_round(loop *l) {
    EQUAL(l->kept != NULL || poll(l->fds, 2, PATIENCE_MS) > 0, 1);
    if (l->kept != NULL) {
        answer_one(l->kept, l);
        l->kept = NULL;
    }
    take_all(l);
    hear_all(l);
    if (l->kept != NULL) return HTTPDOWN_STATUS_WOULD_BLOCK; /* WOULD_DEADLOCK, for this thread holds it */
    return httpdown_wait(l->server, HTTPDOWN_NOW, NULL);
}

static void *asks_until_refused(void *argument) {
    fixture *f = argument;
    intptr_t answered = 0;
    int port = port_of(f->server), fd;
    while ((fd = connect_to(port)) >= 0) {
        put(fd, GET_CLOSE("/"));
        expect(fd, 200, "looped");
        close(fd);
        if (++answered == 20) gate_add(&f->entered);
    }
    EQUAL(errno, ECONNREFUSED);
    return (void *)answered;
}

static void a_program_of_one_thread_stops_without_blocking(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, NULL);
    options.pull_events = HTTPDOWN_EVENT_PHASE;
    options.idle_grace_ms = PATIENCE_MS;
    loop l = {.server = start(&options), .fds = {{.events = POLLIN}, {.events = POLLIN}}};
    EQUAL(httpdown_queue_fd(l.server, &l.fds[0].fd), 0);
    EQUAL(httpdown_event_fd(l.server, &l.fds[1].fd), 0);
    /* One that sends another request in the grace of the stop, and some that ask until they are refused. */
    int idle = dial(l.server);
    put(idle, GET("/"));
    pthread_t clients[3];
    for (int i = 0; i < 3; i++) clients[i] = spawn(asks_until_refused, f);
    int status;
    bool stopping = false, asked = false;
    while ((status = go_round(&l)) == HTTPDOWN_STATUS_WOULD_BLOCK) {
        if (!stopping && gate_value(&f->entered) == 3) {
            stopping = true;
            EQUAL(httpdown_stop_begin(l.server), 0);
        }
        if (!asked && l.phase == HTTPDOWN_PHASE_DRAINING) {
            asked = true;
            put(idle, GET("/"));
        }
    }
    EQUAL(status, 0);
    CHECK(asked);
    EQUAL(l.phase, HTTPDOWN_PHASE_STOPPED);
    CHECK(is_readable(l.fds[1].fd, PATIENCE_MS)); /* after the end, always */
    for (int i = 0; i < 2; i++) expect(idle, 200, "looped");
    close(idle);
    intptr_t answered = 2;
    for (int i = 0; i < 3; i++) answered += (intptr_t)join(clients[i]);
    EQUAL(l.answered, answered);
    httpdown_stop_report report = end_server(f, 0);
    EQUAL(report.served, (uint64_t)answered);
    EQUAL(report.requests, (uint64_t)answered);
    free_fixture(f);
}

static void a_kill_refuses_what_nobody_took(void) {
    fixture *f = begin(NULL);
    int queued[3], taken = dial(f->server);
    put(taken, GET("/taken"));
    httpdown_request *request = take_one(f->server), *none;
    for (int i = 0; i < 3; i++) {
        queued[i] = dial(f->server);
        put(queued[i], GET("/queued"));
    }
    UNTIL(report_of(f->server).requests == 4);
    EQUAL(httpdown_kill_begin(f->server), 0);
    for (int i = 0; i < 3; i++) {
        expect(queued[i], 503, NULL);
        close(queued[i]);
    }
    EQUAL(httpdown_request_wait_cancelled(request, HTTPDOWN_FOREVER), HTTPDOWN_STATUS_KILLED);
    size_t count;
    EQUAL(httpdown_next(f->server, HTTPDOWN_FOREVER, &none, 1, &count), HTTPDOWN_STATUS_STOPPED);
    EQUAL(httpdown_reply_text(request, 200, "too late"), HTTPDOWN_STATUS_KILLED);
    response r = take(taken);
    CHECK(!r.whole);
    done(&r);
    close(taken);
    httpdown_stop_report report = end_server(f, HTTPDOWN_STATUS_KILLED);
    EQUAL(report.requests, 4);
    EQUAL(report.killed, 4);
    free_fixture(f);
}

static void *frees(void *server) {
    httpdown_free(server);
    return NULL;
}

static httpdown_request *held;

static void *takes_and_leaves(void *argument) {
    held = take_one(((fixture *)argument)->server);
    return NULL;
}

/* The memory of a request outlives its server. */
static void a_request_outlives_its_server(void) {
    for (int way = 0; way < 5; way++) {
        httpdown_options options = {.stop_timeout_ms = 20, .kill_timeout_ms = 20};
        fixture *f = begin(&options);
        int fd = dial(f->server);
        put(fd, "POST /path?query HTTP/1.1\r\nhost: test\r\nx: y\r\ncontent-length: 10\r\n\r\nabc");
        join(spawn(takes_and_leaves, f)); /* so that this thread may wait */
        EQUAL(httpdown_stop(f->server), HTTPDOWN_STATUS_TIMED_OUT);
        httpdown_stop_report report = report_of(f->server);
        EQUAL(report.abandoned, 1);
        check_sums(&report);
        join(spawn(frees, f->server));
        close(fd);

        CHECK(httpdown_bytes_equal(httpdown_request_method(held), "POST"));
        CHECK(httpdown_bytes_equal(httpdown_request_target(held), "/path?query"));
        CHECK(httpdown_bytes_equal(httpdown_request_header(held, "x"), "y"));
        CHECK(httpdown_request_peer_addr(held).len > 0 && httpdown_request_local_addr(held).len > 0);
        CHECK(httpdown_request_cancelled(held));
        EQUAL(httpdown_request_wait_cancelled(held, HTTPDOWN_FOREVER), HTTPDOWN_STATUS_KILLED);
        char buffer[8];
        size_t count;
        httpdown_bytes body;
        const httpdown_server *server = httpdown_request_server(held);
        EQUAL(httpdown_phase(server), HTTPDOWN_PHASE_STOPPED);
        EQUAL(httpdown_stop_begin(server), 0);
        int status = httpdown_request_read(held, buffer, sizeof buffer, HTTPDOWN_FOREVER, &count);
        if (status == 0) status = httpdown_request_read(held, buffer, sizeof buffer, HTTPDOWN_FOREVER, &count); /* what was there already */
        EQUAL(status, HTTPDOWN_STATUS_KILLED);
        EQUAL(httpdown_request_body(held, 100, HTTPDOWN_FOREVER, &body), HTTPDOWN_STATUS_KILLED);
        EQUAL(httpdown_reply_start(held, 200, NULL, 0), HTTPDOWN_STATUS_KILLED);
        if (way == 0) EQUAL(httpdown_reply_text(held, 200, "x"), HTTPDOWN_STATUS_KILLED);
        if (way == 1) EQUAL(httpdown_reply(held, 200, NULL, 0, "x", 1), HTTPDOWN_STATUS_KILLED);
        if (way == 2) httpdown_reply_finish(held);
        if (way == 3) EQUAL(httpdown_reply_abort(held), 0);
        if (way == 4) EQUAL(httpdown_reply_borrowed(held, 200, NULL, 0, "x", 1, NULL, NULL), HTTPDOWN_STATUS_KILLED);
        gate_wait(&f->destroyed, 1);
        free_fixture(f);
    }
}

/* As it does if its answer has begun. */
static void a_begun_answer_outlives_its_server(void) {
    httpdown_options options = {.stop_timeout_ms = 20, .kill_timeout_ms = 20};
    fixture *f = begin(&options);
    int fd = dial(f->server);
    put(fd, GET("/"));
    join(spawn(takes_and_leaves, f));
    EQUAL(httpdown_reply_start(held, 200, NULL, 0), 0);
    EQUAL(httpdown_reply_write(held, "begun", 5, HTTPDOWN_FOREVER, NULL), 0);
    EQUAL(httpdown_stop(f->server), HTTPDOWN_STATUS_TIMED_OUT);
    join(spawn(frees, f->server));
    EQUAL(httpdown_reply_write(held, "more", 4, HTTPDOWN_FOREVER, NULL), HTTPDOWN_STATUS_KILLED);
    EQUAL(httpdown_reply_finish(held), HTTPDOWN_STATUS_KILLED);
    response r = take(fd);
    CHECK(!r.whole);
    done(&r);
    close(fd);
    gate_wait(&f->destroyed, 1);
    free_fixture(f);
}

static void requests_that_nobody_takes_end_with_the_server(void) {
    httpdown_options options = {.stop_timeout_ms = 20, .kill_timeout_ms = 20};
    fixture *f = begin(&options);
    int fd = dial(f->server);
    put(fd, GET("/"));
    UNTIL(report_of(f->server).requests == 1);
    httpdown_free(f->server);
    expect(fd, 503, NULL);
    close(fd);
    gate_wait(&f->destroyed, 1);
    free_fixture(f);
}

/* A client that leaves while its request waits. */
static void a_queued_client_may_leave(void) {
    fixture *f = begin(NULL);
    int fd = dial(f->server);
    put(fd, GET("/"));
    UNTIL(report_of(f->server).requests == 1);
    reset(fd);
    httpdown_request *request = take_one(f->server);
    EQUAL(httpdown_request_wait_cancelled(request, HTTPDOWN_FOREVER), HTTPDOWN_STATUS_GONE);
    EQUAL(httpdown_reply_text(request, 200, "nobody"), HTTPDOWN_STATUS_GONE);
    httpdown_stop_report report = end_server(f, 0);
    EQUAL(report.gone, 1);
    free_fixture(f);
}

static void there_is_no_queue_with_a_handler(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, hello);
    httpdown_server *server = start(&options);
    httpdown_request *request;
    size_t count;
    int fd;
    EQUAL(httpdown_next(server, HTTPDOWN_NOW, &request, 1, &count), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    EQUAL(httpdown_queue_fd(server, &fd), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    end_server(f, 0);
    free_fixture(f);
}

int main(int argc, char **argv) {
    (void)argc;
    tests_chosen = argv + 1;
    RUN(several_are_taken_at_once);
    RUN(the_descriptor_is_readable_while_requests_wait);
    RUN(the_descriptor_may_come_late);
    RUN(several_threads_take);
    RUN(requests_are_taken_during_a_stop);
    RUN(a_program_of_one_thread_stops_without_blocking);
    RUN(a_kill_refuses_what_nobody_took);
    RUN(a_request_outlives_its_server);
    RUN(a_begun_answer_outlives_its_server);
    RUN(requests_that_nobody_takes_end_with_the_server);
    RUN(a_queued_client_may_leave);
    RUN(there_is_no_queue_with_a_handler);
    return test_end(argv[0]);
}
