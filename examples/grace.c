/* Three servers in one program, which stop and restart together and lose no request: the demo of Facebook's grace, in C.
 *
 *     build/grace & curl 'http://localhost:48567/sleep/?duration=5s' & sleep 1; kill -USR2 %1; wait
 *
 * The signal starts the program anew. The new process takes over the sockets, and the old one answers what it has begun:
 * the answer says from which process it is. `make demo-restart` shows more of it.
 *
 * A request that sleeps takes no thread: each server has one thread, which takes requests from the server's queue, and
 * answers those whose time has come.
 */
#define _POSIX_C_SOURCE 200809L
#include <httpdown.h>
#include <pthread.h>
#include <signal.h>
#include <time.h>

#include "cli.h"

#define COUNT 3

/* A request that sleeps. */
typedef struct sleeper {
    httpdown_request *request;
    uint32_t ms;
    int64_t due; /* on the clock of now_ms */
    struct sleeper *next;
} sleeper;

typedef struct {
    const char *name;
    const httpdown_server *server;
    pthread_t thread;
    bool has_thread;
    sleeper *first; /* the next one to wake; only its thread knows the list */
} service;

static char started_at[128];

static int64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* The time, as Go prints it. */
static void write_time(char *text, size_t size) {
    struct timespec now;
    struct tm parts;
    char date[32], zone[32];
    clock_gettime(CLOCK_REALTIME, &now);
    localtime_r(&now.tv_sec, &parts);
    strftime(date, sizeof date, "%Y-%m-%d %H:%M:%S", &parts);
    strftime(zone, sizeof zone, "%z %Z", &parts);
    snprintf(text, size, "%s.%03ld %s", date, now.tv_nsec / 1000000, zone);
}

static void answer(const service *s, const sleeper *p) {
    char line[300];
    uint64_t ns = p->ms * UINT64_C(1000000);
    snprintf(line, sizeof line, "%-6s started at %s slept for %" PRIu64 " nanoseconds from pid %d.\n", s->name,
             started_at, ns, getpid());
    httpdown_reply_text(p->request, 200, line); /* If the client has left, that is its own affair. */
}

/* Lets a new request sleep, or refuses it. */
static void begin(service *s, httpdown_request *request) {
    httpdown_bytes path = httpdown_request_path(request);
    char duration[64];
    size_t len;
    uint32_t ms;
    if (path.len < 7 || memcmp(path.data, "/sleep/", 7) != 0) {
        httpdown_reply_text(request, 404, "try /sleep/?duration=20s\n");
        return;
    }
    if (httpdown_query_value(httpdown_request_query(request), "duration", duration, sizeof duration, &len) != 0 ||
        !cli_duration(duration, len, &ms)) {
        httpdown_reply_text(request, 400, "bad duration; write 300ms, 1.5s or 1m\n");
        return;
    }
    sleeper *p = malloc(sizeof *p);
    /* Without this, nobody would say that the client has left, or that the server kills. */
    if (p == NULL || httpdown_request_notify(request, 0, NULL, p, NULL) != 0) {
        httpdown_reply_text(request, 503, "out of memory\n");
        free(p);
        return;
    }
    sleeper **at = &s->first;
    *p = (sleeper){.request = request, .ms = ms, .due = now_ms() + ms};
    while (*at != NULL && (*at)->due <= p->due) at = &(*at)->next;
    p->next = *at;
    *at = p;
}

/* Nobody waits for its answer any more. */
static void give_up(service *s, sleeper *p) {
    sleeper **at = &s->first;
    while (*at != p) at = &(*at)->next;
    *at = p->next;
    httpdown_reply_abort(p->request);
    free(p);
}

/* How long the thread may wait for something else. */
static uint32_t until_next(const service *s) {
    if (s->first == NULL) return HTTPDOWN_FOREVER;
    int64_t left = s->first->due - now_ms();
    return left > 0 ? (uint32_t)left : HTTPDOWN_NOW;
}

static void *serve(void *user_data) {
    service *s = user_data;
    httpdown_item items[16];
    for (;;) {
        size_t count = 0;
        int status = httpdown_next_item(s->server, until_next(s), items, 16, &count);
        if (status != 0 && status != HTTPDOWN_STATUS_WOULD_BLOCK) return NULL; /* nothing can come any more */
        for (size_t i = 0; i < count; i++) {
            if (items[i].ready & HTTPDOWN_NEW) begin(s, items[i].request);
            else give_up(s, items[i].user_data);
        }
        while (s->first != NULL && s->first->due <= now_ms()) {
            sleeper *p = s->first;
            s->first = p->next;
            answer(s, p);
            free(p);
        }
    }
}

static void on_phase(const httpdown_server *server, int phase, void *user_data) {
    service *s = user_data;
    if (phase == HTTPDOWN_PHASE_SERVING) {
        char address[600];
        s->server = server;
        s->has_thread = pthread_create(&s->thread, NULL, serve, s) == 0;
        if (!s->has_thread) {
            fprintf(stderr, "%s: no thread\n", s->name);
            kill(getpid(), SIGTERM);
        }
        cli_write_address(server, address, sizeof address);
        printf("%-6s started at %s, serving on %s with pid %d\n", s->name, started_at, address, getpid());
        fflush(stdout);
    }
    /* The last event: when it has been delivered, the server is freed. */
    if (phase == HTTPDOWN_PHASE_STOPPED && s->has_thread) pthread_join(s->thread, NULL);
}

int main(int argc, char **argv) {
    static service services[COUNT] = {{.name = "Zero"}, {.name = "First"}, {.name = "Second"}};
    const char *addrs[COUNT] = {":48567", ":48568", ":48569"};
    uint32_t stop_timeout_ms = 0, kill_timeout_ms = 0;
    httpdown_restart_options restart = {.struct_size = sizeof restart};
    for (int i = 1; i < argc; i++) {
        const char *value;
        if ((value = cli_flag(argv, &i, "a0"))) addrs[0] = value;
        else if ((value = cli_flag(argv, &i, "a1"))) addrs[1] = value;
        else if ((value = cli_flag(argv, &i, "a2"))) addrs[2] = value;
        else if ((value = cli_flag(argv, &i, "stop-timeout"))) stop_timeout_ms = cli_timeout(argv[0], value);
        else if ((value = cli_flag(argv, &i, "kill-timeout"))) kill_timeout_ms = cli_timeout(argv[0], value);
        else if ((value = cli_flag(argv, &i, "ready-timeout"))) restart.ready_timeout_ms = cli_timeout(argv[0], value);
        else if ((value = cli_flag(argv, &i, "probation"))) restart.probation_ms = cli_timeout(argv[0], value);
        else if (!cli_tls_flag(argv, &i)) {
            const char *flags = "[-a0 A] [-a1 A] [-a2 A] [-stop-timeout D] [-kill-timeout D] [-ready-timeout D] "
                                "[-probation D] [-tls-cert F -tls-key F]";
            return fprintf(stderr, "usage: %s %s\n", argv[0], flags), 2;
        }
    }
    write_time(started_at, sizeof started_at);
    httpdown_options options[COUNT];
    const httpdown_options *all[COUNT];
    httpdown_stop_report reports[COUNT];
    for (int i = 0; i < COUNT; i++) {
        options[i] = (httpdown_options){
            .struct_size = sizeof options[i],
            .addr = addrs[i],
            .dispatch = HTTPDOWN_DISPATCH_QUEUE,
            .user_data = &services[i],
            .on_phase = on_phase,
            .on_log = cli_on_log,
            .stop_timeout_ms = stop_timeout_ms,
            .kill_timeout_ms = kill_timeout_ms,
            .tls = cli_tls_settings(),
            .reload_on_hup = cli_tls_settings() != NULL,
            .restart = i == 0 ? &restart : NULL, /* the first server says it for all */
        };
        all[i] = &options[i];
        reports[i] = (httpdown_stop_report){.struct_size = sizeof reports[i]};
    }
    char error[512];
    int status = httpdown_run_all(all, COUNT, reports, error, sizeof error); /* until TERM, INT or USR2 */
    for (int i = 0; i < COUNT; i++) cli_print_report(&reports[i]);
    if (status != 0) fprintf(stderr, "%s: %s: %s\n", argv[0], httpdown_status_string(status), error);
    return status != 0;
}
