/* Restarts. Each test is the process that is restarted; the new one is this program with the argument "successor". */
#include "test.h"

#define INVALID HTTPDOWN_STATUS_INVALID_ARGUMENT
#define FAILED HTTPDOWN_STATUS_RESTART_FAILED
#define BUSY HTTPDOWN_STATUS_BUSY

enum { INHERITABLE = 100 };

/* ---- both processes ---- */

static httpdown_restarts info_of_this_process(uint32_t *predecessors, size_t capacity) {
    httpdown_restarts restarts = {.struct_size = sizeof restarts};
    EQUAL(httpdown_restart_info(&restarts, predecessors, capacity), 0);
    return restarts;
}

static int state(void) {
    return info_of_this_process(NULL, 0).state;
}

static bool is_path(const httpdown_request *request, const char *path) {
    return httpdown_bytes_equal(httpdown_request_path(request), path);
}

/* Says who answers. */
static void who(httpdown_request *request, void *user_data) {
    char text[600], dir[256] = "";
    const char *mark = getenv("MARK");
    uint32_t predecessors[2] = {0, 0};
    if (is_path(request, "/slow")) {
        slow(request, user_data);
        return;
    }
    if (is_path(request, "/stop")) EQUAL(httpdown_stop_begin(httpdown_request_server(request)), 0);
    if (is_path(request, "/again")) {
        httpdown_restart_options options = {.struct_size = sizeof options, .probation_ms = 100};
        int status = httpdown_restart(httpdown_request_server(request), &options, text, sizeof text);
        httpdown_reply_text(request, 200, status == 0 ? "again" : text);
        return;
    }
    if (is_path(request, "/die") && getenv("HTTPDOWN_TEST_SUCCESSOR") != NULL) _exit(4);
    httpdown_restarts restarts = info_of_this_process(predecessors, 2);
    CHECK(getcwd(dir, sizeof dir) != NULL);
    snprintf(text, sizeof text, "%d %s %s %d %d %d %d %u", getpid(), mark != NULL ? mark : "-", dir,
             fcntl(INHERITABLE, F_GETFD) >= 0, restarts.state, (int)restarts.generation,
             (int)restarts.predecessor_count, predecessors[0]);
    httpdown_reply_text(request, 200, text);
}

typedef struct {
    int pid;
    char mark[64], dir[256];
    int has_fd, state, generation, predecessors, predecessor;
} answer;

/* False: the connection was cut. */
static bool ask(int port, const char *path, answer *a) {
    char line[128];
    int fd = connect_to(port);
    CHECK(fd >= 0);
    snprintf(line, sizeof line, "GET %s HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n", path);
    put(fd, line);
    response r = take(fd);
    close(fd);
    bool is_whole = r.status == 200 && r.whole;
    if (is_whole)
        EQUAL(sscanf(r.body, "%d %63s %255s %d %d %d %d %d", &a->pid, a->mark, a->dir, &a->has_fd, &a->state,
                     &a->generation, &a->predecessors, &a->predecessor), 8);
    done(&r);
    return is_whole;
}

static answer who_answers(int port) {
    answer a = {0};
    CHECK(ask(port, "/", &a));
    return a;
}

static httpdown_server *serve_again(fixture *f) {
    httpdown_options options = options_for(f, who);
    options.addr = "127.0.0.1:0";
    record_all(&options);
    return start(&options);
}

/* Restarts it in its handler, as it was started. Returns the answer of the new process. */
static answer restart_again(int port) {
    int fd = connect_to(port), before = who_answers(port).generation;
    CHECK(fd >= 0);
    put(fd, GET_CLOSE("/again"));
    expect(fd, 200, "again");
    close(fd);
    answer a;
    UNTIL((a = who_answers(port)).generation != before); /* the old one leaves a little later */
    EQUAL(a.generation, before + 1);
    return a;
}

/* Whoever its parent is. */
static void wait_for_end(int pid) {
    char path[64], link[256];
    snprintf(path, sizeof path, "/proc/%d/exe", pid);
    UNTIL(readlink(path, link, sizeof link) < 0);
}

/* ---- the new process ---- */

/* The host reads the variables itself, and binds nothing. */
static httpdown_server *serve_given(fixture *f, bool is_shared) {
    static const int fds[] = {3};
    const char *count = getenv("LISTEN_FDS");
    CHECK(count != NULL && strcmp(count, "1") == 0);
    httpdown_options options = options_for(f, who);
    options.addr = NULL;
    options.fds = fds;
    options.fd_count = 1;
    options.fds_shared = is_shared;
    return start(&options);
}

/* successor HOW COUNT: it listens COUNT times. */
static int successor(const char *how, int count) {
    fixture *fixtures[2];
    test_name = "the new process";
    alarm(2 * PATIENCE_S);
    if (strcmp(how, "dies") == 0) {
        fprintf(stderr, "something is missing\n");
        return 3;
    }
    if (strcmp(how, "says-zero") == 0) {
        CHECK(fwrite("one\0two", 1, 7, stderr) == 7);
        return 3;
    }
    while (strcmp(how, "hangs") == 0) pause();
    if (strcmp(how, "says-ready-first") == 0) {
        EQUAL(httpdown_restart_ready(), FAILED);
        CHECK(strcmp(httpdown_last_error(), "no server was started") == 0);
        while (true) pause();
    }
    setenv("HTTPDOWN_TEST_SUCCESSOR", "1", 1);
    for (int i = 0; i < count; i++) {
        fixtures[i] = new_fixture();
        if (strncmp(how, "given", 5) == 0) serve_given(fixtures[i], strcmp(how, "given-shared") == 0);
        else serve_again(fixtures[i]);
        if (strcmp(how, "runs") == 0) EQUAL(httpdown_run_ready(), 0);
    }
    if (strcmp(how, "says-ready") == 0) EQUAL(httpdown_restart_ready(), 0);
    if (strcmp(how, "errs") == 0) {
        EQUAL(httpdown_restart_ready(), FAILED);
        CHECK(strstr(httpdown_last_error(), "nobody listens on 127.0.0.1:") != NULL);
    }
    for (int i = 0; i < count; i++) {
        EQUAL(httpdown_wait(fixtures[i]->server, HTTPDOWN_FOREVER, NULL), 0);
        httpdown_free(fixtures[i]->server);
    }
    return 0;
}

/* ---- the old one ---- */

/* What the callbacks of a restart have told. */
typedef struct {
    gate asked, may_go_on, told, destroyed;
    const char *veto;
    bool holds, fills;
    int status;
    uint32_t pid;
    char text[8192];
} told_of;

static told_of *new_told(void) {
    told_of *t = calloc(1, sizeof *t);
    CHECK(t != NULL);
    gate fresh = GATE;
    t->asked = t->may_go_on = t->told = t->destroyed = fresh;
    t->status = -1;
    return t;
}

static int before(char *why, size_t size, void *user_data) {
    told_of *t = user_data;
    CHECK(size >= 512 && why[0] == 0);
    gate_add(&t->asked);
    if (t->holds) gate_wait(&t->may_go_on, 1);
    if (t->fills) memset(why, 'x', size);
    else if (t->veto != NULL) snprintf(why, size, "%s", t->veto);
    return t->fills || t->veto != NULL;
}

static void on_restart(int status, const char *text, uint32_t pid, void *user_data) {
    told_of *t = user_data;
    CHECK(gate_value(&t->destroyed) == 0);
    t->status = status;
    t->pid = pid;
    snprintf(t->text, sizeof t->text, "%s", text);
    gate_add(&t->told);
}

static void destroys(void *user_data) {
    gate_add(&((told_of *)user_data)->destroyed);
}

static httpdown_restart_options to(told_of *t, const char *how, int count) {
    static char *argv[] = {"restart", "successor", NULL, NULL, NULL};
    static char numbers[8];
    snprintf(numbers, sizeof numbers, "%d", count);
    argv[2] = (char *)how;
    argv[3] = numbers;
    return (httpdown_restart_options){
        .struct_size = sizeof(httpdown_restart_options),
        .argv = argv,
        .before = before,
        .on_restart = on_restart,
        .user_data = t,
        .destroy = destroys,
        .probation_ms = 100,
    };
}

/* What was told once, and then destroyed. */
static void check_told(told_of *t, int status) {
    EQUAL(gate_value(&t->asked), 1);
    EQUAL(gate_value(&t->told), 1);
    EQUAL(gate_value(&t->destroyed), 1);
    EQUAL(t->status, status);
    EQUAL(t->pid != 0, status == 0);
    EQUAL(t->text[0] != 0, status != 0);
    free(t);
}

static void says(const char *error, const char *text) {
    if (strstr(error, text) == NULL) fprintf(stderr, "it says \"%s\"\n", error);
    CHECK(strstr(error, text) != NULL);
}

/* Ends the new process, and waits for its end: a thread of ours does, too. */
static void end_new(int port, fixture *f) {
    answer a = {0};
    CHECK(ask(port, "/stop", &a));
    CHECK(a.pid != getpid());
    free_fixture(f);
}

static void the_new_process_takes_over(void) {
    fixture *one = new_fixture(), *other = new_fixture();
    httpdown_server *server = serve_again(one), *second = serve_again(other);
    int ports[] = {port_of(server), port_of(second)};
    CHECK(dup2(0, INHERITABLE) == INHERITABLE);
    EQUAL(state(), HTTPDOWN_RESTART_IDLE);
    int unfinished = connect_to(ports[1]);
    put(unfinished, GET("/slow"));
    gate_wait(&other->entered, 1);

    told_of *t = new_told();
    char error[256] = "unset", *envp[] = {"MARK=a=b", NULL};
    httpdown_restart_options options = to(t, "serves", 2);
    options.envp = envp;
    options.directory = "/";
    EQUAL(httpdown_restart(server, &options, error, sizeof error), 0);
    CHECK(strcmp(error, "") == 0);
    uint32_t pid = t->pid;
    check_told(t, 0);
    wait_stat(one, HTTPDOWN_STAT_SUM, "restart", 1);
    wait_stat(one, HTTPDOWN_STAT_TIME, "restart.time", 1);

    /* What was begun is finished here. */
    gate_add(&other->release);
    expect(unfinished, 200, "slow");
    close(unfinished);
    httpdown_restarts restarts = info_of_this_process(NULL, 0);
    EQUAL(restarts.state, HTTPDOWN_RESTART_HANDED_OVER);
    EQUAL(restarts.successor_pid, pid);
    EQUAL(restarts.generation, 0);
    EQUAL(restarts.predecessor_count, 0);
    EQUAL(httpdown_restart(server, NULL, error, sizeof error), BUSY);
    says(error, "has taken over");

    EQUAL(end_server(one, 0).successor_pid, pid);
    EQUAL(end_server(other, 0).successor_pid, pid);
    free(other);
    for (int i = 0; i < 2; i++) {
        answer a = who_answers(ports[i]);
        EQUAL(a.pid, pid);
        CHECK(strcmp(a.mark, "a=b") == 0 && strcmp(a.dir, "/") == 0);
        EQUAL(a.has_fd, 0);
        EQUAL(a.state, HTTPDOWN_RESTART_IDLE);
        EQUAL(a.generation, 1);
        EQUAL(a.predecessors, 1);
        EQUAL(a.predecessor, getpid());
    }
    answer a = {0};
    CHECK(ask(ports[1], "/stop", &a));
    end_new(ports[0], one);
}

static void restarts_in_a_handler(httpdown_request *request, void *user_data) {
    fixture *f = user_data;
    httpdown_restart_options options = to(f->extra, "serves", 1);
    EQUAL(httpdown_restart(httpdown_request_server(request), &options, NULL, 0), 0);
    httpdown_reply_text(request, 200, "restarted");
}

static void a_handler_may_restart(void) {
    static const int ways[] = {HTTPDOWN_DISPATCH_POOL, HTTPDOWN_DISPATCH_INLINE};
    for (int i = 0; i < 2; i++) {
        pid_t child = fork(); /* no process can be restarted twice */
        if (child == 0) {
            fixture *f = new_fixture();
            f->extra = new_told();
            httpdown_options options = options_for(f, restarts_in_a_handler);
            options.addr = "127.0.0.1:0";
            options.dispatch = ways[i];
            httpdown_server *server = start(&options);
            int port = port_of(server), fd = dial(server);
            put(fd, GET("/"));
            expect(fd, 200, "restarted");
            close(fd);
            check_told(f->extra, 0);
            end_server(f, 0);
            end_new(port, f);
            exit(0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
        EQUAL(WEXITSTATUS(status), 0);
    }
}

static void the_program_may_refuse(void) {
    fixture *f = new_fixture();
    httpdown_server *server = serve_again(f);
    for (int i = 0; i < 3; i++) {
        told_of *t = new_told();
        httpdown_restart_options options = to(t, "serves", 1);
        char error[2048];
        t->veto = i == 0 ? "caf\xc3\xa9" : "";
        t->fills = i == 2;
        EQUAL(httpdown_restart(server, &options, error, sizeof error), FAILED);
        says(error, i == 0   ? "refused: caf\xc3\xa9"
                    : i == 1 ? "refused: the check before it has returned 1"
                             : "refused: xxx");
        CHECK(strcmp(t->text, error) == 0);
        EQUAL(strlen(error) < sizeof error - 1, 1);
        check_told(t, FAILED);
    }
    /* The text is cut, between two characters. */
    told_of *t = new_told();
    httpdown_restart_options options = to(t, "serves", 1);
    char error[] = "????????????????";
    t->veto = "caf\xc3\xa9";
    EQUAL(httpdown_restart(server, &options, error, 14), FAILED);
    CHECK(strcmp(error, "refused: caf") == 0 && error[14] == '?');
    check_told(t, FAILED);
    EQUAL(state(), HTTPDOWN_RESTART_IDLE);
    EQUAL(who_answers(port_of(server)).pid, getpid());
    wait_told(f, HTTPDOWN_EVENT_LOG, HTTPDOWN_LOG_ERROR, "restart failed: refused: caf", 2);
    wait_stat(f, HTTPDOWN_STAT_SUM, "restart.failed", 4);
    EQUAL(end_server(f, 0).successor_pid, 0);
    free_fixture(f);
}

/* A restart that fails, and what its text says. */
static void fails(httpdown_server *server, httpdown_restart_options options, const char *text) {
    told_of *t = options.user_data;
    char error[8192];
    EQUAL(httpdown_restart(server, &options, error, sizeof error), FAILED);
    says(error, text);
    CHECK(strcmp(t->text, error) == 0);
    check_told(t, FAILED);
    EQUAL(who_answers(port_of(server)).pid, getpid());
}

static void if_the_new_process_fails_the_old_one_goes_on(void) {
    fixture *f = new_fixture();
    httpdown_server *server = serve_again(f);
    httpdown_restart_options options = to(new_told(), "dies", 1);
    fails(server, options, "has exited with status 3 before it was ready; its errors: something is missing");
    /* A NUL in it does not end the text. */
    options = to(new_told(), "says-zero", 1);
    fails(server, options, "its errors: one\xef\xbf\xbdtwo");
    options = to(new_told(), "hangs", 1);
    options.ready_timeout_ms = 300;
    fails(server, options, "was not ready after 300ms");
    options = to(new_told(), "serves", 1);
    options.program = "/nowhere/program";
    fails(server, options, "No such file or directory");
    options = to(new_told(), "serves", 1);
    options.directory = "/nowhere";
    fails(server, options, "No such file or directory");
    /* The text begins with what matters, where there is room for little. */
    char little[8] = "", none = '?';
    options = to(new_told(), "dies", 1);
    EQUAL(httpdown_restart(server, &options, little, sizeof little), FAILED);
    CHECK(strncmp(little, "PID ", 4) == 0 && strlen(little) == 7);
    check_told(options.user_data, FAILED);
    options = to(new_told(), "dies", 1);
    EQUAL(httpdown_restart(server, &options, &none, 0), FAILED);
    CHECK(none == '?');
    says(httpdown_last_error(), "has exited with status 3");
    check_told(options.user_data, FAILED);
    end_server(f, 0);
    free_fixture(f);
}

static void a_restart_goes_on_by_itself(void) {
    fixture *f = new_fixture();
    httpdown_server *server = serve_again(f);
    int port = port_of(server);
    char error[256];
    CHECK(dup2(0, INHERITABLE) == INHERITABLE);
    told_of *t = new_told();
    t->holds = true;
    httpdown_restart_options options = to(t, "serves", 1);
    options.flags = HTTPDOWN_RESTART_KEEP_FDS | HTTPDOWN_RESTART_PLAIN_STDERR;
    options.probation_ms = HTTPDOWN_NOW;
    EQUAL(httpdown_restart_begin(server, &options), 0);
    /* All was copied. */
    memset(&options, 0xff, sizeof options);
    gate_wait(&t->asked, 1);
    EQUAL(state(), HTTPDOWN_RESTART_STARTING);

    /* One at a time. */
    told_of *late = new_told();
    options = to(late, "serves", 1);
    EQUAL(httpdown_restart(server, &options, error, sizeof error), BUSY);
    CHECK(strcmp(error, "a restart is under way") == 0);
    EQUAL(httpdown_restart_begin(server, &options), BUSY);
    CHECK(strcmp(httpdown_last_error(), "a restart is under way") == 0);
    EQUAL(httpdown_restart_begin(server, NULL), BUSY);
    EQUAL(gate_value(&late->asked) + gate_value(&late->told), 0);
    EQUAL(gate_value(&late->destroyed), 2);
    free(late);

    gate_add(&t->may_go_on);
    gate_wait(&t->destroyed, 1);
    uint32_t pid = t->pid;
    check_told(t, 0);
    EQUAL(httpdown_wait(server, HTTPDOWN_FOREVER, NULL), 0);
    EQUAL(end_server(f, 0).successor_pid, pid);
    answer a = who_answers(port);
    EQUAL(a.pid, pid);
    EQUAL(a.has_fd, 1);
    end_new(port, f);
}

static void a_new_process_that_dies_in_its_probation_does_not_take_over(void) {
    fixture *f = new_fixture();
    httpdown_server *server = serve_again(f);
    told_of *t = new_told();
    httpdown_restart_options options = to(t, "serves", 1);
    options.probation_ms = PATIENCE_MS;
    EQUAL(httpdown_restart_begin(server, &options), 0);
    UNTIL(state() == HTTPDOWN_RESTART_PROBATION);
    uint32_t pid = info_of_this_process(NULL, 0).successor_pid;
    CHECK(pid != 0);
    /* Both accept; so it comes to the new one at some time. */
    answer a;
    while (gate_value(&t->told) == 0) ask(port_of(server), "/die", &a);
    gate_wait(&t->destroyed, 1);
    char text[64];
    snprintf(text, sizeof text, "PID %u has exited with status 4", pid);
    says(t->text, text);
    says(t->text, "after it was ready");
    check_told(t, FAILED);
    UNTIL(state() == HTTPDOWN_RESTART_IDLE);
    EQUAL(who_answers(port_of(server)).pid, getpid());
    end_server(f, 0);
    free_fixture(f);
}

static void a_stop_ends_a_restart(void) {
    fixture *f = new_fixture();
    httpdown_server *server = serve_again(f);
    told_of *t = new_told();
    httpdown_restart_options options = to(t, "hangs", 1);
    EQUAL(httpdown_restart_begin(server, &options), 0);
    UNTIL(info_of_this_process(NULL, 0).successor_pid != 0);
    EQUAL(end_server(f, 0).successor_pid, 0);
    gate_wait(&t->destroyed, 1);
    says(t->text, "was killed, because a server of this process stops");
    check_told(t, FAILED);
    free_fixture(f);
}

static void a_stop_that_was_asked_for_excludes_a_restart(void) {
    fixture *f = new_fixture();
    httpdown_server *server = serve_again(f);
    char error[64];
    int fd = dial(server);
    put(fd, GET("/slow"));
    gate_wait(&f->entered, 1);
    EQUAL(httpdown_stop_begin(server), 0);
    EQUAL(httpdown_restart(server, NULL, error, sizeof error), HTTPDOWN_STATUS_STOPPED);
    CHECK(strlen(error) > 0);
    gate_add(&f->release);
    expect(fd, 200, "slow");
    close(fd);
    EQUAL(httpdown_stop(server), 0);
    EQUAL(httpdown_restart_begin(server, NULL), HTTPDOWN_STATUS_STOPPED);
    end_server(f, 0);
    free_fixture(f);
}

static void a_socket_that_is_forgotten_makes_the_restart_fail(void) {
    fixture *f = new_fixture(), *other = new_fixture();
    httpdown_server *server = serve_again(f), *second = serve_again(other);
    char text[64];
    snprintf(text, sizeof text, "nobody listens on 127.0.0.1:%d", port_of(second));
    httpdown_restart_options options = to(new_told(), "serves", 1);
    options.ready_timeout_ms = 1000;
    fails(server, options, text);
    /* At once, if the new process says that it is ready. */
    options = to(new_told(), "errs", 1);
    options.ready_timeout_ms = HTTPDOWN_FOREVER;
    fails(server, options, text);
    EQUAL(who_answers(port_of(second)).pid, getpid());
    end_server(f, 0);
    end_server(other, 0);
    free(other);
    free_fixture(f);
}

static void a_socket_may_be_given_up(void) {
    fixture *f = new_fixture(), *other = new_fixture();
    httpdown_server *server = serve_again(f), *second = serve_again(other);
    int port = port_of(server), given_up = port_of(second);
    told_of *t = new_told();
    httpdown_restart_options options = to(t, "says-ready", 1);
    options.flags = HTTPDOWN_RESTART_DROP_UNCLAIMED;
    EQUAL(httpdown_restart(server, &options, NULL, 0), 0);
    uint32_t pid = t->pid;
    check_told(t, 0);
    EQUAL(end_server(f, 0).successor_pid, pid);
    EQUAL(end_server(other, 0).successor_pid, pid);
    free(other);
    EQUAL(who_answers(port).pid, pid);
    CHECK(is_refused(given_up));
    end_new(port, f);
}

static void what_the_host_gives_comes_back_to_the_host(void) {
    for (int is_shared = 0; is_shared < 2; is_shared++) {
        struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        CHECK(bind(fd, (struct sockaddr *)&addr, sizeof addr) == 0 && listen(fd, 64) == 0);
        pid_t child = fork(); /* no process can be restarted twice */
        if (child == 0) {
            fixture *f = new_fixture();
            httpdown_options options = options_for(f, who);
            options.addr = NULL;
            options.fds = &fd;
            options.fd_count = 1;
            options.fds_shared = is_shared;
            httpdown_server *server = start(&options);
            int port = port_of(server);
            httpdown_restart_options how = to(new_told(), is_shared ? "given-shared" : "given", 1);
            EQUAL(httpdown_restart(server, &how, NULL, 0), 0);
            EQUAL(end_server(f, 0).successor_pid, who_answers(port).pid);
            int last = restart_again(port).pid;
            end_new(port, f);
            wait_for_end(last);
            exit(0);
        }
        int status;
        socklen_t size = sizeof addr;
        CHECK(getsockname(fd, (struct sockaddr *)&addr, &size) == 0);
        CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
        EQUAL(WEXITSTATUS(status), 0);
        /* Only a socket that is shared still listens here. */
        int client = connect_to(ntohs(addr.sin_port));
        EQUAL(client >= 0, is_shared);
        if (is_shared) CHECK(accept(fd, NULL, NULL) >= 0);
        close(fd);
    }
}

/* What the old process tells that has no standard error. */
typedef struct {
    int port;
    char error[256];
} report_of_closed;

static void the_standard_descriptors_may_be_closed(void) {
    int ends[2], status;
    CHECK(pipe2(ends, O_CLOEXEC) == 0 && ends[0] > 2);
    pid_t child = fork();
    if (child == 0) {
        alarm(2 * PATIENCE_S);
        for (int fd = 0; fd < 3; fd++) close(fd);
        fixture *f = new_fixture();
        httpdown_server *server = serve_again(f);
        report_of_closed report = {.port = port_of(server)};
        httpdown_restart_options options = to(new_told(), "dies", 1);
        EQUAL(httpdown_restart(server, &options, report.error, sizeof report.error), FAILED);
        options = to(new_told(), "serves", 1);
        EQUAL(httpdown_restart(server, &options, NULL, 0), 0);
        CHECK(write(ends[1], &report, sizeof report) == sizeof report);
        end_server(f, 0);
        exit(0);
    }
    close(ends[1]);
    report_of_closed report = {0};
    CHECK(read(ends[0], &report, sizeof report) == sizeof report);
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
    EQUAL(WEXITSTATUS(status), 0);
    says(report.error, "its errors: something is missing");
    answer a = who_answers(report.port);
    for (int generation = 1; generation <= 3; generation++) {
        if (generation > 1) a = restart_again(report.port);
        EQUAL(a.generation, generation);
        for (int fd = 0; fd < 3; fd++) {
            char path[64], link[64] = "";
            snprintf(path, sizeof path, "/proc/%d/fd/%d", a.pid, fd);
            CHECK(readlink(path, link, sizeof link - 1) > 0);
            if (strcmp(link, "/dev/null") != 0) fprintf(stderr, "generation %d: %s is %s\n", generation, path, link);
            CHECK(strcmp(link, "/dev/null") == 0);
        }
    }
    CHECK(ask(report.port, "/stop", &a));
    wait_for_end(a.pid);
    CHECK(is_refused(report.port));
}

static void who_is_ready_has_a_server(void) {
    EQUAL(httpdown_restart_ready(), INVALID);
    CHECK(strcmp(httpdown_last_error(), "no server was started") == 0);
    EQUAL(httpdown_run_ready(), INVALID);
    fixture *f = new_fixture();
    httpdown_server *server = serve_again(f);
    EQUAL(httpdown_run_ready(), 0);
    EQUAL(httpdown_restart_ready(), 0);
    httpdown_restart_options options = to(new_told(), "says-ready-first", 1);
    options.ready_timeout_ms = HTTPDOWN_FOREVER;
    fails(server, options, "says: no server was started");
    end_server(f, 0);
    EQUAL(httpdown_restart_ready(), 0);
    free_fixture(f);
}

/* Like httpdown_run, whose new process may start a server later. */
static void a_server_that_comes_late_is_waited_for(void) {
    fixture *f = new_fixture(), *other = new_fixture();
    httpdown_server *server = serve_again(f), *second = serve_again(other);
    int ports[] = {port_of(server), port_of(second)};
    httpdown_restart_options options = to(new_told(), "runs", 2);
    EQUAL(httpdown_restart(server, &options, NULL, 0), 0);
    end_server(f, 0);
    end_server(other, 0);
    free(other);
    CHECK(who_answers(ports[0]).pid == who_answers(ports[1]).pid);
    answer a = {0};
    CHECK(ask(ports[1], "/stop", &a));
    end_new(ports[0], f);
}

/* A run in this process, and the thread that sends it signals. */
typedef struct {
    fixture *f;
    told_of *t;
    gate serving;
    int port;
    bool ends; /* by SIGTERM, while the program is asked whether it may be restarted */
} signalled;

static void on_phase_of_run(const httpdown_server *server, int phase, void *user_data) {
    signalled *s = ((fixture *)user_data)->extra;
    if (phase == HTTPDOWN_PHASE_SERVING) {
        s->port = port_of(server);
        gate_add(&s->serving);
    }
    /* Only now the program answers. */
    if (phase == HTTPDOWN_PHASE_STOPPED) gate_add(&s->t->may_go_on);
}

static void *signals(void *user_data) {
    signalled *s = user_data;
    gate_wait(&s->serving, 1);
    CHECK(kill(getpid(), SIGUSR2) == 0);
    gate_wait(&s->t->asked, 1);
    if (s->ends) CHECK(kill(getpid(), SIGTERM) == 0);
    return NULL;
}

/* When a run returns, all callbacks of its restart have been called. */
static void run_with_signals(signalled *s) {
    gate fresh = GATE;
    char error[256];
    pthread_t thread;
    s->f = new_fixture();
    s->t = new_told();
    s->t->holds = s->ends;
    s->serving = fresh;
    s->f->extra = s;
    httpdown_restart_options restart = to(s->t, "serves", 1);
    httpdown_options options = options_for(s->f, who);
    options.addr = "127.0.0.1:0";
    options.on_phase = on_phase_of_run;
    options.restart = &restart;
    CHECK(pthread_create(&thread, NULL, signals, s) == 0);
    EQUAL(httpdown_run(&options, NULL, error, sizeof error), 0);
    check_told(s->t, s->ends ? FAILED : 0);
    CHECK(pthread_join(thread, NULL) == 0);
}

static void a_signal_restarts_a_run(void) {
    signalled s = {.ends = false};
    run_with_signals(&s);
    end_new(s.port, s.f);
}

static void a_run_waits_for_the_program_that_is_asked(void) {
    signalled s = {.ends = true};
    run_with_signals(&s);
    free_fixture(s.f);
}

static void what_makes_no_sense_is_refused(void) {
    fixture *f = new_fixture();
    httpdown_server *server = serve_again(f);
    told_of *t = new_told();
    char error[256], *nothing[] = {NULL}, *unnamed[] = {"A=1", "=2", NULL}, *no_value[] = {"A=1", "B", NULL};
    static const size_t sizes[] = {0, 4, sizeof(size_t), 4097, (size_t)-1};
    httpdown_restart_options good = to(t, "serves", 1), options;
    int destroyed = 0;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        options = good;
        options.struct_size = sizes[i];
        EQUAL(httpdown_restart(server, &options, error, sizeof error), INVALID);
        says(error, "struct_size");
        EQUAL(httpdown_restart_begin(server, &options), INVALID);
    }
    EQUAL(gate_value(&t->destroyed), 0);
    EQUAL(httpdown_restart(NULL, NULL, error, sizeof error), INVALID);
    CHECK(strcmp(error, "server is NULL") == 0);
    EQUAL(httpdown_restart_begin(NULL, NULL), INVALID);
    EQUAL(httpdown_restart(NULL, &good, NULL, 0), INVALID);
    EQUAL(httpdown_restart_begin(NULL, &good), INVALID);
    EQUAL(gate_value(&t->destroyed), destroyed += 2);

#define REFUSED(status, text)                                                    \
    do {                                                                         \
        EQUAL(httpdown_restart(server, &options, error, sizeof error), status);  \
        says(error, text);                                                       \
        EQUAL(httpdown_restart_begin(server, &options), status);                 \
        says(httpdown_last_error(), text);                                       \
        EQUAL(gate_value(&t->destroyed), destroyed += 2);                        \
        options = good;                                                          \
    } while (0)
    options = good;
    options.flags = 1u << 20;
    REFUSED(HTTPDOWN_STATUS_UNSUPPORTED, "options.flags 1048576");
    options.argv = nothing;
    REFUSED(INVALID, "options.argv is empty");
    options.envp = no_value;
    REFUSED(INVALID, "options.envp[1] has no '='");
    options.envp = unnamed;
    REFUSED(INVALID, "\"\" is not a variable's name");
    options.program = "";
    REFUSED(INVALID, "is not absolute");
    options.program = "build/tests/restart";
    REFUSED(INVALID, "program \"build/tests/restart\" is not absolute");
    options.directory = "";
    REFUSED(INVALID, "directory \"\" is not absolute");
    options.pid_file = "app.pid";
    REFUSED(INVALID, "pid_file \"app.pid\" is not absolute");
    options.ready_timeout_ms = HTTPDOWN_NOW;
    REFUSED(INVALID, "ready_timeout is 0");
    struct {
        httpdown_restart_options known;
        size_t more;
    } newer = {good, 1};
    newer.known.struct_size = sizeof newer;
    EQUAL(httpdown_restart(server, &newer.known, error, sizeof error), HTTPDOWN_STATUS_UNSUPPORTED);
    EQUAL(gate_value(&t->destroyed), destroyed + 1);
    EQUAL(gate_value(&t->asked) + gate_value(&t->told), 0);
    free(t);

    httpdown_restarts restarts = {.struct_size = sizeof restarts};
    EQUAL(httpdown_restart_info(NULL, NULL, 0), INVALID);
    EQUAL(httpdown_restart_info(&restarts, NULL, 1), INVALID);
    restarts.struct_size = 8;
    EQUAL(httpdown_restart_info(&restarts, NULL, 0), INVALID);
    httpdown_restart_options_init(NULL, sizeof good);
    EQUAL(httpdown_restart_ready(), 0);
    EQUAL(state(), HTTPDOWN_RESTART_IDLE);
    EQUAL(who_answers(port_of(server)).pid, getpid());
    end_server(f, 0);
    free_fixture(f);
}

/* Not only when a signal asks for a restart. */
static void what_makes_no_sense_is_refused_before_a_run(void) {
    char error[256], *nothing[] = {NULL};
    const struct {
        httpdown_restart_options how;
        const char *text;
    } wrong[] = {
        {{.program = "app"}, "restart: program \"app\" is not absolute"},
        {{.directory = "run"}, "restart: directory \"run\" is not absolute"},
        {{.pid_file = "app.pid"}, "restart: pid_file \"app.pid\" is not absolute"},
        {{.ready_timeout_ms = HTTPDOWN_NOW}, "restart: ready_timeout is 0"},
        {{.argv = nothing}, "options.restart: options.argv is empty"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        told_of *t = new_told();
        fixture *f = new_fixture();
        httpdown_restart_options how = wrong[i].how;
        how.struct_size = sizeof how;
        how.user_data = t;
        how.destroy = destroys;
        httpdown_options options = options_for(f, who);
        const httpdown_options *all[] = {&options};
        options.addr = "127.0.0.1:0";
        options.restart = &how;
        EQUAL(httpdown_run(&options, NULL, error, sizeof error), INVALID);
        says(error, wrong[i].text);
        EQUAL(httpdown_run_all(all, 1, NULL, error, sizeof error), INVALID);
        says(error, wrong[i].text);
        EQUAL(httpdown_serve(&options, &f->server, error, sizeof error), INVALID);
        says(error, wrong[i].text);
        CHECK(f->server == NULL);
        EQUAL(gate_value(&t->destroyed), 3);
        EQUAL(gate_value(&f->destroyed), 3);
        free(t);
        free(f);
    }
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, who);
    options.addr = "127.0.0.1:0";
    options.canary = "/x#y";
    EQUAL(httpdown_serve(&options, &f->server, error, sizeof error), INVALID);
    says(error, "canary \"/x#y\" is not the target of a request");
    free_fixture(f);
}

static void a_forked_child_cannot_restart(void) {
    enum { FORKED = HTTPDOWN_STATUS_FORKED };
    fixture *f = new_fixture();
    httpdown_server *server = serve_again(f);
    pid_t child = fork();
    if (child == 0) {
        told_of *t = new_told();
        httpdown_restart_options options = to(t, "serves", 1);
        httpdown_restarts restarts = {.struct_size = sizeof restarts};
        char error[64] = "";
        EQUAL(httpdown_restart(server, &options, error, sizeof error), FORKED);
        CHECK(strlen(error) > 0);
        EQUAL(httpdown_restart_begin(server, &options), FORKED);
        EQUAL(gate_value(&t->destroyed), 2);
        EQUAL(httpdown_restart(server, NULL, NULL, 0), FORKED);
        EQUAL(httpdown_restart_ready(), FORKED);
        EQUAL(httpdown_restart_info(&restarts, NULL, 0), FORKED);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    EQUAL(status, 0);
    end_server(f, 0);
    free_fixture(f);
}

int main(int argc, char **argv) {
    if (argc == 4 && strcmp(argv[1], "successor") == 0) return successor(argv[2], atoi(argv[3]));
    tests_chosen = argv + 1;
    RUN(the_new_process_takes_over);
    RUN(a_handler_may_restart);
    RUN(the_program_may_refuse);
    RUN(if_the_new_process_fails_the_old_one_goes_on);
    RUN(a_restart_goes_on_by_itself);
    RUN(a_new_process_that_dies_in_its_probation_does_not_take_over);
    RUN(a_stop_ends_a_restart);
    RUN(a_stop_that_was_asked_for_excludes_a_restart);
    RUN(a_socket_that_is_forgotten_makes_the_restart_fail);
    RUN(a_socket_may_be_given_up);
    RUN(what_the_host_gives_comes_back_to_the_host);
    RUN(the_standard_descriptors_may_be_closed);
    RUN(who_is_ready_has_a_server);
    RUN(a_server_that_comes_late_is_waited_for);
    RUN(a_signal_restarts_a_run);
    RUN(a_run_waits_for_the_program_that_is_asked);
    RUN(what_makes_no_sense_is_refused);
    RUN(what_makes_no_sense_is_refused_before_a_run);
    RUN(a_forked_child_cannot_restart);
    return test_end(argv[0]);
}
