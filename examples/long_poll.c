/* A value that clients watch. Who asks for a version after the last one waits until there is one: a long poll.
 *
 *     build/long_poll & curl 'http://127.0.0.1:8080/?after=0' & curl -d hello http://127.0.0.1:8080/; wait %2; kill %1
 *
 * A poll that waits takes no thread. It ends when the value changes, when its client leaves, and when the server
 * drains: then its client gets a 204, and asks again elsewhere.
 */
#include <httpdown.h>
#include <pthread.h>

#include "cli.h"

#define MAX_VALUE 1000

/* A request that waits. Whoever takes it out of the list answers it. */
typedef struct poll {
    httpdown_request *request;
    struct poll *next;
} poll;

typedef struct {
    uint64_t version;
    size_t len;
    char text[MAX_VALUE];
} value;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static poll *waiting; /* guarded by the lock, and so is the value */
static value current;

static void answer(httpdown_request *request, const value *v) {
    char version[24];
    snprintf(version, sizeof version, "%" PRIu64, v->version);
    httpdown_header headers[] = {
        {httpdown_str("content-type"), httpdown_str("text/plain")},
        {httpdown_str("version"), httpdown_str(version)},
        {httpdown_str("cache-control"), httpdown_str("no-store")},
    };
    httpdown_reply(request, 200, headers, 3, v->text, v->len); /* If the client has left, that is its own affair. */
}

/* The client has left, or the server drains. */
static void on_end(httpdown_request *request, uint32_t ready, void *user_data) {
    poll *p = user_data;
    pthread_mutex_lock(&lock);
    poll **at = &waiting;
    while (*at != NULL && *at != p) at = &(*at)->next;
    bool is_ours = *at == p;
    if (is_ours) *at = p->next;
    pthread_mutex_unlock(&lock);
    if (!is_ours) return; /* Another thread answers it just now, and waits until this function has returned. */
    if (ready & HTTPDOWN_GONE) httpdown_reply_abort(request);
    else httpdown_reply(request, 204, NULL, 0, NULL, 0);
    free(p);
}

static void watch(httpdown_request *request) {
    char after[24];
    size_t len;
    uint64_t known = 0;
    if (httpdown_query_value(httpdown_request_query(request), "after", after, sizeof after, &len) == 0)
        known = strtoull(after, NULL, 10);
    poll *p = malloc(sizeof *p);
    pthread_mutex_lock(&lock);
    if (current.version > known) {
        answer(request, &current);
    } else if (p != NULL && httpdown_request_defer(request) == 0) {
        *p = (poll){request, waiting};
        /* With the lock, so that nobody takes it out before. That it is gone is always told. */
        if (httpdown_request_notify(request, HTTPDOWN_DRAINING, on_end, p, NULL) == 0) waiting = p, p = NULL;
        else httpdown_reply_abort(request);
    } else {
        httpdown_reply_text(request, 503, "out of memory\n");
    }
    pthread_mutex_unlock(&lock);
    free(p);
}

static void change(httpdown_request *request) {
    httpdown_bytes body;
    /* A body as short as this is here already. */
    int status = httpdown_request_body(request, MAX_VALUE, HTTPDOWN_NOW, &body);
    if (status != 0) {
        httpdown_reply_text(request, status == HTTPDOWN_STATUS_TOO_LARGE ? 413 : 400, "at most 1000 bytes\n");
        return;
    }
    pthread_mutex_lock(&lock);
    current.version++;
    current.len = body.len;
    memcpy(current.text, body.data, body.len);
    value copy = current;
    poll *all = waiting;
    waiting = NULL;
    pthread_mutex_unlock(&lock);
    /* Without the lock: each answer waits for an `on_end` that runs now. */
    while (all != NULL) {
        poll *p = all;
        all = p->next;
        answer(p->request, &copy);
        free(p);
    }
    answer(request, &copy);
}

static void on_request(httpdown_request *request, void *user_data) {
    (void)user_data;
    if (httpdown_bytes_equal(httpdown_request_method(request), "GET")) watch(request);
    else change(request);
}

int main(int argc, char **argv) {
    httpdown_options options = {
        .struct_size = sizeof options,
        .addr = "127.0.0.1:8080",
        .handler = on_request,
        .on_phase = cli_on_phase,
        .on_log = cli_on_warning,
        .abort_on_close = 1,       /* Who closes while it waits has left. */
        .tcp_keepalive_ms = 60000, /* Who has vanished without a word, too. */
    };
    for (int i = 1; i < argc; i++) {
        const char *addr = cli_flag(argv, &i, "addr");
        if (addr == NULL) return fprintf(stderr, "usage: %s [-addr A]\n", argv[0]), 2;
        options.addr = addr;
    }
    char error[256];
    httpdown_stop_report report = {.struct_size = sizeof report};
    int status = httpdown_run(&options, &report, error, sizeof error); /* until TERM or INT */
    cli_print_report(&report);
    if (status != 0) fprintf(stderr, "%s: %s: %s\n", argv[0], httpdown_status_string(status), error);
    return status != 0;
}
