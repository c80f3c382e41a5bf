/* Everything at once, from many threads, for ThreadSanitizer: serving, stopping, waiting, killing, freeing, answers from
 * other threads, takers of the queue, callbacks. What the host shares between its handler, its threads and the callbacks
 * is plain memory, handed over in the ways that the header allows: a report means that the library does not order them.
 */
#include "../c/test.h"

typedef struct {
    fixture base;
    long plain_destroyed;          /* written by destroy, read after free */
    long plain_stats, plain_conns; /* written by the callbacks (one thread), read after free */
    httpdown_server *server;
    gate go;
} shared;

static void plain_destroy(void *user_data) {
    shared *s = user_data;
    s->plain_destroyed = s->plain_stats + s->plain_conns + 1;
    gate_add(&s->base.destroyed);
}

static void plain_stat(const char *key, double value, void *user_data) {
    ((shared *)user_data)->plain_stats += key[0] != 0 && value >= 0;
}

static void plain_conn(const httpdown_server *server, uint64_t id, int state, const char *peer, void *user_data) {
    shared *s = user_data;
    s->plain_conns += server != NULL && id < 1000000 && state >= 0 && peer[0] != 0;
}

/* What a handler writes before it hands a request over, the other thread reads: the hand-over is the order. */
typedef struct {
    httpdown_request *request;
    long plain;
} errand;

static void *answers_later(void *argument) {
    errand *e = argument;
    char text[32];
    snprintf(text, sizeof text, "%ld", ++e->plain);
    (void)httpdown_reply_text(e->request, 200, text);
    free(e);
    return NULL;
}

static void *streams_later(void *argument) {
    errand *e = argument;
    static const char piece[20000];
    if (httpdown_reply_start(e->request, 200, NULL, 0) != 0) httpdown_reply_abort(e->request);
    else {
        for (int i = 0; i < 20; i++)
            if (httpdown_reply_write(e->request, piece, sizeof piece, HTTPDOWN_FOREVER, NULL) != 0) break;
        httpdown_reply_finish(e->request);
    }
    free(e);
    return NULL;
}

static void release_plain(void *user_data) {
    free(user_data);
}

static void handler(httpdown_request *request, void *user_data) {
    shared *s = user_data;
    httpdown_bytes path = httpdown_request_path(request), body;
    CHECK(s != NULL);
    if (path.len < 2) {
        httpdown_reply_text(request, 200, "Hello, World!");
        return;
    }
    switch (path.data[1]) {
    case 'b': /* the body */
        if (httpdown_request_body(request, 1000, HTTPDOWN_FOREVER, &body) == 0) httpdown_reply(request, 200, NULL, 0, body.data, body.len);
        break;
    case 'l': { /* lent memory, written by this thread and freed by whichever releases it */
        char *lent = malloc(50000);
        memset(lent, 'l', 50000);
        (void)httpdown_reply_borrowed(request, 200, NULL, 0, lent, 50000, release_plain, lent);
        break;
    }
    case 'w': /* waits for the end */
        if (httpdown_request_wait_cancelled(request, 20) != HTTPDOWN_STATUS_WOULD_BLOCK) break;
        httpdown_reply_text(request, 200, "waited");
        break;
    default: {
        errand *e = malloc(sizeof *e);
        e->request = request;
        e->plain = 41;
        if (httpdown_request_defer(request) == 0)
            pthread_detach(spawn(path.data[1] == 's' ? streams_later : answers_later, e));
        else free(e);
    }
    }
}

static void *client(void *argument) {
    shared *s = argument;
    static const char *const requests[] = {
        GET("/"), GET("/later"), GET("/stream"), GET("/wait"), GET("/lent"),
        "POST /body HTTP/1.1\r\nhost: test\r\ncontent-length: 5\r\n\r\nabcde",
    };
    static int turn;
    int port = port_of(s->server), mine = __atomic_fetch_add(&turn, 1, __ATOMIC_RELAXED);
    gate_add(&s->go);
    for (int i = 0; i < 40; i++) {
        int fd = connect_to(port);
        if (fd < 0) break;
        for (int j = 0; j < 3; j++) {
            const char *request = requests[(mine + i + j) % 6];
            if (send(fd, request, strlen(request), MSG_NOSIGNAL) < 0) break;
            if ((mine + i) % 7 == 0) {
                reset(fd);
                fd = -1;
                break;
            }
            response r = take(fd);
            bool whole = r.whole;
            done(&r);
            if (!whole) break;
        }
        if (fd >= 0) close(fd);
    }
    return NULL;
}

static void *stopper(void *argument) {
    int status = httpdown_stop(((shared *)argument)->server);
    return (void *)(intptr_t)status;
}

static void *killer(void *argument) {
    (void)httpdown_kill_begin(((shared *)argument)->server);
    return NULL;
}

static void *waiter(void *argument) {
    httpdown_stop_report report = {.struct_size = sizeof report};
    int status = httpdown_wait(((shared *)argument)->server, HTTPDOWN_FOREVER, &report);
    check_sums(&report);
    return (void *)(intptr_t)status;
}

static void *asker(void *argument) {
    shared *s = argument;
    while (httpdown_phase(s->server) != HTTPDOWN_PHASE_STOPPED) {
        (void)report_of(s->server);
        (void)httpdown_ready(s->server);
        if (httpdown_wait(s->server, 1, NULL) != HTTPDOWN_STATUS_WOULD_BLOCK) return NULL;
    }
    return NULL;
}

static void *taker(void *argument) {
    shared *s = argument;
    for (;;) {
        httpdown_request *requests[3];
        size_t count;
        if (httpdown_next(s->server, HTTPDOWN_FOREVER, requests, 3, &count) != 0) return NULL;
        for (size_t i = 0; i < count; i++) {
            if (i == 0) httpdown_reply_text(requests[i], 200, "taken");
            else {
                errand *e = malloc(sizeof *e);
                e->request = requests[i];
                e->plain = 41;
                join(spawn(i == 1 ? answers_later : streams_later, e));
            }
        }
    }
}

static void *puller(void *argument) {
    httpdown_event event = {.struct_size = sizeof event};
    while (httpdown_next_event(((shared *)argument)->server, HTTPDOWN_FOREVER, &event) == 0) {}
    return NULL;
}

static void one_round(int dispatch, bool kills, bool pulls) {
    enum { CLIENTS = 4, TAKERS = 3, OTHERS = 6 };
    shared *s = calloc(1, sizeof *s);
    fixture *fresh = new_fixture();
    s->base = *fresh;
    free(fresh);
    s->go = (gate)GATE;
    httpdown_options options = {
        .struct_size = sizeof options,
        .addr = "127.0.0.1:0",
        .handler = dispatch == HTTPDOWN_DISPATCH_QUEUE ? NULL : handler,
        .dispatch = dispatch,
        .user_data = s,
        .destroy = plain_destroy,
        .pull_events = pulls ? 15 : 0,
    };
    if (!pulls) {
        options.stats.bump_sum = options.stats.bump_time = options.stats.bump_histogram = plain_stat;
        options.on_conn_state = plain_conn;
    }
    EQUAL(httpdown_serve(&options, &s->server, NULL, 0), 0);
    pthread_t clients[CLIENTS], takers[TAKERS], others[OTHERS];
    for (int i = 0; i < CLIENTS; i++) clients[i] = spawn(client, s);
    for (int i = 0; i < TAKERS && dispatch == HTTPDOWN_DISPATCH_QUEUE; i++) takers[i] = spawn(taker, s);
    gate_wait(&s->go, CLIENTS);
    UNTIL(report_of(s->server).served > 20);
    others[0] = spawn(waiter, s);
    others[1] = spawn(asker, s);
    others[2] = spawn(stopper, s);
    others[3] = spawn(kills ? killer : stopper, s);
    others[4] = spawn(pulls ? puller : waiter, s);
    others[5] = spawn(waiter, s);
    int status = httpdown_stop(s->server);
    CHECK(status == 0 || (kills && status == HTTPDOWN_STATUS_KILLED));
    for (int i = 0; i < OTHERS; i++) join(others[i]);
    for (int i = 0; i < TAKERS && dispatch == HTTPDOWN_DISPATCH_QUEUE; i++) join(takers[i]);
    httpdown_free(s->server);
    gate_wait(&s->base.destroyed, 1);
    if (!pulls) CHECK(s->plain_destroyed == s->plain_stats + s->plain_conns + 1);
    for (int i = 0; i < CLIENTS; i++) join(clients[i]);
    UNTIL(thread_count() <= 2); /* ThreadSanitizer has one of its own */
    free(s);
}

int main(void) {
    alarm(300);
    for (int round = 0; round < 3; round++)
        for (int dispatch = 0; dispatch <= 2; dispatch++)
            for (int way = 0; way < 4; way++) one_round(dispatch, (way & 1) != 0, (way & 2) != 0);
    printf("stop: 36 rounds\n");
    return 0;
}
