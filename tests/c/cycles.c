/* Served, stopped and freed a thousand times: nothing grows. */
#include "test.h"

static long resident_kib(void) {
    FILE *status = fopen("/proc/self/status", "r");
    char line[256];
    long kib = -1;
    CHECK(status != NULL);
    while (fgets(line, sizeof line, status) != NULL)
        if (sscanf(line, "VmRSS: %ld kB", &kib) == 1) break;
    fclose(status);
    return kib;
}

static void cycle(int number) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, hello);
    if (number % 3 == 0) record_all(&options);
    options.dispatch = number % 2;
    httpdown_server *server = start(&options);
    if (number % 10 == 0) get(server, 200, "Hello, World!");
    if (number % 5 == 0) EQUAL(httpdown_stop(server), 0);
    httpdown_free(server);
    EQUAL(gate_value(&f->destroyed), 1);
    free(f);
}

static void a_thousand_cycles_leave_nothing(void) {
    int rounds = scaled(1000);
    for (int i = 0; i < rounds / 4; i++) cycle(i); /* until allocators and thread stacks have what they keep */
    UNTIL(thread_count() == 1);
    int fds = fd_count();
    long before = resident_kib();
    for (int i = 0; i < rounds; i++) cycle(i);
    UNTIL(thread_count() == 1);
    EQUAL(fd_count(), fds);
    long growth = resident_kib() - before;
    if (growth > 2048) fprintf(stderr, "%d cycles cost %ld KiB\n", rounds, growth);
    CHECK(growth <= 2048);
}

static void *serves_and_stops(void *argument) {
    for (int i = 0; i < *(int *)argument; i++) {
        fixture *f = new_fixture();
        httpdown_options options = options_for(f, hello);
        httpdown_server *server = start(&options);
        for (int j = 0; j < 3; j++) get(server, 200, "Hello, World!");
        end_server(f, 0);
        free(f);
    }
    return NULL;
}

static void servers_do_not_disturb_each_other(void) {
    int rounds = scaled(50);
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) threads[i] = spawn(serves_and_stops, &rounds);
    for (int i = 0; i < 4; i++) join(threads[i]);
    UNTIL(thread_count() == 1);
}

/* Connected, sent, and never answered: a connection of the accept queue that was not taken over. */
static int lost;

/* A stop at any moment while clients come: each of them is answered whole, or refused before it has sent anything. */
static void *asks_until_refused(void *argument) {
    int port = *(int *)argument;
    intptr_t answered = 0;
    for (;;) {
        int fd = connect_to(port);
        if (fd < 0) {
            CHECK(errno == ECONNREFUSED || errno == ECONNRESET);
            return (void *)answered;
        }
        ssize_t sent = send(fd, GET_CLOSE("/"), strlen(GET_CLOSE("/")), MSG_NOSIGNAL);
        response r = take(fd);
        if (sent > 0 && r.status == 200) {
            CHECK(r.whole && strcmp(r.body, "Hello, World!") == 0);
            answered++;
        } else if (sent > 0) {
            __atomic_add_fetch(&lost, 1, __ATOMIC_RELAXED);
        }
        done(&r);
        close(fd);
    }
}

static void stop_under_load(void) {
    for (int round = 0, rounds = scaled(10); round < rounds; round++) {
        fixture *f = new_fixture();
        httpdown_options options = options_for(f, hello);
        options.dispatch = round % 2;
        httpdown_server *server = start(&options);
        int port = port_of(server);
        pthread_t clients[4];
        for (int i = 0; i < 4; i++) clients[i] = spawn(asks_until_refused, &port);
        UNTIL(report_of(server).served > (uint64_t)round * 3);
        httpdown_stop_report report = {.struct_size = sizeof report};
        EQUAL(httpdown_stop(server), 0);
        EQUAL(httpdown_wait(server, HTTPDOWN_NOW, &report), 0);
        check_sums(&report);
        EQUAL(report.killed + report.failed + report.gone, 0);
        intptr_t answered = 0;
        for (int i = 0; i < 4; i++) answered += (intptr_t)join(clients[i]);
        EQUAL(answered, report.served);
        httpdown_free(server);
        EQUAL(gate_value(&f->destroyed), 1);
        free(f);
    }
}

static void stops_under_load_lose_nothing_and_count_right(void) {
    stop_under_load();
    if (lost > 0) fprintf(stderr, "%d requests were lost by the stops\n", lost);
    EQUAL(lost, 0);
}

int main(int argc, char **argv) {
    (void)argc;
    tests_chosen = argv + 1;
    RUN(a_thousand_cycles_leave_nothing);
    RUN(servers_do_not_disturb_each_other);
    RUN(stops_under_load_lose_nothing_and_count_right);
    return test_end(argv[0]);
}
