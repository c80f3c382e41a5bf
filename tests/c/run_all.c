/* httpdown_run_all: several servers, one end. */
#include "test.h"

enum { COUNT = 3, INVALID = HTTPDOWN_STATUS_INVALID_ARGUMENT };

/* Servers that run together, and the thread that runs them. */
typedef struct {
    fixture *f[COUNT];
    httpdown_options options[COUNT];
    const httpdown_options *all[COUNT];
    httpdown_stop_report reports[COUNT];
    char error[512];
    pthread_t thread;
    int port[COUNT];
} group;

static void tells_port(const httpdown_server *server, int phase, void *user_data) {
    fixture *f = user_data;
    if (phase == HTTPDOWN_PHASE_SERVING) {
        f->extra_count = port_of(server);
        f->server = (httpdown_server *)server;
    }
    gate_add(&f->phase[phase]);
}

static group *new_group(httpdown_handler_fn handler) {
    group *g = calloc(1, sizeof *g);
    CHECK(g != NULL);
    for (int i = 0; i < COUNT; i++) {
        g->f[i] = new_fixture();
        g->options[i] = options_for(g->f[i], handler);
        g->options[i].on_phase = tells_port;
        g->options[i].stop_timeout_ms = g->options[i].kill_timeout_ms = PATIENCE_MS;
        g->all[i] = &g->options[i];
        g->reports[i].struct_size = sizeof g->reports[i];
    }
    return g;
}

static int run_here(group *g) {
    snprintf(g->error, sizeof g->error, "unset");
    return httpdown_run_all(g->all, COUNT, g->reports, g->error, sizeof g->error);
}

static void *runs(void *g) {
    return (void *)(intptr_t)run_here(g);
}

static void start_group(group *g) {
    g->thread = spawn(runs, g);
    for (int i = 0; i < COUNT; i++) {
        gate_wait(&g->f[i]->phase[HTTPDOWN_PHASE_SERVING], 1);
        g->port[i] = g->f[i]->extra_count;
    }
}

/* A client of each server, whose request is with its handler. */
static void enter(group *g, int fds[COUNT]) {
    for (int i = 0; i < COUNT; i++) {
        fds[i] = connect_to(g->port[i]);
        CHECK(fds[i] >= 0);
        put(fds[i], GET("/"));
        gate_wait(&g->f[i]->entered, 1);
    }
}

static struct sigaction action_of(int number) {
    struct sigaction now;
    CHECK(sigaction(number, NULL, &now) == 0);
    return now;
}

static void check_reports(const group *g, int status) {
    for (int i = 0; i < COUNT; i++) {
        check_sums(&g->reports[i]);
        EQUAL(g->reports[i].status, status);
        EQUAL(gate_value(&g->f[i]->destroyed), 1);
    }
    CHECK(action_of(SIGTERM).sa_handler == SIG_DFL && action_of(SIGINT).sa_handler == SIG_DFL);
}

static void free_group(group *g) {
    for (int i = 0; i < COUNT; i++) free_fixture(g->f[i]);
    free(g);
}

static void expect_and_close(int fd, const char *body) {
    expect(fd, 200, body);
    close(fd);
}

static void a_signal_stops_all_at_the_same_time(void) {
    static const int numbers[] = {SIGTERM, SIGINT};
    for (int i = 0; i < 2; i++) {
        group *g = new_group(slow);
        int fds[COUNT];
        start_group(g);
        enter(g, fds);
        CHECK(kill(getpid(), numbers[i]) == 0);
        /* Each of them, while none of them can end. */
        for (int j = 0; j < COUNT; j++) UNTIL(is_refused(g->port[j]));
        for (int j = COUNT; j-- > 0;) {
            gate_add(&g->f[j]->release);
            expect_and_close(fds[j], "slow");
        }
        EQUAL((intptr_t)join(g->thread), 0);
        CHECK(g->error[0] == 0);
        check_reports(g, 0);
        for (int j = 0; j < COUNT; j++) EQUAL(g->reports[j].served, 1);
        free_group(g);
    }
}

static void until_cut(httpdown_request *request, void *user_data) {
    gate_add(&((fixture *)user_data)->entered);
    EQUAL(httpdown_request_wait_cancelled(request, HTTPDOWN_FOREVER), HTTPDOWN_STATUS_KILLED);
}

static void a_second_signal_kills_all(void) {
    group *g = new_group(until_cut);
    int fds[COUNT];
    for (int i = 0; i < COUNT; i++) g->options[i].second_signal_ms = HTTPDOWN_NOW;
    start_group(g);
    enter(g, fds);
    CHECK(kill(getpid(), SIGTERM) == 0);
    for (int i = 0; i < COUNT; i++) UNTIL(is_refused(g->port[i]));
    CHECK(kill(getpid(), SIGINT) == 0);
    for (int i = 0; i < COUNT; i++) {
        response r = take(fds[i]);
        CHECK(!r.whole);
        done(&r);
        close(fds[i]);
    }
    EQUAL((intptr_t)join(g->thread), HTTPDOWN_STATUS_KILLED);
    CHECK(g->error[0] != 0);
    check_reports(g, HTTPDOWN_STATUS_KILLED);
    free_group(g);
}

static volatile sig_atomic_t old_was_called;
static void counts_calls(int number) {
    (void)number;
    old_was_called++;
}

static void a_third_signal_does_what_it_did_before(void) {
    struct sigaction mine = {.sa_handler = counts_calls}, old;
    sigemptyset(&mine.sa_mask);
    CHECK(sigaction(SIGTERM, &mine, &old) == 0);
    group *g = new_group(slow); /* which no kill ends */
    int fds[COUNT];
    for (int i = 0; i < COUNT; i++) g->options[i].second_signal_ms = HTTPDOWN_NOW;
    start_group(g);
    enter(g, fds);
    CHECK(kill(getpid(), SIGTERM) == 0);
    for (int i = 0; i < COUNT; i++) UNTIL(is_refused(g->port[i]));
    CHECK(kill(getpid(), SIGTERM) == 0);
    UNTIL(action_of(SIGTERM).sa_handler == counts_calls);
    for (int i = 0; i < COUNT; i++) gate_wait(&g->f[i]->phase[HTTPDOWN_PHASE_KILLING], 1);
    EQUAL(old_was_called, 0);
    CHECK(kill(getpid(), SIGTERM) == 0);
    UNTIL(old_was_called == 1);
    for (int i = 0; i < COUNT; i++) gate_add(&g->f[i]->release);
    EQUAL((intptr_t)join(g->thread), HTTPDOWN_STATUS_KILLED);
    CHECK(sigaction(SIGTERM, &old, NULL) == 0);
    check_reports(g, HTTPDOWN_STATUS_KILLED);
    for (int i = 0; i < COUNT; i++) close(fds[i]);
    free_group(g);
}

static void the_longest_pause_of_all_tells_a_second_signal_from_a_repetition(void) {
    group *g = new_group(slow);
    int fds[COUNT];
    for (int i = 0; i < COUNT; i++) g->options[i].second_signal_ms = i == 1 ? HTTPDOWN_FOREVER : HTTPDOWN_NOW;
    start_group(g);
    enter(g, fds);
    for (int i = 0; i < 3; i++) {
        CHECK(kill(getpid(), SIGTERM) == 0);
        for (int j = 0; j < COUNT; j++) UNTIL(is_refused(g->port[j]));
    }
    for (int i = 0; i < COUNT; i++) {
        gate_add(&g->f[i]->release);
        expect_and_close(fds[i], "slow");
    }
    EQUAL((intptr_t)join(g->thread), 0);
    check_reports(g, 0);
    free_group(g);
}

/* Blocked, it waits until the run lets it come: before a server starts, or when all have. */
static void a_signal_that_comes_before_the_servers_is_not_lost(void) {
    sigset_t term;
    sigemptyset(&term);
    sigaddset(&term, SIGTERM);
    CHECK(pthread_sigmask(SIG_BLOCK, &term, NULL) == 0);
    CHECK(raise(SIGTERM) == 0);
    group *g = new_group(hello);
    EQUAL(run_here(g), 0);
    check_reports(g, 0);
    free_group(g);
    /* One that comes when the first server serves. */
    g = new_group(hello);
    pid_t sender = fork();
    if (sender == 0) {
        for (;;) kill(getppid(), SIGTERM);
    }
    for (int i = 0; i < COUNT; i++) g->options[i].second_signal_ms = HTTPDOWN_FOREVER;
    EQUAL(run_here(g), 0);
    CHECK(kill(sender, SIGKILL) == 0 && waitpid(sender, NULL, 0) == sender);
    check_reports(g, 0);
    free_group(g);
}

static void the_result_is_the_worst(void) {
    static const struct {
        int second, expected;
    } cases[] = {
        {HTTPDOWN_STATUS_KILLED, HTTPDOWN_STATUS_KILLED},
        {HTTPDOWN_STATUS_TIMED_OUT, HTTPDOWN_STATUS_TIMED_OUT},
    };
    for (int i = 0; i < 2; i++) {
        group *g = new_group(slow);
        int fds[COUNT];
        bool cuts_first = i == 1;
        if (cuts_first) {
            g->options[0].handler = until_cut;
            g->options[0].stop_timeout_ms = HTTPDOWN_NOW;
            g->options[1].kill_timeout_ms = HTTPDOWN_NOW;
        } else {
            g->options[1].handler = until_cut;
        }
        g->options[1].stop_timeout_ms = HTTPDOWN_NOW;
        start_group(g);
        enter(g, fds);
        CHECK(kill(getpid(), SIGTERM) == 0);
        gate_wait(&g->f[1]->phase[HTTPDOWN_PHASE_STOPPED], 1);
        gate_add(&g->f[0]->release);
        gate_add(&g->f[2]->release);
        EQUAL((intptr_t)join(g->thread), cases[i].expected);
        CHECK(strlen(g->error) > 5);
        EQUAL(g->reports[0].status, cuts_first ? HTTPDOWN_STATUS_KILLED : 0);
        EQUAL(g->reports[1].status, cases[i].second);
        EQUAL(g->reports[2].status, 0);
        EQUAL(g->reports[2].served, 1);
        gate_add(&g->f[1]->release); /* the abandoned handler */
        for (int j = 0; j < COUNT; j++) {
            gate_wait(&g->f[j]->destroyed, 1);
            close(fds[j]);
        }
        free_group(g);
    }
}

static void stops_its_server(httpdown_request *request, void *user_data) {
    (void)user_data;
    EQUAL(httpdown_stop_begin(httpdown_request_server(request)), 0);
    EQUAL(httpdown_reply_text(request, 200, "that was it"), 0);
}

static void a_server_that_is_stopped_by_itself_ends_alone(void) {
    group *g = new_group(hello);
    g->options[0].handler = stops_its_server; /* the one that is waited for first */
    start_group(g);
    int fd = connect_to(g->port[0]);
    put(fd, GET("/"));
    expect_and_close(fd, "that was it");
    gate_wait(&g->f[0]->phase[HTTPDOWN_PHASE_STOPPED], 1);
    for (int i = 1; i < COUNT; i++) {
        fd = connect_to(g->port[i]);
        put(fd, GET("/"));
        expect_and_close(fd, "Hello, World!");
    }
    CHECK(kill(getpid(), SIGTERM) == 0);
    EQUAL((intptr_t)join(g->thread), 0);
    check_reports(g, 0);
    free_group(g);
}

static int listening_fd(int *port) {
    struct sockaddr_in addr = {.sin_family = AF_INET};
    socklen_t len = sizeof addr;
    addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0 && bind(fd, (struct sockaddr *)&addr, sizeof addr) == 0 && listen(fd, 16) == 0);
    CHECK(getsockname(fd, (struct sockaddr *)&addr, &len) == 0);
    *port = ntohs(addr.sin_port);
    return fd;
}

static void if_a_server_fails_the_others_are_stopped(void) {
    for (int failing = 0; failing < COUNT; failing++) {
        group *g = new_group(slow);
        int fds[COUNT], port, fd = listening_fd(&port), copy = dup(fd);
        g->options[failing].addr = NULL;
        g->options[failing].fds = &fd;
        g->options[failing].fd_count = 1;
        start_group(g);
        enter(g, fds);
        CHECK(shutdown(copy, SHUT_RD) == 0); /* accept(2) then fails for good */
        close(copy);
        gate_wait(&g->f[failing]->phase[HTTPDOWN_PHASE_DRAINING], 1);
        gate_add(&g->f[failing]->release);
        expect_and_close(fds[failing], "slow");
        for (int i = 0; i < COUNT; i++) {
            if (i == failing) continue;
            gate_wait(&g->f[i]->phase[HTTPDOWN_PHASE_DRAINING], 1);
            gate_add(&g->f[i]->release);
            expect_and_close(fds[i], "slow");
        }
        EQUAL((intptr_t)join(g->thread), HTTPDOWN_STATUS_IO);
        for (int i = 0; i < COUNT; i++) EQUAL(g->reports[i].status, i == failing ? HTTPDOWN_STATUS_IO : 0);
        free_group(g);
    }
}

/* The first serves already: who waits there is answered. */
static void if_a_server_cannot_start_those_before_it_lose_nothing(void) {
    struct sigaction mine = {.sa_handler = counts_calls};
    sigemptyset(&mine.sa_mask);
    CHECK(sigaction(SIGTERM, &mine, NULL) == 0);
    for (int bad = 0; bad < COUNT; bad++) {
        group *g = new_group(hello);
        int port, listening = listening_fd(&port), client = connect_to(port);
        CHECK(client >= 0);
        put(client, GET("/"));
        g->options[0].addr = NULL;
        g->options[0].fds = &listening;
        g->options[0].fd_count = 1;
        g->options[bad].addr = "nonsense";
        for (int i = 0; i < COUNT; i++) g->reports[i].requests = 77;
        EQUAL(run_here(g), HTTPDOWN_STATUS_ADDR_INVALID);
        char named[32];
        snprintf(named, sizeof named, "server %d (nonsense): ", bad);
        if (strncmp(g->error, named, strlen(named)) != 0) fprintf(stderr, "%s\n", g->error);
        CHECK(strncmp(g->error, named, strlen(named)) == 0);
        CHECK(strstr(httpdown_last_error(), named) != NULL);
        for (int i = 0; i < COUNT; i++) {
            EQUAL(gate_value(&g->f[i]->destroyed), 1);
            if (i < bad) check_sums(&g->reports[i]);
            else EQUAL(g->reports[i].requests, 77);
        }
        if (bad > 0) {
            EQUAL(g->reports[0].served, 1);
            expect(client, 200, "Hello, World!");
        } else {
            close(listening);
        }
        close(client);
        CHECK(action_of(SIGTERM).sa_handler == counts_calls);
        free_group(g);
    }
}

static void the_same_address_twice_is_named(void) {
    char folder[] = "/tmp/httpdown-run-all-XXXXXX", path[128], expected[256];
    CHECK(mkdtemp(folder) != NULL);
    snprintf(path, sizeof path, "unix:%s/socket", folder);
    group *g = new_group(hello);
    g->options[0].addr = g->options[2].addr = path;
    EQUAL(run_here(g), HTTPDOWN_STATUS_ADDR_IN_USE);
    snprintf(expected, sizeof expected, "server 2 (%s, like server 0): ", path);
    CHECK(strncmp(g->error, expected, strlen(expected)) == 0);
    for (int i = 0; i < 2; i++) check_sums(&g->reports[i]);
    /* The one that had it has removed it. */
    CHECK(rmdir(folder) == 0);
    free_group(g);
}

static void bad_arguments_are_refused(void) {
    char text[256];
    group *g = new_group(hello);
    EQUAL(httpdown_run_all(NULL, 0, NULL, NULL, 0), INVALID);
    EQUAL(httpdown_run_all(NULL, COUNT, g->reports, text, sizeof text), INVALID);
    CHECK(text[0] != 0);
    EQUAL(httpdown_run_all(g->all, 0, g->reports, text, sizeof text), INVALID);
    CHECK(strstr(text, "count") != NULL);
    EQUAL(httpdown_run_all(g->all, 1025, g->reports, text, sizeof text), INVALID);
    EQUAL(httpdown_run_all(g->all, (size_t)-1, g->reports, text, sizeof text), INVALID);
    for (int i = 0; i < COUNT; i++) EQUAL(gate_value(&g->f[i]->destroyed), 0); /* none was read */

    /* What could be read is destroyed, once. */
    g->all[1] = NULL;
    EQUAL(run_here(g), INVALID);
    CHECK(strstr(g->error, "options[1]") != NULL);
    g->all[1] = g->all[0];
    EQUAL(run_here(g), INVALID);
    CHECK(strstr(g->error, "options[1]") != NULL && strstr(g->error, "options[0]") != NULL);
    g->all[1] = &g->options[1];
    g->options[1].struct_size = 1;
    EQUAL(run_here(g), INVALID);
    CHECK(strstr(g->error, "options[1]") != NULL);
    EQUAL(gate_value(&g->f[0]->destroyed), 3);
    EQUAL(gate_value(&g->f[1]->destroyed), 0);
    EQUAL(gate_value(&g->f[2]->destroyed), 3);
    g->options[1].struct_size = sizeof g->options[1];

    static const size_t sizes[] = {0, 1, sizeof(httpdown_stop_report) - 8, (size_t)-1};
    for (int i = 0; i < 8; i++) {
        httpdown_stop_report *wrong = &g->reports[i % 2 * 2];
        wrong->struct_size = sizes[i / 2];
        EQUAL(run_here(g), INVALID);
        CHECK(strstr(g->error, "struct_size") != NULL);
        wrong->struct_size = sizeof *wrong;
    }
    for (int i = 0; i < COUNT; i++) EQUAL(gate_value(&g->f[i]->destroyed), i == 1 ? 8 : 11);
    CHECK(action_of(SIGTERM).sa_handler == SIG_DFL);
    EQUAL(thread_count(), 1);
    for (int i = 0; i < COUNT; i++) free(g->f[i]);
    free(g);
}

/* A caller whose struct is shorter has the next report where its own ends. */
static void reports_are_as_large_as_the_caller_knows_them(void) {
    typedef struct {
        size_t struct_size;
        int phase, status;
        uint64_t stop_duration_ms, connections;
    } older;
    older reports[COUNT + 1];
    memset(reports, 0x5a, sizeof reports);
    for (int i = 0; i < COUNT; i++) reports[i].struct_size = sizeof reports[i];
    group *g = new_group(hello);
    sigset_t term;
    sigemptyset(&term);
    sigaddset(&term, SIGTERM);
    CHECK(pthread_sigmask(SIG_BLOCK, &term, NULL) == 0 && raise(SIGTERM) == 0);
    EQUAL(httpdown_run_all(g->all, COUNT, (httpdown_stop_report *)reports, NULL, 0), 0);
    for (int i = 0; i < COUNT; i++) {
        EQUAL(reports[i].phase, HTTPDOWN_PHASE_STOPPED);
        EQUAL(reports[i].connections, 0);
    }
    EQUAL(reports[COUNT].connections, 0x5a5a5a5a5a5a5a5a);
    free_group(g);
}

static void runs_another(httpdown_request *request, void *user_data) {
    (void)user_data;
    group *g = new_group(hello);
    EQUAL(run_here(g), HTTPDOWN_STATUS_UNSUPPORTED);
    for (int i = 0; i < COUNT; i++) {
        EQUAL(gate_value(&g->f[i]->destroyed), 1);
        free(g->f[i]);
    }
    free(g);
    httpdown_reply_text(request, 200, "refused");
}

static void only_one_run_at_a_time(void) {
    group *g = new_group(runs_another);
    start_group(g);
    int fd = connect_to(g->port[1]);
    put(fd, GET("/"));
    expect_and_close(fd, "refused");
    httpdown_options options = g->options[0];
    options.destroy = NULL;
    EQUAL(httpdown_run(&options, NULL, NULL, 0), HTTPDOWN_STATUS_UNSUPPORTED);
    CHECK(kill(getpid(), SIGTERM) == 0);
    EQUAL((intptr_t)join(g->thread), 0);
    check_reports(g, 0);
    free_group(g);
}

static void a_forked_child_has_no_run_and_no_part_in_the_parents(void) {
    group *g = new_group(hello);
    start_group(g);
    pid_t child = fork();
    if (child == 0) {
        alarm(2 * PATIENCE_S);
        EQUAL(run_here(g), HTTPDOWN_STATUS_FORKED);
        raise(SIGTERM);
        _exit(7);
    }
    int status;
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
    int fd = connect_to(g->port[2]);
    put(fd, GET("/"));
    expect_and_close(fd, "Hello, World!");
    CHECK(kill(getpid(), SIGTERM) == 0);
    EQUAL((intptr_t)join(g->thread), 0);
    check_reports(g, 0);
    free_group(g);
}

int main(int argc, char **argv) {
    (void)argc;
    tests_chosen = argv + 1;
    signal(SIGINT, SIG_DFL); /* ignored in what a shell starts in the background */
    RUN(a_signal_stops_all_at_the_same_time);
    RUN(a_second_signal_kills_all);
    RUN(a_third_signal_does_what_it_did_before);
    RUN(the_longest_pause_of_all_tells_a_second_signal_from_a_repetition);
    RUN(a_signal_that_comes_before_the_servers_is_not_lost);
    RUN(the_result_is_the_worst);
    RUN(a_server_that_is_stopped_by_itself_ends_alone);
    RUN(if_a_server_fails_the_others_are_stopped);
    RUN(if_a_server_cannot_start_those_before_it_lose_nothing);
    RUN(the_same_address_twice_is_named);
    RUN(bad_arguments_are_refused);
    RUN(reports_are_as_large_as_the_caller_knows_them);
    RUN(only_one_run_at_a_time);
    RUN(a_forked_child_has_no_run_and_no_part_in_the_parents);
    return test_end(argv[0]);
}
