/* A stream of events for each client: one thread sends to all of them, and a client that is slow holds up nobody.
 *
 *     build/events & curl -N http://127.0.0.1:8080/ & sleep 3; kill %1; wait
 *
 * A stream ends when its client leaves, and when the server drains: then its client can go on elsewhere.
 */
#define _POSIX_C_SOURCE 200809L
#include <httpdown.h>
#include <pthread.h>
#include <time.h>
#include <unistd.h>

#include "cli.h"

/* Only the sender uses its request. */
typedef struct stream {
    httpdown_request *request;
    struct stream *next;
    bool ends; /* guarded by the lock */
    char rest[64]; /* of an event that there was no room for */
    size_t rest_len;
} stream;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed;
static stream *arrived; /* guarded by the lock: streams that the sender does not know yet */
static bool stopped;    /* guarded by the lock */

/* The client has left, or the server drains. The sender ends the stream: to end it here would be allowed, but the sender
 * may be using it. */
static void on_end(httpdown_request *request, uint32_t ready, void *user_data) {
    (void)request, (void)ready;
    stream *s = user_data;
    pthread_mutex_lock(&lock);
    s->ends = true;
    pthread_cond_signal(&changed);
    pthread_mutex_unlock(&lock);
}

static void on_request(httpdown_request *request, void *user_data) {
    (void)user_data;
    stream *s = calloc(1, sizeof *s);
    if (s == NULL) {
        httpdown_reply_text(request, 503, "out of memory\n");
        return;
    }
    s->request = request;
    httpdown_header headers[] = {
        {httpdown_str("content-type"), httpdown_str("text/event-stream")},
        {httpdown_str("cache-control"), httpdown_str("no-store")},
    };
    if (httpdown_reply_start(request, 200, headers, 2) != 0) {
        free(s);
        return;
    }
    if (httpdown_request_notify(request, HTTPDOWN_DRAINING, on_end, s, NULL) != 0) s->ends = true;
    pthread_mutex_lock(&lock);
    s->next = arrived;
    arrived = s;
    pthread_cond_signal(&changed);
    pthread_mutex_unlock(&lock);
}

/* Takes what is to end out of the list, and puts in what has arrived. Returns what is to end. */
static stream *update(stream **streams) {
    stream *ended = NULL;
    for (stream **at = streams; *at != NULL;) {
        stream *s = *at;
        if (!s->ends) {
            at = &s->next;
            continue;
        }
        *at = s->next;
        s->next = ended;
        ended = s;
    }
    while (arrived != NULL) {
        stream *s = arrived;
        arrived = s->next;
        s->next = *streams;
        *streams = s;
    }
    return ended;
}

/* Sends what there is room for, and keeps the rest. */
static void send_bytes(stream *s, const char *bytes, size_t len) {
    size_t taken = 0;
    /* An error is no concern here: that the client has gone is told, too. */
    if (httpdown_reply_write(s->request, bytes, len, HTTPDOWN_NOW, &taken) != 0) taken = 0;
    s->rest_len = len - taken;
    memmove(s->rest, bytes + taken, s->rest_len);
}

/* A client that has no room for the last event yet misses this one. */
static void send_to_all(stream *streams, uint64_t number) {
    char event[sizeof streams->rest];
    int len = snprintf(event, sizeof event, "id: %" PRIu64 "\ndata: tick\n\n", number);
    for (stream *s = streams; s != NULL; s = s->next) {
        if (s->rest_len > 0) send_bytes(s, s->rest, s->rest_len);
        if (s->rest_len == 0) send_bytes(s, event, (size_t)len);
    }
}

static void *sender(void *argument) {
    uint32_t interval_ms = *(uint32_t *)argument;
    stream *streams = NULL;
    uint64_t number = 0;
    struct timespec next;
    clock_gettime(CLOCK_MONOTONIC, &next);
    for (;;) {
        pthread_mutex_lock(&lock);
        int waited = 0;
        stream *ended = update(&streams);
        while (ended == NULL && waited == 0 && !stopped) {
            waited = pthread_cond_timedwait(&changed, &lock, &next);
            ended = update(&streams);
        }
        bool is_last = stopped;
        pthread_mutex_unlock(&lock);
        /* Without the lock: this waits for a callback that runs now, and that may be waiting for the lock. */
        while (ended != NULL) {
            stream *s = ended;
            ended = s->next;
            if (s->rest_len > 0) send_bytes(s, s->rest, s->rest_len);
            if (s->rest_len == 0) send_bytes(s, "event: end\ndata:\n\n", 18);
            httpdown_reply_finish(s->request);
            free(s);
        }
        if (is_last) break;
        if (waited == 0) continue;
        send_to_all(streams, ++number);
        next.tv_nsec += interval_ms % 1000 * 1000000L;
        next.tv_sec += interval_ms / 1000 + next.tv_nsec / 1000000000L;
        next.tv_nsec %= 1000000000L;
    }
    return NULL;
}

int main(int argc, char **argv) {
    uint32_t interval_ms = 1000;
    httpdown_options options = {
        .struct_size = sizeof options,
        .addr = "127.0.0.1:8080",
        .handler = on_request,
        .dispatch = HTTPDOWN_DISPATCH_INLINE,
        .on_phase = cli_on_phase,
        .on_log = cli_on_warning,
        .stop_timeout_ms = 10000,
    };
    for (int i = 1; i < argc; i++) {
        const char *value;
        if ((value = cli_flag(argv, &i, "addr"))) options.addr = value;
        else if ((value = cli_flag(argv, &i, "interval"))) interval_ms = cli_timeout(argv[0], value);
        else return fprintf(stderr, "usage: %s [-addr A] [-interval D]\n", argv[0]), 2;
    }
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_t thread;
    if (pthread_create(&thread, NULL, sender, &interval_ms) != 0) return perror(argv[0]), 1;

    char error[256];
    httpdown_stop_report report = {.struct_size = sizeof report};
    int status = httpdown_run(&options, &report, error, sizeof error); /* until TERM or INT */

    pthread_mutex_lock(&lock);
    stopped = true;
    pthread_cond_signal(&changed);
    pthread_mutex_unlock(&lock);
    pthread_join(thread, NULL);
    pthread_cond_destroy(&changed);
    cli_print_report(&report);
    if (status != 0) fprintf(stderr, "%s: %s: %s\n", argv[0], httpdown_status_string(status), error);
    return status != 0;
}
