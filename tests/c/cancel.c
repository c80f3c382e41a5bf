/* pthread_cancel: a call ends as it would have, and the thread is cancelled when it has returned. */
#include "test.h"

typedef struct caller caller;

/* Something that blocks until `ends` has been done. */
typedef struct {
    int (*blocks)(caller *);
    void (*ends)(caller *);
    int expected;
    bool takes_first; /* from the queue, before it blocks */
} call;

struct caller {
    const call *call;
    fixture *f;
    int client;
    httpdown_request *request;
    gate begun, returned;
    int status;
};

static int takes(caller *c) {
    size_t count;
    return httpdown_next(c->f->server, HTTPDOWN_FOREVER, &c->request, 1, &count);
}

static int takes_event(caller *c) {
    httpdown_event event = {.struct_size = sizeof event};
    int status;
    do status = httpdown_next_event(c->f->server, HTTPDOWN_FOREVER, &event);
    while (status == 0);
    return status;
}

static int waits(caller *c) {
    return httpdown_wait(c->f->server, HTTPDOWN_FOREVER, NULL);
}

static int stops(caller *c) {
    return httpdown_stop(c->f->server);
}

static int runs(caller *c) {
    httpdown_options options = options_for(c->f, hello);
    options.on_phase = on_phase;
    c->f->destroyed.value--; /* it is called once more */
    return httpdown_run(&options, NULL, NULL, 0);
}

static int reads(caller *c) {
    char byte;
    size_t len;
    return httpdown_request_read(c->request, &byte, 1, HTTPDOWN_FOREVER, &len);
}

static int waits_for_cancellation(caller *c) {
    return httpdown_request_wait_cancelled(c->request, HTTPDOWN_FOREVER);
}

static int writes(caller *c) {
    static char piece[100000];
    /* The client may have left already. */
    int status = httpdown_reply_start(c->request, 200, NULL, 0);
    while (status == 0) status = httpdown_reply_write(c->request, piece, sizeof piece, HTTPDOWN_FOREVER, NULL);
    return status;
}

static void asks(caller *c) {
    put(c->client, GET("/"));
}

static void ends_the_server(caller *c) {
    EQUAL(httpdown_stop_begin(c->f->server), 0);
}

static void signals(caller *c) {
    gate_wait(&c->f->phase[HTTPDOWN_PHASE_SERVING], 1);
    kill(getpid(), SIGTERM);
}

static void sends_a_byte(caller *c) {
    put(c->client, "x");
}

static void leaves(caller *c) {
    reset(c->client);
    c->client = -1;
}

static void *calls(void *argument) {
    caller *c = argument;
    size_t count;
    if (c->call->takes_first) EQUAL(httpdown_next(c->f->server, HTTPDOWN_FOREVER, &c->request, 1, &count), 0);
    gate_add(&c->begun);
    c->status = c->call->blocks(c);
    gate_add(&c->returned);
    pthread_testcancel();
    return NULL;
}

static void check_call(const call *call) {
    gate closed = GATE;
    caller *c = calloc(1, sizeof *c);
    *c = (caller){.call = call, .f = new_fixture(), .begun = closed, .returned = closed};
    httpdown_options options = options_for(c->f, NULL);
    options.pull_events = HTTPDOWN_EVENT_PHASE;
    c->client = dial(start(&options));
    if (call->takes_first) put(c->client, "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 1\r\n\r\n");
    pthread_t thread = spawn(calls, c);
    gate_wait(&c->begun, 1);
    EQUAL(pthread_cancel(thread), 0);
    call->ends(c);
    CHECK(join(thread) == PTHREAD_CANCELED);
    EQUAL(gate_value(&c->returned), 1);
    EQUAL(c->status, call->expected);
    if (c->request != NULL) httpdown_reply_abort(c->request);
    if (c->client >= 0) close(c->client);
    end_server(c->f, 0);
    free_fixture(c->f);
    free(c);
}

static void a_call_that_blocks_is_not_cancelled(void) {
    static const call all[] = {
        {takes, asks, HTTPDOWN_STATUS_OK, false},
        {takes, ends_the_server, HTTPDOWN_STATUS_STOPPED, false},
        {takes_event, ends_the_server, HTTPDOWN_STATUS_STOPPED, false},
        {waits, ends_the_server, HTTPDOWN_STATUS_OK, false},
        {stops, ends_the_server, HTTPDOWN_STATUS_OK, false},
        {runs, signals, HTTPDOWN_STATUS_OK, false},
        {reads, sends_a_byte, HTTPDOWN_STATUS_OK, true},
        {waits_for_cancellation, leaves, HTTPDOWN_STATUS_GONE, true},
        {writes, leaves, HTTPDOWN_STATUS_GONE, true},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) check_call(&all[i]);
}

static void *frees(void *argument) {
    fixture *f = argument;
    gate_add(&f->entered);
    httpdown_free(f->server);
    gate_add(&f->left);
    pthread_testcancel();
    return NULL;
}

static void a_free_is_not_cancelled(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, slow);
    int client = dial(start(&options));
    put(client, GET("/"));
    gate_wait(&f->entered, 1);
    pthread_t thread = spawn(frees, f);
    gate_wait(&f->entered, 2);
    EQUAL(pthread_cancel(thread), 0);
    gate_add(&f->release);
    CHECK(join(thread) == PTHREAD_CANCELED);
    EQUAL(gate_value(&f->left), 2); /* the handler, and the call */
    expect(client, 200, "slow");
    close(client);
    free_fixture(f);
}

static void cancels_itself(httpdown_request *request, void *user_data) {
    (void)user_data;
    EQUAL(pthread_cancel(pthread_self()), 0);
    pthread_testcancel();
    httpdown_reply_text(request, 200, "goes on");
}

static void our_threads_cannot_be_cancelled(void) {
    static const int ways[] = {HTTPDOWN_DISPATCH_POOL, HTTPDOWN_DISPATCH_INLINE};
    for (int i = 0; i < 2; i++) {
        fixture *f = new_fixture();
        httpdown_options options = options_for(f, cancels_itself);
        options.dispatch = ways[i];
        get(start(&options), 200, "goes on");
        end_server(f, 0);
        free_fixture(f);
    }
}

/* What a thread had set is as it was, whether it may be cancelled or not. */
static void a_call_leaves_the_state_as_it_was(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, hello);
    static const int states[] = {PTHREAD_CANCEL_ENABLE, PTHREAD_CANCEL_DISABLE};
    for (int i = 0; i < 2; i++) {
        int before;
        CHECK(pthread_setcancelstate(states[i], NULL) == 0);
        if (i == 0) start(&options);
        else EQUAL(httpdown_stop(f->server), 0);
        CHECK(pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &before) == 0);
        EQUAL(before, states[i]);
    }
    end_server(f, 0);
    free_fixture(f);
}

int main(int argc, char **argv) {
    (void)argc;
    tests_chosen = argv + 1;
    RUN(a_call_that_blocks_is_not_cancelled);
    RUN(a_free_is_not_cancelled);
    RUN(our_threads_cannot_be_cancelled);
    RUN(a_call_leaves_the_state_as_it_was);
    return test_end(argv[0]);
}
