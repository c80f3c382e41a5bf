/* A server that bounds what its clients can take, with limits that are small enough to be tried:
 *
 *     limit              here     a client beyond it
 *     max_target_size    1,000    414
 *     max_head_size      4,000    431
 *     max_headers        20       431
 *     max_body_size      10,000   413
 *     max_queued         2        503, while all threads (one) are busy: try GET /slow several times
 *     max_client_conns   10       503: an IP address may have so many connections
 *     max_conns          100      waits until another one ends
 *     max_conn_requests  50       Connection: close behind the last
 *     header_timeout     5 s      408: a head that does not come
 *     body_timeout       5 s      408: a body that does not come
 *     write_timeout      5 s      a reset: an answer that is not taken
 *     idle_timeout       60 s     closed: a connection without a request
 *
 * Each limit that bites is told to the monitoring; here, as a line.
 */
#define _POSIX_C_SOURCE 200809L
#include <httpdown.h>
#include <time.h>

#include "cli.h"

static uint32_t slow_ms = 5000;

/* Keeps a thread busy, as a query to a slow database would. */
static void be_slow(httpdown_request *request) {
    struct timespec left = {.tv_sec = slow_ms / 1000, .tv_nsec = slow_ms % 1000 * 1000000L};
    if (httpdown_reply_start(request, 200, NULL, 0) != 0) return;
    if (httpdown_reply_write(request, "slow", 4, HTTPDOWN_FOREVER, NULL) == 0)
        while (nanosleep(&left, &left) != 0) continue;
    httpdown_reply_finish(request);
}

static void on_request(httpdown_request *request, void *user_data) {
    (void)user_data;
    if (httpdown_bytes_equal(httpdown_request_path(request), "/slow")) {
        be_slow(request);
        return;
    }
    char bytes[4096], text[64];
    size_t count, total = 0;
    do {
        /* Too large, too slow, malformed, or gone: the library tells the client, and there is nothing to do here. */
        if (httpdown_request_read(request, bytes, sizeof bytes, HTTPDOWN_FOREVER, &count) != 0) return;
        total += count;
    } while (count > 0);
    snprintf(text, sizeof text, "%zu bytes\n", total);
    httpdown_reply_text(request, 200, text);
}

static void bump_sum(const char *key, double value, void *user_data) {
    (void)user_data;
    if (strncmp(key, "limit.", 6) == 0) fprintf(stderr, "%s %g\n", key, value);
}

int main(int argc, char **argv) {
    httpdown_options options = {
        .struct_size = sizeof options,
        .addr = "127.0.0.1:8080",
        .handler = on_request,
        .on_phase = cli_on_phase,
        .on_log = cli_on_warning,
        .stats = {.bump_sum = bump_sum},
        .pool_threads = 1,
        .max_target_size = 1000,
        .max_head_size = 4000,
        .max_headers = 20,
        .max_body_size = 10000,
        .max_queued = 2,
        .max_client_conns = 10,
        .max_conns = 100,
        .max_conn_requests = 50,
        .header_timeout_ms = 5000,
        .body_timeout_ms = 5000,
        .write_timeout_ms = 5000,
        .idle_timeout_ms = 60000, /* With max_conns, idle clients would keep others out. */
    };
    for (int i = 1; i < argc; i++) {
        const char *value;
        if ((value = cli_flag(argv, &i, "addr"))) options.addr = value;
        else if ((value = cli_flag(argv, &i, "slow"))) slow_ms = cli_timeout(argv[0], value);
        else return fprintf(stderr, "usage: %s [-addr A] [-slow D]\n", argv[0]), 2;
    }
    char error[256];
    httpdown_stop_report report = {.struct_size = sizeof report};
    int status = httpdown_run(&options, &report, error, sizeof error); /* until TERM or INT */
    cli_print_report(&report);
    if (status != 0) fprintf(stderr, "%s: %s: %s\n", argv[0], httpdown_status_string(status), error);
    return status != 0;
}
