/* httpdown_run: a whole program's life, with real signals. Each server is a process of its own. */
#include "test.h"

#include <spawn.h>
#include <sys/syscall.h>

typedef struct {
    fixture base;
    int tells; /* where the child says things: its port, and "i" when a handler is in */
    int hears; /* where it is told to go on */
    httpdown_handler_fn handler;
    int expected;
    uint32_t second_signal_ms;
} child;

static void on_serving(const httpdown_server *server, int phase, void *user_data) {
    child *c = user_data;
    char addr[64];
    if (phase != HTTPDOWN_PHASE_SERVING) return;
    EQUAL(httpdown_local_addr(server, 0, addr, sizeof addr), 0);
    int port = atoi(strrchr(addr, ':') + 1);
    CHECK(write(c->tells, &port, sizeof port) == sizeof port);
}

/* Says that it is in, and answers when a byte comes. */
static void asks_first(httpdown_request *request, void *user_data) {
    child *c = user_data;
    char byte;
    int in = -1;
    CHECK(write(c->tells, &in, sizeof in) == sizeof in);
    CHECK(read(c->hears, &byte, 1) == 1);
    httpdown_reply_text(request, 200, "finished");
}

static void until_cut(httpdown_request *request, void *user_data) {
    child *c = user_data;
    int in = -1;
    CHECK(write(c->tells, &in, sizeof in) == sizeof in);
    EQUAL(httpdown_request_wait_cancelled(request, HTTPDOWN_FOREVER), HTTPDOWN_STATUS_KILLED);
}

static void old_handler(int number) {
    (void)number;
}

static volatile sig_atomic_t old_was_called;
static void counts_calls(int number) {
    (void)number;
    old_was_called++;
}

static sigset_t mask_of_this_thread(void) {
    sigset_t mask;
    CHECK(pthread_sigmask(SIG_SETMASK, NULL, &mask) == 0);
    return mask;
}

static void run_child(child *c) {
    httpdown_options options = options_for(&c->base, c->handler);
    options.on_phase = on_serving;
    options.stop_timeout_ms = options.kill_timeout_ms = PATIENCE_MS;
    options.second_signal_ms = c->second_signal_ms;
    struct sigaction before[2] = {{.sa_handler = old_handler}, {.sa_handler = counts_calls, .sa_flags = SA_NODEFER}}, now;
    sigset_t mask;
    sigemptyset(&before[0].sa_mask);
    sigaddset(&before[0].sa_mask, SIGHUP);
    sigemptyset(&before[1].sa_mask);
    CHECK(sigaction(SIGTERM, &before[0], NULL) == 0 && sigaction(SIGINT, &before[1], NULL) == 0);
    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR2);
    CHECK(pthread_sigmask(SIG_SETMASK, &mask, NULL) == 0);
    sigset_t pending, masked = mask_of_this_thread();

    char error[256] = "unset";
    httpdown_stop_report report = {.struct_size = sizeof report};
    int status = httpdown_run(&options, &report, error, sizeof error);
    EQUAL(status, c->expected);
    EQUAL(report.status, status);
    check_sums(&report);
    CHECK((status == 0) == (strlen(error) == 0));
    EQUAL(gate_value(&c->base.destroyed), 1);
    UNTIL(thread_count() == 1);
    /* All is as it was. */
    CHECK(sigaction(SIGTERM, NULL, &now) == 0 && now.sa_handler == old_handler && sigismember(&now.sa_mask, SIGHUP) == 1);
    CHECK(sigaction(SIGINT, NULL, &now) == 0 && now.sa_handler == counts_calls && (now.sa_flags & SA_NODEFER) != 0);
    sigset_t after = mask_of_this_thread();
    for (int number = 1; number < 32; number++) EQUAL(sigismember(&after, number), sigismember(&masked, number));
    CHECK(sigpending(&pending) == 0);
    EQUAL(old_was_called, 0);
    raise(SIGINT);
    EQUAL(old_was_called, 1);
    exit(0);
}

typedef struct {
    pid_t pid;
    int from, to, port;
} process;

static int hear(const process *p) {
    int number = 0;
    CHECK(read(p->from, &number, sizeof number) == sizeof number);
    return number;
}

static process start_child(httpdown_handler_fn handler, int expected, uint32_t second_signal_ms) {
    int up[2], down[2];
    CHECK(pipe(up) == 0 && pipe(down) == 0);
    process p = {.pid = fork(), .from = up[0], .to = down[1]};
    CHECK(p.pid >= 0);
    if (p.pid == 0) {
        alarm(2 * PATIENCE_S);
        child *c = calloc(1, sizeof *c);
        fixture *fresh = new_fixture();
        c->base = *fresh;
        free(fresh);
        c->tells = up[1];
        c->hears = down[0];
        c->handler = handler;
        c->expected = expected;
        c->second_signal_ms = second_signal_ms;
        run_child(c);
    }
    close(up[1]);
    close(down[0]);
    p.port = hear(&p);
    return p;
}

static void end_child(const process *p) {
    int status = 0;
    CHECK(waitpid(p->pid, &status, 0) == p->pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    close(p->from);
    close(p->to);
}

static void a_signal_stops_gracefully(void) {
    static const int numbers[] = {SIGTERM, SIGINT};
    for (int i = 0; i < 2; i++) {
        process p = start_child(asks_first, 0, 0);
        int fd = connect_to(p.port);
        CHECK(fd >= 0);
        put(fd, GET("/"));
        EQUAL(hear(&p), -1); /* the handler is in */
        CHECK(kill(p.pid, numbers[i]) == 0);
        UNTIL(is_refused(p.port));
        CHECK(write(p.to, "x", 1) == 1);
        expect(fd, 200, "finished");
        close(fd);
        end_child(&p);
    }
}

static void a_second_signal_cuts(void) {
    for (int i = 0; i < 4; i++) {
        process p = start_child(until_cut, HTTPDOWN_STATUS_KILLED, HTTPDOWN_NOW);
        int fd = connect_to(p.port);
        CHECK(fd >= 0);
        put(fd, GET("/"));
        EQUAL(hear(&p), -1);
        CHECK(kill(p.pid, i & 1 ? SIGTERM : SIGINT) == 0);
        UNTIL(is_refused(p.port));
        CHECK(kill(p.pid, i & 2 ? SIGTERM : SIGINT) == 0);
        response r = take(fd);
        CHECK(!r.whole);
        done(&r);
        close(fd);
        end_child(&p);
    }
}

static void a_stop_that_is_told_twice_cuts_nothing(void) {
    static const int pairs[][2] = {{SIGTERM, SIGTERM}, {SIGINT, SIGTERM}};
    for (int i = 0; i < 2; i++) {
        process p = start_child(asks_first, 0, i == 0 ? 0 : HTTPDOWN_FOREVER);
        int fd = connect_to(p.port);
        CHECK(fd >= 0);
        put(fd, GET("/"));
        EQUAL(hear(&p), -1);
        CHECK(kill(p.pid, pairs[i][0]) == 0);
        /* As one who signals the whole group, and a wrapper in it that forwards what it gets. */
        nanosleep(&(struct timespec){.tv_nsec = 20 * 1000000}, NULL);
        CHECK(kill(p.pid, pairs[i][1]) == 0);
        UNTIL(is_refused(p.port));
        CHECK(write(p.to, "x", 1) == 1);
        expect(fd, 200, "finished");
        close(fd);
        end_child(&p);
    }
}

static void a_second_signal_counts_after_a_pause(void) {
    process p = start_child(until_cut, HTTPDOWN_STATUS_KILLED, 200);
    int fd = connect_to(p.port);
    CHECK(fd >= 0);
    put(fd, GET("/"));
    EQUAL(hear(&p), -1);
    CHECK(kill(p.pid, SIGTERM) == 0);
    nanosleep(&(struct timespec){.tv_nsec = 250 * 1000000}, NULL);
    CHECK(kill(p.pid, SIGTERM) == 0);
    response r = take(fd);
    CHECK(!r.whole);
    done(&r);
    close(fd);
    /* And what tells the second again is not the third, which would end the process. */
    kill(p.pid, SIGTERM);
    end_child(&p);
}

static void an_idle_run_ends_at_once(void) {
    process p = start_child(hello, 0, 0);
    int fd = connect_to(p.port);
    put(fd, GET("/"));
    expect(fd, 200, "Hello, World!");
    CHECK(kill(p.pid, SIGTERM) == 0);
    CHECK(is_at_end(fd));
    close(fd);
    end_child(&p);
}

/* ---- in one process ---- */

static void *runs(void *argument) {
    fixture *f = argument;
    httpdown_options options = options_for(f, hello);
    options.on_phase = on_phase;
    httpdown_stop_report report = {.struct_size = sizeof report};
    intptr_t status = httpdown_run(&options, &report, NULL, 0);
    check_sums(&report);
    return (void *)status;
}

static void tells_port(const httpdown_server *server, int phase, void *user_data) {
    if (phase != HTTPDOWN_PHASE_SERVING) return;
    told port = {.kind = HTTPDOWN_EVENT_LOG, .code = 4711, .value = port_of(server)};
    tell(user_data, port);
}

static void blocks(httpdown_request *request, void *user_data) {
    fixture *f = user_data;
    (void)request;
    gate_add(&f->entered);
    gate_wait(&f->release, 1);
}

static void *runs_with(void *options) {
    return (void *)(intptr_t)httpdown_run(options, NULL, NULL, 0);
}

static void only_one_run_at_a_time(void) {
    fixture *f = new_fixture(), *g = new_fixture();
    pthread_t first = spawn(runs, f);
    gate_wait(&f->phase[HTTPDOWN_PHASE_SERVING], 1);
    httpdown_options options = options_for(g, hello);
    char error[256] = "";
    httpdown_stop_report report = {.struct_size = sizeof report, .requests = 5};
    EQUAL(httpdown_run(&options, &report, error, sizeof error), HTTPDOWN_STATUS_UNSUPPORTED);
    CHECK(strlen(error) > 0);
    EQUAL(report.requests, 5); /* written only if the server has run */
    EQUAL(gate_value(&g->destroyed), 1);
    kill(getpid(), SIGTERM); /* still caught, for the first */
    EQUAL((intptr_t)join(first), 0);
    EQUAL(gate_value(&f->destroyed), 1);
    /* And then another. */
    fixture *h = new_fixture();
    pthread_t second = spawn(runs, h);
    gate_wait(&h->phase[HTTPDOWN_PHASE_SERVING], 1);
    kill(getpid(), SIGINT);
    EQUAL((intptr_t)join(second), 0);
    free(g);
    free(h);
    free_fixture(f);
}

/* ---- children of a run: no signal to them is the parent's ---- */

static pid_t forks(void) {
    return fork();
}

/* As fork, but no handler of pthread_atfork is called. */
static pid_t clones(void) {
    return (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
}

static volatile pid_t child_of_vfork;

/* Until the child has ended its parent's thread stands still, and they share their memory. */
static void *vforks(void *unused) {
    pid_t pid = vfork();
    if (pid == 0) {
        alarm(2 * PATIENCE_S);
        child_of_vfork = getpid();
        for (;;) pause();
    }
    CHECK(pid > 0);
    return unused;
}

/* Waits until a child has ended: the status of its exit, or the number of the signal with a minus. */
static int end_of(pid_t child) {
    int status = 0;
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

static struct sigaction action_of(int number) {
    struct sigaction now;
    CHECK(sigaction(number, NULL, &now) == 0);
    return now;
}

typedef struct {
    fixture *f;
    pthread_t thread;
    int port;
} parent;

static void *runs_and_tells_port(void *argument) {
    fixture *f = argument;
    httpdown_options options = options_for(f, hello);
    options.on_phase = tells_port;
    httpdown_stop_report report = {.struct_size = sizeof report};
    EQUAL(httpdown_run(&options, &report, NULL, 0), 0);
    EQUAL(report.served, 1);
    return NULL;
}

static parent start_parent(void) {
    parent p = {.f = new_fixture()};
    p.thread = spawn(runs_and_tells_port, p.f);
    p.port = (int)wait_told(p.f, HTTPDOWN_EVENT_LOG, 4711, NULL, 1).value;
    return p;
}

/* It serves as if nothing had been, and still catches the signal. */
static void end_parent(const parent *p) {
    int fd = connect_to(p->port);
    CHECK(fd >= 0);
    put(fd, GET("/"));
    expect(fd, 200, "Hello, World!");
    CHECK(kill(getpid(), SIGTERM) == 0);
    join(p->thread);
    close(fd);
    free_fixture(p->f);
}

static void a_signal_to_a_child_ends_the_child_and_not_the_parents_server(void) {
    static const int numbers[] = {SIGTERM, SIGINT};
    static pid_t (*const makers[])(void) = {forks, clones};
    parent p = start_parent();
    for (int i = 0; i < 4; i++) {
        pid_t child = makers[i / 2]();
        if (child == 0) {
            alarm(2 * PATIENCE_S);
            for (;;) pause();
        }
        CHECK(child > 0 && kill(child, numbers[i % 2]) == 0);
        EQUAL(end_of(child), -numbers[i % 2]);
    }
    end_parent(&p);
}

static void a_signal_to_a_child_of_vfork_ends_the_child_and_not_the_parents_server(void) {
    static const int numbers[] = {SIGTERM, SIGINT};
    parent p = start_parent();
    for (int i = 0; i < 2; i++) {
        struct sigaction before = action_of(numbers[i]);
        child_of_vfork = 0;
        pthread_t waits = spawn(vforks, NULL);
        UNTIL(child_of_vfork != 0);
        CHECK(kill(child_of_vfork, numbers[i]) == 0);
        join(waits);
        EQUAL(end_of(child_of_vfork), -numbers[i]);
        CHECK(action_of(numbers[i]).sa_handler == before.sa_handler);
    }
    end_parent(&p);
}

static pid_t handler_belongs_to;

/* What a child ends with says whether this is its handler again. */
static void ends_a_child(int number) {
    struct sigaction now;
    if (getpid() == handler_belongs_to) return;
    _exit(sigaction(number, NULL, &now) == 0 && now.sa_handler == ends_a_child ? 7 : 8);
}

static void a_signal_to_a_child_runs_the_hosts_old_handler_there(void) {
    static pid_t (*const makers[])(void) = {forks, clones};
    struct sigaction mine = {.sa_handler = ends_a_child}, old;
    sigemptyset(&mine.sa_mask);
    handler_belongs_to = getpid();
    CHECK(sigaction(SIGTERM, &mine, &old) == 0);
    parent p = start_parent();
    for (int i = 0; i < 2; i++) {
        pid_t child = makers[i]();
        if (child == 0) {
            alarm(2 * PATIENCE_S);
            for (;;) pause();
        }
        CHECK(child > 0 && kill(child, SIGTERM) == 0);
        EQUAL(end_of(child), 7);
    }
    child_of_vfork = 0;
    pthread_t waits = spawn(vforks, NULL);
    UNTIL(child_of_vfork != 0);
    CHECK(kill(child_of_vfork, SIGTERM) == 0);
    join(waits);
    EQUAL(end_of(child_of_vfork), 7);
    CHECK(action_of(SIGTERM).sa_handler != ends_a_child);
    end_parent(&p);
    CHECK(action_of(SIGTERM).sa_handler == ends_a_child);
    CHECK(sigaction(SIGTERM, &old, NULL) == 0);
}

static void a_child_ignores_what_was_ignored_before(void) {
    struct sigaction ignored = {.sa_handler = SIG_IGN}, old;
    sigemptyset(&ignored.sa_mask);
    CHECK(sigaction(SIGTERM, &ignored, &old) == 0);
    parent p = start_parent();
    pid_t child = fork();
    if (child == 0) {
        alarm(2 * PATIENCE_S);
        UNTIL(action_of(SIGTERM).sa_handler == SIG_IGN); /* our handler has been there */
        raise(SIGTERM);
        _exit(7);
    }
    CHECK(child > 0 && kill(child, SIGTERM) == 0);
    EQUAL(end_of(child), 7);
    end_parent(&p);
    CHECK(action_of(SIGTERM).sa_handler == SIG_IGN);
    CHECK(sigaction(SIGTERM, &old, NULL) == 0);
}

/* Each has its own way of being woken: neither hears the other's signals. */
static void a_child_forked_after_a_run_runs_beside_its_parent(void) {
    int port = 0, up[2], down[2];
    parent p = start_parent();
    end_parent(&p);
    CHECK(pipe(up) == 0 && pipe(down) == 0);
    pid_t child = fork();
    if (child == 0) {
        alarm(2 * PATIENCE_S);
        parent q = start_parent();
        CHECK(write(up[1], &q.port, sizeof q.port) == sizeof q.port);
        CHECK(read(down[0], &port, 1) == 1); /* until the parent's run is over */
        end_parent(&q);
        exit(0);
    }
    p = start_parent();
    struct pollfd told = {.fd = up[0], .events = POLLIN};
    EQUAL(poll(&told, 1, PATIENCE_MS), 1);
    CHECK(read(up[0], &port, sizeof port) == sizeof port);
    end_parent(&p);
    int fd = connect_to(port);
    CHECK(fd >= 0);
    close(fd);
    CHECK(write(down[1], "x", 1) == 1);
    EQUAL(end_of(child), 0);

    /* The other way round. */
    child = fork();
    if (child == 0) {
        alarm(2 * PATIENCE_S);
        parent q = start_parent();
        end_parent(&q);
        exit(0);
    }
    p = start_parent();
    EQUAL(end_of(child), 0);
    EQUAL(gate_value(&p.f->destroyed), 0);
    end_parent(&p);
    for (int i = 0; i < 2; i++) CHECK(close(up[i]) == 0 && close(down[i]) == 0);
}

/* ---- in one process again ---- */

static void the_handlers_of_a_run_use_the_signal_stack_and_restart_system_calls(void) {
    static const int numbers[] = {SIGTERM, SIGINT};
    fixture *f = new_fixture();
    pthread_t run = spawn(runs, f);
    gate_wait(&f->phase[HTTPDOWN_PHASE_SERVING], 1);
    for (int i = 0; i < 2; i++) {
        struct sigaction now;
        CHECK(sigaction(numbers[i], NULL, &now) == 0);
        CHECK((now.sa_flags & SA_ONSTACK) != 0 && (now.sa_flags & SA_RESTART) != 0);
    }
    kill(getpid(), SIGTERM);
    EQUAL((intptr_t)join(run), 0);
    free_fixture(f);
}

static void a_third_signal_does_what_it_did_before(void) {
    struct sigaction mine = {.sa_handler = counts_calls}, old;
    sigemptyset(&mine.sa_mask);
    CHECK(sigaction(SIGTERM, &mine, &old) == 0);
    old_was_called = 0;
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, blocks);
    options.on_phase = tells_port;
    options.stop_timeout_ms = options.kill_timeout_ms = PATIENCE_MS;
    options.second_signal_ms = HTTPDOWN_NOW;
    pthread_t run = spawn(runs_with, &options);
    told port = wait_told(f, HTTPDOWN_EVENT_LOG, 4711, NULL, 1);
    int fd = connect_to((int)port.value);
    put(fd, GET("/"));
    gate_wait(&f->entered, 1);
    CHECK(kill(getpid(), SIGTERM) == 0);
    UNTIL(is_refused((int)port.value));
    CHECK(kill(getpid(), SIGTERM) == 0);
    /* The kill has begun, and the handler does not end: only the third signal is left. */
    struct sigaction now;
    UNTIL(sigaction(SIGTERM, NULL, &now) == 0 && now.sa_handler == counts_calls);
    CHECK(kill(getpid(), SIGTERM) == 0);
    UNTIL(old_was_called == 1);
    gate_add(&f->release);
    EQUAL((intptr_t)join(run), HTTPDOWN_STATUS_KILLED);
    close(fd);
    CHECK(sigaction(SIGTERM, &old, NULL) == 0);
    free_fixture(f);
}

static void a_run_that_fails_restores(void) {
    struct sigaction mine = {.sa_handler = old_handler}, now;
    sigemptyset(&mine.sa_mask);
    CHECK(sigaction(SIGTERM, &mine, NULL) == 0);
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, hello);
    options.addr = "nonsense";
    for (int i = 0; i < 3; i++) {
        httpdown_stop_report report = {.struct_size = sizeof report, .requests = 5};
        EQUAL(httpdown_run(&options, &report, NULL, 0), HTTPDOWN_STATUS_ADDR_INVALID);
        EQUAL(gate_value(&f->destroyed), i + 1);
        EQUAL(report.requests, 5);
    }
    options.addr = any_addr();
    httpdown_stop_report wrong = {.struct_size = 1};
    EQUAL(httpdown_run(&options, &wrong, NULL, 0), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    EQUAL(gate_value(&f->destroyed), 4);
    CHECK(sigaction(SIGTERM, NULL, &now) == 0 && now.sa_handler == old_handler);
    UNTIL(thread_count() == 1);
    free(f);
}

/* A handler ends the run by itself. */
static void stops_the_run(httpdown_request *request, void *user_data) {
    (void)user_data;
    EQUAL(httpdown_stop_begin(httpdown_request_server(request)), 0);
    EQUAL(httpdown_reply_text(request, 200, "that was it"), 0);
}

static void *asks_once(void *argument) {
    fixture *f = argument;
    told port = wait_told(f, HTTPDOWN_EVENT_LOG, 4711, NULL, 1);
    int fd = connect_to((int)port.value);
    CHECK(fd >= 0);
    put(fd, GET("/"));
    expect(fd, 200, "that was it");
    close(fd);
    return NULL;
}

static void a_handler_may_end_a_run(void) {
    for (int i = 0, count = scaled(20); i < count; i++) {
        fixture *f = new_fixture();
        httpdown_options options = options_for(f, stops_the_run);
        options.on_phase = tells_port;
        pthread_t client = spawn(asks_once, f);
        EQUAL(httpdown_run(&options, NULL, NULL, 0), 0);
        join(client);
        EQUAL(gate_value(&f->destroyed), 1);
        struct sigaction now;
        CHECK(sigaction(SIGTERM, NULL, &now) == 0 && now.sa_handler == SIG_DFL);
        free_fixture(f);
    }
}

/* The signals that a thread blocks, as bits from 1 on; a thread that has ended blocks what it should. */
static unsigned long long blocked_by(const char *thread, unsigned long long expected) {
    char path[300], line[256];
    unsigned long long blocked = expected;
    snprintf(path, sizeof path, "/proc/self/task/%s/status", thread);
    FILE *status = fopen(path, "r");
    if (status == NULL) return expected;
    while (fgets(line, sizeof line, status) != NULL)
        if (sscanf(line, "SigBlk: %llx", &blocked) == 1) break;
    fclose(status);
    return blocked & 0x7fffffff;
}

static bool starts_with(const char *text, const char *start) {
    return strncmp(text, start, strlen(start)) == 0;
}

/* The name of a thread; "" if it has ended. */
static void name_of(const char *thread, char *name, size_t size) {
    char path[300];
    snprintf(path, sizeof path, "/proc/self/task/%s/comm", thread);
    FILE *comm = fopen(path, "r");
    if (comm == NULL || fgets(name, (int)size, comm) == NULL) name[0] = 0;
    if (comm != NULL) fclose(comm);
}

/* Whether a thread runs the host's code. One that has just started has the name of the thread that has started it. */
static bool is_open(const char *thread, bool in_place) {
    char name[32];
    name_of(thread, name, sizeof name);
    bool is_io = starts_with(name, "httpdown-") && name[9] >= '0' && name[9] <= '9';
    return !starts_with(name, "httpdown-ctl") && (!is_io || in_place);
}

/* Those that run none of the host's code block all signals but faults; the others what the host does, and SIGPIPE. */
static void our_threads_block_signals(void) {
    static const int open_ones[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGKILL, SIGSTOP};
    unsigned long long all = 0x7fffffff, hosts = 1ULL << (SIGPIPE - 1) | 1ULL << (SIGUSR2 - 1);
    for (size_t i = 0; i < sizeof open_ones / sizeof *open_ones; i++) all &= ~(1ULL << (open_ones[i] - 1));
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR2);
    CHECK(pthread_sigmask(SIG_BLOCK, &blocked, NULL) == 0);
    for (int inline_ = 0; inline_ < 2; inline_++) {
        fixture *f = new_fixture();
        httpdown_options options = options_for(f, hello);
        if (inline_) options.dispatch = HTTPDOWN_DISPATCH_INLINE;
        record_all(&options);
        sigset_t before = mask_of_this_thread();
        httpdown_server *server = start(&options);
        get(server, 200, NULL);
        DIR *tasks = opendir("/proc/self/task");
        int checked = 0, open_threads = 0;
        for (struct dirent *task; (task = readdir(tasks)) != NULL;) {
            if (task->d_name[0] == '.' || atoi(task->d_name) == getpid()) continue;
            /* One that has just started blocks all for an instant. */
            unsigned long long expected = 0;
            UNTIL((expected = is_open(task->d_name, inline_) ? hosts : all,
                   blocked_by(task->d_name, expected) == expected));
            checked++;
            open_threads += expected == hosts;
        }
        closedir(tasks);
        CHECK(checked >= 4 && open_threads >= 3);
        sigset_t after = mask_of_this_thread();
        for (int number = 1; number < 32; number++)
            EQUAL(sigismember(&after, number), sigismember(&before, number));
        end_server(f, 0);
        free_fixture(f);
    }
}

/* Has a child say what it blocks: by posix_spawn, which runs no handlers of pthread_atfork. */
static void spawns(httpdown_request *request, void *user_data) {
    (void)user_data;
    char *arguments[] = {"grep", "SigBlk", "/proc/self/status", NULL}, said[64] = "";
    int ends[2];
    pid_t child;
    posix_spawn_file_actions_t actions;
    CHECK(pipe(ends) == 0 && posix_spawn_file_actions_init(&actions) == 0);
    CHECK(posix_spawn_file_actions_adddup2(&actions, ends[1], 1) == 0);
    EQUAL(posix_spawnp(&child, "grep", &actions, NULL, arguments, environ), 0);
    close(ends[1]);
    CHECK(read(ends[0], said, sizeof said - 1) > 0);
    close(ends[0]);
    posix_spawn_file_actions_destroy(&actions);
    CHECK(waitpid(child, NULL, 0) == child);
    httpdown_reply_text(request, 200, said);
}

static void a_handlers_children_hear_signals(void) {
    static const int ways[] = {HTTPDOWN_DISPATCH_POOL, HTTPDOWN_DISPATCH_INLINE};
    for (int i = 0; i < 2; i++) {
        fixture *f = new_fixture();
        httpdown_options options = options_for(f, spawns);
        options.dispatch = ways[i];
        int fd = dial(start(&options));
        put(fd, GET("/"));
        response r = take(fd);
        unsigned long long blocked = 0;
        CHECK(r.status == 200 && sscanf(r.body, "SigBlk: %llx", &blocked) == 1);
        EQUAL(blocked, 1ULL << (SIGPIPE - 1));
        done(&r);
        close(fd);
        end_server(f, 0);
        free_fixture(f);
    }
}

static void block(int how, int first, int second) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, first);
    sigaddset(&set, second);
    CHECK(pthread_sigmask(how, &set, NULL) == 0);
}

static void signals_itself(const httpdown_server *server, int phase, void *user_data) {
    if (phase != HTTPDOWN_PHASE_SERVING) return;
    get(server, 200, "Hello, World!");
    kill(getpid(), ((fixture *)user_data)->extra_count);
}

/* A shell, or whoever starts the program, may have left them blocked. */
static void a_signal_that_was_blocked_stops_the_run(void) {
    static const int numbers[] = {SIGTERM, SIGINT};
    block(SIG_BLOCK, SIGTERM, SIGINT);
    for (int i = 0; i < 4; i++) {
        bool comes_before = i >= 2;
        fixture *f = new_fixture();
        httpdown_options options = options_for(f, hello);
        f->extra_count = numbers[i % 2];
        if (comes_before) raise(numbers[i % 2]);
        else options.on_phase = signals_itself;
        EQUAL(httpdown_run(&options, NULL, NULL, 0), 0);
        sigset_t after = mask_of_this_thread(), pending;
        CHECK(sigismember(&after, SIGTERM) == 1 && sigismember(&after, SIGINT) == 1);
        CHECK(sigpending(&pending) == 0 && sigismember(&pending, SIGTERM) == 0 && sigismember(&pending, SIGINT) == 0);
        CHECK(action_of(SIGTERM).sa_handler == SIG_DFL && action_of(SIGINT).sa_handler == SIG_DFL);
        free_fixture(f);
    }
}

/* Signals that come again and again, while the run ends: none does what a blocked one must not do. */
static void a_signal_that_was_blocked_before_is_blocked_afterwards(void) {
    block(SIG_BLOCK, SIGTERM, SIGINT);
    for (int i = 0, count = scaled(20); i < count; i++) {
        fixture *f = new_fixture();
        httpdown_options options = options_for(f, hello);
        options.second_signal_ms = HTTPDOWN_FOREVER;
        pid_t process = getpid(), sender = fork();
        if (sender == 0) {
            for (;;) kill(process, SIGTERM);
        }
        EQUAL(httpdown_run(&options, NULL, NULL, 0), 0);
        CHECK(kill(sender, SIGKILL) == 0 && waitpid(sender, NULL, 0) == sender);
        free_fixture(f);
    }
}

static void interrupts_first(const httpdown_server *server, int phase, void *user_data) {
    (void)user_data;
    if (phase != HTTPDOWN_PHASE_SERVING) return;
    CHECK(action_of(SIGINT).sa_handler == SIG_IGN);
    kill(getpid(), SIGINT);
    get(server, 200, "Hello, World!");
    kill(getpid(), SIGTERM);
}

/* A shell that is not interactive has SIGINT ignored where it starts something in the background. */
static void an_interrupt_that_was_ignored_is_ignored(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, hello);
    options.on_phase = interrupts_first;
    httpdown_stop_report report = {.struct_size = sizeof report};
    signal(SIGINT, SIG_IGN);
    EQUAL(httpdown_run(&options, &report, NULL, 0), 0);
    EQUAL(report.served, 1);
    CHECK(action_of(SIGINT).sa_handler == SIG_IGN && action_of(SIGTERM).sa_handler == SIG_DFL);
    free_fixture(f);
}

int main(int argc, char **argv) {
    (void)argc;
    tests_chosen = argv + 1;
    signal(SIGINT, SIG_DFL); /* ignored in what a shell starts in the background */
    RUN(a_signal_stops_gracefully);
    RUN(a_second_signal_cuts);
    RUN(a_stop_that_is_told_twice_cuts_nothing);
    RUN(a_second_signal_counts_after_a_pause);
    RUN(an_idle_run_ends_at_once);
    RUN(only_one_run_at_a_time);
    RUN(a_signal_to_a_child_ends_the_child_and_not_the_parents_server);
    RUN(a_signal_to_a_child_of_vfork_ends_the_child_and_not_the_parents_server);
    RUN(a_signal_to_a_child_runs_the_hosts_old_handler_there);
    RUN(a_child_ignores_what_was_ignored_before);
    RUN(a_child_forked_after_a_run_runs_beside_its_parent);
    RUN(the_handlers_of_a_run_use_the_signal_stack_and_restart_system_calls);
    RUN(a_third_signal_does_what_it_did_before);
    RUN(a_run_that_fails_restores);
    RUN(a_handler_may_end_a_run);
    RUN(our_threads_block_signals);
    RUN(a_handlers_children_hear_signals);
    RUN(a_signal_that_was_blocked_stops_the_run);
    RUN(a_signal_that_was_blocked_before_is_blocked_afterwards);
    RUN(an_interrupt_that_was_ignored_is_ignored);
    return test_end(argv[0]);
}
