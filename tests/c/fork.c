/* A forked child has none of the server's threads: it is told so, and the parent goes on. Where there were none it is
 * free. */
#include "test.h"

static httpdown_request *requests[2];

static void keeps(httpdown_request *request, void *user_data) {
    fixture *f = user_data;
    EQUAL(httpdown_request_defer(request), 0);
    requests[gate_value(&f->entered)] = request;
    gate_add(&f->entered);
}

static int released;

static void on_release(void *user_data) {
    (void)user_data;
    released++;
}

enum { FORKED = HTTPDOWN_STATUS_FORKED };

static void in_child(fixture *f, httpdown_server *server, httpdown_clock *clock) {
    httpdown_options options = {.struct_size = sizeof options, .addr = any_addr(), .handler = hello};
    httpdown_server *other = server;
    httpdown_stop_report report = {.struct_size = sizeof report};
    httpdown_event event = {.struct_size = sizeof event};
    httpdown_clock *another = NULL;
    httpdown_request *taken, *request = requests[0];
    httpdown_header header;
    httpdown_bytes body;
    char text[64] = "unset";
    size_t count = 77;
    int fd = 77;
    EQUAL(httpdown_serve(&options, &other, text, sizeof text), FORKED);
    CHECK(strlen(text) > 0);
    EQUAL(httpdown_run(&options, &report, text, sizeof text), FORKED);
    EQUAL(httpdown_run_all(&(const httpdown_options *){&options}, 1, &report, text, sizeof text), FORKED);
    EQUAL(httpdown_stop(server), FORKED);
    EQUAL(httpdown_stop_begin(server), FORKED);
    EQUAL(httpdown_kill_begin(server), FORKED);
    EQUAL(httpdown_wait(server, HTTPDOWN_FOREVER, &report), FORKED);
    EQUAL(httpdown_report(server, &report), FORKED);
    EQUAL(httpdown_phase(server), HTTPDOWN_PHASE_STOPPED);
    CHECK(!httpdown_ready(server));
    EQUAL(httpdown_local_addr(server, 0, text, sizeof text), FORKED);
    EQUAL(httpdown_next(server, HTTPDOWN_FOREVER, &taken, 1, &count), FORKED);
    EQUAL(httpdown_queue_fd(server, &fd), FORKED);
    EQUAL(httpdown_event_fd(server, &fd), FORKED);
    EQUAL(httpdown_next_event(server, HTTPDOWN_FOREVER, &event), FORKED);
    CHECK(httpdown_request_method(request).data == NULL && httpdown_request_target(request).data == NULL);
    CHECK(httpdown_request_path(request).data == NULL && httpdown_request_query(request).data == NULL);
    CHECK(httpdown_request_header(request, "host").data == NULL && httpdown_request_scheme(request).data == NULL);
    CHECK(httpdown_request_peer_addr(request).data == NULL && httpdown_request_local_addr(request).data == NULL);
    EQUAL(httpdown_request_version(request), 0);
    EQUAL(httpdown_request_header_count(request), 0);
    EQUAL(httpdown_request_conn_id(request), 0);
    CHECK(httpdown_request_server(request) == NULL);
    CHECK(httpdown_request_cancelled(request));
    EQUAL(httpdown_request_headers(request, 0, &header, 1, &count), FORKED);
    EQUAL(httpdown_request_read(request, text, 4, HTTPDOWN_FOREVER, &count), FORKED);
    EQUAL(httpdown_request_body(request, 4, HTTPDOWN_FOREVER, &body), FORKED);
    EQUAL(httpdown_request_wait_cancelled(request, HTTPDOWN_FOREVER), FORKED);
    EQUAL(httpdown_request_defer(request), FORKED);
    EQUAL(httpdown_reply_start(request, 200, NULL, 0), FORKED);
    EQUAL(httpdown_reply_write(request, "x", 1, HTTPDOWN_FOREVER, NULL), FORKED);
    EQUAL(httpdown_reply_finish(request), FORKED);
    EQUAL(httpdown_reply_abort(request), FORKED);
    EQUAL(httpdown_reply(request, 200, NULL, 0, NULL, 0), FORKED);
    EQUAL(httpdown_reply_text(request, 200, "child"), FORKED);
    EQUAL(httpdown_reply_borrowed(request, 200, NULL, 0, NULL, 0, on_release, NULL), FORKED);
    EQUAL(released, 1); /* exactly once, whatever is returned */
    EQUAL(httpdown_clock_new_mock(&another), FORKED);
    EQUAL(httpdown_clock_advance(clock, 1), FORKED);
    EQUAL(httpdown_clock_wait_for_timers(clock, 1, HTTPDOWN_FOREVER), FORKED);
    httpdown_clock_free(clock);
    httpdown_free(server);
    httpdown_free(NULL);
    EQUAL(count, 77);
    EQUAL(fd, 77);
    CHECK(another == NULL);
    /* What needs no server works. */
    CHECK(strcmp(httpdown_version(), HTTPDOWN_VERSION) == 0);
    CHECK(strlen(httpdown_status_string(FORKED)) > 0);
    CHECK(httpdown_bytes_equal(httpdown_str("x"), "x"));
    httpdown_options_init(&options, sizeof options);
    EQUAL(options.struct_size, sizeof options);
    EQUAL(gate_value(&f->destroyed), 0);
}

static void wait_for_child(pid_t pid) {
    int status = 0;
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void every_call_says_forked(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, keeps);
    httpdown_clock *clock = new_clock();
    record_all(&options);
    options.clock = clock;
    httpdown_server *server = start(&options);
    int fds[2];
    for (int i = 0; i < 2; i++) {
        fds[i] = dial(server);
        put(fds[i], GET("/"));
        gate_wait(&f->entered, i + 1);
    }
    EQUAL(httpdown_reply_start(requests[1], 200, NULL, 0), 0);
    pid_t pid = fork();
    if (pid == 0) {
        alarm(PATIENCE_S);
        in_child(f, server, clock);
        requests[0] = requests[1];
        EQUAL(httpdown_reply_write(requests[0], "x", 1, HTTPDOWN_FOREVER, NULL), FORKED);
        exit(0); /* with all that exit does */
    }
    wait_for_child(pid);
    /* The parent goes on. */
    EQUAL(httpdown_reply_text(requests[0], 200, "parent"), 0);
    expect(fds[0], 200, "parent");
    EQUAL(httpdown_reply_write(requests[1], "piece", 5, HTTPDOWN_FOREVER, NULL), 0);
    EQUAL(httpdown_reply_finish(requests[1]), 0);
    expect(fds[1], 200, "piece");
    close(fds[0]);
    close(fds[1]);
    EQUAL(end_server(f, 0).served, 2);
    httpdown_clock_free(clock);
    free_fixture(f);
}

/* The child has copies of all sockets; a stop of the parent is not held up by that. */
static void a_child_does_not_hold_the_parents_sockets(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, hello);
    httpdown_server *server = start(&options);
    int port = port_of(server), idle = dial(server), end[2];
    put(idle, GET("/"));
    expect(idle, 200, NULL);
    CHECK(pipe(end) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        char byte;
        alarm(PATIENCE_S);
        close(end[1]);
        _exit(read(end[0], &byte, 1) != 0); /* until the parent closes its side */
    }
    close(end[0]);
    get(server, 200, NULL);
    EQUAL(httpdown_stop(server), 0);
    CHECK(is_refused(port));
    CHECK(is_at_end(idle));
    close(idle);
    end_server(f, 0);
    close(end[1]);
    wait_for_child(pid);
    free_fixture(f);
}

static void a_kill_resets_what_it_cuts_although_a_child_has_a_copy(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, keeps);
    options.stop_timeout_ms = 50;
    httpdown_server *server = start(&options);
    int fd = connect_to(port_of(server));
    put(fd, GET("/"));
    gate_wait(&f->entered, 1);
    pid_t child = fork();
    if (child == 0) {
        close(fd);
        alarm(2 * PATIENCE_S);
        for (;;) pause();
    }
    CHECK(child > 0);
    EQUAL(httpdown_stop_begin(server), 0);
    EQUAL(httpdown_request_wait_cancelled(requests[0], HTTPDOWN_FOREVER), HTTPDOWN_STATUS_KILLED);
    httpdown_reply_abort(requests[0]);
    EQUAL(httpdown_wait(server, HTTPDOWN_FOREVER, NULL), HTTPDOWN_STATUS_KILLED);
    char byte;
    struct pollfd readable = {.fd = fd, .events = POLLIN};
    EQUAL(poll(&readable, 1, PATIENCE_MS), 1);
    CHECK(recv(fd, &byte, 1, 0) == -1 && errno == ECONNRESET);
    CHECK(kill(child, SIGKILL) == 0);
    CHECK(waitpid(child, NULL, 0) == child);
    close(fd);
    httpdown_free(server);
    free_fixture(f);
}

/* A client that has its answer and our FIN, and stays, and sends: when the time to linger is over, it is told. */
static void a_connection_that_was_lingered_on_is_over_although_a_child_has_a_copy(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, hello);
    options.linger_timeout_ms = 20;
    httpdown_server *server = start(&options);
    int fd = dial(server), end[2];
    put(fd, GET("/"));
    expect(fd, 200, NULL);
    CHECK(pipe(end) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        char byte;
        alarm(PATIENCE_S);
        close(fd);
        close(end[1]);
        _exit(read(end[0], &byte, 1) != 0); /* until the parent closes its side */
    }
    close(end[0]);
    put(fd, GET_CLOSE("/"));
    expect(fd, 200, NULL);
    CHECK(is_at_end(fd));
    struct pollfd reset = {.fd = fd};
    for (int i = 0; i < PATIENCE_MS && poll(&reset, 1, 1) == 0; i++) {
        if (send(fd, "x", 1, MSG_NOSIGNAL) != 1) break;
    }
    CHECK(send(fd, "x", 1, MSG_NOSIGNAL) == -1);
    close(fd);
    end_server(f, 0);
    close(end[1]);
    wait_for_child(pid);
    free_fixture(f);
}

/* Forks from several threads, while it serves and stops. */
static void *forks(void *argument) {
    (void)argument;
    for (int i = 0, count = scaled(50); i < count; i++) {
        pid_t pid = fork();
        if (pid == 0) _exit(httpdown_phase(NULL) != HTTPDOWN_PHASE_STOPPED);
        wait_for_child(pid);
    }
    return NULL;
}

static void forks_at_any_time(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, hello);
    record_all(&options);
    pthread_t threads[2];
    httpdown_server *server = start(&options);
    for (int i = 0; i < 2; i++) threads[i] = spawn(forks, NULL);
    for (int i = 0, count = scaled(100); i < count; i++) get(server, 200, "Hello, World!");
    end_server(f, 0);
    for (int i = 0; i < 2; i++) join(threads[i]);
    free_fixture(f);
}

/* ---- children that may serve: what lives at the fork decides ---- */

/* A server's whole life. */
static void serves_once(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, hello);
    record_all(&options);
    get(start(&options), 200, "Hello, World!");
    EQUAL(end_server(f, 0).served, 1);
    free_fixture(f);
}

static void a_child_serves(void) {
    pid_t pid = fork();
    if (pid == 0) {
        alarm(PATIENCE_S);
        serves_once();
        exit(0); /* with all that exit does */
    }
    CHECK(pid > 0);
    wait_for_child(pid);
}

/* It can have no server, and so cannot its own children. */
static void a_child_is_told(httpdown_server *server) {
    pid_t pid = fork();
    if (pid == 0) {
        alarm(PATIENCE_S);
        httpdown_options options = {.struct_size = sizeof options, .addr = any_addr(), .handler = hello};
        httpdown_server *other = NULL;
        EQUAL(httpdown_serve(&options, &other, NULL, 0), FORKED);
        EQUAL(httpdown_stop(server), FORKED);
        httpdown_free(server);
        pid_t grandchild = fork();
        if (grandchild == 0) {
            EQUAL(httpdown_serve(&options, &other, NULL, 0), FORKED);
            exit(0);
        }
        wait_for_child(grandchild);
        exit(0);
    }
    CHECK(pid > 0);
    wait_for_child(pid);
}

static void a_child_forked_before_any_use_serves(void) {
    a_child_serves();
}

/* The last thing that the server's threads do takes its time. */
static void lingers(const httpdown_server *server, int phase, void *user_data) {
    on_phase(server, phase, user_data);
    if (phase == HTTPDOWN_PHASE_STOPPED) nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
}

static void a_child_forked_after_the_last_server_was_freed_serves(void) {
    for (int i = 0, count = scaled(40); i < count; i++) {
        fixture *f = new_fixture();
        httpdown_options options = options_for(f, hello);
        if (i % 2) record_all(&options);
        /* However little patience it has, the threads have ended when it is freed. */
        if (i % 4 > 1) options.kill_timeout_ms = HTTPDOWN_NOW;
        if (i % 4 == 3) options.on_phase = lingers;
        get(start(&options), 200, "Hello, World!");
        end_server(f, 0);
        a_child_serves();
        free_fixture(f);
    }
    /* And so do the child's own children, by the same rule. */
    pid_t pid = fork();
    if (pid == 0) {
        alarm(PATIENCE_S);
        serves_once();
        a_child_serves();
        fixture *f = new_fixture();
        httpdown_options options = options_for(f, hello);
        a_child_is_told(start(&options));
        end_server(f, 0);
        a_child_serves();
        exit(0);
    }
    wait_for_child(pid);
}

/* Until it is freed, how far its threads are with their end is nobody's concern. */
static void a_child_of_a_server_that_was_stopped_but_not_freed_is_told(void) {
    for (int i = 0, count = scaled(20); i < count; i++) {
        fixture *f = new_fixture();
        httpdown_options options = options_for(f, hello);
        httpdown_server *server = start(&options);
        EQUAL(httpdown_stop(server), 0);
        if (i % 2) UNTIL(thread_count() == 1);
        a_child_is_told(server);
        end_server(f, 0);
        a_child_serves();
        free_fixture(f);
    }
}

static void a_child_of_two_servers_is_told_until_both_are_freed(void) {
    fixture *f = new_fixture(), *g = new_fixture();
    httpdown_options options = options_for(f, hello), others = options_for(g, hello);
    httpdown_server *server = start(&options);
    start(&others);
    end_server(g, 0);
    a_child_is_told(server);
    end_server(f, 0);
    a_child_serves();
    free(g);
    free_fixture(f);
}

static void a_child_forked_after_a_serve_that_failed_serves(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, hello);
    char error[256], taken[32];
    options.addr = "nonsense";
    httpdown_server *server = NULL;
    EQUAL(httpdown_serve(&options, &server, error, sizeof error), HTTPDOWN_STATUS_ADDR_INVALID);
    a_child_serves();
    EQUAL(httpdown_run(&options, NULL, error, sizeof error), HTTPDOWN_STATUS_ADDR_INVALID);
    a_child_serves();
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof addr;
    CHECK(bind(fd, (struct sockaddr *)&addr, len) == 0 && listen(fd, 1) == 0);
    CHECK(getsockname(fd, (struct sockaddr *)&addr, &len) == 0);
    snprintf(taken, sizeof taken, "127.0.0.1:%d", ntohs(addr.sin_port));
    options.addr = taken;
    EQUAL(httpdown_serve(&options, &server, error, sizeof error), HTTPDOWN_STATUS_ADDR_IN_USE);
    a_child_serves();
    EQUAL(httpdown_run(&options, NULL, error, sizeof error), HTTPDOWN_STATUS_ADDR_IN_USE);
    a_child_serves();
    close(fd);
    free(f);
}

/* A handler that was left behind has a thread of the server's, as long as it does not return. */
static void a_child_of_a_thread_that_was_left_behind_is_told(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, slow);
    options.stop_timeout_ms = options.kill_timeout_ms = 10;
    httpdown_server *server = start(&options);
    int fd = dial(server);
    put(fd, GET("/"));
    gate_wait(&f->entered, 1);
    EQUAL(httpdown_stop(server), HTTPDOWN_STATUS_TIMED_OUT);
    httpdown_free(server);
    a_child_is_told(NULL);
    gate_add(&f->release);
    UNTIL(thread_count() == 1);
    a_child_serves();
    close(fd);
    free_fixture(f);
}

/* A clock is memory: the child has its own copy. */
static void a_clock_without_a_server_is_of_use_in_a_child(void) {
    serves_once();
    httpdown_clock *clock = new_clock();
    pid_t pid = fork();
    if (pid == 0) {
        alarm(PATIENCE_S);
        fixture *f = new_fixture();
        httpdown_options options = options_for(f, hello);
        options.clock = clock;
        options.lame_duck_ms = 1000;
        httpdown_server *server = start(&options);
        EQUAL(httpdown_stop_begin(server), 0);
        EQUAL(httpdown_clock_wait_for_timers(clock, 1, PATIENCE_MS), 0);
        EQUAL(httpdown_clock_advance(clock, 1000), 0);
        end_server(f, 0);
        httpdown_clock_free(clock);
        exit(0);
    }
    wait_for_child(pid);
    httpdown_clock_free(clock);
}

/* After an exec nothing of ours is open. */
static void descriptors_do_not_leak_into_programs(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, NULL);
    record_all(&options);
    int before[1024], count = 0, queue;
    for (int fd = 0; fd < 1024; fd++) before[fd] = fcntl(fd, F_GETFD) >= 0;
    httpdown_server *server = start(&options);
    EQUAL(httpdown_queue_fd(server, &queue), 0);
    int client = dial(server);
    put(client, GET("/"));
    httpdown_request *request;
    size_t taken;
    EQUAL(httpdown_next(server, HTTPDOWN_FOREVER, &request, 1, &taken), 0);
    for (int fd = 0; fd < 1024; fd++) {
        int flags = fcntl(fd, F_GETFD);
        if (before[fd] || flags < 0) continue;
        count++;
        if (!(flags & FD_CLOEXEC)) fprintf(stderr, "descriptor %d stays open in an exec\n", fd);
        CHECK(flags & FD_CLOEXEC);
    }
    CHECK(count >= 5);
    char script[64];
    snprintf(script, sizeof script, "test ! -e /proc/self/fd/%d && test ! -e /proc/self/fd/%d", queue, client);
    EQUAL(system(script), 0);
    EQUAL(httpdown_reply_text(request, 200, "x"), 0);
    close(client);
    end_server(f, 0);
    free_fixture(f);
}

int main(int argc, char **argv) {
    (void)argc;
    tests_chosen = argv + 1;
    RUN(every_call_says_forked);
    RUN(a_child_does_not_hold_the_parents_sockets);
    RUN(a_kill_resets_what_it_cuts_although_a_child_has_a_copy);
    RUN(a_connection_that_was_lingered_on_is_over_although_a_child_has_a_copy);
    RUN(forks_at_any_time);
    RUN(a_child_forked_before_any_use_serves);
    RUN(a_child_forked_after_the_last_server_was_freed_serves);
    RUN(a_child_of_a_server_that_was_stopped_but_not_freed_is_told);
    RUN(a_child_of_two_servers_is_told_until_both_are_freed);
    RUN(a_child_forked_after_a_serve_that_failed_serves);
    RUN(a_child_of_a_thread_that_was_left_behind_is_told);
    RUN(a_clock_without_a_server_is_of_use_in_a_child);
    RUN(descriptors_do_not_leak_into_programs);
    return test_end(argv[0]);
}
