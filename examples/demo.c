/* A slow server that stops without losing a request: GET /?duration=20s answers at once, sleeps, and answers again.
 *
 *     build/demo & curl 'http://127.0.0.1:8080/?duration=3s' & sleep 1; kill %1; wait
 */
#define _POSIX_C_SOURCE 200809L
#include <httpdown.h>
#include <unistd.h>

#include "cli.h"

static void say(httpdown_request *request, const char *what, const char *duration) {
    char line[128];
    int len = snprintf(line, sizeof line, "%s %s with pid %d\n", what, duration, getpid());
    /* It fails if the client is gone, or killed: the end will tell. */
    if (httpdown_reply_write(request, line, (size_t)len, HTTPDOWN_FOREVER, NULL) != 0) return;
}

static void on_request(httpdown_request *request, void *user_data) {
    (void)user_data;
    char duration[64] = "0";
    size_t len = 1;
    int status = httpdown_query_value(httpdown_request_query(request), "duration", duration, sizeof duration, &len);
    uint32_t ms;
    if ((status != 0 && status != HTTPDOWN_STATUS_NOT_FOUND) || !cli_duration(duration, len, &ms)) {
        httpdown_reply_text(request, 400, "bad duration; write 300ms, 1.5s or 1m\n");
        return;
    }
    httpdown_header headers[] = {{httpdown_str("content-type"), httpdown_str("text/plain; charset=utf-8")}};
    if (httpdown_reply_start(request, 200, headers, 1) != 0) return;
    say(request, "going to sleep", duration);
    if (httpdown_request_wait_cancelled(request, ms) == HTTPDOWN_STATUS_WOULD_BLOCK) say(request, "slept", duration);
    httpdown_reply_finish(request);
}

int main(int argc, char **argv) {
    httpdown_options options = {
        .struct_size = sizeof options,
        .addr = "127.0.0.1:8080",
        .handler = on_request,
        .on_phase = cli_on_phase,
        .on_log = cli_on_warning,
        .stop_timeout_ms = 10000,
        .kill_timeout_ms = 1000,
    };
    for (int i = 1; i < argc; i++) {
        const char *value;
        if ((value = cli_flag(argv, &i, "addr"))) options.addr = value;
        else if ((value = cli_flag(argv, &i, "stop-timeout"))) options.stop_timeout_ms = cli_timeout(argv[0], value);
        else if ((value = cli_flag(argv, &i, "kill-timeout"))) options.kill_timeout_ms = cli_timeout(argv[0], value);
        else if (!cli_tls_flag(argv, &i)) {
            const char *flags = "[-addr A] [-stop-timeout D] [-kill-timeout D] [-tls-cert F -tls-key F]";
            return fprintf(stderr, "usage: %s %s\n", argv[0], flags), 2;
        }
    }
    options.tls = cli_tls_settings();
    options.reload_on_hup = options.tls != NULL;
    char error[256];
    httpdown_stop_report report = {.struct_size = sizeof report};
    int status = httpdown_run(&options, &report, error, sizeof error); /* until TERM or INT */
    if (report.phase == HTTPDOWN_PHASE_STOPPED)
        printf("stopped after %" PRIu64 " ms: %" PRIu64 " requests, %" PRIu64 " served, %" PRIu64 " killed\n",
               report.stop_duration_ms, report.requests, report.served, report.killed);
    cli_print_report(&report);
    if (status != 0) fprintf(stderr, "%s: %s: %s\n", argv[0], httpdown_status_string(status), error);
    return status != 0;
}
