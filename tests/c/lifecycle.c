/* A server's life: served, asked, stopped, waited for, freed; and what it tells on the way. */
#include "test.h"

static void a_stop_without_a_request(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, hello);
    httpdown_server *server = start(&options);
    EQUAL(httpdown_phase(server), HTTPDOWN_PHASE_SERVING);
    CHECK(httpdown_ready(server));
    int port = port_of(server);
    EQUAL(httpdown_stop(server), 0);
    EQUAL(httpdown_phase(server), HTTPDOWN_PHASE_STOPPED);
    CHECK(!httpdown_ready(server));
    CHECK(is_refused(port));
    httpdown_stop_report report = end_server(f, 0);
    EQUAL(report.requests, 0);
    EQUAL(report.connections, 0);
    free_fixture(f);
}

static void a_free_stops(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, hello);
    httpdown_server *server = start(&options);
    int port = port_of(server);
    get(server, 200, "Hello, World!");
    httpdown_free(server);
    EQUAL(gate_value(&f->destroyed), 1);
    CHECK(is_refused(port));
    httpdown_free(NULL);
    free_fixture(f);
}

static void a_finished_request_counts_as_served(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, hello);
    httpdown_server *server = start(&options);
    get(server, 200, "Hello, World!");
    int idle = dial(server);
    put(idle, GET("/"));
    expect(idle, 200, "Hello, World!");
    httpdown_stop_report report = report_of(server);
    EQUAL(report.phase, HTTPDOWN_PHASE_SERVING);
    EQUAL(report.status, 0);
    EQUAL(report.stop_duration_ms, 0);
    EQUAL(report.connections, 2);
    UNTIL(report_of(server).conns_idle == 1 && report_of(server).conns_open == 1);
    report = end_server(f, 0);
    CHECK(is_at_end(idle));
    close(idle);
    EQUAL(report.requests, 2);
    EQUAL(report.served, 2);
    EQUAL(report.closed_idle, 1);
    EQUAL(report.conns_open, 0);
    EQUAL(report.events_dropped, 0);
    free_fixture(f);
}

/* ---- a stop while a response goes out ---- */

static void in_pieces(httpdown_request *request, void *user_data) {
    fixture *f = user_data;
    char piece[1000];
    memset(piece, 'x', sizeof piece);
    EQUAL(httpdown_reply_start(request, 200, NULL, 0), 0);
    for (int i = 0; i < 50; i++) {
        if (i == 5) {
            gate_add(&f->entered);
            gate_wait(&f->release, 1);
        }
        EQUAL(httpdown_reply_write(request, piece, sizeof piece, HTTPDOWN_FOREVER, NULL), 0);
    }
    EQUAL(httpdown_reply_finish(request), 0);
}

static void *stop_server(void *server) {
    return (void *)(intptr_t)httpdown_stop(server);
}

static void *wait_for_server(void *server) {
    httpdown_stop_report report = {.struct_size = sizeof report};
    int status = httpdown_wait(server, HTTPDOWN_FOREVER, &report);
    EQUAL(report.status, status);
    check_sums(&report);
    return (void *)(intptr_t)status;
}

static void an_active_request_is_answered_whole(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, in_pieces);
    record_all(&options);
    httpdown_server *server = start(&options);
    int port = port_of(server), fd = dial(server);
    put(fd, GET("/"));
    gate_wait(&f->entered, 1);
    pthread_t stopper = spawn(stop_server, server);
    gate_wait(&f->phase[HTTPDOWN_PHASE_DRAINING], 1);
    CHECK(is_refused(port));
    CHECK(!httpdown_ready(server));
    EQUAL(httpdown_phase(server), HTTPDOWN_PHASE_DRAINING);
    httpdown_stop_report report = report_of(server);
    EQUAL(report.conns_active, 1);
    EQUAL(report.served, 0);
    gate_add(&f->release);
    response r = take(fd);
    EQUAL(r.status, 200);
    CHECK(r.whole);
    EQUAL(r.len, 50000);
    for (size_t i = 0; i < r.len; i++) CHECK(r.body[i] == 'x');
    done(&r);
    CHECK(is_at_end(fd));
    close(fd);
    EQUAL((intptr_t)join(stopper), 0);
    report = end_server(f, 0);
    EQUAL(report.served, 1);
    EQUAL(report.killed, 0);
    free_fixture(f);
}

static void responses_after_a_stop_say_close(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, slow);
    record_all(&options);
    httpdown_server *server = start(&options);
    int fd = dial(server);
    put(fd, GET("/"));
    gate_wait(&f->entered, 1);
    EQUAL(httpdown_stop_begin(server), 0);
    EQUAL(httpdown_stop_begin(server), 0);
    gate_wait(&f->phase[HTTPDOWN_PHASE_DRAINING], 1);
    gate_add(&f->release);
    response r = take(fd);
    EQUAL(r.status, 200);
    CHECK(r.whole && header_of(&r, "connection") != NULL);
    CHECK(strcmp(header_of(&r, "connection"), "close") == 0);
    done(&r);
    CHECK(is_at_end(fd));
    close(fd);
    end_server(f, 0);
    free_fixture(f);
}

/* ---- several who stop and wait ---- */

static void all_who_stop_and_wait_get_the_same(void) {
    enum { THREADS = 6 };
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, slow);
    record_all(&options);
    httpdown_server *server = start(&options);
    pthread_t waiters[THREADS], stoppers[THREADS];
    for (int i = 0; i < THREADS; i++) waiters[i] = spawn(wait_for_server, server);
    int fd = dial(server);
    put(fd, GET("/"));
    gate_wait(&f->entered, 1);
    EQUAL(httpdown_wait(server, HTTPDOWN_NOW, NULL), HTTPDOWN_STATUS_WOULD_BLOCK);
    EQUAL(httpdown_wait(server, 0, NULL), HTTPDOWN_STATUS_WOULD_BLOCK);
    httpdown_stop_report untouched = {.struct_size = sizeof untouched, .requests = 77};
    EQUAL(httpdown_wait(server, 20, &untouched), HTTPDOWN_STATUS_WOULD_BLOCK);
    EQUAL(untouched.requests, 77);
    for (int i = 0; i < THREADS; i++) stoppers[i] = spawn(stop_server, server);
    gate_wait(&f->phase[HTTPDOWN_PHASE_DRAINING], 1);
    gate_add(&f->release);
    expect(fd, 200, "slow");
    close(fd);
    for (int i = 0; i < THREADS; i++) EQUAL((intptr_t)join(waiters[i]), 0);
    for (int i = 0; i < THREADS; i++) EQUAL((intptr_t)join(stoppers[i]), 0);
    EQUAL(httpdown_stop(server), 0);
    EQUAL(httpdown_stop(server), 0);
    wait_stat(f, HTTPDOWN_STAT_TIME, "stop.time", 1);
    EQUAL(times_stat(f, HTTPDOWN_STAT_SUM, "stop"), 1);
    end_server(f, 0);
    free_fixture(f);
}

static void a_short_report_is_enough(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, hello);
    httpdown_server *server = start(&options);
    EQUAL(httpdown_stop(server), 0);
    struct {
        httpdown_stop_report report;
        char beyond[64];
    } longer;
    memset(&longer, 0x55, sizeof longer);
    longer.report.struct_size = offsetof(httpdown_stop_report, requests);
    EQUAL(httpdown_wait(server, HTTPDOWN_FOREVER, &longer.report), 0);
    EQUAL(longer.report.phase, HTTPDOWN_PHASE_STOPPED);
    EQUAL(longer.report.requests, 0x5555555555555555);
    longer.report.struct_size = sizeof longer;
    EQUAL(httpdown_report(server, &longer.report), 0);
    EQUAL(longer.report.struct_size, sizeof longer);
    EQUAL(longer.report.requests, 0);
    for (size_t i = 0; i < sizeof longer.beyond; i++) EQUAL(longer.beyond[i], 0);
    end_server(f, 0);
    free_fixture(f);
}

static void addresses_are_told(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, hello);
    options.addr = "127.0.0.1:0, localhost:0,:0";
    httpdown_server *server = start(&options);
    char addr[64], tiny[4] = "abc";
    EQUAL(httpdown_local_addr(server, 0, addr, sizeof addr), 0);
    CHECK(strncmp(addr, "127.0.0.1:", 10) == 0);
    EQUAL(httpdown_local_addr(server, 1, addr, sizeof addr), 0);
    CHECK(strncmp(addr, "127.0.0.1:", 10) == 0);
    EQUAL(httpdown_local_addr(server, 2, addr, sizeof addr), 0);
    EQUAL(httpdown_local_addr(server, 3, addr, sizeof addr), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    EQUAL(httpdown_local_addr(server, (size_t)-1, addr, sizeof addr), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    EQUAL(httpdown_local_addr(server, 0, tiny, sizeof tiny), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    EQUAL(httpdown_local_addr(server, 0, NULL, 0), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    CHECK(strcmp(tiny, "abc") == 0); /* outputs are written only on OK */
    EQUAL(httpdown_local_addr(server, 0, addr, sizeof addr), 0);
    EQUAL(httpdown_local_addr(server, 0, addr, strlen(addr)), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    EQUAL(httpdown_local_addr(server, 0, addr, strlen(addr) + 1), 0);
    httpdown_free(server);
    free_fixture(f);
}

static void a_lame_duck_still_serves(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, hello);
    record_all(&options);
    httpdown_clock *clock = new_clock();
    options.clock = clock;
    options.lame_duck_ms = 5000;
    httpdown_server *server = start(&options);
    EQUAL(httpdown_stop_begin(server), 0);
    gate_wait(&f->phase[HTTPDOWN_PHASE_LAME_DUCK], 1);
    CHECK(!httpdown_ready(server));
    get(server, 200, "Hello, World!");
    wait_timers(clock, 2);
    advance(clock, 5000);
    httpdown_stop_report report = end_server(f, 0);
    EQUAL(report.served, 1);
    EQUAL(report.stop_duration_ms, 5000);
    for (int phase = 0; phase < 6; phase++)
        EQUAL(gate_value(&f->phase[phase]), phase != HTTPDOWN_PHASE_KILLING);
    httpdown_clock_free(clock);
    free_fixture(f);
}

/* ---- what it tells ---- */

static void connections_tell_their_states_in_order(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, hello);
    record_all(&options);
    httpdown_server *server = start(&options);
    int fd = dial(server);
    wait_told(f, HTTPDOWN_EVENT_CONN, HTTPDOWN_CONN_NEW, NULL, 1);
    put(fd, GET("/"));
    expect(fd, 200, NULL);
    wait_told(f, HTTPDOWN_EVENT_CONN, HTTPDOWN_CONN_IDLE, NULL, 1);
    put(fd, GET_CLOSE("/"));
    expect(fd, 200, NULL);
    CHECK(is_at_end(fd));
    struct sockaddr_in name;
    socklen_t len = sizeof name;
    CHECK(getsockname(fd, (struct sockaddr *)&name, &len) == 0);
    char peer[64] = "unix:";
    if (!by_unix()) snprintf(peer, sizeof peer, "127.0.0.1:%d", ntohs(name.sin_port));
    close(fd);
    wait_told(f, HTTPDOWN_EVENT_CONN, HTTPDOWN_CONN_CLOSED, NULL, 1);
    end_server(f, 0);
    static const int expected[] = {HTTPDOWN_CONN_NEW, HTTPDOWN_CONN_ACTIVE, HTTPDOWN_CONN_IDLE, HTTPDOWN_CONN_ACTIVE,
                                   HTTPDOWN_CONN_CLOSED};
    size_t next = 0;
    for (size_t i = 0; i < f->count; i++) {
        if (f->list[i].kind != HTTPDOWN_EVENT_CONN) continue;
        /* Idle for an instant between the last response and its close: that is allowed. */
        if (next == 4 && f->list[i].code == HTTPDOWN_CONN_IDLE) continue;
        CHECK(next < 5);
        EQUAL(f->list[i].code, expected[next++]);
        EQUAL(f->list[i].conn, f->list[0].conn);
        CHECK(strcmp(f->list[i].text, peer) == 0);
    }
    EQUAL(next, 5);
    free_fixture(f);
}

static void nothing_is_told_before_serving(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, hello);
    record_all(&options);
    start(&options);
    gate_wait(&f->phase[HTTPDOWN_PHASE_SERVING], 1);
    end_server(f, 0);
    static const int expected[] = {HTTPDOWN_PHASE_SERVING, HTTPDOWN_PHASE_QUIESCING, HTTPDOWN_PHASE_DRAINING,
                                   HTTPDOWN_PHASE_STOPPED};
    size_t next = 0;
    for (size_t i = 0; i < f->count; i++) {
        if (f->list[i].kind != HTTPDOWN_EVENT_PHASE) continue;
        CHECK(next < 4);
        EQUAL(f->list[i].code, expected[next++]);
    }
    EQUAL(next, 4);
    free_fixture(f);
}

static void says_addresses(httpdown_request *request, void *user_data) {
    (void)user_data;
    httpdown_bytes peer = httpdown_request_peer_addr(request), local = httpdown_request_local_addr(request);
    char text[200];
    int len = snprintf(text, sizeof text, "%.*s to %.*s", (int)peer.len, (const char *)peer.data, (int)local.len,
                       (const char *)local.data);
    httpdown_reply(request, 200, NULL, 0, text, (size_t)len);
}

/* To the kernel, they are addresses of IPv6 where the socket takes both. */
static void addresses_of_ipv4_are_shown_as_such(void) {
    static const char *const bound[] = {":0", "[::]:0", "127.0.0.1:0", "[::ffff:127.0.0.1]:0"};
    for (size_t i = 0; i < sizeof bound / sizeof *bound; i++) {
        fixture *f = new_fixture();
        httpdown_options options = options_for(f, says_addresses);
        options.addr = bound[i];
        record_all(&options);
        httpdown_server *server = start(&options);
        int fd = dial(server);
        struct sockaddr_in from;
        socklen_t len = sizeof from;
        CHECK(getsockname(fd, (struct sockaddr *)&from, &len) == 0);
        char peer[64], expected[128], own[64];
        snprintf(peer, sizeof peer, "127.0.0.1:%d", ntohs(from.sin_port));
        snprintf(expected, sizeof expected, "%s to 127.0.0.1:%d", peer, port_of(server));
        put(fd, GET("/"));
        expect(fd, 200, expected);
        wait_told(f, HTTPDOWN_EVENT_CONN, HTTPDOWN_CONN_NEW, peer, 1);
        EQUAL(times_told(f, HTTPDOWN_EVENT_CONN, -1, "ffff"), 0);
        EQUAL(httpdown_local_addr(server, 0, own, sizeof own), 0);
        CHECK(strstr(own, "ffff") == NULL);
        if (i >= 2) CHECK(strncmp(own, "127.0.0.1:", 10) == 0);
        close(fd);
        end_server(f, 0);
        free_fixture(f);
    }
}

/* Who is told of the end may end the program: nothing that was to be told is missing then. */
static void a_stop_returns_when_all_has_been_told(void) {
    for (int i = 0, count = scaled(30); i < count; i++) {
        fixture *f = new_fixture();
        httpdown_options options = options_for(f, hello);
        record_all(&options);
        httpdown_server *server = start(&options);
        EQUAL(httpdown_stop(server), 0);
        EQUAL(gate_value(&f->phase[HTTPDOWN_PHASE_STOPPED]), 1);
        EQUAL(times_stat(f, HTTPDOWN_STAT_TIME, "stop.time"), 1);
        end_server(f, 0);
        free_fixture(f);
    }
}

/* ---- destroy ---- */

static void two_servers_destroy_twice(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, hello);
    options.addr = "127.0.0.1:0";
    record_all(&options);
    httpdown_server *first = start(&options), *second = start(&options);
    CHECK(port_of(first) != port_of(second));
    get(first, 200, NULL);
    get(second, 200, NULL);
    httpdown_free(first);
    EQUAL(gate_value(&f->destroyed), 1);
    get(second, 200, NULL);
    httpdown_free(second);
    EQUAL(gate_value(&f->destroyed), 2);
    UNTIL(thread_count() == 1);
    free(f);
}

static void destroyed_once_if_serve_fails(void) {
    fixture *f = new_fixture();
    httpdown_options good = options_for(f, hello);
    record_all(&good);
    httpdown_server *holder = start(&good);
    char taken[64];
    EQUAL(httpdown_local_addr(holder, 0, taken, sizeof taken), 0);
    int not_a_socket = open("/dev/null", O_RDONLY | O_CLOEXEC), closed = dup(0);
    close(closed);

    httpdown_options failing[8];
    for (int i = 0; i < 8; i++) failing[i] = good;
    failing[0].addr = "nonsense";
    failing[1].addr = taken;
    failing[2].handler = NULL;
    failing[3].dispatch = 99;
    failing[4].pull_events = 1 << 20;
    failing[5].pull_events = HTTPDOWN_EVENT_STAT;
    failing[6].fds = &not_a_socket;
    failing[6].fd_count = 1;
    failing[7].fds = &closed;
    failing[7].fd_count = 1;
    for (int i = 0; i < 8; i++) {
        httpdown_server *server = holder;
        char error[256] = "";
        int status = httpdown_serve(&failing[i], &server, error, sizeof error);
        CHECK(status != 0);
        CHECK(server == NULL);
        CHECK(error[0] != 0);
        EQUAL(gate_value(&f->destroyed), i + 1);
    }
    /* Options that could not be read are still the caller's. */
    httpdown_options unread = good;
    unread.struct_size = 3;
    httpdown_server *server;
    EQUAL(httpdown_serve(&unread, &server, NULL, 0), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    EQUAL(gate_value(&f->destroyed), 8);
    httpdown_free(holder);
    EQUAL(gate_value(&f->destroyed), 9);
    close(not_a_socket);
    UNTIL(thread_count() == 1);
    free(f);
}

/* The data lives as long as the server, also where no callback needs it. */
static void destroyed_at_the_end_without_callbacks(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, NULL);
    httpdown_server *server = start(&options);
    int destroyed_too_early = gate_value(&f->destroyed);
    httpdown_free(server);
    EQUAL(gate_value(&f->destroyed), 1);
    EQUAL(destroyed_too_early, 0);
    free_fixture(f);
}

static void destroyed_after_the_last_callback(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, hello);
    record_all(&options);
    for (int i = 0, rounds = scaled(100); i < rounds; i++) {
        httpdown_server *server = start(&options);
        if (i % 10 == 0) get(server, 200, NULL);
        httpdown_free(server);
        size_t before = f->count;
        EQUAL(gate_value(&f->destroyed), i + 1);
        EQUAL(f->count, before);
        f->count = 0;
    }
    UNTIL(thread_count() == 1);
    free(f);
}

/* ---- statistics ---- */

static void broken(httpdown_request *request, void *user_data) {
    (void)request, (void)user_data;
}

static void all_keys_come_at_their_moments(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, slow);
    record_all(&options);
    httpdown_clock *clock = new_clock();
    options.clock = clock;
    options.stop_timeout_ms = 10000;
    options.kill_timeout_ms = 3000;
    httpdown_server *server = start(&options);
    httpdown_clock_free(clock); /* the server keeps what it needs ... */
    EQUAL(wait_stat(f, HTTPDOWN_STAT_SUM, "serve", 1), 1);
    httpdown_free(server);
    gate_wait(&f->destroyed, 1);
    EQUAL(times_stat(f, HTTPDOWN_STAT_SUM, "serve"), 1);
    EQUAL(times_stat(f, HTTPDOWN_STAT_TIME, "stop.time"), 1);
    EQUAL(times_stat(f, HTTPDOWN_STAT_HISTOGRAM, "stop.conn.count"), 1);
    EQUAL(times_stat(f, -1, "kill"), 0);
    free_fixture(f);

    f = new_fixture();
    clock = new_clock();
    options.user_data = f;
    options.clock = clock;
    server = start(&options);
    /* One new, one active, one idle; one closed. */
    wait_timers(clock, 1);
    int fresh = dial(server), active = dial(server);
    wait_told(f, HTTPDOWN_EVENT_CONN, HTTPDOWN_CONN_NEW, NULL, 2);
    put(active, GET("/"));
    gate_wait(&f->entered, 1);
    wait_told(f, HTTPDOWN_EVENT_CONN, HTTPDOWN_CONN_ACTIVE, NULL, 1);
    advance(clock, 59999);
    EQUAL(times_stat(f, HTTPDOWN_STAT_AVG, NULL), 0);
    advance(clock, 1);
    EQUAL(wait_stat(f, HTTPDOWN_STAT_AVG, "http-state.total", 1), 2);
    EQUAL(wait_stat(f, HTTPDOWN_STAT_AVG, "http-state.new", 1), 1);
    EQUAL(wait_stat(f, HTTPDOWN_STAT_AVG, "http-state.active", 1), 1);
    EQUAL(wait_stat(f, HTTPDOWN_STAT_AVG, "http-state.idle", 1), 0);
    /* In this order. */
    static const char *const order[] = {"http-state.new", "http-state.active", "http-state.idle", "http-state.total"};
    size_t next = 0;
    for (size_t i = 0; i < f->count; i++)
        if (f->list[i].kind == HTTPDOWN_EVENT_STAT && f->list[i].code == HTTPDOWN_STAT_AVG)
            CHECK(next < 4 && strcmp(f->list[i].text, order[next++]) == 0);
    EQUAL(next, 4);
    close(fresh);
    EQUAL(wait_stat(f, HTTPDOWN_STAT_SUM, "conn.closed", 1), 1);
    wait_timers(clock, 1);
    advance(clock, 60000);
    EQUAL(wait_stat(f, HTTPDOWN_STAT_AVG, "http-state.total", 2), 1);

    /* The stop, the kill, the end. */
    EQUAL(httpdown_stop_begin(server), 0);
    gate_wait(&f->phase[HTTPDOWN_PHASE_DRAINING], 1);
    EQUAL(wait_stat(f, HTTPDOWN_STAT_HISTOGRAM, "stop.conn.count", 1), 1);
    EQUAL(times_stat(f, HTTPDOWN_STAT_SUM, "kill"), 0);
    wait_timers(clock, 2);
    advance(clock, 10000);
    gate_wait(&f->phase[HTTPDOWN_PHASE_KILLING], 1);
    EQUAL(wait_stat(f, HTTPDOWN_STAT_SUM, "kill.conn.count", 1), 1);
    EQUAL(times_stat(f, HTTPDOWN_STAT_SUM, "kill.timeout"), 0);
    EQUAL(times_stat(f, HTTPDOWN_STAT_TIME, "kill.time"), 0);
    wait_timers(clock, 2);
    advance(clock, 3000);
    EQUAL(httpdown_wait(server, HTTPDOWN_FOREVER, NULL), HTTPDOWN_STATUS_TIMED_OUT);
    EQUAL(wait_stat(f, HTTPDOWN_STAT_SUM, "kill.timeout", 1), 1);
    EQUAL(wait_stat(f, HTTPDOWN_STAT_TIME, "kill.time", 1), 3);
    EQUAL(wait_stat(f, HTTPDOWN_STAT_TIME, "stop.time", 1), 13);
    EQUAL(wait_stat(f, HTTPDOWN_STAT_SUM, "conn.closed", 2), 1);
    close(active);
    gate_add(&f->release);
    httpdown_free(server);
    gate_wait(&f->destroyed, 1);
    httpdown_clock_free(clock);
    free_fixture(f);

    /* What goes wrong: a handler, an address. */
    f = new_fixture();
    options = options_for(f, broken);
    record_all(&options);
    server = start(&options);
    get(server, 500, NULL);
    EQUAL(wait_stat(f, HTTPDOWN_STAT_SUM, "handler.error", 1), 1);
    CHECK(times_told(f, HTTPDOWN_EVENT_LOG, HTTPDOWN_LOG_ERROR, NULL) >= 1);
    end_server(f, 0);
    free_fixture(f);
}

static void a_failed_listen_is_counted(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, hello);
    httpdown_server *server = start(&options), *second = NULL;
    char taken[64];
    EQUAL(httpdown_local_addr(server, 0, taken, sizeof taken), 0);
    fixture *g = new_fixture();
    httpdown_options again = options_for(g, hello);
    record_all(&again);
    again.addr = taken;
    EQUAL(httpdown_serve(&again, &second, NULL, 0), HTTPDOWN_STATUS_ADDR_IN_USE);
    EQUAL(gate_value(&g->destroyed), 1);
    EQUAL(times_stat(g, HTTPDOWN_STAT_SUM, "listen.error"), 1);
    free(g);
    httpdown_free(server);
    free_fixture(f);
}

static void a_listening_socket_that_fails_ends_the_server(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, slow);
    record_all(&options);
    struct sockaddr_in addr = {.sin_family = AF_INET};
    addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(bind(fd, (struct sockaddr *)&addr, sizeof addr) == 0 && listen(fd, 16) == 0);
    int copy = dup(fd);
    options.addr = NULL;
    options.fds = &fd;
    options.fd_count = 1;
    httpdown_server *server = start(&options);
    int client = dial(server);
    put(client, GET("/"));
    gate_wait(&f->entered, 1);
    CHECK(shutdown(copy, SHUT_RD) == 0); /* accept(2) then fails for good */
    gate_wait(&f->phase[HTTPDOWN_PHASE_DRAINING], 1);
    gate_add(&f->release);
    expect(client, 200, "slow"); /* what is there is still finished */
    close(client);
    EQUAL(httpdown_wait(server, HTTPDOWN_FOREVER, NULL), HTTPDOWN_STATUS_IO);
    end_server(f, HTTPDOWN_STATUS_IO);
    CHECK(times_told(f, HTTPDOWN_EVENT_LOG, HTTPDOWN_LOG_ERROR, "serving failed") == 1);
    EQUAL(times_stat(f, HTTPDOWN_STAT_SUM, "stop"), 0);
    close(copy);
    free_fixture(f);
}

/* The library's own copy of a listening socket, found by its port. */
static int listening_fd(int port) {
    for (int fd = 3; fd < 256; fd++) {
        struct sockaddr_in addr;
        socklen_t len = sizeof addr;
        int listens = 0;
        if (getsockname(fd, (struct sockaddr *)&addr, &len) != 0 || ntohs(addr.sin_port) != port) continue;
        len = sizeof listens;
        if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &len) == 0 && listens) return fd;
    }
    return -1;
}

static void a_close_that_fails_is_told(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, hello);
    options.addr = "127.0.0.1:0";
    record_all(&options);
    httpdown_server *server = start(&options);
    get(server, 200, NULL);
    int fd = listening_fd(port_of(server));
    CHECK(fd >= 0);
    CHECK(dup3(STDIN_FILENO, fd, O_CLOEXEC) == fd); /* its number now means something else */
    end_server(f, HTTPDOWN_STATUS_IO);
    EQUAL(wait_stat(f, HTTPDOWN_STAT_SUM, "listener.close.error", 1), 1);
    CHECK(fcntl(fd, F_GETFD) >= 0); /* not ours, so not ours to close */
    close(fd);
    free_fixture(f);
}

/* ---- a callback that takes its time ---- */

typedef struct {
    fixture base; /* first: the callbacks of test.h see only this */
    gate in_callback, callback_may_go;
} patient;

static void stuck_sum(const char *key, double value, void *user_data) {
    patient *p = user_data;
    (void)value;
    if (strcmp(key, "serve") != 0) return;
    gate_add(&p->in_callback);
    gate_wait(&p->callback_may_go, 1);
}

static void a_callback_that_blocks_delays_nothing(void) {
    patient *p = calloc(1, sizeof *p);
    fixture *fresh = new_fixture();
    gate closed = GATE;
    p->base = *fresh;
    free(fresh);
    p->in_callback = p->callback_may_go = closed;
    httpdown_options options = options_for(&p->base, hello);
    record_all(&options);
    options.stats.bump_sum = stuck_sum;
    httpdown_server *server = start(&options);
    gate_wait(&p->in_callback, 1);
    for (int i = 0; i < 10; i++) get(server, 200, "Hello, World!");
    EQUAL(httpdown_stop(server), 0); /* while the callback still blocks */
    EQUAL(gate_value(&p->base.destroyed), 0);
    EQUAL(gate_value(&p->base.phase[HTTPDOWN_PHASE_STOPPED]), 0);
    gate_add(&p->callback_may_go);
    end_server(&p->base, 0);
    EQUAL(gate_value(&p->base.phase[HTTPDOWN_PHASE_STOPPED]), 1);
    UNTIL(thread_count() == 1);
    free(p);
}

/* ---- threads ---- */

static void no_thread_is_left(void) {
    EQUAL(thread_count(), 1);
    for (int dispatch = 0; dispatch <= 2; dispatch++) {
        fixture *f = new_fixture();
        httpdown_options options = options_for(f, dispatch == HTTPDOWN_DISPATCH_QUEUE ? NULL : hello);
        record_all(&options);
        options.dispatch = dispatch;
        options.io_threads = 3;
        httpdown_server *server = start(&options);
        CHECK(thread_count() >= 5);
        if (dispatch != HTTPDOWN_DISPATCH_QUEUE)
            for (int i = 0; i < 5; i++) get(server, 200, NULL);
        httpdown_free(server);
        free_fixture(f); /* waits for it */
    }
}

static void descriptors_that_listen_are_taken_over(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, hello);
    int fds[3], ports[3];
    for (int i = 0; i < 3; i++) {
        struct sockaddr_in addr = {.sin_family = AF_INET};
        addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        socklen_t len = sizeof addr;
        fds[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        CHECK(bind(fds[i], (struct sockaddr *)&addr, len) == 0 && listen(fds[i], 16) == 0);
        CHECK(getsockname(fds[i], (struct sockaddr *)&addr, &len) == 0);
        ports[i] = ntohs(addr.sin_port);
    }
    int before = fd_count();
    options.fds = fds;
    options.fd_count = 3;
    httpdown_server *server = start(&options);
    for (int i = 0; i < 4; i++) {
        char addr[64];
        EQUAL(httpdown_local_addr(server, (size_t)i, addr, sizeof addr), 0);
        if (i < 3) EQUAL(atoi(strrchr(addr, ':') + 1), ports[i]); /* fds first, then addr */
        int fd = connect_to(atoi(strrchr(addr, ':') + 1));
        CHECK(fd >= 0);
        put(fd, GET_CLOSE("/"));
        expect(fd, 200, NULL);
        close(fd);
    }
    httpdown_free(server);
    EQUAL(fd_count(), before - 3);
    for (int i = 0; i < 3; i++) {
        CHECK(fcntl(fds[i], F_GETFD) < 0 && errno == EBADF);
        CHECK(is_refused(ports[i]));
    }
    free_fixture(f);
}

static void a_shared_descriptor_goes_on(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, hello);
    struct sockaddr_in addr = {.sin_family = AF_INET};
    addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t len = sizeof addr;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(bind(fd, (struct sockaddr *)&addr, len) == 0 && listen(fd, 16) == 0);
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    options.addr = NULL;
    options.fds = &fd;
    options.fd_count = 1;
    options.fds_shared = 1;
    httpdown_server *server = start(&options);
    get(server, 200, NULL);
    int port = port_of(server);
    httpdown_free(server);
    int client = connect_to(port); /* the other holder still listens */
    CHECK(client >= 0);
    int accepted = accept(copy, NULL, NULL);
    CHECK(accepted >= 0);
    close(accepted);
    close(client);
    close(copy);
    free_fixture(f);
}

static void two_servers_can_have_one_port(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, hello);
    options.addr = "127.0.0.1:0";
    options.reuse_port = 1;
    httpdown_server *one = start(&options), *two;
    char addr[64];
    EQUAL(httpdown_local_addr(one, 0, addr, sizeof addr), 0);
    options.addr = addr;
    options.destroy = NULL; /* once is enough */
    EQUAL(httpdown_serve(&options, &two, NULL, 0), 0);
    options.reuse_port = 0;
    httpdown_server *three;
    EQUAL(httpdown_serve(&options, &three, NULL, 0), HTTPDOWN_STATUS_ADDR_IN_USE);
    EQUAL(httpdown_stop(two), 0);
    for (int i = 0; i < 20; i++) get(one, 200, NULL);
    httpdown_free(two);
    httpdown_free(one);
    free_fixture(f);
}

int main(int argc, char **argv) {
    (void)argc;
    tests_chosen = argv + 1;
    RUN(a_stop_without_a_request);
    RUN(a_free_stops);
    RUN(a_finished_request_counts_as_served);
    RUN(an_active_request_is_answered_whole);
    RUN(responses_after_a_stop_say_close);
    RUN(all_who_stop_and_wait_get_the_same);
    RUN(a_short_report_is_enough);
    RUN(addresses_are_told);
    RUN(a_lame_duck_still_serves);
    RUN(connections_tell_their_states_in_order);
    RUN(nothing_is_told_before_serving);
    RUN(a_stop_returns_when_all_has_been_told);
    RUN(addresses_of_ipv4_are_shown_as_such);
    RUN(two_servers_destroy_twice);
    RUN(destroyed_once_if_serve_fails);
    RUN(destroyed_at_the_end_without_callbacks);
    RUN(destroyed_after_the_last_callback);
    RUN(all_keys_come_at_their_moments);
    RUN(a_failed_listen_is_counted);
    RUN(a_listening_socket_that_fails_ends_the_server);
    RUN(a_close_that_fails_is_told);
    RUN(a_callback_that_blocks_delays_nothing);
    RUN(no_thread_is_left);
    RUN(descriptors_that_listen_are_taken_over);
    RUN(a_shared_descriptor_goes_on);
    RUN(two_servers_can_have_one_port);
    return test_end(argv[0]);
}
