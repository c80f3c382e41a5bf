/* The server for benchmarks and test suites: "Hello, World!" everywhere, POST /echo, POST /upload, GET /bytes/N,
 * GET /sleep/MS. Its flags about stops are those that matter behind a load balancer (docs/balancers.md). */
#define _POSIX_C_SOURCE 200809L
#include <httpdown.h>
#include <pthread.h>
#include <time.h>
#include <unistd.h>

#include "cli.h"

static int dispatch = HTTPDOWN_DISPATCH_POOL;

static const httpdown_header octets = {{"content-type", 12}, {"application/octet-stream", 24}};

/* Sends the body back as it comes: of however much, 64 KiB are here at a time. */
static void echo(httpdown_request *request) {
    char buffer[65536];
    size_t count;
    if (httpdown_reply_start(request, 200, &octets, 1) != 0) {
        httpdown_reply_abort(request);
        return;
    }
    for (;;) {
        int status = httpdown_request_read(request, buffer, sizeof buffer, HTTPDOWN_FOREVER, &count);
        if (status == 0 && count == 0) break;
        if (status == 0) status = httpdown_reply_write(request, buffer, count, HTTPDOWN_FOREVER, NULL);
        if (status != 0) {
            httpdown_reply_abort(request);
            return;
        }
    }
    httpdown_reply_finish(request);
}

/* Reads the body to its end, and keeps nothing of it. */
static void upload(httpdown_request *request) {
    char buffer[65536];
    size_t count = 1;
    int status = 0;
    while (status == 0 && count > 0)
        status = httpdown_request_read(request, buffer, sizeof buffer, HTTPDOWN_FOREVER, &count);
    if (status == 0) httpdown_reply_text(request, 200, "Hello, World!");
    else httpdown_reply_abort(request);
}

static void bytes(httpdown_request *request, uint64_t count) {
    static const char zeroes[65536];
    char length[24];
    snprintf(length, sizeof length, "%llu", (unsigned long long)count);
    httpdown_header headers[] = {octets, {httpdown_str("content-length"), httpdown_str(length)}};
    if (httpdown_reply_start(request, 200, headers, 2) != 0) {
        httpdown_reply_abort(request);
        return;
    }
    while (count > 0) {
        size_t piece = count < sizeof zeroes ? (size_t)count : sizeof zeroes;
        if (httpdown_reply_write(request, zeroes, piece, HTTPDOWN_FOREVER, NULL) != 0) break; /* gone, or killed */
        count -= piece;
    }
    if (count > 0) httpdown_reply_abort(request);
    else httpdown_reply_finish(request);
}

/* Blocks for so long, and then says hello. */
static void pause_and_say_hello(httpdown_request *request, uint64_t ms) {
    struct timespec left = {.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000};
    while (nanosleep(&left, &left) != 0) continue;
    httpdown_reply_text(request, 200, "Hello, World!");
}

static bool starts_with(httpdown_bytes text, const char *prefix) {
    size_t len = strlen(prefix);
    return text.len >= len && memcmp(text.data, prefix, len) == 0;
}

/* The number that a path has behind its second slash. */
static bool number(httpdown_bytes path, uint64_t *value) {
    const char *slash = memchr(path.data + 1, '/', path.len - 1), *end = path.data + path.len;
    *value = 0;
    if (slash == NULL || slash + 1 == end || end - slash > 18) return false;
    for (const char *digit = slash + 1; digit < end; digit++) {
        if (*digit < '0' || *digit > '9') return false;
        *value = *value * 10 + (uint64_t)(*digit - '0');
    }
    return true;
}

/* What may take long; runs where it may block. The request is owned. */
static void *slowly(void *user_data) {
    httpdown_request *request = user_data;
    httpdown_bytes path = httpdown_request_path(request);
    uint64_t value;
    if (httpdown_bytes_equal(path, "/echo")) echo(request);
    else if (httpdown_bytes_equal(path, "/upload")) upload(request);
    else if (!number(path, &value)) httpdown_reply_text(request, 400, "not a number\n");
    else if (starts_with(path, "/bytes/")) bytes(request, value);
    else pause_and_say_hello(request, value);
    return NULL;
}

static void on_request(httpdown_request *request, void *user_data) {
    (void)user_data;
    /* What handlers mostly look at: all three are part of what a request costs here. */
    httpdown_bytes method = httpdown_request_method(request), path = httpdown_request_path(request);
    httpdown_bytes host = httpdown_request_header(request, "host");
    (void)host;
    bool has_body = httpdown_bytes_equal(path, "/echo") || httpdown_bytes_equal(path, "/upload");
    has_body = has_body && httpdown_bytes_equal(method, "POST");
    if (!has_body && !starts_with(path, "/bytes/") && !starts_with(path, "/sleep/")) {
        httpdown_reply_text(request, 200, "Hello, World!");
        return;
    }
    if (dispatch == HTTPDOWN_DISPATCH_POOL) {
        if (httpdown_request_defer(request) == 0) slowly(request);
        return;
    }
    /* On an I/O thread, or on the only thread that takes from the queue: elsewhere. */
    pthread_t thread;
    if (dispatch == HTTPDOWN_DISPATCH_INLINE && httpdown_request_defer(request) != 0) return;
    if (pthread_create(&thread, NULL, slowly, request) != 0) httpdown_reply_text(request, 503, "no thread\n");
    else pthread_detach(thread);
}

/* Takes requests from the queue until none can come any more. */
static void *take(void *server) {
    httpdown_request *requests[16];
    size_t count;
    while (httpdown_next(server, HTTPDOWN_FOREVER, requests, 16, &count) == 0)
        for (size_t i = 0; i < count; i++) on_request(requests[i], NULL);
    return NULL;
}

static void on_phase(const httpdown_server *server, int phase, void *user_data) {
    (void)user_data;
    static pthread_t taker;
    static bool taking;
    if (phase == HTTPDOWN_PHASE_SERVING) {
        cli_tell_address(server);
        taking = dispatch == HTTPDOWN_DISPATCH_QUEUE && pthread_create(&taker, NULL, take, (void *)server) == 0;
    }
    /* The last event: when it has been delivered, the server is freed. */
    if (phase == HTTPDOWN_PHASE_STOPPED && taking) pthread_join(taker, NULL);
}

int main(int argc, char **argv) {
    httpdown_restart_options restart = {.struct_size = sizeof restart};
    httpdown_options options = {
        .struct_size = sizeof options,
        .addr = "127.0.0.1:8080",
        .on_phase = on_phase,
        .on_log = cli_on_log,
        .restart = &restart,
    };
    const struct {
        const char *flag;
        uint32_t *ms;
    } durations[] = {
        {"lame-duck", &options.lame_duck_ms},
        {"lame-duck-min", &options.lame_duck_min_ms},
        {"lame-duck-quiet", &options.lame_duck_quiet_ms},
        {"idle-grace", &options.idle_grace_ms},
        {"idle-timeout", &options.idle_timeout_ms},
        {"probation", &restart.probation_ms},
    };
    for (int i = 1; i < argc; i++) {
        const char *value = NULL;
        for (size_t j = 0; j < sizeof durations / sizeof *durations && value == NULL; j++)
            if ((value = cli_flag(argv, &i, durations[j].flag))) *durations[j].ms = cli_timeout(argv[0], value);
        if (value != NULL) continue;
        if ((value = cli_flag(argv, &i, "addr"))) options.addr = value;
        else if ((value = cli_flag(argv, &i, "ready-path"))) options.ready_path = value;
        else if ((value = cli_flag(argv, &i, "threads"))) options.io_threads = (uint32_t)strtoul(value, NULL, 10);
        else if (strcmp(argv[i], "-trim-memory") == 0) options.trim_memory = 1;
        else if ((value = cli_flag(argv, &i, "dispatch"))) {
            if (strcmp(value, "inline") == 0) dispatch = HTTPDOWN_DISPATCH_INLINE;
            else if (strcmp(value, "queue") == 0) dispatch = HTTPDOWN_DISPATCH_QUEUE;
            else if (strcmp(value, "pool") != 0) return fprintf(stderr, "%s: no dispatch '%s'\n", argv[0], value), 2;
        } else if (!cli_tls_flag(argv, &i)) {
            const char *flags = "[-addr A] [-threads N] [-dispatch inline|pool|queue] [-trim-memory] [-ready-path P] "
                                "[-lame-duck D] [-lame-duck-min D] [-lame-duck-quiet D] [-idle-grace D] "
                                "[-idle-timeout D] [-probation D] [-tls-cert F -tls-key F]";
            return fprintf(stderr, "usage: %s %s\n", argv[0], flags), 2;
        }
    }
    options.tls = cli_tls_settings();
    options.reload_on_hup = options.tls != NULL;
    options.dispatch = dispatch;
    options.handler = dispatch == HTTPDOWN_DISPATCH_QUEUE ? NULL : on_request;
    char error[256];
    httpdown_stop_report report = {.struct_size = sizeof report};
    int status = httpdown_run(&options, &report, error, sizeof error); /* until TERM, INT or USR2 */
    cli_print_report(&report);
    if (status != 0) fprintf(stderr, "%s: %s: %s\n", argv[0], httpdown_status_string(status), error);
    return status != 0;
}
